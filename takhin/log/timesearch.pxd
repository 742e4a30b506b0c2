"""Finding the offset at which a time begins."""

from libc.stdint cimport int64_t

from takhin.log.partition cimport Partition
from takhin.log.segment cimport Segment


cdef class TimeSearch:
    cdef readonly Partition partition
    cdef readonly int64_t timestamp_ms
    cdef readonly int64_t end_offset    # of what was searched: what the log's end was when the search began
    cdef readonly int64_t batches       # looked at so far
    cdef readonly int64_t read_bytes    # from segment files, so far
    cdef int64_t _bytes_left            # to be looked through before it takes too long for the event loop
    cdef int64_t _position

    cdef object _find(self, bint cached)
    cdef int64_t _in_segments(self, tuple segments, int64_t start, bint cached) except? -3
    cdef int64_t _in_segment(self, Segment segment, int64_t start, bint cached) except? -3
    cdef int64_t _in_file(self, int fd, Segment segment, int64_t start, bint cached) except? -3
    cdef object _damaged(self, Segment segment)
