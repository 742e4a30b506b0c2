"""API keys and ACLs as the metadata database keeps them. Functions of the connection, for AccessControl."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from takhin.broker.acl import Acl, Effect, Operation, Pattern, Resource
from takhin.errors import Reason, error

# Of version 6.
ACCESS = (
    # hash: SHA-256 of the whole key. expires_ms: NULL: never.
    """CREATE TABLE api_keys (
        id TEXT NOT NULL PRIMARY KEY,
        name TEXT NOT NULL,
        hash BLOB NOT NULL CHECK (LENGTH(hash) = 32),
        created_ms INTEGER NOT NULL,
        expires_ms INTEGER
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE acls (
        id INTEGER PRIMARY KEY,
        principal TEXT NOT NULL,
        effect TEXT NOT NULL,
        operation TEXT NOT NULL,
        resource TEXT NOT NULL,
        pattern TEXT NOT NULL,
        name TEXT NOT NULL,
        UNIQUE (principal, effect, operation, resource, pattern, name)
    ) STRICT""",
)

_COLUMNS = "principal, effect, operation, resource, pattern, name"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is stored, without the key itself. expires_ms: None: never."""

    id: str
    name: str
    hash: bytes
    created_ms: int
    expires_ms: int | None


def load_access(db: sqlite3.Connection) -> tuple[list[ApiKey], list[Acl]]:
    """Keys in the order of their making, entries by principal."""
    return _load_keys(db), load_acls(db)


def _load_keys(db: sqlite3.Connection) -> list[ApiKey]:
    rows = db.execute("SELECT id, name, hash, created_ms, expires_ms FROM api_keys ORDER BY created_ms, id")
    return [ApiKey(*row) for row in rows]


def load_acls(db: sqlite3.Connection) -> list[Acl]:
    rows = db.execute(f"SELECT {_COLUMNS} FROM acls ORDER BY {_COLUMNS}")
    return [
        Acl(principal, Effect(effect), Operation(operation), Resource(resource), Pattern(pattern), name)
        for principal, effect, operation, resource, pattern, name in rows
    ]


def add_key(db: sqlite3.Connection, key: ApiKey, max_keys: int) -> None:
    if db.execute("SELECT COUNT(*) FROM api_keys").fetchone()[0] >= max_keys:
        raise error(
            Reason.KEY_LIMIT,
            f"there are {max_keys} API keys, as many as this broker takes (limits.api_keys); revoke those that are not "
            "used any more",
            limit=max_keys,
        )
    db.execute(
        "INSERT INTO api_keys (id, name, hash, created_ms, expires_ms) VALUES (?, ?, ?, ?, ?)",
        (key.id, key.name, key.hash, key.created_ms, key.expires_ms),
    )


def remove_key(db: sqlite3.Connection, key_id: str) -> None:
    if not db.execute("DELETE FROM api_keys WHERE id = ?", (key_id,)).rowcount:
        raise error(Reason.KEY_NOT_FOUND, f"there is no API key with id {key_id!r}", key_id=key_id)


def add_acls(db: sqlite3.Connection, entries: Sequence[Acl], max_acls: int) -> int:
    """How many were not there yet; all or none."""
    added = 0
    for entry in entries:
        added += db.execute(
            f"INSERT INTO acls ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", _values(entry)).rowcount
    if added and db.execute("SELECT COUNT(*) FROM acls").fetchone()[0] > max_acls:
        raise error(
            Reason.ACL_LIMIT, f"there would be more than {max_acls} ACL entries (limits.acls)", limit=max_acls)
    return added


def remove_acls(db: sqlite3.Connection, entries: Sequence[Acl]) -> None:
    """All or none."""
    for entry in entries:
        found = db.execute(
            """DELETE FROM acls WHERE principal = ? AND effect = ? AND operation = ? AND resource = ? AND pattern = ?
            AND name = ?""", _values(entry))
        if not found.rowcount:
            raise error(Reason.ACL_NOT_FOUND, f"there is no such ACL entry: {entry}; nothing was removed")


def _values(entry: Acl) -> tuple[str, ...]:
    return tuple(str(value) for value in (
        entry.principal, entry.effect, entry.operation, entry.resource, entry.pattern, entry.name))
