"""The tools and the snapshot of producers: shown, audited, and out of the way when the log is cut below it."""

from pathlib import Path

import pytest

from takhin.log.producers import SNAPSHOT_NAME
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import BrokerProcess, create_topic, read, values
from tests.cli.tool import TOPIC, Data, broker_on, takhin
from tests.log.test_recovery import edges
from tests.rpc.test_idempotence import Producer


@pytest.fixture
def made(tmp_path: Path) -> tuple[Data, Producer]:
    """Twenty batches of one producer in a segment, stopped in order."""
    broker = BrokerProcess(tmp_path / "made").start()
    create_topic(broker.stub(), TOPIC)
    producer = Producer(broker.stub(), TOPIC)
    for number in range(20):
        producer.send(b"%d" % number * 30)
    broker.terminate()
    return Data(broker.data_dir), producer


def snapshot_of(data: Data) -> Path:
    return data.partition / SNAPSHOT_NAME


def retry(broker: BrokerProcess, producer: Producer, number: int) -> pb.ProduceMessageResponse:
    producer.stub = broker.stub()
    return producer.send(b"%d" % number * 30, sequence=number)


def test_it_is_shown(made: tuple[Data, Producer], tmp_path: Path) -> None:
    data, producer = made
    done = takhin("segment", "dump", snapshot_of(data))
    assert done.status == 0
    head, line = done.out.splitlines()
    assert "what lies below offset 20, 1 producer; checksum ok" in head
    assert line.startswith(f"  producer {producer.id}, epoch 0, last append 20") and "sequence 15 at offset 15" in line
    copy = tmp_path / "copy"
    copy.write_bytes(snapshot_of(data).read_bytes())
    done = takhin("segment", "dump", "--json", copy)
    (told,), (shown,) = done.of_type("snapshot"), done.of_type("producer")
    assert (told["topic_id"], told["partition"], told["offset"], told["producers"]) == (1, 0, 20, 1)
    assert [(each["sequence"], each["base_offset"], each["record_count"]) for each in shown["batches"]] == [
        (number, number, 1) for number in range(15, 20)
    ]
    copy.write_bytes(copy.read_bytes()[:-1])
    done = takhin("segment", "dump", "--json", copy)
    assert done.status == 1 and done.of_type("snapshot")[0]["problem"]


def test_one_that_is_not_whole_is_no_damage(made: tuple[Data, Producer]) -> None:
    data, producer = made
    data.flip(snapshot_of(data), 50)
    done = takhin("segment", "verify", data.directory)
    assert done.status == 0
    assert "a snapshot of producers that can't be used" in done.out
    broker = broker_on(data)
    assert retry(broker, producer, 19).duplicate
    broker.terminate()


def test_what_it_vouches_for(made: tuple[Data, Producer]) -> None:
    """The index is gone, and the file ends with a batch: nothing but the snapshot tells that there was more."""
    data, _ = made
    (path,) = data.segments
    path.with_suffix(".index").unlink()
    with path.open("r+b") as file:
        file.truncate(edges(path)[10])
    done = takhin("segment", "verify", data.directory)
    assert done.status == 1
    assert "once went on to 20" in done.out


def test_a_repair_puts_it_aside_and_what_is_left_is_known(made: tuple[Data, Producer]) -> None:
    data, producer = made
    (path,) = data.segments
    data.flip(path, edges(path)[16] + 110)
    assert takhin("segment", "verify", data.directory).status == 1
    done = takhin("segment", "repair", "--yes", data.directory)
    assert done.status == 0, done.out
    assert not snapshot_of(data).exists()
    assert len(list((data.directory / "set-aside").rglob(SNAPSHOT_NAME))) == 1
    broker = broker_on(data)
    assert retry(broker, producer, 15).duplicate
    # What was cut is gone, so that its retry is no duplicate.
    for number in range(16, 20):
        answer = retry(broker, producer, number)
        assert (answer.duplicate, answer.offset) == (False, number)
    assert values(read(broker.stub(), TOPIC)) == [b"%d" % number * 30 for number in range(20)]
    broker.terminate()
    assert takhin("segment", "verify", data.directory).status == 0


def test_a_repair_leaves_it_where_it_tells_only_of_what_stays(made: tuple[Data, Producer]) -> None:
    data, producer = made
    older = snapshot_of(data).read_bytes()
    broker = broker_on(data)
    producer.stub = broker.stub()
    for number in range(20, 25):
        producer.send(b"%d" % number * 30)
    broker.terminate()
    snapshot_of(data).write_bytes(older)
    (path,) = data.segments
    data.flip(path, edges(path)[22] + 110)
    assert takhin("segment", "repair", "--yes", data.directory).status == 0
    assert snapshot_of(data).read_bytes() == older
    broker = broker_on(data)
    assert [retry(broker, producer, number).duplicate for number in (20, 21, 22)] == [True, True, False]
    broker.terminate()
