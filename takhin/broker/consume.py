"""Consume: a stream of responses that are slices of one partition's log, from an offset or a time on."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Protocol

from takhin.broker.following import Follower
from takhin.broker.partition_state import check_damage, check_open, is_damaged, read_error
from takhin.broker.reader_budget import Lease, ReaderBudget
from takhin.broker.topics import Topics, partition_of
from takhin.codec.messages import ConsumeRequest
from takhin.errors import Reason, error
from takhin.log.partition import Partition
from takhin.log.reader import WOULD_BLOCK, Reader
from takhin.log.store import LogStore
from takhin.log.timesearch import TimeSearch

logger = logging.getLogger(__name__)

EARLIEST, LATEST = -1, -2
DEFAULT_MAX_BYTES = 1024 * 1024
# How long to wait for min_bytes when max_wait_ms is not given.
DEFAULT_MAX_WAIT_S = 0.5
# Room in a message for what stands around its records.
_MESSAGE_RESERVE_BYTES = 64 * 1024


class ResponseStream(Protocol):
    """A call whose client gets responses."""

    @property
    def peer(self) -> str: ...

    async def write(self, message: bytes) -> None: ...

    def cut(self) -> None:
        """End the stream at once, whatever the client does."""

    # A call of the fast front also has
    #     async def follow(self, follower: Follower) -> None: ...
    # which serves the stream without a coroutine for as long as nothing out of the ordinary happens.


@dataclass(frozen=True, slots=True)
class _Pace:
    """How large responses are and how long one waits to become so. wait_s None: as long as it takes."""

    max_bytes: int
    min_bytes: int
    wait_s: float | None

    @property
    def is_plain(self) -> bool:
        """Whether everything is sent as soon as it is there, and nothing else."""
        return self.min_bytes == 1 and self.wait_s is None


class Consuming:
    """Serves ConsumeMessages. max_message_bytes: what a response may have at most, all told."""

    def __init__(self, topics: Topics, store: LogStore, budget: ReaderBudget, max_message_bytes: int):
        self._topics = topics
        self._store = store
        self.budget = budget
        # Of a response, at most.
        self.max_bytes = max_message_bytes - _MESSAGE_RESERVE_BYTES
        self.is_draining = False

    def begin_drain(self) -> None:
        """End the streams: each with DRAINING as soon as its reader has taken what is on its way."""
        self.is_draining = True
        for partition in self._topics.partitions():
            partition.wake_readers()

    async def consume(self, request: bytes, call: ResponseStream) -> None:
        """Follow one partition, as a ConsumeMessagesRequest asks. Returns when all that was asked for is delivered.

        Raises what the request is refused for, OFFSET_OUT_OF_RANGE (also later, when the log's start overtakes the
        reader), LOG_TRUNCATED, TOPIC_NOT_FOUND (also later), CORRUPT_BATCH, READ_FAILED, DRAINING.
        """
        asked = ConsumeRequest(request)
        partition = partition_of(self._topics.get_encoded(asked.topic), asked.partition)
        pace = self._pace(asked)
        if asked.start_time_ms is None:
            reader = _reader(partition, asked)
        else:
            reader = await self._reader_at_time(partition, asked)

        def cut() -> None:
            logger.warning(
                "the reader at %s of %s/%d takes nothing while others wait for memory: it is cut off",
                call.peer or "a Unix socket", partition.topic, partition.partition,
            )
            call.cut()

        lease = self.budget.open(cut)
        try:
            if reader.done:
                await self._send_empty(call, lease, reader)
                return
            follow = getattr(call, "follow", None)
            follower = Follower(self, reader, lease, pace.max_bytes) if follow and pace.is_plain else None
            while not reader.done:
                if follower is not None and follower.is_ready:
                    await follow(follower)
                    if reader.done:
                        break
                if await self._wait_for_data(reader, pace):
                    await self._send(call, lease, reader, pace.max_bytes)
                else:
                    await self._send_empty(call, lease, reader)
        finally:
            self.budget.close(lease)

    async def offset_for_time(self, partition: Partition, timestamp_ms: int) -> int | None:
        """The first offset whose record's timestamp is timestamp_ms or later, None when there is none.

        Raises CORRUPT_BATCH (also when the log ends with damage, behind which it may be), READ_FAILED, TOPIC_NOT_FOUND,
        DRAINING.
        """
        return (await self.search_time(partition, timestamp_ms))[0]

    async def search_time(self, partition: Partition, timestamp_ms: int) -> tuple[int | None, int]:
        """As offset_for_time, and what was the log's end: nothing from there on was looked at."""
        search = TimeSearch(partition, timestamp_ms)
        while True:
            try:
                offset = search.find()
                if offset is WOULD_BLOCK:
                    loop = asyncio.get_running_loop()
                    offset = await loop.run_in_executor(self._store.threads, search.find_blocking)
            except OSError as problem:
                check_open(partition)
                raise read_error(partition, problem) from None
            check_open(partition)
            if offset is None:
                check_damage(partition)
                return None, search.end_offset
            assert isinstance(offset, int)
            # Else the log's start has passed it on the way here.
            if offset >= partition.log_start_offset:
                return offset, search.end_offset

    async def _reader_at_time(self, partition: Partition, asked: ConsumeRequest) -> Reader:
        """A reader at the time asked for. Raises OFFSET_AND_TIME and what offset_for_time does."""
        assert asked.start_time_ms is not None
        if asked.offset or asked.last_epoch is not None:
            raise error(
                Reason.OFFSET_AND_TIME,
                "start_time_ms stands in place of an offset: leave offset at 0, and last_epoch, which goes with an "
                "offset, unset",
            )
        offset, end = await self.search_time(partition, asked.start_time_ms)
        # Without such a record from the end that was searched: what came meanwhile may have it.
        return _bounded_reader(partition, asked, end if offset is None else offset, end)

    def _pace(self, asked: ConsumeRequest) -> _Pace:
        for name, value in (
            ("max_bytes", asked.max_bytes),
            ("min_bytes", asked.min_bytes),
            ("max_wait_ms", asked.max_wait_ms),
            ("max_records", asked.max_records),
        ):
            if value < 0:
                raise error(Reason.INVALID_LIMIT, f"{name} {value} is negative; 0 leaves it to the broker")
        max_bytes = min(asked.max_bytes or DEFAULT_MAX_BYTES, self.max_bytes)
        wait_s = asked.max_wait_ms / 1000 if asked.max_wait_ms else None
        return _Pace(max_bytes, min(max(asked.min_bytes, 1), max_bytes), wait_s)

    async def _wait_for_data(self, reader: Reader, pace: _Pace) -> bool:
        """Whether there is something to send: at once, when enough has come, or when the time for that is over."""
        loop = asyncio.get_running_loop()
        partition = reader.partition
        until_s = loop.time() + pace.wait_s if pace.wait_s is not None else None
        while True:
            self._check_open(partition)
            pending = partition.data_after(reader.next_offset)
            if pending is not None:
                check_damage(partition)
            else:
                if pace.min_bytes == 1 or reader.end_offset >= 0 or reader.available_bytes >= pace.min_bytes:
                    return True
                if until_s is None:
                    until_s = loop.time() + DEFAULT_MAX_WAIT_S
                pending = partition.data_after(partition.written_offset)
                assert pending is not None
            left_s = until_s - loop.time() if until_s is not None else None
            # asyncio.wait, because the future is everybody's: a task that awaits it would cancel it with itself.
            if (left_s is not None and left_s <= 0) or not (await asyncio.wait([pending], timeout=left_s))[0]:
                self._check_open(partition)
                return partition.written_offset > reader.next_offset

    def _check_open(self, partition: Partition) -> None:
        if self.is_draining:
            raise error(Reason.DRAINING, "the broker is shutting down; go on at the next offset when it is back")
        check_open(partition)

    async def _send(self, call: ResponseStream, lease: Lease, reader: Reader, max_bytes: int) -> None:
        """Send the reader's next response, if there is one."""
        budget = self.budget
        offset, records_left = reader.next_offset, reader.records_left
        size_bytes = planned_bytes = budget.allowance(max_bytes)
        while True:
            await budget.reserve(lease, planned_bytes)
            response = await self.read(reader, size_bytes)
            if response is None:
                budget.give_back(lease)
                return
            if budget.grow(lease, len(response)):
                break
            # A record that is larger than was planned: keep its size instead of its bytes until there is room for it.
            planned_bytes = len(response)
            del response
            reader.rewind(offset, records_left)
        await self._write(call, lease, response)

    async def read(self, reader: Reader, max_bytes: int) -> bytes | None:
        """The next response, from memory or, in a thread, from the disk. Raises what reading raises."""
        try:
            response = reader.read(max_bytes)
            if response is WOULD_BLOCK:
                loop = asyncio.get_running_loop()
                response = await loop.run_in_executor(self._store.threads, reader.read_blocking, max_bytes)
        except OSError as problem:
            # Retention may have removed the file between the check of the log's start and its opening.
            reader.check_start()
            raise read_error(reader.partition, problem) from None
        assert response is None or isinstance(response, bytes)
        return response

    async def _send_empty(self, call: ResponseStream, lease: Lease, reader: Reader) -> None:
        """Tell the reader where the log ends."""
        response = reader.empty_response()
        await self.budget.reserve(lease, len(response))
        await self._write(call, lease, response)

    async def _write(self, call: ResponseStream, lease: Lease, response: bytes) -> None:
        self.budget.begin_write(lease)
        await call.write(response)
        self.budget.end_write(lease)


def _reader(partition: Partition, asked: ConsumeRequest) -> Reader:
    """A reader at the offset asked for. Raises INVALID_OFFSET, INVALID_EPOCH, LOG_TRUNCATED, OFFSET_OUT_OF_RANGE."""
    log_start, end = partition.log_start_offset, partition.written_offset
    offset = asked.offset
    if offset == EARLIEST:
        offset = log_start
    elif offset == LATEST:
        offset = end
    elif offset < 0:
        raise error(
            Reason.INVALID_OFFSET,
            f"offset {offset} is not possible: {EARLIEST} is the earliest, {LATEST} the latest, others are 0 or more",
        )
    elif asked.last_epoch is not None:
        if asked.last_epoch < 0:
            raise error(Reason.INVALID_EPOCH, f"last_epoch {asked.last_epoch} is negative")
        diverges_at = partition.divergence(asked.last_epoch, offset)
        if diverges_at is not None and not is_damaged(partition):
            raise error(
                Reason.LOG_TRUNCATED,
                f"{partition.topic}/{partition.partition} lost records that were written but not durable: from offset "
                f"{diverges_at} on it is not what this reader saw; go on there",
                topic=partition.topic, partition=partition.partition, divergence_offset=diverges_at,
                log_start_offset=log_start, end_offset=end,
            )
    if offset >= end:
        check_damage(partition)
    if not log_start <= offset <= end:
        raise error(
            Reason.OFFSET_OUT_OF_RANGE,
            f"offset {offset} of {partition.topic}/{partition.partition} is not there: the log goes from {log_start} "
            f"to {end}",
            topic=partition.topic, partition=partition.partition, log_start_offset=log_start, end_offset=end,
        )
    return _bounded_reader(partition, asked, offset, end)


def _bounded_reader(partition: Partition, asked: ConsumeRequest, offset: int, end: int) -> Reader:
    # What lies beyond damage is not the end: a bounded read has to learn of it, too.
    bounded = asked.until_end and not is_damaged(partition)
    return Reader(partition, offset, end if bounded else -1, asked.max_records or -1)
