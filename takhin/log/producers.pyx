"""What a partition knows of its idempotent producers: which requests it has seen, so that none is appended twice.

Of each producer the last five batches are known: by their sequence and number of records a retry is told, and gets the
first answer again. All of it can be had from the headers of the log's batches; a snapshot, in a file beside the
segments, saves a start from reading them all, and outlives the segments that retention removes.

What a tick appends may yet fail to be written: until it is, what was known before is kept, for undo().

File: a header of 40 bytes, then the producers, all little-endian:
  0 magic "TKP1" · 4 version u32 · 8 CRC32C u32, masked, of all that follows it · 12 producers u32 · 16 offset i64: of
  what lies below it this tells · 24 topic id i64 · 32 partition u32 · 36 zero u32
  producer: 0 id i64 · 8 epoch i32 · 12 batches u32, 1 to 5 · 16 time of the last append in ms i64; then its batches,
  the oldest first: 0 sequence i64 · 8 base offset i64 · 16 timestamp of the first record in ms i64 · 24 records u32
  · 28 log epoch i32
"""

import struct

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.string cimport memcpy, memmove

from takhin.codec.crc32c cimport crc32c_of, mask
from takhin.codec.messages cimport ProduceRequest
from takhin.codec.wire cimport SAFE_INT64
from takhin.log.files cimport Files

from takhin.errors import Reason, error

SNAPSHOT_NAME = "producers.snapshot"
SNAPSHOT_HEADER_SIZE = 40
_VERSION = 1
_HEADER = struct.Struct("<4sII")
_SUMS = struct.Struct("<IqqII")
_PRODUCER = struct.Struct("<qiIq")
_BATCH = struct.Struct("<qqqIi")
cdef enum:
    PRODUCER_BYTES = 24
    BATCH_BYTES = 32

# For each producer it knows, the log grows by so much between two snapshots; each takes 184 bytes there at most.
cdef int64_t SNAPSHOT_GROWTH_BYTES = 1024


@cython.final
cdef class ProducerBudget:
    """How many producers all partitions together may know, each counted in every partition that knows it."""

    def __init__(self, int64_t limit):
        self.limit = limit
        # Whoever knows better says so: a log is then not searched for what can't be there.
        self.in_use = True


@cython.final
cdef class ProducerState:
    """What is known of one producer in one partition."""

    cdef ProducerState copy(self):
        cdef ProducerState copy = ProducerState.__new__(ProducerState)
        cdef uint32_t i
        copy.id = self.id
        copy.epoch = self.epoch
        copy.last_append_ms = self.last_append_ms
        copy.idle_since_ms = self.idle_since_ms
        copy.fresh = self.fresh
        copy.count = self.count
        for i in range(self.count):
            copy.batches[i] = self.batches[i]
        return copy

    cdef int64_t next_sequence(self) noexcept:
        if self.count == 0:
            return 0
        return self.batches[self.count - 1].sequence + <int64_t>self.batches[self.count - 1].record_count

    cdef void add(self, int32_t epoch, const ProducerBatch* batch, int64_t append_ms) noexcept:
        """The batch was appended: it pushes the oldest one out of the window; a new epoch begins with an empty one."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.count = 0
        if self.count == PRODUCER_WINDOW:
            memmove(&self.batches[0], &self.batches[1], (PRODUCER_WINDOW - 1) * sizeof(ProducerBatch))
            self.count -= 1
        self.batches[self.count] = batch[0]
        self.count += 1
        self.last_append_ms = append_ms
        self.fresh = True

    cdef char* write(self, char* to) noexcept:
        """As it stands in a snapshot. Returns where it ends."""
        cdef uint32_t i
        memcpy(to, &self.id, 8)
        memcpy(to + 8, &self.epoch, 4)
        memcpy(to + 12, &self.count, 4)
        memcpy(to + 16, &self.last_append_ms, 8)
        to += PRODUCER_BYTES
        for i in range(self.count):
            memcpy(to, &self.batches[i].sequence, 8)
            memcpy(to + 8, &self.batches[i].base_offset, 8)
            memcpy(to + 16, &self.batches[i].first_timestamp_ms, 8)
            memcpy(to + 24, &self.batches[i].record_count, 4)
            memcpy(to + 28, &self.batches[i].epoch, 4)
            to += BATCH_BYTES
        return to

    @property
    def batches_known(self):
        """(sequence, records, base offset, timestamp of the first record in ms, log epoch), the oldest first."""
        return [
            (
                self.batches[i].sequence, self.batches[i].record_count, self.batches[i].base_offset,
                self.batches[i].first_timestamp_ms, self.batches[i].epoch,
            )
            for i in range(self.count)
        ]


@cython.final
cdef class ProducerStates:
    """The producers of one partition. Each counts against budget; close() gives that back."""

    def __init__(self, ProducerBudget budget not None, int64_t topic_id, uint32_t partition):
        self.budget = budget
        self.topic_id = topic_id
        self.partition = partition
        self.snapshot_offset = -1

    def __len__(self):
        return len(self._states) if self._states is not None else 0

    def __iter__(self):
        return iter(list(self._states.values()) if self._states is not None else ())

    def close(self):
        """Forget all."""
        self.budget.used -= len(self)
        self._states = self._undo = self._held = self._snapshot = None
        self.unsettled = False
        self.snapshot_offset = -1

    cdef ProducerState _get(self, int64_t producer_id):
        return self._states.get(producer_id) if self._states is not None else None

    cdef int judge(self, ProduceRequest request, ProducerBatch* found) except -1:
        """A Verdict on a request that has a producer; found is filled in for a duplicate."""
        cdef ProducerState state = self._get(request.producer_id)
        cdef int64_t expected
        cdef uint32_t i
        if state is None or state.count == 0:
            if request.producer_sequence > 0:
                return VERDICT_UNKNOWN
            return VERDICT_LIMIT if state is None and self.budget.used >= self.budget.limit else VERDICT_APPEND
        if request.producer_epoch < state.epoch:
            return VERDICT_FENCED
        expected = state.next_sequence() if request.producer_epoch == state.epoch else 0
        if request.producer_sequence == expected:
            return VERDICT_APPEND
        if request.producer_sequence > expected:
            return VERDICT_GAP
        for i in range(state.count):
            if (
                state.batches[i].sequence == request.producer_sequence
                and state.batches[i].record_count == request.record_count
            ):
                found[0] = state.batches[i]
                return VERDICT_DUPLICATE
        return VERDICT_OUT_OF_WINDOW

    cdef ProducerState touch(self, int64_t producer_id):
        """The producer's state, to add() to; what it was before is kept until settle(). Raises MemoryError."""
        cdef ProducerState state = self._get(producer_id)
        if self._undo is None:
            self._undo = {}
        if producer_id not in self._undo:
            self._undo[producer_id] = state.copy() if state is not None else None
            self.unsettled = True
        return state if state is not None else self._add(producer_id)

    def _add(self, int64_t producer_id):
        cdef ProducerState state = ProducerState.__new__(ProducerState)
        state.id = producer_id
        state.epoch = -1
        if self._states is None:
            self._states = {}
        self._states[producer_id] = state
        self.budget.used += 1
        return state

    cdef int restore(
        self, int64_t producer_id, int32_t producer_epoch, const ProducerBatch* batch, int64_t append_ms
    ) except -1:
        """A batch that was found in the log, behind those that were found before it."""
        cdef ProducerState state = self._get(producer_id)
        if state is None:
            state = self._add(producer_id)
        state.add(producer_epoch, batch, append_ms)
        return 0

    cdef int settle(self) except -1:
        """All that was added is written."""
        self._undo = self._held = None
        self.unsettled = False
        return 0

    cdef int hold(self) except -1:
        """What was added since settle() is a transaction's; what is added from here on may fail without it."""
        self._held, self._undo = self._undo, None
        return 0

    cdef int release(self) except -1:
        """What hold() was called for is written."""
        self._held = None
        self.unsettled = self._undo is not None
        return 0

    cdef int undo(self) except -1:
        """Nothing that was added since settle() was written: what was known then is what is known."""
        cdef int64_t before = len(self)
        # What was added last is taken back first.
        for known in (self._undo, self._held):
            if known is None:
                continue
            for producer_id, state in known.items():
                if state is None:
                    self._states.pop(producer_id, None)
                else:
                    self._states[producer_id] = state
        self.budget.used += <int64_t>len(self) - before
        return self.settle()

    # Expiry

    def restart(self, int64_t steady_ms, int64_t now_ms):
        """They were found on the disk: from their last append on they were idle. steady_ms: as in expire()."""
        cdef ProducerState state
        for state in self:
            state.fresh = False
            state.idle_since_ms = steady_ms - max(now_ms - state.last_append_ms, 0)

    def expire(self, int64_t steady_ms, int64_t expiration_ms):
        """Forget those that have appended nothing for so long. Returns how many.

        steady_ms: by a clock that never jumps; the clock of appends may be set forward by years, which must not make a
        retry look new. An append counts from the first look after it.
        """
        cdef ProducerState state
        expired = []
        for state in self:
            if state.fresh:
                state.fresh = False
                state.idle_since_ms = steady_ms
            elif steady_ms - state.idle_since_ms >= expiration_ms:
                expired.append(state.id)
        for producer_id in expired:
            del self._states[producer_id]
        self.budget.used -= len(expired)
        return len(expired)

    # Snapshots

    def encode(self, int64_t offset):
        """The bytes of a snapshot file: of what is written, which ends at offset."""
        cdef ProducerState state
        cdef list states = []
        cdef Py_ssize_t size = 0
        cdef bytes producers
        cdef char* at
        for state in self:
            if self._held is not None and state.id in self._held:
                state = self._held[state.id]
            elif self._undo is not None:
                state = self._undo.get(state.id, state)
            if state is not None and state.count:
                states.append(state)
                size += PRODUCER_BYTES + state.count * BATCH_BYTES
        producers = PyBytes_FromStringAndSize(NULL, size)
        at = PyBytes_AS_STRING(producers)
        for state in states:
            at = state.write(at)
        rest = _SUMS.pack(len(states), offset, self.topic_id, self.partition, 0) + producers
        return _HEADER.pack(b"TKP1", _VERSION, _masked(rest)) + rest

    @staticmethod
    def decode(bytes data not None, int64_t topic_id, uint32_t partition, ProducerBudget budget not None):
        """What a snapshot file of this partition tells; None: it is not one, or not whole."""
        cdef ProducerStates states
        cdef ProducerBatch batch
        if len(data) < SNAPSHOT_HEADER_SIZE:
            return None
        magic, version, crc = _HEADER.unpack_from(data)
        if magic != b"TKP1" or version != _VERSION or crc != _masked(data[_HEADER.size:]):
            return None
        producers, offset, named_topic_id, named_partition, _ = _SUMS.unpack_from(data, _HEADER.size)
        if (named_topic_id, named_partition) != (topic_id, partition) or not 0 <= offset <= SAFE_INT64:
            return None
        states = ProducerStates(budget, topic_id, partition)
        states.snapshot_offset = offset
        try:
            position = SNAPSHOT_HEADER_SIZE
            for _ in range(producers):
                producer_id, epoch, count, append_ms = _PRODUCER.unpack_from(data, position)
                position += _PRODUCER.size
                if producer_id < 0 or epoch < 0 or not 1 <= count <= PRODUCER_WINDOW:
                    raise ValueError("an impossible producer")
                for _ in range(count):
                    (
                        batch.sequence, batch.base_offset, batch.first_timestamp_ms, batch.record_count, batch.epoch
                    ) = _BATCH.unpack_from(data, position)
                    position += _BATCH.size
                    states.restore(producer_id, epoch, &batch, append_ms)
            if position != len(data):
                raise ValueError("it goes on")
        except (struct.error, ValueError):
            # Its checksum matches, and yet it is none of ours.
            states.close()
            return None
        return states

    cdef int take_snapshot(self, int64_t written_offset, int64_t position) except -1:
        """Keep a snapshot of what is written, to be written itself when all of that is durable: what a power cut takes
        must be in none. position: in all the bytes that were ever written.

        Not before the log has grown by several times its size: many producers must not cost more than their records.
        """
        if (
            self.budget.in_use and self._snapshot is None and not self._is_saving
            and self.snapshot_offset < written_offset
            and position - self._snapshot_position >= len(self) * SNAPSHOT_GROWTH_BYTES
        ):
            self._snapshot = self.encode(written_offset)
            self._snapshot_end = written_offset
            self._snapshot_position = position
        return 0

    cdef int write_snapshot(self, Files files, str path) except -1:
        """Write what take_snapshot() kept; it is due."""
        snapshot, self._snapshot = self._snapshot, None
        if self._is_saving or self._snapshot_end <= self.snapshot_offset:
            return 0
        try:
            # The one before it may know of producers whose batches are gone: a power cut must not leave neither.
            files.replace_whole(path, snapshot)
            self.snapshot_offset = self._snapshot_end
        except OSError:
            # Then the next start reads the headers of more batches.
            pass
        return 0

    def begin_save(self, int64_t offset, int64_t written_offset):
        """The snapshot of what is written, for somebody to write so that producers known from below offset stay known.

        None: nobody need to. Until end_save() nobody else writes the file.
        """
        if not len(self) or self._is_saving or self.snapshot_offset >= min(offset, written_offset):
            return None
        self._is_saving = True
        return self.encode(written_offset)

    def end_save(self, int64_t end):
        """The snapshot that ends there is written; -1: it is not."""
        self._is_saving = False
        self.snapshot_offset = max(self.snapshot_offset, end)


cdef uint32_t _masked(bytes data) except? 0:
    return mask(crc32c_of(0, <const unsigned char*><const char*>data, <size_t>len(data)))


cdef object refusal(int verdict, ProduceRequest request, ProducerStates states, str topic, int32_t partition):
    """The error that a verdict comes to."""
    cdef ProducerState state = states._get(request.producer_id)
    where = f"producer {request.producer_id} in {topic}/{partition}"
    named = {"topic": topic, "partition": partition, "producer_id": request.producer_id}
    if verdict == VERDICT_LIMIT:
        return error(
            Reason.PRODUCER_LIMIT,
            f"there are {states.budget.limit} producers that partitions know, as many as this broker takes "
            "(limits.producers)", max_producers=states.budget.limit, **named,
        )
    if verdict == VERDICT_UNKNOWN or state is None:
        return error(
            Reason.PRODUCER_UNKNOWN,
            f"nothing is known of {where}, so its sequence begins at 0, not at {request.producer_sequence}: it has "
            "expired, or its records are gone", expected_sequence=0, **named,
        )
    if verdict == VERDICT_FENCED:
        return error(
            Reason.PRODUCER_FENCED, f"{where} has epoch {state.epoch}: {request.producer_epoch} is fenced",
            producer_epoch=state.epoch, **named,
        )
    expected = state.next_sequence() if request.producer_epoch == state.epoch else 0
    if verdict == VERDICT_GAP:
        return error(
            Reason.SEQUENCE_GAP,
            f"the next sequence of {where} is {expected}, not {request.producer_sequence}: a request before this one "
            "was not appended", expected_sequence=expected, **named,
        )
    return error(
        Reason.SEQUENCE_OUT_OF_WINDOW,
        f"sequence {request.producer_sequence} with {request.record_count} records is none of the last "
        f"{PRODUCER_WINDOW} requests of {where}: whether it was appended once is not known any more",
        expected_sequence=expected, **named,
    )
