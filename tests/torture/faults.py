"""Failing operations: a fixed run of the broker, again and again, each time with another operation failing.

First a run without faults is counted: for each kind of operation and each class of files, how many there are. Then for
each of them and each error, once and for good, the run is made with just that operation failing; then the broker is
started again without faults, and judged. After a failed sync the power is cut, too.

    python -m tests.torture.faults --count 100000 --seed 1
    python -m tests.torture.faults --only 'sync *.log 3 EIO once'
"""

import argparse
import asyncio
import errno
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from takhin.broker import broker as broker_module
from takhin.errors import Reason, StartError, TakhinError
from takhin.log import transaction
from tests.torture import inprocess
from tests.torture.common import Run
from tests.torture.disk import Disk
from tests.torture.forked import forked
from tests.torture.inprocess import Hung, InProcess, View
from tests.torture.ledger import Ledger, value_of
from tests.torture.powercut import LoggedExceptions, ledger_of, play, scratch_directory
from tests.torture.twin import FOR_GOOD, Kind, Operation, Twin, environment, fault, read_recording
from tests.torture.workload import TRANSACTIONS, mark, mark_started

NAME = "faults"
WORKERS = 2
# How long a fault that was lifted may take to be got over.
_HEAL_S = 5.0
_TRY_AGAIN_S = 0.01
# What waits so long hangs.
_PATIENCE_S = 5.0

# Where faults happen: a name and a pattern of paths.
CLASSES = {
    "segment": "*.log", "index": "*.index", "journal": "*.journal", "database": "*/meta.db", "wal": "*/meta.db-wal",
    "rollback": "*/meta.db-journal", "directory": "*[0-9s]", "root": "*/data",
}
METADATA = ("database", "wal", "rollback")
OF_THE_LOG = ("segment", "index", "journal", "directory")
# An interrupted or short one of these is simply gone on with.
CAN_GO_ON = ("write", "sync", "sync_directory", "read")
# In place of a kind: the disk has room for so many bytes more.
ROOM = "room"
_ROOM_BYTES = range(48 * 1024, 200 * 1024, 2048)
# What a full disk may be answered with; what was never made can't be found, nor what was not appended.
_WHEN_FULL = (Reason.DISK_FULL, Reason.TOPIC_NOT_FOUND, Reason.OFFSET_OUT_OF_RANGE, "StartError")
# How the failure of a partition begins that a transaction has closed.
OF_A_TRANSACTION = (
    "the sync of a transaction failed", "the offsets of a transaction", "the records of a transaction",
    "a partition of a transaction",
)
# What is tried on which kind of operation.
ERRORS = {
    "open": ("EIO", "ENOSPC", "EMFILE"),
    "write": ("EIO", "ENOSPC", "EDQUOT", "EINTR", "short"),
    "sync": ("EIO", "ENOSPC", "EINTR"),
    "sync_directory": ("EIO", "ENOSPC", "EINTR"),
    "rename": ("EIO", "ENOSPC"),
    "truncate": ("EIO", "ENOSPC", "EINTR"),
    "unlink": ("EIO",),
    "mkdir": ("EIO", "ENOSPC"),
    "rmdir": ("EIO",),
    "allocate": ("EIO", "ENOSPC"),
    "read": ("EIO", "EINTR", "short"),
}


@dataclass(frozen=True)
class Site:
    """One operation to fail, and how: an error's name, short, kill_before or kill_after."""

    kind: str
    place: str
    number: int
    error: str
    times: int

    def __str__(self) -> str:
        how_long = "once" if self.times == 1 else "for good"
        return f"{self.kind} {self.place} {self.number} {self.error} {how_long}"

    @staticmethod
    def parse(text: str) -> "Site":
        kind, place, number, error, how_long = text.split(" ", 4)
        return Site(kind, place, int(number), error, 1 if how_long == "once" else FOR_GOOD)

    @property
    def fault(self) -> str:
        action = self.error if self.error in ("short", "kill_before", "kill_after") else ""
        return fault(
            self.kind, CLASSES[self.place], error="" if action else self.error, action=action, first=self.number,
            times=self.times,
        )

    @property
    def kills(self) -> bool:
        return self.error.startswith("kill")


@dataclass
class Result:
    """What came of one site. fired: whether the operation was ever reached."""

    site: str
    fired: bool = False
    refused: int = 0
    cuts: int = 0
    problems: list[str] = field(default_factory=list)


class Script:
    """The fixed run: what it asks for is the same each time; what it gets depends on the fault.

    Every request has to be answered, with what was asked for or a TakhinError.
    """

    def __init__(self, twin: Twin, data_dir: Path, site: Site | None):
        self._twin = twin
        self._data_dir = data_dir
        self._site = site
        self._fault = -1
        self._fired_at_start = 0
        self._engine = InProcess(data_dir, segment_bytes=1024)
        self._sequence = 0
        self._topics: dict[int, tuple[str, int]] = {}
        self._ledger = Ledger()
        self.problems: list[str] = []
        self.refusals: Counter[str] = Counter()

    def problem(self, text: str) -> None:
        self.problems.append(text)

    @property
    def fired(self) -> bool:
        return self._twin.fired(self._fault) > 0 if self._fault >= 0 else bool(self.refusals)

    async def run(self) -> None:
        """Two runs of a broker, the second of which ends without faults."""
        if self._site is not None and self._site.kind == ROOM:
            self._twin.room(self._site.number)
        elif self._site is not None:
            self._fault = self._twin.fault(self._site.fault)
        if await self._start():
            await self._first()
            await self._check_failure()
            await self._stop()
        if not await self._start():
            # The fault is for good, or the directory is not as it should be: without it there is no excuse.
            self._twin.clear()
            if not await self._start(last=True):
                return
        await self._second()
        await self._check_failure()
        self._check_refusals()
        self._twin.clear()
        await self._heal()
        await self._stop()

    async def _check_failure(self) -> None:
        """An I/O error of the metadata, met since it started, has to stop the broker."""
        site, failed = self._site, self._engine.broker._failed
        if site is None or failed is None or self._twin.fired(self._fault) == self._fired_at_start:
            return
        if site.error == "EIO" and site.place in ("database", "wal") and site.kind in ("write", "sync"):
            await self._until(failed.done, "a failure of the metadata does not stop the broker")

    def _check_refusals(self) -> None:
        """Whether what was refused was refused for the right reason."""
        site = self._site
        if site is None:
            return
        if site.error in ("EINTR", "short") and site.place in OF_THE_LOG and site.kind in CAN_GO_ON and self.refusals:
            self.problem(f"what can be gone on with was not: {dict(self.refusals)}")
        quota = site.error == "EDQUOT" and site.place not in METADATA
        if (site.error == "ENOSPC" or quota) and site.kind in ("write", ROOM) and site.place != "index":
            # Records that have room reserved find none: then their partitions are closed.
            allowed = (*_WHEN_FULL, Reason.SYNC_FAILED) if site.place == "segment" else _WHEN_FULL
            if site.place in METADATA:
                # What is decided waits for its offsets to be stored, and others behind it.
                allowed = (*allowed, Reason.ACK_TIMEOUT)
            others = {name: count for name, count in self.refusals.items() if name not in allowed}
            if others:
                self.problem(f"the disk is full, and requests are refused for {others}")

    async def _until(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + _HEAL_S
        while not condition():
            if time.monotonic() > deadline:
                self.problem(otherwise)
                return
            await asyncio.sleep(_TRY_AGAIN_S)

    # Start and stop

    async def _start(self, last: bool = False) -> bool:
        mark(self._twin, "starting")
        self._engine = InProcess(self._data_dir, segment_bytes=1024)
        try:
            await self._engine.start()
            view = await self._engine.view()
        except StartError as refusal:
            self.refusals["StartError"] += 1
            if last:
                self.problem(f"does not start without faults: {refusal}")
            return False
        except TakhinError as refusal:
            # The first read failed; for the run that is as good as no start.
            self.refusals[refusal.reason] += 1
            await self._stop()
            return False
        except Exception as problem:
            self.problem(f"the start fails with {type(problem).__name__}: {problem}")
            return False
        self._ledger = ledger_of(read_recording(self._data_dir.parent / "recording"))
        mark_started(self._twin, view, self._ledger)
        self._fired_at_start = self._twin.fired(self._fault)
        return True

    async def _stop(self) -> None:
        mark(self._twin, "stopping")
        try:
            await self._engine.stop()
        except Exception as problem:
            self.problem(f"the stop fails with {type(problem).__name__}: {problem}")

    # Requests

    async def _try(self, what: str, work: Awaitable[Any]) -> Any:
        """What is answered; None: refused."""
        try:
            return await work
        except TakhinError as refusal:
            self.refusals[refusal.reason] += 1
            return None
        except Exception as problem:
            self.problem(f"{what}: {type(problem).__name__} {problem}")
            return None

    async def _create(self, incarnation: int, partitions: int, **configs: str) -> None:
        name = f"t{incarnation}"
        mark(self._twin, "create", incarnation, name, partitions)
        topic_id = await self._try("create", self._engine.create_topic(name, partitions, **configs))
        if topic_id is not None:
            mark(self._twin, "created", incarnation, topic_id)

    async def _produce(self, incarnation: int, partition: int, acks: int, count: int = 1, size: int = 150) -> Any:
        sequence = self._sequence
        self._sequence += count
        values = [value_of(incarnation, partition, sequence + each, size) for each in range(count)]
        mark(self._twin, "send", incarnation, partition, sequence, count)
        answer = await self._try("produce", self._engine.produce(f"t{incarnation}", partition, values, acks))
        if answer is not None:
            mark(self._twin, "answer", sequence, answer.offset, acks, answer.epoch)
        return answer

    async def _commit(self, incarnation: int, partition: int, offset: int) -> None:
        offsets = [(incarnation, partition, offset)]
        mark(self._twin, "commit", "g", offsets)
        work = self._engine.commit("g", [(f"t{incarnation}", partition, offset)])
        if await self._try("commit", _true(work)) is not None:
            mark(self._twin, "committed", "g", offsets)

    async def _transact(self, *appends: tuple[int, int, int], offsets: tuple[tuple[int, int, int], ...] = ()) -> Any:
        """appends: (incarnation, partition, records); offsets: (incarnation, partition, offset)."""
        number = self._sequence
        marked, made = [], []
        for incarnation, partition, count in appends:
            sequence = self._sequence
            self._sequence += count
            values = [value_of(incarnation, partition, sequence + each, 150) for each in range(count)]
            marked.append((incarnation, partition, sequence, count))
            made.append((f"t{incarnation}", partition, values))
        mark(self._twin, "transact", number, marked, TRANSACTIONS, offsets)
        named = [(f"t{incarnation}", partition, offset) for incarnation, partition, offset in offsets]
        work = self._engine.transact(made, TRANSACTIONS if offsets else "", named)
        answers = await self._try("transact", work)
        if answers is not None:
            mark(
                self._twin, "transacted", number, [answer.offset for answer in answers],
                [answer.epoch for answer in answers],
            )

    async def _retain(self) -> None:
        await self._try("retention", self._engine.retain())
        topics = self._engine.broker.topics
        mark(self._twin, "retained", [
            (int(topic.name[1:]), partition.partition, partition.log_start_offset)
            for topic in topics for partition in topic.partitions
            # Told only when it was stored: a start that moved back would be found by it.
        ])

    async def _read(self) -> None:
        for topic in list(self._engine.broker.topics):
            for partition in topic.partitions:
                records = await self._try("read", self._engine.read(topic.name, partition.partition))
                offsets = [offset for offset, _, _ in records or ()]
                if offsets and offsets != list(range(offsets[0], offsets[-1] + 1)):
                    self.problem(f"{topic.name}/{partition.partition} gives {offsets}")

    # The runs

    async def _first(self) -> None:
        await self._create(1, 2)
        await self._create(2, 1, retention_bytes="1200")
        await self._create(3, 1)
        for acks in (1, -1, 0, -1):
            for incarnation, partition in ((1, 0), (1, 1), (2, 0), (3, 0)):
                await self._produce(incarnation, partition, acks, count=1 if acks else 2)
        # Group commits that span partitions.
        for count in (2, 1, 2):
            await asyncio.gather(*(self._produce(incarnation, 0, -1, count) for incarnation in (1, 2, 3)))
        await self._commit(1, 0, 2)
        # Transactions, with others behind them.
        await asyncio.gather(
            self._transact((1, 0, 2), (3, 0, 1), offsets=((1, 1, 1), (2, 0, 2))), self._produce(1, 0, 1),
            self._transact((1, 1, 1), (2, 0, 3)), self._produce(2, 0, -1),
        )
        for _ in range(3):
            await self._produce(2, 0, -1, 3)
        await self._retain()
        await self._read()
        await self._try("delete", self._delete(3))
        await self._commit(1, 0, 4)
        await asyncio.gather(*(self._produce(1, number, acks, 1) for number in (0, 1) for acks in (0, 1, -1)))

    async def _delete(self, incarnation: int) -> None:
        mark(self._twin, "delete", incarnation)
        await self._engine.delete_topic(f"t{incarnation}")
        mark(self._twin, "deleted", incarnation)

    async def _second(self) -> None:
        await self._read()
        await self._create(4, 1)
        for acks in (-1, 1):
            for incarnation, partition in ((1, 0), (1, 1), (2, 0), (4, 0)):
                await self._produce(incarnation, partition, acks, 2)
        await asyncio.gather(*(self._produce(incarnation, 0, -1) for incarnation in (1, 2, 4)))
        await self._commit(1, 1, 1)
        await asyncio.gather(
            self._transact((1, 0, 1), (4, 0, 2), offsets=((1, 1, 2),)), self._produce(4, 0, 1), self._produce(1, 1, -1)
        )
        await self._retain()
        await self._read()

    async def _heal(self) -> None:
        """Without faults: what is not closed for good takes appends again, and all that may be read is read."""
        metadata_failed = self._engine.broker._failed is not None and self._engine.broker._failed.done()
        site = self._site
        # SQLite can't tell a quota from an I/O error.
        if metadata_failed and site is not None and site.error == "ENOSPC" and site.kind in ("write", ROOM):
            self.problem(f"a full disk stopped the broker: {self._engine.broker._failed}")
        if metadata_failed and (site is None or site.place not in (*METADATA, "root")):
            self.problem("the broker has failed without a fault in its metadata")
        recording = read_recording(self._data_dir.parent / "recording")
        poisoned = _poisoned(recording)
        quarantined = False
        for topic in list(self._engine.broker.topics):
            for partition in topic.partitions:
                place = f"{topic.id}/{partition.partition}"
                closed = partition.failure is not None and partition.failure_is_final
                if closed and self._is_excused(partition.failure):
                    quarantined = True
                elif closed and place not in poisoned and "above" not in poisoned:
                    self.problem(f"{topic.name}/{partition.partition} is closed for good: {partition.failure}")
                elif place in poisoned and not closed:
                    self.problem(f"{topic.name}/{partition.partition} goes on after a failed sync")
                if closed:
                    answer = await self._produce(int(topic.name[1:]), partition.partition, -1)
                    if answer is not None:
                        self.problem(f"{topic.name}/{partition.partition} takes appends after a failed sync")
                elif not metadata_failed:
                    await self._heal_one(int(topic.name[1:]), partition.partition)
        before = sum(self.refusals.values())
        await self._read()
        if sum(self.refusals.values()) != before and not quarantined:
            self.problem("what is there can't be read without faults")

    def _is_excused(self, failure: Any) -> bool:
        """Whether the fault itself closed a partition: its start could not read it, or its sync not be made."""
        site = self._site
        if site is None or not hasattr(errno, site.error):
            return False
        if failure[1].startswith(OF_A_TRANSACTION):
            # It was decided, or nobody knows whether; what kept it from being carried out is the fault.
            return site.place in ("segment", "journal", *METADATA)
        # An index file is disposable when it is gone, not when the disk can't tell what it vouches for.
        if site.place not in ("segment", "directory") and not (site.place == "index" and site.kind in ("open", "read")):
            return False
        named = os.strerror(getattr(errno, site.error))
        if failure[0] is Reason.PARTITION_DAMAGED:
            return bool(failure[1].endswith(f"{named})"))
        return failure[0] is Reason.SYNC_FAILED and site.kind == "open" and named in failure[1]

    async def _heal_one(self, incarnation: int, partition: int) -> None:
        deadline = time.monotonic() + _HEAL_S
        while await self._produce(incarnation, partition, -1) is None:
            if time.monotonic() > deadline:
                self.problem(f"t{incarnation}/{partition} takes no appends, though nothing fails any more")
                return
            await asyncio.sleep(_TRY_AGAIN_S)


async def _true(work: Awaitable[Any]) -> bool:
    await work
    return True


_PARTITION = re.compile(r"/topics/(\d+/\d+)(?:/|$)")


def _poisoned(recording: list[Operation]) -> set[str]:
    """Topic id and partition of those whose sync failed since the broker was last started; "above": any may
    be so. A failed sync of the journal is not final: the segments hold the same."""
    failed: set[str] = set()
    for operation in recording:
        if operation.kind is Kind.MARK and operation.data.startswith(b'["starting"'):
            failed = set()
        if operation.kind is Kind.SYNC_END and operation.result < 0 and operation.result != -4:
            match = _PARTITION.search(operation.path)
            if match is not None:
                failed.add(match[1])
            elif operation.path.endswith("/topics") or "/topics/" in operation.path:
                # It concerns partitions that its path does not name.
                failed.add("above")
    return failed


def _synced_again(recording: list[Operation]) -> list[str]:
    """Partitions that were synced again, by the same run, after a sync of theirs had failed."""
    failed: set[str] = set()
    under_way: set[int] = set()
    again = set()
    for operation in recording:
        if operation.kind is Kind.MARK and operation.data.startswith((b'["starting"', b'["stopping"')):
            failed = set()
        match = _PARTITION.search(operation.path)
        if match is None:
            continue
        if operation.kind is Kind.SYNC:
            under_way.add(operation.number)
            if match[1] in failed:
                again.add(match[1])
        elif operation.kind is Kind.SYNC_END and operation.result < 0 and operation.result != -4:
            failed.add(match[1])
    return sorted(again)


# In the worker


class Worker:
    """Makes runs, each in processes of its own, forked from this one, which has the twin."""

    def __init__(self, directory: Path):
        self._twin = Twin()
        self._directory = directory
        broker_module.RESUME_AFTER_S = _TRY_AGAIN_S
        transaction.STORE_AGAIN_S = _TRY_AGAIN_S
        inprocess.PATIENCE_S = _PATIENCE_S

    def count(self) -> dict[str, int]:
        """How many operations of each kind and class a run without faults has, by "kind class"."""
        places = [(kind, place) for kind in ERRORS for place in CLASSES]

        def counted() -> dict[str, int]:
            numbers = [self._twin.fault(fault(kind, CLASSES[place], action="count")) for kind, place in places]
            # clear() forgets them: it must not be called before they are asked.
            self._twin.clear = lambda: None  # type: ignore[method-assign]
            script = self._script(None)
            if script.problems or script.refusals:
                raise AssertionError(f"without faults: {script.problems} {script.refusals}")
            seen = [self._twin.seen(number) for number in numbers]
            return {f"{kind} {place}": count for (kind, place), count in zip(places, seen, strict=True) if count}

        self._fresh()
        status, found = self._forked(counted)
        if status:
            raise AssertionError(f"the run without faults fails: {status}")
        return dict(found)

    def do(self, site: Site) -> Result:
        """The run with that fault, and what comes after it."""
        self._fresh()
        result = Result(str(site))

        def first() -> dict[str, Any]:
            script = self._script(site)
            return {"fired": script.fired or script.was_fired, "refused": sum(script.refusals.values()),
                    "problems": script.problems}

        status, found = self._forked(first)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and site.kills
        if killed:
            result.fired = True
        elif status or found is None:
            result.problems.append(f"the run ends with status {status}")
        else:
            result.fired, result.refused = found["fired"], found["refused"]
            result.problems += found["problems"]
        recording = read_recording(self._recording)
        again = _synced_again(recording)
        if again:
            result.problems.append(f"synced again after a failed sync: {again}")
        if site.kind.startswith("sync") and not site.kills:
            self._cut(site, recording, result, "the run")
        # Started again, without faults and with the power on.
        status, found = self._forked(lambda: self._after(ledger_of(recording), power_was_cut=False))
        result.problems += found if not status and found is not None else [f"the restart ends with status {status}"]
        if site.kind.startswith("sync") and not site.kills:
            # What a failed sync lost, the start has to have written again.
            self._cut(site, read_recording(self._recording), result, "the restart")
        return result

    @property
    def _recording(self) -> Path:
        return self._directory / "recording"

    def _fresh(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True)
        self._recording.touch()

    def _cut(self, site: Site, recording: list[Operation], result: Result, after: str) -> None:
        """The power goes at the end of the recording: once with nothing left that is not synced, once with some."""
        rng = random.Random(f"{site}/{after}")
        disk, ledger = Disk(self._directory / "data"), Ledger()
        for operation in recording:
            play(operation, disk, ledger)
        for number in range(2):
            target = self._directory / f"cut-{number}" / "data"
            shutil.rmtree(target.parent, ignore_errors=True)
            target.parent.mkdir()
            disk.cut(target, rng)
            status, found = self._forked(lambda: self._after(ledger.copy(), power_was_cut=True, data_dir=target))
            problems = found if not status and found is not None else [f"status {status}"]
            result.problems += [f"after {after} the power goes: {each}" for each in problems]
            result.cuts += 1

    def _forked(self, work: Callable[[], Any]) -> tuple[int, Any]:
        return forked(work, self._twin.exit)

    def _script(self, site: Site | None) -> "_Finished":
        logged = LoggedExceptions()
        self._twin.begin(self._directory / "data", self._recording)
        script = Script(self._twin, self._directory / "data", site)
        finished = _Finished(script)
        asyncio.run(finished.run())
        script.problems += [each for each in logged.take() if "metadata database" not in each]
        return finished

    def _after(self, ledger: Ledger, *, power_was_cut: bool, data_dir: Path | None = None) -> list[str]:
        """What is broken when the broker is started again."""
        logged = LoggedExceptions()
        if data_dir is None:
            data_dir = self._directory / "data"
            self._twin.begin(data_dir, self._recording)

        async def judge() -> list[str]:
            engine = InProcess(data_dir, segment_bytes=1024)
            await engine.start()
            view = await engine.view()
            broken = ledger.judge(view, power_was_cut=power_was_cut)
            mark_started(self._twin, view, ledger)
            broken += await self._append(engine, view, ledger)
            mark(self._twin, "stopping")
            await engine.stop()
            return broken

        return asyncio.run(judge()) + logged.take()

    async def _append(self, engine: InProcess, view: View, ledger: Ledger) -> list[str]:
        broken = []
        sequence = 1_000_000
        for name, number in view.partitions:
            incarnation = ledger.incarnation_of(name, view.topics[name][0])
            if incarnation is None:
                continue
            sequence += 1
            value = value_of(incarnation, number, sequence, 50)
            mark(self._twin, "send", incarnation, number, sequence, 1)
            try:
                answer = await engine.produce(name, number, [value], -1)
            except (TakhinError, Hung) as problem:
                broken.append(f"{name}/{number} takes no appends after a start: {problem}")
                continue
            mark(self._twin, "answer", sequence, answer.offset, -1, answer.epoch)
        return broken


class _Finished:
    """A script that remembers whether its fault was met, though the fault is cleared before its end."""

    def __init__(self, script: Script):
        self._script = script
        self.was_fired = False

    async def run(self) -> None:
        twin = self._script._twin
        clear = twin.clear

        def remember() -> None:
            self.was_fired = self.was_fired or self._script.fired
            clear()

        twin.clear = remember  # type: ignore[method-assign]
        await self._script.run()

    @property
    def fired(self) -> bool:
        return self.was_fired

    @property
    def problems(self) -> list[str]:
        return self._script.problems

    @property
    def refusals(self) -> Counter[str]:
        return self._script.refusals


def work(directory: str) -> None:
    """A worker: sites come as lines, results go as lines of JSON; first what there is to fail."""
    worker = Worker(Path(directory))
    print(json.dumps(worker.count()), flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(worker.do(Site.parse(line.rstrip("\n"))))), flush=True)
    shutil.rmtree(directory, ignore_errors=True)


# In the process that was started


def sites_of(counts: dict[str, int]) -> Iterator[Site]:
    """Every fault there is to try. A run with a fault may have other operations than one without: one number more."""
    for size_bytes in _ROOM_BYTES:
        yield Site(ROOM, "any", size_bytes, "ENOSPC", 1)
    for key, count in counts.items():
        kind, place = key.split(" ")
        for number in range(1, count + 2):
            for error in ERRORS[kind]:
                yield Site(kind, place, number, error, 1)
                # An interrupted call is begun again for as long as that takes; and who can't open a directory for
                # want of descriptors waits until there are some.
                waits = kind == "open" and place in ("directory", "segment") and error != "EIO"
                if error != "EINTR" and not waits:
                    yield Site(kind, place, number, error, FOR_GOOD)
            if kind != "read":
                yield Site(kind, place, number, "kill_before", 1)
                yield Site(kind, place, number, "kill_after", 1)


class _Process:
    """A worker's process."""

    def __init__(self, directory: Path, plant: str = ""):
        self._popen = subprocess.Popen(
            [sys.executable, "-m", f"tests.torture.{NAME}", "--worker", str(directory), "--plant", plant],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment()},
        )
        self.counts: dict[str, int] = json.loads(self._line())

    def _line(self) -> str:
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with status {self._popen.wait()}")
        return line

    def do(self, site: Site) -> Result:
        assert self._popen.stdin is not None
        self._popen.stdin.write(f"{site}\n")
        self._popen.stdin.flush()
        return Result(**json.loads(self._line()))

    def close(self) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.close()
        self._popen.wait()


def fail_operations(
    run: Run, only: str = "", wanted: Callable[[Site], bool] = lambda site: True, workers: int = WORKERS,
    plant: str = "",
) -> None:
    """As many sites as the run asks for, in an order of its seed; or the one that is named. plant: MODULE:FUNCTION, a
    bug to put in first."""
    scratch = scratch_directory() / f"takhin-{NAME}-{os.getpid()}"
    begun_s = time.monotonic()
    processes = [_Process(scratch / str(number), plant) for number in range(1 if only else workers)]
    sites = [Site.parse(only)] if only else [site for site in sites_of(processes[0].counts) if wanted(site)]
    random.Random(run.seed).shuffle(sites)
    del sites[run.count :]
    run.count = len(sites)
    left = iter(sites)
    lock = threading.Lock()
    told: set[str] = set()

    def serve(process: _Process) -> None:
        while run.seconds is None or time.monotonic() - begun_s < run.seconds:
            with lock:
                site = next(left, None)
            if site is None:
                return
            result = process.do(site)
            with lock:
                run.done += 1
                run.add(
                    faults_met=result.fired, requests_refused=result.refused, power_cuts=result.cuts,
                    failed_judgements=len(result.problems),
                )
                for problem in result.problems:
                    kind = f"{site.kind} {site.place}: " + re.sub(r"\d+", "N", problem)
                    if kind not in told:
                        told.add(kind)
                        run.fail(f"{site}: {problem}")

    threads = [threading.Thread(target=serve, args=(process,)) for process in processes]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for process in processes:
            process.close()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    run.figures["operations"] = sum(processes[0].counts.values())
    run.figures["runs_a_second"] = round(run.done / max(time.monotonic() - begun_s, 0.001), 1)


def main() -> int:
    parser = argparse.ArgumentParser(prog=f"make {NAME}", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000, metavar="N", help="faults to try (default: all)")
    parser.add_argument("--seed", type=int, default=1, help="the order in which they are tried (default 1)")
    parser.add_argument("--seconds", type=float, default=None, help="end after so long, whatever the count")
    parser.add_argument("--only", default="", metavar="SITE", help="just this one, as it is printed")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    parser.add_argument("--plant", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        if arguments.plant:
            module, _, function = arguments.plant.partition(":")
            getattr(importlib.import_module(module), function)()
        work(arguments.worker)
        return 0
    run = Run(NAME, arguments.count, arguments.seed, arguments.seconds)
    fail_operations(run, only=arguments.only)
    return run.end()


if __name__ == "__main__":
    sys.exit(main())
