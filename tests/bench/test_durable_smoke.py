"""bench.durable runs, small, in process and against a broker's fast front. Nothing here is timed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.secured import IS_DEFAULT

ROOT = Path(__file__).resolve().parents[2]


def lines_of(directory: Path, *flags: str) -> list[list[str]]:
    command = [sys.executable, "-m", "bench.durable", "--rounds", "1", "--seconds", "0.5", "--partitions", "1,3",
               "--sizes", "100", "--directory", str(directory), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert list(directory.iterdir()) == [], "the data directory is gone"
    header, *lines, ratios = done.stdout.splitlines()
    assert header.startswith("partitions") and ratios.startswith("p99 with the journal, times that of 1: 3: ")
    return [line.split() for line in lines]


def test_in_process(tmp_path: Path) -> None:
    cases = lines_of(tmp_path)
    assert [case[:3] for case in cases] == [[count, "100", used] for count in ("1", "3") for used in ("no", "yes")]
    assert int(cases[2][-1]) == 0 and int(cases[3][-1]) > 0, "commits of three partitions go through the journal"


@pytest.mark.skipif(IS_DEFAULT, reason="the broker of the bench is its own")
def test_at_the_fast_front(programs: None, tmp_path: Path) -> None:
    cases = lines_of(tmp_path, "--fast")
    assert [case[:3] for case in cases] == [[count, "100", used] for count in ("1", "3") for used in ("no", "yes")]
    assert all(float(case[5]) > 0 for case in cases)
