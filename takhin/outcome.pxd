"""What becomes of what was appended in a tick, told to all who wait for it without a future each."""


cdef class Waiter:
    # Among those of the outcome that it was last added to.
    cdef Py_ssize_t number
    cdef void settled(self, Outcome outcome) noexcept


cdef class Outcome:
    cdef readonly bint is_done
    # Of what is done: None, or (reason, message): why not.
    cdef readonly object failure
    cdef list _waiters

    cdef int add(self, Waiter waiter) except -1
    cdef int forget(self, Waiter waiter) except -1
