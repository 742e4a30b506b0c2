"""The metadata store on real SQLite files: what it keeps, how it batches, and what faults do to it."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from takhin.broker import sqlite_thread
from takhin.broker.sqlite_files import sum_path
from takhin.broker.metadata import MAX_EPOCH, SCHEMA, MetadataStore, OffsetCommit, RunState, TopicRow
from takhin.errors import Reason, StartError, TakhinError

NOW_MS = 1_700_000_000_000
MANY_GROUPS = 1_000_000


def unexpected_failure(message: str) -> None:
    raise AssertionError(message)


def with_store(path: Path, scenario: Callable[[MetadataStore], Awaitable[None]]) -> None:
    """Runs the scenario on an open store, closes it, and verifies the whole file."""

    async def main() -> None:
        store = MetadataStore(str(path), unexpected_failure)
        store.open()
        try:
            await scenario(store)
        finally:
            await store.close()

    asyncio.run(main())
    verify(path)


def verify(path: Path) -> None:
    db = sqlite3.connect(path)
    try:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    finally:
        db.close()


async def refused(reason: Reason, operation: Awaitable[object]) -> TakhinError:
    with pytest.raises(TakhinError) as caught:
        await operation
    assert caught.value.reason is reason, caught.value
    return caught.value


async def new_topic(store: MetadataStore, name: str = "orders", num_partitions: int = 4) -> TopicRow:
    return await store.create_topic(name, num_partitions, {}, NOW_MS)


async def commit(store: MetadataStore, group: str, topic: TopicRow, *offsets: int) -> None:
    """Commits offsets[i] for partition i."""
    rows = [OffsetCommit(topic.id, topic.name, partition, offset) for partition, offset in enumerate(offsets)]
    await store.commit_offsets(group, rows, NOW_MS, MANY_GROUPS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "meta.db"


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[sqlite3.Connection]:
    """The stores' connections, usable from the test while their threads are idle."""
    made: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def connect_and_tell(path: str, **arguments: object) -> sqlite3.Connection:
        made.append(connect(path, **arguments, check_same_thread=False))
        return made[-1]

    monkeypatch.setattr(sqlite_thread.sqlite3, "connect", connect_and_tell)
    return made


class TestRuns:
    def test_the_first_start_is_epoch_1_and_clean(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            assert await store.begin_run() == RunState(epoch=1, was_clean=True)

        with_store(path, scenario)

    def test_only_an_unclean_end_raises_the_epoch(self, path: Path) -> None:
        seen: list[RunState] = []

        async def unclean(store: MetadataStore) -> None:
            seen.append(await store.begin_run())

        async def clean(store: MetadataStore) -> None:
            seen.append(await store.begin_run())
            await store.end_run()

        for scenario in (clean, clean, unclean, unclean, clean, clean):
            with_store(path, scenario)
        assert [(state.epoch, state.was_clean) for state in seen] == [
            (1, True), (1, True), (1, True), (2, False), (3, False), (3, True)
        ]

    def test_raise_epoch_passes_what_was_seen_and_what_is_stored(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            await store.begin_run()
            assert await store.raise_epoch(0) == 2
            assert await store.raise_epoch(41) == 42
            assert await store.raise_epoch(7) == 43
            await refused(Reason.INTERNAL_ERROR, store.raise_epoch(MAX_EPOCH))

        with_store(path, scenario)

        async def later(store: MetadataStore) -> None:
            assert (await store.begin_run()).epoch == 44

        with_store(path, later)


class TestTopics:
    def test_survive_a_restart(self, path: Path) -> None:
        configs = {"retention.ms": "-1", "segment.bytes": "4096"}
        made: list[TopicRow] = []

        async def scenario(store: MetadataStore) -> None:
            made.append(await store.create_topic("b.events", 3, configs, NOW_MS))
            made.append(await store.create_topic("a_orders", 1, {}, NOW_MS + 1))
            await store.set_log_start(made[0].id, 2, 70)
            await store.add_epochs([(made[0].id, 2, 1, 0), (made[0].id, 2, 4, 90), (made[0].id, 0, 4, 5)])

        with_store(path, scenario)

        async def later(store: MetadataStore) -> None:
            events = TopicRow(
                made[0].id,
                "b.events",
                3,
                NOW_MS,
                configs,
                log_starts={2: 70},
                epochs={0: [(4, 5)], 2: [(1, 0), (4, 90)]},
            )
            assert await store.load_topics() == [made[1], events]

        with_store(path, later)

    def test_the_same_name_twice(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            await new_topic(store)
            caught = await refused(Reason.TOPIC_EXISTS, store.create_topic("orders", 9, {"flush.ms": "5"}, NOW_MS))
            assert caught.metadata == {"topic": "orders"}
            assert "orders" in caught.message
            await new_topic(store, "Orders")  # names tell case apart
            assert [(topic.name, topic.num_partitions) for topic in await store.load_topics()] == [
                ("Orders", 4), ("orders", 4)
            ]

        with_store(path, scenario)

    def test_ids_are_never_reused(self, path: Path) -> None:
        seen: list[int] = []

        async def scenario(store: MetadataStore) -> None:
            for _ in range(3):
                topic = await new_topic(store)
                seen.append(topic.id)
                await store.delete_topic(topic.id)
                await store.forget_deleted(topic.id)
            assert await store.load_topics() == []

        for _ in range(3):
            with_store(path, scenario)
        assert len(seen) == 9
        assert seen == sorted(set(seen))

    def test_an_update_replaces_count_and_configs(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            kept = await store.create_topic("kept", 2, {"retention.ms": "1"}, NOW_MS)
            topic = await store.create_topic("orders", 2, {"retention.ms": "1", "flush.ms": "5"}, NOW_MS)
            await store.set_log_start(topic.id, 1, 3)
            await commit(store, "g", topic, 5)
            await store.update_topic(topic.id, 7, {"flush.ms": "6", "segment.ms": "9"}, NOW_MS)
            with pytest.raises(ValueError, match="has 7 partitions"):
                await store.update_topic(topic.id, 6, {}, NOW_MS)
            await refused(Reason.TOPIC_NOT_FOUND, store.update_topic(topic.id + 1, 7, {}, NOW_MS))
            assert await store.load_topics() == [
                kept,
                TopicRow(topic.id, "orders", 7, NOW_MS, {"flush.ms": "6", "segment.ms": "9"}, log_starts={1: 3}),
            ]
            # Whoever reads the topic begins new partitions at their beginning.
            assert await store.group_offsets("g") == {(topic.id, 0): 5} | {(topic.id, each): 0 for each in range(2, 7)}

        with_store(path, scenario)

    def test_deletion_takes_everything_of_the_topic_along_and_nothing_else(self, path: Path) -> None:
        kept_ids: list[int] = []

        async def scenario(store: MetadataStore) -> None:
            gone = await store.create_topic("gone", 2, {"retention.ms": "1"}, NOW_MS)
            kept = await new_topic(store, "kept")
            kept_ids.append(kept.id)
            for topic in (gone, kept):
                await store.set_log_start(topic.id, 0, 3)
                await store.add_epochs([(topic.id, 0, 1, 0)])
            await commit(store, "both", gone, 5, 6)
            await commit(store, "both", kept, 7)
            await commit(store, "only-gone", gone, 8)
            await store.delete_topic(gone.id)
            assert [topic.name for topic in await store.load_topics()] == ["kept"]
            assert await store.group_offsets("both") == {(kept.id, 0): 7}
            assert await store.list_groups() == ["both"]
            assert await store.deleted_topics() == [gone.id]
            for operation in (
                store.delete_topic(gone.id),
                store.set_log_start(gone.id, 0, 4),
                store.add_epochs([(kept.id, 1, 2, 0), (gone.id, 0, 2, 0)]),
                commit(store, "both", gone, 9),
                commit(store, "new", gone, 9),
            ):
                await refused(Reason.TOPIC_NOT_FOUND, operation)
            assert 1 not in (await store.load_topics())[0].epochs
            assert await store.list_groups() == ["both"]

        with_store(path, scenario)
        db = sqlite3.connect(path)
        schema = db.execute("SELECT name FROM sqlite_schema WHERE sql LIKE '%topic_id INTEGER NOT%'")
        tables = [row[0] for row in schema]
        assert len(tables) == 4
        for table in tables:
            assert {row[0] for row in db.execute(f"SELECT topic_id FROM {table}")} <= set(kept_ids), table
        db.close()

    def test_deleted_ids_stay_until_forgotten(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            for name in ("a", "b"):
                await store.delete_topic((await new_topic(store, name)).id)

        with_store(path, scenario)

        async def later(store: MetadataStore) -> None:
            first, second = await store.deleted_topics()
            await store.forget_deleted(first)
            await store.forget_deleted(first)
            assert await store.deleted_topics() == [second]

        with_store(path, later)


class TestLogStartsAndEpochs:
    def partition_after(self, path: Path, *operations: Callable[[MetadataStore, int], Awaitable[None]]) -> TopicRow:
        found: list[TopicRow] = []

        async def scenario(store: MetadataStore) -> None:
            topic = await new_topic(store)
            for operation in operations:
                await operation(store, topic.id)
            found.extend(await store.load_topics())

        with_store(path, scenario)
        return found[0]

    @staticmethod
    def epochs(*rows: tuple[int, int]) -> Callable[[MetadataStore, int], Awaitable[None]]:
        return lambda store, topic_id: store.add_epochs([(topic_id, 1, epoch, start) for epoch, start in rows])

    @staticmethod
    def log_start(offset: int) -> Callable[[MetadataStore, int], Awaitable[None]]:
        return lambda store, topic_id: store.set_log_start(topic_id, 1, offset)

    def test_the_log_start_never_moves_back(self, path: Path) -> None:
        topic = self.partition_after(path, self.log_start(10), self.log_start(30), self.log_start(20))
        assert topic.log_starts == {1: 30}

    @pytest.mark.parametrize(
        ("log_start", "left"),
        [
            (9, [(1, 10), (2, 20), (5, 30)]),
            (10, [(1, 10), (2, 20), (5, 30)]),
            (19, [(1, 10), (2, 20), (5, 30)]),
            (20, [(2, 20), (5, 30)]),
            (29, [(2, 20), (5, 30)]),
            (30, [(5, 30)]),
            (1000, [(5, 30)]),
        ],
    )
    def test_the_log_start_prunes_epochs_that_ended(
        self, path: Path, log_start: int, left: list[tuple[int, int]]
    ) -> None:
        topic = self.partition_after(path, self.epochs((1, 10), (2, 20), (5, 30)), self.log_start(log_start))
        assert topic.epochs == {1: left}

    @pytest.mark.parametrize(
        ("added", "left"),
        [
            ((6, 40), [(1, 0), (2, 20), (5, 30), (6, 40)]),
            ((6, 30), [(1, 0), (2, 20), (6, 30)]),
            ((6, 25), [(1, 0), (2, 20), (6, 25)]),
            ((6, 0), [(6, 0)]),
            ((5, 30), [(1, 0), (2, 20), (5, 30)]),
            ((5, 35), [(1, 0), (2, 20), (5, 30)]),
        ],
    )
    def test_a_new_epoch_drops_those_of_which_nothing_is_left(
        self, path: Path, added: tuple[int, int], left: list[tuple[int, int]]
    ) -> None:
        topic = self.partition_after(path, self.epochs((1, 0), (2, 20), (5, 30)), self.epochs(added))
        assert topic.epochs == {1: left}

    @pytest.mark.parametrize("added", [(5, 29), (4, 40), (1, 0)])
    def test_epochs_that_contradict_what_is_stored(self, path: Path, added: tuple[int, int]) -> None:
        async def add(store: MetadataStore, topic_id: int) -> None:
            with pytest.raises(ValueError, match="is in epoch 5 since offset 30"):
                await store.add_epochs([(topic_id, 0, 9, 9), (topic_id, 1, *added)])

        topic = self.partition_after(path, self.epochs((1, 0), (5, 30)), add)
        assert topic.epochs == {1: [(1, 0), (5, 30)]}


class TestGroups:
    def test_commits_survive_a_restart(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            topic = await new_topic(store)
            await commit(store, "b", topic, 1, 2, 3)
            await commit(store, "a", topic, 0)
            await commit(store, "b", topic, 1, 9)

        with_store(path, scenario)

        async def later(store: MetadataStore) -> None:
            assert await store.list_groups() == ["a", "b"]
            assert await store.group_offsets("b") == {(1, 0): 1, (1, 1): 9, (1, 2): 3}

        with_store(path, later)

    def test_a_commit_never_goes_back_and_is_all_or_none(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            topic = await new_topic(store)
            await commit(store, "g", topic, 10, 20)
            caught = await refused(Reason.OFFSET_BEHIND_COMMITTED, commit(store, "g", topic, 15, 19))
            assert caught.metadata == {
                "group_id": "g", "topic": "orders", "partition": "1", "offset": "19", "committed_offset": "20"
            }
            for word in ("orders", "partition 1", "19", "20"):
                assert word in caught.message
            assert await store.group_offsets("g") == {(topic.id, 0): 10, (topic.id, 1): 20}

        with_store(path, scenario)

    def test_group_limit(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            topic = await new_topic(store)
            row = OffsetCommit(topic.id, topic.name, 0, 1)
            await store.commit_offsets("a", [row], NOW_MS, 2)
            await store.commit_offsets("b", [row], NOW_MS, 2)
            await refused(Reason.GROUP_LIMIT, store.commit_offsets("c", [row], NOW_MS, 2))
            await store.commit_offsets("b", [row], NOW_MS, 2)
            await store.delete_group("a")
            await store.commit_offsets("c", [row], NOW_MS, 2)
            assert await store.list_groups() == ["b", "c"]

        with_store(path, scenario)

    def test_unknown_groups(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            topic = await new_topic(store)
            await commit(store, "g", topic, 5)
            await store.delete_group("g")
            await refused(Reason.GROUP_NOT_FOUND, store.delete_group("g"))
            await refused(Reason.GROUP_NOT_FOUND, store.group_offsets("g"))
            await commit(store, "g", topic, 2)  # a new group: nothing of the old one is left
            assert await store.group_offsets("g") == {(topic.id, 0): 2}

        with_store(path, scenario)

    def test_concurrent_commits_end_at_the_highest(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            topic = await new_topic(store)
            offsets = [(7 * i) % 101 for i in range(101)]
            commits = (commit(store, "g", topic, each) for each in offsets)
            results = await asyncio.gather(*commits, return_exceptions=True)
            highest = -1
            for offset, result in zip(offsets, results, strict=True):
                if offset >= highest:
                    assert result is None
                    highest = offset
                else:
                    assert isinstance(result, TakhinError) and result.reason is Reason.OFFSET_BEHIND_COMMITTED
            assert await store.group_offsets("g") == {(topic.id, 0): 100}

        with_store(path, scenario)


class TestBatching:
    def test_what_queues_up_during_a_commit_shares_the_next(self, path: Path) -> None:
        statements: list[str] = []
        go_on = threading.Event()

        def trace(statement: str) -> None:
            statements.append(statement)
            if statement.startswith("BEGIN"):
                go_on.wait(10)

        async def scenario(store: MetadataStore) -> None:
            topic = await new_topic(store)
            # On the store's own thread: SQLite's lock and the interpreter's are taken there in one order only.
            await store._db.read(lambda db: db.set_trace_callback(trace))
            first = asyncio.create_task(commit(store, "g", topic, 0))
            while not statements:
                await asyncio.sleep(0.001)
            rest = [asyncio.create_task(commit(store, "g", topic, offset)) for offset in (1, 2, 1, 3, 4)]
            await asyncio.sleep(0)
            go_on.set()
            results = await asyncio.gather(first, *rest, return_exceptions=True)
            await store._db.read(lambda db: db.set_trace_callback(None))
            assert [isinstance(result, TakhinError) for result in results] == [False, False, False, True, False, False]
            assert await store.group_offsets("g") == {(topic.id, 0): 4}

        with_store(path, scenario)
        assert statements.count("BEGIN IMMEDIATE") == statements.count("COMMIT") == 2
        assert statements.count("ROLLBACK TO operation") == 1

    def test_a_bug_in_one_operation_harms_no_other(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            results = await asyncio.gather(
                new_topic(store, "a"),
                store.create_topic("b", 0, {}, NOW_MS),  # a CHECK of the table refuses it
                store.create_topic("c", 1, {}, 1 << 64),  # no SQLite integer
                store.create_topic("d", "many", {}, NOW_MS),  # type: ignore[arg-type]
                new_topic(store, "e"),
                return_exceptions=True,
            )
            assert [type(result) for result in results] == [
                TopicRow, sqlite3.IntegrityError, OverflowError, sqlite3.IntegrityError, TopicRow
            ]
            assert [topic.name for topic in await store.load_topics()] == ["a", "e"]

        with_store(path, scenario)

    def test_a_cancelled_caller_leaves_the_store_working(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            task = asyncio.create_task(new_topic(store, "a"))
            await asyncio.sleep(0)
            task.cancel()
            await new_topic(store, "b")
            assert task.cancelled()
            assert [topic.name for topic in await store.load_topics()] == ["a", "b"]

        with_store(path, scenario)

    def test_close_finishes_what_is_queued_and_refuses_what_comes_after(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            tasks = [asyncio.create_task(new_topic(store, f"t{i}")) for i in range(20)]
            await asyncio.sleep(0)
            await store.close()
            assert len({topic.id for topic in await asyncio.gather(*tasks)}) == 20
            await refused(Reason.DRAINING, store.load_topics())

        with_store(path, scenario)
        assert sorted(each.name for each in path.parent.iterdir()) == ["meta.db", "meta.db.sum"]  # no WAL is left

    def test_the_wal_stays_small(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite_thread, "CHECKPOINT_ROWS", 40)
        sizes: list[int] = []

        async def scenario(store: MetadataStore) -> None:
            topic = await new_topic(store)
            for offset in range(400):
                await commit(store, "g", topic, offset)
                sizes.append(os.path.getsize(f"{path}-wal"))

        with_store(path, scenario)
        assert max(sizes) < 100 * 4096


class TestFaults:
    def test_a_full_disk_refuses_changes_until_there_is_room(
        self, path: Path, connections: list[sqlite3.Connection]
    ) -> None:
        # What SQLite says at its page limit is what it says when the disk is full: SQLITE_FULL.
        async def scenario(store: MetadataStore) -> None:
            topic = await new_topic(store)
            await commit(store, "g", topic, 5)
            connections[0].execute("PRAGMA max_page_count=1")  # as low as it goes: what is used now
            big = {"k" * 3000: "v" * 3000}
            results = await asyncio.gather(
                *(store.create_topic(f"t{i}", 1, big, NOW_MS) for i in range(5)),
                store.group_offsets("g"),
                store.load_topics(),
                return_exceptions=True,
            )
            reasons = [result.reason for result in results if isinstance(result, TakhinError)]
            assert reasons == [Reason.DISK_FULL] * 5
            assert results[5] == {(topic.id, 0): 5}  # reads go on
            assert results[6] == [topic]
            await refused(Reason.DISK_FULL, store.create_topic("t", 1, big, NOW_MS))
            connections[0].execute("PRAGMA max_page_count=1000000")
            made = await store.create_topic("t", 1, big, NOW_MS)
            assert await store.load_topics() == [topic, made]

        with_store(path, scenario)

    def test_what_frees_space_still_works_on_a_disk_that_is_really_full(self, tmp_path: Path) -> None:
        # A small tmpfs in a mount namespace of its own: it is gone with the process.
        isolated = ["unshare", "--user", "--map-root-user", "--mount"]
        mounted = f"mount -t tmpfs -o size=2000k none {tmp_path}"
        try:
            subprocess.run([*isolated, "sh", "-c", mounted], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("may not mount a tmpfs here")
        code = textwrap.dedent(
            """
            import asyncio, os, sys
            from takhin.broker.metadata import MetadataStore
            from takhin.errors import Reason, TakhinError

            async def main():
                store = MetadataStore(sys.argv[1] + "/meta.db", print)
                store.open()
                topics = [await store.create_topic(f"t{i}", 1, {"x": "y" * 50}, 0) for i in range(100)]
                filler = open(sys.argv[1] + "/filler", "wb", buffering=0)
                try:
                    while True:
                        filler.write(bytes(4096))
                except OSError:
                    filler.close()
                for offset in range(1000):
                    await store.set_log_start(topics[0].id, 0, offset)
                for topic in topics[:20]:
                    await store.delete_topic(topic.id)
                try:
                    for i in range(100):
                        await store.create_topic(f"big-{i}", 1, {"x": "y" * 100_000}, 0)
                except TakhinError as error:
                    assert error.reason is Reason.DISK_FULL, error
                else:
                    raise AssertionError("the disk was not full")
                left = len(await store.load_topics())
                os.unlink(sys.argv[1] + "/filler")
                await store.create_topic("last", 1, {"x": "y" * 100_000}, 0)
                assert len(await store.load_topics()) == left + 1
                await store.close()

            asyncio.run(main())
            """
        )
        run = f'{mounted} && exec "$@"'
        done = subprocess.run(
            [*isolated, "sh", "-c", run, "sh", sys.executable, "-c", code, str(tmp_path)],
            capture_output=True, text=True, timeout=60,
        )
        assert (done.returncode, done.stdout) == (0, ""), done.stderr

    def test_kill_9_loses_nothing_that_was_acknowledged(self, path: Path) -> None:
        code = textwrap.dedent(
            """
            import asyncio, sys
            from takhin.broker.metadata import MetadataStore, OffsetCommit

            async def committer(store, topic, name):
                for offset in range(1_000_000):
                    await store.commit_offsets(name, [OffsetCommit(topic.id, "t", 0, offset)], 0, 100)
                    print(name, offset, flush=True)

            async def main():
                store = MetadataStore(sys.argv[1], print)
                store.open()
                await store.begin_run()
                topic = await store.create_topic("t", 1, {}, 0)
                await asyncio.gather(*(committer(store, topic, f"g{i}") for i in range(4)))

            asyncio.run(main())
            """
        )
        child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        acknowledged: dict[str, int] = {}
        for line in child.stdout:
            name, offset = line.split()
            acknowledged[name] = int(offset)
            if len(acknowledged) == 4 and min(acknowledged.values()) >= 100:
                break
        child.send_signal(signal.SIGKILL)
        for line in child.stdout.read().splitlines(keepends=True):
            if line.endswith("\n"):
                name, offset = line.split()
                acknowledged[name] = int(offset)
        child.wait()
        child.stdout.close()
        assert child.returncode == -signal.SIGKILL

        async def later(store: MetadataStore) -> None:
            assert await store.begin_run() == RunState(epoch=2, was_clean=False)
            for name, offset in acknowledged.items():
                # One more may have been committed without having been told.
                assert (await store.group_offsets(name))[1, 0] in (offset, offset + 1)

        with_store(path, later)

    def test_an_io_error_stops_the_store_and_tells_the_broker_once(self, path: Path) -> None:
        # A real one: the kernel refuses to let the child's WAL grow (EFBIG).
        code = textwrap.dedent(
            """
            import asyncio, resource, sys
            from takhin.broker.metadata import MetadataStore
            from takhin.errors import TakhinError

            async def main():
                told = []
                store = MetadataStore(sys.argv[1], told.append)
                store.open()
                await store.create_topic("kept", 1, {}, 0)
                await store.load_topics()  # answered when the thread is through with all that came before
                resource.setrlimit(resource.RLIMIT_FSIZE, (8192, -1))
                changes = [store.create_topic(name, 1, {}, 0) for name in "ab"]
                first = await asyncio.gather(*changes, return_exceptions=True)
                resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
                later = await asyncio.gather(store.load_topics(), store.end_run(), return_exceptions=True)
                await store.close()
                assert all(isinstance(each, TakhinError) for each in first + later), first + later
                print([each.reason.value for each in first + later])
                print(first[0].message)
                print(later[0].message)
                print(told)

            asyncio.run(main())
            """
        )
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        reasons, first, later, told = done.stdout.splitlines()
        assert reasons == str(["INTERNAL_ERROR"] * 4)
        assert first.endswith("whether this was stored is unknown")
        assert later.endswith("nothing was changed")
        assert told.count("SQLITE_IOERR_WRITE") == 1 and str(path) in told

        async def afterwards(store: MetadataStore) -> None:
            assert [topic.name for topic in await store.load_topics()] == ["kept"]

        with_store(path, afterwards)

    def test_the_connection_is_set_to_sync_every_commit(
        self, path: Path, connections: list[sqlite3.Connection]
    ) -> None:
        async def scenario(store: MetadataStore) -> None:
            await new_topic(store)
            pragmas = {
                name: connections[0].execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous", "foreign_keys", "locking_mode")
            }
            assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "locking_mode": "exclusive"}

        with_store(path, scenario)


class TestOpening:
    def refusal(self, path: Path) -> str:
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(StartError) as caught:
            MetadataStore(str(path), unexpected_failure).open()
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
        if before:
            assert path.read_bytes() == before  # what can't be used is left as it is
        return str(caught.value)

    def filled(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            for i in range(50):
                topic = await store.create_topic(f"topic-{i}", 4, {"x": "y" * 200}, NOW_MS)
                await commit(store, f"group-{i}", topic, 1, 2, 3)

        with_store(path, scenario)
        # Here it is about what SQLite finds.
        os.unlink(sum_path(str(path)))

    def test_not_a_database(self, path: Path) -> None:
        path.write_bytes(b"these are not the pages you are looking for" * 200)
        assert "is not an SQLite database" in self.refusal(path)

    def test_damaged_pages(self, path: Path) -> None:
        self.filled(path)
        intact = path.read_bytes()
        # Each b-tree page's header in turn.
        for start in range(4096, len(intact), 4096):
            path.write_bytes(intact[:start] + b"\xff" * 64 + intact[start + 64 :])
            assert "is damaged" in self.refusal(path)

    def test_a_database_cut_short(self, path: Path) -> None:
        self.filled(path)
        os.truncate(path, 3 * 4096)
        assert "is damaged" in self.refusal(path)

    def test_a_newer_format(self, path: Path) -> None:
        self.filled(path)
        db = sqlite3.connect(path)
        db.execute(f"PRAGMA user_version={SCHEMA.version + 1}")
        db.close()
        refusal = self.refusal(path)
        assert "a newer Takhin" in refusal and str(SCHEMA.version + 1) in refusal

    @pytest.mark.parametrize("marks", ["", "PRAGMA application_id=77", f"PRAGMA user_version={SCHEMA.version}"])
    def test_somebody_elses_database(self, path: Path, marks: str) -> None:
        db = sqlite3.connect(path)
        db.executescript(f"CREATE TABLE theirs (x); {marks};")
        db.close()
        assert "not one of Takhin's" in self.refusal(path)

    def test_a_directory_or_a_missing_one(self, tmp_path: Path) -> None:
        assert "cannot be opened" in self.refusal(tmp_path)
        assert "cannot be opened: No such file or directory" in self.refusal(tmp_path / "nowhere" / "meta.db")

    def test_open_in_another_process(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite_thread, "LOCK_WAIT_S", 0.05)

        async def scenario(store: MetadataStore) -> None:
            assert "is open in another process" in self.refusal(path)
            await new_topic(store)

        with_store(path, scenario)

    def test_an_empty_file_is_a_new_database(self, path: Path) -> None:
        # What a first start that was killed at once leaves behind.
        path.touch()

        async def scenario(store: MetadataStore) -> None:
            assert await store.begin_run() == RunState(epoch=1, was_clean=True)

        with_store(path, scenario)

    def test_closing_what_was_never_open(self, path: Path) -> None:
        path.write_bytes(b"no database" * 1000)
        store = MetadataStore(str(path), unexpected_failure)
        asyncio.run(store.close())
        self.refusal(path)
        asyncio.run(store.close())
