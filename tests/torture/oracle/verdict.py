"""Every broken promise in words: what the ledger says was promised, held against what was read back. Pure functions."""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.torture.oracle.breaches import Breaches
from tests.torture.oracle.group_verdict import GroupVerdict
from tests.torture.oracle.ledger import (
    ACCEPTED,
    DURABLE,
    FAILED,
    OK,
    UNKNOWN,
    Attempt,
    Commit,
    Ledger,
    Resumed,
    TopicChange,
)
from tests.torture.oracle.reading import Contents, PartitionLog, Stored

# So many of a kind are told one by one.
_SHOWN = 20
# Starts after these raise the epoch. One that was ending may have left the mark of a clean stop before it died.
_UNCLEAN = ("power", "kill")
_ENDS = (*_UNCLEAN, "stopping", "stop")
_ENDLESS = 1 << 62


@dataclass
class Verdict:
    """What a judgement found. acked: records that had to be there, and were looked for. groups: of their members."""

    breaches: list[str] = field(default_factory=list)
    acked: int = 0
    records: int = 0
    commits: int = 0
    groups: GroupVerdict | None = None


@dataclass(slots=True)
class _Topic:
    """What the ledger knows of a topic. exists: "yes", "no" or "maybe"; since: the position of its creation."""

    exists: str = "no"
    since: int = 0
    partitions: int = 0
    configs: dict[str, str] = field(default_factory=dict)


def breaches(ledger: Ledger, contents: Contents, fault: str = "kill") -> list[str]:
    """Every broken promise. fault: what happened since the ledger's last entry, as if it were its last.

    "kill": the process died. What was answered as written or durable has to be there. "stopping": it died while it was
    ending in order. "power": what was durable has to be there, and what lies below something durable. "stop": it ended
    in order; "none": it still runs. Then what was accepted has to be there too, unless the ledger tells of another
    fault ("full" for a full disk among them).
    """
    return verdict(ledger, contents, fault).breaches


def verdict(ledger: Ledger, contents: Contents, fault: str = "kill") -> Verdict:
    """As breaches(), with figures."""
    return _Judge(ledger, contents, fault).judge()


class _Judge:
    def __init__(self, ledger: Ledger, contents: Contents, fault: str):
        self.ledger = ledger
        self.contents = contents
        self.faults = [*ledger.faults, (ledger.position + 1, fault)]
        self.found = Verdict(records=contents.record_count)
        self._breaches = Breaches(self.found.breaches, _SHOWN)
        self._break = self._breaches.add
        self.topics = self._fold_topics()
        self.powers = [position for position, kind in self.faults if kind == "power"]
        # Of each power cut: by partition, up to where the log was known to be durable when it came.
        self.floors = [self._floors(position) for position in self.powers]

    def judge(self) -> Verdict:
        for problem in self.contents.problems:
            self._break("reading", problem)
        self._judge_topics()
        for topic, partitions in self.contents.topics.items():
            for number, log in partitions.items():
                self._judge_partition(topic, number, log)
        self._judge_attempts()
        self._judge_followers()
        self._judge_looked()
        self._judge_epochs()
        self._judge_commits()
        self._breaches.end()
        return self.found

    # Topics

    def _fold_topics(self) -> dict[str, _Topic]:
        topics: dict[str, _Topic] = {}
        for change in sorted(self.ledger.topics.values(), key=lambda each: each.position):
            state = topics.setdefault(change.topic, _Topic())
            if change.partitions:
                self._fold_create(state, change)
            else:
                self._fold_delete(state, change)
        return topics

    def _fold_create(self, state: _Topic, change: TopicChange) -> None:
        if change.result == OK:
            if state.exists == "yes":
                self._break("topics", f"topic {change.topic} was created a second time while it was there")
            state.exists, state.since = "yes", change.position
        elif change.result == UNKNOWN:
            if state.exists == "no":
                state.exists, state.since = "maybe", change.position
        elif change.reason == "TOPIC_EXISTS":
            if state.exists == "no":
                self._break("topics", f"topic {change.topic} was said to exist, and it was deleted, or never made")
            state.exists = "yes"
        if change.result != FAILED:
            state.partitions, state.configs = change.partitions, change.configs

    def _fold_delete(self, state: _Topic, change: TopicChange) -> None:
        if change.result == OK:
            if state.exists == "no":
                self._break("topics", f"topic {change.topic} was deleted though it was not there")
            state.exists = "no"
        elif change.result == UNKNOWN:
            if state.exists == "yes":
                state.exists = "maybe"
        elif change.reason == "TOPIC_NOT_FOUND":
            if state.exists == "yes":
                self._break("topics", f"topic {change.topic} was not found when it was to be deleted: it was lost")
            state.exists = "no"

    def _judge_topics(self) -> None:
        for name, state in self.topics.items():
            there = name in self.contents.topics
            if state.exists == "yes" and not there:
                self._break("topics", f"topic {name} is gone, though its creation was answered")
            elif state.exists == "no" and there:
                self._break("topics", f"topic {name} is there, though its deletion was answered")
            elif there and len(self.contents.topics[name]) != state.partitions:
                told = len(self.contents.topics[name])
                self._break("topics", f"topic {name} has {told} partitions that can be read, not {state.partitions}")
        for name in self.contents.topics.keys() - self.topics.keys():
            self._break("topics", f"topic {name} is there, and nobody made it")

    def _is_of(self, topic: str, position: int) -> bool:
        """Whether what happened at `position` happened to the topic as it is now, not to one deleted since."""
        state = self.topics.get(topic)
        return state is not None and state.exists != "no" and position > state.since

    def _may_lose_its_start(self, topic: str) -> bool:
        configs = self.topics[topic].configs if topic in self.topics else {}
        return "retention.bytes" in configs or "retention.ms" in configs

    # What has to be there

    def _floors(self, before: int) -> dict[tuple[str, int], int]:
        floors: dict[tuple[str, int], int] = {}

        def raise_to(topic: str, partition: int, offset: int, position: int) -> None:
            if 0 <= position < before and self._is_of(topic, position):
                floors[topic, partition] = max(floors.get((topic, partition), 0), offset)

        for attempt in self.ledger.attempts.values():
            if attempt.result == OK and attempt.durability == DURABLE:
                raise_to(attempt.topic, attempt.stored_in, attempt.end, attempt.answered)
        for commit in self.ledger.commits.values():
            if commit.result == OK:
                for (topic, partition), offset in commit.offsets.items():
                    raise_to(topic, partition, offset, commit.answered)
        for position, topic, partition, _, _, durable in self.ledger.looked:
            raise_to(topic, partition, durable, position)
        return floors

    def _survives(self, topic: str, partition: int, end: int, position: int) -> bool:
        """Whether what was with the operating system at `position`, up to offset `end`, has to be there still."""
        for cut, floors in zip(self.powers, self.floors, strict=True):
            if cut > position:
                # What came through the first cut is durable since: recovery syncs what it serves.
                return end <= floors.get((topic, partition), 0)
        return True

    def _must_be_there(self, attempt: Attempt) -> bool:
        if attempt.result != OK:
            return False
        if attempt.durability == ACCEPTED:
            return all(kind in ("stop", "none") for _, kind in self.faults)
        return attempt.durability == DURABLE or self._survives(
            attempt.topic, attempt.stored_in, attempt.end, attempt.answered)

    # The log by itself

    def _judge_partition(self, topic: str, number: int, log: PartitionLog) -> None:
        where = f"{topic}/{number}"
        expected, epoch = log.start, -1
        last: dict[str, tuple[int, int]] = {}
        for record in log.records:
            if record.offset != expected:
                self._break("gap", f"{where} has offset {record.offset} where {expected} was to come")
            expected = record.offset + 1
            if record.partition != number:
                told = f"{where} offset {record.offset} says that it is of partition {record.partition}"
                self._break("partition", told)
            if record.epoch is not None:
                if record.epoch < epoch:
                    self._break("epoch", f"{where} goes back to epoch {record.epoch} at offset {record.offset}")
                epoch = record.epoch
            if record.origin is not None:
                producer, sequence = record.origin
                before = last.get(producer)
                if before is not None and before[0] >= sequence:
                    self._break(
                        "order",
                        f"{where} has {producer}/{sequence} at offset {record.offset} behind {producer}/{before[0]} at "
                        f"offset {before[1]}: out of order",
                    )
                last[producer] = sequence, record.offset
        if expected != log.end:
            self._break("end", f"{where} ends at offset {log.end} as it says, but its records end at {expected}")
        if log.durable > log.end:
            self._break("end", f"{where} is durable up to {log.durable}, which is beyond its end, {log.end}")
        if log.start > 0 and not self._may_lose_its_start(topic):
            self._break("start", f"{where} begins at offset {log.start}, and it has no retention")

    # Attempts

    def _judge_attempts(self) -> None:
        places = self._places()
        expected: set[tuple[str, int]] = set()
        for attempt in self.ledger.attempts.values():
            keys = [(attempt.producer, attempt.first + i) for i in range(attempt.count)]
            expected.update(keys)
            found = [places.get(key, ()) for key in keys]
            for key, there in zip(keys, found, strict=True):
                if len(there) > 1:
                    told = ", ".join(f"{topic}/{number} offset {record.offset}" for topic, number, record in there)
                    self._break("twice", f"{key[0]}/{key[1]} is there {len(there)} times: {told}")
            self._judge_attempt(attempt, [there[0] if there else None for there in found])
        for key in places.keys() - expected:
            topic, number, record = places[key][0]
            self._break("foreign", f"{topic}/{number} offset {record.offset}: nobody sent {key[0]}/{key[1]}")

    def _places(self) -> dict[tuple[str, int], list[tuple[str, int, Stored]]]:
        places: dict[tuple[str, int], list[tuple[str, int, Stored]]] = {}
        for topic, partitions in self.contents.topics.items():
            for number, log in partitions.items():
                for record in log.records:
                    if record.origin is None:
                        self._break("foreign", f"{topic}/{number} offset {record.offset} bears no mark: nobody sent it")
                    else:
                        places.setdefault(record.origin, []).append((topic, number, record))
        return places

    def _judge_attempt(self, attempt: Attempt, found: list[tuple[str, int, Stored] | None]) -> None:
        there = [place for place in found if place is not None]
        is_current = self._is_of(attempt.topic, attempt.position)
        if there and attempt.result == FAILED:
            self._break("failed", f"{attempt} failed ({attempt.reason}), and is there at {_told(there[0])}")
            return
        if there and not is_current:
            self._break("deleted", f"{attempt} was sent to a topic deleted since, and is there at {_told(there[0])}")
            return
        if not there:
            if attempt.topic not in self.contents.topics and self.topics[attempt.topic].exists == "maybe":
                return
            if is_current and self._must_be_there(attempt) and not self._went_by_retention(attempt):
                self._break(
                    "lost",
                    f"{attempt} is lost: answered with offset {attempt.offset} of partition {attempt.stored_in}, epoch "
                    f"{attempt.epoch}, {_level(attempt)}",
                )
            elif attempt.result == OK and is_current and self._must_be_there(attempt):
                self.found.acked += attempt.count
            return
        self._judge_place(attempt, found, there)

    def _judge_place(
        self, attempt: Attempt, found: list[tuple[str, int, Stored] | None], there: list[tuple[str, int, Stored]]
    ) -> None:
        """Some of it is there: all of it has to be, in a row, unchanged and where the answer said."""
        if self._must_be_there(attempt):
            self.found.acked += attempt.count
        topic, number, first = there[0]
        if len(there) < len(found):
            told = f"{attempt}: {len(there)} of its {len(found)} records are there, from {_told(there[0])}"
            self._break("torn", told)
            return
        if topic != attempt.topic or (attempt.partition >= 0 and number != attempt.partition):
            self._break("astray", f"{attempt} is in {topic}/{number}")
            return
        for i, (each_topic, each_number, record) in enumerate(there):
            if (each_topic, each_number, record.offset) != (topic, number, first.offset + i):
                self._break("torn", f"{attempt} is not in a row: record {i} is at {_told(there[i])}, the first at "
                                    f"{_told(there[0])}")
                return
            if record.digest != attempt.digests[i]:
                self._break("changed", f"{attempt}: record {i}, at {_told(there[i])}, is not what was sent")
            wanted = attempt.timestamps[i] if attempt.timestamps else 0
            if wanted and record.timestamp != wanted and not self._stamps(topic):
                self._break("timestamp", f"{attempt}: record {i} has timestamp {record.timestamp}, not {wanted}")
            if record.epoch != first.epoch:
                self._break("torn", f"{attempt} is of epoch {first.epoch}, its record {i} of {record.epoch}")
        if attempt.result == OK:
            answered = (attempt.stored_in, attempt.offset, attempt.timestamp)
            if answered != (number, first.offset, first.timestamp) or first.epoch not in (None, attempt.epoch):
                self._break(
                    "moved",
                    f"{attempt} was answered with partition {attempt.stored_in}, offset {attempt.offset}, timestamp "
                    f"{attempt.timestamp}, epoch {attempt.epoch}, and is at {_told(there[0])}, timestamp "
                    f"{first.timestamp}, epoch {first.epoch}",
                )

    def _stamps(self, topic: str) -> bool:
        return self.topics[topic].configs.get("message.timestamp.type") == "LogAppendTime"

    def _went_by_retention(self, attempt: Attempt) -> bool:
        log = self.contents.topics.get(attempt.topic, {}).get(attempt.stored_in)
        return log is not None and attempt.end <= log.start and self._may_lose_its_start(attempt.topic)

    # What was seen before

    def _judge_followers(self) -> None:
        values: dict[tuple[str, int, int, int], str] = {}
        last_fault = max((position for position, kind in self.ledger.faults if kind in _ENDS), default=0)
        for saw in self.ledger.saw:
            if not self._is_of(saw.topic, saw.position):
                continue
            log = self.contents.topics.get(saw.topic, {}).get(saw.partition)
            for offset, digest in enumerate(saw.digests, saw.offset):
                where = f"{saw.topic}/{saw.partition} offset {offset}"
                if saw.epoch is not None:
                    known = values.setdefault((saw.topic, saw.partition, saw.epoch, offset), digest)
                    if known != digest:
                        self._break("two values", f"{where} in epoch {saw.epoch} was read with two values")
                if log is not None:
                    must = self._survives(saw.topic, saw.partition, offset + 1, saw.position)
                    self._judge_seen(where, saw.epoch, digest, log, offset, must)
        for resumed in self.ledger.resumed:
            # Later faults may have changed what a follower is to be told.
            if resumed.position > last_fault and self._is_of(resumed.topic, resumed.position):
                self._judge_resumed(resumed)

    def _judge_seen(
        self, where: str, epoch: int | None, digest: str, log: PartitionLog, offset: int, must: bool
    ) -> None:
        if offset < log.start:
            return
        record = log.at(offset)
        if record is None:
            if must:
                self._break("seen", f"{where} was read by a follower, and is gone")
        elif record.digest != digest and (must or (epoch is not None and record.epoch == epoch)):
            self._break("two values", f"{where} (epoch {epoch}) was read with another value by a follower")
        elif must and None not in (epoch, record.epoch) and epoch != record.epoch:
            self._break("two values", f"{where} was read in epoch {epoch}, and is of epoch {record.epoch} now")

    def _judge_resumed(self, resumed: Resumed) -> None:
        log = self.contents.topics.get(resumed.topic, {}).get(resumed.partition)
        if log is None or resumed.offset <= log.start:
            return
        told = (
            f"a follower of {resumed.topic}/{resumed.partition} that went on at {resumed.offset}, its last record of "
            f"epoch {resumed.last_epoch},"
        )
        last = log.at(resumed.offset - 1)
        same = last is not None and (resumed.last_epoch is None or last.epoch in (None, resumed.last_epoch))
        if resumed.answer == OK:
            if not same:
                self._break("resumed", f"{told} was let go on, though its last record is not in the log")
        elif resumed.answer == "LOG_TRUNCATED":
            if same:
                self._break("resumed", f"{told} was told LOG_TRUNCATED, and it had seen what is there")
            elif not log.start <= resumed.divergence <= min(log.end, resumed.offset):
                self._break("resumed", f"{told} was told to go on at {resumed.divergence}")
            else:
                at = log.at(resumed.divergence)
                if at is not None and at.epoch is not None and at.epoch <= (resumed.last_epoch or 0):
                    self._break(
                        "resumed",
                        f"{told} was told that the log differs from {resumed.divergence} on, which is of epoch "
                        f"{at.epoch}",
                    )
        elif resumed.answer == "OFFSET_OUT_OF_RANGE" and resumed.log_start < resumed.offset <= log.end:
            self._break("resumed", f"{told} was refused as out of range")

    def _judge_looked(self) -> None:
        for position, topic, number, start, end, durable in self.ledger.looked:
            log = self.contents.topics.get(topic, {}).get(number)
            if log is None or not self._is_of(topic, position):
                continue
            where = f"{topic}/{number}"
            if log.start < start:
                self._break("looked", f"{where} begins at {log.start}, and began at {start} before: it went back")
            if log.end < durable:
                self._break("looked", f"{where} ends at {log.end}, and was durable up to {durable} before")
            if log.end < end and self._survives(topic, number, end, position):
                self._break("looked", f"{where} ends at {log.end}, and ended at {end} before")

    def _judge_epochs(self) -> None:
        """Each unclean start raises the epoch: nothing has the epoch of a run before it."""
        cuts = [position for position, kind in self.faults if kind in _UNCLEAN]
        highest = [-1] * (len(cuts) + 1)
        lowest = [_ENDLESS] * (len(cuts) + 1)
        for position, epoch in self._answered_epochs():
            run = bisect.bisect_left(cuts, position)
            highest[run] = max(highest[run], epoch)
            lowest[run] = min(lowest[run], epoch)
        before = -1
        for run, epoch in enumerate(lowest):
            if epoch <= before:
                self._break("epoch", f"after unclean start {run} epoch {epoch} was written; before it, {before} was")
            before = max(before, highest[run])

    def _answered_epochs(self) -> Iterator[tuple[int, int]]:
        for attempt in self.ledger.attempts.values():
            # A duplicate is answered with what was, perhaps before the last start.
            if attempt.result == OK and not attempt.duplicate:
                yield attempt.answered, attempt.epoch

    # Commits

    def _judge_commits(self) -> None:
        by_group: dict[str, list[Commit]] = {}
        for commit in sorted(self.ledger.commits.values(), key=lambda each: each.position):
            by_group.setdefault(commit.group, []).append(commit)
        for group, commits in by_group.items():
            self._judge_group(group, commits)

    def _judge_group(self, group: str, commits: list[Commit]) -> None:
        low: dict[tuple[str, int], int] = {}
        possible: dict[tuple[str, int], set[int]] = {}
        for commit in commits:
            for key, offset in commit.offsets.items():
                if not self._is_of(key[0], commit.position):
                    continue
                where = f"{group}'s commit of {offset} for {key[0]}/{key[1]}"
                values = possible.setdefault(key, {0})
                if commit.result == OK:
                    if offset < low.get(key, 0):
                        self._break("commits", f"{where} was taken, though {low[key]} was committed: it went back")
                    low[key] = max(low.get(key, 0), offset)
                    values.add(offset)
                elif commit.result == UNKNOWN:
                    values.add(offset)
                elif commit.reason == "OFFSET_BEHIND_COMMITTED" and len(commit.offsets) == 1:
                    if commit.committed < low.get(key, 0) or commit.committed not in values:
                        self._break("commits", f"{where} was refused with {commit.committed}, which is not what it was")
                    elif offset >= max(values):
                        self._break("commits", f"{where} was refused as behind, and it is not")
        for key, values in possible.items():
            self._judge_committed(group, key, low.get(key, 0), values)
        self._judge_whole(group, commits, low)

    def _judge_committed(self, group: str, key: tuple[str, int], low: int, values: set[int]) -> None:
        committed = self.contents.committed.get((group, *key))
        log = self.contents.topics.get(key[0], {}).get(key[1])
        if committed is None or log is None:
            return
        self.found.commits += 1
        where = f"{group} stands at {committed} of {key[0]}/{key[1]}"
        if committed < low:
            self._break("commits", f"{where}, and {low} was committed: the commit is lost")
        elif committed not in values:
            self._break("commits", f"{where}, which nobody committed with success")
        if committed > log.end:
            self._break("commits", f"{where}, which is beyond the log's end, {log.end}")

    def _judge_whole(self, group: str, commits: list[Commit], low: dict[tuple[str, int], int]) -> None:
        """The last commit, when nobody knows what became of it: all of it holds, or nothing."""
        last = commits[-1]
        if last.result != UNKNOWN:
            return
        applied = {
            key: self.contents.committed[group, *key] >= offset
            for key, offset in last.offsets.items()
            if (group, *key) in self.contents.committed and offset > low.get(key, 0)
        }
        # An earlier commit without an answer may have brought one of them as far.
        earlier = any(each.result == UNKNOWN for each in commits[:-1])
        if len(set(applied.values())) > 1 and not earlier:
            self._break("commits", f"{group}'s last commit holds for some of its partitions only: {applied}")


def _told(place: tuple[str, int, Stored]) -> str:
    topic, number, record = place
    return f"{topic}/{number} offset {record.offset}"


def _level(attempt: Attempt) -> str:
    return {1: "accepted", 2: "written", 3: "durable"}.get(attempt.durability, "?")
