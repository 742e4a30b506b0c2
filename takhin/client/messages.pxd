"""Messages as the client hands them out, decoded from a response's bytes when they are asked for."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

cdef struct RecordSpan:
    # Places within the response; a size of NOTHING: there is none.
    uint32_t start
    uint32_t size
    uint32_t key_start
    uint32_t key_size
    uint32_t value_start
    uint32_t value_size
    uint32_t header_count
    int32_t epoch           # -1: not known
    int64_t timestamp_ms
    int64_t offset


cdef class Message:
    cdef readonly str topic
    cdef readonly int32_t partition
    cdef RecordSpan _span
    # Of the response; None once there is nothing more to decode.
    cdef bytes _data
    cdef bytes _key
    cdef bytes _value
    cdef tuple _headers


cdef class Records:
    cdef readonly str topic
    cdef readonly int32_t partition
    cdef readonly int64_t high_watermark
    cdef readonly int64_t log_start_offset
    cdef readonly int64_t next_offset
    cdef readonly int64_t durable_offset
    cdef readonly int32_t last_epoch
    cdef readonly bint caught_up
    cdef readonly object damage
    cdef bytes _data
    cdef RecordSpan* _spans
    cdef uint32_t _first
    cdef uint32_t _count
    cdef uint32_t _capacity
    cdef int _scan(self, const uint8_t* at, const uint8_t* end, bint check) except -1
    cdef const uint8_t* _scan_batch(self, const uint8_t* at, const uint8_t* end, bint check) except? NULL
    cdef int _add(self, const uint8_t* record, size_t size, int32_t epoch) except -1
    cdef Message _message(self, uint32_t index)
