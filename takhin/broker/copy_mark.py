"""The mark of a copy in the metadata database, and what the first start on one does for it.

A copy's original may have gone on: it has given out epochs, ids and generations that the copy knows nothing of, and
would give out once more, to others. Offsets would have two values in one epoch; of two producers that bear one id, the
second one's records would count as duplicates, and be dropped. So the first start on a copy leaves a gap before what it
gives out. The gap is drawn at random there, not when the copy is made: several may be started from one copy.
"""

import secrets
import sqlite3

COPY_MARK = "CREATE TABLE IF NOT EXISTS copy_mark (id INTEGER PRIMARY KEY) STRICT"

# Of what is given out one at a time, and at most 2^31 - 1 times: far more than an original gives out after it was
# copied, and room for thousands of copies of copies.
LEAST_GAP, LARGEST_GAP = 1 << 10, 1 << 20
# Of producers' ids, of which there are 2^53 - 1.
LEAST_ID_GAP, LARGEST_ID_GAP = 1 << 32, 1 << 40

# None goes beyond what there is: that all has been given out, whoever asks for the next one is told.
_GAPS = (
    ("UPDATE run SET epoch = MIN(epoch + ?, 2147483647)", LEAST_GAP, LARGEST_GAP),
    ("UPDATE producer_ids SET next_id = MIN(next_id + ?, 9007199254740991)", LEAST_ID_GAP, LARGEST_ID_GAP),
    # Whoever bears a name has to ask for it anew.
    ("UPDATE producer_names SET epoch = MIN(epoch + ?, 2147483647)", LEAST_GAP, LARGEST_GAP),
    ("UPDATE consumer_groups SET generation = MIN(generation + ?, 2147483647)", LEAST_GAP, LARGEST_GAP),
    ("UPDATE sqlite_sequence SET seq = seq + ? WHERE name = 'topics'", LEAST_GAP, LARGEST_GAP),
)


def mark_copy(db: sqlite3.Connection) -> None:
    """In whatever format the database is: a broker that does not know the mark leaves it to one that does."""
    db.execute(COPY_MARK)


def begin_apart(db: sqlite3.Connection) -> bool:
    """To be called in the transaction that begins a run. Whether this is the first one on a copy: then all that is
    given out from here on is neither the original's nor another copy's, and the mark is gone. Raises sqlite3.Error."""
    if db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'copy_mark'").fetchone() is None:
        return False
    # There is no such row before the first topic.
    db.execute("""INSERT INTO sqlite_sequence (name, seq)
        SELECT 'topics', 0 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'topics')""")
    for statement, least, largest in _GAPS:
        db.execute(statement, (least + secrets.randbelow(largest - least),))
    db.execute("DROP TABLE copy_mark")
    return True
