"""All fronts of a broker, as one."""

import asyncio
from collections.abc import Iterable
from typing import Protocol

from takhin.broker.statistics import Usage


class Front(Protocol):
    """What serves the method table on an address."""

    @property
    def num_cut(self) -> int: ...

    @property
    def num_refused(self) -> int: ...

    def usage(self) -> Usage: ...

    async def stop(self, grace_ms: int) -> None: ...


class Fronts:
    """Some may be added as long as nothing is asked."""

    def __init__(self, fronts: Iterable[Front] = ()):
        self._fronts = list(fronts)

    def add(self, front: Front) -> None:
        self._fronts.append(front)

    @property
    def num_cut(self) -> int:
        """Connections cut off so far, as they kept others from being served."""
        return sum(front.num_cut for front in self._fronts)

    @property
    def num_refused(self) -> int:
        """Connections closed as they came, as their front had too many; those alone that a front knows of."""
        return sum(front.num_refused for front in self._fronts)

    def usage(self) -> list[Usage]:
        """Of grpc.max_connections, which is of each front: one for each."""
        return [front.usage() for front in self._fronts]

    async def stop(self, grace_ms: int) -> None:
        """Stop all of them at once."""
        await asyncio.gather(*(front.stop(grace_ms) for front in self._fronts))
