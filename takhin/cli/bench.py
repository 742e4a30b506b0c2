"""takhin bench: what a broker does here, measured with this client."""

import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import click

from takhin.cli.command import EXIT_USAGE, CommandError
from takhin.cli.connection import connection_options, output_option, with_client
from takhin.cli.output import show_one
from takhin.cli.program import Group, Option
from takhin.cli.values import NUMBER, Seconds, Size

if TYPE_CHECKING:
    from takhin.client import Client
    from takhin.client.producer import Acks

bench = Group("bench", help="Measure a broker: produce, consume, end to end.")
COMMANDS = {"bench": bench}

_MAX_BATCH_RECORDS = 50_000
# So many batches wait in the client, those on their way included: enough to keep the broker busy.
_BATCHES_WAITING = 8
# Until the reader is at the end of the topic; and how long the last record may take.
_READER_READY_S = 0.2
_LAST_S = 10.0
_TITLES = {
    "what": "What", "records": "Records", "size_bytes": "Bytes", "seconds": "Seconds", "records_per_s": "Records/s",
    "mb_per_s": "MB/s", "latency": "Latency of", "p50_ms": "  p50 ms", "p90_ms": "  p90 ms", "p99_ms": "  p99 ms",
    "p999_ms": "  p99.9 ms", "max_ms": "  max ms",
}


def _options(*more: click.Parameter) -> list[click.Parameter]:
    return [
        Option(["-t", "--topic"], metavar="TOPIC",
               help="A topic that is there.  [default: one that is made, and deleted]"),
        Option(["--size"], type=Size(), metavar="BYTES", default="1k", show_default=True, help="Of a record's value."),
        Option(["-p", "--partitions"], type=NUMBER, metavar="N", default=1, show_default=True,
               help="Of the topic that is made."),
        Option(["--acks"], type=click.Choice(["assigned", "written", "durable"]), default="written", show_default=True,
               help="What to wait for."),
        *more, output_option(), *connection_options(),
    ]


def _count_options() -> list[click.Parameter]:
    return [
        Option(["-n", "--count"], type=NUMBER, metavar="N", default=500_000, show_default=True, help="Records."),
        Option(["--batch-bytes"], type=Size(), metavar="BYTES", default="256k", show_default=True,
               help="Produced at most so much at once."),
    ]


@bench.command("produce", short_help="Produce as fast as it goes.", params=_options(*_count_options()))
@with_client
async def _produce(
    tk: "Client", topic: str | None, size: int, partitions: int, acks: "Acks", count: int, batch_bytes: int,
    output: str | None
) -> None:
    """Produce records in batches, as fast as the broker takes them. The latency is a batch's: from when it was given to
    the client to its acknowledgement, while others are on their way.
    """
    async with _topic(tk, topic, partitions) as name:
        began_s = time.perf_counter()
        latencies_s, done = await _fill(tk, name, count, size, batch_bytes, acks)
        _report("produce", done, size, time.perf_counter() - began_s, latencies_s, "a batch", output)


@bench.command("consume", short_help="Consume as fast as it goes.", params=_options(*_count_options()))
@with_client
async def _consume(
    tk: "Client", topic: str | None, size: int, partitions: int, acks: "Acks", count: int, batch_bytes: int,
    output: str | None
) -> None:
    """Read a topic from its beginning to its end, checksums verified: TOPIC as it is, at most --count records; or one
    that is filled before. The latency is the time from one response to the next.
    """
    async with _topic(tk, topic, partitions) as name:
        if topic is None:
            await _fill(tk, name, count, size, batch_bytes, acks)
        latencies_s = []
        records = size_bytes = 0
        began_s = last_s = time.perf_counter()
        async with tk.read(name, until_end=True, max_records=count) as reader:
            async for batch in reader.batches():
                now_s = time.perf_counter()
                latencies_s.append(now_s - last_s)
                last_s = now_s
                records += len(batch)
                size_bytes += batch.size_bytes
        seconds = time.perf_counter() - began_s
        if not records:
            raise CommandError(f"there is nothing in {name}; without -t a topic is filled before", EXIT_USAGE)
        _report("consume", records, size_bytes / records, seconds, latencies_s, "a response", output)


@bench.command("e2e", short_help="From produced to consumed.", params=_options(
    Option(["-r", "--rate"], type=NUMBER, metavar="N", default=1000, show_default=True, help="Records a second."),
    Option(["-d", "--duration"], type=Seconds(), metavar="SECONDS", default="10", show_default=True,
           help="How long it produces."),
))
@with_client
async def _e2e(
    tk: "Client", topic: str | None, size: int, partitions: int, acks: "Acks", rate: int, duration: float,
    output: str | None
) -> None:
    """Produce records at a steady rate, one by one, and read them at the same time. The latency is a record's: from
    when it was given to the producer to when the consumer had it.
    """
    import asyncio

    if not rate:
        raise CommandError("--rate is 1 or more", EXIT_USAGE)
    async with _topic(tk, topic, partitions) as name:
        total = max(int(rate * duration), 1)
        # Records that others produce to the topic don't count.
        mark = os.urandom(8)
        latencies_s: list[float] = []
        reading = asyncio.ensure_future(_measure(tk, name, mark, total, latencies_s))
        try:
            await asyncio.sleep(_READER_READY_S)
            began_s = time.perf_counter()
            padding = os.urandom(max(size - 16, 0))
            async with tk.producer(name, acks=acks, linger_ms=0) as producer:
                for number in range(total):
                    wait_s = began_s + number / rate - time.perf_counter()
                    if wait_s > 0:
                        await asyncio.sleep(wait_s)
                    producer.send_nowait(mark + time.perf_counter_ns().to_bytes(8, "big") + padding)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_S):
                    await reading
        finally:
            reading.cancel()
        seconds = time.perf_counter() - began_s
        if len(latencies_s) < total:
            raise CommandError(f"of {total} records that were produced only {len(latencies_s)} came")
        _report("end to end", total, max(size, 16), seconds, latencies_s, "a record", output)


async def _measure(tk: "Client", topic: str, mark: bytes, total: int, latencies_s: list[float]) -> None:
    async with tk.read(topic, start="latest") as reader:
        async for records in reader.batches():
            now_ns = time.perf_counter_ns()
            latencies_s += [
                (now_ns - int.from_bytes(value[8:16], "big")) / 1e9
                for value in records.values() if value is not None and value[:8] == mark]
            if len(latencies_s) >= total:
                return


@asynccontextmanager
async def _topic(tk: "Client", topic: str | None, partitions: int) -> AsyncIterator[str]:
    """The topic to use: one that is there, or one for as long as this lasts."""
    if topic is not None:
        await tk.describe_topic(topic)
        yield topic
        return
    name = f"takhin-bench-{os.urandom(4).hex()}"
    await tk.create_topic(name, partitions=partitions)
    try:
        yield name
    finally:
        await tk.delete_topic(name)


async def _fill(
    tk: "Client", topic: str, count: int, size: int, batch_bytes: int, acks: "Acks"
) -> tuple[list[float], int]:
    """Produce `count` records; gives each batch's latency, and how many records that were."""
    import asyncio

    from takhin.client.batches import RECORD_OVERHEAD_BYTES
    from takhin.client.messages import encode_record

    record = encode_record(None, os.urandom(size))
    in_batch = max(min(batch_bytes // len(record), _MAX_BATCH_RECORDS, count), 1)
    payload = record * in_batch
    latencies_s: list[float] = []
    buffer_bytes = _BATCHES_WAITING * (len(payload) + RECORD_OVERHEAD_BYTES)
    async with tk.producer(topic, acks=acks, buffer_bytes=buffer_bytes) as producer:
        left = count
        while left > 0:
            now = min(left, in_batch)
            began_s = time.perf_counter()
            delivery = await producer.send_encoded(payload if now == in_batch else record * now, now)
            delivery.add_done_callback(lambda _, began_s=began_s: latencies_s.append(time.perf_counter() - began_s))
            left -= now
    await asyncio.sleep(0)
    return latencies_s, count


def _report(
    what: str, records: int, size: float, seconds: float, latencies_s: Sequence[float], of: str, output: str | None
) -> None:
    ordered = sorted(latencies_s)

    def percentile(share: float) -> float:
        return round(ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000, 3)

    fields = {
        "what": what, "records": records, "size_bytes": round(records * size), "seconds": round(seconds, 3),
        "records_per_s": round(records / seconds), "mb_per_s": round(records * size / seconds / 1e6, 2), "latency": of,
        "p50_ms": percentile(0.5), "p90_ms": percentile(0.9), "p99_ms": percentile(0.99), "p999_ms": percentile(0.999),
        "max_ms": round(ordered[-1] * 1000, 3),
    }
    show_one(fields, _TITLES, output)
