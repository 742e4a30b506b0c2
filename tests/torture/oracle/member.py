"""One member of a group, in a process of its own, that is killed, stopped and cut off at any moment.

What it is told and what it does is in its ledger (member_log.py): records before they are committed, a commit before
it is sent. SIGUSR1 cuts its stream, and it comes back; at SIGTERM it leaves. Whatever else a stream ends with that a
member may be told makes it come back too, as the same member or as a new one. One whose place another has ends.
"""

import queue
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from takhin.v1 import takhin_pb2 as pb
from tests.torture.oracle.client import OPTIONS, Refusal, Stub, refusal_of
from tests.torture.oracle.ledger import FAILED, OK, UNKNOWN, digest
from tests.torture.oracle.member_log import MemberNotes, Place

_AGAIN_S = 0.1
_UNARY_S = 10
_CREDIT_BYTES = 200_000
# A refusal of a commit with these left everything as it was.
_NOT_COMMITTED = {
    "FENCED_GENERATION", "OFFSET_BEHIND_COMMITTED", "OFFSET_OUT_OF_RANGE", "GROUP_HAS_MEMBERS", "DRAINING",
}
# Without a reason: what grpc says of a lost connection, beside UNAVAILABLE.
_CUT_OFF = {"INTERNAL", "UNKNOWN"}
# With these the member is out: it starts as a new one.
_OUT = {"SESSION_TIMEOUT", "PROCESSING_TIMEOUT", "MEMBER_TOO_SLOW"}


@dataclass(frozen=True)
class MemberOptions:
    """commits: "stream", "unary" or "auto". member_id: to come back with. address: a file with the broker's."""

    group: str
    topics: Sequence[str]
    address: Path
    ledger: Path
    seed: str
    assignor: str
    commits: str
    session_timeout_ms: int
    revoke_timeout_ms: int
    instance_id: str = ""
    member_id: str = ""


def run_member(options: MemberOptions) -> None:
    """Until it is told to leave, or its place is another's."""
    member = _Member(options)
    signal.signal(signal.SIGTERM, lambda *_: member.leave())
    signal.signal(signal.SIGUSR1, lambda *_: member.cut())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    member.run()
    sys.exit(0)


class _Member:
    def __init__(self, options: MemberOptions):
        self.options = options
        self.notes = MemberNotes(options.ledger)
        self.rng = random.Random(options.seed)
        self.member_id = options.member_id
        self.generation = 0
        # Of commits that had no answer when a stream ended: they may still come to pass.
        self.unsure: dict[Place, int] = {}
        # As far as commits were tried that came late.
        self.late: dict[Place, int] = {}
        self._leaving = self._joined = False
        self._call: grpc.Call | None = None
        self._begin_stream()

    def _begin_stream(self) -> None:
        self._joined = False
        self.requests: queue.SimpleQueue[pb.SubscribeRequest | None] = queue.SimpleQueue()
        # What it has: the next offset of each; and the offset that was last to be committed.
        # Of the broker that has the stream.
        self.address = ""
        self.positions: dict[Place, int] = {}
        self.asked: dict[Place, int] = {}
        # Commits on the stream, until they are answered.
        self.waiting: dict[int, dict[Place, int]] = {}
        # Asked back, and not released.
        self.revoking: set[Place] = set()

    # Signals

    def leave(self) -> None:
        self._leaving = True
        if self._joined:
            self.requests.put(pb.SubscribeRequest(leave=pb.Leave()))

    def cut(self) -> None:
        if self._call is not None:
            self._call.cancel()

    # Streams

    def run(self) -> None:
        while not self._leaving:
            self._begin_stream()
            self.notes.note("opened", member_id=self.member_id)
            self.notes.sync()
            try:
                self.address = self.options.address.read_text()
                with grpc.insecure_channel(self.address, options=OPTIONS) as channel:
                    self.stub = Stub(channel)
                    self._one_stream()
                refusal = Refusal("OK")
            except grpc.RpcError as problem:
                refusal = refusal_of(problem)
            self._call = None
            for offsets in self.waiting.values():
                self._note_unsure(offsets)
            self.notes.note("ended", code=refusal.code, reason=refusal.reason)
            self.notes.sync()
            if not self._goes_on(refusal):
                return

    def _goes_on(self, refusal: Refusal) -> bool:
        """What the end of a stream means for the member."""
        if refusal.code == "OK":
            if not self._leaving:
                self._surprise("the stream ended with OK, and the member has not left")
            return False
        if refusal.reason in _OUT or refusal.reason == "MEMBER_FENCED":
            self._commit_late(self.positions, is_told=True)
            self.member_id = ""
            return refusal.reason in _OUT
        # Who cuts the stream while the broker tells why it ends finds both: CANCELLED, with a reason.
        if refusal.code not in ("UNAVAILABLE", "CANCELLED") and (refusal.reason or refusal.code not in _CUT_OFF):
            self._surprise(f"the stream ended: {refusal}")
            return False
        time.sleep(_AGAIN_S)
        return True

    def _one_stream(self) -> None:
        options = self.options
        start = pb.SubscribeStart(
            group_id=options.group, topics=options.topics, client_id=options.ledger.name, assignor=options.assignor,
            member_id=self.member_id, instance_id=options.instance_id, session_timeout_ms=options.session_timeout_ms,
            max_bytes=self.rng.choice((0, 1000, 20_000)),
        )
        if options.commits == "auto":
            start.commit_mode = pb.COMMIT_MODE_AUTO
        if options.commits == "auto" or self.rng.random() < 0.5:
            start.credit_bytes = _CREDIT_BYTES
        self.requests.put(pb.SubscribeRequest(start=start))
        call = self.stub.Subscribe(iter(self.requests.get, None))
        self._call = call
        try:
            for response in call:
                kind = response.WhichOneof("response")
                getattr(self, f"_take_{kind}")(getattr(response, kind))
                if kind == "records" and start.credit_bytes:
                    self._send(credit=pb.Credit(bytes=response.credit_bytes))
                self.notes.sync()
        finally:
            call.cancel()
            self.requests.put(None)

    def _send(self, **request: Any) -> None:
        self.notes.sync()
        self.requests.put(pb.SubscribeRequest(**request))

    def _surprise(self, text: str) -> None:
        self.notes.note("surprise", text=text)
        self.notes.sync()

    # What it is told

    def _take_joined(self, joined: pb.Joined) -> None:
        self.member_id, self.generation = joined.member_id, joined.generation
        self.notes.note("joined", member_id=joined.member_id, generation=joined.generation)
        self._joined = True
        if self._leaving:
            self.requests.put(pb.SubscribeRequest(leave=pb.Leave()))

    def _take_assigned(self, assigned: pb.Assigned) -> None:
        added = [(each.topic, each.partition, each.offset) for each in assigned.added]
        self.notes.note("assigned", added=added, generation=assigned.generation)
        if assigned.generation < self.generation:
            self._surprise(f"generation {assigned.generation} came after {self.generation}")
        self.generation = assigned.generation
        if self.options.commits == "auto":
            # What the broker commits from now on is of what it gives from now on, be it the same offsets.
            places = {(topic, partition) for topic, partition, _ in added}
            self.waiting = {
                number: offsets for number, offsets in self.waiting.items() if not places & offsets.keys()}
        for topic, partition, offset in added:
            if (topic, partition) in self.positions and (topic, partition) not in self.revoking:
                self._surprise(f"{topic}/{partition} was assigned to the member that has it")
            self.revoking.discard((topic, partition))
            self.positions[topic, partition] = self.asked[topic, partition] = offset
        told = {(each.topic, each.partition) for each in assigned.partitions}
        if told != self.positions.keys() - self.revoking:
            self._surprise(f"told to have {sorted(told)}, and has {sorted(self.positions.keys() - self.revoking)}")

    def _take_records(self, records: pb.ConsumeMessagesResponse) -> None:
        place = records.topic, records.partition
        where = f"{place[0]}/{place[1]}"
        if place not in self.positions or place in self.revoking:
            self._surprise(f"records of {where} came, which the member does not have")
            return
        if not records.records:
            self._surprise(f"a response of {where} has no records")
            return
        for record in records.records:
            if record.offset != self.positions[place]:
                self._surprise(f"{where} offset {record.offset} came where {self.positions[place]} was to come")
                return
            self.positions[place] += 1
        self.notes.note(
            "saw", topic=place[0], partition=place[1], offset=records.records[0].offset,
            digests=[digest(record) for record in records.records])
        chance = self.rng.random()
        if chance < 0.1:
            time.sleep(self.rng.uniform(0, 0.1))
        if self.options.commits == "auto":
            self._commit([place])
        elif chance < 0.5:
            self._commit(self.positions)

    def _take_caught_up(self, caught_up: pb.CaughtUp) -> None:
        self._commit(self.positions)

    def _take_revoking(self, revoking: pb.Revoking) -> None:
        """Most of the time it commits and releases; now and then late, or never."""
        places = [(each.topic, each.partition) for each in revoking.partitions]
        self.notes.note("revoking", partitions=places)
        if unknown := [place for place in places if place not in self.positions]:
            self._surprise(f"{unknown} was asked back, and the member does not have it")
        self.revoking.update(places)
        if self.rng.random() < 0.8:
            self._commit(places)
        chance = self.rng.random()
        if chance < 0.2:
            time.sleep(self.rng.uniform(0, 0.9) * self.options.revoke_timeout_ms / 1000)
        if chance < 0.8:
            was = {place: self.positions.pop(place) for place in places if place in self.positions}
            self.revoking.difference_update(places)
            self.notes.note("released", partitions=places)
            self._send(release=pb.Partitions(partitions=revoking.partitions))
            if chance > 0.7:
                # The broker may find this before the release: then it is still the owner's.
                self._commit_late(was, is_told=False)

    def _take_lost(self, lost: pb.Lost) -> None:
        places = [(each.topic, each.partition) for each in lost.partitions]
        self.notes.note("lost", partitions=places, reason=lost.reason)
        was = {place: self.positions.pop(place) for place in places if place in self.positions}
        self.revoking.difference_update(places)
        self._commit_late(was, is_told=True)

    def _take_committed(self, committed: pb.Committed) -> None:
        if committed.id:
            self._answer(committed.id, self.waiting.pop(committed.id), committed.code, committed.reason)
            return
        if committed.code:
            # A late commit of the member's own may have overtaken it, on a connection of its own.
            overtaken = committed.reason == "OFFSET_BEHIND_COMMITTED" and all(
                self.late.get((each.topic, each.partition), 0) > each.offset for each in committed.offsets)
            if committed.reason not in ("FENCED_GENERATION", "DRAINING") and not overtaken:
                self._surprise(f"an automatic commit failed: {committed.reason}: {committed.error}")
            return
        for each in committed.offsets:
            wanted = {(each.topic, each.partition): each.offset}
            numbers = [number for number, offsets in self.waiting.items() if offsets == wanted]
            if not numbers:
                self._surprise(f"the broker committed {wanted}, which was not processed, or was committed before")
            for number in numbers:
                self._answer(number, wanted, 0, "")
            # What was processed before is committed with it, and nothing will be told of it.
            self.waiting = {
                number: offsets for number, offsets in self.waiting.items()
                if offsets.keys() != wanted.keys() or number > max(numbers, default=0)}

    def _take_ping(self, ping: pb.Ping) -> None:
        # Caught up is told once; so what came since is committed now and then.
        self._commit(self.positions)
        self._send(pong=pb.Pong(id=ping.id))

    def _take_failed(self, failed: pb.Failed) -> None:
        self._surprise(f"{failed.topic}/{failed.partition} can't be read: {failed.reason}: {failed.error}")

    # Commits

    def _commit(self, places: Sequence[Place] | dict[Place, int]) -> None:
        """What was processed of these since the last time."""
        offsets = {
            place: self.positions[place] for place in places
            if self.positions.get(place, 0) > self.asked.get(place, 0)
        }
        if not offsets:
            return
        self.asked |= offsets
        if self.options.commits == "unary":
            self._commit_unary(offsets, "unary")
            return
        number = self._note_commit(offsets, self.options.commits)
        self.waiting[number] = offsets
        if self.options.commits == "stream":
            self._send(commit=pb.CommitOffsets(id=number, offsets=_made(offsets)))

    def _commit_late(self, positions: dict[Place, int], *, is_told: bool) -> None:
        """As one who does not want to know that partitions are another's. is_told: the broker has said so: then it may
        say that it has processed more than it has, as that has to be refused. But not by the next broker, which may
        still wait for a member that the one before it had put out as it was killed, and takes its commits."""
        address = self.options.address.read_text()
        beyond = self.rng.choice((0, 1, 20)) if is_told and address == self.address else 0
        for place, offset in positions.items():
            self.late[place] = max(offset + beyond, self.late.get(place, 0))
            self._commit_unary({place: offset + beyond}, "late", address)

    def _commit_unary(self, offsets: dict[Place, int], how: str, address: str | None = None) -> None:
        number = self._note_commit(offsets, how)
        request = pb.CommitOffsetRequest(
            group_id=self.options.group, offsets=_made(offsets), member_id=self.member_id, generation=self.generation)
        try:
            with grpc.insecure_channel(address or self.options.address.read_text(), options=OPTIONS) as channel:
                Stub(channel).CommitOffset(request, timeout=_UNARY_S)
        except grpc.RpcError as problem:
            refusal = refusal_of(problem)
            code, reason = problem.code().value[0], refusal.reason or refusal.code
            self._answer(number, offsets, code, reason, is_late=how == "late")
        else:
            self._answer(number, offsets, 0, "")

    def _note_commit(self, offsets: dict[Place, int], how: str) -> int:
        number = self.notes.next_number()
        made = [(*place, offset) for place, offset in offsets.items()]
        self.notes.note("commit", n=number, offsets=made, how=how)
        self.notes.sync()
        return number

    def _answer(
        self, number: int, offsets: dict[Place, int], code: int, reason: str, *, is_late: bool = False
    ) -> None:
        result = OK if code == 0 else FAILED if reason in _NOT_COMMITTED else UNKNOWN
        self.notes.note("answer", n=number, result=result, reason=reason)
        self.notes.sync()
        if result == UNKNOWN:
            self._note_unsure(offsets)
        if result == OK or is_late:
            return
        # All or none: those that could be committed are tried again.
        for place in offsets.keys() & self.positions.keys():
            self.asked[place] = 0
        # What has the member's id from one that was killed finds what that one had under way.
        is_sure = not self.options.member_id and not any(
            self.unsure.get(place, 0) > offset for place, offset in offsets.items())
        owns_all = offsets.keys() <= self.positions.keys()
        was_overtaken = any(self.late.get(place, 0) > offset for place, offset in offsets.items())
        is_strange = reason == "OFFSET_BEHIND_COMMITTED" and is_sure and owns_all and not was_overtaken
        if reason == "OFFSET_OUT_OF_RANGE" or is_strange:
            self._surprise(f"the commit of {offsets}, which was processed, was refused: {reason}")

    def _note_unsure(self, offsets: dict[Place, int]) -> None:
        for place, offset in offsets.items():
            self.unsure[place] = max(offset, self.unsure.get(place, 0))


def _made(offsets: dict[Place, int]) -> list[pb.TopicPartitionOffset]:
    return [pb.TopicPartitionOffset(topic=topic, partition=number, offset=offset)
            for (topic, number), offset in offsets.items()]
