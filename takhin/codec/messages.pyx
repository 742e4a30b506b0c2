"""The hot messages: requests read in place, responses written straight into the bytes that go out.

Requests are read as protobuf means it: fields in any order, unknown ones skipped, the last of a repeated scalar wins.
Stricter than protobuf is: a wrong wire type on a known field and a group are refused, so is a second `record`; and a
Record must keep the rules of wire.check_record, because its bytes are stored as they came.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

cimport cython

from takhin.codec.wire cimport (
    FAULT_INT64_RANGE,
    FAULT_NO_MEMORY,
    FAULT_NONE,
    FAULT_RECORD_TWICE,
    FAULT_TOO_MANY_RECORDS,
    FAULT_UTF8,
    FAULT_WIRE_TYPE,
    SAFE_INT64,
    WIRE_LENGTH,
    WIRE_VARINT,
    Cursor,
    Field,
    RecordFacts,
    as_int32,
    check_record,
    check_utf8,
    fault_text,
    read_field,
    varint_size,
    write_varint,
)

from takhin.errors import Reason, error

cdef enum:
    # Beside wire's faults: this one is about the request as a whole.
    FAULT_BOTH = 100

# Scratch for as many records is kept between requests.
cdef uint32_t SPANS_KEPT = 4096


@cython.final
cdef class ProduceRequest:
    """A ProduceMessageRequest, read in place.

    One object serves any number of requests, one after the other: what it tells is of the last one read, and the
    bytes of that one are kept alive by it.
    """

    def __cinit__(self, uint32_t max_records):
        self._limit = max_records
        self._capacity = min(SPANS_KEPT, max_records)
        self.spans = <RecordSpan*>malloc(self._capacity * sizeof(RecordSpan))
        if self.spans == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.spans)

    def read(self, bytes request not None):
        """Read a request and hold its records against the rules of ingest.

        Raises InvalidArgument: MALFORMED_REQUEST, MALFORMED_RECORD, NO_RECORD, RECORD_AND_RECORDS, TOO_MANY_RECORDS,
        INVALID_PRODUCER, INVALID_OFFSET.
        """
        self._request = None
        self.read_at(<const uint8_t*>PyBytes_AS_STRING(request), len(request))
        self._request = request

    cdef int read_at(self, const uint8_t* data, size_t size) except -1:
        """As read(), of bytes that stay where they are for as long as what it tells is asked for."""
        cdef int fault
        if size > 0x7FFFFFFF:
            raise error(Reason.MALFORMED_REQUEST, "a request is below 2 GiB")
        if self._capacity > SPANS_KEPT:
            self._shrink()
        self.data = data
        self.topic = b""
        self.partition = 0
        self.required_acks = 0
        self.timeout_ms = 0
        self.record_count = 0
        self.records_bytes = 0
        self.largest_record_bytes = 0
        self.is_batch = False
        self.is_conditional = False
        self.has_producer = False
        self.has_expected_offset = False
        self.producer_id = 0
        self.producer_epoch = 0
        self.producer_sequence = 0
        fault = self._read(self.data + size)
        if fault:
            self._fail(fault)
        if self.record_count == 0:
            raise error(
                Reason.NO_RECORD, "the request has no record: set field 3 (record) or field 6 (records)"
            )
        if self.is_conditional:
            self._check_condition()
        return 0

    cdef int _read(self, const uint8_t* end) noexcept:
        # Negative: the fault lies within a record.
        cdef Cursor cursor
        cdef Field field
        cdef int fault
        cdef bint has_record = False
        cdef const uint8_t* topic = self.data
        cdef size_t topic_size = 0
        cursor.at = self.data
        cursor.end = end
        while cursor.at < end:
            fault = read_field(&cursor, False, &field)
            if fault:
                return fault
            if field.number == 6 or field.number == 3:
                if field.wire_type != WIRE_LENGTH:
                    return FAULT_WIRE_TYPE
                if field.number == 3:
                    if has_record:
                        return FAULT_RECORD_TWICE
                    has_record = True
                else:
                    self.is_batch = True
                fault = self._add(field.data, field.size)
                if fault:
                    return fault
            elif field.number == 1:
                if field.wire_type != WIRE_LENGTH:
                    return FAULT_WIRE_TYPE
                if check_utf8(field.data, field.size):
                    return FAULT_UTF8
                topic = field.data
                topic_size = field.size
            elif field.number == 2:
                fault = as_int32(&field, &self.partition)
                if fault:
                    return fault
            elif field.number == 4:
                fault = as_int32(&field, &self.required_acks)
                if fault:
                    return fault
            elif field.number == 5:
                fault = as_int32(&field, &self.timeout_ms)
                if fault:
                    return fault
            elif field.number == 7:
                fault = self._read_producer(&field)
                if fault:
                    return fault
            elif field.number == 8:
                fault = _as_int64(&field, &self.expected_offset)
                if fault:
                    return fault
                self.is_conditional = True
                self.has_expected_offset = True
        self.topic = PyBytes_FromStringAndSize(<const char*>topic, <Py_ssize_t>topic_size)
        if has_record and self.is_batch:
            return FAULT_BOTH
        return FAULT_NONE

    cdef int _read_producer(self, const Field* producer) noexcept:
        """A ProducerState; given twice, the two are merged, as protobuf has it."""
        cdef Cursor cursor
        cdef Field field
        cdef int fault
        if producer.wire_type != WIRE_LENGTH:
            return FAULT_WIRE_TYPE
        self.is_conditional = True
        self.has_producer = True
        cursor.at = producer.data
        cursor.end = producer.data + producer.size
        while cursor.at < cursor.end:
            fault = read_field(&cursor, False, &field)
            if fault:
                return fault
            if field.number == 1:
                fault = _as_int64(&field, &self.producer_id)
            elif field.number == 2:
                fault = as_int32(&field, &self.producer_epoch)
            elif field.number == 3:
                fault = _as_int64(&field, &self.producer_sequence)
            if fault:
                return fault
        return FAULT_NONE

    cdef int _check_condition(self) except -1:
        if self.has_producer and not (
            0 <= self.producer_id <= SAFE_INT64 and self.producer_epoch >= 0
            and 0 <= self.producer_sequence <= SAFE_INT64 - <int64_t>self.record_count
        ):
            raise error(
                Reason.INVALID_PRODUCER,
                f"a producer of id {self.producer_id}, epoch {self.producer_epoch}, sequence {self.producer_sequence} "
                "is not possible: none of them is negative, and id and sequence stay below 2^53",
            )
        if self.has_expected_offset and not 0 <= self.expected_offset <= SAFE_INT64:
            raise error(
                Reason.INVALID_OFFSET,
                f"expected_offset {self.expected_offset} is not possible: offsets lie between 0 and 2^53 - 1",
            )
        return 0

    cdef int _add(self, const uint8_t* record, size_t size) noexcept:
        cdef RecordFacts facts
        cdef RecordSpan* grown
        cdef uint32_t capacity
        cdef int fault = check_record(record, size, &facts)
        if fault:
            return -fault
        if self.record_count == self._capacity:
            if self._capacity >= self._limit:
                return FAULT_TOO_MANY_RECORDS
            capacity = min(self._capacity * 2, self._limit)
            grown = <RecordSpan*>realloc(self.spans, capacity * sizeof(RecordSpan))
            if grown == NULL:
                return FAULT_NO_MEMORY
            self.spans = grown
            self._capacity = capacity
        self.spans[self.record_count].start = <uint32_t>(record - self.data)
        self.spans[self.record_count].size = <uint32_t>size
        self.spans[self.record_count].timestamp_ms = facts.timestamp_ms
        self.record_count += 1
        self.records_bytes += size
        if size > self.largest_record_bytes:
            self.largest_record_bytes = <uint32_t>size
        return FAULT_NONE

    def _shrink(self):
        cdef RecordSpan* shrunk = <RecordSpan*>realloc(self.spans, SPANS_KEPT * sizeof(RecordSpan))
        if shrunk != NULL:
            self.spans = shrunk
            self._capacity = SPANS_KEPT

    cdef int _fail(self, int fault) except -1:
        if fault < 0:
            raise error(
                Reason.MALFORMED_RECORD,
                f"record {self.record_count} of the request can't be stored: {fault_text(-fault)}",
                record_index=self.record_count,
            )
        if fault == FAULT_BOTH:
            raise error(
                Reason.RECORD_AND_RECORDS,
                "set field 3 (record) for one record or field 6 (records) for a batch, not both",
            )
        if fault == FAULT_TOO_MANY_RECORDS:
            raise error(
                Reason.TOO_MANY_RECORDS, f"the request has more than {self._limit} records", max_records=self._limit
            )
        if fault == FAULT_NO_MEMORY:
            raise MemoryError()
        raise error(Reason.MALFORMED_REQUEST, f"ProduceMessageRequest can't be read: {fault_text(fault)}")

    cpdef int64_t key_partition(self, uint32_t num_partitions) except -2:
        """The partition that the records' keys ask for, -1 when none of them has a key.

        It is murmur2 of the key, as Kafka's default partitioner has it. Raises InvalidArgument KEYS_SPAN_PARTITIONS
        when the keys ask for more than one, ValueError when there are no partitions.
        """
        cdef RecordFacts facts
        cdef RecordSpan* span
        cdef int64_t chosen = -1
        cdef int64_t wanted
        cdef uint32_t i
        if num_partitions == 0:
            raise ValueError("there are no partitions to choose from")
        for i in range(self.record_count):
            span = &self.spans[i]
            check_record(self.data + span.start, span.size, &facts)
            if facts.key == NULL:
                continue
            wanted = (murmur2_of(facts.key, facts.key_size) & 0x7FFFFFFF) % num_partitions
            if chosen >= 0 and wanted != chosen:
                raise error(
                    Reason.KEYS_SPAN_PARTITIONS,
                    "the keys of this batch fall on different partitions: "
                    "send a batch for each, or name the partition",
                )
            chosen = wanted
        return chosen

    def record(self, uint32_t index):
        """The bytes of one record, as they came. Raises IndexError."""
        if index >= self.record_count:
            raise IndexError("no such record")
        return (<const char*>self.data)[
            self.spans[index].start:self.spans[index].start + self.spans[index].size
        ]


@cython.final
cdef class ConsumeRequest:
    """A ConsumeMessagesRequest; start_time_ms and last_epoch are None when absent. Raises InvalidArgument
    MALFORMED_REQUEST."""

    def __init__(self, bytes request not None):
        cdef Cursor cursor
        cdef Field field
        cdef int fault = FAULT_NONE
        cdef int32_t epoch
        cdef int64_t time_ms
        self.topic = b""
        cursor.at = <const uint8_t*>PyBytes_AS_STRING(request)
        cursor.end = cursor.at + len(request)
        while cursor.at < cursor.end and not fault:
            fault = read_field(&cursor, False, &field)
            if fault:
                break
            if field.number == 1:
                if field.wire_type != WIRE_LENGTH:
                    fault = FAULT_WIRE_TYPE
                else:
                    fault = check_utf8(field.data, field.size)
                    self.topic = PyBytes_FromStringAndSize(<const char*>field.data, <Py_ssize_t>field.size)
            elif field.number == 2:
                fault = as_int32(&field, &self.partition)
            elif field.number == 3:
                fault = _as_int64(&field, &self.offset)
            elif field.number == 4:
                fault = as_int32(&field, &self.max_bytes)
            elif field.number == 5:
                fault = as_int32(&field, &self.min_bytes)
            elif field.number == 6:
                fault = as_int32(&field, &self.max_wait_ms)
            elif field.number == 7:
                if field.wire_type != WIRE_VARINT:
                    fault = FAULT_WIRE_TYPE
                else:
                    self.until_end = field.value != 0
            elif field.number == 8:
                fault = _as_int64(&field, &time_ms)
                if not fault:
                    self.start_time_ms = time_ms
            elif field.number == 9:
                fault = _as_int64(&field, &self.max_records)
            elif field.number == 11:
                fault = as_int32(&field, &epoch)
                self.last_epoch = epoch
        if fault:
            raise error(Reason.MALFORMED_REQUEST, f"ConsumeMessagesRequest can't be read: {fault_text(fault)}")


cdef int _as_int64(const Field* field, int64_t* value) noexcept nogil:
    if field.wire_type != WIRE_VARINT:
        return FAULT_WIRE_TYPE
    value[0] = <int64_t>field.value
    return FAULT_NONE


@cython.final
cdef class ResponsePrefix:
    def __cinit__(self, bytes topic not None, int32_t partition):
        cdef size_t topic_size = <size_t>len(topic)
        cdef uint8_t* at
        self.data = <uint8_t*>malloc(1 + 10 + topic_size + 1 + 10)
        if self.data == NULL:
            raise MemoryError()
        at = self.data
        at[0] = 1 << 3 | WIRE_LENGTH
        at = write_varint(at + 1, topic_size)
        memcpy(at, PyBytes_AS_STRING(topic), topic_size)
        at += topic_size
        if partition:
            at[0] = 2 << 3
            at = write_varint(at + 1, <uint64_t><int64_t>partition)
        self.size = <size_t>(at - self.data)

    def __dealloc__(self):
        free(self.data)

    cdef object produced(
        self, int64_t offset, int64_t timestamp_ms, uint32_t record_count, int durability, int32_t epoch, bint duplicate
    ):
        """An encoded ProduceMessageResponse."""
        cdef size_t size = (
            self.size + _field_size(offset) + _field_size(timestamp_ms) + _field_size(record_count)
            + _field_size(duplicate) + _field_size(durability) + _field_size(epoch)
        )
        cdef bytes response = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        cdef uint8_t* at = <uint8_t*>PyBytes_AS_STRING(response)
        memcpy(at, self.data, self.size)
        at += self.size
        at = _put(at, 3, offset)
        at = _put(at, 4, timestamp_ms)
        at = _put(at, 6, record_count)
        at = _put(at, 9, duplicate)
        at = _put(at, 10, durability)
        at = _put(at, 11, epoch)
        return response

    cdef size_t consumed_size(self, int64_t high_watermark, int64_t log_start, bint caught_up) noexcept nogil:
        """Bytes that write_consumed will write."""
        return self.size + _field_size(high_watermark) + _field_size(log_start) + _field_size(caught_up)

    cdef uint8_t* write_consumed(
        self, uint8_t* to, int64_t high_watermark, int64_t log_start, bint caught_up
    ) noexcept nogil:
        """The fields of a ConsumeMessagesResponse that stand before its slice of the log."""
        memcpy(to, self.data, self.size)
        to = _put(to + self.size, 3, high_watermark)
        to = _put(to, 7, log_start)
        return _put(to, 8, caught_up)


cdef inline size_t _field_size(int64_t value) noexcept nogil:
    return 1 + varint_size(<uint64_t>value) if value else 0


cdef inline uint8_t* _put(uint8_t* at, uint8_t number, int64_t value) noexcept nogil:
    # proto3: a zero is not written.
    if value == 0:
        return at
    at[0] = number << 3
    return write_varint(at + 1, <uint64_t>value)


def encode_produce_failure(bytes topic not None, int32_t partition, str error not None, int code, str reason not None):
    """A ProduceMessageResponse that tells why one request of a stream was refused."""
    cdef bytearray out = bytearray()
    for number, text in ((1, topic), (5, error.encode()), (8, reason.encode())):
        if text:
            out.append(number << 3 | WIRE_LENGTH)
            _append_varint(out, len(text))
            out += text
    if partition:
        out.append(2 << 3)
        _append_varint(out, <uint64_t><int64_t>partition)
    out.append(7 << 3)
    _append_varint(out, <uint64_t>code)
    return bytes(out)


cdef int _append_varint(bytearray out, uint64_t value) except -1:
    cdef uint8_t encoded[10]
    cdef uint8_t* end = write_varint(encoded, value)
    out += encoded[:end - encoded]
    return 0


cdef uint32_t murmur2_of(const uint8_t* data, size_t size) noexcept nogil:
    # Austin Appleby's MurmurHash2, with the seed of Kafka's org.apache.kafka.common.utils.Utils.murmur2.
    cdef uint32_t m = 0x5BD1E995
    cdef uint32_t h = <uint32_t>0x9747B28C ^ <uint32_t>size
    cdef uint32_t k
    while size >= 4:
        k = <uint32_t>data[0] | <uint32_t>data[1] << 8 | <uint32_t>data[2] << 16 | <uint32_t>data[3] << 24
        k *= m
        k ^= k >> 24
        k *= m
        h *= m
        h ^= k
        data += 4
        size -= 4
    if size == 3:
        h ^= <uint32_t>data[2] << 16
    if size >= 2:
        h ^= <uint32_t>data[1] << 8
    if size >= 1:
        h ^= data[0]
        h *= m
    h ^= h >> 13
    h *= m
    h ^= h >> 15
    return h


def murmur2(bytes data not None):
    """Kafka's murmur2 of data, as an unsigned number of 32 bits."""
    return murmur2_of(<const uint8_t*>PyBytes_AS_STRING(data), <size_t>len(data))
