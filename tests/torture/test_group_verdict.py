"""The judge of groups is judged: each broken promise is named, and nothing is said where none is broken."""

import json
from pathlib import Path
from typing import Any

import pytest

from takhin.v1 import takhin_pb2 as pb
from tests.torture.oracle import Contents, Ledger, group_verdict, note_commits
from tests.torture.oracle.ledger import digest, mark
from tests.torture.oracle.member_log import MemberLog, MemberNotes, read_member_log
from tests.torture.oracle.reading import PartitionLog, Stored

TOPIC = "t"
END = 10


def contents() -> Contents:
    """One partition of ten records."""
    log = PartitionLog(0, END, END)
    for offset in range(END):
        record = pb.Record(value=mark("p", offset))
        log.records.append(Stored(offset, 1, ("p", offset), digest(record), 1000, 0))
    return Contents(topics={TOPIC: {0: log}})


class Member:
    """What a member notes; `at` is the time, which all have in common."""

    now = 0

    def __init__(self, name: str):
        self.name = name
        self.entries: list[dict[str, Any]] = []
        self.numbers = 0

    def note(self, kind: str, **entry: Any) -> None:
        Member.now += 1
        self.entries.append({"t": Member.now, "kind": kind, **entry})

    def open(self) -> None:
        self.note("opened", member_id=self.name)
        self.note("joined", member_id=self.name, generation=1)

    def assigned(self, generation: int, offset: int) -> None:
        self.note("assigned", added=[[TOPIC, 0, offset]], generation=generation)

    def saw(self, offset: int, end: int) -> None:
        digests = [record.digest for record in contents().topics[TOPIC][0].records[offset:end]]
        self.note("saw", topic=TOPIC, partition=0, offset=offset, digests=digests)

    def commit(self, offset: int, result: str = "ok", how: str = "stream") -> None:
        self.numbers += 1
        self.note("commit", n=self.numbers, offsets=[[TOPIC, 0, offset]], how=how)
        if result:
            self.note("answer", n=self.numbers, result=result, reason="")

    @property
    def log(self) -> MemberLog:
        return MemberLog("g", self.name).take(self.entries)


@pytest.fixture
def two() -> tuple[Member, Member]:
    """A reads half of it, B goes on where A has committed, and reads some of it again."""
    a, b = Member("a"), Member("b")
    a.open()
    a.assigned(1, 0)
    a.saw(0, 6)
    a.commit(4)
    b.open()
    b.assigned(2, 4)
    b.saw(4, END)
    b.commit(END)
    return a, b


def told(*members: Member) -> list[str]:
    return group_verdict([member.log for member in members], contents()).breaches


def test_nothing_is_said_where_nothing_is_broken(two: tuple[Member, Member]) -> None:
    two[0].commit(6, result="failed", how="late")
    found = group_verdict([member.log for member in two], contents())
    assert found.breaches == []
    assert (found.delivered, found.again, found.given, found.commits, found.late_refused) == (12, 2, 2, 2, 1)


def test_a_commit_of_an_old_generation(two: tuple[Member, Member]) -> None:
    a, b = two
    a.commit(4, how="late")
    (breach,) = told(a, b)
    assert "a commit of an old generation was taken" in breach


def test_a_commit_of_an_old_generation_that_came_before_anybody_knew(two: tuple[Member, Member]) -> None:
    """What an owner before has committed, at whatever time, is where the next one begins, or lies before it."""
    a, b = two
    a.entries[-2]["offsets"] = [[TOPIC, 0, 5]]
    assert any("and 5 had been committed" in breach for breach in told(a, b))


def test_a_start_behind_what_was_committed(two: tuple[Member, Member]) -> None:
    """The same member comes back, and is sent back."""
    a, b = two
    b.open()
    b.assigned(2, 4)
    (breach,) = told(a, b)
    assert "at offset 4, and 10 had been committed" in breach


@pytest.mark.parametrize(("how", "breaches"), [("stream", 0), ("auto", 0), ("unary", 1)])
def test_a_commit_that_is_good_by_what_the_member_has_not_read(how: str, breaches: int) -> None:
    """A loses the partition to B, is given it again, and reads of it after its commit; only CommitOffset is refused."""
    a, b = Member("a"), Member("b")
    a.open()
    a.assigned(1, 0)
    a.saw(0, END)
    b.open()
    b.assigned(2, 0)
    a.commit(END, how=how)
    a.assigned(3, 0)
    assert len([each for each in told(a, b) if "old generation" in each or "had been committed" in each]) >= breaches
    assert bool(told(a, b)) == bool(breaches)


def test_a_group_that_begins_anew() -> None:
    """A leaves before anything is committed, so there is no group any more; B is the first of the next one."""
    a, b = Member("a"), Member("b")
    a.open()
    a.assigned(1, 0)
    b.open()
    a.note("ended", code="OK", reason="")
    b.assigned(1, 0)
    b.saw(0, END)
    assert told(a, b) == []
    # But not when A is heard of once more.
    a.saw(0, 1)
    (breach,) = told(a, b)
    assert "was given to a and to b, both in generation 1" in breach


def test_a_start_that_nobody_committed(two: tuple[Member, Member]) -> None:
    a, b = two
    b.open()
    b.assigned(3, 11)
    (breach,) = told(a, b)
    assert "at offset 11, which nobody committed" in breach


def test_a_start_at_a_commit_without_an_answer(two: tuple[Member, Member]) -> None:
    a, b = two
    c = Member("c")
    b.commit(11, result="")
    c.open()
    c.assigned(3, 11)
    assert told(a, b, c) == []


def test_two_owners_in_a_generation(two: tuple[Member, Member]) -> None:
    a, b = two
    c = Member("c")
    c.open()
    c.assigned(2, END)
    (breach,) = told(a, b, c)
    assert "both in generation 2" in breach


def test_a_record_that_was_never_processed() -> None:
    a = Member("a")
    a.open()
    a.assigned(1, 0)
    a.saw(0, 4)
    a.saw(5, END)
    (breach,) = told(a)
    assert "g never processed 1 records of t/0, from offset 4 on" in breach


def test_a_record_with_another_value(two: tuple[Member, Member]) -> None:
    a, b = two
    b.note("saw", topic=TOPIC, partition=0, offset=9, digests=["another"])
    b.note("saw", topic=TOPIC, partition=0, offset=END, digests=["more"])
    assert [breach.partition(" offset ")[2] for breach in told(a, b)] == [
        "9 with another value than the log's", "10, which is not in the log"]


def test_what_surprised_a_member(two: tuple[Member, Member]) -> None:
    a, b = two
    b.note("surprise", text="something")
    assert told(a, b) == ["g/b was told: something"]


def test_many_of_a_kind_are_counted(two: tuple[Member, Member]) -> None:
    a, b = two
    for _ in range(8):
        b.note("surprise", text="something")
    assert told(a, b)[-1] == "… and 3 more like it (surprise)"


def test_commits_become_the_ledgers(two: tuple[Member, Member]) -> None:
    """In the order in which they were sent, whoever sent them."""
    a, b = two
    a.commit(6, result="failed", how="late")
    ledger = Ledger()
    note_commits(ledger, [b.log, a.log])
    assert [(each.group, each.offsets, each.result) for each in ledger.commits.values()] == [
        ("g", {(TOPIC, 0): 4}, "ok"), ("g", {(TOPIC, 0): END}, "ok"), ("g", {(TOPIC, 0): 6}, "failed")]


def test_commits_that_waited_together_are_made_as_one() -> None:
    """A is given the partition again where it began, and goes over it: what it commits meanwhile is not taken for less
    than what it had committed."""
    a = Member("a")
    a.open()
    a.assigned(1, 0)
    a.saw(0, END)
    a.commit(END)
    numbers = []
    for offset in (4, 6, END):
        a.numbers += 1
        numbers.append(a.numbers)
        a.note("commit", n=a.numbers, offsets=[[TOPIC, 0, offset]], how="stream")
    for number in numbers:
        a.note("answer", n=number, result="ok", reason="")
    ledger = Ledger()
    note_commits(ledger, [a.log])
    assert [each.offsets[TOPIC, 0] for each in ledger.commits.values()] == [END] * 4
    # One that was sent when the answer was there already was not among them.
    a.commit(END + 1)
    ledger = Ledger()
    note_commits(ledger, [a.log])
    assert [each.offsets[TOPIC, 0] for each in ledger.commits.values()] == [*[END] * 4, END + 1]


def test_a_ledger_that_a_death_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "g.m0.1"
    notes = MemberNotes(path)
    notes.note("opened", member_id="")
    notes.note("joined", member_id="me", generation=3)
    notes.sync()
    with path.open("ab") as file:
        file.write(json.dumps({"kind": "surprise", "text": "half"})[:-3].encode())
    log = read_member_log(path)
    assert (log.group, log.name, log.member_id, log.surprises) == ("g", "m0", "me", [])
