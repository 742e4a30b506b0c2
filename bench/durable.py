"""Durable acks over many partitions: with the journal and without it, side by side.

    python -m bench.durable [--fast] [--seconds 2] [--directory DIR] [--partitions 1,2,4,8,16,64] [--sizes 1024,16384]

One producer a partition, one request under way each, acks -1. Handlers are called in process; with --fast a broker on a
core of its own is called at its fast front by the raw C++ client (make bench-cpp), a stream a partition on one
connection, and each partition's end must be what was acknowledged. Prints for each number of partitions and record
size: latency (median, 99th percentile), records/s, CPU a record, and in process how the commits were made; then how
many times that of the first number of partitions each other's 99th percentile is, with the journal: the median of the
rounds' ratios.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench import environment

environment.prepare()  # Before grpc is imported.

import grpc  # noqa: E402
import uvloop  # noqa: E402

from bench import processes  # noqa: E402
from bench.client import LoadFailed  # noqa: E402
from bench.front_rows import PROGRAMS, Row, run  # noqa: E402
from takhin.broker.broker import Broker  # noqa: E402
from takhin.config import Limits, Settings  # noqa: E402
from takhin.v1 import takhin_pb2 as pb  # noqa: E402
from takhin.v1 import takhin_pb2_grpc  # noqa: E402

JOURNAL_BYTES = Limits().journal_bytes
COLUMNS = (
    ("p50_ms", "9.2f"), ("p99_ms", "9.2f"), ("per_s", "11.0f"), ("cpu_us", "8.1f"), ("syncs", "12.0f"),
    ("journal_commits", "17.0f"),
)


@dataclass(frozen=True)
class Result:
    """What one case came to. Times in ms, CPU in us a record."""

    p50_ms: float
    p99_ms: float
    per_s: float
    cpu_us: float
    # Of the broker in this process; of one that is called they are not asked for.
    syncs: int | None = None
    journal_commits: int | None = None


def durable_request(partition: int, size_bytes: int) -> bytes:
    return pb.ProduceMessageRequest(
        topic="t", partition=partition, record=pb.Record(value=os.urandom(size_bytes)), required_acks=-1
    ).SerializeToString()


async def measure_handlers(
    directory: Path, partitions: int, size_bytes: int, journal_bytes: int, seconds: float
) -> Result:
    """Of a broker in this process, whose handlers are called."""
    broker = Broker(Settings(data_dir=str(directory), limits=replace(Limits(), journal_bytes=journal_bytes)))
    await broker.start()
    try:
        await broker.topics.create("t", partitions, 1, {})
        requests = [durable_request(number, size_bytes) for number in range(partitions)]
        latencies: list[float] = []

        async def producer(request: bytes, until_s: float) -> None:
            while (begun_s := time.perf_counter()) < until_s:
                await broker.producing.produce(request)
                latencies.append(time.perf_counter() - begun_s)

        async def run_for(for_s: float) -> float:
            begun_s = time.perf_counter()
            await asyncio.gather(*(producer(request, begun_s + for_s) for request in requests))
            return time.perf_counter() - begun_s

        await run_for(seconds / 4)
        latencies.clear()
        committer = broker._store.committer
        syncs, commits, cpu_s = committer.syncs, committer.journal_commits, time.process_time()
        took_s = await run_for(seconds)
        cpu_s = time.process_time() - cpu_s
        latencies.sort()
        return Result(
            statistics.median(latencies) * 1000, latencies[int(len(latencies) * 0.99)] * 1000,
            len(latencies) / took_s, cpu_s / len(latencies) * 1e6, committer.syncs - syncs,
            committer.journal_commits - commits,
        )
    finally:
        await broker.stop()


def measure_fast(directory: Path, partitions: int, size_bytes: int, journal_bytes: int, seconds: float) -> Result:
    """Of a broker on a core of its own, called at its fast front. Raises LoadFailed and ServerFailed."""
    row = Row("durable", "durable", "raw_client:bidi", value_bytes=size_bytes, streams=partitions)
    command = [*processes.broker_command(), "--listen", "127.0.0.1:0", "--fast-listen", "127.0.0.1:0",
               "--data-dir", str(directory / "data"), "--limits-journal-bytes", str(journal_bytes)]
    with cores_apart() as (server_core, client_core):
        processes.pin(server_core)
        with processes.ServerProcess(command, directory / "log") as broker:
            address = broker.fast_address()
            processes.pin(client_core)
            with grpc.insecure_channel(broker.address, options=environment.CHANNEL_OPTIONS) as channel:
                stub = takhin_pb2_grpc.TakhinServiceStub(channel)
                stub.CreateTopic(pb.CreateTopicRequest(name="t", num_partitions=partitions))
                requests = [durable_request(number, size_bytes) for number in range(partitions)]
                found = run(row, broker, address, requests, directory, seconds, 0.0)
                appended = sum(
                    stub.GetPartitionOffsets(pb.GetPartitionOffsetsRequest(topic="t", partition=number)).end_offset
                    for number in range(partitions))
    if appended != found.records:
        raise LoadFailed(f"{found.records} records were acknowledged, the log holds {appended}")
    assert found.p50_us is not None and found.p99_us is not None
    return Result(found.p50_us / 1000, found.p99_us / 1000, found.rate_per_s, found.server_us)


@contextmanager
def cores_apart() -> Iterator[tuple[int | None, int | None]]:
    """The server's core and the client's; afterwards this process may use both again."""
    before = os.sched_getaffinity(0)
    try:
        yield processes.cores()
    finally:
        os.sched_setaffinity(0, before)


def measure_all(chosen: argparse.Namespace, directory: Path) -> None:
    """Round by round, all cases of a size close together in time; then the medians."""
    print("partitions  bytes  journal   p50 ms   p99 ms  records/s  cpu us  file syncs  journal commits", flush=True)
    counts = [int(each) for each in chosen.partitions.split(",")]
    for size_bytes in map(int, chosen.sizes.split(",")):
        cases = [(partitions, journal_bytes) for partitions in counts for journal_bytes in (0, JOURNAL_BYTES)]
        results: dict[tuple[int, int], list[Result]] = {case: [] for case in cases}
        for _ in range(chosen.rounds):
            for partitions, journal_bytes in cases:
                with tempfile.TemporaryDirectory(dir=directory) as made:
                    arguments = Path(made), partitions, size_bytes, journal_bytes, chosen.seconds
                    results[partitions, journal_bytes].append(
                        measure_fast(*arguments) if chosen.fast else asyncio.run(measure_handlers(*arguments)))
        for (partitions, journal_bytes), found in results.items():
            print(f"{partitions:10}{size_bytes:7}{'yes' if journal_bytes else 'no':>9}" + columns(found), flush=True)
        first = results[counts[0], JOURNAL_BYTES]
        ratios = {
            partitions: statistics.median(
                many.p99_ms / few.p99_ms for many, few in zip(results[partitions, JOURNAL_BYTES], first, strict=True))
            for partitions in counts[1:]
        }
        if ratios:
            print(f"p99 with the journal, times that of {counts[0]}: "
                  + ", ".join(f"{partitions}: {ratio:.1f}" for partitions, ratio in ratios.items()), flush=True)


def columns(found: list[Result]) -> str:
    text = ""
    for name, form in COLUMNS:
        values = [getattr(each, name) for each in found]
        text += f"{'-':>{form.partition('.')[0]}}" if None in values else f"{statistics.median(values):{form}}"
    return text


def main() -> int:
    """Exit status 0; 1 when something failed; 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m bench.durable", description=__doc__.split("\n")[0])
    parser.add_argument("--fast", action="store_true", help="call a broker at its fast front, not handlers in process")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each case (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="medians over so many (default 3)")
    parser.add_argument("--directory", default=None, help="where the data goes; removed afterwards")
    parser.add_argument("--partitions", default="1,2,4,8,16,64")
    parser.add_argument("--sizes", default="1024,16384", help="of a record, in bytes")
    chosen = parser.parse_args()
    if chosen.fast and not (PROGRAMS / "raw_client").exists():
        print("bench.durable: no raw_client: run 'make bench-cpp'", file=sys.stderr)
        return 1
    uvloop.install()
    return processes.exit_status_of(
        "bench.durable", partial(measure_all, chosen), chosen.directory, LoadFailed, grpc.RpcError)


if __name__ == "__main__":
    sys.exit(main())
