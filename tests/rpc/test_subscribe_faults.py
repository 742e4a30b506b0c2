"""Members and what goes wrong beside them: damaged logs, retention that is faster, commits beyond the end, kill -9."""

import subprocess
import sys
import time
from pathlib import Path

import grpc

from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import DEADLINE_S, BrokerProcess, commit, new_topic, produce, wait_until
from tests.conftest import StartBroker
from tests.member import Member, named, places
from tests.rpc.test_durability import batches_of

GROUP = "g"


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def test_a_damaged_partition_is_told_and_the_others_go_on(broker: BrokerProcess) -> None:
    topic = new_topic(broker.stub(), 2, segment_bytes=2000)
    for partition in range(2):
        for number in range(12):
            produce(broker.stub(), topic, *[b"%d" % number + b"x" * 200] * 2, partition=partition)
    broker.terminate()
    path = broker.segments(0)[1]
    start, _, base_offset = batches_of(path)[1]
    flip(path, start + 130)
    broker.start()
    stub = broker.stub()
    member = Member(stub, GROUP, topic)
    failed = member.wait_for("failed")
    assert (failed.topic, failed.partition, failed.offset) == (topic, 0, base_offset)
    assert (failed.code, failed.reason) == (15, Reason.CORRUPT_BATCH) and failed.error
    assert [record.offset for record in member.records(topic, 0)] == list(range(base_offset))
    member.wait(lambda: len(member.records(topic, 1)) == 24)
    produce(stub, topic, b"later", partition=1)
    member.wait(lambda: len(member.records(topic, 1)) == 25)
    assert member.commit((topic, 0, base_offset)).code == 0, "it is the member's all the same"
    # Once more, and past the damage.
    member.send(resume=named((topic, 0)))
    assert member.wait_for("failed", 2).offset == base_offset
    member.send(seek=pb.Seek(offsets=places((topic, 0, base_offset + 2))))
    member.wait(lambda: any(record.offset == 23 for record in member.records(topic, 0)))
    member.leave()


def test_a_member_that_retention_overtakes_goes_on_where_the_log_begins(broker: BrokerProcess) -> None:
    stub = broker.stub()
    topic = new_topic(stub)
    produce(stub, topic, *[b"v"] * 3)
    members = [Member(stub, f"{GROUP} {start}", topic, start_from=start) for start in (0, pb.START_FROM_NONE)]
    assert members[1].refused()[1] == Reason.NO_COMMITTED_OFFSET
    commit(stub, f"{GROUP} {pb.START_FROM_NONE}", (topic, 0, 0))
    members[1] = Member(stub, f"{GROUP} {pb.START_FROM_NONE}", topic, start_from=pb.START_FROM_NONE)
    for member in members:
        member.wait(lambda: len(member.all_records) == 3)  # noqa: B023
        member.send(pause=named())
        member.commit((topic, 0, 1))
    produce(stub, topic, *[b"w"] * 3)
    stub.TruncatePartition(pb.TruncatePartitionRequest(topic=topic, before_offset=5), timeout=DEADLINE_S)
    for member in members:
        member.send(resume=named())
    members[0].wait(lambda: [record.offset for record in members[0].all_records] == [0, 1, 2, 5])
    assert members[1].refused() == (grpc.StatusCode.OUT_OF_RANGE, Reason.OFFSET_OUT_OF_RANGE)
    members[0].leave()


def test_a_commit_beyond_the_end_is_for_reset_offsets(broker: BrokerProcess) -> None:
    """As a repair leaves it: nobody begins from the earliest offset because of that."""
    topic = new_topic(broker.stub(), flush_ms=-1)
    for number in range(4):
        produce(broker.stub(), topic, b"%d" % number)
    commit(broker.stub(), GROUP, (topic, 0, 4))
    broker.kill()
    path = broker.segments()[0]
    cut = batches_of(path)[2][0]
    path.write_bytes(path.read_bytes()[:cut])
    for stale in [*broker.data_dir.glob("journal*"), *path.parent.glob("*.index")]:
        if stale.is_file():
            stale.unlink()
    broker.start()
    stub = broker.stub()
    member = Member(stub, GROUP, topic)
    assert member.refused() == (grpc.StatusCode.OUT_OF_RANGE, Reason.OFFSET_OUT_OF_RANGE)
    reset = pb.ResetOffsetsRequest(group_id=GROUP, topics=[topic], latest=True)
    assert stub.ResetOffsets(reset, timeout=DEADLINE_S).success
    member = Member(stub, GROUP, topic)
    member.wait_for("assigned")
    assert member.began == {(topic, 0): 2}
    member.leave()


CLIENT = """
import sys, grpc
from takhin.v1 import takhin_pb2 as pb, takhin_pb2_grpc
address, topic, *secured = sys.argv[1:]
if secured:
    call = grpc.access_token_call_credentials(secured[0])
    credentials = grpc.composite_channel_credentials(grpc.ssl_channel_credentials(open(secured[1], "rb").read()), call)
stub = takhin_pb2_grpc.TakhinServiceStub(
    grpc.secure_channel(address, credentials) if secured else grpc.insecure_channel(address))
start = pb.SubscribeRequest(start=pb.SubscribeStart(group_id="g", topics=[topic]))
def requests():
    import time
    yield start
    time.sleep(600)
for response in stub.Subscribe(requests()):
    print(response.WhichOneof("response"), flush=True)
"""


def test_a_client_that_is_killed_is_awaited(start_broker: StartBroker) -> None:
    broker = start_broker("--groups-grace-ms", "1500")
    stub = broker.stub()
    topic = new_topic(stub)
    secured = broker.secured
    how = [] if secured is None else [secured.token(), str(secured.directory / "ca.pem")]
    client = subprocess.Popen([sys.executable, "-c", CLIENT, broker.address, topic, *how], stdout=subprocess.PIPE)
    assert client.stdout is not None
    assert [client.stdout.readline() for _ in range(2)] == [b"joined\n", b"assigned\n"]
    other = Member(stub, GROUP, topic)
    other.wait_for("assigned")
    client.kill()
    client.wait()
    client.stdout.close()
    killed_s = time.monotonic()
    other.wait(lambda: other.partitions == {(topic, 0)})
    assert time.monotonic() - killed_s > 1, "not as one that leaves"
    other.leave()


def test_cold_records_are_delivered_from_the_files(start_broker: StartBroker) -> None:
    broker = start_broker("--limits-ring-bytes", str(64 * 1024), "--limits-ring-bytes-per-partition", "4096")
    stub = broker.stub()
    topic = new_topic(stub, 3, segment_bytes=100_000)
    for number in range(30):
        for partition in range(3):
            produce(stub, topic, *[b"%d " % number + b"x" * 1000] * 20, partition=partition)
    broker.restart()
    member = Member(broker.stub(), GROUP, topic, credit_bytes=300_000, commit_mode=pb.COMMIT_MODE_AUTO)
    given = 0
    while len(member.all_records) < 1800:
        member.wait(lambda: sum(each.credit_bytes for each in member.told) > given)
        back = sum(each.credit_bytes for each in member.told) - given
        member.send(credit=pb.Credit(bytes=back))
        given += back
    for partition in range(3):
        assert [record.offset for record in member.records(topic, partition)] == list(range(600))
    member.leave()
    found = broker.stub().FetchOffsets(pb.FetchOffsetsRequest(group_id=GROUP), timeout=DEADLINE_S).offsets
    wait_until(lambda: [each.committed_offset for each in found] == [600] * 3)
