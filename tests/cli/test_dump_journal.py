"""takhin segment dump of journal files: entries, parts, the end, and entries that prove that others were there."""

import struct
from pathlib import Path

import pytest

from takhin.codec.batch import encode_batch
from takhin.codec.crc32c import crc32c, masked
from takhin.v1 import takhin_pb2 as pb
from tests.cli.tool import Done, takhin

SALT = 0x5EED
NOW_MS = 1_700_000_000_000


def dump(path: Path, *options: str) -> Done:
    return takhin("segment", "dump", *options, path)


def in_blocks(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def header(first_sequence: int, salt: int = SALT, version: int = 1) -> bytes:
    """The first block of a journal file, from the format's table."""
    fields = struct.pack("<IIQq", version, salt, first_sequence, NOW_MS)
    made = b"TKJ1" + struct.pack("<I", masked(crc32c(fields))) + fields
    return (made + bytes(256 - len(made))) * 2


def entry(
    sequence: int, *payloads: bytes, durable: int | None = None, salt: int = SALT,
    transaction: tuple[int, bytes] | None = None,
) -> bytes:
    """An entry with a part for each payload: partitions 0, 1, … of topic 1. transaction: its number, its offsets."""
    parts = b"".join(
        struct.pack("<IIqIIqqqqiI", 1, len(each), 1, number, 49, 0, NOW_MS, 10 * sequence, 10 * sequence + 1, 1, 0)
        for number, each in enumerate(payloads)
    )
    if transaction is not None:
        number, offsets = transaction
        parts += struct.pack("<IIqIIqqqqiI", 2, len(offsets), number, 0, 0, 0, 0, 0, 0, 0, 0)
        payloads += (offsets,)
    payload = b"".join(payloads)
    rest = struct.pack(
        "<IIQQQq", masked(crc32c(payload, salt)), len(payloads), sequence, sequence - 1 if durable is None else durable,
        len(payload), NOW_MS + sequence,
    ) + parts
    return in_blocks(b"TKJE" + struct.pack("<I", masked(crc32c(rest, salt))) + rest + payload)


def batch(offset: int) -> bytes:
    return encode_batch([pb.Record(value=b"v" * 300).SerializeToString()], offset, 0, NOW_MS, 1, 0)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "0.journal"
    path.write_bytes(header(5) + entry(5, batch(50)) + entry(6, batch(60), batch(60)) + entry(7, batch(70)))
    return path


def test_what_a_journal_holds(journal: Path) -> None:
    done = dump(journal, "--json")
    assert (done.status, done.err) == (0, "")
    (start,) = done.of_type("journal")
    assert (start["first_sequence"], start["salt"], start["created_ms"], start["problem"]) == (5, SALT, NOW_MS, None)
    entries = done.of_type("journal_entry")
    assert [(each["sequence"], each["durable_sequence"], each["stray"]) for each in entries] == [
        (5, 4, False), (6, 5, False), (7, 6, False)
    ]
    assert [each["position"] % 512 for each in entries] == [0, 0, 0]
    parts = done.of_type("journal_part")
    assert [(each["topic_id"], each["partition"], each["base_offset"]) for each in parts] == [
        (1, 0, 50), (1, 0, 60), (1, 1, 60), (1, 0, 70)
    ]
    assert all(each["size_bytes"] == len(batch(50)) and each["position"] == 49 for each in parts)
    (end,) = done.of_type("journal_end")
    assert (end["sequence"], end["position"]) == (8, journal.stat().st_size)
    text = dump(journal).out.splitlines()
    assert text[0].startswith(f"{journal}  journal, ") and len(text) == 9


def test_the_offsets_of_a_transaction(tmp_path: Path) -> None:
    """From the format's table; and what can't be read is told as damage."""
    path = tmp_path / "0.journal"
    offsets = struct.pack("<qII", NOW_MS, 2, 7) + b"billing" + struct.pack("<qIqqIq", 1, 0, 42, 9, 3, 0)
    path.write_bytes(header(5, version=2) + entry(5, batch(50), transaction=(17, offsets)))
    done = dump(path, "--json")
    assert (done.status, done.err) == (0, "")
    (found,) = done.of_type("journal_offsets")
    assert (found["transaction"], found["group_id"], found["committed_ms"]) == (17, "billing", NOW_MS)
    assert found["offsets"] == [
        {"topic_id": 1, "partition": 0, "offset": 42}, {"topic_id": 9, "partition": 3, "offset": 0},
    ]
    (line,) = [line for line in dump(path).out.splitlines() if "transaction" in line]
    assert "group 'billing'" in line and "42 of topic id 1, partition 0, 0 of topic id 9, partition 3" in line
    path.write_bytes(header(5, version=2) + entry(5, batch(50), transaction=(17, offsets[:-1])))
    done = dump(path)
    assert done.status == 1 and "transaction 17: DAMAGED" in done.out


def test_the_end_of_an_earlier_use_is_not_shown(journal: Path) -> None:
    with journal.open("ab") as file:
        file.write(entry(8, batch(80), salt=1) + entry(4, batch(40)))
    done = dump(journal, "--json")
    assert done.status == 0
    assert [each["sequence"] for each in done.of_type("journal_entry")] == [5, 6, 7]


def test_a_torn_last_entry(journal: Path) -> None:
    with journal.open("ab") as file:
        file.write(entry(8, batch(80))[:200])
    done = dump(journal, "--json")
    assert done.status == 0, "a torn end is no damage"
    assert done.of_type("journal_end")[0]["what"] == "the entry is cut short"


@pytest.mark.parametrize("durable", [5, 6])
def test_a_missing_entry(journal: Path, durable: int) -> None:
    """It was there once, when a later one was written knowing that it was synced."""
    middle = entry(6, batch(60))
    spoilt = bytearray(middle)
    spoilt[200] ^= 1
    journal.write_bytes(header(5) + entry(5, batch(50)) + spoilt + entry(7, batch(70), durable=durable))
    done = dump(journal, "--json")
    assert done.status == (1 if durable >= 6 else 0)
    assert [(each["sequence"], each["stray"]) for each in done.of_type("journal_entry")] == [(5, False), (7, True)]
    (end,) = done.of_type("journal_end")
    assert (end["sequence"], end["what"]) == (6, "the checksum of the entry's payload does not match")
    assert ("was there once" in dump(journal).out) == (durable >= 6)


def test_every_bit_of_the_header(journal: Path) -> None:
    """It stands twice: one of them is enough."""
    data = journal.read_bytes()
    spoilt = bytearray(data)
    spoilt[20] ^= 1
    journal.write_bytes(spoilt)
    assert len(dump(journal, "--json").of_type("journal_entry")) == 3
    spoilt[256 + 20] ^= 1
    journal.write_bytes(spoilt)
    done = dump(journal, "--json")
    assert done.status == 1 and done.of_type("journal")[0]["problem"] == "the header's checksum does not match"
    assert not done.of_type("journal_entry")
    journal.write_bytes(b"")
    assert dump(journal).status == 1
