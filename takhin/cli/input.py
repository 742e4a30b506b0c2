"""Files and standard input, block by block, without holding up the event loop."""

import asyncio
import fcntl
import os
import select
import stat
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import NamedTuple

BLOCK_BYTES = 1 << 20
STANDARD_INPUT = "-"
# Blocks that were read and not taken yet, at most.
_AHEAD = 2


class Block(NamedTuple):
    """data: b"" at the end of a file. path: the file's."""

    path: str
    data: bytes


def size_of(paths: Sequence[str]) -> int | None:
    """How many bytes there are to read; None where that can't be known. Raises OSError for a file that is not there."""
    total: int | None = 0
    for path in paths:
        about = os.fstat(0) if path == STANDARD_INPUT else os.stat(path)
        if not stat.S_ISREG(about.st_mode):
            total = None
        elif total is not None:
            total += about.st_size - (_position(0) if path == STANDARD_INPUT else 0)
    return total


def _position(descriptor: int) -> int:
    return os.lseek(descriptor, 0, os.SEEK_CUR)


class Input:
    """Reads files one after the other, in a thread: a terminal or a slow pipe keeps nothing else from going on.

    It is an asynchronous iterator of Blocks, or, by next(), one of them and None when none came in time. Raises OSError
    for what can't be read.
    """

    def __init__(self, paths: Sequence[str]):
        self._paths = paths
        self._loop = asyncio.get_running_loop()
        self._blocks: asyncio.Queue[Block | OSError | None] = asyncio.Queue()
        self._room = threading.Semaphore(_AHEAD)
        # A daemon: one that waits for a terminal must not keep the process from ending.
        threading.Thread(target=self._read, name="input", daemon=True).start()

    async def __aiter__(self) -> AsyncIterator[Block]:
        while (block := await self._next()) is not None:
            yield block

    async def _next(self) -> Block | None:
        got = await self._blocks.get()
        self._room.release()
        if isinstance(got, OSError):
            raise got
        return got

    async def wait(self, timeout_s: float) -> bool:
        """Whether there is a block, or the end, at once or within the time."""
        until_s = self._loop.time() + timeout_s
        while self._blocks.empty():
            if self._loop.time() >= until_s:
                return False
            await asyncio.sleep(timeout_s / 4)
        return True

    # In the thread

    def _read(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody wants more
            try:
                for path in self._paths:
                    self._read_file(path)
                self._put(None)
            except OSError as problem:
                self._put(problem)

    def _put(self, block: Block | OSError | None) -> None:
        # Not a coroutine put(): one that the loop does not come to any more would be complained of.
        self._room.acquire()
        self._loop.call_soon_threadsafe(self._blocks.put_nowait, block)

    def _read_file(self, path: str) -> None:
        descriptor = 0 if path == STANDARD_INPUT else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
            if is_pipe:
                with suppress(OSError, AttributeError):  # the system allows less, or knows no such thing
                    fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, BLOCK_BYTES)
            while data := self._block(descriptor, is_pipe):
                self._put(Block(path, data))
            self._put(Block(path, b""))
        except OSError as problem:
            raise OSError(problem.errno, problem.strerror, path) from problem
        finally:
            if descriptor:
                os.close(descriptor)

    def _block(self, descriptor: int, is_pipe: bool) -> bytes:
        """What there is, at least one byte; b"" at the end. Of a pipe as much as is there already: it gives little a
        time.
        """
        data = os.read(descriptor, BLOCK_BYTES)
        if not is_pipe or not data or len(data) > BLOCK_BYTES // 2:
            return data
        parts = [data]
        size = len(data)
        while size < BLOCK_BYTES and select.select([descriptor], [], [], 0)[0]:
            more = os.read(descriptor, BLOCK_BYTES - size)
            if not more:
                break
            parts.append(more)
            size += len(more)
        return b"".join(parts)
