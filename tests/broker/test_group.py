"""The state machine of a group: by example, and by a model in which members do whatever members may do."""

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from takhin.broker.assignors import GroupPartition
from takhin.broker.group import Assigned, Description, Effect, Group, Joined, Lost, Member, Revoking
from takhin.errors import Reason, TakhinError

GRACE_MS, REVOKE_MS, SESSION_MS = 100, 50, 1000
A = [GroupPartition("a", number, 1) for number in range(8)]


def description(*topics: str, instance_id: str = "", assignor: str = "sticky") -> Description:
    return Description(frozenset(topics or ("a",)), assignor, SESSION_MS, instance_id=instance_id)


def group_of(partitions: int, *members: str) -> Group:
    """A settled group; everything that was to be told is told."""
    group = Group("g", GRACE_MS, REVOKE_MS)
    group.set_topics({"a": (1, partitions)})
    for name in members:
        group.join(name, description())
    group.settle(0)
    return group


def of_type(effects: list[Effect], kind: type) -> dict[str, Effect]:
    return {effect.member_id: effect for effect in effects if isinstance(effect, kind)}


def test_the_first_member_gets_everything() -> None:
    group = Group("g", GRACE_MS, REVOKE_MS)
    assert group.state == "Empty" and group.generation == 0
    group.set_topics({"a": (1, 2)})
    group.join("x", description())
    assert group.state == "PreparingRebalance"
    both = tuple(A[:2])
    assert group.settle(0) == [Joined("x", 1, 1), Assigned("x", both, 1, both)]
    assert group.state == "Stable" and group.settle(0) == []


def test_a_second_member_gets_what_the_first_one_releases() -> None:
    group = group_of(4, "x")
    group.join("y", description())
    effects = group.settle(1000)
    assert effects == [
        Joined("y", 1, 2), Assigned("y", (), 2, ()), Revoking("x", tuple(A[2:4]), 2, REVOKE_MS)]
    assert group.state == "PreparingRebalance"
    group.release("x", [A[2]])
    assert group.settle(1001) == [Assigned("y", (A[2],), 3, (A[2],))]
    group.release("x", [A[3]])
    assert group.settle(1002) == [Assigned("y", (A[3],), 4, tuple(A[2:4]))]
    assert group.state == "Stable"


def test_what_is_not_released_in_time_is_lost() -> None:
    group = group_of(2, "x")
    group.join("y", description())
    group.settle(1000)
    assert group.next_deadline_ms() == 1000 + REVOKE_MS
    assert group.settle(1000 + REVOKE_MS - 1) == []
    assert group.settle(1000 + REVOKE_MS) == [
        Lost("x", (A[1],), 2, "REVOKE_TIMEOUT"), Assigned("y", (A[1],), 3, (A[1],))]
    assert group.next_deadline_ms() is None


def test_only_what_is_asked_back_can_be_released() -> None:
    group = group_of(4, "x")
    group.join("y", description())
    group.settle(0)
    with pytest.raises(TakhinError) as refusal:
        group.release("x", [A[3], A[0]])
    assert refusal.value.reason is Reason.PARTITION_NOT_REVOKING
    assert group.owner(A[3]) == "x", "nothing was released"


def test_who_is_away_keeps_its_partitions_until_the_grace_is_over() -> None:
    group = group_of(2, "x", "y")
    group.cut("x", 1000)
    group.join("z", description())
    effects = group.settle(1000)
    assert not of_type(effects, Revoking) and group.owner(A[0]) == "x" and group.owner(A[1]) == "y"
    assert group.settle(1000 + GRACE_MS - 1) == []
    (given,) = group.settle(1000 + GRACE_MS)
    assert given == Assigned("z", (A[0],), 2, (A[0],))
    assert set(group.members) == {"y", "z"}


def test_who_comes_back_has_everything_again_and_is_asked_then() -> None:
    group = group_of(4, "x")
    group.cut("x", 1000)
    group.join("y", description())
    assert not of_type(group.settle(1000), Revoking)
    group.come_back(group.members["x"], "x", description())
    assert group.settle(1010) == [
        Joined("x", 2, 2), Assigned("x", tuple(A[:4]), 2, tuple(A[:4])), Revoking("x", tuple(A[2:4]), 2, REVOKE_MS)]


def test_who_comes_back_for_other_topics_has_nothing_more_of_the_former_ones() -> None:
    """Nor is it asked for them: whoever knows a member's id need not be allowed to read what the member read."""
    group = group_of(4, "x")
    group.set_topics({"a": (1, 4), "b": (2, 1)})
    group.cut("x", 1000)
    group.come_back(group.members["x"], "x", description("b"))
    effects = group.settle(1010)
    assert not of_type(effects, Revoking)
    assert of_type(effects, Assigned)["x"].added == (GroupPartition("b", 0, 2),)
    assert group.owner(A[0]) is None
    group.join("y", description("a"))
    assert of_type(group.settle(1020), Assigned)["y"].added == tuple(A[:4])


def test_what_was_asked_back_before_a_cut_is_asked_again_with_the_time_that_is_left() -> None:
    group = group_of(2, "x")
    group.join("y", description())
    group.settle(1000)
    group.cut("x", 1010)
    group.come_back(group.members["x"], "x", description())
    assert group.settle(1020)[-1] == Revoking("x", (A[1],), 2, REVOKE_MS - 20)


def test_a_static_member_is_kept_for_its_session_and_gets_a_new_id() -> None:
    group = group_of(2)
    group.join("x-1", description(instance_id="x"))
    group.settle(0)
    group.cut("x-1", 1000)
    assert group.settle(1000 + GRACE_MS) == [] and group.next_deadline_ms() == 1000 + SESSION_MS
    known = group.known("", "x")
    assert known is not None
    group.come_back(known, "x-2", description(instance_id="x"))
    assert group.settle(1500) == [Joined("x-2", 2, 2), Assigned("x-2", tuple(A[:2]), 2, tuple(A[:2]))]
    assert list(group.members) == ["x-2"]
    with pytest.raises(TakhinError) as refusal:
        group.check_commit("x-1", 1, [A[0]])
    assert refusal.value.reason is Reason.FENCED_GENERATION
    group.check_commit("x-2", 2, [A[0]])


def test_a_commit_is_good_from_the_generation_on_in_which_it_was_given() -> None:
    group = group_of(4, "x")
    group.join("y", description())
    group.settle(0)
    group.release("x", [A[2], A[3]])
    group.settle(0)
    assert group.generation == 3
    group.check_commit("x", 1, [A[0], A[1]])
    group.check_commit("x", 3, [A[0]])
    group.check_commit("y", 3, [A[2]])
    for member, generation, partition in [
        ("x", 1, A[2]), ("x", 3, A[2]), ("x", 4, A[0]), ("x", 0, A[0]), ("y", 2, A[2]), ("z", 3, A[0]),
    ]:
        with pytest.raises(TakhinError) as refusal:
            group.check_commit(member, generation, [partition])
        assert refusal.value.reason is Reason.FENCED_GENERATION and refusal.value.metadata["generation"] == "3"


def test_new_partitions_and_topics_made_anew_reach_members() -> None:
    group = group_of(1, "x")
    group.set_topics({"a": (1, 2)})
    assert group.settle(0) == [Assigned("x", (A[1],), 2, tuple(A[:2]))]
    group.set_topics({})
    assert group.settle(0) == [Lost("x", tuple(A[:2]), 2, "TOPIC_DELETED")]
    assert group.state == "Stable"
    group.set_topics({"a": (7, 1)})
    again = GroupPartition("a", 0, 7)
    assert group.settle(0) == [Assigned("x", (again,), 4, (again,))]


def test_a_topic_deleted_and_made_anew_at_once() -> None:
    group = group_of(1, "x")
    group.set_topics({"a": (7, 1)})
    again = GroupPartition("a", 0, 7)
    assert group.settle(0) == [Lost("x", (A[0],), 1, "TOPIC_DELETED"), Assigned("x", (again,), 2, (again,))]


def test_all_members_name_the_same_assignor() -> None:
    group = group_of(1, "x")
    with pytest.raises(TakhinError) as refusal:
        group.join("y", description(assignor="range"))
    assert refusal.value.reason is Reason.INCONSISTENT_ASSIGNOR
    # The only one may change it.
    group.cut("x", 0)
    group.come_back(group.members["x"], "x", description(assignor="range"))
    group.settle(0)
    group.join("y", description(assignor="range"))


def test_a_restored_group_is_as_it_was_with_everybody_away() -> None:
    group = Group("g", GRACE_MS, REVOKE_MS)
    gone = GroupPartition("a", 0, 99)
    group.restore(5, [
        Member("x", description(), {A[0]: 3, A[1]: 5}, away_until_ms=100), Member("y", description(), {gone: 5},
                                                                                 away_until_ms=100)])
    group.set_topics({"a": (1, 3)})
    assert group.settle(0) == [], "nobody is there to be told"
    assert group.owner(A[0]) == "x" and group.owner(gone) is None
    group.come_back(group.members["x"], "x", description())
    joined, assigned = group.settle(10)
    assert isinstance(assigned, Assigned) and set(assigned.partitions) >= {A[0], A[1]}
    assert group.generation > 5
    group.check_commit("x", 5, [A[0], A[1]])


@dataclass
class Client:
    """What a member's client knows: it lags behind what the group decided, and may be one that is out already."""

    member_id: str
    topics: frozenset[str]
    inbox: deque[tuple[Effect, dict[GroupPartition, int]]] = field(default_factory=deque)
    # Of what it has, as far as it was told: the next offset to read.
    positions: dict[GroupPartition, int] = field(default_factory=dict)
    revoking: set[GroupPartition] = field(default_factory=set)
    generation: int = 0
    # The last generation that its stream was told of, whether it has heard that or not.
    told: int = 0
    # What it committed on its stream while there was something to hear: that may overtake where it is to begin.
    overtaken: dict[GroupPartition, int] = field(default_factory=dict)
    # Not cut, nor out.
    has_stream: bool = True


class GroupModel(RuleBasedStateMachine):
    """Members join, leave, die, come back, lag, commit and are fenced, topics come, grow and go, in any order."""

    clients = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        self.group = Group("g", GRACE_MS, REVOKE_MS)
        self.now_ms = 0
        self.topics: dict[str, tuple[int, int]] = {}
        self.ids = 0
        self.logs: dict[GroupPartition, int] = {}
        self.committed: dict[GroupPartition, int] = {}
        self.delivered: dict[GroupPartition, set[int]] = {}
        # Who had what in which generation.
        self.owners: dict[tuple[GroupPartition, int], str] = {}
        self.present: dict[str, Client] = {}
        self.everybody: list[Client] = []

    def set_topic(self, name: str, topic_id: int, count: int) -> None:
        self.topics[name] = (topic_id, count)
        for number in range(count):
            each = GroupPartition(name, number, topic_id)
            self.logs.setdefault(each, 0)
            self.delivered.setdefault(each, set())
        self.topics_changed()

    def topics_changed(self) -> None:
        self.group.set_topics({
            name: shape for name, shape in self.topics.items() if name in self.group.subscribed_topics})

    @initialize(target=clients)
    def begin(self):
        self.set_topic("a", 1, 3)
        self.set_topic("b", 2, 2)
        for each in self.logs:
            self.logs[each] = 3
        members = [self.join(topics) for topics in [("a",), ("a", "b")]]
        self.everybody_works()
        return multiple(*members)

    # Events of the group

    @rule(target=clients, topics=st.sampled_from([("a",), ("a",), ("a", "b"), ("b",)]))
    def join(self, topics: tuple[str, ...]) -> Client:
        self.ids += 1
        client = Client(f"m{self.ids}", frozenset(topics))
        self.group.join(client.member_id, description(*topics))
        self.present[client.member_id] = client
        self.everybody.append(client)
        self.topics_changed()
        return client

    @rule(client=clients)
    def leave(self, client: Client) -> None:
        """Commits what it has read, as clients do, and leaves."""
        if client.has_stream:
            self.commit(client, by_stream=True)
            self.out(client)

    @rule(client=clients)
    def die(self, client: Client) -> None:
        """Its session is over: it is out, and does not know."""
        if client.has_stream:
            self.out(client)

    def out(self, client: Client) -> None:
        self.group.leave(client.member_id)
        client.has_stream = False
        del self.present[client.member_id]
        self.topics_changed()

    @rule(client=clients)
    def cut(self, client: Client) -> None:
        if client.has_stream:
            self.group.cut(client.member_id, self.now_ms)
            client.has_stream = False
            client.inbox.clear()
            del self.present[client.member_id]

    @rule(target=clients, client=consumes(clients))
    def come_back(self, client: Client) -> Client:
        """With its id, in time or too late; also beside its old stream, which is fenced then."""
        again = Client(client.member_id, client.topics)
        member = self.group.known(client.member_id, "")
        if member is None:
            self.ids += 1
            again.member_id = f"m{self.ids}"
            self.group.join(again.member_id, description(*client.topics))
        else:
            self.group.come_back(member, member.member_id, description(*client.topics))
            again.told = self.group.generation
            # It is the same process: what it had read before, it commits no more, as it reads that again.
            client.has_stream = False
            client.positions.clear()
        self.present[again.member_id] = again
        self.everybody.append(again)
        self.topics_changed()
        return again

    @rule(client=clients, some=st.booleans())
    def release(self, client: Client, some: bool) -> None:
        if client.has_stream and client.revoking:
            self.commit(client, by_stream=True)
            released = sorted(client.revoking)[: 1 if some else None]
            # What it was told may be no more: the deadline has passed, and that it lost it is on its way.
            member = self.group.members[client.member_id]
            self.group.release(client.member_id, [each for each in released if each in member.revoking])
            for each in released:
                client.revoking.discard(each)
                client.positions.pop(each, None)

    @rule(ms=st.sampled_from([1, REVOKE_MS // 2, REVOKE_MS, GRACE_MS]))
    def time_passes(self, ms: int) -> None:
        self.now_ms += ms
        self.settle()

    @rule()
    def settle(self) -> None:
        stores = dict(self.committed)
        for effect in self.group.settle(self.now_ms):
            client = self.present.get(effect.member_id)
            assert client is not None, "who is away is told nothing"
            client.inbox.append((effect, stores))
            client.told = effect.generation
        self.topics_changed()
        for each, owner in self.group._owners.items():
            assert self.owners.setdefault((each, self.group.generation), owner) == owner

    @rule(name=st.sampled_from(["a", "b"]), more=st.integers(1, 2))
    def grow(self, name: str, more: int) -> None:
        if name in self.topics and self.topics[name][1] < 6:
            topic_id, count = self.topics[name]
            self.set_topic(name, topic_id, count + more)

    @rule()
    def delete_or_make_again(self) -> None:
        if "b" in self.topics:
            topic_id, _ = self.topics.pop("b")
            for table in self.logs, self.committed, self.delivered:
                for each in [each for each in table if each.topic_id == topic_id]:
                    del table[each]  # type: ignore[attr-defined]
            self.topics_changed()
        else:
            self.ids += 1
            self.set_topic("b", 100 + self.ids, 2)

    # What clients do

    @rule(client=clients)
    def hear(self, client: Client) -> None:
        if not client.inbox:
            return
        effect, stores = client.inbox.popleft()
        client.generation = effect.generation
        if isinstance(effect, Assigned):
            assert set(effect.added) <= set(effect.partitions)
            client.positions |= {each: stores.get(each, 0) for each in effect.added}
            assert set(client.positions) - client.revoking == set(effect.partitions)
        elif isinstance(effect, Revoking):
            assert set(effect.partitions) <= set(client.positions)
            client.revoking |= set(effect.partitions)
        elif isinstance(effect, Lost):
            for each in effect.partitions:
                client.revoking.discard(each)
                client.positions.pop(each, None)

    @rule(count=st.integers(1, 3), number=st.integers(0, 20))
    def produce(self, count: int, number: int) -> None:
        if self.logs:
            self.logs[sorted(self.logs)[number % len(self.logs)]] += count

    @rule(client=clients)
    def read(self, client: Client) -> None:
        """One record of each partition that it thinks it has; also when it is one that is out."""
        for each, position in client.positions.items():
            if each not in client.revoking and position < self.logs.get(each, 0):
                self.delivered[each].add(position)
                client.positions[each] = position + 1

    @rule()
    def everybody_works(self) -> None:
        """Who has a stream hears all there is to hear, and reads a little."""
        self.settle()
        for client in list(self.present.values()):
            while client.inbox:
                self.hear(client)
            self.read(client)

    @rule()
    def everybody_commits(self) -> None:
        """Those too who are out, or have lost what they think they have."""
        for client in self.everybody:
            self.commit(client, by_stream=client.has_stream)

    @rule(client=clients, by_stream=st.booleans())
    def commit(self, client: Client, by_stream: bool) -> None:
        """Everything it has read: on its stream (where it has one), or by CommitOffset with the generation it knows."""
        for each, position in client.positions.items():
            if each not in self.logs:
                continue
            owner = self.group.owner(each)
            try:
                self.group.check_commit(client.member_id, client.told if by_stream else client.generation, [each])
            except TakhinError as refusal:
                assert refusal.reason is Reason.FENCED_GENERATION
                # It may have lost it and been given it again, and not have heard of it yet.
                assert not client.has_stream or client.inbox or owner != client.member_id, "its own"
                continue
            assert owner == client.member_id
            if by_stream and client.inbox:
                client.overtaken[each] = position
            elif client is self.present.get(client.member_id):
                # Without any check of the store's: who has it began where the last one stood.
                assert self.committed.get(each, 0) <= max(position, client.overtaken.get(each, 0))
            self.committed[each] = max(self.committed.get(each, 0), position)

    # What always holds

    @invariant()
    def nobody_has_what_is_not_there_for_it(self) -> None:
        for member in self.group.members.values():
            assert set(member.revoking) <= set(member.owned)
            for each, since in member.owned.items():
                assert self.group.owner(each) == member.member_id and since <= self.group.generation
        owned = [each for member in self.group.members.values() for each in member.owned]
        assert len(owned) == len(set(owned)) == len(self.group._owners)

    @invariant()
    def what_is_committed_was_delivered(self) -> None:
        for each, offset in self.committed.items():
            assert self.delivered[each] >= set(range(offset))

    @precondition(lambda self: self.group.members)
    @rule()
    def in_the_end_all_is_delivered(self) -> None:
        """Whoever is there does its part, and time passes: then there is nothing left to move, and nothing unread."""
        for _ in range(4):
            self.time_passes(SESSION_MS)
            for client in list(self.present.values()):
                while client.inbox:
                    self.hear(client)
                self.release(client, some=False)
            self.settle()
            for client in list(self.present.values()):
                while client.inbox:
                    self.hear(client)
        assert self.group.state == ("Stable" if self.group.members else "Empty")
        for client in list(self.present.values()):
            for _ in range(max(self.logs.values(), default=0)):
                self.read(client)
            self.commit(client, by_stream=True)
        for each, end in self.logs.items():
            if each.topic in self.group.subscribed_topics:
                assert self.delivered[each] == set(range(end)) and self.committed.get(each, 0) == end


TestGroupModel = GroupModel.TestCase
TestGroupModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
