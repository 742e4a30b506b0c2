"""Connections do not live for ever: a stream that is cut by their age is resumed without a gap and without a double."""

import threading
import time

import grpc
import pytest

from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import BrokerProcess, consume, new_topic, produce, read, values
from tests.conftest import StartBroker

AGE_MS, GRACE_MS = 1000, 300
# Core spreads the age by a tenth either way.
LATEST_END_S = (AGE_MS * 1.1 + GRACE_MS) / 1000


@pytest.fixture
def ageing(start_broker: StartBroker) -> BrokerProcess:
    return start_broker(
        "--grpc-connection-age-ms", str(AGE_MS), "--grpc-connection-age-grace-ms", str(GRACE_MS))


def test_a_stream_ends_with_unavailable(ageing: BrokerProcess) -> None:
    topic = new_topic(ageing.stub())
    begun_s = time.monotonic()
    call = consume(ageing.stub(), topic, max_wait_ms=50)
    with pytest.raises(grpc.RpcError) as ended:
        for _ in call:
            pass
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert 0.9 * AGE_MS / 1000 < time.monotonic() - begun_s < LATEST_END_S + 3


def test_who_resumes_at_the_next_offset_misses_nothing(ageing: BrokerProcess) -> None:
    """While it is written to, by unary calls (which the grace lets end) and across three connections."""
    topic = new_topic(ageing.stub())
    stub = ageing.stub()
    until_s = time.monotonic() + 3 * AGE_MS / 1000
    sent: list[bytes] = []

    def load() -> None:
        while time.monotonic() < until_s:
            value = b"%d" % len(sent)
            assert produce(stub, topic, value, acks=(1, -1)[len(sent) % 2]).offset == len(sent)
            sent.append(value)
            time.sleep(0.002)

    loader = threading.Thread(target=load)
    loader.start()
    found: list[pb.Record] = []
    cuts = 0
    while loader.is_alive() or len(found) < len(sent):
        try:
            for response in consume(stub, topic, offset=len(found), max_wait_ms=100):
                assert not response.records or response.records[0].offset == len(found)
                found += response.records
                if not loader.is_alive() and len(found) == len(sent):
                    break
        except grpc.RpcError as exc:
            assert exc.code() is grpc.StatusCode.UNAVAILABLE, exc
            cuts += 1
    loader.join()
    assert cuts >= 1
    assert [record.offset for record in found] == list(range(len(sent)))
    assert values(found) == sent
    assert found == read(stub, topic)


def test_what_a_stream_was_answered_is_there(ageing: BrokerProcess) -> None:
    """A produce stream is cut as well: what was answered counts, the rest is unknown and is sent again by who cares."""
    topic = new_topic(ageing.stub())

    def requests():
        for number in range(100_000):
            yield pb.ProduceMessageRequest(topic=topic, required_acks=-1, record=pb.Record(value=b"%d" % number))
            time.sleep(0.005)

    answered = []
    with pytest.raises(grpc.RpcError) as ended:
        for answer in ageing.stub().ProduceMessageStream(requests()):
            assert answer.code == 0
            answered.append(answer.offset)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert answered and answered == list(range(len(answered)))
    found = values(read(ageing.stub(), topic))
    assert found == [b"%d" % number for number in range(len(found))] and len(found) >= len(answered)
