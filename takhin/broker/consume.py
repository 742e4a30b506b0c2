"""Consume: a stream of responses that are slices of one partition's log."""

import asyncio
import errno
import logging
from dataclasses import dataclass
from typing import Protocol

from takhin.broker.reader_budget import Lease, ReaderBudget
from takhin.broker.topics import Topics, partition_of
from takhin.codec.messages import ConsumeRequest
from takhin.errors import Reason, TakhinError, error
from takhin.log.partition import Partition
from takhin.log.reader import WOULD_BLOCK, Reader
from takhin.log.store import LogStore

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


@dataclass(frozen=True, slots=True)
class _Pace:
    """How large responses are and how long one waits to become so. wait_s None: as long as it takes."""

    max_bytes: int
    min_bytes: int
    wait_s: float | None


class Consuming:
    """Serves ConsumeMessages. max_message_bytes: what a response may have at most, all told."""

    def __init__(self, topics: Topics, store: LogStore, budget: ReaderBudget, max_message_bytes: int):
        self._topics = topics
        self._store = store
        self._budget = budget
        self._max_bytes = max_message_bytes - _MESSAGE_RESERVE_BYTES
        self._draining = False

    def begin_drain(self) -> None:
        """End the streams: each with DRAINING as soon as its reader has taken what is on its way."""
        self._draining = True
        for partition in self._topics.partitions():
            partition.wake_readers()

    async def consume(self, request: bytes, call: ResponseStream) -> None:
        """Follow one partition, as a ConsumeMessagesRequest asks. Returns when all that was asked for is delivered.

        Raises what the request is refused for, OFFSET_OUT_OF_RANGE (also later, when retention overtakes the reader),
        LOG_TRUNCATED, TOPIC_NOT_FOUND (also later), CORRUPT_BATCH, DRAINING.
        """
        asked = ConsumeRequest(request)
        partition = partition_of(self._topics.get_encoded(asked.topic), asked.partition)
        pace = self._pace(asked)
        reader = _reader(partition, asked)

        def cut() -> None:
            logger.warning(
                "the reader at %s of %s/%d takes nothing while others wait for memory: it is cut off",
                call.peer, partition.topic, partition.partition,
            )
            call.cut()

        lease = self._budget.open(cut)
        try:
            if reader.done:
                await self._send_empty(call, lease, reader)
                return
            while not reader.done:
                if await self._wait_for_data(reader, pace):
                    await self._send(call, lease, reader, pace.max_bytes)
                else:
                    await self._send_empty(call, lease, reader)
        finally:
            self._budget.close(lease)

    def _pace(self, asked: ConsumeRequest) -> _Pace:
        for name, value in (
            ("max_bytes", asked.max_bytes),
            ("min_bytes", asked.min_bytes),
            ("max_wait_ms", asked.max_wait_ms),
            ("max_records", asked.max_records),
        ):
            if value < 0:
                raise error(Reason.INVALID_LIMIT, f"{name} {value} is negative; 0 leaves it to the broker")
        max_bytes = min(asked.max_bytes or DEFAULT_MAX_BYTES, self._max_bytes)
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
                _check_damage(partition)
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
        if self._draining:
            raise error(Reason.DRAINING, "the broker is shutting down; go on at the next offset when it is back")
        if partition.failure is not None and partition.failure[0] in (Reason.TOPIC_NOT_FOUND, Reason.DRAINING):
            raise error(*partition.failure, topic=partition.topic, partition=partition.partition)

    async def _send(self, call: ResponseStream, lease: Lease, reader: Reader, max_bytes: int) -> None:
        """Send the reader's next response, if there is one."""
        budget = self._budget
        offset, records_left = reader.next_offset, reader.records_left
        size_bytes = planned_bytes = budget.allowance(max_bytes)
        while True:
            await budget.reserve(lease, planned_bytes)
            response = await self._read(reader, size_bytes)
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

    async def _read(self, reader: Reader, max_bytes: int) -> bytes | None:
        """The next response, from memory or, in a thread, from the disk."""
        try:
            response = reader.read(max_bytes)
            if response is WOULD_BLOCK:
                loop = asyncio.get_running_loop()
                response = await loop.run_in_executor(self._store.threads, reader.read_blocking, max_bytes)
        except OSError as problem:
            # Retention may have removed the file between the check of the log's start and its opening.
            reader.check_start()
            raise _read_error(reader.partition, problem) from None
        assert response is None or isinstance(response, bytes)
        return response

    async def _send_empty(self, call: ResponseStream, lease: Lease, reader: Reader) -> None:
        """Tell the reader where the log ends."""
        response = reader.empty_response()
        await self._budget.reserve(lease, len(response))
        await self._write(call, lease, response)

    async def _write(self, call: ResponseStream, lease: Lease, response: bytes) -> None:
        self._budget.begin_write(lease)
        await call.write(response)
        self._budget.end_write(lease)


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
        if diverges_at is not None and not _is_damaged(partition):
            raise error(
                Reason.LOG_TRUNCATED,
                f"{partition.topic}/{partition.partition} lost records that were written but not durable: from offset "
                f"{diverges_at} on it is not what this reader saw; go on there",
                topic=partition.topic, partition=partition.partition, divergence_offset=diverges_at,
                log_start_offset=log_start, end_offset=end,
            )
    if offset >= end:
        _check_damage(partition)
    if not log_start <= offset <= end:
        raise error(
            Reason.OFFSET_OUT_OF_RANGE,
            f"offset {offset} of {partition.topic}/{partition.partition} is not there: the log goes from {log_start} "
            f"to {end}",
            topic=partition.topic, partition=partition.partition, log_start_offset=log_start, end_offset=end,
        )
    # What lies beyond damage is not the end: a bounded read has to learn of it, too.
    bounded = asked.until_end and not _is_damaged(partition)
    return Reader(partition, offset, end if bounded else -1, asked.max_records or -1)


def _is_damaged(partition: Partition) -> bool:
    return partition.failure is not None and partition.failure[0] is Reason.PARTITION_DAMAGED


def _check_damage(partition: Partition) -> None:
    """To be called where the log seems to end. Raises CORRUPT_BATCH when damage is what ends it."""
    if _is_damaged(partition):
        raise error(
            Reason.CORRUPT_BATCH,
            f"{partition.topic}/{partition.partition} can't be read from offset {partition.written_offset} on: it is "
            "damaged there",
            topic=partition.topic, partition=partition.partition, offset=partition.written_offset,
        )


def _read_error(partition: Partition, problem: OSError) -> TakhinError:
    logger.error("%s/%d can't be read: %s", partition.topic, partition.partition, problem.strerror)
    return error(
        Reason.CORRUPT_BATCH if problem.errno == errno.EIO else Reason.READ_FAILED,
        f"{partition.topic}/{partition.partition} can't be read: {problem.strerror}",
        topic=partition.topic, partition=partition.partition,
    )
