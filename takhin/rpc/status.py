"""An exception of a handler as a status: for every front, and for answers inside a stream.

What a client learns of an error of ours is its code, reason, message, metadata and the request id. Of any other
exception it learns the request id alone: the same id stands before each line of the traceback in the log.
"""

import asyncio
import logging
import traceback
from dataclasses import dataclass

from google.rpc import error_details_pb2, status_pb2

from takhin.errors import DOMAIN, Reason, TakhinError, error
from takhin.rpc.log_fields import extra, trace_of

_log = logging.getLogger(__name__)

# A status travels in HTTP/2 trailers, which clients refuse above 8 to 16 KiB, and the message stands there twice: once
# percent-encoded, once in the details. An error may quote what the client sent, so nothing else bounds them.
MAX_MESSAGE_BYTES = 1024
MAX_METADATA_VALUE_BYTES = 512
MAX_TRACEBACK_CHARS = 16 * 1024


@dataclass(frozen=True, slots=True)
class Status:
    """What goes over the wire: code (of google.rpc.Code), message, details (a serialized google.rpc.Status)."""

    code: int
    message: str
    details: bytes


def status_of(exc: BaseException, request_id: str) -> Status:
    """The status for `exc`, which ended a handler, with one ErrorInfo and one RequestInfo. What is not a TakhinError is
    logged here.

    Raises asyncio.CancelledError when `exc` is one: a cancelled call has nobody to answer, and its task must end so.
    """
    if isinstance(exc, asyncio.CancelledError):
        raise exc
    known = exc if isinstance(exc, TakhinError) else _unexpected(exc, request_id)
    message = _bounded(_printable(known.message), MAX_MESSAGE_BYTES)
    info = error_details_pb2.ErrorInfo(reason=known.reason, domain=DOMAIN)
    for key, value in known.metadata.items():
        info.metadata[key] = _bounded(_printable(value), MAX_METADATA_VALUE_BYTES)
    status = status_pb2.Status(code=known.code, message=message)
    status.details.add().Pack(info)
    status.details.add().Pack(error_details_pb2.RequestInfo(request_id=request_id))
    return Status(int(known.code), message, status.SerializeToString())


def _unexpected(exc: BaseException, request_id: str) -> TakhinError:
    """INTERNAL with the request id, under which the traceback is logged."""
    text = "".join(traceback.format_exception(exc)).rstrip("\n")
    if len(text) > MAX_TRACEBACK_CHARS:  # the frames stand at its head, what was raised at its end
        half = MAX_TRACEBACK_CHARS // 2
        text = f"{text[:half]}\n...\n{text[-half:]}"
    # An exception's text may hold anything a client sent: no line of it may pass for a line of the log.
    record = _log.makeRecord(
        _log.name, logging.ERROR, __file__, 0, "internal error %s: %s", (request_id, type(exc).__name__), None,
        extra=extra(request_id, {}, trace_of(exc)))
    record.exc_text = "\n".join(f"  {request_id} | {_printable(line)}" for line in text.split("\n"))
    _log.handle(record)
    return error(Reason.INTERNAL_ERROR, f"internal error {request_id}")


def _printable(text: str) -> str:
    """`text` with everything that is not printable escaped, lone surrogates and control characters included."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def _bounded(text: str, max_bytes: int) -> str:
    """`text`, cut to `max_bytes` of UTF-8 where it is longer."""
    encoded = text.encode()
    if len(encoded) <= max_bytes:
        return text
    return encoded[: max_bytes - 3].decode(errors="ignore") + "..."
