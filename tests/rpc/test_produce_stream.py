"""ProduceMessageStream: each request is answered, in order, and a refused one does not end the stream."""

import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from takhin.errors import Code, Reason
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import (
    DEADLINE_S,
    FIRST_LOG,
    MIB,
    SERVICE,
    BrokerProcess,
    Stub,
    chunk,
    new_topic,
    offsets,
    produce,
    raw_read,
    read,
    scalar,
    values,
    wait_until,
)
from tests.conftest import StartBroker


def request(topic: str, *payload: bytes, partition: int = 0, acks: int = 1) -> pb.ProduceMessageRequest:
    made = pb.ProduceMessageRequest(topic=topic, partition=partition, required_acks=acks)
    if len(payload) == 1:
        made.record.value = payload[0]
    else:
        made.records.extend([pb.Record(value=value) for value in payload])
    return made


class Sender:
    """A stream that is sent to one request at a time, and stays open until finish()."""

    def __init__(self, stub: Stub):
        self._requests: queue.SimpleQueue[pb.ProduceMessageRequest | None] = queue.SimpleQueue()
        self.call = stub.ProduceMessageStream(iter(self._requests.get, None), timeout=DEADLINE_S)

    def send(self, *requests: pb.ProduceMessageRequest) -> None:
        for each in requests:
            self._requests.put(each)

    def answer(self) -> pb.ProduceMessageResponse:
        return next(self.call)

    def finish(self) -> list[pb.ProduceMessageResponse]:
        """Send no more; gives the answers that are left. The stream must end well."""
        self._requests.put(None)
        answers = list(self.call)
        assert self.call.code() is grpc.StatusCode.OK
        return answers


@pytest.fixture
def sender(stub: Stub) -> Iterator[Sender]:
    sender = Sender(stub)
    yield sender
    sender.call.cancel()


# Answers


def test_each_request_is_answered_while_the_stream_stays_open(stub: Stub, sender: Sender) -> None:
    topic = new_topic(stub, 2)
    for offset in range(3):
        sender.send(request(topic, b"%d" % offset, partition=1))
        answer = sender.answer()
        assert (answer.topic, answer.partition, answer.offset, answer.record_count) == (topic, 1, offset, 1)
        assert (answer.durability, answer.error, answer.code, answer.reason) == (pb.DURABILITY_WRITTEN, "", 0, "")
        assert answer.epoch > 0 and answer.timestamp > 0
    assert sender.finish() == []
    assert values(read(stub, topic, partition=1)) == [b"0", b"1", b"2"]


def test_a_stream_without_a_request(sender: Sender) -> None:
    assert sender.finish() == []


def test_thousands_of_requests_at_once(stub: Stub) -> None:
    """All are sent before an answer is read; batches, every ack and refusals among them."""
    topic = new_topic(stub, 2)
    requests, expected = [], []
    ends = [0, 0]
    for number in range(6000):
        partition = number % 2
        if number % 500 == 499:
            requests.append(request("nowhere", b"lost"))
            expected.append((Code.NOT_FOUND, 0))
            continue
        payload = [b"%d-%d" % (number, i) for i in range(3 if number % 7 == 0 else 1)]
        requests.append(request(topic, *payload, partition=partition, acks=(0, 1, -1)[number % 3]))
        expected.append((0, ends[partition]))
        ends[partition] += len(payload)
    call = stub.ProduceMessageStream(iter(requests), timeout=DEADLINE_S)
    answers = list(call)
    assert call.code() is grpc.StatusCode.OK
    assert [(each.code, each.offset) for each in answers] == expected
    for asked, answer in zip(requests, answers, strict=True):
        if not answer.code:
            assert (answer.topic, answer.partition) == (topic, asked.partition)
            assert answer.durability == {0: 1, 1: 2, -1: 3}[asked.required_acks]
            assert answer.record_count == max(len(asked.records), 1)
    for partition in 0, 1:
        sent = [value for each in requests if each.topic == topic and each.partition == partition
                for value in ([each.record.value] if each.HasField("record") else values(each.records))]
        assert values(read(stub, topic, partition=partition)) == sent


def test_answers_keep_their_order_while_durable_acks_are_waited_for(
    start_broker: StartBroker, strace: list[str]
) -> None:
    """What is written is answered behind what waits for its sync, and is there to be read long before."""
    slow_sync = ["-P", FIRST_LOG, "-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=1000000"]
    stub = start_broker(prefix=[*strace, *slow_sync]).stub()
    topic = new_topic(stub, flush_ms=-1)
    sender = Sender(stub)
    begun_s = time.monotonic()
    sender.send(*[request(topic, b"%d" % number, acks=acks) for number, acks in enumerate((-1, 1, 0, 1))])
    wait_until(lambda: offsets(stub, topic).end_offset == 4, 0.9, "that it keeps reading")
    assert time.monotonic() - begun_s < 1
    assert offsets(stub, topic).durable_offset == 0
    answers = [sender.answer() for _ in range(4)]
    assert time.monotonic() - begun_s >= 1, "the first of them waits for its sync, the others for the first"
    assert [(each.offset, each.durability) for each in answers] == [(0, 3), (1, 2), (2, 1), (3, 2)]
    sender.finish()


def test_a_timeout_of_one_request_is_its_answer(start_broker: StartBroker, strace: list[str]) -> None:
    slow_sync = ["-P", FIRST_LOG, "-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=500000"]
    stub = start_broker(prefix=[*strace, *slow_sync]).stub()
    topic = new_topic(stub, flush_ms=-1)
    sender = Sender(stub)
    late = request(topic, b"late", acks=-1)
    late.timeout_ms = 50
    sender.send(late, request(topic, b"next", acks=1))
    first, second = sender.answer(), sender.answer()
    assert (first.code, first.reason) == (Code.DEADLINE_EXCEEDED, Reason.ACK_TIMEOUT)
    assert (first.topic, first.partition) == (topic, 0)
    assert (second.code, second.offset) == (0, 1), "the late one was appended all the same"
    sender.finish()


# Refusals


def refusals(topic: str) -> list[tuple[pb.ProduceMessageRequest, Code, Reason, str]]:
    both = request(topic, b"one")
    both.records.add(value=b"two")
    invalid = Code.INVALID_ARGUMENT
    return [
        (request("nowhere", b"v"), Code.NOT_FOUND, Reason.TOPIC_NOT_FOUND, "'nowhere'"),
        (request("../x", b"v"), invalid, Reason.INVALID_TOPIC_NAME, "'../x'"),
        (request("", b"v"), invalid, Reason.INVALID_TOPIC_NAME, "''"),
        (request(topic, b"v", partition=1), Code.NOT_FOUND, Reason.PARTITION_NOT_FOUND, "partition 1"),
        (request(topic, b"v", partition=-2), invalid, Reason.INVALID_PARTITION, "-2"),
        (request(topic, b"v", acks=7), invalid, Reason.INVALID_ACKS, "7"),
        (request(topic), invalid, Reason.NO_RECORD, "no record"),
        (both, invalid, Reason.RECORD_AND_RECORDS, "not both"),
        (request(topic, b"x" * (MIB + 1)), Code.RESOURCE_EXHAUSTED, Reason.RECORD_TOO_LARGE, str(MIB)),
        (pb.ProduceMessageRequest(topic=topic, record=pb.Record(offset=2**53)), invalid, Reason.MALFORMED_RECORD, ""),
    ]


def test_a_refused_request_is_answered_and_the_stream_goes_on(stub: Stub, topic: str, sender: Sender) -> None:
    for offset, (bad, code, reason, told) in enumerate(refusals(topic)):
        sender.send(bad, request(topic, b"good"))
        refusal, answer = sender.answer(), sender.answer()
        assert (refusal.code, refusal.reason) == (code, reason), refusal
        assert told in refusal.error and refusal.error
        assert (refusal.offset, refusal.record_count, refusal.durability, refusal.timestamp) == (0, 0, 0, 0)
        assert (answer.code, answer.error, answer.offset) == (0, "", offset)
    sender.finish()
    assert values(read(stub, topic)) == [b"good"] * len(refusals(topic))


def test_a_request_that_cannot_be_read_is_answered_and_the_stream_goes_on(
    stub: Stub, channel: grpc.Channel, topic: str
) -> None:
    good = request(topic, b"good").SerializeToString()
    bad = [b"\xff", good[:-1], chunk(1, b"\xff") + chunk(3, b""), scalar(3, 1), good + b"\x3b", good + b"\x00\x00"]
    mixed = [each for one in bad for each in (one, good)]
    call = channel.stream_stream(f"/{SERVICE}/ProduceMessageStream")(iter(mixed), timeout=DEADLINE_S)
    answers = [pb.ProduceMessageResponse.FromString(raw) for raw in call]
    assert call.code() is grpc.StatusCode.OK
    for refusal in answers[::2]:
        assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, Reason.MALFORMED_REQUEST), refusal
        assert "ProduceMessageRequest" in refusal.error
    assert [(each.code, each.offset) for each in answers[1::2]] == [(0, number) for number in range(len(bad))]


def test_a_topic_deleted_in_mid_stream(stub: Stub, sender: Sender) -> None:
    gone, other = new_topic(stub), new_topic(stub)
    sender.send(request(gone, b"1"), request(other, b"1"))
    assert [sender.answer().code, sender.answer().code] == [0, 0]
    stub.DeleteTopic(pb.DeleteTopicRequest(name=gone), timeout=DEADLINE_S)
    sender.send(request(gone, b"2"), request(other, b"2"))
    refusal, answer = sender.answer(), sender.answer()
    assert (refusal.code, refusal.reason, refusal.topic) == (Code.NOT_FOUND, Reason.TOPIC_NOT_FOUND, gone)
    assert (answer.code, answer.offset) == (0, 1)
    sender.finish()


# Ends


def test_half_close_gets_every_answer(stub: Stub, topic: str) -> None:
    call = stub.ProduceMessageStream(iter([request(topic, b"v", acks=-1)] * 300), timeout=DEADLINE_S)
    time.sleep(0.2)
    assert [each.offset for each in call] == list(range(300))
    assert call.code() is grpc.StatusCode.OK


def test_cancelling_takes_back_nothing_that_was_answered(stub: Stub, topic: str) -> None:
    for round_ in range(5):
        sender = Sender(stub)
        start = offsets(stub, topic).end_offset
        sender.send(*[request(topic, b"%d" % number, acks=-1) for number in range(200)])
        answered = [sender.answer().offset for _ in range(20 * round_)]
        sender.call.cancel()
        assert sender.call.code() is grpc.StatusCode.CANCELLED
        assert answered == list(range(start, start + len(answered)))
        assert offsets(stub, topic).end_offset >= start + len(answered)
    settled = produce(stub, topic, b"after").offset
    assert [record.offset for record in read(stub, topic)] == list(range(settled + 1))


def test_a_client_that_vanishes(broker: BrokerProcess) -> None:
    stub = broker.stub()
    topic = new_topic(stub)
    channel = broker.channel()
    sender = Sender(type(stub)(channel))
    sender.send(*[request(topic, b"v") for _ in range(50)])
    assert sender.answer().offset == 0
    channel.close()
    wait_until(lambda: offsets(stub, topic).end_offset >= 1)
    assert produce(stub, topic, b"after", acks=-1).error == ""


def test_streams_beside_each_other(stub: Stub, channel: grpc.Channel, topic: str) -> None:
    def load(number: int) -> list[int]:
        requests = (request(topic, b"%d-%d" % (number, count)) for count in range(500))
        return [answer.offset for answer in stub.ProduceMessageStream(requests, timeout=DEADLINE_S)]

    with ThreadPoolExecutor(6) as threads:
        answered = list(threads.map(load, range(6)))
    assert sorted(offset for each in answered for offset in each) == list(range(3000))
    found = values([record for each in raw_read(channel, topic) for record in each.message.records])
    for number, its_offsets in enumerate(answered):
        assert [found[offset] for offset in its_offsets] == [b"%d-%d" % (number, count) for count in range(500)]


def test_a_client_that_takes_no_answers_is_not_read_from_without_end(start_broker: StartBroker) -> None:
    """limits.stream_requests_in_flight bounds what is appended and unanswered on one stream."""
    broker = start_broker("--limits-stream-requests-in-flight", "100")
    stub = broker.stub()
    topic = new_topic(stub)
    sent = 0
    stop = threading.Event()

    def endless() -> Iterator[bytes]:
        nonlocal sent
        message = request(topic, b"v" * 10_000, acks=1).SerializeToString()
        while not stop.is_set():
            sent += 1
            yield message

    # Not one answer is asked for; grpc's own window on this side takes some of them all the same.
    channel = broker.channel(http2__lookahead_bytes=65_535, http2__bdp_probe=0)
    call = channel.stream_stream(f"/{SERVICE}/ProduceMessageStream")(endless(), timeout=DEADLINE_S)
    wait_until(lambda: offsets(stub, topic).end_offset > 100)

    def settled() -> bool:
        end = offsets(stub, topic).end_offset
        time.sleep(0.5)
        return offsets(stub, topic).end_offset == end

    wait_until(settled, 20, "that the broker stops reading")
    assert produce(stub, topic, b"beside it", acks=-1).error == ""
    stop.set()
    call.cancel()
