"""Reading without a group: where it starts and ends, lost connections, and what must not be skipped over."""

import asyncio
import datetime
import os
import time
from pathlib import Path

import pytest

import takhin
from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import BrokerProcess, Stub, new_topic, produce
from tests.client.proxy import background, proxy_to
from tests.conftest import StartBroker


def read_all(address: str, topic: str, **how: object) -> list[takhin.Message]:
    async def main() -> list[takhin.Message]:
        async with takhin.connect(address) as tk:
            return [message async for message in tk.read(topic, until_end=True, **how)]

    return asyncio.run(main())


def values_of(messages: list[takhin.Message]) -> list[bytes | None]:
    return [message.value for message in messages]


def test_messages_are_what_was_stored(shared_broker: BrokerProcess, stub: Stub, topic: str) -> None:
    record = pb.Record(key=b"k", value=b"v", timestamp=1_700_000_000_123)
    record.headers.add(key="h", value=b"x")
    record.headers.add(key="h", value=b"")
    epoch = produce(stub, topic, record, pb.Record(key=b""), pb.Record()).epoch
    first, second, third = read_all(shared_broker.address, topic)
    assert (first.topic, first.partition, first.offset, first.epoch) == (topic, 0, 0, epoch)
    assert (first.key, first.value, first.headers) == (b"k", b"v", (("h", b"x"), ("h", b"")))
    assert first.timestamp_ms == 1_700_000_000_123
    assert first.timestamp == datetime.datetime(2023, 11, 14, 22, 13, 20, 123000, tzinfo=datetime.UTC)
    assert (second.key, second.value, second.headers, second.offset) == (b"", None, (), 1)
    assert (third.key, third.value) == (None, None) and third.timestamp_ms > 1_700_000_000_123


def test_where_it_starts(shared_broker: BrokerProcess, stub: Stub, topic: str) -> None:
    now_ms = round(time.time() * 1000)
    for number in range(10):
        produce(stub, topic, pb.Record(value=b"%d" % number, timestamp=now_ms - 1_000_000 + 100_000 * number))
    address = shared_broker.address

    def first(start: object) -> bytes | None:
        found = read_all(address, topic, start=start)
        return found[0].value if found else None

    assert first("earliest") == first(0) == b"0" and first(4) == b"4"
    assert first(-1) == b"9" and first(-3) == b"7" and first(-100) == b"0"
    assert first("latest") is None and first(10) is None
    assert first(datetime.timedelta(milliseconds=450_000)) == b"6"
    when = datetime.datetime.fromtimestamp((now_ms - 800_000) / 1000)
    assert first(when) == first(when.astimezone(datetime.UTC)) == b"2"
    assert first(datetime.timedelta(0)) is None
    for wrong in "oldest", 1.5, True, None:
        with pytest.raises((ValueError, TypeError)):
            first(wrong)
    for how in {}, {"until_end": True}, {"visibility": "durable"}:
        with pytest.raises(takhin.OffsetOutOfRange) as raised:
            asyncio.run(_follow(address, topic, start=11, **how))
        assert raised.value.metadata["end_offset"] == "10"


async def _follow(address: str, topic: str, **how: object) -> takhin.Message:
    async with takhin.connect(address) as tk:
        return await anext(aiter(tk.read(topic, **how)))


async def _twice(address: str, topic: str, **how: object) -> None:
    """What can't be read on is no end."""
    async with takhin.connect(address) as tk:
        reader = tk.read(topic, **how)
        with pytest.raises(takhin.ClientError):
            await anext(reader)
        await anext(reader)


def test_bounds_and_partitions(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub, 3)
    for partition in range(3):
        for number in range(20):
            produce(stub, topic, b"%d-%d" % (partition, number), partition=partition)
    address = shared_broker.address
    everything = read_all(address, topic)
    for partition in range(3):
        own = [each for each in everything if each.partition == partition]
        assert values_of(own) == [b"%d-%d" % (partition, number) for number in range(20)]
    assert len(everything) == 60
    assert values_of(read_all(address, topic, partition=1, start=17)) == [b"1-17", b"1-18", b"1-19"]
    assert len(read_all(address, topic, start=-2)) == 6
    assert len(read_all(address, topic, max_records=25)) == 25
    assert values_of(read_all(address, topic, partition=2, max_records=3)) == [b"2-0", b"2-1", b"2-2"]
    assert read_all(address, topic, max_records=0) == []
    with pytest.raises(takhin.OffsetOutOfRange):
        asyncio.run(_twice(address, topic, start=500))
    with pytest.raises(takhin.PartitionNotFound, match="no partition 3"):
        read_all(address, topic, partition=3)
    # The end is the one there was when it began.
    async def grows() -> int:
        count = 0
        async with takhin.connect(address) as tk, tk.producer(topic) as producer:
            async for _ in tk.read(topic, until_end=True):
                count += 1
                if count < 40:
                    await producer.send(b"more", partition=0)
        return count

    assert asyncio.run(grows()) == 60


def test_it_follows_and_gives_batches(shared_broker: BrokerProcess, topic: str) -> None:
    async def main() -> None:
        async with takhin.connect(shared_broker.address) as tk, tk.producer(topic) as producer:
            async with tk.read(topic, start="latest") as reader:
                coming = asyncio.ensure_future(anext(reader))
                await asyncio.sleep(0.2)
                await producer.send(b"came later")
                assert (await asyncio.wait_for(coming, 20)).value == b"came later"
                await producer.send(b"and more", key=b"k")
                batches = reader.batches()
                records = await asyncio.wait_for(anext(batches), 20)
                assert records.values() == [b"and more"] and records[0].key == records[-1].key == b"k"
                assert (records.topic, records.partition, records.next_offset) == (topic, 0, 2) and len(records) == 1
                assert records.high_watermark == 2 and records.caught_up and records.damage is None
                with pytest.raises(IndexError):
                    records[1]
            with pytest.raises(StopAsyncIteration):
                await anext(reader)

    asyncio.run(main())


def test_only_what_is_durable(start_broker: StartBroker) -> None:
    broker = start_broker("--topics-flush-ms", "400")
    topic = new_topic(broker.stub())
    produce(broker.stub(), topic, b"durable", acks=-1)

    async def main() -> None:
        async with takhin.connect(broker.address) as tk, tk.producer(topic, acks="written") as producer:
            reader = aiter(tk.read(topic, visibility="durable"))
            assert (await anext(reader)).value == b"durable"
            await producer.send(b"written")
            message = await asyncio.wait_for(anext(reader), 20)
            assert message.value == b"written" and (await tk.offsets(topic)).durable == 2
            with pytest.raises(ValueError, match="visibility"):
                tk.read(topic, visibility="seen")

    asyncio.run(main())


def test_cut_connections_lose_and_double_nothing(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub, 2)

    async def main() -> tuple[list[takhin.Message], int]:
        async with (
            proxy_to(shared_broker.address) as proxy, takhin.connect(proxy.address) as tk,
            takhin.connect(shared_broker.address) as direct, direct.producer(topic, batch_bytes=3_000) as producer,
        ):
            found = []

            async def fill() -> None:
                for number in range(1, 6_000):
                    producer.send_nowait(b"%06d" % number, partition=number % 2)
                    if number % 50 == 0:
                        await asyncio.sleep(0.008)

            reader = tk.read(topic, max_bytes=4_000)
            await producer.send(b"%06d" % 0, partition=0)
            found.append(await anext(reader))
            async with background(fill()), background(proxy.cut_at_random(0.02, 0.1, seed=3)):
                async for message in reader:
                    found.append(message)
                    if len(found) % 1_000 == 500:
                        proxy.cut()
                    if len(found) == 6_000:
                        break
            return found, proxy.cuts

    found, cuts = asyncio.run(main())
    assert cuts >= 5
    for partition in 0, 1:
        own = [each for each in found if each.partition == partition]
        assert [each.offset for each in own] == list(range(3_000))
        assert values_of(own) == [b"%06d" % number for number in range(partition, 6_000, 2)]


def test_a_reader_goes_on_when_the_broker_was_killed(broker: BrokerProcess) -> None:
    topic = new_topic(broker.stub())
    for number in range(50):
        produce(broker.stub(), topic, b"%d" % number)

    async def main() -> None:
        async with proxy_to(broker.address) as proxy, takhin.connect(proxy.address) as tk:
            reader = aiter(tk.read(topic))
            found = [await anext(reader) for _ in range(50)]
            await asyncio.to_thread(broker.restart, kill=True)
            proxy.target = broker.address
            for number in range(50, 60):
                produce(broker.stub(), topic, b"%d" % number)
            found += [await asyncio.wait_for(anext(reader), 20) for _ in range(10)]
            assert values_of(found) == [b"%d" % number for number in range(60)]
            assert found[-1].epoch > found[0].epoch

    asyncio.run(main())


def cut_off(path: Path, share: float) -> None:
    """The power goes while the last part of the file was not on the disk."""
    os.truncate(path, int(path.stat().st_size * share))


def test_a_log_cut_by_a_power_loss_is_noticed(broker: BrokerProcess) -> None:
    topic = new_topic(broker.stub(), flush_ms=-1)
    for number in range(10):
        produce(broker.stub(), topic, b"old %d" % number, acks=1)

    async def main() -> None:
        async with proxy_to(broker.address) as proxy, takhin.connect(proxy.address) as tk:
            reader = aiter(tk.read(topic))
            old = [await anext(reader) for _ in range(10)]
            broker.kill()
            cut_off(broker.segments()[-1], 0.75)
            broker.start()
            # Others take the offsets, and more: without the epoch it would go on as if nothing had been.
            for number in range(10):
                produce(broker.stub(), topic, b"new %d" % number)
            proxy.target = broker.address
            with pytest.raises(takhin.LogTruncated, match="lost records that were written but not durable") as raised:
                await asyncio.wait_for(anext(reader), 20)
            assert raised.value.reason is Reason.LOG_TRUNCATED and not raised.value.retryable
            diverges_at = int(raised.value.metadata["divergence_offset"])
            assert 0 < diverges_at < 10
            async for message in tk.read(topic, start=diverges_at, max_records=1):
                assert message.value == b"new 0" and message.epoch > old[diverges_at].epoch

    asyncio.run(main())


def test_who_reads_what_is_durable_never_sees_what_is_lost(broker: BrokerProcess) -> None:
    topic = new_topic(broker.stub(), flush_ms=-1)
    for number in range(5):
        produce(broker.stub(), topic, b"kept %d" % number, acks=-1)
    for number in range(5):
        produce(broker.stub(), topic, b"lost %d" % number, acks=1)

    async def main() -> None:
        async with proxy_to(broker.address) as proxy, takhin.connect(proxy.address) as tk:
            reader = aiter(tk.read(topic, visibility="durable"))
            bounded = [each.value async for each in tk.read(topic, visibility="durable", until_end=True)]
            assert bounded == [b"kept %d" % number for number in range(5)]
            assert [(await anext(reader)).value for _ in range(5)] == bounded
            coming = asyncio.ensure_future(anext(reader))
            await asyncio.sleep(0.2)
            assert not coming.done()
            broker.kill()
            cut_off(broker.segments()[-1], 0.7)
            broker.start()
            for number in range(5):
                produce(broker.stub(), topic, b"new %d" % number, acks=-1)
            proxy.target = broker.address
            found = [await asyncio.wait_for(coming, 20)]
            end = (await tk.offsets(topic)).end
            found += [await asyncio.wait_for(anext(reader), 20) for _ in range(end - 6)]
            # Of what was not durable a part was on the disk all the same; what was lost is not there, and nothing
            # twice.
            assert [each.offset for each in found] == list(range(5, end))
            assert values_of(found)[-5:] == [b"new %d" % number for number in range(5)]
            assert values_of(found)[:-5] == [b"lost %d" % number for number in range(end - 10)]

    asyncio.run(main())


def test_damage_on_the_way_is_noticed(shared_broker: BrokerProcess, stub: Stub, topic: str) -> None:
    for number in range(4):
        produce(stub, topic, b"content-%d" % number, b"more of it")

    async def main() -> None:
        async with proxy_to(shared_broker.address) as proxy, takhin.connect(proxy.address) as tk:
            found = []
            proxy.damage = (b"content-2", b"c0ntent-2")
            reader = tk.read(topic, until_end=True)
            with pytest.raises(takhin.CorruptBatch, match=f"{topic}/0: the checksum of the batch") as raised:
                async for message in reader:
                    found.append(message.value)
            assert found == [b"content-0", b"more of it", b"content-1", b"more of it"], "what is before it is given"
            assert raised.value.reason is Reason.CORRUPT_BATCH and not raised.value.retryable
            with pytest.raises(takhin.CorruptBatch):
                await anext(reader)
            # It is not on the disk: read again, it is whole. Unchecked, it goes through.
            assert len([message async for message in tk.read(topic, until_end=True)]) == 8
            proxy.damage = (b"content-2", b"c0ntent-2")
            unchecked = [message.value async for message in tk.read(topic, until_end=True, check=False)]
            assert unchecked[4] == b"c0ntent-2" and len(unchecked) == 8

    asyncio.run(main())


def test_a_large_record_and_parts_of_batches(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub, max_message_bytes=9_000_000)
    produce(stub, topic, bytes(8_000_000))
    produce(stub, topic, *[b"%05d" % number + bytes(1_000) for number in range(500)])
    found = read_all(shared_broker.address, topic, start=0, max_bytes=50_000)
    assert len(found[0].value or b"") == 8_000_000
    assert [(each.value or b"")[:5] for each in found[1:]] == [b"%05d" % number for number in range(500)]
    assert [each.offset for each in found] == list(range(501))
    middle = read_all(shared_broker.address, topic, start=250)
    assert [each.offset for each in middle] == list(range(250, 501))
