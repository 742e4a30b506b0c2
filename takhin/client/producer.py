"""Producing: records are collected into batches, sent several at a time, and acknowledged one by one."""

import asyncio
import itertools
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import Literal

from takhin.client.admin import Admin
from takhin.client.batches import RECORD_OVERHEAD_BYTES, Batch, Delivery, PartitionQueue
from takhin.client.errors import (
    BufferFull,
    ClientError,
    Closed,
    DeadlineExceeded,
    FlushTimeout,
    NotDelivered,
    RecordTooLarge,
    Undelivered,
)
from takhin.client.partitioner import Partitioner
from takhin.client.produce_stream import ProduceStream
from takhin.client.record_batch import RecordMetadata
from takhin.client.transport import SERVICE, Transport
from takhin.client.types import Encode, Headers
from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb

Acks = Literal["assigned", "written", "durable"]
ACKS: dict[str, int] = {"assigned": 0, "written": 1, "durable": -1}

# The broker takes 10 MiB a message, and knows the last five batches of a producer in a partition.
MAX_BATCH_BYTES = 8 << 20
MAX_RECORD_BYTES = (10 << 20) - (64 << 10)
MAX_BATCH_RECORDS = 50_000
MAX_IDEMPOTENT_IN_FLIGHT = 5
# Undelivered records that an error names, at most.
MAX_UNDELIVERED = 100
_PARTITIONS_REFRESH_S = 60.0
_CHECK_S = 0.25


class Producer:
    """Sends records to one topic. Made by Client.producer(); used with `async with`, which flushes at its end.

    Records of one partition are stored in the order in which they were given, also when some have to be sent again;
    without idempotent=True that needs max_in_flight=1, as the broker may store batches behind one that it refuses for
    now. With idempotent=True each is stored once, however often that takes; without, one whose answer was lost may be
    there twice.
    """

    def __init__(
        self, admin: Admin, transport: Transport, topic: str, *, linger_ms: float, batch_bytes: int, acks: Acks,
        idempotent: bool, max_in_flight: int, buffer_bytes: int, request_timeout_s: float, delivery_timeout_s: float,
        flush_timeout_s: float, encode: Encode
    ) -> None:
        if acks not in ACKS:
            raise ValueError(f"acks {acks!r} is not known: {', '.join(map(repr, ACKS))}")
        if not 1 <= batch_bytes <= MAX_BATCH_BYTES:
            raise ValueError(f"batch_bytes {batch_bytes} is not possible: 1 to {MAX_BATCH_BYTES}")
        if max_in_flight < 1 or (idempotent and max_in_flight > MAX_IDEMPOTENT_IN_FLIGHT):
            raise ValueError(
                f"max_in_flight {max_in_flight} is not possible: at least 1, and at most {MAX_IDEMPOTENT_IN_FLIGHT} of "
                "an idempotent producer, as the broker knows its last five batches")
        self.topic = topic
        self._admin = admin
        self._transport = transport
        self._linger_s = linger_ms / 1000
        self._batch_bytes = batch_bytes
        self._required_acks = ACKS[acks]
        self._is_idempotent = idempotent
        self._max_in_flight = max_in_flight
        self.buffer_bytes = buffer_bytes
        self._request_timeout_s = request_timeout_s
        self._delivery_timeout_s = delivery_timeout_s
        self._flush_timeout_s = flush_timeout_s
        self._encode = encode
        self._partitioner = Partitioner()
        self._refreshed_s = 0.0
        self._refreshing: asyncio.Task[None] | None = None
        self._queues: dict[int, PartitionQueue] = {}
        self._unfinished: dict[Batch, None] = {}
        self._buffered_bytes = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._flushing = 0
        # What the last flush that ran out of time raised: whoever leaves for it has waited long enough.
        self._flush_timeout: NotDelivered | None = None
        self._batches_closed = 0
        # Deliveries that failed; a flush tells of those that nobody looked at.
        self._failed: deque[tuple[Batch, ClientError]] = deque()
        # Of those that are too many to be kept.
        self._forgotten_count = 0
        self._forgotten_partitions: set[int] = set()
        self._forgotten_problem: ClientError | None = None
        self._stream: ProduceStream | None = None
        self._checker: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop

    # Its life

    async def __aenter__(self) -> "Producer":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                await self.flush()
            elif issubclass(kind, Exception) and problem is not self._flush_timeout:
                # What was sent before something else failed is to arrive; but that is what is told of.
                try:
                    await self.flush()
                except ClientError as undelivered:
                    if problem is not None:
                        problem.add_note(f"and {undelivered}")
        finally:
            await self.aclose()

    async def start(self) -> None:
        """Learn of the topic's partitions, and become a producer the broker knows. `async with` does it.

        Raises TopicNotFound, Unavailable, and what else a call may.
        """
        self._check_open()
        if self._stream is not None:
            return
        self._loop = asyncio.get_running_loop()
        await self._refresh()
        stream = ProduceStream(
            self._transport, self.topic, self._required_acks, self._max_in_flight, self._finish,
            self._new_id if self._is_idempotent else None)
        await stream.start()
        self._stream = stream
        self._check()

    async def aclose(self) -> None:
        """End it, without a flush: what is not stored by now fails with Closed."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._checker is not None:
            self._checker.cancel()
        if self._refreshing is not None:
            self._refreshing.cancel()
        if self._stream is not None:
            await self._stream.aclose()
        for batch in list(self._unfinished):
            self._finish(batch, Closed("the producer was closed before the record was acknowledged"))
        for batch, _ in self._failed:
            _see(batch)
        self._wake_waiters()

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed("the producer is closed")

    # Sending

    async def send(
        self, value: bytes | None, *, key: bytes | None = None, headers: Headers | None = None,
        partition: int | None = None, timestamp_ms: int = 0
    ) -> RecordMetadata:
        """Store a record; returns when the broker acknowledged it. While the buffer is full it waits.

        value None is a tombstone. partition None: by the key, as Kafka's default partitioner; without a key by turns, a
        batch each. timestamp_ms 0: the broker's clock. Raises RecordTooLarge, DeadlineExceeded after
        delivery_timeout_s, and whatever the broker refuses it with.
        """
        record = self._encode(key, value, headers, timestamp_ms)
        size_bytes = len(record) + RECORD_OVERHEAD_BYTES
        if self._waiters or not self._has_room(size_bytes):
            await self._wait_for_room(size_bytes)
        return await self._append(record, key, partition, timestamp_ms != 0)

    def send_nowait(
        self, value: bytes | None, *, key: bytes | None = None, headers: Headers | None = None,
        partition: int | None = None, timestamp_ms: int = 0
    ) -> Delivery:
        """As send, but at once, with a future of the acknowledgement. Raises BufferFull.

        Failures of futures that nobody looks at are told by flush.
        """
        record = self._encode(key, value, headers, timestamp_ms)
        size_bytes = len(record) + RECORD_OVERHEAD_BYTES
        if self._waiters or not self._has_room(size_bytes):
            raise BufferFull(
                f"{self._buffered_bytes} bytes wait to be stored: no room for {size_bytes} more (buffer_bytes "
                f"{self.buffer_bytes})")
        return self._append(record, key, partition, timestamp_ms != 0)

    async def enqueue(
        self, value: bytes | None, *, key: bytes | None = None, headers: Headers | None = None,
        partition: int | None = None, timestamp_ms: int = 0
    ) -> Delivery:
        """As send_nowait, but waits while the buffer is full: for who has much to send, and need not wait for each
        acknowledgement. Lets what is full go out.
        """
        record = self._encode(key, value, headers, timestamp_ms)
        size_bytes = len(record) + RECORD_OVERHEAD_BYTES
        if self._waiters or not self._has_room(size_bytes):
            await self._wait_for_room(size_bytes)
        number = self._batches_closed
        delivery = self._append(record, key, partition, timestamp_ms != 0)
        if self._batches_closed != number:
            # The loop has its turn, or everything would be collected before the first batch is sent.
            await asyncio.sleep(0)
        return delivery

    async def send_encoded(self, payload: bytes, count: int, *, partition: int | None = None) -> Delivery:
        """Send a batch that is encoded already: `count` records one after the other, as messages.encode_record makes
        them, without an object for each. While the buffer is full it waits; gives a future of the first record's
        acknowledgement.

        partition: where all of them go, whatever their keys say; None: by turns, a batch each, for records without
        keys.
        """
        if not 1 <= count <= MAX_BATCH_RECORDS or not 1 <= len(payload) <= MAX_RECORD_BYTES:
            raise ValueError(f"{count} records of {len(payload)} bytes are no batch")
        size_bytes = len(payload) + RECORD_OVERHEAD_BYTES
        if self._waiters or not self._has_room(size_bytes):
            await self._wait_for_room(size_bytes)
        stream = self._stream
        if stream is None or self._is_closed:
            self._check_open()
            raise Closed("the producer was not started: use it with `async with`")
        number = self._partitioner.choose(None) if partition is None else partition
        queue = self._queues.get(number) or self._new_queue(number)
        queue.close_open()
        batch = Batch(queue, self._loop.time())
        delivery: Delivery = self._loop.create_future()
        batch.records.set_encoded(payload, count, delivery)
        self._unfinished[batch] = None
        self._buffered_bytes += batch.buffered_bytes
        queue.ready.append(batch)
        self._partitioner.batch_closed(number)
        stream.offer(queue)
        return delivery

    async def room(self, size_bytes: int | None = None) -> None:
        """Wait until the buffer has room for so much (None: a batch): for who uses send_nowait and meets BufferFull."""
        size_bytes = self._batch_bytes if size_bytes is None else size_bytes
        if self._waiters or not self._has_room(size_bytes):
            await self._wait_for_room(size_bytes)

    def _has_room(self, size_bytes: int) -> bool:
        # One record alone always has.
        return self._buffered_bytes + size_bytes <= self.buffer_bytes or not self._buffered_bytes

    async def _wait_for_room(self, size_bytes: int) -> None:
        """In turn: whoever waits keeps its place until it has its room, so that the order holds."""
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            while True:
                await waiter
                self._check_open()
                if self._has_room(size_bytes):
                    break
                # It was the first, and is so still.
                self._waiters[0] = waiter = self._loop.create_future()
        except BaseException:
            self._waiters.remove(waiter)
            self._wake_waiters()
            raise
        self._waiters.popleft()
        # The next one in turn may have room as well, when this one has taken its own.
        self._loop.call_soon(self._wake_waiters)

    def _wake_waiters(self) -> None:
        """The one that waits longest looks again; all of them, when there is nothing to wait for any more."""
        if self._is_closed:
            woken = list(self._waiters)
        elif self._waiters and self._buffered_bytes < self.buffer_bytes:
            woken = [self._waiters[0]]
        else:
            return
        for waiter in woken:
            if not waiter.done():
                waiter.set_result(None)

    def _append(self, record: bytes, key: bytes | None, partition: int | None, has_timestamp: bool) -> Delivery:
        stream = self._stream
        if stream is None or self._is_closed:
            self._check_open()
            raise Closed("the producer was not started: use it with `async with`")
        size_bytes = len(record)
        if size_bytes > MAX_RECORD_BYTES:
            raise RecordTooLarge(
                f"a record of {size_bytes} bytes is larger than a message may be", reason=Reason.RECORD_TOO_LARGE)
        number = self._partitioner.choose(key) if partition is None else partition
        queue = self._queues.get(number) or self._new_queue(number)
        batch = queue.open
        if batch is not None and self._is_full(batch, size_bytes):
            self._close_batch(queue)
            if partition is None and key is None:
                # The next records without a key go elsewhere.
                queue = self._queues.get(self._partitioner.sticky) or self._new_queue(self._partitioner.sticky)
                if queue.open is not None and self._is_full(queue.open, size_bytes):
                    self._close_batch(queue)
            batch = queue.open
        if batch is None:
            batch = self._open_batch(queue)
        delivery: Delivery = self._loop.create_future()
        batch.records.add(record, delivery, has_timestamp)
        self._buffered_bytes += size_bytes + RECORD_OVERHEAD_BYTES
        return delivery

    def _new_queue(self, number: int) -> PartitionQueue:
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ValueError(f"partition {number!r} is not possible: a number from 0 on")
        queue = self._queues[number] = PartitionQueue(number)
        return queue

    def _is_full(self, batch: Batch, more_bytes: int) -> bool:
        records = batch.records
        return records.size_bytes + more_bytes > self._batch_bytes or records.count >= MAX_BATCH_RECORDS

    def _open_batch(self, queue: PartitionQueue) -> Batch:
        now_s = self._loop.time()
        batch = queue.open = Batch(queue, now_s)
        self._unfinished[batch] = None
        assert self._stream is not None
        if not self._linger_s or self._flushing:
            batch.is_due = True
        if batch.is_due or not queue.in_flight:
            self._stream.offer(queue)
        else:
            self._loop.call_later(self._linger_s, self._due, batch)
        if now_s - self._refreshed_s > _PARTITIONS_REFRESH_S and self._refreshing is None:
            self._refreshed_s = now_s
            self._refreshing = asyncio.ensure_future(self._refresh_quietly())
        return batch

    def _due(self, batch: Batch) -> None:
        if not batch.is_done and self._stream is not None:
            batch.is_due = True
            self._stream.offer(batch.partition)

    def _close_batch(self, queue: PartitionQueue) -> None:
        self._batches_closed += 1
        queue.close_open()
        self._partitioner.batch_closed(queue.number)
        assert self._stream is not None
        self._stream.offer(queue)

    # What becomes of it

    def _finish(self, batch: Batch, outcome: pb.ProduceMessageResponse | ClientError) -> None:
        """A batch is stored, or is not going to be."""
        if batch.is_done:
            return
        del self._unfinished[batch]
        if self._partitioner.sticky == batch.partition.number:
            self._partitioner.batch_closed(batch.partition.number)
        if isinstance(outcome, ClientError):
            batch.records.failed(outcome)
            self._failed.append((batch, outcome))
            if len(self._failed) > MAX_UNDELIVERED:
                # Once those who await these have seen them.
                self._loop.call_soon(self._forget_failed)
        else:
            batch.records.stored(self.topic, batch.partition.number, outcome.offset, outcome.timestamp)
        self._buffered_bytes -= batch.buffered_bytes
        batch.finish()
        self._wake_waiters()

    def _forget_failed(self) -> None:
        """Bounds what is kept of failures: first those go that were seen; of the oldest others only their number is
        kept."""
        if len(self._failed) > MAX_UNDELIVERED:
            self._failed = deque(each for each in self._failed if any(map(_is_unseen, each[0].records.deliveries)))
        while len(self._failed) > MAX_UNDELIVERED:
            batch, self._forgotten_problem = self._failed.popleft()
            _see(batch)
            self._forgotten_count += batch.records.count
            self._forgotten_partitions.add(batch.partition.number)

    def _take_failed(self) -> NotDelivered | None:
        """What nobody has seen yet of the failures; it counts as seen then."""
        unseen: list[tuple[Batch, ClientError | None]] = [each for each in self._failed if _see(each[0])]
        self._failed.clear()
        if not unseen and not self._forgotten_count:
            return None
        problem = self._not_delivered(
            unseen, None, self._forgotten_count, self._forgotten_partitions, self._forgotten_problem)
        self._forgotten_count, self._forgotten_problem = 0, None
        self._forgotten_partitions.clear()
        return problem

    async def flush(self, timeout_s: float | None = None) -> None:
        """Send what was collected, at once, and wait until all that was given so far is acknowledged.

        timeout_s None: flush_timeout_s. Raises FlushTimeout, which names what is not, and NotDelivered for records
        whose failure nobody has seen yet.
        """
        pending = list(self._unfinished)
        if pending:
            assert self._stream is not None
            self._flushing += 1
            try:
                for batch in pending:
                    self._due(batch)
                limit_s = self._flush_timeout_s if timeout_s is None else timeout_s
                await asyncio.wait([batch.done() for batch in pending], timeout=limit_s)
            finally:
                self._flushing -= 1
            late = [batch for batch in pending if not batch.is_done]
            if late:
                self._flush_timeout = self._not_delivered([(batch, batch.problem) for batch in late], limit_s)
                raise self._flush_timeout
        # A task that awaits a delivery sees it in the loop's next turn: before that its failure is not unseen.
        await asyncio.sleep(0)
        problem = self._take_failed()
        if problem is not None:
            raise problem

    def _not_delivered(
        self, batches: list[tuple[Batch, ClientError | None]], limit_s: float | None, more: int = 0,
        more_partitions: Iterable[int] = (), more_problem: ClientError | None = None
    ) -> NotDelivered:
        """more: records beyond those of the batches, of which no more is known than their partitions and why."""
        count = more + sum(batch.records.count for batch, _ in batches)
        named = [
            Undelivered(self.topic, batch.partition.number, key, problem)
            for batch, problem in batches for key in batch.records.keys(MAX_UNDELIVERED)][:MAX_UNDELIVERED]
        partitions = ", ".join(str(number) for number in sorted(
            {*more_partitions, *(batch.partition.number for batch, _ in batches)})[:10])
        problems = [*(problem for _, problem in batches), more_problem]
        why = next((str(problem) for problem in problems if problem is not None), "no answer yet")
        what = f"{count} records for {self.topic!r} (partitions {partitions})"
        if limit_s is None:
            return NotDelivered(f"{what} were not stored: {why}", named, count)
        return FlushTimeout(f"{what} were not acknowledged within {limit_s:g} s: {why}", named, count)

    # By the clock

    def _check(self) -> None:
        """Give up what is too old; end a stream that does not answer."""
        now_s = self._loop.time()
        oldest_s = now_s - self._delivery_timeout_s
        late = list(itertools.takewhile(lambda batch: batch.opened_s < oldest_s, self._unfinished))
        assert self._stream is not None
        for batch in late:
            self._stream.give_up(batch)
            why = f"; last: {batch.problem}" if batch.problem is not None else ""
            self._finish(batch, DeadlineExceeded(
                f"not acknowledged within {self._delivery_timeout_s:g} s (delivery_timeout_s){why}"))
        self._stream.check_answers(now_s, self._request_timeout_s)
        self._checker = self._loop.call_later(_CHECK_S, self._check)

    async def _refresh(self) -> None:
        topic = await self._admin.describe_topic(self.topic)
        self._partitioner.set_partitions(len(topic.partitions))
        self._refreshed_s = asyncio.get_running_loop().time()

    async def _refresh_quietly(self) -> None:
        try:
            await self._refresh()
        except ClientError:
            pass  # those known so far go on being used; if they are gone, records tell
        finally:
            self._refreshing = None

    async def _new_id(self) -> tuple[int, int]:
        answer = pb.InitProducerResponse.FromString(await self._transport.unary(
            SERVICE + "InitProducer", pb.InitProducerRequest().SerializeToString(), self._request_timeout_s))
        return answer.id, answer.epoch


def _see(batch: Batch) -> bool:
    """Whether nobody has seen yet that some of it failed; now somebody has."""
    unseen = [each for each in batch.records.deliveries if _is_unseen(each)]
    for each in unseen:
        each.exception()
    return bool(unseen)


def _is_unseen(delivery: Delivery) -> bool:
    # asyncio's own mark, by which it complains of exceptions that were never retrieved.
    return delivery.done() and not delivery.cancelled() and bool(getattr(delivery, "_log_traceback", True))
