"""A group's offsets as a part of a journal entry: what a transaction commits together with its appends."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from takhin.log.journal import JournalError

_HEAD = struct.Struct("<qII")
_OFFSET = struct.Struct("<qIq")


@dataclass(frozen=True, slots=True)
class TransactionOffsets:
    """The offsets that a transaction commits for a group: (topic id, partition, next offset to read)."""

    number: int
    group_id: str
    committed_ms: int
    offsets: tuple[tuple[int, int, int], ...]


def encode_offsets(group_id: str, committed_ms: int, offsets: Iterable[tuple[int, int, int]]) -> bytes:
    """As the journal holds them; decode_offsets() reads it."""
    encoded = group_id.encode()
    rows = list(offsets)
    return _HEAD.pack(committed_ms, len(rows), len(encoded)) + encoded + b"".join(
        _OFFSET.pack(*row) for row in rows
    )


def decode_offsets(number: int, data: bytes) -> TransactionOffsets:
    """What encode_offsets() made. Raises JournalError."""
    try:
        committed_ms, count, group_bytes = _HEAD.unpack_from(data)
        rows_at = _HEAD.size + group_bytes
        if len(data) != rows_at + count * _OFFSET.size:
            raise JournalError("the offsets of a transaction are not as long as they say")
        group_id = data[_HEAD.size : rows_at].decode()
    except (struct.error, UnicodeDecodeError) as problem:
        raise JournalError(f"the offsets of a transaction can't be read: {problem}") from None
    return TransactionOffsets(number, group_id, committed_ms, tuple(_OFFSET.iter_unpack(data[rows_at:])))
