"""What the programs here have in common on their standard streams: lines out, one line when something is wrong."""

import os
import select
import sys
from types import TracebackType

_BUFFER_BYTES = 64 * 1024


def open_standard_streams() -> None:
    """Open what of descriptors 0 to 2 was closed: else a file of the log gets such a number, and our lines."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(opened)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = open(2, "w", buffering=1, closefd=False)


def printable(text: str) -> str:
    """The text with control characters, and all else that a terminal would not show, escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def write(descriptor: int, line: str) -> bool:
    """Write a line past Python's buffers; False when nobody reads there any more."""
    try:
        os.write(descriptor, line.encode(errors="backslashreplace"))
    except OSError:
        return False
    return True


def complain(prog: str, message: str) -> None:
    """One line to standard error, for the operator."""
    write(2, f"{prog}: {printable(message)}\n")


def write_some(waiting: memoryview) -> int:
    """As much as standard output takes; waits while it takes nothing. Gives how many bytes it took."""
    try:
        return os.write(1, waiting)
    except BlockingIOError:
        # Whoever shares it with us has set it so that it does not wait: then we do.
        room = select.poll()
        room.register(1, select.POLLOUT)
        room.poll()
        return 0


class Output:
    """Lines to standard output, past sys.stdout: what a closed pipe leaves in that buffer would turn the exit status
    into 120.

    Raises BrokenPipeError when nobody reads any more, unless goes_on: then what is still to be written is dropped.
    Raises OSError when it can't be written for another reason.
    """

    def __init__(self, *, goes_on: bool = False):
        self._goes_on = goes_on
        self._closed = False
        self._waiting = bytearray()

    def line(self, text: str) -> None:
        """One line; control characters in it are escaped."""
        self._waiting += printable(text).encode(errors="backslashreplace") + b"\n"
        if len(self._waiting) >= _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        waiting, self._waiting = memoryview(self._waiting), bytearray()
        try:
            while waiting and not self._closed:
                waiting = waiting[write_some(waiting):]
        except BrokenPipeError:
            self._closed = True
            if not self._goes_on:
                raise

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None):
        # After Ctrl-C nobody may be reading.
        if kind is None or (issubclass(kind, Exception) and not issubclass(kind, OSError)):
            self.flush()
