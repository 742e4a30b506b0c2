"""The thread that syncs, without the interpreter: its loop is native, so a busy event loop does not delay it.

(Beside a busy loop, a sync called from a Python thread waits for the interpreter twice, and takes many times as long.)
"""

import os
import threading

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from takhin.log.files cimport iovec

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd_write(int fd, uint64_t value)


@cython.final
cdef class SyncThread:
    """Takes jobs (bytes to write, files and directories to sync) and does them one after the other.

    When one is done, event_fd (an eventfd) becomes readable and finished() tells. Used by one thread, the event loop's.
    """

    def __cinit__(self, Files files not None, name=None):
        self.files = files
        self.event_fd = -1
        self._held = {}
        pthread_mutex_init(&self._mutex, NULL)
        pthread_cond_init(&self._condition, NULL)

    def __init__(self, Files files not None, str name not None="takhin-sync"):
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def __dealloc__(self):
        # The thread holds a reference while it runs: here it has ended.
        while self._done != NULL:
            self._first = self._done.next
            free(self._done)
            self._done = self._first
        pthread_cond_destroy(&self._condition)
        pthread_mutex_destroy(&self._mutex)

    def submit(
        self, files not None, directories not None, int write_fd=-1, bytes data not None=b"", int64_t position=0
    ):
        """Write data to write_fd at position, if that is given; then sync the files' data, then the directories
        (descriptors, open until the job is finished), in this order; the first failure ends the job. Returns the job's
        number. Raises MemoryError."""
        cdef list fds = [*files, *directories]
        cdef SyncJob* job = <SyncJob*>malloc(sizeof(SyncJob) + len(fds) * sizeof(int))
        cdef int i
        if job == NULL:
            raise MemoryError()
        self._last_number += 1
        job.next = NULL
        job.number = self._last_number
        job.error = 0
        job.write_fd = write_fd
        job.data = PyBytes_AS_STRING(data)
        job.size = <size_t>len(data)
        job.position = position
        job.file_count = len(files)
        job.directory_count = len(directories)
        for i in range(len(fds)):
            job.fds[i] = fds[i]
        if job.size:
            self._held[job.number] = data
        pthread_mutex_lock(&self._mutex)
        if self._last == NULL:
            self._first = job
        else:
            self._last.next = job
        self._last = job
        pthread_cond_signal(&self._condition)
        pthread_mutex_unlock(&self._mutex)
        return self._last_number

    def finished(self):
        """(number, errno or 0, duration in ns) of each job that ended since the last call, in order."""
        cdef SyncJob* job
        cdef SyncJob* following
        try:
            os.eventfd_read(self.event_fd)
        except BlockingIOError:
            return []
        pthread_mutex_lock(&self._mutex)
        job = self._done
        self._done = NULL
        pthread_mutex_unlock(&self._mutex)
        results = []
        while job != NULL:
            results.append((job.number, job.error, job.duration_ns))
            self._held.pop(job.number, None)
            following = job.next
            free(job)
            job = following
        results.reverse()
        return results

    def stop(self):
        """Do what is still queued, then end the thread and close event_fd."""
        pthread_mutex_lock(&self._mutex)
        self._stopping = True
        pthread_cond_signal(&self._condition)
        pthread_mutex_unlock(&self._mutex)
        self._thread.join()
        os.close(self.event_fd)

    def _main(self):
        with nogil:
            self._run()

    cdef void _run(self) noexcept nogil:
        cdef SyncJob* job
        cdef timespec begun
        cdef timespec ended
        while True:
            pthread_mutex_lock(&self._mutex)
            while self._first == NULL and not self._stopping:
                pthread_cond_wait(&self._condition, &self._mutex)
            job = self._first
            if job == NULL:
                pthread_mutex_unlock(&self._mutex)
                return
            self._first = job.next
            if self._first == NULL:
                self._last = NULL
            pthread_mutex_unlock(&self._mutex)
            clock_gettime(CLOCK_MONOTONIC, &begun)
            job.error = -self._do(job)
            clock_gettime(CLOCK_MONOTONIC, &ended)
            job.duration_ns = (ended.tv_sec - begun.tv_sec) * 1000000000 + ended.tv_nsec - begun.tv_nsec
            pthread_mutex_lock(&self._mutex)
            job.next = self._done
            self._done = job
            pthread_mutex_unlock(&self._mutex)
            eventfd_write(self.event_fd, 1)

    cdef int _do(self, SyncJob* job) noexcept nogil:
        cdef iovec part
        cdef int i
        cdef int result = 0
        if job.size:
            part.iov_base = job.data
            part.iov_len = job.size
            result = self.files.write_all(job.write_fd, &part, 1, job.position)
        for i in range(job.file_count + job.directory_count):
            if result < 0:
                break
            if i < job.file_count:
                result = self.files.sync_file(job.fds[i])
            else:
                result = self.files.sync_names(job.fds[i])
        return result
