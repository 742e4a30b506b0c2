"""The broker's metadata: topics with their configs, log starts and log epochs; groups with their commits; producers'
ids and names; API keys and ACLs; run state.

Everything is in one SQLite database (sqlite_thread.py: one thread, batched commits, durable when the await returns).
Partitions' logs are found by the topic's id, never by its name, and an id is never given out twice: files that a
deleted topic left behind can't become another topic's.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from takhin.broker.access_store import ACCESS, load_access
from takhin.broker.copy_mark import COPY_MARK, begin_apart
from takhin.broker.group_store import (
    GROUP_MEMBERS,
    StoredGroup,
    begin_partitions,
    ensure_group,
    load_members,
    remove_unused_groups,
    store_members,
)
from takhin.broker.sqlite_thread import Schema, SqliteThread
from takhin.broker.topic_name import check_topic_name
from takhin.broker.transaction_store import TRANSACTIONS, last_transaction, store_transactions
from takhin.config import LARGEST_PARTITIONS_PER_TOPIC
from takhin.errors import Reason, TakhinError, error
from takhin.log.transaction_offsets import TransactionOffsets

T = TypeVar("T")

# Epochs are sfixed32 in batch headers.
MAX_EPOCH = (1 << 31) - 1
# What JavaScript clients can hold in a number.
MAX_PRODUCER_ID = (1 << 53) - 1

# Of version 4.
_PRODUCERS = (
    # One row: the lowest id that was never reserved.
    "CREATE TABLE producer_ids (id INTEGER PRIMARY KEY CHECK (id = 1), next_id INTEGER NOT NULL) STRICT",
    "INSERT INTO producer_ids (id, next_id) VALUES (1, 1)",
    f"""CREATE TABLE producer_names (
        name TEXT NOT NULL PRIMARY KEY,
        producer_id INTEGER NOT NULL UNIQUE,
        epoch INTEGER NOT NULL CHECK (epoch BETWEEN 1 AND {MAX_EPOCH}),
        last_used_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
)

# used_ms: when the group was last seen with members; 0: never.
_GROUP_USE = ("ALTER TABLE consumer_groups ADD COLUMN used_ms INTEGER NOT NULL DEFAULT 0",)


def _check_rows(db: sqlite3.Connection) -> None:
    """Reads what a start reads. Raises ValueError, TakhinError and what the readers raise."""
    for table in ("run", "producer_ids", "transactions"):
        if db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] != 1:
            raise ValueError(f"{table} has no row")
    for topic in read_topics(db):
        check_topic_name(topic.name)
        if topic.num_partitions > LARGEST_PARTITIONS_PER_TOPIC:
            raise ValueError(f"topic {topic.name!r} has {topic.num_partitions} partitions")
    for (highest,) in db.execute("SELECT seq FROM sqlite_sequence"):
        if not isinstance(highest, int):
            raise ValueError(f"the highest id of a topic is {highest!r}")
    _load_producers(db)
    _group_names(db)
    load_members(db)
    load_access(db)


SCHEMA = Schema(
    application_id=int.from_bytes(b"TKMD", "big"),
    version=6,
    migrations={1: _GROUP_USE, 2: GROUP_MEMBERS, 3: _PRODUCERS, 4: TRANSACTIONS, 5: ACCESS},
    may_have=(COPY_MARK,),
    check=_check_rows,
    statements=(
        *ACCESS,
        *_PRODUCERS,
        *TRANSACTIONS,
        # One row. clean: the last run ended by end_run(). A database that was never run counts as clean.
        f"""CREATE TABLE run (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            epoch INTEGER NOT NULL CHECK (epoch BETWEEN 1 AND {MAX_EPOCH}),
            clean INTEGER NOT NULL CHECK (clean IN (0, 1))
        ) STRICT""",
        "INSERT INTO run (id, epoch, clean) VALUES (1, 1, 1)",
        # AUTOINCREMENT: the highest id ever given out is remembered beyond its row.
        """CREATE TABLE topics (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT NOT NULL UNIQUE,
            num_partitions INTEGER NOT NULL CHECK (num_partitions > 0),
            created_ms INTEGER NOT NULL
        ) STRICT""",
        """CREATE TABLE topic_configs (
            topic_id INTEGER NOT NULL REFERENCES topics (id) ON DELETE CASCADE,
            name TEXT NOT NULL,
            value TEXT NOT NULL,
            PRIMARY KEY (topic_id, name)
        ) STRICT, WITHOUT ROWID""",
        # Topics that are gone, but whose files may still be there.
        "CREATE TABLE deleted_topics (topic_id INTEGER PRIMARY KEY) STRICT",
        # Only of partitions whose start has moved.
        """CREATE TABLE log_starts (
            topic_id INTEGER NOT NULL REFERENCES topics (id) ON DELETE CASCADE,
            partition INTEGER NOT NULL CHECK (partition >= 0),
            log_start_offset INTEGER NOT NULL CHECK (log_start_offset >= 0),
            PRIMARY KEY (topic_id, partition)
        ) STRICT, WITHOUT ROWID""",
        # The first offset of each epoch; within a partition both columns rise together.
        f"""CREATE TABLE log_epochs (
            topic_id INTEGER NOT NULL REFERENCES topics (id) ON DELETE CASCADE,
            partition INTEGER NOT NULL CHECK (partition >= 0),
            start_offset INTEGER NOT NULL CHECK (start_offset >= 0),
            epoch INTEGER NOT NULL CHECK (epoch BETWEEN 1 AND {MAX_EPOCH}),
            PRIMARY KEY (topic_id, partition, start_offset)
        ) STRICT, WITHOUT ROWID""",
        "CREATE TABLE consumer_groups (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT",
        """CREATE TABLE committed_offsets (
            group_ref INTEGER NOT NULL REFERENCES consumer_groups (id) ON DELETE CASCADE,
            topic_id INTEGER NOT NULL REFERENCES topics (id) ON DELETE CASCADE,
            partition INTEGER NOT NULL CHECK (partition >= 0),
            next_offset INTEGER NOT NULL CHECK (next_offset >= 0),
            committed_ms INTEGER NOT NULL,
            PRIMARY KEY (group_ref, topic_id, partition)
        ) STRICT, WITHOUT ROWID""",
        # For the deletion of a topic.
        "CREATE INDEX committed_offsets_by_topic ON committed_offsets (topic_id)",
        *_GROUP_USE,
        *GROUP_MEMBERS,
    ),
)


@dataclass(frozen=True, slots=True)
class RunState:
    """How a run begins.

    epoch: what new batches are written under, unless recovery finds cause to raise it further. was_clean: the last run
    ended by end_run(), or there was none.
    """

    epoch: int
    was_clean: bool


@dataclass(frozen=True, slots=True)
class TopicRow:
    """A topic as it is stored.

    configs: those set on the topic, by Kafka's names. log_starts: log start offset by partition, where it has moved
    from 0. epochs: by partition, (epoch, first offset) from old to new, of partitions that have any.
    """

    id: int
    name: str
    num_partitions: int
    created_ms: int
    configs: dict[str, str] = field(default_factory=dict)
    log_starts: dict[int, int] = field(default_factory=dict)
    epochs: dict[int, list[tuple[int, int]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OffsetCommit:
    """The next offset to read of one partition. `topic` is for messages: the id is what counts."""

    topic_id: int
    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class ProducerName:
    """A producer's name with its id and its epoch. last_used_ms: by the broker's clock."""

    name: str
    id: int
    epoch: int
    last_used_ms: int


@dataclass(frozen=True, slots=True)
class Committed:
    """What a group has committed for one partition: the next offset to read, and when."""

    offset: int
    committed_ms: int


@dataclass(frozen=True, slots=True)
class OffsetReset:
    """Where a group is to stand in one partition. `topic` is for messages.

    new_offset gives the offset for the committed one (None: there is none); it runs on the database's thread, and when
    it raises, nothing is reset.
    """

    topic_id: int
    topic: str
    partition: int
    new_offset: Callable[[int | None], int]


class MetadataStore:
    """The database at `path`. Every coroutine returns when what it did is durable.

    on_failure(message) is called once, on the event loop, when the database fails; see SqliteThread. Besides what
    each method names, all of them raise DISK_FULL (changes only), INTERNAL_ERROR and DRAINING as SqliteThread does.
    """

    def __init__(self, path: str, on_failure: Callable[[str], None]):
        self._db = SqliteThread(path, SCHEMA, on_failure)
        self._under_way: set[asyncio.Task[Any]] = set()

    async def through(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which goes on to its end when who waits for it is cancelled.

        For a change that is to show in memory, or on the disk, as well: it can't be called back once it is queued here,
        and a call is cancelled whenever its client leaves.
        """
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def settle(self) -> None:
        """Return when nothing is under way any more of what was given to through()."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    def open(self) -> None:
        """Opens or makes the database, and checks it. Blocks. Raises StartError."""
        self._db.open()

    async def close(self) -> None:
        """Finishes what is queued and closes the file; leaves the clean mark alone. May be called twice."""
        await self._db.close()

    async def begin_run(self) -> RunState:
        """Takes the clean mark off, and raises the epoch by one when the last run left none. On a copy that a backup
        made, the first run gives out nothing that the original or another copy may have given out since."""
        return await self._db.write(_begin_run)

    async def end_run(self) -> None:
        """Sets the clean mark: the last thing a run does, when all logs are synced and closed."""
        await self._db.write(_end_run)

    async def raise_epoch(self, at_least: int) -> int:
        """The new epoch: one more than the higher of `at_least` and the stored one."""
        return await self._db.write(lambda db: _raise_epoch(db, at_least))

    async def load_topics(self) -> list[TopicRow]:
        """All topics, by name."""
        return await self._db.read(read_topics)

    async def create_topic(
        self, name: str, num_partitions: int, configs: dict[str, str], created_ms: int
    ) -> TopicRow:
        """Raises TOPIC_EXISTS. Name, count and configs are the caller's to check."""
        return await self._db.write(lambda db: _create_topic(db, name, num_partitions, configs, created_ms))

    async def update_topic(self, topic_id: int, num_partitions: int, configs: dict[str, str], now_ms: int) -> None:
        """Replaces the topic's number of partitions and all of its configs; groups begin at the beginning of new ones.

        Raises TOPIC_NOT_FOUND.

        Both are the caller's to check; the number must not be lower than before.
        """
        await self._db.write(lambda db: _update_topic(db, topic_id, num_partitions, configs, now_ms))

    async def delete_topic(self, topic_id: int) -> None:
        """Removes the topic with all that is kept for it, and groups that had no other commits.

        The id is in deleted_topics() until forget_deleted(). Raises TOPIC_NOT_FOUND.
        """
        await self._db.write(lambda db: _delete_topic(db, topic_id))

    async def deleted_topics(self) -> list[int]:
        """Ids of deleted topics whose files may still be there."""
        return await self._db.read(
            lambda db: [row[0] for row in db.execute("SELECT topic_id FROM deleted_topics ORDER BY topic_id")]
        )

    async def forget_deleted(self, topic_id: int) -> None:
        """To be called when the topic's files are durably gone."""
        await self._db.write(lambda db: _forget_deleted(db, topic_id))

    async def set_log_start(self, topic_id: int, partition: int, offset: int) -> None:
        """Moves the log start forward; a lower offset than the stored one changes nothing.

        Epochs that ended at or below it are dropped. Raises TOPIC_NOT_FOUND.
        """
        await self._db.write(lambda db: _set_log_start(db, topic_id, partition, offset))

    async def add_epochs(self, rows: Sequence[tuple[int, int, int, int]]) -> None:
        """Records where epochs begin: (topic id, partition, epoch, first offset); all of them or none.

        Older epochs that begin at the same or a higher offset are dropped: nothing of theirs is left. An epoch that is
        there already, from the same or a lower offset, stays as it is. Raises TOPIC_NOT_FOUND; ValueError for an epoch
        older than the partition's newest, or for one that began later than this says.
        """
        await self._db.write(lambda db: _add_epochs(db, rows))

    async def commit_offsets(
        self, group_id: str, rows: Sequence[OffsetCommit], now_ms: int, max_groups: int
    ) -> None:
        """Commits at least one offset for the group, all or none; the first commit makes the group.

        Raises OFFSET_BEHIND_COMMITTED, GROUP_LIMIT (a new group beyond max_groups), TOPIC_NOT_FOUND (deleted since).
        """
        await self._db.write(lambda db: _commit_offsets(db, group_id, rows, now_ms, max_groups))

    async def check_offsets(self, group_id: str, rows: Sequence[OffsetCommit], max_groups: int) -> None:
        """Raises what commit_offsets() would, but for TOPIC_NOT_FOUND."""
        await self._db.read(lambda db: _check_offsets(db, group_id, rows, max_groups))

    async def last_transaction(self) -> int:
        """The number of the last transaction whose offsets are stored; 0: there was none."""
        return await self._db.read(last_transaction)

    async def store_transactions(self, transactions: Sequence[TransactionOffsets]) -> int:
        """Store the offsets of transactions that have happened, in the order of their numbers; those that are stored
        already are left out. Returns how many were not.

        Nothing is refused: offsets of topics that are gone are left out, and none goes back.
        """
        return await self._db.write(lambda db: store_transactions(db, transactions))

    async def reset_offsets(
        self, group_id: str, resets: Sequence[OffsetReset], now_ms: int, max_groups: int, *, dry_run: bool = False
    ) -> list[tuple[int | None, int]]:
        """Commits offsets that may be lower than the committed ones, all or none. Returns (old, new) of each.

        dry_run: only tells what they would be. Raises GROUP_LIMIT, TOPIC_NOT_FOUND, what new_offset raises.
        """
        if dry_run:
            return await self._db.read(lambda db: _offsets_to_reset(db, group_id, resets, max_groups))
        return await self._db.write(lambda db: _reset_offsets(db, group_id, resets, now_ms, max_groups))

    async def list_groups(self) -> list[str]:
        """All groups' ids, sorted by code point."""
        return await self._db.read(_group_names)

    async def group_offsets(self, group_id: str) -> dict[tuple[int, int], int]:
        """Committed offsets by (topic id, partition). Raises GROUP_NOT_FOUND."""
        return await self._db.read(lambda db: _group_offsets(db, group_id))

    async def group_commits(self, group_id: str) -> dict[tuple[int, int], Committed]:
        """The group's commits by (topic id, partition). Raises GROUP_NOT_FOUND."""
        return await self._db.read(lambda db: _group_commits(db, group_id))

    async def all_commits(self, at_most: int) -> list[tuple[str, int, int, int]]:
        """(group, topic id, partition, next offset) of all groups' commits, of so many at most, by group's name."""
        return await self._db.read(lambda db: db.execute(
            """SELECT name, topic_id, partition, next_offset FROM consumer_groups
            JOIN committed_offsets ON group_ref = id ORDER BY name LIMIT ?""", (at_most,),
        ).fetchall())

    async def expire_groups(self, in_use: Collection[str], now_ms: int, before_ms: int) -> list[str]:
        """Notes that the groups in_use have members now; removes others without any sign of use since before_ms.

        Signs of use are commits, resets and members that were noted. Returns the ids of the removed ones, sorted.
        """
        return await self._db.write(lambda db: _expire_groups(db, in_use, now_ms, before_ms))

    async def ensure_group(self, group_id: str, max_groups: int) -> int:
        """Makes the group when it is not there. Returns its generation. Raises GROUP_LIMIT."""
        return await self._db.write(lambda db: _ensure_group(db, group_id, max_groups))

    async def remove_unused_group(self, group_id: str) -> None:
        """Removes the group if it has neither members nor commits."""
        await self._db.write(lambda db: remove_unused_groups(db, group_id))

    async def remove_unused_groups(self) -> None:
        """All groups that have neither: made for who did not become a member before the broker died."""
        await self._db.write(remove_unused_groups)

    async def store_members(
        self, group_id: str, generation: int, members: Sequence[tuple[str, str]], gone: Sequence[str], now_ms: int
    ) -> dict[tuple[int, int], int]:
        """Stores members (id and what encode_member gives) in place of what was stored of them, and removes others.

        Makes the group when it is not there, and removes it when that leaves it without members and commits. Returns
        its committed offsets, by (topic id, partition).
        """
        return await self._db.write(lambda db: store_members(db, group_id, generation, members, gone, now_ms))

    async def load_members(self) -> list[StoredGroup]:
        """All groups with members."""
        return await self._db.read(load_members)

    async def delete_group(self, group_id: str) -> None:
        """Removes the group and its commits. Raises GROUP_NOT_FOUND."""
        await self._db.write(lambda db: _delete_group(db, group_id))

    async def load_producers(self) -> tuple[int, list[ProducerName]]:
        """The lowest id that was never reserved (1: none was), and all names."""
        return await self._db.read(_load_producers)

    async def reserve_producer_ids(self, at_least: int, count: int) -> int:
        """The first of count ids, none of them below at_least, that were never reserved before."""
        return await self._db.write(lambda db: _reserve_producer_ids(db, at_least, count))

    async def raise_producer_epoch(self, name: str, new_id: int, now_ms: int, max_names: int) -> ProducerName:
        """The name with its epoch raised by one; a new name gets new_id, with epoch 1.

        Raises PRODUCER_LIMIT: a new name beyond max_names, or no epoch left.
        """
        return await self._db.write(lambda db: _raise_producer_epoch(db, name, new_id, now_ms, max_names))

    async def read_access(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """What a function of access_store.py reads."""
        return await self._db.read(read)

    async def change_access(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """What a function of access_store.py changes; raises what that does."""
        return await self._db.write(change)

    async def update_producers(self, used: Sequence[tuple[int, int]], expired: Sequence[tuple[int, int]]) -> None:
        """used: (id, last used in ms). expired: (id, epoch) of names that go, unless the epoch was raised meanwhile."""
        await self._db.write(lambda db: _update_producers(db, used, expired))


def _begin_run(db: sqlite3.Connection) -> RunState:
    begin_apart(db)
    epoch, clean = db.execute("SELECT epoch, clean FROM run").fetchone()
    if clean:
        db.execute("UPDATE run SET clean = 0")
    else:
        epoch = _raise_epoch(db, epoch)
    return RunState(epoch, bool(clean))


def _end_run(db: sqlite3.Connection) -> None:
    db.execute("UPDATE run SET clean = 1")


def _raise_epoch(db: sqlite3.Connection, at_least: int) -> int:
    stored: int = db.execute("SELECT epoch FROM run").fetchone()[0]
    highest = max(at_least, stored)
    if highest >= MAX_EPOCH:
        raise error(Reason.INTERNAL_ERROR, f"the log epoch cannot be raised beyond {MAX_EPOCH}")
    db.execute("UPDATE run SET epoch = ?", (highest + 1,))
    return highest + 1


def read_topics(db: sqlite3.Connection) -> list[TopicRow]:
    """All topics, by name; a function of the connection, also for tools that read a copy."""
    topics = {
        row[0]: TopicRow(*row)
        for row in db.execute("SELECT id, name, num_partitions, created_ms FROM topics ORDER BY name")
    }
    for topic_id, name, value in db.execute("SELECT topic_id, name, value FROM topic_configs"):
        topics[topic_id].configs[name] = value
    for topic_id, partition, offset in db.execute("SELECT topic_id, partition, log_start_offset FROM log_starts"):
        topics[topic_id].log_starts[partition] = offset
    for topic_id, partition, epoch, offset in db.execute(
        "SELECT topic_id, partition, epoch, start_offset FROM log_epochs ORDER BY topic_id, partition, start_offset"
    ):
        topics[topic_id].epochs.setdefault(partition, []).append((epoch, offset))
    return list(topics.values())


def _create_topic(
    db: sqlite3.Connection, name: str, num_partitions: int, configs: dict[str, str], created_ms: int
) -> TopicRow:
    if db.execute("SELECT 1 FROM topics WHERE name = ?", (name,)).fetchone():
        raise error(Reason.TOPIC_EXISTS, f"topic {name!r} exists already", topic=name)
    topic_id = db.execute(
        "INSERT INTO topics (name, num_partitions, created_ms) VALUES (?, ?, ?)", (name, num_partitions, created_ms)
    ).lastrowid
    assert topic_id is not None
    _add_configs(db, topic_id, configs)
    # Who subscribes to a topic of this name has not stopped when the one before was deleted.
    begin_partitions(db, name, topic_id, range(num_partitions), created_ms)
    return TopicRow(topic_id, name, num_partitions, created_ms, dict(configs))


def _add_configs(db: sqlite3.Connection, topic_id: int, configs: dict[str, str]) -> None:
    db.executemany(
        "INSERT INTO topic_configs (topic_id, name, value) VALUES (?, ?, ?)",
        [(topic_id, config, value) for config, value in configs.items()],
    )


def _update_topic(
    db: sqlite3.Connection, topic_id: int, num_partitions: int, configs: dict[str, str], now_ms: int
) -> None:
    row = db.execute("SELECT name, num_partitions FROM topics WHERE id = ?", (topic_id,)).fetchone()
    if row is None:
        raise _no_such_topic_id(topic_id)
    name, before = row
    if num_partitions < before:
        raise ValueError(f"topic id {topic_id} has {before} partitions: there cannot be {num_partitions}")
    if num_partitions > before:
        db.execute("UPDATE topics SET num_partitions = ? WHERE id = ?", (num_partitions, topic_id))
        begin_partitions(db, name, topic_id, range(before, num_partitions), now_ms)
    db.execute("DELETE FROM topic_configs WHERE topic_id = ?", (topic_id,))
    _add_configs(db, topic_id, configs)


def _delete_topic(db: sqlite3.Connection, topic_id: int) -> None:
    groups = db.execute("SELECT DISTINCT group_ref FROM committed_offsets WHERE topic_id = ?", (topic_id,)).fetchall()
    if not db.execute("DELETE FROM topics WHERE id = ?", (topic_id,)).rowcount:
        raise _no_such_topic_id(topic_id)
    db.execute("INSERT INTO deleted_topics (topic_id) VALUES (?)", (topic_id,))
    # A group is its commits: without any it would only count against the limit.
    db.executemany(
        """DELETE FROM consumer_groups WHERE id = :id
        AND NOT EXISTS (SELECT 1 FROM committed_offsets WHERE group_ref = :id)
        AND NOT EXISTS (SELECT 1 FROM group_members WHERE group_ref = :id)""",
        [{"id": group} for (group,) in groups],
    )


def _forget_deleted(db: sqlite3.Connection, topic_id: int) -> None:
    db.execute("DELETE FROM deleted_topics WHERE topic_id = ?", (topic_id,))


def _no_such_topic_id(topic_id: int) -> TakhinError:
    return error(Reason.TOPIC_NOT_FOUND, f"there is no topic with id {topic_id}", topic_id=topic_id)


@contextmanager
def _naming_missing_topic(topic_id: int, topic: str | None = None) -> Iterator[None]:
    """Turns a foreign key's refusal into TOPIC_NOT_FOUND: the topic was deleted while this was on its way."""
    try:
        yield
    except sqlite3.IntegrityError as exception:
        if exception.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
            raise
        if topic is None:
            raise _no_such_topic_id(topic_id) from None
        raise error(Reason.TOPIC_NOT_FOUND, f"topic {topic!r} was deleted", topic=topic) from None


def _set_log_start(db: sqlite3.Connection, topic_id: int, partition: int, offset: int) -> None:
    values = {"topic_id": topic_id, "partition": partition, "offset": offset}
    with _naming_missing_topic(topic_id):
        db.execute(
            """INSERT INTO log_starts (topic_id, partition, log_start_offset) VALUES (:topic_id, :partition, :offset)
            ON CONFLICT DO UPDATE SET log_start_offset = :offset WHERE log_start_offset < :offset""",
            values,
        )
    # The newest epoch that begins at or below the start is the one that holds the first record still there.
    db.execute(
        """DELETE FROM log_epochs WHERE topic_id = :topic_id AND partition = :partition AND start_offset < (
            SELECT MAX(start_offset) FROM log_epochs
            WHERE topic_id = :topic_id AND partition = :partition AND start_offset <= :offset)""",
        values,
    )


def _add_epochs(db: sqlite3.Connection, rows: Sequence[tuple[int, int, int, int]]) -> None:
    for topic_id, partition, epoch, offset in rows:
        newest = db.execute(
            """SELECT epoch, start_offset FROM log_epochs WHERE topic_id = ? AND partition = ?
            ORDER BY start_offset DESC LIMIT 1""",
            (topic_id, partition),
        ).fetchone()
        if newest is not None and epoch <= newest[0]:
            if epoch == newest[0] and offset >= newest[1]:
                continue
            raise ValueError(
                f"partition {partition} of topic id {topic_id} is in epoch {newest[0]} since offset {newest[1]}: "
                f"epoch {epoch} cannot begin at offset {offset}"
            )
        db.execute(
            "DELETE FROM log_epochs WHERE topic_id = ? AND partition = ? AND start_offset >= ?",
            (topic_id, partition, offset),
        )
        with _naming_missing_topic(topic_id):
            db.execute(
                "INSERT INTO log_epochs (topic_id, partition, start_offset, epoch) VALUES (?, ?, ?, ?)",
                (topic_id, partition, offset, epoch),
            )


def _group_ref(db: sqlite3.Connection, group_id: str) -> int | None:
    row = db.execute("SELECT id FROM consumer_groups WHERE name = ?", (group_id,)).fetchone()
    return None if row is None else row[0]


def _check_group_limit(db: sqlite3.Connection, group_id: str, max_groups: int) -> None:
    if db.execute("SELECT COUNT(*) FROM consumer_groups").fetchone()[0] >= max_groups:
        raise error(
            Reason.GROUP_LIMIT,
            f"group {group_id!r} would be one more than the {max_groups} groups allowed (limits.groups)",
            group_id=group_id,
            limit=max_groups,
        )


def _group_ref_or_new(db: sqlite3.Connection, group_id: str, max_groups: int) -> int:
    group = _group_ref(db, group_id)
    if group is None:
        _check_group_limit(db, group_id, max_groups)
        group = db.execute("INSERT INTO consumer_groups (name) VALUES (?)", (group_id,)).lastrowid
        assert group is not None
    return group


def _ensure_group(db: sqlite3.Connection, group_id: str, max_groups: int) -> int:
    if _group_ref(db, group_id) is None:
        _check_group_limit(db, group_id, max_groups)
        ensure_group(db, group_id)
    return db.execute("SELECT generation FROM consumer_groups WHERE name = ?", (group_id,)).fetchone()[0]


def _commit_offsets(
    db: sqlite3.Connection, group_id: str, rows: Sequence[OffsetCommit], now_ms: int, max_groups: int
) -> None:
    group = _group_ref_or_new(db, group_id, max_groups)
    for row in rows:
        _commit_offset(db, group_id, (group, row.topic_id, row.partition), row, now_ms)


def _check_offset(db: sqlite3.Connection, group_id: str, key: tuple[Any, int, int], row: OffsetCommit) -> None:
    found = _committed_offset(db, key)
    if found is not None and row.offset < found:
        raise error(
            Reason.OFFSET_BEHIND_COMMITTED,
            f"offset {row.offset} of topic {row.topic!r} partition {row.partition} is lower than {found}, which "
            f"group {group_id!r} has committed; a commit cannot go back, ResetOffsets can",
            group_id=group_id,
            topic=row.topic,
            partition=row.partition,
            offset=row.offset,
            committed_offset=found,
        )


def _commit_offset(
    db: sqlite3.Connection, group_id: str, key: tuple[Any, int, int], row: OffsetCommit, now_ms: int
) -> None:
    _check_offset(db, group_id, key, row)
    _store_offset(db, key, row.topic, row.offset, now_ms)


def _committed_offset(db: sqlite3.Connection, key: tuple[Any, int, int]) -> int | None:
    """key: the group's row, topic id, partition."""
    found = db.execute(
        "SELECT next_offset FROM committed_offsets WHERE group_ref = ? AND topic_id = ? AND partition = ?", key
    ).fetchone()
    return None if found is None else found[0]


def _store_offset(db: sqlite3.Connection, key: tuple[Any, int, int], topic: str, offset: int, now_ms: int) -> None:
    with _naming_missing_topic(key[1], topic):
        db.execute(
            """INSERT INTO committed_offsets (group_ref, topic_id, partition, next_offset, committed_ms)
            VALUES (?, ?, ?, ?, ?)
            ON CONFLICT DO UPDATE SET next_offset = excluded.next_offset, committed_ms = excluded.committed_ms""",
            (*key, offset, now_ms),
        )


def _check_offsets(db: sqlite3.Connection, group_id: str, rows: Sequence[OffsetCommit], max_groups: int) -> None:
    group = _group_ref(db, group_id)
    if group is None:
        _check_group_limit(db, group_id, max_groups)
    for row in rows:
        _check_offset(db, group_id, (group, row.topic_id, row.partition), row)


def _offsets_to_reset(
    db: sqlite3.Connection, group_id: str, resets: Sequence[OffsetReset], max_groups: int
) -> list[tuple[int | None, int]]:
    group = _group_ref(db, group_id)
    if group is None:
        _check_group_limit(db, group_id, max_groups)
    result = []
    for reset in resets:
        old = _committed_offset(db, (group, reset.topic_id, reset.partition))
        result.append((old, reset.new_offset(old)))
    return result


def _reset_offsets(
    db: sqlite3.Connection, group_id: str, resets: Sequence[OffsetReset], now_ms: int, max_groups: int
) -> list[tuple[int | None, int]]:
    offsets = _offsets_to_reset(db, group_id, resets, max_groups)
    if resets:
        group = _group_ref_or_new(db, group_id, max_groups)
        for reset, (_, offset) in zip(resets, offsets, strict=True):
            _store_offset(db, (group, reset.topic_id, reset.partition), reset.topic, offset, now_ms)
    return offsets


def _group_offsets(db: sqlite3.Connection, group_id: str) -> dict[tuple[int, int], int]:
    group = _group_ref(db, group_id)
    if group is None:
        raise _no_such_group(group_id)
    rows = db.execute("SELECT topic_id, partition, next_offset FROM committed_offsets WHERE group_ref = ?", (group,))
    return {(topic_id, partition): offset for topic_id, partition, offset in rows}


def _group_commits(db: sqlite3.Connection, group_id: str) -> dict[tuple[int, int], Committed]:
    group = _group_ref(db, group_id)
    if group is None:
        raise _no_such_group(group_id)
    rows = db.execute(
        "SELECT topic_id, partition, next_offset, committed_ms FROM committed_offsets WHERE group_ref = ?", (group,)
    )
    return {(topic_id, partition): Committed(offset, at_ms) for topic_id, partition, offset, at_ms in rows}


def _expire_groups(db: sqlite3.Connection, in_use: Collection[str], now_ms: int, before_ms: int) -> list[str]:
    db.executemany("UPDATE consumer_groups SET used_ms = ? WHERE name = ?", [(now_ms, name) for name in in_use])
    idle = db.execute(
        """SELECT id, name FROM consumer_groups WHERE used_ms < :before
        AND NOT EXISTS (SELECT 1 FROM committed_offsets WHERE group_ref = id AND committed_ms >= :before)
        ORDER BY name""",
        {"before": before_ms},
    ).fetchall()
    # in_use once more: the clock may have been set back.
    expired = [(group, name) for group, name in idle if name not in in_use]
    db.executemany("DELETE FROM consumer_groups WHERE id = ?", [(group,) for group, _ in expired])
    return [name for _, name in expired]


def _delete_group(db: sqlite3.Connection, group_id: str) -> None:
    if not db.execute("DELETE FROM consumer_groups WHERE name = ?", (group_id,)).rowcount:
        raise _no_such_group(group_id)


def _no_such_group(group_id: str) -> TakhinError:
    return error(Reason.GROUP_NOT_FOUND, f"there is no group {group_id!r}", group_id=group_id)


def _group_names(db: sqlite3.Connection) -> list[str]:
    return [row[0] for row in db.execute("SELECT name FROM consumer_groups ORDER BY name")]


def _load_producers(db: sqlite3.Connection) -> tuple[int, list[ProducerName]]:
    names = db.execute("SELECT name, producer_id, epoch, last_used_ms FROM producer_names").fetchall()
    return db.execute("SELECT next_id FROM producer_ids").fetchone()[0], [ProducerName(*row) for row in names]


def _reserve_producer_ids(db: sqlite3.Connection, at_least: int, count: int) -> int:
    first = max(db.execute("SELECT next_id FROM producer_ids").fetchone()[0], at_least)
    if first + count > MAX_PRODUCER_ID:
        raise error(Reason.PRODUCER_LIMIT, f"there are no producer ids left below {MAX_PRODUCER_ID}")
    db.execute("UPDATE producer_ids SET next_id = ?", (first + count,))
    return first


def _raise_producer_epoch(
    db: sqlite3.Connection, name: str, new_id: int, now_ms: int, max_names: int
) -> ProducerName:
    found = db.execute("SELECT producer_id, epoch FROM producer_names WHERE name = ?", (name,)).fetchone()
    if found is None and db.execute("SELECT COUNT(*) FROM producer_names").fetchone()[0] >= max_names:
        raise error(
            Reason.PRODUCER_LIMIT,
            f"producer {name!r} would be one more than the {max_names} names allowed (limits.producers)",
            max_producers=max_names,
        )
    producer_id, epoch = (found[0], found[1] + 1) if found is not None else (new_id, 1)
    if epoch > MAX_EPOCH:
        raise error(Reason.PRODUCER_LIMIT, f"producer {name!r} has had {MAX_EPOCH} epochs: take another name")
    db.execute(
        """INSERT INTO producer_names (name, producer_id, epoch, last_used_ms) VALUES (?, ?, ?, ?)
        ON CONFLICT (name) DO UPDATE SET
            producer_id = excluded.producer_id, epoch = excluded.epoch, last_used_ms = excluded.last_used_ms""",
        (name, producer_id, epoch, now_ms),
    )
    return ProducerName(name, producer_id, epoch, now_ms)


def _update_producers(
    db: sqlite3.Connection, used: Sequence[tuple[int, int]], expired: Sequence[tuple[int, int]]
) -> None:
    db.executemany(
        "UPDATE producer_names SET last_used_ms = ? WHERE producer_id = ?", [(ms, producer) for producer, ms in used]
    )
    db.executemany("DELETE FROM producer_names WHERE producer_id = ? AND epoch = ?", expired)
