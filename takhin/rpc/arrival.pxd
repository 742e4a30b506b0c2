"""What grpc.aio is given for a call that has come."""

from takhin.gate cimport Gate


cdef class Arriving:
    cdef Gate gate
    cdef object serve
    cdef object serve_busy
    cdef object refuse
    cdef bint takes_stream


cdef class Arrival:
    cdef Gate gate
    cdef readonly bint request_streaming
    cdef readonly bint response_streaming
    cdef readonly object request_deserializer
    cdef readonly object response_serializer
    cdef readonly object unary_unary
    cdef readonly object unary_stream
    cdef readonly object stream_unary
    cdef readonly object stream_stream
