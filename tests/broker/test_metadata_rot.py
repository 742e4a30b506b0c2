"""A metadata database that has rotted without a checksum to tell: it is refused at the start, in one line, and what
only looks at it says so too."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from takhin.broker.copy_mark import mark_copy
from takhin.broker.group import Description, Member
from takhin.broker.group_store import encode_member
from takhin.broker.metadata import MetadataStore
from takhin.broker.sqlite_files import sum_path
from takhin.cli.metadata_view import MetadataError, read_metadata
from takhin.errors import StartError

NOW_MS = 1_700_000_000_000
NO_TEXT = "CAST(x'72E574' AS TEXT)"


def unexpected_failure(message: str) -> None:
    raise AssertionError(message)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A database with a row of each kind, without the sum that a stop has left."""
    path = tmp_path / "meta.db"

    async def fill() -> None:
        store = MetadataStore(str(path), unexpected_failure)
        store.open()
        await store.begin_run()
        topic = await store.create_topic("t", 2, {"retention.ms": "1000"}, NOW_MS)
        await store.add_epochs([(topic.id, 0, 1, 0)])
        await store.end_run()
        await store.close()

    asyncio.run(fill())
    os.unlink(sum_path(str(path)))
    described = Description(frozenset({"t"}), "range", 10_000, "client", "host")
    db = sqlite3.connect(path)
    db.execute("INSERT INTO consumer_groups (id, name) VALUES (1, 'g')")
    db.execute("INSERT INTO group_members VALUES (1, 'm', ?)", (encode_member(Member("m", described)),))
    db.execute("INSERT INTO acls VALUES (1, 'p', 'allow', 'produce', 'topic', 'literal', 't')")
    db.execute("INSERT INTO api_keys VALUES ('i', 'n', ?, 5, NULL)", (bytes(32),))
    db.execute("INSERT INTO producer_names VALUES ('p', 1, 1, 5)")
    db.commit()
    db.close()
    return path


def refusal(path: Path) -> str:
    before = path.read_bytes()
    with pytest.raises(StartError) as caught:
        MetadataStore(str(path), unexpected_failure).open()
    message = str(caught.value)
    assert message.startswith(f"the metadata database {path} is damaged (") and message.isprintable()
    assert path.read_bytes() == before
    return message


def test_what_has_not_rotted(filled: Path) -> None:
    store = MetadataStore(str(filled), unexpected_failure)
    store.open()
    asyncio.run(store.close())
    assert read_metadata(str(filled.parent)) is not None


@pytest.mark.parametrize(("table", "text", "rotten"), [
    ("topic_configs", "REFERENCES topics", "REFERENCES tmpics"), ("topic_configs", "value TEXT", "valte TEXT"),
    ("committed_offsets", "committed_ms INTEGER", "committed_ms INTEGES"),
    ("deleted_topics", "PRIMARY KEY", "UNIQUE     "), ("committed_offsets_by_topic", "(topic_id)", "(partition)"),
    ("run", "2147483647", "2147<83647"), ("consumer_groups", "DEFAULT 0", "DEFAULT 1"),
])
def test_a_schema_that_is_almost_right(filled: Path, table: str, text: str, rotten: str) -> None:
    """SQLite can parse it. What opens it and what only looks at it say so alike."""
    db = sqlite3.connect(filled)
    db.execute("PRAGMA writable_schema=ON")
    changed = "UPDATE sqlite_schema SET sql = replace(sql, ?, ?) WHERE name = ? AND sql LIKE ?"
    assert db.execute(changed, (text, rotten, table, f"%{text}%")).rowcount == 1
    db.commit()
    db.close()
    assert "is damaged" in refusal(filled)
    with pytest.raises(MetadataError, match="is damaged"):
        read_metadata(str(filled.parent))


def test_a_mark_of_a_copy_that_is_almost_right(filled: Path) -> None:
    """Not taken for one, it would let the copy give out what its original has given out."""
    db = sqlite3.connect(filled)
    mark_copy(db)
    db.execute("PRAGMA writable_schema=ON")
    db.execute("""UPDATE sqlite_schema SET name = 'copy_marc', tbl_name = 'copy_marc',
        sql = replace(sql, 'copy_mark', 'copy_marc') WHERE name = 'copy_mark'""")
    db.commit()
    db.close()
    assert "'copy_marc'" in refusal(filled)


def test_a_schema_that_is_no_text(filled: Path) -> None:
    data = bytearray(filled.read_bytes())
    data[data.index(b"committed_ms INTEGER") + 2] ^= 0x80
    filled.write_bytes(data)
    assert "'committed_offsets'" in refusal(filled)


def test_a_header_that_lets_nothing_be_written(filled: Path) -> None:
    """SQLite reads such a file, and refuses the first write: https://sqlite.org/fileformat2.html, 1.3.3."""
    data = bytearray(filled.read_bytes())
    assert data[18] == 2
    data[18] = 3
    filled.write_bytes(data)
    assert "its header does not let it be written" in refusal(filled)
    with pytest.raises(MetadataError, match="its header does not let it be written"):
        read_metadata(str(filled.parent))


def test_a_file_that_may_not_be_written(filled: Path) -> None:
    filled.chmod(0o444)
    # Who may write to whatever he likes is the only one to whom this would be none.
    command = ["setpriv", "--bounding-set", "-dac_override"] if os.geteuid() == 0 else []
    opening = "import sys; from takhin.broker.metadata import MetadataStore; MetadataStore(sys.argv[1], print).open()"
    done = subprocess.run([*command, sys.executable, "-c", opening, filled], capture_output=True, text=True)
    assert f"StartError: the metadata database {filled} cannot be opened: Permission denied" in done.stderr


def test_text_that_a_terminal_would_obey(filled: Path) -> None:
    db = sqlite3.connect(filled)
    db.execute("UPDATE topics SET name = CAST(x'1B5B324A0AE5' AS TEXT)")
    db.commit()
    db.close()
    assert "[2J" in refusal(filled)
    with pytest.raises(MetadataError) as caught:
        read_metadata(str(filled.parent))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("change", [
    f"UPDATE topics SET name = {NO_TEXT}", "UPDATE topics SET name = 't!'",
    f"UPDATE topic_configs SET value = {NO_TEXT}",
    f"UPDATE consumer_groups SET name = {NO_TEXT}", f"UPDATE group_members SET member_id = {NO_TEXT}",
    f"UPDATE api_keys SET name = {NO_TEXT}", f"UPDATE producer_names SET name = {NO_TEXT}",
    f"UPDATE acls SET principal = {NO_TEXT}", f"UPDATE sqlite_sequence SET seq = {NO_TEXT}",
    "UPDATE sqlite_sequence SET seq = 'a'", "UPDATE topics SET num_partitions = 100000000",
    "UPDATE acls SET operation = 'prodube'", "UPDATE group_members SET state = '[x'",
    "UPDATE group_members SET state = replace(state, 'topics', 'topicz')",
    "UPDATE group_members SET state = replace(state, 'owned', 'ownes')",
    "UPDATE group_members SET state = replace(state, '10000', '\"a\"')",
    "UPDATE group_members SET state = replace(state, '[\"t\"]', '[8]')",
    "UPDATE group_members SET state = replace(state, '\"owned\": []', '\"owned\": [[\"t\", 0, \"a\", 1]]')",
    "DELETE FROM run", "DELETE FROM producer_ids", "DELETE FROM transactions",
])
def test_a_row_that_no_broker_has_written(filled: Path, change: str) -> None:
    db = sqlite3.connect(filled)
    assert db.execute(change).rowcount == 1
    db.commit()
    db.close()
    refusal(filled)
    with pytest.raises(MetadataError, match="is damaged"):
        read_metadata(str(filled.parent))
