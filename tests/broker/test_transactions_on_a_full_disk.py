"""A transaction is decided, and for its offsets there is no room: nobody waits without a word, nothing is lost."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from takhin.errors import Reason, TakhinError, error
from takhin.log import transaction
from takhin.log.transaction_offsets import TransactionOffsets
from tests.torture.inprocess import InProcess


async def refused(work: object) -> TakhinError:
    with pytest.raises(TakhinError) as caught:
        await work  # type: ignore[misc]
    return caught.value


def test_who_waits_is_told_and_it_happens_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "STORE_AGAIN_S", 0.02)

    async def scenario() -> None:
        engine = await InProcess(tmp_path / "data").start()
        for name in ("source", "a", "b"):
            await engine.create_topic(name, 1)
        await engine.produce("source", 0, [b"in"] * 3, -1)
        metadata = engine.broker._metadata
        store, full = metadata.store_transactions, True

        async def store_transactions(transactions: Sequence[TransactionOffsets]) -> int:
            if full:
                raise error(Reason.DISK_FULL, "the disk is full")
            return await store(transactions)

        monkeypatch.setattr(metadata, "store_transactions", store_transactions)
        under_way = asyncio.ensure_future(
            refused(engine.transact([("a", 0, [b"one"]), ("b", 0, [b"one"])], "g", [("source", 0, 2)]))
        )
        while not engine.broker.topics.partition("a", 0).held:
            await asyncio.sleep(0)
        behind = [asyncio.ensure_future(refused(engine.produce("a", 0, [b"two"], acks))) for acks in (1, -1)]
        for told in (await under_way, *await asyncio.gather(*behind)):
            assert told.reason is Reason.ACK_TIMEOUT and "the disk is full" in told.message
        assert (await engine.produce("b", 0, [b"three"], 0)).offset == 1
        view = await engine.view()
        assert view.partitions["a", 0].end == view.partitions["b", 0].end == 0
        full = False
        # The next one waits for its turn.
        await engine.transact([("b", 0, [b"four"])], "", [])
        view = await engine.view()
        found = {topic: [value for _, _, value in view.partitions[topic, 0].records] for topic in ("a", "b")}
        assert found == {"a": [b"one", b"two", b"two"], "b": [b"one", b"three", b"four"]}
        assert list(view.commits["g"].values()) == [2]
        await engine.stop()

    asyncio.run(scenario())
