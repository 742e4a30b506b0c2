"""One segment file and its index.

A segment begins with its header and goes on with whole batches. Its index is in memory while it grows, is written
beside it when all of it is on the disk, and is read back when somebody looks for an offset.
"""

import os
from collections import OrderedDict

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from libc.errno cimport EEXIST
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc

from takhin.codec.batch cimport (
    BATCH_BAD_CRC,
    BATCH_CRC_COVERS_FROM,
    BATCH_CUT,
    BATCH_HEADER_BYTES,
    BATCH_NO_HEADER,
    BATCH_UNKNOWN_CODEC,
    BATCH_WHOLE,
    FLAGS_CODEC,
    SEGMENT_HEADER_BYTES,
    BatchHeader,
    check_batch,
    first_timestamp,
    is_segment_header,
    read_batch_header,
)
from takhin.codec.crc32c cimport crc32c_of, mask
from takhin.codec.wire cimport SAFE_INT64
from takhin.log.files cimport Files
from takhin.log.index cimport INDEX_HEADER_BYTES, INDEX_INTERVAL_BYTES, OffsetIndex
from takhin.log.producers cimport ProducerBatch, ProducerStates

from takhin.codec.batch import encode_segment_header
from takhin.log.index import SegmentSummary, read_summary

# Tag and length of a batch's header, tag and value of its magic.
_BATCH_BEGIN = b"\x32\x67\x0dTKB1"
# What a scan reads at once.
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

    def __cinit__(self):
        # Before anything can fail: __dealloc__ comes also when __init__ was never begun, its arguments being refused.
        self._fd = -1

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

    def __dealloc__(self):
        if self._fd >= 0:
            self.cache.files.close_file(self._fd)

    @property
    def index_path(self):
        return self.path[:-len("log")] + "index"

    @staticmethod
    def create(cache, directory, topic_id, partition, base_offset, now_ms):
        """A new, empty segment. Raises OSError, and then leaves no file behind, or one with a header at most."""
        cdef Segment segment = Segment(cache, directory, topic_id, partition, base_offset)
        cdef Files files = segment.cache.files
        fd = files.open(segment.path, os.O_RDWR | os.O_CREAT)
        try:
            if files.size(fd) > SEGMENT_HEADER_BYTES:
                raise FileExistsError(EEXIST, os.strerror(EEXIST), segment.path)
        except OSError:
            files.close(fd)
            raise
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
            size_bytes = files.size(segment.path)
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
        """(segment, damage): the segment as its batches tell it, each of them checked that lies behind the checkpoint.

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
        cdef int64_t file_size
        cdef uint8_t* buffer = <uint8_t*>malloc(SCAN_BYTES)
        # What the buffer holds: so many bytes of the file, from there on.
        cdef ssize_t got = 0
        cdef int64_t start
        cdef BatchHeader header
        cdef int fault
        try:
            if buffer == NULL:
                raise MemoryError()
            file_size = files.size(fd)
            if not self._read_header():
                is_cut = file_size < SEGMENT_HEADER_BYTES
                return "the header is cut short" if is_cut else "it has not this segment's header"
            vouched_bytes = self._begin_scan(file_size)
            start = self.size_bytes
            while self.size_bytes < file_size:
                with nogil:
                    fault = check_batch(buffer + (self.size_bytes - start), buffer + got, &header)
                if fault == BATCH_CUT and start + got < file_size:
                    if got == 0 or start != self.size_bytes:
                        start = self.size_bytes
                        with nogil:
                            got = files.read_full(fd, buffer, SCAN_BYTES, start, False)
                        _check_read(got)
                        if got > 0:
                            continue
                    else:
                        fault = self._check_at(fd, start, file_size, buffer, &header)
                        got = 0
                if fault:
                    return _damage(fault)
                if header.base_offset != self.next_offset:
                    return f"a batch begins at offset {header.base_offset} where {self.next_offset} should"
                self._note_header(&header)
                if self.proven_offset < header.durable_offset <= header.base_offset:
                    self.proven_offset = header.durable_offset
                if got == 0:
                    start = self.size_bytes
            if self.size_bytes < vouched_bytes:
                return f"its index file vouches for {vouched_bytes} bytes"
            return None
        finally:
            free(buffer)
            self.release()

    cdef int _check_at(
        self, int fd, int64_t position, int64_t file_size, uint8_t* buffer, BatchHeader* header
    ) except -1:
        """check_batch() of the batch at position, however large, through a buffer of SCAN_BYTES. Raises OSError.

        Of one that does not fit into the buffer the records are not looked at: its checksum vouches for them.
        """
        cdef Files files = self.cache.files
        cdef ssize_t got
        cdef size_t skipped = BATCH_CRC_COVERS_FROM
        cdef int64_t left
        cdef uint32_t crc = 0
        cdef int fault
        with nogil:
            got = files.read_full(fd, buffer, SCAN_BYTES, position, False)
        _check_read(got)
        fault = check_batch(buffer, buffer + got, header)
        if fault != BATCH_CUT or position + got >= file_size or got < BATCH_HEADER_BYTES:
            return fault
        left = BATCH_HEADER_BYTES + <int64_t>header.payload_bytes
        if left > file_size - position:
            return BATCH_CUT
        while True:
            got = min(got, left)
            with nogil:
                crc = crc32c_of(crc, buffer + skipped, <size_t>got - skipped)
                skipped = 0
                position += got
                left -= got
                if left:
                    got = files.read_full(fd, buffer, SCAN_BYTES, position, False)
            if not left:
                break
            _check_read(got)
            if got == 0:
                return BATCH_CUT
        if mask(crc) != header.crc32c:
            return BATCH_BAD_CRC
        return BATCH_UNKNOWN_CODEC if header.flags & FLAGS_CODEC else BATCH_WHOLE

    def _begin_scan(self, int64_t file_size):
        """Go on from the last checkpoint, if there is a whole one; else from the first batch. Raises OSError.

        Returns for how many bytes the index file vouches.
        """
        index, summary = self._read_index()
        self.size_bytes = SEGMENT_HEADER_BYTES
        self.last_append_ms = self.created_ms
        self.index = OffsetIndex()
        self._indexed_position = 0
        # Of a file that lost what a checkpoint vouches for, every batch is looked at.
        if summary is None:
            return 0
        if index is None or summary.size_bytes > file_size:
            return summary.size_bytes
        self.index = index
        self._indexed_position = (<OffsetIndex>index).last_position()
        self.size_bytes = self.checkpoint_bytes = summary.size_bytes
        self.next_offset = self.proven_offset = self.checkpoint_offset = summary.next_offset
        self.last_append_ms = summary.last_append_ms
        self.max_timestamp_ms = summary.max_timestamp_ms
        self.max_epoch = summary.max_epoch
        return summary.size_bytes

    def rewrite(self, int64_t offset):
        """Write what lies at and above offset to the file once more. Returns how many bytes. Raises OSError.

        After a sync that failed, the kernel may hold pages that it takes for clean, though they never reached the disk:
        a later sync would pass them over.
        """
        cdef Files files = self.cache.files
        cdef int64_t position
        cdef int64_t start
        cdef int fd
        if offset >= self.next_offset:
            return 0
        # Below its base offset not even the header is known to have reached the disk.
        position = start = self.locate(offset) if offset > self.base_offset else 0
        fd = self.acquire()
        try:
            while position < self.size_bytes:
                data = files.read(fd, min(<int64_t>SCAN_BYTES, self.size_bytes - position), position)
                files.write(fd, data, position)
                position += len(data)
        finally:
            self.release()
        return position - start

    def proves(self, int64_t position, int64_t offset):
        """Whether a whole batch behind the damage at position tells that offset was once on the disk. Raises OSError.

        The next one is looked for where the damaged batch's header says that it begins; else, and where batches end
        again, by the first bytes of one. A batch is believed when its checksum matches. What is not found within a few
        readings of the file is not found: values may be made to look like batches without end.
        """
        cdef Files files = self.cache.files
        cdef int fd = self.acquire()
        cdef uint8_t* buffer = <uint8_t*>malloc(SCAN_BYTES)
        cdef BatchHeader header
        cdef int64_t file_size
        cdef int64_t budget_bytes
        cdef int64_t size
        cdef bytes window
        try:
            if buffer == NULL:
                raise MemoryError()
            file_size = files.size(fd)
            budget_bytes = 4 * (file_size - position)
            size = self._claimed_size(fd, position, file_size)
            if not size or self._check_at(fd, position + size, file_size, buffer, &header) != BATCH_WHOLE:
                size = 1
            position += size
            while position < file_size and budget_bytes > 0:
                window = files.read(fd, SCAN_BYTES, position)
                found = window.find(_BATCH_BEGIN)
                if found < 0:
                    # What begins at the window's end is found in the next one.
                    position += max(len(window) - len(_BATCH_BEGIN) + 1, 1)
                    continue
                position += found
                size = self._claimed_size(fd, position, file_size)
                budget_bytes -= size + 1
                if not size or self._check_at(fd, position, file_size, buffer, &header) != BATCH_WHOLE:
                    position += 1
                    continue
                if offset < header.durable_offset <= header.base_offset:
                    return True
                position += size
            return False
        finally:
            free(buffer)
            self.release()

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

    def replay_producers(self, ProducerStates states not None, int64_t from_offset):
        """Tell states of the producers' batches from from_offset on; each is checked.

        Returns None, or, when one is damaged, where and how, in words. Raises OSError.
        """
        cdef Files files = self.cache.files
        cdef int64_t position = self.locate(from_offset) if from_offset > self.base_offset else SEGMENT_HEADER_BYTES
        cdef int fd = self.acquire()
        cdef uint8_t* buffer = <uint8_t*>malloc(SCAN_BYTES)
        # What the buffer holds: so many bytes of the file, from there on.
        cdef ssize_t got = 0
        cdef int64_t start = position
        cdef BatchHeader header
        cdef const uint8_t* batch
        cdef int fault
        cdef bint is_in_buffer
        try:
            if buffer == NULL:
                raise MemoryError()
            while position < self.size_bytes:
                batch = buffer + (position - start)
                is_in_buffer = True
                with nogil:
                    fault = check_batch(batch, buffer + got, &header)
                if fault == BATCH_CUT and (got == 0 or start != position):
                    start = position
                    with nogil:
                        got = files.read_full(fd, buffer, SCAN_BYTES, start, False)
                    _check_read(got)
                    if got > 0:
                        continue
                elif fault == BATCH_CUT:
                    is_in_buffer = False
                    fault = self._check_at(fd, position, self.size_bytes, buffer, &header)
                    got = 0
                if fault:
                    return f"{os.path.basename(self.path)} at byte {position}: {_damage(fault)}"
                if header.base_offset >= from_offset and header.producer_id >= 0:
                    self._replay(states, &header, position, batch if is_in_buffer else NULL)
                position += BATCH_HEADER_BYTES + <int64_t>header.payload_bytes
                if got == 0:
                    start = position
            return None
        finally:
            free(buffer)
            self.release()

    cdef int _replay(
        self, ProducerStates states, const BatchHeader* header, int64_t position, const uint8_t* data
    ) except -1:
        """data: the batch at position; NULL: to be read. Raises OSError."""
        cdef ProducerBatch batch
        cdef bytes read
        if data == NULL:
            read = self.cache.files.read(
                self._fd, BATCH_HEADER_BYTES + <size_t>header.payload_bytes, position
            )
            if <size_t>len(read) < BATCH_HEADER_BYTES + <size_t>header.payload_bytes:
                return 0
            data = <const uint8_t*>PyBytes_AS_STRING(read)
        batch.sequence = header.producer_sequence
        batch.base_offset = header.base_offset
        batch.record_count = header.record_count
        batch.epoch = header.epoch
        batch.first_timestamp_ms = first_timestamp(
            data + BATCH_HEADER_BYTES, data + BATCH_HEADER_BYTES + header.payload_bytes
        )
        states.restore(header.producer_id, header.producer_epoch, &batch, header.append_time_ms)
        return 0

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

    def _read_index(self):
        """(index, summary) as the index file has them; None for what is missing or damaged. Raises OSError."""
        cdef Files files = self.cache.files
        try:
            fd = files.open(self.index_path, os.O_RDONLY)
        except FileNotFoundError:
            return None, None
        try:
            data = files.read(fd, files.size(fd), 0)
        finally:
            files.close(fd)
        found = read_summary(data)
        if found is None or found[0].base_offset != self.base_offset:
            return None, None
        return OffsetIndex.decode(data), found[0]

    def _load_index(self):
        index, _ = self._read_index()
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
        if self.index is None or self._index_file_covers == self.size_bytes:
            return
        summary, count = self.checkpoint()
        self.write_checkpoint(summary, count)
        self._index_file_covers = summary.size_bytes

    def checkpoint(self):
        """What write_checkpoint() can vouch for once all that the file holds now is on the disk."""
        return SegmentSummary(
            self.base_offset, self.next_offset, self.size_bytes, self.last_append_ms, self.max_timestamp_ms,
            self.max_epoch,
        ), len(self.index)

    def write_checkpoint(self, summary not None, int64_t count):
        """Write an index file that vouches for what the segment held at checkpoint(). Raises OSError."""
        self.cache.files.replace(self.index_path, self.index.encode(summary, count))

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
            self.cache.files.close_file(self._fd)
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
        """Remove the files, as far as they are there. Who is reading the segment reads on. Raises OSError."""
        self.cache._open.pop(self, None)
        self.dirty = False
        self._unlinked = True
        self._close_file()
        for path in (self.index_path, self.path):
            try:
                self.cache.files.unlink(path)
            except FileNotFoundError:
                # There may have been no index; and the topic may be being deleted at the same time.
                pass


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
