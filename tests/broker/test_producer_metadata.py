"""What the metadata keeps of producers, and how a database from before them becomes one with them."""

import os
import sqlite3
from pathlib import Path

import pytest

from takhin.broker.metadata import MAX_EPOCH, SCHEMA, MetadataStore, ProducerName, RunState
from takhin.broker.sqlite_files import sum_path
from takhin.errors import Reason, StartError
from tests.broker.test_metadata import path as path
from tests.broker.test_metadata import refused, unexpected_failure, with_store


class TestProducers:
    def test_ids_are_never_reserved_twice(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            assert await store.load_producers() == (1, [])
            assert await store.reserve_producer_ids(1, 10) == 1
            assert await store.reserve_producer_ids(1, 10) == 11
            # Somebody has seen a higher one.
            assert await store.reserve_producer_ids(100, 0) == 100
            assert await store.load_producers() == (100, [])

        async def later(store: MetadataStore) -> None:
            assert await store.reserve_producer_ids(1, 1) == 100
            await refused(Reason.PRODUCER_LIMIT, store.reserve_producer_ids(1, 2**53))

        with_store(path, scenario)
        with_store(path, later)

    def test_a_name_keeps_its_id_and_raises_its_epoch(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            assert await store.raise_producer_epoch("a", 5, 100, 2) == ProducerName("a", 5, 1, 100)
            assert await store.raise_producer_epoch("a", 6, 200, 2) == ProducerName("a", 5, 2, 200)
            assert await store.raise_producer_epoch("b", 7, 300, 2) == ProducerName("b", 7, 1, 300)
            await refused(Reason.PRODUCER_LIMIT, store.raise_producer_epoch("c", 8, 400, 2))
            assert (await store.raise_producer_epoch("b", 8, 400, 2)).epoch == 2

        async def later(store: MetadataStore) -> None:
            _, names = await store.load_producers()
            assert sorted(names, key=lambda each: each.name) == [
                ProducerName("a", 5, 2, 200), ProducerName("b", 7, 2, 400)
            ]

        with_store(path, scenario)
        with_store(path, later)

    def test_a_name_whose_epoch_was_raised_meanwhile_does_not_expire(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            for name, producer_id in (("a", 1), ("b", 2), ("c", 3)):
                await store.raise_producer_epoch(name, producer_id, 100, 10)
            await store.raise_producer_epoch("b", 9, 200, 10)
            await store.update_producers([(3, 500)], [(1, 1), (2, 1)])
            _, names = await store.load_producers()
            assert sorted(names, key=lambda each: each.name) == [
                ProducerName("b", 2, 2, 200), ProducerName("c", 3, 1, 500)
            ]

        with_store(path, scenario)

    def test_a_name_without_an_epoch_left(self, path: Path) -> None:
        async def scenario(store: MetadataStore) -> None:
            await store.raise_producer_epoch("a", 5, 100, 2)

        with_store(path, scenario)
        with sqlite3.connect(path) as db:
            db.execute(f"UPDATE producer_names SET epoch = {MAX_EPOCH}")
        db.close()
        os.unlink(sum_path(str(path)))

        async def later(store: MetadataStore) -> None:
            await refused(Reason.PRODUCER_LIMIT, store.raise_producer_epoch("a", 6, 100, 2))

        with_store(path, later)


class TestMigration:
    """A database of version 3, as brokers without producers made it, is opened, and keeps all it holds."""

    def old(self, path: Path) -> None:
        db = sqlite3.connect(path)
        for statement in SCHEMA.statements:
            if not any(newer in statement for newer in ("producer", "transactions", "api_keys", "acls")):
                db.execute(statement)
        db.execute(f"PRAGMA application_id={SCHEMA.application_id}")
        db.execute("PRAGMA user_version=3")
        db.execute("INSERT INTO topics (name, num_partitions, created_ms) VALUES ('kept', 3, 1)")
        db.execute("UPDATE run SET epoch = 7")
        db.commit()
        db.close()

    def test_from_version_3(self, path: Path) -> None:
        self.old(path)

        async def scenario(store: MetadataStore) -> None:
            assert [(row.name, row.num_partitions) for row in await store.load_topics()] == [("kept", 3)]
            assert await store.begin_run() == RunState(epoch=7, was_clean=True)
            assert await store.load_producers() == (1, [])
            assert await store.raise_producer_epoch("a", 1, 100, 2) == ProducerName("a", 1, 1, 100)

        with_store(path, scenario)
        with_store(path, self.is_new)

    async def is_new(self, store: MetadataStore) -> None:
        assert len((await store.load_producers())[1]) == 1

    def test_both_ways_make_the_same_tables(self, path: Path, tmp_path: Path) -> None:
        self.old(path)
        new = tmp_path / "new.db"

        async def nothing(store: MetadataStore) -> None:
            pass

        with_store(path, nothing)
        with_store(new, nothing)
        found = []
        for each in (path, new):
            db = sqlite3.connect(each)
            found.append((
                sorted(db.execute("SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'")),
                db.execute("PRAGMA user_version").fetchone(),
            ))
            db.close()
        assert found[0] == found[1]

    def test_a_version_without_a_way(self, path: Path) -> None:
        self.old(path)
        db = sqlite3.connect(path)
        db.execute("PRAGMA user_version=0")
        db.close()
        store = MetadataStore(str(path), unexpected_failure)
        with pytest.raises(StartError, match="format 0, of another Takhin"):
            store.open()
