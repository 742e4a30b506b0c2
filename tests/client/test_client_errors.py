"""One tree of errors: every reason of the broker has its class, and nothing of gRPC shows."""

import asyncio

import grpc
import pytest

import takhin
from takhin.client.errors import class_of, client_error
from takhin.errors import Code, Reason, error
from tests.broker_process import BrokerProcess
from tests.client.proxy import proxy_to


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_its_class(reason: Reason) -> None:
    told = error(reason, "what went wrong")
    raised = client_error(int(told.code), told.message, reason.value, {"topic": "orders"})
    assert isinstance(raised, takhin.ClientError) and type(raised) is not takhin.ClientError
    assert raised.code == told.code and raised.reason is reason
    assert raised.message == str(raised) == "what went wrong" and raised.metadata == {"topic": "orders"}
    assert isinstance(raised.retryable, bool)
    # A class of its own is a kind of its code's class.
    assert issubclass(type(raised), class_of(told.code))


def test_unavailable_may_be_tried_again_and_a_wrong_request_not() -> None:
    for reason in Reason:
        raised = client_error(int(error(reason, "").code), "", reason.value)
        if raised.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
            assert raised.retryable, reason
        if raised.code in (Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.DATA_LOSS, Code.INTERNAL):
            assert not raised.retryable, reason
    assert client_error(Code.RESOURCE_EXHAUSTED, "", Reason.DISK_FULL).retryable
    assert not client_error(Code.RESOURCE_EXHAUSTED, "", Reason.RECORD_TOO_LARGE).retryable


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
def test_every_code_has_a_class_without_a_reason(code: Code) -> None:
    raised = client_error(int(code), "text")
    assert raised.reason == "" and raised.code == code
    assert type(client_error(int(code), "text", "REASON_OF_LATER")) is type(raised)
    assert client_error(int(code), "text", "REASON_OF_LATER").reason == "REASON_OF_LATER"


def test_what_the_broker_refuses(shared_broker: BrokerProcess) -> None:
    async def main() -> None:
        async with takhin.connect(shared_broker.address) as tk:
            with pytest.raises(takhin.TopicNotFound, match="no topic 'absent'") as raised:
                await tk.describe_topic("absent")
            assert raised.value.reason is Reason.TOPIC_NOT_FOUND and raised.value.metadata["topic"] == "absent"
            assert raised.value.__cause__ is None and not isinstance(raised.value, grpc.RpcError)
            with pytest.raises(takhin.InvalidArgument) as invalid:
                await tk.create_topic("no/slash")
            assert invalid.value.reason is Reason.INVALID_TOPIC_NAME
            with pytest.raises(takhin.TopicNotFound):
                async for _ in tk.read("absent"):
                    pass
            with pytest.raises(takhin.TopicNotFound):
                async with tk.producer("absent"):
                    pass
            with pytest.raises(takhin.TopicNotFound):
                async with tk.consumer("absent", group="g"):
                    pass
            with pytest.raises(takhin.Unimplemented):
                await tk._transport.unary("/takhin.v1.TakhinService/NoSuchCall", b"")

    asyncio.run(main())


def test_nobody_there_is_told_at_once() -> None:
    async def main() -> None:
        async with takhin.connect("127.0.0.1:1") as tk:
            loop = asyncio.get_running_loop()
            for attempt in (
                tk.health(), tk.producer("orders").start(), tk.consumer("orders", group="g").start(),
                anext(aiter(tk.read("orders"))),
            ):
                begun_s = loop.time()
                with pytest.raises(takhin.Unavailable, match="no broker can be reached at 127.0.0.1:1"):
                    await attempt
                assert loop.time() - begun_s < 10

    asyncio.run(main())


def test_a_call_has_a_deadline(shared_broker: BrokerProcess) -> None:
    async def main() -> None:
        async with proxy_to(shared_broker.address) as proxy, takhin.connect(proxy.address, timeout_s=0.3) as tk:
            assert (await tk.health(timeout_s=30)).status == "healthy"
            proxy.is_blocked = True
            with pytest.raises(takhin.DeadlineExceeded, match="did not answer in time") as raised:
                await tk.list_topics()
            assert raised.value.retryable
            with pytest.raises(takhin.DeadlineExceeded):
                await tk.list_topics(timeout_s=0.1)
            proxy.is_blocked = False
            assert isinstance(await tk.list_topics(timeout_s=30), list)

    asyncio.run(main())


def test_a_closed_client_says_so(shared_broker: BrokerProcess) -> None:
    async def main() -> None:
        tk = takhin.connect(shared_broker.address)
        await tk.health()
        await tk.close()
        await tk.close()
        with pytest.raises(takhin.Closed):
            await tk.health()
        unused = takhin.connect(shared_broker.address)
        await unused.close()
        with pytest.raises(takhin.Closed):
            await unused.list_topics()

    asyncio.run(main())


def test_closing_ends_what_is_under_way(shared_broker: BrokerProcess, topic: str) -> None:
    async def main() -> None:
        tk = takhin.connect(shared_broker.address)
        reading = asyncio.ensure_future(anext(aiter(tk.read(topic))))
        await asyncio.sleep(0.2)
        assert not reading.done()
        await tk.close()
        with pytest.raises(takhin.ClientError):
            await asyncio.wait_for(reading, 10)

    asyncio.run(main())
