"""The calls of the fast front."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from takhin.broker.following cimport Follower, Target
from takhin.gate cimport Gate
from takhin.outcome cimport Outcome
from takhin.rpc.fast.arriving cimport Arriving
from takhin.rpc.fast.header_block cimport HeaderBlock
from takhin.rpc.fast.hub cimport Link
from takhin.rpc.fast.nghttp2 cimport nghttp2_data_source, nghttp2_frame, nghttp2_nv, nghttp2_session
from takhin.rpc.fast.served cimport Served, Sink

cdef enum:
    PREFIX_BYTES = 5
    # Of google.rpc.Code.
    OK = 0
    CANCELLED = 1
    DEADLINE_EXCEEDED = 4
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    # A write is done when no more than so much of a stream is still with us.
    LOW_WATER_BYTES = 32768

cdef int send_data(
    nghttp2_session* session, nghttp2_frame* frame, const uint8_t* head, size_t size, nghttp2_data_source* source,
    void* user_data) noexcept


cdef class FastCall(Target):
    cdef Link link
    cdef int32_t stream_id
    cdef Served served
    cdef object task
    cdef public object principal
    cdef int64_t begun_ns
    cdef int code

    # Headers
    # Unless it is of the method that was called last: then that is `found`.
    cdef bytes path
    cdef Served found
    cdef HeaderBlock headers
    cdef size_t headers_bytes
    cdef bint has_given_id
    cdef bint is_bad
    # Of metadata whose value is not as it has to be; None: there is none.
    cdef bytes bad_key
    cdef bint has_begun
    cdef int64_t deadline_us
    cdef bytes encoding
    cdef bytes accepts
    cdef object compress
    cdef str _given_id
    cdef str _request_id

    # The message that is arriving
    cdef uint8_t prefix[5]
    cdef int prefix_have
    cdef int64_t body_bytes
    cdef Arriving body
    cdef size_t held_bytes
    cdef bint takes_all
    cdef bint has_message

    # Served without a coroutine: the stream of requests; or the answer to the only one, until it is right.
    cdef Sink sink
    cdef bytes response
    cdef object partition
    cdef object timer

    # Received, not read
    cdef object inbox
    cdef object reader
    cdef bint remote_ended

    # To be sent
    # The message that is being sent, and those behind it.
    cdef bytes leaving
    cdef object outbox
    cdef size_t out_at
    cdef size_t out_bytes
    cdef object writer
    # Who sends in the handler's place.
    cdef Follower follower
    cdef bint is_deferred
    cdef bint headers_sent
    cdef bint ending
    cdef int status
    cdef object trailers

    cdef readonly bint is_over
    cdef bint is_expired
    # Taken, until nothing of the call is left, here or on its way.
    cdef Gate place
    cdef bint is_closed
    # Of its request, as the gate counts them.
    cdef int64_t taken_bytes
    # Of the answer to a unary call, as the hub counts them.
    cdef int64_t untaken_bytes

    cdef int add_header(
        self, const uint8_t* name, size_t name_size, const uint8_t* value, size_t value_size) except -1
    cdef int begin(self) except -1
    cdef int start(self, coroutine) except -1
    cdef int submit_headers(self) except -1
    cdef int submit_trailers(self) except -1
    cdef size_t fill_trailers(self, nghttp2_nv* out) except 0
    cdef int put_message(self, bytes message) except -1
    cdef int take_out(self, size_t size) except -1
    cdef int fail_now(self, failure) except -1
    cdef int fail(self, failure) except -1
    cdef int stop_handler(self) except -1
    cdef int drop_outbox(self) except -1
    cdef int reset(self, uint32_t http2_error) except -1
    cdef bint is_late(self) noexcept
    cdef int leave(self) except -1
    cdef int count_sent(self) except -1
    cdef int take(self, int64_t size_bytes) except -1
    cdef int answer(self, response) except -1
    cdef list echo(self)
    cdef int serve_direct(self, const uint8_t* request, size_t size) except -1
    cdef str given(self)
    cdef int leave_direct(self) except -1
    cdef int open_sink(self) except -1
    cdef int ended(self, failure) except -1
    cdef int receive(self, const uint8_t* data, size_t size) except -1
    cdef int tell_reader(self) except -1
    cdef bytes pop_message(self)
    cdef int give_place(self) noexcept
    cdef int deliver(self, const uint8_t* message, size_t size, bint is_compressed) except -1
    cdef int end_of_requests(self) except -1
    cdef int fail_if_late(self, double timeout_s) except -1
    cdef int sure(self, int problem) except -1
    cdef int release_window(self) except -1
    cdef int finish(self, int status, object trailers) except -1
    cdef int refuse(self, int status, bytes message) except -1
    cdef void closed(self, uint32_t error_code) noexcept
