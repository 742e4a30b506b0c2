"""Transactions on real files: what is seen when, what a failure at each step leaves, and what a start makes of it."""

import asyncio
import os
import select
import shutil
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from takhin.codec.messages import ProduceRequest
from takhin.errors import Reason, TakhinError
from takhin.log import transaction
from takhin.log.files import Files
from takhin.log.journal import BLOCK_BYTES, HEADER_COPIES, MAX_PAYLOAD_BYTES, JournalError
from takhin.log.replay import read_journal
from takhin.log.transaction import Transaction, TransactionAppend
from takhin.log.transaction_offsets import TransactionOffsets, decode_offsets, encode_offsets
from takhin.v1 import takhin_pb2 as pb
from tests.log.test_journal import (
    HeldThread,
    append_to,
    commit,
    hold_files,
    hold_journal,
    journal_becomes,
    journal_in,
    journal_paths,
    marks,
)
from tests.log.test_journal_replay import assert_holds, masked, three, value
from tests.log.test_partition import (
    DURABLE,
    NOW_MS,
    TOPIC_ID,
    Config,
    LocalLog,
    LogIn,
    batches_in,
    file_becomes,
    log_in,
    quick_path,
    segments_of,
    values_of,
)

__all__ = ["log_in", "quick_path", "three"]

OFFSETS = encode_offsets("g", NOW_MS, [(7, 1, 42), (8, 0, 3)])


async def nothing() -> None:
    pass


class Begun:
    """A transaction on its way. stored: the numbers under which its offsets were stored."""

    def __init__(
        self, log: LocalLog, values: Mapping[int, list[bytes]], *, offsets: bytes = b"",
        check: Callable[[], Awaitable[None]] = nothing, store: Callable[[int], Awaitable[None]] | None = None,
    ):
        self.log = log
        self.stored: list[int] = []
        self._store = store

        async def note(number: int) -> None:
            if self._store is not None:
                await self._store(number)
            self.stored.append(number)

        appends = [self._append(number, some) for number, some in values.items()]
        work = log.store.transactor.run(Transaction(appends, offsets, lambda: None, check, note))
        self.task = log.loop.create_task(work)

    def _append(self, number: int, values: list[bytes]) -> TransactionAppend:
        request = pb.ProduceMessageRequest(topic="t", partition=number)
        if len(values) == 1:
            request.record.value = values[0]
        else:
            request.records.extend(pb.Record(value=value) for value in values)
        data = request.SerializeToString()
        partition = self.log.partitions[number]
        scan = ProduceRequest(100_000)
        scan.read(data)

        def append(now_ms: int) -> bytes:
            scan.read(data)
            return partition.append(scan, now_ms, DURABLE)

        return TransactionAppend(partition, scan.record_count, scan.records_bytes, append)

    def answers(self) -> list[pb.ProduceMessageResponse]:
        return [pb.ProduceMessageResponse.FromString(answer) for answer in self.log.run(self.task)]

    def refused(self, reason: Reason) -> TakhinError:
        with pytest.raises(TakhinError) as caught:
            self.log.run(self.task)
        assert caught.value.reason is reason, caught.value
        return caught.value


def transact(log: LocalLog, values: Mapping[int, list[bytes]], offsets: bytes = b"") -> list[pb.ProduceMessageResponse]:
    return Begun(log, values, offsets=offsets).answers()


def all_values(log: LocalLog) -> list[list[bytes]]:
    return [values_of(partition) for partition in log.partitions]


def refusal_of(reason: Reason) -> TakhinError:
    return TakhinError(reason, "for the test")


# As it should be


def test_all_of_it_is_there_durably_and_at_once(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=4, epoch=3)
    commit(log, [0, 3], b"before")
    answers = transact(log, {0: [b"a", b"b"], 2: [b"c"], 3: [b"d"]})
    assert [(each.partition, each.offset, each.record_count) for each in answers] == [(0, 1, 2), (2, 0, 1), (3, 1, 1)]
    assert all((each.durability, each.epoch, each.topic) == (pb.DURABILITY_DURABLE, 3, "t") for each in answers)
    assert all_values(log) == [[b"before", b"a", b"b"], [], [b"c"], [b"before", b"d"]]
    assert [marks(partition) for partition in log.partitions] == [(0, 3, 3), (0, 0, 0), (0, 1, 1), (0, 2, 2)]
    assert (log.store.committer.journal_commits, log.store.committer.syncs) == (2, 0)
    (file,) = journal_in(log.directory)
    parts = file.entries[-1].parts
    assert [(part.partition, part.base_offset, part.next_offset) for part in parts] == [(0, 1, 3), (2, 0, 1), (3, 1, 2)]
    data = file.path.read_bytes()
    for part in parts:
        (path,) = segments_of(log.directory, part.partition)
        assert path.read_bytes()[part.position:] == data[part.place:part.place + part.size_bytes]
        # A batch of its own, with nothing of others.
        assert batches_in(path)[-1].base_offset == part.base_offset
    log.drop_rings()
    assert all_values(log) == [[b"before", b"a", b"b"], [], [b"c"], [b"before", b"d"]]


def test_one_partition_alone_and_the_first_append_of_all(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data")
    assert transact(log, {0: [b"x"]})[0].offset == 0
    assert transact(log, {0: [b"y"]})[0].offset == 1
    assert log.close()
    log = log_in(tmp_path / "data", was_clean=True)
    assert values_of(log.partition) == [b"x", b"y"] and journal_paths(log.directory) == []
    assert transact(log, {0: [b"z"]})[0].offset == 2


def test_what_is_written_and_not_durable_goes_with_it(log_in: LogIn, tmp_path: Path) -> None:
    """Durable means durable with all before it."""
    log = log_in(tmp_path / "data", partitions=2)
    log.append(b"in the file")
    log.tick()
    log.append(b"in this tick")
    transact(log, {0: [b"t"], 1: [b"u"]})
    assert marks(log.partition) == (0, 3, 3)
    left = log.killed(tmp_path / "left")
    for number in (0, 1):
        shutil.rmtree(left / "topics" / str(TOPIC_ID) / str(number))
    again = log_in(left, partitions=2, epoch=2)
    assert all_values(again) == [[b"in the file", b"in this tick", b"t"], [b"u"]]


def test_readers_see_nothing_before_it_is_decided_and_then_all(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=3)
    commit(log, range(3), b"before")
    thread = hold_journal(log)
    begun = Begun(log, {0: [b"a"], 1: [b"b"]})
    log.settle(lambda: len(thread.held) == 1)
    waiting = [partition.data_after(1) for partition in log.partitions]
    assert log.partitions[0].next_offset == 2 and log.partitions[0].held
    assert all_values(log) == [[b"before"]] * 3 and all(marks(each) == (0, 1, 1) for each in log.partitions)
    assert all(len(segments_of(log.directory, number)[0].read_bytes()) == log.partitions[number].segments[0].size_bytes
               for number in range(3))
    seen = set()

    async def watch() -> None:
        while not begun.task.done():
            seen.add((log.partitions[0].written_offset, log.partitions[1].written_offset))
            await asyncio.sleep(0)

    watcher = log.loop.create_task(watch())
    log.tick()
    thread.let_go()
    begun.answers()
    log.run(watcher)
    assert seen <= {(1, 1), (2, 2)} and (1, 1) in seen
    assert [each is not None and each.done() for each in waiting] == [True, True, False]


def test_appends_behind_it_wait_for_it_and_are_written_then(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=2)
    commit(log, [0, 1], b"before")
    thread = hold_journal(log)
    begun = Begun(log, {0: [b"t"]})
    log.settle(lambda: len(thread.held) == 1)
    assert log.append(b"behind").offset == 2
    written, durable = log.partition.written(), log.partition.durable()
    log.tick()
    # The one beside it does not wait.
    log.append(b"beside", to=1)
    beside = log.partitions[1].written()
    log.settle(beside.done)
    assert values_of(log.partition) == [b"before"] and not written.done() and not durable.done()
    assert log.partition.unwritten and not log.partition.roll(NOW_MS)
    thread.let_go()
    begun.answers()
    log.settle(lambda: written.done() and durable.done())
    assert written.result() is None and durable.result() is None
    assert all_values(log) == [[b"before", b"t", b"behind"], [b"before", b"beside"]]


def test_it_begins_a_segment_when_it_does_not_fit(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", Config(segment_bytes=2000), partitions=2)
    log.append(b"x" * 1500)
    log.append(b"x" * 1500, to=1)
    transact(log, {0: [b"y" * 900], 1: [b"z"]})
    assert [len(segments_of(log.directory, number)) for number in (0, 1)] == [2, 1]
    left = log.killed(tmp_path / "left")
    again = log_in(left, Config(segment_bytes=2000), partitions=2, epoch=2)
    assert all_values(again) == [[b"x" * 1500, b"y" * 900], [b"x" * 1500, b"z"]]
    # What comes while it is held goes to the same segment, and the next one begins behind that.
    thread = hold_journal(again)
    begun = Begun(again, {0: [b"t" * 700]})
    again.settle(lambda: len(thread.held) == 1)
    again.append(b"u" * 900)
    thread.let_go()
    begun.answers()
    again.append(b"v")
    again.tick()
    assert [int(path.stem) for path in segments_of(left, 0)] == [0, 1, 4]
    assert values_of(again.partition) == [b"x" * 1500, b"y" * 900, b"t" * 700, b"u" * 900, b"v"]


def test_what_is_not_in_memory_is_made_durable_first(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=2, ring_bytes=1 << 16, ring_bytes_per_partition=1 << 14)
    for _ in range(40):
        log.append(b"x" * 1000)
        log.tick()
    log.drop_rings()
    transact(log, {0: [b"t"], 1: [b"u"]})
    assert log.store.committer.syncs == 1
    assert values_of(log.partition) == [b"x" * 1000] * 40 + [b"t"]
    # And what its own appends push out of memory.
    for number in (0, 1):
        for _ in range(12):
            log.append(b"x" * 1000, to=number)
        log.tick()
    transact(log, {0: [b"y" * 15_000], 1: [b"y" * 15_000]})
    assert [values[-1] for values in all_values(log)] == [b"y" * 15_000] * 2


def test_what_is_large_before_it_is_made_durable_first(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=40)
    append_to(log, range(40), b"x" * 200_000)
    log.tick()
    transact(log, {number: [b"t"] for number in range(40)})
    assert all(marks(each)[1:] == (2, 2) for each in log.partitions)
    assert sum(part.size_bytes for part in journal_in(log.directory)[-1].entries[-1].parts) <= MAX_PAYLOAD_BYTES


def test_transactions_and_group_commits_take_turns(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=6, journal_bytes=2 * 64 * BLOCK_BYTES)

    async def transactions() -> None:
        for turn in range(60):
            begun = Begun(log, {0: [b"a%d" % turn], 1 + turn % 3: [b"b%d" % turn]}, offsets=OFFSETS * (turn % 2))
            await begun.task
            assert bool(begun.stored) == bool(turn % 2)

    async def commits(first: int) -> None:
        for turn in range(60):
            log.append(b"c%d" % turn, to=first)
            assert await log.partitions[first].durable() is None

    async def all_of_it() -> None:
        await asyncio.gather(transactions(), transactions(), commits(3), commits(4), commits(5))

    log.run(all_of_it())
    assert log.store._journal.turns >= 2 and log.store.transactor.last_number == 60
    values = all_values(log)
    assert [len(each) for each in values] == [120, 40, 40, 100, 60, 60]
    left = log.killed(tmp_path / "left")
    assert log.close() and journal_paths(log.directory) == []

    async def store(offsets: list[TransactionOffsets], lost: list[int]) -> None:
        assert [each.number for each in offsets] == sorted(each.number for each in offsets) and not lost

    again = log_in(left, partitions=6, epoch=2, store_offsets=store)
    assert all_values(again) == values


# Offsets


def test_offsets_are_in_the_entry_and_stored_before_anybody_sees_the_records(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=2)
    log.store.transactor.last_number = 17
    gate = log.loop.create_future()

    async def store(number: int) -> None:
        assert number == 18
        await gate

    begun = Begun(log, {0: [b"a"], 1: [b"b"]}, offsets=OFFSETS, store=store)
    log.settle(lambda: log.store.committer.journal_commits == 1)
    log.tick()
    assert all_values(log) == [[], []] and not begun.task.done()
    saved = read_journal(Files(), os.path.join(log.directory, "journal"))
    assert saved.offsets == [TransactionOffsets(18, "g", NOW_MS, ((7, 1, 42), (8, 0, 3)))]
    assert sorted(saved.parts) == [(TOPIC_ID, 0), (TOPIC_ID, 1)] and not saved.damage
    saved.close()
    gate.set_result(None)
    begun.answers()
    assert begun.stored == [18] and all_values(log) == [[b"a"], [b"b"]]
    transact(log, {0: [b"c"]})
    assert log.store.transactor.last_number == 18


@pytest.mark.parametrize("fails", [False, True])
def test_whoever_looks_at_offsets_waits_for_those_that_are_being_decided(
    log_in: LogIn, tmp_path: Path, fails: bool
) -> None:
    log = log_in(tmp_path / "data", partitions=2)
    gate = log.loop.create_future()

    async def store(number: int) -> None:
        await gate
        if fails:
            raise refusal_of(Reason.INTERNAL_ERROR)

    transactor = log.store.transactor
    log.run(transactor.offsets_are_stored())
    thread, begun = held_in_journal(log, {0: [b"a"], 1: [b"b"]}, offsets=OFFSETS, store=store)
    looks = [log.loop.create_task(transactor.offsets_are_stored()) for _ in range(2)]
    log.tick()
    assert not any(look.done() for look in looks)
    thread.hold = False
    thread.let_go()
    log.settle(lambda: log.store.committer.journal_commits == 1)
    log.tick()
    # Whoever gives up takes nobody with it.
    looks[0].cancel()
    log.tick()
    assert looks[0].cancelled() and not looks[1].done()
    gate.set_result(None)
    log.settle(looks[1].done)
    if fails:
        begun.refused(Reason.SYNC_FAILED)
    else:
        begun.answers()
        thread.hold = True
        # One without offsets is nobody's business.
        begun = Begun(log, {0: [b"c"]})
        log.settle(lambda: len(thread.held) == 1)
        log.run(transactor.offsets_are_stored())
        thread.hold = False
        thread.let_go()
        begun.answers()


def test_offsets_that_are_not_stored_keep_the_file(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=4, journal_bytes=2 * 8 * BLOCK_BYTES)

    async def fails(number: int) -> None:
        raise refusal_of(Reason.INTERNAL_ERROR)

    refusal = Begun(log, {0: [b"a"], 1: [b"b"]}, offsets=OFFSETS, store=fails).refused(Reason.SYNC_FAILED)
    assert "next start" in refusal.message
    assert all_values(log) == [[], [], [], []]
    log.refused(Reason.SYNC_FAILED)
    for _ in range(40):
        commit(log, [2, 3])
    assert not log.close()
    assert journal_paths(log.directory)
    stored: list[TransactionOffsets] = []

    async def store(offsets: list[TransactionOffsets], lost: list[int]) -> None:
        stored.extend(offsets)

    again = log_in(tmp_path / "data", partitions=4, epoch=2, store_offsets=store)
    assert all_values(again) == [[b"a"], [b"b"], [b"v"] * 40, [b"v"] * 40]
    assert [each.number for each in stored] == [1] and journal_paths(again.directory) == []


def test_offsets_alone_need_no_records_to_be_told_apart() -> None:
    for group, offsets in (("g", []), ("gruppe ä", [(1, 2, 3)]), ("", [(1 << 40, 5, 1 << 50), (1, 0, 0)])):
        assert decode_offsets(4, encode_offsets(group, -1, offsets)) == TransactionOffsets(4, group, -1, tuple(offsets))


@pytest.mark.parametrize("data", [
    b"", b"x" * 15, OFFSETS[:-1], OFFSETS + b"x", OFFSETS[:8] + b"\xff\xff\xff\xff" + OFFSETS[12:],
    OFFSETS[:16] + b"\xff" + OFFSETS[17:], OFFSETS[:12] + b"\xff\xff\xff\xff" + OFFSETS[16:],
])
def test_offsets_that_can_not_be_read(data: bytes) -> None:
    with pytest.raises(JournalError):
        decode_offsets(1, data)


# What is refused leaves nothing


def check_nothing(log: LocalLog, values: list[list[bytes]]) -> None:
    """Nothing has happened, and everything goes on."""
    assert all_values(log) == values and log.halted == []
    assert [partition.next_offset for partition in log.partitions] == [len(each) for each in values]
    assert not any(partition.held or partition.failure for partition in log.partitions)
    answers = transact(log, {number: [b"after"] for number in range(len(values))})
    assert [each.offset for each in answers] == [len(each) for each in values]
    assert all_values(log) == [each + [b"after"] for each in values]


def test_a_check_that_refuses(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=2)

    async def refuse() -> None:
        raise refusal_of(Reason.OFFSET_BEHIND_COMMITTED)

    Begun(log, {0: [b"a"]}, check=refuse).refused(Reason.OFFSET_BEHIND_COMMITTED)
    check_nothing(log, [[], []])


def test_an_append_that_is_refused_takes_back_those_before_it(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=3)
    commit(log, range(3), b"before")
    begun = Begun(log, {0: [b"a"], 1: [b"b"], 2: [b"c"]})
    log.append(b"of this tick", to=2)
    log.partitions[2].fail(Reason.PARTITION_READ_ONLY, "for the test")
    begun.refused(Reason.PARTITION_READ_ONLY)
    log.halted.clear()
    assert [partition.next_offset for partition in log.partitions] == [1, 1, 1]
    assert transact(log, {0: [b"x"], 1: [b"y"]})[0].offset == 1
    # Refused only when its turn to append comes.
    log.store._cache.no_room = "no room"
    Begun(log, {0: [b"a"], 1: [b"b"]}).refused(Reason.DISK_FULL)
    log.store._cache.no_room = None
    assert [partition.next_offset for partition in log.partitions[:2]] == [2, 2]
    assert transact(log, {0: [b"x"], 1: [b"y"]})[0].offset == 2


def test_more_than_an_entry_holds(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=8)
    values = {number: [b"x" * 600_000] for number in range(7)}
    refusal = Begun(log, values).refused(Reason.TRANSACTION_TOO_LARGE)
    assert refusal.metadata == {"max_bytes": str(MAX_PAYLOAD_BYTES)}
    values[6] = [b"x" * (MAX_PAYLOAD_BYTES - 6 * 600_200 - 200)]
    transact(log, values)
    small = log_in(tmp_path / "small", partitions=1, journal_bytes=2 * 8 * BLOCK_BYTES)
    refusal = Begun(small, {0: [b"x" * 6 * BLOCK_BYTES]}).refused(Reason.TRANSACTION_TOO_LARGE)
    transact(small, {0: [b"x" * (int(refusal.metadata["max_bytes"]) - 130)]})
    # The rest is counted only when the records are laid out.
    Begun(small, {0: [b"x"] * 500}).refused(Reason.TRANSACTION_TOO_LARGE)
    assert small.partition.next_offset == 1


@pytest.mark.parametrize("journal_bytes", [0, 2 * BLOCK_BYTES])
def test_without_a_journal_there_are_none(log_in: LogIn, tmp_path: Path, journal_bytes: int) -> None:
    log = log_in(tmp_path / "data", partitions=2, journal_bytes=journal_bytes)
    Begun(log, {0: [b"a"]}).refused(Reason.TRANSACTIONS_DISABLED)
    log.append(b"x")
    log.sync()
    assert values_of(log.partition) == [b"x"]


# What fails


def held_in_journal(log: LocalLog, values: Mapping[int, list[bytes]], **how: Any) -> tuple[HeldThread, Begun]:
    """A transaction whose entry is about to be written."""
    thread = hold_journal(log)
    begun = Begun(log, values, **how)
    log.settle(lambda: len(thread.held) == 1)
    return thread, begun


def go_to(log: LocalLog, thread: HeldThread, device: str) -> None:
    """The entry is written to the device, and what comes of that known, before anybody looks at it."""
    with journal_becomes(log, device):
        thread.go()
        assert select.select([thread.event_fd], [], [], 10)[0]


@contextmanager
def file_becomes_read_only(path: Path) -> Iterator[None]:
    """Writes to it fail with EBADF."""
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        with file_becomes(path, fd):
            yield
    finally:
        os.close(fd)


def resume(log: LocalLog) -> None:
    for partition in log.halted:
        partition.resume(partition.epoch + 1)
    log.halted.clear()


def test_a_segment_that_can_not_be_written_to_is_found_before_it_is_decided(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=2)
    commit(log, [0, 1], b"before")
    fd = os.open("/dev/full", os.O_RDWR)
    try:
        with file_becomes(segments_of(log.directory, 1)[0], fd):
            # A device has no room to reserve.
            Begun(log, {0: [b"a"], 1: [b"b"]}).refused(Reason.WRITE_FAILED)
    finally:
        os.close(fd)
    check_nothing(log, [[b"before"], [b"before"]])


def test_the_journal_is_full_before_the_entry(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=2)
    commit(log, [0, 1], b"before")
    with journal_becomes(log, "/dev/full"):
        Begun(log, {0: [b"a"], 1: [b"b"]}).refused(Reason.WRITE_FAILED)
    check_nothing(log, [[b"before"], [b"before"]])


def test_an_entry_that_finds_no_room_is_void_for_good(log_in: LogIn, tmp_path: Path) -> None:
    """Also when all of it stands in the file: the sync may have failed, not the write."""
    log = log_in(tmp_path / "data", partitions=2)
    commit(log, [0, 1], b"before")
    thread, begun = held_in_journal(log, {0: [b"a"], 1: [b"b"]}, offsets=OFFSETS)
    behind = log.append(b"behind")
    failed = log.partition.written()
    (_, _, fd, data, position), = thread.held
    os.pwrite(fd, data, position)
    assert len(journal_in(log.directory)[0].entries) == 2
    go_to(log, thread, "/dev/full")
    thread.hold = False
    begun.refused(Reason.DISK_FULL)
    assert behind.offset == 2 and log.run(failed)[0] is Reason.DISK_FULL
    assert log.halted == log.partitions and begun.stored == []
    assert len(journal_in(log.directory)[0].entries) == 1
    log.refused(Reason.DISK_FULL)
    resume(log)
    commit(log, [0], b"first")
    answers = transact(log, {0: [b"c"], 1: [b"d"]})
    assert [(each.offset, each.epoch) for each in answers] == [(2, 2), (1, 2)]
    left = log.killed(tmp_path / "left")
    assert all_values(log_in(left, partitions=2, epoch=3)) == [[b"before", b"first", b"c"], [b"before", b"d"]]


@pytest.mark.parametrize("device", ["/dev/null", "/dev/full"])
def test_an_entry_of_which_nobody_knows_closes_its_partitions(log_in: LogIn, tmp_path: Path, device: str) -> None:
    """/dev/null takes everything and can't be synced; /dev/full takes nothing, nor can it be cut."""
    log = log_in(tmp_path / "data", partitions=4)
    commit(log, [0, 1], b"before")
    thread, begun = held_in_journal(log, {0: [b"a"], 1: [b"b"]}, offsets=OFFSETS)
    (_, _, fd, data, position), = thread.held
    with journal_becomes(log, device):
        thread.let_go()
        begun.refused(Reason.SYNC_FAILED)
    assert begun.stored == [] and log.halted == log.partitions[:2]
    assert all_values(log) == [[b"before"], [b"before"], [], []]
    for number in (0, 1):
        log.refused(Reason.SYNC_FAILED, to=number)
    # The others go on, and in the journal's other file.
    commit(log, [2, 3], b"after")
    transact(log, {2: [b"t"], 3: [b"u"]})
    assert [path.name for path in journal_paths(log.directory)] == ["0.journal", "1.journal"]
    before = log.killed(tmp_path / "not-there")
    after = [[b"after", b"t"], [b"after", b"u"]]
    assert all_values(log_in(before, partitions=4, epoch=2)) == [[b"before"], [b"before"], *after]
    # Had it reached the disk, it would have happened.
    os.pwrite(fd, data, position)
    numbers = []

    async def store(offsets: list[TransactionOffsets], lost: list[int]) -> None:
        numbers.extend(each.number for each in offsets)

    there = log_in(log.killed(tmp_path / "there"), partitions=4, epoch=2, store_offsets=store)
    assert all_values(there) == [[b"before", b"a"], [b"before", b"b"], *after]
    assert numbers == [1]
    assert not log.close()


def test_the_header_of_a_journal_file_that_can_not_be_written(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=2)
    thread = hold_journal(log)
    thread.go = lambda: None  # type: ignore[method-assign]
    begun = Begun(log, {0: [b"a"], 1: [b"b"]})
    log.settle(lambda: len(thread.held) == 1)
    del thread.go
    go_to(log, thread, "/dev/full")
    thread.hold = False
    begun.refused(Reason.DISK_FULL)
    resume(log)
    transact(log, {0: [b"c"], 1: [b"d"]})
    assert all_values(log_in(log.killed(tmp_path / "left"), partitions=2, epoch=3)) == [[b"c"], [b"d"]]


@pytest.mark.parametrize("broken", [0, 1])
def test_records_that_can_not_be_written_any_more(log_in: LogIn, tmp_path: Path, broken: int) -> None:
    """It is decided, and nobody sees a half of it: the next start makes it so."""
    log = log_in(tmp_path / "data", partitions=3)
    commit(log, range(3), b"before")
    thread, begun = held_in_journal(log, {0: [b"a"], 1: [b"b"]})
    log.append(b"behind")
    with file_becomes_read_only(segments_of(log.directory, broken)[0]):
        thread.let_go()
        begun.refused(Reason.SYNC_FAILED)
    assert all_values(log) == [[b"before"]] * 3
    assert [partition.failure_is_final for partition in log.partitions] == [True, True, False]
    # Its file is not used anew as long as that is all there is of it.
    for _ in range(3):
        commit(log, [2], b"after")
    left = log.killed(tmp_path / "left")
    assert all_values(log_in(left, partitions=3, epoch=2))[:2] == [[b"before", b"a"], [b"before", b"b"]]
    assert not log.close() and journal_paths(log.directory)
    again = log_in(tmp_path / "data", partitions=3, epoch=2)
    assert all_values(again) == [[b"before", b"a"], [b"before", b"b"], [b"before"] + [b"after"] * 3]


@pytest.mark.parametrize("stops", [False, True])
def test_records_that_find_no_room_wait_for_it(
    log_in: LogIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    """Where no room can be reserved. All of it waits: nobody sees a half."""
    monkeypatch.setattr(transaction, "STORE_AGAIN_S", 0.01)
    log = log_in(tmp_path / "data", partitions=2)
    commit(log, range(2), b"before")
    thread, begun = held_in_journal(log, {0: [b"a"], 1: [b"b"]})
    fd = os.open("/dev/full", os.O_RDWR)
    try:
        with file_becomes(segments_of(log.directory, 1)[0], fd):
            thread.let_go()
            log.run(asyncio.sleep(0.05))
            assert all_values(log) == [[b"before"]] * 2 and not begun.task.done()
            if stops:
                log.store.transactor.stop()
                begun.refused(Reason.SYNC_FAILED)
    finally:
        os.close(fd)
    if not stops:
        begun.answers()
        assert all_values(log) == [[b"before", b"a"], [b"before", b"b"]]
    log.close()
    again = log_in(tmp_path / "data", partitions=2, epoch=2)
    assert all_values(again) == [[b"before", b"a"], [b"before", b"b"]]


def test_a_partition_that_fails_meanwhile_takes_the_others_with_it(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=2)
    commit(log, [0, 1], b"before")
    thread, begun = held_in_journal(log, {0: [b"a"], 1: [b"b"]})
    log.partition.fail(Reason.SYNC_FAILED, "for the test")
    thread.let_go()
    begun.refused(Reason.SYNC_FAILED)
    assert all_values(log) == [[b"before"], [b"before"]] and log.partitions[1].failure_is_final
    assert not log.close()
    again = log_in(tmp_path / "data", partitions=2, epoch=2)
    assert all_values(again) == [[b"before", b"a"], [b"before", b"b"]]


@pytest.mark.parametrize("decided", [False, True])
def test_a_topic_that_is_deleted_meanwhile(log_in: LogIn, tmp_path: Path, decided: bool) -> None:
    log = log_in(tmp_path / "data", partitions=2)
    commit(log, [0, 1], b"before")
    gate = log.loop.create_future()

    async def store(number: int) -> None:
        await gate

    thread, begun = held_in_journal(log, {0: [b"a"], 1: [b"b"]}, offsets=OFFSETS, store=store)
    if decided:
        thread.let_go()
        log.settle(lambda: log.store.committer.journal_commits == 2)
    gone = log.partitions.pop(0)
    log.store.close_partition(gone, Reason.TOPIC_NOT_FOUND, "deleted")
    gate.set_result(None)
    thread.let_go()
    begun.answers()
    assert [values_of(partition) for partition in log.partitions] == [[b"before", b"b"]]
    assert log.close() and journal_paths(log.directory) == []


def test_a_journal_whose_files_are_both_in_use_is_waited_for(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=3, journal_bytes=2 * 8 * BLOCK_BYTES)
    front, behind = hold_files(log)
    values = 0

    async def until_full() -> None:
        nonlocal values
        while True:
            begun = Begun(log, {0: [b"a"], 1: [b"b"]})
            done, _ = await asyncio.wait([begun.task], timeout=0.3)
            if not done:
                behind.let_go()
                front.let_go()
                await begun.task
                values += 1
                return
            values += 1

    log.run(until_full())
    assert values > 5 and log.store._journal.turns >= 2
    assert all_values(log) == [[b"a"] * values, [b"b"] * values, []]


# What a kill leaves


def test_a_copy_at_each_step_has_all_of_it_or_nothing(log_in: LogIn, quick_path: Path) -> None:
    log = log_in(quick_path / "data", partitions=3)
    commit(log, range(3), b"before")
    gate = log.loop.create_future()

    async def store(number: int) -> None:
        await gate

    thread, begun = held_in_journal(log, {0: [b"a"], 2: [b"c"]}, offsets=OFFSETS, store=store)
    nothing_of_it, all_of_it = [[b"before"]] * 3, [[b"before", b"a"], [b"before"], [b"before", b"c"]]
    copies = [(log.killed(quick_path / "held"), nothing_of_it)]
    thread.let_go()
    log.settle(lambda: log.store.committer.journal_commits == 2)
    copies.append((log.killed(quick_path / "decided"), all_of_it))
    gate.set_result(None)
    begun.answers()
    copies.append((log.killed(quick_path / "done"), all_of_it))
    for torn in range(0, 1024, 61):
        # The entry as far as it had come.
        copy = quick_path / f"torn-{torn}"
        shutil.copytree(quick_path / "decided", copy)
        (file,) = journal_in(copy)
        start = BLOCK_BYTES + file.entries[0].size_bytes
        os.truncate(file.path, start + torn)
        # Zeros follow on the last part.
        last = file.entries[1].parts[-1]
        copies.append((copy, all_of_it if start + torn >= last.place + last.size_bytes else nothing_of_it))
    for copy, expected in copies:
        stored: list[int] = []

        async def note(offsets: list[TransactionOffsets], lost: list[int]) -> None:
            stored.extend(each.number for each in offsets)

        again = log_in(copy, partitions=3, epoch=2, store_offsets=note)
        assert all_values(again) == expected, copy
        assert stored == ([1] if expected is all_of_it else []), copy
        transact(again, {number: [b"next"] for number in range(3)})
        assert all_values(again) == [values + [b"next"] for values in expected]
        again.close()


# Journals without transactions


def test_a_journal_of_the_first_version_is_read(log_in: LogIn, three: Path) -> None:
    (file,) = journal_in(three)
    data = bytearray(file.path.read_bytes())
    fields = struct.pack("<I", 1) + bytes(data[12:32])
    for copy in HEADER_COPIES:
        data[copy + 4:copy + 32] = struct.pack("<I", masked(fields, 0)) + fields
    file.path.write_bytes(data)
    log = log_in(three, partitions=3, epoch=2)
    assert_holds(log, [[value(0, turn) for turn in range(3)]] * 3)
