"""Many damaged requests from a seeded generator: one kind of error, and the model's verdict on each.

Hypothesis looks for the small and odd; this looks at many. TAKHIN_TEST_EFFORT multiplies how many.
"""

import random

import pytest

from takhin.codec.batch import BatchError, encode_batch, read_batch
from takhin.codec.messages import ConsumeRequest, ProduceRequest
from takhin.codec.wire import RecordError, check_record_bytes
from takhin.errors import InvalidArgument, Reason
from takhin.v1 import takhin_pb2 as pb
from tests.codec.strategies import EFFORT, any_field, batch_of, bytes_field, header, one_record, varint_field
from tests.model import codec_model

SEEDS = range(4 * EFFORT)
INPUTS_PER_SEED = 2500
MAX_RECORDS = 5

RECORDS = [
    b"",
    bytes_field(1, b"key") + bytes_field(2, b"value"),
    header(b"trace", b"\x00\xff") + header("é\U0001f600".encode()) + varint_field(4, 1_700_000_000_000),
    varint_field(5, 7) + varint_field(6, -1) + varint_field(4, -(2**53) + 1),
    bytes_field(2, bytes(200)) + varint_field(16, 2**64 - 1) + any_field(17, 5) + any_field(300, 1),
]
REQUESTS = [
    *(one_record(record) for record in RECORDS),
    batch_of(*RECORDS),
    batch_of(*RECORDS[1:3]) + varint_field(2, -1) + varint_field(4, -1) + varint_field(5, 30_000),
    pb.ProduceMessageRequest(topic="t", partition=3, required_acks=1, record=pb.Record(value=b"v")).SerializeToString(),
]
CONSUME_REQUESTS = [
    pb.ConsumeMessagesRequest(topic="clicks", partition=2, offset=-1, max_bytes=1 << 20, max_wait_ms=500, last_epoch=0)
    .SerializeToString(),
    pb.ConsumeMessagesRequest(topic="é", offset=2**40, min_bytes=1, until_end=True, max_records=9).SerializeToString(),
]


def damage(original: bytes, chance: random.Random) -> bytes:
    """A copy with one to four bytes or ranges changed."""
    data = bytearray(original)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = chance.choice((0, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        elif kind == 2:
            data[at:at] = chance.randbytes(chance.randint(1, 4))
        elif kind == 3:
            del data[at : at + chance.randint(1, 4)]
        elif kind == 4:
            other = chance.randrange(len(data) + 1)
            data[at:at] = data[other : other + chance.randint(1, 16)]
        else:
            del data[at:]
    return bytes(data)


def random_inputs(originals: list[bytes], seed: int) -> list[bytes]:
    chance = random.Random(seed)
    damaged = [damage(chance.choice(originals), chance) for _ in range(INPUTS_PER_SEED)]
    return damaged + [chance.randbytes(chance.randint(0, 60)) for _ in range(INPUTS_PER_SEED // 5)]


@pytest.mark.parametrize("seed", SEEDS)
def test_produce_requests(seed: int) -> None:
    request = ProduceRequest(MAX_RECORDS)
    verdicts = {True: 0, False: 0}
    for data in random_inputs(REQUESTS, seed):
        refused: str | None = None
        try:
            request.read(data)
        except InvalidArgument as refusal:
            refused = refusal.reason
        expected: str | None = None
        try:
            model = codec_model.read_produce_request(data, MAX_RECORDS)
        except codec_model.Refused as refusal:
            expected = refusal.reason
        assert refused == expected, data
        verdicts[refused is None] += 1
        if refused is None:
            assert [request.record(i) for i in range(request.record_count)] == model.encoded, data
            parsed = pb.ProduceMessageRequest.FromString(data)
            assert parsed.topic.encode() == request.topic, data
            assert (parsed.partition, parsed.required_acks) == (request.partition, request.required_acks), data
            records = [parsed.record] if parsed.HasField("record") else list(parsed.records)
            assert records == [pb.Record.FromString(encoded) for encoded in model.encoded], data
    # Neither side is empty, or this would try nothing.
    assert min(verdicts.values()) > INPUTS_PER_SEED // 50


@pytest.mark.parametrize("seed", SEEDS)
def test_consume_requests(seed: int) -> None:
    for data in random_inputs(CONSUME_REQUESTS, seed):
        refused = False
        try:
            request = ConsumeRequest(data)
        except InvalidArgument as refusal:
            assert refusal.reason == Reason.MALFORMED_REQUEST
            refused = True
        try:
            model = codec_model.read_consume_request(data)
        except codec_model.Refused:
            assert refused, data
            continue
        assert not refused, data
        assert {name: getattr(request, name) for name in vars(model)} == vars(model), data


@pytest.mark.parametrize("seed", SEEDS)
def test_stored_records_are_read_by_every_rule(seed: int) -> None:
    """Whatever is let through can be stored, and what is stored reads back with the broker's numbers."""
    chance = random.Random(seed)
    for _ in range(INPUTS_PER_SEED):
        record = damage(chance.choice(RECORDS), chance)
        try:
            _, timestamp_ms = check_record_bytes(record)
        except RecordError:
            continue
        offset = chance.choice((0, 127, 128, 2**53 - 2))
        data = encode_batch([record], offset, 5, 1234, 0, 0)
        assert read_batch(data).record_count == 1
        (stored,) = pb.ConsumeMessagesResponse.FromString(data).records
        assert (stored.offset, stored.partition, stored.timestamp) == (offset, 5, timestamp_ms or 1234), record


@pytest.mark.parametrize("seed", SEEDS)
def test_damaged_batches(seed: int) -> None:
    batch = encode_batch(RECORDS, 100, 1, 1_700_000_000_000, 2, 50)
    for data in random_inputs([batch], seed):
        if data[: len(batch)] == batch:
            continue
        with pytest.raises(BatchError):
            read_batch(data)
