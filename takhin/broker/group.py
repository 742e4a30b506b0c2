"""The state machine of one consumer group: who is a member, who has which partition, and what has to move.

Pure: no clock, no event loop, no I/O. Events come in as calls, with the time where it counts; settle() then brings the
group to where its members and topics say it should be, and gives the effects: what each member is to be told.

    Empty --join--> Stable <--------------------------------------------+
                      | members, topics or subscriptions change          | nothing left to move
                      +--> PreparingRebalance: owners are asked to release --+
    any --last member gone--> Empty

Rebalances are cooperative: who keeps a partition is not disturbed, a partition that moves is first asked back from its
owner (revoking), and handed on when it is released, or lost when the deadline passes. Ownership is what counts: at any
time a partition has at most one owner; and as every handing out raises the generation, at most one in any generation.

A member whose stream was cut is away: it keeps what it has until it comes back or its time is over.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from takhin.broker.assignors import ASSIGNORS, Assignment, GroupPartition
from takhin.errors import Reason, TakhinError, error

STATE_EMPTY = "Empty"
STATE_PREPARING = "PreparingRebalance"
STATE_STABLE = "Stable"
STATE_DEAD = "Dead"

REVOKE_TIMEOUT = "REVOKE_TIMEOUT"
TOPIC_DELETED = "TOPIC_DELETED"


@dataclass(frozen=True, slots=True)
class Description:
    """What a member says of itself. instance_id "" : not a static member. session_timeout_ms: how long a static member
    may be away."""

    topics: frozenset[str]
    assignor: str
    session_timeout_ms: int
    client_id: str = ""
    client_host: str = ""
    instance_id: str = ""


@dataclass(slots=True)
class Member:
    """owned: with the generation in which it was given each; revoking: of these, with the deadline in ms.

    away_until_ms: None as long as it has a stream. greeting: how many streams it has had; is_new: of the last one
    nothing was told yet.
    """

    member_id: str
    description: Description
    owned: dict[GroupPartition, int] = field(default_factory=dict)
    revoking: dict[GroupPartition, int] = field(default_factory=dict)
    away_until_ms: int | None = None
    greeting: int = 0
    is_new: bool = False


# Effects: what a member is to be told, in this order.


@dataclass(frozen=True, slots=True)
class Joined:
    member_id: str
    greeting: int
    generation: int


@dataclass(frozen=True, slots=True)
class Assigned:
    """added: what it has got; partitions: all it has, but for what is asked back already."""

    member_id: str
    added: tuple[GroupPartition, ...]
    generation: int
    partitions: tuple[GroupPartition, ...]


@dataclass(frozen=True, slots=True)
class Revoking:
    member_id: str
    partitions: tuple[GroupPartition, ...]
    generation: int
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class Lost:
    member_id: str
    partitions: tuple[GroupPartition, ...]
    generation: int
    reason: str


Effect = Joined | Assigned | Revoking | Lost


class Group:
    """grace_ms: how long a dynamic member may be away; revoke_timeout_ms: how long a member has to release."""

    def __init__(self, group_id: str, grace_ms: int, revoke_timeout_ms: int):
        self.group_id = group_id
        self.generation = 0
        self.members: dict[str, Member] = {}
        # What changed since the last time somebody stored it: ids of members, also of those that are gone.
        self.touched: set[str] = set()
        self._grace_ms = grace_ms
        self._revoke_timeout_ms = revoke_timeout_ms
        # By name: the topic's id and how many partitions it has; only of topics that are there.
        self._topics: dict[str, tuple[int, int]] = {}
        self._instances: dict[str, str] = {}
        self._owners: dict[GroupPartition, str] = {}
        self._target: Assignment = {}
        self._is_stale = False

    def configure(self, grace_ms: int, revoke_timeout_ms: int) -> None:
        """For members that are cut off, and partitions that are to move, from now on."""
        self._grace_ms = grace_ms
        self._revoke_timeout_ms = revoke_timeout_ms

    # What it is

    @property
    def state(self) -> str:
        if not self.members:
            return STATE_EMPTY
        return STATE_PREPARING if self._is_stale or self._moving() else STATE_STABLE

    @property
    def subscribed_topics(self) -> set[str]:
        return set().union(*(member.description.topics for member in self.members.values()))

    def owner(self, partition: GroupPartition) -> str | None:
        return self._owners.get(partition)

    def next_deadline_ms(self) -> int | None:
        """When settle() has something to do though nothing happens; None: never."""
        deadlines = [member.away_until_ms for member in self.members.values() if member.away_until_ms is not None]
        deadlines += [deadline for member in self.members.values() for deadline in member.revoking.values()]
        return min(deadlines, default=None)

    def _moving(self) -> bool:
        return any(self._target.get(each) != owner for each, owner in self._owners.items())

    # Events

    def restore(self, generation: int, members: Iterable[Member]) -> None:
        """What a broker left that is no more; members are as they were, away. Before any event."""
        self.generation = generation
        for member in members:
            self.members[member.member_id] = member
            if member.description.instance_id:
                self._instances[member.description.instance_id] = member.member_id
            for each in member.owned:
                self._owners[each] = member.member_id
        self._target = dict(self._owners)
        self._is_stale = True

    def known(self, member_id: str, instance_id: str) -> Member | None:
        """The member that comes back with these, either of them "" when it has none."""
        if instance_id and instance_id in self._instances:
            return self.members[self._instances[instance_id]]
        return self.members.get(member_id) if member_id else None

    def check_assignor(self, assignor: str, instead_of: Member | None) -> None:
        """Raises INCONSISTENT_ASSIGNOR."""
        for member in self.members.values():
            if member is not instead_of and member.description.assignor != assignor:
                raise error(
                    Reason.INCONSISTENT_ASSIGNOR,
                    f"the members of group {self.group_id!r} use assignor {member.description.assignor!r}, this one "
                    f"names {assignor!r}; all of them have to name the same",
                    group_id=self.group_id, assignor=member.description.assignor,
                )

    def join(self, member_id: str, description: Description) -> Member:
        """A new member, whose id nobody has."""
        self.check_assignor(description.assignor, None)
        member = Member(member_id, description, greeting=1, is_new=True)
        self.members[member_id] = member
        if description.instance_id:
            self._instances[description.instance_id] = member_id
        self._change(member_id)
        return member

    def come_back(self, member: Member, member_id: str, description: Description) -> None:
        """A member has another stream. member_id: its id from now on, by which who had the old one is fenced."""
        self.check_assignor(description.assignor, member)
        old_id, old_instance = member.member_id, member.description.instance_id
        if old_instance and not description.instance_id:
            description = Description(
                description.topics, description.assignor, description.session_timeout_ms, description.client_id,
                description.client_host, old_instance,
            )
        elif old_instance:
            del self._instances[old_instance]
        if description.topics != member.description.topics or description.assignor != member.description.assignor:
            self._is_stale = True
        member.description = description
        # What it does not read any more it does not get, not even to give it back: whoever knows a member's id need not
        # be allowed what the member was.
        for each in [each for each in member.owned if each.topic not in description.topics]:
            del member.owned[each], self._owners[each]
            member.revoking.pop(each, None)
        if member_id != old_id:
            self._rename(member, member_id)
        if description.instance_id:
            self._instances[description.instance_id] = member_id
        member.away_until_ms = None
        member.greeting += 1
        member.is_new = True
        self.touched.add(member_id)

    def _rename(self, member: Member, member_id: str) -> None:
        old_id = member.member_id
        # The partitions have another owner: so the generation rises.
        self.generation += 1
        # In its old place: assignors serve members in order.
        self.members = {
            member_id if each == old_id else each: other for each, other in self.members.items()
        }
        member.member_id = member_id
        member.owned = dict.fromkeys(member.owned, self.generation)
        self._owners.update(dict.fromkeys(member.owned, member_id))
        self._target = {each: member_id if owner == old_id else owner for each, owner in self._target.items()}
        self.touched.add(old_id)

    def cut(self, member_id: str, now_ms: int) -> None:
        """A member's stream was cut: it may come back."""
        member = self.members[member_id]
        description = member.description
        member.is_new = False
        member.away_until_ms = now_ms + (description.session_timeout_ms if description.instance_id else self._grace_ms)

    def leave(self, member_id: str) -> None:
        """A member is no more."""
        member = self.members.pop(member_id)
        if member.description.instance_id:
            del self._instances[member.description.instance_id]
        for each in member.owned:
            del self._owners[each]
        self._change(member_id)

    def release(self, member_id: str, partitions: Iterable[GroupPartition]) -> None:
        """A member gives back what is asked back. Raises PARTITION_NOT_REVOKING, and then nothing is released."""
        member = self.members[member_id]
        released = list(partitions)
        for each in released:
            if each not in member.revoking:
                raise error(
                    Reason.PARTITION_NOT_REVOKING,
                    f"topic {each.topic!r} partition {each.partition} was not asked back; leave gives up everything",
                    topic=each.topic, partition=each.partition,
                )
        for each in released:
            self._drop(member, each)

    def set_topics(self, topics: Mapping[str, tuple[int, int]]) -> None:
        """By name: id and number of partitions of the topics that members subscribe to and that are there."""
        if topics != self._topics:
            self._topics = dict(topics)
            self._is_stale = True

    def check_commit(self, member_id: str, generation: int, partitions: Iterable[GroupPartition]) -> None:
        """Whether a member may commit for these; generation: the one it knows of.

        What counts is that it has had them since that generation: who keeps a partition is not fenced by a rebalance
        between others; who lost it and got it again is, until it knows. Raises FENCED_GENERATION.
        """
        member = self._known_member(member_id)
        for each in partitions:
            since = member.owned.get(each)
            if since is None:
                raise self._not_assigned(each.topic, each.partition, member_id)
            if not since <= generation <= self.generation:
                raise self._fenced(
                    f"generation {generation} is not one in which member {member_id!r} has topic {each.topic!r} "
                    f"partition {each.partition}: {since} to {self.generation}"
                )

    def check_owned(self, member_id: str, names: Collection[tuple[str, int]]) -> None:
        """Whether a member has these (topic, partition)s, whatever their topics' ids. Raises FENCED_GENERATION."""
        owned = {(each.topic, each.partition) for each in self._known_member(member_id).owned}
        for topic, number in names:
            if (topic, number) not in owned:
                raise self._not_assigned(topic, number, member_id)

    def _known_member(self, member_id: str) -> Member:
        member = self.members.get(member_id)
        if member is None:
            raise self._fenced(f"{member_id!r} is no member of group {self.group_id!r} (any more)")
        return member

    def _not_assigned(self, topic: str, number: int, member_id: str) -> TakhinError:
        return self._fenced(f"topic {topic!r} partition {number} is not assigned to member {member_id!r} (now)")

    def _fenced(self, message: str) -> TakhinError:
        return error(Reason.FENCED_GENERATION, message, group_id=self.group_id, generation=self.generation)

    # Settling

    def settle(self, now_ms: int) -> list[Effect]:
        """Bring everything to where it should be by now, and give what members are to be told, each one's in order."""
        effects: list[Effect] = []
        for member in list(self.members.values()):
            if member.away_until_ms is not None and member.away_until_ms <= now_ms:
                self.leave(member.member_id)
        for member in self.members.values():
            overdue = tuple(each for each, deadline in member.revoking.items() if deadline <= now_ms)
            self._lose(member, overdue, REVOKE_TIMEOUT, effects)
        was = self.generation
        if self._is_stale:
            self._drop_deleted(effects)
            self._aim()
        # Who is taken over from is told after who is given: what is given was free before.
        self._hand_out(was, effects)
        self._ask_back(now_ms, effects)
        return effects

    def _drop_deleted(self, effects: list[Effect]) -> None:
        # Of a topic that nobody here subscribes to any more nothing is known: its partitions are asked back, not lost.
        subscribed = self.subscribed_topics
        for member in self.members.values():
            gone = tuple(each for each in member.owned if each.topic in subscribed and not self._is_there(each))
            self._lose(member, gone, TOPIC_DELETED, effects)

    def _is_there(self, each: GroupPartition) -> bool:
        topic_id, num_partitions = self._topics.get(each.topic, (-1, 0))
        return topic_id == each.topic_id and each.partition < num_partitions

    def _aim(self) -> None:
        """Who is to have what."""
        self._is_stale = False
        partitions = sorted(
            GroupPartition(topic, number, topic_id)
            for topic, (topic_id, num_partitions) in self._topics.items() for number in range(num_partitions)
        )
        if not self.members:
            self._target = {}
            return
        # Static members keep their place over restarts; ids of dynamic ones are new each time.
        ordered = sorted(self.members.values(), key=lambda each: (each.description.instance_id, each.member_id))
        topics = {member.member_id: member.description.topics for member in ordered}
        target = ASSIGNORS[ordered[0].description.assignor](topics, partitions, self._target)
        if target != self._target:
            self._target = target
            self.generation += 1

    def _hand_out(self, was: int, effects: list[Effect]) -> None:
        given: dict[str, list[GroupPartition]] = {}
        for each, member_id in self._target.items():
            if each not in self._owners:
                given.setdefault(member_id, []).append(each)
        if given and self.generation == was:
            self.generation += 1
        for member_id, several in given.items():
            for each in several:
                self._owners[each] = member_id
                self.members[member_id].owned[each] = self.generation
            self.touched.add(member_id)
        for member in self.members.values():
            if member.is_new:
                effects.append(Joined(member.member_id, member.greeting, self.generation))
                effects.append(self._assigned(member, member.owned))
            elif member.member_id in given and member.away_until_ms is None:
                effects.append(self._assigned(member, given[member.member_id]))

    def _assigned(self, member: Member, added: Iterable[GroupPartition]) -> Assigned:
        # Who has released something, and is told this before that has arrived here, is not to think it has it again.
        kept = [each for each in member.owned if member.is_new or each not in member.revoking]
        return Assigned(member.member_id, tuple(sorted(added)), self.generation, tuple(sorted(kept)))

    def _ask_back(self, now_ms: int, effects: list[Effect]) -> None:
        for member in self.members.values():
            if member.away_until_ms is not None:
                continue  # nobody is there to be asked: when it is back, or gone
            deadline_ms = now_ms + self._revoke_timeout_ms
            asked = [
                each for each in member.owned
                if each not in member.revoking and self._target.get(each) != member.member_id
            ]
            member.revoking.update(dict.fromkeys(asked, deadline_ms))
            if member.is_new:
                asked = list(member.revoking)
            if asked:
                left_ms = min(member.revoking[each] for each in asked) - now_ms
                effects.append(Revoking(member.member_id, tuple(sorted(asked)), self.generation, left_ms))
            member.is_new = False

    def _lose(
        self, member: Member, partitions: tuple[GroupPartition, ...], reason: str, effects: list[Effect]
    ) -> None:
        for each in partitions:
            self._drop(member, each)
        if partitions and member.away_until_ms is None and not member.is_new:
            effects.append(Lost(member.member_id, tuple(sorted(partitions)), self.generation, reason))

    def _drop(self, member: Member, each: GroupPartition) -> None:
        del member.owned[each]
        member.revoking.pop(each, None)
        del self._owners[each]
        self.touched.add(member.member_id)

    def _change(self, member_id: str) -> None:
        self._is_stale = True
        self.touched.add(member_id)
