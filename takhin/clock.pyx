"""The clock that records are stamped by: every append reads it."""

from libc.stdint cimport int64_t
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec


def wall_clock_ms():
    """Milliseconds since the epoch."""
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    # A clock before 1970 is wrong anyway, and the format has no room for it.
    return max(<int64_t>now.tv_sec * 1000 + now.tv_nsec // 1_000_000, 0)
