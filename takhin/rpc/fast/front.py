"""The fast front: serves a method table over HTTP/2 by nghttp2, bytes in and out, beside the front on grpc.aio."""

import asyncio
import logging
import os
import random
import ssl
from contextlib import nullcontext, suppress
from typing import Any

from takhin.broker.statistics import Usage
from takhin.config import GrpcSettings, Limits
from takhin.errors import StartError
from takhin.rpc.call import MethodTable
from takhin.rpc.fast.connection import Connection
from takhin.rpc.fast.hub import Hub
from takhin.rpc.fast.serving import served_methods
from takhin.rpc.listening import bound_sockets, checked_path, only_for_group
from takhin.rpc.seldom import Seldom
from takhin.rpc.tls import Certificates, server_context
from takhin.rpc.watched_files import WatchedFiles

logger = logging.getLogger(__name__)
logger.addFilter(Seldom(__name__))

# Of HTTP/2.
_NO_ERROR, _ENHANCE_YOUR_CALM = 0x0, 0xB
# How often connections are looked at, at least and at most.
_LEAST_TICK_S, _MOST_TICK_S = 0.01, 1.0
# At a stop, from the first GOAWAY, which names no last call, to the one that does, where a client does not answer.
_LEAVE_S = 0.25
# How long a client is given to close a connection that has ended.
_LINGER_S = 1.0
# How long stop() waits for handlers that were cancelled to run their `finally`.
_UNWIND_S = 1.0


class FastFront:
    """Serves `table`: one start, one stop."""

    def __init__(
        self, table: MethodTable, settings: GrpcSettings, tls: "WatchedFiles[Certificates] | None" = None,
        limits: Limits | None = None
    ):
        """tls: None: connections are not encrypted. limits: None: the defaults."""
        self._table = table
        self._settings = settings
        self._limits = limits or Limits()
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        self._context_of: Certificates | None = None
        self._servers: list[asyncio.Server] = []
        self._socket_path: str | None = None
        self._tending: asyncio.Task[None] | None = None
        self._hub: Hub | None = None
        # Connections closed as they came, as there were too many.
        self.num_refused = 0

    async def start(self, listen: str) -> str:
        """Bind `listen` ("HOST:PORT", "[IPv6]:PORT", port 0 for a free one; "unix:PATH") and serve; gives the bound
        address.

        Raises StartError, with one line for the operator, when the address can't be had.
        """
        path = await checked_path(listen)
        loop = asyncio.get_running_loop()
        self._hub = Hub(
            served_methods(self._table), self._settings, loop, busy_timeout_s=self._limits.request_arrival_ms / 1000,
            max_held_bytes=self._limits.call_bytes)
        tls: dict[str, Any] = {}
        if self._tls is not None:
            context = self._tls_context()
            context.sni_callback = self._choose_certificates
            tls = {"ssl": context, "ssl_handshake_timeout": self._settings.handshake_timeout_ms / 1000}
        try:
            with only_for_group() if path is not None else nullcontext():
                if path is not None:
                    with suppress(FileNotFoundError):
                        os.unlink(path)
                    self._servers = [await loop.create_unix_server(self._accept, path, backlog=1024, **tls)]
                else:
                    sockets = await bound_sockets(listen)
                    bound_port = sockets[0].getsockname()[1]
                    self._servers = [
                        await loop.create_server(self._accept, sock=each, backlog=1024, **tls) for each in sockets]
        except OSError as exc:
            raise StartError(f"can't listen on {listen}: {exc.strerror or exc}") from exc
        self._tending = asyncio.create_task(self._tend())
        if path is not None:
            self._socket_path = path
            return listen
        return f"{listen.rpartition(':')[0]}:{bound_port}"

    @property
    def num_cut(self) -> int:
        """Connections cut off so far, as they kept others from being served."""
        return 0

    def usage(self) -> Usage:
        """Of grpc.max_connections."""
        used = self._hub.num_links if self._hub is not None else 0
        return Usage("connections", used, self._settings.max_connections)

    async def stop(self, grace_ms: int) -> None:
        """Take no new calls, let those under way end within `grace_ms`, cancel the rest and wait for their handlers.

        Ends open streams only by the grace's end: whoever serves them should have told them to end before.
        """
        if not self._servers or self._hub is None:
            return
        hub = self._hub
        for server in self._servers:
            server.close()
        if self._socket_path is not None:
            with suppress(OSError):
                os.unlink(self._socket_path)
        for connection in list(hub.connections):
            connection.go_away()
        until_s = hub.loop_time() + grace_ms / 1000
        while hub.connections and hub.loop_time() < until_s:
            await asyncio.sleep(0.005)
            for connection in list(hub.connections):
                if connection.knows_of_going or hub.loop_time() - connection.going_s >= _LEAVE_S:
                    connection.leave()
                    if not connection.calls:
                        connection.end(_NO_ERROR)
        for connection in list(hub.connections):
            connection.cancel_calls()
        hub.flush()
        with suppress(TimeoutError):
            async with asyncio.timeout(_UNWIND_S):
                while hub.calls:
                    await asyncio.sleep(0.005)
        # Once a connection is told to end, nghttp2 sends no status any more.
        hub.flush()
        for connection in list(hub.connections):
            connection.end(_NO_ERROR)
        hub.flush()
        assert self._tending is not None
        self._tending.cancel()
        await asyncio.sleep(0)
        for connection in list(hub.connections):
            connection.abort()

    # Connections

    def _accept(self) -> "Connection | _Refused":
        assert self._hub is not None
        # Those whose handshake is under way count, too.
        if self._hub.num_links < self._settings.max_connections:
            return Connection(self._hub)
        self.num_refused += 1
        logger.warning(
            "a connection was refused: there are as many as grpc.max_connections (%d)", self._settings.max_connections)
        return _Refused()

    def _choose_certificates(self, tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Asked at the begin of each handshake."""
        tls.context = self._tls_context()

    def _tls_context(self) -> ssl.SSLContext:
        """Every handshake is made with the certificates that are in use then. Raises StartError."""
        assert self._tls is not None
        given = self._tls.current
        if self._context is None or self._context_of is not given:
            self._context, self._context_of = server_context(given), given
        return self._context

    # Time

    async def _tend(self) -> None:
        """Handshakes, idleness, age, and clients that have vanished."""
        settings, hub = self._settings, self._hub
        assert hub is not None
        shortest_ms = min(
            settings.handshake_timeout_ms, settings.connection_idle_ms, settings.connection_age_ms,
            max(settings.connection_age_grace_ms, 40), settings.keepalive_time_ms, settings.keepalive_timeout_ms,
            self._limits.request_arrival_ms)
        tick_s = min(max(shortest_ms / 4000, _LEAST_TICK_S), _MOST_TICK_S)
        while True:
            await asyncio.sleep(tick_s)
            now_s = hub.loop_time()
            for number, connection in enumerate(list(hub.connections)):
                try:
                    self._look(connection, now_s)
                except Exception:
                    logger.exception("a connection can't be looked after")
                    connection.abort()
                if number % 1000 == 999:
                    await asyncio.sleep(0)

    def _look(self, connection: Connection, now_s: float) -> None:
        settings, hub = self._settings, self._hub
        assert hub is not None
        if connection.lingers_s >= 0:
            if now_s - connection.lingers_s >= _LINGER_S:
                connection.abort()
            return
        if connection.block_s >= 0 and now_s - connection.block_s >= settings.handshake_timeout_ms / 1000:
            connection.abort()  # headers that do not end
            return
        if not connection.is_greeted:
            if now_s - connection.begun_s >= settings.handshake_timeout_ms / 1000:
                connection.abort()
            return
        if connection.stuck_for_s >= settings.keepalive_timeout_ms / 1000:
            connection.abort()
            return
        connection.drop_stale(self._limits.request_arrival_ms / 1000)
        if connection.going_s >= 0:
            going_s = now_s - connection.going_s
            # Who has not answered for so long is taken for gone, as with a ping.
            knows = connection.knows_of_going or going_s >= settings.keepalive_timeout_ms / 1000
            if going_s >= settings.connection_age_grace_ms / 1000 + _LINGER_S:
                connection.abort()  # it does not even take the GOAWAY
            elif not connection.calls and knows:
                connection.end(_NO_ERROR)
            elif going_s >= settings.connection_age_grace_ms / 1000:
                connection.cancel_calls()
                hub.flush()  # of calls that are cut the status goes out before the end, or never
                connection.end(_NO_ERROR)
            elif knows:
                connection.leave()
            return
        if connection.age_limit_s == 0:
            connection.age_limit_s = settings.connection_age_ms / 1000 * random.uniform(0.9, 1.1)
        is_idle = not connection.calls and now_s - connection.used_s >= settings.connection_idle_ms / 1000
        if is_idle or now_s - connection.begun_s >= connection.age_limit_s:
            connection.go_away()
        elif connection.pinged_s >= 0:
            if now_s - connection.pinged_s >= settings.keepalive_timeout_ms / 1000:
                connection.abort()
        elif now_s - connection.heard_s >= settings.keepalive_time_ms / 1000 and (
            connection.calls or settings.ping_without_calls
        ):
            connection.ping()


class _Refused(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.abort()
