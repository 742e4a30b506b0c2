"""The tests under a mutant: which of them reach which site, and one run of some of them, in a process of its own."""

import json
import mmap
import os
import signal
import sys
import time
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc  # noqa: F401  (as all that takes long to import: what is forked from here has it)
import hypothesis
import pytest

# A test takes so many times what it took without a mutant, and so long: then it hangs.
_PATIENCE = 10
_PATIENCE_S = 20
_MODULES = ("takhin", "tests")
_ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Reach:
    """One test: how long it took, without a mutant, and the numbers of the sites that it reaches."""

    test: str
    seconds: float
    sites: list[int] = field(default_factory=list)


class Recorder:
    """A plugin: writes a line for each test that passes, what it reached with it."""

    def __init__(self, reached: Path, results: Path):
        self._results = results.open("a")
        with reached.open("r+b") as file:
            self._reached = mmap.mmap(file.fileno(), 0)
        self._begun_s = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """What is reached between two tests, by a broker that they share say, counts for the next one."""
        self._begun_s = time.monotonic()
        item.stash[_FAILED] = False
        result = yield
        sites = [number for number, byte in enumerate(self._reached[:]) if byte]
        self._reached[:] = bytes(len(self._reached))
        if not item.stash[_FAILED]:
            reach = Reach(item.nodeid, round(time.monotonic() - self._begun_s, 3), sites)
            self._results.write(json.dumps(vars(reach)) + "\n")
            self._results.flush()
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Iterator[None]:
        """One that does not pass can tell nothing."""
        report: Any = yield
        item.stash[_FAILED] = item.stash[_FAILED] or not report.passed
        return report


_FAILED = pytest.StashKey[bool]()


class Chooser:
    """A plugin: of what is collected the chosen tests alone, in their order; one that hangs ends the process."""

    def __init__(self, chosen: list[Reach], told: Path):
        self._chosen = {reach.test: (order, reach.seconds) for order, reach in enumerate(chosen)}
        self._told = told

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self._chosen), key=lambda item: self._chosen[item.nodeid]
        )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._told.write_text(item.nodeid)
        signal.alarm(int(_PATIENCE_S + _PATIENCE * self._chosen[item.nodeid][1]))
        result = yield
        signal.alarm(0)
        return result


def _is_original(path: str) -> bool:
    """Whether it is the tree's own, as far as it is copied."""
    inside = os.path.relpath(path, _ROOT) if path else ".."
    return inside == "." or inside.split(os.sep)[0] in _MODULES


class Process:
    """A run of pytest in the copy at `place`, forked from here, which has all that is not ours imported already."""

    def __init__(self, place: Path, paths: Iterable[str], plugins: list[object], scratch: Path, **variables: str):
        self.output = scratch / "output"
        self.last_test = scratch / "test"
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            status = 70
            try:
                os.setpgid(0, 0)
                with self.output.open("wb") as output:
                    for fd in (1, 2):
                        os.dup2(output.fileno(), fd)
                status = self._run(place, list(paths), plugins, scratch, variables)
            finally:
                # As it stands: what was forked has threads of its own only if a test left them.
                os._exit(status)

    def _run(
        self, place: Path, paths: list[str], plugins: list[object], scratch: Path, variables: dict[str, str]
    ) -> int:
        os.chdir(place)
        # What is mutated is the same behind either front.
        os.environ.update(variables | {"PYTHONPATH": str(place), "TAKHIN_TEST_FRONT": "grpc"})
        # Nothing of the tree from which the copy was made, by whatever name a run of tests has imported it here.
        sys.path[:] = [str(place), *(path for path in sys.path if path and not _is_original(path))]
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] in _MODULES or _is_original(getattr(module, "__file__", None) or ""):
                del sys.modules[name]
        # Processes that a test starts look at it.
        sys.modules["__main__"] = types.ModuleType("__main__")
        # A failure is enough; a small example of it is not looked for.
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.reuse, hypothesis.Phase.generate)
        hypothesis.settings.register_profile("mutants", phases=phases, database=None)
        hypothesis.settings.load_profile("mutants")
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:benchmark", f"--basetemp={scratch / 'temp'}"]
        return int(pytest.main([*options, *paths], plugins=plugins))

    def ended(self) -> int | None:
        """Its exit status, negative: the signal that ended it; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def clean_up(self) -> None:
        """What it has started and left running ends, too."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
