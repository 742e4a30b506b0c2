"""A neighbour: one client's produce calls, one after the other, and how long each takes."""

import argparse
import asyncio
import json
import sys
import time

from bench import environment

environment.prepare()  # Before grpc is imported.

import grpc  # noqa: E402
import uvloop  # noqa: E402

from bench.cases import percentile  # noqa: E402
from takhin.v1 import takhin_pb2 as pb  # noqa: E402

VALUE_BYTES = 100
# A call that takes so long has failed.
LONGEST_S = 10.0
TIMEOUT_S = 60.0


def summary(latencies_s: list[float]) -> dict[str, float]:
    """Of some calls: how many, and milliseconds."""
    ordered = sorted(latencies_s)
    failed = sum(latency_s >= LONGEST_S for latency_s in ordered)
    return {"calls": len(ordered), "failed": failed} | {
        name: round(percentile(ordered, share) * 1000, 3)
        for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99), ("max_ms", 1.0))}


async def produce_for(address: str, topic: str, seconds: float, pause_s: float = 0.001) -> list[float]:
    """Seconds a call, of calls with required_acks 1 over a connection of their own. Raises grpc.RpcError."""
    request = pb.ProduceMessageRequest(topic=topic, record=pb.Record(value=b"x" * VALUE_BYTES), required_acks=1)
    latencies_s: list[float] = []
    async with grpc.aio.insecure_channel(address, options=[*environment.CHANNEL_OPTIONS,
                                                           ("grpc.use_local_subchannel_pool", 1)]) as channel:
        await asyncio.wait_for(channel.channel_ready(), TIMEOUT_S)
        produce = channel.unary_unary(environment.PRODUCE)
        message = request.SerializeToString()
        end_s = time.perf_counter() + seconds
        while (begun_s := time.perf_counter()) < end_s:
            try:
                answer = await produce(message, timeout=LONGEST_S)
            except grpc.aio.AioRpcError as problem:
                if problem.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise
                latencies_s.append(LONGEST_S)
                continue
            latencies_s.append(time.perf_counter() - begun_s)
            if pb.ProduceMessageResponse.FromString(answer).error:
                raise RuntimeError(pb.ProduceMessageResponse.FromString(answer).error)
            await asyncio.sleep(pause_s)
    return latencies_s


def main() -> int:
    """python -m bench.latency ADDRESS TOPIC SECONDS: the summary as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.latency")
    parser.add_argument("address")
    parser.add_argument("topic")
    parser.add_argument("seconds", type=float)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(produce_for(arguments.address, arguments.topic, arguments.seconds))
    print(json.dumps(summary(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
