"""The client's transport to a broker in the same process: calls go to the method table, messages as they are."""

import asyncio
import concurrent.futures
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, TypeVar

from takhin.client.errors import (
    Cancelled,
    ClientError,
    Closed,
    DeadlineExceeded,
    Unavailable,
    Unimplemented,
    client_error,
)
from takhin.client.transport import RequestStream, ResponseStream
from takhin.errors import Reason, TakhinError
from takhin.rpc.call import Kind, MethodTable
from takhin.rpc.request_id import new_id
from takhin.rpc.status import status_of

T = TypeVar("T")

DEFAULT_TIMEOUT_S = 30.0
_PEER = "in-process:0"
# Messages that were sent and not taken, each way: enough that neither side waits for the other each time.
_AHEAD = 4


class _Channel:
    """Messages one way, at most _AHEAD of them not taken. One side puts, the other gets."""

    __slots__ = ("_changed", "_items", "is_closed")

    def __init__(self) -> None:
        self._items: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self.is_closed = False

    async def put(self, item: bytes) -> bool:
        """False when it is closed: the item is not taken."""
        while len(self._items) >= _AHEAD and not self.is_closed:
            await self._change()
        if self.is_closed:
            return False
        self._items.append(item)
        self._changed.set()
        return True

    async def get(self) -> bytes | None:
        """None when it is closed and empty."""
        while not self._items:
            if self.is_closed:
                return None
            await self._change()
        self._changed.set()
        return self._items.popleft()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def close(self, *, drops: bool = False) -> None:
        """Nothing more is put; drops: what was not taken is gone."""
        self.is_closed = True
        if drops:
            self._items.clear()
        self._changed.set()


class _LocalCall:
    """Call and StreamCall, as a handler sees them."""

    __slots__ = ("_deadline_s", "_metadata", "_request_id", "_stream", "is_over", "principal")

    def __init__(
        self, deadline_s: float | None, metadata: Mapping[str, str], stream: "_LocalStream | None" = None
    ) -> None:
        self._metadata = metadata
        self._deadline_s = deadline_s
        self._stream = stream
        self._request_id = ""
        self.is_over = False
        self.principal: str | None = None

    @property
    def request_id(self) -> str:
        if not self._request_id:
            self._request_id = new_id()
        return self._request_id

    @property
    def peer(self) -> str:
        return _PEER

    @property
    def identity(self) -> bytes | None:
        return None

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        return MappingProxyType(self._metadata)

    def time_remaining_s(self) -> float | None:
        return None if self._deadline_s is None else max(self._deadline_s - time.monotonic(), 0.0)

    def cancelled(self) -> bool:
        return self.is_over

    async def read(self) -> bytes | None:
        assert self._stream is not None
        return await self._stream.requests.get()

    async def write(self, message: bytes) -> None:
        if type(message) is not bytes:
            raise TypeError(f"a message is bytes, not {type(message).__name__}")
        assert self._stream is not None
        if not await self._stream.responses.put(message):
            self.is_over = True
            raise asyncio.CancelledError

    def cut(self) -> None:
        assert self._stream is not None
        self._stream.cut()


class _LocalStream:
    """RequestStream and ResponseStream, as the client sees them; the handler runs in a task of its own."""

    def __init__(
        self, run: Callable[["_LocalCall"], Awaitable[None]], done: Callable[["_LocalStream"], None],
        metadata: Mapping[str, str]
    ) -> None:
        self.requests = _Channel()
        self.responses = _Channel()
        self._call = _LocalCall(None, metadata, self)
        self._problem: ClientError | None = None
        self._task = asyncio.ensure_future(self._serve(run))
        self._task.add_done_callback(lambda _: done(self))

    async def _serve(self, run: Callable[["_LocalCall"], Awaitable[None]]) -> None:
        try:
            await run(self._call)
        except asyncio.CancelledError:
            if self._problem is None:
                self._problem = Unavailable("the broker ended the call")
        except Exception as problem:
            if self._problem is None:
                self._problem = _error_of(problem, self._call)
        finally:
            self._call.is_over = True
            self.requests.close(drops=True)
            self.responses.close()

    async def read(self) -> bytes | None:
        message = await self.responses.get()
        if message is None and self._problem is not None:
            raise self._problem
        return message

    async def write(self, message: bytes) -> None:
        if not await self.requests.put(message):
            raise self._problem or Unavailable("the broker ended the stream")

    async def done_writing(self) -> None:
        self.requests.close()

    def cancel(self) -> None:
        self._end(Cancelled("the call was cancelled"))

    def cut(self) -> None:
        self._end(Unavailable("the broker cut off a reader that took nothing"))

    def _end(self, problem: ClientError) -> None:
        if not self._task.done() and not self._call.is_over:
            self._problem = problem
            self._call.is_over = True
            self.requests.close(drops=True)
            self.responses.close(drops=True)
            self._task.cancel()

    async def wait(self) -> None:
        """Until the handler has ended."""
        await asyncio.wait([self._task])


class LocalTransport:
    """Calls of one client to `table`, in the event loop that the broker runs in. tracing: as in takhin.connect."""

    def __init__(
        self, table: MethodTable, *, timeout_s: float = DEFAULT_TIMEOUT_S, tracing: bool = False,
        on_close: Callable[["LocalTransport"], None] = lambda _: None
    ) -> None:
        self._table = table
        self._timeout_s = timeout_s
        self._on_close = on_close
        self._current_trace: Callable[[], dict[str, str]] = dict
        if tracing:
            from takhin.client.trace_context import current_trace

            self._current_trace = current_trace
        self._streams: set[_LocalStream] = set()
        self._is_closed = False

    async def unary(self, path: str, request: bytes, timeout_s: float | None = None) -> bytes:
        handler = self._handler(path, Kind.UNARY)
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        call = _LocalCall(time.monotonic() + limit_s, self._current_trace())
        try:
            async with asyncio.timeout(limit_s) as limit:
                answer: bytes = await handler(request, call)
                return answer
        except TimeoutError as problem:
            if not limit.expired():
                raise _error_of(problem, call) from None
            raise DeadlineExceeded("the broker did not answer in time", request_id=call.request_id) from None
        except Exception as problem:
            raise _error_of(problem, call) from None
        finally:
            call.is_over = True

    def server_stream(self, path: str, request: bytes) -> ResponseStream:
        handler = self._handler(path, Kind.SERVER_STREAM)
        return self._stream(lambda call: handler(request, call))

    def bidi(self, path: str) -> RequestStream:
        return self._stream(self._handler(path, Kind.BIDI))

    def _stream(self, run: Callable[[_LocalCall], Awaitable[None]]) -> _LocalStream:
        stream = _LocalStream(run, self._streams.discard, self._current_trace())
        self._streams.add(stream)
        return stream

    def _handler(self, path: str, kind: Kind) -> Callable[..., Awaitable[Any]]:
        if self._is_closed:
            raise Closed("the client is closed")
        method = self._table.get(path)
        if method is None or method.kind is not kind:
            raise Unimplemented(f"there is no method {path}")
        return method.handler

    async def close(self) -> None:
        self._is_closed = True
        streams = list(self._streams)
        for stream in streams:
            stream.cancel()
        for stream in streams:
            await stream.wait()
        self._on_close(self)


class ThreadedTransport:
    """A transport that lives in the loop of another thread, for clients of whatever loop."""

    def __init__(self, inner: LocalTransport, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop

    async def unary(self, path: str, request: bytes, timeout_s: float | None = None) -> bytes:
        return await _hop(self._inner.unary(path, request, timeout_s), self._loop)

    def server_stream(self, path: str, request: bytes) -> ResponseStream:
        return _ThreadedStream(lambda: self._inner.server_stream(path, request), self._loop)

    def bidi(self, path: str) -> RequestStream:
        return _ThreadedStream(lambda: self._inner.bidi(path), self._loop)

    async def close(self) -> None:
        if not self._loop.is_closed():
            await _hop(self._inner.close(), self._loop)


class _ThreadedStream:
    """The stream is opened in its own loop, when its turn comes."""

    def __init__(self, opens: Callable[[], ResponseStream], loop: asyncio.AbstractEventLoop) -> None:
        async def open_it() -> Any:
            return opens()

        self._loop = loop
        self._opened = asyncio.run_coroutine_threadsafe(open_it(), loop)
        self._reading: concurrent.futures.Future[bytes | None] | None = None

    async def read(self) -> bytes | None:
        if self._reading is None:
            stream = await self._open()
            self._reading = asyncio.run_coroutine_threadsafe(stream.read(), self._loop)
        # When this is cancelled a message may have been taken in the other thread already: it is the next read's.
        message = await asyncio.shield(asyncio.wrap_future(self._reading))
        self._reading = None
        return message

    async def write(self, message: bytes) -> None:
        stream = await self._open()
        await _hop(stream.write(message), self._loop)

    async def done_writing(self) -> None:
        stream = await self._open()
        await _hop(stream.done_writing(), self._loop)

    async def _open(self) -> Any:
        # Shielded: or who is cancelled here would keep it from being opened, for all that come after.
        return await asyncio.shield(asyncio.wrap_future(self._opened))

    def cancel(self) -> None:
        with suppress(RuntimeError):  # the loop is closed, and all its calls with it
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        # One that is not open yet is not opened.
        if not self._opened.cancel() and not self._opened.cancelled() and self._opened.exception() is None:
            self._opened.result().cancel()


async def _hop(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


def _error_of(problem: Exception, call: _LocalCall) -> ClientError:
    """The error that a client over gRPC would see."""
    if isinstance(problem, ClientError):
        return problem
    if isinstance(problem, TakhinError):
        return client_error(problem.code, problem.message, problem.reason, problem.metadata, call.request_id)
    status = status_of(problem, call.request_id)
    return client_error(status.code, status.message, Reason.INTERNAL_ERROR, request_id=call.request_id)
