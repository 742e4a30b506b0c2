"""The checksum of SQLite's write-ahead log (https://sqlite.org/fileformat2.html#checksum_algorithm)."""

from libc.stdint cimport uint8_t, uint32_t


cdef extern from *:
    """
    #include <string.h>

    static inline uint32_t takhin_wal_word(const uint8_t *data, int big_endian) {
        uint32_t word;
        memcpy(&word, data, 4);
    #if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        return big_endian ? __builtin_bswap32(word) : word;
    #else
        return big_endian ? word : __builtin_bswap32(word);
    #endif
    }
    """
    uint32_t takhin_wal_word(const uint8_t* data, int big_endian) noexcept nogil


def wal_checksum(tuple before not None, const uint8_t[::1] data not None, *, bint big_endian):
    """Two sums modulo 2^32 that feed each other, continued from an earlier result, at first (0, 0).

    data: pairs of words of 4 bytes. Raises ValueError: it is not.
    """
    cdef uint32_t one = before[0]
    cdef uint32_t two = before[1]
    cdef Py_ssize_t size = data.shape[0]
    cdef const uint8_t* at = &data[0] if size else NULL
    cdef const uint8_t* end = at + size
    if size % 8:
        raise ValueError(f"{size} bytes are no pairs of words")
    with nogil:
        while at < end:
            one += takhin_wal_word(at, big_endian) + two
            two += takhin_wal_word(at + 4, big_endian) + one
            at += 8
    return one, two
