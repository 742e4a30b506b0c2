"""Rotten bits: every bit of a small log flipped, its blocks zeroed and exchanged, its files exchanged.

Each round damages a copy, recovers and judges: no wrong record is ever read, what is proven is not cut, what is cut is
set aside, and no damage brings anything down. The metadata and whole brokers follow (rot_broker.py).
"""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from takhin.log.producers import SNAPSHOT_NAME
from tests.torture.bed import Base, Bed, Files, make_base, run_plans_on_all_cores
from tests.torture.common import Run, run_from_arguments
from tests.torture.judge import Broken, judge
from tests.torture.rot_broker import RotBrokerPlan, RotMetadataPlan

_BLOCK_BYTES = 512
_SEGMENT_BYTES = 9000
# Together at most 64 KiB of segments.
_KILLED_BYTES = 34_000
_STOPPED_BYTES = 26_000


def flipped(files: Files, name: str, bit: int) -> str:
    """Flip a bit. Returns what was done, in words, as all of these do."""
    data = bytearray(files[name])
    data[bit // 8] ^= 1 << bit % 8
    files[name] = bytes(data)
    return f"{name} bit {bit % 8} of byte {bit // 8}"


def exchanged(files: Files, one: tuple[str, int], other: tuple[str, int]) -> str:
    """Exchange two blocks."""
    blocks = [files[name][at : at + _BLOCK_BYTES] for name, at in (one, other)]
    for (name, at), block in zip((one, other), reversed(blocks), strict=True):
        data = bytearray(files[name])
        data[at : at + _BLOCK_BYTES] = block
        files[name] = bytes(data)
    return f"{one} and {other} exchanged"


@dataclass(frozen=True)
class _Share:
    """So many damages of one kind to one base: do(number, files) does one."""

    base: Base
    count: int
    do: Callable[[int, Files], str]


class RotPlan:
    """Every bit, every block, every pair of blocks and files."""

    def __init__(self, directory: Path, seed: int):
        self._seed = seed
        self._bed = Bed(directory)
        killed = make_base(
            "killed", seed, segment_bytes=_SEGMENT_BYTES, total_bytes=_KILLED_BYTES, sync_until=0.8, largest_value=500
        )
        stopped, earlier = (
            make_base(
                "stopped", seed, segment_bytes=_SEGMENT_BYTES, total_bytes=size, sync_until=1, largest_value=500,
                was_clean=True,
            )
            for size in (_STOPPED_BYTES, _STOPPED_BYTES - 2000)
        )
        self._shares = [
            *_shares(killed), *_shares(stopped),
            _of_files(stopped, [(name, name, earlier.files) for name in sorted(earlier.files)
                                if "index" in name or name == SNAPSHOT_NAME]),
        ]
        self.total = sum(share.count for share in self._shares)

    def close(self) -> None:
        self._bed.close()

    def judge(self, number: int, run: Run) -> None:
        """Round `number`: what is broken is told to the run."""
        chance = random.Random(f"{self._seed}/{number}")
        at = number
        for share in self._shares:
            if at < share.count:
                break
            at -= share.count
        files = dict(share.base.files)
        what = share.do(at, files)
        try:
            max_bytes = chance.choice((1 << 20, 1 << 20, 4000, 700))
            judge(
                self._bed, share.base, files, run, stop=chance.random() < 0.5, max_bytes=max_bytes,
                also_from=chance.randrange(share.base.end_offset),
            )
        except Broken as problem:
            run.fail(f"round {number}: {share.base.name}: {what}: {problem}")


def _shares(base: Base) -> list[_Share]:
    names = sorted(base.files)
    blocks = [(name, at) for name in names for at in range(0, len(base.files[name]), _BLOCK_BYTES)]
    pairs = list(itertools.combinations(blocks, 2))

    def flip(number: int, files: Files) -> str:
        for name in names:
            if number < 8 * len(files[name]):
                return flipped(files, name, number)
            number -= 8 * len(files[name])
        raise ValueError(number)

    def zero(number: int, files: Files) -> str:
        name, at = blocks[number]
        size = min(_BLOCK_BYTES, len(files[name]) - at)
        files[name] = files[name][:at] + bytes(size) + files[name][at + size :]
        return f"{name} zeroed at {at}"

    def exchange(number: int, files: Files) -> str:
        return exchanged(files, *pairs[number])

    return [
        _Share(base, 8 * sum(len(base.files[name]) for name in names), flip),
        _Share(base, len(blocks), zero),
        _Share(base, len(pairs), exchange),
        _of_files(base, [
            (one, other, base.files) for one, other in itertools.permutations(names, 2)
            if Path(one).suffix == Path(other).suffix
        ]),
    ]


def _of_files(base: Base, copies: list[tuple[str, str, Files]]) -> _Share:
    """Whole files replaced: (name, name of the one whose content it gets, where that is), each also both ways."""

    def replace(number: int, files: Files) -> str:
        name, source, of = copies[number // 2]
        kept = files[name]
        files[name] = of[source]
        if number % 2 and source != name:
            files[source] = kept
            return f"{name} and {source} exchanged"
        return f"{name} replaced by {'an old copy' if source == name else source}"

    return _Share(base, 2 * len(copies), replace)


def main() -> int:
    """All of it, unless told otherwise."""
    run = run_from_arguments("rot", __doc__ or "", 1 << 31)
    run_plans_on_all_cores(run, [RotPlan, RotMetadataPlan, RotBrokerPlan])
    return run.end()


if __name__ == "__main__":
    raise SystemExit(main())
