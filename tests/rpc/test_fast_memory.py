"""What clients of the fast front make it hold: requests that do not come whole, messages that wait, answers that are
not taken. Each is bounded, and gives its room back."""

import struct
import time
import zlib

import grpc
import hpack
import pytest
from grpc_reflection.v1alpha import reflection_pb2

pytest.importorskip("takhin.rpc.fast.connection", reason="the fast front is not built")

from bench import http2
from bench.http2 import DATA, HEADERS, PING, SETTINGS, frame
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import MIB, Stub, create_topic, produce, read, wait_until
from tests.conftest import StartBroker
from tests.hostile import NO_WINDOW, PRODUCE, PRODUCE_STREAM, SERVICE
from tests.rpc.test_limits import in_the_clear, refusals

pytestmark = in_the_clear
PIECE = bytes(16384)
SYMBOL = reflection_pb2.ServerReflectionRequest(
    file_containing_symbol="takhin.v1.TakhinService").SerializeToString()
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


def statuses(connection: http2.Connection, count: int) -> list[str]:
    """grpc-status of the next calls that end."""
    decoder, found = hpack.Decoder(), []
    while len(found) < count:
        got = connection.read_frame()
        assert got is not None, "the connection has ended"
        if got.kind == HEADERS:
            fields = dict(decoder.decode(got.payload))
            if got.flags & http2.END_STREAM:
                found.append(fields["grpc-status"])
    return found


def begin_requests(connection: http2.Connection, path: str, count: int, size_bytes: int) -> None:
    """Calls whose message of 10 MiB has come that far."""
    assert connection.read_until(SETTINGS)
    for _ in range(count):
        number = connection.next_stream()
        connection.send(http2.open_call(number, http2.call_headers(path)) + frame(
            DATA, 0, number, struct.pack(">BI", 0, 10 * MIB)) + frame(DATA, 0, number, PIECE) * (size_bytes // 16384))


def is_there(connection: http2.Connection) -> None:
    """All that was sent has been looked at, and no stream has ended meanwhile."""
    connection.send(frame(PING, 0, 0, bytes(8)))
    while True:
        got = connection.read_frame()
        assert got is not None and not (got.kind == HEADERS and got.flags & http2.END_STREAM), got
        if got.kind == PING:
            return


@pytest.mark.parametrize("path", [PRODUCE, PRODUCE_STREAM, SERVICE + "ListTopics", SERVICE + "Subscribe"])
def test_requests_that_do_not_come_whole_are_bounded(start_broker: StartBroker, path: str) -> None:
    broker = start_broker("--limits-call-bytes", str(4 * MIB), "--metrics-listen", "127.0.0.1:0")
    create_topic(broker.stub(), "t")
    with http2.Connection(broker.address, 15) as connection:
        # Buffers double: of a message of which 900 KiB have come it may have nearly 2 MiB.
        begin_requests(connection, path, 12, 900 * 1024)
        assert statuses(connection, 8) == 8 * ["8"]
        # Who comes in one piece needs no buffer.
        assert produce(broker.stub(), "t", b"x").offset == 0
        with pytest.raises(grpc.RpcError) as refused:
            produce(broker.stub(), "t", *8 * [bytes(700_000)])
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "limits.call_bytes" in (refused.value.details() or "")
    # They are gone with their connection.
    assert wait_until(lambda: takes_large(broker.stub()))
    assert refusals(broker, "call_bytes") > 0
    broker.check()


def takes_large(stub: Stub) -> bool:
    try:
        return produce(stub, "t", *3 * [bytes(700_000)]).error == ""
    except grpc.RpcError as refused:
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        return False


def test_requests_that_take_long_to_come_whole_make_room(start_broker: StartBroker) -> None:
    broker = start_broker("--limits-call-bytes", str(4 * MIB), "--limits-request-arrival-ms", "300")
    create_topic(broker.stub(), "t")
    with http2.Connection(broker.address, 15) as connection:
        begin_requests(connection, PRODUCE_STREAM, 2, 900 * 1024)
        assert statuses(connection, 2) == ["4", "4"]
        assert takes_large(broker.stub())
        is_there(connection)
    broker.check()


def test_a_request_that_comes_slowly_has_time_while_there_is_room(start_broker: StartBroker) -> None:
    broker = start_broker("--limits-request-arrival-ms", "50")
    create_topic(broker.stub(), "t")
    request = pb.ProduceMessageRequest(topic="t", record=pb.Record(value=bytes(100_000))).SerializeToString()
    message = struct.pack(">BI", 0, len(request)) + request
    with http2.Connection(broker.address, 15) as connection:
        number = connection.next_stream()
        connection.send(http2.open_call(number, http2.call_headers(PRODUCE)))
        for at in range(0, len(message), 10_000):
            connection.send(frame(DATA, 0, number, message[at:at + 10_000]))
            time.sleep(0.05)
        connection.send(frame(DATA, http2.END_STREAM, number, b""))
        assert statuses(connection, 1) == ["0"]
    broker.check()


@pytest.mark.parametrize("flag", [0, 1])
@pytest.mark.parametrize(("path", "first"), [(PRODUCE_STREAM, 2000 * [b"\xff\xff"]), (REFLECTION, 8 * [SYMBOL])])
def test_small_messages_that_wait_take_about_what_they_took_on_the_wire(
    start_broker: StartBroker, path: str, first: list[bytes], flag: int
) -> None:
    """On streams whose answers are not taken: of each a window's worth waits, 140,000 messages."""
    broker = start_broker()
    before = broker.rss_anon_bytes()
    with http2.Connection(broker.address, timeout_s=15, preface=NO_WINDOW) as connection:
        assert connection.read_until(SETTINGS)
        numbers = [connection.next_stream() for _ in range(12)]
        # Until as many answers wait as are made: no more is read then.
        several = b"".join(struct.pack(">BI", 0, len(each)) + each for each in first)
        connection.send(b"".join(
            http2.open_call(number, http2.call_headers(path, ("grpc-encoding", "deflate"))) + frame(
                DATA, 0, number, several) for number in numbers))
        is_there(connection)
        piece = (struct.pack(">BI", flag, 2) + b"\xff\xff") * 2340
        for _ in range(60):
            connection.send(b"".join(frame(DATA, 0, number, piece) for number in numbers))
        is_there(connection)
        sent = 12 * (len(several) + 60 * len(piece))
        assert broker.rss_anon_bytes() - before < 2.5 * sent + 8 * MIB
    broker.check()


def test_what_waits_packed_is_answered_in_its_order(start_broker: StartBroker) -> None:
    """Small and large, compressed and not, a thousand of each, all before the first answer is taken."""
    broker = start_broker("--limits-stream-requests-in-flight", "4")
    create_topic(broker.stub(), "t", 1)
    sent, out = [], []
    for number in range(1000):
        for value in b"small %d" % number, b"large %d" % number + bytes(1500 if number % 10 == 0 else 0):
            request = pb.ProduceMessageRequest(
                topic="t", required_acks=1, record=pb.Record(value=value)).SerializeToString()
            is_compressed = number % 3 == 0
            body = zlib.compress(request) if is_compressed else request
            out.append(struct.pack(">BI", is_compressed, len(body)) + body)
            sent.append(value)
    data = b"".join(out)
    assert len(data) < MIB
    with http2.Connection(broker.address, timeout_s=15, preface=NO_WINDOW) as connection:
        assert connection.read_until(SETTINGS)
        fields = http2.call_headers(PRODUCE_STREAM, ("grpc-encoding", "deflate"))
        connection.send(http2.open_call(1, fields) + b"".join(
            frame(DATA, 0, 1, data[at:at + 16384]) for at in range(0, len(data), 16384)) + frame(DATA, 1, 1, b""))
        is_there(connection)
        connection.send(frame(http2.WINDOW_UPDATE, 0, 1, struct.pack(">I", 10 * MIB)))
        received = b""
        while (got := connection.read_frame()) is not None and not (got.kind == HEADERS and got.flags & 1):
            received += got.payload if got.kind == DATA else b""
    offsets = []
    while received:
        size = int.from_bytes(received[1:5], "big")
        answer = pb.ProduceMessageResponse.FromString(received[5:5 + size])
        assert answer.error == ""
        offsets.append(answer.offset)
        received = received[5 + size:]
    assert offsets == list(range(2000))
    assert [record.value for record in read(broker.stub(), "t")] == sent


def test_answers_that_are_not_taken_are_bounded(start_broker: StartBroker) -> None:
    """By their bytes: further calls are refused until they are taken, or given up."""
    broker = start_broker("--limits-call-bytes", str(MIB), "--limits-request-arrival-ms", "2000")
    stub = broker.stub()
    create_topic(stub, "t")
    for number in range(200):
        create_topic(stub, f"{number:03}" + "x" * 200)
    answer_bytes = stub.ListTopics(pb.ListTopicsRequest()).ByteSize()
    assert answer_bytes > 40_000
    with http2.Connection(broker.address, timeout_s=15, preface=NO_WINDOW) as connection:
        assert connection.read_until(SETTINGS)
        for _ in range(100):
            number = connection.next_stream()
            connection.send(http2.open_call(number, http2.call_headers(SERVICE + "ListTopics")) + http2.message(
                number, b"", ends=True))
        # Some have an answer that they do not take; those after them have a status alone.
        refused = 100 - MIB // answer_bytes - 1
        assert statuses(connection, refused) == refused * ["8"]
        # Produce goes on: its answers are small.
        assert produce(stub, "t", b"x").offset == 0
        assert wait_until(lambda: lists(stub))
        is_there(connection)
    broker.check()


def lists(stub: Stub) -> bool:
    try:
        return bool(stub.ListTopics(pb.ListTopicsRequest()).topics)
    except grpc.RpcError as refused:
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        return False
