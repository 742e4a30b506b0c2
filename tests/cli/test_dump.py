"""takhin segment dump: what it shows is what is there, damage included."""

import base64
import os
import signal
import struct
import subprocess
from pathlib import Path

import pytest

from takhin.cli.dump import dump
from takhin.codec.batch import BATCH_HEADER_SIZE, SEGMENT_HEADER_SIZE, encode_batch, encode_segment_header
from takhin.codec.crc32c import crc32c, masked
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import DEADLINE_S
from tests.cli.tool import TAKHIN, Data, Done, peak_of, takhin
from tests.format.make_golden import GOLDEN
from tests.log.test_partition import quick_path

__all__ = ["quick_path"]

ONE_BATCH = GOLDEN / "one_batch.log"
SEVERAL = GOLDEN / "several_batches.log"
NOW_MS = 1_700_000_000_000
MIB = 1 << 20


def plain(*arguments: object) -> Done:
    return takhin("segment", "dump", *arguments)


def as_json(*arguments: object) -> Done:
    return takhin("segment", "dump", "--json", *arguments)


def record_of(shown: dict) -> pb.Record:
    """The record that a line of --json tells of."""
    made = pb.Record(offset=shown["offset"], partition=shown["partition"], timestamp=shown["timestamp_ms"])
    if shown["key"] is not None:
        made.key = base64.b64decode(shown["key"])
    if shown["value"] is not None:
        made.value = base64.b64decode(shown["value"])
    for header in shown["headers"]:
        made.headers.add(key=header["key"], value=base64.b64decode(header["value"]))
    return made


def segment_of(*values: bytes, base_offset: int = 0) -> bytes:
    """A segment with a batch for each value."""
    batches = [
        encode_batch([pb.Record(value=value).SerializeToString()], base_offset + number, 0, NOW_MS, 1, 0)
        for number, value in enumerate(values)
    ]
    return encode_segment_header(1, 0, base_offset, NOW_MS) + b"".join(batches)


# What is whole


@pytest.mark.parametrize("path", [ONE_BATCH, SEVERAL], ids=lambda path: path.stem)
def test_json_shows_all_that_protobuf_does(path: Path) -> None:
    done = as_json("--records", path)
    assert (done.status, done.err) == (0, "")
    expected = pb.ConsumeMessagesResponse.FromString(path.read_bytes())
    for each in expected.records:
        each.DiscardUnknownFields()
    assert [record_of(each) for each in done.of_type("record")] == list(expected.records)
    (segment,) = done.of_type("segment")
    fields = ("topic_id", "partition", "base_offset", "created_ms")
    assert [segment[name] for name in fields] == [getattr(expected.segment, name) for name in fields]
    for shown, batch in zip(done.of_type("batch"), expected.batches, strict=True):
        for descriptor in batch.DESCRIPTOR.fields:
            if descriptor.name != "magic":
                assert shown[descriptor.name] == getattr(batch, descriptor.name), descriptor.name


def test_the_text_of_a_small_file() -> None:
    done = plain("--records", ONE_BATCH)
    assert done.status == 0
    lines = done.out.splitlines()
    assert lines[0] == f"{ONE_BATCH}  segment, 209 bytes"
    assert lines[1] == (
        "  0  segment: topic id 1, partition 0, base offset 0, created 2023-11-14T22:13:20.000Z (1700000000000); "
        "checksum ok"
    )
    assert lines[2].startswith("  49  batch: offsets 0 to 1, 2 records, 160 bytes, appended 2023-11-14T22:13:20.250Z")
    assert lines[2].endswith("epoch 1, durable below 0; checksum ok")
    assert lines[3] == '      0  2023-11-14T22:13:20.250Z (1700000000250)  key "user-1", value "hello"'
    assert lines[4] == (
        '      1  2023-11-14T22:13:20.123Z (1700000000123)  key none, value "", headers {"trace": "\\x01"}'
    )


def test_a_data_directory_shows_what_was_produced(clean: Data) -> None:
    done = as_json("--records", clean.directory)
    assert (done.status, done.err) == (0, "")
    shown: dict[tuple[int, int], list[pb.Record]] = {}
    topic_id = -1
    for each in done.objects:
        if each["type"] == "segment":
            topic_id = each["topic_id"]
        elif each["type"] == "record":
            shown.setdefault((topic_id, each["partition"]), []).append(record_of(each))
    for partition, sent in clean.sent.items():
        for offset, each in enumerate(sent):
            each.offset, each.partition = offset, partition
        assert shown[1, partition] == sent
    assert [each.value for each in shown[2, 0]] == [b"in another topic"]
    indexes = done.of_type("index")
    assert len(indexes) == len(list(clean.directory.rglob("*.index"))) > 4
    assert all(each["problem"] is None for each in indexes)
    entries = done.of_type("index_entry")
    positions = {(each["base_offset"], each["position"]) for each in done.of_type("batch")}
    assert entries and all((each["offset"], each["position"]) in positions for each in entries)
    assert any(each["file"].endswith("meta.db") for each in done.of_type("file"))


def test_from_and_count(clean: Data) -> None:
    whole = [each["offset"] for each in as_json("--records", clean.partition).of_type("record")]
    assert whole == list(range(len(clean.sent[0])))
    for start, count in ((0, 1), (1, 5), (101, 30), (len(whole) - 1, 10), (len(whole), 10), (3, 0)):
        done = as_json("--records", "--from", start, "--count", count, clean.partition)
        assert [each["offset"] for each in done.of_type("record")] == whole[start : start + count]
    batches = as_json("--from", 101, "--count", 2, clean.partition).of_type("batch")
    assert [each["base_offset"] for each in batches] == [100, 104]
    files = {each["file"] for each in as_json("--from", whole[-1], clean.partition).of_type("file")}
    assert files == {str(clean.segments[-1])}, "what ends before it is not even read"


def test_nothing_that_a_terminal_would_obey_is_shown(tmp_path: Path) -> None:
    values = [b"\x1b[2J\x07\n\r\t\"\\", bytes(range(256)), "größe ☃ \u202e\u2028 \U0001f4cf".encode(), b"\xff\xfe"]
    path = tmp_path / f"{0:020d}.log"
    path.write_bytes(segment_of(*values))
    done = plain("--records", path)
    assert done.status == 0
    assert all(char == "\n" or char.isprintable() for char in done.out)
    lines = [line.partition("value ")[2] for line in done.out.splitlines() if "value " in line]
    assert lines[0] == r'"\x1b[2J\x07\n\r\t\"\\"'
    assert lines[1].endswith('"… 256 bytes') and r"\x00\x01" in lines[1]
    assert lines[2] == '"größe ☃ \\u202e\\u2028 \U0001f4cf"'
    assert lines[3] == r'"\xff\xfe"'


def test_a_copy_under_another_name_is_known_by_its_beginning(tmp_path: Path, clean: Data) -> None:
    for suffix, kind in ((".log", "batch"), (".index", "index")):
        copy = tmp_path / f"copy-of{suffix[1:]}"
        copy.write_bytes(clean.segments[0].with_suffix(suffix).read_bytes())
        assert as_json(copy).of_type(kind)


# What is not


def test_every_bit_of_a_file_counts(quick_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The header's, the batches', their payload's: whichever is flipped, it is told, and nothing breaks."""
    data = ONE_BATCH.read_bytes()
    path = quick_path / f"{0:020d}.log"

    def status() -> int:
        return dump(str(path), records=True, as_json=False, from_offset=0, count=None)

    for bit in range(len(data) * 8):
        spoilt = bytearray(data)
        spoilt[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoilt)
        assert status() == 1, bit
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert status() == (0 if length == SEGMENT_HEADER_SIZE else 1), length
    path.write_bytes(data)
    assert status() == 0
    capfd.readouterr()


def test_it_goes_on_behind_damage(clean: Data) -> None:
    path = clean.segments[1]
    before = as_json(path).of_type("batch")
    damaged = before[2]
    clean.flip(path, damaged["position"] + BATCH_HEADER_SIZE + 3)
    done = as_json("--records", path)
    assert done.status == 1
    assert [each["position"] for each in done.of_type("batch")] == [
        each["position"] for each in before if each is not damaged
    ]
    (damage,) = done.of_type("damage")
    assert damage["position"] == damaged["position"]
    assert damage["size_bytes"] == BATCH_HEADER_SIZE + damaged["payload_bytes"]
    assert damage["problem"] == "a batch's checksum does not match"
    assert damage["header"]["base_offset"] == damaged["base_offset"]
    offsets = [each["offset"] for each in done.of_type("record")]
    assert set(range(offsets[0], offsets[-1] + 1)) - set(offsets) == set(
        range(damaged["base_offset"], damaged["next_offset"])
    )
    text = plain(path)
    assert text.status == 1 and f"  {damage['position']}  DAMAGE or a torn tail, " in text.out


def test_a_header_that_lies_about_its_size_is_searched_past(tmp_path: Path) -> None:
    values = [b"%d" % number * 40 for number in range(6)]
    data = bytearray(segment_of(*values))
    at = data.index(b"TKB1", data.index(b"TKB1") + 1) - 3
    data[at + 36 : at + 40] = struct.pack("<I", 100)
    path = tmp_path / f"{0:020d}.log"
    path.write_bytes(data)
    done = as_json(path)
    assert [each["base_offset"] for each in done.of_type("batch")] == [0, 2, 3, 4, 5]
    assert [each["searched"] for each in done.of_type("batch")] == [False, True, False, False, False]


def test_a_batch_within_a_value_is_only_told_of_behind_damage(tmp_path: Path) -> None:
    inner = encode_batch([b"\x12\x04fake"], 7, 0, NOW_MS, 1, 0)
    data = bytearray(segment_of(b"first", b"before " + inner + b" behind", b"last"))
    path = tmp_path / f"{0:020d}.log"
    path.write_bytes(data)
    assert [each["base_offset"] for each in as_json(path).of_type("batch")] == [0, 1, 2]
    second = data.index(b"TKB1", data.index(b"TKB1") + 1) - 3
    data[second] = 0
    path.write_bytes(data)
    done = as_json(path)
    assert [(each["base_offset"], each["searched"]) for each in done.of_type("batch")] == [
        (0, False), (7, True), (2, True)
    ]
    assert "a part of a value" in plain(path).out


def test_what_recovery_set_aside(tmp_path: Path) -> None:
    data = segment_of(b"one", b"two", b"three")
    cut = data.index(b"TKB1", data.index(b"TKB1") + 1) - 3
    aside = tmp_path / f"{0:020d}.log.torn-at-{cut}"
    aside.write_bytes(data[cut:-3])
    done = as_json("--records", aside)
    assert [base64.b64decode(each["value"]) for each in done.of_type("record")] == [b"two"]
    assert done.of_type("damage")[0]["problem"] == "a batch is cut short"
    assert not done.of_type("segment")
    whole = tmp_path / f"{0:020d}.log.torn-at-0"
    whole.write_bytes(data)
    assert len(as_json(whole).of_type("batch")) == 3


def test_a_version_that_is_not_known(tmp_path: Path) -> None:
    data = bytearray(segment_of(b"one"))
    data[13] = 2
    data[8:12] = struct.pack("<I", masked(crc32c(bytes(data[12:SEGMENT_HEADER_SIZE]))))
    path = tmp_path / f"{0:020d}.log"
    path.write_bytes(data)
    done = as_json(path)
    assert done.status == 1
    assert not done.of_type("batch"), "nothing is known of what follows"
    assert done.of_type("damage")[0]["problem"] == "the file has version 2, only 1 is known"


@pytest.mark.parametrize("at", [3, 40, 62, 70])
def test_a_damaged_index(clean: Data, at: int) -> None:
    index = clean.segments[0].with_suffix(".index")
    clean.flip(index, at)
    done = as_json(index)
    assert done.status == 1 and done.of_type("index")[0]["problem"]
    assert "DAMAGED" in plain(index).out


# The process


@pytest.mark.parametrize(("arguments", "told"), [
    (["segment", "dump", "nowhere"], "nowhere: No such file or directory"),
    (["segment", "dump"], "FILE|DIR"),
    (["segment", "dump", "--from", "-1", "x"], "--from"),
    (["segment", "dump", "--count", "one", "x"], "'one' is not a number"),
    (["segment", "dmp", "x"], "dmp"),
    (["segment"], "COMMAND"),
    ([], "COMMAND"),
    (["--verbose"], "takhin --help"),
])
def test_usage_errors(arguments: list[str], told: str) -> None:
    done = takhin(*arguments)
    assert (done.status, done.out) == (2, "")
    assert told in done.err


def test_what_is_no_file_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("hello")
    assert plain(tmp_path / "notes").status == 2
    os.mkfifo(tmp_path / "fifo")
    assert plain(tmp_path / "fifo").status == 2
    done = plain(tmp_path)
    assert done.status == 0 and "5 bytes, not shown" in done.out
    (tmp_path / "empty").mkdir()
    assert plain(tmp_path / "empty") == Done(0, "", "")


def many_records(directory: Path) -> Path:
    path = directory / f"{0:020d}.log"
    records = [pb.Record(value=b"v" * 100).SerializeToString()] * 5000
    path.write_bytes(encode_segment_header(1, 0, 0, NOW_MS) + encode_batch(records, 0, 0, NOW_MS, 1, 0))
    return path


def test_a_reader_that_goes_away_ends_it(tmp_path: Path) -> None:
    path = many_records(tmp_path)
    process = subprocess.Popen(
        [*TAKHIN, "segment", "dump", "--records", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None and process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(DEADLINE_S) == 141


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    path = many_records(tmp_path)
    process = subprocess.Popen(
        [*TAKHIN, "segment", "dump", "--records", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()  # from here on it waits for the pipe to be read
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_S) == 130
    assert process.stderr.read() == b""
    process.stdout.close()
    process.stderr.close()


def test_a_full_disk_is_told() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*TAKHIN, "segment", "dump", SEVERAL], stdout=full, stderr=subprocess.PIPE, timeout=DEADLINE_S)
    assert done.returncode == 2
    assert done.stderr.decode() == "takhin: No space left on device\n"


@pytest.mark.parametrize("lie", [False, True], ids=["whole", "a header that claims all of the file"])
def test_memory_does_not_grow_with_the_file(quick_path: Path, lie: bool) -> None:
    path = quick_path / f"{0:020d}.log"
    batch_records = [pb.Record(value=b"v" * 65_000).SerializeToString()]
    size = 0
    with path.open("wb") as file:
        size += file.write(encode_segment_header(1, 0, 0, NOW_MS))
        for number in range(4000):
            size += file.write(encode_batch(batch_records, number, 0, NOW_MS, 1, 0))
        if lie:
            file.seek(SEGMENT_HEADER_SIZE + 36)
            file.write(struct.pack("<I", size - SEGMENT_HEADER_SIZE - BATCH_HEADER_SIZE))
    assert size > 240 * MIB
    status, _, peak_bytes = peak_of("segment", "dump", path)
    assert status == int(lie) and peak_bytes < 100 * MIB
