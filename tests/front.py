"""Fronts for tests, and stock clients of them."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from takhin.config import GrpcSettings
from takhin.rpc.call import Call, Kind, Method, StreamCall, method_table
from tests.fronts import new_front

SERVICE = "test.v1.Test"
PLANTED = "planted-secret"
MIB = 1 << 20
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def path(name: str) -> str:
    return f"/{SERVICE}/{name}"


def unary(handler: Callable[..., Any], name: str = "Unary") -> Method:
    return Method(path(name), Kind.UNARY, handler)


def server_stream(handler: Callable[..., Any], name: str = "ServerStream") -> Method:
    return Method(path(name), Kind.SERVER_STREAM, handler)


def bidi(handler: Callable[..., Any], name: str = "Bidi") -> Method:
    return Method(path(name), Kind.BIDI, handler)


@asynccontextmanager
async def serving(*methods: Method, grace_ms: int = 1000, **settings: Any) -> AsyncIterator[str]:
    front = new_front(method_table(methods), GrpcSettings(**settings))
    address = await front.start("127.0.0.1:0")
    try:
        yield address
    finally:
        await front.stop(grace_ms)


@asynccontextmanager
async def client(*methods: Method, **settings: Any) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a front of its own that serves `methods`."""
    async with serving(*methods, **settings) as address, channel_to(address) as channel:
        yield channel


def channel_to(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=UNLIMITED)


def error_info(exc: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    """Of an error; from_call also checks that code and message are the same in the details as in the status."""
    return details(exc)[0]


def details(exc: grpc.RpcError) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.RequestInfo]:
    """All that an error tells, in its order. The request id stands beside them as well, for who does not read them."""
    status = rpc_status.from_call(exc)
    assert status is not None and len(status.details) == 2
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo()
    assert status.details[0].Unpack(info) and status.details[1].Unpack(request)
    assert dict(exc.trailing_metadata())["x-request-id"] == request.request_id
    return info, request


async def echo(request: bytes, call: Call) -> bytes:
    return request


async def call_kind(channel: grpc.aio.Channel, kind: Kind, request: bytes = b"", **options: Any) -> list[bytes]:
    """One call of the method named after `kind`, to its end. BIDI sends nothing, and leaves its side open.

    grpc.aio's client tells of a write that fails as the call ends as INTERNAL, in place of the server's status.
    """
    if kind is Kind.UNARY:
        return [await channel.unary_unary(path("Unary"))(request, **options)]
    if kind is Kind.SERVER_STREAM:
        return [message async for message in channel.unary_stream(path("ServerStream"))(request, **options)]
    return await read_all(channel.stream_stream(path("Bidi"))(**options))


async def read_all(stream: Any) -> list[bytes]:
    received = []
    while (message := await stream.read()) is not grpc.aio.EOF:
        received.append(message)
    return received


def each_kind(act: Callable[[StreamCall], Coroutine[Any, Any, Any]]) -> list[Method]:
    """One method of each kind, that does `act` and nothing else."""

    async def of_request(request: bytes, call: Any) -> bytes | None:
        return await act(call)

    return [unary(of_request), server_stream(of_request), bidi(act)]
