"""Lines of a file or a pipe, made into the records of produce requests."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef struct Buffer:
    uint8_t* data
    size_t size
    size_t capacity
    uint32_t count          # records in it
    int64_t first_line


cdef class LineEncoder:
    cdef readonly int64_t lines
    cdef uint8_t _delimiter
    cdef bint _keeps_ends
    cdef bytes _separator
    cdef bytes _key
    cdef bytes _headers
    cdef bint _empty_is_none
    cdef uint32_t _num_partitions
    cdef size_t _batch_bytes
    cdef uint32_t _batch_records
    cdef size_t _line_bytes
    # One for each partition, and before these one for records without a key.
    cdef Buffer* _buffers
    cdef list _full
    # The beginning of a line whose end has not come yet.
    cdef Buffer _rest
    cdef int _line(self, const uint8_t* line, size_t size, bint has_end) except -1
    cdef int _add(self, const uint8_t* key, size_t key_size, const uint8_t* value, size_t value_size) except -1
    cdef int _close(self, Buffer* buffer, int64_t partition) except -1
    cdef int _keep(self, const uint8_t* data, size_t size) except -1
