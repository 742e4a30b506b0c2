"""One partition audited: its segments in their order, and what the next start will make of what is wrong with them."""

import os
import re
from dataclasses import dataclass, field, fields, replace

from takhin.cli.index_view import read_index_file
from takhin.cli.journal_view import JournalView
from takhin.cli.segment_audit import DAMAGE, NOTE, TORN, SegmentAudit, Tell, audit_segment
from takhin.cli.show import count_of
from takhin.cli.snapshot_view import read_snapshot_file
from takhin.log.files import Files
from takhin.log.producers import SNAPSHOT_NAME
from takhin.log.recovery import (
    INDEX_FILE,
    PASSING,
    SEGMENT_FILE,
    Place,
    any_proves,
    base_offsets,
    was_durable,
)
from takhin.log.segment import FileCache, Segment, segment_name

_SET_ASIDE = re.compile(r"\d{20}\.log\.torn-at-\d+(\.\d+)?")
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
    whole index files that have no segment, and the offset up to which each vouches; snapshot_offset: so does a whole
    snapshot of producers. proven_offset: the journal tells that the log went so far. knows_end: whatever is missing was
    there once. restores: all of this is as it will be once the next start has written what the journal holds."""

    topic: str
    topic_id: int
    partition: int
    directory: str
    log_start: int
    removable: list[SegmentAudit] = field(default_factory=list)
    segments: list[SegmentAudit] = field(default_factory=list)
    stray_indexes: dict[str, int] = field(default_factory=dict)
    snapshot_offset: int = 0
    proven_offset: int = 0
    knows_end: bool = False
    restores: bool = False
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

    @property
    def next_offset(self) -> int:
        """Where the log ends, or where it ends before the damage."""
        if self.verdict is not None:
            return self.verdict.next_offset
        return max(self.segments[-1].next_offset if self.segments else 0, self.log_start)

    def lost(self) -> tuple[int, int]:
        """(from, to) of the offsets that the damage takes: all from the first on that is known to have been there."""
        assert self.verdict is not None
        if self.verdict.gone_before is not None:
            return self.log_start, self.verdict.gone_before
        ends = [segment.highest_offset for segment in self.segments] + list(self.stray_indexes.values())
        ends += [segment.index_vouches_offset for segment in self.segments]
        ends += [self.proven_offset, self.snapshot_offset]
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


def audit_partition(audit: PartitionAudit, tell: Tell, journal: JournalView, *, was_clean: bool) -> None:
    """Read all of its files, as they will be once the next start has written to them what the journal holds.

    was_clean: the last run left everything on the disk. Raises OSError.
    """
    key = (audit.topic_id, audit.partition)
    # Of a damaged journal nobody knows how far it went: then no tail is taken for torn.
    knows_end = was_clean or journal.is_damaged(key)
    told: list[tuple[str, str, int | None, str]] = []
    as_it_is = replace(audit, segments=[], removable=[], stray_indexes={}, snapshot_offset=0)
    _audit_files(as_it_is, audit.directory, lambda *finding: told.append(finding), journal.end(key), knows_end)
    restored = replace(audit, segments=[], removable=[], stray_indexes={}, snapshot_offset=0, restores=True)
    told_restored: list[tuple[str, str, int | None, str]] = []
    try:
        differs = journal.differs(key, audit.directory, audit.log_start)
        if differs:
            with journal.restored(key, audit.directory, audit.log_start) as directory:
                _audit_files(
                    restored, directory, lambda *finding: told_restored.append(finding), journal.end(key), knows_end
                )
    except OSError as problem:
        # What can't be read or written is told as it is.
        if isinstance(problem, PermissionError) or problem.errno in PASSING:
            raise
        differs = False
    if not differs or (restored.is_damaged and restored.next_offset <= as_it_is.next_offset):
        # What it holds does not follow on what is there.
        restored, told_restored = as_it_is, told
    for each in fields(audit):
        setattr(audit, each.name, getattr(restored, each.name))
    for severity, path, position, what in told_restored:
        tell(severity, path, position, what)
    if audit.restores:
        what = f"the next start writes to it what the journal holds, up to offset {audit.proven_offset}"
        tell(NOTE, audit.directory, None, what)


def _audit_files(audit: PartitionAudit, directory: str, tell: Tell, proven_offset: int, knows_end: bool) -> None:
    """directory: where to read what audit.directory holds."""

    def tell_path(severity: str, path: str, position: int | None, what: str) -> None:
        tell(severity, _in(audit.directory, directory, path), position, what)

    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        names = []
    bases = base_offsets(SEGMENT_FILE, names)
    _other_files(audit, directory, names, bases, tell_path)
    for base_offset in bases:
        path = os.path.join(directory, segment_name(base_offset))
        try:
            segment = audit_segment(path, audit.topic_id, audit.partition, base_offset, tell_path)
        except PermissionError:
            raise
        except OSError as problem:
            # Recovery takes what it can't read for damage.
            segment = SegmentAudit(base_offset, path, next_offset=base_offset, highest_offset=base_offset)
            segment.damage, segment.unreadable = problem.strerror or str(problem), True
        audit.segments.append(segment)
    while len(audit.segments) > 1 and audit.segments[1].base_offset <= audit.log_start:
        audit.removable.append(audit.segments.pop(0))
        tell_path(NOTE, audit.removable[-1].path, None, "lies before the log's start; the next start removes it")
    audit.proven_offset, audit.knows_end = proven_offset, knows_end
    audit.verdict = _judged(audit, directory)
    for segment in audit.removable + audit.segments:
        segment.path = _in(audit.directory, directory, segment.path)
    _tell_verdict(audit, tell)
    if audit.verdict is not None:
        for segment in audit.segments[audit.verdict.keep:]:
            if segment.damage is not None and not audit.verdict.what.startswith(os.path.basename(segment.path)):
                tell(NOTE, segment.path, segment.whole_bytes, f"behind it: {segment.damage}")


def _in(directory: str, read_from: str, path: str) -> str:
    return os.path.join(directory, os.path.relpath(path, read_from))


def _judged(audit: PartitionAudit, directory: str) -> Verdict | None:
    try:
        return judge(audit, directory)
    except OSError as problem:
        if problem.errno in PASSING:
            raise
        # Recovery gives the partition up where it can't read.
        what = f"{_in(audit.directory, directory, problem.filename or directory)}: {problem.strerror}"
        return Verdict(False, 0, 0, audit.log_start, what, unreadable=True)


def judge(audit: PartitionAudit, directory: str) -> Verdict | None:
    """What recovery will take the partition for, its files being in `directory`: None when it is whole. Raises OSError.

    The one place that tells a torn tail from damage; a test holds it against recovery itself.
    """
    segments = audit.segments
    place = Place(FileCache(Files(), _OPEN_FILES), directory, audit.topic_id, audit.partition)
    proven_offset = max([audit.proven_offset, audit.snapshot_offset, *audit.stray_indexes.values()])

    def is_torn(missing: int, number: int) -> bool:
        """Whether nothing, the segments from that number on included, proves that the log went on at that offset."""
        later = [segment.base_offset for segment in segments[number:]]
        return not (audit.knows_end or proven_offset > missing or any_proves(place, later, missing))

    expected = min(segments[0].base_offset, audit.log_start) if segments else audit.log_start
    for number, segment in enumerate(segments):
        name = segment_name(segment.base_offset)
        keep_bytes = segments[number - 1].whole_bytes if number else 0
        if not number and segment.base_offset > audit.log_start:
            what = f"the segment with offset {audit.log_start} is gone"
            torn = is_torn(audit.log_start, number)
            return Verdict(torn, 0, 0, audit.log_start, what, None if torn else segment.base_offset)
        if number and segment.base_offset != expected:
            what = f"{name} follows where offset {expected} should"
            torn = segment.base_offset > expected and is_torn(max(expected, audit.log_start), number)
            return Verdict(torn, number, keep_bytes, expected, what)
        if segment.damage is not None:
            what = f"{name} at byte {segment.whole_bytes}: {segment.damage}"
            if segment.unreadable:
                return Verdict(False, number, keep_bytes, expected, what, unreadable=True)
            # What lies below the log's start is gone anyway.
            missing = max(segment.next_offset, audit.log_start)
            torn = _ends_unproven(place, segment, missing) and is_torn(missing, number + 1)
            if segment.whole_bytes:
                return Verdict(torn, number + 1, segment.whole_bytes, segment.next_offset, what)
            return Verdict(torn, number, keep_bytes, expected if number else audit.log_start, what)
        if (segment.index_vouches_bytes or 0) > segment.size_bytes:
            what = f"{name} ends at byte {segment.size_bytes}, and its index vouches for {segment.index_vouches_bytes}"
            return Verdict(False, number + 1, segment.whole_bytes, segment.next_offset, what)
        expected = segment.next_offset
    end = max(expected if segments else 0, audit.log_start)
    if end < proven_offset:
        what = f"the log ends at offset {end}, and once went on to {proven_offset}"
        return Verdict(False, len(segments), segments[-1].whole_bytes if segments else 0, end, what)
    return None


def _ends_unproven(place: Place, segment: SegmentAudit, missing: int) -> bool:
    """Whether nothing in a damaged segment, or its index, proves that the offset was on the disk."""
    if (segment.index_vouches_bytes or 0) > segment.whole_bytes:
        return False
    scanned, _ = Segment.scanned(
        place.cache, place.directory, place.topic_id, place.partition, segment.base_offset
    )
    return not was_durable(scanned, missing)


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


def _other_files(audit: PartitionAudit, directory: str, names: list[str], bases: list[int], tell: Tell) -> None:
    for name in names:
        path = os.path.join(directory, name)
        if _SET_ASIDE.fullmatch(name):
            tell(NOTE, path, None, f"set aside by a recovery, {count_of(os.lstat(path).st_size, 'byte')}")
        elif match := INDEX_FILE.fullmatch(name):
            if int(match[1]) not in bases:
                _stray_index(audit, path, int(match[1]), tell)
        elif name == SNAPSHOT_NAME:
            _snapshot(audit, path, tell)
        elif name.endswith((".index.new", f"{SNAPSHOT_NAME}.new")):
            pass  # one that was being written when the broker died
        elif not SEGMENT_FILE.fullmatch(name):
            tell(NOTE, path, None, "no file of the log; nobody reads it")


def _snapshot(audit: PartitionAudit, path: str, tell: Tell) -> None:
    """It tells only of what was on the disk."""
    try:
        found = read_snapshot_file(path)
    except OSError as problem:
        if problem.errno in PASSING:
            raise
        tell(NOTE, path, None, f"{problem.strerror}; a snapshot of producers")
        return
    what = found.problem
    if what is None and (found.topic_id, found.partition) != (audit.topic_id, audit.partition):
        what = f"it is of topic id {found.topic_id}, partition {found.partition}"
    if what is not None:
        tell(NOTE, path, None, f"a snapshot of producers that can't be used ({what}): the next start reads all batches")
    else:
        audit.snapshot_offset = found.offset


def _stray_index(audit: PartitionAudit, path: str, base_offset: int, tell: Tell) -> None:
    """A segment's index is removed before the segment: a whole one without it vouches for what is gone."""
    try:
        index = read_index_file(path)
    except OSError as problem:
        tell(NOTE, path, None, f"{problem.strerror}; an index without its segment")
        return
    if index.summary is not None and index.summary.base_offset == base_offset:
        audit.stray_indexes[os.path.join(audit.directory, os.path.basename(path))] = index.summary.next_offset
    tell(NOTE, path, None, "an index without its segment")
