"""All the partitions of a data directory: their files, their shared budgets, their threads.

Layout: LOCK, topics/<topic id>/<partition>/<base offset>.log and .index. A partition's directory comes into being with
its first append, so that a topic costs nothing before.
"""

import asyncio
import fcntl
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from takhin.config import Limits
from takhin.errors import Reason, StartError
from takhin.log.committer import Committer
from takhin.log.files import Files
from takhin.log.partition import Partition
from takhin.log.partition_config import PartitionConfig
from takhin.log.recovery import RecoveredPartition, recover_partition
from takhin.log.ring import Ring, RingBudget
from takhin.log.segment import FileCache, Segment

logger = logging.getLogger(__name__)

# A ring without an append for so long is given back.
RING_IDLE_MS = 10_000
_TIDY_S = 5.0
_THREADS = 4


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
    """Opens, keeps and removes partitions. on_halt is told of a partition that no longer takes appends."""

    def __init__(
        self,
        data_dir: str,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        clock_ms: Callable[[], int],
        on_halt: Callable[[Partition], None],
    ):
        self.data_dir = data_dir
        self._loop = loop
        self._clock_ms = clock_ms
        self._files = Files()
        self._cache = FileCache(self._files, limits.open_files)
        self.rings = RingBudget(limits.ring_bytes, limits.ring_bytes_per_partition)
        # Blocking work: recovery, reads that have to wait for the disk, removal of files.
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="takhin-log")
        self.committer = Committer(self._files, loop, on_halt)
        self._timer = loop.call_later(_TIDY_S, self._tidy)

    @staticmethod
    def lock(data_dir: str) -> int:
        """Make the data directory if need be and take its lock. Returns the descriptor that holds it.

        Raises StartError: another broker has it, or it can't be used.
        """
        try:
            os.makedirs(os.path.join(data_dir, "topics"), mode=0o750, exist_ok=True)
            fd = os.open(os.path.join(data_dir, "LOCK"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as problem:
            raise StartError(f"data directory {data_dir} can't be used: {problem.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise StartError(
                f"data directory {data_dir} is in use by another broker" + (f" (process {holder})" if holder else "")
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return fd

    def directory(self, topic_id: int, partition: int | None = None) -> str:
        """Where a topic, or one partition of it, has its files."""
        path = os.path.join(self.data_dir, "topics", str(topic_id))
        return path if partition is None else os.path.join(path, str(partition))

    # Partitions

    async def recover(self, specs: list[PartitionSpec], *, was_clean: bool) -> list[RecoveredPartition]:
        """What the disk holds of each, in their order. was_clean: the last run left everything on the disk."""

        def recover_one(spec: PartitionSpec) -> RecoveredPartition:
            return recover_partition(
                self._cache, self.directory(spec.topic_id, spec.partition), spec.topic_id, spec.partition,
                spec.log_start_offset, was_clean=was_clean,
            )

        def recover_some(some: list[PartitionSpec]) -> list[RecoveredPartition]:
            return [recover_one(spec) for spec in some]

        present = [spec for spec in specs if os.path.isdir(self.directory(spec.topic_id, spec.partition))]
        share = max(1, -(-len(present) // (4 * _THREADS)))
        parts = [present[start : start + share] for start in range(0, len(present), share)]
        done = await asyncio.gather(*(self._loop.run_in_executor(self.threads, recover_some, part) for part in parts))
        found = {
            (spec.topic_id, spec.partition): result
            for part, results in zip(parts, done, strict=True)
            for spec, result in zip(part, results, strict=True)
        }
        return [found.get((spec.topic_id, spec.partition)) or RecoveredPartition() for spec in specs]

    def open_partition(self, spec: PartitionSpec, found: RecoveredPartition, epoch: int) -> Partition:
        """The partition, ready to append to and read from."""
        partition = Partition(
            spec.topic, spec.topic_id, spec.partition, self.directory(spec.topic_id, spec.partition), self._cache,
            Ring(self.rings), self.committer, self._loop.create_future, found.segments, spec.log_start_offset,
            spec.epochs, epoch,
        )
        partition.configure(spec.config)
        if found.damage is not None:
            partition.fail(
                Reason.PARTITION_DAMAGED,
                f"{spec.topic}/{spec.partition} is damaged: what lies before the damage can be read, nothing is "
                f"appended ({found.damage})",
            )
        return partition

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
        """Remove a deleted topic's files. Returns whether all are gone."""
        return await self._loop.run_in_executor(self.threads, self._remove_tree, self.directory(topic_id))

    def _remove_tree(self, path: str) -> bool:
        try:
            for entry in list(os.scandir(path)):
                if entry.is_dir(follow_symlinks=False):
                    self._remove_tree(entry.path)
                else:
                    self._files.unlink(entry.path)
            self._files.remove_directory(path)
        except FileNotFoundError:
            pass
        except OSError as problem:
            logger.error("%s can't be removed: %s", path, problem.strerror)
            return False
        return not os.path.exists(path)

    def _tidy(self) -> None:
        """Give back what is held for nothing."""
        self._timer = self._loop.call_later(_TIDY_S, self._tidy)
        self.rings.release_idle(self._clock_ms() - RING_IDLE_MS)
        self._cache.trim()

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
                if partition.dirty or failure is not None:
                    well = False
                    continue
                for segment in partition.segments:
                    try:
                        segment.write_index()
                    except OSError as problem:
                        logger.error("%s can't be written: %s", segment.index_path, problem.strerror)
            return well

        well = await self._loop.run_in_executor(self.threads, write_indexes)
        for partition in partitions:
            self.close_partition(partition, Reason.DRAINING, "the broker has stopped")
        self._timer.cancel()
        self.committer.close()
        self.threads.shutdown(wait=True)
        return well
