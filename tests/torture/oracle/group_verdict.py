"""Every broken promise to groups in words: the ledgers of their members held against the log. Pure functions.

Times are of one clock, and those of what was told: what a member was told at a time, the broker had decided before.
"""

import bisect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.torture.oracle.breaches import Breaches
from tests.torture.oracle.ledger import FAILED, OK, Ledger
from tests.torture.oracle.member_log import Given, MemberCommit, MemberLog, Place
from tests.torture.oracle.reading import Contents

# So many of a kind are told one by one.
_SHOWN = 5


@dataclass
class GroupVerdict:
    """delivered: records that members processed, with those that came again; again: these alone."""

    breaches: list[str] = field(default_factory=list)
    delivered: int = 0
    again: int = 0
    given: int = 0
    commits: int = 0
    late_refused: int = 0


def note_commits(ledger: Ledger, logs: Sequence[MemberLog]) -> None:
    """The members' commits, in the order in which they were sent, as if the oracle had sent them, for verdict.py."""
    commits = [
        (commit.sent, log.group, commit, _as_made(commit, log.commits[index + 1 :]))
        for log in logs for index, commit in enumerate(log.commits)
    ]
    for _, group, commit, made in sorted(commits, key=lambda each: each[0]):
        number = ledger.next_number()
        offsets = [[*place, offset] for place, offset in made.items()]
        ledger.note({"kind": "commit", "n": number, "group": group, "offsets": offsets})
        # Not the reason: what was committed when one was refused is not known by the order in which they were sent.
        ledger.answer(number, commit.result)


def _as_made(commit: MemberCommit, later: Sequence[MemberCommit]) -> dict[Place, int]:
    """What was committed, as far as it goes: those that wait together on a stream are made as one, the last of each
    partition counts, and each is answered with that one's success."""
    made = dict(commit.offsets)
    for each in later if commit.how == "stream" and commit.result == OK else ():
        if each.how != "stream" or each.result != OK or each.sent > commit.answered:
            break
        made |= {place: max(offset, made[place]) for place, offset in each.offsets.items() if place in made}
    return made


def group_verdict(logs: Sequence[MemberLog], contents: Contents) -> GroupVerdict:
    """logs: of all members that ever were. All groups have come to the end of the log when this is asked."""
    return _GroupJudge(logs, contents).judge()


class _GroupJudge:
    def __init__(self, logs: Sequence[MemberLog], contents: Contents):
        self.groups: dict[str, list[MemberLog]] = {}
        for log in logs:
            self.groups.setdefault(log.group, []).append(log)
        self.contents = contents
        self.found = GroupVerdict()
        self._breaches = Breaches(self.found.breaches, _SHOWN)
        self._break = self._breaches.add

    def judge(self) -> GroupVerdict:
        for group, logs in sorted(self.groups.items()):
            for log in logs:
                for surprise in log.surprises:
                    self._break("surprise", f"{group}/{log.name} was told: {surprise}")
            self._judge_group(group, logs)
        self._breaches.end()
        return self.found

    def _judge_group(self, group: str, logs: Sequence[MemberLog]) -> None:
        given: dict[Place, list[Given]] = {}
        commits: dict[Place, list[MemberCommit]] = {}
        for log in logs:
            for each in log.given:
                given.setdefault(each.place, []).append(each)
            for commit in log.commits:
                self.found.commits += commit.result == OK
                self.found.late_refused += commit.how == "late" and commit.result == FAILED
                for place in commit.offsets:
                    commits.setdefault(place, []).append(commit)
        # Those without an answer were perhaps never taken: a member may have sent them behind its leave.
        committed_since = min(
            (commit.sent for log in logs for commit in log.commits if commit.result == OK), default=math.inf)
        until: dict[str, int] = {}
        for log in logs:
            for member_id, at in log.until.items():
                until[member_id] = max(at, until.get(member_id, 0))
        self.found.given += sum(len(several) for several in given.values())
        for place, several in sorted(given.items()):
            where = f"{group}, {place[0]}/{place[1]}"
            several.sort(key=lambda each: each.at)
            self._judge_owners(where, several, until, committed_since)
            self._judge_starts(where, several, commits.get(place, ()))
            self._judge_late(where, several, commits.get(place, ()))
        self._judge_seen(group, logs)

    def _judge_owners(
        self, where: str, given: Iterable[Given], until: dict[str, int], committed_since: float
    ) -> None:
        """until: when a member was last heard of. committed_since: when the group's first commit was sent."""
        owners: dict[int, str] = {}
        for each in given:
            owner = owners.setdefault(each.generation, each.member_id)
            if owner == each.member_id:
                continue
            # A group that nobody is in any more, and that has committed nothing, is none: the next one counts anew.
            # Its members' ids are not known then, so nothing of theirs is taken.
            if until[owner] < each.at < committed_since:
                owners[each.generation] = each.member_id
            else:
                self._break(
                    "owners", f"{where} was given to {owner} and to {each.member_id}, both in generation "
                              f"{each.generation}")

    def _judge_starts(self, where: str, given: Sequence[Given], commits: Sequence[MemberCommit]) -> None:
        """Each member begins where the group stands: nothing is skipped, and nothing comes again but what was not
        committed."""
        if not given:
            return
        place = given[0].place
        possible = {0} | {commit.offsets[place] for commit in commits if commit.result != FAILED}
        by_answer = _Highest((commit.answered, commit.offsets[place]) for commit in commits if commit.result == OK)
        by_generation = _Highest(
            (_latest_since(commit, given), commit.offsets[place]) for commit in commits if commit.result == OK)
        for each in given:
            told = f"{where} was given to {each.member_id} in generation {each.generation} at offset {each.offset}"
            if each.offset not in possible:
                self._break("starts", f"{told}, which nobody committed")
            # What was answered before the stream was opened; and what was committed by owners before, whenever.
            low = max(by_answer.before(each.opened), by_generation.before(each.generation))
            if each.offset < low:
                self._break("starts", f"{told}, and {low} had been committed")

    def _judge_late(self, where: str, given: Sequence[Given], commits: Iterable[MemberCommit]) -> None:
        """A commit is refused that is sent after somebody else was told to have the partition."""
        by_time = [each.at for each in given]
        for commit in commits:
            # The broker's own commits are noted when it may do them, not when it does.
            if commit.result != OK or commit.how == "auto":
                continue
            since = _latest_since(commit, given)
            for each in reversed(given[: bisect.bisect_left(by_time, commit.sent)]):
                if each.generation <= since:
                    break
                if each.member_id != commit.member_id:
                    self._break(
                        "late",
                        f"{where}: {commit.member_id}, which had it since generation {since}, committed "
                        f"{commit.offsets[each.place]} after it was given to {each.member_id} in generation "
                        f"{each.generation}: a commit of an old generation was taken",
                    )
                    break

    def _judge_seen(self, group: str, logs: Sequence[MemberLog]) -> None:
        """Every record was processed at least once, and is what the log holds."""
        seen: dict[Place, set[int]] = {}
        for log in logs:
            for each in log.seen:
                known = seen.setdefault(each.place, set())
                partition = self.contents.topics[each.place[0]][each.place[1]]
                for offset, digest in enumerate(each.digests, each.offset):
                    where = f"{group}/{log.name} processed {each.place[0]}/{each.place[1]} offset {offset}"
                    record = partition.at(offset)
                    if record is None:
                        self._break("seen", f"{where}, which is not in the log")
                    elif record.digest != digest:
                        self._break("seen", f"{where} with another value than the log's")
                    self.found.delivered += 1
                    self.found.again += offset in known
                    known.add(offset)
        for topic, partitions in self.contents.topics.items():
            for number, partition in partitions.items():
                missed = sorted(set(range(partition.start, partition.end)) - seen.get((topic, number), set()))
                if missed:
                    self._break(
                        "missed", f"{group} never processed {len(missed)} records of {topic}/{number}, from offset "
                                  f"{missed[0]} on")


def _latest_since(commit: MemberCommit, given: Sequence[Given]) -> int:
    """The last generation in which the partition was given to who committed, when the commit may have been taken.

    A commit on a stream names no generation. So it is good too when the partition was lost, and given to the member
    again, and the member had not read of either when it sent the commit.
    """
    since = commit.since[given[0].place]
    if commit.how in ("unary", "late"):
        return since
    return max([since, *(
        each.generation for each in given if each.member_id == commit.member_id and each.opened <= commit.sent)])


class _Highest:
    """Of pairs (key, value): the highest value of all keys below one; 0 when there is none."""

    def __init__(self, pairs: Iterable[tuple[int, int]]):
        ordered = sorted(pairs)
        self._keys = [key for key, _ in ordered]
        self._highest: list[int] = []
        for _, value in ordered:
            self._highest.append(max(value, self._highest[-1] if self._highest else 0))

    def before(self, key: int) -> int:
        position = bisect.bisect_left(self._keys, key)
        return self._highest[position - 1] if position else 0
