"""What bounds calls under way, in C: every call passes one."""

from libc.stdint cimport int64_t

cdef enum:
    # From such a share on, calls are looked at before their message is waited for.
    BUSY_SHARE = 4


cdef class Gate:
    cdef readonly str name
    cdef readonly int64_t open
    cdef readonly int64_t limit
    cdef readonly int64_t used_bytes
    cdef readonly int64_t limit_bytes
    cdef readonly int64_t refused
    # Calls refused for the bytes of their requests, which are not among those.
    cdef readonly int64_t refused_bytes

    cdef inline void come(self) noexcept:
        self.open += 1

    cdef inline void go(self) noexcept:
        self.open -= 1

    cdef inline bint busy(self) noexcept:
        return self.open * BUSY_SHARE >= self.limit

    cdef bint take_bytes(self, int64_t size_bytes) noexcept
