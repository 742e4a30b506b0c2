"""What the start makes of a journal: data directories as a power cut leaves them, and damaged ones.

Everything above what was synced is lost here in some way: names, ends of files, blocks.
"""

import os
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from takhin.codec.batch import BATCH_HEADER_SIZE, SEGMENT_HEADER_SIZE
from takhin.codec.crc32c import crc32c
from takhin.errors import Reason, TakhinError
from takhin.log.files import Files
from takhin.log.journal import BLOCK_BYTES, FILE_NAMES, HEADER_COPIES, JournalError, read_entry, read_header
from takhin.log.replay import KEPT_FOR, SavedJournal, read_journal
from tests.log.test_journal import (
    SMALL_JOURNAL,
    HeldThread,
    commit,
    flipped,
    hold_journal,
    journal_in,
    journal_paths,
    marks,
)
from tests.log.test_partition import (
    NOW_MS,
    TOPIC_ID,
    Config,
    LocalLog,
    LogIn,
    batches_in,
    descriptors_of,
    log_in,
    no_descriptor_left,
    quick_path,
    segments_of,
    values_of,
)
from tests.trace import joined

__all__ = ["log_in", "quick_path"]

ABOVE = ["missing", "short", "half", "zeros", "garbage", "whole"]


def masked(data: bytes, salt: int) -> int:
    crc = crc32c(data, salt)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def lose(path: Path, synced_bytes: int, how: str) -> None:
    """What stands above synced_bytes of the file was never synced."""
    data = path.read_bytes()
    rest = len(data) - synced_bytes
    if how == "missing" and not synced_bytes:
        path.unlink()
        return
    above = {
        "missing": b"", "short": b"", "half": data[synced_bytes:synced_bytes + rest // 2], "zeros": bytes(rest),
        "garbage": random.Random(rest).randbytes(rest), "whole": data[synced_bytes:],
    }[how]
    path.write_bytes(data[:synced_bytes] + above)


def power_cut(log: LocalLog, to: Path, how: str) -> Path:
    """A copy of the directory in which the segments have lost what was not synced to them."""
    copy = log.killed(to)
    for number, partition in enumerate(log.partitions):
        for path in segments_of(copy, number):
            size = 0
            if int(path.stem) < partition.synced_offset:
                size = SEGMENT_HEADER_SIZE
                for batch in batches_in(path):
                    if batch.next_offset <= partition.synced_offset:
                        size += BATCH_HEADER_SIZE + batch.payload_bytes
            lose(path, size, how)
        directory = copy / "topics" / str(TOPIC_ID) / str(number)
        if directory.exists() and not os.listdir(directory):
            directory.rmdir()
    topic = copy / "topics" / str(TOPIC_ID)
    if topic.exists() and not os.listdir(topic):
        topic.rmdir()
    return copy


def copied(directory: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    return shutil.copytree(directory, to)


def value(number: int, turn: int) -> bytes:
    return b"%d of %d " % (turn, number) + b"v" * (turn * 37 % 150)


Values = list[list[bytes]]


def make(log: LocalLog, turns: int = 12) -> Values:
    """Group commits of some of the partitions each, with rolls and syncs of files between them. All is durable."""
    values: Values = [[] for _ in log.partitions]
    for turn in range(turns):
        numbers = [number for number in range(len(log.partitions)) if (turn + number) % 4]
        for number in numbers:
            log.append(value(number, turn), to=number)
            values[number].append(value(number, turn))
        if turn % 3:
            commit(log, numbers[:1], b"more")
            values[numbers[0]].append(b"more")
        commit(log, [], b"")
        log.sync()
        if turn == 5:
            # One partition's file is on the disk up to here.
            log.store.committer._behind.queue[log.partitions[1]] = None
            log.store.committer._go_on()
            log.settle(lambda: not log.partitions[1].unsynced)
    return values


def assert_holds(log: LocalLog, values: Values) -> None:
    assert [found.damage for found in log.found] == [None] * len(log.partitions)
    assert [values_of(partition, cold=True) for partition in log.partitions] == values


def assert_goes_on(log: LocalLog, values: Values, log_in: LogIn) -> None:
    """It takes appends, and they are there after the next start, clean or not."""
    for turn in range(3):
        for number in range(len(log.partitions)):
            log.append(b"new %d" % turn, to=number)
            values[number].append(b"new %d" % turn)
        log.sync()
    killed = log.killed(Path(log.directory + "-killed"))
    assert log.close() and journal_paths(log.directory) == []
    for directory, was_clean in ((log.directory, True), (killed, False)):
        again = log_in(directory, partitions=len(values), was_clean=was_clean, epoch=9)
        assert_holds(again, values)
        again.close()
        shutil.rmtree(directory)


# After a power cut


@pytest.mark.parametrize("how", ABOVE)
@pytest.mark.parametrize("segment_bytes", [1 << 20, 1024])
def test_a_power_cut(log_in: LogIn, quick_path: Path, how: str, segment_bytes: int) -> None:
    log = log_in(quick_path / "data", Config(segment_bytes=segment_bytes), partitions=5)
    values = make(log)
    assert log.store.committer.journal_commits >= 12
    assert any(marks(partition)[0] for partition in log.partitions)
    if segment_bytes == 1024:
        assert len(segments_of(log.directory, 0)) >= 3
    again = log_in(power_cut(log, quick_path / "cut", how), partitions=5, epoch=2)
    assert_holds(again, values)
    assert journal_paths(again.directory) == []
    assert_goes_on(again, values, log_in)


@pytest.mark.parametrize("how", ABOVE)
def test_a_power_cut_at_each_turn_of_the_files(log_in: LogIn, quick_path: Path, how: str) -> None:
    log = log_in(quick_path / "data", partitions=4, journal_bytes=SMALL_JOURNAL)
    values: Values = [[], [], [], []]
    for turn in range(40):
        numbers = [turn % 4, (turn + 1) % 4]
        commit(log, numbers, value(0, turn))
        for number in numbers:
            values[number].append(value(0, turn))
        again = log_in(power_cut(log, quick_path / f"cut-{turn}", how), partitions=4, epoch=2)
        assert_holds(again, values)
        again.close()
    assert log.store._journal.turns >= 4


@pytest.mark.parametrize("how", ABOVE)
def test_what_was_written_and_not_durable_may_be_lost(log_in: LogIn, quick_path: Path, how: str) -> None:
    log = log_in(quick_path / "data", partitions=3)
    thread = hold_journal(log)
    thread.hold = False
    commit(log, range(3), b"durable")
    thread.hold = True
    for number in range(3):
        log.append(b"written", to=number)
        log.partitions[number].durable()
    log.settle(lambda: len(thread.held) == 1)
    again = log_in(power_cut(log, quick_path / "cut", how), partitions=3, epoch=2)
    rest = [b"written"] if how == "whole" else []
    assert_holds(again, [[b"durable", *rest]] * 3)
    assert_goes_on(again, [[b"durable", *rest] for _ in range(3)], log_in)
    thread.let_go()


def test_replayed_twice_it_changes_nothing(log_in: LogIn, quick_path: Path) -> None:
    """The broker is killed before it has removed the journal, or the removal does not reach the disk."""
    log = log_in(quick_path / "data", Config(segment_bytes=1024), partitions=4)
    values = make(log)
    cut = power_cut(log, quick_path / "cut", "half")
    journal = copied(cut / "journal", quick_path / "journal")
    first = log_in(cut, Config(segment_bytes=1024), partitions=4, epoch=2)
    assert_holds(first, values)
    # One file may be gone and the other not.
    killed = copied(cut, quick_path / "killed")
    shutil.rmtree(killed / "journal")
    before = {path: path.read_bytes() for path in killed.rglob("*.log")}
    shutil.copytree(journal, killed / "journal")
    second = log_in(killed, partitions=4, epoch=3)
    assert_holds(second, values)
    assert {path: path.read_bytes() for path in killed.rglob("*.log")} == before
    assert_goes_on(second, values, log_in)


def test_killed_in_the_middle_of_its_replay(log_in: LogIn, quick_path: Path) -> None:
    log = log_in(quick_path / "data", Config(segment_bytes=1024), partitions=4)
    values = make(log)
    cut = power_cut(log, quick_path / "cut", "garbage")
    done = copied(cut, quick_path / "done")
    log_in(done, partitions=4, epoch=2).close()
    # Any of the files that the replay wrote may be there already, or the beginnings of them.
    some = random.Random(1)
    for turn in range(10):
        killed = copied(cut, quick_path / "killed")
        for path in sorted(done.rglob("*.log")):
            target = killed / path.relative_to(done)
            if some.random() < 0.5:
                target.parent.mkdir(parents=True, exist_ok=True)
                data = path.read_bytes()
                part = some.randrange(len(data) + 1)
                target.write_bytes(data[:part] + (target.read_bytes()[part:] if target.exists() else b""))
        again = log_in(killed, partitions=4, epoch=3)
        assert_holds(again, values)
        again.close()


class RecordingThread(HeldThread):
    """Notes what is written to the journal's files, in order."""

    def __init__(self, log: LocalLog):
        super().__init__(log.store.committer._journal_thread)
        self.hold = False
        self.writes: list[tuple[str, int, bytes]] = []
        log.store.committer._journal_thread = self  # type: ignore[assignment]

    def submit(
        self, files: list[int], directories: list[int], write_fd: int = -1, data: bytes = b"", position: int = 0
    ) -> int:
        self.writes.append((os.path.basename(os.readlink(f"/proc/self/fd/{write_fd}")), position, data))
        return super().submit(files, directories, write_fd, data, position)


def some_subsets(blocks: int, some: random.Random) -> list[set[int]]:
    """Which of so many blocks reached the disk: all possibilities of a few, some of many."""
    if blocks <= 4:
        return [{block for block in range(blocks) if mask >> block & 1} for mask in range(1 << blocks)]
    subsets = [set(range(end)) for end in range(blocks + 1)] + [set(range(start, blocks)) for start in range(blocks)]
    return subsets + [{block for block in range(blocks) if some.random() < 0.5} for _ in range(10)]


def test_a_power_cut_at_every_write_of_the_journal(log_in: LogIn, quick_path: Path) -> None:
    """Whichever of its blocks are on the disk: no damage is found, and whatever was synced before."""
    log = log_in(quick_path / "data", partitions=3, journal_bytes=SMALL_JOURNAL)
    thread = RecordingThread(log)
    for turn in range(60):
        commit(log, [turn % 3, (turn + 1) % 3], b"%02d" % turn * (200 if turn % 4 == 0 else 5))
    assert log.store._journal.turns >= 6
    some = random.Random(2)
    directory = quick_path / "cut"
    directory.mkdir()
    disk: dict[str, bytearray] = {}
    synced = 0
    for name, position, data in thread.writes:
        before = bytes(disk.get(name, b""))
        for reached in some_subsets(len(data) // BLOCK_BYTES, some):
            after = bytearray(before)
            for block in reached:
                put(after, position + block * BLOCK_BYTES, data[block * BLOCK_BYTES:(block + 1) * BLOCK_BYTES])
            for each, held in (disk | {name: after}).items():
                (directory / each).write_bytes(held)
            found = read_journal(Files(), str(directory))
            found.close()
            sequences = [entry.sequence for file in journal_in_files(directory) for entry in file]
            assert found.damage is None, (name, position, reached, found.damage)
            assert max(sequences, default=0) in (synced, synced + 1)
            assert found.entries == len(sequences)
        put(disk.setdefault(name, bytearray()), position, data)
        if position:
            synced += 1
    assert synced == log.store.committer.journal_commits


def put(file: bytearray, position: int, data: bytes) -> None:
    file.extend(bytes(max(0, position + len(data) - len(file))))
    file[position:position + len(data)] = data


def journal_in_files(directory: Path) -> list[list]:
    """The entries of the files in a journal's directory whose headers are whole."""
    found = []
    for name in FILE_NAMES:
        path = directory / name
        if path.exists() and path.read_bytes()[:4] == b"TKJ1":
            data = directory.parent / "as-data"
            shutil.rmtree(data, ignore_errors=True)
            (data / "journal").mkdir(parents=True)
            shutil.copy(path, data / "journal" / name)
            found += [file.entries for file in journal_in(data)]
    return found


# Torn and damaged


@pytest.fixture
def three(log_in: LogIn, quick_path: Path) -> Path:
    """Three partitions that have lost what was not synced; the journal has three entries of each."""
    log = log_in(quick_path / "three", partitions=3)
    for turn in range(3):
        commit(log, range(3), value(0, turn))
    return power_cut(log, quick_path / "cut", "missing")


def saved(directory: Path) -> SavedJournal:
    found = read_journal(Files(), str(directory / "journal"))
    found.close()
    return found


def ends(found: SavedJournal) -> dict[int, int]:
    return {partition: end for (_, partition), end in found.ends.items()}


def test_a_journal_torn_at_every_byte_of_its_last_entry(three: Path) -> None:
    (file,) = journal_in(three)
    whole = file.path.read_bytes()
    *_, last = file.entries
    begins = len(whole) - last.size_bytes
    data_ends = last.parts[-1].place + last.parts[-1].size_bytes
    for length in range(begins, len(whole)):
        for rest in (b"", bytes(len(whole) - length)):
            file.path.write_bytes(whole[:length] + rest)
            found = saved(three)
            is_whole = length >= data_ends
            assert found.damage is None
            assert ends(found) == dict.fromkeys(range(3), 3 if is_whole else 2), length
    for at in range(begins, len(whole)):
        file.path.write_bytes(flipped_bytes(whole, at))
        found = saved(three)
        assert found.damage is None
        assert ends(found) == dict.fromkeys(range(3), 3 if at >= data_ends else 2), at


def flipped_bytes(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 0x40
    return bytes(changed)


def test_a_journal_torn_at_every_block(log_in: LogIn, three: Path, quick_path: Path) -> None:
    (file,) = journal_in(three)
    edges = [BLOCK_BYTES]
    for entry in file.entries:
        edges.append(edges[-1] + entry.size_bytes)
    for length in range(0, file.path.stat().st_size + 1, BLOCK_BYTES):
        copy = copied(three, quick_path / "copy")
        os.truncate(copy / "journal" / "0.journal", length)
        count = sum(1 for edge in edges[1:] if edge <= length)
        log = log_in(copy, partitions=3, epoch=2)
        assert_holds(log, [[value(0, turn) for turn in range(count)]] * 3)
        commit(log, range(3))
        assert log.close()


def test_each_damaged_byte_of_what_was_synced_is_damage(three: Path) -> None:
    """But for the paddings; and nothing is taken for what it was not."""
    (file,) = journal_in(three)
    whole = file.path.read_bytes()
    place = BLOCK_BYTES
    for number, entry in enumerate(file.entries[:-1]):
        table_ends = entry.parts[0].place
        data_ends = entry.parts[-1].place + entry.parts[-1].size_bytes
        for at in range(place, place + entry.size_bytes):
            file.path.write_bytes(flipped_bytes(whole, at))
            found = saved(three)
            if at >= data_ends:
                assert found.damage is None
                continue
            assert found.damage == f"0.journal: entry {number + 1} is damaged"
            assert ends(found) == dict.fromkeys(range(3), 3)
            for key, parts in found.parts.items():
                good = [entry.parts[key[1]] for entry in file.entries]
                assert [part.part for part in parts if part.whole] == good[:number] + good[number + 1:]
                assert len(parts) == (2 if at < table_ends else 3)
        place += entry.size_bytes


def test_several_damaged_entries(three: Path) -> None:
    (file,) = journal_in(three)
    whole = file.path.read_bytes()
    first, second, third = file.entries
    damaged = flipped_bytes(flipped_bytes(whole, first.parts[0].place), second.parts[1].place)
    file.path.write_bytes(damaged)
    found = saved(three)
    assert found.damage == "0.journal: entry 1 is damaged" and found.entries == 3
    assert [part.whole for part in found.parts[TOPIC_ID, 0]] == [False, False, True]
    # Also where the first one's table is damaged, which tells where the next begins.
    place = file.entries[1].parts[0].place - 48 - 3 * 64
    for at in (BLOCK_BYTES, BLOCK_BYTES + 12, BLOCK_BYTES + 32, BLOCK_BYTES + 48):
        file.path.write_bytes(flipped_bytes(flipped_bytes(whole, at), second.parts[1].place))
        found = saved(three)
        assert place == BLOCK_BYTES + first.size_bytes and found.entries == 2
        assert [part.whole for part in found.parts[TOPIC_ID, 0]] == [False, True]
    # Of the last one nobody knows whether it was synced.
    file.path.write_bytes(flipped_bytes(whole, third.parts[0].place))
    assert saved(three).damage is None


@pytest.mark.parametrize("copies", [HEADER_COPIES[:1], HEADER_COPIES[1:], HEADER_COPIES])
def test_a_damaged_header(three: Path, copies: tuple[int, ...]) -> None:
    (file,) = journal_in(three)
    whole = file.path.read_bytes()
    for at in range(32):
        data = whole
        for copy in copies:
            data = flipped_bytes(data, copy + at)
        file.path.write_bytes(data)
        found = saved(three)
        if len(copies) == 1:
            assert found.damage is None and ends(found) == dict.fromkeys(range(3), 3)
        else:
            assert found.damage == "0.journal: the header is damaged"


def test_what_the_other_file_proves(log_in: LogIn, quick_path: Path) -> None:
    """A file is begun when all entries of the one before it have been synced."""
    log = log_in(quick_path / "data", partitions=3, journal_bytes=SMALL_JOURNAL)
    while log.store._journal.turns < 4:
        commit(log, range(3), b"v" * 100)
    # A sync behind may have been quicker than the entry.
    log.settle(lambda: log.store.committer._journal_commit is None)
    killed = log.killed(quick_path / "killed")
    former, latter = journal_in(killed)
    assert latter.header.first_sequence == former.header.first_sequence + len(former.entries)
    assert saved(killed).damage is None
    last = former.entries[-1]
    for path, at, damage in [
        (former.path, last.parts[0].place, f"{former.path.name}: entry {last.sequence} is damaged"),
        (latter.path, latter.entries[-1].parts[0].place, None),
    ]:
        whole = path.read_bytes()
        path.write_bytes(flipped_bytes(whole, at))
        assert saved(killed).damage == damage
        path.write_bytes(whole)
    os.truncate(former.path, last.parts[0].place - 1)
    assert saved(killed).damage == f"{former.path.name}: entry {last.sequence} is damaged"
    os.truncate(former.path, 0)
    assert saved(killed).damage == f"{former.path.name}: the header is damaged"


def test_stale_entries_of_an_earlier_use_prove_nothing(log_in: LogIn, quick_path: Path) -> None:
    log = log_in(quick_path / "data", partitions=3, journal_bytes=SMALL_JOURNAL)
    while log.store._journal.turns < 2:
        commit(log, range(3), b"v" * 100)
    # A sync behind may have been quicker than the entry.
    log.settle(lambda: log.store.committer._journal_commit is None)
    file = journal_in(log.directory)[-1]
    assert len(file.entries) == 1
    # What the file's earlier use has left is still there, as whole entries.
    data = file.path.read_bytes()
    assert any(data[at:at + 4] == b"TKJE" for at in range(2 * BLOCK_BYTES, len(data), BLOCK_BYTES))
    killed = log.killed(quick_path / "killed")
    found = saved(killed)
    assert found.damage is None and found.entries == sum(len(each.entries) for each in journal_in(killed))
    path = killed / "journal" / file.path.name
    path.write_bytes(flipped(path, file.entries[0].parts[0].place))
    assert saved(killed).damage is None


def forged_entry(salt: int, sequence: int, durable_sequence: int, count: int = 0, size: int = 0) -> bytes:
    table = struct.pack("<IIQQQq", masked(b"", salt), count, sequence, durable_sequence, size, NOW_MS)
    return b"TKJE" + struct.pack("<I", masked(table, salt)) + table


def test_entries_within_records_are_not_believed(log_in: LogIn, quick_path: Path) -> None:
    log = log_in(quick_path / "data", partitions=2)
    forged = b"".join(
        forged_entry(0, sequence, sequence - 1).ljust(BLOCK_BYTES, b"\0") for sequence in range(2, 40)
    )
    # So that they come to lie where entries may begin.
    commit(log, range(2), forged)
    data = journal_paths(log.directory)[0].read_bytes()
    shift = -data.index(b"TKJE", BLOCK_BYTES + 4) % BLOCK_BYTES
    commit(log, range(2), b"x" * shift + forged)
    killed = log.killed(quick_path / "killed")
    (file,) = journal_in(killed)
    last = file.entries[-1]
    data = file.path.read_bytes()
    begin = data.index(b"x" * shift, last.parts[0].place) + shift
    assert begin % BLOCK_BYTES == 0 and data[begin:begin + 4] == b"TKJE"
    file.path.write_bytes(flipped(file.path, last.parts[0].place + 1))
    found = saved(killed)
    assert found.damage is None and found.entries == 1


def test_looking_for_proofs_ends(three: Path, bytes_read: Callable[[], int]) -> None:
    """Records may be made to look like entries that claim to be large."""
    (file,) = journal_in(three)
    claim = forged_entry(1, 10, 9, count=2**15, size=0).ljust(BLOCK_BYTES, b"\0")
    with open(file.path, "ab") as end:
        end.write(claim * 8192)
    before = bytes_read()
    assert saved(three).damage is None
    assert bytes_read() - before < 16 * file.path.stat().st_size


@pytest.fixture
def bytes_read() -> Callable[[], int]:
    """How many bytes this process has read so far."""

    def read() -> int:
        for line in Path("/proc/self/io").read_text().splitlines():
            name, _, number = line.partition(": ")
            if name == "rchar":
                return int(number)
        raise AssertionError

    return read


def test_a_journal_of_a_later_version_refuses_the_start(log_in: LogIn, three: Path) -> None:
    """It may hold what nothing else does."""
    (file,) = journal_in(three)
    data = bytearray(file.path.read_bytes())
    fields = struct.pack("<I", 3) + bytes(data[12:32])
    for copy in HEADER_COPIES:
        data[copy + 4:copy + 32] = struct.pack("<I", masked(fields, 0)) + fields
    file.path.write_bytes(data)
    with pytest.raises(OSError, match="version is 3, this one knows 1 to 2"):
        log_in(three, partitions=3)
    assert file.path.read_bytes() == bytes(data)
    assert not descriptors_of(file.path)


# What has changed since


def test_what_was_deleted_stays_deleted(log_in: LogIn, three: Path) -> None:
    log = log_in(three, partitions=1, epoch=2)
    assert_holds(log, [[value(0, turn) for turn in range(3)]])
    assert segments_of(three, 1) == segments_of(three, 2) == [] and journal_paths(three) == []
    assert not (three / "topics" / str(TOPIC_ID) / "2").exists()


@pytest.mark.parametrize("how", ABOVE)
def test_the_log_start_has_moved(log_in: LogIn, quick_path: Path, how: str) -> None:
    """Durably, and all segments before it are gone, or their removal has not reached the disk."""
    log = log_in(quick_path / "data", Config(segment_bytes=1024), partitions=2)
    values = [b"%02d" % turn + b"v" * 100 for turn in range(12)]
    for each in values:
        commit(log, range(2), each)
    bases = [int(path.stem) for path in segments_of(log.directory)]
    assert bases == [0, 4, 8]
    cut = power_cut(log, quick_path / "cut", how)
    for log_start in (1, 3, 4, 5, 7, 8, 11, 12, 20):
        for unlinked in (True, False):
            copy = copied(cut, quick_path / "copy")
            for number in range(2):
                for path in segments_of(copy, number)[:-1]:
                    if unlinked and int(path.stem) + 4 <= log_start:
                        path.unlink()
            again = log_in(copy, partitions=2, log_start=log_start, epoch=2)
            for found, partition in zip(again.found, again.partitions, strict=True):
                assert found.damage is None, (log_start, unlinked)
                assert partition.written_offset == max(12, log_start)
                if log_start < 12:
                    assert values_of(partition, log_start, cold=True) == values[log_start:]
            if how == "missing":
                # Nothing is made that would have to be removed again.
                assert [int(path.stem) for path in segments_of(copy)] == [
                    base for base in bases if base + 4 > log_start
                ]
            commit(again, range(2))
            assert again.close()


def test_out_of_descriptors_the_start_is_refused(log_in: LogIn, three: Path) -> None:
    """And nothing is lost by it."""
    log = log_in(three / "other")
    with no_descriptor_left(), pytest.raises(OSError):
        log.run(log.store.recover([], was_clean=False))
        read_journal(Files(), str(three / "journal"))
    shutil.rmtree(log.directory, ignore_errors=True)
    assert_holds(log_in(three, partitions=3), [[value(0, turn) for turn in range(3)]] * 3)


# Damage, and who is concerned


def quarantined(log: LocalLog) -> list[int]:
    found = []
    for number, partition in enumerate(log.partitions):
        if partition.failure is not None:
            log.refused(Reason.PARTITION_DAMAGED, to=number)
            found.append(number)
    return found


def damage_first_entry(directory: Path, of: int) -> None:
    """The bytes of that partition; the second time they are whole again."""
    (path,) = journal_paths(directory)
    place = saved(directory).parts[TOPIC_ID, of][0].part.place
    path.write_bytes(flipped(path, place + 120))


def test_a_damaged_journal_that_nobody_needs_is_set_aside(log_in: LogIn, quick_path: Path) -> None:
    log = log_in(quick_path / "data", partitions=3)
    for turn in range(3):
        commit(log, range(3), value(0, turn))
    for turn in range(1, 3):
        # The segments have everything.
        killed = log.killed(quick_path / f"killed-{turn}")
        damage_first_entry(killed, 1)
        damaged = journal_paths(killed)[0].read_bytes()
        (killed / "journal" / "0.journal.damaged-1").write_bytes(b"of an earlier time")
        again = log_in(killed, partitions=3, epoch=2)
        assert_holds(again, [[value(0, turn) for turn in range(3)]] * 3)
        assert (killed / "journal" / "0.journal.damaged-1").read_bytes() == b"of an earlier time"
        assert (killed / "journal" / "0.journal.damaged-2").read_bytes() == damaged
        assert_goes_on(again, [[value(0, turn) for turn in range(3)] for _ in range(3)], log_in)


def test_a_damaged_journal_that_is_needed_is_kept(log_in: LogIn, three: Path) -> None:
    """The partitions whose records it had are not taken for whole, not at the next start either."""
    damage_first_entry(three, 1)
    kept = journal_paths(three)[0].read_bytes()
    for epoch in range(2, 5):
        log = log_in(three, partitions=3, epoch=epoch)
        # The payload is one: of the others' parts nobody knows either.
        assert quarantined(log) == [0, 1, 2]
        assert journal_paths(three)[0].read_bytes() == kept
        log.close()
    # With the journal as it was, everything is there.
    damage_first_entry(three, 1)
    assert_holds(log_in(three, partitions=3, epoch=5), [[value(0, turn) for turn in range(3)]] * 3)


def test_a_header_that_is_cut_short_with_a_checksum_that_matches() -> None:
    for length in range(24):
        fields = bytes(range(1, length + 1))
        with pytest.raises(JournalError):
            read_header(b"TKJ1" + masked(fields, 0).to_bytes(4, "little") + fields)


def test_an_entry_that_is_cut_short_anywhere(three: Path) -> None:
    (path,) = journal_paths(three)
    whole = path.read_bytes()
    salt = read_header(whole).salt
    with path.open("rb") as file:
        size_bytes = read_entry(Files(), file.fileno(), BLOCK_BYTES, salt).size_bytes
        end = max(part.place + part.size_bytes for part in read_entry(
            Files(), file.fileno(), BLOCK_BYTES, salt
        ).parts)
    assert end <= BLOCK_BYTES + size_bytes
    for length in range(BLOCK_BYTES, end):
        path.write_bytes(whole[:length])
        with path.open("rb") as file, pytest.raises(JournalError):
            read_entry(Files(), file.fileno(), BLOCK_BYTES, salt)
    # As many parts as can be said: they are not read before it is known that they are there.
    path.write_bytes(whole[:BLOCK_BYTES + 12] + b"\xff" * 4 + whole[BLOCK_BYTES + 16:])
    with path.open("rb") as file, pytest.raises(JournalError):
        read_entry(Files(), file.fileno(), BLOCK_BYTES, salt)


@pytest.mark.parametrize(("sequence", "durable_sequence", "payload_bytes"), [
    (1, 0, 100),        # of before the missing one
    (9, 8, 1 << 40),    # larger than any
    (9, 7, 100),        # each is written when the one before it has been synced
])
def test_a_proof_is_found_behind_what_can_be_no_entry(
    three: Path, sequence: int, durable_sequence: int, payload_bytes: int
) -> None:
    """However much of it there is, and however large it claims to be."""
    (path,) = journal_paths(three)
    whole = path.read_bytes()
    with path.open("rb") as file:
        second = BLOCK_BYTES + read_entry(Files(), file.fileno(), BLOCK_BYTES, read_header(whole).salt).size_bytes
    like_one = struct.pack("<4sIIIQQQq", b"TKJE", 1, 2, 1 << 31, sequence, durable_sequence, payload_bytes, 0)
    rotten = flipped(path, BLOCK_BYTES + 20)
    path.write_bytes(rotten[:second] + like_one.ljust(BLOCK_BYTES, b"\0") * 20 + whole[second:])
    found = saved(three)
    assert found.damage is not None and found.entries == 2


@pytest.mark.parametrize("kept_bytes", [0, 4, 12, 30, 55])
def test_what_proves_ends_in_the_middle(three: Path, kept_bytes: int) -> None:
    """The first entry is gone; of the last one the beginning is there, and proves nothing."""
    (path,) = journal_paths(three)
    whole = path.read_bytes()
    with path.open("rb") as file:
        second = BLOCK_BYTES + read_entry(Files(), file.fileno(), BLOCK_BYTES, read_header(whole).salt).size_bytes
    path.write_bytes(flipped(path, BLOCK_BYTES + 20)[:second + kept_bytes])
    found = saved(three)
    assert (found.damage, found.entries) == (None, 0)


def test_a_hole_between_segment_and_journal_is_damage(log_in: LogIn, quick_path: Path) -> None:
    """A segment that was on the disk is shorter, or gone: of one partition alone."""
    log = log_in(quick_path / "data", partitions=3)
    for number in range(3):
        commit(log, [number], b"first")
    commit(log, range(3), b"second")
    assert [marks(partition) for partition in log.partitions] == [(1, 2, 2)] * 3
    cut = power_cut(log, quick_path / "cut", "short")
    for lost in ("cut", "gone"):
        copy = copied(cut, quick_path / "copy")
        (path,) = segments_of(copy, 1)
        if lost == "cut":
            os.truncate(path, SEGMENT_HEADER_SIZE)
        else:
            path.unlink()
        names = os.listdir(path.parent)
        kept = journal_paths(copy)[0].read_bytes()
        for epoch in (2, 3):
            again = log_in(copy, partitions=3, epoch=epoch)
            assert quarantined(again) == [1]
            assert "000.log" in (again.found[1].damage or "")
            # Nothing is made where something is gone.
            assert [name for name in os.listdir(path.parent) if name.endswith(".log")] == [
                name for name in names if name.endswith(".log")
            ]
            for number in (0, 2):
                assert values_of(again.partitions[number])[:2] == [b"first", b"second"]
            # The others go on, without the journal.
            commit(again, [0, 2], b"third")
            assert again.store.committer.journal_commits == 0
            assert journal_paths(copy)[0].read_bytes() == kept
            again.close()


# Whom a journal is kept for


def kept_for_one(log_in: LogIn, quick_path: Path) -> Path:
    """A journal that a start has kept, for partition 1 of three alone; the power may be cut now."""
    log = log_in(quick_path / "data", partitions=3)
    for number in range(3):
        commit(log, [number], b"first")
    commit(log, range(3), b"second")
    cut = power_cut(log, quick_path / "cut", "short")
    os.truncate(segments_of(cut, 1)[0], SEGMENT_HEADER_SIZE)
    again = log_in(cut, partitions=3, epoch=2)
    assert quarantined(again) == [1]
    return again.killed(quick_path / "kept")


@pytest.mark.parametrize("how", ["flip", "cut", "empty"])
def test_whom_it_is_kept_for_is_believed_when_it_is_whole(log_in: LogIn, quick_path: Path, how: str) -> None:
    """Else the log of a partition that needs it would be taken for whole, and go on under offsets that were durable."""
    kept = kept_for_one(log_in, quick_path)
    path = kept / "journal" / "kept-for"
    size = path.stat().st_size
    for at in range(size if how != "empty" else 1):
        copy = copied(kept, quick_path / "copy")
        if how == "flip":
            for bit in range(8):
                data = bytearray(path.read_bytes())
                data[at] ^= 1 << bit
                (copy / "journal" / "kept-for").write_bytes(data)
                assert saved(copy).concerns((TOPIC_ID, 1))
        else:
            os.truncate(copy / "journal" / "kept-for", at)
            assert saved(copy).concerns((TOPIC_ID, 1))
    assert quarantined(log_in(copy, partitions=3, epoch=3)) == [1]


def test_whom_it_is_kept_for_is_on_the_disk_before_its_name(strace: list[str], tmp_path: Path) -> None:
    """A name that outlives a power cut without its content would tell that it is kept for nobody."""
    script = (
        "from takhin.log.files import Files; from takhin.log.replay import SavedJournal; "
        f"SavedJournal(Files(), {str(tmp_path)!r}).keep({{(7, 3)}})"
    )
    trace = tmp_path / "trace"
    subprocess.run(
        [*strace, "-y", "-e", "trace=pwritev,fdatasync,rename,fsync", "-o", str(trace), sys.executable, "-c", script],
        timeout=60, check=True,
    )
    calls = [line for line in joined(trace.read_text().splitlines()) if "kept-for" in line or "fsync" in line]
    names = [match[0] for line in calls if (match := re.search(r"pwritev|fdatasync|rename|fsync", line))]
    assert names == ["pwritev", "fdatasync", "rename", "fsync"], calls
    kept = read_journal(Files(), str(tmp_path))
    assert kept.concerns((7, 3)) and not kept.concerns((7, 2))
