"""The metadata store's groups: resets."""

from pathlib import Path

import pytest

from takhin.broker.metadata import Committed, MetadataStore, OffsetReset, TopicRow
from takhin.errors import Reason, error
from tests.broker.test_metadata import MANY_GROUPS, NOW_MS, commit, new_topic, refused, with_store


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
