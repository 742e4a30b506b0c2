"""ResetOffsets: where a group can be set to, what is refused, and that it holds what it says."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
    create_topic,
    error_info,
    fetch_offsets,
    new_topic,
    offsets,
    produce,
    refused,
    unknown_numbers,
)
from tests.conftest import StartBroker
from tests.trace import Trace, position, sent, synced, written

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
OUT_OF_RANGE = grpc.StatusCode.OUT_OF_RANGE


@pytest.fixture
def filled(stub: Stub) -> str:
    """A topic with two partitions of the offsets 2 to 9, timestamps 1002 to 1009."""
    topic = new_topic(stub, 2)
    for partition in 0, 1:
        produce(stub, topic, *[pb.Record(value=b"v", timestamp=1000 + i) for i in range(10)], partition=partition)
        request = pb.TruncatePartitionRequest(topic=topic, partition=partition, before_offset=2)
        stub.TruncatePartition(request, timeout=DEADLINE_S)
    return topic


def group_of(topic: str) -> str:
    return f"group of {topic}"


def reset(
    stub: Stub, group: str, *partitions: tuple[str, int], topics: Sequence[str] = (), dry_run: bool = False, **to: Any
) -> list[tuple[str, int, int | None, int]]:
    """(topic, partition, old offset, new offset) of each."""
    made = [pb.TopicPartition(topic=topic, partition=number) for topic, number in partitions]
    request = pb.ResetOffsetsRequest(group_id=group, partitions=made, topics=topics, dry_run=dry_run, **to)
    response = stub.ResetOffsets(request, timeout=DEADLINE_S)
    assert response.success and response.error == "" and unknown_numbers(response) == []
    return [
        (each.topic, each.partition, each.old_offset if each.HasField("old_offset") else None, each.new_offset)
        for each in response.offsets
    ]


# Where to


@pytest.mark.parametrize(("to", "new"), [
    ({"earliest": True}, 2), ({"latest": True}, 10), ({"offset": 2}, 2), ({"offset": 7}, 7), ({"offset": 10}, 10),
    ({"time_ms": 1007}, 7), ({"time_ms": -1}, 2), ({"time_ms": 0}, 2), ({"time_ms": 1010}, 10),
    ({"time_ms": 2**63 - 1}, 10), ({"shift_by": -2}, 3), ({"shift_by": 0}, 5), ({"shift_by": 4}, 9),
    ({"shift_by": -4}, 2), ({"shift_by": 6}, 10), ({"shift_by": -(2**63)}, 2), ({"shift_by": 2**63 - 1}, 10),
], ids=str)
def test_where_to(stub: Stub, filled: str, to: dict[str, Any], new: int) -> None:
    group = group_of(filled)
    commit(stub, group, (filled, 0, 5), (filled, 1, 5))
    expected = [(filled, 0, 5, new)]
    assert reset(stub, group, (filled, 0), dry_run=True, **to) == expected
    assert committed(stub, group, filled, 0) == 5, "a dry run changes nothing"
    assert reset(stub, group, (filled, 0), **to) == expected
    assert committed(stub, group, filled, 0) == new
    assert committed(stub, group, filled, 1) == 5, "nobody asked for that"
    assert reset(stub, group, (filled, 0), offset=2) == [(filled, 0, new, 2)]


def test_a_shift_comes_back_into_the_log(stub: Stub, filled: str) -> None:
    group = group_of(filled)
    commit(stub, group, (filled, 0, 1))
    assert reset(stub, group, (filled, 0), shift_by=0) == [(filled, 0, 1, 2)]


def test_commits_go_on_from_the_reset(stub: Stub, filled: str) -> None:
    group = group_of(filled)
    commit(stub, group, (filled, 0, 9))
    reset(stub, group, (filled, 0), offset=4)
    with refused(FAILED_PRECONDITION, Reason.OFFSET_BEHIND_COMMITTED) as refusal:
        commit(stub, group, (filled, 0, 3))
    assert refusal.metadata["committed_offset"] == "4" and "ResetOffsets" in refusal.message
    assert commit(stub, group, (filled, 0, 6)).success


# Of what


def test_partitions_topics_or_all_that_is_committed(stub: Stub, filled: str) -> None:
    group, other = group_of(filled), new_topic(stub, 3)
    commit(stub, group, (filled, 1, 5), (other, 1, 0))
    every = sorted([(filled, 1, 5, 10), (other, 1, 0, 0)])
    assert reset(stub, group, latest=True, dry_run=True) == every
    assert reset(stub, group, topics=[other], latest=True, dry_run=True) == [
        (other, 0, None, 0), (other, 1, 0, 0), (other, 2, None, 0)]
    assert reset(stub, group, (filled, 1), (filled, 0), topics=[other], earliest=True, dry_run=True) == [
        (filled, 1, 5, 2), (filled, 0, None, 2), (other, 0, None, 0), (other, 1, 0, 0), (other, 2, None, 0)]
    assert len(fetch_offsets(stub, group)) == 2
    assert reset(stub, group, latest=True) == every
    assert len(fetch_offsets(stub, group)) == 2
    reset(stub, group, topics=[other], latest=True)
    assert len(fetch_offsets(stub, group)) == 4


def test_a_reset_makes_the_group(stub: Stub, filled: str) -> None:
    group = group_of(filled)
    assert reset(stub, group, (filled, 0), offset=6, dry_run=True) == [(filled, 0, None, 6)]
    with refused(NOT_FOUND, Reason.GROUP_NOT_FOUND):
        fetch_offsets(stub, group)
    assert reset(stub, group, (filled, 0), offset=6) == [(filled, 0, None, 6)]
    assert [each.committed_offset for each in fetch_offsets(stub, group)] == [6]


def test_as_many_groups_as_the_broker_takes(start_broker: StartBroker) -> None:
    stub = start_broker("--limits-groups", "1").stub()
    topic = new_topic(stub)
    reset(stub, "a", (topic, 0), earliest=True)
    for dry_run in True, False:
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.GROUP_LIMIT):
            reset(stub, "b", (topic, 0), earliest=True, dry_run=dry_run)
    reset(stub, "a", (topic, 0), latest=True)


# What is refused


@pytest.mark.parametrize("to", [{}, {"earliest": False}, {"latest": False}], ids=str)
def test_nowhere(stub: Stub, filled: str, to: dict[str, Any]) -> None:
    with refused(INVALID, Reason.INVALID_RESET) as refusal:
        reset(stub, group_of(filled), (filled, 0), **to)
    assert "shift_by" in refusal.message


@pytest.mark.parametrize(("bad", "to", "code", "reason"), [
    ((None, 1), {"offset": 11}, OUT_OF_RANGE, Reason.OFFSET_OUT_OF_RANGE),
    ((None, 1), {"shift_by": 1}, FAILED_PRECONDITION, Reason.NO_COMMITTED_OFFSET),
    ((None, 2), {"earliest": True}, NOT_FOUND, Reason.PARTITION_NOT_FOUND),
    ((None, -1), {"earliest": True}, INVALID, Reason.INVALID_PARTITION),
    (("nowhere", 0), {"earliest": True}, NOT_FOUND, Reason.TOPIC_NOT_FOUND),
    (("../x", 0), {"earliest": True}, INVALID, Reason.INVALID_TOPIC_NAME),
    ((None, 0), {"earliest": True}, INVALID, Reason.DUPLICATE_PARTITION),
], ids=["beyond the end", "no commit to shift", "no partition", "partition -1", "no topic", "bad name", "twice"])
@pytest.mark.parametrize("dry_run", [False, True], ids=["", "dry run"])
def test_all_are_reset_or_none(
    stub: Stub, filled: str, bad: tuple[str | None, int], to: dict[str, Any], code: grpc.StatusCode, reason: Reason,
    dry_run: bool,
) -> None:
    group = group_of(filled)
    produce(stub, filled, b"v")  # partition 0 has an offset 11 to be set to
    commit(stub, group, (filled, 0, 7))
    with refused(code, reason):
        reset(stub, group, (filled, 0), (bad[0] or filled, bad[1]), dry_run=dry_run, **to)
    assert [(each.partition, each.committed_offset) for each in fetch_offsets(stub, group)] == [(0, 7)]


def test_offsets_outside_of_the_log_are_told_the_range(stub: Stub, filled: str) -> None:
    for offset in -(2**63), -1, 0, 1, 11, 2**63 - 1:
        with refused(OUT_OF_RANGE, Reason.OFFSET_OUT_OF_RANGE) as refusal:
            reset(stub, group_of(filled), (filled, 0), offset=offset)
        assert refusal.metadata == {
            "topic": filled, "partition": "0", "offset": str(offset), "log_start_offset": "2", "end_offset": "10"}


def test_a_partition_and_its_topic(stub: Stub, filled: str) -> None:
    for topics in [filled], [filled, filled]:
        with refused(INVALID, Reason.DUPLICATE_PARTITION) as refusal:
            reset(stub, group_of(filled), (filled, 1), topics=topics, earliest=True)
        assert refusal.metadata["topic"] == filled
    with refused(NOT_FOUND, Reason.TOPIC_NOT_FOUND):
        reset(stub, group_of(filled), (filled, 1), topics=["nowhere"], earliest=True)


def test_a_group_that_is_not_known_has_nothing_to_reset(stub: Stub) -> None:
    with refused(NOT_FOUND, Reason.GROUP_NOT_FOUND):
        reset(stub, "nobody", earliest=True)


def test_a_group_id_that_is_not_allowed(stub: Stub, filled: str) -> None:
    for group in "", "g" * 250, "nul\0":
        with refused(INVALID, Reason.INVALID_GROUP_ID):
            reset(stub, group, (filled, 0), earliest=True)


def test_the_limit_of_partitions(broker: BrokerProcess) -> None:
    stub = broker.stub()
    create_topic(stub, "x" * 249, 10_000)
    create_topic(stub, "one-more")
    assert len(reset(stub, "g", topics=["x" * 249], time_ms=0)) == 10_000
    with refused(INVALID, Reason.TOO_MANY_PARTITIONS):
        reset(stub, "g", ("one-more", 0), topics=["x" * 249], latest=True)
    assert committed(stub, "g", "one-more") is None


# It holds


@pytest.mark.parametrize("kill", [True, False], ids=["kill -9", "in order"])
def test_resets_survive(broker: BrokerProcess, kill: bool) -> None:
    stub = broker.stub()
    topic = new_topic(stub, 3, flush_ms=-1)
    for partition in range(3):
        produce(stub, topic, *[b"v"] * 10, partition=partition)
    commit(stub, "g", (topic, 0, 9), (topic, 1, 9))
    reset(stub, "g", (topic, 0), offset=3)
    reset(stub, "g", (topic, 1), offset=3, dry_run=True)
    reset(stub, "g", (topic, 2), latest=True)
    broker.restart(kill=kill)
    stub = broker.stub()
    assert [each.committed_offset for each in fetch_offsets(stub, "g")] == [3, 9, 10]
    with refused(FAILED_PRECONDITION, Reason.OFFSET_BEHIND_COMMITTED):
        commit(stub, "g", (topic, 0, 2))


@pytest.mark.parametrize(("to", "durable"), [
    ({"offset": 3}, 3), ({"latest": True}, 5), ({"shift_by": 1}, 1), ({"time_ms": 2**62}, 5)], ids=str)
def test_a_reset_makes_the_log_durable_up_to_it(stub: Stub, to: dict[str, Any], durable: int) -> None:
    topic = new_topic(stub, flush_ms=-1)
    produce(stub, topic, *[b"v"] * 5)
    commit(stub, group_of(topic), (topic, 0, 0))
    reset(stub, group_of(topic), (topic, 0), dry_run=True, **to)
    assert offsets(stub, topic).durable_offset == 0, "a dry run is not worth a sync"
    reset(stub, group_of(topic), (topic, 0), **to)
    assert offsets(stub, topic).durable_offset >= durable


def test_the_log_is_synced_before_the_reset_is_written_and_that_before_the_answer(
    start_broker: StartBroker, strace: list[str], tmp_path: Path
) -> None:
    trace = Trace(tmp_path / "trace")
    broker = start_broker(prefix=[*strace, *trace.flags()])
    stub = broker.stub()
    topic = new_topic(stub, flush_ms=-1)
    produce(stub, topic, b"v", acks=1)
    mark = trace.mark()
    reset(stub, "traced", (topic, 0), latest=True)
    calls = trace.finish(broker, mark)
    # A ResetOffsetsResponse{success: true, offsets: [{topic: ...
    answer = sent(r"\\10\\1\\32.\S*" + topic)
    order = [synced(r"\.log"), written("meta.db-wal"), synced("meta.db-wal"), answer]
    positions = [position(calls, pattern) for pattern in order]
    assert positions == sorted(positions), "\n".join(calls)


def test_commits_and_resets_at_the_same_time(stub: Stub) -> None:
    """One order of all of them explains every answer: a reset tells the newest commit before it as the old offset."""
    topic = new_topic(stub)
    produce(stub, topic, *[b"v"] * 1000)
    group = group_of(topic)
    sent_up_to = answered_up_to = 0
    stop = threading.Event()

    def commit_on() -> None:
        nonlocal sent_up_to, answered_up_to
        for offset in range(1, 1001):
            if stop.is_set():
                return
            sent_up_to = offset
            commit(stub, group, (topic, 0, offset))
            answered_up_to = offset

    with ThreadPoolExecutor(1) as threads:
        load = threads.submit(commit_on)
        sent_at_reset = answered_at_reset = 0
        seen = []
        for _ in range(60):
            answered_before = answered_up_to
            ((_, _, old, new),) = reset(stub, group, (topic, 0), offset=0)
            assert new == 0 and (old or 0) <= sent_up_to
            if answered_before > sent_at_reset:  # a commit that came as a whole after the reset before
                assert old is not None and old >= answered_before
            else:
                # None surely since: it stands where it was reset to, or what was on its way then came after it.
                assert old in (None, 0) or old > answered_at_reset
            sent_at_reset, answered_at_reset = sent_up_to, answered_before
            seen.append(old)
        stop.set()
        load.result()
    assert sum(1 for old in seen if old) > 5, seen
    last = answered_up_to
    assert committed(stub, group, topic) in (0, last)


def test_a_topic_that_is_deleted_meanwhile(broker: BrokerProcess) -> None:
    """Each reset succeeds or is told that the topic is gone; a later topic of that name begins without commits."""
    stub = broker.stub()
    for number in range(10):
        name = f"doomed-{number}"
        create_topic(stub, name, 20)
        produce(stub, name, b"v", acks=1)

        def reset_on(name: str = name) -> str:
            for _ in range(1000):
                try:
                    reset(stub, "g", topics=[name], latest=True)
                except grpc.RpcError as exc:
                    return error_info(exc).reason
            return "it was never refused"

        with ThreadPoolExecutor(2) as threads:
            loads = [threads.submit(reset_on) for _ in range(2)]
            stub.DeleteTopic(pb.DeleteTopicRequest(name=name), timeout=DEADLINE_S)
            assert [each.result() for each in loads] == [Reason.TOPIC_NOT_FOUND] * 2
        create_topic(stub, name, 20)
        assert committed(stub, "g", name) is None
