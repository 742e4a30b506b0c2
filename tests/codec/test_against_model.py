"""The codec against its plain-Python model: both refuse the same for the same reason, and write the same bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from takhin.codec.batch import BatchError, encode_batch, encode_segment_header, read_batch
from takhin.codec.crc32c import crc32c, masked
from takhin.codec.messages import ConsumeRequest, ProduceRequest, murmur2
from takhin.codec.wire import RecordError, check_record_bytes
from takhin.errors import InvalidArgument
from tests.codec.strategies import (
    bytes_field,
    consume_request_bytes,
    doubtful_records,
    doubtful_requests,
    mutated,
    record_bytes,
    request_bytes,
    tries,
)
from tests.model import codec_model
from tests.model.codec_model import SAFE_INT64, BatchHeader, Refused

MAX_RECORDS = 3


@tries(150)
@given(record_bytes | doubtful_records | mutated(record_bytes) | mutated(doubtful_records) | st.binary(max_size=30))
def test_records(data: bytes) -> None:
    try:
        expected = codec_model.read_record(data)
    except Refused:
        with pytest.raises(RecordError):
            check_record_bytes(data)
        return
    assert check_record_bytes(data) == (expected.key, expected.timestamp_ms)


@tries(150)
@given(st.binary(max_size=12))
def test_header_bytes(data: bytes) -> None:
    record = bytes_field(3, data)
    try:
        codec_model.read_header(data)
    except Refused:
        with pytest.raises(RecordError):
            check_record_bytes(record)
        return
    check_record_bytes(record)


def producer_of(request: ProduceRequest) -> codec_model.ProducerState | None:
    if not request.has_producer:
        return None
    return codec_model.ProducerState(request.producer_id, request.producer_epoch, request.producer_sequence)


def expected_offset_of(request: ProduceRequest) -> int | None:
    return request.expected_offset if request.has_expected_offset else None


@tries(150)
@given(request_bytes() | doubtful_requests | mutated(request_bytes()) | mutated(doubtful_requests))
def test_produce_requests(data: bytes) -> None:
    request = ProduceRequest(MAX_RECORDS)
    try:
        expected = codec_model.read_produce_request(data, MAX_RECORDS)
    except Refused as refusal:
        with pytest.raises(InvalidArgument) as caught:
            request.read(data)
        assert caught.value.reason == refusal.reason
        return
    request.read(data)
    for name in ("topic", "partition", "required_acks", "timeout_ms", "is_batch"):
        assert getattr(request, name) == getattr(expected, name), name
    assert (producer_of(request), expected_offset_of(request)) == (expected.producer, expected.expected_offset)
    assert request.is_conditional == (expected.producer is not None or expected.expected_offset is not None)
    assert [request.record(i) for i in range(request.record_count)] == expected.encoded


@tries(150)
@given(consume_request_bytes() | mutated(consume_request_bytes()) | mutated(request_bytes()))
def test_consume_requests(data: bytes) -> None:
    try:
        expected = codec_model.read_consume_request(data)
    except Refused:
        with pytest.raises(InvalidArgument):
            ConsumeRequest(data)
        return
    request = ConsumeRequest(data)
    for name, value in vars(expected).items():
        assert getattr(request, name) == value, name


# Small batches: the model's checksum goes bit by bit.
batches = st.lists(record_bytes.filter(lambda record: len(record) < 100), min_size=1, max_size=3)
epochs = st.integers(-(2**31), 2**31 - 1)
offsets = st.integers(0, SAFE_INT64 - 10)


@tries(150)
@given(batches, offsets, st.integers(0, 2**31 - 1), st.integers(0, SAFE_INT64), epochs, offsets)
def test_batches_are_written_byte_for_byte(
    records: list[bytes], base_offset: int, partition: int, append_time_ms: int, epoch: int, durable_offset: int
) -> None:
    expected = codec_model.encode_batch(records, base_offset, partition, append_time_ms, epoch, durable_offset)
    assert encode_batch(records, base_offset, partition, append_time_ms, epoch, durable_offset) == expected
    header, _ = codec_model.read_batch(expected)
    batch = read_batch(expected)
    assert {name: getattr(batch, name) for name in vars(header)} == vars(header)


@tries(150)
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1), offsets, st.integers(-(2**63), 2**63 - 1))
def test_segment_headers_are_written_byte_for_byte(
    topic_id: int, partition: int, base_offset: int, created_ms: int
) -> None:
    expected = codec_model.encode_segment_header(topic_id, partition, base_offset, created_ms)
    assert encode_segment_header(topic_id, partition, base_offset, created_ms) == expected


def assert_same_verdict(data: bytes) -> None:
    try:
        header, _ = codec_model.read_batch(data)
    except Refused:
        with pytest.raises(BatchError):
            read_batch(data)
        return
    batch = read_batch(data)
    assert {name: getattr(batch, name) for name in vars(header)} == vars(header)


@tries(150)
@given(mutated(batches.map(lambda records: codec_model.encode_batch(records, 5, 1, 2, 3, 4))))
def test_damaged_batches(data: bytes) -> None:
    assert_same_verdict(data)


EXTREMES = [0, 1, 2, 3, -1, 7, 8, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, -(2**63)]
STORED = codec_model.stored_record(b"\x12\x01v", 5, 0, 1)
ODD_RECORDS = [
    *(b"", b"\x22", b"\x2a\x00", b"\x00", b"\x22\x00", b"\x22\x80\x00", b"\x22\x80\x80\x80\x80\x00"),
    *(b"\x22\x80\x80\x80\x80\x80\x00", b"\x22\x01", b"\x22\xff\xff\xff\xff\x0f", b"\x22\xff\xff\xff\xff\x7f"),
    STORED[:-1],
]


@tries(300)
@given(
    st.dictionaries(st.sampled_from(list(codec_model.BATCH_WIDTHS)), st.sampled_from(EXTREMES), max_size=2),
    st.lists(st.just(STORED) | st.sampled_from(ODD_RECORDS), min_size=1, max_size=4),
)
def test_batches_whose_checksum_matches_but_whose_header_lies(lies: dict[str, int], records: list[bytes]) -> None:
    payload = b"".join(records)
    truth = {
        "base_offset": 5,
        "next_offset": 5 + len(records),
        "record_count": len(records),
        "payload_bytes": len(payload),
        "uncompressed_bytes": len(payload),
        "append_time_ms": 1,
        "max_timestamp_ms": 1,
        "epoch": 1,
        "durable_offset": 1,
    }
    assert_same_verdict(codec_model.encode_batch_of(BatchHeader(**truth | lies), payload))


@tries(150)
@given(st.binary(max_size=80), st.integers(0, 2**32 - 1))
def test_checksums(data: bytes, start: int) -> None:
    assert crc32c(data, start) == crc32c(data, start, table=True) == codec_model.crc32c(data, start)
    assert masked(start) == codec_model.masked(start)


@tries(150)
@given(st.binary(max_size=40))
def test_hashes(data: bytes) -> None:
    assert murmur2(data) == codec_model.murmur2(data)
