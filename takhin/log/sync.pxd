"""The thread that syncs."""

from libc.stdint cimport int64_t, uint64_t

from takhin.log.files cimport Files

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_mutex_init(pthread_mutex_t* mutex, const void* attributes)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)
    int pthread_cond_init(pthread_cond_t* condition, const void* attributes)
    int pthread_cond_signal(pthread_cond_t* condition)
    int pthread_cond_wait(pthread_cond_t* condition, pthread_mutex_t* mutex)
    int pthread_cond_destroy(pthread_cond_t* condition)


cdef struct SyncJob:
    SyncJob* next
    uint64_t number
    int error               # 0, or the errno of what failed
    int64_t duration_ns
    # What is written first, if anything.
    int write_fd
    char* data
    size_t size
    int64_t position
    int file_count
    int directory_count
    int fds[1]              # files, then directories: in this order


cdef class SyncThread:
    cdef Files files
    cdef readonly int event_fd
    cdef object _thread
    cdef uint64_t _last_number
    cdef dict _held             # number of a job -> the bytes that it writes
    cdef pthread_mutex_t _mutex
    cdef pthread_cond_t _condition
    # Under the mutex.
    cdef SyncJob* _first
    cdef SyncJob* _last
    cdef SyncJob* _done
    cdef bint _stopping

    cdef void _run(self) noexcept nogil
    cdef int _do(self, SyncJob* job) noexcept nogil
