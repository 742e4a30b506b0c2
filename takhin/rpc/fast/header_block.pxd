"""The headers of calls: those that came, kept as bytes, and those that go out."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, uint8_t
from libc.string cimport memcmp

from takhin.rpc.fast.nghttp2 cimport (
    NGHTTP2_NV_FLAG_NO_COPY_NAME,
    NGHTTP2_NV_FLAG_NO_COPY_VALUE,
    NGHTTP2_NV_FLAG_NONE,
    nghttp2_nv,
    nghttp2_session,
)

cdef struct HeaderBlock:
    # Each as two sizes, uint32_t, the name and the value.
    uint8_t* data
    size_t size
    size_t capacity

cdef int keep_header(
    HeaderBlock* block, const uint8_t* name, size_t name_size, const uint8_t* value, size_t value_size) except -1
cdef list header_list(const HeaderBlock* block)
cdef dict metadata_of(const HeaderBlock* block)
cdef int submit_not_grpc(nghttp2_session* session, int32_t stream_id) noexcept
cdef void free_headers(HeaderBlock* block) noexcept


cdef inline bint is_text(const uint8_t* at, size_t size, const char* text, size_t text_size) noexcept nogil:
    return size == text_size and memcmp(at, text, size) == 0


cdef inline bint is_grpc(const uint8_t* content_type, size_t size) noexcept nogil:
    return (
        size >= 16 and memcmp(content_type, b"application/grpc", 16) == 0
        and (size == 16 or content_type[16] == c"+" or content_type[16] == c";"))


cdef inline nghttp2_nv pair_of(bytes name, bytes value) noexcept:
    """Both are kept by whoever submits it until nghttp2 has copied them."""
    cdef nghttp2_nv pair
    pair.name = <uint8_t*>PyBytes_AS_STRING(name)
    pair.namelen = PyBytes_GET_SIZE(name)
    pair.value = <uint8_t*>PyBytes_AS_STRING(value)
    pair.valuelen = PyBytes_GET_SIZE(value)
    pair.flags = NGHTTP2_NV_FLAG_NONE
    return pair


cdef inline nghttp2_nv static_pair(
    const char* name, size_t name_size, const char* value, size_t value_size
) noexcept nogil:
    cdef nghttp2_nv pair
    pair.name = <uint8_t*>name
    pair.namelen = name_size
    pair.value = <uint8_t*>value
    pair.valuelen = value_size
    pair.flags = NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE
    return pair


cdef inline size_t response_head(nghttp2_nv* out) noexcept nogil:
    """What every answer begins with, and how many headers that are."""
    out[0] = static_pair(b":status", 7, b"200", 3)
    out[1] = static_pair(b"content-type", 12, b"application/grpc", 16)
    out[2] = static_pair(b"grpc-accept-encoding", 20, b"identity,deflate,gzip", 21)
    return 3
