"""What the journal holds when the broker starts, and how it comes back into the segments.

An entry is believed when its checksums match. The first place where the next entry does not stand is where writing
ended, unless something proves that an entry did stand there: a later one, in this file or in the one begun after it,
that was written when the missing one had been synced. Then the journal is damaged; what can be read of it is used all
the same, and the partitions whose logs end before what it tells of are not taken for whole. A file that can't be read,
or a part of it, is damaged, too: in whatever can be read behind that place the search for entries goes on.

What a damaged journal has lost may have been of any partition. So no torn tail is taken for one then. But a log that
ends with a whole batch, of which nothing else tells that it went on, is taken for whole: not to take any log for whole
because of one file, which nobody needs if the power was not cut, would be to refuse the start.
"""

import errno
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from takhin.codec.batch import SEGMENT_HEADER_SIZE, encode_segment_header
from takhin.codec.crc32c import crc32c
from takhin.log.files import PASSING, Files
from takhin.log.journal import (
    BLOCK_BYTES,
    FILE_NAMES,
    HEADER_COPIES,
    KIND_BATCHES,
    KIND_OFFSETS,
    JournalEntry,
    JournalError,
    JournalHeader,
    JournalPart,
    JournalVersionError,
    claimed_table_bytes,
    read_entry,
    read_header,
    read_table,
)
from takhin.log.segment import segment_name
from takhin.log.transaction_offsets import TransactionOffsets, decode_offsets

logger = logging.getLogger(__name__)

# Beside journal files that a start could not do without: which partitions need them, a line each, and a checksum.
KEPT_FOR = "kept-for"

_MAGIC = b"TKJE"
_KEPT_FOR_LINE = re.compile(rb"([0-9]+)/([0-9]+)\n")
_SEARCH_BYTES = 1024 * 1024
_PAGE_BYTES = 4096
# A disk may try for seconds before it says that a place can't be read.
_MOST_FAILURES = 64
_COPY_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class SavedPart:
    """A part of an entry, and the open file that holds it. whole: its bytes are what was written."""

    fd: int
    part: JournalPart
    whole: bool


@dataclass(slots=True)
class SavedJournal:
    """What was found. parts: by (topic id, partition), in the order in which they were written.

    offsets: what transactions committed, in order; lost_offsets: numbers of those whose bytes are damaged.

    ends: offset up to which the journal tells of the partition, also by entries whose bytes are damaged; with damage,
    it may have told of more. damage: in words, None when there is none. kept_for: the partitions for whose sake an
    earlier start kept it; None: it is of the last run, and concerns all. Hold it open while parts are used.
    """

    files: Files
    directory: str
    parts: dict[tuple[int, int], list[SavedPart]] = field(default_factory=dict)
    ends: dict[tuple[int, int], int] = field(default_factory=dict)
    offsets: list[TransactionOffsets] = field(default_factory=list)
    lost_offsets: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    entries: int = 0
    damage: str | None = None
    kept_for: frozenset[tuple[int, int]] | None = None
    _fds: list[int] = field(default_factory=list)
    # The last entry of each file, which nothing behind it proves to be on the disk: path, place, size.
    _last: list[tuple[str, int, int]] = field(default_factory=list)

    def make_durable(self) -> None:
        """Have what was found on the disk, before anything is done for it.

        After a crash an entry may be in the cache alone. What it tells of would be made true in one partition, and a
        power cut would take the entry away before it is true in the next: that leaves a half of a transaction. It is
        written once more, as a sync that failed may have left it in the cache as if it were on the disk.

        Raises OSError for what passes. Of a disk that does not take it the broker's log tells: the start goes on.
        """
        # An earlier start, which kept it, has done so; a damaged disk is left in peace.
        if self.kept_for is not None:
            return
        for path, place, size_bytes in self._last:
            try:
                fd = self.files.open(path, os.O_RDWR)
                try:
                    self.files.write(fd, self.files.read(fd, size_bytes, place), place)
                    self.files.sync_data(fd)
                finally:
                    self.files.close(fd)
            except OSError as problem:
                if problem.errno in PASSING:
                    raise
                logger.error(
                    "%s can't be synced (%s): should the power be cut before this start is done, a half may be left of "
                    "the last transaction", path, problem.strerror,
                )

    def close(self) -> None:
        """Close the files."""
        while self._fds:
            self.files.close(self._fds.pop())

    def concerns(self, key: tuple[int, int]) -> bool:
        """Whether it may still tell anything of that partition, (topic id, partition)."""
        return self.kept_for is None or key in self.kept_for

    def keep(self, keys: set[tuple[int, int]]) -> None:
        """Leave the files where they are, for the sake of these partitions; all others are settled. Raises OSError."""
        self.close()
        keep_for(self.files, self.directory, keys)

    def remove(self) -> None:
        """Remove the files: all that they hold is on the disk elsewhere. Raises OSError."""
        self.close()
        self._remove_kept_for()
        for path in self.paths:
            self.files.unlink(path)
        if self.paths:
            self.files.sync_directory(self.directory)

    def set_aside(self) -> None:
        """Move the files out of the way, for a look at them: damaged, but not needed. Raises OSError."""
        self.close()
        for path in self.paths:
            number = 1
            while self.files.exists(aside := f"{path}.damaged-{number}"):
                number += 1
            self.files.rename(path, aside)
        self._remove_kept_for()
        self.files.sync_directory(self.directory)

    def _remove_kept_for(self) -> None:
        path = os.path.join(self.directory, KEPT_FOR)
        if self.files.exists(path):
            self.files.unlink(path)

    def _add(self, fd: int, entry: JournalEntry) -> None:
        self.entries += 1
        for part in entry.parts:
            if part.kind == KIND_OFFSETS:
                self._add_offsets(fd, entry, part)
                continue
            if part.kind != KIND_BATCHES:
                raise OSError(errno.ENOTSUP, f"a part is of the kind {part.kind}", self.directory)
            key = (part.topic_id, part.partition)
            self.parts.setdefault(key, []).append(SavedPart(fd, part, entry.whole))
            self.ends[key] = max(self.ends.get(key, 0), part.next_offset)

    def _add_offsets(self, fd: int, entry: JournalEntry, part: JournalPart) -> None:
        number = part.topic_id
        if entry.whole:
            try:
                self.offsets.append(decode_offsets(number, self.files.read(fd, part.size_bytes, part.place)))
                return
            except JournalError as problem:
                self._damaged(f"entry {entry.sequence}: {problem}")
            except OSError as problem:
                # It could be read a moment ago.
                if not _is_damage(problem):
                    raise
                self._damaged(f"entry {entry.sequence} can't be read: {problem.strerror}")
        self.lost_offsets.append(number)

    def _damaged(self, what: str | None) -> None:
        self.damage = self.damage or what


@dataclass(frozen=True, slots=True)
class _Run:
    """What one file holds, up to where nothing proves that there was more."""

    name: str
    fd: int
    first_sequence: int
    next_sequence: int
    entries: list[JournalEntry]
    last_place: int
    damage: str | None


def read_journal(files: Files, directory: str) -> SavedJournal:
    """What the journal's directory holds; nothing when there is none. What can't be read is damage.

    Raises OSError for what is none: no more file descriptors, no permission, a version that is not known.
    """
    found = SavedJournal(files, directory, kept_for=_read_kept_for(files, directory))
    try:
        _read_files(found)
    except BaseException:
        found.close()
        raise
    return found


def _read_files(found: SavedJournal) -> None:
    files = found.files
    runs: list[_Run] = []
    headless: list[str] = []
    for name in FILE_NAMES:
        path = os.path.join(found.directory, name)
        source = _Source(files, name)
        try:
            source.fd = files.open(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as problem:
            source.failed(problem)
            found.paths.append(path)
            found._damaged(source.unreadable)
            continue
        found._fds.append(source.fd)
        found.paths.append(path)
        header = source.header(path)
        if header is not None:
            runs.append(_read_run(source, header))
        else:
            headless.append(name)
        found._damaged(source.unreadable)
        # Nothing is written behind a header before it is on the disk.
        if header is None and files.size(source.fd) > BLOCK_BYTES:
            found._damaged(f"{name}: the header is damaged")
    runs.sort(key=lambda run: run.first_sequence)
    for run, following in pairwise(runs):
        if run.next_sequence < following.first_sequence:
            # The other file is begun only when all entries of this one have been synced.
            found._damaged(f"{run.name}: entry {run.next_sequence} is damaged")
    for run in runs:
        found._damaged(run.damage)
        for entry in run.entries:
            found._add(run.fd, entry)
        if run.entries:
            path = os.path.join(found.directory, run.name)
            found._last.append((path, run.last_place, run.entries[-1].size_bytes))
    if runs and headless and runs[0].first_sequence > 1:
        found._damaged(f"{headless[0]}: the header is damaged")


def keep_for(files: Files, directory: str, keys: set[tuple[int, int]]) -> None:
    """Note, durably, for the sake of which partitions the journal's files stay where they are. Raises OSError."""
    lines = "".join(f"{topic_id}/{partition}\n" for topic_id, partition in sorted(keys)).encode()
    files.replace_durably(os.path.join(directory, KEPT_FOR), lines + _sum_line(lines))


def _sum_line(lines: bytes) -> bytes:
    return b"crc32c %08x\n" % crc32c(lines)


def _read_kept_for(files: Files, directory: str) -> frozenset[tuple[int, int]] | None:
    """None when there is no such file, or it is not whole: a partition that is missed would be taken for whole."""
    try:
        fd = files.open(os.path.join(directory, KEPT_FOR), os.O_RDONLY)
        try:
            *lines, last = files.read(fd, files.size(fd), 0).splitlines(keepends=True) or [b""]
        finally:
            files.close(fd)
    except OSError as problem:
        if not _is_damage(problem):
            raise
        return None
    matches = [_KEPT_FOR_LINE.fullmatch(line) for line in lines]
    if last != _sum_line(b"".join(lines)) or not all(matches):
        return None
    return frozenset((int(match[1]), int(match[2])) for match in matches if match)


class _Source:
    """A journal file that is read, as far as it can be. unreadable: what can't be, in words; None when all can.

    A place that can't be read was written once, and is no torn write: a power cut leaves old bytes, new ones, or any,
    but such as can be read.
    """

    def __init__(self, files: Files, name: str):
        self.files = files
        self.name = name
        self.fd = -1
        self.unreadable: str | None = None
        self._failures = 0

    def failed(self, problem: OSError) -> None:
        """An operation on it failed. Raises the problem when that tells nothing of what is on the disk."""
        if not _is_damage(problem):
            raise problem
        self.unreadable = self.unreadable or f"{self.name} can't be read: {problem.strerror}"
        self._failures += 1

    def header(self, path: str) -> JournalHeader | None:
        """None when it is damaged."""
        for place in HEADER_COPIES:
            try:
                data = self.files.read(self.fd, BLOCK_BYTES - place, place)
            except OSError as problem:
                self.failed(problem)
                continue
            try:
                return read_header(data)
            except JournalVersionError as problem:
                # It may hold what nothing else does: whoever knows the version is to read it.
                raise OSError(errno.ENOTSUP, str(problem), path) from None
            except JournalError:
                continue
        return None

    def entry(self, place: int, salt: int) -> tuple[JournalEntry | None, bool]:
        """The entry that begins there, None when there is none; and whether there is something that can't be read."""
        try:
            return read_entry(self.files, self.fd, place, salt), False
        except JournalError:
            return None, False
        except OSError as problem:
            self.failed(problem)
        try:
            return read_table(self.files, self.fd, place, salt), True
        except JournalError:
            return None, True
        except OSError as problem:
            self.failed(problem)
            return None, True

    def claims(self, place: int, sequence: int) -> int:
        """claimed_table_bytes()."""
        try:
            return claimed_table_bytes(self.files, self.fd, place, sequence)
        except OSError as problem:
            self.failed(problem)
            return -1

    def magics(self, start: int) -> Iterator[int]:
        """The places from start on where an entry may begin. Where much can't be read, the rest is not looked at."""
        place = -(-start // BLOCK_BYTES) * BLOCK_BYTES
        pages = False
        while self._failures < _MOST_FAILURES:
            size_bytes = _PAGE_BYTES - place % _PAGE_BYTES if pages else _SEARCH_BYTES
            try:
                data = self.files.read(self.fd, size_bytes, place)
            except OSError as problem:
                self.failed(problem)
                # Page by page from here on: what can't be read is passed over.
                place += size_bytes if pages else 0
                pages = True
                continue
            if not data:
                return
            for at in range(0, len(data), BLOCK_BYTES):
                if data[at : at + len(_MAGIC)] == _MAGIC:
                    yield place + at
            place += len(data)


def _is_damage(problem: OSError) -> bool:
    """Not what passes, nor what whoever may read the file has no trouble with."""
    return problem.errno not in PASSING and not isinstance(problem, PermissionError)


def _read_run(source: _Source, header: JournalHeader) -> _Run:
    entries: list[JournalEntry] = []
    sequence = header.first_sequence
    damage: str | None = None
    place = last_place = BLOCK_BYTES
    while True:
        entry, is_unreadable = source.entry(place, header.salt)
        if entry is not None and entry.sequence != sequence:
            entry = None
        if entry is not None and (entry.whole or is_unreadable):
            entries.append(entry)
            sequence += 1
            last_place = place
            place += entry.size_bytes
            continue
        # It ends here, unless an entry that follows was written when this one had been synced.
        following = _proof(source, place, header.salt, sequence)
        if following is None:
            return _Run(source.name, source.fd, header.first_sequence, sequence, entries, last_place, damage)
        damage = damage or f"{source.name}: entry {sequence} is damaged"
        if entry is not None:
            # Its table, which is whole, tells where the next one begins.
            entries.append(entry)
            sequence += 1
            last_place = place
            place += entry.size_bytes
        else:
            place, sequence = following


def _proof(source: _Source, place: int, salt: int, sequence: int) -> tuple[int, int] | None:
    """(place, sequence) of the first entry behind `place`, if that or one behind it proves that `sequence` was synced.

    The proof has to be whole, of the first one only the table.
    What is not found within a few readings of the file is not found: records may be made to look like entries that
    claim to be large, without end.
    """
    budget_bytes = 4 * source.files.size(source.fd)
    first: tuple[int, int] | None = None
    for each in source.magics(place + 1):
        claimed_bytes = source.claims(each, sequence)
        if claimed_bytes < 0:
            continue
        budget_bytes -= claimed_bytes
        if budget_bytes < 0:
            return None
        entry, is_unreadable = source.entry(each, salt)
        if entry is None or entry.sequence <= sequence:
            continue
        first = first or (each, entry.sequence)
        if entry.whole or is_unreadable:
            return first
    return None


# Into the segments


def restore_parts(files: Files, directory: str, parts: list[SavedPart], log_start_offset: int) -> str | None:
    """Write the parts of one partition to its segments in `directory`, and sync them and the names that lead to them.

    Segments that lie before the log's start are not made anew. None, or what keeps the parts from following on what is
    there, in words; then the rest of them is not written. Raises OSError.
    """
    damage: str | None = None
    open_path, fd = "", -1
    touched: list[str] = []
    # The others lie wholly before the log's start: where their files are gone, they stay so.
    needed = {saved.part.segment_base_offset for saved in parts if saved.part.next_offset > log_start_offset}
    try:
        for saved in parts:
            part = saved.part
            path = os.path.join(directory, segment_name(part.segment_base_offset))
            is_there = path == open_path or files.exists(path)
            if not saved.whole or not (is_there or part.segment_base_offset in needed):
                continue
            begins = part.position == SEGMENT_HEADER_SIZE
            if not begins and (not is_there or files.size(path) < part.position):
                damage = f"{os.path.basename(path)} ends before byte {part.position}, where the journal goes on"
                break
            if path != open_path:
                if not touched:
                    make_directories(files, directory)
                if fd >= 0:
                    files.sync_data(fd)
                    files.close(fd)
                    fd = -1
                fd = files.open(path, os.O_RDWR | os.O_CREAT)
                open_path = path
                touched.append(path)
            if begins:
                files.write(fd, encode_segment_header(
                    part.topic_id, part.partition, part.segment_base_offset, part.segment_created_ms
                ), 0)
            _copy(files, saved, fd)
        if fd >= 0:
            files.sync_data(fd)
    finally:
        if fd >= 0:
            files.close(fd)
    if touched:
        sync_directories(files, directory)
    return damage


def _copy(files: Files, saved: SavedPart, to: int) -> None:
    part = saved.part
    for start in range(0, part.size_bytes, _COPY_BYTES):
        data = files.read(saved.fd, min(_COPY_BYTES, part.size_bytes - start), part.place + start)
        files.write(to, data, part.position + start)


def make_directories(files: Files, directory: str) -> None:
    """Make a partition's directory, and its topic's, where they are missing. Raises OSError."""
    files.make_directory(os.path.dirname(directory))
    files.make_directory(directory)


def sync_directories(files: Files, directory: str) -> None:
    """Sync all the names that lead from the topics' directory to the partition's files. Raises OSError."""
    topic_directory = os.path.dirname(directory)
    for each in (directory, topic_directory, os.path.dirname(topic_directory)):
        files.sync_directory(each)
