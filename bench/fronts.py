"""Both fronts and a bare C++ gRPC server, side by side, under clients in C++ and h2load.

    make bench-cpp
    python -m bench.fronts [--quick] [--rounds 5] [--seconds 1] [--only ROW,...] [--dir DIR] [--json FILE]
                           [--write FILE]

Three servers, each a process of its own, on one core: a broker whose grpc.aio front is called, a broker whose fast
front is called, and bench/cpp/bare_server.cc, which answers produce requests with a constant valid answer, appends
nothing, and sends constant messages to readers, in one row what it reads from a file. The client is on another core.
In every round each row runs against all three, neighbours in time and in changing order; figures are medians over the
rounds, ratios the medians of each round's. After each produce row the partition's end offset is read back: it must be
the number of records that were acknowledged, those of the warm-up included, or the bench ends with status 1. --write
puts the tables between the marks of a page. The last line printed is JSON; --json appends it to a file too. Exit status
0; 1 when something failed; 130 after Ctrl-C.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench import environment

environment.prepare()  # Before grpc is imported.

import grpc  # noqa: E402

from bench import front_report, processes  # noqa: E402
from bench.client import LoadFailed, ProduceLoad  # noqa: E402
from bench.front_rows import BATCH_RECORDS, KIB, MIB, PROGRAMS, Outcome, Row, choose, find_missing, run  # noqa: E402
from bench.report import ROOT, commit, machine  # noqa: E402
from takhin.v1 import takhin_pb2 as pb  # noqa: E402
from takhin.v1 import takhin_pb2_grpc  # noqa: E402

# As long as the topics' names at the brokers: what is sent is equally long.
BARE_TOPIC = "fronts-0000"
# How many h2load is told to send before a server's rate is known.
FIRST_REQUESTS = 500
# The row in which the bare server reads, as the brokers do.
READS_FILE = "catch-up-file"
FILL = Row("fill", "the log that catch-up reads", "raw_client:bidi", batch=BATCH_RECORDS, window=8)


@dataclass
class Target:
    """A server under load. stub: of the broker's grpc.aio front, for topics and offsets; None: the bare server."""

    name: str
    process: processes.ServerProcess
    address: str
    stub: takhin_pb2_grpc.TakhinServiceStub | None = None
    num_topics: int = 0
    # Of catch-up: the topic's name and its end.
    filled: tuple[str, int] = ("", 0)
    rates: dict[str, float] = field(default_factory=dict)

    def create_topic(self) -> str:
        if self.stub is None:
            return BARE_TOPIC
        self.num_topics += 1
        name = f"fronts-{self.num_topics:04}"
        self.stub.CreateTopic(pb.CreateTopicRequest(name=name, num_partitions=1))
        return name

    def check_appended(self, topic: str, acknowledged: int) -> None:
        """Raises LoadFailed unless the topic holds as many records as were acknowledged."""
        if self.stub is None:
            return
        end = self.stub.GetPartitionOffsets(pb.GetPartitionOffsetsRequest(topic=topic)).end_offset
        if end != acknowledged:
            raise LoadFailed(f"{self.name}: {acknowledged} records were acknowledged, the log holds {end}")

    def delete_topic(self, topic: str) -> None:
        if self.stub is not None:
            self.stub.DeleteTopic(pb.DeleteTopicRequest(name=topic))


def produce_request(row: Row, topic: str) -> bytes:
    return ProduceLoad(not row.is_unary, row.batch, row.value_bytes, 1, row.window).request(topic)


class FrontBench:
    """One run: the targets, and each row's figures, by target, a round each."""

    def __init__(self, targets: list[Target], rows: tuple[Row, ...], seconds: float, fill_bytes: int, directory: Path):
        self._targets = targets
        self._rows = rows
        self._seconds = seconds
        self._fill_bytes = fill_bytes
        self._directory = directory
        self.results: front_report.Results = {row.name: {each.name: [] for each in targets} for row in rows}
        self.appended = 0

    def run(self, rounds: int) -> None:
        """Raises LoadFailed and ServerFailed."""
        if any(not row.is_produce for row in self._rows):
            for target in self._targets:
                self._fill(target)
        for number in range(rounds):
            start_s = time.monotonic()
            for row in self._rows:
                first = number % len(self._targets)
                for target in self._targets[first:] + self._targets[:first]:
                    try:
                        outcome = self._measure(row, target)
                    except LoadFailed as failure:
                        raise LoadFailed(f"{row.name}, {target.name}: {failure}") from failure
                    except grpc.RpcError as failure:
                        target.process.require_alive()
                        raise LoadFailed(f"{row.name}, {target.name}: {failure}") from failure
                    self.results[row.name][target.name].append(outcome.figures())
            took_s = time.monotonic() - start_s
            print(f"round {number + 1} of {rounds}: {took_s:.1f} s", file=sys.stderr, flush=True)

    def _measure(self, row: Row, target: Target) -> Outcome:
        if not row.is_produce:
            return self._catch_up(row, target)
        topic = target.create_topic()
        request = produce_request(row, topic)
        acknowledged = 0
        if row.client == "h2load":
            # It is told how many to send: first a few, to know the rate, then a warm-up with that.
            if row.name not in target.rates:
                warm = self._run(row, target, request, 1.0, FIRST_REQUESTS)
                acknowledged += warm.records
                target.rates[row.name] = warm.rate_per_s
            warm = self._run(row, target, request, self._seconds * 0.2, target.rates[row.name])
            acknowledged += warm.records
            target.rates[row.name] = warm.rate_per_s
        outcome = self._run(row, target, request, self._seconds, target.rates.get(row.name, 0.0))
        acknowledged += outcome.records
        target.check_appended(topic, acknowledged)
        if target.stub is not None:
            self.appended += acknowledged
        target.delete_topic(topic)
        return outcome

    def _run(
        self, row: Row, target: Target, request: bytes, seconds: float, rate_per_s: float, end_offset: int = 0
    ) -> Outcome:
        return run(row, target.process, target.address, [request], self._directory, seconds, rate_per_s, end_offset,
                   is_bare=target.stub is None)

    def _fill(self, target: Target) -> None:
        if target.stub is None:
            return
        topic = target.create_topic()
        request = produce_request(FILL, topic)
        acknowledged = 0
        while acknowledged * KIB < self._fill_bytes:
            acknowledged += self._run(FILL, target, request, 0.1, 0.0).records
        target.check_appended(topic, acknowledged)
        target.filled = (topic, acknowledged)

    def _catch_up(self, row: Row, target: Target) -> Outcome:
        topic, end_offset = target.filled
        request = pb.ConsumeMessagesRequest(topic=topic or BARE_TOPIC, max_bytes=MIB, until_end=True)
        if target.stub is None:
            request.max_records = self._fill_bytes // MIB
            request.offset = -1 if row.name == READS_FILE else 0
        return self._run(row, target, request.SerializeToString(), self._seconds, 0.0, end_offset)


@contextlib.contextmanager
def servers(directory: Path, fill_bytes: int) -> Iterator[list[Target]]:
    """All three, on the servers' core; this process and its clients are on the other one then. Raises ServerFailed.

    fill_bytes: in the file that the bare one reads.
    """
    answer = pb.ProduceMessageResponse(
        topic=BARE_TOPIC, offset=10_000, timestamp=time.time_ns() // 1_000_000, record_count=1,
        durability=pb.DURABILITY_WRITTEN, epoch=1)
    response_path = directory / "response"
    response_path.write_bytes(answer.SerializeToString())
    filled_path = directory / "filled"
    with filled_path.open("wb") as file:
        for _ in range(fill_bytes // MIB):
            file.write(os.urandom(MIB))
    broker = [*processes.broker_command(), "--listen", "127.0.0.1:0"]
    bare = [str(PROGRAMS / "bare_server"), f"--response={response_path}", f"--consume_bytes={MIB}",
            f"--consume_file={filled_path}"]
    server_core, client_core = processes.cores()
    processes.pin(server_core)
    with contextlib.ExitStack() as stack:

        def start(name: str, *command: str) -> processes.ServerProcess:
            return stack.enter_context(processes.ServerProcess(list(command), directory / f"{name}.log"))

        grpc_broker = start("grpc", *broker, "--data-dir", str(directory / "grpc"), "--fast-listen", "")
        fast_broker = start(
            "fast", *broker, "--data-dir", str(directory / "fast"), "--fast-listen", "127.0.0.1:0")
        fast_address = fast_broker.fast_address()
        bare_server = start("bare", *bare)
        processes.pin(client_core)
        stubs = []
        for each in (grpc_broker, fast_broker):
            channel = stack.enter_context(grpc.insecure_channel(each.address, options=environment.CHANNEL_OPTIONS))
            stubs.append(takhin_pb2_grpc.TakhinServiceStub(channel))
        yield [
            Target("grpc.aio", grpc_broker, grpc_broker.address, stubs[0]),
            Target("fast", fast_broker, fast_address, stubs[1]),
            Target("bare C++", bare_server, bare_server.address),
        ]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.fronts", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, help="how often each row is measured (default 5; 1 with --quick)")
    parser.add_argument("--seconds", type=float, help="how long each time (default 1; 0.05 with --quick)")
    parser.add_argument("--only", default="", metavar="ROW,...", help="only these rows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the JSON line to FILE")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables between the marks of this page")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where the brokers' data goes (default: TMPDIR)")
    parser.add_argument("--quick", action="store_true", help="one short round: whether it works, not how fast")
    chosen = parser.parse_args(arguments)
    chosen.rounds = chosen.rounds or (1 if chosen.quick else 5)
    chosen.seconds = chosen.seconds or (0.05 if chosen.quick else 1.0)
    chosen.fill_bytes = (16 if chosen.quick else 256) * MIB
    try:
        chosen.rows = choose([name.strip() for name in chosen.only.split(",") if name.strip()])
    except ValueError as unknown:
        parser.error(str(unknown))
    if chosen.rounds < 1 or chosen.seconds <= 0:
        parser.error("--rounds and --seconds are positive")
    if chosen.write and (chosen.quick or chosen.only):
        parser.error("--write is for a whole run: without --quick and --only")
    if chosen.write and not front_report.has_marks(chosen.write.read_text()):
        parser.error(f"{chosen.write} has no marks to put the tables between")
    return chosen


def measure(chosen: argparse.Namespace, directory: Path) -> None:
    """Measure and print."""
    busy, cores = os.getloadavg()[0], processes.cores()
    start_s = time.monotonic()
    with servers(directory, chosen.fill_bytes) as targets:
        bench = FrontBench(targets, chosen.rows, chosen.seconds, chosen.fill_bytes, directory)
        bench.run(chosen.rounds)
        memory_kib = {each.name: vars(each.process.memory()) for each in targets}
    settings = {"rounds": chosen.rounds, "seconds": chosen.seconds, "cores": cores, "load_average_before": busy}
    found = {"bench": "fronts", **commit(), "machine": machine(directory), "settings": settings,
             "appended": bench.appended, "memory_kib": memory_kib,
             "goals": front_report.goals(bench.results), "rows": front_report.medians(bench.results)}
    print(front_report.text(chosen.rows, bench.results))
    print(f"\n{front_report.goals_text(found['goals'])}")
    print(f"\n{bench.appended:,} records acknowledged and counted in the log; load average before: {busy:.2f}; "
          f"took {time.monotonic() - start_s:.0f} s")
    if chosen.write:
        page = chosen.write.read_text()
        chosen.write.write_text(front_report.written(page, front_report.markdown(chosen.rows, bench.results, found)))
    line = json.dumps(found)
    if chosen.json:
        with chosen.json.open("a") as results:
            results.write(line + "\n")
    print(line)


def main() -> int:
    chosen = parse_arguments()
    if missing := find_missing(chosen.rows):
        print(f"bench.fronts: no {', '.join(missing)} in {ROOT.name}: run 'make bench-cpp'; h2load is in Debian's "
              "nghttp2-client", file=sys.stderr)
        return 1
    return processes.exit_status_of("bench.fronts", partial(measure, chosen), chosen.dir, LoadFailed)


if __name__ == "__main__":
    sys.exit(main())
