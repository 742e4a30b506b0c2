"""What verify tells of a partition is what recovery makes of it: the same damage, judged by both."""

import os
import random
import shutil
from pathlib import Path

import pytest

from takhin.cli.partition_audit import PartitionAudit, Verdict, audit_partition
from takhin.codec.batch import SEGMENT_HEADER_SIZE, BatchError
from tests.log.test_partition import TOPIC_ID, quick_path, segments_of
from tests.log.test_recovery import SMALL_SEGMENTS, contents, copied, edges, end_of, make, recovered

__all__ = ["quick_path"]

ROUNDS = 400


def audited(directory: Path, was_clean: bool) -> tuple[Verdict | None, list[tuple[str, str]]]:
    told: list[tuple[str, str]] = []
    path = str(directory / "topics" / str(TOPIC_ID) / "0")
    audit = PartitionAudit("t", TOPIC_ID, 0, path, 0)
    audit_partition(audit, lambda severity, where, at, what: told.append((severity, what)), was_clean=was_clean)
    return audit.verdict, told


def spoil(rng: random.Random, directory: Path) -> str:
    """One fault, as a disk or a power cut might leave it; gives its name."""
    paths = segments_of(directory)
    path = rng.choice(paths)
    size = path.stat().st_size
    kind = rng.choice(["flip", "zeros", "cut", "cut at a batch", "remove", "index", "garbage", "header", "copy"])
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
            # A start believes an index that vouches for all of its segment, and finds damage there when it reads. That
            # an index vouches for what is gone, it does not look at.
            if "vouches for" not in verdict.what and not trusted(copy, verdict):
                assert found.damage is not None and contents(copy) == before, message
                assert end_of(found) == verdict.next_offset, message
    assert min(seen.values()) > 10 or clean and seen["torn"] == 0, seen


def trusted(directory: Path, verdict: Verdict) -> bool:
    """Whether the segment that is damaged has an index that vouches for all of it."""
    if not verdict.keep:
        return False
    path = segments_of(directory)[verdict.keep - 1]
    return path.with_suffix(".index").exists() and os.stat(path).st_size > verdict.keep_bytes


def test_a_segment_that_its_index_vouches_more_for(quick_path: Path) -> None:
    """It ends at a batch's end, but there was more: nothing but the index knows."""
    made = make(quick_path, count=5, synced=5, clean=True)
    (path,) = segments_of(made)
    os.truncate(path, edges(path)[2])
    verdict, told = audited(made, True)
    assert verdict is not None and not verdict.is_torn
    assert (verdict.keep, verdict.keep_bytes, verdict.next_offset) == (1, edges(path)[2], 2)
    assert any(severity == "damage" and "vouches" in what for severity, what in told)
    shutil.rmtree(made)
