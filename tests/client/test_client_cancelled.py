"""What is cancelled, given back or closed in the middle: no record is lost by it, and nobody waits for ever."""

import asyncio

import pytest

import takhin
from takhin.client import producer as producers
from takhin.client.start import StartAt
from takhin.client.types import GroupOffset
from tests.broker_process import BrokerProcess, Stub, committed, new_topic, produce


def test_a_batch_that_nobody_saw_comes_again(shared_broker: BrokerProcess, stub: Stub, topic: str) -> None:
    produce(stub, topic, b"0", b"1", b"2")

    async def main() -> None:
        async with takhin.connect(shared_broker.address) as tk:
            async with tk.consumer(topic, group="c-" + topic, auto_commit=True) as consumer:
                collecting = asyncio.ensure_future(anext(consumer.batches(max_wait=30)))
                while consumer.positions.get((topic, 0)) != 3:
                    await asyncio.sleep(0.01)
                collecting.cancel()
                await asyncio.wait([collecting])
                again = await consumer.next(10)
                assert again is not None and again.value == b"0"
                consumer.hand_back([again])
            assert committed(stub, "c-" + topic, topic) in (None, -1, 0)

    asyncio.run(main())


def test_what_is_given_back_of_a_revoked_partition_is_not_committed(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub, 2)
    for partition in 0, 1:
        produce(stub, topic, *[b"%d" % number for number in range(5)], partition=partition)

    async def main() -> None:
        async with takhin.connect(shared_broker.address) as tk:
            consumer = tk.consumer(topic, group="r-" + topic, auto_commit=True)
            async with consumer:
                found: list[takhin.Message] = []
                while len(found) < 10:
                    found += await consumer.fetch(10 - len(found))
                other = tk.consumer(topic, group="r-" + topic)
                joining = asyncio.ensure_future(other.start())
                while len(consumer.assignment) == 2:
                    await asyncio.sleep(0.01)
                # All but the first of each were not looked at.
                consumer.hand_back([each for each in found if each.offset])
            await joining
            await other.aclose()
            assert [each.committed for each in await tk.group_offsets("r-" + topic, [topic])] == [1, 1]

    asyncio.run(main())


@pytest.mark.parametrize("how", [{}, {"partition": 0}])
def test_reading_goes_on_after_a_cancelled_read(
    shared_broker: BrokerProcess, stub: Stub, topic: str, how: dict
) -> None:
    async def main() -> None:
        async with takhin.connect(shared_broker.address) as tk:
            reader = aiter(tk.read(topic, **how))
            for number in range(2):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(reader), 0.1)
                produce(stub, topic, b"%d" % number)
                assert (await asyncio.wait_for(anext(reader), 10)).value == b"%d" % number

    asyncio.run(main())


def test_a_start_is_looked_for_until_it_is_found(
    shared_broker: BrokerProcess, stub: Stub, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    produce(stub, topic, *[b"%d" % number for number in range(5)])

    async def main() -> None:
        async with takhin.connect(shared_broker.address) as tk:
            attempts = 0
            ask = tk.group_offsets

            async def late(*args: object) -> list[GroupOffset]:
                nonlocal attempts
                attempts += 1
                if attempts < 3:
                    raise takhin.DeadlineExceeded("the broker did not answer in time")
                return await ask(*args)

            monkeypatch.setattr(tk, "group_offsets", late)
            async with tk.consumer(topic, group="s-" + topic, start=StartAt(from_start=3)) as consumer:
                first = await consumer.next(10)
                assert first is not None and first.offset == 3 and attempts == 3

    asyncio.run(main())


def test_a_closed_client_ends_its_producers(shared_broker: BrokerProcess, topic: str) -> None:
    async def main() -> None:
        tk = takhin.connect(shared_broker.address)
        async with tk.producer(topic) as producer:
            await producer.send(b"stored")
            await tk.close()
            for _ in range(2):
                with pytest.raises(takhin.Closed):
                    await asyncio.wait_for(producer.send(b"too late"), 10)

    asyncio.run(main())


def test_who_waits_for_room_keeps_its_turn(shared_broker: BrokerProcess, stub: Stub, topic: str) -> None:
    async def main() -> None:
        async with takhin.connect(shared_broker.address) as tk:
            async with tk.producer(topic, buffer_bytes=1_400, batch_bytes=500, linger_ms=0) as producer:
                await producer.send(b"first")
                sizes = [600, 300, 900, 20, 20, 900, 20, 700, 20]
                tasks = [asyncio.ensure_future(producer.send(b"%d" % number + bytes(size)))
                         for number, size in enumerate(sizes)]
                await asyncio.sleep(0)
                tasks[4].cancel()
                sent = [each for number, each in enumerate(tasks) if number != 4]
                found = [each.offset for each in await asyncio.wait_for(asyncio.gather(*sent), 20)]
                assert found == sorted(found) and not producer._waiters

    asyncio.run(main())


def test_all_failures_are_counted(
    shared_broker: BrokerProcess, stub: Stub, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producers, "MAX_UNDELIVERED", 3)

    async def main() -> None:
        async with takhin.connect(shared_broker.address) as tk, tk.producer(topic) as producer:
            await producer.send(b"stored")
            # Those that somebody sees don't count.
            for _ in range(5):
                with pytest.raises(takhin.PartitionNotFound):
                    await producer.send(b"seen", partition=9)
            for number in range(10):
                await asyncio.wait([producer.send_nowait(b"unseen", key=b"%d" % number, partition=7)])
            with pytest.raises(takhin.NotDelivered, match="10 records") as raised:
                await producer.flush()
            assert raised.value.count == 10 and len(raised.value.undelivered) == 3
            await producer.flush()

    asyncio.run(main())
