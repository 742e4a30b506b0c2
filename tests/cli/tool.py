"""takhin as its user meets it: a process with arguments, lines, an exit status. And data that a real broker wrote."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import DEADLINE_S, BrokerProcess, commit, create_topic, produce

TAKHIN = [sys.executable, "-m", "takhin.cli.main"]
TOPIC = "events"


@dataclass
class Done:
    status: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """What --json printed."""
        return [json.loads(line) for line in self.out.splitlines()]

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [each for each in self.objects if each["type"] == kind]


def takhin(*arguments: object, stdin: int = subprocess.DEVNULL) -> Done:
    """Run it to its end; it never shows a traceback, and says at most one line of what is wrong."""
    done = subprocess.run(
        [*TAKHIN, *map(str, arguments)], stdin=stdin, capture_output=True, timeout=DEADLINE_S)
    err = done.stderr.decode()
    assert "Traceback" not in err and "Exception ignored" not in err, err
    assert not err or err.startswith("takhin: ") and err.count("\n") == 1, err
    return Done(done.returncode, done.stdout.decode(), err)


# A small process stands between us and the tool: what one was before it became another program counts as its peak.
_PEAK = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, file=sys.stderr)
sys.exit(status)
"""


def peak_of(*arguments: object) -> tuple[int, bytes, int]:
    """Run it: its exit status, what it printed, the peak of its resident memory in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, *TAKHIN, *map(str, arguments)], capture_output=True, timeout=DEADLINE_S)
    return done.returncode, done.stdout, int(done.stderr.splitlines()[-1])


def tree(directory: Path) -> dict[str, str]:
    """Every name below, with its mode and times, and what a file holds."""
    found = {}
    for path in sorted(directory.rglob("*")):
        about = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(directory))] = f"{about.st_mode:o} {about.st_mtime_ns} {about.st_size} {content}"
    return found


@dataclass
class Data:
    """A data directory, and what a broker that is gone wrote to TOPIC, its topic 1. sent: by partition."""

    directory: Path
    sent: dict[int, list[pb.Record]] = field(default_factory=dict)

    @property
    def partition(self) -> Path:
        return self.directory / "topics" / "1" / "0"

    @property
    def segments(self) -> list[Path]:
        return sorted(self.partition.glob("*.log"))

    def copied(self, to: Path) -> "Data":
        shutil.copytree(self.directory, to / "data")
        return Data(to / "data", self.sent)

    def flip(self, path: Path, at: int) -> None:
        with path.open("r+b") as file:
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 1]))


def record(number: int) -> pb.Record:
    made = pb.Record(value=b"value %d " % number * (number % 5 * 8), timestamp=1_700_000_000_000 + number)
    if number % 3 == 0:
        made.key = b"key-%d" % number
    if number % 4 == 0:
        made.headers.add(key="number", value=str(number).encode())
    if number % 7 == 0:
        made.ClearField("value")
    return made


def write_data(directory: Path, *, clean: bool) -> Data:
    """Some hundred records in several segments, every tenth request durable; stopped in order, or killed."""
    broker = BrokerProcess(directory).start()
    try:
        stub = broker.stub()
        create_topic(stub, TOPIC, 2, segment_bytes=10_000)
        create_topic(stub, "other", 1)
        data = Data(broker.data_dir, {0: [], 1: []})
        for number in range(120):
            records = [record(number * 4 + each) for each in range(4)]
            partition = int(number % 6 == 5)
            produce(stub, TOPIC, *records, partition=partition, acks=-1 if number % 10 < 2 else 1)
            data.sent[partition] += records
        produce(stub, "other", b"in another topic", acks=-1)
        commit(stub, "group", (TOPIC, 0, 10))
        if clean:
            broker.terminate()
        else:
            broker.kill()
        broker.check()
    finally:
        broker.close()
    assert len(data.segments) >= 4
    return data


def broker_on(data: Data) -> BrokerProcess:
    """A broker on that data directory, started."""
    broker = BrokerProcess(data.directory.parent / "broker")
    broker.data_dir = data.directory
    return broker.start()


def as_root() -> bool:
    return os.geteuid() == 0
