"""The thread that syncs, without the interpreter: its loop is native, so a busy event loop does not delay it.

(Beside a busy loop, a sync called from a Python thread waits for the interpreter twice, and takes many times as long.)
"""

import os
import threading

cimport cython
from libc.errno cimport EINTR
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport write


@cython.final
cdef class SyncThread:
    """Takes jobs (files and directories to sync) and does them one after the other.

    When one is done, event_fd (an eventfd) becomes readable and finished() tells. Used by one thread, the event loop's.
    """

    def __cinit__(self, Files files not None):
        self.files = files
        self.event_fd = -1
        pthread_mutex_init(&self._mutex, NULL)
        pthread_cond_init(&self._condition, NULL)

    def __init__(self, Files files not None):
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._main, name="takhin-sync", daemon=True)
        self._thread.start()

    def __dealloc__(self):
        # The thread holds a reference while it runs: here it has ended.
        while self._done != NULL:
            self._first = self._done.next
            free(self._done)
            self._done = self._first
        pthread_cond_destroy(&self._condition)
        pthread_mutex_destroy(&self._mutex)

    def submit(self, files not None, directories not None):
        """Sync the files' data, then the directories (descriptors, open until the job is finished), in this order; the
        first failure ends the job. Returns the job's number. Raises MemoryError."""
        cdef list fds = [*files, *directories]
        cdef SyncJob* job = <SyncJob*>malloc(sizeof(SyncJob) + len(fds) * sizeof(int))
        cdef int i
        if job == NULL:
            raise MemoryError()
        self._last_number += 1
        job.next = NULL
        job.number = self._last_number
        job.error = 0
        job.file_count = len(files)
        job.directory_count = len(directories)
        for i in range(len(fds)):
            job.fds[i] = fds[i]
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
        cdef uint64_t one = 1
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
            job.error = -self._sync(job)
            clock_gettime(CLOCK_MONOTONIC, &ended)
            job.duration_ns = (ended.tv_sec - begun.tv_sec) * 1000000000 + ended.tv_nsec - begun.tv_nsec
            pthread_mutex_lock(&self._mutex)
            job.next = self._done
            self._done = job
            pthread_mutex_unlock(&self._mutex)
            write(self.event_fd, &one, sizeof(one))

    cdef int _sync(self, SyncJob* job) noexcept nogil:
        cdef int i
        cdef int result
        for i in range(job.file_count + job.directory_count):
            while True:
                if i < job.file_count:
                    result = self.files.ops.sync_data(self.files.ops.context, job.fds[i])
                else:
                    result = self.files.ops.sync_directory(self.files.ops.context, job.fds[i])
                if result != -EINTR:
                    break
            if result < 0:
                return result
        return 0
