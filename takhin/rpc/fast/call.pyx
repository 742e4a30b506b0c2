"""The calls of the fast front: each a stream of HTTP/2, and Call and StreamCall to the handler that serves it.

Flow control goes with consumption: of messages that nobody has read yet a stream holds its window and no more, and of
those that a client does not take the handler's write() waits.
"""

import asyncio
import logging
from collections import deque
from types import MappingProxyType

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memcmp

from takhin.broker.appending cimport Appending
from takhin.broker.following cimport Follower, Target
from takhin.outcome cimport Outcome
from takhin.rpc.fast.arriving cimport Arriving, add_piece, drop_pieces, take_whole
from takhin.rpc.fast.grpc_text cimport BAD_TIMEOUT, parse_timeout_us, percent_encoded
from takhin.rpc.fast.header_block cimport (
    free_headers,
    header_list,
    is_grpc,
    is_text,
    keep_header,
    metadata_of,
    pair_of,
    response_head,
    static_pair,
    submit_not_grpc,
)
from takhin.rpc.fast.hub cimport Hub, Link, now_ns
from takhin.rpc.fast.nghttp2 cimport *
from takhin.rpc.fast.outgoing cimport SLICE_BYTES, Outgoing
from takhin.rpc.fast.served cimport BIDI, Served, Sink
from takhin.rpc.fast.waiting cimport first_message, keep_message

from takhin.broker.appending import ack_timeout, append_error
from takhin.errors import Reason, error
from takhin.rpc.call import NO_MESSAGE
from takhin.rpc.fast.compression import compressor, decompressed, encoding_of, too_large
from takhin.rpc.fast.grpc_text import decode_binary, encode_binary
from takhin.rpc.gates import late_request, too_many_bytes, too_much_held
from takhin.rpc.request_id import REQUEST_ID_KEY, given_id, new_id
from takhin.rpc.status import status_of

logger = logging.getLogger(__name__)

_STATUS_DETAILS_KEY = b"grpc-status-details-bin"
_REQUEST_ID_KEY = REQUEST_ID_KEY.encode()


cdef ssize_t read_data(
    nghttp2_session* session, int32_t stream_id, uint8_t* buf, size_t length, uint32_t* data_flags,
    nghttp2_data_source* source, void* user_data
) noexcept:
    """How much of the stream goes into the next frame; send_data() copies it."""
    cdef Link link = <Link>user_data
    cdef FastCall call = <FastCall>source.ptr
    cdef size_t size
    try:
        if call.out_bytes == 0 and not call.ending:
            call.is_deferred = True
            return NGHTTP2_ERR_DEFERRED
        data_flags[0] = NGHTTP2_DATA_FLAG_NO_COPY
        size = min(length, call.out_bytes)
        if size == call.out_bytes and call.ending:
            data_flags[0] |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM
            call.submit_trailers()
        return size
    except BaseException as bug:
        link.bug = bug
        return NGHTTP2_ERR_CALLBACK_FAILURE


cdef int send_data(
    nghttp2_session* session, nghttp2_frame* frame, const uint8_t* head, size_t size, nghttp2_data_source* source,
    void* user_data
) noexcept:
    cdef Link link = <Link>user_data
    try:
        link.hub.out.put(head, 9)
        (<FastCall>source.ptr).take_out(size)
        if link.hub.out.is_full():
            link.write_out()
    except BaseException as bug:
        link.bug = bug
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return NGHTTP2_ERR_PAUSE if link.has_enough() else 0


# Of its own, the garbage collector need not look at it: what leads from it back to it goes with leave().
@cython.final
@cython.no_gc
cdef class FastCall(Target):
    """Call and StreamCall over a stream of HTTP/2."""

    # Headers

    cdef int add_header(self, const uint8_t* name, size_t name_size, const uint8_t* value, size_t value_size) except -1:
        cdef Served found
        self.headers_bytes += name_size + value_size + 32
        if self.headers_bytes > self.link.hub.max_metadata_bytes:
            return 0  # begin() refuses it
        if name[0] == c":":
            if is_text(name, name_size, b":path", 5):
                found = <Served>self.link.hub.last_called
                if found is not None and is_text(
                        value, value_size, PyBytes_AS_STRING(found.path), PyBytes_GET_SIZE(found.path)):
                    self.found = found
                else:
                    self.path = value[:value_size]
            elif is_text(name, name_size, b":method", 7):
                self.is_bad |= not is_text(value, value_size, b"POST", 4)
            return 0
        if is_text(name, name_size, b"content-type", 12):
            self.is_bad |= not is_grpc(value, value_size)
            return 0
        if is_text(name, name_size, b"te", 2):
            return 0
        if name_size > 5 and memcmp(name, b"grpc-", 5) == 0:
            if is_text(name, name_size, b"grpc-timeout", 12):
                timeout_us = parse_timeout_us(value, value_size)
                if timeout_us >= 0:
                    self.deadline_us = self.link.hub.now_us + timeout_us
                elif timeout_us == BAD_TIMEOUT:
                    self.bad_key = b"grpc-timeout"
                return 0
            if is_text(name, name_size, b"grpc-encoding", 13):
                self.encoding = value[:value_size]
                return 0
            if is_text(name, name_size, b"grpc-accept-encoding", 20):
                self.accepts = value[:value_size]
                return 0
        if is_text(name, name_size, b"x-request-id", 12):
            self.has_given_id = True
        if name_size > 4 and memcmp(name + name_size - 4, b"-bin", 4) == 0:
            if decode_binary(value[:value_size]) is None:
                self.bad_key = name[:name_size]
        return keep_header(&self.headers, name, name_size, value, value_size)

    def __dealloc__(self):
        free_headers(&self.headers)
        free(self.body.data)

    cdef int begin(self) except -1:
        """The headers are here."""
        cdef Hub hub = self.link.hub
        cdef Served served
        self.has_begun = True
        if self.is_bad:
            self.ending = self.headers_sent = True
            return self.sure(submit_not_grpc(self.link.session, self.stream_id))
        if self.headers_bytes > hub.max_metadata_bytes:
            return self.refuse(
                RESOURCE_EXHAUSTED, b"the metadata of the call is larger than %d bytes (grpc.max_metadata_bytes)"
                % hub.max_metadata_bytes)
        self.headers_bytes = 0  # trailers have as much of their own
        if self.bad_key is not None:
            return self.refuse(INTERNAL, b"the value of " + self.bad_key[:200] + b" can't be read")
        if 0 <= self.deadline_us <= hub.now_us:
            return self.refuse(DEADLINE_EXCEEDED, b"the call's deadline has passed")
        served = self.found if self.found is not None else hub.methods.get(self.path)
        if served is None:
            return self.refuse(UNIMPLEMENTED, b"there is no method " + (self.path or b"without a path")[:200])
        if self.encoding is not None and self.encoding not in (b"identity", b"gzip", b"deflate"):
            return self.refuse(
                UNIMPLEMENTED,
                b"messages in %s are not taken, those in identity, deflate, gzip are" % self.encoding[:100])
        if hub.compression is not None and self.accepts is not None:
            self.compress = compressor(hub.compression, self.accepts)
        self.served = hub.last_called = served
        served.counters.started += 1
        self.begun_ns = now_ns()
        hub.calls += 1
        if self.deadline_us >= 0:
            hub.note_deadline(self, self.deadline_us)
        if served.gate.open >= served.gate.limit:
            served.gate.refused += 1
            self.start(served.refuse_full(self))
            return 0
        self.place = served.gate
        served.gate.come()
        if served.kind == BIDI:
            if served.appending is not None:
                self.open_sink()
            else:
                self.start(served.run(self))
        elif served.gate.busy():
            self.start(served.run(self))
        else:
            self.takes_all = True
        return 0

    cdef int open_sink(self) except -1:
        try:
            self.sink = self.served.open_sink(self)
        except Exception as failure:
            self.ended(failure)
            self.leave()
        return 0

    cdef int start(self, coroutine) except -1:
        self.task = self.link.hub.loop.create_task(coroutine)

    # What arrives

    cdef int receive(self, const uint8_t* data, size_t size) except -1:
        """A piece of what the client sends on this stream."""
        cdef Link link = self.link
        cdef const uint8_t* end = data + size
        cdef int64_t length
        cdef size_t part
        cdef Arriving whole
        self.held_bytes += size
        if self.ending or self.served is None:
            return self.release_window()
        link.forgive_nuisance()
        while data < end and not self.ending:
            if self.prefix_have == 0 and end - data >= PREFIX_BYTES:
                length = <int64_t>data[1] << 24 | data[2] << 16 | data[3] << 8 | data[4]
                if end - data - PREFIX_BYTES >= length and length <= link.hub.max_message_bytes:
                    self.deliver(data + PREFIX_BYTES, length, data[0] != 0)
                    data += PREFIX_BYTES + length
                    continue
            if self.prefix_have < PREFIX_BYTES:
                self.prefix[self.prefix_have] = data[0]
                self.prefix_have += 1
                data += 1
                if self.prefix_have < PREFIX_BYTES:
                    continue
                self.body_bytes = (
                    <int64_t>self.prefix[1] << 24 | self.prefix[2] << 16 | self.prefix[3] << 8 | self.prefix[4])
                if self.body_bytes > link.hub.max_message_bytes:
                    self.fail_now(too_large(self.body_bytes, link.hub.max_message_bytes))
                    return self.release_window()
            part = min(<size_t>(end - data), <size_t>self.body_bytes - self.body.have)
            if part and not add_piece(&self.body, link.hub, self.body_bytes, data, part):
                self.served.gate.refused_bytes += 1
                self.fail_now(too_much_held(link.hub.max_held_bytes))
                return self.release_window()
            data += part
            if self.body.have == <size_t>self.body_bytes:
                self.prefix_have = 0
                # Not the call's any more, which may be over when it is served.
                whole = take_whole(&self.body, link.hub)
                try:
                    self.deliver(whole.data, self.body_bytes, self.prefix[0] != 0)
                finally:
                    link.hub.give_buffer(whole.data, whole.capacity)
        if self.takes_all or not self.inbox:
            self.release_window()
        return 0

    cdef int release_window(self) except -1:
        """The client may send as much again as is held here."""
        if self.held_bytes and self.link.session != NULL and not self.is_closed:
            nghttp2_session_consume_stream(self.link.session, self.stream_id, self.held_bytes)
            if not self.link.in_callback:
                self.link.hub.want_flush(self.link)
        self.held_bytes = 0
        return 0

    cdef int deliver(self, const uint8_t* message, size_t size, bint is_compressed) except -1:
        """A message is here; it stays where it is until this returns."""
        cdef bytes plain
        if self.inbox or not self.takes_all and (self.sink is None or self.sink.has_enough()):
            # As it came: one that is compressed gets large when it is its turn, a window's worth a thousand windows.
            if self.sink is not None:
                self.served.counters.received += 1
            self.inbox = keep_message(self.inbox, message, size, is_compressed)
            return self.tell_reader()
        if is_compressed:
            try:
                plain = decompressed(message[:size], self.encoding, self.link.hub.max_message_bytes)
            except Exception as problem:
                self.fail_now(problem)
                return 0
            message, size = <const uint8_t*>PyBytes_AS_STRING(plain), PyBytes_GET_SIZE(plain)
        if self.sink is not None:
            self.served.counters.received += 1
            return self.sink.take(message, size)
        if self.has_message:
            self.fail_now(error(Reason.MALFORMED_REQUEST, "the call has a second message; it takes one"))
            return 0
        self.has_message = True
        self.served.counters.received += 1
        if self.served.appending is not None:
            self.serve_direct(message, size)
        else:
            self.start(self.served.run(self, message[:size]))
        return 0

    cdef int tell_reader(self) except -1:
        if self.reader is not None and not self.reader.done():
            self.reader.set_result(None)
        return 0

    cdef bytes pop_message(self):
        """The next one received; None: it can't be decompressed, and the call has failed."""
        message = first_message(self.inbox)
        if type(message) is bytes:
            return message
        try:
            return decompressed(message[0], self.encoding, self.link.hub.max_message_bytes)
        except Exception as problem:
            self.fail_now(problem)
            return None

    cdef int end_of_requests(self) except -1:
        """The client has sent its last."""
        self.remote_ended = True
        if self.ending or self.served is None:
            return 0
        if self.prefix_have:
            self.fail_now(error(Reason.MALFORMED_REQUEST, "the stream ended within a message"))
        elif self.takes_all:
            if not self.has_message:
                self.fail_now(error(Reason.MALFORMED_REQUEST, NO_MESSAGE))
        elif self.sink is not None:
            self.sink.end_of_requests()
        elif self.reader is not None and not self.reader.done():
            self.reader.set_result(None)
        return 0

    cdef int fail_if_late(self, double timeout_s) except -1:
        """End it where its message comes in pieces for so long."""
        if self.body.data != NULL and now_ns() // 1000 - self.body.since_us >= timeout_s * 1e6:
            self.fail_now(late_request(timeout_s))

    # What is sent

    cdef int sure(self, int problem) except -1:
        """nghttp2 refuses nothing of what is asked for here. Did it, the client would wait for ever: so that is a bug,
        and ends the connection."""
        if problem and not self.is_closed:
            self.link.bug = RuntimeError(f"nghttp2: {nghttp2_strerror(problem).decode()}")
            self.link.hub.want_flush(self.link)
        return 0

    cdef int submit_headers(self) except -1:
        cdef nghttp2_nv[4] headers
        cdef nghttp2_data_provider provider
        cdef size_t count = response_head(headers)
        if self.compress is not None:
            headers[count] = pair_of(b"grpc-encoding", encoding_of(self.compress))
            count += 1
        self.headers_sent = True
        provider.source.ptr = <void*>self
        provider.read_callback = read_data
        return self.sure(nghttp2_submit_response(self.link.session, self.stream_id, headers, count, &provider))

    cdef int submit_trailers(self) except -1:
        cdef nghttp2_nv[4] trailers
        cdef size_t count = self.fill_trailers(trailers)
        return self.sure(nghttp2_submit_trailer(self.link.session, self.stream_id, trailers, count))

    cdef size_t fill_trailers(self, nghttp2_nv* out) except 0:
        cdef size_t count = 1
        cdef bytes status
        if self.status == OK:
            out[0] = static_pair(b"grpc-status", 11, b"0", 1)
        else:
            status = b"%d" % self.status
            # Kept with the others until it is copied.
            self.trailers = [(b"grpc-status", status), *(self.trailers or ())]
            count = 0
        for name, value in self.trailers or ():
            out[count] = pair_of(name, value)
            count += 1
        return count

    cdef int put_message(self, bytes message) except -1:
        """Raises MESSAGE_TOO_LARGE."""
        if PyBytes_GET_SIZE(message) > self.link.hub.max_message_bytes:
            raise too_large(PyBytes_GET_SIZE(message), self.link.hub.max_message_bytes)
        if self.compress is not None:
            message = self.compress(message)
        if self.leaving is None:
            self.leaving = message
        else:
            if self.outbox is None:
                self.outbox = deque()
            self.outbox.append(message)
        self.out_bytes += PREFIX_BYTES + PyBytes_GET_SIZE(message)
        if not self.headers_sent:
            self.submit_headers()
        elif self.is_deferred:
            self.is_deferred = False
            self.sure(nghttp2_session_resume_data(self.link.session, self.stream_id))
        self.link.hub.want_flush(self.link)
        return 0

    cdef int take_out(self, size_t size) except -1:
        """Write the next `size` bytes of the outbox, of one frame."""
        cdef Outgoing out = self.link.hub.out
        cdef uint8_t[5] prefix
        cdef bytes message
        cdef size_t length
        cdef size_t part
        self.out_bytes -= size
        self.link.forgive_pings()
        while size:
            message = self.leaving
            length = PyBytes_GET_SIZE(message)
            if self.out_at < PREFIX_BYTES:
                prefix[0] = self.compress is not None
                prefix[1] = length >> 24 & 255
                prefix[2] = length >> 16 & 255
                prefix[3] = length >> 8 & 255
                prefix[4] = length & 255
                part = min(PREFIX_BYTES - self.out_at, size)
                out.put(prefix + self.out_at, part)
            else:
                part = min(PREFIX_BYTES + length - self.out_at, size)
                if part >= SLICE_BYTES and self.link.takes_slices and out.has_room():
                    out.put_slice(message, self.out_at - PREFIX_BYTES, part)
                else:
                    out.put(<const uint8_t*>PyBytes_AS_STRING(message) + (self.out_at - PREFIX_BYTES), part)
            size -= part
            self.out_at += part
            if self.out_at == PREFIX_BYTES + length:
                self.leaving = self.outbox.popleft() if self.outbox else None
                self.out_at = 0
        if self.writer is not None and self.out_bytes <= LOW_WATER_BYTES and not self.writer.done():
            self.writer.set_result(None)
        elif self.sink is not None and self.out_bytes <= LOW_WATER_BYTES:
            self.sink.room()
        elif self.follower is not None and self.out_bytes <= LOW_WATER_BYTES:
            self.follower.room()
        return 0

    cdef int finish(self, int status, object trailers) except -1:
        """End the call: the rest of the outbox goes out, then the status. trailers: of (name, value), in bytes."""
        cdef nghttp2_nv[8] headers
        cdef size_t count
        if self.ending:
            return 0
        self.ending = True
        self.status = self.code = status
        self.trailers = trailers
        if self.is_closed or self.link.session == NULL:
            return 0
        if self.headers_sent:
            if self.is_deferred:
                self.is_deferred = False
                self.sure(nghttp2_session_resume_data(self.link.session, self.stream_id))
        else:
            self.headers_sent = True
            count = response_head(headers)
            count += self.fill_trailers(headers + count)
            self.link.forgive_pings()
            self.sure(nghttp2_submit_response(self.link.session, self.stream_id, headers, count, NULL))
        self.link.hub.want_flush(self.link)
        return 0

    cdef int refuse(self, int status, bytes message) except -1:
        """A call that comes to no method."""
        return self.finish(status, [(b"grpc-message", percent_encoded(message))])

    cdef int fail_now(self, failure) except -1:
        """End it with the status of `failure`, whatever its handler does."""
        self.fail(failure)
        self.stop_handler()

    cdef int fail(self, failure) except -1:
        status = status_of(failure, self.request_id)
        self.finish(status.code, [
            (b"grpc-message", percent_encoded(status.message.encode("utf-8", "replace"))),
            (_REQUEST_ID_KEY, self.request_id.encode()),
            (_STATUS_DETAILS_KEY, encode_binary(status.details)),
        ])

    # How it ends before its handler does

    cdef int stop_handler(self) except -1:
        self.is_over = True
        # Others than the handler's own task may wait.
        for waiting in (self.reader, self.writer):
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
        if self.task is not None:
            self.task.cancel()
            # One that has not begun never will: its `finally` neither.
            self.task.add_done_callback(self.task_ended)
        elif self.served is not None:
            self.leave()

    def task_ended(self, task):
        """The handler's, which was cancelled."""
        self.leave()

    cdef void closed(self, uint32_t error_code) noexcept:
        """The stream is no more: it has ended, was reset, or the connection is gone."""
        self.is_closed = True
        try:
            if not self.ending:
                self.ending = True
                self.code = DEADLINE_EXCEEDED if self.is_late() else CANCELLED
                self.drop_outbox()
                self.stop_handler()
            elif self.writer is not None and not self.writer.done():
                self.stop_handler()
            elif self.task is None and self.served is not None:
                self.leave()
        except BaseException:
            logger.exception("a call can't be ended")
        if self.served is None:
            self.give_place()

    def cancel(self):
        """By the front: it stops, or the connection has to end."""
        if not self.ending:
            self.code = UNAVAILABLE
            # In the midst of a message no status can come: the end of the connection says as much.
            if not self.out_at:
                self.drop_outbox()
                self.fail(error(Reason.DRAINING, "the connection ends, and the call has not; try again"))
        if not self.is_over:
            self.stop_handler()

    cdef int drop_outbox(self) except -1:
        """What was not begun is not sent."""
        self.leaving = self.outbox = None
        self.out_bytes = 0

    def expire(self):
        """The client's deadline has passed."""
        self.deadline_us = -1
        if self.ending:
            return
        self.is_expired = True
        if self.out_at:
            # In the midst of a message no status can come.
            self.reset(NGHTTP2_CANCEL)
            self.code = DEADLINE_EXCEEDED
            self.stop_handler()
            return
        self.drop_outbox()
        self.finish(DEADLINE_EXCEEDED, [(b"grpc-message", b"the call's deadline has passed")])
        self.stop_handler()

    cdef bint is_late(self) noexcept:
        return self.is_expired or 0 <= self.deadline_us <= now_ns() // 1000

    cdef int leave(self) except -1:
        """Nothing of the call is left."""
        cdef Served served = self.served
        if served is None:
            return 0
        self.served = None
        if self.deadline_us >= 0:
            self.link.hub.deadlines.pop(self, None)
        self.response = None
        # What waits for a sync that hangs, though nobody waits for it any more, is small.
        self.inbox = None
        free_headers(&self.headers)
        drop_pieces(&self.body, self.link.hub)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.sink is not None:
            sink, self.sink = self.sink, None
            (<Sink>sink).close()
        served.gate.used_bytes -= self.taken_bytes
        self.taken_bytes = 0
        if self.is_closed or self.link.session == NULL:
            self.give_place()
        served.counters.end(self.code, self.begun_ns)
        self.task = None
        self.link.hub.done()

    cdef int give_place(self) noexcept:
        """Nobody holds anything of the call any more: what a client does not take is held, too."""
        if self.place is not None:
            self.place.go()
            self.place = None
            self.link.hub.held_bytes -= self.untaken_bytes
        return 0

    # What a handler sees

    @property
    def peer(self):
        return self.link.peer

    @property
    def identity(self):
        return self.link.identity

    @property
    def metadata(self):
        found = metadata_of(&self.headers)
        if self._given_id is None:
            self._given_id = given_id(found)
        return MappingProxyType(found)

    @property
    def given_id(self):
        """The request id that the client chose; "": none."""
        return self.given()

    cdef str given(self):
        if self._given_id is None:
            self._given_id = ""
            if self.has_given_id:
                for name, value in header_list(&self.headers):
                    if name == _REQUEST_ID_KEY:
                        self._given_id = given_id({REQUEST_ID_KEY: value.decode("latin-1")})
        return self._given_id

    @property
    def request_id(self):
        if self._request_id is None:
            self._request_id = self.given() or new_id()
        return self._request_id

    def time_remaining_s(self):
        if self.is_expired:
            return 0.0
        if self.deadline_us < 0:
            return None
        return max(self.deadline_us - now_ns() // 1000, 0) / 1e6

    def cancelled(self):
        return self.is_over or (self.task is not None and self.task.cancelling() > 0)

    async def read(self):
        if self.reader is not None:
            if self.cancelled():
                raise asyncio.CancelledError
            raise RuntimeError("another read is under way, or was cancelled")
        while not self.inbox:
            if self.is_over:
                raise asyncio.CancelledError
            if self.remote_ended:
                return None
            self.reader = self.link.hub.loop.create_future()
            await self.reader
            self.reader = None
        message = self.pop_message()
        if message is None:
            raise asyncio.CancelledError
        if not self.inbox:
            self.release_window()
        if self.served is not None:
            self.served.counters.received += 1
        return message

    async def write(self, message):
        if type(message) is not bytes:
            raise TypeError(f"a message is bytes, not {type(message).__name__}")
        if self.is_over or self.is_closed:
            raise asyncio.CancelledError
        self.put_message(message)
        while self.out_bytes > LOW_WATER_BYTES:
            self.writer = self.link.hub.loop.create_future()
            try:
                await self.writer
            finally:
                self.writer = None
            if self.is_over:
                raise asyncio.CancelledError
        self.count_sent()

    async def follow(self, Follower follower not None):
        """Let it send, until the handler has to go on."""
        if self.is_over or self.is_closed:
            raise asyncio.CancelledError
        self.follower = follower
        try:
            stopped = follower.start(self, self.link.hub.loop)
            if stopped is not None:
                await stopped
        finally:
            self.follower = None
            follower.stop()

    cdef bint offer(self, bytes message) except -1:
        if self.is_over or self.is_closed:
            # Its handler is about to be told.
            return False
        self.put_message(message)
        self.count_sent()
        return self.out_bytes <= LOW_WATER_BYTES

    cdef int count_sent(self) except -1:
        if self.served is not None:
            self.served.counters.sent += 1

    def cut(self):
        """As StreamCall has it: the stream alone is reset."""
        if self.is_closed or self.is_over:
            return
        # What is with us is given up, and the handler ends, whether the client can be told or not.
        self.ending = True
        self.code = UNAVAILABLE
        self.drop_outbox()
        # The one code that clients take for UNAVAILABLE; the call is not sent again, as some of it has been answered.
        self.reset(NGHTTP2_REFUSED_STREAM)
        self.link.end_if_stuck()
        self.stop_handler()

    cdef int reset(self, uint32_t http2_error) except -1:
        if self.link.session != NULL and not self.is_closed:
            self.sure(nghttp2_submit_rst_stream(self.link.session, NGHTTP2_FLAG_NONE, self.stream_id, http2_error))
            self.link.hub.want_flush(self.link)

    # Its life

    cdef int take(self, int64_t size_bytes) except -1:
        """Raises CALL_LIMIT: of the bytes of requests."""
        if not self.served.gate.take_bytes(size_bytes):
            raise too_many_bytes(self.served.gate)
        self.taken_bytes = size_bytes

    cdef int answer(self, response) except -1:
        if type(response) is not bytes:
            raise TypeError(f"{self.served.method.path} gave {type(response).__name__}, not bytes")
        if self.is_over or self.is_closed:
            return 0
        self.put_message(response)
        # Until the client has taken it: see give_place().
        self.untaken_bytes = self.out_bytes
        self.link.hub.held_bytes += self.untaken_bytes
        self.served.counters.sent += 1
        self.finish(OK, self.echo())

    cdef int serve_direct(self, const uint8_t* request, size_t size) except -1:
        """Without a coroutine."""
        cdef Served served = self.served
        cdef Appending appending = served.appending
        cdef Outcome outcome
        try:
            self.take(size)
            topics = served.topics(self) if served.topics is not None else None
            response = appending.take(request, size, topics)
            outcome = appending.outcome()
            if outcome is not None:
                self.response, self.partition = response, appending.partition
                outcome.add(self)
                if appending.timeout_ms:
                    self.timer = self.link.hub.loop.call_later(
                        appending.timeout_ms / 1000.0, self.ack_timed_out, appending.timeout_ms)
                return 0
            self.answer(response)
        except Exception as failure:
            self.ended(failure)
        self.leave_direct()

    cdef void settled(self, Outcome outcome) noexcept:
        if self.response is None:
            return  # it was over before
        try:
            response, self.response = self.response, None
            if outcome.failure is None:
                self.answer(response)
            else:
                self.ended(append_error(self.partition, outcome.failure))
            self.leave_direct()
        except BaseException as bug:
            self.link.bug = bug
            self.link.hub.want_flush(self.link)

    def ack_timed_out(self, timeout_ms):
        """The answer does not come in time."""
        if self.response is not None:
            self.response = None
            self.ended(ack_timeout(self.partition, timeout_ms))
            self.leave_direct()

    cdef int leave_direct(self) except -1:
        cdef int64_t took_ns = now_ns() - self.begun_ns
        if self.served is not None and self.served.slow is not None and took_ns > self.served.slow.limit_ns:
            self.served.slow.tell(self, took_ns, self.code)
        self.leave()

    cdef list echo(self):
        """Of a call that ends well: tell the client the id that it chose."""
        return [(_REQUEST_ID_KEY, self.given().encode())] if self.has_given_id and self.given() else None

    cdef int ended(self, failure) except -1:
        """The handler has raised. Gives what is to be raised instead of a status, as nobody is there to be told."""
        is_cancelled = isinstance(failure, asyncio.CancelledError)
        if self.is_over or (is_cancelled and self.task is not None and self.task.cancelling()):
            if not is_cancelled:
                status_of(failure, self.request_id)  # for its log, should it be a bug
            return 0
        if is_cancelled:
            cause, failure = failure, RuntimeError("the handler was cancelled, though its call was not")
            failure.__cause__ = cause
        self.fail(failure)
