"""HTTP/2 by hand, for what no library would send: floods, and calls that never come to an end. Not a client: it sends
what it is told to, and reads frames without understanding them."""

import socket
import struct
import time
from collections.abc import Iterable
from typing import NamedTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
NO_ERROR, REFUSED_STREAM, CANCEL = 0, 7, 8


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def string_literal(value: bytes) -> bytes:
    """A string literal of HPACK (RFC 7541, 5.2), without Huffman's code."""
    if len(value) < 127:
        return bytes([len(value)]) + value
    out, rest = bytearray([127]), len(value) - 127
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    out.append(rest)
    return bytes(out) + value


def header_block(fields: Iterable[tuple[str, str]]) -> bytes:
    """Each as a literal that is not to be indexed."""
    return b"".join(b"\x00" + string_literal(name.encode()) + string_literal(value.encode()) for name, value in fields)


def call_headers(path: str, *metadata: tuple[str, str], authority: str = "localhost") -> bytes:
    """The header block of a gRPC call."""
    return header_block([
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority),
        ("content-type", "application/grpc"), ("te", "trailers"), *metadata])


def open_call(stream: int, headers: bytes) -> bytes:
    return frame(HEADERS, END_HEADERS, stream, headers)


def message(stream: int, body: bytes, *, ends: bool = False) -> bytes:
    """A whole gRPC message in one frame."""
    return frame(DATA, END_STREAM if ends else 0, stream, struct.pack(">BI", 0, len(body)) + body)


def reset(stream: int, code: int = CANCEL) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack(">I", code))


class Connection:
    """A TCP connection that has sent its preface. Its window for what it receives is as large as can be."""

    def __init__(
        self, address: str, timeout_s: float = 60.0, preface: bytes = PREFACE + frame(SETTINGS), source: str = ""
    ):
        """source: the address that it comes from."""
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection(
            (host.strip("[]"), int(port)), timeout_s, source_address=(source, 0) if source else None)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._timeout_s = timeout_s
        self._received = b""
        self._next_stream = 1
        if preface:
            self.send(preface + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", (1 << 31) - 1 - 65535)))

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    @property
    def last_stream(self) -> int:
        """The number that next_stream() gave last; 0: none yet."""
        return max(self._next_stream - 2, 0)

    def next_stream(self) -> int:
        """The number of a stream that was not used yet."""
        number, self._next_stream = self._next_stream, self._next_stream + 2
        return number

    def read_frame(self) -> Frame | None:
        """The next one; None when the connection has ended. SETTINGS are acknowledged. Raises TimeoutError."""
        while True:
            if len(self._received) >= 9:
                size = int.from_bytes(self._received[:3], "big")
                if len(self._received) >= 9 + size:
                    kind, flags, stream = struct.unpack(">BBI", self._received[3:9])
                    payload, self._received = self._received[9:9 + size], self._received[9 + size:]
                    if kind == SETTINGS and not flags & ACK:
                        self.send(frame(SETTINGS, ACK))
                    return Frame(kind, flags, stream & 0x7FFFFFFF, payload)
            try:
                more = self.socket.recv(1 << 16)
            except ConnectionError:
                return None
            if not more:
                return None
            self._received += more

    def read_until(self, kind: int, stream: int | None = None) -> Frame | None:
        """Skip frames up to one of that kind, of that stream; None when the connection has ended without."""
        while (got := self.read_frame()) is not None:
            if got.kind == kind and stream in (None, got.stream):
                return got
        return None

    def drop_received(self) -> int:
        """Throw away what has come, without waiting; gives how many bytes it was. Raises ConnectionError when there
        will be no more."""
        dropped, self._received = len(self._received), b""
        self.socket.setblocking(False)
        try:
            while more := self.socket.recv(1 << 20):
                dropped += len(more)
            raise ConnectionResetError("the other end has closed the connection")
        except BlockingIOError:
            return dropped
        finally:
            self.socket.settimeout(self._timeout_s)

    def lasts(self, time_s: float) -> bool:
        """Whether the connection is still open after so long; what comes meanwhile is thrown away."""
        until_s = time.monotonic() + time_s
        while (left_s := until_s - time.monotonic()) > 0:
            self.socket.settimeout(left_s)
            try:
                if not self.socket.recv(1 << 16):
                    return False
            except TimeoutError:
                return True
            except ConnectionError:
                return False
        return True
