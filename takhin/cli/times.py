"""Points in time, as people write and read them."""

from datetime import UTC, datetime, timedelta

from takhin.cli.values import span_s


def iso_time(ms: int) -> str:
    """ISO 8601 in UTC, to the second; the number itself where no date can be made of it."""
    try:
        return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{ms} ms"


def read_time(text: str) -> datetime | timedelta:
    """A moment: "2026-11-01", "2026-11-01T00:00" (local time), "...Z" or "...+02:00", "-1h" (so long ago), or the
    milliseconds since 1970. Raises ValueError.
    """
    if text.startswith("-") and (seconds := span_s(text[1:])) is not None:
        return timedelta(seconds=seconds)
    if text.isascii() and text.isdigit() and len(text) >= 11:
        return datetime.fromtimestamp(int(text) / 1000, UTC)
    return datetime.fromisoformat(text)
