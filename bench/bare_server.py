"""A bare grpc.aio server on uvloop whose handlers return constants: what the transport alone costs.

`python -m bench.bare_server --listen 127.0.0.1:0` prints "bare: serving on HOST:PORT" and serves until SIGTERM or
SIGINT. It has the broker's paths, gRPC options and environment, no serializers, and answers as long as the broker's.
"""

import argparse
import asyncio
import os
import signal
import sys
import time

from bench import environment

environment.prepare()  # Before grpc is imported.

import grpc  # noqa: E402
import uvloop  # noqa: E402

from takhin.cli.malloc import tune_malloc  # noqa: E402
from takhin.cli.server import SWITCH_INTERVAL_S  # noqa: E402
from takhin.config import GrpcSettings, Limits  # noqa: E402
from takhin.rpc.grpc_front import server_options  # noqa: E402
from takhin.v1 import takhin_pb2 as pb  # noqa: E402

NOW_MS = time.time_ns() // 1_000_000
PRODUCE_RESPONSE = pb.ProduceMessageResponse(
    topic="load-000000", offset=10_000, timestamp=NOW_MS, record_count=1, durability=2, epoch=1
).SerializeToString()
CONSUME_RESPONSE = bytes(environment.CONSUME_RESPONSE_BYTES)
RELAY_RESPONSE = pb.ConsumeMessagesResponse(
    topic="load-000000",
    high_watermark=10_000,
    caught_up=True,
    # A response with one record brings its batch's header: 105 bytes.
    records=[pb.Record(value=bytes(environment.RELAY_VALUE_BYTES + 105), timestamp=NOW_MS, offset=1)],
).SerializeToString()


async def produce(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    return PRODUCE_RESPONSE


async def produce_stream(unused: object, context: grpc.aio.ServicerContext) -> None:
    while await context.read() is not grpc.aio.EOF:
        await context.write(PRODUCE_RESPONSE)


async def consume(request: bytes, context: grpc.aio.ServicerContext) -> None:
    """The constant 1 MiB, as many times as the request's max_records says."""
    for _ in range(pb.ConsumeMessagesRequest.FromString(request).max_records):
        await context.write(CONSUME_RESPONSE)


class Relay:
    """Produce and consume tied together with nothing between: the least that end-to-end latency can be here.

    One reader at a time; what is produced without one is dropped.
    """

    def __init__(self) -> None:
        self._pending = 0
        self._wake = asyncio.Event()

    def _poke(self) -> None:
        self._pending += 1
        self._wake.set()

    async def produce(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self._poke()
        return PRODUCE_RESPONSE

    async def produce_stream(self, unused: object, context: grpc.aio.ServicerContext) -> None:
        while await context.read() is not grpc.aio.EOF:
            self._poke()
            await context.write(PRODUCE_RESPONSE)

    async def relay(self, request: bytes, context: grpc.aio.ServicerContext) -> None:
        self._pending = 0
        await context.send_initial_metadata(())
        while True:
            self._wake.clear()
            while self._pending:
                self._pending -= 1
                await context.write(RELAY_RESPONSE)
            await self._wake.wait()


class Handlers(grpc.GenericRpcHandler):
    """Paths to handlers without serializers."""

    def __init__(self) -> None:
        relay = Relay()
        self._handlers = {
            environment.PRODUCE: grpc.unary_unary_rpc_method_handler(produce),
            environment.PRODUCE_STREAM: grpc.stream_stream_rpc_method_handler(produce_stream),
            environment.CONSUME: grpc.unary_stream_rpc_method_handler(consume),
            environment.RELAY: grpc.unary_stream_rpc_method_handler(relay.relay),
            environment.RELAYED_PRODUCE: grpc.unary_unary_rpc_method_handler(relay.produce),
            environment.RELAYED_PRODUCE_STREAM: grpc.stream_stream_rpc_method_handler(relay.produce_stream),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._handlers.get(handler_call_details.method)


async def serve(listen: str) -> None:
    """Serve until a signal, and say where."""
    server = grpc.aio.server(options=server_options(GrpcSettings(), Limits()))
    server.add_generic_rpc_handlers((Handlers(),))
    port = server.add_insecure_port(listen)
    await server.start()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print(f"bare: serving on {listen.rpartition(':')[0]}:{port}", flush=True)
    await stop.wait()
    await server.stop(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT")
    sys.setswitchinterval(SWITCH_INTERVAL_S)  # As the broker does.
    tune_malloc(os.environ)
    uvloop.run(serve(parser.parse_args().listen))


if __name__ == "__main__":
    main()
