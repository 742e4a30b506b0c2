"""What a soak does to a broker: calls that must not get lost, and calls that come to no good end, side by side.

Every record's value is a number of its own. Of each it is known what became of it: acknowledged, refused, or unknown
(its call was cancelled, timed out or cut off, so it may be in the log or not).
"""

import asyncio
import random
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import grpc

from bench import environment, http2
from takhin.v1 import takhin_pb2 as pb
from takhin.v1 import takhin_pb2_grpc

# No call here takes so long unless it is lost.
CALL_TIMEOUT_S = 30.0
VALUE_BYTES = 200
CHANNEL_OPTIONS = (*environment.CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
StatusCode = grpc.StatusCode


class SoakFailed(Exception):
    """A call was lost, or a record is not where it must be, or memory grew."""


@dataclass
class Book:
    """What became of a topic's records. sent: all; acked: those among them that must be in the log, with their
    offsets."""

    topic: str
    sent: set[int] = field(default_factory=set)
    acked: dict[int, int] = field(default_factory=dict)


@dataclass
class Churn:
    """One round against `address`: `steady` is written by callers that see every call to its end, `torn` by those that
    don't. counts: how often each thing was done."""

    address: str
    steady: Book
    torn: Book
    counts: Counter[str]
    numbers: Iterator[int]
    until_s: float
    random: random.Random

    @property
    def is_over(self) -> bool:
        return asyncio.get_running_loop().time() >= self.until_s

    # Requests

    def request(self, book: Book) -> tuple[int, bytes]:
        number = next(self.numbers)
        book.sent.add(number)
        value = number.to_bytes(8) + bytes(VALUE_BYTES - 8)
        request = pb.ProduceMessageRequest(topic=book.topic, required_acks=1, record=pb.Record(value=value))
        return number, request.SerializeToString()

    def note(self, book: Book, number: int, answer: bytes) -> None:
        response = pb.ProduceMessageResponse.FromString(answer)
        if response.code or response.record_count != 1:
            raise SoakFailed(f"record {number} was refused: {response.reason} {response.error}")
        book.acked[number] = response.offset

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)

    # Calls that must not get lost

    async def unary(self, channel: grpc.aio.Channel, count: int) -> None:
        call = channel.unary_unary(environment.PRODUCE)
        for _ in range(count):
            number, request = self.request(self.steady)
            compression = grpc.Compression.Gzip if self.random.random() < 0.05 else None
            self.note(self.steady, number, await call(request, timeout=CALL_TIMEOUT_S, compression=compression))
            self.counts["unary"] += 1

    async def keeper(self) -> None:
        """One channel for all of the round: its connection grows old meanwhile, and is taken leave of."""
        async with self.channel() as channel:
            while not self.is_over:
                await asyncio.gather(*(self.unary(channel, 5) for _ in range(4)))

    async def newcomer(self) -> None:
        """A connection for some calls, again and again."""
        while not self.is_over:
            async with self.channel() as channel:
                await self.unary(channel, self.random.randint(1, 10))
            self.counts["connections"] += 1

    async def streamer(self) -> None:
        """Produce streams, each seen to its end: every request is answered, in order."""
        while not self.is_over:
            async with self.channel() as channel:
                for _ in range(5):
                    await self._stream(channel, self.random.randint(1, 200))

    async def _stream(self, channel: grpc.aio.Channel, count: int) -> None:
        call = channel.stream_stream(environment.PRODUCE_STREAM)(timeout=CALL_TIMEOUT_S)
        numbers = []

        async def write() -> None:
            for _ in range(count):
                number, request = self.request(self.steady)
                numbers.append(number)
                await call.write(request)
            await call.done_writing()

        writing = asyncio.create_task(write())
        answered = 0
        while (answer := await call.read()) is not grpc.aio.EOF:
            self.note(self.steady, numbers[answered], answer)
            answered += 1
        await writing
        if await call.code() is not StatusCode.OK or answered != count:
            raise SoakFailed(f"a produce stream ended with {await call.code()}: {answered} answers for {count}")
        self.counts["streams"] += 1

    # Calls that come to no good end

    async def canceller(self) -> None:
        """Streams that are cancelled with requests on their way."""
        async with self.channel() as channel:
            while not self.is_over:
                call = channel.stream_stream(environment.PRODUCE_STREAM)()
                numbers = []
                for _ in range(self.random.randint(1, 50)):
                    number, request = self.request(self.torn)
                    numbers.append(number)
                    await call.write(request)
                for number in numbers[:self.random.randint(0, len(numbers))]:
                    self.note(self.torn, number, await call.read())
                call.cancel()
                self.counts["streams cancelled"] += 1

    async def hasty(self) -> None:
        """Unary calls with deadlines that may or may not be met, or cancelled as they are."""
        async with self.channel() as channel:
            call = channel.unary_unary(environment.PRODUCE)
            while not self.is_over:
                number, request = self.request(self.torn)
                under_way = call(request, timeout=self.random.choice((0.0005, 0.001, 0.002, 0.005)))
                if self.random.random() < 0.3:
                    await asyncio.sleep(0)
                    under_way.cancel()
                try:
                    self.note(self.torn, number, await under_way)
                    self.counts["deadlines met"] += 1
                except asyncio.CancelledError:
                    if not under_way.cancelled():
                        raise
                    self.counts["unary cancelled"] += 1
                except grpc.aio.AioRpcError as failure:
                    if failure.code() is not StatusCode.DEADLINE_EXCEEDED:
                        raise
                    self.counts["deadlines missed"] += 1

    async def vanisher(self) -> None:
        """Connections that are cut off within calls and within a frame, with and without a reset."""
        headers = http2.call_headers(environment.PRODUCE_STREAM)
        while not self.is_over:
            connection = await asyncio.to_thread(http2.Connection, self.address)
            with connection:
                for _ in range(self.random.randint(1, 20)):
                    _, request = self.request(self.torn)
                    stream = connection.next_stream()
                    connection.send(http2.open_call(stream, headers) + http2.message(stream, request))
                # The last thing is part of a frame.
                connection.send(http2.message(stream, request)[:self.random.randint(0, 100)])
                if self.random.random() < 0.5:
                    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.counts["connections cut"] += 1
            await asyncio.sleep(0.01)

    # Readers

    async def reader(self) -> None:
        """Reads that are cancelled after some responses, and some that are never read."""
        async with self.channel() as channel:
            stub = takhin_pb2_grpc.TakhinServiceStub(channel)
            while not self.is_over:
                request = pb.ConsumeMessagesRequest(topic=self.steady.topic, offset=0, max_bytes=4096, max_wait_ms=50)
                call = stub.ConsumeMessages(request)
                due = 0
                for _ in range(self.random.randint(0, 20)):
                    response = await call.read()
                    for record in response.records:
                        if record.offset != due:
                            raise SoakFailed(f"a reader got offset {record.offset} where {due} was due")
                        due += 1
                call.cancel()
                self.counts["readers"] += 1
                await asyncio.sleep(0)

    async def member(self) -> None:
        """Members of a group that come and go."""
        while not self.is_over:
            async with self.channel() as channel:
                call = takhin_pb2_grpc.TakhinServiceStub(channel).Subscribe()
                start = pb.SubscribeStart(group_id=f"soak-{self.steady.topic}", topics=[self.steady.topic])
                await call.write(pb.SubscribeRequest(start=start))
                if not (await call.read()).HasField("joined"):
                    raise SoakFailed("a member's first response is not joined")
                await asyncio.sleep(self.random.random() * 0.1)
                if self.random.random() < 0.5:
                    await call.write(pb.SubscribeRequest(leave=pb.Leave()))
                    await call.done_writing()
                else:
                    call.cancel()
            self.counts["members"] += 1

    async def run(self) -> None:
        """All of them at once until the time is over. Raises the first failure."""
        everybody: list[Callable[[], Awaitable[None]]] = [
            self.keeper, self.newcomer, self.newcomer, self.streamer, self.streamer, self.canceller, self.hasty,
            self.hasty, self.vanisher, self.reader, self.member]
        async with asyncio.TaskGroup() as group:
            for each in everybody:
                group.create_task(_named(each))


async def _named(work: Callable[[], Awaitable[None]]) -> None:
    """A call that fails where none may is a call lost; told with who made it."""
    name = getattr(work, "__name__", "?")
    try:
        await work()
    except grpc.aio.AioRpcError as failure:
        raise SoakFailed(f"{name}: {failure.code().name}: {failure.details()}") from failure
    except OSError as failure:
        raise SoakFailed(f"{name}: {failure}") from failure
