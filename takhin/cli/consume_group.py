"""takhin consume -g: as a member of a group. What was written is committed, and nothing before it was."""

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from takhin.cli.output import say
from takhin.cli.record_text import Shape
from takhin.cli.sink import Sink
from takhin.client import Client, ClientError, FencedGeneration, Message, TopicPartition
from takhin.client.start import StartAt

if TYPE_CHECKING:
    from takhin.client import Consumer

_BATCH_RECORDS = 5_000
_WAIT_S = 0.02
# How often it looks whether it is at the end, while nothing comes.
_LOOK_S = 0.1
_COMMIT_S = 0.5
# How long the end waits for what is being written, and then for a last commit, after Ctrl-C say.
_LAST_WRITE_S = 0.2
_LAST_COMMIT_S = 2.0


async def consume_group(
    tk: Client, topic: str, group: str, start: StartAt, shape: Shape, sink: Sink, *, count: int | None, until_end: bool
) -> None:
    """Write what the group gives this member; `count` records at most. until_end: what there is now. Raises
    ClientError.
    """
    ends = {}
    if until_end:
        described = await tk.describe_topic(topic)
        ends = {each.partition: each.end_offset for each in described.partitions}
    async with tk.consumer(topic, group=group, start=start, client_id="takhin consume") as consumer:
        member = _Member(consumer, sink)
        try:
            await member.copy(shape, count, ends if until_end else None)
            await sink.flush()
        finally:
            await member.commit_at_end()


class _Member:
    def __init__(self, consumer: "Consumer", sink: Sink):
        self._consumer = consumer
        self._sink = sink
        # What is committed when so many chunks are written: the next offset, by topic and partition.
        self._waiting: deque[tuple[int, dict[tuple[str, int], int]]] = deque()
        self._next_commit_s = 0.0

    async def copy(self, shape: Shape, count: int | None, ends: dict[int, int] | None) -> None:
        left = count
        while left is None or left > 0:
            messages = await self._next(_BATCH_RECORDS if left is None else min(left, _BATCH_RECORDS), ends)
            if messages is None:
                return
            await self._sink.write(shape.messages(messages))
            self._waiting.append(
                (self._sink.given, {(each.topic, each.partition): each.offset + 1 for each in messages}))
            if left is not None:
                left -= len(messages)
            if ends is not None and self._is_at(ends):
                return
            now_s = asyncio.get_running_loop().time()
            if now_s >= self._next_commit_s:
                self._next_commit_s = now_s + _COMMIT_S
                await self._commit_written()

    async def _next(self, most: int, ends: dict[int, int] | None) -> list[Message] | None:
        """Some messages; None when this member is at the ends."""
        before = self._positions()
        batch = asyncio.ensure_future(anext(self._consumer.batches(max_records=most, max_wait=_WAIT_S)))
        try:
            while True:
                done, _ = await asyncio.wait([batch], timeout=_LOOK_S)
                if done:
                    return batch.result()
                # What is being collected is handed out already, and shows in the positions; it comes within _WAIT_S.
                # Where nothing moved since the last look there is none.
                now = self._positions()
                if ends is not None and now == before and self._is_at(ends):
                    return None
                before = now
                await self._commit_written()
        finally:
            if not batch.done():
                batch.cancel()
                with suppress(asyncio.CancelledError, StopAsyncIteration):
                    await batch

    def _positions(self) -> dict[TopicPartition, int]:
        return {each: self._consumer.position(each) for each in self._consumer.assignment}

    def _is_at(self, ends: dict[int, int]) -> bool:
        """Whether there is nothing left for this member; not while it waits for its partitions."""
        assigned = self._consumer.assignment
        return bool(assigned) and all(
            self._consumer.position(each) >= ends.get(each.partition, 0) for each in assigned)

    async def _commit_written(self) -> None:
        """Commit what has been written by now."""
        written: dict[tuple[str, int], int] = {}
        while self._waiting and self._waiting[0][0] <= self._sink.written:
            written |= self._waiting.popleft()[1]
        mine = set(self._consumer.assignment)
        offsets = {place: offset for place, offset in written.items() if place in mine}
        if offsets:
            try:
                await self._consumer.commit(offsets)
            except FencedGeneration as problem:
                say(f"takhin: {problem}")

    async def commit_at_end(self) -> None:
        """However it ends, what was written is not to be read again, if that can be had."""
        # The thread that has just written something may not have said so yet.
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WRITE_S):
                await self._sink.flush()
        try:
            async with asyncio.timeout(_LAST_COMMIT_S):
                await self._commit_written()
        except (ClientError, TimeoutError) as problem:
            say(f"takhin: what was written last was not committed, and comes again: {problem or 'no answer in time'}")
