"""Offsets by time in process: a clock that steps, what is not in memory, damage, and files that can't be read."""

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from takhin.broker.broker import Broker
from takhin.errors import Reason
from takhin.log.partition import Partition
from takhin.v1 import takhin_pb2 as pb
from tests.broker.test_consume_paths import Stream, asking, consumed, ended, filled
from tests.broker.test_produce_paths import produce, refused, run, running, topic_of, until
from tests.broker.test_retention import START_MS, YEAR_MS, Clock
from tests.log.test_partition import no_descriptor_left
from tests.log.test_segment_index import drop_pages

SMALL = {"segment_bytes": 1100}


async def at_time(broker: Broker, timestamp_ms: int, size: int = 350) -> int:
    request = pb.ProduceMessageRequest(topic="t", required_acks=-1)
    request.record.value = b"v" * size
    request.record.timestamp = timestamp_ms
    return pb.ProduceMessageResponse.FromString(await broker.producing.produce(request.SerializeToString())).offset


def offset_for(broker: Broker, partition: Partition, timestamp_ms: int) -> "asyncio.Future[int | None]":
    return asyncio.ensure_future(broker.consuming.offset_for_time(partition, timestamp_ms))


def test_a_clock_that_steps_back_and_forth(tmp_path: Path) -> None:
    """The broker's own timestamps may fall, too; the first record that reaches the time is the answer all the same."""

    async def scenario() -> None:
        clock = Clock()
        async with running(tmp_path, SMALL, clock) as broker:
            (partition,) = await topic_of(broker, retention_ms="-1")
            stored: list[int] = []
            for step_ms in (0, 10, -YEAR_MS, 10, 10, 2 * YEAR_MS, -YEAR_MS, 10, 10):
                clock.now_ms += step_ms
                stored.append((await produce(broker, b"v" * 350, acks=-1)).timestamp)
            assert stored[0] == START_MS and sorted(stored) != stored
            for wanted in {each + more for each in stored for more in (-1, 0, 1)}:
                expected = next((offset for offset, each in enumerate(stored) if each >= wanted), None)
                assert await offset_for(broker, partition, wanted) == expected

    run(scenario())


def test_what_is_not_in_memory(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, SMALL) as broker:
            (partition,) = await topic_of(broker)
            for number in range(20):
                assert await at_time(broker, 100 + number) == number
        async with running(tmp_path, SMALL) as broker:
            partition = broker.topics.partition("t", 0)
            for segment in partition.segments:
                drop_pages(Path(segment.path))
            for number in range(19, -1, -1):
                assert await offset_for(broker, partition, 100 + number) == number
            assert await offset_for(broker, partition, 120) is None

    run(scenario())


class MovesTheStart(ThreadPoolExecutor):
    """The partition's log start has moved by the time that the event loop hears of what was done here."""

    def __init__(self, partition: Partition, offset: int):
        super().__init__(1)
        self._move = lambda: partition.set_log_start(offset)

    def submit(self, *work: Any) -> "Future[Any]":
        done = super().submit(*work)
        done.result()
        self._move()
        return done


def test_the_log_start_passes_the_answer_on_its_way(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            await topic_of(broker)
            for number in range(20):
                await at_time(broker, 100 + number)
        async with running(tmp_path) as broker:
            partition = broker.topics.partition("t", 0)
            threads = broker._store.threads
            with MovesTheStart(partition, 5) as broker._store.threads:
                assert await offset_for(broker, partition, 103) == 5
                assert partition.log_start_offset == 5
            broker._store.threads = threads

    run(scenario())


def test_damage_at_the_end_of_the_log(tmp_path: Path) -> None:
    """What lies behind it may have the time: nobody is told that there is none, or sent to the end."""

    async def scenario() -> None:
        async with running(tmp_path, SMALL) as broker:
            (partition,) = await topic_of(broker)
            for number in range(9):
                await at_time(broker, 100 + number)
            directory = Path(partition.directory)
        for index in directory.glob("*.index"):
            index.unlink()
        path = directory / f"{4:020d}.log"
        data = bytearray(path.read_bytes())
        data[-40] ^= 1
        path.write_bytes(data)
        async with running(tmp_path, SMALL) as broker:
            partition = broker.topics.partition("t", 0)
            assert (partition.failure or [None])[0] is Reason.PARTITION_DAMAGED and partition.written_offset == 5
            assert await offset_for(broker, partition, 104) == 4
            problem = await refused(Reason.CORRUPT_BATCH, offset_for(broker, partition, 105))
            assert problem.metadata["offset"] == "5"
            for wanted in (103, 105):
                stream = Stream()
                following = broker.consuming.consume(asking(0, start_time_ms=wanted, until_end=True), stream)
                await refused(Reason.CORRUPT_BATCH, following)
                assert len(stream.values) == max(105 - wanted, 0)

    run(scenario())


def test_out_of_descriptors_it_can_be_tried_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, {"segment_bytes": 2_000}) as broker:
            partition = await filled(broker, 60)
            for segment in partition.segments:
                segment.close()
            with no_descriptor_left():
                await refused(Reason.READ_FAILED, offset_for(broker, partition, 0))
                await refused(Reason.READ_FAILED, consumed(broker, 0, start_time_ms=0, until_end=True))
            assert await offset_for(broker, partition, 0) == 0
            assert len((await consumed(broker, 0, start_time_ms=0, until_end=True)).values) == 60

    run(scenario())


def test_a_reader_that_waits_for_a_time(tmp_path: Path) -> None:
    """It begins at the end, and gets what comes, whatever its timestamp."""

    async def scenario() -> None:
        async with running(tmp_path, SMALL) as broker:
            await topic_of(broker)
            await at_time(broker, 100, 10)
            stream = Stream()
            task = asyncio.ensure_future(broker.consuming.consume(asking(0, start_time_ms=500), stream))
            await asyncio.sleep(0)
            await at_time(broker, 200, 20)
            await at_time(broker, 600, 30)
            await until(lambda: len(stream.values) == 2)
            assert stream.responses[0].records[0].offset == 1
            await ended(task)

    run(scenario())
