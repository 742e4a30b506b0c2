"""Calls that are cancelled at any point, as their clients leave: what the metadata holds and what is served agree."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from takhin.broker.broker import Broker
from takhin.errors import Reason
from tests.broker.test_produce_paths import produce, refused, run, running, topic_of
from tests.broker.test_retention import append, bases, files_of
from tests.log.test_partition import values_of

SMALL = {"segment_bytes": 1100}


async def cancelled(work: Coroutine[Any, Any, Any], turns: int) -> None:
    """Let it run for so many turns of the loop, then cancel it, as a front does."""
    task = asyncio.ensure_future(work)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


async def stored(broker: Broker) -> list[str]:
    """What the metadata has when all that was begun is over."""
    await broker._metadata.settle()
    return [row.name for row in await broker._metadata.load_topics()]


@pytest.mark.parametrize("turns", range(6))
def test_the_deletion_of_a_topic(tmp_path: Path, turns: int) -> None:
    """Else records would be acknowledged as durable that the next start removes."""
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            (partition,) = await topic_of(broker)
            await append(broker, 1)
            await cancelled(broker.topics.delete("t"), turns)
            assert await stored(broker) == broker.topics.names()
            if broker.topics.names():
                assert (await produce(broker, b"on", acks=-1)).offset == 1
            else:
                await refused(Reason.TOPIC_NOT_FOUND, produce(broker, b"on", acks=-1))
                assert not Path(partition.directory).parent.exists()
                assert await broker._metadata.deleted_topics() == []
        async with running(tmp_path) as broker:
            assert await stored(broker) == broker.topics.names()

    run(scenario())


@pytest.mark.parametrize("turns", range(6))
def test_the_creation_of_a_topic(tmp_path: Path, turns: int) -> None:
    """Else it would be there and could not be used, nor made again."""
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            await cancelled(broker.topics.create("t", 1, 1, {}), turns)
            assert await stored(broker) == broker.topics.names()
            if not broker.topics.names():
                await broker.topics.create("t", 1, 1, {})
            assert (await produce(broker, b"on", acks=-1)).offset == 0

    run(scenario())


def test_who_waits_for_another_change_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            first = asyncio.ensure_future(broker.topics.create("a", 1, 1, {}))
            waiting = [asyncio.ensure_future(broker.topics.create(name, 1, 1, {})) for name in "bcd"]
            await asyncio.sleep(0)
            waiting[1].cancel()
            await asyncio.wait([first, *waiting])
            assert broker.topics.names() == await stored(broker) == ["a", "b", "d"]

    run(scenario())


@pytest.mark.parametrize("turns", range(6))
def test_a_truncation(tmp_path: Path, turns: int) -> None:
    async def scenario() -> None:
        async with running(tmp_path, SMALL) as broker:
            (partition,) = await topic_of(broker)
            await append(broker, 9)
            await cancelled(broker.log_starts.truncate(partition, 5), turns)
            await broker._metadata.settle()
            (row,) = await broker._metadata.load_topics()
            assert partition.log_start_offset == row.log_starts.get(0, 0)
            assert bases(partition) == files_of(broker, partition)
            assert len(values_of(partition, partition.log_start_offset)) == 9 - partition.log_start_offset

    run(scenario())


def test_a_stop_waits_for_what_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            await cancelled(broker.topics.create("t", 1, 1, {}), 2)
        async with running(tmp_path) as broker:
            assert broker.topics.names() == ["t"]

    run(scenario())
