"""takhin backup: a copy taken under load is sound, has what was durable, and a broker serves it."""

import os
import random
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from takhin.broker.sqlite_files import committed_bytes
from takhin.cli import backup_copy, backup_look
from takhin.cli.backup_files import copy_metadata, settle_metadata
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import (
    DEADLINE_S,
    BrokerProcess,
    Stub,
    commit,
    committed,
    create_topic,
    offsets,
    produce,
    read,
    refused,
    values,
    wait_until,
)
from tests.cli.backed_up import epoch_of, on, transact, whole_log
from tests.cli.run import takhin
from tests.conftest import StartBroker

PRODUCERS = 8
PARTITIONS = 6
LOADED = ("kept", "short")


class Load:
    """Producers with durable acks, transactions over two partitions, a group's commits, until stop()."""

    def __init__(self, broker: BrokerProcess):
        self.broker = broker
        self._stop = threading.Event()
        self._lock = threading.Lock()
        # (topic, partition, offset): value, of all that were acknowledged as durable.
        self.durable: dict[tuple[str, int, int], bytes] = {}
        self.transactions: set[bytes] = set()
        self.committed = 0
        self.problems: list[BaseException] = []
        work: list[Callable[[Stub], None]] = [
            *(lambda stub, n=number: self._produce(stub, n) for number in range(PRODUCERS)), self._transact,
            self._commit, self._make_topics]
        self.threads = [threading.Thread(target=self._run, args=(each,)) for each in work]
        for thread in self.threads:
            thread.start()

    def _run(self, work: Callable[[Stub], None]) -> None:
        with grpc.insecure_channel(
                self.broker.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            try:
                work(type(self.broker.stub())(channel))
            except BaseException as problem:
                self.problems.append(problem)

    def _produce(self, stub: Stub, number: int) -> None:
        state = stub.InitProducer(pb.InitProducerRequest(name=f"producer-{number}"), timeout=DEADLINE_S)
        draw = random.Random(number)
        sequences = dict.fromkeys([(topic, part) for topic in LOADED for part in range(PARTITIONS)], 0)
        count = 0
        while not self._stop.is_set():
            topic, partition = draw.choice(list(sequences))
            value = f"{number}-{count}-".encode() + b"x" * draw.randrange(400)
            count += 1
            made = pb.ProducerState(id=state.id, epoch=state.epoch, sequence=sequences[topic, partition])
            sequences[topic, partition] += 1
            acks = draw.choice([-1, -1, -1, 1])
            answer = produce(stub, topic, value, partition=partition, acks=acks, producer=made)
            if acks == -1:
                with self._lock:
                    self.durable[topic, partition, answer.offset] = value

    def _transact(self, stub: Stub) -> None:
        count = 0
        while not self._stop.is_set():
            value = f"transaction-{count}".encode()
            count += 1
            appends = [pb.ProduceMessageRequest(
                topic="transacted", partition=number, required_acks=-1, record=pb.Record(value=value))
                for number in range(2)]
            position = [pb.TopicPartitionOffset(topic="counted", partition=0, offset=count)]
            produce(stub, "counted", b"one", acks=-1)
            stub.ProduceTransaction(
                pb.ProduceTransactionRequest(appends=appends, group_id="transacting", offsets=position),
                timeout=DEADLINE_S)
            with self._lock:
                self.transactions.add(value)

    def _commit(self, stub: Stub) -> None:
        while not self._stop.is_set():
            end = offsets(stub, "kept").end_offset
            commit(stub, "committing", ("kept", 0, end))
            with self._lock:
                self.committed = end
            time.sleep(0.005)

    def _make_topics(self, stub: Stub) -> None:
        count = 0
        while not self._stop.wait(0.1):
            create_topic(stub, f"passing-{count}")
            produce(stub, f"passing-{count}", b"value", acks=-1)
            if count >= 3:
                stub.DeleteTopic(pb.DeleteTopicRequest(name=f"passing-{count - 3}"), timeout=DEADLINE_S)
            count += 1

    def so_far(self) -> tuple[dict[tuple[str, int, int], bytes], set[bytes], int]:
        with self._lock:
            return dict(self.durable), set(self.transactions), self.committed

    def stop(self) -> None:
        self._stop.set()
        for thread in self.threads:
            thread.join(DEADLINE_S)
        assert not self.problems, self.problems


def loaded_broker(start_broker: StartBroker) -> BrokerProcess:
    # Small files, so that journal and segments are begun anew all the time, and retention removes them.
    broker = start_broker(
        "--topics-retention-check-ms", "50", "--limits-journal-bytes", "8388608", "--topics-flush-ms", "50",
        secured=None)
    create_topic(broker.stub(), "kept", PARTITIONS, segment_bytes=20_000, retention_ms=-1)
    create_topic(broker.stub(), "short", PARTITIONS, segment_bytes=5_000, retention_bytes=20_000)
    create_topic(broker.stub(), "transacted", 2)
    create_topic(broker.stub(), "counted")
    return broker


@pytest.mark.parametrize("round_number", range(2))
def test_under_load(start_broker: StartBroker, tmp_path: Path, round_number: int) -> None:
    broker = loaded_broker(start_broker)
    load = Load(broker)
    try:
        wait_until(lambda: len(load.durable) > 500 and len(load.transactions) > 20)
        stub = broker.stub()
        wait_until(lambda: any(offsets(stub, "short", part).beginning_offset > 0 for part in range(PARTITIONS)))
        taken = []
        for number in range(3):
            before = load.so_far()
            target = tmp_path / f"copy-{number}"
            ran = takhin(None, "backup", "--verify", broker.data_dir, target)
            assert b"DAMAGE" not in ran.out and b": sound; not stopped cleanly" in ran.out, ran.out
            taken.append((target, before))
    finally:
        load.stop()
    assert not list(tmp_path.glob("*.unfinished*"))
    for target, (durable, transactions, at_least) in taken:
        copy = on(start_broker, target)
        stub = copy.stub()
        logs = {(topic, part): whole_log(stub, topic, part) for topic in LOADED for part in range(PARTITIONS)}
        begins = {key: offsets(stub, *key).beginning_offset for key in logs}
        for (topic, partition, offset), value in durable.items():
            if offset >= begins[topic, partition]:
                assert logs[topic, partition][offset] == value
        assert all(begins["kept", partition] == 0 for partition in range(PARTITIONS))
        assert any(begins["short", partition] > 0 for partition in range(PARTITIONS))
        first, second = (whole_log(stub, "transacted", number) for number in range(2))
        assert list(first.values()) == list(second.values()), "half of a transaction"
        assert transactions <= set(first.values())
        # Its offsets come with it.
        assert committed(stub, "transacting", "counted") == len(first)
        assert offsets(stub, "counted").end_offset >= len(first)
        assert at_least <= (committed(stub, "committing", "kept") or 0) <= offsets(stub, "kept").end_offset
        # It goes on in an epoch of its own, and nobody is taken for somebody else.
        again = stub.InitProducer(pb.InitProducerRequest(name="producer-0"), timeout=DEADLINE_S)
        state = pb.ProducerState(id=again.id, epoch=again.epoch, sequence=0)
        produce(stub, "kept", b"after", acks=-1, producer=state)
        copy.terminate()
        assert "damaged" not in copy.stderr


def test_the_copy_of_what_is_stopped(start_broker: StartBroker, tmp_path: Path) -> None:
    broker = start_broker()
    create_topic(broker.stub(), "orders", 3)
    produce(broker.stub(), "orders", b"one", acks=-1)
    broker.terminate()
    ran = takhin(None, "backup", broker.data_dir, tmp_path / "copy")
    assert b": 1 partition, " in ran.out
    copy = on(start_broker, tmp_path / "copy")
    assert values(read(copy.stub(), "orders")) == [b"one"]
    assert epoch_of(copy) > 1 << 10
    # A copy can be copied.
    takhin(None, "backup", tmp_path / "copy", tmp_path / "second")
    names = {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*")}
    assert names == {str(path.relative_to(tmp_path / "second")) for path in (tmp_path / "second").rglob("*")}


def test_the_copy_of_what_was_killed(start_broker: StartBroker, tmp_path: Path) -> None:
    broker = loaded_broker(start_broker)
    load = Load(broker)
    wait_until(lambda: len(load.durable) > 200 and len(load.transactions) > 5)
    broker.kill()
    load._stop.set()
    for thread in load.threads:
        thread.join(DEADLINE_S)
    ran = takhin(None, "backup", "--verify", broker.data_dir, tmp_path / "copy")
    # It may have been killed within a write: then there is a torn tail, which nobody was promised.
    assert re.search(rb": sound(?: but for what the next start cuts)?; not stopped cleanly", ran.out), ran.out
    stub = on(start_broker, tmp_path / "copy").stub()
    for (topic, partition, offset), value in load.durable.items():
        log = whole_log(stub, topic, partition) if topic == "kept" else None
        assert log is None or log[offset] == value
    first, second = (whole_log(stub, "transacted", number) for number in range(2))
    assert list(first.values()) == list(second.values()) and load.transactions <= set(first.values())


def test_damage_is_copied_as_it_is(start_broker: StartBroker, tmp_path: Path) -> None:
    broker = start_broker()
    create_topic(broker.stub(), "orders")
    for number in range(50):
        produce(broker.stub(), "orders", b"%d" % number, acks=-1)
    broker.terminate()
    (segment,) = broker.segments()
    os.truncate(segment, segment.stat().st_size // 2)
    ran = takhin(None, "backup", "--verify", broker.data_dir, tmp_path / "copy", status=1)
    assert b"DAMAGE" in ran.out and (tmp_path / "copy" / "meta.db").exists()
    broker.start()
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "PARTITION_DAMAGED"):
        produce(broker.stub(), "orders", b"more")
    # And of a broker that runs, with its damage.
    ran = takhin(None, "backup", "--verify", broker.data_dir, tmp_path / "second", status=1)
    assert b"DAMAGE" in ran.out


@pytest.mark.parametrize(("source", "target", "told", "status"), [
    ("{data}", "{tmp}", "is there already", 2), ("{data}", "{data}/copy", "lies in ", 2),
    ("{tmp}/empty", "{tmp}/copy", "is no data directory", 1), ("{tmp}/no", "{tmp}/copy", "can't be read", 1),
])
def test_what_is_refused(
    broker: BrokerProcess, tmp_path: Path, source: str, target: str, told: str, status: int
) -> None:
    (tmp_path / "empty").mkdir()
    paths = [each.format(data=broker.data_dir, tmp=tmp_path) for each in (source, target)]
    assert told in takhin(None, "backup", *paths, status=status).complaint
    assert not (tmp_path / "copy").exists() and not list(tmp_path.rglob("*.unfinished*"))


def test_the_database_under_writes(tmp_path: Path) -> None:
    """A connection of its own, as the broker's, writes and checkpoints; each copy has all that was committed before."""
    from takhin.broker.metadata import SCHEMA

    source, done, seen = tmp_path / "source", threading.Event(), [0]
    source.mkdir()

    def write() -> None:
        db = sqlite3.connect(source / "meta.db", isolation_level=None)
        for pragma in "locking_mode=EXCLUSIVE", "journal_mode=WAL", "wal_autocheckpoint=0", "cache_size=20":
            db.execute(f"PRAGMA {pragma}")
        db.execute("BEGIN")
        for statement in SCHEMA.statements:
            db.execute(statement)
        db.execute(f"PRAGMA application_id={SCHEMA.application_id}")
        db.execute(f"PRAGMA user_version={SCHEMA.version}")
        db.execute("COMMIT")
        number = 0
        while not done.is_set():
            number += 1
            # Two rows that always agree, far from each other.
            db.execute("BEGIN")
            db.execute("INSERT INTO topics (name, num_partitions, created_ms) VALUES (?, 1, 0)", (f"{number}-a",))
            db.execute("INSERT INTO topics (name, num_partitions, created_ms) VALUES (?, 1, 0)", (f"b-{number}",))
            db.execute("DELETE FROM topics WHERE id <= ?", (2 * number - 400,))
            db.execute("COMMIT")
            seen[0] = number
            if number % 25 == 0:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        db.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_until(lambda: seen[0] > 10)
        for number in range(25):
            before = seen[0]
            target = tmp_path / f"copy-{number}"
            target.mkdir()
            assert copy_metadata(str(source), str(target))
            view = settle_metadata(str(target), str(source))
            assert view is not None
            names = {topic.name for topic in view.topics}
            firsts = {int(name[:-2]) for name in names if name.endswith("-a")}
            assert firsts == {int(name[2:]) for name in names if name.startswith("b-")} and max(firsts) >= before
    finally:
        done.set()
        writer.join()


def test_a_torn_end_of_the_wal_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    ends = []
    for number in range(4):
        db.execute("CREATE TABLE IF NOT EXISTS t (x)")
        db.execute("INSERT INTO t VALUES (?)", (str(number) * 9000,))
        ends.append(os.path.getsize(f"{path}-wal"))
    whole = Path(f"{path}-wal").read_bytes()
    assert committed_bytes(str(path)) == ends[-1] == len(whole)
    for size in range(0, len(whole), 1000):
        os.truncate(f"{path}-wal", size)
        expected = max([0, *(end for end in ends if end <= size)])
        found = committed_bytes(str(path))
        # CREATE and INSERT are two commits of the first round.
        assert found == expected or (found < ends[0] and expected == 0)
        Path(f"{path}-wal").write_bytes(whole)
    db.close()


def test_what_happens_between_any_two_steps(
    start_broker: StartBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All kinds of changes between each two things that a look reads, and between each two files that are copied."""
    broker = loaded_broker(start_broker)
    stub = broker.stub()
    acknowledged: dict[str, list[bytes]] = {"kept": [], "counted": []}
    left = [60]

    def change() -> None:
        if not left[0]:
            return
        left[0] -= 1
        number = len(acknowledged["counted"])
        value = b"%d" % number
        produce(stub, "counted", value, acks=-1)
        commit(stub, "committing", ("counted", 0, number + 1))
        appends = [pb.ProduceMessageRequest(
            topic="transacted", partition=each, required_acks=-1, record=pb.Record(value=value)) for each in range(2)]
        position = [pb.TopicPartitionOffset(topic="counted", partition=0, offset=number + 1)]
        stub.ProduceTransaction(
            pb.ProduceTransactionRequest(appends=appends, group_id="transacting", offsets=position), timeout=DEADLINE_S)
        produce(stub, "kept", value + b"x" * 3000, acks=1)
        acknowledged["counted"].append(value)
        if number % 10 == 9:
            # A name's epoch, a topic, a log's start.
            named = stub.InitProducer(pb.InitProducerRequest(name="named"), timeout=DEADLINE_S)
            state = pb.ProducerState(id=named.id, epoch=named.epoch, sequence=0)
            produce(stub, "kept", b"named", acks=-1, partition=1, producer=state)
            create_topic(stub, f"made-{number}")
            produce(stub, f"made-{number}", b"value", acks=-1)
            stub.TruncatePartition(
                pb.TruncatePartitionRequest(topic="short", partition=0, before_offset=1), timeout=DEADLINE_S)

    def around(step: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object, **rest: object) -> object:
            change()
            result = step(*arguments, **rest)
            change()
            return result
        return run

    produce(stub, "short", b"one")
    produce(stub, "short", b"two", acks=-1)
    for _ in range(3):
        change()
    before = list(acknowledged["counted"])
    left[0] = 60
    for name in "scan_journal", "copy_metadata", "copy_journal", "log_at":
        monkeypatch.setattr(backup_look, name, around(getattr(backup_look, name)))
    monkeypatch.setattr(backup_copy._Backup, "_copy_segment", around(backup_copy._Backup._copy_segment))
    assert backup_copy.backup(str(broker.data_dir), str(tmp_path / "copy"), verify=True) == 0
    assert left[0] == 0 and len(acknowledged["counted"]) == len(before) + 60
    copy = on(start_broker, tmp_path / "copy").stub()
    counted = list(whole_log(copy, "counted", 0).values())
    assert counted[:len(before)] == before and counted == acknowledged["counted"][:len(counted)]
    first, second = (list(whole_log(copy, "transacted", each).values()) for each in range(2))
    assert first == second and len(first) >= len(before)
    assert committed(copy, "transacting", "counted") == len(first) <= len(counted)
    assert len(before) <= (committed(copy, "committing", "counted") or 0) <= len(counted)
    named = copy.InitProducer(pb.InitProducerRequest(name="named"), timeout=DEADLINE_S)
    state = pb.ProducerState(id=named.id, epoch=named.epoch, sequence=0)
    assert not produce(copy, "kept", b"named", partition=1, producer=state).duplicate, "an epoch was given out twice"


def once_before_e(monkeypatch: pytest.MonkeyPatch, partition: int, step: Callable[[], None]) -> list[int]:
    """Have this done before E is read of such a partition, the first time. What is returned tells that it was."""
    plain, done = backup_look.log_at, []

    def log_at(directory: str) -> object:
        if directory.endswith(f"/topics/1/{partition}") and not done:
            done.append(1)
            step()
        return plain(directory)

    monkeypatch.setattr(backup_look, "log_at", log_at)
    return done


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("part", range(2))
def test_a_transaction_while_it_looks(
    start_broker: StartBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int, turns: bool
) -> None:
    """Behind J1, and before E of one of its partitions only: it is in none of the copy's; when the journal is begun
    anew meanwhile, so that nothing tells of it, the look is of no use."""
    broker = start_broker("--limits-journal-bytes", "8388608")
    stub = broker.stub()
    create_topic(stub, "transacted", 2)
    create_topic(stub, "others", 2)
    transact(stub, "transacted", b"before")

    def step() -> None:
        transact(stub, "transacted", b"meanwhile")
        for _ in range(16 if turns else 0):
            transact(stub, "others", b"x" * 900_000)

    done = once_before_e(monkeypatch, part, step)
    assert backup_copy.backup(str(broker.data_dir), str(tmp_path / "copy"), verify=True) == 0
    assert done
    copy = on(start_broker, tmp_path / "copy").stub()
    expected = [b"before", b"meanwhile"] if turns else [b"before"]
    assert [list(whole_log(copy, "transacted", each).values()) for each in range(2)] == [expected] * 2


def test_a_log_that_is_truncated_while_it_looks(
    start_broker: StartBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = start_broker()
    stub = broker.stub()
    create_topic(stub, "orders", segment_bytes=1024)
    for number in range(5):
        produce(stub, "orders", b"%d" % number + b"x" * 2000, acks=-1)

    def step() -> None:
        request = pb.TruncatePartitionRequest(topic="orders", partition=0, before_offset=3)
        stub.TruncatePartition(request, timeout=DEADLINE_S)
        wait_until(lambda: len(broker.segments()) == 2)

    done = once_before_e(monkeypatch, 0, step)
    assert backup_copy.backup(str(broker.data_dir), str(tmp_path / "copy"), verify=True) == 0
    assert done and list(whole_log(on(start_broker, tmp_path / "copy").stub(), "orders", 0)) == [3, 4]


def test_a_segment_that_goes_while_it_copies(
    start_broker: StartBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = start_broker()
    stub = broker.stub()
    create_topic(stub, "orders", segment_bytes=1024)
    for number in range(5):
        produce(stub, "orders", b"%d" % number + b"x" * 2000, acks=-1)
    plain, done = backup_copy._Backup._copy_segment, []

    def copy_segment(self: object, source: str, *rest: object) -> bool:
        if not done and source.endswith(f"{2:020}.log"):
            done.append(1)
            request = pb.TruncatePartitionRequest(topic="orders", partition=0, before_offset=3)
            stub.TruncatePartition(request, timeout=DEADLINE_S)
            wait_until(lambda: len(broker.segments()) == 2)
        return plain(self, source, *rest)

    monkeypatch.setattr(backup_copy._Backup, "_copy_segment", copy_segment)
    assert backup_copy.backup(str(broker.data_dir), str(tmp_path / "copy"), verify=True) == 0
    assert done and list(whole_log(on(start_broker, tmp_path / "copy").stub(), "orders", 0)) == [3, 4]
    assert not (tmp_path / "copy/topics/1/0" / f"{0:020}.log").exists()


@pytest.mark.parametrize("what", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_is_cut_short_leaves_nothing(
    broker: BrokerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: BaseException
) -> None:
    create_topic(broker.stub(), "orders")
    produce(broker.stub(), "orders", b"value", acks=-1)

    def fail(*_: object) -> bool:
        raise what

    monkeypatch.setattr(backup_copy._Backup, "_copy_segment", fail)
    with pytest.raises(what if isinstance(what, type) else type(what)):
        backup_copy.backup(str(broker.data_dir), str(tmp_path / "copy"), verify=False)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("copy")] == []


def test_a_topic_that_is_made_and_used_while_it_looks(
    start_broker: StartBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between M, which does not know it, and J1, which has a transaction of it and of another one."""
    broker = start_broker()
    stub = broker.stub()
    create_topic(stub, "transacted")
    appends = [pb.ProduceMessageRequest(
        topic=topic, partition=0, required_acks=-1, record=pb.Record(value=b"value"))
        for topic in ("transacted", "late")]
    plain, done = backup_look.copy_journal, []

    def copy_journal(*arguments: str) -> None:
        if not done:
            done.append(1)
            create_topic(stub, "late")
            stub.ProduceTransaction(pb.ProduceTransactionRequest(appends=appends), timeout=DEADLINE_S)
        plain(*arguments)

    monkeypatch.setattr(backup_look, "copy_journal", copy_journal)
    assert backup_copy.backup(str(broker.data_dir), str(tmp_path / "copy"), verify=True) == 0
    copy = on(start_broker, tmp_path / "copy").stub()
    assert done and [len(whole_log(copy, topic, 0)) for topic in ("transacted", "late")] == [1, 1]
