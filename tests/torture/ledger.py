"""What was sent and what was answered, and whether a log that came back keeps the promises made.

A ledger is told of by marks, lines of JSON that stand between a recording's operations; so it knows what had been
answered at any moment of it. Values tell by themselves where they belong.
"""

import json
import pickle
from dataclasses import dataclass, field
from typing import Any

from tests.torture.inprocess import PartitionView, View

Place = tuple[int, int]  # a topic's incarnation, a partition


def value_of(incarnation: int, partition: int, sequence: int, size_bytes: int) -> bytes:
    """A record's value: nothing else ever has the same."""
    head = b"%d.%d.%d.%d|" % (incarnation, partition, sequence, size_bytes)
    filler = b"%08x" % (sequence * 2654435761 & 0xFFFFFFFF)
    return head + (filler * (size_bytes // 8 + 1))[:size_bytes]


def sequence_of(value: bytes, place: Place) -> int | None:
    """The sequence of a value that was made for that place; None: it was not."""
    try:
        incarnation, partition, sequence, size_bytes = map(int, value.partition(b"|")[0].split(b"."))
    except ValueError:
        return None
    whole = (incarnation, partition) == place and value == value_of(incarnation, partition, sequence, size_bytes)
    return sequence if whole else None


@dataclass(slots=True)
class TopicEntry:
    """state: creating, created, deleting, deleted."""

    name: str
    partitions: int
    state: str = "creating"
    id: int | None = None


@dataclass(slots=True)
class LogEntry:
    """at: sequence by offset, as last answered. All below `durable` has to be there for ever, but what lies below
    `start`, which retention has moved there; all below `written` as long as the power stays on. by_epoch: sequence by
    (epoch, offset)."""

    at: dict[int, int] = field(default_factory=dict)
    by_epoch: dict[tuple[int, int], int] = field(default_factory=dict)
    durable: int = 0
    written: int = 0
    start: int = 0


@dataclass(slots=True)
class TransactionEntry:
    """appends: place, first sequence, records. offsets: of a group that only transactions commit for, each offset of a
    place for once: group, place, offset."""

    appends: list[tuple[Place, int, int]]
    offsets: list[tuple[str, Place, int]]


@dataclass(slots=True)
class Ledger:
    """sent: place and records by the first sequence of a request; sequences: all of a place's. commits: by group and
    place, the offset answered last; asked: all asked for. transactions: by their number, all that were begun; of each
    all is there, or nothing. highest_epoch: in which something was answered."""

    topics: dict[int, TopicEntry] = field(default_factory=dict)
    logs: dict[Place, LogEntry] = field(default_factory=dict)
    sent: dict[int, tuple[Place, int]] = field(default_factory=dict)
    sequences: dict[Place, set[int]] = field(default_factory=dict)
    commits: dict[tuple[str, Place], int] = field(default_factory=dict)
    asked: dict[tuple[str, Place], set[int]] = field(default_factory=dict)
    transactions: dict[int, TransactionEntry] = field(default_factory=dict)
    highest_epoch: int = 0
    stopping: bool = False
    entries: int = 0

    def copy(self) -> "Ledger":
        ledger: Ledger = pickle.loads(pickle.dumps(self))
        return ledger

    def log(self, place: Place) -> LogEntry:
        return self.logs.setdefault(place, LogEntry())

    def note(self, text: str) -> None:
        """A mark has been reached."""
        what, *values = json.loads(text)
        getattr(self, f"_{what}")(*values)
        self.entries += 1

    # Marks, in the order of a run

    def _starting(self) -> None:
        """A process begins, or begins anew."""

    def _started(self, epoch: int, topics: list[str], logs: list[list[Any]]) -> None:
        """The broker serves. logs: [incarnation, partition, start, end, [[offset, epoch, sequence] …]]."""
        self.highest_epoch = max(self.highest_epoch, epoch)
        self.stopping = False
        for entry in self.topics.values():
            if entry.state == "deleting" and entry.name not in topics:
                entry.state = "deleted"
            elif entry.state == "creating" and entry.name in topics:
                entry.state = "created"
            elif entry.state == "creating":
                entry.state = "deleted"
        for incarnation, partition, start, end, records in logs:
            log = self.log((incarnation, partition))
            log.start, log.durable, log.written = start, end, end
            log.at = {offset: sequence for offset, _, sequence in records}
            for offset, of_epoch, sequence in records:
                log.by_epoch[of_epoch, offset] = sequence

    def _create(self, incarnation: int, name: str, partitions: int) -> None:
        self.topics[incarnation] = TopicEntry(name, partitions)

    def _created(self, incarnation: int, topic_id: int) -> None:
        self.topics[incarnation].state = "created"
        self.topics[incarnation].id = topic_id

    def _delete(self, incarnation: int) -> None:
        self.topics[incarnation].state = "deleting"

    def _deleted(self, incarnation: int) -> None:
        self.topics[incarnation].state = "deleted"

    def _send(self, incarnation: int, partition: int, sequence: int, count: int) -> None:
        self.sent[sequence] = ((incarnation, partition), count)
        self.sequences.setdefault((incarnation, partition), set()).update(range(sequence, sequence + count))

    def _answer(self, sequence: int, offset: int, acks: int, epoch: int) -> None:
        place, count = self.sent[sequence]
        log = self.log(place)
        for number in range(count):
            log.at[offset + number] = sequence + number
            log.by_epoch[epoch, offset + number] = sequence + number
        if acks == -1:
            log.durable = max(log.durable, offset + count)
        if acks:
            log.written = max(log.written, offset + count)
        self.highest_epoch = max(self.highest_epoch, epoch)

    def _commit(self, group: str, offsets: list[tuple[int, int, int]]) -> None:
        for incarnation, partition, offset in offsets:
            self.asked.setdefault((group, (incarnation, partition)), set()).add(offset)

    def _committed(self, group: str, offsets: list[tuple[int, int, int]]) -> None:
        for incarnation, partition, offset in offsets:
            place = (incarnation, partition)
            self.commits[group, place] = max(self.commits.get((group, place), 0), offset)
            self.log(place).durable = max(self.log(place).durable, offset)

    def _transact(
        self, number: int, appends: list[tuple[int, int, int, int]], group: str, offsets: list[tuple[int, int, int]]
    ) -> None:
        """appends: (incarnation, partition, first sequence, records); offsets: (incarnation, partition, offset)."""
        for incarnation, partition, sequence, count in appends:
            self._send(incarnation, partition, sequence, count)
        self._commit(group, offsets)
        self.transactions[number] = TransactionEntry(
            [((incarnation, partition), sequence, count) for incarnation, partition, sequence, count in appends],
            [(group, (incarnation, partition), offset) for incarnation, partition, offset in offsets],
        )

    def _transacted(self, number: int, offsets: list[int], epochs: list[int]) -> None:
        """The offsets that its appends were answered with, and the epochs."""
        entry = self.transactions[number]
        for (_, sequence, _), offset, epoch in zip(entry.appends, offsets, epochs, strict=True):
            self._answer(sequence, offset, -1, epoch)
        for group, place, offset in entry.offsets:
            self._committed(group, [(*place, offset)])

    def _retained(self, starts: list[tuple[int, int, int]]) -> None:
        for incarnation, partition, start in starts:
            self.log((incarnation, partition)).start = start

    def _stopping(self) -> None:
        self.stopping = True

    # The judgement

    def incarnation_of(self, name: str, topic_id: int) -> int | None:
        """Whose topic that is; the newest one if its creation was not answered."""
        for incarnation, entry in reversed(self.topics.items()):
            if entry.name == name and entry.id in (topic_id, None):
                return incarnation
        return None

    def judge(self, view: View, *, power_was_cut: bool = True) -> list[str]:
        """What in the view, of a broker that was started again, breaks a promise, in words."""
        broken: list[str] = []
        places: dict[tuple[int, int], Place] = {}  # by the topic's id and the partition
        for name, (topic_id, partitions) in view.topics.items():
            incarnation = self.incarnation_of(name, topic_id)
            entry = self.topics.get(incarnation) if incarnation is not None else None
            if incarnation is None or entry is None:
                broken.append(f"topic {name} with id {topic_id} was never made")
                continue
            if entry.state == "deleted":
                broken.append(f"topic {name} was deleted and is there again")
            if entry.partitions != partitions:
                broken.append(f"topic {name} has {partitions} partitions, not {entry.partitions}")
            for number in range(partitions):
                places[topic_id, number] = (incarnation, number)
                found = view.partitions[name, number]
                of_log = self._judge_log((incarnation, number), found, power_was_cut)
                broken += [f"{name}/{number}: {each}" for each in of_log]
        for entry in self.topics.values():
            if entry.state == "created" and entry.name not in view.topics:
                broken.append(f"topic {entry.name} was created and is gone")
        if view.epoch < self.highest_epoch or (view.epoch == self.highest_epoch and not self.stopping):
            broken.append(f"epoch {view.epoch} begins, and there were answers in {self.highest_epoch}")
        if view.strays:
            broken.append(f"directories of no topic are left: {view.strays}")
        return broken + self._judge_commits(view, places) + self._judge_transactions(view, places)

    def _judge_transactions(self, view: View, places: dict[tuple[int, int], Place]) -> list[str]:
        """All or nothing. Of a log whose start has moved nobody knows what was there."""
        broken: list[str] = []
        ids = {place: key for key, place in places.items()}
        there: dict[Place, set[int]] = {}
        for name, (topic_id, partitions) in view.topics.items():
            for number in range(partitions):
                place, found = places.get((topic_id, number)), view.partitions[name, number]
                if place is not None and found.start == 0:
                    of_place = (sequence_of(value, place) for _, _, value in found.records)
                    there[place] = {sequence for sequence in of_place if sequence is not None}
        for number, entry in self.transactions.items():
            parts: dict[str, bool] = {}
            for place, sequence, count in entry.appends:
                if place in there:
                    wanted = set(range(sequence, sequence + count))
                    if 0 < len(wanted & there[place]) < count:
                        broken.append(f"of transaction {number} a part of a batch is in {place}")
                    parts[f"records of {place}"] = wanted <= there[place]
            for group, place, offset in entry.offsets:
                # No other one commits just this. Behind a higher one it can't be told.
                stored = view.commits.get(group, {}).get(ids[place], -1) if place in ids else offset + 1
                if stored <= offset:
                    parts[f"offsets of {place}"] = stored == offset
            if len(set(parts.values())) > 1:
                broken.append(f"of transaction {number} is there {[part for part in parts if parts[part]]}, not all of "
                              f"{list(parts)}")
        return broken

    def _judge_log(self, place: Place, found: PartitionView, power_was_cut: bool) -> list[str]:
        broken: list[str] = []
        log = self.logs.get(place, LogEntry())
        there = log.durable if power_was_cut else max(log.durable, log.written)
        if found.failure is not None:
            broken.append(f"takes no appends: {found.failure}")
        if found.end < there:
            broken.append(f"ends at {found.end}, and was {'durable' if power_was_cut else 'written'} up to {there}")
        if found.start < log.start:
            broken.append(f"begins at {found.start}, and its start was moved to {log.start}")
        if found.durable != found.end:
            broken.append(f"ends at {found.end}, of which {found.durable} is durable after a start")
        for producer in found.known.keys() | found.batches.keys():
            # What retention has taken may be known still.
            known = [batch for batch in found.known.get(producer, []) if batch[2] >= found.start]
            if known != found.batches.get(producer, [])[-5:]:
                told = found.batches.get(producer, [])[-5:]
                broken.append(f"knows {known} of producer {producer}, and the log has {told}")
        if [offset for offset, _, _ in found.records] != list(range(found.start, found.end)):
            broken.append(f"has a gap: {[offset for offset, _, _ in found.records][:50]} from {found.start}")
        known = self.sequences.get(place, set())
        # Transactions wait for their turn.
        out_of_turn = {
            each for entry in self.transactions.values() for where, sequence, count in entry.appends if where == place
            for each in range(sequence, sequence + count)
        }
        before = -1
        for offset, epoch, value in found.records:
            sequence = sequence_of(value, place)
            if sequence is None or sequence not in known:
                broken.append(f"{value[:60]!r} at offset {offset} was never sent there")
                continue
            if sequence not in out_of_turn:
                if sequence <= before:
                    broken.append(f"{sequence} stands behind {before} at offset {offset}")
                before = sequence
            if offset < there and log.at.get(offset, sequence) != sequence:
                broken.append(f"{sequence} is at offset {offset}, where {log.at[offset]} was")
            if log.by_epoch.get((epoch, offset), sequence) != sequence:
                broken.append(f"{sequence} is at {offset} in epoch {epoch}, as was {log.by_epoch[epoch, offset]}")
        return broken

    def _judge_commits(self, view: View, places: dict[tuple[int, int], Place]) -> list[str]:
        broken: list[str] = []
        for group, offsets in view.commits.items():
            for key, offset in offsets.items():
                place = places.get(key)
                if place is None:
                    broken.append(f"group {group} has a commit for topic id {key[0]}, which is gone")
                    continue
                if offset not in self.asked.get((group, place), ()):
                    broken.append(f"group {group} stands at {offset} of {place}, which nobody asked for")
                end = view.partitions[self.topics[place[0]].name, place[1]].end
                if offset > end:
                    broken.append(f"group {group} stands at {offset} of {place}, which ends at {end}")
        ids = {place: key for key, place in places.items()}
        for (group, place), offset in self.commits.items():
            if place not in ids:
                continue
            stored = view.commits.get(group, {}).get(ids[place])
            if stored is None or stored < offset:
                broken.append(f"group {group} committed {offset} of {place} and stands at {stored}")
        return broken
