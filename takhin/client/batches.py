"""What a producer has not been answered for yet: batches, by partition, in the order in which they are to be stored."""

import asyncio
from collections import deque

from takhin.client.errors import ClientError
from takhin.client.record_batch import RecordBatch, RecordMetadata
from takhin.v1 import takhin_pb2 as pb

Delivery = asyncio.Future[RecordMetadata]
# What a record costs beside its encoded bytes, counted against buffer_bytes: its future, 152 bytes, the object that has
# the bytes, 33, and a place in two lists.
RECORD_OVERHEAD_BYTES = 200


class Batch:
    """Records of one partition that are stored together. Once it was sent it stays as it is: what is sent again is
    known by the broker as the same.
    """

    __slots__ = (
        "attempts", "is_done", "is_due", "opened_s", "partition", "problem", "producer", "records", "sent_s",
        "sequence", "waiter",
    )

    def __init__(self, partition: "PartitionQueue", opened_s: float) -> None:
        self.partition = partition
        self.records = RecordBatch()
        self.opened_s = opened_s
        self.sent_s = 0.0
        self.is_due = False
        self.is_done = False
        # The producer's id and epoch, and the sequence of the first record; -1: not yet.
        self.producer: tuple[int, int] | None = None
        self.sequence = -1
        self.attempts = 0
        # Why the last attempt failed.
        self.problem: ClientError | None = None
        self.waiter: asyncio.Future[None] | None = None

    @property
    def buffered_bytes(self) -> int:
        """What it counts for in the producer's buffer. A batch that came encoded has one future for all its records."""
        return self.records.size_bytes + RECORD_OVERHEAD_BYTES * len(self.records.deliveries)

    def request(self, topic: str, required_acks: int) -> bytes:
        """The ProduceMessageRequest."""
        head = pb.ProduceMessageRequest(
            topic=topic, partition=self.partition.number, required_acks=required_acks)
        if self.producer is not None:
            head.producer.id, head.producer.epoch = self.producer
            head.producer.sequence = self.sequence
        return head.SerializeToString() + self.records.payload()

    def finish(self) -> None:
        """It is answered, or given up: whoever waits for it goes on."""
        self.is_done = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def done(self) -> "asyncio.Future[None]":
        """A future of its end."""
        if self.waiter is None:
            self.waiter = asyncio.get_running_loop().create_future()
        return self.waiter


class PartitionQueue:
    """The batches of one partition: in_flight were sent and are not answered; retry are to be sent again, once nothing
    is in flight; ready are full or due; open takes records.
    """

    __slots__ = (
        "blocked_until_s", "in_flight", "is_queued", "needs_id", "next_sequence", "number", "open", "producer", "ready",
        "retry",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.open: Batch | None = None
        self.ready: deque[Batch] = deque()
        self.in_flight: deque[Batch] = deque()
        self.retry: deque[Batch] = deque()
        # Of an idempotent producer: who it is here, and what it counts on with. Anew where the broker lost count.
        self.producer: tuple[int, int] | None = None
        self.next_sequence = 0
        self.needs_id = False
        self.blocked_until_s = 0.0
        self.is_queued = False

    def all(self) -> list[Batch]:
        """In the order in which they are to be stored."""
        found = [*self.retry, *self.in_flight, *self.ready]
        return [*found, self.open] if self.open is not None else found

    def close_open(self) -> None:
        """What was collected goes out next."""
        if self.open is not None:
            self.ready.append(self.open)
            self.open = None

    def take(self, max_in_flight: int, now_s: float) -> Batch | None:
        """The batch to be sent now, if there is one; it counts as in flight from now on."""
        if self.retry:
            if self.in_flight or now_s < self.blocked_until_s:
                return None
            if self.needs_id:
                # Nothing of these was stored, nor of those behind them: they get new numbers.
                for batch in (*self.retry, *self.ready):
                    batch.sequence = -1
            self.ready.extendleft(reversed(self.retry))
            self.retry.clear()
        if self.open is not None and not self.ready and (self.open.is_due or not self.in_flight):
            self.close_open()
        if not self.ready or len(self.in_flight) >= max_in_flight:
            return None
        batch = self.ready.popleft()
        self.in_flight.append(batch)
        return batch

    @property
    def may_send(self) -> bool:
        """Whether another take may give something."""
        return bool(self.ready or (self.open is not None and self.open.is_due)) and not self.retry
