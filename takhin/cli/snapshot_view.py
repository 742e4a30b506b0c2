"""A snapshot of a partition's producers read whole, for people and tools."""

import struct
from dataclasses import dataclass

from takhin.log.producers import SNAPSHOT_HEADER_SIZE, ProducerBudget, ProducerState, ProducerStates

_PLACE = struct.Struct("<qI")
_PLACE_AT = 24


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """offset: of what lies below it this tells. problem: why none of this can be believed, in words."""

    size_bytes: int
    topic_id: int
    partition: int
    offset: int
    producers: list[ProducerState]
    problem: str | None


def read_snapshot_file(path: str) -> SnapshotFile:
    """Raises OSError."""
    with open(path, "rb") as file:
        return snapshot_of(file.read())


def snapshot_of(data: bytes) -> SnapshotFile:
    """The same, of the file's bytes."""
    if len(data) < SNAPSHOT_HEADER_SIZE:
        return SnapshotFile(len(data), -1, -1, -1, [], "it is cut short" if data else "the file is empty")
    topic_id, partition = _PLACE.unpack_from(data, _PLACE_AT)
    states = ProducerStates.decode(data, topic_id, partition, ProducerBudget(0))
    if states is None:
        return SnapshotFile(len(data), -1, -1, -1, [], "its checksum does not match, or its version is not known")
    return SnapshotFile(len(data), topic_id, partition, states.snapshot_offset, list(states), None)
