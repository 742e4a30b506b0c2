"""The journal that all partitions share: when group commits go to it, who is answered, and what its failures mean.

A journal's file fails for real here: its descriptor is made to be that of /dev/full or /dev/null (which can be written
and not synced). Threads that sync are held back where a test is about what happens meanwhile.
"""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from takhin.errors import Reason, TakhinError
from takhin.log import committer
from takhin.log.files import Files
from takhin.log.journal import (
    BLOCK_BYTES,
    FILE_NAMES,
    HEADER_COPIES,
    JournalEntry,
    JournalError,
    JournalHeader,
    read_entry,
    read_header,
)
from takhin.log.partition import Partition
from takhin.log.sync import SyncThread
from tests.log.test_partition import (
    NOW_MS,
    TOPIC_ID,
    Config,
    LocalLog,
    LogIn,
    batches_in,
    file_becomes,
    file_size_limit,
    log_in,
    no_descriptor_left,
    segments_of,
    values_of,
)

__all__ = ["log_in"]

# A journal of two files with room for a header and a few entries.
SMALL_JOURNAL = 2 * 8 * BLOCK_BYTES

Job = tuple[list[int], list[int], int, bytes, int]


@dataclass(frozen=True)
class ReadFile:
    """A journal file, as far as entries of its own sequence follow one another."""

    path: Path
    header: JournalHeader
    entries: list[JournalEntry]


def journal_paths(directory: str | Path) -> list[Path]:
    return [path for name in FILE_NAMES if (path := Path(directory, "journal", name)).exists()]


def journal_in(directory: str | Path) -> list[ReadFile]:
    """The journal's files, in the order in which they were begun."""
    found = []
    for path in journal_paths(directory):
        header = read_header(path.read_bytes()[:BLOCK_BYTES])
        found.append(ReadFile(path, header, entries_in(path, header)))
    return sorted(found, key=lambda file: file.header.first_sequence)


def entries_in(path: Path, header: JournalHeader) -> list[JournalEntry]:
    entries: list[JournalEntry] = []
    files, place = Files(), BLOCK_BYTES
    fd = os.open(path, os.O_RDONLY)
    try:
        while True:
            entry = read_entry(files, fd, place, header.salt)
            if not entry.whole or entry.sequence != header.first_sequence + len(entries):
                break
            entries.append(entry)
            place += entry.size_bytes
    except JournalError:
        pass
    finally:
        os.close(fd)
    return entries


class HeldThread:
    """A sync thread that does nothing until it is told to, but for beginning a journal file."""

    def __init__(self, thread: SyncThread):
        self.event_fd = thread.event_fd
        self.finished = thread.finished
        self.held: list[Job] = []
        self.hold = True
        self._thread = thread
        self._last_number = 0

    def submit(
        self, files: list[int], directories: list[int], write_fd: int = -1, data: bytes = b"", position: int = 0
    ) -> int:
        self._last_number += 1
        self.held.append((files, directories, write_fd, data, position))
        if not self.hold or (data and position == 0):
            self.go()
        return self._last_number

    def go(self) -> None:
        """Do what was held back so far."""
        for job in self.held:
            self._thread.submit(*job)
        self.held.clear()

    def let_go(self) -> None:
        """Hold nothing back any more."""
        self.hold = False
        self.go()

    def stop(self) -> None:
        self.go()
        self._thread.stop()


def hold_journal(log: LocalLog) -> HeldThread:
    """Of a log that has not used its journal yet."""
    thread = HeldThread(log.store.committer._journal_thread)
    log.store.committer._journal_thread = thread  # type: ignore[assignment]
    return thread


def hold_files(log: LocalLog) -> tuple[HeldThread, HeldThread]:
    """The syncs of files that somebody waits for, and of those that nobody waits for. Of a log that made none yet."""
    held = []
    for lane in (log.store.committer._front, log.store.committer._behind):
        held.append(HeldThread(lane.thread))
        lane.thread = held[-1]  # type: ignore[assignment]
    return held[0], held[1]


def append_to(log: LocalLog, numbers: Iterator[int] | range | list[int], value: bytes = b"v") -> None:
    for number in numbers:
        log.append(value, to=number)


def commit(log: LocalLog, numbers: Iterator[int] | range | list[int], value: bytes = b"v") -> None:
    """A record to each of these partitions, all in one tick, all durable."""
    numbers = list(numbers)
    append_to(log, numbers, value)
    log.tick()

    async def durable() -> None:
        partitions = [log.partitions[number] for number in numbers]
        await asyncio.gather(*(partition.make_durable(partition.written_offset) for partition in partitions))

    log.run(durable())


@contextmanager
def journal_becomes(log: LocalLog, device: str) -> Iterator[None]:
    """What is written to the journal's file, which is open, goes to the device."""
    (path,) = journal_paths(log.directory)
    fd = os.open(device, os.O_RDWR)
    try:
        with file_becomes(path, fd):
            yield
    finally:
        os.close(fd)


def marks(partition: Partition) -> tuple[int, int, int]:
    """What is on the disk in the segments, what is durable, what is written."""
    return partition.synced_offset, partition.durable_offset, partition.written_offset


# When


def test_one_partition_alone_is_never_in_it(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=3)
    for _ in range(5):
        commit(log, [1])
    assert (log.store.committer.journal_commits, log.store.committer.syncs) == (0, 5)
    assert marks(log.partitions[1]) == (5, 5, 5)
    assert not os.path.exists(os.path.join(log.directory, "journal"))


def test_several_share_one_entry_and_one_sync(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=6, epoch=7)
    commit(log, range(5), b"first")
    commit(log, [3, 1], b"second")
    assert (log.store.committer.journal_commits, log.store.committer.syncs) == (2, 0)
    assert [marks(partition) for partition in log.partitions] == [(0, 1, 1), (0, 2, 2), (0, 1, 1), (0, 2, 2), (0, 1, 1),
                                                                 (0, 0, 0)]
    (file,) = journal_in(log.directory)
    assert (file.path.name, file.header.first_sequence, file.header.created_ms) == ("0.journal", 1, NOW_MS)
    first, second = file.entries
    assert (first.sequence, first.durable_sequence, second.sequence, second.durable_sequence) == (1, 0, 2, 1)
    assert first.time_ms == NOW_MS
    assert [part.partition for part in first.parts] == [0, 1, 2, 3, 4]
    assert sorted(part.partition for part in second.parts) == [1, 3]
    data = file.path.read_bytes()
    for part in first.parts + second.parts:
        (path,) = segments_of(log.directory, part.partition)
        assert (part.kind, part.topic_id, part.epoch) == (1, TOPIC_ID, 7)
        assert (part.segment_base_offset, part.segment_created_ms) == (0, NOW_MS)
        expected = path.read_bytes()[part.position:part.position + part.size_bytes]
        assert data[part.place:part.place + part.size_bytes] == expected and len(expected) == part.size_bytes
        batch = next(batch for batch in batches_in(path) if batch.base_offset == part.base_offset)
        assert (batch.next_offset, batch.durable_offset) == (part.next_offset, part.base_offset)
    assert len(data) % BLOCK_BYTES == 0
    assert all(entry.size_bytes % BLOCK_BYTES == 0 for entry in file.entries)


def test_a_journal_of_no_size_is_none(log_in: LogIn, tmp_path: Path) -> None:
    for journal_bytes in (0, 1, 2 * BLOCK_BYTES + 1):
        log = log_in(tmp_path / str(journal_bytes), partitions=3, journal_bytes=journal_bytes)
        commit(log, range(3))
        assert (log.store.committer.journal_commits, log.store.committer.syncs) == (0, 3)
        assert journal_paths(log.directory) == []


def test_what_is_large_is_synced_itself(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=4)
    append_to(log, [0, 1])
    log.append(b"x" * committer.JOURNAL_PART_BYTES, to=2)
    log.sync()
    assert (log.store.committer.journal_commits, log.store.committer.syncs) == (1, 1)
    assert [marks(partition) for partition in log.partitions[:3]] == [(0, 1, 1), (0, 1, 1), (1, 1, 1)]
    # Small is what there is to write, not the record: many small ones are large too.
    for _ in range(2800):
        log.append(b"x" * 100, to=3)
    append_to(log, [0, 1])
    log.sync()
    assert marks(log.partitions[3]) == (2800, 2800, 2800)
    # And one that is large beside one that is small: the small one does not wait for it.
    log.append(b"x" * committer.JOURNAL_PART_BYTES, to=2)
    commit(log, [1, 2], b"y")
    assert marks(log.partitions[2]) == (3, 3, 3) and marks(log.partitions[1]) == (0, 3, 3)


def test_what_is_not_in_memory_is_synced_itself(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=3)
    append_to(log, [0, 1])
    log.tick()
    log.drop_rings()
    # The ring begins with what comes now: what is to be made durable begins before it.
    append_to(log, [0, 2])
    log.sync()
    assert log.store.committer.journal_commits <= 1
    assert marks(log.partitions[0]) == (2, 2, 2) and marks(log.partitions[1]) == (1, 1, 1)
    commit(log, range(3))
    assert [marks(partition)[0] for partition in log.partitions[:2]] == [2, 1]
    assert [marks(partition)[1] for partition in log.partitions] == [3, 2, 2]


def test_what_is_not_all_in_the_active_segment_is_synced_itself(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=3)
    commit(log, range(3))
    append_to(log, range(3))
    log.partitions[0].roll(NOW_MS)
    append_to(log, [0])
    log.sync()
    assert [marks(partition) for partition in log.partitions] == [(3, 3, 3), (0, 2, 2), (0, 2, 2)]
    # A segment that was begun where the durable log ends is in an entry from its first batch on.
    log.partitions[1].roll(NOW_MS + 5)
    commit(log, range(3))
    assert marks(log.partitions[1]) == (0, 3, 3)
    last = journal_in(log.directory)[0].entries[-1]
    (part,) = [part for part in last.parts if part.partition == 1]
    assert (part.segment_base_offset, part.segment_created_ms, part.position) == (2, NOW_MS + 5, 49)


def test_with_too_many_unsynced_files_each_is_synced(log_in: LogIn, tmp_path: Path) -> None:
    """They are all open."""
    log = log_in(tmp_path / "data", partitions=12, open_files=16)
    # Between an append and its commit it may find too many, too, and have some synced.
    log.store.committer._timer.cancel()
    commit(log, range(8))
    assert (log.store.committer.journal_commits, log.store.committer.syncs) == (1, 0)
    commit(log, range(12))
    assert log.store.committer.journal_commits == 1
    assert [marks(partition)[0] for partition in log.partitions] == [2] * 8 + [1] * 4
    # Also those that nobody waits for any more.
    for number in range(12):
        log.append(b"x", to=number)
    log.tick()
    assert sum(partition.unsynced for partition in log.partitions) == 12
    log.store.committer._check_unsynced()
    log.settle(lambda: sum(partition.unsynced for partition in log.partitions) <= 8)


def test_what_only_the_journal_holds_is_synced_after_a_while(
    log_in: LogIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "BEHIND_S", 0.1)
    log = log_in(tmp_path / "data", partitions=9)
    commit(log, range(9))
    assert not any(marks(partition)[0] for partition in log.partitions)
    log.settle(lambda: all(marks(partition) == (1, 1, 1) for partition in log.partitions))
    assert log.store.committer.syncs == 9


def test_the_entry_limit_divides(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=90)
    value = b"x" * 60_000
    commit(log, range(90), value)
    assert (log.store.committer.journal_commits, log.store.committer.syncs) == (2, 0)
    (file,) = journal_in(log.directory)
    first, second = ([part.partition for part in entry.parts] for entry in file.entries)
    assert first + second == list(range(90))
    assert sum(part.size_bytes for part in file.entries[0].parts) <= 4 * 1024 * 1024
    assert len(first) == 4 * 1024 * 1024 // file.entries[0].parts[0].size_bytes


# Who is answered, and when


def test_all_kinds_of_waiters_are_answered(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=3)
    thread = hold_journal(log)
    append_to(log, range(3))
    written = [partition.written() for partition in log.partitions]
    durable = [partition.durable() for partition in log.partitions]
    log.tick()
    late = [log.loop.create_task(partition.make_durable(1)) for partition in log.partitions]
    given_up = log.loop.create_task(log.partitions[0].make_durable(1))
    log.tick()
    given_up.cancel()
    log.settle(lambda: len(thread.held) == 1)
    assert all(each.done() for each in written) and not any(each.done() for each in (*durable, *late))
    assert all(marks(partition) == (0, 0, 1) for partition in log.partitions)
    thread.let_go()

    async def answers() -> list[object]:
        return await asyncio.gather(*durable, *late)

    assert log.run(answers()) == [None] * 6
    assert log.store.committer.journal_commits == 1 and log.store.committer.syncs == 0
    log.run(log.partitions[0].make_durable(1))


def test_who_comes_while_an_entry_is_on_its_way_shares_the_next(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=5)
    thread = hold_journal(log)
    append_to(log, [0, 1])
    first = [log.partitions[number].durable() for number in (0, 1)]
    log.tick()
    second = []
    for number in (0, 2, 3):
        log.append(b"later", to=number)
        second.append(log.partitions[number].durable())
        log.tick()
    log.settle(lambda: len(thread.held) == 1)
    assert not log.store.committer._front.syncs
    thread.go()
    log.settle(lambda: all(each.done() for each in first))
    # What the entry was made of is all that it can vouch for.
    assert [marks(partition)[1] for partition in log.partitions] == [1, 1, 0, 0, 0]
    log.settle(lambda: len(thread.held) == 1)
    assert not any(each.done() for each in second)
    thread.let_go()
    log.settle(lambda: all(each.done() for each in second))
    assert [marks(partition)[1] for partition in log.partitions] == [2, 1, 1, 1, 0]
    assert (log.store.committer.journal_commits, log.store.committer.syncs) == (2, 0)


def test_who_is_large_does_not_wait_for_an_entry_on_its_way(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=3)
    thread = hold_journal(log)
    append_to(log, [0, 1])
    small = [log.partitions[number].durable() for number in (0, 1)]
    log.tick()
    log.append(b"x" * committer.JOURNAL_PART_BYTES, to=2)
    # One that is in the entry as well.
    log.append(b"x" * committer.JOURNAL_PART_BYTES, to=1)
    large = [log.partitions[number].durable() for number in (1, 2)]
    log.tick()
    log.settle(lambda: all(each.done() for each in large))
    assert small[1].done() and not small[0].done()
    assert [marks(partition) for partition in log.partitions] == [(0, 0, 1), (2, 2, 2), (1, 1, 1)]
    thread.let_go()
    log.settle(small[0].done)
    assert [marks(partition) for partition in log.partitions] == [(0, 1, 1), (2, 2, 2), (1, 1, 1)]
    assert log.close() and journal_paths(log.directory) == []


def test_a_file_whose_partitions_were_synced_meanwhile_is_used_again(log_in: LogIn, tmp_path: Path) -> None:
    """The sync behind may be over before the entry is: then nothing has to be waited for."""
    log = log_in(tmp_path / "data", partitions=4, journal_bytes=SMALL_JOURNAL)
    thread = hold_journal(log)
    append_to(log, [0, 1])
    waiting = [log.partitions[number].durable() for number in (0, 1)]
    log.tick()
    log.store.committer._behind.queue.update(dict.fromkeys(log.partitions[:2]))
    log.store.committer._go_on()
    log.settle(lambda: all(marks(log.partitions[number]) == (1, 1, 1) for number in (0, 1)))
    log.settle(lambda: len(thread.held) == 1)
    thread.let_go()
    log.settle(lambda: log.store.committer.journal_commits == 1)
    assert all(each.result() is None for each in waiting)
    # These two get nothing any more; the journal is not theirs.
    for _ in range(40):
        commit(log, [2, 3])
    assert log.store._journal.turns >= 4
    assert log.close() and journal_paths(log.directory) == []


def test_busy_partitions_do_not_keep_others_from_the_journal(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=90)
    quiet = False
    value = b"x" * 60_000

    async def keep_busy(number: int) -> None:
        while not quiet:
            log.append(value, to=number)
            assert await log.partitions[number].durable() is None

    async def scenario() -> None:
        nonlocal quiet
        # So many that they fill each entry.
        tasks = [asyncio.ensure_future(keep_busy(number)) for number in range(89)]
        await asyncio.sleep(0.01)
        log.append(value, to=89)
        before = log.store.committer.journal_commits
        try:
            assert await log.partitions[89].durable() is None
            # The one under way, those before it in line, and its own.
            assert log.store.committer.journal_commits - before <= 4
        finally:
            quiet = True
            await asyncio.gather(*tasks)

    log.run(scenario())


def test_files_take_turns(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=4, journal_bytes=SMALL_JOURNAL)
    seen: dict[str, set[int]] = {name: set() for name in FILE_NAMES}
    for round_ in range(1, 61):
        commit(log, [round_ % 4, (round_ + 1) % 4], b"%02d" % round_ * 20)
        # A sync behind may have been quicker than the entry.
        log.settle(lambda: log.store.committer._journal_commit is None)
        found = journal_in(log.directory)
        for file in found:
            seen[file.path.name].add(file.header.first_sequence)
            assert file.path.stat().st_size <= SMALL_JOURNAL // 2
        assert all(marks(partition)[1] == marks(partition)[2] for partition in log.partitions)
        last = max((entry.sequence for file in found for entry in file.entries), default=0)
        assert last == log.store.committer.journal_commits
    assert log.store._journal.turns >= 5
    for name in FILE_NAMES:
        assert len(seen[name]) >= 3
    # Sequences go on from file to file.
    former, latter = journal_in(log.directory)
    assert former.header.first_sequence + len(former.entries) == latter.header.first_sequence
    assert former.header.salt != latter.header.salt
    assert log.close() and journal_paths(log.directory) == []
    assert [len(values_of(log_in(log.directory, partitions=4, was_clean=True, epoch=2).partitions[0]))] == [30]


def test_without_a_free_file_each_is_synced(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=4, journal_bytes=SMALL_JOURNAL)
    log.store.committer._behind.limit = 0
    for round_ in range(1, 61):
        commit(log, range(4), b"x" * 200)
        assert all(marks(partition)[1] == round_ for partition in log.partitions)
        if log.store.committer.syncs == 0:
            assert log.store._journal.turns <= 1
    # As those syncs make the files free again, the journal is used again too.
    assert log.store.committer.syncs >= 8 and log.store.committer.journal_commits >= 20
    assert log.store._journal.turns >= 4


# What is written


def flipped(path: Path, at: int, mask: int = 0x10) -> bytes:
    data = bytearray(path.read_bytes())
    data[at] ^= mask
    return bytes(data)


def test_every_byte_of_a_file_counts(log_in: LogIn, tmp_path: Path) -> None:
    """Whichever is damaged, no entry is read as another than it was."""
    log = log_in(tmp_path / "data", partitions=3)
    commit(log, range(3), b"first")
    commit(log, range(3), b"second")
    (file,) = journal_in(log.directory)
    good = {entry.sequence: entry for entry in file.entries}
    whole = file.path.read_bytes()
    # Where an entry's bytes end and the padding to the next one begins.
    ends = {
        entry.sequence: entry.parts[-1].place + entry.parts[-1].size_bytes for entry in file.entries
    }
    path = tmp_path / "flipped"
    files = Files()
    for at in range(len(whole)):
        path.write_bytes(flipped(file.path, at))
        headers = []
        for copy in HEADER_COPIES:
            try:
                headers.append(read_header(path.read_bytes()[copy:BLOCK_BYTES]))
            except JournalError:
                pass
        assert headers and set(headers) == {file.header}
        fd = os.open(path, os.O_RDONLY)
        place = BLOCK_BYTES
        for sequence, entry in good.items():
            try:
                read = read_entry(files, fd, place, file.header.salt)
            except JournalError:
                assert place <= at < entry.parts[0].place
            else:
                if read.whole:
                    assert read == entry and not place <= at < ends[sequence]
                else:
                    assert read.parts == entry.parts and entry.parts[0].place <= at < ends[sequence]
            place += entry.size_bytes
        os.close(fd)


def test_an_entry_that_no_file_has_room_for_is_not_begun(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=3, journal_bytes=SMALL_JOURNAL)
    for size_bytes in (10, 3000, 10):
        commit(log, range(3), b"v" * size_bytes)
        assert all(path.stat().st_size <= SMALL_JOURNAL // 2 for path in journal_paths(log.directory))
    assert log.store.committer.journal_commits == 2
    assert all(marks(partition)[1] == 3 for partition in log.partitions)


def test_an_entry_is_of_its_own_use_of_the_file(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=2)
    commit(log, range(2))
    (file,) = journal_in(log.directory)
    fd = os.open(file.path, os.O_RDONLY)
    for salt in (0, file.header.salt ^ 1, file.header.salt ^ (1 << 31)):
        with pytest.raises(JournalError):
            read_entry(Files(), fd, BLOCK_BYTES, salt)
    with pytest.raises(JournalError):
        read_entry(Files(), fd, file.path.stat().st_size, file.header.salt)
    os.close(fd)


# What fails


def test_a_full_disk_is_passed_over_and_tried_again(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=3)
    commit(log, range(3), b"first")
    with journal_becomes(log, "/dev/full"):
        commit(log, range(3), b"second")
        assert [marks(partition) for partition in log.partitions] == [(2, 2, 2)] * 3
        # Until a while has passed nobody waits for it.
        commit(log, range(3), b"third")
    assert log.store.committer.journal_commits == 1
    log.store.committer._journal_paused_until_s = 1.0
    commit(log, range(3), b"fourth")
    assert (log.store.committer.journal_commits, [marks(partition) for partition in log.partitions]) == (
        2, [(3, 4, 4)] * 3
    )
    (file,) = journal_in(log.directory)
    assert [entry.sequence for entry in file.entries] == [1, 2]
    assert file.entries[1].parts[0].base_offset == 3
    assert not log.halted
    assert log.close() and journal_paths(log.directory) == []


@pytest.mark.parametrize("fault", ["sync", "write"])
def test_a_file_that_failed_is_written_to_no_more(log_in: LogIn, tmp_path: Path, fault: str) -> None:
    log = log_in(tmp_path / "data", partitions=3)
    commit(log, range(3), b"first")
    if fault == "sync":
        with journal_becomes(log, "/dev/null"):
            commit(log, range(3), b"second")
    else:
        (path,) = journal_paths(log.directory)
        size_bytes = path.stat().st_size
        with file_size_limit(size_bytes + 100):
            commit(log, range(3), b"second")
    assert [marks(partition) for partition in log.partitions] == [(2, 2, 2)] * 3
    before = journal_paths(log.directory)[0].read_bytes()
    log.store.committer._journal_paused_until_s = 1.0
    for _ in range(3):
        commit(log, range(3), b"later")
    assert log.store.committer.journal_commits == 4
    assert journal_paths(log.directory)[0].read_bytes() == before
    former, latter = journal_in(log.directory)
    assert ([entry.sequence for entry in former.entries], [entry.sequence for entry in latter.entries]) == (
        [1], [2, 3, 4]
    )
    assert not log.halted
    assert log.close() and journal_paths(log.directory) == []


def test_both_files_failed(log_in: LogIn, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = log_in(tmp_path / "data", partitions=3)
    commit(log, range(3))
    for _ in FILE_NAMES:
        path = journal_paths(log.directory)[-1]
        with file_size_limit(path.stat().st_size):
            commit(log, range(3))
        log.store.committer._journal_paused_until_s = 1.0
        commit(log, range(3))
    commits = log.store.committer.journal_commits
    commit(log, range(3))
    assert log.store.committer.journal_commits == commits <= 2
    assert times_off(caplog) == 1 and "0.journal could not be written" in caplog.text
    assert all(marks(partition) == (6, 6, 6) for partition in log.partitions)
    assert log.close() and journal_paths(log.directory) == []


def test_out_of_descriptors_the_journal_is_begun_later(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=3)
    append_to(log, range(3))
    waiting = [partition.durable() for partition in log.partitions]
    for partition in log.partitions:
        partition.flush()
    with no_descriptor_left():
        log.tick()
        log.run(asyncio.sleep(0.12))
    assert not any(each.done() for each in waiting)
    assert log.store.committer.journal_commits == 0
    log.settle(lambda: all(each.done() for each in waiting))
    assert all(marks(partition)[1] == 1 and partition.failure is None for partition in log.partitions)
    log.store.committer._journal_paused_until_s = 1.0
    commit(log, range(3))
    assert log.store.committer.journal_commits >= 1
    assert log.close()


def test_something_in_the_journals_place(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=3)
    Path(log.directory, "journal").write_bytes(b"")
    commit(log, range(3))
    assert [marks(partition) for partition in log.partitions] == [(1, 1, 1)] * 3
    os.unlink(os.path.join(log.directory, "journal"))
    log.store.committer._journal_paused_until_s = 1.0
    commit(log, range(3))
    assert log.store.committer.journal_commits == 1


def test_each_trouble_with_the_journal_is_told_once(
    log_in: LogIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = log_in(tmp_path / "data", partitions=3)
    for times in (1, 2):
        commit(log, range(3))
        for _ in range(2):
            log.store.committer._journal_paused_until_s = min(log.store.committer._journal_paused_until_s, 1.0)
            with journal_becomes(log, "/dev/full"):
                commit(log, range(3))
        assert sum("the journal can't be written" in record.message for record in caplog.records) == times
        log.store.committer._journal_paused_until_s = 1.0


def fail_file(log: LocalLog, number: int) -> None:
    """A sync of that partition's file fails."""
    partition = log.partitions[number]
    reading, writing = os.pipe()
    with file_becomes(partition.segments[-1].path, writing):
        log.store.committer._behind.queue[partition] = None
        log.store.committer._go_on()
        log.settle(lambda: partition.failure is not None)
    os.close(reading)
    os.close(writing)


def times_off(caplog: pytest.LogCaptureFixture) -> int:
    """How often it was told that the journal is off until the next start."""
    return sum("the journal is off" in record.message for record in caplog.records)


def test_a_failed_partition_keeps_its_file(
    log_in: LogIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What only the journal has of it stays there; the others go on, at last without the journal."""
    log = log_in(tmp_path / "data", partitions=4, journal_bytes=SMALL_JOURNAL)
    commit(log, range(4), b"kept")
    fail_file(log, 0)
    assert marks(log.partitions[0]) == (0, 1, 1)
    log.run(log.partitions[0].make_durable(1))
    log.refused(Reason.SYNC_FAILED)
    for round_ in range(30):
        commit(log, range(1, 4), b"x" * 200)
        if log.store._journal.turns == 0:
            assert times_off(caplog) == 0
    assert all(marks(partition)[1] == 31 for partition in log.partitions[1:])
    assert times_off(caplog) == 1 and "0.journal may hold all that is on the disk of t/0, which failed" in caplog.text
    assert log.store._journal.turns == 1 and log.store.committer.syncs > 3
    assert journal_in(log.directory)[0].entries[0].parts[0].partition == 0
    assert not log.close()
    # The other file is of no use any more.
    (file,) = journal_in(log.directory)
    assert file.header.first_sequence == 1
    os.truncate(segments_of(log.directory)[0], 60)
    again = log_in(log.directory, partitions=4, epoch=2)
    assert [found.damage for found in again.found] == [None] * 4
    assert values_of(again.partition) == [b"kept"]
    assert [partition.written_offset for partition in again.partitions] == [1, 31, 31, 31]
    assert journal_paths(log.directory) == []
    commit(again, range(4))


def test_a_partition_that_fails_while_its_entry_is_on_its_way(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=3)
    thread = hold_journal(log)
    append_to(log, range(3))
    waiting = [partition.durable() for partition in log.partitions]
    log.settle(lambda: len(thread.held) == 1)
    fail_file(log, 1)
    failure = waiting[1].result()
    assert failure is not None and failure[0] is Reason.SYNC_FAILED
    thread.let_go()
    log.settle(lambda: all(each.done() for each in waiting))
    assert [each.result() for each in waiting if each is not waiting[1]] == [None, None]
    assert [marks(partition) for partition in log.partitions] == [(0, 1, 1), (0, 0, 1), (0, 1, 1)]
    with pytest.raises(TakhinError):
        log.run(log.partitions[1].make_durable(1))
    commit(log, [0, 2])
    assert not log.close()
    assert len(journal_paths(log.directory)) == 1


@pytest.mark.parametrize("device", ["", "/dev/null", "/dev/full"])
def test_a_partition_that_is_closed_while_its_entry_is_on_its_way(
    log_in: LogIn, tmp_path: Path, device: str
) -> None:
    """Nothing waits for its files afterwards."""
    log = log_in(tmp_path / "data", partitions=3, journal_bytes=SMALL_JOURNAL)
    thread = hold_journal(log)
    thread.hold = False
    commit(log, range(3))
    thread.hold = True
    append_to(log, range(3))
    waiting = [partition.durable() for partition in log.partitions]
    log.tick()
    gone = log.partitions.pop()
    log.store.close_partition(gone, Reason.TOPIC_NOT_FOUND, "gone")
    assert waiting[2].result() == (Reason.TOPIC_NOT_FOUND, "gone")
    with journal_becomes(log, device) if device else nullcontext():
        thread.let_go()
        log.settle(lambda: all(each.done() for each in waiting))
    assert waiting[0].result() is waiting[1].result() is None
    log.store.committer._journal_paused_until_s = 0.0
    for _ in range(40):
        commit(log, range(2))
    # A file whose sync failed is not used again.
    assert log.store._journal.turns == 1 if device == "/dev/null" else log.store._journal.turns >= 4
    assert log.close() and journal_paths(log.directory) == []


def test_nothing_of_a_closed_partition_is_kept(log_in: LogIn, tmp_path: Path) -> None:
    """Whenever it is closed: between its append and the tick's end, or while its files are synced."""
    log = log_in(tmp_path / "data", partitions=3)
    _, behind = hold_files(log)
    log.append(b"a")
    log.store.close_partition(log.partitions[0], Reason.TOPIC_NOT_FOUND, "gone")
    log.tick()
    log.write(b"a", to=1)
    log.tick()
    log.store.committer._behind.queue[log.partitions[1]] = None
    log.store.committer._go_on()
    log.write(b"b", to=1)
    log.tick()
    log.store.close_partition(log.partitions[1], Reason.TOPIC_NOT_FOUND, "gone")
    behind.let_go()
    log.settle(lambda: not log.store.committer._behind.syncs)
    del log.partitions[:2]
    assert not log.store.committer._unsynced_since_s and not log.store.committer._behind.queue


# The end


def test_a_clean_stop_leaves_no_journal(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=3)
    commit(log, range(3))
    append_to(log, [2])
    assert len(journal_paths(log.directory)) == 1
    assert log.close()
    assert os.listdir(os.path.join(log.directory, "journal")) == []
    again = log_in(log.directory, partitions=3, was_clean=True, epoch=2)
    assert [found.scanned_bytes for found in again.found] == [0, 0, 0]
    assert [len(values_of(partition)) for partition in again.partitions] == [1, 1, 2]
    commit(again, range(3))
    assert [entry.sequence for entry in journal_in(log.directory)[0].entries] == [1]
