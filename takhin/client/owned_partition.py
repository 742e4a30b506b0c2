"""One partition that a consumer has: what came and was not handed out yet, and where it stands."""

from collections import deque
from collections.abc import Iterator

from takhin.client.errors import ClientError
from takhin.client.messages import Message, Records
from takhin.client.types import TopicPartition


class Arrived:
    """Records that came in one response. credit_bytes: what is to be given back for them; left_bytes: of that,
    still."""

    __slots__ = ("count", "credit_bytes", "handed", "left_bytes", "messages")

    def __init__(self, records: Records, credit_bytes: int) -> None:
        self.messages: Iterator[Message] = iter(records)
        self.count = len(records)
        self.handed = 0
        self.credit_bytes = credit_bytes
        self.left_bytes = credit_bytes

    def take_credit(self, is_done: bool) -> int:
        """What may be given back by now: all of it, or the share of what was handed out."""
        if is_done:
            owed_bytes = self.left_bytes
        else:
            owed_bytes = min(
                self.credit_bytes * self.handed // self.count - (self.credit_bytes - self.left_bytes),
                self.left_bytes - 1)
        self.left_bytes -= max(owed_bytes, 0)
        return max(owed_bytes, 0)


class OwnedPartition:
    """position: the next offset to hand out. received: the next one to come. processed: as far as the program is done,
    as it asked for more. committed: as far as this consumer committed (is_stored), or where it was given the partition.
    """

    __slots__ = (
        "arrived", "committed", "epoch", "is_moving", "is_paused", "is_revoked", "is_stored", "is_stuck", "place",
        "position", "problem", "processed", "received", "wants_start",
    )

    def __init__(self, place: TopicPartition, offset: int) -> None:
        self.place = place
        self.arrived: deque[Arrived] = deque()
        self.position = self.received = self.processed = self.committed = offset
        self.is_stored = False
        # Of the last record handed out; -1: not known.
        self.epoch = -1
        self.is_paused = False
        self.is_revoked = False
        # What comes is from before a seek.
        self.is_moving = False
        # It is yet to be found out where it begins.
        self.wants_start = False
        # It could not be read on: whoever resumes it tries again.
        self.is_stuck = False
        # To be raised when all before it is handed out.
        self.problem: ClientError | None = None

    def owes_commit(self, offset: int) -> bool:
        """Whether a commit of this offset would tell the broker anything new."""
        return offset > self.committed or (offset == self.committed and not self.is_stored)

    def go_to(self, offset: int) -> None:
        """From here on, as if nothing had been handed out."""
        self.position = self.received = self.processed = offset
        self.epoch = -1

    @property
    def is_ready(self) -> bool:
        """Whether there is something to hand out, or to raise."""
        return not (self.is_paused or self.is_revoked or self.is_moving) and (
            bool(self.arrived) or self.problem is not None)

    def drop(self) -> int:
        """What came is not handed out; gives the credit for it."""
        credit_bytes = sum(each.left_bytes for each in self.arrived)
        self.arrived.clear()
        self.received = self.position
        self.problem = None
        return credit_bytes
