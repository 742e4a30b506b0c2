"""Messages that have come and wait to be read: in a deque, bytes each, of those that are compressed in a tuple. An
object of Python's takes 40 bytes and more beside the message, so where many wait the small ones are packed: a window of
them takes about as much as came on the wire."""

from collections import deque

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

# So many wait each as it is.
cdef Py_ssize_t MOST_LOOSE = 64
# What is larger is not worth packing.
cdef size_t SMALL_BYTES = 1024
# A pack gets no larger than that and one message: it is taken apart as a whole.
cdef Py_ssize_t PACK_BYTES = 4096


cdef object keep_message(object inbox, const uint8_t* message, size_t size, bint is_compressed):
    """Behind the others. inbox: None: there are none. Gives the inbox."""
    cdef Py_ssize_t have
    cdef uint8_t* at
    if inbox is None:
        inbox = deque()
    if len(inbox) < MOST_LOOSE or size >= SMALL_BYTES:
        inbox.append((message[:size],) if is_compressed else message[:size])
        return inbox
    pack = inbox[-1]
    if type(pack) is not bytearray or PyByteArray_GET_SIZE(pack) >= PACK_BYTES:
        pack = bytearray()
        inbox.append(pack)
    have = PyByteArray_GET_SIZE(pack)
    PyByteArray_Resize(pack, have + 3 + size)
    at = <uint8_t*>PyByteArray_AS_STRING(pack) + have
    at[0] = is_compressed
    at[1] = size >> 8
    at[2] = size & 255
    memcpy(at + 3, message, size)
    return inbox


cdef object first_message(object inbox):
    """Taken from an inbox that is not empty: bytes, or in a tuple, compressed."""
    cdef const uint8_t* at
    cdef const uint8_t* end
    cdef size_t size
    first = inbox.popleft()
    if type(first) is not bytearray:
        return first
    at = <const uint8_t*>PyByteArray_AS_STRING(first)
    end = at + PyByteArray_GET_SIZE(first)
    found = []
    while at < end:
        size = <size_t>at[1] << 8 | at[2]
        message = at[3:3 + size]
        found.append((message,) if at[0] else message)
        at += 3 + size
    found.reverse()
    inbox.extendleft(found)
    return inbox.popleft()
