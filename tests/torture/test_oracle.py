"""The judge is judged: every kind of broken promise is named, and nothing is said where none is broken."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import BrokerProcess, create_topic, produce, raw_unary
from tests.torture.oracle import Contents, Ledger, breaches, judge
from tests.torture.oracle.ledger import attempt_entry, digest, mark, origin
from tests.torture.oracle.load import Load, Plan
from tests.torture.oracle.reading import PartitionLog, Stored
from tests.torture.oracle.verdict import verdict

TOPIC = "t"
GROUP = "g"


class World:
    """A ledger, and a log that keeps what the ledger was promised, until a test changes either."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.contents = Contents()
        self.create(TOPIC)

    def create(self, topic: str, **configs: str) -> None:
        number = self.ledger.next_number()
        self.ledger.note({"kind": "create", "n": number, "topic": topic, "partitions": 1,
                          "configs": {name.replace("_", "."): value for name, value in configs.items()}})
        self.ledger.answer(number, "ok")
        self.contents.topics[topic] = {0: PartitionLog(0, 0, 0)}

    def delete(self, topic: str, result: str = "ok", reason: str = "") -> None:
        number = self.ledger.next_number()
        self.ledger.note({"kind": "delete", "n": number, "topic": topic})
        self.ledger.answer(number, result, reason=reason)

    def log(self, topic: str = TOPIC) -> PartitionLog:
        return self.contents.topics[topic][0]

    def produce(
        self, first: int, count: int = 1, *, acks: int = 1, result: str = "ok", stored: bool = True, epoch: int = 1,
        topic: str = TOPIC, producer: str = "p", reason: str = "", timestamp: int = 0
    ) -> int:
        """Sends a batch, and stores it, or does not. Gives the attempt's number."""
        number = self.ledger.next_number()
        records = [
            pb.Record(key=mark(producer, first + i), value=b"v%d" % i, timestamp=timestamp) for i in range(count)
        ]
        self.ledger.note(attempt_entry(number, producer, first, topic, 0, acks, records))
        log = self.log(topic)
        offset = log.end
        if stored:
            log.records += [
                Stored(offset + i, epoch, origin(record), digest(record), timestamp or 1000, 0)
                for i, record in enumerate(records)
            ]
            log.end += count
            if acks == -1:
                log.durable = log.end
        if result == "ok":
            self.ledger.answer(number, "ok", stored_in=0, offset=offset, epoch=epoch, timestamp=timestamp or 1000,
                               durability={0: 1, 1: 2, -1: 3}[acks])
        else:
            self.ledger.answer(number, result, reason=reason or "DISK_FULL")
        return number

    def commit(self, offset: int, result: str = "ok", *, stored: int | None = None, **told: object) -> None:
        number = self.ledger.next_number()
        self.ledger.note({"kind": "commit", "n": number, "group": GROUP, "offsets": [[TOPIC, 0, offset]]})
        self.ledger.answer(number, result, **told)
        self.contents.committed[GROUP, TOPIC, 0] = offset if stored is None else stored

    def saw(self, offset: int, count: int = 1, epoch: int | None = None) -> None:
        """A follower reads what is there."""
        seen = self.log().records[offset : offset + count]
        self.ledger.note({
            "kind": "saw", "topic": TOPIC, "partition": 0, "offset": offset,
            "epoch": seen[0].epoch if epoch is None else epoch, "digests": [each.digest for each in seen],
        })

    def resumed(self, offset: int, last_epoch: int, answer: str, **told: int) -> None:
        self.ledger.note({"kind": "resumed", "topic": TOPIC, "partition": 0, "offset": offset,
                          "last_epoch": last_epoch, "answer": answer, **told})

    def drop(self, offset: int) -> None:
        """The log ends at `offset`."""
        log = self.log()
        log.records = [record for record in log.records if record.offset < offset]
        log.end = offset
        log.durable = min(log.durable, offset)

    def told(self, fault: str = "kill") -> str:
        return "\n".join(breaches(self.ledger, self.contents, fault))


Change = Callable[[World], None]


# What is broken


def _lost(world: World) -> None:
    world.produce(0, 2)
    world.produce(2)
    world.drop(2)


def _durable_lost(world: World) -> None:
    world.produce(0, acks=-1)
    world.drop(0)


def _below_durable_lost(world: World) -> None:
    world.produce(0, acks=0)
    world.produce(1, acks=1)
    world.produce(2, acks=-1)
    del world.log().records[1]


def _below_commit_lost(world: World) -> None:
    world.produce(0)
    world.produce(1)
    world.commit(2)
    world.drop(1)


def _failed_is_there(world: World) -> None:
    world.produce(0, result="failed", stored=True)


def _twice(world: World) -> None:
    world.produce(0)
    first = world.log().records[0]
    world.log().records.append(Stored(1, 1, first.origin, first.digest, 1000, 0))
    world.log().end = 2


def _foreign(world: World) -> None:
    record = pb.Record(value=mark("nobody", 3))
    world.log().records.append(Stored(0, 1, origin(record), digest(record), 1000, 0))
    world.log().end = 1


def _unmarked(world: World) -> None:
    world.log().records.append(Stored(0, 1, None, "00", 1000, 0))
    world.log().end = 1


def _gap(world: World) -> None:
    world.produce(0)
    world.produce(1, result="unknown")
    world.produce(2)
    del world.log().records[1]


def _two_values_across_a_kill(world: World) -> None:
    """What was read unacknowledged had been written: a kill does not take it."""
    world.produce(0, result="unknown")
    world.saw(0)
    world.drop(0)
    world.ledger.fault("kill")
    world.produce(1, epoch=2)


def _two_values_in_an_epoch(world: World) -> None:
    world.produce(0, acks=0)
    world.saw(0)
    world.drop(0)
    world.produce(1, acks=0)
    world.saw(0)


def _seen_is_gone(world: World) -> None:
    world.produce(0, result="unknown")
    world.saw(0)
    world.drop(0)


def _epoch_of_seen_changed(world: World) -> None:
    world.produce(0, result="unknown")
    world.saw(0)
    world.log().records[0].epoch = 2


def _order(world: World) -> None:
    world.produce(1)
    world.produce(0)


def _half_a_batch(world: World) -> None:
    world.produce(0, 3, result="unknown")
    world.drop(2)


def _batch_not_in_a_row(world: World) -> None:
    world.produce(0, 2)
    world.produce(0, producer="q")
    log = world.log()
    log.records[1], log.records[2] = log.records[2], log.records[1]
    for offset, record in enumerate(log.records):
        record.offset = offset


def _changed(world: World) -> None:
    world.produce(0)
    world.log().records[0].digest = "0123"


def _moved(world: World) -> None:
    number = world.produce(0, result="unknown")
    world.produce(1)
    world.ledger.answer(number, "ok", stored_in=0, offset=1, epoch=1, durability=2, timestamp=1000)


def _accepted_moved(world: World) -> None:
    """Nothing is promised, but the offset."""
    number = world.produce(0, result="unknown", acks=0)
    world.ledger.answer(number, "ok", stored_in=0, offset=7, epoch=1, durability=1, timestamp=1000)


def _other_timestamp(world: World) -> None:
    world.produce(0, timestamp=5000)
    world.log().records[0].timestamp = 5001


def _other_timestamp_of_unknown(world: World) -> None:
    world.produce(0, timestamp=5000, result="unknown")
    world.log().records[0].timestamp = 5001


def _other_epoch(world: World) -> None:
    world.produce(0)
    world.log().records[0].epoch = 3


def _epoch_went_back(world: World) -> None:
    world.produce(0, epoch=2)
    world.produce(1, epoch=1)


def _epoch_not_raised(world: World) -> None:
    world.produce(0)
    world.ledger.fault("kill")
    world.produce(1)


def _wrong_partition_field(world: World) -> None:
    world.produce(0)
    world.log().records[0].partition = 1


def _astray(world: World) -> None:
    world.create("other")
    world.produce(0, result="unknown")
    world.contents.topics["other"][0], world.contents.topics[TOPIC][0] = world.log(), world.log("other")


def _end_beyond_records(world: World) -> None:
    world.produce(0)
    world.log().end = 2


def _durable_beyond_end(world: World) -> None:
    world.log().durable = 1


def _start_moved(world: World) -> None:
    world.produce(0, acks=0)
    world.produce(1, acks=0)
    del world.log().records[0]
    world.log().start = 1


def _topic_gone(world: World) -> None:
    del world.contents.topics[TOPIC]


def _topic_is_back(world: World) -> None:
    world.create("brief")
    world.delete("brief")


def _topic_lost_then_not_found(world: World) -> None:
    world.create("brief")
    world.delete("brief", "failed", "TOPIC_NOT_FOUND")
    del world.contents.topics["brief"]


def _deleted_records_are_back(world: World) -> None:
    world.create("brief")
    world.produce(0, topic="brief")
    records = world.log("brief").records
    world.delete("brief")
    world.create("brief")
    world.contents.topics["brief"][0] = PartitionLog(0, 1, 0, records)


def _strange_topic(world: World) -> None:
    world.contents.topics["x"] = {}


def _partition_gone(world: World) -> None:
    world.contents.topics[TOPIC].clear()


def _commit_lost(world: World) -> None:
    world.produce(0, 2)
    world.commit(1)
    world.commit(2, stored=1)


def _commit_of_a_refused(world: World) -> None:
    world.produce(0, 2)
    world.commit(2, "failed", reason="DISK_FULL")


def _commit_beyond_the_end(world: World) -> None:
    world.produce(0)
    world.commit(2, "unknown")


def _commit_went_back(world: World) -> None:
    world.produce(0, 2)
    world.commit(2)
    world.commit(1, stored=2)


def _commit_wrongly_refused(world: World) -> None:
    world.produce(0, 2)
    world.commit(1)
    world.commit(2, "failed", stored=1, reason="OFFSET_BEHIND_COMMITTED", committed=1)


def _commit_refused_with_too_little(world: World) -> None:
    world.produce(0, 2)
    world.commit(2)
    world.commit(0, "failed", stored=2, reason="OFFSET_BEHIND_COMMITTED", committed=1)


def _half_a_commit(world: World) -> None:
    world.create("other")
    number = world.ledger.next_number()
    world.produce(0, topic="other")
    world.produce(0, producer="q")
    offsets = [[TOPIC, 0, 1], ["other", 0, 1]]
    world.ledger.note({"kind": "commit", "n": number, "group": GROUP, "offsets": offsets})
    world.contents.committed |= {(GROUP, TOPIC, 0): 1, (GROUP, "other", 0): 0}


def _false_truncation(world: World) -> None:
    world.produce(0, 2)
    world.saw(0, 2)
    world.resumed(2, 1, "LOG_TRUNCATED", divergence=1)


def _truncation_not_told(world: World) -> None:
    world.produce(0, 2, epoch=2)
    world.resumed(2, 1, "ok")


def _truncated_too_far(world: World) -> None:
    world.produce(0, epoch=1)
    world.produce(1, epoch=2)
    world.resumed(2, 1, "LOG_TRUNCATED", divergence=0)


def _out_of_range_for_nothing(world: World) -> None:
    world.produce(0, 2)
    world.resumed(2, 1, "OFFSET_OUT_OF_RANGE", log_start=0)


def _start_went_back(world: World) -> None:
    world.create("short", retention_bytes="1")
    world.ledger.note({"kind": "looked", "ends": [["short", 0, 3, 3, 3]]})
    world.contents.topics["short"][0] = PartitionLog(0, 3, 3)


def _durable_went_back(world: World) -> None:
    world.ledger.note({"kind": "looked", "ends": [[TOPIC, 0, 0, 1, 1]]})


def _end_went_back(world: World) -> None:
    world.ledger.note({"kind": "looked", "ends": [[TOPIC, 0, 0, 1, 0]]})


def _problem_while_reading(world: World) -> None:
    world.contents.problems.append("t/0 can't be read: DATA_LOSS CORRUPT_BATCH")


@pytest.mark.parametrize(("break_it", "fault", "told"), [
    (_lost, "kill", "p/2 (acks 1, t/0) is lost: answered with offset 2 of partition 0, epoch 1, written"),
    (_lost, "stop", "is lost"),
    (_durable_lost, "power", "is lost"),
    (_below_durable_lost, "power", "p/1 (acks 1, t/0) is lost"),
    (_below_durable_lost, "power", "has offset 2 where 1 was to come"),
    (_below_commit_lost, "power", "p/1 (acks 1, t/0) is lost"),
    (_failed_is_there, "kill", "failed (DISK_FULL), and is there at t/0 offset 0"),
    (_twice, "kill", "p/0 is there 2 times: t/0 offset 0, t/0 offset 1"),
    (_foreign, "power", "nobody sent nobody/3"),
    (_unmarked, "power", "bears no mark"),
    (_gap, "kill", "has offset 2 where 1 was to come"),
    (_two_values_across_a_kill, "kill", "was read with another value"),
    (_two_values_in_an_epoch, "power", "in epoch 1 was read with two values"),
    (_seen_is_gone, "kill", "was read by a follower, and is gone"),
    (_epoch_of_seen_changed, "kill", "was read in epoch 1, and is of epoch 2 now"),
    (_order, "power", "t/0 has p/0 at offset 1 behind p/1 at offset 0"),
    (_half_a_batch, "power", "2 of its 3 records are there"),
    (_batch_not_in_a_row, "kill", "is not in a row"),
    (_changed, "kill", "is not what was sent"),
    (_moved, "kill", "was answered with partition 0, offset 1"),
    (_accepted_moved, "power", "was answered with partition 0, offset 7"),
    (_other_timestamp, "kill", "has timestamp 5001, not 5000"),
    (_other_timestamp_of_unknown, "kill", "has timestamp 5001, not 5000"),
    (_other_epoch, "kill", "epoch 1, and is at t/0 offset 0, timestamp 1000, epoch 3"),
    (_epoch_went_back, "kill", "goes back to epoch 1 at offset 1"),
    (_epoch_not_raised, "kill", "after unclean start 1 epoch 1 was written"),
    (_wrong_partition_field, "kill", "says that it is of partition 1"),
    (_astray, "kill", "is in other/0"),
    (_end_beyond_records, "kill", "ends at offset 2 as it says, but its records end at 1"),
    (_durable_beyond_end, "kill", "is durable up to 1, which is beyond its end"),
    (_start_moved, "kill", "begins at offset 1, and it has no retention"),
    (_topic_gone, "power", "topic t is gone"),
    (_topic_is_back, "power", "topic brief is there, though its deletion was answered"),
    (_topic_lost_then_not_found, "kill", "topic brief was not found when it was to be deleted"),
    (_deleted_records_are_back, "kill", "was sent to a topic deleted since, and is there"),
    (_strange_topic, "power", "topic x is there, and nobody made it"),
    (_partition_gone, "power", "has 0 partitions that can be read, not 1"),
    (_commit_lost, "power", "g stands at 1 of t/0, and 2 was committed: the commit is lost"),
    (_commit_of_a_refused, "kill", "which nobody committed with success"),
    (_commit_beyond_the_end, "power", "beyond the log's end, 1"),
    (_commit_went_back, "kill", "was taken, though 2 was committed"),
    (_commit_wrongly_refused, "kill", "was refused as behind, and it is not"),
    (_commit_refused_with_too_little, "kill", "was refused with 1, which is not what it was"),
    (_half_a_commit, "power", "holds for some of its partitions only"),
    (_false_truncation, "none", "was told LOG_TRUNCATED, and it had seen what is there"),
    (_truncation_not_told, "none", "was let go on, though its last record is not in the log"),
    (_truncated_too_far, "none", "was told that the log differs from 0 on, which is of epoch 1"),
    (_out_of_range_for_nothing, "none", "was refused as out of range"),
    (_start_went_back, "kill", "short/0 begins at 0, and began at 3 before"),
    (_durable_went_back, "power", "t/0 ends at 0, and was durable up to 1 before"),
    (_end_went_back, "kill", "t/0 ends at 0, and ended at 1 before"),
    (_problem_while_reading, "power", "t/0 can't be read: DATA_LOSS"),
])
def test_a_broken_promise_is_named(break_it: Change, fault: str, told: str) -> None:
    world = World()
    break_it(world)
    assert told in world.told(fault)


# What is not


def _all_kinds(world: World) -> None:
    world.produce(0, 3)
    world.produce(3, acks=-1)
    world.produce(4, result="unknown")
    world.produce(5, result="unknown", stored=False)
    world.produce(6, result="failed", stored=False)
    world.produce(7, acks=0)
    world.saw(0, 3)
    world.commit(4)
    world.commit(5, "unknown", stored=4)
    world.resumed(3, 1, "ok")
    world.create("brief")
    world.produce(8, topic="brief")
    world.delete("brief")
    world.create("brief")
    world.produce(9, topic="brief")


def _maybe_deleted(world: World) -> None:
    """A topic whose deletion was not answered may be there, with all it had, or be gone."""
    world.create("brief")
    world.produce(0, topic="brief")
    world.delete("brief", "unknown")


def _maybe_deleted_and_gone(world: World) -> None:
    _maybe_deleted(world)
    del world.contents.topics["brief"]


def _accepted_is_void(world: World) -> None:
    world.produce(0, acks=0)
    world.drop(0)
    world.ledger.fault("kill")
    world.produce(1, epoch=2)


def _written_lost_with_the_power(world: World) -> None:
    world.produce(0, acks=-1)
    world.produce(1, 2)
    world.saw(1)
    world.drop(1)
    world.ledger.note({"kind": "looked", "ends": [[TOPIC, 0, 0, 3, 1]]})
    world.ledger.fault("power")
    world.resumed(2, 1, "LOG_TRUNCATED", divergence=1)
    world.produce(3, epoch=2)
    world.saw(1)


def _retained(world: World) -> None:
    world.create("short", retention_bytes="1")
    world.produce(0, topic="short")
    world.produce(1, topic="short")
    log = world.log("short")
    del log.records[0]
    log.start = 1


@pytest.mark.parametrize("make", [
    _all_kinds, _maybe_deleted, _maybe_deleted_and_gone, _accepted_is_void, _written_lost_with_the_power, _retained,
])
@pytest.mark.parametrize("fault", ["kill", "power"])
def test_a_kept_promise_is_not_called_broken(make: Change, fault: str) -> None:
    world = World()
    make(world)
    assert world.told(fault) == ""


@pytest.mark.parametrize(("fault", "raises"), [
    ("none", False), ("full", False), ("stop", False), ("stopping", False), ("kill", True), ("power", True),
])
def test_an_unclean_start_raises_the_epoch(fault: str, raises: bool) -> None:
    world = World()
    world.produce(0, acks=-1)
    world.ledger.fault(fault)
    world.produce(1)
    assert ("epoch 1 was written; before it, 1 was" in world.told()) == raises


def test_what_a_fault_may_take_depends_on_the_fault() -> None:
    accepted, written = World(), World()
    accepted.produce(0, acks=0)
    accepted.drop(0)
    written.produce(0, acks=1)
    written.drop(0)
    kinds = ("none", "stop", "stopping", "kill", "power")
    assert [bool(accepted.told(fault)) for fault in kinds] == [True, True, False, False, False]
    assert [bool(written.told(fault)) for fault in kinds] == [True, True, True, True, False]


def test_many_breaches_of_a_kind_are_told_shortly() -> None:
    world = World()
    for sequence in range(100):
        world.produce(sequence)
    world.drop(0)
    told = world.told().splitlines()
    assert len(told) == 21
    assert "80 more" in told[-1]


def test_figures() -> None:
    world = World()
    _all_kinds(world)
    found = verdict(world.ledger, world.contents, "kill")
    assert (found.acked, found.records, found.commits) == (5, 7, 1)


# The ledger


def test_a_ledger_is_what_its_file_says(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path)
    world = World()
    world.ledger = ledger
    world.create(TOPIC)
    world.produce(0, 3, timestamp=9)
    world.commit(2)
    world.saw(0, 2)
    world.resumed(2, 1, "LOG_TRUNCATED", divergence=1, log_start=0)
    world.delete("x", "failed", "TOPIC_NOT_FOUND")
    ledger.note({"kind": "looked", "ends": [[TOPIC, 0, 0, 3, 1]]})
    ledger.fault("kill")
    assert path.read_bytes() == b"", "it is noted, and not synced"
    ledger.sync()
    again = Ledger(path)
    for name in ("attempts", "topics", "commits", "saw", "resumed", "faults", "looked", "position"):
        assert getattr(again, name) == getattr(ledger, name), name
    assert again.next_number() == ledger.next_number()
    ledger.close()


def test_an_attempt_is_on_the_disk_when_it_is_sent(tmp_path: Path, broker: BrokerProcess) -> None:
    """Were it sent before, a record could be in the log that the ledger knows nothing of."""
    path = tmp_path / "ledger"
    ledger = Ledger(path)
    load = Load(ledger, broker.address, Plan(unary=2, batches=1, streams=2))
    synced: list[bool] = []
    original = ledger.send

    async def send(*entries: dict) -> None:
        await original(*entries)
        lines = set(path.read_bytes().splitlines())
        synced.extend(json.dumps(entry, separators=(",", ":")).encode() in lines for entry in entries)
        if len(synced) > 50:
            load.stop()

    ledger.send = send  # type: ignore[method-assign]
    asyncio.run(load.run())
    assert len(synced) > 50 and all(synced)


# Against a broker


def test_a_broker_that_is_well_breaks_nothing(tmp_path: Path, broker: BrokerProcess) -> None:
    ledger = Ledger(tmp_path / "ledger")
    for seed, restart in (("1", "none"), ("2", "stop"), ("3", "kill")):
        load = Load(ledger, broker.address, Plan(seed=seed))

        async def run(load: Load = load) -> None:
            async def stop_when_it_has_done_some() -> None:
                while load.figures.get("records", 0) < 1000 or not load.figures.get("commits"):
                    await asyncio.sleep(0.01)
                load.stop()

            await asyncio.gather(load.run(), stop_when_it_has_done_some())

        asyncio.run(run())
        assert load.surprises == []
        if restart != "none":
            broker.restart(kill=restart == "kill")
        found = judge(ledger, broker.address, restart)
        assert found.breaches == []
        assert found.acked > 500 and found.commits > 0
    assert any(attempt.result == "failed" for attempt in ledger.attempts.values()), "refusals are tried too"
    assert {attempt.durability for attempt in ledger.attempts.values() if attempt.result == "ok"} == {1, 2, 3}


def test_what_is_not_in_the_ledger_is_found_on_a_broker(tmp_path: Path, broker: BrokerProcess) -> None:
    create_topic(broker.stub(), TOPIC)
    produce(broker.stub(), TOPIC, b"from somebody else")
    found = judge(Ledger(), broker.address, "none")
    assert any("nobody made it" in breach for breach in found.breaches)
    assert any("bears no mark" in breach for breach in found.breaches)


def test_the_program(tmp_path: Path, broker: BrokerProcess) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tests.torture.oracle", *arguments, "--ledger", str(tmp_path / "ledger"),
             "--address", broker.address], capture_output=True, text=True)

    loaded = run("load", "--seconds", "0.3", "--seed", "5")
    assert loaded.returncode == 0, loaded
    judged = run("judge", "--fault", "none")
    assert judged.returncode == 0, judged
    assert "0 broken promises" in judged.stdout
    with broker.channel() as channel:
        raw_unary(channel, "DeleteTopic", pb.DeleteTopicRequest(name="plain").SerializeToString())
    judged = run("judge", "--fault", "none")
    assert judged.returncode == 1
    assert "BROKEN: topic plain is gone" in judged.stdout
