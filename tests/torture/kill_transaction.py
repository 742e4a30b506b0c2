"""kill -9 at every operation of a transaction, before it and behind it; then a start: all is there, or nothing.

    python -m tests.torture.kill_transaction [--every N]

One run makes the journal anew, one finds it in use; each commits offsets with its appends. Reads are not counted:
nothing changes by them. So a kill between two operations, at whatever await, leaves the same as one behind the first.

Where the kill leaves an entry of the journal written and not synced, the power is cut, too, after each sync of the
start that follows: what no sync covers is lost.
"""

import argparse
import asyncio
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from takhin.errors import TakhinError
from tests.torture.disk import Disk
from tests.torture.forked import forked
from tests.torture.inprocess import InProcess
from tests.torture.powercut import scratch_directory
from tests.torture.twin import Kind, Operation, Twin, environment, fault, read_recording

NAME = "kill_transaction"
_BEFORE, _IN, _BEHIND = b"before", b"in", b"behind"


async def prepare(engine: InProcess) -> None:
    await engine.create_topic("source", 1)
    await engine.create_topic("a", 2)
    await engine.create_topic("b", 1)
    await engine.produce("source", 0, [_BEFORE] * 3, -1)
    await engine.produce("a", 0, [_BEFORE], 1)
    await engine.commit("g", [("source", 0, 1)])


async def warm(engine: InProcess) -> None:
    """The journal is in use, by an earlier transaction."""
    await engine.transact([("a", 0, [b"warm"]), ("b", 0, [b"warm"])])


async def transact(engine: InProcess) -> None:
    """The one that is killed, with others behind it."""
    await asyncio.gather(
        engine.transact([("a", 0, [_IN] * 2), ("a", 1, [_IN]), ("b", 0, [_IN])], "g", [("source", 0, 3)]),
        engine.produce("a", 0, [_BEHIND], 1),
    )


async def look(engine: InProcess) -> tuple[set[bool], list[str]]:
    """Which parts are there, True and False; and what is wrong besides."""
    view = await engine.view()
    parts, wrong = set(), []
    for (topic, number), count in ((("a", 0), 2), (("a", 1), 1), (("b", 0), 1)):
        found = view.partitions[topic, number]
        values = [value for _, _, value in found.records]
        if found.failure or [offset for offset, _, _ in found.records] != list(range(found.end)):
            wrong.append(f"{topic}/{number}: {found.failure} {found.records}")
        there = values.count(_IN)
        if there not in (0, count):
            wrong.append(f"{topic}/{number} has {there} of {count} records")
        parts.add(there == count)
    stored = dict(view.commits["g"])
    parts.add(stored == {(view.topics["source"][0], 0): 3})
    if sorted(stored.values()) not in ([1], [3]):
        wrong.append(f"the group stands at {stored}")
    return parts, wrong


class Killer:
    """Makes the runs, each in processes of its own, forked from this one, which has the twin."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._twin = Twin()
        self.kills = self.happened = self.cuts = 0
        self.broken: list[str] = []

    def all_of(self, *, is_warm: bool, every: int) -> None:
        """Kill at each operation there is, or at every so many-th."""
        base = self._directory / "base"

        async def make() -> None:
            engine = await InProcess(base).start()
            await prepare(engine)
            await engine.stop()

        shutil.rmtree(base, ignore_errors=True)
        asyncio.run(make())
        for action in ("kill_before", "kill_after"):
            for number in itertools.count(1, every):
                data = self._directory / "data"
                shutil.rmtree(data, ignore_errors=True)
                shutil.copytree(base, data)
                killing = fault("any", action=action, first=number)
                disk = Disk(data, tree=data)
                recording = self._directory / "recording"
                recording.write_bytes(b"")
                status, answered = forked(lambda: self._run(data, is_warm, killing, recording))
                where = f"{action} operation {number}, {'warm' if is_warm else 'cold'}"
                done = read_recording(recording)
                if answered is None and done and done[-1].kind is Kind.WRITE and done[-1].path.endswith(".journal"):
                    self._cut_the_start(data, disk, done, recording, where)
                if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                    self.kills += 1
                elif status:
                    self.broken.append(f"{where}: status {status}")
                self._judge(data, where, answered)
                if not os.WIFSIGNALED(status):
                    break

    def _run(self, data: Path, is_warm: bool, killing: str, recording: Path) -> str:
        async def run() -> None:
            self._twin.begin(data, recording)
            engine = await InProcess(data).start()
            if is_warm:
                await warm(engine)
            self._twin.fault(killing)
            await transact(engine)
            self._twin.end()

        asyncio.run(run())
        return "answered"

    def _cut_the_start(self, data: Path, disk: Disk, done: list[Operation], recording: Path, where: str) -> None:
        async def start() -> None:
            self._twin.begin(data, recording)
            await InProcess(data).start()
            # As a kill leaves it; what is under way is not recorded to its end.
            self._twin.end()

        forked(lambda: asyncio.run(start()))
        for operation in done:
            disk.play(operation)
        target = self._directory / "cut"
        for number, operation in enumerate(read_recording(recording)[len(done) :]):
            disk.play(operation)
            if operation.kind is Kind.SYNC_END:
                shutil.rmtree(target, ignore_errors=True)
                disk.cut(target, random.Random(number), "none")
                self.cuts += 1
                self._judge(target, f"{where}, the power cut at operation {number} of the start", None)

    def _judge(self, data: Path, where: str, answered: Any) -> None:
        async def judge() -> list[Any]:
            engine = await InProcess(data).start()
            parts, wrong = await look(engine)
            try:
                await engine.transact([("a", 0, [b"after"]), ("b", 0, [b"after"])], "g", [("source", 0, 3)])
            except TakhinError as problem:
                wrong.append(f"the next one is refused: {problem}")
            await engine.stop()
            return [sorted(parts), wrong]

        status, found = forked(lambda: asyncio.run(judge()))
        if status or found is None:
            self.broken.append(f"{where}: the start ends with status {status}")
            return
        parts, wrong = found
        self.broken += [f"{where}: {each}" for each in wrong]
        if len(parts) > 1:
            self.broken.append(f"{where}: a part of it is there")
        elif answered is not None and parts != [True]:
            self.broken.append(f"{where}: it was answered, and is not there")
        self.happened += parts == [True]


def work(directory: Path, every: int) -> int:
    killer = Killer(directory)
    for is_warm in (False, True):
        killer.all_of(is_warm=is_warm, every=every)
    for each in killer.broken:
        print(f"{NAME}: BROKEN: {each}")
    print(
        f"{NAME}: {killer.kills} kills, {killer.cuts} power cuts while the next start runs, after {killer.happened} of "
        f"these it had happened, {len(killer.broken)} broken"
    )
    return 1 if killer.broken else 0


def run(every: int) -> subprocess.CompletedProcess[str]:
    """The same in a process that has the twin."""
    directory = scratch_directory() / f"takhin-{NAME}-{os.getpid()}"
    directory.mkdir(parents=True)
    try:
        return subprocess.run(
            [sys.executable, "-m", f"tests.torture.{NAME}", "--worker", str(directory), "--every", str(every)],
            env={**os.environ, **environment()}, capture_output=True, text=True, timeout=1200,
        )
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog=f"make {NAME}", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth operation (default 1: all)")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(Path(arguments.worker), arguments.every)
    done = run(arguments.every)
    print(done.stdout, done.stderr, sep="", end="")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
