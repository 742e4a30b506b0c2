"""The method table of takhin.v1.TakhinService.

The hot methods hand bytes through to the broker; the others use the generated classes.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from takhin import __version__
from takhin.broker.broker import Broker
from takhin.broker.offset_reset import ResetTo, Target
from takhin.broker.topics import Topic
from takhin.errors import Reason, error
from takhin.rpc.call import Call, Kind, Method, StreamCall
from takhin.v1 import takhin_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["TakhinService"].full_name

_ONLY_NODE = (0,)

RequestT = TypeVar("RequestT", bound=Message)


def takhin_methods(broker: Broker) -> list[Method]:
    """Every method of the service."""
    handlers, appending = _Handlers(broker), broker.producing.appending
    return [
        Method(f"/{SERVICE}/ProduceMessage", Kind.UNARY, handlers.produce_message, appending=appending),
        Method(f"/{SERVICE}/ProduceMessageStream", Kind.BIDI, handlers.produce_message_stream, appending=appending),
        Method(f"/{SERVICE}/ProduceTransaction", Kind.UNARY, handlers.produce_transaction),
        Method(f"/{SERVICE}/ConsumeMessages", Kind.SERVER_STREAM, handlers.consume_messages),
        _unary("InitProducer", pb.InitProducerRequest, handlers.init_producer),
        Method(f"/{SERVICE}/Subscribe", Kind.BIDI, handlers.subscribe),
        _unary("CreateTopic", pb.CreateTopicRequest, handlers.create_topic),
        _unary("DeleteTopic", pb.DeleteTopicRequest, handlers.delete_topic),
        _unary("ListTopics", pb.ListTopicsRequest, handlers.list_topics),
        _unary("GetTopic", pb.GetTopicRequest, handlers.get_topic),
        _unary("DescribeTopics", pb.DescribeTopicsRequest, handlers.describe_topics),
        _unary("UpdateTopic", pb.UpdateTopicRequest, handlers.update_topic),
        _unary("CommitOffset", pb.CommitOffsetRequest, handlers.commit_offset),
        _unary("ListConsumerGroups", pb.ListConsumerGroupsRequest, handlers.list_consumer_groups),
        _unary("DescribeConsumerGroup", pb.DescribeConsumerGroupRequest, handlers.describe_consumer_group),
        _unary("DeleteConsumerGroup", pb.DeleteConsumerGroupRequest, handlers.delete_consumer_group),
        _unary("FetchOffsets", pb.FetchOffsetsRequest, handlers.fetch_offsets),
        _unary("ResetOffsets", pb.ResetOffsetsRequest, handlers.reset_offsets),
        _unary("GetPartitionOffsets", pb.GetPartitionOffsetsRequest, handlers.get_partition_offsets),
        _unary("TruncatePartition", pb.TruncatePartitionRequest, handlers.truncate_partition),
        _unary("HealthCheck", pb.HealthCheckRequest, handlers.health_check),
    ]


def _unary(
    name: str, request_type: type[RequestT], handler: Callable[[RequestT], Awaitable[Message]]
) -> Method:
    return unary_method(f"/{SERVICE}/{name}", request_type, handler)


def unary_method(
    path: str, request_type: type[RequestT], handler: Callable[[RequestT], Awaitable[Message]]
) -> Method:
    """A method whose handler takes a parsed request and gives a message."""

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

    return Method(path, Kind.UNARY, handle)


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

    async def subscribe(self, call: StreamCall) -> None:
        await self._broker.subscribing.subscribe(call)

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
        # Each once, however often it is named.
        for name in dict.fromkeys(request.topics) or topics.names():
            _describe_topic(topics.get(name), response.topics.add())
        return response

    async def update_topic(self, request: pb.UpdateTopicRequest) -> Message:
        topic = await self._broker.topics.update(
            request.name, request.num_partitions, dict(request.configs), list(request.reset_configs)
        )
        response = pb.UpdateTopicResponse(success=True)
        _describe_topic(topic, response.topic)
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
            request.group_id,
            [(entry.topic, entry.partition, entry.offset) for entry in request.offsets],
            request.member_id,
            request.generation if request.member_id or request.generation else None,
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
        response = pb.DescribeConsumerGroupResponse(
            group_id=group.group_id, state=group.state, protocol_type=group.protocol_type
        )
        for member in group.members:
            described = response.members.add(
                member_id=member.member_id, client_id=member.client_id, client_host=member.client_host
            )
            for topic, partition, offset in member.assignments:
                described.assignments.add(topic=topic, partition=partition, offset=offset)
        return response

    async def delete_consumer_group(self, request: pb.DeleteConsumerGroupRequest) -> Message:
        await self._broker.groups.delete(request.group_id)
        return pb.DeleteConsumerGroupResponse(success=True)

    async def fetch_offsets(self, request: pb.FetchOffsetsRequest) -> Message:
        response = pb.FetchOffsetsResponse()
        named = [(each.topic, each.partition) for each in request.partitions]
        for position in await self._broker.group_offsets.fetch(request.group_id, named):
            response.offsets.add(
                topic=position.topic,
                partition=position.partition,
                committed_offset=position.committed_offset,
                log_start_offset=position.log_start_offset,
                end_offset=position.end_offset,
                lag=position.lag,
                committed_ms=position.committed_ms,
            )
        return response

    async def reset_offsets(self, request: pb.ResetOffsetsRequest) -> Message:
        response = pb.ResetOffsetsResponse(success=True)
        named = [(each.topic, each.partition) for each in request.partitions]
        done = await self._broker.offset_resets.reset(
            request.group_id, named, list(request.topics), _reset_to(request), dry_run=request.dry_run
        )
        for each in done:
            response.offsets.add(
                topic=each.topic, partition=each.partition, old_offset=each.old_offset, new_offset=each.new_offset
            )
        return response

    async def health_check(self, request: pb.HealthCheckRequest) -> Message:
        return pb.HealthCheckResponse(
            status="healthy", version=__version__, uptime_seconds=self._broker.uptime_seconds
        )


def _reset_to(request: pb.ResetOffsetsRequest) -> ResetTo:
    """Raises INVALID_RESET."""
    to = request.WhichOneof("to")
    value = getattr(request, to) if to is not None else False
    if value is False:
        raise error(
            Reason.INVALID_RESET,
            "the request does not say where to: give one of earliest (true), latest (true), offset, time_ms, shift_by",
        )
    return ResetTo(Target(to), int(value))


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
