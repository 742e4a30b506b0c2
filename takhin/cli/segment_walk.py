"""A segment file read from end to end for people and tools: nothing is written, and damage does not end the reading.

The log itself reads by other code (segment.pyx), which ends where damage begins. Memory is bounded whatever the file
holds: a batch is only held whole when its checksum, taken in pieces, matches.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from takhin.codec.batch import (
    BATCH_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    BatchError,
    encode_segment_header,
    read_batch,
)
from takhin.codec.crc32c import crc32c, masked

# What is read at once. A batch that is larger is held whole when its checksum matches.
READ_BYTES = 1024 * 1024
# Tag and length of a batch's header, tag and value of its magic.
_BATCH_BEGIN = b"\x32\x67\x0dTKB1"
_BATCH = struct.Struct("<2x x4s xI xq xq xI xI xI xq xq xi xq xq xi xq xI")
_SEGMENT = struct.Struct("<2x x4s xI xI xq xI xq xq")
# The CRC of either header covers what follows it.
_CRC_COVERS_FROM = 12
_VERSION = 1
# What read_batch says, as recovery tells it.
_WORDS = {
    "the batch is cut short": "a batch is cut short",
    "there is no batch header": "no batch begins there",
    "the checksum does not match": "a batch's checksum does not match",
    "the batch is compressed by a codec this version does not know":
        "a batch is compressed by a codec this version does not know",
    "the records do not lie as the header says": "a batch's records do not lie as its header says",
}
# Values may be made to look like batches without end: what is not found within so many readings of the file is not.
_SEARCH_READINGS = 4


class BatchHeader(NamedTuple):
    """The fields of a batch's header as they stand there: they may be anything until the checksum was looked at."""

    magic: bytes
    crc32c: int
    base_offset: int
    next_offset: int
    record_count: int
    payload_bytes: int
    uncompressed_bytes: int
    append_time_ms: int
    max_timestamp_ms: int
    epoch: int
    durable_offset: int
    producer_id: int
    producer_epoch: int
    producer_sequence: int
    flags: int

    @property
    def size_bytes(self) -> int:
        """Of the batch, its header included."""
        return BATCH_HEADER_SIZE + self.payload_bytes


@dataclass(frozen=True, slots=True)
class SegmentStart:
    """The segment's header. problem: what is wrong with it, in words; the fields are then not to be believed."""

    version: int
    topic_id: int
    partition: int
    base_offset: int
    created_ms: int
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class WholeBatch:
    """A batch whose checksum matches.

    expected_offset: where the one before it ended, None when that is not known. behind_damage: it is the first one
    behind damage. searched: and it was found by the first bytes of a batch, so it may also be a part of a value.
    """

    position: int
    header: BatchHeader
    expected_offset: int | None
    behind_damage: bool
    searched: bool
    _data: bytes
    _at: int

    @property
    def misplaced(self) -> str | None:
        """What is wrong with its place, in words."""
        base_offset = self.header.base_offset
        if self.expected_offset is None or base_offset == self.expected_offset:
            return None
        if self.behind_damage and base_offset > self.expected_offset:
            return None
        return f"a batch begins at offset {base_offset} where {self.expected_offset} should"

    @property
    def payload(self) -> bytes:
        """Its records, as they are stored."""
        start = self._at + BATCH_HEADER_SIZE
        return self._data[start : start + self.header.payload_bytes]


@dataclass(frozen=True, slots=True)
class DamagedPart:
    """Bytes in which there is no whole batch. header: what stands at their beginning, if that looks like a batch's.
    unreadable: the disk does not give them."""

    position: int
    size_bytes: int
    what: str
    expected_offset: int | None
    header: BatchHeader | None = None
    unreadable: bool = False


Part = SegmentStart | WholeBatch | DamagedPart


class SegmentFile:
    """A segment file, open for reading. Raises OSError when it can't be opened.

    begun: it begins with a segment's header, which what recovery cut off a segment does not. expected_offset: at which
    its first batch has to begin, None when that is to be seen from its header.
    """

    def __init__(self, path: str, *, begun: bool = True, expected_offset: int | None = None):
        self.path = path
        self._begun = begun
        self._expected_offset = expected_offset
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.size_bytes = os.fstat(self._fd).st_size
        except BaseException:
            self.close()
            raise
        self._data = b""
        self._start = 0
        self._budget_bytes = _SEARCH_READINGS * self.size_bytes

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> "SegmentFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def parts(self) -> Iterator[Part]:
        """All of the file, in order and without a gap. What the disk does not give is damage to the file's end."""
        position = 0
        try:
            if self._begun:
                start = self._header()
                if isinstance(start, DamagedPart):
                    yield start
                    return
                yield start
                position = SEGMENT_HEADER_SIZE
                if start.problem is None and self._expected_offset is None:
                    self._expected_offset = start.base_offset
            damaged = searched = False
            while position < self.size_bytes:
                header, what = self._check(position)
                if what is None:
                    assert header is not None
                    yield self._batch(position, header, damaged, searched)
                    self._expected_offset = header.next_offset
                    position += header.size_bytes
                    damaged = searched = False
                    continue
                end, searched = self._next_batch(position, header)
                damaged = True
                yield DamagedPart(position, end - position, what, self._expected_offset, header)
                position = end
        except OSError as problem:
            size_bytes = self.size_bytes - position
            what = problem.strerror or str(problem)
            yield DamagedPart(position, size_bytes, what, self._expected_offset, unreadable=True)

    def _header(self) -> SegmentStart | DamagedPart:
        data = self._read(0, SEGMENT_HEADER_SIZE)
        if len(data) < SEGMENT_HEADER_SIZE:
            what = "the segment's header is cut short" if data else "the file is empty"
            return DamagedPart(0, self.size_bytes, what, self._expected_offset)
        magic, crc, *fields = _SEGMENT.unpack(data)
        version, topic_id, partition, base_offset, created_ms = fields
        problem = None
        if magic != b"TKS1":
            problem = "no segment's header"
        elif crc != masked(crc32c(data[_CRC_COVERS_FROM:])):
            problem = "the checksum of the segment's header does not match"
        elif version != _VERSION:
            # Nothing is known of what follows.
            return DamagedPart(0, self.size_bytes, f"the file has version {version}, only {_VERSION} is known", None)
        elif data != encode_segment_header(topic_id, partition, base_offset, created_ms):
            problem = "the segment's header has not the fields it should"
        return SegmentStart(version, topic_id, partition, base_offset, created_ms, problem)

    def _batch(self, position: int, header: BatchHeader, damaged: bool, searched: bool) -> WholeBatch:
        self._fill(position, header.size_bytes)
        at = position - self._start
        return WholeBatch(position, header, self._expected_offset, damaged, searched, self._data, at)

    def _check(self, position: int) -> tuple[BatchHeader | None, str | None]:
        """The header that stands there, if one does, and what is wrong with its batch, in words. Raises OSError."""
        rest = self.size_bytes - position
        self._fill(position, min(BATCH_HEADER_SIZE, rest))
        at = position - self._start
        if rest < BATCH_HEADER_SIZE:
            return None, "a batch is cut short"
        if not self._data.startswith(_BATCH_BEGIN, at):
            return None, "no batch begins there"
        header = BatchHeader._make(_BATCH.unpack_from(self._data, at))
        if header.size_bytes > rest:
            return header, "a batch is cut short"
        if header.size_bytes > READ_BYTES and not self._checksum_matches(position, header):
            self._budget_bytes -= header.size_bytes
            return header, "a batch's checksum does not match"
        self._fill(position, header.size_bytes)
        try:
            read_batch(self._data, position - self._start)
        except BatchError as problem:
            self._budget_bytes -= header.size_bytes
            return header, _WORDS.get(str(problem), str(problem))
        return header, None

    def _checksum_matches(self, position: int, header: BatchHeader) -> bool:
        crc = 0
        end = position + header.size_bytes
        for start in range(position + _CRC_COVERS_FROM, end, READ_BYTES):
            crc = crc32c(self._read(start, min(READ_BYTES, end - start)), crc)
        return masked(crc) == header.crc32c

    def _next_batch(self, position: int, header: BatchHeader | None) -> tuple[int, bool]:
        """Where the next whole batch behind damage begins, and whether it was searched for; the file's end if nowhere.

        It is looked for where the damaged batch's header says that it begins, then by the first bytes of one.
        """
        if header is not None and self._budget_bytes > 0 and position + header.size_bytes < self.size_bytes:
            claimed = position + header.size_bytes
            if self._check(claimed)[1] is None:
                return claimed, False
        position += 1
        while position < self.size_bytes and self._budget_bytes > 0:
            self._fill(position, min(READ_BYTES, self.size_bytes - position))
            found = self._data.find(_BATCH_BEGIN, position - self._start)
            if found < 0:
                # What begins at the end of what was read is found in the next part.
                following = self._start + len(self._data) - len(_BATCH_BEGIN) + 1
                position = max(position + 1, following)
                continue
            position = self._start + found
            if self._check(position)[1] is None:
                return position, True
            self._budget_bytes -= 1
            position += 1
        return self.size_bytes, True

    def _fill(self, position: int, size_bytes: int) -> None:
        """See to it that so much from position on is held. Raises OSError, also when the file has become shorter."""
        if self._start <= position and position + size_bytes <= self._start + len(self._data):
            return
        self._data = self._read(position, max(READ_BYTES, size_bytes))
        self._start = position
        if len(self._data) < size_bytes:
            raise OSError(0, "the file has become shorter meanwhile")

    def _read(self, position: int, size_bytes: int) -> bytes:
        data = os.pread(self._fd, size_bytes, position)
        while 0 < len(data) < size_bytes and (more := os.pread(self._fd, size_bytes - len(data), position + len(data))):
            data += more
        return data
