"""CRC32C (Castagnoli, RFC 3720 appendix B.4): the SSE4.2 instruction where the processor has it, tables otherwise.

The instruction has a latency of three cycles and a throughput of one: three lanes run side by side and are joined by
tables that advance a CRC over a lane's worth of zero bytes.
"""

from libc.stdint cimport uint8_t, uint32_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <stddef.h>
    #include <string.h>

    #define TAKHIN_CRC_POLYNOMIAL 0x82F63B78u   /* reversed */
    #define TAKHIN_CRC_LONG 1024u               /* bytes of a lane */
    #define TAKHIN_CRC_SHORT 128u

    static uint32_t takhin_crc_table[8][256];
    static uint32_t takhin_crc_over_long[4][256];
    static uint32_t takhin_crc_over_short[4][256];
    static int takhin_crc_hardware = 0;

    static void takhin_crc_zeros(uint32_t table[4][256], unsigned int size) {
        for (int byte = 0; byte < 4; byte++)
            for (int value = 0; value < 256; value++) {
                uint32_t crc = (uint32_t)value << (8 * byte);
                for (unsigned int i = 0; i < size; i++)
                    crc = takhin_crc_table[0][crc & 0xff] ^ (crc >> 8);
                table[byte][value] = crc;
            }
    }

    static void takhin_crc_init(void) {
        for (int value = 0; value < 256; value++) {
            uint32_t crc = (uint32_t)value;
            for (int bit = 0; bit < 8; bit++)
                crc = (crc & 1) ? (crc >> 1) ^ TAKHIN_CRC_POLYNOMIAL : crc >> 1;
            takhin_crc_table[0][value] = crc;
        }
        for (int value = 0; value < 256; value++)
            for (int k = 1; k < 8; k++) {
                uint32_t crc = takhin_crc_table[k - 1][value];
                takhin_crc_table[k][value] = takhin_crc_table[0][crc & 0xff] ^ (crc >> 8);
            }
    #if defined(__x86_64__) && defined(__GNUC__)
        __builtin_cpu_init();
        takhin_crc_hardware = __builtin_cpu_supports("sse4.2") != 0;
        if (takhin_crc_hardware) {
            takhin_crc_zeros(takhin_crc_over_long, TAKHIN_CRC_LONG);
            takhin_crc_zeros(takhin_crc_over_short, TAKHIN_CRC_SHORT);
        }
    #endif
    }

    /* Slicing by eight. */
    static uint32_t takhin_crc_by_table(uint32_t crc, const uint8_t *data, size_t size) {
        while (size >= 8) {
            uint32_t low = crc ^ ((uint32_t)data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16
                                  | (uint32_t)data[3] << 24);
            crc = takhin_crc_table[7][low & 0xff] ^ takhin_crc_table[6][(low >> 8) & 0xff]
                ^ takhin_crc_table[5][(low >> 16) & 0xff] ^ takhin_crc_table[4][low >> 24]
                ^ takhin_crc_table[3][data[4]] ^ takhin_crc_table[2][data[5]]
                ^ takhin_crc_table[1][data[6]] ^ takhin_crc_table[0][data[7]];
            data += 8;
            size -= 8;
        }
        while (size--)
            crc = takhin_crc_table[0][(crc ^ *data++) & 0xff] ^ (crc >> 8);
        return crc;
    }

    #if defined(__x86_64__) && defined(__GNUC__)
    #define TAKHIN_CRC_OVER(table, crc) \
        ((table)[0][(crc) & 0xff] ^ (table)[1][((crc) >> 8) & 0xff] \
         ^ (table)[2][((crc) >> 16) & 0xff] ^ (table)[3][(crc) >> 24])

    static inline uint64_t takhin_crc_load(const uint8_t *data) {
        uint64_t word;
        memcpy(&word, data, 8);
        return word;
    }

    __attribute__((target("sse4.2")))
    static uint32_t takhin_crc_by_instruction(uint32_t start, const uint8_t *data, size_t size) {
        uint64_t a = start, b, c;
        #define TAKHIN_CRC_LANES(lane, table) \
            while (size >= 3 * (lane)) { \
                b = 0; c = 0; \
                for (size_t i = 0; i < (lane); i += 8) { \
                    a = __builtin_ia32_crc32di(a, takhin_crc_load(data + i)); \
                    b = __builtin_ia32_crc32di(b, takhin_crc_load(data + (lane) + i)); \
                    c = __builtin_ia32_crc32di(c, takhin_crc_load(data + 2 * (lane) + i)); \
                } \
                uint32_t joined = TAKHIN_CRC_OVER(table, (uint32_t)a) ^ (uint32_t)b; \
                a = TAKHIN_CRC_OVER(table, joined) ^ (uint32_t)c; \
                data += 3 * (lane); \
                size -= 3 * (lane); \
            }
        TAKHIN_CRC_LANES(TAKHIN_CRC_LONG, takhin_crc_over_long)
        TAKHIN_CRC_LANES(TAKHIN_CRC_SHORT, takhin_crc_over_short)
        while (size >= 8) {
            a = __builtin_ia32_crc32di(a, takhin_crc_load(data));
            data += 8;
            size -= 8;
        }
        uint32_t crc = (uint32_t)a;
        while (size--)
            crc = __builtin_ia32_crc32qi(crc, *data++);
        return crc;
    }
    #else
    #define takhin_crc_by_instruction takhin_crc_by_table
    #endif
    """
    int takhin_crc_hardware
    void takhin_crc_init() noexcept nogil
    uint32_t takhin_crc_by_table(uint32_t crc, const uint8_t* data, size_t size) noexcept nogil
    uint32_t takhin_crc_by_instruction(uint32_t crc, const uint8_t* data, size_t size) noexcept nogil

takhin_crc_init()


cdef uint32_t crc32c_of(uint32_t crc, const uint8_t* data, size_t size) noexcept nogil:
    if takhin_crc_hardware:
        return ~takhin_crc_by_instruction(~crc, data, size)
    return ~takhin_crc_by_table(~crc, data, size)


def crc32c(const uint8_t[::1] data not None, uint32_t crc=0, *, bint table=False):
    """The CRC32C of data, continued from crc (an earlier result). table=True goes by the tables on any processor."""
    cdef const uint8_t* start = &data[0] if data.shape[0] else NULL
    cdef size_t size = <size_t>data.shape[0]
    if table:
        return ~takhin_crc_by_table(~crc, start, size) & 0xFFFFFFFF
    return crc32c_of(crc, start, size)


def masked(uint32_t crc):
    """The form in which a CRC is stored."""
    return mask(crc)


def has_hardware():
    """Whether this processor has the instruction."""
    return takhin_crc_hardware != 0
