"""One SQLite database on one thread of its own, with batched durable commits.

Operations are functions of the connection. They are queued from an event loop; the thread takes all that is queued,
runs them in one transaction, each in a savepoint of its own, and commits once: what arrives during one commit's sync
shares the next. An operation's awaitable resolves after the commit, so whatever it tells is durable by then.

The connection holds the file's lock exclusively. Nobody else can write or checkpoint beside it, which keeps it clear of
the WAL-reset corruption of SQLite before 3.51.3 (it takes two connections), and there is no shared-memory file that a
full disk could fail to grow.
"""

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future as ThreadFuture
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from takhin.broker.sqlite_files import damaged_frame, leave_sum, make_private, sum_path, sync_directory_of, take_sum
from takhin.errors import Reason, StartError, TakhinError, error

T = TypeVar("T")

# STRICT tables came with it.
OLDEST_SQLITE = (3, 37, 0)
# How long open() waits for another process (a shell someone left open) to let go of the file.
LOCK_WAIT_S = 2.0
# Rows changed between two checkpoints. A row dirties few pages and neighbours share them: the WAL stays at a few MiB.
CHECKPOINT_ROWS = 1000
# A WAL that one large batch has blown up is cut back to this at the next checkpoint.
WAL_KEPT_BYTES = 8 << 20

# Result codes that say the operation was wrong, not the database. Any other one, SQLITE_FULL apart, is the database's.
_OPERATION_CODES = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_RANGE,
        sqlite3.SQLITE_MISUSE,
    }
)

# Bytes, as what has rotted may be no text. Where a table begins is no part of it.
_SCHEMA_ROWS = """SELECT CAST(type AS BLOB), CAST(name AS BLOB), CAST(tbl_name AS BLOB), CAST(sql AS BLOB)
    FROM sqlite_schema"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Schema:
    """What a database file must be, and how a new one is made so.

    application_id: SQLite's 32-bit mark of whose file this is. version: kept as user_version.
    statements: run once, in the transaction that also sets both marks. migrations: what makes a file of the next
    version of one that has the version they stand under; an older file goes through all of them when it is opened.
    may_have: statements that make what a file may have besides. check: reads what is stored, as it will be read; what
    it raises says that a row has rotted.
    """

    application_id: int
    version: int
    statements: Sequence[str]
    migrations: Mapping[int, Sequence[str]] = field(default_factory=dict)
    may_have: Sequence[str] = ()
    check: Callable[[sqlite3.Connection], None] = lambda db: None


@dataclass(frozen=True, slots=True)
class _Operation:
    run: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any]
    writes: bool


@dataclass(frozen=True, slots=True)
class _Outcome:
    future: asyncio.Future[Any]
    result: Any = None
    exception: BaseException | None = None


class SqliteThread:
    """The database at `path`, open from open() to close().

    on_failure(message): called once, on the event loop, when the database can no longer be trusted (an I/O error, a
    failed sync, corruption). Every operation fails from then on; what was committed before stays.
    """

    def __init__(self, path: str, schema: Schema, on_failure: Callable[[str], None]):
        self._path = path
        self._schema = schema
        self._on_failure = on_failure
        self._queue: SimpleQueue[_Operation | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._db: sqlite3.Connection
        self._closed = False
        self._failed = False
        self._full = False
        self._checkpointed_rows = 0
        self._checkpointed_pages = 0

    def open(self) -> None:
        """Opens the file, makes it when it is missing, checks it whole. Blocks. Raises StartError."""
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            oldest = ".".join(map(str, OLDEST_SQLITE))
            raise StartError(f"Python's SQLite is {sqlite3.sqlite_version}; {oldest} or newer is needed")
        opened: ThreadFuture[None] = ThreadFuture()
        self._thread = threading.Thread(target=self._main, args=(opened,), name="takhin-metadata", daemon=True)
        self._thread.start()
        opened.result()

    async def close(self) -> None:
        """Lets what is queued finish, then checkpoints and closes. May be called twice."""
        self._closed = True
        if self._thread is not None:
            self._queue.put(None)
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    async def read(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """run(connection)'s result or exception; it must change nothing, and works on a full disk too.

        Neither here nor in write() may the result hold on to a cursor: those belong to the thread.
        """
        return await self._submit(run, writes=False)

    async def write(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """run(connection)'s result once it is durable; when it raises, only its own changes are rolled back.

        Raises besides: DISK_FULL (nothing was changed; works again once there is room), INTERNAL_ERROR (the database
        has failed), DRAINING (after close()).
        """
        return await self._submit(run, writes=True)

    async def _submit(self, run: Callable[[sqlite3.Connection], T], writes: bool) -> T:
        if self._failed:
            raise _failed_before()
        if self._closed:
            raise error(Reason.DRAINING, "the broker is shutting down; nothing was changed")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put(_Operation(run, future, writes))
        return await future

    # Everything below runs on the thread.

    def _main(self, opened: ThreadFuture[None]) -> None:
        try:
            self._db, self._checkpointed_pages = _connect(self._path, self._schema)
        except BaseException as exception:
            opened.set_exception(exception)
            return
        opened.set_result(None)
        closing = False
        while not closing:
            taken = [self._queue.get()]
            taken += [self._queue.get() for _ in range(self._queue.qsize())]
            batch = [operation for operation in taken if operation is not None]
            closing = len(batch) < len(taken)
            if batch:
                _answer(self._outcomes(batch))
                self._checkpoint(batch[-1].future.get_loop(), when_due=True)
        self._shut()

    def _outcomes(self, batch: list[_Operation], first_try: bool = True) -> list[_Outcome]:
        """Runs and commits the batch; never raises. No outcome tells success unless the commit succeeded."""
        if self._failed:
            return [_Outcome(operation.future, exception=_failed_before()) for operation in batch]
        loop = batch[-1].future.get_loop()
        try:
            outcomes = self._transaction(batch)
        except BaseException as exception:
            if not self._roll_back() or _primary_code(exception) != sqlite3.SQLITE_FULL:
                self._fail(exception, loop)
                return [_Outcome(operation.future, exception=_failed_now()) for operation in batch]
        else:
            if any(operation.writes for operation in batch):
                self._note_room(is_full=False)
            return outcomes
        if first_try:
            # After a checkpoint the WAL may need no more room.
            self._checkpoint(loop, when_due=False)
            return self._outcomes(batch, first_try=False)
        return self._outcomes_without_room(batch)

    def _transaction(self, batch: list[_Operation]) -> list[_Outcome]:
        self._db.execute("BEGIN IMMEDIATE")
        outcomes = [self._savepoint(operation) for operation in batch]
        self._db.execute("COMMIT")
        return outcomes

    def _savepoint(self, operation: _Operation) -> _Outcome:
        self._db.execute("SAVEPOINT operation")
        try:
            outcome = _Outcome(operation.future, operation.run(self._db))
        except Exception as exception:
            # SQLite ends the whole transaction by itself on some errors: then there is no savepoint to go back to.
            if not _is_operations_own(exception) or not self._db.in_transaction:
                raise
            self._db.execute("ROLLBACK TO operation")
            outcome = _Outcome(operation.future, exception=exception)
        self._db.execute("RELEASE operation")
        return outcome

    def _roll_back(self) -> bool:
        """Whether the connection is now surely outside of a transaction."""
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error:
            return False
        return True

    def _outcomes_without_room(self, batch: list[_Operation]) -> list[_Outcome]:
        """Of a batch that was rolled back because the disk is full. Reads are run again: they need no room."""
        reads = [operation for operation in batch if not operation.writes]
        if len(reads) == len(batch):
            return [_Outcome(operation.future, exception=_disk_full()) for operation in batch]
        self._note_room(is_full=True)
        outcomes = [_Outcome(operation.future, exception=_disk_full()) for operation in batch if operation.writes]
        return outcomes + self._outcomes(reads) if reads else outcomes

    def _note_room(self, is_full: bool) -> None:
        """One line in the log when the disk gets full and one when it no longer is, not one for each refusal."""
        if is_full != self._full:
            news = "the disk is full, changes are refused" if is_full else "there is room again"
            logger.warning("%s: %s", self._path, news)
            self._full = is_full

    def _checkpoint(self, loop: asyncio.AbstractEventLoop, when_due: bool) -> None:
        """Copies the WAL into the main file; never raises.

        Not SQLite's automatic checkpoint: that runs before the commit is answered, and swallows its own I/O errors.
        Due after CHECKPOINT_ROWS, and whenever the database has grown: a checkpoint that finds the main file large
        enough needs no room on the disk, and after it the WAL begins again in the room that it has. So small changes
        go on when the disk is full, and what frees space, retention and the deletion of topics, can do so.
        """
        if self._failed:
            return
        try:
            rows, pages = self._db.total_changes, _pragma(self._db, "page_count")
            is_due = pages > self._checkpointed_pages or rows - self._checkpointed_rows >= CHECKPOINT_ROWS
            if is_due or not when_due:
                self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
                self._checkpointed_rows, self._checkpointed_pages = rows, pages
        except sqlite3.Error as exception:
            # On a full disk it waits for the next time: everything is in the WAL.
            if _primary_code(exception) != sqlite3.SQLITE_FULL:
                self._fail(exception, loop)

    def _fail(self, exception: BaseException, loop: asyncio.AbstractEventLoop) -> None:
        self._failed = True
        name = getattr(exception, "sqlite_errorname", type(exception).__name__)
        message = f"the metadata database {self._path} failed: {exception} ({name})"
        logger.critical("%s", message, exc_info=exception)
        _call_on(loop, partial(self._on_failure, message))

    def _shut(self) -> None:
        try:
            try:
                if not self._failed:
                    self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                # Whatever fails: the file's lock must not outlive the broker in a process that goes on.
                self._db.close()
        except sqlite3.Error as exception:
            # Nothing is lost by it: what was committed is in the WAL, and the next start reads that.
            logger.warning("%s: closed without a checkpoint: %s", self._path, exception)
            return
        if not self._failed:
            try:
                leave_sum(self._path)
            except OSError as exception:
                # Only that the next start can't tell whether the file has rotted meanwhile.
                logger.warning("%s: its checksum can't be written: %s", self._path, exception)


def _answer(outcomes: list[_Outcome]) -> None:
    """Resolves the futures with one wake-up of each event loop (in a broker there is one)."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Outcome]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome.future.get_loop(), []).append(outcome)
    for loop, ours in by_loop.items():
        _call_on(loop, partial(_resolve, ours))


def _call_on(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        # The loop was closed with operations under way: nobody waits any more.
        logger.debug("an answer came after its event loop was closed")


def _resolve(outcomes: list[_Outcome]) -> None:
    for outcome in outcomes:
        if outcome.future.done():  # cancelled; the change itself stands
            continue
        if outcome.exception is not None:
            outcome.future.set_exception(outcome.exception)
        else:
            outcome.future.set_result(outcome.result)


def _primary_code(exception: BaseException) -> int | None:
    """SQLite's result code without the extended part; None when the exception isn't SQLite's own."""
    code = getattr(exception, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _is_operations_own(exception: Exception) -> bool:
    """Whether only the operation failed: it refused, or its code has a mistake. The database is well."""
    code = _primary_code(exception)
    return code is None or code in _OPERATION_CODES


def _disk_full() -> TakhinError:
    return error(Reason.DISK_FULL, "the disk is full; nothing was changed, try again once there is room")


def _failed_now() -> TakhinError:
    return error(
        Reason.INTERNAL_ERROR,
        "the metadata database failed and the broker is stopping; whether this was stored is unknown",
    )


def _failed_before() -> TakhinError:
    return error(
        Reason.INTERNAL_ERROR, "the metadata database has failed and the broker is stopping; nothing was changed"
    )


def _connect(path: str, schema: Schema) -> tuple[sqlite3.Connection, int]:
    """The checked and configured connection, and how many pages the database has. Raises StartError."""
    check_files(path)
    try:
        make_private(path)
    except OSError as exception:
        raise StartError(f"the metadata database {path} cannot be opened: {exception.strerror}") from exception
    try:
        # isolation_level None: no transactions but those written out here.
        db = sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None)
    except sqlite3.Error as exception:
        raise StartError(f"the metadata database {path} cannot be opened: {exception}") from exception
    try:
        _prepare(db, path, schema)
        return db, _pragma(db, "page_count")
    except (sqlite3.Error, UnicodeDecodeError) as exception:
        db.close()
        raise StartError(why_not(path, exception)) from exception
    except BaseException:
        db.close()
        raise


def check_files(path: str) -> None:
    """Before SQLite touches them: it would take damage for an end, and remove what lies behind. Raises StartError."""
    try:
        frame = damaged_frame(path)
        if frame is not None:
            raise StartError(damaged(f"{path}-wal", f"frame {frame}; commits that were durable lie behind it"))
        if not take_sum(path):
            raise StartError(damaged(
                path, f"its checksum is not what the last clean stop left; without {sum_path(path)} it is not compared"
            ))
    except OSError as exception:
        raise StartError(f"the metadata database {path} cannot be opened: {exception.strerror}") from exception


def _prepare(db: sqlite3.Connection, path: str, schema: Schema) -> None:
    # Before the file is first read: in this mode from the start, SQLite keeps the WAL's index in private memory.
    db.execute("PRAGMA locking_mode=EXCLUSIVE")
    is_new = check_marks(db, path, schema)
    findings = _pragma(db, "integrity_check(1)")
    if findings != "ok":
        raise StartError(damaged(path, findings))
    if db.execute("PRAGMA foreign_key_check").fetchone() is not None:
        raise StartError(damaged(path, "rows refer to others that are not there"))
    if _pragma(db, "journal_mode=WAL") != "wal":
        raise StartError(f"the metadata database {path} cannot use a write-ahead log on this filesystem")
    for setting in (
        "synchronous=FULL",
        "foreign_keys=ON",
        "wal_autocheckpoint=0",
        f"journal_size_limit={WAL_KEPT_BYTES}",
        # Savepoints that grow large would otherwise go to a file in /tmp.
        "temp_store=MEMORY",
        "cell_size_check=ON",
        "trusted_schema=OFF",
    ):
        db.execute(f"PRAGMA {setting}")
    # Takes the exclusive lock even when there is nothing to write.
    db.execute("BEGIN IMMEDIATE")
    if is_new:
        for statement in schema.statements:
            db.execute(statement)
        db.execute(f"PRAGMA application_id={schema.application_id}")
        db.execute(f"PRAGMA user_version={schema.version}")
        found = schema.version
    else:
        found = make_current(db, path, schema)
    db.execute("COMMIT")
    if found != schema.version:
        logger.info("the metadata database has format %d now; it had %d", schema.version, found)
    db.execute("PRAGMA wal_checkpoint(PASSIVE)")
    _sync_directory(path)


def make_current(db: sqlite3.Connection, path: str, schema: Schema) -> int:
    """Makes a database of an older version one of the present version, and checks that its schema is now to the letter
    that of a new one and that its rows can be read. Returns the version it had.

    To the letter, as SQLite holds a schema that it can parse for a good one, though a bit in a name, in a CHECK or in
    the mark of a copy may be another: then one operation or other fails, some day, or does what it must not.

    Within the caller's transaction: a start that is killed meanwhile leaves the file as it was. Raises StartError,
    sqlite3.Error.
    """
    found: int = _pragma(db, "user_version")
    # Of a file that can't be written SQLite says so at the first write, not when a transaction begins.
    db.execute("SAVEPOINT writable")
    db.execute(f"PRAGMA user_version={found}")
    db.execute("ROLLBACK TO writable")
    db.execute("RELEASE writable")
    for version in range(found, schema.version):
        for statement in schema.migrations[version]:
            db.execute(statement)
    if found != schema.version:
        db.execute(f"PRAGMA user_version={schema.version}")
    expected = _schema_rows(schema.statements)
    rows = set(db.execute(_SCHEMA_ROWS)) - _schema_rows(schema.may_have)
    if rows != expected:
        names = sorted({repr((name or b"").decode(errors="replace")) for _, name, *_ in rows ^ expected})
        raise StartError(damaged(path, f"its schema is not that of format {schema.version}: {', '.join(names)}"))
    try:
        schema.check(db)
    except sqlite3.Error:
        raise
    except Exception as problem:  # whatever it is that a rotten row does to who reads it
        what = str(problem) if isinstance(problem, ValueError | TakhinError) else f"{type(problem).__name__}: {problem}"
        raise StartError(damaged(path, what)) from problem
    return found


def _schema_rows(statements: Sequence[str]) -> set[tuple[Any, ...]]:
    """What statements leave in the schema of a new database."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    try:
        for statement in statements:
            db.execute(statement)
        return set(db.execute(_SCHEMA_ROWS))
    finally:
        db.close()


def _sync_directory(path: str) -> None:
    """The names of the database and of its write-ahead log are on the disk after this. Raises StartError.

    SQLite syncs the directory too, when it has made a file, but goes on when that fails.
    """
    try:
        sync_directory_of(path)
    except OSError as problem:
        raise StartError(f"the directory of the metadata database {path} can't be synced: {problem.strerror}") from None


def check_marks(db: sqlite3.Connection, path: str, schema: Schema) -> bool:
    """Whether the file is new and empty. Raises StartError when it is neither that nor one this code can use, perhaps
    after a migration."""
    application_id = _pragma(db, "application_id")
    version = _pragma(db, "user_version")
    is_empty = db.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()[0] == 0
    if is_empty and application_id == 0 and version == 0:
        return True
    if application_id != schema.application_id:
        raise StartError(f"{path} is an SQLite database, but not one of Takhin's")
    if version != schema.version and version not in schema.migrations:
        age = "a newer" if version > schema.version else "another"
        raise StartError(
            f"the metadata database {path} has format {version}, of {age} Takhin; this one knows {schema.version}"
        )
    return False


def _pragma(db: sqlite3.Connection, text: str) -> Any:
    return db.execute(f"PRAGMA {text}").fetchone()[0]


def why_not(path: str, exception: sqlite3.Error | UnicodeDecodeError) -> str:
    """One line for the operator: why the file can't be used."""
    code = _primary_code(exception)
    if code == sqlite3.SQLITE_NOTADB:
        return f"{path} is not an SQLite database"
    # None: it is Python's own, about text that is none.
    if code is None or code == sqlite3.SQLITE_CORRUPT:
        return damaged(path, str(exception))
    if code == sqlite3.SQLITE_READONLY:
        # Not the file's mode, see make_private(), but the mark of a format that no SQLite has written yet.
        return damaged(path, "its header does not let it be written")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"the metadata database {path} is open in another process"
    return f"the metadata database {path} cannot be used: {exception}"


def damaged(path: str, detail: str) -> str:
    """One line for the operator."""
    # The detail may have in it what has rotted: on one line, and nothing that a terminal obeys.
    detail = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in " ".join(detail.split()))
    return f"the metadata database {path} is damaged ({detail}); restore it from a copy"
