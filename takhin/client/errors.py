"""What the client raises: one tree, mapped from the stable reason that the broker gives (google.rpc.ErrorInfo).

Catch by class, or look at .reason, which is one of takhin.errors.Reason where the broker gave one. An error of gRPC
itself never surfaces: without a reason it becomes the class of its status code.
"""

from collections.abc import Mapping

from takhin.errors import Code, Reason


class ClientError(Exception):
    """The root.

    Attributes: message (str); reason (Reason, or "" where the broker gave none, or a text this version does not know);
    code (Code); metadata (strings by name: what the message says, for programs); request_id: by which the broker's log
    knows the call, "" where there was none; retryable: whether the same call may succeed later, unchanged. Of a call
    that timed out or lost its connection nobody knows whether it was done.
    """

    code = Code.UNKNOWN
    # By class; a reason may know better.
    default_retryable = False

    def __init__(
        self, message: str, *, reason: str = "", metadata: Mapping[str, str] | None = None, request_id: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.request_id = request_id

    @property
    def retryable(self) -> bool:
        return _RETRYABLE.get(self.reason, self.default_retryable)


# One class for each status code.


class Cancelled(ClientError):
    code = Code.CANCELLED


class InvalidArgument(ClientError):
    """What was asked for is not possible; nothing was done."""

    code = Code.INVALID_ARGUMENT


class DeadlineExceeded(ClientError):
    """No answer in time; whether it was done is unknown."""

    code = Code.DEADLINE_EXCEEDED
    default_retryable = True


class NotFound(ClientError):
    code = Code.NOT_FOUND


class AlreadyExists(ClientError):
    code = Code.ALREADY_EXISTS


class PermissionDenied(ClientError):
    code = Code.PERMISSION_DENIED


class ResourceExhausted(ClientError):
    """A limit was reached; nothing was done."""

    code = Code.RESOURCE_EXHAUSTED


class FailedPrecondition(ClientError):
    code = Code.FAILED_PRECONDITION


class Aborted(ClientError):
    code = Code.ABORTED


class OutOfRange(ClientError):
    code = Code.OUT_OF_RANGE


class Unimplemented(ClientError):
    """The broker does not know the call: it is older than this client."""

    code = Code.UNIMPLEMENTED


class Internal(ClientError):
    code = Code.INTERNAL


class Unavailable(ClientError):
    """The broker can't be reached, or is starting or shutting down."""

    code = Code.UNAVAILABLE
    default_retryable = True


class DataLoss(ClientError):
    code = Code.DATA_LOSS


class Unauthenticated(ClientError):
    code = Code.UNAUTHENTICATED


# What programs most often tell apart.


class TopicNotFound(NotFound):
    pass


class PartitionNotFound(NotFound):
    pass


class GroupNotFound(NotFound):
    pass


class TopicExists(AlreadyExists):
    pass


class OffsetOutOfRange(OutOfRange):
    """The offset is not in the log (any more); metadata has log_start_offset and end_offset."""


class GroupHasMembers(FailedPrecondition):
    pass


class RecordTooLarge(ResourceExhausted):
    pass


class DiskFull(ResourceExhausted):
    pass


class CorruptBatch(DataLoss):
    """A checksum does not match: the records were damaged on the broker's disk, or on the way here."""


class LogTruncated(Aborted):
    """A power cut took records that this reader had seen; metadata has divergence_offset, where to go on."""


class ProducerFenced(Aborted):
    pass


class FencedGeneration(Aborted):
    """The partition is no longer this member's: what it processed may be delivered again, to another one."""


# The client's own.


class BufferFull(ResourceExhausted):
    """The producer's buffer (buffer_bytes) has no room for the record; nothing was taken."""

    default_retryable = True


class NotDelivered(ClientError):
    """Leaving or flushing a producer: not all of what was sent is known to be stored.

    undelivered: for each such record (topic, partition, key, why); at most MAX_UNDELIVERED of them, `count` tells how
    many there are.
    """

    code = Code.DEADLINE_EXCEEDED

    def __init__(self, message: str, undelivered: list["Undelivered"], count: int) -> None:
        super().__init__(message)
        self.undelivered = undelivered
        self.count = count


class FlushTimeout(NotDelivered):
    """The flush's timeout passed; the records named may or may not have been stored."""


class Closed(ClientError):
    """The client, producer or consumer was closed."""

    code = Code.FAILED_PRECONDITION


class Undelivered:
    """A record that is not known to be stored. error: why; None: no answer yet."""

    __slots__ = ("error", "key", "partition", "topic")

    def __init__(self, topic: str, partition: int, key: bytes | None, error: ClientError | None) -> None:
        self.topic, self.partition, self.key, self.error = topic, partition, key, error

    def __repr__(self) -> str:
        why = "no answer" if self.error is None else str(self.error)
        return f"<{self.topic}/{self.partition} key={self.key!r}: {why}>"


_BY_CODE: dict[int, type[ClientError]] = {
    each.code: each for each in (
        Cancelled, InvalidArgument, DeadlineExceeded, NotFound, AlreadyExists, PermissionDenied, ResourceExhausted,
        FailedPrecondition, Aborted, OutOfRange, Unimplemented, Internal, Unavailable, DataLoss, Unauthenticated)
}
_BY_REASON: dict[str, type[ClientError]] = {
    Reason.TOPIC_NOT_FOUND: TopicNotFound,
    Reason.PARTITION_NOT_FOUND: PartitionNotFound,
    Reason.GROUP_NOT_FOUND: GroupNotFound,
    Reason.TOPIC_EXISTS: TopicExists,
    Reason.OFFSET_OUT_OF_RANGE: OffsetOutOfRange,
    Reason.GROUP_HAS_MEMBERS: GroupHasMembers,
    Reason.RECORD_TOO_LARGE: RecordTooLarge,
    Reason.DISK_FULL: DiskFull,
    Reason.CORRUPT_BATCH: CorruptBatch,
    Reason.LOG_TRUNCATED: LogTruncated,
    Reason.PRODUCER_FENCED: ProducerFenced,
    Reason.FENCED_GENERATION: FencedGeneration,
}
# Where a reason knows better than its class: what passes by itself.
_RETRYABLE: dict[str, bool] = {
    Reason.DISK_FULL: True,
    Reason.TRANSACTION_LIMIT: True,
    Reason.MEMBER_TOO_SLOW: True,
    Reason.SESSION_TIMEOUT: True,
    Reason.PROCESSING_TIMEOUT: True,
}
_REASONS = frozenset(Reason)


def class_of(code: int, reason: str = "") -> type[ClientError]:
    """The class for a status code and a reason, either of which may be unknown here."""
    return _BY_REASON.get(reason) or _BY_CODE.get(code, ClientError)


def client_error(
    code: int, message: str, reason: str = "", metadata: Mapping[str, str] | None = None, request_id: str = ""
) -> ClientError:
    """The error for what the broker answered: a status, or code and reason inside a stream's response."""
    known = Reason(reason) if reason in _REASONS else reason
    return class_of(code, reason)(message, reason=known, metadata=metadata, request_id=request_id)
