"""What members are told, as messages that every client takes."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from takhin.broker.assignors import GroupPartition
from takhin.v1 import takhin_pb2 as pb

# Of one message about partitions. Clients take 4 MiB unless told otherwise.
MAX_MESSAGE_BYTES = 2 * 1024 * 1024
# What a partition takes beside its topic's name at most: tags, lengths, its number, an offset.
_PLACE_BYTES = 32
_RECORDS_TAG = b"\x22"
_CREDIT_TAG = b"\x50"
Named = TypeVar("Named", pb.Revoking, pb.Lost, pb.CaughtUp)


def assigned(
    generation: int, added: Iterable[tuple[GroupPartition, int]], partitions: Sequence[GroupPartition]
) -> Iterator[pb.Assigned]:
    """added: with the offset at which each begins; partitions: all that the member has. In as many messages as it
    takes, each but the last with `more`."""
    message, left_bytes = pb.Assigned(generation=generation, more=True), MAX_MESSAGE_BYTES
    for key, offset in [*added, *((each, None) for each in partitions)]:
        size_bytes = _size_bytes(key)
        if size_bytes > left_bytes:
            yield message
            message, left_bytes = pb.Assigned(generation=generation, more=True), MAX_MESSAGE_BYTES
        left_bytes -= size_bytes
        if offset is not None:
            message.added.add(topic=key.topic, partition=key.partition, offset=offset)
        else:
            message.partitions.add(topic=key.topic, partition=key.partition)
    message.more = False
    yield message


def naming(empty: Named, keys: Iterable[GroupPartition]) -> Iterator[Named]:
    """As many copies of `empty` as it takes, with the partitions; at least one."""
    message, left_bytes = type(empty)(), MAX_MESSAGE_BYTES
    message.CopyFrom(empty)
    for key in keys:
        size_bytes = _size_bytes(key)
        if size_bytes > left_bytes:
            yield message
            message, left_bytes = type(empty)(), MAX_MESSAGE_BYTES
            message.CopyFrom(empty)
        left_bytes -= size_bytes
        message.partitions.add(topic=key.topic, partition=key.partition)
    yield message


def records(response: bytes) -> bytes:
    """An encoded ConsumeMessagesResponse as a SubscribeResponse, which says how much credit it takes."""
    size = _varint(len(response))
    return b"".join((_CREDIT_TAG, size, _RECORDS_TAG, size, response))


def _size_bytes(key: GroupPartition) -> int:
    # Topics' names are ASCII.
    return len(key.topic) + _PLACE_BYTES


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
