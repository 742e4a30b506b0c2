"""What grpc.aio is given for a call that has come: its handler, which holds the call's place at the gate.

grpc.aio asks for the handler when it has a call's headers, waits for the message where there is one, and then calls the
handler; a call that is cancelled before that ends without anything of ours being run. So the place is given back when
grpc.aio lets go of what it was given, which is when the call is over, served or not.
"""

cimport cython

from takhin.gate cimport Gate


@cython.final
@cython.freelist(64)
# It can't be part of a cycle: what it refers to lives as long as the front does.
@cython.no_gc
cdef class Arrival:
    """A call: what grpc.RpcMethodHandler has. Made by Arriving alone."""

    def __dealloc__(self):
        if self.gate is not None:
            self.gate.go()


@cython.final
cdef class Arriving:
    """Of one method. serve: its function. refuse, serve_busy: functions that read and write messages themselves, as
    stream_stream ones do, and serve where it takes_stream: refuse is called when the gate is full, before a message is
    waited for; serve_busy, where there is one, instead of serve when it is busy."""

    def __init__(self, Gate gate not None, serve, refuse, serve_busy, *, bint takes_stream):
        self.gate = gate
        self.serve = serve
        self.refuse = refuse
        self.serve_busy = serve_busy
        self.takes_stream = takes_stream

    def arrive(self):
        """The handler of one call."""
        cdef Arrival arrival = Arrival.__new__(Arrival)
        cdef Gate gate = self.gate
        if gate.open >= gate.limit:
            gate.refused += 1
            arrival.request_streaming = arrival.response_streaming = True
            arrival.stream_stream = self.refuse
            return arrival
        arrival.gate = gate
        gate.come()
        if self.serve_busy is not None and gate.busy():
            arrival.request_streaming = arrival.response_streaming = True
            arrival.stream_stream = self.serve_busy
        elif self.takes_stream:
            arrival.request_streaming = arrival.response_streaming = True
            arrival.stream_stream = self.serve
        else:
            arrival.unary_unary = self.serve
        return arrival
