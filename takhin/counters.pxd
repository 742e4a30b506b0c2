"""Counters of hot paths, in C."""

from libc.stdint cimport int64_t

cdef enum:
    MAX_BOUNDS = 24
    # Of google.rpc.Code.
    NUM_CODES = 17


cdef class Histogram:
    cdef int64_t bounds_ns[MAX_BOUNDS]
    cdef int64_t counts[MAX_BOUNDS + 1]
    cdef int num_bounds
    cdef int64_t total_ns

    cdef void add(self, int64_t duration_ns) noexcept


cdef class CallCounters:
    cdef readonly int64_t started
    cdef readonly int64_t received
    cdef readonly int64_t sent
    cdef readonly Histogram durations
    cdef int64_t handled[NUM_CODES]


cdef class SlowCalls:
    cdef public int64_t limit_ns
    cdef readonly object tell
