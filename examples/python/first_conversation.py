"""Create a topic, produce, consume, commit: with the stubs that grpcio-tools generates, and nothing else."""

import sys

import grpc

from takhin.v1 import takhin_pb2 as pb
from takhin.v1 import takhin_pb2_grpc

address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9092"
with grpc.insecure_channel(address) as channel:
    takhin = takhin_pb2_grpc.TakhinServiceStub(channel)
    try:
        takhin.CreateTopic(pb.CreateTopicRequest(name="letters", num_partitions=3))
    except grpc.RpcError as refused:
        if refused.code() is not grpc.StatusCode.ALREADY_EXISTS:  # by an earlier run
            raise

    record = pb.Record(key=b"world", value=b"hello")
    stored = takhin.ProduceMessage(
        # The key chooses the partition (-1); -1 acks: the answer comes when the record is on the disk.
        pb.ProduceMessageRequest(topic="letters", partition=-1, record=record, required_acks=-1)
    )
    print(f"stored in partition {stored.partition} at offset {stored.offset}")

    wanted = pb.ConsumeMessagesRequest(topic="letters", partition=stored.partition, offset=-1, until_end=True)
    for response in takhin.ConsumeMessages(wanted):  # without until_end it goes on for ever
        for record in response.records:
            print(f"{record.offset}: {record.key.decode()} {record.value.decode()}")

    position = pb.TopicPartitionOffset(topic="letters", partition=stored.partition, offset=stored.offset + 1)
    takhin.CommitOffset(pb.CommitOffsetRequest(group_id="readers", offsets=[position]))
