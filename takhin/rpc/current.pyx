"""The call that the code which runs now belongs to: how a line of the log finds its request id.

In C, because every call enters and leaves.
"""

cimport cython

from cpython.contextvars cimport PyContextVar_Reset, PyContextVar_Set
from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from collections import namedtuple
from contextvars import ContextVar

Ids = namedtuple("Ids", ("request_id", "trace_id"))
NO_IDS = Ids("", "")

current = ContextVar("takhin.current_call", default=None)


cdef int64_t _now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


@cython.final
@cython.freelist(64)
cdef class Scope:
    """A call, from here on until leave(). What outlives it, a task that it started say, keeps the scope alone.

    trace_id: of the span that the call is traced by, in hexadecimal; "" without one. To be left in the context that it
    was made in.
    """

    def __init__(self, call, str trace_id=""):
        self.call = call
        self.trace_id = trace_id
        self.token = PyContextVar_Set(current, self)
        self.begun_ns = _now_ns()

    def leave(self):
        """The call is over; gives how long it took, in ns. Raises ValueError in another context, or when repeated."""
        token, self.token, self.call = self.token, None, None
        if token is None:
            raise ValueError("the scope was left before")
        PyContextVar_Reset(current, token)
        return _now_ns() - self.begun_ns


def current_ids():
    """Of the call under way here; NO_IDS outside of any."""
    cdef Scope scope = current.get()
    if scope is None or scope.call is None:
        return NO_IDS
    return Ids(scope.call.request_id, scope.trace_id)
