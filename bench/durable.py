"""Durable acks over many partitions: with the journal and without it, side by side.

    python -m bench.durable [--seconds 2] [--directory DIR] [--partitions 1,2,4,8,16,64] [--sizes 1024,16384]

One producer a partition, one request under way each, acks -1, handlers called in process. Prints for each number of
partitions and record size: latency (median, 99th percentile), records/s, CPU a record, and how the commits were made.
"""

import argparse
import asyncio
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, replace

import uvloop

from takhin.broker.broker import Broker
from takhin.config import Limits, Settings
from takhin.v1 import takhin_pb2 as pb


@dataclass(frozen=True)
class Result:
    """What one case came to. Times in ms, CPU in us a record."""

    p50_ms: float
    p99_ms: float
    per_s: float
    cpu_us: float
    syncs: int
    journal_commits: int


async def measure(directory: str, partitions: int, size_bytes: int, journal_bytes: int, seconds: float) -> Result:
    broker = Broker(Settings(data_dir=directory, limits=replace(Limits(), journal_bytes=journal_bytes)))
    await broker.start()
    try:
        await broker.topics.create("t", partitions, 1, {})
        requests = [
            pb.ProduceMessageRequest(
                topic="t", partition=number, record=pb.Record(value=os.urandom(size_bytes)), required_acks=-1
            ).SerializeToString()
            for number in range(partitions)
        ]
        latencies: list[float] = []

        async def producer(request: bytes, until_s: float) -> None:
            while (begun_s := time.perf_counter()) < until_s:
                await broker.producing.produce(request)
                latencies.append(time.perf_counter() - begun_s)

        async def run(for_s: float) -> float:
            begun_s = time.perf_counter()
            await asyncio.gather(*(producer(request, begun_s + for_s) for request in requests))
            return time.perf_counter() - begun_s

        await run(seconds / 4)
        latencies.clear()
        committer = broker._store.committer
        syncs, commits, cpu_s = committer.syncs, committer.journal_commits, time.process_time()
        took_s = await run(seconds)
        cpu_s = time.process_time() - cpu_s
        latencies.sort()
        return Result(
            statistics.median(latencies) * 1000, latencies[int(len(latencies) * 0.99)] * 1000,
            len(latencies) / took_s, cpu_s / len(latencies) * 1e6, committer.syncs - syncs,
            committer.journal_commits - commits,
        )
    finally:
        await broker.stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.durable", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each case (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="medians over so many (default 3)")
    parser.add_argument("--directory", default=None, help="where the data goes; removed afterwards")
    parser.add_argument("--partitions", default="1,2,4,8,16,64")
    parser.add_argument("--sizes", default="1024,16384", help="of a record, in bytes")
    arguments = parser.parse_args()
    uvloop.install()
    print("partitions  bytes  journal   p50 ms   p99 ms  records/s  cpu us  file syncs  journal commits")
    for size_bytes in map(int, arguments.sizes.split(",")):
        for partitions in map(int, arguments.partitions.split(",")):
            results: dict[int, list[Result]] = {0: [], Limits().journal_bytes: []}
            for _ in range(arguments.rounds):
                for journal_bytes, found in results.items():
                    directory = tempfile.mkdtemp(prefix="takhin-bench-", dir=arguments.directory)
                    try:
                        found.append(asyncio.run(measure(
                            directory, partitions, size_bytes, journal_bytes, arguments.seconds
                        )))
                    finally:
                        shutil.rmtree(directory)
            for journal_bytes, found in results.items():
                print(
                    f"{partitions:10}{size_bytes:7}{'yes' if journal_bytes else 'no':>9}"
                    + "".join(
                        f"{statistics.median(getattr(each, name) for each in found):{form}}"
                        for name, form in (
                            ("p50_ms", "9.2f"), ("p99_ms", "9.2f"), ("per_s", "11.0f"), ("cpu_us", "8.1f"),
                            ("syncs", "12.0f"), ("journal_commits", "17.0f"),
                        )
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
