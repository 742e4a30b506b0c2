"""A share of what `make mutants` does, and what it takes for a safeguard."""

import re
import sys
from collections import Counter
from pathlib import Path
from textwrap import dedent

import pytest

from tests.broker_process import BrokerProcess
from tests.torture.copied_tree import ROOT
from tests.torture.mutant_sites import Site, all_sites, sites_in, with_switches
from tests.torture.mutant_tests import Reach
from tests.torture.mutants import EQUIVALENT, Copy, Killers, Verdict, figures

PLACE = ROOT / "build" / "mutants-share"
# One of each language.
FILES = ("takhin/codec/batch.pyx", "takhin/broker/sqlite_files.py")
TESTS = ("tests/codec/test_batch.py", "tests/broker/test_sqlite_files.py")
# Those that these tests alone notice.
NOTICED = {
    ("checksum", "_has_tags"), ("bound", "read_batch_header"), ("checksum", "check_batch"), ("bound", "read_batch"),
    ("checksum", "take_sum"),
}


@pytest.fixture(scope="module")
def copy() -> Copy:
    copy = Copy(PLACE, FILES)
    copy.make()
    return copy


def test_mutants_die_and_the_original_lives(copy: Copy) -> None:
    reach = copy.reach(TESTS)
    # Without a mutant all passes: only what has passed is in there.
    assert {path for path in TESTS if not any(each.test.startswith(path) for each in reach)} == set()
    reached = {number for each in reach for number in each.sites}
    numbers = [number for number, site in enumerate(copy.sites) if (site.kind, site.function) in NOTICED]
    assert len(numbers) == 6 and reached >= set(numbers)
    verdicts = {verdict.number: verdict for verdict in copy.judge(numbers, reach)}
    assert {verdict.outcome for verdict in verdicts.values()} <= {"killed", "crashed"}, verdicts
    # A test that has nothing to do with the mutant does not notice it.
    other = [each for each in reach if "every_field_has_its_place" in each.test]
    assert [verdict.outcome for verdict in copy.judge(numbers[:1], other)] in (["survived"], ["unreached"])


def test_a_broker_under_test_knows_of_its_mutant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = re.findall(r'(?:getenv\(|environ\.get\()"(\w+)"', (ROOT / "tests/torture/mutant_switch.py").read_text())
    assert len(said) == 4
    for name in said:
        monkeypatch.setenv(name, "given")
    told = "import os, sys; sys.stderr.write(' '.join(name for name in os.environ if os.environ[name] == 'given'))"
    broker = BrokerProcess(tmp_path, program=(sys.executable, "-c", told))
    broker.launch()
    broker.wait()
    assert sorted(broker.stderr.split()) == sorted(set(said))


def test_every_kind_of_safeguard_is_found_in_the_engine() -> None:
    sites = all_sites(ROOT)
    of = Counter(site.kind for site in sites)
    assert set(of) == {"sync", "directory", "checksum", "bound"} and min(of.values()) >= 8
    assert len({site.key for site in sites}) == len(sites)
    # Every file that has the words has a site.
    with_sites = {site.path for site in sites}
    for path in ("takhin/log/files.pyx", "takhin/log/sync.pyx", "takhin/codec/wire.pyx", "takhin/log/recovery.py"):
        assert path in with_sites
    assert set(EQUIVALENT) <= {site.key for site in sites}


def found(source: str, path: str = "takhin/log/x.pyx") -> list[tuple[str, str]]:
    return [(site.kind, site.text) for site in sites_in(path, dedent(source))]


@pytest.mark.parametrize(("source", "sites"), [
    ("files.sync_data(fd)", [("sync", "files.sync_data(fd)")]),
    ("result = self.files.sync_file(job.fds[i])", [("sync", "self.files.sync_file(job.fds[i])")]),
    ("while fsync(fd) < 0:\n        pass", [("directory", "fsync(fd)")]),
    ("await self.committer.sync_all()", [("sync", "await self.committer.sync_all()")]),
    ("Files().sync_directory(a(b) or c)", [("directory", "Files().sync_directory(a(b) or c)")]),
    ("thread.submit([fd], fds, 1)", [("sync", "[fd]"), ("directory", "fds")]),
    ("thread.submit([fd], [])", [("sync", "[fd]")]),
    ("self._unsynced.append(segment)", [("sync", "self._unsynced.append(segment)")]),
    ("if mask(crc) != header.crc32c:\n        return BAD", [("checksum", "mask(crc) != header.crc32c")]),
    ("whole = a == b and mask(x) == payload_crc", [("checksum", "mask(x) == payload_crc")]),
    ("if at >= end or at[0] != TAG:\n        return NULL", [("bound", "at >= end")]),
    ("if not 0 <= offset <= end:\n        raise error()", [("bound", "0 <= offset <= end")]),
    ("while at < end and at[0] >= 0x80:\n        at += 1", [("bound", "at < end")]),
    ("if size > <uint64_t>(end - at):\n        return -EIO", [("bound", "size > <uint64_t>(end - at)")]),
    ("if size > limit:\n        grow()", []),
    ("while at < end:\n        at += 1", []),
    ("if kind == CRC:\n        return NULL", []),
])
def test_what_is_a_safeguard(source: str, sites: list[tuple[str, str]]) -> None:
    assert found(f"def f():\n    {source}\n") == sites


def test_nothing_is_found_outside_of_functions() -> None:
    assert found("limit = 3 if sync(x) else 4\n") == []


SOURCE = """\
import os

def inner(data, end, at, crc, calls):
    if at >= end or not at <= end and data[at] > 9:
        raise ValueError
    if crc != 3:
        raise KeyError
    calls.sync_data(1)
    return crc
"""


def run(source: str, taken_out: str, *arguments: object) -> list[int]:
    """What is synced by inner() of the source with switches, the sites with that text taken out."""
    sites = dict(enumerate(sites_in("takhin/log/x.py", source)))

    class Calls:
        synced: list[int] = []

        def sync_data(self, fd: int) -> None:
            self.synced.append(fd)

    names: dict[str, object] = {"_mutant_on": lambda number: sites[number].text != taken_out}
    exec(with_switches(source, sites, "# switched\n"), names)  # noqa: S102
    calls = Calls()
    calls.synced = []
    names["inner"](*arguments, calls)  # type: ignore[operator]
    return calls.synced


def test_a_switch_takes_out_its_site_alone() -> None:
    assert run(SOURCE, "", b"ab", 2, 1, 3) == [1]
    assert run(SOURCE, "calls.sync_data(1)", b"ab", 2, 1, 3) == []
    with pytest.raises(ValueError):
        run(SOURCE, "crc != 3", b"ab", 2, 2, 4)
    assert run(SOURCE, "at >= end", b"ab", 2, 2, 3) == [1]
    with pytest.raises(KeyError):
        run(SOURCE, "at >= end", b"ab", 2, 1, 4)
    assert run(SOURCE, "crc != 3", b"ab", 2, 1, 4) == [1]


def test_who_killed_a_mutant_is_tried_first_the_next_time(tmp_path: Path) -> None:
    sites = sites_in("takhin/log/x.py", SOURCE)
    path = tmp_path / "killers.json"
    path.write_text("{}")
    killers = Killers.read(path)
    killers.note(sites[0], Verdict(0, "killed", "tests/a.py::b"), [Reach("tests/a.py::b", 0.5)])
    killers.note(sites[1], Verdict(1, "crashed", "tests/a.py::c"), [])
    killers.write(path)
    killers = Killers.read(path)
    assert killers.reach(sites, [2, 1, 0]) == [Reach("tests/a.py::c", 1.0, [1]), Reach("tests/a.py::b", 0.5, [0])]
    killers.note(sites[1], Verdict(1, "survived"), [])
    assert killers.reach(sites, [0, 1]) == [Reach("tests/a.py::b", 0.5, [0])]


def test_every_known_killer_is_of_a_site_and_a_test_that_are_there() -> None:
    # By what does not move, so this fails when one was renamed: make mutants writes the file anew.
    killers = Killers.read()
    sites = all_sites(ROOT)
    assert len(killers.known) == len(killers.reach(sites, list(range(len(sites)))))
    files = {test.partition("::")[0] for test, _ in killers.known.values()}
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_line_of_figures() -> None:
    outcomes = ["killed"] * 5 + ["hung", "crashed", "survived", "unreached", "equivalent"]
    line = figures([Verdict(number, outcome) for number, outcome in enumerate(outcomes)], 12, 3, 4.0)
    assert line == (
        "mutants: 10 of 12 sites, 7 killed (1 by hanging, 1 by a crash), 2 survived (1 of them no test reaches), "
        "1 equivalent, score 77.8% (seed 3, 4 s)"
    )


def test_a_site_is_known_by_what_does_not_move() -> None:
    moved: list[list[Site]] = [sites_in("takhin/log/x.py", SOURCE), sites_in("takhin/log/x.py", f"\n\n{SOURCE}")]
    assert [site.key for site in moved[0]] == [site.key for site in moved[1]]
    assert [site.begin for site in moved[0]] != [site.begin for site in moved[1]]
    assert Path(moved[0][0].path).name == "x.py"
