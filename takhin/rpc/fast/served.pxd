"""The methods of a table, as the fast front serves them."""

from libc.stdint cimport uint8_t

from takhin.broker.appending cimport Appending
from takhin.counters cimport CallCounters, SlowCalls
from takhin.gate cimport Gate
from takhin.outcome cimport Waiter

cdef enum:
    # Of Served.kind.
    UNARY = 0
    SERVER_STREAM = 1
    BIDI = 2


cdef class Served:
    cdef readonly object method
    cdef bytes path
    cdef readonly object handler
    cdef readonly CallCounters counters
    cdef readonly Gate gate
    cdef int kind
    # Where a call is served without a coroutine.
    cdef Appending appending
    cdef object topics
    cdef object holding
    cdef object open_sink
    cdef SlowCalls slow
    # Else by what these make, given the call, and for run its request where it is there.
    cdef object run
    cdef object refuse_full


cdef class Sink(Waiter):
    """Takes the requests of a stream without a coroutine."""

    cdef bint has_enough(self) noexcept
    cdef int take(self, const uint8_t* request, size_t size) except -1
    cdef int end_of_requests(self) except -1
    cdef int room(self) except -1
    cdef int close(self) except -1
