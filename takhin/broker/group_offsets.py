"""Where groups stand: their committed offsets, beside the logs' beginnings and ends."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from takhin.broker.groups import check_group_id
from takhin.broker.metadata import Committed, MetadataStore
from takhin.broker.topics import Topics
from takhin.errors import NotFound, Reason, error
from takhin.log.partition import Partition

# Of one request. With the longest topic names the answer is about 3 MiB: clients take 4 MiB unless told otherwise.
MAX_PARTITIONS = 10_000


class Members(Protocol):
    """What is known of a group beside its commits."""

    def has_members(self, group_id: str) -> bool: ...

    def assigned(self, group_id: str) -> Iterable[tuple[str, int]]: ...


@dataclass(frozen=True, slots=True)
class GroupPosition:
    """Where a group stands in one partition. committed_offset: the next to read; None (and committed_ms 0): no commit.

    lag: records from there (or from the log's start) to the end that readers see.
    """

    topic: str
    partition: int
    committed_offset: int | None
    committed_ms: int
    log_start_offset: int
    end_offset: int

    @property
    def lag(self) -> int:
        begin = self.log_start_offset if self.committed_offset is None else self.committed_offset
        # A commit is beyond the end when records were lost, or repaired away.
        return max(self.end_offset - begin, 0)


class GroupOffsets:
    """Tells of committed offsets."""

    def __init__(self, metadata: MetadataStore, topics: Topics, members: Members):
        self._metadata = metadata
        self._topics = topics
        self._members = members

    async def fetch(self, group_id: str, named: Sequence[tuple[str, int]]) -> list[GroupPosition]:
        """The group's positions in the named (topic, partition)s, in their order; none named: in all it has.

        Raises INVALID_GROUP_ID, GROUP_NOT_FOUND (only when none is named), TOO_MANY_PARTITIONS, and what
        Topics.partition does.
        """
        check_group_id(group_id)
        check_count(len(named))
        partitions = [self._topics.partition(topic, number) for topic, number in named]
        commits = await self._commits(group_id, is_needed=not named)
        if not named:
            partitions = self._all_of(group_id, commits)
            check_count(len(partitions))
        # The ends are looked at after the commits: so no commit is beyond its end.
        return [_position(each, commits.get((each.topic_id, each.partition))) for each in partitions]

    async def _commits(self, group_id: str, is_needed: bool) -> dict[tuple[int, int], Committed]:
        try:
            return await self._metadata.group_commits(group_id)
        except NotFound:
            # A group that has never committed is as good as one that does not exist.
            if is_needed and not self._members.has_members(group_id):
                raise
            return {}

    def _all_of(self, group_id: str, commits: Iterable[tuple[int, int]]) -> list[Partition]:
        """Of the commits, and of what is assigned: the partitions that are there, by topic and number."""
        keys = set(commits)
        for name, number in self._members.assigned(group_id):
            with suppress(NotFound):
                keys.add((self._topics.get(name).id, number))
        return partitions_of(self._topics, keys)


def partitions_of(topics: Topics, keys: Iterable[tuple[int, int]]) -> list[Partition]:
    """The partitions with these (topic id, partition)s, by topic and number; without those of deleted topics."""
    found = ((topics.with_id(topic_id), number) for topic_id, number in keys)
    partitions = [topic.partitions[number] for topic, number in found if topic is not None]
    return sorted(partitions, key=lambda partition: (partition.topic, partition.partition))


def _position(partition: Partition, committed: Committed | None) -> GroupPosition:
    return GroupPosition(
        partition.topic,
        partition.partition,
        committed.offset if committed is not None else None,
        committed.committed_ms if committed is not None else 0,
        partition.log_start_offset,
        partition.written_offset,
    )


def check_count(count: int) -> None:
    """Raises TOO_MANY_PARTITIONS."""
    if count > MAX_PARTITIONS:
        raise error(
            Reason.TOO_MANY_PARTITIONS,
            f"{count} partitions in one request are too many: name {MAX_PARTITIONS} at most",
            max_partitions=MAX_PARTITIONS,
        )
