"""Groups with members, alive: their state machines with time, storage, and the streams that members have.

Whatever happens to a group marks it as changed. One task a group then settles it: works out what follows, stores it,
and tells the members only when it is durable. So a broker that dies never finds, at its next start, that somebody was
told of an assignment it does not know; and all that happens while it stores is worked out together, once.
"""

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Protocol

from takhin.broker.assignors import GroupPartition
from takhin.broker.group import Description, Effect, Group, Member
from takhin.broker.group_store import encode_member
from takhin.broker.metadata import MetadataStore
from takhin.config import GroupSettings, Limits
from takhin.errors import Reason, TakhinError, error

logger = logging.getLogger(__name__)

# Members that are started together join one after the other: a group waits for the next one for so long, so often,
# before it works out who is to have what. Else most of it would move several times.
_NEXT_JOIN_S = 0.02
_MOST_WAITS = 10
# How long the store is given before it is asked again, when the disk is full.
_STORE_AGAIN_S = 1.0

Committed = Mapping[tuple[int, int], int]


class MemberStream(Protocol):
    """The stream that a member has."""

    def take(self, effect: Effect, committed: Committed) -> None:
        """What the member is to be told, and what its group has committed. Must not raise."""
        ...

    def note_commit(self, offsets: Iterable[tuple[GroupPartition, int]]) -> None:
        """The member has asked for these to be committed, and they are: by its stream, by CommitOffset or in a
        transaction. Must not raise."""
        ...

    def fence(self, refusal: TakhinError) -> None:
        """The stream is the member's no longer: it ends with `refusal`."""
        ...


class TopicShapes(Protocol):
    def shape(self, name: str) -> tuple[int, int] | None:
        """The topic's id and number of partitions; None when there is no such topic."""
        ...


class LiveGroup:
    """One group: its machine, its members' streams, and the task that settles it."""

    def __init__(self, group_id: str, settings: GroupSettings):
        self.machine = Group(group_id, settings.grace_ms, settings.revoke_timeout_ms)
        self.streams: dict[str, MemberStream] = {}
        self.settling: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        # Whether somebody joined since it was last looked at.
        self.has_joined = False
        # What the database knows of each member.
        self.stored: dict[str, str] = {}

    @property
    def group_id(self) -> str:
        return self.machine.group_id


class LiveGroups:
    """All groups that have members. wall_ms: milliseconds since the epoch; deadlines go by the event loop's clock.

    offsets_are_stored: to be awaited before committed offsets are looked at for a member: a transaction that was
    admitted when the group was still as before is in the database then, or never will be.
    """

    def __init__(
        self, metadata: MetadataStore, topics: TopicShapes, settings: GroupSettings, limits: Limits,
        wall_ms: Callable[[], int], offsets_are_stored: Callable[[], Awaitable[None]],
    ):
        self._offsets_are_stored = offsets_are_stored
        self._metadata = metadata
        self._topics = topics
        self._settings = settings
        self._limits = limits
        self._wall_ms = wall_ms
        self._groups: dict[str, LiveGroup] = {}
        # How many are about to join each group that has no members yet.
        self._joining: Counter[str] = Counter()
        self._forgetting: set[asyncio.Task[None]] = set()
        self._num_members = 0
        self._is_draining = False

    # What there is

    def get(self, group_id: str) -> Group | None:
        """The group, if it has members."""
        live = self._groups.get(group_id)
        return live.machine if live is not None and live.machine.members else None

    def with_members(self) -> list[str]:
        return [group_id for group_id, live in self._groups.items() if live.machine.members]

    def reconfigure(self) -> None:
        """Have all groups go by the settings as they are now."""
        for live in self._groups.values():
            live.machine.configure(self._settings.grace_ms, self._settings.revoke_timeout_ms)

    # Starting and stopping

    async def load(self) -> None:
        """Take up the groups that the last run left: every member is away, and may come back within its grace."""
        now_ms = self._now_ms()
        try:
            await self._metadata.remove_unused_groups()
        except TakhinError as problem:
            if problem.reason is not Reason.DISK_FULL:
                raise
        for stored in await self._metadata.load_members():
            live = self._groups[stored.group_id] = LiveGroup(stored.group_id, self._settings)
            for member in stored.members:
                described = member.description
                away_ms = described.session_timeout_ms if described.instance_id else self._settings.grace_ms
                member.away_until_ms = now_ms + away_ms
                live.stored[member.member_id] = encode_member(member)
            live.machine.restore(stored.generation, stored.members)
            self._num_members += len(stored.members)
            self._shape(live)
            self._changed(live)
        if self._groups:
            logger.info("%d members of %d groups are awaited", self._num_members, len(self._groups))

    def begin_drain(self) -> None:
        """From now on nobody joins, and who is cut off stays a member: the next run awaits it."""
        self._is_draining = True

    async def stop(self) -> None:
        """Finish what is under way."""
        self._is_draining = True
        tasks = [live.settling for live in self._groups.values() if live.settling is not None]
        await asyncio.gather(*tasks, *self._forgetting, return_exceptions=True)
        for live in self._groups.values():
            if live.timer is not None:
                live.timer.cancel()

    # Events

    async def join(
        self, group_id: str, description: Description, member_id: str, stream: MemberStream
    ) -> tuple[str, int, int]:
        """Make `stream` a member's: that of member_id or the instance if it is there, else a new one's.

        Returns the member's id, which Joined is the stream's, and the generation: who comes back has what it had then,
        though it is yet to be told. Raises DRAINING, TOPIC_NOT_FOUND, GROUP_LIMIT,
        MEMBER_LIMIT, INCONSISTENT_ASSIGNOR, what the store raises.
        """
        self._check_join(description)
        if group_id in self._groups:
            return self._admit(group_id, description, member_id, stream, 0)
        self._check_room(None)
        self._joining[group_id] += 1
        try:
            generation = await self._metadata.ensure_group(group_id, self._limits.groups)
            self._check_join(description)
            return self._admit(group_id, description, member_id, stream, generation)
        finally:
            self._joining[group_id] -= 1
            if not self._joining[group_id]:
                del self._joining[group_id]
                if group_id not in self._groups:
                    # In a task of its own: whoever is cancelled does not cancel it.
                    forgetting = asyncio.ensure_future(self._forget(group_id))
                    self._forgetting.add(forgetting)
                    forgetting.add_done_callback(self._forgotten)

    def _admit(
        self, group_id: str, description: Description, member_id: str, stream: MemberStream, generation: int
    ) -> tuple[str, int, int]:
        """As join(), into a group that is in the database. generation: of one that has no members."""
        live = self._groups.get(group_id)
        if live is None:
            live = LiveGroup(group_id, self._settings)
            live.machine.generation = generation
        machine = live.machine
        known = machine.known(member_id, description.instance_id)
        if known is None:
            self._check_room(live)
            member = machine.join(_new_id(description), description)
            self._num_members += 1
        else:
            member = known
            self._take_over(live, member, member_id, description)
        self._groups[group_id] = live
        live.streams[member.member_id] = stream
        live.has_joined = True
        self._shape(live)
        self._changed(live)
        return member.member_id, member.greeting, machine.generation

    def cut(self, group_id: str, member_id: str, stream: MemberStream) -> None:
        """The member's stream was cut; nothing when it is the member's no longer."""
        live = self._live(group_id, member_id, stream)
        if live is not None:
            del live.streams[member_id]
            live.machine.cut(member_id, self._now_ms())
            self._set_timer(live)

    def leave(self, group_id: str, member_id: str, stream: MemberStream) -> None:
        """The member is no more; nothing when the stream is the member's no longer."""
        live = self._live(group_id, member_id, stream)
        if live is not None:
            del live.streams[member_id]
            live.machine.leave(member_id)
            self._num_members -= 1
            self._changed(live)

    def release(
        self, group_id: str, member_id: str, stream: MemberStream, partitions: Iterable[GroupPartition],
        asked: Collection[GroupPartition] = ()
    ) -> None:
        """Partitions that the member has lost meanwhile are passed over, and those of `asked`, which it was asked for,
        that were given to it again since: it need not have been told yet. Raises PARTITION_NOT_REVOKING."""
        live = self._live(group_id, member_id, stream)
        if live is not None:
            member = live.machine.members[member_id]
            live.machine.release(member_id, [
                each for each in partitions if each in member.owned and (each in member.revoking or each not in asked)])
            self._changed(live)

    def note_commit(self, group_id: str, member_id: str, offsets: Iterable[tuple[GroupPartition, int]]) -> None:
        """A member has committed these; nothing when it has no stream now."""
        live = self._groups.get(group_id)
        stream = live.streams.get(member_id) if live is not None else None
        if stream is not None:
            stream.note_commit(offsets)

    def topic_changed(self, name: str) -> None:
        """A topic was made, has got more partitions, or is gone."""
        for live in self._groups.values():
            if name in live.machine.subscribed_topics:
                self._shape(live)
                self._changed(live)

    # Inside

    def _check_join(self, description: Description) -> None:
        if self._is_draining:
            raise error(Reason.DRAINING, "the broker is shutting down; come back with the member's id")
        for name in description.topics:
            if self._topics.shape(name) is None:
                raise error(Reason.TOPIC_NOT_FOUND, f"there is no topic {name!r}", topic=name)

    async def _forget(self, group_id: str) -> None:
        """Of a group that was made for who did not become its member: remove it, unless it has commits by then."""
        # Who joins from now on makes it anew: the database does things in the order in which they are asked for.
        if group_id not in self._joining and group_id not in self._groups:
            await self._metadata.remove_unused_group(group_id)

    def _forgotten(self, forgetting: "asyncio.Task[None]") -> None:
        self._forgetting.discard(forgetting)
        _report(forgetting)

    def _check_room(self, live: LiveGroup | None) -> None:
        """live: None: a group without members. Raises MEMBER_LIMIT."""
        limits = self._limits
        if live is not None and len(live.machine.members) >= limits.members_per_group:
            raise error(
                Reason.MEMBER_LIMIT,
                f"group {live.group_id!r} has {limits.members_per_group} members, as many as a group may have "
                "(limits.members_per_group)",
                group_id=live.group_id, limit=limits.members_per_group,
            )
        if self._num_members >= limits.members:
            raise error(
                Reason.MEMBER_LIMIT,
                f"there are {limits.members} members of groups, as many as this broker takes (limits.members)",
                limit=limits.members,
            )

    def _take_over(self, live: LiveGroup, member: Member, claimed_id: str, description: Description) -> None:
        """The member has another stream from now on."""
        old_id = member.member_id
        # Who comes by the instance's name alone is another process: the one before it is fenced, its commits too.
        new_id = old_id if claimed_id == old_id else _new_id(description)
        live.machine.come_back(member, new_id, description)
        before = live.streams.pop(old_id, None)
        if before is not None:
            before.fence(error(
                Reason.MEMBER_FENCED, f"member {old_id!r} of group {live.group_id!r} has another stream now",
                group_id=live.group_id, member_id=old_id,
            ))

    def _live(self, group_id: str, member_id: str, stream: MemberStream) -> LiveGroup | None:
        live = self._groups.get(group_id)
        return live if live is not None and live.streams.get(member_id) is stream else None

    def _shape(self, live: LiveGroup) -> None:
        shapes = {name: self._topics.shape(name) for name in live.machine.subscribed_topics}
        live.machine.set_topics({name: shape for name, shape in shapes.items() if shape is not None})

    def _now_ms(self) -> int:
        return int(asyncio.get_running_loop().time() * 1000)

    def _changed(self, live: LiveGroup) -> None:
        if live.settling is None:
            live.settling = asyncio.ensure_future(self._settle(live))
            live.settling.add_done_callback(_report)

    async def _settle(self, live: LiveGroup) -> None:
        """Until there is nothing to do."""
        machine = live.machine
        try:
            while True:
                for _ in range(_MOST_WAITS):
                    if not live.has_joined:
                        break
                    live.has_joined = False
                    await asyncio.sleep(_NEXT_JOIN_S)
                effects = self._settled(live)
                if not effects and not machine.touched:
                    break
                committed = await self._store(live)
                for effect in effects:
                    stream = live.streams.get(effect.member_id)
                    if stream is not None:
                        stream.take(effect, committed)
        finally:
            live.settling = None
        if machine.members:
            self._set_timer(live)
        elif self._groups.get(live.group_id) is live:
            del self._groups[live.group_id]

    def _settled(self, live: LiveGroup) -> list[Effect]:
        before = len(live.machine.members)
        was_subscribed = live.machine.subscribed_topics
        # While the broker goes down nobody's time is over.
        effects = live.machine.settle(-1 if self._is_draining else self._now_ms())
        if live.machine.subscribed_topics != was_subscribed:
            self._shape(live)
            effects += live.machine.settle(-1 if self._is_draining else self._now_ms())
        # At the end: somebody's time may be over in each of them.
        self._num_members -= before - len(live.machine.members)
        return effects

    async def _store(self, live: LiveGroup) -> Committed:
        """Store what changed; gives what the group has committed."""
        machine = live.machine
        touched, machine.touched = machine.touched, set()
        states = {each: encode_member(machine.members[each]) for each in touched if each in machine.members}
        changed = [(each, state) for each, state in states.items() if live.stored.get(each) != state]
        gone = [each for each in touched if each not in machine.members]
        while True:
            # Whoever gets a partition begins where the transaction of whoever had it before has ended.
            await self._offsets_are_stored()
            try:
                committed = await self._metadata.store_members(
                    live.group_id, machine.generation, changed, gone, self._wall_ms()
                )
            except TakhinError as problem:
                if problem.reason is not Reason.DISK_FULL or self._is_draining:
                    raise
                # Nobody is told before it is stored: the group stays as it is until there is room.
                logger.warning("group %r can't change: %s", live.group_id, problem.message)
                await asyncio.sleep(_STORE_AGAIN_S)
                continue
            live.stored.update(changed)
            for each in gone:
                live.stored.pop(each, None)
            return committed

    def _set_timer(self, live: LiveGroup) -> None:
        if live.timer is not None:
            live.timer.cancel()
            live.timer = None
        deadline_ms = live.machine.next_deadline_ms()
        if deadline_ms is not None and not self._is_draining:
            # A deadline has passed when the millisecond it names has begun.
            live.timer = asyncio.get_running_loop().call_at((deadline_ms + 1) / 1000, self._changed, live)


def _new_id(description: Description) -> str:
    # Nobody guesses it: who knows it can take the member's place.
    return f"{description.client_id or 'member'}-{uuid.uuid4().hex}"


def _report(task: "asyncio.Task[None]") -> None:
    if task.cancelled() or task.exception() is None:
        return
    problem = task.exception()
    if isinstance(problem, TakhinError):
        # The database has failed, and the broker goes down; or it is closed already.
        logger.error("a group can't be stored: %s", problem.message)
    else:
        logger.error("a group can't be settled", exc_info=problem)
