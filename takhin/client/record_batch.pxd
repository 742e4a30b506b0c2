"""Records on their way to the broker, with who waits for them."""

from libc.stdint cimport int32_t, int64_t


cdef class RecordMetadata:
    cdef readonly str topic
    cdef readonly int32_t partition
    cdef readonly int64_t offset
    cdef readonly int64_t timestamp_ms


cdef class RecordBatch:
    cdef readonly Py_ssize_t size_bytes
    cdef readonly list deliveries
    cdef list _records
    cdef bytes _payload
    cdef Py_ssize_t _encoded_count
    cdef bint _has_timestamps
