"""What an ack promised is there: after kill -9 under load, behind torn tails, and in the order of the system calls."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from takhin.codec.batch import BATCH_HEADER_SIZE, SEGMENT_HEADER_SIZE, read_batch
from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import (
    DEADLINE_S,
    FIRST_LOG,
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
from tests.trace import Trace, position, sent, synced, written

ABORTED, DATA_LOSS = grpc.StatusCode.ABORTED, grpc.StatusCode.DATA_LOSS


# Kill -9 under load, judged by what clients remember


@dataclass
class Ledger:
    """What one producer knows: (partition, offset) of each value that was acked, and which values were tried."""

    producer: int
    tried: list[bytes] = field(default_factory=list)
    acked: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    epochs: set[int] = field(default_factory=set)

    def values(self, count: int) -> list[bytes]:
        """The next values; from here on they may be in the log."""
        made = [b"%d-%06d" % (self.producer, len(self.tried) + number) for number in range(count)]
        self.tried += made
        return made

    def note(self, sent_values: list[bytes], answer: pb.ProduceMessageResponse) -> None:
        assert answer.code == 0 and answer.record_count == len(sent_values)
        self.epochs.add(answer.epoch)
        for number, value in enumerate(sent_values):
            self.acked[value] = (answer.partition, answer.offset + number)


def load_unary(stub: Stub, topic: str, ledger: Ledger, partition: int, acks: int) -> None:
    """Until the broker is gone; every third request is a batch."""
    try:
        while True:
            batch = ledger.values(7 if len(ledger.tried) % 3 == 0 else 1)
            ledger.note(batch, produce(stub, topic, *batch, partition=partition, acks=acks))
    except grpc.RpcError as exc:
        assert exc.code() is grpc.StatusCode.UNAVAILABLE, exc


def load_stream(stub: Stub, topic: str, ledger: Ledger, partition: int, acks: int) -> None:
    """The same, with at most so many requests unanswered."""
    waiting: list[list[bytes]] = []
    room = threading.Semaphore(100)

    def requests() -> Iterator[pb.ProduceMessageRequest]:
        while True:
            room.acquire(timeout=DEADLINE_S)
            batch = ledger.values(1)
            waiting.append(batch)
            yield pb.ProduceMessageRequest(
                topic=topic, partition=partition, required_acks=acks, record=pb.Record(value=batch[0]))

    try:
        for answer in stub.ProduceMessageStream(requests()):
            ledger.note(waiting.pop(0), answer)
            room.release()
    except grpc.RpcError as exc:
        assert exc.code() is grpc.StatusCode.UNAVAILABLE, exc


def judge(stub: Stub, channel: grpc.Channel, topic: str, ledgers: list[Ledger]) -> None:
    """Nothing acked is lost or elsewhere, nothing twice, nobody's order is changed, no offset is missing."""
    known = {value for ledger in ledgers for value in ledger.tried}
    places: dict[bytes, tuple[int, int]] = {}
    for partition in range(2):
        found = [each for one in raw_read(channel, topic, partition=partition) for each in one.message.records]
        assert [record.offset for record in found] == list(range(len(found)))
        assert offsets(stub, topic, partition).end_offset == len(found)
        assert known.issuperset(values(found))
        for record in found:
            assert record.value not in places, f"{record.value!r} is there twice"
            places[record.value] = (partition, record.offset)
        for ledger in ledgers:
            mine = [value for value in values(found) if value.startswith(b"%d-" % ledger.producer)]
            assert mine == sorted(mine)
    for ledger in ledgers:
        lost = {value: place for value, place in ledger.acked.items() if places.get(value) != place}
        assert not lost, f"producer {ledger.producer}: {dict(list(lost.items())[:5])} of {len(ledger.acked)} acked"


def test_kill_under_load_loses_nothing_that_was_acked(start_broker: StartBroker) -> None:
    """Three times over; the log grows on across the kills, and its epoch rises with each."""
    broker = start_broker("--topics-segment-bytes", "50000")
    topic = new_topic(broker.stub(), 2, flush_ms=50)
    ledgers: list[Ledger] = []
    last_epoch = 0
    for round_ in range(3):
        stub = broker.stub()
        mine = [Ledger(len(ledgers) + number) for number in range(6)]
        ledgers += mine
        with ThreadPoolExecutor(6) as threads:
            loads = [
                threads.submit(kind, stub, topic, ledger, partition, acks)
                for ledger, (kind, partition, acks) in zip(
                    mine,
                    [(load_unary, 0, 1), (load_unary, 0, -1), (load_unary, 1, 1), (load_unary, 1, -1),
                     (load_stream, 0, 1), (load_stream, 1, -1)],
                    strict=True)
            ]
            wait_until(lambda mine=mine: all(len(ledger.acked) > 20 for ledger in mine))
            time.sleep(0.3 + 0.1 * round_)
            broker.send(signal.SIGKILL)
            for each in loads:
                each.result()
        broker.wait()
        (epoch,) = {epoch for ledger in mine for epoch in ledger.epochs}
        assert epoch > last_epoch
        last_epoch = epoch
        broker.start()
        judge(broker.stub(), broker.channel(), topic, ledgers)
    assert len(broker.segments()) > 1
    assert "not stopped cleanly" in broker.stderr


def test_a_kill_at_once_behind_a_durable_ack(broker: BrokerProcess) -> None:
    topic = new_topic(broker.stub())
    for round_ in range(4):
        for number in range(3):
            answer = produce(broker.stub(), topic, b"%d-%d" % (round_, number), acks=(1, -1)[number % 2])
            assert answer.offset == round_ * 3 + number
        broker.restart(kill=True)
        assert offsets(broker.stub(), topic).end_offset == round_ * 3 + 3
        assert offsets(broker.stub(), topic).durable_offset == round_ * 3 + 3, "what recovery found is synced"


# Torn tails


def cut(path: Path, size_bytes: int) -> None:
    """Take so many bytes off the end of a segment."""
    os.truncate(path, path.stat().st_size - size_bytes)


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as log:
        log.write(data)


def batches_in(path: Path) -> bytes:
    """The batches of a segment, but of offsets that have been."""
    return path.read_bytes()[SEGMENT_HEADER_SIZE:]


# What is done to a segment of ten batches of one record, and how many of these are left.
TORN: dict[str, tuple[Callable[[Path], None], int]] = {
    "one byte is missing": (lambda path: cut(path, 1), 9),
    "a part of the record is missing, its header is there": (lambda path: cut(path, 15), 9),
    "half a header is left": (lambda path: cut(path, 80), 9),
    "garbage behind the end": (lambda path: append(path, b"\xde\xad\xbe\xef" * 100), 10),
    "zeros behind the end": (lambda path: append(path, bytes(4096)), 10),
    "the beginning of a header behind the end": (lambda path: append(path, batches_in(path)[:60]), 10),
    "a batch of another offset behind the end": (lambda path: append(path, batches_in(path)), 10),
}


def test_a_torn_tail_is_cut_and_set_aside(broker: BrokerProcess) -> None:
    """One partition for each way to tear it, and one that is whole."""
    topic = new_topic(broker.stub(), len(TORN) + 1, flush_ms=-1)
    for partition in range(len(TORN) + 1):
        for number in range(10):
            epoch = produce(broker.stub(), topic, b"value-%d" % number, partition=partition, acks=1).epoch
    paths = [broker.segments(partition)[-1] for partition in range(len(TORN))]
    whole = [path.read_bytes() for path in paths]
    broker.kill()
    for path, (tear, _) in zip(paths, TORN.values(), strict=True):
        tear(path)
    torn = [path.read_bytes() for path in paths]

    broker.start()
    stub = broker.stub()
    cut_bytes = 0
    for partition, (what, (_, left)) in enumerate(TORN.items()):
        kept = paths[partition].read_bytes()
        assert whole[partition].startswith(kept) and len(kept) < len(torn[partition]), what
        expected = [b"value-%d" % number for number in range(left)]
        assert values(read(stub, topic, partition=partition)) == expected, what
        (aside,) = [path for path in paths[partition].parent.iterdir() if path.suffix not in (".log", ".index")]
        assert aside.read_bytes() == torn[partition][len(kept):], f"{what}: what was cut is kept for a look"
        cut_bytes += len(torn[partition]) - len(kept)
        answer = produce(stub, topic, b"after", partition=partition, acks=-1)
        assert (answer.offset, answer.epoch) == (left, epoch + 1), what
    assert len(read(stub, topic, partition=len(TORN))) == 10
    assert f", {cut_bytes} cut" in broker.stderr
    assert broker.stderr.count("a torn tail") == len(TORN)

    broker.restart(kill=True)
    for partition, (_, left) in enumerate(TORN.values()):
        expected = [b"value-%d" % number for number in range(left)]
        assert values(read(broker.stub(), topic, partition=partition)) == [*expected, b"after"]


def test_the_tail_may_be_torn_down_to_nothing(broker: BrokerProcess) -> None:
    """A segment of which not even the header reached the disk was never used."""
    topic = new_topic(broker.stub(), flush_ms=-1)
    produce(broker.stub(), topic, b"lost", acks=1)
    path = broker.segments()[-1]
    for size_bytes in 48, 0:
        broker.kill()
        os.truncate(path, size_bytes)
        broker.start()
        assert read(broker.stub(), topic) == []
        assert produce(broker.stub(), topic, b"new", acks=1).offset == 0
        assert values(read(broker.stub(), topic)) == [b"new"]


def test_a_torn_batch_goes_whole(broker: BrokerProcess) -> None:
    topic = new_topic(broker.stub(), flush_ms=-1)
    produce(broker.stub(), topic, b"before", acks=1)
    produce(broker.stub(), topic, *[b"v" * 100] * 50, acks=1)
    broker.kill()
    cut(broker.segments()[-1], 2000)
    broker.start()
    assert values(read(broker.stub(), topic)) == [b"before"]
    assert produce(broker.stub(), topic, b"after").offset == 1


# A reader that saw what is gone


def test_a_reader_learns_that_the_log_was_truncated(broker: BrokerProcess) -> None:
    topic = new_topic(broker.stub(), flush_ms=-1)
    first = {produce(broker.stub(), topic, b"old-%d" % number, acks=1).epoch for number in range(10)}.pop()
    last_size_bytes = batch_bytes(broker, topic)
    broker.kill()
    cut(broker.segments()[-1], 2 * last_size_bytes)
    broker.start()
    stub = broker.stub()

    def expect_truncated(at: int, end: int, **fields: int) -> None:
        with refused(ABORTED, Reason.LOG_TRUNCATED) as refusal:
            read(broker.stub(), topic, **fields)
        assert f"offset {at}" in refusal.message
        assert refusal.metadata == {
            "topic": topic, "partition": "0", "divergence_offset": str(at), "log_start_offset": "0",
            "end_offset": str(end)}

    # At once, before anything new is there, also to who would be beyond the end.
    expect_truncated(8, 8, offset=10, last_epoch=first)
    expect_truncated(8, 8, offset=9, last_epoch=first)
    assert read(stub, topic, offset=8, last_epoch=first) == [], "it saw nothing that is gone"
    second = produce(stub, topic, b"new-8", b"new-9", b"new-10").epoch
    assert second == first + 1
    for offset in 9, 10, 11:
        expect_truncated(8, 11, offset=offset, last_epoch=first)
    assert values(read(stub, topic, offset=8, last_epoch=first)) == [b"new-8", b"new-9", b"new-10"]
    assert values(read(stub, topic, offset=10, last_epoch=second)) == [b"new-10"]
    assert values(read(stub, topic, offset=10)) == [b"new-10"], "who says no epoch is not held back"
    assert values(read(stub, topic, offset=0, last_epoch=0)) != [], "who saw nothing misses nothing"

    # A second time: each reader is told where the log differs from what it saw itself.
    broker.kill()
    cut(broker.segments()[-1], 1)
    broker.start()
    stub = broker.stub()
    third = produce(stub, topic, b"newer-8").epoch
    expect_truncated(8, 9, offset=9, last_epoch=second)
    expect_truncated(8, 9, offset=10, last_epoch=first)
    assert values(read(stub, topic, offset=8, last_epoch=third)) == [b"newer-8"]
    assert values(read(stub, topic, offset=8, last_epoch=first)) == [b"newer-8"]


def test_a_reader_learns_of_it_though_the_partition_could_not_be_read_at_first(broker: BrokerProcess) -> None:
    """What the power took shows at the start after that one, which follows a clean stop."""
    topic = new_topic(broker.stub(), flush_ms=-1)
    first = {produce(broker.stub(), topic, b"old-%d" % number, acks=1).epoch for number in range(10)}.pop()
    last_size_bytes = batch_bytes(broker, topic)
    broker.kill()
    path = broker.segments()[-1]
    cut(path, 2 * last_size_bytes)
    elsewhere = path.rename(broker.directory / "elsewhere")
    path.mkdir()
    broker.start()
    with refused(DATA_LOSS, Reason.CORRUPT_BATCH):
        read(broker.stub(), topic)
    broker.terminate()
    path.rmdir()
    elsewhere.rename(path)
    for _ in range(2):
        broker.start()
        stub = broker.stub()
        for offset in 9, 10:
            with refused(ABORTED, Reason.LOG_TRUNCATED) as refusal:
                read(stub, topic, offset=offset, last_epoch=first)
            assert refusal.metadata["divergence_offset"] == "8"
        second = produce(stub, topic, b"new", b"new", b"new").epoch
        assert second > first and values(read(stub, topic, offset=9, last_epoch=second))[:2] == [b"new"] * 2
        broker.terminate()


def batch_bytes(broker: BrokerProcess, topic: str) -> int:
    """The size of the last batch, header and all."""
    batch = raw_read(broker.channel(), topic)[-1].batches[-1]
    return BATCH_HEADER_SIZE + batch.payload_bytes


def test_a_kill_that_took_nothing_holds_no_reader_back(broker: BrokerProcess) -> None:
    topic = new_topic(broker.stub())
    epoch = produce(broker.stub(), topic, b"1", b"2", acks=-1).epoch
    broker.restart(kill=True)
    assert read(broker.stub(), topic, offset=2, last_epoch=epoch) == []
    assert produce(broker.stub(), topic, b"3").epoch == epoch + 1
    assert values(read(broker.stub(), topic, offset=2, last_epoch=epoch)) == [b"3"]


def test_a_clean_stop_does_not_raise_the_epoch(broker: BrokerProcess) -> None:
    topic = new_topic(broker.stub())
    epoch = produce(broker.stub(), topic, b"1", acks=0).epoch
    broker.restart()
    assert produce(broker.stub(), topic, b"2").epoch == epoch
    assert values(read(broker.stub(), topic, offset=1, last_epoch=epoch)) == [b"2"]


# The order of system calls


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return Trace(tmp_path / "trace")


@pytest.fixture
def traced(start_broker: StartBroker, strace: list[str], trace: Trace) -> BrokerProcess:
    return start_broker(prefix=[*strace, *trace.flags()])


def test_written_before_ack_1(traced: BrokerProcess, trace: Trace) -> None:
    topic = new_topic(traced.stub(), flush_ms=-1)
    mark = trace.mark()
    for number in range(3):
        produce(traced.stub(), topic, b"traced-%d" % number, acks=1)
        time.sleep(0.02)
    calls = trace.finish(traced, mark)
    answers = [number for number, call in enumerate(calls) if sent_to(topic, call)]
    writes = [position(calls, written(r"\.log", f"traced-{number}")) for number in range(3)]
    assert len(answers) == 3, "\n".join(calls)
    assert writes[0] < answers[0] < writes[1] < answers[1] < writes[2] < answers[2], "\n".join(calls)
    assert not any(".log>" in call and "sync" in call for call in calls), "nobody asked for a sync"


def sent_to(topic: str, call: str) -> bool:
    return re.search(sent(topic), call) is not None


def test_synced_before_ack_minus_1(traced: BrokerProcess, trace: Trace) -> None:
    topic = new_topic(traced.stub(), flush_ms=-1)
    mark = trace.mark()
    produce(traced.stub(), topic, b"traced", acks=-1)
    calls = trace.finish(traced, mark)
    answer = position(calls, sent(topic))
    order = [written(r"\.log", "traced"), synced(r"\.log")]
    positions = [*(position(calls, pattern) for pattern in order), answer]
    assert positions == sorted(positions), "\n".join(calls)
    # The file is new: its name, and those of the directories made for it, are on the disk as well.
    for directory in "data/topics", "topics/1", "topics/1/0":
        assert position(calls, synced(directory)) < answer


def test_each_durable_ack_has_a_sync_before_it(traced: BrokerProcess, trace: Trace) -> None:
    topic = new_topic(traced.stub(), flush_ms=-1)
    produce(traced.stub(), topic, b"first", acks=-1)
    mark = trace.mark()
    for number in range(3):
        produce(traced.stub(), topic, b"traced-%d" % number, acks=-1)
        time.sleep(0.02)
    calls = trace.finish(traced, mark)
    for number in range(3):
        # From the write on: its sync has to be the next thing, and only then the answer.
        since = calls[position(calls, written(r"\.log", f"traced-{number}")):]
        assert position(since, synced(r"\.log")) < position(since, sent(topic)), "\n".join(calls)


def test_a_sealed_segment_is_synced_before_a_later_one_is_vouched_for(traced: BrokerProcess, trace: Trace) -> None:
    topic = new_topic(traced.stub(), flush_ms=-1, segment_bytes=1024)
    mark = trace.mark()
    produce(traced.stub(), topic, b"x" * 600, acks=1)
    produce(traced.stub(), topic, b"y" * 600, acks=-1)
    calls = trace.finish(traced, mark)
    answer = [number for number, call in enumerate(calls) if sent_to(topic, call)][-1]
    for name in "00000000000000000000.log", "00000000000000000001.log":
        assert position(calls, synced(name)) < answer, "\n".join(calls)


def test_what_a_killed_broker_had_written_is_synced_before_it_is_served(
    broker: BrokerProcess, strace: list[str], trace: Trace
) -> None:
    """It may be in the cache only, and would be told to be durable."""
    topic = new_topic(broker.stub(), flush_ms=-1)
    produce(broker.stub(), topic, b"value", acks=1)
    broker.kill()
    broker.prefix = [*strace, *trace.flags()]
    broker.start()
    assert offsets(broker.stub(), topic).durable_offset == 1
    calls = trace.finish(broker, 0)
    serving = position(calls, r"write\(1<.*takhin: serving")
    for what in r"\.log", "topics/1/0":
        assert position(calls, synced(what)) < serving, "\n".join(calls)


# When the disk fails


def failing(strace: list[str], fault: str) -> list[str]:
    """A broker whose first segment's file calls fail as `fault` says."""
    call = fault.partition(":")[0]
    return [*strace, "-o", "/dev/null", "-P", FIRST_LOG, "-e", f"trace={call}", "-e", f"inject={fault}"]


def test_a_disk_that_is_full_for_a_while(start_broker: StartBroker, strace: list[str]) -> None:
    """The third write fails: nothing of it stays, reads go on, and so do writes once there is room."""
    broker = start_broker(prefix=failing(strace, "pwritev:error=ENOSPC:when=3"))
    stub = broker.stub()
    topic = new_topic(stub, flush_ms=-1)
    first = produce(stub, topic, b"before", acks=1)  # the first write was the segment's header
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.DISK_FULL) as refusal:
        produce(stub, topic, b"refused", acks=1)
    assert refusal.metadata == {"topic": topic, "partition": "0"}
    assert values(read(stub, topic)) == [b"before"]

    def comes_back() -> pb.ProduceMessageResponse | None:
        try:
            return produce(stub, topic, b"after", acks=-1)
        except grpc.RpcError as exc:
            assert exc.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            time.sleep(0.05)
            return None

    answer = wait_until(comes_back, 10)
    assert answer.offset == 1 and answer.epoch > first.epoch
    assert values(read(stub, topic)) == [b"before", b"after"]
    assert commit(stub, "group", (topic, 0, 2)).success
    broker.restart(kill=True)
    assert values(read(broker.stub(), topic)) == [b"before", b"after"]


def test_a_failed_sync_is_final_until_the_next_start(start_broker: StartBroker, strace: list[str]) -> None:
    """Only the second sync fails; the third would succeed, and would prove nothing."""
    broker = start_broker(prefix=failing(strace, "fdatasync:error=EIO:when=2"))
    stub = broker.stub()
    topic, other = new_topic(stub, flush_ms=-1), new_topic(stub)
    produce(stub, topic, b"durable", acks=-1)
    follower = consume(stub, topic)
    assert values(next(follower).records) == [b"durable"]
    with refused(grpc.StatusCode.INTERNAL, Reason.SYNC_FAILED) as refusal:
        produce(stub, topic, b"unknown", acks=-1)
    assert "unknown" in refusal.message
    for acks in 1, -1, 0:
        with refused(grpc.StatusCode.INTERNAL, Reason.SYNC_FAILED):
            produce(stub, topic, b"refused", acks=acks)
    with refused(grpc.StatusCode.INTERNAL, Reason.SYNC_FAILED):
        commit(stub, "group", (topic, 0, 2))
    assert commit(stub, "group", (topic, 0, 1)).success, "that far it is durable"
    assert values(read(stub, topic))[:1] == [b"durable"]
    assert offsets(stub, topic).durable_offset == 1
    assert produce(stub, other, b"beside", acks=-1).offset == 0
    broker.restart(kill=True)
    assert values(read(broker.stub(), topic)) == [b"durable", b"unknown"], "the page cache still had it"
    assert produce(broker.stub(), topic, b"after", acks=-1).offset == 2


# Corruption


CORRUPTIONS = {
    "a value": 130, "the header's magic": 4, "the header's checksum": 9, "its base offset": 14, "its count": 32,
    "its payload's size": 37, "its epoch": 65, "a record's length": 107, "the batch's last byte": -1,
}


def test_a_damaged_batch_is_not_served(broker: BrokerProcess) -> None:
    """Found when it is read, cold, after a clean stop that gave no cause to scan: what lies before it is served.

    One partition for each place, and one that is whole.
    """
    topic = new_topic(broker.stub(), len(CORRUPTIONS) + 1, segment_bytes=2000)
    for partition in range(len(CORRUPTIONS) + 1):
        for number in range(12):
            batch = [b"%d" % number + b"x" * 200] * 2
            produce(broker.stub(), topic, *batch, partition=partition, acks=1)
    broker.terminate()
    damaged_at = []
    for partition, place in enumerate(CORRUPTIONS.values()):
        path = broker.segments(partition)[1]
        start, size_bytes, base_offset = batches_of(path)[1]
        data = bytearray(path.read_bytes())
        data[start + (place if place >= 0 else size_bytes - 1)] ^= 0x10
        path.write_bytes(data)
        damaged_at.append(base_offset)

    broker.start()
    assert "clean; 0 bytes scanned" in broker.stderr
    for partition, (what, base_offset) in enumerate(zip(CORRUPTIONS, damaged_at, strict=True)):
        for max_bytes in 0, 1:
            found: list[pb.Record] = []
            with refused(grpc.StatusCode.DATA_LOSS, Reason.CORRUPT_BATCH) as refusal:
                call = consume(broker.stub(), topic, partition=partition, until_end=True, max_bytes=max_bytes)
                for response in call:
                    found += response.records
            assert [record.offset for record in found] == list(range(base_offset)), what
            assert refusal.metadata.items() >= {
                "topic": topic, "partition": str(partition), "offset": str(base_offset)}.items()
    assert len(read(broker.stub(), topic, partition=len(CORRUPTIONS))) == 24
    assert produce(broker.stub(), topic, b"beside", partition=len(CORRUPTIONS), acks=-1).offset == 24


def batches_of(path: Path) -> list[tuple[int, int, int]]:
    """(position, size in bytes, base offset) of each batch of a segment."""
    data, at, found = path.read_bytes(), SEGMENT_HEADER_SIZE, []
    while at < len(data):
        batch = read_batch(data, at)
        size_bytes = BATCH_HEADER_SIZE + batch.payload_bytes
        found.append((at, size_bytes, batch.base_offset))
        at += size_bytes
    return found


def test_damage_that_is_no_torn_tail(broker: BrokerProcess) -> None:
    """After a kill too: what a later batch says was durable is not cut; reads up to it work, and say why they end."""
    topic = new_topic(broker.stub(), flush_ms=-1)
    for number in range(10):
        epoch = produce(broker.stub(), topic, b"%d" % number + b"x" * 200, acks=-1).epoch
    broker.kill()
    damaged = broker.segments()[0], 4
    check_damaged(broker, topic, *damaged)
    # Who saw what is damaged now: the log was not truncated, and is not to be taken for that.
    for offset in 5, 10:
        with refused(grpc.StatusCode.DATA_LOSS, Reason.CORRUPT_BATCH):
            read(broker.stub(), topic, offset=offset, last_epoch=epoch)


def test_damage_in_a_sealed_segment(broker: BrokerProcess) -> None:
    topic = new_topic(broker.stub(), segment_bytes=2000, flush_ms=-1)
    for number in range(12):
        produce(broker.stub(), topic, *[b"%d" % number + b"x" * 200] * 2, acks=-1)
    sealed = broker.segments()[1]
    # Its index would vouch for it: the damage would be found when it is read.
    broker.kill()
    sealed.with_suffix(".index").unlink()
    check_damaged(broker, topic, sealed, 1)


def check_damaged(broker: BrokerProcess, topic: str, path: Path, number: int) -> None:
    """Damage the segment's batch with that number, start the broker, and see what it makes of it."""
    start, _, base_offset = batches_of(path)[number]
    data = bytearray(path.read_bytes())
    data[start + 130] ^= 1
    path.write_bytes(data)
    before = {each.name: each.read_bytes() for each in broker.segments()}
    broker.start()
    for until_end in True, False:
        found: list[pb.Record] = []
        with refused(grpc.StatusCode.DATA_LOSS, Reason.CORRUPT_BATCH):
            for response in consume(broker.stub(), topic, until_end=until_end):
                found += response.records
        assert [record.offset for record in found] == list(range(base_offset))
    for offset in base_offset, base_offset + 1:
        with refused(grpc.StatusCode.DATA_LOSS, Reason.CORRUPT_BATCH):
            next(consume(broker.stub(), topic, offset=offset, until_end=True))
    for acks in 0, 1, -1:
        with refused(grpc.StatusCode.FAILED_PRECONDITION, Reason.PARTITION_DAMAGED) as refusal:
            produce(broker.stub(), topic, b"after", acks=acks)
        assert "damaged" in refusal.message
    assert {each.name: each.read_bytes() for each in broker.segments()} == before, "nothing is cut"
    assert produce(broker.stub(), new_topic(broker.stub()), b"beside", acks=-1).offset == 0
