"""A whole data directory audited, with its lock held: metadata, journal, every partition. Nothing is changed."""

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from takhin.broker.topic_config import parse_stored_config
from takhin.cli.command import CommandError
from takhin.cli.journal_view import JournalView
from takhin.cli.metadata_view import MetadataError, MetadataView, read_metadata
from takhin.cli.partition_audit import PartitionAudit, audit_partition
from takhin.cli.segment_audit import DAMAGE, NOTE, TORN
from takhin.cli.show import count_of
from takhin.config import TopicDefaults
from takhin.errors import TakhinError
from takhin.log.replay import KEPT_FOR

# What a data directory consists of; any one of these makes a directory one.
_OURS = ("meta.db", "topics", "journal", "LOCK")
_OURS_TOO = ("meta.db.sum", "meta.db-wal", "meta.db-shm", "meta.db-journal", "set-aside")
_JOURNAL_SET_ASIDE = re.compile(r"[01]\.journal\.damaged-\d+")


@dataclass(frozen=True, slots=True)
class Finding:
    """severity: damage, torn or note. path: from the data directory on. position: in that file, in bytes."""

    severity: str
    path: str
    what: str
    position: int | None = None
    topic: str | None = None
    partition: int | None = None


@dataclass(slots=True)
class DataAudit:
    """What was found in a data directory. metadata: None when there is none, or none that can be read.

    journal_paths: of the files of the journal; journal_damage: in words, None without.
    """

    data_dir: str
    metadata: MetadataView | None = None
    metadata_damaged: bool = False
    journal_entries: int = 0
    journal_paths: tuple[str, ...] = ()
    journal_damage: str | None = None
    partitions: list[PartitionAudit] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: {DAMAGE: 0, TORN: 0, NOTE: 0})

    @property
    def status(self) -> str:
        """"damaged", "torn" (the next start cuts what was never durable; else sound) or "sound"."""
        return "damaged" if self.counts[DAMAGE] else "torn" if self.counts[TORN] else "sound"

    def total(self, name: str) -> int:
        """The sum of a number over all segments."""
        return sum(getattr(segment, name) for each in self.partitions for segment in each.removable + each.segments)


class InUseError(CommandError):
    """A broker has the data directory."""


@contextmanager
def locked(data_dir: str) -> Iterator[None]:
    """The data directory's lock, without a change to it. Raises InUseError: a broker has it; CommandError: there is
    none."""
    try:
        names = os.listdir(data_dir)
    except OSError as problem:
        raise CommandError(f"{data_dir} can't be read: {problem.strerror}") from None
    if not any(name in names for name in _OURS):
        hint = " (dump shows single files and directories)" if any(name.endswith(".log") for name in names) else ""
        raise CommandError(f"{data_dir} is no data directory: it has no {', '.join(_OURS[:-1])} or {_OURS[-1]}{hint}")
    try:
        fd = os.open(os.path.join(data_dir, "LOCK"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        # A copy of one. A broker that is started meanwhile is not kept out.
        yield
        return
    except OSError as problem:
        raise CommandError(f"{data_dir}/LOCK can't be opened: {problem.strerror}") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            raise InUseError(
                f"data directory {data_dir} is in use by a broker" + (f" (process {holder})" if holder else "")
                + "; stop it first"
            ) from None
        yield
    finally:
        os.close(fd)


class Auditor:
    """Audits one data directory. report is told of each finding as it is made."""

    def __init__(self, data_dir: str, report: Callable[[Finding], None]):
        self.audit = DataAudit(data_dir)
        self._report = report
        self._of: PartitionAudit | None = None

    def run(self) -> DataAudit:
        """Raises CommandError when it can't be examined."""
        try:
            self._run()
        except PermissionError as problem:
            raise CommandError(
                f"{problem.filename} can't be read: {problem.strerror}; only who may read all files can tell"
            ) from None
        return self.audit

    def _run(self) -> None:
        self._read_metadata()
        for name in sorted(os.listdir(self.audit.data_dir)):
            path = os.path.join(self.audit.data_dir, name)
            if name == "orphans":
                self._tell(NOTE, path, None, "directories that a start found to belong to no topic")
            elif name not in _OURS + _OURS_TOO:
                self._tell(NOTE, path, None, "no file of the broker's")
        with self._journal() as journal:
            for number, topic_id, path in self._partition_directories():
                self._partition(number, topic_id, path, journal)
            self._partitions_of_the_journal(journal)
        self._check_commits_of_nothing()

    def _tell(self, severity: str, path: str, position: int | None, what: str) -> None:
        self.audit.counts[severity] += 1
        relative = os.path.relpath(path, self.audit.data_dir)
        of = self._of
        topic, partition = (of.topic, of.partition) if of is not None else (None, None)
        self._report(Finding(severity, relative, what, position, topic, partition))

    def _read_metadata(self) -> None:
        path = os.path.join(self.audit.data_dir, "meta.db")
        try:
            self.audit.metadata = read_metadata(self.audit.data_dir)
        except MetadataError as problem:
            self.audit.metadata_damaged = True
            self._tell(DAMAGE, path, None, f"{problem}; no broker starts with it")
            return
        defaults = TopicDefaults()
        for topic in self.audit.metadata.topics if self.audit.metadata is not None else ():
            try:
                parse_stored_config(topic.name, topic.configs, defaults, defaults.max_record_bytes)
            except TakhinError as problem:
                self._tell(DAMAGE, path, None, f"{problem.message}; no broker starts with it")
        topics = os.path.join(self.audit.data_dir, "topics")
        if self.audit.metadata is None and os.path.isdir(topics) and os.listdir(topics):
            self.audit.metadata_damaged = True
            self._tell(DAMAGE, path, None, "it is gone, though there are topics: restore it from a copy")

    def _journal(self) -> JournalView:
        directory = os.path.join(self.audit.data_dir, "journal")
        try:
            journal = JournalView(self.audit.data_dir)
        except PermissionError:
            raise
        except OSError as problem:
            raise CommandError(f"{problem.filename or directory} can't be read: {problem.strerror}") from None
        self.audit.journal_entries = journal.entries
        self.audit.journal_paths = journal.paths
        self.audit.journal_damage = journal.damage
        if journal.damage is not None:
            self._tell(DAMAGE, directory, None, f"{journal.damage}; no log's end is taken for torn because of it")
        elif journal.entries and journal.kept_for is None:
            self._tell(NOTE, directory, None, f"it holds {count_of(journal.entries, 'commit')} for the next start")
        for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
            path = os.path.join(directory, name)
            if _JOURNAL_SET_ASIDE.fullmatch(name):
                self._tell(NOTE, path, None, f"set aside by a recovery, {count_of(os.lstat(path).st_size, 'byte')}")
            elif name == KEPT_FOR:
                what = "the journal is kept for damaged partitions" if journal.kept_for is not None else (
                    "it should tell for which partitions the journal is kept, and is damaged: that counts as all"
                )
                self._tell(NOTE, path, None, what)
            elif path not in journal.paths:
                self._tell(NOTE, path, None, "no file of the journal; nobody reads it")
        return journal

    def _partitions_of_the_journal(self, journal: JournalView) -> None:
        """Those of which a power cut left nothing but what the journal has."""
        audited = {(each.topic_id, each.partition) for each in self.audit.partitions}
        known = {row.id: row.num_partitions for row in self.audit.metadata.topics} if self.audit.metadata else {}
        for topic_id, number in journal.keys:
            if (topic_id, number) not in audited and number < known.get(topic_id, 0):
                path = os.path.join(self.audit.data_dir, "topics", str(topic_id), str(number))
                self._partition(number, topic_id, path, journal)

    def _partition_directories(self) -> Iterator[tuple[int, int, str]]:
        """(partition, topic id, directory) of every partition that there may be; tells of all other directories."""
        topics = os.path.join(self.audit.data_dir, "topics")
        if not os.path.isdir(topics):
            return
        for topic_id, path in self._numbered(topics):
            if self._is_orphan(topic_id, path):
                continue
            for partition, directory in self._numbered(path):
                yield partition, topic_id, directory

    def _numbered(self, directory: str) -> list[tuple[int, str]]:
        found = []
        for entry in os.scandir(directory):
            if entry.name.isdigit() and entry.name.isascii() and entry.is_dir():
                found.append((int(entry.name), entry.path))
            else:
                self._tell(NOTE, entry.path, None, "no directory of the log; the next start moves it to orphans")
        return sorted(found)

    def _is_orphan(self, topic_id: int, path: str) -> bool:
        metadata = self.audit.metadata
        if metadata is None or any(row.id == topic_id for row in metadata.topics):
            return False
        if topic_id in metadata.deleted:
            self._tell(NOTE, path, None, "of a deleted topic; the next start removes it")
        elif topic_id <= metadata.highest_topic_id:
            self._tell(NOTE, path, None, "of a topic that is not there any more; the next start moves it to orphans")
        else:
            self._tell(
                DAMAGE, path, None,
                f"meta.db never gave out this id (the highest is {metadata.highest_topic_id}): it is older than the "
                f"directory, or that comes from elsewhere; the next start moves it to orphans",
            )
        return True

    def _partition(self, number: int, topic_id: int, path: str, journal: JournalView) -> None:
        metadata = self.audit.metadata
        row = next((row for row in metadata.topics if row.id == topic_id), None) if metadata is not None else None
        if row is not None and number >= row.num_partitions:
            what = f"topic {row.name} has no partition {number}; the next start moves it to orphans"
            self._tell(NOTE, path, None, what)
            return
        name = row.name if row is not None else f"topic id {topic_id}"
        log_start = row.log_starts.get(number, 0) if row is not None else 0
        partition = self._of = PartitionAudit(name, topic_id, number, path, log_start)
        if row is None:
            # Without the metadata nobody can tell where the log began.
            bases = [int(each[:20]) for each in os.listdir(path) if each.endswith(".log") and each[:20].isdigit()]
            partition.log_start = min(bases, default=0)
        self.audit.partitions.append(partition)
        try:
            audit_partition(partition, self._tell, journal, was_clean=metadata is not None and metadata.was_clean)
            self._check_commits(partition)
        finally:
            self._of = None

    def _check_commits_of_nothing(self) -> None:
        """The same for partitions that have no directory: it came with the first append."""
        audited = {(each.topic_id, each.partition) for each in self.audit.partitions}
        for row in self.audit.metadata.topics if self.audit.metadata is not None else ():
            for number in range(row.num_partitions):
                directory = os.path.join(self.audit.data_dir, "topics", str(row.id), str(number))
                if (row.id, number) not in audited:
                    self._of = PartitionAudit(row.name, row.id, number, directory, row.log_starts.get(number, 0))
                    self._check_commits(self._of)
        self._of = None

    def _check_commits(self, partition: PartitionAudit) -> None:
        """A commit makes the log durable up to it first: one beyond the log's end shows that something is gone."""
        metadata = self.audit.metadata
        commit = metadata.commits.get((partition.topic_id, partition.partition)) if metadata is not None else None
        if commit is None or partition.is_damaged:
            return
        if commit[0] > partition.next_offset:
            self._tell(
                NOTE, partition.directory, None,
                f"group {commit[1]!r} has committed offset {commit[0]}, the log ends at {partition.next_offset}: "
                f"records were lost or repaired away",
            )


def summary_of(audit: DataAudit) -> str:
    """One line."""
    damaged = sum(each.is_damaged for each in audit.partitions)
    counts = ", ".join([
        count_of(len(audit.partitions), "partition") + (f" ({damaged} damaged)" if damaged else ""),
        count_of(sum(len(each.removable) + len(each.segments) for each in audit.partitions), "segment"),
        count_of(audit.total("batches"), "whole batch"),
        count_of(audit.total("records"), "record"),
        count_of(audit.total("size_bytes"), "byte"),
    ])
    state = audit.status if audit.status != "torn" else "sound but for what the next start cuts"
    metadata = audit.metadata
    stopped = "" if metadata is None else "stopped cleanly; " if metadata.was_clean else "not stopped cleanly; "
    return f"{audit.data_dir}: {state}; {stopped}{counts}"
