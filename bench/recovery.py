"""How long a start takes after kill -9, and how much memory: a log is filled, and the broker killed in the midst of it.

    python -m bench.recovery [--gib 10] [--partitions 4] [--rounds 3] [--directory DIR]

Batches of 100 records of 10 KiB over gRPC, acks 1, on every partition at once. When so much was answered, the broker
is killed, and started again; then the logs' ends are compared with what was answered. Each further round adds a little,
kills and starts. Prints for each what the broker says of its recovery, the time until it serves, the bytes it read from
files, and the peak of its memory at that time. Where the page cache can be dropped (by root), it is: the disk is cold.
"""

import argparse
import asyncio
import os
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from bench import environment

environment.prepare()  # Before grpc is imported.

import grpc  # noqa: E402

from bench import client, processes  # noqa: E402
from takhin.v1 import takhin_pb2 as pb  # noqa: E402

TOPIC = "recovery"
RECORD_BYTES = 10 * 1024
RECORDS = 100
IN_FLIGHT = 8
# What each round but the first adds before it kills.
ADDED_BYTES = 256 << 20


class Load:
    """Batches for every partition until `limit_bytes` were answered; then the broker is killed in mid-stream."""

    def __init__(self, server: processes.ServerProcess, partitions: int, limit_bytes: int) -> None:
        self._server = server
        self._partitions = partitions
        self._left_bytes = limit_bytes
        self._killed = False
        # By partition: the end that an answer told of.
        self.ends = dict.fromkeys(range(partitions), 0)

    async def run(self) -> None:
        """Raises LoadFailed when a request was refused, or the broker ended by itself."""
        async with client.connect(self._server.address, lambda: 0.0, bare=False) as target:
            with suppress(grpc.aio.AioRpcError):
                await target.stub.CreateTopic(pb.CreateTopicRequest(name=TOPIC, num_partitions=self._partitions))
            try:
                await asyncio.gather(*(self._stream(target, number) for number in range(self._partitions)))
            except grpc.aio.AioRpcError as failure:
                if not self._killed:
                    raise client.LoadFailed(f"the broker ended the stream: {failure.details()}") from failure

    async def _stream(self, target: client.Target, partition: int) -> None:
        records = [pb.Record(value=os.urandom(RECORD_BYTES)) for _ in range(RECORDS)]
        request = pb.ProduceMessageRequest(topic=TOPIC, partition=partition, records=records, required_acks=1)
        call = target.stub.ProduceMessageStream()
        for _ in range(IN_FLIGHT):
            await call.write(request)
        while (answer := await call.read()) is not grpc.aio.EOF:
            if answer.error:
                raise client.LoadFailed(answer.error)
            self.ends[partition] = answer.offset + answer.record_count
            self._left_bytes -= RECORD_BYTES * RECORDS
            if self._left_bytes <= 0 and not self._killed:
                self._killed = True
                os.kill(self._server.pid, signal.SIGKILL)
            await call.write(request)


async def check(address: str, ends: dict[int, int]) -> None:
    """Raises LoadFailed when a record that was answered is not there."""
    async with client.connect(address, lambda: 0.0, bare=False) as target:
        for partition, end in ends.items():
            found = await target.stub.GetPartitionOffsets(
                pb.GetPartitionOffsetsRequest(topic=TOPIC, partition=partition)
            )
            if found.end_offset < end:
                raise client.LoadFailed(f"partition {partition} ends at {found.end_offset}, {end} was answered")


def drop_caches() -> bool:
    """Whether the page cache is empty now."""
    try:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError:
        return False
    return True


def read_bytes(pid: int) -> int:
    """What a process has asked files for so far, in bytes."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["rchar"])


def run(directory: Path, gib: float, partitions: int, rounds: int) -> None:
    """Raises LoadFailed, ServerFailed."""
    command = [*processes.broker_command(), "--listen", "127.0.0.1:0", "--data-dir", str(directory / "data")]
    log = directory / "log"
    ends: dict[int, int] = dict.fromkeys(range(partitions), 0)
    for number in range(rounds):
        with processes.ServerProcess(command, log) as server:
            load = Load(server, partitions, int(gib * (1 << 30)) if number == 0 else ADDED_BYTES)
            asyncio.run(load.run())
        ends = {partition: max(end, load.ends[partition]) for partition, end in ends.items()}
        size_bytes = sum(path.stat().st_size for path in (directory / "data" / "topics").rglob("*.log"))
        cold = drop_caches()
        begun_s = time.monotonic()
        with processes.ServerProcess(command, log) as server:
            took_s = time.monotonic() - begun_s
            peak_kib, read = server.memory().peak_rss_kib, read_bytes(server.pid)
            asyncio.run(check(server.address, ends))
            said = next(line for line in server.log_tail().splitlines() if "bytes scanned" in line)
            print(
                f"{size_bytes / (1 << 30):.1f} GiB in {partitions} partitions, disk {'cold' if cold else 'cached'}: "
                f"serving after {took_s:.2f} s, {read / 1e6:.0f} MB read, peak {peak_kib / 1024:.0f} MiB; "
                f"{said.split(': ', 1)[-1]}",
                flush=True,
            )


def main() -> int:
    """Exit status 0; 1 when something failed; 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m bench.recovery", description=__doc__.split("\n")[0])
    parser.add_argument("--gib", type=float, default=10.0, help="how much is written first (default 10)")
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="kills (default 3)")
    parser.add_argument("--directory", default=None, help="where the data goes; removed afterwards")
    arguments = parser.parse_args()
    work = partial(run, gib=arguments.gib, partitions=arguments.partitions, rounds=arguments.rounds)
    return processes.exit_status_of("bench.recovery", work, arguments.directory, client.LoadFailed)


if __name__ == "__main__":
    raise SystemExit(main())
