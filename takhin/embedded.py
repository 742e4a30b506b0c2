"""The broker inside a program: the real engine on a real directory, with or without a port."""

import asyncio
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from takhin.broker.broker import Broker as Engine
from takhin.client.client import DEFAULT_RETRY_S, Client
from takhin.config import Settings, load_settings, options
from takhin.errors import ConfigError, StartError
from takhin.local_transport import DEFAULT_TIMEOUT_S, LocalTransport
from takhin.rpc.call import MethodTable
from takhin.rpc.health import Health, ServingStatus
from takhin.rpc.observed import Observer
from takhin.rpc.readiness import follow_readiness
from takhin.rpc.security import Security
from takhin.rpc.served import served
from takhin.rpc.watched_files import watch

if TYPE_CHECKING:
    from takhin.rpc.grpc_front import GrpcFront
    from takhin.rpc.tracing import Tracing

_NO_PORT = "127.0.0.1:0"


def _tracing(settings: Settings) -> "Tracing | None":
    """None: nothing is traced, and nothing of OpenTelemetry imported. Raises StartError."""
    if not settings.tracing.enabled:
        return None
    try:
        from takhin.rpc.tracing import Tracing
    except ImportError as problem:
        raise StartError(f"tracing.enabled needs opentelemetry: pip install 'takhin[tracing]' ({problem})") from None
    return Tracing()


class Broker:
    """A broker in this process, used with `async with`, in the event loop that it is entered in.

        async with takhin.Broker("./data") as broker, broker.client() as tk:
            await tk.create_topic("orders")

    data_dir: of its log, made when it is missing; None: a temporary one, removed at its end. One broker at a time has a
    directory, in whatever process. listen: "HOST:PORT" to serve other programs too, port 0 for a free one; None: no
    port. settings: takhin-server's, as topics__partitions=3 for topics.partitions; authentication is for those other
    programs: who has the Broker may do everything. With tracing__enabled=True the spans go to the program's own tracer
    provider.

    Entering it raises ConfigError for a setting that is none, StartError when the directory or the port is taken.
    """

    def __init__(
        self, data_dir: str | Path | None = None, *, listen: str | None = None, **settings: str | int | bool
    ) -> None:
        values = {name.replace("__", "."): str(value).lower() if isinstance(value, bool) else str(value)
                  for name, value in settings.items()}
        self._values = values | {"listen": listen or _NO_PORT}
        self._listens = listen is not None
        self._given_dir = data_dir
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._engine: Engine | None = None
        self._table: MethodTable = {}
        self._health: Health | None = None
        self._front: "GrpcFront | None" = None
        self._watching: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._clients: set[LocalTransport] = set()
        self._address: str | None = None

    async def __aenter__(self) -> "Broker":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def address(self) -> str | None:
        """HOST:PORT where others reach it; None without a port."""
        return self._address

    @property
    def data_dir(self) -> Path | None:
        """None before it is started, where it is a temporary one."""
        if self._temporary is not None:
            return Path(self._temporary.name)
        return Path(self._given_dir) if self._given_dir is not None else None

    async def start(self) -> None:
        """Recover what the directory holds, and serve. `async with` does it. Raises ConfigError, StartError."""
        if self._engine is not None:
            raise RuntimeError("the broker runs already")
        known = {option.key for option in options()}
        if unknown := self._values.keys() - known:
            raise ConfigError(f"{min(unknown)!r} is no setting of takhin-server")
        if self._given_dir is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="takhin-")
        settings = load_settings(self._values | {"data_dir": str(self.data_dir)}, {}, None)
        security = Security(settings)
        engine = Engine(settings)
        try:
            await engine.start()
            self._engine = engine
            table, self._health, services, self._table, _ = served(
                engine, security.authentication, settings.auth.reflection, Observer(settings.slow_request_ms),
                _tracing(settings))
            if self._listens:
                from takhin.rpc.grpc_front import GrpcFront

                self._front = GrpcFront(table, settings.grpc, security.tls, settings.limits)
                self._watching = asyncio.create_task(watch(security.files, lambda: settings.tls.check_ms))
                self._address = await self._front.start(settings.listen)
            self._health.set_all(ServingStatus.SERVING)
            self._following = asyncio.create_task(
                follow_readiness(engine, self._health, services, lambda unfit: None))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End in order: calls are told to end, everything is synced. May be called again."""
        engine, self._engine = self._engine, None
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        if self._following is not None:
            self._following.cancel()
            self._following = None
        if engine is not None:
            assert self._health is not None
            self._health.drain()
            engine.begin_drain()
            # Streams end by themselves now, with what they have under way answered.
            await asyncio.sleep(0)
            if self._front is not None:
                await self._front.stop(engine.settings.grpc.shutdown_grace_ms)
            for transport in list(self._clients):
                await transport.close()
            await engine.stop()
        self._front = None
        self._clients.clear()
        self._address = None
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def client(
        self, *, timeout_s: float = DEFAULT_TIMEOUT_S, retry_s: float = DEFAULT_RETRY_S, tracing: bool = False
    ) -> Client:
        """A client of this broker, without a socket. It is closed with the broker, and lives in its event loop.

        timeout_s, retry_s, tracing: as in takhin.connect.
        """
        return Client(self.transport(timeout_s=timeout_s, tracing=tracing), retry_s=retry_s, tracing=tracing)

    def transport(self, *, timeout_s: float = DEFAULT_TIMEOUT_S, tracing: bool = False) -> LocalTransport:
        """What a client speaks over: for who makes the Client."""
        if self._engine is None:
            raise RuntimeError("the broker does not run: use it with `async with`")
        transport = LocalTransport(
            self._table, timeout_s=timeout_s, tracing=tracing, on_close=self._clients.discard)
        self._clients.add(transport)
        return transport

    async def wait_failed(self) -> str:
        """Returns, with why, when the broker can't go on: when its disk fails, say."""
        if self._engine is None:
            raise RuntimeError("the broker does not run")
        return await self._engine.wait_failed()
