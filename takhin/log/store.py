"""All the partitions of a data directory: their files, their shared budgets, their threads.

Layout: LOCK, journal/, topics/<topic id>/<partition>/<base offset>.log and .index, and producers.snapshot beside them.
A partition's directory comes into being with its first append, so that a topic costs nothing before.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from takhin.config import Limits
from takhin.errors import Reason, StartError
from takhin.log.committer import Committer
from takhin.log.files import PASSING, Files
from takhin.log.journal import Journal
from takhin.log.partition import Partition
from takhin.log.partition_config import PartitionConfig
from takhin.log.producers import ProducerBudget, ProducerStates
from takhin.log.recovery import RecoveredPartition, recover_partition
from takhin.log.replay import SavedJournal, read_journal
from takhin.log.ring import Ring, RingBudget
from takhin.log.segment import FileCache, Segment
from takhin.log.transaction import Transactor
from takhin.log.transaction_offsets import TransactionOffsets

logger = logging.getLogger(__name__)

# A ring without an append for so long is given back.
RING_IDLE_MS = 10_000
_TIDY_S = 5.0
# How often the free space is looked at.
_SPACE_CHECK_S = 0.05
_THREADS = 4


StoreOffsets = Callable[[list[TransactionOffsets], list[int]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class PartitionSpec:
    """What the metadata knows of a partition. epochs: (epoch, first offset), in order."""

    topic: str
    topic_id: int
    partition: int
    log_start_offset: int
    epochs: tuple[tuple[int, int], ...]
    config: PartitionConfig


class LogStore:
    """Opens, keeps and removes partitions. on_halt is told of a partition that no longer takes appends, on_obstacle of
    one that can't begin a segment for them, each time for another reason."""

    def __init__(
        self,
        data_dir: str,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        clock_ms: Callable[[], int],
        on_halt: Callable[[Partition], None],
        on_obstacle: Callable[[Partition], None] = lambda partition: None,
    ):
        self.data_dir = data_dir
        self._loop = loop
        self._clock_ms = clock_ms
        self._files = Files()
        self._cache = FileCache(self._files, limits.open_files)
        self._journal = Journal(self._files, os.path.join(data_dir, "journal"), limits.journal_bytes)
        self.rings = RingBudget(limits.ring_bytes, limits.ring_bytes_per_partition)
        self.producers = ProducerBudget(limits.producers)
        # Blocking work: recovery, reads that have to wait for the disk, removal of files.
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="takhin-log")
        self.committer = Committer(
            self._files, self._journal, limits.open_files // 2, loop, clock_ms, on_halt, on_obstacle
        )
        self.transactor = Transactor(self.committer, self._journal, clock_ms)
        # While less than min_free_bytes is free, nothing is appended.
        self.is_low_on_space = False
        # As of the last look; -1: there was none, or it failed.
        self.free_bytes = -1
        self._min_free_bytes = limits.min_free_bytes
        self._timers = {
            self._tidy: loop.call_later(_TIDY_S, self._tidy),
            self._check_space: loop.call_soon(self._check_space),
        }

    @property
    def open_files(self) -> int:
        """Segment files that are open."""
        return len(self._cache)

    @staticmethod
    def lock(data_dir: str) -> int:
        """Make the data directory if need be and take its lock. Returns the descriptor that holds it.

        Raises StartError: another broker has it, or it can't be used.
        """
        files = Files()
        path = os.path.join(data_dir, "LOCK")
        try:
            topics = os.path.join(data_dir, "topics")
            _make_directories(files, topics)
            fd = files.lock(path)
            if fd is None:
                fd = files.open(path, os.O_RDONLY)
                holder = files.read(fd, 32, 0).decode("ascii", "replace").strip()
                files.close(fd)
                raise StartError(
                    f"data directory {data_dir} is in use by another broker"
                    + (f" (process {holder})" if holder else "")
                )
        except OSError as problem:
            raise StartError(f"data directory {data_dir} can't be used: {problem.strerror}") from None
        # For the message above; a full disk must not keep the broker from starting.
        with suppress(OSError):
            files.truncate(fd, 0)
            files.write(fd, f"{os.getpid()}\n".encode(), 0)
        return fd

    @staticmethod
    def unlock(fd: int) -> None:
        """Give back what lock() gave."""
        Files().close(fd)

    @staticmethod
    def file_bytes(path: str) -> int:
        """The size of a file, 0 when there is none. Raises OSError."""
        try:
            return Files().size(path)
        except FileNotFoundError:
            return 0

    @staticmethod
    def holds_topics(data_dir: str) -> bool:
        """Whether there are directories of topics in it. Raises OSError."""
        return bool(Files().list_directory(os.path.join(data_dir, "topics")))

    def directory(self, topic_id: int, partition: int | None = None) -> str:
        """Where a topic, or one partition of it, has its files."""
        path = os.path.join(self.data_dir, "topics", str(topic_id))
        return path if partition is None else os.path.join(path, str(partition))

    # Partitions

    async def recover(
        self, specs: list[PartitionSpec], *, was_clean: bool, store_offsets: StoreOffsets | None = None
    ) -> list[RecoveredPartition]:
        """What the disk holds of each, in their order. was_clean: the last run left everything on the disk.

        store_offsets: given what transactions in the journal committed, in order, and the numbers of those whose
        offsets are damaged, stores durably what is not yet stored. Raises OSError for what is no fault of the files (no
        more descriptors, a full disk, no permission to read the journal, a version of it that is not known), and what
        store_offsets does.
        """
        journal = await self._loop.run_in_executor(self.threads, self._saved_journal)

        def recover_one(spec: PartitionSpec) -> RecoveredPartition:
            key = (spec.topic_id, spec.partition)
            return recover_partition(
                self._cache, self.directory(*key), *key, spec.log_start_offset, was_clean=was_clean,
                journal=journal if journal.concerns(key) else None, producers=self.producers,
            )

        def recover_some(some: list[PartitionSpec]) -> list[RecoveredPartition]:
            return [recover_one(spec) for spec in some]

        present = [
            spec
            for spec in specs
            if (spec.topic_id, spec.partition) in journal.parts
            or self._may_have_files(spec)
        ]
        share = max(1, -(-len(present) // (4 * _THREADS)))
        parts = [present[start : start + share] for start in range(0, len(present), share)]
        work = [self._loop.run_in_executor(self.threads, recover_some, part) for part in parts]
        try:
            done = await asyncio.gather(*work)
            found = {
                (spec.topic_id, spec.partition): result
                for part, results in zip(parts, done, strict=True)
                for spec, result in zip(part, results, strict=True)
            }
            if store_offsets is not None:
                await store_offsets(journal.offsets, journal.lost_offsets)
            elif journal.offsets:
                raise ValueError("the journal has offsets, and nobody to store them")
            await self._loop.run_in_executor(self.threads, self._settle_journal, journal, found)
        finally:
            # Where one failed, the others still read the journal.
            await asyncio.gather(*work, return_exceptions=True)
            journal.close()
        return [found.get((spec.topic_id, spec.partition)) or RecoveredPartition() for spec in specs]

    def _saved_journal(self) -> SavedJournal:
        journal = read_journal(self._files, self._journal.directory)
        try:
            journal.make_durable()
        except OSError:
            journal.close()
            raise
        return journal

    def _may_have_files(self, spec: PartitionSpec) -> bool:
        try:
            return self._files.is_directory(self.directory(spec.topic_id, spec.partition))
        except OSError:
            # A directory that can't be looked at is not taken for missing: recovery finds what is wrong with it.
            return True

    def _settle_journal(self, journal: SavedJournal, found: dict[tuple[int, int], RecoveredPartition]) -> None:
        """All that could be restored from the journal is on the disk now."""
        if journal.damage is not None:
            logger.error("the journal is damaged: %s", journal.damage)
            if journal.kept_for is None:
                logger.error(
                    "if the power was cut, a sync failed or a transaction was under way, records may be gone that were "
                    "on the disk in the journal alone; where a log ends with a whole batch, perhaps nothing tells of it"
                )
        damaged = {key for key, result in found.items() if result.damage is not None and journal.concerns(key)}
        needing = damaged if journal.damage is not None else damaged & journal.parts.keys()
        try:
            if needing:
                # It is a part of what tells that they are damaged.
                logger.error(
                    "the journal stays as it is for %d damaged partitions; nothing is added to it", len(needing)
                )
                self._journal.disable()
                journal.keep(needing)
            elif journal.damage is not None:
                journal.set_aside()
            else:
                journal.remove()
        except OSError as problem:
            if problem.errno in PASSING:
                raise
            self._leave_journal(journal, needing, problem)

    def _leave_journal(self, journal: SavedJournal, needing: set[tuple[int, int]], problem: OSError) -> None:
        """Its files can't be moved or removed, nor may they be written to: the disk is damaged there."""
        logger.error(
            "%s: what the journal held is settled, and can't be put away (%s); nothing is added to it",
            problem.filename or journal.directory, problem.strerror,
        )
        self._journal.disable()
        # Where not even that can be noted, it concerns all at the next start: what it has is written once more.
        if not needing:
            with suppress(OSError):
                journal.keep(set())

    def open_partition(self, spec: PartitionSpec, found: RecoveredPartition, epoch: int) -> Partition:
        """The partition, ready to append to and read from."""
        producers = found.producers
        if producers is None:
            producers = ProducerStates(self.producers, spec.topic_id, spec.partition)
        producers.restart(time.monotonic_ns() // 1_000_000, self._clock_ms())
        partition = Partition(
            spec.topic, spec.topic_id, spec.partition, self.directory(spec.topic_id, spec.partition), self._cache,
            Ring(self.rings), producers, self.committer, self._loop.create_future, found.segments,
            spec.log_start_offset, spec.epochs, epoch, found.proven_offset if found.damage is not None else -1,
        )
        partition.configure(spec.config)
        if found.damage is not None:
            partition.fail(
                Reason.PARTITION_DAMAGED,
                f"{spec.topic}/{spec.partition} is damaged: what lies before the damage can be read, nothing is "
                f"appended ({found.damage})",
            )
        return partition

    async def keep_producers(self, partition: Partition, offset: int) -> None:
        """What is known of producers from batches below offset outlives these. Raises OSError, and as make_durable."""
        end = partition.written_offset
        snapshot = partition.producers.begin_save(offset, end)
        if snapshot is None:
            return
        saved = -1
        try:
            await partition.make_durable(end)
            await self._loop.run_in_executor(
                self.threads, self._files.replace_durably, partition.snapshot_path, snapshot
            )
            saved = end
        finally:
            partition.producers.end_save(saved)

    async def remove_segments(self, segments: list[Segment]) -> None:
        """Remove the files of segments that are out of the log. What fails is logged, and found at the next start."""

        def remove() -> None:
            for segment in segments:
                try:
                    segment.unlink()
                except OSError as problem:
                    logger.error("%s can't be removed: %s", segment.path, problem.strerror)

        await self._loop.run_in_executor(self.threads, remove)

    def close_partition(self, partition: Partition, reason: Reason, message: str) -> None:
        """Take no more appends and end its readers; the files stay."""
        self.committer.forget(partition)
        partition.close(reason, message)

    async def remove_topic(self, topic_id: int) -> bool:
        """Remove a deleted topic's files. Returns whether all are gone, also after a power cut."""

        def remove() -> bool:
            path = self.directory(topic_id)
            try:
                if self._files.exists(path):
                    self._remove_tree(path)
                # Also when it was gone: an earlier run may have removed it and died before this.
                self._files.sync_directory(os.path.dirname(path))
                return True
            except OSError as problem:
                logger.error("%s can't be removed: %s", path, problem.strerror)
                return False

        return await self._loop.run_in_executor(self.threads, remove)

    def set_aside_orphans(self, num_partitions: dict[int, int]) -> list[str]:
        """Move directories under topics/ that the metadata does not know into orphans/; returns where they are now.

        num_partitions: by topic id, of all topics it knows, those whose deletion is under way included. Raises OSError.
        """
        files = self._files
        topics = os.path.join(self.data_dir, "topics")
        strangers: list[tuple[str, str]] = []
        for name in files.list_directory(topics):
            path = os.path.join(topics, name)
            if not name.isdecimal() or int(name) not in num_partitions:
                strangers.append((path, name))
                continue
            for inner in files.list_directory(path):
                if not inner.isdecimal() or int(inner) >= num_partitions[int(name)]:
                    strangers.append((os.path.join(path, inner), f"{name}-{inner}"))
        if not strangers:
            return []
        orphans = os.path.join(self.data_dir, "orphans")
        files.make_directory(orphans)
        moved = []
        for path, name in strangers:
            target, number = os.path.join(orphans, name), 1
            while files.exists(target):
                number += 1
                target = os.path.join(orphans, f"{name}.{number}")
            files.rename(path, target)
            moved.append(target)
        for directory in {orphans, self.data_dir, *(os.path.dirname(path) for path, _ in strangers)}:
            files.sync_directory(directory)
        return moved

    def _remove_tree(self, path: str) -> None:
        for name in self._files.list_directory(path):
            entry = os.path.join(path, name)
            if self._files.is_directory(entry):
                self._remove_tree(entry)
            else:
                # Retention may be removing a segment at the same time.
                with suppress(FileNotFoundError):
                    self._files.unlink(entry)
        self._files.remove_directory(path)

    def _tidy(self) -> None:
        """Give back what is held for nothing."""
        self._timers[self._tidy] = self._loop.call_later(_TIDY_S, self._tidy)
        self.rings.release_idle(self._clock_ms() - RING_IDLE_MS)
        self._cache.trim()

    def _check_space(self) -> None:
        """Refuse appends while too little is free: metadata, and what gives room again, can still be written then."""
        self._timers[self._check_space] = self._loop.call_later(_SPACE_CHECK_S, self._check_space)
        try:
            free_bytes = self._files.free_bytes(self.data_dir)
        except OSError:
            # Then the writes will tell.
            return
        self.free_bytes = free_bytes
        is_low = free_bytes < self._min_free_bytes
        if is_low == self.is_low_on_space:
            return
        self.is_low_on_space = is_low
        if is_low:
            self._cache.no_room = (
                f"nothing is appended while less than limits.min_free_bytes ({self._min_free_bytes}) is free on the "
                "disk"
            )
            logger.warning("%s: %s (%d are)", self.data_dir, self._cache.no_room, free_bytes)
        else:
            self._cache.no_room = None
            logger.warning("%s: there is room again (%d bytes)", self.data_dir, free_bytes)

    # The end

    async def close(self, partitions: list[Partition]) -> bool:
        """Write and sync everything, and leave an index file for each segment. Returns whether all of it went well."""
        await self.committer.sync_all()

        def write_indexes() -> bool:
            well = True
            for partition in partitions:
                failure = partition.failure[0] if partition.failure_is_final and partition.failure else None
                if failure is Reason.PARTITION_DAMAGED:
                    # Found when it was opened; nothing was written since.
                    continue
                if partition.unsynced or failure is not None:
                    well = False
                    continue
                for segment in partition.segments:
                    try:
                        segment.write_index()
                    except OSError as problem:
                        logger.error("%s can't be written: %s", segment.index_path, problem.strerror)
                try:
                    if self.producers.in_use:
                        partition.save_producers()
                except OSError as problem:
                    logger.error("%s can't be written: %s", partition.snapshot_path, problem.strerror)
            return well

        well = await self._loop.run_in_executor(self.threads, write_indexes)
        try:
            self._journal.close()
        except OSError as problem:
            logger.error("the journal can't be removed: %s", problem.strerror)
            well = False
        for partition in partitions:
            self.close_partition(partition, Reason.DRAINING, "the broker has stopped")
        for timer in self._timers.values():
            timer.cancel()
        self.committer.close()
        self.threads.shutdown(wait=True)
        return well


def _make_directories(files: Files, path: str) -> None:
    """The directory and those above it, as far as they are missing; the last two names are on the disk after this."""
    parent = os.path.dirname(os.path.abspath(path))
    if not files.exists(parent):
        _make_directories(files, parent)
    files.make_directory(path)
    for directory in (parent, os.path.dirname(parent)):
        try:
            files.sync_directory(directory)
        except PermissionError:
            # It may be searched and not read; then its names were there before us.
            journal.make_durable()
