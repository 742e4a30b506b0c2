"""ProduceTransactionRequest, read in place."""

from libc.stdint cimport int32_t, int64_t

from takhin.codec.wire cimport Cursor, Field


cdef class TransactionRequest:
    # Of each append the bytes of its ProduceMessageRequest, not yet looked into.
    cdef readonly list appends
    cdef readonly str group_id
    # (topic, partition, offset)
    cdef readonly list offsets
    cdef readonly str member_id
    cdef readonly int32_t generation
    cdef readonly int32_t timeout_ms
    cdef Py_ssize_t _limit
    cdef int _read(self, Cursor* cursor) except -1
    cdef int _read_field(self, const Field* field) except -1
    cdef int _read_offset(self, const Field* field) except -1
    cdef int _check_count(self, list parts) except -1
