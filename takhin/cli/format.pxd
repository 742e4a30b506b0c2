"""Records as text, by a format like kcat's."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from takhin.client.messages cimport Message, RecordSpan

cdef struct Piece:
    int kind
    # Of a literal: its place among the literals.
    size_t start
    size_t size


cdef class Format:
    cdef bytes _literals
    cdef bytes _topic
    cdef Piece* _pieces
    cdef uint32_t _count
    cdef uint8_t* _data
    cdef size_t _size
    cdef size_t _capacity
    cdef int _piece(self, int kind, size_t start, size_t size) except -1
    cdef int _record(
        self, object owner, Py_ssize_t index, int32_t partition, const RecordSpan* span, const uint8_t* data
    ) except -1
    cdef int _headers(self, Message message) except -1
    cdef int _put(self, const uint8_t* data, size_t size) except -1
    cdef int _number(self, int64_t number) except -1
