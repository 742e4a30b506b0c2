"""ProduceMessage: where records land, what of them is kept, what an answer vouches for, and batches."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import (
    DEADLINE_S,
    FIRST_LOG,
    MIB,
    SERVICE,
    BrokerProcess,
    Stub,
    chunk,
    consume,
    new_topic,
    offsets,
    produce,
    raw_consume,
    raw_read,
    raw_unary,
    read,
    refused,
    scalar,
    unknown_numbers,
    values,
    varint,
)
from tests.conftest import StartBroker

INVALID = grpc.StatusCode.INVALID_ARGUMENT
SAFE_INT64 = 2**53 - 1
LIMIT_BYTES = 10 * MIB
# The largest that max.message.bytes can be.
CEILING_BYTES = LIMIT_BYTES - 64 * 1024


def now_ms() -> int:
    return int(time.time() * 1000)


def record_of(size_bytes: int) -> pb.Record:
    """A record of just that encoded size."""
    record = pb.Record(value=b"x" * (size_bytes - 16))
    record.value += b"y" * (size_bytes - record.ByteSize())
    assert record.ByteSize() == size_bytes
    return record


# One record, and what is kept of it


def test_the_answer_to_one_record(stub: Stub) -> None:
    topic = new_topic(stub, 2)
    before_ms = now_ms()
    responses = [produce(stub, topic, value, partition=1) for value in (b"a", b"b", b"c")]
    after_ms = now_ms()
    for offset, response in enumerate(responses):
        assert (response.topic, response.partition, response.offset) == (topic, 1, offset)
        assert before_ms <= response.timestamp <= after_ms
        assert (response.error, response.code, response.reason) == ("", 0, "")
        assert (response.record_count, response.durability) == (1, pb.DURABILITY_WRITTEN)
        assert unknown_numbers(response) == []
    assert [record.timestamp for record in read(stub, topic, partition=1)] == [each.timestamp for each in responses]


def test_a_record_comes_back_as_it_was_sent(stub: Stub, topic: str) -> None:
    sent = pb.Record(key=b"\x00key\xff", value=bytes(range(256)), timestamp=1_700_000_000_123)
    for key in "trace", "trace", "", "schlüssel ☃ 𝄞":
        for value in b"\x00\xff", b"":
            sent.headers.add(key=key, value=value)
    assert produce(stub, topic, sent).timestamp == sent.timestamp
    (record,) = read(stub, topic)
    assert record == sent, "offset and partition are 0"


@pytest.mark.parametrize("sent", [
    pb.Record(), pb.Record(value=b""), pb.Record(key=b""), pb.Record(key=b"", value=b""), pb.Record(key=b"k"),
], ids=["nothing", "empty value", "empty key", "both empty", "tombstone"])
def test_absent_and_empty_are_two_things(stub: Stub, topic: str, sent: pb.Record) -> None:
    produce(stub, topic, sent)
    (record,) = read(stub, topic)
    for name in "key", "value":
        assert record.HasField(name) == sent.HasField(name)
        assert getattr(record, name) == getattr(sent, name)


@pytest.mark.parametrize("timestamp", [1, -1, SAFE_INT64, -SAFE_INT64, 1_700_000_000_000])
def test_the_producers_timestamp_is_kept(stub: Stub, topic: str, timestamp: int) -> None:
    assert produce(stub, topic, pb.Record(value=b"v", timestamp=timestamp)).timestamp == timestamp
    assert read(stub, topic)[0].timestamp == timestamp


def test_the_brokers_clock_where_the_producer_gave_no_time(stub: Stub, topic: str) -> None:
    mixed = [pb.Record(value=b"1"), pb.Record(value=b"2", timestamp=5), pb.Record(value=b"3")]
    before_ms = now_ms()
    response = produce(stub, topic, *mixed)
    after_ms = now_ms()
    stored = [record.timestamp for record in read(stub, topic)]
    assert stored[1] == 5
    assert before_ms <= stored[0] == stored[2] == response.timestamp <= after_ms


def test_log_append_time_replaces_the_producers(stub: Stub, channel: grpc.Channel) -> None:
    topic = new_topic(stub, message_timestamp_type="LogAppendTime")
    before_ms = now_ms()
    response = produce(stub, topic, pb.Record(value=b"1", timestamp=5), pb.Record(value=b"2", timestamp=SAFE_INT64))
    after_ms = now_ms()
    (taken,) = raw_read(channel, topic)
    for record in taken.message.records:
        assert before_ms <= record.timestamp == response.timestamp <= after_ms
    assert taken.batches[0].max_timestamp_ms == taken.batches[0].append_time_ms == response.timestamp


def test_what_a_producer_sends_as_offset_and_partition_is_overridden(stub: Stub) -> None:
    topic = new_topic(stub, 2)
    produce(stub, topic, b"first", partition=1)
    produce(stub, topic, pb.Record(value=b"second", offset=99, partition=77), partition=1)
    produce(stub, topic, pb.Record(value=b"third", offset=-1, partition=-1), b"fourth", partition=1)
    found = read(stub, topic, partition=1)
    assert [(record.offset, record.partition) for record in found] == [(number, 1) for number in range(4)]
    assert values(found) == [b"first", b"second", b"third", b"fourth"]


def test_fields_of_a_record_that_the_broker_does_not_know_are_kept(
    stub: Stub, channel: grpc.Channel, topic: str
) -> None:
    fixed32 = varint(17 << 3 | 5) + b"\x01\x02\x03\x04"
    record = scalar(100, 7) + chunk(2, b"value") + chunk(16, b"\x00\xffkept") + fixed32 + chunk(1, b"key")
    raw_unary(channel, "ProduceMessage", chunk(1, topic.encode()) + chunk(3, record) + scalar(4, 1))
    (raw,) = raw_consume(channel, topic, until_end=True)
    assert record in raw, "the record's bytes are served as they came"
    stored = pb.ConsumeMessagesResponse.FromString(raw).records[0]
    assert unknown_numbers(stored) == [100, 16, 17]
    assert (stored.key, stored.value) == (b"key", b"value")


def test_a_request_is_read_as_protobuf_means_it(stub: Stub, channel: grpc.Channel) -> None:
    """Any order, unknown fields skipped, the last of a repeated scalar wins."""
    topic = new_topic(stub, 3)
    request = (
        scalar(4, 0) + chunk(3, chunk(2, b"first") + chunk(2, b"value")) + scalar(2, 0) + chunk(1, b"other")
        + chunk(99, b"\xff") + scalar(98, 2**64 - 1) + scalar(4, -1) + scalar(2, 2) + chunk(1, topic.encode())
    )
    response = pb.ProduceMessageResponse.FromString(raw_unary(channel, "ProduceMessage", request))
    assert (response.topic, response.partition) == (topic, 2)
    assert response.durability == pb.DURABILITY_DURABLE
    assert values(read(stub, topic, partition=2)) == [b"value"]


# Where a record lands: partition -1

# From the test-suites of Kafka itself (murmur2's values) and of kafka-python (partitions out of 1000).
KAFKA_MURMUR2 = {
    b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, b"abc": 479470107,
}
OF_1000 = {b"": 681, b"a": 524, b"ab": 434, b"abc": 107, b"123456789": 566, b"\x00 ": 742}


def test_a_key_lands_where_kafka_puts_it(stub: Stub) -> None:
    for partitions in 3, 8, 1000:
        topic = new_topic(stub, partitions)
        expected = {key: (value & 0x7FFFFFFF) % partitions for key, value in KAFKA_MURMUR2.items()}
        if partitions == 1000:
            expected |= OF_1000
        for key, partition in expected.items():
            response = produce(stub, topic, pb.Record(key=key, value=b"v"), partition=-1)
            assert response.partition == partition, (key, partitions)
            last = read(stub, topic, partition=partition, offset=response.offset)
            assert [(record.key, record.partition) for record in last] == [(key, partition)]


def test_records_without_a_key_go_round(stub: Stub) -> None:
    topic = new_topic(stub, 4)
    spread = Counter(produce(stub, topic, b"v", partition=-1).partition for _ in range(40))
    assert sorted(spread) == [0, 1, 2, 3]
    assert max(spread.values()) - min(spread.values()) <= 1
    for number in range(4):
        assert offsets(stub, topic, number).end_offset == spread[number]


def test_a_batch_without_keys_sticks_together(stub: Stub) -> None:
    topic = new_topic(stub, 4)
    seen = []
    for _ in range(8):
        response = produce(stub, topic, *[b"v"] * 10, partition=-1)
        assert response.record_count == 10
        stored = read(stub, topic, partition=response.partition, offset=response.offset)
        assert len(stored) == 10 and {record.partition for record in stored} == {response.partition}
        seen.append(response.partition)
    assert sorted(seen) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_batch_whose_keys_fall_on_one_partition(stub: Stub) -> None:
    topic = new_topic(stub, 8)
    partition = (KAFKA_MURMUR2[b"abc"] & 0x7FFFFFFF) % 8
    response = produce(stub, topic, *[pb.Record(key=b"abc", value=b"%d" % i) for i in range(3)], partition=-1)
    assert (response.partition, response.record_count) == (partition, 3)


def test_a_batch_whose_keys_fall_on_several_partitions(stub: Stub) -> None:
    topic = new_topic(stub, 8)
    with refused(INVALID, Reason.KEYS_SPAN_PARTITIONS) as refusal:
        produce(stub, topic, *[pb.Record(key=key) for key in KAFKA_MURMUR2], partition=-1)
    assert "partition" in refusal.message
    assert all(offsets(stub, topic, number).end_offset == 0 for number in range(8))
    assert produce(stub, topic, *[pb.Record(key=key) for key in KAFKA_MURMUR2], partition=3).partition == 3


# What an answer vouches for


@pytest.mark.parametrize(("acks", "durability"), [
    (0, pb.DURABILITY_ACCEPTED), (1, pb.DURABILITY_WRITTEN), (-1, pb.DURABILITY_DURABLE),
])
def test_acks(stub: Stub, acks: int, durability: int) -> None:
    topic = new_topic(stub, flush_ms=-1)
    for count in 1, 2, 3:
        response = produce(stub, topic, b"v", acks=acks)
        assert (response.offset, response.durability) == (count - 1, durability)
        state = offsets(stub, topic)
        if acks:
            assert state.end_offset == count
        assert state.durable_offset == (count if acks == -1 else 0)
    assert len(read(stub, topic)) == 3


def test_a_durable_ack_covers_what_came_before_it(stub: Stub) -> None:
    topic = new_topic(stub, flush_ms=-1)
    for acks in 0, 1, 0:
        produce(stub, topic, b"v", acks=acks)
    assert produce(stub, topic, b"v", acks=-1).offset == 3
    assert offsets(stub, topic).durable_offset == 4


def test_the_epoch_is_that_of_the_batch(stub: Stub, channel: grpc.Channel, topic: str) -> None:
    epochs = {produce(stub, topic, b"v", acks=acks).epoch for acks in (0, 1, -1)}
    (epoch,) = epochs
    assert epoch > 0
    assert {batch.epoch for each in raw_read(channel, topic) for batch in each.batches} == epochs


def test_timeout_ms(start_broker: StartBroker, strace: list[str]) -> None:
    slow_sync = ["-P", FIRST_LOG, "-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=500000"]
    stub = start_broker(prefix=[*strace, *slow_sync]).stub()
    topic = new_topic(stub, flush_ms=-1)
    begun_s = time.monotonic()
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED, Reason.ACK_TIMEOUT) as refusal:
        produce(stub, topic, b"late", acks=-1, timeout_ms=50)
    assert 0.05 <= time.monotonic() - begun_s < 0.4
    assert "timeout_ms (50)" in refusal.message and "unknown" in refusal.message
    assert refusal.metadata == {"topic": topic, "partition": "0"}
    assert values(read(stub, topic)) == [b"late"], "it was appended all the same"
    response = produce(stub, topic, b"in time", acks=-1, timeout_ms=30_000)
    assert (response.offset, response.durability) == (1, pb.DURABILITY_DURABLE)
    assert produce(stub, topic, b"no wait", acks=1, timeout_ms=1).offset == 2


# Batches


def test_a_batch_has_one_answer(stub: Stub, channel: grpc.Channel, topic: str) -> None:
    produce(stub, topic, b"before")
    batch = [pb.Record(key=b"k%d" % i, value=b"v%d" % i, timestamp=1000 + i) for i in range(100)]
    response = produce(stub, topic, *batch, acks=-1)
    assert (response.offset, response.record_count, response.timestamp) == (1, 100, 1000)
    assert produce(stub, topic, b"after").offset == 101
    (taken,) = raw_read(channel, topic)
    assert [(each.base_offset, each.next_offset, each.record_count) for each in taken.batches] == [
        (0, 1, 1), (1, 101, 100), (101, 102, 1)]
    for number, record in enumerate(taken.message.records[1:101]):
        assert (record.key, record.value, record.timestamp) == (b"k%d" % number, b"v%d" % number, 1000 + number)
        assert record.offset == 1 + number


def test_a_batch_of_one(stub: Stub, topic: str) -> None:
    request = pb.ProduceMessageRequest(topic=topic, required_acks=1, records=[pb.Record(value=b"alone")])
    assert stub.ProduceMessage(request, timeout=DEADLINE_S).record_count == 1
    assert values(read(stub, topic)) == [b"alone"]


BAD_RECORDS = {
    "header key": chunk(3, chunk(1, b"\xff")), "reserved field": scalar(7, 1), "cut short": b"\x12\x06",
    "wrong wire type": scalar(2, 1), "timestamp": scalar(4, 2**53),
}


@pytest.mark.parametrize("bad", BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_a_batch_is_appended_whole_or_not_at_all(stub: Stub, channel: grpc.Channel, topic: str, bad: bytes) -> None:
    produce(stub, topic, b"before")
    good = chunk(6, chunk(2, b"good"))
    with refused(INVALID, Reason.MALFORMED_RECORD) as refusal:
        request = chunk(1, topic.encode()) + good * 50 + chunk(6, bad) + good * 50
        raw_unary(channel, "ProduceMessage", request)
    assert "record 50" in refusal.message and refusal.metadata == {"record_index": "50"}
    assert produce(stub, topic, b"after").offset == 1
    assert values(read(stub, topic)) == [b"before", b"after"]


def test_one_record_too_large_refuses_its_batch(stub: Stub) -> None:
    topic = new_topic(stub, max_message_bytes=100)
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.RECORD_TOO_LARGE) as refusal:
        produce(stub, topic, record_of(100), record_of(101), record_of(20))
    assert "101 bytes" in refusal.message and "100" in refusal.message
    assert refusal.metadata == {"topic": topic, "max_record_bytes": "100"}
    assert offsets(stub, topic).end_offset == 0
    assert produce(stub, topic, *[record_of(100)] * 3).record_count == 3


def test_more_records_than_a_request_may_have(start_broker: StartBroker) -> None:
    stub = start_broker("--limits-records-per-request", "10").stub()
    topic = new_topic(stub)
    with refused(INVALID, Reason.TOO_MANY_RECORDS) as refusal:
        produce(stub, topic, *[b"v"] * 11)
    assert "10" in refusal.message and refusal.metadata == {"max_records": "10"}
    assert produce(stub, topic, *[b"v"] * 10).record_count == 10


def test_as_many_records_as_a_request_may_have(stub: Stub, topic: str) -> None:
    response = produce(stub, topic, *[b""] * 100_000)
    assert response.record_count == 100_000
    assert [record.offset for record in read(stub, topic)] == list(range(100_000))
    with refused(INVALID, Reason.TOO_MANY_RECORDS):
        produce(stub, topic, *[b""] * 100_001)


# Sizes


def test_the_largest_record_by_default(stub: Stub, topic: str) -> None:
    assert produce(stub, topic, record_of(MIB)).offset == 0
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.RECORD_TOO_LARGE) as refusal:
        produce(stub, topic, record_of(MIB + 1))
    assert refusal.metadata == {"topic": topic, "max_record_bytes": str(MIB)}
    (record,) = read(stub, topic)
    assert record.value == record_of(MIB).value


def test_whatever_is_accepted_can_be_delivered(stub: Stub, shared_broker: BrokerProcess) -> None:
    """A record as large as max.message.bytes can be, to a client that receives no more than the message limit."""
    topic = new_topic(stub, max_message_bytes=CEILING_BYTES)
    with refused(INVALID, Reason.INVALID_CONFIG) as refusal:
        new_topic(stub, max_message_bytes=CEILING_BYTES + 1)
    assert str(CEILING_BYTES) in refusal.message
    large = record_of(CEILING_BYTES)
    produce(stub, topic, b"before", acks=-1)
    produce(stub, topic, large, acks=-1)
    produce(stub, topic, b"after", acks=-1)
    receiver = shared_broker.channel(max_receive_message_length=LIMIT_BYTES)
    for fields in {}, {"max_bytes": 1}, {"max_bytes": LIMIT_BYTES}, {"max_bytes": 2**31 - 1}:
        found = [record for each in raw_read(receiver, topic, **fields) for record in each.message.records]
        assert [record.offset for record in found] == [0, 1, 2]
        assert found[1].value == large.value


def test_a_batch_almost_as_large_as_a_message(stub: Stub, topic: str) -> None:
    batch = [record_of(MIB - 64) for _ in range(10)]
    assert produce(stub, topic, *batch).record_count == 10
    assert [len(record.value) for record in read(stub, topic)] == [len(batch[0].value)] * 10


def test_a_request_larger_than_the_message_limit(stub: Stub, channel: grpc.Channel, topic: str) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        raw_unary(channel, "ProduceMessage", chunk(1, topic.encode()) + chunk(3, chunk(2, b"x" * LIMIT_BYTES)))
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert produce(stub, topic, b"after").offset == 0


# Many at once


def test_what_many_clients_send_at_once_gets_offsets_by_ones(stub: Stub, channel: grpc.Channel, topic: str) -> None:
    def load(number: int) -> list[int]:
        sent = [(b"%d-%d" % (number, count), (0, 1, -1)[count % 3]) for count in range(60)]
        return [produce(stub, topic, value, acks=acks).offset for value, acks in sent]

    with ThreadPoolExecutor(8) as threads:
        answered = list(threads.map(load, range(8)))
    found = [record for each in raw_read(channel, topic) for record in each.message.records]
    assert [record.offset for record in found] == list(range(480))
    for number, its_offsets in enumerate(answered):
        assert its_offsets == sorted(its_offsets)
        assert [found[offset].value for offset in its_offsets] == [b"%d-%d" % (number, count) for count in range(60)]


def test_acks_0_can_be_read_soon(stub: Stub, topic: str) -> None:
    follower = consume(stub, topic)
    produce(stub, topic, b"unacknowledged", acks=0)
    assert values(next(follower).records) == [b"unacknowledged"]
    follower.cancel()


def test_methods_and_service_have_their_names(channel: grpc.Channel) -> None:
    assert set(pb.DESCRIPTOR.services_by_name) == {SERVICE.rpartition(".")[2]}
    with pytest.raises(grpc.RpcError) as refusal:
        raw_unary(channel, "NoSuchMethod", b"")
    assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
