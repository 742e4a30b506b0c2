"""takhin.Broker: the engine in a program, with and without a port."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2

import takhin
from takhin.client import (
    Cancelled,
    DeadlineExceeded,
    GroupHasMembers,
    OffsetOutOfRange,
    TopicExists,
    TopicNotFound,
    Unavailable,
    Unimplemented,
)
from takhin.client.admin import IS_READY, SERVING
from takhin.errors import ConfigError, Reason, StartError
from takhin.local_transport import LocalTransport, ThreadedTransport
from takhin.rpc.call import Kind, Method, StreamCall, method_table
from tests.broker_process import BrokerProcess

Scenario = Callable[[], Awaitable[None]]


def run(scenario: Scenario) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await scenario()

    asyncio.run(bounded())


def test_everything_a_client_does_without_a_port(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with takhin.Broker(tmp_path / "data", topics__partitions=2) as broker, broker.client() as tk:
            assert broker.address is None
            await tk.create_topic("orders")
            assert len((await tk.describe_topic("orders")).partitions) == 2
            async with tk.producer("orders", acks="durable") as producer:
                stored = await producer.send(b"v", key=b"k", headers={"h": b"x"})
                sent = [producer.send_nowait(b"%d" % number, partition=stored.partition) for number in range(3000)]
                for each in sent:
                    await each
            found = [each async for each in tk.read("orders", partition=stored.partition, until_end=True)]
            assert (found[0].key, found[0].value, found[0].headers) == (b"k", b"v", (("h", b"x"),))
            assert [each.value for each in found[1:]] == [b"%d" % number for number in range(3000)]
            async with tk.consumer("orders", group="billing") as consumer:
                message = await anext(consumer)
                await consumer.commit(message)
                with pytest.raises(GroupHasMembers):
                    await tk.reset_offsets("billing", to="latest", topics=["orders"])
            assert (await tk.group_offsets("billing"))[0].committed == 1
            async with tk.transaction() as transaction:
                transaction.send("orders", b"t", partition=stored.partition)
            assert (await tk.offsets("orders", stored.partition)).end == 3002
        # It stopped in order: what it wrote is there for the next one.
        async with takhin.Broker(tmp_path / "data") as broker, broker.client() as tk:
            assert (await tk.offsets("orders", stored.partition)).end == 3002

    run(scenario)


def test_errors_are_those_that_come_over_grpc() -> None:
    async def scenario() -> None:
        async with takhin.Broker() as broker, broker.client() as tk:
            with pytest.raises(TopicNotFound) as missing:
                await tk.describe_topic("nope")
            assert (missing.value.reason, missing.value.metadata) == (Reason.TOPIC_NOT_FOUND, {"topic": "nope"})
            await tk.create_topic("t")
            with pytest.raises(TopicExists):
                await tk.create_topic("t")
            with pytest.raises(OffsetOutOfRange):
                await anext(tk.read("t", start=5))
            with pytest.raises(Unimplemented):
                await broker.transport().unary("/takhin.v1.TakhinService/Nope", b"")

    run(scenario)


def test_with_a_port_others_reach_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with takhin.Broker(tmp_path, listen="127.0.0.1:0") as broker:
            assert broker.address is not None
            async with takhin.connect(broker.address) as far, broker.client() as near:
                await far.create_topic("t")
                assert await near.list_topics() == ["t"]
                assert (await far.health()).status == "healthy"
        assert broker.address is None

    run(scenario)


def test_a_temporary_directory_goes_with_it() -> None:
    async def scenario() -> None:
        async with takhin.Broker() as broker:
            directory = broker.data_dir
            assert directory is not None and (directory / "LOCK").exists()
        assert not directory.exists() and broker.data_dir is None
        with pytest.raises(RuntimeError, match="does not run"):
            broker.client()

    run(scenario)


def test_a_closed_client_is_forgotten() -> None:
    async def scenario() -> None:
        async with takhin.Broker() as broker:
            for _ in range(3):
                async with broker.client() as tk:
                    await tk.list_topics()
            assert not broker._clients

    run(scenario)


def test_what_keeps_it_from_starting(tmp_path: Path, shared_broker: BrokerProcess) -> None:
    async def scenario() -> None:
        for settings, told in [
            ({"topics__partitons": 3}, "topics.partitons"), ({"topics__partitions": 0}, "1 to"),
            ({"log_level": "loud"}, "debug"),
        ]:
            with pytest.raises(ConfigError, match=told):
                await takhin.Broker(tmp_path, **settings).start()
        async with takhin.Broker(tmp_path):
            with pytest.raises(StartError):
                await takhin.Broker(tmp_path).start()
        with pytest.raises(StartError, match="in use"):
            await takhin.Broker(listen=shared_broker.address).start()

    run(scenario)


def test_streams_are_told_when_it_stops() -> None:
    async def scenario() -> None:
        async with takhin.Broker() as broker:
            tk = broker.client(retry_s=0.1)
            await tk.create_topic("t")
            async with tk.producer("t") as producer:
                await producer.send(b"v")
            reader = tk.read("t")
            assert (await anext(reader)).value == b"v"
            waiting = asyncio.ensure_future(anext(reader))
            await asyncio.sleep(0.05)
        with pytest.raises((Unavailable, takhin.Closed, Cancelled)):
            await waiting

    run(scenario)


# The transport alone, over methods that a broker does not have.


async def _echo(call: StreamCall) -> None:
    while (message := await call.read()) is not None:
        await call.write(message)


async def _flood(_request: bytes, call: StreamCall) -> None:
    for number in range(1000):
        sent.append(number)
        await call.write(b"%d" % number)


async def _slow(_request: bytes, call: object) -> bytes:
    await asyncio.sleep(60)
    return b""


async def _broken(_request: bytes, call: object) -> bytes:
    raise KeyError("our bug")


sent: list[int] = []
METHODS = method_table([
    Method("/s/Echo", Kind.BIDI, _echo), Method("/s/Flood", Kind.SERVER_STREAM, _flood),
    Method("/s/Slow", Kind.UNARY, _slow), Method("/s/Broken", Kind.UNARY, _broken)])


@pytest.mark.parametrize("threaded", [False, True])
def test_the_transport(threaded: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        transport = LocalTransport(METHODS)
        used = ThreadedTransport(transport, asyncio.get_running_loop()) if threaded else transport
        echo = used.bidi("/s/Echo")
        for number in range(20):
            await echo.write(b"%d" % number)
            assert await echo.read() == b"%d" % number
        # What a cancelled read has taken is the next one's, at whatever moment it is cancelled.
        for turns in range(12):
            reading = asyncio.ensure_future(echo.read())
            await asyncio.sleep(0.002)
            await next(iter(transport._streams)).write(b"%d" % turns)
            for _ in range(turns):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
            async with asyncio.timeout(5):
                assert (await echo.read() if reading.cancelled() else reading.result()) == b"%d" % turns
        await echo.done_writing()
        assert await echo.read() is None
        # Who does not read holds up who writes; who cancels ends it.
        sent.clear()
        flood = used.server_stream("/s/Flood", b"")
        assert await flood.read() == b"0"
        await asyncio.sleep(0.05)
        assert len(sent) < 20
        flood.cancel()
        with pytest.raises(Cancelled):
            while await flood.read() is not None:
                pass
        with pytest.raises(DeadlineExceeded):
            await used.unary("/s/Slow", b"", 0.01)
        with pytest.raises(takhin.Internal) as broken:
            await used.unary("/s/Broken", b"")
        assert "our bug" not in broken.value.message and "our bug" in caplog.text
        unfinished = used.bidi("/s/Echo")
        await unfinished.write(b"x")
        await used.close()
        with pytest.raises(takhin.ClientError):
            await unfinished.read()
            await unfinished.read()
        with pytest.raises(takhin.Closed):
            await used.unary("/s/Slow", b"")

    run(scenario)


def test_the_bytes_that_ask_for_readiness_are_the_contract_s() -> None:
    request = health_pb2.HealthCheckRequest(service="takhin.v1.TakhinService")
    answer = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
    assert (IS_READY, SERVING) == (request.SerializeToString(), answer.SerializeToString())


def test_a_full_disk_is_not_ready(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with takhin.Broker(tmp_path / "well") as broker, broker.client() as tk:
            assert await tk.is_ready()
        # More than any disk has.
        async with takhin.Broker(tmp_path / "full", limits__min_free_bytes=1 << 40) as broker, broker.client() as tk:
            while await tk.is_ready():
                await asyncio.sleep(0.01)
            assert (await tk.health()).status == "healthy"

    run(scenario)
