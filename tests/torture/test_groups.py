"""A share of `make groups`, and bugs that it has to find."""

import sys
from pathlib import Path

import pytest

from tests.torture.common import Run
from tests.torture.groups import torture


def test_no_promise_is_broken(tmp_path: Path) -> None:
    run = Run("groups", 2, 1)
    torture(run, tmp_path)
    assert run.failures == []
    assert run.done == run.count
    figures = {name: int(str(value)) for name, value in run.figures.items()}
    assert figures["broker_kills"] and figures["looked_for"] > 100
    assert sum(count for name, count in figures.items() if name.startswith(("members_", "streams_"))) > 3
    assert figures["delivered"] - figures["again"] == 3 * figures["records"]


@pytest.mark.parametrize(("bug", "rounds", "told"), [
    # Such a commit claims more than was processed: a record may be skipped, a right commit be behind.
    ("stale_commits_taken", 2, "a commit of an old generation was taken|and [0-9]+ had been committed|"
     "never processed|which was processed, was refused"),
    ("records_skipped_when_moved", 1, "which nobody committed"),
    ("producers_forgotten", 1, "ABORTED PRODUCER_UNKNOWN"),
])
def test_a_planted_bug_is_found(tmp_path: Path, bug: str, rounds: int, told: str) -> None:
    run = Run("groups", 8, 1, sought=told)
    program = [sys.executable, "-m", "tests.torture.planted", bug]
    torture(run, tmp_path, program, rounds)
    assert run.has_found, run.failures
