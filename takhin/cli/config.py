"""takhin config: what takhin and takhin-server use here, and where from; what is wrong with it; a file with all."""

import os
from collections.abc import Iterator
from typing import Any

import click

from takhin.cli.command import EXIT_OK, EXIT_USAGE
from takhin.cli.connection import connection_options
from takhin.cli.output import TABLE, Column, format_of, say, show, write_text
from takhin.cli.program import Group, Option
from takhin.config import load_settings_with_sources, options, value_of

config = Group("config", help="Settings, and where they come from.")
COMMANDS = {"config": config}

_COLUMNS = (Column("SETTING", "setting"), Column("VALUE", "value"), Column("ORIGIN", "origin"))
# What is not for other people's eyes.
_SECRET = {"token", "api_key"}


@config.command("show", short_help="Show settings, and where they come from.", params=[
    click.Argument(["prefix"], metavar="[PREFIX]", required=False, default=""),
    Option(["--changed"], is_flag=True, help="Only those that are not at their default."),
    Option(["--config", "config_file"], metavar="FILE", envvar="TAKHIN_CONFIG", help="takhin-server's TOML file."),
    Option(["-O", "--output"], type=click.Choice(["table", "json", "jsonl"]), envvar="TAKHIN_OUTPUT",
           help="How to show it (TAKHIN_OUTPUT).  [default: table on a terminal, else jsonl]"),
])
@click.pass_context
def _show(
    context: click.Context, prefix: str, changed: bool, config_file: str | None, output: str | None
) -> None:
    """Show what takhin (client.*) and takhin-server would use if they were started here without a flag: the value and
    its origin, a variable, the file, or the default. PREFIX: only those whose names begin with it, as "grpc".
    """
    rows = [
        row for row in (*_client_rows(context), *_server_rows(config_file))
        if row["setting"].startswith(prefix) and not (changed and row["origin"] == "default")]
    if format_of(output) == TABLE:
        # As it is to be written, without commas.
        rows = [row | {"value": None if row["value"] is None else str(row["value"]).lower()
                       if isinstance(row["value"], bool) else str(row["value"])} for row in rows]
    show(rows, _COLUMNS, output, empty="nothing is set: all is at its default")


def _client_rows(context: click.Context) -> Iterator[dict[str, Any]]:
    for option in connection_options():
        assert isinstance(option, Option) and isinstance(option.envvar, str) and option.name is not None
        given = os.environ.get(option.envvar) or None
        value = option.type_cast_value(context, given) if given is not None else option.get_default(context)
        if not isinstance(value, str | int | float):
            value = None  # or what click has for it
        elif given is not None and option.name in _SECRET:
            value = "(set, not shown)"
        yield {"setting": f"client.{option.name}", "value": value, "origin": option.envvar if given else "default"}


def _server_rows(config_file: str | None) -> Iterator[dict[str, Any]]:
    settings, sources = load_settings_with_sources({}, os.environ, config_file)
    for option in options():
        yield {"setting": option.key, "value": value_of(settings, option), "origin": sources[option.key]}


@config.command(
    "check", short_help="Say what is wrong with a file, before the broker does.",
    params=[click.Argument(["file"], metavar="[FILE]", required=False, envvar="TAKHIN_CONFIG")],
    epilog="Exit status: 0 when takhin-server would start with it, 2 when it would not.",
)
def _check(file: str | None) -> int:
    """Read FILE, a TOML file of takhin-server (TAKHIN_CONFIG names it otherwise), and the TAKHIN_... variables, and say
    everything that is wrong, a line each: unknown keys, values that are not allowed or do not fit together, an address
    that is open to others, certificates, keys and key sets that can't be used.
    """
    from takhin.cli.config_check import problems_of

    problems, given = problems_of(os.environ, file)
    for problem in problems:
        say(problem)
    if problems:
        return EXIT_USAGE
    write_text(f"ok: {given} setting{'' if given == 1 else 's'} given, all others at their defaults\n")
    return EXIT_OK


@config.command("example", short_help="Write a file with all settings, commented out.")
def _example() -> None:
    """Write a TOML file with every setting of takhin-server to standard output: what it is, what is allowed, and,
    commented out, its default.
    """
    from takhin.cli.config_text import example

    write_text(example())
