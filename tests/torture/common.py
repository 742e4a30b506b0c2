"""What the programs have in common: their options, their seeds, their last line."""

import argparse
import random
import re
import sys
import time
from dataclasses import dataclass, field

# A run that seeks nothing ends after so many broken promises.
_MOST_FAILURES = 10


@dataclass
class Run:
    """One run: how much to do, from which seed, and what came of it."""

    name: str
    count: int
    seed: int
    seconds: float | None = None
    # A regular expression: of the broken promise that is looked for, where a bug was planted.
    sought: str | None = None
    done: int = 0
    failures: list[str] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)
    _begun_s: float = field(default_factory=time.monotonic)

    def __iter__(self):
        """Round by round, each with a generator of random numbers of its own: (number, random.Random)."""
        for number in range(self.count):
            if self.is_over:
                return
            yield number, self.random(number)
            self.done += 1

    @property
    def is_over(self) -> bool:
        """Whether its time has passed."""
        return self.seconds is not None and time.monotonic() - self._begun_s > self.seconds

    @property
    def has_found(self) -> bool:
        """Whether the promise that is sought was broken."""
        return self.sought is not None and any(re.search(self.sought, failure) for failure in self.failures)

    @property
    def has_told_enough(self) -> bool:
        """Whether no more broken promises are needed. A search goes on until it has found what it seeks: what else
        the bug breaks may be met first."""
        return len(self.failures) >= _MOST_FAILURES if self.sought is None else self.has_found

    def random(self, number: int) -> random.Random:
        """Round `number` of this seed, so that it can be repeated alone."""
        return random.Random(f"{self.seed}/{number}")

    def add(self, **figures: int) -> None:
        """Count what happened."""
        for name, more in figures.items():
            self.figures[name] = int(str(self.figures.get(name, 0))) + more

    def fail(self, message: str) -> None:
        """A promise was broken. The message says by what round, so that it can be repeated."""
        self.failures.append(message)
        print(f"{self.name}: BROKEN: {message}", file=sys.stderr, flush=True)

    def line(self) -> str:
        """The last line: all figures."""
        figures = "".join(f", {value} {name.replace('_', ' ')}" for name, value in self.figures.items())
        return (
            f"{self.name}: {self.done} of {self.count} rounds{figures}, {len(self.failures)} broken promises "
            f"(seed {self.seed}, {time.monotonic() - self._begun_s:.0f} s)"
        )

    def end(self) -> int:
        """Print the last line; the exit status."""
        print(self.line(), flush=True)
        return 1 if self.failures else 0


def run_from_arguments(
    name: str, description: str, count: int, more: argparse.ArgumentParser | None = None
) -> Run:
    """The run that the command line asks for; count: of rounds, where it names none. more: options of the program's
    own, which it reads itself."""
    parser = argparse.ArgumentParser(
        prog=f"make {name}", description=description, parents=[] if more is None else [more])
    parser.add_argument("--count", type=int, default=count, metavar="N", help=f"rounds (default {count})")
    parser.add_argument("--seed", type=int, default=1, help="the same seed does the same again (default 1)")
    parser.add_argument("--seconds", type=float, default=None, help="end after so long, whatever the count")
    arguments = parser.parse_args()
    return Run(name, arguments.count, arguments.seed, arguments.seconds)
