"""verify and repair where a killed broker has left a journal: it is a part of what is on the disk."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from takhin.cli.dump_journal import journal_parts
from takhin.codec.batch import BATCH_HEADER_SIZE
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import DEADLINE_S, BrokerProcess, Stub, create_topic, produce, read, values
from tests.cli.test_repair import assert_nothing_is_lost, logs, repair
from tests.cli.test_verify import findings, verify
from tests.cli.tool import TAKHIN, TOPIC, Data, broker_on, takhin
from tests.log.test_recovery import edges
from tests.trace import joined

PARTITIONS = 4


def produce_at_once(stub: Stub, data: Data, number: int) -> None:
    """A durable record for each partition, all on their way together, so that a group commit spans several.

    From one thread: threads of their own would, on a busy machine, come one after the other.
    """
    record = pb.Record(value=b"value %d " % number * 20)
    requests = [
        pb.ProduceMessageRequest(topic=TOPIC, partition=partition, required_acks=-1, record=record)
        for partition in range(PARTITIONS)
    ]
    for call in [stub.ProduceMessage.future(request, timeout=DEADLINE_S) for request in requests]:
        call.result()
    for partition in range(PARTITIONS):
        data.sent[partition].append(record)


@pytest.fixture
def left(_left: Data, tmp_path: Path) -> Data:
    """A killed broker's data, with a journal that has the end of partitions 0 and 1, but not their first records."""
    return _left.copied(tmp_path)


@pytest.fixture(scope="session")
def _left(tmp_path_factory: pytest.TempPathFactory) -> Data:
    broker = BrokerProcess(tmp_path_factory.mktemp("journal")).start()
    data = Data(broker.data_dir, {partition: [] for partition in range(PARTITIONS)})
    try:
        create_topic(broker.stub(), TOPIC, PARTITIONS)
        for number in range(5):
            produce_at_once(broker.stub(), data, number)
        broker.restart()
        for number in range(400):
            produce_at_once(broker.stub(), data, number)
            if number >= 10 and tail(data, 0) and tail(data, 1):
                break
        broker.kill()
        broker.check()
    finally:
        broker.close()
    assert tail(data, 0) and tail(data, 1)
    return data


def tail(data: Data, partition: int) -> int:
    """From where on the journal has the segment's end: what it does not have before that was synced there. 0: it has
    not even the last batch."""
    if not journals(data):
        return 0
    shown = [line.fields for path in journals(data) for line in journal_parts(str(path)) if line.kind == "journal_part"]
    ours = [each for each in shown if each["partition"] == partition]
    parts = {each["position"] + each["size_bytes"]: each["position"] for each in ours}
    size = position = segment(data, partition).stat().st_size
    while position in parts:
        position = parts[position]
    return position if position < size else 0


def journals(data: Data) -> list[Path]:
    return sorted((data.directory / "journal").glob("*.journal"))


def segment(data: Data, partition: int) -> Path:
    return data.partition.with_name(str(partition)) / f"{0:020d}.log"


def sent(data: Data, partition: int, count: int | None = None) -> list[bytes]:
    return values(data.sent[partition][:count])


def test_what_the_segments_lack_and_the_journal_has(left: Data) -> None:
    """A power cut took what was only in the cache: nothing is lost, and nothing is called so."""
    assert verify(left).status == 0
    os.truncate(segment(left, 0), tail(left, 0))
    done = verify(left)
    assert done.status == 0, done.out
    (note,) = [each for each in findings(left, "note") if each["path"] == "topics/1/0"]
    assert "the next start writes to it what the journal holds" in note["what"]
    (summary,) = verify(left, "--json").of_type("summary")
    assert summary["records"] == sum(len(each) for each in left.sent.values()), "as they will be"
    broker = broker_on(left)
    assert values(read(broker.stub(), TOPIC)) == sent(left, 0)
    broker.terminate()
    assert verify(left).status == 0 and not journals(left)


def test_repair_waits_for_what_is_still_to_be_written(left: Data) -> None:
    os.truncate(segment(left, 0), tail(left, 0))
    damaged = segment(left, 1)
    left.flip(damaged, edges(damaged)[2] + BATCH_HEADER_SIZE)
    done = repair(left, "--yes")
    assert done.status == 2 and "start a broker once" in done.err
    broker = broker_on(left)
    broker.terminate()
    done = repair(left, "--yes", "--json")
    assert done.status == 0, done.out
    assert_served(left, cut_at=2)


def test_repair_takes_the_journal_with_it(left: Data) -> None:
    """Else the next start would write what it holds behind the cut."""
    damaged = segment(left, 1)
    left.flip(damaged, edges(damaged)[2] + BATCH_HEADER_SIZE)
    before = logs(left.directory / "topics")
    kept = {path.name: path.read_bytes() for path in journals(left)}
    done = repair(left, "--yes", "--json")
    assert done.status == 0, done.out
    assert_nothing_is_lost(before, left)
    aside = left.directory / "set-aside" / "1" / "journal"
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == kept and not journals(left)
    assert done.of_type("repair_journal")[0]["set_aside"] == [f"journal/{name}" for name in kept]
    assert_served(left, cut_at=2)


def assert_served(data: Data, cut_at: int) -> None:
    """Partition 1 up to there, all others whole."""
    assert verify(data).status == 0
    broker = broker_on(data)
    for partition in range(PARTITIONS):
        count = cut_at if partition == 1 else None
        assert values(read(broker.stub(), TOPIC, partition=partition)) == sent(data, partition, count)
        answer = produce(broker.stub(), TOPIC, b"new", partition=partition, acks=-1)
        assert answer.offset == len(sent(data, partition, count))
    broker.terminate()
    broker.check()
    assert verify(data).status == 0


def test_the_journal_proves_what_a_log_has_lost(left: Data) -> None:
    """Cut below what the journal goes on from: without it that would pass for a torn tail."""
    path = segment(left, 0)
    os.truncate(path, edges(path)[1])
    path.with_suffix(".index").unlink(missing_ok=True)
    (damage,) = findings(left, "damage")
    assert damage["path"] == "topics/1/0" and "once went on to" in damage["what"]
    done = repair(left, "--yes", "--json")
    assert done.status == 0, done.out
    assert done.of_type("repair")[0]["next_offset"] == 1
    assert verify(left).status == 0


def test_a_damaged_journal(left: Data) -> None:
    """An entry in its middle: told, and set aside by repair, or by the next start."""
    path = journals(left)[0]
    entries = takhin("segment", "dump", "--json", path).of_type("journal_entry")
    assert len(entries) >= 3
    left.flip(path, entries[0]["position"] + 40)
    (damage,) = findings(left, "damage")
    assert damage["path"] == "journal" and f"entry {entries[0]['sequence']} is damaged" in damage["what"]
    for partition in range(PARTITIONS):
        os.utime(segment(left, partition), ns=(0, 0))
    done = repair(left, "--yes", "--json")
    assert done.status == 0, done.out
    # After a failed sync the cache may show what is not on the disk, and it was only in the journal.
    assert all(segment(left, partition).stat().st_mtime_ns for partition in range(PARTITIONS))
    assert not journals(left) and (left.directory / "set-aside" / "1" / "journal" / path.name).exists()
    broker = broker_on(left)
    for partition in range(PARTITIONS):
        assert values(read(broker.stub(), TOPIC, partition=partition)) == sent(left, partition)
    broker.terminate()


def test_repair_leaves_the_journal_to_whom_it_can_not_repair(left: Data) -> None:
    """One partition can't be read at all: what the journal has of it is still the only proof of where it ended."""
    damaged, unreadable = segment(left, 1), segment(left, 0)
    left.flip(damaged, edges(damaged)[2] + BATCH_HEADER_SIZE)
    kept_elsewhere = unreadable.rename(left.directory.with_name("elsewhere"))
    # Neither a broker nor we can read from it.
    unreadable.mkdir()
    kept = {path.name: path.read_bytes() for path in journals(left)}
    done = verify(left)
    assert done.status == 1 and "can't be judged" in done.out
    done = repair(left, "--yes", "--json")
    assert done.status == 1 and done.of_type("done")
    assert {path.name: path.read_bytes() for path in journals(left)} == kept
    broker = broker_on(left)
    assert values(read(broker.stub(), TOPIC, partition=1)) == sent(left, 1, 2)
    assert produce(broker.stub(), TOPIC, b"new", partition=1, acks=-1).offset == 2
    broker.terminate()
    # The disk gives it again, but for what a power cut took.
    unreadable.rmdir()
    kept_elsewhere.rename(unreadable)
    os.truncate(unreadable, tail(left, 0))
    broker = broker_on(left)
    assert values(read(broker.stub(), TOPIC)) == sent(left, 0)
    assert values(read(broker.stub(), TOPIC, partition=1)) == [*sent(left, 1, 2), b"new"]
    broker.terminate()
    assert verify(left).status == 0 and not journals(left)


def test_repair_writes_anew_what_it_vouches_for(left: Data, strace: list[str], tmp_path: Path) -> None:
    """After a sync that failed, the cache has pages that count as written and never reached the disk."""
    damaged = segment(left, 1)
    left.flip(damaged, edges(damaged)[2] + BATCH_HEADER_SIZE)
    trace = tmp_path / "trace"
    subprocess.run(
        [*strace, "-y", "-e", "trace=pwritev,fdatasync", "-o", str(trace), *TAKHIN, "segment", "repair", "--yes",
         str(left.directory)],
        timeout=60, check=True, capture_output=True,
    )
    calls = joined(trace.read_text().splitlines())
    for partition in range(PARTITIONS):
        path = f"/topics/1/{partition}/{segment(left, partition).name}>"
        ours = [match[0] for call in calls if path in call and (match := re.search("pwritev|fdatasync", call))]
        assert ours[-2:] == ["pwritev", "fdatasync"], (partition, ours)
    assert_served(left, cut_at=2)
