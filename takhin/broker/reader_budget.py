"""What may be on its way to readers: one budget for all consumer streams.

A response that was handed to the transport may stay in the broker's memory until its reader takes it, and the response
before it as well: the transport says that it took a message, not that the client has it. So a stream answers for its
last two responses, and while one is under way for what the transport keeps besides.

As the budget is used up, responses shrink, so that hundreds of readers that have stopped leave room for those that have
not. When it is used up all the same (a record goes out whole, however large), streams wait in the order of asking, and
one at a time goes on beyond the budget: readers that read pass through that place at once, one that does not keeps it
for slow_reader_ms and is then on its own. At twice the budget streams are refused.
"""

import asyncio
from asyncio import Future
from collections import deque

from takhin.errors import Reason, TakhinError, error

# The smallest response that is tried; a record that is larger goes out whole all the same.
SMALLEST_RESPONSE_BYTES = 4 * 1024
# What gRPC's HTTP/2 transport buffers of a stream beside whole messages (grpc.http2.write_buffer_size).
TRANSPORT_BUFFER_BYTES = 64 * 1024
# The part of the budget that one response may take while all of it is free.
_LARGEST_SHARE = 16


def _while_writing(size_bytes: int) -> int:
    """What a response costs until the transport has taken it: our bytes, the transport's copy of them, its buffer."""
    return 2 * size_bytes + TRANSPORT_BUFFER_BYTES


class Lease:
    """One stream's part of the budget."""

    __slots__ = ("written_bytes", "writing_bytes")

    def __init__(self) -> None:
        self.writing_bytes = 0
        self.written_bytes = 0


class ReaderBudget:
    """limit_bytes for all streams together; slow_reader_ms: how long a reader may hold up those that wait."""

    def __init__(self, limit_bytes: int, slow_reader_ms: int):
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._slow_reader_s = slow_reader_ms / 1000
        self._waiting: deque[tuple[int, Lease, Future[None]]] = deque()
        # Who goes on beyond the budget, and the timer that ends its time.
        self._beyond: Lease | None = None
        self._beyond_timer: asyncio.TimerHandle | None = None

    def open(self) -> Lease:
        """A lease for a stream that begins."""
        return Lease()

    def close(self, lease: Lease) -> None:
        """The stream has ended."""
        held_bytes = lease.written_bytes + lease.writing_bytes
        lease.written_bytes = lease.writing_bytes = 0
        self._release(lease, held_bytes)

    def allowance(self, wanted_bytes: int) -> int:
        """How large a response may be now: what is wanted, or less the less is free, by the cube.

        So half a budget free means responses an eighth as large; by then few readers are stopped, or many are.
        """
        free = max(self.limit_bytes - self.used_bytes, 0) / self.limit_bytes
        return min(wanted_bytes, max(int(self.limit_bytes / _LARGEST_SHARE * free**3), SMALLEST_RESPONSE_BYTES))

    async def reserve(self, lease: Lease, size_bytes: int) -> None:
        """Return when a response of that size may be read and written; until then, and after, it is counted.

        Raises SLOW_READER at twice the budget.
        """
        self.give_back(lease)
        if not self._waiting and self._fits(size_bytes):
            self._take(lease, size_bytes)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size_bytes, lease, turn))
        self._serve()
        await turn

    def grow(self, lease: Lease, size_bytes: int) -> bool:
        """Count that much instead of what was reserved, when there is room for it now."""
        more_bytes = _while_writing(size_bytes) - lease.writing_bytes
        if more_bytes > 0 and (self._waiting or self.used_bytes + more_bytes > self.limit_bytes):
            return False
        lease.writing_bytes += more_bytes
        self.used_bytes += more_bytes
        return True

    def give_back(self, lease: Lease) -> None:
        """What was reserved is not needed."""
        held_bytes, lease.writing_bytes = lease.writing_bytes, 0
        self._release(lease, held_bytes)

    def end_write(self, lease: Lease) -> None:
        """The transport took what was reserved: the response before it is with the client."""
        held_bytes = lease.written_bytes + lease.writing_bytes
        lease.written_bytes = (lease.writing_bytes - TRANSPORT_BUFFER_BYTES) // 2
        lease.writing_bytes = 0
        self._release(lease, held_bytes - lease.written_bytes)

    def _fits(self, size_bytes: int) -> bool:
        return self.used_bytes + _while_writing(size_bytes) <= self.limit_bytes

    def _take(self, lease: Lease, size_bytes: int) -> None:
        lease.writing_bytes = _while_writing(size_bytes)
        self.used_bytes += lease.writing_bytes

    def _release(self, lease: Lease, size_bytes: int) -> None:
        self.used_bytes -= size_bytes
        if lease is self._beyond:
            self._end_beyond()
        if self._waiting:
            self._serve()

    def _serve(self) -> None:
        """Let those go on, in their order, who may."""
        while self._waiting:
            size_bytes, lease, turn = self._waiting[0]
            if not turn.done():
                if not self._fits(size_bytes):
                    if self.used_bytes >= 2 * self.limit_bytes:
                        turn.set_exception(self._refusal())
                        self._waiting.popleft()
                        continue
                    if self._beyond is not None:
                        return
                    self._beyond = lease
                    loop = asyncio.get_running_loop()
                    self._beyond_timer = loop.call_later(self._slow_reader_s, self._give_up_on_beyond)
                self._take(lease, size_bytes)
                turn.set_result(None)
            self._waiting.popleft()

    def _refusal(self) -> TakhinError:
        return error(
            Reason.SLOW_READER,
            f"readers that take nothing hold {self.used_bytes} bytes of the broker's memory, twice what is meant for "
            "them (limits.reader_bytes): go on at the next offset later",
        )

    def _end_beyond(self) -> None:
        self._beyond = None
        if self._beyond_timer is not None:
            self._beyond_timer.cancel()
            self._beyond_timer = None

    def _give_up_on_beyond(self) -> None:
        """Its reader takes nothing: what it holds stays counted, the place is for the next."""
        self._end_beyond()
        self._serve()
