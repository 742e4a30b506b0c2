"""Retention: which segments go, when, in which order of steps, and that the active one stays."""

import asyncio
import os
import random
from pathlib import Path

import pytest

from takhin.broker.broker import Broker
from takhin.broker.retention import Retention
from takhin.errors import Reason, error
from takhin.log.partition import Partition
from tests.broker.test_produce_paths import produce, run, running, topic_of
from tests.log.test_partition import segments_of, values_of

DAY_MS = 86_400_000
YEAR_MS = 365 * DAY_MS
START_MS = 1_700_000_000_000


class Clock:
    """The broker's clock, as a test moves it."""

    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms


def retention_of(broker: Broker, clock: Clock) -> Retention:
    return Retention(broker.topics, broker._metadata, broker._store, 60_000, clock)


async def append(broker: Broker, count: int = 1, size: int = 350) -> None:
    for _ in range(count):
        await produce(broker, b"v" * size, acks=-1)


def bases(partition: Partition) -> list[int]:
    return [segment.base_offset for segment in partition.segments]


def files_of(broker: Broker, partition: Partition) -> list[int]:
    """The base offsets of the segment files that are really there."""
    return sorted(int(path.stem) for path in Path(partition.directory).glob("*.log"))


def test_by_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with running(tmp_path, {"segment_bytes": 1100}, clock) as broker:
            (partition,) = await topic_of(broker, retention_ms=str(7 * DAY_MS))
            retention = retention_of(broker, clock)
            for _ in range(10):
                await append(broker, 2)
                clock.now_ms += DAY_MS
            assert bases(partition) == list(range(0, 20, 2))
            # Day 10: what was appended last on the days 0, 1 and 2 is older than seven days.
            await retention.check_all()
            assert partition.log_start_offset == 6
            assert bases(partition) == files_of(broker, partition) == list(range(6, 20, 2))
            assert not list(Path(partition.directory).glob(f"{4:020d}.*"))
            clock.now_ms = START_MS + 10 * DAY_MS
            await retention.check_all()
            assert partition.log_start_offset == 6
            clock.now_ms += 1
            await retention.check_all()
            assert partition.log_start_offset == 8
            assert len(values_of(partition, 8)) == 12
            (row,) = await broker._metadata.load_topics()
            assert row.log_starts == {0: 8}
        async with running(tmp_path, {"segment_bytes": 1100}, clock) as broker:
            partition = broker.topics.partition("t", 0)
            assert (partition.log_start_offset, bases(partition)[0], partition.written_offset) == (8, 8, 20)

    run(scenario())


def test_by_size(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with running(tmp_path, {"segment_bytes": 1100, "retention_ms": -1}, clock) as broker:
            (partition,) = await topic_of(broker, retention_bytes="5000")
            await append(broker, 30)
            await retention_of(broker, clock).check_all()
            sizes = [segment.size_bytes for segment in partition.segments]
            # As little as is at least that much.
            assert sum(sizes) >= 5000 > sum(sizes[1:])
            assert partition.log_start_offset == bases(partition)[0] == files_of(broker, partition)[0] > 0
            assert partition.size_bytes == sum(
                path.stat().st_size for path in Path(partition.directory).glob("*.log")
            )
            assert len(values_of(partition, partition.log_start_offset)) == 30 - partition.log_start_offset

    run(scenario())


@pytest.mark.parametrize("configs", [{"retention_bytes": "0"}, {"retention_ms": "0"}])
def test_the_active_segment_stays(tmp_path: Path, configs: dict[str, str]) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with running(tmp_path, {"segment_bytes": 1100}, clock) as broker:
            (partition,) = await topic_of(broker, **configs)
            retention = retention_of(broker, clock)
            await append(broker, 9)
            clock.now_ms += YEAR_MS
            for _ in range(4):
                await retention.check_all()
                assert partition.log_start_offset <= partition.segments[-1].base_offset
                assert (await produce(broker, b"v", acks=-1)).offset == partition.written_offset - 1
                clock.now_ms += YEAR_MS
            await retention.check_all()
            await retention.check_all()
            active = partition.segments[-1]
            assert len(partition.segments) == 1 and files_of(broker, partition) == [active.base_offset]
            end = partition.written_offset
            assert (await produce(broker, b"v")).offset == end

    run(scenario())


def test_nothing_goes_without_a_bound(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with running(tmp_path, {"segment_bytes": 1100, "retention_ms": -1}, clock) as broker:
            (partition,) = await topic_of(broker)
            await append(broker, 9)
            clock.now_ms += 100 * YEAR_MS
            await retention_of(broker, clock).check_all()
            assert partition.log_start_offset == 0 and bases(partition)[0] == 0

    run(scenario())


def test_an_old_active_segment_is_sealed_and_goes(tmp_path: Path) -> None:
    """Nothing may ever be appended again to do it."""

    async def scenario() -> None:
        clock = Clock()
        async with running(tmp_path, {"segment_ms": 2 * YEAR_MS}, clock) as broker:
            (partition,) = await topic_of(broker, retention_ms=str(DAY_MS))
            retention = retention_of(broker, clock)
            await append(broker, 3)
            clock.now_ms += DAY_MS
            await retention.check_all()
            assert bases(partition) == [0]
            clock.now_ms += 1
            await retention.check_all()
            await retention.check_all()
            assert bases(partition) == files_of(broker, partition) == [3]
            assert (partition.log_start_offset, partition.written_offset) == (3, 3)
            # An empty one is not sealed again and again.
            clock.now_ms += YEAR_MS
            for _ in range(3):
                await retention.check_all()
            assert bases(partition) == [3]
            await append(broker)
            assert partition.written_offset == 4

    run(scenario())


def test_an_active_segment_is_sealed_by_its_age(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with running(tmp_path, {"segment_ms": DAY_MS, "retention_ms": -1}, clock) as broker:
            (partition,) = await topic_of(broker)
            await append(broker, 2)
            clock.now_ms += DAY_MS - 1
            await retention_of(broker, clock).check_all()
            assert bases(partition) == [0]
            clock.now_ms += 1
            await retention_of(broker, clock).check_all()
            assert bases(partition) == [0, 2]
            await append(broker)
        # Also when it comes from an earlier run.
        clock.now_ms += 2 * DAY_MS
        async with running(tmp_path, {"segment_ms": DAY_MS, "retention_ms": -1}, clock) as broker:
            partition = broker.topics.partition("t", 0)
            assert bases(partition) == [0, 2]
            await retention_of(broker, clock).check_all()
            assert bases(partition) == [0, 2, 3]

    run(scenario())


def test_what_is_not_durable_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with running(tmp_path, {"segment_bytes": 1100}, clock) as broker:
            (partition,) = await topic_of(broker, retention_ms="1")
            await append(broker, 4)
            for _ in range(6):
                await produce(broker, b"v" * 350, acks=1)
            clock.now_ms += YEAR_MS
            await retention_of(broker, clock).check_all()
            assert partition.log_start_offset <= partition.durable_offset
            assert files_of(broker, partition)[-1] >= 8
            await partition.make_durable(10)
            await retention_of(broker, clock).check_all()
            assert partition.log_start_offset == 10

    run(scenario())


def test_the_log_start_is_durable_before_a_file_goes(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with running(tmp_path, {"segment_bytes": 1100}, clock) as broker:
            (partition,) = await topic_of(broker, retention_ms="1000")
            await append(broker, 9)
            clock.now_ms += DAY_MS
            before = files_of(broker, partition)
            steps: list[str] = []
            stored = broker._metadata.set_log_start

            async def set_log_start(topic_id: int, number: int, offset: int) -> None:
                assert files_of(broker, partition)[: len(before)] == before
                assert partition.log_start_offset == 0
                await stored(topic_id, number, offset)
                (row,) = await broker._metadata.load_topics()
                assert row.log_starts == {0: offset}
                assert files_of(broker, partition)[: len(before)] == before
                steps.append("stored")

            removed = broker._store.remove_segments

            async def remove_segments(segments: list) -> None:
                assert partition.log_start_offset == 9
                steps.append("removed")
                await removed(segments)

            broker._metadata.set_log_start = set_log_start  # type: ignore[method-assign]
            broker._store.remove_segments = remove_segments  # type: ignore[method-assign]
            await retention_of(broker, clock).check_all()
            assert steps == ["stored", "removed"]
            assert files_of(broker, partition) == [9]

    run(scenario())


def test_nothing_goes_when_the_log_start_cannot_be_stored(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with running(tmp_path, {"segment_bytes": 1100}, clock) as broker:
            (partition,) = await topic_of(broker, retention_ms="1000")
            (other,) = await topic_of(broker, "zz", retention_ms="1000")
            await append(broker, 9)
            for _ in range(9):
                await produce(broker, b"v" * 350, topic="zz", acks=-1)
            clock.now_ms += DAY_MS
            stored = broker._metadata.set_log_start

            async def full(topic_id: int, number: int, offset: int) -> None:
                if topic_id == partition.topic_id:
                    raise error(Reason.DISK_FULL, "the disk is full")
                await stored(topic_id, number, offset)

            broker._metadata.set_log_start = full  # type: ignore[method-assign]
            await retention_of(broker, clock).check_all()
            assert partition.log_start_offset == 0 and files_of(broker, partition)[0] == 0
            assert other.log_start_offset == 9
            broker._metadata.set_log_start = stored  # type: ignore[method-assign]
            await retention_of(broker, clock).check_all()
            assert partition.log_start_offset == 9

    run(scenario())


def test_a_producers_clock_deletes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        from takhin.v1 import takhin_pb2 as pb

        clock = Clock()
        async with running(tmp_path, {"segment_bytes": 1100}, clock) as broker:
            (partition,) = await topic_of(broker, retention_ms=str(DAY_MS))
            for timestamp in (1, -YEAR_MS, START_MS - 10 * YEAR_MS, START_MS + 1000 * YEAR_MS) * 3:
                request = pb.ProduceMessageRequest(topic="t", required_acks=-1)
                request.record.value = b"v" * 350
                request.record.timestamp = timestamp
                await broker.producing.produce(request.SerializeToString())
            await retention_of(broker, clock).check_all()
            assert partition.log_start_offset == 0
            # Nor does it keep anything.
            clock.now_ms += DAY_MS + 1
            await retention_of(broker, clock).check_all()
            await retention_of(broker, clock).check_all()
            assert partition.log_start_offset == 12

    run(scenario())


def test_a_clock_that_steps_back_and_forth(tmp_path: Path) -> None:
    """Order and bounds hold whatever it does: the start only rises, the active segment stays, offsets follow on."""

    async def scenario(seed: int) -> None:
        rng = random.Random(seed)
        clock = Clock()
        async with running(tmp_path / str(seed), {"segment_bytes": 1100, "segment_ms": 10 * DAY_MS}, clock) as broker:
            (partition,) = await topic_of(broker, retention_ms=str(30 * DAY_MS))
            retention = retention_of(broker, clock)
            start = end = 0
            for _ in range(40):
                clock.now_ms = max(clock.now_ms + rng.choice([-YEAR_MS, YEAR_MS, -1, 1, DAY_MS, 12 * DAY_MS]), 1)
                for _ in range(rng.randrange(4)):
                    assert (await produce(broker, b"v" * 300, acks=-1)).offset == end
                    end += 1
                await retention.check_all()
                assert start <= partition.log_start_offset <= partition.durable_offset <= end
                assert partition.written_offset == end
                start = partition.log_start_offset
                assert bases(partition) == files_of(broker, partition)
                assert not partition.segments or partition.segments[-1].next_offset == end
                assert len(values_of(partition, start)) == end - start
            assert end > 10

    for seed in range(6):
        run(scenario(seed))


def test_a_clock_that_steps_back_deletes_nothing_young(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with running(tmp_path, {"segment_bytes": 1100}, clock) as broker:
            (partition,) = await topic_of(broker, retention_ms=str(30 * DAY_MS))
            retention = retention_of(broker, clock)
            for _ in range(5):
                await append(broker, 2)
                clock.now_ms -= YEAR_MS
                await retention.check_all()
                assert partition.log_start_offset == 0

    run(scenario())


def test_what_is_old_behind_what_is_young_waits_for_it(tmp_path: Path) -> None:
    """The clock was a year ahead for a while: what was appended then is young for so long, and order is kept."""

    async def scenario() -> None:
        clock = Clock()
        async with running(tmp_path, {"segment_bytes": 1100}, clock) as broker:
            (partition,) = await topic_of(broker, retention_ms=str(30 * DAY_MS))
            clock.now_ms += YEAR_MS
            await append(broker, 4)
            clock.now_ms -= YEAR_MS
            await append(broker, 6)
            clock.now_ms += 31 * DAY_MS
            for _ in range(2):
                await retention_of(broker, clock).check_all()
            assert partition.log_start_offset == 0 and len(values_of(partition)) == 10
            clock.now_ms += YEAR_MS
            for _ in range(2):
                await retention_of(broker, clock).check_all()
            assert partition.log_start_offset == 10

    run(scenario())


def test_a_topic_deleted_while_retention_looks(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with running(tmp_path, {"segment_bytes": 1100}, clock) as broker:
            await topic_of(broker, retention_ms="1000")
            (other,) = await topic_of(broker, "zz", retention_ms="1000")
            await append(broker, 9)
            for _ in range(9):
                await produce(broker, b"v" * 350, topic="zz", acks=-1)
            clock.now_ms += DAY_MS
            await asyncio.gather(retention_of(broker, clock).check_all(), broker.topics.delete("t"))
            assert other.log_start_offset == 9
            assert os.listdir(Path(other.directory).parent.parent) == [str(other.topic_id)]

    run(scenario())


def test_a_damaged_partition_loses_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with running(tmp_path, {"segment_bytes": 1100}, clock) as broker:
            (partition,) = await topic_of(broker, retention_ms="1000", retention_bytes="1")
            await append(broker, 12)
        paths = segments_of(tmp_path)
        data = bytearray(paths[2].read_bytes())
        data[-1] ^= 1
        paths[2].write_bytes(data)
        paths[2].with_suffix(".index").unlink()
        before = files_of(broker, partition)
        clock.now_ms += YEAR_MS
        async with running(tmp_path, {"segment_bytes": 1100}, clock) as broker:
            await retention_of(broker, clock).check_all()
            assert files_of(broker, partition) == before

    run(scenario())


def test_it_runs_by_itself(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Clock()
        topics = {"segment_bytes": 1100, "retention_check_ms": 20}
        async with running(tmp_path, topics, clock) as broker:
            (partition,) = await topic_of(broker, retention_ms="1000")
            await append(broker, 9)
            clock.now_ms += DAY_MS
            for _ in range(500):
                if partition.log_start_offset == 9:
                    break
                await asyncio.sleep(0.01)
            assert partition.log_start_offset == 9

    run(scenario())
