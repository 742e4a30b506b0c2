"""A member of a consumer group, with stock stubs: it reads, commits, gives up what it is asked for, and comes back.

    python group_member.py [ADDRESS [GROUP TOPIC]]

With a group and a topic it goes on until Ctrl-C; start it several times, and the members share the topic's partitions.
Without them it makes a topic with a few records, reads those, and leaves.
"""

import queue
import sys
import threading
import time
from collections.abc import Iterator

import grpc

from takhin.v1 import takhin_pb2 as pb
from takhin.v1 import takhin_pb2_grpc

CREDIT_BYTES = 4 << 20


class Member:
    """The stream of one member. The thread that iterates it takes what comes; requests go out from a queue."""

    def __init__(self, takhin: takhin_pb2_grpc.TakhinServiceStub, group: str, topic: str):
        self.takhin, self.group, self.topic = takhin, group, topic
        self.member_id = ""
        self.generation = 0
        self.requests: queue.SimpleQueue[pb.SubscribeRequest | None] = queue.SimpleQueue()
        # The next offset to read of each partition that it has: what to commit.
        self.positions: dict[int, int] = {}

    def send(self, **request) -> None:
        self.requests.put(pb.SubscribeRequest(**request))

    def records(self) -> Iterator[tuple[int, pb.Record]]:
        """Records with their partitions, for ever. A record counts as processed when the next one is asked for."""
        while True:
            try:
                yield from self.one_stream()
                return
            except grpc.RpcError as failure:
                # The connection's age, a broker that restarts: within ten seconds it has its partitions again.
                if failure.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                time.sleep(0.2)

    def one_stream(self) -> Iterator[tuple[int, pb.Record]]:
        self.requests = queue.SimpleQueue()
        self.positions.clear()
        self.send(start=pb.SubscribeStart(
            group_id=self.group, topics=[self.topic], client_id="example", member_id=self.member_id,
            credit_bytes=CREDIT_BYTES))
        for response in self.takhin.Subscribe(iter(self.requests.get, None)):
            kind = response.WhichOneof("response")
            if kind == "joined":
                self.member_id = response.joined.member_id
                self.generation = response.joined.generation
            elif kind == "assigned":
                self.generation = response.assigned.generation
            elif kind == "records":
                partition = response.records.partition
                for record in response.records.records:
                    yield partition, record
                    self.positions[partition] = record.offset + 1
                self.send(credit=pb.Credit(bytes=response.credit_bytes))
                self.commit()
            elif kind == "revoking":
                # No more of these come. What was processed is committed: now somebody else may have them.
                self.commit()
                self.send(release=pb.Partitions(partitions=response.revoking.partitions))
                for each in response.revoking.partitions:
                    self.positions.pop(each.partition, None)
            elif kind == "lost":
                for each in response.lost.partitions:
                    self.positions.pop(each.partition, None)
            elif kind == "committed" and response.committed.code:
                print(f"not committed: {response.committed.error}", file=sys.stderr)
            elif kind == "failed":
                print(f"can't be read: {response.failed.error}", file=sys.stderr)
            elif kind == "ping":
                self.send(pong=pb.Pong(id=response.ping.id))

    def commit(self) -> None:
        offsets = [
            pb.TopicPartitionOffset(topic=self.topic, partition=partition, offset=offset)
            for partition, offset in self.positions.items()]
        if offsets:
            self.send(commit=pb.CommitOffsets(offsets=offsets, generation=self.generation))

    def leave(self) -> None:
        self.commit()
        self.send(leave=pb.Leave())


def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9092"
    with grpc.insecure_channel(address) as channel:
        takhin = takhin_pb2_grpc.TakhinServiceStub(channel)
        if len(sys.argv) > 3:
            try:
                for partition, record in Member(takhin, sys.argv[2], sys.argv[3]).records():
                    print(f"{partition}/{record.offset}: {record.value!r}")
            except KeyboardInterrupt:
                return
        takhin.CreateTopic(pb.CreateTopicRequest(name="jobs", num_partitions=2))
        for number in range(4):
            record = pb.Record(value=b"job %d" % number)
            takhin.ProduceMessage(pb.ProduceMessageRequest(
                topic="jobs", partition=number % 2, record=record, required_acks=1))
        member = Member(takhin, "workers", "jobs")
        # In place of Ctrl-C: it leaves when nothing has come for a while.
        idle = threading.Timer(2, member.leave)
        idle.start()
        found = sorted((partition, record.offset, record.value) for partition, record in member.records())
        for partition, offset, value in found:
            print(f"{partition}/{offset}: {value.decode()}")
        for each in takhin.FetchOffsets(pb.FetchOffsetsRequest(group_id="workers")).offsets:
            print(f"committed: {each.partition}/{each.committed_offset}")


if __name__ == "__main__":
    main()
