"""The log of one partition."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from takhin.codec.batch cimport BatchHeader
from takhin.codec.messages cimport ProduceRequest, ResponsePrefix
from takhin.outcome cimport Outcome
from takhin.log.producers cimport ProducerState, ProducerStates
from takhin.log.ring cimport Ring
from takhin.log.segment cimport FileCache, Segment


cdef class Partition:
    cdef readonly str topic
    cdef readonly int64_t topic_id
    cdef readonly int32_t partition
    cdef readonly str directory
    cdef FileCache cache
    cdef ResponsePrefix prefix
    cdef Ring ring
    cdef readonly ProducerStates producers
    cdef object _committer
    cdef object _create_future

    # log start <= S <= D <= W <= A: what is kept, what is on the disk in the segments, what is on the disk there or in
    # the journal, what readers see, what was accepted.
    cdef readonly int64_t log_start_offset
    cdef readonly int64_t synced_offset
    cdef readonly int64_t durable_offset
    cdef readonly int64_t written_offset
    cdef readonly int64_t next_offset
    cdef readonly int32_t epoch
    cdef readonly list epochs
    cdef readonly tuple segments
    cdef Segment active

    cdef readonly int64_t segment_bytes
    cdef readonly int64_t segment_ms
    cdef readonly int64_t flush_ms
    cdef readonly bint log_append_time

    # Counters, since the start: where the log ended then, what readers were given.
    cdef readonly int64_t first_written_offset
    cdef readonly int64_t read_records
    cdef readonly int64_t read_bytes

    # None, or (reason, message): why nothing can be appended. final: until the next start.
    cdef readonly tuple failure
    cdef readonly bint failure_is_final
    # None, or why no segment could be begun when one was last needed, and when that was, ms since the epoch. The next
    # append tries again.
    cdef readonly str obstacle
    cdef readonly int64_t obstacle_ms

    # Whether a transaction has appended what stays in memory until it is decided: see hold.pyx.
    cdef readonly bint held

    cdef bint _batch_open
    cdef BatchHeader _header
    cdef int64_t _written_position
    # Whether something was appended that flush() has yet to write.
    cdef readonly bint unwritten
    cdef list _unsynced
    cdef list _unindexed            # sealed segments whose index file is not yet written
    cdef list _unsynced_directories
    cdef object _checkpoint         # of the active segment, to be written when the sync under way is over
    cdef int64_t _checkpoint_bytes  # the active segment's size at the last one
    cdef readonly bint syncing
    # Futures, each of one waiter, so that one who gives up takes nothing from the others.
    cdef list _written_waiters
    cdef list _durable_waiters      # of this tick
    cdef list _sync_waiters         # (offset, futures)
    cdef Outcome _written_outcome   # among those of this tick, for all who share it
    cdef Outcome _durable_outcome
    cdef object _data_future        # shared: whoever waits for it must not cancel it
    cdef Outcome _data_outcome      # the same, for those who are told at once

    cpdef object append(self, ProduceRequest request, int64_t now_ms, int durability)
    cdef Outcome written_outcome(self)
    cdef Outcome durable_outcome(self)
    cdef Outcome data_outcome(self)
    cdef int _note_producer(
        self, ProducerState producer, ProduceRequest request, int64_t base_offset, int64_t first_timestamp_ms,
        int64_t now_ms
    ) noexcept
    cdef int _open_batch(self, size_t needed, int64_t now_ms) except -1
    cdef int _close_batch(self) noexcept
    cdef bint _is_full(self, int64_t pending, int64_t needed, int64_t now_ms) noexcept
    cdef int _write(self, uint64_t end) except? -1
    cdef int _note_written(self, uint64_t end) except -1
    cdef int64_t journal_size(self) noexcept
    cdef void journal_copy(self, uint8_t* to) noexcept
    cdef int _fail_write(self, int errno_, bint begun) except -1


cdef int resolve(list futures, object result) except -1
