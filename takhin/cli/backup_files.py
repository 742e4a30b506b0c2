"""A consistent copy of single parts of a data directory that a broker may be writing to: the journal, the database.

Both are read through the page cache, where all is that was ever written, and are read again when they were begun anew
meanwhile. What was just being written is cut off; nothing behind it is whole yet.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from takhin.broker.copy_mark import mark_copy
from takhin.broker.sqlite_files import WAL_HEADER_BYTES, committed_bytes, damaged_frame, leave_sum, sum_path
from takhin.cli.command import CommandError
from takhin.cli.metadata_view import MetadataError, MetadataView, read_copy
from takhin.log.files import Files
from takhin.log.journal import (
    BLOCK_BYTES,
    FILE_NAMES,
    HEADER_COPIES,
    JournalEntry,
    JournalError,
    JournalHeader,
    read_entry,
    read_header,
    read_table,
)
from takhin.log.replay import KEPT_FOR, read_journal

# A file that is begun anew again and again while it is read: each time takes milliseconds, and has to be hit.
TRIES = 200
# Of a WAL that looks damaged, as it does, too, when commits come to it while it is read.
_DAMAGED_TRIES = 10
_PAUSE_S = 0.05
_CHUNK_BYTES = 1 << 24


def copy_file(source: str, target: str, size_bytes: int | None = None) -> int:
    """Copy a file, or so much of its beginning as there is of it, over what may be there; returns how many bytes.
    Raises OSError."""
    copied = 0
    reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while size_bytes is None or copied < size_bytes:
                wanted = _CHUNK_BYTES if size_bytes is None else min(_CHUNK_BYTES, size_bytes - copied)
                moved = _move(reader, writer, wanted, source, target)
                if not moved:
                    break
                copied += moved
            os.ftruncate(writer, copied)
        finally:
            os.close(writer)
    finally:
        os.close(reader)
    return copied


def _move(reader: int, writer: int, size_bytes: int, source: str, target: str) -> int:
    try:
        # Within the kernel, and where the filesystem can do that without copying at all.
        return os.copy_file_range(reader, writer, size_bytes)
    except OSError:
        # Not between these two, or it failed: then one of the following tells where.
        pass
    with _naming(source):
        data = memoryview(os.read(reader, min(size_bytes, 1 << 20)))
    moved = len(data)
    with _naming(target):
        while data:
            data = data[os.write(writer, data):]
    return moved


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """What fails on an open file does not say on which one."""
    try:
        yield
    except OSError as problem:
        problem.filename = path
        raise


# The journal


@dataclass(slots=True)
class JournalCopy:
    """first: of the oldest entry that could be in it, 1 without any. entries: in order, all that are whole. salts: of
    its files, each time one is begun another; the last one is that of the file in use."""

    first: int = 1
    entries: list[JournalEntry] = field(default_factory=list)
    salts: list[int] = field(default_factory=list)
    # It is kept for damaged partitions: nothing is added to it.
    is_kept: bool = False

    @property
    def last(self) -> int:
        return self.entries[-1].sequence if self.entries else self.first - 1

    def goes_on_from(self, older: "JournalCopy") -> bool:
        """Whether no entry that was written since the older copy is missing here. The older one's last entry is, when
        it never was whole."""
        if self.is_kept or (older.salts and older.salts[-1] in self.salts):
            return True
        return self.first <= older.last + 1 <= self.last + 1

    def confirms(self, older: "JournalCopy") -> bool:
        """Whether the entries of the older copy stand here, too, but for those whose file was begun anew."""
        ours = {(entry.sequence, entry.time_ms, entry.parts) for entry in self.entries}
        return self.is_kept or all(
            (entry.sequence, entry.time_ms, entry.parts) in ours
            for entry in older.entries if entry.sequence >= self.first)


def scan_journal(directory: str, whole_from: int | None = None) -> JournalCopy:
    """What the journal has, by the tables of its entries; of the last one the rest may be missing. From the entry of
    the sequence whole_from on, only those that are whole. Raises CommandError, OSError."""

    def read(files: Files, fd: int, place: int, salt: int) -> JournalEntry:
        entry = read_table(files, fd, place, salt)
        return entry if whole_from is None or entry.sequence < whole_from else _whole_entry(files, fd, place, salt)

    return _steady(directory, lambda: JournalCopy(is_kept=True) if _is_kept(directory) else _read(directory, read))


def journal_damage(directory: str) -> str | None:
    """What tells in a copy of the journal that entries are missing which were on the disk, in words; None: nothing, or
    it is kept for damaged partitions, and copied as it is. Raises OSError."""
    if _is_kept(directory):
        return None
    found = read_journal(Files(), directory)
    found.close()
    return found.damage


def copy_journal(source: str, target: str) -> None:
    """Copy the files of the journal's directory to another, over what is there. Raises CommandError, OSError."""

    def copy() -> None:
        os.makedirs(target, exist_ok=True)
        for name in (*FILE_NAMES, KEPT_FOR):
            try:
                copy_file(os.path.join(source, name), os.path.join(target, name))
            except (FileNotFoundError, NotADirectoryError):
                if os.path.exists(path := os.path.join(target, name)):
                    os.unlink(path)

    _steady(source, copy)


def settle_journal(directory: str) -> JournalCopy:
    """What a copy of the journal has; what follows its last whole entry is cut off: it was being written, or is of an
    earlier use of the file. Raises OSError."""
    if _is_kept(directory):
        return JournalCopy(is_kept=True)
    return _read(directory, _whole_entry, cut=True)


T = TypeVar("T")


def _steady(directory: str, read: Callable[[], T]) -> T:
    """What it reads while no file is begun anew."""
    for _ in range(TRIES):
        before = [_head(os.path.join(directory, name)) for name in FILE_NAMES]
        found = read()
        if before == [_head(os.path.join(directory, name)) for name in FILE_NAMES]:
            return found
    raise CommandError(f"{directory} is begun anew faster than it can be read; try again with less load")


def _is_kept(directory: str) -> bool:
    return os.path.exists(os.path.join(directory, KEPT_FOR))


def _head(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read(BLOCK_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read(
    directory: str, read: Callable[[Files, int, int, int], JournalEntry], *, cut: bool = False
) -> JournalCopy:
    files = Files()
    found = JournalCopy()
    runs: list[tuple[int, int, list[JournalEntry]]] = []
    for name in FILE_NAMES:
        path = os.path.join(directory, name)
        header = _header(path)
        if header is None:
            continue  # none, or as it is: a start says what that means
        fd = files.open(path, os.O_RDWR if cut else os.O_RDONLY)
        try:
            entries: list[JournalEntry] = []
            place = BLOCK_BYTES
            while (entry := _entry(read, files, fd, place, header.salt)) is not None:
                if entry.sequence != header.first_sequence + len(entries):
                    break
                entries.append(entry)
                place += entry.size_bytes
            if cut:
                files.truncate(fd, place)
        finally:
            files.close(fd)
        runs.append((header.first_sequence, header.salt, entries))
    runs.sort(key=lambda run: run[0])
    if runs:
        found.first = runs[0][0]
        found.salts = [salt for _, salt, _ in runs]
        found.entries = [entry for _, _, entries in runs for entry in entries]
    return found


def _entry(
    read: Callable[[Files, int, int, int], JournalEntry], files: Files, fd: int, place: int, salt: int
) -> JournalEntry | None:
    try:
        return read(files, fd, place, salt)
    except JournalError:
        return None


def _whole_entry(files: Files, fd: int, place: int, salt: int) -> JournalEntry:
    entry = read_entry(files, fd, place, salt)
    if not entry.whole:
        raise JournalError("its bytes are not whole")
    return entry


def _header(path: str) -> JournalHeader | None:
    head = _head(path) or b""
    for place in HEADER_COPIES:
        try:
            return read_header(head[place:])
        except JournalError:
            continue
    return None


# The database


def copy_metadata(data_dir: str, target_dir: str, *, with_sum: bool = False) -> bool:
    """Copy meta.db and its WAL as of the last commit that is whole in the WAL's copy; whether there is a meta.db.

    with_sum: and the checksum that a clean stop left, for settle_metadata(). The main file is copied first, then the
    WAL. What a checkpoint wrote to the main file meanwhile stands in the WAL, too, as long as that is not begun anew;
    its header tells. So the two together are the database. Raises CommandError, OSError.
    """
    source, target = os.path.join(data_dir, "meta.db"), os.path.join(target_dir, "meta.db")
    if not os.path.exists(source):
        return False
    _copy_or_remove(sum_path(source), sum_path(target), is_wanted=with_sum)
    damaged = 0
    for _ in range(TRIES):
        before = _wal_header(source)
        copy_file(source, target)
        _copy_or_remove(f"{source}-wal", f"{target}-wal")
        if not before == _wal_header(source) == _wal_header(target):
            continue
        # What lies behind the damage is to be cut off: then nothing would tell of it any more.
        frame = damaged_frame(target)
        if frame is None:
            return True
        damaged += 1
        if damaged == _DAMAGED_TRIES:
            raise CommandError(
                f"{source}-wal is damaged: frame {frame}; commits that were durable lie behind it; it can't be backed "
                "up")
        time.sleep(_PAUSE_S)
    raise CommandError(f"{source}-wal is begun anew faster than it can be copied; try again with less load")


def _copy_or_remove(source: str, target: str, *, is_wanted: bool = True) -> None:
    if is_wanted and os.path.exists(source):
        copy_file(source, target)
    elif os.path.exists(target):
        os.unlink(target)


def settle_metadata(target_dir: str, data_dir: str) -> MetadataView | None:
    """Check the copy, and read it; what follows the last whole commit in its WAL was being written, and is cut off.
    None: it is empty. Raises CommandError, OSError."""
    path = os.path.join(target_dir, "meta.db")
    if os.path.exists(f"{path}-wal"):
        try:
            os.truncate(f"{path}-wal", committed_bytes(path))
        except ValueError as problem:
            raise CommandError(f"{os.path.join(data_dir, 'meta.db')}-wal {problem}; it can't be backed up") from None
    try:
        return read_copy(target_dir, data_dir)
    except MetadataError as problem:
        raise CommandError(f"{problem}; it can't be backed up") from None


def _wal_header(path: str) -> bytes:
    try:
        with open(f"{path}-wal", "rb") as file:
            return file.read(WAL_HEADER_BYTES)
    except FileNotFoundError:
        return b""


def producer_names(target_dir: str) -> list[tuple[str, int, int]]:
    """The names of producers in a copy, each with its id and epoch."""
    return _with_database(target_dir, lambda db: db.execute(
        "SELECT name, producer_id, epoch FROM producer_names ORDER BY name").fetchall())


def finish_metadata(target_dir: str) -> None:
    """Make the copy one file with its checksum, marked as a copy, and such that a start on it begins a new epoch: the
    broker that it was copied from may have gone on in this one, and no (epoch, offset) is to have two values. Raises
    OSError."""

    def finish(db: sqlite3.Connection) -> None:
        db.execute("UPDATE run SET clean = 0")
        mark_copy(db)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    _with_database(target_dir, finish)
    leave_sum(os.path.join(target_dir, "meta.db"))


def _with_database(target_dir: str, work: Callable[[sqlite3.Connection], T]) -> T:
    db = sqlite3.connect(os.path.join(target_dir, "meta.db"), isolation_level=None)
    try:
        # The whole backup is synced at its end.
        db.execute("PRAGMA synchronous=OFF")
        return work(db)
    except sqlite3.Error as problem:
        raise CommandError(f"the copy of meta.db can't be used: {problem}") from problem
    finally:
        db.close()
