"""A journal file read from end to end, for people and tools; recovery reads it by code of its own.

DATA/journal/0.journal and 1.journal hold what was synced here before it was synced in its segments: a file's header,
then entries, each at a multiple of 512 bytes, their sequences rising by one. The first place without a valid entry of
the expected sequence ends a file; what lies behind it is of an earlier use, or was lost.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from takhin.codec.crc32c import crc32c, masked

BLOCK_BYTES = 512
# The header stands twice in its block.
HEADER_COPIES = (0, 256)
_READ_BYTES = 1024 * 1024
_VERSION = 1
_FILE = struct.Struct("<4sIIIQq")
_ENTRY = struct.Struct("<4sIIIQQQq")
_PART = struct.Struct("<IIqIIqqqqiI")
# The CRC of either header covers what follows it.
_CRC_COVERS_FROM = 8


class JournalPart(NamedTuple):
    """Whole batches, and where they belong: offsets are absolute, position is that in the segment's file."""

    kind: int
    size_bytes: int
    topic_id: int
    partition: int
    position: int
    segment_base_offset: int
    segment_created_ms: int
    base_offset: int
    next_offset: int
    epoch: int
    reserved: int


@dataclass(frozen=True, slots=True)
class JournalStart:
    """The file's header. problem: what is wrong with it, in words; nothing else of the file is then to be believed."""

    version: int
    salt: int
    first_sequence: int
    created_ms: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A whole entry. payload_at: where its parts' bytes begin. missing_sequence: of the entry that ends the file, when
    this one lies behind that, else 0."""

    position: int
    sequence: int
    durable_sequence: int
    payload_bytes: int
    time_ms: int
    parts: tuple[JournalPart, ...]
    payload_at: int
    missing_sequence: int

    @property
    def stray(self) -> bool:
        """Whether it lies behind the place that ends the file."""
        return self.missing_sequence > 0

    @property
    def size_bytes(self) -> int:
        """With the padding to whole blocks."""
        end = self.payload_at + self.payload_bytes - self.position
        return -(-end // BLOCK_BYTES) * BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class JournalEnd:
    """Where the file ends, at its last byte or before: there is no whole entry of that sequence."""

    position: int
    size_bytes: int
    sequence: int
    what: str


class JournalFile:
    """A journal file, open for reading. Raises OSError when it can't be opened or read."""

    def __init__(self, path: str):
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size_bytes = os.fstat(self._fd).st_size
        self._salt = 0

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> "JournalFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def parts(self) -> Iterator[JournalStart | JournalEntry | JournalEnd]:
        """The header, the entries, the end; behind that the stray entries, whose sequences are beyond the end's."""
        start = self._start()
        yield start
        if start.problem is not None:
            return
        self._salt = start.salt
        position = BLOCK_BYTES
        sequence = start.first_sequence
        while isinstance(entry := self._entry(position, sequence), JournalEntry):
            yield entry
            position += entry.size_bytes
            sequence += 1
        yield JournalEnd(position, self.size_bytes, sequence, entry)
        # What is looked through is what was written once: searching it costs one reading, as payloads are skipped.
        position += BLOCK_BYTES
        while position < self.size_bytes:
            stray = self._entry(position, None, missing=sequence)
            if isinstance(stray, JournalEntry) and stray.sequence > sequence:
                yield stray
                position += stray.size_bytes
            else:
                position += BLOCK_BYTES

    def read(self, position: int, size_bytes: int) -> bytes:
        """Fewer bytes only where the file ends. Raises OSError."""
        data = os.pread(self._fd, size_bytes, position)
        while 0 < len(data) < size_bytes and (more := os.pread(self._fd, size_bytes - len(data), position + len(data))):
            data += more
        return data

    def _start(self) -> JournalStart:
        """By the first copy of the header that is whole."""
        copies = [self._header(place) for place in HEADER_COPIES]
        return next((copy for copy in copies if copy.problem is None), copies[0])

    def _header(self, place: int) -> JournalStart:
        data = self.read(place, _FILE.size)
        if len(data) < _FILE.size:
            return JournalStart(0, 0, 0, 0, "the header is cut short")
        magic, crc, version, salt, first_sequence, created_ms = _FILE.unpack(data)
        problem = None
        if magic != b"TKJ1":
            problem = "no journal's header"
        elif crc != masked(crc32c(data[_CRC_COVERS_FROM:])):
            problem = "the checksum of the header does not match"
        elif version != _VERSION:
            problem = f"the file has version {version}, only {_VERSION} is known"
        return JournalStart(version, salt, first_sequence, created_ms, problem)

    def _entry(self, position: int, expected: int | None, missing: int = 0) -> JournalEntry | str:
        """The entry that begins there; what is wrong, in words, when there is none of that sequence."""
        data = self.read(position, _ENTRY.size)
        if len(data) < _ENTRY.size:
            return "the file ends"
        magic, crc, payload_crc, count, sequence, durable_sequence, payload_bytes, time_ms = _ENTRY.unpack(data)
        if magic != b"TKJE":
            return "no entry begins there"
        payload_at = position + _ENTRY.size + count * _PART.size
        if payload_at + payload_bytes > self.size_bytes:
            return "an entry is cut short"
        table = self.read(position + _ENTRY.size, count * _PART.size)
        if crc != masked(crc32c(table, crc32c(data[_CRC_COVERS_FROM:], self._salt))):
            return "an entry's checksum does not match"
        if expected is not None and sequence != expected:
            return f"an entry has the sequence {sequence} where {expected} should be"
        parts = tuple(JournalPart._make(fields) for fields in _PART.iter_unpack(table))
        if sum(part.size_bytes for part in parts) != payload_bytes:
            return "an entry's parts are not as long as its payload"
        if payload_crc != masked(self._crc_of(payload_at, payload_bytes)):
            return "the checksum of an entry's payload does not match"
        return JournalEntry(
            position, sequence, durable_sequence, payload_bytes, time_ms, parts, payload_at, missing
        )

    def _crc_of(self, position: int, size_bytes: int) -> int:
        crc = self._salt
        for start in range(position, position + size_bytes, _READ_BYTES):
            crc = crc32c(self.read(start, min(_READ_BYTES, position + size_bytes - start)), crc)
        return crc
