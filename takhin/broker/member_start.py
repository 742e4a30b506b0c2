"""What a member says when it starts: read from SubscribeStart, checked, with the defaults filled in."""

from dataclasses import dataclass

from takhin.broker.assignors import ASSIGNORS, DEFAULT_ASSIGNOR
from takhin.broker.group import Description
from takhin.broker.groups import check_group_id
from takhin.broker.topic_name import check_topic_name
from takhin.errors import Reason, error
from takhin.v1 import takhin_pb2 as pb

MAX_TOPICS = 1000
MAX_NAME_CHARACTERS = 249
# The broker puts 33 characters behind a client's id.
MAX_MEMBER_ID_CHARACTERS = MAX_NAME_CHARACTERS + 33
DEFAULT_SESSION_TIMEOUT_MS = 45_000
SESSION_TIMEOUT_MS = (1_000, 3_600_000)
DEFAULT_PROCESSING_MS = 300_000
PROCESSING_MS = (1_000, 86_400_000)
DEFAULT_MAX_BYTES = 1024 * 1024
MAX_CREDIT_BYTES = 1 << 30
LONGEST_PING_INTERVAL_MS = 15_000


@dataclass(frozen=True, slots=True)
class MemberStart:
    """A checked start. credit_bytes 0: credit is not counted. max_bytes: of one records response."""

    group_id: str
    member_id: str
    description: Description
    start_from: int
    start_time_ms: int
    credit_bytes: int
    commits_itself: bool
    session_timeout_ms: int
    max_processing_ms: int
    max_bytes: int

    @property
    def ping_interval_ms(self) -> int:
        return min(self.session_timeout_ms // 3, LONGEST_PING_INTERVAL_MS)


def read_start(start: pb.SubscribeStart, client_host: str, most_bytes: int) -> MemberStart:
    """most_bytes: what a response may have at most, whatever the member asks for.

    Raises INVALID_GROUP_ID, INVALID_MEMBER_NAME, NO_TOPICS, TOO_MANY_TOPICS, INVALID_TOPIC_NAME, INVALID_ASSIGNOR,
    INVALID_START_FROM, INVALID_COMMIT_MODE, INVALID_CREDIT, INVALID_LIMIT.
    """
    check_group_id(start.group_id)
    _check_name("client_id", start.client_id, MAX_NAME_CHARACTERS)
    _check_name("instance_id", start.instance_id, MAX_NAME_CHARACTERS)
    _check_name("member_id", start.member_id, MAX_MEMBER_ID_CHARACTERS)
    _check_topics(start)
    assignor = start.assignor or DEFAULT_ASSIGNOR
    if assignor not in ASSIGNORS:
        shown = assignor if len(assignor) <= 80 else f"{assignor[:77]}..."
        raise error(Reason.INVALID_ASSIGNOR, f"there is no assignor {shown!r}; there are {', '.join(ASSIGNORS)}")
    _check_modes(start)
    if not 0 <= start.credit_bytes <= MAX_CREDIT_BYTES:
        raise error(
            Reason.INVALID_CREDIT, f"credit_bytes {start.credit_bytes} is not between 0 and {MAX_CREDIT_BYTES}",
        )
    if start.max_bytes < 0:
        raise error(Reason.INVALID_LIMIT, f"max_bytes {start.max_bytes} is negative; 0 leaves it to the broker")
    session_timeout_ms = start.session_timeout_ms or DEFAULT_SESSION_TIMEOUT_MS
    _check_time("session_timeout_ms", session_timeout_ms, *SESSION_TIMEOUT_MS)
    max_processing_ms = start.max_processing_ms or DEFAULT_PROCESSING_MS
    _check_time("max_processing_ms", max_processing_ms, *PROCESSING_MS)
    description = Description(
        frozenset(start.topics), assignor, session_timeout_ms, start.client_id, client_host, start.instance_id
    )
    return MemberStart(
        start.group_id, start.member_id, description, start.start_from, start.start_time_ms, start.credit_bytes,
        start.commit_mode == pb.COMMIT_MODE_AUTO, session_timeout_ms, max_processing_ms,
        min(start.max_bytes or DEFAULT_MAX_BYTES, most_bytes),
    )


def _check_topics(start: pb.SubscribeStart) -> None:
    if not start.topics:
        raise error(Reason.NO_TOPICS, "start names no topics; at least one is needed")
    if len(start.topics) > MAX_TOPICS:
        raise error(
            Reason.TOO_MANY_TOPICS, f"start names {len(start.topics)} topics; at most {MAX_TOPICS} are possible",
            limit=MAX_TOPICS,
        )
    for name in start.topics:
        check_topic_name(name)


def _check_modes(start: pb.SubscribeStart) -> None:
    if start.start_from not in pb.StartFrom.values():
        raise error(Reason.INVALID_START_FROM, f"start_from {start.start_from} is not known")
    if start.start_time_ms and start.start_from != pb.START_FROM_TIME:
        raise error(Reason.INVALID_START_FROM, "start_time_ms goes with START_FROM_TIME; leave it at 0")
    if start.commit_mode not in pb.CommitMode.values():
        raise error(Reason.INVALID_COMMIT_MODE, f"commit_mode {start.commit_mode} is not known")
    if start.commit_mode == pb.COMMIT_MODE_AUTO and not start.credit_bytes:
        raise error(
            Reason.INVALID_COMMIT_MODE,
            "COMMIT_MODE_AUTO commits what credit was given back for: it needs credit_bytes above 0",
        )


def _check_name(what: str, name: str, max_characters: int) -> None:
    if len(name) > max_characters or not name.isprintable():
        raise error(
            Reason.INVALID_MEMBER_NAME,
            f"{what} ({len(name)} characters) is not allowed; allowed: up to {max_characters} printable characters",
        )


def _check_time(what: str, value_ms: int, least_ms: int, most_ms: int) -> None:
    if not least_ms <= value_ms <= most_ms:
        raise error(
            Reason.INVALID_LIMIT,
            f"{what} {value_ms} is not between {least_ms} and {most_ms} (0: the default)",
        )
