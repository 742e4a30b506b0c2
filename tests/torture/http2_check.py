"""A strict reader of what an HTTP/2 server sends: every rule that it breaks is a Broken.

It knows what the client has sent as well: how far windows are open, which streams there are, which settings hold. The
client may have sent anything; what is no frame of it grants nothing.
"""

import ctypes
import struct
import zlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from bench.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from takhin.rpc.fast import connection
from tests.hostile import HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE, MAX_WINDOW, PADDED

MAX_FRAME_SIZE = 5
_DEFAULT_WINDOW, _DEFAULT_FRAME_BYTES = 65_535, 16_384
_FLAGS = {
    DATA: END_STREAM | PADDED, HEADERS: END_STREAM | END_HEADERS, RST_STREAM: 0, SETTINGS: ACK, PING: ACK, GOAWAY: 0,
    WINDOW_UPDATE: 0, CONTINUATION: END_HEADERS,
}
_SIZES = {RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
_OF_THE_CONNECTION = (SETTINGS, PING, GOAWAY)
HTTP1 = b"HTTP/1.1 400 Bad Request\r\n"
_WINDOW_BITS = {"gzip": 31, "deflate": 15}


class Broken(Exception):
    """What the server sent is against the rules."""


def hold(is_right: bool, message: str) -> None:
    if not is_right:
        raise Broken(message)


Fields = list[tuple[bytes, bytes]]


class _Pair(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("value", ctypes.c_char_p), ("name_size", ctypes.c_size_t),
        ("value_size", ctypes.c_size_t), ("flags", ctypes.c_uint8)]


class _Got(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_void_p), ("value", ctypes.c_void_p), ("name_size", ctypes.c_size_t),
        ("value_size", ctypes.c_size_t), ("flags", ctypes.c_uint8)]


# The library that the front is linked with. Of HPACK nothing is Takhin's own.
_library = ctypes.CDLL(connection.__file__)
_inflate = _library.nghttp2_hd_inflate_hd2
_inflate.restype = ctypes.c_ssize_t
_inflate.argtypes = [
    ctypes.c_void_p, ctypes.POINTER(_Got), ctypes.POINTER(ctypes.c_int), ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]
_deflate = _library.nghttp2_hd_deflate_hd
_deflate.restype = ctypes.c_ssize_t
_deflate.argtypes = [
    ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(_Pair), ctypes.c_size_t]
_FINAL, _EMIT = 1, 2


class Inflater:
    """Reads header blocks of one direction of a connection."""

    def __init__(self) -> None:
        self._state = ctypes.c_void_p()
        hold(_library.nghttp2_hd_inflate_new(ctypes.byref(self._state)) == 0, "no inflater")

    def __del__(self) -> None:
        _library.nghttp2_hd_inflate_del(self._state)

    def limit(self, table_bytes: int) -> None:
        _library.nghttp2_hd_inflate_change_table_size(self._state, ctypes.c_size_t(table_bytes))

    def fields(self, block: bytes) -> Fields:
        found: Fields = []
        got, flags = _Got(), ctypes.c_int()
        while True:
            flags.value = 0
            taken = _inflate(self._state, ctypes.byref(got), ctypes.byref(flags), block, len(block), 1)
            hold(taken >= 0, f"a header block that can't be read: {taken}")
            block = block[taken:]
            if flags.value & _EMIT:
                found.append(
                    (ctypes.string_at(got.name, got.name_size), ctypes.string_at(got.value, got.value_size)))
            if flags.value & _FINAL:
                _library.nghttp2_hd_inflate_end_headers(self._state)
                return found
            hold(bool(block) or bool(flags.value & _EMIT), "a header block without its end")


class Deflater:
    """Writes header blocks with all that HPACK has: Huffman's code, the table, its entries."""

    def __init__(self) -> None:
        self._state = ctypes.c_void_p()
        _library.nghttp2_hd_deflate_new(ctypes.byref(self._state), ctypes.c_size_t(4096))

    def __del__(self) -> None:
        _library.nghttp2_hd_deflate_del(self._state)

    def block(self, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
        pairs = [_Pair(name, value, len(name), len(value), 0) for name, value in fields]
        out = ctypes.create_string_buffer(1000 + sum(each.name_size + each.value_size + 64 for each in pairs))
        size = _deflate(self._state, out, len(out), (_Pair * len(pairs))(*pairs), len(pairs))
        assert size >= 0, size
        return out.raw[:size]


@dataclass
class Stream:
    """What the server sent on one. status: of gRPC; None: none has come."""

    head: dict[bytes, bytes] | None = None
    body: bytearray = field(default_factory=bytearray)
    sent_bytes: int = 0
    is_ended: bool = False
    is_reset: bool = False
    status: int | None = None

    @property
    def is_over(self) -> bool:
        return self.is_ended or self.is_reset

    def messages(self) -> list[bytes]:
        """As they were before they were compressed. Raises Broken."""
        found, at = [], 0
        encoding = (self.head or {}).get(b"grpc-encoding", b"identity").decode()
        while at < len(self.body):
            hold(at + 5 <= len(self.body), "a message's prefix without its end")
            flag, size = struct.unpack_from(">BI", self.body, at)
            message = bytes(self.body[at + 5:at + 5 + size])
            hold(len(message) == size, f"{len(message)} bytes of a message of {size}")
            hold(flag in (0, 1), f"a message with flag {flag}")
            if flag:
                hold(encoding in _WINDOW_BITS, f"a compressed message in {encoding}")
                try:
                    message = zlib.decompress(message, _WINDOW_BITS[encoding])
                except zlib.error as problem:
                    raise Broken(f"a message that can't be decompressed: {problem}") from None
            found.append(message)
            at += 5 + size
        return found


class _ClientSide:
    """What the client has sent, as far as it are frames."""

    def __init__(self) -> None:
        self.is_http2 = True
        self._unread = b""
        self._has_begun = False
        self.opened: set[int] = set()
        self.granted_bytes = _DEFAULT_WINDOW
        self.granted: dict[int, int] = {}
        self.pings: deque[bytes] = deque()
        # Of SETTINGS that the server has not acknowledged; each a list of what it says, in order.
        self.settings: deque[list[tuple[int, int]]] = deque()
        self.initial_window = _DEFAULT_WINDOW
        self.frame_bytes = _DEFAULT_FRAME_BYTES

    def take(self, data: bytes) -> None:
        self._unread += data
        if not self._has_begun:
            if not PREFACE.startswith(self._unread[:len(PREFACE)]):
                self.is_http2 = False
            if len(self._unread) < len(PREFACE):
                return
            self._has_begun = True
            self._unread = self._unread[len(PREFACE):]
        at = 0
        while len(self._unread) - at >= 9:
            size = int.from_bytes(self._unread[at:at + 3], "big")
            kind, flags, stream = struct.unpack_from(">BBI", self._unread, at + 3)
            if kind == HEADERS:
                # The server may have enough of it before it is complete.
                self.opened.add(stream & MAX_WINDOW)
            if len(self._unread) - at < 9 + size:
                break
            self._frame(kind, flags, stream & MAX_WINDOW, self._unread[at + 9:at + 9 + size])
            at += 9 + size
        self._unread = self._unread[at:]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == PING and not flags & ACK:
            self.pings.append(payload)
        elif kind == WINDOW_UPDATE and len(payload) == 4:
            more = int.from_bytes(payload, "big") & MAX_WINDOW
            if stream:
                self.granted[stream] = self.granted.get(stream, 0) + more
            else:
                self.granted_bytes += more
        elif kind == SETTINGS and not flags & ACK and not stream:
            told = [struct.unpack_from(">HI", payload, at) for at in range(0, len(payload) - 5, 6)]
            self.settings.append(told)
            self.frame_bytes = max([self.frame_bytes, *(value for name, value in told if name == MAX_FRAME_SIZE)])

    def largest_window(self) -> int:
        """Of a stream nothing was granted to: by the settings that hold, or may hold by now."""
        said = [value for told in self.settings for name, value in told if name == INITIAL_WINDOW_SIZE]
        return max([self.initial_window, *said])


class ServerSide:
    """Takes what both sides send, in order. Raises Broken. streams: what the server has sent on each."""

    def __init__(self) -> None:
        self.client = _ClientSide()
        self.streams: dict[int, Stream] = {}
        self.last_taken = MAX_WINDOW
        self.num_frames = 0
        self._unread = b""
        self._block: tuple[int, int, bytes] | None = None
        self._sent_bytes = 0
        self._inflater = Inflater()
        self._is_http1 = False

    def sends(self, data: bytes) -> None:
        """The client does."""
        self.client.take(data)

    def take(self, data: bytes) -> None:
        """The server has sent it."""
        self._unread += data
        at = 0
        while not self._is_http1 and len(self._unread) - at >= 9:
            if not self.client.is_http2 and self._unread[at:at + 9] == HTTP1[:9]:
                self._is_http1 = True
                break
            size = int.from_bytes(self._unread[at:at + 3], "big")
            hold(size <= self.client.frame_bytes, f"a frame of {size} bytes")
            if len(self._unread) - at < 9 + size:
                break
            kind, flags, stream = struct.unpack_from(">BBI", self._unread, at + 3)
            self._frame(kind, flags, stream, self._unread[at + 9:at + 9 + size])
            at += 9 + size
        self._unread = self._unread[at:]
        if self._is_http1:
            hold(self._unread.startswith(HTTP1[:len(self._unread)]), "neither HTTP/2 nor a refusal in HTTP/1")

    def end(self) -> None:
        """The server has closed its side in order: nothing is left half said."""
        hold(self._is_http1 or not self._unread, f"half a frame at the end: {self._unread[:20].hex()}")
        hold(self._block is None, "half a block of headers at the end")

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        what = f"frame {self.num_frames}, kind {kind}, flags {flags}, stream {stream}, {len(payload)} bytes"
        hold(kind in _FLAGS, f"a frame that a server does not send: {what}")
        hold(self.num_frames > 0 or kind == SETTINGS and not flags, f"not SETTINGS first: {what}")
        hold(flags & ~_FLAGS[kind] == 0, f"flags that there are not: {what}")
        hold(stream < 1 << 31, f"the reserved bit: {what}")
        hold(len(payload) == _SIZES.get(kind, len(payload)), f"another size: {what}")
        hold(self._block is None or kind == CONTINUATION, f"within a block of headers: {what}")
        self.num_frames += 1
        if kind in _OF_THE_CONNECTION:
            hold(stream == 0, f"of a stream: {what}")
            self._of_the_connection(kind, flags, payload, what)
        elif kind == WINDOW_UPDATE and not stream:
            hold(int.from_bytes(payload, "big") > 0, f"a window enlarged by nothing: {what}")
        else:
            self._of_a_stream(kind, flags, stream, payload, what)

    def _of_the_connection(self, kind: int, flags: int, payload: bytes, what: str) -> None:
        if kind == SETTINGS and flags & ACK:
            hold(not payload, f"an ACK that says something: {what}")
            hold(bool(self.client.settings), f"an ACK of SETTINGS that were not sent: {what}")
            for name, value in self.client.settings.popleft():
                if name == INITIAL_WINDOW_SIZE:
                    self.client.initial_window = value
                elif name == HEADER_TABLE_SIZE:
                    self._inflater.limit(value)
        elif kind == SETTINGS:
            hold(len(payload) % 6 == 0, f"half a setting: {what}")
        elif kind == PING and flags & ACK:
            hold(bool(self.client.pings), f"an ACK of a PING that was not sent: {what}")
            hold(self.client.pings.popleft() == payload, f"an ACK of another PING: {what}")
        elif kind == GOAWAY:
            hold(len(payload) >= 8, f"half a GOAWAY: {what}")
            last, code = struct.unpack_from(">II", payload)
            # nghttp2 may have an error to tell of, before the GOAWAY that was to be sent first: that takes no more.
            hold(last <= self.last_taken or code != 0, f"a GOAWAY that takes more calls again: {what}")
            self.last_taken = min(last, self.last_taken)

    def _of_a_stream(self, kind: int, flags: int, number: int, payload: bytes, what: str) -> None:
        hold(number % 2 == 1, f"no stream of a client's: {what}")
        hold(number in self.client.opened, f"a stream that was not opened: {what}")
        stream = self.streams.setdefault(number, Stream())
        hold(not stream.is_reset, f"after a reset: {what}")
        if kind == RST_STREAM:
            stream.is_reset = True
        elif kind == WINDOW_UPDATE:
            hold(int.from_bytes(payload, "big") > 0, f"a window enlarged by nothing: {what}")
        elif kind == CONTINUATION:
            hold(self._block is not None and self._block[0] == number, f"no block to go on with: {what}")
            assert self._block is not None
            self._headers(stream, number, self._block[1] | flags, self._block[2] + payload, what)
        else:
            hold(not stream.is_ended, f"after the stream's end: {what}")
            if kind == HEADERS:
                self._headers(stream, number, flags, payload, what)
            else:
                self._data(stream, number, flags, payload, what)

    def _headers(self, stream: Stream, number: int, flags: int, block: bytes, what: str) -> None:
        if not flags & END_HEADERS:
            self._block = number, flags, block
            return
        self._block = None
        fields = self._inflater.fields(block)
        names = [name for name, _ in fields]
        hold(len(set(names)) == len(names), f"a header twice: {what} {fields}")
        hold(all(name == name.lower() for name in names), f"a header in upper case: {what} {fields}")
        found = dict(fields)
        is_first = stream.head is None
        hold((b":status" in found) == is_first, f"a status in the wrong place: {what} {fields}")
        ends = bool(flags & END_STREAM)
        if is_first:
            stream.head = found
            # Clients take those for calls that nobody has begun, and make them again elsewhere.
            hold(number <= self.last_taken, f"an answer to a call beyond the last that is taken: {what}")
            hold(found[b":status"] in (b"200", b"415"), f"{what} {fields}")
            is_grpc = found[b":status"] == b"200"
            hold(is_grpc or ends, f"no gRPC, and no end: {what} {fields}")
            hold(not is_grpc or found.get(b"content-type", b"").startswith(b"application/grpc"), f"{what} {fields}")
            if not is_grpc:
                stream.is_ended = True
                return
        hold(is_first or ends, f"trailers that do not end the stream: {what} {fields}")
        hold((b"grpc-status" in found) == ends, f"a call's status in the wrong place: {what} {fields}")
        if ends:
            stream.is_ended = True
            told = found[b"grpc-status"]
            hold(told.isdigit() and int(told) <= 16, f"a status that there is not: {what} {fields}")
            message = found.get(b"grpc-message", b"")
            hold(all(0x20 <= byte <= 0x7E for byte in message), f"a message that is not encoded: {what} {fields}")
            stream.status = int(told)
            stream.messages()

    def _data(self, stream: Stream, number: int, flags: int, payload: bytes, what: str) -> None:
        hold(stream.head is not None, f"before its headers: {what}")
        hold(not flags & END_STREAM, f"an end without a status: {what}")
        hold(not flags & PADDED, f"padding: {what}")
        stream.sent_bytes += len(payload)
        self._sent_bytes += len(payload)
        if payload:
            window = self.client.largest_window() + self.client.granted.get(number, 0)
            hold(stream.sent_bytes <= window, f"{stream.sent_bytes} bytes for a window of {window}: {what}")
            window = self.client.granted_bytes
            hold(self._sent_bytes <= window, f"{self._sent_bytes} bytes for a connection's window of {window}: {what}")
        stream.body += payload
