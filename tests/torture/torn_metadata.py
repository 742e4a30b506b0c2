"""Torn metadata: meta.db and its WAL cut, zeroed, scribbled over and prolonged.

A start then reads what one of the commits left, or is refused in words: never a mixture, never anything that was not
committed. SQLite takes a WAL's damaged place for its end, so an older state counts as held here; it is told apart in
the figures (`older metadata`).
"""

import random
from pathlib import Path

from tests.torture.common import Run
from tests.torture.metadata_bed import MetadataBase, MetadataBed, make_metadata

_LAST_BYTES = 64 * 1024


class TornMetadataPlan:
    """Every byte of the last 64 KiB of each of the files, in five ways."""

    HOWS = ("cut", "zeroed", "scribbled", "holed", "prolonged")

    def __init__(self, directory: Path, seed: int):
        self._seed = seed
        self._bed = MetadataBed(directory)
        self._bases = [("killed", make_metadata(seed)), ("stopped", make_metadata(seed, stopped=True))]
        self._rounds: list[tuple[str, MetadataBase, str, range]] = []
        for name, base in self._bases:
            for file, data in sorted(base.files.items()):
                self._rounds.append((name, base, file, range(max(0, len(data) - _LAST_BYTES), len(data))))
        self.total = sum(len(places) for *_, places in self._rounds)

    def close(self) -> None:
        self._bed.close()

    def judge(self, number: int, run: Run) -> None:
        """Round `number`: what is broken is told to the run."""
        chance = random.Random(f"{self._seed}/{number}")
        how = chance.choice(self.HOWS)
        name, base, file, at = self._find(number)
        files = dict(base.files)
        files[file] = damaged(files[file], how, at, chance)
        where = f"round {number}: {name} {file} {how} at {at}"
        judge_metadata(self._bed, base, files, run, where)

    def _find(self, number: int) -> tuple[str, MetadataBase, str, int]:
        for name, base, file, places in self._rounds:
            if number < len(places):
                return name, base, file, places[number]
            number -= len(places)
        raise ValueError(number)


def damaged(data: bytes, how: str, at: int, chance: random.Random) -> bytes:
    """A copy that is damaged from `at` on."""
    if how == "zeroed":
        return data[:at] + bytes(len(data) - at)
    if how == "scribbled":
        return data[:at] + chance.randbytes(len(data) - at)
    if how == "holed":
        end = min(at + chance.choice((1, 512, 4096, 4120)), len(data))
        return data[:at] + bytes(end - at) + data[end:]
    if how == "prolonged":
        size = chance.choice((1, 24, 4096, 4120, 20_000))
        return data[:at] + chance.choice((bytes(size), chance.randbytes(size)))
    return data[:at]


def judge_metadata(bed: MetadataBed, base: MetadataBase, files: dict[str, bytes], run: Run, where: str) -> None:
    """What a start makes of these files: right, refused, or older than it was."""
    found = bed.start(files)
    if isinstance(found, str):
        run.add(metadata_refused=1)
        if "\n" in found:
            run.fail(f"{where}: refused in several lines: {found!r}")
    elif found == base.history[-1]:
        run.add(metadata_right=1)
    elif found in base.history:
        run.add(older_metadata=1)
    elif base.values_may_differ:
        run.add(metadata_differs=1)
    else:
        run.fail(f"{where}: started with metadata that never was")
