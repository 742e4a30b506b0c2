"""Retention: old segments leave the log.

A segment goes when its last append, by the broker's own clock, is older than retention.ms, or when the partition
without it is still larger than retention.bytes. The log's start moves durably before a file goes; the active segment
stays.
"""

import logging
from collections.abc import Callable

from takhin.broker.log_start import LogStarts
from takhin.broker.metadata import MetadataStore
from takhin.broker.partition_state import is_damaged
from takhin.broker.pause import pause
from takhin.broker.topic_config import TopicConfig
from takhin.broker.topics import Topics
from takhin.errors import TakhinError
from takhin.log.partition import Partition
from takhin.log.store import LogStore

logger = logging.getLogger(__name__)


class Retention:
    """Looks through all partitions every check_ms. clock_ms: milliseconds since the epoch."""

    def __init__(
        self,
        topics: Topics,
        metadata: MetadataStore,
        store: LogStore,
        check_ms: int,
        clock_ms: Callable[[], int],
    ):
        self._topics = topics
        self._store = store
        self._log_starts = LogStarts(metadata, store, clock_ms)
        # May be changed at any time.
        self.check_ms = check_ms
        self._clock_ms = clock_ms

    async def run(self) -> None:
        """Until cancelled. Often while the disk is full: whatever may go makes room for appends."""
        while True:
            await pause(lambda: self.check_ms, lambda: self._store.is_low_on_space)
            await self.check_all()

    async def check_all(self) -> None:
        """One look through all partitions. What fails is logged and tried again at the next look."""
        for topic in list(self._topics):
            for partition in topic.partitions:
                try:
                    await self._check(partition, topic.config)
                except TakhinError as problem:
                    # A topic that is deleted meanwhile is no cause for a line in the log.
                    if partition.failure is None:
                        logger.warning(
                            "retention of %s/%d: %s", partition.topic, partition.partition, problem.message
                        )

    async def _check(self, partition: Partition, config: TopicConfig) -> None:
        # Of a damaged partition nothing is removed: somebody has to look at it first.
        if not partition.segments or is_damaged(partition):
            return
        now_ms = self._clock_ms()
        newest = partition.segments[-1]
        expired_before_ms = now_ms - config.retention_ms if config.retention_ms >= 0 else None
        # An active segment that is old enough to be sealed, or to go, is sealed now: no append may ever come to do it.
        if (newest.created_ms and now_ms - newest.created_ms >= config.segment_ms) or (
            expired_before_ms is not None and newest.last_append_ms < expired_before_ms
        ):
            if partition.failure is None and newest.next_offset > newest.base_offset:
                try:
                    partition.roll(now_ms)
                except TakhinError as problem:
                    # On a full disk it is the removal of the older ones that makes room for a new segment.
                    logger.warning("retention of %s/%d: %s", partition.topic, partition.partition, problem.message)
        start = new_log_start(partition, config, now_ms)
        if start > partition.log_start_offset:
            await self._log_starts.advance(partition, start)


def new_log_start(partition: Partition, config: TopicConfig, now_ms: int) -> int:
    """Where the log begins once the segments are gone that retention asks to remove."""
    start = partition.log_start_offset
    size_bytes = partition.size_bytes
    for segment in partition.segments[:-1]:
        too_old = config.retention_ms >= 0 and segment.last_append_ms < now_ms - config.retention_ms
        too_much = config.retention_bytes >= 0 and size_bytes - segment.size_bytes >= config.retention_bytes
        # Not yet durable: it may still be needed to tell what the disk holds.
        if segment.next_offset > partition.durable_offset or not (too_old or too_much):
            break
        start = segment.next_offset
        size_bytes -= segment.size_bytes
    return start
