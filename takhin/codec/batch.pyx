"""The headers of batches and segment files, and records as they are stored.

A batch is one `batches` field of ConsumeMessagesResponse (the header, each field at a constant place) followed by
record_count `records` fields. The CRC covers all that follows it, so it is filled in last.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

cimport cython

from takhin.codec.crc32c cimport crc32c_of, mask
from takhin.codec.wire cimport (
    Cursor,
    Field,
    RecordFacts,
    SAFE_INT64,
    WIRE_VARINT,
    check_record,
    fault_text,
    read_field,
    varint_size,
    write_varint,
)

BATCH_HEADER_SIZE = BATCH_HEADER_BYTES
SEGMENT_HEADER_SIZE = SEGMENT_HEADER_BYTES

# A field is its tag and the value: places of the tags, counted from the batch's first byte.
cdef enum:
    MAGIC_AT = 2
    CRC_TAG_AT = 7
    BASE_OFFSET_AT = 12
    NEXT_OFFSET_AT = 21
    RECORD_COUNT_AT = 30
    PAYLOAD_BYTES_AT = 35
    UNCOMPRESSED_BYTES_AT = 40
    APPEND_TIME_AT = 45
    MAX_TIMESTAMP_AT = 54
    EPOCH_AT = 63
    DURABLE_OFFSET_AT = 68
    PRODUCER_ID_AT = 77
    PRODUCER_EPOCH_AT = 86
    PRODUCER_SEQUENCE_AT = 91
    FLAGS_AT = 100

# Tags: field number times 8, plus 5 for four bytes or 1 for eight.
cdef const char* BATCH_MAGIC = b"TKB1"
cdef const char* SEGMENT_MAGIC = b"TKS1"


cdef inline void _put32(uint8_t* at, uint8_t tag, uint32_t value) noexcept nogil:
    at[0] = tag
    at[1] = <uint8_t>value
    at[2] = <uint8_t>(value >> 8)
    at[3] = <uint8_t>(value >> 16)
    at[4] = <uint8_t>(value >> 24)


cdef inline void _put64(uint8_t* at, uint8_t tag, int64_t value) noexcept nogil:
    cdef uint64_t bits = <uint64_t>value
    cdef int i
    at[0] = tag
    for i in range(8):
        at[1 + i] = <uint8_t>(bits >> (8 * i))


cdef inline uint32_t _get32(const uint8_t* at) noexcept nogil:
    return <uint32_t>at[1] | <uint32_t>at[2] << 8 | <uint32_t>at[3] << 16 | <uint32_t>at[4] << 24


cdef inline int64_t _get64(const uint8_t* at) noexcept nogil:
    return <int64_t>(<uint64_t>_get32(at) | <uint64_t>_get32(at + 4) << 32)


cdef void write_batch_header(uint8_t* batch, const BatchHeader* header) noexcept nogil:
    """Write all of the header in front of its payload, which must stand there already: the CRC is taken here."""
    cdef uint32_t crc
    batch[0] = BATCH_TAG
    batch[1] = BATCH_BODY_BYTES
    batch[MAGIC_AT] = 1 << 3 | 5
    memcpy(batch + MAGIC_AT + 1, BATCH_MAGIC, 4)
    _put64(batch + BASE_OFFSET_AT, 3 << 3 | 1, header.base_offset)
    _put64(batch + NEXT_OFFSET_AT, 4 << 3 | 1, header.next_offset)
    _put32(batch + RECORD_COUNT_AT, 5 << 3 | 5, header.record_count)
    _put32(batch + PAYLOAD_BYTES_AT, 6 << 3 | 5, header.payload_bytes)
    _put32(batch + UNCOMPRESSED_BYTES_AT, 7 << 3 | 5, header.uncompressed_bytes)
    _put64(batch + APPEND_TIME_AT, 8 << 3 | 1, header.append_time_ms)
    _put64(batch + MAX_TIMESTAMP_AT, 9 << 3 | 1, header.max_timestamp_ms)
    _put32(batch + EPOCH_AT, 10 << 3 | 5, <uint32_t>header.epoch)
    _put64(batch + DURABLE_OFFSET_AT, 11 << 3 | 1, header.durable_offset)
    _put64(batch + PRODUCER_ID_AT, 12 << 3 | 1, header.producer_id)
    _put32(batch + PRODUCER_EPOCH_AT, 13 << 3 | 5, <uint32_t>header.producer_epoch)
    _put64(batch + PRODUCER_SEQUENCE_AT, 14 << 3 | 1, header.producer_sequence)
    _put32(batch + FLAGS_AT, 15 << 3 | 5, header.flags)
    crc = crc32c_of(
        0, batch + BATCH_CRC_COVERS_FROM, BATCH_HEADER_BYTES - BATCH_CRC_COVERS_FROM + <size_t>header.payload_bytes
    )
    _put32(batch + CRC_TAG_AT, 2 << 3 | 5, mask(crc))


cdef bint _has_tags(const uint8_t* batch) noexcept nogil:
    return (
        batch[0] == BATCH_TAG and batch[1] == BATCH_BODY_BYTES
        and batch[MAGIC_AT] == (1 << 3 | 5) and memcmp(batch + MAGIC_AT + 1, BATCH_MAGIC, 4) == 0
        and batch[CRC_TAG_AT] == (2 << 3 | 5)
        and batch[BASE_OFFSET_AT] == (3 << 3 | 1)
        and batch[NEXT_OFFSET_AT] == (4 << 3 | 1)
        and batch[RECORD_COUNT_AT] == (5 << 3 | 5)
        and batch[PAYLOAD_BYTES_AT] == (6 << 3 | 5)
        and batch[UNCOMPRESSED_BYTES_AT] == (7 << 3 | 5)
        and batch[APPEND_TIME_AT] == (8 << 3 | 1)
        and batch[MAX_TIMESTAMP_AT] == (9 << 3 | 1)
        and batch[EPOCH_AT] == (10 << 3 | 5)
        and batch[DURABLE_OFFSET_AT] == (11 << 3 | 1)
        and batch[PRODUCER_ID_AT] == (12 << 3 | 1)
        and batch[PRODUCER_EPOCH_AT] == (13 << 3 | 5)
        and batch[PRODUCER_SEQUENCE_AT] == (14 << 3 | 1)
        and batch[FLAGS_AT] == (15 << 3 | 5)
    )


cdef int read_batch_header(const uint8_t* batch, const uint8_t* end, BatchHeader* header) noexcept nogil:
    """BATCH_WHOLE when a header stands there and its payload lies before end, BATCH_CUT when it does not.

    The CRC is not looked at: until check_batch has, every number may be anything.
    """
    if end - batch < BATCH_HEADER_BYTES:
        return BATCH_CUT
    if not _has_tags(batch):
        return BATCH_NO_HEADER
    header.crc32c = _get32(batch + CRC_TAG_AT)
    header.base_offset = _get64(batch + BASE_OFFSET_AT)
    header.next_offset = _get64(batch + NEXT_OFFSET_AT)
    header.record_count = _get32(batch + RECORD_COUNT_AT)
    header.payload_bytes = _get32(batch + PAYLOAD_BYTES_AT)
    header.uncompressed_bytes = _get32(batch + UNCOMPRESSED_BYTES_AT)
    header.append_time_ms = _get64(batch + APPEND_TIME_AT)
    header.max_timestamp_ms = _get64(batch + MAX_TIMESTAMP_AT)
    header.epoch = <int32_t>_get32(batch + EPOCH_AT)
    header.durable_offset = _get64(batch + DURABLE_OFFSET_AT)
    header.producer_id = _get64(batch + PRODUCER_ID_AT)
    header.producer_epoch = <int32_t>_get32(batch + PRODUCER_EPOCH_AT)
    header.producer_sequence = _get64(batch + PRODUCER_SEQUENCE_AT)
    header.flags = _get32(batch + FLAGS_AT)
    if header.payload_bytes > <uint64_t>(end - batch - BATCH_HEADER_BYTES):
        return BATCH_CUT
    return BATCH_WHOLE


cdef int check_batch(const uint8_t* batch, const uint8_t* end, BatchHeader* header) noexcept nogil:
    """As read_batch_header, and the CRC matches, and the records lie as the header says."""
    cdef const uint8_t* payload = batch + BATCH_HEADER_BYTES
    cdef const uint8_t* payload_end
    cdef uint32_t crc
    cdef int fault = read_batch_header(batch, end, header)
    if fault:
        return fault
    payload_end = payload + header.payload_bytes
    crc = crc32c_of(0, batch + BATCH_CRC_COVERS_FROM, <size_t>(payload_end - batch - BATCH_CRC_COVERS_FROM))
    if mask(crc) != header.crc32c:
        return BATCH_BAD_CRC
    if header.flags & FLAGS_CODEC:
        return BATCH_UNKNOWN_CODEC
    if (
        header.base_offset < 0 or header.next_offset < header.base_offset or header.record_count == 0
        or header.next_offset - header.base_offset < <int64_t>header.record_count
        or skip_records(payload, payload_end, header.record_count) != payload_end
    ):
        return BATCH_BAD_RECORDS
    return BATCH_WHOLE


cdef uint8_t* write_record(
    uint8_t* to, const uint8_t* record, size_t size, bint with_timestamp, int64_t timestamp_ms, int64_t offset,
    int32_t partition
) noexcept nogil:
    """The record as it is stored: the producer's bytes, then the broker's fields, which win because they come last.

    `to` has room for size + RECORD_OVERHEAD_BYTES. Returns where the record ends.
    """
    cdef size_t stored = size + 2 + varint_size(<uint64_t>offset) + varint_size(<uint64_t><int64_t>partition)
    if with_timestamp:
        stored += 1 + varint_size(<uint64_t>timestamp_ms)
    to[0] = RECORD_TAG
    to = write_varint(to + 1, stored)
    memcpy(to, record, size)
    to += size
    if with_timestamp:
        to[0] = 4 << 3
        to = write_varint(to + 1, <uint64_t>timestamp_ms)
    to[0] = 5 << 3
    to = write_varint(to + 1, <uint64_t>offset)
    to[0] = 6 << 3
    return write_varint(to + 1, <uint64_t><int64_t>partition)


cdef const uint8_t* skip_record(const uint8_t* at, const uint8_t* end) noexcept nogil:
    """Where the stored record at `at` ends; NULL when none lies whole before end."""
    cdef uint64_t length = 0
    cdef uint32_t shift = 0
    cdef uint8_t byte
    if at >= end or at[0] != RECORD_TAG:
        return NULL
    at += 1
    while True:
        if at >= end or shift > 28:
            return NULL
        byte = at[0]
        at += 1
        length |= <uint64_t>(byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    if length > <uint64_t>(end - at):
        return NULL
    return at + length


cdef const uint8_t* skip_records(const uint8_t* at, const uint8_t* end, int64_t count) noexcept nogil:
    """As skip_record, count times."""
    while count > 0:
        at = skip_record(at, end)
        if at == NULL:
            return NULL
        count -= 1
    return at


cdef int64_t _stored_timestamp(const uint8_t* at, const uint8_t* end) noexcept nogil:
    """The timestamp of the stored record that lies between at and end: the last of those that stand there counts."""
    cdef Cursor cursor
    cdef Field field
    cdef int64_t timestamp_ms = 0
    # Tag and length; whoever calls knows that they are there.
    at += 1
    while at < end and at[0] >= 0x80:
        at += 1
    cursor.at = at + 1
    cursor.end = end
    while cursor.at < end:
        if read_field(&cursor, False, &field):
            break
        if field.number == 4 and field.wire_type == WIRE_VARINT:
            timestamp_ms = <int64_t>field.value
    return timestamp_ms


cdef int64_t first_timestamp(const uint8_t* at, const uint8_t* end) noexcept nogil:
    """The timestamp of the first of the stored records between at and end; 0 when none lies whole there."""
    cdef const uint8_t* after = skip_record(at, end)
    return _stored_timestamp(at, after) if after != NULL else 0


cdef int64_t find_timestamp(
    const uint8_t* at, const uint8_t* end, int64_t from_record, int64_t timestamp_ms
) noexcept nogil:
    """Of the stored records between at and end, counted from 0, the first one whose timestamp is timestamp_ms or later,
    and which is not before from_record; -1 when there is none."""
    cdef int64_t number = 0
    cdef const uint8_t* after
    while at < end:
        after = skip_record(at, end)
        if after == NULL:
            return -1
        if number >= from_record and _stored_timestamp(at, after) >= timestamp_ms:
            return number
        at = after
        number += 1
    return -1


cdef void write_segment_header(
    uint8_t* to, int64_t topic_id, uint32_t partition, int64_t base_offset, int64_t created_ms
) noexcept nogil:
    """SEGMENT_HEADER_BYTES at `to`: the first field of a segment file."""
    to[0] = SEGMENT_TAG
    to[1] = SEGMENT_BODY_BYTES
    to[2] = 1 << 3 | 5
    memcpy(to + 3, SEGMENT_MAGIC, 4)
    _put32(to + 12, 3 << 3 | 5, SEGMENT_VERSION)
    _put64(to + 17, 4 << 3 | 1, topic_id)
    _put32(to + 26, 5 << 3 | 5, partition)
    _put64(to + 31, 6 << 3 | 1, base_offset)
    _put64(to + 40, 7 << 3 | 1, created_ms)
    _put32(to + 7, 2 << 3 | 5, mask(crc32c_of(0, to + 12, SEGMENT_HEADER_BYTES - 12)))


cdef bint is_segment_header(
    const uint8_t* data, size_t size, int64_t topic_id, uint32_t partition, int64_t base_offset
) noexcept nogil:
    """Whether data begins with the header of just this segment, in a version this code reads."""
    cdef uint8_t expected[SEGMENT_HEADER_BYTES]
    if size < SEGMENT_HEADER_BYTES:
        return False
    write_segment_header(expected, topic_id, partition, base_offset, _get64(data + 40))
    return memcmp(expected, data, SEGMENT_HEADER_BYTES) == 0


class BatchError(ValueError):
    """Bytes that are not a whole batch; the message tells why."""


@cython.final
cdef class Batch:
    """The fields of a batch's header, as in takhin.v1.BatchHeader."""

    cdef readonly uint32_t crc32c
    cdef readonly int64_t base_offset
    cdef readonly int64_t next_offset
    cdef readonly uint32_t record_count
    cdef readonly uint32_t payload_bytes
    cdef readonly uint32_t uncompressed_bytes
    cdef readonly int64_t append_time_ms
    cdef readonly int64_t max_timestamp_ms
    cdef readonly int32_t epoch
    cdef readonly int64_t durable_offset
    cdef readonly int64_t producer_id
    cdef readonly int32_t producer_epoch
    cdef readonly int64_t producer_sequence
    cdef readonly uint32_t flags


def read_batch(bytes data not None, size_t position=0):
    """The header of the batch at position, after its CRC and its records were checked. Raises BatchError."""
    cdef BatchHeader header
    cdef const uint8_t* start = <const uint8_t*>data
    cdef size_t size = <size_t>len(data)
    cdef int fault
    if position > size:
        raise BatchError("the position lies beyond the data")
    fault = check_batch(start + position, start + size, &header)
    if fault == BATCH_CUT:
        raise BatchError("the batch is cut short")
    if fault == BATCH_NO_HEADER:
        raise BatchError("there is no batch header")
    if fault == BATCH_BAD_CRC:
        raise BatchError("the checksum does not match")
    if fault == BATCH_UNKNOWN_CODEC:
        raise BatchError("the batch is compressed by a codec this version does not know")
    if fault:
        raise BatchError("the records do not lie as the header says")
    batch = Batch()
    batch.crc32c = header.crc32c
    batch.base_offset = header.base_offset
    batch.next_offset = header.next_offset
    batch.record_count = header.record_count
    batch.payload_bytes = header.payload_bytes
    batch.uncompressed_bytes = header.uncompressed_bytes
    batch.append_time_ms = header.append_time_ms
    batch.max_timestamp_ms = header.max_timestamp_ms
    batch.epoch = header.epoch
    batch.durable_offset = header.durable_offset
    batch.producer_id = header.producer_id
    batch.producer_epoch = header.producer_epoch
    batch.producer_sequence = header.producer_sequence
    batch.flags = header.flags
    return batch


def offset_for_time(bytes data not None, int64_t timestamp_ms, size_t position=0, int64_t from_offset=0):
    """The first offset, from from_offset on, of the batch at position whose record has timestamp_ms or a later one.

    None when it has none. Raises BatchError.
    """
    batch = read_batch(data, position)
    cdef const uint8_t* start = <const uint8_t*>data + position + BATCH_HEADER_BYTES
    cdef int64_t base_offset = batch.base_offset
    cdef uint32_t payload_bytes = batch.payload_bytes
    cdef int64_t number = find_timestamp(start, start + payload_bytes, from_offset - base_offset, timestamp_ms)
    return base_offset + number if number >= 0 else None


def encode_batch(
    list records not None, int64_t base_offset, int32_t partition, int64_t append_time_ms, int32_t epoch,
    int64_t durable_offset
):
    """A batch as the log writes it, of encoded Records. For tools and tests; the log writes in place.

    Raises ValueError when there is no record, or one that breaks the rules of ingest, or a number is out of range.
    """
    cdef BatchHeader header
    cdef RecordFacts facts
    cdef bytes record
    cdef uint8_t* start
    cdef uint8_t* at
    cdef int fault
    cdef int64_t offset = base_offset
    cdef bytearray out
    if not records:
        raise ValueError("a batch has at least one record")
    if (
        not 0 <= base_offset <= SAFE_INT64 - len(records) or partition < 0
        or not 0 <= append_time_ms <= SAFE_INT64 or not 0 <= durable_offset <= SAFE_INT64
    ):
        raise ValueError("offsets, partition and time lie between 0 and 2^53 - 1")
    out = bytearray(BATCH_HEADER_BYTES + sum([len(record) + RECORD_OVERHEAD_BYTES for record in records]))
    start = <uint8_t*><char*>out
    at = start + BATCH_HEADER_BYTES
    header.max_timestamp_ms = -SAFE_INT64
    for record in records:
        fault = check_record(<const uint8_t*>record, <size_t>len(record), &facts)
        if fault:
            raise ValueError(fault_text(fault))
        if facts.timestamp_ms == 0:
            at = write_record(at, <const uint8_t*>record, len(record), True, append_time_ms, offset, partition)
            header.max_timestamp_ms = max(header.max_timestamp_ms, append_time_ms)
        else:
            at = write_record(at, <const uint8_t*>record, len(record), False, 0, offset, partition)
            header.max_timestamp_ms = max(header.max_timestamp_ms, facts.timestamp_ms)
        offset += 1
    header.base_offset = base_offset
    header.next_offset = offset
    header.record_count = <uint32_t>len(records)
    header.payload_bytes = <uint32_t>(at - start - BATCH_HEADER_BYTES)
    header.uncompressed_bytes = header.payload_bytes
    header.append_time_ms = append_time_ms
    header.epoch = epoch
    header.durable_offset = durable_offset
    header.producer_id = -1
    header.producer_epoch = -1
    header.producer_sequence = -1
    header.flags = 0
    write_batch_header(start, &header)
    return bytes(out[:at - start])


def encode_segment_header(int64_t topic_id, uint32_t partition, int64_t base_offset, int64_t created_ms):
    """The first field of a segment file, SEGMENT_HEADER_SIZE bytes."""
    cdef uint8_t header[SEGMENT_HEADER_BYTES]
    write_segment_header(header, topic_id, partition, base_offset, created_ms)
    return header[:SEGMENT_HEADER_BYTES]
