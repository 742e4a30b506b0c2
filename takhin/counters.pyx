"""Counters of hot paths, in C: adding to one takes nanoseconds, and whoever wants to see them reads them when he does.

Plain integers, added to under the interpreter's lock.
"""

cimport cython

from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

# As go-grpc-prometheus has them, from a quarter of a millisecond on: dashboards for its histograms fit.
CALL_BOUNDS_S = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


cdef int64_t _now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


@cython.final
cdef class Histogram:
    """Durations, counted by upper bounds. bounds_s: ascending, 24 at most; raises ValueError otherwise."""

    def __init__(self, bounds_s):
        cdef int i
        bounds = list(bounds_s)
        if len(bounds) > MAX_BOUNDS or bounds != sorted(set(bounds)):
            raise ValueError(f"bounds ascend, and are {MAX_BOUNDS} at most: not {bounds}")
        self.num_bounds = <int>len(bounds)
        for i in range(self.num_bounds):
            self.bounds_ns[i] = round(bounds[i] * 1e9)

    cdef void add(self, int64_t duration_ns) noexcept:
        cdef int i = 0
        while i < self.num_bounds and duration_ns > self.bounds_ns[i]:
            i += 1
        self.counts[i] += 1
        self.total_ns += duration_ns

    def observe(self, int64_t duration_ns):
        """Count one."""
        self.add(duration_ns)

    def read(self):
        """([(upper bound in s, how many are not above it), …, (inf, how many there are)], their sum in s)."""
        cdef int i
        cdef int64_t count = 0
        rows = []
        for i in range(self.num_bounds + 1):
            count += self.counts[i]
            rows.append((self.bounds_ns[i] / 1e9 if i < self.num_bounds else float("inf"), count))
        return rows, self.total_ns / 1e9


@cython.final
cdef class CallCounters:
    """Of one method: calls begun, calls ended by status code, their durations, messages each way."""

    def __init__(self):
        self.durations = Histogram(CALL_BOUNDS_S)

    def begin(self):
        """A call has come; gives what end() wants."""
        self.started += 1
        return _now_ns()

    def end(self, int code, int64_t begun_ns):
        """It has ended, with that code of google.rpc.Code (what is none counts as UNKNOWN)."""
        self.handled[code if 0 <= code < NUM_CODES else 2] += 1
        self.durations.add(_now_ns() - begun_ns)

    def note_received(self):
        """A message of the client's."""
        self.received += 1

    def note_sent(self):
        """A message to the client."""
        self.sent += 1

    def handled_by_code(self):
        """How many calls have ended, for each code that any has ended with."""
        cdef int code
        return {code: self.handled[code] for code in range(NUM_CODES) if self.handled[code]}


@cython.final
cdef class SlowCalls:
    """Whom to tell of calls of a method that take longer than limit_ns, which may be changed.

    tell(call, took_ns, code) does it.
    """

    def __init__(self, int64_t limit_ns, tell):
        self.limit_ns = limit_ns
        self.tell = tell
