"""A command that speaks with a broker, from its event loop to its errors."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping

from takhin.cli.command import EXIT_USAGE, CommandError
from takhin.cli.connection import Connection

# What grpc reads when it is imported; the user's own values stand.
_GRPC_ENVIRONMENT = {"GRPC_ENABLE_FORK_SUPPORT": "0", "GRPC_VERBOSITY": "NONE"}


def run_with_client(
    connection: Connection, command: Callable[..., Awaitable[int | None]], named: Mapping[str, str] | None = None
) -> int | None:
    """Run command(client). Gives what it gives. Raises CommandError for all that the client raises; named: the topic
    and the group that the command is about.
    """
    for name, value in _GRPC_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import uvloop

    from takhin.cli.malloc import tune_malloc

    tune_malloc(os.environ)

    from takhin.cli.failure import command_error
    from takhin.client import ClientError

    async def session() -> int | None:
        async with client:
            return await command(client)

    try:
        client = connection.client()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(session())
    except ClientError as problem:
        raise command_error(problem, connection.broker, named) from problem
    except ValueError as problem:
        raise CommandError(str(problem), EXIT_USAGE) from problem
