"""Files an operator may replace while the broker runs: certificates, keys, key sets.

They are looked at once in a while; what they hold is used once all of it can be, and the last that could be stays
otherwise: a pair of which only one half is written yet ends nothing.
"""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from takhin.broker.pause import pause
from takhin.errors import StartError

T = TypeVar("T")

# A bundle of all the world's authorities has a quarter of that.
MAX_FILE_BYTES = 1024 * 1024

logger = logging.getLogger(__name__)

_Stamp = tuple[int, int, int, int]


class WatchedFiles(Generic[T]):
    """What `load` makes of the contents of `paths`; load raises ValueError, with what is wrong, for the operator.

    when_gone: what is used once they are gone, or empty: for what lets somebody in, whose removal has to end that.
    None: what was read before. Blocks for as long as reading small files takes.
    """

    def __init__(self, paths: Sequence[str], load: Callable[[list[bytes]], T], when_gone: T | None = None):
        """Raises StartError when they can't be used."""
        self._paths = list(paths)
        self._load = load
        self._when_gone = when_gone
        self._stamps = self._look()
        # Why what they hold now is not used; "": it is.
        self._problem = ""
        try:
            self.current = self._load(self._read())
        except ValueError as problem:
            raise StartError(str(problem)) from None
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, listener: Callable[[], None]) -> None:
        """listener() is called after each change of `current`."""
        self._listeners.append(listener)

    def check(self) -> bool:
        """Read the files again if they have changed, or could not be used; whether `current` is new. An error is
        logged once."""
        stamps = self._look()
        has_changed = stamps != self._stamps
        # What can't be used may be so later without a change of the files: a certificate is valid from some time on.
        if not has_changed and not self._problem:
            return False
        self._stamps = stamps
        if self._when_gone is not None and all(stamp is None or not stamp[3] for stamp in stamps):
            self.current, self._problem = self._when_gone, ""
            logger.warning("gone, or empty: %s; nobody is let in by it any more", ", ".join(self._paths))
        else:
            try:
                self.current = self._load(self._read())
            except ValueError as problem:
                if has_changed or str(problem) != self._problem:
                    logger.error("%s; what was read before stays in use", problem)
                self._problem = str(problem)
                return False
            self._problem = ""
            logger.info("read again: %s", ", ".join(self._paths))
        for listener in self._listeners:
            listener()
        return True

    def _look(self) -> list[_Stamp | None]:
        return [_stamp(path) for path in self._paths]

    def _read(self) -> list[bytes]:
        """Raises ValueError."""
        contents = []
        for path in self._paths:
            try:
                with open(path, "rb") as file:
                    content = file.read(MAX_FILE_BYTES + 1)
            except OSError as problem:
                raise ValueError(f"{path}: can't be read: {problem.strerror}") from None
            if len(content) > MAX_FILE_BYTES:
                raise ValueError(f"{path}: is larger than {MAX_FILE_BYTES} bytes")
            contents.append(content)
        return contents


def _stamp(path: str) -> _Stamp | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size


async def watch(files: Iterable["WatchedFiles[T]"], every_ms: Callable[[], int]) -> None:
    """Check them for ever."""
    files = list(files)
    while files:
        await pause(every_ms)
        check_all(files)


def check_all(files: Iterable["WatchedFiles[T]"]) -> None:
    """Check each of them now."""
    for each in files:
        try:
            each.check()
        except Exception:
            logger.exception("a look at files that may have changed failed")
