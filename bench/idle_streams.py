"""What open streams cost that have nothing to do: memory, CPU, and what a neighbour's produce calls take beside them.

    python -m bench.idle_streams [--streams 10000] [--processes 10] [--seconds 10] [--directory DIR]

The broker is a process of its own, as installed. Readers (ConsumeMessages at the end of the log) and then, on a broker
of their own, members (Subscribe, of a group for each process, with fewer partitions than members) are opened by
processes of stock clients, one connection each. Memory is the broker's anonymous resident memory, before, once all are
open, and once they are gone; CPU is the broker's while nothing happens. The neighbour calls ProduceMessage with
required_acks 1, one call after the other, before and beside them. The last line printed is JSON.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from bench import environment

environment.prepare()  # Before grpc is imported.

import grpc  # noqa: E402
import uvloop  # noqa: E402

from bench import processes  # noqa: E402
from takhin.v1 import takhin_pb2 as pb  # noqa: E402
from takhin.v1 import takhin_pb2_grpc  # noqa: E402

KINDS = ("readers", "members")
IDLE, BUSY = "idle", "beside"
PARTITIONS = 8
# Nothing takes this long unless something hangs.
TIMEOUT_S = 300.0
# Until what opening them left behind is freed.
SETTLE_S = 3.0


# The clients' process


async def _hold(address: str, kind: str, count: int, name: str) -> None:
    """Open them, say so, and keep them until standard input ends."""
    options = [*environment.CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub = takhin_pb2_grpc.TakhinServiceStub(channel)
        opened = asyncio.Semaphore(0)
        run = _read if kind == "readers" else _be_member
        tasks = [asyncio.ensure_future(run(stub, number, name, opened)) for number in range(count)]
        for _ in range(count):
            await opened.acquire()
        print("open", flush=True)
        ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        done, _ = await asyncio.wait({ended, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        if ended not in done:
            # At once: what waits for standard input can't be stopped.
            print(f"a stream has ended: {done.pop()}", file=sys.stderr, flush=True)
            os._exit(1)
        for task in tasks:
            task.cancel()


async def _read(
    stub: takhin_pb2_grpc.TakhinServiceStub, number: int, name: str, opened: asyncio.Semaphore
) -> None:
    call = stub.ConsumeMessages(pb.ConsumeMessagesRequest(topic=IDLE, partition=number % PARTITIONS, offset=-2))
    opened.release()
    async for response in call:
        raise RuntimeError(f"nothing was to come: {response}")


async def _be_member(
    stub: takhin_pb2_grpc.TakhinServiceStub, number: int, name: str, opened: asyncio.Semaphore
) -> None:
    call = stub.Subscribe()
    start = pb.SubscribeStart(group_id=name, topics=[IDLE], client_id=f"{name}-{number}")
    await call.write(pb.SubscribeRequest(start=start))
    is_open = False
    while (response := await call.read()) is not grpc.aio.EOF:
        kind = response.WhichOneof("response")
        if kind == "ping":
            await call.write(pb.SubscribeRequest(pong=pb.Pong(id=response.ping.id)))
        elif kind == "revoking":
            await call.write(pb.SubscribeRequest(release=pb.Partitions(partitions=response.revoking.partitions)))
        elif kind == "joined" and not is_open:
            is_open = True
            opened.release()
    raise RuntimeError("a member's stream has ended")


# The bench's own process


def _open_streams(metrics_address: str) -> int:
    with urllib.request.urlopen(f"http://{metrics_address}/metrics", timeout=TIMEOUT_S) as response:
        lines = response.read().decode().splitlines()
    (line,) = [line for line in lines if line.startswith('takhin_limit_used{limit="streams"}')]
    return int(float(line.rpartition(" ")[2]))


def _neighbour(address: str, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.latency", address, BUSY, str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S + seconds, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _create_topics(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = takhin_pb2_grpc.TakhinServiceStub(channel)
        for name, partitions in ((IDLE, PARTITIONS), (BUSY, 1)):
            stub.CreateTopic(pb.CreateTopicRequest(name=name, num_partitions=partitions), timeout=TIMEOUT_S)


def _measure(kind: str, arguments: argparse.Namespace, directory: Path) -> dict[str, object]:
    count = arguments.streams // arguments.processes
    total = count * arguments.processes
    # Where no other process takes it between our asking and the broker's.
    command = [*processes.broker_command(), "--listen", "127.0.0.1:0", "--data-dir", str(directory / "data"),
               "--metrics-listen", "127.0.0.1:0", "--log-level", "warning"]
    with processes.ServerProcess(command, directory / "log") as server:
        metrics_address = server.next_line().rpartition(" ")[2]
        _create_topics(server.address)
        _neighbour(server.address, min(arguments.seconds, 2))  # What the first call of all needs.
        without = _neighbour(server.address, arguments.seconds)
        time.sleep(SETTLE_S)
        before_kib = server.memory().anon_kib
        begun_s = time.perf_counter()
        clients = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.idle_streams", "--hold", server.address, kind, str(count), f"g-{number}"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for number in range(arguments.processes)]
        try:
            for client in clients:
                assert client.stdout is not None
                if client.stdout.readline() != "open\n":
                    raise RuntimeError(f"a client did not open its streams\n{server.log_tail()}")
            while _open_streams(metrics_address) < total:
                if time.perf_counter() - begun_s > TIMEOUT_S:
                    raise RuntimeError(f"{_open_streams(metrics_address)} of {total} streams are open")
                time.sleep(0.2)
            opened_s = time.perf_counter() - begun_s
            time.sleep(SETTLE_S)
            after_kib = server.memory().anon_kib
            begun_cpu_s, begun_s = server.cpu_s(), time.perf_counter()
            time.sleep(arguments.seconds)
            cpu = (server.cpu_s() - begun_cpu_s) / (time.perf_counter() - begun_s)
            beside = _neighbour(server.address, arguments.seconds)
            if (still := _open_streams(metrics_address)) != total:
                raise RuntimeError(f"{still} of {total} streams are still open")
        finally:
            for client in clients:
                client.kill()
                client.wait()
        while _open_streams(metrics_address) > 0:
            time.sleep(0.2)
        time.sleep(SETTLE_S)
        gone_kib = server.memory().anon_kib
    return {
        "streams": total, "connections": arguments.processes, "opened_s": round(opened_s, 1),
        "before_kib": before_kib, "open_kib": after_kib, "gone_kib": gone_kib,
        "kib_a_stream": round((after_kib - before_kib) / total, 2), "idle_cpu_percent": round(cpu * 100, 2),
        "produce_without": without, "produce_beside": beside}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.idle_streams")
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--directory", type=Path, help="where the brokers' data goes; a temporary one")
    parser.add_argument("--hold", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.hold:
        address, kind, count, name = arguments.hold
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_hold(address, kind, int(count), name))
        return 0
    found: dict[str, object] = {}
    for kind in arguments.kind or KINDS:
        with tempfile.TemporaryDirectory(prefix="takhin-idle-", dir=arguments.directory) as directory:
            figures = found[kind] = _measure(kind, arguments, Path(directory))
        print(f"{kind}: {figures['streams']} over {figures['connections']} connections, open after "
              f"{figures['opened_s']} s; {figures['kib_a_stream']} KiB a stream; idle: {figures['idle_cpu_percent']}% "
              f"of a core\n  produce without {figures['produce_without']}\n"
              f"  produce beside  {figures['produce_beside']}")
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
