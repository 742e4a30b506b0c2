"""The handlers in process, bytes in to bytes out, on uvloop: `pytest bench/micro.py`.

pytest-benchmark is synchronous and the handlers are not: a round is one loop.run_until_complete() with many calls in
it, so that starting and stopping the loop is spread thin, and the timer divides by their number, so that every figure
pytest-benchmark shows, saves or compares is the time of one call. A table at the end holds the medians against the
goals.

Every write to the file is within the measurement: with ack 1 because a call is answered after its write; with ack 0
because the calls come as many to a tick of the loop as in the parallel case, the loop gets its turn after each tick
(the broker writes then), and the round's last call asks for ack 1, which is answered when everything before it is
written too. After the rounds the partition's offsets, and after the broker's stop the records in its segment files, are
compared with what was produced.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvloop

from bench.micro_table import ROWS, Row
from takhin.broker.broker import Broker
from takhin.config import load_settings
from takhin.rpc.observed import Observer
from takhin.rpc.served import served
from takhin.rpc.service import takhin_methods
from takhin.v1 import takhin_pb2 as pb

SERVICE = "/takhin.v1.TakhinService/"
ROUNDS = 30
WARM_ROUNDS = 3
AT_ONCE = 64
BATCH_RECORDS = 100
TOPIC = "micro"

Handler = Callable[[bytes, "BenchCall"], Coroutine[Any, Any, bytes]]


class BenchCall:
    """A call without a deadline from nowhere: what a handler sees of a front, at no cost."""

    peer = "127.0.0.1:1"
    identity = None
    metadata: Mapping[str, str | bytes] = {}
    principal = None
    request_id = "0000000000000000"

    def time_remaining_s(self) -> float | None:
        return None

    def cancelled(self) -> bool:
        return False


CALL = BenchCall()


class Handlers:
    """A broker in a temporary directory with one topic of one partition, its handlers, and the loop they run on."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.loop = uvloop.new_event_loop()
        self.produced = 0
        self.value_bytes = 0
        self._broker = Broker(load_settings({"data_dir": str(data_dir)}, {}, None))
        self.loop.run_until_complete(self._broker.start())
        self._table = {method.path: method.handler for method in takhin_methods(self._broker)}
        self.create_topic(TOPIC)

    def serve(self, tracing: Any = None) -> None:
        """From here on the handlers are those that fronts have: known to the log, and told when slow."""
        table = served(self._broker, observer=Observer(1000), tracing=tracing).table
        self._table = {path: method.handler for path, method in table.items()}

    def handler(self, name: str) -> Handler:
        return self._table[SERVICE + name]

    def call(self, name: str, request: bytes) -> bytes:
        return self.loop.run_until_complete(self.handler(name)(request, CALL))

    def create_topic(self, name: str) -> None:
        self.call("CreateTopic", pb.CreateTopicRequest(name=name, num_partitions=1).SerializeToString())

    def produce_request(self, required_acks: int, value_bytes: int, batch: int = 1) -> bytes:
        """A request of `batch` records; all of a benchmark's have one size."""
        self.value_bytes = value_bytes
        records = [pb.Record(value=bytes(index % 251 for index in range(value_bytes)))] * batch
        request = pb.ProduceMessageRequest(topic=TOPIC, required_acks=required_acks)
        if batch == 1:
            request.record.CopyFrom(records[0])
        else:
            request.records.extend(records)
        return request.SerializeToString()

    def close(self) -> None:
        self.loop.run_until_complete(self._broker.stop())
        self.loop.close()

    def check_offsets(self) -> None:
        """What readers are told is what was produced."""
        request = pb.GetPartitionOffsetsRequest(topic=TOPIC, partition=0).SerializeToString()
        response = pb.GetPartitionOffsetsResponse.FromString(self.call("GetPartitionOffsets", request))
        assert (response.beginning_offset, response.end_offset) == (0, self.produced)

    def check_files(self) -> None:
        """Segment files are concatenations of ConsumeMessagesResponse's fields: the stock class reads them."""
        due = 0
        for segment in sorted(self.data_dir.glob("topics/*/*/*.log")):
            for record in pb.ConsumeMessagesResponse.FromString(segment.read_bytes()).records:
                assert (record.offset, len(record.value)) == (due, self.value_bytes)
                due += 1
        assert due == self.produced


@pytest.fixture
def handlers() -> Iterator[Handlers]:
    # Not tmp_path: pytest keeps the last ones, and these are hundreds of MB.
    with tempfile.TemporaryDirectory(prefix="takhin-micro-") as data_dir:
        handlers = Handlers(Path(data_dir))
        try:
            yield handlers
            handlers.check_offsets()
        finally:
            handlers.close()
        handlers.check_files()


def calls_a_round(calls: int) -> pytest.MarkDecorator:
    """Marks a benchmark whose rounds are `calls` calls: its timer shows the time of one."""

    def per_call_s() -> float:
        return time.perf_counter() / calls

    return pytest.mark.benchmark(timer=per_call_s)


def measure(
    benchmark: Any,
    handlers: Handlers,
    one_round: Callable[[], Awaitable[None]],
    name: str,
    *,
    goal_us: float | None = None,
    call_bytes: int = 0,
) -> None:
    """Run the rounds on the handlers' loop and note the median of a call; `call_bytes` of values a call give MB/s."""
    benchmark.pedantic(
        lambda: handlers.loop.run_until_complete(one_round()), rounds=ROUNDS, warmup_rounds=WARM_ROUNDS, iterations=1
    )
    if benchmark.disabled:
        return
    call_us = benchmark.stats.stats.median * 1e6
    least_us = benchmark.stats.stats.min * 1e6
    mb_per_s = call_bytes / call_us if call_bytes else None
    benchmark.extra_info.update(call_us=round(call_us, 3), goal_us=goal_us, mb_per_s=mb_per_s)
    ROWS.append(Row(name, call_us, least_us, goal_us, mb_per_s))


def one_at_a_time(handlers: Handlers, name: str, request: bytes, calls: int) -> Callable[[], Awaitable[None]]:
    """Each call awaited before the next."""
    handler = handlers.handler(name)

    async def one_round() -> None:
        for _ in range(calls):
            await handler(request, CALL)

    return one_round


async def all_at_once(coroutines: list[Coroutine[Any, Any, Any]]) -> None:
    """Run each as a task, as a front does with its calls, and wait for all: about half of gather()'s own cost."""
    create_task = asyncio.get_running_loop().create_task
    for task in [create_task(coroutine) for coroutine in coroutines]:
        await task


def parallel(handlers: Handlers, request: bytes, calls: int) -> Callable[[], Awaitable[None]]:
    """AT_ONCE produce calls at once until all are answered; then the next."""
    handler = handlers.handler("ProduceMessage")

    async def one_round() -> None:
        for _ in range(calls // AT_ONCE):
            await all_at_once([handler(request, CALL) for _ in range(AT_ONCE)])
        handlers.produced += calls

    return one_round


@calls_a_round(2048)
def test_produce_message_ack_0(benchmark: Any, handlers: Handlers) -> None:
    """ProduceMessage of 1 KiB with ack 0, AT_ONCE to a tick; the last call of a round waits until all is written."""
    ack_0, ack_1 = handlers.produce_request(0, 1024), handlers.produce_request(1, 1024)
    produce = handlers.handler("ProduceMessage")

    async def one_round() -> None:
        for _ in range(2048 // AT_ONCE - 1):
            for _ in range(AT_ONCE):
                await produce(ack_0, CALL)
            await asyncio.sleep(0)
        for _ in range(AT_ONCE - 1):
            await produce(ack_0, CALL)
        await produce(ack_1, CALL)
        handlers.produced += 2048

    measure(benchmark, handlers, one_round, "ProduceMessage 1 KiB, ack 0", goal_us=3, call_bytes=1024)


@calls_a_round(1024)
def test_produce_message_ack_1(benchmark: Any, handlers: Handlers) -> None:
    """ProduceMessage of 1 KiB with ack 1, one at a time: every call has a write of its own."""
    calls = one_at_a_time(handlers, "ProduceMessage", handlers.produce_request(1, 1024), 1024)

    async def one_round() -> None:
        await calls()
        handlers.produced += 1024

    measure(benchmark, handlers, one_round, "ProduceMessage 1 KiB, ack 1", goal_us=15, call_bytes=1024)


@calls_a_round(1000)
def test_health_check(benchmark: Any, handlers: Handlers) -> None:
    """HealthCheck, the least that a call can cost."""
    measure(benchmark, handlers, one_at_a_time(handlers, "HealthCheck", b"", 1000), "HealthCheck")


@calls_a_round(1000)
def test_health_check_as_served(benchmark: Any, handlers: Handlers) -> None:
    """The same behind what logs slow calls and knows the call under way."""
    handlers.serve()
    measure(benchmark, handlers, one_at_a_time(handlers, "HealthCheck", b"", 1000), "HealthCheck, as served")


@calls_a_round(500)
@pytest.mark.parametrize("is_sampled", [False, True])
def test_health_check_traced(benchmark: Any, handlers: Handlers, is_sampled: bool) -> None:
    """The same with tracing; the spans are made, and exported to nowhere."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

    from takhin.rpc.tracing import Tracing

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider(sampler=ALWAYS_ON if is_sampled else ALWAYS_OFF)
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    handlers.serve(Tracing(provider))
    name = f"HealthCheck, traced, {'' if is_sampled else 'not '}sampled"
    measure(benchmark, handlers, one_at_a_time(handlers, "HealthCheck", b"", 500), name)
    provider.shutdown()


@calls_a_round(1024)
def test_produce_message_ack_1_as_served(benchmark: Any, handlers: Handlers) -> None:
    """ProduceMessage of 1 KiB with ack 1, one at a time, as a front calls it."""
    handlers.serve()
    calls = one_at_a_time(handlers, "ProduceMessage", handlers.produce_request(1, 1024), 1024)

    async def one_round() -> None:
        await calls()
        handlers.produced += 1024

    measure(benchmark, handlers, one_round, "ProduceMessage 1 KiB, ack 1, as served", call_bytes=1024)


@calls_a_round(2048)
def test_produce_message_parallel(benchmark: Any, handlers: Handlers) -> None:
    """ProduceMessageParallel: 64 calls of 1 KiB at once, ack 1."""
    one_round = parallel(handlers, handlers.produce_request(1, 1024), 2048)
    measure(benchmark, handlers, one_round, "ProduceMessageParallel, ack 1", goal_us=4, call_bytes=1024)


@calls_a_round(64)
def test_produce_message_batch(benchmark: Any, handlers: Handlers) -> None:
    """ProduceMessage of a batch of 100 x 1 KiB, ack 1, one at a time."""
    calls = one_at_a_time(handlers, "ProduceMessage", handlers.produce_request(1, 1024, BATCH_RECORDS), 64)

    async def one_round() -> None:
        await calls()
        handlers.produced += 64 * BATCH_RECORDS

    measure(benchmark, handlers, one_round, "batch of 100 x 1 KiB, ack 1", goal_us=120, call_bytes=BATCH_RECORDS * 1024)


@calls_a_round(1000)
def test_list_topics_50(benchmark: Any, handlers: Handlers) -> None:
    """ListTopics with 50 topics."""
    for index in range(49):  # One is there.
        handlers.create_topic(f"orders.region-{index:02d}")
    request = pb.ListTopicsRequest().SerializeToString()
    assert len(pb.ListTopicsResponse.FromString(handlers.call("ListTopics", request)).topics) == 50
    one_round = one_at_a_time(handlers, "ListTopics", request, 1000)
    measure(benchmark, handlers, one_round, "ListTopics, 50 topics", goal_us=12)


@calls_a_round(1000)
def test_get_topic(benchmark: Any, handlers: Handlers) -> None:
    """GetTopic of a topic with one partition that holds one record."""
    handlers.call("ProduceMessage", handlers.produce_request(1, 1024))
    handlers.produced += 1
    request = pb.GetTopicRequest(name=TOPIC).SerializeToString()
    assert pb.GetTopicResponse.FromString(handlers.call("GetTopic", request)).topic.partitions[0].end_offset == 1
    one_round = one_at_a_time(handlers, "GetTopic", request, 1000)
    measure(benchmark, handlers, one_round, "GetTopic, 1 partition", goal_us=8)


@pytest.mark.parametrize("by_time", [False, True], ids=["marks", "by time"])
@calls_a_round(1000)
def test_get_partition_offsets(benchmark: Any, handlers: Handlers, by_time: bool) -> None:
    """GetPartitionOffsets of a partition with 20,000 batches, without and with a time to be found in them."""
    produce = handlers.handler("ProduceMessage")

    async def fill() -> None:
        for number in range(20_000 // AT_ONCE):
            record = pb.Record(value=bytes(100), timestamp=number + 1)
            request = pb.ProduceMessageRequest(topic=TOPIC, required_acks=1, records=[record, record])
            await all_at_once([produce(request.SerializeToString(), CALL) for _ in range(AT_ONCE)])

    handlers.loop.run_until_complete(fill())
    handlers.value_bytes, handlers.produced = 100, 20_000 // AT_ONCE * AT_ONCE * 2
    wanted = 200 if by_time else None
    request = pb.GetPartitionOffsetsRequest(topic=TOPIC, timestamp_ms=wanted).SerializeToString()
    found = pb.GetPartitionOffsetsResponse.FromString(handlers.call("GetPartitionOffsets", request))
    assert found.HasField("offset_for_time") == by_time and found.offset_for_time == (199 * AT_ONCE * 2) * by_time
    one_round = one_at_a_time(handlers, "GetPartitionOffsets", request, 1000)
    measure(benchmark, handlers, one_round, f"GetPartitionOffsets, {'a time' if by_time else 'marks'}")


@pytest.mark.parametrize("value_bytes", [100, 1024, 10240])
@calls_a_round(1024)
def test_throughput(benchmark: Any, handlers: Handlers, value_bytes: int) -> None:
    """Throughput of single records, 64 calls at once, ack 1."""
    one_round = parallel(handlers, handlers.produce_request(1, value_bytes), 1024)
    measure(benchmark, handlers, one_round, f"throughput, {value_bytes} B, ack 1", call_bytes=value_bytes)


@calls_a_round(2048)
def test_harness_parallel(benchmark: Any, handlers: Handlers) -> None:
    """What 64 tasks that all wait for one future cost by themselves: part of the parallel figures, not of Takhin."""
    loop = handlers.loop

    async def wait(future: asyncio.Future[None]) -> None:
        await future

    async def one_round() -> None:
        for _ in range(2048 // AT_ONCE):
            future: asyncio.Future[None] = loop.create_future()
            loop.call_soon(loop.call_soon, future.set_result, None)
            await all_at_once([wait(future) for _ in range(AT_ONCE)])

    measure(benchmark, handlers, one_round, "(harness: 64 tasks at once)")
