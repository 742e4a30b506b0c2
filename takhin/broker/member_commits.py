"""The commits of one member's stream: one after the other, those that wait together, each with its answer."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

from takhin.broker.assignors import GroupPartition
from takhin.errors import TakhinError
from takhin.v1 import takhin_pb2 as pb

# A commit waits for the disk; a member that sends more of them than that is read no further.
MAX_WAITING = 256

Offsets = Sequence[tuple[str, int, int]]


class MemberCommits:
    """commit: of (topic, partition, offset). answer: sends a Committed. interval_s: between two of the broker's own."""

    def __init__(
        self, commit: Callable[[Offsets], Awaitable[None]], answer: Callable[[pb.Committed], None], interval_s: float
    ):
        self._commit = commit
        self._answer = answer
        self._interval_s = interval_s
        self._waiting: deque[tuple[int, Offsets]] = deque()
        self._processed: dict[GroupPartition, int] = {}
        self._next_s = 0.0
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= MAX_WAITING

    @property
    def is_idle(self) -> bool:
        return self._task is None

    def add(self, commit_id: int, offsets: Offsets) -> None:
        """What the member asks for; answered with its id."""
        self._waiting.append((commit_id, offsets))
        self._start()

    def processed(self, key: GroupPartition, next_offset: int) -> None:
        """What the broker commits for the member, by and by."""
        self._processed[key] = max(next_offset, self._processed.get(key, 0))
        self._start()

    def forget(self, keys: Iterable[GroupPartition]) -> None:
        """Partitions that are the member's no longer."""
        for each in keys:
            self._processed.pop(each, None)

    async def finish(self) -> None:
        """Return when all is committed, or refused."""
        self._hurry.set()
        while self._task is not None:
            await asyncio.wait([self._task])
        self._hurry.clear()

    def _start(self) -> None:
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting or self._processed:
                if self._waiting:
                    await self._commit_waiting()
                elif self._hurry.is_set() or loop.time() >= self._next_s:
                    self._next_s = loop.time() + self._interval_s
                    await self._commit_processed()
                else:
                    await self._pause(self._next_s - loop.time())
        finally:
            self._task = None

    async def _pause(self, delay_s: float) -> None:
        """Until it is time for the next one, or there is something to do now."""
        # Looks often enough for a commit that comes meanwhile.
        try:
            await asyncio.wait_for(self._hurry.wait(), min(delay_s, 0.02))
        except TimeoutError:
            pass

    async def _commit_waiting(self) -> None:
        taken, offsets = self._together()
        if len(taken) > 1:
            try:
                await self._commit(offsets)
            except TakhinError:
                pass  # one of them is refused: by themselves each learns what becomes of it
            else:
                for commit_id, own in taken:
                    self._answer(_committed(commit_id, own, None))
                return
        for commit_id, own in taken:
            self._answer(_committed(commit_id, own, await self._refusal(own)))

    def _together(self) -> tuple[list[tuple[int, Offsets]], Offsets]:
        """The commits that can be made as one: none goes back behind one before it, nor names a partition twice."""
        taken = [self._waiting.popleft()]
        merged = {(topic, number): offset for topic, number, offset in taken[0][1]}
        if len(merged) == len(taken[0][1]):
            while self._waiting:
                _, offsets = self._waiting[0]
                own = {(topic, number): offset for topic, number, offset in offsets}
                if not own or len(own) < len(offsets) or any(own[each] < merged.get(each, 0) for each in own):
                    break
                merged |= own
                taken.append(self._waiting.popleft())
        return taken, [(topic, number, offset) for (topic, number), offset in merged.items()]

    async def _commit_processed(self) -> None:
        processed, self._processed = self._processed, {}
        offsets = [(each.topic, each.partition, offset) for each, offset in processed.items()]
        refusal = await self._refusal(offsets)
        if refusal is None or len(offsets) == 1:
            self._answer(_committed(0, offsets, refusal))
            return
        for each in offsets:
            self._answer(_committed(0, [each], await self._refusal([each])))

    async def _refusal(self, offsets: Offsets) -> TakhinError | None:
        try:
            await self._commit(offsets)
        except TakhinError as refusal:
            return refusal
        return None


def _committed(commit_id: int, offsets: Offsets, refusal: TakhinError | None) -> pb.Committed:
    message = pb.Committed(id=commit_id)
    for topic, number, offset in offsets:
        message.offsets.add(topic=topic, partition=number, offset=offset)
    if refusal is not None:
        message.error, message.code, message.reason = refusal.message, refusal.code, refusal.reason
    return message
