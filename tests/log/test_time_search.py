"""Where a time begins: against a walk over all records, whatever the timestamps, and how much of the log that takes."""

import os
import random
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from takhin.codec.batch import BATCH_HEADER_SIZE, SEGMENT_HEADER_SIZE
from takhin.errors import Reason, TakhinError
from takhin.log.partition import Partition
from takhin.log.reader import WOULD_BLOCK
from takhin.log.timesearch import TimeSearch
from takhin.v1 import takhin_pb2 as pb
from tests.log.test_partition import (
    NOW_MS,
    Config,
    LocalLog,
    LogIn,
    batches_in,
    log,
    log_in,
    quick_path,
    segments_of,
)
from tests.log.test_segment_index import damage_at, drop_pages

FURTHEST_MS = 2**53 - 1
INTERVAL_BYTES = 4096


def append(log: LocalLog, timestamps: list[int], *, batch: bool = True, size: int = 0) -> None:
    """Written: one batch, or with others of the tick a part of one."""
    request = pb.ProduceMessageRequest(topic="t")
    for timestamp in timestamps:
        record = pb.Record(value=b"v" * size, timestamp=timestamp)
        if batch:
            request.records.append(record)
        else:
            log.append_request(pb.ProduceMessageRequest(topic="t", record=record))
    if batch:
        log.append_request(request)
    log.partition.flush()


def find(partition: Partition, timestamp_ms: int) -> int | None:
    """By both ways, which must agree unless the first one would have to wait."""
    search = TimeSearch(partition, timestamp_ms)
    blocking = TimeSearch(partition, timestamp_ms)
    found = search.find()
    expected = blocking.find_blocking()
    assert found in (expected, WOULD_BLOCK) and found is not False
    assert blocking.end_offset == partition.written_offset
    return expected


def by_walking(timestamps: list[int], log_start: int, timestamp_ms: int) -> int | None:
    """The first offset from log_start on with that timestamp or a later one."""
    for offset in range(log_start, len(timestamps)):
        if timestamps[offset] >= timestamp_ms:
            return offset
    return None


# Against the oracle

times = st.one_of(
    st.integers(NOW_MS - 5, NOW_MS + 5),
    st.integers(-3, 3),
    st.sampled_from([-FURTHEST_MS, FURTHEST_MS, NOW_MS - 10**9, NOW_MS + 10**9]),
)
steps = st.one_of(
    st.tuples(st.just("append"), st.lists(times, min_size=1, max_size=5), st.booleans(), st.integers(0, 3000)),
    st.tuples(st.just("append"), st.lists(times, min_size=1, max_size=40), st.booleans(), st.integers(0, 100)),
    st.tuples(st.just("clock"), st.sampled_from([-(10**9), -7, 1, 10**6])),
    st.tuples(st.just("roll")),
    st.tuples(st.just("start"), st.floats(0, 1)),
    st.tuples(st.just("restart")),
    st.tuples(st.just("kill")),
    st.tuples(st.just("drop rings")),
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(plan=st.lists(steps, max_size=30), segment_bytes=st.sampled_from([1024, 20_000, 1 << 27]), own=st.booleans())
def test_it_finds_what_a_walk_finds(quick_path: Path, plan: list[tuple], segment_bytes: int, own: bool) -> None:
    """Batches and single records, segments rolled, the log's start moved, restarts and kills, in any order."""
    config = Config(segment_bytes=segment_bytes, log_append_time=not own)
    with tempfile.TemporaryDirectory(dir=quick_path) as directory:
        log = LocalLog(f"{directory}/0", config)
        timestamps: list[int] = []
        now_ms, log_start = NOW_MS, 0
        for number, (step, *how) in enumerate([*plan, ("check",)]):
            log.now_ms = now_ms
            if step == "append":
                append(log, how[0], batch=how[1], size=how[2])
                timestamps += [each if own and each else now_ms for each in how[0]]
            elif step == "clock":
                now_ms += how[0]
            elif step == "roll":
                log.partition.roll(now_ms)
            elif step == "start":
                log_start = max(log_start, round(how[0] * len(timestamps)))
                log.run(log.store.remove_segments(log.partition.set_log_start(log_start)))
            elif step == "restart":
                assert log.close()
                log = LocalLog(log.directory, config, log_start=log_start, was_clean=True)
            elif step == "kill":
                killed = log.killed(f"{directory}/{number + 1}")
                log.close()
                log = LocalLog(killed, config, log_start=log_start)
            elif step == "drop rings":
                log.drop_rings()
            if step in ("restart", "kill", "start", "check"):
                assert log.partition.written_offset == len(timestamps)
                for each in {*timestamps, 0, -FURTHEST_MS, FURTHEST_MS, 2**63 - 1, -(2**63)}:
                    for wanted in (each, min(each + 1, 2**63 - 1)):
                        assert find(log.partition, wanted) == by_walking(timestamps, log_start, wanted), wanted
        log.close()


@pytest.mark.parametrize("restarted", [False, True])
def test_in_a_log_of_many_segments(quick_path: Path, log_in: LogIn, restarted: bool) -> None:
    """A clock that steps back now and then, producers with timestamps of the past and of the future."""
    rng = random.Random(1)
    log = log_in(quick_path / "data", Config(segment_bytes=30_000))
    timestamps: list[int] = []
    now_ms = NOW_MS
    for number in range(1500):
        now_ms += rng.choice([1, 1, 1, 5, 0, -200 if number % 100 == 50 else 2])
        batch = [now_ms + rng.choice([0, 0, 0, -1000, rng.randrange(-50, 50)]) for _ in range(rng.choice([1, 3, 10]))]
        if number % 400 == 399:
            batch.append(now_ms + 86_400_000)
        append(log, batch, size=rng.choice([0, 50, 300]))
        timestamps += batch
    assert len(log.partition.segments) > 20
    if restarted:
        log.close()
        log = log_in(log.directory, Config(segment_bytes=30_000), was_clean=True)
    for wanted in {rng.choice(timestamps) + rng.choice([-1, 0, 1]) for _ in range(400)}:
        assert find(log.partition, wanted) == by_walking(timestamps, 0, wanted)


def test_the_ends(log: LocalLog) -> None:
    assert find(log.partition, 0) is None
    append(log, [5, 7])
    assert [find(log.partition, each) for each in (-(2**63), 5, 6, 7, 8, 2**63 - 1)] == [0, 0, 1, 1, None, None]
    # What is not written yet is not there.
    log.append_request(pb.ProduceMessageRequest(topic="t", record=pb.Record(timestamp=9)))
    search = TimeSearch(log.partition, 8)
    assert (search.find(), search.find_blocking(), search.end_offset) == (None, None, 2)
    log.tick()
    assert (search.find(), search.end_offset) == (2, 3)


def test_the_last_timestamp_of_a_record_counts(log: LocalLog) -> None:
    """A producer may have sent several; the stored record's is the one that readers see."""
    twice = pb.Record(timestamp=500).SerializeToString() + pb.Record(timestamp=100).SerializeToString()
    log._scan.read(b"\x1a" + bytes([len(twice)]) + twice)
    log.partition.append(log._scan, log.now_ms, 2)
    log.tick()
    assert [find(log.partition, each) for each in (100, 101, 500)] == [0, None, None]


# How much it takes


def test_the_work_does_not_grow_with_the_log(quick_path: Path, log_in: LogIn) -> None:
    """An index interval of batches at most, whether there are a thousand or twenty thousand of them."""
    log = log_in(quick_path / "data", Config(segment_bytes=200_000))
    size_bytes = 0
    for count in (1_000, 4_000, 20_000):
        while log.partition.next_offset < count:
            append(log, [NOW_MS + log.partition.next_offset], size=20)
        log.drop_rings()
        size_bytes = batches_size(log.partition, count)
        most = INTERVAL_BYTES // size_bytes + 2
        for wanted in (0, 1, count // 3, count // 2, count - 1, count):
            search = TimeSearch(log.partition, NOW_MS + wanted)
            assert search.find_blocking() == (wanted if wanted < count else None)
            assert search.batches <= most
            assert search.read_bytes <= 16 * 1024
    assert log.partition.size_bytes > 100 * INTERVAL_BYTES and len(log.partition.segments) > 10


def batches_size(partition: Partition, count: int) -> int:
    headers = SEGMENT_HEADER_SIZE * len(partition.segments)
    return (partition.size_bytes - headers) // count


def test_the_log_start_is_searched_from_where_it_is(quick_path: Path, log_in: LogIn) -> None:
    log = log_in(quick_path / "data")
    for number in range(2000):
        append(log, [NOW_MS + number], size=20)
    log.partition.set_log_start(1500)
    for wanted, expected in ((0, 1500), (1499, 1500), (1501, 1501), (1900, 1900), (2000, None)):
        search = TimeSearch(log.partition, NOW_MS + wanted)
        assert search.find_blocking() == expected
        assert search.batches <= 40


def test_negative_timestamps_take_no_more(quick_path: Path, log_in: LogIn) -> None:
    log = log_in(quick_path / "data", Config(segment_bytes=50_000))
    for number in range(2000):
        append(log, [number - 5000], size=20)
    for wanted in (-6000, -4000, -3500, -3001, -3000, -1, 0):
        search = TimeSearch(log.partition, wanted)
        assert search.find_blocking() == by_walking([number - 5000 for number in range(2000)], 0, wanted)
        assert search.batches <= 40
    assert len(log.partition.segments) > 5


def test_what_takes_too_long_for_the_event_loop_is_left_to_a_thread(log: LocalLog) -> None:
    """The log begins behind a record of the far future: the index cannot tell what comes then."""
    append(log, [FURTHEST_MS])
    for number in range(3000):
        append(log, [NOW_MS + number], size=200)
    log.partition.set_log_start(1)
    if TimeSearch(log.partition, NOW_MS + 10).find() is WOULD_BLOCK:
        pytest.skip("this filesystem can't tell what is cached")
    search = TimeSearch(log.partition, NOW_MS + 2990)
    assert search.find() is WOULD_BLOCK and search.read_bytes <= 256 * 1024
    assert search.find_blocking() == 2991
    assert TimeSearch(log.partition, NOW_MS + 5000).find_blocking() is None


def test_batches_larger_than_what_is_read_at_once(quick_path: Path, log_in: LogIn) -> None:
    log = log_in(quick_path / "data")
    timestamps = list(range(2, 802, 2))
    for first in range(0, 400, 40):
        append(log, [timestamps[first]], size=10)
        append(log, timestamps[first + 1 : first + 40], size=5_000)
    for wanted in range(-1, 804):
        # Only the batch itself, and what stands between it and the entry before.
        search = TimeSearch(log.partition, wanted)
        assert search.find_blocking() == by_walking(timestamps, 0, wanted)
        assert search.batches <= 3


def test_what_would_block_is_left_to_a_thread(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data")
    for number in range(300):
        append(log, [number + 1], size=3000)
    log.sync()
    (path,) = segments_of(log.directory)
    drop_pages(path)
    search = TimeSearch(log.partition, 250)
    if search.find() is not WOULD_BLOCK:
        pytest.skip("this filesystem keeps its pages, or can't tell")
    assert search.find_blocking() == 249
    assert search.find() == 249, "now it is cached"


def test_an_index_that_is_not_in_memory_is_left_to_a_thread(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data")
    for number in range(300):
        append(log, [number + 1], size=300)
    log.close()
    log = log_in(log.directory, was_clean=True)
    search = TimeSearch(log.partition, 250)
    assert search.find() is WOULD_BLOCK
    assert search.find_blocking() == 249
    assert search.find() == 249


# Damage, and files that go


@pytest.mark.parametrize("where", ["header", "largest timestamp", "record", "last byte", "size"])
@pytest.mark.parametrize("number", [12, 14])
def test_a_damaged_batch_is_told(log: LocalLog, where: str, number: int) -> None:
    """Also one that would only be passed over: what it says of its timestamps can't be believed."""
    for each in range(20):
        append(log, [100 + each], size=100)
    (path,) = segments_of(log.directory)
    batches = batches_in(path)
    start = SEGMENT_HEADER_SIZE + sum(BATCH_HEADER_SIZE + batch.payload_bytes for batch in batches[:number])
    size = BATCH_HEADER_SIZE + batches[number].payload_bytes
    place = {"header": 3, "largest timestamp": 55, "record": 120, "last byte": size - 1, "size": 38}[where]
    damage_at(path, start + place)
    assert find(log.partition, 100 + 11) == 11
    searches = [TimeSearch(log.partition, 114).find_blocking, TimeSearch(log.partition, 114).find]
    if TimeSearch(log.partition, 111).find() is WOULD_BLOCK:
        del searches[1]  # This filesystem can't tell what is cached.
    for search in searches:
        with pytest.raises(TakhinError) as caught:
            search()
        assert caught.value.reason is Reason.CORRUPT_BATCH
        assert caught.value.metadata == {"topic": "t", "partition": "0"}
        assert f"{path.name} at byte {start}" in caught.value.message


def test_a_file_that_lost_its_end(quick_path: Path, log_in: LogIn) -> None:
    log = log_in(quick_path / "data")
    for each in range(20):
        append(log, [100 + each], size=100)
    (path,) = segments_of(log.directory)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(TakhinError) as caught:
        TimeSearch(log.partition, 119).find_blocking()
    assert caught.value.reason is Reason.CORRUPT_BATCH


def test_a_file_that_is_gone(quick_path: Path, log_in: LogIn) -> None:
    log = log_in(quick_path / "data")
    append(log, [100])
    log.close()
    log = log_in(log.directory, was_clean=True)
    (segment,) = log.partition.segments
    segment.close()
    Path(segment.path).unlink()
    with pytest.raises(FileNotFoundError):
        TimeSearch(log.partition, 50).find_blocking()


class HeldUp:
    """A search that has begun, and waits for the index of the log's first segment until go_on()."""

    def __init__(self, log: LocalLog, timestamp_ms: int):
        (first, *_) = log.partition.segments
        first.close()
        self._pipe = Path(first.path).with_suffix(".index")
        self._pipe.unlink(missing_ok=True)
        os.mkfifo(self._pipe)
        search = TimeSearch(log.partition, timestamp_ms)
        # When the search tells of the new end, it has taken the log's start, too.
        append(log, [1])
        self._pool = ThreadPoolExecutor(1)
        self._found = self._pool.submit(search.find_blocking)
        while search.end_offset < log.partition.written_offset:
            time.sleep(0.001)

    def go_on(self) -> int | None:
        """What it finds, with an index that must be made again."""
        fd = os.open(self._pipe, os.O_WRONLY)
        self._pipe.unlink()
        os.close(fd)
        self._pool.shutdown()
        return self._found.result()


def rolled_log(log: LocalLog) -> LocalLog:
    """Two segments, the first one on the disk: of the timestamps 100 to 109 and 200 to 209, offsets 0 to 19."""
    for base in (100, 200):
        for each in range(10):
            append(log, [base + each])
        log.sync()
        log.partition.roll(log.now_ms)
    return log


def test_the_log_start_passes_what_was_found(log: LocalLog) -> None:
    held = HeldUp(rolled_log(log), 103)
    log.partition.set_log_start(5)
    assert held.go_on() == 5


def test_the_file_goes_while_it_is_searched(log: LocalLog) -> None:
    held = HeldUp(rolled_log(log), 103)
    (gone, *_) = log.partition.segments
    Path(gone.path).unlink()
    log.partition.set_log_start(12)
    assert held.go_on() == 12


def test_beside_appends_rolls_and_a_log_start_that_moves(quick_path: Path, log_in: LogIn) -> None:
    """The timestamp of offset n is n + 1, so each search has one answer, unless the start passes it."""
    log = log_in(quick_path / "data", Config(segment_bytes=20_000), open_files=16)
    partition = log.partition
    over = threading.Event()

    def look(seed: int) -> int:
        rng = random.Random(seed)
        found = 0
        while not over.is_set():
            start, end = partition.log_start_offset, partition.written_offset
            wanted = rng.randrange(max(start - 100, 0), end + 100)
            offset = TimeSearch(partition, wanted + 1).find_blocking()
            if offset is None:
                assert wanted >= end
            else:
                assert wanted <= offset <= max(wanted, partition.log_start_offset)
                found += 1
        return found

    with ThreadPoolExecutor(3) as pool:
        searches = [pool.submit(look, seed) for seed in range(3)]
        try:
            for number in range(4000):
                append(log, [number + 1], size=number * 7919 % 300)
                if number % 50 == 49:
                    log.sync()
                if number % 400 == 399:
                    log.run(log.store.remove_segments(partition.set_log_start(number - 300)))
        finally:
            over.set()
        assert sum(search.result(timeout=30) for search in searches) > 0
    assert len(partition.segments) > 2
