"""The commits of one member's stream: one after the other, those that wait together, each with its answer."""

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from takhin.broker.assignors import GroupPartition
from takhin.errors import TakhinError
from takhin.v1 import takhin_pb2 as pb

# A commit waits for the disk; a member that sends more of them than that is read no further.
MAX_WAITING = 256
# And who has so many offsets in them: a single commit may name many partitions.
MAX_WAITING_OFFSETS = 10_000

Offsets = Sequence[tuple[str, int, int]]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A commit that the member asked for. generation: the last one it had been told of then."""

    commit_id: int
    offsets: Offsets
    generation: int


class MemberCommits:
    """commit: of (topic, partition, offset), by a member that knows of so old a generation, and whether it asked for
    that. answer: sends a Committed. generation: the last one that the member was sent. interval_s: between two commits
    of the broker's own.

    Each commit goes by the generation that the member knew of when it was due, however long it waits: in between it may
    have lost a partition and got it again, with a beginning that the commit would overtake. Where the member does not
    say which one that was, it is taken to be the last that it was sent.
    """

    def __init__(
        self, commit: Callable[[Offsets, int, bool], Awaitable[None]], answer: Callable[[pb.Committed], None],
        generation: Callable[[], int], interval_s: float,
    ):
        self._commit = commit
        self._answer = answer
        self._generation = generation
        self._interval_s = interval_s
        self._waiting: deque[_Asked] = deque()
        self._waiting_offsets = 0
        self._processed: dict[GroupPartition, int] = {}
        self._next_s = 0.0
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= MAX_WAITING or self._waiting_offsets >= MAX_WAITING_OFFSETS

    @property
    def is_idle(self) -> bool:
        return self._task is None

    def add(self, commit_id: int, offsets: Offsets, generation: int | None = None) -> None:
        """What the member asks for; answered with its id. generation: the one it knows of; None: it does not say."""
        self._waiting.append(_Asked(commit_id, offsets, self._generation() if generation is None else generation))
        self._waiting_offsets += len(offsets)
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
                await self._commit(offsets, min(each.generation for each in taken), True)
            except TakhinError:
                pass  # one of them is refused: by themselves each learns what becomes of it
            else:
                for each in taken:
                    self._answer(_committed(each.commit_id, each.offsets, None))
                return
        for each in taken:
            refusal = await self._refusal(each.offsets, each.generation, True)
            self._answer(_committed(each.commit_id, each.offsets, refusal))

    def _together(self) -> tuple[list[_Asked], Offsets]:
        """The commits that can be made as one: none goes back behind one before it, nor names a partition twice."""
        taken = [self._next()]
        merged = _by_partition(taken[0].offsets)
        if len(merged) == len(taken[0].offsets):
            while self._waiting:
                own = _by_partition(self._waiting[0].offsets)
                is_double = len(own) < len(self._waiting[0].offsets)
                if not own or is_double or any(own[each] < merged.get(each, 0) for each in own):
                    break
                merged |= own
                taken.append(self._next())
        return taken, [(topic, number, offset) for (topic, number), offset in merged.items()]

    def _next(self) -> _Asked:
        first = self._waiting.popleft()
        self._waiting_offsets -= len(first.offsets)
        return first

    async def _commit_processed(self) -> None:
        generation = self._generation()
        taken = list(itertools.islice(self._processed.items(), MAX_WAITING_OFFSETS))
        for each, _ in taken:
            del self._processed[each]
        offsets = [(each.topic, each.partition, offset) for each, offset in taken]
        refusal = await self._refusal(offsets, generation, False)
        if refusal is None or len(offsets) == 1:
            self._answer(_committed(0, offsets, refusal))
            return
        for each in offsets:
            self._answer(_committed(0, [each], await self._refusal([each], generation, False)))

    async def _refusal(self, offsets: Offsets, generation: int, was_asked: bool) -> TakhinError | None:
        try:
            await self._commit(offsets, generation, was_asked)
        except TakhinError as refusal:
            return refusal
        return None


def _by_partition(offsets: Offsets) -> dict[tuple[str, int], int]:
    return {(topic, number): offset for topic, number, offset in offsets}


def _committed(commit_id: int, offsets: Offsets, refusal: TakhinError | None) -> pb.Committed:
    message = pb.Committed(id=commit_id)
    for topic, number, offset in offsets:
        message.offsets.add(topic=topic, partition=number, offset=offset)
    if refusal is not None:
        message.error, message.code, message.reason = refusal.message, refusal.code, refusal.reason
    return message
