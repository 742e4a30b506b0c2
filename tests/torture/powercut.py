"""Power cuts: a recorded run of the broker, cut at any moment, on any disk that could be left; then a start, and a
judgement. Some of these starts are recorded and cut themselves.

    python -m tests.torture.powercut --count 10000 --seed 1
    python -m tests.torture.powercut --seed 1 --only 4711 [--recording build/powercut/1-47.recording]

A state is known by seed and number. What threads do when differs from run to run, so the recording of a state that
broke a promise is kept; with it the very same state is made again.
"""

import argparse
import asyncio
import json
import logging
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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from takhin.errors import TakhinError
from tests.torture.common import Run
from tests.torture.disk import Disk
from tests.torture.inprocess import Hung, InProcess, View
from tests.torture.ledger import Ledger, value_of
from tests.torture.twin import Kind, Operation, Twin, environment, fault, library, read_recording
from tests.torture.workload import INCARNATIONS_A_RUN, SEQUENCES_A_RUN, Workload, mark, mark_started

NAME = "powercut"
DEFAULT_STATES = 10_000
WORKERS = 2
# Of one recording.
STATES = 100
# So many of the states' starts are cut themselves.
SECOND_LEVEL = 0.3
_MOST_RUNS = 3
_RECORDING_S = 60
_KEPT = Path(__file__).resolve().parents[2] / "build" / "powercut"
# Sequences and incarnations of what is appended to states.
_AFTER = 1_000


@dataclass
class Job:
    """States first … first + count - 1, all of one recording. lies: faults for the recorded run. directory: for
    scratch; recording: one that was kept."""

    seed: int
    first: int
    count: int
    directory: str
    lies: list[str] = field(default_factory=list)
    recording: str = ""

    @property
    def number(self) -> int:
        """Of the recording."""
        return self.first // STATES


@dataclass
class Outcome:
    """failures: (number of the state, what was broken)."""

    states: int = 0
    second_states: int = 0
    entries: int = 0
    operations: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)


# In the worker


class Worker:
    """Records, cuts and judges; a process that has the twin."""

    def __init__(self) -> None:
        self._twin = Twin()
        self._logged = LoggedExceptions()

    def do(self, job: Job) -> Outcome:
        outcome = Outcome()
        directory = Path(job.directory)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        recording = Path(job.recording) if job.recording else directory / "recording"
        data_dir = Path(os.path.dirname(read_root(recording))) if job.recording else directory / "data"
        if not job.recording:
            self._record(job, data_dir, recording, outcome)
        operations = read_recording(recording)
        outcome.operations = len(operations)
        with asyncio.Runner() as runner:
            self._cut_all(job, operations, data_dir, directory, runner, outcome)
        if outcome.failures and not job.recording and not job.lies:
            _KEPT.mkdir(parents=True, exist_ok=True)
            shutil.copy(recording, _KEPT / f"{job.seed}-{job.number}.recording")
        shutil.rmtree(directory, ignore_errors=True)
        return outcome

    # The recording

    def _record(self, job: Job, data_dir: Path, recording: Path, outcome: Outcome) -> None:
        rng = random.Random(f"{job.seed}/recording/{job.number}")
        recording.touch()
        for run_number in range(rng.randint(1, _MOST_RUNS)):
            ledger = ledger_of(read_recording(recording))
            end = rng.choice(("stop", "kill", "kill", "leave"))
            seed = rng.random()
            pid = os.fork()
            if pid == 0:
                self._run_and_exit(job, data_dir, recording, ledger, run_number, end, random.Random(seed))
            status = _wait(pid)
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
                outcome.failures.append((job.first, f"run {run_number} of the recording hangs"))
                return
            if os.WIFEXITED(status) and os.WEXITSTATUS(status):
                outcome.failures.append((job.first, f"run {run_number} of the recording failed"))
                return

    def _run_and_exit(
        self, job: Job, data_dir: Path, recording: Path, ledger: Ledger, run_number: int, end: str, rng: random.Random
    ) -> None:
        signal.alarm(_RECORDING_S)
        status = 1
        try:
            self._twin.begin(data_dir, recording)
            self._twin.sync_delay(rng.choice((1, 200, 800)), rng.randrange(1 << 60))
            for lie in job.lies:
                self._twin.fault(lie)
            if end == "kill":
                kind = rng.choice(("any", "sync", "sync_directory", "write", "any"))
                action = rng.choice(("kill_before", "kill_after"))
                self._twin.fault(fault(kind, action=action, first=int(2 ** rng.uniform(0, 9))))
            workload = Workload(self._twin, data_dir, ledger, rng, run_number)
            asyncio.run(workload.run(rng.choice((20, 80, 150)), stop=end == "stop"))
            for problem in workload.problems + self._logged.take():
                print(f"run {run_number} of recording {job.number}: {problem}", file=sys.stderr)
            status = 1 if workload.problems else 0
        except BaseException as problem:
            print(f"run {run_number} of recording {job.number}: {problem!r}", file=sys.stderr)
        finally:
            # As it stands: without an orderly end, unless that is what was wanted.
            self._twin.exit(status)

    # The states

    def _cut_all(
        self, job: Job, operations: list[Operation], data_dir: Path, directory: Path, runner: asyncio.Runner,
        outcome: Outcome,
    ) -> None:
        cuts = []
        for number in range(job.first, job.first + job.count):
            rng = random.Random(f"{job.seed}/{number}")
            cuts.append((_moment(operations, rng), number, rng))
        disk, ledger, at = Disk(data_dir), Ledger(), 0
        for moment, number, rng in sorted(cuts, key=lambda cut: cut[:2]):
            while at < moment:
                play(operations[at], disk, ledger)
                at += 1
            target = directory / "state"
            shutil.rmtree(target, ignore_errors=True)
            disk.cut(target, rng)
            outcome.states += 1
            outcome.entries += ledger.entries
            failures = runner.run(self._judge_state(target, ledger, rng, directory, outcome))
            outcome.failures += [(number, f"cut at {moment} of {len(operations)}: {each}") for each in failures]

    async def _judge_state(
        self, target: Path, ledger: Ledger, rng: random.Random, directory: Path, outcome: Outcome
    ) -> list[str]:
        second = rng.random() < SECOND_LEVEL
        if not second:
            return await self._start_and_judge(target, ledger, rng, None)
        recording = directory / "second.recording"
        recording.unlink(missing_ok=True)
        disk = Disk(target, tree=target)
        failures = await self._start_and_judge(target, ledger, rng, recording)
        operations = read_recording(recording)
        ledger, moment = ledger.copy(), _moment(operations, rng)
        for operation in operations[:moment]:
            play(operation, disk, ledger)
        shutil.rmtree(target)
        disk.cut(target, rng)
        outcome.second_states += 1
        more = await self._start_and_judge(target, ledger, rng, None)
        return failures + [f"second cut at {moment} of {len(operations)}: {each}" for each in more]

    async def _start_and_judge(
        self, target: Path, ledger: Ledger, rng: random.Random, recording: Path | None
    ) -> list[str]:
        """What is broken once the broker has started on `target`; what it did is recorded if that is wanted."""
        engine = InProcess(target)
        if recording is not None:
            self._twin.begin(target, recording)
        try:
            try:
                await engine.start()
            except Exception as problem:
                # Whatever it is: a start that fails has one kind of error, and this one should not have failed.
                return [f"it does not start: {type(problem).__name__} {problem}"]
            try:
                view = await engine.view()
                broken = ledger.judge(view)
                mark_started(self._twin, view, ledger)
                broken += await self._append(engine, view, ledger, rng)
            except (TakhinError, Hung, OSError) as problem:
                broken = [f"it can't be read: {type(problem).__name__} {problem}"]
        finally:
            self._twin.end()
        try:
            await engine.stop()
        except Hung as problem:
            broken.append(str(problem))
        return broken + self._logged.take()

    async def _append(self, engine: InProcess, view: View, ledger: Ledger, rng: random.Random) -> list[str]:
        """Append durable records, to a topic that is there and to one that is new; commit one."""
        broken = []
        base = _MOST_RUNS * SEQUENCES_A_RUN + ledger.entries * _AFTER
        incarnation = _MOST_RUNS * INCARNATIONS_A_RUN + ledger.entries
        name = f"t{incarnation}"
        mark(self._twin, "create", incarnation, name, 2)
        mark(self._twin, "created", incarnation, await engine.create_topic(name, 2))
        places = [(incarnation, name, 1, 0)]
        known = [
            (found, *key) for key in view.partitions
            if (found := ledger.incarnation_of(key[0], view.topics[key[0]][0])) is not None
            and view.partitions[key].failure is None
        ]
        for old, topic, number in rng.sample(known, min(3, len(known))):
            places.append((old, topic, number, view.partitions[topic, number].end))
        for each, (old, topic, number, end) in enumerate(places):
            value = value_of(old, number, base + each, 100)
            mark(self._twin, "send", old, number, base + each, 1)
            answer = await engine.produce(topic, number, [value], -1)
            mark(self._twin, "answer", base + each, answer.offset, -1, answer.epoch)
            if answer.offset != end or (answer.epoch, answer.offset) in ledger.log((old, number)).by_epoch:
                broken.append(f"{topic}/{number} ended at {end}, and goes on at {answer.offset} in {answer.epoch}")
            read = await engine.read(topic, number, answer.offset)
            if read != [(answer.offset, answer.epoch, value)]:
                broken.append(f"{topic}/{number} gives {read} at {answer.offset}")
        mark(self._twin, "commit", "after", [(incarnation, 1, 1)])
        await engine.commit("after", [(name, 1, 1)])
        mark(self._twin, "committed", "after", [(incarnation, 1, 1)])
        return broken


class LoggedExceptions(logging.Handler):
    """Exceptions that end in the log are bugs."""

    def __init__(self) -> None:
        super().__init__()
        self._found: list[str] = []
        logging.getLogger().addHandler(self)
        logging.getLogger().setLevel(logging.ERROR)

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self._found.append(f"logged: {record.getMessage()}: {record.exc_info[1]!r}")

    def take(self) -> list[str]:
        found, self._found = self._found, []
        return found


def read_root(recording: Path) -> str:
    """Where the recorded broker had its data: a path below it, its first operation's."""
    return next(operation.path for operation in read_recording(recording) if operation.path) + "/"


def play(operation: Operation, disk: Disk, ledger: Ledger) -> None:
    if operation.kind is Kind.MARK:
        ledger.note(operation.text)
    else:
        disk.play(operation)


def ledger_of(operations: list[Operation]) -> Ledger:
    ledger = Ledger()
    for operation in operations:
        if operation.kind is Kind.MARK:
            ledger.note(operation.text)
    return ledger


def _moment(operations: list[Operation], rng: random.Random) -> int:
    """After how many operations the power goes: often where it hurts."""
    def wanted(operation: Operation) -> bool:
        match way:
            case "in a sync":
                return operation.kind is Kind.SYNC_END
            case "behind a promise":
                return operation.kind is Kind.MARK and not operation.data.startswith((b'["send', b'["commit",'))
            case _:
                return operation.kind in (Kind.RENAME, Kind.UNLINK, Kind.RMDIR, Kind.MKDIR, Kind.OPEN, Kind.TRUNCATE)

    way = rng.choices(("anywhere", "in a sync", "behind a promise", "behind a name"), (40, 25, 25, 10))[0]
    places = [] if way == "anywhere" else [at for at, operation in enumerate(operations) if wanted(operation)]
    if not places:
        return rng.randint(0, len(operations))
    return rng.choice(places) + (way != "in a sync")


def _wait(pid: int) -> int:
    return os.waitpid(pid, 0)[1]


def work() -> None:
    """A worker: jobs come as lines of JSON, outcomes go so."""
    worker = Worker()
    for line in sys.stdin:
        outcome = worker.do(Job(**json.loads(line)))
        print(json.dumps(asdict(outcome)), flush=True)


# In the process that was started


class _Workers:
    """Processes that have the twin, each with a thread that gives it jobs."""

    def __init__(self, jobs: Any, done: Any, count: int = WORKERS):
        self._jobs = jobs
        self._done = done
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._serve) for _ in range(count)]

    def run(self) -> None:
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        process = None
        while True:
            with self._lock:
                job = next(self._jobs, None)
            if job is None:
                break
            if process is None:
                process = subprocess.Popen(
                    [sys.executable, "-m", f"tests.torture.{NAME}", "--worker"], stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE, text=True, env={**os.environ, **environment()},
                )
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(asdict(job)) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if line:
                outcome = Outcome(**json.loads(line))
            else:
                outcome = Outcome(failures=[(job.first, f"the worker died: {process.wait()}")])
                process = None
            with self._lock:
                self._done(job, outcome)
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def cut_power(
    run: Run, lies: list[str] | None = None, only: int | None = None, recording: str = "", workers: int = WORKERS
) -> None:
    """As many states as the run asks for, or the one that is named."""
    scratch = scratch_directory() / f"takhin-{NAME}-{os.getpid()}"
    begun_s = time.monotonic()
    kinds: Counter[str] = Counter()
    first_of: dict[str, str] = {}

    def jobs() -> Any:
        if only is not None:
            yield Job(run.seed, only, 1, str(scratch / "only"), lies or [], recording)
            return
        for first in range(0, run.count, STATES):
            if run.seconds is not None and time.monotonic() - begun_s > run.seconds:
                return
            yield Job(run.seed, first, min(STATES, run.count - first), str(scratch / str(first)), lies or [])

    def done(job: Job, outcome: Outcome) -> None:
        run.done += outcome.states
        run.add(
            second_cuts=outcome.second_states, recordings=1, recorded_operations=outcome.operations,
            entries_judged=outcome.entries,
        )
        for number, failure in outcome.failures:
            kind = re.sub(r"\d+", "N", failure)
            kinds[kind] += 1
            if kind not in first_of:
                first_of[kind] = f"state {number}, recording {job.number} of seed {job.seed}: {failure}"
                run.fail(first_of[kind])

    library()
    try:
        _Workers(jobs(), done, workers).run()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    seconds = max(time.monotonic() - begun_s, 0.001)
    run.figures["states_a_second"] = round(run.done / seconds, 1)
    run.figures["failed_judgements"] = sum(kinds.values())


def scratch_directory() -> Path:
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else Path("/tmp")


def main() -> int:
    parser = argparse.ArgumentParser(prog=f"make {NAME}", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--count", type=int, default=DEFAULT_STATES, metavar="N", help="states (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed asks for the same again (default 1)")
    parser.add_argument("--seconds", type=float, default=None, help="begin no more recordings after so long")
    parser.add_argument("--only", type=int, default=None, metavar="STATE", help="just this state")
    parser.add_argument("--recording", default="", help="with --only: a recording that was kept")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work()
        return 0
    run = Run(NAME, 1 if arguments.only is not None else arguments.count, arguments.seed, arguments.seconds)
    cut_power(run, only=arguments.only, recording=arguments.recording)
    return run.end()


if __name__ == "__main__":
    sys.exit(main())
