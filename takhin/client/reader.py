"""Reading without a group: one partition or all of a topic, from anywhere, for ever or up to the end."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any

from takhin.client.admin import Admin
from takhin.client.errors import ClientError, PartitionNotFound
from takhin.client.messages import Message, Records
from takhin.client.partition_reader import DurablePartitionReader, PartitionReader
from takhin.client.start import Start, StartAt, start_at
from takhin.client.transport import Transport
from takhin.client.types import Offsets, Partition
from takhin.errors import Reason

WRITTEN, DURABLE = "written", "durable"


class Reader:
    """An asynchronous iterator of Message; batches() gives Records instead. Made by Client.read().

    Messages of one partition come in order. Leaving it (`async with`, aclose) ends its calls.
    """

    def __init__(
        self, admin: Admin, transport: Transport, topic: str, *, partition: int | None, start: Start, until_end: bool,
        max_records: int | None, visibility: str, check: bool, max_bytes: int, retry_s: float
    ) -> None:
        self._feed: _Feed | None = None
        if visibility not in (WRITTEN, DURABLE):
            raise ValueError(f"visibility {visibility!r} is not known: 'written' or 'durable'")
        if max_records is not None and max_records < 0:
            raise ValueError(f"max_records {max_records} is negative")
        self._admin = admin
        self._transport = transport
        self._topic = topic
        self._partition = partition
        self._start = start_at(start)
        self._until_end = until_end
        self._left = max_records
        self._is_durable = visibility == DURABLE
        self._check = check
        self._max_bytes = max_bytes
        self._retry_s = retry_s
        self._current: Iterator[Message] = iter(())

    async def __aenter__(self) -> "Reader":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # Who breaks out of `async for` says no more.
        if self._feed is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._feed.cancel()

    async def aclose(self) -> None:
        """End its calls; it gives no more."""
        self._left = 0
        self._current = iter(())
        if self._feed is not None:
            self._feed.cancel()

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        while True:
            for message in self._current:
                return message
            records = await self.next_batch()
            if records is None:
                raise StopAsyncIteration
            self._current = iter(records)

    async def batches(self) -> AsyncIterator[Records]:
        """What is left, response by response: the fastest way to read much."""
        while (records := await self.next_batch()) is not None:
            yield records

    async def next_batch(self) -> Records | None:
        """The next response; None at the end. Not to be mixed with messages of a response before it."""
        if self._left == 0:
            await self.aclose()
            return None
        if self._feed is None:
            self._feed = await self._begin()
        records = await self._feed.next()
        if records is None:
            self._left = 0
            return None
        if self._left is not None:
            records.keep_first(self._left)
            self._left -= len(records)
        return records

    async def _begin(self) -> "_Feed":
        topic = await self._admin.describe_topic(self._topic)
        chosen = [each for each in topic.partitions if self._partition in (None, each.partition)]
        if not chosen:
            raise PartitionNotFound(
                f"topic {self._topic!r} has no partition {self._partition}, but {len(topic.partitions)}: 0 to "
                f"{len(topic.partitions) - 1}", reason=Reason.PARTITION_NOT_FOUND, metadata={"topic": self._topic})
        readers = [self._reader(each, self._start) for each in chosen]
        return _Feed(readers)

    def _reader(self, partition: Partition, start: StartAt) -> PartitionReader:
        end_offset = partition.durable_offset if self._is_durable else partition.end_offset
        how: dict[str, Any] = {
            "offset": start.offset_in(partition.start_offset, end_offset), "time_ms": start.time_ms,
            "max_bytes": self._max_bytes, "check": self._check, "retry_s": self._retry_s}
        if self._is_durable and not self._until_end:
            async def durable(time_ms: int | None) -> Offsets:
                return await self._admin.offsets(self._topic, partition.partition, time_ms=time_ms)

            return DurablePartitionReader(self._transport, self._topic, partition.partition, durable=durable, **how)
        how["end_offset"] = end_offset if self._until_end else None
        return PartitionReader(self._transport, self._topic, partition.partition, **how)


class _Feed:
    """Partitions read side by side, each one response ahead. One alone is read without a task of its own."""

    def __init__(self, readers: list[PartitionReader]) -> None:
        self._single = readers[0] if len(readers) == 1 else None
        self._readers = readers
        self._tasks: dict[asyncio.Task[Records | None], PartitionReader] = {}
        self._ready: list[asyncio.Task[Records | None]] = []
        self._is_begun = False
        self._problem: ClientError | None = None

    async def next(self) -> Records | None:
        if self._single is not None:
            return await self._single.next()
        if self._problem is not None:
            # Not as if all of them had come to their end.
            raise self._problem
        if not self._is_begun:
            self._is_begun = True
            for reader in self._readers:
                self._read(reader)
        while self._tasks:
            if not self._ready:
                done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
                # In the order of the partitions: whoever is fast does not come before all others each time.
                self._ready = sorted(done, key=lambda task: -self._tasks[task].partition)
            task = self._ready.pop()
            reader = self._tasks.pop(task)
            try:
                records = task.result()
            except ClientError as problem:
                self.cancel()
                self._problem = problem
                raise
            if records is not None:
                self._read(reader)
                return records
        return None

    def _read(self, reader: PartitionReader) -> None:
        self._tasks[asyncio.ensure_future(reader.next())] = reader

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
        self._ready.clear()
        for reader in self._readers:
            reader.cancel()
