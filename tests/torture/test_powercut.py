"""Power cuts: a share of what `make powercut` does, and that it finds what it is there to find."""

import random
from pathlib import Path

import pytest

from tests.torture.common import Run
from tests.torture.disk import Disk
from tests.torture.powercut import NAME, STATES, cut_power
from tests.torture.twin import CREATED, DIRECTORY, Kind, Operation, fault

TOP, FILE, OTHER, SUB = 1, 2, 3, 4
_INODES = {"/d": TOP, "/d/a": FILE, "/d/b": FILE, "/d/other": OTHER, "/d/sub": SUB, "/d/sub/other": OTHER}


def test_no_promise_is_broken() -> None:
    run = Run(NAME, 6 * STATES, 1)
    cut_power(run)
    assert run.done == 6 * STATES and not run.failures
    assert int(str(run.figures["second_cuts"])) > STATES // 2


@pytest.mark.parametrize(("kind", "path", "broken"), [
    ("sync", "*.log", ("was durable up to", "was never sent", "is damaged")),
    ("sync_directory", "*/topics*", ("was durable up to",)),
    ("sync", "*meta.db*", ("is gone", "does not start", "stands at", "there were answers", "was moved to")),
])
def test_a_sync_that_does_nothing_is_found(
    kind: str, path: str, broken: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(NAME, 2 * STATES, 2)
    cut_power(run, lies=[fault(kind, path, action="lie", times=-1)])
    assert any(any(words in failure for words in broken) for failure in run.failures), run.failures


# The disk that is rebuilt


def op(kind: Kind, path: str, second: str = "", *, data: bytes = b"", position: int = 0, **more: int) -> Operation:
    return Operation(
        kind, more.get("flags", 0), more.get("result", len(data)), _INODES[path], position, more.get("number", 0), path,
        second, data,
    )


def made(path: str) -> Operation:
    return op(Kind.OPEN, path, flags=CREATED)


def written(path: str, data: bytes, position: int = 0) -> Operation:
    return op(Kind.WRITE, path, data=data, position=position)


def synced(path: str, result: int = 0, between: list[Operation] | None = None) -> list[Operation]:
    flags = DIRECTORY if _INODES[path] in (TOP, SUB) else 0
    return [
        op(Kind.SYNC, path, flags=flags, number=7), *(between or []),
        op(Kind.SYNC_END, path, flags=flags, number=7, result=result),
    ]


def outcomes(tmp_path: Path, *steps: Operation | list[Operation]) -> set[tuple[tuple[str, bytes], ...]]:
    """All that many cuts leave: names with what they hold."""
    disk = Disk("/d")
    tmp_path.mkdir(exist_ok=True)
    # The directory itself.
    disk.play(op(Kind.MKDIR, "/d"))
    for step in steps:
        for operation in step if isinstance(step, list) else [step]:
            disk.play(operation)
    found = set()
    for number in range(300):
        target = tmp_path / str(number)
        disk.cut(target, random.Random(number))
        found.add(tuple(sorted(
            (str(path.relative_to(target)), path.read_bytes()) for path in target.rglob("*") if path.is_file()
        )))
    return found


def test_what_is_synced_is_there(tmp_path: Path) -> None:
    assert outcomes(tmp_path, made("/d/a"), written("/d/a", b"x" * 600), synced("/d/a"), synced("/d")) == {
        (("a", b"x" * 600),)
    }


def test_a_name_that_is_not_synced_may_be_missing(tmp_path: Path) -> None:
    assert outcomes(tmp_path, made("/d/a"), written("/d/a", b"x"), synced("/d/a")) == {(), (("a", b"x"),)}


def test_what_came_during_a_sync_is_not_covered(tmp_path: Path) -> None:
    found = outcomes(tmp_path, made("/d/a"), synced("/d"), synced("/d/a", between=[written("/d/a", b"x")]))
    assert found == {(("a", b""),), (("a", b"x"),), (("a", b"\0"),)}


def test_writes_are_torn_at_512_bytes(tmp_path: Path) -> None:
    before, after = b"." * 1024, b"#" * 1024
    found = outcomes(
        tmp_path, made("/d/a"), written("/d/a", before), synced("/d/a"), synced("/d"), written("/d/a", after)
    )
    halves = (before[:512], after[:512])
    assert found == {(("a", first + second),) for first in halves for second in halves}


def test_a_file_that_grew_may_hold_zeros_or_be_short(tmp_path: Path) -> None:
    contents = {
        content for ((_, content),) in outcomes(
            tmp_path, made("/d/a"), synced("/d"), written("/d/a", b"#" * 512), written("/d/a", b"#" * 512, 512)
        )
    }
    hash_, zero = b"#" * 512, bytes(512)
    assert {b"", hash_, hash_ + hash_, zero + hash_, hash_ + zero, zero} == contents - {zero + zero}


def test_a_rename_happens_as_a_whole(tmp_path: Path) -> None:
    found = outcomes(
        tmp_path, made("/d/a"), written("/d/a", b"x"), synced("/d/a"), synced("/d"), op(Kind.RENAME, "/d/a", "/d/b")
    )
    assert found == {(("a", b"x"),), (("b", b"x"),)}


def test_an_unlink_may_not_have_happened(tmp_path: Path) -> None:
    gone = [made("/d/a"), *synced("/d"), op(Kind.UNLINK, "/d/a")]
    assert outcomes(tmp_path / "one", gone) == {(), (("a", b""),)}
    assert outcomes(tmp_path / "two", gone, synced("/d")) == {()}


def test_what_lies_in_a_missing_directory_is_missing(tmp_path: Path) -> None:
    inside = [op(Kind.MKDIR, "/d/sub"), made("/d/sub/other"), *synced("/d/sub")]
    assert outcomes(tmp_path, inside) == {(), (("sub/other", b""),)}


def test_changes_of_one_name_happen_in_order(tmp_path: Path) -> None:
    found = outcomes(
        tmp_path, made("/d/other"), written("/d/other", b"old"), synced("/d/other"),
        op(Kind.RENAME, "/d/other", "/d/b"), made("/d/a"), synced("/d/a"),
    )
    # Not both names of the renamed file, and its new one only when it was made at all.
    assert found == {
        names for names in found if not ({"other", "b"} <= {name for name, _ in names})
    } and len(found) == 6


@pytest.mark.parametrize("rewritten", [False, True])
def test_what_a_failed_sync_lost_is_not_covered_by_the_next(tmp_path: Path, rewritten: bool) -> None:
    steps: list[Operation | list[Operation]] = [
        made("/d/a"), synced("/d"), written("/d/a", b"x"), synced("/d/a", result=-5)
    ]
    if rewritten:
        steps.append(written("/d/a", b"x"))
    found = outcomes(tmp_path, *steps, synced("/d/a"))
    assert found == ({(("a", b"x"),)} if rewritten else {(("a", b""),), (("a", b"x"),), (("a", b"\0"),)})


def test_a_truncate_may_not_have_happened(tmp_path: Path) -> None:
    found = outcomes(
        tmp_path, made("/d/a"), written("/d/a", b"x" * 10), synced("/d/a"), synced("/d"),
        op(Kind.TRUNCATE, "/d/a", position=3),
    )
    # What is left of its last page is zeroed by itself.
    assert found == {(("a", content),) for content in (b"xxx", b"x" * 10, b"xxx" + bytes(7))}


def test_a_truncate_leaves_no_half_of_what_it_takes(tmp_path: Path) -> None:
    found = outcomes(
        tmp_path, made("/d/a"), written("/d/a", b"x" * 20_000), synced("/d/a"), synced("/d"),
        op(Kind.TRUNCATE, "/d/a", position=0), written("/d/a", b"y"),
    )
    old = b"x" * 19_999
    assert found == {(("a", content),) for content in (b"", b"y", b"\0", b"x" + old, b"y" + old)}
