"""takhin health: does the broker answer?"""

from typing import TYPE_CHECKING

from takhin.cli.command import EXIT_FAILED, EXIT_OK
from takhin.cli.connection import connection_options, output_option, with_client
from takhin.cli.output import show_one
from takhin.cli.program import Command

if TYPE_CHECKING:
    from takhin.client import Client


@with_client
async def _health(tk: "Client", output: str | None) -> int:
    """Ask the broker how it is. Exit status 0 when it is healthy, 1 when it is not, 5 when it can't be reached."""
    health = await tk.health()
    show_one(
        {"status": health.status, "version": health.version, "uptime_s": health.uptime_s},
        {"status": "Status", "version": "Version", "uptime_s": "Up for (s)"}, output)
    return EXIT_OK if health.status == "healthy" else EXIT_FAILED


COMMANDS = {
    "health": Command(
        "health", callback=_health, help=_health.__doc__, params=[output_option(), *connection_options()]),
}
