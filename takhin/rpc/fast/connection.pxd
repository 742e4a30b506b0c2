"""One HTTP/2 connection of the fast front."""

from libc.stdint cimport int32_t, int64_t, uint8_t

from takhin.rpc.fast.hub cimport Link


cdef class Connection(Link):
    cdef readonly object transport
    # The socket's; -1: only the transport knows how to write to it (TLS).
    cdef int descriptor
    cdef bint is_paused
    # Since when a paused transport has taken nothing, by the loop's clock, and what it holds.
    cdef double stuck_s
    cdef object stuck_bytes
    # In this turn.
    cdef size_t written_bytes
    # Whether anything was sent yet.
    cdef bint has_spoken
    cdef bint is_broken
    # Whether it takes no more calls, and the last one that it does.
    cdef bint has_left
    cdef int32_t last_taken
    cdef bint is_lost
    cdef bint counts
    cdef readonly bint is_greeted
    cdef readonly bint going_away
    # It has answered to what was sent behind the GOAWAY.
    cdef readonly bint knows_of_going
    # When, by the loop's clock.
    cdef readonly double begun_s
    cdef readonly double heard_s
    cdef readonly double used_s
    # A call has ended in this turn.
    cdef bint is_used
    cdef public double age_limit_s
    cdef public double going_s
    cdef public double pinged_s
    cdef readonly double lingers_s
    # When the block of headers began that has not ended yet; -1: none.
    cdef readonly double block_s
    # What has come and is to be given to nghttp2 when it is this connection's turn again; None: nothing.
    cdef bytes unread
    cdef bint waits
    cdef int64_t turn_ns
    cdef Py_ssize_t piece_bytes
    # What the client did too much of; when the counts were last reduced for the time that went by.
    cdef bytes why
    cdef int64_t nuisance
    cdef int64_t nuisance_us
    cdef int64_t resets
    cdef int64_t resets_us
    cdef int64_t max_resets
    cdef int64_t continuations
    cdef int64_t max_continuations
    cdef int64_t dropped_bytes
    # Answers that are not taken: of what streams, since when, and what is left of each.
    cdef dict stale
    cdef object identity_pem

    cdef int begin(self) except -1
    cdef Py_ssize_t feed(self, const uint8_t* data, Py_ssize_t size) except -1
    cdef int go_on(self) except -1
    cdef void forget_unread(self) noexcept
    cdef bint is_choked(self) noexcept
    cdef int mind_reading(self) except -1
    cdef int drop_session(self) except -1
    cdef int linger(self) except -1
    cdef double stuck_for(self) except -1
    cdef int too_much(self, bytes why) noexcept
    cdef int note_nuisance(self, int64_t count) noexcept
    cdef int note_reset(self) noexcept
    cdef int note_ping(self) noexcept
