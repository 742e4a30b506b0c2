"""The text forms of gRPC over HTTP/2: timeouts, messages of a status, binary metadata.

See "gRPC over HTTP2" (PROTOCOL-HTTP2.md of the gRPC project).
"""

from binascii import Error as _Base64Error
from binascii import a2b_base64, b2a_base64

from libc.stdint cimport int64_t, uint8_t

cdef const char* _HEX = b"0123456789ABCDEF"
cdef int64_t MOST_UNITS = 1_000_000_000


cdef int64_t parse_timeout_us(const uint8_t* at, size_t size) noexcept nogil:
    """grpc-timeout, digits and a unit, in microseconds; NO_TIMEOUT, BAD_TIMEOUT. Rounded up: a timeout of nanoseconds
    is not over before it begins. The protocol allows 8 digits; more are taken as gRPC's core takes them, a thousand
    million and more for no timeout."""
    cdef int64_t value = 0
    cdef size_t i
    cdef uint8_t unit
    if size < 2:
        return BAD_TIMEOUT
    for i in range(size - 1):
        if not 48 <= at[i] <= 57:
            return BAD_TIMEOUT
        value = min(value * 10 + (at[i] - 48), MOST_UNITS)
    unit = at[size - 1]
    if unit != c"n" and unit != c"u" and unit != c"m" and unit != c"S" and unit != c"M" and unit != c"H":
        return BAD_TIMEOUT
    if value == MOST_UNITS:
        return NO_TIMEOUT
    if unit == c"H":
        return value * <int64_t>3600 * 1000000
    if unit == c"M":
        return value * 60000000
    if unit == c"S":
        return value * 1000000
    if unit == c"m":
        return value * 1000
    if unit == c"u":
        return value
    return (value + 999) // 1000


cdef bytes percent_encoded(bytes text):
    """A status's message (UTF-8) as grpc-message has it: what is not printable ASCII, and %, as %XX; and a space at
    either end, which some readers of headers take away."""
    cdef const uint8_t* at = text
    cdef size_t size = len(text)
    cdef size_t i
    cdef uint8_t byte
    cdef bytearray out = bytearray()
    for i in range(size):
        byte = at[i]
        if 0x20 <= byte <= 0x7E and byte != 0x25 and (byte != 0x20 or 0 < i < size - 1):
            out.append(byte)
        else:
            out.append(0x25)
            out.append(_HEX[byte >> 4])
            out.append(_HEX[byte & 15])
    return bytes(out)


def encode_message(str message not None):
    """A status's message as grpc-message has it, in ASCII."""
    return percent_encoded(message.encode("utf-8", "replace"))


def timeout_us(bytes text not None):
    """grpc-timeout in microseconds; -1: as good as none; -2: it is not one."""
    return parse_timeout_us(text, len(text))


def encode_binary(bytes value not None):
    """The value of a key that ends in "-bin": base64 without padding."""
    return b2a_base64(value, newline=False).rstrip(b"=")


def decode_binary(bytes text not None):
    """What encode_binary() was given, with or without padding; None for what is no base64. Of several values, joined by
    commas, the last."""
    last = text.rpartition(b",")[2].strip().rstrip(b"=")
    try:
        return a2b_base64(last + b"=" * ((4 - len(last) % 4) % 4), strict_mode=bool(last))
    except _Base64Error:
        return None
