"""What members are told fits into messages that every client takes."""

from takhin.broker import member_messages
from takhin.broker.assignors import GroupPartition
from takhin.v1 import takhin_pb2 as pb

LONGEST = "x" * 249
PLACES = [GroupPartition(LONGEST, number, 1 << 62) for number in range(20_000)]
MOST_BYTES = 4 * 1024 * 1024


def pairs(places) -> list[tuple[str, int]]:
    return [(each.topic, each.partition) for each in places]


def test_an_assignment_comes_in_as_many_messages_as_it_takes() -> None:
    added = [(each, (1 << 53) - 1) for each in PLACES]
    told = list(member_messages.assigned((1 << 31) - 1, added, PLACES))
    assert all(pb.SubscribeResponse(assigned=each).ByteSize() <= MOST_BYTES // 2 for each in told)
    assert [each.more for each in told] == [True] * (len(told) - 1) + [False] and len(told) > 4
    assert {each.generation for each in told} == {(1 << 31) - 1}
    assert [place for each in told for place in pairs(each.added)] == pairs(PLACES)
    assert {place.offset for each in told for place in each.added} == {(1 << 53) - 1}
    assert [place for each in told for place in pairs(each.partitions)] == pairs(PLACES)


def test_most_come_in_one() -> None:
    assert list(member_messages.assigned(3, [(PLACES[0], 7)], PLACES[:2])) == [pb.Assigned(
        added=[pb.TopicPartitionOffset(topic=LONGEST, offset=7)], generation=3,
        partitions=[pb.TopicPartition(topic=LONGEST), pb.TopicPartition(topic=LONGEST, partition=1)])]
    assert list(member_messages.assigned(3, [], [])) == [pb.Assigned(generation=3)]


def test_what_else_names_partitions() -> None:
    told = list(member_messages.naming(pb.Revoking(generation=5, deadline_ms=9), PLACES))
    assert all(each.ByteSize() <= MOST_BYTES // 2 for each in told) and len(told) > 2
    assert {(each.generation, each.deadline_ms) for each in told} == {(5, 9)}
    assert [place for each in told for place in pairs(each.partitions)] == pairs(PLACES)
    assert list(member_messages.naming(pb.CaughtUp(), [])) == [pb.CaughtUp()]
