"""Readers that take nothing: what they cost the broker is bounded, and who reads beside them goes on."""

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from takhin.v1 import takhin_pb2 as pb
from takhin.v1 import takhin_pb2_grpc
from tests.broker_process import (
    MIB,
    BrokerProcess,
    Stub,
    consume,
    new_topic,
    produce,
    raw_consume,
    read,
    take_apart,
    values,
    wait_until,
)
from tests.conftest import StartBroker

STALLED = 200
CHANNELS = 8
# limits.reader_bytes, its default.
BUDGET_BYTES = 64 * MIB
# A client that takes no more than it reads: HTTP/2's smallest windows, and no guessing at larger ones.
NARROW = {"http2__lookahead_bytes": 65_535, "http2__bdp_probe": 0}


def fill(stub: Stub, topic: str, megabytes: int, record_bytes: int) -> None:
    """So many batches of about 1 MiB."""
    for number in range(megabytes):
        produce(stub, topic, *[bytes([number % 256]) * (record_bytes - 40)] * (MIB // record_bytes), acks=1)


@contextmanager
def stalled(broker: BrokerProcess, topic: str, count: int, **fields: int) -> Iterator[list[grpc.Call]]:
    """So many streams that are never read from, over several connections."""
    channels = [broker.channel(**NARROW) for _ in range(CHANNELS)]
    calls = [raw_consume(channels[number % CHANNELS], topic, **fields) for number in range(count)]
    yield calls
    for call in calls:
        call.cancel()
    for channel in channels:
        channel.close()


def resuming(stub: Stub, topic: str, pause_s: float = 0) -> list[pb.Record]:
    """Read to the end as a client does that goes on at its next offset when the broker has no room for it."""
    found: list[pb.Record] = []
    while True:
        try:
            for response in consume(stub, topic, offset=len(found), until_end=True):
                assert not response.records or response.records[0].offset == len(found)
                found += response.records
                time.sleep(pause_s)
            return found
        except grpc.RpcError as exc:
            # Another call on the same connection was cut off.
            assert exc.code() is grpc.StatusCode.UNAVAILABLE
            time.sleep(0.1)


@dataclass
class Watch:
    """The broker's anonymous memory over a time, and how long records took from a producer to a reader beside it."""

    before_bytes: int
    peak_bytes: int = 0
    delays_s: list[float] = field(default_factory=list)

    @property
    def grown_bytes(self) -> int:
        return self.peak_bytes - self.before_bytes

    def told(self) -> str:
        delays_ms = sorted(delay * 1000 for delay in self.delays_s)
        return (
            f"RssAnon {self.before_bytes / MIB:.1f} MiB before, {self.peak_bytes / MIB:.1f} at its peak; "
            f"{len(delays_ms)} records from producer to reader in {statistics.median(delays_ms):.1f} ms at the median, "
            f"{delays_ms[-1]:.1f} at most")


def watch(
    broker: BrokerProcess, stub: Stub, follower: grpc.Call, topic: str, watched: Watch, duration_s: float
) -> None:
    """Produce to `topic` one record after the other, each read by `follower`, and look at the memory."""
    until_s = time.monotonic() + duration_s
    while time.monotonic() < until_s:
        begun_s = time.monotonic()
        value = b"%d " % len(watched.delays_s) + b"x" * 1000
        produce(stub, topic, value)
        assert values(next(follower).records) == [value]
        watched.delays_s.append(time.monotonic() - begun_s)
        watched.peak_bytes = max(watched.peak_bytes, broker.rss_anon_bytes())
        time.sleep(0.005)


@pytest.mark.parametrize("record_bytes", [1024, MIB], ids=["1 KiB records", "1 MiB records"])
def test_200_stalled_readers(
    start_broker: StartBroker, record_bytes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    broker = start_broker("--limits-slow-reader-ms", "2000")
    stub = broker.stub()
    topic, beside = new_topic(stub), new_topic(stub)
    fill(stub, topic, 80, record_bytes)
    # What reading costs anyway is there before: rings, buffers, the allocator's own.
    assert len(read(stub, topic, max_bytes=MIB)) == 80 * (MIB // record_bytes)
    follower = consume(stub, beside, offset=-2, max_wait_ms=60_000)
    watched = Watch(broker.rss_anon_bytes())
    with stalled(broker, topic, STALLED, max_bytes=MIB):
        # For less than limits.slow_reader_ms: all of them are there all the time.
        watch(broker, stub, follower, beside, watched, 1.6)
        with capsys.disabled():
            print(f"\n{STALLED} stalled readers of {record_bytes} B records: {watched.told()}")
        assert watched.grown_bytes <= BUDGET_BYTES
        # Nobody waits for the stalled ones: what takes long by chance, on a busy machine, is seldom.
        assert statistics.quantiles(watched.delays_s, n=20)[-1] < 1
        # One that begins only now, and reads the very same log, gets it all: the others took nothing for so long.
        begun_s = time.monotonic()
        assert len(resuming(broker.stub(), topic)) == 80 * (MIB // record_bytes)
        took_s = time.monotonic() - begun_s
        with capsys.disabled():
            print(f"a reader that begins beside them reads 80 MiB in {took_s:.1f} s")
        assert took_s < 20
    follower.cancel()


def test_slow_readers_miss_nothing_while_memory_is_short(start_broker: StartBroker) -> None:
    """A budget of 1 MiB, used up by readers that take nothing: responses shrink and wait, and are right all the same.

    Who pauses for long may be cut off with them, and goes on at its next offset.
    """
    broker = start_broker("--limits-reader-bytes", str(MIB), "--limits-slow-reader-ms", "200")
    stub = broker.stub()
    topic = new_topic(stub)
    fill(stub, topic, 3, 10_000)
    # Batches of their own, and records larger than a small response.
    for size in 200_000, 1, 50_000, 100:
        produce(stub, topic, b"x" * size, b"y" * size)
    expected = read(stub, topic)
    seen: list[list[pb.Record]] = []

    def take(pause_s: float) -> None:
        seen.append(resuming(takhin_pb2_grpc.TakhinServiceStub(broker.channel(**NARROW)), topic, pause_s))

    readers = [threading.Thread(target=take, args=(pause_s,)) for pause_s in (0, 0, 0.002, 0.01)]
    with stalled(broker, topic, 10, max_bytes=MIB):
        time.sleep(0.5)
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
    assert len(seen) == len(readers)
    for found in seen:
        assert found == expected


def test_a_reader_that_takes_nothing_is_cut_off(start_broker: StartBroker) -> None:
    """Its call fails with a code that says to come again, and the broker's log says why."""
    broker = start_broker("--limits-reader-bytes", str(MIB), "--limits-slow-reader-ms", "50")
    stub = broker.stub()
    topic = new_topic(stub)
    fill(stub, topic, 8, MIB)
    with stalled(broker, topic, 40, max_bytes=MIB) as calls:
        for call in wait_until(lambda: [call for call in calls if call.done()]):
            with pytest.raises(grpc.RpcError) as refusal:
                for _ in call:
                    pass
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "takes nothing while others wait for memory" in broker.stderr
    assert produce(stub, topic, b"after", acks=-1).error == ""
    assert values(read(stub, topic, offset=8)) == [b"after"]


@pytest.mark.one_front("grpc", "the fast front resets one stream on a Unix socket, as on any")
def test_readers_that_take_nothing_on_a_unix_socket_hold_nobody_up(tmp_path: Path, start_broker: StartBroker) -> None:
    """No connection of theirs can be told from others: all are ended, once, and whoever reads comes again."""
    broker = start_broker("--limits-slow-reader-ms", "500", listen=f"unix:{tmp_path}/socket")
    stub = broker.stub()
    topic = new_topic(stub)
    for number in range(80):
        produce(stub, topic, bytes([number]) * 900_000, acks=1)
    with stalled(broker, topic, 60) as calls:
        time.sleep(1)
        found = resuming(takhin_pb2_grpc.TakhinServiceStub(broker.channel()), topic)
        assert [record.value[0] for record in found] == list(range(80))
        for call in calls:
            wait_until(call.done)
            assert call.code() is grpc.StatusCode.UNAVAILABLE
    assert "the reader at a Unix socket of " in broker.stderr
    assert f"connections of unix:{tmp_path}/socket are ended" in broker.stderr
    # One line for each reader at most, and for the 8 connections together.
    assert broker.stderr.count("takes nothing while others wait for memory") <= 60
    assert broker.stderr.count(" connections of unix:") <= 3
    assert produce(stub, topic, b"after", acks=-1).offset == 80


def test_a_reader_that_takes_nothing_keeps_its_stream_while_nobody_waits(start_broker: StartBroker) -> None:
    broker = start_broker("--limits-slow-reader-ms", "100")
    stub = broker.stub()
    topic = new_topic(stub)
    fill(stub, topic, 8, MIB)
    with stalled(broker, topic, 3, max_bytes=MIB) as calls:
        time.sleep(1)
        for call in calls:
            found = [take_apart(next(call)).message for _ in range(8)]
            assert [message.records[0].offset for message in found] == list(range(8))
    assert "takes nothing" not in broker.stderr
