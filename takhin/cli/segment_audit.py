"""One segment and its index audited: every batch looked at, each of the index's claims held against them."""

from collections.abc import Callable
from dataclasses import dataclass

from takhin.cli.index_view import NO_TIMESTAMP_MS, IndexEntry, IndexFile, read_index_file
from takhin.cli.segment_walk import DamagedPart, Part, SegmentFile, SegmentStart, WholeBatch
from takhin.cli.show import count_of
from takhin.codec.batch import SEGMENT_HEADER_SIZE

# Something found in a file: (severity, path, where in the file or None, what).
Tell = Callable[[str, str, int | None, str], None]

DAMAGE = "damage"
TORN = "torn"
NOTE = "note"


@dataclass(slots=True)
class SegmentAudit:
    """What is in a segment's file.

    whole_bytes: up to where it is whole, 0 when not even its header is. next_offset: where the log is at that place.
    damage: what stands there, in words, None when the file ends there. readable_*: whole batches behind it.
    highest_offset: the next offset of the last of all batches. index_vouches_bytes: so much of the segment, up to
    index_vouches_offset, was on the disk when its index was written; None without one that can be believed.
    index_wrong: its checksums match, but it tells something else than the segment. unreadable: the disk does not give
    all of the file.
    """

    base_offset: int
    path: str
    size_bytes: int = 0
    whole_bytes: int = 0
    next_offset: int = 0
    max_epoch: int = 0
    batches: int = 0
    records: int = 0
    damage: str | None = None
    readable_batches: int = 0
    readable_records: int = 0
    highest_offset: int = 0
    index_vouches_bytes: int | None = None
    index_vouches_offset: int = 0
    index_wrong: bool = False
    unreadable: bool = False

    @property
    def index_path(self) -> str:
        return self.path[: -len("log")] + "index"


def audit_segment(path: str, topic_id: int, partition: int, base_offset: int, tell: Tell) -> SegmentAudit:
    """Read all of it. Damage is told; whether it is a torn tail, the partition's audit says. Raises OSError."""
    found = SegmentAudit(base_offset, path, next_offset=base_offset, highest_offset=base_offset)
    index = _IndexCheck(found, tell)
    with SegmentFile(path, expected_offset=base_offset) as file:
        found.size_bytes = file.size_bytes
        for part in file.parts():
            problem = _problem(part, topic_id, partition, base_offset)
            if problem is not None and found.damage is None:
                found.damage = problem
            elif problem is not None:
                tell(NOTE, path, part.position if not isinstance(part, SegmentStart) else 0, f"behind it: {problem}")
            found.unreadable |= isinstance(part, DamagedPart) and part.unreadable
            if isinstance(part, WholeBatch):
                _count(found, part, index)
            elif isinstance(part, SegmentStart) and problem is None:
                found.whole_bytes = index.position = SEGMENT_HEADER_SIZE
                index.last_append_ms = part.created_ms
    index.end()
    return found


def _problem(part: Part, topic_id: int, partition: int, base_offset: int) -> str | None:
    if isinstance(part, DamagedPart):
        return part.what
    if isinstance(part, WholeBatch):
        return part.misplaced
    if part.problem is not None:
        return part.problem
    if (part.topic_id, part.partition, part.base_offset) != (topic_id, partition, base_offset):
        return (
            f"it is the segment of topic id {part.topic_id}, partition {part.partition}, base offset "
            f"{part.base_offset}, and lies in another's place"
        )
    return None


def _count(found: SegmentAudit, batch: WholeBatch, index: "_IndexCheck") -> None:
    header = batch.header
    found.max_epoch = max(found.max_epoch, header.epoch)
    found.highest_offset = max(found.highest_offset, header.next_offset)
    if found.damage is not None:
        if header.base_offset >= found.next_offset:
            found.readable_batches += 1
            found.readable_records += header.record_count
        return
    index.batch(batch)
    found.batches += 1
    found.records += header.record_count
    found.whole_bytes = batch.position + header.size_bytes
    found.next_offset = header.next_offset


class _IndexCheck:
    """The index file of a segment, held against the batches as they come."""

    def __init__(self, found: SegmentAudit, tell: Tell):
        self.position = 0
        self.last_append_ms = 0
        self._found = found
        self._tell = tell
        self._max_timestamp_ms = NO_TIMESTAMP_MS
        self._max_epoch = 0
        self._entries: list[IndexEntry] = []
        self._next_entry = 0
        self._index = self._read()
        self._sums_seen = False

    def _read(self) -> IndexFile | None:
        try:
            index = read_index_file(self._found.index_path)
        except FileNotFoundError:
            return None
        except OSError as problem:
            self._tell(NOTE, self._found.index_path, None, f"{problem.strerror}; the next start makes it again")
            return None
        if index.problem is not None:
            # Index files are not synced: a crash may leave one like this.
            self._tell(NOTE, self._found.index_path, None, f"{index.problem}; the next start makes it again")
        if index.summary is None:
            return None
        if index.summary.base_offset != self._found.base_offset:
            self._wrong(f"it is of the segment with base offset {index.summary.base_offset}")
            return None
        self._found.index_vouches_bytes = index.summary.size_bytes
        self._found.index_vouches_offset = index.summary.next_offset
        self._entries = index.entries
        return index

    def batch(self, batch: WholeBatch) -> None:
        """A whole batch in its place."""
        self._check_sums(batch.position, batch.header.base_offset)
        while self._next_entry < len(self._entries) and self._entries[self._next_entry].position <= batch.position:
            entry = self._entries[self._next_entry]
            if entry != (batch.header.base_offset, batch.position, self._max_timestamp_ms):
                self._wrong(
                    f"entry {self._next_entry} (offset {entry.offset} at byte {entry.position}, max timestamp "
                    f"{entry.max_timestamp_ms}) is not what the segment holds there"
                )
            self._next_entry += 1
        self._max_timestamp_ms = max(self._max_timestamp_ms, batch.header.max_timestamp_ms)
        self._max_epoch = max(self._max_epoch, batch.header.epoch)
        self.last_append_ms = batch.header.append_time_ms
        self.position = batch.position + batch.header.size_bytes

    def end(self) -> None:
        """The whole part of the segment has been read."""
        found, vouched = self._found, self._found.index_vouches_bytes
        if vouched is None:
            return
        self._check_sums(found.whole_bytes, found.next_offset)
        if vouched <= found.whole_bytes:
            if not self._sums_seen:
                self._wrong(f"it tells of {count_of(vouched, 'byte')} of segment, where no batch ends")
            elif self._next_entry < len(self._entries):
                self._wrong(f"entry {self._next_entry} lies behind what it tells of")

    def _check_sums(self, position: int, next_offset: int) -> None:
        if self._index is None or self._index.summary is None or position != self._index.summary.size_bytes:
            return
        self._sums_seen = True
        sums = self._index.summary
        told = (sums.next_offset, sums.last_append_ms, sums.max_timestamp_ms, sums.max_epoch)
        held = (next_offset, self.last_append_ms, self._max_timestamp_ms, self._max_epoch)
        if told != held:
            names = ("next offset", "last append", "max timestamp", "max epoch")
            differing = [
                f"{name} {mine}, which is {other}"
                for name, mine, other in zip(names, told, held, strict=True) if mine != other
            ]
            self._wrong(f"its sums do not agree with the segment: {'; '.join(differing)}")

    def _wrong(self, what: str) -> None:
        # Once: what is wrong with one entry is mostly wrong with all.
        if not self._found.index_wrong:
            self._found.index_wrong = True
            self._tell(DAMAGE, self._found.index_path, None, f"{what}, though its checksums match")
