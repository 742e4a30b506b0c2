"""A share of `make crash`, and bugs that it has to find."""

import sys
from pathlib import Path

import pytest

from tests.torture import test_diskfull, test_groups
from tests.torture.common import Run
from tests.torture.crash import PHASES, torture
from tests.torture.planted import PLANTED


def test_no_promise_is_broken(tmp_path: Path) -> None:
    run = Run("crash", 2 * len(PHASES), 1)
    torture(run, tmp_path)
    assert run.failures == []
    assert run.done == run.count
    assert int(str(run.figures["records_looked_for"])) > 1000


@pytest.mark.parametrize(("bug", "phases", "told"), [
    ("answered_before_the_write", ["load", "durable"], "is lost|read by a follower, and is gone"),
    # The first to notice may be a follower, or an idempotent producer: what it follows on is not there.
    ("one_batch_too_many", ["load", "commits"], "is lost|SEQUENCE_GAP|read by a follower, and is gone"),
    ("epoch_not_raised", ["load"], "epoch 1 was written; before it, 1 was"),
    ("commit_answered_before_it_is_stored", ["commits"], "the commit is lost"),
    ("refused_but_appended", ["load"], r"failed \(DISK_FULL\), and is there"),
    ("appended_twice", ["load"], "is there 2 times"),
    ("producers_ignored", ["load"], "is there 2 times"),
    ("producers_forgotten", ["load"], "ABORTED PRODUCER_UNKNOWN"),
    ("log_start_not_stored", ["retention"], "can't be read: DATA_LOSS CORRUPT_BATCH"),
])
def test_a_planted_bug_is_found(tmp_path: Path, bug: str, phases: list[str], told: str) -> None:
    run = Run("crash", 12, 1, sought=told)
    program = [sys.executable, "-m", "tests.torture.planted", bug]
    torture(run, tmp_path, program, phases)
    assert run.has_found, run.failures


def test_each_planted_bug_is_tried() -> None:
    tried = set()
    for test in (
        test_a_planted_bug_is_found, test_diskfull.test_a_planted_bug_is_found, test_groups.test_a_planted_bug_is_found
    ):
        (mark,) = [mark for mark in test.pytestmark if mark.name == "parametrize"]
        tried |= {row[0] for row in mark.args[1]}
    assert tried == set(PLANTED)
