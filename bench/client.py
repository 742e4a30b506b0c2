"""The loads: grpc.aio on uvloop with raw bytes, serialized before the clock starts, so that the client is not measured.

Every load returns a Measurement and what the server answered, for bench.checks to hold against the log afterwards.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc

from bench import environment
from takhin.v1 import takhin_pb2 as pb
from takhin.v1 import takhin_pb2_grpc

# What one load may put into a topic: bounds disk and read-back when a round is told to be long.
MAX_LOAD_BYTES = 1 << 30


class LoadFailed(Exception):
    """A load did not do what it was to measure: a refused request, a lost answer, a record that is not in the log."""


@dataclass(frozen=True)
class Target:
    """A server under load. `cpu_s` reads its CPU time; `bare` tells the bare server from the broker."""

    channel: grpc.aio.Channel
    cpu_s: Callable[[], float]
    bare: bool

    @property
    def stub(self) -> takhin_pb2_grpc.TakhinServiceStub:
        return takhin_pb2_grpc.TakhinServiceStub(self.channel)


@asynccontextmanager
async def connect(address: str, cpu_s: Callable[[], float], *, bare: bool) -> AsyncIterator[Target]:
    """A channel to `address`, connected. TimeoutError when that takes more than 10 s."""
    async with grpc.aio.insecure_channel(address, options=environment.CHANNEL_OPTIONS) as channel:
        await asyncio.wait_for(channel.channel_ready(), 10)
        yield Target(channel, cpu_s, bare)


@dataclass
class Measurement:
    """One load's figures. Latencies in nanoseconds, one per request; CPU in seconds of the same span as elapsed_s.

    For catch-up a request is one response and bytes are the responses'; else bytes are those of the records' values.
    """

    requests: int = 0
    records: int = 0
    size_bytes: int = 0
    elapsed_s: float = 0.0
    server_cpu_s: float = 0.0
    client_cpu_s: float = 0.0
    latencies_ns: list[int] = field(default_factory=list)


class Meter:
    """The clocks of one measurement: `with Meter(target, measurement)` fills in elapsed and CPU seconds."""

    def __init__(self, target: Target, measurement: Measurement) -> None:
        self._target = target
        self._measurement = measurement

    def __enter__(self) -> None:
        self._server_cpu_s = self._target.cpu_s()
        self._client_cpu_s = time.process_time()
        self._start_ns = time.perf_counter_ns()

    def __exit__(self, *exc_info: object) -> None:
        self._measurement.elapsed_s = (time.perf_counter_ns() - self._start_ns) / 1e9
        self._measurement.client_cpu_s = time.process_time() - self._client_cpu_s
        self._measurement.server_cpu_s = self._target.cpu_s() - self._server_cpu_s


@dataclass(frozen=True)
class ProduceLoad:
    """Requests of `batch` records of `value_bytes` each, `in_flight` of them at a time."""

    streaming: bool
    batch: int
    value_bytes: int
    required_acks: int
    in_flight: int

    @property
    def value(self) -> bytes:
        """The value of every record: no two neighbouring bytes alike, nothing that compresses to a run."""
        return bytes((37 * index + index // 251) % 256 for index in range(self.value_bytes))

    def request(self, topic: str) -> bytes:
        records = [pb.Record(value=self.value)] * self.batch
        request = pb.ProduceMessageRequest(topic=topic, required_acks=self.required_acks)
        if self.batch == 1:
            request.record.CopyFrom(records[0])
        else:
            request.records.extend(records)
        return request.SerializeToString()

    async def run(self, target: Target, topic: str, seconds: float) -> tuple[Measurement, list[bytes]]:
        """Produce for `seconds`; returns when every request is answered, with the answers in the order they came."""
        request = self.request(topic)
        max_requests = max(1, MAX_LOAD_BYTES // len(request))
        answers: list[bytes] = []
        measurement = Measurement()
        drive = _drive_stream if self.streaming else _drive_unary
        with Meter(target, measurement):
            await drive(target, request, self.in_flight, seconds, max_requests, answers, measurement.latencies_ns)
        measurement.requests = len(answers)
        measurement.records = len(answers) * self.batch
        measurement.size_bytes = measurement.records * self.value_bytes
        return measurement, answers


async def _drive_unary(
    target: Target,
    request: bytes,
    in_flight: int,
    seconds: float,
    max_requests: int,
    answers: list[bytes],
    latencies_ns: list[int],
) -> None:
    """`in_flight` callers, each one call after the other."""
    call = target.channel.unary_unary(environment.PRODUCE)
    now = time.perf_counter_ns
    deadline_ns = now() + int(seconds * 1e9)

    async def caller() -> None:
        while (start_ns := now()) < deadline_ns and len(answers) < max_requests:
            answer = await call(request)
            latencies_ns.append(now() - start_ns)
            answers.append(answer)

    async with asyncio.TaskGroup() as callers:
        for _ in range(in_flight):
            callers.create_task(caller())


async def _drive_stream(
    target: Target,
    request: bytes,
    in_flight: int,
    seconds: float,
    max_requests: int,
    answers: list[bytes],
    latencies_ns: list[int],
) -> None:
    """One stream with a window: the writer waits while `in_flight` requests are unanswered."""
    call = target.channel.stream_stream(environment.PRODUCE_STREAM)()
    now = time.perf_counter_ns
    deadline_ns = now() + int(seconds * 1e9)
    starts_ns: deque[int] = deque()
    room = asyncio.Event()

    async def writer() -> None:
        sent = 0
        while (start_ns := now()) < deadline_ns and sent < max_requests:
            if len(starts_ns) >= in_flight:
                room.clear()
                await room.wait()
                continue
            starts_ns.append(start_ns)
            sent += 1
            await call.write(request)
        await call.done_writing()

    async def reader() -> None:
        while (answer := await call.read()) is not grpc.aio.EOF:
            latencies_ns.append(now() - starts_ns.popleft())
            answers.append(answer)
            room.set()

    async with asyncio.TaskGroup() as both:
        both.create_task(writer())
        both.create_task(reader())
    code = await call.code()
    if code is not grpc.StatusCode.OK or starts_ns:
        raise LoadFailed(f"the produce stream ended with {code} and {len(starts_ns)} requests unanswered")


async def catch_up(target: Target, topic: str, end_offset: int, response_count: int, seconds: float) -> Measurement:
    """Read the log from its start to its end, again and again for `seconds`, at 1 MiB a response.

    The bare server sends `response_count` responses a stream. Raises LoadFailed when a stream of the broker's does not
    end with the record before `end_offset`.
    """
    request = pb.ConsumeMessagesRequest(
        topic=topic, offset=0, max_bytes=environment.CONSUME_RESPONSE_BYTES, until_end=True
    )
    if target.bare:
        request.max_records = response_count
    request_bytes = request.SerializeToString()
    consume = target.channel.unary_stream(environment.CONSUME)
    measurement = Measurement()
    last_responses: list[bytes] = []
    with Meter(target, measurement):
        deadline_ns = time.perf_counter_ns() + int(seconds * 1e9)
        while not last_responses or time.perf_counter_ns() < deadline_ns:
            call = consume(request_bytes)
            last = b""
            while (response := await call.read()) is not grpc.aio.EOF:
                measurement.requests += 1
                measurement.size_bytes += len(response)
                last = response
            last_responses.append(last)
    if not target.bare:
        measurement.records = end_offset * len(last_responses)
        for last in last_responses:
            records = pb.ConsumeMessagesResponse.FromString(last).records
            if not records or records[-1].offset != end_offset - 1:
                raise LoadFailed(f"a catch-up read did not end with offset {end_offset - 1}")
    return measurement


@dataclass(frozen=True)
class EndToEndLoad:
    """`rate_per_s` records a second produced one a request; how long until one open ConsumeMessages stream has each."""

    streaming: bool
    value_bytes: int
    rate_per_s: int
    required_acks: int = 1

    async def run(self, target: Target, topic: str, seconds: float) -> Measurement:
        """Latency runs from when a record was due to be sent, so that a sender held up does not hide it.

        Each record bears its number and must arrive exactly once, at offsets that go up by one from 0; else LoadFailed.
        """
        warm = max(20, int(self.rate_per_s * 0.05))
        count = warm + max(1, int(self.rate_per_s * seconds))
        filler = bytes(self.value_bytes - 8)
        requests = [
            pb.ProduceMessageRequest(
                topic=topic, required_acks=self.required_acks, record=pb.Record(value=number.to_bytes(8) + filler)
            ).SerializeToString()
            for number in range(count)
        ]
        path = environment.RELAY if target.bare else environment.CONSUME
        consume = target.channel.unary_stream(path)(
            pb.ConsumeMessagesRequest(topic=topic, offset=0).SerializeToString()
        )
        if target.bare:
            await consume.initial_metadata()  # The relay forgets what is produced before it listens.
        due_ns = [0] * count
        measurement = Measurement(requests=count, records=count, size_bytes=count * self.value_bytes)
        reader = _read_relayed if target.bare else _read_numbered
        receiver = asyncio.create_task(reader(consume, count))
        try:
            with Meter(target, measurement):
                await self._send(target, requests, due_ns)
                arrived_ns = await receiver
        finally:
            receiver.cancel()
            consume.cancel()
        measurement.latencies_ns = [arrived_ns[number] - due_ns[number] for number in range(warm, count)]
        return measurement

    async def _send(self, target: Target, requests: list[bytes], due_ns: list[int]) -> None:
        """Send every request when it is due and wait for all the answers."""
        if self.streaming:
            path = environment.RELAYED_PRODUCE_STREAM if target.bare else environment.PRODUCE_STREAM
            stream = target.channel.stream_stream(path)()
            answers = asyncio.create_task(_drain(stream))
            await self._pace(requests, due_ns, stream.write)
            await stream.done_writing()
            answered = await answers
            if answered != len(requests):
                raise LoadFailed(f"{answered} of {len(requests)} requests of the stream were answered")
            return
        call = target.channel.unary_unary(environment.RELAYED_PRODUCE if target.bare else environment.PRODUCE)
        calls: list[grpc.aio.UnaryUnaryCall] = []

        async def start(request: bytes) -> None:
            calls.append(call(request))

        await self._pace(requests, due_ns, start)
        await asyncio.gather(*calls)

    async def _pace(
        self, requests: list[bytes], due_ns: list[int], send: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """One request every 1/rate s by the clock, spinning on the loop: its timers are a millisecond coarse.

        Fills in when each was due (perf_counter_ns).
        """
        interval_ns = 1_000_000_000 // self.rate_per_s
        start_ns = time.perf_counter_ns() + interval_ns
        for number, request in enumerate(requests):
            due_ns[number] = start_ns + number * interval_ns
            while time.perf_counter_ns() < due_ns[number]:
                await asyncio.sleep(0)
            await send(request)


async def _drain(stream: grpc.aio.StreamStreamCall) -> int:
    """Read the stream to its end; the number of answers."""
    count = 0
    while await stream.read() is not grpc.aio.EOF:
        count += 1
    return count


async def _read_relayed(call: grpc.aio.UnaryStreamCall, count: int) -> list[int]:
    """When each of `count` messages of the bare server came, perf_counter_ns; it keeps the order they were poked in."""
    arrived_ns = []
    for _ in range(count):
        await call.read()
        arrived_ns.append(time.perf_counter_ns())
    return arrived_ns


async def _read_numbered(call: grpc.aio.UnaryStreamCall, count: int) -> list[int]:
    """When each of the records numbered 0 to `count` - 1 came, perf_counter_ns, by number."""
    arrived_ns = [0] * count
    next_offset = 0
    while next_offset < count:
        response = await call.read()
        now_ns = time.perf_counter_ns()
        if response is grpc.aio.EOF:
            raise LoadFailed(f"the consumer stream ended at offset {next_offset} of {count}: {await call.code()}")
        for record in pb.ConsumeMessagesResponse.FromString(response).records:
            number = int.from_bytes(record.value[:8])
            if record.offset != next_offset or not 0 <= number < count or arrived_ns[number]:
                raise LoadFailed(f"record {number} came with offset {record.offset} instead of {next_offset}, or twice")
            arrived_ns[number] = now_ns
            next_offset += 1
    return arrived_ns
