"""A stream that ends when its caller's credentials do, or what they allow."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from takhin.errors import TakhinError
from takhin.rpc.call import StreamCall

# How long a client that is to be told why its stream ends may take for the message that is on its way to it.
CUT_AFTER_S = 2.0

logger = logging.getLogger(__name__)


class GuardedCall:
    """A StreamCall that can be ended from outside, with a status. To its handler that is as if its client had left.

    Made in the call's own task. check_first: is given the first message that is read, and raises what it is refused
    for.
    """

    def __init__(self, call: StreamCall, check_first: Callable[[bytes], None] | None = None):
        self._call = call
        self._check_first = check_first
        self._task: asyncio.Task[None] | None = asyncio.current_task()
        self._is_writing = False
        self._was_cancelled = False
        self._ended_by: TakhinError | None = None
        # While it is ended, and waits for a write.
        self._cutting: asyncio.TimerHandle | None = None

    @property
    def is_ended(self) -> bool:
        """Whether it was told to end; its handler may be at work still."""
        return self._ended_by is not None

    @property
    def principal(self) -> str | None:
        return self._call.principal

    @principal.setter
    def principal(self, value: str | None) -> None:
        self._call.principal = value

    @property
    def request_id(self) -> str:
        return self._call.request_id

    @property
    def peer(self) -> str:
        return self._call.peer

    @property
    def identity(self) -> bytes | None:
        return self._call.identity

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        return self._call.metadata

    def time_remaining_s(self) -> float | None:
        return self._call.time_remaining_s()

    def cancelled(self) -> bool:
        return self._ended_by is not None or self._call.cancelled()

    async def read(self) -> bytes | None:
        message = await self._call.read()
        if self._ended_by is not None:
            raise asyncio.CancelledError
        if self._check_first is not None and message is not None:
            check, self._check_first = self._check_first, None
            check(message)
        return message

    async def write(self, message: bytes) -> None:
        if self._ended_by is not None:
            raise asyncio.CancelledError
        self._is_writing = True
        try:
            await self._call.write(message)
        finally:
            self._is_writing = False
            self._stop_cutting()
        if self._ended_by is not None:
            raise asyncio.CancelledError

    def cut(self) -> None:
        self._call.cut()

    def end(self, why: TakhinError) -> None:
        """End it as soon as no write is under way, and cut it off if the write takes longer than CUT_AFTER_S."""
        if self._ended_by is not None or self._task is None:
            return
        self._ended_by = why
        if self._is_writing:
            # A write that is cancelled would leave the client without the stream's end. But whoever takes nothing must
            # not keep for that what he has: a member its partitions.
            self._cutting = asyncio.get_running_loop().call_later(CUT_AFTER_S, self._cut_off)
        else:
            self._was_cancelled = True
            self._task.cancel()

    def _cut_off(self) -> None:
        self._cutting = None
        logger.warning(
            "the client at %s takes nothing of a stream that it may not have any more: it is cut off",
            self.peer or "a Unix socket")
        self._call.cut()

    def _stop_cutting(self) -> None:
        if self._cutting is not None:
            self._cutting.cancel()
            self._cutting = None

    async def run(self, handler: Awaitable[None]) -> None:
        """Await the handler, which has this call. Raises what the handler does, or what the stream was ended with."""
        try:
            await handler
        except asyncio.CancelledError:
            # Ended by us and by the client at once: then nobody is there to be told.
            if self._uncancel() or self._ended_by is None:
                raise
        except Exception:
            self._uncancel()
            if self._ended_by is None:
                raise
        else:
            self._uncancel()
        finally:
            self._task = None
        if self._ended_by is not None:
            raise self._ended_by

    def _uncancel(self) -> bool:
        """Whether the task was cancelled by somebody else, too."""
        task = asyncio.current_task()
        assert task is not None
        if self._was_cancelled:
            self._was_cancelled = False
            task.uncancel()
        return task.cancelling() > 0
