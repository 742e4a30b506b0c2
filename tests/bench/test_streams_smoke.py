"""bench.idle_streams and bench.floods run, small, and their last line is JSON. Nothing here is timed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.floods import FLOODS
from tests.secured import IS_DEFAULT


def run(*command: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, timeout=180, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_bench_idle_streams_runs(tmp_path: Path) -> None:
    found = run("bench.idle_streams", "--streams", "60", "--processes", "2", "--seconds", "0.3", "--directory",
                str(tmp_path))
    assert set(found) == {"readers", "members"}
    for figures in found.values():
        assert figures["streams"] == 60 and figures["connections"] == 2
        assert figures["open_kib"] > figures["before_kib"] > 0
        assert figures["produce_without"]["calls"] > 0 and figures["produce_beside"]["failed"] == 0


@pytest.mark.skipif(IS_DEFAULT, reason="the broker of the bench is its own")
def test_bench_floods_runs(tmp_path: Path) -> None:
    names = ["nothing", "resets of readers", "DATA of 1 byte"]
    only = [word for name in names for word in ("--only", name)]
    found = run("bench.floods", "--seconds", "0.5", "--connections", "2", *only, "--directory", str(tmp_path))
    assert set(found) == set(names)
    for name, figures in found.items():
        assert (figures["sent_a_second"] > 0) == (name != "nothing")
        assert figures["connections_opened"] >= 2
        assert 0 < figures["beside"]["p50_ms"] <= figures["beside"]["p99_ms"]
        assert figures["after"]["failed"] == 0 and figures["most_kib"] > 0


def test_floods_have_names_of_their_own() -> None:
    assert len({flood.name for flood in FLOODS}) == len(FLOODS) > 10
