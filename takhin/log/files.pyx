"""The filesystem seam: whatever the engine does to files, it does here.

(tests/house holds it. Faults are injected, and operations recorded, right below: between this module, or SQLite, and
the C library.)
"""

import fcntl
import os
import stat

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport (
    EAGAIN, EDQUOT, EINTR, EIO, EMFILE, ENFILE, ENOMEM, ENOSPC, ENOSYS, EOPNOTSUPP, errno
)
from libc.stdint cimport int64_t
from posix.fcntl cimport O_CLOEXEC, O_DIRECTORY, O_RDONLY, open
from posix.types cimport off_t
from posix.unistd cimport close, fdatasync, fsync

cdef extern from "<sys/uio.h>" nogil:
    ssize_t pwritev(int fd, const iovec* parts, int count, off_t position)
    ssize_t preadv2(int fd, const iovec* parts, int count, off_t position, int flags)
    int RWF_NOWAIT

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int fd, int mode, off_t position, off_t size)
    int FALLOC_FL_KEEP_SIZE

FILE_MODE = 0o640
DIRECTORY_MODE = 0o750
# What passes: not a word about what is on the disk.
PASSING = frozenset((ENOSPC, EDQUOT, EMFILE, ENFILE, ENOMEM, EINTR, EAGAIN))


@cython.final
cdef class Files:
    """The filesystem. Every method raises OSError."""

    cdef int write_all(self, int fd, iovec* parts, int count, int64_t position) noexcept nogil:
        cdef ssize_t written
        while count > 0 and parts.iov_len == 0:
            parts += 1
            count -= 1
        while count > 0:
            written = pwritev(fd, parts, count, position)
            if written < 0:
                if errno == EINTR:
                    continue
                return -errno
            if written == 0:
                return -EIO
            position += written
            while count > 0 and <size_t>written >= parts.iov_len:
                written -= parts.iov_len
                parts += 1
                count -= 1
            if count > 0:
                parts.iov_base = <char*>parts.iov_base + written
                parts.iov_len -= <size_t>written
        return 0

    cdef ssize_t read_full(self, int fd, void* to, size_t size, int64_t position, bint cached) noexcept nogil:
        cdef size_t done = 0
        cdef ssize_t got
        cdef iovec part
        while done < size:
            part.iov_base = <char*>to + done
            part.iov_len = size - done
            got = preadv2(fd, &part, 1, position + done, RWF_NOWAIT if cached else 0)
            if got < 0:
                if errno == EINTR:
                    continue
                # A filesystem that cannot tell what is cached has nothing cached.
                if cached and (errno == FILES_WOULD_BLOCK or errno == EOPNOTSUPP or errno == ENOSYS):
                    if done:
                        break
                    return -FILES_WOULD_BLOCK
                return -errno
            if got == 0:
                break
            done += got
        return <ssize_t>done

    cdef int sync_file(self, int fd) noexcept nogil:
        while fdatasync(fd) < 0:
            if errno != EINTR:
                return -errno
        return 0

    cdef int sync_names(self, int fd) noexcept nogil:
        while fsync(fd) < 0:
            if errno != EINTR:
                return -errno
        return 0

    cdef int close_file(self, int fd) noexcept nogil:
        return 0 if close(fd) == 0 else -errno

    # Files

    def open(self, str path not None, int flags):
        """A file descriptor, closed on exec; a file made by it has the mode 0640."""
        encoded = os.fsencode(path)
        cdef const char* name = encoded
        cdef int mode = FILE_MODE
        cdef int fd
        while True:
            with nogil:
                fd = open(name, flags | O_CLOEXEC, mode)
                if fd < 0:
                    fd = -errno
            if fd != -EINTR:
                return _check(fd, path)

    def close(self, int fd):
        _check(self.close_file(fd), None)

    def read(self, int fd, size_t size, int64_t position):
        """Up to size bytes from position: fewer only where the file ends."""
        cdef bytes data = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        cdef char* to = PyBytes_AS_STRING(data)
        cdef ssize_t got
        with nogil:
            got = self.read_full(fd, to, size, position, False)
        if got < 0:
            raise OSError(-got, os.strerror(-got))
        return data if <size_t>got == size else data[:got]

    def write(self, int fd, bytes data not None, int64_t position):
        """All of data at position."""
        cdef iovec part
        cdef int result
        part.iov_base = PyBytes_AS_STRING(data)
        part.iov_len = <size_t>len(data)
        with nogil:
            result = self.write_all(fd, &part, 1, position)
        _check(result, None)

    def replace(self, str path not None, bytes data not None):
        """The file holds data, or, when this fails or is cut short, what it held before. Nothing is synced: after a
        power cut it may hold a part of data."""
        self._replace(path, data, False)

    def replace_whole(self, str path not None, bytes data not None):
        """As replace(), after a power cut, too; but whether it holds then the one or the other nobody knows."""
        self._replace(path, data, True)

    def replace_durably(self, str path not None, bytes data not None):
        """The file holds data, on the disk, or, when this fails or is cut short, what it held before."""
        self._replace(path, data, True)
        self.sync_directory(os.path.dirname(path) or ".")

    def _replace(self, str path not None, bytes data not None, bint synced):
        beside = path + ".new"
        fd = self.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            self.write(fd, data, 0)
            if synced:
                self.sync_data(fd)
        except OSError:
            self.close(fd)
            self.unlink(beside)
            raise
        self.close(fd)
        self.rename(beside, path)

    def sync_data(self, int fd):
        """What was written to the file, and the size needed to read it, are on the disk after this."""
        cdef int result
        with nogil:
            result = self.sync_file(fd)
        _check(result, None)

    def sync_directory(self, str path not None):
        """The names in the directory are on the disk after this."""
        cdef int fd = self.open(path, O_RDONLY | O_DIRECTORY)
        cdef int result
        try:
            with nogil:
                result = self.sync_names(fd)
            _check(result, path)
        finally:
            self.close(fd)

    def reserve(self, int fd, int64_t position, int64_t size_bytes):
        """What is written there will find room on the disk; the file's size stays. Nothing, where that can't be."""
        cdef int result
        while True:
            with nogil:
                result = 0 if fallocate(fd, FALLOC_FL_KEEP_SIZE, position, size_bytes) == 0 else -errno
            if result == -EOPNOTSUPP or result == -ENOSYS:
                return
            if result != -EINTR:
                _check(result, None)
                return

    def truncate(self, int fd, int64_t size_bytes):
        os.ftruncate(fd, size_bytes)

    def size(self, path_or_fd not None):
        """In bytes."""
        return os.stat(path_or_fd).st_size

    def lock(self, str path not None):
        """The descriptor that holds the lock on the file (made when missing); None: another process has it."""
        fd = self.open(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close(fd)
            return None
        except OSError:
            self.close(fd)
            raise
        return fd

    # Names

    def exists(self, str path not None):
        """Whether there is anything of that name: what can't be looked at is not taken for missing."""
        return _mode(path) != 0

    def list_directory(self, str path not None):
        """The names in it, sorted."""
        return sorted(os.listdir(path))

    def is_directory(self, str path not None):
        """Whether there is one of that name; what a symbolic link points to does not count."""
        return stat.S_ISDIR(_mode(path))

    def rename(self, str old not None, str new not None):
        os.rename(old, new)

    def unlink(self, str path not None):
        os.unlink(path)

    def make_directory(self, str path not None):
        """Whether it was made: False when it was there."""
        try:
            os.mkdir(path, DIRECTORY_MODE)
        except FileExistsError:
            return False
        return True

    def remove_directory(self, str path not None):
        os.rmdir(path)

    def free_bytes(self, str path not None):
        """What a user other than root can still write to the filesystem on which path lies."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize


def _mode(path):
    """Type and permissions of what has that name, 0 when nothing has. Raises OSError."""
    try:
        return os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


cdef int _check(int result, object path) except -1:
    if result < 0:
        raise OSError(-result, os.strerror(-result), path)
    return result
