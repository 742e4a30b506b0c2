"""What may be on its way to readers: one budget for all consumer streams.

A response that was handed to the transport may stay in the broker's memory until its reader takes it, and the response
before it as well: the transport says that it took a message, not that the client has it. So a stream answers for its
last two responses, and while one is under way for what the transport keeps besides.

As the budget is used up, responses shrink, so that hundreds of readers that have stopped leave room for those that have
not; and the last quarter is for small responses alone. When there is no room all the same (a record goes out whole,
however large), streams wait in the order of asking, and smaller ones that fit pass. While somebody waits, readers that
have taken nothing for slow_reader_ms are cut off, the slowest first; and when no response is under way at all, one stream
that has had one goes on beyond the bound: either its reader takes it, or it is found out as one that takes nothing.
"""

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import Callable

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

    __slots__ = ("cut", "writing_since_s", "writing_bytes", "written_bytes")

    def __init__(self, cut: Callable[[], None]):
        self.cut = cut
        # Since when the transport has not taken the response it was handed; None: none is under way.
        self.writing_since_s: float | None = None
        self.writing_bytes = 0
        self.written_bytes = 0


class ReaderBudget:
    """limit_bytes for all streams together; slow_reader_ms: how long a reader may take nothing while others wait."""

    def __init__(self, limit_bytes: int, slow_reader_ms: int):
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        # Of these: for responses under way, or about to be.
        self._writing_bytes = 0
        self._slow_reader_s = slow_reader_ms / 1000
        self._leases: set[Lease] = set()
        self._waiting: deque[tuple[int, Lease, Future[None]]] = deque()
        self._check: asyncio.TimerHandle | None = None

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
        return min(wanted_bytes, max(int(self.limit_bytes / _LARGEST_SHARE * free**3), SMALLEST_RESPONSE_BYTES))

    async def reserve(self, lease: Lease, size_bytes: int) -> None:
        """Return when a response of that size may be read and written; until then, and after, it is counted."""
        self.give_back(lease)
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append((size_bytes, lease, turn))
        self._serve()
        if not turn.done() and self._check is None:
            self._check = loop.call_later(_CHECK_S, self._cut_slow_readers)
        await turn

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
        """Let those go on, in their order, for whom there is room; one in any case."""
        waiting: deque[tuple[int, Lease, Future[None]]] = deque()
        for entry in self._waiting:
            size_bytes, lease, turn = entry
            if turn.done():
                continue
            if self._fits(size_bytes, 0):
                self._count(lease, _while_writing(size_bytes))
                turn.set_result(None)
            else:
                waiting.append(entry)
        self._waiting = waiting
        if waiting and self._writing_bytes == 0:
            # Those that have had a response hold it, until the next one tells what became of it.
            entry = next((entry for entry in waiting if entry[1].written_bytes), waiting[0])
            waiting.remove(entry)
            size_bytes, lease, turn = entry
            self._count(lease, _while_writing(size_bytes))
            turn.set_result(None)

    def _cut_slow_readers(self) -> None:
        """Cut off readers that take nothing, the slowest first, until what they hold is enough for who waits first."""
        self._check = None
        self._serve()
        if not self._waiting:
            return
        loop = asyncio.get_running_loop()
        self._check = loop.call_later(_CHECK_S, self._cut_slow_readers)
        since_s = loop.time() - self._slow_reader_s
        stalled = [lease for lease in self._leases if (lease.writing_since_s or since_s) < since_s]
        needed_bytes = _while_writing(self._waiting[0][0])
        for lease in sorted(stalled, key=lambda lease: lease.writing_since_s or 0.0):
            if needed_bytes <= 0:
                break
            needed_bytes -= lease.writing_bytes + lease.written_bytes
            # Its write fails now, and its stream closes the lease.
            lease.cut()
