"""What becomes of what was appended in a tick, told to all who wait for it without a future each.

A future is one waiter's, who may cancel it, and tells him in a turn of the loop to come. An outcome is shared, who has
enough of it leaves it to the others, and it tells at once: as whoever asked in the same tick gets the same answer, a
tick of ten thousand appends needs one.
"""

cimport cython


cdef class Waiter:
    """Somebody who is told."""

    cdef void settled(self, Outcome outcome) noexcept:
        """The outcome is there. Called from within a tick's end, a sync's, a closing: must not append."""


@cython.final
cdef class Outcome:
    """Stands where a future of the log does: done() and set_result()."""

    def __cinit__(self):
        self._waiters = []

    cdef int add(self, Waiter waiter) except -1:
        """Tell this one, too. It is not done."""
        waiter.number = len(self._waiters)
        self._waiters.append(waiter)
        return 0

    cdef int forget(self, Waiter waiter) except -1:
        """Do not tell this one, who was last added to this outcome. It may be done."""
        cdef list waiters = self._waiters
        cdef Waiter last
        if waiter.number < len(waiters) and waiters[waiter.number] is waiter:
            last = waiters.pop()
            if last is not waiter:
                waiters[waiter.number] = last
                last.number = waiter.number
        return 0

    def done(self):
        """Whether it is known."""
        return self.is_done

    def set_result(self, object failure):
        """It is known: None, or (reason, message)."""
        waiters, self._waiters = self._waiters, []
        self.failure = failure
        self.is_done = True
        for waiter in waiters:
            (<Waiter>waiter).settled(self)
