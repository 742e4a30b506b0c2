"""Subscribe: one bidirectional stream is one member of a group.

The call's own task writes: what the member is to be told first, then records, partition after partition in turn. A
second task reads the requests. Neither waits for the other; what ends the stream sets `_ending`, and the writer ends it
when the write under way is done.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError

from takhin.broker import member_messages
from takhin.broker.assignors import GroupPartition
from takhin.broker.consume import LATEST, Consuming
from takhin.broker.delivery import Delivery, Flow, Signal, Turns
from takhin.broker.group import Assigned, Effect, Joined, Revoking
from takhin.broker.groups import GroupCoordinator
from takhin.broker.live_groups import Committed
from takhin.broker.member_commits import MemberCommits
from takhin.broker.member_start import DEFAULT_SESSION_TIMEOUT_MS, MAX_CREDIT_BYTES, MemberStart, read_start
from takhin.broker.partition_state import check_damage, check_open
from takhin.broker.processing import Processing
from takhin.broker.reader_budget import Lease, ReaderBudget
from takhin.broker.start_offset import StartOffsets, sought_offset
from takhin.broker.topics import Topics
from takhin.config import GroupSettings
from takhin.errors import Reason, TakhinError, error
from takhin.v1 import takhin_pb2 as pb

logger = logging.getLogger(__name__)

# Of what a member is to be told and does not take.
MAX_OUTBOX = 1_000
# Of offsets in answers to commits among that: whoever leaves so many is read no further.
MAX_TOLD_OFFSETS = 10_000
# Of a start, which by its other limits has no more: names of 1,000 topics, and its own.
MAX_START_BYTES = 256 * 1024
# Of any other request: a commit, or a seek, of all 10,000 partitions of a topic with the longest name has 2.7 MB.
MAX_REQUEST_BYTES = 4 * 1024 * 1024
# How long to wait, at the end of the requests, for the news that the call was cut off rather than ended.
_TORN_DOWN_S = 0.05
# How long to wait until there may be room for another request's answer.
_FULL_PAUSE_S = 0.005
# How long a response waits for credit that would make it large: who gives none back until it has more gets it then.
_CREDIT_PAUSE_S = 0.1


class MemberCall(Protocol):
    """A call whose client sends requests and gets responses."""

    @property
    def peer(self) -> str: ...

    def cancelled(self) -> bool: ...

    async def read(self) -> bytes | None: ...

    async def write(self, message: bytes) -> None: ...

    def cut(self) -> None: ...


class Subscribing:
    """Serves Subscribe."""

    def __init__(
        self, topics: Topics, consuming: Consuming, budget: ReaderBudget, groups: GroupCoordinator,
        settings: GroupSettings,
    ):
        self.topics = topics
        self.consuming = consuming
        self.budget = budget
        self.groups = groups
        self.settings = settings
        self._streams: set[_MemberStream] = set()
        self._finishing: set[asyncio.Task[None]] = set()
        self._is_draining = False

    def begin_drain(self) -> None:
        """End the streams, with DRAINING; their members are awaited by the next run."""
        self._is_draining = True
        self.groups.live.begin_drain()
        for stream in list(self._streams):
            stream.end(_draining_error())

    async def stop(self) -> None:
        """Finish what members asked for before their streams ended."""
        await asyncio.gather(*self._finishing, return_exceptions=True)

    async def subscribe(self, call: MemberCall) -> None:
        """One member, from its start until it leaves. Raises what ends its stream."""
        if self._is_draining:
            raise _draining_error()
        host = call.peer.rpartition(":")[0]
        # Of the message itself nothing is kept: unknown fields of it would be, for as long as the member is one.
        start = read_start(await _read_first(call), host, self.consuming.max_bytes)
        stream = _MemberStream(self, call, start)
        self._streams.add(stream)
        try:
            await stream.run()
        finally:
            self._streams.discard(stream)

    def finish(self, commits: MemberCommits) -> None:
        """Let a member's commits go on though its stream has ended."""
        task = asyncio.ensure_future(commits.finish())
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)


async def _read_first(call: MemberCall) -> pb.SubscribeStart:
    """Raises START_EXPECTED, SESSION_TIMEOUT, MALFORMED_REQUEST, MESSAGE_TOO_LARGE."""
    reading = asyncio.ensure_future(call.read())
    try:
        done, _ = await asyncio.wait([reading], timeout=DEFAULT_SESSION_TIMEOUT_MS / 1000)
    finally:
        if not reading.done():
            reading.cancel()
    if not done:
        raise error(Reason.SESSION_TIMEOUT, f"no start came within {DEFAULT_SESSION_TIMEOUT_MS} ms")
    data = reading.result()
    if data is None:
        raise error(Reason.START_EXPECTED, "the requests ended before a start; the first request is start")
    request = _parse(data, MAX_START_BYTES)
    if request.WhichOneof("request") != "start":
        raise error(
            Reason.START_EXPECTED,
            f"the first request is {request.WhichOneof('request') or 'empty'}; it has to be start",
        )
    return request.start


def _parse(data: bytes, most_bytes: int) -> pb.SubscribeRequest:
    if len(data) > most_bytes:
        raise error(
            Reason.MESSAGE_TOO_LARGE,
            f"SubscribeRequest has {len(data)} bytes; at most {most_bytes} are taken, {MAX_START_BYTES} of the first",
            limit_bytes=most_bytes,
        )
    try:
        return pb.SubscribeRequest.FromString(data)
    except DecodeError:
        raise error(
            Reason.MALFORMED_REQUEST,
            "SubscribeRequest can't be read: it is not a valid protobuf message, or a string in it is not valid UTF-8",
        ) from None


@dataclass(frozen=True, slots=True)
class _Given:
    """Partitions that the member has got, and what its group had committed then."""

    effect: Assigned
    deliveries: dict[GroupPartition, Delivery]
    committed: Committed

    def committed_for(self, key: GroupPartition) -> int | None:
        return self.committed.get((key.topic_id, key.partition))


class _MemberStream:
    """One member's stream."""

    def __init__(self, subscribing: Subscribing, call: MemberCall, start: MemberStart):
        self._subscribing = subscribing
        self._topics = subscribing.topics
        self._budget = subscribing.budget
        self._groups = subscribing.groups.live
        self._call = call
        self._start = start
        self._starts = StartOffsets(subscribing.consuming, start)
        self._member_id = ""
        self._greeting = 0
        # The last generation that the member was sent: what it has by now, and was not told, it can't commit for.
        self._generation = 0
        # Joined was told of this stream: what comes before it is meant for one before.
        self._is_greeted = False
        self._outbox: deque[pb.SubscribeResponse | _Given] = deque()
        # Offsets in the answers to commits that are there.
        self._told_offsets = 0
        self._signal = Signal()
        self._deliveries: dict[GroupPartition, Delivery] = {}
        # Partitions that were this stream's: requests for them may still be on their way.
        self._former: set[tuple[str, int]] = set()
        # Partitions that this stream lost: a release of them may be on its way when they are given to it again.
        self._lost: set[tuple[str, int]] = set()
        self._turns = Turns(self._signal.set)
        # While the next response waits for more credit; and whether it has, for long enough.
        self._credit_timer: asyncio.TimerHandle | None = None
        self._has_waited = False
        self._flow = Flow(start.credit_bytes, start.commits_itself)
        self._commits = MemberCommits(
            self._commit, self._answer_commit, lambda: self._generation, subscribing.settings.auto_commit_ms / 1000
        )
        self._is_ending = False
        self._ended_by: TakhinError | None = None
        self._bug: BaseException | None = None
        loop = asyncio.get_running_loop()
        self._heard_s = self._pinged_s = loop.time()
        self._processing = Processing(loop.time)
        self._pings = 0
        self._ping_waits = False
        self._timer: asyncio.TimerHandle | None = None

    # The stream's life

    async def run(self) -> None:
        start = self._start
        self._member_id, self._greeting, self._generation = await self._groups.join(
            start.group_id, start.description, start.member_id, self
        )
        lease = self._budget.open(self._cut_off)
        reader = asyncio.ensure_future(self._read_requests())
        reader.add_done_callback(self._reader_done)
        self._check_time()
        try:
            await self._write_all(lease)
        finally:
            reader.cancel()
            if self._timer is not None:
                self._timer.cancel()
            self._out(leaves=False)
            self._budget.close(lease)
            if not self._commits.is_idle:
                self._subscribing.finish(self._commits)
        if self._bug is not None:
            raise self._bug
        if self._ended_by is not None:
            raise self._ended_by

    def _cut_off(self) -> None:
        logger.warning(
            "the member at %s of group %r takes nothing while others wait for memory: it is cut off",
            self._call.peer or "a Unix socket", self._start.group_id,
        )
        self._call.cut()

    def end(self, why: TakhinError | None, *, leaves: bool = False) -> None:
        """End the stream when the write under way is done. leaves: the member is out at once, whenever that is."""
        if self._is_ending:
            return
        self._is_ending = True
        self._ended_by = why
        self._out(leaves=leaves)
        self._signal.set()

    def fence(self, refusal: TakhinError) -> None:
        self.end(refusal)

    def _out(self, *, leaves: bool) -> None:
        """The member has no stream any more. Only the first time counts, and only while the stream is the member's."""
        for delivery in self._deliveries.values():
            delivery.close()
        leave = self._groups.leave if leaves else self._groups.cut
        leave(self._start.group_id, self._member_id, self)

    # What the group tells

    def take(self, effect: Effect, committed: Committed) -> None:
        if isinstance(effect, Joined):
            self._is_greeted = self._is_greeted or effect.greeting == self._greeting
            if effect.greeting == self._greeting:
                self._tell(pb.SubscribeResponse(joined=pb.Joined(
                    member_id=effect.member_id, generation=effect.generation,
                    session_timeout_ms=self._start.session_timeout_ms, ping_interval_ms=self._start.ping_interval_ms,
                )))
            return
        if self._is_ending or not self._is_greeted:
            return
        if isinstance(effect, Assigned):
            given = {}
            for key in effect.added:
                topic = self._topics.with_id(key.topic_id)
                if topic is not None:
                    given[key] = self._deliveries[key] = Delivery(
                        key, topic.partitions[key.partition], self._turns.add)
                    self._former.discard(key[:2])
            self._put(_Given(effect, given, committed))
        elif isinstance(effect, Revoking):
            for key in effect.partitions:
                if key in self._deliveries:
                    self._deliveries[key].close()
            revoking = pb.Revoking(generation=effect.generation, deadline_ms=effect.deadline_ms)
            for message in member_messages.naming(revoking, effect.partitions):
                self._tell(pb.SubscribeResponse(revoking=message))
        else:
            self._drop(effect.partitions)
            self._lost.update(key[:2] for key in effect.partitions)
            lost = pb.Lost(generation=effect.generation, reason=effect.reason)
            for message in member_messages.naming(lost, effect.partitions):
                self._tell(pb.SubscribeResponse(lost=message))

    def note_commit(self, offsets: Iterable[tuple[GroupPartition, int]]) -> None:
        self._processing.settled(offsets)

    def _drop(self, keys: Iterable[GroupPartition]) -> None:
        """Partitions that are the member's no longer."""
        for key in keys:
            delivery = self._deliveries.pop(key, None)
            if delivery is not None:
                delivery.close()
                self._former.add(key[:2])
        self._processing.drop(keys)
        self._commits.forget(keys)

    def _tell(self, response: pb.SubscribeResponse) -> None:
        self._put(response)

    def _put(self, item: "pb.SubscribeResponse | _Given") -> None:
        self._outbox.append(item)
        self._signal.set()
        if len(self._outbox) > MAX_OUTBOX:
            self.end(error(
                Reason.MEMBER_TOO_SLOW, f"the member has not taken the last {MAX_OUTBOX} messages to it"), leaves=True)

    # Writing

    async def _write_all(self, lease: Lease) -> None:
        """Until the stream ends."""
        while True:
            if self._outbox:
                await self._write_told(lease, self._outbox.popleft())
            elif self._is_ending:
                return
            else:
                delivery = self._turns.first()
                if delivery is None or not self._flow.room_for(delivery.needed_bytes) or self._waits_for_more(delivery):
                    await self._signal.wait()
                else:
                    self._turns.done(delivery)
                    await self._deliver(lease, delivery)

    def _waits_for_more(self, delivery: Delivery) -> bool:
        """Whether its next response waits for more, as it would be a crumb of what there is; not for long."""
        assert delivery.reader is not None
        flow = self._flow
        if self._has_waited or not flow.has_crumbs or delivery.reader.available_bytes <= flow.left_bytes:
            if self._credit_timer is not None:
                self._credit_timer.cancel()
            self._credit_timer, self._has_waited = None, False
            return False
        if self._credit_timer is None:
            self._credit_timer = asyncio.get_running_loop().call_later(_CREDIT_PAUSE_S, self._wait_no_longer)
        return True

    def _wait_no_longer(self) -> None:
        self._has_waited = True
        self._signal.set()

    async def _write_told(self, lease: Lease, told: "pb.SubscribeResponse | _Given") -> None:
        if isinstance(told, _Given):
            await self._begin(lease, told)
            return
        if told.HasField("ping"):
            self._ping_waits = False
        elif told.HasField("committed"):
            self._told_offsets -= len(told.committed.offsets)
        # Before it is written: the member may have it before the transport says so.
        self._generation = max(self._generation, _generation_of(told))
        message = told.SerializeToString()
        await self._budget.reserve(lease, len(message))
        await self._write(lease, message)

    async def _begin(self, lease: Lease, given: "_Given") -> None:
        """Tell the member what it has got, and where it begins there."""
        effect = given.effect
        offsets: dict[GroupPartition, int] = {}
        try:
            for key in effect.added:
                # Of a topic that is gone already there is no delivery: that it is lost comes next.
                offsets[key] = await self._start_offset(key, given) if key in given.deliveries else LATEST
        except TakhinError as refusal:
            self.end(refusal, leaves=refusal.reason is not Reason.DRAINING)
            return
        passing = [
            (key.topic, key.partition, offset) for key, offset in offsets.items()
            if key in given.deliveries and self._starts.is_passing(offset, given.committed_for(key))
        ]
        if passing:
            await self._keep(passing, effect.generation)
        for message in member_messages.assigned(effect.generation, offsets.items(), effect.partitions):
            await self._write_told(lease, pb.SubscribeResponse(assigned=message))
        caught_up = []
        for key, delivery in given.deliveries.items():
            if not delivery.closed and delivery.failed_offset < 0 and delivery.reader is None:
                delivery.read_from(offsets[key])
                if delivery.partition.data_after(offsets[key]) is not None:
                    delivery.caught_up = True
                    caught_up.append(key)
        await self._tell_caught_up(lease, caught_up)

    async def _keep(self, begins: Sequence[tuple[str, int, int]], generation: int) -> None:
        """Commit where the member begins: looked for again it would be another offset, and what came between missed."""
        try:
            await self._commit(begins, generation, False)
        except TakhinError as problem:
            if len(begins) > 1 and problem.reason is not Reason.DISK_FULL:
                for each in begins:
                    await self._keep([each], generation)
            elif problem.reason not in (Reason.FENCED_GENERATION, Reason.TOPIC_NOT_FOUND, Reason.DRAINING):
                # The member goes on all the same; its own commits may fare better.
                logger.warning("where group %r begins is not kept: %s", self._start.group_id, problem.message)

    async def _start_offset(self, key: GroupPartition, given: "_Given") -> int:
        """Raises NO_COMMITTED_OFFSET, OFFSET_OUT_OF_RANGE, DRAINING."""
        delivery = given.deliveries[key]
        committed = given.committed_for(key)
        try:
            return await self._starts.find(delivery.partition, committed)
        except TakhinError as problem:
            if problem.reason in (Reason.NO_COMMITTED_OFFSET, Reason.OFFSET_OUT_OF_RANGE, Reason.DRAINING):
                raise
            offset = delivery.partition.written_offset if committed is None else committed
            if problem.reason is not Reason.TOPIC_NOT_FOUND:
                self._fail(delivery, offset, problem)
            return offset

    async def _tell_caught_up(self, lease: Lease, keys: Sequence[GroupPartition]) -> None:
        if keys:
            for message in member_messages.naming(pb.CaughtUp(), keys):
                await self._write_told(lease, pb.SubscribeResponse(caught_up=message))

    async def _deliver(self, lease: Lease, delivery: Delivery) -> None:
        """Send the next records of a partition, if there are any."""
        reader = delivery.reader
        assert reader is not None
        try:
            check_open(delivery.partition)
            if delivery.partition.data_after(reader.next_offset) is not None:
                check_damage(delivery.partition)
                delivery.wait_for_data()
                return
            sent = await self._send_records(lease, delivery)
        except TakhinError as problem:
            self._budget.give_back(lease)
            await self._unreadable(delivery, problem)
            return
        if sent and delivery.reader is reader:
            caught_up = reader.next_offset >= delivery.partition.written_offset
            if caught_up and not delivery.caught_up:
                await self._tell_caught_up(lease, [delivery.key])
            delivery.caught_up = caught_up
        if delivery.is_live and not delivery.queued:
            delivery.wait_for_data()

    async def _send_records(self, lease: Lease, delivery: Delivery) -> bool:
        """Whether records were sent. Raises what reading raises."""
        budget, flow, reader = self._budget, self._flow, delivery.reader
        assert reader is not None
        offset, records_left = reader.next_offset, reader.records_left
        size_bytes = planned_bytes = budget.allowance(flow.bound(self._start.max_bytes))
        while True:
            await budget.reserve(lease, planned_bytes)
            response = await self._subscribing.consuming.read(reader, size_bytes)
            if response is None or delivery.reader is not reader or delivery.closed or self._is_ending:
                budget.give_back(lease)
                return False
            if delivery.paused or not flow.room_for(len(response)):
                delivery.needed_bytes = len(response)
                reader.rewind(offset, records_left)
                budget.give_back(lease)
                self._turns.add(delivery)
                return False
            if budget.grow(lease, len(response)):
                break
            planned_bytes = len(response)
            del response
            reader.rewind(offset, records_left)
        delivery.needed_bytes = 0
        flow.send(delivery, reader.next_offset, len(response))
        self._processing.sent(delivery.key, reader.next_offset)
        message = member_messages.records(response)
        # Not to hold it twice for as long as the member takes nothing.
        del response
        await self._write(lease, message)
        return True

    async def _unreadable(self, delivery: Delivery, problem: TakhinError) -> None:
        """A partition can't be read where the member stands."""
        if problem.reason is Reason.DRAINING:
            self.end(problem)
        elif problem.reason is Reason.TOPIC_NOT_FOUND:
            delivery.reader = None  # that it is lost comes next
        elif problem.reason is Reason.OFFSET_OUT_OF_RANGE:
            # Retention was faster than the member.
            try:
                delivery.read_from(await self._starts.find_again(delivery.partition, problem))
            except TakhinError as refusal:
                self.end(refusal, leaves=True)
        else:
            assert delivery.reader is not None
            self._fail(delivery, delivery.reader.next_offset, problem)

    def _fail(self, delivery: Delivery, offset: int, problem: TakhinError) -> None:
        """Tell the member that a partition can't be read on."""
        delivery.reader = None
        delivery.failed_offset = offset
        key = delivery.key
        self._tell(pb.SubscribeResponse(failed=pb.Failed(
            topic=key.topic, partition=key.partition, offset=offset, error=problem.message, code=problem.code,
            reason=problem.reason,
        )))

    async def _write(self, lease: Lease, message: bytes) -> None:
        self._budget.begin_write(lease)
        await self._call.write(message)
        self._budget.end_write(lease)

    # Requests

    async def _read_requests(self) -> None:
        """Until the member leaves, or sends what ends its stream."""
        loop = asyncio.get_running_loop()
        while (data := await self._call.read()) is not None:
            self._heard_s = loop.time()
            request = _parse(data, MAX_REQUEST_BYTES)
            kind = request.WhichOneof("request")
            if kind == "leave":
                await self._leave()
                return
            await self._handle(kind, request)
            # Not to hold them until the next one comes.
            del data, request
            # A member that does not take its answers is read no further.
            while self._has_enough() and not self._is_ending:
                await asyncio.sleep(_FULL_PAUSE_S)
            if self._is_ending:
                return
        # The end of the requests is as leave; unless the call is torn down, which is told in a moment.
        await asyncio.sleep(_TORN_DOWN_S)
        if not self._call.cancelled():
            await self._leave()

    def _has_enough(self) -> bool:
        is_told_enough = len(self._outbox) > MAX_OUTBOX // 2 or self._told_offsets >= MAX_TOLD_OFFSETS
        return self._commits.is_full or is_told_enough

    def _reader_done(self, reader: "asyncio.Task[None]") -> None:
        if reader.cancelled():
            # The call is over; the handler learns it, too.
            self.end(None)
            return
        problem = reader.exception()
        if isinstance(problem, TakhinError):
            self.end(problem, leaves=True)
        elif problem is not None:
            self._bug = problem
            self.end(None)

    async def _leave(self) -> None:
        await self._commits.finish()
        self.end(None, leaves=True)

    async def _handle(self, kind: str | None, request: pb.SubscribeRequest) -> None:
        if kind == "credit":
            self._credit(request.credit.bytes)
        elif kind == "commit":
            offsets = [(each.topic, each.partition, each.offset) for each in request.commit.offsets]
            generation = request.commit.generation if request.commit.HasField("generation") else None
            self._commits.add(request.commit.id, offsets, generation)
        elif kind == "pause":
            for delivery in self._named(request.pause.partitions):
                delivery.paused = True
        elif kind == "resume":
            for delivery in self._named(request.resume.partitions):
                await self._resume(delivery)
        elif kind == "seek":
            await self._seek(request.seek)
        elif kind == "release":
            await self._release(request.release.partitions)
        elif kind == "start":
            raise error(Reason.SECOND_START, "the stream has had its start; there can't be another one")
        elif kind != "pong":
            raise error(Reason.MALFORMED_REQUEST, "the request is empty: none of the fields that are known is set")

    def _credit(self, size_bytes: int) -> None:
        if not self._flow.is_counted:
            raise error(Reason.INVALID_CREDIT, "the member counts no credit: its start had credit_bytes 0")
        if size_bytes < 1 or self._flow.left_bytes + size_bytes > MAX_CREDIT_BYTES:
            raise error(
                Reason.INVALID_CREDIT,
                f"credit of {size_bytes} bytes is not possible: it is at least 1, and with {self._flow.left_bytes} "
                f"that are left at most {MAX_CREDIT_BYTES}",
            )
        processed = [
            (delivery.key, next_offset) for delivery, next_offset in self._flow.give_back(size_bytes)
            if self._deliveries.get(delivery.key) is delivery
        ]
        # Only in commit mode AUTO is there any.
        for key, next_offset in processed:
            self._commits.processed(key, next_offset)
        if self._flow.sent_bytes:
            self._processing.settled(processed)
        else:
            self._processing.settled_all()
        self._signal.set()

    def _named(self, partitions: Sequence[pb.TopicPartition]) -> list[Delivery]:
        """Those named, all when none is, without those that were the member's. Raises PARTITION_NOT_ASSIGNED."""
        if not partitions:
            return list(self._deliveries.values())
        found = (self._find(each.topic, each.partition) for each in partitions)
        return [delivery for delivery in found if delivery is not None]

    def _find(self, topic: str, number: int) -> Delivery | None:
        shape = self._topics.shape(topic)
        if shape is not None:
            delivery = self._deliveries.get(GroupPartition(topic, number, shape[0]))
            if delivery is not None:
                return delivery
        if (topic, number) in self._former or any(key[:2] == (topic, number) for key in self._deliveries):
            return None
        raise error(
            Reason.PARTITION_NOT_ASSIGNED, f"topic {topic!r} partition {number} is not assigned to this member",
            topic=topic, partition=number,
        )

    async def _resume(self, delivery: Delivery) -> None:
        delivery.paused = False
        if delivery.reader is None and not delivery.closed and delivery.failed_offset >= 0:
            delivery.read_from(delivery.failed_offset)
        elif delivery.is_live:
            self._turns.add(delivery)

    async def _seek(self, seek: pb.Seek) -> None:
        if not seek.offsets:
            raise error(Reason.MALFORMED_REQUEST, "the seek has no offsets; at least one is needed")
        for each in seek.offsets:
            delivery = self._find(each.topic, each.partition)
            if delivery is not None and not delivery.closed:
                delivery.read_from(sought_offset(delivery.partition, each.offset))

    async def _release(self, partitions: Sequence[pb.TopicPartition]) -> None:
        # What was committed before is stored before somebody else begins there.
        await self._commits.finish()
        named = self._named(partitions)
        asked = [each.key for each in named if each.closed]
        others = [each.key for each in named if partitions and not each.closed and each.key[:2] not in self._lost]
        self._groups.release(self._start.group_id, self._member_id, self, [*asked, *others], asked)
        self._drop([*asked, *others])

    # Commits

    async def _commit(self, offsets: Sequence[tuple[str, int, int]], generation: int, was_asked: bool) -> None:
        await self._subscribing.groups.commit(
            self._start.group_id, offsets, self._member_id, generation, was_asked=was_asked)

    def _answer_commit(self, answer: pb.Committed) -> None:
        if not self._is_ending:
            self._told_offsets += len(answer.offsets)
            self._tell(pb.SubscribeResponse(committed=answer))

    # Time

    def _check_time(self) -> None:
        """Ping when it is time, end the stream of a member that is not heard of, and look again when it may be."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        start = self._start
        silent_s, processing_s = start.session_timeout_ms / 1000, start.max_processing_ms / 1000
        deadlines = [self._heard_s + silent_s]
        if now_s >= deadlines[0]:
            self.end(error(
                Reason.SESSION_TIMEOUT,
                f"nothing was heard of the member for {start.session_timeout_ms} ms (session_timeout_ms): it is out",
            ), leaves=True)
        if self._processing.since_s is not None:
            deadlines.append(self._processing.since_s + processing_s)
            if now_s >= deadlines[-1]:
                self.end(error(
                    Reason.PROCESSING_TIMEOUT,
                    f"the member has had records for {start.max_processing_ms} ms (max_processing_ms), and neither "
                    "gave credit back nor committed: it is out",
                ), leaves=True)
        else:
            deadlines.append(now_s + processing_s)
        if self._is_ending:
            return
        if now_s >= self._pinged_s + start.ping_interval_ms / 1000:
            self._pinged_s = now_s
            if not self._ping_waits:
                self._ping_waits = True
                self._pings += 1
                self._tell(pb.SubscribeResponse(ping=pb.Ping(id=self._pings)))
        deadlines.append(self._pinged_s + start.ping_interval_ms / 1000)
        self._timer = loop.call_at(min(deadlines) + 0.001, self._check_time)


def _generation_of(told: pb.SubscribeResponse) -> int:
    """0: it tells of none."""
    return getattr(getattr(told, told.WhichOneof("response") or "", None), "generation", 0)


def _draining_error() -> TakhinError:
    return error(Reason.DRAINING, "the broker is shutting down; come back with the member's id")
