"""Since when a member has said nothing of the records that it has."""

import pytest

from takhin.broker.assignors import GroupPartition
from takhin.broker.processing import Processing

A, B = GroupPartition("t", 0, 1), GroupPartition("t", 1, 1)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_it_counts_from_the_first_record_on_of_which_nothing_was_told(clock: Clock) -> None:
    processing = Processing(clock)
    assert processing.since_s is None
    processing.sent(A, 5)
    clock.now_s = 101
    processing.sent(B, 1)
    processing.sent(A, 9)
    assert processing.since_s == 100
    clock.now_s = 102
    processing.settled([(A, 8)])
    assert processing.since_s == 102, "a word of some begins it anew"
    clock.now_s = 103
    processing.settled([(A, 9), (GroupPartition("other", 0, 2), 4)])
    assert processing.since_s == 103, "of the other one nothing was said"
    processing.settled([(B, 7)])
    assert processing.since_s is None


def test_partitions_that_are_gone_do_not_count(clock: Clock) -> None:
    processing = Processing(clock)
    processing.sent(A, 5)
    processing.sent(B, 5)
    clock.now_s = 101
    processing.drop([A])
    assert processing.since_s == 100, "that they are gone is no word of the others"
    processing.drop([A, B])
    assert processing.since_s is None


def test_all_may_be_told_of_at_once(clock: Clock) -> None:
    processing = Processing(clock)
    processing.sent(A, 5)
    processing.settled_all()
    assert processing.since_s is None


def test_who_goes_back_has_what_it_was_sent_last(clock: Clock) -> None:
    processing = Processing(clock)
    processing.sent(A, 50)
    processing.sent(A, 10)
    processing.settled([(A, 10)])
    assert processing.since_s is None
