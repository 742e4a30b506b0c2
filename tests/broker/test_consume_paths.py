"""Consume in process, on a real broker's parts and real files: what a stream delivers, when it ends, and with what."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from takhin.broker import reader_budget
from takhin.broker.broker import Broker
from takhin.errors import Code, Reason, TakhinError
from takhin.log.partition import Partition
from takhin.v1 import takhin_pb2 as pb
from tests.broker.test_produce_paths import (
    produce,
    refused,
    run,
    running,
    soon_resumed,
    topic_of,
    until,
    without_room,
)
from tests.log.test_partition import no_descriptor_left

__all__ = ["soon_resumed"]

EARLIEST, LATEST = -1, -2


class Stream:
    """A consumer: takes what it is sent while `taking` is set, and keeps it."""

    peer = "test"

    def __init__(self, taking: bool = True) -> None:
        self.responses: list[pb.ConsumeMessagesResponse] = []
        self.largest = 0
        self.taking = asyncio.Event()
        if taking:
            self.taking.set()
        self.was_cut = False

    async def write(self, message: bytes) -> None:
        assert type(message) is bytes
        await self.taking.wait()
        if self.was_cut:
            raise asyncio.CancelledError
        self.largest = max(self.largest, len(message))
        self.responses.append(pb.ConsumeMessagesResponse.FromString(message))

    def cut(self) -> None:
        self.was_cut = True
        self.taking.set()

    @property
    def values(self) -> list[bytes]:
        records = [record for response in self.responses for record in response.records]
        first = records[0].offset if records else 0
        assert [record.offset for record in records] == list(range(first, first + len(records)))
        return [record.value for record in records]


def asking(offset: int = EARLIEST, topic: str = "t", **fields: int) -> bytes:
    return pb.ConsumeMessagesRequest(topic=topic, offset=offset, **fields).SerializeToString()


async def consumed(broker: Broker, offset: int = EARLIEST, **fields: int) -> Stream:
    """A stream that ends by itself."""
    stream = Stream()
    await broker.consuming.consume(asking(offset, **fields), stream)
    return stream


def following(broker: Broker, offset: int = EARLIEST, taking: bool = True, **fields: int) -> tuple[
    Stream, "asyncio.Task[None]"
]:
    stream = Stream(taking)
    return stream, asyncio.ensure_future(broker.consuming.consume(asking(offset, **fields), stream))


async def ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def value(number: int) -> bytes:
    return b"%05d" % number + b"v" * (number * 13 % 400)


async def filled(broker: Broker, count: int, **configs: str) -> Partition:
    """Topic t with `count` records, durable, some of them in batches, none in memory."""
    (partition,) = await topic_of(broker, **configs)
    for start in range(0, count, 5):
        group = [value(number) for number in range(start, min(start + 5, count))]
        if start % 2:
            await produce(broker, *group, batch=True)
        else:
            await asyncio.gather(*(produce(broker, each) for each in group))
    await partition.make_durable(count)
    broker._store.rings.release_idle(1 << 62)
    return partition


def used_bytes(broker: Broker) -> int:
    return broker.consuming.budget.used_bytes


# What is delivered


def test_a_reader_follows_the_log(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            (partition,) = await topic_of(broker)
            early, task = following(broker)
            await produce(broker, value(0))
            late, other = following(broker, LATEST)
            await asyncio.sleep(0)
            for number in range(1, 50):
                await produce(broker, value(number), acks=number % 2)
                if number % 10 == 0:
                    broker._store.rings.release_idle(1 << 62)
                    partition.roll(0)
            await until(lambda: len(early.values) == 50 and len(late.values) == 49)
            assert early.values == [value(number) for number in range(50)]
            assert late.values == early.values[1:]
            assert early.responses[-1].caught_up and early.responses[-1].high_watermark == 50
            await ended(task)
            await ended(other)
            assert used_bytes(broker) == 0

    run(scenario())


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("max_bytes", [0, 1, 700, 100_000])
def test_bounded_reads(tmp_path: Path, cold: bool, max_bytes: int) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            await filled(broker, 120)
            if cold:
                broker._store.rings.release_idle(1 << 62)
            everything = [value(number) for number in range(120)]
            stream = await consumed(broker, until_end=True, max_bytes=max_bytes)
            assert stream.values == everything
            assert max_bytes in (0, 1) or stream.largest <= max_bytes
            assert (await consumed(broker, 37, max_records=5, max_bytes=max_bytes)).values == everything[37:42]
            assert (await consumed(broker, 118, max_records=99, until_end=True)).values == everything[118:]
            for empty in (
                await consumed(broker, 120, until_end=True), await consumed(broker, LATEST, until_end=True),
            ):
                (response,) = empty.responses
                assert (len(response.records), response.high_watermark, response.caught_up) == (0, 120, True)
            assert used_bytes(broker) == 0

    run(scenario())


def test_until_end_ends_at_what_was_the_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            await filled(broker, 10)
            stream, task = following(broker, taking=False, until_end=True, max_bytes=300)
            await asyncio.sleep(0.01)
            await produce(broker, b"later")
            stream.taking.set()
            await task
            assert stream.values == [value(number) for number in range(10)]

    run(scenario())


def test_empty_responses_while_there_is_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            await filled(broker, 3)
            stream, task = following(broker, LATEST, max_wait_ms=20)
            silent, other = following(broker, LATEST)
            await until(lambda: len(stream.responses) >= 3)
            for response in stream.responses:
                assert (len(response.records), response.high_watermark, response.caught_up) == (0, 3, True)
            await produce(broker, value(3))
            await until(lambda: stream.values == [value(3)])
            await until(lambda: len(silent.responses) == 1)
            assert silent.values == [value(3)]
            await ended(task)
            await ended(other)

    run(scenario())


def test_min_bytes_waits_but_not_for_ever(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            await topic_of(broker)
            stream, task = following(broker, min_bytes=5000, max_wait_ms=60_000)
            hurried, other = following(broker, min_bytes=5000, max_wait_ms=400)
            for _ in range(4):
                await produce(broker, b"v" * 1000)
            assert stream.responses == [] and hurried.responses == []
            await until(lambda: len(hurried.values) == 4)
            await produce(broker, b"v" * 1000)
            await until(lambda: len(stream.values) == 5)
            assert len(stream.responses) == 1
            await ended(task)
            await ended(other)
            # A bounded reader does not wait for more than there will be.
            assert len((await consumed(broker, until_end=True, min_bytes=1 << 20)).values) == 5

    run(scenario())


def test_what_is_not_in_memory_is_read_in_a_thread(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, {"segment_bytes": 30_000}) as broker:
            partition = await filled(broker, 400)
            assert len(partition.segments) > 2
            threads = broker._store.threads
            submitted = 0

            def submit(*arguments: object) -> object:
                nonlocal submitted
                submitted += 1
                return type(threads).submit(threads, *arguments)  # type: ignore[arg-type]

            threads.submit = submit  # type: ignore[method-assign, assignment]
            # The page cache forgets when it is asked to, but not always.
            for _ in range(100):
                for segment in partition.segments:
                    fd = segment.fileno()
                    os.fsync(fd)
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                    segment.done()
                streams = await asyncio.gather(*(consumed(broker, until_end=True, max_bytes=2000) for _ in range(5)))
                for stream in streams:
                    assert stream.values == [value(number) for number in range(400)]
                if submitted:
                    break
            assert submitted > 0
            assert used_bytes(broker) == 0

    run(scenario())


def test_readers_beside_producers_rolls_and_retention(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(
            tmp_path, {"segment_bytes": 20_000}, ring_bytes=1 << 16, ring_bytes_per_partition=1 << 14, open_files=16
        ) as broker:
            (partition,) = await topic_of(broker)
            count = 1500

            async def follow(max_bytes: int) -> int:
                offset, seen = EARLIEST, 0
                while True:
                    stream = Stream()
                    try:
                        left = count - max(offset, partition.log_start_offset)
                        await broker.consuming.consume(
                            asking(offset, max_bytes=max_bytes, max_records=max(left, 1)), stream
                        )
                    except TakhinError as problem:
                        assert problem.reason is Reason.OFFSET_OUT_OF_RANGE
                    records = [record for response in stream.responses for record in response.records]
                    assert all(record.value == value(record.offset) for record in records)
                    assert len(stream.values) == len(records)
                    seen += len(records)
                    if records and records[-1].offset == count - 1:
                        return seen
                    offset = max(records[-1].offset + 1 if records else 0, partition.log_start_offset)

            readers = [asyncio.ensure_future(follow(max_bytes)) for max_bytes in (1, 900, 8_000, 0)]
            for number in range(count):
                await produce(broker, value(number))
                if number % 300 == 299:
                    await partition.make_durable(number + 1)
                    removed = partition.set_log_start(number - 200)
                    await broker._store.remove_segments(removed)
                    await asyncio.sleep(0.01)
            assert all(seen > 0 for seen in await asyncio.gather(*readers))
            assert used_bytes(broker) == 0

    run(scenario())


# How streams end


def test_draining_ends_streams(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            await filled(broker, 10)
            idle, first = following(broker, LATEST)
            polling, second = following(broker, LATEST, max_wait_ms=60_000)
            busy, third = following(broker, taking=False, max_bytes=300)
            await asyncio.sleep(0.02)
            broker.begin_drain()
            for task in (first, second):
                assert (await refused(Reason.DRAINING, task)).code is Code.UNAVAILABLE
            assert not third.done()
            busy.taking.set()
            await refused(Reason.DRAINING, third)
            assert 0 < len(busy.values) < 10 and idle.responses == polling.responses == []
            await refused(Reason.DRAINING, consumed(broker))
            assert used_bytes(broker) == 0

    run(scenario())


def test_deleting_a_topic_ends_its_streams(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            await filled(broker, 10)
            _, idle = following(broker, LATEST)
            busy, middle = following(broker, taking=False, max_bytes=300)
            await asyncio.sleep(0.02)
            await broker.topics.delete("t")
            await refused(Reason.TOPIC_NOT_FOUND, idle)
            busy.taking.set()
            await refused(Reason.TOPIC_NOT_FOUND, middle)
            await refused(Reason.TOPIC_NOT_FOUND, consumed(broker))
            assert used_bytes(broker) == 0

    run(scenario())


def test_offsets_that_are_not_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, {"segment_bytes": 2_000}) as broker:
            partition = await filled(broker, 100)
            removed = partition.set_log_start(partition.segments[3].base_offset)
            await broker._store.remove_segments(removed)
            start = partition.log_start_offset
            for offset in (0, start - 1, 101, 2**53):
                problem = await refused(Reason.OFFSET_OUT_OF_RANGE, consumed(broker, offset))
                assert problem.metadata == {
                    "topic": "t", "partition": "0", "log_start_offset": str(start), "end_offset": "100",
                }
            assert (await consumed(broker, until_end=True)).values[0] == value(start)
            for offset in (-3, -(2**63)):
                await refused(Reason.INVALID_OFFSET, consumed(broker, offset))

    run(scenario())


def test_a_reader_that_retention_overtakes_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, {"segment_bytes": 2_000}) as broker:
            partition = await filled(broker, 100)
            stream, task = following(broker, taking=False, max_bytes=300)
            await asyncio.sleep(0.02)
            removed = partition.set_log_start(50)
            await broker._store.remove_segments(removed)
            stream.taking.set()
            problem = await refused(Reason.OFFSET_OUT_OF_RANGE, task)
            assert problem.metadata["log_start_offset"] == "50"
            assert stream.values == [value(number) for number in range(len(stream.values))]

    run(scenario())


def test_damage_comes_after_all_that_is_good(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            partition = await filled(broker, 60)
            path = partition.segments[0].path
            data = Path(path).read_bytes()
            at = data.index(value(37))
            with open(path, "r+b") as file:
                file.seek(at)
                file.write(b"X")
            for max_bytes in (0, 400):
                stream, task = following(broker, max_bytes=max_bytes)
                problem = await refused(Reason.CORRUPT_BATCH, task)
                assert problem.code is Code.DATA_LOSS
                offset = int(problem.metadata["offset"])
                assert 35 <= offset <= 37 and stream.values == [value(number) for number in range(offset)]
            # Nothing else is ended by it.
            assert (await produce(broker, b"on")).offset == 60
            assert used_bytes(broker) == 0

    run(scenario())


def test_out_of_descriptors_a_read_can_be_tried_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, {"segment_bytes": 2_000}) as broker:
            partition = await filled(broker, 60)
            for segment in partition.segments:
                segment.close()
            with no_descriptor_left():
                for fields in ({}, {"min_bytes": 1000, "max_wait_ms": 1}):
                    problem = await refused(Reason.READ_FAILED, consumed(broker, until_end=True, **fields))
                    assert problem.code is Code.UNAVAILABLE
            assert len((await consumed(broker, until_end=True)).values) == 60

    run(scenario())


def test_a_reader_learns_that_others_bear_its_offsets(tmp_path: Path, soon_resumed: None) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            (partition,) = await topic_of(broker)
            for number in range(5):
                await produce(broker, value(number))
            # What was accepted as 5 and 6 is void, and others get these offsets, in another epoch.
            await without_room(60, produce(broker, b"void", acks=0), produce(broker, b"void"))
            await until(lambda: partition.failure is None)
            for number in range(5, 10):
                await produce(broker, value(number))
            problem = await refused(Reason.LOG_TRUNCATED, consumed(broker, 7, last_epoch=1, until_end=True))
            assert problem.code is Code.ABORTED and problem.metadata["divergence_offset"] == "5"
            assert len((await consumed(broker, 5, last_epoch=1, until_end=True)).values) == 5
            assert len((await consumed(broker, 7, last_epoch=2, until_end=True)).values) == 3
            await refused(Reason.INVALID_EPOCH, consumed(broker, 7, last_epoch=-1, until_end=True))

    run(scenario())


# Slow readers


def test_stopped_readers_hold_no_more_than_the_budget(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, reader_bytes=4 << 20, slow_reader_ms=60_000) as broker:
            (partition,) = await topic_of(broker)
            for _ in range(40):
                await produce(broker, *[b"v" * 10_000] * 10, batch=True)
            stopped = [following(broker, taking=False) for _ in range(100)]
            highest = 0
            for _ in range(20):
                await asyncio.sleep(0.01)
                highest = max(highest, used_bytes(broker))
            assert 1 << 20 < highest <= 4 << 20
            for stream, task in stopped:
                await ended(task)
            assert used_bytes(broker) == 0
            assert len((await consumed(broker, until_end=True)).values) == 400

    run(scenario())


def test_a_reader_that_reads_is_not_held_up_by_those_that_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_budget, "_CHECK_S", 0.02)

    async def scenario() -> None:
        async with running(tmp_path, reader_bytes=1 << 20, slow_reader_ms=100) as broker:
            await topic_of(broker)
            for _ in range(40):
                await produce(broker, b"v" * 100_000)
            stopped = [following(broker, taking=False) for _ in range(30)]
            await asyncio.sleep(0.03)
            stream = await asyncio.wait_for(consumed(broker, until_end=True), 20)
            assert len(stream.values) == 40
            cut = [stream.was_cut for stream, _ in stopped]
            assert any(cut)
            for stream, task in stopped:
                task.cancel()
            await asyncio.gather(*(task for _, task in stopped), return_exceptions=True)
            assert used_bytes(broker) == 0

    run(scenario())


def test_many_readers_that_follow_get_every_large_record(tmp_path: Path) -> None:
    """None of them is slow, so none of them waits for another."""

    async def scenario() -> None:
        async with running(tmp_path, reader_bytes=1 << 20, slow_reader_ms=200) as broker:
            await topic_of(broker)
            streams = [following(broker) for _ in range(15)]
            for number in range(5):
                await produce(broker, b"%d" % number + b"v" * 100_000)
                await until(lambda: all(len(stream.values) == number + 1 for stream, _ in streams), 5)
            assert not any(stream.was_cut for stream, _ in streams)
            for _, task in streams:
                await ended(task)
            assert used_bytes(broker) == 0

    run(scenario())


@pytest.mark.parametrize("when", ["waiting for data", "waiting for room", "writing", "reading in a thread"])
def test_a_reader_that_leaves_leaves_nothing_behind(tmp_path: Path, when: str) -> None:
    async def scenario() -> None:
        async with running(tmp_path, reader_bytes=1 << 19) as broker:
            partition = await filled(broker, 100)
            holder: Callable[[], Awaitable[None]] | None = None
            if when == "waiting for data":
                _, task = following(broker, LATEST)
            elif when == "waiting for room":
                await produce(broker, b"v" * 300_000)
                _, first = following(broker, 100, taking=False)
                holder = lambda: ended(first)
                await until(lambda: used_bytes(broker) > 0)
                _, task = following(broker, 100)
            elif when == "writing":
                _, task = following(broker, taking=False)
            else:
                for segment in partition.segments:
                    segment.close()
                _, task = following(broker, 50)
                await asyncio.sleep(0)
            if when != "reading in a thread":
                await asyncio.sleep(0.02)
            assert not task.done()
            await ended(task)
            if holder is not None:
                await holder()
            assert used_bytes(broker) == 0
            assert len((await consumed(broker, until_end=True)).values) >= 100

    run(scenario())
