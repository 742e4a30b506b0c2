"""Consumer groups as far as they consist of committed offsets: a group without members is "Empty".

A commit makes the log durable up to each of its offsets before it is stored: a group never stands, not even after a
power cut, on an offset beyond the records it has seen.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from takhin.broker.metadata import MetadataStore, OffsetCommit
from takhin.config import Limits
from takhin.errors import Reason, error

MAX_GROUP_ID_CHARACTERS = 249
STATE_EMPTY = "Empty"
PROTOCOL_TYPE = "consumer"
_SHOWN_CHARACTERS = 80


class CommitPartition(Protocol):
    """What a commit needs of a partition. written_offset is the end that readers see."""

    @property
    def topic_id(self) -> int: ...

    @property
    def partition(self) -> int: ...

    @property
    def log_start_offset(self) -> int: ...

    @property
    def written_offset(self) -> int: ...

    async def make_durable(self, offset: int) -> None:
        """Returns when everything below `offset` is covered by a successful sync. Raises SYNC_FAILED."""
        ...


class Topics(Protocol):
    def partition(self, topic_name: str, partition: int) -> CommitPartition:
        """Raises TOPIC_NOT_FOUND, PARTITION_NOT_FOUND, INVALID_PARTITION."""
        ...


@dataclass(frozen=True, slots=True)
class GroupSummary:
    group_id: str
    state: str = STATE_EMPTY
    protocol_type: str = PROTOCOL_TYPE
    member_count: int = 0


@dataclass(frozen=True, slots=True)
class GroupDescription:
    """offsets: committed, by (topic id, partition)."""

    group_id: str
    offsets: Mapping[tuple[int, int], int]
    state: str = STATE_EMPTY
    protocol_type: str = PROTOCOL_TYPE


class GroupCoordinator:
    """Commits, and what is known of groups. clock_ms: milliseconds since the epoch."""

    def __init__(self, metadata: MetadataStore, topics: Topics, limits: Limits, clock_ms: Callable[[], int]):
        self._metadata = metadata
        self._topics = topics
        self._limits = limits
        self._clock_ms = clock_ms

    async def commit(self, group_id: str, offsets: Sequence[tuple[str, int, int]]) -> None:
        """Commits (topic, partition, next offset to read), all or none; durable when it returns.

        Raises INVALID_GROUP_ID, MALFORMED_REQUEST (no offsets), DUPLICATE_PARTITION, OFFSET_OUT_OF_RANGE,
        OFFSET_BEHIND_COMMITTED, GROUP_LIMIT, what Topics.partition and make_durable raise, and what the store raises.
        """
        rows = await self.prepare(group_id, offsets)
        await self._metadata.commit_offsets(group_id, rows, self._clock_ms(), self._limits.groups)

    async def prepare(self, group_id: str, offsets: Sequence[tuple[str, int, int]]) -> list[OffsetCommit]:
        """What a commit of these offsets stores, all of it checked but for what is stored of the group already; the log
        is durable up to each of them. Raises as commit() does."""
        _check_group_id(group_id)
        if not offsets:
            # Not a success without effect: a client whose offsets went to a wrong field would never learn of it.
            raise error(Reason.MALFORMED_REQUEST, "the commit has no offsets; at least one is needed")
        targets = self._targets(offsets)
        # What is written stays: the check of the offsets still holds after the wait. The topic may be gone by then;
        # the store finds that out.
        waits = (target.make_durable(offset) for target, _, offset in targets)
        # All of them are waited for, also when one fails: none is left running with nobody to take its error.
        for failure in await asyncio.gather(*waits, return_exceptions=True):
            if failure is not None:
                raise failure
        return [OffsetCommit(target.topic_id, topic, target.partition, offset) for target, topic, offset in targets]

    async def list_groups(self) -> list[GroupSummary]:
        return [GroupSummary(group_id) for group_id in await self._metadata.list_groups()]

    async def describe(self, group_id: str) -> GroupDescription:
        """Raises INVALID_GROUP_ID, GROUP_NOT_FOUND."""
        _check_group_id(group_id)
        return GroupDescription(group_id, await self._metadata.group_offsets(group_id))

    async def delete(self, group_id: str) -> None:
        """Removes the group and its commits. Raises INVALID_GROUP_ID, GROUP_NOT_FOUND."""
        _check_group_id(group_id)
        await self._metadata.delete_group(group_id)

    def _targets(self, offsets: Sequence[tuple[str, int, int]]) -> list[tuple[CommitPartition, str, int]]:
        """The partitions, each with its topic's name and the offset to commit, all checked."""
        targets: list[tuple[CommitPartition, str, int]] = []
        seen: set[tuple[str, int]] = set()
        for topic, partition, offset in offsets:
            target = self._topics.partition(topic, partition)
            if (topic, partition) in seen:
                raise error(
                    Reason.DUPLICATE_PARTITION,
                    f"topic {topic!r} partition {partition} is in the commit twice; once is allowed",
                    topic=topic,
                    partition=partition,
                )
            seen.add((topic, partition))
            _check_offset(topic, target, offset)
            targets.append((target, topic, offset))
        return targets


def _check_offset(topic: str, target: CommitPartition, offset: int) -> None:
    # Below the log start is allowed: a group that fell behind retention may still say where it stands.
    end = target.written_offset
    if not 0 <= offset <= end:
        raise error(
            Reason.OFFSET_OUT_OF_RANGE,
            f"offset {offset} of topic {topic!r} partition {target.partition} cannot be committed; allowed: 0 to "
            f"{end}, the log's end",
            topic=topic,
            partition=target.partition,
            offset=offset,
            log_start_offset=target.log_start_offset,
            end_offset=end,
        )


def _check_group_id(group_id: str) -> None:
    if 1 <= len(group_id) <= MAX_GROUP_ID_CHARACTERS and group_id.isprintable():
        return
    cut = group_id if len(group_id) <= _SHOWN_CHARACTERS else group_id[: _SHOWN_CHARACTERS - 3] + "..."
    raise error(
        Reason.INVALID_GROUP_ID,
        f"group id {cut!r} ({len(group_id)} characters) is not allowed; allowed: 1 to {MAX_GROUP_ID_CHARACTERS} "
        "printable characters",
    )
