"""grpc.health.v1 as stock clients use it: Check, Watch, List, statuses that change, and the end."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from takhin.config import GrpcSettings
from takhin.errors import Reason
from takhin.rpc.call import method_table
from takhin.rpc.health import SERVICE, Health, ServingStatus
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import DEADLINE_S, BrokerProcess, error_info, new_topic, produce
from tests.conftest import StartBroker
from tests.front import Run
from tests.fronts import new_front

TAKHIN = "takhin.v1.TakhinService"
UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN = range(4)  # the numbers of health.proto


@asynccontextmanager
async def serving(health: Health) -> AsyncIterator[grpc.aio.Channel]:
    front = new_front(method_table(health.methods()), GrpcSettings())
    async with grpc.aio.insecure_channel(await front.start("127.0.0.1:0")) as channel:
        yield channel
    await front.stop(1000)


async def check(channel: grpc.aio.Channel, service: str = "") -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return (await health_pb2_grpc.HealthStub(channel).Check(request)).status


def watch(channel: grpc.aio.Channel, service: str = "") -> Any:
    return health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))


def reason(exc: grpc.RpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    rpc_status.from_call(exc).details[0].Unpack(info)
    return info.reason


def test_check(run: Run) -> None:
    async def go() -> None:
        health = Health([TAKHIN])
        async with serving(health) as channel:
            names = ("", TAKHIN, SERVICE)
            assert [await check(channel, name) for name in names] == [NOT_SERVING] * 3
            health.set_all(ServingStatus.SERVING)
            assert [await check(channel, name) for name in names] == [SERVING] * 3
            health.set(TAKHIN, ServingStatus.NOT_SERVING)
            assert [await check(channel, name) for name in names] == [SERVING, NOT_SERVING, SERVING]
            health.set(TAKHIN, ServingStatus.UNKNOWN)
            assert await check(channel, TAKHIN) == UNKNOWN

    run(go())


def test_check_of_an_unknown_service(run: Run) -> None:
    async def go() -> None:
        async with serving(Health([TAKHIN])) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await check(channel, "no.such.Service")
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            assert reason(caught.value) == Reason.SERVICE_NOT_FOUND
            assert "no.such.Service" in caught.value.details()

    run(go())


def test_list(run: Run) -> None:
    async def go() -> None:
        health = Health([TAKHIN])
        health.set(TAKHIN, ServingStatus.SERVING)
        async with serving(health) as channel:
            listed = await health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest())
            statuses = {name: response.status for name, response in listed.statuses.items()}
            assert statuses == {"": NOT_SERVING, SERVICE: NOT_SERVING, TAKHIN: SERVING}

    run(go())


def test_sync_client(run: Run) -> None:
    def talk(address: str) -> None:
        with grpc.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            assert stub.Check(health_pb2.HealthCheckRequest()).status == SERVING
            watching = stub.Watch(health_pb2.HealthCheckRequest(service="no.such.Service"))
            assert next(watching).status == SERVICE_UNKNOWN
            watching.cancel()

    async def go() -> None:
        health = Health([])
        health.set_all(ServingStatus.SERVING)
        front = new_front(method_table(health.methods()), GrpcSettings())
        await asyncio.to_thread(talk, await front.start("127.0.0.1:0"))
        await front.stop(1000)

    run(go())


def test_watch_tells_at_once_and_then_each_change(run: Run) -> None:
    async def go() -> None:
        health = Health([TAKHIN])
        async with serving(health) as channel:
            watching, other = watch(channel, TAKHIN), watch(channel)
            assert (await watching.read()).status == NOT_SERVING
            assert (await other.read()).status == NOT_SERVING
            for status in (ServingStatus.SERVING, ServingStatus.NOT_SERVING, ServingStatus.UNKNOWN):
                health.set(TAKHIN, status)
                assert (await watching.read()).status == status
            health.set(TAKHIN, ServingStatus.UNKNOWN)  # no change, no message
            health.set("", ServingStatus.SERVING)
            assert (await other.read()).status == SERVING
            health.set(TAKHIN, ServingStatus.SERVING)
            assert (await watching.read()).status == SERVING
            watching.cancel()
            other.cancel()

    run(go())


def test_watch_of_an_unknown_service_goes_on_until_it_is_known(run: Run) -> None:
    async def go() -> None:
        health = Health([])
        async with serving(health) as channel:
            watching = watch(channel, "later.v1.Later")
            assert (await watching.read()).status == SERVICE_UNKNOWN
            health.set("later.v1.Later", ServingStatus.SERVING)
            assert (await watching.read()).status == SERVING
            assert await check(channel, "later.v1.Later") == SERVING
            watching.cancel()

    run(go())


def test_watchers_are_forgotten_when_they_leave(run: Run) -> None:
    async def go() -> None:
        health = Health([TAKHIN])
        async with serving(health) as channel:
            watching = [watch(channel, f"unknown.{number}") for number in range(50)]
            watching += [watch(channel, TAKHIN) for _ in range(50)]
            for stream in watching:
                await stream.read()
            assert sum(len(watchers) for watchers in health._watchers.values()) == 100
            for stream in watching:
                stream.cancel()
            async with asyncio.timeout(5):
                while health._watchers:
                    await asyncio.sleep(0.01)
            health.set_all(ServingStatus.SERVING)

    run(go())


def test_a_watcher_that_does_not_read_holds_nothing_up(run: Run) -> None:
    """None of the changes waits in memory for it: once it reads, what comes last is the newest."""

    async def go() -> None:
        health = Health([])
        async with serving(health) as channel:
            slow, quick = watch(channel), watch(channel)
            await slow.read()
            await quick.read()
            for number in range(2000):
                health.set("", ServingStatus(number % 2 + 1))
                assert (await quick.read()).status == number % 2 + 1
            health.set("", ServingStatus.UNKNOWN)
            async with asyncio.timeout(5):
                while (await slow.read()).status != UNKNOWN:
                    pass
            slow.cancel()
            quick.cancel()

    run(go())


def test_drain_tells_watchers_and_ends_them(run: Run) -> None:
    async def go() -> None:
        health = Health([TAKHIN])
        health.set_all(ServingStatus.SERVING)
        async with serving(health) as channel:
            watching, stranger = watch(channel, TAKHIN), watch(channel, "no.such.Service")
            assert (await watching.read()).status == SERVING
            assert (await stranger.read()).status == SERVICE_UNKNOWN
            health.drain()
            health.drain()
            assert (await watching.read()).status == NOT_SERVING
            for stream in (watching, stranger):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stream.read()
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                assert reason(caught.value) == Reason.DRAINING
            health.set_all(ServingStatus.SERVING)  # too late
            health.set(TAKHIN, ServingStatus.SERVING)
            assert await check(channel, TAKHIN) == await check(channel) == NOT_SERVING
            late = watch(channel)
            assert (await late.read()).status == NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError):
                await late.read()
        assert not health._watchers

    run(go())


BROKEN = [b"\x0a\x05ab", b"\xff", b"\x00"]
NOT_UTF8 = [b"\x0a\x01\xff"]  # no harm in List, which has no fields


@pytest.mark.parametrize(
    ("method", "request_bytes"),
    [(method, broken) for method in ("Check", "Watch") for broken in BROKEN + NOT_UTF8]
    + [("List", broken) for broken in BROKEN],
)
def test_malformed_requests(run: Run, method: str, request_bytes: bytes) -> None:
    async def go() -> None:
        async with serving(Health([])) as channel:
            path = f"/{SERVICE}/{method}"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                if method == "Watch":
                    await channel.unary_stream(path)(request_bytes).read()
                else:
                    await channel.unary_unary(path)(request_bytes)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert reason(caught.value) == Reason.MALFORMED_REQUEST

    run(go())


def test_every_method_of_the_service_is_there() -> None:
    methods = health_pb2.DESCRIPTOR.services_by_name["Health"].methods
    assert {method.path for method in Health([]).methods()} == {f"/{SERVICE}/{method.name}" for method in methods}


# Of a broker: readiness apart from liveness


def statuses(broker: BrokerProcess) -> tuple[int, int]:
    """Of the server as a whole, and of its service."""
    with broker.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        whole, service = (
            stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=DEADLINE_S).status for name in ("", TAKHIN)
        )
    return whole, service


def eventually(broker: BrokerProcess, wanted: tuple[int, int]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while (found := statuses(broker)) != wanted:
        assert time.monotonic() < deadline_s, found
        time.sleep(0.05)


def test_a_poisoned_partition_makes_it_not_ready(start_broker: StartBroker, strace: list[str]) -> None:
    broker = start_broker(
        prefix=[*strace, "-o", "/dev/null", "-P", "{data}/topics/1/0/00000000000000000000.log", "-e",
                "inject=fdatasync:error=EIO"])
    topic = new_topic(broker.stub())
    eventually(broker, (SERVING, SERVING))
    with pytest.raises(grpc.RpcError):
        produce(broker.stub(), topic, b"x", acks=-1)
    eventually(broker, (SERVING, NOT_SERVING))
    # Who is rid of it is well.
    broker.stub().DeleteTopic(pb.DeleteTopicRequest(name=topic), timeout=DEADLINE_S)
    eventually(broker, (SERVING, SERVING))


def test_a_segment_that_cannot_be_begun_makes_it_not_ready(start_broker: StartBroker) -> None:
    broker = start_broker()
    topic = new_topic(broker.stub())
    place = broker.data_dir / "topics" / "1"
    place.write_bytes(b"")
    for _ in range(3):
        with pytest.raises(grpc.RpcError) as refusal:
            produce(broker.stub(), topic, b"x", acks=1)
        assert error_info(refusal.value).reason == "WRITE_FAILED"
    eventually(broker, (SERVING, NOT_SERVING))
    assert broker.stderr.count("can't be begun: Not a directory; tried again with each append") == 1
    assert "not ready: segments of 1 partitions can't be begun" in broker.stderr
    place.unlink()
    produce(broker.stub(), topic, b"x", acks=1)
    eventually(broker, (SERVING, SERVING))


def test_a_full_disk_makes_it_not_ready(start_broker: StartBroker) -> None:
    broker = start_broker("--limits-min-free-bytes", str(1 << 40))
    eventually(broker, (SERVING, NOT_SERVING))
