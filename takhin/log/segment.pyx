"""One segment file and its index.

A segment begins with its header and goes on with whole batches. Its index is in memory while it grows, is written
beside it when all of it is on the disk, and is read back when somebody looks for an offset.
"""

import os
from collections import OrderedDict

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc

from takhin.codec.batch cimport (
    BATCH_BAD_CRC,
    BATCH_CUT,
    BATCH_HEADER_BYTES,
    BATCH_NO_HEADER,
    BATCH_UNKNOWN_CODEC,
    BATCH_WHOLE,
    SEGMENT_HEADER_BYTES,
    BatchHeader,
    check_batch,
    is_segment_header,
    read_batch_header,
)
from takhin.codec.wire cimport SAFE_INT64
from takhin.log.files cimport Files
from takhin.log.index cimport INDEX_HEADER_BYTES, INDEX_INTERVAL_BYTES, OffsetIndex

from takhin.codec.batch import BatchError, encode_segment_header, read_batch
from takhin.log.index import SegmentSummary, read_summary

# Tag and length of a batch's header, tag and value of its magic.
_BATCH_BEGIN = b"\x32\x67\x0dTKB1"
# What a scan reads at once; a batch that is larger is read whole.
cdef size_t SCAN_BYTES = 1024 * 1024


def segment_name(base_offset):
    """The name of a segment's file: the base offset in 20 digits, so that names sort as offsets do."""
    return f"{base_offset:020d}.log"


# Segments close their files through it, also when all of them are collected at once.
@cython.no_gc_clear
@cython.final
cdef class FileCache:
    """The segment files that are open, at most so many: the ones longest unused are closed.

    Files that are in use, or that hold what is not yet on the disk, are not: they may pass the limit.
    """

    def __init__(self, Files files not None, int limit):
        self.files = files
        self.limit = limit
        self._open = OrderedDict()

    def __len__(self):
        return len(self._open)

    cdef int admit(self, Segment segment) except -1:
        if segment in self._open:
            self._open.move_to_end(segment)
            return 0
        self._open[segment] = None
        if len(self._open) > self.limit:
            self.trim()
        return 0

    def trim(self):
        """Close files until there are no more than the limit, or none that may be closed."""
        cdef Segment segment
        if len(self._open) <= self.limit:
            return
        for segment in list(self._open):
            if segment._users == 0 and not segment.dirty:
                segment.close()
                if len(self._open) <= self.limit:
                    return


# With its cycles (the cache holds its segments) cleared first, __dealloc__ would find no cache.
@cython.no_gc_clear
@cython.final
cdef class Segment:
    """A segment file. Made by create(), trusted() or scanned()."""

    def __init__(
        self, FileCache cache not None, str directory not None, int64_t topic_id, uint32_t partition,
        int64_t base_offset
    ):
        self.cache = cache
        self.path = os.path.join(directory, segment_name(base_offset))
        self.topic_id = topic_id
        self.partition = partition
        self.base_offset = base_offset
        self.next_offset = base_offset
        self.size_bytes = 0
        # The smallest there is: a batch of negative timestamps raises it, too.
        self.max_timestamp_ms = -SAFE_INT64
        self._fd = -1

    def __dealloc__(self):
        if self._fd >= 0:
            self.cache.files.ops.close_file(self.cache.files.ops.context, self._fd)

    @property
    def index_path(self):
        return self.path[:-len("log")] + "index"

    @staticmethod
    def create(cache, directory, topic_id, partition, base_offset, now_ms):
        """A new, empty segment. Raises OSError, and then leaves no file behind."""
        cdef Segment segment = Segment(cache, directory, topic_id, partition, base_offset)
        cdef Files files = segment.cache.files
        fd = files.open(segment.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            files.write(fd, encode_segment_header(topic_id, partition, base_offset, now_ms), 0)
        except OSError:
            files.close(fd)
            files.unlink(segment.path)
            raise
        segment._fd = fd
        segment.created_ms = now_ms
        segment.last_append_ms = now_ms
        segment.size_bytes = SEGMENT_HEADER_BYTES
        segment.index = OffsetIndex()
        segment.dirty = True
        segment.cache.admit(segment)
        return segment

    @staticmethod
    def trusted(cache, directory, topic_id, partition, base_offset):
        """The segment as its index file tells it, without reading its batches; None when that can't be relied on."""
        cdef Segment segment = Segment(cache, directory, topic_id, partition, base_offset)
        cdef Files files = segment.cache.files
        try:
            size_bytes = os.stat(segment.path).st_size
            summary = segment.read_summary()
            if summary is None or summary.size_bytes != size_bytes or not segment._read_header():
                return None
        except OSError:
            return None
        segment.next_offset = summary.next_offset
        segment.size_bytes = size_bytes
        segment.last_append_ms = summary.last_append_ms
        segment.max_timestamp_ms = summary.max_timestamp_ms
        segment.max_epoch = summary.max_epoch
        segment._index_file_covers = size_bytes
        return segment

    @staticmethod
    def scanned(cache, directory, topic_id, partition, base_offset):
        """(segment, damage): the segment as its batches tell it, each of them checked.

        damage is None when the file ends with its last whole batch, else what stands behind size_bytes, in words.
        Raises OSError.
        """
        cdef Segment segment = Segment(cache, directory, topic_id, partition, base_offset)
        return segment, segment._scan()

    def read_summary(self):
        """What the index file, if there is one and its sums are whole, tells of this segment: SegmentSummary or None.

        It vouches that as much as it tells of was on the disk. Raises OSError.
        """
        cdef Files files = self.cache.files
        try:
            fd = files.open(self.index_path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            found = read_summary(files.read(fd, INDEX_HEADER_BYTES, 0))
        finally:
            files.close(fd)
        return found[0] if found is not None and found[0].base_offset == self.base_offset else None

    def _read_header(self):
        """Whether the file begins with the header of just this segment; notes when it was created. Raises OSError."""
        cdef int fd = self.acquire()
        cdef bytes header
        try:
            header = self.cache.files.read(fd, SEGMENT_HEADER_BYTES, 0)
        finally:
            self.release()
        if not is_segment_header(
            <const uint8_t*>PyBytes_AS_STRING(header), <size_t>len(header), self.topic_id, self.partition,
            self.base_offset
        ):
            return False
        self.created_ms = int.from_bytes(header[41:49], "little", signed=True)
        return True

    def prepare_append(self):
        """Make a segment that was found on the disk ready to grow. Raises OSError."""
        if self.index is None:
            self._load_index()
        # The file will soon not cover all of it: from now on only the index in memory counts.
        self._index_file_covers = 0

    def _scan(self):
        cdef Files files = self.cache.files
        cdef int fd = self.acquire()
        cdef int64_t file_size = os.stat(self.path).st_size
        cdef size_t capacity = SCAN_BYTES
        cdef uint8_t* buffer = <uint8_t*>malloc(capacity)
        cdef uint8_t* at = buffer
        cdef ssize_t got = 0
        cdef int64_t position = 0
        cdef BatchHeader header
        cdef int fault
        self.index = OffsetIndex()
        self._indexed_position = 0
        try:
            if buffer == NULL:
                raise MemoryError()
            with nogil:
                got = files.read_full(fd, buffer, capacity, 0, False)
            _check_read(got)
            if not is_segment_header(buffer, <size_t>got, self.topic_id, self.partition, self.base_offset):
                return "the header is cut short" if got < SEGMENT_HEADER_BYTES else "it has not this segment's header"
            self.created_ms = int.from_bytes((<char*>buffer)[41:49], "little", signed=True)
            self.last_append_ms = self.created_ms
            self.size_bytes = SEGMENT_HEADER_BYTES
            at = buffer + SEGMENT_HEADER_BYTES
            while self.size_bytes < file_size:
                with nogil:
                    fault = check_batch(at, buffer + got, &header)
                if fault == BATCH_CUT and position + got < file_size:
                    # The buffer ends before the batch does: read on from the batch's beginning.
                    position = self.size_bytes
                    if got - (at - buffer) >= BATCH_HEADER_BYTES:
                        read_batch_header(at, buffer + got, &header)
                        if BATCH_HEADER_BYTES + <int64_t>header.payload_bytes > file_size - position:
                            return _damage(BATCH_CUT)
                        if BATCH_HEADER_BYTES + <size_t>header.payload_bytes > capacity:
                            capacity = BATCH_HEADER_BYTES + <size_t>header.payload_bytes
                            free(buffer)
                            buffer = <uint8_t*>malloc(capacity)
                            if buffer == NULL:
                                raise MemoryError()
                    with nogil:
                        got = files.read_full(fd, buffer, capacity, position, False)
                    _check_read(got)
                    at = buffer
                    if got == 0:
                        return _damage(BATCH_CUT)
                    continue
                if fault:
                    return _damage(fault)
                if header.base_offset != self.next_offset:
                    return f"a batch begins at offset {header.base_offset} where {self.next_offset} should"
                self._note_header(&header)
                at += BATCH_HEADER_BYTES + header.payload_bytes
            return None
        finally:
            free(buffer)
            self.release()

    def proves(self, int64_t position, int64_t offset):
        """Whether a whole batch behind the damage at position tells that offset was once on the disk. Raises OSError.

        The next one is looked for where the damaged batch's header says that it begins; else, and where batches end
        again, by the first bytes of one. A batch is believed when its checksum matches. What is not found within a few
        readings of the file is not found: values may be made to look like batches without end.
        """
        cdef Files files = self.cache.files
        cdef int fd = self.acquire()
        cdef int64_t file_size
        cdef int64_t budget_bytes
        cdef int64_t start
        cdef bytes window
        try:
            file_size = os.fstat(fd).st_size
            budget_bytes = 4 * (file_size - position)
            claimed = self._claimed_size(fd, position, file_size)
            position += claimed if claimed and self._whole_batch(fd, position + claimed, file_size) else 1
            while position < file_size and budget_bytes > 0:
                window = files.read(fd, SCAN_BYTES, position)
                found = window.find(_BATCH_BEGIN)
                if found < 0:
                    # What begins at the window's end is found in the next one.
                    position += max(len(window) - len(_BATCH_BEGIN) + 1, 1)
                    continue
                position += found
                budget_bytes -= self._claimed_size(fd, position, file_size) + 1
                batch = self._whole_batch(fd, position, file_size)
                if batch is None:
                    position += 1
                    continue
                if offset < batch.durable_offset <= batch.base_offset:
                    return True
                position += BATCH_HEADER_BYTES + batch.payload_bytes
            return False
        finally:
            self.release()

    def _whole_batch(self, int fd, int64_t position, int64_t file_size):
        """The batch that begins at position; None when none does, or its checksum does not match."""
        size = self._claimed_size(fd, position, file_size)
        try:
            return read_batch(self.cache.files.read(fd, size, position)) if size else None
        except BatchError:
            return None

    def _claimed_size(self, int fd, int64_t position, int64_t file_size):
        """How large the batch at position says it is; 0 when none begins there, or none that ends within the file."""
        cdef bytes header = self.cache.files.read(fd, BATCH_HEADER_BYTES, position)
        cdef BatchHeader batch
        cdef const uint8_t* start = <const uint8_t*>PyBytes_AS_STRING(header)
        cdef int64_t size
        cdef int fault = read_batch_header(start, start + len(header), &batch)
        if len(header) < BATCH_HEADER_BYTES or (fault != BATCH_WHOLE and fault != BATCH_CUT):
            return 0
        size = BATCH_HEADER_BYTES + <int64_t>batch.payload_bytes
        return size if size <= file_size - position else 0

    cdef void _note_header(self, const BatchHeader* header) noexcept:
        self.note(
            header.base_offset, header.next_offset, BATCH_HEADER_BYTES + <int64_t>header.payload_bytes,
            header.max_timestamp_ms, header.append_time_ms, header.epoch
        )

    cdef void note(
        self, int64_t base_offset, int64_t next_offset, int64_t size, int64_t max_timestamp_ms, int64_t append_ms,
        int32_t epoch
    ) noexcept:
        """A batch stands at the end of the file now."""
        if self.index is not None and self.size_bytes - self._indexed_position >= INDEX_INTERVAL_BYTES:
            self.index.add(<uint32_t>(base_offset - self.base_offset), <uint32_t>self.size_bytes, self.max_timestamp_ms)
            self._indexed_position = self.size_bytes
        self.size_bytes += size
        self.next_offset = next_offset
        self.last_append_ms = append_ms
        if max_timestamp_ms > self.max_timestamp_ms:
            self.max_timestamp_ms = max_timestamp_ms
        if epoch > self.max_epoch:
            self.max_epoch = epoch

    cdef int64_t locate(self, int64_t offset) except -1:
        """Where to begin looking for the batch with that offset: a batch's position at or before it. Raises OSError."""
        cdef int64_t position
        if self.index is None:
            self._load_index()
        position = self.index.locate(offset - self.base_offset)
        return position if position else SEGMENT_HEADER_BYTES

    cdef int64_t locate_time(self, int64_t timestamp_ms) except -1:
        """Where to begin looking for the first batch with that timestamp or a later one. Raises OSError."""
        cdef int64_t position
        if self.index is None:
            self._load_index()
        position = self.index.locate_time(timestamp_ms)
        return position if position else SEGMENT_HEADER_BYTES

    def _load_index(self):
        cdef Files files = self.cache.files
        try:
            fd = files.open(self.index_path, os.O_RDONLY)
            try:
                data = files.read(fd, os.fstat(fd).st_size, 0)
            finally:
                files.close(fd)
        except FileNotFoundError:
            data = b""
        index = OffsetIndex.decode(data)
        if index is None:
            # Its sums were whole, or there would be no segment; its entries are not. They are made again.
            index = Segment._scanned_index(self.cache, os.path.dirname(self.path), self)
        self.index = index

    @staticmethod
    def _scanned_index(FileCache cache not None, directory, Segment segment not None):
        cdef Segment scanned
        scanned, _ = Segment.scanned(cache, directory, segment.topic_id, segment.partition, segment.base_offset)
        segment._index_file_covers = 0
        index = scanned.index
        scanned.close()
        return index

    def write_index(self):
        """Write the index file, unless it is there and covers all of the segment. Raises OSError.

        Only to be called when all of the segment is on the disk: the file vouches for that.
        """
        cdef Files files = self.cache.files
        if self.index is None or self._index_file_covers == self.size_bytes:
            return
        summary = SegmentSummary(
            self.base_offset, self.next_offset, self.size_bytes, self.last_append_ms, self.max_timestamp_ms,
            self.max_epoch,
        )
        fd = files.open(self.index_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            files.write(fd, self.index.encode(summary), 0)
        finally:
            files.close(fd)
        self._index_file_covers = self.size_bytes

    def cut(self, int64_t size_bytes):
        """Shorten the file to size_bytes. Raises OSError."""
        cdef int fd = self.acquire()
        try:
            self.cache.files.truncate(fd, size_bytes)
        finally:
            self.release()

    def sync(self):
        """What is in the file is on the disk after this. Raises OSError."""
        cdef int fd = self.acquire()
        try:
            self.cache.files.sync_data(fd)
        finally:
            self.release()

    cdef int acquire(self) except -1:
        """The file, open until release(). Raises OSError."""
        cdef int fd
        # In use from here on: what makes room for it must not close it.
        self._users += 1
        try:
            if self._fd < 0:
                fd = self.cache.files.open(self.path, os.O_RDWR)
                if self._fd >= 0:
                    # Another thread opened it meanwhile.
                    self.cache.files.close(fd)
                else:
                    self._fd = fd
                self.cache.admit(self)
            return self._fd
        except BaseException:
            self.release()
            raise

    cdef void release(self) noexcept:
        self._users -= 1
        if self._unlinked:
            self._close_file()

    cdef void _close_file(self) noexcept:
        if self._fd >= 0 and self._users == 0:
            self.cache.files.ops.close_file(self.cache.files.ops.context, self._fd)
            self._fd = -1

    def fileno(self):
        """The file's descriptor, open until done() is called as many times. Raises OSError."""
        return self.acquire()

    def done(self):
        self.release()

    def close(self):
        """Close the file and forget the index; both come back when they are needed."""
        self.cache._open.pop(self, None)
        self._close_file()
        if self._index_file_covers == self.size_bytes:
            self.index = None

    def unlink(self):
        """Remove the files. Who is reading the segment reads on. Raises OSError."""
        self.cache._open.pop(self, None)
        self.dirty = False
        self._unlinked = True
        self._close_file()
        try:
            self.cache.files.unlink(self.index_path)
        except FileNotFoundError:
            pass
        self.cache.files.unlink(self.path)


cdef int _check_read(ssize_t got) except -1:
    if got < 0:
        raise OSError(-got, os.strerror(-got))
    return 0


cdef str _damage(int fault):
    if fault == BATCH_CUT:
        return "a batch is cut short"
    if fault == BATCH_NO_HEADER:
        return "no batch begins there"
    if fault == BATCH_BAD_CRC:
        return "a batch's checksum does not match"
    if fault == BATCH_UNKNOWN_CODEC:
        return "a batch is compressed by a codec this version does not know"
    return "a batch's records do not lie as its header says"
