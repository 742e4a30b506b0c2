"""What a partition's directory holds, found when the broker starts.

An index file is written only when all of its segment is on the disk: where it is whole and agrees with the segment's
size, it vouches for the segment, and nothing is scanned. After a clean stop that is every segment; after a crash it is
all but those that were appended to since, and these are scanned batch by batch. A torn tail is set aside, in a file
beside the segment, and cut.
"""

import logging
import os
import re
from dataclasses import dataclass

from takhin.log.segment import FileCache, Segment

logger = logging.getLogger(__name__)

_NAME = re.compile(r"(\d{20})\.log")
_COPY_BYTES = 1024 * 1024


@dataclass(slots=True)
class RecoveredPartition:
    """The segments of a partition in order, all of them on the disk, and what it took to say so."""

    segments: list[Segment]
    max_epoch: int = 0
    scanned_bytes: int = 0
    cut_bytes: int = 0
    # Where damage was found that is not a torn tail: the partition is served up to it and takes no appends.
    damage: str | None = None


def recover_partition(
    cache: FileCache, directory: str, topic_id: int, partition: int, log_start_offset: int
) -> RecoveredPartition:
    """Recover one partition. Blocks on the disk. Raises OSError."""
    found = RecoveredPartition([])
    scanned: list[Segment] = []
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return found
    bases = sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))
    for position, base_offset in enumerate(bases):
        is_last = position == len(bases) - 1
        segment = Segment.trusted(cache, directory, topic_id, partition, base_offset)
        if segment is None:
            segment, damage = Segment.scanned(cache, directory, topic_id, partition, base_offset)
            found.scanned_bytes += segment.size_bytes
            scanned.append(segment)
            if damage is not None and not is_last:
                found.damage = f"{segment.path} at byte {segment.size_bytes}: {damage}"
            elif damage is not None:
                found.cut_bytes += _cut_tail(cache, segment, damage)
            if segment.size_bytes == 0 and is_last and found.damage is None:
                # Not even the header had reached the disk: the segment was never used.
                segment.unlink()
                scanned.pop()
                break
        expected = found.segments[-1].next_offset if found.segments else segment.base_offset
        if segment.base_offset != expected and found.damage is None and segment.base_offset > log_start_offset:
            found.damage = f"{segment.path} begins at offset {segment.base_offset}, {expected} was to be next"
            break
        found.segments.append(segment)
        found.max_epoch = max(found.max_epoch, segment.max_epoch)
        if found.damage is not None:
            break
    if scanned:
        _make_durable(cache, directory, scanned if found.damage is None else [])
    return found


def _cut_tail(cache: FileCache, segment: Segment, damage: str) -> int:
    """Copy what stands behind the last whole batch to a file beside the segment, then cut it off. Returns its size."""
    files = cache.files
    size_bytes = os.stat(segment.path).st_size
    aside = f"{segment.path}.torn-at-{segment.size_bytes}"
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
    logger.warning(
        "%s: %s at byte %d; %d bytes were never acknowledged as durable and are set aside in %s",
        segment.path, damage, segment.size_bytes, size_bytes - segment.size_bytes, os.path.basename(aside),
    )
    segment.cut(segment.size_bytes)
    return size_bytes - segment.size_bytes


def _make_durable(cache: FileCache, directory: str, segments: list[Segment]) -> None:
    """Sync what a scan takes as the log: what a killed process had written may be in the cache only."""
    for segment in segments:
        segment.sync()
    cache.files.sync_directory(directory)
    for segment in segments:
        segment.write_index()
