"""The producer: order, nothing twice, nothing lost, and what is told when it can't be."""

import asyncio
import itertools

import pytest

import takhin
from takhin.client.partitioner import key_partition
from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import BrokerProcess, Stub, consume, create_topic, new_topic, produce, read, values
from tests.client.proxy import background, proxy_to


def test_what_is_sent_is_there(shared_broker: BrokerProcess, stub: Stub, topic: str) -> None:
    async def main() -> list[takhin.RecordMetadata]:
        async with takhin.connect(shared_broker.address) as tk, tk.producer(topic, acks="durable") as producer:
            return [
                await producer.send(b"v", key=b"k", headers={"h": b"x", "leer": b""}, timestamp_ms=1234),
                await producer.send(None, key=b"gone"),
                await producer.send(bytearray(b"w"), headers=[("n", b"1"), ("n", b"2"), ("\u00e4", memoryview(b"3"))]),
                await producer.send(b"", partition=0, timestamp_ms=-5),
                await producer.send_nowait(b"nowait"),
            ]

    answers = asyncio.run(main())
    assert [(each.topic, each.partition, each.offset) for each in answers] == [(topic, 0, n) for n in range(5)]
    found = read(stub, topic)
    assert [each.timestamp_ms for each in answers] == [record.timestamp for record in found]
    assert answers[0].timestamp_ms == 1234 and answers[3].timestamp_ms == -5
    assert [(each.HasField("key"), each.key) for each in found] == [
        (True, b"k"), (True, b"gone"), (False, b""), (False, b""), (False, b"")]
    assert [(each.HasField("value"), each.value) for each in found] == [
        (True, b"v"), (False, b""), (True, b"w"), (True, b""), (True, b"nowait")]
    assert [[(each.key, each.value) for each in record.headers] for record in found] == [
        [("h", b"x"), ("leer", b"")], [], [("n", b"1"), ("n", b"2"), ("\u00e4", b"3")], [], []]


@pytest.mark.parametrize("given", [
    {"value": "text"}, {"value": b"", "key": "text"}, {"value": b"", "headers": {"h": "text"}},
    {"value": b"", "headers": {b"h": b""}}, {"value": b"", "headers": {"h": None}}, {"value": 3},
])
def test_what_is_not_bytes_is_refused_here(shared_broker: BrokerProcess, topic: str, given: dict) -> None:
    async def main() -> None:
        async with takhin.connect(shared_broker.address) as tk, tk.producer(topic) as producer:
            with pytest.raises(TypeError):
                producer.send_nowait(**given)

    asyncio.run(main())


def test_arguments_are_checked() -> None:
    tk = takhin.connect()
    for wrong in ({"acks": "all"}, {"max_in_flight": 6}, {"max_in_flight": 0}, {"batch_bytes": 0}):
        with pytest.raises(ValueError, match="is not"):
            tk.producer("t", **wrong)
    tk.producer("t", max_in_flight=50, idempotent=False)


def test_keys_go_where_the_broker_would_put_them(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub, 7)
    keys = [b"", b"k", *(b"key-%d" % number for number in range(40)), bytes(range(256))]
    chosen = [produce(stub, topic, pb.Record(key=key), partition=-1).partition for key in keys]
    assert [key_partition(key, 7) for key in keys] == chosen

    async def main() -> list[int]:
        async with takhin.connect(shared_broker.address) as tk, tk.producer(topic) as producer:
            return [(await each).partition for each in [producer.send_nowait(b"", key=key) for key in keys]]

    assert asyncio.run(main()) == chosen and len(set(chosen)) > 4


def test_without_a_key_batches_take_turns(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub, 3)

    async def main() -> list[takhin.RecordMetadata]:
        async with takhin.connect(shared_broker.address) as tk, tk.producer(topic, batch_bytes=1000) as producer:
            return [await each for each in [producer.send_nowait(b"x" * 90) for _ in range(90)]]

    partitions = [each.partition for each in asyncio.run(main())]
    runs = [(number, len(list(group))) for number, group in itertools.groupby(partitions)]
    assert {count for _, count in runs[:-1]} == {10}, "as many as fit into a batch go together"
    assert sorted(partitions) == [0] * 30 + [1] * 30 + [2] * 30


def test_batches_gather_while_one_is_under_way(shared_broker: BrokerProcess, stub: Stub, topic: str) -> None:
    async def main() -> None:
        async with takhin.connect(shared_broker.address) as tk, tk.producer(topic, linger_ms=1000) as producer:
            loop = asyncio.get_running_loop()
            begun_s = loop.time()
            await producer.send(b"alone")
            assert loop.time() - begun_s < 0.9, "sent at once, as nothing was under way"
            futures = [producer.send_nowait(b"%d" % number) for number in range(500)]
            await asyncio.sleep(0)
            futures += [producer.send_nowait(b"%d" % number) for number in range(500)]
            await asyncio.gather(*futures)

    asyncio.run(main())
    batches = [
        batch.record_count for response in consume(stub, topic, until_end=True) for batch in response.batches]
    assert batches[0] == 1 and sum(batches) == 1_001 and len(batches) <= 4


async def _produce_through_cuts(address: str, topic: str, cuts: int, *, idempotent: bool) -> int:
    """Records with an increasing number, over two partitions, until connections were reset `cuts` times; gives how many
    records. A fast machine sends many between two cuts, so it is the cuts that are counted.
    """
    async with proxy_to(address) as proxy, takhin.connect(proxy.address) as tk:
        async with tk.producer(topic, batch_bytes=600, linger_ms=0, idempotent=idempotent, max_in_flight=5) as producer:
            async with background(proxy.cut_at_random(0.01, 0.08, seed=7)):
                futures = []
                while len(futures) < 6_000 or proxy.cuts < cuts:
                    number = len(futures)
                    futures.append(producer.send_nowait(b"%06d" % number, partition=number % 2))
                    if number % 20 == 0:
                        await asyncio.sleep(0.002)
                answers = await asyncio.gather(*futures)
        assert [each.partition for each in answers] == [number % 2 for number in range(len(answers))]
        return len(answers)


def test_five_in_flight_keep_their_order_and_nothing_is_doubled(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub, 2)
    count = asyncio.run(_produce_through_cuts(shared_broker.address, topic, 12, idempotent=True))
    for partition in 0, 1:
        found = values(read(stub, topic, partition=partition))
        assert found == [b"%06d" % number for number in range(partition, count, 2)]


def test_without_idempotence_the_order_holds_too(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub, 2)
    count = asyncio.run(_produce_through_cuts(shared_broker.address, topic, 6, idempotent=False))
    for partition in 0, 1:
        found = values(read(stub, topic, partition=partition))
        first_seen = list(dict.fromkeys(found))
        assert first_seen == [b"%06d" % number for number in range(partition, count, 2)]


def test_a_killed_broker_loses_and_doubles_nothing(broker: BrokerProcess) -> None:
    create_topic(broker.stub(), "orders", 3)

    async def main() -> list[takhin.RecordMetadata]:
        async with proxy_to(broker.address) as proxy, takhin.connect(proxy.address) as tk:
            async with tk.producer("orders", batch_bytes=2_000, acks="written") as producer:
                futures = []
                for number in range(6_000):
                    futures.append(producer.send_nowait(b"%06d" % number, key=b"%d" % (number % 9)))
                    if number % 50 == 0:
                        await asyncio.sleep(0.003)
                    if number in (1_500, 3_600):
                        # While batches are under way.
                        await asyncio.to_thread(broker.restart, kill=True)
                        proxy.target = broker.address
                return await asyncio.gather(*futures)

    answers = asyncio.run(main())
    everything = []
    for partition in range(3):
        records = read(broker.stub(), "orders", partition=partition)
        for key, group in itertools.groupby(sorted(records, key=lambda each: each.key), key=lambda each: each.key):
            stored = [each.value for each in sorted(group, key=lambda each: each.offset)]
            assert stored == sorted(stored), key
        everything += values(records)
        by_offset = {each.offset: each.value for each in records}
        for number, answer in enumerate(answers):
            if answer.partition == partition:
                assert by_offset[answer.offset] == b"%06d" % number
    assert sorted(everything) == [b"%06d" % number for number in range(6_000)]


def test_what_is_refused_does_not_hold_up_what_follows(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub, max_message_bytes=1_000)

    async def main() -> list[object]:
        async with takhin.connect(shared_broker.address) as tk:
            async with tk.producer(topic, batch_bytes=1_100, linger_ms=0) as producer:
                futures = []
                for number in range(30):
                    futures.append(producer.send_nowait(b"%03d" % number + bytes(700)))
                    if number % 10 == 4:
                        futures.append(producer.send_nowait(b"too large" + bytes(1_000)))
                return await asyncio.gather(*futures, return_exceptions=True)

    answers = asyncio.run(main())
    refused = [each for each in answers if isinstance(each, Exception)]
    assert len(refused) == 3 and {type(each) for each in refused} == {takhin.RecordTooLarge}
    assert all(each.reason is Reason.RECORD_TOO_LARGE for each in refused)
    assert [each[:3] for each in values(read(stub, topic))] == [b"%03d" % number for number in range(30)]


def test_a_broker_that_lost_count_gets_a_new_producer(shared_broker: BrokerProcess, stub: Stub) -> None:
    """A topic that was made anew knows nothing of the sequence so far."""
    topic = new_topic(stub)

    async def main() -> None:
        async with takhin.connect(shared_broker.address) as tk, tk.producer(topic) as producer:
            for number in range(3):
                await producer.send(b"%d" % number)
            await tk.delete_topic(topic)
            await tk.create_topic(topic, partitions=1)
            answers = [await producer.send(b"again %d" % number) for number in range(3)]
            assert [each.offset for each in answers] == [0, 1, 2]

    asyncio.run(main())
    assert values(read(stub, topic)) == [b"again 0", b"again 1", b"again 2"]


def test_a_flush_that_is_late_names_what_was_not_delivered(shared_broker: BrokerProcess, topic: str) -> None:
    async def main() -> None:
        async with proxy_to(shared_broker.address) as proxy, takhin.connect(proxy.address) as tk:
            async with tk.producer(topic) as producer:
                await producer.send(b"delivered", key=b"before")
                proxy.is_blocked = True
                futures = [producer.send_nowait(b"v", key=b"key-%d" % number) for number in range(3)]
                with pytest.raises(takhin.FlushTimeout, match=rf"3 records for '{topic}' \(partitions 0\)") as raised:
                    await producer.flush(0.2)
                assert raised.value.count == 3
                assert [(each.topic, each.partition, each.key) for each in raised.value.undelivered] == [
                    (topic, 0, b"key-%d" % number) for number in range(3)]
                proxy.is_blocked = False
                await producer.flush()
                assert [each.result().offset for each in futures] == [1, 2, 3]
            with pytest.raises(takhin.FlushTimeout):
                async with tk.producer(topic, flush_timeout_s=0.2) as producer:
                    proxy.is_blocked = True
                    future = producer.send_nowait(b"late")
            with pytest.raises(takhin.Closed):
                await future
            proxy.is_blocked = False

    asyncio.run(main())


def test_a_failure_that_nobody_saw_is_told_by_the_flush(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub, max_message_bytes=100)

    async def main() -> None:
        async with takhin.connect(shared_broker.address) as tk:
            with pytest.raises(takhin.NotDelivered, match="1 records for .* were not stored: a record of") as raised:
                async with tk.producer(topic) as producer:
                    producer.send_nowait(bytes(200), key=b"large")
            assert [each.key for each in raised.value.undelivered] == [b"large"]
            assert isinstance(raised.value.undelivered[0].error, takhin.RecordTooLarge)
            async with tk.producer(topic) as producer:
                with pytest.raises(takhin.RecordTooLarge):
                    await producer.send(bytes(200))
                future = producer.send_nowait(bytes(200))
                with pytest.raises(takhin.RecordTooLarge):
                    await future
            with pytest.raises(RuntimeError, match="of the program's own"):
                async with tk.producer(topic) as producer:
                    producer.send_nowait(b"small")
                    raise RuntimeError("of the program's own")

    asyncio.run(main())
    assert values(read(stub, topic)) == [b"small"], "what was sent before the program failed arrives"


def test_a_full_buffer_says_so_and_send_waits(shared_broker: BrokerProcess, topic: str) -> None:
    async def main() -> None:
        async with proxy_to(shared_broker.address) as proxy, takhin.connect(proxy.address) as tk:
            async with tk.producer(topic, buffer_bytes=10_000) as producer:
                await producer.send(b"first")
                proxy.is_blocked = True
                futures = []
                with pytest.raises(takhin.BufferFull, match="buffer_bytes 10000") as raised:
                    while True:
                        futures.append(producer.send_nowait(bytes(1_000)))
                assert raised.value.retryable and 6 <= len(futures) <= 8
                waiting = [asyncio.ensure_future(producer.send(b"%d" % number)) for number in range(20)]
                room = asyncio.ensure_future(producer.room())
                waiting[3].cancel()
                await asyncio.sleep(0.1)
                assert not any(each.done() for each in waiting if each is not waiting[3])
                proxy.is_blocked = False
                answers = await asyncio.gather(*waiting, return_exceptions=True)
                await room
                assert [type(each) for each in answers].count(asyncio.CancelledError) == 1
                offsets = [each.offset for each in answers if isinstance(each, takhin.RecordMetadata)]
                assert offsets == sorted(offsets) and len(offsets) == 19

    asyncio.run(main())


def test_a_record_has_a_deadline(shared_broker: BrokerProcess, stub: Stub, topic: str) -> None:
    async def main() -> None:
        async with proxy_to(shared_broker.address) as proxy, takhin.connect(proxy.address) as tk:
            async with tk.producer(topic, delivery_timeout_s=0.5, request_timeout_s=0.2) as producer:
                await producer.send(b"first")
                proxy.is_blocked = True
                proxy.cut()
                proxy.is_refusing = True
                with pytest.raises(takhin.DeadlineExceeded, match="delivery_timeout_s"):
                    await producer.send(b"lost")
                proxy.is_blocked = proxy.is_refusing = False
                # It goes on: what was lost is missing, what follows is there.
                for number in range(3):
                    await _until_sent(producer, b"after %d" % number)

    async def _until_sent(producer: takhin.Producer, value: bytes) -> None:
        for _ in range(20):
            try:
                await producer.send(value)
                return
            except takhin.DeadlineExceeded:
                pass
        raise AssertionError("it does not come back")

    asyncio.run(main())
    found = values(read(stub, topic))
    # One that was given up may have been stored all the same, and then it is there twice.
    assert found[0] == b"first" and [each for each in dict.fromkeys(found) if each.startswith(b"after")] == [
        b"after 0", b"after 1", b"after 2"]


def test_a_broker_that_does_not_answer_is_tried_anew(shared_broker: BrokerProcess, stub: Stub, topic: str) -> None:
    async def main() -> None:
        async with proxy_to(shared_broker.address) as proxy, takhin.connect(proxy.address) as tk:
            async with tk.producer(topic, request_timeout_s=0.3) as producer:
                await producer.send(b"0")
                proxy.is_blocked = True
                futures = [producer.send_nowait(b"%d" % number) for number in range(1, 4)]
                await asyncio.sleep(1.0)
                proxy.is_blocked = False
                await asyncio.gather(*futures)

    asyncio.run(main())
    assert values(read(stub, topic)) == [b"0", b"1", b"2", b"3"]


def test_a_topic_that_grows_is_noticed(
    shared_broker: BrokerProcess, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = new_topic(stub)
    monkeypatch.setattr("takhin.client.producer._PARTITIONS_REFRESH_S", 0.05)

    async def main() -> set[int]:
        async with takhin.connect(shared_broker.address) as tk, tk.producer(topic) as producer:
            await producer.send(b"")
            await tk.update_topic(topic, partitions=4)
            await asyncio.sleep(0.1)
            found = set()
            for number in range(100):
                found.add((await producer.send(b"", key=b"%d" % number)).partition)
            return found

    assert asyncio.run(main()) == {0, 1, 2, 3}


def test_a_flush_that_ran_out_of_time_is_not_tried_again(shared_broker: BrokerProcess, topic: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with proxy_to(shared_broker.address) as proxy, takhin.connect(proxy.address) as tk:
            with pytest.raises(takhin.FlushTimeout) as raised:
                async with tk.producer(topic, flush_timeout_s=30) as producer:
                    await producer.send(b"first")
                    proxy.is_blocked = True
                    producer.send_nowait(b"late")
                    begun_s = loop.time()
                    await producer.flush(0.2)
            assert loop.time() - begun_s < 20, "leaving waits no second time"
            assert raised.value.count == 1 and not getattr(raised.value, "__notes__", None)

    asyncio.run(main())


def test_small_records_count_for_what_they_cost(shared_broker: BrokerProcess, topic: str) -> None:
    async def main() -> None:
        async with proxy_to(shared_broker.address) as proxy, takhin.connect(proxy.address) as tk:
            async with tk.producer(topic, buffer_bytes=100_000) as producer:
                await producer.send(b"first")
                proxy.is_blocked = True
                futures = []
                with pytest.raises(takhin.BufferFull):
                    while True:
                        futures.append(producer.send_nowait(b""))
                assert 400 < len(futures) < 600, "and not some fifty thousand"
                proxy.is_blocked = False
                await asyncio.gather(*futures)
            assert producer._buffered_bytes == 0

    asyncio.run(main())
