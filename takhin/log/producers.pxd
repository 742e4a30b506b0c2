"""What a partition knows of its idempotent producers."""

from libc.stdint cimport int32_t, int64_t, uint32_t

from takhin.codec.messages cimport ProduceRequest
from takhin.log.files cimport Files

cdef enum:
    # How many batches of a producer are known again when they come a second time.
    PRODUCER_WINDOW = 5

cdef enum Verdict:
    VERDICT_APPEND = 0
    VERDICT_DUPLICATE
    VERDICT_FENCED
    VERDICT_UNKNOWN
    VERDICT_GAP
    VERDICT_OUT_OF_WINDOW
    VERDICT_LIMIT


cdef struct ProducerBatch:
    int64_t sequence
    int64_t base_offset
    int64_t first_timestamp_ms
    uint32_t record_count
    int32_t epoch               # of the log


cdef class ProducerBudget:
    cdef readonly int64_t limit
    cdef readonly int64_t used
    # Whether ids were ever given out: until then no log holds a producer's batch.
    cdef public bint in_use


cdef class ProducerState:
    cdef readonly int64_t id
    cdef readonly int32_t epoch
    cdef readonly int64_t last_append_ms
    cdef int64_t idle_since_ms  # by a clock that never jumps
    cdef bint fresh             # appended to since expire() last looked
    cdef uint32_t count
    cdef ProducerBatch batches[PRODUCER_WINDOW]     # the oldest first
    cdef ProducerState copy(self)
    cdef int64_t next_sequence(self) noexcept
    cdef char* write(self, char* to) noexcept
    cdef void add(self, int32_t epoch, const ProducerBatch* batch, int64_t append_ms) noexcept


cdef class ProducerStates:
    cdef ProducerBudget budget
    cdef int64_t topic_id
    cdef uint32_t partition
    # Whether there is something that undo() would take back.
    cdef readonly bint unsettled
    cdef dict _states           # by id; None: there were never any
    cdef dict _undo             # by id: what was known when everything was written last, None: nothing
    cdef dict _held             # the same for what a transaction added, until release(); None: there is none
    # The snapshot file tells of all that lies below it; -1: there is none.
    cdef readonly int64_t snapshot_offset
    cdef bytes _snapshot        # to be written when all below this offset is durable
    cdef int64_t _snapshot_end
    cdef int64_t _snapshot_position
    cdef bint _is_saving        # another thread is writing the file
    cdef ProducerState _get(self, int64_t producer_id)
    cdef int judge(self, ProduceRequest request, ProducerBatch* found) except -1
    cdef ProducerState touch(self, int64_t producer_id)
    cdef int restore(
        self, int64_t producer_id, int32_t producer_epoch, const ProducerBatch* batch, int64_t append_ms
    ) except -1
    cdef int settle(self) except -1
    cdef int hold(self) except -1
    cdef int release(self) except -1
    cdef int undo(self) except -1
    cdef int take_snapshot(self, int64_t written_offset, int64_t position) except -1
    cdef inline bint snapshot_is_due(self, int64_t durable_offset) noexcept:
        return self._snapshot is not None and self._snapshot_end <= durable_offset
    cdef int write_snapshot(self, Files files, str path) except -1


cdef object refusal(int verdict, ProduceRequest request, ProducerStates states, str topic, int32_t partition)
