"""Reading protobuf's wire format in place. Every function is given where its bytes end, and returns a Fault."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef enum Fault:
    FAULT_NONE = 0
    FAULT_TRUNCATED
    FAULT_LENGTH
    FAULT_VARINT_TOO_LONG
    FAULT_VARINT_NOT_MINIMAL
    FAULT_TAG
    FAULT_FIELD_ZERO
    FAULT_GROUP
    FAULT_WIRE_TYPE
    FAULT_RESERVED_FIELD
    FAULT_INT64_RANGE
    FAULT_INT32_RANGE
    FAULT_UTF8
    FAULT_HEADER_KEY_NUL
    FAULT_HEADER_KEY_BOM
    FAULT_RECORD_TWICE
    FAULT_TOO_MANY_RECORDS
    FAULT_NO_MEMORY

cdef enum WireType:
    WIRE_VARINT = 0
    WIRE_FIXED64 = 1
    WIRE_LENGTH = 2
    WIRE_FIXED32 = 5

cdef extern from *:
    """
    #ifndef TAKHIN_SAFE_INT64
    #define TAKHIN_SAFE_INT64 INT64_C(9007199254740991)
    #endif
    """
    # JavaScript's Number.MAX_SAFE_INTEGER: beyond it JavaScript clients round, or throw.
    const int64_t SAFE_INT64 "TAKHIN_SAFE_INT64"


cdef struct Cursor:
    const uint8_t* at
    const uint8_t* end


cdef struct Field:
    uint32_t number
    uint32_t wire_type
    uint64_t value          # varint and fixed types
    const uint8_t* data     # length-delimited: its bytes
    size_t size


cdef struct RecordFacts:
    const uint8_t* key      # NULL: none
    size_t key_size
    int64_t timestamp_ms    # 0: none


# minimal: refuse varints longer than they need be, as for bytes that will be stored and served as they came.
cdef int read_varint(Cursor* cursor, bint minimal, uint64_t* value) noexcept nogil
cdef int read_field(Cursor* cursor, bint minimal, Field* field) noexcept nogil
cdef int as_int32(const Field* field, int32_t* value) noexcept nogil
cdef int check_utf8(const uint8_t* data, size_t size) noexcept nogil
cdef int check_record(const uint8_t* data, size_t size, RecordFacts* facts) noexcept nogil
cdef object fault_text(int fault)


cdef inline size_t varint_size(uint64_t value) noexcept nogil:
    cdef size_t size = 1
    while value >= 0x80:
        value >>= 7
        size += 1
    return size


cdef inline uint8_t* write_varint(uint8_t* to, uint64_t value) noexcept nogil:
    while value >= 0x80:
        to[0] = <uint8_t>(value | 0x80)
        to += 1
        value >>= 7
    to[0] = <uint8_t>value
    return to + 1
