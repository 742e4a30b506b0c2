"""A producer's stream to the broker: sends batches, takes their answers, and sends again what an answer is missing for.

What was in flight when a stream is lost is sent again on the next one, in its order, before anything else of its
partition. After an error answer nothing more of that partition is sent until all that is in flight there was answered.
So the order holds of an idempotent producer, whose broker knows what it has stored already, and refuses what comes
before its turn. Of another one it does with max_in_flight=1: what is in flight behind a refused batch may be stored.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

from takhin.client.batches import Batch, PartitionQueue
from takhin.client.errors import ClientError, Closed, Internal, Unavailable, client_error
from takhin.client.retry import pause_s
from takhin.client.tasks import end
from takhin.client.transport import SERVICE, RequestStream, Transport
from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb

PRODUCE_STREAM = SERVICE + "ProduceMessageStream"
# What is said of a batch that is not stored because one before it was not, or because the broker knows nothing (any
# more) of what this producer stored.
_OUT_OF_SEQUENCE = (Reason.SEQUENCE_GAP, Reason.PRODUCER_UNKNOWN)

Outcome = pb.ProduceMessageResponse | ClientError


class ProduceStream:
    """finish(batch, outcome) is called once for each batch that was offered. new_id: of an idempotent producer."""

    def __init__(
        self, transport: Transport, topic: str, required_acks: int, max_in_flight: int,
        finish: Callable[[Batch, Outcome], None], new_id: Callable[[], Awaitable[tuple[int, int]]] | None
    ) -> None:
        self._transport = transport
        self._topic = topic
        self._required_acks = required_acks
        self._max_in_flight = max_in_flight
        self._finish = finish
        self._new_id = new_id
        self._first_id: tuple[int, int] | None = None
        # Partitions that may have something to send; each once.
        self._queue: deque[PartitionQueue] = deque()
        # In the order in which they were sent: so they are answered.
        self._unanswered: deque[Batch] = deque()
        self._wake = asyncio.Event()
        self._stream: RequestStream | None = None
        self._is_stalled = False
        self._failures = 0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises ClientError when there is no broker to be had."""
        if self._new_id is not None:
            self._first_id = await self._new_id()
        self._task = asyncio.ensure_future(self._run())

    async def aclose(self) -> None:
        if self._task is not None:
            await end(self._task)
            self._task = None

    def offer(self, queue: PartitionQueue) -> None:
        """The partition may have something to send."""
        if not queue.is_queued:
            queue.is_queued = True
            self._queue.append(queue)
            self._wake.set()

    def give_up(self, batch: Batch) -> None:
        """Don't send it again. One that is in flight stays there until it is answered, or the stream ends."""
        queue = batch.partition
        for waiting in (queue.ready, queue.retry):
            with suppress(ValueError):
                waiting.remove(batch)
        if queue.open is batch:
            queue.open = None
        self.offer(queue)

    def check_answers(self, now_s: float, timeout_s: float) -> None:
        """End the stream when what is longest in flight is so for more than timeout_s."""
        if self._unanswered and now_s - self._unanswered[0].sent_s > timeout_s and self._stream is not None:
            self._is_stalled = True
            self._stream.cancel()

    # One stream after the other

    async def _run(self) -> None:
        while True:
            await self._something_to_send()
            problem: ClientError = Unavailable("the broker ended the stream")
            self._is_stalled = False
            try:
                self._stream = self._transport.bidi(PRODUCE_STREAM)
                await self._converse(self._stream)
            except ClientError as failure:
                problem = failure
            except Exception as bug:
                # What was in flight fails with it; the rest goes on.
                problem = Internal(f"a bug in the client: {bug!r}")
                problem.__cause__ = bug
            finally:
                if self._stream is not None:
                    self._stream.cancel()
                    self._stream = None
            if self._is_stalled:
                problem = Unavailable("the broker did not answer in time (request_timeout_s)")
            if self._recover(problem):
                self._failures += 1
                await asyncio.sleep(pause_s(self._failures))

    async def _something_to_send(self) -> None:
        while not self._queue:
            self._wake.clear()
            await self._wake.wait()

    def _recover(self, problem: ClientError) -> bool:
        """The stream is lost: what was in flight is sent again, or fails. Whether the next one should wait a moment."""
        lost = {batch.partition: None for batch in self._unanswered}
        had_any = bool(self._unanswered)
        self._unanswered.clear()
        for queue in lost:
            for batch in queue.in_flight:
                if batch.is_done:
                    continue
                batch.problem = problem
                if problem.retryable:
                    batch.attempts += 1
                    queue.retry.append(batch)
                else:
                    self._finish(batch, problem)
            queue.in_flight.clear()
            self.offer(queue)
        if not problem.retryable and (not had_any or isinstance(problem, Closed)):
            # What waits would fare no better: there is no stream to be had.
            self._fail_queued(problem)
        return had_any or bool(self._queue)

    def _fail_queued(self, problem: ClientError) -> None:
        while self._queue:
            queue = self._queue.popleft()
            queue.is_queued = False
            waiting = queue.all()
            queue.retry.clear()
            queue.ready.clear()
            queue.open = None
            for batch in waiting:
                self._finish(batch, problem)

    async def _converse(self, stream: RequestStream) -> None:
        """Send and take answers, until the stream ends. Raises ClientError."""
        reader = asyncio.ensure_future(self._take_answers(stream))
        reader.add_done_callback(lambda _: self._wake.set())
        try:
            while not reader.done():
                batch = self._next()
                if batch is None:
                    self._wake.clear()
                    if not self._queue and not reader.done():
                        await self._wake.wait()
                    continue
                queue = batch.partition
                if self._new_id is not None and batch.sequence < 0:
                    await self._number(queue, batch)
                batch.sent_s = asyncio.get_running_loop().time()
                self._unanswered.append(batch)
                await stream.write(batch.request(self._topic, self._required_acks))
            await reader
        finally:
            await end(reader)

    def _next(self) -> Batch | None:
        """The batch to be sent now."""
        now_s = asyncio.get_running_loop().time()
        while self._queue:
            queue = self._queue.popleft()
            queue.is_queued = False
            batch = queue.take(self._max_in_flight, now_s)
            if batch is not None:
                if queue.may_send and len(queue.in_flight) < self._max_in_flight:
                    self.offer(queue)
                return batch
        return None

    async def _number(self, queue: PartitionQueue, batch: Batch) -> None:
        """Give a batch that is sent for the first time its place in the producer's sequence. Raises ClientError; then
        the batch is in flight and has none.
        """
        if queue.producer is None or queue.needs_id:
            assert self._new_id is not None
            try:
                queue.producer = await self._new_id() if queue.needs_id else self._first_id
            except ClientError:
                # As if it had been sent: _recover takes it back.
                self._unanswered.append(batch)
                raise
            queue.needs_id = False
            queue.next_sequence = 0
        batch.producer = queue.producer
        batch.sequence = queue.next_sequence
        queue.next_sequence += batch.records.count

    # Answers

    async def _take_answers(self, stream: RequestStream) -> None:
        while (data := await stream.read()) is not None:
            answer = pb.ProduceMessageResponse.FromString(data)
            self._failures = 0
            batch = self._unanswered.popleft()
            queue = batch.partition
            queue.in_flight.remove(batch)
            if answer.code:
                self._refused(queue, batch, client_error(answer.code, answer.error, answer.reason))
            else:
                self._finish(batch, answer)
            self._go_on(queue)

    def _refused(self, queue: PartitionQueue, batch: Batch, problem: ClientError) -> None:
        if batch.is_done:
            return
        out_of_sequence = problem.reason in _OUT_OF_SEQUENCE and self._new_id is not None
        if not out_of_sequence and not problem.retryable:
            self._finish(batch, problem)
            return
        if out_of_sequence and not queue.retry:
            # Not for one before it that is to be sent again: the broker does not know the count any more, and can't
            # have stored this one.
            queue.needs_id = True
        batch.problem = problem
        batch.attempts += 1
        queue.retry.append(batch)

    def _go_on(self, queue: PartitionQueue) -> None:
        """A partition may send again, when it has something."""
        if not queue.retry:
            if queue.ready or queue.open is not None:
                self.offer(queue)
        elif not queue.in_flight:
            delay_s = pause_s(queue.retry[0].attempts)
            loop = asyncio.get_running_loop()
            queue.blocked_until_s = loop.time() + delay_s
            loop.call_later(delay_s + 0.001, self.offer, queue)
