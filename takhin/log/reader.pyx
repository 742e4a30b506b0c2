"""Reading a partition in slices that go out as they are.

A response is a few fields and then a slice of the log: whole batches with their headers, as many as fit. Where the
first one is begun in its middle, or does not fit, its records go out without its header, whose checksum would not
match; whole batches may follow its last record. What the ring holds is copied from there; the rest is read from the
segments, and every batch's checksum is verified before a record of it goes out.
"""

import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from takhin.codec.batch cimport (
    BATCH_CUT,
    BATCH_HEADER_BYTES,
    BATCH_WHOLE,
    BatchHeader,
    check_batch,
    read_batch_header,
    skip_record,
    skip_records,
)
from takhin.log.files cimport FILES_WOULD_BLOCK
from takhin.log.partition cimport Partition
from takhin.log.ring cimport Ring, RingBatch
from takhin.log.segment cimport Segment

from takhin.errors import Reason, error

cdef extern from "Python.h":
    PyObject* _new_bytes "PyBytes_FromStringAndSize"(const char* data, Py_ssize_t size) except NULL
    char* _bytes_data "PyBytes_AS_STRING"(PyObject* data) noexcept nogil
    int _PyBytes_Resize(PyObject** data, Py_ssize_t size) except -1
    void Py_XDECREF(PyObject* data)

# What read() answers when the data is not in memory: read_blocking, in a thread, will get it.
WOULD_BLOCK = object()

cdef enum:
    RING_PARTS = 64
    # caught_up = true: field 8, a varint.
    CAUGHT_UP_BYTES = 2


cdef const uint8_t* _take_records(
    const uint8_t* at, const uint8_t* end, int64_t room, int64_t most, int64_t* taken
) noexcept nogil:
    """Where the records end that fit into room, at most `most` of them (-1: any number), the first one in any case."""
    cdef const uint8_t* start = at
    cdef const uint8_t* after
    taken[0] = 0
    while at < end and taken[0] != most:
        after = skip_record(at, end)
        if after == NULL or (taken[0] and after - start > room):
            break
        at = after
        taken[0] += 1
    return at


@cython.final
cdef class Reader:
    """One reader's way through a partition, from offset on.

    With end_offset it is done there, with max_records after so many. Used by one task at a time.
    """

    def __init__(self, Partition partition not None, int64_t offset, int64_t end_offset=-1, int64_t max_records=-1):
        self.partition = partition
        self.next_offset = offset
        self.end_offset = end_offset
        self.records_left = max_records
        self._located_offset = -1

    @property
    def done(self):
        """Whether the reader has all it was made for."""
        return self.records_left == 0 or (self.end_offset >= 0 and self.next_offset >= self.end_offset)

    @property
    def available_bytes(self):
        """How many bytes of log lie before it, never fewer than do: in whole batches, on the disk in whole segments."""
        cdef Partition partition = self.partition
        cdef Ring ring = partition.ring
        cdef Segment segment
        cdef int64_t total = 0
        if self.next_offset >= self._end():
            return 0
        if ring.holds(self.next_offset):
            return partition._written_position - ring.batch(ring.find(self.next_offset)).position
        for segment in partition.segments:
            if segment.next_offset > self.next_offset:
                total += segment.size_bytes
        return total

    cdef int64_t _end(self) noexcept:
        if 0 <= self.end_offset < self.partition.written_offset:
            return self.end_offset
        return self.partition.written_offset

    def empty_response(self):
        """A response without records, that tells where the log ends."""
        return self._response(NULL, 0)

    def read(self, int64_t max_bytes):
        """The next response, of at most max_bytes unless one record is larger. None when there is nothing to read yet,
        WOULD_BLOCK when it is not in memory.

        Raises OutOfRange when the log's start has moved beyond next_offset, DataLoss when a checksum fails, OSError.
        """
        cdef int64_t end = self._end()
        cdef int64_t offset = self.next_offset
        self.check_start()
        if self.next_offset >= end or self.records_left == 0:
            return None
        if self.partition.ring.holds(self.next_offset):
            return self._counted(offset, self._from_ring(max_bytes, end))
        return self._counted(offset, self._from_file(max_bytes, end, True))

    def read_blocking(self, int64_t max_bytes):
        """As read(), from the files; waits for the disk, without the interpreter. Any thread may call it."""
        cdef int64_t end = self._end()
        cdef int64_t offset = self.next_offset
        self.check_start()
        if self.next_offset >= end or self.records_left == 0:
            return None
        return self._counted(offset, self._from_file(max_bytes, end, False))

    cdef object _counted(self, int64_t offset, object response):
        if response is not WOULD_BLOCK:
            self.partition.read_records += self.next_offset - offset
            self.partition.read_bytes += len(<bytes>response)
        return response

    def rewind(self, int64_t offset, int64_t records_left):
        """Go back to where the last response began: it was not sent."""
        self.partition.read_records -= self.next_offset - offset
        self.next_offset = offset
        self.records_left = records_left
        self._located_offset = -1

    def check_start(self):
        """Raises OutOfRange when the log's start has moved beyond next_offset."""
        if self.next_offset < self.partition.log_start_offset:
            raise error(
                Reason.OFFSET_OUT_OF_RANGE,
                f"offset {self.next_offset} of {self.partition.topic}/{self.partition.partition} is gone: the log "
                f"begins at {self.partition.log_start_offset} now",
                log_start_offset=self.partition.log_start_offset, end_offset=self.partition.written_offset,
            )

    # From the ring

    cdef object _from_ring(self, int64_t max_bytes, int64_t end):
        cdef Ring ring = self.partition.ring
        cdef uint64_t number = ring.find(self.next_offset)
        cdef RingBatch* batch
        cdef Part parts[RING_PARTS]
        cdef int count = 0
        cdef int64_t room = self._room(max_bytes)
        cdef int64_t taken
        cdef const uint8_t* start
        cdef const uint8_t* stop
        # Not to keep a file open that nobody needs any more.
        self._segment = None
        self._located_offset = -1
        while number < ring.unwritten and count < RING_PARTS:
            batch = ring.batch(number)
            taken = batch.next_offset - batch.base_offset
            if batch.base_offset >= end:
                break
            if self.next_offset == batch.base_offset and batch.size <= room and (
                self.records_left < 0 or taken <= self.records_left
            ):
                start = batch.data
                stop = start + batch.size
            elif count == 0:
                start = skip_records(
                    batch.data + BATCH_HEADER_BYTES, batch.data + batch.size, self.next_offset - batch.base_offset
                )
                stop = _take_records(start, batch.data + batch.size, room, self.records_left, &taken)
            else:
                break
            if count and parts[count - 1].data + parts[count - 1].size == start:
                parts[count - 1].size += stop - start
            else:
                parts[count].data = start
                parts[count].size = stop - start
                count += 1
            room -= stop - start
            self.next_offset += taken
            if self.records_left > 0:
                self.records_left -= taken
            if self.next_offset != batch.next_offset:
                break
            number += 1
        return self._response(parts, count)

    def _room(self, int64_t max_bytes):
        return max_bytes - <int64_t>self._prefix_size() - CAUGHT_UP_BYTES

    def _prefix_size(self):
        cdef Partition partition = self.partition
        return partition.prefix.consumed_size(partition.written_offset, partition.log_start_offset, False)

    cdef object _response(self, const Part* parts, int count):
        cdef Partition partition = self.partition
        cdef int64_t high_watermark = partition.written_offset
        cdef bint caught_up = self.next_offset >= high_watermark
        cdef size_t size = partition.prefix.consumed_size(high_watermark, partition.log_start_offset, caught_up)
        cdef bytes response
        cdef uint8_t* at
        cdef int i
        for i in range(count):
            size += parts[i].size
        response = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        at = <uint8_t*>PyBytes_AS_STRING(response)
        at = partition.prefix.write_consumed(at, high_watermark, partition.log_start_offset, caught_up)
        for i in range(count):
            memcpy(at, parts[i].data, parts[i].size)
            at += parts[i].size
        return response

    # From the files

    cdef object _from_file(self, int64_t max_bytes, int64_t end, bint cached):
        cdef int fd
        cdef object response
        cdef int64_t room = self._room(max_bytes)
        cdef Segment segment
        if self._located_offset != self.next_offset and not self._locate(cached):
            return WOULD_BLOCK
        segment = self._segment
        fd = segment.acquire()
        try:
            if self._record_position:
                return self._begun_batch(fd, room, cached)
            response = self._whole_batches(fd, room, end, cached)
            if response is None:
                response = self._batch_part(fd, room, cached)
            return response
        finally:
            segment.release()

    cdef int _locate(self, bint cached) except -2:
        """Find the batch in which next_offset lies. False when that would block. Raises DataLoss, OSError."""
        cdef Partition partition = self.partition
        cdef Segment segment = None
        cdef Segment candidate
        cdef uint8_t bytes_[BATCH_HEADER_BYTES]
        cdef BatchHeader header
        cdef int64_t position
        cdef ssize_t got
        cdef int fd
        for candidate in reversed(partition.segments):
            if candidate.base_offset <= self.next_offset:
                segment = candidate
                break
        self._segment = segment
        self._record_position = 0
        if segment is None or segment.next_offset <= self.next_offset:
            self._damaged()
        if cached and segment.index is None:
            return False
        position = segment.locate(self.next_offset)
        fd = segment.acquire()
        try:
            while True:
                with nogil:
                    got = partition.cache.files.read_full(fd, bytes_, BATCH_HEADER_BYTES, position, cached)
                if got == -FILES_WOULD_BLOCK or (cached and 0 <= got < BATCH_HEADER_BYTES):
                    return False
                _check_read(got)
                # The payload lies beyond what was read: only a missing header counts here.
                if got < BATCH_HEADER_BYTES or read_batch_header(bytes_, bytes_ + got, &header) not in (
                    BATCH_WHOLE, BATCH_CUT
                ) or header.base_offset > self.next_offset:
                    self._position = position
                    self._damaged()
                if header.next_offset > self.next_offset:
                    break
                position += BATCH_HEADER_BYTES + <int64_t>header.payload_bytes
        finally:
            segment.release()
        self._position = position
        self._located_offset = self.next_offset
        return True

    cdef object _whole_batches(self, int fd, int64_t room, int64_t end, bint cached):
        """A response of whole batches, None when not one fits (or next_offset lies within one)."""
        cdef Partition partition = self.partition
        cdef Segment segment = self._segment
        cdef int64_t left = segment.size_bytes - self._position
        cdef size_t want = <size_t>min(room, left)
        cdef int64_t high_watermark = partition.written_offset
        cdef size_t prefix_size
        cdef PyObject* response
        cdef uint8_t* start
        cdef uint8_t* at
        cdef ssize_t got
        cdef BatchHeader header
        cdef int fault = BATCH_CUT
        cdef int64_t offset = self.next_offset
        cdef int64_t records_left = self.records_left
        if room < BATCH_HEADER_BYTES:
            return None
        prefix_size = partition.prefix.consumed_size(high_watermark, partition.log_start_offset, False)
        response = _new_bytes(NULL, <Py_ssize_t>(prefix_size + want + CAUGHT_UP_BYTES))
        try:
            at = <uint8_t*>_bytes_data(response)
            at = partition.prefix.write_consumed(at, high_watermark, partition.log_start_offset, False)
            start = at
            with nogil:
                got = partition.cache.files.read_full(fd, start, want, self._position, cached)
                while got > 0:
                    fault = check_batch(at, start + got, &header)
                    if (
                        fault or header.base_offset != offset or offset >= end
                        or (records_left >= 0 and header.next_offset - offset > records_left)
                    ):
                        break
                    offset = header.next_offset
                    if records_left > 0:
                        records_left -= header.record_count
                    at += BATCH_HEADER_BYTES + header.payload_bytes
                    if at == start + got:
                        break
            if got == -FILES_WOULD_BLOCK or (cached and got >= 0 and at == start and <size_t>got < want):
                return WOULD_BLOCK
            _check_read(got)
            if at == start:
                if fault == BATCH_WHOLE or fault == BATCH_CUT and <int64_t>want < left:
                    return None
                self._damaged()
            self._position += at - start
            self._located_offset = self.next_offset = offset
            self.records_left = records_left
            if self._position >= segment.size_bytes:
                # The next batch begins another segment, or is yet to come.
                self._located_offset = -1
            if offset >= high_watermark:
                at[0] = 8 << 3
                at[1] = 1
                at += CAUGHT_UP_BYTES
            _PyBytes_Resize(&response, at - <uint8_t*>_bytes_data(response))
            return <object>response
        finally:
            Py_XDECREF(response)

    cdef object _batch_part(self, int fd, int64_t room, bint cached):
        """A response of some records of the batch at _position, which does not fit or is read from its middle on."""
        cdef Partition partition = self.partition
        cdef Segment segment = self._segment
        cdef uint8_t head[BATCH_HEADER_BYTES]
        cdef BatchHeader header
        cdef uint8_t* batch
        cdef const uint8_t* batch_end
        cdef Part part
        cdef ssize_t got
        cdef size_t size = 0
        cdef int64_t taken = 0
        cdef int fault
        with nogil:
            got = partition.cache.files.read_full(fd, head, BATCH_HEADER_BYTES, self._position, cached)
        if cached and got < BATCH_HEADER_BYTES and (got >= 0 or got == -FILES_WOULD_BLOCK):
            return WOULD_BLOCK
        _check_read(got)
        fault = read_batch_header(head, head + got, &header)
        if fault != BATCH_WHOLE and fault != BATCH_CUT or got < BATCH_HEADER_BYTES:
            self._damaged()
        size = BATCH_HEADER_BYTES + <size_t>header.payload_bytes
        if <int64_t>size > segment.size_bytes - self._position:
            self._damaged()
        batch = <uint8_t*>malloc(size)
        if batch == NULL:
            raise MemoryError()
        # What can't be read in full is cut.
        fault = BATCH_CUT
        try:
            with nogil:
                got = partition.cache.files.read_full(fd, batch, size, self._position, cached)
                if got == <ssize_t>size:
                    fault = check_batch(batch, batch + size, &header)
            if cached and (got == -FILES_WOULD_BLOCK or 0 <= got < <ssize_t>size):
                return WOULD_BLOCK
            _check_read(got)
            if fault or not header.base_offset <= self.next_offset < header.next_offset:
                self._damaged()
            if header.next_offset - header.base_offset != <int64_t>header.record_count:
                # Records were taken out of it, which nothing does yet: counting does not tell where an offset is.
                self._damaged()
            batch_end = batch + size
            part.data = skip_records(
                batch + BATCH_HEADER_BYTES, batch_end, self.next_offset - header.base_offset
            )
            part.size = _take_records(part.data, batch_end, room, self.records_left, &taken) - part.data
            self._batch_end = self._position + size
            self._advance(self._position + (part.data - batch) + <int64_t>part.size, taken)
            return self._response(&part, 1)
        finally:
            free(batch)

    def _advance(self, int64_t record_position, int64_t taken):
        """So many records of a batch went out; the next one stands at record_position."""
        self.next_offset += taken
        if self.records_left > 0:
            self.records_left -= taken
        self._located_offset = self.next_offset
        if record_position < self._batch_end:
            self._record_position = record_position
        else:
            self._record_position = 0
            self._position = self._batch_end
            if self._position >= self._segment.size_bytes:
                self._located_offset = -1

    cdef object _begun_batch(self, int fd, int64_t room, bint cached):
        """A response of the next records of a batch that was checked when it was begun."""
        cdef Partition partition = self.partition
        cdef int64_t left = self._batch_end - self._record_position
        cdef size_t want = <size_t>min(max(room, 16), left)
        cdef uint8_t* data = NULL
        cdef const uint8_t* stop
        cdef ssize_t got = 0
        cdef int64_t taken = 0
        cdef int64_t position = self._record_position
        cdef Part part
        try:
            while True:
                data = <uint8_t*>malloc(want)
                if data == NULL:
                    raise MemoryError()
                with nogil:
                    got = partition.cache.files.read_full(fd, data, want, position, cached)
                    if got == <ssize_t>want:
                        stop = _take_records(data, data + got, room, self.records_left, &taken)
                if cached and (got == -FILES_WOULD_BLOCK or 0 <= got < <ssize_t>want):
                    return WOULD_BLOCK
                _check_read(got)
                if got < <ssize_t>want:
                    self._damaged()
                if taken:
                    break
                # The next record is larger than what was read; how large, its length tells.
                want = _record_size(data, data + got)
                if want <= <size_t>got or <int64_t>want > left:
                    self._damaged()
                free(data)
                data = NULL
            part.data = data
            part.size = stop - data
            self._advance(position + <int64_t>part.size, taken)
            return self._response(&part, 1)
        finally:
            free(data)

    cdef object _damaged(self):
        cdef Partition partition = self.partition
        where = "no segment has it"
        if self._segment is not None:
            where = f"{os.path.basename(self._segment.path)} at byte {self._position}"
        raise error(
            Reason.CORRUPT_BATCH,
            f"offset {self.next_offset} of {partition.topic}/{partition.partition} can't be read: its batch is damaged "
            f"({where})",
            topic=partition.topic, partition=partition.partition, offset=self.next_offset,
        )


cdef size_t _record_size(const uint8_t* at, const uint8_t* end) noexcept nogil:
    """Tag, length and bytes of the record at `at`, of which at least six bytes are there; 0 when it is none."""
    cdef uint64_t length = 0
    cdef uint32_t shift = 0
    cdef const uint8_t* start = at
    at += 1
    while at < end and shift <= 28:
        length |= <uint64_t>(at[0] & 0x7F) << shift
        at += 1
        if (at - 1)[0] < 0x80:
            return <size_t>(at - start) + <size_t>length
        shift += 7
    return 0


cdef int _check_read(ssize_t got) except -1:
    if got < 0:
        raise OSError(-got, os.strerror(-got))
    return 0
