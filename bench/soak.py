"""An hour of connections, streams, cancellations and deadlines against one front: no call is lost, memory stays flat.

    python -m bench.soak [--seconds 3600] [--front fast|grpc] [--round-seconds 10] [--dir DIR] [--seed N]

The broker is a process of its own; bench/churn.py has what is done to it, round after round, each round on two topics
of its own. The fast front's connections grow no older than some seconds, so that they are taken leave of within each
round. Those of grpc.aio are not: there a call was seen to fail with UNAVAILABLE (max_age), here a call lost. In one
every call is seen to its end: the log must hold exactly what was acknowledged, each record once, at the offset that its
answer named. In the other calls are cancelled, time out and are cut off: what was acknowledged must be there, the rest
may be, nothing twice. Then both are deleted, the broker has a moment of rest, and its anonymous memory (RssAnon) is
looked at; what it had after 10%, 50% and 100% of the time is told. It fails when the last is larger than the second by
more than 5% and 4 MiB, or than the first by more than 15% and 16 MiB. The last line printed is JSON. Exit status 0; 1
when something failed; 130 after Ctrl-C.
"""

import argparse
import asyncio
import itertools
import json
import random
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

from bench import environment

environment.prepare()  # Before grpc is imported.

import grpc  # noqa: E402
import uvloop  # noqa: E402

from bench import processes, report  # noqa: E402
from bench.churn import Book, Churn, SoakFailed  # noqa: E402
from takhin.v1 import takhin_pb2 as pb  # noqa: E402
from takhin.v1 import takhin_pb2_grpc  # noqa: E402

REST_S = 1.0
# Connections are told to go after so long, and end their calls within the grace.
AGE_FLAGS = ("--grpc-connection-age-ms", "4000", "--grpc-connection-age-grace-ms", "30000")
SHARES = (0.1, 0.5, 1.0)
SIGNS_OF_A_BUG = ("Traceback", "internal error", "never retrieved", "never awaited", "Exception ignored")


def check(book: Book, records: list[pb.Record], *, is_steady: bool) -> None:
    """Raises SoakFailed unless the log has what the book says."""
    seen: dict[int, int] = {}
    for due, record in enumerate(records):
        number = int.from_bytes(record.value[:8])
        if record.offset != due:
            raise SoakFailed(f"{book.topic}: offset {record.offset} where {due} was due")
        if number in seen:
            raise SoakFailed(f"{book.topic}: record {number} is at {seen[number]} and at {due}")
        if number not in book.sent:
            raise SoakFailed(f"{book.topic}: record {number}, at {due}, was never sent")
        seen[number] = due
    for number, offset in book.acked.items():
        if seen.get(number) != offset:
            raise SoakFailed(f"{book.topic}: record {number} was acknowledged at {offset}, is at {seen.get(number)}")
    if is_steady and not len(book.sent) == len(book.acked) == len(records):
        raise SoakFailed(f"{book.topic}: {len(book.sent)} sent, {len(book.acked)} acknowledged, {len(records)} found")


class Soak:
    """Rounds against one broker. totals: what was done; samples: (seconds since the start, RssAnon in KiB)."""

    def __init__(
        self, stub: takhin_pb2_grpc.TakhinServiceStub, address: str, broker: processes.ServerProcess, seed: int
    ):
        self._stub = stub
        self._address = address
        self._broker = broker
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self.totals: Counter[str] = Counter()
        self.samples: list[tuple[float, int]] = []

    async def run(self, seconds: float, round_seconds: float) -> None:
        """Raises SoakFailed."""
        start_s = time.monotonic()
        for number in itertools.count():
            left_s = seconds - (time.monotonic() - start_s)
            if left_s <= 0:
                return
            await self._round(number, min(round_seconds, max(left_s, 0.1)))
            await asyncio.sleep(REST_S)
            self._broker.require_alive()
            self.samples.append((time.monotonic() - start_s, self._broker.memory().anon_kib))
            print(f"{self.samples[-1][0]:.0f} s: {self.totals['acknowledged']:,} records acknowledged, "
                  f"RssAnon {self.samples[-1][1]:,} KiB", file=sys.stderr, flush=True)

    async def _round(self, number: int, seconds: float) -> None:
        steady, torn = Book(f"soak-steady-{number}"), Book(f"soak-torn-{number}")
        for book in (steady, torn):
            await self._stub.CreateTopic(pb.CreateTopicRequest(name=book.topic, num_partitions=1))
        until_s = asyncio.get_running_loop().time() + seconds
        churn = Churn(self._address, steady, torn, self.totals, self._numbers, until_s, self._random)
        try:
            async with asyncio.timeout(seconds + 60):
                await churn.run()
        except TimeoutError:
            raise SoakFailed("a round did not come to its end: a call hangs") from None
        for book in (steady, torn):
            check(book, await self._read(book.topic), is_steady=book is steady)
            self.totals["acknowledged"] += len(book.acked)
            self.totals["sent"] += len(book.sent)
            await self._stub.DeleteTopic(pb.DeleteTopicRequest(name=book.topic))

    async def _read(self, topic: str) -> list[pb.Record]:
        """To its end, which must be where GetPartitionOffsets says."""
        offsets = await self._stub.GetPartitionOffsets(pb.GetPartitionOffsetsRequest(topic=topic))
        records: list[pb.Record] = []
        async for response in self._stub.ConsumeMessages(pb.ConsumeMessagesRequest(topic=topic, until_end=True)):
            records += response.records
        if len(records) < offsets.end_offset:
            raise SoakFailed(f"{topic}: {len(records)} records read, the end is {offsets.end_offset}")
        return records


def sampled(samples: list[tuple[float, int]]) -> dict[str, int]:
    """RssAnon in KiB after each share of the time: by "10%", "50%", "100%"."""
    end_s = samples[-1][0]
    return {f"{share:.0%}": next(kib for at_s, kib in samples if at_s >= share * end_s) for share in SHARES}


def check_memory(found: dict[str, int]) -> None:
    """Raises SoakFailed when it grew."""
    first, second, last = (found[f"{share:.0%}"] for share in SHARES)
    if last > second * 1.05 + 4096 or last > first * 1.15 + 16384:
        raise SoakFailed(f"memory grew: RssAnon {first:,} KiB after 10%, {second:,} after 50%, {last:,} at the end")


async def soak(chosen: argparse.Namespace, broker: processes.ServerProcess, address: str) -> Soak:
    async with grpc.aio.insecure_channel(broker.address, options=environment.CHANNEL_OPTIONS) as channel:
        run = Soak(takhin_pb2_grpc.TakhinServiceStub(channel), address, broker, chosen.seed)
        try:
            await run.run(chosen.seconds, chosen.round_seconds)
        except ExceptionGroup as group:
            failure: BaseException = group
            while isinstance(failure, BaseExceptionGroup):
                failure = failure.exceptions[0]
            if isinstance(failure, SoakFailed):
                raise failure from group
            raise
        return run


def run(chosen: argparse.Namespace, directory: Path) -> None:
    front = ("--fast-listen", "127.0.0.1:0", *AGE_FLAGS) if chosen.front == "fast" else ("--fast-listen", "")
    command = [*processes.broker_command(), "--listen", "127.0.0.1:0", "--data-dir", str(directory / "data"), *front]
    server_core, client_core = processes.cores()
    processes.pin(server_core)
    log_path = directory / "log"
    with processes.ServerProcess(command, log_path) as broker:
        address = broker.fast_address() if chosen.front == "fast" else broker.address
        processes.pin(client_core)
        done = uvloop.run(soak(chosen, broker, address))
    told = log_path.read_text(errors="replace")
    if any(sign in told for sign in SIGNS_OF_A_BUG):
        raise SoakFailed(f"the broker's log tells of a bug:\n{told[-4000:]}")
    memory = sampled(done.samples)
    print(", ".join(f"{count:,} {name}" for name, count in done.totals.most_common()))
    print(", ".join(f"RssAnon after {share}: {kib:,} KiB" for share, kib in memory.items()))
    check_memory(memory)
    print(json.dumps({
        "bench": "soak", **report.commit(), "front": chosen.front, "seconds": chosen.seconds, "seed": chosen.seed,
        "counts": dict(done.totals), "rss_anon_kib": memory}))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--round-seconds", type=float, default=10)
    parser.add_argument("--front", choices=("fast", "grpc"), default="fast")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where the broker's data goes (default: TMPDIR)")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    return processes.exit_status_of("bench.soak", partial(run, chosen), chosen.dir, SoakFailed)


if __name__ == "__main__":
    sys.exit(main())
