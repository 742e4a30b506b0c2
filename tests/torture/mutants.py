"""Mutants: each safeguard of the engine (a sync, a checksum's test, a bound's test) is taken out, one at a time, and
the tests have to notice.

    python -m tests.torture.mutants
    python -m tests.torture.mutants --count 20 --seed 3 --seconds 600
    python -m tests.torture.mutants --list
    python -m tests.torture.mutants --only recovery.py

mutant_sites.py says what a safeguard is. The sources are copied to build/mutants and compiled there once, with a
switch at each of them. Each mutant that was killed before has the test run that killed it then (killers.json, which a
run writes anew): most die of it. For the others all tests run without a mutant, to tell which of them reach which
site; that is kept for as long as neither sources nor tests change. Then, mutant by mutant, the tests that reach it
run, the quickest first, until one fails, crashes or hangs. A test is believed only when it passes once more without
the mutant: on a busy machine tests fail for other reasons, too.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tests.torture.copied_tree import ROOT, compile_tree, copy_tree
from tests.torture.mutant_sites import Site, all_sites, with_switches
from tests.torture.mutant_switch import CYTHON_PREAMBLE, PYTHON_PREAMBLE
from tests.torture.mutant_tests import Chooser, Process, Reach, Recorder

PLACE = ROOT / "build" / "mutants"
KILLERS = Path(__file__).with_name("killers.json")
# pytest's status when no test was chosen.
_NO_TESTS = 5
K = TypeVar("K")
V = TypeVar("V")

AT_ONCE = 2
# Not those that look at the sources or measure, nor this one.
TESTS = (
    "tests/codec", "tests/log", "tests/format", "tests/unit", "tests/broker", "tests/recovery", "tests/cli",
    "tests/rpc", "tests/torture",
)
_LEFT_OUT = ("tests/torture/test_mutants.py", "tests/torture/test_oracle.py", "tests/torture/test_twin.py")
# The first run of a mutant has so many tests: the quickest, and quick ones that reach little else.
_FIRST = 12
_QUICK_S = 1.0

# Sites whose removal can make no difference: (file, function, text, the how manieth) and the reason.
EQUIVALENT: dict[tuple[str, str, str, int], str] = {
    ("takhin/codec/batch.pyx", "_stored_timestamp", "at < end", 1):
        "its caller, find_timestamp, has had the record skipped: the length ends before `end`",
    ("takhin/log/reader.pyx", "_take_records", "at < end", 1):
        "at the end skip_record() finds no record, and the loop ends just there",
    ("takhin/log/reader.pyx", "_locate", "segment.next_offset <= self.next_offset", 1):
        "what the segment does not have is found missing at its end, with the same answer; only more is read for it",
    ("takhin/log/reader.pyx", "_locate", "header.base_offset > self.next_offset", 1):
        "_batch_part holds what it has read against the offset again, with the same answer",
    ("takhin/log/transaction.py", "_check_size", "needed > room", 1):
        "it spares the work: what the entry needs exactly is held against the room again, and refused in the same way",
    ("takhin/log/segment.pyx", "_check_at", "left > file_size - position", 1):
        "what is not there is found missing when it is read, with the same answer; only more is read for it",
    ("takhin/log/committer.py", "_begin_journal", "[commit.fd]", 1):
        "of a new file's header: nothing counts on it before an entry is behind it, whose sync is of the same file",
    ("takhin/broker/access_control.py", "find_key", "len(presented) > MAX_KEY_CHARACTERS", 1):
        "it spares the work: what is longer than any key has no key's hash",
}


@dataclass
class Verdict:
    """What became of a mutant: killed, hung, crashed, survived, unreached, equivalent. test: which killed it."""

    number: int
    outcome: str
    test: str = ""
    seconds: float = 0.0


@dataclass
class Copy:
    """The copy with switches. only: the files that have any, and which alone are compiled; None: all of the engine."""

    place: Path = PLACE
    only: tuple[str, ...] | None = None
    sites: list[Site] = field(default_factory=list)

    def make(self) -> None:
        """Copy and compile."""
        self.sites = [site for site in all_sites(ROOT) if self.only is None or site.path in self.only]
        copy_tree(self.place, self._changed)
        if self.only is not None:
            # The others as they are, so that they are not compiled.
            for compiled in (ROOT / "takhin").rglob("*.so"):
                if str(compiled.relative_to(ROOT)).partition(".")[0] not in self._compiled():
                    shutil.copy2(compiled, self.place / compiled.relative_to(ROOT))
        compile_tree(self.place, TAKHIN_DEBUG="1")

    def _compiled(self) -> list[str]:
        """The extension modules that have switches, as paths without a suffix."""
        return sorted({site.path.removesuffix(".pyx") for site in self.sites if site.path.endswith(".pyx")})

    def _changed(self, path: str, data: bytes) -> bytes:
        numbered = {number: site for number, site in enumerate(self.sites) if site.path == path}
        if numbered:
            preamble = CYTHON_PREAMBLE if path.endswith(".pyx") else PYTHON_PREAMBLE
            return with_switches(data.decode(), numbered, preamble).encode()
        if path == "setup.py" and self.only is not None:
            modules = [module.replace("/", ".") for module in self._compiled()]
            for name in ("MODULES", "FAST_MODULES"):
                is_fast = name == "FAST_MODULES"
                listed = [module for module in modules if module.startswith("takhin.rpc.fast.") == is_fast]
                data = re.sub(rb"(?ms)^%s = \[.*?^\]" % name.encode(), f"{name} = {listed!r}".encode(), data)
            return data
        if path == "takhin/__init__.py":
            # Beside it, what Python modules import.
            (self.place / "takhin").mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "tests/torture/mutant_switch.py", self.place / "takhin")
        return data

    # Which tests reach what

    def reach(self, tests: tuple[str, ...] = TESTS) -> list[Reach]:
        """Of every test that passes without a mutant, the quickest first; what was kept is used where it is right."""
        kept = self.place / "reached"
        kept.mkdir(exist_ok=True)
        common = self._digest()
        found: list[Reach] = []
        missing: dict[str, Path] = {}
        for path in _test_files(self.place, tests):
            digest = hashlib.sha256(common + (self.place / path).read_bytes()).hexdigest()[:20]
            results = kept / f"{path.replace('/', '-')}-{digest}"
            if results.exists():
                found += [Reach(**json.loads(line)) for line in results.read_text().splitlines()]
            else:
                missing[path] = results
        # On a busy machine a test may fail: then its file is given a second try.
        for is_last in (False, True):
            for path, process in _several(missing.copy(), self._record):
                if process.ended_with and not is_last:
                    continue
                results = missing.pop(path)
                if process.ended_with:
                    print(f"mutants: not all of {path} passes without a mutant\n{process.tail}", file=sys.stderr)
                temporary = results.with_suffix(".new")
                found += [Reach(**json.loads(line)) for line in temporary.read_text().splitlines()]
                # With a test that fails, or none that can be collected, nothing is kept.
                if not process.ended_with:
                    temporary.rename(results)
        return sorted(found, key=lambda reach: reach.seconds)

    def _digest(self) -> bytes:
        """Of all that tests depend on."""
        digest = hashlib.sha256()
        for path in sorted([*self.place.glob("takhin/**/*"), *self.place.glob("tests/**/*.py")]):
            if path.suffix in (".py", ".pyx", ".pxd") and not path.name.startswith(("test_", "mutant", "copied_tree")):
                digest.update(path.read_bytes())
        return digest.digest()

    def _record(self, path: str, results: Path, scratch: Path) -> "Ended":
        reached = scratch / "reached"
        reached.write_bytes(bytes(len(self.sites)))
        temporary = results.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        return Ended(Process(
            self.place, [path], [Recorder(reached, temporary)], scratch, MUTANT_REACHED=str(reached)
        ))

    # Mutants

    def judge(self, numbers: list[int], reach: list[Reach]) -> Iterator[Verdict]:
        """What becomes of these mutants, in the order in which it is known."""
        waiting: dict[int, Trial] = {}
        for number in numbers:
            trial = Trial(number, _ordered([each for each in reach if number in each.sites]))
            if self.sites[number].key in EQUIVALENT:
                yield Verdict(number, "equivalent")
            elif not trial.tests:
                yield Verdict(number, "unreached")
            else:
                waiting[number] = trial
        while waiting:
            # All have their quick run, then those that are left the other.
            again: dict[int, Trial] = {}
            for number, ended in _several(waiting, lambda _, trial, scratch: trial.start(self, scratch)):
                verdict = waiting[number].take(ended)
                if verdict is not None:
                    yield verdict
                else:
                    again[number] = waiting[number]
            waiting = again


@dataclass
class Trial:
    """A mutant under test: tests that are still to run, in their order; suspect: one that failed, and has to pass
    without the mutant."""

    number: int
    tests: list[Reach]
    suspect: Verdict | None = None
    first: bool = True
    running: list[Reach] = field(default_factory=list)
    seconds: float = 0.0

    def start(self, copy: Copy, scratch: Path) -> "Ended":
        """Run what is next."""
        if self.suspect is not None:
            self.running = [reach for reach in self.tests if reach.test == self.suspect.test]
        else:
            self.running = self.tests[: 2 * _FIRST] if self.first else self.tests
        files = sorted({reach.test.partition("::")[0] for reach in self.running})
        number = -1 if self.suspect is not None else self.number
        return Ended(Process(
            copy.place, ["-x", *files], [Chooser(self.running, scratch / "test")], scratch, MUTANT=str(number)
        ))

    def take(self, ended: "Ended") -> Verdict | None:
        """What follows from a run: a verdict, or None: there is more to run."""
        status = ended.ended_with
        self.seconds += ended.seconds
        if status == _NO_TESTS:
            # What killed it once is there no more.
            status = 0
        if status not in (0, 1) and status >= 0:
            raise RuntimeError(f"mutant {self.number}: pytest ended with {status}\n{ended.tail}")
        if self.suspect is not None:
            if status == 0:
                return self.suspect
            # It fails without the mutant, too: it can't tell.
            self.tests = [reach for reach in self.tests if reach.test != self.suspect.test]
            self.suspect = None
        elif status:
            test = ended.last_test
            outcome = "hung" if status == -signal.SIGALRM else "crashed" if status < 0 else "killed"
            verdict = Verdict(self.number, outcome, test, self.seconds)
            if not test:
                # Not even the tests can be collected.
                return verdict
            self.suspect = verdict
        else:
            self.tests = self.tests[len(self.running) :]
            self.first = False
        if not self.tests:
            return Verdict(self.number, "survived", seconds=self.seconds)
        return None


class Ended:
    """A process, and how it ended."""

    def __init__(self, process: Process):
        self.process = process
        self.ended_with = 0
        self.seconds = time.monotonic()
        self.last_test = ""
        self.tail = ""

    def poll(self) -> bool:
        """Whether it has ended."""
        status = self.process.ended()
        if status is None:
            return False
        self.process.clean_up()
        self.ended_with = status
        self.seconds = time.monotonic() - self.seconds
        if self.process.last_test.exists():
            self.last_test = self.process.last_test.read_text()
        self.tail = self.process.output.read_text(errors="replace")[-3000:]
        return True


def _several(jobs: dict[K, V], start: Callable[[K, V, Path], Ended]) -> Iterator[tuple[K, Ended]]:
    """AT_ONCE of the jobs at a time, each with a directory for scratch; they come as they end."""
    top = Path(tempfile.gettempdir()) / f"takhin-mutants-{os.getpid()}"
    left = list(jobs.items())
    running: dict[K, tuple[Ended, Path]] = {}
    number = 0
    try:
        while left or running:
            while left and len(running) < AT_ONCE:
                key, job = left.pop(0)
                number += 1
                scratch = top / str(number)
                scratch.mkdir(parents=True)
                running[key] = start(key, job, scratch), scratch
            for key, (ended, scratch) in list(running.items()):
                if ended.poll():
                    del running[key]
                    shutil.rmtree(scratch, ignore_errors=True)
                    yield key, ended
            time.sleep(0.02)
    finally:
        for ended, _ in running.values():
            ended.process.clean_up()
        shutil.rmtree(top, ignore_errors=True)


def _ordered(reach: list[Reach]) -> list[Reach]:
    """First those that are likely to fail soon, if any does."""
    first = reach[:_FIRST]
    quick = [each for each in reach[_FIRST:] if each.seconds < _QUICK_S]
    first += sorted(quick, key=lambda each: (len(each.sites), each.seconds))[:_FIRST]
    return first + [each for each in reach if each not in first]


def _test_files(place: Path, tests: tuple[str, ...]) -> list[str]:
    found = []
    for test in tests:
        path = place / test
        found += [path] if path.is_file() else sorted(path.rglob("test_*.py"))
    names = [str(path.relative_to(place)) for path in found]
    return [name for name in names if name not in _LEFT_OUT and (ROOT / name).exists()]


@dataclass
class Killers:
    """Which test killed each mutant the last time, by the site's key as text, and how many seconds it takes."""

    known: dict[str, tuple[str, float]]

    @classmethod
    def read(cls, path: Path = KILLERS) -> "Killers":
        return cls({key: (test, seconds) for key, (test, seconds) in json.loads(path.read_text()).items()})

    def write(self, path: Path = KILLERS) -> None:
        rows = ",\n".join(f"{json.dumps(key)}: {json.dumps(self.known[key])}" for key in sorted(self.known))
        path.write_text(f"{{\n{rows}\n}}\n")

    def reach(self, sites: list[Site], numbers: list[int]) -> list[Reach]:
        """Of those of these sites that have one."""
        found = ((number, self.known.get(_key(sites[number]))) for number in numbers)
        return [Reach(killer[0], killer[1], [number]) for number, killer in found if killer is not None]

    def note(self, site: Site, verdict: Verdict, reach: list[Reach]) -> None:
        """What a run has found."""
        if verdict.outcome in ("killed", "hung", "crashed") and verdict.test:
            seconds = next((each.seconds for each in reach if each.test == verdict.test), 1.0)
            self.known[_key(site)] = verdict.test, seconds
        elif verdict.outcome in ("survived", "unreached", "equivalent"):
            self.known.pop(_key(site), None)


def _key(site: Site) -> str:
    path, function, text, number = site.key
    return f"{path} {function}: {text}" + (f" ({number})" if number > 1 else "")


def judge_all(copy: Copy, killers: Killers, numbers: list[int]) -> Iterator[Verdict]:
    """What becomes of these mutants: first of those whose killer is known. Notes new killers."""
    known = killers.reach(copy.sites, numbers)
    again = set(numbers)
    for verdict in copy.judge([each.sites[0] for each in known], known):
        if verdict.outcome not in ("survived", "unreached"):
            again.discard(verdict.number)
            yield verdict
    if again:
        reach = copy.reach()
        for verdict in copy.judge([number for number in numbers if number in again], reach):
            killers.note(copy.sites[verdict.number], verdict, reach)
            yield verdict


def figures(verdicts: list[Verdict], wanted: int, seed: int, seconds: float) -> str:
    """The last line."""
    of = Counter(verdict.outcome for verdict in verdicts)
    killed = of["killed"] + of["hung"] + of["crashed"]
    survived = of["survived"] + of["unreached"]
    score = 100 * killed / max(killed + survived, 1)
    return (
        f"mutants: {len(verdicts)} of {wanted} sites, {killed} killed ({of['hung']} by hanging, {of['crashed']} by a "
        f"crash), {survived} survived ({of['unreached']} of them no test reaches), {of['equivalent']} equivalent, "
        f"score {score:.1f}% (seed {seed}, {seconds:.0f} s)"
    )


def main() -> int:
    """As the module's docstring says."""
    parser = argparse.ArgumentParser(prog="make mutants", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--count", type=int, default=None, metavar="N", help="so many of the sites (default: all)")
    parser.add_argument("--seed", type=int, default=1, help="which ones, and their order (default 1)")
    parser.add_argument("--seconds", type=float, default=None, help="begin no more mutants after so long")
    parser.add_argument("--only", default="", metavar="TEXT", help="just the sites whose description has this in it")
    parser.add_argument("--list", action="store_true", help="print the sites, and do nothing")
    arguments = parser.parse_args()
    begun_s = time.monotonic()
    copy = Copy()
    if arguments.list:
        for site in all_sites(ROOT):
            print(site)
        return 0
    copy.make()
    unknown = set(EQUIVALENT) - {site.key for site in copy.sites}
    if unknown:
        print(f"mutants: no such sites any more: {unknown}", file=sys.stderr)
        return 1
    killers = Killers.read()
    numbers = [number for number, site in enumerate(copy.sites) if arguments.only in str(site)]
    wanted = len(copy.sites)
    random.Random(arguments.seed).shuffle(numbers)
    verdicts = []
    for verdict in judge_all(copy, killers, numbers[: arguments.count]):
        verdicts.append(verdict)
        site = copy.sites[verdict.number]
        by = f" by {verdict.test}" if verdict.test else ""
        print(f"{verdict.outcome}{by} ({verdict.seconds:.0f} s): {site}", flush=True)
        if arguments.seconds is not None and time.monotonic() - begun_s > arguments.seconds:
            break
    killers.write()
    print(figures(verdicts, wanted, arguments.seed, time.monotonic() - begun_s), flush=True)
    return 1 if any(verdict.outcome in ("survived", "unreached") for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
