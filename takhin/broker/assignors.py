"""Assignors: which member of a group reads which partition. Pure functions of members, partitions and what was before.

    sticky      balanced, and what a member has it keeps wherever balance allows
    range       topic by topic, neighbouring partitions together: partition n of two topics goes to the same member
    roundrobin  partitions in order, dealt out to one member after the other

All give every partition that some member subscribes to exactly one member, who subscribes to it.
"""

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

DEFAULT_ASSIGNOR = "sticky"


class GroupPartition(NamedTuple):
    """A partition as groups know it. The id: a topic that was deleted and made anew is another one."""

    topic: str
    partition: int
    topic_id: int


Assignment = dict[GroupPartition, str]
# members: topics by member, in the order in which members are served; partitions: in order; previous: who was to have
# what, of partitions and members that may be gone.
Assignor = Callable[
    [Mapping[str, Collection[str]], Sequence[GroupPartition], Mapping[GroupPartition, str]], Assignment
]


def sticky(
    members: Mapping[str, Collection[str]],
    partitions: Sequence[GroupPartition],
    previous: Mapping[GroupPartition, str],
) -> Assignment:
    """Balanced first, then as little moved as possible.

    Where all members subscribe to the same topics, no two members differ by more than one partition, and the number of
    partitions taken from a member that is still there is the least with which that can be had. Where they don't,
    the sum of the squares of what members have is the least possible, and it is reached from what was before by the
    shortest chains of moves found.
    """
    subscribed = frozenset().union(*members.values()) if members else frozenset()
    wanted = [each for each in partitions if each.topic in subscribed]
    if not wanted:
        return {}
    kept: Assignment = {}
    for each in wanted:
        owner = previous.get(each)
        if owner is not None and each.topic in members.get(owner, ()):
            kept[each] = owner
    if len({frozenset(topics) for topics in members.values()}) == 1:
        return _level(list(members), wanted, kept)
    return _Levelling(members, wanted, kept).run()


def _level(members: Sequence[str], wanted: Sequence[GroupPartition], kept: Assignment) -> Assignment:
    """For members that may have any partition."""
    counts = dict.fromkeys(members, 0)
    for owner in kept.values():
        counts[owner] += 1
    low, extra = divmod(len(wanted), len(members))
    # Who has more than the low quota already is the first to be given one more: so the most is kept.
    ranked = sorted(members, key=lambda member: -min(counts[member], low + 1))
    quotas = {member: low + (rank < extra) for rank, member in enumerate(ranked)}
    assignment: Assignment = {}
    for each, owner in kept.items():
        if quotas[owner]:
            quotas[owner] -= 1
            assignment[each] = owner
    takers = iter([member for member in members for _ in range(quotas[member])])
    for each in wanted:
        if each not in assignment:
            assignment[each] = next(takers)
    return assignment


class _Levelling:
    """For members that subscribe to different topics: semi-matching, improved along chains until none improves it.

    A chain takes a partition from one member to the next one, from that one another to the one after, and so on. It
    improves the balance when its end has at least two partitions fewer than its beginning.
    """

    def __init__(self, members: Mapping[str, Collection[str]], wanted: Sequence[GroupPartition], kept: Assignment):
        self._takers: dict[str, list[str]] = {}
        for member, topics in members.items():
            for topic in topics:
                self._takers.setdefault(topic, []).append(member)
        # By member and topic: what it has.
        self._has: dict[str, dict[str, list[GroupPartition]]] = {member: {} for member in members}
        self._counts = dict.fromkeys(members, 0)
        for each, owner in kept.items():
            self._give(each, owner)
        free = [each for each in wanted if each not in kept]
        # Those with the fewest takers first: what is left is for members that can choose.
        for each in sorted(free, key=lambda each: len(self._takers[each.topic])):
            self._give(each, min(self._takers[each.topic], key=self._counts.__getitem__))

    def _give(self, each: GroupPartition, member: str) -> None:
        self._has[member].setdefault(each.topic, []).append(each)
        self._counts[member] += 1

    def run(self) -> Assignment:
        open_members = dict.fromkeys(self._counts)
        while open_members:
            start = max(open_members, key=self._counts.__getitem__)
            came_from, end = self._search(start, open_members)
            if end is not None:
                self._move(came_from, start, end)
            else:
                # What is reached from here can't be improved from here, nor from anybody who has no more than this one.
                for member in came_from:
                    del open_members[member]
        return {
            each: member for member, topics in self._has.items() for several in topics.values() for each in several
        }

    def _search(
        self, start: str, open_members: Mapping[str, None]
    ) -> tuple[dict[str, tuple[str, str] | None], str | None]:
        """Breadth first: how each member was reached (from whom, by which topic), and who ends an improving chain."""
        came_from: dict[str, tuple[str, str] | None] = {start: None}
        seen_topics: set[str] = set()
        queue = deque([start])
        while queue:
            member = queue.popleft()
            for topic, several in self._has[member].items():
                if not several or topic in seen_topics:
                    continue
                seen_topics.add(topic)
                for taker in self._takers[topic]:
                    if taker in open_members and taker not in came_from:
                        came_from[taker] = (member, topic)
                        if self._counts[taker] <= self._counts[start] - 2:
                            return came_from, taker
                        queue.append(taker)
        return came_from, None

    def _move(self, came_from: Mapping[str, tuple[str, str] | None], start: str, end: str) -> None:
        taker = end
        while (step := came_from[taker]) is not None:
            giver, topic = step
            self._has[taker].setdefault(topic, []).append(self._has[giver][topic].pop())
            taker = giver
        self._counts[start] -= 1
        self._counts[end] += 1


def range_(
    members: Mapping[str, Collection[str]],
    partitions: Sequence[GroupPartition],
    previous: Mapping[GroupPartition, str],
) -> Assignment:
    """As Kafka's range assignor: of each topic, the first members get one more where it does not divide."""
    assignment: Assignment = {}
    by_topic: dict[str, list[GroupPartition]] = {}
    for each in partitions:
        by_topic.setdefault(each.topic, []).append(each)
    for topic, several in by_topic.items():
        takers = [member for member, topics in members.items() if topic in topics]
        if not takers:
            continue
        low, extra = divmod(len(several), len(takers))
        rest = iter(several)
        for rank, member in enumerate(takers):
            for _ in range(low + (rank < extra)):
                assignment[next(rest)] = member
    return assignment


def round_robin(
    members: Mapping[str, Collection[str]],
    partitions: Sequence[GroupPartition],
    previous: Mapping[GroupPartition, str],
) -> Assignment:
    """As Kafka's round robin assignor: members that do not subscribe to a partition's topic are passed over."""
    assignment: Assignment = {}
    order = list(members)
    subscribed = frozenset().union(*members.values()) if members else frozenset()
    turn = 0
    for each in partitions:
        if each.topic not in subscribed:
            continue
        while each.topic not in members[order[turn % len(order)]]:
            turn += 1
        assignment[each] = order[turn % len(order)]
        turn += 1
    return assignment


ASSIGNORS: dict[str, Assignor] = {DEFAULT_ASSIGNOR: sticky, "range": range_, "roundrobin": round_robin}
