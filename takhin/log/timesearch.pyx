"""Finding the offset at which a time begins.

That is the first offset whose record has the time as its timestamp, or a later one. Timestamps are in no order, as
producers set them: but the largest one so far never falls, and where it reaches the time, there the first such record
is. Each segment knows its largest timestamp; in the first one that reaches the time the index is searched by halves,
and the batches from there on, an index interval of them at most, are looked through.

So the work does not grow with the log, with one exception: where the log's start was moved into a segment and what
lies before it in there has later timestamps, the index cannot tell, and what is left of that segment is looked through.
"""

import os

cimport cython
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc

from takhin.codec.batch cimport (
    BATCH_CUT,
    BATCH_HEADER_BYTES,
    BATCH_WHOLE,
    BatchHeader,
    check_batch,
    find_timestamp,
    read_batch_header,
)
from takhin.log.files cimport FILES_WOULD_BLOCK
from takhin.log.partition cimport Partition
from takhin.log.segment cimport Segment

from takhin.errors import Reason, error
from takhin.log.reader import WOULD_BLOCK

cdef enum:
    NOT_FOUND = -1
    BLOCKED = -2
    # What is read at once: an index interval and, as a rule, the batch that ends it.
    READ_BYTES = 16 * 1024
    # The event loop looks through so much at once; where there is more, a thread does.
    LOOP_BYTES = 256 * 1024


@cython.final
cdef class TimeSearch:
    """Looks for the first offset of a partition, below W, whose record's timestamp is timestamp_ms or later."""

    def __init__(self, Partition partition not None, int64_t timestamp_ms):
        self.partition = partition
        self.timestamp_ms = timestamp_ms
        self.end_offset = partition.written_offset

    def find(self):
        """The offset, None when no record below end_offset has such a timestamp, WOULD_BLOCK when what it takes is not
        in memory, or too much for the event loop.

        Raises DataLoss when a checksum fails, OSError.
        """
        return self._find(True)

    def find_blocking(self):
        """As find(); waits for the disk, without the interpreter. Any thread may call it."""
        return self._find(False)

    cdef object _find(self, bint cached):
        cdef Partition partition = self.partition
        cdef int64_t start
        cdef int64_t found
        self._bytes_left = LOOP_BYTES
        while True:
            start = partition.log_start_offset
            self.end_offset = partition.written_offset
            try:
                found = self._in_segments(partition.segments, start, cached)
            except OSError:
                # The log's start may have moved meanwhile, and the file be gone with what lay before it.
                if partition.log_start_offset == start:
                    raise
                continue
            if found == BLOCKED:
                return WOULD_BLOCK
            if found == NOT_FOUND:
                return None
            if found >= partition.log_start_offset:
                return found

    cdef int64_t _in_segments(self, tuple segments, int64_t start, bint cached) except? -3:
        cdef Segment segment
        cdef int64_t found
        # One after the other, in memory: what it would take to search them by halves, the largest timestamp up to each,
        # would have to be made by the same walk.
        for segment in segments:
            if segment.next_offset > start and segment.max_timestamp_ms >= self.timestamp_ms:
                found = self._in_segment(segment, start, cached)
                # Else the timestamp that reaches so far is one of those before the log's start.
                if found != NOT_FOUND:
                    return found
        return NOT_FOUND

    cdef int64_t _in_segment(self, Segment segment, int64_t start, bint cached) except? -3:
        cdef int fd
        if cached and segment.index is None:
            return BLOCKED
        self._position = segment.locate_time(self.timestamp_ms)
        if start > segment.base_offset:
            self._position = max(self._position, segment.locate(start))
        fd = segment.acquire()
        try:
            return self._in_file(fd, segment, start, cached)
        finally:
            segment.release()

    cdef int64_t _in_file(self, int fd, Segment segment, int64_t start, bint cached) except? -3:
        """From the batch at _position on."""
        cdef Partition partition = self.partition
        cdef int64_t end_position = segment.size_bytes
        cdef int64_t want
        cdef int64_t needed
        cdef int64_t capacity = READ_BYTES
        cdef int64_t found = NOT_FOUND
        cdef int64_t batches = 0
        cdef int fault = BATCH_WHOLE
        cdef ssize_t got
        cdef uint8_t* buffer = <uint8_t*>malloc(<size_t>capacity)
        cdef const uint8_t* at
        try:
            while self._position < end_position:
                if buffer == NULL:
                    raise MemoryError()
                want = min(capacity, end_position - self._position)
                self._bytes_left -= want
                if cached and self._bytes_left < 0:
                    return BLOCKED
                at = buffer
                with nogil:
                    got = partition.cache.files.read_full(fd, buffer, <size_t>want, self._position, cached)
                    if got == want:
                        found = _look_through(&at, buffer + got, start, self.timestamp_ms, &batches, &fault)
                if cached and (got == -FILES_WOULD_BLOCK or 0 <= got < want):
                    return BLOCKED
                if got < 0:
                    raise OSError(-got, os.strerror(-got), segment.path)
                self.read_bytes += got
                if found >= 0:
                    return found
                self._position += at - buffer
                if fault == BATCH_WHOLE and got == want:
                    continue
                if fault != BATCH_CUT or got < want:
                    self._damaged(segment)
                needed = _claimed_size(at, buffer + got)
                if needed > end_position - self._position:
                    self._damaged(segment)
                if needed > capacity:
                    capacity = needed
                    free(buffer)
                    buffer = <uint8_t*>malloc(<size_t>capacity)
            return NOT_FOUND
        finally:
            self.batches += batches
            free(buffer)

    cdef object _damaged(self, Segment segment):
        cdef Partition partition = self.partition
        raise error(
            Reason.CORRUPT_BATCH,
            f"at which offset of {partition.topic}/{partition.partition} the time {self.timestamp_ms} begins can't be "
            f"told: a batch is damaged ({os.path.basename(segment.path)} at byte {self._position})",
            topic=partition.topic, partition=partition.partition,
        )


cdef int64_t _look_through(
    const uint8_t** at, const uint8_t* end, int64_t start, int64_t timestamp_ms, int64_t* batches, int* fault
) noexcept nogil:
    """The first offset from start on with that timestamp or a later one; NOT_FOUND: not in the whole batches before
    end, `at` is behind the last of them, and fault says what stands there (BATCH_WHOLE: nothing)."""
    cdef BatchHeader header
    cdef const uint8_t* payload
    cdef int64_t number
    fault[0] = BATCH_WHOLE
    while at[0] < end:
        # Its checksum too, of one that is passed over: its largest timestamp would not be worth much else.
        fault[0] = check_batch(at[0], end, &header)
        if fault[0]:
            break
        batches[0] += 1
        payload = at[0] + BATCH_HEADER_BYTES
        at[0] = payload + header.payload_bytes
        if header.next_offset > start and header.max_timestamp_ms >= timestamp_ms:
            number = find_timestamp(payload, at[0], start - header.base_offset, timestamp_ms)
            if number >= 0:
                return header.base_offset + number
    return NOT_FOUND


cdef int64_t _claimed_size(const uint8_t* batch, const uint8_t* end) noexcept nogil:
    """How large the batch says it is, of which the end is missing; of its header alone, when that is not whole."""
    cdef BatchHeader header
    header.payload_bytes = 0
    read_batch_header(batch, end, &header)
    return BATCH_HEADER_BYTES + <int64_t>header.payload_bytes
