"""What the connections of the fast front share: buffers, and the turn of the loop in which they write.

What is to be sent is written once a tick, for all that happened in it, in one write a connection.
"""

import logging

cimport cython
from libc.stdint cimport INT64_MAX, int64_t, uint8_t
from libc.stdlib cimport free
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from takhin.gate cimport BUSY_SHARE
from takhin.rpc.fast.outgoing cimport Outgoing

logger = logging.getLogger(__name__)

# What is read at once, of one connection before the others have their turn.
READ_BYTES = 64 * 1024
# Calls whose deadlines are that close to each other end together.
cdef int64_t EXPIRY_TICK_US = 10_000
# A buffer that is larger is not kept.
cdef size_t MOST_SPARE_BYTES = 1024 * 1024


cdef int64_t now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


@cython.final
cdef class Hub:
    """What the connections of a front share. methods: Served by path, in bytes. settings: GrpcSettings."""

    def __cinit__(self):
        self.spare = NULL

    def __init__(self, methods, settings, loop, *, busy_timeout_s, max_held_bytes):
        self.methods = methods
        self.settings = settings
        self.loop = loop
        self.busy_timeout_s = busy_timeout_s
        self.max_held_bytes = max_held_bytes
        self.compression = settings.compression if settings.compression != "none" else None
        self.max_message_bytes = settings.max_message_bytes
        self.max_metadata_bytes = settings.max_metadata_bytes
        self.incoming = bytearray(READ_BYTES)
        self.out = Outgoing()
        self.dirty = []
        self.connections = set()
        # When the calls that have a deadline and are not over are to end, us by the monotonic clock; and when expire()
        # is called for the first of them: an idle broker has nothing to wake for.
        self.deadlines = {}
        self.expiry_us = INT64_MAX
        self.expiry = None

    def __dealloc__(self):
        free(self.spare)

    cdef uint8_t* take_buffer(self, size_t* capacity) noexcept:
        """The one that was given back last; NULL, of no bytes: there is none."""
        buffer, self.spare = self.spare, NULL
        capacity[0], self.spare_capacity = self.spare_capacity, 0
        return buffer

    cdef void give_buffer(self, uint8_t* buffer, size_t capacity) noexcept:
        """It is not needed any more."""
        if capacity > self.spare_capacity and capacity <= MOST_SPARE_BYTES:
            buffer, self.spare = self.spare, buffer
            self.spare_capacity = capacity
        free(buffer)

    cdef bint hold(self, int64_t more_bytes, int64_t own_bytes) noexcept:
        """Count so many more of who has own_bytes already; whether that is within the limit, or there are no others'.
        If not, they are not counted."""
        if self.held_bytes > own_bytes and self.held_bytes + more_bytes > self.max_held_bytes:
            return False
        self.held_bytes += more_bytes
        return True

    cdef bint is_crowded(self) noexcept:
        """Whether so much is held that who takes long for it makes room."""
        return self.held_bytes * BUSY_SHARE >= self.max_held_bytes

    cdef void want_flush(self, Link link) noexcept:
        if not link.is_dirty:
            link.is_dirty = True
            self.dirty.append(link)
            if not self.flush_is_due:
                self.flush_is_due = True
                self.loop.call_soon(self.flush)

    def flush(self):
        """Write what there is to write, on every connection."""
        self.flush_is_due = False
        links, self.dirty = self.dirty, []
        for link in links:
            (<Link>link).is_dirty = False
            try:
                (<Link>link).flush()
            except Exception as bug:
                # Of one connection: the others are written all the same.
                (<Link>link).bug = bug
                link.report()

    def loop_time(self):
        """The event loop's clock, in seconds."""
        return self.loop.time()

    cdef int note_deadline(self, object call, int64_t deadline_us) except -1:
        """expire() is to end the call then, unless it is taken from `deadlines` before."""
        self.deadlines[call] = deadline_us
        if deadline_us < self.expiry_us - EXPIRY_TICK_US:
            self._expire_after(deadline_us)
        return 0

    cdef int _expire_after(self, int64_t deadline_us) except -1:
        """Have expire() called at the end of the tick in which this lies."""
        if self.expiry is not None:
            self.expiry.cancel()
        self.expiry_us = (deadline_us // EXPIRY_TICK_US + 1) * EXPIRY_TICK_US
        # The loop counts from when its turn began, in whole milliseconds.
        self.expiry = self.loop.call_later(max(self.expiry_us - now_ns() // 1000, 0) / 1e6 + 0.001, self.expire)
        return 0

    def expire(self):
        """End the calls whose deadline has passed, on every connection."""
        cdef int64_t now_us = now_ns() // 1000
        self.expiry_us, self.expiry = INT64_MAX, None
        expired = [call for call, deadline_us in self.deadlines.items() if deadline_us <= now_us]
        for call in expired:
            self.deadlines.pop(call, None)
        # Most calls end before their deadline: of those that had the first one nothing is found, and this is the price.
        if self.deadlines:
            self._expire_after(min(self.deadlines.values()))
        for call in expired:
            try:
                call.expire()
            except Exception:
                logger.exception("a call whose deadline has passed can't be ended")

    cdef void done(self) noexcept:
        self.calls -= 1


cdef class Link:
    """A connection, as its calls know it."""

    cdef int flush(self) except -1:
        raise NotImplementedError

    cdef int write_out(self) except -1:
        raise NotImplementedError

    cdef bint has_enough(self) noexcept:
        """Whether nothing more is to be written in this turn."""
        return True

    cdef int end_if_stuck(self) except -1:
        raise NotImplementedError

    cdef void forgive_nuisance(self) noexcept:
        pass

    cdef void forgive_pings(self) noexcept:
        """Clients measure the way with pings while there are messages on it."""
        self.ping_strikes = 0
        self.ping_heard_s = 0
