"""Live groups over a real metadata store: what is told is stored and comes back; who lost something can't commit."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from takhin.broker.assignors import GroupPartition
from takhin.broker.group import Assigned, Description, Effect, Joined, Revoking
from takhin.broker.groups import GroupCoordinator
from takhin.broker.live_groups import Committed
from takhin.broker.metadata import MetadataStore
from takhin.config import GroupSettings, Limits
from takhin.errors import Reason, TakhinError, error
from takhin.log.transaction_offsets import TransactionOffsets
from tests.broker.test_groups import NOW_MS, MemoryPartition, MemoryTopics
from tests.format.make_golden import GOLDEN

SETTINGS = GroupSettings(grace_ms=300, revoke_timeout_ms=200)


class ShapedTopics(MemoryTopics):
    def shape(self, name: str) -> tuple[int, int] | None:
        found = self.partitions.get(name)
        return (found[0].topic_id, len(found)) if found else None


@dataclass
class Stream:
    """A member's stream that notes what it is told."""

    member_id: str = ""
    generation: int = 0
    told: list[Effect] = field(default_factory=list)
    committed: Committed = field(default_factory=dict)
    settled: list[tuple[GroupPartition, int]] = field(default_factory=list)
    fenced: TakhinError | None = None
    on_take: Callable[[Effect], None] = lambda effect: None

    def take(self, effect: Effect, committed: Committed) -> None:
        self.told.append(effect)
        self.generation = effect.generation
        self.committed = committed
        self.on_take(effect)

    def note_commit(self, offsets: Iterable[tuple[GroupPartition, int]]) -> None:
        self.settled += offsets

    def fence(self, refusal: TakhinError) -> None:
        self.fenced = refusal

    @property
    def has(self) -> set[int]:
        assigned = [effect for effect in self.told if isinstance(effect, Assigned)]
        return {each.partition for each in assigned[-1].partitions} if assigned else set()


@dataclass
class Bed:
    path: Path
    store: MetadataStore
    topics: ShapedTopics

    def __post_init__(self) -> None:
        # Not set: a transaction with offsets is being decided.
        self.decided = asyncio.Event()
        self.decided.set()
        self.groups = GroupCoordinator(self.store, self.topics, Limits(), lambda: NOW_MS, self._are_stored, SETTINGS)

    async def _are_stored(self) -> None:
        await self.decided.wait()

    async def create(self, name: str, count: int, end: int = 100) -> int:
        row = await self.store.create_topic(name, count, {}, NOW_MS)
        self.topics.partitions[name] = [MemoryPartition(row.id, number, end) for number in range(count)]
        for partition in self.topics.partitions[name]:
            partition.may_sync.set()
        return row.id

    async def join(self, group: str, *topics: str, member_id: str = "", instance_id: str = "", **how) -> Stream:
        stream = Stream(**how)
        described = Description(frozenset(topics), "sticky", 45_000, instance_id=instance_id)
        stream.member_id, _, stream.generation = await self.groups.live.join(group, described, member_id, stream)
        return stream

    async def commit(self, stream: Stream, partition: int, offset: int) -> None:
        """For topic "t" of group "g", as the member's stream would."""
        await self.groups.commit("g", [("t", partition, offset)], stream.member_id, stream.generation)


def run(path: Path, scenario: Callable[[Bed], Awaitable[None]], topics: ShapedTopics | None = None) -> ShapedTopics:
    """On the database at `path`; topics: those of a run before it."""
    topics = topics or ShapedTopics()

    async def main() -> None:
        def failed(message: str) -> None:
            raise AssertionError(message)

        store = MetadataStore(str(path), failed)
        store.open()
        try:
            bed = Bed(path, store, topics)
            await bed.groups.live.load()
            await scenario(bed)
            await bed.groups.live.stop()
        finally:
            await store.close()

    asyncio.run(main())
    return topics


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def test_a_member_is_told_only_what_is_stored(tmp_path: Path) -> None:
    async def scenario(bed: Bed) -> None:
        await bed.create("t", 2)
        real, stored, stored_when_told = bed.store.store_members, [], []

        async def store_members(*arguments):
            committed = await real(*arguments)
            stored.append(await bed.store.load_members())
            return committed

        bed.store.store_members = store_members  # type: ignore[method-assign]
        stream = await bed.join("g", "t", on_take=lambda effect: stored_when_told.append(len(stored)))
        assert stream.told == []
        await until(lambda: len(stream.told) == 2)
        assert [type(effect) for effect in stream.told] == [Joined, Assigned]
        assert stored_when_told == [1, 1]
        ((group,),) = stored
        (member,) = group.members
        assert (group.group_id, group.generation, member.member_id) == ("g", 1, stream.member_id)
        assert {each.partition: since for each, since in member.owned.items()} == {0: 1, 1: 1}

    run(tmp_path / "meta.db", scenario)


def test_a_member_begins_behind_the_transaction_of_whoever_had_the_partition(tmp_path: Path) -> None:
    """It was admitted, and its offsets are stored only when the partition has gone to somebody else."""

    async def scenario(bed: Bed) -> None:
        topic_id = await bed.create("t", 1)
        first = await bed.join("g", "t")
        await until(lambda: first.has == {0})
        bed.decided.clear()
        bed.groups.live.leave("g", first.member_id, first)
        second = await bed.join("g", "t")
        await asyncio.sleep(0.05)
        assert second.told == []
        await bed.store.store_transactions([TransactionOffsets(1, "g", NOW_MS, ((topic_id, 0, 7),))])
        bed.decided.set()
        await until(lambda: second.has == {0})
        assert second.committed == {(topic_id, 0): 7}

    run(tmp_path / "meta.db", scenario)


def test_a_release_of_what_was_asked_back_before_is_passed_over(tmp_path: Path) -> None:
    """The deadline passed, the partition is the member's again, and it answers what it was asked before it is told."""

    async def scenario(bed: Bed) -> None:
        topic_id = await bed.create("t", 2)
        stream = await bed.join("g", "t")
        await until(lambda: stream.has == {0, 1})
        live, key = bed.groups.live, GroupPartition("t", 0, topic_id)
        live.release("g", stream.member_id, stream, [key], [key])
        group = live.get("g")
        assert group is not None and group.owner(key) == stream.member_id
        with pytest.raises(TakhinError) as refusal:
            live.release("g", stream.member_id, stream, [key], [])
        assert refusal.value.reason is Reason.PARTITION_NOT_REVOKING

    run(tmp_path / "meta.db", scenario)


def test_while_the_disk_is_full_nothing_moves_and_nobody_is_told(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("takhin.broker.live_groups._STORE_AGAIN_S", 0.01)

    async def scenario(bed: Bed) -> None:
        await bed.create("t", 2)
        is_full, tries = True, 0
        real = bed.store.store_members

        async def store_members(*arguments):
            nonlocal tries
            tries += 1
            if is_full:
                raise error(Reason.DISK_FULL, "no room")
            return await real(*arguments)

        bed.store.store_members = store_members  # type: ignore[method-assign]
        stream = await bed.join("g", "t")
        await until(lambda: tries > 3)
        assert stream.told == []
        is_full = False
        await until(lambda: stream.has == {0, 1})

    run(tmp_path / "meta.db", scenario)


def test_members_come_back_in_the_next_run(tmp_path: Path) -> None:
    ids: list[str] = []
    had: list[set[int]] = []

    async def first(bed: Bed) -> None:
        await bed.create("t", 4)
        streams = [await bed.join("g", "t"), await bed.join("g", "t", instance_id="static")]
        await until(lambda: all(len(stream.has) == 2 for stream in streams))
        await bed.commit(streams[0] if 0 in streams[0].has else streams[1], 0, 7)
        ids.extend(stream.member_id for stream in streams)
        had.extend(stream.has for stream in streams)
        bed.groups.live.begin_drain()
        for stream in streams:
            bed.groups.live.cut("g", stream.member_id, stream)

    async def second(bed: Bed) -> None:
        again = await bed.join("g", "t", member_id=ids[0])
        static = await bed.join("g", "t", instance_id="static")
        await until(lambda: again.has and static.has)
        assert again.member_id == ids[0] and static.member_id != ids[1]
        assert [again.has, static.has] == had
        assert 7 in again.committed.values()
        assert not any(isinstance(effect, Revoking) for effect in again.told + static.told)

    async def third(bed: Bed) -> None:
        """Nobody comes: the grace of one passes, the other's session does not."""
        assert bed.groups.has_members("g")
        await until(lambda: len(bed.groups.live.get("g").members) == 1)
        (left,) = bed.groups.live.get("g").members.values()
        assert left.description.instance_id == "static" and len(left.owned) == 4

    path = tmp_path / "meta.db"
    topics = run(path, first)
    run(path, second, topics)
    run(path, third, topics)


async def commit_under_way(bed: Bed, stream: Stream, offset: int) -> "asyncio.Task[None]":
    """The second one of partition 0: it waits for the log's sync, until may_sync is set."""
    (partition,) = bed.topics.partitions["t"]
    partition.may_sync.clear()
    commit = asyncio.ensure_future(bed.commit(stream, 0, offset))
    await until(lambda: partition.syncs == 2)
    return commit


def test_a_commit_under_way_when_the_partition_is_lost_is_fenced(tmp_path: Path) -> None:
    async def scenario(bed: Bed) -> None:
        await bed.create("t", 1)
        (partition,) = bed.topics.partitions["t"]
        stream = await bed.join("g", "t")
        await until(lambda: stream.has)
        await bed.commit(stream, 0, 3)
        commit = await commit_under_way(bed, stream, 50)
        bed.groups.live.leave("g", stream.member_id, stream)
        other = await bed.join("g", "t")
        await until(lambda: other.has)
        assert list(other.committed.values()) == [3]
        partition.may_sync.set()
        with pytest.raises(TakhinError) as refusal:
            await commit
        assert refusal.value.reason is Reason.FENCED_GENERATION
        assert list((await bed.groups.describe("g")).offsets.values()) == [3]

    run(tmp_path / "meta.db", scenario)


def test_a_commit_of_what_was_lost_and_given_again_is_fenced(tmp_path: Path) -> None:
    """The member does not know yet: its commit would overtake where it is to begin."""

    async def scenario(bed: Bed) -> None:
        topic_id = await bed.create("t", 1)
        (partition,) = bed.topics.partitions["t"]
        stream = await bed.join("g", "t")
        await until(lambda: stream.has)
        await bed.commit(stream, 0, 3)
        under_way = await commit_under_way(bed, stream, 50)
        # As when the time to give it back has passed, and then nobody else is there to have it.
        group, key = bed.groups.live.get("g"), GroupPartition("t", 0, topic_id)
        assert group is not None
        bed.decided.clear()
        group._drop(group.members[stream.member_id], key)
        bed.groups.live._changed(bed.groups.live._groups["g"])
        await until(lambda: group.owner(key))
        with pytest.raises(TakhinError) as refusal:
            await bed.commit(stream, 0, 60)
        assert refusal.value.reason is Reason.FENCED_GENERATION
        bed.decided.set()
        await until(lambda: len(stream.told) == 3)
        assert stream.committed == {(topic_id, 0): 3}
        partition.may_sync.set()
        with pytest.raises(TakhinError) as refusal:
            await under_way
        assert refusal.value.reason is Reason.FENCED_GENERATION
        await bed.commit(stream, 0, 4)

    run(tmp_path / "meta.db", scenario)


def test_a_commit_by_a_stranger_under_way_when_a_member_joins_is_refused(tmp_path: Path) -> None:
    async def scenario(bed: Bed) -> None:
        await bed.create("t", 1)
        (partition,) = bed.topics.partitions["t"]
        partition.may_sync.clear()
        commit = asyncio.ensure_future(bed.groups.commit("g", [("t", 0, 50)]))
        await until(lambda: partition.syncs == 1)
        stream = await bed.join("g", "t")
        await until(lambda: stream.has)
        partition.may_sync.set()
        with pytest.raises(TakhinError) as refusal:
            await commit
        assert refusal.value.reason is Reason.GROUP_HAS_MEMBERS and stream.committed == {}

    run(tmp_path / "meta.db", scenario)


def test_a_deleted_topic_takes_no_group_with_members_along(tmp_path: Path) -> None:
    async def scenario(bed: Bed) -> None:
        topic_id = await bed.create("t", 1)
        stream = await bed.join("g", "t")
        await until(lambda: stream.has)
        await bed.commit(stream, 0, 3)
        await bed.store.delete_topic(topic_id)
        del bed.topics.partitions["t"]
        bed.groups.live.topic_changed("t")
        await until(lambda: bed.groups.assigned("g") == [])
        assert [each.group_id for each in await bed.groups.list_groups()] == ["g"]
        bed.groups.live.leave("g", stream.member_id, stream)
        await until(lambda: bed.groups.live.with_members() == [])
        async with asyncio.timeout(20):
            while await bed.groups.list_groups():
                await asyncio.sleep(0.01)

    run(tmp_path / "meta.db", scenario)


def test_the_generation_goes_on_where_a_group_stood(tmp_path: Path) -> None:
    async def scenario(bed: Bed) -> None:
        await bed.create("t", 1)
        for expected in 1, 2, 3:
            stream = await bed.join("g", "t")
            await until(lambda: stream.has)
            assert stream.told[0] == Joined(stream.member_id, 1, expected)
            await bed.commit(stream, 0, expected)
            bed.groups.live.leave("g", stream.member_id, stream)
            await until(lambda: bed.groups.live._groups == {})

    run(tmp_path / "meta.db", scenario)


def test_a_database_from_before_groups_had_members(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "metadata_v1.db", tmp_path / "meta.db")

    async def scenario(bed: Bed) -> None:
        assert await bed.store.load_members() == []
        await bed.create("new-topic", 1)
        stream = await bed.join("new-group", "new-topic")
        await until(lambda: stream.has)
        ((group,)) = await bed.store.load_members()
        assert list(group.members[0].owned) == [GroupPartition("new-topic", 0, bed.topics.shape("new-topic")[0])]

    run(tmp_path / "meta.db", scenario)


def test_a_group_that_nobody_joined_in_the_end_is_gone(tmp_path: Path) -> None:
    async def scenario(bed: Bed) -> None:
        await bed.create("t", 1)
        live, store = bed.groups.live, bed.store
        # Cancelled before and after the group is made; the topic goes meanwhile.
        for steps in range(1, 4):
            joining = asyncio.ensure_future(bed.join(f"cancelled {steps}", "t"))
            for _ in range(steps):
                await asyncio.sleep(0)
            joining.cancel()
            await asyncio.gather(joining, return_exceptions=True)
        # Of two at once the one that stays keeps it; and so does who comes while it is removed.
        first, second = (asyncio.ensure_future(bed.join("kept", "t")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        leaving = asyncio.ensure_future(bed.join("again", "t"))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.sleep(0)
        await asyncio.gather(second, bed.join("again", "t"))
        # One with commits stays.
        await bed.groups.commit("committed", [("t", 0, 5)])
        passing = asyncio.ensure_future(bed.join("committed", "t"))
        await asyncio.sleep(0)
        passing.cancel()
        refused = asyncio.ensure_future(bed.join("refused", "t"))
        await asyncio.sleep(0)
        kept_topic = bed.topics.partitions.pop("t")
        with pytest.raises(TakhinError):
            await refused
        bed.topics.partitions["t"] = kept_topic
        await until(lambda: not live._forgetting)
        assert await store.list_groups() == ["again", "committed", "kept"]
        # As a broker that is killed leaves it.
        await store.ensure_group("left", 100)

    async def scenario_after(bed: Bed) -> None:
        assert await bed.store.list_groups() == ["again", "committed", "kept"]

    topics = run(tmp_path / "meta.db", scenario)
    run(tmp_path / "meta.db", scenario_after, topics)


def test_room_is_asked_for_before_a_group_is_made(tmp_path: Path) -> None:
    async def scenario(bed: Bed) -> None:
        await bed.create("t", 1)
        bed.groups.live._limits = Limits(members=1)
        await bed.join("g", "t")
        writes = []
        plain, bed.store.ensure_group = bed.store.ensure_group, lambda *given: writes.append(given) or plain(*given)
        with pytest.raises(TakhinError) as refusal:
            await bed.join("other", "t")
        assert refusal.value.reason is Reason.MEMBER_LIMIT and not writes

    run(tmp_path / "meta.db", scenario)


def test_the_brokers_own_commit_is_no_word_of_the_member(tmp_path: Path) -> None:
    async def scenario(bed: Bed) -> None:
        topic_id = await bed.create("t", 1)
        stream = await bed.join("g", "t")
        await until(lambda: stream.has)
        await bed.groups.commit("g", [("t", 0, 1)], stream.member_id, stream.generation, was_asked=False)
        assert stream.settled == []
        await bed.commit(stream, 0, 2)
        assert stream.settled == [(GroupPartition("t", 0, topic_id), 2)]

    run(tmp_path / "meta.db", scenario)
