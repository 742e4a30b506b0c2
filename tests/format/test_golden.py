"""The golden files: what this version writes, and what every later one must read."""

import hashlib

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from takhin.codec.batch import BATCH_HEADER_SIZE, SEGMENT_HEADER_SIZE, Batch, read_batch
from takhin.v1 import takhin_pb2 as pb
from tests.format.make_golden import CREATED_MS, GOLDEN, HEADERS, SECOND_BATCH, SUMS, THIRD_BATCH, golden_files
from tests.model import codec_model

NAMES = sorted(path.name for path in GOLDEN.glob("*.log"))


def batches_of(data: bytes) -> list[Batch]:
    """The batches behind a segment's header; every byte belongs to one."""
    batches = []
    position = SEGMENT_HEADER_SIZE
    while position < len(data):
        batches.append(read_batch(data, position))
        position += BATCH_HEADER_SIZE + batches[-1].payload_bytes
    assert position == len(data)
    return batches


def test_the_files_are_those_of_the_sums() -> None:
    listed = dict(reversed(line.split("  ")) for line in SUMS.read_text().splitlines())
    assert sorted(listed) == sorted(path.name for path in GOLDEN.iterdir() if path != SUMS)
    for name, digest in listed.items():
        assert hashlib.sha256((GOLDEN / name).read_bytes()).hexdigest() == digest


def test_todays_code_still_writes_them() -> None:
    written = golden_files()
    assert sorted(written) == NAMES
    for name, data in written.items():
        assert (GOLDEN / name).read_bytes() == data, name


def test_one_batch() -> None:
    data = (GOLDEN / "one_batch.log").read_bytes()
    assert data.startswith(codec_model.encode_segment_header(1, 0, 0, CREATED_MS))
    (batch,) = batches_of(data)
    assert (batch.base_offset, batch.next_offset, batch.record_count) == (0, 2, 2)
    assert (batch.append_time_ms, batch.max_timestamp_ms) == (CREATED_MS + 250, CREATED_MS + 250)
    assert (batch.epoch, batch.durable_offset, batch.flags) == (1, 0, 0)
    assert (batch.producer_id, batch.producer_epoch, batch.producer_sequence) == (-1, -1, -1)
    response = pb.ConsumeMessagesResponse.FromString(data)
    assert (response.segment.topic_id, response.segment.partition, response.segment.base_offset) == (1, 0, 0)
    assert list(response.records) == [
        pb.Record(key=b"user-1", value=b"hello", timestamp=CREATED_MS + 250),
        pb.Record(
            value=b"", headers=[pb.RecordHeader(key="trace", value=b"\x01")], timestamp=CREATED_MS + 123, offset=1
        ),
    ]


def test_several_batches() -> None:
    data = (GOLDEN / "several_batches.log").read_bytes()
    assert data.startswith(codec_model.encode_segment_header(42, 5, 1000, CREATED_MS))
    batches = batches_of(data)
    assert [batch.base_offset for batch in batches] == [1000, 1007, 1008, 1068]
    assert [batch.record_count for batch in batches] == [7, 1, 60, 3]
    assert [batch.next_offset for batch in batches] == [1007, 1008, 1068, 1071]
    assert [batch.epoch for batch in batches] == [1, 1, 2, 2]
    assert [batch.durable_offset for batch in batches] == [1000, 1007, 1007, 1068]
    assert [batch.append_time_ms - CREATED_MS for batch in batches] == [1000, 2000, 3000, 2500]
    assert [batch.max_timestamp_ms for batch in batches] == [CREATED_MS + 1000, 8, CREATED_MS + 3000, CREATED_MS + 2500]
    response = pb.ConsumeMessagesResponse.FromString(data)
    assert (response.segment.topic_id, response.segment.partition, response.segment.base_offset) == (42, 5, 1000)
    assert [record.offset for record in response.records] == list(range(1000, 1071))
    assert {record.partition for record in response.records} == {5}


def test_what_the_records_of_several_batches_say() -> None:
    records = pb.ConsumeMessagesResponse.FromString((GOLDEN / "several_batches.log").read_bytes()).records
    tombstone, empty, nothing, empty_key, with_headers, old, own_offset, unusual = records[:8]
    assert tombstone.key == b"tombstone" and not tombstone.HasField("value")
    assert empty.HasField("value") and empty.value == b""
    assert not nothing.HasField("key") and not nothing.HasField("value")
    assert empty_key.HasField("key") and (empty_key.key, empty_key.value) == (b"", b"\x00")
    assert list(with_headers.headers) == HEADERS
    assert (old.value, old.timestamp) == (b"before 1970", -86_400_000)
    assert (own_offset.offset, own_offset.partition, own_offset.timestamp) == (1006, 5, CREATED_MS - 1)
    assert (unusual.key, unusual.value, unusual.timestamp, unusual.offset) == (b"key", b"last", 8, 1007)
    assert [record.timestamp for record in records[:5]] == [CREATED_MS + 1000] * 5
    assert [(one.key, one.value) for one in records[8:68]] == [(one.key, one.value) for one in SECOND_BATCH]
    assert [one.value for one in records[68:]] == [one.value for one in THIRD_BATCH]


@pytest.mark.parametrize("name", NAMES)
def test_the_model_reads_what_the_code_reads(name: str) -> None:
    data = (GOLDEN / name).read_bytes()
    position = SEGMENT_HEADER_SIZE
    stored: list[bytes] = []
    for batch in batches_of(data):
        header, records = codec_model.read_batch(data, position)
        assert vars(header) == {field: getattr(batch, field) for field in vars(header)}
        stored += records
        position += BATCH_HEADER_SIZE + batch.payload_bytes
    response = pb.ConsumeMessagesResponse.FromString(data)
    assert [pb.Record.FromString(record) for record in stored] == list(response.records)


@pytest.mark.parametrize("name", NAMES)
def test_a_client_that_knows_only_the_base_sees_the_records(name: str) -> None:
    """One generated before ConsumeMessagesResponse had more than five fields skips the headers."""
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    (message,) = (one for one in file.message_type if one.name == "ConsumeMessagesResponse")
    base = [field for field in message.field if field.number <= 5]
    del message.field[:]
    message.field.extend(base)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    old = message_factory.GetMessageClass(pool.FindMessageTypeByName("takhin.v1.ConsumeMessagesResponse"))
    data = (GOLDEN / name).read_bytes()
    seen = [record.SerializeToString() for record in old.FromString(data).records]
    assert seen == [record.SerializeToString() for record in pb.ConsumeMessagesResponse.FromString(data).records]
