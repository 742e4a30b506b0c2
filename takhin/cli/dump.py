"""takhin segment dump: what segment, index, journal and snapshot files hold."""

import os
import re
import stat
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from takhin.cli.command import EXIT_FAILED, EXIT_OK, CommandError
from takhin.cli.dump_journal import journal_parts
from takhin.cli.index_view import NO_TIMESTAMP_MS, read_index_file
from takhin.cli.segment_walk import BatchHeader, DamagedPart, SegmentFile, SegmentStart, WholeBatch
from takhin.cli.snapshot_view import read_snapshot_file
from takhin.cli.show import base64_of, bytes_of, count_of, print_json, time_of
from takhin.cli.terminal import Output
from takhin.log.producers import SNAPSHOT_NAME

# A segment, or what recovery cut off one, which begins with a batch.
_SEGMENT = re.compile(r"(\d{20})\.log(?:\.torn-at-(\d+)(?:\.\d+)?)?")

_JOURNAL = re.compile(r".+\.journal(?:\.damaged-\d+)?")


def dump(path: str, *, records: bool, as_json: bool, from_offset: int, count: int | None) -> int:
    """Show a file, or each file below a directory. Gives the exit status. Raises CommandError, OSError."""
    with Output() as out:
        dumper = _Dumper(out, records, as_json, from_offset, count)
        files = list(_files(path)) if os.path.isdir(path) else [path]
        ends = _ends(files)
        for each in files:
            if dumper.is_done:
                break
            if ends.get(_stem(each), from_offset + 1) > from_offset:
                dumper.file(each, named=each == path)
        return EXIT_FAILED if dumper.damaged else EXIT_OK


def _files(directory: str) -> Iterator[str]:
    """Every file below, in the order of names; numbers count as numbers."""

    def order(entry: os.DirEntry[str]) -> tuple[bool, int, str]:
        return not entry.name.isdigit(), int(entry.name) if entry.name.isdigit() else 0, entry.name

    for entry in sorted(os.scandir(directory), key=order):
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path)
        else:
            yield entry.path


def _ends(files: list[str]) -> dict[str, int]:
    """By the stem of each segment that another one follows: the offset at which that begins."""
    segments = [each for each in files if (match := _SEGMENT.fullmatch(os.path.basename(each))) and match[2] is None]
    return {
        _stem(each): int(_stem(os.path.basename(following)))
        for each, following in pairwise(segments) if os.path.dirname(each) == os.path.dirname(following)
    }


def _stem(path: str) -> str:
    """What a segment and its index have in common."""
    return path.removesuffix(".log").removesuffix(".index")


class _Dumper:
    def __init__(self, out: Output, records: bool, as_json: bool, from_offset: int, count: int | None):
        self.damaged = False
        self._out = out
        self._records = records
        self._as_json = as_json
        self._from_offset = from_offset
        self._left = count

    @property
    def is_done(self) -> bool:
        return self._left is not None and self._left <= 0

    def file(self, path: str, *, named: bool) -> None:
        """named: it was asked for, not found below a directory."""
        name = os.path.basename(path)
        if _SEGMENT.fullmatch(name):
            self._segment(path, name)
        elif name.endswith(".index"):
            self._index(path)
        elif _JOURNAL.fullmatch(name):
            self._journal(path)
        elif name == SNAPSHOT_NAME:
            self._snapshot(path)
        else:
            self._unnamed(path, name, named)

    def _unnamed(self, path: str, name: str, named: bool) -> None:
        """A file that was copied under another name is known by its first bytes."""
        magic = b""
        if stat.S_ISREG(os.stat(path).st_mode):
            with open(path, "rb") as file:
                magic = file.read(7)
        if magic[3:] == b"TKS1" or magic[3:] == b"TKB1":
            self._segment(path, name)
        elif magic[:4] == b"TKI1":
            self._index(path)
        elif magic[:4] == b"TKJ1":
            self._journal(path)
        elif magic[:4] == b"TKP1":
            self._snapshot(path)
        elif named:
            raise CommandError(f"{path} is no segment, index, journal or snapshot file")
        else:
            size_bytes = os.lstat(path).st_size
            self._tell("file", f"{path}  {count_of(size_bytes, 'byte')}, not shown", file=path, size_bytes=size_bytes)

    # Segments

    def _segment(self, path: str, name: str) -> None:
        match = _SEGMENT.fullmatch(name)
        with SegmentFile(path, begun=_is_begun(path, match)) as segment:
            what = "segment" if match is None or match[2] is None else f"set aside from byte {match[2]} of a segment"
            self._tell(
                "file", f"{path}  {what}, {count_of(segment.size_bytes, 'byte')}", file=path,
                size_bytes=segment.size_bytes,
            )
            for part in segment.parts():
                if isinstance(part, SegmentStart):
                    self._segment_start(part)
                elif isinstance(part, DamagedPart):
                    self._damage(part)
                elif part.header.next_offset > self._from_offset:
                    self._batch(part)
                    if self.is_done:
                        return

    def _segment_start(self, start: SegmentStart) -> None:
        self.damaged |= start.problem is not None
        self._tell(
            "segment",
            f"  0  segment: topic id {start.topic_id}, partition {start.partition}, base offset {start.base_offset}, "
            f"created {time_of(start.created_ms)}; {_state(start.problem)}",
            position=0, version=start.version, topic_id=start.topic_id, partition=start.partition,
            base_offset=start.base_offset, created_ms=start.created_ms, problem=start.problem,
        )

    def _batch(self, batch: WholeBatch) -> None:
        problem = batch.misplaced
        self.damaged |= problem is not None
        searched = "; found by searching: it may also be a part of a value" if batch.searched else ""
        self._tell(
            "batch", f"  {batch.position}  batch: {_header_text(batch.header)}; {_state(problem)}{searched}",
            position=batch.position, **_header_fields(batch.header), problem=problem, searched=batch.searched,
        )
        if self._records:
            self._record_lines(batch)
        elif self._left is not None:
            self._left -= 1

    def _damage(self, damage: DamagedPart) -> None:
        self.damaged = True
        claims = f"; its header says: {_header_text(damage.header)}" if damage.header is not None else ""
        self._tell(
            "damage",
            f"  {damage.position}  DAMAGE or a torn tail, {count_of(damage.size_bytes, 'byte')}: {damage.what}{claims}",
            position=damage.position, size_bytes=damage.size_bytes, problem=damage.what,
            header=None if damage.header is None else _header_fields(damage.header),
        )

    def _record_lines(self, batch: WholeBatch) -> None:
        # A batch's payload is a run of ConsumeMessagesResponse's field 4.
        from google.protobuf.message import DecodeError

        from takhin.v1 import takhin_pb2 as pb

        try:
            records = pb.ConsumeMessagesResponse.FromString(batch.payload).records
        except DecodeError as problem:
            self.damaged = True
            self._tell("damage", f"      the records can't be decoded: {problem}", position=batch.position,
                       problem="the records can't be decoded")
            return
        for record in records:
            if record.offset < self._from_offset:
                continue
            if self.is_done:
                return
            if self._left is not None:
                self._left -= 1
            key = record.key if record.HasField("key") else None
            value = record.value if record.HasField("value") else None
            headers = "".join(f", {bytes_of(each.key.encode())}: {bytes_of(each.value)}" for each in record.headers)
            self._tell(
                "record",
                f"      {record.offset}  {time_of(record.timestamp)}  key {bytes_of(key)}, value {bytes_of(value)}"
                + (f", headers {{{headers[2:]}}}" if headers else ""),
                offset=record.offset, partition=record.partition, timestamp_ms=record.timestamp, key=base64_of(key),
                value=base64_of(value),
                headers=[{"key": each.key, "value": base64_of(each.value)} for each in record.headers],
            )

    # Indexes

    def _index(self, path: str) -> None:
        index = read_index_file(path)
        self.damaged |= index.problem is not None
        size = count_of(index.size_bytes, "byte")
        if index.summary is None:
            self._tell("index", f"{path}  index, {size}; DAMAGED: {index.problem}", file=path,
                       size_bytes=index.size_bytes, problem=index.problem)
            return
        sums = index.summary
        self._tell(
            "index",
            f"{path}  index, {size}: offsets {sums.base_offset} to {sums.next_offset - 1} in "
            f"{count_of(sums.size_bytes, 'byte')} of segment, last append {time_of(sums.last_append_ms)}, "
            f"max timestamp {_largest(sums.max_timestamp_ms)}, max epoch {sums.max_epoch}, "
            f"{count_of(len(index.entries), 'entry')}; {_state(index.problem)}",
            file=path, size_bytes=index.size_bytes, base_offset=sums.base_offset, next_offset=sums.next_offset,
            segment_bytes=sums.size_bytes, last_append_ms=sums.last_append_ms,
            max_timestamp_ms=sums.max_timestamp_ms, max_epoch=sums.max_epoch, entries=len(index.entries),
            problem=index.problem,
        )
        for entry in index.entries:
            if entry.offset < self._from_offset:
                continue
            self._tell(
                "index_entry",
                f"  offset {entry.offset} at byte {entry.position}, max timestamp before it "
                f"{_largest(entry.max_timestamp_ms)}",
                offset=entry.offset, position=entry.position, max_timestamp_ms=entry.max_timestamp_ms,
            )

    # Snapshots of producers

    def _snapshot(self, path: str) -> None:
        found = read_snapshot_file(path)
        self.damaged |= found.problem is not None
        size = count_of(found.size_bytes, "byte")
        if found.problem is not None:
            self._tell("snapshot", f"{path}  snapshot of producers, {size}; DAMAGED: {found.problem}", file=path,
                       size_bytes=found.size_bytes, problem=found.problem)
            return
        self._tell(
            "snapshot",
            f"{path}  snapshot of producers, {size}: topic id {found.topic_id}, partition {found.partition}, what lies "
            f"below offset {found.offset}, {count_of(len(found.producers), 'producer')}; {_state(None)}",
            file=path, size_bytes=found.size_bytes, topic_id=found.topic_id, partition=found.partition,
            offset=found.offset, producers=len(found.producers), problem=None,
        )
        for producer in found.producers:
            batches = producer.batches_known
            self._tell(
                "producer",
                f"  producer {producer.id}, epoch {producer.epoch}, last append {time_of(producer.last_append_ms)}: "
                + ", ".join(
                    f"sequence {each[0]} at offset {each[2]} ({count_of(each[1], 'record')})" for each in batches
                ),
                producer_id=producer.id, producer_epoch=producer.epoch, last_append_ms=producer.last_append_ms,
                batches=[
                    {"sequence": sequence, "record_count": count, "base_offset": offset, "timestamp_ms": timestamp_ms,
                     "epoch": epoch}
                    for sequence, count, offset, timestamp_ms, epoch in batches
                ],
            )

    # Journals

    def _journal(self, path: str) -> None:
        for part in journal_parts(path):
            self.damaged |= part.damaged
            self._tell(part.kind, part.text, **part.fields)

    def _tell(self, kind: str, text: str, /, **fields: Any) -> None:
        if self._as_json:
            print_json(self._out, type=kind, **fields)
        else:
            self._out.line(text)


def _is_begun(path: str, name: re.Match[str] | None) -> bool:
    """Whether the file begins as a segment does. What recovery cut off one begins with a batch."""
    if name is not None:
        return name[2] is None or int(name[2]) == 0
    with open(path, "rb") as file:
        return file.read(7)[3:] != b"TKB1"


def _largest(timestamp_ms: int) -> str:
    return time_of(timestamp_ms) if timestamp_ms != NO_TIMESTAMP_MS else "none"


def _state(problem: str | None) -> str:
    return "checksum ok" if problem is None else f"DAMAGED: {problem}"


def _header_text(header: BatchHeader) -> str:
    text = (
        f"offsets {header.base_offset} to {header.next_offset - 1}, {count_of(header.record_count, 'record')}, "
        f"{count_of(header.size_bytes, 'byte')}, appended {time_of(header.append_time_ms)}, max timestamp "
        f"{time_of(header.max_timestamp_ms)}, epoch {header.epoch}, durable below {header.durable_offset}"
    )
    if header.uncompressed_bytes != header.payload_bytes:
        text += f", uncompressed {count_of(header.uncompressed_bytes, 'byte')}"
    if header.producer_id != -1:
        text += (
            f", producer {header.producer_id}, its epoch {header.producer_epoch}, sequence {header.producer_sequence}"
        )
    return text + (f", flags {header.flags:#x}" if header.flags else "")


def _header_fields(header: BatchHeader) -> dict[str, Any]:
    fields = header._asdict()
    del fields["magic"]
    return fields
