"""Lines of the log that come as often as somebody likes: one a while, with how many there were meanwhile."""

import logging
import time

EVERY_S = 180.0


class Seldom(logging.Filter):
    """Lets a record of these loggers, and of those below them, through when the same line of code has said nothing for
    `every_s`. Of other loggers it lets all through. For a handler; for a logger, it sees only that logger's own."""

    def __init__(self, *loggers: str, every_s: float = EVERY_S):
        super().__init__()
        self._prefixes = tuple(f"{name}." for name in loggers)
        self._every_s = every_s
        # By what can't be many: places in the code. When it was told last, and how many were not since.
        self._told: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not f"{record.name}.".startswith(self._prefixes):
            return True
        place = (record.pathname, record.lineno)
        now_s = time.monotonic()
        last_s, left_out = self._told.get(place, (now_s - self._every_s, 0))
        if now_s - last_s < self._every_s:
            self._told[place] = (last_s, left_out + 1)
            return False
        self._told[place] = (now_s, 0)
        if left_out:
            record.msg = f"{record.msg} ({left_out} more like this since the last one told)"
        return True
