"""The headers of calls: those that came, kept as bytes, and those that go out."""

from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from takhin.rpc.fast.nghttp2 cimport nghttp2_nv, nghttp2_session, nghttp2_submit_response

from takhin.rpc.fast.grpc_text import decode_binary

# Beyond what is needed: most calls have some more of them.
cdef size_t _MORE_BYTES = 128


cdef int keep_header(
    HeaderBlock* block, const uint8_t* name, size_t name_size, const uint8_t* value, size_t value_size
) except -1:
    """As it is, for whoever asks for the metadata: hardly anybody does."""
    cdef size_t needed = block.size + 2 * sizeof(uint32_t) + name_size + value_size
    cdef uint8_t* grown
    cdef uint8_t* at
    cdef uint32_t[2] sizes
    if needed > block.capacity:
        grown = <uint8_t*>realloc(block.data, needed + _MORE_BYTES)
        if grown == NULL:
            raise MemoryError
        block.data, block.capacity = grown, needed + _MORE_BYTES
    sizes[0], sizes[1] = <uint32_t>name_size, <uint32_t>value_size
    at = block.data + block.size
    memcpy(at, sizes, sizeof(sizes))
    memcpy(at + sizeof(sizes), name, name_size)
    memcpy(at + sizeof(sizes) + name_size, value, value_size)
    block.size = needed
    return 0


cdef list header_list(const HeaderBlock* block):
    """Of (name, value), in bytes."""
    cdef const uint8_t* at = block.data
    cdef const uint8_t* end = at + block.size
    cdef uint32_t[2] sizes
    found = []
    while at < end:
        memcpy(sizes, at, sizeof(sizes))
        at += sizeof(sizes)
        found.append((at[:sizes[0]], at[sizes[0]:<size_t>sizes[0] + sizes[1]]))
        at += <size_t>sizes[0] + sizes[1]
    return found


cdef dict metadata_of(const HeaderBlock* block):
    """By lower-case key, the last of a repeated one; of keys that end in "-bin" the bytes, if they are base64."""
    found = {}
    for name, value in header_list(block):
        key = name.decode("latin-1")
        if key.endswith("-bin"):
            decoded = decode_binary(value)
            if decoded is not None:
                found[key] = decoded
        else:
            found[key] = value.decode("latin-1")
    return found


cdef int submit_not_grpc(nghttp2_session* session, int32_t stream_id) noexcept:
    """The answer to what is no call of gRPC. Gives what nghttp2 says to it."""
    cdef nghttp2_nv[2] headers
    headers[0] = static_pair(b":status", 7, b"415", 3)
    headers[1] = static_pair(b"accept", 6, b"application/grpc", 16)
    return nghttp2_submit_response(session, stream_id, headers, 2, NULL)


cdef void free_headers(HeaderBlock* block) noexcept:
    free(block.data)
    block.data = NULL
    block.size = block.capacity = 0
