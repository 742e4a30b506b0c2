"""The whole of a backup: looks (backup_look.py), and what they tell is copied.

A round is a look, and the copying of what lies before its cuts; that may take hours, and the broker goes on meanwhile,
starts or stops. When retention has taken away what was to be copied, or what was looked at does not hold any more, the
round is done again; what is copied and has not changed since stays, and what has is copied as soon as it is seen.

Index files and snapshots vouch for a log up to an offset. They are copied only as far as the copy goes up to it.
"""

import ctypes
import errno
import os
import re
import shutil
import tempfile
import time
from dataclasses import dataclass

from takhin.cli.backup_files import copy_file, finish_metadata
from takhin.cli.backup_look import AGAIN, Key, Log, Look, look_at, partition_directory, still_holds
from takhin.cli.command import EXIT_FAILED, EXIT_OK, EXIT_USAGE, CommandError
from takhin.cli.data_audit import Auditor, InUseError, locked
from takhin.cli.terminal import Output
from takhin.cli.times import iso_time
from takhin.cli.verify import print_finding, print_summary
from takhin.log.files import Files
from takhin.log.index import INDEX_HEADER_SIZE, read_summary
from takhin.log.producers import SNAPSHOT_NAME
from takhin.log.segment import segment_name

# Rounds of which something got away. The first may take hours, each further one what changed since.
MAX_ROUNDS = 50
_PAUSE_S = 0.05
# Of renameat2(2), which Python does not have.
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


@dataclass(slots=True)
class _Copied:
    """A segment's file as it was before it was copied, and how much of it was. is_whole: nothing was added later, as
    another segment followed by then."""

    stamp: tuple[int, int, int]
    size_bytes: int
    is_whole: bool


def backup(data_dir: str, destination: str, *, verify: bool) -> int:
    """Gives the exit status. Raises CommandError, OSError."""
    shown = destination
    data_dir, destination = _checked(data_dir, destination)
    begun_s = time.time()
    # A name of its own: what has another one may be anybody's.
    work = tempfile.mkdtemp(prefix=f"{os.path.basename(destination)}.unfinished-", dir=os.path.dirname(destination))
    try:
        copying = _Backup(data_dir, work)
        copying.run()
        _sync_tree(work, os.stat(data_dir))
        _name(work, destination)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    # From here on it is there, whatever happens.
    Files().sync_directory(os.path.dirname(destination))
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


def _checked(data_dir: str, destination: str) -> tuple[str, str]:
    """Both, without symbolic links. Raises CommandError."""
    data_dir = os.path.realpath(data_dir)
    parent, name = os.path.split(os.path.abspath(destination))
    destination = os.path.join(os.path.realpath(parent), name)
    if os.path.lexists(destination):
        raise _is_there(destination, EXIT_USAGE)
    if destination.startswith(data_dir + os.sep):
        raise CommandError(f"{destination} lies in {data_dir}; a backup belongs elsewhere", EXIT_USAGE)
    try:
        with locked(data_dir):
            pass
    except InUseError:
        pass
    if not os.path.isdir(parent):
        raise CommandError(f"{parent}, where {name} is to be, is no directory; make it first", EXIT_USAGE)
    return data_dir, destination


def _name(work: str, destination: str) -> None:
    """Give the directory its name, unless something has it by now: os.rename() would replace an empty directory. Raises
    CommandError, OSError."""
    problem = _renameat2(work, destination)
    if problem in (errno.ENOSYS, errno.EINVAL):
        # Not in this system, or not on this file system. So there is a moment in between.
        problem = errno.EEXIST if os.path.lexists(destination) else 0
        if not problem:
            os.rename(work, destination)
    if problem == errno.EEXIST:
        raise _is_there(destination)
    if problem:
        raise OSError(problem, os.strerror(problem), destination)


def _renameat2(source: str, target: str) -> int:
    """Rename it unless the target is there. The error number; 0: it is done."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return errno.ENOSYS
    function.argtypes = ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
    failed = function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE)
    return ctypes.get_errno() if failed else 0


def _is_there(destination: str, status: int = EXIT_FAILED) -> CommandError:
    return CommandError(f"{destination} is there already; name another directory", status)


class _Backup:
    def __init__(self, data_dir: str, work: str):
        self._data_dir = data_dir
        self._work = work
        self._copied: dict[str, _Copied] = {}
        self.num_partitions = 0
        self.num_bytes = 0

    def run(self) -> None:
        """Have the whole copy in the directory it works in, not synced. Raises CommandError, OSError."""
        for _ in range(MAX_ROUNDS):
            look = look_at(self._data_dir, self._work, self._copy_ahead)
            if self._copy_logs(look) and still_holds(look, self._data_dir, self._work):
                self._finish(look)
                return
            time.sleep(_PAUSE_S)
        raise CommandError(
            f"{self._data_dir} changes faster than it can be copied: segments go before they are, or epochs begin; "
            "try again with longer retention (retention.ms, retention.bytes), or on a quieter broker")

    def _finish(self, look: Look) -> None:
        shutil.rmtree(os.path.join(self._work, AGAIN), ignore_errors=True)
        if look.metadata is not None:
            finish_metadata(self._work)
        # By it tools know whether a broker runs on the copy.
        os.close(os.open(os.path.join(self._work, "LOCK"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self.num_partitions = len(look.logs)
        self.num_bytes = sum(each.size_bytes for each in self._copied.values())

    # The logs

    def _copy_logs(self, look: Look) -> bool:
        """Copy what is not copied yet. Whether all was there. Raises CommandError, OSError."""
        if not self._copied:
            self._check_room(look)
        os.makedirs(os.path.join(self._work, "topics"), exist_ok=True)
        whole, wanted = self._copy_files(look.logs)
        if whole:
            self._remove_all_but(wanted, {partition_directory(self._work, key) for key in look.logs})
        return whole

    def _copy_ahead(self, logs: dict[Key, Log]) -> None:
        """Before it is known whether they are of use, as retention may be fast; the first time that would be the whole
        of it."""
        if self._copied:
            self._copy_files(logs)

    def _copy_files(self, logs: dict[Key, Log]) -> tuple[bool, set[str]]:
        """Whether all was there; and the names of all that belongs to the copy."""
        wanted: set[str] = set()
        whole = True
        for key, log in logs.items():
            directory, target = partition_directory(self._data_dir, key), partition_directory(self._work, key)
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
        return whole, wanted

    def _check_room(self, look: Look) -> None:
        """Raises CommandError when there is none for all that is to be copied: on the data's own disk the broker would
        be the next to have none."""
        needed_bytes = sum(log.end[1] for log in look.logs.values())
        for key, log in look.logs.items():
            for base in log.bases:
                if base < log.end[0]:
                    try:
                        needed_bytes += os.path.getsize(
                            os.path.join(partition_directory(self._data_dir, key), segment_name(base)))
                    except FileNotFoundError:
                        pass
        free_bytes = shutil.disk_usage(self._work).free
        if needed_bytes > free_bytes:
            raise CommandError(
                f"{os.path.dirname(self._work)} has {free_bytes:,} bytes free; the segments to be copied have "
                f"{needed_bytes:,}")

    def _copy_segment(self, source: str, target: str, limit: int | None) -> bool:
        done = self._copied.get(target)
        try:
            found = os.stat(source)
        except FileNotFoundError:
            return done is not None and (done.is_whole if limit is None else done.size_bytes == limit)
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        size_bytes = min(found.st_size, limit) if limit is not None else found.st_size
        if done is not None and (done.stamp, done.size_bytes) == (stamp, size_bytes):
            # Only the last segment of a log has a limit.
            done.is_whole = limit is None
            return True
        try:
            self._copied[target] = _Copied(stamp, copy_file(source, target, limit), limit is None)
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


def _sync_tree(top: str, owner: os.stat_result) -> None:
    """Sync all of the copy; made by root, it becomes the owner's, whose broker is to run on it."""
    for directory, _, names in os.walk(top):
        for path in (*(os.path.join(directory, name) for name in names), directory):
            fd = os.open(path, os.O_RDONLY)
            try:
                if os.geteuid() == 0:
                    os.fchown(fd, owner.st_uid, owner.st_gid)
                os.fsync(fd)
            finally:
                os.close(fd)
