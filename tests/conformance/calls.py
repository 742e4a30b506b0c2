"""Python's two gRPC clients, grpc.aio and the synchronous one, behind one interface, so that each case is written once.

Messages are bytes; a call that fails is an Outcome, not an exception.
"""

import asyncio
import queue
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import grpc.aio

from .service import SERVICE

# Far more than any call takes: one that waits so long has failed.
DEADLINE_S = 60
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
# With a connection of its own, which no other channel shares.
ALONE = [*UNLIMITED, ("grpc.use_local_subchannel_pool", 1)]


@dataclass
class Outcome:
    """How a call has ended. messages: that were not read before."""

    code: grpc.StatusCode
    text: str
    trailing: Mapping[str, str | bytes]
    messages: list[bytes] = field(default_factory=list)

    @property
    def message(self) -> bytes:
        """The only one, of a call that ended well."""
        assert self.code is grpc.StatusCode.OK, f"{self.code.name}: {self.text}"
        (found,) = self.messages
        return found


class Stream(Protocol):
    """A server or bidi stream. read: None at its end, however it ended."""

    async def read(self) -> bytes | None: ...

    async def write(self, message: bytes) -> None: ...

    async def half_close(self) -> None: ...

    async def cancel(self) -> None: ...

    async def outcome(self) -> Outcome: ...


class Connection(Protocol):
    """A channel."""

    async def unary(self, name: str, request: bytes = b"", **options: Any) -> Outcome: ...

    async def stream(self, name: str, request: bytes = b"", **options: Any) -> Stream: ...

    async def bidi(self, name: str, **options: Any) -> Stream: ...

    async def close(self) -> None: ...


def _path(name: str) -> str:
    return name if name.startswith("/") else f"/{SERVICE}/{name}"


def _options(options: dict[str, Any]) -> dict[str, Any]:
    return {"timeout": DEADLINE_S} | options


def _mapping(pairs: Any) -> dict[str, str | bytes]:
    return dict(pairs or ())


def _failed(exc: Any) -> Outcome:
    return Outcome(exc.code(), exc.details() or "", _mapping(exc.trailing_metadata()))


async def rest_of(stream: Stream) -> list[bytes]:
    """All messages that come."""
    found = []
    while (message := await stream.read()) is not None:
        found.append(message)
    return found


# grpc.aio


class _AioStream:
    def __init__(self, call: Any):
        self._call = call

    async def read(self) -> bytes | None:
        try:
            message = await self._call.read()
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            return None
        return None if message is grpc.aio.EOF else message

    async def write(self, message: bytes) -> None:
        await self._call.write(message)

    async def half_close(self) -> None:
        await self._call.done_writing()

    async def cancel(self) -> None:
        self._call.cancel()

    async def outcome(self) -> Outcome:
        return Outcome(
            await self._call.code(), await self._call.details() or "", _mapping(await self._call.trailing_metadata()))


class AioConnection:
    """grpc.aio."""

    def __init__(self, address: str, credentials: Any = None, options: Sequence[tuple[str, Any]] = ()):
        options = [*ALONE, *options]
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, options=options)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, options=options)

    async def unary(self, name: str, request: bytes = b"", **options: Any) -> Outcome:
        cancel_after = options.pop("cancel_after", None)
        call = self._channel.unary_unary(_path(name))(request, **_options(options))
        if cancel_after is not None:
            await cancel_after
            call.cancel()
        try:
            messages = [await call]
        except grpc.aio.AioRpcError as exc:
            return _failed(exc)
        except asyncio.CancelledError:
            messages = []
        return Outcome(
            await call.code(), await call.details() or "", _mapping(await call.trailing_metadata()), messages)

    async def stream(self, name: str, request: bytes = b"", **options: Any) -> Stream:
        return _AioStream(self._channel.unary_stream(_path(name))(request, **_options(options)))

    async def bidi(self, name: str, **options: Any) -> Stream:
        return _AioStream(self._channel.stream_stream(_path(name))(**_options(options)))

    async def close(self) -> None:
        await self._channel.close()


# The synchronous client


class _SyncStream:
    def __init__(self, start: Any):
        """start: given the requests, the call."""
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._call = start(self._written())
        self._failed: Outcome | None = None

    def _written(self) -> Iterator[bytes]:
        while (message := self._requests.get()) is not None:
            yield message

    async def read(self) -> bytes | None:
        # StopIteration can't come out of a future.
        try:
            return await asyncio.to_thread(next, self._call, None)
        except grpc.RpcError as exc:
            self._failed = _failed(exc)
            self._requests.put(None)
            return None

    async def write(self, message: bytes) -> None:
        self._requests.put(message)

    async def half_close(self) -> None:
        self._requests.put(None)

    async def cancel(self) -> None:
        self._call.cancel()
        self._requests.put(None)

    async def outcome(self) -> Outcome:
        if self._failed is not None:
            return self._failed
        code = await asyncio.to_thread(self._call.code)
        return Outcome(code, self._call.details() or "", _mapping(self._call.trailing_metadata()))


class SyncConnection:
    """grpc's synchronous client; unary calls by futures, so that many need no threads."""

    def __init__(self, address: str, credentials: Any = None, options: Sequence[tuple[str, Any]] = ()):
        options = [*ALONE, *options]
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options=options)
        else:
            self._channel = grpc.secure_channel(address, credentials, options=options)

    async def unary(self, name: str, request: bytes = b"", **options: Any) -> Outcome:
        cancel_after = options.pop("cancel_after", None)
        future = self._channel.unary_unary(_path(name)).future(request, **_options(options))
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
        if cancel_after is not None:
            await cancel_after
            future.cancel()
        await done.wait()
        messages = [future.result()] if future.code() is grpc.StatusCode.OK else []
        return Outcome(future.code(), future.details() or "", _mapping(future.trailing_metadata()), messages)

    async def stream(self, name: str, request: bytes = b"", **options: Any) -> Stream:
        method = self._channel.unary_stream(_path(name))
        return _SyncStream(lambda _: method(request, **_options(options)))

    async def bidi(self, name: str, **options: Any) -> Stream:
        method = self._channel.stream_stream(_path(name))
        return _SyncStream(lambda requests: method(requests, **_options(options)))

    async def close(self) -> None:
        self._channel.close()


CONNECTIONS: dict[str, type[AioConnection] | type[SyncConnection]] = {
    "python-aio": AioConnection, "python-sync": SyncConnection}
