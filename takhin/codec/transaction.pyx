"""ProduceTransactionRequest, read in place, and its response.

It is read as messages.pyx reads requests. Its appends stay bytes: each is read, as any other produce request, when its
turn comes.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcpy

cimport cython

from takhin.codec.wire cimport (
    FAULT_NONE,
    FAULT_UTF8,
    FAULT_WIRE_TYPE,
    WIRE_LENGTH,
    WIRE_VARINT,
    Cursor,
    Field,
    as_int32,
    check_utf8,
    fault_text,
    read_field,
    varint_size,
    write_varint,
)

from takhin.errors import Reason, error


@cython.final
cdef class TransactionRequest:
    """A ProduceTransactionRequest.

    max_partitions: how many appends it may have, and how many offsets. Raises InvalidArgument MALFORMED_REQUEST,
    ResourceExhausted TRANSACTION_TOO_LARGE.
    """

    def __init__(self, bytes request not None, Py_ssize_t max_partitions):
        cdef Cursor cursor
        cdef int fault
        self.appends = []
        self.offsets = []
        self.group_id = self.member_id = ""
        self._limit = max_partitions
        cursor.at = <const uint8_t*>PyBytes_AS_STRING(request)
        cursor.end = cursor.at + len(request)
        fault = self._read(&cursor)
        if fault:
            raise error(Reason.MALFORMED_REQUEST, f"ProduceTransactionRequest can't be read: {fault_text(fault)}")

    cdef int _read(self, Cursor* cursor) except -1:
        cdef Field field
        cdef int fault
        while cursor.at < cursor.end:
            fault = read_field(cursor, False, &field)
            if not fault:
                fault = self._read_field(&field)
            if fault:
                return fault
        return FAULT_NONE

    cdef int _read_field(self, const Field* field) except -1:
        if field.number == 5:
            return as_int32(field, &self.generation)
        if field.number == 6:
            return as_int32(field, &self.timeout_ms)
        if not 1 <= field.number <= 4:
            return FAULT_NONE
        if field.wire_type != WIRE_LENGTH:
            return FAULT_WIRE_TYPE
        if field.number == 1:
            self._check_count(self.appends)
            self.appends.append(PyBytes_FromStringAndSize(<const char*>field.data, <Py_ssize_t>field.size))
            return FAULT_NONE
        if field.number == 3:
            return self._read_offset(field)
        if check_utf8(field.data, field.size):
            return FAULT_UTF8
        if field.number == 2:
            self.group_id = _text(field)
        else:
            self.member_id = _text(field)
        return FAULT_NONE

    cdef int _read_offset(self, const Field* field) except -1:
        """A TopicPartitionOffset."""
        cdef Cursor cursor
        cdef Field inner
        cdef int fault = FAULT_NONE
        cdef str topic = ""
        cdef int32_t partition = 0
        cdef int64_t offset = 0
        cursor.at = field.data
        cursor.end = field.data + field.size
        while cursor.at < cursor.end and not fault:
            fault = read_field(&cursor, False, &inner)
            if fault:
                break
            if inner.number == 1:
                if inner.wire_type != WIRE_LENGTH:
                    fault = FAULT_WIRE_TYPE
                elif check_utf8(inner.data, inner.size):
                    fault = FAULT_UTF8
                else:
                    topic = _text(&inner)
            elif inner.number == 2:
                fault = as_int32(&inner, &partition)
            elif inner.number == 3:
                if inner.wire_type != WIRE_VARINT:
                    fault = FAULT_WIRE_TYPE
                else:
                    offset = <int64_t>inner.value
        if not fault:
            self._check_count(self.offsets)
            self.offsets.append((topic, partition, offset))
        return fault

    cdef int _check_count(self, list parts) except -1:
        # Here and not when all is read: an object made of a part is many times as large as what may stand for one.
        if len(parts) >= self._limit:
            raise error(
                Reason.TRANSACTION_TOO_LARGE,
                f"a transaction has at most {self._limit} appends, and as many offsets (limits.transaction_partitions)",
                max_partitions=self._limit,
            )
        return 0


cdef str _text(const Field* field):
    return PyUnicode_DecodeUTF8(<const char*>field.data, <Py_ssize_t>field.size, NULL)


def encode_transaction(list appends not None):
    """A ProduceTransactionResponse of these encoded ProduceMessageResponses."""
    cdef Py_ssize_t size = 0
    cdef bytes each
    cdef bytes response
    cdef uint8_t* at
    for each in appends:
        size += 1 + <Py_ssize_t>varint_size(<size_t>len(each)) + len(each)
    response = PyBytes_FromStringAndSize(NULL, size)
    at = <uint8_t*>PyBytes_AS_STRING(response)
    for each in appends:
        at[0] = 1 << 3 | WIRE_LENGTH
        at = write_varint(at + 1, <size_t>len(each))
        memcpy(at, PyBytes_AS_STRING(each), <size_t>len(each))
        at += len(each)
    return response
