"""The group consumer: nothing lost, nothing doubled that was committed, and what happens when it is disturbed."""

import asyncio
import datetime
from collections import Counter

import pytest

import takhin
from takhin.errors import Reason
from tests.broker_process import BrokerProcess, Stub, commit, committed, new_topic, produce
from tests.client.proxy import background, proxy_to
from tests.client.test_client_reader import cut_off


def fill(stub: Stub, topic: str, count: int, partitions: int = 1, start: int = 0) -> None:
    for partition in range(partitions):
        made = [b"%d-%06d" % (partition, number) for number in range(start, start + count)]
        produce(stub, topic, *made, partition=partition)


async def take(consumer: takhin.Consumer, count: int) -> list[takhin.Message]:
    found = []
    async with asyncio.timeout(30):
        while len(found) < count:
            message = await consumer.next()
            assert message is not None
            found.append(message)
    return found


def test_it_reads_commits_and_goes_on(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub, 2)
    fill(stub, topic, 100, 2)
    group = f"group-{topic}"

    async def main() -> None:
        async with takhin.connect(shared_broker.address) as tk:
            async with tk.consumer(topic, group=group, client_id="me") as consumer:
                assert {each for each in consumer.assignment} <= {(topic, 0), (topic, 1)}
                found = await take(consumer, 150)
                assert consumer.assignment == ((topic, 0), (topic, 1))
                assert sum((await consumer.lag()).values()) == 50
                await consumer.commit(found[-1])
                last = {each.partition: each.offset for each in found}
                assert committed(stub, group, topic, found[-1].partition) == found[-1].offset + 1
                await consumer.commit()
                for partition, offset in last.items():
                    assert committed(stub, group, topic, partition) == offset + 1
                    assert consumer.position((topic, partition)) == offset + 1
                await consumer.commit(found[0])  # behind what is committed: passed over
                (member,) = (await tk.describe_group(group)).members
                assert member.client_id == "me"
                assert member.assignment == {(topic, each): offset + 1 for each, offset in last.items()}
            assert (await tk.describe_group(group)).state == "Empty"
            async with tk.consumer(topic, group=group) as consumer:
                found += await take(consumer, 50)
                assert await consumer.next(0.1) is None
            assert Counter((each.partition, each.offset) for each in found) == Counter(
                (partition, offset) for partition in (0, 1) for offset in range(100))
            with pytest.raises(takhin.Closed):
                await consumer.next()

    asyncio.run(main())


def test_auto_commit_takes_what_is_processed(shared_broker: BrokerProcess, stub: Stub, topic: str) -> None:
    fill(stub, topic, 10)

    async def main() -> None:
        async with takhin.connect(shared_broker.address) as tk:
            async with tk.consumer(topic, group="auto-" + topic, auto_commit=True) as consumer:
                await take(consumer, 4)
                # Three are processed; the fourth is in hand.
                while committed(stub, "auto-" + topic, topic) != 3:
                    await asyncio.sleep(0.02)
                async for _ in consumer:
                    break
            assert committed(stub, "auto-" + topic, topic) == 5, "left in order, the last one is processed, too"
            with pytest.raises(RuntimeError, match="of the program's own"):
                async with tk.consumer(topic, group="auto-" + topic, auto_commit=True) as consumer:
                    await take(consumer, 2)
                    raise RuntimeError("of the program's own")
            assert committed(stub, "auto-" + topic, topic) == 6, "the one in hand when the program failed is not"

    asyncio.run(main())


def test_batches(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub, 2)
    fill(stub, topic, 30, 2)

    async def main() -> None:
        async with takhin.connect(shared_broker.address) as tk, tk.consumer(topic, group="b-" + topic) as consumer:
            sizes = []
            async for batch in consumer.batches(max_records=25, max_wait=0.3):
                sizes.append(len(batch))
                await consumer.commit()
                if sum(sizes) == 60:
                    break
            assert sizes == [25, 25, 10]
            assert {committed(stub, "b-" + topic, topic, partition) for partition in (0, 1)} == {30}

    asyncio.run(main())


@pytest.mark.parametrize(("start", "first"), [
    ("earliest", b"0-000000"), ("latest", None), (7, b"0-000007"), (-3, b"0-000017"),
    (datetime.timedelta(hours=1), b"0-000000"), (datetime.timedelta(0), None),
])
def test_where_it_starts_without_a_commit(
    shared_broker: BrokerProcess, stub: Stub, topic: str, start: object, first: bytes | None
) -> None:
    fill(stub, topic, 20)

    async def main() -> None:
        async with takhin.connect(shared_broker.address) as tk:
            async with tk.consumer(topic, group="s-" + topic, start=start) as consumer:
                if first is None:
                    assert await consumer.next(0.2) is None
                    produce(stub, topic, b"later")
                    assert (await take(consumer, 1))[0].value == b"later"
                    return
                found = await take(consumer, 2)
                assert found[0].value == first and found[1].offset == found[0].offset + 1
            commit(stub, "s-" + topic, (topic, 0, 12))
            async with tk.consumer(topic, group="s-" + topic, start=start) as consumer:
                assert (await take(consumer, 1))[0].offset == 12, "what is committed goes before start"

    asyncio.run(main())


def test_seek_pause_resume(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub, 2)
    fill(stub, topic, 2_000, 2)
    one, two = (topic, 0), (topic, 1)

    async def main() -> None:
        async with takhin.connect(shared_broker.address) as tk:
            async with tk.consumer(topic, group="sk-" + topic, max_bytes=2_000, credit_bytes=20_000) as consumer:
                await take(consumer, 10)
                consumer.pause(one)
                assert {each.partition for each in await take(consumer, 100)} == {1}
                consumer.pause()
                assert await consumer.next(0.2) is None
                consumer.resume(one)
                found = await take(consumer, 100)
                assert {each.partition for each in found} == {0}
                at = consumer.position(one)
                # Back, forth, and to where it stands; records that are on their way are not taken for others.
                for to, offset in ((0, 0), (1_500, 1_500), ("earliest", 0), (-10, 1_990), (at, at), (3, 3), (2, 2)):
                    await consumer.seek(one, to)
                    assert consumer.position(one) == offset
                    assert [each.offset for each in await take(consumer, 5)] == list(range(offset, offset + 5))
                for _ in range(3):
                    await consumer.seek(one, 100)
                await consumer.seek(one, 50)
                assert [each.offset for each in await take(consumer, 300)] == list(range(50, 350))
                with pytest.raises(takhin.OffsetOutOfRange, match="goes from 0 to 2000"):
                    await consumer.seek(one, 2_001)
                with pytest.raises(takhin.FencedGeneration):
                    await consumer.seek((topic, 7), 0)
                consumer.resume(two)
                assert {each.partition for each in await take(consumer, 2_000)} == {0, 1}

    asyncio.run(main())


def test_members_share_and_hand_over(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub, 4)
    fill(stub, topic, 500, 4)
    group = "share-" + topic

    async def main() -> None:
        async with takhin.connect(shared_broker.address) as tk:
            seen: list[tuple[int, int]] = []

            async def member(pause_s: float) -> set[int]:
                partitions = set()
                async with tk.consumer(topic, group=group, max_bytes=1_000) as consumer:
                    while len(set(seen)) < 2_000:
                        message = await consumer.next(0.2)
                        if message is None:
                            continue
                        if message.offset % 10 == 0:
                            await asyncio.sleep(pause_s)
                        seen.append((message.partition, message.offset))
                        partitions.add(message.partition)
                        if message.offset % 50 == 49:
                            await consumer.commit()
                    await consumer.commit()
                return partitions

            first = asyncio.ensure_future(member(0.01))
            while len(seen) < 300:
                await asyncio.sleep(0.01)
            second = asyncio.ensure_future(member(0.001))
            shares = await asyncio.wait_for(asyncio.gather(first, second), 60)
            assert shares[0] == {0, 1, 2, 3} and len(shares[1]) >= 2
            # What was handed out and not committed when a partition moved comes again, and nothing else.
            assert set(seen) == {(partition, offset) for partition in range(4) for offset in range(500)}
            assert len(seen) - len(set(seen)) <= 4 * 50

    asyncio.run(main())


def test_a_partition_moves_when_the_program_has_committed(shared_broker: BrokerProcess, stub: Stub) -> None:
    """The one that has a message in hand may end with it and commit before the partition is released."""
    topic = new_topic(stub, 2)
    fill(stub, topic, 10, 2)

    async def main() -> None:
        async with takhin.connect(shared_broker.address) as tk:
            async with tk.consumer(topic, group="hand-" + topic) as one:
                found = await take(one, 20)
                async with tk.consumer(topic, group="hand-" + topic) as two:
                    await asyncio.sleep(0.7)
                    assert len(two.assignment) <= 1
                    await one.commit()  # nothing is fenced
                    assert await one.next(0.1) is None
                    async with asyncio.timeout(20):
                        while len(two.assignment) < 1 or len(one.assignment) > 1:
                            await asyncio.sleep(0.01)
                    assert await two.next(0.3) is None, "all of it is committed"
                    moved = two.assignment[0]
                    with pytest.raises(takhin.FencedGeneration):
                        await one.commit({moved: 10})
                    with pytest.raises(takhin.FencedGeneration):
                        one.position(moved)
                assert len(found) == 20

    asyncio.run(main())


def test_cut_streams_lose_and_double_nothing(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub, 2)

    async def main() -> tuple[list[takhin.Message], int]:
        async with (
            proxy_to(shared_broker.address) as proxy, takhin.connect(proxy.address) as tk,
            takhin.connect(shared_broker.address) as direct, direct.producer(topic, batch_bytes=3_000) as producer,
        ):
            async def produce_all() -> None:
                for number in range(5_000):
                    producer.send_nowait(b"%06d" % number, partition=number % 2)
                    if number % 50 == 0:
                        await asyncio.sleep(0.01)

            found = []
            async with tk.consumer(topic, group="cut-" + topic, max_bytes=4_000) as consumer:
                async with background(produce_all()), background(proxy.cut_at_random(0.05, 0.25, seed=5)):
                    async with asyncio.timeout(60):
                        async for message in consumer:
                            found.append(message)
                            if len(found) % 500 == 0:
                                await consumer.commit(message)
                            if len(found) % 1_000 == 250:
                                proxy.cut()
                            if len(found) == 5_000:
                                break
                await consumer.commit()
            return found, proxy.cuts

    found, cuts = asyncio.run(main())
    assert cuts >= 3
    for partition in 0, 1:
        own = [each for each in found if each.partition == partition]
        assert [each.offset for each in own] == list(range(2_500))
        assert [each.value for each in own] == [b"%06d" % number for number in range(partition, 5_000, 2)]
        assert committed(stub, "cut-" + topic, topic, partition) == 2_500


def test_a_killed_broker_loses_and_doubles_nothing(broker: BrokerProcess) -> None:
    """Producer and consumer, from end to end, across two kills."""
    topic = new_topic(broker.stub(), 2)

    async def main() -> list[takhin.Message]:
        async with (
            proxy_to(broker.address) as proxy, takhin.connect(proxy.address) as tk,
            tk.producer(topic, batch_bytes=2_000) as producer, tk.consumer(topic, group="g") as consumer,
        ):
            async def produce_all() -> None:
                for number in range(4_000):
                    producer.send_nowait(b"%06d" % number, partition=number % 2)
                    if number % 50 == 0:
                        await asyncio.sleep(0.004)
                    if number in (1_000, 2_500):
                        await asyncio.to_thread(broker.restart, kill=True)
                        proxy.target = broker.address

            found = []
            async with background(produce_all()), asyncio.timeout(60):
                async for message in consumer:
                    found.append(message)
                    if len(found) % 300 == 0:
                        await consumer.commit(message)
                    if len(found) == 4_000:
                        break
            await consumer.commit()
            assert [each.committed for each in await tk.group_offsets("g")] == [2_000, 2_000]
            return found

    found = asyncio.run(main())
    for partition in 0, 1:
        own = [each for each in found if each.partition == partition]
        assert [each.offset for each in own] == list(range(2_000))
        assert [each.value for each in own] == [b"%06d" % number for number in range(partition, 4_000, 2)]


def test_a_log_cut_by_a_power_loss_is_noticed(broker: BrokerProcess) -> None:
    topic = new_topic(broker.stub(), flush_ms=-1)
    for number in range(10):
        produce(broker.stub(), topic, b"old %d" % number, acks=1)

    async def main() -> None:
        async with proxy_to(broker.address) as proxy, takhin.connect(proxy.address) as tk:
            async with tk.consumer(topic, group="g") as consumer:
                old = await take(consumer, 10)
                assert [each.value for each in old] == [b"old %d" % number for number in range(10)]
                broker.kill()
                cut_off(broker.segments()[-1], 0.75)
                broker.start()
                for number in range(10):
                    produce(broker.stub(), topic, b"new %d" % number)
                proxy.target = broker.address
                with pytest.raises(takhin.LogTruncated) as raised:
                    await asyncio.wait_for(consumer.next(), 20)
                diverges_at = int(raised.value.metadata["divergence_offset"])
                # Asked again, it goes on where the log is another one.
                new = await take(consumer, 10)
                assert [each.value for each in new] == [b"new %d" % number for number in range(10)]
                assert new[0].offset == diverges_at

    asyncio.run(main())


def test_damage_is_told_and_tried_again(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub, 2)
    for number in range(4):
        produce(stub, topic, b"content-%d" % number)
    produce(stub, topic, b"other", partition=1)

    async def main() -> None:
        async with proxy_to(shared_broker.address) as proxy, takhin.connect(proxy.address) as tk:
            proxy.damage = (b"content-2", b"c0ntent-2")
            async with tk.consumer(topic, group="d-" + topic) as consumer:
                found = []
                with pytest.raises(takhin.CorruptBatch, match=f"{topic}/0: the checksum") as raised:
                    while True:
                        found += await take(consumer, 1)
                assert raised.value.reason is Reason.CORRUPT_BATCH
                found += await take(consumer, 3 - len(found))
                assert {each.value for each in found} == {b"content-0", b"content-1", b"other"}
                assert await consumer.next(0.2) is None, "nothing behind the damage"
                consumer.resume((topic, 0))
                assert [each.value for each in await take(consumer, 2)] == [b"content-2", b"content-3"]

    asyncio.run(main())


def test_damage_loses_nothing_of_a_batch(shared_broker: BrokerProcess, stub: Stub) -> None:
    """What was collected before one partition can't be read on is given first."""
    topic = new_topic(stub, 2)
    produce(stub, topic, b"content-0")
    produce(stub, topic, b"content-1")
    fill(stub, topic, 5)
    for number in range(5):
        produce(stub, topic, b"other-%d" % number, partition=1)

    async def main() -> None:
        async with proxy_to(shared_broker.address) as proxy, takhin.connect(proxy.address) as tk:
            proxy.damage = (b"content-1", b"c0ntent-1")
            async with tk.consumer(topic, group="db-" + topic) as consumer:
                found: list[takhin.Message] = []
                for _ in range(2):
                    batches = consumer.batches(max_records=100, max_wait=0.3)
                    try:
                        async with asyncio.timeout(3):
                            async for batch in batches:
                                found += batch
                    except takhin.CorruptBatch:
                        pass
                    except TimeoutError:
                        break
                assert {each.value for each in found} == {b"content-0", *(b"other-%d" % number for number in range(5))}
                await consumer.commit()
                consumer.resume()
                assert [each.value for each in await take(consumer, 6)][0] == b"content-1"

    asyncio.run(main())


def test_a_static_member_that_is_replaced_ends(shared_broker: BrokerProcess, topic: str) -> None:
    async def main() -> None:
        async with takhin.connect(shared_broker.address) as tk:
            async with tk.consumer(topic, group="st-" + topic, instance_id="i") as one:
                async with tk.consumer(topic, group="st-" + topic, instance_id="i"):
                    with pytest.raises(takhin.Aborted) as raised:
                        await asyncio.wait_for(one.next(), 20)
                    assert raised.value.reason is Reason.MEMBER_FENCED
                    with pytest.raises(takhin.Aborted):
                        await one.next()

    asyncio.run(main())


def test_a_member_that_was_out_comes_back_as_a_new_one(shared_broker: BrokerProcess, stub: Stub, topic: str) -> None:
    fill(stub, topic, 3)

    async def main() -> None:
        async with takhin.connect(shared_broker.address) as tk:
            async with tk.consumer(topic, group="out-" + topic, max_processing_s=1) as consumer:
                first = await take(consumer, 1)
                assert consumer.assignment == ((topic, 0),)
                async with asyncio.timeout(30):
                    while consumer.assignment:
                        await asyncio.sleep(0.01)
                    with pytest.raises(takhin.FencedGeneration):
                        await consumer.commit(first[0])
                    while not consumer.assignment:
                        await asyncio.sleep(0.01)
                again = await take(consumer, 1)
                assert again == first, "it was not committed: it is delivered again"

    asyncio.run(main())


def test_a_commit_waits_for_the_broker_to_be_back(shared_broker: BrokerProcess, stub: Stub, topic: str) -> None:
    fill(stub, topic, 5)

    async def main() -> None:
        async with proxy_to(shared_broker.address) as proxy, takhin.connect(proxy.address) as tk:
            async with tk.consumer(topic, group="w-" + topic, commit_timeout_s=20) as consumer:
                found = await take(consumer, 5)
                proxy.is_refusing = True
                proxy.cut()
                committing = asyncio.ensure_future(consumer.commit(found[2]))
                await asyncio.sleep(0.5)
                assert not committing.done() and committed(stub, "w-" + topic, topic) is None
                proxy.is_refusing = False
                await committing
                assert committed(stub, "w-" + topic, topic) == 3
            async with tk.consumer(topic, group="w-" + topic, commit_timeout_s=0.3) as consumer:
                found = await take(consumer, 1)
                proxy.is_blocked = True
                with pytest.raises(takhin.DeadlineExceeded, match="the commit was not answered within 0.3 s"):
                    await consumer.commit()
                proxy.is_blocked = False

    asyncio.run(main())


def test_a_broker_that_stays_away_is_told(shared_broker: BrokerProcess, topic: str) -> None:
    async def main() -> None:
        async with proxy_to(shared_broker.address) as proxy, takhin.connect(proxy.address, retry_s=0.5) as tk:
            async with tk.consumer(topic, group="away-" + topic) as consumer:
                proxy.is_refusing = True
                proxy.cut()
                with pytest.raises(takhin.Unavailable):
                    await asyncio.wait_for(consumer.next(), 30)

    asyncio.run(main())
