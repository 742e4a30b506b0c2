"""What a broker is put to while it is recorded: topics, records at all ack levels, rolls, commits, retention, restarts.

Every request and answer leaves a mark in the recording; a Ledger reads them.
"""

import asyncio
import json
import random
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from takhin.errors import Reason, TakhinError
from takhin.v1 import takhin_pb2 as pb
from tests.torture.inprocess import InProcess, View
from tests.torture.ledger import Ledger, sequence_of, value_of
from tests.torture.twin import Twin

# What a run may use of sequences and incarnations; the next run begins behind it.
SEQUENCES_A_RUN = 1_000_000
# The group for which transactions commit, each offset once.
TRANSACTIONS = "transactions"
INCARNATIONS_A_RUN = 1_000
# Requests under way at once.
_MOST_TASKS = 24


def mark(twin: Twin, *what: object) -> None:
    """Leave a mark that a Ledger reads."""
    twin.mark(json.dumps(what))


def mark_started(twin: Twin, view: View, ledger: Ledger) -> None:
    """Tell what the broker serves after its start: all of it is durable, but where the start itself has failed."""
    logs = []
    for (name, number), found in view.partitions.items():
        incarnation = ledger.incarnation_of(name, view.topics[name][0])
        if incarnation is not None and found.failure is None:
            records = [
                (offset, epoch, sequence_of(value, (incarnation, number))) for offset, epoch, value in found.records
            ]
            logs.append((incarnation, number, found.start, found.end, records))
    mark(twin, "started", view.epoch, list(view.topics), logs)


class Workload:
    """One run of a broker, from its start to what ends it. run_number: from 0, of those on this directory."""

    def __init__(self, twin: Twin, data_dir: Path, ledger: Ledger, rng: random.Random, run_number: int):
        self._twin = twin
        self._ledger = ledger
        self._rng = rng
        self._sequence = run_number * SEQUENCES_A_RUN
        self._incarnation = run_number * INCARNATIONS_A_RUN
        self._engine = InProcess(data_dir, segment_bytes=rng.choice((1024, 3000, 12_000)), flush_ms=rng.choice((-1, 3)))
        # By incarnation: name and number of partitions, of topics that are there.
        self._topics: dict[int, tuple[str, int]] = {}
        self._committed: dict[tuple[str, int, int], int] = {}
        self._free_names: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.problems: list[str] = []
        self._producers: list[int] = []
        # By producer, incarnation and partition.
        self._next_sequence: dict[tuple[int, int, int], int] = {}

    async def run(self, steps: int, *, stop: bool) -> None:
        await self._engine.start()
        view = await self._engine.view()
        mark_started(self._twin, view, self._ledger)
        for name, (topic_id, partitions) in view.topics.items():
            incarnation = self._ledger.incarnation_of(name, topic_id)
            assert incarnation is not None
            self._topics[incarnation] = (name, partitions)
        for (group, place), offset in self._ledger.commits.items():
            self._committed[group, *place] = offset
        broker = self._engine.broker
        for _ in range(self._rng.choice((0, 1, 3))):
            self._producers.append((await broker.producers.init("", broker.topics.partitions()))[0])
        for (group, place), asked in self._ledger.asked.items():
            if group == TRANSACTIONS:
                self._committed[group, *place] = max(asked)
        for _ in range(steps):
            self._begin(self._some())
            while len(self._tasks) >= _MOST_TASKS:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._rng.random() < 0.5:
                await asyncio.sleep(0)
            elif self._rng.random() < 0.3 and self._tasks:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        if stop:
            while self._tasks:
                await asyncio.wait(self._tasks)
            mark(self._twin, "stopping")
            await self._engine.stop()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            self.problems.append(f"{type(problem).__name__}: {problem}")

    def _some(self) -> Coroutine[Any, Any, None]:
        rng = self._rng
        if not self._topics or (len(self._topics) < 5 and rng.random() < 0.04):
            return self._create()
        kinds = ("produce", "burst", "commit", "transact", "retain", "delete")
        what = rng.choices(kinds, (60, 6, 12, 10, 5, 1.5))[0]
        incarnation, (_, partitions) = rng.choice(list(self._topics.items()))
        match what:
            case "produce":
                return self._produce(incarnation, rng.randrange(partitions), rng.choices((0, 1, -1), (1, 2, 3))[0])
            case "burst":
                return self._burst(incarnation, partitions)
            case "commit":
                return self._commit()
            case "transact":
                return self._transact()
            case "retain":
                return self._retain()
            case _:
                return self._delete(incarnation)

    # Requests

    async def _create(self) -> None:
        rng = self._rng
        self._incarnation += 1
        incarnation = self._incarnation
        reuse = self._free_names and rng.random() < 0.5
        name = self._free_names.pop() if reuse else f"t{incarnation}"
        partitions = rng.choice((1, 1, 3, 6, 24))
        configs = {"segment_bytes": str(rng.choice((1024, 2500, 9000)))} if rng.random() < 0.7 else {}
        if rng.random() < 0.5:
            configs["retention_bytes"] = str(rng.choice((0, 2000, 6000)))
        mark(self._twin, "create", incarnation, name, partitions)
        topic_id = await self._engine.create_topic(name, partitions, **configs)
        mark(self._twin, "created", incarnation, topic_id)
        self._topics[incarnation] = (name, partitions)

    async def _delete(self, incarnation: int) -> None:
        if incarnation not in self._topics:
            # Another deletion chosen in the same tick came first.
            return
        name, _ = self._topics.pop(incarnation)
        mark(self._twin, "delete", incarnation)
        await self._engine.delete_topic(name)
        mark(self._twin, "deleted", incarnation)
        self._free_names.append(name)

    async def _produce(self, incarnation: int, partition: int, acks: int) -> None:
        rng = self._rng
        if incarnation not in self._topics:
            return
        name = self._topics[incarnation][0]
        count = 1 if rng.random() < 0.6 else rng.randint(2, 8)
        sequence = self._sequence
        self._sequence += count
        size_bytes = rng.choice((10, 60, 200, 200, 700, 2500))
        values = [value_of(incarnation, partition, sequence + each, size_bytes) for each in range(count)]
        mark(self._twin, "send", incarnation, partition, sequence, count)
        state = None
        if self._producers and rng.random() < 0.6:
            key = (rng.choice(self._producers), incarnation, partition)
            state = pb.ProducerState(id=key[0], sequence=self._next_sequence.get(key, 0))
            self._next_sequence[key] = state.sequence + count
        try:
            answer = await self._engine.produce(name, partition, values, acks, state)
        except TakhinError as refusal:
            if refusal.reason is not Reason.TOPIC_NOT_FOUND:
                raise
            return
        mark(self._twin, "answer", sequence, answer.offset, acks, answer.epoch)

    async def _burst(self, incarnation: int, partitions: int) -> None:
        """All partitions of a topic in one tick."""
        acks = self._rng.choice((1, -1, -1))
        await asyncio.gather(*(self._produce(incarnation, number, acks) for number in range(partitions)))

    async def _commit(self) -> None:
        rng = self._rng
        group = f"g{rng.randrange(3)}"
        offsets = []
        for incarnation, (name, partitions) in rng.sample(list(self._topics.items()), min(2, len(self._topics))):
            number = rng.randrange(partitions)
            end = self._engine.broker.topics.partition(name, number).written_offset
            before = self._committed.get((group, incarnation, number), 0)
            if end > before:
                offset = rng.choice((end, rng.randint(before, end)))
                offsets.append((incarnation, number, offset))
                self._committed[group, incarnation, number] = offset
        if not offsets:
            return
        named = [(self._topics[incarnation][0], number, offset) for incarnation, number, offset in offsets]
        mark(self._twin, "commit", group, offsets)
        try:
            await self._engine.commit(group, named)
        except TakhinError as refusal:
            # Deleted meanwhile; or a later commit of the same group has overtaken this one.
            if refusal.reason not in (Reason.TOPIC_NOT_FOUND, Reason.OFFSET_BEHIND_COMMITTED):
                raise
            return
        mark(self._twin, "committed", group, offsets)

    async def _transact(self) -> None:
        """Appends to some partitions, of one topic or several, perhaps with offsets."""
        rng = self._rng
        if not self._topics:
            return
        places = sorted({
            (incarnation, rng.randrange(partitions))
            for incarnation, (_, partitions) in rng.choices(list(self._topics.items()), k=rng.choice((1, 2, 3, 5)))
        })
        group, number = TRANSACTIONS, self._sequence
        marked, appends = [], []
        for incarnation, partition in places:
            count = rng.choice((1, 1, 3))
            sequence = self._sequence
            self._sequence += count
            size_bytes = rng.choice((10, 200, 700))
            values = [value_of(incarnation, partition, sequence + each, size_bytes) for each in range(count)]
            marked.append((incarnation, partition, sequence, count))
            appends.append((self._topics[incarnation][0], partition, values))
        offsets = []
        for incarnation, (name, partitions) in rng.sample(list(self._topics.items()), min(2, len(self._topics))):
            partition = rng.randrange(partitions)
            end = self._engine.broker.topics.partition(name, partition).written_offset
            # The next one, always: no other transaction commits just this.
            offset = self._committed.get((group, incarnation, partition), 0) + 1
            if offset <= end and rng.random() < 0.7:
                offsets.append((incarnation, partition, offset))
                self._committed[group, incarnation, partition] = offset
        named = [(self._topics[incarnation][0], partition, offset) for incarnation, partition, offset in offsets]
        mark(self._twin, "transact", number, marked, group, offsets)
        try:
            answers = await self._engine.transact(appends, group if offsets else "", named)
        except TakhinError as refusal:
            # As with commits.
            if refusal.reason not in (Reason.TOPIC_NOT_FOUND, Reason.OFFSET_BEHIND_COMMITTED):
                raise
            return
        mark(
            self._twin, "transacted", number, [answer.offset for answer in answers],
            [answer.epoch for answer in answers],
        )

    async def _retain(self) -> None:
        before = dict(self._topics)
        await self._engine.retain()
        mark(self._twin, "retained", [
            (incarnation, number, self._engine.broker.topics.partition(name, number).log_start_offset)
            for incarnation, (name, partitions) in before.items() if incarnation in self._topics
            for number in range(partitions)
        ])
