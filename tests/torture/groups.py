"""Idempotent producers, groups whose members keep dying, a broker that is killed under them; then the oracle judges.

    make groups N=1000 SEED=1 SECONDS=600

A round is one life of the broker. Eight producers send records with keys, three groups of four members read them:
members are killed, stopped for longer than their session, cut off and made to leave, and come back as themselves, as
new ones, or in each other's place. After some rounds everybody is let come to the end, and all of it is judged: the log
as in `make crash`, and every member's own ledger.
"""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import SERVER, BrokerProcess
from tests.torture.common import Run, run_from_arguments
from tests.torture.crash import World, end_broker, kill_broker, make_world, scratch
from tests.torture.oracle.member import MemberOptions, run_member
from tests.torture.oracle.member_log import read_member_log
from tests.torture.oracle_process import OracleProcess

PRODUCERS = 8
MEMBERS = 4
TOPICS: dict[str, tuple[int, dict[str, str]]] = {
    "orders": (6, {"segment.bytes": "100000"}),
    "events": (3, {"flush.ms": "20"}),
}
# Of each group: its assignor, and how its members commit.
GROUPS = {
    "sticky": ("sticky", ("stream", "unary", "stream", "unary")),
    "range": ("range", ("stream", "stream", "unary", "auto")),
    "roundrobin": ("roundrobin", ("auto", "auto", "stream", "auto")),
}
# Of a group's members these two are static ones.
_STATIC = (0, 1)
_GRACE_MS = 1500
_REVOKE_MS = 1000
_SESSIONS_MS = (1500, 2500)
_LIFE_S = (2.0, 5.0)
_BETWEEN_DEATHS_S = (0.1, 0.6)
_STOPPED_S = (0.1, 4.0)
# Whoever is signalled before it listens dies of that.
_ENDS = (0, -signal.SIGTERM, -signal.SIGUSR1)
# How long all groups are given to come to the end of the log, and a process to end when it is asked to.
_END_S = 180
# A data directory goes through so many lives of a broker.
ROUNDS_OF_A_DIRECTORY = 20


@dataclass
class Slot:
    """A member's place: one process after the other, now and then two at a time."""

    group: str
    name: str
    commits: str
    topics: Sequence[str]
    instance_id: str
    count: int = 0
    process: BaseProcess | None = None
    # Stopped until then; 0: runs. Without a process: when the next one comes.
    until_s: float = 0.0
    # Processes that were stopped, and whose place others have since.
    zombies: list[tuple[BaseProcess, float]] = field(default_factory=list)


class Members:
    """The processes of all members of all groups in one directory."""

    def __init__(self, directory: Path, rng: random.Random):
        self.directory = directory
        self.directory.mkdir()
        self.address = directory / "address"
        self.rng = rng
        self.slots = [
            Slot(
                group, f"m{i}", commits[i],
                # Where members subscribe to different topics, the others of the group have them.
                sorted(TOPICS) if assignor != "roundrobin" or i < 3 else ["orders"],
                f"{group}-{i}" if i in _STATIC else "")
            for group, (assignor, commits) in GROUPS.items() for i in range(MEMBERS)
        ]
        # A server that forks: a member is there in a moment, and shares nothing with this process.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.torture.oracle.member"])
        self._leaving: list[BaseProcess] = []
        self.deaths: Counter[str] = Counter()
        self.failures: list[str] = []

    def tell_address(self, address: str) -> None:
        """Where the broker is from now on."""
        new = self.address.with_suffix(".new")
        new.write_text(address)
        new.rename(self.address)

    def tick(self) -> None:
        """Whoever is to come back comes back, and something happens to one."""
        now_s = time.monotonic()
        for slot in self.slots:
            self._wake(slot, now_s)
        for process in [each for each in self._leaving if not each.is_alive()]:
            self._leaving.remove(process)
            self._reap(process)
        slot = self.rng.choice(self.slots)
        if slot.process is not None and not slot.until_s:
            name, harm = self.rng.choice((
                ("members_killed", self._kill), ("members_killed", self._kill), ("members_stopped", self._stop),
                ("members_stopped", self._stop), ("streams_cut", self._cut), ("members_left", self._leave),
                ("members_replaced", self._replace),
            ))
            self.deaths[name] += 1
            harm(slot, now_s)

    def _wake(self, slot: Slot, now_s: float) -> None:
        for process, until_s in list(slot.zombies):
            if until_s <= now_s:
                slot.zombies.remove((process, until_s))
                # It is told to leave too, or there would be more and more.
                self._send(process, signal.SIGCONT)
                self._send(process, signal.SIGTERM)
                self._leaving.append(process)
        if slot.process is not None and not slot.process.is_alive():
            self._reap(slot.process)
            slot.process, slot.until_s = None, 0.0
        if slot.process is None and slot.until_s <= now_s:
            self._start(slot)
        elif slot.until_s and slot.until_s <= now_s:
            slot.until_s = 0.0
            assert slot.process is not None
            self._send(slot.process, signal.SIGCONT)

    def start(self) -> None:
        for slot in self.slots:
            self._start(slot)

    def _start(self, slot: Slot, *, is_other: bool = False) -> None:
        member_id = ""
        # Who was killed at once has no ledger.
        if slot.count and not is_other and self.rng.random() < 0.5 and self._ledger(slot).exists():
            member_id = read_member_log(self._ledger(slot)).member_id
        slot.count += 1
        options = MemberOptions(
            group=slot.group, topics=slot.topics, address=self.address, ledger=self._ledger(slot),
            seed=str(self.rng.random()), assignor=GROUPS[slot.group][0], commits=slot.commits,
            session_timeout_ms=self.rng.choice(_SESSIONS_MS), revoke_timeout_ms=_REVOKE_MS,
            instance_id=slot.instance_id, member_id=member_id,
        )
        slot.process = self._context.Process(target=run_member, args=(options,), daemon=True)
        slot.process.start()
        slot.until_s = 0.0

    def _ledger(self, slot: Slot) -> Path:
        return self.directory / f"{slot.group}.{slot.name}.{slot.count}"

    @property
    def ledgers(self) -> list[Path]:
        return sorted(path for path in self.directory.iterdir() if path.name.count(".") == 2)

    # What happens to them

    def _kill(self, slot: Slot, now_s: float) -> None:
        assert slot.process is not None
        self._send(slot.process, signal.SIGKILL)
        self._reap(slot.process, -signal.SIGKILL)
        slot.process = None
        slot.until_s = now_s + self.rng.choice((0, 0, self.rng.uniform(0, 2 * _GRACE_MS / 1000)))

    def _stop(self, slot: Slot, now_s: float) -> None:
        assert slot.process is not None
        self._send(slot.process, signal.SIGSTOP)
        slot.until_s = now_s + self.rng.uniform(*_STOPPED_S)

    def _cut(self, slot: Slot, now_s: float) -> None:
        assert slot.process is not None
        self._send(slot.process, signal.SIGUSR1)

    def _leave(self, slot: Slot, now_s: float) -> None:
        assert slot.process is not None
        self._send(slot.process, signal.SIGTERM)

    def _replace(self, slot: Slot, now_s: float) -> None:
        """Another one comes while it is stopped, in its place if it is a static member; then it wakes up."""
        assert slot.process is not None
        self._send(slot.process, signal.SIGSTOP)
        slot.zombies.append((slot.process, now_s + self.rng.uniform(*_STOPPED_S)))
        # Not with its member_id: by that nobody could tell the two apart.
        self._start(slot, is_other=True)

    @staticmethod
    def _send(process: BaseProcess, number: signal.Signals) -> None:
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, number)

    def _reap(self, process: BaseProcess, *statuses: int) -> None:
        process.join(_END_S)
        if process.exitcode not in (*_ENDS, *statuses):
            self.failures.append(f"a member's process ended with {process.exitcode} (None: not at all)")

    # The end

    def let_all_run(self) -> None:
        """Nobody dies any more, everybody is there."""
        for slot in self.slots:
            slot.zombies = [(process, 0.0) for process, _ in slot.zombies]
            slot.until_s = min(slot.until_s, 1.0)
            self._wake(slot, time.monotonic())

    def leave(self) -> None:
        """All end; those whose place was taken among them."""
        self.let_all_run()
        running = [*self._leaving, *(slot.process for slot in self.slots if slot.process is not None)]
        for process in running:
            self._send(process, signal.SIGTERM)
        for process in running:
            self._reap(process)

    def close(self) -> None:
        """Without an end in order."""
        for slot in self.slots:
            for process in (slot.process, *(zombie for zombie, _ in slot.zombies)):
                if process is not None and process.is_alive():
                    process.kill()
        for process in self._leaving:
            process.kill()


@dataclass
class Soak:
    """One data directory, its oracle and its members."""

    world: World
    members: Members
    rounds: int = 0

    def round(self, run: Run, rng: random.Random) -> None:
        """One life of the broker."""
        world = self.world
        # Drawn first: how much is drawn below is for the clock to say.
        is_kill, life_s = rng.random() < 0.8, rng.uniform(*_LIFE_S)
        self._begin_load(rng)
        if not self.rounds:
            self.members.start()  # the load has made the topics
        end_s = time.monotonic() + life_s
        while time.monotonic() < end_s:
            self.members.tick()
            time.sleep(rng.uniform(*_BETWEEN_DEATHS_S))
        fault = kill_broker(world.broker) if is_kill else end_broker(world.broker, rng)
        loaded = world.end_load()
        world.broker.start()
        self.members.tell_address(world.broker.address)
        world.oracle.fault(fault)
        world.check_log()
        self.rounds += 1
        run.add(**{
            "broker_kills" if fault == "kill" else "broker_stops": 1,
            "duplicates_told": loaded["figures"].get("duplicates", 0)})

    def _begin_load(self, rng: random.Random) -> None:
        others = ("unary", "batches", "streams", "committers", "followers", "churners", "idempotent")
        self.world.begin_load(
            seed=str(rng.random()), topics=TOPICS, keyed=PRODUCERS, pace_s=0.05, **dict.fromkeys(others, 0))

    def finish(self, run: Run, rng: random.Random) -> None:
        """Everybody comes to the end, and is judged."""
        world, members = self.world, self.members
        self._begin_load(rng)
        members.let_all_run()
        time.sleep(1)
        world.oracle.stop_load()
        world.end_load()
        self._wait_for_the_end()
        members.leave()
        found = world.oracle.judge(world.broker.address, "none", members.ledgers)
        world.failures += found["breaches"] + members.failures
        world.check_log()
        figures = {name: value for name, value in found["groups"].items() if name != "breaches"}
        run.add(**members.deaths, records=found["records"], looked_for=found["acked"], **figures)

    def _wait_for_the_end(self) -> None:
        """Until each group has committed all there is."""
        made = [
            pb.TopicPartition(topic=topic, partition=i) for topic, (count, _) in TOPICS.items() for i in range(count)]
        deadline_s = time.monotonic() + _END_S
        for group in GROUPS:
            request = pb.FetchOffsetsRequest(group_id=group, partitions=made)
            while behind := [
                each for each in self.world.broker.stub().FetchOffsets(request, timeout=_END_S).offsets
                if each.committed_offset < each.end_offset
            ]:
                if time.monotonic() > deadline_s:
                    told = ", ".join(f"{each.topic}/{each.partition} at {each.committed_offset}" for each in behind)
                    self.world.failures.append(f"group {group} does not come to the end: {told}")
                    break
                self.members.let_all_run()
                time.sleep(0.1)

    def close(self) -> None:
        self.members.close()
        self.world.broker.close()


def begin(oracle: OracleProcess, directory: Path, rng: random.Random, program: Sequence[str]) -> Soak:
    """A broker, and members that come with the first round."""
    world = make_world(
        oracle, directory, rng, program, groups_grace_ms=_GRACE_MS, groups_revoke_timeout_ms=_REVOKE_MS,
        groups_auto_commit_ms=100)
    soak = Soak(world, Members(directory / "members", random.Random(rng.random())))
    soak.members.tell_address(world.broker.address)
    return soak


def torture(
    run: Run, directory: Path, program: Sequence[str] = SERVER, rounds: int = ROUNDS_OF_A_DIRECTORY,
) -> None:
    """The rounds, `rounds` in a data directory; those with broken promises stay in `directory`."""
    soak: Soak | None = None

    def finish(number: int, rng: random.Random) -> None:
        assert soak is not None
        soak.finish(run, rng)
        soak.close()
        for failure in soak.world.failures:
            run.fail(f"up to round {number}: {failure}")
        if soak.world.failures:
            run.fail(f"up to round {number}: kept in {soak.world.broker.directory}")
        else:
            shutil.rmtree(soak.world.broker.directory)

    with OracleProcess() as oracle:
        number, rng = 0, random.Random()
        try:
            for number, rng in run:
                if soak is None:
                    soak = begin(oracle, directory / f"round-{number}", rng, program)
                soak.round(run, rng)
                if soak.world.failures or soak.members.failures or soak.rounds >= rounds:
                    finish(number, rng)
                    soak = None
                if run.has_told_enough:
                    return
            if soak is not None:
                finish(number, rng)
                soak = None
        finally:
            if soak is not None:
                soak.close()


def main() -> int:
    run = run_from_arguments("groups", "producers, members that die, a broker that is killed, and the oracle", 40)
    with scratch(run) as directory:
        torture(run, directory)
    return run.end()


if __name__ == "__main__":
    sys.exit(main())
