"""Transactions: appends to several partitions, and a group's offsets with them, of which all is there or nothing.

What a transaction appends is held in memory; one entry of the journal has all of it, and decides: once that is synced,
it has happened, and every start makes it so. Then the offsets are stored, then the records written to their segments,
and only then readers see them, in all partitions at once. docs/decisions/transactions.md has the reasons.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC

from takhin.codec.batch import BATCH_HEADER_SIZE
from takhin.errors import Reason, TakhinError, error
from takhin.log.committer import JOURNAL_PART_BYTES, Committer, Written
from takhin.log.hold import Hold, make_ready
from takhin.log.journal import Journal, JournalCommit
from takhin.log.partition import Partition

# How often a transaction makes room for its entry and finds that gone again, and how long it waits each time.
_TRIES = 20
_ROOM_WAIT_S = 2.0
# What is decided and finds no room on the disk is tried again after so long; records so often, as their partitions take
# nothing else meanwhile.
STORE_AGAIN_S = 1.0
_WRITE_TRIES = 10


@dataclass(frozen=True, slots=True)
class TransactionAppend:
    """What goes to one partition. append(now_ms): does it, and returns the encoded answer; it may be called again
    after what it did was taken back."""

    partition: Partition
    records: int
    records_bytes: int
    append: Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Repeated:
    """A transaction that has happened before: its answers, true when each of `durable` gives None."""

    answers: list[bytes]
    durable: list["asyncio.Future[tuple[Reason, str] | None]"]

    async def result(self) -> list[bytes]:
        """Raises what the partitions' failures say."""
        for each in self.durable:
            failure = await each
            if failure is not None:
                raise error(*failure)
        return self.answers


@dataclass(frozen=True, slots=True)
class Transaction:
    """admit: raises what forbids it, or tells that it has happened before, with the answers to give again once the
    futures are done; called before check, and again in the tick of the appends. check: raises what forbids it; no other
    transaction comes between it and the decision. offsets: encoded, empty for none; store(number): stores them
    durably, once it is decided, and may not refuse to."""

    appends: Sequence[TransactionAppend]
    offsets: bytes
    admit: Callable[[], "Repeated | None"]
    check: Callable[[], Awaitable[None]]
    store: Callable[[int], Awaitable[None]]


class Transactor:
    """Carries transactions out, one after the other. last_number: of the last one whose offsets were stored."""

    def __init__(self, committer: Committer, journal: Journal, clock_ms: Callable[[], int]):
        self._committer = committer
        self._journal = journal
        self._clock_ms = clock_ms
        self._turn = asyncio.Lock()
        self.last_number = 0
        self._stopping = False
        # While one with offsets is decided and these are not stored.
        self._offsets_under_way: asyncio.Future[None] | None = None

    def stop(self) -> None:
        """What is decided waits for room on the disk no longer: it is left to the next start."""
        self._stopping = True

    async def offsets_are_stored(self) -> None:
        """Return when the offsets of the transaction that is being decided are stored, or it has failed; at once when
        there is none. Later ones are not waited for."""
        if self._offsets_under_way is not None:
            await asyncio.wait([self._offsets_under_way])

    async def run(self, transaction: Transaction) -> list[bytes]:
        """Carry it out; returns the answers, in the order of its appends. Not to be cancelled.

        Raises what admit, check and its appends raise, what the partitions' failures say, TRANSACTIONS_DISABLED,
        TRANSACTION_TOO_LARGE, TRANSACTION_PENDING, DISK_FULL, WRITE_FAILED: nothing has happened; SYNC_FAILED: all of
        it or nothing, the next start will tell.
        """
        async with self._turn:
            repeated = transaction.admit()
            if repeated is not None:
                return await repeated.result()
            self._check_size(transaction)
            await transaction.check()
            try:
                return await self._try(transaction)
            finally:
                self._committer.room_is_found()
                self._end_offsets()

    async def repeated(self, admit: Callable[[], Repeated | None]) -> list[bytes] | None:
        """What was answered to a transaction that has happened before; None: it has not. Raises what admit raises."""
        # In its turn: the first attempt may be under way.
        async with self._turn:
            found = admit()
            return None if found is None else await found.result()

    async def _try(self, transaction: Transaction) -> list[bytes]:
        for _ in range(_TRIES):
            self._check_usable()
            await self._committer.claim_journal()
            try:
                begun = self._begin(transaction)
                if isinstance(begun, _Begun):
                    self._committer.room_is_found()
                    if transaction.offsets:
                        self._offsets_under_way = asyncio.get_running_loop().create_future()
                    await self._decide(begun)
            finally:
                self._committer.release_journal()
            if isinstance(begun, Repeated):
                return await begun.result()
            if isinstance(begun, _Begun):
                await self._finish(transaction, begun)
                return begun.answers
            await self._make_room(begun)
        raise error(
            Reason.TRANSACTION_PENDING, "the journal has no room for the transaction; nothing was appended, try again"
        )

    def _end_offsets(self) -> None:
        waiting, self._offsets_under_way = self._offsets_under_way, None
        if waiting is not None:
            waiting.set_result(None)

    def _check_usable(self) -> None:
        if not self._journal.usable:
            raise error(
                Reason.TRANSACTIONS_DISABLED,
                "transactions need the journal, and this broker writes none: limits.journal_bytes is 0, or the journal "
                "is kept for a damaged partition, or it can't be written",
            )

    def _check_size(self, transaction: Transaction) -> None:
        self._check_usable()
        needed = len(transaction.offsets)
        for each in transaction.appends:
            needed += each.records_bytes + BATCH_HEADER_SIZE
        room = self._journal.room_bytes(len(transaction.appends) + bool(transaction.offsets))
        if needed > room:
            raise _too_large(needed, room)

    # Before it is decided

    def _begin(self, transaction: Transaction) -> "_Begun | Repeated | list[Partition]":
        """In one go: admit, append, hold, reserve, make the entry. Or, with nothing done: the partitions that have to
        be made durable first; none of them when it is the journal that has no room."""
        now_ms = self._clock_ms()
        lagging = [
            each.partition for each in transaction.appends
            if not make_ready(each.partition, each.records, each.records_bytes, now_ms, JOURNAL_PART_BYTES)
        ]
        if lagging:
            return lagging
        repeated = transaction.admit()
        if repeated is not None:
            return repeated
        begun = _Begun([], [], None)
        try:
            for each in transaction.appends:
                begun.answers.append(each.append(now_ms))
                begun.holds.append(Hold(each.partition))
            lagging = self._without_room(begun.holds, len(transaction.offsets))
            if not lagging:
                for hold in begun.holds:
                    hold.reserve()
                number = self.last_number + 1
                begun.commit = self._committer.begin_transaction(begun.holds, transaction.offsets, number)
        except BaseException as problem:
            begun.take_back()
            if isinstance(problem, OSError):
                raise _not_written(problem.errno or 0) from None
            raise
        if lagging or begun.commit is None:
            begun.take_back()
            return lagging
        if begun.commit.transaction:
            self.last_number = begun.commit.transaction
        return begun

    def _without_room(self, holds: list[Hold], offsets_bytes: int) -> list[Partition]:
        """The partitions that have to be made durable for the entry to hold the rest. Raises TRANSACTION_TOO_LARGE."""
        sizes = [hold.entry_bytes for hold in holds]
        if min(sizes) < 0:
            return [hold.partition for hold, size in zip(holds, sizes, strict=True) if size < 0]
        needed = sum(sizes) + offsets_bytes
        room = self._journal.room_bytes(len(holds) + bool(offsets_bytes))
        if needed <= room:
            return []
        lagging = [hold.partition for hold in holds if hold.partition.dirty]
        if not lagging:
            raise _too_large(needed, room)
        return lagging

    async def _make_room(self, lagging: list[Partition]) -> None:
        if not lagging:
            await self._committer.journal_room(_ROOM_WAIT_S)
            return
        waits = (partition.make_durable(partition.written_offset) for partition in lagging)
        for failure in await asyncio.gather(*waits, return_exceptions=True):
            if failure is not None:
                raise failure

    async def _decide(self, begun: "_Begun") -> None:
        """Write the entry. Returns when it is on the disk."""
        assert begun.commit is not None
        try:
            written, errno = await self._committer.write_entry(begun.commit)
        except BaseException:
            # Our bug: nobody knows how far it came.
            begun.fail("a transaction could not be carried out")
            raise
        if written is Written.NO:
            for hold in begun.standing():
                hold.void(errno)
            raise _not_written(errno)
        if written is Written.UNKNOWN:
            raise begun.fail(f"the sync of a transaction failed ({os.strerror(errno)})")

    # When it is decided

    async def _finish(self, transaction: Transaction, begun: "_Begun") -> None:
        """Make it so. What keeps it from that now is made up for by the next start."""
        commit = begun.commit
        assert commit is not None
        if commit.transaction:
            try:
                await transaction.store(commit.transaction)
            except BaseException as problem:
                failure = begun.fail("the offsets of a transaction could not be stored")
                if isinstance(problem, TakhinError):
                    raise failure from problem
                raise
            self._journal.done(commit)
            self._end_offsets()
        for tries_left in reversed(range(_WRITE_TRIES)):
            # A topic that was deleted meanwhile is gone with what was appended to it; the others have theirs.
            if begun.is_broken():
                raise begun.fail("a partition of a transaction failed")
            standing = begun.standing()
            errno = next((errno for hold in standing if (errno := hold.write())), 0)
            if not errno:
                break
            # Room was reserved, where the filesystem can do that.
            if errno not in (ENOSPC, EDQUOT) or self._stopping or not tries_left:
                raise begun.fail(f"the records of a transaction could not be written ({os.strerror(errno)})")
            await asyncio.sleep(STORE_AGAIN_S)
        for hold in standing:
            hold.release()
        for hold in standing:
            self._committer.note_unsynced(hold.partition)


@dataclass(slots=True)
class _Begun:
    """holds, answers: of the appends, in their order."""

    holds: list[Hold]
    answers: list[bytes]
    commit: JournalCommit | None

    def take_back(self) -> None:
        """In the tick in which it was begun: nothing has happened."""
        for hold in self.holds:
            hold.drop()

    def standing(self) -> list[Hold]:
        """Those that are still held: a topic may have been deleted, a sync may have failed meanwhile."""
        return [hold for hold in self.holds if hold.stands]

    def is_broken(self) -> bool:
        """Whether a partition that is still there does not hold it any more."""
        failures = [hold.partition.failure for hold in self.holds if not hold.stands]
        return any(failure is None or failure[0] is not Reason.TOPIC_NOT_FOUND for failure in failures)

    def fail(self, what: str) -> TakhinError:
        """Close all its partitions until the next start, which finds the entry or doesn't; returns what to raise."""
        message = (
            f"{what}: whether it happened, as a whole, the next start will tell, and nothing is appended to its "
            "partitions until then"
        )
        for hold in self.standing():
            hold.partition.fail(Reason.SYNC_FAILED, message)
        return error(Reason.SYNC_FAILED, message)


def _too_large(needed: int, room: int) -> TakhinError:
    return error(
        Reason.TRANSACTION_TOO_LARGE,
        f"the transaction needs {needed} bytes in the journal, an entry of which holds {room}", max_bytes=room,
    )


def _not_written(errno: int) -> TakhinError:
    full = errno in (ENOSPC, EDQUOT)
    return error(
        Reason.DISK_FULL if full else Reason.WRITE_FAILED,
        f"nothing of the transaction was appended: {os.strerror(errno)}",
    )
