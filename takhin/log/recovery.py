"""What a partition's directory holds, found when the broker starts.

An index file is written only when all of its segment is on the disk: where it is whole and agrees with the segment's
size, it vouches for the segment, and nothing is scanned. After a clean stop that is every segment; after a crash it is
all but those that were appended to since, and these are scanned batch by batch.

Where a scan ends before its file does, the damage is either a torn tail (the power, or the broker, failed while this
was written) or corruption (it was on the disk once). It is corruption when something proves that the damaged offset was
durable: the mark of a clean stop, an index file, or a later whole batch whose header names a durable offset beyond it.
A torn tail is set aside, in files beside the segment, and cut. Corruption is left as it is: the partition is served up
to it and takes no appends.
"""

import logging
import os
import re
from dataclasses import dataclass, field

from takhin.log.segment import FileCache, Segment, segment_name

logger = logging.getLogger(__name__)

_NAME = re.compile(r"(\d{20})\.log")
_COPY_BYTES = 1024 * 1024


@dataclass(slots=True)
class RecoveredPartition:
    """The segments of a partition in order, all of them on the disk, and what it took to say so."""

    segments: list[Segment] = field(default_factory=list)
    max_epoch: int = 0
    scanned_bytes: int = 0
    cut_bytes: int = 0
    # Damage that is not a torn tail, in words: the partition is served up to it and takes no appends.
    damage: str | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """Whose files are where."""

    cache: FileCache
    directory: str
    topic_id: int
    partition: int


def recover_partition(
    cache: FileCache, directory: str, topic_id: int, partition: int, log_start_offset: int, *, was_clean: bool
) -> RecoveredPartition:
    """Recover one partition. Blocks on the disk. What can't be read counts as damage."""
    found = RecoveredPartition()
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return found
    except OSError as problem:
        found.damage = f"{directory}: {problem.strerror}"
        return found
    bases = sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))
    try:
        _recover(_Place(cache, directory, topic_id, partition), bases, log_start_offset, was_clean, found)
    except OSError as problem:
        found.damage = f"{problem.filename or directory}: {problem.strerror}"
    return found


def _recover(
    place: _Place, bases: list[int], log_start_offset: int, was_clean: bool, found: RecoveredPartition
) -> None:
    # What retention had taken out of the log when the broker died is still to be removed.
    while len(bases) > 1 and bases[1] <= log_start_offset:
        _segment(place, bases.pop(0)).unlink()
    if bases and bases[0] > log_start_offset:
        found.damage = f"{place.directory}: the segment with offset {log_start_offset} is gone"
    scanned: list[Segment] = []
    for position, base_offset in enumerate(bases):
        if found.damage is not None:
            break
        expected = found.segments[-1].next_offset if found.segments else base_offset
        if base_offset != expected:
            where = f"{segment_name(base_offset)} follows where offset {expected} should"
            later = [_segment(place, base) for base in bases[position:]]
            if was_clean or base_offset < expected or _any_proves(later, expected):
                found.damage = where
            else:
                # The end of the one before it had not reached the disk, though it ends with a whole batch.
                found.cut_bytes += _set_segments_aside(place, later)
                _warn(place, where, found.cut_bytes)
            break
        segment = Segment.trusted(place.cache, place.directory, place.topic_id, place.partition, base_offset)
        torn = False
        if segment is None:
            segment, damage = Segment.scanned(
                place.cache, place.directory, place.topic_id, place.partition, base_offset
            )
            found.scanned_bytes += segment.size_bytes
            if damage is not None:
                where = f"{segment_name(base_offset)} at byte {segment.size_bytes}: {damage}"
                later = [_segment(place, base) for base in bases[position + 1 :]]
                torn = not was_clean and not _was_durable(segment, later)
                if torn:
                    found.cut_bytes += _set_aside(place, segment, later, where)
                else:
                    found.damage = where
            if segment.size_bytes:
                scanned.append(segment)
        if segment.size_bytes:
            found.segments.append(segment)
            found.max_epoch = max(found.max_epoch, segment.max_epoch)
        if torn:
            break
    if scanned and found.damage is None:
        # What a killed process had written may be in the cache only.
        for segment in scanned:
            segment.sync()
        place.cache.files.sync_directory(place.directory)
        for segment in scanned:
            segment.write_index()


def _segment(place: _Place, base_offset: int) -> Segment:
    return Segment(place.cache, place.directory, place.topic_id, place.partition, base_offset)


def _was_durable(damaged: Segment, later: list[Segment]) -> bool:
    """Whether anything proves that the offset at which the segment is damaged was once on the disk."""
    summary = damaged.read_summary()
    if summary is not None and summary.size_bytes > damaged.size_bytes:
        return True
    if damaged.proves(damaged.size_bytes, damaged.next_offset):
        return True
    return _any_proves(later, damaged.next_offset)


def _any_proves(later: list[Segment], offset: int) -> bool:
    return any(segment.read_summary() is not None or segment.proves(0, offset) for segment in later)


def _set_aside(place: _Place, torn: Segment, later: list[Segment], where: str) -> int:
    """Move what stands behind the last whole batch into files beside the segment. Returns how many bytes.

    The order makes it safe to be killed at any point: what is found half-done is done again.
    """
    moved = _set_segments_aside(place, later)
    size_bytes = os.stat(torn.path).st_size
    aside = f"{torn.path}.torn-at-{torn.size_bytes}"
    if torn.size_bytes == 0:
        # Not even the header is whole: the segment goes as it is.
        place.cache.files.rename(torn.path, aside)
    else:
        _copy_tail(place, torn, size_bytes, aside)
        torn.cut(torn.size_bytes)
    moved += size_bytes - torn.size_bytes
    _warn(place, where, moved)
    return moved


def _set_segments_aside(place: _Place, segments: list[Segment]) -> int:
    """The last one first: whatever is left when this is cut short is still a run of segments. Returns their bytes."""
    moved = 0
    for segment in reversed(segments):
        moved += os.stat(segment.path).st_size
        place.cache.files.rename(segment.path, f"{segment.path}.torn-at-0")
    return moved


def _warn(place: _Place, where: str, moved: int) -> None:
    logger.warning(
        "%s: %s: a torn tail; %d bytes that were never acknowledged as durable are set aside as *.torn-at-*",
        place.directory, where, moved,
    )


def _copy_tail(place: _Place, segment: Segment, size_bytes: int, aside: str) -> None:
    files = place.cache.files
    source = segment.fileno()
    try:
        target = files.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            for start in range(segment.size_bytes, size_bytes, _COPY_BYTES):
                chunk = files.read(source, min(_COPY_BYTES, size_bytes - start), start)
                files.write(target, chunk, start - segment.size_bytes)
            files.sync_data(target)
        finally:
            files.close(target)
    finally:
        segment.done()
