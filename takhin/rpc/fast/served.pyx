"""The methods of a table, as the fast front serves them."""

cimport cython

from takhin.outcome cimport Waiter

from takhin.rpc.call import Kind


@cython.final
cdef class Served:
    """A method, as this front serves it."""

    def __init__(self, method, run, refuse_full, open_sink):
        self.method = method
        self.path = method.path.encode()
        self.handler = method.handler
        self.counters = method.counters
        self.gate = method.gate
        self.kind = UNARY if method.kind is Kind.UNARY else BIDI if method.kind is Kind.BIDI else SERVER_STREAM
        self.appending = method.appending
        self.topics = method.topics
        self.holding = method.holding
        self.slow = method.slow
        self.run, self.refuse_full, self.open_sink = run, refuse_full, open_sink


cdef class Sink(Waiter):
    """Takes the requests of a stream without a coroutine."""

    cdef bint has_enough(self) noexcept:
        """Whether requests are to wait."""
        return True

    cdef int take(self, const uint8_t* request, size_t size) except -1:
        """Another one has come, and none waits."""
        raise NotImplementedError

    cdef int end_of_requests(self) except -1:
        """That was the last."""
        raise NotImplementedError

    cdef int room(self) except -1:
        """The client has taken answers: others may follow."""
        raise NotImplementedError

    cdef int close(self) except -1:
        """The call is over."""
        raise NotImplementedError
