"""Messages as the client hands them out, and records as it sends them, on the wire's own bytes.

A response is looked through once: where each record lies, and whether its batch's checksum matches. Of a record bytes
are made when somebody asks for them.
"""

from datetime import datetime, timedelta, timezone

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memchr, memcpy

cimport cython

from takhin.codec.batch cimport (
    BATCH_BAD_CRC,
    BATCH_HEADER_BYTES,
    BATCH_TAG,
    BATCH_UNKNOWN_CODEC,
    BATCH_WHOLE,
    FLAGS_CODEC,
    BatchHeader,
    check_batch,
    read_batch_header,
)
from takhin.codec.wire cimport (
    SAFE_INT64,
    WIRE_LENGTH,
    WIRE_VARINT,
    Cursor,
    Field,
    fault_text,
    read_field,
    varint_size,
    write_varint,
)

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL

cdef enum:
    RECORDS_TAG = 0x32      # ProduceMessageRequest.records
    FIRST_SPANS = 64

cdef uint32_t NOTHING = 0xFFFFFFFF

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class Message:
    """One record, as it lies in the log.

    key and value: None where there is none; a value of None is a tombstone. timestamp_ms: milliseconds since 1970.
    headers: (name, value) pairs, in their order. epoch: of the log, when it was written; -1 where it is not known.
    It is frozen. As long as it is kept it keeps the response alive that it came with.
    """

    def __init__(
        self, str topic not None, int32_t partition, int64_t offset, int64_t timestamp_ms, bytes key, bytes value,
        headers=(), int32_t epoch=-1
    ):
        self.topic = topic
        self.partition = partition
        self._span.offset = offset
        self._span.timestamp_ms = timestamp_ms
        self._span.epoch = epoch
        self._span.key_size = self._span.value_size = NOTHING
        self._key = key
        self._value = value
        self._headers = tuple([(str(name), bytes(content)) for name, content in headers])

    @property
    def offset(self):
        return self._span.offset

    @property
    def epoch(self):
        return self._span.epoch

    @property
    def timestamp_ms(self):
        return self._span.timestamp_ms

    @property
    def timestamp(self):
        """timestamp_ms as a datetime, in UTC. Raises OverflowError beyond the years 1 to 9999."""
        return _EPOCH + timedelta(milliseconds=self._span.timestamp_ms)

    @property
    def key(self):
        if self._key is None and self._span.key_size != NOTHING:
            self._key = _slice(self._data, self._span.key_start, self._span.key_size)
        return self._key

    @property
    def value(self):
        if self._value is None and self._span.value_size != NOTHING:
            self._value = _slice(self._data, self._span.value_start, self._span.value_size)
        return self._value

    @property
    def headers(self):
        if self._headers is None:
            self._headers = _headers_of(self._data, &self._span) if self._span.header_count else ()
        return self._headers

    def _content(self):
        return (
            self.topic, self.partition, self._span.offset, self._span.timestamp_ms, self.key, self.value, self.headers,
            self._span.epoch,
        )

    def __eq__(self, other):
        if type(other) is not Message:
            return NotImplemented
        return self._content() == (<Message>other)._content()

    def __hash__(self):
        return hash((self.topic, self.partition, self._span.offset))

    def __reduce__(self):
        return Message, self._content()

    def __repr__(self):
        return (
            f"<Message {self.topic}/{self.partition}@{self._span.offset} key={_shown(self.key)} "
            f"value={_shown(self.value)}>"
        )


def _shown(content):
    """The beginning of a key or value, for people."""
    return repr(content) if content is None or len(content) <= 40 else f"{content[:40]!r}..."


cdef bytes _slice(bytes data, uint32_t start, uint32_t size):
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(data) + start, size)


cdef tuple _headers_of(bytes data, const RecordSpan* span):
    cdef Cursor cursor
    cdef Cursor inner
    cdef Field field
    cdef Field part
    cdef list found = []
    cdef str name
    cdef bytes content
    cursor.at = <const uint8_t*>PyBytes_AS_STRING(data) + span.start
    cursor.end = cursor.at + span.size
    while cursor.at < cursor.end:
        if read_field(&cursor, False, &field):
            break
        if field.number != 3 or field.wire_type != WIRE_LENGTH:
            continue
        name = ""
        content = b""
        inner.at = field.data
        inner.end = field.data + field.size
        while inner.at < inner.end:
            if read_field(&inner, False, &part):
                break
            if part.wire_type != WIRE_LENGTH:
                continue
            if part.number == 1:
                name = PyUnicode_DecodeUTF8(<const char*>part.data, <Py_ssize_t>part.size, b"replace")
            elif part.number == 2:
                content = PyBytes_FromStringAndSize(<const char*>part.data, <Py_ssize_t>part.size)
        found.append((name, content))
    return tuple(found)


@cython.final
cdef class Records:
    """The records of one response: of one partition, in order. A sequence of Message, each made when it is asked for.

    high_watermark: the log's end when the response was made. caught_up: nothing lay behind these then.
    next_offset: the one behind the last record, -1 without records. durable_offset: as far as the broker's disk had
    the log when the last of these batches was written, -1 where it is not told. last_epoch: of the last record, -1
    where it is not known. damage: None, or why the response could not be read to its end; the records before that are
    here.
    """

    def __cinit__(self):
        self.topic = ""
        self.next_offset = self.durable_offset = -1
        self.last_epoch = -1

    def __dealloc__(self):
        free(self._spans)

    @property
    def size_bytes(self):
        """Of the response, all told."""
        return PyBytes_GET_SIZE(self._data)

    @property
    def first_offset(self):
        """-1 without records."""
        return self._spans[self._first].offset if self._first < self._count else -1

    def __len__(self):
        return self._count - self._first

    def __getitem__(self, Py_ssize_t index):
        cdef Py_ssize_t length = self._count - self._first
        if index < 0:
            index += length
        if not 0 <= index < length:
            raise IndexError("no such record")
        return self._message(self._first + <uint32_t>index)

    def __iter__(self):
        cdef uint32_t index = self._first
        while index < self._count:
            yield self._message(index)
            index += 1

    def values(self):
        """The values alone: for who wants nothing else."""
        cdef list found = []
        cdef uint32_t index
        for index in range(self._first, self._count):
            if self._spans[index].value_size == NOTHING:
                found.append(None)
            else:
                found.append(_slice(self._data, self._spans[index].value_start, self._spans[index].value_size))
        return found

    def skip_before(self, int64_t offset):
        """Drop the records with lower offsets."""
        while self._first < self._count and self._spans[self._first].offset < offset:
            self._first += 1

    def keep_before(self, int64_t offset):
        """Drop the records from this offset on."""
        while self._first < self._count and self._spans[self._count - 1].offset >= offset:
            self._drop_last()

    def keep_first(self, uint32_t count):
        """Drop what is beyond so many records."""
        while self._count - self._first > count:
            self._drop_last()

    def _drop_last(self):
        self._count -= 1
        self.caught_up = False
        self.next_offset = self._spans[self._count].offset
        self.last_epoch = self._spans[self._count - 1].epoch if self._count else -1

    cdef Message _message(self, uint32_t index):
        cdef Message message = Message.__new__(Message)
        message.topic = self.topic
        message.partition = self.partition
        message._data = self._data
        message._span = self._spans[index]
        return message

    cdef int _scan(self, const uint8_t* at, const uint8_t* end, bint check) except -1:
        cdef Cursor cursor
        cdef Field field
        cdef int fault
        cdef const uint8_t* start
        cursor.at = at
        cursor.end = end
        while cursor.at < end:
            start = cursor.at
            if start[0] == BATCH_TAG:
                start = self._scan_batch(start, end, check)
                if start == NULL:
                    return 0
                cursor.at = start
                continue
            fault = read_field(&cursor, False, &field)
            if fault:
                self.damage = f"the response can't be read: {fault_text(fault)}"
                return 0
            if field.wire_type == WIRE_LENGTH:
                if field.number == 4:
                    # Of a batch that was cut: without a header there is nothing to check it by.
                    if not self._add(field.data, field.size, -1):
                        return 0
                elif field.number == 1:
                    self.topic = PyUnicode_DecodeUTF8(<const char*>field.data, <Py_ssize_t>field.size, b"replace")
            elif field.wire_type == WIRE_VARINT:
                if field.number == 2:
                    self.partition = <int32_t>field.value
                elif field.number == 3:
                    self.high_watermark = <int64_t>field.value
                elif field.number == 7:
                    self.log_start_offset = <int64_t>field.value
                elif field.number == 8:
                    self.caught_up = field.value != 0
        return 0

    cdef const uint8_t* _scan_batch(self, const uint8_t* at, const uint8_t* end, bint check) except? NULL:
        """Where the batch ends; NULL when it is damaged."""
        cdef BatchHeader header
        cdef Cursor cursor
        cdef Field field
        cdef int fault
        if check:
            fault = check_batch(at, end, &header)
        else:
            fault = read_batch_header(at, end, &header)
            if not fault and header.flags & FLAGS_CODEC:
                fault = BATCH_UNKNOWN_CODEC
        if fault != BATCH_WHOLE:
            if fault == BATCH_BAD_CRC:
                self.damage = f"the checksum of the batch at offset {header.base_offset} does not match"
            elif fault == BATCH_UNKNOWN_CODEC:
                self.damage = f"the batch at offset {header.base_offset} is compressed in a way that is not known here"
            else:
                self.damage = "a batch's header and its records do not belong together"
            return NULL
        cursor.at = at + BATCH_HEADER_BYTES
        cursor.end = cursor.at + header.payload_bytes
        while cursor.at < cursor.end:
            if read_field(&cursor, False, &field) or field.number != 4 or field.wire_type != WIRE_LENGTH:
                self.damage = f"the records of the batch at offset {header.base_offset} can't be read"
                return NULL
            if not self._add(field.data, field.size, header.epoch):
                return NULL
        # More than the last record's only where records were taken out of the batch.
        self.next_offset = header.next_offset
        self.durable_offset = header.durable_offset
        return cursor.end

    cdef int _add(self, const uint8_t* record, size_t size, int32_t epoch) except -1:
        """Whether there is a record to be added; where not, damage tells why."""
        cdef Cursor cursor
        cdef Field field
        cdef RecordSpan* span
        cdef uint32_t capacity
        cdef const uint8_t* base = <const uint8_t*>PyBytes_AS_STRING(self._data)
        if self._count == self._capacity:
            capacity = max(self._capacity * 2, <uint32_t>FIRST_SPANS)
            span = <RecordSpan*>realloc(self._spans, capacity * sizeof(RecordSpan))
            if span == NULL:
                raise MemoryError()
            self._spans = span
            self._capacity = capacity
        span = &self._spans[self._count]
        span.start = <uint32_t>(record - base)
        span.size = <uint32_t>size
        span.key_start = span.value_start = 0
        span.key_size = span.value_size = NOTHING
        span.header_count = 0
        span.epoch = epoch
        span.timestamp_ms = 0
        span.offset = 0
        cursor.at = record
        cursor.end = record + size
        while cursor.at < cursor.end:
            if read_field(&cursor, False, &field):
                self.damage = f"a record behind offset {self.next_offset - 1} can't be read"
                return False
            if field.wire_type == WIRE_LENGTH:
                if field.number == 2:
                    span.value_start = <uint32_t>(field.data - base)
                    span.value_size = <uint32_t>field.size
                elif field.number == 1:
                    span.key_start = <uint32_t>(field.data - base)
                    span.key_size = <uint32_t>field.size
                elif field.number == 3:
                    span.header_count += 1
            elif field.wire_type == WIRE_VARINT:
                if field.number == 5:
                    span.offset = <int64_t>field.value
                elif field.number == 4:
                    span.timestamp_ms = <int64_t>field.value
        if span.offset < self.next_offset:
            self.damage = f"offset {span.offset} comes behind {self.next_offset - 1}"
            return False
        self.next_offset = span.offset + 1
        self.last_epoch = epoch
        self._count += 1
        return True


def decode_records(bytes response not None, bint check=True):
    """The Records of a ConsumeMessagesResponse. check: hold whole batches against their checksums."""
    cdef Records records = Records.__new__(Records)
    cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(response)
    _check_size(response)
    records._data = response
    records._scan(at, at + len(response), check)
    return records


def decode_subscribed(bytes response not None, bint check=True):
    """(Records, credit_bytes) of a SubscribeResponse that has records; None for any other one."""
    cdef Records records
    cdef Cursor cursor
    cdef Field field
    cdef Field found
    cdef int64_t credit_bytes = 0
    _check_size(response)
    found.data = NULL
    found.size = 0
    cursor.at = <const uint8_t*>PyBytes_AS_STRING(response)
    cursor.end = cursor.at + len(response)
    while cursor.at < cursor.end:
        if read_field(&cursor, False, &field):
            return None
        if field.number == 4 and field.wire_type == WIRE_LENGTH:
            found = field
        elif field.number == 10 and field.wire_type == WIRE_VARINT:
            credit_bytes = <int64_t>field.value
        else:
            return None
    if found.data == NULL:
        return None
    records = Records.__new__(Records)
    records._data = response
    records._scan(found.data, found.data + found.size, check)
    return records, credit_bytes


cdef int _check_size(bytes response) except -1:
    if PyBytes_GET_SIZE(response) > 0x7FFFFFFF:
        raise ValueError("a response is below 2 GiB")
    return 0


def encode_record(key, value, headers=None, int64_t timestamp_ms=0):
    """A record as ProduceMessageRequest.records has it, tag and length included.

    headers: a mapping, or pairs, of text to bytes. timestamp_ms 0: the broker's clock. Raises TypeError, ValueError for
    what the broker would not take.
    """
    cdef bytes key_bytes = _as_bytes(key, "key")
    cdef bytes value_bytes = _as_bytes(value, "value")
    cdef bytes header_bytes = _encode_headers(headers) if headers else b""
    cdef size_t size = len(header_bytes)
    cdef bytes record
    cdef uint8_t* at
    if not -SAFE_INT64 <= timestamp_ms <= SAFE_INT64:
        raise ValueError(f"timestamp_ms {timestamp_ms} lies outside -(2^53-1) to 2^53-1")
    if key_bytes is not None:
        size += 1 + varint_size(<size_t>len(key_bytes)) + len(key_bytes)
    if value_bytes is not None:
        size += 1 + varint_size(<size_t>len(value_bytes)) + len(value_bytes)
    if timestamp_ms:
        size += 1 + varint_size(<uint64_t>timestamp_ms)
    if size > 0x7FFFFFFF - 8:
        raise ValueError("a record is below 2 GiB")
    record = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(1 + varint_size(size) + size))
    at = <uint8_t*>PyBytes_AS_STRING(record)
    at[0] = RECORDS_TAG
    at = write_varint(at + 1, size)
    if key_bytes is not None:
        at = _put(at, 1 << 3 | WIRE_LENGTH, key_bytes)
    if value_bytes is not None:
        at = _put(at, 2 << 3 | WIRE_LENGTH, value_bytes)
    memcpy(at, PyBytes_AS_STRING(header_bytes), <size_t>len(header_bytes))
    at += len(header_bytes)
    if timestamp_ms:
        at[0] = 4 << 3
        write_varint(at + 1, <uint64_t>timestamp_ms)
    return record


cdef inline uint8_t* _put(uint8_t* at, uint8_t tag, bytes content) noexcept:
    cdef size_t size = <size_t>PyBytes_GET_SIZE(content)
    at[0] = tag
    at = write_varint(at + 1, size)
    memcpy(at, PyBytes_AS_STRING(content), size)
    return at + size


cdef bytes _as_bytes(content, str what):
    if content is None or type(content) is bytes:
        return content
    if isinstance(content, str):
        raise TypeError(f"the {what} is text, not bytes: encode it")
    return bytes(memoryview(content))


cdef bytes _encode_headers(headers):
    cdef list parts = []
    cdef const char* name
    cdef Py_ssize_t name_size = 0
    cdef size_t size
    cdef bytes part
    cdef bytes content
    cdef uint8_t* at
    pairs = headers.items() if hasattr(headers, "items") else headers
    for key, value in pairs:
        if not isinstance(key, str):
            raise TypeError(f"a header's name is text, not {type(key).__name__}")
        content = _as_bytes(value, f"header {key!r}")
        if content is None:
            raise TypeError(f"header {key!r} has no value: a header's value is bytes")
        name = PyUnicode_AsUTF8AndSize(key, &name_size)
        if memchr(name, 0, <size_t>name_size) != NULL or key.startswith("\ufeff"):
            raise ValueError(f"header {key!r}: a name holds no NUL, and does not begin with a byte order mark")
        size = (
            2 + varint_size(<size_t>name_size) + <size_t>name_size + varint_size(<size_t>len(content)) + len(content)
        )
        part = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(1 + varint_size(size) + size))
        at = <uint8_t*>PyBytes_AS_STRING(part)
        at[0] = 3 << 3 | WIRE_LENGTH
        at = write_varint(at + 1, size)
        at[0] = 1 << 3 | WIRE_LENGTH
        at = write_varint(at + 1, <size_t>name_size)
        memcpy(at, name, <size_t>name_size)
        _put(at + name_size, 2 << 3 | WIRE_LENGTH, content)
        parts.append(part)
    return b"".join(parts)
