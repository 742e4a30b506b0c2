"""A look at a data directory: what of it fits together, as a power cut would have left it, read within moments.

Of a directory that nobody has, its lock is held for the look, and all is taken as it lies, damage and what tells of it
included. While a broker runs, a look reads in this order: J0 (how far the journal goes), M (the metadata), J1 (the
journal, which is kept), E (of each partition: its producers' snapshot, then its segments and the size of the last one),
J2 (the journal again, also while E is read). It cuts each partition at E, or where the first entry that J2 has and J1
has not begins in it, if that is before.

- Whatever was acknowledged as durable before the look stands in its segment by E: records are written there before the
  journal has them, but for those of transactions, which stand in J1 until they are written. No cut takes any of it: an
  entry begins where its partition was durable when it was made.
- Commits in M lie below what was durable then. The part of a transaction that J1 has is written by the start; the
  offsets that it commits, too, if M has not got them. A transaction after J1 is cut off in every partition: its entry
  is in J2, whole, if any of its records was in a segment by E. And M was read before it.
- An entry that J1 and J2 do not show since the one before them, as the journal's file was begun anew, or that was taken
  back: the look is of no use, and another one follows. So it is when retention has taken away what M says is there,
  when a topic was deleted, when an epoch began, or a producer's name got a newer one.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise

from takhin.cli.backup_files import (
    JournalCopy,
    copy_journal,
    copy_metadata,
    cut_journal,
    journal_damage,
    producer_names,
    read_copy_of_journal,
    scan_journal,
    settle_metadata,
)
from takhin.cli.command import CommandError
from takhin.cli.data_audit import InUseError, locked
from takhin.cli.metadata_view import MetadataView
from takhin.cli.snapshot_view import snapshot_of
from takhin.log.journal import KIND_BATCHES
from takhin.log.producers import SNAPSHOT_NAME
from takhin.log.recovery import SEGMENT_FILE, base_offsets
from takhin.log.segment import segment_name
from takhin.log.store import LogStore

# How long looks are repeated that are of no use. Each takes milliseconds, with many partitions seconds.
PATIENCE_S = 60.0
_PAUSE_S = 0.05
# While E is read: so much less than the journal takes to be begun anew.
_SCAN_EVERY_S = 0.2
# Within the copy, until it is whole: the metadata once more, to see what has changed.
AGAIN = "meta.again"

Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Log:
    """A partition's files at E. bases: of its segments. end: the last one's size, or where it is to be cut: its base
    offset, and bytes of it. snapshot: of its producers, as it is; None: there is none."""

    bases: list[int]
    end: tuple[int, int]
    snapshot: bytes | None


@dataclass(frozen=True, slots=True)
class Look:
    """metadata: None when there is nothing yet. logs: of all partitions that it knows and that have files."""

    metadata: MetadataView | None
    logs: dict[Key, Log]


class _NotNowError(Exception):
    """A look is of no use, and why: in words that go on "no moment was found at which ... fits together: "."""


def look_at(data_dir: str, work: str, seen: Callable[[dict[Key, Log]], None]) -> Look:
    """Look until it is of use; M and J1 are in the directory `work` then. seen: told of the logs of a running broker as
    soon as they are, while it is not known yet whether they are of use. Raises CommandError, OSError."""
    until_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            with _locked_if_idle(data_dir) as is_idle:
                return _look_at_idle(data_dir, work) if is_idle else _look_beside(data_dir, work, seen)
        except _NotNowError as why:
            if time.monotonic() >= until_s:
                raise CommandError(
                    f"no moment was found at which {data_dir} fits together: {why}; try again") from None
        time.sleep(_PAUSE_S)


def still_holds(look: Look, data_dir: str, work: str) -> bool:
    """Whether what stood in the logs at the look stands there still: no broker has started or been repaired since, nor
    resumed after a failed write, all of which may take back what was not durable. Raises CommandError, OSError."""
    if look.metadata is None:
        return True
    again = os.path.join(work, AGAIN)
    os.makedirs(again, exist_ok=True)
    now = settle_metadata(again, data_dir) if copy_metadata(data_dir, again) else None
    return now is not None and _is_same_run(look.metadata, now)


def _is_same_run(one: MetadataView, other: MetadataView) -> bool:
    """Whether no log was cut between them. A start raises the epoch before it cuts, and tells from where on each
    partition has it when it has cut: one that was seen between the two has the epoch already."""
    ours, theirs = _newest_epochs(one), _newest_epochs(other)
    return one.epoch == other.epoch and all(epoch == theirs.get(key, epoch) for key, epoch in ours.items())


def _look_at_idle(data_dir: str, work: str) -> Look:
    was_locked = os.path.exists(os.path.join(data_dir, "LOCK"))
    is_there = copy_metadata(data_dir, work, with_sum=True)
    copy_journal(os.path.join(data_dir, "journal"), os.path.join(work, "journal"))
    logs = _logs(data_dir, lambda: None)
    if not was_locked and os.path.exists(os.path.join(data_dir, "LOCK")):
        raise _NotNowError("a broker starts on it")
    metadata = settle_metadata(work, data_dir) if is_there else None
    _remove_if_empty(os.path.join(work, "journal"))
    if metadata is None:
        if os.path.isdir(os.path.join(data_dir, "topics")) and LogStore.holds_topics(data_dir):
            raise CommandError(
                f"{data_dir} holds topics, but meta.db, which names them, is gone; it can't be backed up")
        return Look(None, {})
    return Look(metadata, {key: log for key, log in logs.items() if key in _log_starts(metadata)})


def _look_beside(data_dir: str, work: str, seen: Callable[[dict[Key, Log]], None]) -> Look:
    """While a broker runs. Raises _NotNowError, CommandError, OSError."""
    source, kept, again = (os.path.join(*each) for each in (
        (data_dir, "journal"), (work, "journal"), (work, AGAIN)))
    os.makedirs(again, exist_ok=True)
    owner = _owner(data_dir)
    # In one go; what it comes to is seen later.
    first = scan_journal(source)
    is_there = copy_metadata(data_dir, work)
    copy_journal(source, kept)
    later: list[JournalCopy] = []

    def scan() -> None:
        later.append(scan_journal(source, since=later[-1] if later else first))

    logs = _logs(data_dir, _every(_SCAN_EVERY_S, scan))
    scan()
    is_there = copy_metadata(data_dir, again) and is_there
    is_same = owner == _owner(data_dir)
    seen(logs)
    if not is_same:
        raise _NotNowError("a broker starts or stops")
    metadata, after = (settle_metadata(each, data_dir) if is_there else None for each in (work, again))
    if metadata is None or after is None:
        raise _NotNowError("meta.db is gone, or empty")
    if metadata.was_clean:
        by = f" by process {owner}" if owner else ""
        raise _NotNowError(f"its lock is held{by}, but no broker runs on it yet, or any more")
    journal = read_copy_of_journal(kept)
    if not journal.shows_its_end(first, later[-1]) and (damage := journal_damage(kept)) is not None:
        raise _NotNowError(f"the journal is damaged: {damage}")
    cut_journal(journal)
    _remove_if_empty(kept)
    if not all(newer.goes_on_from(older) for older, newer in pairwise([first, journal, *later])):
        raise _NotNowError("the journal is begun anew too often")
    if not later[-1].confirms(journal):
        raise _NotNowError("entries of the journal are taken back, as the disk is full")
    if not _is_same_run(metadata, after):
        raise _NotNowError("epochs begin too often")
    if {topic.id for topic in metadata.topics} - {topic.id for topic in after.topics}:
        # Its files may have been gone when they were looked at; a deletion is in the metadata before that.
        raise _NotNowError("topics are deleted too fast")
    if producer_names(again) != producer_names(work):
        raise _NotNowError("producers' names get new epochs too often")
    if _knows_more(journal, metadata):
        raise _NotNowError("topics are made too fast")
    log_starts = _log_starts(metadata)
    logs = {key: log for key, log in logs.items() if key in log_starts}
    if any(log.bases and log.bases[0] > log_starts[key] for key, log in logs.items()):
        raise _NotNowError("retention goes on too fast")
    _cut(logs, journal, later)
    return Look(metadata, logs)


@contextmanager
def _locked_if_idle(data_dir: str) -> Iterator[bool]:
    """With the directory's lock when nobody has it; whether that is so. Raises CommandError: no data directory."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(data_dir))
            is_idle = True
        except InUseError:
            is_idle = False
        yield is_idle


def _owner(data_dir: str) -> str:
    """The process that has, or last had, the lock; "" when that is not told."""
    return (_content(os.path.join(data_dir, "LOCK")) or b"")[:32].decode("ascii", "replace").strip()


def _every(interval_s: float, step: Callable[[], None]) -> Callable[[], None]:
    """Does the step when it is called, once the interval has passed since the last time."""
    last_s = time.monotonic()

    def call() -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= interval_s:
            step()
            last_s = time.monotonic()

    return call


# What the metadata says


def _log_starts(metadata: MetadataView) -> dict[Key, int]:
    """Of all partitions that there are."""
    return {
        (topic.id, partition): topic.log_starts.get(partition, 0)
        for topic in metadata.topics for partition in range(topic.num_partitions)}


def _newest_epochs(metadata: MetadataView) -> dict[Key, int]:
    """Of all partitions that there are; 0: of its only one no start has told."""
    return {
        (topic.id, partition): max((epoch for epoch, _ in topic.epochs.get(partition, ())), default=0)
        for topic in metadata.topics for partition in range(topic.num_partitions)}


def _knows_more(journal: JournalCopy, metadata: MetadataView) -> bool:
    """Whether it tells of partitions that are newer than the metadata; those of topics that are gone are none."""
    known = {topic.id: topic.num_partitions for topic in metadata.topics}
    return any(
        part.topic_id > metadata.highest_topic_id or part.partition >= known.get(part.topic_id, part.partition + 1)
        for entry in journal.entries for part in entry.parts if part.kind == KIND_BATCHES)


# The logs


def _logs(data_dir: str, between: Callable[[], None]) -> dict[Key, Log]:
    """E, of all that there is. between: called after each partition."""
    logs = {}
    top = os.path.join(data_dir, "topics")
    for topic in _numbers(top):
        for partition in _numbers(os.path.join(top, str(topic))):
            log = log_at(partition_directory(data_dir, (topic, partition)))
            if log is not None:
                logs[topic, partition] = log
            between()
    return logs


def log_at(directory: str) -> Log | None:
    """None: it is gone meanwhile, as its topic is."""
    try:
        # Before the sizes: what it vouches for is on the disk, and so in them.
        snapshot = _content(os.path.join(directory, SNAPSHOT_NAME))
        bases = sorted(base_offsets(SEGMENT_FILE, os.listdir(directory)))
        size_bytes = os.path.getsize(os.path.join(directory, segment_name(bases[-1]))) if bases else 0
    except FileNotFoundError:
        return None
    return Log(bases, (bases[-1] if bases else 0, size_bytes), snapshot)


def partition_directory(top: str, key: Key) -> str:
    """Of a partition, in a data directory."""
    return os.path.join(top, "topics", str(key[0]), str(key[1]))


def _cut(logs: dict[Key, Log], journal: JournalCopy, later: list[JournalCopy]) -> None:
    """Cut each log before what the later copies of the journal have more. Raises _NotNowError: its snapshot vouches
    for more."""
    parts = [
        part for copy in later for entry in copy.entries if entry.sequence > journal.last
        for part in entry.parts if part.kind == KIND_BATCHES]
    for part in parts:
        log = logs.get((part.topic_id, part.partition))
        end = (part.segment_base_offset, part.position)
        if log is None or end >= log.end:
            continue
        if log.snapshot is not None and part.base_offset < snapshot_of(log.snapshot).offset:
            raise _NotNowError("producers' snapshots are made too fast")
        logs[part.topic_id, part.partition] = Log(log.bases, end, log.snapshot)


def _numbers(directory: str) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(directory) if name.isdecimal())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _content(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _remove_if_empty(directory: str) -> None:
    if not os.listdir(directory):
        os.rmdir(directory)
