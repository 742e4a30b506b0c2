"""What bounds calls under way, in C: every call passes one.

Plain integers, changed under the interpreter's lock by the event loop alone.
"""

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE


@cython.final
cdef class Gate:
    """For calls of a kind, all methods and all fronts of it together. name: of the limit. limit: how many may be open
    at once. limit_bytes: of their requests; 0: no bound.

    A front asks is_full when a call has come, before it takes its message; when it is not, enter(), and leave() once
    nothing of the call is left. With the message in hand: take(), and give_back() in the end.
    """

    def __init__(self, str name not None, int64_t limit, int64_t limit_bytes=0):
        self.name = name
        self.limit = limit
        self.limit_bytes = limit_bytes

    @property
    def is_full(self):
        """Whether the next call is to be refused; see note_refused()."""
        return self.open >= self.limit

    @property
    def is_busy(self):
        """Whether so much is open that who calls is asked for credentials first, and his message is taken then."""
        return self.busy()

    def enter(self):
        """A call is open."""
        self.come()

    def leave(self):
        """It is not any more."""
        self.go()

    def take(self, bytes request not None):
        """Count a request's bytes; whether that is within the limit, or there are no others. If not, they are not
        counted."""
        return self.take_bytes(PyBytes_GET_SIZE(request))

    cdef bint take_bytes(self, int64_t size_bytes) noexcept:
        if self.limit_bytes and self.used_bytes and self.used_bytes + size_bytes > self.limit_bytes:
            self.refused_bytes += 1
            return False
        self.used_bytes += size_bytes
        return True

    def give_back(self, bytes request not None):
        """It is answered."""
        self.used_bytes -= PyBytes_GET_SIZE(request)

    def note_refused(self):
        """A call was refused for it."""
        self.refused += 1
