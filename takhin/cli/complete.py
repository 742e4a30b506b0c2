"""Names of topics and groups, completed in the shell from what the broker has."""

import os
from typing import Any

import click

# A shell that waits for a broker that is not there is worse than one that completes nothing.
_TIMEOUT_S = 1.0


def topic_argument(**rest: Any) -> click.Argument:
    """TOPIC, or TOPIC... with nargs=-1."""
    metavar = "TOPIC..." if rest.get("nargs") == -1 else "TOPIC"
    return click.Argument(["topic"], metavar=metavar, shell_complete=_topics, **rest)


def group_argument(**rest: Any) -> click.Argument:
    return click.Argument(["group"], metavar="GROUP", shell_complete=_groups, **rest)


def _topics(context: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    return _names(context, "list_topics", incomplete)


def _groups(context: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    return _names(context, "list_groups", incomplete)


def _names(context: click.Context, call: str, incomplete: str) -> list[str]:
    """Nothing where the broker does not answer: completion has no way to complain."""
    from takhin.cli.command import CommandError
    from takhin.cli.connection import DEFAULT_BROKER, Connection
    from takhin.cli.session import run_with_client

    params = context.params
    broker = params.get("broker") or os.environ.get("TAKHIN_BROKER") or DEFAULT_BROKER
    connection = Connection(broker, _TIMEOUT_S, *(params.get(name) for name in Connection._fields[2:]))
    found: list[str] = []

    async def ask(tk: Any) -> None:
        found.extend(each if isinstance(each, str) else each.group for each in await getattr(tk, call)())

    try:
        run_with_client(connection, ask)
    except (CommandError, OSError):
        return []
    return [name for name in found if name.startswith(incomplete)]
