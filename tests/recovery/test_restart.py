"""Stopping and starting: what a clean stop leaves, what a start reads, and indexes that are missing or wrong."""

import os
import queue
import random
import signal
import threading
import time
from pathlib import Path

import grpc
import pytest

from takhin.codec.batch import SEGMENT_HEADER_SIZE
from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import (
    DEADLINE_S,
    BrokerProcess,
    Stub,
    commit,
    consume,
    new_topic,
    offsets,
    produce,
    raw_read,
    read,
    refused,
    values,
    wait_until,
)
from tests.conftest import StartBroker


def fill(stub: Stub, topic: str, count: int, *, partition: int = 0, seed: int = 1, acks: int = 1) -> list[bytes]:
    """Batches and single records of random sizes, about 1 KiB a record."""
    rng = random.Random(seed)
    sent: list[bytes] = []
    while len(sent) < count:
        batch = [rng.randbytes(rng.randrange(2000)) for _ in range(rng.choice((1, 1, 4)))]
        produce(stub, topic, *batch, partition=partition, acks=acks)
        sent += batch
    return sent


def start_line(broker: BrokerProcess, since: int = 0) -> str:
    """What the broker says of its start."""
    return broker.wait_for_log("bytes scanned", since)


# A clean stop


def test_after_a_clean_stop_nothing_is_scanned(broker: BrokerProcess) -> None:
    stub = broker.stub()
    rolled, one = new_topic(stub, 2, segment_bytes=20_000), new_topic(stub)
    sent = [fill(stub, rolled, 100), fill(stub, rolled, 100, partition=1), fill(stub, one, 50, acks=0)]
    assert len(broker.segments(topic_id=1)) > 3
    for _ in range(2):
        since = len(broker.stderr)
        broker.restart()
        line = start_line(broker, since)
        assert "2 topics, 3 partitions; clean; 0 bytes scanned, 0 cut" in line
        stub = broker.stub()
        assert values(read(stub, rolled)) == sent[0]
        assert values(read(stub, rolled, partition=1)) == sent[1]
        assert values(read(stub, one)) == sent[2], "acks 0 too: a clean stop writes what it has"
        assert offsets(stub, one).durable_offset == len(sent[2])


def test_after_a_clean_stop_no_batch_is_read(broker: BrokerProcess, strace: list[str]) -> None:
    """By the calls it makes, whatever it says of itself."""
    topic = new_topic(broker.stub(), segment_bytes=20_000)
    sent = fill(broker.stub(), topic, 100)
    broker.terminate()
    trace = broker.directory / "trace"
    broker.prefix = [*strace, "-y", "-e", "trace=read,pread64,preadv,preadv2,mmap", "-o", str(trace)]

    def read_bytes() -> int:
        lines = [line for line in trace.read_text().splitlines() if ".log>" in line]
        assert not [line for line in lines if "mmap(" in line]
        return sum(int(line.rpartition("= ")[2]) for line in lines)

    broker.start()
    assert offsets(broker.stub(), topic).end_offset == len(sent)
    assert read_bytes() <= SEGMENT_HEADER_SIZE * len(broker.segments())
    assert values(read(broker.stub(), topic)) == sent
    assert read_bytes() > sum(len(value) for value in sent), "now they are, and the trace would have shown it"


def test_after_a_kill_only_what_was_open_is_scanned(broker: BrokerProcess) -> None:
    stub = broker.stub()
    topic, idle = new_topic(stub, segment_bytes=20_000), new_topic(stub)
    fill(stub, idle, 50)
    broker.restart()
    stub = broker.stub()
    sent = fill(stub, topic, 200, acks=-1)
    segments = broker.segments(topic_id=1)
    assert len(segments) > 5
    broker.kill()
    broker.start()
    newest_bytes = segments[-1].stat().st_size
    assert f"2 topics, 2 partitions; not stopped cleanly; {newest_bytes} bytes scanned, 0 cut" in broker.stderr
    assert values(read(broker.stub(), topic)) == sent


def test_offsets_commits_and_topics_go_on_where_they_were(broker: BrokerProcess) -> None:
    topic = new_topic(broker.stub(), 3, retention_ms=1000000)
    for round_ in range(3):
        stub = broker.stub()
        for partition in range(3):
            answer = produce(stub, topic, b"%d" % round_, partition=partition, acks=(0, 1, -1)[partition])
            assert answer.offset == round_
        assert commit(stub, "group", (topic, 1, round_ + 1)).success
        before = stub.DescribeTopics(pb.DescribeTopicsRequest(), timeout=DEADLINE_S)
        groups = stub.ListConsumerGroups(pb.ListConsumerGroupsRequest(), timeout=DEADLINE_S)
        broker.restart()
        stub = broker.stub()
        after = stub.DescribeTopics(pb.DescribeTopicsRequest(), timeout=DEADLINE_S)
        for info in before.topics[0].partitions.values():
            info.durable_offset = info.end_offset
        assert after == before
        assert stub.ListConsumerGroups(pb.ListConsumerGroupsRequest(), timeout=DEADLINE_S) == groups
        with refused(grpc.StatusCode.FAILED_PRECONDITION, Reason.OFFSET_BEHIND_COMMITTED):
            commit(stub, "group", (topic, 1, round_))


def test_an_empty_broker_and_empty_topics(broker: BrokerProcess) -> None:
    broker.restart()
    topic = new_topic(broker.stub(), 1000)
    for kill in False, True, False:
        broker.restart(kill=kill)
        assert offsets(broker.stub(), topic, 999).end_offset == 0
    assert not list((broker.data_dir / "topics").iterdir()), "a partition has no files before its first record"
    assert produce(broker.stub(), topic, b"first", partition=999).offset == 0


# Indexes


def missing(path: Path) -> None:
    path.unlink()


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(3).randbytes(path.stat().st_size))


def short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


def another(path: Path) -> None:
    """That of the segment before, or after."""
    others = sorted(path.parent.glob("*.index"))
    others.remove(path)
    path.write_bytes(others[0].read_bytes())


HARMS = [missing, garbage, short, empty, one_bit, another]


@pytest.mark.parametrize("kill", [True, False], ids=["kill -9", "in order"])
def test_an_index_is_disposable(broker: BrokerProcess, kill: bool) -> None:
    """Sealed or live, its segment is read right, from any offset, and appended to. One partition for each harm."""
    topic = new_topic(broker.stub(), len(HARMS), segment_bytes=30_000)
    sent = [
        fill(broker.stub(), topic, 150, partition=partition, seed=partition, acks=-1)
        for partition in range(len(HARMS))
    ]
    (broker.kill if kill else broker.terminate)()
    for partition, harm in enumerate(HARMS):
        indexes = sorted(broker.segments(partition)[0].parent.glob("*.index"))
        assert len(indexes) >= 4
        for path in indexes[1], indexes[-1]:
            harm(path)
    broker.start()
    stub = broker.stub()
    for partition, expected in enumerate(sent):
        for first in 0, 1, len(expected) // 2, len(expected) - 1:
            slices = raw_read(broker.channel(), topic, partition=partition, offset=first)
            found = [record for each in slices for record in each.message.records]
            assert values(found) == expected[first:], HARMS[partition].__name__
            assert found[0].offset == first
        assert produce(stub, topic, b"after", partition=partition, acks=-1).offset == len(expected)
    # The start has made them again: the next one has nothing to scan.
    since = len(broker.stderr)
    broker.restart()
    assert "clean; 0 bytes scanned, 0 cut" in start_line(broker, since)
    for partition, expected in enumerate(sent):
        assert values(read(broker.stub(), topic, partition=partition)) == [*expected, b"after"]


def test_all_indexes_are_disposable(broker: BrokerProcess) -> None:
    topic = new_topic(broker.stub(), segment_bytes=30_000)
    sent = fill(broker.stub(), topic, 150)
    broker.terminate()
    for path in broker.segments()[0].parent.glob("*.index"):
        path.unlink()
    broker.start()
    total = sum(path.stat().st_size for path in broker.segments())
    assert f"clean; {total} bytes scanned, 0 cut" in broker.stderr
    assert values(read(broker.stub(), topic)) == sent


def test_what_lies_beside_the_segments_is_left_alone(broker: BrokerProcess) -> None:
    topic = new_topic(broker.stub())
    produce(broker.stub(), topic, b"value")
    broker.kill()
    directory = broker.segments()[0].parent
    for name in "notes.txt", "1.log", "00000000000000000000.log.bak", "0000000000000000000x.log":
        (directory / name).write_text("somebody's")
    broker.start()
    assert values(read(broker.stub(), topic)) == [b"value"]
    assert (directory / "notes.txt").read_text() == "somebody's"


# Killed in the middle of starting


def test_a_start_may_be_killed_at_any_point(start_broker: StartBroker) -> None:
    broker = start_broker()
    topic = new_topic(broker.stub(), segment_bytes=100_000)
    sent = fill(broker.stub(), topic, 600, acks=-1)
    rng = random.Random(5)
    broker.kill()
    with broker.segments()[-1].open("ab") as log:
        log.write(b"torn" * 1000)
    for _ in range(6):
        # Without waiting for the line that says it serves: its start takes about so long.
        broker.launch()
        time.sleep(rng.uniform(0.05, 0.4))
        broker.kill()
    broker.start()
    assert values(read(broker.stub(), topic)) == sent
    assert produce(broker.stub(), topic, b"after", acks=-1).offset == len(sent)


# Stopping with clients


def test_sigterm_tells_consumers_and_keeps_what_was_acked(broker: BrokerProcess) -> None:
    stub = broker.stub()
    topic, quiet = new_topic(stub), new_topic(stub)
    followers = [consume(stub, topic) for _ in range(3)] + [consume(stub, quiet, max_wait_ms=20_000)]
    requests: queue.SimpleQueue[pb.ProduceMessageRequest | None] = queue.SimpleQueue()
    stream = stub.ProduceMessageStream(iter(requests.get, None))
    acked: list[int] = []
    ended: list[grpc.RpcError] = []

    def take_answers() -> None:
        try:
            for answer in stream:
                if answer.code:
                    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE.value[0], Reason.DRAINING)
                else:
                    acked.append(answer.offset)
        except grpc.RpcError as exc:
            ended.append(exc)

    taker = threading.Thread(target=take_answers)
    taker.start()
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            requests.put(pb.ProduceMessageRequest(topic=topic, required_acks=-1, record=pb.Record(value=b"v")))
            time.sleep(0.001)

    sender = threading.Thread(target=send)
    sender.start()
    wait_until(lambda: len(acked) > 50)
    begun_s = time.monotonic()
    broker.send(signal.SIGTERM)
    for follower in followers:
        with refused(grpc.StatusCode.UNAVAILABLE, Reason.DRAINING) as refusal:
            for _ in follower:
                pass
        assert "shutting down" in refusal.message
    taker.join(DEADLINE_S)
    stop.set()
    sender.join()
    requests.put(None)
    assert broker.wait() == 0
    assert time.monotonic() - begun_s < 5, "nobody had to be waited for"
    assert len(ended) == 1 and ended[0].code() is grpc.StatusCode.UNAVAILABLE
    assert acked == list(range(len(acked)))

    broker.start()
    assert "clean; 0 bytes scanned" in start_line(broker, broker.stderr.index("stopped"))
    assert [record.offset for record in read(broker.stub(), topic)][: len(acked)] == acked
    assert offsets(broker.stub(), topic).end_offset >= len(acked)


def test_sigterm_while_a_reader_takes_nothing(start_broker: StartBroker) -> None:
    """It cannot be told: the grace of the shutdown ends for it, and the broker ends all the same."""
    broker = start_broker("--grpc-shutdown-grace-ms", "500")
    stub = broker.stub()
    topic = new_topic(stub)
    for _ in range(20):
        produce(stub, topic, b"x" * 1_000_000)
    stalled = consume(stub, topic)
    time.sleep(0.3)
    broker.send(signal.SIGTERM)
    wait_until(lambda: not broker.running, 5)
    with pytest.raises(grpc.RpcError) as ended:
        list(stalled)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert broker.wait() == 0
    broker.start()
    assert len(read(broker.stub(), topic)) == 20
