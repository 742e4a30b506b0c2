"""What a connection of the fast front is put on, in place of a socket or with one, and the cases that are played on it.

A case is bytes: a byte that says on which front and how, and then steps, each of what the client or the front does. See
Step.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Collection, Iterator
from enum import IntEnum
from typing import Any

from takhin.rpc.fast.connection import Connection
from tests.torture.http2_check import ServerSide, hold

# Of a case's first byte. SOCKET: by a socket that the front listens on, and not on a Wire.
STRICT, TLS, SOCKET = 1, 2, 4
_STEP = struct.Struct(">BI")
_AWAITED = struct.Struct(">IH")
# Of answers; and of one that the front may have to reset, as it holds too much for a client that does not read.
ANY_NUMBER, MAY_BE_CUT = 0xFFFF, 0xFFFE
# What takes longer hangs.
HANGS_S = 60


class Step(IntEnum):
    """SEND: bytes of the client's. TURNS: of the loop, one byte. SLEEP: for so many milliseconds. READ: the client
    takes so many bytes, four bytes of a number, and then no more; all: it reads on. CLOSE: it says no more. LOSE: the
    connection is gone. ACT: the front does something to it, see ACTS. AWAIT: calls that have to end by themselves, each
    with its stream, and the number of its answers if it succeeds."""

    SEND, TURNS, SLEEP, READ, CLOSE, LOSE, ACT, AWAIT = range(8)


NO_LIMIT = 0xFFFFFFFF
ACTS: tuple[Callable[[Connection], object], ...] = (
    lambda connection: connection.go_away(),
    lambda connection: connection.leave(),
    lambda connection: connection.ping(),
    lambda connection: connection.end(0),
    lambda connection: connection.cancel_calls(),
    lambda connection: connection.drop_stale(0.0),
    lambda connection: connection.abort(),
)
GO_AWAY, LEAVE, SERVER_PING, END, CANCEL_CALLS, DROP_STALE, ABORT = range(len(ACTS))
# Those that the front does only to a connection that it has told to go away.
_WHEN_GOING = (LEAVE, END, CANCEL_CALLS)


def packed(how: int, steps: list[tuple[Step, bytes]]) -> bytes:
    return bytes([how]) + b"".join(_STEP.pack(step, len(data)) + data for step, data in steps)


def unpacked(case: bytes) -> tuple[int, Iterator[tuple[Step, bytes]]]:
    def steps() -> Iterator[tuple[Step, bytes]]:
        at = 1
        while at < len(case):
            step, size = _STEP.unpack_from(case, at)
            at += _STEP.size + size
            yield Step(step), case[at - size:at]

    return case[0], steps()


def awaited(calls: dict[int, int]) -> bytes:
    return b"".join(_AWAITED.pack(stream, count) for stream, count in calls.items())


class _Tls:
    def selected_alpn_protocol(self) -> str:
        return "h2"

    def getpeercert(self, binary_form: bool) -> None:
        return None


class Wire(asyncio.Transport):
    """As uvloop's transport of a socket does it, and the client at the other end of it: what is not taken is held as it
    is, and the protocol told that it is too much; lost is lost in a turn of its own."""

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop, is_tls: bool):
        super().__init__({"peername": ("127.0.0.1", 1), **({"ssl_object": _Tls()} if is_tls else {})})
        self.connection, self._loop, self._is_tls = connection, loop, is_tls
        self.server = ServerSide()
        self._unread: deque[bytes] = deque()
        self._held: deque[Any] = deque()
        self._held_bytes = 0
        self._high_bytes, self._low_bytes = 65536, 16384
        self._allowance = NO_LIMIT
        self._is_paused = self._reads_not = self._drain_is_due = False
        self._is_closing = self._is_losing = self._has_eof = self._client_is_done = False
        self.is_lost = False
        connection.connection_made(self)

    # What the protocol calls

    def _ensure_alive(self) -> None:
        if self.is_lost:
            raise RuntimeError("a transport that is closed is used")

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high is not None
        self._high_bytes, self._low_bytes = high, high // 4

    def get_write_buffer_size(self) -> int:
        self._ensure_alive()
        return self._held_bytes

    def write(self, data: Any) -> None:
        self._ensure_alive()
        if self._has_eof:
            raise RuntimeError("a write after the end")
        if self._is_losing or not data:
            return
        self._held.append(data)
        self._held_bytes += len(data)
        self._drain_soon()
        if self._held_bytes > self._high_bytes and not self._is_paused:
            self._is_paused = True
            self.connection.pause_writing()

    def writelines(self, pieces: list[Any]) -> None:
        for piece in pieces:
            self.write(piece)

    def can_write_eof(self) -> bool:
        return not self._is_tls

    def write_eof(self) -> None:
        self._ensure_alive()
        if self._is_tls:
            raise NotImplementedError
        self._has_eof = True
        self._drain_soon()

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._drain_soon()

    def abort(self) -> None:
        self.lose(None)

    def pause_reading(self) -> None:
        self._ensure_alive()
        self._reads_not = True

    def resume_reading(self) -> None:
        self._ensure_alive()
        self._reads_not = False
        if self._unread or self._client_is_done:
            self._loop.call_soon(self._deliver)

    # What the client does

    def send(self, data: bytes) -> None:
        self._unread.append(data)
        self._deliver()

    def close_client(self) -> None:
        """It says no more."""
        if not self._client_is_done:
            self._client_is_done = True
            self._deliver()

    def read(self, allowance: int) -> None:
        self._allowance = allowance
        self._drain_soon()

    def lose(self, why: Exception | None) -> None:
        self._is_closing = True
        if not self._is_losing:
            self._is_losing = True
            self._held.clear()
            self._held_bytes = 0
            self._loop.call_soon(self._end, why)

    def _deliver(self) -> None:
        while self._unread and not self._reads_not and not self._is_closing:
            buffer = self.connection.get_buffer(-1)
            data = self._unread.popleft()
            if len(data) > len(buffer):
                self._unread.appendleft(data[len(buffer):])
                data = data[:len(buffer)]
            buffer[:len(data)] = data
            self.server.sends(data)
            self.connection.buffer_updated(len(data))
        if self._client_is_done and not self._unread and not self._reads_not and not self._is_closing:
            self.connection.eof_received()
            self.close()

    def _drain_soon(self) -> None:
        if not self._drain_is_due:
            self._drain_is_due = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._drain_is_due = False
        if self._is_losing:
            return
        while self._held and self._allowance:
            data = memoryview(self._held.popleft())
            part = min(len(data), self._allowance)
            if part < len(data):
                self._held.appendleft(data[part:])
            if self._allowance != NO_LIMIT:
                self._allowance -= part
            self._held_bytes -= part
            self.server.take(bytes(data[:part]))
        if self._is_paused and self._held_bytes <= self._low_bytes:
            self._is_paused = False
            self.connection.resume_writing()
        if not self._held and (self._has_eof or self._is_closing):
            self.server.end()
            if self._is_closing:
                self.lose(None)

    def _end(self, why: Exception | None) -> None:
        self.connection.connection_lost(why)
        self.is_lost = True


class Socketed:
    """The same client at the end of a real socket: slower, and the system decides what comes when."""

    def __init__(self, path: str, loop: asyncio.AbstractEventLoop):
        self.server = ServerSide()
        self.connection: Connection | None = None
        self.is_lost = False
        self._loop = loop
        self._unsent: deque[bytes] = deque()
        self._allowance = NO_LIMIT
        self._reads = self._is_done = False
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.setblocking(False)
        self._socket.connect(path)
        self.read(NO_LIMIT)

    def send(self, data: bytes) -> None:
        self._unsent.append(data)
        self._push()

    def close_client(self) -> None:
        self._is_done = True
        self._push()

    def read(self, allowance: int) -> None:
        self._allowance = allowance
        self._mind_reading(allowance > 0 and not self.is_lost)

    def lose(self, why: Exception | None) -> None:
        if not self.is_lost:
            self._mind_reading(False)
            self.is_lost = True
            self._socket.close()

    def _mind_reading(self, reads: bool) -> None:
        if reads and not self._reads:
            self._loop.add_reader(self._socket, self._take)
        elif self._reads and not reads:
            self._loop.remove_reader(self._socket)
        self._reads = reads

    def _push(self) -> None:
        if self.is_lost:
            return
        try:
            while self._unsent:
                data = self._unsent.popleft()
                sent = 0
                try:
                    sent = self._socket.send(data)
                finally:
                    # Nobody has read it before the loop's next turn.
                    self.server.sends(data[:sent])
                    if sent < len(data):
                        self._unsent.appendleft(data[sent:])
            if self._is_done:
                self._socket.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            self._loop.call_later(0.001, self._push)
        except OSError:
            self._unsent.clear()

    def _take(self) -> None:
        try:
            data = self._socket.recv(min(self._allowance, 1 << 16))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if self._allowance != NO_LIMIT:
            self._allowance -= len(data)
        self._mind_reading(bool(data) and self._allowance > 0)
        self.server.take(data)


async def play(
    wire: Wire | Socketed, steps: Iterator[tuple[Step, bytes]], known: Collection[Connection],
    is_over: Callable[[], bool]
) -> None:
    """Until the client is gone. known: connections that the front has. is_over: whether something is wrong, and the
    rest is of no use. Raises Broken, and whatever the connection raises."""
    for step, data in steps:
        if is_over():
            break
        match step:
            case Step.SEND:
                wire.send(data)
            case Step.TURNS:
                for _ in range(data[0]):
                    await asyncio.sleep(0)
            case Step.SLEEP:
                await asyncio.sleep(data[0] / 1000)
            case Step.READ:
                wire.read(int.from_bytes(data, "big"))
            case Step.CLOSE:
                wire.close_client()
            case Step.LOSE:
                wire.lose(ConnectionResetError())
            case Step.ACT if wire.connection is not None and wire.connection in known:
                if data[0] not in _WHEN_GOING or wire.connection.going_away:
                    ACTS[data[0]](wire.connection)
            case Step.AWAIT:
                await _calls_end(wire.server, data, is_over)
    if not wire.is_lost:
        wire.lose(ConnectionResetError())


async def _calls_end(server: ServerSide, data: bytes, is_over: Callable[[], bool]) -> None:
    for number, count in _AWAITED.iter_unpack(data):
        def is_ended(number: int = number) -> bool:
            return number in server.streams and server.streams[number].is_over or is_over()

        await until(is_ended, f"the call of stream {number} has no end")
        if is_over():
            return
        stream = server.streams[number]
        if count == MAY_BE_CUT:
            continue
        hold(stream.status is not None, f"the call of stream {number} was reset")
        got = len(stream.messages())
        hold(stream.status != 0 or count in (ANY_NUMBER, got), f"{got} answers, not {count}, on stream {number}")


async def until(is_so: Callable[[], bool], otherwise: str) -> None:
    """Raises Broken."""
    loop = asyncio.get_running_loop()
    for _ in range(50):
        if is_so():
            return
        await asyncio.sleep(0)
    until_s = loop.time() + HANGS_S
    while not is_so():
        hold(loop.time() < until_s, otherwise)
        await asyncio.sleep(0.001)
