"""Makes cases for a connection of the fast front: what clients send who know HTTP/2 and gRPC, and do not keep to it."""

import gzip
import random
import struct
import zlib
from collections.abc import Callable, Iterator

from bench import http2
from bench.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)
from takhin.v1 import takhin_pb2 as pb
from tests.codec.strategies import bytes_field
from tests.hostile import (
    HEADER_TABLE_SIZE,
    INITIAL_WINDOW_SIZE,
    MAX_WINDOW,
    PADDED,
    PRIORITY,
    SERVICE,
    UNKNOWN,
    preface,
    setting,
)
from tests.torture.front_wire import (
    ACTS,
    MAY_BE_CUT,
    NO_LIMIT,
    SERVER_PING,
    SOCKET,
    STRICT,
    TLS,
    Step,
    awaited,
    packed,
)
from tests.torture.http2_check import MAX_FRAME_SIZE, Deflater
from tests.torture.mutate import NASTY, REQUESTS, mutated

PUSH_PROMISE, PRIORITY_FLAG = 5, 0x20
HEALTH, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
STREAMS = ("ProduceMessageStream", "Subscribe")
# With some hundred KB in it.
FULL_TOPIC = "full"
_ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1, mtime=0), "deflate": lambda data: zlib.compress(data, 1),
    "identity": lambda data: data,
}
# Larger than a message may be, many times, and than it may be, just.
_BOMBS = [zlib.compress(bytes(size), 9) for size in (20 << 20, 10 << 20, 140 << 10, 128 << 10, 100 << 10)]
_TIMEOUTS = ("1n", "1u", "900u", "1m", "3m", "20m", "10S", "99999999H", "0m", "", "m", "123456789m", "-1S", "1x", " 1S")
_WINDOWS = (0, 1, 5, 100, 1000, 16_384, 65_535, 1 << 20, MAX_WINDOW - 65_535, MAX_WINDOW)
_FIELDS: list[tuple[bytes, bytes]] = [
    (b"x-request-id", b"mine"), (b"x-request-id", b"\xff\xfe"), (b"x-request-id", b"i" * 300), (b"x-request-id", b""),
    (b"trace-bin", b"AAEC"), (b"trace-bin", b"A"), (b"trace-bin", b"=,="), (b"trace-bin", b""), (b"k", b" v "),
    (b"authorization", b"Bearer x"), (b"traceparent", b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01"),
    (b"grpc-", b"x"), (b"grpc-encoding", b"snappy"), (b"grpc-encoding", b""), (b"grpc-accept-encoding", b"gzip"),
    (b"grpc-accept-encoding", b"deflate , identity"), (b"grpc-accept-encoding", b"," * 100),
    (b"content-type", b"text/html"), (b"content-type", b"application/grpc+proto"),
    (b"content-type", b"application/grp"), (b"content-length", b"3"),
    (b"content-length", b"x"), (b"te", b"gzip"), (b"connection", b"close"),
    (b":method", b"GET"), (b":path", b"/"), (b":unknown", b"x"), (b"Upper", b"x"), (b"", b"x"), (b"nul", b"\0"),
    (b"host", b"x"), (b"cookie", b"a=b"), (b"large", b"v" * 3000), (b"large", b"v" * 20_000), (b"k" * 5000, b"v"),
]


def call_fields(path: str, *more: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"), (b"te", b"trailers"), *more]


def by_hand(fields: list[tuple[bytes, bytes]], chance: random.Random, is_odd: bool) -> bytes:
    """A header block; some are put into the table. is_odd: others are named from there, and nobody keeps count."""
    out = b""
    for name, value in fields:
        kind = b"\x40" if chance.random() < 0.1 else chance.choice((b"\x00", b"\x10"))
        out += kind + http2.string_literal(name) + http2.string_literal(value)
    if is_odd and chance.random() < 0.5:
        out = chance.choice((b"\x20", b"\x3f\xe1\x1f", b"\x3f\xff\xff\x7f", b"\x80", b"\xbe", b"\xff\xff")) + out
    elif is_odd:
        out += chance.choice((b"\xbe" * 20, b"\xc0", b"\x40", b"\x00\x01a", b"\x00\x81\xff\x01a", b"\x00\x01a\x82\xff"))
    return out


def prefixed(body: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(body)) + body


class Client:
    """One connection's client, which makes its frames. is_odd: how often it does not keep to the rules, of 1."""

    def __init__(self, chance: random.Random, oddity: float):
        self.chance = chance
        self.oddity = oddity
        self.last_stream = -1
        self._deflater = Deflater()
        self._has_acknowledged = False
        self._deflates = chance.random() < 0.6
        # The calls that are to be answered, with the number of their messages.
        self.expected: dict[int, int] = {}

    def is_odd(self, often: float = 1.0) -> bool:
        return self.chance.random() < self.oddity * often

    # A call

    def call(self) -> Iterator[bytes]:
        """Its frames: each part is to be sent in one."""
        chance = self.chance
        name = chance.choice(sorted(REQUESTS) + ["ProduceMessage"] * 4 + list(STREAMS) * 3 + ["ConsumeMessages"] * 3)
        path, bodies = SERVICE + name, self._bodies(name)
        if chance.random() < 0.1:
            path, bodies = chance.choice((
                (HEALTH, [b""]), (WATCH, [b""]), (REFLECTION, [b"\x3a\0"]), (UNKNOWN, [b"x"]), ("", [b"x"]),
                ("/" + "p" * 500, [b""])))
        more, encode = self._metadata()
        self.last_stream += 2 if not self.is_odd(0.1) else chance.choice((0, 1, 4, 1 << 20))
        stream = self.last_stream & MAX_WINDOW
        ends_at_once = self.is_odd(0.3)
        yield self.headers(stream, call_fields(path, *more), ends_at_once)
        data = b"".join(self._message(body, encode) for body in bodies)
        if self.is_odd():
            data = chance.choice((data[:chance.randrange(len(data) + 1)], data + b"\0\0", data * 2, data[1:]))
        yield from self.data(stream, data, chance.random() < 0.85)
        if self.is_odd():
            yield self._end_oddly(stream)

    def polite_call(self) -> Iterator[bytes]:
        """One that has to end well, whatever has come before it."""
        chance = self.chance
        name = chance.choice((
            "ProduceMessage", "ProduceMessage", "ProduceMessageStream", "ConsumeMessages", "GetPartitionOffsets",
            "ListTopics", "HealthCheck", "DescribeTopics", "Subscribe", "Unknown"))
        self.last_stream += 2
        stream, count = self.last_stream, 1
        bodies = [chance.choice(REQUESTS.get(name, [b"x"]))]
        if name == "ProduceMessageStream":
            bodies = [chance.choice(REQUESTS[name]) for _ in range(chance.choice((0, 1, 2, 5, 30)))]
            count = len(bodies)
        elif name == "Subscribe":
            bodies = [REQUESTS[name][0], REQUESTS[name][-1]]
        if name in ("ConsumeMessages", "Subscribe"):
            count = MAY_BE_CUT
        if name == "ConsumeMessages":
            # The second follows the log.
            bodies = [REQUESTS[name][chance.choice((0, 2))]]
        encoding = chance.choice(("identity", "identity", "gzip", "deflate"))
        more = [(b"grpc-encoding", encoding.encode()), (b"grpc-accept-encoding", chance.choice((b"gzip", b"identity")))]
        if encoding == "identity":
            more = more[chance.randrange(3):]
        self.expected[stream] = count
        yield self.headers(stream, call_fields(SERVICE + name, *more), False)
        messages = [prefixed(_ENCODERS[encoding](body), encoding != "identity") for body in bodies]
        yield from self.data(stream, b"".join(messages), True)

    def _bodies(self, name: str) -> list[bytes]:
        chance, requests = self.chance, REQUESTS[name]
        bodies = [chance.choice(requests)]
        if name in STREAMS:
            bodies = [chance.choice(requests) for _ in range(chance.choice((0, 1, 2, 3, 8, 40)))]
            if name == "Subscribe" and chance.random() < 0.8:
                bodies.insert(0, requests[0])
        if bodies and self.is_odd():
            at = chance.randrange(len(bodies))
            bodies[at] = mutated(bodies[at], requests, chance)
        if self.is_odd(0.1):
            # Large, of a record that nobody takes, or that is taken.
            value = bytes(chance.choice((9_000, 70_000, 127_000, 200_000)))
            bodies = [bytes_field(1, b"t") + bytes_field(3, bytes_field(2, value))]
        return bodies

    def _metadata(self) -> tuple[list[tuple[bytes, bytes]], str]:
        chance = self.chance
        more: list[tuple[bytes, bytes]] = []
        encode = chance.choice(("identity", "identity", "gzip", "deflate"))
        if encode != "identity" or chance.random() < 0.2:
            more.append((b"grpc-encoding", encode.encode()))
        if chance.random() < 0.3:
            more.append((b"grpc-accept-encoding", chance.choice((b"gzip", b"deflate,gzip", b"identity"))))
        if chance.random() < 0.25:
            more.append((b"grpc-timeout", chance.choice(_TIMEOUTS).encode()))
        while self.is_odd(0.7):
            more.insert(chance.randrange(len(more) + 1), chance.choice(_FIELDS))
        return more, encode

    def _message(self, body: bytes, encode: str) -> bytes:
        chance = self.chance
        if self.is_odd(0.1):
            return prefixed(chance.choice(_BOMBS), 1)
        is_encoded = encode != "identity" and chance.random() < 0.8
        message = prefixed(_ENCODERS[encode](body) if is_encoded else body, is_encoded)
        if self.is_odd(0.3):
            length = chance.choice((0, 1, len(body) + 1, 131_072, 131_073, 1 << 24, (1 << 32) - 1))
            message = struct.pack(">BI", chance.choice((0, 1, 2, 255)), length) + message[5:]
        return message

    def headers(self, stream: int, fields: list[tuple[bytes, bytes]], ends: bool) -> bytes:
        chance = self.chance
        block = self._deflater.block(fields) if self._deflates else by_hand(fields, chance, self.is_odd(0.2))
        if self.is_odd(0.2):
            block = chance.choice((block[:chance.randrange(len(block) + 1)], block + chance.choice(NASTY), b""))
        flags = END_STREAM if ends else 0
        before = after = b""
        if chance.random() < 0.1:
            flags |= PRIORITY_FLAG
            depends_on = stream if self.is_odd(0.1) else 0
            before += struct.pack(">IB", depends_on, chance.randrange(256))
        if chance.random() < 0.1:
            flags |= PADDED
            size = chance.randrange(256)
            before, after = bytes([size if not self.is_odd(0.3) else 255]) + before, bytes(size)
        cuts = [0] if chance.random() < 0.8 else sorted({0, *chance.choices(range(len(block) + 1), k=2)})
        cuts += range(cuts[-1] + 16_000, len(block), 16_000)
        parts = [block[start:end] for start, end in zip(cuts, [*cuts[1:], len(block)], strict=True)]
        out = b""
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1 and not self.is_odd(0.05)
            if number == 0:
                out = frame(HEADERS, flags | (END_HEADERS if is_last else 0), stream, before + part + after)
            else:
                out += frame(CONTINUATION, END_HEADERS if is_last else 0, stream, part)
            if self.is_odd(0.03):
                out += frame(CONTINUATION, 0, stream, b"") * chance.choice((1, 12))
        return out

    def data(self, stream: int, data: bytes, ends: bool) -> Iterator[bytes]:
        chance = self.chance
        if not data and not ends:
            return
        most = chance.choice((1, 4, 7, 100, 16_384, 16_384, 16_384))
        if len(data) // most > 60:
            most = 16_384
        parts = [data[at:at + most] for at in range(0, len(data), most)] or [b""]
        if ends and chance.random() < 0.2:
            parts.append(b"")
        for number, part in enumerate(parts):
            flags = END_STREAM if ends and number == len(parts) - 1 else 0
            if chance.random() < 0.1 and len(part) < 16_000:
                size = chance.randrange(256)
                told = chance.choice((255, len(part) + size + 1)) if self.is_odd(0.2) else size
                yield frame(DATA, flags | PADDED, stream, bytes([told % 256]) + part + bytes(size))
            else:
                yield frame(DATA, flags, stream, part)

    def _end_oddly(self, stream: int) -> bytes:
        chance = self.chance
        match chance.randrange(6):
            case 0 | 1:
                return http2.reset(stream, chance.choice((0, 2, 5, 8, 0xFFFFFFFF)))
            case 2:
                return self.headers(stream, [(b"trailer", b"x" * chance.choice((1, 5000, 17_000)))], True)
            case 3:
                return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", chance.choice(_WINDOWS)))
            case 4:
                return frame(DATA, END_STREAM, stream, b"more")
            case _:
                return self.headers(stream, call_fields(SERVICE + "HealthCheck"), chance.random() < 0.5)

    # What is of the connection

    def begin(self, *settings: bytes) -> bytes:
        if self.is_odd(0.03):
            return self.chance.choice((b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", http2.PREFACE, b"", bytes(40)))
        return preface(*settings)

    def settings(self) -> list[bytes]:
        chance = self.chance
        found = []
        if chance.random() < 0.5:
            found.append(setting(INITIAL_WINDOW_SIZE, chance.choice(_WINDOWS)))
        if chance.random() < 0.2:
            found.append(setting(HEADER_TABLE_SIZE, chance.choice((0, 1, 60, 4096, 65_536, MAX_WINDOW))))
        if chance.random() < 0.2:
            found.append(setting(MAX_FRAME_SIZE, chance.choice((16_384, 16_385, 1 << 20, (1 << 24) - 1))))
        if self.is_odd(0.1):
            found.append(setting(chance.randrange(1, 10), chance.choice((0, 1, 2, 16_383, 1 << 24, 0xFFFFFFFF))))
        return found

    def aside(self) -> bytes:
        """What is of no call, or of any."""
        chance = self.chance
        stream = chance.choice((0, 0, max(self.last_stream, 0), chance.randrange(1, 12, 2)))
        match chance.randrange(13):
            case 0 | 1 | 2 | 3:
                more = chance.choice(_WINDOWS[1:8]) if not self.is_odd(0.2) else chance.choice(_WINDOWS)
                known = stream if stream <= self.last_stream else 0
                return frame(WINDOW_UPDATE, 0, known, struct.pack(">I", more))
            case 4 | 5:
                return frame(SETTINGS, 0, 0, b"".join(self.settings()))
            case 6:
                return frame(PING, 0, 0, chance.randbytes(8))
            case 7:
                return frame(PRIORITY, 0, max(stream, 1), struct.pack(">IB", chance.choice((0, 3, 5)), 7))
            case 8:
                return frame(chance.randrange(10, 256), chance.randrange(256), stream, chance.randbytes(20))
            case 9 if stream and stream <= self.last_stream:
                return http2.reset(stream)
            case 10 if self.is_odd():
                return frame(GOAWAY, 0, 0, struct.pack(">II", chance.choice((0, 1, MAX_WINDOW)), chance.choice((0, 2))))
            case 11 if self.is_odd():
                kind = chance.choice((DATA, HEADERS, RST_STREAM, PUSH_PROMISE, CONTINUATION, PING, WINDOW_UPDATE))
                return frame(kind, chance.randrange(256), stream, chance.randbytes(chance.choice((0, 4, 8, 9))))
            case 12 if not self._has_acknowledged or self.is_odd(0.1):
                self._has_acknowledged = True
                return frame(SETTINGS, ACK)
            case _:
                return b""


def make_case(chance: random.Random) -> bytes:
    """Of one in five the client keeps to the rules, and its calls have to end; one in ten asks for much and does not
    read it, or not at once."""
    kind = chance.random()
    if kind < 0.3:
        return _polite(chance) if kind < 0.2 else _flood(chance)
    client = Client(chance, chance.choice((0.02, 0.1, 0.3, 0.6)))
    frames = [client.begin(*client.settings())]
    calls: list[Iterator[bytes]] = []
    left = chance.choice((1, 1, 2, 3, 5, 8, 30))
    while left or calls:
        if left and (not calls or chance.random() < 0.3):
            calls.append(client.call())
            left -= 1
        each = chance.choice(calls) if chance.random() < 0.5 else calls[0]
        part = next(each, None)
        if part is None:
            calls.remove(each)
        else:
            frames.append(part)
        if chance.random() < 0.1:
            frames.append(client.aside())
    if chance.random() < 0.3:
        for _ in range(chance.choice((1, 1, 2, 4))):
            change_frames(frames, chance)
    data = [each for each in frames if each]
    if chance.random() < 0.15:
        data = [change_bytes(b"".join(data), chance)]
    return packed(_how(chance), _rude_steps(_sliced(data, chance), chance))


def _how(chance: random.Random, strict: float = 0.7) -> int:
    return (STRICT if chance.random() < strict else 0) | chance.choice((0, 0, 0, TLS, SOCKET))


def _polite(chance: random.Random) -> bytes:
    client = Client(chance, 0.0)
    window = chance.choice(_WINDOWS[:8])
    frames = [preface(setting(INITIAL_WINDOW_SIZE, window))]
    calls = [client.polite_call() for _ in range(chance.choice((1, 2, 5, 9)))]
    while calls:
        each = chance.choice(calls)
        part = next(each, None)
        if part is None:
            calls.remove(each)
        else:
            frames.append(part)
    steps: list[tuple[Step, bytes]] = []
    for data in _sliced(frames, chance):
        steps.append((Step.SEND, data))
        if chance.random() < 0.5:
            steps.append((Step.TURNS, bytes([chance.randrange(4)])))
        if chance.random() < 0.03:
            steps.append((Step.READ, struct.pack(">I", chance.choice((0, 1, 500, 20_000)))))
        if chance.random() < 0.03:
            steps.append((Step.ACT, bytes([SERVER_PING])))
    more = frame(SETTINGS, 0, 0, setting(INITIAL_WINDOW_SIZE, 1 << 24)) + frame(
        WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 24))
    steps += [(Step.READ, struct.pack(">I", NO_LIMIT)), (Step.SEND, more), (Step.AWAIT, awaited(client.expected))]
    return packed(_how(chance), steps)


def _flood(chance: random.Random) -> bytes:
    client = Client(chance, 0.0)
    read = pb.ConsumeMessagesRequest(topic=FULL_TOPIC, until_end=True).SerializeToString()
    frames = [preface(setting(INITIAL_WINDOW_SIZE, chance.choice((40_000, 1 << 20, MAX_WINDOW)))) + frame(
        WINDOW_UPDATE, 0, 0, struct.pack(">I", chance.choice((1, 100_000, 1 << 24))))]
    for _ in range(chance.choice((1, 3, 6))):
        client.last_stream += 2
        more = [(b"grpc-accept-encoding", b"gzip")] if chance.random() < 0.3 else []
        frames.append(client.headers(client.last_stream, call_fields(SERVICE + "ConsumeMessages", *more), False))
        frames += client.data(client.last_stream, prefixed(read), True)
        client.expected[client.last_stream] = MAY_BE_CUT
    for _ in range(chance.choice((0, 10, 300))):
        match chance.randrange(3):
            case 0:
                frames.append(frame(PING, 0, 0, chance.randbytes(8)))
            case 1:
                frames.append(frame(SETTINGS, 0, 0, setting(INITIAL_WINDOW_SIZE, chance.choice((1 << 20, 1 << 24)))))
            case _:
                client.last_stream += 2
                path = chance.choice((UNKNOWN, SERVICE + "HealthCheck"))
                frames.append(client.headers(client.last_stream, call_fields(path), False) + http2.message(
                    client.last_stream, b"", ends=True))
    steps = [(Step.READ, struct.pack(">I", chance.choice((0, 100, 50_000, 100_000))))]
    for data in _sliced(frames, chance):
        steps.append((Step.SEND, data))
        if chance.random() < 0.4:
            steps.append((Step.TURNS, bytes([chance.choice((1, 3, 20))])))
        if chance.random() < 0.05:
            steps.append((Step.READ, struct.pack(">I", chance.choice((0, 1, 9_000, 70_000)))))
        if chance.random() < 0.01:
            steps.append((Step.SLEEP, b"\x0c"))
    if chance.random() < 0.5:
        more_bytes = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 20))
        steps += [(Step.READ, struct.pack(">I", NO_LIMIT)), (Step.SEND, more_bytes), (Step.TURNS, b"\x14")]
    return packed(_how(chance, 0.25), steps)


def _rude_steps(slices: list[bytes], chance: random.Random) -> list[tuple[Step, bytes]]:
    steps: list[tuple[Step, bytes]] = []
    stops, acts = chance.random() < 0.3, chance.random() < 0.2
    for data in slices:
        steps.append((Step.SEND, data))
        if chance.random() < 0.5:
            steps.append((Step.TURNS, bytes([chance.choice((1, 1, 2, 5, 20))])))
        if chance.random() < 0.02:
            steps.append((Step.SLEEP, bytes([chance.randrange(1, 4)])))
        if stops and chance.random() < 0.2:
            allowance = chance.choice((0, 1, 9, 300, 20_000, NO_LIMIT))
            steps.append((Step.READ, struct.pack(">I", allowance)))
        if acts and chance.random() < 0.1:
            steps.append((Step.ACT, bytes([chance.randrange(len(ACTS))])))
        if chance.random() < 0.01:
            steps.append((chance.choice((Step.CLOSE, Step.LOSE)), b""))
    match chance.randrange(5):
        case 0:
            steps.append((Step.CLOSE, b""))
        case 1 | 2:
            steps.append((Step.READ, struct.pack(">I", NO_LIMIT)))
            steps.append((Step.TURNS, bytes([chance.choice((3, 30))])))
        case 3:
            steps.append((Step.TURNS, bytes([10])))
    return steps


def _sliced(frames: list[bytes], chance: random.Random) -> list[bytes]:
    data = b"".join(frames)
    match chance.randrange(4):
        case 0:
            return [data]
        case 1:
            return frames
        case 2 if len(data) < 2_000:
            size = chance.choice((1, 3, 9))
            return [data[at:at + size] for at in range(0, len(data), size)]
        case _:
            cuts = sorted({0, *chance.choices(range(len(data) + 1), k=chance.choice((1, 4, 12)))})
            return [data[start:end] for start, end in zip(cuts, [*cuts[1:], len(data)], strict=True) if start < end]


def change_frames(frames: list[bytes], chance: random.Random) -> None:
    """One of them, or where it stands."""
    at, other = chance.randrange(len(frames)), chance.randrange(len(frames))
    match chance.randrange(8):
        case 0:
            frames[at] = b""
        case 1:
            frames.insert(other, frames[at])
        case 2:
            frames[at], frames[other] = frames[other], frames[at]
        case _ if len(frames[at]) >= 9:
            frames[at] = _changed_frame(bytearray(frames[at]), chance)


def _changed_frame(data: bytearray, chance: random.Random) -> bytes:
    match chance.randrange(5):
        case 0:
            data[3] = chance.randrange(12)
        case 1:
            data[4] = chance.choice((0, 1, 4, 5, 8, 9, 0x20, 0xFF, chance.randrange(256)))
        case 2:
            data[5:9] = struct.pack(">I", chance.choice((0, 1, 2, 3, 5, MAX_WINDOW, 1 << 31, chance.randrange(20))))
        case 3:
            body = change_bytes(bytes(data[9:]), chance)
            data[0:3], data[9:] = struct.pack(">I", len(body))[1:], body
        case _:
            size = len(data) - 9 + chance.choice((-9, -1, 1, 9, 16_000))
            data[0:3] = struct.pack(">I", max(size, 0) & 0xFFFFFF)[1:]
    return bytes(data)


def change_bytes(data: bytes, chance: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(out) + 1)
        match chance.randrange(5):
            case 0 | 1 if at < len(out):
                out[at] ^= 1 << chance.randrange(8)
            case 2:
                out[at:at] = chance.choice(NASTY)
            case 3:
                del out[at:at + chance.randint(1, 12)]
            case _:
                out[at:at + chance.randint(0, 4)] = chance.randbytes(chance.randint(1, 9))
    return bytes(out)
