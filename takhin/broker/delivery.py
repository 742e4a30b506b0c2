"""What a member is delivered: each of its partitions with where it stands, in turn, within the credit it gave."""

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import Callable

from takhin.broker.assignors import GroupPartition
from takhin.log.partition import Partition
from takhin.log.reader import Reader

# Responses of which it is kept what they held, until credit for them comes back.
MAX_RESPONSES_OUT = 100_000
# While a response is under way the broker holds two copies of it, ours and the transport's, and perhaps the one before
# it: with so many to a window, all of that is less than the window.
RESPONSES_IN_WINDOW = 4
# Less than this part of the window, where there is more to send, waits for more credit: what goes out in crumbs comes
# back in crumbs, and is sent in smaller ones again (the silly window of RFC 1122, 4.2.3.4).
_CRUMBS_IN_WINDOW = 16


class Delivery:
    """One partition of a member. reader: None until it is known where to begin, and when it can't be read further."""

    __slots__ = (
        "_waits_for", "_wake", "caught_up", "closed", "failed_offset", "key", "needed_bytes", "partition", "paused",
        "queued", "reader",
    )

    def __init__(self, key: GroupPartition, partition: Partition, wake: Callable[["Delivery"], None]):
        self.key = key
        self.partition = partition
        self.reader: Reader | None = None
        self.paused = False
        # No more records: it is being revoked, or is no longer the member's.
        self.closed = False
        # Whether the member was told so and has not fallen behind since.
        self.caught_up = False
        # Where it could not be read on.
        self.failed_offset = -1
        # How much credit its next record takes, when more than there was.
        self.needed_bytes = 0
        # Whether it stands in the queue of those that may have data.
        self.queued = False
        self._wake = wake
        self._waits_for: Future[None] | None = None

    @property
    def is_live(self) -> bool:
        return self.reader is not None and not self.paused and not self.closed

    def read_from(self, offset: int) -> None:
        """Go on at offset, with a reader of its own: the one before may be under way in a thread."""
        self.reader = Reader(self.partition, offset)
        self.needed_bytes = 0
        self.caught_up = False
        self._wake(self)

    def wait_for_data(self) -> None:
        """Have it queued again when there is something to read."""
        assert self.reader is not None
        pending = self.partition.data_after(self.reader.next_offset)
        if pending is None:
            self._wake(self)
        elif pending is not self._waits_for:
            # One callback for each partition that waits, however many there are: nobody looks through all of them.
            self.stop_waiting()
            self._waits_for = pending
            pending.add_done_callback(self._has_data)

    def _has_data(self, pending: "Future[None]") -> None:
        self._waits_for = None
        self._wake(self)

    def stop_waiting(self) -> None:
        if self._waits_for is not None:
            self._waits_for.remove_done_callback(self._has_data)
            self._waits_for = None

    def close(self) -> None:
        self.closed = True
        self.stop_waiting()


class Turns:
    """Partitions that may have data, each in its turn."""

    def __init__(self, changed: Callable[[], None]):
        self._queue: deque[Delivery] = deque()
        self._changed = changed

    def add(self, delivery: Delivery) -> None:
        if delivery.is_live and not delivery.queued:
            delivery.queued = True
            self._queue.append(delivery)
            self._changed()

    def first(self) -> Delivery | None:
        """Whose turn it is; it stays in its place."""
        while self._queue and not self._queue[0].is_live:
            self._queue.popleft().queued = False
        return self._queue[0] if self._queue else None

    def done(self, delivery: Delivery) -> None:
        """It had its turn."""
        if self._queue and self._queue[0] is delivery:
            self._queue.popleft()
            delivery.queued = False


class Flow:
    """Credit: what may be on its way to the member or with it, in bytes of records responses.

    Records are taken for processed in the order in which they were sent, as credit comes back. is_followed: whether
    anybody wants to know.
    """

    def __init__(self, window_bytes: int, is_followed: bool):
        self.is_counted = window_bytes > 0
        self.left_bytes = window_bytes
        self.sent_bytes = 0
        self._share_bytes = max(window_bytes // RESPONSES_IN_WINDOW, 1)
        self._crumb_bytes = window_bytes // _CRUMBS_IN_WINDOW
        self._is_followed = is_followed
        # What was sent and not given back: up to which offset, and how large it was.
        self._sent: deque[tuple[Delivery, int, int]] = deque()
        self._returned_bytes = 0

    def room_for(self, needed_bytes: int) -> bool:
        """Whether a response may go out that needs so much. With nothing out, one may, whatever it needs."""
        if not self.is_counted:
            return True
        if len(self._sent) >= MAX_RESPONSES_OUT:
            return False
        return self.left_bytes >= max(needed_bytes, 1) or (not self.sent_bytes and self.left_bytes > 0)

    @property
    def has_crumbs(self) -> bool:
        """Whether what is left is so little that more is worth waiting for; as something is out, it will come."""
        return self.is_counted and 0 < self.sent_bytes and self.left_bytes < self._crumb_bytes

    def bound(self, max_bytes: int) -> int:
        """How large the next response should be at most."""
        return min(max_bytes, self.left_bytes, self._share_bytes) if self.is_counted else max_bytes

    def send(self, delivery: Delivery, next_offset: int, size_bytes: int) -> None:
        if self.is_counted:
            self.left_bytes -= size_bytes
            self.sent_bytes += size_bytes
            if self._is_followed:
                self._sent.append((delivery, next_offset, size_bytes))

    def give_back(self, size_bytes: int) -> list[tuple[Delivery, int]]:
        """More credit. Gives what is processed with it: partitions, with the next offset of each."""
        processed = []
        self.left_bytes += size_bytes
        self.sent_bytes = max(self.sent_bytes - size_bytes, 0)
        self._returned_bytes += size_bytes
        while self._sent and self._sent[0][2] <= self._returned_bytes:
            delivery, next_offset, sent_bytes = self._sent.popleft()
            self._returned_bytes -= sent_bytes
            processed.append((delivery, next_offset))
        if not self._sent:
            # More than was sent: a larger window from now on.
            self._returned_bytes = 0
        return processed


class Signal:
    """Wakes the one task that waits. Set again and again, it wakes once."""

    def __init__(self) -> None:
        self._future: Future[None] | None = None
        self._is_set = False

    def set(self) -> None:
        self._is_set = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self) -> None:
        if not self._is_set:
            self._future = asyncio.get_running_loop().create_future()
            try:
                await self._future
            finally:
                self._future = None
        self._is_set = False
