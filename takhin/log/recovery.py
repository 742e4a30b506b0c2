"""What a partition's directory holds, found when the broker starts.

First, what the journal holds of the partition is written to its segments (replay.py). An index file is written only
when as much of its segment as it tells of is on the disk: for so much it vouches, and what lies behind that is scanned
batch by batch. After a clean stop that is nothing; after a crash it is what was appended since the last checkpoint.

Where a scan ends before its file does, the damage is either a torn tail (the power, or the broker, failed while this
was written) or corruption (it was on the disk once). It is corruption when something proves that the damaged offset was
durable: the mark of a clean stop, an index file, the journal, or a later whole batch whose header names a durable
offset beyond it. A torn tail is set aside, in files beside the segment, and cut. Corruption is left as it is: the
partition is served up to it and takes no appends.

What lies above the last offset that is proven durable is written once more before it is synced: after a sync that
failed, the kernel may take pages for clean that never reached the disk. With a damaged journal only an index file
proves that: all else may tell of what was on the disk in the journal alone, in the part of it that is gone.

What is known of idempotent producers is read from their snapshot, which vouches for the log as index files do, and from
the batches behind it; from all batches where there is none, and then damage may be found where an index file vouches
for the opposite. So nothing is set aside or written before all of this was read.
"""

import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from takhin.log.files import PASSING, Files
from takhin.log.producers import SNAPSHOT_NAME, ProducerBudget, ProducerStates
from takhin.log.replay import SavedJournal, restore_parts, sync_directories
from takhin.log.segment import FileCache, Segment, segment_name

logger = logging.getLogger(__name__)

SEGMENT_FILE = re.compile(r"(\d{20})\.log")
INDEX_FILE = re.compile(r"(\d{20})\.index")
_COPY_BYTES = 1024 * 1024
# They are sfixed64 in headers.
MAX_OFFSET = (1 << 63) - 1


@dataclass(slots=True)
class RecoveredPartition:
    """The segments of a partition in order, all of them on the disk, and what it took to say so."""

    segments: list[Segment] = field(default_factory=list)
    max_epoch: int = 0
    scanned_bytes: int = 0
    rewritten_bytes: int = 0
    cut_bytes: int = 0
    # All below it is known to be on the disk.
    proven_offset: int = 0
    # Damage that is not a torn tail, in words: the partition is served up to it and takes no appends.
    damage: str | None = None
    # None: nothing is known of any.
    producers: ProducerStates | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a partition has its files, and whose they are."""

    cache: FileCache
    directory: str
    topic_id: int
    partition: int


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a log before its segments are read.

    proven_offset: what lies below was on the disk once. knows_end: so was whatever is missing. restored: what the
    journal had of it is on the disk in the segments.
    """

    proven_offset: int
    knows_end: bool
    restored: bool


def recover_partition(
    cache: FileCache, directory: str, topic_id: int, partition: int, log_start_offset: int, *, was_clean: bool,
    journal: SavedJournal | None = None, producers: ProducerBudget | None = None,
) -> RecoveredPartition:
    """Recover one partition. Blocks on the disk. What can't be read counts as damage.

    journal: what the journal holds; its parts of this partition are written to the segments first. producers: what
    known producers count against; None: they are not looked for. Raises OSError for what passes, and is no fault of the
    partition's: a full disk, no more file descriptors.
    """
    found = RecoveredPartition()
    place = Place(cache, directory, topic_id, partition)
    key = (topic_id, partition)
    parts = journal.parts.get(key, []) if journal is not None else []
    proven_offset = journal.ends.get(key, 0) if journal is not None else 0
    # Of a damaged journal nobody knows how far it went: then no tail is taken for torn.
    knows_end = was_clean or (journal is not None and journal.damage is not None)
    try:
        damage = restore_parts(cache.files, directory, parts, log_start_offset)
        try:
            names = cache.files.list_directory(directory)
        except FileNotFoundError:
            names = []
        bases = base_offsets(SEGMENT_FILE, names)
        # An index file alone vouches for a segment that is gone.
        for base_offset in set(base_offsets(INDEX_FILE, names)) - set(bases):
            summary = _segment(place, base_offset).read_summary()
            proven_offset = max(proven_offset, summary.next_offset if summary is not None else 0)
        if producers is not None and SNAPSHOT_NAME in names:
            found.producers = _read_snapshot(place, producers)
            proven_offset = max(proven_offset, found.producers.snapshot_offset if found.producers is not None else 0)
        restored = damage is None and (journal is None or journal.damage is None)
        known = _Known(proven_offset, knows_end, restored)
        todo = _judge(place, bases, log_start_offset, known, found)
        if producers is not None:
            _recover_producers(place, producers, log_start_offset, found)
        # All that could tell of damage has been read: of a damaged partition no file is changed.
        if found.damage is None:
            _settle(place, todo, known, found)
    except OSError as problem:
        if problem.errno in PASSING:
            raise
        found.damage = f"{problem.filename or directory}: {problem.strerror}"
        return found
    found.damage = damage or found.damage
    return found


def base_offsets(pattern: re.Pattern[str], names: list[str]) -> list[int]:
    """Of the names that are a segment's or an index's: not all numbers of 20 digits are offsets."""
    numbers = [int(match[1]) for name in names if (match := pattern.fullmatch(name))]
    return [number for number in numbers if number <= MAX_OFFSET]


@dataclass(slots=True)
class _ToDo:
    """What is to be done about a log once it is known to be undamaged."""

    scanned: list[Segment] = field(default_factory=list)
    # Sets a torn end aside; gives how many bytes that are, perhaps none.
    set_aside: Callable[[], int] | None = None


def _judge(
    place: Place, bases: list[int], log_start_offset: int, known: _Known, found: RecoveredPartition
) -> _ToDo:
    """Read the segments into found, up to the end of what is whole. Raises OSError."""
    todo = _ToDo()
    # What retention had taken out of the log when the broker died is still to be removed.
    while len(bases) > 1 and bases[1] <= log_start_offset:
        segment = _segment(place, bases.pop(0))
        try:
            segment.unlink()
        except OSError as problem:
            # It is out of the log all the same; the next start tries again.
            logger.error("%s can't be removed: %s", segment.path, problem.strerror)
    for position, base_offset in enumerate(bases):
        if found.damage is not None:
            break
        # The first segment may hold the log's start, or begin there, but not behind it.
        expected = found.segments[-1].next_offset if found.segments else min(base_offset, log_start_offset)
        later = bases[position + 1 :]
        if base_offset != expected:
            where = f"{segment_name(base_offset)} follows where offset {expected} should"
            later = bases[position:]
            overlaps = base_offset < expected
            missing = max(expected, log_start_offset)
            # Whether the log once went further is looked at below.
            if known.knows_end or overlaps or any_proves(place, later, missing):
                found.damage = where
            else:
                # The end of the one before it had not reached the disk, though it ends with a whole batch; or its name.
                todo.set_aside = partial(_set_later_aside, place, later, where)
            break
        segment = Segment.trusted(place.cache, place.directory, place.topic_id, place.partition, base_offset)
        torn = False
        if segment is not None:
            found.proven_offset = segment.next_offset
        else:
            segment, damage = Segment.scanned(
                place.cache, place.directory, place.topic_id, place.partition, base_offset
            )
            found.scanned_bytes += segment.size_bytes - segment.checkpoint_bytes
            if damage is not None:
                where = f"{segment_name(base_offset)} at byte {segment.size_bytes}: {damage}"
                # What lies below the log's start is gone anyway.
                missing = max(segment.next_offset, log_start_offset)
                torn = not (
                    known.knows_end or missing < known.proven_offset or was_durable(segment, missing)
                    or any_proves(place, later, missing)
                )
                if torn:
                    todo.set_aside = partial(_set_aside, place, segment, later, where)
                else:
                    found.damage = where
            found.proven_offset = max(found.proven_offset, segment.proven_offset)
            if segment.size_bytes:
                todo.scanned.append(segment)
        if segment.size_bytes:
            found.segments.append(segment)
            found.max_epoch = max(found.max_epoch, segment.max_epoch)
        if torn:
            break
    end = max(found.segments[-1].next_offset if found.segments else 0, log_start_offset)
    if found.damage is None and end < known.proven_offset:
        found.damage = f"{place.directory}: the log ends at offset {end}, and once went on to {known.proven_offset}"
    return todo


def _settle(place: Place, todo: _ToDo, known: _Known, found: RecoveredPartition) -> None:
    """Set aside what is torn, and have all that is left on the disk. Raises OSError."""
    if todo.set_aside is not None:
        found.cut_bytes = todo.set_aside()
    if todo.scanned or todo.set_aside is not None:
        _make_durable(place, todo.scanned, known, found)
    if found.segments:
        found.proven_offset = found.segments[-1].next_offset


def _read_snapshot(place: Place, producers: ProducerBudget) -> ProducerStates | None:
    files = place.cache.files
    path = os.path.join(place.directory, SNAPSHOT_NAME)
    fd = files.open(path, os.O_RDONLY)
    try:
        known = ProducerStates.decode(files.read(fd, files.size(fd), 0), place.topic_id, place.partition, producers)
    finally:
        files.close(fd)
    if known is None:
        logger.warning("%s is not whole: the headers of all batches are read in its place", path)
    return known


def _recover_producers(
    place: Place, producers: ProducerBudget, log_start_offset: int, found: RecoveredPartition
) -> None:
    """From the snapshot on. A batch that turns out to be damaged was on the disk once: its index file said so."""
    end = max(found.segments[-1].next_offset if found.segments else 0, log_start_offset)
    if found.producers is not None and found.producers.snapshot_offset > end:
        found.producers.close()
        found.producers = None
    if found.producers is None:
        if not producers.in_use or not found.segments:
            return
        found.producers = ProducerStates(producers, place.topic_id, place.partition)
    from_offset = max(found.producers.snapshot_offset, 0)
    for segment in found.segments:
        if segment.next_offset > from_offset:
            damage = segment.replay_producers(found.producers, from_offset)
            if damage is not None:
                found.damage = found.damage or damage
                break


def _make_durable(place: Place, scanned: list[Segment], known: _Known, found: RecoveredPartition) -> None:
    """What a killed process had written may be in the cache only; after a failed sync, in pages that count as clean."""
    proven_offset = max(known.proven_offset, found.proven_offset)
    for segment in scanned:
        # What the journal or a batch's header tells may have been durable in the journal alone.
        found.rewritten_bytes += segment.rewrite(proven_offset if known.restored else segment.checkpoint_offset)
        segment.sync()
    sync_directories(place.cache.files, place.directory)
    for segment in scanned:
        try:
            segment.write_index()
        except OSError as problem:
            # The index stays in memory.
            logger.warning("%s can't be written: %s", segment.index_path, problem.strerror)


def _segment(place: Place, base_offset: int) -> Segment:
    return Segment(place.cache, place.directory, place.topic_id, place.partition, base_offset)


def was_durable(damaged: Segment, offset: int) -> bool:
    """Whether anything in it proves that the offset, at which the log is damaged, was once on the disk."""
    summary = damaged.read_summary()
    if summary is not None and summary.size_bytes > damaged.size_bytes and summary.next_offset > offset:
        return True
    return damaged.proves(damaged.size_bytes, offset)


def any_proves(place: Place, later: list[int], offset: int) -> bool:
    """Whether one of the segments that begin at these offsets proves that the offset was once on the disk."""
    segments = (_segment(place, base) for base in later)
    return any(segment.read_summary() is not None or segment.proves(0, offset) for segment in segments)


def _set_aside(place: Place, torn: Segment, later: list[int], where: str) -> int:
    """Move what stands behind the last whole batch into files beside the segment. Returns how many bytes.

    The order makes it safe to be killed at any point: what is found half-done is done again.
    """
    moved = _set_segments_aside(place, later)
    files = place.cache.files
    size_bytes = files.size(torn.path)
    if torn.size_bytes == 0:
        # Not even the header is whole: the segment goes as it is.
        files.rename(torn.path, _free_name(place, f"{torn.path}.torn-at-0"))
    else:
        _copy_tail(place, torn, size_bytes)
        files.sync_directory(place.directory)
        torn.cut(torn.size_bytes)
    moved += size_bytes - torn.size_bytes
    _warn(place, where, moved)
    return moved


def _set_later_aside(place: Place, later: list[int], where: str) -> int:
    """The same where a segment ends whole, and those behind it do not follow."""
    moved = _set_segments_aside(place, later)
    _warn(place, where, moved)
    return moved


def _set_segments_aside(place: Place, bases: list[int]) -> int:
    """The last one first: whatever is left when this is cut short is still a run of segments. Returns their bytes."""
    moved = 0
    for base in reversed(bases):
        segment = _segment(place, base)
        moved += place.cache.files.size(segment.path)
        place.cache.files.rename(segment.path, _free_name(place, f"{segment.path}.torn-at-0"))
    return moved


def _free_name(place: Place, path: str) -> str:
    """A name beside what was set aside before: nothing is ever written over."""
    number = 1
    free = path
    while place.cache.files.exists(free):
        number += 1
        free = f"{path}.{number}"
    return free


def _warn(place: Place, where: str, moved: int) -> None:
    logger.warning(
        "%s: %s: a torn tail; %d bytes that were never acknowledged as durable are set aside as *.torn-at-*",
        place.directory, where, moved,
    )


def _copy_tail(place: Place, segment: Segment, size_bytes: int) -> None:
    """Copy what stands behind the segment's last whole batch into a file of its own, and sync that."""
    files = place.cache.files
    path = f"{segment.path}.torn-at-{segment.size_bytes}"
    source = segment.fileno()
    try:
        if not _begins_like(files, path, source, segment.size_bytes):
            path = _free_name(place, path)
        target = files.open(path, os.O_RDWR | os.O_CREAT)
        try:
            for start in range(segment.size_bytes, size_bytes, _COPY_BYTES):
                chunk = files.read(source, min(_COPY_BYTES, size_bytes - start), start)
                files.write(target, chunk, start - segment.size_bytes)
            files.sync_data(target)
        finally:
            files.close(target)
    finally:
        segment.done()


def _begins_like(files: Files, path: str, source: int, position: int) -> bool:
    """Whether the file is a copy, perhaps not finished, of what stands in source from position on."""
    if not files.exists(path):
        return True
    fd = files.open(path, os.O_RDONLY)
    try:
        for start in range(0, files.size(fd), _COPY_BYTES):
            copied = files.read(fd, _COPY_BYTES, start)
            if files.read(source, len(copied), position + start) != copied:
                return False
        return True
    finally:
        files.close(fd)
