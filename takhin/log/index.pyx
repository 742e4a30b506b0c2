"""The sparse index of a segment: where to begin looking for an offset or a time, and what the segment holds in sum.

An index is disposable. While its segment is the active one it lives in memory only; it is written to a file when all
of the segment is on the disk, so a valid index file vouches for its segment. One that is missing, short or wrong is
made again from the segment.

File: a header of 64 bytes, then 16 bytes an entry, all little-endian:
  0 magic "TKI1" · 4 version u32 · 8 CRC32C u32, masked, of all that follows it · 12 entries u32 · 16 base offset i64
  · 24 next offset i64 · 32 segment size in bytes i64 · 40 time of the last append in ms i64 · 48 largest timestamp in
  ms i64 · 56 largest epoch i32 · 60 CRC32C u32, masked, of bytes 12 to 59 (so that the sums can be trusted without
  reading the entries)
  entry: 0 offset - base offset u32 · 4 position u32 · 8 largest timestamp before it in ms i64
"""

import struct

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from takhin.codec.crc32c cimport crc32c_of, mask

INDEX_HEADER_SIZE = INDEX_HEADER_BYTES
_VERSION = 1
# What the second CRC covers, and the rest of the header around it.
_SUMS = struct.Struct("<Iqqqqqi")
_HEADER = struct.Struct("<4sII48sI")


class SegmentSummary:
    """What a segment holds in sum. Offsets are absolute, times in ms since the epoch."""

    __slots__ = ("base_offset", "next_offset", "size_bytes", "last_append_ms", "max_timestamp_ms", "max_epoch")

    def __init__(self, base_offset, next_offset, size_bytes, last_append_ms, max_timestamp_ms, max_epoch):
        self.base_offset = base_offset
        self.next_offset = next_offset
        self.size_bytes = size_bytes
        self.last_append_ms = last_append_ms
        self.max_timestamp_ms = max_timestamp_ms
        self.max_epoch = max_epoch


@cython.final
cdef class OffsetIndex:
    """Entries in the order of their offsets, so that both offset and time can be searched by halves."""

    def __dealloc__(self):
        free(self.entries)

    def __len__(self):
        return self.count

    cdef void add(self, uint32_t offset_delta, uint32_t position, int64_t max_timestamp_ms) noexcept:
        """Append an entry. Without memory for it the index only becomes sparser."""
        cdef uint32_t capacity
        cdef IndexEntry* grown
        if self.count == self._capacity:
            capacity = max(self._capacity * 2, 16)
            grown = <IndexEntry*>realloc(self.entries, capacity * sizeof(IndexEntry))
            if grown == NULL:
                return
            self.entries = grown
            self._capacity = capacity
        self.entries[self.count].offset_delta = offset_delta
        self.entries[self.count].position = position
        self.entries[self.count].max_timestamp_ms = max_timestamp_ms
        self.count += 1

    cdef int64_t locate(self, int64_t offset_delta) noexcept:
        """The position of the last indexed batch that begins at or before the offset; 0 when none does."""
        cdef uint32_t low = 0
        cdef uint32_t high = self.count
        cdef uint32_t middle
        while low < high:
            middle = low + (high - low) // 2
            if self.entries[middle].offset_delta <= offset_delta:
                low = middle + 1
            else:
                high = middle
        return self.entries[low - 1].position if low else 0

    cdef int64_t last_position(self) noexcept:
        """The position of the last entry; 0 when there is none."""
        return self.entries[self.count - 1].position if self.count else 0

    cdef int64_t locate_time(self, int64_t timestamp_ms) noexcept:
        """The position of the last indexed batch before which all timestamps are earlier; 0 when there is none.

        The first batch with that timestamp, or a later one, stands there or behind it, and before the next entry.
        """
        cdef uint32_t low = 0
        cdef uint32_t high = self.count
        cdef uint32_t middle
        while low < high:
            middle = low + (high - low) // 2
            if self.entries[middle].max_timestamp_ms < timestamp_ms:
                low = middle + 1
            else:
                high = middle
        return self.entries[low - 1].position if low else 0

    def encode(self, summary not None, int64_t count=-1):
        """The bytes of the index file, with the first `count` entries (-1: all)."""
        cdef int64_t used = self.count if count < 0 else min(count, <int64_t>self.count)
        cdef bytes entries = (<const char*>self.entries)[:used * <int64_t>sizeof(IndexEntry)] if used else b""
        sums = _SUMS.pack(
            used, summary.base_offset, summary.next_offset, summary.size_bytes, summary.last_append_ms,
            summary.max_timestamp_ms, summary.max_epoch,
        )
        rest = sums + struct.pack("<I", _masked(sums)) + entries
        return struct.pack("<4sII", b"TKI1", _VERSION, _masked(rest)) + rest

    @staticmethod
    def decode(bytes data not None):
        """The index in the bytes of a file, None when they are not what was once written."""
        cdef OffsetIndex index
        header = read_summary(data)
        if header is None:
            return None
        cdef uint32_t count = header[1]
        if <size_t>len(data) != INDEX_HEADER_BYTES + count * sizeof(IndexEntry):
            return None
        if struct.unpack_from("<I", data, 8)[0] != _masked(data[12:]):
            return None
        index = OffsetIndex()
        if count:
            index.entries = <IndexEntry*>realloc(NULL, count * sizeof(IndexEntry))
            if index.entries == NULL:
                raise MemoryError()
            memcpy(index.entries, PyBytes_AS_STRING(data) + INDEX_HEADER_BYTES, count * sizeof(IndexEntry))
            index.count = index._capacity = count
        return index


def read_summary(bytes header not None):
    """(SegmentSummary, number of entries) from the first INDEX_HEADER_SIZE bytes of an index file, None if damaged."""
    if len(header) < INDEX_HEADER_BYTES:
        return None
    magic, version, _, sums, crc = _HEADER.unpack_from(header)
    if magic != b"TKI1" or version != _VERSION or crc != _masked(sums):
        return None
    count, *fields = _SUMS.unpack(sums)
    return SegmentSummary(*fields), count


cdef uint32_t _masked(bytes data) noexcept:
    return mask(crc32c_of(0, <const uint8_t*>PyBytes_AS_STRING(data), <size_t>len(data)))
