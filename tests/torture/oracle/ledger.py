"""The synced ledger: every attempt is on the disk before it is sent, every answer before anything is built on it.

The file holds one JSON object a line, in the order in which things happened; Ledger keeps the same in memory, and reads
a file that is there already. An attempt without an answer counts as unknown.

    attempt   n, producer, first (its first sequence), topic, partition (-1: the broker's choice), acks, digests (one
              for each record), timestamps (where the producer gave any; 0: the broker's clock), state ([id, epoch,
              sequence] of an idempotent producer; such an attempt may be sent, and answered, several times)
    create, delete            n, topic; of create also partitions, configs
    commit    n, group, offsets ([topic, partition, offset] …)
    answer    n, result: "ok" with what the broker answered, "failed" (surely nothing was changed) or "unknown", with
              reason
    saw       what a follower was given: topic, partition, offset of the first, epoch (null: not told), digests
    resumed   how a follower's return was answered: topic, partition, offset, last_epoch, answer ("ok" or a reason),
              divergence
    fault     fault: kill, power, stop (in order), stopping (a kill during that), full
    looked    what a judgement saw: ends ([topic, partition, start, end, durable] …)
"""

import asyncio
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from takhin.v1 import takhin_pb2 as pb

OK, FAILED, UNKNOWN = "ok", "failed", "unknown"
ACCEPTED, WRITTEN, DURABLE = 1, 2, 3
_MARK = b"oracle:"


@dataclass(slots=True)
class Attempt:
    """One request of a producer. position: its place in the ledger's order; answered: that of its answer, or -1."""

    number: int
    position: int
    producer: str
    first: int
    topic: str
    partition: int
    acks: int
    digests: list[str]
    timestamps: list[int] | None = None
    # Of an idempotent producer: id, epoch, sequence.
    state: tuple[int, int, int] | None = None
    result: str = UNKNOWN
    reason: str = ""
    answered: int = -1
    # What the broker answered.
    stored_in: int = -1
    offset: int = -1
    epoch: int = -1
    durability: int = 0
    timestamp: int = 0
    duplicate: bool = False

    @property
    def count(self) -> int:
        return len(self.digests)

    @property
    def end(self) -> int:
        return self.offset + self.count

    def __str__(self) -> str:
        what = f"{self.producer}/{self.first}" + (f" to {self.first + self.count - 1}" if self.count > 1 else "")
        return f"{what} (acks {self.acks}, {self.topic}/{self.partition})"


@dataclass(slots=True)
class TopicChange:
    """A CreateTopic (partitions is not 0) or a DeleteTopic."""

    number: int
    position: int
    topic: str
    partitions: int = 0
    configs: dict[str, str] = field(default_factory=dict)
    result: str = UNKNOWN
    reason: str = ""
    answered: int = -1


@dataclass(slots=True)
class Commit:
    """A CommitOffset. committed: what a refusal because of a higher commit told of it, or -1."""

    number: int
    position: int
    group: str
    offsets: dict[tuple[str, int], int]
    result: str = UNKNOWN
    reason: str = ""
    answered: int = -1
    committed: int = -1


@dataclass(slots=True)
class Saw:
    """Records that a follower was given, with consecutive offsets. epoch: None where the broker did not tell."""

    position: int
    topic: str
    partition: int
    offset: int
    epoch: int | None
    digests: list[str]


@dataclass(slots=True)
class Resumed:
    """A follower came back to `offset`, its last record being of last_epoch. answer: "ok" or a refusal's reason."""

    position: int
    topic: str
    partition: int
    offset: int
    last_epoch: int | None
    answer: str
    divergence: int = -1
    log_start: int = -1


class Ledger:
    """All that happened, in memory and in the file at `path` (none: in memory only).

    note() takes entries, sync() and synced() return when all noted entries are on the disk; send() is both.
    """

    def __init__(self, path: Path | None = None):
        self.attempts: dict[int, Attempt] = {}
        self.topics: dict[int, TopicChange] = {}
        self.commits: dict[int, Commit] = {}
        self.saw: list[Saw] = []
        self.resumed: list[Resumed] = []
        self.faults: list[tuple[int, str]] = []
        # (position, topic, partition, start, end, durable)
        self.looked: list[tuple[int, str, int, int, int, int]] = []
        self.position = 0
        self.path = path
        self._number = 0
        self._buffer: list[bytes] = []
        self._noted = self._on_disk = 0
        self._syncing: asyncio.Task[None] | None = None
        self._fd = -1
        if path is not None:
            if path.exists():
                for line in path.read_bytes().splitlines():
                    self._take(json.loads(line))
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def close(self) -> None:
        if self._fd >= 0:
            self.sync()
            os.close(self._fd)
            self._fd = -1

    def next_number(self) -> int:
        """The number of a new attempt, of whatever kind."""
        self._number += 1
        return self._number

    def note(self, *entries: dict[str, Any]) -> None:
        """Take entries; they reach the disk with the next sync."""
        for entry in entries:
            self._take(entry)
            if self._fd >= 0:
                self._buffer.append(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        self._noted += len(entries)

    def answer(self, number: int, result: str, **told: Any) -> None:
        """What came of attempt `number`."""
        self.note({"kind": "answer", "n": number, "result": result, **told})

    def fault(self, fault: str) -> None:
        """Something happened to the broker: kill, power, stop, stopping, full; "none" is not noted."""
        if fault != "none":
            self.note({"kind": "fault", "fault": fault})

    def sync(self) -> None:
        """Return when all that was noted is on the disk."""
        self._write(self._take_buffer())
        self._on_disk = self._noted

    async def send(self, *entries: dict[str, Any]) -> None:
        """Note entries, and return when they are on the disk."""
        self.note(*entries)
        await self.synced()

    async def synced(self) -> None:
        """As sync(); all who wait at a time share one."""
        wanted = self._noted
        while self._on_disk < wanted:
            if self._syncing is None:
                self._syncing = asyncio.ensure_future(self._sync())
            await asyncio.shield(self._syncing)

    async def _sync(self) -> None:
        target, data = self._noted, self._take_buffer()
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._write, data)
            self._on_disk = max(self._on_disk, target)
        finally:
            self._syncing = None

    def _take_buffer(self) -> bytes:
        data = b"".join(self._buffer)
        self._buffer.clear()
        return data

    def _write(self, data: bytes) -> None:
        if self._fd >= 0 and data:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view):]
            os.fdatasync(self._fd)

    def _take(self, entry: dict[str, Any]) -> None:
        self.position += 1
        at = self.position
        number = entry.get("n", 0)
        self._number = max(self._number, number)
        match entry["kind"]:
            case "attempt":
                self.attempts[number] = Attempt(
                    number, at, entry["producer"], entry["first"], entry["topic"], entry["partition"], entry["acks"],
                    entry["digests"], entry.get("timestamps"), tuple(entry["state"]) if "state" in entry else None,
                )
            case "create":
                self.topics[number] = TopicChange(number, at, entry["topic"], entry["partitions"], entry["configs"])
            case "delete":
                self.topics[number] = TopicChange(number, at, entry["topic"])
            case "commit":
                offsets = {(topic, partition): offset for topic, partition, offset in entry["offsets"]}
                self.commits[number] = Commit(number, at, entry["group"], offsets)
            case "answer":
                self._take_answer(at, number, entry)
            case "saw":
                self.saw.append(Saw(
                    at, entry["topic"], entry["partition"], entry["offset"], entry["epoch"], entry["digests"]))
            case "resumed":
                told = {name: entry[name] for name in ("divergence", "log_start") if name in entry}
                self.resumed.append(Resumed(
                    at, entry["topic"], entry["partition"], entry["offset"], entry["last_epoch"], entry["answer"],
                    **told))
            case "fault":
                self.faults.append((at, entry["fault"]))
            case "looked":
                self.looked += [(at, *row) for row in entry["ends"]]
            case other:
                raise ValueError(f"a ledger has no {other!r}")

    def _take_answer(self, at: int, number: int, entry: dict[str, Any]) -> None:
        answered: Any = self.attempts.get(number) or self.topics.get(number) or self.commits[number]
        answered.answered = at
        answered.result = entry["result"]
        answered.reason = entry.get("reason", "")
        for name in ("stored_in", "offset", "epoch", "durability", "timestamp", "committed", "duplicate"):
            if name in entry:
                setattr(answered, name, entry[name])


def attempt_entry(
    number: int, producer: str, first: int, topic: str, partition: int, acks: int, records: Iterable[pb.Record]
) -> dict[str, Any]:
    """The ledger's entry for a produce request with these records."""
    made = list(records)
    entry: dict[str, Any] = {
        "kind": "attempt", "n": number, "producer": producer, "first": first, "topic": topic, "partition": partition,
        "acks": acks, "digests": [digest(record) for record in made],
    }
    if any(record.timestamp for record in made):
        entry["timestamps"] = [record.timestamp for record in made]
    return entry


def digest(record: pb.Record) -> str:
    """Of what the producer decides: key, value, headers. Absent and empty differ."""
    made = hashlib.blake2b(digest_size=8)

    def take(data: bytes | None) -> None:
        made.update(b"-" if data is None else b"%d:" % len(data) + data)

    take(record.key if record.HasField("key") else None)
    take(record.value if record.HasField("value") else None)
    for header in record.headers:
        take(header.key.encode())
        take(header.value)
    return made.hexdigest()


def mark(producer: str, sequence: int) -> bytes:
    """What a record's key, or the beginning of its value, says of where it is from."""
    return b"%s%s:%d;" % (_MARK, producer.encode(), sequence)


def origin(record: pb.Record) -> tuple[str, int] | None:
    """(producer, sequence) of a record that bears a mark."""
    for data in (record.key, record.value[:100]):
        if data.startswith(_MARK):
            words = data.split(b";", 1)[0].split(b":")
            if len(words) == 3 and words[2].isdigit():
                return words[1].decode(errors="replace"), int(words[2])
    return None
