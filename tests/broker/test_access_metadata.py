"""API keys and ACLs in the metadata database, and a database of the format before."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from takhin.broker.access_control import AccessControl
from takhin.broker.access_store import ACCESS
from takhin.broker.acl import Acl, Effect, Operation, Pattern, Resource
from takhin.broker.metadata import SCHEMA, MetadataStore
from takhin.config import Limits
from takhin.errors import Reason, TakhinError
from tests.broker.test_producer_metadata import unexpected_failure

ENTRY = Acl("key:a", Effect.ALLOW, Operation.PRODUCE, Resource.TOPIC, Pattern.PREFIX, "orders-")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "meta.db"


def opened(path: Path) -> MetadataStore:
    store = MetadataStore(str(path), unexpected_failure)
    store.open()
    return store


def make_version_5(path: Path) -> None:
    db = sqlite3.connect(path)
    for statement in SCHEMA.statements:
        if statement not in ACCESS:
            db.execute(statement)
    db.execute(f"PRAGMA application_id={SCHEMA.application_id}")
    db.execute("PRAGMA user_version=5")
    db.execute("INSERT INTO topics (name, num_partitions, created_ms) VALUES ('kept', 3, 1)")
    db.commit()
    db.close()


@pytest.mark.parametrize("is_old", [False, True])
def test_what_is_kept(path: Path, is_old: bool) -> None:
    if is_old:
        make_version_5(path)

    async def first() -> str:
        store = opened(path)
        access = AccessControl(store, Limits(), lambda: 1000)
        await access.load()
        assert access.keys() == [] and access.entries() == []
        key, presented = await access.create_key("a", 500)
        assert (key.created_ms, key.expires_ms) == (1000, 1500)
        assert await access.create_acls([ENTRY]) == 1
        await store.close()
        return presented

    async def then(presented: str) -> None:
        store = opened(path)
        assert [row.name for row in await store.load_topics()] == (["kept"] if is_old else [])
        access = AccessControl(store, Limits(), lambda: 1000)
        await access.load()
        found = access.find_key(presented)
        assert found is not None and (found.name, found.expires_ms) == ("a", 1500)
        assert access.find_key(presented + "x") is None and access.find_key(presented[:-1]) is None
        verdict = access.acls.verdict("key:a", ENTRY.operation, ENTRY.resource)
        assert access.entries() == [ENTRY] and verdict.allows("orders-1") and not verdict.allows("order")
        await access.revoke_key(found.id)
        assert access.find_key(presented) is None
        await store.close()

    asyncio.run(then(asyncio.run(first())))
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA.version,)
    db.close()


def test_listeners_are_told_after_each_change_and_generations_rise(path: Path) -> None:
    async def scenario() -> None:
        store = opened(path)
        access = AccessControl(store, Limits(acls=1, api_keys=1), lambda: 1000)
        await access.load()
        told: list[int] = []
        access.on_change(lambda: told.append(access.acls.generation))
        before = access.acls.generation
        key, _ = await access.create_key("a", None)
        await access.create_acls([ENTRY])
        for refused, reason in (
            (access.create_key("b", None), Reason.KEY_LIMIT),
            (access.create_acls([Acl("key:b", *ENTRY_FIELDS)]), Reason.ACL_LIMIT),
            (access.delete_acls([Acl("key:b", *ENTRY_FIELDS)]), Reason.ACL_NOT_FOUND),
            (access.revoke_key("none"), Reason.KEY_NOT_FOUND),
        ):
            with pytest.raises(TakhinError) as refusal:
                await refused
            assert refusal.value.reason is reason
        await access.delete_acls([ENTRY])
        await access.revoke_key(key.id)
        assert told == [before, before + 1, before + 2, before + 2]
        await store.close()

    asyncio.run(scenario())


ENTRY_FIELDS = (ENTRY.effect, ENTRY.operation, ENTRY.resource, ENTRY.pattern, ENTRY.name)
