"""Assignors by their rules: everything is assigned once, to who subscribes to it; balanced; as little moved as can."""

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from takhin.broker.assignors import ASSIGNORS, GroupPartition, range_, round_robin, sticky

Members = dict[str, frozenset[str]]

TOPICS = ("a", "b", "c")
IDS = {topic: number for number, topic in enumerate(TOPICS, 1)}


def partitions_of(**counts: int) -> list[GroupPartition]:
    return [GroupPartition(topic, number, IDS[topic]) for topic, count in counts.items() for number in range(count)]


def counts_of(members: Mapping[str, Collection[str]], assignment: Mapping[GroupPartition, str]) -> dict[str, int]:
    return {member: 0 for member in members} | Counter(assignment.values())


def moved(previous: Mapping[GroupPartition, str], now: Mapping[GroupPartition, str], members: Members) -> int:
    """How many were taken from a member that is still there and might have kept them."""
    return sum(
        each in now and owner in members and each.topic in members[owner] and now[each] != owner
        for each, owner in previous.items())


@st.composite
def previous_of(draw: st.DrawFn, members: Members, partitions: Sequence[GroupPartition]) -> dict[GroupPartition, str]:
    """Anything that may have been: partitions that are gone, members that are gone, subscriptions that were others."""
    owners = st.sampled_from([*members, "gone", None])
    chosen = {each: draw(owners) for each in [*partitions, GroupPartition("c", 99, 9)]}
    return {each: owner for each, owner in chosen.items() if owner is not None}


@st.composite
def cases(draw: st.DrawFn, most_members: int, most_partitions: int, same: bool):
    names = [f"m{number}" for number in range(draw(st.integers(1, most_members)))]
    subsets = st.frozensets(st.sampled_from(TOPICS), min_size=1)
    if same:
        members: Members = dict.fromkeys(names, draw(subsets))
    else:
        members = {name: draw(subsets) for name in names}
    counts = {topic: draw(st.integers(0, most_partitions)) for topic in TOPICS}
    partitions = partitions_of(**counts)
    return members, partitions, draw(previous_of(members, partitions))


def assert_whole(members: Members, partitions: Sequence[GroupPartition], now: Mapping[GroupPartition, str]) -> None:
    wanted = [each for each in partitions if any(each.topic in topics for topics in members.values())]
    assert set(now) == set(wanted)
    assert all(each.topic in members[owner] for each, owner in now.items())


@pytest.mark.parametrize("name", ASSIGNORS)
@given(case=cases(6, 8, same=False))
def test_every_partition_goes_to_one_member_that_subscribes_to_it(name: str, case) -> None:
    assert_whole(case[0], case[1], ASSIGNORS[name](*case))


@pytest.mark.parametrize("name", ASSIGNORS)
def test_no_members_have_nothing(name: str) -> None:
    assert ASSIGNORS[name]({}, partitions_of(a=3), {}) == {}


@given(case=cases(8, 12, same=True))
def test_sticky_is_balanced_to_within_one(case) -> None:
    counts = counts_of(case[0], sticky(*case)).values()
    assert max(counts) - min(counts) <= 1


def least_moved(members: Members, partitions: Sequence[GroupPartition], previous: Mapping[GroupPartition, str]) -> int:
    """By trying every assignment that is balanced to within one."""
    found = []
    wanted = [each for each in partitions if each.topic in next(iter(members.values()))]
    for owners in itertools.product(members, repeat=len(wanted)):
        now = dict(zip(wanted, owners, strict=True))
        counts = counts_of(members, now).values()
        if max(counts) - min(counts) <= 1:
            found.append(moved(previous, now, members))
    return min(found)


@given(case=cases(3, 2, same=True))
def test_sticky_moves_no_more_than_balance_demands(case) -> None:
    members, _, previous = case
    assert moved(previous, sticky(*case), members) == least_moved(*case)


@given(case=cases(8, 12, same=True), joins=st.booleans())
def test_sticky_moves_only_what_one_member_more_or_less_makes_move(case, joins: bool) -> None:
    """From a balanced start. One more: only what the new one gets. One less: only what it had."""
    members, partitions, previous = case
    before = sticky(members, partitions, previous)
    if joins:
        now = sticky(members | {"new": next(iter(members.values()))}, partitions, before)
        assert {owner for each, owner in now.items() if before[each] != owner} <= {"new"}
    elif len(members) > 1:
        gone, *rest = members
        now = sticky({name: members[name] for name in rest}, partitions, before)
        assert {before[each] for each, owner in now.items() if before[each] != owner} <= {gone}


@given(case=cases(8, 12, same=False))
def test_sticky_changes_nothing_when_nothing_changed(case) -> None:
    members, partitions, previous = case
    once = sticky(members, partitions, previous)
    assert sticky(members, partitions, once) == once


def best_squares(members: Members, wanted: Sequence[GroupPartition]) -> int:
    """The least sum of squares of any assignment."""
    takers = [[name for name, topics in members.items() if each.topic in topics] for each in wanted]
    return min(
        sum(count * count for count in Counter(owners).values()) for owners in itertools.product(*takers))


@given(case=cases(4, 2, same=False))
def test_sticky_is_as_balanced_as_subscriptions_allow(case) -> None:
    members, partitions, _ = case
    now = sticky(*case)
    assert sum(count * count for count in counts_of(members, now).values()) == best_squares(members, list(now))


def test_range_keeps_neighbours_together() -> None:
    members = dict.fromkeys(["x", "y", "z"], frozenset({"a", "b"}))
    now = range_(members, partitions_of(a=7, b=2), {})
    assert [now[GroupPartition("a", number, 1)] for number in range(7)] == ["x", "x", "x", "y", "y", "z", "z"]
    assert [now[GroupPartition("b", number, 2)] for number in range(2)] == ["x", "y"]


def test_round_robin_passes_over_who_does_not_subscribe() -> None:
    members = {"x": frozenset({"a", "b"}), "y": frozenset({"b"})}
    now = round_robin(members, partitions_of(a=2, b=3), {})
    assert [now[each] for each in partitions_of(a=2, b=3)] == ["x", "x", "y", "x", "y"]


@given(case=cases(8, 12, same=True))
def test_round_robin_is_balanced_to_within_one(case) -> None:
    counts = counts_of(case[0], round_robin(*case)).values()
    assert max(counts) - min(counts) <= 1
