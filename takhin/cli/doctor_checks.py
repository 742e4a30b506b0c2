"""What takhin doctor looks at. Each check says what was found and, where that is not well, what to do."""

import asyncio
import ctypes
import fcntl
import os
import platform
import resource
import sqlite3
import stat
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import NamedTuple

from takhin.broker.sqlite_thread import OLDEST_SQLITE
from takhin.cli.doctor_disk import disk_checks
from takhin.cli.config_check import start_problems
from takhin.cli.fast_front import is_wanted
from takhin.cli.index_view import read_index_file
from takhin.config import DEFAULT, Settings, gather_settings
from takhin.errors import StartError
from takhin.listen_address import unix_path

OK, WARN, BAD = "ok", "warn", "bad"
MIB = 1 << 20
# What the program takes beside its budgets: more than the 74 MiB at most that the README measured.
PROGRAM_BYTES = 128 * MIB
# So far apart may clock and newest record be.
CLOCK_S = 60
_STA_UNSYNC = 0x0040
# Of struct timex on 64-bit machines: its size, and where `status` is.
_TIMEX_BYTES, _TIMEX_STATUS_AT = 208, 40


class Finding(NamedTuple):
    """status: ok, warn or bad. advice: what to do, "" for nothing."""

    check: str
    status: str
    found: str
    advice: str = ""


def examine(environ: Mapping[str, str], config_file: str | None, data_dir: str | None) -> list[Finding]:
    """All checks, in order. Blocks for as long as some fifty syncs take."""
    settings, sources, problems = gather_settings({}, environ, config_file)
    is_fast_asked = sources["fast_listen"] != DEFAULT
    if data_dir is not None:
        settings = replace(settings, data_dir=data_dir)
    if not problems:
        problems = list(start_problems(settings, environ, is_fast_asked=is_fast_asked))
    found = [Finding("settings", BAD, each, "takhin config check tells more") for each in problems]
    if not problems:
        found.append(Finding("settings", OK, f"of {config_file}" if config_file else "defaults and TAKHIN_* variables"))
    holder = lock_holder(settings.data_dir)
    found += versions()
    found += [open_files(settings), memory(settings)]
    found += data_directory(settings.data_dir)
    if holder is not None:
        found.append(Finding("lock", OK, f"a broker uses the data directory (process {holder or 'unknown'})"))
    found += disk_checks(nearest_directory(settings.data_dir), settings.limits.min_free_bytes, Finding)
    found += ports(settings, is_fast_asked=is_fast_asked, is_running=holder is not None)
    return found + list(clock(settings.data_dir))


def nearest_directory(path: str) -> str:
    """The directory, or the nearest one above that is there."""
    path = os.path.abspath(path)
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def lock_holder(data_dir: str) -> str | None:
    """The process that has the directory's lock, "" when it does not say; None: nobody has it."""
    try:
        fd = os.open(os.path.join(data_dir, "LOCK"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return os.pread(fd, 32, 0).decode("ascii", "replace").strip()
    finally:
        os.close(fd)
    return None


def versions() -> Iterator[Finding]:
    yield Finding("python", OK, f"{platform.python_implementation()} {platform.python_version()}")
    yield Finding("grpcio", OK, version("grpcio"))
    oldest = ".".join(map(str, OLDEST_SQLITE))
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        yield Finding("sqlite", BAD, sqlite3.sqlite_version, f"have a Python with SQLite {oldest} or newer")
    else:
        yield Finding("sqlite", OK, f"{sqlite3.sqlite_version}; {oldest} or newer is needed")
    yield Finding("kernel", OK, f"{platform.system()} {platform.release()}")


def open_files(settings: Settings) -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.limits.open_files
    if hard == resource.RLIM_INFINITY or hard >= 2 * wanted:
        allowed = "no bound" if hard == resource.RLIM_INFINITY else f"{hard:,}"
        return Finding("open files", OK, f"{allowed} (ulimit -Hn), {wanted:,} of them for segments (limits.open_files)")
    return Finding(
        "open files", WARN, f"{hard:,} (ulimit -Hn): the broker would hold {max(16, hard // 2):,} segment files open "
        f"instead of {wanted:,} (limits.open_files)",
        f"allow {2 * wanted:,}: LimitNOFILE= in the unit, ulimit -Hn in a shell; or lower limits.open_files")


def memory(settings: Settings) -> Finding:
    limits = settings.limits
    needed = PROGRAM_BYTES + limits.ring_bytes + limits.reader_bytes + limits.transaction_bytes_in_flight
    # Clients that send much at once take these, too; most never do.
    at_most = needed + limits.call_bytes + limits.all_streams_bytes_in_flight
    allowed, whose = memory_limit()
    found = (
        f"{needed // MIB:,} MiB for program, ring_bytes, reader_bytes and transaction_bytes_in_flight, "
        f"{at_most // MIB:,} MiB with call_bytes and all_streams_bytes_in_flight, of {allowed // MIB:,} MiB ({whose})")
    if needed > allowed:
        return Finding("memory", BAD, found, "give it more, or lower limits.ring_bytes and limits.reader_bytes")
    if at_most > allowed * 3 // 4:
        return Finding(
            "memory", WARN, found, "leave a quarter for the page cache and what lies unused between: more memory, or "
            "lower limits.ring_bytes, limits.reader_bytes, limits.call_bytes and limits.all_streams_bytes_in_flight")
    return Finding("memory", OK, found)


def memory_limit(root: str = "/") -> tuple[int, str]:
    """How much this process may use, and what says so: a control group, or the machine."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = [(machine, "the machine's")]
    try:
        with open(os.path.join(root, "proc/self/cgroup")) as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        groups = []
    for _, controllers, path in (each for each in groups if len(each) == 3):
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
        # A bound of a group above holds, too; in a container its own group is the top.
        parts = path.strip("/").split("/") if path.strip("/") else []
        for depth in range(len(parts), -1, -1):
            try:
                with open(os.path.join(root, "sys/fs/cgroup", top, *parts[:depth], name)) as file:
                    text = file.read().strip()
            except OSError:
                continue
            if text.isdecimal():
                found.append((int(text), "the control group's"))
    return min(found)


def data_directory(data_dir: str) -> Iterator[Finding]:
    path = os.path.abspath(data_dir)
    try:
        found = os.stat(path)
    except OSError as problem:
        above = nearest_directory(path)
        if not isinstance(problem, FileNotFoundError):
            yield Finding("data directory", BAD, f"{path}: {problem.strerror}", "let the broker's user go there")
        elif os.access(above, os.W_OK | os.X_OK):
            yield Finding("data directory", OK, f"{path} is not there yet; the broker makes it in {above}")
        else:
            yield Finding("data directory", BAD, f"{path} is not there, and can't be made in {above}",
                          "make it, for the broker's user")
        return
    if not stat.S_ISDIR(found.st_mode):
        yield Finding("data directory", BAD, f"{path} is not a directory", "name another one (data_dir)")
        return
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        yield Finding("data directory", BAD, f"{path} can't be read and written by user {os.geteuid()}",
                      "run it as the broker's user, or give the directory to it (chown -R)")
        return
    strangers = [name for name in ("meta.db", "topics", "LOCK") if _owner(os.path.join(path, name), found) !=
                 found.st_uid]
    if strangers:
        yield Finding("data directory", WARN, f"{path} is user {found.st_uid}'s, but not {', '.join(strangers)}",
                      f"was a broker started as another user? chown -R {found.st_uid} {path}")
    elif found.st_mode & 0o022:
        yield Finding("data directory", WARN, f"{path} can be written by others (mode {found.st_mode & 0o777:o})",
                      f"chmod go-w {path}")
    elif found.st_mode & 0o004:
        yield Finding("data directory", WARN, f"{path} can be read by everybody (mode {found.st_mode & 0o777:o})",
                      f"records are readable for every user of this machine: chmod o-rwx {path}")
    else:
        yield Finding("data directory", OK, f"{path}, of user {found.st_uid}, mode {found.st_mode & 0o777:o}")


def _owner(path: str, above: os.stat_result) -> int:
    try:
        return os.stat(path).st_uid
    except OSError:
        return above.st_uid


def ports(settings: Settings, *, is_fast_asked: bool, is_running: bool) -> Iterator[Finding]:
    """That the addresses can be had; where a broker runs, it has them. Without that of the fast front, unless somebody
    has set it, the broker makes do."""
    from takhin.rpc.listening import check_free, check_path_free

    fast = settings.fast_listen if is_wanted(settings, is_asked=is_fast_asked) else ""
    for key, address in (
        ("listen", settings.listen), ("fast_listen", fast), ("metrics_listen", settings.metrics_listen)
    ):
        if not address:
            continue
        path = unix_path(address) if key != "metrics_listen" else None
        try:
            if path is not None:
                check_path_free(path)
            else:
                asyncio.run(check_free(address))
        except StartError as problem:
            if is_running and "in use" in str(problem):
                yield Finding(key, OK, f"{address} is in use, and a broker runs")
            elif key == "fast_listen" and not is_fast_asked:
                yield Finding(key, WARN, str(problem), "the broker serves without the fast front, unless it is given "
                              'another address (fast_listen); "" for none')
            else:
                yield Finding(key, BAD, str(problem), f"end what has it, or choose another one ({key})")
        else:
            yield Finding(key, OK, f"{address} is free")


def clock(data_dir: str) -> Iterator[Finding]:
    is_synchronized = clock_is_synchronized()
    if is_synchronized is None:
        yield Finding("clock", WARN, "the kernel does not say whether it is synchronized", "see to it that it is (NTP)")
    elif is_synchronized:
        yield Finding("clock", OK, "the kernel says that it is synchronized")
    else:
        yield Finding(
            "clock", WARN, "the kernel says that it is not synchronized",
            "run chrony or systemd-timesyncd: retention goes by the broker's clock")
    newest_ms = newest_append_ms(data_dir)
    if newest_ms is None:
        return
    ahead_s = newest_ms / 1000 - time.time()
    if ahead_s > CLOCK_S:
        yield Finding(
            "newest record", WARN, f"was appended {ahead_s:,.0f} s from now: the clock was, or is, wrong",
            "set the clock; until it has come so far, retention.ms keeps what it would remove")
    else:
        yield Finding("newest record", OK, f"of those that index files tell of, was appended {-ahead_s:,.0f} s ago")


def clock_is_synchronized() -> bool | None:
    """None where the kernel does not say."""
    try:
        adjtimex: Callable[..., int] = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    told = ctypes.create_string_buffer(_TIMEX_BYTES)
    if ctypes.sizeof(ctypes.c_long) != 8 or adjtimex(told) < 0:
        return None
    (status,) = struct.unpack_from("=i", told, _TIMEX_STATUS_AT)
    return not status & _STA_UNSYNC


def newest_append_ms(data_dir: str) -> int | None:
    """The broker's time of the newest append that an index file tells of, of the ten that were written last."""
    found: list[tuple[float, str]] = []
    for directory, _, names in os.walk(os.path.join(data_dir, "topics")):
        for name in names:
            if name.endswith(".index"):
                try:
                    found.append((os.stat(path := os.path.join(directory, name)).st_mtime, path))
                except OSError:
                    continue
    times = []
    for _, path in sorted(found)[-10:]:
        try:
            summary = read_index_file(path).summary
        except OSError:
            continue
        if summary is not None and summary.next_offset > summary.base_offset:
            times.append(summary.last_append_ms)
    return max(times, default=None)
