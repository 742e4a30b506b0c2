"""Bad input to Subscribe: each kind ends the stream with a typed error, at once, and hurts nobody else."""

import random
import time

import grpc
import pytest

from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import (
    DEADLINE_S,
    SERVICE,
    BrokerProcess,
    Stub,
    chunk,
    error_info,
    new_topic,
    produce,
    scalar,
    wait_until,
)
from tests.conftest import StartBroker
from tests.member import Member, named, places

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
# A refusal is at once: far below any timeout that could bring it about.
AT_ONCE_S = 10


def start(topic: str, **fields) -> pb.SubscribeStart:
    return pb.SubscribeStart(**({"group_id": f"group of {topic}", "topics": [topic]} | fields))


# Starts


@pytest.mark.parametrize(("fields", "reason"), [
    ({"group_id": ""}, Reason.INVALID_GROUP_ID), ({"group_id": "g" * 250}, Reason.INVALID_GROUP_ID),
    ({"group_id": "tab\t"}, Reason.INVALID_GROUP_ID),
    ({"topics": []}, Reason.NO_TOPICS), ({"topics": ["../x"]}, Reason.INVALID_TOPIC_NAME),
    ({"topics": [""]}, Reason.INVALID_TOPIC_NAME),
    ({"topics": [f"t{number}" for number in range(1001)]}, Reason.TOO_MANY_TOPICS),
    ({"client_id": "c" * 250}, Reason.INVALID_MEMBER_NAME), ({"client_id": "\n"}, Reason.INVALID_MEMBER_NAME),
    ({"instance_id": "i" * 250}, Reason.INVALID_MEMBER_NAME), ({"member_id": "m" * 283}, Reason.INVALID_MEMBER_NAME),
    ({"assignor": "mine"}, Reason.INVALID_ASSIGNOR), ({"assignor": "x" * 10_000}, Reason.INVALID_ASSIGNOR),
    ({"start_from": 4}, Reason.INVALID_START_FROM), ({"start_from": -1}, Reason.INVALID_START_FROM),
    ({"start_time_ms": 5}, Reason.INVALID_START_FROM), ({"commit_mode": 2}, Reason.INVALID_COMMIT_MODE),
    ({"commit_mode": 1}, Reason.INVALID_COMMIT_MODE), ({"credit_bytes": -1}, Reason.INVALID_CREDIT),
    ({"credit_bytes": (1 << 30) + 1}, Reason.INVALID_CREDIT), ({"max_bytes": -1}, Reason.INVALID_LIMIT),
    ({"session_timeout_ms": 999}, Reason.INVALID_LIMIT), ({"session_timeout_ms": 3_600_001}, Reason.INVALID_LIMIT),
    ({"session_timeout_ms": -1}, Reason.INVALID_LIMIT), ({"max_processing_ms": 999}, Reason.INVALID_LIMIT),
    ({"max_processing_ms": 86_400_001}, Reason.INVALID_LIMIT),
])
def test_a_bad_start(stub: Stub, topic: str, fields: dict, reason: Reason) -> None:
    member = Member.unstarted(stub)
    begun_s = time.monotonic()
    member.send(start=start(topic, **fields))
    assert member.refused() == (INVALID, reason)
    assert time.monotonic() - begun_s < AT_ONCE_S
    assert not member.told
    groups = stub.ListConsumerGroups(pb.ListConsumerGroupsRequest(), timeout=DEADLINE_S).groups
    assert f"group of {topic}" not in [each.group_id for each in groups], "it left no group behind"


def test_a_topic_that_is_not_there(stub: Stub, topic: str) -> None:
    member = Member(stub, "g", topic, "nowhere")
    assert member.refused() == (grpc.StatusCode.NOT_FOUND, Reason.TOPIC_NOT_FOUND)


def test_a_topic_named_twice_counts_once(stub: Stub, topic: str) -> None:
    member = Member(stub, f"group of {topic}", topic, topic)
    assert len(member.wait_for("assigned").added) == 1
    member.leave()


@pytest.mark.parametrize("request_", [
    pb.SubscribeRequest(credit=pb.Credit(bytes=1)),
    pb.SubscribeRequest(commit=pb.CommitOffsets(offsets=places(("t", 0, 0)))),
    pb.SubscribeRequest(leave=pb.Leave()), pb.SubscribeRequest(pong=pb.Pong()), pb.SubscribeRequest(),
], ids=lambda request: request.WhichOneof("request") or "empty")
def test_anything_before_the_start(stub: Stub, request_: pb.SubscribeRequest) -> None:
    member = Member.unstarted(stub)
    member.requests.put(request_)
    assert member.refused() == (INVALID, Reason.START_EXPECTED)


def test_requests_that_end_before_the_start(stub: Stub) -> None:
    member = Member.unstarted(stub)
    member.half_close()
    assert member.refused() == (INVALID, Reason.START_EXPECTED)


# What comes later


@pytest.fixture
def running(stub: Stub) -> Member:
    topic = new_topic(stub, 2)
    for number in range(2):
        produce(stub, topic, *[b"v"] * 3, partition=number)
    member = Member(stub, f"group of {topic}", topic, credit_bytes=100_000, client_id=topic)
    member.wait(lambda: len(member.all_records) == 6)
    return member


def topic_of(member: Member) -> str:
    return next(iter(member.partitions))[0]


@pytest.mark.parametrize(("fields", "code", "reason"), [
    (lambda topic, kept: {"start": start(topic)}, INVALID, Reason.SECOND_START),
    (lambda topic, kept: {"credit": pb.Credit()}, INVALID, Reason.INVALID_CREDIT),
    (lambda topic, kept: {"credit": pb.Credit(bytes=-1)}, INVALID, Reason.INVALID_CREDIT),
    (lambda topic, kept: {"credit": pb.Credit(bytes=1 << 62)}, INVALID, Reason.INVALID_CREDIT),
    (lambda topic, kept: {"pause": named(("nowhere", 0))}, INVALID, Reason.PARTITION_NOT_ASSIGNED),
    (lambda topic, kept: {"pause": named((topic, 2))}, INVALID, Reason.PARTITION_NOT_ASSIGNED),
    (lambda topic, kept: {"resume": named((topic, -1))}, INVALID, Reason.PARTITION_NOT_ASSIGNED),
    (lambda topic, kept: {"release": named((topic, 9))}, INVALID, Reason.PARTITION_NOT_ASSIGNED),
    (lambda topic, kept: {"release": named((topic, kept))}, PRECONDITION, Reason.PARTITION_NOT_REVOKING),
    (lambda topic, kept: {"seek": pb.Seek()}, INVALID, Reason.MALFORMED_REQUEST),
    (lambda topic, kept: {"seek": pb.Seek(offsets=places((topic, 3, 0)))}, INVALID, Reason.PARTITION_NOT_ASSIGNED),
    (lambda topic, kept: {"seek": pb.Seek(offsets=places((topic, kept, -3)))}, INVALID, Reason.INVALID_OFFSET),
    (lambda topic, kept: {"seek": pb.Seek(offsets=places((topic, kept, 4)))}, grpc.StatusCode.OUT_OF_RANGE,
     Reason.OFFSET_OUT_OF_RANGE),
    (lambda topic, kept: {}, INVALID, Reason.MALFORMED_REQUEST),
], ids=["second start", "no credit", "negative credit", "vast credit", "unknown topic", "unknown partition",
        "negative partition", "release of none of its own", "release unasked", "empty seek", "seek elsewhere",
        "seek to -3", "seek beyond", "empty"])
def test_a_bad_request_ends_the_stream(stub: Stub, running: Member, fields, code, reason) -> None:
    topic = topic_of(running)
    beside = Member(stub, f"group of {topic}", topic)
    beside.wait(lambda: len(beside.partitions) == 1)
    ((_, kept),) = running.partitions
    begun_s = time.monotonic()
    running.send(**fields(topic, kept))
    assert running.refused() == (code, reason)
    assert time.monotonic() - begun_s < AT_ONCE_S
    # It is out, and nobody waits for it.
    beside.wait(lambda: len(beside.partitions) == 2, AT_ONCE_S)
    beside.leave()


def test_credit_where_none_is_counted(stub: Stub, topic: str) -> None:
    member = Member(stub, f"group of {topic}", topic)
    member.wait_for("assigned")
    member.send(credit=pb.Credit(bytes=1))
    assert member.refused() == (INVALID, Reason.INVALID_CREDIT)


def test_a_pong_nobody_waits_for_is_fine(running: Member) -> None:
    running.send(pong=pb.Pong(id=99))
    assert running.commit((topic_of(running), 0, 0)).code == 0
    running.leave()


def test_another_assignor_than_the_others(stub: Stub, topic: str) -> None:
    member = Member(stub, f"group of {topic}", topic, assignor="range")
    member.wait_for("assigned")
    other = Member(stub, f"group of {topic}", topic)
    assert other.refused() == (PRECONDITION, Reason.INCONSISTENT_ASSIGNOR)
    member.leave()


# Limits


def test_limits(start_broker: StartBroker) -> None:
    stub = start_broker("--limits-members-per-group", "2", "--limits-members", "3", "--limits-groups", "2").stub()
    topic = new_topic(stub)

    def join(group: str) -> Member:
        member = Member(stub, group, topic)
        member.wait(lambda: member.told or member.ended)
        return member

    members = [join("a"), join("a")]
    assert join("a").refused() == (EXHAUSTED, Reason.MEMBER_LIMIT)
    members.append(join("b"))
    assert join("b").refused() == (EXHAUSTED, Reason.MEMBER_LIMIT)
    assert not any(member.ended for member in members)
    members[0].leave()
    assert join("c").refused() == (EXHAUSTED, Reason.GROUP_LIMIT)
    assert not join("b").ended


def test_who_is_refused_or_leaves_at_once_leaves_no_group_behind(start_broker: StartBroker) -> None:
    broker = start_broker("--limits-members", "2", "--limits-groups", "100")
    stub = broker.stub()
    topic = new_topic(stub)

    def groups() -> list[str]:
        found = stub.ListConsumerGroups(pb.ListConsumerGroupsRequest(), timeout=DEADLINE_S).groups
        return [each.group_id for each in found]

    Member(stub, "there", topic).wait_for("assigned")
    for number in range(300):
        member = Member(stub, f"cancelled {number}", topic, reads=False)
        time.sleep(random.uniform(0, 0.004))
        member.call.cancel()
        member.requests.put(None)
    wait_until(lambda: groups() == ["there"])
    Member(stub, "there", topic).wait_for("assigned")
    for number in range(20):
        assert Member(stub, f"refused {number}", topic).refused() == (EXHAUSTED, Reason.MEMBER_LIMIT)
    assert groups() == ["there"]


# Bytes that no stub would send


def raw_stream(broker: BrokerProcess, *requests: bytes) -> grpc.RpcError | None:
    """How a stream of these requests ends."""
    call = broker.channel().stream_stream(f"/{SERVICE}/Subscribe")(iter(requests), timeout=DEADLINE_S)
    try:
        for _ in call:
            pass
    except grpc.RpcError as failure:
        return failure
    return None


@pytest.mark.parametrize("data", [
    b"\xff", b"\x0a\x05abc", chunk(1, chunk(1, b"\xff\xfe")), scalar(1, 5) + b"\x0b", b"\x00",
], ids=["cut tag", "cut field", "not UTF-8", "a group", "field 0"])
def test_bytes_that_are_no_message(broker: BrokerProcess, data: bytes) -> None:
    failure = raw_stream(broker, data)
    assert failure is not None and error_info(failure).reason in (Reason.MALFORMED_REQUEST, Reason.START_EXPECTED)
    topic = new_topic(broker.stub())
    good = pb.SubscribeRequest(start=start(topic)).SerializeToString()
    failure = raw_stream(broker, good, data)
    assert failure is not None and error_info(failure).reason == Reason.MALFORMED_REQUEST


def test_random_requests_never_hang_nor_break_anything(broker: BrokerProcess) -> None:
    """Valid starts, then valid messages with anything in them, and bytes with some changed."""
    rng = random.Random(4)
    stub = broker.stub()
    topic = new_topic(stub, 2)
    produce(stub, topic, *[b"v"] * 3)
    number = lambda: rng.choice([-(2**31), -2, -1, 0, 1, 2, 3, 2**31 - 1])  # noqa: E731
    place = lambda: (rng.choice([topic, "", "nowhere"]), number())  # noqa: E731
    for _ in range(150):
        requests = [pb.SubscribeRequest(start=start(topic, credit_bytes=rng.choice([0, 1000])))]
        for _ in range(rng.randrange(1, 6)):
            requests.append(rng.choice([
                lambda: pb.SubscribeRequest(credit=pb.Credit(bytes=number())),
                lambda: pb.SubscribeRequest(commit=pb.CommitOffsets(offsets=places((*place(), number())), id=number())),
                lambda: pb.SubscribeRequest(pause=named(place())), lambda: pb.SubscribeRequest(resume=named()),
                lambda: pb.SubscribeRequest(seek=pb.Seek(offsets=places((*place(), number())))),
                lambda: pb.SubscribeRequest(release=named(place())), lambda: pb.SubscribeRequest(pong=pb.Pong(id=1)),
            ])())
        messages = [bytearray(request.SerializeToString()) for request in requests]
        if rng.random() < 0.5 and messages[-1]:
            messages[-1][rng.randrange(len(messages[-1]))] = rng.randrange(256)
        failure = raw_stream(broker, *map(bytes, messages))
        if failure is not None:
            assert failure.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL), failure
            assert error_info(failure).reason in set(Reason)
    member = Member(stub, "afterwards", topic)
    member.wait(lambda: len(member.all_records) == 3)
    wait_until(lambda: [each.group_id for each in stub.ListConsumerGroups(
        pb.ListConsumerGroupsRequest(), timeout=DEADLINE_S).groups if each.member_count] == ["afterwards"])
    member.leave()
