"""Members of groups as the metadata database keeps them: so that they survive the broker, for their grace.

Functions of the connection, for MetadataStore.
"""

import json
import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from takhin.broker.assignors import GroupPartition
from takhin.broker.group import Description, Member

# Of version 3.
GROUP_MEMBERS = (
    "ALTER TABLE consumer_groups ADD COLUMN generation INTEGER NOT NULL DEFAULT 0",
    # state: what encode_member() gives, in JSON.
    """CREATE TABLE group_members (
        group_ref INTEGER NOT NULL REFERENCES consumer_groups (id) ON DELETE CASCADE,
        member_id TEXT NOT NULL,
        state TEXT NOT NULL,
        PRIMARY KEY (group_ref, member_id)
    ) STRICT, WITHOUT ROWID""",
)


@dataclass(frozen=True, slots=True)
class StoredGroup:
    """A group with members, as it was when it was last stored."""

    group_id: str
    generation: int
    members: tuple[Member, ...]


def encode_member(member: Member) -> str:
    """What of a member outlives the broker: who it is and what it has."""
    described = member.description
    return json.dumps({
        "topics": sorted(described.topics), "assignor": described.assignor,
        "session_timeout_ms": described.session_timeout_ms, "client_id": described.client_id,
        "client_host": described.client_host, "instance_id": described.instance_id,
        "owned": [[each.topic, each.partition, each.topic_id, since] for each, since in member.owned.items()],
    })


def _decode_member(member_id: str, state: str) -> Member:
    """Raises KeyError, TypeError, ValueError when it is not what encode_member() gave."""
    stored = json.loads(state)
    owned = {GroupPartition(topic, number, topic_id): since for topic, number, topic_id, since in stored.pop("owned")}
    stored["topics"] = frozenset(stored["topics"])
    member = Member(member_id, Description(**stored), owned)
    described = member.description
    texts = [described.assignor, described.client_id, described.client_host, described.instance_id, *described.topics]
    numbers = [described.session_timeout_ms]
    for (topic, number, topic_id), since in owned.items():
        texts.append(topic)
        numbers += number, topic_id, since
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(number, int) for number in numbers):
        raise ValueError(f"member {member_id!r} has {state}")
    return member


def ensure_group(db: sqlite3.Connection, group_id: str) -> None:
    db.execute("INSERT INTO consumer_groups (name) VALUES (?) ON CONFLICT DO NOTHING", (group_id,))


def remove_unused_groups(db: sqlite3.Connection, group_id: str | None = None) -> None:
    """Removes the group, or any, without members and commits."""
    named, names = ("name = ? AND", (group_id,)) if group_id is not None else ("", ())
    db.execute(
        f"""DELETE FROM consumer_groups WHERE {named} NOT EXISTS (SELECT 1 FROM group_members WHERE group_ref = id)
        AND NOT EXISTS (SELECT 1 FROM committed_offsets WHERE group_ref = id)""",
        names,
    )


def store_members(
    db: sqlite3.Connection, group_id: str, generation: int, members: Iterable[tuple[str, str]], gone: Collection[str],
    now_ms: int,
) -> dict[tuple[int, int], int]:
    ensure_group(db, group_id)
    group = db.execute("SELECT id FROM consumer_groups WHERE name = ?", (group_id,)).fetchone()[0]
    db.execute("UPDATE consumer_groups SET generation = ?, used_ms = ? WHERE id = ?", (generation, now_ms, group))
    db.executemany(
        "DELETE FROM group_members WHERE group_ref = ? AND member_id = ?", [(group, member_id) for member_id in gone]
    )
    db.executemany(
        """INSERT INTO group_members (group_ref, member_id, state) VALUES (?, ?, ?)
        ON CONFLICT DO UPDATE SET state = excluded.state""",
        [(group, member_id, state) for member_id, state in members],
    )
    rows = db.execute("SELECT topic_id, partition, next_offset FROM committed_offsets WHERE group_ref = ?", (group,))
    committed = {(topic_id, partition): offset for topic_id, partition, offset in rows}
    if not committed:
        # Without commits and without members it is no group any more.
        db.execute(
            """DELETE FROM consumer_groups WHERE id = :id
            AND NOT EXISTS (SELECT 1 FROM group_members WHERE group_ref = :id)""",
            {"id": group},
        )
    return committed


def begin_partitions(db: sqlite3.Connection, topic: str, topic_id: int, numbers: range, now_ms: int) -> None:
    """New partitions begin, for every group that reads their topic, at their beginning: what is appended before a
    member is given them, or while the group has none, is not missed for want of a commit.

    A group reads a topic when a member subscribes to it, or when it has commits for it.
    """
    groups = {
        group for group, state in db.execute("SELECT group_ref, state FROM group_members")
        if topic in json.loads(state)["topics"]
    }
    groups.update(group for group, in db.execute(
        "SELECT DISTINCT group_ref FROM committed_offsets WHERE topic_id = ?", (topic_id,)
    ))
    db.executemany(
        """INSERT INTO committed_offsets (group_ref, topic_id, partition, next_offset, committed_ms)
        VALUES (?, ?, ?, 0, ?) ON CONFLICT DO NOTHING""",
        ((group, topic_id, number, now_ms) for group in groups for number in numbers),
    )


def load_members(db: sqlite3.Connection) -> list[StoredGroup]:
    groups: dict[int, tuple[str, int, list[Member]]] = {}
    for group, name, generation, member_id, state in db.execute(
        """SELECT id, name, generation, member_id, state FROM consumer_groups JOIN group_members ON group_ref = id
        ORDER BY id, member_id"""
    ):
        groups.setdefault(group, (name, generation, []))[2].append(_decode_member(member_id, state))
    return [StoredGroup(name, generation, tuple(members)) for name, generation, members in groups.values()]
