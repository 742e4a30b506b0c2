"""What may be on its way to readers: one budget for all consumer streams.

A response that was handed to the transport may stay in the broker's memory until its reader takes it, and the response
before it as well: the transport says that it took a message, not that the client has it. So a stream answers for its
last two responses. As the budget is used up, responses shrink; when it is used up, streams wait their turn, and if one
of them waits while another's reader has taken nothing for too long, that reader loses its stream.
"""

import asyncio
from asyncio import Future
from collections import deque

# The smallest response that is tried; a record that is larger goes out whole all the same, when there is room for it.
SMALLEST_RESPONSE_BYTES = 16 * 1024
# What one stream may take of what is free, at most.
_SHARE = 8
_CHECK_S = 0.25


class Lease:
    """One stream's part of the budget."""

    __slots__ = ("task", "evicted", "writing_since_s", "writing_bytes", "written_bytes")

    def __init__(self, task: "asyncio.Task[object] | None"):
        self.task = task
        self.evicted = False
        self.writing_since_s: float | None = None
        self.writing_bytes = 0
        self.written_bytes = 0


class ReaderBudget:
    """limit_bytes for all streams together; slow_reader_ms: how long a reader may take nothing while others wait."""

    def __init__(self, limit_bytes: int, slow_reader_ms: int):
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._slow_reader_s = slow_reader_ms / 1000
        self._leases: set[Lease] = set()
        self._waiting: deque[tuple[int, Future[None]]] = deque()
        self._check: asyncio.TimerHandle | None = None

    def open(self) -> Lease:
        """A lease for the stream that the current task serves."""
        lease = Lease(asyncio.current_task())
        self._leases.add(lease)
        return lease

    def close(self, lease: Lease) -> None:
        """The stream has ended."""
        self._leases.discard(lease)
        self._give_back(lease.writing_bytes + lease.written_bytes)

    def allowance(self, wanted_bytes: int) -> int:
        """How large a response may be now."""
        free = self.limit_bytes - self.used_bytes
        return min(wanted_bytes, max(free // _SHARE, SMALLEST_RESPONSE_BYTES))

    def fits(self, size_bytes: int) -> bool:
        """Whether a response of that size may go out now. One that is larger than the budget may when it is alone."""
        return self.used_bytes + size_bytes <= self.limit_bytes or self.used_bytes == 0

    async def wait_for(self, size_bytes: int) -> None:
        """Return when that much fits, in the order of asking."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append((size_bytes, turn))
        if self._check is None:
            self._check = loop.call_later(_CHECK_S, self._evict)
        try:
            self._serve()
            await turn
        finally:
            if not turn.done() or turn.cancelled():
                self._waiting = deque(entry for entry in self._waiting if entry[1] is not turn)

    def begin_write(self, lease: Lease, size_bytes: int) -> None:
        """A response is handed to the transport."""
        lease.writing_bytes = size_bytes
        lease.writing_since_s = asyncio.get_running_loop().time()
        self.used_bytes += size_bytes

    def end_write(self, lease: Lease) -> None:
        """The transport took it: the one before it is with the client."""
        taken_bytes = lease.written_bytes
        lease.written_bytes = lease.writing_bytes
        lease.writing_bytes = 0
        lease.writing_since_s = None
        self._give_back(taken_bytes)

    def _give_back(self, size_bytes: int) -> None:
        self.used_bytes -= size_bytes
        if self._waiting:
            self._serve()

    def _serve(self) -> None:
        """Whose turn it is may go on when there is room; who goes on takes it at once, with begin_write."""
        expected_bytes = 0
        while self._waiting:
            size_bytes, turn = self._waiting[0]
            if turn.done():
                self._waiting.popleft()
                continue
            if not self.fits(expected_bytes + size_bytes):
                return
            self._waiting.popleft()
            expected_bytes += size_bytes
            turn.set_result(None)

    def _evict(self) -> None:
        """End the stream of the reader that has taken nothing for longest, if that is too long and somebody waits."""
        self._check = None
        if not any(not turn.done() for _, turn in self._waiting):
            return
        loop = asyncio.get_running_loop()
        self._check = loop.call_later(_CHECK_S, self._evict)
        stalled = [lease for lease in self._leases if lease.writing_since_s is not None and not lease.evicted]
        if not stalled:
            return
        slowest = min(stalled, key=lambda lease: lease.writing_since_s or 0.0)
        if loop.time() - (slowest.writing_since_s or 0.0) >= self._slow_reader_s and slowest.task is not None:
            slowest.evicted = True
            slowest.task.cancel()
