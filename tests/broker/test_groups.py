"""The group coordinator over a real metadata store and partitions kept in memory."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from takhin.broker.groups import GroupCoordinator, GroupDescription, GroupSummary
from takhin.broker.metadata import MetadataStore
from takhin.config import Limits
from takhin.errors import Reason, TakhinError, error

NOW_MS = 1_700_000_000_000


@dataclass
class MemoryPartition:
    topic_id: int
    partition: int
    written_offset: int
    log_start_offset: int = 0
    durable_offset: int = 0
    syncs: int = 0
    may_sync: asyncio.Event = field(default_factory=asyncio.Event)
    sync_failure: TakhinError | None = None

    async def make_durable(self, offset: int) -> None:
        assert 0 <= offset <= self.written_offset
        self.syncs += 1
        await self.may_sync.wait()
        if self.sync_failure is not None:
            raise self.sync_failure
        self.durable_offset = max(self.durable_offset, offset)


class MemoryTopics:
    def __init__(self) -> None:
        self.partitions: dict[str, list[MemoryPartition]] = {}

    def partition(self, topic_name: str, partition: int) -> MemoryPartition:
        if topic_name not in self.partitions:
            raise error(Reason.TOPIC_NOT_FOUND, f"there is no topic {topic_name!r}", topic=topic_name)
        if partition < 0:
            raise error(Reason.INVALID_PARTITION, f"partition {partition} is negative", partition=partition)
        if partition >= len(self.partitions[topic_name]):
            raise error(Reason.PARTITION_NOT_FOUND, f"there is no partition {partition}", partition=partition)
        return self.partitions[topic_name][partition]


@dataclass
class Broker:
    store: MetadataStore
    topics: MemoryTopics
    groups: GroupCoordinator

    async def create(self, name: str, *ends: int) -> int:
        """A topic whose partitions end at `ends`; its id."""
        row = await self.store.create_topic(name, len(ends), {}, NOW_MS)
        self.topics.partitions[name] = [MemoryPartition(row.id, i, end) for i, end in enumerate(ends)]
        for partition in self.topics.partitions[name]:
            partition.may_sync.set()
        return row.id

    async def committed(self, group_id: str) -> dict[tuple[int, int], int]:
        return dict((await self.groups.describe(group_id)).offsets)


async def nothing() -> None:
    """No transaction is under way."""


def run(tmp_path: Path, scenario: Callable[[Broker], Awaitable[None]], limits: Limits | None = None) -> None:
    def failed(message: str) -> None:
        raise AssertionError(message)

    async def main() -> None:
        store = MetadataStore(str(tmp_path / "meta.db"), failed)
        store.open()
        try:
            topics = MemoryTopics()
            groups = GroupCoordinator(store, topics, limits or Limits(), lambda: NOW_MS, nothing)
            await scenario(Broker(store, topics, groups))
        finally:
            await store.close()

    asyncio.run(main())


async def refused(reason: Reason, operation: Awaitable[object]) -> TakhinError:
    with pytest.raises(TakhinError) as caught:
        await operation
    assert caught.value.reason is reason, caught.value
    return caught.value


def test_commit_list_describe_delete(tmp_path: Path) -> None:
    async def scenario(broker: Broker) -> None:
        orders = await broker.create("orders", 10, 20)
        assert await broker.groups.list_groups() == []
        await broker.groups.commit("readers", [("orders", 0, 4), ("orders", 1, 20)])
        await broker.groups.commit("readers", [("orders", 0, 4)])  # the same once more
        await broker.groups.commit("others", [("orders", 0, 0)])
        assert await broker.groups.list_groups() == [GroupSummary("others"), GroupSummary("readers")]
        summary = (await broker.groups.list_groups())[1]
        assert (summary.state, summary.protocol_type, summary.member_count) == ("Empty", "consumer", 0)
        description = await broker.groups.describe("readers")
        assert description == GroupDescription("readers", {(orders, 0): 4, (orders, 1): 20})
        assert (description.state, description.protocol_type) == ("Empty", "consumer")
        await broker.groups.delete("readers")
        assert await broker.groups.list_groups() == [GroupSummary("others")]
        for operation in (broker.groups.describe("readers"), broker.groups.delete("readers")):
            caught = await refused(Reason.GROUP_NOT_FOUND, operation)
            assert caught.metadata == {"group_id": "readers"}

    run(tmp_path, scenario)


@pytest.mark.parametrize("group_id", ["g", "x" * 249, "Ω" * 249, "with space/and:punctuation", "\U0001f600"])
def test_group_ids(tmp_path: Path, group_id: str) -> None:
    async def scenario(broker: Broker) -> None:
        await broker.create("orders", 10)
        await broker.groups.commit(group_id, [("orders", 0, 1)])
        assert [group.group_id for group in await broker.groups.list_groups()] == [group_id]
        assert len(await broker.committed(group_id)) == 1
        await broker.groups.delete(group_id)

    run(tmp_path, scenario)


@pytest.mark.parametrize("group_id", ["", "x" * 250, "tab\t", "nul\x00", "line\n", "\x7f", "\ud800", "\u200b"])
def test_bad_group_ids(tmp_path: Path, group_id: str) -> None:
    async def scenario(broker: Broker) -> None:
        await broker.create("orders", 10)
        for operation in (
            broker.groups.commit(group_id, [("orders", 0, 1)]),
            broker.groups.describe(group_id),
            broker.groups.delete(group_id),
        ):
            caught = await refused(Reason.INVALID_GROUP_ID, operation)
            assert "1 to 249 printable characters" in caught.message
            assert caught.message.isprintable() and len(caught.message) < 300
        assert await broker.groups.list_groups() == []

    run(tmp_path, scenario)


def test_nothing_to_commit(tmp_path: Path) -> None:
    async def scenario(broker: Broker) -> None:
        await refused(Reason.MALFORMED_REQUEST, broker.groups.commit("g", []))
        assert await broker.groups.list_groups() == []

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (("nowhere", 0, 1), Reason.TOPIC_NOT_FOUND),
        (("orders", 2, 1), Reason.PARTITION_NOT_FOUND),
        (("orders", -1, 1), Reason.INVALID_PARTITION),
        (("orders", 1, -1), Reason.OFFSET_OUT_OF_RANGE),
        (("orders", 1, 21), Reason.OFFSET_OUT_OF_RANGE),
        (("orders", 1, (1 << 63) - 1), Reason.OFFSET_OUT_OF_RANGE),
        (("orders", 0, 5), Reason.DUPLICATE_PARTITION),
        (("orders", 0, 6), Reason.DUPLICATE_PARTITION),
        (("orders", 1, 2), Reason.OFFSET_BEHIND_COMMITTED),
    ],
)
def test_one_bad_offset_and_none_is_committed(tmp_path: Path, bad: tuple[str, int, int], reason: Reason) -> None:
    async def scenario(broker: Broker) -> None:
        orders = await broker.create("orders", 10, 20)
        await broker.groups.commit("g", [("orders", 0, 4), ("orders", 1, 3)])
        await refused(reason, broker.groups.commit("g", [("orders", 0, 5), bad]))
        assert await broker.committed("g") == {(orders, 0): 4, (orders, 1): 3}

    run(tmp_path, scenario)


def test_what_is_out_of_range_is_told_the_range(tmp_path: Path) -> None:
    async def scenario(broker: Broker) -> None:
        await broker.create("orders", 10)
        broker.topics.partitions["orders"][0].log_start_offset = 7
        caught = await refused(Reason.OFFSET_OUT_OF_RANGE, broker.groups.commit("g", [("orders", 0, 11)]))
        assert caught.metadata == {
            "topic": "orders", "partition": "0", "offset": "11", "log_start_offset": "7", "end_offset": "10"
        }
        await broker.groups.commit("g", [("orders", 0, 3)])  # below the log start, but not beyond the end

    run(tmp_path, scenario)


def test_the_log_is_durable_before_the_commit_is(tmp_path: Path) -> None:
    async def scenario(broker: Broker) -> None:
        await broker.create("orders", 10, 20)
        partitions = broker.topics.partitions["orders"]
        for partition in partitions:
            partition.may_sync.clear()
        commit = asyncio.create_task(broker.groups.commit("g", [("orders", 0, 6), ("orders", 1, 20)]))
        await asyncio.sleep(0.01)
        assert [partition.syncs for partition in partitions] == [1, 1]  # at the same time, not one after the other
        partitions[0].may_sync.set()
        await asyncio.sleep(0.01)
        assert await broker.groups.list_groups() == []
        partitions[1].may_sync.set()
        await commit
        assert [partition.durable_offset for partition in partitions] == [6, 20]
        assert len(await broker.committed("g")) == 2

    run(tmp_path, scenario)


def test_a_failed_sync_commits_nothing(tmp_path: Path) -> None:
    async def scenario(broker: Broker) -> None:
        await broker.create("orders", 10, 20)
        broker.topics.partitions["orders"][0].sync_failure = error(Reason.SYNC_FAILED, "the disk says no")
        await refused(Reason.SYNC_FAILED, broker.groups.commit("g", [("orders", 0, 6), ("orders", 1, 20)]))
        assert await broker.groups.list_groups() == []
        await broker.groups.commit("g", [("orders", 1, 20)])

    run(tmp_path, scenario)


@pytest.mark.parametrize("recreated", [False, True])
def test_a_topic_deleted_during_the_commit(tmp_path: Path, recreated: bool) -> None:
    async def scenario(broker: Broker) -> None:
        kept = await broker.create("kept", 5)
        doomed = await broker.create("doomed", 10)
        partition = broker.topics.partitions["doomed"][0]
        partition.may_sync.clear()
        commit = asyncio.create_task(broker.groups.commit("g", [("kept", 0, 1), ("doomed", 0, 6)]))
        await asyncio.sleep(0.01)
        await broker.store.delete_topic(doomed)
        del broker.topics.partitions["doomed"]
        if recreated:
            await broker.create("doomed", 3)
        partition.may_sync.set()
        caught = await refused(Reason.TOPIC_NOT_FOUND, commit)
        assert caught.metadata == {"topic": "doomed"}
        assert await broker.groups.list_groups() == []
        await broker.groups.commit("g", [("kept", 0, 1)])
        assert await broker.committed("g") == {(kept, 0): 1}

    run(tmp_path, scenario)


def test_group_limit(tmp_path: Path) -> None:
    async def scenario(broker: Broker) -> None:
        await broker.create("orders", 10)
        await broker.groups.commit("a", [("orders", 0, 1)])
        await broker.groups.commit("b", [("orders", 0, 1)])
        caught = await refused(Reason.GROUP_LIMIT, broker.groups.commit("c", [("orders", 0, 1)]))
        assert "2" in caught.message and "limits.groups" in caught.message
        await broker.groups.commit("a", [("orders", 0, 2)])

    run(tmp_path, scenario, Limits(groups=2))


def test_commits_survive_a_restart(tmp_path: Path) -> None:
    async def before(broker: Broker) -> None:
        await broker.create("orders", 10)
        await broker.groups.commit("g", [("orders", 0, 7)])

    async def after(broker: Broker) -> None:
        row = (await broker.store.load_topics())[0]
        broker.topics.partitions["orders"] = [MemoryPartition(row.id, 0, 10)]
        broker.topics.partitions["orders"][0].may_sync.set()
        assert await broker.committed("g") == {(row.id, 0): 7}
        await refused(Reason.OFFSET_BEHIND_COMMITTED, broker.groups.commit("g", [("orders", 0, 6)]))

    run(tmp_path, before)
    run(tmp_path, after)


def test_concurrent_commits_never_go_back(tmp_path: Path) -> None:
    async def scenario(broker: Broker) -> None:
        orders = await broker.create("orders", 100)
        seen: list[int] = []

        async def commit(offset: int) -> None:
            try:
                await broker.groups.commit("g", [("orders", 0, offset)])
            except TakhinError as refusal:
                assert refusal.reason is Reason.OFFSET_BEHIND_COMMITTED
                assert int(refusal.metadata["committed_offset"]) > offset
            seen.append((await broker.committed("g"))[orders, 0])

        await asyncio.gather(*(commit((37 * i) % 101) for i in range(101)))
        assert seen == sorted(seen)
        assert await broker.committed("g") == {(orders, 0): 100}

    run(tmp_path, scenario)
