"""The client without asyncio: the same names, from plain code and from threads."""

import concurrent.futures
import inspect
import os
import threading

import pytest

import takhin
import takhin.client
import takhin.sync
from tests.broker_process import BrokerProcess, Stub, committed, new_topic, produce, read, values


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
