"""What a transaction has appended to a partition, held back from the file until an entry of the journal has decided it.

make_ready(), the append, then a Hold, all in one tick; in the same tick drop() takes it back. Later, when it is
decided, write() and release(); when it is not to be, void(). Partition.fail() ends it, too. Meanwhile other requests
append behind it, in memory; no segment is begun, and the marks W and D stay, but for syncs of what is written.
"""

cimport cython
from libc.errno cimport EIO
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from takhin.codec.batch cimport RECORD_OVERHEAD_BYTES
from takhin.log.partition cimport Partition
from takhin.log.ring cimport RingBatch

from takhin.errors import Reason, error

# So much may wait behind what is held, that included.
cdef int64_t HELD_BYTES = 16 * 1024 * 1024

# Protobuf's limit for a message, which a segment is.
cdef int64_t MAX_SEGMENT_BYTES = 0x7FFFFFFF


def make_ready(
    Partition partition not None, int64_t records, int64_t records_bytes, int64_t now_ms, int64_t limit_bytes
):
    """Write all that was appended, and begin a new segment if so many records want one.

    Returns whether an entry of the journal can begin here: what is not yet durable is all in memory and in the active
    segment, and no more than limit_bytes. If not, make_durable(written_offset) comes first. Raises as append does.
    """
    _check(partition)
    if partition.active is None:
        partition._prepare_append(now_ms)
    partition.flush()
    _check(partition)
    if partition._is_full(0, records_bytes + records * RECORD_OVERHEAD_BYTES, now_ms):
        partition.roll(now_ms)
    return partition.durable_offset == partition.written_offset or 0 <= partition.journal_size() <= limit_bytes


def _check(Partition partition not None):
    if partition.failure is not None:
        raise error(*partition.failure, topic=partition.topic, partition=partition.partition)


cdef int check_held(Partition partition, int64_t pending) except -1:
    """Raises TRANSACTION_PENDING when so much may not wait."""
    if pending > HELD_BYTES or partition.active.size_bytes + pending > MAX_SEGMENT_BYTES:
        raise error(
            Reason.TRANSACTION_PENDING,
            f"{partition.topic}/{partition.partition} takes no more appends until a transaction is on the disk; try "
            "again", topic=partition.topic, partition=partition.partition,
        )
    return 0


@cython.final
cdef class Hold:
    """All that was appended to the partition since make_ready(): at least one record."""

    def __init__(self, Partition partition not None):
        partition._close_batch()
        partition.held = True
        partition.producers.hold()
        self.partition = partition
        self.end_offset = partition.next_offset
        self._end = partition.ring.next

    @property
    def stands(self):
        """Whether it is still held: the partition may have failed, or been closed."""
        return self.partition.held

    cdef uint64_t _first(self) noexcept:
        """The number of the first batch that is not durable."""
        if self.partition.durable_offset == self.partition.written_offset:
            return self.partition.ring.unwritten
        return self.partition.ring.find(self.partition.durable_offset)

    cdef int64_t size(self) noexcept:
        cdef RingBatch* last = self.partition.ring.batch(self._end - 1)
        return last.position + last.size - self.partition.ring.batch(self._first()).position

    cdef int64_t position(self) noexcept:
        """Where those bytes stand, or will stand, in the active segment."""
        return self.partition.active.size_bytes - (
            self.partition._written_position - self.partition.ring.batch(self._first()).position
        )

    cdef void copy(self, uint8_t* to) noexcept:
        """As many bytes as size() says."""
        cdef RingBatch* batch
        cdef uint64_t number
        for number in range(self._first(), self._end):
            batch = self.partition.ring.batch(number)
            memcpy(to, batch.data, batch.size)
            to += batch.size

    @property
    def entry_bytes(self):
        """What an entry needs for it: what is held, and what is not yet durable before it.

        -1: that is not in memory any more; make_durable(written_offset) comes first.
        """
        # With nothing else that is not durable that is where what is held begins, which is always in memory.
        return self.size() if self.partition.ring.holds(self.partition.durable_offset) else -1

    def drop(self):
        """Take it back, in the tick in which it was appended: nobody was told of it."""
        self.partition._drop_unwritten()

    def reserve(self):
        """From here on there is room for it in the file. Raises OSError."""
        cdef Partition partition = self.partition
        cdef RingBatch* last = partition.ring.batch(self._end - 1)
        cdef int fd = partition.active.acquire()
        try:
            partition.cache.files.reserve(
                fd, partition.active.size_bytes, last.position + last.size - partition._written_position
            )
        finally:
            partition.active.release()

    def write(self):
        """Write it to the file; readers do not see it yet. Returns 0 or an errno."""
        try:
            return -self.partition._write(self._end)
        except OSError as problem:
            return problem.errno or EIO

    def release(self):
        """It was written, and is durable in the journal: show it; then write what was appended behind it."""
        cdef Partition partition = self.partition
        partition.held = False
        partition.producers.release()
        partition._note_written(self._end)
        partition._move_durable(partition.written_offset)
        partition.flush()
        # Who waits for what is held, a retry say: with nothing behind it there was nothing to flush.
        if partition.ring.unwritten == partition.ring.next:
            partition._answer_written()

    def void(self, int errno_):
        """It is not to be, and what was appended behind it neither: as after a write that failed."""
        self.partition._fail_write(errno_, False)
