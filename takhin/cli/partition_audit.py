"""One partition audited: its segments in their order, and what the next start will make of what is wrong with them."""

import os
import re
from dataclasses import dataclass, field

from takhin.cli.segment_audit import DAMAGE, NOTE, TORN, SegmentAudit, Tell, audit_segment
from takhin.cli.show import count_of
from takhin.log.files import Files
from takhin.log.index_file import read_index_file
from takhin.log.recovery import _any_proves, _was_durable
from takhin.log.segment import FileCache, Segment, segment_name

_SEGMENT = re.compile(r"(\d{20})\.log")
_INDEX = re.compile(r"(\d{20})\.index")
_SET_ASIDE = re.compile(r"\d{20}\.log\.torn-at-\d+")
_OPEN_FILES = 64


@dataclass(frozen=True, slots=True)
class Verdict:
    """What holds of a partition that is not whole.

    is_torn: the next start cuts it; else it is damaged, and served up to the damage. keep: so many segments, the last
    of them up to keep_bytes, are whole. next_offset: where the log ends then. gone_before: instead of that, the log's
    beginning is gone up to this offset. unreadable: the disk does not give it, so nobody knows.
    """

    is_torn: bool
    keep: int
    keep_bytes: int
    next_offset: int
    what: str
    gone_before: int | None = None
    unreadable: bool = False


@dataclass(slots=True)
class PartitionAudit:
    """What was found. directory: of its files. log_start: 0 when the metadata does not tell. removable: segments before
    the log's start, which the next start removes; segments: those behind them, in order. stray_indexes: the paths of
    whole index files that have no segment, and the offset up to which each vouches."""

    topic: str
    topic_id: int
    partition: int
    directory: str
    log_start: int
    removable: list[SegmentAudit] = field(default_factory=list)
    segments: list[SegmentAudit] = field(default_factory=list)
    stray_indexes: dict[str, int] = field(default_factory=dict)
    verdict: Verdict | None = None

    @property
    def is_damaged(self) -> bool:
        return self.verdict is not None and not self.verdict.is_torn

    @property
    def wrong_indexes(self) -> list[SegmentAudit]:
        """Segments whose index files have to be made again: a reader would be misled."""
        return [segment for segment in self.segments if segment.index_wrong]

    @property
    def max_epoch(self) -> int:
        return max((segment.max_epoch for segment in self.segments), default=0)

    @property
    def name(self) -> str:
        return f"{self.topic}/{self.partition}"

    def lost(self) -> tuple[int, int]:
        """(from, to) of the offsets that the damage takes: all from the first on that is known to have been there."""
        assert self.verdict is not None
        if self.verdict.gone_before is not None:
            return self.log_start, self.verdict.gone_before
        ends = [segment.highest_offset for segment in self.segments] + list(self.stray_indexes.values())
        ends += [segment.index_vouches_offset for segment in self.segments]
        highest = max(ends + [self.verdict.next_offset])
        return self.verdict.next_offset, highest

    def readable_behind(self) -> tuple[int, int]:
        """(batches, records) that lie whole behind the damage."""
        assert self.verdict is not None
        if self.verdict.gone_before is not None:
            return 0, 0
        batches = records = 0
        for number, segment in enumerate(self.segments[max(self.verdict.keep - 1, 0):], max(self.verdict.keep, 1)):
            batches += segment.readable_batches
            records += segment.readable_records
            if number > self.verdict.keep:
                batches += segment.batches
                records += segment.records
        return batches, records


def audit_partition(audit: PartitionAudit, tell: Tell, *, was_clean: bool) -> None:
    """Read all of its files. was_clean: the last run left everything on the disk. Raises OSError."""
    names = sorted(os.listdir(audit.directory))
    bases = [int(match[1]) for name in names if (match := _SEGMENT.fullmatch(name))]
    _other_files(audit, names, bases, tell)
    for base_offset in bases:
        path = os.path.join(audit.directory, segment_name(base_offset))
        try:
            segment = audit_segment(path, audit.topic_id, audit.partition, base_offset, tell)
        except PermissionError:
            raise
        except OSError as problem:
            # Recovery takes what it can't read for damage.
            segment = SegmentAudit(base_offset, path, next_offset=base_offset, highest_offset=base_offset)
            segment.damage = problem.strerror or str(problem)
        audit.segments.append(segment)
    while len(audit.segments) > 1 and audit.segments[1].base_offset <= audit.log_start:
        audit.removable.append(audit.segments.pop(0))
        tell(NOTE, audit.removable[-1].path, None, "lies before the log's start; the next start removes it")
    audit.verdict = _judged(audit, was_clean)
    _tell_verdict(audit, tell)
    if audit.verdict is not None:
        for segment in audit.segments[audit.verdict.keep:]:
            if segment.damage is not None and not audit.verdict.what.startswith(os.path.basename(segment.path)):
                tell(NOTE, segment.path, segment.whole_bytes, f"behind it: {segment.damage}")


def _judged(audit: PartitionAudit, was_clean: bool) -> Verdict | None:
    try:
        return judge(audit, was_clean)
    except OSError as problem:
        # Recovery gives the partition up where it can't read.
        what = f"{problem.filename or audit.directory}: {problem.strerror}"
        return Verdict(False, 0, 0, audit.log_start, what, unreadable=True)


def judge(audit: PartitionAudit, was_clean: bool) -> Verdict | None:
    """What recovery will take the partition for: None when it is whole. Raises OSError.

    The one place that tells a torn tail from damage; a test holds it against recovery itself.
    """
    segments = audit.segments
    cache = FileCache(Files(), _OPEN_FILES)

    def later(number: int) -> list[Segment]:
        return [
            Segment(cache, audit.directory, audit.topic_id, audit.partition, segment.base_offset)
            for segment in segments[number:]
        ]

    if segments and segments[0].base_offset > audit.log_start:
        gone_before = segments[0].base_offset
        what = f"the segment with offset {audit.log_start} is gone"
        return Verdict(False, 0, 0, audit.log_start, what, gone_before)
    expected = segments[0].base_offset if segments else audit.log_start
    for number, segment in enumerate(segments):
        if segment.base_offset != expected:
            torn = not was_clean and segment.base_offset > expected and not _any_proves(later(number), expected)
            what = f"{segment_name(segment.base_offset)} follows where offset {expected} should"
            return Verdict(torn, number, segments[number - 1].whole_bytes, expected, what)
        if segment.damage is not None:
            scanned, _ = Segment.scanned(
                cache, audit.directory, audit.topic_id, audit.partition, segment.base_offset
            )
            torn = not was_clean and not _was_durable(scanned, later(number + 1))
            what = f"{segment_name(segment.base_offset)} at byte {segment.whole_bytes}: {segment.damage}"
            if segment.whole_bytes:
                return Verdict(torn, number + 1, segment.whole_bytes, segment.next_offset, what)
            return Verdict(torn, number, segments[number - 1].whole_bytes if number else 0, expected, what)
        if segment.index_vouches_bytes is not None and segment.index_vouches_bytes > segment.size_bytes:
            what = (
                f"{segment_name(segment.base_offset)} ends at byte {segment.size_bytes}, and its index vouches for "
                f"{segment.index_vouches_bytes}"
            )
            return Verdict(False, number + 1, segment.whole_bytes, segment.next_offset, what)
        expected = segment.next_offset
    gone = [path for path, next_offset in audit.stray_indexes.items() if next_offset > max(expected, audit.log_start)]
    if gone:
        name = os.path.basename(gone[0])
        what = f"{name} vouches for a segment that is gone, up to offset {audit.stray_indexes[gone[0]]}"
        return Verdict(False, len(segments), segments[-1].whole_bytes if segments else 0, expected, what)
    return None


def _tell_verdict(audit: PartitionAudit, tell: Tell) -> None:
    verdict = audit.verdict
    if verdict is None:
        return
    if verdict.is_torn:
        size_bytes = sum(segment.size_bytes for segment in audit.segments[verdict.keep:])
        if verdict.keep:
            size_bytes += audit.segments[verdict.keep - 1].size_bytes - verdict.keep_bytes
        tell(
            TORN, audit.directory, None,
            f"{verdict.what}; a torn tail of {count_of(size_bytes, 'byte')}, never acknowledged as durable: the next "
            f"start sets it aside and the log ends at offset {verdict.next_offset}",
        )
        return
    if verdict.unreadable:
        tell(DAMAGE, audit.directory, None, f"{verdict.what}; what can't be read can't be judged")
        return
    first, behind = audit.lost()
    batches, records = audit.readable_behind()
    if verdict.gone_before is not None:
        tell(DAMAGE, audit.directory, None, f"{verdict.what}: offsets {first} to {behind - 1} are lost")
        return
    lost = f"offsets from {first} to {behind - 1} can't be served" if behind > first else "what followed is lost"
    what = f"{verdict.what}; it was on the disk once: {lost}"
    if batches:
        what += f"; {count_of(records, 'record')} in {count_of(batches, 'batch')} can be read behind it"
    tell(DAMAGE, audit.directory, None, what)


def _other_files(audit: PartitionAudit, names: list[str], bases: list[int], tell: Tell) -> None:
    for name in names:
        path = os.path.join(audit.directory, name)
        if _SET_ASIDE.fullmatch(name):
            tell(NOTE, path, None, f"set aside by a recovery, {count_of(os.lstat(path).st_size, 'byte')}")
        elif match := _INDEX.fullmatch(name):
            if int(match[1]) not in bases:
                _stray_index(audit, path, int(match[1]), tell)
        elif not _SEGMENT.fullmatch(name):
            tell(NOTE, path, None, "no file of the log; nobody reads it")


def _stray_index(audit: PartitionAudit, path: str, base_offset: int, tell: Tell) -> None:
    """A segment's index is removed before the segment: a whole one without it vouches for what is gone."""
    try:
        index = read_index_file(path)
    except OSError as problem:
        tell(NOTE, path, None, f"{problem.strerror}; an index without its segment")
        return
    if index.summary is not None and index.summary.base_offset == base_offset:
        audit.stray_indexes[path] = index.summary.next_offset
    tell(NOTE, path, None, "an index without its segment")
