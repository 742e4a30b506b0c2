"""The hot messages: requests read in place, responses written straight into the bytes that go out."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from takhin.codec.wire cimport Field

cdef struct RecordSpan:
    uint32_t start          # within the request
    uint32_t size
    int64_t timestamp_ms    # 0: none


cdef class ProduceRequest:
    cdef readonly bytes topic
    cdef readonly int32_t partition
    cdef readonly int32_t required_acks
    cdef readonly int32_t timeout_ms
    cdef readonly uint32_t record_count
    cdef readonly uint32_t largest_record_bytes
    # Whether it came as `records`: then it keeps a batch of its own.
    cdef readonly bint is_batch
    # Whether producer or expected_offset is given: then it is appended under a condition.
    cdef readonly bint is_conditional
    cdef readonly bint has_producer
    cdef readonly bint has_expected_offset
    cdef readonly int64_t producer_id
    cdef readonly int32_t producer_epoch
    cdef readonly int64_t producer_sequence
    cdef readonly int64_t expected_offset
    cdef readonly size_t records_bytes
    cdef const uint8_t* data
    cdef RecordSpan* spans
    cdef uint32_t _capacity
    cdef uint32_t _limit
    cdef bytes _request
    cpdef int64_t key_partition(self, uint32_t num_partitions) except -2
    cdef int read_at(self, const uint8_t* data, size_t size) except -1
    cdef int _add(self, const uint8_t* record, size_t size) noexcept
    cdef int _read(self, const uint8_t* end) noexcept
    cdef int _read_producer(self, const Field* producer) noexcept
    cdef int _check_condition(self) except -1
    cdef int _fail(self, int fault) except -1


cdef class ConsumeRequest:
    cdef readonly bytes topic
    cdef readonly int32_t partition
    cdef readonly int64_t offset
    cdef readonly int32_t max_bytes
    cdef readonly int32_t min_bytes
    cdef readonly int32_t max_wait_ms
    cdef readonly bint until_end
    cdef readonly object start_time_ms
    cdef readonly int64_t max_records
    cdef readonly object last_epoch


cdef class ResponsePrefix:
    """What every response about one partition begins with: its topic and partition, encoded."""

    cdef uint8_t* data
    cdef size_t size
    cdef object produced(
        self, int64_t offset, int64_t timestamp_ms, uint32_t record_count, int durability, int32_t epoch, bint duplicate
    )
    cdef size_t consumed_size(self, int64_t high_watermark, int64_t log_start, bint caught_up) noexcept nogil
    cdef uint8_t* write_consumed(
        self, uint8_t* to, int64_t high_watermark, int64_t log_start, bint caught_up
    ) noexcept nogil


# As Kafka's clients and its default partitioner have it.
cdef uint32_t murmur2_of(const uint8_t* data, size_t size) noexcept nogil
