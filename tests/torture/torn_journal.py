"""Torn and rotten journals: what only the journal holds is restored from it, or known to be missing.

Three partitions, whose durable batches are in the journal; of the segments is left what a power cut may leave, which
is nothing that only the journal's sync covered. Then the journal is damaged.
"""

import random
import struct
from dataclasses import dataclass
from pathlib import Path

from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb
from tests.log.test_partition import Config, LocalLog
from tests.torture.bed import Files, read_all, scratch, value_of
from tests.torture.common import Run
from tests.torture.judge import Broken, hold
from tests.torture.rot_broker import put
from tests.torture.torn_metadata import damaged

_PARTITIONS = 3
_COMMITS = 40
_BLOCK_BYTES = 512
# magic, crc, payload crc, parts, sequence, durable sequence, payload bytes
_ENTRY = struct.Struct("<4sIIIqqQ")
_PART = struct.Struct("<IIqIIqqqqiI")
_ENTRY_BYTES = 48
HOWS = ("cut", "zeroed", "scribbled", "holed", "prolonged", "flipped")


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry's place in its file, and what offset each partition has reached with it."""

    file: str
    start: int
    table_end: int
    end: int
    sequence: int
    durable_sequence: int
    next_offsets: dict[int, int]
    positions: dict[int, int]


def entries_of(name: str, data: bytes) -> list[_Entry]:
    """All entries of a whole journal file."""
    found = []
    at = _BLOCK_BYTES
    while data[at : at + 4] == b"TKJE":
        _, _, _, count, sequence, durable_sequence, payload_bytes = _ENTRY.unpack_from(data, at)
        parts = [_PART.unpack_from(data, at + _ENTRY_BYTES + number * _PART.size) for number in range(count)]
        table_end = at + _ENTRY_BYTES + count * _PART.size
        end = table_end + payload_bytes
        next_offsets = {part[3]: part[8] for part in parts}
        positions: dict[int, int] = {}
        for part in parts:
            positions.setdefault(part[3], part[4])
        found.append(_Entry(name, at, table_end, end, sequence, durable_sequence, next_offsets, positions))
        at = -(-end // _BLOCK_BYTES) * _BLOCK_BYTES
    return found


class TornJournalPlan:
    """Every byte of the journal, damaged in one of six ways."""

    def __init__(self, directory: Path, seed: int):
        self._seed = seed
        self._place = directory / "journaled"
        self._files, self._records = _make(seed)
        self._entries = sorted(
            (entry for name, data in self._files.items() if name.endswith(".journal")
             for entry in entries_of(name, data)),
            key=lambda entry: entry.sequence,
        )
        assert len(self._entries) == _COMMITS, "the log did not use its journal"
        self._names = sorted({entry.file for entry in self._entries})
        for number in range(_PARTITIONS):
            # Only the journal's sync covered what it holds.
            name = f"topics/1/{number}/{0:020d}.log"
            position = min(entry.positions[number] for entry in self._entries if number in entry.positions)
            self._files[name] = self._files[name][:position]
        self.total = sum(len(self._files[name]) for name in self._names)

    def close(self) -> None:
        """Nothing stays open."""

    def judge(self, number: int, run: Run) -> None:
        """Round `number`: what is broken is told to the run."""
        chance = random.Random(f"{self._seed}/{number}")
        how = chance.choice(HOWS)
        at = number
        for name in self._names:
            if at < len(self._files[name]):
                break
            at -= len(self._files[name])
        data = self._files[name]
        if how == "flipped":
            after = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        else:
            after = damaged(data, how, at, chance)
        try:
            self._judge({**self._files, name: after}, run)
        except Broken as problem:
            run.fail(f"round {number}: {name} {how} at {at}: {problem}")

    def _judge(self, files: Files, run: Run) -> None:
        whole = [entry for entry in self._entries
                 if files[entry.file][entry.start : entry.end] == self._files[entry.file][entry.start : entry.end]]
        missing = [entry for entry in self._entries if entry not in whole]
        first = missing[0].sequence if missing else 1 << 62
        proven = any(entry.sequence > first and entry.durable_sequence >= first for entry in whole)
        # Partitions of whose loss an entry's table tells that can be read. Of others only a line in the log does:
        # guarantee 6.
        named = {number for entry in self._entries if entry.sequence >= first and self._has_table(files, entry)
                 for number in entry.positions}
        reached = [0] * _PARTITIONS
        for entry in whole:
            if entry.sequence < first:
                for partition, offset in entry.next_offsets.items():
                    reached[partition] = offset
        # The header's own damage can't be told from a file that was begun anew: what it held is then unproven.
        header = all(files[name][:48] == self._files[name][:48] for name in self._names)
        put(self._place, files)
        log = LocalLog(self._place, Config(), partitions=_PARTITIONS, epoch=2)
        try:
            for number, partition in enumerate(log.partitions):
                records, reason = read_all(partition)
                hold(records == self._records[number][: len(records)], f"partition {number}: a wrong record")
                is_damaged = partition.failure is not None
                hold(reason is None or is_damaged, f"partition {number}: reading ended with {reason}")
                hold(len(records) >= (reached[number] if header else 0) or is_damaged,
                     f"partition {number}: {len(records)} records of {reached[number]} that the journal holds")
                short = len(records) < len(self._records[number])
                hold(not (proven and header and short and number in named) or is_damaged,
                     f"partition {number}: {len(records)} of {len(self._records[number])} records, and takes appends")
                if is_damaged:
                    hold(partition.failure[0] is Reason.PARTITION_DAMAGED, f"partition {number}: {partition.failure}")
                run.add(**{"journal_damage_told" if is_damaged else "journal_short" if short else "journal_whole": 1})
            self._go_on(log)
        finally:
            log.close()

    def _has_table(self, files: Files, entry: _Entry) -> bool:
        table = slice(entry.start, entry.table_end)
        return files[entry.file][table] == self._files[entry.file][table]

    def _go_on(self, log: LocalLog) -> None:
        """Whoever takes appends goes on, and a start after a kill finds all of it."""
        ends = {}
        for number, partition in enumerate(log.partitions):
            if partition.failure is None:
                log.write(b"after", to=number)
                log.run(partition.make_durable(partition.written_offset))
                ends[number] = partition.written_offset
        with scratch() as directory:
            again = LocalLog(log.killed(directory / "killed"), Config(), partitions=_PARTITIONS, epoch=3)
            try:
                for number, end in ends.items():
                    partition = again.partitions[number]
                    hold(partition.failure is None, f"partition {number}, the second start: {partition.failure}")
                    hold(partition.written_offset == end, f"partition {number}: {partition.written_offset}, was {end}")
                    hold(read_all(partition)[0][-1].value == b"after", f"partition {number}: another last record")
            finally:
                again.close()


def _make(seed: int) -> tuple[Files, list[list[pb.Record]]]:
    """A killed data directory with a journal, and the records of its partitions."""
    chance = random.Random(seed)
    with scratch() as directory:
        log = LocalLog(directory / "made", Config(), partitions=_PARTITIONS)
        for _ in range(_COMMITS):
            # Of one partition alone the segment itself would be synced.
            for number in chance.sample(range(_PARTITIONS), chance.choice((2, 3))):
                log.append(*(value_of(chance, 200) for _ in range(2)), to=number, batch=True)
            log.sync()
        records = [read_all(partition)[0] for partition in log.partitions]
        left = log.killed(directory / "left")
        files = {str(path.relative_to(left)): path.read_bytes() for path in left.rglob("*") if path.is_file()}
        log.close()
    return {name: data for name, data in files.items() if not name.endswith(".index")}, records
