"""Offsets by time, by stock stubs on a real process: ConsumeMessages from a time on, GetPartitionOffsets of a time."""

import random

import grpc
import pytest

from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import (
    DEADLINE_S,
    BrokerProcess,
    Stub,
    consume,
    new_topic,
    produce,
    read,
    refused,
)
from tests.conftest import StartBroker

NOW_MS = 1_700_000_000_000
# Rings so small that only the newest records are in memory: the rest is read from segment files.
COLD = ("--limits-ring-bytes", "65536", "--limits-ring-bytes-per-partition", "4096")


def at_times(stub: Stub, topic: str, *timestamps: int) -> None:
    produce(stub, topic, *(pb.Record(value=b"v" * 50, timestamp=timestamp) for timestamp in timestamps))


def offsets_at(stub: Stub, topic: str, timestamp_ms: int) -> pb.GetPartitionOffsetsResponse:
    request = pb.GetPartitionOffsetsRequest(topic=topic, timestamp_ms=timestamp_ms)
    return stub.GetPartitionOffsets(request, timeout=DEADLINE_S)


def offset_at(stub: Stub, topic: str, timestamp_ms: int) -> int | None:
    response = offsets_at(stub, topic, timestamp_ms)
    return response.offset_for_time if response.HasField("offset_for_time") else None


def read_from(stub: Stub, topic: str, start_time_ms: int) -> list[int]:
    """The offsets of all records from the time on, up to the end."""
    return [record.offset for record in read(stub, topic, offset=0, start_time_ms=start_time_ms)]


def test_it_begins_at_the_first_record_of_the_time(stub: Stub, topic: str) -> None:
    at_times(stub, topic, 100, 300, 200)
    at_times(stub, topic, 50)
    at_times(stub, topic, 400, 10)
    for wanted, expected in ((-1, 0), (100, 0), (101, 1), (200, 1), (300, 1), (301, 4), (400, 4)):
        assert offset_at(stub, topic, wanted) == expected
        # From there on all of them come, also those of earlier times.
        assert read_from(stub, topic, wanted) == list(range(expected, 6))
    marks = offsets_at(stub, topic, 301)
    assert (marks.beginning_offset, marks.end_offset, marks.offset_for_time) == (0, 6, 4)
    assert offset_at(stub, topic, 401) is None


def test_time_0_is_a_time(stub: Stub, topic: str) -> None:
    """It is told from no time at all; so are negative ones."""
    at_times(stub, topic, -7, -3)
    for wanted, expected in ((-(2**63), 0), (-7, 0), (-6, 1), (-3, 1)):
        assert offset_at(stub, topic, wanted) == expected
        assert read_from(stub, topic, wanted) == list(range(expected, 2))
    assert offset_at(stub, topic, 0) is None and read_from(stub, topic, 0) == []
    at_times(stub, topic, 5)
    assert offset_at(stub, topic, 0) == 2 and read_from(stub, topic, 0) == [2]
    response = stub.GetPartitionOffsets(pb.GetPartitionOffsetsRequest(topic=topic), timeout=DEADLINE_S)
    assert not response.HasField("offset_for_time")


def test_a_time_that_is_yet_to_come(stub: Stub, topic: str) -> None:
    """The stream begins at the end, and goes on with whatever comes."""
    at_times(stub, topic, 100)
    (response,) = consume(stub, topic, offset=0, start_time_ms=10**15, until_end=True)
    assert (list(response.records), response.high_watermark, response.caught_up) == ([], 1, True)
    call = consume(stub, topic, offset=0, start_time_ms=10**15, max_wait_ms=50)
    assert not next(call).records
    at_times(stub, topic, 90)
    found = next(response for response in call if response.records)
    assert [(record.offset, record.timestamp) for record in found.records] == [(1, 90)]
    call.cancel()


def test_an_empty_partition(stub: Stub, topic: str) -> None:
    assert offset_at(stub, topic, 0) is None
    assert read_from(stub, topic, 0) == []


def test_the_brokers_timestamps_count_like_any(stub: Stub) -> None:
    topic = new_topic(stub, message_timestamp_type="LogAppendTime")
    first = produce(stub, topic, pb.Record(value=b"v", timestamp=5)).timestamp
    assert (offset_at(stub, topic, 6), offset_at(stub, topic, first), offset_at(stub, topic, first + 10**9)) == (
        0, 0, None,
    )


def test_max_records_and_until_end_from_a_time_on(stub: Stub, topic: str) -> None:
    at_times(stub, topic, *range(100, 200))
    call = consume(stub, topic, offset=0, start_time_ms=150, max_records=3)
    assert [record.offset for response in call for record in response.records] == [50, 51, 52]


def test_not_beside_an_offset(stub: Stub, topic: str) -> None:
    at_times(stub, topic, 100)
    for fields in ({"offset": 1}, {"offset": -1}, {"offset": -2}, {"offset": 0, "last_epoch": 1}):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.OFFSET_AND_TIME):
            list(consume(stub, topic, start_time_ms=100, **fields))


@pytest.mark.parametrize("how", ["hot", "cold", "restarted", "killed"])
def test_against_a_walk(start_broker: StartBroker, how: str) -> None:
    """Many segments, producers whose clocks differ, a log that does not begin at 0."""
    rng = random.Random(how)
    broker: BrokerProcess = start_broker(*(() if how == "hot" else COLD))
    topic = new_topic(broker.stub(), segment_bytes=20_000)
    timestamps: list[int] = []
    while len(timestamps) < 1500:
        now_ms = NOW_MS + len(timestamps)
        batch = [now_ms + rng.choice([0, 0, -500, 40, rng.randrange(-20, 20)]) for _ in range(rng.choice([1, 4, 30]))]
        at_times(broker.stub(), topic, *batch)
        timestamps += batch
    assert len(broker.segments()) > 5
    start = 400
    request = pb.TruncatePartitionRequest(topic=topic, before_offset=start)
    assert broker.stub().TruncatePartition(request, timeout=DEADLINE_S).log_start_offset == start
    if how in ("restarted", "killed"):
        broker.restart(kill=how == "killed")
    stub = broker.stub()
    wanted = [rng.choice(timestamps) + rng.choice([-1, 0, 1]) for _ in range(60)]
    for each in [*wanted, NOW_MS - 10_000, NOW_MS + 10_000]:
        expected = next((offset for offset in range(start, len(timestamps)) if timestamps[offset] >= each), None)
        assert offset_at(stub, topic, each) == expected
        call = consume(stub, topic, offset=0, start_time_ms=each, until_end=True, max_records=1)
        assert [record.offset for response in call for record in response.records] == (
            [] if expected is None else [expected]
        )
