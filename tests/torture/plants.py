"""Bugs to put into a broker in a process of its own, to see that they are found."""

from typing import Any

from takhin.broker.broker import Broker
from takhin.broker.sqlite_thread import SqliteThread
from takhin.log import committer
from takhin.log.sync import SyncThread


class _DeafSyncThread:
    """A sync thread whose syncs never fail."""

    def __init__(self, *arguments: Any):
        self._thread = SyncThread(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._thread, name)

    def finished(self) -> list[tuple[Any, ...]]:
        return [(number, 0, *rest) for number, _, *rest in self._thread.finished()]


def sync_errors_are_ignored() -> None:
    """A failed sync counts as one that succeeded."""
    committer.SyncThread = _DeafSyncThread  # type: ignore[misc, assignment]


def metadata_errors_are_ignored() -> None:
    """The metadata store goes on after an I/O error."""
    SqliteThread._fail = lambda *arguments: None  # type: ignore[method-assign, assignment]


def closed_for_good() -> None:
    """A partition whose write failed never takes appends again."""

    async def _resume(self: Broker) -> None:
        self._halted.clear()

    Broker._resume = _resume  # type: ignore[method-assign]
