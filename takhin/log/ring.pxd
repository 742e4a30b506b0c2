"""A partition's hot tail in memory."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from takhin.log.files cimport Files


cdef struct Chunk:
    Chunk* next
    size_t capacity_bytes
    size_t used_bytes
    uint64_t first_batch    # number of the first batch that lies in it


cdef struct RingBatch:
    int64_t base_offset
    int64_t next_offset
    int64_t max_timestamp_ms
    int64_t append_time_ms
    int64_t position            # in all the bytes that were ever appended through this ring
    Chunk* chunk
    uint8_t* data
    uint32_t size


cdef class RingBudget:
    cdef readonly int64_t limit_bytes
    cdef readonly int64_t used_bytes
    cdef readonly int64_t limit_per_ring_bytes
    cdef dict _rings
    cdef int make_room(self, Ring asking, int64_t wanted_bytes) except -1


cdef class Ring:
    cdef RingBudget budget
    cdef Chunk* oldest
    cdef Chunk* newest
    cdef readonly int64_t size_bytes
    cdef int64_t appended_bytes
    cdef RingBatch* batches     # a circular array: batch number n stands at n & mask
    cdef uint64_t mask
    cdef uint64_t first         # number of the oldest batch held
    cdef uint64_t next          # number that the next batch will have
    cdef uint64_t unwritten     # number of the first batch that is not yet in the file
    cdef int64_t last_append_ms

    cdef uint8_t* reserve(self, size_t size) except NULL
    cdef size_t room(self) noexcept nogil
    cdef RingBatch* add(self) except NULL
    cdef void take(self, size_t size) noexcept nogil
    cdef inline RingBatch* batch(self, uint64_t number) noexcept nogil:
        return &self.batches[number & self.mask]
    cdef bint holds(self, int64_t offset) noexcept nogil
    cdef uint64_t find(self, int64_t offset) noexcept nogil
    cdef void drop_unwritten(self) noexcept
    cdef void trim(self, int64_t limit_bytes) noexcept
    cdef bint _drop_oldest(self) noexcept
    cdef void _shrink_batches(self) noexcept
    cdef void _count(self, int64_t more_bytes) noexcept
    cdef void _free_chunk(self, Chunk* chunk) noexcept


cdef int write_batches(Ring ring, uint64_t end, Files files, int fd, int64_t position) noexcept
