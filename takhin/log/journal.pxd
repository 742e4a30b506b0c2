"""The write-ahead journal that all partitions share."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from takhin.log.files cimport Files

cdef enum:
    JOURNAL_BLOCK_BYTES = 512
    JOURNAL_HEADER_BYTES = 32
    ENTRY_HEADER_BYTES = 48
    ENTRY_PART_BYTES = 64
    PART_BATCHES = 1
    PART_OFFSETS = 2
    # Of an entry's payload. It is written and synced as a whole; a group commit with more than this is divided.
    MAX_ENTRY_BYTES = 4194304


cdef class JournalFile:
    cdef readonly str path
    cdef readonly dict covers       # Partition -> offset up to which the file holds it, until its segment is synced
    cdef readonly set undone        # numbers of transactions whose offsets are stored nowhere else yet
    cdef readonly bint retired
    cdef readonly int64_t end
    cdef int _fd
    cdef uint32_t _salt
    cdef bint _unnamed              # created, its name perhaps not yet on the disk


cdef class JournalCommit:
    cdef readonly JournalFile file
    cdef readonly int fd
    cdef readonly bytes header      # to be written first, at the file's beginning; empty when that stands there
    cdef readonly bytes data
    cdef readonly int64_t position
    cdef readonly int64_t end
    cdef readonly list directories
    cdef readonly list targets      # (partition, offset up to which this makes it durable)
    cdef readonly int64_t transaction   # the number of the transaction whose offsets it holds; 0: none


cdef class Journal:
    cdef Files _files
    cdef readonly str directory
    cdef int64_t _file_limit
    cdef tuple _pair
    cdef JournalFile _current
    cdef readonly bint enabled
    cdef uint64_t _sequence         # of the next entry
    # Why nothing can be written until the next start, both files being full or of no use: empty as long as it can.
    cdef readonly str blocked
    cdef readonly int64_t turns     # how often it went on in the other file
    cdef JournalCommit _commit(
        self, list chosen, list targets, int64_t payload, bytes offsets, int64_t number, int64_t now_ms
    )
