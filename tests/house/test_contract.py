"""The base of the contract is fixed: clients that exist, in any language, were generated from these numbers.

Fields, messages and RPCs may be added; nothing that stands here may change or go. The table is written out by hand, so
that a change of the .proto alone, its generated code included, does not pass.
"""

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, ServiceDescriptor

from takhin.v1 import takhin_pb2

# message: {field: (number, type)}
BASE_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "TopicPartitionOffset": {"topic": (1, "string"), "partition": (2, "int32"), "offset": (3, "int64")},
    "RecordHeader": {"key": (1, "string"), "value": (2, "bytes")},
    "Record": {
        "key": (1, "bytes"), "value": (2, "bytes"), "headers": (3, "repeated RecordHeader"), "timestamp": (4, "int64"),
        "offset": (5, "int64"), "partition": (6, "int32"),
    },
    "CreateTopicRequest": {
        "name": (1, "string"), "num_partitions": (2, "int32"), "replication_factor": (3, "int32"),
        "configs": (4, "map<string,string>"),
    },
    "CreateTopicResponse": {"success": (1, "bool"), "error": (2, "string")},
    "DeleteTopicRequest": {"name": (1, "string")},
    "DeleteTopicResponse": {"success": (1, "bool"), "error": (2, "string")},
    "ListTopicsRequest": {},
    "ListTopicsResponse": {"topics": (1, "repeated string")},
    "GetTopicRequest": {"name": (1, "string")},
    "TopicInfo": {
        "name": (1, "string"), "num_partitions": (2, "int32"), "replication_factor": (3, "int32"),
        "partitions": (4, "map<int32,PartitionInfo>"),
    },
    "PartitionInfo": {
        "partition_id": (1, "int32"), "beginning_offset": (2, "int64"), "end_offset": (3, "int64"),
        "leader": (4, "int32"), "replicas": (5, "repeated int32"), "isr": (6, "repeated int32"),
    },
    "GetTopicResponse": {"topic": (1, "TopicInfo"), "error": (2, "string")},
    "DescribeTopicsRequest": {"topics": (1, "repeated string")},
    "DescribeTopicsResponse": {"topics": (1, "repeated TopicInfo")},
    "ProduceMessageRequest": {
        "topic": (1, "string"), "partition": (2, "int32"), "record": (3, "Record"), "required_acks": (4, "int32"),
        "timeout_ms": (5, "int32"),
    },
    "ProduceMessageResponse": {
        "topic": (1, "string"), "partition": (2, "int32"), "offset": (3, "int64"), "timestamp": (4, "int64"),
        "error": (5, "string"),
    },
    "ConsumeMessagesRequest": {
        "topic": (1, "string"), "partition": (2, "int32"), "offset": (3, "int64"), "max_bytes": (4, "int32"),
        "min_bytes": (5, "int32"), "max_wait_ms": (6, "int32"),
    },
    "ConsumeMessagesResponse": {
        "topic": (1, "string"), "partition": (2, "int32"), "high_watermark": (3, "int64"),
        "records": (4, "repeated Record"), "error": (5, "string"),
    },
    "CommitOffsetRequest": {"group_id": (1, "string"), "offsets": (2, "repeated TopicPartitionOffset")},
    "CommitOffsetResponse": {"success": (1, "bool"), "error": (2, "string")},
    "ListConsumerGroupsRequest": {},
    "ConsumerGroupInfo": {
        "group_id": (1, "string"), "state": (2, "string"), "protocol_type": (3, "string"), "member_count": (4, "int32"),
    },
    "ListConsumerGroupsResponse": {"groups": (1, "repeated ConsumerGroupInfo")},
    "DescribeConsumerGroupRequest": {"group_id": (1, "string")},
    "ConsumerGroupMember": {
        "member_id": (1, "string"), "client_id": (2, "string"), "client_host": (3, "string"),
        "assignments": (4, "repeated TopicPartitionOffset"),
    },
    "DescribeConsumerGroupResponse": {
        "group_id": (1, "string"), "state": (2, "string"), "protocol_type": (3, "string"),
        "members": (4, "repeated ConsumerGroupMember"), "error": (5, "string"),
    },
    "DeleteConsumerGroupRequest": {"group_id": (1, "string")},
    "DeleteConsumerGroupResponse": {"success": (1, "bool"), "error": (2, "string")},
    "GetPartitionOffsetsRequest": {"topic": (1, "string"), "partition": (2, "int32")},
    "GetPartitionOffsetsResponse": {
        "topic": (1, "string"), "partition": (2, "int32"), "beginning_offset": (3, "int64"), "end_offset": (4, "int64"),
        "error": (5, "string"),
    },
    "HealthCheckRequest": {},
    "HealthCheckResponse": {"status": (1, "string"), "version": (2, "string"), "uptime_seconds": (3, "int64")},
}

UNARY, SERVER_STREAM, BIDI = (False, False), (False, True), (True, True)  # client streams, server streams

# RPC: kind. Each takes the message named after it and Request, and gives the one named after it and Response ...
BASE_RPCS: dict[str, tuple[bool, bool]] = {
    "CreateTopic": UNARY,
    "DeleteTopic": UNARY,
    "ListTopics": UNARY,
    "GetTopic": UNARY,
    "DescribeTopics": UNARY,
    "ProduceMessage": UNARY,
    "ProduceMessageStream": BIDI,
    "ConsumeMessages": SERVER_STREAM,
    "CommitOffset": UNARY,
    "ListConsumerGroups": UNARY,
    "DescribeConsumerGroup": UNARY,
    "DeleteConsumerGroup": UNARY,
    "GetPartitionOffsets": UNARY,
    "HealthCheck": UNARY,
}
# ... but for this one.
MESSAGES_OF = {"ProduceMessageStream": "ProduceMessage"}

# Told apart from an empty value, with the same bytes on the wire: a record without a value is a tombstone.
WITH_PRESENCE = {("Record", "key"), ("Record", "value")}

_PROTO = descriptor_pb2.FieldDescriptorProto
_SCALARS = {number: name.removeprefix("TYPE_").lower() for name, number in _PROTO.Type.items()}


def type_of(field: FieldDescriptor) -> str:
    """As the .proto writes it, `optional` apart: "int32", "repeated Record", "map<string,string>"."""
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        return f"map<{type_of(message.fields_by_name['key'])},{type_of(message.fields_by_name['value'])}>"
    named = message or field.enum_type
    name = named.name if named is not None else _SCALARS[field.type]
    return f"repeated {name}" if field.is_repeated else name


def changes(message: Descriptor, base: dict[str, tuple[int, str]]) -> list[str]:
    """Where a message departs from its base."""
    found = []
    for name, (number, kind) in base.items():
        field = message.fields_by_name.get(name)
        if field is None:
            found.append(f"{name} is gone")
        elif (field.number, type_of(field)) != (number, kind):
            found.append(f"{name} is {field.number} {type_of(field)}, not {number} {kind}")
        elif field.containing_oneof is not None and (message.name, name) not in WITH_PRESENCE:
            found.append(f"{name} is optional or in a oneof")
    return found


def rpc_changes(service: ServiceDescriptor, base: dict[str, tuple[bool, bool]]) -> list[str]:
    found = []
    for name, kind in base.items():
        method = service.methods_by_name.get(name)
        if method is None:
            found.append(f"{name} is gone")
            continue
        stem = MESSAGES_OF.get(name, name)
        if (method.client_streaming, method.server_streaming) != kind:
            found.append(f"{name} streams otherwise")
        if (method.input_type.name, method.output_type.name) != (f"{stem}Request", f"{stem}Response"):
            found.append(f"{name} has other messages")
    return found


@pytest.mark.parametrize("name", BASE_MESSAGES)
def test_the_base_messages_stand(name: str) -> None:
    assert name in takhin_pb2.DESCRIPTOR.message_types_by_name, "it is gone"
    assert not changes(takhin_pb2.DESCRIPTOR.message_types_by_name[name], BASE_MESSAGES[name])


def test_the_base_rpcs_stand() -> None:
    assert takhin_pb2.DESCRIPTOR.package == "takhin.v1"
    assert not rpc_changes(takhin_pb2.DESCRIPTOR.services_by_name["TakhinService"], BASE_RPCS)


def test_a_record_tells_absent_from_empty() -> None:
    for message, name in WITH_PRESENCE:
        assert takhin_pb2.DESCRIPTOR.message_types_by_name[message].fields_by_name[name].has_presence


def test_times_tell_absent_from_0() -> None:
    for message, name, number in [
        ("ConsumeMessagesRequest", "start_time_ms", 8), ("GetPartitionOffsetsRequest", "timestamp_ms", 3),
        ("GetPartitionOffsetsResponse", "offset_for_time", 6),
    ]:
        field = takhin_pb2.DESCRIPTOR.message_types_by_name[message].fields_by_name[name]
        assert (field.number, type_of(field), field.has_presence) == (number, "int64", True)


def test_a_change_is_found() -> None:
    file = descriptor_pb2.FileDescriptorProto()
    takhin_pb2.DESCRIPTOR.CopyToProto(file)
    messages = {message.name: {field.name: field for field in message.field} for message in file.message_type}
    messages["Record"]["offset"].number = 16
    messages["Record"]["timestamp"].type = _PROTO.TYPE_UINT64
    messages["RecordHeader"]["key"].name = "name"
    messages["ListTopicsResponse"]["topics"].label = _PROTO.LABEL_OPTIONAL
    service = file.service[0]
    service.method[0].server_streaming = True
    service.method[1].output_type = ".takhin.v1.GetTopicResponse"
    del service.method[2]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    changed = {name: changes(pool.FindMessageTypeByName(f"takhin.v1.{name}"), BASE_MESSAGES[name])
               for name in BASE_MESSAGES}
    assert {name: found for name, found in changed.items() if found} == {
        "Record": ["timestamp is 4 uint64, not 4 int64", "offset is 16 int64, not 5 int64"],
        "RecordHeader": ["key is gone"],
        "ListTopicsResponse": ["topics is 1 string, not 1 repeated string"],
    }
    assert rpc_changes(pool.FindServiceByName("takhin.v1.TakhinService"), BASE_RPCS) == [
        "CreateTopic streams otherwise", "DeleteTopic has other messages", "ListTopics is gone",
    ]
