"""The twin itself: each fault does what it says, and a recording holds what happened, in order."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.torture.twin import (
    CREATED, DIRECTORY, FOR_GOOD, LIED, TRUNCATED, Kind, Operation, environment, fault, read_recording,
)

ROOT = Path(__file__).resolve().parents[2]
PREAMBLE = """
import ctypes, errno, json, os, sqlite3, sys
from tests.torture.twin import Twin, fault
d = sys.argv[1]
twin = Twin()
def outcome(call, *arguments):
    try:
        return call(*arguments)
    except OSError as problem:
        return errno.errorcode[problem.errno]
f = os.open(d + "/f.log", os.O_RDWR | os.O_CREAT, 0o600)
"""


def play(
    directory: Path, script: str, *faults: str, status: int = 0, recording: Path | None = None
) -> Any:
    """What the script's last line prints, as JSON, with the twin and these faults from the start."""
    directory.mkdir(exist_ok=True)
    variables = environment(directory, recording or "", faults)
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(script), str(directory)], capture_output=True, text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **variables}, check=False,
    )
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout) if done.stdout else None


@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EINTR", "EDQUOT"])
@pytest.mark.parametrize(("kind", "call"), [
    ("write", "os.pwrite(f, b'x', 0)"),
    ("sync", "os.fdatasync(f)"),
    ("sync", "os.fsync(f)"),
    ("sync_directory", "os.fsync(os.open(d, os.O_RDONLY))"),
    ("truncate", "os.ftruncate(f, 0)"),
    ("rename", "os.rename(d + '/f.log', d + '/g.log')"),
    ("unlink", "os.unlink(d + '/f.log')"),
    ("mkdir", "os.mkdir(d + '/made')"),
    ("open", "os.open(d + '/f.log', os.O_RDONLY)"),
    ("read", "os.pread(f, 1, 0).decode()"),
])
def test_the_first_fails_and_the_next_does_not(tmp_path: Path, kind: str, call: str, error: str) -> None:
    # From the second open on: the first is the preamble's. Python tries again when it is interrupted.
    wanted = fault(kind, error=error, first=2 if kind == "open" else 1)
    first, second = play(
        tmp_path / "d", f"results = [outcome(lambda: {call}) for _ in range(2)]; print(json.dumps(results))", wanted
    )
    if error != "EINTR":
        assert first == error
        assert second not in ("EIO", "ENOSPC", "EDQUOT")
    else:
        assert first != error or kind in ("rename", "unlink", "truncate", "mkdir", "open")


def test_some_bytes_can_not_be_read(tmp_path: Path) -> None:
    """Reads of any of them fail, and no others."""
    assert play(
        tmp_path / "d",
        """
        os.pwrite(f, b"0123456789", 0)
        reads = [(1, 3), (2, 3), (1, 4), (5, 5), (3, 6), (10, 0)]
        print(json.dumps([outcome(lambda: os.pread(f, size, at).decode()) for size, at in reads]))
        """,
        fault("read", "*.log", error="EIO", times=FOR_GOOD, places=range(4, 6)),
    ) == ["3", "EIO", "EIO", "EIO", "678", "EIO"]


def test_interrupted(tmp_path: Path) -> None:
    """Below Python, which begins an interrupted call again."""
    assert play(
        tmp_path / "d",
        """
        c = ctypes.CDLL(None, use_errno=True)
        first = c.fdatasync(f), ctypes.get_errno()
        print(json.dumps([first, c.fdatasync(f)]))
        """,
        fault("sync", error="EINTR"),
    ) == [[-1, 4], 0]


def test_from_the_nth_on_and_by_name(tmp_path: Path) -> None:
    assert play(
        tmp_path / "d",
        """
        g = os.open(d + "/g.index", os.O_RDWR | os.O_CREAT, 0o600)
        number = twin.fault(fault("write", "*.log", error="EIO", first=2, times=2))
        results = [outcome(os.pwrite, fd, b"x", 0) for fd in (f, g, f, g, f, g, f)]
        print(json.dumps([results, twin.seen(number), twin.fired(number)]))
        """,
    ) == [[1, 1, "EIO", 1, "EIO", 1, 1], 4, 2]


def test_for_good_and_cleared(tmp_path: Path) -> None:
    assert play(
        tmp_path / "d",
        """
        results = [outcome(os.fdatasync, f) for _ in range(3)]
        twin.clear()
        print(json.dumps(results + [outcome(os.fdatasync, f)]))
        """,
        fault("sync", error="EIO", times=FOR_GOOD),
    ) == ["EIO", "EIO", "EIO", None]


def test_short(tmp_path: Path) -> None:
    assert play(
        tmp_path / "d",
        """
        written = [os.pwritev(f, [b"abc", b"defg"], 0), os.pwrite(f, b"xy", 7)]
        twin.fault(fault("read", action="short"))
        print(json.dumps([written, os.pread(f, 100, 0).decode()[:4], os.pread(f, 100, 0).decode()[:4]]))
        """,
        fault("write", action="short"),
    ) == [[4, 2], "abcd", "abcd"]
    assert (tmp_path / "d" / "f.log").read_bytes() == b"abcd\0\0\0xy"


@pytest.mark.parametrize(("action", "there"), [("kill_before", b"a"), ("kill_after", b"ab")])
def test_killed_at_the_second_write(tmp_path: Path, action: str, there: bytes) -> None:
    script = """
        for place, byte in enumerate((b"a", b"b", b"c")):
            os.pwrite(f, byte, place)
    """
    play(tmp_path / "d", script, fault("write", action=action, first=2), status=-9)
    assert (tmp_path / "d" / "f.log").read_bytes() == there


def test_a_full_disk(tmp_path: Path) -> None:
    assert play(
        tmp_path / "d",
        """
        twin.room(10)
        results = [outcome(os.pwrite, f, b"x" * 8, place) for place in (0, 0, 8, 10, 8)]
        made = outcome(os.mkdir, d + "/made")
        twin.room(None)
        print(json.dumps([results, made, outcome(os.pwrite, f, b"x" * 8, 8)]))
        """,
    ) == [[8, 8, 2, "ENOSPC", 2], "ENOSPC", 8]


def test_what_lies_elsewhere_is_left_alone(tmp_path: Path) -> None:
    assert play(
        tmp_path / "d",
        """
        elsewhere = os.open(d + "-elsewhere", os.O_RDWR | os.O_CREAT, 0o600)
        twin.fault(fault("any", error="EIO", times=-1))
        print(json.dumps([outcome(os.pwrite, elsewhere, b"x", 0), outcome(os.pwrite, f, b"x", 0)]))
        """,
    ) == [1, "EIO"]


def told(operation: Operation) -> tuple[object, ...]:
    name = Path(operation.path).name
    match operation.kind:
        case Kind.WRITE:
            return "write", name, operation.position, operation.data
        case Kind.TRUNCATE:
            return "truncate", name, operation.position
        case Kind.RENAME:
            return "rename", name, Path(operation.second_path).name
        case Kind.MARK:
            return "mark", operation.text
        case Kind.OPEN:
            return "open", name, operation.flags
        case Kind.SYNC | Kind.SYNC_END:
            return operation.kind.name.lower(), name, operation.flags, operation.result
        case _:
            return operation.kind.name.lower(), name


def test_a_recording(tmp_path: Path) -> None:
    recording = tmp_path / "recording"
    play(
        tmp_path / "d",
        """
        os.pwrite(f, b"one", 4)
        twin.mark("written")
        os.write(f, b"two")
        twin.fault(fault("sync", action="lie"))
        twin.fault(fault("sync", error="EIO", first=2))
        os.fdatasync(f)
        outcome(os.fsync, f)
        os.fsync(f)
        os.mkdir(d + "/sub")
        os.rename(d + "/f.log", d + "/sub/g.log")
        os.pwritev(f, [b"a", b"bc"], 9)
        os.ftruncate(f, 1)
        os.fsync(os.open(d, os.O_RDONLY))
        os.open(d + "/sub/g.log", os.O_WRONLY | os.O_TRUNC)
        os.unlink(d + "/sub/g.log")
        os.pwrite(f, b"still there", 0)
        os.rmdir(d + "/sub")
        """,
        recording=recording,
    )
    found = read_recording(recording)
    assert [told(operation) for operation in found] == [
        ("open", "f.log", CREATED),
        ("write", "f.log", 4, b"one"),
        ("mark", "written"),
        ("write", "f.log", 0, b"two"),
        ("sync", "f.log", 0, 0),
        ("sync_end", "f.log", LIED, 0),
        ("sync", "f.log", 0, 0),
        ("sync_end", "f.log", 0, -5),
        ("sync", "f.log", 0, 0),
        ("sync_end", "f.log", 0, 0),
        ("mkdir", "sub"),
        ("rename", "f.log", "g.log"),
        ("write", "g.log", 9, b"abc"),
        ("truncate", "g.log", 1),
        ("sync", "d", DIRECTORY, 0),
        ("sync_end", "d", DIRECTORY, 0),
        ("open", "g.log", TRUNCATED),
        ("unlink", "g.log"),
        ("write", "g.log", 0, b"still there"),
        ("rmdir", "sub"),
    ]
    # The file is known by its inode, whatever it is called.
    assert len({each.inode for each in found if "log" in each.path and each.kind is not Kind.MARK}) == 1


def test_a_database_and_a_file_are_recorded_in_one_order(tmp_path: Path) -> None:
    recording = tmp_path / "recording"
    play(
        tmp_path / "d",
        """
        db = sqlite3.connect(d + "/meta.db", isolation_level=None)
        for setting in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
            db.execute("PRAGMA " + setting)
        db.execute("CREATE TABLE t (x)")
        twin.mark("begin")
        os.pwrite(f, b"before", 0)
        db.execute("INSERT INTO t VALUES ('value-in-the-database')")
        os.pwrite(f, b"after", 0)
        twin.mark("end")
        """,
        recording=recording,
    )
    found = read_recording(recording)
    marks = [number for number, each in enumerate(found) if each.kind is Kind.MARK]
    between = found[marks[0] + 1 : marks[1]]
    assert between[0].data == b"before" and between[-1].data == b"after"
    wal = [each for each in between if each.path.endswith("meta.db-wal")]
    assert [each.kind for each in wal[-2:]] == [Kind.SYNC, Kind.SYNC_END]
    assert any(b"value-in-the-database" in each.data for each in wal if each.kind is Kind.WRITE)
    # The journal of the first transaction, and its directory's sync, were seen too.
    assert any(each.path.endswith("meta.db-journal") for each in found)
    assert any(each.kind is Kind.SYNC and each.flags & DIRECTORY for each in found)
