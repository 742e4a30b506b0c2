"""The way of a produce request: from its bytes into the log."""

from libc.stdint cimport int32_t, int64_t, uint8_t

from takhin.codec.messages cimport ProduceRequest
from takhin.outcome cimport Outcome
from takhin.log.partition cimport Partition

cdef enum:
    # takhin.v1.Durability, by required_acks.
    ACKS_NONE = 0
    ACKS_WRITTEN = 1
    ACKS_DURABLE = -1


cdef class Appending:
    cdef object _topics
    cdef dict _by_name
    cdef object _producers
    cdef object _clock_ms
    cdef ProduceRequest _request
    cdef readonly bint is_draining
    # Of each stream, how many requests and bytes may be unanswered; of all together how many bytes, and how many are.
    cdef readonly int64_t max_stream_requests
    cdef readonly int64_t max_stream_bytes
    cdef readonly int64_t max_streams_bytes
    cdef public int64_t streams_bytes
    cdef set streams
    # Of the last request.
    cdef readonly Partition partition
    cdef readonly int32_t acks
    cdef readonly int32_t timeout_ms
    cdef int64_t _end_offset

    cdef bytes take(self, const uint8_t* request, size_t size, object topics)
    cdef Outcome outcome(self)
    cdef object _wait(self, bint shared)


cpdef int check_record_sizes(object topic, ProduceRequest scan) except -1
cpdef Partition named_partition(object topic, ProduceRequest scan)
cpdef Partition choose_partition(object topic, ProduceRequest scan)
cdef Partition _partition_of(object topic, int64_t number)
