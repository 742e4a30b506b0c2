"""The call that the code which runs now belongs to."""

from libc.stdint cimport int64_t


cdef class Scope:
    cdef readonly object call
    cdef public str trace_id
    cdef object token
    cdef int64_t begun_ns
