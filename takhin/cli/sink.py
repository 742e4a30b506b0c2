"""Much data to standard output, without holding up the event loop."""

import asyncio
import queue
import select
import threading
from collections.abc import Callable
from types import TracebackType

from takhin.cli.terminal import write_some

# Chunks that wait to be written, at most.
_AHEAD = 3
# How often it looks whether anybody still reads, while there is nothing to write.
_LOOK_S = 0.5


class Sink:
    """Writes in a thread: who reads slowly, as a pager does, keeps nothing else from going on. Used with `async with`.

    When nobody reads any more, the task that uses it is cancelled, and BrokenPipeError raised at its end: also while
    there is nothing to write. OSError in the same way. given, written: chunks so far.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self.given = 0
        self.written = 0
        self._all_written = asyncio.Event()
        self._room = asyncio.Semaphore(_AHEAD)
        self._chunks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._done = self._loop.create_future()
        self._problem: OSError | None = None
        # A daemon: one that waits for a pager must not keep the process from ending.
        threading.Thread(target=self._write, name="output", daemon=True).start()

    async def __aenter__(self) -> "Sink":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._problem is None and kind is not asyncio.CancelledError:
            self._chunks.put(None)
            try:
                await self._done
            except asyncio.CancelledError:
                if self._problem is None:
                    raise
        if self._problem is not None:
            raise self._problem

    async def write(self, chunk: bytes) -> None:
        """Write it; waits while much waits already."""
        if chunk:
            await self._room.acquire()
            self.given += 1
            self._all_written.clear()
            self._chunks.put(chunk)

    async def flush(self) -> None:
        """Until all is written."""
        if self.written < self.given:
            await self._all_written.wait()

    def _wrote(self) -> None:
        self.written += 1
        self._room.release()
        if self.written == self.given:
            self._all_written.set()

    # In the thread

    def _write(self) -> None:
        try:
            watch = select.poll()
            watch.register(1, 0)
            while (chunk := self._next(watch)) is not None:
                waiting = memoryview(chunk)
                while waiting:
                    waiting = waiting[write_some(waiting):]
                self._tell(self._wrote)
        except OSError as problem:
            self._problem = problem
            self._tell(self._fail)
        else:
            self._tell(self._end)

    def _next(self, watch: "select.poll") -> bytes | None:
        while True:
            try:
                return self._chunks.get(timeout=_LOOK_S)
            except queue.Empty:
                # A pipe's writing end: POLLERR when the reading one is closed.
                if any(event & select.POLLERR for _, event in watch.poll(0)):
                    raise BrokenPipeError from None

    def _tell(self, call: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            pass  # the loop is closed: nobody waits for it

    def _end(self) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def _fail(self) -> None:
        if not self._done.done():
            self._done.cancel()
        if self._task is not None:
            self._task.cancel()
