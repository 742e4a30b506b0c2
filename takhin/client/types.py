"""What the client's calls give: small frozen objects."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


# Of a record: a mapping, or pairs, which may repeat a name.
Headers = Mapping[str, bytes] | Iterable[tuple[str, bytes]]
# Of key, value, headers and timestamp_ms: as messages.encode_record.
Encode = Callable[[bytes | None, bytes | None, Headers | None, int], bytes]


class TopicPartition(NamedTuple):
    topic: str
    partition: int


# The next offset to read, by (topic, partition).
NextOffsets = Mapping[tuple[str, int], int] | Mapping[TopicPartition, int]


@dataclass(frozen=True, slots=True)
class Partition:
    """end_offset: the next one to be read. durable_offset: everything below is on the broker's disk."""

    partition: int
    start_offset: int
    end_offset: int
    durable_offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Topic:
    """configs: what was set on the topic; the broker's defaults are not repeated. created_ms: since 1970."""

    name: str
    configs: dict[str, str]
    size_bytes: int
    created_ms: int
    partitions: tuple[Partition, ...]


@dataclass(frozen=True, slots=True)
class Offsets:
    """Of a partition. for_time: the first offset with the timestamp asked for or a later one; None: there is none, or
    no time was given.
    """

    start: int
    end: int
    durable: int
    for_time: int | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """state: Empty, PreparingRebalance, Stable or Dead."""

    group: str
    state: str
    member_count: int


@dataclass(frozen=True, slots=True)
class GroupMember:
    """assignment: the partitions that it has, with the committed offset of each, None where there is none."""

    member_id: str
    client_id: str
    host: str
    assignment: dict[TopicPartition, int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GroupDescription:
    group: str
    state: str
    members: tuple[GroupMember, ...]


@dataclass(frozen=True, slots=True)
class GroupOffset:
    """committed: the next offset to read; None: the group has committed none. lag: records up to the end.
    committed_ms: when, since 1970; None without a commit.
    """

    topic: str
    partition: int
    committed: int | None
    start: int
    end: int
    lag: int
    committed_ms: int | None


@dataclass(frozen=True, slots=True)
class OffsetReset:
    """old: None where nothing was committed."""

    topic: str
    partition: int
    old: int | None
    new: int


@dataclass(frozen=True, slots=True)
class Health:
    status: str
    version: str
    uptime_s: int
