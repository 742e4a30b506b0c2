"""One HTTP/2 connection of the fast front: nghttp2 between a transport of the event loop and the calls.

What is read goes to nghttp2, which calls back with headers and pieces of messages. What is to be sent nghttp2 asks for
when the connection is flushed.
"""

import logging
import struct

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyObject_Calloc, PyObject_Free, PyObject_Malloc, PyObject_Realloc
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcmp

from takhin.rpc.fast.call cimport FastCall, send_data
from takhin.rpc.fast.hub cimport Hub, Link, now_ns
from takhin.rpc.fast.nghttp2 cimport *
from takhin.rpc.fast.outgoing cimport WRITE_BYTES, Outgoing

logger = logging.getLogger(__name__)

# A client may send so much of a stream before somebody reads it, and of all streams together before we have seen it.
cdef int32_t STREAM_WINDOW_BYTES = 1024 * 1024
cdef int32_t CONNECTION_WINDOW_BYTES = 16 * 1024 * 1024
# The transport says that it has enough above so much. A client that takes nothing costs that, or what is gathered for
# one write.
HIGH_WATER_BYTES = 64 * 1024
# With so many frames to be sent to a client that takes nothing, nothing is read of it either.
cdef size_t MAX_QUEUED_FRAMES = 200
# A transport that has taken nothing for so long is no way to tell a client anything.
cdef double STUCK_S = 1.0
# Of a connection that has ended, so much is still read.
cdef int64_t MAX_DROPPED_BYTES = 1024 * 1024
# How long what one connection has sent is looked at before the others have their turn: so much for all together that
# have more to be looked at, and at least so much for each.
cdef int64_t TURN_NS = 2_000_000
cdef int64_t LEAST_TURN_NS = 250_000
# What is given to nghttp2 at once, at least, when that takes long, and at most.
cdef Py_ssize_t LEAST_PIECE_BYTES = 256
cdef Py_ssize_t FIRST_PIECE_BYTES = 4 * 1024
cdef Py_ssize_t MOST_PIECE_BYTES = 64 * 1024
# What a handler's task counts for, as it runs later: about what it takes to begin one and to end it.
cdef int64_t TASK_NS = 100_000

# Frames, of which a client may send so many more than those that bring a message further, and so many more a second.
# Each of those that do makes up for some others: the headers, updates of windows and pings around it.
cdef int64_t MAX_NUISANCE = 10_000
cdef int64_t NUISANCE_A_SECOND = 100
cdef int64_t NUISANCE_OF_SETTINGS = 10
cdef int64_t FORGIVEN = 16
# What a call that was answered in a word, as there is no such method say, makes up for: its own frames.
cdef int64_t FORGIVEN_ANSWERED = 4
# Headers that are so many times as large as they may be are not read to their end.
cdef size_t FAR_TOO_LARGE = 4
cdef int64_t NUISANCE_OF_BLOCKS = 1_000
# Calls that were reset before they were answered, by the client or for its mistakes: so many more than those that were
# answered, and so many more a second. All of a connection's calls may be reset at once, and once more.
cdef int64_t LEAST_RESETS = 2_000
cdef int64_t RESETS_A_SECOND = 200
# Of a block of headers, besides those that its size calls for.
cdef int64_t MAX_CONTINUATIONS = 8
cdef int64_t FRAME_BYTES = 16384
# What the ping behind a GOAWAY bears: the answer comes behind all calls that the client made before it had read that.
cdef const uint8_t* GOING_PING = <const uint8_t*>b"goingout"
# Strikes of a client that pings too often; the third ends its connection.
cdef int MAX_PING_STRIKES = 2


@cython.final
cdef class Connection(Link):
    """An asyncio.BufferedProtocol."""

    def __cinit__(self):
        self.session = NULL

    def __init__(self, Hub hub not None):
        self.hub = hub
        hub.num_links += 1
        self.counts = True
        self.calls = {}
        self.peer = ""
        self.going_s = self.pinged_s = self.lingers_s = self.block_s = -1
        self.piece_bytes = FIRST_PIECE_BYTES
        self.descriptor = -1
        self.max_continuations = MAX_CONTINUATIONS + hub.max_metadata_bytes // FRAME_BYTES
        self.max_resets = max(LEAST_RESETS, 2 * <int64_t>hub.settings.max_streams_per_connection)

    def __dealloc__(self):
        if self.session != NULL:
            nghttp2_session_del(self.session)
        # One whose handshake has failed: connection_lost() counts the others.
        if self.counts and self.hub is not None:
            self.hub.num_links -= 1

    # The transport

    def connection_made(self, transport):
        self.transport = transport
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            # Nothing else is spoken here, and a client that does not ask for it speaks something else.
            self.is_lost = True
            transport.abort()
            return
        self.takes_slices = tls is None
        socket = transport.get_extra_info("socket")
        if tls is None and socket is not None:
            self.descriptor = socket.fileno()
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        name = transport.get_extra_info("peername")
        if isinstance(name, tuple):
            host = name[0].removeprefix("::ffff:")  # IPv4 on a socket that takes both
            self.peer = f"[{host}]:{name[1]}" if ":" in host else f"{host}:{name[1]}"
        self.begun_s = self.heard_s = self.used_s = self.hub.loop.time()
        self.hub.connections.add(self)

    cdef int begin(self) except -1:
        """The client has said something: who says nothing costs no session, and who speaks HTTP/1 is told so in it."""
        cdef nghttp2_settings_entry[3] entries
        settings = self.hub.settings
        self.nuisance_us = self.resets_us = now_ns() // 1000
        if nghttp2_session_server_new3(&self.session, _callbacks, <void*>self, _option, &_memory):
            raise MemoryError
        entries[0].settings_id = NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS
        entries[0].value = settings.max_streams_per_connection
        entries[1].settings_id = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
        entries[1].value = STREAM_WINDOW_BYTES
        entries[2].settings_id = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
        entries[2].value = settings.max_metadata_bytes
        nghttp2_submit_settings(self.session, NGHTTP2_FLAG_NONE, entries, 3)
        nghttp2_session_set_local_window_size(self.session, NGHTTP2_FLAG_NONE, 0, CONNECTION_WINDOW_BYTES)
        if self.going_away:
            self.going_away = False
            self.go_away()
        return 0

    def get_buffer(self, sizehint):
        return self.hub.incoming

    def buffer_updated(self, Py_ssize_t size):
        cdef const uint8_t* data = <const uint8_t*><char*>self.hub.incoming
        cdef Py_ssize_t taken
        if self.is_lost or self.is_broken:
            return
        if self.lingers_s >= 0:
            # It is only read so that the last word arrives.
            self.dropped_bytes += size
            if self.dropped_bytes > MAX_DROPPED_BYTES:
                self.transport.abort()
            return
        self.heard_s = self.hub.loop.time()
        self.pinged_s = -1  # who sends is there
        if self.session == NULL:
            self.begin()
        taken = self.feed(data, size)
        if taken < size and self.lingers_s < 0 and not self.is_lost:
            # The buffer is everybody's.
            self.unread = PyBytes_FromStringAndSize(<const char*>data + taken, size - taken)
            self.hub.num_resting += 1
            self.mind_reading()

    cdef Py_ssize_t feed(self, const uint8_t* data, Py_ssize_t size) except -1:
        """Give it to nghttp2, as long as it is this connection's turn; gives how much of it."""
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t part
        cdef ssize_t taken
        cdef int64_t begun_ns = now_ns()
        cdef int64_t ended_ns
        cdef int64_t took_ns
        cdef int64_t turn_ns = max(LEAST_TURN_NS, TURN_NS // (self.hub.num_resting + 1))
        self.hub.now_us = begun_ns // 1000
        while at < size and self.turn_ns <= turn_ns:
            part = min(size - at, self.piece_bytes)
            took_ns = -self.turn_ns
            self.in_callback = True
            taken = nghttp2_session_mem_recv(self.session, data + at, part)
            self.in_callback = False
            if self.bug is not None:
                self.report()
                return size
            if taken < 0:
                self._refuse(<int>taken)
                return size
            at += part
            ended_ns = now_ns()
            self.turn_ns += ended_ns - begun_ns
            begun_ns = ended_ns
            took_ns += self.turn_ns  # with what callbacks have added
            if took_ns > turn_ns:
                self.piece_bytes = max(LEAST_PIECE_BYTES, part * turn_ns // took_ns)
            elif part == self.piece_bytes and 2 * took_ns <= turn_ns:
                self.piece_bytes = min(2 * part, MOST_PIECE_BYTES)
            if self.is_choked():
                break
        self.hub.want_flush(self)
        self.mind_reading()
        return at

    cdef int go_on(self) except -1:
        """It is this connection's turn again."""
        cdef bytes unread = self.unread
        cdef Py_ssize_t taken
        self.turn_ns = 0
        if unread is None or self.is_choked():
            return 0
        taken = self.feed(unread, len(unread))
        if self.unread is None:
            return 0  # it has ended meanwhile
        if taken == len(unread):
            self.forget_unread()
            self.mind_reading()
        else:
            self.unread = unread[taken:]
        return 0

    cdef void forget_unread(self) noexcept:
        if self.unread is not None:
            self.unread = None
            self.hub.num_resting -= 1

    cdef bint is_choked(self) noexcept:
        """Whether the client takes nothing of what it asks for."""
        return (
            self.is_paused and self.session != NULL
            and nghttp2_session_get_outbound_queue_size(self.session) > MAX_QUEUED_FRAMES)

    cdef int mind_reading(self) except -1:
        """Read on, or do not."""
        cdef bint waits = (self.unread is not None or self.is_choked()) and self.lingers_s < 0
        if waits != self.waits and not self.is_lost and not self.transport.is_closing():
            self.waits = waits
            if waits:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()
        return 0

    def eof_received(self):
        """The client says no more: so nobody waits for answers. The transport closes itself once all is sent, and is
        given a moment for that."""
        if self.lingers_s < 0:
            self.lingers_s = self.hub.loop.time()
        return None

    def pause_writing(self):
        self.is_paused = True
        self.stuck_s = self.hub.loop.time()
        self.stuck_bytes = self.transport.get_write_buffer_size()

    cdef double stuck_for(self) except -1:
        """How long the client has taken nothing at all of what it asked for, in seconds."""
        if not self.is_paused or self.is_lost:
            return 0
        now_s = self.hub.loop.time()
        left_bytes = self.transport.get_write_buffer_size()
        if left_bytes != self.stuck_bytes:
            self.stuck_s, self.stuck_bytes = now_s, left_bytes
        return now_s - self.stuck_s

    @property
    def stuck_for_s(self):
        """Since its client took the last byte while more is to be written; 0: it takes what there is."""
        return self.stuck_for()

    cdef int end_if_stuck(self) except -1:
        """Where the client takes nothing, the transport holds what is to be freed, and nothing can be said: abort."""
        if self.stuck_for() >= STUCK_S:
            self.abort()
        return 0

    cdef bint has_enough(self) noexcept:
        return self.is_paused or self.written_bytes >= WRITE_BYTES

    def resume_writing(self):
        self.is_paused = False
        self.hub.want_flush(self)

    def connection_lost(self, exc):
        self.is_lost = True
        if self.counts:
            self.counts = False
            self.hub.num_links -= 1
        self.hub.connections.discard(self)
        self.drop_session()

    cdef int drop_session(self) except -1:
        """Nothing more is said in it: its calls are over."""
        self.forget_unread()
        for call in list(self.calls.values()):
            (<FastCall>call).closed(NGHTTP2_CANCEL)
        self.calls.clear()
        if self.session != NULL and not self.in_callback:
            nghttp2_session_del(self.session)
            self.session = NULL
        return 0

    cdef int flush(self) except -1:
        cdef Hub hub = self.hub
        cdef const uint8_t* data
        cdef ssize_t size = 0
        if self.session == NULL or self.is_lost or self.lingers_s >= 0:
            return 0
        self.go_on()
        if self.session == NULL or self.is_lost or self.lingers_s >= 0 or self.is_broken:
            return 0
        hub.out.clear()
        self.written_bytes = 0
        self.in_callback = True
        try:
            while not self.has_enough():
                size = nghttp2_session_mem_send(self.session, &data)
                if size <= 0:
                    break
                hub.out.put(data, size)
                if hub.out.is_full():
                    self.write_out()
        finally:
            self.in_callback = False
        if self.bug is not None:
            hub.out.clear()
            self.report()
            return 0
        if hub.out.size_bytes:
            self.write_out()
        if size < 0 or (
            not nghttp2_session_want_read(self.session) and not nghttp2_session_want_write(self.session)
        ):
            self.linger()
            return 0
        if self.is_used:
            self.is_used = False
            self.used_s = hub.loop.time()
        self.mind_reading()
        if self.unread is not None and not self.is_choked() or self.written_bytes >= WRITE_BYTES:
            hub.want_flush(self)
        return 0

    cdef int linger(self) except -1:
        """Nothing is to be said any more. Closed while something of the client's is unread, the connection would be
        reset, and what was said last be lost: so the client is given a moment to close it."""
        if self.lingers_s >= 0 or self.is_lost:
            return 0
        self.forget_unread()
        self.lingers_s = self.hub.loop.time()
        self.mind_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()
        return 0

    cdef int write_out(self) except -1:
        """Straight to the socket. What it does not take is the transport's, and all that comes before it has."""
        cdef Outgoing out = self.hub.out
        cdef size_t sent = 0
        self.written_bytes += out.size_bytes
        self.has_spoken = True
        try:
            if self.is_lost:
                return 0
            # A transport that is closing may have given up the descriptor.
            if self.descriptor >= 0 and not self.transport.get_write_buffer_size() and not self.transport.is_closing():
                sent = out.send(self.descriptor)
            if sent < out.size_bytes:
                self.transport.writelines(out.rest(sent))
        finally:
            out.clear()
        return 0

    def report(self):
        bug, self.bug = self.bug, None
        self.is_broken = True
        logger.error("a connection's frames can't be served", exc_info=bug)
        self.transport.abort()

    def _refuse(self, int problem):
        """What came is not HTTP/2, or more than is taken of one client: say why, and end it. nghttp2 is not to be asked
        any further, so the last frame is made by hand."""
        cdef uint32_t code = NGHTTP2_INTERNAL_ERROR
        cdef int32_t last = nghttp2_session_get_last_proc_stream_id(self.session)
        if self.has_left:
            last = min(last, self.last_taken)
        why = self.why
        if why is not None or problem == NGHTTP2_ERR_FLOODED:
            code, why = NGHTTP2_ENHANCE_YOUR_CALM, why or b"too_many_frames"
        elif problem == NGHTTP2_ERR_BAD_CLIENT_MAGIC:
            code, why = NGHTTP2_PROTOCOL_ERROR, b"not_http2"
        else:
            why = nghttp2_strerror(problem)
        logger.debug("%s: %s", self.peer, why.decode())
        if problem == NGHTTP2_ERR_BAD_CLIENT_MAGIC and not self.is_greeted:
            last_words = (
                b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n"
                b"This port speaks gRPC, over HTTP/2 with prior knowledge.\n")
        else:
            last_words = struct.pack(">HBBBIII", 0, 8 + len(why), 7, 0, 0, last, code) + why
            if not self.has_spoken:
                # SETTINGS are to come first, or the client takes that for the mistake.
                last_words = struct.pack(">HBBBI", 0, 0, 4, 0, 0) + last_words
        self.drop_session()
        self.transport.write(last_words)
        self.linger()

    # What the front does to it

    def go_away(self):
        """Take no new calls; those that the client has sent before it knew are served. knows_of_going: they have come,
        and the client makes no more, however long it takes it to read what it is told. See leave()."""
        if self.going_away:
            return
        self.going_away = True
        self.going_s = self.hub.loop.time()
        if self.session == NULL:
            return  # see begin()
        nghttp2_submit_shutdown_notice(self.session)
        self.hub.want_flush(self)

    def leave(self):
        """Once the client knows: the connection ends with the last call that has come by now."""
        if self.session == NULL or self.has_left:
            return
        self.has_left = True
        self.last_taken = nghttp2_session_get_last_proc_stream_id(self.session)
        nghttp2_submit_goaway(self.session, NGHTTP2_FLAG_NONE, self.last_taken, NGHTTP2_NO_ERROR, NULL, 0)
        self.hub.want_flush(self)

    def end(self, uint32_t http2_error):
        """End it now, with a GOAWAY."""
        if self.session == NULL:
            if self.lingers_s < 0:
                self.abort()  # it has never said anything
            return
        if self.has_left:
            nghttp2_session_terminate_session2(self.session, self.last_taken, http2_error)
        else:
            nghttp2_session_terminate_session(self.session, http2_error)
        self.hub.want_flush(self)

    def ping(self):
        """Ask whether the client is there."""
        if self.session == NULL:
            return
        self.pinged_s = self.hub.loop.time()
        nghttp2_submit_ping(self.session, NGHTTP2_FLAG_NONE, NULL)
        self.hub.want_flush(self)

    def abort(self):
        """End it without a word."""
        if not self.is_lost:
            self.transport.abort()

    def cancel_calls(self):
        """Of those under way."""
        for call in list(self.calls.values()):
            (<FastCall>call).cancel()

    def drop_stale(self, double timeout_s):
        """Give up answers of which the client has taken nothing for so long, where their calls' places are wanted, or
        the memory; and there, too, calls whose message has not come whole."""
        cdef FastCall call
        cdef double now_s = self.hub.loop.time()
        if not self.calls and self.stale is None:
            return
        before, self.stale = self.stale or {}, None
        for call in list(self.calls.values()):
            if call.place is None:
                continue
            if not call.ending:
                if self.hub.is_crowded():
                    call.fail_if_late(timeout_s)
                continue
            if not (call.place.busy() or call.untaken_bytes and self.hub.is_crowded()):
                continue
            since_s, left_bytes = before.get(call.stream_id, (now_s, call.out_bytes))
            if left_bytes != call.out_bytes:
                since_s = now_s
            elif now_s - since_s >= timeout_s:
                if self.is_paused:
                    # The client would not even be told.
                    self.abort()
                    return
                call.reset(NGHTTP2_CANCEL)
                continue
            if self.stale is None:
                self.stale = {}
            self.stale[call.stream_id] = since_s, call.out_bytes

    @property
    def identity(self):
        if self.identity_pem is None:
            from ssl import DER_cert_to_PEM_cert

            tls = self.transport.get_extra_info("ssl_object")
            shown = tls.getpeercert(True) if tls is not None else None
            self.identity_pem = DER_cert_to_PEM_cert(shown).encode() if shown else b""
        return self.identity_pem or None

    cdef int too_much(self, bytes why) noexcept:
        """For a callback to give: end the connection, and tell the client why. See _refuse()."""
        self.why = why
        return NGHTTP2_ERR_CALLBACK_FAILURE

    cdef int note_nuisance(self, int64_t count) noexcept:
        """Frames that bring no message any further."""
        cdef int64_t refilled
        self.nuisance += count
        if self.nuisance <= MAX_NUISANCE:
            return 0
        refilled = (self.hub.now_us - self.nuisance_us) * NUISANCE_A_SECOND // 1_000_000
        self.nuisance_us = self.hub.now_us
        self.nuisance = max(self.nuisance - refilled, 0)
        return self.too_much(b"too_many_frames") if self.nuisance > MAX_NUISANCE else 0

    cdef void forgive_nuisance(self) noexcept:
        """A message has come a bit further."""
        self.nuisance = max(self.nuisance - FORGIVEN, 0)

    cdef int note_reset(self) noexcept:
        """A call is over before it was answered, by the client's will, or for its mistake."""
        cdef int64_t refilled
        self.resets += 1
        if self.resets <= self.max_resets:
            return 0
        refilled = (self.hub.now_us - self.resets_us) * RESETS_A_SECOND // 1_000_000
        self.resets_us = self.hub.now_us
        self.resets = max(self.resets - refilled, 0)
        return self.too_much(b"too_many_resets") if self.resets > self.max_resets else 0

    cdef int note_ping(self) noexcept:
        """End the connection when it is one too many."""
        now_s = self.hub.loop.time()
        settings = self.hub.settings
        is_early = now_s - self.ping_heard_s < settings.min_ping_interval_ms * 0.0009
        if is_early or (not self.calls and not settings.ping_without_calls):
            self.ping_strikes += 1
        self.ping_heard_s = now_s
        return self.too_much(b"too_many_pings") if self.ping_strikes > MAX_PING_STRIKES else 0


# nghttp2 calls back. What goes wrong here is our bug, and ends the connection.

cdef int _failed(Connection connection, object bug) noexcept:
    connection.bug = bug
    return NGHTTP2_ERR_CALLBACK_FAILURE


cdef int _on_begin_headers(nghttp2_session* session, const nghttp2_frame* frame, void* user_data) noexcept:
    cdef Connection connection = <Connection>user_data
    cdef FastCall call
    if frame.hd.type != NGHTTP2_HEADERS:
        return 0
    connection.block_s = connection.heard_s
    if nghttp2_session_get_stream_user_data(session, frame.hd.stream_id) != NULL:
        return 0  # trailers
    if connection.has_left and frame.hd.stream_id > connection.last_taken:
        # The GOAWAY that says so may not be sent yet: begun nevertheless, it would happen twice, here and where the
        # client makes it again.
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame.hd.stream_id, NGHTTP2_REFUSED_STREAM)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    try:
        call = FastCall.__new__(FastCall)
        call.link = connection
        call.stream_id = frame.hd.stream_id
        call.deadline_us = -1
        connection.calls[call.stream_id] = call
        nghttp2_session_set_stream_user_data(session, call.stream_id, <void*>call)
    except BaseException as bug:
        return _failed(connection, bug)
    return 0


cdef int _on_header(
    nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name, size_t name_size, const uint8_t* value,
    size_t value_size, uint8_t flags, void* user_data
) noexcept:
    cdef Connection connection = <Connection>user_data
    cdef void* found = nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
    cdef FastCall call
    if found == NULL:
        return 0
    call = <FastCall>found
    if call.has_begun:
        # Trailers: nobody reads them, but to look at them costs as much.
        call.headers_bytes += name_size + value_size + 32
    else:
        try:
            call.add_header(name, name_size, value, value_size)
        except BaseException as bug:
            return _failed(connection, bug)
    if call.headers_bytes > FAR_TOO_LARGE * connection.hub.max_metadata_bytes:
        # Not worth an answer, nor that the rest is looked at: of a few bytes there may be megabytes to check. Clients
        # take the code for RESOURCE_EXHAUSTED.
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame.hd.stream_id, NGHTTP2_ENHANCE_YOUR_CALM)
        if connection.note_nuisance(NUISANCE_OF_BLOCKS):
            return NGHTTP2_ERR_CALLBACK_FAILURE
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    return 0


cdef int _on_begin_frame(nghttp2_session* session, const nghttp2_frame_hd* hd, void* user_data) noexcept:
    cdef Connection connection = <Connection>user_data
    if hd.type == NGHTTP2_CONTINUATION:
        connection.continuations += 1
        if connection.continuations > connection.max_continuations:
            return connection.too_much(b"too_many_continuations")
        return connection.note_nuisance(1)
    connection.continuations = 0
    connection.block_s = -1
    if hd.type == NGHTTP2_SETTINGS:
        return connection.note_nuisance(NUISANCE_OF_SETTINGS)
    return connection.note_nuisance(1)


cdef int _on_frame_recv(nghttp2_session* session, const nghttp2_frame* frame, void* user_data) noexcept:
    cdef Connection connection = <Connection>user_data
    cdef void* found
    cdef FastCall call
    try:
        if frame.hd.type == NGHTTP2_DATA or frame.hd.type == NGHTTP2_HEADERS:
            connection.block_s = -1
            found = nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
            if found == NULL:
                return 0
            call = <FastCall>found
            if frame.hd.type == NGHTTP2_HEADERS and not call.has_begun:
                call.begin()
                if call.task is not None:
                    connection.turn_ns += TASK_NS
            if frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
                call.end_of_requests()
        elif frame.hd.type == NGHTTP2_SETTINGS:
            connection.is_greeted = True
        elif frame.hd.type == NGHTTP2_PING:
            if frame.hd.flags & NGHTTP2_FLAG_ACK:
                connection.pinged_s = -1
                if not memcmp(frame.ping.opaque_data, GOING_PING, 8):
                    connection.knows_of_going = True
            else:
                return connection.note_ping()
    except BaseException as bug:
        return _failed(connection, bug)
    return 0


cdef int _on_frame_send(nghttp2_session* session, const nghttp2_frame* frame, void* user_data) noexcept:
    cdef Connection connection = <Connection>user_data
    cdef void* found
    if frame.hd.type == NGHTTP2_DATA:
        # Who reads and never writes sends updates of windows.
        connection.forgive_nuisance()
    elif frame.hd.type == NGHTTP2_GOAWAY and connection.going_away and not connection.has_left:
        # Not before: nghttp2 would send it first.
        nghttp2_submit_ping(session, NGHTTP2_FLAG_NONE, GOING_PING)
    elif frame.hd.type == NGHTTP2_HEADERS and frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
        connection.nuisance = max(connection.nuisance - FORGIVEN_ANSWERED, 0)
        found = nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
        if found != NULL and not (<FastCall>found).remote_ended:
            # Let the client stop sending what nobody wants.
            nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame.hd.stream_id, NGHTTP2_NO_ERROR)
    return 0


cdef int _on_data_chunk(
    nghttp2_session* session, uint8_t flags, int32_t stream_id, const uint8_t* data, size_t size, void* user_data
) noexcept:
    cdef Connection connection = <Connection>user_data
    cdef void* found = nghttp2_session_get_stream_user_data(session, stream_id)
    cdef bint had_task
    nghttp2_session_consume_connection(session, size)
    if found == NULL:
        return 0
    had_task = (<FastCall>found).task is not None
    try:
        (<FastCall>found).receive(data, size)
        if not had_task and (<FastCall>found).task is not None:
            connection.turn_ns += TASK_NS
    except BaseException as bug:
        return _failed(connection, bug)
    return 0


cdef int _on_stream_close(nghttp2_session* session, int32_t stream_id, uint32_t error_code, void* user_data) noexcept:
    cdef Connection connection = <Connection>user_data
    cdef FastCall call = connection.calls.pop(stream_id, None)
    cdef bint is_unanswered
    if call is None:
        return 0
    connection.block_s = -1
    is_unanswered = error_code and not call.ending and not call.headers_sent
    connection.is_used = True
    call.closed(error_code)
    if is_unanswered:
        return connection.note_reset()
    if connection.resets:
        connection.resets -= 1
    return 0


cdef nghttp2_session_callbacks* _callbacks = NULL
cdef nghttp2_option* _option = NULL


# What nghttp2 takes for a call is small and soon given back: Python's allocator is made for that, and all of it happens
# under the interpreter's lock.

cdef void* _malloc(size_t size, void* user_data) noexcept:
    return PyObject_Malloc(size)


cdef void _free(void* block, void* user_data) noexcept:
    PyObject_Free(block)


cdef void* _calloc(size_t count, size_t size, void* user_data) noexcept:
    return PyObject_Calloc(count, size)


cdef void* _realloc(void* block, size_t size, void* user_data) noexcept:
    return PyObject_Realloc(block, size)


cdef nghttp2_mem _memory
_memory.mem_user_data = NULL
_memory.malloc, _memory.free, _memory.calloc, _memory.realloc = _malloc, _free, _calloc, _realloc


cdef int _set_up() except -1:
    """Of all connections there are; for as long as the process lives."""
    global _callbacks, _option
    if nghttp2_session_callbacks_new(&_callbacks) or nghttp2_option_new(&_option):
        raise MemoryError
    nghttp2_session_callbacks_set_on_begin_headers_callback(_callbacks, _on_begin_headers)
    nghttp2_session_callbacks_set_on_header_callback(_callbacks, _on_header)
    nghttp2_session_callbacks_set_on_begin_frame_callback(_callbacks, _on_begin_frame)
    nghttp2_session_callbacks_set_on_frame_recv_callback(_callbacks, _on_frame_recv)
    nghttp2_session_callbacks_set_on_frame_send_callback(_callbacks, _on_frame_send)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(_callbacks, _on_data_chunk)
    nghttp2_session_callbacks_set_on_stream_close_callback(_callbacks, _on_stream_close)
    nghttp2_session_callbacks_set_send_data_callback(_callbacks, send_data)
    nghttp2_option_set_no_auto_window_update(_option, 1)
    nghttp2_option_set_no_closed_streams(_option, 1)
    nghttp2_option_set_max_outbound_ack(_option, 1000)
    nghttp2_option_set_max_settings(_option, 32)
    # Ours know which calls were answered and how large headers may be; where nghttp2 has its own, they are further out.
    takhin_limit_resets(_option, 1 << 40, 1 << 40)
    takhin_limit_continuations(_option, 1024)
    # A space around a value is for whoever reads it to refuse, with a reason.
    nghttp2_option_set_no_rfc9113_leading_and_trailing_ws_validation(_option, 1)
    return 0


_set_up()
