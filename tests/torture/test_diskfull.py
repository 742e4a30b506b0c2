"""A share of `make diskfull`, each part in a mount namespace of its own, and bugs that it has to find."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.torture.diskfull import FILLINGS, ROUNDS_OF_A_DISK, namespace

PROGRAM = """
import json, sys
from pathlib import Path
from tests.torture.common import Run
from tests.torture.diskfull import torture
run = Run("diskfull", int(sys.argv[2]), 1)
torture(run, Path(sys.argv[1]), json.loads(sys.argv[3]), [sys.argv[4]], most_failures=1)
print(json.dumps({"done": run.done, "failures": run.failures, "figures": run.figures}))
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


def torture(mounts: list[str], directory: Path, rounds: int, filling: str, *module: str) -> dict[str, Any]:
    """What came of some rounds: {done, failures, figures}. module: what serves, in place of takhin-server."""
    program = [sys.executable, "-m", *(module or ("takhin.cli.server",))]
    ran = subprocess.run(
        [*mounts, sys.executable, "-c", PROGRAM, str(directory), str(rounds), json.dumps(program), filling],
        capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("filling", FILLINGS)
def test_no_promise_is_broken(mounts: list[str], tmp_path: Path, filling: str) -> None:
    rounds = 1 if FILLINGS[filling].retention else ROUNDS_OF_A_DISK
    ran = torture(mounts, tmp_path, rounds, filling)
    assert ran["failures"] == []
    assert ran["done"] == rounds
    assert ran["figures"]["refusals"] >= 10 * rounds
    assert ran["figures"]["records_looked_for"] > 100


@pytest.mark.parametrize(("bug", "filling", "told"), [
    ("refused_but_appended", "produce", "failed (DISK_FULL), and is there"),
    ("appends_stay_refused", "ballast to the last block", "go on once there is room"),
    ("untyped_refusals", "ballast to the last block", "requests were refused with"),
    ("ends_when_the_disk_is_full", "ballast to the last block", "has ended"),
])
def test_a_planted_bug_is_found(mounts: list[str], tmp_path: Path, bug: str, filling: str, told: str) -> None:
    ran = torture(mounts, tmp_path, 2, filling, "tests.torture.planted", bug)
    assert told in "\n".join(ran["failures"])


def test_nothing_stays_mounted() -> None:
    assert "takhin" not in {line.split()[0] for line in Path("/proc/mounts").read_text().splitlines()}
