"""The fast front and clients that take nothing of what they asked for, and answers that come due within an append."""

import asyncio
import socket
import struct
import time

import pytest

pytest.importorskip("takhin.rpc.fast.connection", reason="the fast front is not built")

from bench import http2
from bench.http2 import DATA, HEADERS, SETTINGS, WINDOW_UPDATE, frame
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import DEADLINE_S, MIB, SERVICE, BrokerProcess, create_topic, produce, wait_until
from tests.conftest import StartBroker
from tests.front import Run, path, server_stream, serving
from tests.rpc.test_limits import in_the_clear, used

pytestmark = in_the_clear
LARGEST = (1 << 31) - 1
INITIAL_WINDOW_SIZE = 4


def asks(address: str, method: str, request: bytes, streams: int) -> socket.socket:
    """A connection with so many streams, whose windows are as large as can be, and which reads nothing."""
    host, _, port = address.rpartition(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    client.settimeout(DEADLINE_S)
    client.connect((host, int(port)))
    window = struct.pack(">HI", INITIAL_WINDOW_SIZE, LARGEST)
    sent = http2.PREFACE + frame(SETTINGS, 0, 0, window) + frame(SETTINGS, 1)
    sent += frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", LARGEST - 65535))
    for stream in range(1, 2 * streams, 2):
        sent += http2.open_call(stream, http2.call_headers(method)) + http2.message(stream, request, ends=True)
    client.sendall(sent)
    return client


def test_readers_of_a_connection_that_takes_nothing_leave_memory_to_others(start_broker: StartBroker) -> None:
    broker = start_broker("--limits-slow-reader-ms", "500")
    stub = broker.stub()
    create_topic(stub, "t", 1)
    for _ in range(40):
        produce(stub, "t", bytes(MIB - 4096))
    request = pb.ConsumeMessagesRequest(topic="t", offset=0, max_bytes=MIB)
    before = broker.rss_anon_bytes()
    with asks(broker.address, f"/{SERVICE}/ConsumeMessages", request.SerializeToString(), 60):
        time.sleep(1)
        reads = stub.ConsumeMessages(
            pb.ConsumeMessagesRequest(topic="t", offset=0, max_bytes=MIB, until_end=True), timeout=DEADLINE_S)
        assert sum(len(read.records) for read in reads) == 40
        assert broker.rss_anon_bytes() - before < 96 * MIB
    assert "is cut off" in broker.stderr


def test_who_takes_nothing_for_the_time_of_a_keepalive_is_gone(run: Run) -> None:
    """Though he says something every now and then."""
    written = 0

    async def endless(request: bytes, call: object) -> None:
        nonlocal written
        while True:
            await call.write(bytes(4 * MIB))  # type: ignore[attr-defined]
            written += 1

    async def go() -> None:
        loop = asyncio.get_running_loop()
        async with serving(server_stream(endless), keepalive_timeout_ms=300) as address:
            client = await asyncio.to_thread(asks, address, path("ServerStream"), b"", 20)
            until_s = loop.time() + DEADLINE_S
            with client, pytest.raises(OSError):
                while loop.time() < until_s:
                    client.sendall(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1)))
                    await asyncio.sleep(0.05)
        # Each stream had one message taken from it, before anything was known of the client.
        assert written <= 20

    run(go())


def test_a_connection_that_is_old_ends_though_it_takes_nothing(run: Run) -> None:
    ended = asyncio.Event()

    async def endless(request: bytes, call: object) -> None:
        try:
            while True:
                await call.write(bytes(4 * MIB))  # type: ignore[attr-defined]
        finally:
            ended.set()

    async def go() -> None:
        async with serving(server_stream(endless), connection_age_ms=200, connection_age_grace_ms=100) as address:
            client = await asyncio.to_thread(asks, address, path("ServerStream"), b"", 3)
            with client:
                await asyncio.wait_for(ended.wait(), DEADLINE_S)
                client.settimeout(DEADLINE_S)
                # To its end, or reset: either way the server is rid of it.
                try:
                    while await asyncio.to_thread(client.recv, MIB):
                        pass
                except ConnectionError:
                    pass

    run(go())


@pytest.mark.parametrize("acks", [0, 1, -1])
def test_an_append_that_writes_what_came_before_it_on_the_same_stream(start_broker: StartBroker, acks: int) -> None:
    """The last request begins a segment: answers to those before come due within its append, the stream is half
    closed, and nothing waits behind."""
    broker = start_broker("--limits-stream-requests-in-flight", "2")
    create_topic(broker.stub(), "t", 1, segment_bytes=1024)
    for _ in range(10):
        assert answers(broker, acks, 3 * [20] + [900]) == 4
    assert broker.running


def answers(broker: BrokerProcess, acks: int, sizes: list[int]) -> int:
    """Send records of these sizes on a stream, in one write; how many answers come until its end."""
    with http2.Connection(broker.address) as connection:
        assert connection.read_until(SETTINGS)
        stream = connection.next_stream()
        sent = http2.open_call(stream, http2.call_headers(f"/{SERVICE}/ProduceMessageStream"))
        for number, size in enumerate(sizes, 1):
            request = pb.ProduceMessageRequest(topic="t", required_acks=acks, record=pb.Record(value=bytes(size)))
            sent += http2.message(stream, request.SerializeToString(), ends=number == len(sizes))
        connection.send(sent)
        received = b""
        while (got := connection.read_frame()) is not None:
            if got.stream == stream and got.kind == DATA:
                received += got.payload
            if got.stream == stream and got.kind == HEADERS and got.flags & http2.END_STREAM:
                break
    count = 0
    while received:
        size = int.from_bytes(received[1:5], "big")
        answer = pb.ProduceMessageResponse.FromString(received[5:5 + size])
        assert not answer.error, answer
        received = received[5 + size:]
        count += 1
    return count


def test_the_bytes_of_a_stream_are_given_back(start_broker: StartBroker) -> None:
    broker = start_broker("--metrics-listen", "127.0.0.1:0", "--limits-stream-requests-in-flight", "2")
    create_topic(broker.stub(), "t", 1, segment_bytes=1024)
    assert answers(broker, -1, 5 * [400]) == 5
    wait_until(lambda: used(broker, "all_streams_bytes_in_flight") == 0)
