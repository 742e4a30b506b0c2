"""What a topic may be called."""

import re

from takhin.errors import Reason, error

_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}", re.ASCII)
_SHOWN_CHARACTERS = 80


def check_topic_name(name: str) -> None:
    """Raises INVALID_TOPIC_NAME. The rule is Kafka's."""
    if not _NAME.fullmatch(name) or name in (".", ".."):
        shown = name if len(name) <= _SHOWN_CHARACTERS else name[:_SHOWN_CHARACTERS] + "..."
        raise error(
            Reason.INVALID_TOPIC_NAME,
            f"{shown!r} is not a topic name: 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-', and not '.' or '..'",
        )
