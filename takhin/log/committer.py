"""When things are written and synced: the end of each tick of the event loop, and the group commit."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from takhin.errors import Reason
from takhin.log.files import Files
from takhin.log.partition import Partition
from takhin.log.segment import Segment
from takhin.log.sync import SyncThread

logger = logging.getLogger(__name__)

# How often partitions are looked at whose flush.ms may have passed.
FLUSH_CHECK_S = 0.05
# Syncs of so many partitions are under way at once: each holds its files and directories open.
MAX_COMMITS = 64
# A sync that takes longer is worth a line in the log.
SLOW_SYNC_NS = 1_000_000_000
# How often the last sync of all waits for those that could not be begun.
_LAST_TRIES = 20


@dataclass(slots=True)
class _Commit:
    """A sync under way: what end_sync wants back."""

    partition: Partition
    target: int
    segments: list[Segment]
    directories: list[str]
    directory_fds: list[int]


class Committer:
    """Writes what a tick appended at its end (W), and syncs for those who wait for it (D).

    The first append of a tick schedules the write behind everything that is ready to run, so that all requests which
    arrived together share it. A sync begins at once when none runs for the partition; who comes while one runs shares
    the next. A partition nobody waits for is synced flush.ms after it was written.
    """

    def __init__(self, files: Files, loop: asyncio.AbstractEventLoop, on_halt: Callable[[Partition], None]):
        self.halted = on_halt
        self._files = files
        self._loop = loop
        self._call_soon = loop.call_soon
        self._touched: list[Partition] = []
        # Whether the end of this tick is scheduled.
        self._tick_is_open = False
        self._wanting: dict[Partition, None] = {}
        self._dirty_since_s: dict[Partition, float] = {}
        # Those whose turn is yet to come, and those that could not be begun.
        self._queued: dict[Partition, None] = {}
        self._put_off: dict[Partition, None] = {}
        self._thread = SyncThread(files)
        self._commits: dict[int, _Commit] = {}
        self._idle: asyncio.Future[None] | None = None
        self.syncs = 0
        loop.add_reader(self._thread.event_fd, self._on_synced)
        self._timer = loop.call_later(FLUSH_CHECK_S, self._check_dirty)

    # What partitions call

    def touch(self, partition: Partition) -> None:
        """The partition has something to write."""
        self._touched.append(partition)
        if not self._tick_is_open:
            self._tick_is_open = True
            self._call_soon(self._end_tick)

    def want_sync(self, partition: Partition) -> None:
        """Somebody waits for what the partition has written."""
        self._wanting[partition] = None
        if not self._tick_is_open:
            self._tick_is_open = True
            self._call_soon(self._end_tick)

    # The tick's end

    def _end_tick(self) -> None:
        touched, self._touched = self._touched, []
        dirty = self._dirty_since_s
        for partition in touched:
            try:
                partition.flush()
            except Exception:
                # Our bug: it must not take the tick's other partitions with it.
                logger.exception("%s/%d can't be written", partition.topic, partition.partition)
                partition.fail(
                    Reason.INTERNAL_ERROR, "the partition takes no appends until the broker is started again"
                )
            if partition not in dirty:
                dirty[partition] = time.monotonic()
        # Only now: who asked for a sync because of these writes is served here, not in a tick of its own.
        self._tick_is_open = False
        if self._wanting:
            wanting, self._wanting = self._wanting, {}
            for partition in wanting:
                self._begin_sync(partition)

    def _begin_sync(self, partition: Partition) -> None:
        if partition.syncing or (partition.failure is not None and partition.failure_is_final):
            return
        if len(self._commits) >= MAX_COMMITS:
            self._queued[partition] = None
            return
        self._dirty_since_s.pop(partition, None)
        try:
            target, segments, directories = partition.begin_sync()
        except OSError as problem:
            self._try_again(partition, problem)
            return
        fds: list[int] = []
        try:
            for directory in directories:
                fds.append(self._files.open(directory, os.O_RDONLY | os.O_DIRECTORY))
        except OSError as problem:
            self._close(fds)
            partition.put_off_sync(segments, directories)
            self._try_again(partition, problem)
            return
        number = self._thread.submit([segment.fileno() for segment in segments], fds)
        self._commits[number] = _Commit(partition, target, segments, directories, fds)

    def _try_again(self, partition: Partition, problem: OSError) -> None:
        """The sync could not be begun: the timer begins it anew."""
        if not self._put_off:
            logger.warning("syncs have to wait: %s", problem.strerror)
        self._put_off[partition] = None

    def _on_synced(self) -> None:
        for number, errno, duration_ns in self._thread.finished():
            self.syncs += 1
            if duration_ns > SLOW_SYNC_NS:
                logger.warning("a sync took %.1f s: durable acknowledgements wait for the disk", duration_ns / 1e9)
            commit = self._commits.pop(number)
            for segment in commit.segments:
                segment.done()
            self._close(commit.directory_fds)
            partition = commit.partition
            if errno:
                logger.error("a sync of %s/%d failed: %s", partition.topic, partition.partition, os.strerror(errno))
            partition.end_sync(commit.target, commit.segments, commit.directories, errno)
            if partition.wants_sync:
                # Behind those who wait for their first.
                self._queued[partition] = None
            elif partition.dirty:
                self._dirty_since_s.setdefault(partition, time.monotonic())
        while self._queued and len(self._commits) < MAX_COMMITS:
            partition = next(iter(self._queued))
            del self._queued[partition]
            self._begin_sync(partition)
        if not self._commits and self._idle is not None:
            self._idle.set_result(None)
            self._idle = None

    def _close(self, fds: list[int]) -> None:
        for fd in fds:
            self._files.close(fd)

    def _check_dirty(self) -> None:
        self._timer = self._loop.call_later(FLUSH_CHECK_S, self._check_dirty)
        put_off, self._put_off = self._put_off, {}
        for partition in put_off:
            self._begin_sync(partition)
        now_s = time.monotonic()
        due = [
            partition
            for partition, since_s in self._dirty_since_s.items()
            if partition.flush_ms >= 0 and (now_s - since_s) * 1000 >= partition.flush_ms
        ]
        for partition in due:
            del self._dirty_since_s[partition]
            if partition.dirty:
                self._begin_sync(partition)

    # The end

    def forget(self, partition: Partition) -> None:
        """The partition is closed."""
        self._dirty_since_s.pop(partition, None)
        self._wanting.pop(partition, None)
        self._queued.pop(partition, None)
        self._put_off.pop(partition, None)

    async def sync_all(self) -> None:
        """Write and sync all there is. Failures are told by the partitions."""
        self._end_tick()
        for partition in list(self._dirty_since_s):
            self._begin_sync(partition)
        for _ in range(_LAST_TRIES):
            while self._commits:
                self._idle = self._loop.create_future()
                await self._idle
                for partition in list(self._dirty_since_s):
                    self._begin_sync(partition)
            if not self._put_off:
                return
            # The timer tries those again.
            await asyncio.sleep(2 * FLUSH_CHECK_S)

    def close(self) -> None:
        """End the thread, after what it was given."""
        self._timer.cancel()
        self._loop.remove_reader(self._thread.event_fd)
        self._thread.stop()
