"""Idempotent producers and conditional appends, through stock stubs: what is appended once, what is refused, why."""

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from takhin.errors import Code, Reason
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import DEADLINE_S, BrokerProcess, Stub, new_topic, offsets, produce, raw_read, read, values
from tests.broker_process import refused as refused_with
from tests.conftest import StartBroker

ABORTED, INVALID = grpc.StatusCode.ABORTED, grpc.StatusCode.INVALID_ARGUMENT


def init(stub: Stub, name: str = "") -> pb.InitProducerResponse:
    return stub.InitProducer(pb.InitProducerRequest(name=name), timeout=DEADLINE_S)


class Producer:
    """An idempotent producer of one partition, as a client would write it."""

    def __init__(self, stub: Stub, topic: str, partition: int = 0, name: str = ""):
        self.stub, self.topic, self.partition = stub, topic, partition
        given = init(stub, name)
        self.id, self.epoch, self.sequence = given.id, given.epoch, 0

    def state(self, sequence: int) -> pb.ProducerState:
        return pb.ProducerState(id=self.id, epoch=self.epoch, sequence=sequence)

    def send(
        self, *payload: bytes, sequence: int | None = None, acks: int = 1, **fields: int
    ) -> pb.ProduceMessageResponse:
        """The next request, or, with a sequence, whichever is wanted."""
        at = self.sequence if sequence is None else sequence
        answer = produce(
            self.stub, self.topic, *payload, partition=self.partition, acks=acks, producer=self.state(at), **fields
        )
        if sequence is None:
            self.sequence += len(payload)
        return answer

    def request(self, *payload: bytes, sequence: int, acks: int = 1) -> pb.ProduceMessageRequest:
        return pb.ProduceMessageRequest(
            topic=self.topic, partition=self.partition, required_acks=acks, producer=self.state(sequence),
            records=[pb.Record(value=value) for value in payload],
        )


def without_durability(answer: pb.ProduceMessageResponse) -> pb.ProduceMessageResponse:
    copy = pb.ProduceMessageResponse()
    copy.CopyFrom(answer)
    copy.ClearField("durability")
    copy.ClearField("duplicate")
    return copy


@pytest.fixture
def producer(stub: Stub) -> Producer:
    return Producer(stub, new_topic(stub))


# InitProducer


def test_every_call_without_a_name_gives_another_id(stub: Stub) -> None:
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(lambda _: init(stub), range(50)))
    assert len({each.id for each in given}) == 50
    assert {each.epoch for each in given} == {0}
    assert min(each.id for each in given) > 0


def test_a_name_keeps_its_id_and_raises_its_epoch(stub: Stub) -> None:
    first, second, other = init(stub, "payments"), init(stub, "payments"), init(stub, "refunds")
    assert (second.id, second.epoch) == (first.id, first.epoch + 1)
    assert other.id != first.id and other.epoch == first.epoch


@pytest.mark.parametrize("name", ["a" * 250, "a\nb", "\0"])
def test_names_that_are_none(stub: Stub, name: str) -> None:
    with refused_with(INVALID, Reason.INVALID_PRODUCER_NAME):
        init(stub, name)


def test_names_are_bounded(start_broker: StartBroker) -> None:
    broker = start_broker("--limits-producers", "2")
    stub = broker.stub()
    init(stub, "a"), init(stub, "b"), init(stub, "a")
    with refused_with(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.PRODUCER_LIMIT):
        init(stub, "c")
    assert init(stub).id > 0


def test_ids_and_names_outlive_the_broker(broker: BrokerProcess) -> None:
    before = init(broker.stub(), "n")
    ids = {before.id, init(broker.stub()).id}
    for kill in (False, True, True):
        broker.restart(kill=kill)
        again, new = init(broker.stub(), "n"), init(broker.stub())
        assert (again.id, again.epoch) == (before.id, before.epoch + 1)
        assert new.id not in ids
        before, ids = again, ids | {new.id}


# Once


@pytest.mark.parametrize("acks", [0, 1, -1])
@pytest.mark.parametrize("count", [1, 3])
def test_a_retry_gets_the_first_answer_again(producer: Producer, acks: int, count: int) -> None:
    payload = [b"%d" % i for i in range(count)]
    first = producer.send(*payload, acks=1, sequence=0)
    again = producer.send(*payload, acks=acks, sequence=0)
    assert not first.duplicate and again.duplicate
    assert without_durability(again) == without_durability(first)
    assert again.durability == {0: 1, 1: 2, -1: 3}[acks]
    assert (again.error, again.code, again.reason) == ("", 0, "")
    assert values(read(producer.stub, producer.topic)) == payload
    if acks == -1:
        assert offsets(producer.stub, producer.topic).durable_offset == count


def test_timestamps_of_the_first_answer(producer: Producer) -> None:
    given = producer.send(pb.Record(value=b"a", timestamp=5), pb.Record(value=b"b", timestamp=9), sequence=0)
    now = producer.send(b"c", pb.Record(value=b"d", timestamp=1), sequence=2)
    assert given.timestamp == 5
    assert producer.send(b"a", b"b", sequence=0).timestamp == 5
    assert producer.send(b"c", b"d", sequence=2).timestamp == now.timestamp > 9


def test_the_last_five_are_known_and_no_more(producer: Producer) -> None:
    sent = [[b"%d-%d" % (n, i) for i in range(n % 3 + 1)] for n in range(8)]
    answers, sequences = [], []
    for payload in sent:
        sequences.append(producer.sequence)
        answers.append(producer.send(*payload))
    for number in range(3, 8):
        again = producer.send(*sent[number], sequence=sequences[number])
        assert again.duplicate and again.offset == answers[number].offset
    for number in range(3):
        with refused_with(ABORTED, Reason.SEQUENCE_OUT_OF_WINDOW) as refusal:
            producer.send(*sent[number], sequence=sequences[number])
        assert refusal.metadata["expected_sequence"] == str(producer.sequence)
    assert values(read(producer.stub, producer.topic)) == [value for payload in sent for value in payload]


def test_a_retry_with_another_number_of_records_is_none(producer: Producer) -> None:
    producer.send(b"a", b"b")
    for payload in ([b"a"], [b"a", b"b", b"c"]):
        with refused_with(ABORTED, Reason.SEQUENCE_OUT_OF_WINDOW):
            producer.send(*payload, sequence=0)
    with refused_with(ABORTED, Reason.SEQUENCE_OUT_OF_WINDOW):
        producer.send(b"b", sequence=1)
    assert producer.send(b"c").offset == 2


def test_a_gap(producer: Producer) -> None:
    producer.send(b"a", b"b")
    with refused_with(ABORTED, Reason.SEQUENCE_GAP) as refusal:
        producer.send(b"d", sequence=3)
    assert refusal.metadata["expected_sequence"] == "2"
    assert refusal.metadata["topic"] == producer.topic and refusal.metadata["partition"] == "0"
    assert producer.send(b"c").offset == 2


def test_sequences_begin_at_0(producer: Producer) -> None:
    with refused_with(ABORTED, Reason.PRODUCER_UNKNOWN):
        producer.send(b"a", sequence=1)
    assert producer.send(b"a").offset == 0


def test_each_partition_counts_by_itself(stub: Stub) -> None:
    topic = new_topic(stub, 2)
    one = Producer(stub, topic, 0)
    one.send(b"a", b"b")
    one.partition, one.sequence = 1, 0
    assert one.send(b"c").offset == 0
    assert one.send(b"c", sequence=0).duplicate
    with refused_with(ABORTED, Reason.SEQUENCE_GAP):
        one.send(b"d", sequence=2)


def test_producers_and_others_side_by_side(stub: Stub) -> None:
    topic = new_topic(stub)
    one, two = Producer(stub, topic), Producer(stub, topic)
    assert one.id != two.id
    for number in range(4):
        assert one.send(b"one-%d" % number).offset == 3 * number
        assert two.send(b"two-%d" % number).offset == 3 * number + 1
        assert produce(stub, topic, b"plain").offset == 3 * number + 2
    assert one.send(b"one-3", sequence=3).offset == 9
    assert two.send(b"two-2", sequence=2).offset == 7
    assert offsets(stub, topic).end_offset == 12


def test_the_header_says_whose_it_is(broker: BrokerProcess) -> None:
    stub = broker.stub()
    producer = Producer(stub, new_topic(stub), name="n")
    producer.send(b"a", b"b")
    producer.send(b"c")
    produce(stub, producer.topic, b"plain")
    headers = [
        (batch.producer_id, batch.producer_epoch, batch.producer_sequence, batch.record_count)
        for part in raw_read(broker.channel(), producer.topic) for batch in part.batches
    ]
    assert headers == [(producer.id, 1, 0, 2), (producer.id, 1, 2, 1), (-1, -1, -1, 1)]


# Who may


def test_a_newer_epoch_fences_the_older_one_in_every_partition(stub: Stub) -> None:
    topic = new_topic(stub, 2)
    old = Producer(stub, topic, 0, name="service")
    old.send(b"old")
    new = Producer(stub, topic, 0, name="service")
    assert (new.id, new.epoch) == (old.id, old.epoch + 1)
    for partition in 0, 1:
        old.partition = partition
        for sequence in 0, 1 - partition:
            with refused_with(ABORTED, Reason.PRODUCER_FENCED) as refusal:
                old.send(b"zombie", sequence=sequence)
            assert refusal.metadata["producer_epoch"] == str(new.epoch)
    with refused_with(ABORTED, Reason.SEQUENCE_GAP):
        new.send(b"new", sequence=1)
    assert new.send(b"new").offset == 1
    assert new.send(b"new", sequence=0).duplicate
    assert values(read(stub, topic)) == [b"old", b"new"]
    assert offsets(stub, topic, 1).end_offset == 0


def test_an_id_that_was_never_given_out(producer: Producer) -> None:
    for state in (
        pb.ProducerState(), pb.ProducerState(id=2**52), pb.ProducerState(id=producer.id, epoch=1),
        pb.ProducerState(id=producer.id, epoch=2**31 - 1),
    ):
        with refused_with(ABORTED, Reason.PRODUCER_UNKNOWN):
            produce(producer.stub, producer.topic, b"a", producer=state)


@pytest.mark.parametrize(
    "state", [
        pb.ProducerState(id=-1), pb.ProducerState(id=2**53), pb.ProducerState(id=1, epoch=-1),
        pb.ProducerState(id=1, sequence=-1), pb.ProducerState(id=1, sequence=2**53 - 1),
        pb.ProducerState(id=1, sequence=2**63 - 1),
    ], ids=str
)
def test_numbers_that_are_not_possible(stub: Stub, state: pb.ProducerState) -> None:
    with refused_with(INVALID, Reason.INVALID_PRODUCER):
        produce(stub, new_topic(stub), b"a", producer=state)


def test_the_partition_is_named(producer: Producer) -> None:
    for fields in ({"producer": producer.state(0)}, {"expected_offset": 0}):
        with refused_with(INVALID, Reason.INVALID_PARTITION):
            produce(producer.stub, producer.topic, b"a", partition=-1, **fields)
    assert offsets(producer.stub, producer.topic).end_offset == 0


def test_states_are_bounded(start_broker: StartBroker) -> None:
    stub = start_broker("--limits-producers", "3").stub()
    topic = new_topic(stub, 2)
    one, two = Producer(stub, topic), Producer(stub, topic)
    one.send(b"a"), two.send(b"b")
    one.partition, one.sequence = 1, 0
    one.send(b"c")
    two.partition = 1
    with refused_with(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.PRODUCER_LIMIT):
        two.send(b"d", sequence=0)
    assert one.send(b"e").offset == 1
    stub.DeleteTopic(pb.DeleteTopicRequest(name=topic), timeout=DEADLINE_S)
    two.topic, two.sequence = new_topic(stub), 0
    two.partition = 0
    assert two.send(b"f").offset == 0


def test_the_idle_are_forgotten(start_broker: StartBroker) -> None:
    stub = start_broker("--topics-producer-expiration-ms", "300").stub()
    topic = new_topic(stub)
    one, named = Producer(stub, topic), Producer(stub, topic, name="n")
    one.send(b"a"), named.send(b"b")

    def forgotten(producer: Producer) -> bool:
        try:
            # A retry keeps nobody alive, and appends nothing while it is known.
            return not producer.send(b"c", sequence=1).duplicate
        except grpc.RpcError as refusal:
            return Reason.PRODUCER_UNKNOWN in str(refusal.trailing_metadata())

    deadline = threading.Event()
    while not forgotten(one):
        # The first one is appended, the next ones are duplicates of it.
        deadline.wait(0.05)
    deadline.wait(1.5)
    with refused_with(ABORTED, Reason.PRODUCER_UNKNOWN):
        named.send(b"d", sequence=0)
    assert init(stub, "n").epoch == 1


# expected_offset


def test_a_conditional_append(stub: Stub) -> None:
    topic = new_topic(stub)
    assert produce(stub, topic, b"a", expected_offset=0).offset == 0
    assert produce(stub, topic, b"b", b"c", expected_offset=1).offset == 1
    for expected in 0, 1, 2, 4, 2**53 - 1:
        with refused_with(ABORTED, Reason.OFFSET_MISMATCH) as refusal:
            produce(stub, topic, b"x", expected_offset=expected)
        assert refusal.metadata["expected_offset"] == str(expected)
        assert refusal.metadata["end_offset"] == "3"
    assert produce(stub, topic, b"d", expected_offset=3).offset == 3
    assert values(read(stub, topic)) == [b"a", b"b", b"c", b"d"]


@pytest.mark.parametrize("expected", [-1, -(2**63), 2**53, 2**63 - 1])
def test_offsets_that_are_not_possible(stub: Stub, expected: int) -> None:
    with refused_with(INVALID, Reason.INVALID_OFFSET):
        produce(stub, new_topic(stub), b"a", expected_offset=expected)


def test_of_many_who_expect_the_same_one_wins(stub: Stub) -> None:
    topic = new_topic(stub)
    for turn in range(10):

        def attempt(number: int, turn: int = turn) -> bool:
            try:
                produce(stub, topic, b"%d-%d" % (turn, number), expected_offset=turn)
            except grpc.RpcError as refusal:
                assert refusal.code() is ABORTED
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(attempt, range(8))) == 1
    assert offsets(stub, topic).end_offset == 10


def test_a_duplicate_is_told_before_the_offset_is_compared(producer: Producer) -> None:
    assert producer.send(b"a", expected_offset=0).offset == 0
    again = producer.send(b"a", sequence=0, expected_offset=0)
    assert again.duplicate and again.offset == 0
    with refused_with(ABORTED, Reason.OFFSET_MISMATCH):
        producer.send(b"b", sequence=1, expected_offset=0)
    # What was refused has used no sequence.
    assert producer.send(b"b", sequence=1, expected_offset=1).offset == 1


# On the stream


class Pipe:
    """A produce stream to which requests are sent while it is open."""

    def __init__(self, stub: Stub):
        self._requests: queue.SimpleQueue[pb.ProduceMessageRequest | None] = queue.SimpleQueue()
        self._call = stub.ProduceMessageStream(iter(self._requests.get, None), timeout=DEADLINE_S)

    def send(self, requests: Sequence[pb.ProduceMessageRequest]) -> list[pb.ProduceMessageResponse]:
        """All of them at once; their answers."""
        for each in requests:
            self._requests.put(each)
        return [next(self._call) for _ in requests]

    def close(self) -> None:
        self._requests.put(None)
        assert list(self._call) == []


@pytest.mark.parametrize("acks", [0, 1, -1])
def test_pipelined_requests_and_their_retries_on_another_stream(producer: Producer, acks: int) -> None:
    """As after a connection that broke with answers under way: everything in flight is sent once more."""
    payloads = [[b"%d-%d" % (n, i) for i in range(n % 3 + 1)] for n in range(50)]
    requests = [
        producer.request(*payload, sequence=sum(map(len, payloads[:n])), acks=acks)
        for n, payload in enumerate(payloads)
    ]
    for start in range(0, 50, 5):
        window = requests[start : start + 5]
        one, two = Pipe(producer.stub), Pipe(producer.stub)
        first = one.send(window)
        again = two.send(window)
        one.close(), two.close()
        assert [each.code for each in first + again] == [0] * 10
        assert not any(each.duplicate for each in first) and all(each.duplicate for each in again)
        assert [each.offset for each in again] == [each.offset for each in first]
    sent = [record.value for request in requests for record in request.records]
    assert values(read(producer.stub, producer.topic)) == sent


def test_two_streams_at_once_append_each_request_once(stub: Stub) -> None:
    """The same requests race each other on four streams; each is appended by whichever comes first."""
    producer = Producer(stub, new_topic(stub))
    requests = [producer.request(b"%d" % n, sequence=n, acks=(1, -1)[n % 2]) for n in range(5)]
    for turn in range(20):
        for number, each in enumerate(requests):
            each.producer.sequence = 5 * turn + number
            each.records[0].value = b"%d" % each.producer.sequence

        def race(_: int) -> list[pb.ProduceMessageResponse]:
            pipe = Pipe(stub)
            answers = pipe.send(requests)
            pipe.close()
            return answers

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(race, range(4)))
        for number in range(5):
            of_one = [each[number] for each in answers]
            # Behind the window's first request a stream may find a gap: what it waits for is on its way elsewhere.
            assert {each.offset for each in of_one if not each.code} == {5 * turn + number}
            assert sum(not each.duplicate and not each.code for each in of_one) == 1
    assert values(read(stub, producer.topic)) == [b"%d" % n for n in range(100)]


def test_a_refusal_on_the_stream(producer: Producer) -> None:
    pipe = Pipe(producer.stub)
    answers = pipe.send([
        producer.request(b"a", sequence=0), producer.request(b"c", sequence=2), producer.request(b"b", sequence=1),
        producer.request(b"b", sequence=1), producer.request(b"c", sequence=2),
    ])
    pipe.close()
    assert [(each.code, each.reason) for each in answers] == [
        (0, ""), (Code.ABORTED, Reason.SEQUENCE_GAP), (0, ""), (0, ""), (0, "")
    ]
    assert "sequence" in answers[1].error
    assert [each.duplicate for each in answers] == [False, False, False, True, False]
    assert values(read(producer.stub, producer.topic)) == [b"a", b"b", b"c"]
