"""ConsumeMessages: where it begins and ends, how large responses are, and what they tell besides records."""

import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import (
    DEADLINE_S,
    EARLIEST,
    LATEST,
    MIB,
    BrokerProcess,
    Slice,
    Stub,
    consume,
    new_topic,
    offsets,
    produce,
    raw_consume,
    raw_read,
    read,
    refused,
    take_apart,
    unknown_numbers,
    values,
    wait_until,
)
from tests.conftest import StartBroker

# Rings so small that only the newest records are in memory: the rest is read from segment files.
COLD = ("--limits-ring-bytes", "65536", "--limits-ring-bytes-per-partition", "4096")


def fill(stub: Stub, topic: str, rng: random.Random, requests: int, largest_bytes: int = 3000) -> list[bytes]:
    """Batches and single records of random sizes; gives their values in order."""
    sent: list[bytes] = []
    for _ in range(requests):
        batch = [rng.randbytes(rng.randrange(largest_bytes)) for _ in range(rng.choice((1, 1, 1, 5, 40)))]
        assert produce(stub, topic, *batch).offset == len(sent)
        sent += batch
    return sent


def numbered(stub: Stub, topic: str, count: int, start: int = 0) -> list[bytes]:
    """One batch of so many short records."""
    batch = [b"value-%d" % number for number in range(start, start + count)]
    produce(stub, topic, *batch)
    return batch


def collect(call: Iterator[pb.ConsumeMessagesResponse], count: int) -> list[pb.Record]:
    """Read until there are so many records; the stream may not have more."""
    found: list[pb.Record] = []
    while len(found) < count:
        found += next(call).records
    assert len(found) == count
    return found


# Where it begins


@pytest.mark.parametrize(("offset", "first"), [(EARLIEST, 0), (0, 0), (1, 1), (7, 7), (9, 9)])
def test_it_begins_at_the_offset(stub: Stub, topic: str, offset: int, first: int) -> None:
    sent = numbered(stub, topic, 5) + numbered(stub, topic, 5, 5)
    found = read(stub, topic, offset=offset)
    assert [record.offset for record in found] == list(range(first, 10))
    assert values(found) == sent[first:]


def test_a_reader_that_is_slow_when_the_broker_stops(start_broker: StartBroker) -> None:
    """It is told as soon as it has taken what was on its way, and does not hold up the stop until the grace ends."""
    broker = start_broker("--grpc-shutdown-grace-ms", str(10 * DEADLINE_S * 1000))
    stub = broker.stub()
    topic = new_topic(stub)
    call = consume(stub, topic, offset=0)
    for _ in range(16):
        produce(stub, topic, bytes(MIB // 2))
    broker.send(signal.SIGTERM)
    broker.wait_for_log("SIGTERM: shutting down")
    with pytest.raises(grpc.RpcError) as caught:
        for response in call:
            assert set(values(response.records)) == {bytes(MIB // 2)}
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert broker.wait() == 0


def test_readers_that_leave_take_nothing_from_those_that_stay(stub: Stub, topic: str) -> None:
    """All wait for the same record; some go, the first and the last and some between, and others come."""
    calls = [consume(stub, topic, offset=0) for _ in range(20)]
    numbered(stub, topic, 1)
    for call in calls:
        assert values(collect(call, 1)) == [b"value-0"]
    for number in (0, 19, 7, 3, 12, 18, 1, 11, 8):
        calls[number].cancel()
    staying = [call for call in calls if not call.cancelled()]
    staying += [consume(stub, topic, offset=1) for _ in range(5)]
    for start in (1, 2, 3):
        numbered(stub, topic, 1, start)
        for call in staying:
            assert values(collect(call, 1)) == [b"value-%d" % start]
    for call in staying:
        call.cancel()


@pytest.mark.parametrize("offset", [LATEST, 5])
def test_latest_and_the_end_give_what_comes_after(stub: Stub, topic: str, offset: int) -> None:
    numbered(stub, topic, 5)
    call = consume(stub, topic, offset=offset, max_wait_ms=50)
    first = next(call)
    assert (list(first.records), first.high_watermark, first.caught_up) == ([], 5, True)
    produce(stub, topic, b"after")
    found = next(response for response in call if response.records)
    assert [(record.offset, record.value) for record in found.records] == [(5, b"after")]
    call.cancel()


def test_beyond_the_end(stub: Stub, topic: str) -> None:
    numbered(stub, topic, 5)
    for offset in 6, 2**53, 2**63 - 1:
        with refused(grpc.StatusCode.OUT_OF_RANGE, Reason.OFFSET_OUT_OF_RANGE) as refusal:
            read(stub, topic, offset=offset)
        assert f"offset {offset}" in refusal.message
        assert refusal.metadata == {"topic": topic, "partition": "0", "log_start_offset": "0", "end_offset": "5"}


def test_partitions_are_apart(stub: Stub) -> None:
    topic = new_topic(stub, 3)
    for number in range(3):
        produce(stub, topic, b"in %d" % number, partition=number)
    for number in range(3):
        call = consume(stub, topic, partition=number, until_end=True)
        (response,) = call
        assert (response.topic, response.partition) == (topic, number)
        assert [(record.partition, record.value) for record in response.records] == [(number, b"in %d" % number)]


# Where it ends


def test_it_follows_until_cancelled(stub: Stub, topic: str) -> None:
    call = consume(stub, topic)
    for number in range(20):
        produce(stub, topic, b"%d" % number)
        response = next(call)
        assert [(record.offset, record.value) for record in response.records] == [(number, b"%d" % number)]
        assert (response.high_watermark, response.caught_up, response.log_start_offset) == (number + 1, True, 0)
        assert (response.error, unknown_numbers(response)) == ("", [])
    call.cancel()
    assert call.code() is grpc.StatusCode.CANCELLED


def test_it_follows_until_the_deadline(stub: Stub, topic: str) -> None:
    call = stub.ConsumeMessages(pb.ConsumeMessagesRequest(topic=topic, offset=-1), timeout=0.3)
    with pytest.raises(grpc.RpcError) as ended:
        next(call)
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_until_end(stub: Stub, topic: str) -> None:
    sent = numbered(stub, topic, 10)
    call = consume(stub, topic, until_end=True)
    responses = list(call)
    assert call.code() is grpc.StatusCode.OK
    assert [record.value for response in responses for record in response.records] == sent
    assert responses[-1].caught_up


@pytest.mark.parametrize("offset", [EARLIEST, LATEST, 0])
def test_until_end_of_an_empty_partition(stub: Stub, topic: str, offset: int) -> None:
    (response,) = consume(stub, topic, offset=offset, until_end=True)
    assert response == pb.ConsumeMessagesResponse(topic=topic, caught_up=True)


@pytest.mark.parametrize("offset", [LATEST, 3])
def test_until_end_at_the_end(stub: Stub, topic: str, offset: int) -> None:
    numbered(stub, topic, 3)
    (response,) = consume(stub, topic, offset=offset, until_end=True)
    assert response == pb.ConsumeMessagesResponse(topic=topic, high_watermark=3, caught_up=True)


def test_until_end_is_the_end_when_it_began(stub: Stub, topic: str) -> None:
    # Far more than is on its way before it is read, whatever serves it.
    for _ in range(100):
        produce(stub, topic, *[bytes(20_000)] * 10)
    call = consume(stub, topic, until_end=True, max_bytes=100_000)
    first = next(call)
    numbered(stub, topic, 100, 1000)
    rest = list(call)
    found = [record.offset for response in [first, *rest] for record in response.records]
    assert found == list(range(1000))
    assert rest[-1].high_watermark == 1100 and not rest[-1].caught_up


def test_until_end_waits_for_nothing(stub: Stub, topic: str) -> None:
    """Not for min_bytes either: no more is to come that it would send."""
    numbered(stub, topic, 3)
    begun_s = time.monotonic()
    assert len(read(stub, topic, min_bytes=10_000, max_wait_ms=20_000)) == 3
    assert read(stub, topic, offset=LATEST, min_bytes=10_000, max_wait_ms=20_000) == []
    assert time.monotonic() - begun_s < 5


@pytest.mark.parametrize("count", [1, 4, 5, 6, 9, 10])
def test_max_records(stub: Stub, topic: str, count: int) -> None:
    sent = numbered(stub, topic, 5) + numbered(stub, topic, 5, 5)
    call = consume(stub, topic, max_records=count)
    assert [record.value for response in call for record in response.records] == sent[:count]
    assert call.code() is grpc.StatusCode.OK


def test_max_records_that_are_yet_to_come(stub: Stub, topic: str) -> None:
    numbered(stub, topic, 5)
    call = consume(stub, topic, offset=3, max_records=4)
    assert len(next(call).records) == 2
    produce(stub, topic, b"a")
    produce(stub, topic, b"b", b"c", b"d")
    assert values([record for response in call for record in response.records]) == [b"a", b"b"]


def test_max_records_with_until_end(stub: Stub, topic: str) -> None:
    numbered(stub, topic, 5)
    assert len(read(stub, topic, max_records=3)) == 3
    assert len(read(stub, topic, max_records=30)) == 5
    assert len(read(stub, topic, max_records=2**63 - 1)) == 5


# How large responses are


def check_slices(slices: Sequence[Slice], sent: Sequence[bytes], first: int, max_bytes: int) -> None:
    """The slices are the log from `first` on, and none is larger than it may be.

    Their headers' checksums are verified already.
    """
    found = [record for each in slices for record in each.message.records]
    assert [record.offset for record in found] == list(range(first, len(sent)))
    assert values(found) == list(sent[first:])
    for each in slices:
        size_bytes = each.message.ByteSize()
        assert size_bytes <= max_bytes or len(each.message.records) == 1, (size_bytes, max_bytes)
        assert len(each.message.batches) == len(each.batches)


@pytest.mark.parametrize("flags", [(), COLD], ids=["from memory", "from files"])
def test_slices_of_any_size_from_anywhere(start_broker: StartBroker, flags: tuple[str, ...]) -> None:
    broker = start_broker(*flags)
    stub, channel = broker.stub(), broker.channel()
    rng = random.Random(20)
    topic = new_topic(stub, segment_bytes=50_000 if flags else 10_000_000)
    sent = fill(stub, topic, rng, 60)
    if flags:
        assert len(broker.segments()) > 5
    for max_bytes in (1, 100, 1000, 4000, 10_000, 70_000, 0):
        for first in (0, len(sent) - 1, *(rng.randrange(len(sent)) for _ in range(2))):
            slices = raw_read(channel, topic, offset=first, max_bytes=max_bytes)
            check_slices(slices, sent, first, max_bytes or MIB)
    # However small responses are: what begins a batch that fits comes with its header.
    whole = [batch for each in raw_read(channel, topic) for batch in each.batches]
    assert [batch.base_offset for batch in whole] == [0, *(batch.next_offset for batch in whole[:-1])]
    assert whole[-1].next_offset == len(sent)


def test_a_batch_that_does_not_fit_comes_in_parts_without_its_header(stub: Stub, channel: grpc.Channel) -> None:
    topic = new_topic(stub)
    sent = numbered(stub, topic, 100) + numbered(stub, topic, 3, 100)
    slices = raw_read(channel, topic, max_bytes=500)
    check_slices(slices, sent, 0, 500)
    *parts, last = slices
    assert all(part.batches == [] for part in parts)
    assert [batch.base_offset for batch in last.batches] == [100]
    assert not parts[0].message.caught_up and last.message.caught_up


def test_a_batch_that_is_begun_in_its_middle_comes_without_its_header(stub: Stub, channel: grpc.Channel) -> None:
    topic = new_topic(stub)
    numbered(stub, topic, 10)
    numbered(stub, topic, 10, 10)
    slices = raw_read(channel, topic, offset=1)
    assert [record.offset for each in slices for record in each.loose] == list(range(1, 10))
    assert [batch.base_offset for each in slices for batch in each.batches] == [10]


def test_max_records_cuts_a_batch(stub: Stub, channel: grpc.Channel) -> None:
    topic = new_topic(stub)
    numbered(stub, topic, 10)
    numbered(stub, topic, 10, 10)
    whole, cut = [take_apart(raw) for raw in raw_consume(channel, topic, max_records=15)]
    assert [batch.record_count for batch in whole.batches] == [10]
    assert (len(cut.loose), cut.batches) == (5, [])


@pytest.mark.parametrize("flags", [(), COLD], ids=["from memory", "from files"])
def test_a_record_larger_than_max_bytes_is_sent_whole(start_broker: StartBroker, flags: tuple[str, ...]) -> None:
    broker = start_broker(*flags)
    stub = broker.stub()
    topic = new_topic(stub)
    large = [bytes([number]) * 300_000 for number in range(3)]
    sent = [b"small", *large[:2], b"small", b"small", large[2], b"small"]
    for value in sent:
        produce(stub, topic, value)
    produce(stub, topic, *sent)
    for max_bytes in 1, 1000, 299_999:
        slices = raw_read(broker.channel(), topic, max_bytes=max_bytes)
        check_slices(slices, sent * 2, 0, max_bytes)


def test_the_default_of_max_bytes_is_1_mib(stub: Stub, channel: grpc.Channel, topic: str) -> None:
    for _ in range(30):
        produce(stub, topic, b"x" * 100_000)
    slices = raw_read(channel, topic)
    sizes = [each.message.ByteSize() for each in slices]
    assert all(size <= MIB for size in sizes)
    assert all(size > 0.85 * MIB for size in sizes[:-1])


# Waiting


def test_without_data_an_empty_response_tells_the_high_watermark(stub: Stub, topic: str) -> None:
    numbered(stub, topic, 3)
    begun_s = time.monotonic()
    call = consume(stub, topic, offset=LATEST, max_wait_ms=150)
    for number in range(1, 4):
        assert next(call) == pb.ConsumeMessagesResponse(topic=topic, high_watermark=3, caught_up=True)
        assert 0.145 * number <= time.monotonic() - begun_s < 0.15 * number + 2
    call.cancel()


def test_without_max_wait_ms_there_are_no_empty_responses(stub: Stub, topic: str) -> None:
    call = stub.ConsumeMessages(pb.ConsumeMessagesRequest(topic=topic, offset=-1), timeout=1)
    with pytest.raises(grpc.RpcError) as ended:
        next(call)
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_min_bytes_waits_for_so_much(stub: Stub, topic: str) -> None:
    call = consume(stub, topic, min_bytes=5000, max_wait_ms=30_000)
    for _ in range(9):
        produce(stub, topic, b"x" * 1000)
    first = next(call)
    assert 4 <= len(first.records) <= 9, "from 5000 bytes on, headers included"
    call.cancel()


def test_min_bytes_waits_no_longer_than_max_wait_ms(stub: Stub, topic: str) -> None:
    produce(stub, topic, b"x")
    begun_s = time.monotonic()
    call = consume(stub, topic, min_bytes=5000, max_wait_ms=300)
    assert values(next(call).records) == [b"x"]
    assert 0.29 <= time.monotonic() - begun_s < 5
    call.cancel()


def test_min_bytes_without_max_wait_ms_waits_half_a_second(stub: Stub, topic: str) -> None:
    produce(stub, topic, b"x")
    begun_s = time.monotonic()
    call = consume(stub, topic, min_bytes=5000)
    assert values(next(call).records) == [b"x"]
    assert 0.49 <= time.monotonic() - begun_s < 5
    call.cancel()


def test_min_bytes_of_what_is_there_already_does_not_wait(stub: Stub, topic: str) -> None:
    for _ in range(10):
        produce(stub, topic, b"x" * 1000)
    begun_s = time.monotonic()
    call = consume(stub, topic, min_bytes=5000, max_wait_ms=20_000)
    collect(call, 10)
    assert time.monotonic() - begun_s < 5
    call.cancel()


def test_min_bytes_above_max_bytes_counts_as_max_bytes(stub: Stub, topic: str) -> None:
    for _ in range(10):
        produce(stub, topic, b"x" * 1000)
    begun_s = time.monotonic()
    call = consume(stub, topic, min_bytes=2**31 - 1, max_bytes=4000, max_wait_ms=20_000)
    assert next(call).records
    assert time.monotonic() - begun_s < 5
    call.cancel()


# What else responses tell


def test_caught_up_and_the_marks(stub: Stub, topic: str) -> None:
    for start in range(0, 50, 10):
        numbered(stub, topic, 10, start)
    responses = list(consume(stub, topic, max_bytes=400, until_end=True))
    assert len(responses) >= 5
    for response in responses:
        assert (response.high_watermark, response.log_start_offset) == (50, 0)
        assert response.caught_up == (response.records[-1].offset == 49)


def test_headers_tell_of_their_batch(stub: Stub, channel: grpc.Channel) -> None:
    topic = new_topic(stub, flush_ms=-1)
    before_ms = int(time.time() * 1000)
    epoch = produce(stub, topic, pb.Record(value=b"a", timestamp=7), pb.Record(value=b"b", timestamp=3), acks=-1).epoch
    produce(stub, topic, b"c", acks=1)
    after_ms = int(time.time() * 1000)
    (taken,) = raw_read(channel, topic)
    first, second = taken.message.batches
    assert first.magic.to_bytes(4, "little") == b"TKB1"
    assert (first.base_offset, first.next_offset, first.record_count) == (0, 2, 2)
    assert (first.max_timestamp_ms, first.epoch, first.flags) == (7, epoch, 0)
    assert first.payload_bytes == first.uncompressed_bytes > 0
    assert (first.producer_id, first.producer_epoch, first.producer_sequence) == (-1, -1, -1)
    assert before_ms <= first.append_time_ms <= second.append_time_ms <= after_ms
    assert (first.durable_offset, second.durable_offset) == (0, 2), "the durable watermark when it was written"
    assert second.base_offset == 2


# Segments, memory and files


def test_cold_data_is_what_was_produced(start_broker: StartBroker) -> None:
    """Far more than the rings hold, in many segments, before and after a restart."""
    broker = start_broker(*COLD)
    stub = broker.stub()
    topic = new_topic(stub, segment_bytes=200_000)
    sent = fill(stub, topic, random.Random(21), 150, 8000)
    assert len(broker.segments()) >= 10
    for _ in range(2):
        check_slices(raw_read(broker.channel(), topic), sent, 0, MIB)
        for first in 1, len(sent) // 3, len(sent) - 2:
            check_slices(raw_read(broker.channel(), topic, offset=first), sent, first, MIB)
        broker.restart()


def test_readers_at_every_place_while_it_is_written(start_broker: StartBroker) -> None:
    """Producers and followers at once; rings are small, so followers come to read files, and segments roll."""
    broker = start_broker(*COLD)
    stub = broker.stub()
    topic = new_topic(stub, segment_bytes=50_000)
    per_producer, producers = 300, 3

    def load(number: int) -> None:
        for count in range(per_producer):
            produce(stub, topic, b"%d %d " % (number, count) + b"x" * 2000, acks=(0, 1)[count % 2])

    def follow(pause_s: float) -> list[pb.Record]:
        found: list[pb.Record] = []
        call = raw_consume(broker.channel(), topic, max_bytes=20_000 if pause_s else 0)
        while len(found) < per_producer * producers:
            found += take_apart(next(call)).message.records
            time.sleep(pause_s)
        call.cancel()
        return found

    with ThreadPoolExecutor(8) as threads:
        followers = [threads.submit(follow, pause_s) for pause_s in (0, 0, 0.002)]
        list(threads.map(load, range(producers)))
        results = [each.result() for each in followers]
    assert len(broker.segments()) > 10
    expected = read(stub, topic)
    assert [record.offset for record in expected] == list(range(per_producer * producers))
    for found in results:
        assert found == expected
    for number in range(producers):
        mine = [int(value.split()[1]) for value in values(expected) if value.startswith(b"%d " % number)]
        assert mine == list(range(per_producer))


def test_many_followers_of_one_partition(stub: Stub, topic: str) -> None:
    calls = [consume(stub, topic) for _ in range(50)]
    sent = numbered(stub, topic, 3)
    produce(stub, topic, b"last")
    for call in calls:
        assert values(collect(call, 4)) == [*sent, b"last"]
        call.cancel()


# Retention


def test_retention_moves_the_beginning(start_broker: StartBroker) -> None:
    broker = start_broker("--topics-retention-check-ms", "30")
    stub = broker.stub()
    topic = new_topic(stub, retention_bytes=10_000, segment_bytes=4000)
    keeps_all = new_topic(stub, segment_bytes=4000)
    for number in range(60):
        produce(stub, topic, b"%d " % number + b"x" * 1000, acks=-1)
        produce(stub, keeps_all, b"%d" % number, acks=-1)

    def is_done() -> bool:
        """One segment less would be too few."""
        try:
            sizes = [path.stat().st_size for path in broker.segments(topic_id=1)]
        except FileNotFoundError:
            return False
        return sum(sizes) - sizes[0] < 10_000

    wait_until(is_done)
    start = offsets(stub, topic).beginning_offset
    info = stub.GetTopic(pb.GetTopicRequest(name=topic), timeout=DEADLINE_S).topic
    assert info.partitions[0].beginning_offset == start
    assert 10_000 <= info.size_bytes < 20_000, "what is left is not less than what is to be kept"
    assert broker.segments(topic_id=1)[0].name == f"{start:020d}.log"

    found = read(stub, topic)
    assert [record.offset for record in found] == list(range(start, 60))
    responses = list(consume(stub, topic, offset=start, until_end=True))
    assert {response.log_start_offset for response in responses} == {start}
    for offset in 0, start - 1:
        with refused(grpc.StatusCode.OUT_OF_RANGE, Reason.OFFSET_OUT_OF_RANGE) as refusal:
            read(stub, topic, offset=offset)
        assert refusal.metadata == {
            "topic": topic, "partition": "0", "log_start_offset": str(start), "end_offset": "60"}
    assert len(read(stub, keeps_all)) == 60

    broker.restart(kill=True)
    stub = broker.stub()
    assert offsets(stub, topic).beginning_offset >= start
    assert [record.offset for record in read(stub, topic)][-1] == 59
    assert produce(stub, topic, b"next").offset == 60


def test_retention_by_age_takes_the_newest_too_and_offsets_go_on(start_broker: StartBroker) -> None:
    broker = start_broker("--topics-retention-check-ms", "30")
    stub = broker.stub()
    topic = new_topic(stub, retention_ms=300)
    # The clients' timestamps do not count: the first would be kept for ever, the second not at all.
    produce(stub, topic, pb.Record(value=b"1", timestamp=2**53 - 1), acks=-1)
    produce(stub, topic, pb.Record(value=b"2", timestamp=1), acks=-1)
    assert offsets(stub, topic).beginning_offset == 0
    wait_until(lambda: offsets(stub, topic).beginning_offset == 2, 10)
    assert read(stub, topic) == []
    assert produce(stub, topic, b"3").offset == 2
    broker.restart()
    assert offsets(broker.stub(), topic).end_offset == 3


def test_a_reader_that_retention_overtakes(start_broker: StartBroker) -> None:
    """It is told, with both bounds, and loses nothing in silence."""
    broker = start_broker(*COLD, "--topics-retention-check-ms", "30")
    stub = broker.stub()
    topic = new_topic(stub, retention_bytes=300_000, segment_bytes=100_000)
    # Nothing but what it asks for fits into its window.
    slow = broker.channel(http2__lookahead_bytes=65_535, http2__bdp_probe=0)
    for _ in range(10):
        produce(stub, topic, b"x" * 20_000, acks=-1)
    call = raw_consume(slow, topic, max_bytes=50_000)
    first = take_apart(next(call)).message.records
    assert first[0].offset == 0
    for _ in range(150):
        produce(stub, topic, b"x" * 20_000, acks=-1)
    wait_until(lambda: offsets(stub, topic).beginning_offset > 100)
    seen = [record.offset for record in first]
    with refused(grpc.StatusCode.OUT_OF_RANGE, Reason.OFFSET_OUT_OF_RANGE) as refusal:
        for raw in call:
            seen += [record.offset for record in take_apart(raw).message.records]
    assert seen == list(range(len(seen)))
    assert int(refusal.metadata["log_start_offset"]) > len(seen)
    assert refusal.metadata["end_offset"] == "160"


# Two reads that must not be confused


def test_a_stream_comes_to_what_cannot_be_read(start_broker: StartBroker) -> None:
    """All before it is delivered; the stream ends with the reason, and another one reads on once it can be."""
    broker = start_broker(*COLD, "--limits-open-files", "16")
    topic = new_topic(broker.stub(), segment_bytes=4000)
    for number in range(120):
        produce(broker.stub(), topic, b"%d" % number + b"x" * 1000, acks=-1)
    # A new process: nothing is in memory, and of so many files few are open.
    broker.restart()
    stub = broker.stub()
    path = broker.segments()[20]
    first = int(path.stem)
    aside = path.with_suffix(".aside")
    path.rename(aside)
    for until_end in (False, True):
        found: list[pb.Record] = []
        with refused(grpc.StatusCode.UNAVAILABLE, Reason.READ_FAILED):
            for response in consume(stub, topic, offset=first - 30, until_end=until_end):
                found += response.records
        assert [record.offset for record in found] == list(range(first - 30, first))
    aside.rename(path)
    assert [record.offset for record in read(stub, topic)] == list(range(120))


def test_a_follower_sees_nothing_twice_across_a_quiet_time(stub: Stub, topic: str) -> None:
    call = consume(stub, topic, max_wait_ms=20)
    seen: list[bytes] = []
    done = threading.Event()

    def take() -> None:
        for response in call:
            seen.extend(values(response.records))
            if len(seen) == 30:
                break
        done.set()

    reader = threading.Thread(target=take)
    reader.start()
    for number in range(30):
        produce(stub, topic, b"%d" % number)
        time.sleep(0.015)
    assert done.wait(DEADLINE_S)
    reader.join()
    call.cancel()
    assert seen == [b"%d" % number for number in range(30)]


def test_a_cancelled_reader_leaves_the_others(broker: BrokerProcess) -> None:
    stub = broker.stub()
    topic = new_topic(stub)
    stays = consume(stub, topic)
    for number in range(30):
        leaves = consume(stub, topic, max_wait_ms=10_000)
        leaves.cancel()
        produce(stub, topic, b"%d" % number)
    assert len(collect(stays, 30)) == 30
    stays.cancel()
