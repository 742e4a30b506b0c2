"""The whole of a backup: what is read in which order, so that the copy is what a power cut would have left.

A round reads, in this order, J0 (how far the journal goes), M (the metadata), J1 (the journal, which is kept), E (of
each partition: its producers' snapshot, then its segments and the size of the last one), J2 (the journal once more). It
cuts each partition at E, or where the first entry that J2 has and J1 has not begins in it, if that is before; and it
copies what lies before the cut.

- Whatever was acknowledged as durable before the round stands in its segment by E: records are written there before the
  journal has them, but for those of transactions, which stand in J1 until they are written. No cut takes any of it: an
  entry begins where its partition was durable when it was made.
- Commits in M lie below what was durable then. The part of a transaction that J1 has is written by the start; the
  offsets that it commits, too, if M has not got them. A transaction after J1 is cut off in every partition: its entry
  is in J2 if any of its records was in a segment by E. And M was read before it.
- An entry that J1 and J2 do not show since the one before them, as the journal's file was begun anew: the round is done
  again. So it is when retention or a deletion has taken away what is to be copied, when an epoch began, or a
  producer's name got a newer one. What is copied and has not changed since stays.
- Index files and snapshots vouch for a log up to an offset. They are copied only as far as the copy goes up to it.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from takhin.cli.backup_files import (
    JournalCopy,
    copy_file,
    copy_journal,
    copy_metadata,
    finish_metadata,
    producer_names,
    scan_journal,
    settle_journal,
    settle_metadata,
)
from takhin.cli.command import EXIT_FAILED, EXIT_OK, EXIT_USAGE, CommandError
from takhin.cli.data_audit import Auditor, InUseError, locked
from takhin.cli.metadata_view import MetadataView
from takhin.cli.snapshot_view import snapshot_of
from takhin.cli.terminal import Output
from takhin.cli.times import iso_time
from takhin.cli.verify import print_finding, print_summary
from takhin.log.files import Files
from takhin.log.index import INDEX_HEADER_SIZE, read_summary
from takhin.log.journal import KIND_BATCHES
from takhin.log.producers import SNAPSHOT_NAME
from takhin.log.recovery import SEGMENT_FILE, base_offsets
from takhin.log.segment import segment_name

# Rounds of which something got away. The first may take hours, each further one what changed since.
MAX_ROUNDS = 50
# Looks (J0, M, J1, E, J2) that did not fit together; each takes milliseconds, with many partitions seconds.
MAX_LOOKS = 100
_PAUSE_S = 0.05
_UNFINISHED = ".unfinished"
# Where the metadata is copied once more, to see what has changed.
_AGAIN = "meta.again"

Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Log:
    """A partition's files at E. bases: of its segments. end: the last one's size, or where it is to be cut: its base
    offset, and bytes of it. snapshot: of its producers, as it is; None: there is none."""

    bases: list[int]
    end: tuple[int, int]
    snapshot: bytes | None


@dataclass(frozen=True, slots=True)
class _Look:
    metadata: MetadataView | None
    logs: dict[Key, _Log]


@dataclass(slots=True)
class _Copied:
    """A segment's file as it was before it was copied, and how much of it was."""

    stamp: tuple[int, int, int]
    size_bytes: int


def backup(data_dir: str, destination: str, *, verify: bool) -> int:
    """Gives the exit status. Raises CommandError, OSError."""
    shown = destination
    data_dir, destination = os.path.abspath(data_dir), os.path.abspath(destination)
    if os.path.lexists(destination):
        raise CommandError(f"{destination} is there already; name another directory", EXIT_USAGE)
    if destination.startswith(data_dir + os.sep):
        raise CommandError(f"{destination} lies in {data_dir}; a backup belongs elsewhere", EXIT_USAGE)
    begun_s = time.time()
    work = destination + _UNFINISHED
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(work, mode=0o700)
    try:
        copying = _Backup(data_dir, work)
        copying.run()
        shutil.rmtree(os.path.join(work, _AGAIN))
        _sync_tree(work)
        os.rename(work, destination)
        Files().sync_directory(os.path.dirname(destination))
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    with Output() as out:
        out.line(
            f"{shown}: {copying.num_partitions:,} partition{'' if copying.num_partitions == 1 else 's'}, "
            f"{copying.num_bytes:,} bytes of segments, "
            f"{time.time() - begun_s:.1f} s; has all that was durable at "
            f"{iso_time(int(begun_s * 1000))}")
        if verify:
            audit = Auditor(shown, lambda finding: print_finding(out, finding, as_json=False)).run()
            print_summary(out, audit, as_json=False)
            return EXIT_FAILED if audit.status == "damaged" else EXIT_OK
    return EXIT_OK


class _Backup:
    def __init__(self, data_dir: str, work: str):
        self._data_dir = data_dir
        self._work = work
        self._copied: dict[str, _Copied] = {}
        self.num_partitions = 0
        self.num_bytes = 0

    def run(self) -> None:
        for _ in range(MAX_ROUNDS):
            with _locked_if_idle(self._data_dir) as is_idle:
                look = self._look(is_idle)
                if look is not None and self._copy_logs(look) and (is_idle or self._is_epoch(look)):
                    if look.metadata is not None:
                        finish_metadata(self._work)
                    self.num_partitions = len(look.logs)
                    self.num_bytes = sum(each.size_bytes for each in self._copied.values())
                    return
            time.sleep(_PAUSE_S)
        raise CommandError(
            f"{self._data_dir} changes faster than it can be copied: segments go before they are; try again with "
            "longer retention (retention.ms, retention.bytes), or on a quieter broker")

    def _is_epoch(self, look: _Look) -> bool:
        """Whether the epoch is still the same: where a write failed, what was copied may have been taken back."""
        again = os.path.join(self._work, _AGAIN)
        copy_metadata(self._data_dir, again)
        metadata = settle_metadata(again, self._data_dir)
        return metadata is not None and look.metadata is not None and metadata.epoch == look.metadata.epoch

    # A look

    def _look(self, is_idle: bool) -> _Look | None:
        """M, J1 and E, with the cuts; M and J1 are in the copy then. None: the broker has just started or stopped."""
        for attempt in range(MAX_LOOKS):
            if attempt:
                time.sleep(_PAUSE_S)
            look, why = self._look_once(is_idle)
            if not why:
                return look
        raise CommandError(f"no moment was found at which {self._data_dir} fits together: {why}; try again")

    def _look_once(self, is_idle: bool) -> tuple[_Look | None, str]:
        """What _look() gives; and why it is of no use, "" when it is."""
        source, kept = os.path.join(self._data_dir, "journal"), os.path.join(self._work, "journal")
        again = os.path.join(self._work, _AGAIN)
        os.makedirs(again, exist_ok=True)
        owner = self._owner()
        # In one go; what it comes to is seen later.
        first = scan_journal(source)
        is_there = copy_metadata(self._data_dir, self._work)
        copy_journal(source, kept)
        logs = self._logs()
        later = scan_journal(source)
        copy_metadata(self._data_dir, again)
        is_same = owner == self._owner()
        metadata = settle_metadata(self._work, self._data_dir) if is_there else None
        if metadata is None:
            return (_Look(None, {}) if is_idle else None), ""
        after = settle_metadata(again, self._data_dir)
        if not is_same or (metadata.was_clean and not is_idle) or after is None:
            return None, ""
        journal = settle_journal(kept)
        if not os.listdir(kept):
            os.rmdir(kept)
        if not (journal.goes_on_from(first) and later.goes_on_from(journal)):
            return None, "the journal is begun anew too often"
        if after.epoch != metadata.epoch:
            return None, "epochs begin too often"
        if producer_names(again) != producer_names(self._work):
            return None, "producers' names get new epochs too often"
        if _knows_more(journal, metadata):
            return None, "topics are made too fast"
        log_starts = {
            (topic.id, partition): topic.log_starts.get(partition, 0)
            for topic in metadata.topics for partition in range(topic.num_partitions)}
        logs = {key: log for key, log in logs.items() if key in log_starts}
        if any(log.bases and log.bases[0] > log_starts[key] for key, log in logs.items()):
            return None, "retention goes on too fast"
        if not _cut(logs, journal, later):
            return None, "producers' snapshots are made too fast"
        return _Look(metadata, logs), ""

    def _owner(self) -> bytes:
        try:
            with open(os.path.join(self._data_dir, "LOCK"), "rb") as file:
                return file.read(32)
        except FileNotFoundError:
            return b""

    def _logs(self) -> dict[Key, _Log]:
        """E, of all that there is."""
        logs = {}
        top = os.path.join(self._data_dir, "topics")
        for topic in _numbers(top):
            for partition in _numbers(os.path.join(top, str(topic))):
                log = self._log((topic, partition))
                if log is not None:
                    logs[topic, partition] = log
        return logs

    def _log(self, key: Key) -> _Log | None:
        """None: it is gone meanwhile, as its topic is."""
        directory = self._directory(self._data_dir, key)
        try:
            # Before the sizes: what it vouches for is on the disk, and so in them.
            snapshot = _content(os.path.join(directory, SNAPSHOT_NAME))
            bases = sorted(base_offsets(SEGMENT_FILE, os.listdir(directory)))
            size_bytes = os.path.getsize(os.path.join(directory, segment_name(bases[-1]))) if bases else 0
        except FileNotFoundError:
            return None
        return _Log(bases, (bases[-1] if bases else 0, size_bytes), snapshot)

    def _directory(self, top: str, key: Key) -> str:
        return os.path.join(top, "topics", str(key[0]), str(key[1]))

    # The logs

    def _copy_logs(self, look: _Look) -> bool:
        """Copy what is not copied yet. Whether all was there."""
        os.makedirs(os.path.join(self._work, "topics"), exist_ok=True)
        wanted: set[str] = set()
        whole = True
        for key, log in look.logs.items():
            directory, target = self._directory(self._data_dir, key), self._directory(self._work, key)
            os.makedirs(target, exist_ok=True)
            for base in log.bases:
                if base > log.end[0]:
                    continue
                name = segment_name(base)
                limit = log.end[1] if base == log.end[0] else None
                wanted.add(os.path.join(target, name))
                whole = self._copy_segment(os.path.join(directory, name), os.path.join(target, name), limit) and whole
                wanted |= self._copy_index(os.path.join(directory, name), os.path.join(target, name), limit)
            if log.snapshot is not None:
                wanted.add(path := os.path.join(target, SNAPSHOT_NAME))
                with open(path, "wb") as file:
                    file.write(log.snapshot)
        if whole:
            self._remove_all_but(wanted, {self._directory(self._work, key) for key in look.logs})
        return whole

    def _copy_segment(self, source: str, target: str, limit: int | None) -> bool:
        done = self._copied.get(target)
        try:
            found = os.stat(source)
        except FileNotFoundError:
            # It was whole when it was copied: only the last segment of a log has a limit.
            return done is not None and limit is None and done.size_bytes == done.stamp[2]
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        size_bytes = min(found.st_size, limit) if limit is not None else found.st_size
        if done is not None and (done.stamp, done.size_bytes) == (stamp, size_bytes):
            return True
        try:
            self._copied[target] = _Copied(stamp, copy_file(source, target, limit))
        except FileNotFoundError:
            return False
        return True

    def _copy_index(self, source: str, target: str, limit: int | None) -> set[str]:
        """Copy the segment's index, unless the log has grown, and its index with it, since the cut was found."""
        source_index, target_index = (re.sub(r"\.log$", ".index", path) for path in (source, target))
        try:
            copy_file(source_index, target_index)
            with open(target_index, "rb") as file:
                found = read_summary(file.read(INDEX_HEADER_SIZE))
            if limit is not None and found is not None and limit < found[0].size_bytes <= os.path.getsize(source):
                os.unlink(target_index)
                return set()
        except FileNotFoundError:
            return {target_index} if os.path.exists(target_index) else set()
        return {target_index}

    def _remove_all_but(self, files: set[str], directories: set[str]) -> None:
        """What earlier rounds copied and this one has no use for."""
        for topic in os.listdir(os.path.join(self._work, "topics")):
            for partition in os.listdir(path := os.path.join(self._work, "topics", topic)):
                directory = os.path.join(path, partition)
                if directory not in directories:
                    shutil.rmtree(directory)
                    continue
                for name in os.listdir(directory):
                    if (found := os.path.join(directory, name)) not in files:
                        os.unlink(found)
            if not os.listdir(path):
                os.rmdir(path)
        self._copied = {path: each for path, each in self._copied.items() if path in files}


def _knows_more(journal: JournalCopy, metadata: MetadataView) -> bool:
    """Whether it tells of partitions that are newer than the metadata; those of topics that are gone are none."""
    known = {topic.id: topic.num_partitions for topic in metadata.topics}
    return any(
        part.topic_id > metadata.highest_topic_id or part.partition >= known.get(part.topic_id, part.partition + 1)
        for entry in journal.entries for part in entry.parts if part.kind == KIND_BATCHES)


def _cut(logs: dict[Key, _Log], journal: JournalCopy, later: JournalCopy) -> bool:
    """Cut each log before what the later copy of the journal has more; false when its snapshot vouches for more."""
    for entry in later.entries:
        if entry.sequence <= journal.last:
            continue
        for part in entry.parts:
            key = (part.topic_id, part.partition)
            if part.kind != KIND_BATCHES or key not in logs:
                continue
            log = logs[key]
            end = (part.segment_base_offset, part.position)
            if end < log.end:
                if log.snapshot is not None and part.base_offset < snapshot_of(log.snapshot).offset:
                    return False
                logs[key] = _Log(log.bases, end, log.snapshot)
    return True


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


@contextmanager
def _locked_if_idle(data_dir: str) -> Iterator[bool]:
    """With the directory's lock when no broker has it; whether that is so. Raises CommandError: no data directory."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(data_dir))
            is_idle = True
        except InUseError:
            is_idle = False
        yield is_idle


def _sync_tree(top: str) -> None:
    for directory, _, names in os.walk(top):
        for path in (*(os.path.join(directory, name) for name in names), directory):
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
