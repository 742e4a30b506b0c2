"""The sparse index of a segment: where to begin looking for an offset or a time."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef enum:
    INDEX_HEADER_BYTES = 64
    # One entry for so much log, at a batch's boundary.
    INDEX_INTERVAL_BYTES = 4096


# As in the file, little-endian.
cdef packed struct IndexEntry:
    uint32_t offset_delta       # of the batch, from the segment's base offset
    uint32_t position           # of the batch in the file
    int64_t max_timestamp_ms    # the largest timestamp before this batch


cdef class OffsetIndex:
    cdef IndexEntry* entries
    cdef uint32_t count
    cdef uint32_t _capacity
    cdef void add(self, uint32_t offset_delta, uint32_t position, int64_t max_timestamp_ms) noexcept
    cdef int64_t locate(self, int64_t offset_delta) noexcept
    cdef int64_t last_position(self) noexcept
    cdef int64_t locate_time(self, int64_t timestamp_ms) noexcept
