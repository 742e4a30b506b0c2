"""What may be on its way to readers: one budget for all consumer streams.

A response that was handed to the transport may stay in the broker's memory until its reader takes it, and the response
before it as well: the transport says that it took a message, not that the client has it. So a stream answers for its
last two responses, and while one is under way for what the transport keeps besides.

As the budget is used up, responses shrink, so that hundreds of readers that have stopped leave room for those that have
not; and the last quarter is for small responses alone. When there is no room all the same (a record goes out whole,
however large), streams wait in the order of asking, smaller ones that fit pass for a while, and when no response is
under way at all one goes on beyond the bound: so readers that read never wait for each other for ever. And while
somebody waits, after slow_reader_ms:
- a reader that has not taken the response under way is cut off, the slowest first;
- a stream that has had nothing to send since its last response no longer answers for that. Were its reader one that has
  stopped, that response would still be held, uncounted, until the connection ends: whether it is, nobody can tell.
"""

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

# The smallest response that is tried; a record that is larger goes out whole all the same.
SMALLEST_RESPONSE_BYTES = 4 * 1024
# Responses up to this size may use all of the budget, larger ones three quarters.
SMALL_RESPONSE_BYTES = 64 * 1024
# What gRPC's HTTP/2 transport buffers of a stream beside whole messages (grpc.http2.write_buffer_size).
TRANSPORT_BUFFER_BYTES = 64 * 1024
# The part of the budget that one response may take while all of it is free.
_LARGEST_SHARE = 16
# How often, while somebody waits, it is seen to who holds it up.
_CHECK_S = 0.1


def _while_writing(size_bytes: int) -> int:
    """What a response costs until the transport has taken it: our bytes, the transport's copy of them, its buffer."""
    return 2 * size_bytes + TRANSPORT_BUFFER_BYTES


class Lease:
    """One stream's part of the budget. cut: ends the stream, whatever its reader does."""

    __slots__ = ("cut", "cut_since_s", "waits", "writing_since_s", "writing_bytes", "written_since_s", "written_bytes")

    def __init__(self, cut: Callable[[], None]):
        self.cut = cut
        # Since when its stream is on its way to an end; None: it was not cut off.
        self.cut_since_s: float | None = None
        # Since when the transport has not taken the response it was handed; None: none is under way.
        self.writing_since_s: float | None = None
        self.writing_bytes = 0
        self.written_since_s = 0.0
        self.written_bytes = 0
        # Whether the stream waits for room.
        self.waits = False


@dataclass(slots=True)
class _Waiting:
    lease: Lease
    size_bytes: int
    since_s: float
    turn: "Future[None]"


class ReaderBudget:
    """limit_bytes for all streams together; slow_reader_ms: how long a reader may take nothing while others wait."""

    def __init__(self, limit_bytes: int, slow_reader_ms: int):
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        # Of these: for responses under way, or about to be.
        self._writing_bytes = 0
        self._slow_reader_s = slow_reader_ms / 1000
        self._leases: set[Lease] = set()
        self._waiting: deque[_Waiting] = deque()
        self._check: asyncio.TimerHandle | None = None

    def resize(self, limit_bytes: int, slow_reader_ms: int) -> None:
        """Other bounds from now on; what is out beyond a lower one comes back as its readers take it."""
        self.limit_bytes = limit_bytes
        self._slow_reader_s = slow_reader_ms / 1000
        if self._waiting:
            self._serve()

    def open(self, cut: Callable[[], None]) -> Lease:
        """A lease for a stream that begins."""
        lease = Lease(cut)
        self._leases.add(lease)
        return lease

    def close(self, lease: Lease) -> None:
        """The stream has ended."""
        self._leases.discard(lease)
        self.give_back(lease)
        held_bytes, lease.written_bytes = lease.written_bytes, 0
        self._release(held_bytes)

    def allowance(self, wanted_bytes: int) -> int:
        """How large a response may be now: what is wanted, or less the less is free, by the cube.

        So half a budget free means responses an eighth as large; by then few readers are stopped, or many are.
        """
        free = max(self.limit_bytes - self.used_bytes, 0) / self.limit_bytes
        allowed_bytes = min(wanted_bytes, int(self.limit_bytes / _LARGEST_SHARE * free**3))
        if not self._fits(allowed_bytes, 0):
            allowed_bytes = min(allowed_bytes, SMALL_RESPONSE_BYTES)
        if not self._fits(allowed_bytes, 0):
            allowed_bytes = 0
        return max(allowed_bytes, min(wanted_bytes, SMALLEST_RESPONSE_BYTES))

    async def reserve(self, lease: Lease, size_bytes: int) -> None:
        """Return when a response of that size may be read and written; until then, and after, it is counted."""
        if self.try_reserve(lease, size_bytes):
            return
        loop = asyncio.get_running_loop()
        entry = _Waiting(lease, size_bytes, loop.time(), loop.create_future())
        self._waiting.append(entry)
        self._serve()
        if entry.turn.done():
            return
        lease.waits = True
        if self._check is None:
            self._check = loop.call_later(_CHECK_S, self._see_to_slow_readers)
        try:
            await entry.turn
        finally:
            lease.waits = False

    def try_reserve(self, lease: Lease, size_bytes: int) -> bool:
        """As reserve(), where nobody has to wait; else nothing is reserved."""
        self.give_back(lease)
        if self._waiting or not self._fits(size_bytes, 0):
            return False
        self._count(lease, _while_writing(size_bytes))
        return True

    def grow(self, lease: Lease, size_bytes: int) -> bool:
        """Count that much instead of what was reserved, when there is room for it now."""
        if not self._fits(size_bytes, lease.writing_bytes):
            return False
        self._count(lease, _while_writing(size_bytes))
        return True

    def give_back(self, lease: Lease) -> None:
        """What was reserved is not needed."""
        self._count(lease, 0)
        self._release(0)

    def begin_write(self, lease: Lease) -> None:
        """The response for which room was reserved is handed to the transport."""
        lease.writing_since_s = asyncio.get_running_loop().time()

    def end_write(self, lease: Lease) -> None:
        """The transport took it: the response before it is with the client."""
        taken_bytes = lease.written_bytes
        lease.written_bytes = (lease.writing_bytes - TRANSPORT_BUFFER_BYTES) // 2
        lease.writing_since_s = None
        lease.written_since_s = asyncio.get_running_loop().time()
        self._count(lease, 0)
        self._release(taken_bytes - lease.written_bytes)

    def _fits(self, size_bytes: int, held_bytes: int) -> bool:
        """Whether there is room for a response, instead of what its stream holds for it already."""
        bound = self.limit_bytes if size_bytes <= SMALL_RESPONSE_BYTES else self.limit_bytes * 3 // 4
        more_bytes = _while_writing(size_bytes) - held_bytes
        return more_bytes <= 0 or self.used_bytes + more_bytes <= bound

    def _count(self, lease: Lease, writing_bytes: int) -> None:
        more_bytes = writing_bytes - lease.writing_bytes
        lease.writing_bytes = writing_bytes
        self._writing_bytes += more_bytes
        self.used_bytes += more_bytes

    def _release(self, size_bytes: int) -> None:
        self.used_bytes -= size_bytes
        if self._waiting:
            self._serve()

    def _serve(self) -> None:
        """Let those go on, in their order, for whom there is room; one when nothing is under way."""
        waiting: deque[_Waiting] = deque()
        overdue_s = asyncio.get_running_loop().time() - self._slow_reader_s
        for entry in self._waiting:
            if entry.turn.done():
                continue
            # Who has waited too long is passed no more.
            if self._fits(entry.size_bytes, 0) and not (waiting and waiting[0].since_s < overdue_s):
                self._go_on(entry)
            else:
                waiting.append(entry)
        self._waiting = waiting
        if waiting and self._writing_bytes == 0:
            # Those that have had a response hold it, until the next one tells what became of it.
            first = waiting[0]
            if first.since_s >= overdue_s:
                first = next((entry for entry in waiting if entry.lease.written_bytes), first)
            if not first.lease.written_bytes and self.used_bytes >= 2 * self.limit_bytes:
                # It would only add to that; who has had a response gives that back with the next one.
                first = next((entry for entry in waiting if entry.lease.written_bytes), None)
            if first is not None:
                waiting.remove(first)
                self._go_on(first)

    def _go_on(self, entry: _Waiting) -> None:
        self._count(entry.lease, _while_writing(entry.size_bytes))
        entry.turn.set_result(None)

    def _see_to_slow_readers(self) -> None:
        """Make room for who waits first, as far as readers hold it that do not read, or need not answer for it."""
        self._check = None
        loop = asyncio.get_running_loop()
        since_s = loop.time() - self._slow_reader_s
        for lease in self._leases:
            idle = lease.writing_since_s is None and not lease.waits
            if idle and lease.written_bytes and lease.written_since_s < since_s:
                self.used_bytes -= lease.written_bytes
                lease.written_bytes = 0
        self._serve()
        if not self._waiting:
            return
        self._check = loop.call_later(_CHECK_S, self._see_to_slow_readers)
        stalled = [lease for lease in self._leases if (lease.writing_since_s or since_s) < since_s]
        needed_bytes = _while_writing(self._waiting[0].size_bytes)
        for lease in sorted(stalled, key=lambda lease: lease.writing_since_s or 0.0):
            if needed_bytes <= 0:
                break
            needed_bytes -= lease.writing_bytes + lease.written_bytes
            if (lease.cut_since_s or since_s) <= since_s:
                # Its write fails now, and its stream closes the lease: in a moment, which may be longer than a check.
                lease.cut()
                lease.cut_since_s = loop.time()
