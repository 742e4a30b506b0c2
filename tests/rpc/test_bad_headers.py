"""Headers of calls that are not as gRPC has them, and deadlines that are over: on each front the call is refused, and
nothing of it is done."""

import hpack
import pytest

from bench import http2
from bench.http2 import HEADERS
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import BrokerProcess, new_topic, offsets
from tests.conftest import StartBroker
from tests.rpc.test_limits import in_the_clear

pytestmark = in_the_clear
PRODUCE = "/takhin.v1.TakhinService/ProduceMessage"
OK, DEADLINE_EXCEEDED, INTERNAL = "0", "4", "13"


@pytest.mark.parametrize(("name", "value", "status"), [
    ("grpc-timeout", "1x", INTERNAL), ("grpc-timeout", "S", INTERNAL), ("grpc-timeout", "-1S", INTERNAL),
    ("grpc-timeout", "123456789S", OK), ("grpc-timeout", "12345678901234567890H", OK), ("grpc-timeout", "60S", OK),
    ("a-bin", "!!!", INTERNAL), ("a-bin", "AAE", OK), ("a-bin", "AAE=", OK), ("a-bin", "", OK)])
def test_a_record_is_appended_or_the_call_refused(
    start_broker: StartBroker, name: str, value: str, status: str
) -> None:
    produce_with(start_broker(), name, value, status)


@pytest.mark.one_front("fast", "core may serve a call before the timer fires that is to end it")
@pytest.mark.parametrize("timeout", ["0S", "0n", "00000000H"])
def test_a_deadline_that_is_over_is_kept(start_broker: StartBroker, timeout: str) -> None:
    produce_with(start_broker(), "grpc-timeout", timeout, DEADLINE_EXCEEDED)


def produce_with(broker: BrokerProcess, name: str, value: str, status: str) -> None:
    """A call with that header, which ends with that status; its record is appended when that is OK."""
    topic = new_topic(broker.stub())
    request = pb.ProduceMessageRequest(topic=topic, record=pb.Record(value=b"x"), required_acks=1)
    with http2.Connection(broker.address) as connection:
        decoder = hpack.Decoder()
        number = connection.next_stream()
        connection.send(http2.open_call(number, http2.call_headers(PRODUCE, (name, value))) + http2.message(
            number, request.SerializeToString(), ends=True))
        found: dict[str, str] = {}
        while "grpc-status" not in found:
            got = connection.read_until(HEADERS, number)
            assert got is not None
            found = dict(decoder.decode(got.payload))
    assert found["grpc-status"] == status
    assert offsets(broker.stub(), topic).end_offset == (status == OK)
    broker.check()
