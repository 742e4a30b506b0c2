"""The offsets that transactions commit, in the metadata database: each transaction is stored once, in order."""

import sqlite3
from collections.abc import Sequence

from takhin.log.transaction_offsets import TransactionOffsets

TRANSACTIONS = (
    # One row: the number of the last transaction whose offsets are stored.
    "CREATE TABLE transactions (id INTEGER PRIMARY KEY CHECK (id = 1), last_number INTEGER NOT NULL) STRICT",
    "INSERT INTO transactions (id, last_number) VALUES (1, 0)",
)


def last_transaction(db: sqlite3.Connection) -> int:
    """0: there was none."""
    number: int = db.execute("SELECT last_number FROM transactions").fetchone()[0]
    return number


def store_transactions(db: sqlite3.Connection, transactions: Sequence[TransactionOffsets]) -> int:
    """As MetadataStore.store_transactions() has it."""
    last = last_transaction(db)
    missing = [transaction for transaction in transactions if transaction.number > last]
    for transaction in missing:
        _store(db, transaction)
    if missing:
        db.execute("UPDATE transactions SET last_number = ?", (missing[-1].number,))
    return len(missing)


def _store(db: sqlite3.Connection, transaction: TransactionOffsets) -> None:
    rows = [
        row for row in transaction.offsets if db.execute("SELECT 1 FROM topics WHERE id = ?", row[:1]).fetchone()
    ]
    if not rows:
        # A group is its commits.
        return
    db.execute("INSERT INTO consumer_groups (name) VALUES (?) ON CONFLICT DO NOTHING", (transaction.group_id,))
    (group,) = db.execute("SELECT id FROM consumer_groups WHERE name = ?", (transaction.group_id,)).fetchone()
    db.executemany(
        """INSERT INTO committed_offsets (group_ref, topic_id, partition, next_offset, committed_ms)
        VALUES (?, ?, ?, ?, ?)
        ON CONFLICT DO UPDATE SET
            next_offset = MAX(next_offset, excluded.next_offset), committed_ms = excluded.committed_ms""",
        [(group, *row, transaction.committed_ms) for row in rows],
    )
