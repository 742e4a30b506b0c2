"""The common way of a reader: what it gets next is in memory, the ring's or the page cache's, or is yet to come.

There every response is the same few steps, at the log's end at the moment when what was appended is written, for each
of perhaps thousands of readers: no task is woken for them. Whatever else happens (the next record has to come from the
disk, the budget is used up, the partition has failed, the broker stops, all that was asked for is sent) is left to the
coroutine of the stream, which goes on where the follower has stopped.
"""

cimport cython
from libc.stdint cimport int64_t

from takhin.log.partition cimport Partition
from takhin.log.reader cimport Reader
from takhin.outcome cimport Outcome, Waiter

from takhin.log.reader import WOULD_BLOCK


cdef class Target(Waiter):
    """A call whose client gets responses."""

    cdef bint offer(self, bytes message) except -1:
        """Send it. Whether it is taken; if not, the follower's room() is called when it is, unless the call is over."""
        raise NotImplementedError


@cython.final
cdef class Follower(Waiter):
    """Sends responses of at most max_bytes, for which `consuming`, the Consuming it is of, has room as `lease`."""

    def __init__(self, consuming, Reader reader not None, lease, int64_t max_bytes):
        self.consuming = consuming
        self.budget = consuming.budget
        self.reader = reader
        self.lease = lease
        self.max_bytes = max_bytes

    @property
    def is_ready(self):
        """Whether it is worth a start(): else the coroutine has to do something first."""
        return not self.is_over()

    cdef object start(self, Target target, object loop):
        """Begin; gives a future that is done when the coroutine has to go on, after stop(). None: it has to at once."""
        self.target = target
        self.loop = loop
        self.stopped = loop.create_future()
        self.go_on()
        if self.stopped.done():
            self.stopped.result()
            return None
        return self.stopped

    cdef int go_on(self) except -1:
        """Send what there is, then wait for more; or tell that this is not for us."""
        cdef Partition partition = self.reader.partition
        try:
            while not self.is_writing:
                if self.is_over():
                    return self.leave_it()
                if partition.written_offset <= self.reader.next_offset:
                    self.outcome = partition.data_outcome()
                    return self.outcome.add(self)
                if not self.send():
                    return self.leave_it()
        except Exception as problem:
            if not self.stopped.done():
                self.stopped.set_exception(problem)
        return 0

    cdef bint send(self) except -1:
        """The next response, unless that takes more than is done here."""
        cdef Reader reader = self.reader
        cdef int64_t offset = reader.next_offset
        cdef int64_t records_left = reader.records_left
        size_bytes = self.budget.allowance(self.max_bytes)
        if not self.budget.try_reserve(self.lease, size_bytes):
            return False
        try:
            response = reader.read(size_bytes)
        except OSError:
            # The coroutine meets it, too, and knows what to say of it.
            response = None
        if response is None or response is WOULD_BLOCK:
            self.budget.give_back(self.lease)
            return False
        if not self.budget.grow(self.lease, len(<bytes>response)):
            reader.rewind(offset, records_left)
            self.budget.give_back(self.lease)
            return False
        self.budget.begin_write(self.lease)
        if self.target.offer(response):
            self.budget.end_write(self.lease)
        else:
            self.is_writing = True
        return True

    cdef bint is_over(self) except -1:
        """Whether all is sent, or something has happened of which the coroutine has to tell."""
        return self.reader.done or self.reader.partition.failure is not None or self.consuming.is_draining

    cdef int leave_it(self) except -1:
        if not self.stopped.done():
            self.stopped.set_result(None)
        return 0

    cdef void settled(self, Outcome outcome) noexcept:
        """Something was written, or readers are to look for what has happened."""
        if outcome is not self.outcome:
            return
        self.outcome = None
        try:
            if self.reader.partition.written_offset > self.reader.next_offset:
                self.go_on()
            else:
                self.leave_it()
        except Exception as problem:
            if not self.stopped.done():
                self.stopped.set_exception(problem)

    cdef int room(self) except -1:
        """The target has taken what it was offered."""
        if self.is_writing and not self.is_due:
            self.is_due = True
            # It may have said so from within its own writing.
            self.loop.call_soon(self.resume)
        return 0

    def resume(self):
        """The target's answer has come: see room()."""
        self.is_due = False
        if self.target is None or not self.is_writing:
            return
        self.is_writing = False
        self.budget.end_write(self.lease)
        self.go_on()

    cdef int stop(self) except -1:
        """Nothing more is sent."""
        outcome, self.outcome = self.outcome, None
        if outcome is not None:
            (<Outcome>outcome).forget(self)
        # What it ended with leads to the frames that it came through, and they lead back here.
        self.target = self.stopped = None
        return 0
