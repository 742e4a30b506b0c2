"""Produce: from a request's bytes to an offset, and the answer when the promise asked for is kept."""

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from takhin.broker.producers import Producers
from takhin.broker.topics import Topic, Topics, partition_of
from takhin.codec.messages import ProduceRequest, encode_produce_failure
from takhin.config import Limits
from takhin.errors import Reason, TakhinError, error
from takhin.log.partition import Partition

# takhin.v1.Durability, by required_acks.
ACKS_NONE, ACKS_WRITTEN, ACKS_DURABLE = 0, 1, -1
_DURABILITY = {ACKS_NONE: 1, ACKS_WRITTEN: 2, ACKS_DURABLE: 3}


class RequestStream(Protocol):
    """A call whose client sends requests and gets answers."""

    async def read(self) -> bytes | None: ...

    async def write(self, message: bytes) -> None: ...


class TopicSource(Protocol):
    """Where a request finds its topic: Topics, or what of them somebody may write to."""

    def get_encoded(self, name: bytes) -> Topic: ...


@dataclass(slots=True)
class _Pending:
    """An answer that is right once `done` gives None; otherwise it gives why the append failed."""

    response: bytes
    done: "Future[tuple[Reason, str] | None]"
    timeout_ms: int
    partition: Partition

    async def result(self) -> bytes:
        """The answer. Raises what the write or the sync failed with, ACK_TIMEOUT."""
        if self.timeout_ms:
            try:
                failure = await asyncio.wait_for(self.done, self.timeout_ms / 1000)
            except TimeoutError:
                raise error(
                    Reason.ACK_TIMEOUT,
                    f"no acknowledgement within timeout_ms ({self.timeout_ms}): the records are appended, whether they "
                    "are on the disk is unknown",
                    topic=self.partition.topic, partition=self.partition.partition,
                ) from None
        else:
            failure = await self.done
        if failure is not None:
            raise error(*failure, topic=self.partition.topic, partition=self.partition.partition)
        return self.response


class Producing:
    """Takes produce requests as bytes. clock_ms: milliseconds since the epoch."""

    def __init__(self, topics: Topics, producers: Producers, limits: Limits, clock_ms: Callable[[], int]):
        self._topics = topics
        self._producers = producers
        self._limits = limits
        self._clock_ms = clock_ms
        self._request = ProduceRequest(limits.records_per_request)
        self._readers: set[asyncio.Task[None]] = set()
        self._draining = False
        # Of requests on all produce streams that are not answered.
        self.streams_bytes = 0

    def begin_drain(self) -> None:
        """Refuse what comes from now on; streams answer what they have read, and end."""
        self._draining = True
        for reader in self._readers:
            reader.cancel()

    async def produce(self, request: bytes) -> bytes:
        """Append the records of a ProduceMessageRequest; returns the encoded answer.

        Raises what the request is refused for (see ProduceRequest.read and _append), what the append failed with.
        """
        answer = self._append(request, self._topics)
        return answer if type(answer) is bytes else await answer.result()

    async def produce_to(self, request: bytes, topics: TopicSource) -> bytes:
        """As produce(), to these topics alone."""
        answer = self._append(request, topics)
        return answer if type(answer) is bytes else await answer.result()

    async def produce_stream(self, call: RequestStream, topics: TopicSource | None = None) -> None:
        """Answer each request of the stream, in order, while the following ones are read. topics: None: all there are.

        A refused request is answered with error, code and reason, and the stream goes on.
        """
        if self._draining:
            raise draining_error()
        stream = _ProduceStream(self, call, self._limits, topics or self._topics)
        reader = asyncio.ensure_future(stream.read_requests())
        reader.add_done_callback(stream.end_of_requests)
        self._readers.add(reader)
        try:
            await stream.write_answers(reader)
        finally:
            self._readers.discard(reader)
            reader.cancel()
            stream.close()
        if self._draining:
            raise draining_error()

    def _append(self, request: bytes, topics: TopicSource) -> bytes | _Pending:
        if self._draining:
            raise draining_error()
        scan = self._request
        scan.read(request)
        topic = topics.get_encoded(scan.topic)
        acks = scan.required_acks
        durability = _DURABILITY.get(acks)
        if durability is None:
            raise error(
                Reason.INVALID_ACKS, f"required_acks {acks} is not known: 0 (none), 1 (written) or -1 (durable)"
            )
        if scan.timeout_ms < 0:
            raise error(Reason.INVALID_LIMIT, f"timeout_ms {scan.timeout_ms} is negative; 0 waits without a limit")
        check_record_sizes(topic, scan)
        number = scan.partition
        if scan.is_conditional:
            partition = named_partition(topic, scan)
            if scan.has_producer:
                self._producers.check(scan.producer_id, scan.producer_epoch)
            known = partition.check(scan, durability)
            if known is not None:
                return _answered_again(partition, *known, acks, scan.timeout_ms)
        partition = choose_partition(topic, scan) if number == -1 else partition_of(topic, number)
        response = partition.append(scan, self._clock_ms(), durability)
        if acks == ACKS_NONE:
            return response
        if acks == ACKS_WRITTEN:
            return _Pending(response, partition.written(), 0, partition)
        return _Pending(response, partition.durable(), scan.timeout_ms, partition)

    def answer(self, request: bytes, topics: TopicSource) -> bytes | _Pending:
        """As _append, with a refusal as an answer."""
        try:
            return self._append(request, topics)
        except TakhinError as refusal:
            return self.failure(refusal)

    def failure(self, refusal: TakhinError) -> bytes:
        """A ProduceMessageResponse that tells of an error."""
        return encode_produce_failure(
            refusal.metadata.get("topic", "").encode(), int(refusal.metadata.get("partition", 0)), refusal.message,
            refusal.code, refusal.reason.value,
        )


class _ProduceStream:
    """One produce stream: requests are read and appended by one task, answers written by another."""

    def __init__(self, producing: Producing, call: RequestStream, limits: Limits, topics: TopicSource):
        self._topics = topics
        self._producing = producing
        self._call = call
        self._max_requests = limits.stream_requests_in_flight
        self._max_bytes = limits.stream_bytes_in_flight
        self._max_bytes_of_all = limits.all_streams_bytes_in_flight
        self._answers: deque[tuple[bytes | _Pending, int]] = deque()
        self._bytes = 0
        self._changed: Future[None] | None = None
        self._ended = False

    async def read_requests(self) -> None:
        """Until the client has sent its last; waits while too much is unanswered."""
        while (request := await self._call.read()) is not None:
            size_bytes = len(request)
            self._answers.append((self._producing.answer(request, self._topics), size_bytes))
            # Not to hold it, uncounted, until the next one comes.
            del request
            self._count(size_bytes)
            self._wake()
            while self._has_enough():
                await self._change()

    def _has_enough(self) -> bool:
        """Whether nothing more is read until an answer was written. Who has none to wait for is never held up."""
        if len(self._answers) >= self._max_requests or self._bytes >= self._max_bytes:
            return True
        return self._producing.streams_bytes >= self._max_bytes_of_all and bool(self._answers)

    def _count(self, size_bytes: int) -> None:
        self._bytes += size_bytes
        self._producing.streams_bytes += size_bytes

    def end_of_requests(self, reader: "asyncio.Task[None]") -> None:
        """The task of read_requests has ended, perhaps before it began."""
        self._ended = True
        self._wake()

    async def write_answers(self, reader: "asyncio.Task[None]") -> None:
        """Until the reader has ended and everything is answered. Raises what the reader failed with."""
        while True:
            while not self._answers:
                if self._ended:
                    if not reader.cancelled():
                        reader.result()
                    return
                await self._change()
            answer, size_bytes = self._answers[0]
            if type(answer) is not bytes:
                try:
                    answer = await answer.result()
                except TakhinError as failure:
                    answer = self._producing.failure(failure)
            await self._call.write(answer)
            self._answers.popleft()
            self._count(-size_bytes)
            self._wake()

    def close(self) -> None:
        """What was not answered is not counted any more."""
        self._count(-self._bytes)

    # Only one of the two tasks ever waits: the reader when there is too much, the writer when there is nothing.

    async def _change(self) -> None:
        self._changed = asyncio.get_running_loop().create_future()
        await self._changed

    def _wake(self) -> None:
        if self._changed is not None:
            if not self._changed.done():
                self._changed.set_result(None)
            self._changed = None


def check_record_sizes(topic: Topic, scan: ProduceRequest) -> None:
    """Raises RECORD_TOO_LARGE."""
    if scan.largest_record_bytes > topic.config.max_record_bytes:
        raise error(
            Reason.RECORD_TOO_LARGE,
            f"a record of {scan.largest_record_bytes} bytes is larger than max.message.bytes of {topic.name!r}, "
            f"{topic.config.max_record_bytes}",
            topic=topic.name, max_record_bytes=topic.config.max_record_bytes,
        )


def named_partition(topic: Topic, scan: ProduceRequest) -> Partition:
    """Of a request that is conditional. Raises INVALID_PARTITION, PARTITION_NOT_FOUND."""
    if scan.partition == -1:
        raise error(
            Reason.INVALID_PARTITION,
            "a request with producer or expected_offset names its partition: what they say is said of one",
            topic=topic.name, partition=-1,
        )
    return partition_of(topic, scan.partition)


def choose_partition(topic: Topic, scan: ProduceRequest) -> Partition:
    """By the records' key; without one, the same partition for all of a batch, then the next."""
    number = scan.key_partition(len(topic.partitions))
    if number < 0:
        if scan.is_batch or not topic.partitions[topic.sticky].unwritten:
            topic.sticky = (topic.sticky + 1) % len(topic.partitions)
        number = topic.sticky
    return topic.partitions[number]


def _answered_again(
    partition: Partition, response: bytes, end_offset: int, acks: int, timeout_ms: int
) -> bytes | _Pending:
    """The answer to a duplicate whose records lie below end_offset: when its own required_acks is reached."""
    if acks == ACKS_NONE:
        return response
    done = partition.written_to(end_offset) if acks == ACKS_WRITTEN else partition.durable_to(end_offset)
    return response if done is None else _Pending(response, done, timeout_ms if acks == ACKS_DURABLE else 0, partition)


def draining_error() -> TakhinError:
    """What is told to who comes while the broker shuts down."""
    return error(Reason.DRAINING, "the broker is shutting down; try again")
