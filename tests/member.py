"""A member of a group for tests: the stock stub's Subscribe, with a thread that takes what comes."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc

from takhin.v1 import takhin_pb2 as pb
from takhin.v1 import takhin_pb2_grpc
from tests.broker_process import DEADLINE_S, Stub, error_info

Place = tuple[str, int]


class Member:
    """Start it, tell it what to send, wait for what comes. Fields are those of SubscribeStart.

    pongs: answer pings. releases: answer a revoke at once. reads=False: nothing is taken from the stream.
    """

    def __init__(
        self, stub: Stub, group: str, *topics: str, pongs: bool = True, releases: bool = True, reads: bool = True,
        **fields: Any
    ):
        self._init(stub, pongs, releases, reads)
        self.send(start=pb.SubscribeStart(group_id=group, topics=topics, **fields))

    @classmethod
    def unstarted(cls, stub: Stub) -> "Member":
        member = cls.__new__(cls)
        member._init(stub, True, True, True)
        return member

    def _init(self, stub: Stub, pongs: bool, releases: bool, reads: bool) -> None:
        self.requests: queue.SimpleQueue[pb.SubscribeRequest | None] = queue.SimpleQueue()
        self.call = stub.Subscribe(iter(self.requests.get, None), timeout=4 * DEADLINE_S)
        self.pongs, self.releases = pongs, releases
        # Everything that came, in order, and how the stream ended.
        self.told: list[pb.SubscribeResponse] = []
        self.times_s: list[float] = []
        self.failure: grpc.RpcError | None = None
        self.ended = False
        # What it has, by what it was told; and the offsets at which each began.
        self.partitions: set[Place] = set()
        self.began: dict[Place, int] = {}
        self.member_id = ""
        self.generation = 0
        self._changed = threading.Condition()
        if reads:
            threading.Thread(target=self._take, daemon=True).start()

    # Sending

    def send(self, **fields: Any) -> None:
        self.requests.put(pb.SubscribeRequest(**fields))

    def commit(self, *offsets: tuple[str, int, int], id: int = 1) -> pb.Committed:
        """Commit, and wait for the answer."""
        before = len(self.of("committed"))
        self.send(commit=pb.CommitOffsets(id=id, offsets=places(*offsets)))
        self.wait(lambda: len(self.of("committed")) > before)
        return self.of("committed")[-1]

    def release(self, *partitions: Place) -> None:
        self.send(release=named(*partitions))

    def leave(self) -> None:
        self.send(leave=pb.Leave())
        self.wait(lambda: self.ended)

    def half_close(self) -> None:
        self.requests.put(None)

    def cancel(self) -> None:
        """Cut the stream, as a client that is killed."""
        self.call.cancel()
        self.requests.put(None)
        self.wait(lambda: self.ended)

    # Taking

    def _take(self) -> None:
        try:
            for response in self.call:
                self._note(response)
        except grpc.RpcError as failure:
            self.failure = failure
        with self._changed:
            self.ended = True
            self._changed.notify_all()
        self.requests.put(None)

    def _note(self, response: pb.SubscribeResponse) -> None:
        kind = response.WhichOneof("response")
        with self._changed:
            if kind == "joined":
                self.member_id, self.generation = response.joined.member_id, response.joined.generation
            elif kind == "assigned":
                self.generation = response.assigned.generation
                self.began |= {(each.topic, each.partition): each.offset for each in response.assigned.added}
                self.partitions = {(each.topic, each.partition) for each in response.assigned.partitions}
            elif kind == "lost":
                self.partitions -= {(each.topic, each.partition) for each in response.lost.partitions}
            self.told.append(response)
            self.times_s.append(time.monotonic())
            self._changed.notify_all()
        if kind == "ping" and self.pongs:
            self.send(pong=pb.Pong(id=response.ping.id))
        elif kind == "revoking" and self.releases:
            self.release_what_is_asked(response.revoking)

    def release_what_is_asked(self, revoking: pb.Revoking) -> None:
        asked = [(each.topic, each.partition) for each in revoking.partitions]
        self.release(*asked)
        with self._changed:
            self.partitions -= set(asked)
            self._changed.notify_all()

    def of(self, kind: str) -> list[Any]:
        """What came of a kind."""
        with self._changed:
            return [getattr(each, kind) for each in self.told if each.WhichOneof("response") == kind]

    @property
    def kinds(self) -> list[str]:
        with self._changed:
            return [each.WhichOneof("response") or "" for each in self.told]

    def records(self, topic: str, partition: int) -> list[pb.Record]:
        return [
            record for response in self.of("records") if (response.topic, response.partition) == (topic, partition)
            for record in response.records]

    @property
    def all_records(self) -> list[pb.Record]:
        return [record for response in self.of("records") for record in response.records]

    def wait(self, condition: Callable[[], Any], timeout_s: float = DEADLINE_S) -> Any:
        """Until the condition is true of what came; gives what it gave."""
        deadline_s = time.monotonic() + timeout_s
        while not (result := condition()):
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, f"it did not come true; {self.kinds}, ended {self.ended}: {self.failure}"
            with self._changed:
                self._changed.wait(min(left_s, 0.05))
        return result

    def wait_for(self, kind: str, count: int = 1) -> Any:
        """The count-th of a kind."""
        self.wait(lambda: len(self.of(kind)) >= count or self.ended)
        found = self.of(kind)
        assert len(found) >= count, f"the stream ended: {self.failure}"
        return found[count - 1]

    def wait_ended(self) -> grpc.RpcError | None:
        self.wait(lambda: self.ended)
        return self.failure

    def refused(self) -> tuple[grpc.StatusCode, str]:
        """How the stream failed: code and reason."""
        failure = self.wait_ended()
        assert failure is not None, "the stream ended well"
        return failure.code(), error_info(failure).reason


def named(*partitions: Place) -> pb.Partitions:
    return pb.Partitions(partitions=[pb.TopicPartition(topic=topic, partition=number) for topic, number in partitions])


def places(*offsets: tuple[str, int, int]) -> list[pb.TopicPartitionOffset]:
    return [pb.TopicPartitionOffset(topic=topic, partition=number, offset=offset) for topic, number, offset in offsets]


def own_stub(broker) -> Stub:
    """A stub with a connection of its own: what cuts it off cuts off nobody else."""
    return takhin_pb2_grpc.TakhinServiceStub(broker.channel())
