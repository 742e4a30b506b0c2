"""TransactionRequest: read as protobuf means it, bounded before it is built; and its response."""

import random

import pytest
from google.protobuf.message import DecodeError

from takhin.codec.transaction import TransactionRequest, encode_transaction
from takhin.errors import Code, InvalidArgument, Reason, ResourceExhausted, TakhinError
from takhin.v1 import takhin_pb2 as pb
from tests.codec.strategies import bytes_field, varint_field


def some_request(chance: random.Random) -> pb.ProduceTransactionRequest:
    request = pb.ProduceTransactionRequest(
        group_id=chance.choice(("", "g", "gruppe-ä")), member_id=chance.choice(("", "m")),
        generation=chance.choice((0, 7, -1, 2**31 - 1)), timeout_ms=chance.choice((0, 250)),
    )
    for number in range(chance.randrange(4)):
        request.appends.add(
            topic=f"t{number}", partition=number - 1, required_acks=-1, record=pb.Record(value=chance.randbytes(20))
        )
    for number in range(chance.randrange(4)):
        request.offsets.add(topic=f"s{number}", partition=number, offset=chance.choice((0, 1, -1, 2**53)))
    return request


def check_same(read: TransactionRequest, meant: pb.ProduceTransactionRequest) -> None:
    assert (read.group_id, read.member_id) == (meant.group_id, meant.member_id)
    assert (read.generation, read.timeout_ms) == (meant.generation, meant.timeout_ms)
    assert read.offsets == [(each.topic, each.partition, each.offset) for each in meant.offsets]
    assert [pb.ProduceMessageRequest.FromString(each) for each in read.appends] == list(meant.appends)


@pytest.mark.parametrize("seed", range(50))
def test_it_is_what_protobuf_reads(seed: int) -> None:
    chance = random.Random(seed)
    one, other = some_request(chance), some_request(chance)
    # Two messages one behind the other are one: lists are joined, of the rest the last counts.
    data = one.SerializeToString() + bytes_field(99, b"unknown") + other.SerializeToString()
    check_same(TransactionRequest(data, 100), pb.ProduceTransactionRequest.FromString(data))


@pytest.mark.parametrize("seed", range(300))
def test_what_is_cut_or_changed_is_refused_or_read_as_protobuf_does(seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(some_request(chance).SerializeToString() + some_request(chance).SerializeToString())
    if seed % 2 or not data:
        del data[chance.randrange(len(data) + 1):]
    else:
        data[chance.randrange(len(data))] = chance.randrange(256)
    try:
        read = TransactionRequest(bytes(data), 100)
    except InvalidArgument as refusal:
        assert refusal.reason is Reason.MALFORMED_REQUEST
        return
    try:
        meant = pb.ProduceTransactionRequest.FromString(bytes(data))
    except DecodeError:
        # Appends are looked into when their turn comes: a fault in one of them is found then.
        for each in read.appends:
            try:
                pb.ProduceMessageRequest.FromString(each)
            except DecodeError:
                return
        raise
    check_same(read, meant)


@pytest.mark.parametrize("data", [
    varint_field(1, 1), varint_field(2, 1), bytes_field(3, varint_field(1, 1)), bytes_field(3, bytes_field(2, b"")),
    bytes_field(3, bytes_field(3, b"")), bytes_field(5, b""), varint_field(5, 1 << 31), bytes_field(2, b"\xff"),
    bytes_field(3, bytes_field(1, b"\xed\xa0\x80")), bytes_field(4, b"\xc0\x80"), bytes_field(1, b"abc")[:-1],
    varint_field(6, 1 << 40), bytes_field(3, b"\x08"),
])
def test_what_can_not_be_read(data: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        TransactionRequest(data, 10)
    assert caught.value.reason is Reason.MALFORMED_REQUEST


@pytest.mark.parametrize("number", [1, 3])
def test_more_parts_than_allowed(number: int) -> None:
    TransactionRequest(bytes_field(number, b"") * 10, 10)
    with pytest.raises(ResourceExhausted) as caught:
        TransactionRequest(bytes_field(number, b"") * 11, 10)
    refusal: TakhinError = caught.value
    assert (refusal.reason, refusal.code) == (Reason.TRANSACTION_TOO_LARGE, Code.RESOURCE_EXHAUSTED)
    assert refusal.metadata == {"max_partitions": "10"}


def test_the_response() -> None:
    answers = [pb.ProduceMessageResponse(topic="t" * size, offset=size) for size in (0, 1, 200, 20_000)]
    encoded = encode_transaction([each.SerializeToString() for each in answers])
    assert pb.ProduceTransactionResponse.FromString(encoded) == pb.ProduceTransactionResponse(appends=answers)
    assert encode_transaction([]) == b""
