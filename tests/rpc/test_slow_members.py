"""Members that read nothing: what they hold of the broker's memory is at most their credit; nobody waits for them."""

import time

import pytest

from takhin.v1 import takhin_pb2 as pb
from takhin.v1 import takhin_pb2_grpc
from tests.broker_process import MIB, BrokerProcess, Stub, new_topic, produce, wait_until
from tests.conftest import StartBroker
from tests.member import Member, places
from tests.rpc.test_slow_readers import NARROW, fill

STALLED = 100
CHANNELS = 4


def narrow_stub(broker: BrokerProcess) -> Stub:
    return takhin_pb2_grpc.TakhinServiceStub(broker.channel(**NARROW))


@pytest.mark.parametrize("credit_bytes", [64 * 1024, 256 * 1024, MIB])
def test_a_member_that_reads_nothing_holds_at_most_its_credit(
    start_broker: StartBroker, credit_bytes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each in a group of its own, with 20 MiB to read and a large max_bytes: only the credit bounds it."""
    broker = start_broker("--limits-slow-reader-ms", "60000")
    stub = broker.stub()
    topic = new_topic(stub)
    fill(stub, topic, 20, 1024)
    warm = Member(stub, "warm", topic)
    warm.wait(lambda: len(warm.all_records) == 20 * 1024)
    warm.leave()
    before = broker.rss_anon_bytes()
    stubs = [narrow_stub(broker) for _ in range(CHANNELS)]
    members = [
        Member(stubs[number % CHANNELS], f"stalled {number}", topic, reads=False, credit_bytes=credit_bytes,
               max_bytes=8 * MIB)
        for number in range(STALLED)]
    groups = pb.ListConsumerGroupsRequest()
    wait_until(lambda: sum(each.member_count for each in stub.ListConsumerGroups(groups).groups) == STALLED)
    peak = before
    until_s = time.monotonic() + 2
    while time.monotonic() < until_s:
        peak = max(peak, broker.rss_anon_bytes())
        time.sleep(0.02)
    held = (peak - before) / STALLED
    with capsys.disabled():
        print(f"\n{STALLED} members that read nothing, credit {credit_bytes // 1024} KiB each: RssAnon grew by "
              f"{(peak - before) / MIB:.1f} MiB, {held / 1024:.0f} KiB a member")
    assert held <= credit_bytes
    for member in members:
        member.call.cancel()


def test_one_slow_member_does_not_slow_the_others(broker: BrokerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    """In one group: one member takes nothing, the other one's records come as ever, and it may leave and come."""
    stub = broker.stub()
    topic = new_topic(stub, 2)
    slow = Member(narrow_stub(broker), "g", topic, reads=False)
    wait_until(lambda: stub.ListConsumerGroups(pb.ListConsumerGroupsRequest()).groups)
    wait_until(lambda: stub.DescribeConsumerGroup(pb.DescribeConsumerGroupRequest(group_id="g")).members)
    fast = Member(stub, "g", topic)
    # The slow one is asked for it, and does not hear it: it is lost when the deadline passes.
    fast.wait(lambda: len(fast.partitions) == 1, 30)
    ((_, own),) = fast.partitions
    for _ in range(8):
        produce(stub, topic, *[b"x" * 1000] * 1000, partition=1 - own)
    delays_s = []
    for number in range(200):
        begun_s = time.monotonic()
        produce(stub, topic, b"%d" % number, partition=own)
        fast.wait(lambda: len(fast.all_records) == number + 1)
        delays_s.append(time.monotonic() - begun_s)
    delays_s.sort()
    with capsys.disabled():
        print(f"\nbeside a member that takes nothing, from producer to member: {delays_s[100] * 1000:.1f} ms at the "
              f"median, {delays_s[-1] * 1000:.1f} ms at most")
    assert delays_s[-1] < 5, "as long as nothing: it did not wait for the other one"
    slow.call.cancel()
    fast.leave()


def test_a_member_that_takes_no_answers_is_read_no_further(start_broker: StartBroker) -> None:
    """Its commits are large, and so are their answers: few of them are held."""
    broker = start_broker()
    stub = broker.stub()
    topic = new_topic(stub)
    offsets = places(*(("x" * 249, number, 1 << 60) for number in range(10_000)))
    warm = Member(stub, "g", topic)
    warm.wait_for("assigned")
    for number in range(3):
        warm.send(commit=pb.CommitOffsets(id=number, offsets=offsets))
    warm.wait(lambda: len(warm.of("committed")) == 3)
    before = peak = broker.rss_anon_bytes()
    member = Member(narrow_stub(broker), "other", topic, reads=False)
    for number in range(80):
        member.send(commit=pb.CommitOffsets(id=number, offsets=offsets))
    until_s = time.monotonic() + 5
    while time.monotonic() < until_s:
        peak = max(peak, broker.rss_anon_bytes())
        time.sleep(0.02)
    # All of them have 215 MB.
    assert peak - before < 80 * MIB
    member.call.cancel()
