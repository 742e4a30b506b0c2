"""The filesystem seam, and what many partitions may hold: open files, memory of rings, memory of everything else."""

import gc
import os
import resource
import subprocess
import sys
import textwrap
import threading
import tracemalloc
from pathlib import Path

import pytest

from takhin.codec.messages import ProduceRequest
from takhin.errors import Reason, TakhinError
from takhin.log import store
from takhin.log.files import Files
from takhin.log.reader import WOULD_BLOCK, Reader
from takhin.log.ring import Ring, RingBudget
from takhin.log.segment import FileCache, Segment
from takhin.v1 import takhin_pb2 as pb
from tests.log.test_partition import (
    NOW_MS,
    WRITTEN,
    LocalLog,
    LogIn,
    descriptors_of,
    file_size_limit,
    log,
    log_in,
    quick_path,
    values_of,
)

__all__ = ["log", "log_in", "quick_path"]


def open_segments(directory: Path) -> int:
    """How many descriptors of this process are of .log files below a directory, removed ones included."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        found += target.startswith(f"{directory}/") and target.endswith((".log", ".log (deleted)"))
    return found


sanitized = pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer's memory is not ours")


def resident_bytes() -> int:
    """Memory of this process that is its own (RssAnon)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


# The seam


def test_files(tmp_path: Path) -> None:
    files = Files()
    path = str(tmp_path / "ä file")
    fd = files.open(path, os.O_RDWR | os.O_CREAT)
    umask = os.umask(0)
    os.umask(umask)
    assert os.fstat(fd).st_mode & 0o777 == 0o640 & ~umask
    assert not os.get_inheritable(fd)
    files.write(fd, b"0123456789", 0)
    files.write(fd, b"AB", 4)
    files.write(fd, b"", 100)
    assert files.read(fd, 100, 0) == b"0123AB6789"
    assert files.read(fd, 3, 2) == b"23A"
    assert (files.read(fd, 5, 10), files.read(fd, 5, 1000), files.read(fd, 0, 0)) == (b"", b"", b"")
    files.truncate(fd, 4)
    assert files.read(fd, 100, 0) == b"0123"
    files.sync_data(fd)
    files.close(fd)
    files.sync_directory(str(tmp_path))
    files.rename(path, str(tmp_path / "b"))
    assert files.make_directory(str(tmp_path / "d")) is True
    assert files.make_directory(str(tmp_path / "d")) is False
    files.remove_directory(str(tmp_path / "d"))
    files.unlink(str(tmp_path / "b"))
    assert list(tmp_path.iterdir()) == []


def test_files_raise_what_the_system_says(tmp_path: Path) -> None:
    files = Files()
    nowhere = str(tmp_path / "no" / "where")
    (tmp_path / "file").write_bytes(b"")
    for call in (
        lambda: files.open(nowhere, os.O_RDONLY),
        lambda: files.rename(nowhere, str(tmp_path / "x")),
        lambda: files.unlink(nowhere),
        lambda: files.make_directory(nowhere),
        lambda: files.remove_directory(nowhere),
        lambda: files.sync_directory(nowhere),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            call()
        assert caught.value.filename == nowhere and caught.value.strerror == "No such file or directory"
    for call in (
        lambda: files.close(999_999), lambda: files.read(999_999, 1, 0), lambda: files.write(999_999, b"x", 0),
        lambda: files.sync_data(999_999), lambda: files.truncate(999_999, 0),
    ):
        with pytest.raises(OSError) as bad:
            call()
        assert bad.value.errno == 9
    with pytest.raises(NotADirectoryError):
        files.make_directory(str(tmp_path / "file" / "x"))
    fd = files.open(str(tmp_path / "file"), os.O_RDWR)
    with file_size_limit(5), pytest.raises(OSError) as large:
        files.write(fd, b"0123456789", 0)
    assert large.value.errno == 27
    files.close(fd)


# Open files


def test_open_files_stay_within_their_limit(log_in: LogIn, tmp_path: Path) -> None:
    count, limit = 200, 16
    log = log_in(tmp_path / "data", partitions=count, open_files=limit)
    for turn in range(3):
        for number in range(count):
            log.write(b"%d" % number, to=number)
            # All of them are dirty: those stay open, so that no error of the kernel's goes unseen.
        assert open_segments(tmp_path) == count
        log.sync()
        for number in range(limit):
            log.partitions[number].segments[0].close()
            values_of(log.partitions[number], cold=True)
        assert open_segments(tmp_path) <= limit
        for number in range(count):
            assert values_of(log.partitions[number], cold=True) == [b"%d" % number] * (turn + 1)
            assert open_segments(tmp_path) <= limit
    assert log.close()
    assert open_segments(tmp_path) == 0


def test_more_partitions_are_written_than_files_may_be_open(log_in: LogIn, tmp_path: Path) -> None:
    """What was acknowledged is in the file, also when it had to be opened while all others are dirty."""
    count = 50
    for run in range(3):
        log = log_in(tmp_path / "data", partitions=count, open_files=16, was_clean=True)
        assert sum(found.scanned_bytes for found in log.found) == 0
        for _ in range(2):
            for number in range(count):
                log.append(b"%d" % run, to=number)
            log.sync()
        for partition in log.partitions:
            assert partition.failure is None
            assert len(values_of(partition, cold=True)) == 2 * (run + 1)
        assert log.close()


def test_syncing_many_new_partitions_needs_few_descriptors(
    quick_path: Path, log_in: LogIn, caplog: pytest.LogCaptureFixture
) -> None:
    """Each has three directories whose names are new: they are not all open at once, nor opened for each of them."""
    count = 400
    log = log_in(quick_path / "data", partitions=count)
    for number in range(count):
        log.write(b"v", to=number)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 200, hard))
    try:
        log.sync()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [record.message for record in caplog.records if record.name.startswith("takhin")] == []
    assert all(partition.durable_offset == 1 for partition in log.partitions)


def test_a_file_that_is_opened_twice_at_once_is_open_once(log: LocalLog) -> None:
    log.write(b"a")
    log.sync()
    (segment,) = log.partition.segments
    barrier = threading.Barrier(4)

    def use() -> None:
        for _ in range(100):
            barrier.wait()
            segment.fileno()
            barrier.wait()
            segment.done()
            if barrier.wait() == 0:
                segment.close()
            barrier.wait()

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert descriptors_of(segment.path) == []
    log.write(b"b")
    assert values_of(log.partition, cold=True) == [b"a", b"b"]
    assert len(descriptors_of(segment.path)) == 1


def test_a_removed_segment_is_closed_when_its_last_reader_is_done(log: LocalLog) -> None:
    log.write(b"a")
    log.partition.roll(NOW_MS)
    log.write(b"b")
    log.sync()
    (segment,) = log.partition.set_log_start(1)
    path = segment.path
    segment.fileno()
    segment.unlink()
    assert len(descriptors_of(f"{path} (deleted)")) == 1
    segment.done()
    assert descriptors_of(f"{path} (deleted)") == []


def test_what_is_dropped_unclosed_does_no_harm(tmp_path: Path) -> None:
    """Caches know segments and segments their cache; the collector finds such rings in any order."""
    script = textwrap.dedent("""
        import gc, sys
        from takhin.log.files import Files
        from takhin.log.segment import FileCache, Segment
        from tests.log.test_partition import LocalLog
        for number in range(20):
            cache = FileCache(Files(), 10)
            Segment.create(cache, sys.argv[1], 1, 0, number, 1)
            del cache
            log = LocalLog(f"{sys.argv[1]}/{number}")
            log.append(b"x")
            log.tick()
            del log
            gc.collect()
        log = LocalLog(f"{sys.argv[1]}/last")
        log.append(b"x")
    """)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()[-2000:]


# Rings


def append_alone(log: LocalLog, number: int, value: bytes) -> None:
    log.append(value, to=number, batch=True)
    log.partitions[number].flush()


def test_rings_stay_within_their_budget(log_in: LogIn, tmp_path: Path) -> None:
    limit, per_ring, largest = 1 << 20, 1 << 18, 30_000
    log = log_in(
        tmp_path / "data", partitions=60, ring_bytes=limit, ring_bytes_per_partition=per_ring, open_files=100
    )
    rings = log.store.rings
    for turn in range(20):
        for number in range(60):
            append_alone(log, number, b"v" * (number * turn * 101 % largest))
            # A chunk is taken before the tick is known to need it.
            assert rings.used_bytes <= limit + (1 << 18)
    for number in range(60):
        for _ in range(44):
            append_alone(log, number, b"v" * largest)
            assert rings.used_bytes <= limit + (1 << 18)
    held = [len(ring_only(log, number)) for number in range(60)]
    # The ones appended to last hold what fits into one ring, the first ones have given theirs up.
    assert held[0] == 0 and 0 < held[59] * largest <= per_ring
    assert sum(held) * largest > limit // 3
    assert rings.release_idle(NOW_MS) == 0
    used = rings.used_bytes
    assert rings.release_idle(NOW_MS + 1) == used and rings.used_bytes == 0
    assert all(len(values_of(partition)) == 64 for partition in log.partitions)


def ring_only(log: LocalLog, number: int) -> list[bytes]:
    """What the ring still has: read while the file has nothing to give."""
    partition = log.partitions[number]
    (segment,) = partition.segments
    aside = f"{segment.path}.aside"
    segment.close()
    os.rename(segment.path, aside)
    Path(segment.path).write_bytes(b"")
    try:
        for offset in range(partition.written_offset):
            try:
                if Reader(partition, offset).read(1 << 20) is not WOULD_BLOCK:
                    return values_of(partition, offset)
            except (OSError, TakhinError):
                continue
        return []
    finally:
        segment.close()
        os.rename(aside, segment.path)


def test_nothing_unwritten_is_ever_dropped(log_in: LogIn, tmp_path: Path) -> None:
    """All partitions together append far more in one tick than their rings may hold."""
    log = log_in(tmp_path / "data", partitions=30, ring_bytes=1 << 16, ring_bytes_per_partition=1 << 12)
    values = [b"%03d" % number + b"v" * 5000 for number in range(40)]
    for value in values:
        for number in range(30):
            log.append(value, to=number)
        log.store.rings.release_idle(1 << 62)
    assert log.store.rings.used_bytes > 30 * 40 * 5000
    log.tick()
    # Now that it is written, whoever wants more is given what is too much.
    last = b"l" * 300_000
    log.append(last)
    assert log.store.rings.used_bytes <= (1 << 16) + 300_000 + (1 << 12)
    log.tick()
    for partition in log.partitions[1:]:
        assert values_of(partition) == values
    assert values_of(log.partition) == [*values, last]


def test_idle_rings_are_given_back_by_themselves(
    log_in: LogIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_TIDY_S", 0.02)
    log = log_in(tmp_path / "data", partitions=2)
    log.write(b"a" * 1000)
    log.now_ms += store.RING_IDLE_MS
    log.write(b"b" * 1000, to=1)
    before = log.store.rings.used_bytes
    log.settle(lambda: log.store.rings.used_bytes == before)
    log.now_ms += 1
    log.settle(lambda: 0 < log.store.rings.used_bytes < before)
    assert values_of(log.partition) == [b"a" * 1000]


def test_a_ring_that_is_closed_or_dropped_gives_everything_back(tmp_path: Path) -> None:
    budget = RingBudget(1 << 20, 1 << 18)
    ring = Ring(budget)
    ring.close()
    del ring
    assert budget.used_bytes == 0
    log = LocalLog(tmp_path / "data", partitions=3)
    for number in range(3):
        for _ in range(100):
            append_alone(log, number, b"v")
    rings = log.store.rings
    assert rings.used_bytes > 0
    log.close()
    assert rings.used_bytes == 0


@sanitized
def test_tiny_batches_cost_no_more_than_the_budget(quick_path: Path) -> None:
    """What a ring keeps about its batches counts too, and goes with them.

    In a process of its own: what a suite's process has freed and kept before would be measured with it.
    """
    script = textwrap.dedent("""
        import sys
        from takhin.codec.messages import ProduceRequest
        from takhin.v1 import takhin_pb2 as pb
        from tests.log.test_files_and_limits import resident_bytes
        from tests.log.test_partition import NOW_MS, WRITTEN, LocalLog
        log = LocalLog(sys.argv[1], partitions=64, ring_bytes=1 << 20, ring_bytes_per_partition=1 << 20)
        scan = ProduceRequest(10)
        scan.read(pb.ProduceMessageRequest(topic="t", record=pb.Record()).SerializeToString())
        before = resident_bytes()
        most = 0
        for partition in log.partitions:
            for _ in range(6000):
                partition.append(scan, NOW_MS, WRITTEN)
                partition.flush()
            most = max(most, log.store.rings.used_bytes)
        log.drop_rings()
        print(most, log.store.rings.used_bytes, resident_bytes() - before)
        assert log.close()
    """)
    done = subprocess.run([sys.executable, "-c", script, str(quick_path)], capture_output=True, timeout=120, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    most, kept, grown = (int(word) for word in done.stdout.split())
    assert most < 3 << 20
    assert kept == 0
    # The indexes of 64 segments of 800 KiB, and the allocator's slack.
    assert grown < 12 << 20


# Ten thousand partitions


@sanitized
def test_ten_thousand_partitions(quick_path: Path) -> None:
    """In a process of its own: what they cost in memory and open files, untouched and each appended to."""
    script = textwrap.dedent("""
        import resource, sys, time
        from tests.log.test_files_and_limits import open_segments, resident_bytes
        from tests.log.test_partition import LocalLog
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        before = resident_bytes()
        log = LocalLog(sys.argv[1], partitions=10_000, open_files=256)
        idle = resident_bytes() - before
        begun = time.monotonic()
        for start in range(0, 10_000, 200):
            for number in range(start, start + 200):
                log.append(b"v" * 100, to=number)
            log.sync() if start % 1000 == 0 else log.run(log.store.committer.sync_all())
        seconds = time.monotonic() - begun
        files = open_segments(sys.argv[1])
        used = log.store.rings.used_bytes
        log.drop_rings()
        active = resident_bytes() - before
        assert log.close()
        print(idle, active, files, used, seconds)
    """)
    done = subprocess.run([sys.executable, "-c", script, str(quick_path)], capture_output=True, timeout=120, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    idle, active, files, used, _ = (float(word) for word in done.stdout.split())
    assert idle < 60 << 20, f"{idle / 10_000:.0f} bytes a partition that nobody has touched"
    assert active < 120 << 20, f"{active / 10_000:.0f} bytes a partition"
    assert files <= 256 + 200
    assert used <= (64 << 20) + (1 << 18)


def test_refused_first_appends_leave_nothing_in_memory(log: LocalLog) -> None:
    """However often clients try again while no segment can be made."""
    with file_size_limit(10):
        for _ in range(10):
            log.refused(Reason.WRITE_FAILED)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(300):
                log.refused(Reason.WRITE_FAILED)
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] - before < 20_000
        finally:
            tracemalloc.stop()
    log.write(b"after")
    log.sync()
    assert log.partition.durable_offset == 1


def test_segments_that_are_gone_already_are_no_trouble(log: LocalLog, caplog: pytest.LogCaptureFixture) -> None:
    """Of a topic that is deleted while retention removes them."""
    log.write(b"a")
    assert log.partition.roll(NOW_MS)
    removed = log.partition.set_log_start(1)
    os.unlink(removed[0].path)
    log.run(log.store.remove_segments(removed))
    assert not caplog.records
