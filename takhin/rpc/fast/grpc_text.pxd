"""The text forms of gRPC over HTTP/2: timeouts, messages of a status, binary metadata."""

from libc.stdint cimport int64_t, uint8_t

cdef enum:
    # So long that it is none.
    NO_TIMEOUT = -1
    # What is not a timeout.
    BAD_TIMEOUT = -2

cdef int64_t parse_timeout_us(const uint8_t* at, size_t size) noexcept nogil
cdef bytes percent_encoded(bytes text)
