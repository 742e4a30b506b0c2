"""Mutations that know protobuf's wire format: valid messages of every request, and what is nearly one."""

import random
import struct

from google.protobuf.message import Message

from takhin.v1 import takhin_pb2 as pb
from tests.codec.strategies import any_field, bytes_field, padded_varint, tag
from tests.model.codec_model import LENGTH, VARINT, encode_varint

# What breaks programs that count.
NUMBERS = [
    0, 1, 2, 127, 128, 255, 2**14, 2**21 - 1, 2**28, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 - 1, 2**53, 2**62,
    2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1,
]
NASTY = [
    b"", b"\0", b"\x80", b"\xff" * 10, b"\xff" * 9 + b"\x01", b"\xef\xbb\xbf", b"\xc0\x80", b"\xed\xa0\x80", b"..",
    b"/", b"t" * 250, b"\x12\x06", b"2g\x0dTKB1", b"%s%n", "é\U0001f600".encode(), b"\x0b\x0c", b"\x03\x04",
]

Field = tuple[int, int, bytes]


def fields_of(message: bytes) -> list[Field] | None:
    """(number, wire type, value's bytes) of each field; None when it is not a message."""
    fields: list[Field] = []
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire_type = key >> 3, key & 7
        start = at
        if wire_type == VARINT:
            _, at = _varint(message, at)
        elif wire_type == LENGTH:
            size, start = _varint(message, at)
            at = start + size
        elif wire_type in (1, 5):
            at += 8 if wire_type == 1 else 4
        else:
            return None
        if at > len(message) or number == 0 or key < 0:
            return None
        fields.append((number, wire_type, message[start:at]))
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, where it ends); an end beyond the data when it does not."""
    value = shift = 0
    while at < len(data) and shift < 70:
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
        shift += 7
    return -1, len(data) + 1


def message_of(fields: list[Field]) -> bytes:
    """The fields' bytes."""
    return b"".join(
        tag(number, wire_type) + (encode_varint(len(value)) if wire_type == LENGTH else b"") + value
        for number, wire_type, value in fields
    )


def mutated(message: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """A message with one to three changes; others: where to splice from."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        fields = fields_of(message)
        if fields and chance.random() < 0.8:
            message = _with_other_fields(fields, others, chance)
        else:
            message = _with_other_bytes(message, chance)
    return message


def _with_other_fields(fields: list[Field], others: list[bytes], chance: random.Random) -> bytes:
    at = chance.randrange(len(fields))
    number, wire_type, value = fields[at]
    before, after = message_of(fields[:at]), message_of(fields[at + 1 :])
    match chance.randrange(11):
        case 0:
            return before + after
        case 1:
            return before + message_of([fields[at]] * chance.choice((2, 3, 100))) + after
        case 2:
            chance.shuffle(fields)
            return message_of(fields)
        case 3:
            spliced = fields_of(chance.choice(others)) or fields
            return before + message_of([chance.choice(spliced)]) + after
        case 4 if wire_type == LENGTH:
            # A length that lies, up to sizes that overflow.
            lie = max(0, len(value) + chance.choice((-1, 1, 2**7, 2**31 - len(value), 2**32, 2**63, 2**64 - 1)))
            return before + tag(number, LENGTH) + encode_varint(lie % 2**64) + value + after
        case 5 if wire_type == VARINT:
            return before + tag(number, VARINT) + encode_varint(chance.choice(NUMBERS)) + after
        case 6 if wire_type == LENGTH:
            return before + bytes_field(number, mutated(value, others, chance)) + after
        case 7 if wire_type == LENGTH:
            return before + bytes_field(number, chance.choice(NASTY)) + after
        case 8:
            return before + any_field(chance.choice((0, 1, number, 15, 16, 2**29 - 1)), chance.randrange(8)) + after
        case 9:
            # A varint that is padded, or that has no end.
            small = chance.randrange(128)
            return before + tag(number, VARINT) + chance.choice((padded_varint(small, chance.randint(2, 11)), b"\x80"))
        case _:
            return before + tag(chance.randint(0, 20), wire_type) + message_of([fields[at]])[1:] + after


def _with_other_bytes(message: bytes, chance: random.Random) -> bytes:
    data = bytearray(message)
    at = chance.randrange(len(data) + 1)
    match chance.randrange(5):
        case 0 if at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        case 1:
            data[at:at] = chance.choice(NASTY)
        case 2:
            del data[at : at + chance.randint(1, 8)]
        case 3:
            del data[at:]
        case _:
            data[at : at + chance.randint(0, 3)] = chance.randbytes(chance.randint(1, 9))
    return bytes(data)


def lie(data: bytes, at: int, width: int, chance: random.Random) -> bytes:
    """A little-endian number of that width, replaced by one that breaks sums."""
    number = chance.choice(NUMBERS + [n - 1 for n in NUMBERS if n] + [len(data), len(data) - at])
    return data[:at] + struct.pack("<Q", number % 2**64)[:width] + data[at + width :]


RECORDS = [
    pb.Record(), pb.Record(key=b"key", value=b"value"), pb.Record(value=b"", timestamp=1_700_000_000_000),
    pb.Record(value=b"v" * 300, headers=[pb.RecordHeader(key="trace", value=b"\0\xff"), pb.RecordHeader(key="é")]),
]

# Valid ones of each RPC, for topic "t" with two partitions and group "g".
_MESSAGES: dict[str, list[Message]] = {
    "ProduceMessage": [
        *(pb.ProduceMessageRequest(topic="t", record=record, required_acks=acks)
          for record in RECORDS for acks in (0, 1, -1)),
        pb.ProduceMessageRequest(topic="t", partition=-1, records=RECORDS, timeout_ms=1000),
        pb.ProduceMessageRequest(topic="t", partition=1, records=RECORDS[:2], required_acks=1),
        *(pb.ProduceMessageRequest(
            topic="t", records=RECORDS[:2], required_acks=acks, producer=pb.ProducerState(id=1, sequence=sequence),
          ) for sequence, acks in ((0, 1), (2, 0), (4, -1), (6, 1))),
        pb.ProduceMessageRequest(topic="t", partition=1, record=RECORDS[1], expected_offset=0),
        pb.ProduceMessageRequest(
            topic="t", partition=1, record=RECORDS[1], expected_offset=3, producer=pb.ProducerState(id=2, epoch=1)
        ),
    ],
    "ProduceTransaction": [
        pb.ProduceTransactionRequest(
            appends=[pb.ProduceMessageRequest(topic="t", record=pb.Record(value=b"v"))], group_id="g",
            offsets=[pb.TopicPartitionOffset(topic="t")], timeout_ms=1000,
        ),
        pb.ProduceTransactionRequest(
            appends=[pb.ProduceMessageRequest(topic="t", partition=1, records=[pb.Record(key=b"k")], required_acks=-1)],
            member_id="m", generation=1,
        ),
    ],
    "InitProducer": [pb.InitProducerRequest(), pb.InitProducerRequest(name="n")],
    "ConsumeMessages": [
        pb.ConsumeMessagesRequest(topic="t", offset=-1, until_end=True),
        pb.ConsumeMessagesRequest(topic="t", partition=1, offset=0, max_bytes=200, max_records=5),
        pb.ConsumeMessagesRequest(topic="t", offset=-2, min_bytes=1, max_wait_ms=1, last_epoch=1, until_end=True),
    ],
    "CreateTopic": [
        pb.CreateTopicRequest(name="other", num_partitions=2, configs={"retention.ms": "1000"}),
        pb.CreateTopicRequest(name="t", num_partitions=1, replication_factor=1),
    ],
    "DeleteTopic": [pb.DeleteTopicRequest(name="other"), pb.DeleteTopicRequest(name="none")],
    "ListTopics": [pb.ListTopicsRequest()],
    "GetTopic": [pb.GetTopicRequest(name="t")],
    "DescribeTopics": [pb.DescribeTopicsRequest(topics=["t", "other"]), pb.DescribeTopicsRequest()],
    "UpdateTopic": [
        pb.UpdateTopicRequest(name="t", configs={"segment.ms": "1000"}, reset_configs=["flush.ms"]),
        pb.UpdateTopicRequest(name="other", num_partitions=3),
    ],
    "CommitOffset": [
        pb.CommitOffsetRequest(group_id="g", offsets=[pb.TopicPartitionOffset(topic="t", partition=0, offset=1)]),
        pb.CommitOffsetRequest(
            group_id="h", offsets=[pb.TopicPartitionOffset(topic="t", partition=number) for number in range(2)]
        ),
    ],
    "ListConsumerGroups": [pb.ListConsumerGroupsRequest()],
    "DescribeConsumerGroup": [pb.DescribeConsumerGroupRequest(group_id="g")],
    "DeleteConsumerGroup": [pb.DeleteConsumerGroupRequest(group_id="h")],
    "FetchOffsets": [
        pb.FetchOffsetsRequest(group_id="g"),
        pb.FetchOffsetsRequest(group_id="h", partitions=[pb.TopicPartition(topic="t", partition=1)]),
    ],
    "ResetOffsets": [
        pb.ResetOffsetsRequest(group_id="g", earliest=True, dry_run=True),
        pb.ResetOffsetsRequest(group_id="h", topics=["t"], latest=True),
        pb.ResetOffsetsRequest(group_id="g", partitions=[pb.TopicPartition(topic="t")], offset=1),
        pb.ResetOffsetsRequest(group_id="g", partitions=[pb.TopicPartition(topic="t")], time_ms=1_700_000_000_000),
        pb.ResetOffsetsRequest(group_id="g", shift_by=-1),
    ],
    "Subscribe": [
        pb.SubscribeRequest(start=pb.SubscribeStart(group_id="m", topics=["t"])),
        pb.SubscribeRequest(start=pb.SubscribeStart(
            group_id="m", topics=["t", "other"], client_id="c", start_from=pb.START_FROM_TIME, start_time_ms=1,
            assignor="range", credit_bytes=1000, commit_mode=pb.COMMIT_MODE_AUTO, member_id="c-1", instance_id="i",
            session_timeout_ms=1000, max_processing_ms=1000, max_bytes=100)),
        pb.SubscribeRequest(credit=pb.Credit(bytes=100)),
        pb.SubscribeRequest(commit=pb.CommitOffsets(
            id=7, offsets=[pb.TopicPartitionOffset(topic="t", partition=0, offset=1)])),
        pb.SubscribeRequest(pause=pb.Partitions(partitions=[pb.TopicPartition(topic="t", partition=1)])),
        pb.SubscribeRequest(resume=pb.Partitions()),
        pb.SubscribeRequest(seek=pb.Seek(offsets=[pb.TopicPartitionOffset(topic="t", partition=1, offset=-1)])),
        pb.SubscribeRequest(release=pb.Partitions()),
        pb.SubscribeRequest(pong=pb.Pong(id=1)),
        pb.SubscribeRequest(leave=pb.Leave()),
    ],
    "GetPartitionOffsets": [pb.GetPartitionOffsetsRequest(topic="t", partition=1)],
    "TruncatePartition": [pb.TruncatePartitionRequest(topic="t", partition=1, before_offset=1)],
    "HealthCheck": [pb.HealthCheckRequest()],
}
REQUESTS = {name: [message.SerializeToString() for message in messages] for name, messages in _MESSAGES.items()}
REQUESTS["ProduceMessageStream"] = REQUESTS["ProduceMessage"]
