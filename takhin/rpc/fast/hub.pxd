"""What the connections of the fast front share."""

from libc.stdint cimport int64_t, uint8_t

from takhin.rpc.fast.nghttp2 cimport nghttp2_session
from takhin.rpc.fast.outgoing cimport Outgoing

cdef int64_t now_ns() noexcept nogil


cdef class Hub:
    # What is read, and what is to be written, of whichever connection it is the turn.
    cdef bytearray incoming
    cdef Outgoing out
    # For a message that comes in pieces; one is kept.
    cdef uint8_t* spare
    cdef size_t spare_capacity
    cdef list dirty
    cdef bint flush_is_due
    cdef object loop
    cdef dict methods
    # Served, of `methods`: most calls are of the same.
    cdef object last_called
    cdef readonly object settings
    cdef readonly int64_t max_message_bytes
    cdef readonly size_t max_metadata_bytes
    cdef readonly set connections
    # Calls under way, and connections, those counted whose handshake is under way.
    cdef readonly int64_t calls
    cdef readonly int64_t num_links
    # Connections that have more to be looked at than their turn had room for.
    cdef readonly int64_t num_resting
    # Of messages that come in pieces and are not whole, and of answers to unary calls that are not taken.
    cdef readonly int64_t held_bytes
    cdef readonly int64_t max_held_bytes
    cdef dict deadlines
    cdef int64_t expiry_us
    cdef object expiry
    cdef int64_t now_us
    cdef object busy_timeout_s
    cdef str compression

    cdef uint8_t* take_buffer(self, size_t* capacity) noexcept
    cdef void give_buffer(self, uint8_t* buffer, size_t capacity) noexcept
    cdef bint hold(self, int64_t more_bytes, int64_t own_bytes) noexcept
    cdef bint is_crowded(self) noexcept
    cdef int note_deadline(self, object call, int64_t deadline_us) except -1
    cdef int _expire_after(self, int64_t deadline_us) except -1
    cdef void want_flush(self, Link link) noexcept
    cdef void done(self) noexcept


cdef class Link:
    cdef Hub hub
    cdef nghttp2_session* session
    cdef readonly str peer
    cdef readonly dict calls
    cdef bint is_dirty
    cdef bint in_callback
    # Whether the transport takes pieces as they are: TLS makes a record of each.
    cdef bint takes_slices
    cdef object bug
    cdef readonly double ping_heard_s
    cdef int ping_strikes

    cdef int flush(self) except -1
    cdef int write_out(self) except -1
    cdef bint has_enough(self) noexcept
    cdef int end_if_stuck(self) except -1
    cdef void forgive_pings(self) noexcept
    cdef void forgive_nuisance(self) noexcept
