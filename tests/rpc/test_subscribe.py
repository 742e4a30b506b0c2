"""Subscribe over the stock stubs: joining, delivery, commits, moving partitions, and what tells of it all."""

import time

import grpc
import pytest

from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import (
    DEADLINE_S,
    BrokerProcess,
    Stub,
    commit,
    create_topic,
    new_topic,
    produce,
    refused,
    values,
    wait_until,
)
from tests.conftest import StartBroker
from tests.member import Member, named, places

LATEST, NONE, TIME = pb.START_FROM_LATEST, pb.START_FROM_NONE, pb.START_FROM_TIME


def describe(stub: Stub, group: str) -> pb.DescribeConsumerGroupResponse:
    return stub.DescribeConsumerGroup(pb.DescribeConsumerGroupRequest(group_id=group), timeout=DEADLINE_S)


def committed(stub: Stub, group: str) -> dict[tuple[str, int], int]:
    found = stub.FetchOffsets(pb.FetchOffsetsRequest(group_id=group), timeout=DEADLINE_S).offsets
    return {(each.topic, each.partition): each.committed_offset for each in found if each.HasField("committed_offset")}


def group_of(topic: str) -> str:
    return f"group of {topic}"


def join(stub: Stub, topic: str, **how) -> Member:
    """A member that was told what it has."""
    member = Member(stub, group_of(topic), topic, **how)
    member.wait_for("assigned")
    return member


# Joining and reading


def test_the_only_member_gets_everything_from_the_earliest_on(stub: Stub) -> None:
    topic = new_topic(stub, 3)
    for number in range(3):
        produce(stub, topic, b"%d" % number, b"x", partition=number)
    member = join(stub, topic, client_id="me")
    assert member.kinds[:2] == ["joined", "assigned"]
    joined = member.of("joined")[0]
    assert joined.member_id.startswith("me-") and joined.generation == 1
    assert (joined.session_timeout_ms, joined.ping_interval_ms) == (45_000, 15_000)
    assert member.of("assigned")[0] == pb.Assigned(
        added=places((topic, 0, 0), (topic, 1, 0), (topic, 2, 0)), generation=1,
        partitions=named((topic, 0), (topic, 1), (topic, 2)).partitions)
    member.wait(lambda: len(member.all_records) == 6)
    for number in range(3):
        assert values(member.records(topic, number)) == [b"%d" % number, b"x"]
    produce(stub, topic, b"later", partition=1)
    member.wait(lambda: len(member.records(topic, 1)) == 3)
    assert [record.offset for record in member.records(topic, 1)] == [0, 1, 2]
    member.leave()
    assert member.failure is None


def test_records_come_as_consume_messages_gives_them(stub: Stub, topic: str) -> None:
    produce(stub, topic, pb.Record(key=b"k", value=b"v", headers=[pb.RecordHeader(key="h", value=b"1")]), b"w")
    member = join(stub, topic)
    (records,) = [member.wait_for("records")]
    (consumed,) = stub.ConsumeMessages(
        pb.ConsumeMessagesRequest(topic=topic, offset=-1, until_end=True), timeout=DEADLINE_S)
    assert records == consumed
    (response,) = [each for each in member.told if each.HasField("records")]
    # What it takes is what it is on the wire, where lengths may be padded.
    assert response.credit_bytes >= records.ByteSize()
    member.leave()


@pytest.mark.parametrize(("start", "first"), [
    ({}, 0), ({"start_from": LATEST}, 3), ({"start_from": TIME, "start_time_ms": 2000}, 1),
    ({"start_from": TIME, "start_time_ms": 9000}, 3),
])
def test_where_a_member_begins_without_commits(stub: Stub, topic: str, start: dict, first: int) -> None:
    produce(stub, topic, *[pb.Record(value=b"%d" % ms, timestamp=ms) for ms in (1000, 2000, 3000)])
    member = join(stub, topic, **start)
    assert member.began == {(topic, 0): first}
    produce(stub, topic, b"new")
    member.wait(lambda: any(record.value == b"new" for record in member.all_records))
    assert [record.offset for record in member.all_records] == list(range(first, 4))
    member.leave()


@pytest.mark.parametrize("start", [{}, {"start_from": LATEST}, {"start_from": NONE}])
def test_a_member_begins_at_what_is_committed(stub: Stub, topic: str, start: dict) -> None:
    produce(stub, topic, *[b"v"] * 5)
    commit(stub, group_of(topic), (topic, 0, 2))
    member = join(stub, topic, **start)
    assert member.began == {(topic, 0): 2}
    member.wait(lambda: [record.offset for record in member.all_records] == [2, 3, 4])
    member.leave()


def test_without_a_commit_and_with_start_from_none_the_stream_ends(stub: Stub, topic: str) -> None:
    member = Member(stub, group_of(topic), topic, start_from=NONE)
    assert member.refused() == (grpc.StatusCode.FAILED_PRECONDITION, Reason.NO_COMMITTED_OFFSET)


def test_what_retention_took_is_passed_over_as_start_from_says(stub: Stub, topic: str) -> None:
    produce(stub, topic, *[b"v"] * 6)
    commit(stub, group_of(topic), (topic, 0, 1))
    stub.TruncatePartition(pb.TruncatePartitionRequest(topic=topic, before_offset=4), timeout=DEADLINE_S)
    refused_one = Member(stub, group_of(topic), topic, start_from=NONE)
    assert refused_one.refused() == (grpc.StatusCode.OUT_OF_RANGE, Reason.OFFSET_OUT_OF_RANGE)
    member = join(stub, topic)
    assert member.began == {(topic, 0): 4}
    member.leave()
    member = join(stub, topic, start_from=LATEST)
    assert member.began == {(topic, 0): 6}
    member.leave()


def test_caught_up_is_told_once(stub: Stub) -> None:
    topic = new_topic(stub, 2)
    produce(stub, topic, *[b"x" * 1000] * 10)
    member = join(stub, topic, max_bytes=3000)
    member.wait(lambda: len(member.of("caught_up")) == 2)
    assert member.of("caught_up")[0].partitions == named((topic, 1)).partitions
    assert member.of("caught_up")[1].partitions == named((topic, 0)).partitions
    for number in range(3):
        produce(stub, topic, b"%d" % number, partition=1)
        member.wait(lambda: len(member.records(topic, 1)) == number + 1)
    assert len(member.of("caught_up")) == 2
    # Behind again: more than one response holds.
    produce(stub, topic, *[b"x" * 1000] * 10)
    member.wait(lambda: len(member.of("caught_up")) == 3)
    member.leave()


def test_no_response_is_larger_than_asked_but_for_one_record(stub: Stub, topic: str) -> None:
    produce(stub, topic, *[b"x" * 900] * 10)
    produce(stub, topic, b"y" * 50_000)
    member = join(stub, topic, max_bytes=2000)
    member.wait(lambda: len(member.all_records) == 11)
    sizes = [each.credit_bytes for each in member.told if each.HasField("records")]
    assert all(size <= 2000 for size in sizes[:-1]) and sizes[-1] > 50_000
    member.leave()


# Commits


def test_a_commit_is_answered_and_the_next_member_begins_there(stub: Stub, topic: str) -> None:
    produce(stub, topic, *[b"v"] * 5)
    member = join(stub, topic)
    assert member.commit((topic, 0, 3), id=77) == pb.Committed(offsets=places((topic, 0, 3)), id=77)
    member.leave()
    member = join(stub, topic)
    assert member.began == {(topic, 0): 3}
    member.leave()


def test_commits_are_answered_in_order_however_many_wait(stub: Stub, topic: str) -> None:
    produce(stub, topic, *[b"v"] * 500)
    member = join(stub, topic)
    for offset in range(1, 501):
        member.send(commit=pb.CommitOffsets(id=offset, offsets=places((topic, 0, offset))))
    member.send(leave=pb.Leave())
    member.wait_ended()
    answers = member.of("committed")
    assert [answer.id for answer in answers] == list(range(1, 501))
    assert not any(answer.code for answer in answers)
    assert committed(stub, group_of(topic)) == {(topic, 0): 500}


@pytest.mark.parametrize(("offsets", "code", "reason"), [
    (lambda topic: [(topic, 0, 6)], 11, Reason.OFFSET_OUT_OF_RANGE),
    (lambda topic: [(topic, 0, -1)], 11, Reason.OFFSET_OUT_OF_RANGE),
    (lambda topic: [(topic, 0, 1)], 9, Reason.OFFSET_BEHIND_COMMITTED),
    (lambda topic: [(topic, 0, 3), (topic, 0, 4)], 3, Reason.DUPLICATE_PARTITION),
    # Of what is not the member's it learns nothing else.
    (lambda topic: [(topic, 7, 0)], 10, Reason.FENCED_GENERATION),
    (lambda topic: [("nowhere", 0, 0)], 10, Reason.FENCED_GENERATION),
    (lambda topic: [], 3, Reason.MALFORMED_REQUEST),
], ids=["beyond", "negative", "back", "twice", "no partition", "no topic", "nothing"])
def test_a_refused_commit_says_why_and_the_stream_goes_on(stub: Stub, topic: str, offsets, code, reason) -> None:
    produce(stub, topic, *[b"v"] * 5)
    member = join(stub, topic)
    member.commit((topic, 0, 2))
    answer = member.commit(*offsets(topic), id=9)
    assert (answer.id, answer.code, answer.reason) == (9, code, reason) and answer.error
    assert member.commit((topic, 0, 5)).code == 0
    member.leave()


def test_auto_commits_what_credit_was_given_back_for(stub: Stub, topic: str) -> None:
    produce(stub, topic, *[b"x" * 1000] * 10)
    member = join(stub, topic, credit_bytes=100_000, max_bytes=2500, commit_mode=pb.COMMIT_MODE_AUTO)
    member.wait(lambda: len(member.all_records) == 10)
    sizes = [each.credit_bytes for each in member.told if each.HasField("records")]
    member.send(credit=pb.Credit(bytes=sizes[0] + sizes[1] + 10))
    answer = member.wait_for("committed")
    first_two = [len(each.records) for each in member.of("records")[:2]]
    assert answer == pb.Committed(offsets=places((topic, 0, sum(first_two))))
    member.send(credit=pb.Credit(bytes=sum(sizes[2:]) - 10))
    member.leave()
    assert committed(stub, group_of(topic)) == {(topic, 0): 10}


# Credit


def test_no_more_is_sent_than_there_is_credit(stub: Stub, topic: str) -> None:
    produce(stub, topic, *[b"x" * 1000] * 50)
    member = join(stub, topic, credit_bytes=10_000)
    time.sleep(0.3)
    sizes = [each.credit_bytes for each in member.told if each.HasField("records")]
    assert 5_000 < sum(sizes) <= 10_000
    member.send(credit=pb.Credit(bytes=5_000))
    member.wait(lambda: len(member.of("records")) > len(sizes))
    time.sleep(0.3)
    sizes = [each.credit_bytes for each in member.told if each.HasField("records")]
    assert sum(sizes) <= 15_000
    member.send(credit=pb.Credit(bytes=100_000))
    member.wait(lambda: len(member.all_records) == 50)
    member.leave()


def test_credit_in_crumbs_does_not_make_responses_crumbs(stub: Stub, topic: str) -> None:
    for _ in range(40):
        produce(stub, topic, *[b"x" * 1000] * 90)
    window_bytes = 1 << 20
    member = join(stub, topic, credit_bytes=window_bytes)
    returned = 0
    while len(member.all_records) < 3600:
        sizes = [each.credit_bytes for each in list(member.told) if each.HasField("records")]
        if sum(sizes) == returned:
            time.sleep(0.001)
        # All of it comes back, never more than a little at once.
        while returned < sum(sizes):
            crumb_bytes = min(10_000, sum(sizes) - returned)
            member.send(credit=pb.Credit(bytes=crumb_bytes))
            returned += crumb_bytes
    sizes = [each.credit_bytes for each in member.told if each.HasField("records")]
    # Every other one may be what was left of a batch.
    assert len(sizes) < 2 * 16 * sum(sizes) / window_bytes, sizes
    member.leave()


def test_who_gives_no_credit_back_gets_all_there_is_credit_for(stub: Stub, topic: str) -> None:
    produce(stub, topic, *[b"x" * 100] * 1000)
    member = join(stub, topic, credit_bytes=20_000)
    member.wait(lambda: 19_800 < sum(each.credit_bytes for each in member.told if each.HasField("records")) <= 20_000)
    member.leave()


def test_a_record_larger_than_the_window_comes_when_nothing_else_is_out(stub: Stub, topic: str) -> None:
    produce(stub, topic, b"s")
    produce(stub, topic, b"x" * 5000)
    produce(stub, topic, b"t")
    member = join(stub, topic, credit_bytes=1000)
    member.wait(lambda: len(member.all_records) == 1)
    time.sleep(0.2)
    assert len(member.all_records) == 1
    (first,) = [each.credit_bytes for each in member.told if each.HasField("records")]
    member.send(credit=pb.Credit(bytes=first))
    member.wait(lambda: len(member.all_records) == 2)
    time.sleep(0.2)
    assert len(member.all_records) == 2
    member.send(credit=pb.Credit(bytes=10_000))
    member.wait(lambda: len(member.all_records) == 3)
    member.leave()


# Pause, resume, seek


def test_pause_and_resume(stub: Stub) -> None:
    topic = new_topic(stub, 2)
    member = join(stub, topic)
    member.send(pause=named((topic, 0)))
    member.commit((topic, 0, 0))  # answered after the pause
    for number in range(2):
        produce(stub, topic, b"v", partition=number)
    member.wait(lambda: len(member.records(topic, 1)) == 1)
    time.sleep(0.2)
    assert not member.records(topic, 0)
    member.send(resume=named())
    member.wait(lambda: len(member.records(topic, 0)) == 1)
    member.leave()


def test_seek(stub: Stub, topic: str) -> None:
    produce(stub, topic, *[b"v"] * 5)
    member = join(stub, topic)
    member.wait(lambda: len(member.all_records) == 5)
    for offset, expected in (3, [3, 4]), (-1, [0, 1, 2, 3, 4]), (-2, []):
        before = len(member.all_records)
        member.send(seek=pb.Seek(offsets=places((topic, 0, offset))))
        member.wait(lambda: len(member.all_records) == before + len(expected))
        assert [record.offset for record in member.all_records[before:]] == expected
    member.commit((topic, 0, 0))
    produce(stub, topic, b"v")
    member.wait(lambda: member.all_records[-1].offset == 5)
    member.leave()


# Rebalances


def test_a_second_member_gets_half_where_the_first_one_committed(stub: Stub) -> None:
    topic = new_topic(stub, 4)
    for number in range(4):
        produce(stub, topic, *[b"v"] * 3, partition=number)
    first = join(stub, topic, releases=False)
    first.wait(lambda: len(first.all_records) == 12)
    second = join(stub, topic)
    assert second.of("assigned")[0].added == []
    revoking = first.wait_for("revoking")
    assert 9_000 < revoking.deadline_ms <= 10_000
    moving = {(each.topic, each.partition) for each in revoking.partitions}
    assert len(moving) == 2 and describe(stub, group_of(topic)).state == "PreparingRebalance"
    for place in moving:
        produce(stub, *place[:1], b"for the other one", partition=place[1])
    assert first.commit(*[(*place, 3) for place in moving]).code == 0, "they are still its own"
    first.release()
    second.wait(lambda: second.partitions == moving)
    assert second.began == dict.fromkeys(moving, 3)
    second.wait(lambda: len(second.all_records) == 2)
    assert values(second.all_records) == [b"for the other one"] * 2
    assert len(first.all_records) == 12, "nothing of them came after the revoke"
    answer = first.commit(*[(*place, 4) for place in moving])
    assert (answer.code, answer.reason) == (10, Reason.FENCED_GENERATION)
    assert describe(stub, group_of(topic)).state == "Stable"
    first.leave()
    second.wait(lambda: len(second.partitions) == 4)
    second.leave()


def test_a_release_waits_for_the_commits_before_it(stub: Stub) -> None:
    topic = new_topic(stub, 2, flush_ms=-1)
    first = join(stub, topic, releases=False)
    second = join(stub, topic)
    moving = first.wait_for("revoking").partitions[0].partition
    produce(stub, topic, *[b"v"] * 50, partition=moving)
    for offset in range(1, 51):
        first.send(commit=pb.CommitOffsets(id=offset, offsets=places((topic, moving, offset))))
    first.release((topic, moving))
    second.wait(lambda: second.partitions)
    assert second.began == {(topic, moving): 50}
    first.wait(lambda: len(first.of("committed")) == 50)
    assert not any(answer.code for answer in first.of("committed"))
    first.leave()
    second.leave()


def test_what_stays_keeps_coming_while_other_partitions_move(stub: Stub) -> None:
    topic = new_topic(stub, 2)
    first = join(stub, topic, releases=False)
    second = join(stub, topic)
    revoking = first.wait_for("revoking")
    moving = revoking.partitions[0].partition
    staying = 1 - moving
    for number in range(20):
        produce(stub, topic, b"%d" % number, partition=staying)
        produce(stub, topic, b"%d" % number, partition=moving)
        first.wait(lambda: len(first.records(topic, staying)) == number + 1, 5)
    assert describe(stub, group_of(topic)).state == "PreparingRebalance", "all of it in the midst of a rebalance"
    assert not first.records(topic, moving) and not second.all_records
    first.release((topic, moving))
    second.wait(lambda: len(second.records(topic, moving)) == 20)
    first.leave()
    second.leave()


def test_what_is_not_released_is_lost(start_broker: StartBroker) -> None:
    stub = start_broker("--groups-revoke-timeout-ms", "300").stub()
    topic = new_topic(stub, 2)
    first = join(stub, topic, releases=False)
    second = join(stub, topic)
    lost = first.wait_for("lost")
    assert (len(lost.partitions), lost.reason) == (1, "REVOKE_TIMEOUT")
    place = (topic, lost.partitions[0].partition)
    second.wait(lambda: second.partitions == {place})
    answer = first.commit((*place, 0))
    assert (answer.code, answer.reason) == (10, Reason.FENCED_GENERATION)
    # What was on its way when it was lost is no mistake.
    first.release(place)
    first.send(pause=named(place))
    first.send(seek=pb.Seek(offsets=places((*place, 0))))
    assert first.commit((topic, 1 - place[1], 0)).code == 0
    first.leave()
    second.leave()


def test_a_release_that_comes_when_the_partition_is_the_members_again(start_broker: StartBroker) -> None:
    """A slow member answers a revoke when the partition was lost, and given to it again: that is nobody's fault."""
    stub = start_broker("--groups-revoke-timeout-ms", "2000").stub()
    topic = new_topic(stub, 2)
    first = join(stub, topic, releases=False)
    second = join(stub, topic)
    place = (topic, first.wait_for("lost").partitions[0].partition)
    second.wait(lambda: second.partitions == {place})
    second.leave()
    first.wait(lambda: place in first.partitions)
    first.release(place)
    produce(stub, topic, b"on", partition=place[1])
    first.wait(lambda: first.records(*place))
    assert first.commit((*place, 1)).code == 0
    # When it is asked back again, a release is one.
    third = join(stub, topic)
    asked = first.wait_for("revoking", 2).partitions[0].partition
    first.release((topic, asked))
    third.wait(lambda: third.partitions == {(topic, asked)})
    assert len(first.of("lost")) == 1, "it was released in time"
    first.leave()
    third.leave()


def test_the_end_of_the_requests_is_leaving(stub: Stub, topic: str) -> None:
    first = join(stub, topic)
    second = join(stub, topic)
    begun_s = time.monotonic()
    first.half_close()
    assert first.wait_ended() is None
    second.wait(lambda: second.partitions)
    assert time.monotonic() - begun_s < 5, "nobody waited for the grace to pass"
    second.leave()


def test_new_partitions_and_topics_reach_members(stub: Stub) -> None:
    topic, other = new_topic(stub), new_topic(stub)
    member = Member(stub, group_of(topic), topic, other)
    member.wait(lambda: len(member.partitions) == 2)
    stub.UpdateTopic(pb.UpdateTopicRequest(name=topic, num_partitions=3), timeout=DEADLINE_S)
    produce(stub, topic, b"v", partition=2)
    member.wait(lambda: values(member.records(topic, 2)) == [b"v"])
    assert len(member.partitions) == 4
    stub.DeleteTopic(pb.DeleteTopicRequest(name=other), timeout=DEADLINE_S)
    lost = member.wait_for("lost")
    assert (lost.partitions, lost.reason) == (named((other, 0)).partitions, "TOPIC_DELETED")
    create_topic(stub, other, 2)
    member.wait(lambda: len(member.partitions) == 5)
    produce(stub, other, b"again", partition=1)
    member.wait(lambda: values(member.records(other, 1)) == [b"again"])
    member.leave()


@pytest.mark.parametrize(("assignor", "expected"), [
    ("range", [{0, 1}, {2}]), ("roundrobin", [{0, 2}, {1}]), ("sticky", None)])
def test_assignors(stub: Stub, assignor: str, expected: list[set[int]] | None) -> None:
    topic = new_topic(stub, 3)
    members = [join(stub, topic, assignor=assignor, client_id=name) for name in "ab"]
    wait_until(lambda: describe(stub, group_of(topic)).state == "Stable")
    wait_until(lambda: sorted(len(member.partitions) for member in members) == [1, 2])
    if expected is not None:
        wait_until(lambda: [{number for _, number in member.partitions} for member in members] == expected)
    for member in members:
        member.leave()


# What is told of groups with members


def test_describe_and_list(stub: Stub) -> None:
    topic = new_topic(stub, 2)
    produce(stub, topic, *[b"v"] * 3)
    member = join(stub, topic, client_id="me")
    member.commit((topic, 0, 2))
    assert describe(stub, group_of(topic)) == pb.DescribeConsumerGroupResponse(
        group_id=group_of(topic), state="Stable", protocol_type="consumer",
        members=[pb.ConsumerGroupMember(
            member_id=member.member_id, client_id="me", client_host="127.0.0.1",
            assignments=places((topic, 0, 2), (topic, 1, -1)))])
    listed = stub.ListConsumerGroups(pb.ListConsumerGroupsRequest(), timeout=DEADLINE_S).groups
    assert pb.ConsumerGroupInfo(
        group_id=group_of(topic), state="Stable", protocol_type="consumer", member_count=1) in listed
    member.leave()
    assert describe(stub, group_of(topic)).state == "Empty"


def test_a_group_without_commits_is_gone_with_its_last_member(stub: Stub, topic: str) -> None:
    join(stub, topic).leave()

    def is_gone() -> bool:
        return group_of(topic) not in [
            each.group_id
            for each in stub.ListConsumerGroups(pb.ListConsumerGroupsRequest(), timeout=DEADLINE_S).groups]

    wait_until(is_gone)


def test_a_group_with_members_is_not_deleted_nor_reset(stub: Stub, topic: str) -> None:
    member = join(stub, topic)
    group = group_of(topic)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, Reason.GROUP_HAS_MEMBERS):
        stub.DeleteConsumerGroup(pb.DeleteConsumerGroupRequest(group_id=group), timeout=DEADLINE_S)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, Reason.GROUP_HAS_MEMBERS):
        stub.ResetOffsets(pb.ResetOffsetsRequest(group_id=group, topics=[topic], earliest=True), timeout=DEADLINE_S)
    member.commit((topic, 0, 0))
    member.leave()
    assert stub.DeleteConsumerGroup(pb.DeleteConsumerGroupRequest(group_id=group), timeout=DEADLINE_S).success


# CommitOffset beside members


def commit_as(stub: Stub, member: Member, topic: str, offset: int, generation: int) -> pb.CommitOffsetResponse:
    return stub.CommitOffset(
        pb.CommitOffsetRequest(
            group_id=group_of(topic), offsets=places((topic, 0, offset)), member_id=member.member_id,
            generation=generation),
        timeout=DEADLINE_S)


def test_commit_offset_while_there_are_members(stub: Stub, topic: str) -> None:
    produce(stub, topic, *[b"v"] * 5)
    member = join(stub, topic)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, Reason.GROUP_HAS_MEMBERS):
        commit(stub, group_of(topic), (topic, 0, 1))
    assert commit_as(stub, member, topic, 2, member.generation).success
    for generation in 0, member.generation + 1, -1:
        with refused(grpc.StatusCode.ABORTED, Reason.FENCED_GENERATION):
            commit_as(stub, member, topic, 3, generation)
    member.leave()
    with refused(grpc.StatusCode.ABORTED, Reason.FENCED_GENERATION):
        commit_as(stub, member, topic, 3, member.generation)
    assert commit(stub, group_of(topic), (topic, 0, 3)).success


def test_a_generation_without_a_member_is_no_way_around(stub: Stub, topic: str) -> None:
    member = join(stub, topic)
    request = pb.CommitOffsetRequest(group_id=group_of(topic), offsets=places((topic, 0, 0)), generation=1)
    with refused(grpc.StatusCode.ABORTED, Reason.FENCED_GENERATION):
        stub.CommitOffset(request, timeout=DEADLINE_S)
    member.leave()


# Many


def test_members_come_and_go_and_everything_is_delivered(broker: BrokerProcess) -> None:
    stub = broker.stub()
    topic = new_topic(stub, 6)
    members = [join(stub, topic) for _ in range(3)]
    for number in range(60):
        produce(stub, topic, b"%d" % number, partition=number % 6)
        if number == 20:
            members.append(join(stub, topic))
        if number == 40:
            members[0].leave()
    wait_until(lambda: {record.value for member in members for record in member.all_records}
               >= {b"%d" % number for number in range(60)})
    for member in members[1:]:
        member.leave()
