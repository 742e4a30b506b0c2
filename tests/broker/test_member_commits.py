"""The commits of a member's stream: which of them the member has asked for."""

import asyncio

from takhin.broker.assignors import GroupPartition
from takhin.broker.member_commits import MemberCommits, Offsets
from takhin.errors import Reason, error
from takhin.v1 import takhin_pb2 as pb


def test_who_asked_for_a_commit_is_told() -> None:
    made: list[tuple[Offsets, bool]] = []
    answers: list[pb.Committed] = []

    async def commit(offsets: Offsets, generation: int, was_asked: bool) -> None:
        made.append((list(offsets), was_asked))
        if any(topic == "gone" for topic, _, _ in offsets):
            raise error(Reason.TOPIC_NOT_FOUND, "there is no such topic")

    async def scenario() -> None:
        commits = MemberCommits(commit, answers.append, lambda: 1, 0.0)
        commits.add(7, [("orders", 0, 5)])
        commits.add(8, [("gone", 0, 5)])
        await commits.finish()
        commits.processed(GroupPartition("orders", 1, 1), 3)
        commits.processed(GroupPartition("gone", 0, 2), 4)
        await commits.finish()

    asyncio.run(scenario())
    asked, own = made[:3], made[3:]
    both = [("orders", 0, 5), ("gone", 0, 5)]
    assert asked == [(both, True), (both[:1], True), (both[1:], True)]
    both = [("orders", 1, 3), ("gone", 0, 4)]
    assert own == [(both, False), (both[:1], False), (both[1:], False)]
    assert [(each.id, each.reason) for each in answers] == [
        (7, ""), (8, "TOPIC_NOT_FOUND"), (0, ""), (0, "TOPIC_NOT_FOUND")]
