"""What a transaction has appended to a partition, until it is decided."""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from takhin.log.partition cimport Partition


cdef class Hold:
    cdef readonly Partition partition
    cdef readonly int64_t end_offset
    cdef uint64_t _end              # number of the batch behind it
    cdef uint64_t _first(self) noexcept
    cdef int64_t size(self) noexcept
    cdef int64_t position(self) noexcept
    cdef void copy(self, uint8_t* to) noexcept


cdef int check_held(Partition partition, int64_t pending) except -1
