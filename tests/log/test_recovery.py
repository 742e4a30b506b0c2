"""What recovery makes of a directory: torn tails are cut, corruption is left alone, a clean stop is believed."""

import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from takhin.codec.batch import BATCH_HEADER_SIZE, SEGMENT_HEADER_SIZE, encode_batch, encode_segment_header
from takhin.errors import Code, Reason, TakhinError
from takhin.log.files import Files
from takhin.log.index import INDEX_HEADER_SIZE
from takhin.log.reader import Reader
from takhin.log.recovery import RecoveredPartition, recover_partition
from takhin.log.segment import FileCache
from takhin.v1 import takhin_pb2 as pb
from tests.log.test_partition import (
    NOW_MS,
    TOPIC_ID,
    Config,
    LocalLog,
    LogIn,
    batches_in,
    file_size_limit,
    log_in,
    quick_path,
    read_on,
    segments_of,
    values_of,
)

__all__ = ["log_in", "quick_path"]

SMALL_SEGMENTS = Config(segment_bytes=1100)


def recovered(directory: str | Path, log_start: int = 0, was_clean: bool = False) -> RecoveredPartition:
    return recover_partition(
        FileCache(Files(), 100), os.path.join(directory, "topics", str(TOPIC_ID), "0"), TOPIC_ID, 0, log_start,
        was_clean=was_clean,
    )


def contents(directory: str | Path) -> dict[str, bytes]:
    """Every file of the partition, by name."""
    path = Path(directory, "topics", str(TOPIC_ID), "0")
    return {each.name: each.read_bytes() for each in path.iterdir()}


def logs_in(directory: str | Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(directory).items() if name.endswith(".log")}


def value(number: int) -> bytes:
    return b"%03d" % number + b"v" * (number % 7 * 10)


def make(directory: Path, count: int = 5, synced: int = 0, config: Config = Config(), clean: bool = False) -> Path:
    """A log of `count` batches of one record, the first `synced` of them each synced before the next: a later header
    proves them. Left as kill -9 would, or by a clean stop."""
    log = LocalLog(directory / "made", config)
    for number in range(count):
        log.write(value(number))
        if number < synced:
            log.sync()
    if clean:
        assert log.close()
        return directory / "made"
    killed = log.killed(directory / "killed")
    log.close()
    return killed


def copied(directory: Path, to: Path) -> Path:
    if to.exists():
        shutil.rmtree(to)
    shutil.copytree(directory, to)
    return to


def offsets_of(found: RecoveredPartition) -> list[tuple[int, int]]:
    return [(segment.base_offset, segment.next_offset) for segment in found.segments]


def end_of(found: RecoveredPartition) -> int:
    return found.segments[-1].next_offset if found.segments else 0


def edges(path: Path) -> list[int]:
    """Where the file's header and each of its batches end."""
    found = [SEGMENT_HEADER_SIZE]
    for batch in batches_in(path):
        found.append(found[-1] + BATCH_HEADER_SIZE + batch.payload_bytes)
    return found


def flip(path: Path, at: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= mask
    path.write_bytes(data)


def assert_quarantined(log: LocalLog, good: int, end: int) -> None:
    """What lies before the damage is served, what lies beyond is DATA_LOSS, nothing is appended."""
    partition = log.partition
    reader = Reader(partition, 0)
    values: list[bytes] = []
    with pytest.raises(TakhinError) as caught:
        while True:
            response = read_on(reader, cold=True)
            if response is None:
                break
            values += [record.value for record in response.records]
        assert len(values) == end and partition.written_offset == good
        raise TakhinError(Reason.CORRUPT_BATCH, "the log ends before the damage")
    assert caught.value.reason is Reason.CORRUPT_BATCH
    assert values == [value(number) for number in range(good)]
    assert log.refused(Reason.PARTITION_DAMAGED).code is Code.FAILED_PRECONDITION
    assert not partition.roll(NOW_MS)


# Torn tails


def test_a_tail_torn_at_every_byte(log_in: LogIn, quick_path: Path) -> None:
    """Recover, append, recover again: at each length that the file may have been left with."""
    killed = make(quick_path, count=4, synced=1)
    (path,) = segments_of(killed)
    whole = edges(path)
    for length in range(path.stat().st_size):
        copy = copied(killed, quick_path / "copy")
        (torn,) = segments_of(copy)
        os.truncate(torn, length)
        kept = sum(1 for edge in whole[1:] if edge <= length)
        log = log_in(copy, epoch=2)
        (found,) = log.found
        assert found.damage is None
        assert found.cut_bytes == length - max([edge for edge in whole if edge <= length], default=0)
        assert values_of(log.partition) == [value(number) for number in range(kept)]
        assert log.append(b"new").offset == kept
        log.partition.flush()
        again = recovered(log.killed(quick_path / "again"))
        assert (again.damage, again.cut_bytes, end_of(again), again.max_epoch) == (None, 0, kept + 1, 2)
        shutil.rmtree(quick_path / "again")
        assert log.close()
        aside = {name: data for name, data in contents(copy).items() if "torn-at" in name}
        assert sum(len(data) for data in aside.values()) == found.cut_bytes
        assert all(data in path.read_bytes() for data in aside.values())


def other_batch(base_offset: int, durable_offset: int = 0) -> bytes:
    record = pb.Record(value=b"of another time").SerializeToString()
    return encode_batch([record], base_offset, 0, NOW_MS, 1, durable_offset)


def cut_payload() -> bytes:
    header = bytearray(other_batch(3))
    header[36:40] = struct.pack("<I", 0xFFFFFFFF)
    return bytes(header)


@pytest.mark.parametrize("tail", [
    b"\0", b"\0" * 8192, b"\xff" * 500, b"2", b"2g", b"2g\x0dTKB1", b"2g\x0dTKB1" * 100, b"\x22\x03abc",
    encode_segment_header(TOPIC_ID, 0, 3, NOW_MS), other_batch(2), other_batch(4), other_batch(0), cut_payload(),
    other_batch(3)[:-1], other_batch(3)[:-1] + b"!", b"\0" + other_batch(3),
], ids=lambda tail: f"{tail[:4].hex()}-{len(tail)}")
def test_garbage_behind_the_last_batch(tmp_path: Path, tail: bytes) -> None:
    killed = make(tmp_path, count=3)
    (path,) = segments_of(killed)
    before = path.read_bytes()
    path.write_bytes(before + tail)
    found = recovered(killed)
    assert (found.damage, found.cut_bytes, offsets_of(found)) == (None, len(tail), [(0, 3)])
    assert path.read_bytes() == before
    assert contents(killed)[f"{path.name}.torn-at-{len(before)}"] == tail


def test_a_batch_within_a_torn_value_is_not_taken_for_one(tmp_path: Path) -> None:
    """A producer may store copies of segment files: what they prove, they don't prove of this log."""
    log = LocalLog(tmp_path / "made")
    log.write(value(0), b"before " + other_batch(3, durable_offset=1000) + b" behind" * 50)
    killed = log.killed(tmp_path / "killed")
    log.close()
    (path,) = segments_of(killed)
    os.truncate(path, path.stat().st_size - 10)
    found = recovered(killed)
    assert (found.damage, offsets_of(found)) == (None, [(0, 1)])


def test_batches_larger_than_what_a_scan_reads_at_once(log_in: LogIn, tmp_path: Path) -> None:
    values = [bytes([number]) * size for number, size in enumerate(
        [10, 1_048_000, 3_000_000, 1, 1_048_576 - 105 - 49, 700_000, 700_000, 5]
    )]
    made = log_in(tmp_path / "made")
    made.write(*values)
    killed = made.killed(tmp_path / "killed")
    (path,) = segments_of(killed)
    found = recovered(copied(killed, tmp_path / "whole"))
    assert (found.damage, found.cut_bytes, end_of(found)) == (None, 0, len(values))
    assert found.scanned_bytes == path.stat().st_size
    at = edges(path)
    for length in (at[3] - 1, at[2] + 200, at[3] - 1_000_000):
        copy = copied(killed, tmp_path / "torn")
        os.truncate(segments_of(copy)[0], length)
        log = log_in(copy)
        assert (log.found[0].cut_bytes, log.found[0].damage) == (length - at[2], None)
        assert values_of(log.partition, cold=True) == values[:2]
        log.close()


def test_a_rotten_byte_anywhere_in_a_large_batch(tmp_path: Path) -> None:
    """Its records are not looked at, its checksum is."""
    made = LocalLog(tmp_path / "made")
    made.write(b"first", b"v" * 3_000_000)
    killed = made.killed(tmp_path / "killed")
    made.close()
    at = edges(segments_of(killed)[0])
    for place in (at[1] + 20, at[1] + 200, at[1] + 1_048_576, at[1] + 2_500_000, at[2] - 1):
        copy = copied(killed, tmp_path / "rotten")
        flip(segments_of(copy)[0], place)
        found = recovered(copy)
        assert (found.damage, found.cut_bytes, end_of(found)) == (None, at[2] - at[1], 1)


def test_a_recovery_that_was_killed_is_done_again(tmp_path: Path) -> None:
    killed = make(tmp_path, count=3)
    (path,) = segments_of(killed)
    before = path.read_bytes()
    with path.open("ab") as file:
        file.write(b"torn")
    # Set aside, but not yet cut.
    aside = path.with_name(f"{path.name}.torn-at-{len(before)}")
    for half_done in (b"torn", b"to", b""):
        copy = copied(killed, tmp_path / "copy")
        (segments_of(copy)[0].with_name(aside.name)).write_bytes(half_done)
        found = recovered(copy)
        assert (found.damage, found.cut_bytes, end_of(found)) == (None, 4, 3)
        assert contents(copy)[aside.name] == b"torn"
        assert segments_of(copy)[0].read_bytes() == before


def test_recovery_of_what_was_recovered_changes_nothing(tmp_path: Path) -> None:
    killed = make(tmp_path, count=20, config=SMALL_SEGMENTS)
    with segments_of(killed)[-1].open("ab") as file:
        file.write(b"torn")
    first = recovered(killed)
    assert first.cut_bytes == 4 and first.scanned_bytes > 0 and len(first.segments) > 2
    before = contents(killed)
    second = recovered(killed)
    assert (second.scanned_bytes, second.cut_bytes, second.damage) == (0, 0, None)
    assert offsets_of(second) == offsets_of(first)
    assert contents(killed) == before


def test_what_recovery_takes_for_the_log_is_on_the_disk_before_an_index_says_so(
    strace: list[str], tmp_path: Path
) -> None:
    """A killed process has left it in the cache only; a power cut right after the start must not take it away."""
    killed = make(tmp_path, count=20, config=SMALL_SEGMENTS)
    paths = segments_of(killed)
    with paths[-1].open("ab") as file:
        file.write(b"torn")
    trace = tmp_path / "trace"
    script = f"from tests.log.test_recovery import recovered; recovered({str(killed)!r})"
    subprocess.run(
        [*strace, "-y", "-e", "trace=pwrite64,pwritev,fdatasync,fsync,ftruncate,rename", "-o", str(trace),
         sys.executable, "-c", script],
        check=True, timeout=60,
    )
    # One thread, so each call stands on one line.
    calls = [line for line in trace.read_text().splitlines() if str(killed) in line]

    def place(pattern: str) -> int:
        (found,) = [number for number, call in enumerate(calls) if re.search(pattern, call)]
        return found

    torn, directory = re.escape(paths[-1].name), re.escape(str(paths[-1].parent))
    cut = place(rf"ftruncate\(\d+<[^>]*{torn}>")
    assert place(rf"fdatasync\(\d+<[^>]*{torn}\.torn-at-\d+>\) += 0") < cut
    synced = [place(rf"fdatasync\(\d+<[^>]*{re.escape(path.name)}>\) += 0") for path in paths]
    named = [number for number, call in enumerate(calls) if re.search(rf"fsync\(\d+<{directory}>\) += 0", call)]
    # What is set aside has its name before it is cut off, and the segments theirs at last.
    assert named[0] < cut
    first_index = min(number for number, call in enumerate(calls) if ".index.new>" in call)
    assert cut < max(synced) and max(*synced, *named) < first_index


# Segments that hold nothing, or follow what does not end


@pytest.mark.parametrize("length", [0, 1, 48, 49])
def test_a_last_segment_without_batches(log_in: LogIn, tmp_path: Path, length: int) -> None:
    killed = make(tmp_path, count=3)
    path = segments_of(killed)[0].with_name(f"{3:020d}.log")
    path.write_bytes(encode_segment_header(TOPIC_ID, 0, 3, NOW_MS)[:length])
    log = log_in(killed, Config(segment_bytes=10_000))
    assert log.found[0].damage is None and log.found[0].cut_bytes == (length if length < 49 else 0)
    assert len(log.partition.segments) == (2 if length == 49 else 1)
    log.write(value(3))
    log.partition.roll(NOW_MS)
    log.write(value(4))
    assert values_of(log.partition) == [value(number) for number in range(5)]
    log.sync()
    assert log.close()
    assert end_of(recovered(killed, was_clean=True)) == 5


def test_a_first_segment_without_batches(log_in: LogIn, tmp_path: Path) -> None:
    for length in (0, 20, 49):
        directory = tmp_path / str(length)
        path = directory / "topics" / str(TOPIC_ID) / "0" / f"{0:020d}.log"
        path.parent.mkdir(parents=True)
        path.write_bytes(encode_segment_header(TOPIC_ID, 0, 0, NOW_MS)[:length])
        log = log_in(directory)
        log.write(value(0))
        assert values_of(log.partition) == [value(0)]


def unproven(tmp_path: Path) -> tuple[Path, list[Path], list[int]]:
    """Three segments, nothing of which was ever synced; where the first one's batches end."""
    killed = make(tmp_path, count=15, config=SMALL_SEGMENTS)
    paths = segments_of(killed)
    assert len(paths) >= 3
    return killed, paths, edges(paths[0])


def test_what_follows_a_torn_segment_is_set_aside(tmp_path: Path) -> None:
    """A power cut may keep the name of the newer segment and lose the older one's end."""
    killed, paths, at = unproven(tmp_path)
    os.truncate(paths[0], at[2] + 50)
    tails = [path.read_bytes() for path in paths[1:]]
    found = recovered(killed)
    assert (found.damage, offsets_of(found)) == (None, [(0, 2)])
    assert segments_of(killed) == paths[:1]
    kept = contents(killed).values()
    assert all(tail in kept for tail in tails)
    assert found.cut_bytes == 50 + sum(len(tail) for tail in tails)


def test_what_follows_a_segment_that_is_short_of_batches_is_set_aside(tmp_path: Path) -> None:
    """The size on the disk is that of the last sync, which is at a batch's end."""
    killed, paths, at = unproven(tmp_path)
    os.truncate(paths[0], at[2])
    found = recovered(killed)
    assert (found.damage, offsets_of(found)) == (None, [(0, 2)])
    assert segments_of(killed) == paths[:1]


def test_what_follows_a_missing_segment_is_set_aside(tmp_path: Path) -> None:
    killed, paths, _ = unproven(tmp_path)
    paths[1].unlink()
    found = recovered(killed)
    assert (found.damage, len(found.segments)) == (None, 1)
    assert segments_of(killed) == paths[:1]


# Corruption


def test_every_byte_of_a_small_log_flipped(quick_path: Path) -> None:
    """Damage below what a later header proves is corruption; in the last batch it can't be told from a torn tail."""
    killed = make(quick_path, count=3, synced=2)
    (path,) = segments_of(killed)
    at = edges(path)
    for place in range(at[-1]):
        copy = copied(killed, quick_path / "copy")
        flip(segments_of(copy)[0], place, 1 << place % 8)
        before = logs_in(copy)
        found = recovered(copy)
        if place < at[2]:
            assert found.damage is not None and found.cut_bytes == 0, place
            assert end_of(found) == sum(1 for edge in at[1:] if edge <= place), place
            assert logs_in(copy) == before, place
        else:
            assert (found.damage, end_of(found), found.cut_bytes) == (None, 2, at[-1] - at[2]), place


def test_what_is_not_below_the_durable_offset_is_not_proven(tmp_path: Path) -> None:
    """Batch 1 follows the last sync: that 2 and 3 say D = 1 proves only what lies before it."""
    killed = make(tmp_path, count=4, synced=1)
    (path,) = segments_of(killed)
    at = edges(path)
    flip(path, at[1] + 110)
    found = recovered(killed)
    assert (found.damage, end_of(found), found.cut_bytes) == (None, 1, at[-1] - at[1])


def test_a_proof_is_found_behind_what_only_looks_like_a_batch(tmp_path: Path) -> None:
    log = LocalLog(tmp_path / "made")
    look_alike = b"2g\x0dTKB1" * 3 + other_batch(7)[:-1] + b"2g"
    log.write(value(0), look_alike)
    log.sync()
    log.write(value(2))
    killed = log.killed(tmp_path / "killed")
    log.close()
    (path,) = segments_of(killed)
    at = edges(path)
    # The header that would tell where the next batch begins is damaged.
    flip(path, at[1] + 3)
    found = recovered(killed)
    assert found.damage is not None and end_of(found) == 1


def test_corruption_is_served_up_to_it_and_left_alone(log_in: LogIn, tmp_path: Path) -> None:
    killed = make(tmp_path, count=20, synced=20, config=SMALL_SEGMENTS)
    for index in killed.rglob("*.index"):
        index.unlink()
    paths = segments_of(killed)
    at = edges(paths[1])
    flip(paths[1], at[2] + 120)
    good = int(paths[1].stem) + 2
    before = logs_in(killed)
    log = log_in(killed)
    assert log.found[0].damage is not None and paths[1].name in log.found[0].damage
    assert_quarantined(log, good, good)
    log.close()
    assert logs_in(killed) == before
    # Nor does the next start repair anything.
    for was_clean in (True, False):
        assert recovered(killed, was_clean=was_clean).damage is not None
        assert logs_in(killed) == before


def test_corruption_of_one_partition_is_no_other_ones_affair(log_in: LogIn, tmp_path: Path) -> None:
    made = log_in(tmp_path / "made", partitions=3)
    for number in range(3):
        for _ in range(3):
            made.write(b"v", to=number)
            made.sync()
    killed = made.killed(tmp_path / "killed")
    (path,) = segments_of(killed, 1)
    flip(path, 100)
    log = log_in(killed, partitions=3)
    assert [found.damage is None for found in log.found] == [True, False, True]
    for number in (0, 2):
        log.write(b"w", to=number)
        assert values_of(log.partitions[number]) == [b"v"] * 3 + [b"w"]
    log.refused(Reason.PARTITION_DAMAGED, to=1)


@pytest.mark.parametrize("damage", ["torn", "flipped", "flipped header", "empty"])
def test_after_a_clean_stop_damage_is_corruption(log_in: LogIn, tmp_path: Path, damage: str) -> None:
    """Everything was on the disk, so nothing may be missing: not even when no later header proves it."""
    made = make(tmp_path, count=3, clean=True)
    (path,) = segments_of(made)
    path.with_suffix(".index").unlink()
    at = edges(path)
    if damage == "torn":
        os.truncate(path, at[-1] - 1)
    elif damage == "flipped":
        flip(path, at[1] + 110)
    elif damage == "flipped header":
        flip(path, 30)
    else:
        path.write_bytes(b"")
    before = logs_in(made)
    log = log_in(made, was_clean=True)
    assert log.found[0].damage is not None and log.found[0].cut_bytes == 0
    log.refused(Reason.PARTITION_DAMAGED)
    log.close()
    assert logs_in(made) == before


def test_an_old_index_file_proves_what_it_covers(log_in: LogIn, tmp_path: Path) -> None:
    made = make(tmp_path, count=3, clean=True)
    log = log_in(made, was_clean=True)
    covered = segments_of(made)[0].stat().st_size
    log.write(value(3), value(4))
    killed = log.killed(tmp_path / "grown")
    (path,) = segments_of(killed)
    # Beyond it: torn.
    copy = copied(killed, tmp_path / "copy")
    flip(segments_of(copy)[0], covered + 120)
    os.truncate(segments_of(copy)[0], path.stat().st_size - 1)
    found = recovered(copy)
    assert (found.damage, end_of(found)) == (None, 3)
    # Below it: corruption, even with nothing behind it.
    for length, good in ((covered - 1, 2), (60, 0), (10, 0)):
        copy = copied(killed, tmp_path / "copy")
        os.truncate(segments_of(copy)[0], length)
        before = logs_in(copy)
        found = recovered(copy)
        assert found.damage is not None and end_of(found) == good
        assert logs_in(copy) == before


def test_a_later_segment_proves_the_ones_before_it(tmp_path: Path) -> None:
    killed = make(tmp_path, count=15, synced=15, config=SMALL_SEGMENTS)
    for index in killed.rglob("*.index"):
        index.unlink()
    paths = segments_of(killed)
    at = edges(paths[0])
    damages: list[Callable[[Path], None]] = [
        lambda path: os.truncate(path, at[-1] - 1),
        lambda path: os.truncate(path, at[2]),
        lambda path: os.truncate(path, 0),
        lambda path: path.unlink(),
        lambda path: flip(path, at[-2] + 110),
    ]
    for damage in damages:
        for victim in (0, 1):
            copy = copied(killed, tmp_path / "copy")
            damage(segments_of(copy)[victim])
            before = logs_in(copy)
            found = recovered(copy)
            assert found.damage is not None and found.cut_bytes == 0
            assert end_of(found) < (int(paths[victim + 1].stem))
            assert logs_in(copy) == before


def test_an_index_alone_proves_a_segment_that_is_gone(tmp_path: Path) -> None:
    """What follows it stays where it is, though nothing in there tells of more."""
    made = make(tmp_path, 30, config=SMALL_SEGMENTS, clean=True)
    paths = segments_of(made)
    assert len(paths) >= 4
    for path in (paths[0], *paths[2:]):
        path.with_suffix(".index").unlink()
    paths[1].unlink()
    before = contents(made)
    found = recovered(made)
    assert found.damage is not None and end_of(found) == int(paths[1].stem)
    assert contents(made) == before


def test_an_index_alone_proves_the_last_segment_that_is_gone(tmp_path: Path) -> None:
    """What is left is whole, and ends with a batch."""
    made = make(tmp_path, 30, config=SMALL_SEGMENTS, clean=True)
    last = segments_of(made)[-1]
    last.unlink()
    before = contents(made)
    found = recovered(made)
    assert found.damage is not None and end_of(found) == int(last.stem)
    assert contents(made) == before


def test_a_segment_that_its_index_vouches_for_ends_early_with_a_batch(tmp_path: Path) -> None:
    made = make(tmp_path, 5, clean=True)
    (path,) = segments_of(made)
    os.truncate(path, edges(path)[3])
    before = contents(made)
    found = recovered(made)
    assert found.damage is not None and end_of(found) == 3
    assert contents(made) == before


def test_a_missing_first_segment_is_corruption(log_in: LogIn, tmp_path: Path) -> None:
    killed = make(tmp_path, count=15, synced=15, config=SMALL_SEGMENTS)
    segments_of(killed)[0].unlink()
    log = log_in(killed)
    assert log.found[0].damage is not None
    log.refused(Reason.PARTITION_DAMAGED)


@pytest.mark.parametrize("kind", ["directory", "dangling link"])
def test_a_segment_that_can_not_be_read_is_damage(tmp_path: Path, kind: str) -> None:
    killed = make(tmp_path, count=15, synced=15, config=SMALL_SEGMENTS)
    paths = segments_of(killed)
    paths[1].unlink()
    if kind == "directory":
        paths[1].mkdir()
    else:
        paths[1].symlink_to(tmp_path / "nowhere")
    found = recovered(killed)
    assert found.damage is not None
    assert offsets_of(found) in ([], [(0, int(paths[1].stem))])


def test_no_room_to_set_a_torn_tail_aside(tmp_path: Path) -> None:
    """Then nothing is cut either."""
    killed = make(tmp_path, count=3)
    (path,) = segments_of(killed)
    with path.open("ab") as file:
        file.write(b"t" * 5000)
    before = logs_in(killed)
    with file_size_limit(4000):
        found = recovered(killed)
    assert found.damage is not None
    assert logs_in(killed) == before
    found = recovered(killed)
    assert (found.damage, found.cut_bytes) == (None, 5000)


# Index files


@pytest.mark.parametrize("clean", [True, False])
def test_a_missing_or_damaged_index_is_made_again(tmp_path: Path, clean: bool) -> None:
    made = make(tmp_path, count=200, clean=True)
    (path,) = segments_of(made)
    index = path.with_suffix(".index")
    whole = index.read_bytes()
    assert len(whole) > INDEX_HEADER_SIZE
    wrongs = [None, b"", whole[:63], b"\0" * len(whole), whole[16:], b"TKI2" + whole[4:]]
    wrongs += [bytes([*whole[:at], whole[at] ^ 0x10, *whole[at + 1 :]]) for at in [*range(8), *range(12, 64)]]
    for wrong in wrongs:
        if wrong is None:
            index.unlink()
        else:
            index.write_bytes(wrong)
        found = recovered(made, was_clean=clean)
        assert (found.damage, found.cut_bytes, offsets_of(found)) == (None, 0, [(0, 200)])
        assert found.scanned_bytes == path.stat().st_size
        assert index.read_bytes() == whole


def test_an_index_of_another_segment_is_not_believed(tmp_path: Path) -> None:
    made = make(tmp_path, count=20, config=SMALL_SEGMENTS, clean=True)
    paths = segments_of(made)
    right = paths[1].with_suffix(".index").read_bytes()
    shutil.copy(paths[0].with_suffix(".index"), paths[1].with_suffix(".index"))
    found = recovered(made, was_clean=True)
    assert (found.damage, found.scanned_bytes) == (None, paths[1].stat().st_size)
    assert paths[1].with_suffix(".index").read_bytes() == right


def test_an_index_with_damaged_entries_does_not_mislead(log_in: LogIn, tmp_path: Path) -> None:
    made = make(tmp_path, count=300, clean=True)
    (path,) = segments_of(made)
    index = path.with_suffix(".index")
    whole = index.read_bytes()
    entries = (len(whole) - INDEX_HEADER_SIZE) // 16
    assert entries > 5
    wrongs = [whole[:-16], whole[:INDEX_HEADER_SIZE], whole[:-1], whole + b"\0" * 16]
    wrongs += [
        bytes([*whole[:at], whole[at] ^ 0x40, *whole[at + 1 :]])
        for at in range(INDEX_HEADER_SIZE, INDEX_HEADER_SIZE + 32)
    ]
    for wrong in wrongs:
        index.write_bytes(wrong)
        log = log_in(made, was_clean=True)
        for offset in (0, 1, 150, 299):
            assert values_of(log.partition, offset, cold=True)[0] == value(offset)
        assert log.close()
    # Reading the log has made it again.
    assert index.read_bytes() == whole


# What a start learns


def test_after_a_clean_stop_nothing_is_scanned(log_in: LogIn, tmp_path: Path) -> None:
    directory = tmp_path / "data"
    count = 0
    for run in range(4):
        log = log_in(directory, SMALL_SEGMENTS, was_clean=True)
        assert log.found[0].scanned_bytes == 0
        assert values_of(log.partition) == [value(number) for number in range(count)]
        for _ in range(7):
            log.write(value(count))
            count += 1
        if run == 2:
            log.sync()
        assert log.close()
    assert recovered(directory, was_clean=True).scanned_bytes == 0
    assert recovered(directory, was_clean=False).scanned_bytes == 0


def test_what_a_start_learns_is_the_same_with_and_without_index(log_in: LogIn, tmp_path: Path) -> None:
    directory = tmp_path / "data"
    for epoch in (3, 7, 5):
        log = log_in(directory, SMALL_SEGMENTS, epoch=epoch)
        log.now_ms = NOW_MS + epoch
        log.append_request(pb.ProduceMessageRequest(
            topic="t", record=pb.Record(value=b"v" * 600, timestamp=NOW_MS * 2 - epoch)
        ))
        log.tick()
        assert log.close()
    trusted = recovered(directory)
    assert trusted.scanned_bytes == 0
    for index in directory.rglob("*.index"):
        index.unlink()
    scanned = recovered(directory)
    assert scanned.scanned_bytes > 0
    for found in (trusted, scanned):
        assert found.max_epoch == 7
        assert [segment.max_epoch for segment in found.segments] == [3, 7, 5]
        assert [segment.last_append_ms for segment in found.segments] == [NOW_MS + 3, NOW_MS + 7, NOW_MS + 5]
        assert [segment.max_timestamp_ms for segment in found.segments] == [NOW_MS * 2 - epoch for epoch in (3, 7, 5)]
        assert [segment.created_ms for segment in found.segments][1:] == [NOW_MS + 7, NOW_MS + 5]


def test_after_a_kill_only_what_grew_is_scanned(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", SMALL_SEGMENTS)
    for number in range(30):
        log.write(value(number))
        log.sync()
    killed = log.killed(tmp_path / "killed")
    found = recovered(killed)
    assert len(found.segments) > 3
    assert found.scanned_bytes == segments_of(killed)[-1].stat().st_size


def test_no_directory_is_an_empty_log(tmp_path: Path) -> None:
    found = recovered(tmp_path)
    assert (found.segments, found.damage, found.max_epoch, found.scanned_bytes) == ([], None, 0, 0)


def test_other_files_are_not_looked_at(tmp_path: Path) -> None:
    made = make(tmp_path, count=3, clean=True)
    place = segments_of(made)[0].parent
    for name in ("x.log", f"{5:019d}.log", f"{5:020d}.log.torn-at-9", f"{5:020d}.index", f"{5:020d}.LOG", "a"):
        (place / name).write_bytes(b"?")
    before = contents(made)
    assert offsets_of(recovered(made)) == [(0, 3)]
    assert contents(made) == before


def test_a_moved_segment_is_not_taken_for_another_partitions(log_in: LogIn, tmp_path: Path) -> None:
    made = make(tmp_path, count=3, clean=True)
    place = segments_of(made)[0].parent
    place.rename(place.with_name("1"))
    log = log_in(made, partitions=2, was_clean=True)
    assert log.found[1].damage is not None
    log.refused(Reason.PARTITION_DAMAGED, to=1)


# The log's start


def test_what_lies_before_the_log_start_is_removed(log_in: LogIn, tmp_path: Path) -> None:
    """A crash after the new log start was stored, before the files were gone."""
    made = make(tmp_path, count=20, config=SMALL_SEGMENTS, clean=True)
    paths = segments_of(made)
    bases = [int(path.stem) for path in paths]
    # A start within the second segment: that one stays.
    log = log_in(made, SMALL_SEGMENTS, log_start=bases[2] - 1, was_clean=True)
    assert log.found[0].damage is None
    assert segments_of(made) == paths[1:]
    assert not paths[0].with_suffix(".index").exists()
    assert values_of(log.partition, bases[2] - 1)[0] == value(bases[2] - 1)
    assert log.partition.size_bytes == sum(path.stat().st_size for path in paths[1:])
    assert log.close()
    # A start at the third segment, of which the second was gone already when the power failed.
    paths[1].unlink()
    assert offsets_of(recovered(made, log_start=bases[2]))[0][0] == bases[2]
    assert segments_of(made) == paths[2:]


def test_a_log_start_beyond_the_end(log_in: LogIn, tmp_path: Path) -> None:
    made = make(tmp_path, count=3, clean=True)
    log = log_in(made, log_start=10, was_clean=True)
    assert log.found[0].damage is None
    assert (log.partition.log_start_offset, log.partition.next_offset) == (10, 10)
    assert log.append(b"a").offset == 10
    log.tick()
    assert values_of(log.partition, 10) == [b"a"]
    assert log.close()
    log = log_in(made, log_start=10, was_clean=True)
    assert (log.found[0].damage, log.found[0].scanned_bytes) == (None, 0)
    assert values_of(log.partition, 10, cold=True) == [b"a"]
