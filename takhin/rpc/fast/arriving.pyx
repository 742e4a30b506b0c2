"""A message that comes in pieces: its buffer, which is counted in what the front holds for such messages."""

from libc.stdint cimport uint8_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from takhin.rpc.fast.hub cimport Hub

cdef size_t LEAST_BYTES = 65536


cdef bint add_piece(Arriving* body, Hub hub, size_t whole_bytes, const uint8_t* data, size_t size) except -1:
    """The next piece of a message of whole_bytes; of an empty one there are none. False: the front holds too much, and
    nothing was added."""
    cdef size_t needed = body.have + size
    cdef size_t capacity
    cdef uint8_t* grown
    if body.data == NULL:
        body.data = hub.take_buffer(&body.capacity)
        body.since_us = hub.now_us
    capacity = body.capacity
    if needed > capacity:
        # It grows as it comes: what is announced costs nothing.
        capacity = min(whole_bytes, max(2 * needed, LEAST_BYTES))
    if capacity > body.held:
        if not hub.hold(capacity - body.held, body.held):
            return False
        body.held = capacity
    if capacity > body.capacity:
        grown = <uint8_t*>realloc(body.data, capacity)
        if grown == NULL:
            raise MemoryError
        body.data, body.capacity = grown, capacity
    memcpy(body.data + body.have, data, size)
    body.have = needed
    return True


cdef Arriving take_whole(Arriving* body, Hub hub) noexcept:
    """All of it is here: its buffer is the caller's, for Hub.give_buffer()."""
    cdef Arriving whole = body[0]
    hub.held_bytes -= body.held
    memset(body, 0, sizeof(Arriving))
    return whole


cdef void drop_pieces(Arriving* body, Hub hub) noexcept:
    free(take_whole(body, hub).data)
