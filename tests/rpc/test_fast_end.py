"""How calls on the fast front are told of the end of their connection."""

import asyncio
import time

import grpc
import grpc.aio
import pytest

pytest.importorskip("takhin.rpc.fast.connection", reason="the fast front is not built")

from bench import http2
from bench.http2 import ACK, DATA, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, Connection, Frame, frame
from takhin.config import GrpcSettings
from takhin.errors import Reason
from takhin.rpc.call import Call, Kind, StreamCall, method_table
from tests.broker_process import SERVICE
from tests.conftest import StartBroker
from tests.front import Run, call_kind, channel_to, client, echo, error_info, path, server_stream, unary
from tests.fronts import new_front
from tests.hostile import PRODUCE_STREAM
from tests.rpc.test_limits import in_the_clear


def last_call(goaway: Frame | None) -> int:
    assert goaway is not None
    return int.from_bytes(goaway.payload[:4], "big")


def answer_ping(connection: Connection) -> None:
    ping = connection.read_until(PING)
    assert ping is not None and ping.flags == 0
    connection.send(frame(PING, ACK, 0, ping.payload))


async def forever(request: bytes, call: StreamCall) -> None:
    await call.write(b"x")
    await asyncio.Event().wait()


async def slow(request: bytes, call: Call) -> bytes:
    await asyncio.Event().wait()
    return b""


@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.SERVER_STREAM])
def test_a_call_that_is_cut_by_age_has_a_status(run: Run, kind: Kind) -> None:
    async def go() -> None:
        methods = server_stream(forever), unary(slow)
        async with client(*methods, connection_age_ms=200, connection_age_grace_ms=100) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call_kind(channel, kind)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert error_info(caught.value).reason == Reason.DRAINING

    run(go())


@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.SERVER_STREAM])
def test_a_call_that_is_cut_by_a_stop_has_a_status(run: Run, kind: Kind) -> None:
    async def go() -> None:
        front = new_front(method_table([server_stream(forever), unary(slow)]), GrpcSettings())
        async with channel_to(await front.start("127.0.0.1:0")) as channel:
            call = asyncio.create_task(call_kind(channel, kind))
            await asyncio.sleep(0.2)
            await front.stop(0)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert error_info(caught.value).reason == Reason.DRAINING

    run(go())


@in_the_clear
def test_a_produce_stream_that_is_cut_by_age_has_a_status_and_later_calls_are_refused(
    start_broker: StartBroker
) -> None:
    """It is served without a coroutine. The first GOAWAY names no last call, the second does."""
    broker = start_broker("--grpc-connection-age-ms", "300", "--grpc-connection-age-grace-ms", "2000")
    with http2.Connection(broker.address) as connection:
        assert connection.read_until(SETTINGS)
        fields = http2.call_headers(PRODUCE_STREAM)
        connection.send(http2.open_call(1, fields))
        assert last_call(connection.read_until(GOAWAY)) == (1 << 31) - 1
        answer_ping(connection)
        assert last_call(connection.read_until(GOAWAY)) == 1
        connection.send(http2.open_call(3, fields) + frame(PING, 0, 0, bytes(8)))
        ended = []
        while (got := connection.read_frame()) is not None:
            if got.kind in (HEADERS, RST_STREAM):
                ended.append((got.kind, got.stream, got.flags & http2.END_STREAM))
        assert (HEADERS, 1, http2.END_STREAM) in ended
        assert (HEADERS, 3, http2.END_STREAM) not in ended
    broker.check()


@in_the_clear
def test_a_client_that_is_slow_to_read_that_its_connection_ends_loses_no_call(start_broker: StartBroker) -> None:
    """Seen in an hour of churn on a machine that had no time for either end: what the client sends before it answers to
    the ping behind the GOAWAY is served, and the connection does not end before, whatever the clock says."""
    broker = start_broker("--grpc-connection-age-ms", "300", "--grpc-connection-age-grace-ms", "60000")
    with http2.Connection(broker.address) as connection:
        assert last_call(connection.read_until(GOAWAY)) == (1 << 31) - 1
        time.sleep(3)
        fields = http2.call_headers(f"/{SERVICE}/ListTopics")
        connection.send(http2.open_call(1, fields) + http2.message(1, b"", ends=True))
        answer_ping(connection)
        got = []
        while (each := connection.read_frame()) is not None:
            got.append(each)
        assert [each.kind for each in got if each.stream == 1] == [HEADERS, DATA, HEADERS]
        assert [last_call(each) for each in got if each.kind == GOAWAY][-1] == 1
    broker.check()
