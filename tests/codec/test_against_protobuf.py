"""The codec against the official protobuf runtime: both read the same meaning, and each reads what the other writes."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from takhin.codec.batch import BATCH_HEADER_SIZE, encode_batch, offset_for_time, read_batch
from takhin.codec.messages import ConsumeRequest, ProduceRequest, ResponsePrefix, encode_produce_failure
from takhin.codec.wire import check_record_bytes
from takhin.errors import Code, InvalidArgument, Reason
from takhin.v1 import takhin_pb2 as pb
from tests.codec.strategies import (
    batch_of,
    bytes_field,
    consume_request_bytes,
    doubtful_requests,
    int32s,
    int64s,
    mutated,
    one_record,
    record_bytes,
    record_messages,
    request_bytes,
    safe_int64s,
    texts,
    tries,
    varint_field,
)
from tests.model import codec_model

clocks = st.integers(1, codec_model.SAFE_INT64)
offsets = st.integers(0, codec_model.SAFE_INT64 - 100) | st.sampled_from([0, 127, 128, 2**31, 2**49])
partitions = st.integers(0, 2**31 - 1) | st.sampled_from([0, 5, 127, 128])


def assert_same_record(encoded: bytes, parsed: pb.Record) -> None:
    key, timestamp_ms = check_record_bytes(encoded)
    assert key == (parsed.key if parsed.HasField("key") else None)
    assert timestamp_ms == parsed.timestamp
    model = codec_model.read_record(encoded)
    assert model.key == key
    assert model.value == (parsed.value if parsed.HasField("value") else None)
    assert model.headers == tuple((header.key.encode(), header.value) for header in parsed.headers)
    assert (model.timestamp_ms, model.offset, model.partition) == (parsed.timestamp, parsed.offset, parsed.partition)


def assert_same_meaning(request: ProduceRequest, data: bytes) -> None:
    """What was read of data is what protobuf reads."""
    parsed = pb.ProduceMessageRequest.FromString(data)
    assert request.topic.decode() == parsed.topic
    assert request.partition == parsed.partition
    assert request.required_acks == parsed.required_acks
    assert request.timeout_ms == parsed.timeout_ms
    assert request.is_batch == (not parsed.HasField("record"))
    assert request.has_producer == parsed.HasField("producer")
    assert request.has_expected_offset == parsed.HasField("expected_offset")
    if request.has_producer:
        producer = parsed.producer
        assert (request.producer_id, request.producer_epoch, request.producer_sequence) == (
            producer.id, producer.epoch, producer.sequence
        )
    if request.has_expected_offset:
        assert request.expected_offset == parsed.expected_offset
    records = list(parsed.records) if request.is_batch else [parsed.record]
    assert request.record_count == len(records)
    encoded = [request.record(i) for i in range(request.record_count)]
    assert request.largest_record_bytes == max(map(len, encoded))
    for one, parsed_record in zip(encoded, records, strict=True):
        assert pb.Record.FromString(one) == parsed_record
        assert_same_record(one, parsed_record)


@tries(150)
@given(request_bytes())
def test_fields_in_any_order_repeated_or_unknown(data: bytes) -> None:
    request = ProduceRequest(10)
    request.read(data)
    assert_same_meaning(request, data)


@tries(150)
@given(mutated(request_bytes()) | doubtful_requests | mutated(doubtful_requests))
def test_whatever_is_accepted_means_the_same(data: bytes) -> None:
    request = ProduceRequest(10)
    try:
        request.read(data)
    except InvalidArgument:
        return
    assert_same_meaning(request, data)


@tries(300)
@given(st.binary(max_size=40))
def test_random_bytes_that_are_accepted_mean_the_same(data: bytes) -> None:
    request = ProduceRequest(10)
    for candidate in (data, one_record(data), batch_of(data, data)):
        try:
            request.read(candidate)
        except InvalidArgument:
            continue
        assert_same_meaning(request, candidate)


@tries(150)
@given(
    texts,
    int32s,
    int32s,
    int32s,
    st.lists(record_messages(), min_size=1, max_size=5),
    st.booleans(),
)
def test_whatever_protobuf_writes_is_accepted(
    topic: str, partition: int, acks: int, timeout_ms: int, records: list[pb.Record], is_batch: bool
) -> None:
    message = pb.ProduceMessageRequest(
        topic=topic, partition=partition, required_acks=acks, timeout_ms=timeout_ms
    )
    if is_batch:
        message.records.extend(records)
    else:
        message.record.CopyFrom(records[0])
    request = ProduceRequest(10)
    request.read(message.SerializeToString())
    assert_same_meaning(request, message.SerializeToString())


@tries(150)
@given(st.lists(record_bytes, min_size=1, max_size=5), offsets, partitions, clocks)
def test_stored_records_carry_the_brokers_numbers(
    records: list[bytes], base_offset: int, partition: int, append_time_ms: int
) -> None:
    data = encode_batch(records, base_offset, partition, append_time_ms, 3, 11)
    response = pb.ConsumeMessagesResponse.FromString(data)
    sent = [pb.Record.FromString(record) for record in records]
    assert_header(response, data)
    assert response.batches[0].max_timestamp_ms == max(record.timestamp or append_time_ms for record in sent)
    assert len(response.records) == len(sent)
    for i, (stored, original) in enumerate(zip(response.records, sent, strict=True)):
        assert stored.offset == base_offset + i
        assert stored.partition == partition
        assert stored.timestamp == (original.timestamp or append_time_ms)
        for name in ("offset", "partition", "timestamp"):
            stored.ClearField(name)
            original.ClearField(name)
        # Key, value, headers, their presence, and the unknown fields.
        assert stored == original


def assert_header(response: pb.ConsumeMessagesResponse, data: bytes) -> None:
    """protobuf reads the batch's header as read_batch does."""
    header = read_batch(data)
    (parsed,) = response.batches
    assert parsed.magic.to_bytes(4, "little") == b"TKB1"
    assert parsed.payload_bytes == len(data) - BATCH_HEADER_SIZE
    for field in pb.BatchHeader.DESCRIPTOR.fields:
        if field.name != "magic":
            assert getattr(parsed, field.name) == getattr(header, field.name), field.name


@tries(150)
@given(record_bytes, offsets, partitions)
def test_a_producers_own_offset_never_wins(record: bytes, offset: int, partition: int) -> None:
    own = varint_field(5, 77) + varint_field(6, 88)
    for sent in (own + record, record + own, own + record + own):
        (stored,) = pb.ConsumeMessagesResponse.FromString(encode_batch([sent], offset, partition, 1, 0, 0)).records
        assert (stored.offset, stored.partition) == (offset, partition)


@pytest.mark.parametrize("timestamps", [[], [0], [5, 0], [0, 0]])
def test_timestamp_0_means_the_brokers_clock(timestamps: list[int]) -> None:
    record = b"".join(varint_field(4, timestamp) for timestamp in timestamps)
    (stored,) = pb.ConsumeMessagesResponse.FromString(encode_batch([record], 0, 0, 1234, 0, 0)).records
    assert stored.timestamp == 1234


@pytest.mark.parametrize("timestamps", [[5], [0, 5], [9, 5], [-5], [0, -5]])
def test_the_last_timestamp_of_the_producer_is_kept(timestamps: list[int]) -> None:
    record = b"".join(varint_field(4, timestamp) for timestamp in timestamps)
    (stored,) = pb.ConsumeMessagesResponse.FromString(encode_batch([record], 0, 0, 1234, 0, 0)).records
    assert stored.timestamp == timestamps[-1]


@tries(150)
@given(st.lists(record_bytes, min_size=1, max_size=5), st.integers(-3, 8), safe_int64s, st.sampled_from([-1, 0, 1]))
def test_the_first_record_of_a_time(records: list[bytes], from_record: int, other_ms: int, more_ms: int) -> None:
    """By the timestamps that protobuf reads, wherever they stand and however often."""
    batch = b"\0" * 7 + encode_batch(records, 100, 2, 1_000, 0, 0)
    stored = [record.timestamp for record in pb.ConsumeMessagesResponse.FromString(batch[7:]).records]
    for each in [*stored, other_ms]:
        expected = [
            100 + number for number, timestamp in enumerate(stored)
            if number >= from_record and timestamp >= each + more_ms
        ]
        assert offset_for_time(batch, each + more_ms, 7, 100 + from_record) == (expected[0] if expected else None)


def assert_same_consume(request: ConsumeRequest, data: bytes) -> None:
    parsed = pb.ConsumeMessagesRequest.FromString(data)
    assert request.topic.decode() == parsed.topic
    for name in ("partition", "offset", "max_bytes", "min_bytes", "max_wait_ms", "until_end", "max_records"):
        assert getattr(request, name) == getattr(parsed, name), name
    for name in ("start_time_ms", "last_epoch"):
        assert getattr(request, name) == (getattr(parsed, name) if parsed.HasField(name) else None), name


@tries(150)
@given(consume_request_bytes())
def test_consume_requests_mean_the_same(data: bytes) -> None:
    assert_same_consume(ConsumeRequest(data), data)


@tries(150)
@given(mutated(consume_request_bytes()) | mutated(request_bytes()) | st.binary(max_size=30))
def test_consume_requests_that_are_accepted_mean_the_same(data: bytes) -> None:
    try:
        request = ConsumeRequest(data)
    except InvalidArgument as refusal:
        assert refusal.reason == Reason.MALFORMED_REQUEST
        return
    assert_same_consume(request, data)


@tries(150)
@given(
    st.builds(
        pb.ConsumeMessagesRequest,
        topic=texts,
        partition=int32s,
        offset=int64s,
        max_bytes=int32s,
        min_bytes=int32s,
        max_wait_ms=int32s,
        until_end=st.booleans(),
        start_time_ms=st.none() | int64s,
        max_records=safe_int64s,
        last_epoch=st.none() | int32s,
    )
)
def test_whatever_consume_request_protobuf_writes_is_accepted(message: pb.ConsumeMessagesRequest) -> None:
    data = message.SerializeToString()
    assert_same_consume(ConsumeRequest(data), data)


@tries(150)
@given(texts.map(str.encode), int32s, texts, st.sampled_from(Code), st.sampled_from(Reason))
def test_a_produce_failure_says_what_was_put_in(
    topic: bytes, partition: int, message: str, code: Code, reason: Reason
) -> None:
    data = encode_produce_failure(topic, partition, message, code, str(reason))
    response = pb.ProduceMessageResponse.FromString(data)
    assert response == pb.ProduceMessageResponse(
        topic=topic.decode(), partition=partition, error=message, code=code, reason=reason
    )


def test_a_produce_failure_longer_than_one_byte_of_length() -> None:
    data = encode_produce_failure(b"t" * 249, -1, "e" * 70_000, 3, "R" * 128)
    response = pb.ProduceMessageResponse.FromString(data)
    assert (response.topic, response.partition) == ("t" * 249, -1)
    assert (response.error, response.reason) == ("e" * 70_000, "R" * 128)


def test_a_response_prefix_takes_any_topic() -> None:
    for topic in (b"", b"t", b"t" * 249):
        ResponsePrefix(topic, 2**31 - 1)
    with pytest.raises(TypeError):
        ResponsePrefix(None, 0)  # type: ignore[arg-type]


def test_what_protobuf_itself_refuses_is_refused() -> None:
    """A sample by hand, so that the properties above are not empty: both say no."""
    for data in (b"\x0a", b"\x00\x00", b"\x0a\x01\xff", one_record(b"\x12\x06"), batch_of(bytes_field(3, b"\x0a\x05"))):
        with pytest.raises(DecodeError):
            pb.ProduceMessageRequest.FromString(data)
        with pytest.raises(InvalidArgument):
            ProduceRequest(10).read(data)
