"""What a connection of the fast front is about to write."""

from libc.stdint cimport uint8_t

cdef enum:
    # Written at once, and all that one connection writes before the others have their turn. A write costs much of its
    # own, and the more the client sleeps between two of them the more: a quarter of this gives two thirds of the MB/s.
    WRITE_BYTES = 1048576
    # So much of one message is not worth a copy.
    SLICE_BYTES = 8192
    # Pieces written at once, at most: the operating system takes 1,024.
    MAX_PIECES = 256


cdef struct Piece:
    # Where the message begins; NULL: it is of what was copied.
    const uint8_t* message
    size_t at
    size_t size


cdef class Outgoing:
    cdef size_t size_bytes
    cdef uint8_t* copied
    cdef size_t copied_bytes
    cdef size_t copied_capacity
    cdef Piece[MAX_PIECES] pieces
    cdef size_t num_pieces
    # Of the pieces that are of a message, whose it is.
    cdef list messages

    cdef int put(self, const uint8_t* data, size_t size) except -1
    cdef int add(self, const uint8_t* message, size_t at, size_t size) except -1
    cdef int put_slice(self, bytes message, size_t at, size_t size) except -1
    cdef bint is_full(self) noexcept
    cdef bint has_room(self) noexcept
    cdef size_t send(self, int descriptor) noexcept
    cdef list rest(self, size_t sent)
    cdef void clear(self) noexcept
