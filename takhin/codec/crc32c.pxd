from libc.stdint cimport uint8_t, uint32_t

cdef uint32_t crc32c_of(uint32_t crc, const uint8_t* data, size_t size) noexcept nogil


cdef inline uint32_t mask(uint32_t crc) noexcept nogil:
    # A CRC of bytes that themselves hold CRCs is weak, and the CRC of nothing is zero: stored CRCs are masked.
    # The rule is LevelDB's (table format): rotate right by 15, add a constant.
    return ((crc >> 15) | (crc << 17)) + <uint32_t>0xA282EAD8
