"""What the client raises, as a line that says what to do next, and an exit status."""

from collections.abc import Mapping

from takhin.cli.command import (
    EXIT_ACCESS,
    EXIT_FAILED,
    EXIT_NOT_FOUND,
    EXIT_TIMEOUT,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    CommandError,
)
from takhin.client import ClientError, NotDelivered
from takhin.errors import Code, Reason

_STATUSES: dict[Code, int] = {
    Code.INVALID_ARGUMENT: EXIT_USAGE,
    Code.OUT_OF_RANGE: EXIT_USAGE,
    Code.NOT_FOUND: EXIT_NOT_FOUND,
    Code.PERMISSION_DENIED: EXIT_ACCESS,
    Code.UNAUTHENTICATED: EXIT_ACCESS,
    Code.UNAVAILABLE: EXIT_UNREACHABLE,
    Code.DEADLINE_EXCEEDED: EXIT_TIMEOUT,
}
_HINTS: dict[str, str] = {
    Reason.TOPIC_NOT_FOUND: "takhin topic list shows all, takhin topic create {topic} makes it",
    Reason.PARTITION_NOT_FOUND: "takhin topic describe {topic} shows its partitions",
    Reason.GROUP_NOT_FOUND: "takhin group list shows all",
    Reason.TOPIC_EXISTS: "takhin topic update changes it, --if-not-exists takes it as it is",
    Reason.GROUP_HAS_MEMBERS: "takhin group describe {group} names them",
    Reason.OFFSET_OUT_OF_RANGE: "takhin topic describe {topic} shows where each partition begins and ends",
    Reason.RECORD_TOO_LARGE: "takhin topic update {topic} -c max.message.bytes=BYTES lets the topic take larger ones",
    Reason.DISK_FULL: "make room on the broker's disk, or let it keep less (retention.bytes, retention.ms)",
    Reason.CORRUPT_BATCH: "takhin segment verify DIR examines the files of a broker that is stopped",
    Reason.PARTITION_DAMAGED: "takhin segment verify DIR examines the files of a broker that is stopped",
    Reason.LOG_TRUNCATED: "read again from there, or from the beginning (-o earliest)",
    Reason.NO_COMMITTED_OFFSET: "takhin group lag {group} shows what is committed; --to earliest needs no commit",
    Reason.CREDENTIALS_EXPIRED: "have new ones made: takhin key create, or a new token",
    Reason.ACCESS_DENIED: "ask who runs the broker; takhin acl create allows it",
    Reason.KEY_NOT_FOUND: "takhin key list shows the ids",
    Reason.ACL_NOT_FOUND: "takhin acl list shows all",
    Reason.DRAINING: "the broker is shutting down: try again when it is back",
}
_CODE_HINTS: dict[Code, str] = {
    Code.UNAVAILABLE: "is it running? takhin dev starts one; -b HOST:PORT or TAKHIN_BROKER names another",
    Code.DEADLINE_EXCEEDED: "--timeout SECONDS waits longer",
    Code.UNAUTHENTICATED: "say who you are with TAKHIN_TOKEN or TAKHIN_API_KEY",
    Code.PERMISSION_DENIED: "ask who runs the broker",
    Code.UNIMPLEMENTED: "the broker is older than this takhin: use one of its version",
}


def command_error(problem: ClientError, broker: str, named: Mapping[str, str] | None = None) -> CommandError:
    """The line and the exit status for it. named: the topic and the group in question, where the error does not say."""
    code = Code(problem.code)
    message = problem.message.rstrip(".")
    if isinstance(problem, NotDelivered):
        # It says how many and why; no longer --timeout would have stored them.
        return CommandError(message, _STATUSES.get(code, EXIT_FAILED))
    if code == Code.UNAVAILABLE and not problem.reason:
        # gRPC says the same three times over; the last of it is what the operating system said.
        message = f"cannot reach a broker at {broker} ({message.rpartition(': ')[2]})"
    elif code == Code.DEADLINE_EXCEEDED and not problem.reason:
        message = f"no answer from {broker} in time"
    hint = _HINTS.get(problem.reason) or _CODE_HINTS.get(code)
    if hint:
        names = {"topic": "TOPIC", "group": "GROUP"} | dict(named or {}) | problem.metadata
        message += "; " + hint.format(topic=names["topic"], group=names["group"])
    return CommandError(message, _STATUSES.get(code, EXIT_FAILED))
