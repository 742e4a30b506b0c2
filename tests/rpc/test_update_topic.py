"""UpdateTopic: configs that take hold on a topic in use, and more partitions."""

import threading
import time
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
    committed,
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

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


def update(
    stub: Stub, name: str, partitions: int = 0, reset: tuple[str, ...] = (), **configs: object
) -> pb.TopicInfo:
    """The topic as the answer tells it; configs with "_" for ".", `reset` as they are."""
    own = {key.replace("_", "."): str(value) for key, value in configs.items()}
    request = pb.UpdateTopicRequest(name=name, num_partitions=partitions, configs=own, reset_configs=reset)
    response = stub.UpdateTopic(request, timeout=DEADLINE_S)
    assert response.success and response.error == "" and unknown_numbers(response) == []
    return response.topic


def get(stub: Stub, name: str) -> pb.TopicInfo:
    return stub.GetTopic(pb.GetTopicRequest(name=name), timeout=DEADLINE_S).topic


# What is asked for


def test_configs_are_set_changed_and_reset(stub: Stub) -> None:
    topic = new_topic(stub, 2, retention_ms=1000, segment_bytes=2048, flush_ms=7)
    info = update(stub, topic, segment_bytes=4096, segment_ms=5, reset=("flush.ms", "retention.bytes"))
    assert dict(info.configs) == {"retention.ms": "1000", "segment.bytes": "4096", "segment.ms": "5"}
    assert info == get(stub, topic)
    assert info.num_partitions == 2


def test_partitions_become_more(stub: Stub) -> None:
    topic = new_topic(stub, 2, segment_bytes=2048)
    produce(stub, topic, b"old", partition=1)
    created_ms = get(stub, topic).created_ms
    info = update(stub, topic, 5)
    assert (info.num_partitions, sorted(info.partitions)) == (5, [0, 1, 2, 3, 4])
    assert (info.created_ms, dict(info.configs)) == (created_ms, {"segment.bytes": "2048"})
    assert info == get(stub, topic)
    for partition in range(5):
        assert offsets(stub, topic, partition).end_offset == (1 if partition == 1 else 0)
        produce(stub, topic, b"new", partition=partition, acks=-1)
    assert values(read(stub, topic, partition=1)) == [b"old", b"new"]
    assert values(read(stub, topic, partition=4)) == [b"new"]
    commit(stub, f"group of {topic}", (topic, 4, 1))
    with refused(NOT_FOUND, Reason.PARTITION_NOT_FOUND):
        produce(stub, topic, b"v", partition=5)


def test_the_same_once_more_changes_nothing(stub: Stub) -> None:
    topic = new_topic(stub, 2)
    first = update(stub, topic, 3, segment_bytes=4096, reset=("flush.ms",))
    assert update(stub, topic, 3, segment_bytes=4096, reset=("flush.ms",)) == first
    assert update(stub, topic, 3) == first


# What is refused


@pytest.mark.parametrize(("partitions", "reset", "configs", "reason"), [
    (1, (), {}, Reason.INVALID_PARTITION_COUNT),
    (-1, (), {}, Reason.INVALID_PARTITION_COUNT),
    (10_001, (), {}, Reason.INVALID_PARTITION_COUNT),
    (2**31 - 1, (), {}, Reason.INVALID_PARTITION_COUNT),
    (0, (), {}, Reason.NOTHING_TO_UPDATE),
    (0, (), {"retention_ms": "soon"}, Reason.INVALID_CONFIG),
    (0, (), {"segment_bytes": "1023"}, Reason.INVALID_CONFIG),
    (0, (), {"cleanup_policy": "compact"}, Reason.INVALID_CONFIG),
    (0, (), {"retention_hours": "7"}, Reason.INVALID_CONFIG),
    (0, ("retention.hours",), {}, Reason.INVALID_CONFIG),
    (0, ("",), {}, Reason.INVALID_CONFIG),
    (0, ("retention.ms",), {"retention_ms": "5"}, Reason.INVALID_CONFIG),
], ids=["fewer", "negative", "too many", "far too many", "nothing", "no number", "too small", "not supported",
        "unknown", "unknown reset", "empty reset", "set and reset"])
def test_what_is_refused_changes_nothing(
    stub: Stub, partitions: int, reset: tuple[str, ...], configs: dict[str, str], reason: Reason
) -> None:
    topic = new_topic(stub, 2, segment_bytes=2048)
    before = get(stub, topic)
    with refused(INVALID, reason):
        update(stub, topic, partitions, reset, **configs)
    if reason is Reason.INVALID_CONFIG:  # nor does what is right beside it
        with refused(INVALID, reason):
            update(stub, topic, 4, (*reset, "segment.bytes"), segment_ms=99, **configs)
    assert get(stub, topic) == before


def test_fewer_partitions_are_told_how_many_there_are(stub: Stub) -> None:
    topic = new_topic(stub, 3)
    with refused(INVALID, Reason.INVALID_PARTITION_COUNT) as refusal:
        update(stub, topic, 2, segment_ms=5)
    assert refusal.metadata == {"topic": topic, "num_partitions": "3"}
    assert get(stub, topic).num_partitions == 3 and not get(stub, topic).configs


def test_a_topic_that_is_not_there(stub: Stub) -> None:
    with refused(NOT_FOUND, Reason.TOPIC_NOT_FOUND) as refusal:
        update(stub, "nowhere", 2)
    assert refusal.metadata == {"topic": "nowhere"}
    for name in "", "..", "a/b":
        with refused(INVALID, Reason.INVALID_TOPIC_NAME):
            update(stub, name, 2)


def test_as_many_partitions_as_the_broker_takes(start_broker: StartBroker) -> None:
    stub = start_broker("--limits-partitions", "10", "--limits-partitions-per-topic", "8").stub()
    create_topic(stub, "a", 2)
    create_topic(stub, "b", 3)
    with refused(INVALID, Reason.INVALID_PARTITION_COUNT) as refusal:
        update(stub, "a", 9)
    assert refusal.metadata == {"max_partitions": "8"}
    with refused(EXHAUSTED, Reason.PARTITION_LIMIT) as refusal:
        update(stub, "a", 8)
    assert refusal.metadata == {"max_partitions": "10"}
    update(stub, "a", 7)
    with refused(EXHAUSTED, Reason.PARTITION_LIMIT):
        create_topic(stub, "c")
    update(stub, "b", 3, segment_ms=5)
    stub.DeleteTopic(pb.DeleteTopicRequest(name="a"), timeout=DEADLINE_S)
    update(stub, "b", 8)


# Configs take hold


def test_max_message_bytes(stub: Stub) -> None:
    topic = new_topic(stub)
    produce(stub, topic, b"x" * 500)
    update(stub, topic, max_message_bytes=100)
    with refused(EXHAUSTED, Reason.RECORD_TOO_LARGE):
        produce(stub, topic, b"x" * 500)
    assert len(read(stub, topic)) == 1, "what is there stays"
    update(stub, topic, reset=("max.message.bytes",))
    produce(stub, topic, b"x" * 500)


def test_message_timestamp_type(stub: Stub) -> None:
    topic = new_topic(stub)
    record = pb.Record(value=b"v", timestamp=5)
    produce(stub, topic, record)
    update(stub, topic, message_timestamp_type="LogAppendTime")
    produce(stub, topic, record)
    update(stub, topic, reset=("message.timestamp.type",))
    produce(stub, topic, record)
    first, second, third = (each.timestamp for each in read(stub, topic))
    assert first == third == 5 and abs(second - time.time() * 1000) < 60_000


def test_flush_ms(stub: Stub) -> None:
    topic = new_topic(stub, flush_ms=-1)
    produce(stub, topic, b"v")
    assert offsets(stub, topic).durable_offset == 0
    update(stub, topic, flush_ms=1)
    # Of itself it would be synced after 10 s.
    wait_until(lambda: offsets(stub, topic).durable_offset == 1, 5)


def test_segment_bytes(broker: BrokerProcess) -> None:
    stub = broker.stub()
    topic = new_topic(stub)
    produce(stub, topic, *[b"x" * 600] * 4)
    assert len(broker.segments()) == 1
    update(stub, topic, segment_bytes=1024)
    for _ in range(4):
        produce(stub, topic, b"x" * 600)
    assert len(broker.segments()) == 5
    update(stub, topic, reset=("segment.bytes",))
    for _ in range(4):
        produce(stub, topic, b"x" * 600)
    assert len(broker.segments()) == 5


def test_retention(start_broker: StartBroker) -> None:
    stub = start_broker("--topics-retention-check-ms", "50").stub()
    topic = new_topic(stub, 2, segment_bytes=1024, retention_ms=-1)
    for _ in range(5):
        produce(stub, topic, b"x" * 600, acks=-1)
    time.sleep(0.3)
    assert offsets(stub, topic).beginning_offset == 0
    update(stub, topic, retention_bytes=0)
    wait_until(lambda: offsets(stub, topic).beginning_offset == 4)


def test_new_partitions_have_the_topics_configs(broker: BrokerProcess) -> None:
    stub = broker.stub()
    topic = new_topic(stub)
    update(stub, topic, 2, segment_bytes=1024)
    for _ in range(3):
        produce(stub, topic, b"x" * 600, partition=1)
    assert len(broker.segments(1)) == 3


# Under load


def test_partitions_become_more_under_producers_and_consumers(broker: BrokerProcess) -> None:
    """Nobody notices but by where records without a partition go; what was read is all there, once, in order."""
    stub = broker.stub()
    create_topic(stub, "t", 2)
    stop = threading.Event()
    finals = 12

    def load(number: int) -> list[tuple[int, int, bytes]]:
        answers = []
        for count in range(100_000):
            if stop.is_set():
                return answers
            value = b"%d-%d" % (number, count)
            key = {"key": b"k%d" % (count % 50)} if number % 2 else {}
            answer = produce(stub, "t", pb.Record(value=value, **key), partition=-1, acks=(1, -1)[number // 2])
            answers.append((answer.partition, answer.offset, value))
        return answers

    def follow(partition: int) -> list[bytes]:
        seen = []
        for response in consume(stub, "t", partition=partition):
            for record in response.records:
                if record.value == b"end":
                    return seen
                assert record.offset == len(seen)
                seen.append(record.value)
        return seen

    with ThreadPoolExecutor(4 + finals) as threads:
        loads = [threads.submit(load, number) for number in range(4)]
        followers = [threads.submit(follow, partition) for partition in range(2)]
        for count in range(3, finals + 1):
            assert update(stub, "t", count).num_partitions == count
            followers.append(threads.submit(follow, count - 1))
            wait_until(lambda new=count - 1: offsets(stub, "t", new).end_offset > 0, what="a record in the new one")
        stop.set()
        answers = [answer for each in loads for answer in each.result()]
        for partition in range(finals):
            produce(stub, "t", b"end", partition=partition)
        logs = [each.result() for each in followers]
    assert len({(partition, offset) for partition, offset, _ in answers}) == len(answers)
    assert sorted(answers) == sorted(
        (partition, offset, value) for partition, log in enumerate(logs) for offset, value in enumerate(log))
    # By key as one that knows twelve partitions from the start.
    create_topic(stub, "fresh", finals)
    for count in range(50):
        record = pb.Record(key=b"k%d" % count)
        assert produce(stub, "t", record, partition=-1).partition == produce(
            stub, "fresh", record, partition=-1).partition


def test_many_that_update_at_once(stub: Stub) -> None:
    topic = new_topic(stub)
    names = ["retention.ms", "retention.bytes", "segment.ms", "segment.bytes", "flush.ms", "max.message.bytes"]

    def contend(number: int) -> None:
        request = pb.UpdateTopicRequest(name=topic, configs={names[number]: "5000"})
        assert stub.UpdateTopic(request, timeout=DEADLINE_S).success

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(contend, range(6)))
    assert dict(get(stub, topic).configs) == dict.fromkeys(names, "5000"), "none is lost"


def test_updating_while_it_is_deleted(broker: BrokerProcess) -> None:
    stub = broker.stub()
    for _ in range(10):
        create_topic(stub, "t", 1)

        def grow() -> str:
            for count in range(2, 10_000):
                try:
                    update(stub, "t", count)
                except grpc.RpcError as exc:
                    return exc.code().name
            return "it was never refused"

        with ThreadPoolExecutor(1) as threads:
            grower = threads.submit(grow)
            wait_until(lambda: get(stub, "t").num_partitions > 3)
            stub.DeleteTopic(pb.DeleteTopicRequest(name="t"), timeout=DEADLINE_S)
            assert grower.result() == "NOT_FOUND"
        create_topic(stub, "t", 1)
        assert get(stub, "t").num_partitions == 1
        stub.DeleteTopic(pb.DeleteTopicRequest(name="t"), timeout=DEADLINE_S)
    broker.restart()
    assert list(broker.stub().ListTopics(pb.ListTopicsRequest(), timeout=DEADLINE_S).topics) == []


# It stays


@pytest.mark.parametrize("kill", [True, False], ids=["kill -9", "in order"])
def test_updates_survive(broker: BrokerProcess, kill: bool) -> None:
    stub = broker.stub()
    create_topic(stub, "t", 2, segment_bytes=2048, flush_ms=3)
    produce(stub, "t", b"old", partition=1, acks=-1)
    info = update(stub, "t", 4, retention_ms=-1, segment_bytes=1024, reset=("flush.ms",))
    # Killed between the change of the metadata and the first append to a new partition: it has no files yet.
    broker.restart(kill=kill)
    stub = broker.stub()
    after = get(stub, "t")
    for each in info.partitions.values(), after.partitions.values():
        for partition in each:
            partition.size_bytes = partition.durable_offset = 0
    info.size_bytes = after.size_bytes = 0
    assert after == info
    for partition in 2, 3:
        assert produce(stub, "t", b"new", partition=partition, acks=-1).offset == 0
    commit(stub, "g", ("t", 3, 1))
    broker.restart(kill=kill)
    stub = broker.stub()
    for partition, log in enumerate([[], [b"old"], [b"new"], [b"new"]]):
        assert values(read(stub, "t", partition=partition)) == log
    assert committed(stub, "g", "t", 3) == 1
    for _ in range(3):
        produce(stub, "t", b"x" * 600, partition=2)
    assert len(broker.segments(2)) == 3, "the configs hold after the restart"
    assert not (broker.data_dir / "orphans").exists()


def test_killed_at_any_time_it_is_whole_or_not_there(broker: BrokerProcess) -> None:
    """What was answered is there; what was not is there with all it asked for, or with nothing."""
    stub = broker.stub()
    create_topic(stub, "t", 1, segment_ms=1)
    answered = 1
    for delay_ms in 0, 1, 2, 4, 8, 16:
        killer = threading.Timer(0.05 + delay_ms / 1000, broker.kill)
        killer.start()
        asked = answered
        try:
            while True:
                asked = answered + 1
                update(stub, "t", asked, segment_ms=asked)
                answered = asked
        except (grpc.RpcError, ValueError):  # ValueError: the channel is closed
            killer.join()
        broker.start()
        stub = broker.stub()
        info = get(stub, "t")
        assert info.num_partitions in (answered, asked)
        assert dict(info.configs) == {"segment.ms": str(info.num_partitions)}
        answered = info.num_partitions
        assert produce(stub, "t", b"v", partition=answered - 1).offset == 0
    assert answered > 6
