"""What takhin doctor looks at below the data directory: filesystem, space, what the kernel can do there, its syncs."""

import ctypes
import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

SYNCS = 50
BLOCK_BYTES = 4096
# Above, a durable acknowledgement takes as long as people notice; below, nothing can have reached a disk.
SLOW_P99_MS = 50.0
UNBELIEVABLE_P50_MS = 0.005
_FALLOC_FL_KEEP_SIZE = 1
# Where a sync, a lock or a rename may not be what it is on a disk of this machine's own.
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "fuse", "lustre", "afs", "virtiofs"}

# Of doctor_checks.
MakeFinding = Callable[..., Any]


def disk_checks(directory: str, min_free_bytes: int, finding: MakeFinding) -> Iterator[Any]:
    """directory: that is there. finding(check, status, found, advice)."""
    yield filesystem(directory, finding)
    yield from space(directory, min_free_bytes, finding)
    try:
        with tempfile.TemporaryFile(dir=directory, prefix=".takhin-doctor-", buffering=0) as file:
            yield from _features(file.fileno(), finding)
            yield sync_time(sync_times_ms(file.fileno()), finding)
    except OSError as problem:
        yield finding("sync", "bad", f"no file can be written in {directory}: {problem.strerror}",
                      "let this user write there, and make room")


def filesystem(directory: str, finding: MakeFinding, mounts: str = "/proc/self/mountinfo") -> Any:
    kind, point = mount_of(directory, mounts)
    found = f"{kind} on {point}"
    if kind.partition(".")[0] in _NETWORK:
        return finding("filesystem", "warn", found, "a disk of this machine's own: whether a sync reaches one, and "
                       "a lock holds, is up to others here")
    if kind in ("tmpfs", "ramfs"):
        return finding("filesystem", "warn", found,
                       "a filesystem on a disk: this one is memory, and gone with the power")
    if kind in ("overlay", "aufs"):
        return finding("filesystem", "warn", found,
                       "a volume for the data: this is the container's own layer, and goes with the container")
    if not kind:
        return finding("filesystem", "warn", "is not to be found out", "")
    return finding("filesystem", "ok", found)


def mount_of(directory: str, mounts: str) -> tuple[str, str]:
    """(type, mount point) of what the directory lies on; "" for what can't be found out."""
    device = os.stat(directory).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    path = os.path.realpath(directory)
    best = ("", "")
    try:
        with open(mounts) as file:
            for line in file:
                before, _, after = line.partition(" - ")
                words = before.split()
                point = words[4].replace("\\040", " ")
                # By name, as subvolumes of a filesystem have numbers of their own; of several at a place the last.
                inside = path == point or path.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(best[1]) or (words[2] == number and not best[0]):
                    best = (after.split()[0], point)
    except (OSError, IndexError):
        pass
    return best


def space(directory: str, min_free_bytes: int, finding: MakeFinding) -> Iterator[Any]:
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize
    total = found.f_blocks * found.f_frsize
    told = f"{free >> 20:,} MiB of {total >> 20:,} are free"
    if free < min_free_bytes:
        yield finding("space", "bad", f"{told}; below limits.min_free_bytes ({min_free_bytes >> 20:,} MiB) nothing is "
                      "appended", "make room, or keep less (retention.ms, retention.bytes)")
    elif free < total // 10 or free < 4 * min_free_bytes:
        yield finding("space", "warn", told, "make room, or keep less (retention.ms, retention.bytes)")
    else:
        yield finding("space", "ok", told)
    # Some filesystems have no bound.
    if found.f_files and found.f_favail < found.f_files // 20:
        yield finding("inodes", "warn", f"{found.f_favail:,} of {found.f_files:,} are free",
                      "each segment takes two files: larger segments (segment.bytes), or another filesystem")


def _features(fd: int, finding: MakeFinding) -> Iterator[Any]:
    os.write(fd, bytes(BLOCK_BYTES))
    try:
        os.preadv(fd, [bytearray(BLOCK_BYTES)], 0, os.RWF_NOWAIT)
        yield finding("cached reads", "ok", "the filesystem tells what is in the cache (RWF_NOWAIT)")
    except BlockingIOError:
        yield finding("cached reads", "ok", "the filesystem tells what is not in the cache (RWF_NOWAIT)")
    except OSError as problem:
        yield finding("cached reads", "warn", f"RWF_NOWAIT does not work here: {problem.strerror}",
                      "another filesystem (ext4, xfs, btrfs): each read of older records takes a thread here")
    libc = ctypes.CDLL(None, use_errno=True)
    # Beyond what any ABI passes by itself: offsets are 64 bits wide.
    result = libc.fallocate(fd, _FALLOC_FL_KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(16 * BLOCK_BYTES))
    if result == 0:
        yield finding("reserved room", "ok", "the filesystem can reserve room (fallocate)")
    else:
        code = ctypes.get_errno()
        why = "not supported" if code == errno.EOPNOTSUPP else os.strerror(code)
        yield finding("reserved room", "warn", f"fallocate does not work here: {why}",
                      "another filesystem (ext4, xfs, btrfs): a transaction that is decided may find the disk full")


def sync_times_ms(fd: int, count: int = SYNCS) -> list[float]:
    """How long fdatasync took after each of so many writes of 4 KiB, one behind the other as a log grows; sorted."""
    took = []
    for number in range(count):
        os.pwrite(fd, os.urandom(BLOCK_BYTES), number * BLOCK_BYTES)
        begun_ns = time.monotonic_ns()
        os.fdatasync(fd)
        took.append((time.monotonic_ns() - begun_ns) / 1e6)
    return sorted(took)


def sync_time(took_ms: list[float], finding: MakeFinding) -> Any:
    """What it means: whoever waits for each durable ack before the next record gets no more than one a sync."""
    p50, p99 = took_ms[len(took_ms) // 2], took_ms[len(took_ms) * 99 // 100]
    found = (
        f"fdatasync of 4 KiB, {len(took_ms)} times: p50 {p50:.3g} ms, p99 {p99:.3g} ms: a producer that waits for each "
        f"durable ack gets {1000 / max(p50, 0.001):,.0f} a second at most, many together share a sync")
    if p50 < UNBELIEVABLE_P50_MS:
        return finding("sync", "warn", found, "no disk is so fast: does it keep, or only say, what it is told to sync? "
                       "a memory filesystem, or a disk's or hypervisor's volatile cache, loses it with the power")
    if p99 > SLOW_P99_MS:
        return finding("sync", "warn", found, "a disk for the log alone, or a faster one; or acks 1 where a record may "
                       "be lost with the power")
    return finding("sync", "ok", found)
