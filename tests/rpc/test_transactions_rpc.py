"""ProduceTransaction through stock stubs: all of it or nothing, with offsets, with producers, over a kill."""

import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import (
    DEADLINE_S,
    BrokerProcess,
    Stub,
    commit,
    new_topic,
    offsets,
    produce,
    raw_unary,
    read,
    refused,
    values,
)
from tests.conftest import StartBroker
from tests.member import Member
from tests.rpc.test_idempotence import init

ABORTED, INVALID = grpc.StatusCode.ABORTED, grpc.StatusCode.INVALID_ARGUMENT
EXHAUSTED, PRECONDITION = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.FAILED_PRECONDITION

Place = tuple[str, int]


def append(place: Place, *payload: bytes, **fields: object) -> pb.ProduceMessageRequest:
    topic, partition = place
    request = pb.ProduceMessageRequest(topic=topic, partition=partition, **fields)
    if len(payload) == 1:
        request.record.value = payload[0]
    else:
        request.records.extend(pb.Record(value=value) for value in payload)
    return request


def transact(
    stub: Stub, *appends: pb.ProduceMessageRequest, group: str = "", commits: Sequence[tuple[str, int, int]] = (),
    **fields: object,
) -> list[pb.ProduceMessageResponse]:
    made = [pb.TopicPartitionOffset(topic=topic, partition=number, offset=offset) for topic, number, offset in commits]
    request = pb.ProduceTransactionRequest(appends=appends, group_id=group, offsets=made, **fields)
    return list(stub.ProduceTransaction(request, timeout=DEADLINE_S).appends)


def committed(stub: Stub, group: str, topic: str, partition: int = 0) -> int:
    """What the group has committed; 0 for nothing, which it has from then on."""
    try:
        commit(stub, group, (topic, partition, 0))
    except grpc.RpcError:
        with refused(PRECONDITION, Reason.OFFSET_BEHIND_COMMITTED) as refusal:
            commit(stub, group, (topic, partition, 0))
        return int(refusal.metadata["committed_offset"])
    return 0


def all_values(stub: Stub, topic: str, partitions: int) -> list[list[bytes]]:
    return [values(read(stub, topic, partition=number)) for number in range(partitions)]


@pytest.fixture
def three(stub: Stub) -> str:
    return new_topic(stub, 3)


# All of it


def test_appends_to_several_partitions_and_topics(stub: Stub, three: str) -> None:
    other = new_topic(stub, 2)
    produce(stub, three, b"before", partition=1)
    answers = transact(
        stub, append((three, 1), b"a", b"b"), append((other, 1), b"c"), append((three, 0), b"d", required_acks=-1)
    )
    assert [(each.topic, each.partition, each.offset, each.record_count) for each in answers] == [
        (three, 1, 1, 2), (other, 1, 0, 1), (three, 0, 0, 1)
    ]
    for each in answers:
        assert (each.durability, each.code, each.error, each.duplicate) == (pb.DURABILITY_DURABLE, 0, "", False)
        assert each.timestamp > 0 and each.epoch > 0
    assert all_values(stub, three, 3) == [[b"d"], [b"before", b"a", b"b"], []]
    assert all_values(stub, other, 2) == [[], [b"c"]]
    end = stub.GetPartitionOffsets(pb.GetPartitionOffsetsRequest(topic=three, partition=1), timeout=DEADLINE_S)
    assert end.durable_offset == end.end_offset == 3


def test_the_broker_chooses_partitions(stub: Stub, three: str) -> None:
    keyed = pb.ProduceMessageRequest(topic=three, partition=-1, record=pb.Record(key=b"k", value=b"v"))
    (first,) = transact(stub, keyed)
    assert stub.ProduceMessage(keyed, timeout=DEADLINE_S).partition == first.partition
    chosen = {each.partition for each in transact(stub, append((three, -1), b"x"), append((three, -1), b"y"))}
    assert len(chosen) == 2


def test_offsets_go_with_it(stub: Stub, three: str) -> None:
    source, group = new_topic(stub, 2), f"of {three}"
    for number in range(2):
        produce(stub, source, *[b"in"] * 5, partition=number)
    transact(stub, append((three, 0), b"out"), group=group, commits=[(source, 0, 3), (source, 1, 5)])
    assert (committed(stub, group, source, 0), committed(stub, group, source, 1)) == (3, 5)
    with refused(PRECONDITION, Reason.OFFSET_BEHIND_COMMITTED):
        transact(stub, append((three, 0), b"late"), group=group, commits=[(source, 0, 2)])
    transact(stub, append((three, 1), b"more"), group=group, commits=[(source, 0, 4)])
    assert committed(stub, group, source, 0) == 4
    assert all_values(stub, three, 3) == [[b"out"], [b"more"], []]


def test_it_survives_a_kill_and_goes_on(broker: BrokerProcess) -> None:
    topic = new_topic(broker.stub(), 3)
    produce(broker.stub(), topic, *[b"in"] * 100, partition=2)
    for turn in range(5):
        answers = transact(
            broker.stub(), append((topic, 0), b"a%d" % turn), append((topic, 1), b"b%d" % turn), group="g",
            commits=[(topic, 2, turn + 1)],
        )
        assert [each.offset for each in answers] == [turn, turn]
        broker.restart(kill=turn % 2 == 0)
        assert all_values(broker.stub(), topic, 2) == [
            [b"%c%d" % (letter, number) for number in range(turn + 1)] for letter in b"ab"
        ]
        assert committed(broker.stub(), "g", topic, 2) == turn + 1


def test_readers_never_see_a_half(broker: BrokerProcess) -> None:
    """Whoever has seen it in one partition sees it in the other; under load, from another connection."""
    stub = broker.stub()
    topic, count = new_topic(stub, 4), 150
    halves: list[tuple[int, int]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            info = broker.stub().GetTopic(pb.GetTopicRequest(name=topic), timeout=DEADLINE_S).topic
            ends = info.partitions[0].end_offset, info.partitions[1].end_offset
            if ends[0] != ends[1]:
                halves.append(ends)

    def load(number: int) -> None:
        while not done.is_set():
            produce(broker.stub(), topic, b"x" * 500, partition=number, acks=-1)

    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(watch), pool.submit(load, 2), pool.submit(load, 3)]
        for turn in range(count):
            transact(stub, append((topic, 0), b"%d" % turn), append((topic, 1), b"%d" % turn))
        done.set()
        for other in others:
            other.result()
    assert halves == []
    assert all_values(stub, topic, 2) == [[b"%d" % turn for turn in range(count)]] * 2


def test_many_at_once_on_the_same_partitions(stub: Stub, three: str) -> None:
    def run(number: int) -> list[pb.ProduceMessageResponse]:
        places = random.Random(number).sample(range(3), 2)
        return transact(stub, *(append((three, place), b"%d" % number) for place in places))

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(run, range(120)))
    seen = all_values(stub, three, 3)
    assert sum(map(len, seen)) == 240
    for number, both in enumerate(answers):
        assert all(seen[each.partition][each.offset] == b"%d" % number for each in both)


# Producers and conditions


def state(given: pb.InitProducerResponse, sequence: int) -> pb.ProducerState:
    return pb.ProducerState(id=given.id, epoch=given.epoch, sequence=sequence)


def test_a_retry_is_told_as_a_whole(stub: Stub, three: str) -> None:
    given, group = init(stub), f"of {three}"
    produce(stub, three, *[b"in"] * 9, partition=2)

    def run(sequence: int, offset: int) -> list[pb.ProduceMessageResponse]:
        return transact(
            stub, append((three, 0), b"a", producer=state(given, sequence)),
            append((three, 1), b"b", producer=state(given, sequence)), group=group, commits=[(three, 2, offset)],
        )

    first = run(0, 4)
    second = run(1, 5)
    # Its offsets are behind what is committed now, and that is as it should be.
    again = run(0, 4)
    assert [each.offset for each in again] == [each.offset for each in first] == [0, 0]
    assert [each.duplicate for each in first + second + again] == [False] * 4 + [True] * 2
    assert all(each.durability == pb.DURABILITY_DURABLE for each in again)
    assert all_values(stub, three, 2) == [[b"a", b"a"], [b"b", b"b"]]
    assert committed(stub, group, three, 2) == 5


def test_a_retry_is_told_so_whatever_became_of_the_group(broker: BrokerProcess) -> None:
    stub = broker.stub()
    given, source, target = init(stub), new_topic(stub), new_topic(stub)
    group = f"of {source}"
    produce(stub, source, *[b"in"] * 3)
    member = Member(stub, group, source)
    member.wait_for("assigned")

    def run(sequence: int, **by: object) -> pb.ProduceMessageResponse:
        append_ = append((target, 0), b"out", producer=state(given, sequence))
        return transact(stub, append_, group=group, commits=[(source, 0, sequence + 1)], **by)[0]

    by_member = {"member_id": member.member_id, "generation": member.generation}
    assert [run(0, **by_member).duplicate for _ in range(2)] == [False, True]
    member.leave()
    assert run(0, **by_member).duplicate, "the member is gone"
    with refused(ABORTED, Reason.FENCED_GENERATION):
        run(1, **by_member)
    assert not run(1).duplicate
    other = Member(stub, group, source)
    other.wait_for("assigned")
    assert run(1).duplicate, "the group has members"
    other.leave()
    stub.DeleteTopic(pb.DeleteTopicRequest(name=source), timeout=DEADLINE_S)
    assert run(1).duplicate, "what it read is gone"
    with refused(grpc.StatusCode.NOT_FOUND, Reason.TOPIC_NOT_FOUND):
        run(2)
    assert values(read(stub, target)) == [b"out"] * 2


def test_what_was_partly_appended_before_is_refused(stub: Stub, three: str) -> None:
    given = init(stub)
    produce(stub, three, b"a", producer=state(given, 0))
    with refused(ABORTED, Reason.PARTLY_DUPLICATE):
        transact(
            stub, append((three, 0), b"a", producer=state(given, 0)), append((three, 1), b"b", producer=state(given, 0))
        )
    assert all_values(stub, three, 2) == [[b"a"], []]
    with refused(ABORTED, Reason.SEQUENCE_GAP):
        transact(
            stub, append((three, 0), b"a", producer=state(given, 2)), append((three, 1), b"b", producer=state(given, 0))
        )
    with refused(INVALID, Reason.INVALID_PRODUCER):
        transact(stub, append((three, 0), b"a", producer=state(given, 1)), append((three, 1), b"b"))
    transact(
        stub, append((three, 0), b"c", producer=state(given, 1)), append((three, 1), b"b", producer=state(given, 0))
    )
    assert all_values(stub, three, 2) == [[b"a", b"c"], [b"b"]]


def test_who_is_fenced_appends_nothing(stub: Stub, three: str) -> None:
    old = init(stub, f"name of {three}")
    transact(stub, append((three, 0), b"a", producer=state(old, 0)), append((three, 1), b"a", producer=state(old, 0)))
    new = init(stub, f"name of {three}")
    with refused(ABORTED, Reason.PRODUCER_FENCED):
        transact(
            stub, append((three, 0), b"b", producer=state(old, 1)), append((three, 1), b"b", producer=state(old, 1))
        )
    transact(stub, append((three, 0), b"c", producer=state(new, 0)), append((three, 1), b"c", producer=state(new, 0)))
    assert all_values(stub, three, 2) == [[b"a", b"c"]] * 2


def test_an_expected_offset_that_is_not_the_end_refuses_all(stub: Stub, three: str) -> None:
    produce(stub, three, b"x")
    transact(stub, append((three, 0), b"a", expected_offset=1), append((three, 1), b"a", expected_offset=0))
    with refused(ABORTED, Reason.OFFSET_MISMATCH) as refusal:
        transact(stub, append((three, 1), b"b", expected_offset=1), append((three, 0), b"b", expected_offset=1))
    assert (refusal.metadata["partition"], refusal.metadata["end_offset"]) == ("0", "2")
    assert all_values(stub, three, 2) == [[b"x", b"a"], [b"a"]]


# What is refused leaves nothing


def test_what_is_wrong_with_one_append_refuses_all(stub: Stub, three: str) -> None:
    good = append((three, 0), b"good")
    small = new_topic(stub, max_message_bytes=100)
    for code, reason, bad in (
        (grpc.StatusCode.NOT_FOUND, Reason.TOPIC_NOT_FOUND, append(("nowhere", 0), b"x")),
        (grpc.StatusCode.NOT_FOUND, Reason.PARTITION_NOT_FOUND, append((three, 3), b"x")),
        (INVALID, Reason.INVALID_PARTITION, append((three, -2), b"x")),
        (INVALID, Reason.INVALID_ACKS, append((three, 1), b"x", required_acks=1)),
        (INVALID, Reason.INVALID_ACKS, append((three, 1), b"x", required_acks=7)),
        (INVALID, Reason.INVALID_LIMIT, append((three, 1), b"x", timeout_ms=1)),
        (INVALID, Reason.NO_RECORD, append((three, 1))),
        (INVALID, Reason.DUPLICATE_PARTITION, append((three, 0), b"x")),
        (INVALID, Reason.INVALID_PARTITION, append((three, -1), b"x", expected_offset=0)),
        (EXHAUSTED, Reason.RECORD_TOO_LARGE, append((small, 0), b"x" * 100)),
    ):
        for appends in ([good, bad], [bad, good]):
            with refused(code, reason):
                transact(stub, *appends)
    assert all_values(stub, three, 3) == [[], [], []]


def test_what_is_wrong_with_the_whole(stub: Stub, three: str) -> None:
    good = append((three, 0), b"good")
    with refused(INVALID, Reason.MALFORMED_REQUEST):
        transact(stub)
    with refused(INVALID, Reason.MALFORMED_REQUEST):
        transact(stub, good, group="g")
    with refused(INVALID, Reason.INVALID_GROUP_ID):
        transact(stub, good, commits=[(three, 0, 0)])
    with refused(INVALID, Reason.INVALID_LIMIT):
        transact(stub, good, timeout_ms=-1)
    with refused(INVALID, Reason.DUPLICATE_PARTITION):
        transact(stub, good, group="g", commits=[(three, 0, 0), (three, 0, 0)])
    with refused(grpc.StatusCode.OUT_OF_RANGE, Reason.OFFSET_OUT_OF_RANGE):
        transact(stub, good, group="g", commits=[(three, 0, 1)])
    with refused(grpc.StatusCode.NOT_FOUND, Reason.TOPIC_NOT_FOUND):
        transact(stub, good, group="g", commits=[("nowhere", 0, 0)])
    assert all_values(stub, three, 3) == [[], [], []]


def test_more_than_a_transaction_holds(start_broker: StartBroker) -> None:
    broker = start_broker("--limits-transaction-partitions", "3", "--topics-max-record-bytes", str(8 << 20))
    stub = broker.stub()
    topic = new_topic(stub, 4)
    with refused(EXHAUSTED, Reason.TRANSACTION_TOO_LARGE) as refusal:
        transact(stub, *(append((topic, number), b"x") for number in range(4)))
    assert refusal.metadata == {"max_partitions": "3"}
    with refused(EXHAUSTED, Reason.TRANSACTION_TOO_LARGE) as refusal:
        transact(stub, append((topic, 0), b"x" * (5 << 20)))
    assert int(refusal.metadata["max_bytes"]) <= 4 << 20
    transact(stub, *(append((topic, number), b"x" * (1 << 20)) for number in range(3)))
    assert [len(each) for each in all_values(stub, topic, 4)] == [1, 1, 1, 0]


def test_without_a_journal_there_are_none(start_broker: StartBroker) -> None:
    stub = start_broker("--limits-journal-bytes", "0").stub()
    topic = new_topic(stub)
    with refused(PRECONDITION, Reason.TRANSACTIONS_DISABLED):
        transact(stub, append((topic, 0), b"x"))
    assert produce(stub, topic, b"y").offset == 0


def test_a_group_beyond_the_limit(start_broker: StartBroker) -> None:
    stub = start_broker("--limits-groups", "1").stub()
    topic = new_topic(stub)
    transact(stub, append((topic, 0), b"x"), group="one", commits=[(topic, 0, 0)])
    with refused(EXHAUSTED, Reason.GROUP_LIMIT):
        transact(stub, append((topic, 0), b"y"), group="two", commits=[(topic, 0, 0)])
    assert values(read(stub, topic)) == [b"x"]


def test_bytes_that_are_no_request(channel: grpc.Channel) -> None:
    for data in (b"\xff", b"\x0a\x05abc", b"\x08\x01", b"\x12\x01\xff"):
        with refused(INVALID, Reason.MALFORMED_REQUEST):
            raw_unary(channel, "ProduceTransaction", data)
    with refused(INVALID, Reason.MALFORMED_REQUEST):
        raw_unary(channel, "ProduceTransaction", b"\x0a\x03abc")


def test_a_timeout_leaves_the_outcome_open_and_whole(start_broker: StartBroker, strace: list[str]) -> None:
    """Syncs take so long that nobody can be answered in time."""
    prefix = [*strace, "-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=400000"]
    stub = start_broker(prefix=prefix).stub()
    topic = new_topic(stub, 2)
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED, Reason.ACK_TIMEOUT):
        transact(stub, append((topic, 0), b"a"), append((topic, 1), b"a"), timeout_ms=20)
    answers = transact(stub, append((topic, 0), b"b"), append((topic, 1), b"b"))
    assert [each.offset for each in answers] == [1, 1]
    assert all_values(stub, topic, 2) == [[b"a", b"b"]] * 2


def test_a_client_that_goes_does_not_stop_it(broker: BrokerProcess) -> None:
    stub = broker.stub()
    topic = new_topic(stub, 2)
    request = pb.ProduceTransactionRequest(appends=[append((topic, 0), b"a"), append((topic, 1), b"a")])
    for _ in range(30):
        stub.ProduceTransaction.future(request).cancel()
    transact(stub, append((topic, 0), b"end"), append((topic, 1), b"end"))
    one, other = all_values(stub, topic, 2)
    assert one == other and one[-1] == b"end"


def test_a_topic_deleted_meanwhile_is_no_bug(broker: BrokerProcess) -> None:
    stub = broker.stub()
    stays = new_topic(stub)
    for turn in range(10):
        goes = new_topic(stub)
        calls = [
            stub.ProduceTransaction.future(
                pb.ProduceTransactionRequest(
                    appends=[append((stays, 0), b"%d" % turn), append((goes, 0), b"%d" % turn)], group_id="g",
                    offsets=[pb.TopicPartitionOffset(topic=goes, partition=0, offset=0)],
                ), timeout=DEADLINE_S,
            )
            for _ in range(3)
        ]
        stub.DeleteTopic(pb.DeleteTopicRequest(name=goes), timeout=DEADLINE_S)
        for call in calls:
            problem = call.exception()
            assert problem is None or problem.code() is grpc.StatusCode.NOT_FOUND, problem
    produce(stub, stays, b"end", acks=-1)
    assert offsets(stub, stays).end_offset >= 1 and read(stub, stays)[-1].value == b"end"
