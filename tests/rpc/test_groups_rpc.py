"""CommitOffset and the RPCs that tell of groups: what may be committed, and that it stays."""

from pathlib import Path

import grpc
import pytest

from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import (
    DEADLINE_S,
    BrokerProcess,
    Stub,
    commit,
    committed,
    new_topic,
    offsets,
    produce,
    refused,
)
from tests.conftest import StartBroker
from tests.trace import Trace, position, sent, synced, written

INVALID = grpc.StatusCode.INVALID_ARGUMENT
OUT_OF_RANGE = grpc.StatusCode.OUT_OF_RANGE


def groups(stub: Stub) -> list[pb.ConsumerGroupInfo]:
    return list(stub.ListConsumerGroups(pb.ListConsumerGroupsRequest(), timeout=DEADLINE_S).groups)


def describe(stub: Stub, group: str) -> pb.DescribeConsumerGroupResponse:
    return stub.DescribeConsumerGroup(pb.DescribeConsumerGroupRequest(group_id=group), timeout=DEADLINE_S)


def delete(stub: Stub, group: str) -> pb.DeleteConsumerGroupResponse:
    return stub.DeleteConsumerGroup(pb.DeleteConsumerGroupRequest(group_id=group), timeout=DEADLINE_S)


@pytest.fixture
def filled(stub: Stub) -> str:
    """A topic with two partitions of five records."""
    topic = new_topic(stub, 2)
    for partition in 0, 1:
        produce(stub, topic, *[b"v"] * 5, partition=partition)
    return topic


def group_of(topic: str) -> str:
    return f"group of {topic}"


# What may be committed


def test_commit_tells_success(stub: Stub, filled: str) -> None:
    assert commit(stub, group_of(filled), (filled, 0, 3)) == pb.CommitOffsetResponse(success=True, error="")


def test_a_commit_goes_forward_or_stays(stub: Stub, filled: str) -> None:
    group = group_of(filled)
    for offset in 0, 0, 2, 2, 5, 5:
        assert commit(stub, group, (filled, 0, offset)).success
    for offset in 4, 0:
        with refused(grpc.StatusCode.FAILED_PRECONDITION, Reason.OFFSET_BEHIND_COMMITTED) as refusal:
            commit(stub, group, (filled, 0, offset))
        assert str(offset) in refusal.message and "5" in refusal.message
        assert refusal.metadata["committed_offset"] == "5"
        assert (refusal.metadata["topic"], refusal.metadata["partition"]) == (filled, "0")
    assert commit(stub, group, (filled, 1, 0)).success, "the other partition has its own"
    assert commit(stub, f"{group}, another", (filled, 0, 1)).success, "another group has its own"


def test_the_logs_end_may_be_committed_and_no_more(stub: Stub, filled: str) -> None:
    group = group_of(filled)
    assert commit(stub, group, (filled, 0, 5)).success
    for offset in 6, 2**63 - 1:
        with refused(OUT_OF_RANGE, Reason.OFFSET_OUT_OF_RANGE) as refusal:
            commit(stub, group, (filled, 0, offset))
        assert str(offset) in refusal.message
        assert refusal.metadata == {
            "topic": filled, "partition": "0", "offset": str(offset), "log_start_offset": "0", "end_offset": "5"}
    produce(stub, filled, b"v")
    assert commit(stub, group, (filled, 0, 6)).success


def test_an_empty_partition_may_be_committed_at_0(stub: Stub, topic: str) -> None:
    assert commit(stub, group_of(topic), (topic, 0, 0)).success


def test_a_negative_offset(stub: Stub, filled: str) -> None:
    for offset in -1, -2, -(2**63):
        with refused(OUT_OF_RANGE, Reason.OFFSET_OUT_OF_RANGE) as refusal:
            commit(stub, group_of(filled), (filled, 0, offset))
        assert str(offset) in refusal.message


@pytest.mark.parametrize(("bad", "code", "reason"), [
    (lambda topic: (topic, 1, 6), OUT_OF_RANGE, Reason.OFFSET_OUT_OF_RANGE),
    (lambda topic: (topic, 1, 0), grpc.StatusCode.FAILED_PRECONDITION, Reason.OFFSET_BEHIND_COMMITTED),
    (lambda topic: (topic, 2, 0), grpc.StatusCode.NOT_FOUND, Reason.PARTITION_NOT_FOUND),
    (lambda topic: (topic, -1, 0), INVALID, Reason.INVALID_PARTITION),
    (lambda topic: ("nowhere", 0, 0), grpc.StatusCode.NOT_FOUND, Reason.TOPIC_NOT_FOUND),
    (lambda topic: ("../x", 0, 0), INVALID, Reason.INVALID_TOPIC_NAME),
    (lambda topic: (topic, 0, 4), INVALID, Reason.DUPLICATE_PARTITION),
], ids=["beyond the end", "behind", "no partition", "partition -1", "no topic", "bad name", "twice"])
def test_all_offsets_of_a_request_are_committed_or_none(
    stub: Stub, filled: str, bad, code: grpc.StatusCode, reason: Reason
) -> None:
    group = group_of(filled)
    commit(stub, group, (filled, 1, 1))
    with refused(code, reason):
        commit(stub, group, (filled, 0, 4), bad(filled))
    assert commit(stub, group, (filled, 0, 0)).success, "nothing was committed there"
    assert commit(stub, group, (filled, 0, 4), (filled, 1, 4)).success
    assert committed(stub, group, filled, 0) == committed(stub, group, filled, 1) == 4


def test_a_commit_of_nothing(stub: Stub) -> None:
    with refused(INVALID, Reason.MALFORMED_REQUEST) as refusal:
        commit(stub, "group")
    assert "no offsets" in refusal.message


@pytest.mark.parametrize("group", ["x", "g" * 249, "with space", "größe/☃ 'quoted'", "../x", "a.b:c|d"])
def test_group_ids_that_are_allowed(stub: Stub, filled: str, group: str) -> None:
    assert commit(stub, group, (filled, 0, 1)).success
    assert describe(stub, group).group_id == group
    assert group in [each.group_id for each in groups(stub)]
    assert delete(stub, group).success


@pytest.mark.parametrize("group", ["", "g" * 250, "tab\t", "nul\0", "line\n", "\x7f", "\u200b", "\ue000"])
def test_group_ids_that_are_not(stub: Stub, filled: str, group: str) -> None:
    for call in describe, delete, lambda stub, group: commit(stub, group, (filled, 0, 1)):
        with refused(INVALID, Reason.INVALID_GROUP_ID) as refusal:
            call(stub, group)
        assert f"({len(group)} characters)" in refusal.message and "1 to 249" in refusal.message
        assert refusal.message.isprintable()


# Telling of groups, and deleting them


def test_a_group_that_has_only_commits_is_empty(stub: Stub, filled: str) -> None:
    group = group_of(filled)
    commit(stub, group, (filled, 0, 1))
    assert describe(stub, group) == pb.DescribeConsumerGroupResponse(
        group_id=group, state="Empty", protocol_type="consumer")
    (info,) = [each for each in groups(stub) if each.group_id == group]
    assert info == pb.ConsumerGroupInfo(group_id=group, state="Empty", protocol_type="consumer", member_count=0)


def test_groups_are_listed(broker: BrokerProcess) -> None:
    stub = broker.stub()
    assert groups(stub) == []
    topic = new_topic(stub)
    for name in "b", "c", "a":
        commit(stub, name, (topic, 0, 0))
    assert [each.group_id for each in groups(stub)] == ["a", "b", "c"]


def test_a_refused_commit_makes_no_group(stub: Stub, filled: str) -> None:
    with refused(OUT_OF_RANGE, Reason.OFFSET_OUT_OF_RANGE):
        commit(stub, "never", (filled, 0, 6))
    assert "never" not in [each.group_id for each in groups(stub)]


def test_an_unknown_group(stub: Stub) -> None:
    for call in describe, delete:
        with refused(grpc.StatusCode.NOT_FOUND, Reason.GROUP_NOT_FOUND) as refusal:
            call(stub, "nobody")
        assert "'nobody'" in refusal.message and refusal.metadata == {"group_id": "nobody"}


def test_deleting_a_group_drops_its_commits(stub: Stub, filled: str) -> None:
    group = group_of(filled)
    commit(stub, group, (filled, 0, 4))
    assert delete(stub, group) == pb.DeleteConsumerGroupResponse(success=True, error="")
    with refused(grpc.StatusCode.NOT_FOUND, Reason.GROUP_NOT_FOUND):
        describe(stub, group)
    assert commit(stub, group, (filled, 0, 0)).success, "it begins anew"


def test_deleting_a_topic_drops_its_commits(stub: Stub, filled: str) -> None:
    group, other = group_of(filled), new_topic(stub)
    produce(stub, other, b"v")
    commit(stub, group, (filled, 0, 4), (other, 0, 1))
    stub.DeleteTopic(pb.DeleteTopicRequest(name=filled), timeout=DEADLINE_S)
    with refused(grpc.StatusCode.NOT_FOUND, Reason.TOPIC_NOT_FOUND):
        commit(stub, group, (filled, 0, 5))
    assert committed(stub, group, other) == 1
    stub.CreateTopic(pb.CreateTopicRequest(name=filled), timeout=DEADLINE_S)
    assert commit(stub, group, (filled, 0, 0)).success, "the new topic of that name has no commits"


def test_as_many_groups_as_the_broker_takes(start_broker: StartBroker) -> None:
    stub = start_broker("--limits-groups", "2").stub()
    topic = new_topic(stub)
    for name in "a", "b", "a":
        commit(stub, name, (topic, 0, 0))
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.GROUP_LIMIT) as refusal:
        commit(stub, "c", (topic, 0, 0))
    assert "2" in refusal.message
    delete(stub, "a")
    assert commit(stub, "c", (topic, 0, 0)).success


# Commits stay


@pytest.mark.parametrize("kill", [True, False], ids=["kill -9", "in order"])
def test_commits_survive(broker: BrokerProcess, kill: bool) -> None:
    stub = broker.stub()
    topic = new_topic(stub, 2, flush_ms=-1)
    produce(stub, topic, *[b"v"] * 10)
    produce(stub, topic, *[b"v"] * 10, partition=1)
    commit(stub, "stays", (topic, 0, 7), (topic, 1, 10))
    commit(stub, "goes", (topic, 0, 7))
    delete(stub, "goes")
    broker.restart(kill=kill)
    stub = broker.stub()
    assert [each.group_id for each in groups(stub)] == ["stays"]
    for partition, offset in (0, 7), (1, 10):
        assert committed(stub, "stays", topic, partition) == offset
        assert commit(stub, "stays", (topic, partition, offset)).success


def test_a_commit_makes_the_log_durable_up_to_it(stub: Stub) -> None:
    topic = new_topic(stub, 2, flush_ms=-1)
    for partition in 0, 1:
        produce(stub, topic, *[b"v"] * 5, partition=partition)
    assert offsets(stub, topic, 0).durable_offset == 0
    commit(stub, group_of(topic), (topic, 0, 3))
    assert offsets(stub, topic, 0).durable_offset >= 3
    assert offsets(stub, topic, 1).durable_offset == 0, "nobody asked for that"


def test_the_log_is_synced_before_the_commit_is_written_and_that_before_the_answer(
    start_broker: StartBroker, strace: list[str], tmp_path: Path
) -> None:
    trace = Trace(tmp_path / "trace")
    broker = start_broker(prefix=[*strace, *trace.flags()])
    stub = broker.stub()
    topic = new_topic(stub, flush_ms=-1)
    produce(stub, topic, b"v", acks=1)
    mark = trace.mark()
    commit(stub, "traced", (topic, 0, 1))
    calls = trace.finish(broker, mark)
    # In octal, a CommitOffsetResponse{success: true} behind its length.
    answer = sent(r"\\0\\2\\10\\1")
    order = [synced(r"\.log"), written("meta.db-wal"), synced("meta.db-wal"), answer]
    positions = [position(calls, pattern) for pattern in order]
    assert positions == sorted(positions), "\n".join(calls)
