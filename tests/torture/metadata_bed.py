"""The metadata database, as kill -9 leaves it in the middle of its life, and what a start makes of damaged copies."""

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path

from takhin.broker.metadata import MetadataStore, OffsetCommit, OffsetReset
from takhin.errors import StartError, TakhinError
from tests.torture.bed import Files, scratch

_GROUPS_AT_MOST = 1000
NOW_MS = 1_700_000_000_000

# Everything that was committed, in a form that can be compared.
Snapshot = tuple[object, ...]


@dataclass(frozen=True)
class MetadataBase:
    """meta.db and its WAL as they were left, and what the database held after each of its commits, from old to new.

    values_may_differ: nothing there tells when a value was another.
    """

    files: Files
    history: list[Snapshot]
    values_may_differ: bool = False


async def snapshot_of(store: MetadataStore) -> Snapshot:
    """All that a broker reads from the database."""
    topics = await store.load_topics()
    groups = [(name, sorted((await store.group_offsets(name)).items())) for name in await store.list_groups()]
    return (
        [(row.id, row.name, row.num_partitions, row.created_ms, row.configs, row.log_starts, row.epochs)
         for row in topics],
        groups, await store.deleted_topics(),
    )


def make_metadata(seed: int = 1, topics: int = 18, stopped: bool = False) -> MetadataBase:
    """Topics, configs, commits, resets, updates, log starts, epochs, deletions; then killed, or stopped in order."""
    history: list[Snapshot] = []

    async def live(path: Path) -> Files:
        store = MetadataStore(str(path / "meta.db"), lambda message: None)
        store.open()
        history.append(await snapshot_of(store))

        async def note() -> None:
            history.append(await snapshot_of(store))

        await store.begin_run()
        for number in range(topics):
            name = f"topic-{number}"
            configs = {"retention.ms": str(number * 1000)} if number % 3 == 0 else {}
            row = await store.create_topic(name, number % 4 + 1, configs, NOW_MS + number)
            await note()
            if number % 5 == 4:
                await store.set_log_start(row.id, 0, 100 + seed)
                await note()
            if number % 7 == 6:
                await store.add_epochs([(row.id, 0, 2, 5), (row.id, 0, 3, 900)])
                await note()
            commits = [OffsetCommit(row.id, name, 0, 10 * number)]
            await store.commit_offsets(f"group-{number % 8}", commits, NOW_MS, _GROUPS_AT_MOST)
            await note()
            if number % 6 == 5:
                resets = [OffsetReset(row.id, name, 0, lambda committed: (committed or 0) // 2)]
                await store.reset_offsets(f"group-{number % 8}", resets, NOW_MS, _GROUPS_AT_MOST)
                await note()
                await store.update_topic(row.id, row.num_partitions + 2, {"segment.ms": str(number)}, 1)
                await note()
            if number % 11 == 10:
                await store.delete_topic(row.id)
                await note()
        if stopped:
            await store.end_run()
            await store.close()
        left = {each.name: each.read_bytes() for each in path.iterdir()}
        await store.close()
        return left

    with scratch() as path:
        files = asyncio.run(live(path))
    return MetadataBase(files, history)


class MetadataBed:
    """A place to start the metadata of damaged copies in."""

    def __init__(self, directory: Path):
        self._place = directory / "metadata"
        self.loop = asyncio.new_event_loop()

    def close(self) -> None:
        self.loop.close()

    def start(self, files: Files) -> Snapshot | str:
        """What a broker would read from these files; or why it does not start, in its words. Raises AssertionError when
        the database fails once it is open: what SQLite can't use is to be refused by then."""
        shutil.rmtree(self._place, ignore_errors=True)
        self._place.mkdir(parents=True)
        for name, data in files.items():
            (self._place / name).write_bytes(data)
        return self.loop.run_until_complete(self._start())

    async def _start(self) -> Snapshot | str:
        failures: list[str] = []
        store = MetadataStore(str(self._place / "meta.db"), failures.append)
        try:
            store.open()
        except StartError as refusal:
            return str(refusal)
        try:
            await store.begin_run()
            return await snapshot_of(store)
        except TakhinError as refusal:
            return refusal.message
        finally:
            await store.close()
            assert not failures, failures
