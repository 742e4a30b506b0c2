"""What bench.fronts measures: its rows, and what a client's run becomes."""

import json
import os
import re
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import environment, processes
from bench.client import LoadFailed
from bench.report import ROOT

PROGRAMS = ROOT / "build" / "bench"
# Nothing takes this long unless something hangs.
TIMEOUT_S = 120.0
# What one run may put into a topic: bounds the disk when a round is told to be long.
MAX_RUN_BYTES = 1 << 30
WARM_SHARE = 0.2
KIB, MIB = 1 << 10, 1 << 20
BATCH_RECORDS = 100


@dataclass(frozen=True)
class Row:
    """`client`: h2load, or PROGRAM:MODE of bench/cpp. connections, streams, window: calls under way are all three
    multiplied (h2load's streams are calls)."""

    name: str
    title: str
    client: str
    value_bytes: int = KIB
    batch: int = 1
    connections: int = 1
    streams: int = 1
    window: int = 1
    unit: str = "calls/s"

    @property
    def is_produce(self) -> bool:
        return not self.client.endswith(":consume")

    @property
    def is_unary(self) -> bool:
        return self.client == "h2load" or self.client.partition(":")[2] in ("unary", "alone")

    @property
    def is_bulk(self) -> bool:
        """Whether MB are what counts."""
        return self.batch > 1 or not self.is_produce


ROWS = (
    Row("unary", "unary, 1 KiB, 256 under way", "h2load", connections=4, streams=64),
    Row("unary-100B", "unary, 100 B, 256 under way", "h2load", value_bytes=100, connections=4, streams=64),
    Row("unary-cpp", "unary, 1 KiB, 64 under way, C++ client", "load_client:unary", window=64),
    Row("alone", "unary, 1 KiB, one at a time, C++ client", "load_client:alone"),
    Row("alone-raw", "unary, 1 KiB, one at a time, raw client", "raw_client:alone"),
    Row("bidi", "bidi, 1 KiB, client that coalesces", "raw_client:bidi", window=1000, unit="messages/s"),
    Row("bidi-100B", "bidi, 100 B, client that coalesces", "raw_client:bidi", value_bytes=100, window=1000,
        unit="messages/s"),
    Row("bidi-cpp", "bidi, 1 KiB, chatty C++ client", "load_client:bidi", window=256, unit="messages/s"),
    Row("bidi-buffered", "bidi, 1 KiB, C++ client with buffer hints", "load_client:buffered", window=256,
        unit="messages/s"),
    Row("bidi-batches", "bidi, batches of 100 x 1 KiB", "raw_client:bidi", batch=BATCH_RECORDS, window=16),
    Row("unary-batches", "unary, batches of 100 x 1 KiB", "h2load", batch=BATCH_RECORDS, connections=1, streams=16),
    Row("streams", "1,000 streams, 1 KiB, one under way on each", "raw_client:bidi", connections=10, streams=100,
        unit="messages/s"),
    Row("catch-up", "catch-up, raw client", "raw_client:consume", value_bytes=MIB),
    Row("catch-up-file", "catch-up, raw client, C++ reads a file", "raw_client:consume", value_bytes=MIB),
    Row("catch-up-cpp", "catch-up, C++ client", "load_client:consume", value_bytes=MIB),
)


def choose(names: list[str]) -> tuple[Row, ...]:
    """The rows so named, in their order; all when none is. ValueError for a name that no row has."""
    known = {row.name for row in ROWS}
    if unknown := set(names) - known:
        raise ValueError(f"no row is named {', '.join(sorted(unknown))}; there are: {', '.join(sorted(known))}")
    return tuple(row for row in ROWS if not names or row.name in names)


def find_missing(rows: tuple[Row, ...]) -> list[str]:
    """What these rows need and is not there."""
    names = {row.client.partition(":")[0] for row in rows} - {"h2load"} | {"bare_server"}
    missing = [str((PROGRAMS / name).relative_to(ROOT)) for name in sorted(names) if not (PROGRAMS / name).exists()]
    if any(row.client == "h2load" for row in rows) and not _is_on_path("h2load"):
        missing.append("h2load")
    return missing


def _is_on_path(program: str) -> bool:
    return any((Path(each) / program).exists() for each in os.get_exec_path())


@dataclass
class Outcome:
    """Of one run of a client. requests, records: all that were answered; the figures leave out the warm-up.

    server_us: CPU of the server's process a request, of the whole run; shares: of one core, of the whole run.
    """

    requests: int
    records: int
    rate_per_s: float
    mb_per_s: float
    server_us: float
    server_us_per_mb: float
    server_share: float
    client_share: float
    p50_us: float | None = None
    p99_us: float | None = None

    def figures(self) -> dict[str, float]:
        return {name: value for name, value in vars(self).items()
                if value is not None and name not in ("requests", "records")}


def run(row: Row, server: processes.ServerProcess, address: str, requests: Sequence[bytes], directory: Path,
        seconds: float, rate_per_s: float, end_offset: int = 0, *, is_bare: bool = False) -> Outcome:
    """One run of the row's client against `address`, which `server` serves.

    requests: one; for raw_client's streams there may be more, which they take in turn. rate_per_s: about how many
    requests it takes; for h2load, which is told how many to send. end_offset: of what is read. is_bare: offsets and
    records say nothing.
    Raises LoadFailed with what the client said.
    """
    paths = [directory / f"request-{number}" for number in range(len(requests))]
    for path, request in zip(paths, requests, strict=True):
        path.write_bytes(request)
    most = max(1, MAX_RUN_BYTES // max(1, *map(len, requests))) if row.is_produce else 1 << 60
    if row.client == "h2load":
        (request,), (path,) = requests, paths
        path.write_bytes(b"\0" + len(request).to_bytes(4) + request)
        count = min(most, max(row.connections * row.streams, int(rate_per_s * seconds)))
        return _run_h2load(row, server, address, path, count)
    program, _, mode = row.client.partition(":")
    command = [str(PROGRAMS / program), f"--mode={mode}", f"--address={address}",
               f"--request={','.join(map(str, paths))}", f"--seconds={seconds}", f"--warm={seconds * WARM_SHARE}",
               f"--max_requests={most}"]
    if row.is_produce:
        command.append(f"--window={row.window}")
        if program == "raw_client":
            command += [f"--connections={row.connections}", f"--streams={row.streams}"]
            if row.connections * row.streams == 1 and mode == "bidi" and not is_bare:
                command.append("--in_order=1")
    elif not is_bare:
        command.append(f"--end_offset={end_offset}")
    output, wall_s, client_s, server_s = _timed(command, server)
    return _outcome(row, json.loads(output.splitlines()[-1]), wall_s, client_s, server_s)


def _outcome(row: Row, found: dict[str, Any], wall_s: float, client_s: float, server_s: float) -> Outcome:
    measured, elapsed_s, requests = found["measured"], found["elapsed_s"], found["requests"]
    if row.is_produce:
        size_bytes = row.value_bytes * row.batch
        measured_mb, all_mb = measured * size_bytes / 1e6, requests * size_bytes / 1e6
    else:
        measured_mb = found["measured_bytes"] / 1e6
        all_mb = measured_mb * requests / measured
    return Outcome(
        requests=requests, records=found["records"], rate_per_s=measured / elapsed_s, mb_per_s=measured_mb / elapsed_s,
        server_us=server_s * 1e6 / requests, server_us_per_mb=server_s * 1e6 / all_mb, server_share=server_s / wall_s,
        client_share=client_s / wall_s, p50_us=found.get("p50_us"), p99_us=found.get("p99_us"))


_RATE = re.compile(r"finished in \S+, ([0-9.]+) req/s")
_REQUESTS = re.compile(r"requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored")


def parse_h2load(output: str, count: int) -> float:
    """How many seconds it took. Raises LoadFailed unless `count` requests were all answered with 200.

    h2load looks at no trailers: that they say grpc-status 0 is found by counting what was appended.
    """
    rate, requests = _RATE.search(output), _REQUESTS.search(output)
    if rate is None or requests is None or [int(each) for each in requests.groups()] != [count, count, count, 0, 0]:
        raise LoadFailed(f"h2load:\n{output}")
    return count / float(rate[1])


def _run_h2load(row: Row, server: processes.ServerProcess, address: str, body: Path, count: int) -> Outcome:
    method = environment.PRODUCE
    command = ["h2load", "-t", "1", "-c", str(row.connections), "-m", str(row.streams), "-n", str(count),
               "-d", str(body), "-H", "content-type: application/grpc", "-H", "te: trailers",
               f"http://{address}{method}"]
    output, wall_s, client_s, server_s = _timed(command, server)
    elapsed_s = parse_h2load(output, count)
    found = {"measured": count, "elapsed_s": elapsed_s, "requests": count, "records": count * row.batch}
    return _outcome(row, found, wall_s, client_s, server_s)


def _timed(command: list[str], server: processes.ServerProcess) -> tuple[str, float, float, float]:
    """Run it: what it printed, how long it took, its CPU time and the server's meanwhile. Raises LoadFailed."""
    start_s, server_start_s = time.monotonic(), server.cpu_s()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
        try:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            output, errors = client.communicate(timeout=TIMEOUT_S)
        except BaseException as failure:
            client.kill()
            if isinstance(failure, subprocess.TimeoutExpired):
                raise LoadFailed(f"{command[0]} did not end in {TIMEOUT_S:.0f} s") from failure
            raise
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall_s, server_s = time.monotonic() - start_s, server.cpu_s() - server_start_s
    if client.returncode:
        server.require_alive()
        raise LoadFailed(f"{Path(command[0]).name}: {errors.strip() or output.strip()}")
    client_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return output, wall_s, client_s, server_s
