"""Streams end when the credentials they were opened with do, or what ACLs allow; what goes into the audit log."""

import asyncio
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from takhin.errors import Reason, error
from takhin.rpc import guarded_call
from takhin.rpc.call import Call, StreamCall
from takhin.rpc.guarded_call import GuardedCall
from takhin.v1 import access_pb2, access_pb2_grpc, takhin_pb2_grpc
from takhin.v1 import takhin_pb2 as pb
from tests import front
from tests.broker_process import DEADLINE_S, BrokerProcess, Stub, error_info, new_topic, offsets, produce, wait_until
from tests.front import Run
from tests.member import Member
from tests.rpc.test_slow_readers import NARROW, fill
from tests.secured import Secured

A = access_pb2
EXPIRED = (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_EXPIRED")
INVALID = (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")
DENIED = (grpc.StatusCode.PERMISSION_DENIED, "ACCESS_DENIED")


@pytest.fixture
def admin(secured_broker: BrokerProcess) -> access_pb2_grpc.AccessServiceStub:
    return access_pb2_grpc.AccessServiceStub(secured_broker.channel())


@pytest.fixture
def topic(secured_broker: BrokerProcess) -> str:
    return new_topic(secured_broker.stub())


def secured_of(broker: BrokerProcess) -> Secured:
    assert broker.secured is not None
    return broker.secured


def stub_with(broker: BrokerProcess, token: str) -> Stub:
    return takhin_pb2_grpc.TakhinServiceStub(secured_of(broker).channel(broker.address, token=token))


def entry(principal: str, operation: int, resource: int, name: str, effect: int = A.ACL_EFFECT_ALLOW) -> A.Acl:
    return A.Acl(principal=principal, effect=effect, operation=operation, resource=resource, name=name)


def allow_all(admin: access_pb2_grpc.AccessServiceStub, principal: str, topic: str) -> list[A.Acl]:
    entries = [
        entry(principal, A.ACL_OPERATION_PRODUCE, A.ACL_RESOURCE_TOPIC, topic),
        entry(principal, A.ACL_OPERATION_CONSUME, A.ACL_RESOURCE_TOPIC, topic),
        entry(principal, A.ACL_OPERATION_GROUP, A.ACL_RESOURCE_GROUP, f"group-{topic}")]
    admin.CreateAcls(A.CreateAclsRequest(acls=entries))
    return entries


class Streams:
    """A consumer, a member and a producer, open and idle."""

    def __init__(self, broker: BrokerProcess, topic: str, token: str):
        self.stub = stub_with(broker, token)
        self.topic = topic
        self.consumer = self.stub.ConsumeMessages(pb.ConsumeMessagesRequest(topic=topic, offset=-1), timeout=DEADLINE_S)
        self.member = Member(self.stub, f"group-{topic}", topic)
        self.requests: queue.SimpleQueue[pb.ProduceMessageRequest | None] = queue.SimpleQueue()
        self.producer = self.stub.ProduceMessageStream(iter(self.requests.get, None), timeout=DEADLINE_S)
        self.member.wait_for("assigned")
        assert self.produce().code == 0
        assert next(self.consumer).records[0].value == b"x"

    def produce(self) -> pb.ProduceMessageResponse:
        self.requests.put(pb.ProduceMessageRequest(topic=self.topic, record=pb.Record(value=b"x"), required_acks=1))
        return next(self.producer)

    def refusals(self) -> list[tuple[grpc.StatusCode, str]]:
        """How each of them ends."""
        found = [refusal_of(self.consumer), self.member.refused(), refusal_of(self.producer)]
        self.requests.put(None)
        return found


def refusal_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as refused:
        list(call)
    return refused.value.code(), error_info(refused.value).reason


def test_streams_end_when_the_token_expires(secured_broker: BrokerProcess, topic: str) -> None:
    expires_s = int(time.time()) + 3
    streams = Streams(secured_broker, topic, secured_of(secured_broker).token(exp=expires_s))
    since = len(secured_broker.stderr)
    assert streams.refusals() == [EXPIRED] * 3
    assert time.time() >= expires_s - 0.1, "not before"
    assert "principal=jwt:tests" in secured_broker.wait_for_log("denied method=Subscribe .*CREDENTIALS_EXPIRED", since)
    with pytest.raises(grpc.RpcError) as refused:
        produce(streams.stub, topic, b"late")
    assert error_info(refused.value).reason == "CREDENTIALS_EXPIRED"


def test_streams_end_when_the_key_is_revoked(
    secured_broker: BrokerProcess, topic: str, admin: access_pb2_grpc.AccessServiceStub
) -> None:
    revoked, kept = (admin.CreateApiKey(A.CreateApiKeyRequest(name=f"{topic}-{n}")) for n in range(2))
    for each in revoked, kept:
        allow_all(admin, f"key:{each.info.name}", topic)
    streams, others = (Streams(secured_broker, topic, each.key) for each in (revoked, kept))
    admin.RevokeApiKey(A.RevokeApiKeyRequest(id=revoked.info.id))
    assert streams.refusals() == [INVALID] * 3
    assert others.produce().code == 0, "of another key"
    assert next(others.consumer).records
    others.consumer.cancel()
    others.requests.put(None)
    others.member.leave()


def test_streams_end_when_the_issuers_key_is_gone(secured_broker: BrokerProcess, topic: str) -> None:
    secured = secured_of(secured_broker)
    other = ec.generate_private_key(ec.SECP256R1())
    secured.write_keys(one=secured.key, two=other)
    secured_broker.wait_for_log("read again: .*jwks.json")
    original, secured.key = secured.key, other
    try:
        streams = Streams(secured_broker, topic, secured.token(kid="two"))
    finally:
        secured.key = original
    secured.write_keys(one=original)
    assert streams.refusals() == [INVALID] * 3


def test_readers_end_and_writers_are_refused_when_acls_change(
    secured_broker: BrokerProcess, topic: str, admin: access_pb2_grpc.AccessServiceStub
) -> None:
    key = admin.CreateApiKey(A.CreateApiKeyRequest(name=topic))
    principal = f"key:{topic}"
    entries = allow_all(admin, principal, topic)
    streams = Streams(secured_broker, topic, key.key)
    since = len(secured_broker.stderr)
    denial = entry("*", A.ACL_OPERATION_CONSUME, A.ACL_RESOURCE_TOPIC, topic, A.ACL_EFFECT_DENY)
    admin.CreateAcls(A.CreateAclsRequest(acls=[denial]))
    assert refusal_of(streams.consumer) == DENIED
    assert streams.member.refused() == DENIED
    assert streams.produce().code == 0, "it may still write"
    admin.DeleteAcls(A.DeleteAclsRequest(acls=entries[:1]))
    answer = streams.produce()
    assert (answer.code, answer.reason, answer.topic) == (7, "ACCESS_DENIED", topic)
    secured_broker.wait_for_log(f"denied method=ProduceMessageStream principal={principal} ", since)
    admin.CreateAcls(A.CreateAclsRequest(acls=entries[:1]))
    assert streams.produce().code == 0, "the stream went on"
    assert offsets(secured_broker.stub(), topic).end_offset == 3, "what was refused was not appended"
    streams.requests.put(None)
    assert list(streams.producer) == []


def test_who_takes_nothing_keeps_nothing(
    secured_broker: BrokerProcess, topic: str, admin: access_pb2_grpc.AccessServiceStub
) -> None:
    """A member and a reader that stop taking what comes: the partitions go to others, though neither is told why."""
    stub, group = secured_broker.stub(), f"group-{topic}"
    fill(stub, topic, 8, 1 << 19)
    key = admin.CreateApiKey(A.CreateApiKeyRequest(name=topic))
    allow_all(admin, f"key:{topic}", topic)
    options = [(f"grpc.{name.replace('__', '.')}", value) for name, value in NARROW.items()]
    options.append(("grpc.use_local_subchannel_pool", 1))
    ended = threading.Event()

    def members() -> int:
        groups = stub.ListConsumerGroups(pb.ListConsumerGroupsRequest()).groups
        return sum(each.member_count for each in groups if each.group_id == group)

    secured = secured_of(secured_broker)
    channels = [secured.channel(secured_broker.address, options, token=key.key) for _ in range(2)]
    member = Member(
        takhin_pb2_grpc.TakhinServiceStub(channels[0]), group, topic, reads=False, credit_bytes=1 << 29,
        session_timeout_ms=3_600_000, max_processing_ms=86_400_000)
    reader = takhin_pb2_grpc.TakhinServiceStub(channels[1]).ConsumeMessages(
        pb.ConsumeMessagesRequest(topic=topic, max_bytes=1 << 20), timeout=4 * DEADLINE_S)
    reader.add_callback(ended.set)
    wait_until(members)
    time.sleep(1)  # until writes wait
    since = len(secured_broker.stderr)
    admin.RevokeApiKey(A.RevokeApiKeyRequest(id=key.info.id))
    # They are looked at again, and are about to end already.
    for name in "one", "two":
        admin.RevokeApiKey(A.RevokeApiKeyRequest(
            id=admin.CreateApiKey(A.CreateApiKeyRequest(name=f"{topic}-{name}")).info.id))
    wait_until(lambda: not members())
    assert ended.wait(DEADLINE_S)
    told = secured_broker.stderr[since:]
    for method in "Subscribe", "ConsumeMessages":
        assert told.count(f"denied method={method} principal=key:{topic} ") == 1
    assert told.count("takes nothing of a stream that it may not have any more: it is cut off") == 2
    member.requests.put(None)
    for channel in channels:
        channel.close()


def test_a_transaction_needs_every_topic_of_it(
    secured_broker: BrokerProcess, topic: str, admin: access_pb2_grpc.AccessServiceStub
) -> None:
    other = new_topic(secured_broker.stub())
    key = admin.CreateApiKey(A.CreateApiKeyRequest(name=topic))
    allow_all(admin, f"key:{topic}", topic)
    stub = stub_with(secured_broker, key.key)

    def refused(**fields: Any) -> None:
        with pytest.raises(grpc.RpcError) as refusal:
            stub.ProduceTransaction(pb.ProduceTransactionRequest(**fields), timeout=DEADLINE_S)
        assert (refusal.value.code(), error_info(refusal.value).reason) == DENIED

    mine, foreign = (pb.ProduceMessageRequest(topic=each, record=pb.Record(value=b"x")) for each in (topic, other))
    at = pb.TopicPartitionOffset(topic=topic)
    refused(appends=[mine, foreign])
    refused(appends=[mine], group_id="another", offsets=[at])
    refused(appends=[mine], group_id=f"group-{topic}", offsets=[at, pb.TopicPartitionOffset(topic=other)])
    stub.ProduceTransaction(pb.ProduceTransactionRequest(appends=[mine], group_id=f"group-{topic}", offsets=[at]))
    assert offsets(secured_broker.stub(), topic).end_offset == 1
    assert offsets(secured_broker.stub(), other).end_offset == 0


def test_the_last_topic_of_a_request_counts(
    secured_broker: BrokerProcess, topic: str, admin: access_pb2_grpc.AccessServiceStub
) -> None:
    """A request may give its topic twice: what is checked is what is written to, or read."""
    other = new_topic(secured_broker.stub())
    key = admin.CreateApiKey(A.CreateApiKeyRequest(name=topic))
    allow_all(admin, f"key:{topic}", topic)
    metadata = (("x-api-key", key.key),)
    with grpc.secure_channel(secured_broker.address, secured_of(secured_broker).tls()) as channel:
        for first, last, is_allowed in ((topic, other, False), (other, topic, True)):
            request = pb.ProduceMessageRequest(topic=first).SerializeToString()
            request += pb.ProduceMessageRequest(topic=last, record=pb.Record(value=b"x")).SerializeToString()
            call = channel.unary_unary("/takhin.v1.TakhinService/ProduceMessage")
            reading = pb.ConsumeMessagesRequest(topic=first, offset=-1, until_end=True).SerializeToString()
            reading += pb.ConsumeMessagesRequest(topic=last).SerializeToString()
            consume = channel.unary_stream("/takhin.v1.TakhinService/ConsumeMessages")
            if is_allowed:
                call(request, metadata=metadata)
                assert list(consume(reading, metadata=metadata))
                continue
            with pytest.raises(grpc.RpcError) as refused:
                call(request, metadata=metadata)
            assert error_info(refused.value).reason == "ACCESS_DENIED"
            assert refusal_of(consume(reading, metadata=metadata)) == DENIED
    assert [offsets(secured_broker.stub(), each).end_offset for each in (topic, other)] == [1, 0]


def audit_lines(broker: BrokerProcess, since: int) -> list[str]:
    """Without what differs from call to call."""
    lines = [line.partition(": ")[2] for line in broker.stderr[since:].splitlines() if "takhin.audit" in line]
    return [
        " ".join(word for word in line.split(" ") if not re.match(r"peer=127\.0\.0\.1:|request=[0-9a-f]{16}$", word))
        for line in lines]


def test_what_is_in_the_audit_log(secured_broker: BrokerProcess, admin: access_pb2_grpc.AccessServiceStub) -> None:
    since = len(secured_broker.stderr)
    stub = secured_broker.stub()
    key = admin.CreateApiKey(A.CreateApiKeyRequest(name="auditor x=\ny" .replace("\n", "")))
    stub.CreateTopic(pb.CreateTopicRequest(name="audited", num_partitions=2, configs={
        "retention.ms": "60000", "max.message.bytes": "2000"}))
    with pytest.raises(grpc.RpcError):
        stub.CreateTopic(pb.CreateTopicRequest(name="audited"))
    stub.UpdateTopic(pb.UpdateTopicRequest(
        name="audited", num_partitions=3, configs={"retention.ms": "70000"}, reset_configs=["max.message.bytes"]))
    stub.DeleteTopic(pb.DeleteTopicRequest(name="audited"))
    with pytest.raises(grpc.RpcError):
        stub_with(secured_broker, key.key).DeleteTopic(pb.DeleteTopicRequest(name="a\nb method=x"))
    with pytest.raises(grpc.RpcError):
        stub_with(secured_broker, key.key[:-1] + "~").ListTopics(pb.ListTopicsRequest())
    secured_broker.wait_for_log("denied method=ListTopics", since)
    assert audit_lines(secured_broker, since) == [
        f'done method=CreateApiKey principal=jwt:tests what="API key {key.info.id} of name auditor x=y, expires never"',
        'done method=CreateTopic principal=jwt:tests '
        'what="topic audited: 2 partitions, max.message.bytes=2000, retention.ms=60000"',
        'failed method=CreateTopic principal=jwt:tests reason=TOPIC_EXISTS what="topic audited"',
        'done method=UpdateTopic principal=jwt:tests '
        'what="topic audited: retention.ms=70000, max.message.bytes reset, 3 partitions"',
        'done method=DeleteTopic principal=jwt:tests what="topic audited"',
        'denied method=DeleteTopic principal="key:auditor x=y" reason=ACCESS_DENIED '
        'what="not allowed: admin on topic \'a\\\\nb method=x\'"',
        'denied method=ListTopics principal=- reason=CREDENTIALS_INVALID what="the API key is not known"',
    ]
    assert key.key not in secured_broker.stderr and key.key[30:] not in secured_broker.stderr


def test_the_audit_log_ties_a_keys_creation_to_its_revocation(
    secured_broker: BrokerProcess, admin: access_pb2_grpc.AccessServiceStub
) -> None:
    since = len(secured_broker.stderr)
    key = admin.CreateApiKey(A.CreateApiKeyRequest(name="eve", lifetime_ms=3_600_000))
    lasting = admin.CreateApiKey(A.CreateApiKeyRequest(name="eve", lifetime_ms=1 << 52))
    admin.RevokeApiKey(A.RevokeApiKeyRequest(id=key.info.id))
    with pytest.raises(grpc.RpcError):
        admin.RevokeApiKey(A.RevokeApiKeyRequest(id=key.info.id))
    secured_broker.wait_for_log("failed method=RevokeApiKey", since)
    expiry = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(key.info.expires_ms // 1000))
    told = audit_lines(secured_broker, since)
    assert re.fullmatch(
        rf'done method=CreateApiKey principal=jwt:tests what="API key {lasting.info.id} of name eve, '
        r'expires 14\d{4}-\d\d-\d\dT[0-9:]{8}Z"', told.pop(1))
    assert told == [
        f'{event} principal=jwt:tests what="API key {key.info.id} of name eve, expires {expiry}"'
        for event in ("done method=CreateApiKey", "done method=RevokeApiKey")
    ] + [f'failed method=RevokeApiKey principal=jwt:tests reason=KEY_NOT_FOUND what="API key {key.info.id}"']


def test_the_audit_log_tells_what_a_reset_did(secured_broker: BrokerProcess, topic: str) -> None:
    since = len(secured_broker.stderr)
    stub = secured_broker.stub()
    produce(stub, topic, b"x", b"y", b"z", acks=-1)
    group = f"reset-{topic}"

    def reset(**target: Any) -> None:
        stub.ResetOffsets(pb.ResetOffsetsRequest(group_id=group, topics=[topic], **target))

    # A dry run does nothing.
    reset(latest=True, dry_run=True)
    with pytest.raises(grpc.RpcError):
        reset(shift_by=-1, dry_run=True)
    with pytest.raises(grpc.RpcError):
        reset(shift_by=-1)
    reset(latest=True)
    reset(shift_by=-1)
    reset(offset=1)
    reset(time_ms=0)
    reset(earliest=True)
    secured_broker.wait_for_log("to earliest", since)
    assert audit_lines(secured_broker, since) == [
        f'failed method=ResetOffsets principal=jwt:tests reason=NO_COMMITTED_OFFSET what="group {group} by -1: {topic}"'
    ] + [
        f'done method=ResetOffsets principal=jwt:tests what="group {group} {how}"' for how in (
            f"to latest: {topic}/0 none->3", f"by -1: {topic}/0 3->2", f"to offset 1: {topic}/0 2->1",
            f"to time_ms 0: {topic}/0 1->0", f"to earliest: {topic}/0 0->0")]


def test_the_audit_log_tells_who_fences_a_producer(secured_broker: BrokerProcess, topic: str) -> None:
    since = len(secured_broker.stderr)
    stub = secured_broker.stub()
    stub.InitProducer(pb.InitProducerRequest())
    made = [stub.InitProducer(pb.InitProducerRequest(name=f"by-{topic}")) for _ in range(2)]
    secured_broker.wait_for_log(f"epoch {made[1].epoch}", since)
    assert audit_lines(secured_broker, since) == [
        f'done method=InitProducer principal=jwt:tests what="producer by-{topic}: id {each.id}, epoch {each.epoch}"'
        for each in made]


# The call itself, over a real front.


WHY = error(Reason.CREDENTIALS_EXPIRED, "its time is over")


def test_a_stream_that_is_ended_while_it_waits(run: Run) -> None:
    async def handler(call: StreamCall) -> None:
        guarded = GuardedCall(call)

        async def work() -> None:
            await guarded.write(b"one")
            asyncio.get_running_loop().call_later(0.01, guarded.end, WHY)
            await asyncio.sleep(DEADLINE_S)

        await guarded.run(work())

    assert run(ended_with(handler)) == ([b"one"], "CREDENTIALS_EXPIRED")


def test_a_stream_that_is_ended_at_once(run: Run) -> None:
    async def handler(call: StreamCall) -> None:
        guarded = GuardedCall(call)
        guarded.end(WHY)
        await guarded.run(guarded.write(b"none"))

    assert run(ended_with(handler)) == ([], "CREDENTIALS_EXPIRED")


@pytest.mark.parametrize("reaction", ["raises", "returns", "goes on"])
def test_whatever_the_handler_makes_of_it(run: Run, reaction: str) -> None:
    async def handler(call: StreamCall) -> None:
        guarded = GuardedCall(call)

        async def work() -> None:
            try:
                await asyncio.sleep(DEADLINE_S)
            except asyncio.CancelledError:
                assert guarded.cancelled()
                if reaction == "raises":
                    raise ValueError("planted") from None
                if reaction == "goes on":
                    await guarded.write(b"more")

        asyncio.get_running_loop().call_later(0.01, guarded.end, WHY)
        await guarded.run(work())

    assert run(ended_with(handler)) == ([], "CREDENTIALS_EXPIRED")


def test_a_stream_that_is_ended_while_its_client_takes_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write under way has its time; once it is done the client learns why the stream ended. Meanwhile nothing more
    is read of it."""
    monkeypatch.setattr(guarded_call, "CUT_AFTER_S", DEADLINE_S)
    told: list[str] = []

    async def handler(call: StreamCall) -> None:
        guarded = GuardedCall(call)

        async def reading() -> None:
            while await guarded.read() is not None:
                told.append("read")

        async def work() -> None:
            reader = asyncio.ensure_future(reading())
            try:
                while True:
                    await guarded.write(b"x" * front.MIB)
                    told.append("written")
            finally:
                await asyncio.wait([reader], timeout=DEADLINE_S)
                told.append("reader ended" if reader.cancelled() else "reader went on")

        asyncio.get_running_loop().call_later(0.3, guarded.end, WHY)
        await guarded.run(work())

    async def scenario() -> str:
        async with front.client(front.bidi(handler)) as channel:
            call = channel.stream_stream(front.path("Bidi"))()
            await call.write(b"first")
            await asyncio.sleep(0.6)
            assert told and told[-1] in ("written", "read")
            await call.write(b"second")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await front.read_all(call)
            return front.error_info(refused.value).reason

    assert run(scenario()) == "CREDENTIALS_EXPIRED"
    assert told.count("read") == 1 and told[-1] == "reader ended"


def test_a_stream_whose_client_takes_nothing_is_cut_off(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded_call, "CUT_AFTER_S", 0.1)

    async def scenario() -> grpc.StatusCode:
        ended = asyncio.Event()

        async def handler(call: StreamCall) -> None:
            guarded = GuardedCall(call)

            async def work() -> None:
                try:
                    while True:
                        await guarded.write(b"x" * front.MIB)
                finally:
                    ended.set()

            asyncio.get_running_loop().call_later(0.3, guarded.end, WHY)
            await guarded.run(work())

        async with front.client(front.bidi(handler)) as channel:
            call = channel.stream_stream(front.path("Bidi"))()
            await call.write(b"first")
            await asyncio.wait_for(ended.wait(), DEADLINE_S)  # though nothing is taken
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await front.read_all(call)
            return refused.value.code()

    assert run(scenario()) is grpc.StatusCode.UNAVAILABLE


def test_a_client_that_leaves_is_still_a_client_that_leaves(run: Run) -> None:
    ended: list[str] = []

    async def handler(call: StreamCall) -> None:
        guarded = GuardedCall(call)

        async def work() -> None:
            await guarded.write(b"one")
            try:
                await asyncio.sleep(DEADLINE_S)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        try:
            await guarded.run(work())
        except asyncio.CancelledError:
            guarded.end(WHY)  # too late
            ended.append("still")
            raise

    async def scenario() -> None:
        async with front.client(front.bidi(handler)) as channel:
            call = channel.stream_stream(front.path("Bidi"))()
            assert await call.read() == b"one"
            call.cancel()
            while len(ended) < 2:
                await asyncio.sleep(0.01)

    run(asyncio.wait_for(scenario(), DEADLINE_S))
    assert ended == ["cancelled", "still"]


async def ended_with(handler: Callable[[StreamCall], Any]) -> tuple[list[bytes], str]:
    """What came, and the reason it ended for."""
    async with front.client(front.bidi(handler)) as channel:
        call, came = channel.stream_stream(front.path("Bidi"))(), []
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            while (message := await call.read()) is not grpc.aio.EOF:
                came.append(message)
        return came, front.error_info(refused.value).reason


def test_calls_have_no_certificate_without_tls(run: Run) -> None:
    async def handler(request: bytes, call: Call) -> bytes:
        return repr(call.identity).encode()

    async def scenario() -> bytes:
        async with front.client(front.unary(handler)) as channel:
            answer: bytes = await channel.unary_unary(front.path("Unary"))(b"")
            return answer

    assert run(scenario()) == b"None"
