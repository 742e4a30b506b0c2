"""takhin-server with a bug planted in it, to see whether it is found: python -m tests.torture.planted NAME [flags].

Each bug is a function of its name, which puts something wrong in the place of something right before the server runs.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from takhin.broker import metadata, produce
from takhin.broker.broker import Broker
from takhin.broker.group import Group
from takhin.broker.groups import GroupCoordinator
from takhin.broker.metadata import MetadataStore, RunState
from takhin.broker.produce import Producing
from takhin.broker.start_offset import StartOffsets
from takhin.cli import server
from takhin.codec.batch import BATCH_HEADER_SIZE, SEGMENT_HEADER_SIZE, read_batch
from takhin.errors import Reason, TakhinError, error
from takhin.log import recovery, store
from takhin.log.committer import Committer
from takhin.log.producers import SNAPSHOT_NAME
from takhin.v1 import takhin_pb2 as pb

_PUT_OFF_S = 0.03


def answered_before_the_write() -> None:
    """acks 1 and -1 are answered at once, and the write, put off for a moment, comes after the answer."""
    touch = Committer.touch

    async def result(self: Any) -> bytes:
        return self.response

    def touch_later(self: Committer, partition: Any) -> None:
        asyncio.get_running_loop().call_later(_PUT_OFF_S, touch, self, partition)

    produce._Pending.result = result  # type: ignore[method-assign]
    Committer.touch = touch_later  # type: ignore[method-assign]


def one_batch_too_many() -> None:
    """Recovery after a kill cuts the last whole batch of a partition as if it were torn."""
    recover_partition = store.recover_partition

    def recover(cache: Any, directory: str, *rest: Any, was_clean: bool, **more: Any) -> Any:
        found = recover_partition(cache, directory, *rest, was_clean=was_clean, **more)
        if not was_clean:
            _cut_last_batch(Path(directory))
            found = recover_partition(
                cache, directory, *rest, was_clean=was_clean, producers=more.get("producers")
            )
        return found

    store.recover_partition = recover


def _cut_last_batch(directory: Path) -> None:
    segments = sorted(directory.glob("*.log"))
    if segments:
        data = segments[-1].read_bytes()
        place, last = SEGMENT_HEADER_SIZE, -1
        try:
            while place < len(data):
                batch = read_batch(data, place)
                last, place = place, place + BATCH_HEADER_SIZE + batch.payload_bytes
        except Exception:
            pass
        if last >= 0:
            os.truncate(segments[-1], last)
            segments[-1].with_suffix(".index").unlink(missing_ok=True)
            (directory / SNAPSHOT_NAME).unlink(missing_ok=True)


def epoch_not_raised() -> None:
    """An unclean start goes on in the epoch of the run before it: offsets given anew may have had other values."""

    async def begin_run(self: MetadataStore) -> RunState:
        run = await self._db.write(metadata._begin_run)
        return RunState(1, run.was_clean)

    async def raise_epoch(self: MetadataStore, at_least: int) -> int:
        return 1

    async def add_epochs(self: MetadataStore, rows: Any) -> None:
        return None

    MetadataStore.begin_run = begin_run  # type: ignore[method-assign]
    MetadataStore.raise_epoch = raise_epoch  # type: ignore[method-assign]
    MetadataStore.add_epochs = add_epochs  # type: ignore[method-assign]


def commit_answered_before_it_is_stored() -> None:
    """A group's commit is stored a moment after its answer."""
    commit = GroupCoordinator.commit

    async def commit_later(self: GroupCoordinator, *request: Any) -> None:
        async def store_it() -> None:
            await asyncio.sleep(_PUT_OFF_S)
            await commit(self, *request)

        asyncio.ensure_future(store_it())

    GroupCoordinator.commit = commit_later  # type: ignore[method-assign]


def refused_but_appended() -> None:
    """Now and then a request is appended, and answered as refused."""
    append, count = Producing._append, 0

    def append_and_refuse(self: Producing, request: bytes, topics: Any) -> Any:
        nonlocal count
        answer = append(self, request, topics)
        count += 1
        if count % 40 == 0:
            raise error(Reason.DISK_FULL, "nothing was appended")
        return answer

    Producing._append = append_and_refuse  # type: ignore[method-assign]


def appended_twice() -> None:
    """Now and then a request is appended twice, as if a retry had not been known."""
    append, count = Producing._append, 0

    def append_again(self: Producing, request: bytes, topics: Any) -> Any:
        nonlocal count
        count += 1
        if count % 40 == 0:
            append(self, request, topics)
        return append(self, request, topics)

    Producing._append = append_again  # type: ignore[method-assign]


def producers_ignored() -> None:
    """A request of an idempotent producer is appended whenever it comes."""
    append = Producing._append

    def append_as_plain(self: Producing, request: bytes, topics: Any) -> Any:
        message = pb.ProduceMessageRequest.FromString(request)
        message.ClearField("producer")
        return append(self, message.SerializeToString(), topics)

    Producing._append = append_as_plain  # type: ignore[method-assign]


def producers_forgotten() -> None:
    """A start looks neither for a snapshot of producers nor for their batches."""
    recovery._recover_producers = lambda place, producers, start, found: None
    recovery._read_snapshot = lambda place, producers: None  # type: ignore[assignment]


def log_start_not_stored() -> None:
    """Retention removes files, and the metadata is not told where the log begins."""

    async def set_log_start(self: MetadataStore, topic_id: int, partition: int, offset: int) -> None:
        return None

    MetadataStore.set_log_start = set_log_start  # type: ignore[method-assign]


def appends_stay_refused() -> None:
    """A partition whose write failed for want of room is not opened again."""

    async def resume(self: Broker) -> None:
        return None

    Broker._resume = resume  # type: ignore[method-assign]


def untyped_refusals() -> None:
    """A full disk is told of as an internal error."""
    # Both what waits for its write as the disk gets full, and what is refused because it is full.
    for name in ("produce", "produce_to"):
        setattr(Producing, name, _untyped(getattr(Producing, name)))


def _untyped(method: Callable[..., Awaitable[bytes]]) -> Callable[..., Awaitable[bytes]]:
    async def result_or_bug(*arguments: Any) -> bytes:
        try:
            return await method(*arguments)
        except TakhinError as problem:
            if problem.reason is not Reason.DISK_FULL:
                raise
            raise RuntimeError("something went wrong") from problem

    return result_or_bug


def ends_when_the_disk_is_full() -> None:
    """The process does not live through a full disk."""

    def end(self: Broker, partition: Any) -> None:
        os._exit(1)

    Broker._on_halt = end  # type: ignore[method-assign]


def stale_commits_taken() -> None:
    """A commit is taken from whoever sends it: from one who had the partition once, or is no member any more."""

    def check_nothing(self: Any, *_: Any) -> None:
        return None

    GroupCoordinator.check_committer = check_nothing  # type: ignore[method-assign]
    Group.check_owned = check_nothing  # type: ignore[method-assign]


def records_skipped_when_moved() -> None:
    """A partition that moves begins behind the record that comes next."""
    find = StartOffsets.find

    async def find_too_far(self: StartOffsets, partition: Any, committed: int | None) -> int:
        offset = await find(self, partition, committed)
        return offset if committed is None else min(offset + 1, partition.written_offset)

    StartOffsets.find = find_too_far  # type: ignore[method-assign]


PLANTED: dict[str, Callable[[], None]] = {
    bug.__name__: bug
    for bug in (
        answered_before_the_write, one_batch_too_many, epoch_not_raised, commit_answered_before_it_is_stored,
        refused_but_appended, appended_twice, producers_ignored, producers_forgotten, log_start_not_stored,
        appends_stay_refused, untyped_refusals, ends_when_the_disk_is_full, stale_commits_taken,
        records_skipped_when_moved,
    )
}


if __name__ == "__main__":
    PLANTED[sys.argv[1]]()
    sys.exit(server.main(sys.argv[2:]))
