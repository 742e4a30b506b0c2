"""Where a member begins to read: at what its group has committed, else where its start says."""

import logging
from typing import Protocol

from takhin.broker.consume import EARLIEST, LATEST
from takhin.broker.member_start import MemberStart
from takhin.broker.partition_state import check_damage
from takhin.errors import Reason, TakhinError, error
from takhin.log.partition import Partition
from takhin.v1 import takhin_pb2 as pb

logger = logging.getLogger(__name__)


class TimeOffsets(Protocol):
    async def search_time(self, partition: Partition, timestamp_ms: int) -> tuple[int | None, int]:
        """The first offset whose record has that timestamp or a later one (None: there is none), and the end."""
        ...


class StartOffsets:
    """For one member."""

    def __init__(self, times: TimeOffsets, start: MemberStart):
        self._times = times
        self._start = start

    async def find(self, partition: Partition, committed: int | None) -> int:
        """committed: the next offset to read, None when nothing is committed.

        Raises NO_COMMITTED_OFFSET, OFFSET_OUT_OF_RANGE (beyond the end; before the start with START_FROM_NONE),
        CORRUPT_BATCH (the log ends with damage before what is committed), READ_FAILED, DRAINING.
        """
        if committed is None:
            if self._start.start_from == pb.START_FROM_NONE:
                raise error(
                    Reason.NO_COMMITTED_OFFSET,
                    f"group {self._start.group_id!r} has committed nothing for {partition.topic}/"
                    f"{partition.partition}, and start_from is START_FROM_NONE",
                    group_id=self._start.group_id, topic=partition.topic, partition=partition.partition,
                )
            return await self._by_policy(partition)
        if partition.log_start_offset <= committed <= partition.written_offset:
            return committed
        problem = error(
            Reason.OFFSET_OUT_OF_RANGE,
            f"group {self._start.group_id!r} has committed offset {committed} of {partition.topic}/"
            f"{partition.partition}, which is not there: the log goes from {partition.log_start_offset} to "
            f"{partition.written_offset}",
            group_id=self._start.group_id, topic=partition.topic, partition=partition.partition, offset=committed,
            log_start_offset=partition.log_start_offset, end_offset=partition.written_offset,
        )
        if committed > partition.written_offset:
            # A log that was repaired, say. Where to go on is not for start_from to say: it would be all of it again.
            check_damage(partition)
            raise problem
        return await self.find_again(partition, problem)

    def is_passing(self, offset: int, committed: int | None) -> bool:
        """Whether what find() gave would be another offset if it were looked for again later."""
        return self._start.start_from == pb.START_FROM_LATEST and offset != committed

    async def find_again(self, partition: Partition, problem: TakhinError) -> int:
        """Where to go on when the log does not have the next offset any more. Raises problem with START_FROM_NONE."""
        if self._start.start_from == pb.START_FROM_NONE:
            raise problem
        offset = await self._by_policy(partition)
        logger.warning("group %r goes on at offset %d: %s", self._start.group_id, offset, problem.message)
        return offset

    async def _by_policy(self, partition: Partition) -> int:
        if self._start.start_from == pb.START_FROM_LATEST:
            return partition.written_offset
        if self._start.start_from == pb.START_FROM_TIME:
            offset, end = await self._times.search_time(partition, self._start.start_time_ms)
            return end if offset is None else offset
        return partition.log_start_offset


def sought_offset(partition: Partition, offset: int) -> int:
    """The offset that a seek means. Raises INVALID_OFFSET, OFFSET_OUT_OF_RANGE."""
    log_start, end = partition.log_start_offset, partition.written_offset
    if offset == EARLIEST:
        return log_start
    if offset == LATEST:
        return end
    if offset < 0:
        raise error(
            Reason.INVALID_OFFSET,
            f"offset {offset} is not possible: {EARLIEST} is the earliest, {LATEST} the latest, others are 0 or more",
        )
    if not log_start <= offset <= end:
        raise error(
            Reason.OFFSET_OUT_OF_RANGE,
            f"offset {offset} of {partition.topic}/{partition.partition} is not there: the log goes from {log_start} "
            f"to {end}",
            topic=partition.topic, partition=partition.partition, log_start_offset=log_start, end_offset=end,
        )
    return offset
