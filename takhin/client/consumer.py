"""Consuming as a member of a group: messages of the partitions that the group gives this consumer, across rebalances,
lost connections and restarts of the broker.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import Any

from takhin.client.admin import Admin
from takhin.client.errors import (
    ClientError,
    Closed,
    CorruptBatch,
    DeadlineExceeded,
    FencedGeneration,
    LogTruncated,
    OffsetOutOfRange,
)
from takhin.client.group_member import GroupMember
from takhin.client.messages import Message, Records
from takhin.client.owned_partition import Arrived, OwnedPartition
from takhin.client.partition_reader import check_position
from takhin.client.retry import pause_s
from takhin.client.start import Start, StartAt, start_at
from takhin.client.transport import Transport
from takhin.client.types import NextOffsets, TopicPartition
from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb

AUTO_COMMIT_S = 1.0
# Credit is given back at least so often while a response is being handed out, so that a slow program is not taken for a
# dead one.
_CREDIT_S = 5.0
# Of the time the broker gives for a release, how much the program has to come to an end with what it was handed.
_RELEASE_SHARE = 0.7

Place = TopicPartition | tuple[str, int]


class Consumer:
    """A member of a group, and an asynchronous iterator of its messages. Made by Client.consumer(); used with `async
    with`.

    A message counts as processed when the next one is asked for. commit() stores how far the group has come; with
    auto_commit this happens by itself, once a second, and at the end. Messages that were not committed when a partition
    moves to another member, or the program dies, are delivered again: at least once.
    """

    def __init__(
        self, admin: Admin, transport: Transport, topics: Iterable[str], *, group: str, start: Start,
        auto_commit: bool, instance_id: str, client_id: str, assignor: str, credit_bytes: int, max_bytes: int,
        session_timeout_s: float, max_processing_s: float, check: bool, commit_timeout_s: float, retry_s: float
    ) -> None:
        self.group = group
        self.topics = tuple(topics)
        self._admin = admin
        self._transport = transport
        self._start = start_at(start)
        self._auto_commit = auto_commit
        self._commit_timeout_s = commit_timeout_s
        request = pb.SubscribeStart(
            group_id=group, topics=self.topics, client_id=client_id, instance_id=instance_id, assignor=assignor,
            credit_bytes=credit_bytes, max_bytes=max_bytes, session_timeout_ms=round(session_timeout_s * 1000),
            max_processing_ms=round(max_processing_s * 1000))
        if self._start.is_latest:
            request.start_from = pb.START_FROM_LATEST
        elif self._start.time_ms is not None:
            request.start_from = pb.START_FROM_TIME
            request.start_time_ms = self._start.time_ms
        self._member = GroupMember(transport, request, self, check=check, retry_s=retry_s)
        self._owned: dict[TopicPartition, OwnedPartition] = {}
        # In the order in which they came; those that are paused or moving are passed over.
        self._ready: dict[OwnedPartition, None] = {}
        self._wake = asyncio.Event()
        self._problems: list[ClientError] = []
        self._ended: ClientError | None = None
        self._is_started = False
        self._is_closed = False
        # What is being handed out, message by message.
        self._current: Arrived | None = None
        self._current_owner: OwnedPartition | None = None
        # Of what the program has in hand, the partitions.
        self._in_hand: set[OwnedPartition] = set()
        # Partitions to be released when the program asks for more, or the time is over.
        self._to_release: dict[TopicPartition, None] = {}
        self._last_credit_s = 0.0
        # The broker's patience is measured from credit to credit.
        self._credit_s = min(_CREDIT_S, max_processing_s / 3)
        # Counts streams: what was begun on one is not ended on another.
        self._stream_number = 0
        self._is_first_assignment = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._committer: asyncio.Task[None] | None = None

    # Its life

    async def __aenter__(self) -> "Consumer":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            # The program is done with what it was handed.
            self._settle()
        try:
            await self.aclose()
        except ClientError as at_end:
            if problem is None:
                raise
            problem.add_note(f"and {at_end}")

    async def start(self) -> None:
        """Join the group. `async with` does it. Raises TopicNotFound, Unavailable, InvalidArgument."""
        self._check_open()
        if self._is_started:
            return
        await self._member.join()
        self._is_started = True
        if self._auto_commit:
            self._committer = asyncio.ensure_future(self._commit_by_and_by())

    async def aclose(self) -> None:
        """Leave the group: with auto_commit what is processed is committed, then its partitions move at once."""
        if self._is_closed:
            return
        self._is_closed = True
        for task in (*self._tasks, *([self._committer] if self._committer is not None else [])):
            task.cancel()
        try:
            if self._auto_commit and self._ended is None:
                await self._commit_processed(list(self._owned.values()))
        finally:
            await self._member.leave()
            self._current = self._current_owner = None
            self._ready.clear()
            self._wake.set()

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed("the consumer is closed")

    # Messages

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        self._settle()
        if self._problems:
            self._raise_problems()
        message = self._take() or await self._wait(None)
        assert message is not None
        return message

    async def next(self, timeout_s: float | None = None) -> Message | None:
        """The next message; None when none came within timeout_s (None: however long it takes).

        Raises CorruptBatch for a partition that can't be read on, LogTruncated when a power cut took records that were
        handed out (asked again, it goes on from where the log differs), and Unavailable when the broker does not come
        back.
        """
        self._settle()
        if self._problems:
            self._raise_problems()
        return self._take() or await self._wait(timeout_s)

    async def batches(self, *, max_records: int = 500, max_wait: float = 0.2) -> AsyncIterator[list[Message]]:
        """Messages by the batch, of all partitions: as soon as there are max_records, or max_wait seconds after the
        first."""
        loop = asyncio.get_running_loop()
        while True:
            self._settle()
            if self._problems:
                self._raise_problems()
            first = self._take() or await self._wait(None)
            assert first is not None
            batch = [first]
            until_s = loop.time() + max_wait
            try:
                while len(batch) < max_records:
                    try:
                        message = self._take() or await self._wait(until_s - loop.time(), raises=False)
                    except ClientError as problem:
                        self._tell(problem)  # when what came before it was handed out
                        break
                    if message is None:
                        break
                    batch.append(message)
            except BaseException:
                # Whoever waited for it was cancelled: nobody gets to see these.
                self.hand_back(batch)
                raise
            yield batch

    async def fetch(self, most: int) -> list[Message]:
        """At least one message, and up to `most` of those that are here: all of them are in hand then. For
        takhin.sync."""
        first = await self.next()
        assert first is not None
        found = [first]
        try:
            while len(found) < most and (message := self._take()) is not None:
                found.append(message)
        except ClientError as problem:
            self._tell(problem)
        return found

    def hand_back(self, messages: Iterable[Message]) -> None:
        """These, the last that were handed out, were not looked at: they come again, and are not committed. Of each
        partition the first and the last are enough.
        """
        first: dict[TopicPartition, int] = {}
        last: dict[TopicPartition, int] = {}
        for message in messages:
            place = TopicPartition(message.topic, message.partition)
            first.setdefault(place, message.offset)
            last[place] = message.offset
        for place, offset in first.items():
            owned = self._owned.get(place)
            if self._is_closed or owned is None or not offset < owned.position <= last[place] + 1:
                continue  # it was given up since, or went elsewhere by a seek
            processed = owned.processed
            self._in_hand.add(owned)
            if owned.is_revoked:
                # Whoever has it next reads them; but they must not be committed when it is released.
                owned.go_to(offset)
            else:
                self._move(owned, offset)
            owned.processed = processed

    def _settle(self) -> None:
        """The program asks for more: it is done with what it has."""
        if self._in_hand:
            for owned in self._in_hand:
                owned.processed = owned.position
            self._in_hand.clear()
            current = self._current
            if current is not None:
                if current.handed == current.count:
                    self._end_current()
                else:
                    now_s = monotonic()
                    if now_s - self._last_credit_s > self._credit_s:
                        self._last_credit_s = now_s
                        self._give_back(current.take_credit(False))
        if self._to_release:
            self._release()

    def _take(self) -> Message | None:
        """The next message that is here."""
        while True:
            current, owned = self._current, self._current_owner
            if current is not None and owned is not None:
                for message in current.messages:
                    current.handed += 1
                    owned.position = message.offset + 1
                    owned.epoch = message.epoch
                    self._in_hand.add(owned)
                    return message
                self._end_current()
            if not self._next_current():
                return None

    def _end_current(self) -> None:
        if self._current is not None:
            self._give_back(self._current.take_credit(True))
        self._current = self._current_owner = None

    def _next_current(self) -> bool:
        """Another response to be handed out, of the partition whose turn it is. Raises what stands in its place."""
        for owned in self._ready:
            if not owned.is_ready:
                continue
            del self._ready[owned]
            if owned.arrived:
                self._current, self._current_owner = owned.arrived.popleft(), owned
                if owned.is_ready:
                    self._ready[owned] = None  # behind the others
                return True
            problem, owned.problem = owned.problem, None
            if problem is not None:
                raise problem
        return False

    async def _wait(self, timeout_s: float | None, *, raises: bool = True) -> Message | None:
        """Until there is a message. raises: whether problems are raised, or left for later."""
        loop = asyncio.get_running_loop()
        until_s = None if timeout_s is None else loop.time() + timeout_s
        while True:
            if raises:
                self._raise_problems()
            elif self._problems or self._ended is not None:
                return None
            self._wake.clear()
            if (message := self._take()) is not None:
                return message
            if until_s is None:
                await self._wake.wait()
                continue
            left_s = until_s - loop.time()
            if left_s <= 0:
                return None
            try:
                async with asyncio.timeout(left_s):
                    await self._wake.wait()
            except TimeoutError:
                return None

    def _raise_problems(self) -> None:
        self._check_open()
        if self._problems:
            raise self._problems.pop(0)
        if self._ended is not None:
            raise self._ended

    def _give_back(self, credit_bytes: int) -> None:
        if credit_bytes > 0:
            self._member.credit(credit_bytes)

    # Where it stands

    @property
    def assignment(self) -> tuple[TopicPartition, ...]:
        """The partitions that it has now."""
        return tuple(sorted(place for place, owned in self._owned.items() if not owned.is_revoked))

    @property
    def membership(self) -> tuple[str, int]:
        """Its member_id and generation, by which the broker knows it; for Transaction."""
        return self._member.member_id, self._member.generation

    @property
    def positions(self) -> dict[TopicPartition, int]:
        """The next offset to be handed out of each partition, of those too that are about to be released."""
        return {place: owned.position for place, owned in self._owned.items()}

    def position(self, partition: Place) -> int:
        """The next offset to be handed out. Raises FencedGeneration for a partition that it does not have."""
        return self._find(partition).position

    async def lag(self) -> dict[TopicPartition, int]:
        """Of each partition it has, how many records lie before its end that were not handed out."""
        topics = await self._admin.describe_topics({place.topic for place in self._owned}) if self._owned else []
        found = {}
        for topic in topics:
            for each in topic.partitions:
                owned = self._owned.get(TopicPartition(topic.name, each.partition))
                if owned is not None:
                    found[owned.place] = max(each.end_offset - max(owned.position, each.start_offset), 0)
        return found

    def pause(self, *partitions: Place) -> None:
        """Hand out nothing of these (none: of all that it has) until they are resumed, or assigned anew."""
        self._set_paused(partitions, True)

    def resume(self, *partitions: Place) -> None:
        self._set_paused(partitions, False)

    def _set_paused(self, partitions: tuple[Place, ...], is_paused: bool) -> None:
        chosen = [self._find(each) for each in partitions] if partitions else list(self._owned.values())
        for owned in chosen:
            owned.is_paused = is_paused
            if is_paused and owned is self._current_owner and self._current is not None:
                # What is left of it comes first when it is resumed.
                if self._current.handed < self._current.count:
                    owned.arrived.appendleft(self._current)
                    self._ready[owned] = None
                else:
                    self._give_back(self._current.take_credit(True))
                self._current = self._current_owner = None
            elif not is_paused and owned.is_stuck:
                owned.is_stuck = False
                self._move(owned, owned.position, owned.epoch)
            elif not is_paused and (owned.arrived or owned.problem is not None):
                self._ready[owned] = None
        places = [each.place for each in chosen if not each.is_moving]
        if places:
            (self._member.pause if is_paused else self._member.resume)(places)
        self._wake.set()

    async def seek(self, partition: Place, to: Start) -> None:
        """Go on elsewhere in a partition: at "earliest", "latest", an offset, -n from the end, a datetime or timedelta.
        Commits nothing.

        Raises OffsetOutOfRange, FencedGeneration for a partition that it does not have.
        """
        owned = self._find(partition)
        offset = await self._offset_of(owned.place, start_at(to))
        # What was handed out before it is not what is to be committed now.
        self._in_hand.discard(owned)
        self._move(owned, offset)

    def _find(self, partition: Place) -> OwnedPartition:
        place = TopicPartition(*partition)
        owned = self._owned.get(place)
        if owned is None or owned.is_revoked:
            raise FencedGeneration(
                f"{place.topic}/{place.partition} is not this consumer's", reason=Reason.FENCED_GENERATION)
        return owned

    async def _offset_of(self, place: TopicPartition, start: StartAt) -> int:
        """Raises OffsetOutOfRange."""
        at = await self._admin.offsets(place.topic, place.partition, time_ms=start.time_ms)
        offset = start.offset_in(at.start, at.end)
        if offset is None:
            offset = at.end if at.for_time is None else at.for_time
        if not at.start <= offset <= at.end:
            raise OffsetOutOfRange(
                f"offset {offset} of {place.topic}/{place.partition} is not there: the log goes from {at.start} to "
                f"{at.end}", reason=Reason.OFFSET_OUT_OF_RANGE,
                metadata={"log_start_offset": str(at.start), "end_offset": str(at.end)})
        return offset

    # Commits

    async def commit(self, what: Message | NextOffsets | None = None) -> None:
        """Store, durably, how far the group has come: up to and with a message; to the next offsets to read, by (topic,
        partition); or, without either, everything that was handed out. What is committed already is passed over: a
        commit never goes back.

        Raises FencedGeneration when a partition is no longer this consumer's (another one begins there at what was
        committed before), OutOfRange, DeadlineExceeded.
        """
        self._check_open()
        if isinstance(what, Message):
            wanted = {TopicPartition(what.topic, what.partition): what.offset + 1}
        elif what is not None:
            wanted = {TopicPartition(*place): offset for place, offset in what.items()}
        else:
            wanted = self.positions
        await self._commit(wanted)

    async def _commit(self, wanted: Mapping[TopicPartition, int]) -> None:
        if self._ended is not None:
            raise self._ended
        offsets = {}
        for place, offset in wanted.items():
            owned = self._owned.get(place)
            if owned is None:
                raise FencedGeneration(
                    f"{place.topic}/{place.partition} is not this consumer's (any more): what was read of it is "
                    "delivered again, to who has it now", reason=Reason.FENCED_GENERATION)
            if owned.owes_commit(offset):
                offsets[place] = offset
        if not offsets:
            return
        owners = {place: self._owned[place] for place in offsets}
        await self._member.commit(offsets, self._commit_timeout_s)
        for place, offset in offsets.items():
            owners[place].committed = max(owners[place].committed, offset)
            owners[place].is_stored = True

    def was_committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        """By another way than commit(); for Transaction."""
        for place, offset in offsets.items():
            owned = self._owned.get(place)
            if owned is not None:
                owned.committed = max(owned.committed, offset)
                owned.is_stored = True

    async def _commit_processed(self, chosen: Iterable[OwnedPartition]) -> None:
        """Together or, where one of them has moved meanwhile, each by itself: of that one it is delivered again."""
        offsets = {each.place: each.processed for each in chosen if each.owes_commit(each.processed)}
        try:
            await self._commit(offsets)
            return
        except FencedGeneration:
            pass
        for place, offset in offsets.items():
            with suppress(FencedGeneration):
                await self._commit({place: offset})

    async def _commit_by_and_by(self) -> None:
        while True:
            await asyncio.sleep(AUTO_COMMIT_S)
            try:
                await self._commit_processed(list(self._owned.values()))
            except ClientError as problem:
                if not problem.retryable:
                    self._tell(problem)

    # What the member is told (Owner)

    def joined(self, is_same: bool) -> None:
        self._stream_number += 1
        self._is_first_assignment = True
        if not is_same:
            for owned in list(self._owned.values()):
                self._drop(owned)

    def assigned(self, begins: dict[TopicPartition, int], all_of_them: set[TopicPartition]) -> None:
        if self._is_first_assignment:
            # What it had on the stream before, and has no more.
            self._is_first_assignment = False
            self.lost([place for place in self._owned if place not in all_of_them])
        starting = []
        for place, offset in begins.items():
            owned = self._owned.get(place)
            if owned is None:
                owned = self._owned[place] = OwnedPartition(place, offset)
                # The other starts are the broker's to find.
                owned.wants_start = (
                    self._start.offset is not None or self._start.from_end is not None
                    or self._start.from_start is not None)
            else:
                # The same member, back on another stream: it goes on where it was, not at what is committed.
                owned.is_revoked = owned.is_stuck = False
                if owned.is_paused:
                    self._member.pause([place])
            owned.is_moving = owned.wants_start or owned.position != offset
            if owned.wants_start:
                starting.append(owned)
            elif owned.is_moving:
                self._spawn(self._go_on(owned, offset))
        if starting:
            self._spawn(self._begin(starting))
        self._wake.set()

    def received(self, records: Records, credit_bytes: int) -> None:
        owned = self._owned.get(TopicPartition(records.topic, records.partition))
        if owned is None or owned.is_revoked or owned.is_moving or owned.problem is not None:
            self._give_back(credit_bytes)
            return
        records.skip_before(owned.received)
        if records.damage is not None:
            owned.problem = CorruptBatch(
                f"{records.topic}/{records.partition}: {records.damage}", reason=Reason.CORRUPT_BATCH,
                metadata={"topic": records.topic, "partition": str(records.partition)})
            owned.is_stuck = True
            self._member.pause([owned.place])
        if len(records):
            owned.received = records.next_offset
            owned.arrived.append(Arrived(records, credit_bytes))
        else:
            self._give_back(credit_bytes)
        self._ready[owned] = None
        self._wake.set()

    def revoking(self, partitions: list[TopicPartition], deadline_s: float) -> None:
        for place in partitions:
            owned = self._owned.get(place)
            if owned is not None:
                owned.is_revoked = True
                self._forget_arrived(owned)
            self._to_release[place] = None
        if any(owned.place in self._to_release for owned in self._in_hand):
            # The program has messages of it: it may end with them, and commit.
            asyncio.get_running_loop().call_later(deadline_s * _RELEASE_SHARE, self._release)
        else:
            self._release()

    def _release(self) -> None:
        if self._to_release:
            partitions = list(self._to_release)
            self._to_release.clear()
            self._spawn(self._commit_and_release(partitions, self._stream_number))

    async def _commit_and_release(self, partitions: list[TopicPartition], stream_number: int) -> None:
        owned = [self._owned[place] for place in partitions if place in self._owned]
        if self._auto_commit:
            try:
                await self._commit_processed(owned)
            except ClientError:
                pass  # it is delivered again, to who has it then
        if self._stream_number == stream_number:
            self._member.release(partitions)
            for each in owned:
                if each.is_revoked:
                    self._drop(each)

    def lost(self, partitions: list[TopicPartition]) -> None:
        for place in partitions:
            self._to_release.pop(place, None)
            owned = self._owned.get(place)
            if owned is not None:
                self._drop(owned)

    def _drop(self, owned: OwnedPartition) -> None:
        """It is not this consumer's any more."""
        self._forget_arrived(owned)
        owned.is_revoked = True
        self._in_hand.discard(owned)
        self._ready.pop(owned, None)
        if self._owned.get(owned.place) is owned:
            del self._owned[owned.place]

    def _forget_arrived(self, owned: OwnedPartition) -> None:
        """What came of it is not handed out."""
        if owned is self._current_owner:
            self._end_current()
        self._give_back(owned.drop())

    def unreadable(self, partition: TopicPartition, problem: ClientError) -> None:
        owned = self._owned.get(partition)
        if owned is not None and not owned.is_revoked:
            owned.problem = problem
            owned.is_stuck = True
            self._ready[owned] = None
            self._wake.set()

    def cut(self, is_out: bool) -> None:
        self._stream_number += 1
        self._to_release.clear()
        # It comes again. Credit is counted anew with the next stream.
        self._current = self._current_owner = None
        for owned in list(self._owned.values()):
            owned.drop()
            if is_out:
                self._drop(owned)

    def ended(self, problem: ClientError) -> None:
        self._ended = problem
        self._wake.set()

    def _tell(self, problem: ClientError) -> None:
        """Raise it from the iteration."""
        self._problems.append(problem)
        self._wake.set()

    # Going elsewhere

    def _move(self, owned: OwnedPartition, offset: int, epoch: int = -1) -> None:
        """epoch: of the record before it, where that was read."""
        self._forget_arrived(owned)
        owned.go_to(offset)
        owned.epoch = epoch
        owned.is_moving = True
        owned.is_stuck = owned.wants_start = False
        self._spawn(self._seek(owned))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _seek(self, owned: OwnedPartition) -> None:
        """Have records from its position on, and none that were on their way before."""
        stream_number, position = self._stream_number, owned.position
        self._member.pause([owned.place])
        while stream_number == self._stream_number:
            try:
                await self._member.barrier(self._commit_timeout_s)
                break
            except DeadlineExceeded:
                pass  # still on its way, or the stream is about to be given up
        if stream_number != self._stream_number or position != owned.position or owned.is_revoked:
            return  # on another stream, or to somewhere else: that has its own way
        self._member.seek(owned.place, position)
        owned.is_moving = False
        if not owned.is_paused:
            self._member.resume([owned.place])

    async def _go_on(self, owned: OwnedPartition, offset: int) -> None:
        """On another stream, which begins at offset: at its position, if the log is still what was read of it."""
        stream_number, position = self._stream_number, owned.position
        attempts = 0
        while stream_number == self._stream_number and position == owned.position and not owned.is_revoked:
            try:
                await check_position(self._transport, owned.place, position, owned.epoch)
            except (LogTruncated, OffsetOutOfRange) as problem:
                if position == owned.position:
                    self._take_back(owned, offset, problem)
            except ClientError as problem:
                if problem.retryable:
                    attempts += 1
                    await asyncio.sleep(pause_s(attempts))
                    continue
                self._tell(problem)
            await self._seek(owned)
            return

    def _take_back(self, owned: OwnedPartition, offset: int, problem: ClientError) -> None:
        """The log does not have what was read before the position (any more); offset: where the stream begins."""
        if isinstance(problem, LogTruncated):
            owned.go_to(min(int(problem.metadata.get("divergence_offset", offset)), owned.position))
            self._tell(problem)
            return
        if owned.position > int(problem.metadata.get("end_offset", owned.position)):
            self._tell(problem)
        # Otherwise retention was faster: the broker says where to go on then.
        owned.go_to(offset)

    async def _begin(self, starting: list[OwnedPartition]) -> None:
        """Partitions for which the group has committed nothing begin where `start` says."""
        stream_number = self._stream_number
        attempts = 0
        while stream_number == self._stream_number:  # the next assignment asks again
            try:
                await self._find_starts([owned for owned in starting if owned.wants_start], stream_number)
                return
            except ClientError as problem:
                if not problem.retryable:
                    self._tell(problem)
                    return
                attempts += 1
                await asyncio.sleep(pause_s(attempts))

    async def _find_starts(self, starting: list[OwnedPartition], stream_number: int) -> None:
        committed = {
            (each.topic, each.partition): each.committed
            for each in await self._admin.group_offsets(self.group, {owned.place.topic for owned in starting})}
        for owned in starting:
            offset = committed.get(owned.place)
            if offset is None:
                offset = await self._offset_of(owned.place, self._start)
            if stream_number != self._stream_number:
                return
            # Otherwise the program has sought elsewhere meanwhile.
            if owned.wants_start:
                owned.wants_start = False
                if not owned.is_revoked:
                    self._move(owned, offset)
