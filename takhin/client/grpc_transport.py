"""The transport over grpc.aio: one connection, messages as bytes."""

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2

from takhin.client.errors import Cancelled, ClientError, Closed, Unavailable, client_error
from takhin.client.transport import RequestStream, ResponseStream
from takhin.errors import DOMAIN, Code

DEFAULT_TIMEOUT_S = 30.0
COMPRESSIONS = {"gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}

_STATUS_DETAILS_KEY = "grpc-status-details-bin"
_REQUEST_ID_KEY = "x-request-id"
# Of its own: random.seed() in a program does not make ids repeat.
_random = random.Random()
# The status that grpc.aio gives a call when a write finds that it has ended a moment ago, whatever ended it.
_WRITE_FAILED = "Internal error from Core"
_OPTIONS: tuple[tuple[str, int | str], ...] = (
    # The broker bounds messages; a response with one large record is to be taken as it comes.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A broker that vanished without a word is found out by a ping.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A broker that restarts is back within a second; gRPC's own pauses grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Clients of one process don't share a connection: closing one, or a full window, is nobody else's affair.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class TLS:
    """TLS: paths of PEM files, or their bytes. ca: who may have signed the broker's certificate (None: the system's
    own). cert and key: this client's, where the broker asks for them. server_name: the name that the broker's
    certificate bears, where it is not the address's host.
    """

    ca: str | Path | bytes | None = None
    cert: str | Path | bytes | None = None
    key: str | Path | bytes | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises OSError when a file can't be read."""
        return grpc.ssl_channel_credentials(_pem(self.ca), _pem(self.key), _pem(self.cert))


def _pem(given: str | Path | bytes | None) -> bytes | None:
    return given if given is None or isinstance(given, bytes) else Path(given).read_bytes()


class GrpcTransport:
    """Connects with the first call. The arguments are those of takhin.connect."""

    def __init__(
        self, address: str, *, tls: TLS | bool | None = None, token: str | None = None, api_key: str | None = None,
        compression: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S, tracing: bool = False
    ) -> None:
        if compression is not None and compression not in COMPRESSIONS:
            raise ValueError(f"compression {compression!r} is not known: {' or '.join(COMPRESSIONS)}")
        self._address = address
        self._timeout_s = timeout_s
        self._compression = COMPRESSIONS[compression] if compression else None
        self._tls = TLS() if tls is True else tls or None
        self._metadata: tuple[tuple[str, str], ...] = ()
        if token is not None:
            self._metadata += (("authorization", f"Bearer {token}"),)
        if api_key is not None:
            self._metadata += (("x-api-key", api_key),)
        self._current_trace: Callable[[], dict[str, str]] | None = None
        if tracing:
            from takhin.client.trace_context import current_trace

            self._current_trace = current_trace
        self._channel: grpc.aio.Channel | None = None
        self._is_closed = False
        self._unary: dict[str, Any] = {}

    def _open(self) -> grpc.aio.Channel:
        # Not before there is a loop to bind it to.
        if self._is_closed:
            raise Closed("the client is closed")
        if self._channel is None:
            options: list[tuple[str, int | str]] = list(_OPTIONS)
            if self._tls is None:
                self._channel = grpc.aio.insecure_channel(self._address, options, self._compression)
            else:
                if self._tls.server_name is not None:
                    options.append(("grpc.ssl_target_name_override", self._tls.server_name))
                self._channel = grpc.aio.secure_channel(
                    self._address, self._tls.credentials(), options, self._compression)
        return self._channel

    async def unary(self, path: str, request: bytes, timeout_s: float | None = None) -> bytes:
        call = self._unary.get(path)
        if call is None or self._is_closed:
            call = self._unary[path] = self._open().unary_unary(path)
        request_id = _new_id()
        try:
            answer: bytes = await call(
                request, timeout=self._timeout_s if timeout_s is None else timeout_s,
                metadata=self._metadata_of(request_id))
            return answer
        except grpc.RpcError as problem:
            raise self._error(problem, request_id) from None
        except asyncio.CancelledError:
            raise self._cancellation() from None

    def server_stream(self, path: str, request: bytes) -> ResponseStream:
        call: Any = self._open().unary_stream(path)
        request_id = _new_id()
        return _GrpcStream(self, call(request, metadata=self._metadata_of(request_id)), request_id)

    def bidi(self, path: str) -> RequestStream:
        call: Any = self._open().stream_stream(path)
        request_id = _new_id()
        return _GrpcStream(self, call(metadata=self._metadata_of(request_id)), request_id)

    def _metadata_of(self, request_id: str) -> tuple[tuple[str, str], ...]:
        found = (*self._metadata, (_REQUEST_ID_KEY, request_id))
        return found if self._current_trace is None else (*found, *self._current_trace().items())

    async def close(self) -> None:
        self._is_closed = True
        if self._channel is not None:
            await self._channel.close()

    def _cancellation(self) -> BaseException:
        """What a cancelled call means: its task was, or the channel was closed under it."""
        task = asyncio.current_task()
        if self._is_closed and (task is None or not task.cancelling()):
            return Closed("the client was closed")
        return asyncio.CancelledError()

    def _error(self, problem: grpc.RpcError, request_id: str) -> ClientError:
        return error_of(
            problem.code(), problem.details() or "", problem.trailing_metadata(), self._address, request_id)


class _GrpcStream:
    """RequestStream and ResponseStream over a call of grpc.aio."""

    __slots__ = ("_call", "_is_cancelled", "_request_id", "_transport")

    def __init__(self, transport: GrpcTransport, call: Any, request_id: str) -> None:
        self._transport = transport
        self._call = call
        self._request_id = request_id
        self._is_cancelled = False

    async def read(self) -> bytes | None:
        try:
            message = await self._call.read()
            if message is grpc.aio.EOF:
                # A status other than OK was raised; but one that came while nobody read was not.
                await self._raise_status()
                return None
            return bytes(message)
        except grpc.RpcError as problem:
            raise self._transport._error(problem, self._request_id) from None
        except asyncio.CancelledError:
            raise self._cancellation() from None

    async def write(self, message: bytes) -> None:
        try:
            await self._call.write(message)
        except grpc.RpcError as problem:
            raise self._transport._error(problem, self._request_id) from None
        except asyncio.InvalidStateError:
            # The call has ended: by a status, which says more.
            await self._raise_status()
            raise Unavailable("the broker ended the stream") from None
        except asyncio.CancelledError:
            raise self._cancellation() from None

    async def done_writing(self) -> None:
        try:
            await self._call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            pass  # it has ended
        except asyncio.CancelledError:
            raise self._cancellation() from None

    def cancel(self) -> None:
        self._is_cancelled = True
        self._call.cancel()

    async def _raise_status(self) -> None:
        code = await self._call.code()
        if code is grpc.StatusCode.CANCELLED and self._transport._is_closed:
            raise Closed("the client was closed")
        if code is not grpc.StatusCode.OK:
            raise error_of(
                code, await self._call.details() or "", await self._call.trailing_metadata(),
                self._transport._address, self._request_id)

    def _cancellation(self) -> BaseException:
        task = asyncio.current_task()
        if self._is_cancelled and (task is None or not task.cancelling()):
            return Cancelled("the call was cancelled")
        return self._transport._cancellation()


def error_of(
    code: grpc.StatusCode, details: str, metadata: Iterable[Any] | None, address: str, request_id: str
) -> ClientError:
    """The error for a status of gRPC. request_id: which the call was sent with."""
    number: int = code.value[0]
    for name, value in metadata or ():
        if name == _STATUS_DETAILS_KEY and isinstance(value, bytes):
            status = status_pb2.Status.FromString(value)
            for detail in status.details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info) and info.domain == DOMAIN:
                    return client_error(status.code, status.message, info.reason, dict(info.metadata), request_id)
    # Of the transport's own making. Where no broker listens that is all there is to tell.
    if number == Code.INTERNAL and details == _WRITE_FAILED:
        return Unavailable(f"the connection to {address} was lost", request_id=request_id)
    if number == Code.UNAVAILABLE:
        details = f"no broker can be reached at {address}: {details}"
    elif number == Code.DEADLINE_EXCEEDED:
        details = f"{address} did not answer in time (request {request_id})"
    return client_error(number, details or code.name, request_id=request_id)


def _new_id() -> str:
    return f"{_random.getrandbits(64):016x}"
