"""For the tests of takhin backup: brokers on copies, and what they have."""

import re
import shutil
from pathlib import Path

from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import DEADLINE_S, BrokerProcess, Stub, offsets, read
from tests.conftest import StartBroker


def on(start_broker: StartBroker, directory: Path) -> BrokerProcess:
    """A broker on this data directory."""
    broker = start_broker()
    broker.terminate()
    shutil.rmtree(broker.data_dir)
    shutil.copytree(directory, broker.data_dir)
    return broker.start()


def epoch_of(broker: BrokerProcess) -> int:
    """That in which its last run began."""
    return int(re.findall(r"epoch (\d+); ", broker.stderr)[-1])


def whole_log(stub: Stub, topic: str, partition: int) -> dict[int, bytes]:
    """Value by offset, from its beginning to its end, without a gap."""
    found = offsets(stub, topic, partition)
    records = read(stub, topic, partition=partition)
    assert [each.offset for each in records] == list(range(found.beginning_offset, found.end_offset))
    return {each.offset: each.value for each in records}


def transact(stub: Stub, topic: str, value: bytes) -> None:
    appends = [pb.ProduceMessageRequest(
        topic=topic, partition=each, required_acks=-1, record=pb.Record(value=value)) for each in range(2)]
    stub.ProduceTransaction(pb.ProduceTransactionRequest(appends=appends), timeout=DEADLINE_S)
