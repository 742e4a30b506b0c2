"""takhin against a broker, as its user meets it: a process with arguments, standard streams, an exit status."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.broker_process import DEADLINE_S, BrokerProcess

TAKHIN = [sys.executable, "-m", "takhin.cli.main"]


@dataclass
class Ran:
    status: int
    out: bytes
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def complaint(self) -> str:
        """The one line for the user, the last of what it says."""
        line = self.err.splitlines()[-1]
        assert line.startswith("takhin: "), self.err
        return line


def environment(broker: BrokerProcess | None = None, **variables: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("TAKHIN_", "NO_COLOR"))}
    return own | ({"TAKHIN_BROKER": broker.address} if broker is not None else {}) | variables


def takhin(
    broker: BrokerProcess | None, *arguments: object, stdin: bytes = b"", status: int = 0, **variables: str
) -> Ran:
    """Run it to its end; its exit status must be `status`. It never shows a traceback."""
    done = subprocess.run(
        [*TAKHIN, *map(str, arguments)], input=stdin, capture_output=True, timeout=DEADLINE_S,
        env=environment(broker, **variables))
    err = done.stderr.decode()
    assert "Traceback" not in err and "Exception" not in err and "never" not in err, err
    assert done.returncode == status, (done.returncode, err)
    return Ran(done.returncode, done.stdout, err)


def start(
    broker: BrokerProcess | None, *arguments: object, stdout: int = subprocess.PIPE, stdin: int = subprocess.DEVNULL,
    command: Sequence[str] = TAKHIN, **variables: str
) -> "subprocess.Popen[bytes]":
    """Start it; its standard error is a pipe as well."""
    return subprocess.Popen(
        [*command, *map(str, arguments)], stdin=stdin, stdout=stdout, stderr=subprocess.PIPE,
        env=environment(broker, **variables))


# Samples the peak of what a process holds itself, without files and what it was before it became another program.
_PEAK = """
import re, subprocess, sys, time
process = subprocess.Popen(sys.argv[1:])
peak_kib = 0
while process.poll() is None:
    try:
        with open(f"/proc/{process.pid}/status") as file:
            found = re.search(r"RssAnon:\\s+(\\d+)", file.read())
    except OSError:
        found = None
    peak_kib = max(peak_kib, int(found[1]) if found else 0)
    time.sleep(0.01)
print(peak_kib * 1024, file=sys.stderr)
sys.exit(process.returncode)
"""


def peak_bytes_of(broker: BrokerProcess, *arguments: object, stdout: Any = subprocess.DEVNULL) -> int:
    """Run it to its end, well; the peak of its own resident memory."""
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, *TAKHIN, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=stdout,
        stderr=subprocess.PIPE, timeout=DEADLINE_S, env=environment(broker))
    assert done.returncode == 0, done.stderr
    return int(done.stderr.splitlines()[-1])
