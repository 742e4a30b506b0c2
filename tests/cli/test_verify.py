"""takhin segment verify: what is sound is called so, what is not is found, and nothing is touched."""

import os
import shutil
import sqlite3
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from takhin.cli.data_audit import locked
from takhin.codec.batch import BATCH_HEADER_SIZE, SEGMENT_HEADER_SIZE, encode_batch, encode_segment_header
from takhin.codec.crc32c import crc32c, masked
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import BrokerProcess, new_topic, produce, read
from tests.cli.conftest import DataOf
from tests.cli.tool import TAKHIN, TOPIC, Data, Done, broker_on, peak_of, takhin, tree
from tests.log.test_partition import quick_path
from tests.log.test_recovery import edges

__all__ = ["quick_path"]

MIB = 1 << 20


def verify(data: Data | Path, *options: str) -> Done:
    """Run it, and see that nothing was changed."""
    directory = data.directory if isinstance(data, Data) else data
    before = tree(directory)
    done = takhin("segment", "verify", *options, directory)
    assert tree(directory) == before
    return done


def findings(data: Data, severity: str) -> list[dict]:
    return [each for each in verify(data, "--json").of_type("finding") if each["severity"] == severity]


# What is sound


@pytest.mark.parametrize("how", ["clean", "killed"])
def test_what_a_broker_leaves_is_sound(data_of: DataOf, how: str) -> None:
    data = data_of(how)
    done = verify(data)
    assert (done.status, done.err) == (0, "")
    state = "stopped cleanly" if how == "clean" else "not stopped cleanly"
    assert done.out.startswith(f"{data.directory}: sound; {state}; 3 partitions, ") and done.out.count("\n") == 1
    (summary,) = verify(data, "--json").objects
    assert summary["status"] == "sound" and summary["was_clean"] == (how == "clean")
    assert summary["records"] == sum(len(sent) for sent in data.sent.values()) + 1
    assert summary["bytes"] == sum(path.stat().st_size for path in data.directory.rglob("*.log"))
    assert summary["segments"] == len(list(data.directory.rglob("*.log")))
    assert (summary["damaged_partitions"], summary["findings"]) == (0, {"damage": 0, "torn": 0, "note": 0})


def test_a_torn_tail_is_no_damage(killed: Data) -> None:
    path = killed.segments[-1]
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"torn")
    done = verify(killed)
    assert done.status == 0 and done.out.startswith("torn    topics/1/0 (events/0): ")
    assert "sound but for what the next start cuts" in done.out
    (torn,) = findings(killed, "torn")
    assert "a torn tail of 4 bytes" in torn["what"] and f"at byte {size}" in torn["what"]
    broker = broker_on(killed)
    assert "4 cut" in broker.stderr
    broker.terminate()
    assert verify(killed).status == 0
    (note,) = findings(killed, "note")
    assert note["path"] == f"topics/1/0/{path.name}.torn-at-{size}" and "set aside by a recovery" in note["what"]


def test_after_a_clean_stop_the_same_is_damage(clean: Data) -> None:
    with clean.segments[-1].open("ab") as file:
        file.write(b"torn")
    assert verify(clean).status == 1


def test_a_directory_that_was_never_used(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path).start()
    broker.terminate()
    done = verify(broker.data_dir)
    assert done.status == 0 and "sound; stopped cleanly; 0 partitions" in done.out


def test_topics_without_records_and_deleted_ones(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path).start()
    empty, gone = new_topic(broker.stub(), 3), new_topic(broker.stub())
    produce(broker.stub(), gone, b"one")
    broker.stub().DeleteTopic(pb.DeleteTopicRequest(name=gone))
    broker.terminate()
    assert empty and verify(broker.data_dir).status == 0


# What is not


def spoil_payload(data: Data) -> str:
    path = data.segments[1]
    position = edges(path)[1]
    data.flip(path, position + BATCH_HEADER_SIZE + 20)
    return f"{path.name} at byte {position}: a batch's checksum does not match"


def spoil_header(data: Data) -> str:
    data.flip(data.segments[1], 20)
    return f"{data.segments[1].name} at byte 0: the checksum of the segment's header does not match"


def zero_a_block(data: Data) -> str:
    path = data.segments[0]
    with path.open("r+b") as file:
        file.seek(512)
        file.write(bytes(1024))
    return f"{path.name} at byte "


def remove_one(data: Data) -> str:
    gone, following = data.segments[1:3]
    gone.unlink()
    return f"{following.name} follows where offset {int(gone.stem)} should"


def remove_the_first(data: Data) -> str:
    data.segments[0].unlink()
    return "the segment with offset 0 is gone"


def remove_the_last(data: Data) -> str:
    path = data.segments[-1]
    path.unlink()
    return f"the log ends at offset {int(path.stem)}, and once went on to {len(data.sent[0])}"


def empty_one(data: Data) -> str:
    os.truncate(data.segments[1], 0)
    return f"{data.segments[1].name} at byte 0: the file is empty"


def cut_at_a_batch(data: Data) -> str:
    path = data.segments[-1]
    os.truncate(path, edges(path)[1])
    return f"{path.name} ends at byte {edges(path)[1]}, and its index vouches for"


def drop_a_batch(data: Data) -> str:
    path = data.segments[0]
    at = edges(path)
    content = path.read_bytes()
    path.write_bytes(content[: at[1]] + content[at[2] :])
    return f"{path.name} at byte {at[1]}: a batch begins at offset 8 where 4 should"


def exchange_two(data: Data) -> str:
    first, second = data.segments[:2]
    keep = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(keep)
    return "lies in another's place"


def take_another_partitions(data: Data) -> str:
    other = data.partition.with_name("1") / data.segments[0].name
    shutil.copy(other, data.segments[0])
    return "it is the segment of topic id 1, partition 1, base offset 0, and lies in another's place"


def make_an_index_lie(data: Data) -> str:
    """Whole checksums, wrong places: as a bug, or a file of another time, would have it."""
    path = data.segments[0].with_suffix(".index")
    content = bytearray(path.read_bytes())
    assert len(content) > 64
    content[64 + 4 : 64 + 8] = struct.pack("<I", 50)
    content[8:12] = struct.pack("<I", masked(crc32c(bytes(content[12:]))))
    path.write_bytes(content)
    return "is not what the segment holds there, though its checksums match"


def make_sums_lie(data: Data) -> str:
    path = data.segments[0].with_suffix(".index")
    content = bytearray(path.read_bytes())
    content[48:56] = struct.pack("<q", 5)
    content[60:64] = struct.pack("<I", masked(crc32c(bytes(content[12:60]))))
    content[8:12] = struct.pack("<I", masked(crc32c(bytes(content[12:]))))
    path.write_bytes(content)
    return "its sums do not agree with the segment: max timestamp 5, which is "


def remove_the_metadata(data: Data) -> str:
    (data.directory / "meta.db").unlink()
    return "it is gone, though there are topics"


def spoil_the_metadata(data: Data) -> str:
    (data.directory / "meta.db").write_bytes(b"no database" * 1000)
    return "restore it from a copy; no broker starts with it"


def flip_a_bit_of_the_metadata(data: Data) -> str:
    """In a row's value, where SQLite itself sees nothing."""
    path = data.directory / "meta.db"
    data.flip(path, path.read_bytes().index(b"events") + 1)
    return "its checksum is not what the last clean stop left"


def change_metadata(data: Data, statement: str) -> None:
    """As if no clean stop had left a checksum that tells."""
    db = sqlite3.connect(data.directory / "meta.db")
    db.execute(statement)
    db.commit()
    db.close()
    (data.directory / "meta.db.sum").unlink()


def have_a_topics_config_rot(data: Data) -> str:
    change_metadata(data, "INSERT INTO topic_configs SELECT id, 'retention.mc', '5' FROM topics WHERE name = 'events'")
    return "topic 'events': unknown topic config 'retention.mc'"


def take_an_older_metadata(data: Data) -> str:
    shutil.copytree(data.directory / "topics" / "2", data.directory / "topics" / "77")
    return "meta.db never gave out this id"


SPOILING: list[Callable[[Data], str]] = [
    spoil_payload, spoil_header, zero_a_block, drop_a_batch, remove_one, remove_the_first, remove_the_last,
    empty_one, cut_at_a_batch, exchange_two, take_another_partitions, make_an_index_lie, make_sums_lie,
    remove_the_metadata, spoil_the_metadata, flip_a_bit_of_the_metadata, have_a_topics_config_rot,
    take_an_older_metadata,
]


@pytest.mark.parametrize("spoil", SPOILING, ids=lambda each: each.__name__)
def test_damage_of_each_kind(clean: Data, spoil: Callable[[Data], str]) -> None:
    told = spoil(clean)
    done = verify(clean)
    assert (done.status, done.err) == (1, ""), done.out
    assert f"{clean.directory}: damaged; " in done.out
    assert any(line.startswith("DAMAGE  ") and told in line for line in done.out.splitlines()), done.out
    assert any(told in each["what"] for each in findings(clean, "damage"))


def test_what_is_lost_and_what_can_be_read(clean: Data) -> None:
    path = clean.segments[1]
    at = edges(path)
    clean.flip(path, at[1] + BATCH_HEADER_SIZE)
    base, end = int(path.stem), len(clean.sent[0])
    (damage,) = findings(clean, "damage")
    assert (damage["topic"], damage["partition"], damage["path"]) == (TOPIC, 0, "topics/1/0")
    readable = end - (base + 4) - 4
    assert f"offsets from {base + 4} to {end - 1} can't be served" in damage["what"]
    assert f"{readable} records in {readable // 4} batches can be read behind it" in damage["what"]
    (summary,) = verify(clean, "--json").of_type("summary")
    assert (summary["status"], summary["damaged_partitions"], summary["findings"]["damage"]) == ("damaged", 1, 1)


def test_all_damage_is_told_not_the_first_only(clean: Data) -> None:
    for path in clean.segments[:3]:
        clean.flip(path, edges(path)[1] + BATCH_HEADER_SIZE)
    clean.flip(clean.directory / "topics" / "2" / "0" / f"{0:020d}.log", SEGMENT_HEADER_SIZE + 50)
    done = verify(clean, "--json")
    told = [each for each in done.of_type("finding") if each["severity"] == "damage"]
    assert {each["path"] for each in told} == {"topics/1/0", "topics/2/0"}
    assert "".join(each["what"] for each in done.of_type("finding")).count("checksum does not match") == 4


@pytest.mark.parametrize("spoil", [
    lambda data: data.segments[0].with_suffix(".index").unlink(),
    lambda data: data.flip(data.segments[0].with_suffix(".index"), 20),
    lambda data: os.truncate(data.segments[0].with_suffix(".index"), 70),
    lambda data: (data.partition / "notes.txt").touch(),
    lambda data: (data.directory / "backup").mkdir(),
    lambda data: (data.directory / "topics" / "lost+found").mkdir(),
    lambda data: (data.directory / "topics" / "1" / "9").mkdir(),
], ids=["no index", "spoilt sums", "short index", "file", "directory", "no number", "no such partition"])
def test_what_is_no_damage(clean: Data, spoil: Callable[[Data], object]) -> None:
    spoil(clean)
    done = verify(clean)
    assert done.status == 0
    assert all(line.startswith("note    ") for line in done.out.splitlines()[:-1]), done.out


def test_a_commit_beyond_the_logs_end_is_told(clean: Data) -> None:
    change_metadata(clean, "UPDATE committed_offsets SET next_offset = 1000000")
    (note,) = findings(clean, "note")
    assert "group 'group' has committed offset 1000000" in note["what"]


# What can't be examined


def test_a_running_broker_keeps_its_directory(broker: BrokerProcess) -> None:
    topic = new_topic(broker.stub())
    for command in (["verify"], ["repair", "--yes"], ["repair", "--dry-run"]):
        done = takhin("segment", *command, broker.data_dir)
        assert (done.status, done.out) == (2, "")
        assert done.err == (
            f"takhin: data directory {broker.data_dir} is in use by a broker (process {broker.pid}); stop it first\n"
        )
    produce(broker.stub(), topic, b"goes on")
    assert len(read(broker.stub(), topic)) == 1


def test_no_broker_starts_meanwhile(clean: Data) -> None:
    with locked(str(clean.directory)):
        broker = BrokerProcess(clean.directory.parent / "kept-out")
        broker.data_dir = clean.directory
        broker.launch()
        assert broker.wait() == 1
        assert "in use" in broker.stderr
    broker_on(clean).terminate()


@pytest.mark.parametrize(("make", "told"), [
    (lambda path: None, "can't be read: No such file or directory"),
    (lambda path: path.mkdir(), "is no data directory"),
    (lambda path: path.touch(), "can't be read: Not a directory"),
], ids=["nothing", "empty", "file"])
def test_what_is_no_data_directory(tmp_path: Path, make: Callable[[Path], None], told: str) -> None:
    path = tmp_path / "x"
    make(path)
    for command in ("verify", "repair"):
        done = takhin("segment", command, path)
        assert (done.status, done.out) == (2, "")
        assert told in done.err


def test_a_partitions_directory_is_for_dump(clean: Data) -> None:
    done = takhin("segment", "verify", clean.partition)
    assert done.status == 2 and "dump shows single files" in done.err


def test_files_of_somebody_else(clean: Data) -> None:
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("root reads everything")
    clean.segments[0].chmod(0)
    drop = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    for path in [clean.directory, *clean.directory.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    clean.segments[0].chmod(0)
    if drop and subprocess.run([*drop, *TAKHIN, "--version"], capture_output=True).returncode:
        pytest.skip("another user can't read this installation")
    done = subprocess.run([*drop, *TAKHIN, "segment", "verify", clean.directory], capture_output=True)
    if drop and b"can't be read: No such" in done.stderr:
        pytest.skip("another user can't reach this directory")
    assert done.returncode == 2, done.stdout
    assert b"Permission denied" in done.stderr


def test_memory_does_not_grow_with_the_data(quick_path: Path) -> None:
    broker = BrokerProcess(quick_path / "broker").start()
    produce(broker.stub(), new_topic(broker.stub()), b"one")
    broker.terminate()
    path = broker.data_dir / "topics" / "1" / "0" / f"{0:020d}.log"
    path.with_suffix(".index").unlink()
    values = [pb.Record(value=b"v" * 1000).SerializeToString()] * 100
    with path.open("wb") as file:
        file.write(encode_segment_header(1, 0, 0, 1))
        for number in range(2500):
            file.write(encode_batch(values, number * 100, 0, 1, 1, 0))
    status, told, peak_bytes = peak_of("segment", "verify", broker.data_dir)
    assert status == 0 and b"250,000 records" in told and path.stat().st_size > 240 * MIB
    assert peak_bytes < 120 * MIB
