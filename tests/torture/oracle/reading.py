"""All that a broker holds, read back as any client reads it."""

import bisect
import random
from dataclasses import dataclass, field
from typing import Any

import grpc

from takhin.v1 import takhin_pb2 as pb
from tests.torture.oracle.client import DEADLINE_S, EARLIEST, OPTIONS, Stub, refusal_of
from tests.torture.oracle.ledger import Ledger, digest, origin

# Beyond what a batch may have, so that each comes whole and with its header.
_MAX_BYTES = 64 << 20
_TRIES = 100
_PROBES = 2


@dataclass(slots=True)
class Stored:
    """A record of the log. origin: (producer, sequence), None for one that bears no mark. epoch None: not told."""

    offset: int
    epoch: int | None
    origin: tuple[str, int] | None
    digest: str
    timestamp: int
    partition: int


@dataclass
class PartitionLog:
    """One partition from its first record on. durable: D, as the broker told it."""

    start: int
    end: int
    durable: int
    records: list[Stored] = field(default_factory=list)

    def at(self, offset: int) -> Stored | None:
        """The record at an offset; None when it is not there."""
        position = bisect.bisect_left(self.records, offset, key=lambda record: record.offset)
        if position < len(self.records) and self.records[position].offset == offset:
            return self.records[position]
        return None


@dataclass
class Contents:
    """What was read: partitions by topic and number, committed offsets (0: none) by (group, topic, partition).

    problems: what went wrong while it was read, each a broken promise of its own.
    """

    topics: dict[str, dict[int, PartitionLog]] = field(default_factory=dict)
    committed: dict[tuple[str, str, int], int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def record_count(self) -> int:
        return sum(len(log.records) for partitions in self.topics.values() for log in partitions.values())

    def looked(self) -> dict[str, Any]:
        """For the ledger: what was seen here may be asked for again."""
        ends = [
            [topic, number, log.start, log.end, log.durable]
            for topic, partitions in self.topics.items() for number, log in partitions.items()
        ]
        return {"kind": "looked", "ends": ends}


def read_all(ledger: Ledger, address: str) -> Contents:
    """Everything, from a broker that nobody uses meanwhile. Raises grpc.RpcError when it can't be reached."""
    contents = Contents()
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        stub = Stub(channel)
        for info in stub.DescribeTopics(pb.DescribeTopicsRequest(), timeout=DEADLINE_S).topics:
            logs = contents.topics[info.name] = {}
            for number in range(info.num_partitions):
                try:
                    logs[number] = _read_partition(stub, info.name, number, contents.problems)
                except grpc.RpcError as problem:
                    refusal = refusal_of(problem)
                    if not refusal.reason:
                        raise
                    contents.problems.append(f"{info.name}/{number} can't be read: {refusal}")
        names = set(stub.ListTopics(pb.ListTopicsRequest(), timeout=DEADLINE_S).topics)
        if names != set(contents.topics):
            contents.problems.append(f"ListTopics and DescribeTopics differ: {names ^ set(contents.topics)}")
        _read_committed(stub, ledger, contents)
    return contents


def _read_partition(stub: Stub, topic: str, number: int, problems: list[str]) -> PartitionLog:
    where = pb.GetPartitionOffsetsRequest(topic=topic, partition=number)
    for _ in range(_TRIES):
        before = stub.GetPartitionOffsets(where, timeout=DEADLINE_S)
        try:
            records = _read_from(stub, topic, number, EARLIEST, _MAX_BYTES)
        except grpc.RpcError as problem:
            # Retention took what was to be read next: begin again at the new start.
            if refusal_of(problem).reason != "OFFSET_OUT_OF_RANGE":
                raise
            continue
        after = stub.GetPartitionOffsets(where, timeout=DEADLINE_S)
        start = records[0].offset if records else after.beginning_offset
        log = PartitionLog(start, after.end_offset, after.durable_offset, records)
        if not before.beginning_offset <= start <= after.beginning_offset:
            problems.append(
                f"{topic}/{number} begins at {start}, though its start is told as {before.beginning_offset}, then "
                f"{after.beginning_offset}"
            )
        if before.end_offset != after.end_offset:
            problems.append(f"{topic}/{number} went from {before.end_offset} to {after.end_offset}: it was in use")
        _probe(stub, topic, number, log, problems)
        return log
    problems.append(f"{topic}/{number} can't be read to its end: retention always overtakes")
    return PartitionLog(0, 0, 0)


def _read_from(stub: Stub, topic: str, number: int, offset: int, max_bytes: int, **more: Any) -> list[Stored]:
    request = pb.ConsumeMessagesRequest(
        topic=topic, partition=number, offset=offset, max_bytes=max_bytes, until_end=True, **more)
    records: list[Stored] = []
    for response in stub.ConsumeMessages(request, timeout=DEADLINE_S):
        records += stored_records(response)
    return records


def stored_records(response: pb.ConsumeMessagesResponse) -> list[Stored]:
    """The records of a response, each with the epoch of its batch, where that came with its header."""
    epochs = {
        offset: batch.epoch for batch in response.batches for offset in range(batch.base_offset, batch.next_offset)
    }
    return [
        Stored(
            record.offset, epochs.get(record.offset), origin(record), digest(record), record.timestamp,
            record.partition,
        )
        for record in response.records
    ]


def _probe(stub: Stub, topic: str, number: int, log: PartitionLog, problems: list[str]) -> None:
    """Reads that begin in the midst give what the one from the start gave."""
    if not log.records:
        return
    rng = random.Random(f"{topic}/{number}/{log.end}")
    for _ in range(_PROBES):
        offset = rng.randrange(log.start, log.end + 1)
        wanted = [record.digest for record in log.records[offset - log.start :][:10]]
        try:
            found = _read_from(stub, topic, number, offset, rng.choice((1, 1000, 100_000)), max_records=10)
        except grpc.RpcError as problem:
            if refusal_of(problem).reason != "OFFSET_OUT_OF_RANGE":
                raise
            continue
        if [record.digest for record in found] != wanted:
            problems.append(
                f"{topic}/{number} read from offset {offset} gives {[each.offset for each in found]}, which is not "
                "what a read from the start gave there"
            )


def _read_committed(stub: Stub, ledger: Ledger, contents: Contents) -> None:
    """Where each group stands that was to commit something; 0 without a commit."""
    asked: dict[str, set[tuple[str, int]]] = {}
    for commit in ledger.commits.values():
        asked.setdefault(commit.group, set()).update(key for key in commit.offsets if key[0] in contents.topics)
    for group, keys in sorted(asked.items()):
        if not keys:
            continue  # without names the question would be another one
        named = [pb.TopicPartition(topic=topic, partition=number) for topic, number in sorted(keys)]
        try:
            answer = stub.FetchOffsets(
                pb.FetchOffsetsRequest(group_id=group, partitions=named), timeout=DEADLINE_S)
        except grpc.RpcError as problem:
            contents.problems.append(f"what {group} committed can't be asked for: {refusal_of(problem)}")
            continue
        for each in answer.offsets:
            contents.committed[group, each.topic, each.partition] = each.committed_offset
