"""TruncatePartition, by stock stubs on a real process: what readers and groups meet then, and kill -9 in its middle."""

from pathlib import Path

import grpc
import pytest

from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import (
    DEADLINE_S,
    EARLIEST,
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


def truncate(stub: Stub, topic: str, before_offset: int, partition: int = 0) -> int:
    request = pb.TruncatePartitionRequest(topic=topic, partition=partition, before_offset=before_offset)
    response = stub.TruncatePartition(request, timeout=DEADLINE_S)
    assert (response.success, response.error) == (True, "")
    return response.log_start_offset


def fill(stub: Stub, topic: str, count: int, partition: int = 0) -> list[bytes]:
    sent = [b"%04d" % number + b"v" * 500 for number in range(count)]
    for value in sent:
        produce(stub, topic, value, partition=partition, acks=-1)
    return sent


def bases(paths: list[Path]) -> list[int]:
    return [int(path.stem) for path in paths]


@pytest.mark.parametrize("kill", [False, True])
def test_what_lies_before_it_is_gone(broker: BrokerProcess, kill: bool) -> None:
    topic = new_topic(broker.stub(), 2, segment_bytes=2_000)
    stub = broker.stub()
    sent = [fill(stub, topic, 20), fill(stub, topic, 5, partition=1)]
    assert truncate(stub, topic, 11) == 11
    assert truncate(stub, topic, 0) == truncate(stub, topic, 11) == 11
    assert bases(broker.segments(0))[0] <= 11 < bases(broker.segments(0))[1]
    for _ in range(2):
        marks = offsets(stub, topic)
        assert (marks.beginning_offset, marks.end_offset) == (11, 20)
        assert values(read(stub, topic)) == values(read(stub, topic, offset=11)) == sent[0][11:]
        with refused(grpc.StatusCode.OUT_OF_RANGE, Reason.OFFSET_OUT_OF_RANGE) as refusal:
            read(stub, topic, offset=10)
        assert refusal.metadata["log_start_offset"] == "11"
        assert values(read(stub, topic, partition=1)) == sent[1], "the other partition is untouched"
        broker.restart(kill=kill)
        stub = broker.stub()
    assert truncate(stub, topic, -1) == 20
    assert bases(broker.segments(0)) == [20]
    assert read(stub, topic) == []
    assert produce(stub, topic, b"on").offset == 20
    assert values(read(stub, topic)) == [b"on"]


def test_readers_and_groups_that_are_overtaken(broker: BrokerProcess) -> None:
    stub = broker.stub()
    topic = new_topic(stub)
    # More than a connection holds of what its client has not taken yet.
    for _ in range(10):
        produce(stub, topic, *(b"v" * 100_000 for _ in range(30)))
    commit(stub, "behind", (topic, 0, 3))
    call = consume(stub, topic, offset=EARLIEST, max_bytes=1)
    assert next(call).records[0].offset == 0
    assert truncate(stub, topic, 290) == 290
    with refused(grpc.StatusCode.OUT_OF_RANGE, Reason.OFFSET_OUT_OF_RANGE) as refusal:
        # What was on its way comes first.
        for number, response in enumerate(call, 1):
            assert response.records[0].offset == number < 290
    assert refusal.metadata["log_start_offset"] == "290"
    # A group that fell behind may still say where it stands.
    assert commit(stub, "behind", (topic, 0, 4)).success
    with refused(grpc.StatusCode.FAILED_PRECONDITION, Reason.OFFSET_BEHIND_COMMITTED):
        commit(stub, "behind", (topic, 0, 3))


@pytest.mark.parametrize("name", ["00.index", "00.log", "06.index", "06.log", "12.log"])
def test_killed_while_files_go(start_broker: StartBroker, strace: list[str], name: str) -> None:
    """As it removes that file: the next start goes on with it."""
    path = f"{{data}}/topics/1/0/{name:0>{18 + len(name)}}"
    broker = start_broker(prefix=[
        *strace, "-o", "/dev/null", "-P", path, "-e", "trace=unlink", "-e", "inject=unlink:signal=SIGKILL",
    ])
    topic = new_topic(broker.stub(), segment_bytes=2_000)
    sent = fill(broker.stub(), topic, 20)
    with pytest.raises(grpc.RpcError) as caught:
        truncate(broker.stub(), topic, 17)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    broker.wait()
    assert bases(broker.segments())[-2:] == [15, 18]
    broker.prefix = []
    broker.start()
    marks = offsets(broker.stub(), topic)
    assert (marks.beginning_offset, marks.end_offset) == (17, 20)
    assert values(read(broker.stub(), topic)) == sent[17:]
    assert bases(broker.segments())[1] > 17
    assert truncate(broker.stub(), topic, -1) == 20
    assert produce(broker.stub(), topic, b"on", acks=-1).offset == 20
