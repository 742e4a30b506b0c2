"""Resets beside members, and what a topic's deletion does to one that is under way."""

import asyncio
from pathlib import Path

import pytest

from takhin.broker.broker import Broker
from takhin.broker.group_offsets import GroupPosition
from takhin.broker.offset_reset import ResetDone, ResetTo, Target
from takhin.errors import Reason, TakhinError
from tests.broker.test_produce_paths import produce, run, running, topic_of

LATEST = ResetTo(Target.LATEST)


async def refused(reason: Reason, work) -> TakhinError:
    with pytest.raises(TakhinError) as caught:
        await work
    assert caught.value.reason is reason, caught.value
    return caught.value


def join(broker: Broker, monkeypatch: pytest.MonkeyPatch, *assigned: tuple[str, int]) -> None:
    """The group "g" has members from now on, with these partitions."""
    monkeypatch.setattr(broker.groups, "has_members", lambda group_id: group_id == "g")
    monkeypatch.setattr(broker.groups, "assigned", lambda group_id: list(assigned) if group_id == "g" else [])


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_group_with_members_is_not_reset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry_run: bool) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            await topic_of(broker)
            await produce(broker, b"v")
            await broker.groups.commit("g", [("t", 0, 0)])
            join(broker, monkeypatch)
            caught = await refused(
                Reason.GROUP_HAS_MEMBERS, broker.offset_resets.reset("g", [("t", 0)], [], LATEST, dry_run=dry_run))
            assert caught.metadata == {"group_id": "g"}
            await broker.offset_resets.reset("other", [("t", 0)], [], LATEST, dry_run=dry_run)
            assert [each.committed_offset for each in await broker.group_offsets.fetch("g", [])] == [0]

    run(scenario())


def test_a_member_that_joins_while_the_log_is_made_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            (partition,) = await topic_of(broker)
            await produce(broker, b"v")
            reset = asyncio.create_task(broker.offset_resets.reset("g", [("t", 0)], [], LATEST, dry_run=False))
            while not partition.syncing and not reset.done():
                await asyncio.sleep(0)
            assert not reset.done()
            join(broker, monkeypatch)
            await refused(Reason.GROUP_HAS_MEMBERS, reset)
            assert await broker.groups.list_groups() == []

    run(scenario())


def test_without_names_what_is_assigned_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            await topic_of(broker, "a", 3)
            join(broker, monkeypatch, ("a", 2), ("a", 1), ("gone", 0))
            first, second = await broker.group_offsets.fetch("g", [])
            assert first == GroupPosition("a", 1, None, 0, 0, 0)
            assert (second.partition, second.committed_offset) == (2, None)
            await broker.groups.commit("g", [("a", 0, 0), ("a", 2, 0)])
            positions = await broker.group_offsets.fetch("g", [])
            assert [(each.partition, each.committed_offset) for each in positions] == [(0, 0), (1, None), (2, 0)]

    run(scenario())


@pytest.mark.parametrize("recreated", [False, True])
def test_a_topic_that_is_deleted_before_the_reset_is_stored(tmp_path: Path, recreated: bool) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            kept, (partition,) = await topic_of(broker, "kept", 2), await topic_of(broker, "doomed")
            await produce(broker, b"v", topic="doomed")
            await broker.groups.commit("g", [("kept", 0, 0)])
            reset = asyncio.create_task(
                broker.offset_resets.reset("g", [("kept", 1), ("doomed", 0)], [], LATEST, dry_run=False))
            while not partition.syncing and not reset.done():
                await asyncio.sleep(0)
            await broker.topics.delete("doomed")
            if recreated:
                await topic_of(broker, "doomed")
            await refused(Reason.TOPIC_NOT_FOUND, reset)
            assert await broker._metadata.group_offsets("g") == {(kept[0].topic_id, 0): 0}

    run(scenario())


def test_a_shift_is_from_what_is_committed_when_it_is_stored(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            await topic_of(broker)
            for _ in range(10):
                await produce(broker, b"v", acks=-1)
            await broker.groups.commit("g", [("t", 0, 2)])
            done, _ = await asyncio.gather(
                broker.offset_resets.reset("g", [("t", 0)], [], ResetTo(Target.SHIFT, 3), dry_run=False),
                broker.groups.commit("g", [("t", 0, 5)]),
                return_exceptions=True,
            )
            (position,) = await broker.group_offsets.fetch("g", [])
            # Whichever came first.
            assert (done, position.committed_offset) in (
                ([ResetDone("t", 0, 2, 5)], 5), ([ResetDone("t", 0, 5, 8)], 8))

    run(scenario())
