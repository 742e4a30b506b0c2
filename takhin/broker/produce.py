"""Produce: from a request's bytes to an offset, and the answer when the promise asked for is kept."""

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from takhin.broker.appending import Appending, ack_timeout, append_error, draining_error, failure_answer
from takhin.broker.producers import Producers
from takhin.broker.topics import Topics, TopicSource
from takhin.config import Limits
from takhin.errors import Reason, TakhinError
from takhin.log.partition import Partition

# Of required_acks.
ACKS_NONE, ACKS_WRITTEN, ACKS_DURABLE = 0, 1, -1


class RequestStream(Protocol):
    """A call whose client sends requests and gets answers."""

    async def read(self) -> bytes | None: ...

    async def write(self, message: bytes) -> None: ...


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
                raise ack_timeout(self.partition, self.timeout_ms) from None
        else:
            failure = await self.done
        if failure is not None:
            raise append_error(self.partition, failure)
        return self.response


class Producing:
    """Takes produce requests as bytes. clock_ms: milliseconds since the epoch. appending: for whoever does without
    coroutines."""

    def __init__(self, topics: Topics, producers: Producers, limits: Limits, clock_ms: Callable[[], int]):
        self._limits = limits
        self.appending = Appending(topics, producers, limits, clock_ms)
        self._readers: set[asyncio.Task[None]] = set()

    @property
    def streams_bytes(self) -> int:
        """Of requests on all produce streams that are not answered."""
        return self.appending.streams_bytes

    def begin_drain(self) -> None:
        """Refuse what comes from now on; streams answer what they have read, and end."""
        self.appending.begin_drain()
        for reader in self._readers:
            reader.cancel()

    async def produce(self, request: bytes) -> bytes:
        """Append the records of a ProduceMessageRequest; returns the encoded answer.

        Raises what the request is refused for (see Appending.append), what the append failed with.
        """
        answer = self._append(request, None)
        return answer if type(answer) is bytes else await answer.result()

    async def produce_to(self, request: bytes, topics: TopicSource) -> bytes:
        """As produce(), to these topics alone."""
        answer = self._append(request, topics)
        return answer if type(answer) is bytes else await answer.result()

    async def produce_stream(self, call: RequestStream, topics: TopicSource | None = None) -> None:
        """Answer each request of the stream, in order, while the following ones are read. topics: None: all there are.

        A refused request is answered with error, code and reason, and the stream goes on.
        """
        if self.appending.is_draining:
            raise draining_error()
        stream = _ProduceStream(self, call, self._limits, topics)
        reader = asyncio.ensure_future(stream.read_requests())
        reader.add_done_callback(stream.end_of_requests)
        self._readers.add(reader)
        try:
            await stream.write_answers(reader)
        finally:
            self._readers.discard(reader)
            reader.cancel()
            stream.close()
        if self.appending.is_draining:
            raise draining_error()

    def _append(self, request: bytes, topics: TopicSource | None) -> bytes | _Pending:
        appending = self.appending
        response = appending.append(request, topics)
        done = appending.wait()
        return response if done is None else _Pending(response, done, appending.timeout_ms, appending.partition)

    def answer(self, request: bytes, topics: TopicSource | None) -> bytes | _Pending:
        """As _append, with a refusal as an answer."""
        try:
            return self._append(request, topics)
        except TakhinError as refusal:
            return failure_answer(refusal)


class _ProduceStream:
    """One produce stream: requests are read and appended by one task, answers written by another."""

    def __init__(self, producing: Producing, call: RequestStream, limits: Limits, topics: TopicSource | None):
        self._topics = topics
        self._producing = producing
        self._appending = producing.appending
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
        return self._appending.streams_bytes >= self._max_bytes_of_all and bool(self._answers)

    def _count(self, size_bytes: int) -> None:
        self._bytes += size_bytes
        self._appending.streams_bytes += size_bytes

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
                    answer = failure_answer(failure)
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
