"""Consumer groups for whoever asks from outside: commits, and what is known of groups. Their members: live_groups.py.

A commit makes the log durable up to each of its offsets before it is stored: a group never stands, not even after a
power cut, on an offset beyond the records it has seen.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from takhin.broker.assignors import GroupPartition
from takhin.broker.group import STATE_DEAD, STATE_EMPTY, Group
from takhin.broker.live_groups import LiveGroups
from takhin.broker.metadata import MetadataStore, OffsetCommit
from takhin.config import GroupSettings, Limits
from takhin.errors import Reason, TakhinError, error

MAX_GROUP_ID_CHARACTERS = 249
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

    def shape(self, name: str) -> tuple[int, int] | None:
        """The topic's id and number of partitions; None when there is no such topic."""
        ...


@dataclass(frozen=True, slots=True)
class GroupSummary:
    group_id: str
    state: str = STATE_EMPTY
    protocol_type: str = PROTOCOL_TYPE
    member_count: int = 0


@dataclass(frozen=True, slots=True)
class MemberDescription:
    """assignments: (topic, partition, committed offset or -1)."""

    member_id: str
    client_id: str
    client_host: str
    assignments: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class GroupDescription:
    """offsets: committed, by (topic id, partition)."""

    group_id: str
    offsets: Mapping[tuple[int, int], int]
    state: str = STATE_EMPTY
    protocol_type: str = PROTOCOL_TYPE
    members: tuple[MemberDescription, ...] = ()


class GroupCoordinator:
    """Commits, and what is known of groups. clock_ms: milliseconds since the epoch; offsets_are_stored: as LiveGroups
    has it."""

    def __init__(
        self, metadata: MetadataStore, topics: Topics, limits: Limits, clock_ms: Callable[[], int],
        offsets_are_stored: Callable[[], Awaitable[None]], settings: GroupSettings | None = None,
    ):
        self._metadata = metadata
        self._topics = topics
        self._limits = limits
        self._clock_ms = clock_ms
        self.live = LiveGroups(
            metadata, topics, settings or GroupSettings(), limits, clock_ms, offsets_are_stored
        )
        self._deleting: set[str] = set()

    async def commit(
        self, group_id: str, offsets: Sequence[tuple[str, int, int]], member_id: str = "",
        generation: int | None = None, *, was_asked: bool = True,
    ) -> None:
        """Commits (topic, partition, next offset to read), all or none; durable when it returns.

        member_id: for a member, which must have the partitions; generation: the last one it knows of. "" and None: for
        somebody who is none, while the group has no members. was_asked: False when the broker does it for the member of
        itself, which is no sign that the member processes what it is sent.

        Raises INVALID_GROUP_ID, MALFORMED_REQUEST (no offsets), DUPLICATE_PARTITION, OFFSET_OUT_OF_RANGE,
        OFFSET_BEHIND_COMMITTED, GROUP_LIMIT, GROUP_HAS_MEMBERS, FENCED_GENERATION, what Topics.partition and
        make_durable raise, and what the store raises.
        """
        rows = await self.prepare(group_id, offsets, member_id, generation)
        # Once more: who lost a partition meanwhile may not move its offset under the feet of who has it now. From here
        # on the database's queue keeps the order: the next owner is told where to begin after this is stored.
        self.check_committer(group_id, rows, member_id, generation)
        await self._metadata.commit_offsets(group_id, rows, self._clock_ms(), self._limits.groups)
        if was_asked:
            self.note_commit(group_id, rows, member_id)

    def note_commit(self, group_id: str, rows: Sequence[OffsetCommit], member_id: str) -> None:
        """These are committed, by this member ("": by none): a sign that it processes what it is sent."""
        if member_id:
            self.live.note_commit(group_id, member_id, [
                (GroupPartition(row.topic, row.partition, row.topic_id), row.offset) for row in rows])

    async def prepare(
        self, group_id: str, offsets: Sequence[tuple[str, int, int]], member_id: str = "", generation: int | None = None
    ) -> list[OffsetCommit]:
        """What a commit of these offsets stores, all of it checked but for what is stored of the group already; the log
        is durable up to each of them. Raises as commit() does."""
        check_group_id(group_id)
        if not offsets:
            # Not a success without effect: a client whose offsets went to a wrong field would never learn of it.
            raise error(Reason.MALFORMED_REQUEST, "the commit has no offsets; at least one is needed")
        if member_id:
            # First: of what is not the member's it learns nothing else, not even whether that is there.
            (self.live.get(group_id) or Group(group_id, 0, 0)).check_owned(
                member_id, {(topic, number) for topic, number, _ in offsets})
        targets = self._targets(offsets)
        rows = [OffsetCommit(target.topic_id, topic, target.partition, offset) for target, topic, offset in targets]
        self.check_committer(group_id, rows, member_id, generation)
        # What is written stays: the check of the offsets still holds after the wait. The topic may be gone by then;
        # the store finds that out.
        waits = (target.make_durable(offset) for target, _, offset in targets)
        # All of them are waited for, also when one fails: none is left running with nobody to take its error.
        for failure in await asyncio.gather(*waits, return_exceptions=True):
            if failure is not None:
                raise failure
        return rows

    def check_committer(
        self, group_id: str, rows: Sequence[OffsetCommit], member_id: str, generation: int | None
    ) -> None:
        """Whether a commit may be made by this member, or by nobody in particular; see commit().

        To be asked right before the commit is queued for the database too, with nothing awaited between. Raises
        GROUP_HAS_MEMBERS, FENCED_GENERATION.
        """
        group = self.live.get(group_id)
        if generation is None:
            if group is not None:
                raise _has_members(group)
            return
        partitions = [GroupPartition(row.topic, row.partition, row.topic_id) for row in rows]
        (group or Group(group_id, 0, 0)).check_commit(member_id, generation, partitions)

    def has_members(self, group_id: str) -> bool:
        """Whether the group has members now."""
        return self.live.get(group_id) is not None

    def with_members(self) -> list[str]:
        """The ids of the groups that have members now."""
        return self.live.with_members()

    def assigned(self, group_id: str) -> list[tuple[str, int]]:
        """The partitions (topic, partition) that are assigned to members of the group now."""
        group = self.live.get(group_id)
        if group is None:
            return []
        return [(each.topic, each.partition) for member in group.members.values() for each in member.owned]

    async def list_groups(self) -> list[GroupSummary]:
        summaries = []
        # Those with members are stored before their members are told so.
        for group_id in await self._metadata.list_groups():
            group = self.live.get(group_id)
            members = len(group.members) if group is not None else 0
            summaries.append(GroupSummary(group_id, self._state(group_id), member_count=members))
        return summaries

    async def describe(self, group_id: str) -> GroupDescription:
        """Raises INVALID_GROUP_ID, GROUP_NOT_FOUND."""
        check_group_id(group_id)
        offsets = await self._metadata.group_offsets(group_id)
        group = self.live.get(group_id)
        members = []
        for member in group.members.values() if group is not None else ():
            assignments = tuple(
                (each.topic, each.partition, offsets.get((each.topic_id, each.partition), -1))
                for each in sorted(member.owned)
            )
            described = member.description
            members.append(
                MemberDescription(member.member_id, described.client_id, described.client_host, assignments)
            )
        return GroupDescription(group_id, offsets, self._state(group_id), members=tuple(members))

    async def delete(self, group_id: str) -> None:
        """Removes the group and its commits. Raises INVALID_GROUP_ID, GROUP_NOT_FOUND, GROUP_HAS_MEMBERS."""
        check_group_id(group_id)
        group = self.live.get(group_id)
        if group is not None:
            raise _has_members(group)
        self._deleting.add(group_id)
        try:
            await self._metadata.delete_group(group_id)
        finally:
            self._deleting.discard(group_id)

    def _state(self, group_id: str) -> str:
        group = self.live.get(group_id)
        if group is not None:
            return group.state
        return STATE_DEAD if group_id in self._deleting else STATE_EMPTY

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


def _has_members(group: Group) -> TakhinError:
    return error(
        Reason.GROUP_HAS_MEMBERS,
        f"group {group.group_id!r} has {len(group.members)} members: only they may commit, by their streams or with "
        "member_id and generation, and only without members can it be deleted",
        group_id=group.group_id,
    )


def check_group_id(group_id: str) -> None:
    """Raises INVALID_GROUP_ID."""
    if 1 <= len(group_id) <= MAX_GROUP_ID_CHARACTERS and group_id.isprintable():
        return
    cut = group_id if len(group_id) <= _SHOWN_CHARACTERS else group_id[: _SHOWN_CHARACTERS - 3] + "..."
    raise error(
        Reason.INVALID_GROUP_ID,
        f"group id {cut!r} ({len(group_id)} characters) is not allowed; allowed: 1 to {MAX_GROUP_ID_CHARACTERS} "
        "printable characters",
    )
