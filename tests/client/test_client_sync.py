"""The client without asyncio: the same names, from plain code and from threads."""

import concurrent.futures
import inspect
import os
import threading
import time
from collections.abc import Coroutine
from typing import Any

import pytest

import takhin
import takhin.sync
from tests.broker_process import BrokerProcess, Stub, committed, new_topic, produce, read, values, wait_until


def test_it_has_the_same_names() -> None:
    for name in "Client", "Producer", "Consumer", "Reader", "Transaction":
        asynchronous, plain = getattr(takhin, name), getattr(takhin.sync, name)
        missing = {each for each in vars(asynchronous) if not each.startswith("_")} - set(dir(plain))
        # Not for programs; and what the member is told.
        missing -= {"room", "enqueue", "next_batch", "aclose", "fetch", "hand_back", "topics", "buffer_bytes"}
        missing -= {"membership", "was_committed", "positions", "send_encoded"}
        missing -= {"joined", "assigned", "received", "revoking", "lost", "unreadable", "cut", "ended"}
        assert not missing, name
    assert {each for each in vars(takhin.client.Access) if not each.startswith("_")} <= set(dir(takhin.sync.Access))
    assert inspect.signature(takhin.sync.Client.producer) == inspect.signature(takhin.Client.producer)
    assert takhin.sync.TopicNotFound is takhin.TopicNotFound
    with pytest.raises(AttributeError):
        takhin.sync.nothing  # noqa: B018


def test_a_conversation(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub)
    with takhin.sync.connect(shared_broker.address) as tk:
        assert tk.health().status == "healthy" and topic in tk.list_topics()
        with tk.producer(topic) as producer:
            assert producer.send(b"first", key=b"k", headers={"h": b"x"}).offset == 0
            futures = [producer.send_nowait(b"%d" % number) for number in range(1_000)]
            assert producer.send(b"after them").offset == 1_001
            assert [each.result(20).offset for each in futures] == list(range(1, 1_001))
            assert isinstance(producer.send_nowait("text").exception(20), TypeError)
        messages = list(tk.read(topic, until_end=True))
        assert [each.offset for each in messages] == list(range(1_002)) and messages[0].headers == (("h", b"x"),)
        assert sum(len(each) for each in tk.read(topic, until_end=True).batches()) == 1_002
        with tk.read(topic, start=-1) as reader:
            assert next(reader).value == b"after them"
        with pytest.raises(takhin.TopicNotFound):
            tk.describe_topic("absent")
        key, data = tk.access.create_key(topic, lifetime_s=60)
        assert data in tk.access.list_keys() and tk.access.revoke_key(data.id) == data and data.id in key


def test_a_consumer_commits_what_was_looked_at(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub)
    produce(stub, topic, *[b"%d" % number for number in range(2_000)])
    group = "sync-" + topic
    with takhin.sync.connect(shared_broker.address) as tk:
        with tk.consumer(topic, group=group, auto_commit=True) as consumer:
            for message in consumer:
                if message.offset == 99:
                    break
            assert consumer.position((topic, 0)) == 100
        assert committed(stub, group, topic) == 100, "not what was taken over and not handed out"
        with tk.consumer(topic, group=group) as consumer:
            assert next(consumer).offset == 100
            consumer.commit()
            assert committed(stub, group, topic) == 101
            message = consumer.next(20)
            assert message is not None and message.offset == 101
            consumer.seek((topic, 0), 1_990)
            assert [next(consumer).offset for _ in range(10)] == list(range(1_990, 2_000))
            assert consumer.next(0.1) is None
            consumer.seek((topic, 0), "earliest")
            consumer.pause()
            assert consumer.next(0.1) is None
            consumer.resume()
            assert next(consumer).offset == 0
            batch = next(consumer.batches(max_records=50))
            assert [each.offset for each in batch] == list(range(1, 51))
            assert consumer.assignment == ((topic, 0),) and consumer.group == group
            assert consumer.lag() == {(topic, 0): 2_000 - 51}
            consumer.commit(message)
            assert committed(stub, group, topic) == 102
        with pytest.raises(RuntimeError, match="of the program's own"):
            with tk.consumer(topic, group=group, auto_commit=True) as consumer:
                next(consumer), next(consumer)
                raise RuntimeError("of the program's own")
        assert committed(stub, group, topic) in (102, 103), "what was in hand when the program failed is not committed"


def test_from_many_threads(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub)
    with takhin.sync.connect(shared_broker.address) as tk, tk.producer(topic) as producer:
        def work(number: int) -> None:
            for count in range(200):
                producer.send_nowait(b"%d-%03d" % (number, count))
            producer.flush()

        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))
        found = values(read(stub, topic))
        for number in range(4):
            assert [each for each in found if each.startswith(b"%d-" % number)] == [
                b"%d-%03d" % (number, count) for count in range(200)]
        assert sum(thread.name == "takhin" for thread in threading.enumerate()) == 1


def test_the_buffer_is_bounded(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub)
    with takhin.sync.connect(shared_broker.address) as tk, tk.producer(topic, buffer_bytes=20_000) as producer:
        refused = 0
        for _ in range(2_000):
            try:
                producer.send_nowait(bytes(1_000))
            except takhin.BufferFull:
                refused += 1
        producer.flush()
        assert refused and len(read(stub, topic)) == 2_000 - refused
        producer.send_nowait(bytes(1_000)).result(20)


def test_what_nobody_looked_at_is_told(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub, max_message_bytes=100)
    with takhin.sync.connect(shared_broker.address) as tk:
        with pytest.raises(takhin.NotDelivered, match="were not stored"):
            with tk.producer(topic) as producer:
                future = producer.send_nowait(bytes(200))
        with pytest.raises(takhin.RecordTooLarge):
            future.result(20)


def test_a_child_has_a_loop_of_its_own(shared_broker: BrokerProcess) -> None:
    code = (
        "import os, takhin.sync\n"
        "tk = takhin.sync._background.get()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    import asyncio\n"
        "    os._exit(takhin.sync._background.run(asyncio.sleep(0, 7)))\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n")
    import subprocess
    import sys

    assert subprocess.run([sys.executable, "-c", code], env=os.environ, timeout=60).returncode == 7


def test_a_slow_program_gets_on(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub)
    produce(stub, topic, *[b"%d" % number for number in range(2_000)])
    group = "slow-" + topic
    with takhin.sync.connect(shared_broker.address) as tk:
        with tk.consumer(topic, group=group, auto_commit=True, max_processing_s=1) as consumer:
            until_s = time.monotonic() + 2.5
            found = []
            while time.monotonic() < until_s:
                found.append(next(consumer).offset)
                time.sleep(0.02)
            assert found == list(range(len(found))), "put out, it would read the same again"
            assert (committed(stub, group, topic) or 0) > 0
        assert committed(stub, group, topic) == len(found)


def test_what_was_taken_over_long_ago_goes_back(
    shared_broker: BrokerProcess, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takhin.sync, "_KEEP_S", 0.1)
    monkeypatch.setattr(takhin.sync, "_FETCH_MORE_S", 60)
    topic = new_topic(stub)
    produce(stub, topic, *[b"%d" % number for number in range(2_000)])
    group = "kept-" + topic
    with takhin.sync.connect(shared_broker.address) as tk:
        with tk.consumer(topic, group=group) as consumer:
            found = [next(consumer).offset for _ in range(600)]
            assert consumer._here and sum(consumer.lag().values()) == 1_400
            time.sleep(0.15)
            found += [next(consumer).offset for _ in range(10)]
            assert found == list(range(610)) and len(consumer._here) < 20
            consumer.commit()
            assert committed(stub, group, topic) == 610
            # A partition that is another's meanwhile, or is given anew, is not set to what was taken over before.
            while not consumer._here:
                found.append(next(consumer).offset)
            place = takhin.TopicPartition(topic, 0)
            consumer._wrapped._owned[place].position += 1
            assert consumer._not_handed_out() == {}


def test_interrupted_it_loses_nothing(
    shared_broker: BrokerProcess, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = new_topic(stub)
    produce(stub, topic, *[b"%d" % number for number in range(10)])
    monkeypatch.setattr(takhin.sync, "_FETCH_MORE_S", 0)  # one by one
    run = takhin.sync._background.run

    def interrupted(work: Coroutine[Any, Any, Any]) -> Any:
        run(work)
        raise KeyboardInterrupt

    with takhin.sync.connect(shared_broker.address) as tk, tk.consumer(topic, group="cut-" + topic) as consumer:
        assert next(consumer).offset == 0
        for ask in lambda: next(consumer), lambda: consumer.next(20):
            expected = consumer.position((topic, 0))
            with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
                patched.setattr(takhin.sync._background, "run", interrupted)
                ask()
            assert next(consumer).offset == expected


def test_what_was_cancelled_holds_nothing_up(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub)
    with takhin.sync.connect(shared_broker.address) as tk, tk.producer(topic) as producer:
        # The loop's thread comes to them when they are cancelled.
        hold, held = threading.Event(), threading.Event()
        takhin.sync._background.get().call_soon_threadsafe(lambda: (held.set(), hold.wait(20)))
        assert held.wait(20)
        refused = producer.send_nowait("text")  # type: ignore[arg-type]
        stored = producer.send_nowait(b"v", headers=iter([("h", b"x")]))
        assert refused.cancel()
        hold.set()
        assert stored.result(20).offset == 0
        producer.flush(20)
    assert [each.headers[0].value for each in read(stub, topic)] == [b"x"]


def test_headers_count(shared_broker: BrokerProcess, stub: Stub) -> None:
    topic = new_topic(stub)
    with takhin.sync.connect(shared_broker.address) as tk, tk.producer(topic, buffer_bytes=20_000) as producer:
        hold, held = threading.Event(), threading.Event()
        takhin.sync._background.get().call_soon_threadsafe(lambda: (held.set(), hold.wait(20)))
        assert held.wait(20)
        try:
            with pytest.raises(takhin.BufferFull):
                for _ in range(100):
                    producer.send_nowait(b"", headers={"h": bytes(1_000)})
        finally:
            hold.set()


def test_what_is_revoked_meanwhile_is_not_committed(
    shared_broker: BrokerProcess, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takhin.sync, "_KEEP_S", 60)
    monkeypatch.setattr(takhin.sync, "_FETCH_MORE_S", 60)
    topic = new_topic(stub, 2)
    for partition in range(2):
        produce(stub, topic, *[b"%d" % number for number in range(600)], partition=partition)
    group = "revoked-" + topic
    with takhin.sync.connect(shared_broker.address) as tk, concurrent.futures.ThreadPoolExecutor(1) as threads:
        seen = {0: 0, 1: 0}
        with tk.consumer(topic, group=group, auto_commit=True) as consumer:
            wait_until(lambda: sum(bool(each.arrived) for each in list(consumer._wrapped._owned.values())) == 2)
            # Of both partitions there is more here than was handed out.
            while {each.partition for each in consumer._here} != {0, 1}:
                message = next(consumer)
                seen[message.partition] = message.offset + 1
            other = tk.consumer(topic, group=group)
            joining = threads.submit(other.start)
            wait_until(lambda: len(consumer.assignment) == 1)
        joining.result(20)
        found = [committed(stub, group, topic, partition) or 0 for partition in range(2)]
        assert found == [seen[0], seen[1]], "not what was taken over and not handed out"
        other.aclose()
