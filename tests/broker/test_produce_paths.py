"""Produce in process, on a real broker's parts and real files: who gets which answer when writes, syncs and disks fail.

running(), at the top, is what the other tests of the broker use too.
"""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from takhin.broker import broker as broker_module
from takhin.broker.broker import Broker
from takhin.clock import wall_clock_ms
from takhin.config import Limits, Settings, TopicDefaults
from takhin.errors import Code, Reason, TakhinError
from takhin.log.partition import Partition
from takhin.v1 import takhin_pb2 as pb
from tests.log.test_partition import file_becomes, file_size_limit, values_of

T = TypeVar("T")
Clock = Callable[[], int]


def settings(directory: Path, topics: dict[str, int] | None = None, **limits: int) -> Settings:
    """Nothing happens by itself but what a test asks for."""
    quiet = {"flush_ms": -1, "retention_check_ms": 2**31 - 1}
    return Settings(
        data_dir=str(directory), topics=replace(TopicDefaults(), **quiet | (topics or {})),
        limits=replace(Limits(), **{"min_free_bytes": 0} | limits),
    )


@asynccontextmanager
async def running(
    directory: Path, topics: dict[str, int] | None = None, clock_ms: Clock = wall_clock_ms, **limits: int
) -> AsyncIterator[Broker]:
    """A broker without a front."""
    broker = Broker(settings(directory, topics, **limits), clock_ms)
    await broker.start()
    try:
        yield broker
    finally:
        broker.begin_drain()
        await broker.stop()


def run(scenario: Awaitable[T], seconds: float = 30) -> T:
    async def limited() -> T:
        return await asyncio.wait_for(scenario, seconds)

    return asyncio.run(limited())


async def topic_of(broker: Broker, name: str = "t", partitions: int = 1, **configs: str) -> list[Partition]:
    """A new topic; configs with _ for their dots."""
    named = {config.replace("_", "."): value for config, value in configs.items()}
    return (await broker.topics.create(name, partitions, 1, named)).partitions


def request(*values: bytes, topic: str = "t", acks: int = 1, batch: bool = False, **fields: int) -> bytes:
    message = pb.ProduceMessageRequest(topic=topic, required_acks=acks, **fields)
    if batch:
        message.records.extend(pb.Record(value=value) for value in values)
    else:
        (message.record.value,) = values
    return message.SerializeToString()


async def produce(broker: Broker, *values: bytes, **named: object) -> pb.ProduceMessageResponse:
    answer = await broker.producing.produce(request(*values, **named))  # type: ignore[arg-type]
    return pb.ProduceMessageResponse.FromString(answer)


async def outcomes(*work: Awaitable[T]) -> list[T | BaseException]:
    return await asyncio.gather(*work, return_exceptions=True)


async def without_room(size_bytes: int, *work: Awaitable[T]) -> list[T | BaseException]:
    """What comes of it while no file may grow beyond that size."""
    with file_size_limit(size_bytes):
        return await outcomes(*work)


def reason_of(outcome: object) -> Reason:
    assert isinstance(outcome, TakhinError), outcome
    return outcome.reason


async def refused(reason: Reason, work: Awaitable[object]) -> TakhinError:
    with pytest.raises(TakhinError) as caught:
        await work
    assert caught.value.reason is reason, caught.value
    return caught.value


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not come to pass"
        await asyncio.sleep(0.005)


@contextmanager
def tmpfs(path: Path, size_bytes: int) -> Iterator[Path]:
    """A small disk at path. Needs root: skipped without, a failure in CI with it."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "takhin-test", str(path)], capture_output=True, check=False
    )
    if mounted.returncode:
        if os.environ.get("CI") == "true" and os.geteuid() == 0:
            pytest.fail(f"no tmpfs: {mounted.stderr.decode()}")
        pytest.skip("mounting a tmpfs needs root")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def soon_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "RESUME_AFTER_S", 0.05)


# Answers


def test_each_acknowledgement_when_it_is_true(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            (partition,) = await topic_of(broker)
            answer = await produce(broker, b"a", acks=0)
            assert (answer.offset, answer.durability) == (0, pb.DURABILITY_ACCEPTED)
            assert partition.written_offset == 0
            answer = await produce(broker, b"b", acks=1)
            assert (answer.offset, answer.durability) == (1, pb.DURABILITY_WRITTEN)
            assert (partition.written_offset, partition.durable_offset) == (2, 0)
            answer = await produce(broker, b"c", b"d", batch=True, acks=-1)
            assert (answer.offset, answer.record_count, answer.durability) == (2, 2, pb.DURABILITY_DURABLE)
            assert partition.durable_offset == 4
            assert values_of(partition) == [b"a", b"b", b"c", b"d"]

    run(scenario())


def test_a_hundred_at_once_share_batches_and_syncs(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            (partition,) = await topic_of(broker)
            answers = await asyncio.gather(*(
                produce(broker, b"%d" % number, acks=number % 3 - 1) for number in range(100)
            ))
            assert [answer.offset for answer in answers] == list(range(100))
            assert values_of(partition) == [b"%d" % number for number in range(100)]
            assert broker._store.committer.syncs <= 2

    run(scenario())


def test_records_without_a_key_stay_together_for_a_tick(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            partitions = await topic_of(broker, partitions=3)
            seen = []
            for _ in range(4):
                answers = await asyncio.gather(*(produce(broker, b"x", partition=-1) for _ in range(5)))
                (number,) = {answer.partition for answer in answers}
                seen.append(number)
            assert sorted(seen[:3]) == [0, 1, 2] and seen[3] == seen[0]
            batch = [(await produce(broker, b"x", b"y", batch=True, partition=-1)).partition for _ in range(3)]
            assert sorted(batch) == [0, 1, 2]
            assert sum(partition.written_offset for partition in partitions) == 26

    run(scenario())


def test_an_acknowledgement_that_takes_too_long(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, journal_bytes=0) as broker:
            (partition,) = await topic_of(broker)
            await produce(broker, b"a")
            # A sync that does not end.
            target, segments, directories = partition.begin_sync()
            patient = asyncio.ensure_future(produce(broker, b"b", acks=-1))
            await asyncio.sleep(0)
            late = await refused(Reason.ACK_TIMEOUT, produce(broker, b"c", acks=-1, timeout_ms=50))
            assert late.code is Code.DEADLINE_EXCEEDED and "unknown" in late.message
            assert late.metadata == {"topic": "t", "partition": "0"}
            given_up = asyncio.ensure_future(produce(broker, b"d", acks=-1))
            await asyncio.sleep(0)
            given_up.cancel()
            partition.end_sync(target, segments, directories, 0)
            assert not patient.done()
            await partition.make_durable(4)
            assert (await patient).offset == 1
            assert values_of(partition) == [b"a", b"b", b"c", b"d"]
            # Only the durable ack waits for so long.
            assert (await produce(broker, b"e", acks=1, timeout_ms=1)).offset == 4

    run(scenario())


def test_a_topic_that_goes_while_its_answers_are_waited_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, journal_bytes=0) as broker:
            (partition,) = await topic_of(broker)
            await produce(broker, b"a")
            partition.begin_sync()
            waiting = asyncio.ensure_future(outcomes(produce(broker, b"b", acks=-1), produce(broker, b"c", acks=-1)))
            await until(lambda: partition.written_offset == 3)
            await broker.topics.delete("t")
            assert [reason_of(outcome) for outcome in await waiting] == [Reason.TOPIC_NOT_FOUND] * 2
            await refused(Reason.TOPIC_NOT_FOUND, produce(broker, b"d"))

    run(scenario())


# Failures


def test_a_failed_write_heals_by_itself(tmp_path: Path, soon_resumed: None) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            (partition,) = await topic_of(broker)
            others = await topic_of(broker, "other")
            await produce(broker, b"a", acks=-1)
            size = os.path.getsize(partition.segments[0].path)
            forecast, written, durable, fine = await without_room(
                size + 40,
                produce(broker, b"lost", acks=0), produce(broker, b"lost", acks=1), produce(broker, b"lost", acks=-1),
                produce(broker, b"fine", topic="other", acks=1),
            )
            assert isinstance(forecast, pb.ProduceMessageResponse) and forecast.durability == pb.DURABILITY_ACCEPTED
            assert isinstance(fine, pb.ProduceMessageResponse)
            assert (reason_of(written), reason_of(durable)) == (Reason.WRITE_FAILED, Reason.WRITE_FAILED)
            await refused(Reason.WRITE_FAILED, produce(broker, b"too early"))
            assert values_of(partition) == [b"a"]
            await until(lambda: partition.failure is None)
            answer = await produce(broker, b"b", acks=-1)
            assert (answer.offset, answer.epoch) == (1, 2)
            assert values_of(partition) == [b"a", b"b"]
            (row,) = [row for row in await broker._metadata.load_topics() if row.name == "t"]
            assert row.epochs == {0: [(2, 1)]}
            # A reader that saw what was taken back is told; the others' epoch has not changed.
            assert partition.divergence(1, 2) == 1 and partition.divergence(1, 1) is None
            assert (await produce(broker, b"x", topic="other")).epoch == others[0].epoch == 1
            (new,) = await topic_of(broker, "new")
            assert new.epoch == 2
        async with running(tmp_path) as broker:
            partition = broker.topics.partition("t", 0)
            assert values_of(partition) == [b"a", b"b"]
            assert (partition.epoch, partition.epochs) == (2, [(2, 1)])

    run(scenario())


def test_many_partitions_that_fail_at_once_heal_together(tmp_path: Path, soon_resumed: None) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            partitions = await topic_of(broker, partitions=20)
            await asyncio.gather(*(produce(broker, b"a", partition=number) for number in range(20)))
            for _ in range(2):
                lost = await without_room(60, *(produce(broker, b"lost", partition=number) for number in range(20)))
                assert {reason_of(outcome) for outcome in lost} == {Reason.WRITE_FAILED}
                await until(lambda: all(partition.failure is None for partition in partitions))
            answers = await asyncio.gather(*(produce(broker, b"b", partition=number) for number in range(20)))
            assert {answer.offset for answer in answers} == {1}
            # One round for all of them, not an epoch for each.
            assert 2 <= max(answer.epoch for answer in answers) <= 5
            assert all(values_of(partition) == [b"a", b"b"] for partition in partitions)

    run(scenario())


def test_a_topic_deleted_while_it_waits_to_heal(tmp_path: Path, soon_resumed: None) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            (gone,) = await topic_of(broker, "gone")
            (stays,) = await topic_of(broker)
            await asyncio.gather(produce(broker, b"a", topic="gone"), produce(broker, b"a"))
            lost = await without_room(60, produce(broker, b"lost", topic="gone"), produce(broker, b"lost"))
            assert {reason_of(outcome) for outcome in lost} == {Reason.WRITE_FAILED}
            await broker.topics.delete("gone")
            await until(lambda: stays.failure is None)
            assert gone.failure is not None and gone.failure[0] is Reason.TOPIC_NOT_FOUND
            assert (await produce(broker, b"c")).offset == 1

    run(scenario())


def test_a_failed_sync_ends_one_partition_and_no_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            (partition,) = await topic_of(broker)
            await topic_of(broker, "other")
            await produce(broker, b"a", acks=-1)
            await produce(broker, b"b", acks=1)
            reading, writing = os.pipe()
            with file_becomes(partition.segments[0].path, writing):
                await refused(Reason.SYNC_FAILED, broker.groups.commit("g", [("t", 0, 2)]))
            os.close(reading)
            os.close(writing)
            for acks in (0, 1, -1):
                problem = await refused(Reason.SYNC_FAILED, produce(broker, b"c", acks=acks))
                assert problem.code is Code.INTERNAL
            assert values_of(partition) == [b"a", b"b"]
            await broker.groups.commit("g", [("t", 0, 1)])
            assert (await produce(broker, b"x", topic="other", acks=-1)).offset == 0
        # That was no clean stop: the log is looked through, and a new epoch begins.
        async with running(tmp_path) as broker:
            partition = broker.topics.partition("t", 0)
            assert (partition.failure, partition.epoch, partition.epochs) == (None, 2, [(2, 2)])
            assert values_of(partition) == [b"a", b"b"]
            assert (await produce(broker, b"c", acks=-1)).offset == 2

    run(scenario())


def test_a_full_disk_refuses_writes_and_heals_when_there_is_room(tmp_path: Path, soon_resumed: None) -> None:
    async def scenario(disk: Path) -> None:
        async with running(disk / "data") as broker:
            (partition,) = await topic_of(broker)
            (other,) = await topic_of(broker, "other")
            await asyncio.gather(produce(broker, b"first"), produce(broker, b"first", topic="other"))
            expected = [b"first"]
            for _ in range(3):
                ballast = disk / "ballast"
                free = shutil.disk_usage(disk).free
                ballast.write_bytes(b"\0" * max(free - 300_000, 0))
                failure = None
                while failure is None:
                    value = b"%06d" % len(expected) + b"v" * 9000
                    try:
                        assert (await produce(broker, value, acks=-1)).offset == len(expected)
                        expected.append(value)
                    except TakhinError as problem:
                        failure = problem
                assert (failure.reason, failure.code) == (Reason.DISK_FULL, Code.RESOURCE_EXHAUSTED)
                # Reads go on, and nothing half-written is among what they get.
                assert values_of(partition) == expected
                broker._store.rings.release_idle(1 << 62)
                assert values_of(partition) == expected
                assert other.written_offset >= 1
                # There is still no room: each try ends the same way, and offsets are not used up.
                for _ in range(5):
                    await asyncio.sleep(0.03)
                    problem = await refused(Reason.DISK_FULL, produce(broker, b"v" * 300_000, acks=1))
                    assert problem.metadata["topic"] == "t"
                assert partition.next_offset == len(expected)
                ballast.unlink()
                await until(lambda: partition.failure is None)
                answer = await produce(broker, b"healed", acks=-1)
                assert answer.offset == len(expected)
                expected.append(b"healed")
            assert partition.epochs[-1][0] == partition.epoch > 1
        async with running(disk / "data") as broker:
            assert values_of(broker.topics.partition("t", 0)) == expected

    with tmpfs(tmp_path / "disk", 4 << 20) as disk:
        run(scenario(disk))


def test_no_room_for_the_first_segment(tmp_path: Path) -> None:
    async def scenario(disk: Path) -> None:
        async with running(disk / "data") as broker:
            (partition,) = await topic_of(broker)
            ballast = (disk / "ballast").open("wb", buffering=0)
            try:
                while True:
                    ballast.write(b"\0" * 4096)
            except OSError:
                ballast.close()
            problem = await refused(Reason.DISK_FULL, produce(broker, b"a"))
            assert problem.metadata == {"topic": "t", "partition": "0"}
            assert partition.failure is None
            (disk / "ballast").unlink()
            assert (await produce(broker, b"a", acks=-1)).offset == 0

    with tmpfs(tmp_path / "disk", 2 << 20) as disk:
        run(scenario(disk))


# Streams


class Stream:
    """A produce stream's client: what it has sent is read one by one; its answers are taken while `taking` is set."""

    def __init__(self, requests: list[bytes], ends: bool = True):
        self.requests = list(requests)
        self.reads = 0
        self.answers: list[pb.ProduceMessageResponse] = []
        self.taking = asyncio.Event()
        self.taking.set()
        self.more = asyncio.Event()
        self.ends = ends
        self.read_problem: Exception | None = None
        self.write_problem: Exception | None = None

    async def read(self) -> bytes | None:
        while not self.requests:
            if self.read_problem is not None:
                raise self.read_problem
            if self.ends:
                return None
            self.more.clear()
            await self.more.wait()
        self.reads += 1
        return self.requests.pop(0)

    def send(self, *requests: bytes) -> None:
        self.requests += requests
        self.more.set()

    async def write(self, message: bytes) -> None:
        assert type(message) is bytes
        await self.taking.wait()
        if self.write_problem is not None:
            raise self.write_problem
        self.answers.append(pb.ProduceMessageResponse.FromString(message))


def test_a_stream_is_answered_in_order_with_refusals_in_their_places(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            (partition,) = await topic_of(broker, max_message_bytes="1000")
            stream = Stream([
                request(b"a", acks=-1), b"\xff\xff", request(b"b", acks=0), request(b"x", topic="nowhere"),
                request(b"c", acks=7), request(b"d" * 2000), request(b"e", partition=3), request(b"f", acks=1),
                request(b"g", b"h", batch=True, acks=-1),
            ])
            await broker.producing.produce_stream(stream)
            assert [(answer.reason, answer.offset) for answer in stream.answers] == [
                ("", 0), (Reason.MALFORMED_REQUEST, 0), ("", 1), (Reason.TOPIC_NOT_FOUND, 0), (Reason.INVALID_ACKS, 0),
                (Reason.RECORD_TOO_LARGE, 0), (Reason.PARTITION_NOT_FOUND, 0), ("", 2), ("", 3),
            ]
            refusals = [answer for answer in stream.answers if answer.reason]
            assert all(answer.error and answer.code for answer in refusals)
            assert values_of(partition) == [b"a", b"b", b"f", b"g", b"h"]

    run(scenario())


def test_requests_are_read_while_earlier_ones_wait(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, journal_bytes=0) as broker:
            (partition,) = await topic_of(broker)
            await produce(broker, b"first")
            target, segments, directories = partition.begin_sync()
            stream = Stream([request(b"%d" % number, acks=-number % 2 - 1) for number in range(20)])
            task = asyncio.ensure_future(broker.producing.produce_stream(stream))
            await until(lambda: partition.written_offset == 21)
            assert stream.answers == []
            partition.end_sync(target, segments, directories, 0)
            await partition.make_durable(21)
            await task
            assert [answer.offset for answer in stream.answers] == list(range(1, 21))

    run(scenario())


@pytest.mark.parametrize("bound", ["requests", "bytes"])
def test_a_stream_is_read_no_further_than_its_bounds(tmp_path: Path, bound: str) -> None:
    limits = {"stream_requests_in_flight": 8} if bound == "requests" else {"stream_bytes_in_flight": 8 * 500}

    async def scenario() -> None:
        async with running(tmp_path, **limits) as broker:
            (partition,) = await topic_of(broker)
            stream = Stream([request(b"v" * 500) for _ in range(200)])
            stream.taking.clear()
            task = asyncio.ensure_future(broker.producing.produce_stream(stream))
            await asyncio.sleep(0.05)
            read = stream.reads
            assert 7 <= read <= 8
            await asyncio.sleep(0.05)
            assert stream.reads == read and partition.written_offset == read
            stream.taking.set()
            await task
            assert [answer.offset for answer in stream.answers] == list(range(200))

    run(scenario())


def test_streams_are_read_no_further_than_all_of_them_may_have_unanswered(tmp_path: Path) -> None:
    """Whoever has answers to come waits for them; one request each goes on all the same."""

    async def scenario() -> None:
        async with running(tmp_path, all_streams_bytes_in_flight=8 * 500) as broker:
            (partition,) = await topic_of(broker)
            streams = [Stream([request(b"v" * 500) for _ in range(50)]) for _ in range(12)]
            for stream in streams:
                stream.taking.clear()
            tasks = [asyncio.ensure_future(broker.producing.produce_stream(stream)) for stream in streams]
            await asyncio.sleep(0.05)
            reads = sum(stream.reads for stream in streams)
            assert len(streams) <= reads <= len(streams) + 8 and min(stream.reads for stream in streams) == 1
            assert broker.producing.streams_bytes >= 8 * 500
            await asyncio.sleep(0.05)
            assert sum(stream.reads for stream in streams) == reads == partition.written_offset
            # One that ends unanswered is not counted any more.
            tasks[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
            for stream in streams[1:]:
                stream.taking.set()
            await asyncio.gather(*tasks[1:])
            assert all(len(stream.answers) == 50 for stream in streams[1:])
            assert broker.producing.streams_bytes == 0

    run(scenario())


def test_draining_answers_what_was_read_and_ends_the_stream(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            (partition,) = await topic_of(broker)
            stream = Stream([request(b"%d" % number) for number in range(5)], ends=False)
            stream.taking.clear()
            task = asyncio.ensure_future(broker.producing.produce_stream(stream))
            await until(lambda: partition.written_offset == 5)
            broker.begin_drain()
            stream.send(request(b"too late"))
            await asyncio.sleep(0.02)
            assert not task.done()
            stream.taking.set()
            assert (await refused(Reason.DRAINING, task)).code is Code.UNAVAILABLE
            assert [answer.offset for answer in stream.answers] == list(range(5))
            await refused(Reason.DRAINING, produce(broker, b"unary"))
            stream = Stream([request(b"new")])
            await refused(Reason.DRAINING, broker.producing.produce_stream(stream))
            assert stream.answers == [] or all(answer.reason for answer in stream.answers)
            assert partition.next_offset == 5

    run(scenario())


def test_a_stream_whose_client_leaves(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            (partition,) = await topic_of(broker)
            idle = asyncio.all_tasks()
            # By cancelling.
            stream = Stream([request(b"a", acks=-1)], ends=False)
            task = asyncio.ensure_future(broker.producing.produce_stream(stream))
            await until(lambda: partition.written_offset == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # By a write that fails.
            stream = Stream([request(b"b"), request(b"c")], ends=False)
            stream.write_problem = ConnectionError("gone")
            with pytest.raises(ConnectionError):
                await broker.producing.produce_stream(stream)
            # By a read that fails: what came before is answered.
            stream = Stream([request(b"d", acks=-1)])
            stream.read_problem = ConnectionError("gone")
            with pytest.raises(ConnectionError):
                await broker.producing.produce_stream(stream)
            assert len(stream.answers) == 1
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == idle
            assert (await produce(broker, b"e", acks=-1)).offset == partition.written_offset - 1

    run(scenario())


def test_a_failed_write_is_told_to_each_request_of_a_stream(tmp_path: Path, soon_resumed: None) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            (partition,) = await topic_of(broker)
            await produce(broker, b"a")
            stream = Stream([], ends=False)
            task = asyncio.ensure_future(broker.producing.produce_stream(stream))
            await asyncio.sleep(0.01)
            with file_size_limit(60):
                stream.send(request(b"lost", acks=1), request(b"lost", acks=-1))
                await until(lambda: len(stream.answers) == 2)
            for answer in stream.answers:
                assert (answer.topic, answer.reason, answer.code) == ("t", Reason.WRITE_FAILED, Code.UNAVAILABLE)
            await until(lambda: partition.failure is None)
            stream.send(request(b"b"))
            stream.ends = True
            await task
            assert (stream.answers[-1].offset, stream.answers[-1].epoch) == (1, 2)

    run(scenario())
