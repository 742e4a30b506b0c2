"""The filesystem seam: whatever the engine does to files, it does here."""

from libc.stdint cimport int64_t
from posix.types cimport off_t

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void* iov_base
        size_t iov_len

cdef enum:
    FILES_WOULD_BLOCK = 11      # EAGAIN: a read that may not wait found nothing cached


cdef class Files:
    # Each returns a negative errno when it fails.
    # All of the parts; the parts are changed. Short writes and EINTR are gone on from.
    cdef int write_all(self, int fd, iovec* parts, int count, int64_t position) noexcept nogil
    # Bytes read: fewer than size only at the end of the file, or, with cached, where the cache ends.
    cdef ssize_t read_full(self, int fd, void* to, size_t size, int64_t position, bint cached) noexcept nogil
    cdef int sync_file(self, int fd) noexcept nogil
    cdef int sync_names(self, int fd) noexcept nogil
    cdef int close_file(self, int fd) noexcept nogil
