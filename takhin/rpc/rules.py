"""What each RPC needs: one rule for each method of the services. A method without one is not served at all."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from takhin.broker.acl import Operation, Resource
from takhin.broker.broker import Broker
from takhin.broker.permissions import Permissions, check_commit, denied
from takhin.rpc import audited
from takhin.v1 import access_pb2 as access
from takhin.v1 import takhin_pb2 as pb

Check = Callable[[Permissions, Any], None]


@dataclass(frozen=True, slots=True)
class Open:
    """For everybody, without credentials."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """Checked while it runs, by what of the broker the call is given: access.py."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A unary method.

    check: raises ACCESS_DENIED. reduce: takes from the response what the caller may not see, given the request and the
    response. complete: makes of a request that names nothing one that names what is meant; raises as check does.
    audited: what to tell in the audit log of the request and, if it is done, of the response (of the type that response
    says; else None), a line for each; None: it changes nothing that one would look for there.
    """

    request: Any
    check: Check
    response: Any = None
    reduce: Callable[[Permissions, Any, Any], None] | None = None
    complete: Callable[[Broker, Permissions, Any], Awaitable[None]] | None = None
    audited: Callable[[Any, Any], str | list[str]] | None = None


def _anybody(permissions: Permissions, request: Any) -> None:
    """With credentials; what the response tells is reduced."""


def _topic_admin(permissions: Permissions, request: Any) -> None:
    permissions.check(Operation.ADMIN, Resource.TOPIC, request.name)


def _partition_admin(permissions: Permissions, request: Any) -> None:
    permissions.check(Operation.ADMIN, Resource.TOPIC, request.topic)


def _cluster_admin(permissions: Permissions, request: Any) -> None:
    permissions.check(Operation.ADMIN, Resource.CLUSTER)


def _sees_topic(permissions: Permissions, request: Any) -> None:
    permissions.check_sees(Resource.TOPIC, request.name)


def _sees_partition(permissions: Permissions, request: Any) -> None:
    permissions.check_sees(Resource.TOPIC, request.topic)


def _sees_topics(permissions: Permissions, request: Any) -> None:
    for name in request.topics:
        permissions.check_sees(Resource.TOPIC, name)


def _init_producer(permissions: Permissions, request: Any) -> None:
    # Whoever may take a name fences who had it before.
    if request.name:
        permissions.check(Operation.PRODUCE, Resource.PRODUCER, request.name)
    elif not permissions.allows_any(Operation.PRODUCE, Resource.TOPIC):
        raise denied("produce on any topic", Resource.TOPIC, "")


def _commit_offset(permissions: Permissions, request: Any) -> None:
    check_commit(permissions, request.group_id, {each.topic for each in request.offsets})


def _reset_offsets(permissions: Permissions, request: Any) -> None:
    check_commit(permissions, request.group_id, {*request.topics, *(each.topic for each in request.partitions)})


async def _name_what_is_committed(broker: Broker, permissions: Permissions, request: Any) -> None:
    if request.partitions or request.topics:
        return
    for each in await broker.group_offsets.fetch(request.group_id, []):
        if each.committed_offset is None:
            continue
        if not permissions.allows(Operation.CONSUME, Resource.TOPIC, each.topic):
            # Which ones is nothing to be told.
            raise denied("consume on every topic that the group has committed; name those to reset", Resource.TOPIC, "")
        request.partitions.add(topic=each.topic, partition=each.partition)


def _sees_group(permissions: Permissions, request: Any) -> None:
    permissions.check_sees(Resource.GROUP, request.group_id)


def _fetch_offsets(permissions: Permissions, request: Any) -> None:
    _sees_group(permissions, request)
    for name in {each.topic for each in request.partitions}:
        permissions.check_sees(Resource.TOPIC, name)


def _group_admin(permissions: Permissions, request: Any) -> None:
    permissions.check(Operation.ADMIN, Resource.GROUP, request.group_id)


def _seen_topics(permissions: Permissions, request: Any, response: Any) -> None:
    response.topics[:] = permissions.seen(Resource.TOPIC, response.topics)


def _seen_descriptions(permissions: Permissions, request: Any, response: Any) -> None:
    seen = set(permissions.seen(Resource.TOPIC, [topic.name for topic in response.topics]))
    _keep(response.topics, lambda topic: topic.name in seen)


def _seen_groups(permissions: Permissions, request: Any, response: Any) -> None:
    seen = set(permissions.seen(Resource.GROUP, [group.group_id for group in response.groups]))
    _keep(response.groups, lambda group: group.group_id in seen)


def _seen_assignments(permissions: Permissions, request: Any, response: Any) -> None:
    for member in response.members:
        _keep_seen(permissions, member.assignments)


def _seen_offsets(permissions: Permissions, request: Any, response: Any) -> None:
    _keep_seen(permissions, response.offsets)


def _keep_seen(permissions: Permissions, of_topics: Any) -> None:
    """Of entries that each have a topic."""
    seen = set(permissions.seen(Resource.TOPIC, {each.topic for each in of_topics}))
    _keep(of_topics, lambda each: each.topic in seen)


def _keep(repeated: Any, is_kept: Callable[[Any], bool]) -> None:
    kept = [each for each in repeated if is_kept(each)]
    if len(kept) < len(repeated):
        # One by one they would each move those behind them.
        del repeated[:]
        repeated.extend(kept)


RULES: dict[str, Open | Streamed | Rule] = {
    "CreateTopic": Rule(pb.CreateTopicRequest, _topic_admin, audited=audited.topic_created),
    "DeleteTopic": Rule(pb.DeleteTopicRequest, _topic_admin, audited=audited.topic_deleted),
    "UpdateTopic": Rule(pb.UpdateTopicRequest, _topic_admin, audited=audited.topic_changed),
    "TruncatePartition": Rule(pb.TruncatePartitionRequest, _partition_admin, audited=audited.partition_truncated),
    "ListTopics": Rule(pb.ListTopicsRequest, _anybody, pb.ListTopicsResponse, _seen_topics),
    "GetTopic": Rule(pb.GetTopicRequest, _sees_topic),
    "DescribeTopics": Rule(pb.DescribeTopicsRequest, _sees_topics, pb.DescribeTopicsResponse, _seen_descriptions),
    "GetPartitionOffsets": Rule(pb.GetPartitionOffsetsRequest, _sees_partition),
    "ProduceMessage": Streamed(),
    "ProduceMessageStream": Streamed(),
    "ProduceTransaction": Streamed(),
    "ConsumeMessages": Streamed(),
    "Subscribe": Streamed(),
    "InitProducer": Rule(
        pb.InitProducerRequest, _init_producer, pb.InitProducerResponse, audited=audited.producer_begun),
    "CommitOffset": Rule(pb.CommitOffsetRequest, _commit_offset),
    "ListConsumerGroups": Rule(
        pb.ListConsumerGroupsRequest, _anybody, pb.ListConsumerGroupsResponse, _seen_groups),
    "DescribeConsumerGroup": Rule(
        pb.DescribeConsumerGroupRequest, _sees_group, pb.DescribeConsumerGroupResponse, _seen_assignments),
    "DeleteConsumerGroup": Rule(pb.DeleteConsumerGroupRequest, _group_admin, audited=audited.group_deleted),
    "FetchOffsets": Rule(pb.FetchOffsetsRequest, _fetch_offsets, pb.FetchOffsetsResponse, _seen_offsets),
    "ResetOffsets": Rule(
        pb.ResetOffsetsRequest, _reset_offsets, pb.ResetOffsetsResponse, complete=_name_what_is_committed,
        audited=audited.offsets_reset),
    "HealthCheck": Open(),
    "CreateApiKey": Rule(
        access.CreateApiKeyRequest, _cluster_admin, access.CreateApiKeyResponse, audited=audited.key_created),
    "ListApiKeys": Rule(access.ListApiKeysRequest, _cluster_admin),
    "RevokeApiKey": Rule(
        access.RevokeApiKeyRequest, _cluster_admin, access.RevokeApiKeyResponse, audited=audited.key_revoked),
    "CreateAcls": Rule(access.CreateAclsRequest, _cluster_admin, audited=audited.acls_changed),
    "ListAcls": Rule(access.ListAclsRequest, _cluster_admin),
    "DeleteAcls": Rule(access.DeleteAclsRequest, _cluster_admin, audited=audited.acls_changed),
}
