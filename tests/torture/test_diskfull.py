"""A share of `make diskfull`, each part in a mount namespace of its own, and bugs that it has to find."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.torture.diskfull import DEADLINE_S, FILLINGS, namespace

PROGRAM = """
import json, sys
from pathlib import Path
from tests.torture import diskfull
from tests.torture.common import Run
run = Run("diskfull", int(sys.argv[2]), int(sys.argv[5]), sought=sys.argv[7] or None)
diskfull.DEADLINE_S = float(sys.argv[6])
diskfull.torture(run, Path(sys.argv[1]), json.loads(sys.argv[3]), [sys.argv[4]])
print(json.dumps({"done": run.done, "found": run.has_found, "failures": run.failures, "figures": run.figures}))
"""


@pytest.fixture(scope="session")
def mounts() -> list[str]:
    """What runs a program in a mount namespace."""
    prefix = namespace()
    if prefix is None:
        why = "mounting a small disk needs root or user namespaces, unshare and mount"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return prefix


def torture(
    mounts: list[str], directory: Path, rounds: int, filling: str, seed: int, deadline_s: int, *module: str,
    sought: str = ""
) -> dict[str, Any]:
    """What came of some rounds: {done, found, failures, figures}. module: what serves, in place of takhin-server."""
    program = [sys.executable, "-m", *(module or ("takhin.cli.server",))]
    arguments = [str(directory), str(rounds), json.dumps(program), filling, str(seed), str(deadline_s), sought]
    ran = subprocess.run([*mounts, sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("filling", FILLINGS)
def test_no_promise_is_broken(mounts: list[str], tmp_path: Path, filling: str) -> None:
    rounds = 1 if FILLINGS[filling].retention or FILLINGS[filling].metadata else 2
    # The seed decides what happens while the disk is full: over all fillings, all of it does.
    seed = list(FILLINGS).index(filling)
    ran = torture(mounts, tmp_path, rounds, filling, seed, DEADLINE_S)
    assert ran["failures"] == []
    assert ran["done"] == rounds
    assert ran["figures"]["refusals"] >= rounds
    assert ran["figures"]["records_looked_for"] > 50


# By the log; or by the broker, when it was an idempotent producer's and he sends its sequence again with other records.
_REFUSED_BUT_APPENDED = (
    r"failed \(DISK_FULL\), and is there|is a duplicate when it comes for the first time|ABORTED SEQUENCE_OUT_OF_WINDOW"
)


@pytest.mark.parametrize(("bug", "filling", "told"), [
    ("refused_but_appended", "produce", _REFUSED_BUT_APPENDED),
    ("appends_stay_refused", "ballast to the last block", "go on once there is room"),
    ("untyped_refusals", "ballast to the last block", "INTERNAL_ERROR"),
    ("ends_when_the_disk_is_full", "ballast to the last block", "has ended"),
], ids=["refused but appended", "appends stay refused", "untyped refusals", "ends when the disk is full"])
def test_a_planted_bug_is_found(mounts: list[str], tmp_path: Path, bug: str, filling: str, told: str) -> None:
    # What never comes is not waited for as long as what takes its time.
    ran = torture(mounts, tmp_path, 3, filling, 0, 8, "tests.torture.planted", bug, sought=told)
    assert ran["found"], ran["failures"]


def test_nothing_stays_mounted() -> None:
    assert "takhin" not in {line.split()[0] for line in Path("/proc/mounts").read_text().splitlines()}
