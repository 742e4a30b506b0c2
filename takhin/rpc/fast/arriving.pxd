"""A message that comes in pieces."""

from libc.stdint cimport int64_t, uint8_t

from takhin.rpc.fast.hub cimport Hub

cdef struct Arriving:
    uint8_t* data
    # Bytes that are here, that there is room for, and that are counted in Hub.held_bytes.
    size_t have
    size_t capacity
    size_t held
    # The first piece.
    int64_t since_us

cdef bint add_piece(Arriving* body, Hub hub, size_t whole_bytes, const uint8_t* data, size_t size) except -1
cdef Arriving take_whole(Arriving* body, Hub hub) noexcept
cdef void drop_pieces(Arriving* body, Hub hub) noexcept
