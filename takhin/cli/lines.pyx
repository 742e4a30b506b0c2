"""Lines of a file or a pipe, made into the records of produce requests: no Python object is made for a line."""

from collections import namedtuple

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memchr, memcmp, memcpy

cimport cython

from takhin.codec.messages cimport murmur2_of
from takhin.codec.wire cimport varint_size, write_varint

cdef enum:
    RECORDS_TAG = 0x32      # ProduceMessageRequest.records
    KEY_TAG = 0x0A
    VALUE_TAG = 0x12
    HEADERS_TAG = 0x1A
    # Tags and lengths of a record, its key and its value.
    OVERHEAD_BYTES = 24

# partition None: the records have no key, and may go anywhere. payload: the records, as ProduceMessageRequest.records
# has them. first_line: where the first of them stood, from 1 on.
LineBatch = namedtuple("LineBatch", ["partition", "payload", "record_count", "first_line"])


class LineTooLong(ValueError):
    """A line that no record may hold. line: its number, from 1 on."""

    line = 0

    def __init__(self, line, most):
        super().__init__(f"line {line} is longer than {most} bytes")
        self.line = line


@cython.final
cdef class LineEncoder:
    """Takes blocks of input, and gives batches of records, each line a record.

    num_partitions: of the topic; records with a key are put together by its partition. batch_bytes, batch_records:
    where a batch is full. line_bytes: the longest line there may be. delimiter: the byte that ends a line; with
    keep_ends it is a part of the record. key_separator: what stands before it is the key; a line without it has none.
    key: of all lines. headers: of all lines. empty_is_none: an empty value is a tombstone. lines: how many were read.
    """

    def __init__(
        self, *, uint32_t num_partitions, size_t batch_bytes, uint32_t batch_records, size_t line_bytes,
        bytes delimiter not None=b"\n", bint keep_ends=False, bytes key_separator not None=b"", bytes key=None,
        headers=(), bint empty_is_none=False
    ):
        if len(delimiter) != 1:
            raise ValueError("the delimiter is one byte")
        if num_partitions == 0 or batch_records == 0 or self._buffers != NULL:
            raise ValueError("there are no partitions, or no records in a batch")
        self._delimiter = delimiter[0]
        self._keeps_ends = keep_ends
        self._separator = key_separator
        self._key = key
        self._headers = b"".join([_encode_header(name, value) for name, value in headers])
        self._empty_is_none = empty_is_none
        self._num_partitions = num_partitions
        self._batch_bytes = batch_bytes
        self._batch_records = batch_records
        self._line_bytes = line_bytes
        self._full = []
        self._buffers = <Buffer*>calloc(num_partitions + 1, sizeof(Buffer))
        if self._buffers == NULL:
            raise MemoryError()

    def __dealloc__(self):
        cdef uint32_t i
        if self._buffers != NULL:
            for i in range(self._num_partitions + 1):
                free(self._buffers[i].data)
        free(self._buffers)
        free(self._rest.data)

    def feed(self, bytes block not None):
        """Take what comes next; gives the batches that are full now. Raises LineTooLong."""
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(block)
        cdef const uint8_t* end = at + len(block)
        cdef const uint8_t* found
        while at < end:
            found = <const uint8_t*>memchr(at, self._delimiter, <size_t>(end - at))
            if found == NULL:
                self._keep(at, <size_t>(end - at))
                break
            if self._rest.size:
                self._keep(at, <size_t>(found - at))
                self._rest.data[self._rest.size] = self._delimiter
                self._line(self._rest.data, self._rest.size, True)
                self._rest.size = 0
            else:
                self._line(at, <size_t>(found - at), True)
            at = found + 1
        return self._taken()

    def end(self):
        """The file is at its end: what comes after its last delimiter is a line too, unless it is nothing."""
        if self._rest.size:
            self._line(self._rest.data, self._rest.size, False)
            self._rest.size = 0

    def take(self):
        """All batches, full or not, without the beginning of a line."""
        cdef uint32_t i
        for i in range(self._num_partitions + 1):
            if self._buffers[i].count:
                self._close(&self._buffers[i], <int64_t>i - 1)
        return self._taken()

    def _taken(self):
        full, self._full = self._full, []
        return full

    cdef int _keep(self, const uint8_t* data, size_t size) except -1:
        if self._rest.size + size > self._line_bytes:
            raise LineTooLong(self.lines + 1, self._line_bytes)
        _reserve(&self._rest, size + 1)
        memcpy(self._rest.data + self._rest.size, data, size)
        self._rest.size += size
        return 0

    cdef int _line(self, const uint8_t* line, size_t size, bint has_end) except -1:
        """A line; where it has an end, the delimiter stands behind it."""
        cdef const uint8_t* separator = <const uint8_t*>PyBytes_AS_STRING(self._separator)
        cdef size_t separator_size = <size_t>len(self._separator)
        cdef const uint8_t* end = line + size
        cdef const uint8_t* at = line
        cdef const uint8_t* value_end
        self.lines += 1
        if size > self._line_bytes:
            raise LineTooLong(self.lines, self._line_bytes)
        value_end = end + 1 if has_end and self._keeps_ends else end
        if separator_size:
            while at + separator_size <= end:
                at = <const uint8_t*>memchr(at, separator[0], <size_t>(end - at) - separator_size + 1)
                if at == NULL:
                    break
                if memcmp(at, separator, separator_size) == 0:
                    at += separator_size
                    return self._add(line, <size_t>(at - line) - separator_size, at, <size_t>(value_end - at))
                at += 1
        if self._key is not None:
            return self._add(
                <const uint8_t*>PyBytes_AS_STRING(self._key), <size_t>len(self._key), line, <size_t>(value_end - line))
        return self._add(NULL, 0, line, <size_t>(value_end - line))

    cdef int _add(self, const uint8_t* key, size_t key_size, const uint8_t* value, size_t value_size) except -1:
        """key NULL: none."""
        cdef size_t headers_size = <size_t>len(self._headers)
        cdef size_t size = headers_size
        cdef bint has_value = value_size > 0 or not self._empty_is_none
        cdef int64_t partition = -1
        cdef Buffer* buffer
        cdef uint8_t* to
        if key != NULL:
            partition = (murmur2_of(key, key_size) & 0x7FFFFFFF) % self._num_partitions
            size += 1 + varint_size(key_size) + key_size
        if has_value:
            size += 1 + varint_size(value_size) + value_size
        buffer = &self._buffers[partition + 1]
        if buffer.count and (
            buffer.size + size + OVERHEAD_BYTES > self._batch_bytes or buffer.count == self._batch_records
        ):
            self._close(buffer, partition)
        _reserve(buffer, size + OVERHEAD_BYTES)
        if buffer.count == 0:
            buffer.first_line = self.lines
        to = buffer.data + buffer.size
        to[0] = RECORDS_TAG
        to = write_varint(to + 1, size)
        if key != NULL:
            to[0] = KEY_TAG
            to = write_varint(to + 1, key_size)
            memcpy(to, key, key_size)
            to += key_size
        if has_value:
            to[0] = VALUE_TAG
            to = write_varint(to + 1, value_size)
            memcpy(to, value, value_size)
            to += value_size
        memcpy(to, PyBytes_AS_STRING(self._headers), headers_size)
        buffer.size = <size_t>(to - buffer.data) + headers_size
        buffer.count += 1
        return 0

    cdef int _close(self, Buffer* buffer, int64_t partition) except -1:
        payload = PyBytes_FromStringAndSize(<const char*>buffer.data, <Py_ssize_t>buffer.size)
        self._full.append(
            LineBatch(partition if partition >= 0 else None, payload, buffer.count, buffer.first_line))
        buffer.size = 0
        buffer.count = 0
        return 0


cdef int _reserve(Buffer* buffer, size_t size) except -1:
    """Room for so many bytes more."""
    cdef size_t capacity
    cdef uint8_t* data
    if buffer.size + size <= buffer.capacity:
        return 0
    capacity = max(buffer.capacity * 2, buffer.size + size)
    data = <uint8_t*>realloc(buffer.data, capacity)
    if data == NULL:
        raise MemoryError()
    buffer.data = data
    buffer.capacity = capacity
    return 0


cdef bytes _encode_header(str name, bytes value):
    cdef bytes key = name.encode()
    return b"".join([
        bytes([HEADERS_TAG]), _varint(
            1 + varint_size(<size_t>len(key)) + len(key) + 1 + varint_size(<size_t>len(value)) + len(value)),
        bytes([KEY_TAG]), _varint(len(key)), key, bytes([VALUE_TAG]), _varint(len(value)), value,
    ])


cdef bytes _varint(size_t value):
    cdef uint8_t room[10]
    cdef uint8_t* end = write_varint(room, value)
    return room[:end - room]
