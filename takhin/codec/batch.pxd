"""The headers of batches and segment files, and records as they are stored. docs/format.md has it byte by byte."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

cdef enum:
    # A batch begins with the tag and length of ConsumeMessagesResponse.batches; then the fields, each at its place.
    BATCH_TAG = 0x32
    BATCH_HEADER_BYTES = 105
    BATCH_BODY_BYTES = 103
    BATCH_CRC_AT = 8
    BATCH_CRC_COVERS_FROM = 12
    RECORD_TAG = 0x22
    COMPRESSED_TAG = 0x72
    SEGMENT_TAG = 0x7A
    SEGMENT_HEADER_BYTES = 49
    SEGMENT_BODY_BYTES = 47
    SEGMENT_VERSION = 1
    FLAGS_CODEC = 0x7
    # What a stored record may have more than the producer sent: tag and length (6), timestamp, offset and partition
    # (11 each).
    RECORD_OVERHEAD_BYTES = 39

cdef enum BatchFault:
    BATCH_WHOLE = 0
    BATCH_CUT           # it ends beyond the bytes given
    BATCH_NO_HEADER     # what stands there is not a batch's header
    BATCH_BAD_CRC
    BATCH_BAD_RECORDS   # the CRC matches, but the records do not lie as the header says
    BATCH_UNKNOWN_CODEC


cdef struct BatchHeader:
    uint32_t crc32c
    int64_t base_offset
    int64_t next_offset
    uint32_t record_count
    uint32_t payload_bytes
    uint32_t uncompressed_bytes
    int64_t append_time_ms
    int64_t max_timestamp_ms
    int32_t epoch
    int64_t durable_offset
    int64_t producer_id
    int32_t producer_epoch
    int64_t producer_sequence
    uint32_t flags


cdef void write_batch_header(uint8_t* batch, const BatchHeader* header) noexcept nogil
cdef int read_batch_header(const uint8_t* batch, const uint8_t* end, BatchHeader* header) noexcept nogil
cdef int check_batch(const uint8_t* batch, const uint8_t* end, BatchHeader* header) noexcept nogil
cdef uint8_t* write_record(
    uint8_t* to, const uint8_t* record, size_t size, bint with_timestamp, int64_t timestamp_ms, int64_t offset,
    int32_t partition
) noexcept nogil
cdef const uint8_t* skip_record(const uint8_t* at, const uint8_t* end) noexcept nogil
cdef const uint8_t* skip_records(const uint8_t* at, const uint8_t* end, int64_t count) noexcept nogil
cdef int64_t first_timestamp(const uint8_t* at, const uint8_t* end) noexcept nogil
cdef int64_t find_timestamp(
    const uint8_t* at, const uint8_t* end, int64_t from_record, int64_t timestamp_ms
) noexcept nogil
cdef void write_segment_header(
    uint8_t* to, int64_t topic_id, uint32_t partition, int64_t base_offset, int64_t created_ms
) noexcept nogil
cdef bint is_segment_header(
    const uint8_t* data, size_t size, int64_t topic_id, uint32_t partition, int64_t base_offset
) noexcept nogil
