"""The Python client: records a second through producer, reader and consumer against a broker, and its share of CPU.

    python -m bench.python_client [--records 300000] [--rounds 5] [--sizes 100,1024] [--directory DIR]

The broker is a process of its own on one core, the client is this process on another, with uvloop. In every round, for
each size of value, on a topic of its own with one partition:

    produce      records are given with enqueue(), acks "written", idempotent; until all are acknowledged
    read         the same records by read().batches(), values only
    messages     by read(), message by message, the value of each
    consume      by a consumer of a group, message by message, one commit at the end
    end to end   a producer and a consumer side by side, until the consumer has all that was produced

Each record is counted and its value's length added up: one that is missing ends the bench. us: CPU time of the client's
and of the broker's process a record; share: the client's CPU time over the time that passed, of one core. Medians over
the rounds, with the least and the most. The last line printed is JSON.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench import environment

environment.prepare()  # Before grpc is imported.

import uvloop  # noqa: E402

import takhin  # noqa: E402
from bench import processes, report  # noqa: E402

WARM_RECORDS = 5_000
# Nothing takes this long unless something hangs.
TIMEOUT_S = 120.0

Figures = dict[str, float]


class BenchFailed(Exception):
    """A record is missing."""


class ClientBench:
    def __init__(self, client: takhin.Client, broker: processes.ServerProcess, records: int) -> None:
        self._client = client
        self._broker = broker
        self._records = records
        self._topics = 0

    async def measure(self, work: Callable[[], Awaitable[int]], size_bytes: int, records: int) -> Figures:
        """`work` gives how many bytes of values it saw."""
        start_s, client_s, broker_s = time.perf_counter(), time.process_time(), self._broker.cpu_s()
        async with asyncio.timeout(TIMEOUT_S):
            seen_bytes = await work()
        took_s = time.perf_counter() - start_s
        client_s, broker_s = time.process_time() - client_s, self._broker.cpu_s() - broker_s
        if seen_bytes != size_bytes * records:
            raise BenchFailed(f"{seen_bytes} bytes of values instead of {size_bytes * records}")
        return {
            "records_per_s": records / took_s, "mb_per_s": records * size_bytes / took_s / 1e6,
            "client_us": client_s / records * 1e6, "broker_us": broker_s / records * 1e6, "share": client_s / took_s}

    async def run(self, size_bytes: int) -> dict[str, Figures]:
        """One round."""
        topic, group = await self._topic(), f"bench-{self._topics}"
        await self._warm(size_bytes)
        found = {}
        count = self._records
        for name, work in (
            ("produce", lambda: self._produce(topic, size_bytes, count)), ("read", lambda: self._read(topic)),
            ("messages", lambda: self._messages(topic)), ("consume", lambda: self._consume(topic, group, count)),
        ):
            found[name] = await self.measure(work, size_bytes, count)
        await self._client.delete_topic(topic)
        topic, group = await self._topic(), f"bench-{self._topics}"
        found["end to end"] = await self.measure(lambda: self._both(topic, group, size_bytes, count), size_bytes, count)
        await self._client.delete_topic(topic)
        return found

    async def _topic(self) -> str:
        self._topics += 1
        name = f"bench-{self._topics}"
        await self._client.create_topic(name, partitions=1)
        return name

    async def _warm(self, size_bytes: int) -> None:
        topic = await self._topic()
        await self._produce(topic, size_bytes, WARM_RECORDS)
        await self._messages(topic)
        await self._client.delete_topic(topic)

    async def _produce(self, topic: str, size_bytes: int, count: int) -> int:
        value = bytes(size_bytes)
        async with self._client.producer(topic, acks="written") as producer:
            for _ in range(count):
                await producer.enqueue(value)
        return size_bytes * count  # all are acknowledged, or leaving the producer has raised

    async def _read(self, topic: str) -> int:
        total = 0
        async for records in self._client.read(topic, until_end=True).batches():
            total += sum(map(len, records.values()))  # type: ignore[arg-type]
        return total

    async def _messages(self, topic: str) -> int:
        total = 0
        async for message in self._client.read(topic, until_end=True):
            total += len(message.value or b"")
        return total

    async def _consume(self, topic: str, group: str, count: int) -> int:
        total = 0
        async with self._client.consumer(topic, group=group) as consumer:
            async for message in consumer:
                total += len(message.value or b"")
                count -= 1
                if not count:
                    await consumer.commit()
                    return total
        return total

    async def _both(self, topic: str, group: str, size_bytes: int, count: int) -> int:
        totals = await asyncio.gather(self._produce(topic, size_bytes, count), self._consume(topic, group, count))
        return totals[1]


def table(results: dict[int, dict[str, list[Figures]]]) -> str:
    columns = [
        ("records_per_s", "records/s", "12,.0f"), ("mb_per_s", "MB/s", "9,.1f"), ("client_us", "client us", "11.2f"),
        ("broker_us", "broker us", "11.2f"), ("share", "share", "8.2f")]
    lines = [f"{'':24}" + "".join(f"{title:>{int(form.partition('.')[0].strip(','))}}" for _, title, form in columns)
             + "   records/s, least to most"]
    for size_bytes, cases in results.items():
        for name, rounds in cases.items():
            cells = "".join(format(statistics.median(each[key] for each in rounds), form) for key, _, form in columns)
            rates = sorted(each["records_per_s"] for each in rounds)
            lines.append(f"{f'{size_bytes} B, {name}':24}{cells}   {rates[0]:,.0f} to {rates[-1]:,.0f}")
    return "\n".join(lines)


async def run(address: str, broker: processes.ServerProcess, arguments: argparse.Namespace) -> dict[int, dict]:
    results: dict[int, dict[str, list[Figures]]] = {size_bytes: {} for size_bytes in arguments.sizes}
    async with takhin.connect(address) as client:
        bench = ClientBench(client, broker, arguments.records)
        for number in range(arguments.rounds):
            for size_bytes in arguments.sizes:
                for name, figures in (await bench.run(size_bytes)).items():
                    results[size_bytes].setdefault(name, []).append(figures)
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench.python_client", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=300_000, help="of each case")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=lambda text: [int(each) for each in text.split(",")], default=[100, 1024])
    parser.add_argument("--directory", help="where the broker has its data for as long as it runs")
    arguments = parser.parse_args()
    server_core, client_core = processes.cores()
    try:
        with tempfile.TemporaryDirectory(prefix="takhin-bench-", dir=arguments.directory) as directory:
            data_dir = Path(directory) / "data"
            command = [*processes.broker_command(), "--listen", "127.0.0.1:0", "--data-dir", str(data_dir)]
            processes.pin(server_core)
            with processes.ServerProcess(command, Path(directory) / "log") as broker:
                processes.pin(client_core)
                results = uvloop.run(run(broker.address, broker, arguments))
                machine = report.machine(Path(directory))
    except (processes.ServerFailed, BenchFailed, takhin.ClientError) as failure:
        print(f"bench.python_client: {failure}", file=sys.stderr)
        return 1
    print(table(results))
    medians = {
        f"{size_bytes} B, {name}": {key: round(statistics.median(each[key] for each in rounds), 3) for key in rounds[0]}
        for size_bytes, cases in results.items() for name, rounds in cases.items()}
    print(json.dumps({"bench": "python_client", **report.commit(), "machine": machine, "cases": medians}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
