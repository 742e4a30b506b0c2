"""A partition on real files: what a tick appends, who is answered when, and what a write that fails leaves behind.

LocalLog, at the top, is what the other tests of the log use too: partitions without a broker, driven tick by tick.
"""

import asyncio
import gc
import os
import resource
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from takhin.codec.batch import BATCH_HEADER_SIZE, SEGMENT_HEADER_SIZE, Batch, read_batch
from takhin.codec.messages import ProduceRequest
from takhin.config import Limits
from takhin.errors import Code, Reason, TakhinError
from takhin.log.partition import Partition
from takhin.log.reader import WOULD_BLOCK, Reader
from takhin.log.store import LogStore, PartitionSpec, StoreOffsets
from takhin.v1 import takhin_pb2 as pb

NOW_MS = 1_700_000_000_000
TOPIC_ID = 1
ACCEPTED, WRITTEN, DURABLE = 1, 2, 3
SHARED_BATCH_BYTES = 256 * 1024

T = TypeVar("T")


@dataclass(frozen=True)
class Config:
    """What a topic's configuration says; flush_ms -1: nothing is synced unasked."""

    segment_bytes: int = 1 << 27
    segment_ms: int = 10**12
    flush_ms: int = -1
    log_append_time: bool = False


class LocalLog:
    """The partitions of one topic in `directory`, on an event loop of their own that runs only when it is told to."""

    def __init__(
        self, directory: str | Path, config: Config = Config(), *, partitions: int = 1, log_start: int = 0,
        epoch: int = 1, epochs: tuple[tuple[int, int], ...] = (), was_clean: bool = False,
        store_offsets: StoreOffsets | None = None, **limits: int,
    ):
        self.directory = str(directory)
        self.loop = asyncio.new_event_loop()
        self.halted: list[Partition] = []
        self.obstructed: list[Partition] = []
        self.now_ms = NOW_MS
        self._scan = ProduceRequest(100_000)
        os.makedirs(os.path.join(self.directory, "topics"), exist_ok=True)
        specs = [
            PartitionSpec("t", TOPIC_ID, number, log_start, epochs, config) for number in range(partitions)
        ]

        async def begin() -> None:
            self.store = LogStore(
                self.directory, Limits(**limits), self.loop, lambda: self.now_ms, self.halted.append,
                self.obstructed.append)
            self.found = await self.store.recover(specs, was_clean=was_clean, store_offsets=store_offsets)
            self.partitions = [
                self.store.open_partition(spec, found, epoch) for spec, found in zip(specs, self.found, strict=True)
            ]

        self.loop.run_until_complete(begin())
        self.partition = self.partitions[0]

    def append(self, *values: bytes, to: int = 0, batch: bool = False) -> pb.ProduceMessageResponse:
        """One request. Raises what Partition.append does."""
        request = pb.ProduceMessageRequest(topic="t", partition=to)
        if batch:
            request.records.extend(pb.Record(value=value) for value in values)
        else:
            (request.record.value,) = values
        return self.append_request(request)

    def append_request(self, request: pb.ProduceMessageRequest) -> pb.ProduceMessageResponse:
        self._scan.read(request.SerializeToString())
        response = self.partitions[request.partition].append(self._scan, self.now_ms, WRITTEN)
        return pb.ProduceMessageResponse.FromString(response)

    def refused(self, reason: Reason, *values: bytes, to: int = 0) -> TakhinError:
        """An append that has to be refused."""
        with pytest.raises(TakhinError) as caught:
            self.append(*values or (b"refused",), to=to)
        assert caught.value.reason is reason, caught.value
        assert caught.value.metadata["topic"] == "t"
        assert caught.value.metadata["partition"] == str(to)
        return caught.value

    def tick(self) -> None:
        """To the end of a tick of the loop: what was appended is written, or not."""
        self.run(asyncio.sleep(0))

    def write(self, *values: bytes, to: int = 0) -> None:
        """Each value as a batch, written."""
        for value in values:
            self.append(value, to=to, batch=True)
        self.partitions[to].flush()

    def sync(self) -> None:
        """Everything is written and durable."""
        self.tick()

        async def all_durable() -> None:
            await asyncio.gather(*(
                partition.make_durable(partition.written_offset) for partition in self.partitions
            ))

        self.run(all_durable())

    def run(self, work: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await asyncio.wait_for(work, 20)

        return self.loop.run_until_complete(awaited())

    def settle(self, until: Callable[[], bool], seconds: float = 10) -> None:
        """Run the loop until that holds."""

        async def wait() -> None:
            while not until():
                await asyncio.sleep(0.002)

        self.loop.run_until_complete(asyncio.wait_for(wait(), seconds))

    def drop_rings(self) -> None:
        """From here on what was written is read from the files."""
        self.store.rings.release_idle(1 << 62)

    def close(self) -> bool:
        """Whether the stop was clean. Nothing, if it was closed already."""
        if self.loop.is_closed():
            return True
        well = self.run(self.store.close(self.partitions))
        self.loop.close()
        return well

    def killed(self, to: str | Path) -> Path:
        """What kill -9 would leave now, as a copy at `to`; this log goes on."""
        shutil.copytree(self.directory, to)
        return Path(to)


LogIn = Callable[..., LocalLog]


@pytest.fixture
def log_in() -> Iterator[LogIn]:
    """log_in(directory, ...): a LocalLog that is closed when the test ends."""
    logs: list[LocalLog] = []

    def open_log(*arguments: object, **named: object) -> LocalLog:
        logs.append(LocalLog(*arguments, **named))  # type: ignore[arg-type]
        return logs[-1]

    yield open_log
    for log in logs:
        log.close()


@pytest.fixture
def log(log_in: LogIn, tmp_path: Path) -> LocalLog:
    return log_in(tmp_path / "data")


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A directory where a sync costs next to nothing, for tests of thousands of them; tmp_path where there is none."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="takhin-", dir="/dev/shm") as path:
        yield Path(path)


def segments_of(directory: str | Path, partition: int = 0) -> list[Path]:
    """The partition's .log files, in order."""
    return sorted((Path(directory) / "topics" / str(TOPIC_ID) / str(partition)).glob("*.log"))


def batches_in(path: Path) -> list[Batch]:
    """Every batch of a segment file, checked; nothing else may stand there."""
    data = path.read_bytes()
    position, batches = SEGMENT_HEADER_SIZE, []
    while position < len(data):
        batches.append(read_batch(data, position))
        position += BATCH_HEADER_SIZE + batches[-1].payload_bytes
    return batches


def read_on(reader: Reader, max_bytes: int = 1 << 20, cold: bool = False) -> pb.ConsumeMessagesResponse | None:
    """The reader's next response, from wherever it comes; with cold from the files in any case."""
    raw = reader.read_blocking(max_bytes) if cold else reader.read(max_bytes)
    if raw is WOULD_BLOCK:
        raw = reader.read_blocking(max_bytes)
    assert raw is None or isinstance(raw, bytes)
    return None if raw is None else pb.ConsumeMessagesResponse.FromString(raw)


def values_of(
    partition: Partition, offset: int = 0, max_bytes: int = 1 << 20, cold: bool = False
) -> list[bytes]:
    """The values of all that readers may see from offset on; offsets are checked."""
    reader = Reader(partition, offset, partition.written_offset)
    values: list[bytes] = []
    while not reader.done:
        response = read_on(reader, max_bytes, cold)
        assert response is not None and response.records
        for record in response.records:
            assert record.offset == offset + len(values)
            values.append(record.value)
    return values


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Writes behind that place in any file fail with EFBIG, those across it are short. For the whole process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Nothing can be opened: EMFILE."""
    taken: list[int] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    try:
        while True:
            try:
                taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def descriptors_of(path: Path | str) -> list[int]:
    """Which of this process's descriptors that file is open on."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == str(path):
                found.append(int(name))
        except OSError:
            pass
    return found


@contextmanager
def file_becomes(path: Path | str, other: int) -> Iterator[None]:
    """What is done to the open segment file really hits `other`, a descriptor whose kernel object refuses it."""
    (fd,) = descriptors_of(path)
    kept = os.dup(fd)
    os.dup2(other, fd)
    try:
        yield
    finally:
        os.dup2(kept, fd)
        os.close(kept)


# What a tick appends


def test_requests_of_a_tick_share_a_batch_and_each_gets_its_own_answer(log: LocalLog) -> None:
    answers = [log.append(b"one"), log.append(b"two"), log.append(b"a", b"b", b"c", batch=True), log.append(b"last")]
    assert log.partition.written_offset == 0
    log.tick()
    assert [(answer.offset, answer.record_count) for answer in answers] == [(0, 1), (1, 1), (2, 3), (5, 1)]
    for answer in answers:
        assert (answer.topic, answer.partition, answer.epoch) == ("t", 0, 1)
        assert (answer.timestamp, answer.durability, answer.code) == (NOW_MS, pb.DURABILITY_WRITTEN, 0)
    (path,) = segments_of(log.directory)
    assert [(batch.base_offset, batch.next_offset, batch.record_count) for batch in batches_in(path)] == [
        (0, 2, 2), (2, 5, 3), (5, 6, 1)
    ]
    log.append(b"of the next tick")
    log.tick()
    assert [batch.record_count for batch in batches_in(path)] == [2, 3, 1, 1]
    assert values_of(log.partition) == [b"one", b"two", b"a", b"b", b"c", b"last", b"of the next tick"]


def test_shared_batches_are_bounded(log: LocalLog) -> None:
    value = b"x" * 10_000
    for _ in range(100):
        log.append(value)
    log.append(b"y" * 300_000)
    log.append(b"after")
    log.tick()
    (path,) = segments_of(log.directory)
    batches = batches_in(path)
    assert sum(batch.record_count for batch in batches) == 102
    sizes = [BATCH_HEADER_SIZE + batch.payload_bytes for batch in batches]
    (large,) = [size for size in sizes if size > SHARED_BATCH_BYTES]
    assert batches[sizes.index(large)].record_count == 1
    # The first ones are as small as a new ring's chunks; then they grow to the bound.
    assert max(batch.record_count for batch in batches) >= 20
    assert values_of(log.partition) == [value] * 100 + [b"y" * 300_000, b"after"]


def test_a_tick_of_many_chunks_is_written_whole(log_in: LogIn, tmp_path: Path) -> None:
    # Each value has a chunk of its own: more runs of memory than one call to the kernel takes.
    log = log_in(tmp_path / "data", ring_bytes=1 << 20, ring_bytes_per_partition=1 << 20)
    values = [bytes([number]) * 270_000 for number in range(150)]
    for value in values:
        log.append(value, batch=True)
    log.tick()
    log.drop_rings()
    assert values_of(log.partition, cold=True) == values


def test_headers_tell_times_epoch_and_the_durable_offset(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", epoch=5)
    log.append(b"a")
    log.sync()
    log.now_ms += 1000
    request = pb.ProduceMessageRequest(topic="t")
    request.records.extend([
        pb.Record(value=b"b", timestamp=NOW_MS + 500_000), pb.Record(value=b"c", timestamp=-7), pb.Record(value=b"d"),
    ])
    assert log.append_request(request).timestamp == NOW_MS + 500_000
    request = pb.ProduceMessageRequest(topic="t")
    request.records.extend([pb.Record(value=b"e", timestamp=-7), pb.Record(value=b"f", timestamp=-9)])
    assert log.append_request(request).timestamp == -7
    log.tick()
    (path,) = segments_of(log.directory)
    first, second, third = batches_in(path)
    assert (first.append_time_ms, first.max_timestamp_ms, first.durable_offset) == (NOW_MS, NOW_MS, 0)
    assert (second.append_time_ms, second.max_timestamp_ms) == (NOW_MS + 1000, NOW_MS + 500_000)
    assert (second.durable_offset, third.durable_offset, third.max_timestamp_ms) == (1, 1, -7)
    for batch in (first, second, third):
        assert batch.epoch == 5
        assert batch.uncompressed_bytes == batch.payload_bytes
        assert (batch.producer_id, batch.producer_epoch, batch.producer_sequence, batch.flags) == (-1, -1, -1, 0)
    (segment,) = log.partition.segments
    assert (segment.last_append_ms, segment.max_timestamp_ms, segment.max_epoch) == (NOW_MS + 1000, NOW_MS + 500_000, 5)
    response = read_on(Reader(log.partition, 0))
    assert response is not None
    assert [record.timestamp for record in response.records] == [NOW_MS, NOW_MS + 500_000, -7, NOW_MS + 1000, -7, -9]


def test_log_append_time_replaces_the_producers_clock(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", Config(log_append_time=True))
    request = pb.ProduceMessageRequest(topic="t", record=pb.Record(value=b"a", timestamp=5))
    assert log.append_request(request).timestamp == NOW_MS
    log.tick()
    (path,) = segments_of(log.directory)
    assert batches_in(path)[0].max_timestamp_ms == NOW_MS
    response = read_on(Reader(log.partition, 0))
    assert response is not None and response.records[0].timestamp == NOW_MS


def test_segments_roll_by_size_and_by_age(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", Config(segment_bytes=2000, segment_ms=60_000))
    for _ in range(30):
        log.append(b"v" * 100)
        log.tick()
    sizes = [path.stat().st_size for path in segments_of(log.directory)]
    assert len(sizes) > 3 and max(sizes) <= 2000
    assert all(size > 1500 for size in sizes[:-1])
    # A batch that is larger than a segment has one of its own.
    log.append(b"v" * 5000, batch=True)
    log.append(b"after")
    log.tick()
    assert [path.stat().st_size > 5000 for path in segments_of(log.directory)][-3:] == [False, True, False]
    before = len(log.partition.segments)
    log.now_ms += 59_999
    log.append(b"young")
    log.tick()
    assert len(log.partition.segments) == before
    log.now_ms += 1
    log.append(b"old")
    log.tick()
    assert len(log.partition.segments) == before + 1
    bases = [int(path.stem) for path in segments_of(log.directory)]
    assert bases == [segment.base_offset for segment in log.partition.segments]
    assert [segment.next_offset for segment in log.partition.segments] == [*bases[1:], 34]
    assert len(values_of(log.partition)) == 34
    assert log.partition.size_bytes == sum(path.stat().st_size for path in segments_of(log.directory))


def test_a_clock_that_steps_back_does_not_roll(log: LocalLog) -> None:
    log.write(b"a")
    log.now_ms -= 365 * 86_400_000
    log.write(b"b")
    log.now_ms += 2 * 365 * 86_400_000
    log.write(b"c")
    assert len(log.partition.segments) == 1
    assert values_of(log.partition) == [b"a", b"b", b"c"]


def test_an_empty_segment_is_not_rolled(log: LocalLog) -> None:
    assert not log.partition.roll(NOW_MS)
    log.write(b"a")
    assert log.partition.roll(NOW_MS)
    assert not log.partition.roll(NOW_MS)
    assert [path.stem for path in segments_of(log.directory)] == [f"{0:020d}", f"{1:020d}"]


# Who waits


def test_written_and_durable_are_told_when_they_are_true(log: LocalLog) -> None:
    log.append(b"a")
    written, durable = log.partition.written(), log.partition.durable()
    assert not written.done() and log.partition.data_after(0) is not None
    pending = log.partition.data_after(0)
    assert pending is not None
    log.partition.flush()
    assert written.result() is None and pending.done() and log.partition.written_offset == 1
    assert log.partition.data_after(0) is None
    assert not durable.done() and log.partition.durable_offset == 0
    assert log.run(durable) is None
    assert log.partition.durable_offset == 1
    assert not log.partition.dirty


def test_a_waiter_that_gives_up_takes_nothing_from_the_others(log: LocalLog) -> None:
    log.append(b"a")
    written = [log.partition.written() for _ in range(3)]
    durable = [log.partition.durable() for _ in range(3)]
    for futures in (written, durable):
        futures[1].cancel()
    log.tick()
    assert [future.cancelled() for future in written] == [False, True, False]
    assert written[0].result() is None and written[2].result() is None
    assert log.run(durable[0]) is None and log.run(durable[2]) is None

    async def three() -> list[object]:
        log.append(b"b")
        log.partition.flush()
        tasks = [asyncio.ensure_future(log.partition.make_durable(2)) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, *others = log.run(three())
    assert isinstance(first, asyncio.CancelledError) and others == [None, None]


def test_readers_that_wait_for_data(log: LocalLog) -> None:
    log.write(b"a")

    async def reader(timeout_s: float) -> bool:
        pending = log.partition.data_after(1)
        assert pending is not None
        return bool((await asyncio.wait([pending], timeout=timeout_s))[0])

    async def several() -> list[object]:
        tasks = [asyncio.ensure_future(reader(timeout_s)) for timeout_s in (10, 0.01, 10, 10)]
        await asyncio.sleep(0.05)
        tasks[2].cancel()
        await asyncio.sleep(0.01)
        assert [task.done() for task in tasks] == [False, True, True, False]
        log.append(b"b")
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, timed_out, cancelled, last = log.run(several())
    assert (first, timed_out, last) == (True, False, True)
    assert isinstance(cancelled, asyncio.CancelledError)


def test_what_nobody_waits_for_any_more_is_not_kept(log: LocalLog) -> None:
    """Each reader of an idle partition that polls with max_wait_ms gives up waiting at each poll."""
    log.write(b"a")

    async def poll() -> None:
        pending = log.partition.data_after(1)
        assert pending is not None
        await asyncio.wait([pending], timeout=0)

    def futures() -> int:
        gc.collect()
        return sum(isinstance(each, asyncio.Future) for each in gc.get_objects())

    log.run(poll())
    before = futures()
    for _ in range(300):
        log.run(poll())
    assert futures() < before + 30


def test_make_durable(log: LocalLog) -> None:
    log.run(log.partition.make_durable(0))
    log.write(b"a", b"b")
    log.run(log.partition.make_durable(1))
    assert log.partition.durable_offset == 2
    syncs = log.store.committer.syncs
    log.run(log.partition.make_durable(2))
    assert log.store.committer.syncs == syncs


# A write that fails


def assert_taken_back(log: LocalLog, before: bytes, values: list[bytes]) -> None:
    """The file and what readers see are as they were."""
    path = segments_of(log.directory)[-1]
    assert path.read_bytes() == before
    partition = log.partition
    assert partition.next_offset == partition.written_offset == len(values)
    assert values_of(partition) == values
    pending = partition.data_after(len(values))
    assert pending is not None
    assert read_on(Reader(partition, len(values))) is None


@pytest.mark.parametrize("room_bytes", [0, 1, 104, 105, 106, 5_000, 100_000])
def test_a_short_write_is_taken_back(log: LocalLog, room_bytes: int) -> None:
    log.write(b"a", b"b")
    log.sync()
    log.write(b"c")
    (path,) = segments_of(log.directory)
    before = path.read_bytes()
    follower = log.partition.data_after(3)
    assert follower is not None
    log.append(b"lost")
    waiters = [log.partition.written(), log.partition.durable()]
    given_up = log.partition.written()
    given_up.cancel()
    for _ in range(20):
        log.append(b"l" * 10_000, batch=True)
    waiters.append(log.partition.durable())
    with file_size_limit(len(before) + room_bytes):
        log.tick()
    for waiter in waiters:
        failure = waiter.result()
        assert failure is not None and failure[0] is Reason.WRITE_FAILED
    assert not follower.done()
    assert_taken_back(log, before, [b"a", b"b", b"c"])
    assert log.halted == [log.partition] and not log.partition.failure_is_final
    # Also with room again nothing is appended before a new epoch has begun.
    assert log.refused(Reason.WRITE_FAILED).code is Code.UNAVAILABLE
    assert_taken_back(log, before, [b"a", b"b", b"c"])
    # What was written before the failure can still become durable.
    log.run(log.partition.make_durable(3))
    log.partition.resume(7)
    answer = log.append(b"d")
    assert (answer.offset, answer.epoch) == (3, 7)
    log.tick()
    assert log.partition.epochs == [(7, 3)]
    assert values_of(log.partition) == [b"a", b"b", b"c", b"d"]
    assert Reader(log.partition, 0).available_bytes <= path.stat().st_size
    assert [batch.epoch for batch in batches_in(path)] == [1, 1, 1, 7]
    log.drop_rings()
    assert values_of(log.partition, cold=True) == [b"a", b"b", b"c", b"d"]
    assert log.close()


def test_a_failure_far_into_a_tick_of_many_chunks_is_taken_back(log: LocalLog) -> None:
    log.write(b"a")
    (path,) = segments_of(log.directory)
    before = path.read_bytes()
    for _ in range(80):
        log.append(b"l" * 270_000, batch=True)
    written = log.partition.written()
    with file_size_limit(75 * 270_000):
        log.tick()
    failure = written.result()
    assert failure is not None and failure[0] is Reason.WRITE_FAILED
    assert_taken_back(log, before, [b"a"])
    log.partition.resume(2)
    log.write(b"b")
    assert values_of(log.partition) == [b"a", b"b"]


def test_a_failure_within_a_roll_refuses_the_request_that_rolled(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", Config(segment_bytes=2000))
    log.write(b"a" * 100)
    (path,) = segments_of(log.directory)
    before = path.read_bytes()
    log.append(b"b" * 1000)
    written = log.partition.written()
    with file_size_limit(len(before)):
        log.refused(Reason.WRITE_FAILED, b"c" * 1000)
    failure = written.result()
    assert failure is not None and failure[0] is Reason.WRITE_FAILED
    log.tick()
    assert len(log.halted) == 1
    assert_taken_back(log, before, [b"a" * 100])
    log.partition.resume(2)
    log.write(b"d" * 1900)
    assert values_of(log.partition) == [b"a" * 100, b"d" * 1900]
    assert len(segments_of(log.directory)) == 2


def test_epochs_after_failures_in_a_row(log: LocalLog) -> None:
    log.write(b"a")
    for epoch in (2, 3, 4):
        log.append(b"lost")
        with file_size_limit(10):
            log.tick()
        log.partition.resume(epoch)
    # Nothing was written in epochs 2 and 3.
    assert log.partition.epochs == [(4, 1)]
    log.write(b"b")
    log.append(b"lost")
    with file_size_limit(10):
        log.tick()
    log.partition.resume(5)
    assert log.partition.epochs == [(4, 1), (5, 2)]


def test_a_write_that_cannot_be_taken_back_is_final(log: LocalLog, log_in: LogIn) -> None:
    log.write(b"a")
    log.run(log.partition.make_durable(1))
    (path,) = segments_of(log.directory)
    log.append(b"lost")
    written, durable = log.partition.written(), log.partition.durable()
    full = os.open("/dev/full", os.O_RDWR)
    with file_becomes(path, full):
        log.partition.flush()
    os.close(full)
    for waiter in (written, durable):
        failure = waiter.result()
        assert failure is not None and failure[0] is Reason.PARTITION_READ_ONLY
    assert log.partition.failure_is_final
    log.partition.resume(2)
    assert log.refused(Reason.PARTITION_READ_ONLY).code is Code.FAILED_PRECONDITION
    assert values_of(log.partition) == [b"a"]
    with pytest.raises(TakhinError):
        log.partition.roll(NOW_MS)
    assert not log.close()
    assert values_of(log_in(log.directory).partition) == [b"a"]


def test_out_of_descriptors_at_a_write_is_not_final(log_in: LogIn, tmp_path: Path) -> None:
    """Nothing was written: there is nothing that would have to be taken back."""
    log = log_in(tmp_path / "data")
    log.write(b"a")
    log.sync()
    (path,) = segments_of(log.directory)
    before = path.read_bytes()
    for segment in log.partition.segments:
        segment.close()
    if descriptors_of(path):
        pytest.skip("the active segment's file stays open")
    log.append(b"lost")
    written = log.partition.written()
    with no_descriptor_left():
        log.tick()
    failure = written.result()
    assert failure is not None and failure[0] is Reason.WRITE_FAILED
    assert not log.partition.failure_is_final
    assert_taken_back(log, before, [b"a"])
    log.partition.resume(2)
    log.write(b"b")
    assert values_of(log.partition) == [b"a", b"b"]


# A segment that can't be begun


def test_out_of_descriptors_a_segment_is_begun_later(log: LocalLog) -> None:
    with no_descriptor_left():
        assert log.refused(Reason.WRITE_FAILED).code is Code.UNAVAILABLE
    assert log.partition.failure is None and log.partition.next_offset == 0
    assert log.append(b"a").offset == 0
    log.tick()
    with no_descriptor_left(), pytest.raises(TakhinError) as caught:
        log.partition.roll(NOW_MS)
    assert caught.value.reason is Reason.WRITE_FAILED
    assert log.append(b"b").offset == 1
    log.sync()
    assert log.partition.roll(NOW_MS)
    log.write(b"c")
    log.sync()
    assert values_of(log.partition) == [b"a", b"b", b"c"]
    assert len(segments_of(log.directory)) == 2


def test_something_in_the_directorys_place(log: LocalLog) -> None:
    place = Path(log.directory, "topics", str(TOPIC_ID))
    place.write_bytes(b"")
    log.refused(Reason.WRITE_FAILED)
    log.now_ms += 1
    log.refused(Reason.WRITE_FAILED)
    # Told once, however often it is tried.
    assert log.obstructed == [log.partition] and log.partition.obstacle_ms == log.now_ms
    assert log.partition.obstacle == "a segment of t/0 can't be begun: Not a directory"
    place.unlink()
    log.write(b"a")
    assert log.partition.obstacle is None
    log.sync()
    assert values_of(log.partition) == [b"a"]


def test_a_removed_directory(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", Config(segment_bytes=1100))
    log.write(b"a" * 500)
    log.sync()
    directory = Path(log.directory, "topics", str(TOPIC_ID), "0")
    aside = directory.rename(tmp_path / "aside")
    log.append(b"b" * 100)
    log.tick()  # the segment that is open goes on
    log.refused(Reason.WRITE_FAILED, b"c" * 1000)
    assert log.partition.failure is None and log.obstructed == [log.partition]
    aside.rename(directory)
    log.write(b"d" * 1000)
    log.sync()
    assert values_of(log.partition) == [b"a" * 500, b"b" * 100, b"d" * 1000]
    assert len(segments_of(log.directory)) == 2


def test_a_segment_that_cannot_get_its_header_leaves_no_file(log: LocalLog) -> None:
    with file_size_limit(20):
        log.refused(Reason.WRITE_FAILED)
    assert segments_of(log.directory) == []
    log.write(b"a")
    assert log.partition.roll(NOW_MS)
    log.write(b"b")
    log.append(b"c")
    log.tick()
    with file_size_limit(20), pytest.raises(TakhinError):
        log.partition.roll(NOW_MS)
    assert len(segments_of(log.directory)) == 2
    log.write(b"d")
    assert values_of(log.partition) == [b"a", b"b", b"c", b"d"]


# Epochs, the log's start, the end


def test_divergence(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", epoch=5, epochs=((2, 1), (5, 3)))
    log.write(*(b"%d" % number for number in range(5)))
    divergence = log.partition.divergence
    # A reader whose last record was of epoch 1 saw what is here only if it is below the first newer epoch.
    assert [divergence(1, offset) for offset in (0, 1, 2, 9)] == [None, None, 1, 1]
    assert [divergence(2, offset) for offset in (0, 3, 4)] == [None, None, 3]
    assert [divergence(4, offset) for offset in (3, 4)] == [None, 3]
    assert [divergence(5, offset) for offset in (3, 5, 6)] == [None, None, 5]
    assert [divergence(9, offset) for offset in (5, 6)] == [None, 5]


def test_divergence_is_never_beyond_the_end(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", epoch=5, epochs=((5, 3),))
    log.write(b"a")
    assert log.partition.divergence(1, 2) == 1
    assert log.partition.divergence(1, 1) is None


def test_moving_the_log_start(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", Config(segment_bytes=1100))
    for number in range(12):
        log.write(b"%02d" % number + b"v" * 100)
    log.sync()
    partition = log.partition
    bases = [segment.base_offset for segment in partition.segments]
    assert partition.set_log_start(bases[1] - 1) == []
    removed = partition.set_log_start(bases[2])
    assert [segment.base_offset for segment in removed] == bases[:2]
    log.run(log.store.remove_segments(removed))
    assert [int(path.stem) for path in segments_of(log.directory)] == bases[2:]
    assert partition.log_start_offset == bases[2]
    assert partition.set_log_start(0) == [] and partition.log_start_offset == bases[2]
    # The active segment stays, wherever the start is.
    assert [segment.base_offset for segment in partition.set_log_start(12)] == bases[2:-1]
    assert [segment.base_offset for segment in partition.segments] == bases[-1:]
    log.write(b"next")
    assert values_of(partition, 12) == [b"next"]


def test_close_ends_all_that_wait(log: LocalLog) -> None:
    log.write(b"a")
    partition = log.partition
    log.append(b"b")
    waiters = [partition.written(), partition.durable()]
    data = partition.data_after(1)
    assert data is not None
    log.store.close_partition(partition, Reason.TOPIC_NOT_FOUND, "gone")
    for waiter in waiters:
        assert waiter.result() == (Reason.TOPIC_NOT_FOUND, "gone")
    assert data.done()
    log.refused(Reason.TOPIC_NOT_FOUND)
    log.tick()  # the tick that was to write finds nothing
    assert log.store.rings.used_bytes == 0
    assert partition.written_offset == 1
