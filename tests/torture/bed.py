"""A log to damage, what was written to it, and what recovery has to make of the damage.

A Base is one partition as it was left: its files, its records. A Bed is a place on the disk (of memory) where recovery
is let loose on damaged copies of it, many in a second. verdict() says by comparing bytes, without the code that is
tried, how far a damaged copy is whole and whether anything in it proves that more was on the disk once.
"""

import asyncio
import itertools
import logging
import os
import random
import tempfile
from collections.abc import Awaitable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol, TypeVar

from takhin.codec.batch import BATCH_HEADER_SIZE, SEGMENT_HEADER_SIZE, Batch
from takhin.codec.messages import ProduceRequest
from takhin.config import Limits
from takhin.errors import Reason, TakhinError
from takhin.log.files import Files as FileAccess
from takhin.log.index import INDEX_HEADER_SIZE, read_summary
from takhin.log.partition import Partition
from takhin.log.producers import SNAPSHOT_NAME, ProducerBudget, ProducerStates
from takhin.log.reader import WOULD_BLOCK, Reader
from takhin.log.recovery import RecoveredPartition, recover_partition
from takhin.log.segment import FileCache
from takhin.log.store import LogStore, PartitionSpec
from takhin.v1 import takhin_pb2 as pb
from tests.log.test_partition import NOW_MS, TOPIC_ID, Config, LocalLog, batches_in, segments_of
from tests.torture.common import Run

T = TypeVar("T")
Files = dict[str, bytes]

_SEGMENT_SUFFIX = ".log"


@dataclass(frozen=True, slots=True)
class Place:
    """A batch in its segment: bytes start to end, offsets base to next; all below durable_offset was durable then."""

    start: int
    end: int
    base_offset: int
    next_offset: int
    durable_offset: int


@dataclass(frozen=True)
class Base:
    """One partition as it was left. files: by name; records: by offset; places: the batches of each segment; batches:
    the headers of all of them."""

    name: str
    files: Files
    records: list[pb.Record]
    places: dict[str, list[Place]]
    batches: list[Batch]
    was_clean: bool

    @property
    def segments(self) -> list[str]:
        return sorted(self.places)

    @property
    def end_offset(self) -> int:
        return len(self.records)


def value_of(chance: random.Random, largest: int) -> bytes:
    """Bytes of all kinds: a few, many, all alike, or what looks like a piece of the log."""
    size = chance.choice((0, 1, chance.randrange(40), chance.randrange(largest)))
    kind = chance.randrange(8)
    if kind == 0:
        return bytes(size)
    if kind == 1:
        return (b"2g\x0dTKB1" * (size // 7 + 1))[:size]
    return chance.randbytes(size)


def make_base(
    name: str, seed: int, *, segment_bytes: int, total_bytes: int, largest_value: int = 700, sync_until: float = 0.0,
    was_clean: bool = False,
) -> Base:
    """A partition of so many bytes, synced now and then up to that share of it; stopped cleanly, or killed."""
    chance = random.Random(f"{name}/{seed}")
    with scratch() as directory:
        log = LocalLog(directory / "made", Config(segment_bytes=segment_bytes))
        written = 0
        sequences = {1: 0, 2: 0, 3: 0}
        while written < total_bytes:
            values = [value_of(chance, largest_value) for _ in range(chance.choice((1, 1, 2, 5)))]
            request = pb.ProduceMessageRequest(topic="t", records=[pb.Record(value=value) for value in values])
            if chance.random() < 0.5:
                producer = chance.choice((1, 1, 2, 3))
                request.producer.CopyFrom(pb.ProducerState(id=producer, sequence=sequences[producer]))
                sequences[producer] += len(values)
            log.append_request(request)
            log.tick()
            written = log.partition.size_bytes
            if written < total_bytes * sync_until and chance.random() < 0.3:
                log.sync()
        if was_clean:
            log.close()
        left = log.killed(directory / "left")
        log.close()
        return read_base(name, left, was_clean)


def read_base(name: str, directory: Path, was_clean: bool) -> Base:
    """What lies in a whole data directory, partition 0."""
    files: Files = {}
    records: list[pb.Record] = []
    places: dict[str, list[Place]] = {}
    batches: list[Batch] = []
    for path in segments_of(directory):
        at = SEGMENT_HEADER_SIZE
        places[path.name] = []
        for batch in batches_in(path):
            end = at + BATCH_HEADER_SIZE + batch.payload_bytes
            places[path.name].append(Place(at, end, batch.base_offset, batch.next_offset, batch.durable_offset))
            at = end
            batches.append(batch)
        records += pb.ConsumeMessagesResponse.FromString(path.read_bytes()).records
    for path in segments_of(directory)[0].parent.iterdir():
        files[path.name] = path.read_bytes()
    assert [record.offset for record in records] == list(range(len(records)))
    return Base(name, files, records, places, batches, was_clean)


Known = dict[int, list[tuple[int, int, int, int, int]]]


def producers_of(base: Base, end: int) -> Known:
    """What the batches before `end` tell of producers: of each its last five, as ProducerState.batches_known does."""
    known: Known = {}
    for batch in base.batches:
        if batch.producer_id >= 0 and batch.next_offset <= end:
            first_ms = base.records[batch.base_offset].timestamp
            told = (batch.producer_sequence, batch.record_count, batch.base_offset, first_ms, batch.epoch)
            known.setdefault(batch.producer_id, []).append(told)
    return {producer: batches[-5:] for producer, batches in known.items()}


# What is to be expected


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a damaged copy is. whole_until: the offset up to which all is there; at: the segment and byte where it ends.

    damaged: something else than the log's end stands there. proven: it was on the disk once, so nothing may be cut.
    vouched: an index file vouches for the damaged place in a file of at least that size, so that recovery does not look
    there: whoever reads it finds the damage.
    """

    whole_until: int
    at: tuple[str, int]
    damaged: bool
    proven: bool
    vouched: bool


def summary_of(files: Files, segment: str) -> tuple[int, int] | None:
    """(size in bytes, next offset) that a whole index file of the segment vouches for."""
    data = files.get(index_of(segment))
    found = read_summary(data[:INDEX_HEADER_SIZE]) if data is not None else None
    if found is None or found[0].base_offset != int(segment.removesuffix(_SEGMENT_SUFFIX)):
        return None
    return found[0].size_bytes, found[0].next_offset


def snapshot_end_of(files: Files) -> int:
    """The offset up to which a whole snapshot of producers vouches; 0: there is none."""
    states = ProducerStates.decode(files.get(SNAPSHOT_NAME, b""), TOPIC_ID, 0, ProducerBudget(0))
    return states.snapshot_offset if states is not None else 0


def index_of(segment: str) -> str:
    return segment.removesuffix(_SEGMENT_SUFFIX) + ".index"


def verdict(base: Base, files: Files) -> Verdict:
    """How far `files`, a damaged copy of base's, is whole, and what its rest proves."""
    stop = _first_damage(base, files)
    if stop is None:
        last = base.segments[-1]
        return Verdict(base.end_offset, (last, len(base.files[last])), False, False, False)
    segment, position, offset = stop
    later = [name for name in base.segments if name > segment and name in files]
    summary = summary_of(files, segment)
    proven = (
        base.was_clean
        or (summary is not None and summary[0] > position)
        or snapshot_end_of(files) > offset
        or any(summary_of(files, name) is not None for name in later)
        or any(place.durable_offset > offset for place in _whole_behind(base, files, segment, position, later))
    )
    size = len(files.get(segment, b""))
    vouched = summary is not None and position < summary[0] <= size
    return Verdict(offset, (segment, position), True, proven, vouched)


def _first_damage(base: Base, files: Files) -> tuple[str, int, int] | None:
    """(segment, byte, offset) of the first batch, header or end of a file that is not as it was; None: all is."""
    for name in base.segments:
        data, whole = files.get(name, b""), base.files[name]
        base_offset = int(name.removesuffix(_SEGMENT_SUFFIX))
        if data[:SEGMENT_HEADER_SIZE] != whole[:SEGMENT_HEADER_SIZE]:
            return name, 0, base_offset
        if data == whole:
            continue
        for place in base.places[name]:
            if data[place.start : place.end] != whole[place.start : place.end]:
                return name, place.start, place.base_offset
        return name, len(whole), base.places[name][-1].next_offset if base.places[name] else base_offset
    return None


def _whole_behind(base: Base, files: Files, segment: str, position: int, later: list[str]) -> Iterator[Place]:
    """Also those of another segment, where files were exchanged, or that were shifted, where blocks of other lengths
    were: a batch tells what was durable wherever it stands."""
    for name in [segment, *later]:
        is_own = files[name][:SEGMENT_HEADER_SIZE] == base.files[name][:SEGMENT_HEADER_SIZE]
        begin = position + 1 if name == segment else 0
        for origin in [name] if is_own else base.segments:
            for place in base.places[origin]:
                if files[name].find(base.files[origin][place.start : place.end], begin) >= 0:
                    yield place


def proves_nothing(base: Base) -> Base:
    """The same log as if nothing of it had ever been synced, nor anything beside it been written: a base of torn tails
    only."""
    files = {name: data for name, data in base.files.items() if name.endswith(_SEGMENT_SUFFIX)}
    return Base(base.name, files, base.records, base.places, base.batches, False)


# Where it is tried


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory where a sync costs nothing, while there is one."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="takhin-", dir=place) as path:
        yield Path(path)


class Bed:
    """One partition's place in a data directory, and a store to recover, open and append with."""

    def __init__(self, directory: Path, config: Config = Config(segment_bytes=1 << 27)):
        self.loop = asyncio.new_event_loop()
        self._config = config
        self._root = directory
        self._place = directory / "topics" / str(TOPIC_ID) / "0"
        self._scan = ProduceRequest(1000)
        self._cache = FileCache(FileAccess(), 100)
        os.makedirs(self._place, exist_ok=True)

        async def begin() -> LogStore:
            return LogStore(str(directory), Limits(), self.loop, lambda: NOW_MS, lambda partition: None)

        self.store = self.loop.run_until_complete(begin())

    def close(self) -> None:
        self.loop.run_until_complete(self.store.close([]))
        self.loop.close()

    def put(self, files: Files) -> None:
        """The partition's directory holds just these."""
        if not self._place.is_dir():
            os.makedirs(self._place)
        for entry in os.scandir(self._place):
            if entry.name not in files:
                os.unlink(entry.path)
        for name, data in files.items():
            # What stands there already is mostly the same: comparing costs less than new pages.
            with open(self._place / name, "a+b", buffering=0) as file:
                if os.pread(file.fileno(), len(data) + 1, 0) != data:
                    file.truncate(0)
                    file.write(data)

    def files(self) -> Files:
        found = {}
        for entry in os.scandir(self._place):
            with open(entry.path, "rb", buffering=0) as file:
                found[entry.name] = file.read()
        return found

    def recover(self, was_clean: bool, epoch: int = 2) -> tuple[RecoveredPartition, Partition]:
        """What a start makes of the directory; close() the partition before the next."""
        spec = PartitionSpec("t", TOPIC_ID, 0, 0, (), self._config)
        # Not in a thread, as a store does: there is only this one to do.
        found = recover_partition(
            self._cache, str(self._place), TOPIC_ID, 0, 0, was_clean=was_clean, producers=self.store.producers
        )
        return found, self.store.open_partition(spec, found, epoch)

    def end(self, partition: Partition, clean: bool) -> None:
        """Stop in order, with an index beside each segment, or as kill -9 would."""
        if clean:
            for segment in partition.segments:
                segment.write_index()
            partition.save_producers()
        self.store.close_partition(partition, Reason.DRAINING, "ended")

    def append_durable(self, partition: Partition, *values: bytes) -> int:
        """One batch, durable; its first offset."""
        request = pb.ProduceMessageRequest(topic="t", records=[pb.Record(value=value) for value in values])
        self._scan.read(request.SerializeToString())
        answer = pb.ProduceMessageResponse.FromString(partition.append(self._scan, NOW_MS, pb.DURABILITY_DURABLE))
        partition.flush()
        self.run(partition.make_durable(partition.written_offset))
        return answer.offset

    def run(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(work)


def read_all(partition: Partition, offset: int = 0, max_bytes: int = 1 << 20) -> tuple[list[pb.Record], Reason | None]:
    """All records that a reader gets from offset on, and with what error it ended before the log's end."""
    reader = Reader(partition, offset, partition.written_offset)
    records: list[pb.Record] = []
    try:
        while not reader.done:
            raw = reader.read(max_bytes)
            if raw is WOULD_BLOCK:
                raw = reader.read_blocking(max_bytes)
            if raw is None:
                break
            assert isinstance(raw, bytes)
            before = len(records)
            records += pb.ConsumeMessagesResponse.FromString(raw).records
            if len(records) == before:
                break
    except TakhinError as problem:
        return records, problem.reason
    return records, None


# Rounds, in several processes


class Plan(Protocol):
    """A numbered set of damages. judge() tries one and tells the run what came of it."""

    total: int

    def judge(self, number: int, run: Run) -> None: ...

    def close(self) -> None: ...


class MakePlan(Protocol):
    """A plan's class."""

    def __call__(self, directory: Path, seed: int) -> Plan: ...


_ROUNDS_AT_ONCE = 500


@contextmanager
def quiet() -> Iterator[None]:
    """Without the lines that the broker logs for each damage it finds."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def run_plan(run: Run, make: MakePlan) -> None:
    """As many rounds of the plan as the run wants, here, one after the other."""
    with scratch() as directory, quiet():
        plan = make(directory, run.seed)
        try:
            numbers = run.random(-1).sample(range(plan.total), min(run.count, plan.total))
            run.count = len(numbers)
            for (_, _), number in zip(run, numbers, strict=False):
                _judge(plan, number, run)
        finally:
            plan.close()


def run_plans_on_all_cores(run: Run, plans: list[MakePlan]) -> None:
    """The rounds of all the plans, on every core; a count is each plan's. Time is looked at now and then."""
    count, run.count = run.count, 0
    for make in plans:
        with scratch() as directory:
            plan = make(directory / "first", run.seed)
            numbers = run.random(-1).sample(range(plan.total), min(count, plan.total))
            plan.close()
            run.count += len(numbers)
            _spread(run, make, directory, numbers)


def _spread(run: Run, make: MakePlan, directory: Path, numbers: list[int]) -> None:
    starts = range(0, len(numbers), _ROUNDS_AT_ONCE)
    portions = iter([numbers[start : start + _ROUNDS_AT_ONCE] for start in starts])
    workers = os.cpu_count() or 1
    how = (directory, make, run.seed)
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker, how) as pool:
        waiting = {pool.submit(_work, portion) for portion in itertools.islice(portions, 2 * workers)}
        while waiting:
            ended = next(as_completed(waiting))
            waiting.remove(ended)
            part = ended.result()
            run.done += part.done
            run.failures += part.failures
            run.add(**part.figures)
            if not run.is_over:
                waiting |= {pool.submit(_work, portion) for portion in itertools.islice(portions, 1)}


@dataclass
class _Part:
    done: int
    failures: list[str]
    figures: dict[str, int] = field(default_factory=dict)


_worker: tuple[Plan, int] | None = None


def _begin_worker(directory: Path, make: MakePlan, seed: int) -> None:
    global _worker
    logging.disable(logging.ERROR)
    _worker = make(Path(tempfile.mkdtemp(dir=directory)), seed), seed


def _work(numbers: list[int]) -> _Part:
    assert _worker is not None
    plan, seed = _worker
    run = Run(type(plan).__name__, len(numbers), seed)
    for number in numbers:
        _judge(plan, number, run)
    return _Part(len(numbers), run.failures, {name: int(str(value)) for name, value in run.figures.items()})


def _judge(plan: Plan, number: int, run: Run) -> None:
    try:
        plan.judge(number, run)
    except Exception as problem:  # whatever it is, it is a finding
        run.fail(f"round {number}: {type(problem).__name__}: {problem}")
