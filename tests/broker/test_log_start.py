"""Truncation: what goes and what stays, in which order of steps, and that dying between any two of them is safe."""

import asyncio
import random
import shutil
from pathlib import Path

import pytest

from takhin.broker.broker import Broker
from takhin.codec.batch import SEGMENT_HEADER_SIZE
from takhin.errors import Reason, error
from takhin.log.partition import Partition
from takhin.log.segment import Segment
from takhin.v1 import takhin_pb2 as pb
from tests.broker.test_produce_paths import produce, refused, run, running, topic_of
from tests.broker.test_retention import append, bases, files_of
from tests.log.test_partition import values_of

END = -1
SMALL = {"segment_bytes": 1100}


async def filled(broker: Broker, count: int = 9) -> Partition:
    """Topic t, two records to a segment, all of them durable."""
    (partition,) = await topic_of(broker)
    await append(broker, count)
    return partition


def stored_starts(path: Path) -> list[int]:
    """Where the log of topic t begins after a start on that directory, and after another one."""

    async def begun() -> int:
        async with running(path, SMALL) as broker:
            return broker.topics.partition("t", 0).log_start_offset

    return [run(begun()), run(begun())]


def test_everything_goes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, SMALL) as broker:
            partition = await filled(broker)
            assert bases(partition) == [0, 2, 4, 6, 8]
            assert await broker.log_starts.truncate(partition, END) == 9
            assert (partition.log_start_offset, partition.written_offset) == (9, 9)
            # The active segment too: in its place is an empty one, so that the space comes back.
            assert bases(partition) == files_of(broker, partition) == [9]
            assert partition.size_bytes == SEGMENT_HEADER_SIZE
            assert await broker.log_starts.truncate(partition, END) == 9
            assert bases(partition) == [9]
            assert (await produce(broker, b"on", acks=-1)).offset == 9
            assert await broker.log_starts.truncate(partition, 10) == 10
        async with running(tmp_path, SMALL) as broker:
            partition = broker.topics.partition("t", 0)
            assert (partition.log_start_offset, partition.written_offset) == (10, 10)
            # Also when nothing was appended since the start.
            assert (await produce(broker, b"on", acks=-1)).offset == 10
        async with running(tmp_path, SMALL) as broker:
            partition = broker.topics.partition("t", 0)
            assert await broker.log_starts.truncate(partition, END) == 11
            assert bases(partition) == files_of(broker, partition) == [11]

    run(scenario())


def test_a_part_goes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, SMALL) as broker:
            partition = await filled(broker)
            for offset, start, base in ((1, 1, 0), (0, 1, 0), (1, 1, 0), (2, 2, 2), (5, 5, 4), (3, 5, 4), (8, 8, 8)):
                assert await broker.log_starts.truncate(partition, offset) == start
                assert bases(partition)[0] == files_of(broker, partition)[0] == base
                assert len(values_of(partition, start)) == 9 - start
        async with running(tmp_path, SMALL) as broker:
            partition = broker.topics.partition("t", 0)
            assert (partition.log_start_offset, partition.written_offset, bases(partition)) == (8, 9, [8])
            await refused(Reason.OFFSET_OUT_OF_RANGE, broker.log_starts.truncate(partition, 10))
            await refused(Reason.INVALID_OFFSET, broker.log_starts.truncate(partition, -2))
            assert partition.log_start_offset == 8

    run(scenario())


def test_an_empty_partition(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, SMALL) as broker:
            (partition,) = await topic_of(broker)
            for offset in (END, 0):
                assert await broker.log_starts.truncate(partition, offset) == 0
            await refused(Reason.OFFSET_OUT_OF_RANGE, broker.log_starts.truncate(partition, 1))
            assert not partition.segments and not Path(partition.directory).exists()

    run(scenario())


def test_what_is_not_written_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, SMALL) as broker:
            partition = await filled(broker)
            late = asyncio.ensure_future(produce(broker, b"late"))
            truncated = asyncio.ensure_future(broker.log_starts.truncate(partition, END))
            assert (await late).offset == 9
            assert await truncated in (9, 10)
            if partition.log_start_offset == 9:
                assert values_of(partition, 9) == [b"late"]
            assert partition.written_offset == 10
            # Nor is a segment begun that would not make the one before it go.
            assert bases(partition) == ([8] if partition.log_start_offset == 9 else [10])

    run(scenario())


def test_it_is_durable_before_it_goes(tmp_path: Path) -> None:
    """The log, up to its new start; then the start; then readers are refused; then files go."""

    async def scenario() -> None:
        async with running(tmp_path, SMALL) as broker:
            (partition,) = await topic_of(broker)
            for _ in range(9):
                await produce(broker, b"v" * 350, acks=1)
            assert partition.durable_offset < 8
            steps: list[str] = []
            stored, removed = broker._metadata.set_log_start, broker._store.remove_segments

            async def set_log_start(topic_id: int, number: int, offset: int) -> None:
                assert partition.durable_offset == 9
                await stored(topic_id, number, offset)
                (row,) = await broker._metadata.load_topics()
                assert row.log_starts == {0: 9}
                assert partition.log_start_offset == 0 and len(values_of(partition)) == 9
                steps.append("stored")

            async def remove_segments(segments: list[Segment]) -> None:
                assert partition.log_start_offset == 9
                assert files_of(broker, partition) == [0, 2, 4, 6, 8, 9]
                await removed(segments)
                steps.append("removed")

            broker._metadata.set_log_start = set_log_start  # type: ignore[method-assign]
            broker._store.remove_segments = remove_segments  # type: ignore[method-assign]
            assert await broker.log_starts.truncate(partition, END) == 9
            assert steps == ["stored", "removed"]

    run(scenario())


@pytest.mark.parametrize("offset", [5, END])
def test_killed_between_any_two_steps(tmp_path: Path, offset: int) -> None:
    """The log begins at the old start or the new one, with all that follows; doing it again completes it."""
    copies: list[tuple[Path, bool]] = []
    wanted = 9 if offset == END else offset

    def copy(stored: bool) -> None:
        path = tmp_path / f"killed-{len(copies)}"
        shutil.copytree(tmp_path / "data", path)
        copies.append((path, stored))

    async def scenario() -> None:
        async with running(tmp_path / "data", SMALL) as broker:
            partition = await filled(broker)
            stored, removed = broker._metadata.set_log_start, broker._store.remove_segments

            async def set_log_start(topic_id: int, number: int, offset: int) -> None:
                copy(False)
                await stored(topic_id, number, offset)
                copy(True)

            async def remove_segments(segments: list[Segment]) -> None:
                for segment in segments:
                    copy(True)
                    # Its index file goes first: between the two it may be killed as well.
                    copy(True)
                    index = copies[-1][0] / Path(segment.index_path).relative_to(tmp_path / "data")
                    index.unlink()
                    await removed([segment])
                copy(True)

            broker._metadata.set_log_start = set_log_start  # type: ignore[method-assign]
            broker._store.remove_segments = remove_segments  # type: ignore[method-assign]
            assert await broker.log_starts.truncate(partition, offset) == wanted

    run(scenario())
    assert len(copies) >= 7

    async def check(path: Path, stored: bool) -> None:
        async with running(path, SMALL) as broker:
            partition = broker.topics.partition("t", 0)
            assert partition.failure is None
            start = wanted if stored else 0
            assert (partition.log_start_offset, partition.written_offset) == (start, 9)
            assert len(values_of(partition, start)) == 9 - start
            assert await broker.log_starts.truncate(partition, offset) == wanted
            assert bases(partition) == files_of(broker, partition)
            assert bases(partition)[0] == (4 if wanted == 5 else 9)
            assert (await produce(broker, b"on", acks=-1)).offset == 9
            assert values_of(partition, 9) == [b"on"]

    for path, stored in copies:
        run(check(path, stored))
        assert stored_starts(path) == [wanted, wanted]


def test_without_a_new_segment_the_older_ones_go(tmp_path: Path) -> None:
    """When none can be begun: on a full disk, which is when somebody wants to truncate."""

    async def scenario() -> None:
        async with running(tmp_path, SMALL) as broker:
            partition = await filled(broker)
            in_the_way = Path(partition.directory, f"{9:020d}.log")
            in_the_way.write_bytes(b"something else" * 10)
            assert await broker.log_starts.truncate(partition, END) == 9
            assert bases(partition) == [8]
            in_the_way.unlink()
            assert (await produce(broker, b"on")).offset == 9

    run(scenario())


def test_nothing_changes_when_the_start_cannot_be_stored(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, SMALL) as broker:
            partition = await filled(broker)
            stored = broker._metadata.set_log_start

            async def full(*_: int) -> None:
                raise error(Reason.DISK_FULL, "the disk is full")

            broker._metadata.set_log_start = full  # type: ignore[method-assign]
            await refused(Reason.DISK_FULL, broker.log_starts.truncate(partition, END))
            assert partition.log_start_offset == 0 and len(values_of(partition)) == 9
            broker._metadata.set_log_start = stored  # type: ignore[method-assign]
            assert await broker.log_starts.truncate(partition, END) == 9
            assert files_of(broker, partition) == [9]

    run(scenario())


def test_after_a_failed_sync_only_what_is_durable_goes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, SMALL) as broker:
            partition = await filled(broker)
            await produce(broker, b"not synced", acks=1)
            partition.fail(Reason.SYNC_FAILED, "a sync failed")
            await refused(Reason.SYNC_FAILED, broker.log_starts.truncate(partition, END))
            assert partition.log_start_offset == 0
            assert await broker.log_starts.truncate(partition, 9) == 9
            assert values_of(partition, 9) == [b"not synced"]

    run(scenario())


def test_a_topic_that_is_deleted_meanwhile(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, SMALL) as broker:
            partition = await filled(broker)
            await broker.topics.delete("t")
            await refused(Reason.TOPIC_NOT_FOUND, broker.log_starts.truncate(partition, END))

    run(scenario())


def test_a_damaged_partition_is_left_as_it_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, SMALL) as broker:
            directory = Path((await filled(broker)).directory)
        for index in directory.glob("*.index"):
            index.unlink()
        path = directory / f"{4:020d}.log"
        data = bytearray(path.read_bytes())
        data[-40] ^= 1
        path.write_bytes(data)
        async with running(tmp_path, SMALL) as broker:
            partition = broker.topics.partition("t", 0)
            assert (partition.failure or [None])[0] is Reason.PARTITION_DAMAGED and partition.written_offset == 5
            for offset in (END, 0, 2, 5):
                await refused(Reason.PARTITION_DAMAGED, broker.log_starts.truncate(partition, offset))
            assert partition.log_start_offset == 0
            assert files_of(broker, partition) == [0, 2, 4, 6, 8]

    run(scenario())


def test_producers_that_could_not_be_saved(tmp_path: Path) -> None:
    """Segments go all the same. As long as this broker runs it knows the producer, the next one asks for sequence 0."""

    async def scenario() -> None:
        async with running(tmp_path / "a", SMALL) as broker:
            partition = await filled(broker, 0)
            producer, epoch = await broker.producers.init("", [partition])

            def state(sequence: int) -> pb.ProducerState:
                return pb.ProducerState(id=producer, epoch=epoch, sequence=sequence)

            # Nothing can be put in this place.
            snapshot = Path(partition.snapshot_path)
            (snapshot / "in the way").mkdir(parents=True)
            for sequence in range(3):
                await produce(broker, b"v" * 700, acks=-1, producer=state(sequence))
            await broker.log_starts.truncate(partition, END)
            assert bases(partition) == [3]
            assert (await produce(broker, b"v" * 700, acks=-1, producer=state(2))).duplicate
            shutil.copytree(tmp_path / "a", tmp_path / "killed")
        snapshot = tmp_path / "killed" / snapshot.relative_to(tmp_path / "a")
        shutil.rmtree(snapshot)
        async with running(tmp_path / "killed", SMALL) as broker:
            await refused(Reason.PRODUCER_UNKNOWN, produce(broker, b"v", acks=-1, producer=state(3)))
            assert (await produce(broker, b"v", acks=-1, producer=state(0))).offset == 3

    run(scenario())


def test_many_at_once(tmp_path: Path) -> None:
    """The start only rises, whoever is first; nothing that is behind it is lost."""

    async def scenario(seed: int) -> int:
        rng = random.Random(seed)
        async with running(tmp_path / str(seed), SMALL) as broker:
            partition = await filled(broker, 4)
            highest, end = 0, 4

            async def truncate(offset: int) -> None:
                before = partition.log_start_offset
                start = await broker.log_starts.truncate(partition, offset)
                assert start >= max(before, offset)

            for _ in range(15):
                offsets = [rng.choice([END, rng.randrange(end + 1)]) for _ in range(4)]
                count = rng.randrange(1, 4)
                work = [truncate(offset) for offset in offsets]
                work += [produce(broker, b"v" * 350, acks=rng.choice([1, -1])) for _ in range(count)]
                rng.shuffle(work)
                await asyncio.gather(*work)
                end += count
                highest = max(highest, *offsets)
                assert highest <= partition.log_start_offset <= partition.written_offset == end
                highest = partition.log_start_offset
                assert len(values_of(partition, highest)) == end - highest
                assert bases(partition) == files_of(broker, partition)
        return highest

    for seed in range(5):
        highest = run(scenario(seed))
        assert stored_starts(tmp_path / str(seed)) == [highest, highest]
