"""Request ids: the client's own or one that is made, told beside answers, and in the log; slow requests."""

import asyncio
import gc
import json
import logging
import re
import weakref
from types import SimpleNamespace
from typing import cast

import grpc
import pytest

import takhin
from takhin.errors import Code, Reason, error
from takhin.local_transport import LocalTransport
from takhin.rpc.call import Call, Kind, Method, StreamCall, method_table
from takhin.rpc.current import current_ids
from takhin.rpc.observed import MAX_SLOW_S, Observer, code_of
from takhin.rpc.request_id import given_id, new_id
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import DEADLINE_S, BrokerProcess, new_topic, produce
from tests.conftest import StartBroker
from tests.front import Run, bidi, call_kind, client, details, each_kind, path, server_stream, serving, unary

MADE = re.compile(r"[0-9a-f]{16}")


def observed(*methods: Method, slow_request_ms: int = -1) -> list[Method]:
    return Observer(slow_request_ms).observed(methods)


async def refuse(call: StreamCall) -> None:
    raise error(Reason.TOPIC_NOT_FOUND, "no topic 'a'")


@pytest.mark.parametrize(("value", "is_good"), [
    ("a", True), ("Root=1-67891233-abcdef012345678912345678", True), ("00-4bf9-00f0-01", True), ("x" * 128, True),
    ("host/a+b:c@d~e._", True), ("", False), ("x" * 129, False), ("a b", False), ("a\n", False), ("ü", False),
    ('a"b', False), ("a\x1b", False), ("a,b", False)])
def test_what_is_well_formed(value: str, is_good: bool) -> None:
    assert given_id({"x-request-id": value}) == (value if is_good else "")


def test_ids_that_are_made() -> None:
    assert given_id({}) == "" and given_id({"x-request-id": b"bytes"}) == ""
    made = {new_id() for _ in range(1000)}
    assert len(made) == 1000 and all(MADE.fullmatch(each) and given_id({"x-request-id": each}) for each in made)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("given", ["client-7", None, "not well formed"])
def test_an_error_tells_the_id(run: Run, kind: Kind, given: str | None) -> None:
    async def go() -> None:
        async with client(*observed(*each_kind(refuse))) as channel:
            metadata = (("x-request-id", given),) if given else ()
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call_kind(channel, kind, timeout=10, metadata=metadata)
            info, request = details(refused.value)
            assert info.reason == Reason.TOPIC_NOT_FOUND
            assert request.request_id == "client-7" if given == "client-7" else MADE.fullmatch(request.request_id)

    run(go())


@pytest.mark.parametrize("given", ["client-7", None, "not well formed"])
def test_a_success_tells_the_id_that_the_client_chose(run: Run, given: str | None) -> None:
    async def answer(request: bytes, call: Call) -> bytes:
        return b""

    async def stream(request: bytes, call: StreamCall) -> None:
        await call.write(b"")

    async def both(call: StreamCall) -> None:
        while await call.read() is not None:
            pass

    async def go() -> None:
        async with client(*observed(unary(answer), server_stream(stream), bidi(both))) as channel:
            metadata = (("x-request-id", given),) if given else ()
            one = channel.unary_unary(path("Unary"))(b"", metadata=metadata)
            await one
            many = channel.unary_stream(path("ServerStream"))(b"", metadata=metadata)
            assert [each async for each in many] == [b""]
            ways = channel.stream_stream(path("Bidi"))(metadata=metadata)
            await ways.done_writing()
            assert await ways.read() is grpc.aio.EOF
            for call in (one, many, ways):
                told = dict(await call.trailing_metadata()).get("x-request-id")
                assert told == (given if given == "client-7" else None)

    run(go())


@pytest.mark.parametrize("kind", Kind)
def test_lines_of_a_call_have_its_id_and_later_ones_have_not(run: Run, kind: Kind) -> None:
    seen: list[str] = []
    left: list[asyncio.Task[None]] = []

    async def outlive() -> None:
        seen.append(current_ids().request_id)
        await asyncio.sleep(0.05)
        seen.append(current_ids().request_id)
        await asyncio.sleep(60)

    async def look(call: StreamCall) -> bytes:
        seen.append(current_ids().request_id)
        left.append(asyncio.ensure_future(outlive()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return b""

    async def go() -> None:
        async with client(*observed(*each_kind(look))) as channel:
            await call_kind(channel, kind, timeout=10, metadata=(("x-request-id", "r-1"),))
            await asyncio.sleep(0.1)
            assert seen == ["r-1", "r-1", ""]
            assert current_ids().request_id == ""
        left[0].cancel()

    run(go())


def test_a_task_that_outlives_its_call_does_not_keep_it(run: Run) -> None:
    class Weak(SimpleNamespace):
        """A call that can be asked for after its end."""

    async def go() -> None:
        left: list[asyncio.Task[None]] = []

        async def start(request: bytes, call: Call) -> bytes:
            left.append(asyncio.ensure_future(asyncio.sleep(60)))
            return b""

        (method,) = observed(unary(start))
        call = Weak(request_id="r-1", peer="p", principal=None)
        gone = weakref.ref(call)
        await method.handler(b"", call)
        del call
        gc.collect()
        assert gone() is None
        left[0].cancel()

    run(go())


def test_the_transport_in_the_process_tells_the_id(run: Run) -> None:
    seen: list[str] = []

    async def fail(request: bytes, call: Call) -> bytes:
        seen.append(call.request_id)
        assert current_ids().request_id == call.request_id
        await refuse(cast(StreamCall, call))
        return b""

    async def bug(request: bytes, call: Call) -> bytes:
        seen.append(call.request_id)
        raise ValueError("planted-secret")

    async def fail_stream(request: bytes, call: StreamCall) -> None:
        seen.append(call.request_id)
        await refuse(call)

    async def go() -> None:
        transport = LocalTransport(method_table(observed(
            unary(fail, "Fail"), unary(bug, "Bug"), server_stream(fail_stream, "Stream"))))
        with pytest.raises(takhin.TopicNotFound) as refused:
            await transport.unary(path("Fail"), b"")
        with pytest.raises(takhin.Internal) as broken:
            await transport.unary(path("Bug"), b"")
        with pytest.raises(takhin.TopicNotFound) as ended:
            await transport.server_stream(path("Stream"), b"").read()
        assert [each.value.request_id for each in (refused, broken, ended)] == seen
        assert broken.value.message == f"internal error {seen[1]}"
        assert current_ids().request_id == ""
        await transport.close()

    run(go())


def test_the_clients_errors_have_it(run: Run, shared_broker: BrokerProcess) -> None:
    if shared_broker.secured is not None:
        pytest.skip("the client has no credentials here")

    async def go() -> None:
        async with takhin.connect(shared_broker.address) as tk:
            with pytest.raises(takhin.TopicNotFound) as one:
                await tk.describe_topic("no-such-topic")
            with pytest.raises(takhin.TopicNotFound) as two:
                async for _ in tk.read("no-such-topic", partition=0):
                    pass
            ids = {one.value.request_id, two.value.request_id}
            assert len(ids) == 2 and all(MADE.fullmatch(each) for each in ids)
        async with takhin.connect("127.0.0.1:1", timeout_s=0.2) as tk:
            with pytest.raises(takhin.ClientError) as none:
                await tk.health()
            assert MADE.fullmatch(none.value.request_id)

    run(go())


def test_a_timeout_names_the_request(run: Run) -> None:
    async def hang(request: bytes, call: Call) -> bytes:
        seen.append(call.request_id)
        await asyncio.sleep(60)
        return b""

    seen: list[str] = []

    async def go() -> None:
        method = Method("/takhin.v1.TakhinService/HealthCheck", Kind.UNARY, hang)
        async with serving(method) as address, takhin.connect(address, timeout_s=0.3) as tk:
            with pytest.raises(takhin.DeadlineExceeded) as late:
                await tk.health()
            assert seen == [late.value.request_id] and seen[0] in str(late.value)

    run(go())


# -- slow requests


def test_slow_requests_are_told(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def wait(request: bytes, call: Call) -> bytes:
        await asyncio.sleep(float(request or b"0"))
        call.principal = "key:a"
        if request == b"0.031":
            await refuse(cast(StreamCall, call))
        return b""

    async def last(request: bytes, call: StreamCall) -> None:
        await asyncio.sleep(0.05)

    async def go() -> None:
        async with client(*observed(unary(wait), server_stream(last), slow_request_ms=20)) as channel:
            method = channel.unary_unary(path("Unary"))
            await method(b"0.03", metadata=(("x-request-id", "r-1"),))
            with pytest.raises(grpc.aio.AioRpcError):
                await method(b"0.031", metadata=(("x-request-id", "r-2"),))
            with pytest.raises(grpc.aio.AioRpcError):
                await method(b"60", timeout=0.1, metadata=(("x-request-id", "r-3"),))
            assert [each async for each in channel.unary_stream(path("ServerStream"))(b"")] == []
            async with asyncio.timeout(5):
                while len(caplog.records) < 3:
                    await asyncio.sleep(0.01)

    run(go())
    told = {record.__dict__["request_id"]: record for record in caplog.records if record.name == "takhin.slow"}
    assert set(told) == {"r-1", "r-2", "r-3"}
    text = told["r-1"].getMessage()
    assert re.fullmatch(
        r"slow method=test.v1.Test/Unary duration_ms=\d+ code=OK peer=127\.0\.0\.1:\d+ principal=key:a request=r-1",
        text), text
    assert told["r-1"].__dict__["fields"]["duration_ms"] >= 20
    assert "code=NOT_FOUND" in told["r-2"].getMessage() and "code=DEADLINE_EXCEEDED" in told["r-3"].getMessage()


def test_many_slow_requests_are_counted(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    count = MAX_SLOW_S * 3

    async def wait(request: bytes, call: Call) -> bytes:
        await asyncio.sleep(0.01)
        return b""

    async def go() -> None:
        (method,) = observed(unary(wait), slow_request_ms=1)
        call = SimpleNamespace(request_id="r", peer="p", principal=None)
        await asyncio.gather(*(method.handler(b"", call) for _ in range(count)))
        one_by_one = len(caplog.records)
        # All in one second, or on both sides of where two meet.
        assert one_by_one in (MAX_SLOW_S, 2 * MAX_SLOW_S)
        async with asyncio.timeout(5):
            while len(caplog.records) == one_by_one:
                await asyncio.sleep(0.01)
        last = caplog.records[-1]
        assert last.getMessage() == f"slow count={count - one_by_one} more, not told one by one"
        assert last.levelno == logging.WARNING

    run(go())


def test_none_is_slow_when_none_is_to_be_told(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def wait(request: bytes, call: Call) -> bytes:
        await asyncio.sleep(0.02)
        return b""

    async def go() -> None:
        observer = Observer(-1)
        (method,) = observer.observed([unary(wait)])
        call = SimpleNamespace(request_id="r", peer="p", principal=None)
        await method.handler(b"", call)
        assert not caplog.records
        observer.slow_request_ms = 1
        await method.handler(b"", call)
        assert len(caplog.records) == 1

    run(go())


def test_the_code_of_a_failure() -> None:
    call = cast(Call, SimpleNamespace(time_remaining_s=lambda: None))
    late = cast(Call, SimpleNamespace(time_remaining_s=lambda: 0.0))
    assert code_of(error(Reason.DISK_FULL, ""), call) is Code.RESOURCE_EXHAUSTED
    assert code_of(ValueError(), call) is Code.INTERNAL
    assert code_of(asyncio.CancelledError(), call) is Code.CANCELLED
    assert code_of(asyncio.CancelledError(), late) is Code.DEADLINE_EXCEEDED


def test_a_slow_disk_shows_in_the_log(start_broker: StartBroker, strace: list[str]) -> None:
    broker = start_broker(
        "--slow-request-ms", "50", "--log-format", "json",
        prefix=[*strace, "-o", "/dev/null", "-e", "trace=fdatasync,fsync,sync_file_range",
                "-e", "inject=fdatasync,fsync,sync_file_range:delay_exit=100000"])
    topic = new_topic(broker.stub())
    since = len(broker.stderr)
    broker.stub().ProduceMessage(
        pb.ProduceMessageRequest(topic=topic, required_acks=-1, record=pb.Record(value=b"payload-of-mine")),
        timeout=DEADLINE_S, metadata=(("x-request-id", "slow-1"),))
    told = json.loads(broker.wait_for_log("slow-1", since))
    assert (told["logger"], told["method"], told["code"]) == (
        "takhin.slow", "takhin.v1.TakhinService/ProduceMessage", "OK")
    assert told["request_id"] == "slow-1" and told["duration_ms"] >= 50
    assert "payload-of-mine" not in broker.stderr
    produce(broker.stub(), topic, b"quick")
