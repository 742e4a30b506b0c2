"""Frames that no client should send to the fast front: each gets the answer HTTP/2 has for it, and harms nobody."""

import socket
import ssl
import struct
import zlib
from collections.abc import Iterator

import pytest

pytest.importorskip("takhin.rpc.fast.connection", reason="the fast front is not built")

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
from tests import fronts
from tests.broker_process import DEADLINE_S, BrokerProcess, create_topic, produce
from tests.hostile import (
    BOMB,
    CONSUME,
    GET,
    INITIAL_WINDOW_SIZE,
    MAX_WINDOW,
    PADDED,
    PRIORITY,
    PRODUCE,
    PRODUCE_STREAM,
    TOPIC,
    UNKNOWN,
    Burst,
    calls,
    hpack_bomb,
    preface,
    priorities,
    resets,
    setting,
    trailers_bomb,
    window_sizes,
)
from tests.rpc.test_limits import in_the_clear
from tests.secured import Secured

pytestmark = in_the_clear
PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR = 1, 3, 5, 6
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11
FIELDS = http2.call_headers(PRODUCE)
OPEN = http2.open_call(1, FIELDS)
HEALTH = "/grpc.health.v1.Health/Check"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    started = BrokerProcess(
        tmp_path_factory.mktemp("broker"), "--grpc-min-ping-interval-ms", "60000", front=fronts.FAST)
    started.start()
    create_topic(started.stub(), TOPIC)
    yield started
    started.check()
    started.terminate()


@pytest.fixture(autouse=True)
def goes_on(broker: BrokerProcess) -> Iterator[None]:
    """A neighbour's connection stays, and its calls succeed before and after."""
    produce(broker.stub(), TOPIC, b"before")
    yield
    produce(broker.stub(), TOPIC, b"after")
    broker.check()


def goodbye(connection: http2.Connection) -> tuple[int, bytes]:
    """Code and reason of the GOAWAY that comes, after which the connection ends."""
    got = connection.read_until(GOAWAY)
    assert got is not None, "the connection ended without a GOAWAY"
    last = got
    while (more := connection.read_frame()) is not None:
        last = more if more.kind == GOAWAY else last
    return struct.unpack(">I", got.payload[4:8])[0], got.payload[8:]


def health_check(connection: http2.Connection, stream: int) -> None:
    """A call on the same connection is answered."""
    connection.send(http2.open_call(stream, http2.call_headers(HEALTH)) + http2.message(stream, b"", ends=True))
    got = connection.read_until(DATA, stream)
    assert got is not None and got.payload[:1] == b"\0"


@pytest.mark.parametrize(("data", "code"), [
    (frame(DATA, 0, 1, b"x"), PROTOCOL_ERROR),
    (frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR),
    (frame(HEADERS, END_HEADERS, 0, FIELDS), PROTOCOL_ERROR),
    (frame(HEADERS, END_HEADERS, 2, FIELDS), PROTOCOL_ERROR),
    (frame(CONTINUATION, END_HEADERS, 1, FIELDS), PROTOCOL_ERROR),
    (frame(HEADERS, 0, 1, FIELDS) + frame(PING, 0, 0, bytes(8)), PROTOCOL_ERROR),
    (frame(HEADERS, 0, 1, FIELDS) + frame(CONTINUATION, END_HEADERS, 3, b""), PROTOCOL_ERROR),
    (frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff"), COMPRESSION_ERROR),
    (frame(HEADERS, END_HEADERS, 1, b"\xbf"), COMPRESSION_ERROR),
    (frame(HEADERS, END_HEADERS, 1, FIELDS[:-3]), COMPRESSION_ERROR),
    (frame(HEADERS, END_HEADERS, 1, b"\x3f\xff\xff\xff\x0f" + FIELDS), COMPRESSION_ERROR),
    (frame(HEADERS, END_HEADERS | PADDED, 1, b"\xff" + FIELDS), PROTOCOL_ERROR),
    (OPEN + frame(DATA, PADDED, 1, b"\x09\0"), PROTOCOL_ERROR),
    (OPEN + frame(DATA, PADDED, 1, b""), PROTOCOL_ERROR),
    (OPEN + b"\x01\x00\x00\x00\x00\x00\x00\x00\x01", FRAME_SIZE_ERROR),
    (frame(PING, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
    (frame(PING, 0, 1, bytes(8)), PROTOCOL_ERROR),
    (frame(SETTINGS, 0, 0, bytes(5)), FRAME_SIZE_ERROR),
    (frame(SETTINGS, ACK, 0, bytes(6)), FRAME_SIZE_ERROR),
    (frame(SETTINGS, 0, 1, b""), PROTOCOL_ERROR),
    (frame(SETTINGS, 0, 0, setting(INITIAL_WINDOW_SIZE, MAX_WINDOW + 1)), FLOW_CONTROL_ERROR),
    (frame(SETTINGS, 0, 0, setting(5, 1)), PROTOCOL_ERROR),
    (frame(WINDOW_UPDATE, 0, 0, bytes(4)), PROTOCOL_ERROR),
    (frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", MAX_WINDOW)), FLOW_CONTROL_ERROR),
    (frame(WINDOW_UPDATE, 0, 0, bytes(3)), FRAME_SIZE_ERROR),
    (frame(WINDOW_UPDATE, 0, 7, b"\0\0\0\1"), PROTOCOL_ERROR),
    (frame(RST_STREAM, 0, 1, bytes(4)), PROTOCOL_ERROR),
    (OPEN + frame(RST_STREAM, 0, 1, bytes(3)), FRAME_SIZE_ERROR),
    (OPEN + frame(PRIORITY, 0, 1, bytes(4)), FRAME_SIZE_ERROR),
    (frame(5, END_HEADERS, 1, bytes(4) + FIELDS), PROTOCOL_ERROR),
    (frame(GOAWAY, 0, 1, bytes(8)), PROTOCOL_ERROR),
    (frame(PING, 0, 0, bytes(8)), PROTOCOL_ERROR),
], ids=[
    "DATA of an idle stream", "DATA of stream 0", "HEADERS of stream 0", "HEADERS of an even stream",
    "CONTINUATION without HEADERS", "PING within HEADERS", "CONTINUATION of another stream",
    "an endless number", "an index beyond the table", "half a header", "a table too large", "HEADERS padded beyond",
    "DATA padded beyond", "DATA without its padding", "a frame too large", "a short PING", "PING of a stream",
    "half a setting", "SETTINGS acknowledged with some", "SETTINGS of a stream", "a window too large",
    "a frame size too small", "a window enlarged by nothing", "a window beyond the largest", "a short WINDOW_UPDATE",
    "WINDOW_UPDATE of an idle stream", "reset of an idle stream", "a short reset", "a short PRIORITY",
    "PUSH_PROMISE of a client", "GOAWAY of a stream", "PING before SETTINGS"])
def test_bad_frames_end_the_connection_and_say_why(broker: BrokerProcess, data: bytes, code: int) -> None:
    is_first = data == frame(PING, 0, 0, bytes(8))
    with http2.Connection(broker.address, preface=http2.PREFACE if is_first else preface()) as connection:
        connection.send(data)
        assert goodbye(connection)[0] == code


def status_of(connection: http2.Connection, stream: int = 1) -> bytes:
    """The trailers of a call, as a block of headers."""
    got = connection.read_until(HEADERS, stream)
    assert got is not None and got.flags & END_STREAM
    return got.payload


@pytest.mark.parametrize("data", [
    http2.frame(DATA, END_STREAM, 1, b""),
    frame(DATA, END_STREAM, 1, b"\0\0\0"),
    frame(DATA, END_STREAM, 1, struct.pack(">BI", 0, 100) + b"x"),
    frame(DATA, END_STREAM, 1, struct.pack(">BI", 0, (1 << 32) - 1) + b"x"),
    frame(DATA, 0, 1, struct.pack(">BI", 0, (1 << 32) - 1)),
    frame(DATA, END_STREAM, 1, struct.pack(">BI", 0, 3) + b"xxxyyy"),
    frame(DATA, END_STREAM, 1, struct.pack(">BI", 1, 3) + b"xxx"),
    frame(DATA, END_STREAM, 1, struct.pack(">BI", 255, 3) + b"xxx"),
    frame(DATA, END_STREAM, 1, 2 * (struct.pack(">BI", 0, 1) + b"\xff")),
    frame(DATA, END_STREAM, 1, struct.pack(">BI", 0, 1) + b"\xff"),
], ids=[
    "no message", "half a prefix", "a length that lies", "the greatest length", "the greatest length, no end",
    "more than a message", "compressed, not said how", "a flag that there is not", "two messages", "no protobuf"])
def test_bad_messages_end_the_call_alone(broker: BrokerProcess, data: bytes) -> None:
    with http2.Connection(broker.address) as connection:
        connection.send(OPEN + data)
        assert status_of(connection)
        health_check(connection, 3)


@pytest.mark.parametrize("body", [BOMB[:5000], b"noise", b"", zlib.compress(bytes(11 << 20), 9), BOMB + b"more"],
                         ids=["half", "noise", "nothing", "too large", "more after the end"])
@pytest.mark.parametrize("path", [PRODUCE, PRODUCE_STREAM, CONSUME])
def test_bad_compression_ends_the_call_alone(broker: BrokerProcess, path: str, body: bytes) -> None:
    with http2.Connection(broker.address) as connection:
        connection.send(
            http2.open_call(1, http2.call_headers(path, ("grpc-encoding", "deflate")))
            + frame(DATA, END_STREAM, 1, struct.pack(">BI", 1, len(body)) + body))
        got = connection.read_frame()
        while got is not None and not (got.stream == 1 and got.flags & END_STREAM):
            got = connection.read_frame()
        assert got is not None and got.kind == HEADERS
        health_check(connection, 3)


def test_a_stream_of_bombs_is_no_larger_than_one(broker: BrokerProcess) -> None:
    """They wait as they came: nobody reads more than one of them at once."""
    before = broker.rss_anon_bytes()
    with http2.Connection(broker.address) as connection:
        connection.send(http2.open_call(1, http2.call_headers(
            "/takhin.v1.TakhinService/Subscribe", ("grpc-encoding", "deflate"))))
        for _ in range(60):
            connection.send(frame(DATA, 0, 1, struct.pack(">BI", 1, len(BOMB)) + BOMB))
        health_check(connection, 3)
        assert broker.rss_anon_bytes() - before < 200 << 20


@pytest.mark.parametrize(("burst", "count", "reason"), [
    (resets(CONSUME), 100, b"too_many_resets"),
    (resets(PRODUCE), 100, b"too_many_resets"),
    (lambda connection: frame(PING, 0, 0, bytes(8)) * 5, 1, b"too_many_pings"),
    (lambda connection: frame(SETTINGS) * 20, 100, b"too_many_frames"),
    (lambda connection: frame(PING, ACK, 0, bytes(8)) * 200, 100, b"too_many_frames"),
    (priorities, 250, b"too_many_frames"),
    (lambda connection: frame(HEADERS, 0, connection.next_stream(), FIELDS) + frame(
        CONTINUATION, 0, connection.last_stream, b"") * 20, 1, b"too_many_continuations"),
    (hpack_bomb, 20, b"too_many_frames"),
    (trailers_bomb, 20, b"too_many_frames"),
], ids=["resets of readers", "resets of calls", "PING", "SETTINGS", "PING acknowledged", "PRIORITY", "CONTINUATION",
        "HPACK bombs", "HPACK bombs in trailers"])
def test_floods_end_the_connection_and_say_why(
    broker: BrokerProcess, burst: Burst, count: int, reason: bytes
) -> None:
    with http2.Connection(broker.address) as connection:
        for _ in range(count):
            try:
                connection.send(burst(connection))
            except ConnectionError:
                break
        assert goodbye(connection) == (ENHANCE_YOUR_CALM, reason)


def test_who_is_refused_at_once_gets_settings_first(broker: BrokerProcess) -> None:
    """As every client of HTTP/2 expects it, whatever comes then."""
    with http2.Connection(broker.address, preface=b"") as connection:
        endless = frame(CONTINUATION, 0, 1, b"") * 20
        connection.send(preface() + frame(HEADERS, 0, 1, FIELDS) + endless)
        first = connection.read_frame()
        assert first is not None and (first.kind, first.flags) == (SETTINGS, 0)
        assert goodbye(connection) == (ENHANCE_YOUR_CALM, b"too_many_continuations")


def test_too_large_headers_are_refused_and_far_larger_ones_not_read(broker: BrokerProcess) -> None:
    with http2.Connection(broker.address) as connection:
        number = connection.next_stream()
        connection.send(frame(HEADERS, END_HEADERS, number, FIELDS + http2.header_block([("large", "v" * 16_200)])))
        assert status_of(connection, number)
        connection.send(hpack_bomb(connection))
        got = connection.read_until(RST_STREAM, connection.last_stream)
        assert got is not None and struct.unpack(">I", got.payload) == (ENHANCE_YOUR_CALM,)
        health_check(connection, connection.next_stream())


def test_http1_is_told_what_is_spoken_here(broker: BrokerProcess) -> None:
    host, _, port = broker.address.rpartition(":")
    for request in GET, b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n" + bytes(100_000):
        with socket.create_connection((host, int(port)), DEADLINE_S) as client:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            received = b""
            while more := client.recv(1 << 16):
                received += more
        assert received.startswith(b"HTTP/1.1 400 ") and b"gRPC" in received


@pytest.mark.parametrize("protocols", [None, ["http/1.1"]])
def test_tls_for_another_protocol_is_hung_up_on(
    tmp_path_factory: pytest.TempPathFactory, protocols: list[str] | None
) -> None:
    directory = tmp_path_factory.mktemp("tls")
    secured = BrokerProcess(directory / "broker", secured=Secured(directory / "tls"), front=fronts.FAST)
    secured.start()
    context = ssl.create_default_context(cadata=secured.secured.authority.pem.decode())  # type: ignore[union-attr]
    if protocols:
        context.set_alpn_protocols(protocols)
    host, _, port = secured.address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), DEADLINE_S) as plain:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                with context.wrap_socket(plain, server_hostname="localhost") as client:
                    client.sendall(GET)
                    if not client.recv(1):
                        raise ConnectionResetError
        with http2.Connection(secured.address) as connection:
            assert connection.read_until(SETTINGS) is None, "HTTP/2 without TLS"
        create_topic(secured.stub(), TOPIC)
        assert produce(secured.stub(), TOPIC, b"x").offset == 0
        secured.check()
    finally:
        secured.close()


# Ordinary clients, who look a bit like the others


def test_a_thousand_calls_at_once_are_all_answered(broker: BrokerProcess) -> None:
    """In one write, more than is looked at in one turn."""
    for path, body in (HEALTH, b""), (UNKNOWN, b""), (PRODUCE, b"\xff"):
        with http2.Connection(broker.address) as connection:
            connection.read_until(SETTINGS)
            connection.send(calls(path, body, 1000)(connection))
            answered: set[int] = set()
            while len(answered) < 1000:
                got = connection.read_frame()
                assert got is not None and got.kind != GOAWAY, got
                # One may be answered before its message is looked at, which then nobody wants.
                assert got.kind != RST_STREAM or got.payload == bytes(4), got
                if got.kind == HEADERS and got.flags & END_STREAM:
                    answered.add(got.stream)


@pytest.mark.parametrize("fields", [
    http2.call_headers(UNKNOWN), http2.call_headers(PRODUCE, ("grpc-encoding", "snappy")),
    http2.call_headers(PRODUCE).replace(b"application/grpc", b"application/json"),
    http2.call_headers(PRODUCE, ("grpc-timeout", "0S")), http2.call_headers(PRODUCE, ("a-bin", "!"))],
    ids=["no such method", "no such encoding", "no gRPC", "too late", "bad metadata"])
def test_whoever_is_refused_and_told_so_stays(broker: BrokerProcess, fields: bytes) -> None:
    """A client that is newer than the broker, say: 8,000 calls, each answered."""
    with http2.Connection(broker.address) as connection:
        connection.read_until(SETTINGS)
        for _ in range(16):
            numbers = [connection.next_stream() for _ in range(500)]
            connection.send(b"".join(
                http2.open_call(number, fields) + http2.message(number, b"", ends=True) for number in numbers))
            for _ in numbers:
                got = connection.read_until(HEADERS)
                assert got is not None and got.flags & END_STREAM, "the connection has ended"
        health_check(connection, connection.next_stream())


def test_whoever_cancels_as_much_as_he_is_answered_stays(broker: BrokerProcess) -> None:
    with http2.Connection(broker.address) as connection:
        connection.read_until(SETTINGS)
        for _ in range(60):
            connection.send(resets(CONSUME)(connection) + calls(HEALTH, b"")(connection))
            last = connection.last_stream
            got = connection.read_until(HEADERS, last)
            assert got is not None
        health_check(connection, connection.next_stream())


def test_whoever_only_reads_may_go_on_for_ever(broker: BrokerProcess) -> None:
    """Updates of windows are all that is ever sent by him: here more than 10,000."""
    for _ in range(4):
        produce(broker.stub(), TOPIC, *[bytes(1000)] * 1000)
    request = b"\x0a" + bytes([len(TOPIC)]) + TOPIC.encode() + b"\x18\x00"
    with http2.Connection(broker.address, preface=preface(setting(INITIAL_WINDOW_SIZE, 200))) as connection:
        connection.send(http2.open_call(1, http2.call_headers(CONSUME)) + http2.message(1, request, ends=True))
        for _ in range(11_000):
            got = connection.read_until(DATA, 1)
            assert got is not None, "the connection has ended"
            connection.send(frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", len(got.payload))))
        health_check(connection, 3)
