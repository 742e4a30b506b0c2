"""A member of a group, as the broker sees it: one stream after the other, all of the same member for as long as it can
be.

What the broker tells is handed to an Owner; docs/groups.md has the conversation. What is said while there is no stream
is not lost where it matters: commits are sent again when the member is back with its member_id.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Protocol

from takhin.client.errors import (
    Aborted,
    ClientError,
    DeadlineExceeded,
    FencedGeneration,
    Internal,
    Unavailable,
    client_error,
)
from takhin.client.messages import Records, decode_subscribed
from takhin.client.retry import pause_s
from takhin.client.tasks import end
from takhin.client.transport import SERVICE, RequestStream, Transport
from takhin.client.types import TopicPartition
from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb

SUBSCRIBE = SERVICE + "Subscribe"
# The member is out, and may come as a new one.
_OUT = (Reason.SESSION_TIMEOUT, Reason.PROCESSING_TIMEOUT)
# For the broker to take a leave, and what was committed before it.
_LEAVE_S = 5.0


class Owner(Protocol):
    """Who has the partitions."""

    def joined(self, is_same: bool) -> None:
        """A stream has begun; is_same: the member is the one it was, and has had its partitions all the time."""

    def assigned(self, begins: dict[TopicPartition, int], all_of_them: set[TopicPartition]) -> None:
        """Partitions that are its own on this stream from now on, with the offset from which records come; and all it
        has."""

    def received(self, records: Records, credit_bytes: int) -> None: ...

    def revoking(self, partitions: list[TopicPartition], deadline_s: float) -> None:
        """These are to be released."""

    def lost(self, partitions: list[TopicPartition]) -> None: ...

    def unreadable(self, partition: TopicPartition, problem: ClientError) -> None: ...

    def cut(self, is_out: bool) -> None:
        """The stream is lost, with all that was on its way; another one is tried for. is_out: the member has lost its
        partitions, too.
        """

    def ended(self, problem: ClientError) -> None:
        """There will be no other stream."""


class GroupMember:
    """start: what each stream begins with, but for the member_id."""

    def __init__(
        self, transport: Transport, start: pb.SubscribeStart, owner: Owner, *, check: bool, retry_s: float
    ) -> None:
        self._transport = transport
        self._start = start
        self._owner = owner
        self._check = check
        self._retry_s = retry_s
        self.member_id = ""
        # The last one that the broker told.
        self.generation = 0
        # Of an assignment that comes in several messages: what has come.
        self._added: dict[TopicPartition, int] = {}
        self._all_assigned: set[TopicPartition] = set()
        self._stream: RequestStream | None = None
        self._is_joined = False
        self._outbox: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._ids = itertools.count(1)
        # By id, in the order in which they were asked for.
        self._commits: dict[int, tuple[dict[TopicPartition, int], asyncio.Future[None]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] | None = None
        self._is_leaving = False

    # Its life

    async def join(self) -> None:
        """Returns when the broker has taken it. Raises what the broker refuses it with."""
        self._first = asyncio.get_running_loop().create_future()
        self._task = asyncio.ensure_future(self._run())
        try:
            await self._first
        except BaseException:
            await self.aclose()
            raise

    async def leave(self) -> None:
        """Commits asked for before are taken; partitions move at once."""
        if self._task is None or self._task.done():
            return
        self._is_leaving = True
        if self._is_joined:
            self._send(pb.SubscribeRequest(leave=pb.Leave()))
            await asyncio.wait([self._task], timeout=_LEAVE_S)
        await self.aclose()

    async def aclose(self) -> None:
        """End at once, without a leave: the partitions are kept for a while."""
        self._is_leaving = True
        if self._task is not None:
            await end(self._task)
        self._drop_commits(Aborted("the consumer was closed before the commit was answered"))

    async def _run(self) -> None:
        failures, failing_since_s = 0, 0.0
        loop = asyncio.get_running_loop()
        while True:
            problem: ClientError = Unavailable("the broker ended the stream")
            try:
                await self._one_stream()
            except ClientError as failure:
                problem = failure
            except Exception as bug:
                problem = Internal(f"a bug in the client: {bug!r}")
                problem.__cause__ = bug
            if self._is_leaving:
                return
            if self._is_joined:
                failures = 0
                self._is_joined = False
            self._owner.cut(problem.reason in _OUT)
            if problem.reason in _OUT:
                self._is_out()
            elif not problem.retryable or (self._first is not None and not self._first.done()):
                self._end(problem)
                return
            if not failures:
                failing_since_s = loop.time()
            elif loop.time() - failing_since_s > self._retry_s:
                self._end(problem)
                return
            failures += 1
            await asyncio.sleep(pause_s(failures))

    def _is_out(self) -> None:
        """It comes back as a new member."""
        self.member_id = ""
        self._drop_commits(FencedGeneration(
            "the member was out of the group before the commit was answered", reason=Reason.FENCED_GENERATION))

    def _end(self, problem: ClientError) -> None:
        self._drop_commits(problem)
        if self._first is not None and not self._first.done():
            self._first.set_exception(problem)
        else:
            self._owner.ended(problem)

    def _drop_commits(self, problem: ClientError) -> None:
        commits, self._commits = self._commits, {}
        for _, done in commits.values():
            if not done.done():
                done.set_exception(problem)

    async def _one_stream(self) -> None:
        """Until the stream ends. Raises ClientError when it does not end well."""
        self._outbox.clear()
        stream = self._stream = self._transport.bidi(SUBSCRIBE)
        start = pb.SubscribeStart()
        start.CopyFrom(self._start)
        start.member_id = self.member_id
        writer: asyncio.Task[None] | None = None
        try:
            await stream.write(pb.SubscribeRequest(start=start).SerializeToString())
            writer = asyncio.ensure_future(self._write(stream))
            while (data := await stream.read()) is not None:
                found = decode_subscribed(data, self._check)
                if found is not None:
                    self._owner.received(*found)
                else:
                    self._take(pb.SubscribeResponse.FromString(data))
        finally:
            self._stream = None
            stream.cancel()
            if writer is not None:
                await end(writer)

    async def _write(self, stream: RequestStream) -> None:
        """Requests, in their order. A failure shows in what is read, too."""
        while True:
            while self._outbox:
                await stream.write(self._outbox.popleft())
            self._wake.clear()
            await self._wake.wait()

    def _send(self, request: pb.SubscribeRequest) -> None:
        """Say it on the stream that there is, if there is one."""
        if self._stream is not None:
            self._outbox.append(request.SerializeToString())
            self._wake.set()

    # What the broker tells

    def _take(self, response: pb.SubscribeResponse) -> None:
        kind = response.WhichOneof("response")
        if kind == "ping":
            self._send(pb.SubscribeRequest(pong=pb.Pong(id=response.ping.id)))
        elif kind == "joined":
            self.generation = response.joined.generation
            self._take_joined(response.joined.member_id)
        elif kind == "assigned":
            self._take_assigned(response.assigned)
        elif kind == "revoking":
            self._owner.revoking(_places(response.revoking.partitions), response.revoking.deadline_ms / 1000)
        elif kind == "lost":
            self._owner.lost(_places(response.lost.partitions))
        elif kind == "committed":
            self._take_committed(response.committed)
        elif kind == "failed":
            failed = response.failed
            place = TopicPartition(failed.topic, failed.partition)
            self._owner.unreadable(place, client_error(
                failed.code, failed.error, failed.reason,
                {"topic": failed.topic, "partition": str(failed.partition), "offset": str(failed.offset)}))

    def _take_joined(self, member_id: str) -> None:
        is_same = member_id == self.member_id
        if not is_same:
            self._is_out()
        self.member_id = member_id
        self._is_joined = True
        self._added.clear()
        self._all_assigned.clear()
        self._owner.joined(is_same)
        for number, (offsets, _) in self._commits.items():
            self._send_commit(number, offsets)
        if self._first is not None and not self._first.done():
            self._first.set_result(None)

    def _take_assigned(self, assigned: pb.Assigned) -> None:
        """It may come in several messages."""
        self.generation = assigned.generation
        self._added.update((TopicPartition(each.topic, each.partition), each.offset) for each in assigned.added)
        self._all_assigned.update(_places(assigned.partitions))
        if not assigned.more:
            added, self._added = self._added, {}
            all_of_them, self._all_assigned = self._all_assigned, set()
            self._owner.assigned(added, all_of_them)

    def _take_committed(self, answer: pb.Committed) -> None:
        _, done = self._commits.pop(answer.id, (None, None))
        if done is None or done.done():
            return
        if answer.code:
            done.set_exception(client_error(answer.code, answer.error, answer.reason))
        else:
            done.set_result(None)

    # What the owner says

    async def commit(self, offsets: Mapping[TopicPartition, int], timeout_s: float) -> None:
        """Returns when the offsets are committed, durably. Raises FencedGeneration, OutOfRange, DeadlineExceeded."""
        number = next(self._ids)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._commits[number] = dict(offsets), done
        if self._is_joined:
            self._send_commit(number, offsets)
        try:
            async with asyncio.timeout(timeout_s):
                await done
        except TimeoutError:
            raise DeadlineExceeded(f"the commit was not answered within {timeout_s:g} s") from None
        finally:
            self._commits.pop(number, None)

    def _send_commit(self, number: int, offsets: Mapping[TopicPartition, int]) -> None:
        self._send(pb.SubscribeRequest(commit=pb.CommitOffsets(id=number, generation=self.generation, offsets=[
            pb.TopicPartitionOffset(topic=place.topic, partition=place.partition, offset=offset)
            for place, offset in offsets.items()])))

    async def barrier(self, timeout_s: float) -> None:
        """Returns when the broker has dealt with all that was said before, and all that it sent until then was taken;
        or when the stream was lost meanwhile. Raises DeadlineExceeded.
        """
        # A commit of nothing: whether it is taken or refused, its answer comes in its turn.
        try:
            await self.commit({}, timeout_s)
        except DeadlineExceeded:
            raise
        except ClientError:
            pass

    def credit(self, size_bytes: int) -> None:
        self._send(pb.SubscribeRequest(credit=pb.Credit(bytes=size_bytes)))

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        self._send(pb.SubscribeRequest(pause=_named(partitions)))

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        self._send(pb.SubscribeRequest(resume=_named(partitions)))

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._send(pb.SubscribeRequest(seek=pb.Seek(offsets=[
            pb.TopicPartitionOffset(topic=partition.topic, partition=partition.partition, offset=offset)])))

    def release(self, partitions: Iterable[TopicPartition]) -> None:
        self._send(pb.SubscribeRequest(release=_named(partitions)))


def _named(partitions: Iterable[TopicPartition]) -> pb.Partitions:
    return pb.Partitions(partitions=[
        pb.TopicPartition(topic=each.topic, partition=each.partition) for each in partitions])


def _places(partitions: Iterable[pb.TopicPartition]) -> list[TopicPartition]:
    return [TopicPartition(each.topic, each.partition) for each in partitions]
