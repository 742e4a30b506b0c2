"""Idempotent producers over restarts of a real broker: a retry that was known before is known after."""

import random
import threading
import time
from pathlib import Path

import grpc
import pytest

from takhin.errors import Reason
from takhin.log.producers import SNAPSHOT_NAME
from takhin.v1 import takhin_pb2 as pb
from takhin.v1.takhin_pb2_grpc import TakhinServiceStub
from tests.broker_process import BrokerProcess, create_topic, offsets, produce, read, refused, values
from tests.conftest import StartBroker
from tests.rpc.test_idempotence import Producer, without_durability

ABORTED = grpc.StatusCode.ABORTED
TOPIC = "t"


def snapshots(broker: BrokerProcess) -> list[Path]:
    return sorted((broker.data_dir / "topics").rglob(SNAPSHOT_NAME))


def moved(producer: Producer, broker: BrokerProcess) -> Producer:
    """The same producer, to the broker's new run."""
    producer.stub = broker.stub()
    return producer


@pytest.mark.parametrize("acks", [0, 1, -1])
@pytest.mark.parametrize("how", ["stopped", "killed", "killed, no snapshot", "stopped, no snapshot"])
def test_retries_after_a_restart(start_broker: StartBroker, how: str, acks: int) -> None:
    broker = start_broker("--topics-segment-bytes", "4000")
    create_topic(broker.stub(), TOPIC, 2)
    producers = [Producer(broker.stub(), TOPIC, number % 2, name="n" if number == 3 else "") for number in range(4)]
    sent: list[list[tuple[int, list[bytes], pb.ProduceMessageResponse]]] = [[] for _ in producers]
    for turn in range(12):
        for number, producer in enumerate(producers):
            payload = [b"%d-%d-%d" % (number, turn, i) * 20 for i in range((turn + number) % 3 + 1)]
            sequence = producer.sequence
            sent[number].append((sequence, payload, producer.send(*payload, acks=acks)))
    for _ in range(2):
        if "killed" in how:
            # With acks 0 only what a later request has seen written counts.
            for number, producer in enumerate(producers):
                producer.send(sent[number][-1][1][0], *sent[number][-1][1][1:], sequence=sent[number][-1][0], acks=1)
            broker.kill()
        else:
            broker.terminate()
            assert len(snapshots(broker)) == 2
        if "no snapshot" in how:
            for path in snapshots(broker):
                path.unlink()
        broker.start()
        for number, producer in enumerate(producers):
            moved(producer, broker)
            for sequence, payload, answer in sent[number][-5:]:
                again = producer.send(*payload, sequence=sequence, acks=-acks)
                assert again.duplicate and without_durability(again) == without_durability(answer)
            with refused(ABORTED, Reason.SEQUENCE_OUT_OF_WINDOW):
                producer.send(*sent[number][-6][1], sequence=sent[number][-6][0])
            with refused(ABORTED, Reason.SEQUENCE_GAP):
                producer.send(b"gap", sequence=producer.sequence + 1)
            payload, sequence = [b"%d-after-%d" % (number, producer.sequence)], producer.sequence
            sent[number].append((sequence, payload, producer.send(*payload, acks=1)))
    for partition in 0, 1:
        found = values(read(broker.stub(), TOPIC, partition=partition))
        for number in range(partition, 4, 2):
            own = [value for _, payload, _ in sent[number] for value in payload]
            assert [value for value in found if value.startswith(b"%d-" % number)] == own


def test_a_fenced_producer_stays_fenced(broker: BrokerProcess) -> None:
    create_topic(broker.stub(), TOPIC)
    old = Producer(broker.stub(), TOPIC, name="n")
    old.send(b"a")
    new = Producer(broker.stub(), TOPIC, name="n")
    for kill in (True, False):
        broker.restart(kill=kill)
        with refused(ABORTED, Reason.PRODUCER_FENCED):
            moved(old, broker).send(b"b")
    assert moved(new, broker).send(b"c").offset == 1


def test_truncation_leaves_producers_known(start_broker: StartBroker) -> None:
    broker = start_broker("--topics-segment-bytes", "2000")
    create_topic(broker.stub(), TOPIC)
    producer = Producer(broker.stub(), TOPIC)
    for number in range(20):
        producer.send(b"%d" % number * 100)
    request = pb.TruncatePartitionRequest(topic=TOPIC, before_offset=-1)
    assert broker.stub().TruncatePartition(request, timeout=30).log_start_offset == 20
    assert len(broker.segments()) == 1
    for kill in (True, False, True):
        broker.restart(kill=kill)
        moved(producer, broker)
        assert producer.send(b"19" * 100, sequence=19).offset == 19
        assert producer.send(b"%d" % 15 * 100, sequence=15).duplicate
    assert producer.send(b"new").offset == 20


def test_no_producer_no_snapshot(broker: BrokerProcess) -> None:
    """And with the first one, snapshots of what was written before: no start need search that."""
    create_topic(broker.stub(), TOPIC)
    for _ in range(5):
        produce(broker.stub(), TOPIC, b"v", acks=-1)
    broker.restart()
    assert snapshots(broker) == []
    producer = Producer(broker.stub(), TOPIC)
    assert len(snapshots(broker)) == 1
    producer.send(b"a")
    broker.restart(kill=True)
    assert moved(producer, broker).send(b"a", sequence=0).duplicate


class Load(threading.Thread):
    """An idempotent producer that never gives up: what has no answer is sent again, until it has one."""

    def __init__(self, number: int, broker: BrokerProcess, stop: threading.Event):
        super().__init__()
        self.broker, self.stop = broker, stop
        self.chance = random.Random(number)
        self.number = number
        self.producer = Producer(broker.stub(), TOPIC, number % 2)
        self.channel = broker.channel()
        self._connect()
        self.sent: list[bytes] = []
        self.retries = self.duplicates = 0
        self.problem: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                count = self.chance.choice((1, 1, 3))
                self._one([b"%d-%d-%d" % (self.number, len(self.sent), i) for i in range(count)])
        except BaseException as problem:
            self.problem = problem

    def _connect(self) -> None:
        """To wherever the broker is now; channels of its own, as the broker's end with its runs."""
        self.channel.close()
        self.channel = grpc.insecure_channel(self.broker.address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.producer.stub = TakhinServiceStub(self.channel)

    def _one(self, payload: list[bytes]) -> None:
        sequence, acks = len(self.sent), self.chance.choice((1, 1, -1))
        while True:
            try:
                answer = self.producer.send(*payload, sequence=sequence, acks=acks)
            except grpc.RpcError as problem:
                if problem.code() is ABORTED:
                    raise
                self.retries += 1
                self._connect()
                time.sleep(0.02)
                continue
            self.duplicates += answer.duplicate
            self.sent += payload
            return


def test_kill_after_kill_under_load(start_broker: StartBroker) -> None:
    broker = start_broker("--topics-segment-bytes", "30000")
    create_topic(broker.stub(), TOPIC, 2)
    stop = threading.Event()
    loads = [Load(number, broker, stop) for number in range(4)]
    for load in loads:
        load.start()
    chance = random.Random(7)
    for _ in range(6):
        stop.wait(chance.uniform(0.1, 0.5))
        broker.restart(kill=True)
    stop.wait(0.3)
    stop.set()
    for load in loads:
        load.join(30)
        load.channel.close()
        assert not load.is_alive() and load.problem is None, load.problem
    for partition in 0, 1:
        found = values(read(broker.stub(), TOPIC, partition=partition))
        assert offsets(broker.stub(), TOPIC, partition).end_offset == len(found)
        for load in loads[partition::2]:
            assert [value for value in found if value.startswith(b"%d-" % load.number)] == load.sent
    assert sum(load.retries for load in loads) > 0
