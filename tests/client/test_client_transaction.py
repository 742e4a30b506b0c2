"""Transactions by the client: all of it or nothing, and once, also when it has to be sent again."""

import asyncio

import pytest

import takhin
import takhin.sync
from tests.broker_process import BrokerProcess, Stub, committed, new_topic, offsets, produce, read, values
from tests.client.proxy import background, proxy_to


def test_records_and_offsets_together(shared_broker: BrokerProcess, stub: Stub) -> None:
    source, target = new_topic(stub), new_topic(stub, 3)
    produce(stub, source, b"1", b"2", b"3")

    async def main() -> list[takhin.RecordMetadata]:
        async with takhin.connect(shared_broker.address) as tk:
            async with tk.consumer(source, group="t-" + source) as consumer:
                first = await anext(consumer)
                async with tk.transaction(consumer=consumer) as transaction:
                    for number in range(10):
                        transaction.send(target, b"%d" % number, key=b"%d" % number, timestamp_ms=number)
                    transaction.send(source, b"done", partition=0)
                    transaction.commit(first)
                assert committed(stub, "t-" + source, source) == 1
                with pytest.raises(RuntimeError, match="of the program's own"):
                    async with tk.transaction(consumer=consumer) as undone:
                        undone.send(target, b"never")
                        undone.commit(await anext(consumer))
                        raise RuntimeError("of the program's own")
                assert committed(stub, "t-" + source, source) == 1
                with pytest.raises(takhin.OutOfRange):
                    async with tk.transaction(consumer=consumer) as refused:
                        refused.send(target, b"never")
                        refused.commit({(source, 0): 100})
                async with tk.transaction(consumer=consumer) as alone:
                    alone.commit({(source, 0): 2})
                assert committed(stub, "t-" + source, source) == 2 and alone.results == []
                with pytest.raises(takhin.Closed):
                    alone.send(target, b"late")
                async with tk.transaction() as by_hand:
                    by_hand.send(source, b"by hand", partition=0)
                    await by_hand.store()
                assert by_hand.results[0].offset == 4
            return transaction.results

    results = asyncio.run(main())
    assert [each.topic for each in results] == [target] * 10 + [source]
    for number, each in enumerate(results[:10]):
        (record,) = [each_ for each_ in read(stub, target, partition=each.partition) if each_.offset == each.offset]
        assert record.value == b"%d" % number and record.timestamp == each.timestamp_ms == (number or record.timestamp)
    assert values(read(stub, source)) == [b"1", b"2", b"3", b"done", b"by hand"] and results[10].offset == 3
    assert sum(offsets(stub, target, partition).end_offset for partition in range(3)) == 10


def test_sent_again_it_is_stored_once(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub, 2)

    async def main() -> int:
        stored = 0
        async with proxy_to(shared_broker.address) as proxy, takhin.connect(proxy.address) as tk:
            async with background(proxy.cut_at_random(0.02, 0.1, seed=2)):
                # A fast machine is through with few cuts, so it is the cuts that say when it is enough.
                while stored < 120 or proxy.cuts < 3:
                    async with tk.transaction() as transaction:
                        transaction.send(topic, b"%03d" % stored, partition=0)
                        transaction.send(topic, b"%03d" % stored, partition=1)
                    stored += 1
        return stored

    stored = asyncio.run(main())
    for partition in 0, 1:
        assert values(read(stub, topic, partition=partition)) == [b"%03d" % number for number in range(stored)]


def test_without_asyncio(shared_broker: BrokerProcess, stub: Stub, topic: str) -> None:
    with takhin.sync.connect(shared_broker.address) as tk:
        with tk.transaction(group="plain-" + topic) as transaction:
            transaction.send(topic, b"v")
            transaction.commit({(topic, 0): 0})
        assert transaction.results[0].offset == 0 and committed(stub, "plain-" + topic, topic) == 0
        with pytest.raises(ValueError, match="made with a consumer"):
            tk.transaction().commit({(topic, 0): 0})
