"""A produce stream of the fast front: requests are appended as they come, and answered in their order."""

from collections import deque

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t

from takhin.broker.appending cimport Appending
from takhin.outcome cimport Outcome
from takhin.rpc.fast.call cimport LOW_WATER_BYTES, OK, FastCall
from takhin.rpc.fast.served cimport Sink

from takhin.broker.appending import ack_timeout, append_error, draining_error, failure_answer
from takhin.errors import TakhinError


@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class _Answer:
    """That is not right yet, or follows one that is not. outcome: None: it is."""


@cython.final
cdef class ProduceStream(Sink):
    """The requests of `call`, which go to `appending`."""

    def __init__(self, FastCall call not None):
        """Raises DRAINING, and what the call is refused for."""
        self.call = call
        self.appending = call.served.appending
        if self.appending.is_draining:
            raise draining_error()
        if call.served.holding is not None:
            held = call.served.holding(call)
            held.__enter__()
            self.held = held
        self.answers = deque()
        self.appending.streams.add(self)

    # Requests

    cdef int take(self, const uint8_t* request, size_t size) except -1:
        return self.append(request, size)

    cdef int end_of_requests(self) except -1:
        return self.end_if_done()

    cdef bint has_enough(self) noexcept:
        """Whether nothing more is appended until something is answered. Who waits for nothing is never held up. What
        waits keeps the client from sending much more: its window is given back once all is appended."""
        cdef int64_t unanswered = len(self.answers)
        if unanswered >= self.appending.max_stream_requests or self.bytes_in_flight >= self.appending.max_stream_bytes:
            return True
        # Answers that the client does not take are no better.
        if self.call.out_bytes > LOW_WATER_BYTES:
            return True
        return unanswered > 0 and self.appending.streams_bytes >= self.appending.max_streams_bytes

    cdef int append(self, const uint8_t* request, size_t size) except -1:
        cdef Appending appending = self.appending
        cdef Outcome outcome = None
        cdef _Answer answer
        # An append may write what came before it, whose outcome then tells us: it is only noted.
        self.is_appending = True
        try:
            response = appending.take(request, size, None)
            outcome = appending.outcome()
        except TakhinError as refusal:
            response, outcome = failure_answer(refusal), None
        except Exception as bug:
            return self.fail(bug)
        finally:
            self.is_appending = False
        if outcome is None and not self.answers:
            return self.send(response)
        answer = _Answer.__new__(_Answer)
        answer.response = response
        answer.outcome = outcome
        answer.partition = appending.partition
        answer.timeout_ms = appending.timeout_ms
        answer.size_bytes = size
        self.answers.append(answer)
        self.count(answer.size_bytes)
        if len(self.answers) == 1:
            self.wait_for(answer)
        return 0

    cdef int fail(self, failure) except -1:
        """A bug of ours: the stream ends with it, as no answer can be given that its client would count right."""
        cdef FastCall call = self.call
        call.ended(failure)
        call.leave()
        return 0

    cdef int count(self, int64_t size_bytes) noexcept:
        self.bytes_in_flight += size_bytes
        self.appending.streams_bytes += size_bytes
        return 0

    # Answers

    cdef int send(self, bytes response) except -1:
        self.call.put_message(response)
        self.call.served.counters.sent += 1
        return 0

    cdef int wait_for(self, _Answer answer) except -1:
        """It is the next to be sent."""
        if answer is self.awaited:
            return 0
        self.awaited = answer
        answer.outcome.add(self)
        if answer.timeout_ms:
            self.timer = self.call.link.hub.loop.call_later(answer.timeout_ms / 1000.0, self.ack_timed_out, answer)
        return 0

    cdef void settled(self, Outcome outcome) noexcept:
        cdef FastCall call = self.call
        if call is None:
            return
        try:
            if self.is_appending:
                self.pump_soon()
                return
            self.send_answers()
            # What waits is appended in a turn of its own: this one is within a write.
            if call.inbox:
                self.pump_soon()
            else:
                self.end_if_done()
        except BaseException as bug:
            call.link.bug = bug
            call.link.hub.want_flush(call.link)

    cdef int send_answers(self) except -1:
        """Those that are right, in their order, as far as the client takes them."""
        cdef _Answer answer
        while self.answers and self.call.out_bytes <= LOW_WATER_BYTES:
            answer = self.answers[0]
            if answer.outcome is not None:
                if not answer.outcome.is_done:
                    return self.wait_for(answer)
                if answer.outcome.failure is not None:
                    answer.response = failure_answer(append_error(answer.partition, answer.outcome.failure))
            if answer is self.awaited:
                self.awaited = None
                self.forget_timer()
            self.answers.popleft()
            self.count(-answer.size_bytes)
            self.send(answer.response)
        return 0

    def ack_timed_out(self, _Answer answer not None):
        """It does not come in time."""
        self.timer = None
        if self.call is None:
            return
        answer.response = failure_answer(ack_timeout(answer.partition, answer.timeout_ms))
        answer.outcome = None
        self.pump()

    cdef int forget_timer(self) except -1:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        return 0

    cdef int room(self) except -1:
        if self.answers or self.call.inbox:
            self.pump_soon()
        return 0

    cdef int pump_soon(self) except -1:
        if not self.pump_is_due:
            self.pump_is_due = True
            self.call.link.hub.loop.call_soon(self.pump)
        return 0

    def pump(self):
        """Send what is right, append what waits."""
        cdef bytes request
        self.pump_is_due = False
        if self.call is None:
            return
        self.send_answers()
        while self.call.inbox and not self.has_enough():
            request = self.call.pop_message()
            if request is None:
                return
            self.append(<const uint8_t*>PyBytes_AS_STRING(request), PyBytes_GET_SIZE(request))
            if self.call is None:
                return
        if not self.call.inbox:
            self.call.release_window()
        self.end_if_done()

    # The end

    cdef int end_if_done(self) except -1:
        cdef FastCall call = self.call
        if self.answers or (call.inbox and not self.is_draining):
            return 0
        if self.is_draining:
            call.ended(draining_error())
            call.leave()
        elif call.remote_ended:
            call.finish(OK, call.echo())
            call.leave()
        return 0

    def drain(self):
        """The broker stops: answer what is appended, and end."""
        if self.call is not None:
            self.is_draining = True
            self.call.inbox = None
            self.end_if_done()

    cdef int close(self) except -1:
        if self.call is None:
            return 0
        self.call = None
        self.awaited = None
        self.forget_timer()
        self.count(-self.bytes_in_flight)
        self.answers.clear()
        self.appending.streams.discard(self)
        if self.held is not None:
            held, self.held = self.held, None
            held.__exit__(None, None, None)
        return 0
