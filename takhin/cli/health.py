"""takhin health and takhin version: does the broker answer, and what is it?"""

from typing import TYPE_CHECKING

from takhin.cli.command import EXIT_FAILED, EXIT_OK
from takhin.cli.connection import connection_options, output_option, with_client
from takhin.cli.output import show_one
from takhin.cli.program import Command, Option

if TYPE_CHECKING:
    from takhin.client import Client

_READY = Option(["--ready"], is_flag=True, help="Ask whether it takes appends, not only whether it answers.")


@with_client
async def _health(tk: "Client", output: str | None, ready: bool) -> int:
    """Ask the broker how it is. Healthy is one that answers, though its disk be full: it is not to be restarted for
    that. Ready (--ready) is one all of whose partitions take appends; its log says why one is not. Exit status 0 when
    it is healthy, or ready, 1 when it is not, 5 when it can't be reached.
    """
    health = await tk.health()
    status, is_well = health.status, health.status == "healthy"
    if ready:
        is_well = await tk.is_ready()
        status = "ready" if is_well else "not ready"
    show_one(
        {"status": status, "version": health.version, "uptime_s": health.uptime_s},
        {"status": "Status", "version": "Version", "uptime_s": "Up for (s)"}, output)
    return EXIT_OK if is_well else EXIT_FAILED


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
    name: Command(name, callback=callback, help=callback.__doc__, params=[*own, output_option(), *connection_options()])
    for name, callback, own in (("health", _health, [_READY]), ("version", _version, []))
}
