"""What a journal file holds, line by line; read with recovery's own functions."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from takhin.cli.show import count_of, time_of
from takhin.log.files import Files
from takhin.log.journal import (
    BLOCK_BYTES,
    HEADER_COPIES,
    KIND_OFFSETS,
    JournalEntry,
    JournalError,
    JournalPart,
    read_entry,
    read_header,
)
from takhin.log.transaction_offsets import decode_offsets

_MAGIC = b"TKJE"
_SEARCH_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class JournalLine:
    """A line of the dump. damaged: it shows that something is missing, or not as it was."""

    kind: str
    text: str
    fields: dict[str, Any]
    damaged: bool = False


def journal_parts(path: str) -> Iterator[JournalLine]:
    """Header, entries with their parts, the end; then whole entries behind the end that are no leftover of an earlier
    use. Raises OSError."""
    files = Files()
    fd = files.open(path, os.O_RDONLY)
    try:
        yield from _parts(files, fd, path)
    finally:
        files.close(fd)


def _parts(files: Files, fd: int, path: str) -> Iterator[JournalLine]:
    size_bytes = files.size(fd)
    text = f"{path}  journal, {count_of(size_bytes, 'byte')}"
    about: dict[str, Any] = {"file": path, "size_bytes": size_bytes}
    problems = []
    for place in HEADER_COPIES:
        try:
            header = read_header(files.read(fd, BLOCK_BYTES - place, place))
            break
        except JournalError as problem:
            problems.append(str(problem))
    else:
        yield JournalLine("journal", f"{text}; DAMAGED: {problems[0]}", about | {"problem": problems[0]}, damaged=True)
        return
    text += (
        f": first sequence {header.first_sequence}, salt {header.salt:08x}, begun {time_of(header.created_ms)}; "
        f"checksum ok" + (f", the first copy is damaged ({problems[0]})" if problems else "")
    )
    yield JournalLine("journal", text, about | asdict(header) | {"problem": None})
    place, sequence, what = BLOCK_BYTES, header.first_sequence, ""
    while not what:
        try:
            entry = read_entry(files, fd, place, header.salt)
        except JournalError as problem:
            what = str(problem)
            break
        if entry.sequence != sequence:
            what = f"an entry has the sequence {entry.sequence} there"
            break
        if not entry.whole:
            what = "the checksum of the entry's payload does not match"
            break
        yield from _entry(files, fd, place, entry, None)
        place += entry.size_bytes
        sequence += 1
    rest = count_of(size_bytes - place, "byte") + " of an earlier use, or torn" if place < size_bytes else "its end"
    yield JournalLine(
        "journal_end", f"  {place}  ends before entry {sequence}: {what}; {rest}",
        {"position": place, "sequence": sequence, "what": what},
    )
    for each in _magics(files, fd, place + BLOCK_BYTES):
        try:
            entry = read_entry(files, fd, each, header.salt)
        except JournalError:
            continue
        if entry.whole and entry.sequence > sequence:
            yield from _entry(files, fd, each, entry, sequence)


def _entry(
    files: Files, fd: int, place: int, entry: JournalEntry, missing: int | None
) -> Iterator[JournalLine]:
    """missing: the sequence of the entry that ends the file, where this one lies behind that."""
    # Then that was synced when this was written.
    proof = missing is not None and entry.durable_sequence >= missing
    behind = "" if missing is None else f"; behind entry {missing}, which is missing" + " and was there once" * proof
    yield JournalLine(
        "journal_entry",
        f"  {place}  entry {entry.sequence}, {count_of(entry.size_bytes, 'byte')}, "
        f"{count_of(len(entry.parts), 'part')}, written {time_of(entry.time_ms)}, durable up to entry "
        f"{entry.durable_sequence}; checksums ok{behind}",
        {
            "position": place, "sequence": entry.sequence, "durable_sequence": entry.durable_sequence,
            "size_bytes": entry.size_bytes, "time_ms": entry.time_ms, "stray": missing is not None,
        },
        damaged=proof,
    )
    for part in entry.parts:
        if part.kind == KIND_OFFSETS:
            yield _offsets(files, fd, part)
            continue
        yield JournalLine(
            "journal_part",
            f"      topic id {part.topic_id}, partition {part.partition}: offsets {part.base_offset} to "
            f"{part.next_offset - 1}, {count_of(part.size_bytes, 'byte')} for byte {part.position} of the segment with "
            f"base offset {part.segment_base_offset}, epoch {part.epoch}",
            asdict(part),
        )


def _offsets(files: Files, fd: int, part: JournalPart) -> JournalLine:
    """The offsets that a transaction commits."""
    number = part.topic_id
    about = {"transaction": number, "size_bytes": part.size_bytes}
    try:
        found = decode_offsets(number, files.read(fd, part.size_bytes, part.place))
    except JournalError as problem:
        return JournalLine("journal_offsets", f"      transaction {number}: DAMAGED: {problem}", about, damaged=True)
    text = ", ".join(f"{offset} of topic id {topic_id}, partition {each}" for topic_id, each, offset in found.offsets)
    return JournalLine(
        "journal_offsets",
        f"      transaction {number}: offsets of group {found.group_id!r}, committed {time_of(found.committed_ms)}: "
        f"{text}",
        about | {
            "group_id": found.group_id, "committed_ms": found.committed_ms,
            "offsets": [
                {"topic_id": topic_id, "partition": each, "offset": offset}
                for topic_id, each, offset in found.offsets
            ],
        },
    )


def _magics(files: Files, fd: int, start: int) -> Iterator[int]:
    """The places from start on, a multiple of blocks, where an entry may begin."""
    while data := files.read(fd, _SEARCH_BYTES, start):
        yield from (start + at for at in range(0, len(data), BLOCK_BYTES) if data.startswith(_MAGIC, at))
        start += len(data)
