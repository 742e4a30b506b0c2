"""How a command reaches the broker: the options that all have in common, and running with a client."""

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from takhin.cli.output import FORMATS
from takhin.cli.program import Option
from takhin.cli.values import Seconds

if TYPE_CHECKING:
    from takhin.client import Client

DEFAULT_BROKER = "localhost:9092"
# The heading of these options in --help.
CONNECTION = "Connection"


def connection_options() -> list[click.Parameter]:
    """Of every command that speaks with a broker; new ones each time, as click gives them to one command."""
    def option(*declarations: str, **rest: Any) -> Option:
        variable = "TAKHIN_" + declarations[-1].removeprefix("--").replace("-", "_").upper()
        return Option(declarations, envvar=variable, section=CONNECTION, **rest)

    return [
        option("-b", "--broker", metavar="HOST:PORT", default=DEFAULT_BROKER, show_default=True,
               help="The broker to speak with (TAKHIN_BROKER)."),
        option("--timeout", type=Seconds(), metavar="SECONDS", default="10", show_default=True,
               help="Give up a call without an answer after so long (TAKHIN_TIMEOUT)."),
        option("--tls", is_flag=True, help="Speak TLS (TAKHIN_TLS); the other --tls options imply it."),
        option("--tls-ca", metavar="FILE", help="Certificates to trust, PEM (TAKHIN_TLS_CA)."),
        option("--tls-cert", metavar="FILE", help="The client's own certificate, PEM (TAKHIN_TLS_CERT)."),
        option("--tls-key", metavar="FILE", help="Its key, PEM (TAKHIN_TLS_KEY)."),
        option("--tls-server-name", metavar="NAME",
               help="The name that the broker's certificate bears, where it is not the host of --broker "
               "(TAKHIN_TLS_SERVER_NAME)."),
        option("--token", metavar="TOKEN", help="Bearer token; better as TAKHIN_TOKEN, where ps does not show it."),
        option("--api-key", metavar="KEY", help="API key; better as TAKHIN_API_KEY."),
        option("--compression", type=click.Choice(["gzip", "deflate"]),
               help="Compress what is sent to the broker (TAKHIN_COMPRESSION)."),
    ]


def output_option() -> click.Parameter:
    return Option(
        ["-O", "--output"], type=click.Choice(FORMATS), envvar="TAKHIN_OUTPUT",
        help="How to show it (TAKHIN_OUTPUT).  [default: table on a terminal, else jsonl]")


class Connection(NamedTuple):
    """The values of connection_options()."""

    broker: str
    timeout: float
    tls: bool
    tls_ca: str | None
    tls_cert: str | None
    tls_key: str | None
    tls_server_name: str | None
    token: str | None
    api_key: str | None
    compression: str | None

    def client(self) -> "Client":
        """A client, not connected yet. Raises OSError for a file that can't be read, ValueError."""
        import takhin.client

        tls: takhin.client.TLS | bool = self.tls
        if self.tls_ca or self.tls_cert or self.tls_key or self.tls_server_name:
            tls = takhin.client.TLS(
                ca=self.tls_ca, cert=self.tls_cert, key=self.tls_key, server_name=self.tls_server_name or None)
        return takhin.client.connect(
            self.broker, tls=tls, token=self.token, api_key=self.api_key, compression=self.compression,
            timeout_s=self.timeout)


def with_client(command: Callable[..., Awaitable[int | None]]) -> Callable[..., int | None]:
    """Makes of `async def command(tk, ...)` a click callback: it takes connection_options() as well, and is run with a
    client of that broker.
    """
    @functools.wraps(command)
    def callback(**values: Any) -> int | None:
        from takhin.cli.session import run_with_client

        connection = Connection(*(values.pop(name) for name in Connection._fields))
        named = {}
        for name in ("topic", "group"):
            value = values.get(name)
            if isinstance(value, tuple) and len(value) == 1:
                (value,) = value
            if isinstance(value, str):
                named[name] = value
        return run_with_client(connection, functools.partial(command, **values), named)

    return callback
