"""Hostile HTTP/2 clients, by hand: each an Attack, played from a process of its own while a neighbour goes on.

    with attacking(ATTACK, broker.address) as counts:
        ...

Not clients: they send what they are told to, whatever comes back. Frames are those of bench/http2.py.
"""

import multiprocessing
import selectors
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from bench import http2
from bench.http2 import DATA, END_HEADERS, END_STREAM, HEADERS, PING, SETTINGS, WINDOW_UPDATE, frame

PRIORITY = 2
PADDED = 8
MAX_WINDOW = (1 << 31) - 1
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE = 1, 4
# What one connection sends before the next has its turn.
AT_ONCE = 50
SERVICE = "/takhin.v1.TakhinService/"
TOPIC = "beside"
PRODUCE, CONSUME = SERVICE + "ProduceMessage", SERVICE + "ConsumeMessages"
PRODUCE_STREAM = SERVICE + "ProduceMessageStream"


def setting(identifier: int, value: int) -> bytes:
    return struct.pack(">HI", identifier, value)


def preface(*settings: bytes) -> bytes:
    return http2.PREFACE + frame(SETTINGS, 0, 0, b"".join(settings))


Burst = Callable[[http2.Connection], bytes]


@dataclass(frozen=True)
class Attack:
    """burst: what is sent next on a connection. open: what is sent on it first. reads: whether it takes what comes.
    at_a_time: how many bytes are sent before the others have their turn; 0: all. bursts: after so many the connection
    only stays; 0: without end. grows_mib: what the broker may need for it meanwhile."""

    name: str
    burst: Burst
    open: Burst = lambda connection: b""
    preface: bytes = preface()
    connections: int = 4
    reads: bool = True
    at_a_time: int = 0
    bursts: int = 0
    grows_mib: int = 64


class Peer(http2.Connection):
    """A connection that has got its attack's preface, and no larger windows than that gives."""

    def __init__(self, address: str, attack: Attack):
        super().__init__(address, 5.0, preface=b"")
        self.socket.setblocking(False)
        self.unsent = memoryview(attack.preface + attack.open(self))
        self.bursts = 0


class Player:
    """Keeps an attack's connections open, and opens those again that are closed."""

    def __init__(self, attack: Attack, address: str):
        self.attack = attack
        self.address = address
        self.opened = self.closed = self.sent_bytes = 0
        self._selector = selectors.DefaultSelector()
        self._peers: set[Peer] = set()

    def run(self, stop: Any) -> None:
        while not stop.is_set():
            for _ in range(min(self.attack.connections - len(self._peers), 100)):
                self._open()
            for key, events in self._selector.select(0.02):
                try:
                    if events & selectors.EVENT_READ:
                        self._read(key.data)
                    if events & selectors.EVENT_WRITE:
                        self._send(key.data)
                except OSError:
                    self._close(key.data)
        for peer in list(self._peers):
            self._close(peer)

    def _open(self) -> None:
        with suppress(OSError):
            peer = Peer(self.address, self.attack)
            self.opened += 1
            self._peers.add(peer)
            events = selectors.EVENT_WRITE | (selectors.EVENT_READ if self.attack.reads else 0)
            self._selector.register(peer.socket, events, peer)

    def _read(self, peer: Peer) -> None:
        with suppress(BlockingIOError):
            if not peer.socket.recv(1 << 18):
                raise ConnectionResetError

    def _send(self, peer: Peer) -> None:
        if not peer.unsent:
            if peer.last_stream > 1 << 30:
                raise ConnectionResetError  # It has used up its streams.
            if self.attack.bursts and peer.bursts >= self.attack.bursts:
                if self.attack.reads:
                    self._selector.modify(peer.socket, selectors.EVENT_READ, peer)
                else:
                    self._selector.unregister(peer.socket)
                return
            peer.bursts += 1
            peer.unsent = memoryview(self.attack.burst(peer))
            if not peer.unsent:
                return
        part = peer.unsent[:self.attack.at_a_time] if self.attack.at_a_time else peer.unsent
        with suppress(BlockingIOError):
            sent = peer.socket.send(part)
            peer.unsent = peer.unsent[sent:]
            self.sent_bytes += sent
        if self.attack.at_a_time:
            time.sleep(0.0002)

    def _close(self, peer: Peer) -> None:
        with suppress(KeyError):
            self._selector.unregister(peer.socket)
        self.closed += 1
        self._peers.discard(peer)
        peer.close()


@dataclass
class Counts:
    """Known once the attack is over."""

    opened: int = 0
    closed: int = 0
    sent_bytes: int = 0


def _play(name: str, address: str, ready: Any, stop: Any, counts: Any) -> None:
    (attack,) = [attack for attack in ATTACKS if attack.name == name]
    player = Player(attack, address)
    ready.set()
    player.run(stop)
    counts[0], counts[1], counts[2] = player.opened, player.closed, player.sent_bytes


@contextmanager
def attacking(attack: Attack, address: str) -> Iterator[Counts]:
    """From another process, for as long as the block lasts."""
    spawn = multiprocessing.get_context("spawn")
    ready, stop, shared, counts = spawn.Event(), spawn.Event(), spawn.Array("q", 3), Counts()
    process = spawn.Process(target=_play, args=(attack.name, address, ready, stop, shared), daemon=True)
    process.start()
    assert ready.wait(60)
    try:
        yield counts
    finally:
        stop.set()
        process.join(60)
        if process.exitcode is None:
            process.kill()
        counts.opened, counts.closed, counts.sent_bytes = shared
    assert process.exitcode == 0


# What is sent


def _fields(path: str, *metadata: tuple[str, str]) -> bytes:
    return http2.call_headers(path, *metadata)


def _topic_request(topic: str = TOPIC, offset: int = 0) -> bytes:
    """The begin of a ConsumeMessagesRequest: the topic (1) and the offset (3)."""
    return b"\x0a" + bytes([len(topic)]) + topic.encode() + b"\x18" + bytes([offset])


def _produce_request(value: bytes = b"x", acks: bytes = b"") -> bytes:
    record = b"\x12" + bytes([len(value)]) + value
    return b"\x0a" + bytes([len(TOPIC)]) + TOPIC.encode() + b"\x1a" + bytes([len(record)]) + record + acks


def _opened(connection: http2.Connection, path: str, body: bytes | None, *metadata: tuple[str, str]) -> bytes:
    """A call, with its only message when there is a body."""
    number = connection.next_stream()
    out = http2.open_call(number, _fields(path, *metadata))
    return out if body is None else out + http2.message(number, body, ends=True)


def calls(path: str, body: bytes | None = None, count: int = AT_ONCE, *metadata: tuple[str, str]) -> Burst:
    return lambda connection: b"".join(_opened(connection, path, body, *metadata) for _ in range(count))


def resets(path: str, body: bytes | None = None) -> Burst:
    """Calls, each reset at once."""

    def burst(connection: http2.Connection) -> bytes:
        return b"".join(
            _opened(connection, path, body) + http2.reset(connection.last_stream) for _ in range(AT_ONCE))

    return burst


def made_to_reset(connection: http2.Connection) -> bytes:
    """Calls that the server has to reset itself: their window is enlarged by nothing, which is an error."""
    return b"".join(
        _opened(connection, PRODUCE, None) + frame(WINDOW_UPDATE, 0, connection.last_stream, bytes(4))
        for _ in range(AT_ONCE))


def again(data: bytes, count: int = AT_ONCE) -> Burst:
    """On the connection, no stream of it."""
    return lambda connection: data * count


def on_stream(kind: int, payload: bytes, flags: int = 0, count: int = AT_ONCE) -> Burst:
    return lambda connection: frame(kind, flags, connection.last_stream, payload) * count


def open_headers(connection: http2.Connection) -> bytes:
    """That do not end."""
    return frame(HEADERS, 0, connection.next_stream(), _fields(PRODUCE))


def open_message(connection: http2.Connection) -> bytes:
    """A call with the begin of a message of a megabyte."""
    return http2.open_call(connection.next_stream(), _fields(PRODUCE)) + frame(
        DATA, 0, connection.last_stream, b"\0\0\x10\0\0")


def priorities(connection: http2.Connection) -> bytes:
    """Of streams that are idle, each depending on the one before."""
    numbers = [connection.next_stream() for _ in range(AT_ONCE)]
    return b"".join(frame(PRIORITY, 0, each, struct.pack(">IB", max(each - 2, 0), 255)) for each in numbers)


def priorities_of_one(connection: http2.Connection) -> bytes:
    return frame(PRIORITY, 0, 1, struct.pack(">IB", 0, 3)) * AT_ONCE


def hpack_bomb(connection: http2.Connection) -> bytes:
    """A header of nearly the whole table, stored once, and then named by a byte each, 60 MB in a block."""
    block = _fields(PRODUCE) + b"\x40\x01a" + http2.string_literal(b"b" * 3900) + b"\xbe" * 11_000
    return frame(HEADERS, END_HEADERS, connection.next_stream(), block)


def many_headers(connection: http2.Connection) -> bytes:
    block = _fields(PRODUCE) + http2.header_block([(f"k{number}", "v") for number in range(1_500)])
    return frame(HEADERS, END_HEADERS, connection.next_stream(), block)


def large_header(connection: http2.Connection) -> bytes:
    block = _fields(PRODUCE) + http2.header_block([("large", "v" * 16_000)])
    return frame(HEADERS, END_HEADERS, connection.next_stream(), block)


def large_trailers(connection: http2.Connection) -> bytes:
    number = connection.next_stream()
    block = http2.header_block([("large", "v" * 16_000)])
    return http2.open_call(number, _fields(PRODUCE_STREAM)) + frame(
        HEADERS, END_HEADERS | END_STREAM, number, block)


def trailers_bomb(connection: http2.Connection) -> bytes:
    """The same behind a call's headers."""
    number = connection.next_stream()
    block = b"\x40\x01a" + http2.string_literal(b"b" * 3900) + b"\xbe" * 12_000
    return http2.open_call(number, _fields(PRODUCE_STREAM)) + frame(
        HEADERS, END_HEADERS | END_STREAM, number, block)


# 10 MiB less a bit, in 10 KB: as large as a message may be.
BOMB = zlib.compress(bytes(10 * 1024 * 1024 - 1024), 9)


def bombs(path: str, ends: bool) -> Burst:
    """Messages that get a thousand times as large."""

    def burst(connection: http2.Connection) -> bytes:
        number = connection.next_stream()
        out = [http2.open_call(number, _fields(path, ("grpc-encoding", "deflate")))]
        body = struct.pack(">BI", 1, len(BOMB)) + BOMB
        for _ in range(1 if ends else 5):
            out.append(frame(DATA, END_STREAM if ends else 0, number, body))
        return b"".join(out)

    return burst


def more_bombs(connection: http2.Connection) -> bytes:
    return frame(DATA, 0, connection.last_stream, struct.pack(">BI", 1, len(BOMB)) + BOMB)


def hang_up(connection: http2.Connection) -> bytes:
    raise ConnectionResetError


def window_sizes(connection: http2.Connection) -> bytes:
    """Each changes the window of every stream there is."""
    return b"".join(frame(SETTINGS, 0, 0, setting(INITIAL_WINDOW_SIZE, 1000 + number % 2)) for number in range(AT_ONCE))


LARGE_WINDOWS = preface(setting(INITIAL_WINDOW_SIZE, MAX_WINDOW)) + frame(
    WINDOW_UPDATE, 0, 0, struct.pack(">I", MAX_WINDOW - 65535))
NO_WINDOW = preface(setting(INITIAL_WINDOW_SIZE, 0))
UNKNOWN = SERVICE + "Unknown"
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"

ATTACKS = (
    # Resets
    Attack("resets of readers", resets(CONSUME)),
    Attack("resets of readers with their request", resets(CONSUME, _topic_request())),
    Attack("resets of produce streams", resets(PRODUCE_STREAM)),
    Attack("resets of served calls", resets(PRODUCE, _produce_request())),
    Attack("resets of unknown methods", resets(UNKNOWN)),
    Attack("resets by the server", made_to_reset),
    # Headers
    Attack("CONTINUATION", on_stream(9, http2.header_block([("x", "y" * 100)])), open_headers),
    Attack("large CONTINUATION", on_stream(9, http2.header_block([("x", "y" * 16_000)]), count=4), open_headers),
    Attack("empty CONTINUATION", on_stream(9, b""), open_headers),
    Attack("HPACK bomb", hpack_bomb),
    Attack("many headers", many_headers),
    Attack("large header", large_header, grows_mib=160),
    Attack("large trailers", large_trailers),
    Attack("HPACK bomb in trailers", trailers_bomb),
    # Frames that come to nothing
    Attack("SETTINGS", again(frame(SETTINGS))),
    Attack("SETTINGS of windows", window_sizes, calls(PRODUCE_STREAM, count=900)),
    Attack("PING", again(frame(PING, 0, 0, bytes(8)))),
    Attack("PING acknowledged", again(frame(PING, 1, 0, bytes(8)))),
    Attack("empty DATA", on_stream(DATA, b""), calls(PRODUCE_STREAM, count=1)),
    Attack("padding", on_stream(DATA, bytes([200]) + bytes(200), PADDED), calls(PRODUCE_STREAM, count=1)),
    Attack("DATA of 1 byte", on_stream(DATA, b"\0"), open_message),
    Attack("empty messages", on_stream(DATA, bytes(5)), calls(PRODUCE_STREAM, count=1)),
    Attack("WINDOW_UPDATE", on_stream(WINDOW_UPDATE, b"\0\0\0\1"), calls(PRODUCE_STREAM, count=1)),
    Attack("WINDOW_UPDATE of the connection", again(frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1"))),
    Attack("PRIORITY", priorities),
    Attack("PRIORITY of one stream", priorities_of_one),
    Attack("unknown frames", again(frame(200, 0, 0, bytes(8)))),
    Attack("calls never ended", calls(PRODUCE)),
    # Who takes nothing
    Attack("no window, readers", calls(CONSUME, _topic_request(), 900), preface=NO_WINDOW, bursts=1, grows_mib=96),
    Attack("no window, calls", calls(PRODUCE, _produce_request(), 900), preface=NO_WINDOW, bursts=1),
    Attack("no window, refused calls", calls(PRODUCE, b"\xff", 900), preface=NO_WINDOW, bursts=1),
    Attack("never reads, readers", calls(CONSUME, _topic_request(), 900), preface=LARGE_WINDOWS, reads=False, bursts=1,
           grows_mib=96),
    Attack("never reads, calls", calls(PRODUCE, _produce_request()), preface=LARGE_WINDOWS, reads=False),
    Attack("never reads, PING", again(frame(PING, 0, 0, bytes(8))), reads=False),
    Attack("never reads, SETTINGS", again(frame(SETTINGS)), reads=False),
    Attack("never reads, unknown methods", calls(UNKNOWN), preface=LARGE_WINDOWS, reads=False),
    Attack("never reads, resets of unknown methods", resets(UNKNOWN), preface=LARGE_WINDOWS, reads=False),
    Attack("never reads, resets by the server", made_to_reset, preface=LARGE_WINDOWS, reads=False),
    # Who says little
    Attack("silent", again(b""), preface=b"", connections=500, bursts=1),
    Attack("half a preface", again(b""), preface=http2.PREFACE[:12], connections=500, bursts=1),
    Attack("half a frame", again(frame(HEADERS, END_HEADERS, 1, _fields(PRODUCE))[:20], 1), connections=500, bursts=1),
    Attack("half a header block", open_headers, connections=500, bursts=1),
    Attack("a byte at a time", calls(PRODUCE, _produce_request()), at_a_time=1),
    Attack("one connection after the other", hang_up),
    Attack("half a preface, one after the other", hang_up, preface=http2.PREFACE[:12]),
    # What is no gRPC
    Attack("HTTP/1", again(GET), preface=b""),
    Attack("noise", again(bytes(range(256))), preface=b"", connections=20),
    Attack("noise after the preface", again(bytes(range(256))), connections=20),
    Attack("deflate bombs of calls", bombs(PRODUCE, ends=True), connections=2, grows_mib=400),
    Attack("deflate bombs on streams", more_bombs, bombs(PRODUCE_STREAM, ends=False), connections=2, grows_mib=400),
)
