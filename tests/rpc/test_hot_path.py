"""The hot RPCs construct no message of the generated classes, and what arrives together is written together.

The messages are counted in a real server. It runs with protobuf's implementation in Python, whose classes can be told
to count themselves; sub-messages and what FromString makes are counted like any other. The count lies in a file that
server and test share.
"""

import asyncio
import mmap
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from takhin.broker.broker import Broker
from takhin.config import Settings
from takhin.errors import Code, Reason
from takhin.rpc.service import takhin_methods
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import (
    DEADLINE_S,
    BrokerProcess,
    Stub,
    commit,
    consume,
    new_topic,
    offsets,
    produce,
    read,
    refused,
    values,
)
from tests.conftest import StartBroker
from tests.secured import IS_DEFAULT

# The number of messages constructed, and the name of the last one's type.
SHARED = struct.Struct("<Q120s")
COUNTING_SERVER = """
import mmap, os, struct, sys
from google.protobuf.internal import api_implementation, python_message
assert api_implementation.Type() == "python"
shared = struct.Struct("<Q120s")
with open(os.environ["COUNT_FILE"], "r+b") as file:
    place = mmap.mmap(file.fileno(), shared.size)
total = 0

def count(kind):
    construct = kind.__init__
    def counted(self, *args, **kwargs):
        global total
        total += 1
        shared.pack_into(place, 0, total, kind.DESCRIPTOR.full_name.encode())
        construct(self, *args, **kwargs)
    kind.__init__ = counted

make_type = python_message.GeneratedProtocolMessageType.__init__
def make_counted_type(kind, *args):
    make_type(kind, *args)
    if "__init__" in kind.__dict__ and not hasattr(kind.__init__, "counts"):
        count(kind)
        kind.__init__.counts = True
python_message.GeneratedProtocolMessageType.__init__ = make_counted_type

from takhin.cli.server import main
sys.exit(main())
"""


class Counter:
    """How many messages the server has constructed."""

    def __init__(self, path: Path):
        path.write_bytes(bytes(SHARED.size))
        with path.open("r+b") as file:
            self._place = mmap.mmap(file.fileno(), SHARED.size)

    def during(self, act: Callable[[], object]) -> tuple[int, str]:
        """How many `act` made it construct; and the type of the last, if any."""
        before, _ = SHARED.unpack_from(self._place)
        act()
        after, name = SHARED.unpack_from(self._place)
        return after - before, name.rstrip(b"\0").decode() if after > before else ""


@pytest.fixture
def counter(tmp_path: Path) -> Counter:
    return Counter(tmp_path / "count")


@pytest.fixture
def counting(start_broker: StartBroker, counter: Counter, tmp_path: Path) -> BrokerProcess:
    variables = {"COUNT_FILE": str(tmp_path / "count"), "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
    program = [sys.executable, "-c", COUNTING_SERVER]
    return start_broker("--limits-ring-bytes", "65536", program=program, variables=variables)


def test_the_counter_counts(counting: BrokerProcess, counter: Counter) -> None:
    """On the other RPCs, where the generated classes are used: a request and a response at least."""
    stub = counting.stub()
    topic = new_topic(stub, 2)
    # What asks whether it is allowed reads the request, too.
    messages = 3 if IS_DEFAULT else 2
    assert counter.during(lambda: offsets(stub, topic)) == (messages, "takhin.v1.GetPartitionOffsetsResponse")
    made, _ = counter.during(lambda: stub.GetTopic(pb.GetTopicRequest(name=topic), timeout=DEADLINE_S))
    assert made >= 5, "the topic and its partitions in the response count too"
    made, _ = counter.during(lambda: commit(stub, "group", (topic, 0, 0), (topic, 1, 0)))
    assert made >= 4, "and those that parsing makes"


def produce_all_ways(stub: Stub, topic: str) -> None:
    header = pb.RecordHeader(key="k", value=b"v")
    for acks in 0, 1, -1:
        produce(stub, topic, pb.Record(key=b"k", value=b"v", headers=[header], timestamp=5), acks=acks)
        produce(stub, topic, *[b"v" * 1000] * 100, acks=acks)
        produce(stub, topic, pb.Record(key=b"k"), partition=-1, acks=acks)


def stream(stub: Stub, topic: str) -> None:
    """Refusals included: they are answers like others."""

    def requests() -> Iterator[pb.ProduceMessageRequest]:
        for number in range(100):
            name = "nowhere" if number == 50 else topic
            acks = (0, 1, -1)[number % 3]
            yield pb.ProduceMessageRequest(topic=name, required_acks=acks, record=pb.Record(value=b"v"))

    answers = list(stub.ProduceMessageStream(requests(), timeout=DEADLINE_S))
    assert [answer.code for answer in answers].count(Code.NOT_FOUND) == 1
    assert answers[50].reason == Reason.TOPIC_NOT_FOUND


def test_hot_rpcs_construct_no_message(counting: BrokerProcess, counter: Counter) -> None:
    stub = counting.stub()
    topic = new_topic(stub)
    assert counter.during(lambda: produce_all_ways(stub, topic)) == (0, "")
    assert counter.during(lambda: stream(stub, topic)) == (0, "")
    # From memory and from files, in whole batches and in parts, to the end and following.
    for fields in {}, {"max_bytes": 500}, {"max_records": 7}:
        assert counter.during(lambda fields=fields: read(stub, topic, **fields)) == (0, "")
    assert len(read(stub, topic)) == 3 * 102 + 99

    def follow() -> None:
        call = consume(stub, topic, offset=-2, max_wait_ms=50)
        assert next(call).caught_up
        produce(stub, topic, b"new")
        # On a busy machine it has told before that there is nothing yet.
        assert values(next(response for response in call if response.records).records) == [b"new"]
        call.cancel()

    assert counter.during(follow) == (0, "")


def test_a_refused_call_constructs_only_its_status(counting: BrokerProcess, counter: Counter) -> None:
    stub = counting.stub()

    def refuse() -> None:
        with refused(grpc.StatusCode.NOT_FOUND, Reason.TOPIC_NOT_FOUND):
            produce(stub, "nowhere", b"v")

    made, last = counter.during(refuse)
    assert 0 < made <= 5 and last.startswith("google.")


# Requests that arrive together


def test_plain_requests_of_one_tick_share_a_batch(tmp_path: Path) -> None:
    """In process, where it is certain that they arrive in one tick. Each gets its own answer all the same."""

    async def go() -> tuple[list[pb.ProduceMessageResponse], bytes]:
        broker = Broker(Settings(data_dir=str(tmp_path)))
        await broker.start()
        try:
            handlers = {method.path.rpartition("/")[2]: method.handler for method in takhin_methods(broker)}
            await handlers["CreateTopic"](pb.CreateTopicRequest(name="t").SerializeToString(), None)
            requests = [pb.ProduceMessageRequest(topic="t", required_acks=(0, 1, -1)[n % 3]) for n in range(64)]
            for number, request in enumerate(requests):
                request.record.value = b"%d" % number
            # A batch of its own keeps its own header.
            requests[40].ClearField("record")
            requests[40].records.add(value=b"40")
            answers = await asyncio.gather(
                *(handlers["ProduceMessage"](request.SerializeToString(), None) for request in requests))
            (log,) = tmp_path.glob("topics/*/0/*.log")
            return [pb.ProduceMessageResponse.FromString(answer) for answer in answers], log.read_bytes()
        finally:
            await broker.stop()

    answers, segment = asyncio.run(go())
    assert [(answer.offset, answer.record_count) for answer in answers] == [(number, 1) for number in range(64)]
    assert {answer.durability for answer in answers} == {1, 2, 3}
    decoded = pb.ConsumeMessagesResponse.FromString(segment)
    assert [record.value for record in decoded.records] == [b"%d" % number for number in range(64)]
    assert [(batch.base_offset, batch.record_count) for batch in decoded.batches] == [(0, 40), (40, 1), (41, 23)]
