"""Reading protobuf's wire format in place, and the rules a record must keep to be stored and served as it came.

The rules of check_record are those on which decoders in many languages agree; docs/format.md lists them with the
reason for each.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr


cdef int read_varint(Cursor* cursor, bint minimal, uint64_t* value) noexcept nogil:
    cdef const uint8_t* at = cursor.at
    cdef const uint8_t* end = cursor.end
    cdef uint64_t result = 0
    cdef uint32_t shift = 0
    cdef uint8_t byte
    while True:
        if at >= end:
            return FAULT_TRUNCATED
        byte = at[0]
        at += 1
        if shift == 63 and byte > 1:
            # A tenth byte has room for one bit.
            return FAULT_VARINT_TOO_LONG
        result |= <uint64_t>(byte & 0x7F) << shift
        if byte < 0x80:
            if minimal and byte == 0 and shift:
                return FAULT_VARINT_NOT_MINIMAL
            cursor.at = at
            value[0] = result
            return FAULT_NONE
        shift += 7


cdef int read_field(Cursor* cursor, bint minimal, Field* field) noexcept nogil:
    """The next field; for a length-delimited one data and size lie within the cursor's end."""
    cdef uint64_t tag
    cdef uint64_t length
    cdef int fault
    cdef const uint8_t* start = cursor.at
    if start < cursor.end and start[0] < 0x80:
        tag = start[0]
        cursor.at = start + 1
    else:
        fault = read_varint(cursor, True, &tag)
        if fault == FAULT_TRUNCATED:
            return fault
        if fault or tag > <uint64_t>0xFFFFFFFF:
            return FAULT_TAG
    field.number = <uint32_t>(tag >> 3)
    field.wire_type = <uint32_t>(tag & 7)
    if field.number == 0:
        return FAULT_FIELD_ZERO
    if field.wire_type == WIRE_LENGTH:
        start = cursor.at
        fault = read_varint(cursor, minimal, &length)
        if fault:
            return fault
        if cursor.at - start > 5:
            # As protobuf has it: a length is one of 32 bits.
            return FAULT_LENGTH
        if length > <uint64_t>(cursor.end - cursor.at):
            return FAULT_LENGTH
        field.data = cursor.at
        field.size = <size_t>length
        cursor.at += length
        return FAULT_NONE
    if field.wire_type == WIRE_VARINT:
        return read_varint(cursor, minimal, &field.value)
    if field.wire_type == WIRE_FIXED64:
        if cursor.end - cursor.at < 8:
            return FAULT_TRUNCATED
        cursor.at += 8
        return FAULT_NONE
    if field.wire_type == WIRE_FIXED32:
        if cursor.end - cursor.at < 4:
            return FAULT_TRUNCATED
        cursor.at += 4
        return FAULT_NONE
    if field.wire_type == 3 or field.wire_type == 4:
        return FAULT_GROUP
    return FAULT_WIRE_TYPE


cdef int as_int32(const Field* field, int32_t* value) noexcept nogil:
    cdef int64_t wide
    if field.wire_type != WIRE_VARINT:
        return FAULT_WIRE_TYPE
    wide = <int64_t>field.value
    if wide < -2147483648 or wide > 2147483647:
        return FAULT_INT32_RANGE
    value[0] = <int32_t>wide
    return FAULT_NONE


cdef int check_utf8(const uint8_t* data, size_t size) noexcept nogil:
    """Strict UTF-8 (RFC 3629): no surrogates, nothing overlong, nothing above U+10FFFF."""
    cdef const uint8_t* at = data
    cdef const uint8_t* end = data + size
    cdef uint8_t first
    cdef uint8_t low
    cdef uint8_t high
    cdef int more
    while at < end:
        first = at[0]
        at += 1
        if first < 0x80:
            continue
        low = 0x80
        high = 0xBF
        if 0xC2 <= first <= 0xDF:
            more = 1
        elif 0xE0 <= first <= 0xEF:
            more = 2
            if first == 0xE0:
                low = 0xA0
            elif first == 0xED:
                high = 0x9F
        elif 0xF0 <= first <= 0xF4:
            more = 3
            if first == 0xF0:
                low = 0x90
            elif first == 0xF4:
                high = 0x8F
        else:
            return FAULT_UTF8
        if end - at < more or at[0] < low or at[0] > high:
            return FAULT_UTF8
        at += 1
        while more > 1:
            if at[0] & 0xC0 != 0x80:
                return FAULT_UTF8
            at += 1
            more -= 1
    return FAULT_NONE


cdef int _check_header(const uint8_t* data, size_t size) noexcept nogil:
    cdef Cursor cursor
    cdef Field field
    cdef int fault
    cursor.at = data
    cursor.end = data + size
    while cursor.at < cursor.end:
        fault = read_field(&cursor, True, &field)
        if fault:
            return fault
        if field.number == 1:
            if field.wire_type != WIRE_LENGTH:
                return FAULT_WIRE_TYPE
            if check_utf8(field.data, field.size):
                return FAULT_UTF8
            if memchr(field.data, 0, field.size) != NULL:
                return FAULT_HEADER_KEY_NUL
            if field.size >= 3 and field.data[0] == 0xEF and field.data[1] == 0xBB and field.data[2] == 0xBF:
                return FAULT_HEADER_KEY_BOM
        elif field.number == 2 and field.wire_type != WIRE_LENGTH:
            return FAULT_WIRE_TYPE
    return FAULT_NONE


cdef int check_record(const uint8_t* data, size_t size, RecordFacts* facts) noexcept nogil:
    """Whether data[:size] is a Record that may be stored as it is; facts tells its last key and timestamp."""
    cdef Cursor cursor
    cdef Field field
    cdef int fault
    cdef int32_t partition
    facts.key = NULL
    facts.key_size = 0
    facts.timestamp_ms = 0
    cursor.at = data
    cursor.end = data + size
    while cursor.at < cursor.end:
        fault = read_field(&cursor, True, &field)
        if fault:
            return fault
        if field.number <= 3:
            if field.wire_type != WIRE_LENGTH:
                return FAULT_WIRE_TYPE
            if field.number == 1:
                facts.key = field.data
                facts.key_size = field.size
            elif field.number == 3:
                fault = _check_header(field.data, field.size)
                if fault:
                    return fault
        elif field.number <= 5:
            if field.wire_type != WIRE_VARINT:
                return FAULT_WIRE_TYPE
            if <int64_t>field.value > SAFE_INT64 or <int64_t>field.value < -SAFE_INT64:
                return FAULT_INT64_RANGE
            if field.number == 4:
                facts.timestamp_ms = <int64_t>field.value
        elif field.number == 6:
            fault = as_int32(&field, &partition)
            if fault:
                return fault
        elif field.number <= 15:
            return FAULT_RESERVED_FIELD
    return FAULT_NONE


cdef object fault_text(int fault):
    """What a fault means, as the end of a sentence."""
    if fault == FAULT_TRUNCATED:
        return "it ends in the middle of a field"
    if fault == FAULT_LENGTH:
        return "a length reaches beyond the end of the message around it"
    if fault == FAULT_VARINT_TOO_LONG:
        return "a varint is longer than 64 bits"
    if fault == FAULT_VARINT_NOT_MINIMAL:
        return "a varint is longer than it need be"
    if fault == FAULT_TAG:
        return "a field's tag is longer than 32 bits or than it need be"
    if fault == FAULT_FIELD_ZERO:
        return "a field has the number 0"
    if fault == FAULT_GROUP:
        return "it has a group (wire types 3 and 4), which proto3 does not know"
    if fault == FAULT_WIRE_TYPE:
        return "a field has the wrong wire type"
    if fault == FAULT_RESERVED_FIELD:
        return "it sets a field from 7 to 15; these are the broker's"
    if fault == FAULT_INT64_RANGE:
        return "timestamp or offset lies outside -(2^53-1) to 2^53-1, beyond what every client can read"
    if fault == FAULT_INT32_RANGE:
        return "an int32 field lies outside 32 bits"
    if fault == FAULT_UTF8:
        return "a string is not valid UTF-8"
    if fault == FAULT_HEADER_KEY_NUL:
        return "a header's key holds a NUL character"
    if fault == FAULT_HEADER_KEY_BOM:
        return "a header's key begins with a byte order mark"
    if fault == FAULT_RECORD_TWICE:
        return "field 3 (record) is given more than once; for several records use field 6 (records)"
    return "it can't be read"


class RecordError(ValueError):
    """A record that breaks one of the rules; the message tells which."""


def check_record_bytes(bytes record not None):
    """Hold an encoded Record against the rules of ingest.

    Returns (key or None, timestamp in ms or 0). Raises RecordError.
    """
    cdef RecordFacts facts
    cdef int fault = check_record(<const uint8_t*>record, <size_t>len(record), &facts)
    if fault:
        raise RecordError(fault_text(fault))
    return (facts.key[:facts.key_size] if facts.key != NULL else None, facts.timestamp_ms)
