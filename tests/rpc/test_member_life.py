"""Members that are cut off and come back: within the grace, over a restart, by name; and members that fall silent."""

import time

import grpc
import pytest

from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import DEADLINE_S, BrokerProcess, Stub, new_topic, produce, refused, wait_until
from tests.conftest import StartBroker
from tests.member import Member, own_stub, places

ABORTED = grpc.StatusCode.ABORTED
GROUP = "g"


def describe(stub: Stub) -> pb.DescribeConsumerGroupResponse:
    return stub.DescribeConsumerGroup(pb.DescribeConsumerGroupRequest(group_id=GROUP), timeout=DEADLINE_S)


def owned(stub: Stub) -> dict[str, int]:
    """How many partitions each member has."""
    return {each.member_id: len(each.assignments) for each in describe(stub).members}


def join(stub: Stub, topic: str, **how) -> Member:
    member = Member(stub, GROUP, topic, **how)
    member.wait_for("assigned")
    return member


@pytest.fixture
def patient(start_broker: StartBroker) -> BrokerProcess:
    """Its grace is longer than any test."""
    return start_broker("--groups-grace-ms", "600000")


@pytest.fixture
def hasty(start_broker: StartBroker) -> BrokerProcess:
    return start_broker("--groups-grace-ms", "700")


def pair(stub: Stub, topic: str) -> tuple[Member, Member]:
    """Two members, each with what it is to have."""
    first, second = join(stub, topic), join(stub, topic)
    first.wait(lambda: len(first.partitions) == len(second.partitions) > 0)
    wait_until(lambda: describe(stub).state == "Stable")
    return first, second


# Grace


def test_who_is_cut_off_has_its_partitions_when_it_comes_back(patient: BrokerProcess) -> None:
    stub = patient.stub()
    topic = new_topic(stub, 4)
    first, second = pair(stub, topic)
    had = set(first.partitions)
    told = len(second.told)
    for place in had:
        produce(stub, topic, *[b"v"] * 3, partition=place[1])
    first.wait(lambda: len(first.all_records) == 6)
    first.commit(*[(*place, 2) for place in had])
    first.cancel()
    time.sleep(0.3)
    assert owned(stub)[first.member_id] == 2, "it is awaited"
    again = join(stub, topic, member_id=first.member_id)
    assert again.member_id == first.member_id and again.partitions == had
    assert again.began == dict.fromkeys(had, 2)
    again.wait(lambda: len(again.all_records) == 2)
    assert again.commit(*[(*place, 3) for place in had]).code == 0
    assert [each for each in second.kinds[told:] if each != "ping"] == [], "nothing moved"


def test_after_the_grace_its_partitions_go_to_others(hasty: BrokerProcess) -> None:
    stub = hasty.stub()
    topic = new_topic(stub, 4)
    first, second = pair(stub, topic)
    begun_s = time.monotonic()
    first.cancel()
    second.wait(lambda: len(second.partitions) == 4)
    assert 0.6 < time.monotonic() - begun_s < 10
    assert list(owned(stub)) == [second.member_id]
    # Too late: a new member, with a new id.
    again = join(stub, topic, member_id=first.member_id)
    assert again.member_id != first.member_id


def test_a_member_is_not_two(patient: BrokerProcess) -> None:
    """Another stream with its id takes its place; the one before learns it."""
    stub = patient.stub()
    topic = new_topic(stub, 2)
    first = join(stub, topic)
    again = join(stub, topic, member_id=first.member_id)
    assert first.refused() == (ABORTED, Reason.MEMBER_FENCED)
    assert again.member_id == first.member_id and len(again.partitions) == 2
    assert again.commit((topic, 0, 0)).code == 0
    assert owned(stub) == {again.member_id: 2}


def test_a_member_id_of_another_group_is_nobody(patient: BrokerProcess) -> None:
    stub = patient.stub()
    topic = new_topic(stub)
    first = join(stub, topic)
    other = Member(stub, "another", topic, member_id=first.member_id)
    other.wait_for("assigned")
    assert other.member_id != first.member_id and not first.ended


def test_who_comes_back_with_other_topics_gets_those(patient: BrokerProcess) -> None:
    stub = patient.stub()
    topic, other = new_topic(stub), new_topic(stub)
    first = join(stub, topic)
    first.cancel()
    again = Member(stub, GROUP, other, member_id=first.member_id)
    again.wait(lambda: again.partitions == {(other, 0)})
    assert describe(stub).state == "Stable"


# Restarts


@pytest.mark.parametrize("kill", [True, False], ids=["kill -9", "in order"])
def test_members_come_back_after_a_restart_and_nothing_moves(patient: BrokerProcess, kill: bool) -> None:
    stub = patient.stub()
    topic = new_topic(stub, 4)
    first, second = pair(stub, topic)
    produce(stub, topic, *[b"v"] * 3, partition=0)
    had = [set(first.partitions), set(second.partitions)]
    generation = second.generation
    owner, other = (first, second) if (topic, 0) in first.partitions else (second, first)
    owner.wait(lambda: len(owner.all_records) == 3)
    owner.commit((topic, 0, 2))
    patient.restart(kill=kill)
    for member in first, second:
        assert member.wait_ended() is not None and member.failure.code() is grpc.StatusCode.UNAVAILABLE
    stub = patient.stub()
    assert owned(stub) == {first.member_id: 2, second.member_id: 2}
    with refused(ABORTED, Reason.FENCED_GENERATION):
        stub.CommitOffset(pb.CommitOffsetRequest(
            group_id=GROUP, offsets=places((topic, 0, 3)), member_id=other.member_id, generation=generation),
            timeout=DEADLINE_S)
    again = [join(stub, topic, member_id=member.member_id) for member in (first, second)]
    assert [member.partitions for member in again] == had
    assert [member.member_id for member in again] == [first.member_id, second.member_id]
    assert all(member.generation >= generation for member in again)
    assert [member.began[topic, 0] for member in again if (topic, 0) in member.began] == [2]
    assert not any(member.of("revoking") or member.of("lost") for member in again)


def test_drain_tells_members_to_come_back(patient: BrokerProcess) -> None:
    stub = patient.stub()
    member = join(stub, new_topic(stub))
    patient.terminate()
    assert member.refused() == (grpc.StatusCode.UNAVAILABLE, Reason.DRAINING)


def test_who_does_not_come_back_after_a_restart_is_out(hasty: BrokerProcess) -> None:
    stub = hasty.stub()
    topic = new_topic(stub, 4)
    first, second = pair(stub, topic)
    hasty.restart(kill=True)
    stub = hasty.stub()
    again = join(stub, topic, member_id=second.member_id)
    again.wait(lambda: len(again.partitions) == 4)
    assert list(owned(stub)) == [second.member_id]


def test_a_group_of_which_nobody_comes_back_is_gone(hasty: BrokerProcess) -> None:
    stub = hasty.stub()
    join(stub, new_topic(stub))
    hasty.restart(kill=True)
    stub = hasty.stub()
    wait_until(lambda: not stub.ListConsumerGroups(pb.ListConsumerGroupsRequest(), timeout=DEADLINE_S).groups)


def test_auto_commits_what_was_processed_before_a_cut(patient: BrokerProcess) -> None:
    stub = patient.stub()
    topic = new_topic(stub)
    produce(stub, topic, *[b"v"] * 5)
    member = join(stub, topic, credit_bytes=10_000, commit_mode=pb.COMMIT_MODE_AUTO)
    member.wait(lambda: len(member.all_records) == 5)
    member.send(credit=pb.Credit(bytes=sum(each.credit_bytes for each in member.told)))
    produce(stub, topic, *[b"w"] * 5)
    member.wait(lambda: len(member.all_records) == 10)
    member.wait(lambda: member.of("committed"))
    member.send(credit=pb.Credit(bytes=sum(each.credit_bytes for each in member.told[-2:])))
    time.sleep(0.1)
    member.cancel()

    def stands_at_the_end() -> bool:
        (found,) = stub.FetchOffsets(pb.FetchOffsetsRequest(group_id=GROUP), timeout=DEADLINE_S).offsets
        return found.committed_offset == 10

    wait_until(stands_at_the_end)


# Connections do not live for ever


def test_members_over_the_age_of_connections(start_broker: StartBroker) -> None:
    """Cut again and again, a member comes back with its id: nothing moves, and nothing is missed."""
    broker = start_broker("--grpc-connection-age-ms", "800", "--grpc-connection-age-grace-ms", "200")
    stub = broker.stub()
    topic = new_topic(stub, 2)
    ids, seen, cuts = set(), [], 0
    member = Member(own_stub(broker), GROUP, topic)
    until_s = time.monotonic() + DEADLINE_S
    sent = 0
    while cuts < 2 or len(set(seen)) < sent:
        assert time.monotonic() < until_s, f"{cuts} cuts, {len(set(seen))} of {sent} records"
        if cuts < 2:
            produce(own_stub(broker) if sent % 20 == 0 else stub, topic, b"%d" % sent, partition=sent % 2)
            sent += 1
        time.sleep(0.01)
        records = member.all_records
        if member.ended:
            assert member.failure is not None and member.failure.code() is grpc.StatusCode.UNAVAILABLE, member.failure
            seen += [record.value for record in records]
            cuts += 1
            ids.add(member.member_id)
            member = Member(own_stub(broker), GROUP, topic, member_id=member.member_id)
            member.wait_for("assigned")
        elif cuts >= 2:
            seen += [record.value for record in records]
    ids.add(member.member_id)
    assert len(ids) == 1
    assert set(seen) == {b"%d" % number for number in range(sent)}


# Static members


def test_a_static_member_is_the_same_one_under_a_new_id(start_broker: StartBroker) -> None:
    broker = start_broker("--groups-grace-ms", "0")
    stub = broker.stub()
    topic = new_topic(stub, 2)
    first = join(stub, topic, instance_id="one", session_timeout_ms=600_000)
    other = join(stub, topic)
    other.wait(lambda: len(other.partitions) == 1)
    had = set(first.partitions)
    first.cancel()
    time.sleep(0.3)
    assert owned(stub) == {first.member_id: 1, other.member_id: 1}, "no grace, but its session"
    broker.restart(kill=True)
    stub = broker.stub()
    again = join(stub, topic, instance_id="one")
    assert again.member_id != first.member_id and again.partitions >= had
    with refused(ABORTED, Reason.FENCED_GENERATION):
        stub.CommitOffset(pb.CommitOffsetRequest(
            group_id=GROUP, offsets=places(*[(*place, 0) for place in had]), member_id=first.member_id,
            generation=first.generation), timeout=DEADLINE_S)
    newer = join(stub, topic, instance_id="one")
    assert again.refused() == (ABORTED, Reason.MEMBER_FENCED)
    assert newer.partitions >= had


def test_a_static_member_that_stays_away_is_out_after_its_session(broker: BrokerProcess) -> None:
    stub = broker.stub()
    topic = new_topic(stub, 2)
    first = join(stub, topic, instance_id="one", session_timeout_ms=1_000)
    second = join(stub, topic)
    first.wait(lambda: len(first.partitions) == 1)
    first.cancel()
    second.wait(lambda: len(second.partitions) == 2)


# Falling silent


def test_who_answers_no_pings_is_out(broker: BrokerProcess) -> None:
    stub = broker.stub()
    topic = new_topic(stub, 2)
    silent = join(stub, topic, session_timeout_ms=1_000, pongs=False)
    other = join(stub, topic, session_timeout_ms=1_000)
    assert silent.refused() == (ABORTED, Reason.SESSION_TIMEOUT)
    assert len(silent.of("ping")) >= 2
    other.wait(lambda: len(other.partitions) == 2)
    assert len(other.of("ping")) >= 1 and not other.ended


def test_anything_counts_as_a_sign_of_life(broker: BrokerProcess) -> None:
    stub = broker.stub()
    topic = new_topic(stub)
    member = join(stub, topic, session_timeout_ms=1_000, pongs=False)
    for _ in range(8):
        time.sleep(0.3)
        assert member.commit((topic, 0, 0)).code == 0


@pytest.mark.parametrize("how", [{}, {"credit_bytes": 10_000}], ids=["by commits", "by credit"])
def test_who_has_records_and_says_nothing_of_them_is_out(broker: BrokerProcess, how: dict) -> None:
    stub = broker.stub()
    topic = new_topic(stub)
    member = join(stub, topic, max_processing_ms=1_000, **how)
    time.sleep(1.3)
    assert not member.ended, "it has no records"
    produce(stub, topic, b"v")
    member.wait_for("records")
    if how:
        member.send(credit=pb.Credit(bytes=member.told[-1].credit_bytes))
    else:
        assert member.commit((topic, 0, 1)).code == 0
    time.sleep(1.3)
    assert not member.ended, "it has told about all of them"
    produce(stub, topic, b"v")
    assert member.refused() == (ABORTED, Reason.PROCESSING_TIMEOUT)


def commit_offset(stub: Stub, member: Member, topic: str, next_offset: int) -> None:
    stub.CommitOffset(pb.CommitOffsetRequest(
        group_id=GROUP, offsets=places((topic, 0, next_offset)), member_id=member.member_id,
        generation=member.generation), timeout=DEADLINE_S)


def commit_in_a_transaction(stub: Stub, member: Member, topic: str, next_offset: int) -> None:
    append = pb.ProduceMessageRequest(topic=new_topic(stub), record=pb.Record(value=b"out"))
    stub.ProduceTransaction(pb.ProduceTransactionRequest(
        appends=[append], group_id=GROUP, offsets=places((topic, 0, next_offset)), member_id=member.member_id,
        generation=member.generation), timeout=DEADLINE_S)


@pytest.mark.parametrize("commit", [commit_offset, commit_in_a_transaction])
def test_a_commit_by_another_call_tells_of_records_too(broker: BrokerProcess, commit) -> None:
    stub = broker.stub()
    topic = new_topic(stub)
    member = join(stub, topic, max_processing_ms=1_000)
    produce(stub, topic, b"v", b"v")
    member.wait(lambda: len(member.all_records) == 2)
    for next_offset in (1, 1, 2):
        time.sleep(0.6)
        commit(stub, member, topic, next_offset)
    time.sleep(1.3)
    assert not member.ended, "all is committed"
    produce(stub, topic, b"v")
    assert member.refused() == (ABORTED, Reason.PROCESSING_TIMEOUT)


def test_who_has_committed_all_may_keep_its_credit(broker: BrokerProcess) -> None:
    stub = broker.stub()
    topic = new_topic(stub)
    member = join(stub, topic, max_processing_ms=1_000, credit_bytes=100_000)
    produce(stub, topic, b"v")
    member.wait_for("records")
    assert member.commit((topic, 0, 1)).code == 0
    time.sleep(1.5)
    assert not member.ended
    produce(stub, topic, b"v")
    assert member.refused() == (ABORTED, Reason.PROCESSING_TIMEOUT)


def test_what_was_given_away_need_not_be_told_of(broker: BrokerProcess) -> None:
    stub = broker.stub()
    topic = new_topic(stub, 2)
    member = join(stub, topic, max_processing_ms=1_000, releases=False)
    for partition in range(2):
        produce(stub, topic, b"v", partition=partition)
    member.wait(lambda: len(member.all_records) == 2)
    other = Member(stub, GROUP, topic)
    asked = member.wait_for("revoking").partitions[0].partition
    assert member.commit((topic, 1 - asked, 1)).code == 0
    member.release((topic, asked))
    other.wait_for("records")
    time.sleep(1.5)
    assert not member.ended


# What is not to be missed


LATEST, NONE = pb.START_FROM_LATEST, pb.START_FROM_NONE


@pytest.mark.parametrize("dies", [False, True], ids=["cut off", "the broker is killed"])
def test_from_latest_who_comes_back_goes_on_where_it_began(patient: BrokerProcess, dies: bool) -> None:
    topic = new_topic(patient.stub(), 2)
    produce(patient.stub(), topic, b"old", partition=0)
    member = join(patient.stub(), topic, start_from=LATEST)
    assert member.began == {(topic, 0): 1, (topic, 1): 0}
    if dies:
        patient.kill()
        patient.start()
        member.wait_ended()
    else:
        member.cancel()
    for partition in range(2):
        produce(patient.stub(), topic, b"meanwhile", partition=partition)
    again = join(patient.stub(), topic, start_from=LATEST, member_id=member.member_id)
    assert (again.member_id, again.began) == (member.member_id, member.began)
    again.wait(lambda: [each.value for each in again.all_records] == [b"meanwhile"] * 2)


def test_from_latest_a_partition_that_moves_is_gone_on_with(broker: BrokerProcess) -> None:
    stub = broker.stub()
    topic = new_topic(stub)
    member = join(stub, topic, start_from=LATEST)
    member.leave()
    produce(stub, topic, b"meanwhile")
    assert join(stub, topic, start_from=LATEST).wait_for("records").records[0].value == b"meanwhile"


@pytest.mark.parametrize("start_from", [LATEST, NONE])
def test_new_partitions_are_read_from_their_beginning(broker: BrokerProcess, start_from: int) -> None:
    stub = broker.stub()
    topic = new_topic(stub)
    groups = [f"{topic} {number}" for number in range(12)]
    for group in [*groups, f"{topic} away"]:
        stub.CommitOffset(pb.CommitOffsetRequest(group_id=group, offsets=places((topic, 0, 0))), timeout=DEADLINE_S)
    members = [Member(stub, group, topic, start_from=start_from) for group in groups]
    for member in members:
        member.wait_for("assigned")
    stub.UpdateTopic(pb.UpdateTopicRequest(name=topic, num_partitions=2), timeout=DEADLINE_S)
    produce(stub, topic, b"first", partition=1)
    # One that has no members while the topic grows misses nothing either.
    for member in [*members, Member(stub, f"{topic} away", topic, start_from=start_from)]:
        member.wait(lambda: member.records(topic, 1) or member.ended)
        assert member.began[topic, 1] == 0 and member.records(topic, 1)[0].value == b"first"


def test_a_topic_made_anew_is_read_from_its_beginning(broker: BrokerProcess) -> None:
    stub = broker.stub()
    topic = new_topic(stub)
    members = [Member(stub, f"{topic} {number}", topic, start_from=LATEST) for number in range(12)]
    for member in members:
        member.wait_for("assigned")
    stub.DeleteTopic(pb.DeleteTopicRequest(name=topic), timeout=DEADLINE_S)
    stub.CreateTopic(pb.CreateTopicRequest(name=topic, num_partitions=1), timeout=DEADLINE_S)
    produce(stub, topic, b"first")
    for member in members:
        member.wait(lambda: member.all_records)
        assert member.all_records[0].value == b"first"


def test_a_commit_for_a_topic_made_anew_meanwhile_is_refused_who_names_its_generation(broker: BrokerProcess) -> None:
    stub = broker.stub()
    topic = new_topic(stub)
    produce(stub, topic, *[b"old"] * 3)
    member = join(stub, topic)
    member.wait(lambda: len(member.all_records) == 3)
    knew = member.generation
    stub.DeleteTopic(pb.DeleteTopicRequest(name=topic), timeout=DEADLINE_S)
    stub.CreateTopic(pb.CreateTopicRequest(name=topic, num_partitions=1), timeout=DEADLINE_S)
    produce(stub, topic, *[b"new"] * 4)
    member.wait_for("assigned", 2)

    def commit(generation: int) -> pb.Committed:
        before = len(member.of("committed"))
        member.send(commit=pb.CommitOffsets(offsets=places((topic, 0, 3)), generation=generation))
        return member.wait_for("committed", before + 1)

    assert commit(knew).reason == Reason.FENCED_GENERATION
    assert commit(member.generation + 1).reason == Reason.FENCED_GENERATION
    assert commit(member.generation).code == 0
