"""What a step of the engine leaves is on the disk when the step is over, and what it relies on when it goes on.

Power cuts are drawn by lot, and seldom fall into a start or a stop; here every operation of one is looked at.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from takhin.broker.sqlite_files import leave_sum
from tests.log.test_journal import commit
from tests.log.test_journal_replay import make, power_cut
from tests.log.test_partition import TOPIC_ID, Config, LogIn, log_in, quick_path, segments_of
from tests.torture.disk import Disk
from tests.torture.sync_scenarios import PARTITIONS, REFUSED
from tests.torture.twin import FOR_GOOD, Kind, Operation, environment, fault, read_recording

__all__ = ["log_in", "quick_path"]

TOPIC = f"topics/{TOPIC_ID}"


class Step:
    """A step of tests.torture.sync_scenarios on a directory, all of which is on the disk when it begins."""

    def __init__(self, name: str, data: Path, *faults: str, status: int = 0):
        self.disk = Disk(data, data)
        recording = data.parent / f"{data.name}.recording"
        recording.touch()
        done = subprocess.run(
            [sys.executable, "-m", "tests.torture.sync_scenarios", name, str(data), str(recording), *faults],
            check=False, env=os.environ | environment(), cwd=Path(__file__).parents[2],
        )
        assert done.returncode == status
        self.operations = read_recording(recording)
        assert self.operations

    def before_each(self, kind: Kind, path: str) -> Iterator[Operation]:
        """Operations of a kind on files whose paths end so, the disk as it is before each; then to the end."""
        for operation in self.operations:
            if operation.kind is kind and operation.path.endswith(path):
                yield operation
            self.disk.play(operation)

    def unsynced(self) -> list[str]:
        """As Disk has it, but for what can be made again: index files, snapshots, and the LOCK."""
        made_again = (".index", ".index.new", "producers.snapshot", "producers.snapshot.new", "LOCK")
        return [name for name in self.disk.unsynced() if not name.endswith(made_again)]

    def play(self) -> list[str]:
        """All of it; what a power cut at its end might undo."""
        for operation in self.operations:
            self.disk.play(operation)
        return self.unsynced()


@pytest.fixture
def cut(log_in: LogIn, quick_path: Path) -> Path:
    """A journal that holds what the segments of several partitions have lost, names of files and directories too."""
    log = log_in(quick_path / "made", Config(segment_bytes=1024), partitions=PARTITIONS)
    make(log)
    return power_cut(log, quick_path / "cut", "missing")


@pytest.fixture
def torn(log_in: LogIn, quick_path: Path) -> Path:
    """The last segment of one partition ends in the middle of a batch, that of another has not even a header."""
    log = log_in(quick_path / "made", Config(segment_bytes=600), partitions=PARTITIONS)
    for number in range(2):
        log.write(*(b"v" * 100 for _ in range(4)), to=number)
    killed = log.killed(quick_path / "torn")
    for number, left in ((0, 250), (1, 10)):
        path = segments_of(killed, number)[-1]
        with path.open("r+b") as file:
            file.truncate(left)
    return killed


def test_the_checksum_that_a_stop_leaves(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "meta.db").write_bytes(b"m" * 5000)
    step = Step("leave_sum", data)
    assert step.play() == []
    # Its name stands for a whole file from the first.
    step = Step("leave_sum", data)
    for _ in step.before_each(Kind.RENAME, "meta.db.sum.new"):
        assert "meta.db.sum.new" not in step.unsynced()


def test_a_checksum_is_gone_before_the_file_changes(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "meta.db").write_bytes(b"m" * 5000)
    leave_sum(str(data / "meta.db"))
    assert Step("take_sum", data).play() == []
    assert not (data / "meta.db.sum").exists()


def test_a_new_data_directory(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    step = Step("lock", top)
    assert step.play() == []
    assert set(step.disk.tree()) >= {"new", "new/data", "new/data/topics"}


def test_a_start_that_needs_the_journal(cut: Path) -> None:
    step = Step("start", cut)
    removed = 0
    for _ in step.before_each(Kind.UNLINK, ".journal"):
        removed += 1
        # Nothing but the journal's own names.
        assert [name for name in step.unsynced() if "journal" not in name] == []
    assert removed and step.unsynced() == []
    assert sum(operation.kind is Kind.WRITE and operation.path.endswith(".log") for operation in step.operations) > 5


def test_a_start_that_makes_vouched_segments_again(log_in: LogIn, quick_path: Path) -> None:
    """Files are gone, but for their indexes: what the journal gives is whole at once, and nothing is scanned."""
    log = log_in(quick_path / "made", Config(segment_bytes=600), partitions=PARTITIONS)
    for _ in range(8):
        commit(log, range(PARTITIONS), b"v" * 100)
    killed = log.killed(quick_path / "killed")
    assert log.close()
    made = quick_path / "made"
    indexes = list(made.glob("topics/*/*/*.index"))
    assert len(indexes) >= 3 * PARTITIONS
    for index in indexes:
        shutil.copy(index, killed / index.relative_to(made))
    gone = list(killed.glob("topics/*/*/*.log"))
    assert len(gone) == len(indexes)
    for path in gone:
        path.unlink()
    step = Step("start", killed)
    for _ in step.before_each(Kind.UNLINK, ".journal"):
        assert [name for name in step.unsynced() if "journal" not in name] == []
    assert all(path.exists() for path in gone)


def test_a_start_that_cuts_a_torn_tail(torn: Path) -> None:
    step = Step("start", torn)
    cuts = 0
    for operation in step.before_each(Kind.TRUNCATE, ".log"):
        cuts += 1
        aside = f"{os.path.basename(operation.path)}.torn-at-{operation.position}"
        assert any(name.endswith(f"/{aside}") for name in step.disk.tree())
        # What is cut off is on the disk elsewhere.
        assert not [name for name in step.unsynced() if name.endswith(aside)]
    assert cuts == 1
    assert step.unsynced() == []
    assert sum(name.endswith(".torn-at-0") for name in step.disk.tree()) == 1


def test_a_start_on_what_a_kill_left(log_in: LogIn, quick_path: Path) -> None:
    """It was written and never synced; once served, it stays."""
    log = log_in(quick_path / "made", Config(segment_bytes=600), partitions=PARTITIONS)
    log.write(*(b"v" * 100 for _ in range(6)))
    killed = log.killed(quick_path / "killed")
    step = Step("start", killed)
    assert step.play() == []
    synced = {operation.path for operation in step.operations if operation.kind is Kind.SYNC}
    # The disk was begun as if all were on it: so these are looked for by name.
    assert synced >= {str(path) for path in segments_of(killed, 0)}
    directories = {
        operation.path for operation in step.operations if operation.kind is Kind.SYNC and operation.path.endswith("/0")
    }
    assert directories == {str(killed / TOPIC / "0")}
    assert synced >= {str(killed / TOPIC), str(killed / "topics")}


@pytest.mark.parametrize("step", ["stop", "append_to_stop"])
def test_a_stop(log_in: LogIn, quick_path: Path, step: str) -> None:
    log = log_in(quick_path / "data", partitions=PARTITIONS)
    log.close()
    done = Step(step, quick_path / "data")
    assert done.play() == []
    assert any(name.startswith(f"{TOPIC}/1/") for name in done.disk.tree())
    assert not [name for name in done.disk.tree() if name.endswith(".journal")]


def test_a_snapshot_of_producers_is_on_the_disk_before_its_name(log_in: LogIn, quick_path: Path) -> None:
    """The one that it takes the place of may know more than the headers of the log that is left."""
    log_in(quick_path / "data", partitions=PARTITIONS).close()
    done = Step("append_to_stop", quick_path / "data")
    renames = 0
    for _ in done.before_each(Kind.RENAME, "producers.snapshot.new"):
        renames += 1
        assert f"{TOPIC}/1/producers.snapshot.new" not in done.disk.unsynced()
    assert renames == 1


@pytest.mark.parametrize("step", ["commit", "two_commits"])
def test_what_is_acknowledged_is_in_the_journal(log_in: LogIn, quick_path: Path, step: str) -> None:
    """The segments are synced behind it."""
    log_in(quick_path / "data", partitions=PARTITIONS).close()
    done = Step(step, quick_path / "data")
    assert [name for name in done.play() if "journal" in name] == []
    assert [name for name in done.disk.tree() if name.endswith(".journal")] == ["journal/0.journal"]


def test_metadata_whose_name_can_not_be_synced(tmp_path: Path) -> None:
    """SQLite itself goes on then."""
    data = tmp_path / "data"
    data.mkdir()
    Step("open_metadata", data, fault("sync_directory", error="EIO", times=FOR_GOOD), status=REFUSED)
    Step("open_metadata", data)


def test_a_topic_that_is_removed(log_in: LogIn, quick_path: Path) -> None:
    log = log_in(quick_path / "data", partitions=PARTITIONS)
    log.write(b"x", to=1)
    log.close()
    step = Step("remove_topic", quick_path / "data")
    assert step.play() == []
    assert list(step.disk.tree()) == ["topics"]


def test_a_topic_whose_directory_is_gone_already(quick_path: Path) -> None:
    """Whoever removed it may have died before that was on the disk."""
    (quick_path / "data" / "topics").mkdir(parents=True)
    step = Step("remove_topic", quick_path / "data")
    assert [operation.path for operation in step.operations if operation.kind is Kind.SYNC] == [
        str(quick_path / "data" / "topics")
    ]


def test_orphans(log_in: LogIn, quick_path: Path) -> None:
    log = log_in(quick_path / "data", partitions=PARTITIONS)
    for number in range(PARTITIONS):
        log.write(b"x", to=number)
    log.close()
    (quick_path / "data" / "topics" / "99").mkdir()
    step = Step("set_aside_orphans", quick_path / "data")
    assert step.play() == []
    assert {"orphans/99", f"orphans/{TOPIC_ID}-2"} <= set(step.disk.tree())


@pytest.mark.parametrize("step", ["keep_journal", "set_journal_aside", "remove_journal"])
def test_a_journal_that_has_served(log_in: LogIn, quick_path: Path, step: str) -> None:
    log = log_in(quick_path / "made", partitions=PARTITIONS)
    commit(log, range(PARTITIONS), b"x")
    done = Step(step, log.killed(quick_path / "killed"))
    assert done.play() == []
    names = {name for name in done.disk.tree() if name.startswith("journal/")}
    assert names == {
        "keep_journal": {"journal/0.journal", "journal/kept-for"},
        "set_journal_aside": {"journal/0.journal.damaged-1"},
        "remove_journal": set(),
    }[step]


def test_whom_a_journal_is_kept_for_is_never_half_told(log_in: LogIn, quick_path: Path) -> None:
    """Some of the lines, or none, would say that it is not kept for the others."""
    log = log_in(quick_path / "made", partitions=PARTITIONS)
    commit(log, range(PARTITIONS), b"x")
    step = Step("keep_journal", log.killed(quick_path / "killed"))
    renamed = 0
    for _ in step.before_each(Kind.RENAME, "kept-for.new"):
        renamed += 1
        assert "journal/kept-for.new" not in step.unsynced()
    assert renamed == 1
