"""The common way of a reader: at the log's end, with what it gets next in memory."""

from libc.stdint cimport int64_t

from takhin.log.reader cimport Reader
from takhin.outcome cimport Outcome, Waiter


cdef class Target(Waiter):
    cdef bint offer(self, bytes message) except -1


cdef class Follower(Waiter):
    cdef readonly Reader reader
    cdef object consuming
    cdef object budget
    cdef object lease
    cdef int64_t max_bytes
    cdef Target target
    cdef object loop
    # What start() gave.
    cdef object stopped
    # What it was last added to; None: it waits for no data.
    cdef Outcome outcome
    # A response is with the target that has not taken it.
    cdef bint is_writing
    cdef bint is_due

    cdef object start(self, Target target, object loop)
    cdef int go_on(self) except -1
    cdef bint send(self) except -1
    cdef int leave_it(self) except -1
    cdef bint is_over(self) except -1
    cdef int room(self) except -1
    cdef int stop(self) except -1
