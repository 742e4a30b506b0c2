"""What verify tells of a partition is what recovery makes of it: the same damage, judged by both."""

import os
import random
import shutil
from pathlib import Path

import pytest

from takhin.cli.journal_view import JournalView
from takhin.cli.partition_audit import PartitionAudit, Verdict, audit_partition
from takhin.codec.batch import SEGMENT_HEADER_SIZE, BatchError
from takhin.log.files import Files
from takhin.log.journal import BLOCK_BYTES
from takhin.cli.index_view import read_index_file
from takhin.log.producers import SNAPSHOT_NAME, ProducerBudget
from takhin.log.recovery import RecoveredPartition, recover_partition
from takhin.log.replay import read_journal
from takhin.log.segment import FileCache
from tests.log.test_partition import TOPIC_ID, LocalLog, quick_path, segments_of
from tests.log.test_recovery import SMALL_SEGMENTS, contents, copied, edges, end_of, make

__all__ = ["quick_path"]

ROUNDS = 400


def audited(directory: Path, was_clean: bool) -> tuple[Verdict | None, list[tuple[str, str]]]:
    told: list[tuple[str, str]] = []
    path = str(directory / "topics" / str(TOPIC_ID) / "0")
    audit = PartitionAudit("t", TOPIC_ID, 0, path, 0)
    with JournalView(str(directory)) as journal:
        audit_partition(
            audit, lambda severity, where, at, what: told.append((severity, what)), journal, was_clean=was_clean
        )
    return audit.verdict, told


def recovered(directory: Path, was_clean: bool) -> RecoveredPartition:
    path = str(directory / "topics" / str(TOPIC_ID) / "0")
    return recover_partition(
        FileCache(Files(), 100), path, TOPIC_ID, 0, 0, was_clean=was_clean, producers=ProducerBudget(100)
    )


def spoil(rng: random.Random, directory: Path) -> str:
    """One fault, as a disk or a power cut might leave it; gives its name."""
    paths = segments_of(directory)
    path = rng.choice(paths)
    size = path.stat().st_size
    kind = rng.choice([
        "flip", "zeros", "cut", "cut at a batch", "remove", "index", "garbage", "header", "copy", "snapshot"
    ])
    data = bytearray(path.read_bytes())
    at = rng.randrange(size)
    if kind == "flip":
        data[at] ^= 1 << rng.randrange(8)
    elif kind == "zeros":
        data[at : at + 512] = bytes(len(data[at : at + 512]))
    elif kind == "cut":
        del data[at:]
    elif kind == "cut at a batch":
        try:
            del data[rng.choice(edges(path)) :]
        except BatchError:
            return "nothing"  # it was spoilt already
    elif kind == "remove":
        path.unlink()
        return kind
    elif kind == "index":
        for index in path.parent.glob("*.index"):
            if rng.random() < 0.7:
                index.unlink()
        return kind
    elif kind == "snapshot":
        snapshot = path.parent / SNAPSHOT_NAME
        if snapshot.exists() and rng.random() < 0.5:
            snapshot.unlink()
        elif snapshot.exists():
            told = bytearray(snapshot.read_bytes())
            told[rng.randrange(len(told))] ^= 1 << rng.randrange(8)
            snapshot.write_bytes(told)
        return kind
    elif kind == "garbage":
        data += rng.randbytes(rng.randrange(1, 200))
    elif kind == "header":
        data[rng.randrange(SEGMENT_HEADER_SIZE)] ^= 1 << rng.randrange(8)
    else:
        other = rng.choice(paths).read_bytes()
        start = rng.randrange(len(other))
        data[at : at + 300] = other[start : start + 300]
    path.write_bytes(data)
    return kind


@pytest.mark.parametrize("clean", [True, False])
def test_as_recovery_judges(quick_path: Path, clean: bool) -> None:
    made = [
        make(quick_path / f"{synced}", count=18, synced=synced, config=SMALL_SEGMENTS, clean=clean)
        for synced in ((18,) if clean else (0, 5, 18))
    ]
    seen = {"whole": 0, "torn": 0, "damaged": 0}
    for number in range(ROUNDS):
        rng = random.Random(number)
        copy = copied(rng.choice(made), quick_path / "copy")
        kinds = [spoil(rng, copy) for _ in range(rng.choice((1, 1, 2))) if segments_of(copy)]
        before = contents(copy)
        verdict, _ = audited(copy, clean)
        assert contents(copy) == before, "it changes nothing"
        found = recovered(copy, was_clean=clean)
        message = f"round {number}: {kinds}: {verdict} {found.damage} {found.cut_bytes}"
        if verdict is None:
            seen["whole"] += 1
            assert found.damage is None and found.cut_bytes == 0, message
        elif verdict.is_torn:
            seen["torn"] += 1
            assert found.damage is None and contents(copy) != before, message
            assert end_of(found) == verdict.next_offset, message
        else:
            seen["damaged"] += 1
            # A start believes an index as far as it vouches, and finds damage there when it reads.
            if not trusted(copy, verdict):
                assert found.damage is not None and contents(copy) == before, message
                assert end_of(found) == verdict.next_offset, message
    assert min(seen.values()) > 10 or clean and seen["torn"] == 0, seen


def trusted(directory: Path, verdict: Verdict) -> bool:
    """Whether the segment that is damaged has an index that vouches for what stands there."""
    if not verdict.keep:
        return False
    index = segments_of(directory)[verdict.keep - 1].with_suffix(".index")
    found = read_index_file(str(index)) if index.exists() else None
    return found is not None and found.summary is not None and found.summary.size_bytes > verdict.keep_bytes


def test_a_segment_that_its_index_vouches_more_for(quick_path: Path) -> None:
    """It ends at a batch's end, but there was more: nothing but the index knows."""
    made = make(quick_path, count=5, synced=5, clean=True)
    (path,) = segments_of(made)
    os.truncate(path, edges(path)[2])
    verdict, told = audited(made, True)
    assert verdict is not None and not verdict.is_torn
    assert (verdict.keep, verdict.keep_bytes, verdict.next_offset) == (1, edges(path)[2], 2)
    assert any(severity == "damage" and "vouches" in what for severity, what in told)
    found = recovered(made, was_clean=True)
    assert found.damage is not None and end_of(found) == 2
    shutil.rmtree(made)


# With a journal


PARTITIONS = 3


def journaled(directory: Path) -> Path:
    """Three partitions whose last group commits are in the journal, as kill -9 leaves them."""
    log = LocalLog(directory / "made", SMALL_SEGMENTS, partitions=PARTITIONS)
    for number in range(10):
        for partition in range(PARTITIONS):
            log.write(b"%03d" % number + b"v" * (number * 20), to=partition)
        log.sync()
    for partition in range(PARTITIONS):
        log.write(b"never synced", to=partition)
    killed = log.killed(directory / "killed")
    log.close()
    assert list((killed / "journal").iterdir())
    return killed


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_as_recovery_judges_with_a_journal(quick_path: Path) -> None:
    """Power cuts that keep any part of what only the journal has on the disk, and damage, of the journal too."""
    made = journaled(quick_path)
    seen = {"whole": 0, "restored": 0, "torn": 0, "damaged": 0}
    for number in range(ROUNDS):
        rng = random.Random(number)
        copy = copied(made, quick_path / "copy")
        for path in rng.sample(sorted(copy.rglob("*.log")) * 2 + sorted(copy.rglob("*.journal")), rng.randrange(4)):
            lose(rng, path)
        before = files_of(copy)
        verdicts = audit_all(copy)
        assert files_of(copy) == before, "it changes nothing"
        journal = read_journal(Files(), str(copy / "journal"))
        for audit in verdicts:
            found = recover_partition(
                FileCache(Files(), 100), audit.directory, TOPIC_ID, audit.partition, 0, was_clean=False,
                journal=journal, producers=ProducerBudget(100))
            message = f"round {number}: {audit.verdict} {found.damage} {found.cut_bytes}"
            seen["restored"] += audit.restores
            if audit.verdict is None:
                seen["whole"] += 1
                assert found.damage is None and found.cut_bytes == 0, message
                assert end_of(found) == audit.next_offset, message
            elif audit.verdict.is_torn:
                seen["torn"] += 1
                assert found.damage is None and found.cut_bytes > 0, message
                assert end_of(found) == audit.next_offset, message
            else:
                seen["damaged"] += 1
                assert found.damage is not None and end_of(found) == audit.next_offset, message
        journal.close()
    assert min(seen.values()) > 10, seen


def lose(rng: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes() if path.exists() else b"")
    if not data:
        return
    kind = rng.choice(["cut", "cut", "all", "flip", "zeros"])
    if kind == "cut":
        del data[rng.randrange(len(data)):]
    elif kind == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "zeros":
        at = rng.randrange(len(data))
        data[at : at + 512] = bytes(len(data[at : at + 512]))
    path.write_bytes(data)
    if kind == "all":
        path.unlink()


def audit_all(directory: Path) -> list[PartitionAudit]:
    audits = []
    with JournalView(str(directory)) as journal:
        for partition in range(PARTITIONS):
            path = str(directory / "topics" / str(TOPIC_ID) / str(partition))
            audits.append(PartitionAudit("t", TOPIC_ID, partition, path, 0))
            audit_partition(audits[-1], lambda *finding: None, journal, was_clean=False)
    return audits


def test_a_log_that_ends_before_its_snapshot_of_producers(quick_path: Path) -> None:
    """Nothing else of it tells that there was more."""
    made = make(quick_path, count=5, clean=True)
    (path,) = segments_of(made)
    path.with_suffix(".index").unlink()
    os.truncate(path, edges(path)[3])
    for was_clean in (True, False):
        verdict, told = audited(made, was_clean)
        assert verdict is not None and not verdict.is_torn and verdict.next_offset == 3
        assert any(severity == "damage" and "once went on to 5" in what for severity, what in told)
        found = recovered(made, was_clean)
        assert found.damage is not None and end_of(found) == 3
    (path.parent / SNAPSHOT_NAME).unlink()
    verdict, _ = audited(made, False)
    assert verdict is None and recovered(made, False).damage is None


def test_a_damaged_journal_that_is_kept_for_others(quick_path: Path) -> None:
    """Of the partitions that it is not kept for it tells nothing any more: their tails are torn, if they are."""
    made = journaled(quick_path)
    with JournalView(str(made)) as journal:
        assert len(journal.keys) == PARTITIONS
    (path,) = (made / "journal").glob("*.journal")
    data = bytearray(path.read_bytes())
    data[BLOCK_BYTES] ^= 1  # the first entry's magic; those behind it prove that it was there
    path.write_bytes(data)
    segments_of(made, 1)[0].unlink()
    again = LocalLog(made, SMALL_SEGMENTS, partitions=PARTITIONS, epoch=2)
    assert [found.damage is not None for found in again.found] == [False, True, False]
    again.write(b"torn", to=0)
    killed = again.killed(quick_path / "again")
    again.close()
    torn = segments_of(killed, 0)[-1]
    os.truncate(torn, torn.stat().st_size - 1)
    verdicts = [audit.verdict for audit in audit_all(killed)]
    assert verdicts[0] is not None and verdicts[0].is_torn
    assert verdicts[1] is not None and not verdicts[1].is_torn
    assert verdicts[2] is None
    last = LocalLog(killed, SMALL_SEGMENTS, partitions=PARTITIONS, epoch=3)
    assert [found.damage is not None for found in last.found] == [False, True, False]
    assert [found.cut_bytes > 0 for found in last.found] == [True, False, False]
    last.close()
