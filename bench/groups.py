"""Consumer groups: how long a rebalance takes, and how long a record takes from its producer to a member.

    python -m bench.groups [--members 100] [--partitions 300] [--rounds 5] [--seconds 5] [--directory DIR]

The broker is a process of its own on one core; all members and the producer are this process on another, over one
connection. A rebalance has ended when every partition has one owner who was told so, nobody waits, and shares differ by
one at most. Measured: all members join an empty group; one leaves; one joins; half of them leave at once; half of them
join at once. Then, with four members on twelve partitions: batches at even intervals, 100 a second, of 20 and of 100
records of 100 bytes, acks 1; from just before a batch is sent to when the member has its records. Every record is
counted: one that is missing ends the bench. The last line printed is JSON.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from bench import environment

environment.prepare()  # Before grpc is imported.

import grpc  # noqa: E402
import uvloop  # noqa: E402

from bench import processes  # noqa: E402
from takhin.v1 import takhin_pb2 as pb  # noqa: E402
from takhin.v1 import takhin_pb2_grpc  # noqa: E402

BATCHES_A_SECOND = 100
VALUE_BYTES = 100
# Nothing takes this long unless something hangs.
TIMEOUT_S = 60.0


class Member:
    """One stream. It releases at once what it is asked for, and answers pings."""

    def __init__(self, stub: takhin_pb2_grpc.TakhinServiceStub, group: str, topic: str, tell: Callable[[], None]):
        self.partitions: set[int] = set()
        self.arrived_s: list[tuple[float, pb.ConsumeMessagesResponse]] = []
        self._tell = tell
        self._call = stub.Subscribe()
        self._start = pb.SubscribeStart(group_id=group, topics=[topic])
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        await self._call.write(pb.SubscribeRequest(start=self._start))
        while (response := await self._call.read()) is not grpc.aio.EOF:
            kind = response.WhichOneof("response")
            if kind == "records":
                self.arrived_s.append((time.perf_counter(), response.records))
            elif kind == "assigned":
                self.partitions = {each.partition for each in response.assigned.partitions}
                self._tell()
            elif kind == "revoking":
                asked = response.revoking.partitions
                self.partitions -= {each.partition for each in asked}
                await self._call.write(pb.SubscribeRequest(release=pb.Partitions(partitions=asked)))
                self._tell()
            elif kind == "ping":
                await self._call.write(pb.SubscribeRequest(pong=pb.Pong(id=response.ping.id)))

    async def leave(self) -> None:
        await self._call.write(pb.SubscribeRequest(leave=pb.Leave()))
        await self._task

    def fail_if_ended(self) -> None:
        if self._task.done():
            self._task.result()


class Group:
    """The members of one group, and whether they are settled."""

    def __init__(self, stub: takhin_pb2_grpc.TakhinServiceStub, name: str, topic: str, partitions: int):
        self._stub, self._name, self._topic, self._partitions = stub, name, topic, partitions
        self.members: list[Member] = []
        self._changed = asyncio.Event()

    def join(self, count: int) -> None:
        self.members += [Member(self._stub, self._name, self._topic, self._changed.set) for _ in range(count)]

    def leave(self, count: int) -> "asyncio.Future[list[None]]":
        gone, self.members = self.members[:count], self.members[count:]
        return asyncio.gather(*(member.leave() for member in gone))

    def _is_settled(self) -> bool:
        counts = [len(member.partitions) for member in self.members]
        if max(counts) - min(counts) > 1 or sum(counts) != self._partitions:
            return False
        return len(set().union(*(member.partitions for member in self.members))) == self._partitions

    async def settled(self) -> float:
        """Wait until it is; gives the time."""
        async with asyncio.timeout(TIMEOUT_S):
            while not self._is_settled():
                for member in self.members:
                    member.fail_if_ended()
                self._changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 1)
        return time.perf_counter()


async def rebalances(
    stub: takhin_pb2_grpc.TakhinServiceStub, members: int, partitions: int, rounds: int, cpu_s: Callable[[], float]
) -> dict[str, list[tuple[float, float]]]:
    """Of each kind of rebalance, by round: seconds, and the broker's CPU seconds."""
    await stub.CreateTopic(pb.CreateTopicRequest(name="rebalances", num_partitions=partitions))
    results: dict[str, list[tuple[float, float]]] = {}
    half = members // 2
    for number in range(rounds):
        group = Group(stub, f"group-{number}", "rebalances", partitions)

        async def measure(name: str, change: Callable[[], object]) -> None:
            begun_s, begun_cpu_s = time.perf_counter(), cpu_s()
            leaving = change()
            took_s = await group.settled() - begun_s  # noqa: B023
            results.setdefault(name, []).append((took_s, cpu_s() - begun_cpu_s))
            if isinstance(leaving, asyncio.Future):
                await leaving

        await measure(f"{members} join at once", lambda: group.join(members))  # noqa: B023
        await measure("one leaves", lambda: group.leave(1))  # noqa: B023
        await measure("one joins", lambda: group.join(1))  # noqa: B023
        await measure(f"{half} leave at once", lambda: group.leave(half))  # noqa: B023
        await measure(f"{half} join at once", lambda: group.join(half))  # noqa: B023
        await group.leave(len(group.members))
    return results


async def latencies(stub: takhin_pb2_grpc.TakhinServiceStub, batch: int, seconds: float) -> list[float]:
    """Seconds from producer to member, a figure a record."""
    topic = f"latency-{batch}"
    await stub.CreateTopic(pb.CreateTopicRequest(name=topic, num_partitions=12))
    group = Group(stub, topic, topic, 12)
    group.join(4)
    await group.settled()
    stream = stub.ProduceMessageStream()
    sent_s: dict[tuple[int, int], float] = {}
    records = [pb.Record(value=b"x" * VALUE_BYTES) for _ in range(batch)]
    asked_s: list[float] = []

    async def answers() -> None:
        number = 0
        while (answer := await stream.read()) is not grpc.aio.EOF:
            if answer.error:
                raise RuntimeError(answer.error)
            for offset in range(answer.offset, answer.offset + answer.record_count):
                sent_s[answer.partition, offset] = asked_s[number]
            number += 1

    reading = asyncio.ensure_future(answers())
    # Not to measure how files are made.
    for partition in range(12):
        asked_s.append(time.perf_counter())
        await stream.write(pb.ProduceMessageRequest(
            topic=topic, partition=partition, records=records, required_acks=1))
    await asyncio.sleep(0.5)
    warm = set(sent_s)
    begun_s = time.perf_counter()
    for number in range(int(seconds * BATCHES_A_SECOND)):
        await asyncio.sleep(max(0.0, begun_s + number / BATCHES_A_SECOND - time.perf_counter()))
        asked_s.append(time.perf_counter())
        await stream.write(pb.ProduceMessageRequest(
            topic=topic, partition=number % 12, records=records, required_acks=1))
    await stream.done_writing()
    await reading
    async with asyncio.timeout(TIMEOUT_S):
        while len(_arrived(group.members)) < len(sent_s):
            await asyncio.sleep(0.01)
    arrived_s = _arrived(group.members)
    if set(arrived_s) != set(sent_s):
        raise RuntimeError(f"{len(sent_s)} records were produced, {len(arrived_s)} came")
    await group.leave(4)
    return [arrived_s[each] - sent_s[each] for each in sent_s.keys() - warm]


def _arrived(members: Iterable[Member]) -> dict[tuple[int, int], float]:
    return {
        (record.partition, record.offset): at_s
        for member in members for at_s, response in member.arrived_s for record in response.records}


async def run(server: processes.ServerProcess, arguments: argparse.Namespace) -> dict[str, float]:
    figures: dict[str, float] = {}
    async with grpc.aio.insecure_channel(server.address, options=environment.CHANNEL_OPTIONS) as channel:
        stub = takhin_pb2_grpc.TakhinServiceStub(channel)
        found = await rebalances(stub, arguments.members, arguments.partitions, arguments.rounds, server.cpu_s)
        print(f"{arguments.members} members, {arguments.partitions} partitions, {arguments.rounds} rounds")
        for name, pairs in found.items():
            seconds, cpu_s = [pair[0] for pair in pairs], statistics.median(pair[1] for pair in pairs)
            figures[f"{name}, ms"] = round(statistics.median(seconds) * 1000, 1)
            print(f"  {name}: {statistics.median(seconds) * 1000:.0f} ms at the median, "
                  f"{max(seconds) * 1000:.0f} ms at most; the broker's CPU {cpu_s * 1000:.0f} ms")
        for batch in 20, 100:
            delays_s = sorted(await latencies(stub, batch, arguments.seconds))
            p50, p99 = (delays_s[int(len(delays_s) * share)] * 1000 for share in (0.5, 0.99))
            rate = batch * BATCHES_A_SECOND
            figures |= {f"{rate}/s p50, ms": round(p50, 2), f"{rate}/s p99, ms": round(p99, 2)}
            print(f"from producer to member at {rate} records/s in batches of {batch}: {p50:.2f} ms at the median, "
                  f"{p99:.2f} ms for 99%, {delays_s[-1] * 1000:.1f} ms at most ({len(delays_s)} records)")
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.groups", description="Rebalances and latency of groups.")
    parser.add_argument("--members", type=int, default=100)
    parser.add_argument("--partitions", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each rate (default 5)")
    parser.add_argument("--directory", help="where the broker keeps its data; made when missing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        server_core, client_core = processes.cores()
        processes.pin(server_core)
        command = [*processes.broker_command(), "--listen", "127.0.0.1:0", "--data-dir", f"{directory}/data"]
        with processes.ServerProcess(command, Path(directory) / "log") as server:
            processes.pin(client_core)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                figures = runner.run(run(server, arguments))
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
