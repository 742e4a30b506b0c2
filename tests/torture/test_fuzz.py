"""A share of what `make fuzz` does, and all that it ever found."""

from pathlib import Path

import pytest

from tests.torture.bed import quiet, scratch
from tests.torture.common import Run
from tests.torture.fuzz import CORPUS, try_input
from tests.torture.fuzz_targets import TARGETS

SHARES = {
    "produce": 15_000, "consume": 15_000, "batch": 10_000, "index": 5_000, "snapshot": 5_000, "directory": 800,
    "request": 1_500, "front": 900,
}


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_share_of_the_fuzzing(name: str) -> None:
    run = Run("fuzz", SHARES[name], 1)
    broken: list[str] = []
    with scratch() as directory, quiet():
        target = TARGETS[name](directory)
        for number, chance in run:
            data = target.make(chance)
            try:
                target.check(data)
            except Exception as problem:  # every kind of it
                broken.append(f"round {number}: {type(problem).__name__}: {problem}")
        target.close()
    assert not broken
    assert run.done == SHARES[name]


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*-*")), ids=lambda path: path.name)
def test_what_was_found_before(path: Path) -> None:
    name = path.name.partition("-")[0]
    if name not in TARGETS:
        pytest.skip("the fast front is not built")
    run = Run("fuzz", 1, 1)
    with scratch() as directory, quiet():
        target = TARGETS[name](directory)
        try_input(name, target, path.read_bytes(), run)
        target.close()
    assert not run.failures
