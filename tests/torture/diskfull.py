"""A disk that is really full: a small tmpfs with the logs and the metadata, filled by producing or by a ballast file.

    make diskfull N=100 SEED=1

Refusals are typed, what was promised can be read, the process lives; with room, every partition takes appends again,
without a restart. With the broker's reserve groups commit and topics come and go meanwhile; without it, the disk is
filled to the last block. The tmpfs is mounted in a mount namespace of the run's own, and goes with it. Needs the right
to mount (root, or user namespaces).
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grpc_health.v1 import health_pb2, health_pb2_grpc

from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import MIB, SERVER, BrokerProcess, error_info
from tests.torture.common import Run, run_from_arguments
from tests.torture.crash import World, scratch
from tests.torture.oracle_process import OracleProcess

# Beside the reserve, which is more than the load writes between two looks of the broker at what is free.
DISK_BYTES = 12 * MIB
RESERVE_BYTES = 10 * MIB
# More than the write-ahead log of the metadata takes between two checkpoints.
METADATA_BYTES = 16 * MIB
# A disk goes through so many rounds.
ROUNDS_OF_A_DISK = 3

class Filling(NamedTuple):
    """How a disk gets full. ballast: by a file of somebody else's, not by what is produced."""

    ballast: bool = True
    reserve_bytes: int = RESERVE_BYTES
    # Metadata and journal are on another disk than the segments, and only theirs gets full.
    metadata: bool = False
    # The ballast stays: what expires makes the room.
    retention: bool = False


FILLINGS: dict[str, Filling] = {
    "produce": Filling(ballast=False),
    "ballast": Filling(),
    "produce to the last block": Filling(ballast=False, reserve_bytes=0),
    "ballast to the last block": Filling(reserve_bytes=0),
    "retention": Filling(retention=True),
    "metadata": Filling(reserve_bytes=0, metadata=True),
}
# What happens to the broker meanwhile.
MEANWHILE = ("nothing", "kill", "stop")
# Seconds that everything here takes many times less than.
DEADLINE_S = 30
# A disk counts as full when so many requests were refused.
_REFUSALS = 10
# So many at a time are made where the metadata is to grow.
_NEW_GROUPS = 16
_NAMESPACE = "TAKHIN_TORTURE_NAMESPACE"
KEPT: dict[str, Any] = {
    "kept": [2, {"segment.bytes": "65536"}],
    "short": [1, {"segment.bytes": "16384", "retention.bytes": "65536"}],
}
# Reasons of refusals that a client may be given whatever the disk.
_ASKED_FOR = {
    "INVALID_ACKS", "RECORD_TOO_LARGE", "KEYS_SPAN_PARTITIONS", "OFFSET_BEHIND_COMMITTED", "OFFSET_OUT_OF_RANGE",
}


class Disk(World):
    """A world whose data directory is a small disk of its own."""

    def __init__(self, oracle: OracleProcess, directory: Path, filling: Filling, program: Sequence[str] = SERVER):
        flags = {
            # For retention so seldom that what was produced in a burst expires with one look.
            "topics-retention-check-ms": 2000 if filling.retention else 200,
            "limits-min-free-bytes": filling.reserve_bytes,
            "limits-journal-bytes": MIB,
        }
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        super().__init__(BrokerProcess(directory, *words, program=program), oracle)
        self.reserve_bytes = filling.reserve_bytes
        self.mounted: list[Path] = []
        self.full = self.broker.data_dir
        self._mount(self.full, METADATA_BYTES if filling.metadata else DISK_BYTES + filling.reserve_bytes)
        if filling.metadata:
            (directory / "topics").mkdir()
            (self.full / "topics").symlink_to(directory / "topics")
        self.ballast = self.full / "ballast"
        oracle.open(directory / "ledger")
        # What is only accepted may be void once the disk is full.
        oracle.fault("full")

    def _mount(self, path: Path, size_bytes: int) -> None:
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "takhin", path], check=True)
        self.mounted.append(path)

    def grow(self) -> None:
        """Room, without the broker's doing."""
        size_bytes = os.statvfs(self.full).f_blocks * os.statvfs(self.full).f_frsize + MIB
        subprocess.run(["mount", "-o", f"remount,size={size_bytes}", self.full], check=True)

    def free_bytes(self) -> int:
        told = os.statvfs(self.full)
        return told.f_bavail * told.f_frsize

    def fill(self) -> None:
        """A ballast file takes all that is left: to the last block, or a little of the reserve."""
        wanted = max(self.reserve_bytes - MIB // 2, 0)
        with self.ballast.open("ab", buffering=0) as file:
            while (left := self.free_bytes() - wanted) > 0:
                try:
                    file.write(bytes(min(left, MIB)))
                except OSError:
                    pass

    def close(self) -> None:
        self.broker.close()
        if self.is_loading:
            # What went wrong did so under load, which ends with the broker.
            self.end_load()
        for path in reversed(self.mounted):
            subprocess.run(["umount", path], check=True)

    def check(self, condition: object, failure: str) -> None:
        if not condition:
            self.failures.append(failure)

    def wait_for(self, condition: Callable[[], object], failure: str) -> bool:
        """Poll until condition() is true; a failure when that does not come. Gives whether it did."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not condition():
            if time.monotonic() > deadline_s or not self.broker.running:
                state = "runs" if self.broker.running else "has ended"
                told = f"the broker {state}, {self.free_bytes()} bytes are free"
                self.failures.append(f"{failure} ({told}; the log ends {self.broker.stderr[-1000:]!r})")
                return False
            time.sleep(0.02)
        return True


class _Round:
    """Fill the disk, look at what holds while it is full, make room, look whether everything goes on."""

    def __init__(self, run: Run, disk: Disk, filling: Filling, meanwhile: str, filler: str, rng: random.Random):
        self.run, self.disk, self.filling, self.meanwhile = run, disk, filling, meanwhile
        self.filler, self.rng = filler, rng
        self.broker, self.oracle = disk.broker, disk.oracle

    def go(self) -> None:
        """What goes wrong is in disk.failures; the steps after it are left out."""
        steps = [self._fill, self._while_full, self._meanwhile, self._make_room, self._go_on]
        if self.filling.retention:
            steps[1:4] = [self._wait_for_retention]
        for step in steps:
            step()
            if self.disk.failures:
                return

    # Full

    def _fill(self) -> None:
        disk, filling = self.disk, self.filling
        topics = dict(KEPT)
        if filling.retention or not filling.ballast:
            # A topic of its own takes most of the disk; what takes it away again makes enough room.
            topics[self.filler] = [2, {"segment.bytes": "262144"}]
            if filling.retention:
                # All of it expires at once, the active segments too, and nobody appends to it any more.
                topics[self.filler][1]["retention.ms"] = "4000"
            self._begin_load(topics={self.filler: topics[self.filler]}, sizes=[262144], churners=0, committers=0)
            disk.wait_for(
                lambda: disk.free_bytes() < filling.reserve_bytes + DISK_BYTES // 3 or self._refusals(),
                "the disk does not get full")
            self._end_load()
        if filling.retention:
            del topics[self.filler]
        # What asks the metadata for room, or what asks the log.
        how = {"churners": 8, "committers": 4, "unary": 1, "batches": 0, "streams": 1, "pace_s": 0.02}
        self._begin_load(
            topics=topics, **(how if filling.metadata else {"pace_s": 0.005}),
            sizes=[0, 100, 1000, 16384] if filling.ballast else [1000, 65536])
        if filling.ballast:
            if not filling.retention:
                disk.wait_for(lambda: self._figures()["figures"].get("records", 0) > 100, "nothing is taken")
            # With the filler the disk may be full already: then the ballast must not take what its end gives.
            disk.fill()
        if filling.metadata:
            # Most changes fit into the room that the metadata has; what makes it grow does not.
            disk.wait_for(self._is_a_new_group_refused, "the metadata grows without room, or nobody is told so")
        else:
            disk.wait_for(lambda: self._refusals() >= _REFUSALS, "the disk does not get full, or nobody is told so")

    def _is_a_new_group_refused(self) -> bool:
        """Make some more groups, of names so long that few of them fill a page. Whether there was no room for one."""
        stub = self.broker.stub()
        position = pb.TopicPartitionOffset(topic="kept", partition=0, offset=0)
        calls = [
            stub.CommitOffset.future(
                pb.CommitOffsetRequest(group_id=f"{self.rng.getrandbits(64):x}".ljust(249, "-"), offsets=[position]),
                timeout=DEADLINE_S,
            )
            for _ in range(_NEW_GROUPS)
        ]
        reasons = {error_info(problem).reason for call in calls if (problem := call.exception()) is not None}
        self.disk.check(reasons <= {"DISK_FULL"}, f"new groups are refused for {reasons}")
        return bool(reasons)

    def _refusals(self) -> int:
        return self._figures()["reasons"].get("DISK_FULL", 0)

    def _begin_load(self, **plan: Any) -> None:
        # Not on "short": where segments go while there is no room for a snapshot of the producers, those are told
        # PRODUCER_UNKNOWN, rightly (docs/decisions/producers.md).
        self.disk.begin_load(
            seed=str(self.rng.random()), large=0, pause_s=0.02, idempotent_topics=["kept"], **plan)

    def _figures(self) -> dict[str, Any]:
        return self.oracle.figures()

    def _promised(self) -> int:
        return sum(self._figures()["promised"].values())

    def _while_full(self) -> None:
        """The load still runs."""
        disk, before = self.disk, self._figures()
        self._check_health()
        if self.filling.metadata:
            disk.wait_for(
                lambda: self._promised() > sum(before["promised"].values()) + 20,
                "produce does not go on, though there is room for the logs")
        elif self.filling.reserve_bytes:
            for what in ("commits", "topics"):
                disk.wait_for(
                    lambda: self._figures()["figures"].get(what, 0) > before["figures"].get(what, 0) + 1,
                    f"{what} do not go on, though there is a reserve")
        self._end_load()
        if not disk.failures:
            self._judge("none")

    def _end_load(self) -> None:
        self.oracle.stop_load()
        disk = self.disk
        told = disk.end_load()
        known = _ASKED_FOR | {"DISK_FULL"}
        strange = {reason: count for reason, count in told["reasons"].items() if reason not in known}
        disk.check(not strange, f"requests were refused with {strange}")
        disk.check(self.broker.running, f"the broker ended: {self.broker.stderr[-2000:]}")
        self.run.add(refusals=told["reasons"].get("DISK_FULL", 0), acked_records=told["figures"].get("records", 0))

    def _check_health(self) -> None:
        """It is alive; whether it is ready as well depends on which of its disks is full."""
        stub = health_pb2_grpc.HealthStub(self.broker.channel())
        told = stub.Check(health_pb2.HealthCheckRequest(service=""), timeout=DEADLINE_S).status
        serving = health_pb2.HealthCheckResponse.SERVING
        self.disk.check(told == serving, f"the health of the server is {told} while the disk is full")

    def _judge(self, fault: str) -> None:
        found = self.disk.judge(fault)
        self.run.add(records_read=found["records"], records_looked_for=found["acked"])

    def _meanwhile(self) -> None:
        """A restart while it is full. A broker that can't start then says so in one line; it loses nothing."""
        if self.meanwhile == "nothing":
            return
        if self.meanwhile == "kill":
            self.broker.kill()
        else:
            self.broker.send(signal.SIGTERM)
            status = self.broker.wait()
            self.disk.check(status == 0, f"it ended with {status}: {self.broker.stderr[-1000:]!r}")
        fault = "kill" if self.meanwhile == "kill" else "stopping"
        if self.rng.random() < 0.3:
            self._room_from_outside()
            self.run.add(starts_with_room=1)
        else:
            # What a refused append gave back, and what retention freed, is gone too.
            self.disk.fill()
        if refused_start(self.disk):
            self.run.add(refused_starts=1)
            self.disk.check(not self.filling.reserve_bytes, "it does not start, though there is a reserve")
            self._room_from_outside()
            self.broker.start()
        else:
            self.run.add(starts=1)
        self._judge(fault)

    def _room_from_outside(self) -> None:
        self.disk.ballast.unlink(missing_ok=True)
        self.disk.grow()

    # Room

    def _wait_for_retention(self) -> None:
        """The ballast stays, and the load goes on: segments that expire make the room."""
        before = self._promised()
        self.disk.wait_for(lambda: self._promised() > before + 10, "retention makes no room for appends")
        self._end_load()
        self.disk.ballast.unlink()
        self.run.add(rooms_made_by_retention=1)

    def _make_room(self) -> None:
        if not self.filling.ballast:
            self.disk.wait_for(
                lambda: self.oracle.delete_topic(self.broker.address, self.filler)["ok"],
                "a topic can't be deleted when the disk is full")
            self.run.add(rooms_made_by_deletion=1)
        else:
            self.disk.ballast.unlink(missing_ok=True)
            self.run.add(ballasts_removed=1)

    def _go_on(self) -> None:
        """Every partition takes appends, groups commit, topics can be made, all without a restart."""
        self._begin_load(topics=KEPT, sizes=[0, 100], pace_s=0.002)
        wanted = {f"{topic}/{number}" for topic, (count, _) in KEPT.items() for number in range(count)}

        def all_go_on() -> bool:
            told = self._figures()
            return wanted <= set(told["promised"]) and bool({"commits", "topics"} <= set(told["figures"]))

        self.disk.wait_for(all_go_on, f"not all of {sorted(wanted)} go on once there is room, or commits, or topics")
        self._end_load()
        if not self.disk.failures:
            self._judge("none")


def torture(
    run: Run, directory: Path, program: Sequence[str] = SERVER, fillings: Sequence[str] = tuple(FILLINGS),
) -> None:
    """The rounds. To be called in a mount namespace of its own."""
    disk: Disk | None = None
    with OracleProcess() as oracle:
        try:
            for number, rng in run:
                name = fillings[number // ROUNDS_OF_A_DISK % len(fillings)]
                if disk is None:
                    disk = Disk(oracle, directory / f"round-{number}", FILLINGS[name], program)
                    _first_start(run, disk)
                meanwhile = MEANWHILE[(number + run.seed) % len(MEANWHILE)]
                if not disk.failures:
                    _Round(run, disk, FILLINGS[name], meanwhile, f"filler-{number}", rng).go()
                disk.rounds += 1
                for failure in disk.failures:
                    run.fail(f"round {number} ({name}, {meanwhile}): {failure}")
                if disk.failures or disk.rounds >= ROUNDS_OF_A_DISK:
                    disk.close()
                    disk = None
                if run.has_told_enough:
                    return
        finally:
            if disk is not None:
                disk.close()


def _first_start(run: Run, disk: Disk) -> None:
    """Where there is no room at all it says so; with room it starts."""
    if not disk.reserve_bytes:
        disk.fill()
        disk.check(refused_start(disk), "a broker started where it has no room at all for its metadata")
        run.add(refused_first_starts=1)
        disk.ballast.unlink()
    if not disk.failures:
        disk.broker.start()


def refused_start(disk: Disk) -> bool:
    """Start the broker. Whether it ended, with one line that says why, instead of serving."""
    broker = disk.broker
    told = len(broker.stderr)
    status = broker.start_or_end()
    if status is None:
        return False
    why = [line for line in broker.stderr[told:].splitlines() if line.startswith("takhin-server: ")]
    disk.check(
        status == 1 and len(why) == 1 and re.search("full|space", why[0]),
        f"a start on a full disk ended with {status}: {broker.stderr[told:][-1000:]!r}")
    disk.check_log()
    return True


def namespace() -> list[str] | None:
    """What runs a program in a mount namespace of its own; None where that is not allowed."""
    for prefix in (["unshare", "-m"], ["unshare", "-rm"]):
        probe = [*prefix, "sh", "-c", "mount -t tmpfs takhin /mnt"]
        try:
            if subprocess.run(probe, capture_output=True).returncode == 0:
                return prefix
        except FileNotFoundError:
            return None
    return None


def main() -> int:
    if _NAMESPACE not in os.environ:
        prefix = namespace()
        if prefix is None:
            print("diskfull: mounting a small disk needs root or user namespaces, unshare and mount", file=sys.stderr)
            return 1
        os.environ[_NAMESPACE] = "1"
        os.execvp(prefix[0], [*prefix, sys.executable, "-m", "tests.torture.diskfull", *sys.argv[1:]])
    run = run_from_arguments("diskfull", "a small disk filled to the last block, and what the oracle says to it", 100)
    with scratch(run) as directory:
        torture(run, directory)
    return run.end()


if __name__ == "__main__":
    sys.exit(main())
