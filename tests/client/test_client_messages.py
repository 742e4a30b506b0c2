"""Messages and records in bytes: the same as protobuf has them, and no bytes that could hurt."""

import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import takhin
from takhin.client.messages import decode_records, decode_subscribed, encode_record
from takhin.client.record_batch import RecordBatch
from takhin.codec.batch import encode_batch
from takhin.v1 import takhin_pb2 as pb

names = st.text(st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"]), max_size=10)
contents = st.none() | st.binary(max_size=50)
headers = st.lists(st.tuples(names, st.binary(max_size=10)), max_size=3)
times = st.integers(-(2**53) + 1, 2**53 - 1)
records = st.tuples(contents, contents, headers, times)


def as_proto(key: bytes | None, value: bytes | None, pairs: list[tuple[str, bytes]], timestamp_ms: int) -> pb.Record:
    made = pb.Record(key=key, value=value, timestamp=timestamp_ms)
    for name, content in pairs:
        made.headers.add(key=name, value=content)
    return made


@given(records)
def test_records_are_encoded_as_protobuf_does(given: tuple) -> None:
    request = pb.ProduceMessageRequest.FromString(encode_record(*given))
    assert list(request.records) == [as_proto(*given)]


@pytest.mark.parametrize(("given", "problem"), [
    ((b"", "text"), TypeError), ((1, b""), TypeError), ((b"", b"", {"a\0": b""}), ValueError),
    ((b"", b"", {"\ufeffa": b""}), ValueError), ((b"", b"", {"\ud800": b""}), ValueError),
    ((b"", b"", None, 2**53), ValueError), ((b"", b"", None, 2**70), OverflowError), ((b"", b"", None, "1"), TypeError),
])
def test_what_the_broker_would_refuse_is_refused_here(given: tuple, problem: type[Exception]) -> None:
    with pytest.raises(problem):
        encode_record(*given)


def response(batches: list[list[tuple]], epoch: int = 3, **fields: object) -> bytes:
    """As the broker would make it, partition 5."""
    made = pb.ConsumeMessagesResponse(topic="orders", partition=5, **fields).SerializeToString()
    offset = 0
    for batch in batches:
        encoded = [as_proto(*each).SerializeToString() for each in batch]
        made += encode_batch(encoded, offset, 5, 1_000, epoch, 0)
        offset += len(batch)
    return made


@given(st.lists(st.lists(records, min_size=1, max_size=4), min_size=1, max_size=4))
@settings(max_examples=100)
def test_messages_are_what_protobuf_reads(batches: list[list[tuple]]) -> None:
    data = response(batches, high_watermark=99, log_start_offset=7)
    expected = pb.ConsumeMessagesResponse.FromString(data)
    found = decode_records(data)
    assert found.damage is None and len(found) == len(expected.records) == sum(map(len, batches))
    assert (found.topic, found.partition, found.high_watermark, found.log_start_offset) == ("orders", 5, 99, 7)
    assert found.last_epoch == 3 and found.next_offset == len(found) and not found.caught_up
    for message, record in zip(found, expected.records, strict=True):
        assert message.offset == record.offset and message.timestamp_ms == record.timestamp
        assert message.key == (record.key if record.HasField("key") else None)
        assert message.value == (record.value if record.HasField("value") else None)
        assert message.headers == tuple((each.key, each.value) for each in record.headers)
        assert (message.topic, message.partition, message.epoch) == ("orders", 5, 3)
    assert found.values() == [message.value for message in found]


def test_a_message_is_a_small_frozen_object() -> None:
    (message,) = decode_records(response([[(b"k", b"v", [("h", b"x")], 1)]]))
    with pytest.raises(AttributeError):
        message.value = b"other"
    same = takhin.Message("orders", 5, 0, 1, b"k", b"v", [("h", b"x")], 3)
    assert message == same and hash(message) == hash(same) and message != takhin.Message("orders", 5, 0, 1, b"k", None)
    assert pickle.loads(pickle.dumps(message)) == message and message != 3
    assert repr(message) == "<Message orders/5@0 key=b'k' value=b'v'>"
    large = takhin.Message("orders", 5, 0, 1, None, bytes(100))
    assert len(repr(large)) < 260 and large.value is large.value
    assert message.value is message.value, "decoded once"


def test_a_part_of_what_came() -> None:
    data = response([[(None, b"%d" % number, [], 1)] for number in range(6)], caught_up=True)
    found = decode_records(data)
    assert found.caught_up and found.size_bytes == len(data)
    found.skip_before(2)
    found.keep_before(5)
    assert found.values() == [b"2", b"3", b"4"] and (found.first_offset, found.next_offset) == (2, 5)
    assert not found.caught_up and len(found) == 3 and found[0].value == b"2" and found[-1].value == b"4"
    found.keep_first(1)
    assert found.values() == [b"2"] and found.next_offset == 3
    found.skip_before(100)
    assert len(found) == 0 and list(found) == [] and found.first_offset == -1


def test_records_of_a_cut_batch_have_no_epoch() -> None:
    whole = pb.ConsumeMessagesResponse.FromString(response([[(None, b"a", [], 1), (None, b"b", [], 1)]]))
    del whole.batches[:]
    found = decode_records(whole.SerializeToString())
    assert found.values() == [b"a", b"b"] and found.last_epoch == -1 and found.damage is None


def test_every_flipped_bit_of_a_batch_is_noticed() -> None:
    data = response([[(b"k", b"v" * 20, [("h", b"x")], 1)] * 3])
    prefix = len(pb.ConsumeMessagesResponse(topic="orders", partition=5).SerializeToString())
    whole = decode_records(data)
    unnoticed = 0
    for place in range(prefix * 8, len(data) * 8):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        found = decode_records(bytes(damaged))
        if found.damage is None and list(found) == list(whole):
            unnoticed += 1
        # Of the header's own tag alone it can't be told: the records then look like those of a batch that was cut, and
        # are what they were.
        assert found.damage is not None or [m.value for m in found] in ([], whole.values()), place
    assert unnoticed == 0


def test_no_bytes_hurt() -> None:
    drawn = random.Random(5)
    data = response([[(b"k", b"v", [("h", b"x")], 1)] * 3] * 3)
    for _ in range(20_000):
        mutated = bytearray(data)
        for _ in range(drawn.randint(1, 6)):
            what = drawn.random()
            place = drawn.randrange(len(mutated))
            if what < 0.6:
                mutated[place] = drawn.randrange(256)
            elif what < 0.8:
                del mutated[place:place + drawn.randint(1, 9)]
            else:
                mutated[place:place] = drawn.randbytes(drawn.randint(1, 9))
        for check in True, False:
            found = decode_records(bytes(mutated), check)
            for message in found:
                message._content()
        decode_subscribed(bytes(mutated))
    for size in range(len(data)):
        decode_records(data[:size])


def test_records_of_a_subscription() -> None:
    data = response([[(None, b"v", [], 1)]])
    told = pb.SubscribeResponse(records=pb.ConsumeMessagesResponse(topic="orders"), credit_bytes=77)
    head = told.SerializeToString()
    assert decode_subscribed(head) is not None
    size = len(data).to_bytes(1, "big") if len(data) < 128 else bytes([len(data) & 127 | 128, len(data) >> 7])
    found = decode_subscribed(b"\x50\x4d" + b"\x22" + size + data)
    assert found is not None and found[0].values() == [b"v"] and found[1] == 77
    for other in (pb.SubscribeResponse(ping=pb.Ping(id=1)), pb.SubscribeResponse()):
        assert decode_subscribed(other.SerializeToString()) is None


def test_a_batch_knows_its_keys() -> None:
    batch = RecordBatch()
    for number in range(5):
        batch.add(encode_record(b"%d" % number if number % 2 else None, b"v"), None)
    assert batch.keys(4) == [None, b"1", None, b"3"] and batch.count == 5 and batch.size_bytes == len(batch.payload())
