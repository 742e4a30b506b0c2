"""One segment file and its index."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from takhin.codec.batch cimport BatchHeader
from takhin.log.files cimport Files
from takhin.log.index cimport OffsetIndex
from takhin.log.producers cimport ProducerStates


cdef class FileCache:
    cdef readonly Files files
    cdef readonly int limit
    # None, or in words why nothing may be appended: too little is free on the disk.
    cdef public str no_room
    cdef object _open       # OrderedDict: the one longest unused first
    cdef int admit(self, Segment segment) except -1


cdef class Segment:
    cdef FileCache cache
    cdef readonly str path
    cdef readonly int64_t topic_id
    cdef readonly uint32_t partition
    cdef readonly int64_t base_offset
    cdef readonly int64_t next_offset
    cdef readonly int64_t size_bytes        # what is written and whole
    cdef readonly int64_t created_ms
    cdef readonly int64_t last_append_ms
    cdef readonly int64_t max_timestamp_ms
    cdef readonly int32_t max_epoch
    # Of a segment that was scanned: up to where its index file vouched for it, and the highest durable offset that one
    # of the batches behind that tells of (and that the journal alone may have made durable).
    cdef readonly int64_t checkpoint_bytes
    cdef readonly int64_t checkpoint_offset
    cdef readonly int64_t proven_offset
    # Not all of it is known to be on the disk: its file stays open, so that no error of the kernel's goes unseen.
    cdef public bint dirty
    cdef OffsetIndex index                  # None: not in memory
    cdef int64_t _indexed_position          # of the batch that has the last entry
    cdef int64_t _index_file_covers         # size_bytes when the index file was written, 0: it is not relied on
    cdef int _fd
    cdef int _users
    cdef bint _unlinked
    cdef int acquire(self) except -1
    cdef void release(self) noexcept
    cdef void _close_file(self) noexcept
    cdef void note(
        self, int64_t base_offset, int64_t next_offset, int64_t size, int64_t max_timestamp_ms, int64_t append_ms,
        int32_t epoch
    ) noexcept
    cdef int64_t locate(self, int64_t offset) except -1
    cdef int _check_at(
        self, int fd, int64_t position, int64_t file_size, uint8_t* buffer, BatchHeader* header
    ) except -1
    cdef int _replay(
        self, ProducerStates states, const BatchHeader* header, int64_t position, const uint8_t* data
    ) except -1
    cdef int64_t locate_time(self, int64_t timestamp_ms) except -1
    cdef void _note_header(self, const BatchHeader* header) noexcept
