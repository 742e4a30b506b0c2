"""Every RPC, for every role, with every state of credentials: derived from the services' descriptors, so that a new RPC
without a rule, or without a line here, fails."""

import itertools
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from takhin.broker.broker import Broker
from takhin.errors import Code, Reason
from takhin.rpc.access import Guard
from takhin.rpc.call import Kind, Method
from takhin.rpc.rules import RULES, Open, Rule, Streamed
from takhin.rpc.service import takhin_methods
from takhin.v1 import access_pb2, access_pb2_grpc, takhin_pb2
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import DEADLINE_S, BrokerProcess, error_info
from tests.secured import Secured

OURS = [
    takhin_pb2.DESCRIPTOR.services_by_name["TakhinService"], access_pb2.DESCRIPTOR.services_by_name["AccessService"]]
OTHERS = [
    health_pb2.DESCRIPTOR.services_by_name["Health"], reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]]
METHODS = {method.full_name: method for service in [*OURS, *OTHERS] for method in service.methods}

# Topics and groups: names that exist, that do not, and that no role has to do with.
TOPIC, MISSING_TOPIC, GROUP, MISSING_GROUP, PRODUCER = "t-there", "t-gone", "g-there", "g-gone", "p-1"
FOREIGN_TOPIC, FOREIGN_GROUP = "foreign", "foreign"

_A = access_pb2
ROLES: dict[str, list[tuple[int, int, str]]] = {
    "nobody": [],
    "producer": [(_A.ACL_OPERATION_PRODUCE, _A.ACL_RESOURCE_TOPIC, "t-")],
    "named producer": [(_A.ACL_OPERATION_PRODUCE, _A.ACL_RESOURCE_PRODUCER, "p-")],
    "consumer": [(_A.ACL_OPERATION_CONSUME, _A.ACL_RESOURCE_TOPIC, "t-")],
    "group": [(_A.ACL_OPERATION_GROUP, _A.ACL_RESOURCE_GROUP, "g-")],
    "member": [
        (_A.ACL_OPERATION_CONSUME, _A.ACL_RESOURCE_TOPIC, "t-"), (_A.ACL_OPERATION_GROUP, _A.ACL_RESOURCE_GROUP, "g-")],
    "transactor": [
        (_A.ACL_OPERATION_PRODUCE, _A.ACL_RESOURCE_TOPIC, "t-"),
        (_A.ACL_OPERATION_CONSUME, _A.ACL_RESOURCE_TOPIC, "t-"), (_A.ACL_OPERATION_GROUP, _A.ACL_RESOURCE_GROUP, "g-")],
    "topic admin": [(_A.ACL_OPERATION_ADMIN, _A.ACL_RESOURCE_TOPIC, "t-")],
    "group admin": [(_A.ACL_OPERATION_ADMIN, _A.ACL_RESOURCE_GROUP, "g-")],
    "cluster admin": [(_A.ACL_OPERATION_ADMIN, _A.ACL_RESOURCE_CLUSTER, "")],
}
SEES_TOPICS = {"producer", "consumer", "member", "transactor", "topic admin"}
SEES_GROUPS = {"group", "member", "transactor", "group admin"}
MEMBERS = {"member", "transactor"}
PRODUCERS = {"producer", "transactor"}
ALL = set(ROLES)
OPEN = "open"

# Who may call it, about the topic and the group; ALL: everybody with credentials, who is told what he may see.
EXPECTED: dict[str, set[str] | str] = {
    "takhin.v1.TakhinService.CreateTopic": {"topic admin"},
    "takhin.v1.TakhinService.DeleteTopic": {"topic admin"},
    "takhin.v1.TakhinService.UpdateTopic": {"topic admin"},
    "takhin.v1.TakhinService.TruncatePartition": {"topic admin"},
    "takhin.v1.TakhinService.ListTopics": ALL,
    "takhin.v1.TakhinService.GetTopic": SEES_TOPICS,
    "takhin.v1.TakhinService.DescribeTopics": SEES_TOPICS,
    "takhin.v1.TakhinService.GetPartitionOffsets": SEES_TOPICS,
    "takhin.v1.TakhinService.ProduceMessage": PRODUCERS,
    "takhin.v1.TakhinService.ProduceMessageStream": PRODUCERS,
    "takhin.v1.TakhinService.ProduceTransaction": {"transactor"},
    "takhin.v1.TakhinService.InitProducer": {"named producer"},
    "takhin.v1.TakhinService.ConsumeMessages": {"consumer", "member", "transactor"},
    "takhin.v1.TakhinService.Subscribe": MEMBERS,
    "takhin.v1.TakhinService.CommitOffset": MEMBERS,
    "takhin.v1.TakhinService.ResetOffsets": MEMBERS,
    "takhin.v1.TakhinService.FetchOffsets": MEMBERS,
    "takhin.v1.TakhinService.ListConsumerGroups": ALL,
    "takhin.v1.TakhinService.DescribeConsumerGroup": SEES_GROUPS,
    "takhin.v1.TakhinService.DeleteConsumerGroup": {"group admin"},
    "takhin.v1.TakhinService.HealthCheck": OPEN,
    "takhin.v1.AccessService.CreateApiKey": {"cluster admin"},
    "takhin.v1.AccessService.ListApiKeys": {"cluster admin"},
    "takhin.v1.AccessService.RevokeApiKey": {"cluster admin"},
    "takhin.v1.AccessService.CreateAcls": {"cluster admin"},
    "takhin.v1.AccessService.ListAcls": {"cluster admin"},
    "takhin.v1.AccessService.DeleteAcls": {"cluster admin"},
    "grpc.health.v1.Health.Check": OPEN,
    "grpc.health.v1.Health.Watch": OPEN,
    "grpc.health.v1.Health.List": OPEN,
    "grpc.reflection.v1alpha.ServerReflection.ServerReflectionInfo": ALL,
}

_ENTRY = access_pb2.Acl(
    principal="key:somebody", effect=_A.ACL_EFFECT_ALLOW, operation=_A.ACL_OPERATION_PRODUCE,
    resource=_A.ACL_RESOURCE_TOPIC, name="x")


def _produce(topic: str) -> pb.ProduceMessageRequest:
    return pb.ProduceMessageRequest(topic=topic, record=pb.Record(value=b"x"))


# A request about a topic and a group, which changes nothing that another case needs.
REQUESTS: dict[str, Callable[[str, str], Any]] = {
    "CreateTopic": lambda topic, group: pb.CreateTopicRequest(name=topic, replication_factor=3),
    "DeleteTopic": lambda topic, group: pb.DeleteTopicRequest(name=MISSING_TOPIC if topic == TOPIC else topic),
    "UpdateTopic": lambda topic, group: pb.UpdateTopicRequest(name=topic),
    "TruncatePartition": lambda topic, group: pb.TruncatePartitionRequest(topic=topic, before_offset=0),
    "ListTopics": lambda topic, group: pb.ListTopicsRequest(),
    "GetTopic": lambda topic, group: pb.GetTopicRequest(name=topic),
    "DescribeTopics": lambda topic, group: pb.DescribeTopicsRequest(topics=[topic]),
    "GetPartitionOffsets": lambda topic, group: pb.GetPartitionOffsetsRequest(topic=topic),
    "ProduceMessage": lambda topic, group: _produce(topic),
    "ProduceMessageStream": lambda topic, group: _produce(topic),
    "ProduceTransaction": lambda topic, group: pb.ProduceTransactionRequest(
        appends=[_produce(topic)], group_id=group, offsets=[pb.TopicPartitionOffset(topic=topic, offset=0)]),
    "InitProducer": lambda topic, group: pb.InitProducerRequest(name=PRODUCER),
    "ConsumeMessages": lambda topic, group: pb.ConsumeMessagesRequest(topic=topic, offset=-1, until_end=True),
    "Subscribe": lambda topic, group: pb.SubscribeRequest(start=pb.SubscribeStart(group_id=group, topics=[topic])),
    "CommitOffset": lambda topic, group: pb.CommitOffsetRequest(
        group_id=group, offsets=[pb.TopicPartitionOffset(topic=topic, offset=0)]),
    "ResetOffsets": lambda topic, group: pb.ResetOffsetsRequest(
        group_id=group, topics=[topic], earliest=True, dry_run=True),
    "FetchOffsets": lambda topic, group: pb.FetchOffsetsRequest(
        group_id=group, partitions=[pb.TopicPartition(topic=topic)]),
    "ListConsumerGroups": lambda topic, group: pb.ListConsumerGroupsRequest(),
    "DescribeConsumerGroup": lambda topic, group: pb.DescribeConsumerGroupRequest(group_id=group),
    "DeleteConsumerGroup": lambda topic, group: pb.DeleteConsumerGroupRequest(
        group_id=MISSING_GROUP if group == GROUP else group),
    "HealthCheck": lambda topic, group: pb.HealthCheckRequest(),
    "CreateApiKey": lambda topic, group: access_pb2.CreateApiKeyRequest(),
    "ListApiKeys": lambda topic, group: access_pb2.ListApiKeysRequest(),
    "RevokeApiKey": lambda topic, group: access_pb2.RevokeApiKeyRequest(id="none"),
    "CreateAcls": lambda topic, group: access_pb2.CreateAclsRequest(),
    "ListAcls": lambda topic, group: access_pb2.ListAclsRequest(),
    "DeleteAcls": lambda topic, group: access_pb2.DeleteAclsRequest(acls=[_ENTRY]),
    "Check": lambda topic, group: health_pb2.HealthCheckRequest(),
    "Watch": lambda topic, group: health_pb2.HealthCheckRequest(),
    "List": lambda topic, group: health_pb2.HealthListRequest(),
    "ServerReflectionInfo": lambda topic, group: reflection_pb2.ServerReflectionRequest(list_services=""),
}
# Requests that name neither a topic nor a group.
NAMELESS = {
    "ListTopics", "ListConsumerGroups", "InitProducer", "HealthCheck", "Check", "Watch", "List", "ServerReflectionInfo",
    *(method.name for method in OURS[1].methods),
}

Outcome = tuple[int, str, str]
DENIED = (int(Code.PERMISSION_DENIED), Reason.ACCESS_DENIED)


class World:
    """A broker with a topic and a group, and for each role a key that is good and one that has expired."""

    def __init__(self, broker: BrokerProcess, secured: Secured):
        self.channel = grpc.secure_channel(broker.address, secured.tls())
        self.good: dict[str, str] = {}
        self.expired: dict[str, str] = {}
        admin = (("authorization", f"Bearer {secured.token()}"),)
        access = access_pb2_grpc.AccessServiceStub(self.channel)
        for role, entries in ROLES.items():
            for keys, lifetime_ms in ((self.good, 0), (self.expired, 1)):
                request = access_pb2.CreateApiKeyRequest(name=role, lifetime_ms=lifetime_ms)
                keys[role] = access.CreateApiKey(request, metadata=admin).key
            acls = [
                access_pb2.Acl(principal=f"key:{role}", effect=_A.ACL_EFFECT_ALLOW, operation=operation,
                               resource=resource, name=name, pattern=_A.ACL_PATTERN_PREFIX if name else 0)
                for operation, resource, name in entries]
            if acls:
                access.CreateAcls(access_pb2.CreateAclsRequest(acls=acls), metadata=admin)
        stub = broker.stub()
        for topic in (TOPIC, FOREIGN_TOPIC):
            stub.CreateTopic(pb.CreateTopicRequest(name=topic))
            for group in (GROUP, FOREIGN_GROUP):
                stub.CommitOffset(pb.CommitOffsetRequest(
                    group_id=group, offsets=[pb.TopicPartitionOffset(topic=topic, offset=0)]))
        time.sleep(0.002)

    def metadata(self, role: str, state: str) -> tuple[tuple[str, str], ...]:
        key = {"none": "", "bad": self.good[role][:-1] + "~", "expired": self.expired[role], "right": self.good[role]}
        return (("x-api-key", key[state]),) if key[state] else ()

    def ask(self, method: MethodDescriptor, request: Any, metadata: tuple[tuple[str, str], ...]) -> tuple[Outcome, Any]:
        """Code, reason, message; and the first response, if there was one."""
        kind = grpc_kind(method)
        path = f"/{method.containing_service.full_name}/{method.name}"
        call = getattr(self.channel, kind)(path, None, method.output_type._concrete_class.FromString)
        data = request.SerializeToString()
        sent = iter([data]) if method.client_streaming else data
        try:
            if not method.server_streaming:
                return (0, "", ""), call(sent, metadata=metadata, timeout=DEADLINE_S)
            stream = call(sent, metadata=metadata, timeout=DEADLINE_S)
            first = next(iter(stream), None)
            if method.name == "Watch":
                stream.cancel()
            else:
                list(stream)
            if method.name == "ProduceMessageStream" and first.code:
                return (first.code, first.reason, first.error), None
            return (0, "", ""), first
        except grpc.RpcError as failure:
            return (failure.code().value[0], error_info(failure).reason, failure.details()), None


def grpc_kind(method: MethodDescriptor) -> str:
    return f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, front: str) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("matrix")
    secured = Secured(directory / "tls")
    broker = BrokerProcess(directory / "broker", secured=secured).start()
    made = World(broker, secured)
    yield made
    made.channel.close()
    broker.terminate()
    broker.check()


@pytest.mark.parametrize("name", METHODS)
def test_who_may_call_what(world: World, name: str) -> None:
    method, expected = METHODS[name], EXPECTED[name]
    request = REQUESTS[method.name](TOPIC, GROUP)
    for role, state in itertools.product(ROLES, ("none", "bad", "expired", "right")):
        (code, reason, message), _ = world.ask(method, request, world.metadata(role, state))
        case = f"{role}, {state}: {code} {reason} {message}"
        if expected == OPEN:
            assert code == 0, case
        elif state != "right":
            wanted = {"none": "CREDENTIALS_MISSING", "bad": "CREDENTIALS_INVALID", "expired": "CREDENTIALS_EXPIRED"}
            assert (code, reason) == (Code.UNAUTHENTICATED, wanted[state]), case
        elif role in expected:
            assert code not in (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED), case
        else:
            assert (code, reason) == DENIED, case


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.name not in NAMELESS])
def test_what_is_not_seen_can_not_be_told_from_what_is_not_there(world: World, name: str) -> None:
    """For a role with as much as the method needs, elsewhere: about what exists and what does not it is told the same.
    """
    method, expected = METHODS[name], EXPECTED[name]
    assert isinstance(expected, set)
    for role in sorted(expected) + ["nobody"]:
        told = set()
        for topic, group in ((FOREIGN_TOPIC, FOREIGN_GROUP), ("another", "another")):
            (code, reason, message), _ = world.ask(
                method, REQUESTS[method.name](topic, group), world.metadata(role, "right"))
            assert (code, reason) == DENIED, (role, message)
            told.add(message.replace("foreign", "another"))
        assert len(told) == 1, told


def test_lists_tell_what_may_be_seen(world: World) -> None:
    def told(name: str, role: str, request: Any) -> Any:
        method = METHODS[f"takhin.v1.TakhinService.{name}"]
        outcome, response = world.ask(method, request, world.metadata(role, "right"))
        assert outcome[0] == 0, outcome
        return response

    for role in ROLES:
        topics = [TOPIC] if role in SEES_TOPICS else []
        assert list(told("ListTopics", role, pb.ListTopicsRequest()).topics) == topics
        described = told("DescribeTopics", role, pb.DescribeTopicsRequest()).topics
        assert [each.name for each in described] == topics
        groups = told("ListConsumerGroups", role, pb.ListConsumerGroupsRequest()).groups
        assert [each.group_id for each in groups] == ([GROUP] if role in SEES_GROUPS else [])
        if role in SEES_GROUPS:
            offsets = told("FetchOffsets", role, pb.FetchOffsetsRequest(group_id=GROUP)).offsets
            assert [each.topic for each in offsets] == topics, "the group has committed another one, too"


def test_a_reset_of_all_reaches_no_hidden_topic(world: World) -> None:
    method = METHODS["takhin.v1.TakhinService.ResetOffsets"]
    request = pb.ResetOffsetsRequest(group_id=GROUP, earliest=True)
    (code, reason, message), _ = world.ask(method, request, world.metadata("member", "right"))
    assert (code, reason) == DENIED
    assert FOREIGN_TOPIC not in message


def test_an_unnamed_producer_needs_some_topic(world: World) -> None:
    method = METHODS["takhin.v1.TakhinService.InitProducer"]
    for role in ROLES:
        (code, reason, _), _ = world.ask(method, pb.InitProducerRequest(), world.metadata(role, "right"))
        assert (code, reason) == ((0, "") if role in PRODUCERS else DENIED), role


def test_every_method_has_a_rule() -> None:
    assert set(RULES) == {method.name for service in OURS for method in service.methods}
    assert sum(len(service.methods) for service in OURS) == len(RULES), "a name in both services"
    for service in OURS:
        for method in service.methods:
            rule = RULES[method.name]
            assert isinstance(rule, Open | Streamed | Rule)
            if isinstance(rule, Rule):
                assert grpc_kind(method) == "unary_unary"
                assert rule.request.DESCRIPTOR == method.input_type
                assert rule.response is None or rule.response.DESCRIPTOR == method.output_type


def test_a_method_without_a_rule_is_not_served() -> None:
    async def handler(request: bytes, call: Any) -> bytes:
        return request

    guard = Guard(cast(Broker, SimpleNamespace(access=None)), None)
    for path in ("/takhin.v1.TakhinService/New", "/another.v1.Service/GetTopic"):
        with pytest.raises(ValueError, match="no rule"):
            guard.guarded([Method(path, Kind.UNARY, handler)])


def test_without_authentication_the_methods_are_as_they_were() -> None:
    """Not one call more on the way of a record."""
    broker = SimpleNamespace(producing=SimpleNamespace(produce=None, appending=None))
    methods = takhin_methods(cast(Broker, broker))
    guarded = Guard(cast(Broker, broker), None).guarded(methods)
    pairs = zip(guarded, methods, strict=True)
    wrapped = {each.path.rpartition("/")[2] for each, before in pairs if each is not before}
    assert wrapped == {
        name for name, rule in RULES.items() if isinstance(rule, Rule) and rule.audited
    } - {method.name for method in OURS[1].methods}
    assert wrapped == {
        "CreateTopic", "DeleteTopic", "UpdateTopic", "TruncatePartition", "DeleteConsumerGroup", "ResetOffsets",
        "InitProducer"}


def test_paths_of_the_table_are_those_of_the_descriptors() -> None:
    assert set(EXPECTED) == set(METHODS)
    assert set(REQUESTS) == {method.name for method in METHODS.values()}
