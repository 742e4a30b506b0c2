"""The metadata store's groups: resets, and which are removed because nobody uses them."""

import sqlite3
from pathlib import Path

import pytest

from takhin.broker.metadata import (
    SCHEMA,
    Committed,
    MetadataStore,
    OffsetCommit,
    OffsetReset,
    RunState,
    TopicRow,
)
from takhin.cli.metadata_view import read_metadata
from takhin.errors import Reason, error
from tests.broker.test_metadata import MANY_GROUPS, NOW_MS, commit, new_topic, refused, with_store
from tests.format.make_golden import GOLDEN


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "meta.db"


class TestResets:
    def resets(self, topic: TopicRow, *offsets: int) -> list[OffsetReset]:
        return [
            OffsetReset(topic.id, topic.name, partition, lambda _, offset=offset: offset)
            for partition, offset in enumerate(offsets)
        ]

    def test_go_back_and_tell_what_was(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            topic = await new_topic(store)
            await commit(store, "g", topic, 5)
            assert await store.group_commits("g") == {(topic.id, 0): Committed(5, NOW_MS)}
            later_ms = NOW_MS + 7
            dry = await store.reset_offsets("g", self.resets(topic, 2, 4), later_ms, MANY_GROUPS, dry_run=True)
            assert dry == [(5, 2), (None, 4)]
            assert await store.group_commits("g") == {(topic.id, 0): Committed(5, NOW_MS)}
            assert await store.reset_offsets("g", self.resets(topic, 2, 4), later_ms, MANY_GROUPS) == dry
            assert await store.group_commits("g") == {
                (topic.id, 0): Committed(2, later_ms), (topic.id, 1): Committed(4, later_ms)}
            await refused(Reason.OFFSET_BEHIND_COMMITTED, commit(store, "g", topic, 1))
            await commit(store, "g", topic, 3)

        with_store(path, scenario)

    def test_all_or_none(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            topic, gone = await new_topic(store), await new_topic(store, "gone")
            await store.delete_topic(gone.id)
            await commit(store, "g", topic, 5)

            def refuse(committed: int | None) -> int:
                raise error(Reason.NO_COMMITTED_OFFSET, "no")

            bad = OffsetReset(topic.id, topic.name, 1, refuse)
            for group in "g", "new":
                reset = store.reset_offsets(group, [*self.resets(topic, 2), bad], NOW_MS, MANY_GROUPS)
                await refused(Reason.NO_COMMITTED_OFFSET, reset)
                reset = store.reset_offsets(
                    group, self.resets(topic, 2) + self.resets(gone, 2), NOW_MS, MANY_GROUPS)
                caught = await refused(Reason.TOPIC_NOT_FOUND, reset)
                assert caught.metadata == {"topic": "gone"}
            assert await store.group_offsets("g") == {(topic.id, 0): 5}
            assert await store.list_groups() == ["g"]

        with_store(path, scenario)

    def test_a_new_group_counts(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            topic = await new_topic(store)
            assert await store.reset_offsets("a", [], NOW_MS, 1) == []
            assert await store.list_groups() == [], "a group without commits is none"
            await store.reset_offsets("a", self.resets(topic, 2), NOW_MS, 1)
            for dry_run in True, False:
                await refused(
                    Reason.GROUP_LIMIT,
                    store.reset_offsets("b", self.resets(topic, 2), NOW_MS, 1, dry_run=dry_run))
            await store.reset_offsets("a", self.resets(topic, 1), NOW_MS, 1)
            assert await store.group_offsets("a") == {(topic.id, 0): 1}

        with_store(path, scenario)


class TestExpiry:
    def expired(self, path: Path, in_use: tuple[str, ...], now_ms: int, before_ms: int) -> list[str]:
        found: list[str] = []

        async def scenario(store: MetadataStore) -> None:
            found.extend(await store.expire_groups(in_use, now_ms, before_ms))

        with_store(path, scenario)
        return found

    def test_by_the_newest_commit_of_the_group(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            topic = await new_topic(store)
            await commit(store, "old", topic, 1, 2)
            await commit(store, "both", topic, 1, 2)
            rows = [OffsetCommit(topic.id, topic.name, 1, 3)]
            await store.commit_offsets("both", rows, NOW_MS + 5, MANY_GROUPS)
            assert await store.expire_groups([], NOW_MS + 9, NOW_MS) == []
            assert await store.expire_groups([], NOW_MS + 9, NOW_MS + 1) == ["old"]
            assert await store.list_groups() == ["both"]
            assert await store.group_offsets("both") == {(topic.id, 0): 1, (topic.id, 1): 3}, "as a whole"
            assert await store.expire_groups([], NOW_MS + 9, NOW_MS + 6) == ["both"]
            assert await store.list_groups() == []

        with_store(path, scenario)

    def test_members_keep_it_and_are_remembered(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            topic = await new_topic(store)
            for group in "a", "b", "c":
                await commit(store, group, topic, 1)

        with_store(path, scenario)
        assert self.expired(path, ("a", "b", "unknown"), NOW_MS + 50, NOW_MS) == []
        assert self.expired(path, ("b",), NOW_MS + 90, NOW_MS + 50) == ["c"]
        assert self.expired(path, (), NOW_MS + 99, NOW_MS + 50) == []
        assert self.expired(path, (), NOW_MS + 99, NOW_MS + 51) == ["a"]
        assert self.expired(path, ("b",), NOW_MS - 99, NOW_MS + 999) == [], "used now, whatever the clock says"
        assert self.expired(path, (), NOW_MS, NOW_MS - 98) == []
        assert self.expired(path, (), NOW_MS, NOW_MS + 1) == ["b"]

    def test_a_reset_is_use(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            topic = await new_topic(store)
            await commit(store, "g", topic, 1)
            resets = [OffsetReset(topic.id, topic.name, 0, lambda _: 0)]
            await store.reset_offsets("g", resets, NOW_MS + 5, MANY_GROUPS, dry_run=True)
            await store.reset_offsets("g", resets, NOW_MS + 5, MANY_GROUPS)
            assert await store.expire_groups([], NOW_MS + 5, NOW_MS + 5) == []

        with_store(path, scenario)


class TestMigration:
    def test_a_database_of_format_1(self, path: Path) -> None:
        path.write_bytes((GOLDEN / "metadata_v1.db").read_bytes())
        db = sqlite3.connect(path)
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        db.close()

        async def scenario(store: MetadataStore) -> None:
            assert await store.begin_run() == RunState(epoch=7, was_clean=True)
            events, orders = await store.load_topics()
            assert events == TopicRow(3, "events", 1, NOW_MS + 2)
            assert orders == TopicRow(
                1, "orders", 3, NOW_MS, {"retention.ms": "-1", "segment.bytes": "4096"}, {2: 70},
                {0: [(4, 5)], 2: [(1, 0), (4, 90)]})
            assert await store.deleted_topics() == [2]
            assert await store.list_groups() == ["größe/☃", "readers"]
            assert await store.group_commits("readers") == {
                (1, 0): Committed(7, NOW_MS + 10), (3, 0): Committed(1, NOW_MS + 10)}
            assert await store.expire_groups(["readers"], NOW_MS + 99, NOW_MS + 21) == ["größe/☃"]

        with_store(path, scenario)

        async def again(store: MetadataStore) -> None:
            assert await store.expire_groups([], NOW_MS + 99, NOW_MS + 99) == []

        with_store(path, again)

    def test_tools_read_format_1_and_leave_it_so(self, tmp_path: Path) -> None:
        data = (GOLDEN / "metadata_v1.db").read_bytes()
        (tmp_path / "meta.db").write_bytes(data)
        view = read_metadata(str(tmp_path))
        assert view is not None
        assert [row.name for row in view.topics] == ["events", "orders"]
        assert view.commits == {(1, 0): (7, "readers"), (1, 2): (95, "größe/☃"), (3, 0): (1, "readers")}
        assert (tmp_path / "meta.db").read_bytes() == data

    def test_a_migrated_database_is_as_a_new_one(self, tmp_path: Path) -> None:
        def shape(path: Path) -> list[tuple[object, ...]]:
            async def nothing(store: MetadataStore) -> None:
                pass

            with_store(path, nothing)
            db = sqlite3.connect(path)
            found = db.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name").fetchall()
            found += [db.execute(f"PRAGMA {mark}").fetchone() for mark in ("user_version", "application_id")]
            db.close()
            return found

        old = tmp_path / "old.db"
        old.write_bytes((GOLDEN / "metadata_v1.db").read_bytes())
        assert shape(old) == shape(tmp_path / "new.db")
        assert shape(old)[-2] == (SCHEMA.version,)
