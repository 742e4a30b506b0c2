"""Group commit: who shares a sync, what a failed one means, and in which order things reach the disk.

A sync fails here for real: the segment's descriptor is made to be a pipe's, and fdatasync of a pipe is EINVAL.
"""

import asyncio
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from takhin.errors import Code, Reason, TakhinError
from takhin.log import committer
from takhin.log.files import Files
from takhin.log.index import INDEX_HEADER_SIZE, read_summary
from takhin.log.partition import Partition
from takhin.log.sync import SyncThread
from tests.log.test_journal import SMALL_JOURNAL, append_to, commit, fail_file, hold_journal, times_off
from tests.log.test_partition import (
    NOW_MS,
    Config,
    LocalLog,
    LogIn,
    descriptors_of,
    file_becomes,
    file_size_limit,
    log,
    log_in,
    no_descriptor_left,
    quick_path,
    segments_of,
    values_of,
)

__all__ = ["log", "log_in", "quick_path"]


@contextmanager
def unsyncable(path: Path | str) -> Iterator[None]:
    """What was written to the open file can't be synced."""
    reading, writing = os.pipe()
    try:
        with file_becomes(path, writing):
            yield
    finally:
        os.close(reading)
        os.close(writing)


def fail_next_sync(log: LocalLog, partition: Partition) -> None:
    """Let the committer sync what the partition has written, and fail at it."""
    with unsyncable(partition.segments[-1].path):
        log.settle(lambda: partition.failure is not None)


def covered_by_index(path: Path) -> int:
    """How many bytes of the segment its index file vouches for; 0 without one."""
    index = path.with_suffix(".index")
    if not index.exists():
        return 0
    found = read_summary(index.read_bytes()[:INDEX_HEADER_SIZE])
    assert found is not None
    return found[0].size_bytes


# Who shares a sync


def test_one_sync_serves_many_who_wait(log: LocalLog) -> None:
    async def producer(number: int) -> None:
        for _ in range(5):
            answer = log.append(b"%d" % number)
            failure = await log.partition.durable()
            assert failure is None
            assert log.partition.durable_offset > answer.offset

    async def watch(done: asyncio.Event) -> None:
        highest = 0
        while not done.is_set():
            partition = log.partition
            assert highest <= partition.durable_offset <= partition.written_offset <= partition.next_offset
            highest = partition.durable_offset
            await asyncio.sleep(0)

    async def scenario() -> None:
        done = asyncio.Event()
        watcher = asyncio.ensure_future(watch(done))
        await asyncio.gather(*(producer(number) for number in range(60)))
        done.set()
        await watcher

    log.run(scenario())
    assert log.partition.durable_offset == 300
    assert 0 < log.store.committer.syncs < 100


def test_who_comes_while_a_sync_runs_shares_the_next(log_in: LogIn, tmp_path: Path) -> None:
    # Without a journal, which would serve those who come before the sync is over.
    log = log_in(tmp_path / "data", journal_bytes=0)
    partition = log.partition
    log.write(b"a")
    target, segments, directories = partition.begin_sync()
    assert target == 1 and partition.syncing
    waiters = []
    for value in (b"b", b"c", b"d"):
        log.append(value)
        waiters.append(partition.durable())
        log.tick()
    # What the running sync began with is all that it can vouch for.
    partition.end_sync(target, segments, directories, 0)
    assert partition.durable_offset == 1 and not any(waiter.done() for waiter in waiters)
    assert partition.wants_sync
    before = log.store.committer.syncs
    log.run(partition.make_durable(4))
    assert all(waiter.done() and waiter.result() is None for waiter in waiters)
    assert log.store.committer.syncs == before + 1


def test_who_came_while_a_sync_ran_is_not_forgotten(log: LocalLog) -> None:
    """Nobody comes after them to ask for another sync."""
    log.append(b"a")
    first = log.partition.durable()
    log.tick()
    # That sync is over, but the loop has not been told yet.
    time.sleep(0.05)
    log.append(b"b")
    second = log.partition.durable()
    assert log.run(second) is None and first.result() is None


class SlowThread:
    """A sync thread whose jobs take some milliseconds: it syncs each file over and over."""

    def __init__(self, thread: SyncThread):
        self._thread = thread
        self.finished = thread.finished
        self.stop = thread.stop

    def submit(self, files: list[int], directories: list[int]) -> int:
        return self._thread.submit(files * 100, directories)


def test_busy_partitions_do_not_keep_others_from_their_sync(
    log_in: LogIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is synced again and again stands in line with those who wait for the first time."""
    monkeypatch.setattr(committer, "MAX_COMMITS", 1)
    log = log_in(tmp_path / "data", partitions=2, journal_bytes=0)
    front = log.store.committer._front
    monkeypatch.setattr(front, "thread", SlowThread(front.thread))
    busy, other = log.partitions
    quiet = False

    async def keep_busy() -> None:
        while not quiet:
            log.append(b"a")
            assert await busy.durable() is None

    async def scenario() -> None:
        nonlocal quiet
        tasks = []
        for _ in range(4):
            tasks.append(asyncio.ensure_future(keep_busy()))
            await asyncio.sleep(0.003)
        log.append(b"b", to=1)
        before = log.store.committer.syncs
        try:
            assert await other.durable() is None
            # The one under way, perhaps the one after it, and then its own.
            assert log.store.committer.syncs - before <= 3
        finally:
            quiet = True
            await asyncio.gather(*tasks)

    log.run(scenario())


def test_what_a_sync_covers(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", Config(segment_bytes=1100))
    partition = log.partition
    for number in range(12):
        log.write(b"%02d" % number + b"v" * 100)
    assert len(partition.segments) == 3
    target, segments, directories = partition.begin_sync()
    # Every segment, the older first, before D may cross into the newer; then the directories with their new names.
    assert target == 12
    assert [segment.base_offset for segment in segments] == [segment.base_offset for segment in partition.segments]
    topics = os.path.join(log.directory, "topics")
    assert set(directories) == {topics, os.path.join(topics, "1"), os.path.join(topics, "1", "0")}
    partition.end_sync(target, segments, directories, 0)
    assert partition.durable_offset == 12 and not partition.dirty
    # The second time there is nothing but the active segment.
    log.write(b"more")
    target, segments, directories = partition.begin_sync()
    assert (target, [segment.base_offset for segment in segments], directories) == (
        13, [partition.segments[-1].base_offset], []
    )
    partition.end_sync(target, segments, directories, 0)


def test_an_index_file_vouches_only_for_what_is_on_the_disk(log: LocalLog) -> None:
    partition = log.partition
    log.write(b"a" * 100)
    first = Path(partition.segments[0].path)
    target, segments, directories = partition.begin_sync()
    # While that sync runs the segment goes on and is sealed.
    log.write(b"b" * 100)
    partition.roll(NOW_MS)
    log.write(b"c" * 100)
    partition.end_sync(target, segments, directories, 0)
    assert partition.durable_offset == 1
    assert covered_by_index(first) == 0
    log.run(partition.make_durable(3))
    assert covered_by_index(first) == first.stat().st_size
    assert covered_by_index(Path(partition.segments[1].path)) == 0


def test_every_sealed_segment_gets_its_index_file(log_in: LogIn, tmp_path: Path) -> None:
    """Also when all of it is on the disk before it is sealed, as with a producer that waits for each ack."""
    log = log_in(tmp_path / "data", Config(segment_bytes=2000))
    for _ in range(60):
        log.append(b"v" * 100)
        log.sync()
    *sealed, active = segments_of(log.directory)
    assert len(sealed) > 5
    assert [covered_by_index(path) for path in sealed] == [path.stat().st_size for path in sealed]
    assert covered_by_index(active) == 0


# When


def test_flush_ms(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", Config(flush_ms=100))
    started_s = log.loop.time()
    log.write(b"a")
    log.append(b"b")
    log.settle(lambda: log.partition.durable_offset == 2)
    assert log.loop.time() - started_s > 0.09
    syncs = log.store.committer.syncs
    log.run(asyncio.sleep(0.25))
    assert log.store.committer.syncs == syncs
    log.append(b"c")
    log.settle(lambda: log.partition.durable_offset == 3)


@pytest.mark.parametrize("flush_ms", [-1, 60_000])
def test_flush_ms_later_than_what_the_journal_holds_waits(
    log_in: LogIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flush_ms: int
) -> None:
    monkeypatch.setattr(committer, "BEHIND_S", 0.05)
    log = log_in(tmp_path / "data", Config(flush_ms=flush_ms))
    log.append(b"a")
    log.run(asyncio.sleep(0.4))
    assert (log.partition.written_offset, log.partition.durable_offset) == (1, 0)
    # But what nobody has written to yet is synced.
    log.sync()
    syncs = log.store.committer.syncs
    assert log.partition.roll(NOW_MS) and not log.partition.dirty
    log.settle(lambda: log.store.committer.syncs > syncs)


def test_flush_ms_counts_from_what_no_commit_has_covered(log_in: LogIn, tmp_path: Path) -> None:
    """Partitions that are committed all the time are dirty at most moments, never for long: their files can wait."""
    log = log_in(tmp_path / "data", Config(flush_ms=100), partitions=2)
    thread = hold_journal(log)
    thread.hold = False
    commit(log, [0, 1])
    # The segments lack something for longer than flush.ms; what comes now is dirty, and a moment old.
    log.run(asyncio.sleep(0.25))
    thread.hold = True
    append_to(log, [0, 1])
    waiting = [log.partitions[number].durable() for number in (0, 1)]
    log.tick()
    assert all(partition.dirty for partition in log.partitions)
    log.store.committer._check_unsynced()
    assert log.store.committer.syncs == 0 and not log.store.committer._behind.syncs
    thread.let_go()
    log.settle(lambda: all(each.done() for each in waiting))
    assert log.store.committer.syncs == 0
    # Nor is anybody forgotten who comes after a commit.
    thread.hold = False
    append_to(log, [0])
    log.settle(lambda: log.partitions[0].durable_offset == 3)
    assert log.store.committer.syncs == 1


def test_flush_ms_of_none(log: LocalLog) -> None:
    log.append(b"a")
    log.run(asyncio.sleep(0.3))
    assert (log.partition.written_offset, log.partition.durable_offset) == (1, 0)
    assert log.close()
    assert log.partition.durable_offset == 1


def test_partitions_are_written_at_the_end_of_one_tick(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=5)

    async def tick() -> None:
        for number in range(5):
            log.append(b"a", to=number)
        assert [partition.written_offset for partition in log.partitions] == [0] * 5
        await asyncio.sleep(0)
        assert [partition.written_offset for partition in log.partitions] == [1] * 5

    log.run(tick())


def test_sync_all_writes_and_syncs_everything(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=3)
    log.append(b"a")
    log.tick()
    log.append(b"b")
    log.append(b"c", to=2)
    log.run(log.store.committer.sync_all())
    assert [partition.durable_offset for partition in log.partitions] == [2, 0, 1]

    async def at_once() -> None:
        log.append(b"d", to=1)
        await log.store.committer.sync_all()
        assert [partition.durable_offset for partition in log.partitions] == [2, 1, 1]

    log.run(at_once())


# A sync that fails


def test_a_failed_sync_is_final(log: LocalLog, log_in: LogIn, tmp_path: Path) -> None:
    partition = log.partition
    log.append(b"a")
    log.sync()
    log.append(b"b")
    written, durable = partition.written(), partition.durable()
    partition.flush()
    fail_next_sync(log, partition)
    assert written.result() is None
    failure = durable.result()
    assert failure is not None and failure[0] is Reason.SYNC_FAILED and "unknown" in failure[1]
    assert (partition.durable_offset, partition.written_offset) == (1, 2)
    assert log.halted == [partition] and partition.failure_is_final
    assert log.refused(Reason.SYNC_FAILED).code is Code.INTERNAL
    with pytest.raises(TakhinError) as caught:
        log.run(partition.make_durable(2))
    assert caught.value.reason is Reason.SYNC_FAILED
    log.run(partition.make_durable(1))
    partition.resume(9)
    log.refused(Reason.SYNC_FAILED)
    # It is not tried again, whoever asks and however long one waits.
    syncs = log.store.committer.syncs
    log.run(log.store.committer.sync_all())
    log.run(asyncio.sleep(0.15))
    assert log.store.committer.syncs == syncs
    assert values_of(partition) == [b"a", b"b"]
    copy = log.killed(tmp_path / "copy")
    assert not log.close()
    # Nobody vouches for what was not synced.
    assert covered_by_index(segments_of(log.directory)[0]) == 0
    assert values_of(log_in(copy).partition) == [b"a", b"b"]


def test_other_partitions_go_on_after_a_failed_sync(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=2, journal_bytes=0)
    for number in (0, 1):
        log.append(b"a", to=number)
        log.partitions[number].flush()
    waiting = [log.loop.create_task(partition.make_durable(1)) for partition in log.partitions]
    fail_next_sync(log, log.partitions[0])

    async def both() -> list[object]:
        return await asyncio.gather(*waiting, return_exceptions=True)

    first, second = log.run(both())
    assert isinstance(first, TakhinError) and first.reason is Reason.SYNC_FAILED
    assert second is None and log.partitions[1].durable_offset == 1
    log.append(b"b", to=1)
    log.run(log.partitions[1].durable())
    assert log.halted == [log.partitions[0]]


def test_nobody_waits_for_ever_after_a_failed_sync(log: LocalLog) -> None:
    """What was appended in the tick in which the failure is told has its answer too."""
    partition = log.partition
    log.write(b"a")
    target, segments, directories = partition.begin_sync()
    log.append(b"b")
    behind = partition.durable()
    partition.flush()
    log.append(b"c")
    written, durable = partition.written(), partition.durable()
    partition.end_sync(target, segments, directories, 5)
    log.tick()
    for waiter in (behind, durable):
        failure = log.run(waiter)
        assert failure is not None and failure[0] is Reason.SYNC_FAILED
    assert written.done()
    assert values_of(partition)[:2] == [b"a", b"b"]


def test_nobody_waits_for_ever_after_a_write_that_stays(log: LocalLog) -> None:
    partition = log.partition
    log.write(b"a")
    target, segments, directories = partition.begin_sync()
    log.append(b"b")
    behind = partition.durable()
    partition.flush()
    log.append(b"lost")
    full = os.open("/dev/full", os.O_RDWR)
    with file_becomes(partition.segments[0].path, full):
        partition.flush()
    os.close(full)
    assert partition.failure_is_final
    partition.end_sync(target, segments, directories, 0)
    failure = log.run(behind)
    assert failure is not None


def test_a_sync_goes_on_through_a_failed_write(log: LocalLog) -> None:
    partition = log.partition
    log.append(b"a")
    durable = partition.durable()
    partition.flush()
    log.append(b"lost")
    with file_size_limit(10):
        log.tick()
    assert partition.failure is not None
    assert log.run(durable) is None
    assert partition.durable_offset == 1


def test_out_of_descriptors_a_sync_waits(log: LocalLog) -> None:
    """It was not tried, so nothing is lost: it is tried again."""
    partition = log.partition
    log.append(b"a")
    durable = partition.durable()
    partition.flush()
    with no_descriptor_left():
        log.tick()
        log.run(asyncio.sleep(0.12))
    assert partition.failure is None and not durable.done()
    log.append(b"b")
    assert log.run(durable) is None
    log.sync()
    assert partition.durable_offset == 2
    assert log.close()


# Faults that the kernel is made to return


def under_faults(directory: str) -> None:
    """Run in a process of its own: prints what comes of a write of many parts, a sync, and a cold read."""
    log = LocalLog(directory)
    log.write(b"first")
    # More runs of memory than one call takes, as each has a chunk of its own: one of three calls may fail.
    for _ in range(140):
        log.append(b"v" * 135_000, batch=True)
    log.partition.flush()
    told: dict[str, object] = {
        "write": str(log.partition.failure[0]) if log.partition.failure else None,
        "final": log.partition.failure_is_final,
        "whole": os.path.getsize(log.partition.segments[0].path) == log.partition.size_bytes,
        "written": log.partition.written_offset,
    }
    if not log.partition.failure_is_final:
        log.partition.resume(2)
        for turn in ("sync", "again"):
            try:
                log.sync()
                told[turn] = None
            except TakhinError as problem:
                told[turn] = str(problem.reason)
    log.drop_rings()
    try:
        told["read"] = len(values_of(log.partition, cold=True))
    except OSError as problem:
        told["read"] = problem.errno
    told["durable"] = log.partition.durable_offset
    print(json.dumps(told))
    log.close()


WHOLE = {
    "write": None, "final": False, "whole": True, "written": 141, "sync": None, "again": None, "read": 141,
    "durable": 141,
}
TAKEN_BACK = WHOLE | {"written": 1, "read": 1, "durable": 1}


@pytest.mark.parametrize(("faults", "expected"), [
    # Calls are counted by thread: 1 is the segment's header, 2 the first record, 3 to 5 the large tick.
    (["pwritev:error=EIO:when=3"], TAKEN_BACK | {"write": "WRITE_FAILED"}),
    (["pwritev:error=ENOSPC:when=4"], TAKEN_BACK | {"write": "DISK_FULL"}),
    (["pwritev:error=EDQUOT:when=3+"], TAKEN_BACK | {"write": "DISK_FULL"}),
    (["pwritev:error=EINTR:when=3", "preadv2:error=EINTR:when=2", "fdatasync:error=EINTR:when=1"], WHOLE),
    (["pwritev:retval=0:when=4"], TAKEN_BACK | {"write": "WRITE_FAILED"}),
    # Once is enough, though the next one would succeed.
    (["fdatasync:error=EIO:when=1"], WHOLE | {"sync": "SYNC_FAILED", "again": "SYNC_FAILED", "durable": 0}),
    (["fsync:error=EIO:when=2"], WHOLE | {"sync": "SYNC_FAILED", "again": "SYNC_FAILED", "durable": 0}),
    (["preadv2:error=EIO:when=1+"], WHOLE | {"read": 5}),
], ids=lambda value: "+".join(value).replace(":error=", " ") if isinstance(value, list) else "")
def test_faults_of_the_kernel(
    strace: list[str], tmp_path: Path, faults: list[str], expected: dict[str, object]
) -> None:
    injected = [word for fault in faults for word in ("-e", f"inject={fault}")]
    calls = ",".join({fault.partition(":")[0] for fault in faults})
    script = f"from tests.log.test_committer import under_faults; under_faults({str(tmp_path / 'data')!r})"
    done = subprocess.run(
        [*strace, "-o", "/dev/null", "-e", f"trace={calls}", *injected, sys.executable, "-c", script],
        capture_output=True, text=True, timeout=60, check=True,
    )
    assert json.loads(done.stdout) == expected


def test_a_write_and_its_taking_back_both_fail(strace: list[str], tmp_path: Path, log_in: LogIn) -> None:
    script = f"from tests.log.test_committer import under_faults; under_faults({str(tmp_path / 'data')!r})"
    done = subprocess.run(
        [*strace, "-o", "/dev/null", "-e", "trace=pwritev,ftruncate", "-e", "inject=pwritev:error=EIO:when=4",
         "-e", "inject=ftruncate:error=EIO", sys.executable, "-c", script],
        capture_output=True, text=True, timeout=60, check=True,
    )
    told = json.loads(done.stdout)
    assert (told["write"], told["final"], told["written"], told["read"]) == ("PARTITION_READ_ONLY", True, 1, 1)
    # What was left behind in the file is whole batches, or a tail to cut: recovery settles it.
    log = log_in(tmp_path / "data", epoch=2)
    assert log.found[0].damage is None
    assert values_of(log.partition)[0] == b"first"
    log.write(b"next")


def test_what_was_put_off_is_synced_later(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", Config(segment_bytes=1100))
    partition = log.partition
    for number in range(8):
        log.write(b"%02d" % number + b"v" * 100)
    first = partition.begin_sync()
    partition.put_off_sync(*first[1:])
    assert not partition.syncing and partition.durable_offset == 0
    # Also what is written and begun meanwhile.
    for number in range(8, 12):
        log.write(b"%02d" % number + b"v" * 100)
    target, segments, directories = partition.begin_sync()
    assert target == 12 and set(directories) == set(first[2])
    assert segments == list(partition.segments) and len(segments) > len(first[1])
    partition.put_off_sync(segments, directories)
    again = partition.begin_sync()
    assert (again[0], again[1], set(again[2])) == (12, segments, set(directories))
    partition.end_sync(*again, 0)
    assert partition.durable_offset == 12 and partition.begin_sync()[1:] == ([], [])


# Closing


def test_a_partition_closed_while_its_sync_runs(log: LocalLog) -> None:
    partition = log.partition
    log.append(b"a")
    durable = partition.durable()
    partition.flush()
    waiting = log.loop.create_task(log.store.committer.sync_all())

    async def closed() -> None:
        await asyncio.sleep(0)
        log.store.close_partition(partition, Reason.TOPIC_NOT_FOUND, "gone")
        await waiting

    log.run(closed())
    assert durable.result() in (None, (Reason.TOPIC_NOT_FOUND, "gone"))
    path = partition.segments[0].path
    log.partitions.clear()
    log.halted.clear()
    del partition, log.partition
    log.close()
    gc.collect()
    assert descriptors_of(path) == []


# The thread


def test_the_thread_does_all_jobs_in_order(tmp_path: Path) -> None:
    thread = SyncThread(Files())
    fds = [os.open(tmp_path / str(number), os.O_RDWR | os.O_CREAT) for number in range(4)]
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    reading, writing = os.pipe()
    numbers = [thread.submit(fds, [directory]) for _ in range(50)]
    bad = [thread.submit([fds[0], writing], []), thread.submit(fds, [writing]), thread.submit([], [])]
    results: list[tuple[int, int, int]] = []
    while len(results) < 53:
        results += thread.finished()
    assert [number for number, _, _ in results] == numbers + bad
    assert [errno for _, errno, _ in results] == [0] * 50 + [22, 22, 0]
    assert all(duration_ns >= 0 for _, _, duration_ns in results)
    assert thread.finished() == []
    last = thread.submit(fds, [directory])
    thread.stop()
    assert last == 54
    for fd in (*fds, directory, reading, writing):
        os.close(fd)


def test_stopping_an_idle_thread() -> None:
    thread = SyncThread(Files())
    event_fd = thread.event_fd
    assert event_fd >= 0
    thread.stop()
    with pytest.raises(OSError):
        os.fstat(event_fd)


def test_many_partitions_are_synced_a_few_at_a_time(
    log_in: LogIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sync holds its file and directories open: a tick that touches many partitions must not take them all."""
    monkeypatch.setattr(committer, "MAX_COMMITS", 4)
    log = log_in(tmp_path / "data", partitions=60, open_files=16, journal_bytes=0)
    most = 0
    front = log.store.committer._front
    submit = front.thread.submit

    class Watched(SlowThread):
        def submit(self, files: list[int], directories: list[int]) -> int:
            nonlocal most
            most = max(most, len(front.syncs) + 1)
            return submit(files, directories)

    monkeypatch.setattr(front, "thread", Watched(front.thread))
    for number in range(60):
        log.append(b"x", to=number)
    log.tick()
    log.sync()
    assert most == 4
    assert all(partition.durable_offset == 1 for partition in log.partitions)
    assert log.store.committer.syncs == 60


def test_no_index_is_written_for_what_was_removed_while_its_sync_ran(log_in: LogIn, quick_path: Path) -> None:
    """Nothing would ever remove it, and it would vouch for a segment that is gone."""
    log = log_in(quick_path / "data")
    partition = log.partition
    for _ in range(17):
        log.write(b"v" * (1 << 20))
    sync = partition.begin_sync()
    assert partition.roll(NOW_MS)
    log.run(log.store.remove_segments(partition.set_log_start(partition.next_offset)))
    partition.end_sync(*sync, 0)
    (left,) = segments_of(log.directory)
    assert not [name for name in os.listdir(left.parent) if name.endswith(".index")] and left.exists()


@pytest.mark.parametrize("rolled", [False, True])
def test_no_index_is_written_to_a_deleted_topic(log_in: LogIn, quick_path: Path, rolled: bool) -> None:
    """Its directory could not be removed, as it would not be empty."""
    log = log_in(quick_path / "data")
    partition = log.partition
    for _ in range(17):
        log.write(b"v" * (1 << 20))
    if rolled:
        assert partition.roll(NOW_MS)
    sync = partition.begin_sync()
    log.store.close_partition(partition, Reason.TOPIC_NOT_FOUND, "gone")
    # The directory is looked through, and then removed.
    partition.end_sync(*sync, 0)
    assert not list(Path(partition.directory).glob("*.index"))


def test_the_journal_is_on_again_without_the_failed_partition(
    log_in: LogIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = log_in(tmp_path / "data", partitions=4, journal_bytes=SMALL_JOURNAL)
    commit(log, range(4), b"kept")
    fail_file(log, 0)
    for _ in range(30):
        commit(log, range(1, 4), b"x" * 200)
    log.store.close_partition(log.partitions.pop(0), Reason.TOPIC_NOT_FOUND, "gone")
    for _ in range(30):
        commit(log, range(3), b"x" * 200)
    assert log.store._journal.turns > 1
    assert times_off(caplog) == 1 and caplog.text.count("the journal is used again") == 1
