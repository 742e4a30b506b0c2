"""Where reading starts: "earliest", "latest", an offset, -n from the end, a datetime or a timedelta."""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta

EARLIEST, LATEST = "earliest", "latest"


@dataclass(frozen=True, slots=True)
class StartAt:
    """A start, read: exactly one of the fields is set.

    offset: that one. from_end: so many records before the end. from_start: so many behind the beginning. time_ms: the
    first record with this timestamp or a later one, in ms since 1970. is_earliest, is_latest: where the log begins,
    where it ends.
    """

    offset: int | None = None
    from_end: int | None = None
    from_start: int | None = None
    time_ms: int | None = None
    is_earliest: bool = False
    is_latest: bool = False

    def offset_in(self, log_start_offset: int, end_offset: int) -> int | None:
        """The offset in a log that reaches from one to the other; None for a time, which the broker has to look for."""
        if self.is_earliest:
            return log_start_offset
        if self.is_latest:
            return end_offset
        if self.from_end is not None:
            return max(end_offset - self.from_end, log_start_offset)
        if self.from_start is not None:
            return min(log_start_offset + self.from_start, end_offset)
        return self.offset


Start = str | int | datetime | timedelta | StartAt


def start_at(start: Start) -> StartAt:
    """Read a start. A datetime without a zone is one of the local zone; a timedelta is that long ago.

    Raises TypeError, ValueError.
    """
    if isinstance(start, StartAt):
        return start
    if isinstance(start, str):
        if start == EARLIEST:
            return StartAt(is_earliest=True)
        if start == LATEST:
            return StartAt(is_latest=True)
        raise ValueError(f"start {start!r} is not known: 'earliest', 'latest', a number, a datetime or a timedelta")
    if isinstance(start, bool) or not isinstance(start, int | datetime | timedelta):
        raise TypeError(
            f"start is 'earliest', 'latest', a number, a datetime or a timedelta, not {type(start).__name__}")
    if isinstance(start, int):
        return StartAt(offset=start) if start >= 0 else StartAt(from_end=-start)
    return StartAt(time_ms=time_ms_of(start))


def time_ms_of(when: datetime | timedelta) -> int:
    """Milliseconds since 1970."""
    if isinstance(when, timedelta):
        return round((time.time() - when.total_seconds()) * 1000)
    return round(when.timestamp() * 1000)
