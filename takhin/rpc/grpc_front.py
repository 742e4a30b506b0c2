"""The front on grpc.aio: serves a method table on one port, bytes in and bytes out.

What one call costs beyond a bare grpc.aio handler is a dict look-up, one small object and one more coroutine. Handlers
are `async def` through and through: grpc.aio would run anything else in a thread pool.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio

from takhin.broker.statistics import Usage
from takhin.config import GrpcSettings, Limits
from takhin.counters import CallCounters
from takhin.errors import Code, Reason, StartError, error
from takhin.rpc.arrival import Arriving
from takhin.rpc.call import NO_MESSAGE, Kind, Method, MethodTable, read_within
from takhin.rpc.connections import count_connections
from takhin.rpc.fairness import Fairness, Messages, shut_down_connection, shut_down_unix_connections
from takhin.rpc.gates import too_many_bytes, too_many_calls
from takhin.rpc.listening import checked_path, only_for_group
from takhin.rpc.request_id import REQUEST_ID_KEY, given_id, new_id
from takhin.rpc.status import status_of
from takhin.rpc.tls import Certificates
from takhin.rpc.watched_files import WatchedFiles

logger = logging.getLogger(__name__)

_STATUS_DETAILS_KEY = "grpc-status-details-bin"
_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}
_COMPRESSION_LEVELS = {"gzip": 1, "deflate": 3}
READ_CHUNK_BYTES = 1024 * 1024
# How long stop() waits for handlers that were cancelled to run their `finally`.
_UNWIND_S = 1.0

# grpc.aio gives a context without a public type.
Context = Any


class GrpcCall:
    """Call and StreamCall over a servicer context of grpc.aio."""

    __slots__ = (
        "_context", "_counters", "_given_id", "_messages", "_over", "_reading", "_request_id", "_task", "code",
        "principal",
    )

    def __init__(self, context: Context, counters: CallCounters, messages: Messages):
        self._context = context
        self._counters = counters
        self._messages = messages
        # With which the call has ended, of google.rpc.Code; for its counters.
        self.code: int = Code.OK
        self.principal: str | None = None
        # None: it was not looked for.
        self._given_id: str | None = None
        self._request_id = ""
        self._task = asyncio.current_task()
        self._over = False
        self._reading = False

    @property
    def peer(self) -> str:
        # "ipv4:127.0.0.1:5000", "ipv6:%5B::1%5D:5000"
        return unquote(self._context.peer().partition(":")[2])

    @property
    def identity(self) -> bytes | None:
        shown = self._context.auth_context().get("x509_pem_cert")
        return shown[0] if shown else None

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        found = dict(self._context.invocation_metadata())
        if self._given_id is None:
            self._given_id = given_id(found)
        return MappingProxyType(found)

    @property
    def given_id(self) -> str:
        """The request id that the client chose; "": none."""
        if self._given_id is None:
            self._given_id = given_id(dict(self._context.invocation_metadata()))
        return self._given_id

    @property
    def request_id(self) -> str:
        if not self._request_id:
            self._request_id = self.given_id or new_id()
        return self._request_id

    def echo(self) -> None:
        """Of a call that ends well: tell the client the id that it chose. One that chose none pays nothing for it."""
        if self.given_id:
            self._context.set_trailing_metadata(((REQUEST_ID_KEY, self.given_id),))

    def time_remaining_s(self) -> float | None:
        return self._context.time_remaining()

    def cancelled(self) -> bool:
        # The context's own cancelled() tells of a status set by the handler, not of the client.
        return self._over or (self._task is not None and self._task.cancelling() > 0)

    async def read(self) -> bytes | None:
        if self._reading:
            if self.cancelled():
                raise asyncio.CancelledError
            # Core would refuse a second read, and grpc.aio would call that the end of the stream. The message of a read
            # that was cancelled is lost.
            raise RuntimeError("another read is under way, or was cancelled")
        self._reading = True
        try:
            message = await self._context.read()
        except grpc.aio.BaseError:
            self._over, self._reading = True, False
            raise asyncio.CancelledError from None
        self._reading = False
        if message is grpc.aio.EOF:
            return None
        self._counters.note_received()
        if self._messages.are_counted:
            self._messages.note_message(self.peer, len(message))
        return message

    async def write(self, message: bytes) -> None:
        if type(message) is not bytes:  # grpc.aio sends None as an empty message, and text in UTF-8
            raise TypeError(f"a message is bytes, not {type(message).__name__}")
        try:
            await self._context.write(message)
        except grpc.aio.BaseError:
            # The transport fails a write of a call that is over a moment before the handler's task is cancelled.
            self._over = True
            raise asyncio.CancelledError from None
        self._counters.note_sent()

    def cut(self) -> None:
        # grpc.aio can't do it: a status waits behind the message that the client does not take, and no call can be
        # reset. The connection can be, by the operating system.
        path = self._messages.unix_path
        if path is None:
            shut_down_connection(self.peer)
            return
        # Which one it is grpc.aio does not tell of those that have no address.
        count = shut_down_unix_connections(path)
        if count:
            logger.warning(
                "all %d connections of unix:%s are ended: a reader takes nothing, and which one is its can't be told",
                count, path)


class GrpcFront:
    """Serves `table` over grpc.aio: one start, one stop. A process has one event loop that uses grpc.aio."""

    def __init__(
        self, table: MethodTable, settings: GrpcSettings, tls: "WatchedFiles[Certificates] | None" = None,
        limits: Limits | None = None
    ):
        """tls: None: connections are not encrypted. limits: None: the defaults."""
        self._settings = settings
        self._limits = limits or Limits()
        self._credentials = server_credentials(tls) if tls is not None else None
        self._messages = Messages()
        self._fairness: Fairness | None = None
        self._methods = {path: self._arriving(method) for path, method in table.items()}
        self._server: grpc.aio.Server | None = None
        self._socket_path: str | None = None
        self._bound = ""
        self._stopped = False
        self._calls = 0
        self._idle: asyncio.Event | None = None

    async def start(self, listen: str) -> str:
        """Bind `listen` ("HOST:PORT", "[IPv6]:PORT", port 0 for a free one; "unix:PATH") and serve; gives the bound
        address.

        Raises StartError, with one line for the operator, when the address can't be had.
        """
        path = await checked_path(listen)
        options = server_options(self._settings, self._limits)
        handlers = _Handlers(self._methods, self._settings.max_metadata_bytes)
        server = grpc.aio.server(handlers=(handlers,), options=options)
        try:
            with only_for_group() if path is not None else nullcontext():
                if self._credentials is None:
                    bound_port = server.add_insecure_port(listen)
                else:
                    bound_port = server.add_secure_port(listen, self._credentials)
        except RuntimeError as exc:
            raise StartError(f"can't listen on {listen}: another process took it, or it is not to be had here") from exc
        await server.start()
        self._server = server
        if path is not None:
            self._socket_path = self._messages.unix_path = path
            self._bound = listen
        else:
            self._bound = f"{listen.rpartition(':')[0]}:{bound_port}"
            if self._settings.cut_floods:
                self._fairness = Fairness(self._bound, self._messages)
                self._fairness.start()
        return self._bound

    @property
    def num_cut(self) -> int:
        """Connections cut off so far, as they kept others from being served."""
        return self._fairness.num_cut if self._fairness is not None else 0

    @property
    def num_refused(self) -> int:
        """Connections closed as they came, that it knows of: gRPC's core does not tell."""
        return 0

    def usage(self) -> Usage:
        """Of grpc.max_connections. Takes as long as the machine has connections: for a thread of its own."""
        used = count_connections(self._bound) if self._bound else 0
        return Usage("connections", used, self._settings.max_connections)

    async def stop(self, grace_ms: int) -> None:
        """Take no new calls, let those under way end within `grace_ms`, cancel the rest and wait for their handlers.

        Ends open streams only by the grace's end: whoever serves them should have told them to end before.
        """
        if self._server is None:
            return
        self._idle = asyncio.Event()
        if self._fairness is not None:
            self._fairness.stop()
        await self._server.stop(grace_ms / 1000)
        if self._socket_path is not None:
            with suppress(OSError):
                os.unlink(self._socket_path)
        self._stopped = True
        if self._calls:
            # The transport is done with a cancelled call before its handler has run its `finally`.
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), _UNWIND_S)

    def _arriving(self, method: Method) -> Arriving:
        serve = {Kind.UNARY: self._unary, Kind.SERVER_STREAM: self._server_stream, Kind.BIDI: self._bidi}[method.kind]
        return Arriving(
            method.gate, serve(method), self._refuse(method),
            # A handler of BIDI runs before there is a message, and sees for itself who calls.
            self._serve_busy(method) if method.kind is not Kind.BIDI else None,
            takes_stream=method.kind is not Kind.UNARY)

    def _unary(self, method: Method) -> Callable[[bytes, Context], Awaitable[bytes | None]]:
        handler, counters, gate, messages = method.handler, method.counters, method.gate, self._messages

        async def unary(request: bytes, context: Context) -> bytes | None:
            call = GrpcCall(context, counters, messages)
            if messages.are_counted:
                messages.note_call(call.peer, len(request))
            begun_ns = counters.begin()
            counters.note_received()
            self._calls += 1
            is_within = gate.take(request)
            try:
                if not is_within:
                    raise too_many_bytes(gate)
                response = await handler(request, call)
                if type(response) is not bytes:
                    raise TypeError(f"{method.path} gave {type(response).__name__}, not bytes")
                call.echo()
                counters.note_sent()
                return response
            except (Exception, asyncio.CancelledError) as exc:
                if await self._fail(exc, call, context):
                    raise
                return None
            finally:
                if is_within:
                    gate.give_back(request)
                counters.end(call.code, begun_ns)
                self._done()

        return unary

    def _server_stream(self, method: Method) -> Callable[[Any, Context], Awaitable[None]]:
        """As BIDI: grpc.aio would keep a request that it has read itself until the call is over, and that may be when
        a client takes its refusal."""

        async def serve(call: GrpcCall) -> None:
            await _serve_stream(method, call, await call.read())

        return self._bidi(replace(method, handler=serve))

    def _bidi(self, method: Method) -> Callable[[Any, Context], Awaitable[None]]:
        handler, counters, messages = method.handler, method.counters, self._messages

        async def bidi(_requests: Any, context: Context) -> None:
            call = GrpcCall(context, counters, messages)
            if messages.are_counted:
                messages.note_call(call.peer, 0)
            begun_ns = counters.begin()
            self._calls += 1
            try:
                await handler(call)
                call.echo()
            except (Exception, asyncio.CancelledError) as exc:
                if await self._fail(exc, call, context):
                    raise
            finally:
                counters.end(call.code, begun_ns)
                self._done()

        return bidi

    # When there is much under way: as BIDI, so that what is looked at first is not the message.

    def _refuse(self, method: Method) -> Callable[[Any, Context], Awaitable[None]]:
        gate = method.gate

        async def refuse(call: GrpcCall) -> None:
            raise too_many_calls(gate)

        return self._bidi(replace(method, handler=refuse))

    def _serve_busy(self, method: Method) -> Callable[[Any, Context], Awaitable[None]]:
        """Who calls is asked first, and the message has to come in time: whoever opens calls and leaves them so does
        not get beyond where this begins."""
        handler, gate = method.handler, method.gate
        timeout_s = self._limits.request_arrival_ms / 1000

        async def serve(call: GrpcCall) -> None:
            if method.enter is not None:
                method.enter(call)
            if method.kind is Kind.SERVER_STREAM:
                await _serve_stream(method, call, await read_within(call, timeout_s))
                return
            request = await read_within(call, timeout_s)
            if not gate.take(request):
                raise too_many_bytes(gate)
            try:
                await call.write(await handler(request, call))
            finally:
                gate.give_back(request)

        return self._bidi(replace(method, handler=serve))

    def _done(self) -> None:
        self._calls -= 1
        if self._idle is not None and not self._calls:
            self._idle.set()

    async def _fail(self, exc: Exception | asyncio.CancelledError, call: GrpcCall, context: Context) -> bool:
        """End the call with the status of `exc`; True when `exc` is to be raised instead, as nobody is there to answer.

        Nothing else may reach grpc.aio: it would send the exception's class and text to the client.
        """
        cancelled = isinstance(exc, asyncio.CancelledError)
        if call.cancelled():
            call.code = Code.DEADLINE_EXCEEDED if call.time_remaining_s() == 0 else Code.CANCELLED
            if not cancelled:
                status_of(exc, call.request_id)  # for its log, should it be a bug
                raise asyncio.CancelledError from None
            return True
        if cancelled:
            # Something the handler awaited was cancelled. To grpc.aio this looks like a cancelled call: it would send
            # nothing, and the client would wait for ever.
            cause, exc = exc, RuntimeError("the handler was cancelled, though its call was not")
            exc.__cause__ = cause
        status = status_of(exc, call.request_id)
        call.code = status.code
        # It has the frames of the handler, and so the request; and the client may take its time to take the status.
        exc.__traceback__ = None
        if self._stopped:
            raise asyncio.CancelledError from None  # no call is left to send it on
        try:
            await context.abort(_STATUS_CODES[status.code], status.message, (
                (REQUEST_ID_KEY, call.request_id), (_STATUS_DETAILS_KEY, status.details)))
        except grpc.aio.InternalError:
            pass  # the call ended meanwhile
        return False


async def _serve_stream(method: Method, call: GrpcCall, request: bytes | None) -> None:
    """Of a SERVER_STREAM."""
    if request is None:
        raise error(Reason.MALFORMED_REQUEST, NO_MESSAGE)
    method.check_size(request)
    await method.handler(request, call)


class _Handlers(grpc.GenericRpcHandler):
    """The table, as grpc.aio asks for it: once a call."""

    def __init__(self, methods: dict[str, Arriving], max_metadata_bytes: int):
        self._methods = methods
        self._max_metadata_bytes = max_metadata_bytes
        text = f"the metadata of the call is larger than {max_metadata_bytes} bytes (grpc.max_metadata_bytes)"

        async def refuse(_requests: Any, context: Context) -> None:
            # The call may be over.
            with suppress(grpc.aio.InternalError):
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)

        self._refusal = grpc.stream_stream_rpc_method_handler(refuse)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        # Core holds to its limit only once the client has acknowledged it.
        if metadata_bytes(handler_call_details.invocation_metadata) > self._max_metadata_bytes:
            return self._refusal
        method = self._methods.get(handler_call_details.method)
        return method.arrive() if method is not None else None


def metadata_bytes(metadata: Iterable[tuple[str, str | bytes]]) -> int:
    """As HTTP/2 counts them (RFC 9113, 6.5.2); what gRPC keeps for itself, the path say, is not among them."""
    size = 0
    for key, value in metadata:
        size += len(key) + len(value) + 32
        if not value.isascii() and isinstance(value, str):
            size += len(value.encode()) - len(value)
    return size


def server_options(settings: GrpcSettings, limits: Limits) -> list[tuple[str, int]]:
    """The channel arguments of grpc's core for `settings`."""
    # What may come while the event loop is busy, all readers after a restart for example. By default core ends calls by
    # chance from 1,000 on, with CANCELLED, which nobody tries again; beyond these the gates refuse them, and say why.
    waiting_calls = limits.calls + limits.streams + limits.watch_streams
    # Core counts a ping that arrives any sooner as a strike, the third of which ends the connection, and the network
    # may deliver two pings closer together than they were sent: a client that keeps to the interval needs a margin.
    min_ping_interval_ms = settings.min_ping_interval_ms * 9 // 10
    options = {
        # On by default, and then a second server takes the same port without a word.
        "grpc.so_reuseport": 0,
        "grpc.max_receive_message_length": settings.max_message_bytes,
        "grpc.max_send_message_length": settings.max_message_bytes,
        # Two bounds, between which core refuses by chance; together they are one.
        "grpc.max_metadata_size": settings.max_metadata_bytes,
        "grpc.absolute_max_metadata_size": settings.max_metadata_bytes,
        "grpc.max_allowed_incoming_connections": settings.max_connections,
        # Streams that were reset count until they are gone: who resets what he opens does not get ahead of us.
        "grpc.max_concurrent_streams": settings.max_streams_per_connection,
        # By default it reads 4 MiB at a time, and of tiny frames that is a long time for all the others.
        "grpc.experimental.tcp_max_read_chunk_size": READ_CHUNK_BYTES,
        "grpc.server.max_pending_requests": waiting_calls,
        "grpc.server.max_pending_requests_hard_limit": waiting_calls,
        "grpc.server_handshake_timeout_ms": settings.handshake_timeout_ms,
        "grpc.max_connection_idle_ms": settings.connection_idle_ms,
        "grpc.max_connection_age_ms": settings.connection_age_ms,
        "grpc.max_connection_age_grace_ms": settings.connection_age_grace_ms,
        # Pings of the server's own: how a client that vanished without a word is found.
        "grpc.keepalive_time_ms": settings.keepalive_time_ms,
        "grpc.keepalive_timeout_ms": settings.keepalive_timeout_ms,
        # Governs both the server's pings and, with the interval, those it allows: without it a client without calls
        # may ping every two hours.
        "grpc.keepalive_permit_without_calls": int(settings.ping_without_calls),
        # The name of core's GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS.
        "grpc.http2.min_ping_interval_without_data_ms": min_ping_interval_ms,
    }
    if settings.compression != "none":
        # A level, not an algorithm: core would compress with that whether the client takes it or not. Of what a client
        # takes the lowest level prefers gzip, the highest deflate.
        options["grpc.default_compression_level"] = _COMPRESSION_LEVELS[settings.compression]
    return list(options.items())


def server_credentials(tls: "WatchedFiles[Certificates]") -> grpc.ServerCredentials:
    """Every handshake is made with the certificates that are in use then."""
    given = tls.current

    def configuration() -> Any:
        pair = (given.key, given.chain)
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=given.client_ca)

    def fetch() -> Any:
        # On a thread of core's, before each handshake; None: as before.
        nonlocal given
        if given is tls.current:
            return None
        given = tls.current
        return configuration()

    return grpc.dynamic_ssl_server_credentials(configuration(), fetch, given.client_ca is not None)
