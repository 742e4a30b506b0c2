"""takhin: a broker's command line, and tools around its data directory; one module for each group of commands.

A command's module is imported when it is run, and what a command is made of only then: so that --help and a mistyped
option answer at once.
"""

import os
import sys
from collections.abc import Sequence

import click

from takhin.cli.program import Group, Lazy, Option, run
from takhin.cli.terminal import open_standard_streams

PROG = "takhin"
# The scripts of takhin completion call us with it.
VARIABLE = "_TAKHIN_COMPLETE"

_ABOUT = """\
Topics, records and consumer groups of a Takhin broker, and tools around its
data directory; takhin-server is the broker itself.

First steps: takhin dev starts a broker to play with, and says what to type next.
"""
_EPILOG = """\
Every option can also be set by a variable: TAKHIN_BROKER is --broker everywhere,
TAKHIN_TOPIC_CREATE_PARTITIONS is topic create --partitions. A flag beats the variable.

Exit status: 0 when all is well, 1 when it failed, 2 for a mistake in the arguments, 3 when
there is no such topic or group, 4 when access is denied, 5 when the broker can't be reached,
6 when time was up, 130 after Ctrl-C, 141 when nobody reads the output any more.
"""

# Where a command has no module of its own name.
_MODULES = {"tail": "consume", "version": "health"}

COMMANDS = {
    name: Lazy(f"takhin.cli.{_MODULES.get(name, name)}", about) for name, about in {
        "dev": "Start a broker to play with.",
        "topic": "Create, list, describe, update and delete topics.",
        "produce": "Make records of lines.",
        "consume": "Write records to standard output.",
        "tail": "Show the last records, and those that come.",
        "group": "Consumer groups: who is in them, how far behind they are.",
        "key": "API keys: make, list and revoke them.",
        "acl": "Who may do what: allow, deny, list.",
        "cert": "Certificates to try TLS with.",
        "bench": "Measure a broker: produce, consume, end to end.",
        "health": "Ask the broker how it is.",
        "doctor": "Say whether a machine and a data directory are fit for a broker.",
        "config": "Settings, and where they come from.",
        "backup": "Copy a data directory, also of a running broker.",
        "segment": "Look into a data directory's files, audit and repair them.",
        "version": "Show the versions of takhin and of the broker.",
        "completion": "Complete commands in bash, zsh and fish.",
    }.items()
}


def _show_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from takhin import __version__

        click.echo(f"{PROG} {__version__}")
        context.exit()


program = Group(
    PROG, help=_ABOUT, epilog=_EPILOG, lazy=COMMANDS,
    params=[Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_show_version,
                   help="Show it and exit.")],
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; `argv` is sys.argv[1:] when not given. Gives the exit status."""
    open_standard_streams()
    if VARIABLE in os.environ:
        from click.shell_completion import shell_complete

        return shell_complete(program, {}, PROG, VARIABLE, os.environ[VARIABLE])
    return run(program, PROG, argv)


if __name__ == "__main__":
    sys.exit(main())
