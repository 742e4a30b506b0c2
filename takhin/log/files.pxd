"""The filesystem seam: every file operation of the engine goes through one table of functions."""

from libc.stdint cimport int64_t
from posix.types cimport off_t

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void* iov_base
        size_t iov_len

cdef enum:
    FILES_WOULD_BLOCK = 11      # EAGAIN: a read that may not wait found nothing cached


# Each returns a negative errno when it fails. Another table stands in for the real one in fault tests.
cdef struct FileOps:
    void* context
    int (*open_file)(void* context, const char* path, int flags) noexcept nogil
    int (*close_file)(void* context, int fd) noexcept nogil
    ssize_t (*write_at)(void* context, int fd, const iovec* parts, int count, int64_t position) noexcept nogil
    ssize_t (*read_at)(void* context, int fd, void* to, size_t size, int64_t position, bint cached) noexcept nogil
    int (*sync_data)(void* context, int fd) noexcept nogil
    int (*sync_directory)(void* context, int fd) noexcept nogil
    int (*truncate_file)(void* context, int fd, int64_t size_bytes) noexcept nogil
    int (*rename_path)(void* context, const char* old, const char* new) noexcept nogil
    int (*unlink_path)(void* context, const char* path) noexcept nogil
    int (*make_directory)(void* context, const char* path) noexcept nogil
    int (*remove_directory)(void* context, const char* path) noexcept nogil


cdef class Files:
    cdef FileOps ops
    # All of the parts, or a negative errno; the parts are changed. Short writes and EINTR are gone on from.
    cdef int write_all(self, int fd, iovec* parts, int count, int64_t position) noexcept nogil
    # Bytes read: fewer than size only at the end of the file, or, with cached, where the cache ends.
    cdef ssize_t read_full(self, int fd, void* to, size_t size, int64_t position, bint cached) noexcept nogil
