"""Batches and segment headers: what is written where, and that no damage goes unseen."""

import pytest

from takhin.codec.batch import (
    BATCH_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    BatchError,
    encode_batch,
    encode_segment_header,
    read_batch,
)
from takhin.v1 import takhin_pb2 as pb
from tests.codec.strategies import bytes_field, header, varint_field
from tests.model import codec_model
from tests.model.codec_model import SAFE_INT64, BatchHeader

RECORDS = [
    bytes_field(1, b"k") + bytes_field(2, b"one"),
    b"",
    header(b"name", b"value") + varint_field(4, 1_700_000_000_000),
]
# Where the tag of each field of the header stands.
TAG_PLACES = [2, 7, 12, 21, 30, 35, 40, 45, 54, 63, 68, 77, 86, 91, 100]
BATCH = encode_batch(RECORDS, 41, 5, 1_600_000_000_000, 3, 40)


def damaged_header(**numbers: int) -> bytes:
    """BATCH with other numbers in its header, and a checksum that matches them."""
    kept, _ = codec_model.read_batch(BATCH)
    return codec_model.encode_batch_of(BatchHeader(**vars(kept) | numbers), BATCH[BATCH_HEADER_SIZE:])


def test_sizes() -> None:
    assert BATCH_HEADER_SIZE == 105
    assert SEGMENT_HEADER_SIZE == 49
    assert len(encode_segment_header(1, 2, 3, 4)) == 49


def test_the_header_tells_what_was_put_in() -> None:
    batch = read_batch(BATCH)
    assert (batch.base_offset, batch.next_offset, batch.record_count) == (41, 44, 3)
    assert batch.payload_bytes == batch.uncompressed_bytes == len(BATCH) - BATCH_HEADER_SIZE
    assert (batch.append_time_ms, batch.max_timestamp_ms) == (1_600_000_000_000, 1_700_000_000_000)
    assert (batch.epoch, batch.durable_offset, batch.flags) == (3, 40, 0)
    assert (batch.producer_id, batch.producer_epoch, batch.producer_sequence) == (-1, -1, -1)


def test_every_field_has_its_place_whatever_the_numbers() -> None:
    for numbers in ((0, 0, 0, 0, 0), (2**40, 2**31 - 1, SAFE_INT64, -1, 2**50)):
        batch = encode_batch([b""], *numbers)
        assert [batch[place] >> 3 for place in TAG_PLACES] == list(range(1, 16))
        assert batch[:7] == b"\x32\x67\x0dTKB1"


def test_a_segment_header_reads_back() -> None:
    data = encode_segment_header(-(2**63), 2**32 - 1, SAFE_INT64, -5)
    segment = pb.ConsumeMessagesResponse.FromString(data).segment
    assert segment.magic.to_bytes(4, "little") == b"TKS1"
    assert segment.crc32c == codec_model.masked(codec_model.crc32c(data[12:]))
    assert (segment.version, segment.topic_id, segment.partition) == (1, -(2**63), 2**32 - 1)
    assert (segment.base_offset, segment.created_ms) == (SAFE_INT64, -5)


# Around those at which a stored record's length takes another byte.
@pytest.mark.parametrize("size_bytes", [0, 1, *range(98, 104), 127, 128, *range(16_352, 16_360), 16_384, 2_097_152])
def test_records_of_every_length_of_length(size_bytes: int) -> None:
    record = bytes_field(2, bytes(size_bytes))
    data = encode_batch([record, record], SAFE_INT64 - 2, 2**31 - 1, SAFE_INT64, 0, 0)
    read_batch(data)
    values = [stored.value for stored in pb.ConsumeMessagesResponse.FromString(data).records]
    assert values == [bytes(size_bytes)] * 2


def test_the_highest_timestamp() -> None:
    def highest(*timestamps: int) -> int:
        return read_batch(encode_batch([varint_field(4, one) for one in timestamps], 0, 0, 1000, 0, 0)).max_timestamp_ms

    assert highest(5) == 5
    assert highest(0, 5) == 1000
    assert highest(0, 5000, 7) == 5000
    assert highest(-5, -9) == -5
    assert highest(-SAFE_INT64) == -SAFE_INT64


def test_a_batch_stands_anywhere() -> None:
    data = b"before" + BATCH + BATCH + b"behind"
    assert read_batch(data, 6).base_offset == 41
    assert read_batch(data, 6 + len(BATCH)).base_offset == 41
    with pytest.raises(BatchError, match="cut short"):
        read_batch(data, 6 + 2 * len(BATCH))
    with pytest.raises(BatchError, match="no batch header"):
        read_batch(data, 5)


def test_a_position_beyond_the_data() -> None:
    with pytest.raises(BatchError, match="cut short"):
        read_batch(BATCH, len(BATCH))
    with pytest.raises(BatchError, match="beyond the data"):
        read_batch(BATCH, len(BATCH) + 1)
    with pytest.raises(BatchError, match="beyond the data"):
        read_batch(BATCH, 2**63)
    with pytest.raises(OverflowError):
        read_batch(BATCH, -1)


def test_every_flipped_bit_is_seen() -> None:
    # Alone, and with enough behind it that a payload size made larger still lies within the bytes.
    for behind in (b"", bytes(70_000)):
        for place in range(len(BATCH)):
            for bit in range(8):
                flipped = bytearray(BATCH + behind)
                flipped[place] ^= 1 << bit
                with pytest.raises(BatchError):
                    read_batch(bytes(flipped))


def test_every_truncation_is_seen() -> None:
    for size in range(len(BATCH)):
        with pytest.raises(BatchError, match="cut short"):
            read_batch(BATCH[:size])


def test_every_zeroed_and_every_swapped_byte_is_seen() -> None:
    for place in range(len(BATCH) - 1):
        zeroed = BATCH[:place] + b"\0" + BATCH[place + 1 :]
        swapped = BATCH[:place] + BATCH[place + 1 : place + 2] + BATCH[place : place + 1] + BATCH[place + 2 :]
        for data in (zeroed, swapped):
            if data != BATCH:
                with pytest.raises(BatchError):
                    read_batch(data)


def test_zeros_are_no_batch() -> None:
    for size in (0, 1, 104, 105, 106, 4096):
        with pytest.raises(BatchError):
            read_batch(bytes(size))


def test_a_batch_within_a_records_value_is_a_value() -> None:
    outer = encode_batch([bytes_field(2, BATCH), bytes_field(2, b"last")], 0, 0, 1, 0, 0)
    batch = read_batch(outer)
    assert (batch.base_offset, batch.record_count, batch.payload_bytes) == (0, 2, len(outer) - BATCH_HEADER_SIZE)
    response = pb.ConsumeMessagesResponse.FromString(outer)
    assert [record.value for record in response.records] == [BATCH, b"last"]


def test_the_fault_is_told() -> None:
    assert read_batch(damaged_header()).record_count == 3
    for why, data in {
        "cut short": damaged_header(payload_bytes=2**32 - 1),
        "no batch header": b"\x2a" + BATCH[1:],
        "checksum": BATCH[:-1] + b"\x01",
        "codec": damaged_header(flags=1),
        "do not lie": damaged_header(record_count=2),
    }.items():
        with pytest.raises(BatchError, match=why):
            read_batch(data)


@pytest.mark.parametrize("place", TAG_PLACES)
def test_a_field_with_another_tag_is_no_header(place: int) -> None:
    # Though the checksum matches.
    data = bytearray(BATCH)
    data[place] ^= 1 << 3
    data[8:12] = codec_model.masked(codec_model.crc32c(bytes(data[12:]))).to_bytes(4, "little")
    with pytest.raises(BatchError, match="no batch header"):
        read_batch(bytes(data))


@pytest.mark.parametrize("flags", range(1, 8))
def test_every_codec_is_unknown_as_yet(flags: int) -> None:
    for others in (0, 8, 0xFFFFFFF8):
        with pytest.raises(BatchError, match="codec"):
            read_batch(damaged_header(flags=flags | others))


@pytest.mark.parametrize(
    "lie",
    [
        {"record_count": 0},
        {"record_count": 2},
        {"record_count": 4},
        {"record_count": 2**32 - 1},
        {"base_offset": -1},
        {"base_offset": -(2**63)},
        {"next_offset": 43},
        {"next_offset": 41},
        {"next_offset": 0},
        {"next_offset": -1},
        {"next_offset": -(2**63)},
        {"base_offset": 2**63 - 1},
    ],
)
def test_headers_that_cannot_be(lie: dict[str, int]) -> None:
    with pytest.raises(BatchError, match="do not lie"):
        read_batch(damaged_header(**lie))


def test_after_compaction_there_are_gaps() -> None:
    assert read_batch(damaged_header(next_offset=10_000)).next_offset == 10_000
    assert read_batch(damaged_header(next_offset=2**63 - 1)).next_offset == 2**63 - 1


@pytest.mark.parametrize(
    "payload",
    [b"\x22", b"\x22\x01", b"\x22\x02a", b"\x2a\x00", b"\x22" + b"\x80" * 5 + b"\x00", b"\x22\xff\xff\xff\xff\x7f"],
)
def test_a_payload_that_is_not_one_record(payload: bytes) -> None:
    lie = BatchHeader(0, 1, 1, len(payload), len(payload), 0, 0, 0, 0)
    with pytest.raises(BatchError, match="do not lie"):
        read_batch(codec_model.encode_batch_of(lie, payload))


def test_lengths_of_records_may_be_padded_to_five_bytes() -> None:
    payload = b"\x22\x81\x80\x80\x80\x00a"
    assert read_batch(codec_model.encode_batch_of(BatchHeader(0, 1, 1, 7, 7, 0, 0, 0, 0), payload)).record_count == 1


def test_a_batch_has_a_record() -> None:
    with pytest.raises(ValueError, match="at least one"):
        encode_batch([], 0, 0, 0, 0, 0)


def test_records_are_bytes() -> None:
    for other in (None, bytearray(b""), "text", 1):
        with pytest.raises(TypeError):
            encode_batch([other], 0, 0, 0, 0, 0)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("base_offset", "partition", "append_time_ms", "durable_offset"),
    [
        *((-1, 0, 0, 0), (0, -1, 0, 0), (0, 0, -1, 0), (0, 0, 0, -1)),
        *((SAFE_INT64, 0, 0, 0), (0, 0, SAFE_INT64 + 1, 0), (0, 0, 0, SAFE_INT64 + 1)),
        (-(2**63), -(2**31), -(2**63), -(2**63)),
    ],
)
def test_the_brokers_own_numbers_stay_within_53_bits(
    base_offset: int, partition: int, append_time_ms: int, durable_offset: int
) -> None:
    with pytest.raises(ValueError):
        encode_batch([b""], base_offset, partition, append_time_ms, 0, durable_offset)


def test_the_brokers_own_numbers_at_their_bounds() -> None:
    # Each record has room for them all at their longest.
    records = [bytes_field(2, bytes(3)), b""] * 500
    data = encode_batch(records, SAFE_INT64 - 1000, 2**31 - 1, SAFE_INT64, 2**31 - 1, SAFE_INT64)
    assert read_batch(data).next_offset == SAFE_INT64
    response = pb.ConsumeMessagesResponse.FromString(data)
    assert response.records[-1].offset == SAFE_INT64 - 1
    assert {(record.partition, record.timestamp) for record in response.records} == {(2**31 - 1, SAFE_INT64)}
