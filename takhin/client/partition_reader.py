"""One partition, read in order, across lost connections and restarts of the broker."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from takhin.client.errors import ClientError, CorruptBatch, OffsetOutOfRange, Unavailable
from takhin.client.messages import Records, decode_records
from takhin.client.retry import pause_s
from takhin.client.transport import SERVICE, ResponseStream, Transport
from takhin.client.types import Offsets, TopicPartition
from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb

CONSUME = SERVICE + "ConsumeMessages"
# Between two looks for how far the broker's disk has come.
DURABLE_POLL_S = 0.01
LONGEST_DURABLE_POLL_S = 0.1


class PartitionReader:
    """Reads `topic`/`partition` from offset (or, where that is None, from time_ms) on, up to end_offset where that is
    given. Lost connections are made good for retry_s.
    """

    def __init__(
        self, transport: Transport, topic: str, partition: int, *, offset: int | None, time_ms: int | None = None,
        end_offset: int | None = None, max_bytes: int = 0, check: bool = True, retry_s: float = 120.0
    ) -> None:
        self._transport = transport
        self.topic = topic
        self.partition = partition
        self._offset = offset
        self._time_ms = time_ms
        self._end_offset = end_offset
        self._max_bytes = max_bytes
        self._check = check
        self._retry_s = retry_s
        # Of the last record seen; -1: not known.
        self._epoch = -1
        self._stream: ResponseStream | None = None
        self._failures = 0
        self._failing_since_s = 0.0
        self._damage: CorruptBatch | None = None

    @property
    def position(self) -> int | None:
        """The next offset to read; None where that is the broker's to find out, and it has not yet."""
        return self._offset

    async def next(self) -> Records | None:
        """The next records, at least one; None at end_offset.

        Raises LogTruncated, OffsetOutOfRange, CorruptBatch (each time: what follows can't be read), TopicNotFound,
        Unavailable when the broker does not come back.
        """
        while True:
            if self._damage is not None:
                raise self._damage
            if self._end_offset is not None and self._offset is not None and self._offset == self._end_offset:
                self.cancel()
                return None
            try:
                if self._stream is None:
                    self._stream = self._transport.server_stream(CONSUME, self._request())
                response = await self._stream.read()
            except ClientError as problem:
                self.cancel()
                await self._pause(problem)
                continue
            except BaseException:
                # A cancelled read is the end of its call, or has taken a message with it: the next one begins anew
                # where this one stood.
                self.cancel()
                raise
            if response is None:
                self.cancel()
                if self._end_offset is None:
                    await self._pause(Unavailable("the broker ended the stream"))
                    continue
                return None
            self._failures = 0
            records = self._take(response)
            if len(records):
                return records

    def cancel(self) -> None:
        """Read no more for now."""
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None

    def _request(self) -> bytes:
        request = pb.ConsumeMessagesRequest(
            topic=self.topic, partition=self.partition, max_bytes=self._max_bytes,
            until_end=self._end_offset is not None)
        if self._offset is not None:
            request.offset = self._offset
            if self._epoch >= 0:
                request.last_epoch = self._epoch
        elif self._time_ms is not None:
            request.start_time_ms = self._time_ms
        return request.SerializeToString()

    def _take(self, response: bytes) -> Records:
        records = decode_records(response, self._check)
        if records.damage is not None:
            self.cancel()
            self._damage = CorruptBatch(
                f"{self.topic}/{self.partition}: {records.damage}", reason=Reason.CORRUPT_BATCH,
                metadata={"topic": self.topic, "partition": str(self.partition)})
        if self._offset is not None:
            records.skip_before(self._offset)
        if self._end_offset is not None:
            records.keep_before(self._end_offset)
        if len(records):
            self._offset = records.next_offset
            self._epoch = records.last_epoch
        return records

    async def _pause(self, problem: ClientError) -> None:
        """Before the next attempt. Raises `problem` when there is to be none."""
        loop = asyncio.get_running_loop()
        if not self._failures:
            self._failing_since_s = loop.time()
        if not problem.retryable or loop.time() - self._failing_since_s > self._retry_s:
            raise problem
        self._failures += 1
        await asyncio.sleep(pause_s(self._failures))


class DurablePartitionReader(PartitionReader):
    """Reads what is on the broker's disk, and goes on as more of it is. durable: tells how far that is, and which
    offset a time means.
    """

    def __init__(self, *args: Any, durable: Callable[[int | None], Awaitable[Offsets]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._durable = durable
        # Nothing beyond it is asked for: what a power cut takes away is never seen.
        self._end_offset: int = 0

    async def next(self) -> Records | None:
        delay_s = DURABLE_POLL_S
        while True:
            if self._offset is not None and self._offset < self._end_offset:
                records = await super().next()
                if records is not None:
                    return records
            try:
                offsets = await self._durable(self._time_ms if self._offset is None else None)
            except ClientError as problem:
                await self._pause(problem)
                continue
            self._failures = 0
            if self._offset is None:
                self._offset = offsets.end if offsets.for_time is None else offsets.for_time
            if self._offset > offsets.end:
                raise OffsetOutOfRange(
                    f"offset {self._offset} of {self.topic}/{self.partition} is beyond the end, {offsets.end}",
                    reason=Reason.OFFSET_OUT_OF_RANGE, metadata={
                        "log_start_offset": str(offsets.start), "end_offset": str(offsets.end)})
            if offsets.durable <= self._offset:
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 1.5, LONGEST_DURABLE_POLL_S)
            self._end_offset = max(offsets.durable, self._end_offset)


async def check_position(transport: Transport, place: TopicPartition, offset: int, epoch: int) -> None:
    """Whether a reader that has read up to offset, a record of that epoch (-1: not known) the last, may go on there.

    Raises LogTruncated, OffsetOutOfRange, and what else a read may.
    """
    request = pb.ConsumeMessagesRequest(
        topic=place.topic, partition=place.partition, offset=offset, until_end=True, max_records=1)
    if epoch >= 0:
        request.last_epoch = epoch
    stream = transport.server_stream(CONSUME, request.SerializeToString())
    try:
        await stream.read()
    finally:
        stream.cancel()
