"""What a connection of the fast front is about to write: small things one behind another in a buffer, large parts of
messages as they are."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void* iov_base
        size_t iov_len

cdef extern from "<sys/socket.h>" nogil:
    cdef struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen

    ssize_t sendmsg(int descriptor, const msghdr* message, int flags)
    enum: MSG_NOSIGNAL
    enum: MSG_DONTWAIT

# The kernel's copy of so much takes longer than it costs to let other threads have the interpreter. (One that computes
# keeps it for up to the switch interval; ours wait, for disks.)
cdef size_t LONG_BYTES = 64 * 1024


@cython.final
cdef class Outgoing:
    """Of whichever connection it is the turn."""

    def __cinit__(self):
        self.copied = NULL
        self.messages = []

    def __dealloc__(self):
        free(self.copied)

    cdef int put(self, const uint8_t* data, size_t size) except -1:
        """Copy them."""
        cdef uint8_t* grown
        cdef size_t capacity
        cdef Piece* last
        if self.copied_bytes + size > self.copied_capacity:
            capacity = max(self.copied_bytes + size, 2 * self.copied_capacity, <size_t>(2 * WRITE_BYTES))
            grown = <uint8_t*>realloc(self.copied, capacity)
            if grown == NULL:
                raise MemoryError
            self.copied, self.copied_capacity = grown, capacity
        memcpy(self.copied + self.copied_bytes, data, size)
        last = &self.pieces[self.num_pieces - 1] if self.num_pieces else NULL
        if last != NULL and last.message == NULL:
            last.size += size
        else:
            self.add(NULL, self.copied_bytes, size)
        self.copied_bytes += size
        self.size_bytes += size
        return 0

    cdef int put_slice(self, bytes message, size_t at, size_t size) except -1:
        """Part of a message, as it is; only while has_room()."""
        self.messages.append(message)
        self.add(<const uint8_t*>PyBytes_AS_STRING(message), at, size)
        self.size_bytes += size
        return 0

    cdef int add(self, const uint8_t* message, size_t at, size_t size) except -1:
        if self.num_pieces == MAX_PIECES:
            raise IndexError("no room for another piece")
        self.pieces[self.num_pieces].message = message
        self.pieces[self.num_pieces].at = at
        self.pieces[self.num_pieces].size = size
        self.num_pieces += 1
        return 0

    cdef bint is_full(self) noexcept:
        """Whether it is to be written before more is added."""
        return self.size_bytes >= WRITE_BYTES or not self.has_room()

    cdef bint has_room(self) noexcept:
        """For another slice, and for what is copied behind it."""
        return self.num_pieces + 2 <= MAX_PIECES

    cdef size_t send(self, int descriptor) noexcept:
        """Write to a socket what it takes at once. Gives how many bytes: none, too, when it has failed."""
        cdef iovec[MAX_PIECES] vector
        cdef msghdr head
        cdef const uint8_t* base
        cdef size_t number
        cdef ssize_t sent
        for number in range(self.num_pieces):
            base = self.pieces[number].message
            if base == NULL:
                base = self.copied
            vector[number].iov_base = <void*>(base + self.pieces[number].at)
            vector[number].iov_len = self.pieces[number].size
        memset(&head, 0, sizeof(head))
        head.msg_iov, head.msg_iovlen = vector, self.num_pieces
        if self.size_bytes > LONG_BYTES:
            with nogil:
                sent = sendmsg(descriptor, &head, MSG_NOSIGNAL | MSG_DONTWAIT)
        else:
            sent = sendmsg(descriptor, &head, MSG_NOSIGNAL | MSG_DONTWAIT)
        return sent if sent > 0 else 0

    cdef list rest(self, size_t sent):
        """What comes behind the first `sent` bytes: buffers that stay as they are."""
        cdef list found = []
        cdef Piece* piece
        cdef size_t number
        cdef size_t skipped
        cdef size_t of_messages = 0
        for number in range(self.num_pieces):
            piece = &self.pieces[number]
            skipped = min(sent, piece.size)
            sent -= skipped
            if piece.message != NULL:
                of_messages += 1
            if skipped == piece.size:
                continue
            if piece.message == NULL:
                found.append(PyBytes_FromStringAndSize(
                    <const char*>self.copied + piece.at + skipped, piece.size - skipped))
            else:
                found.append(memoryview(self.messages[of_messages - 1])[piece.at + skipped:piece.at + piece.size])
        return found

    cdef void clear(self) noexcept:
        self.size_bytes = self.copied_bytes = self.num_pieces = 0
        if self.messages:
            self.messages.clear()
