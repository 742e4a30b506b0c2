"""Changes of topics in process: who gives up waiting changes nothing about them, and who listens hears of each."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from takhin.broker.broker import Broker
from takhin.broker.topics import TopicChange
from takhin.errors import Reason, TakhinError
from tests.broker.test_produce_paths import produce, run, running, topic_of


async def served(broker: Broker) -> dict[str, tuple[int, dict[str, str]]]:
    return {topic.name: (len(topic.partitions), topic.configs) for topic in broker.topics}


async def stored(broker: Broker) -> dict[str, tuple[int, dict[str, str]]]:
    return {row.name: (row.num_partitions, row.configs) for row in await broker._metadata.load_topics()}


@pytest.mark.parametrize(("change", "after"), [
    (lambda broker: broker.topics.create("new", 2, 1, {}), {"t": (1, {}), "new": (2, {})}),
    (lambda broker: broker.topics.update("t", 3, {"flush.ms": "5"}, []), {"t": (3, {"flush.ms": "5"})}),
    (lambda broker: broker.topics.delete("t"), {}),
], ids=["create", "update", "delete"])
def test_whoever_gives_up_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Broker], Awaitable[object]], after: object
) -> None:
    """A client's deadline passes while the metadata is written: what is stored is served, too."""

    async def scenario() -> None:
        async with running(tmp_path) as broker:
            await topic_of(broker)
            await produce(broker, b"v")
            submitted = asyncio.Event()
            write = broker._metadata._db.write

            def tell(operation):
                submitted.set()
                return write(operation)

            monkeypatch.setattr(broker._metadata._db, "write", tell)
            task = asyncio.ensure_future(change(broker))
            await submitted.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await broker._metadata.settle()
            assert await served(broker) == await stored(broker) == after
        async with running(tmp_path) as broker:
            assert await served(broker) == after

    run(scenario())


def test_a_stop_waits_for_a_change_under_way(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            task = asyncio.ensure_future(broker.topics.create("t", 2, 1, {}))
            await asyncio.sleep(0)
            task.cancel()
        async with running(tmp_path) as broker:
            assert await served(broker) == {"t": (2, {})}

    run(scenario())


def test_who_listens_is_told_of_each_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            topics = broker.topics
            heard: list[TopicChange] = []
            seen: list[list[str]] = []

            def fails(change: TopicChange) -> None:
                raise RuntimeError("the listener's own mistake")

            topics.on_change(fails)
            topics.on_change(heard.append)
            topics.on_change(lambda change: seen.append(topics.names()))
            (partition,) = await topic_of(broker)
            await topics.update("t", 0, {"flush.ms": "5"}, [])
            await topics.update("t", 1, {}, ["flush.ms"])
            await topics.update("t", 3, {}, [])
            with pytest.raises(TakhinError) as caught:
                await topics.update("t", 2, {}, [])
            assert caught.value.reason is Reason.INVALID_PARTITION_COUNT
            await topics.delete("t")
            assert heard == [TopicChange(partition.topic_id, "t", count) for count in (1, 3, 0)]
            assert seen == [["t"], ["t"], []], "they hear of it when it is so"
            assert sum("a listener failed" in record.message for record in caplog.records) == 3

    run(scenario())


def test_what_was_set_under_a_higher_message_limit_does_not_keep_from_other_changes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as broker:
            await topic_of(broker)
            row = (await broker._metadata.load_topics())[0]
            too_much = {"max.message.bytes": str(1 << 40)}
            await broker._metadata.update_topic(row.id, 1, too_much, 1)
        async with running(tmp_path) as broker:
            topic = await broker.topics.update("t", 2, {"segment.ms": "5"}, [])
            assert topic.configs == too_much | {"segment.ms": "5"}
            assert topic.config.max_record_bytes == broker.topics.max_record_bytes
            with pytest.raises(TakhinError) as caught:
                await broker.topics.update("t", 0, too_much, [])
            assert caught.value.reason is Reason.INVALID_CONFIG

    run(scenario())
