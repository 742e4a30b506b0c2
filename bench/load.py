"""Load against a running broker, beside a bare grpc.aio server whose handlers return constants.

    python -m bench.load [--rounds 7] [--seconds 0.5] [--only NAME,...] [--json FILE] [--quick]

Broker and bare server are processes of their own on one core, the client is this process on another. In every round
each case runs against both, neighbours in time and in changing order, and broker/bare ratios are medians of the rounds'
ratios: what else the machine does in a minute falls on both. After each case what was answered is read back through
ConsumeMessages, counted and compared; a record that is not there ends the bench. The last line printed is JSON; --json
appends it to a file too (bench/results/*.jsonl). Exit status 0; 1 when something failed; 130 after Ctrl-C.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

from bench import environment

environment.prepare()  # Before grpc is imported.

import grpc  # noqa: E402
import uvloop  # noqa: E402

from bench import cases, client, processes, report  # noqa: E402
from bench.checks import LogCheck, check_answers, check_log  # noqa: E402
from takhin.v1 import takhin_pb2 as pb  # noqa: E402

WARM_SHARE = 0.2
MEMORY_INTERVAL_S = 0.1
FILL_IN_FLIGHT = 4
# Nothing takes this long unless something hangs.
CASE_TIMEOUT_S = 120.0


class LoadBench:
    """One run: both servers, the results so far, and the topics made."""

    def __init__(
        self,
        broker: client.Target,
        bare: client.Target,
        broker_process: processes.ServerProcess,
        groups: list[cases.Group],
        rounds: int,
        seconds: float,
        fill_bytes: int,
    ) -> None:
        self._broker = broker
        self._bare = bare
        self._broker_process = broker_process
        self._groups = groups
        self._rounds = rounds
        self._seconds = seconds
        self._fill_bytes = fill_bytes
        self._topics = 0
        self._filled: tuple[str, LogCheck] | None = None
        self.results = {case.name: report.Series() for group in groups for case in group.cases}
        self.memory = report.MemoryPeak()

    async def run(self) -> None:
        """All rounds. Raises LoadFailed, naming the case."""
        idle = self._broker_process.memory()
        self.memory.idle_rss_kib, self.memory.idle_anon_kib = idle.rss_kib, idle.anon_kib
        watch = asyncio.create_task(self._watch_memory())
        try:
            if any(isinstance(case.load, cases.CatchUpLoad) for group in self._groups for case in group.cases):
                async with self._failing_as("filling the log for catch-up"):
                    await self._fill()
            for number in range(self._rounds):
                start_s = time.monotonic()
                for group in self._groups:
                    await self._run_group(group, number)
                took_s = time.monotonic() - start_s
                print(f"round {number + 1} of {self._rounds}: {took_s:.1f} s", file=sys.stderr, flush=True)
            self._note_memory()
        finally:
            watch.cancel()

    async def _run_group(self, group: cases.Group, round_number: int) -> None:
        """Every case of the group and the bare server once, starting with another one each round."""
        order: list[cases.Case | None] = [*group.cases, None]
        first = round_number % len(order)
        for case in order[first:] + order[:first]:
            name = case.name if case else f"{group.name} (bare)"
            gc.collect()
            async with self._failing_as(name):
                if case is None:
                    figures = cases.figures(group.bare.load, await self._measure_bare(group.bare.load))
                    for measured in group.cases:
                        self.results[measured.name].bare.append(figures)
                else:
                    series = self.results[case.name]
                    series.broker.append(cases.figures(case.load, await self._measure_broker(case.load, series)))

    @contextlib.asynccontextmanager
    async def _failing_as(self, name: str) -> AsyncIterator[None]:
        """Bounds the time of what is within; whatever fails there becomes a LoadFailed that begins with `name`.

        Raises ServerFailed instead when the broker is no more.
        """
        try:
            async with asyncio.timeout(CASE_TIMEOUT_S + 10 * self._seconds):
                yield
        except (client.LoadFailed, grpc.RpcError, TimeoutError, ExceptionGroup) as failure:
            self._broker_process.require_alive()
            raise client.LoadFailed(f"{name}: {describe(failure)}") from failure

    async def _measure_bare(self, load: cases.Load) -> client.Measurement:
        topic = "load-000000"
        match load:
            case client.ProduceLoad():
                await load.run(self._bare, topic, self._seconds * WARM_SHARE)
                return (await load.run(self._bare, topic, self._seconds))[0]
            case client.EndToEndLoad():
                return await load.run(self._bare, topic, self._seconds)
            case cases.CatchUpLoad():
                return await self._catch_up(self._bare)

    async def _measure_broker(self, load: cases.Load, series: report.Series) -> client.Measurement:
        """The load on a topic of its own, which is checked, counted and deleted afterwards."""
        if isinstance(load, cases.CatchUpLoad):
            # The topic was checked record by record when it was filled; every read after that ends where it ended.
            assert self._filled is not None
            series.produced = series.read_back = self._filled[1].records
            return await self._catch_up(self._broker)
        topic = await self._create_topic()
        if isinstance(load, client.EndToEndLoad):
            measurement = await load.run(self._broker, topic, self._seconds)  # Its consumer counts and checks.
            series.produced += measurement.records
            series.read_back += measurement.records
        else:
            _, warm_answers = await load.run(self._broker, topic, self._seconds * WARM_SHARE)
            measurement, answers = await load.run(self._broker, topic, self._seconds)
            self._note_memory()
            produced = check_answers(warm_answers + answers, load.batch, load.required_acks)
            series.produced += produced
            series.read_back += (await check_log(self._broker, topic, load.value, produced)).records
        await self._broker.stub.DeleteTopic(pb.DeleteTopicRequest(name=topic))
        return measurement

    async def _create_topic(self) -> str:
        """A topic of one partition; the names are equally long, as the constants of the bare server are."""
        self._topics += 1
        topic = f"load-{self._topics:06d}"
        await self._broker.stub.CreateTopic(pb.CreateTopicRequest(name=topic, num_partitions=1))
        return topic

    async def _fill(self) -> None:
        """The topic that catch-up reads: filled once, checked record by record."""
        shape = cases.CatchUpLoad()
        batch = client.ProduceLoad(True, cases.BATCH_RECORDS, shape.value_bytes, 1, FILL_IN_FLIGHT)
        topic = await self._create_topic()
        answers: list[bytes] = []
        while len(answers) * batch.batch * batch.value_bytes < self._fill_bytes:
            answers += (await batch.run(self._broker, topic, 0.1))[1]
        produced = check_answers(answers, batch.batch, batch.required_acks)
        self._filled = (topic, await check_log(self._broker, topic, batch.value, produced))

    async def _catch_up(self, target: client.Target) -> client.Measurement:
        assert self._filled is not None
        topic, log = self._filled
        response_count = -(-log.response_bytes // environment.CONSUME_RESPONSE_BYTES)
        return await client.catch_up(target, topic, log.records, response_count, self._seconds)

    def _note_memory(self) -> None:
        memory = self._broker_process.memory()
        self.memory.peak_rss_kib = max(self.memory.peak_rss_kib, memory.peak_rss_kib)
        self.memory.peak_anon_kib = max(self.memory.peak_anon_kib, memory.anon_kib)

    async def _watch_memory(self) -> None:
        """The kernel keeps the peak of the resident set, but not of its anonymous part: look ten times a second."""
        while True:
            self._note_memory()
            await asyncio.sleep(MEMORY_INTERVAL_S)


def describe(failure: BaseException) -> str:
    """One line for a failure, or for the first of a group."""
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    if isinstance(failure, grpc.aio.AioRpcError):
        return f"{failure.code().name}: {failure.details()}"
    return str(failure) or type(failure).__name__


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.load", description="Load against a running broker, beside a bare gRPC server."
    )
    parser.add_argument("--rounds", type=int, help="how often each case is measured (default 7; 2 with --quick)")
    parser.add_argument("--seconds", type=float, help="how long each time (default 0.5; 0.05 with --quick)")
    parser.add_argument("--only", default="", metavar="NAME,...", help="only the cases so named, or below NAME/")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the JSON line to FILE")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where the broker's data goes (default: TMPDIR)")
    parser.add_argument("--quick", action="store_true", help="few and short rounds: whether it works, not how fast")
    chosen = parser.parse_args(arguments)
    chosen.rounds = chosen.rounds or (2 if chosen.quick else 7)
    chosen.seconds = chosen.seconds or (0.05 if chosen.quick else 0.5)
    chosen.fill_bytes = (16 if chosen.quick else 256) * cases.MIB
    if chosen.rounds < 1 or chosen.seconds <= 0:
        parser.error("--rounds and --seconds are positive")
    chosen.groups = cases.all_groups()
    names = [name.strip().rstrip("/") for name in chosen.only.split(",") if name.strip()]
    if names:
        try:
            chosen.groups = cases.choose(chosen.groups, names)
        except ValueError as unknown:
            parser.error(str(unknown))
    return chosen


@contextlib.contextmanager
def servers(data_dir: Path) -> Iterator[tuple[processes.ServerProcess, processes.ServerProcess]]:
    """Broker and bare server, running on the servers' core; this process is on the client's when they are started."""
    server_core, client_core = processes.cores()
    broker_command = [*processes.broker_command(), "--listen", "127.0.0.1:0", "--data-dir", str(data_dir / "data")]
    bare_command = [sys.executable, "-m", "bench.bare_server", "--listen", "127.0.0.1:0"]
    processes.pin(server_core)
    with (
        processes.ServerProcess(broker_command, data_dir / "broker.log") as broker,
        processes.ServerProcess(bare_command, data_dir / "bare.log") as bare,
    ):
        processes.pin(client_core)
        yield broker, bare


async def measure(
    chosen: argparse.Namespace, broker: processes.ServerProcess, bare: processes.ServerProcess
) -> LoadBench:
    """Connect to both and run."""
    async with (
        client.connect(broker.address, broker.cpu_s, bare=False) as broker_target,
        client.connect(bare.address, bare.cpu_s, bare=True) as bare_target,
    ):
        bench = LoadBench(
            broker_target, bare_target, broker, chosen.groups, chosen.rounds, chosen.seconds, chosen.fill_bytes
        )
        await bench.run()
        return bench


def run(chosen: argparse.Namespace, data_dir: Path) -> None:
    """Measure and print."""
    server_core, client_core = processes.cores()
    if server_core is None:
        placed = "servers and client share one core"
    else:
        placed = f"servers on core {server_core}, client on core {client_core}"
    busy = os.getloadavg()[0]
    print(f"takhin load bench: {chosen.rounds} rounds of {chosen.seconds:g} s a case, {placed}", flush=True)
    print(f"load average before: {busy:.2f}", flush=True)
    start_s = time.monotonic()
    with servers(data_dir) as (broker, bare):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            bench = runner.run(measure(chosen, broker, bare))
    reached = report.goals(bench.results, bench.memory)
    settings = {
        "rounds": chosen.rounds,
        "seconds": chosen.seconds,
        "server_core": server_core,
        "client_core": client_core,
        "load_average_before": busy,
        "environment": {name: value for name, value in os.environ.items() if name.startswith("TAKHIN_")},
    }
    line = report.result(settings, data_dir, bench.results, bench.memory, reached)
    print(", ".join(f"{name} {value}" for name, value in line["machine"].items()))
    print(f"\n{report.table(chosen.groups, bench.results)}\n\n{report.LEGEND}\n")
    print(f"{report.memory_lines(bench.memory)}\n\n{report.goals_table(reached)}\n")
    print(f"took {time.monotonic() - start_s:.0f} s")
    text = json.dumps(line)
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        with chosen.json.open("a") as results:
            results.write(text + "\n")
    print(text)


def main() -> int:
    chosen = parse_arguments()
    return processes.exit_status_of("bench.load", partial(run, chosen), chosen.dir, client.LoadFailed)


if __name__ == "__main__":
    sys.exit(main())
