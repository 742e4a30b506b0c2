"""Resets: a group without members is set to other offsets, the only way in which its commits go back.

As with a commit, the log is made durable up to each new offset before that is stored.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from takhin.broker.consume import Consuming
from takhin.broker.group_offsets import Members, check_count, partitions_of
from takhin.broker.groups import check_group_id
from takhin.broker.metadata import MetadataStore, OffsetReset
from takhin.broker.topics import Topics
from takhin.config import Limits
from takhin.errors import Reason, error
from takhin.log.partition import Partition

# So many partitions are searched for a time at once.
_SEARCHES = 16


class Target(StrEnum):
    """Where to, by the names of ResetOffsetsRequest's fields."""

    EARLIEST = "earliest"
    LATEST = "latest"
    OFFSET = "offset"
    TIME = "time_ms"
    SHIFT = "shift_by"


@dataclass(frozen=True, slots=True)
class ResetTo:
    """value: of OFFSET, TIME (ms since the epoch) and SHIFT (records, negative: back)."""

    target: Target
    value: int = 0


@dataclass(frozen=True, slots=True)
class ResetDone:
    """old_offset None: nothing was committed."""

    topic: str
    partition: int
    old_offset: int | None
    new_offset: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """durable_to: the log has to be durable up to there before the reset is."""

    partition: Partition
    durable_to: int
    new_offset: Callable[[int | None], int]


class OffsetResets:
    """Serves ResetOffsets. clock_ms: milliseconds since the epoch."""

    def __init__(
        self,
        metadata: MetadataStore,
        topics: Topics,
        consuming: Consuming,
        members: Members,
        limits: Limits,
        clock_ms: Callable[[], int],
    ):
        self._metadata = metadata
        self._topics = topics
        self._consuming = consuming
        self._members = members
        self._limits = limits
        self._clock_ms = clock_ms

    async def reset(
        self, group_id: str, named: Sequence[tuple[str, int]], topics: Sequence[str], to: ResetTo, *, dry_run: bool
    ) -> list[ResetDone]:
        """Resets the named (topic, partition)s and all partitions of `topics`, or else all that the group committed.

        All or none; durable when it returns. dry_run: checks everything and changes nothing. Raises INVALID_GROUP_ID,
        GROUP_HAS_MEMBERS, GROUP_NOT_FOUND (only when nothing is named), GROUP_LIMIT, DUPLICATE_PARTITION,
        TOO_MANY_PARTITIONS, OFFSET_OUT_OF_RANGE, NO_COMMITTED_OFFSET, and what Topics.partition, Consuming.search_time
        and make_durable raise.
        """
        check_group_id(group_id)
        self._check_idle(group_id)
        if named or topics:
            partitions = self._named(named, topics)
        else:
            partitions = partitions_of(self._topics, await self._metadata.group_commits(group_id))
        check_count(len(partitions))
        searching = asyncio.Semaphore(_SEARCHES)
        plans = await _all(self._plan(group_id, partition, to, searching) for partition in partitions)
        if not dry_run:
            await _all(plan.partition.make_durable(plan.durable_to) for plan in plans)
        resets = [
            OffsetReset(plan.partition.topic_id, plan.partition.topic, plan.partition.partition, plan.new_offset)
            for plan in plans
        ]
        # Nothing comes between this look and the reset's place in the database's queue: a member that joins later
        # finds the new offsets there.
        self._check_idle(group_id)
        offsets = await self._metadata.reset_offsets(
            group_id, resets, self._clock_ms(), self._limits.groups, dry_run=dry_run
        )
        return [
            ResetDone(partition.topic, partition.partition, old, new)
            for partition, (old, new) in zip(partitions, offsets, strict=True)
        ]

    def _check_idle(self, group_id: str) -> None:
        if self._members.has_members(group_id):
            raise error(
                Reason.GROUP_HAS_MEMBERS,
                f"group {group_id!r} has members, which would go on where they are: end them, then reset",
                group_id=group_id,
            )

    def _named(self, named: Sequence[tuple[str, int]], topics: Sequence[str]) -> list[Partition]:
        partitions = [self._topics.partition(topic, number) for topic, number in named]
        for topic in topics:
            partitions += self._topics.get(topic).partitions
        seen: set[Partition] = set()
        for partition in partitions:
            if partition in seen:
                raise error(
                    Reason.DUPLICATE_PARTITION,
                    f"topic {partition.topic!r} partition {partition.partition} is named twice; once is allowed",
                    topic=partition.topic,
                    partition=partition.partition,
                )
            seen.add(partition)
        return partitions

    async def _plan(self, group_id: str, partition: Partition, to: ResetTo, searching: asyncio.Semaphore) -> _Plan:
        begin, end = partition.log_start_offset, partition.written_offset
        match to.target:
            case Target.EARLIEST:
                offset = begin
            case Target.LATEST:
                offset = end
            case Target.OFFSET:
                offset = to.value
                _check_offset(partition, offset)
            case Target.TIME:
                async with searching:
                    found, end = await self._consuming.search_time(partition, to.value)
                # Of the log that was searched: what came meanwhile may have such a record.
                offset = end if found is None else found
            case Target.SHIFT:
                # From the offset that is committed when this is stored. Back from there, all is durable already.
                durable_to = end if to.value > 0 else 0
                return _Plan(partition, durable_to, _shift(group_id, partition, to.value, begin, end))
        return _Plan(partition, offset, lambda _: offset)


def _shift(group_id: str, partition: Partition, by: int, begin: int, end: int) -> Callable[[int | None], int]:
    topic, number = partition.topic, partition.partition

    def shifted(committed: int | None) -> int:
        if committed is None:
            raise error(
                Reason.NO_COMMITTED_OFFSET,
                f"group {group_id!r} has committed no offset of topic {topic!r} partition {number}, so there is none "
                "to shift",
                group_id=group_id,
                topic=topic,
                partition=number,
            )
        return max(begin, min(committed + by, end))

    return shifted


def _check_offset(partition: Partition, offset: int) -> None:
    begin, end = partition.log_start_offset, partition.written_offset
    if not begin <= offset <= end:
        raise error(
            Reason.OFFSET_OUT_OF_RANGE,
            f"offset {offset} of topic {partition.topic!r} partition {partition.partition} is not there: the log goes "
            f"from {begin} to {end}",
            topic=partition.topic,
            partition=partition.partition,
            offset=offset,
            log_start_offset=begin,
            end_offset=end,
        )


async def _all(work: Iterable) -> list:
    """The results of all. Waits for all also when one fails: none is left running with nobody to take its error."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
