"""One tree of errors. Each has a stable reason, which fixes its status code.

A front turns an error into a gRPC status with a google.rpc.ErrorInfo {reason, domain, metadata}. Messages are read by
people: they name what was wrong and what is allowed, and never hold payloads.
"""

from enum import IntEnum, StrEnum

DOMAIN = "takhin"


class Code(IntEnum):
    """The numbers of google.rpc.Code."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Reason(StrEnum):
    """What went wrong, for programs. Values never change once shipped."""

    # INVALID_ARGUMENT
    MALFORMED_REQUEST = "MALFORMED_REQUEST"
    MALFORMED_RECORD = "MALFORMED_RECORD"
    NO_RECORD = "NO_RECORD"
    RECORD_AND_RECORDS = "RECORD_AND_RECORDS"
    TOO_MANY_RECORDS = "TOO_MANY_RECORDS"
    KEYS_SPAN_PARTITIONS = "KEYS_SPAN_PARTITIONS"
    INVALID_TOPIC_NAME = "INVALID_TOPIC_NAME"
    INVALID_GROUP_ID = "INVALID_GROUP_ID"
    INVALID_PARTITION = "INVALID_PARTITION"
    INVALID_PARTITION_COUNT = "INVALID_PARTITION_COUNT"
    INVALID_REPLICATION_FACTOR = "INVALID_REPLICATION_FACTOR"
    INVALID_CONFIG = "INVALID_CONFIG"
    INVALID_ACKS = "INVALID_ACKS"
    INVALID_OFFSET = "INVALID_OFFSET"
    INVALID_EPOCH = "INVALID_EPOCH"
    INVALID_LIMIT = "INVALID_LIMIT"
    OFFSET_AND_TIME = "OFFSET_AND_TIME"
    DUPLICATE_PARTITION = "DUPLICATE_PARTITION"
    INVALID_PRODUCER = "INVALID_PRODUCER"
    INVALID_PRODUCER_NAME = "INVALID_PRODUCER_NAME"
    START_EXPECTED = "START_EXPECTED"
    SECOND_START = "SECOND_START"
    NO_TOPICS = "NO_TOPICS"
    TOO_MANY_TOPICS = "TOO_MANY_TOPICS"
    INVALID_MEMBER_NAME = "INVALID_MEMBER_NAME"
    INVALID_ASSIGNOR = "INVALID_ASSIGNOR"
    INVALID_START_FROM = "INVALID_START_FROM"
    INVALID_COMMIT_MODE = "INVALID_COMMIT_MODE"
    INVALID_CREDIT = "INVALID_CREDIT"
    PARTITION_NOT_ASSIGNED = "PARTITION_NOT_ASSIGNED"
    TOO_MANY_PARTITIONS = "TOO_MANY_PARTITIONS"
    INVALID_RESET = "INVALID_RESET"
    NOTHING_TO_UPDATE = "NOTHING_TO_UPDATE"
    INVALID_PRINCIPAL = "INVALID_PRINCIPAL"
    INVALID_ACL = "INVALID_ACL"
    INVALID_EXPIRY = "INVALID_EXPIRY"
    # NOT_FOUND
    TOPIC_NOT_FOUND = "TOPIC_NOT_FOUND"
    PARTITION_NOT_FOUND = "PARTITION_NOT_FOUND"
    GROUP_NOT_FOUND = "GROUP_NOT_FOUND"
    SERVICE_NOT_FOUND = "SERVICE_NOT_FOUND"
    KEY_NOT_FOUND = "KEY_NOT_FOUND"
    ACL_NOT_FOUND = "ACL_NOT_FOUND"
    # ALREADY_EXISTS
    TOPIC_EXISTS = "TOPIC_EXISTS"
    # OUT_OF_RANGE
    OFFSET_OUT_OF_RANGE = "OFFSET_OUT_OF_RANGE"
    # FAILED_PRECONDITION
    OFFSET_BEHIND_COMMITTED = "OFFSET_BEHIND_COMMITTED"
    NO_COMMITTED_OFFSET = "NO_COMMITTED_OFFSET"
    GROUP_HAS_MEMBERS = "GROUP_HAS_MEMBERS"
    PARTITION_READ_ONLY = "PARTITION_READ_ONLY"
    PARTITION_DAMAGED = "PARTITION_DAMAGED"
    TRANSACTIONS_DISABLED = "TRANSACTIONS_DISABLED"
    INCONSISTENT_ASSIGNOR = "INCONSISTENT_ASSIGNOR"
    PARTITION_NOT_REVOKING = "PARTITION_NOT_REVOKING"
    # RESOURCE_EXHAUSTED
    RECORD_TOO_LARGE = "RECORD_TOO_LARGE"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    DISK_FULL = "DISK_FULL"
    TOPIC_LIMIT = "TOPIC_LIMIT"
    PARTITION_LIMIT = "PARTITION_LIMIT"
    GROUP_LIMIT = "GROUP_LIMIT"
    PRODUCER_LIMIT = "PRODUCER_LIMIT"
    TRANSACTION_TOO_LARGE = "TRANSACTION_TOO_LARGE"
    TRANSACTION_LIMIT = "TRANSACTION_LIMIT"
    MEMBER_LIMIT = "MEMBER_LIMIT"
    MEMBER_TOO_SLOW = "MEMBER_TOO_SLOW"
    KEY_LIMIT = "KEY_LIMIT"
    ACL_LIMIT = "ACL_LIMIT"
    CALL_LIMIT = "CALL_LIMIT"
    STREAM_LIMIT = "STREAM_LIMIT"
    # UNAVAILABLE
    DRAINING = "DRAINING"
    WRITE_FAILED = "WRITE_FAILED"
    READ_FAILED = "READ_FAILED"
    TRANSACTION_PENDING = "TRANSACTION_PENDING"
    # DATA_LOSS
    CORRUPT_BATCH = "CORRUPT_BATCH"
    # ABORTED
    LOG_TRUNCATED = "LOG_TRUNCATED"
    PRODUCER_FENCED = "PRODUCER_FENCED"
    PRODUCER_UNKNOWN = "PRODUCER_UNKNOWN"
    SEQUENCE_GAP = "SEQUENCE_GAP"
    SEQUENCE_OUT_OF_WINDOW = "SEQUENCE_OUT_OF_WINDOW"
    OFFSET_MISMATCH = "OFFSET_MISMATCH"
    FENCED_GENERATION = "FENCED_GENERATION"
    MEMBER_FENCED = "MEMBER_FENCED"
    SESSION_TIMEOUT = "SESSION_TIMEOUT"
    PROCESSING_TIMEOUT = "PROCESSING_TIMEOUT"
    PARTLY_DUPLICATE = "PARTLY_DUPLICATE"
    # DEADLINE_EXCEEDED
    ACK_TIMEOUT = "ACK_TIMEOUT"
    REQUEST_TIMEOUT = "REQUEST_TIMEOUT"
    # PERMISSION_DENIED
    ACCESS_DENIED = "ACCESS_DENIED"
    # UNAUTHENTICATED
    CREDENTIALS_MISSING = "CREDENTIALS_MISSING"
    CREDENTIALS_INVALID = "CREDENTIALS_INVALID"
    CREDENTIALS_EXPIRED = "CREDENTIALS_EXPIRED"
    # INTERNAL
    SYNC_FAILED = "SYNC_FAILED"
    INTERNAL_ERROR = "INTERNAL_ERROR"


class TakhinError(Exception):
    """The root. Raise with `error()`, catch by class or by reason.

    Attributes: reason (Reason), code (Code, by class), message (str), metadata (dict of str to str; goes out with
    ErrorInfo, so that programs need not parse the message).
    """

    code = Code.INTERNAL

    def __init__(self, reason: Reason, message: str, metadata: dict[str, str] | None = None):
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = metadata or {}


class InvalidArgument(TakhinError):
    code = Code.INVALID_ARGUMENT


class NotFound(TakhinError):
    code = Code.NOT_FOUND


class AlreadyExists(TakhinError):
    code = Code.ALREADY_EXISTS


class OutOfRange(TakhinError):
    code = Code.OUT_OF_RANGE


class FailedPrecondition(TakhinError):
    code = Code.FAILED_PRECONDITION


class ResourceExhausted(TakhinError):
    code = Code.RESOURCE_EXHAUSTED


class Unavailable(TakhinError):
    code = Code.UNAVAILABLE


class DataLoss(TakhinError):
    code = Code.DATA_LOSS


class Aborted(TakhinError):
    code = Code.ABORTED


class DeadlineExceeded(TakhinError):
    code = Code.DEADLINE_EXCEEDED


class PermissionDenied(TakhinError):
    code = Code.PERMISSION_DENIED


class Unauthenticated(TakhinError):
    code = Code.UNAUTHENTICATED


class Internal(TakhinError):
    code = Code.INTERNAL


def _classes() -> dict[Reason, type[TakhinError]]:
    # The enum's order is the table: a reason belongs to the class of the group it stands in.
    groups: list[tuple[Reason, type[TakhinError]]] = [
        (Reason.MALFORMED_REQUEST, InvalidArgument),
        (Reason.TOPIC_NOT_FOUND, NotFound),
        (Reason.TOPIC_EXISTS, AlreadyExists),
        (Reason.OFFSET_OUT_OF_RANGE, OutOfRange),
        (Reason.OFFSET_BEHIND_COMMITTED, FailedPrecondition),
        (Reason.RECORD_TOO_LARGE, ResourceExhausted),
        (Reason.DRAINING, Unavailable),
        (Reason.CORRUPT_BATCH, DataLoss),
        (Reason.LOG_TRUNCATED, Aborted),
        (Reason.ACK_TIMEOUT, DeadlineExceeded),
        (Reason.ACCESS_DENIED, PermissionDenied),
        (Reason.CREDENTIALS_MISSING, Unauthenticated),
        (Reason.SYNC_FAILED, Internal),
    ]
    starts = dict(groups)
    table: dict[Reason, type[TakhinError]] = {}
    current: type[TakhinError] = Internal
    for reason in Reason:
        current = starts.get(reason, current)
        table[reason] = current
    return table


_CLASS_OF_REASON = _classes()


def error(reason: Reason, message: str, **metadata: object) -> TakhinError:
    """The error of the class that `reason` belongs to; metadata values become strings."""
    return _CLASS_OF_REASON[reason](reason, message, {name: str(value) for name, value in metadata.items()})


class ConfigError(Exception):
    """A setting (flag, environment, file) that can't be used. The message names it and what is allowed."""


class StartError(Exception):
    """The broker cannot start here: the data directory is taken, the port is in use. One line for the operator."""
