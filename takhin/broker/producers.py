"""Idempotent producers: their ids and names, who is fenced, and who is forgotten.

An id without a name has epoch 0 for ever and is kept nowhere; only that it was given out is known, by the next one. A
name keeps its id and raises its epoch, from 1, each time it is asked for: whoever bears an older epoch is refused in
every partition from then on. What partitions know of producers is theirs (log/producers.pyx); here it is only counted
when they are to be forgotten.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from takhin.broker.metadata import MetadataStore, ProducerName
from takhin.broker.pause import pause
from takhin.config import Limits
from takhin.errors import Reason, TakhinError, error
from takhin.log.partition import Partition
from takhin.log.store import LogStore

logger = logging.getLogger(__name__)

MAX_NAME_CHARACTERS = 249
# Ids are reserved so many at a time; what is left of a block when the broker stops is never given out.
BLOCK_IDS = 1000
# How often those who may be forgotten are looked for; more often where they are to be forgotten sooner.
EXPIRY_CHECK_MS = 60_000
_SHOWN_CHARACTERS = 80


@dataclass(slots=True)
class _Named:
    """A name, and when it was last used, by the clock and, in this run, by one that never jumps."""

    name: str
    id: int
    epoch: int
    last_used_ms: int
    # None: since the last look for names to forget.
    idle_since_ms: int | None


class Producers:
    """All producers. clock_ms: milliseconds since the epoch. expiration_ms: after which idle ones are forgotten."""

    def __init__(
        self, metadata: MetadataStore, store: LogStore, limits: Limits, expiration_ms: int,
        clock_ms: Callable[[], int],
    ):
        self._metadata = metadata
        self._store = store
        self._max_names = limits.producers
        # May be changed at any time.
        self.expiration_ms = expiration_ms
        self._clock_ms = clock_ms
        self._named: dict[int, _Named] = {}
        self._next_id = 1
        self._reserved_until = 1
        self._reserving = asyncio.Lock()

    @property
    def num_names(self) -> int:
        """How many producers have names."""
        return len(self._named)

    async def load(self) -> None:
        """To be called before the logs are recovered: they hold no producers' batches when no id was ever given out."""
        next_id, names = await self._metadata.load_producers()
        self._next_id = self._reserved_until = next_id
        steady_ms, now_ms = _steady_ms(), self._clock_ms()
        for row in names:
            idle_since_ms = steady_ms - max(now_ms - row.last_used_ms, 0)
            self._named[row.id] = _Named(row.name, row.id, row.epoch, row.last_used_ms, idle_since_ms)
        self._store.producers.in_use = next_id > 1

    async def skip_ids(self, highest: int) -> None:
        """The logs hold an id as high as that: none up to it is given out any more, whatever the metadata says."""
        if highest >= self._next_id:
            self._next_id = self._reserved_until = await self._metadata.reserve_producer_ids(highest + 1, 0)

    async def init(self, name: str, partitions: Iterable[Partition]) -> tuple[int, int]:
        """(id, epoch) of a new producer, or of the one of that name. Durable when it returns.

        partitions: all there are. Raises INVALID_PRODUCER_NAME, PRODUCER_LIMIT, and what the metadata store does.
        """
        if name and (len(name) > MAX_NAME_CHARACTERS or not name.isprintable()):
            shown = name if len(name) <= _SHOWN_CHARACTERS else name[: _SHOWN_CHARACTERS - 3] + "..."
            raise error(
                Reason.INVALID_PRODUCER_NAME,
                f"producer name {shown!r} ({len(name)} characters) is not allowed; allowed: up to "
                f"{MAX_NAME_CHARACTERS} printable characters",
            )
        new_id = await self._new_id(partitions)
        if not name:
            return new_id, 0
        now_ms = self._clock_ms()
        row = await self._metadata.raise_producer_epoch(name, new_id, now_ms, self._max_names)
        known = self._named.get(row.id)
        # Two at once may be answered in any order: the higher epoch is the newer one.
        if known is None or known.epoch < row.epoch:
            self._named[row.id] = _Named(name, row.id, row.epoch, now_ms, None)
        return row.id, row.epoch

    async def _new_id(self, partitions: Iterable[Partition]) -> int:
        async with self._reserving:
            if self._next_id >= self._reserved_until:
                self._next_id = await self._metadata.reserve_producer_ids(self._next_id, BLOCK_IDS)
                self._reserved_until = self._next_id + BLOCK_IDS
            if not self._store.producers.in_use:
                self._store.producers.in_use = True
                await self._save_all(partitions)
            self._next_id += 1
            return self._next_id - 1

    async def _save_all(self, partitions: Iterable[Partition]) -> None:
        """Before there is a producer at all: no start need ever search for one in what was written before."""
        for partition in list(partitions):
            try:
                partition.save_no_producers()
            except OSError as problem:
                # Then a start may have to.
                logger.warning("%s can't be written: %s", partition.snapshot_path, problem.strerror)
            await asyncio.sleep(0)

    def check(self, producer_id: int, epoch: int) -> None:
        """Raises PRODUCER_FENCED for an epoch that is not the newest of its id, PRODUCER_UNKNOWN for one not given."""
        named = self._named.get(producer_id)
        if named is not None:
            if epoch == named.epoch:
                named.idle_since_ms = None
                return
            if epoch < named.epoch:
                raise error(
                    Reason.PRODUCER_FENCED,
                    f"producer {producer_id} has epoch {named.epoch} now: {epoch} is fenced",
                    producer_id=producer_id, producer_epoch=named.epoch,
                )
        elif epoch == 0 and 0 < producer_id < self._next_id:
            return
        raise error(
            Reason.PRODUCER_UNKNOWN,
            f"no producer {producer_id} of epoch {epoch} is known here: InitProducer makes one",
            producer_id=producer_id,
        )

    # Expiry

    async def run(self, partitions: Callable[[], Iterable[Partition]]) -> None:
        """Until cancelled: forget those that did nothing for expiration_ms."""
        while True:
            await pause(lambda: min(max(self.expiration_ms // 4, 10), EXPIRY_CHECK_MS))
            for partition in partitions():
                partition.expire_producers(_steady_ms(), self.expiration_ms)
                await asyncio.sleep(0)
            try:
                await self.expire_names()
            except TakhinError as problem:
                # They are looked for again.
                logger.warning("producers' names: %s", problem.message)

    async def expire_names(self) -> None:
        """Store when names were last used, and forget those that were not for too long. Raises as the store does."""
        steady_ms, now_ms = _steady_ms(), self._clock_ms()
        used: list[tuple[int, int]] = []
        expired: list[_Named] = []
        for named in self._named.values():
            if named.idle_since_ms is None:
                named.idle_since_ms, named.last_used_ms = steady_ms, now_ms
                used.append((named.id, now_ms))
            elif steady_ms - named.idle_since_ms >= self.expiration_ms:
                expired.append(named)
        if not used and not expired:
            return
        # First: a request that comes meanwhile must not find a name that is about to go.
        for named in expired:
            del self._named[named.id]
        try:
            await self._metadata.update_producers(used, [(named.id, named.epoch) for named in expired])
        except TakhinError:
            for named in expired:
                self._named.setdefault(named.id, named)
            raise


def _steady_ms() -> int:
    return time.monotonic_ns() // 1_000_000
