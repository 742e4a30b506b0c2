"""takhin health and takhin version: does the broker answer, and what is it?"""

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


@with_client
async def _version(tk: "Client", output: str | None) -> None:
    """Show the versions of takhin, of Python, and of the broker when there is one to be reached. takhin --version asks
    no broker.
    """
    import platform

    from takhin import __version__
    from takhin.client import ClientError

    try:
        broker: str | None = (await tk.health()).version
    except ClientError:
        broker = None
    show_one(
        {"takhin": __version__, "python": platform.python_version(), "broker": broker},
        {"takhin": "takhin", "python": "Python", "broker": "Broker"}, output)


COMMANDS = {
    name: Command(name, callback=callback, help=callback.__doc__, params=[output_option(), *connection_options()])
    for name, callback in (("health", _health), ("version", _version))
}
