"""Journal files that can't be read, as a whole or in part: whom that concerns, and that it concerns nobody else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from takhin.log.files import Files
from takhin.log.journal import BLOCK_BYTES
from takhin.log.replay import KEPT_FOR, read_journal
from tests.log.start_with_faults import Outcome
from tests.log.test_journal import commit, flipped, journal_in, journal_paths
from tests.log.test_journal_replay import copied, power_cut, quarantined
from tests.log.test_partition import TOPIC_ID, LogIn, log_in, quick_path, segments_of, values_of
from tests.torture.twin import FOR_GOOD, environment, fault

__all__ = ["log_in", "quick_path"]

PARTITIONS = 3
# Entries that share no page.
VALUES = [f"{turn} ".ljust(5000, "v") for turn in range(3)]
JOURNAL = "*/0.journal"


def unreadable(places: range | None = None, path: str = JOURNAL) -> str:
    return fault("read", path, error="EIO", times=FOR_GOOD, places=places)


UNREADABLE = [fault("open", JOURNAL, error="EIO", times=FOR_GOOD), unreadable(), unreadable(range(BLOCK_BYTES))]


def start(directory: Path, *faults: str) -> tuple[Outcome, str]:
    """What came of a start with these faults, and what it logged."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.log.start_with_faults", str(directory), str(PARTITIONS), *faults],
        capture_output=True, text=True, env=os.environ | environment(), cwd=Path(__file__).parents[2], check=False,
    )
    assert done.returncode == 0, done.stderr
    return Outcome(**json.loads(done.stdout)), done.stderr


@pytest.fixture
def killed(log_in: LogIn, quick_path: Path) -> Path:
    """Three entries of each partition in the journal, and all of it in the segments."""
    log = log_in(quick_path / "data", partitions=PARTITIONS)
    for value in VALUES:
        commit(log, range(PARTITIONS), value.encode())
    assert log.store.committer.journal_commits == 3
    return log.killed(quick_path / "killed")


@pytest.fixture
def cut(log_in: LogIn, quick_path: Path) -> Path:
    """The same, and the segments have lost it: one the second half, one all; the last one was synced."""
    log = log_in(quick_path / "to-cut", partitions=PARTITIONS)
    for value in VALUES:
        commit(log, range(PARTITIONS), value.encode())
    killed = power_cut(log, quick_path / "cut", "half")
    segments_of(killed, 1)[0].unlink()
    segments_of(killed, 2)[0].write_bytes(segments_of(log.directory, 2)[0].read_bytes())
    return killed


def journal_names(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "journal").iterdir())


@pytest.mark.parametrize("number", range(len(UNREADABLE)))
def test_nobody_needs_it(killed: Path, number: int) -> None:
    """The power was not cut: it is set aside, and a new one begun."""
    before = journal_paths(killed)[0].read_bytes()
    size_bytes = [segments_of(killed, each)[0].stat().st_size for each in range(PARTITIONS)]
    outcome, told = start(killed, UNREADABLE[number])
    assert outcome.refused is None and outcome.fired[0] > 0
    assert outcome.damage == [None] * PARTITIONS and outcome.values == [VALUES] * PARTITIONS
    assert outcome.journal_commits == 1
    assert journal_names(killed) == ["0.journal", "0.journal.damaged-1"]
    assert (killed / "journal" / "0.journal.damaged-1").read_bytes() == before
    assert told.count("0.journal can't be read: Input/output error") == 1
    # What only it proved to be on the disk is made so.
    assert outcome.rewritten_bytes == size_bytes


@pytest.mark.parametrize("number", range(len(UNREADABLE)))
def test_no_tail_is_taken_for_torn(log_in: LogIn, cut: Path, quick_path: Path, number: int) -> None:
    """It is kept for those; when it can be read again, all is there."""
    before = {path: path.read_bytes() for path in (*segments_of(cut, 0), *journal_paths(cut))}
    for turn in range(2):
        outcome, told = start(cut, UNREADABLE[number])
        assert outcome.refused is None
        assert [damage is not None for damage in outcome.damage] == [True, False, False]
        # Where nothing is left that tells of what there was, nothing is missed but by who reads the log.
        assert outcome.values[1:] == [["new"] * turn, [*VALUES, *["new"] * turn]]
        assert told.count("records may be gone that were on the disk in the journal alone") == 1 - turn
        assert outcome.journal_commits == 0
        assert {path: path.read_bytes() for path in before} == before
        assert journal_names(cut) == ["0.journal", KEPT_FOR]
    again = log_in(copied(cut, quick_path / "again"), partitions=PARTITIONS, epoch=3)
    assert [value.decode() for value in values_of(again.partitions[0])] == VALUES
    assert quarantined(again) == []


@pytest.mark.parametrize("what", ["payload", "table", "header"])
@pytest.mark.parametrize("number", range(3))
def test_a_place_in_it(cut: Path, number: int, what: str) -> None:
    """What stands behind that place is found, and tells how far the logs went."""
    entry = journal_in(cut)[0].entries[number]
    place = BLOCK_BYTES + sum(each.size_bytes for each in journal_in(cut)[0].entries[:number])
    first = entry.parts[0].place
    places = {
        "payload": range(first + 100, first + 101), "table": range(place + 60, place + 61),
        "header": range(place, place + 1),
    }[what]
    outcome, told = start(cut, unreadable(places))
    assert outcome.refused is None and outcome.fired[0] > 0
    assert "0.journal can't be read: Input/output error" in told
    # Of the last entry, without its table, nothing is known, and what is restored ends with a whole batch.
    known = what == "payload" or number < 2
    # The first one's first batch is in its segment.
    assert [damage is not None for damage in outcome.damage] == [known and number > 0, known, False]
    assert outcome.values[2] == VALUES
    if not known:
        assert outcome.values[:2] == [VALUES[:2]] * 2
    assert KEPT_FOR in journal_names(cut) or not known


def test_much_of_it(log_in: LogIn, quick_path: Path) -> None:
    """A disk may try for seconds before it gives up on a place: it is not asked for each."""
    log = log_in(quick_path / "data", partitions=PARTITIONS)
    for _ in range(3):
        commit(log, range(PARTITIONS), b"v" * 250_000)
    killed = log.killed(quick_path / "killed")
    outcome, _ = start(killed, unreadable(range(BLOCK_BYTES, 1 << 40)))
    assert outcome.damage == [None] * PARTITIONS
    assert 64 <= outcome.fired[0] < 80


def test_of_whom_it_is_kept_for_nothing_can_be_read(cut: Path) -> None:
    """Then it concerns all."""
    (cut / "journal" / KEPT_FOR).write_bytes(b"")
    read_journal(Files(), str(cut / "journal")).keep(set())
    found, _ = start(copied(cut, cut.parent / "other"))
    assert found.values[1] == []
    outcome, _ = start(cut, unreadable(path=f"*/{KEPT_FOR}"))
    assert outcome.values == [VALUES] * PARTITIONS


@pytest.mark.parametrize("is_damaged", [False, True])
def test_it_can_not_be_put_away(log_in: LogIn, killed: Path, is_damaged: bool) -> None:
    """It is left alone, and concerns nobody any more."""
    (path,) = journal_paths(killed)
    if is_damaged:
        path.write_bytes(flipped(path, BLOCK_BYTES + 100))
    before = path.read_bytes()
    outcome, told = start(killed, fault("rename" if is_damaged else "unlink", JOURNAL, error="EIO", times=FOR_GOOD))
    assert outcome.refused is None and outcome.fired == [1]
    assert outcome.values == [VALUES] * PARTITIONS
    assert outcome.journal_commits == 0 and "nothing is added to it" in told
    assert journal_names(killed) == ["0.journal", KEPT_FOR] and path.read_bytes() == before
    assert read_journal(Files(), str(killed / "journal")).kept_for == frozenset()
    # The next start tries again.
    outcome, _ = start(killed)
    assert outcome.values == [[*VALUES, "new"]] * PARTITIONS
    assert journal_names(killed) == (["0.journal", "0.journal.damaged-1"] if is_damaged else ["0.journal"])


@pytest.mark.parametrize("kind", ["sync", "write"])
def test_it_can_not_be_synced(killed: Path, kind: str) -> None:
    """The start needs no more of it than what can be read."""
    outcome, told = start(killed, fault(kind, JOURNAL, error="EIO"))
    assert outcome.refused is None and outcome.fired == [1]
    assert outcome.values == [VALUES] * PARTITIONS and outcome.damage == [None] * PARTITIONS
    assert "0.journal can't be synced (Input/output error)" in told


def test_what_passes_while_it_is_synced_refuses_the_start(killed: Path) -> None:
    outcome, _ = start(killed, fault("sync", JOURNAL, error="ENOMEM"))
    assert outcome.refused is not None and outcome.fired == [1]
    outcome, _ = start(killed)
    assert outcome.values == [VALUES] * PARTITIONS


@pytest.mark.parametrize("error", ["EACCES", "EMFILE", "ENOMEM"])
def test_what_is_no_damage_refuses_the_start(cut: Path, error: str) -> None:
    """And nothing is lost by it."""
    outcome, _ = start(cut, fault("open", JOURNAL, error=error, times=FOR_GOOD))
    assert outcome.refused is not None
    outcome, _ = start(cut)
    assert outcome.values == [VALUES] * PARTITIONS


def test_a_partitions_directory_that_can_not_be_looked_at(strace: list[str], killed: Path) -> None:
    """It is not taken for missing, and the partition for empty."""
    directory = killed / "topics" / str(TOPIC_ID) / "0"
    done = subprocess.run(
        [*strace, "-o", "/dev/null", "-P", str(directory), "-e", "trace=lstat,newfstatat", "-e",
         "inject=lstat,newfstatat:error=EIO:when=1", sys.executable, "-m", "tests.log.start_with_faults", str(killed),
         str(PARTITIONS)],
        capture_output=True, text=True, env=os.environ | environment(), cwd=Path(__file__).parents[2], check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Outcome(**json.loads(done.stdout)).values == [VALUES] * PARTITIONS
