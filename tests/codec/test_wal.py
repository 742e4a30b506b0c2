"""The checksum of SQLite's write-ahead log, against its definition and against SQLite."""

import random
import sqlite3
import struct
from pathlib import Path

import pytest

from takhin.codec.wal import wal_checksum


def model(before: tuple[int, int], data: bytes, order: str) -> tuple[int, int]:
    one, two = before
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) % 2**32
        two = (two + second + one) % 2**32
    return one, two


@pytest.mark.parametrize("order", ["<", ">"])
def test_as_it_is_defined(order: str) -> None:
    rng = random.Random(1)
    state = (0, 0)
    for words in (0, 2, 4, 6, 1024, 16384):
        data = rng.randbytes(4 * words)
        expected = model(state, data, order)
        assert wal_checksum(state, data, big_endian=order == ">") == expected
        # In pieces, and from memory that is not aligned.
        half = wal_checksum(state, data[:words // 4 * 8], big_endian=order == ">")
        rest = memoryview(b"x" + data)[1 + words // 4 * 8:]
        assert wal_checksum(half, rest, big_endian=order == ">") == expected
        state = expected
    assert wal_checksum((2**32 - 1, 2**32 - 1), b"\xff" * 8, big_endian=False) == model(
        (2**32 - 1, 2**32 - 1), b"\xff" * 8, order
    )


def test_as_sqlite_has_it(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "db")
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE t (x)")
    db.commit()
    wal = (tmp_path / "db-wal").read_bytes()
    magic, *_, one, two = struct.unpack(">8I", wal[:32])
    is_big_endian = bool(magic & 1)
    state = wal_checksum((0, 0), wal[:24], big_endian=is_big_endian)
    assert state == (one, two)
    page = wal_checksum(state, wal[32:40], big_endian=is_big_endian)
    assert wal_checksum(page, wal[56:56 + 4096], big_endian=is_big_endian) == struct.unpack(">2I", wal[48:56])
    db.close()


@pytest.mark.parametrize("size", [1, 4, 7, 12])
def test_no_pairs_of_words(size: int) -> None:
    with pytest.raises(ValueError, match="no pairs of words"):
        wal_checksum((0, 0), bytes(size), big_endian=False)
