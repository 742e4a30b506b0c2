"""Records on their way to the broker, with who waits for them.

Encoded records are kept as they are to be sent; what else is to be known of one (its key, its timestamp) is read from
there.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t

cimport cython

from takhin.codec.wire cimport WIRE_LENGTH, WIRE_VARINT, Cursor, Field, read_field


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class RecordMetadata:
    """Where a record was stored. timestamp_ms: as it was sent; where it was sent without one, the broker's clock when
    the first record of its batch was stored. It is frozen.
    """

    def __init__(self, str topic not None, int32_t partition, int64_t offset, int64_t timestamp_ms):
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.timestamp_ms = timestamp_ms

    def _content(self):
        return self.topic, self.partition, self.offset, self.timestamp_ms

    def __eq__(self, other):
        if type(other) is not RecordMetadata:
            return NotImplemented
        return self._content() == (<RecordMetadata>other)._content()

    def __hash__(self):
        return hash(self._content())

    def __reduce__(self):
        return RecordMetadata, self._content()

    def __repr__(self):
        return (
            f"RecordMetadata(topic={self.topic!r}, partition={self.partition}, offset={self.offset}, "
            f"timestamp_ms={self.timestamp_ms})"
        )


@cython.final
cdef class RecordBatch:
    """Encoded records (messages.encode_record), each with its delivery: an asyncio.Future of a RecordMetadata; or many
    that came encoded already, with one delivery for all of them.
    """

    def __cinit__(self):
        self.deliveries = []
        self._records = []

    @property
    def count(self):
        return self._encoded_count or len(self.deliveries)

    def add(self, bytes record not None, delivery, bint has_timestamp=False):
        """has_timestamp: whether the record bears one of its own."""
        self._records.append(record)
        self.deliveries.append(delivery)
        self.size_bytes += PyBytes_GET_SIZE(record)
        if has_timestamp:
            self._has_timestamps = True

    def set_encoded(self, bytes payload not None, Py_ssize_t count, delivery):
        """Make it a batch of `count` records that are encoded one after the other. None can be added to it."""
        self._records = None
        self._payload = payload
        self._encoded_count = count
        self.size_bytes = PyBytes_GET_SIZE(payload)
        self.deliveries = [delivery]

    def payload(self):
        """The records, one after the other. No more of them are added from now on."""
        if self._records is not None:
            self._payload = b"".join(self._records)
            self._records = None
        return self._payload

    def keys(self, Py_ssize_t most):
        """The keys of the first records, at most so many."""
        cdef list found = []
        for key, _ in self._read(most):
            found.append(key)
        return found

    def _read(self, Py_ssize_t most):
        """(key, timestamp_ms or 0) of the first records."""
        cdef bytes payload = self.payload()
        cdef Cursor cursor
        cdef Cursor inner
        cdef Field record
        cdef Field field
        cdef list found = []
        cdef int64_t timestamp_ms
        cursor.at = <const uint8_t*>PyBytes_AS_STRING(payload)
        cursor.end = cursor.at + PyBytes_GET_SIZE(payload)
        while cursor.at < cursor.end and len(found) < most:
            # They were encoded here: nothing in them can be amiss.
            if read_field(&cursor, False, &record):
                break
            key = None
            timestamp_ms = 0
            inner.at = record.data
            inner.end = record.data + record.size
            while inner.at < inner.end and not read_field(&inner, False, &field):
                if field.number == 1 and field.wire_type == WIRE_LENGTH:
                    key = PyBytes_FromStringAndSize(<const char*>field.data, <Py_ssize_t>field.size)
                elif field.number == 4 and field.wire_type == WIRE_VARINT:
                    timestamp_ms = <int64_t>field.value
            found.append((key, timestamp_ms))
        return found

    def stored(self, str topic not None, int32_t partition, int64_t offset, int64_t timestamp_ms):
        """They are, from offset on: tell those who wait."""
        cdef RecordMetadata metadata
        cdef list own = self._read(len(self.deliveries)) if self._has_timestamps else None
        cdef Py_ssize_t place = 0
        for delivery in self.deliveries:
            if not delivery.done():
                metadata = RecordMetadata.__new__(RecordMetadata)
                metadata.topic = topic
                metadata.partition = partition
                metadata.offset = offset + place
                metadata.timestamp_ms = timestamp_ms if own is None else own[place][1] or timestamp_ms
                delivery.set_result(metadata)
            place += 1

    def failed(self, problem):
        """They are not: tell those who wait."""
        for delivery in self.deliveries:
            if not delivery.done():
                delivery.set_exception(problem)
