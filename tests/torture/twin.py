"""The filesystem's twin (twin.c): built, spoken to, and its recordings read.

A process that is started with environment(...) has it loaded; within that process, Twin() adds faults, marks and
recordings. Only what lies below the directory it was told of is looked at; engine and SQLite alike.
"""

import ctypes
import errno
import os
import struct
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

_SOURCE = Path(__file__).with_name("twin.c")
_BUILD = Path(__file__).resolve().parents[2] / "build" / "twin"
_HEAD = struct.Struct("<IHHqQqQIIQ")


class Kind(IntEnum):
    """What an operation does; faults name them in lower case. SYNC is a sync's begin in a recording."""

    OPEN = 1
    WRITE = 2
    SYNC = 3
    SYNC_DIRECTORY = 4
    RENAME = 5
    TRUNCATE = 6
    UNLINK = 7
    MKDIR = 8
    RMDIR = 9
    ALLOCATE = 10
    READ = 11
    SYNC_END = 20
    MARK = 21


CREATED, TRUNCATED, LIED, DSYNC, DIRECTORY = 1, 2, 4, 8, 16
FOR_GOOD = -1


@dataclass(frozen=True, slots=True)
class Operation:
    """One record. result: of the call, or a negative errno. position: of a write; the size a truncate or allocate gave.

    number: the same for a sync's begin and end. data: what was written; a mark's text.
    """

    kind: Kind
    flags: int
    result: int
    inode: int
    position: int
    number: int
    path: str
    second_path: str
    data: bytes

    @property
    def text(self) -> str:
        """A mark's text."""
        return self.data.decode()


def library() -> Path:
    """The twin's shared library, made anew when its source has changed."""
    path = _BUILD / "twin.so"
    if not path.exists() or path.stat().st_mtime < _SOURCE.stat().st_mtime:
        _BUILD.mkdir(parents=True, exist_ok=True)
        # Two tests may make it at the same time: each its own, and the last one stays.
        made = path.with_name(f"twin-{uuid.uuid4().hex}.so")
        subprocess.run(
            ["cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-o", made, _SOURCE, "-ldl",
             "-lpthread"],
            check=True,
        )
        made.replace(path)
    return path


def environment(
    root: Path | str = "", recording: Path | str = "", faults: Iterator[str] | list[str] | tuple[str, ...] = ()
) -> Mapping[str, str]:
    """Variables for a process that is to have the twin. Without a root it does nothing until Twin.begin()."""
    # Behind what is there already: a sanitizer's library has to come first.
    variables = {"LD_PRELOAD": " ".join(filter(None, (os.environ.get("LD_PRELOAD"), str(library()))))}
    if root:
        variables |= {"TWIN_ROOT": str(root), "TWIN_RECORD": str(recording), "TWIN_FAULTS": ";".join(faults)}
    return variables


def fault(
    kind: str, path: str = "*", *, error: str = "", action: str = "error", first: int = 1, times: int = 1,
    places: range | None = None,
) -> str:
    """A fault as the twin reads it: from the `first` operation of that kind ("any": all but reads) on files that
    match on, so many times (FOR_GOOD), fail with `error` ("EIO"), or do what `action` names: short, kill_before,
    kill_after, lie (a sync that does nothing), count. places: only reads of any of these bytes."""
    what = f"errno={getattr(errno, error)}" if error else f"action={action}"
    where = f" bytes={places.start}-{places.stop}" if places is not None else ""
    return f"kind={kind} path={path} from={first} times={times}{where} {what}"


class Twin:
    """The twin in this very process."""

    def __init__(self) -> None:
        self._c = ctypes.CDLL(None)
        self._c.twin_seen.restype = self._c.twin_fired.restype = ctypes.c_long
        self._c.twin_room.argtypes = [ctypes.c_longlong]
        self._c.twin_sync_delay.argtypes = [ctypes.c_uint, ctypes.c_ulonglong]

    def begin(self, root: Path | str, recording: Path | str = "") -> None:
        """Look at what happens below root from now on; append it to the recording, if one is named."""
        failed = self._c.twin_begin(os.fsencode(root), os.fsencode(recording))
        if failed:
            raise OSError(-failed, os.strerror(-failed), recording)

    def end(self) -> None:
        self._c.twin_end()

    def exit(self, status: int) -> None:
        """End the process at once, but with no operation done and not recorded."""
        self._c.twin_exit(status)

    def mark(self, text: str) -> None:
        """Put a line of one's own between the operations."""
        self._c.twin_mark(text.encode())

    def fault(self, text: str) -> int:
        """Add what fault() gives; returns its number."""
        number: int = self._c.twin_fault(text.encode())
        if number < 0:
            raise ValueError(f"not a fault: {text}")
        return number

    def clear(self) -> None:
        """No faults any more, and room on the disk."""
        self._c.twin_clear_faults()

    def seen(self, number: int) -> int:
        """How many operations that fault could have met."""
        return int(self._c.twin_seen(number))

    def fired(self, number: int) -> int:
        """How many it has met."""
        return int(self._c.twin_fired(number))

    def room(self, size_bytes: int | None) -> None:
        """Let files grow by so much before the disk is full; None: without a bound."""
        self._c.twin_room(-1 if size_bytes is None else size_bytes)

    def sync_delay(self, max_us: int, seed: int) -> None:
        """Let syncs take up to so long, so that other things happen meanwhile."""
        self._c.twin_sync_delay(max_us, seed)


def read_recording(path: Path) -> list[Operation]:
    """All operations in order. The last record may be cut short, by a kill."""
    return list(operations(path.read_bytes()))


def operations(recording: bytes) -> Iterator[Operation]:
    """As read_recording, of its bytes."""
    at = 0
    while at + _HEAD.size <= len(recording):
        size, kind, flags, result, inode, position, number, path_bytes, second_bytes, _ = _HEAD.unpack_from(
            recording, at
        )
        if at + size > len(recording):
            return
        path_at = at + _HEAD.size
        second_at = path_at + path_bytes
        data_at = second_at + second_bytes
        yield Operation(
            Kind(kind), flags, result, inode, position, number, os.fsdecode(recording[path_at:second_at]),
            os.fsdecode(recording[second_at:data_at]), recording[data_at : at + size],
        )
        at += size
