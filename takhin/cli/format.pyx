"""Records as text, by a format like kcat's: written straight from the response's bytes, no Python object for a
record.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

cimport cython

from takhin.client.messages cimport Message, Records, RecordSpan

cdef enum:
    LITERAL = 0
    TOPIC
    PARTITION
    OFFSET
    KEY
    KEY_SIZE
    VALUE
    VALUE_SIZE
    TIMESTAMP
    HEADERS
    # An int64 in decimal, with its sign.
    MAX_DIGITS = 20

# The size of a key or value that a record has not.
cdef uint32_t NOTHING = 0xFFFFFFFF

cdef dict KINDS = {
    b"t": TOPIC, b"p": PARTITION, b"o": OFFSET, b"k": KEY, b"K": KEY_SIZE, b"v": VALUE, b"s": VALUE, b"V": VALUE_SIZE,
    b"S": VALUE_SIZE, b"T": TIMESTAMP, b"h": HEADERS,
}

# What a format may have, and what stands there then.
DIRECTIVES = {
    "%v": "value", "%k": "key", "%t": "topic", "%p": "partition", "%o": "offset", "%T": "timestamp (ms since 1970)",
    "%h": "headers (name=value,...)", "%V": "size of the value in bytes, -1: a tombstone",
    "%K": "size of the key, -1: none", "%s": "value, as in kcat", "%S": "as %V", "%%": "%",
}


@cython.final
cdef class Format:
    """A format, read once. Escapes (\\n) are resolved already. Raises ValueError for a directive that is not known."""

    def __init__(self, bytes text not None):
        cdef bytes name
        cdef bytes literals = b""
        parts = text.split(b"%")
        if self._pieces != NULL:
            raise ValueError("it was read already")
        index = 1
        literals = parts[0]
        if literals:
            self._piece(LITERAL, 0, <size_t>len(literals))
        while index < len(parts):
            part = parts[index]
            index += 1
            if not part and index < len(parts):
                # "%%": a percent sign, and what follows it as it is.
                part = b"%" + parts[index]
                index += 1
            else:
                name = part[:1]
                if name not in KINDS:
                    shown = (b"%" + name).decode("utf-8", "replace")
                    raise ValueError(f"{shown!r} in a format is not known; there are {', '.join(DIRECTIVES)}")
                self._piece(KINDS[name], 0, 0)
                part = part[1:]
            if part:
                self._piece(LITERAL, <size_t>len(literals), <size_t>len(part))
                literals += part
        self._literals = literals

    def __dealloc__(self):
        free(self._pieces)
        free(self._data)

    cdef int _piece(self, int kind, size_t start, size_t size) except -1:
        cdef Piece* pieces = <Piece*>realloc(self._pieces, (self._count + 1) * sizeof(Piece))
        if pieces == NULL:
            raise MemoryError()
        self._pieces = pieces
        self._pieces[self._count].kind = kind
        self._pieces[self._count].start = start
        self._pieces[self._count].size = size
        self._count += 1
        return 0

    def render(self, Records records not None):
        """All of them, one after the other."""
        cdef uint32_t index
        cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(records._data)
        self._size = 0
        self._topic = records.topic.encode()
        for index in range(records._first, records._count):
            self._record(records, index - records._first, records.partition, &records._spans[index], data)
        return PyBytes_FromStringAndSize(<const char*>self._data, <Py_ssize_t>self._size)

    def render_messages(self, list messages not None):
        """The same of a list of Message."""
        cdef Message message
        self._size = 0
        for message in messages:
            self._topic = message.topic.encode()
            if message._data is None:
                raise ValueError("the message was not read from a response")
            self._record(
                message, -1, message.partition, &message._span, <const uint8_t*>PyBytes_AS_STRING(message._data))
        return PyBytes_FromStringAndSize(<const char*>self._data, <Py_ssize_t>self._size)

    cdef int _record(
        self, object owner, Py_ssize_t index, int32_t partition, const RecordSpan* span, const uint8_t* data
    ) except -1:
        """owner: the message, or the Records with this index, which knows how to take headers apart."""
        cdef const Piece* piece
        cdef uint32_t i
        for i in range(self._count):
            piece = &self._pieces[i]
            if piece.kind == LITERAL:
                self._put(<const uint8_t*>PyBytes_AS_STRING(self._literals) + piece.start, piece.size)
            elif piece.kind == VALUE:
                if span.value_size != NOTHING:
                    self._put(data + span.value_start, span.value_size)
            elif piece.kind == KEY:
                if span.key_size != NOTHING:
                    self._put(data + span.key_start, span.key_size)
            elif piece.kind == OFFSET:
                self._number(span.offset)
            elif piece.kind == PARTITION:
                self._number(partition)
            elif piece.kind == TIMESTAMP:
                self._number(span.timestamp_ms)
            elif piece.kind == TOPIC:
                self._put(<const uint8_t*>PyBytes_AS_STRING(self._topic), <size_t>len(self._topic))
            elif piece.kind == VALUE_SIZE:
                self._number(-1 if span.value_size == NOTHING else <int64_t>span.value_size)
            elif piece.kind == KEY_SIZE:
                self._number(-1 if span.key_size == NOTHING else <int64_t>span.key_size)
            elif span.header_count:
                self._headers(owner if index < 0 else owner[index])
        return 0

    cdef int _headers(self, Message message) except -1:
        cdef bytes text = b",".join([name.encode() + b"=" + value for name, value in message.headers])
        return self._put(<const uint8_t*>PyBytes_AS_STRING(text), <size_t>len(text))

    cdef int _put(self, const uint8_t* data, size_t size) except -1:
        cdef size_t capacity
        cdef uint8_t* grown
        if self._size + size > self._capacity:
            capacity = max(self._capacity * 2, self._size + size)
            grown = <uint8_t*>realloc(self._data, capacity)
            if grown == NULL:
                raise MemoryError()
            self._data = grown
            self._capacity = capacity
        memcpy(self._data + self._size, data, size)
        self._size += size
        return 0

    cdef int _number(self, int64_t number) except -1:
        cdef uint8_t digits[MAX_DIGITS]
        cdef int at = MAX_DIGITS
        cdef uint64_t rest = <uint64_t>number if number >= 0 else 0 - <uint64_t>number
        while True:
            at -= 1
            digits[at] = <uint8_t>(48 + rest % 10)
            rest //= 10
            if rest == 0:
                break
        if number < 0:
            at -= 1
            digits[at] = 45
        return self._put(&digits[at], <size_t>(MAX_DIGITS - at))
