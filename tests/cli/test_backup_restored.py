"""What the broker on a restored copy gives out, the original has not given out since, nor has another copy."""

import sqlite3
from pathlib import Path

import pytest

from takhin.broker import copy_mark
from takhin.broker.copy_mark import begin_apart, mark_copy
from takhin.broker.metadata import SCHEMA
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import DEADLINE_S, BrokerProcess, create_topic, produce, read, values
from tests.cli.backed_up import epoch_of, on
from tests.cli.run import takhin
from tests.conftest import StartBroker


def init(broker: BrokerProcess, name: str = "") -> pb.InitProducerResponse:
    return broker.stub().InitProducer(pb.InitProducerRequest(name=name), timeout=DEADLINE_S)


def test_two_copies_and_their_original(start_broker: StartBroker, tmp_path: Path) -> None:
    original = start_broker()
    create_topic(original.stub(), "orders")
    init(original), init(original, "named")
    takhin(None, "backup", original.data_dir, tmp_path / "copy")
    original.kill()
    original.start()
    brokers = [original, *(on(start_broker, tmp_path / "copy") for _ in range(2))]
    assert len({epoch_of(broker) for broker in brokers}) == 3
    assert epoch_of(original) == 2
    unnamed, named, new = ([init(broker, name) for broker in brokers] for name in ("", "named", "another"))
    assert len({each.id for each in unnamed}) == len({each.id for each in new}) == 3
    assert len({each.epoch for each in named}) == 3 and len({each.id for each in named}) == 1
    # A client of the original goes on at the copy, where another one has begun.
    old, copy, begun = unnamed[0], brokers[1], unnamed[1]
    for producer, value in ((begun, b"B0"), (old, b"A0"), (begun, b"B1")):
        state = pb.ProducerState(id=producer.id, epoch=producer.epoch, sequence=int(value[1:]))
        assert not produce(copy.stub(), "orders", value, acks=-1, producer=state).duplicate
    assert values(read(copy.stub(), "orders")) == [b"B0", b"A0", b"B1"]
    # Once only.
    before = epoch_of(copy)
    copy.terminate()
    copy.start()
    assert epoch_of(copy) == before


def metadata() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    for statement in SCHEMA.statements:
        db.execute(statement)
    return db


def given_out(db: sqlite3.Connection) -> list[int]:
    return [db.execute(query).fetchone()[0] for query in (
        "SELECT epoch FROM run", "SELECT next_id FROM producer_ids", "SELECT epoch FROM producer_names",
        "SELECT generation FROM consumer_groups", "SELECT seq FROM sqlite_sequence WHERE name = 'topics'")]


@pytest.mark.parametrize("has_topics", [False, True])
def test_the_gap(has_topics: bool) -> None:
    found = []
    for _ in range(2):
        db = metadata()
        db.execute("INSERT INTO producer_names VALUES ('a', 7, 1, 0)")
        db.execute("INSERT INTO consumer_groups (name, generation) VALUES ('g', 1)")
        if has_topics:
            db.execute("INSERT INTO topics (name, num_partitions, created_ms) VALUES ('t', 1, 0)")
        assert not begin_apart(db)
        # A copy of a copy has one mark.
        mark_copy(db)
        mark_copy(db)
        assert begin_apart(db)
        found.append(given_out(db))
        assert not begin_apart(db) and given_out(db) == found[-1]
    for number, (one, other) in enumerate(zip(*found, strict=True)):
        least = copy_mark.LEAST_ID_GAP if number == 1 else copy_mark.LEAST_GAP
        assert one != other and min(one, other) >= least


def test_at_the_end_of_all_numbers() -> None:
    db = metadata()
    db.execute("UPDATE run SET epoch = 2147483647")
    db.execute("UPDATE producer_ids SET next_id = 9007199254740991")
    db.execute("INSERT INTO producer_names VALUES ('a', 7, 2147483647, 0)")
    db.execute("INSERT INTO consumer_groups (name, generation) VALUES ('g', 2147483647)")
    mark_copy(db)
    assert begin_apart(db)
    assert given_out(db)[:4] == [2147483647, 9007199254740991, 2147483647, 2147483647]
