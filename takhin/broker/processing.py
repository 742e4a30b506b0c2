"""What a member has been sent and has not settled, and since when it has said nothing about it."""

from collections.abc import Callable, Iterable

from takhin.broker.assignors import GroupPartition


class Processing:
    """Partitions with records that a member has. clock_s: the event loop's.

    since_s: since when it has some and has not told of any; None: it has none. Records are settled when they are
    committed, by whatever way, when the credit for them is back, or when their partition is the member's no longer.
    """

    __slots__ = ("_clock_s", "_unsettled", "since_s")

    def __init__(self, clock_s: Callable[[], float]):
        self._clock_s = clock_s
        # By partition: the offset behind the last record sent.
        self._unsettled: dict[GroupPartition, int] = {}
        self.since_s: float | None = None

    def sent(self, partition: GroupPartition, next_offset: int) -> None:
        """Records are on their way."""
        self._unsettled[partition] = next_offset
        if self.since_s is None:
            self.since_s = self._clock_s()

    def settled(self, offsets: Iterable[tuple[GroupPartition, int]]) -> None:
        """The member has told of records, those before each partition's offset among them."""
        for partition, next_offset in offsets:
            if self._unsettled.get(partition, next_offset + 1) <= next_offset:
                del self._unsettled[partition]
        self.since_s = self._clock_s() if self._unsettled else None

    def settled_all(self) -> None:
        """The member has told of all that it has."""
        self._unsettled.clear()
        self.since_s = None

    def drop(self, partitions: Iterable[GroupPartition]) -> None:
        """They are the member's no longer."""
        for each in partitions:
            self._unsettled.pop(each, None)
        if not self._unsettled:
            self.since_s = None
