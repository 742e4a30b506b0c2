"""The broker: its parts, how they come up and how they go down."""

import asyncio
import logging
import os
import time
from collections.abc import Callable

from takhin.broker.access_control import AccessControl
from takhin.broker.consume import Consuming
from takhin.broker.group_offsets import GroupOffsets
from takhin.broker.groups import GroupCoordinator
from takhin.broker.log_start import LogStarts
from takhin.broker.metadata import MetadataStore
from takhin.broker.offset_expiry import OffsetExpiry
from takhin.broker.offset_reset import OffsetResets
from takhin.broker.produce import Producing
from takhin.broker.producers import Producers
from takhin.broker.reader_budget import ReaderBudget
from takhin.broker.retention import Retention
from takhin.broker.statistics import Gathering, Recovery, Statistics
from takhin.broker.subscribe import Subscribing
from takhin.broker.topics import Topics
from takhin.broker.transactions import Transactions
from takhin.clock import wall_clock_ms
from takhin.config import Settings
from takhin.errors import Reason, StartError, TakhinError
from takhin.log.partition import Partition
from takhin.log.store import LogStore

logger = logging.getLogger(__name__)

# How long a partition whose write failed waits before it tries to take appends again.
RESUME_AFTER_S = 1.0
# How long a segment that could not be begun makes the broker unfit, when nobody tries again.
OBSTACLE_TOLD_MS = 30_000


class Broker:
    """One broker on one data directory.

    start(), then use topics, producers, producing, consuming, subscribing, log_starts, groups, group_offsets,
    offset_resets, access; begin_drain() and stop() end it. All of it on one event loop.
    """

    topics: Topics
    producers: Producers
    producing: Producing
    consuming: Consuming
    log_starts: LogStarts
    groups: GroupCoordinator
    transactions: Transactions
    subscribing: Subscribing
    group_offsets: GroupOffsets
    offset_resets: OffsetResets
    access: AccessControl

    def __init__(self, settings: Settings, clock_ms: Callable[[], int] = wall_clock_ms):
        self.settings = settings
        self._clock_ms = clock_ms
        self._epoch = 0
        self._started_s = time.monotonic()
        self._lock_fd = -1
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[str] | None = None
        # Partitions whose write failed and that are to take appends again.
        self._halted: set[Partition] = set()
        # Those that take none until the next start.
        self._poisoned: set[Partition] = set()
        # Those where no segment could be begun the last time one was needed.
        self._obstructed: set[Partition] = set()

    @property
    def uptime_seconds(self) -> int:
        return int(time.monotonic() - self._started_s)

    async def start(self) -> None:
        """Lock the data directory, recover what it holds, take requests. Raises StartError."""
        loop = asyncio.get_running_loop()
        settings = self.settings
        self._failed = loop.create_future()
        self._lock_fd = LogStore.lock(settings.data_dir)
        try:
            path = os.path.join(settings.data_dir, "meta.db")
            # SQLite takes an empty file for a new database, which would give the ids of these directories to others.
            if LogStore.file_bytes(path) == 0 and LogStore.holds_topics(settings.data_dir):
                raise StartError(
                    f"data directory {settings.data_dir} holds topics, but meta.db, which names them, is gone"
                )
            self._metadata = MetadataStore(path, self._on_failure)
            self._metadata.open()
        except OSError as problem:
            LogStore.unlock(self._lock_fd)
            raise StartError(f"data directory {settings.data_dir} can't be used: {problem.strerror}") from None
        except StartError:
            LogStore.unlock(self._lock_fd)
            raise
        self._store = LogStore(
            settings.data_dir, settings.limits, loop, self._clock_ms, self._on_halt, self._on_obstacle)
        self.topics = Topics(settings, self._metadata, self._store, lambda: self._epoch, self._clock_ms)
        budget = self._budget = ReaderBudget(settings.limits.reader_bytes, settings.limits.slow_reader_ms)
        self.producers = Producers(
            self._metadata, self._store, settings.limits, settings.topics.producer_expiration_ms, self._clock_ms
        )
        self.producing = Producing(self.topics, self.producers, settings.limits, self._clock_ms)
        self.consuming = Consuming(self.topics, self._store, budget, settings.grpc.max_message_bytes)
        self.log_starts = LogStarts(self._metadata, self._store, self._clock_ms)
        self.groups = GroupCoordinator(
            self._metadata, self.topics, settings.limits, self._clock_ms, self._store.transactor.offsets_are_stored,
            settings.groups,
        )
        self.topics.on_change(lambda change: self.groups.live.topic_changed(change.name))
        self.subscribing = Subscribing(self.topics, self.consuming, budget, self.groups, settings.groups)
        self.transactions = Transactions(
            self.topics, self.producers, self.groups, self._metadata, self._store.transactor, settings.limits,
            self._clock_ms,
        )
        self.access = AccessControl(self._metadata, settings.limits, self._clock_ms)
        self.group_offsets = GroupOffsets(self._metadata, self.topics, self.groups)
        self.offset_resets = OffsetResets(
            self._metadata, self.topics, self.consuming, self.groups, settings.limits, self._clock_ms
        )
        self._gathering = Gathering(
            self.topics, self.groups, self.producers, self._metadata, self._store, budget, settings.limits,
            self.producing, self.transactions, self.access,
        )
        try:
            await self._recover()
        except (OSError, TakhinError) as problem:
            await self._store.close([])
            await self._metadata.close()
            LogStore.unlock(self._lock_fd)
            raise StartError(f"data directory {settings.data_dir} can't be recovered: {problem}") from problem
        self._retention = Retention(
            self.topics, self._metadata, self._store, settings.topics.retention_check_ms, self._clock_ms
        )
        self._keep(self._retention.run())
        self._keep(self._gathering.loop_lag.run())
        self._keep(self.producers.run(self.topics.partitions))
        self._keep(OffsetExpiry(self._metadata, self.groups, settings.groups, self._clock_ms).run())

    async def _recover(self) -> None:
        begun_s = time.monotonic()
        run = await self._metadata.begin_run()
        for topic_id in await self._metadata.deleted_topics():
            await self.topics.remove_files(topic_id)
        await self.topics.set_aside_orphans()
        await self.producers.load()
        topics = await self.topics.load(was_clean=run.was_clean, store_offsets=self.transactions.restore)
        await self.transactions.load()
        await self.producers.skip_ids(max(
            (producer.id for _, partitions in topics for found in partitions for producer in found.producers or ()),
            default=0,
        ))
        self._epoch = run.epoch
        highest = max((found.max_epoch for _, partitions in topics for found in partitions), default=0)
        if highest > run.epoch or (highest == run.epoch and not run.was_clean):
            self._epoch = await self._metadata.raise_epoch(highest)
        scanned_bytes = cut_bytes = count = 0
        epochs: list[tuple[int, int, int, int]] = []
        for row, partitions in topics:
            for number, found in enumerate(partitions):
                end = max(found.segments[-1].next_offset if found.segments else 0, row.log_starts.get(number, 0))
                # After a clean stop, those for which no epoch begins yet: the start before could not read them, say.
                newest = max((epoch for epoch, _ in row.epochs.get(number, ())), default=found.max_epoch)
                if found.damage is None and (not run.was_clean or 0 < max(newest, found.max_epoch) < self._epoch):
                    epochs.append((row.id, number, self._epoch, end))
                scanned_bytes += found.scanned_bytes
                cut_bytes += found.cut_bytes
                count += 1
        if epochs:
            # From here on the log may differ from what a reader saw before: what was not durable may be gone.
            await self._metadata.add_epochs(epochs)
            topics = [(row, found) for row, (_, found) in zip(await self._metadata.load_topics(), topics, strict=True)]
        for row, partitions in topics:
            self.topics.open(row, partitions)
        await self.groups.live.load()
        await self.access.load()
        self._recovery = Recovery(run.was_clean, scanned_bytes, cut_bytes, time.monotonic() - begun_s)
        logger.info(
            "epoch %d; %d topics, %d partitions; %s; %d bytes scanned, %d cut; %.0f ms",
            self._epoch, len(topics), count, "clean" if run.was_clean else "not stopped cleanly", scanned_bytes,
            cut_bytes, self._recovery.took_s * 1000,
        )

    async def reload(self) -> None:
        """The settings were changed in place: have all parts go by them that have taken something from them."""
        settings = self.settings
        self._budget.resize(settings.limits.reader_bytes, settings.limits.slow_reader_ms)
        self.producers.expiration_ms = settings.topics.producer_expiration_ms
        self._retention.check_ms = settings.topics.retention_check_ms
        self.groups.live.reconfigure()
        await self.topics.reconfigure()

    async def statistics(self) -> Statistics:
        """How it does. Raises what the metadata store does."""
        return await self._gathering.gather(
            self._epoch, time.monotonic() - self._started_s, self._recovery,
            is_ready=not self.unfit and not self.consuming.is_draining)

    @property
    def unfit(self) -> str:
        """What keeps it from taking appends, to all partitions or to some, until somebody does something; "" for
        nothing."""
        if self._store.is_low_on_space:
            return "the disk is full"
        self._poisoned = {each for each in self._poisoned if not _is_deleted(each)}
        if self._poisoned:
            return f"{len(self._poisoned)} partitions take no appends until the next start"
        self._obstructed = {each for each in self._obstructed if each.obstacle and not _is_deleted(each)}
        # Where nobody has tried for long, nothing is known.
        since_ms = self._clock_ms() - OBSTACLE_TOLD_MS
        count = sum(each.obstacle_ms >= since_ms for each in self._obstructed)
        return f"segments of {count} partitions can't be begun" if count else ""

    async def wait_failed(self) -> str:
        """Return, with what to tell the operator, when the broker can't go on."""
        assert self._failed is not None
        return await asyncio.shield(self._failed)

    def begin_drain(self) -> None:
        """Refuse new work; streams end, with what they have under way answered."""
        self.producing.begin_drain()
        self.transactions.begin_drain()
        self.consuming.begin_drain()
        self.subscribing.begin_drain()

    async def stop(self) -> None:
        """Write and sync everything, leave the mark of a clean stop, unlock the data directory."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.transactions.stop()
        await self._metadata.settle()
        await self.subscribing.stop()
        await self.groups.live.stop()
        well = await self._store.close(self.topics.partitions())
        try:
            if well:
                await self._metadata.end_run()
        except TakhinError as problem:
            logger.error("the mark of a clean stop can't be written: %s", problem.message)
        await self._metadata.close()
        LogStore.unlock(self._lock_fd)

    # When something fails

    def _on_failure(self, message: str) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(message)

    def _on_halt(self, partition: Partition) -> None:
        assert partition.failure is not None
        reason, message = partition.failure
        if reason not in (Reason.TOPIC_NOT_FOUND, Reason.DRAINING):
            logger.error("%s", message)
        if partition.failure_is_final:
            if reason not in (Reason.TOPIC_NOT_FOUND, Reason.DRAINING):
                self._poisoned.add(partition)
        else:
            self._halted.add(partition)
            if len(self._halted) == 1:
                self._keep(self._resume())

    def _on_obstacle(self, partition: Partition) -> None:
        logger.error("%s; tried again with each append", partition.obstacle)
        self._obstructed.add(partition)

    async def _resume(self) -> None:
        """Let halted partitions take appends again, in a new epoch: what they told of before the failure is void."""
        while self._halted:
            await asyncio.sleep(RESUME_AFTER_S)
            if self._store.is_low_on_space:
                continue
            halted = [partition for partition in self._halted if not partition.failure_is_final]
            try:
                epoch = await self._metadata.raise_epoch(self._epoch)
                await self._metadata.add_epochs(
                    [(each.topic_id, each.partition, epoch, each.written_offset) for each in halted]
                )
            except TakhinError as problem:
                if problem.reason is not Reason.TOPIC_NOT_FOUND:
                    logger.warning("%d partitions stay closed: %s", len(halted), problem.message)
                continue
            finally:
                # A topic deleted meanwhile has closed its partitions: they are not asked again.
                self._halted = {partition for partition in self._halted if not partition.failure_is_final}
            self._epoch = max(self._epoch, epoch)
            for partition in halted:
                self._halted.discard(partition)
                partition.resume(epoch)

    def _keep(self, work) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a task of the broker failed", exc_info=task.exception())


def _is_deleted(partition: Partition) -> bool:
    """Whoever was closed, as its topic was deleted, says so."""
    return partition.failure is not None and partition.failure[0] is Reason.TOPIC_NOT_FOUND
