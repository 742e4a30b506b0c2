"""A transaction: records for several partitions, and a group's offsets with them, all of it or nothing."""

import asyncio
from types import TracebackType

from takhin.client.admin import Admin
from takhin.client.consumer import Consumer
from takhin.client.errors import ClientError, Closed
from takhin.client.messages import Message
from takhin.client.partitioner import Partitioner
from takhin.client.record_batch import RecordMetadata
from takhin.client.retry import pause_s
from takhin.client.transport import SERVICE, Transport
from takhin.client.types import Encode, Headers, NextOffsets, TopicPartition
from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb

_OUT_OF_SEQUENCE = (Reason.SEQUENCE_GAP, Reason.PRODUCER_UNKNOWN)


class TransactionProducer:
    """Who a client's transactions are produced by, one after the other: so that one that has to be sent again is
    known."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lock = asyncio.Lock()
        self._id: tuple[int, int] | None = None
        self._sequences: dict[TopicPartition, int] = {}

    async def produce(
        self, request: pb.ProduceTransactionRequest, timeout_s: float
    ) -> pb.ProduceTransactionResponse:
        """Raises what it is refused with; nothing was done then, unless the error says that nobody knows."""
        async with self._lock:
            try:
                return await self._produce(request, timeout_s)
            except BaseException:
                # Whether the last ones were counted is not known everywhere: the next one begins anew.
                self._id = None
                raise

    async def _produce(self, request: pb.ProduceTransactionRequest, timeout_s: float) -> pb.ProduceTransactionResponse:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        attempts = 0
        is_numbered = was_renumbered = False
        while True:
            try:
                if not is_numbered:
                    await self._number(request)
                    is_numbered = True
                answer = pb.ProduceTransactionResponse.FromString(await self._transport.unary(
                    SERVICE + "ProduceTransaction", request.SerializeToString(), max(until_s - loop.time(), 0.001)))
                break
            except ClientError as problem:
                attempts += 1
                if problem.reason in _OUT_OF_SEQUENCE and not was_renumbered:
                    # The broker lost count of what came before this one, of which it has nothing then.
                    self._id = None
                    is_numbered, was_renumbered = False, True
                    continue
                delay_s = pause_s(attempts)
                if not problem.retryable or loop.time() + delay_s >= until_s:
                    raise
                await asyncio.sleep(delay_s)
        for append in request.appends:
            self._sequences[TopicPartition(append.topic, append.partition)] += len(append.records)
        return answer

    async def _number(self, request: pb.ProduceTransactionRequest) -> None:
        """Each append with the producer's id and its place in the sequence."""
        if self._id is None:
            init = pb.InitProducerResponse.FromString(
                await self._transport.unary(SERVICE + "InitProducer", pb.InitProducerRequest().SerializeToString()))
            self._id = init.id, init.epoch
            self._sequences.clear()
        for append in request.appends:
            append.producer.id, append.producer.epoch = self._id
            append.producer.sequence = self._sequences.setdefault(TopicPartition(append.topic, append.partition), 0)


class Transaction:
    """Collects records and offsets; leaving it (`async with`) stores all of them, durably, or none. Made by
    Client.transaction(). When the program raises within it, nothing is sent.

    results: once it is stored, where each record is, in the order of send().
    """

    def __init__(
        self, admin: Admin, producer: TransactionProducer, *, consumer: Consumer | None, group: str, timeout_s: float,
        encode: Encode
    ) -> None:
        if consumer is not None and group:
            raise ValueError("give the consumer, whose group is meant, or a group without members; not both")
        self.results: list[RecordMetadata] = []
        self._admin = admin
        self._producer = producer
        self._consumer = consumer
        self._group = consumer.group if consumer is not None else group
        self._timeout_s = timeout_s
        self._encode = encode
        # (topic, partition or None, key, encoded, timestamp)
        self._records: list[tuple[str, int | None, bytes | None, bytes, int]] = []
        self._offsets: dict[TopicPartition, int] = {}
        self._is_ended = False

    async def __aenter__(self) -> "Transaction":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and not self._is_ended:
            await self.store()
        self._is_ended = True

    def send(
        self, topic: str, value: bytes | None, *, key: bytes | None = None, headers: Headers | None = None,
        partition: int | None = None, timestamp_ms: int = 0
    ) -> None:
        """A record to be stored with the others. partition None: by the key; without one, one for all of the topic's
        records without.
        """
        self._check_open()
        self._records.append((topic, partition, key, self._encode(key, value, headers, timestamp_ms), timestamp_ms))

    def commit(self, what: Message | NextOffsets) -> None:
        """Offsets to be committed with the records: up to and with a message, or the next offsets to read."""
        self._check_open()
        if not self._group:
            raise ValueError("a transaction that commits offsets is made with a consumer, or a group")
        if isinstance(what, Message):
            what = {(what.topic, what.partition): what.offset + 1}
        for place, offset in what.items():
            self._offsets[TopicPartition(*place)] = offset

    def _check_open(self) -> None:
        if self._is_ended:
            raise Closed("the transaction has ended")

    async def store(self) -> None:
        """Store it now. `async with` does it, where the program has not. Without records nothing but the offsets is
        committed.

        Raises FencedGeneration when a partition is no longer the consumer's, ResourceExhausted, DeadlineExceeded (then
        nobody knows: all of it, or nothing), and what else a record or an offset may be refused with.
        """
        self._check_open()
        self._is_ended = True
        if not self._records:
            if self._offsets:
                await self._commit_alone()
            return
        request, places = await self._request()
        answer = await self._producer.produce(request, self._timeout_s)
        for number, place, timestamp_ms in places:
            append = answer.appends[number]
            self.results.append(RecordMetadata(
                append.topic, append.partition, append.offset + place, timestamp_ms or append.timestamp))
        if self._consumer is not None:
            self._consumer.was_committed(self._offsets)

    async def _commit_alone(self) -> None:
        if self._consumer is not None:
            await self._consumer.commit(self._offsets)
        else:
            await self._admin.commit_offsets(self._group, self._offsets)

    async def _request(self) -> tuple[pb.ProduceTransactionRequest, list[tuple[int, int, int]]]:
        """The request, and for each record the append it is in, its place there, and its timestamp."""
        partitioners = await self._partitioners()
        request = pb.ProduceTransactionRequest(group_id=self._group if self._offsets else "")
        numbers: dict[TopicPartition, int] = {}
        counts: list[int] = []
        payloads: list[list[bytes]] = []
        places = []
        for topic, partition, key, record, timestamp_ms in self._records:
            place = TopicPartition(topic, partitioners[topic].choose(key) if partition is None else partition)
            number = numbers.setdefault(place, len(numbers))
            if number == len(counts):
                counts.append(0)
                payloads.append([])
            places.append((number, counts[number], timestamp_ms))
            counts[number] += 1
            payloads[number].append(record)
        for place, number in numbers.items():
            append = pb.ProduceMessageRequest.FromString(b"".join(payloads[number]))
            append.topic, append.partition, append.required_acks = place.topic, place.partition, -1
            request.appends.append(append)
        for offset_of, offset in self._offsets.items():
            request.offsets.add(topic=offset_of.topic, partition=offset_of.partition, offset=offset)
        if self._offsets and self._consumer is not None:
            request.member_id, request.generation = self._consumer.membership
        return request, places

    async def _partitioners(self) -> dict[str, Partitioner]:
        """Of the topics for which it is to be chosen."""
        names = sorted({topic for topic, partition, *_ in self._records if partition is None})
        found = {}
        for topic in await self._admin.describe_topics(names) if names else ():
            found[topic.name] = Partitioner()
            found[topic.name].set_partitions(len(topic.partitions))
        return found
