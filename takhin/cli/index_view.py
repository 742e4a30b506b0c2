"""An index file read whole, for people and tools; the log itself reads by index.pyx."""

import struct
from dataclasses import dataclass
from typing import NamedTuple

from takhin.log.index import INDEX_HEADER_SIZE, OffsetIndex, SegmentSummary, read_summary

# The largest timestamp of nothing: the smallest there is.
NO_TIMESTAMP_MS = -(2**53 - 1)
_ENTRY = struct.Struct("<IIq")


class IndexEntry(NamedTuple):
    """offset: absolute. position: of the batch in the segment. max_timestamp_ms: the largest before that batch."""

    offset: int
    position: int
    max_timestamp_ms: int


@dataclass(frozen=True, slots=True)
class IndexFile:
    """summary: the segment in sum, None when not even that can be believed. problem: what is wrong, in words."""

    size_bytes: int
    summary: SegmentSummary | None
    entries: list[IndexEntry]
    problem: str | None


def read_index_file(path: str) -> IndexFile:
    """Raises OSError. Entries that can't be believed are left out."""
    with open(path, "rb") as file:
        data = file.read()
    found = read_summary(data[:INDEX_HEADER_SIZE])
    if found is None:
        what = "the sums are not whole" if data else "the file is empty"
        return IndexFile(len(data), None, [], what)
    summary, count = found
    if OffsetIndex.decode(data) is None:
        return IndexFile(len(data), summary, [], f"the {count} entries are not whole")
    entries = [
        IndexEntry(summary.base_offset + delta, position, max_timestamp_ms)
        for delta, position, max_timestamp_ms in _ENTRY.iter_unpack(data[INDEX_HEADER_SIZE:])
    ]
    return IndexFile(len(data), summary, entries, None)
