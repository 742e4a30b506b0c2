"""Expiry: what a group has committed is forgotten when nobody has used the group for groups.offsets_retention_ms.

A group is used by its commits, its resets and its members. A look notes, durably, which groups have members: so a group
whose members had nothing to commit for long is kept as long after they left as any other. The first look comes one
groups.offsets_check_ms after the start, when members have had the time to come back.
"""

import logging
from collections.abc import Callable
from typing import Protocol

from takhin.broker.metadata import MetadataStore
from takhin.broker.pause import pause
from takhin.config import GroupSettings
from takhin.errors import TakhinError

logger = logging.getLogger(__name__)


class GroupsInUse(Protocol):
    def with_members(self) -> list[str]:
        """The ids of the groups that have members now."""
        ...


class OffsetExpiry:
    """Looks through all groups every offsets_check_ms. clock_ms: milliseconds since the epoch."""

    def __init__(
        self, metadata: MetadataStore, groups: GroupsInUse, settings: GroupSettings, clock_ms: Callable[[], int]
    ):
        self._metadata = metadata
        self._groups = groups
        self._settings = settings
        self._clock_ms = clock_ms

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await pause(lambda: self._settings.offsets_check_ms)
            try:
                await self.check()
            except TakhinError as problem:
                # On a full disk, say. The next look does it.
                logger.warning("unused groups stay for now: %s", problem.message)

    async def check(self) -> None:
        """One look. Raises what the metadata store does."""
        retention_ms = self._settings.offsets_retention_ms
        if retention_ms < 0:
            return
        now_ms = self._clock_ms()
        # Nothing comes between this look at the members and the place in the database's queue: a member that joins
        # later finds what was committed, or finds it gone.
        in_use = frozenset(self._groups.with_members())
        for group_id in await self._metadata.expire_groups(in_use, now_ms, now_ms - retention_ms):
            logger.info("group %r was not used for %d ms: its offsets are forgotten", group_id, retention_ms)
