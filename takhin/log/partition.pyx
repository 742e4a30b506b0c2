"""The log of one partition: appended to by the event loop alone, read by anybody.

Three marks move forward: A (next_offset) with every append, which assigns offsets and copies into the ring; W
(written_offset) at the end of the loop's tick, when the ring's new part goes to the file in one write; D
(durable_offset) when all that lies below it has been synced: in the segment files, or, as part of a group commit with
other partitions, in the journal. Then the files are synced later (synced_offset). Readers see what lies below W.
"""

import os

cimport cython
from libc.errno cimport EDQUOT, EIO, ENOSPC
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from takhin.codec.batch cimport (
    BATCH_HEADER_BYTES,
    RECORD_OVERHEAD_BYTES,
    SEGMENT_HEADER_BYTES,
    write_batch_header,
    write_record,
)
from takhin.codec.messages cimport ProduceRequest, RecordSpan, ResponsePrefix
from takhin.codec.wire cimport SAFE_INT64
from takhin.log.hold cimport check_held
from takhin.outcome cimport Outcome
from takhin.log.producers cimport (
    VERDICT_APPEND,
    VERDICT_DUPLICATE,
    ProducerBatch,
    ProducerState,
    ProducerStates,
    refusal,
)
from takhin.log.ring cimport Ring, RingBatch, write_batches
from takhin.log.segment cimport FileCache, Segment

from takhin.errors import Reason, error
from takhin.log.producers import SNAPSHOT_NAME

# An active segment's index file is written whenever it has grown by so much, and by an eighth.
cdef int64_t CHECKPOINT_BYTES = 16 * 1024 * 1024


@cython.final
cdef class Partition:
    """The log of one partition.

    committer: is told when there is something to write (touch), to sync (want_sync), when the partition no longer
    takes appends (halted), or can't begin a segment for them (obstructed). create_future makes futures of the event
    loop. segments: what recovery found, in order; all of it counts as durable, or, with proven_offset, what lies
    below that. producers: what recovery knows of them.
    """

    def __init__(
        self, str topic not None, int64_t topic_id, int32_t partition, str directory not None,
        FileCache cache not None, Ring ring not None, ProducerStates producers not None, committer, create_future,
        segments, int64_t log_start_offset, epochs, int32_t epoch, int64_t proven_offset=-1
    ):
        cdef Segment last
        self.topic = topic
        self.topic_id = topic_id
        self.partition = partition
        self.directory = directory
        self.cache = cache
        self.ring = ring
        self.producers = producers
        self.prefix = ResponsePrefix(topic.encode(), partition)
        self.segments = tuple(segments)
        self._committer = committer
        self._create_future = create_future
        self._unsynced = []
        self._unsynced_directories = []
        self._written_waiters = []
        self._durable_waiters = []
        self._sync_waiters = []
        self._unindexed = []
        self.epochs = list(epochs)
        self.epoch = epoch
        self.log_start_offset = log_start_offset
        self.next_offset = log_start_offset
        if self.segments:
            last = self.segments[-1]
            self.next_offset = max(last.next_offset, log_start_offset)
        self.written_offset = self.durable_offset = self.synced_offset = self.next_offset
        self.first_written_offset = self.written_offset
        if 0 <= proven_offset < self.next_offset:
            self.durable_offset = self.synced_offset = max(proven_offset, log_start_offset)

    def configure(self, config):
        """Take over what the topic's configuration says about the log."""
        self.segment_bytes = config.segment_bytes
        self.segment_ms = config.segment_ms
        self.flush_ms = config.flush_ms
        self.log_append_time = config.log_append_time

    @property
    def size_bytes(self):
        cdef Segment segment
        cdef int64_t total = 0
        for segment in self.segments:
            total += segment.size_bytes
        return total

    @property
    def written_bytes(self):
        """How many bytes of batches, their headers included, were written since the start."""
        return self._written_position

    @property
    def dirty(self):
        """Whether something is written that is not known to be on the disk."""
        return self.durable_offset < self.written_offset

    @property
    def unsynced(self):
        """Whether something is written that the segments are not known to hold on the disk (though the journal may).

        Also when that is only a new segment's header, or its name.
        """
        return self.synced_offset < self.written_offset or bool(self._unsynced) or bool(self._unsynced_directories)

    # Append: A

    def check(self, ProduceRequest request not None, int durability):
        """Hold a conditional request against what is accepted so far; to be called right before append().

        None: it is to be appended. Otherwise it is a duplicate: (response, end), true once written_to(end) or
        durable_to(end) says so. Raises PRODUCER_FENCED, PRODUCER_UNKNOWN, PRODUCER_LIMIT, SEQUENCE_GAP,
        SEQUENCE_OUT_OF_WINDOW, OFFSET_MISMATCH, and what `failure` says.
        """
        cdef ProducerBatch found
        cdef int verdict = VERDICT_APPEND
        if request.has_producer:
            verdict = self.producers.judge(request, &found)
            if verdict == VERDICT_DUPLICATE:
                return self.prefix.produced(
                    found.base_offset, found.first_timestamp_ms, found.record_count, durability, found.epoch, True
                ), found.base_offset + <int64_t>found.record_count
        if self.failure is not None:
            # Before a gap: it may come from requests that were refused for this, and tells less.
            raise error(*self.failure, topic=self.topic, partition=self.partition)
        if verdict != VERDICT_APPEND:
            raise refusal(verdict, request, self.producers, self.topic, self.partition)
        if request.has_expected_offset and request.expected_offset != self.next_offset:
            raise error(
                Reason.OFFSET_MISMATCH,
                f"the next offset of {self.topic}/{self.partition} is {self.next_offset}, not the expected "
                f"{request.expected_offset}",
                topic=self.topic, partition=self.partition, expected_offset=request.expected_offset,
                end_offset=self.next_offset,
            )
        return None

    cpdef object append(self, ProduceRequest request, int64_t now_ms, int durability):
        """Append the request's records: one batch, or with others of this tick a part of one.

        A request that is conditional was given to check() before. Returns the encoded ProduceMessageResponse that is
        true once written() or durable() says so (for durability "accepted" it is true at once). Raises what `failure`
        says, ResourceExhausted, Unavailable.
        """
        cdef size_t needed = request.records_bytes + <size_t>request.record_count * RECORD_OVERHEAD_BYTES
        cdef RingBatch* batch
        cdef RecordSpan* span
        cdef uint8_t* start
        cdef uint8_t* at
        cdef const uint8_t* data = request.data
        cdef int64_t base_offset
        cdef int64_t first_timestamp_ms
        cdef int64_t pending
        cdef uint32_t i
        cdef bint stamp
        # A producer's batch is known by its header.
        cdef bint has_own_batch = request.is_batch or request.has_producer
        cdef ProducerState producer = None
        if self.failure is not None:
            raise error(*self.failure, topic=self.topic, partition=self.partition)
        if self.cache.no_room is not None:
            raise error(Reason.DISK_FULL, self.cache.no_room, topic=self.topic, partition=self.partition)
        if self.active is None:
            self._prepare_append(now_ms)
        pending = self.ring.appended_bytes - self._written_position
        if self.held:
            check_held(self, pending + <int64_t>needed + BATCH_HEADER_BYTES)
        elif self._is_full(pending, <int64_t>needed, now_ms):
            self.roll(now_ms)
        # Requests of a tick share a batch as far as the ring's chunk has room for them: a batch lies in one chunk.
        if has_own_batch or not self._batch_open or self.ring.room() < needed:
            self._close_batch()
            if request.has_producer:
                producer = self.producers.touch(request.producer_id)
            self._open_batch(needed, now_ms)
        batch = self.ring.batch(self.ring.next - 1)
        base_offset = self.next_offset
        first_timestamp_ms = now_ms
        start = batch.data + batch.size
        at = start
        for i in range(request.record_count):
            span = &request.spans[i]
            stamp = span.timestamp_ms == 0 or self.log_append_time
            at = write_record(
                at, data + span.start, span.size, stamp, now_ms, self.next_offset, self.partition
            )
            self.next_offset += 1
            if stamp:
                if now_ms > self._header.max_timestamp_ms:
                    self._header.max_timestamp_ms = now_ms
            else:
                if i == 0:
                    first_timestamp_ms = span.timestamp_ms
                if span.timestamp_ms > self._header.max_timestamp_ms:
                    self._header.max_timestamp_ms = span.timestamp_ms
        self._header.record_count += request.record_count
        batch.size += <uint32_t>(at - start)
        batch.next_offset = self.next_offset
        self.ring.take(<size_t>(at - start))
        if producer is not None:
            self._note_producer(producer, request, base_offset, first_timestamp_ms, now_ms)
        if has_own_batch:
            self._close_batch()
        if not self.unwritten:
            self.unwritten = True
            self._committer.touch(self)
        return self.prefix.produced(
            base_offset, first_timestamp_ms, request.record_count, durability, self.epoch, False
        )

    cdef int _note_producer(
        self, ProducerState producer, ProduceRequest request, int64_t base_offset, int64_t first_timestamp_ms,
        int64_t now_ms
    ) noexcept:
        """The open batch is the request's: its header says whose it is, and a retry of it will be known."""
        cdef ProducerBatch batch
        self._header.producer_id = request.producer_id
        self._header.producer_epoch = request.producer_epoch
        self._header.producer_sequence = request.producer_sequence
        batch.sequence = request.producer_sequence
        batch.base_offset = base_offset
        batch.first_timestamp_ms = first_timestamp_ms
        batch.record_count = request.record_count
        batch.epoch = self.epoch
        producer.add(request.producer_epoch, &batch, now_ms)
        return 0

    cdef bint _is_full(self, int64_t pending, int64_t needed, int64_t now_ms) noexcept:
        """Whether a new segment is to be begun for so much more than what is pending."""
        return (
            self.active.size_bytes + pending + needed + BATCH_HEADER_BYTES > self.segment_bytes
            or now_ms - self.active.created_ms >= self.segment_ms
        )

    cdef int _open_batch(self, size_t needed, int64_t now_ms) except -1:
        cdef RingBatch* batch
        self.ring.reserve(BATCH_HEADER_BYTES + needed)
        batch = self.ring.add()
        batch.base_offset = self.next_offset
        batch.next_offset = self.next_offset
        batch.append_time_ms = now_ms
        batch.size = BATCH_HEADER_BYTES
        self.ring.take(BATCH_HEADER_BYTES)
        self.ring.last_append_ms = now_ms
        self._header.base_offset = self.next_offset
        self._header.record_count = 0
        self._header.append_time_ms = now_ms
        self._header.max_timestamp_ms = -SAFE_INT64
        self._header.producer_id = -1
        self._header.producer_epoch = -1
        self._header.producer_sequence = -1
        self._batch_open = True
        return 0

    cdef int _close_batch(self) noexcept:
        """Fill in the header of the open batch, if there is one: from here on its bytes are final."""
        cdef RingBatch* batch
        if not self._batch_open:
            return 0
        self._batch_open = False
        batch = self.ring.batch(self.ring.next - 1)
        batch.max_timestamp_ms = self._header.max_timestamp_ms
        self._header.next_offset = batch.next_offset
        self._header.payload_bytes = batch.size - BATCH_HEADER_BYTES
        self._header.uncompressed_bytes = self._header.payload_bytes
        self._header.epoch = self.epoch
        self._header.durable_offset = self.durable_offset
        self._header.flags = 0
        write_batch_header(batch.data, &self._header)
        return 0

    def _prepare_append(self, int64_t now_ms):
        """The first append since the start: go on in the newest segment, or begin the first one."""
        cdef Segment last
        try:
            if self.segments:
                last = self.segments[-1]
                # After the log's start was moved beyond its end, offsets go on from there, in a segment of their own.
                if last.next_offset == self.next_offset:
                    last.prepare_append()
                    self.active = last
                    self._checkpoint_bytes = last.size_bytes
                    self.obstacle = None
                    return
            topic_directory = os.path.dirname(self.directory)
            self.cache.files.make_directory(topic_directory)
            self.cache.files.make_directory(self.directory)
            self._add_segment(now_ms)
        except OSError as problem:
            raise self._storage_error(problem, now_ms) from None
        # Whoever made them, before our D moves their names have to be on the disk.
        self._unsynced_directories += [os.path.dirname(topic_directory), topic_directory]

    def _add_segment(self, int64_t now_ms):
        cdef Segment segment = Segment.create(
            self.cache, self.directory, self.topic_id, self.partition, self.next_offset, now_ms
        )
        self._unsynced.append(segment)
        self._unsynced_directories.append(self.directory)
        self.segments += (segment,)
        self.active = segment
        self._checkpoint_bytes = 0
        self.obstacle = None

    def roll(self, int64_t now_ms):
        """Begin a new segment, if the active one holds anything and no transaction goes to it. Returns whether.

        Raises as append does.
        """
        if self.held:
            return False
        if self.active is None:
            if not self.segments or self.failure is not None:
                return False
            self._prepare_append(now_ms)
        self.flush()
        if self.failure is not None:
            raise error(*self.failure, topic=self.topic, partition=self.partition)
        if self.active.size_bytes == SEGMENT_HEADER_BYTES:
            return False
        # Before its headers are gone, which may be soon.
        self.producers.take_snapshot(self.written_offset, self._written_position)
        sealed = self.active
        try:
            self._add_segment(now_ms)
        except OSError as problem:
            raise self._storage_error(problem, now_ms) from None
        self._unindexed.append(sealed)
        self._index_sealed()
        # The new segment is to be synced even if nothing is ever appended to it.
        self._committer.touch(self)
        return True

    def _storage_error(self, problem, int64_t now_ms):
        full = problem.errno == ENOSPC or problem.errno == EDQUOT
        message = f"a segment of {self.topic}/{self.partition} can't be begun: {os.strerror(problem.errno)}"
        is_known = self.obstacle == message
        self.obstacle, self.obstacle_ms = message, now_ms
        if not is_known:
            self._committer.obstructed(self)
        return error(
            Reason.DISK_FULL if full else Reason.WRITE_FAILED, message, topic=self.topic, partition=self.partition)

    # Write: W

    def flush(self):
        """Write what was appended to the file, in one write; answer those who wait for it, wake readers.

        Of a partition that is held nothing is: Hold.release() does it.
        """
        cdef int result
        if self.held:
            return
        self.unwritten = False
        if self.ring.unwritten == self.ring.next:
            return
        self._close_batch()
        try:
            result = self._write(self.ring.next)
        except OSError as problem:
            # The file could not even be opened: there is nothing to take back.
            self._fail_write(problem.errno or EIO, False)
            return
        if result < 0:
            self._fail_write(-result, True)
        else:
            self._note_written(self.ring.next)
            self._answer_written()

    cdef int _write(self, uint64_t end) except? -1:
        """The unwritten batches before that number to the end of the active segment. 0, or a negative errno.

        Raises OSError.
        """
        cdef int fd = self.active.acquire()
        cdef int result = write_batches(self.ring, end, self.cache.files, fd, self.active.size_bytes)
        self.active.release()
        return result

    cdef int _note_written(self, uint64_t end) except -1:
        """The batches before that number are in the file: W moves."""
        cdef uint64_t number
        cdef RingBatch* batch
        for number in range(self.ring.unwritten, end):
            batch = self.ring.batch(number)
            self.active.note(
                batch.base_offset, batch.next_offset, batch.size, batch.max_timestamp_ms, batch.append_time_ms,
                self.epoch
            )
        batch = self.ring.batch(end - 1)
        self.ring.unwritten = end
        self._written_position = batch.position + batch.size
        self.written_offset = batch.next_offset
        if self.producers.unsettled and end == self.ring.next:
            self.producers.settle()
        if not self.active.dirty:
            self.active.dirty = True
            self._unsynced.append(self.active)
        if self._data_outcome is not None:
            # There may be many of them: producers come first, and the syncs that they wait for.
            outcome, self._data_outcome = self._data_outcome, None
            self._committer.tell_readers(outcome)
        if self._data_future is not None:
            self.wake_readers()
        return 0

    def _answer_written(self):
        """All that was appended is written."""
        if self._written_waiters:
            waiters, self._written_waiters = self._written_waiters, []
            resolve(waiters, None)
        if self._durable_waiters:
            self._sync_waiters.append((self.written_offset, self._durable_waiters))
            self._durable_waiters = []
            # Who appends from now on waits for another sync.
            self._durable_outcome = None
            self._committer.want_sync(self)

    def give_up_waiting(self, failure):
        """Whoever waits for what is not yet written is told `failure`, (reason, message); it may be written all the
        same."""
        waiters = self._written_waiters + self._durable_waiters
        self._written_waiters = []
        self._durable_waiters = []
        resolve(waiters, failure)

    cdef int _fail_write(self, int errno_, bint begun) except -1:
        """Nothing of this tick was written: take it all back, and refuse appends until a new epoch has begun."""
        full = errno_ == ENOSPC or errno_ == EDQUOT
        self.failure = (
            Reason.DISK_FULL if full else Reason.WRITE_FAILED,
            f"nothing was appended to {self.topic}/{self.partition}: {os.strerror(errno_)}",
        )
        try:
            if begun:
                self.active.cut(self.active.size_bytes)
        except OSError:
            # What stands behind W in the file is unknown: only recovery can tell.
            self.fail(
                Reason.PARTITION_READ_ONLY,
                f"{self.topic}/{self.partition} takes no appends until the broker is started again: a write failed "
                f"({os.strerror(errno_)}) and could not be taken back",
            )
            return 0
        self._drop_unwritten()
        resolve(self._written_waiters, self.failure)
        resolve(self._durable_waiters, self.failure)
        self._written_waiters = []
        self._durable_waiters = []
        self._committer.halted(self)
        return 0

    def fail(self, reason, str message not None):
        """Take no more appends, until the next start; who waits for a write or a sync gets reason and message."""
        self.failure = (reason, message)
        self.failure_is_final = True
        self._drop_unwritten()
        resolve(self._written_waiters, self.failure)
        resolve(self._durable_waiters, self.failure)
        for _, futures in self._sync_waiters:
            resolve(futures, self.failure)
        self._written_waiters = []
        self._durable_waiters = []
        self._sync_waiters = []
        self._committer.halted(self)

    def _drop_unwritten(self):
        self.held = self.unwritten = False
        self.ring.drop_unwritten()
        self._batch_open = False
        self.next_offset = self.written_offset
        if self.producers.unsettled:
            # What was told of these batches is void: a retry of one is no duplicate.
            self.producers.undo()

    def resume(self, int32_t epoch):
        """Take appends again, in a new epoch; the metadata knows it already."""
        if self.failure_is_final:
            return
        self.epoch = epoch
        self.epochs = [entry for entry in self.epochs if entry[1] < self.written_offset]
        self.epochs.append((epoch, self.written_offset))
        self.failure = None

    # Producers

    @property
    def snapshot_path(self):
        return os.path.join(self.directory, SNAPSHOT_NAME)

    def save_producers(self):
        """Write the snapshot, unless it tells nothing new. Only when all that is written is durable. Raises OSError."""
        if self.segments and self.producers.snapshot_offset < self.written_offset:
            self._save(self.producers.encode(self.written_offset), self.written_offset)

    def save_no_producers(self):
        """Write a snapshot that tells of none, while there has never been any. Raises OSError."""
        if self.segments and self.producers.snapshot_offset < 0 and not self.failure_is_final:
            self._save(self.producers.encode(self.durable_offset), self.durable_offset)

    def _save(self, bytes snapshot not None, int64_t end):
        # The one before it may know of producers whose batches are gone.
        self.cache.files.replace_whole(self.snapshot_path, snapshot)
        self.producers.end_save(end)

    def expire_producers(self, int64_t steady_ms, int64_t expiration_ms):
        """See ProducerStates.expire."""
        return self.producers.expire(steady_ms, expiration_ms)

    # What others wait for

    def written(self, bint shared=False):
        """A future: None when all that was appended so far is with the operating system, else why it is not.

        shared: an Outcome instead, the same for all who ask so in a tick.
        """
        if shared:
            return self.written_outcome()
        future = self._create_future()
        self._written_waiters.append(future)
        return future

    def durable(self, bint shared=False):
        """A future: None when all that was appended so far is on the disk, else why that is not known. shared: as for
        written()."""
        if shared:
            return self.durable_outcome()
        future = self._create_future()
        self._durable_waiters.append(future)
        return future

    cdef Outcome written_outcome(self):
        if self._written_outcome is None or self._written_outcome.is_done:
            self._written_outcome = Outcome()
            self._written_waiters.append(self._written_outcome)
        return self._written_outcome

    cdef Outcome durable_outcome(self):
        if self._durable_outcome is None or self._durable_outcome.is_done:
            self._durable_outcome = Outcome()
            self._durable_waiters.append(self._durable_outcome)
        return self._durable_outcome

    def written_to(self, int64_t offset, bint shared=False):
        """As written(), for what was appended below offset; None: it is."""
        return None if offset <= self.written_offset else self.written(shared)

    def durable_to(self, int64_t offset, bint shared=False):
        """As durable(), for what was appended below offset; None: it is. Raises what `failure` says."""
        if offset <= self.durable_offset:
            return None
        if self.failure_is_final:
            raise error(*self.failure, topic=self.topic, partition=self.partition)
        if offset > self.written_offset:
            return self.durable(shared)
        future = Outcome() if shared else self._create_future()
        self._sync_waiters.append((offset, [future]))
        self._committer.want_sync(self)
        return future

    async def make_durable(self, int64_t offset):
        """Return when all below offset (which is written) is on the disk. Raises what `failure` says."""
        future = self.durable_to(offset)
        failure = await future if future is not None else None
        if failure is not None:
            raise error(*failure, topic=self.topic, partition=self.partition)

    def data_after(self, int64_t offset):
        """A future that is done when readers see more than up to offset (or the partition closes); None: they do.

        All who wait share it: wait with asyncio.wait, which leaves it alone when it is cancelled itself.
        """
        if self.written_offset > offset:
            return None
        if self._data_future is None or self._data_future.done():
            self._data_future = self._create_future()
        return self._data_future

    cdef Outcome data_outcome(self):
        """As data_after(), of all there is now."""
        if self._data_outcome is None:
            self._data_outcome = Outcome()
        return self._data_outcome

    def wake_readers(self):
        """Whoever waits for data_after() or data_outcome() looks again."""
        future, self._data_future = self._data_future, None
        outcome, self._data_outcome = self._data_outcome, None
        if future is not None:
            resolve([future], None)
        if outcome is not None:
            resolve([outcome], None)

    # Sync: D

    @property
    def wants_sync(self):
        """Whether somebody waits for a sync."""
        return bool(self._sync_waiters)

    def begin_sync(self):
        """(target, segments, directories): what has to be synced, in this order, for D to become target.

        The segments' files stay open until end_sync. Raises OSError when one can't be opened.
        """
        cdef Segment segment
        segments = []
        try:
            for segment in self._unsynced:
                segment.acquire()
                segments.append(segment)
        except OSError:
            for segment in segments:
                segment.release()
            raise
        directories = list(dict.fromkeys(self._unsynced_directories))
        self._unsynced = []
        self._unsynced_directories = []
        self.syncing = True
        self._checkpoint = None
        if (
            self.active is not None
            and self.active.size_bytes - self._checkpoint_bytes >= max(CHECKPOINT_BYTES, self.active.size_bytes // 8)
        ):
            # When the sync is over, the next start need not scan what the active segment holds now.
            self._checkpoint = (self.active, *self.active.checkpoint())
            self._checkpoint_bytes = self.active.size_bytes
            self.producers.take_snapshot(self.written_offset, self._written_position)
        for segment in segments:
            # A write that comes while the sync runs makes it dirty again.
            segment.dirty = False
        return self.written_offset, segments, directories

    def put_off_sync(self, list segments not None, list directories not None):
        """The sync could not be begun, for want of file descriptors say: nothing is known to be lost."""
        cdef Segment segment
        self.syncing = False
        for segment in segments:
            segment.release()
            if segment not in self._unsynced:
                segment.dirty = True
                self._unsynced.append(segment)
        self._unsynced.sort(key=lambda segment: segment.base_offset)
        self._unsynced_directories = directories + self._unsynced_directories

    def end_sync(self, int64_t target, list segments not None, list directories not None, int errno_):
        """The sync is over. A failed one is final: the kernel may have dropped the pages it could not write."""
        cdef Segment segment
        self.syncing = False
        for segment in segments:
            segment.release()
        if errno_:
            self.fail(
                Reason.SYNC_FAILED,
                f"a sync of {self.topic}/{self.partition} failed ({os.strerror(errno_)}): whether what was not yet "
                "acknowledged as durable is on the disk is unknown, and nothing is appended until the broker is "
                "started again",
            )
            return
        self.synced_offset = max(self.synced_offset, target)
        checkpoint, self._checkpoint = self._checkpoint, None
        # Of what was removed while the sync ran, and in the directory of a deleted topic, no index is left behind.
        if checkpoint is not None and checkpoint[0] in self.segments and not self.failure_is_final:
            segment, summary, count = checkpoint
            try:
                segment.write_checkpoint(summary, count)
            except OSError:
                # Then the next start scans from the one before it.
                pass
        if not self.failure_is_final:
            self._index_sealed()
        self._move_durable(target)

    def _move_durable(self, int64_t target):
        """All below target is on the disk: answer those who waited for it."""
        self.durable_offset = max(self.durable_offset, target)
        waiting = []
        for offset, futures in self._sync_waiters:
            if offset <= self.durable_offset:
                resolve(futures, None)
            else:
                waiting.append((offset, futures))
        self._sync_waiters = waiting
        if self.producers.snapshot_is_due(self.durable_offset):
            self.producers.write_snapshot(self.cache.files, self.snapshot_path)

    def _index_sealed(self):
        """Write the index files of the sealed segments that are on the disk now."""
        cdef Segment segment
        waiting = []
        for segment in self._unindexed:
            if segment.next_offset > self.synced_offset:
                waiting.append(segment)
                continue
            try:
                segment.write_index()
            except OSError:
                # The index stays in memory; the next start makes it again from the segment.
                pass
        self._unindexed = waiting

    # The journal

    @property
    def journal_bytes(self):
        """How many bytes a group commit through the journal would write for this partition.

        -1: it has nothing to make durable, or that is not all in memory and in the active segment.
        """
        return self.journal_size()

    cdef int64_t journal_size(self) noexcept:
        if (
            self.held or self.failure_is_final or self.active is None or self.durable_offset == self.written_offset
            or self.durable_offset < self.active.base_offset or not self.ring.holds(self.durable_offset)
        ):
            return -1
        return self._written_position - self.ring.batch(self.ring.find(self.durable_offset)).position

    cdef void journal_copy(self, uint8_t* to) noexcept:
        """What is written and not yet durable: as many bytes as journal_size says."""
        cdef RingBatch* batch
        cdef uint64_t number
        for number in range(self.ring.find(self.durable_offset), self.ring.unwritten):
            batch = self.ring.batch(number)
            memcpy(to, batch.data, batch.size)
            to += batch.size

    def end_journal(self, int64_t target):
        """What lies below target is on the disk in the journal, as far as it is not in the segments."""
        if not self.failure_is_final:
            self._move_durable(target)

    # The log's start, epochs, the end

    def set_log_start(self, int64_t offset):
        """Move the log's start (the metadata knows it already). Returns the segments that lie wholly before it.

        They are out of the log; unlink() removes their files. The active segment stays.
        """
        cdef Segment segment
        self.log_start_offset = max(self.log_start_offset, offset)
        removed = []
        kept = []
        for segment in self.segments:
            if segment.next_offset <= self.log_start_offset and segment is not self.segments[-1]:
                removed.append(segment)
            else:
                kept.append(segment)
        self.segments = tuple(kept)
        self._unsynced = [segment for segment in self._unsynced if segment not in removed]
        self._unindexed = [segment for segment in self._unindexed if segment not in removed]
        return removed

    def divergence(self, int32_t last_epoch, int64_t offset):
        """From which offset on this log differs from what a reader saw that goes on at offset and whose last record was
        of last_epoch; None when it saw what is here."""
        cdef int64_t end = self.written_offset
        for epoch, start_offset in self.epochs:
            if epoch > last_epoch:
                end = min(start_offset, end)
                break
        return end if offset > end else None

    def close(self, reason, str message not None):
        """Take no more appends and wake all who wait; they get reason and message. Files are closed."""
        cdef Segment segment
        self.fail(reason, message)
        self.wake_readers()
        self.ring.close()
        self.producers.close()
        for segment in self.segments:
            segment.close()


cdef int resolve(list futures, object result) except -1:
    """Each of the futures that somebody still waits for has this result."""
    for future in futures:
        if not future.done():
            future.set_result(result)
    return 0
