"""FetchOffsets: where a group stands, and how far behind; and groups that expire."""

import time

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
    fetch_offsets,
    new_topic,
    produce,
    refused,
)
from tests.conftest import StartBroker

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND


@pytest.fixture
def filled(stub: Stub) -> str:
    """A topic with two partitions of five records."""
    topic = new_topic(stub, 2)
    for partition in 0, 1:
        produce(stub, topic, *[b"v"] * 5, partition=partition)
    return topic


def group_of(topic: str) -> str:
    return f"group of {topic}"


def truncate(stub: Stub, topic: str, before_offset: int) -> None:
    request = pb.TruncatePartitionRequest(topic=topic, before_offset=before_offset)
    assert stub.TruncatePartition(request, timeout=DEADLINE_S).success


# FetchOffsets


def test_what_is_committed_with_its_lag(stub: Stub, filled: str) -> None:
    group = group_of(filled)
    before_ms = int(time.time() * 1000)
    commit(stub, group, (filled, 0, 3))
    after_ms = int(time.time() * 1000)
    one, two = fetch_offsets(stub, group, (filled, 1), (filled, 0))
    assert one == pb.GroupOffset(topic=filled, partition=1, end_offset=5, lag=5)
    assert not one.HasField("committed_offset")
    assert before_ms <= two.committed_ms <= after_ms
    two.committed_ms = 0
    assert two == pb.GroupOffset(topic=filled, partition=0, committed_offset=3, end_offset=5, lag=2)


def test_a_commit_of_0_is_told_from_none(stub: Stub, filled: str) -> None:
    commit(stub, group_of(filled), (filled, 0, 0))
    assert committed(stub, group_of(filled), filled, 0) == 0
    assert committed(stub, group_of(filled), filled, 1) is None


def test_without_names_all_that_is_committed_in_order(stub: Stub) -> None:
    topics = [new_topic(stub, 12), new_topic(stub)]
    group = group_of(topics[0])
    commit(stub, group, (topics[1], 0, 0), (topics[0], 10, 0), (topics[0], 2, 0))
    expected = sorted([(topics[1], 0), (topics[0], 10), (topics[0], 2)])
    assert [(each.topic, each.partition) for each in fetch_offsets(stub, group)] == expected


def test_the_lag_follows_the_log(stub: Stub, filled: str) -> None:
    group = group_of(filled)
    commit(stub, group, (filled, 0, 5))
    assert fetch_offsets(stub, group)[0].lag == 0
    produce(stub, filled, *[b"v"] * 3)
    (position,) = fetch_offsets(stub, group)
    assert (position.committed_offset, position.end_offset, position.lag) == (5, 8, 3)


def test_behind_the_logs_start(stub: Stub, filled: str) -> None:
    group = group_of(filled)
    commit(stub, group, (filled, 0, 1))
    truncate(stub, filled, 4)
    (position,) = fetch_offsets(stub, group)
    assert (position.committed_offset, position.log_start_offset, position.end_offset, position.lag) == (1, 4, 5, 4)
    (position,) = fetch_offsets(stub, "another", (filled, 0))
    assert (position.log_start_offset, position.lag) == (4, 1), "it would begin where the log does"


def test_a_group_that_is_not_known(stub: Stub, filled: str) -> None:
    with refused(NOT_FOUND, Reason.GROUP_NOT_FOUND) as refusal:
        fetch_offsets(stub, "nobody")
    assert refusal.metadata == {"group_id": "nobody"}
    assert committed(stub, "nobody", filled) is None, "it may begin now"


@pytest.mark.parametrize(("named", "code", "reason"), [
    (lambda topic: (topic, 2), NOT_FOUND, Reason.PARTITION_NOT_FOUND),
    (lambda topic: (topic, -1), INVALID, Reason.INVALID_PARTITION),
    (lambda topic: ("nowhere", 0), NOT_FOUND, Reason.TOPIC_NOT_FOUND),
    (lambda topic: ("../x", 0), INVALID, Reason.INVALID_TOPIC_NAME),
    (lambda topic: ("", 0), INVALID, Reason.INVALID_TOPIC_NAME),
], ids=["no partition", "partition -1", "no topic", "bad name", "no name"])
def test_partitions_that_are_not_there(stub: Stub, filled: str, named, code: grpc.StatusCode, reason: Reason) -> None:
    with refused(code, reason):
        fetch_offsets(stub, group_of(filled), (filled, 0), named(filled))


def test_a_group_id_that_is_not_allowed(stub: Stub, filled: str) -> None:
    for group in "", "g" * 250, "nul\0":
        with refused(INVALID, Reason.INVALID_GROUP_ID):
            fetch_offsets(stub, group, (filled, 0))


def test_the_limit_of_partitions_and_an_answer_of_that_size(broker: BrokerProcess) -> None:
    """As many as are allowed, with the longest names, fit into what a client takes unless told otherwise."""
    stub = broker.stub()
    name = "x" * 249
    create_topic(stub, name, 10_000)
    create_topic(stub, "one-more")
    every = [(name, number) for number in range(10_000)]
    commit(stub, "g", *[(topic, number, 0) for topic, number in every])
    answer = fetch_offsets(stub, "g")
    assert [each.partition for each in answer] == list(range(10_000))
    assert fetch_offsets(stub, "g", *every) == answer
    with refused(INVALID, Reason.TOO_MANY_PARTITIONS) as refusal:
        fetch_offsets(stub, "g", *every, ("one-more", 0))
    assert "10001" in refusal.message and refusal.metadata == {"max_partitions": "10000"}
    commit(stub, "g", ("one-more", 0, 0))
    with refused(INVALID, Reason.TOO_MANY_PARTITIONS):
        fetch_offsets(stub, "g")


def test_a_deleted_topics_commits_are_not_told(stub: Stub, filled: str) -> None:
    group, other = group_of(filled), new_topic(stub)
    commit(stub, group, (filled, 0, 1), (other, 0, 0))
    stub.DeleteTopic(pb.DeleteTopicRequest(name=filled), timeout=DEADLINE_S)
    assert [each.topic for each in fetch_offsets(stub, group)] == [other]
    create_topic(stub, filled)
    assert committed(stub, group, filled) is None


@pytest.mark.parametrize("kill", [True, False], ids=["kill -9", "in order"])
def test_offsets_and_times_survive(broker: BrokerProcess, kill: bool) -> None:
    stub = broker.stub()
    topic = new_topic(stub, flush_ms=-1)
    produce(stub, topic, *[b"v"] * 9)
    commit(stub, "g", (topic, 0, 7))
    before = fetch_offsets(stub, "g")
    broker.restart(kill=kill)
    assert fetch_offsets(broker.stub(), "g") == before


# Expiry


def test_a_group_that_nobody_uses_is_forgotten(start_broker: StartBroker) -> None:
    flags = "--groups-offsets-retention-ms", "300", "--groups-offsets-check-ms", "20", "--limits-groups", "1"
    broker = start_broker(*flags)
    stub = broker.stub()
    topic = new_topic(stub)
    commit(stub, "g", (topic, 0, 0))
    broker.wait_for_log("group 'g' was not used for 300 ms")
    with refused(NOT_FOUND, Reason.GROUP_NOT_FOUND):
        fetch_offsets(stub, "g")
    assert commit(stub, "another", (topic, 0, 0)).success, "it no longer counts"
    broker.wait_for_log("group 'another' was not used for 300 ms")
    broker.restart(kill=True)
    stub = broker.stub()
    for group in "g", "another":
        with refused(NOT_FOUND, Reason.GROUP_NOT_FOUND):
            fetch_offsets(stub, group)
