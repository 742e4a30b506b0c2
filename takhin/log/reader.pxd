"""Reading a partition in slices that go out as they are."""

from libc.stdint cimport int64_t, uint8_t

from takhin.log.partition cimport Partition
from takhin.log.segment cimport Segment


cdef struct Part:
    const uint8_t* data
    size_t size


cdef class Reader:
    cdef readonly Partition partition
    cdef readonly int64_t next_offset
    cdef readonly int64_t end_offset        # -1: none, the reader follows the log
    cdef readonly int64_t records_left      # -1: no bound
    # Where next_offset lies, when it was read from a file: in _segment at _position begins its batch; when that batch
    # was begun, its next record stands at _record_position (else 0) and the batch, already checked, ends at _batch_end.
    cdef Segment _segment
    cdef int64_t _position
    cdef int64_t _located_offset
    cdef int64_t _record_position
    cdef int64_t _batch_end

    cdef int64_t _end(self) noexcept
    cdef object _counted(self, int64_t offset, object response)
    cdef object _from_ring(self, int64_t max_bytes, int64_t end)
    cdef object _from_file(self, int64_t max_bytes, int64_t end, bint cached)
    cdef int _locate(self, bint cached) except -2
    cdef object _whole_batches(self, int fd, int64_t room, int64_t end, bint cached)
    cdef object _batch_part(self, int fd, int64_t room, bint cached)
    cdef object _begun_batch(self, int fd, int64_t room, bint cached)
    cdef object _response(self, const Part* parts, int count)
    cdef object _damaged(self)
