"""Topics: made, listed, described, deleted; and HealthCheck, which needs none."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from takhin import __version__
from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import (
    DEADLINE_S,
    BrokerProcess,
    Stub,
    consume,
    create_topic,
    new_topic,
    offsets,
    produce,
    read,
    refused,
    unknown_numbers,
    values,
    wait_until,
)
from tests.conftest import StartBroker

NOT_FOUND = grpc.StatusCode.NOT_FOUND


def create(stub: Stub, name: str, partitions: int = 0, replication: int = 0, **configs: str) -> pb.CreateTopicResponse:
    own = {key.replace("_", "."): value for key, value in configs.items()}
    return stub.CreateTopic(
        pb.CreateTopicRequest(name=name, num_partitions=partitions, replication_factor=replication, configs=own),
        timeout=DEADLINE_S)


def delete(stub: Stub, name: str) -> pb.DeleteTopicResponse:
    return stub.DeleteTopic(pb.DeleteTopicRequest(name=name), timeout=DEADLINE_S)


def names(stub: Stub) -> list[str]:
    return list(stub.ListTopics(pb.ListTopicsRequest(), timeout=DEADLINE_S).topics)


def get(stub: Stub, name: str) -> pb.TopicInfo:
    response = stub.GetTopic(pb.GetTopicRequest(name=name), timeout=DEADLINE_S)
    assert response.error == "" and unknown_numbers(response) == []
    return response.topic


def describe(stub: Stub, *wanted: str) -> list[pb.TopicInfo]:
    return list(stub.DescribeTopics(pb.DescribeTopicsRequest(topics=wanted), timeout=DEADLINE_S).topics)


# Creating


def test_create_tells_success(stub: Stub) -> None:
    response = create(stub, "created", 2, 1)
    assert response == pb.CreateTopicResponse(success=True, error="")
    assert "created" in names(stub)


@pytest.mark.parametrize("name", ["a", "x" * 249, "ABC.def_0-9", "...", "-", "_", ".a"])
def test_names_that_are_allowed(stub: Stub, name: str) -> None:
    assert create(stub, name).success
    produce(stub, name, b"value")
    assert values(read(stub, name)) == [b"value"]
    assert get(stub, name).name == name
    assert delete(stub, name).success


def test_num_partitions_0_is_the_default(stub: Stub, start_broker: StartBroker) -> None:
    create(stub, "default-count", 0)
    assert get(stub, "default-count").num_partitions == 1
    other = start_broker("--topics-partitions", "5").stub()
    create(other, "default-count", 0)
    assert get(other, "default-count").num_partitions == 5


def test_names_differ_by_case(stub: Stub) -> None:
    create(stub, "case")
    create(stub, "CASE")
    produce(stub, "case", b"lower")
    assert read(stub, "CASE") == []


def test_creating_twice_is_refused_whatever_it_asks_for(stub: Stub) -> None:
    create(stub, "twice", 1)
    produce(stub, "twice", b"kept")
    for partitions in 1, 3:
        with refused(grpc.StatusCode.ALREADY_EXISTS, Reason.TOPIC_EXISTS) as refusal:
            create(stub, "twice", partitions)
        assert "'twice'" in refusal.message and refusal.metadata == {"topic": "twice"}
    assert get(stub, "twice").num_partitions == 1
    assert values(read(stub, "twice")) == [b"kept"]


def test_of_many_that_create_at_once_one_succeeds(stub: Stub) -> None:
    ready = threading.Barrier(12)

    def contend(number: int) -> int | None:
        ready.wait()
        try:
            create(stub, "contended", number + 1)
            return number + 1
        except grpc.RpcError as exc:
            assert exc.code() is grpc.StatusCode.ALREADY_EXISTS
            return None

    with ThreadPoolExecutor(12) as threads:
        made = [count for count in threads.map(contend, range(12)) if count is not None]
    assert len(made) == 1
    assert get(stub, "contended").num_partitions == made[0]


CONFIGS = {
    "retention.ms": "-1", "retention.bytes": "0", "segment.bytes": "1024", "segment.ms": "1",
    "max.message.bytes": "1", "message.timestamp.type": "LogAppendTime", "flush.ms": "-1", "cleanup.policy": "delete",
    "compression.type": "producer", "flush.messages": "9223372036854775807", "min.compaction.lag.ms": "0",
    "delete.retention.ms": "9223372036854775807",
}


def test_configs_take_kafkas_names_and_are_told_as_they_were_set(stub: Stub) -> None:
    stub.CreateTopic(pb.CreateTopicRequest(name="configured", configs=CONFIGS), timeout=DEADLINE_S)
    assert dict(get(stub, "configured").configs) == CONFIGS
    create(stub, "plain")
    assert dict(get(stub, "plain").configs) == {}, "the broker's defaults are not repeated"


def test_limits_of_topics_and_partitions(start_broker: StartBroker) -> None:
    stub = start_broker(
        "--limits-topics", "3", "--limits-partitions", "10", "--limits-partitions-per-topic", "6"
    ).stub()
    create(stub, "first", 6)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_PARTITION_COUNT) as refusal:
        create(stub, "second", 7)
    assert "num_partitions 7" in refusal.message and refusal.metadata == {"max_partitions": "6"}
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.PARTITION_LIMIT) as refusal:
        create(stub, "second", 5)
    assert refusal.metadata == {"max_partitions": "10"}
    create(stub, "second", 3)
    create(stub, "third", 1)
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.TOPIC_LIMIT) as refusal:
        create(stub, "fourth", 1)
    assert refusal.metadata == {"max_topics": "3"}
    assert names(stub) == ["first", "second", "third"]
    delete(stub, "first")
    create(stub, "fourth", 6)


# Telling


def test_list_is_sorted_and_complete(start_broker: StartBroker) -> None:
    stub = start_broker().stub()
    assert names(stub) == []
    for name in ("b", "c", "a", "B"):
        create(stub, name)
    assert names(stub) == ["B", "a", "b", "c"]


def test_get_topic(broker: BrokerProcess) -> None:
    stub = broker.stub()
    before_ms = int(time.time() * 1000)
    create(stub, "described", 3, 1, segment_bytes="2048")
    after_ms = int(time.time() * 1000)
    info = get(stub, "described")
    assert (info.name, info.num_partitions, info.replication_factor) == ("described", 3, 1)
    assert before_ms <= info.created_ms <= after_ms
    assert dict(info.configs) == {"segment.bytes": "2048"}
    assert info.size_bytes == 0
    assert sorted(info.partitions) == [0, 1, 2]
    for number, partition in info.partitions.items():
        assert partition == pb.PartitionInfo(partition_id=number, leader=0, replicas=[0], isr=[0])

    produce(stub, "described", *[b"x" * 500] * 10, partition=1)
    produce(stub, "described", b"y" * 500, partition=2, acks=-1)
    info = get(stub, "described")
    one, two = info.partitions[1], info.partitions[2]
    assert info.partitions[0] == pb.PartitionInfo(partition_id=0, replicas=[0], isr=[0])
    assert (one.beginning_offset, one.end_offset) == (0, 10)
    assert (two.beginning_offset, two.end_offset, two.durable_offset) == (0, 1, 1)
    for number in 1, 2:
        on_disk = sum(path.stat().st_size for path in broker.segments(number))
        assert info.partitions[number].size_bytes == on_disk
    assert info.size_bytes == one.size_bytes + two.size_bytes


def test_durable_offset_follows_within_flush_ms(stub: Stub) -> None:
    soon = new_topic(stub, flush_ms=20)
    never = new_topic(stub, flush_ms=-1)
    for topic in soon, never:
        produce(stub, topic, b"value", acks=1)
    wait_until(lambda: offsets(stub, soon).durable_offset == 1, 5)
    time.sleep(0.2)
    assert (offsets(stub, never).end_offset, offsets(stub, never).durable_offset) == (1, 0)
    assert get(stub, never).partitions[0].durable_offset == 0


def test_describe_topics(broker: BrokerProcess) -> None:
    stub = broker.stub()
    assert describe(stub) == []
    for name, partitions in ("a", 1), ("b", 2), ("c", 3):
        create(stub, name, partitions)
    produce(stub, "b", b"value", partition=1, acks=-1)
    assert [info.name for info in describe(stub)] == ["a", "b", "c"], "no names: all topics"
    assert describe(stub, "c", "a") == [get(stub, "c"), get(stub, "a")]
    assert describe(stub) == [get(stub, name) for name in ("a", "b", "c")]


def test_describe_an_unknown_topic(stub: Stub, topic: str) -> None:
    with refused(NOT_FOUND, Reason.TOPIC_NOT_FOUND) as refusal:
        describe(stub, topic, "nowhere")
    assert "'nowhere'" in refusal.message and refusal.metadata == {"topic": "nowhere"}


def test_get_an_unknown_topic(stub: Stub) -> None:
    with refused(NOT_FOUND, Reason.TOPIC_NOT_FOUND) as refusal:
        get(stub, "nowhere")
    assert "'nowhere'" in refusal.message and refusal.metadata == {"topic": "nowhere"}


def test_partition_offsets(stub: Stub) -> None:
    topic = new_topic(stub, 2)
    assert offsets(stub, topic, 1) == pb.GetPartitionOffsetsResponse(topic=topic, partition=1)
    produce(stub, topic, b"1", b"2", b"3", partition=1, acks=-1)
    expected = pb.GetPartitionOffsetsResponse(topic=topic, partition=1, end_offset=3, durable_offset=3)
    assert offsets(stub, topic, 1) == expected
    assert offsets(stub, topic, 0).end_offset == 0


@pytest.mark.parametrize(("partition", "code", "reason"), [
    (2, NOT_FOUND, Reason.PARTITION_NOT_FOUND),
    (2**31 - 1, NOT_FOUND, Reason.PARTITION_NOT_FOUND),
    (-1, grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_PARTITION),
])
def test_offsets_of_a_partition_that_is_not_there(
    stub: Stub, partition: int, code: grpc.StatusCode, reason: Reason
) -> None:
    topic = new_topic(stub, 2)
    with refused(code, reason) as refusal:
        offsets(stub, topic, partition)
    assert str(partition) in refusal.message
    assert refusal.metadata == {"topic": topic, "partition": str(partition)}
    with refused(NOT_FOUND, Reason.TOPIC_NOT_FOUND):
        offsets(stub, "nowhere", partition)


# Deleting


def test_delete_takes_the_files_too(broker: BrokerProcess) -> None:
    stub = broker.stub()
    create(stub, "kept")
    create(stub, "gone", 2)
    for partition in 0, 1:
        produce(stub, "gone", b"value", partition=partition, acks=-1)
    produce(stub, "kept", b"value", acks=-1)
    assert len(list((broker.data_dir / "topics").iterdir())) == 2
    assert delete(stub, "gone") == pb.DeleteTopicResponse(success=True, error="")
    assert names(stub) == ["kept"]
    assert len(list((broker.data_dir / "topics").iterdir())) == 1
    assert open_files_that_are_gone(broker) == []
    for call in get, delete:
        with refused(NOT_FOUND, Reason.TOPIC_NOT_FOUND) as refusal:
            call(stub, "gone")
        assert refusal.metadata == {"topic": "gone"}
    broker.restart()
    assert names(broker.stub()) == ["kept"]


def open_files_that_are_gone(broker: BrokerProcess) -> list[str]:
    """Files that were unlinked but are held open: their space is not free yet."""
    links = [str(link.readlink()) for link in Path(f"/proc/{broker.pid}/fd").iterdir() if link.is_symlink()]
    return [target for target in links if "/topics/" in target and target.endswith("(deleted)")]


def test_deleting_ends_the_topics_consumers(stub: Stub) -> None:
    topic = new_topic(stub)
    produce(stub, topic, b"1", b"2")
    follower = consume(stub, topic)
    waiting = consume(stub, topic, offset=-2)
    assert values(next(follower).records) == [b"1", b"2"]
    timer = threading.Timer(0.2, delete, (stub, topic))
    timer.start()
    for call in follower, waiting:
        with refused(NOT_FOUND, Reason.TOPIC_NOT_FOUND) as refusal:
            next(call)
        assert f"'{topic}'" in refusal.message and refusal.metadata["topic"] == topic
    timer.join()


def test_producing_to_a_deleted_topic(stub: Stub) -> None:
    topic = new_topic(stub)
    produce(stub, topic, b"value")
    delete(stub, topic)
    for partition in 0, -1:
        with refused(NOT_FOUND, Reason.TOPIC_NOT_FOUND) as refusal:
            produce(stub, topic, b"value", partition=partition)
        assert refusal.metadata == {"topic": topic}


def test_deleting_under_load_fails_what_comes_after_and_nothing_else(broker: BrokerProcess) -> None:
    """Every produce is answered: with an offset, or with TOPIC_NOT_FOUND."""
    stub = broker.stub()
    create_topic(stub, "loaded", 2)
    create_topic(stub, "beside")

    def load(number: int) -> tuple[int, str]:
        for count in range(100_000):
            try:
                produce(stub, "loaded", b"value", partition=number % 2, acks=(1, -1)[number // 2])
            except grpc.RpcError as exc:
                return count, f"{exc.code().name} {exc.details()}"
        return 0, "it was never refused"

    with ThreadPoolExecutor(4) as threads:
        loads = [threads.submit(load, number) for number in range(4)]
        wait_until(lambda: offsets(stub, "loaded").end_offset > 20)
        delete(stub, "loaded")
        results = [each.result() for each in loads]
    assert all(told.startswith("NOT_FOUND") and "'loaded'" in told for _, told in results), results
    assert sum(count for count, _ in results) > 20
    produce(stub, "beside", b"value", acks=-1)
    wait_until(lambda: len(list((broker.data_dir / "topics").iterdir())) == 1)


def test_a_new_topic_under_the_same_name_starts_at_0(stub: Stub) -> None:
    create_topic(stub, "again", 2)
    for _ in range(3):
        produce(stub, "again", b"old", partition=1)
    first = get(stub, "again")
    delete(stub, "again")
    create_topic(stub, "again", 2)
    assert get(stub, "again").created_ms >= first.created_ms
    assert (offsets(stub, "again", 1).beginning_offset, offsets(stub, "again", 1).end_offset) == (0, 0)
    assert read(stub, "again", partition=1) == []
    response = produce(stub, "again", b"new", partition=1)
    assert (response.partition, response.offset) == (1, 0)
    assert [(record.offset, record.value) for record in read(stub, "again", partition=1)] == [(0, b"new")]


def test_topics_and_their_deletion_survive_a_kill(broker: BrokerProcess) -> None:
    stub = broker.stub()
    create(stub, "stays", 3, segment_bytes="4096")
    create(stub, "goes", 1)
    produce(stub, "stays", b"value", partition=2)
    produce(stub, "goes", b"old")
    before = get(stub, "stays")
    delete(stub, "goes")
    broker.restart(kill=True)
    stub = broker.stub()
    assert names(stub) == ["stays"]
    after = get(stub, "stays")
    before.partitions[2].durable_offset = 1
    assert after == before
    create(stub, "goes", 1)
    assert read(stub, "goes") == []


# Health


def test_health_check(broker: BrokerProcess) -> None:
    def check() -> pb.HealthCheckResponse:
        return broker.stub().HealthCheck(pb.HealthCheckRequest(), timeout=DEADLINE_S)

    first = check()
    assert (first.status, first.version) == ("healthy", __version__)
    assert 0 <= first.uptime_seconds < DEADLINE_S
    wait_until(lambda: check().uptime_seconds > first.uptime_seconds, 5)
