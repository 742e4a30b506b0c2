"""Bad input, one table: each gets its status, its reason and a message that names what was wrong; and all goes on."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message

from bench import http2
from takhin.errors import Reason
from takhin.rpc.status import MAX_MESSAGE_BYTES
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import (
    DEADLINE_S,
    MIB,
    SERVICE,
    BrokerProcess,
    chunk,
    commit,
    create_topic,
    fetch_offsets,
    offsets,
    produce,
    read,
    refused,
    scalar,
    values,
    varint,
)
from tests.conftest import StartBroker
from tests.secured import IS_DEFAULT

Code = grpc.StatusCode
INVALID = Code.INVALID_ARGUMENT
# Two partitions, five records in partition 0; a group has committed 3 of them.
TOPIC, GROUP = "there", "group"
SENT = [b"%d" % number for number in range(5)]

HOT = ("ProduceMessage", "ConsumeMessages")
NAMED = {  # the requests that begin with a topic's name
    "CreateTopic", "DeleteTopic", "GetTopic", "DescribeTopics", "GetPartitionOffsets",
    "TruncatePartition", "UpdateTopic", *HOT,
}
METHODS = {method.name: method.input_type.name for method in pb.DESCRIPTOR.services_by_name["TakhinService"].methods}


@dataclass(frozen=True)
class Case:
    """request: as bytes. told: what the message names. metadata: what ErrorInfo has at least."""

    name: str
    method: str
    request: bytes
    code: grpc.StatusCode
    reason: Reason
    told: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)


def case(
    name: str, method: str, request: bytes | Message, code: grpc.StatusCode, reason: Reason, *told: str, **metadata: str
) -> Case:
    raw = request if isinstance(request, bytes) else request.SerializeToString()
    return Case(f"{method}: {name}", method, raw, code, reason, told, metadata)


# Bytes that are no protobuf message, to each method

NO_MESSAGE = {
    "a tag cut short": b"\xff",
    "a length cut short": b"\x0a\x80",
    "a value cut short": b"\x0a\x05ab",
    "a fixed64 cut short": b"\x09\x00\x00",
    "a length beyond the end": b"\x0a\x03ab",
    "a length of 2 GiB": b"\x0a" + varint(2**31),
    "a length of 2 GiB less 1": b"\x0a" + varint(2**31 - 1) + b"ab",
    "a length of 2^64 - 1": b"\x0a" + varint(2**64 - 1) + b"ab",
    "a varint of 11 bytes": b"\x10" + b"\x80" * 10 + b"\x01",
    "field number 0": b"\x00\x01",
    "wire type 6": b"\x0e\x00",
    "wire type 7": b"\x0f\x00",
    "the end of a group that was not begun": b"\x0c",
    "groups 10,000 deep": b"\xa3\x06" * 10_000 + b"\xa4\x06" * 10_000,
    "a tag of more than 32 bits": varint(2**35 | 2) + b"\x00",
}
# What the generated classes skip, or take as protobuf allows; the requests that the broker reads itself are stricter.
NOT_SO_STRICT = {
    "a group": b"\xa3\x06\xa4\x06",
    "a tag longer than it need be": b"\x8a\x00\x00",
    "a name as a number": b"\x08\x01",
}


def malformed() -> Iterator[Case]:
    for method, message in METHODS.items():
        if method == "ProduceMessageStream":
            continue
        for name, raw in NO_MESSAGE.items() if method not in HOT else (NO_MESSAGE | NOT_SO_STRICT).items():
            if name == "field number 0" and not pb.DESCRIPTOR.message_types_by_name[message].fields:
                continue  # protobuf's own runtime takes it there, as one more field that is not known
            yield case(name, method, raw, INVALID, Reason.MALFORMED_REQUEST, message, "can't be read")
        if method in NAMED:
            yield case("UTF-8", method, chunk(1, b"\xff\xfe"), INVALID, Reason.MALFORMED_REQUEST, message, "UTF-8")
    overlong = chunk(1, b"\xc0\xafx")
    for method in HOT:
        yield case("overlong UTF-8", method, overlong, INVALID, Reason.MALFORMED_REQUEST, "UTF-8")
        yield case("a surrogate", method, chunk(1, b"\xed\xa0\x80"), INVALID, Reason.MALFORMED_REQUEST, "UTF-8")
        wide = chunk(1, TOPIC.encode()) + scalar(2, 2**40) + chunk(3, b"") * (method == "ProduceMessage")
        yield case("an int32 beyond 32 bits", method, wide, INVALID, Reason.MALFORMED_REQUEST, "32 bits")
    yield case(
        "UTF-8 in the group", "CommitOffset", chunk(1, b"\xff"), INVALID, Reason.MALFORMED_REQUEST,
        "CommitOffsetRequest", "UTF-8")
    yield case(
        "UTF-8 in an entry's topic", "CommitOffset", chunk(1, b"g") + chunk(2, chunk(1, b"\xff")), INVALID,
        Reason.MALFORMED_REQUEST, "CommitOffsetRequest", "UTF-8")
    yield case(
        "UTF-8 in a config", "CreateTopic", chunk(1, b"new") + chunk(4, chunk(1, b"retention.ms") + chunk(2, b"\xff")),
        INVALID, Reason.MALFORMED_REQUEST, "CreateTopicRequest", "UTF-8")


# Names

BAD_NAMES = {
    "../x": "'../x'", "": "''", "x" * 250: "'xxxx", ".": "'.'", "..": "'..'", "a/b": "'a/b'", "a b": "'a b'",
    "new\nline": r"'new\nline'", "nul\0": r"'nul\x00'", "größe": "größe", "\u202e": r"\u202e", "x" * 5 * MIB: "'xxxx",
}


def names() -> Iterator[Case]:
    record = pb.Record(value=b"v")
    for name, shown in BAD_NAMES.items():
        entry, named = pb.TopicPartitionOffset(topic=name), pb.TopicPartition(topic=name)
        requests: dict[str, Message] = {
            "CreateTopic": pb.CreateTopicRequest(name=name),
            "DeleteTopic": pb.DeleteTopicRequest(name=name),
            "GetTopic": pb.GetTopicRequest(name=name),
            "DescribeTopics": pb.DescribeTopicsRequest(topics=[TOPIC, name]),
            "GetPartitionOffsets": pb.GetPartitionOffsetsRequest(topic=name),
            "TruncatePartition": pb.TruncatePartitionRequest(topic=name),
            "ProduceMessage": pb.ProduceMessageRequest(topic=name, record=record, required_acks=1),
            "ConsumeMessages": pb.ConsumeMessagesRequest(topic=name, offset=-1),
            "CommitOffset": pb.CommitOffsetRequest(group_id=GROUP, offsets=[entry]),
            "FetchOffsets": pb.FetchOffsetsRequest(group_id=GROUP, partitions=[named]),
            "ResetOffsets": pb.ResetOffsetsRequest(group_id=GROUP, topics=[TOPIC, name], latest=True),
            "UpdateTopic": pb.UpdateTopicRequest(name=name, num_partitions=3),
        }
        for method, request in requests.items():
            if method == "ConsumeMessages" and len(name) > MIB:
                yield case(
                    "topic of 5 MiB", method, request, Code.RESOURCE_EXHAUSTED, Reason.MESSAGE_TOO_LARGE, "65536",
                    limit_bytes="65536")
                continue
            yield case(
                f"topic {name[:20]!r}", method, request, INVALID, Reason.INVALID_TOPIC_NAME, shown, "1 to 249")
    missing = "no-such-topic"
    entry, named = pb.TopicPartitionOffset(topic=missing), pb.TopicPartition(topic=missing)
    for method, request in {
        "DeleteTopic": pb.DeleteTopicRequest(name=missing),
        "GetTopic": pb.GetTopicRequest(name=missing),
        "DescribeTopics": pb.DescribeTopicsRequest(topics=[TOPIC, missing]),
        "GetPartitionOffsets": pb.GetPartitionOffsetsRequest(topic=missing),
        "TruncatePartition": pb.TruncatePartitionRequest(topic=missing),
        "ProduceMessage": pb.ProduceMessageRequest(topic=missing, record=record, required_acks=1),
        "ConsumeMessages": pb.ConsumeMessagesRequest(topic=missing, offset=-1),
        "CommitOffset": pb.CommitOffsetRequest(group_id=GROUP, offsets=[entry]),
        "FetchOffsets": pb.FetchOffsetsRequest(group_id=GROUP, partitions=[named]),
        "ResetOffsets": pb.ResetOffsetsRequest(group_id=GROUP, partitions=[named], latest=True),
        "UpdateTopic": pb.UpdateTopicRequest(name=missing, num_partitions=3),
    }.items():
        yield case(
            "a topic that is not there", method, request, Code.NOT_FOUND, Reason.TOPIC_NOT_FOUND, f"'{missing}'",
            topic=missing)
    for group in "", "g" * 250, "a\tb":
        for method, request in {
            "CommitOffset": pb.CommitOffsetRequest(group_id=group, offsets=[pb.TopicPartitionOffset(topic=TOPIC)]),
            "DescribeConsumerGroup": pb.DescribeConsumerGroupRequest(group_id=group),
            "DeleteConsumerGroup": pb.DeleteConsumerGroupRequest(group_id=group),
            "FetchOffsets": pb.FetchOffsetsRequest(group_id=group),
            "ResetOffsets": pb.ResetOffsetsRequest(group_id=group, topics=[TOPIC], latest=True),
        }.items():
            yield case(
                f"group {group[:20]!r}", method, request, INVALID, Reason.INVALID_GROUP_ID,
                f"({len(group)} characters)", "1 to 249 printable")
    for method, request in {
        "DescribeConsumerGroup": pb.DescribeConsumerGroupRequest(group_id="nobody"),
        "DeleteConsumerGroup": pb.DeleteConsumerGroupRequest(group_id="nobody"),
        "FetchOffsets": pb.FetchOffsetsRequest(group_id="nobody"),
        "ResetOffsets": pb.ResetOffsetsRequest(group_id="nobody", latest=True),
    }.items():
        yield case("an unknown group", method, request, Code.NOT_FOUND, Reason.GROUP_NOT_FOUND, "'nobody'")


# Partitions and offsets


def partitions() -> Iterator[Case]:
    for number, code, reason in [
        (-2, INVALID, Reason.INVALID_PARTITION), (-(2**31), INVALID, Reason.INVALID_PARTITION),
        (2, Code.NOT_FOUND, Reason.PARTITION_NOT_FOUND), (2**31 - 1, Code.NOT_FOUND, Reason.PARTITION_NOT_FOUND),
        (-1, INVALID, Reason.INVALID_PARTITION),
    ]:
        entry = pb.TopicPartitionOffset(topic=TOPIC, partition=number)
        named = pb.TopicPartition(topic=TOPIC, partition=number)
        for method, request in {
            "ProduceMessage": pb.ProduceMessageRequest(topic=TOPIC, partition=number, record=pb.Record(value=b"v")),
            "ConsumeMessages": pb.ConsumeMessagesRequest(topic=TOPIC, partition=number, offset=-1),
            "GetPartitionOffsets": pb.GetPartitionOffsetsRequest(topic=TOPIC, partition=number),
            "TruncatePartition": pb.TruncatePartitionRequest(topic=TOPIC, partition=number),
            "CommitOffset": pb.CommitOffsetRequest(group_id=GROUP, offsets=[entry]),
            "FetchOffsets": pb.FetchOffsetsRequest(group_id=GROUP, partitions=[named]),
            "ResetOffsets": pb.ResetOffsetsRequest(group_id=GROUP, partitions=[named], latest=True),
        }.items():
            if number != -1 or method != "ProduceMessage":
                yield case(
                    f"partition {number}", method, request, code, reason, f"partition {number}", "from 0 to 1",
                    topic=TOPIC, partition=str(number))


def consuming() -> Iterator[Case]:
    def request(**fields: int) -> pb.ConsumeMessagesRequest:
        return pb.ConsumeMessagesRequest(topic=TOPIC, **fields)

    method = "ConsumeMessages"
    for offset in -3, -(2**31), -(2**63):
        yield case(
            f"offset {offset}", method, request(offset=offset), INVALID, Reason.INVALID_OFFSET, f"offset {offset}",
            "-1", "-2")
    for offset in 6, 2**53, 2**63 - 1:
        yield case(
            f"offset {offset}", method, request(offset=offset), Code.OUT_OF_RANGE, Reason.OFFSET_OUT_OF_RANGE,
            f"offset {offset}", "0 to 5", log_start_offset="0", end_offset="5")
    for name in "max_bytes", "min_bytes", "max_wait_ms", "max_records":
        for value in -1, -(2**31):
            yield case(
                f"{name} {value}", method, request(**{name: value}), INVALID, Reason.INVALID_LIMIT, f"{name} {value}",
                "negative")
    yield case("last_epoch -1", method, request(last_epoch=-1), INVALID, Reason.INVALID_EPOCH, "last_epoch -1")
    for beside in {"offset": 1}, {"offset": -1}, {"offset": -2}, {"last_epoch": 1}, {"last_epoch": 0}:
        yield case(
            f"start_time_ms and {beside}", method, request(start_time_ms=0, **beside), INVALID, Reason.OFFSET_AND_TIME,
            "in place of an offset", "offset at 0", "last_epoch")


def truncating() -> Iterator[Case]:
    method = "TruncatePartition"
    for offset in -2, -(2**63):
        yield case(
            f"before {offset}", method, pb.TruncatePartitionRequest(topic=TOPIC, before_offset=offset), INVALID,
            Reason.INVALID_OFFSET, f"before_offset {offset}", "-1 is the end")
    for offset in 6, 2**53, 2**63 - 1:
        yield case(
            f"before {offset}", method, pb.TruncatePartitionRequest(topic=TOPIC, before_offset=offset),
            Code.OUT_OF_RANGE, Reason.OFFSET_OUT_OF_RANGE, f"offset {offset}", "0 to 5", topic=TOPIC, partition="0",
            log_start_offset="0", end_offset="5")


# Producing


def producing() -> Iterator[Case]:
    def request(*fields: bytes, **more: object) -> bytes:
        start = pb.ProduceMessageRequest(topic=TOPIC, required_acks=1, **more)
        return start.SerializeToString() + b"".join(fields)

    method = "ProduceMessage"
    one, several = chunk(3, chunk(2, b"v")), chunk(6, chunk(2, b"v"))
    for acks in 7, -2, 2, 2**31 - 1, -(2**31):
        yield case(
            f"acks {acks}", method, request(one, scalar(4, acks)), INVALID, Reason.INVALID_ACKS,
            f"required_acks {acks}", "0 (none), 1 (written) or -1 (durable)")
    yield case("timeout_ms -1", method, request(one, timeout_ms=-1), INVALID, Reason.INVALID_LIMIT, "timeout_ms -1")
    yield case("neither", method, request(), INVALID, Reason.NO_RECORD, "field 3 (record)", "field 6 (records)")
    for both in one + several, several + one:
        yield case("both", method, request(both), INVALID, Reason.RECORD_AND_RECORDS, "not both")
    yield case("record twice", method, request(one, one), INVALID, Reason.MALFORMED_REQUEST, "more than once")
    yield case(
        "a record too large", method, request(chunk(3, chunk(2, b"x" * MIB))), Code.RESOURCE_EXHAUSTED,
        Reason.RECORD_TOO_LARGE, f"{MIB + 4} bytes", f"{MIB}", topic=TOPIC, max_record_bytes=str(MIB))
    yield case(
        "too many records", method, request(chunk(6, b"") * 100_001), INVALID, Reason.TOO_MANY_RECORDS, "100000",
        max_records="100000")
    for name, (record, told) in BAD_RECORDS.items():
        yield case(
            f"record: {name}", method, request(chunk(3, record)), INVALID, Reason.MALFORMED_RECORD, "record 0", told,
            record_index="0")
        yield case(
            f"records: {name}", method, request(several, chunk(6, record), several), INVALID, Reason.MALFORMED_RECORD,
            "record 1", told, record_index="1")


# One for each rule of ingest; every way to break them is tried in tests/codec.
BAD_RECORDS = {
    "swallows what follows": (b"\x12\x06", "a length reaches beyond"),
    "a field cut short": (chunk(2, b"v") + b"\x20", "in the middle of a field"),
    "a group": (b"\x3b\x3c", "a group"),
    "wire type 6": (b"\x16", "wrong wire type"),
    "field 0": (b"\x00\x00", "the number 0"),
    "a tag not minimal": (b"\x92\x00\x00", "tag"),
    "a length not minimal": (b"\x12\x80\x00", "longer than it need be"),
    "a varint not minimal": (b"\x20\x80\x00", "longer than it need be"),
    "a varint of 11 bytes": (b"\x20" + b"\x80" * 10 + b"\x01", "longer than 64 bits"),
    "a length of 2 GiB": (b"\x12" + varint(2**31), "a length reaches beyond"),
    "a value as a number": (scalar(2, 1), "wrong wire type"),
    "a timestamp beyond 2^53": (scalar(4, 2**53), "2^53-1"),
    "an offset below -2^53": (scalar(5, -(2**53)), "2^53-1"),
    "a partition beyond 32 bits": (scalar(6, 2**31), "32 bits"),
    "field 7": (scalar(7, 1), "from 7 to 15"),
    "field 15": (chunk(15, b""), "from 7 to 15"),
    "a header key's UTF-8": (chunk(3, chunk(1, b"\xff")), "UTF-8"),
    "a header key with NUL": (chunk(3, chunk(1, b"a\0b")), "NUL"),
    "a header key with a byte order mark": (chunk(3, chunk(1, b"\xef\xbb\xbfa")), "byte order mark"),
    "a header's value as a number": (chunk(3, scalar(2, 1)), "wrong wire type"),
}


# Topics


def creating() -> Iterator[Case]:
    def request(**fields: object) -> pb.CreateTopicRequest:
        return pb.CreateTopicRequest(name="new", **fields)

    method = "CreateTopic"
    for factor in 3, 2, -1, 2**31 - 1:
        yield case(
            f"replication_factor {factor}", method, request(replication_factor=factor), INVALID,
            Reason.INVALID_REPLICATION_FACTOR, f"replication_factor {factor}", "one process", "0 or 1")
    for count in 2_000_000_000, 10_001, -1, -(2**31):
        yield case(
            f"{count} partitions", method, request(num_partitions=count), INVALID, Reason.INVALID_PARTITION_COUNT,
            f"num_partitions {count}", "10000")
    yield case(
        "an unknown config", method, request(configs={"retention.mz": "1"}), INVALID, Reason.INVALID_CONFIG,
        "'retention.mz'", "retention.ms", config="retention.mz")
    yield case(
        "a config without a name", method, request(configs={"": "1"}), INVALID, Reason.INVALID_CONFIG, "''", config="")
    yield case(
        "a config with a long name", method, request(configs={"x" * MIB: "1"}), INVALID, Reason.INVALID_CONFIG, "'xxx")
    for config, bad, told in BAD_CONFIGS:
        yield case(
            f"{config} = {bad[:20]!r}", method, request(configs={config: bad}), INVALID, Reason.INVALID_CONFIG, config,
            repr(bad) if len(bad) < 80 else bad[:20], told, config=config)
    yield case(
        "a good config beside a bad one", method, request(configs={"retention.ms": "1", "segment.ms": "x"}), INVALID,
        Reason.INVALID_CONFIG, "segment.ms", config="segment.ms")
    yield case(
        "creating twice", method, pb.CreateTopicRequest(name=TOPIC), Code.ALREADY_EXISTS, Reason.TOPIC_EXISTS,
        f"'{TOPIC}'", topic=TOPIC)


BAD_CONFIGS = [
    *[("retention.ms", bad, "decimal integer") for bad in
      ("abc", "", " 5", "5 ", "1e3", "1.0", "+1", "05", "0x10", "-2", "٣", "9" * 20, "9" * 5000)],
    ("retention.bytes", "-2", "decimal integer"), ("segment.bytes", "1023", "1024"),
    ("segment.bytes", str(2**31), "decimal integer"), ("segment.ms", "0", "1 to"), ("flush.ms", "0", "1 to"),
    ("max.message.bytes", "0", "1 to"), ("max.message.bytes", str(10 * MIB), str(10 * MIB - 65536)),
    ("message.timestamp.type", "createtime", "CreateTime or LogAppendTime"), ("cleanup.policy", "compact", "delete"),
    ("compression.type", "zstd", "producer"), ("flush.messages", "1", "flush.ms"),
]


# Committing


def committing() -> Iterator[Case]:
    def request(*entries: tuple[str, int, int]) -> pb.CommitOffsetRequest:
        made = [pb.TopicPartitionOffset(topic=topic, partition=number, offset=at) for topic, number, at in entries]
        return pb.CommitOffsetRequest(group_id=GROUP, offsets=made)

    method = "CommitOffset"
    for offset in 6, 2**63 - 1, -1, -(2**63):
        yield case(
            f"offset {offset}", method, request((TOPIC, 0, offset)), Code.OUT_OF_RANGE, Reason.OFFSET_OUT_OF_RANGE,
            f"offset {offset}", "0 to 5", topic=TOPIC, partition="0", end_offset="5")
    yield case(
        "behind the committed", method, request((TOPIC, 0, 2)), Code.FAILED_PRECONDITION,
        Reason.OFFSET_BEHIND_COMMITTED, "2", "3", topic=TOPIC, partition="0", committed_offset="3")
    yield case(
        "a partition twice", method, request((TOPIC, 0, 4), (TOPIC, 1, 0), (TOPIC, 0, 5)), INVALID,
        Reason.DUPLICATE_PARTITION, f"'{TOPIC}'", "twice", topic=TOPIC, partition="0")
    yield case("no offsets", method, request(), INVALID, Reason.MALFORMED_REQUEST, "no offsets")
    yield case(
        "a good one and a bad one", method, request((TOPIC, 0, 5), (TOPIC, 1, 1)), Code.OUT_OF_RANGE,
        Reason.OFFSET_OUT_OF_RANGE, "partition 1", partition="1")


# Offsets of groups


def resetting() -> Iterator[Case]:
    def request(*numbers: int, **fields: object) -> pb.ResetOffsetsRequest:
        named = [pb.TopicPartition(topic=TOPIC, partition=number) for number in numbers]
        return pb.ResetOffsetsRequest(group_id=GROUP, partitions=named, **fields)

    method = "ResetOffsets"
    for fields in {}, {"earliest": False}, {"latest": False}:
        yield case(
            f"to {fields}", method, request(0, **fields), INVALID, Reason.INVALID_RESET, "earliest", "latest", "offset",
            "time_ms", "shift_by")
    for offset in 6, 2**63 - 1, -1, -(2**63):
        for dry_run in False, True:
            yield case(
                f"offset {offset}{' dry' * dry_run}", method, request(0, offset=offset, dry_run=dry_run),
                Code.OUT_OF_RANGE, Reason.OFFSET_OUT_OF_RANGE, f"offset {offset}", "0 to 5", topic=TOPIC, partition="0",
                log_start_offset="0", end_offset="5")
    yield case(
        "a good one and one without a commit", method, request(0, 1, shift_by=1), Code.FAILED_PRECONDITION,
        Reason.NO_COMMITTED_OFFSET, f"'{GROUP}'", topic=TOPIC, partition="1", group_id=GROUP)
    yield case(
        "a partition twice", method, request(0, 1, 0, latest=True), INVALID, Reason.DUPLICATE_PARTITION, "twice",
        topic=TOPIC, partition="0")
    yield case(
        "a partition and its topic", method, request(1, topics=[TOPIC], latest=True), INVALID,
        Reason.DUPLICATE_PARTITION, "twice", topic=TOPIC, partition="1")
    many = [pb.TopicPartition(topic=TOPIC)] * 10_001
    yield case(
        "10,001 partitions", "FetchOffsets", pb.FetchOffsetsRequest(group_id=GROUP, partitions=many), INVALID,
        Reason.TOO_MANY_PARTITIONS, "10001", max_partitions="10000")


def updating() -> Iterator[Case]:
    def request(**fields: object) -> pb.UpdateTopicRequest:
        return pb.UpdateTopicRequest(name=TOPIC, **fields)

    method = "UpdateTopic"
    for count in 2_000_000_000, 10_001, -1, -(2**31):
        yield case(
            f"{count} partitions", method, request(num_partitions=count), INVALID, Reason.INVALID_PARTITION_COUNT,
            f"num_partitions {count}", "10000")
    yield case(
        "fewer partitions", method, request(num_partitions=1, configs={"segment.ms": "5"}), INVALID,
        Reason.INVALID_PARTITION_COUNT, "num_partitions 1", "the 2", topic=TOPIC, num_partitions="2")
    yield case("nothing", method, request(), INVALID, Reason.NOTHING_TO_UPDATE, "configs")
    for config, bad, told in BAD_CONFIGS:
        yield case(
            f"{config} = {bad[:20]!r}", method, request(num_partitions=3, configs={config: bad}), INVALID,
            Reason.INVALID_CONFIG, config, told, config=config)
    for name in "retention.mz", "", "x" * MIB:
        for fields in {"reset_configs": ["segment.ms", name]}, {"configs": {name: "1"}}:
            yield case(
                f"config {name[:20]!r} in {next(iter(fields))}", method, request(num_partitions=3, **fields), INVALID,
                Reason.INVALID_CONFIG, "unknown topic config", repr(name)[:20])
    yield case(
        "set and reset", method, request(configs={"flush.ms": "1"}, reset_configs=["flush.ms"]), INVALID,
        Reason.INVALID_CONFIG, "flush.ms", config="flush.ms")


TABLE = [
    *malformed(), *names(), *partitions(), *consuming(), *truncating(), *producing(), *creating(), *committing(),
    *resetting(), *updating(),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, front: str) -> Iterator[BrokerProcess]:
    broker = BrokerProcess(tmp_path_factory.mktemp("bad-input")).start()
    stub = broker.stub()
    create_topic(stub, TOPIC, 2)
    create_topic(stub, "beside")
    produce(stub, TOPIC, *SENT, acks=-1)
    commit(stub, GROUP, (TOPIC, 0, 3))
    yield broker
    broker.terminate()
    broker.check()


@pytest.fixture(scope="module")
def caller(prepared: BrokerProcess) -> grpc.Channel:
    return prepared.channel()


def digest(directory: Path) -> dict[str, str]:
    """Every segment of the topic, and what it holds."""
    files = sorted((directory / "topics" / "1").rglob("*.log"))
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.name.encode("ascii", "backslashreplace").decode())
def test_bad_input(prepared: BrokerProcess, caller: grpc.Channel, bad: Case) -> None:
    before = digest(prepared.data_dir)
    with refused(bad.code, bad.reason) as refusal:
        if bad.method == "ConsumeMessages":
            list(caller.unary_stream(f"/{SERVICE}/{bad.method}")(bad.request, timeout=DEADLINE_S))
        else:
            caller.unary_unary(f"/{SERVICE}/{bad.method}")(bad.request, timeout=DEADLINE_S)
    for told in bad.told:
        assert told in refusal.message
    assert refusal.message.isprintable() and len(refusal.message.encode()) <= MAX_MESSAGE_BYTES
    assert refusal.metadata.items() >= bad.metadata.items()

    assert digest(prepared.data_dir) == before
    stub = prepared.stub()
    assert (offsets(stub, TOPIC).end_offset, offsets(stub, TOPIC, 1).end_offset) == (5, 0)
    answer = produce(stub, "beside", b"good")
    assert values(read(stub, "beside", offset=answer.offset)) == [b"good"]


def test_after_the_table_all_is_as_it_was(prepared: BrokerProcess) -> None:
    stub = prepared.stub()
    assert values(read(stub, TOPIC)) == SENT
    assert list(stub.ListTopics(pb.ListTopicsRequest(), timeout=DEADLINE_S).topics) == ["beside", TOPIC]
    groups = stub.ListConsumerGroups(pb.ListConsumerGroupsRequest(), timeout=DEADLINE_S).groups
    assert [group.group_id for group in groups] == [GROUP]
    assert [(each.partition, each.committed_offset) for each in fetch_offsets(stub, GROUP)] == [(0, 3)]
    topic = stub.GetTopic(pb.GetTopicRequest(name=TOPIC), timeout=DEADLINE_S).topic
    assert (topic.num_partitions, dict(topic.configs)) == (2, {}), "nothing was updated"
    assert produce(stub, TOPIC, b"next", acks=-1).offset == 5


def test_the_table_has_what_it_must_have() -> None:
    """Every method, and every reason that a request alone can cause on a broker with its default limits."""
    assert {each.method for each in TABLE} == set(METHODS) - {"ProduceMessageStream"}
    assert len(METHODS) == 21
    seen = {each.reason for each in TABLE}
    elsewhere = {Reason.KEYS_SPAN_PARTITIONS}  # tests/rpc/test_produce.py
    elsewhere |= {Reason.INVALID_PRODUCER, Reason.INVALID_PRODUCER_NAME}  # tests/rpc/test_idempotence.py
    # tests/rpc/test_subscribe_bad_input.py
    elsewhere |= {Reason.NO_TOPICS, Reason.INVALID_MEMBER_NAME, Reason.INVALID_ASSIGNOR, Reason.INVALID_START_FROM}
    elsewhere |= {Reason.INVALID_COMMIT_MODE, Reason.INVALID_CREDIT}
    # tests/rpc/test_access_rpc.py
    elsewhere |= {Reason.INVALID_PRINCIPAL, Reason.INVALID_ACL, Reason.INVALID_EXPIRY}
    elsewhere |= {Reason.KEY_NOT_FOUND, Reason.ACL_NOT_FOUND}
    from_requests = {reason for reason in Reason if reason.startswith(("INVALID_", "MALFORMED_", "NO_", "DUPLICATE_"))}
    from_requests |= {Reason.RECORD_AND_RECORDS, Reason.OFFSET_AND_TIME, Reason.TOO_MANY_RECORDS}
    from_requests |= {Reason.RECORD_TOO_LARGE, Reason.TOPIC_EXISTS}
    from_requests |= {reason for reason in Reason if reason.endswith("_NOT_FOUND")} - {Reason.SERVICE_NOT_FOUND}
    from_requests |= {Reason.OFFSET_OUT_OF_RANGE, Reason.OFFSET_BEHIND_COMMITTED}
    from_requests |= {Reason.TOO_MANY_PARTITIONS, Reason.NOTHING_TO_UPDATE}
    assert seen >= from_requests - elsewhere


@pytest.mark.skipif(IS_DEFAULT, reason="frames by hand are sent without TLS")
def test_what_a_stranger_sends_makes_no_line_of_another_kind(start_broker: StartBroker) -> None:
    """Of the log: each is an object, whatever is in the headers."""
    broker = start_broker("--log-format", "json")
    for name, value in ("grpc-timeout", "-1S"), ("grpc-timeout", "x" * 100), ("grpc-encoding", "br"), ("a", "\n{"):
        with http2.Connection(broker.address) as connection:
            connection.send(http2.open_call(connection.next_stream(), http2.call_headers("/x/y", (name, value))))
            connection.send(http2.message(connection.last_stream, b"", ends=True))
            while (got := connection.read_frame()) is not None and got.kind not in (http2.HEADERS, http2.RST_STREAM):
                pass  # until it is answered, one way or the other
    broker.stub().ListTopics(pb.ListTopicsRequest(), timeout=DEADLINE_S)
    broker.terminate()
    lines = [json.loads(line) for line in broker.stderr.splitlines()]
    assert lines[-1]["message"] == "stopped"
