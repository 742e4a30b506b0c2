"""The text forms of gRPC over HTTP/2: timeouts, messages of a status, binary metadata."""

from libc.stdint cimport int64_t, uint8_t

# No timeout, or one that says nothing.
cdef enum:
    NO_TIMEOUT = -1

cdef int64_t parse_timeout_us(const uint8_t* at, size_t size) noexcept nogil
cdef bytes percent_encoded(bytes text)
