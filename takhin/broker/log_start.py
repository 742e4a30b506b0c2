"""Where logs begin: their starts move forward, when retention or a client asks for it.

The order makes it safe to die at any point: the start is durable in the metadata before readers are refused what lies
before it, and that before a file goes. Files that a start finds before the log's start are removed then.
"""

import logging
from collections.abc import Callable

from takhin.broker.metadata import MetadataStore
from takhin.broker.partition_state import is_damaged
from takhin.errors import Reason, TakhinError, error
from takhin.log.partition import Partition
from takhin.log.store import LogStore

logger = logging.getLogger(__name__)

# In place of an offset: where the log ends.
END = -1


class LogStarts:
    """Moves the starts of logs. clock_ms: milliseconds since the epoch."""

    def __init__(self, metadata: MetadataStore, store: LogStore, clock_ms: Callable[[], int]):
        self._metadata = metadata
        self._store = store
        self._clock_ms = clock_ms

    async def truncate(self, partition: Partition, before_offset: int) -> int:
        """Take everything before before_offset (END: all that is written) out of the log. Returns where it begins.

        An offset that is out of the log already changes nothing. Raises INVALID_OFFSET, OFFSET_OUT_OF_RANGE,
        PARTITION_DAMAGED, what make_durable raises, and what the metadata store does.
        """
        end = partition.written_offset
        if before_offset < END:
            raise error(
                Reason.INVALID_OFFSET,
                f"before_offset {before_offset} is not possible: {END} is the end, others are 0 or more",
            )
        if before_offset > end:
            raise error(
                Reason.OFFSET_OUT_OF_RANGE,
                f"offset {before_offset} of {partition.topic}/{partition.partition} is not there: the log goes from "
                f"{partition.log_start_offset} to {end}",
                topic=partition.topic, partition=partition.partition, log_start_offset=partition.log_start_offset,
                end_offset=end,
            )
        if is_damaged(partition):
            # Somebody has to look at it first; and what lies behind the damage would be out of reach for good.
            assert partition.failure is not None
            raise error(*partition.failure, topic=partition.topic, partition=partition.partition)
        offset = end if before_offset == END else before_offset
        if offset > partition.log_start_offset:
            # What a power cut leaves of the log is then never less than up to its start.
            await partition.make_durable(offset)
            self._roll(partition, offset)
            await self.advance(partition, offset)
        return partition.log_start_offset

    def _roll(self, partition: Partition, offset: int) -> None:
        """Begin a new segment when all of the newest one is to go: that one stays, whatever is in it."""
        if not partition.segments or partition.failure is not None or partition.unwritten:
            return
        if partition.segments[-1].next_offset > offset:
            return
        try:
            partition.roll(self._clock_ms())
        except TakhinError as problem:
            # On a full disk, say, which is when somebody wants to truncate: the older segments go all the same.
            logger.warning("%s", problem.message)

    async def advance(self, partition: Partition, offset: int) -> None:
        """Move the log's start to offset, which is durable, and remove the segments that lie before it.

        What can't be removed is logged. Raises what the metadata store does.
        """
        try:
            await self._store.keep_producers(partition, offset)
        except (OSError, TakhinError) as problem:
            # They are known as long as this broker runs; retention must not wait for it, on a full disk say.
            logger.warning(
                "what is known of producers of %s/%d is not saved: %s", partition.topic, partition.partition, problem
            )
        await self._metadata.through(self._advance(partition, offset))

    async def _advance(self, partition: Partition, offset: int) -> None:
        await self._metadata.set_log_start(partition.topic_id, partition.partition, offset)
        removed = partition.set_log_start(offset)
        await self._store.remove_segments(removed)
        logger.info(
            "%s/%d begins at offset %d now; %d segments removed",
            partition.topic, partition.partition, partition.log_start_offset, len(removed),
        )
