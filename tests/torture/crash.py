"""kill -9 under load, at any moment: while records are written, segments rolled and removed, topics made and deleted,
offsets committed, while the broker ends in order, and while it recovers from the kill before. Then the oracle judges.

    make crash N=200 SEED=1
"""

import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.broker_process import SERVER, BrokerProcess, wait_until
from tests.torture.common import Run, run_from_arguments
from tests.torture.oracle.load import TOPICS
from tests.torture.oracle_process import OracleProcess

# What the load does in each phase, beside what oracle.load.Plan says itself.
PHASES: dict[str, dict[str, Any]] = {
    "load": {},
    "roll": {"topics": {"rolling": TOPICS["rolling"]}, "streams": 4, "committers": 0, "churners": 0},
    "retention": {"topics": {"short": TOPICS["short"]}, "streams": 3, "batches": 3, "churners": 0},
    "topics": {"topics": {"plain": TOPICS["plain"]}, "churners": 6, "unary": 1, "batches": 0, "streams": 1},
    "commits": {"committers": 6, "unary": 1, "batches": 1, "streams": 1, "churners": 0},
    "durable": {"acks": [-1, -1, 0], "unary": 6, "streams": 3, "churners": 0},
    "drain": {},
    "recovery": {},
}
# Kills that no start of a service would see: while the one before is being recovered from.
_MOST_RECOVERY_KILLS = 3
_LOAD_S = (0.02, 0.4)
_EXEC_S, _RECOVERY_S, _DRAIN_S = 0.15, 0.06, 0.05
# A data directory goes through so many rounds: the log that is read each time stays small.
ROUNDS_OF_A_DIRECTORY = 8


@dataclass
class World:
    """One data directory and its ledger."""

    broker: BrokerProcess
    oracle: OracleProcess
    rounds: int = 0
    checked: int = 0
    is_loading: bool = False
    failures: list[str] = field(default_factory=list)

    def judge(self, fault: str) -> dict[str, Any]:
        """The broker is up again after `fault`."""
        found = self.oracle.judge(self.broker.address, fault)
        self.failures += found["breaches"]
        self.check_log()
        return found

    def check_log(self) -> None:
        """The broker's log has no trace of a bug, and of no damage: a kill damages nothing."""
        told = self.broker.stderr[self.checked :]
        self.checked += len(told)
        try:
            self.broker.check(len(self.broker.stderr) - len(told))
        except AssertionError as problem:
            self.failures.append(f"the broker's log tells of a bug: {str(problem)[-2000:]}")
        if match := re.search(".*is damaged.*", told):
            self.failures.append(f"the broker found damage: {match[0]}")

    def begin_load(self, **plan: Any) -> None:
        """A load on the broker that runs; plan: of oracle.load.Plan."""
        self.oracle.begin_load(self.broker.address, **plan)
        self.is_loading = True

    def end_load(self) -> dict[str, Any]:
        """Wait for the load's end: {figures, reasons, promised}."""
        told = self.oracle.end_load()
        self.is_loading = False
        self.failures += [f"the load was told: {surprise}" for surprise in told["surprises"]]
        return told


def make_world(
    oracle: OracleProcess, directory: Path, rng: random.Random, program: Sequence[str] = SERVER, **more_flags: int
) -> World:
    """A broker on a new directory, with settings that make much happen; more_flags: with "_" for "-"."""
    flags = {
        "topics-retention-check-ms": 10,
        "topics-flush-ms": rng.choice((1, 20, 1000, -1)),
        "topics-segment-bytes": rng.choice((8192, 100_000, 1 << 27)),
        "limits-open-files": rng.choice((16, 4096)),
        "limits-ring-bytes": rng.choice((1 << 16, 1 << 26)),
        **{name.replace("_", "-"): value for name, value in more_flags.items()},
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    broker = BrokerProcess(directory, *words, program=program)
    oracle.open(directory / "ledger")
    return World(broker.start(), oracle)


def torture(
    run: Run, directory: Path, program: Sequence[str] = SERVER, phases: Sequence[str] = tuple(PHASES),
) -> None:
    """The rounds; data directories of those that broke a promise stay in `directory`."""
    world: World | None = None
    with OracleProcess() as oracle:
        try:
            for number, rng in run:
                if world is None:
                    world = make_world(oracle, directory / f"round-{number}", rng, program)
                # Each phase in turn, so that also a small count sees all of them.
                phase = phases[number % len(phases)]
                _round(run, world, phase, rng)
                world.rounds += 1
                for failure in world.failures:
                    run.fail(f"round {number} ({phase}): {failure}")
                if world.failures or world.rounds >= ROUNDS_OF_A_DIRECTORY:
                    world.broker.close()
                    if not world.failures:
                        shutil.rmtree(world.broker.directory)
                    else:
                        run.fail(f"round {number}: kept in {world.broker.directory}")
                    world = None
                if run.has_told_enough:
                    return
        finally:
            if world is not None:
                world.broker.close()
                shutil.rmtree(world.broker.directory)


def _round(run: Run, world: World, phase: str, rng: random.Random) -> None:
    """Load, a kill, perhaps kills of the recovery, a start, a judgement."""
    broker = world.broker
    world.begin_load(seed=str(rng.random()), **PHASES[phase])
    time.sleep(rng.uniform(*_LOAD_S))
    fault = end_broker(broker, rng) if phase == "drain" else kill_broker(broker)
    loaded = world.end_load()
    run.add(
        acked_records=loaded["figures"].get("records", 0),
        **{"clean_stops" if fault == "stop" else f"kills_in_{phase}": 1},
    )
    if phase == "recovery":
        for _ in range(rng.randint(1, _MOST_RECOVERY_KILLS)):
            fault = _kill_recovery(broker, rng)
            run.add(kills_of_a_start=1)
    broker.start()
    found = world.judge(fault)
    run.add(starts=1, records_read=found["records"], records_looked_for=found["acked"], commits_judged=found["commits"])


def kill_broker(broker: BrokerProcess) -> str:
    """kill -9; the fault that it is."""
    broker.kill()
    return "kill"


def end_broker(broker: BrokerProcess, rng: random.Random) -> str:
    """SIGTERM, and soon after it kill -9, but now and then; what it came to."""
    broker.send(signal.SIGTERM)
    if rng.random() < 0.8:
        time.sleep(rng.uniform(0, _DRAIN_S))
        broker.send(signal.SIGKILL)
    return "stop" if broker.wait() == 0 else "stopping"


def _kill_recovery(broker: BrokerProcess, rng: random.Random) -> str:
    """Start it, and kill it: soon after exec, or soon after it has taken the data directory's lock."""
    broker.launch()
    if rng.random() < 0.2:
        time.sleep(rng.uniform(0, _EXEC_S))
    else:
        lock = broker.data_dir / "LOCK"
        wait_until(lambda: lock.read_text() == f"{broker.pid}\n" or not broker.running, what="a start")
        time.sleep(rng.uniform(0, _RECOVERY_S))
    return kill_broker(broker)


@contextmanager
def scratch(run: Run) -> Iterator[Path]:
    """A directory for a run: removed at its end, unless a promise was broken."""
    directory = Path(tempfile.mkdtemp(prefix=f"takhin-{run.name}-"))
    yield directory
    if not run.failures:
        shutil.rmtree(directory)


def main() -> int:
    run = run_from_arguments("crash", "kill -9 at any moment, and what the oracle says to it", 200)
    with scratch(run) as directory:
        torture(run, directory)
    return run.end()


if __name__ == "__main__":
    sys.exit(main())
