"""ProduceRequest: what it tells of a request, which requests it refuses as a whole, and the partition of keys."""

import pytest

from takhin.codec.messages import ProduceRequest, murmur2
from takhin.errors import InvalidArgument, Reason
from takhin.v1 import takhin_pb2 as pb
from tests.codec.strategies import batch_of, bytes_field, one_record, varint_field

VALUE = bytes_field(2, b"value")


def keyed(key: bytes) -> bytes:
    return bytes_field(1, key) + VALUE


def refusal(data: bytes, max_records: int = 10) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        ProduceRequest(max_records).read(data)
    return caught.value


def test_one_record() -> None:
    request = ProduceRequest(10)
    request.read(
        pb.ProduceMessageRequest(
            topic="clicks", partition=-1, record=pb.Record(value=b"v"), required_acks=-1, timeout_ms=250
        ).SerializeToString()
    )
    assert (request.topic, request.partition, request.required_acks, request.timeout_ms) == (b"clicks", -1, -1, 250)
    assert (request.record_count, request.is_batch, request.largest_record_bytes) == (1, False, 3)
    assert request.record(0) == bytes_field(2, b"v")


def test_a_batch_of_one_is_a_batch() -> None:
    request = ProduceRequest(10)
    request.read(batch_of(VALUE))
    assert (request.record_count, request.is_batch) == (1, True)


def test_the_largest_record() -> None:
    request = ProduceRequest(10)
    request.read(batch_of(b"", bytes_field(2, bytes(1000)), VALUE))
    assert request.largest_record_bytes == len(bytes_field(2, bytes(1000)))


def test_absent_fields_are_zero() -> None:
    request = ProduceRequest(10)
    request.read(bytes_field(3, b""))
    assert (request.topic, request.partition, request.required_acks, request.timeout_ms) == (b"", 0, 0, 0)
    assert (request.record_count, request.largest_record_bytes) == (1, 0)


def test_each_read_forgets_the_one_before() -> None:
    request = ProduceRequest(10)
    request.read(varint_field(2, 5) + varint_field(4, 1) + varint_field(5, 9) + batch_of(VALUE, VALUE))
    request.read(bytes_field(3, b""))
    assert (request.topic, request.partition, request.required_acks, request.timeout_ms) == (b"", 0, 0, 0)
    assert (request.record_count, request.is_batch, request.largest_record_bytes) == (1, False, 0)
    with pytest.raises(InvalidArgument):
        request.read(b"")
    assert (request.record_count, request.largest_record_bytes) == (0, 0)


def test_the_request_is_kept_alive() -> None:
    request = ProduceRequest(10)
    request.read(bytes(bytearray(one_record(bytes_field(2, b"x" * 100_000)))))
    others = [bytes([n]) * 100_000 for n in range(50)]
    assert request.record(0) == bytes_field(2, b"x" * 100_000)
    assert len(others) == 50


@pytest.mark.parametrize("data", [b"", bytes_field(1, b"t"), varint_field(2, 1), bytes_field(16, b"x")])
def test_no_record(data: bytes) -> None:
    assert refusal(data).reason == Reason.NO_RECORD


@pytest.mark.parametrize(
    "data",
    [one_record(VALUE) + batch_of(VALUE), batch_of(VALUE) + one_record(VALUE), batch_of(b"", b"") + one_record(b"")],
)
def test_record_and_records(data: bytes) -> None:
    assert refusal(data).reason == Reason.RECORD_AND_RECORDS


def test_record_twice_would_be_merged_and_is_refused() -> None:
    twice = bytes_field(3, keyed(b"k")) + bytes_field(3, bytes_field(2, b"other"))
    merged = pb.ProduceMessageRequest.FromString(twice).record
    assert (merged.key, merged.value) == (b"k", b"other")
    refused = refusal(twice)
    assert refused.reason == Reason.MALFORMED_REQUEST
    assert "more than once" in refused.message


def test_too_many_records() -> None:
    for limit in (1, 2, 5000):
        request = ProduceRequest(limit)
        request.read(batch_of(*[VALUE] * limit))
        assert request.record_count == limit
        refused = refusal(batch_of(*[VALUE] * (limit + 1)), limit)
        assert refused.reason == Reason.TOO_MANY_RECORDS
        assert refused.metadata == {"max_records": str(limit)}


def test_room_for_records_grows_and_shrinks() -> None:
    request = ProduceRequest(100_000)
    for count in (1, 4096, 4097, 20_000, 1, 100_000, 4096):
        records = [varint_field(4, n + 1) for n in range(count)]
        request.read(batch_of(*records))
        assert request.record_count == count
        assert request.record(0) == records[0]
        assert request.record(count - 1) == records[-1]


def test_record_knows_its_bounds() -> None:
    request = ProduceRequest(10)
    with pytest.raises(IndexError):
        request.record(0)
    request.read(batch_of(VALUE, VALUE))
    with pytest.raises(IndexError):
        request.record(2)


def test_only_bytes_are_read() -> None:
    for other in (None, bytearray(one_record(VALUE)), memoryview(one_record(VALUE)), "text"):
        with pytest.raises(TypeError):
            ProduceRequest(10).read(other)  # type: ignore[arg-type]


# --- keys ---

# Those of Kafka's own test, UtilsTest.testMurmur2.
MURMUR2 = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "signed"), MURMUR2.items())
def test_murmur2_is_kafkas(key: bytes, signed: int) -> None:
    assert murmur2(key) == signed & 0xFFFFFFFF


@pytest.mark.parametrize(("key", "signed"), MURMUR2.items())
@pytest.mark.parametrize("num_partitions", [1, 2, 3, 10, 1000, 2**31 - 1])
def test_a_key_falls_where_kafkas_default_partitioner_puts_it(key: bytes, signed: int, num_partitions: int) -> None:
    request = ProduceRequest(10)
    # Kafka's Utils.toPositive clears the sign; it does not negate.
    expected = (signed & 0x7FFFFFFF) % num_partitions
    for data in (one_record(keyed(key)), batch_of(keyed(key), keyed(key))):
        request.read(data)
        assert request.key_partition(num_partitions) == expected


def test_no_key_asks_for_no_partition() -> None:
    request = ProduceRequest(10)
    request.read(batch_of(VALUE, b""))
    assert request.key_partition(10) == -1


def test_an_empty_key_is_a_key() -> None:
    request = ProduceRequest(10)
    for record in (keyed(b""), bytes_field(2, b"v") + bytes_field(1, b"")):
        request.read(one_record(record))
        assert request.key_partition(10) == (murmur2(b"") & 0x7FFFFFFF) % 10


def test_the_last_key_of_a_record_counts() -> None:
    request = ProduceRequest(10)
    request.read(one_record(bytes_field(1, b"foobar") + keyed(b"abc")))
    assert request.key_partition(1000) == (MURMUR2[b"abc"] & 0x7FFFFFFF) % 1000


def test_records_without_a_key_go_with_the_others() -> None:
    request = ProduceRequest(10)
    request.read(batch_of(VALUE, keyed(b"abc"), VALUE))
    assert request.key_partition(1000) == (MURMUR2[b"abc"] & 0x7FFFFFFF) % 1000


def test_keys_of_one_batch_that_ask_for_different_partitions() -> None:
    request = ProduceRequest(10)
    request.read(batch_of(keyed(b"abc"), VALUE, keyed(b"foobar")))
    with pytest.raises(InvalidArgument) as caught:
        request.key_partition(1000)
    assert caught.value.reason == Reason.KEYS_SPAN_PARTITIONS
    assert request.key_partition(1) == 0


def test_there_are_partitions_to_choose_from() -> None:
    request = ProduceRequest(10)
    request.read(one_record(keyed(b"abc")))
    with pytest.raises(ValueError):
        request.key_partition(0)


def test_a_request_of_two_gibibytes_is_refused_unread() -> None:
    """Places within it would not fit into 32 bits. (Its zeros are never touched: they take no memory.)"""
    with pytest.raises(InvalidArgument, match="below 2 GiB"):
        ProduceRequest(10).read(bytes(1 << 31))
