"""takhin backup beside starts, stops and full disks, and of what is damaged: nothing is lost without a word."""

import errno
import fcntl
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from takhin.broker import sqlite_files
from takhin.broker.sqlite_files import committed_bytes
from takhin.cli import backup_copy, backup_files, backup_look
from takhin.cli.backup_files import JournalCopy, JournalRun, copy_file, copy_metadata, settle_metadata
from takhin.cli.command import CommandError
from takhin.log.files import Files
from takhin.log.journal import BLOCK_BYTES, JournalEntry, read_entry, read_header
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import DEADLINE_S, BrokerProcess, commit, create_topic, produce, wait_until
from tests.cli.backed_up import on, transact, whole_log
from tests.cli.run import takhin
from tests.conftest import StartBroker

# A broker whose recovery waits, once it has begun its run, for a file.
SLOW = """
import os, sys, time
import takhin.log.recovery as recovery
plain = recovery._settle
def settle(*arguments):
    open("{here}/waits", "w").close()
    while not os.path.exists("{here}/go"):
        time.sleep(0.02)
    return plain(*arguments)
recovery._settle = settle
from takhin.cli.server import main
sys.argv[0] = "takhin-server"
sys.exit(main())
"""


def before_it_copies(monkeypatch: pytest.MonkeyPatch, step: Callable[[], None]) -> list[int]:
    """Have this done after the first look. What is returned has one for each look."""
    plain, looks = backup_copy._Backup._copy_logs, []

    def copy_logs(self: backup_copy._Backup, look: backup_look.Look) -> bool:
        looks.append(1)
        if len(looks) == 1:
            step()
        return plain(self, look)

    monkeypatch.setattr(backup_copy._Backup, "_copy_logs", copy_logs)
    return looks


def copy_of(broker: BrokerProcess, target: Path) -> None:
    assert backup_copy.backup(str(broker.data_dir), str(target), verify=True) == 0


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x40]))


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def places(journal: Path) -> list[tuple[int, int]]:
    """(place, size) of the journal file's whole entries."""
    files = Files()
    salt = read_header(journal.read_bytes()[:BLOCK_BYTES]).salt
    fd = files.open(str(journal), os.O_RDONLY)
    found, place = [], BLOCK_BYTES
    try:
        while True:
            entry = read_entry(files, fd, place, salt)
            found.append((place, entry.size_bytes))
            place += entry.size_bytes
    except ValueError:
        return found
    finally:
        files.close(fd)


# Beside starts and stops


@pytest.mark.parametrize("fill_bytes", [10, 500])
def test_a_look_while_a_broker_recovers(
    start_broker: StartBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fill_bytes: int
) -> None:
    """The torn tail that the look has seen is cut, and transactions stand in its place, up to its end or beyond: of
    those below its end, that would be one half."""
    broker = start_broker()
    create_topic(broker.stub(), "transacted", 2)
    transact(broker.stub(), "transacted", b"before")
    broker.kill()
    with next(path for path in broker.segments() if path.parent.name == "0").open("ab") as file:
        file.write(b"x" * 3000)
    broker.program = [sys.executable, "-c", SLOW.format(here=tmp_path)]
    starting = threading.Thread(target=broker.start)
    starting.start()
    wait_until((tmp_path / "waits").exists)

    def step() -> None:
        (tmp_path / "go").touch()
        starting.join()
        for number in range(10):
            transact(broker.stub(), "transacted", b"%d" % number * fill_bytes)

    looks = before_it_copies(monkeypatch, step)
    copy_of(broker, tmp_path / "copy")
    assert len(looks) == 2
    copy = on(start_broker, tmp_path / "copy").stub()
    first, second = (list(whole_log(copy, "transacted", each).values()) for each in range(2))
    assert first == second and len(first) == 11


@pytest.mark.parametrize("was_killed", [False, True])
def test_a_broker_starts_while_the_idle_directory_is_copied(
    start_broker: StartBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was_killed: bool
) -> None:
    broker = start_broker()
    create_topic(broker.stub(), "orders")
    produce(broker.stub(), "orders", b"one", acks=-1)
    broker.kill() if was_killed else broker.terminate()

    def step() -> None:
        broker.start()
        produce(broker.stub(), "orders", b"two", acks=-1)

    looks = before_it_copies(monkeypatch, step)
    copy_of(broker, tmp_path / "copy")
    # In a new epoch something may have been cut; else it goes by what it has seen.
    assert len(looks) == (2 if was_killed else 1)
    found = whole_log(on(start_broker, tmp_path / "copy").stub(), "orders", 0)
    assert list(found.values()) == ([b"one", b"two"] if was_killed else [b"one"])


def test_the_lock_is_held_though_no_broker_runs(
    start_broker: StartBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By takhin segment verify, say; or the broker is just starting."""
    broker = start_broker()
    create_topic(broker.stub(), "orders")
    broker.terminate()
    with (broker.data_dir / "LOCK").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        monkeypatch.setattr(backup_look, "PATIENCE_S", 0.2)
        with pytest.raises(CommandError, match=r"its lock is held by process \d+, but no broker runs on it yet"):
            copy_of(broker, tmp_path / "copy")
        monkeypatch.setattr(backup_look, "PATIENCE_S", 60)
        release = threading.Timer(0.5, lambda: fcntl.flock(lock, fcntl.LOCK_UN))
        release.start()
        copy_of(broker, tmp_path / "copy")


def test_a_directory_without_a_lock(start_broker: StartBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy made otherwise: a broker that starts on it while it is looked at makes one."""
    broker = start_broker()
    create_topic(broker.stub(), "transacted", 2)
    transact(broker.stub(), "transacted", b"one")
    broker.terminate()
    (broker.data_dir / "LOCK").unlink()
    plain = backup_look.log_at

    def log_at(directory: str) -> object:
        if directory.endswith("/1") and not broker.running:
            broker.start()
            transact(broker.stub(), "transacted", b"two")
        return plain(directory)

    monkeypatch.setattr(backup_look, "log_at", log_at)
    copy_of(broker, tmp_path / "copy")
    assert (tmp_path / "copy" / "LOCK").exists()
    copy = on(start_broker, tmp_path / "copy").stub()
    for partition in range(2):
        assert list(whole_log(copy, "transacted", partition).values()) == [b"one", b"two"]


def test_topics_go_all_the_time(start_broker: StartBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Always one that the look has seen, before it is copied: but from the second round on that is done at once."""
    broker = start_broker()
    stub = broker.stub()

    def make(name: str) -> None:
        create_topic(stub, name)
        produce(stub, name, b"value", acks=-1)

    make("kept")
    make("passing-0")
    plain, rounds = backup_copy._Backup._copy_logs, []

    def copy_logs(self: backup_copy._Backup, look: backup_look.Look) -> bool:
        stub.DeleteTopic(pb.DeleteTopicRequest(name=f"passing-{len(rounds)}"), timeout=DEADLINE_S)
        rounds.append(1)
        wait_until(lambda: not (broker.data_dir / "topics" / str(len(rounds) + 1)).exists())
        is_whole = plain(self, look)
        make(f"passing-{len(rounds)}")
        return is_whole

    monkeypatch.setattr(backup_copy._Backup, "_copy_logs", copy_logs)
    copy_of(broker, tmp_path / "copy")
    assert len(rounds) == 2
    copy = on(start_broker, tmp_path / "copy").stub()
    assert [list(whole_log(copy, name, 0).values()) for name in ("kept", "passing-1")] == [[b"value"]] * 2


def test_a_topic_goes_within_a_look(start_broker: StartBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first look's metadata has it, its files are gone by the time that they are looked at: it is in the copy with
    its records, or not at all."""
    broker = start_broker()
    stub = broker.stub()
    for name in "kept", "going":
        create_topic(stub, name)
        produce(stub, name, b"value", acks=-1)
    plain, looks = backup_look.copy_journal, []

    def copy_journal(source: str, target: str) -> None:
        plain(source, target)
        looks.append(1)
        if len(looks) == 1:
            stub.DeleteTopic(pb.DeleteTopicRequest(name="going"), timeout=DEADLINE_S)
            wait_until(lambda: not (broker.data_dir / "topics" / "2").exists())

    monkeypatch.setattr(backup_look, "copy_journal", copy_journal)
    copy_of(broker, tmp_path / "copy")
    assert len(looks) == 2
    copy = on(start_broker, tmp_path / "copy").stub()
    assert copy.ListTopics(pb.ListTopicsRequest(), timeout=DEADLINE_S).topics == ["kept"]
    assert list(whole_log(copy, "kept", 0).values()) == [b"value"]


# Damage


def test_a_damaged_wal(start_broker: StartBroker, tmp_path: Path) -> None:
    broker = start_broker()
    create_topic(broker.stub(), "orders")
    for number in range(12):
        produce(broker.stub(), "orders", b"value", acks=-1)
        commit(broker.stub(), "group", ("orders", 0, number))
    broker.kill()
    wal = broker.data_dir / "meta.db-wal"
    flip(wal, wal.stat().st_size // 2)
    assert sqlite_files.damaged_frame(str(broker.data_dir / "meta.db")) is not None
    ran = takhin(None, "backup", "--verify", broker.data_dir, tmp_path / "copy", status=1)
    assert "meta.db-wal is damaged: frame " in ran.complaint and not list(tmp_path.glob("copy*"))


def test_a_rotten_database(start_broker: StartBroker, tmp_path: Path) -> None:
    broker = start_broker()
    create_topic(broker.stub(), "orders")
    broker.terminate()
    database = broker.data_dir / "meta.db"
    assert b"orders" in database.read_bytes()
    database.write_bytes(database.read_bytes().replace(b"orders", b"orderz"))
    ran = takhin(None, "backup", "--verify", broker.data_dir, tmp_path / "copy", status=1)
    assert "its checksum is not what the last clean stop left" in ran.complaint and not list(tmp_path.glob("copy*"))


@pytest.mark.parametrize("size_bytes", [None, 0])
def test_a_database_that_is_gone(start_broker: StartBroker, tmp_path: Path, size_bytes: int | None) -> None:
    broker = start_broker()
    create_topic(broker.stub(), "orders")
    produce(broker.stub(), "orders", b"value", acks=-1)
    broker.terminate()
    for name in "meta.db", "meta.db-wal", "meta.db.sum":
        (broker.data_dir / name).unlink(missing_ok=True)
    if size_bytes is not None:
        (broker.data_dir / "meta.db").touch()
    ran = takhin(None, "backup", "--verify", broker.data_dir, tmp_path / "copy", status=1)
    assert "holds topics, but meta.db, which names them, is gone" in ran.complaint and not list(tmp_path.glob("copy*"))


def journaled(broker: BrokerProcess) -> Path:
    """The journal's file, with some entries."""
    create_topic(broker.stub(), "transacted", 2)
    for number in range(6):
        transact(broker.stub(), "transacted", b"%d" % number * 2000)
    (path,) = (path for path in (broker.data_dir / "journal").iterdir() if len(places(path)) >= 5)
    return path


def test_a_damaged_journal_of_what_was_killed(start_broker: StartBroker, tmp_path: Path) -> None:
    broker = start_broker("--topics-flush-ms", "3600000")
    journal = journaled(broker)
    broker.kill()
    place, size_bytes = places(journal)[2]
    flip(journal, place + size_bytes - 600)
    ran = takhin(None, "backup", "--verify", broker.data_dir, tmp_path / "copy", status=1)
    assert b"entry 3 is damaged" in ran.out
    assert (tmp_path / "copy" / "journal" / journal.name).read_bytes() == journal.read_bytes()


def test_a_damaged_journal_of_a_running_broker(
    start_broker: StartBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = start_broker("--topics-flush-ms", "3600000")
    journal = journaled(broker)
    place, size_bytes = places(journal)[2]
    flip(journal, place + size_bytes - 600)
    monkeypatch.setattr(backup_look, "PATIENCE_S", 0.2)
    with pytest.raises(CommandError, match="the journal is damaged: .*entry 3 is damaged"):
        copy_of(broker, tmp_path / "copy")


@pytest.mark.parametrize("runs", [False, True])
def test_a_torn_last_entry_of_the_journal(start_broker: StartBroker, tmp_path: Path, runs: bool) -> None:
    """Its table is there, its bytes are not: a write that a crash, or a full disk, has cut short."""
    broker = start_broker("--topics-flush-ms", "3600000")
    journal = journaled(broker)
    if not runs:
        broker.kill()
    place, size_bytes = places(journal)[-1]
    flip(journal, place + size_bytes - 600)
    copy_of(broker, tmp_path / "copy")
    stub = on(start_broker, tmp_path / "copy").stub()
    for partition in range(2):
        found = whole_log(stub, "transacted", partition)
        assert [each[:1] for each in found.values()] == [b"%d" % number for number in range(6)]


def test_an_entry_that_was_taken_back(start_broker: StartBroker) -> None:
    broker = start_broker("--topics-flush-ms", "3600000")
    directory = str(journaled(broker).parent)
    found = backup_files.scan_journal(directory)
    assert len(found.entries) >= 5
    again = backup_files.scan_journal(directory)
    assert again.confirms(found) and again.goes_on_from(found)
    (run,) = found.runs
    *rest, last = found.entries

    def with_entries(*entries: JournalEntry, first: int = 1, salt: int = run.salt) -> JournalCopy:
        return JournalCopy([JournalRun(run.path, salt, first, list(entries))])

    assert with_entries(*rest).goes_on_from(found), "its last one may never have been whole"
    assert not with_entries(*rest).confirms(found)
    assert not with_entries(*rest, replace(last, time_ms=last.time_ms + 1)).confirms(found)
    # Begun anew: what is gone with the file says nothing, and what is missing shows.
    assert with_entries(last, first=last.sequence, salt=1).confirms(found)
    assert not with_entries(first=last.sequence + 2, salt=1).goes_on_from(found)
    # Where it ends.
    less, more = with_entries(*rest[:-1]), found
    assert with_entries(*rest).shows_its_end(less, more) and not found.shows_its_end(less, more)
    assert not with_entries(*rest).shows_its_end(more, more)
    assert not JournalCopy([
        JournalRun(run.path, 1, 1, rest[:2]), JournalRun(run.path, 2, 4, rest[3:])]).shows_its_end(less, more)


def test_the_journal_is_begun_anew_while_partitions_are_looked_at(
    start_broker: StartBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = start_broker("--limits-journal-bytes", "8388608", "--topics-flush-ms", "50")
    stub = broker.stub()
    create_topic(stub, "others", 8)
    for number in range(8):
        produce(stub, "others", b"one", acks=-1, partition=number)
    plain, at_once = backup_look.log_at, [0]

    def log_at(directory: str) -> object:
        transact(stub, "others", b"x" * 900_000)
        at_once[0] += 1
        return plain(directory)

    monkeypatch.setattr(backup_look, "log_at", log_at)
    monkeypatch.setattr(backup_look, "_SCAN_EVERY_S", 0)
    copy_of(broker, tmp_path / "copy")
    assert at_once[0] == 8, "it took more than one look"
    monkeypatch.setattr(backup_look, "_SCAN_EVERY_S", 3600)
    monkeypatch.setattr(backup_look, "PATIENCE_S", 0)
    with pytest.raises(CommandError, match="the journal is begun anew too often"):
        copy_of(broker, tmp_path / "second")


def test_a_wal_that_is_too_large(start_broker: StartBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = start_broker()
    create_topic(broker.stub(), "orders")
    produce(broker.stub(), "orders", b"value", acks=-1)
    commit(broker.stub(), "group", ("orders", 0, 1))
    broker.kill()
    assert committed_bytes(str(broker.data_dir / "meta.db")) > 1000
    monkeypatch.setattr(sqlite_files, "_LARGEST_WAL_BYTES", 1000)
    (tmp_path / "copy").mkdir()
    assert copy_metadata(str(broker.data_dir), str(tmp_path / "copy"))
    with pytest.raises(CommandError, match=r"meta\.db-wal has more than 1000 bytes; it can't be backed up"):
        settle_metadata(str(tmp_path / "copy"), str(broker.data_dir))


# Where it is written


@pytest.fixture
def stopped(start_broker: StartBroker) -> Iterator[BrokerProcess]:
    broker = start_broker()
    create_topic(broker.stub(), "orders")
    produce(broker.stub(), "orders", b"value", acks=-1)
    broker.terminate()
    yield broker


def test_what_is_beside_it_stays(stopped: BrokerProcess, tmp_path: Path) -> None:
    (tmp_path / "copy.unfinished").mkdir()
    (tmp_path / "copy.unfinished" / "mine").write_text("mine")
    (tmp_path / "no").mkdir()
    takhin(None, "backup", tmp_path / "no", tmp_path / "copy", status=1)
    takhin(None, "backup", stopped.data_dir, tmp_path / "copy")
    assert (tmp_path / "copy.unfinished" / "mine").read_text() == "mine"


def test_two_at_once(stopped: BrokerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one does not touch the first one's work; of the two, one has the name then."""
    before_it_copies(monkeypatch, lambda: takhin(None, "backup", stopped.data_dir, tmp_path / "copy") and None)
    with pytest.raises(CommandError, match="is there already"):
        backup_copy.backup(str(stopped.data_dir), str(tmp_path / "copy"), verify=False)
    assert [path.name for path in tmp_path.glob("copy*")] == ["copy"]
    assert "sound" in takhin(None, "segment", "verify", tmp_path / "copy").out.decode()


@pytest.mark.parametrize("has_renameat2", [True, False])
def test_an_empty_directory_that_came_meanwhile_stays(
    stopped: BrokerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_renameat2: bool
) -> None:
    before_it_copies(monkeypatch, (tmp_path / "copy").mkdir)
    if not has_renameat2:
        monkeypatch.setattr(backup_copy, "_renameat2", lambda *_: errno.EINVAL)
    with pytest.raises(CommandError, match="is there already"):
        backup_copy.backup(str(stopped.data_dir), str(tmp_path / "copy"), verify=False)
    assert [path.name for path in tmp_path.glob("copy*")] == ["copy"] and not list((tmp_path / "copy").iterdir())
    (tmp_path / "copy").rmdir()
    copy_of(stopped, tmp_path / "copy")


def test_once_it_has_its_name_it_stays(
    stopped: BrokerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted:
        def sync_directory(self, _: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(backup_copy, "Files", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        backup_copy.backup(str(stopped.data_dir), str(tmp_path / "copy"), verify=False)
    assert [path.name for path in tmp_path.glob("copy*")] == ["copy"]
    assert "sound" in takhin(None, "segment", "verify", tmp_path / "copy").out.decode()


def test_within_the_directory_by_another_name(stopped: BrokerProcess, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(stopped.data_dir)
    before = tree(stopped.data_dir)
    for paths in ((tmp_path / "link", stopped.data_dir / "copy"), (stopped.data_dir, tmp_path / "link" / "copy")):
        assert "lies in " in takhin(None, "backup", *paths, status=2).complaint
    assert tree(stopped.data_dir) == before


def test_without_a_parent(stopped: BrokerProcess, tmp_path: Path) -> None:
    ran = takhin(None, "backup", stopped.data_dir, tmp_path / "no" / "copy", status=2)
    assert "is no directory; make it first" in ran.complaint and not (tmp_path / "no").exists()


def test_no_room(stopped: BrokerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size_bytes = sum(path.stat().st_size for path in stopped.segments())
    usage = shutil.disk_usage(tmp_path)
    for free, has_room in ((size_bytes - 1, False), (size_bytes, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        if has_room:
            copy_of(stopped, tmp_path / "copy")
            continue
        with pytest.raises(CommandError, match=rf"{tmp_path} has .* bytes free; the segments .* have {size_bytes}"):
            copy_of(stopped, tmp_path / "copy")


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * 10_000)
    with pytest.raises(OSError, match="No space left") as caught:
        copy_file(str(tmp_path / "source"), "/dev/full")
    assert caught.value.filename == "/dev/full"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_made_by_root_it_is_the_owners(stopped: BrokerProcess, tmp_path: Path) -> None:
    os.chown(stopped.data_dir, 12345, 23456)
    takhin(None, "backup", stopped.data_dir, tmp_path / "copy")
    found = [(path.stat().st_uid, path.stat().st_gid) for path in [tmp_path / "copy", *(tmp_path / "copy").rglob("*")]]
    assert set(found) == {(12345, 23456)} and len(found) > 5
