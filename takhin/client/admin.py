"""Topics, partitions, groups: every call with one answer."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import TypeVar

from google.protobuf.message import Message as ProtoMessage

from takhin.client.start import Start, start_at, time_ms_of
from takhin.client.transport import SERVICE, Transport
from takhin.client.types import (
    Group,
    GroupDescription,
    GroupMember,
    GroupOffset,
    Health,
    NextOffsets,
    OffsetReset,
    Offsets,
    Partition,
    Topic,
    TopicPartition,
)
from takhin.v1 import takhin_pb2 as pb

AnswerT = TypeVar("AnswerT", bound=ProtoMessage)

# As bytes, so that no class of gRPC's is needed: grpc.health.v1.HealthCheckRequest of our service, and the
# HealthCheckResponse that says SERVING.
IS_READY = b"\x0a\x17takhin.v1.TakhinService"
SERVING = b"\x08\x01"


class Admin:
    """Calls of a broker. Each raises ClientError; `timeout_s` bounds it, None: the client's default."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def _call(
        self, name: str, request: ProtoMessage, answer: type[AnswerT], timeout_s: float | None = None
    ) -> AnswerT:
        return answer.FromString(await self._transport.unary(SERVICE + name, request.SerializeToString(), timeout_s))

    # Topics

    async def create_topic(
        self, name: str, *, partitions: int = 0, configs: Mapping[str, object] | None = None,
        timeout_s: float | None = None
    ) -> None:
        """Create a topic; partitions 0: as many as the broker's default has. configs: by Kafka's names.

        Raises TopicExists, InvalidArgument, ResourceExhausted.
        """
        request = pb.CreateTopicRequest(name=name, num_partitions=partitions, configs=_config_texts(configs))
        await self._call("CreateTopic", request, pb.CreateTopicResponse, timeout_s)

    async def update_topic(
        self, name: str, *, partitions: int = 0, configs: Mapping[str, object] | None = None,
        reset_configs: Iterable[str] = (), timeout_s: float | None = None
    ) -> Topic:
        """Give a topic more partitions (0: as many as it has), set configs, or reset them to the broker's defaults; all
        of it or nothing. With more partitions a key may land on another one than before.

        Raises TopicNotFound, InvalidArgument.
        """
        request = pb.UpdateTopicRequest(
            name=name, num_partitions=partitions, configs=_config_texts(configs), reset_configs=list(reset_configs))
        return _topic((await self._call("UpdateTopic", request, pb.UpdateTopicResponse, timeout_s)).topic)

    async def delete_topic(self, name: str, *, timeout_s: float | None = None) -> None:
        """Delete a topic with its records and all that groups committed for it. Raises TopicNotFound."""
        await self._call("DeleteTopic", pb.DeleteTopicRequest(name=name), pb.DeleteTopicResponse, timeout_s)

    async def list_topics(self, *, timeout_s: float | None = None) -> list[str]:
        """The names of all topics, sorted."""
        answer = await self._call("ListTopics", pb.ListTopicsRequest(), pb.ListTopicsResponse, timeout_s)
        return sorted(answer.topics)

    async def describe_topic(self, name: str, *, timeout_s: float | None = None) -> Topic:
        """Raises TopicNotFound."""
        answer = await self._call("GetTopic", pb.GetTopicRequest(name=name), pb.GetTopicResponse, timeout_s)
        return _topic(answer.topic)

    async def describe_topics(self, names: Iterable[str] = (), *, timeout_s: float | None = None) -> list[Topic]:
        """Those named, in their order; without names all, sorted by name. Raises TopicNotFound."""
        request = pb.DescribeTopicsRequest(topics=list(names))
        answer = await self._call("DescribeTopics", request, pb.DescribeTopicsResponse, timeout_s)
        topics = [_topic(each) for each in answer.topics]
        return topics if request.topics else sorted(topics, key=lambda topic: topic.name)

    # Partitions

    async def offsets(
        self, topic: str, partition: int = 0, *, time: datetime | timedelta | None = None, time_ms: int | None = None,
        timeout_s: float | None = None
    ) -> Offsets:
        """Where a partition begins and ends; with a time (or time_ms, since 1970), also the first offset from then on.

        Raises TopicNotFound, PartitionNotFound.
        """
        request = pb.GetPartitionOffsetsRequest(topic=topic, partition=partition)
        if time is not None:
            time_ms = time_ms_of(time)
        if time_ms is not None:
            request.timestamp_ms = time_ms
        answer = await self._call("GetPartitionOffsets", request, pb.GetPartitionOffsetsResponse, timeout_s)
        for_time = answer.offset_for_time if answer.HasField("offset_for_time") else None
        return Offsets(answer.beginning_offset, answer.end_offset, answer.durable_offset, for_time)

    async def truncate(
        self, topic: str, partition: int, before_offset: int | None = None, *, timeout_s: float | None = None
    ) -> int:
        """Remove what lies before the offset (None: everything); gives where the log begins now.

        Raises OffsetOutOfRange for an offset beyond the end, TopicNotFound, PartitionNotFound.
        """
        request = pb.TruncatePartitionRequest(
            topic=topic, partition=partition, before_offset=-1 if before_offset is None else before_offset)
        if before_offset is not None and before_offset < 0:
            raise ValueError(f"before_offset {before_offset} is negative; None removes everything")
        answer = await self._call("TruncatePartition", request, pb.TruncatePartitionResponse, timeout_s)
        return answer.log_start_offset

    # Groups

    async def list_groups(self, *, timeout_s: float | None = None) -> list[Group]:
        """All groups, sorted by name."""
        answer = await self._call(
            "ListConsumerGroups", pb.ListConsumerGroupsRequest(), pb.ListConsumerGroupsResponse, timeout_s)
        found = [Group(each.group_id, each.state, each.member_count) for each in answer.groups]
        return sorted(found, key=lambda group: group.group)

    async def describe_group(self, group: str, *, timeout_s: float | None = None) -> GroupDescription:
        """Raises GroupNotFound."""
        answer = await self._call(
            "DescribeConsumerGroup", pb.DescribeConsumerGroupRequest(group_id=group),
            pb.DescribeConsumerGroupResponse, timeout_s)
        members = tuple(
            GroupMember(each.member_id, each.client_id, each.client_host, {
                TopicPartition(place.topic, place.partition): place.offset if place.offset >= 0 else None
                for place in each.assignments})
            for each in answer.members)
        return GroupDescription(answer.group_id, answer.state, members)

    async def delete_group(self, group: str, *, timeout_s: float | None = None) -> None:
        """Forget what the group has committed. Raises GroupNotFound, GroupHasMembers."""
        await self._call(
            "DeleteConsumerGroup", pb.DeleteConsumerGroupRequest(group_id=group), pb.DeleteConsumerGroupResponse,
            timeout_s)

    async def group_offsets(
        self, group: str, topics: Iterable[str] = (), *, timeout_s: float | None = None
    ) -> list[GroupOffset]:
        """Where the group stands: in all partitions that it has committed or that its members have; with topics in all
        of theirs, committed or not.

        Raises GroupNotFound (without topics), TopicNotFound.
        """
        request = pb.FetchOffsetsRequest(group_id=group)
        for topic in await self.describe_topics(topics, timeout_s=timeout_s) if (topics := list(topics)) else ():
            for each in topic.partitions:
                request.partitions.add(topic=topic.name, partition=each.partition)
        answer = await self._call("FetchOffsets", request, pb.FetchOffsetsResponse, timeout_s)
        found = []
        for place in answer.offsets:
            has = place.HasField("committed_offset")
            found.append(GroupOffset(
                place.topic, place.partition, place.committed_offset if has else None, place.log_start_offset,
                place.end_offset, place.lag, place.committed_ms if has else None))
        return found

    async def reset_offsets(
        self, group: str, *, to: Start | None = None, shift: int | None = None, topics: Iterable[str] = (),
        partitions: Iterable[tuple[str, int]] = (), dry_run: bool = False, timeout_s: float | None = None
    ) -> list[OffsetReset]:
        """Set a group without members elsewhere: `to` "earliest", "latest", an offset, a datetime or timedelta, or
        `shift` so many records on (negative: back). Without topics and partitions: everything that it has committed.
        dry_run: tell what would be done, and do nothing.

        Raises GroupHasMembers, GroupNotFound, OffsetOutOfRange, TopicNotFound, PartitionNotFound, InvalidArgument.
        """
        request = pb.ResetOffsetsRequest(group_id=group, topics=list(topics), dry_run=dry_run)
        for topic, partition in partitions:
            request.partitions.add(topic=topic, partition=partition)
        if (to is None) == (shift is None):
            raise ValueError("say where to, with either to or shift")
        if shift is not None:
            request.shift_by = shift
        elif to is not None:
            start = start_at(to)
            if start.from_start is not None:
                raise ValueError("to counts from the beginning; give an offset, or shift")
            if start.from_end is not None:
                raise ValueError(f"to {to} is negative; offsets are 0 or more, and shift goes back")
            if start.is_earliest:
                request.earliest = True
            elif start.is_latest:
                request.latest = True
            elif start.offset is not None:
                request.offset = start.offset
            elif start.time_ms is not None:
                request.time_ms = start.time_ms
        answer = await self._call("ResetOffsets", request, pb.ResetOffsetsResponse, timeout_s)
        return [
            OffsetReset(each.topic, each.partition, each.old_offset if each.HasField("old_offset") else None,
                        each.new_offset)
            for each in answer.offsets]

    async def commit_offsets(
        self, group: str, offsets: NextOffsets, *, timeout_s: float | None = None
    ) -> None:
        """Commit the next offset to read, by (topic, partition), for a group without members; all of them or none.

        Raises GroupHasMembers, OffsetOutOfRange, FailedPrecondition for an offset behind what is committed.
        """
        request = pb.CommitOffsetRequest(group_id=group)
        for (topic, partition), offset in offsets.items():
            request.offsets.add(topic=topic, partition=partition, offset=offset)
        await self._call("CommitOffset", request, pb.CommitOffsetResponse, timeout_s)

    async def health(self, *, timeout_s: float | None = None) -> Health:
        """Raises Unavailable where no broker answers."""
        answer = await self._call("HealthCheck", pb.HealthCheckRequest(), pb.HealthCheckResponse, timeout_s)
        return Health(answer.status, answer.version, answer.uptime_seconds)

    async def is_ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether all of the broker's partitions take appends, as grpc.health.v1 tells it. Raises Unavailable where no
        broker answers.
        """
        return await self._transport.unary("/grpc.health.v1.Health/Check", IS_READY, timeout_s) == SERVING


def _config_texts(configs: Mapping[str, object] | None) -> dict[str, str]:
    return {name: str(value) for name, value in (configs or {}).items()}


def _topic(info: pb.TopicInfo) -> Topic:
    partitions = tuple(
        Partition(each.partition_id, each.beginning_offset, each.end_offset, each.durable_offset, each.size_bytes)
        for _, each in sorted(info.partitions.items()))
    return Topic(info.name, dict(info.configs), info.size_bytes, info.created_ms, partitions)
