"""When things are written and synced: the end of each tick of the event loop, and the group commit."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from errno import EDQUOT, EIO, ENOSPC

from takhin.counters import Histogram
from takhin.errors import Reason
from takhin.log.files import PASSING, Files
from takhin.log.hold import Hold
from takhin.log.journal import Journal, JournalCommit
from takhin.log.partition import Partition
from takhin.log.segment import Segment
from takhin.log.sync import SyncThread
from takhin.outcome import Outcome

logger = logging.getLogger(__name__)

# Of the durations that are counted.
DURATION_BOUNDS_S = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5
)
# How often partitions are looked at whose flush.ms may have passed.
FLUSH_CHECK_S = 0.05
# What only the journal holds on the disk is synced to its segment after so long, a new segment's name likewise.
BEHIND_S = 10.0
# Syncs of so many partitions are under way at once: each holds its files and directories open.
MAX_COMMITS = 64
# So many when nobody waits for them: whoever comes then has the disk soon.
MAX_BEHIND = 4
# A partition with more than this to make durable has its own file synced: writing its bytes twice would cost more than
# the sync that the journal saves (docs/decisions/journal.md).
JOURNAL_PART_BYTES = 256 * 1024
# A journal that could not be written is tried again after so long.
JOURNAL_PAUSE_S = 1.0
# A sync that takes longer is worth a line in the log.
SLOW_SYNC_NS = 1_000_000_000
# How often the last sync of all waits for those that could not be begun.
_LAST_TRIES = 20


class Written(Enum):
    """What has become of an entry of the journal: it is on the disk; it is not, and never will be; nobody knows."""

    YES = auto()
    NO = auto()
    UNKNOWN = auto()


@dataclass(slots=True)
class _FileSync:
    """A sync of a partition's files under way: what end_sync wants back."""

    partition: Partition
    target: int
    segments: list[Segment]
    directories: list[str]
    directory_fds: list[int]


@dataclass(slots=True)
class _Lane:
    """A thread that syncs files. queue: partitions that wait for it, the one that waits longest first."""

    thread: SyncThread
    limit: int
    queue: dict[Partition, None] = field(default_factory=dict)
    syncs: dict[int, _FileSync] = field(default_factory=dict)
    partitions: set[Partition] = field(default_factory=set)


class Committer:
    """Writes what a tick appended at its end (W), and syncs for those who wait for it (D).

    max_unsynced: with more partitions than this whose segments are not synced, nothing goes to the journal.

    The first append of a tick schedules the write behind everything that is ready to run, so that all requests which
    arrived together share it. A sync begins at once when none runs for the partition; who comes while one runs shares
    the next. Where several partitions want one at a time, one entry of the journal serves them all, and their files are
    synced behind it, when nobody waits. A partition nobody waits for is synced flush.ms after it was written.

    Three threads, so that who waits does not wait for who doesn't: for the journal, for files that somebody waits for,
    for files that nobody waits for.
    """

    def __init__(
        self, files: Files, journal: Journal, max_unsynced: int, loop: asyncio.AbstractEventLoop,
        clock_ms: Callable[[], int], on_halt: Callable[[Partition], None], on_obstacle: Callable[[Partition], None],
    ):
        self.halted = on_halt
        self.obstructed = on_obstacle
        self.syncs = 0
        self.journal_commits = 0
        # How long it took to write what came in a tick, to sync a partition's files, to write and sync an entry.
        self.write_durations = Histogram(DURATION_BOUNDS_S)
        self.sync_durations = Histogram(DURATION_BOUNDS_S)
        self.journal_durations = Histogram(DURATION_BOUNDS_S)
        self._files = files
        self._loop = loop
        self._clock_ms = clock_ms
        self._call_soon = loop.call_soon
        self._touched: list[Partition] = []
        # Whether the end of this tick is scheduled.
        self._tick_is_open = False
        # Of those who follow what was written in it.
        self._readers: list[Outcome] = []
        # Since when there is something that their segments may not have on the disk: those longest so first. Each of
        # them holds a file open.
        self._unsynced_since_s: dict[Partition, float] = {}
        # Since when they have something that is nowhere on the disk, not in the journal either.
        self._dirty_since_s: dict[Partition, float] = {}
        self._max_unsynced = max_unsynced
        # Those whose sync could not be begun.
        self._put_off: dict[Partition, None] = {}
        self._front = _Lane(SyncThread(files, "takhin-sync"), MAX_COMMITS)
        self._behind = _Lane(SyncThread(files, "takhin-behind"), MAX_BEHIND)
        self._journal = journal
        self._journal_thread = SyncThread(files, "takhin-journal")
        self._journal_commit: JournalCommit | None = None
        self._journal_fds: list[int] = []
        self._journal_paused_until_s = 0.0
        self._journal_turns = 0
        self._journal_blocked = ""
        # A transaction has the journal for itself; who waits for it, for a job of its thread, for room in it.
        self._journal_claimed = False
        self._claim: asyncio.Future[None] | None = None
        self._journal_job: asyncio.Future[int] | None = None
        self._room: asyncio.Future[None] | None = None
        # A transaction found no room in the journal: until it has some, group commits take none.
        self._room_is_wanted = False
        self._forgotten: set[Partition] = set()
        self._idle: asyncio.Future[None] | None = None
        for lane in (self._front, self._behind):
            loop.add_reader(lane.thread.event_fd, self._on_synced, lane)
        loop.add_reader(self._journal_thread.event_fd, self._on_journal)
        self._timer = loop.call_later(FLUSH_CHECK_S, self._check_unsynced)

    # What partitions call

    def touch(self, partition: Partition) -> None:
        """The partition has something to write."""
        self._touched.append(partition)
        self._open_tick()

    def want_sync(self, partition: Partition) -> None:
        """Somebody waits for what the partition has written."""
        self._front.queue[partition] = None
        self._open_tick()

    def tell_readers(self, outcome: Outcome) -> None:
        """Of what is written, at the tick's end."""
        self._readers.append(outcome)
        self._open_tick()

    def _open_tick(self) -> None:
        if not self._tick_is_open:
            self._tick_is_open = True
            self._call_soon(self._end_tick)

    # The tick's end

    def _end_tick(self) -> None:
        touched, self._touched = self._touched, []
        begun_ns = time.monotonic_ns()
        for partition in touched:
            try:
                partition.flush()
            except Exception:
                # Our bug: it must not take the tick's other partitions with it.
                logger.exception("%s/%d can't be written", partition.topic, partition.partition)
                partition.fail(
                    Reason.INTERNAL_ERROR, "the partition takes no appends until the broker is started again"
                )
            self.note_unsynced(partition)
        if touched:
            self.write_durations.observe(time.monotonic_ns() - begun_ns)
        # Only now: who asked for a sync because of these writes is served here, not in a tick of its own.
        self._tick_is_open = False
        if self._front.queue:
            self._commit()
        readers, self._readers = self._readers, []
        for outcome in readers:
            outcome.set_result(None)

    def note_unsynced(self, partition: Partition) -> None:
        """From now on, if it was not before; what has failed, or is closed, is never synced any more."""
        if partition.unsynced and not partition.failure_is_final:
            now_s = time.monotonic()
            self._unsynced_since_s.setdefault(partition, now_s)
            if partition.dirty:
                self._dirty_since_s.setdefault(partition, now_s)

    def _commit(self) -> None:
        """Begin what can be begun for those who wait; the others keep their places in the queue."""
        front = self._front
        small: list[Partition] = []
        large: list[Partition] = []
        for partition in list(front.queue):
            if partition in front.partitions:
                continue
            if not partition.wants_sync:
                del front.queue[partition]
            elif self._is_for_journal(partition):
                small.append(partition)
            else:
                large.append(partition)
        if small and self._journal_commit is None and not self._journal_claimed:
            # One alone has its own file synced: that costs the same, and its bytes are written once.
            if len(small) == 1 and not (large or front.syncs or small[0].syncing):
                large = small
            elif not self._begin_journal(small):
                large += small
        for partition in large:
            self._begin_sync(partition, front)

    def _is_for_journal(self, partition: Partition) -> bool:
        return (
            self._journal.enabled and not self._room_is_wanted
            and 0 <= partition.journal_bytes <= JOURNAL_PART_BYTES
            and len(self._unsynced_since_s) <= self._max_unsynced
            and (not self._journal_paused_until_s or time.monotonic() >= self._journal_paused_until_s)
        )

    # Files

    def _begin_sync(self, partition: Partition, lane: _Lane) -> None:
        """Begin the sync, or leave the partition in the lane's queue."""
        if partition.syncing or len(lane.syncs) >= lane.limit:
            lane.queue[partition] = None
            return
        lane.queue.pop(partition, None)
        self._unsynced_since_s.pop(partition, None)
        # What is written from here on is dirty since then.
        self._dirty_since_s.pop(partition, None)
        if not partition.unsynced or partition.failure_is_final:
            return
        try:
            target, segments, directories = partition.begin_sync()
        except OSError as problem:
            self._try_again(partition, problem)
            return
        fds: list[int] = []
        try:
            self._open(directories, fds)
        except OSError as problem:
            self._close(fds)
            partition.put_off_sync(segments, directories)
            self._try_again(partition, problem)
            return
        number = lane.thread.submit([segment.fileno() for segment in segments], fds)
        lane.syncs[number] = _FileSync(partition, target, segments, directories, fds)
        lane.partitions.add(partition)

    def _try_again(self, partition: Partition, problem: OSError) -> None:
        """The sync could not be begun: the timer begins it anew, unless that is of no use."""
        if problem.errno not in PASSING:
            partition.fail(
                Reason.SYNC_FAILED,
                f"a sync of {partition.topic}/{partition.partition} can't be made ({problem.strerror}): nothing is "
                "appended until the broker is started again",
            )
            return
        if not self._put_off:
            logger.warning("syncs have to wait: %s", problem.strerror)
        self._put_off[partition] = None
        self._unsynced_since_s.setdefault(partition, time.monotonic())

    def _on_synced(self, lane: _Lane) -> None:
        for number, errno, duration_ns in lane.thread.finished():
            self.syncs += 1
            self.sync_durations.observe(duration_ns)
            _tell_slow(duration_ns)
            sync = lane.syncs.pop(number)
            partition = sync.partition
            lane.partitions.discard(partition)
            for segment in sync.segments:
                segment.done()
            self._close(sync.directory_fds)
            if errno:
                logger.error("a sync of %s/%d failed: %s", partition.topic, partition.partition, os.strerror(errno))
            partition.end_sync(sync.target, sync.segments, sync.directories, errno)
            if not errno:
                self._journal.release(partition, partition.synced_offset)
                self.note_unsynced(partition)
        if self._room is not None and not self._journal.behind():
            _resolve(self._room)
        self._go_on()

    def _go_on(self) -> None:
        """Something ended: begin what waited for it."""
        if self._front.queue:
            self._commit()
        for partition in list(self._behind.queue):
            if len(self._behind.syncs) >= self._behind.limit:
                break
            self._begin_sync(partition, self._behind)
        if self._idle is not None and not self._is_busy():
            self._idle.set_result(None)
            self._idle = None

    def _is_busy(self) -> bool:
        return bool(
            self._front.syncs or self._behind.syncs or self._journal_commit is not None or self._journal_claimed
        )

    def _open(self, directories: Iterable[str], fds: list[int]) -> None:
        for directory in directories:
            fds.append(self._files.open(directory, os.O_RDONLY | os.O_DIRECTORY))

    def _close(self, fds: list[int]) -> None:
        for fd in fds:
            self._files.close(fd)

    # The journal

    def _begin_journal(self, partitions: list[Partition]) -> bool:
        """Begin an entry for as many of them as it takes. Returns whether: there may be no room in the journal."""
        fds: list[int] = []
        try:
            commit = self._journal.begin(partitions, self._clock_ms())
            if commit is not None:
                self._open(commit.directories, fds)
        except OSError as problem:
            self._close(fds)
            self._pause_journal(problem.errno or 0)
            return False
        self._note_turn()
        if commit is None:
            return False
        self._journal_commit, self._journal_fds = commit, fds
        if commit.header:
            self._journal_thread.submit([commit.fd], fds, commit.fd, commit.header, 0)
        else:
            self._journal_thread.submit([commit.fd], [], commit.fd, commit.data, commit.position)
        for partition, _ in commit.targets:
            del self._front.queue[partition]
            self._dirty_since_s.pop(partition, None)
        return True

    def _note_turn(self) -> None:
        """The file that was full is free again when the segments are synced that it covers; or it never is."""
        if self._journal.turns != self._journal_turns:
            self._journal_turns = self._journal.turns
            self._behind.queue.update(dict.fromkeys(self._journal.behind()))
            self._call_soon(self._go_on)
        if self._journal.blocked != self._journal_blocked:
            self._journal_blocked = self._journal.blocked
            if self._journal_blocked:
                logger.error(
                    "the journal is off until the next start, each partition is synced by itself: %s",
                    self._journal_blocked,
                )
            else:
                logger.warning("the journal is used again")

    def _on_journal(self) -> None:
        for _, errno, duration_ns in self._journal_thread.finished():
            self.journal_durations.observe(duration_ns)
            _tell_slow(duration_ns)
            if self._journal_job is not None:
                job, self._journal_job = self._journal_job, None
                if not job.done():
                    job.set_result(errno)
                continue
            commit = self._journal_commit
            assert commit is not None
            if commit.header and not errno:
                self._journal.begun(commit)
                self._journal_thread.submit([commit.fd], [], commit.fd, commit.data, commit.position)
                continue
            self._journal_commit = None
            self._close(self._journal_fds)
            self._journal_fds = []
            self._journal.end(commit, errno)
            if errno:
                # Nothing is lost: the segments hold the same, and are synced themselves.
                self._pause_journal(errno)
                self._front.queue.update((partition, None) for partition, _ in commit.targets)
            else:
                self.journal_commits += 1
                self._journal_paused_until_s = 0.0
                for partition, target in commit.targets:
                    partition.end_journal(target)
            self._forget()
            if self._claim is not None:
                # A transaction next, then those who have come meanwhile.
                claim, self._claim = self._claim, None
                if not claim.done():
                    self._journal_claimed = True
                    claim.set_result(None)
        self._go_on()

    def _forget(self) -> None:
        for partition in self._forgotten:
            self._journal.forget(partition)
        self._forgotten.clear()

    def _pause_journal(self, errno: int) -> None:
        if not self._journal_paused_until_s:
            logger.warning("the journal can't be written, each partition is synced by itself: %s", os.strerror(errno))
        self._journal_paused_until_s = time.monotonic() + JOURNAL_PAUSE_S

    # The journal, for one transaction after the other

    async def claim_journal(self) -> None:
        """Return when no entry is under way; until release_journal() no other one is begun."""
        if self._journal_commit is None and not self._journal_claimed:
            self._journal_claimed = True
            return
        self._claim = self._loop.create_future()
        await self._claim

    def release_journal(self) -> None:
        """Group commits may go on."""
        self._journal_claimed = False
        self._forget()
        self._go_on()

    def begin_transaction(self, holds: list[Hold], offsets: bytes, number: int) -> JournalCommit | None:
        """The transaction's entry; None when there is no room for it now. Raises OSError: nothing has happened."""
        commit = self._journal.begin_transaction(holds, offsets, number, self._clock_ms())
        self._note_turn()
        return commit

    async def write_entry(self, commit: JournalCommit) -> tuple[Written, int]:
        """Write and sync a transaction's entry. Returns what has become of it, and an errno or 0."""
        fds: list[int] = []
        errno = 0
        if commit.header:
            try:
                self._open(commit.directories, fds)
            except OSError as problem:
                errno = problem.errno or EIO
            if not errno:
                errno = await self._do([commit.fd], fds, commit.fd, commit.header, 0)
            self._close(fds)
            if errno:
                # The entry itself was not begun.
                self._journal.end(commit, errno)
                self._pause_journal(errno)
                return Written.NO, errno
            self._journal.begun(commit)
        errno = await self._do([commit.fd], [], commit.fd, commit.data, commit.position)
        self._journal.end(commit, errno)
        if not errno:
            self.journal_commits += 1
            self._journal_paused_until_s = 0.0
            return Written.YES, 0
        self._pause_journal(errno)
        if errno in (ENOSPC, EDQUOT):
            try:
                self._journal.void(commit)
            except OSError:
                pass
            else:
                if not await self._do([commit.fd], []):
                    return Written.NO, errno
            self._journal.end(commit, EIO)
        return Written.UNKNOWN, errno

    async def _do(
        self, files: list[int], directories: list[int], write_fd: int = -1, data: bytes = b"", position: int = 0
    ) -> int:
        """One job of the journal's thread; returns its errno."""
        self._journal_job = self._loop.create_future()
        self._journal_thread.submit(files, directories, write_fd, data, position)
        return await self._journal_job

    async def journal_room(self, at_most_s: float) -> None:
        """Have the segments synced that the journal covers. Returns when the file that is not in use is free, or after
        so long. Until room_is_found() group commits stay out of the journal."""
        self._room_is_wanted = True
        self._behind.queue.update(dict.fromkeys(self._journal.covered()))
        self._room = self._loop.create_future()
        timer = self._loop.call_later(at_most_s, _resolve, self._room)
        self._call_soon(self._go_on)
        try:
            if self._journal.behind():
                await self._room
        finally:
            timer.cancel()
            self._room = None

    def room_is_found(self) -> None:
        """Whoever waited for room in the journal has it, or gives up."""
        self._room_is_wanted = False

    # What nobody waits for

    def _check_unsynced(self) -> None:
        self._timer = self._loop.call_later(FLUSH_CHECK_S, self._check_unsynced)
        put_off, self._put_off = self._put_off, {}
        for partition in put_off:
            (self._front if partition.wants_sync else self._behind).queue[partition] = None
        now_s = time.monotonic()
        surplus = len(self._unsynced_since_s) - self._max_unsynced
        for number, (partition, since_s) in enumerate(self._unsynced_since_s.items()):
            age_s = now_s - since_s
            if not partition.dirty:
                self._dirty_since_s.pop(partition, None)
            dirty_ms = (now_s - self._dirty_since_s.get(partition, now_s)) * 1000
            if (
                number < surplus
                or (age_s >= BEHIND_S and (partition.synced_offset < partition.durable_offset or not partition.dirty))
                or (partition in self._dirty_since_s and 0 <= partition.flush_ms <= dirty_ms)
            ):
                self._behind.queue[partition] = None
        self._go_on()

    # The end

    def forget(self, partition: Partition) -> None:
        """The partition is closed."""
        self._unsynced_since_s.pop(partition, None)
        self._dirty_since_s.pop(partition, None)
        self._front.queue.pop(partition, None)
        self._behind.queue.pop(partition, None)
        self._put_off.pop(partition, None)
        self._journal.forget(partition)
        if self._journal_commit is not None or self._journal_claimed:
            self._forgotten.add(partition)

    async def sync_all(self) -> None:
        """Write and sync all there is. Failures are told by the partitions."""
        self._end_tick()
        for _ in range(_LAST_TRIES):
            while True:
                for partition in list(self._unsynced_since_s):
                    if partition not in self._put_off:
                        self._begin_sync(partition, self._front)
                if not self._is_busy():
                    break
                self._idle = self._loop.create_future()
                await self._idle
            if not self._put_off:
                return
            # The timer tries those again.
            await asyncio.sleep(2 * FLUSH_CHECK_S)

    def close(self) -> None:
        """End the threads, after what they were given."""
        self._timer.cancel()
        for thread in (self._front.thread, self._behind.thread, self._journal_thread):
            self._loop.remove_reader(thread.event_fd)
            thread.stop()


def _tell_slow(duration_ns: int) -> None:
    if duration_ns > SLOW_SYNC_NS:
        logger.warning("a sync took %.1f s: durable acknowledgements wait for the disk", duration_ns / 1e9)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
