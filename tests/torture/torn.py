"""Torn tails: every kind of file cut, zeroed, scribbled over and prolonged at every byte of its last 64 KiB.

Each round damages one file at one byte, recovers, judges, appends durably, stops or is killed, recovers twice more and
judges again. What nothing proves to have been on the disk is set aside and cut; what is proven is quarantined.
"""

import random
from dataclasses import dataclass
from pathlib import Path

from tests.torture.bed import Base, Bed, Files, make_base, run_plans_on_all_cores
from tests.torture.common import Run, run_from_arguments
from tests.torture.judge import Broken, judge
from tests.torture.torn_journal import TornJournalPlan
from tests.torture.torn_metadata import TornMetadataPlan

_LAST_BYTES = 64 * 1024
_SEGMENT_BYTES = 70 * 1024
# Truncation at every byte; what is beside it, at every one of so many.
_STRIDE = 8


def _zeroed(data: bytes, at: int, chance: random.Random) -> bytes:
    return data[:at] + bytes(len(data) - at)


def _scribbled(data: bytes, at: int, chance: random.Random) -> bytes:
    return data[:at] + chance.randbytes(len(data) - at)


def _holed(data: bytes, at: int, chance: random.Random) -> bytes:
    end = min(at + chance.choice((1, 100, 512, 4096, 20_000)), len(data))
    return data[:at] + bytes(end - at) + data[end:]


def _prolonged(data: bytes, at: int, chance: random.Random) -> bytes:
    """Cut or whole; then zeros, anything, what begins like a batch, or whole batches from the file's beginning."""
    size = chance.choice((1, 7, 105, 512, 4096, 100_000))
    look_alike, older = (b"2g\x0dTKB1" * size)[:size], data[49 : 49 + min(size, 1000)]
    more = chance.choice((bytes(size), chance.randbytes(size), look_alike, older))
    return data[: chance.choice((at, len(data)))] + more


_VARIANTS = {"zeroed": _zeroed, "scribbled": _scribbled, "holed": _holed, "prolonged": _prolonged}


@dataclass(frozen=True)
class _Share:
    """One file of one base, damaged in one way at each of these bytes."""

    base: Base
    file: str
    how: str
    places: range


class TornPlan:
    """Every damage of the segments and their indexes."""

    def __init__(self, directory: Path, seed: int):
        self._seed = seed
        self._bed = Bed(directory)
        size = 2 * _SEGMENT_BYTES - 4000
        self._bases = [
            make_base("synced", seed, segment_bytes=_SEGMENT_BYTES, total_bytes=size, sync_until=0.75),
            make_base("unsynced", seed, segment_bytes=_SEGMENT_BYTES, total_bytes=size, sync_until=0.25),
            make_base("stopped", seed, segment_bytes=_SEGMENT_BYTES, total_bytes=size, sync_until=1, was_clean=True),
        ]
        self._shares = [share for base in self._bases for name in sorted(base.files) for share in _shares(base, name)]
        self.total = sum(len(share.places) for share in self._shares)

    def close(self) -> None:
        self._bed.close()

    def judge(self, number: int, run: Run) -> None:
        """Round `number`. Raises nothing: what is broken is told to the run."""
        share, at = self._find(number)
        chance = random.Random(f"{self._seed}/{number}")
        files = dict(share.base.files)
        files[share.file] = _damaged(files[share.file], share.how, at, chance)
        try:
            max_bytes = chance.choice((1 << 20, 1 << 20, 20_000, 3000))
            judge(self._bed, share.base, files, run, stop=chance.random() < 0.5, max_bytes=max_bytes)
        except Broken as problem:
            run.fail(f"round {number}: {share.base.name} {share.file} {share.how} at {at}: {problem}")

    def _find(self, number: int) -> tuple[_Share, int]:
        for share in self._shares:
            if number < len(share.places):
                return share, share.places[number]
            number -= len(share.places)
        raise ValueError(number)


def _shares(base: Base, file: str) -> list[_Share]:
    size = len(base.files[file])
    places = range(max(0, size - _LAST_BYTES), size)
    cut = _Share(base, file, "cut", places)
    return [cut, *(_Share(base, file, how, places[::_STRIDE]) for how in _VARIANTS)]


def _damaged(data: bytes, how: str, at: int, chance: random.Random) -> bytes:
    return data[:at] if how == "cut" else _VARIANTS[how](data, at, chance)


def main() -> int:
    """All of it, unless told otherwise."""
    run = run_from_arguments("torn", __doc__ or "", 1 << 31)
    run_plans_on_all_cores(run, [TornPlan, TornMetadataPlan, TornJournalPlan])
    return run.end()


if __name__ == "__main__":
    raise SystemExit(main())
