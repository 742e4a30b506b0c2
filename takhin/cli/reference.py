"""docs/cli.md, made of the commands' own help: python -m takhin.cli.reference."""

import re
import sys
from collections.abc import Iterator
from typing import Any

import click

from takhin.cli.connection import CONNECTION, connection_options
from takhin.cli.main import PROG, program
from takhin.cli.program import Command

_HEAD = """\
# The command line

Made from the commands' own help by `make docs`. `takhin` speaks with a broker, or, `takhin segment`, `backup`, `doctor`
and `config`, with its files; `takhin-server` is the broker itself, and its `--help` lists every setting.

- **Output.** Data goes to standard output, all else to standard error. On a terminal there are tables; in a pipe or a
  file there is one JSON object a line. `-O table|json|jsonl` says otherwise. `NO_COLOR` turns colors off.
- **Options.** A flag beats a variable, a variable beats the default. `TAKHIN_BROKER=HOST:PORT` is `--broker`
  everywhere.
- **Scripts.** An error is one line on standard error that says what to do next; the exit status tells its kind. When
  nobody reads the output any more a command ends quietly, and Ctrl-C ends each of them.

| exit status | |
|---|---|
| 0 | all is well |
| 1 | it failed; of `segment`: it is damaged |
| 2 | a mistake in the arguments; of `segment`: it can't be done |
| 3 | there is no such topic, partition or group |
| 4 | access is denied |
| 5 | the broker can't be reached |
| 6 | time was up |
| 130 | Ctrl-C |
| 141 | nobody reads the output any more |

## A file in, a file out

    takhin topic create access-log
    takhin produce access-log access.log
    takhin consume access-log -e -f '%v\\n' > copy.log

A record is a line without its newline, so the copy is the file byte for byte, in a topic with one partition (or with
`-p`). One thing is lost: whether the last line ended with a newline. `consume -f '%v\\n'` writes one behind every
record, so a file that did not end with one is a byte longer afterwards. Where that matters, keep the newlines in the
records; then every file comes back as it was, also one without any text in it:

    takhin produce images photo.jpg --keep-ends
    takhin consume images -e -f '%v' > photo.jpg

Lines may hold any bytes and be as long as the topic takes (`max.message.bytes`, 1 MiB by default); `\\r` stays where it
is.
"""


def reference() -> str:
    """The whole text."""
    context = _context(Command("takhin", params=connection_options()), (PROG,), None)
    formatter = context.make_formatter()
    Command("takhin", params=connection_options(), add_help_option=False).format_options(context, formatter)
    shared = formatter.getvalue().strip()
    parts = [_HEAD, f"## Options of every command that speaks with a broker\n\n```\n{shared}\n```\n"]
    for path, text in _helps(program, (PROG,), None):
        level = "##" if len(path) <= 2 else "###"
        parts.append(f"{level} {' '.join(path)}\n\n```\n{text}\n```\n")
    return "\n".join(parts)


def _helps(
    command: click.Command, path: tuple[str, ...], parent: click.Context | None
) -> Iterator[tuple[tuple[str, ...], str]]:
    context = _context(command, path, parent)
    text = command.get_help(context)
    # Said once, above.
    yield path, re.sub(rf"\n{CONNECTION}:\n(?:  .*\n)+", "\n", text + "\n").strip()
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _helps(inner, (*path, name), context)


def _context(command: click.Command, path: tuple[str, ...], parent: click.Context | None) -> click.Context:
    settings: Any = command.context_settings
    return click.Context(command, parent=parent, info_name=path[-1], terminal_width=80, **settings)


if __name__ == "__main__":
    sys.stdout.write(reference())
