"""A produce stream of the fast front: requests are appended as they come, and answered in their order."""

from libc.stdint cimport int32_t, int64_t, uint8_t

from takhin.broker.appending cimport Appending
from takhin.outcome cimport Outcome
from takhin.rpc.fast.call cimport FastCall
from takhin.rpc.fast.served cimport Sink


cdef class _Answer:
    cdef bytes response
    cdef Outcome outcome
    cdef object partition
    cdef int32_t timeout_ms
    cdef int64_t size_bytes


cdef class ProduceStream(Sink):
    cdef FastCall call
    cdef Appending appending
    # What the method's handler would hold.
    cdef object held
    cdef object answers
    # The one whose outcome tells us when it is there.
    cdef _Answer awaited
    cdef int64_t bytes_in_flight
    cdef object timer
    cdef bint pump_is_due
    cdef bint is_appending
    cdef bint is_draining

    cdef int append(self, const uint8_t* request, size_t size) except -1
    cdef int fail(self, failure) except -1
    cdef int count(self, int64_t size_bytes) noexcept
    cdef int send(self, bytes response) except -1
    cdef int wait_for(self, _Answer answer) except -1
    cdef int send_answers(self) except -1
    cdef int forget_timer(self) except -1
    cdef int pump_soon(self) except -1
    cdef int end_if_done(self) except -1
