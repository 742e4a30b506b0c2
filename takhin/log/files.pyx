"""The filesystem seam: every file operation of the engine goes through one table of functions.

Directory listings and file sizes are read past it: they change nothing.
"""

import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EEXIST, EINTR, EIO, ENOSYS, EOPNOTSUPP, errno
from libc.stdint cimport int64_t
from posix.fcntl cimport O_CLOEXEC, O_DIRECTORY, O_RDONLY, open
from posix.types cimport off_t
from posix.unistd cimport close, fdatasync, fsync, ftruncate, rmdir, unlink

cdef extern from "<sys/uio.h>" nogil:
    ssize_t pwritev(int fd, const iovec* parts, int count, off_t position)
    ssize_t preadv2(int fd, const iovec* parts, int count, off_t position, int flags)
    int RWF_NOWAIT

cdef extern from "<stdio.h>" nogil:
    int rename(const char* old, const char* new)

cdef extern from "<sys/stat.h>" nogil:
    int mkdir(const char* path, unsigned int mode)


cdef int _open_file(void* context, const char* path, int flags) noexcept nogil:
    cdef int fd = open(path, flags | O_CLOEXEC, 0o640)
    return fd if fd >= 0 else -errno


cdef int _close_file(void* context, int fd) noexcept nogil:
    return 0 if close(fd) == 0 else -errno


cdef ssize_t _write_at(void* context, int fd, const iovec* parts, int count, int64_t position) noexcept nogil:
    cdef ssize_t written = pwritev(fd, parts, count, position)
    return written if written >= 0 else -errno


cdef ssize_t _read_at(void* context, int fd, void* to, size_t size, int64_t position, bint cached) noexcept nogil:
    cdef iovec part
    cdef ssize_t got
    part.iov_base = to
    part.iov_len = size
    got = preadv2(fd, &part, 1, position, RWF_NOWAIT if cached else 0)
    if got >= 0:
        return got
    if cached and (errno == EOPNOTSUPP or errno == ENOSYS):
        # The filesystem cannot tell what is cached: then nothing counts as cached.
        return -FILES_WOULD_BLOCK
    return -errno


cdef int _sync_data(void* context, int fd) noexcept nogil:
    return 0 if fdatasync(fd) == 0 else -errno


cdef int _sync_directory(void* context, int fd) noexcept nogil:
    return 0 if fsync(fd) == 0 else -errno


cdef int _truncate_file(void* context, int fd, int64_t size_bytes) noexcept nogil:
    return 0 if ftruncate(fd, size_bytes) == 0 else -errno


cdef int _rename_path(void* context, const char* old, const char* new) noexcept nogil:
    return 0 if rename(old, new) == 0 else -errno


cdef int _unlink_path(void* context, const char* path) noexcept nogil:
    return 0 if unlink(path) == 0 else -errno


cdef int _make_directory(void* context, const char* path) noexcept nogil:
    return 0 if mkdir(path, 0o750) == 0 else -errno


cdef int _remove_directory(void* context, const char* path) noexcept nogil:
    return 0 if rmdir(path) == 0 else -errno


cdef int _check(int result, object path) except -1:
    if result < 0:
        raise OSError(-result, os.strerror(-result), path)
    return result


@cython.final
cdef class Files:
    """The real filesystem. Every method raises OSError."""

    def __cinit__(self):
        self.ops.context = NULL
        self.ops.open_file = _open_file
        self.ops.close_file = _close_file
        self.ops.write_at = _write_at
        self.ops.read_at = _read_at
        self.ops.sync_data = _sync_data
        self.ops.sync_directory = _sync_directory
        self.ops.truncate_file = _truncate_file
        self.ops.rename_path = _rename_path
        self.ops.unlink_path = _unlink_path
        self.ops.make_directory = _make_directory
        self.ops.remove_directory = _remove_directory

    cdef int write_all(self, int fd, iovec* parts, int count, int64_t position) noexcept nogil:
        cdef ssize_t written
        while count > 0 and parts.iov_len == 0:
            parts += 1
            count -= 1
        while count > 0:
            written = self.ops.write_at(self.ops.context, fd, parts, count, position)
            if written == -EINTR:
                continue
            if written < 0:
                return <int>written
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
        while done < size:
            got = self.ops.read_at(self.ops.context, fd, <char*>to + done, size - done, position + done, cached)
            if got == -EINTR:
                continue
            if got == 0 or (got == -FILES_WOULD_BLOCK and done):
                break
            if got < 0:
                return got
            done += got
        return <ssize_t>done

    def open(self, str path not None, int flags):
        """A file descriptor, closed on exec; a file made by it has the mode 0640."""
        encoded = os.fsencode(path)
        cdef const char* name = encoded
        cdef int fd
        with nogil:
            fd = self.ops.open_file(self.ops.context, name, flags)
        return _check(fd, path)

    def close(self, int fd):
        _check(self.ops.close_file(self.ops.context, fd), None)

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

    def sync_data(self, int fd):
        """What was written to the file, and the size needed to read it, are on the disk after this."""
        cdef int result
        with nogil:
            result = self.ops.sync_data(self.ops.context, fd)
        _check(result, None)

    def sync_directory(self, str path not None):
        """The names in the directory are on the disk after this."""
        cdef int fd = self.open(path, O_RDONLY | O_DIRECTORY)
        cdef int result
        try:
            with nogil:
                result = self.ops.sync_directory(self.ops.context, fd)
            _check(result, path)
        finally:
            self.close(fd)

    def truncate(self, int fd, int64_t size_bytes):
        _check(self.ops.truncate_file(self.ops.context, fd, size_bytes), None)

    def rename(self, str old not None, str new not None):
        old_name = os.fsencode(old)
        new_name = os.fsencode(new)
        _check(self.ops.rename_path(self.ops.context, old_name, new_name), old)

    def unlink(self, str path not None):
        name = os.fsencode(path)
        _check(self.ops.unlink_path(self.ops.context, name), path)

    def make_directory(self, str path not None):
        """Whether it was made: False when it was there."""
        name = os.fsencode(path)
        cdef int result = self.ops.make_directory(self.ops.context, name)
        if result == -EEXIST:
            return False
        _check(result, path)
        return True

    def remove_directory(self, str path not None):
        name = os.fsencode(path)
        _check(self.ops.remove_directory(self.ops.context, name), path)
