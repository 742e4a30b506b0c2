"""Compression of messages: gzip and deflate."""

import zlib
from collections.abc import Callable

from takhin.errors import Reason, TakhinError, error


def too_large(size_bytes: int, max_bytes: int) -> TakhinError:
    """MESSAGE_TOO_LARGE, of a message either way."""
    return error(
        Reason.MESSAGE_TOO_LARGE,
        f"a message of {size_bytes} bytes or more is larger than max_message_bytes, {max_bytes} "
        "(grpc.max_message_bytes)", limit=max_bytes)


def _gzip(message: bytes) -> bytes:
    deflate = zlib.compressobj(1, zlib.DEFLATED, 31)
    return deflate.compress(message) + deflate.flush()


def _deflate(message: bytes) -> bytes:
    return zlib.compress(message, 1)


_COMPRESSORS = {b"gzip": _gzip, b"deflate": _deflate}
_WINDOW_BITS = {b"gzip": 31, b"deflate": 15}


def compressor(preferred: str, accepted: bytes) -> Callable[[bytes], bytes] | None:
    """Of what the client takes (grpc-accept-encoding): the preferred one, else the other; None: it takes neither."""
    taken = {each.strip() for each in accepted.split(b",")}
    for name in sorted(_COMPRESSORS, key=lambda name: name != preferred.encode()):
        if name in taken:
            return _COMPRESSORS[name]
    return None


def encoding_of(compress: Callable[[bytes], bytes]) -> bytes:
    """The name of what compressor() gave."""
    return next(name for name, each in _COMPRESSORS.items() if each is compress)


def decompressed(message: bytes, encoding: bytes | None, max_bytes: int) -> bytes:
    """Raises MALFORMED_REQUEST, MESSAGE_TOO_LARGE."""
    if encoding not in _WINDOW_BITS:
        raise error(Reason.MALFORMED_REQUEST, "a message is compressed, and no grpc-encoding says how")
    inflate = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        out = inflate.decompress(message, max_bytes + 1)
    except zlib.error:
        raise error(Reason.MALFORMED_REQUEST, f"a message can't be decompressed ({encoding.decode()})") from None
    if len(out) > max_bytes:
        raise too_large(len(out), max_bytes)
    if not inflate.eof:
        raise error(Reason.MALFORMED_REQUEST, f"a message can't be decompressed ({encoding.decode()}): it has no end")
    return out
