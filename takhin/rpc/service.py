"""The method table of takhin.v1.TakhinService.

The hot methods hand bytes through to the broker; the others use the generated classes.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from takhin import __version__
from takhin.broker.broker import Broker
from takhin.broker.topics import Topic
from takhin.errors import Reason, error
from takhin.rpc.call import Call, Kind, Method, StreamCall
from takhin.v1 import takhin_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["TakhinService"].full_name

_ONLY_NODE = (0,)

RequestT = TypeVar("RequestT", bound=Message)


def takhin_methods(broker: Broker) -> list[Method]:
    """Every method of the service."""
    handlers = _Handlers(broker)
    return [
        Method(f"/{SERVICE}/ProduceMessage", Kind.UNARY, handlers.produce_message),
        Method(f"/{SERVICE}/ProduceMessageStream", Kind.BIDI, handlers.produce_message_stream),
        Method(f"/{SERVICE}/ProduceTransaction", Kind.UNARY, handlers.produce_transaction),
        Method(f"/{SERVICE}/ConsumeMessages", Kind.SERVER_STREAM, handlers.consume_messages),
        _unary("InitProducer", pb.InitProducerRequest, handlers.init_producer),
        _unary("CreateTopic", pb.CreateTopicRequest, handlers.create_topic),
        _unary("DeleteTopic", pb.DeleteTopicRequest, handlers.delete_topic),
        _unary("ListTopics", pb.ListTopicsRequest, handlers.list_topics),
        _unary("GetTopic", pb.GetTopicRequest, handlers.get_topic),
        _unary("DescribeTopics", pb.DescribeTopicsRequest, handlers.describe_topics),
        _unary("CommitOffset", pb.CommitOffsetRequest, handlers.commit_offset),
        _unary("ListConsumerGroups", pb.ListConsumerGroupsRequest, handlers.list_consumer_groups),
        _unary("DescribeConsumerGroup", pb.DescribeConsumerGroupRequest, handlers.describe_consumer_group),
        _unary("DeleteConsumerGroup", pb.DeleteConsumerGroupRequest, handlers.delete_consumer_group),
        _unary("GetPartitionOffsets", pb.GetPartitionOffsetsRequest, handlers.get_partition_offsets),
        _unary("TruncatePartition", pb.TruncatePartitionRequest, handlers.truncate_partition),
        _unary("HealthCheck", pb.HealthCheckRequest, handlers.health_check),
    ]


def _unary(
    name: str, request_type: type[RequestT], handler: Callable[[RequestT], Awaitable[Message]]
) -> Method:
    async def handle(request: bytes, call: Call) -> bytes:
        try:
            message = request_type.FromString(request)
        except DecodeError:
            raise error(
                Reason.MALFORMED_REQUEST,
                f"{request_type.DESCRIPTOR.name} can't be read: it is not a valid protobuf message, or a string in it "
                "is not valid UTF-8",
            ) from None
        return (await handler(message)).SerializeToString()

    return Method(f"/{SERVICE}/{name}", Kind.UNARY, handle)


class _Handlers:
    def __init__(self, broker: Broker):
        self._broker = broker
        self._produce = broker.producing.produce

    # Hot: bytes in, bytes out

    async def produce_message(self, request: bytes, call: Call) -> bytes:
        return await self._produce(request)

    async def produce_message_stream(self, call: StreamCall) -> None:
        await self._broker.producing.produce_stream(call)

    async def produce_transaction(self, request: bytes, call: Call) -> bytes:
        return await self._broker.transactions.produce(request)

    async def consume_messages(self, request: bytes, call: StreamCall) -> None:
        await self._broker.consuming.consume(request, call)

    async def init_producer(self, request: pb.InitProducerRequest) -> Message:
        producer_id, epoch = await self._broker.producers.init(request.name, self._broker.topics.partitions())
        return pb.InitProducerResponse(id=producer_id, epoch=epoch)

    # Topics

    async def create_topic(self, request: pb.CreateTopicRequest) -> Message:
        await self._broker.topics.create(
            request.name, request.num_partitions, request.replication_factor, dict(request.configs)
        )
        return pb.CreateTopicResponse(success=True)

    async def delete_topic(self, request: pb.DeleteTopicRequest) -> Message:
        await self._broker.topics.delete(request.name)
        return pb.DeleteTopicResponse(success=True)

    async def list_topics(self, request: pb.ListTopicsRequest) -> Message:
        return pb.ListTopicsResponse(topics=self._broker.topics.names())

    async def get_topic(self, request: pb.GetTopicRequest) -> Message:
        response = pb.GetTopicResponse()
        _describe_topic(self._broker.topics.get(request.name), response.topic)
        return response

    async def describe_topics(self, request: pb.DescribeTopicsRequest) -> Message:
        topics = self._broker.topics
        response = pb.DescribeTopicsResponse()
        for name in request.topics or topics.names():
            _describe_topic(topics.get(name), response.topics.add())
        return response

    async def get_partition_offsets(self, request: pb.GetPartitionOffsetsRequest) -> Message:
        partition = self._broker.topics.partition(request.topic, request.partition)
        offset_for_time = None
        if request.HasField("timestamp_ms"):
            offset_for_time = await self._broker.consuming.offset_for_time(partition, request.timestamp_ms)
        return pb.GetPartitionOffsetsResponse(
            topic=request.topic,
            partition=request.partition,
            beginning_offset=partition.log_start_offset,
            end_offset=partition.written_offset,
            offset_for_time=offset_for_time,
            durable_offset=partition.durable_offset,
        )

    async def truncate_partition(self, request: pb.TruncatePartitionRequest) -> Message:
        partition = self._broker.topics.partition(request.topic, request.partition)
        log_start_offset = await self._broker.log_starts.truncate(partition, request.before_offset)
        return pb.TruncatePartitionResponse(success=True, log_start_offset=log_start_offset)

    # Groups

    async def commit_offset(self, request: pb.CommitOffsetRequest) -> Message:
        await self._broker.groups.commit(
            request.group_id, [(entry.topic, entry.partition, entry.offset) for entry in request.offsets]
        )
        return pb.CommitOffsetResponse(success=True)

    async def list_consumer_groups(self, request: pb.ListConsumerGroupsRequest) -> Message:
        response = pb.ListConsumerGroupsResponse()
        for group in await self._broker.groups.list_groups():
            response.groups.add(
                group_id=group.group_id,
                state=group.state,
                protocol_type=group.protocol_type,
                member_count=group.member_count,
            )
        return response

    async def describe_consumer_group(self, request: pb.DescribeConsumerGroupRequest) -> Message:
        group = await self._broker.groups.describe(request.group_id)
        return pb.DescribeConsumerGroupResponse(
            group_id=group.group_id, state=group.state, protocol_type=group.protocol_type
        )

    async def delete_consumer_group(self, request: pb.DeleteConsumerGroupRequest) -> Message:
        await self._broker.groups.delete(request.group_id)
        return pb.DeleteConsumerGroupResponse(success=True)

    async def health_check(self, request: pb.HealthCheckRequest) -> Message:
        return pb.HealthCheckResponse(
            status="healthy", version=__version__, uptime_seconds=self._broker.uptime_seconds
        )


def _describe_topic(topic: Topic, info: pb.TopicInfo) -> None:
    info.name = topic.name
    info.num_partitions = len(topic.partitions)
    info.replication_factor = 1
    info.created_ms = topic.created_ms
    info.configs.update(topic.configs)
    total_bytes = 0
    for partition in topic.partitions:
        size_bytes = partition.size_bytes
        total_bytes += size_bytes
        # One process: it leads every partition and keeps the only copy, as node 0.
        info.partitions[partition.partition].MergeFrom(
            pb.PartitionInfo(
                partition_id=partition.partition,
                beginning_offset=partition.log_start_offset,
                end_offset=partition.written_offset,
                leader=0,
                replicas=_ONLY_NODE,
                isr=_ONLY_NODE,
                durable_offset=partition.durable_offset,
                size_bytes=size_bytes,
            )
        )
    info.size_bytes = total_bytes
