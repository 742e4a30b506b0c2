"""Messages that have come and wait to be read."""

from libc.stdint cimport uint8_t

cdef object keep_message(object inbox, const uint8_t* message, size_t size, bint is_compressed)
cdef object first_message(object inbox)
