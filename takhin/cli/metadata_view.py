"""What meta.db tells, read from a copy: opening the database itself would change its files."""

import os
import shutil
import sqlite3
import tempfile
from dataclasses import dataclass

from takhin.broker.metadata import SCHEMA, TopicRow, read_topics
from takhin.broker.sqlite_thread import check_files, check_marks, damaged, make_current, why_not
from takhin.errors import StartError

_FILES = ("meta.db", "meta.db-wal", "meta.db.sum")


class MetadataError(Exception):
    """The database is damaged, or none of Takhin's. One line for the operator."""


@dataclass(frozen=True, slots=True)
class MetadataView:
    """highest_topic_id: ever given out. deleted: ids of topics whose files may still be there. commits: of groups, the
    highest next offset by (topic id, partition), and the group's name."""

    epoch: int
    was_clean: bool
    topics: list[TopicRow]
    deleted: frozenset[int]
    highest_topic_id: int
    commits: dict[tuple[int, int], tuple[int, str]]


def read_metadata(data_dir: str) -> MetadataView | None:
    """None when the directory has no database. Raises MetadataError, OSError."""
    if not os.path.exists(os.path.join(data_dir, "meta.db")):
        return None
    with tempfile.TemporaryDirectory(prefix="takhin-") as directory:
        for name in _FILES:
            if os.path.exists(os.path.join(data_dir, name)):
                shutil.copyfile(os.path.join(data_dir, name), os.path.join(directory, name))
        return read_copy(directory, data_dir)


def read_copy(directory: str, data_dir: str) -> MetadataView | None:
    """As read_metadata(), of a copy in a directory, whose files this changes. data_dir: for messages."""
    try:
        check_files(os.path.join(directory, "meta.db"))
        db = sqlite3.connect(os.path.join(directory, "meta.db"), isolation_level=None)
        try:
            db.execute("PRAGMA synchronous=OFF")
            return _read(db, os.path.join(data_dir, "meta.db"))
        finally:
            db.close()
    except (sqlite3.Error, UnicodeDecodeError) as problem:
        raise MetadataError(why_not(os.path.join(data_dir, "meta.db"), problem)) from problem
    except StartError as problem:
        raise MetadataError(str(problem).replace(directory, data_dir)) from problem


def _read(db: sqlite3.Connection, path: str) -> MetadataView | None:
    if check_marks(db, path, SCHEMA):
        return None  # the first start was killed before it had made the tables
    findings = [row[0] for row in db.execute("PRAGMA integrity_check(10)")]
    if findings != ["ok"]:
        raise MetadataError(damaged(path, "; ".join(findings)))
    broken = db.execute("PRAGMA foreign_key_check").fetchone()
    if broken is not None:
        raise MetadataError(damaged(path, f"a row of {broken[0]} belongs to nothing"))
    db.execute("BEGIN")
    make_current(db, path, SCHEMA)
    db.execute("ROLLBACK")
    run = db.execute("SELECT epoch, clean FROM run").fetchone()
    highest = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'topics'").fetchone()
    commits = {
        (topic_id, partition): (offset, group)
        for topic_id, partition, offset, group in db.execute(
            """SELECT topic_id, partition, MAX(next_offset), name
            FROM committed_offsets JOIN consumer_groups ON consumer_groups.id = group_ref
            GROUP BY topic_id, partition"""
        )
    }
    deleted = frozenset(row[0] for row in db.execute("SELECT topic_id FROM deleted_topics"))
    return MetadataView(run[0], bool(run[1]), read_topics(db), deleted, highest[0] if highest else 0, commits)
