"""The rules of ingest, each with the tests that name it: what docs/format.md says must never reach the log.

A record is tried wherever one can come in: alone, as a request's `record`, and among its `records`.
"""

import pytest

from takhin.codec.batch import encode_batch
from takhin.codec.messages import ProduceRequest
from takhin.codec.wire import RecordError, check_record_bytes
from takhin.errors import InvalidArgument, Reason
from takhin.v1 import takhin_pb2 as pb
from tests.codec.strategies import (
    any_field,
    batch_of,
    bytes_field,
    fixed32_field,
    fixed64_field,
    header,
    one_record,
    padded_varint,
    tag,
    varint_field,
)
from tests.model.codec_model import FIXED32, FIXED64, LENGTH, SAFE_INT64, VARINT, encode_varint

GOOD = bytes_field(1, b"key") + bytes_field(2, b"value") + header(b"name", b"1") + varint_field(4, 5)
WIRE_TYPES = [VARINT, FIXED64, LENGTH, 3, 4, FIXED32, 6, 7]


def refused(record: bytes, why: str) -> None:
    """The record is refused everywhere, with a message that holds `why`."""
    with pytest.raises(RecordError, match=why):
        check_record_bytes(record)
    with pytest.raises(ValueError, match=why):
        encode_batch([GOOD, record], 0, 0, 1, 0, 0)
    request = ProduceRequest(10)
    for data, index in ((one_record(record), "0"), (batch_of(GOOD, record, GOOD), "1")):
        with pytest.raises(InvalidArgument, match=why) as caught:
            request.read(data)
        assert caught.value.reason == Reason.MALFORMED_RECORD
        assert caught.value.metadata == {"record_index": index}


def accepted(record: bytes) -> None:
    """The record is accepted everywhere, and every byte of it stored as it came."""
    check_record_bytes(record)
    assert record in encode_batch([record], 0, 0, 1, 0, 0)
    request = ProduceRequest(10)
    for data, index in ((one_record(record), 0), (batch_of(GOOD, record, GOOD), 1)):
        request.read(data)
        assert request.record(index) == record


def test_what_keeps_every_rule_is_accepted() -> None:
    accepted(GOOD)
    accepted(b"")


# --- rule 1: a record ends exactly on a field boundary ---


@pytest.mark.parametrize("size", [size for size in range(1, len(GOOD)) if size not in (5, 12, 23)])
def test_rule_1_a_record_cut_within_a_field(size: int) -> None:
    refused(GOOD[:size], "ends in the middle of a field|reaches beyond")


@pytest.mark.parametrize("size", [0, 5, 12, 23, len(GOOD)])
def test_rule_1_a_record_cut_between_fields_is_a_record(size: int) -> None:
    accepted(GOOD[:size])


def test_rule_1_bytes_that_would_swallow_the_brokers_fields() -> None:
    # Offset 7 and partition 9 of the producer's own, then a value of six bytes that are not there: the broker's
    # offset and partition would become that value.
    attack = varint_field(5, 7) + varint_field(6, 9) + b"\x12\x06"
    swallowed = pb.Record.FromString(attack + varint_field(4, 1) + varint_field(5, 2) + varint_field(6, 3))
    assert (swallowed.offset, swallowed.partition) == (7, 9)
    refused(attack, "reaches beyond")


@pytest.mark.parametrize(
    "tail",
    [
        *(b"\x12", b"\x12\x80", b"\x80", b"\x82", b"\x20", b"\x20\xff", b"\x81\x01", b"\x85\x01"),
        *(b"\x81\x01" + bytes(7), b"\x85\x01" + bytes(3)),
    ],
)
def test_rule_1_an_open_end_of_any_kind(tail: bytes) -> None:
    refused(GOOD + tail, "ends in the middle of a field")


def test_rule_1_a_header_ends_on_a_field_boundary_too() -> None:
    refused(bytes_field(3, bytes_field(1, b"name") + b"\x12"), "ends in the middle of a field")
    refused(bytes_field(3, bytes_field(1, b"name") + b"\x12\x01"), "reaches beyond")


# --- rule 2: tags and wire types ---


@pytest.mark.parametrize("number", [1, 3, 4, 6, 16, 1000])
@pytest.mark.parametrize("wire_type", [3, 4])
def test_rule_2_groups(number: int, wire_type: int) -> None:
    refused(GOOD + any_field(number, wire_type), "group")


def test_rule_2_groups_within_a_header() -> None:
    refused(bytes_field(3, any_field(9, 3)), "group")
    refused(bytes_field(3, any_field(9, 4)), "group")


@pytest.mark.parametrize("number", [1, 4, 6, 16, 2**29 - 1])
@pytest.mark.parametrize("wire_type", [6, 7])
def test_rule_2_wire_types_that_do_not_exist(number: int, wire_type: int) -> None:
    refused(GOOD + any_field(number, wire_type), "wrong wire type")
    refused(bytes_field(3, any_field(number, wire_type)), "wrong wire type")


@pytest.mark.parametrize("wire_type", WIRE_TYPES)
def test_rule_2_field_number_0(wire_type: int) -> None:
    refused(GOOD + any_field(0, wire_type), "number 0")
    refused(bytes_field(3, any_field(0, wire_type)), "number 0")


def test_rule_2_tags_over_32_bits() -> None:
    largest = encode_varint(2**32 - 8 | VARINT)
    assert len(largest) == 5
    accepted(GOOD + largest + b"\x01")
    for too_large in (2**32 | VARINT, 2**32 | 1 << 3, 2**35, 2**63 | 16 << 3, 2**64 - 8):
        refused(GOOD + encode_varint(too_large) + b"\x01", "tag is longer")
        refused(bytes_field(3, encode_varint(too_large) + b"\x01"), "tag is longer")


@pytest.mark.parametrize("size", range(2, 11))
@pytest.mark.parametrize("number", [0, 1, 2, 4, 15])
def test_rule_2_tags_that_are_not_minimal(number: int, size: int) -> None:
    long_tag = padded_varint(number << 3 | LENGTH, size)
    refused(long_tag + b"\x00", "tag is longer")
    refused(bytes_field(3, long_tag + b"\x00"), "tag is longer")


def test_rule_2_tags_of_two_bytes_and_more_that_are_not_minimal() -> None:
    refused(padded_varint(16 << 3 | LENGTH, 3) + b"\x00", "tag is longer")
    refused(padded_varint(2**28 - 8 | LENGTH, 5) + b"\x00", "tag is longer")


@pytest.mark.parametrize("number", range(1, 7))
@pytest.mark.parametrize("wire_type", WIRE_TYPES)
def test_rule_2_the_wrong_wire_type_on_a_field_of_record(number: int, wire_type: int) -> None:
    right = LENGTH if number <= 3 else VARINT
    if wire_type == right:
        accepted(any_field(number, wire_type))
    else:
        refused(any_field(number, wire_type), "group" if wire_type in (3, 4) else "wrong wire type")


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("wire_type", WIRE_TYPES)
def test_rule_2_the_wrong_wire_type_on_a_field_of_record_header(number: int, wire_type: int) -> None:
    record = bytes_field(3, any_field(number, wire_type))
    if wire_type == LENGTH:
        accepted(record)
    else:
        refused(record, "group" if wire_type in (3, 4) else "wrong wire type")


@pytest.mark.parametrize("number", range(7, 16))
@pytest.mark.parametrize("wire_type", [VARINT, FIXED64, LENGTH, FIXED32])
def test_reserved_fields_of_a_record(number: int, wire_type: int) -> None:
    refused(GOOD + any_field(number, wire_type), "7 to 15")
    # Within a header no number is the broker's.
    accepted(bytes_field(3, any_field(number, wire_type)))


@pytest.mark.parametrize("number", [16, 17, 127, 19_000, 2**29 - 1])
@pytest.mark.parametrize("wire_type", [VARINT, FIXED64, LENGTH, FIXED32])
def test_unknown_fields_are_kept_as_sent(number: int, wire_type: int) -> None:
    accepted(any_field(number, wire_type) + GOOD)
    accepted(bytes_field(3, any_field(number, wire_type)))


# --- rule 3: varints and lengths ---


@pytest.mark.parametrize(
    "endless",
    [b"\xff" * 9 + b"\x02", b"\x80" * 9 + b"\x02", b"\xff" * 10 + b"\x01", b"\xff" * 9 + b"\x7f", b"\x80" * 40],
)
@pytest.mark.parametrize("number", [4, 5, 6, 16])
def test_rule_3_varints_over_64_bits(number: int, endless: bytes) -> None:
    refused(tag(number, VARINT) + endless, "longer than 64 bits")
    refused(tag(2, LENGTH) + endless, "longer than 64 bits")
    refused(bytes_field(3, tag(2, LENGTH) + endless), "longer than 64 bits")
    refused(endless, "tag is longer")


def test_rule_3_the_largest_varint_is_accepted_in_an_unknown_field() -> None:
    accepted(varint_field(16, 2**64 - 1))


@pytest.mark.parametrize("size", range(2, 11))
@pytest.mark.parametrize("number", [4, 5, 6, 16])
@pytest.mark.parametrize("value", [0, 1, 127])
def test_rule_3_values_that_are_not_minimal(number: int, value: int, size: int) -> None:
    refused(tag(number, VARINT) + padded_varint(value, size), "longer than it need be")


def test_rule_3_longer_values_that_are_not_minimal() -> None:
    for value in (128, 2**14 - 1, 2**52, 2**56 - 1, 2**63 - 1):
        for size in range(len(encode_varint(value)) + 1, 11):
            refused(tag(16, VARINT) + padded_varint(value, size), "longer than it need be")


@pytest.mark.parametrize("size", range(2, 11))
@pytest.mark.parametrize("number", [1, 2, 3, 16])
def test_rule_3_lengths_that_are_not_minimal(number: int, size: int) -> None:
    # From six bytes on a length is too long by itself.
    why = "longer than"
    refused(tag(number, LENGTH) + padded_varint(0, size), why)
    refused(bytes_field(3, tag(number, LENGTH) + padded_varint(0, size)), why)


@pytest.mark.parametrize("length", [2**31, 2**31 + 1, 2**32 - 1, 2**32, 2**32 + 2, 2**63, 2**64 - 1, 2**64 - 2])
@pytest.mark.parametrize("number", [1, 2, 3, 16])
def test_rule_3_lengths_of_2_gib_and_more(number: int, length: int) -> None:
    why = "reaches beyond|longer than"
    refused(tag(number, LENGTH) + encode_varint(length) + b"ab", why)
    refused(bytes_field(3, tag(number, LENGTH) + encode_varint(length) + b"ab"), why)


@pytest.mark.parametrize("number", [1, 2, 3, 16])
def test_rule_3_lengths_beyond_their_parent(number: int) -> None:
    cut = tag(number, LENGTH) + b"\x03ab"
    refused(cut, "reaches beyond")
    # The bytes that would make it whole lie behind the header, but not within it.
    refused(bytes_field(3, cut) + bytes_field(2, b"more"), "reaches beyond")
    # Those of the next record lie behind this one.
    refused(GOOD + cut, "reaches beyond")


# --- rule 4: numbers that every client can read ---


@pytest.mark.parametrize("number", [4, 5])
def test_rule_4_timestamp_and_offset_stay_within_53_bits(number: int) -> None:
    for value in (SAFE_INT64, -SAFE_INT64, 0, 1, -1):
        accepted(varint_field(number, value))
    for value in (2**53, -(2**53), 2**53 + 1, -(2**53) - 1, 2**62, 2**63 - 1, -(2**63), 1 - 2**63):
        refused(varint_field(number, value), r"2\^53")


@pytest.mark.parametrize("number", [4, 5])
def test_rule_4_holds_for_every_occurrence_of_a_field(number: int) -> None:
    # Not for the last one alone: the first is stored and served as well.
    refused(varint_field(number, 2**53) + varint_field(number, 1), r"2\^53")
    refused(varint_field(number, 1) + varint_field(number, 2**53), r"2\^53")


def test_rule_4_partition_is_an_int32() -> None:
    for value in (0, 1, -1, 2**31 - 1, -(2**31)):
        accepted(varint_field(6, value))
    for value in (2**31, -(2**31) - 1, 2**32, 2**32 + 1, 2**53, 2**63 - 1, -(2**63)):
        refused(varint_field(6, value), "outside 32 bits")


@pytest.mark.parametrize("value", [-1, -2, -(2**31)])
def test_rule_4_a_negative_partition_has_ten_bytes_not_five(value: int) -> None:
    # Some encoders write a negative int32 in 32 bits; decoders that keep 64 read another number there.
    five_bytes = encode_varint(value & 0xFFFFFFFF)
    assert len(five_bytes) == 5
    refused(tag(6, VARINT) + five_bytes, "outside 32 bits")
    ten_bytes = encode_varint(value)
    assert len(ten_bytes) == 10
    accepted(tag(6, VARINT) + ten_bytes)


# --- rule 5: header keys ---


@pytest.mark.parametrize(
    "key",
    [
        b"\x80",  # a continuation byte alone
        b"a\xbf",
        b"\xc3",  # cut
        b"\xe2\x82",
        b"\xf0\x9f\x98",
        b"\xc3(",  # no continuation where one must be
        b"\xe2(\xa1",
        b"\xe2\x82(",
        b"\xf0(\x8c\xbc",
        b"\xf0\x90(\xbc",
        b"\xf0\x90\x8c(",
        b"\xc0\xaf",  # overlong
        b"\xc1\xbf",
        b"\xc0\x80",
        b"\xe0\x80\xaf",
        b"\xe0\x9f\xbf",
        b"\xf0\x80\x80\xaf",
        b"\xf0\x8f\xbf\xbf",
        b"\xed\xa0\x80",  # surrogates, alone and as a pair
        b"\xed\xbf\xbf",
        b"\xed\xa0\xbd\xed\xb8\x80",
        b"\xf4\x90\x80\x80",  # above U+10FFFF
        b"\xf5\x80\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xfc\x84\x80\x80\x80\x80",
        b"\xfe",
        b"\xff",
    ],
)
def test_rule_5_header_keys_are_strict_utf8(key: bytes) -> None:
    refused(header(key), "not valid UTF-8")
    refused(header(b"good") + header(b"x" + key), "not valid UTF-8")
    # The last key counts, but decoders look at every one.
    refused(bytes_field(3, bytes_field(1, key) + bytes_field(1, b"good")), "not valid UTF-8")


@pytest.mark.parametrize("first", range(256))
def test_rule_5_utf8_is_what_python_takes_for_it(first: int) -> None:
    for tail in (b"", b"\x80", b"\xbf", b"\x80\x80", b"\x9f\xbf", b"\xa0\x80", b"\x8f\xbf\xbf", b"\x90\x80\x80", b"a"):
        key = bytes([first]) + tail
        try:
            text = key.decode("utf-8")
        except UnicodeDecodeError:
            refused(header(key), "not valid UTF-8")
        else:
            if "\0" not in text:
                accepted(header(key))


@pytest.mark.parametrize(
    "key", ["", "a", "é", "\u07ff", "\u0800", "\ud7ff", "\ue000", "\uffff", "\U00010000", "\U0010ffff"]
)
def test_rule_5_every_range_of_utf8_is_accepted(key: str) -> None:
    accepted(header(key.encode()))


@pytest.mark.parametrize("key", [b"\0", b"a\0", b"\0a", b"a\0b"])
def test_rule_5_header_keys_hold_no_nul(key: bytes) -> None:
    refused(header(key), "NUL")


def test_rule_5_header_keys_begin_with_no_byte_order_mark() -> None:
    refused(header("\ufeff".encode()), "byte order mark")
    refused(header("\ufeffname".encode()), "byte order mark")
    accepted(header("na\ufeffme".encode()))


def test_rule_5_is_of_keys_alone() -> None:
    for free in (b"\0", b"\xff\xfe", b"\xef\xbb\xbf"):
        accepted(bytes_field(1, free) + bytes_field(2, free) + header(b"name", free))


# --- the same for the request around the records ---


@pytest.mark.parametrize(
    ("field", "why"),
    [
        (any_field(16, 3), "group"),
        (any_field(16, 4), "group"),
        (any_field(1, 6), "wrong wire type"),
        (any_field(16, 7), "wrong wire type"),
        (any_field(0, VARINT), "number 0"),
        (b"\x00", "number 0"),
        (encode_varint(2**32 | 8) + b"\x01", "tag is longer"),
        (padded_varint(2 << 3, 2) + b"\x01", "tag is longer"),
        (tag(2, VARINT) + b"\xff" * 9 + b"\x02", "longer than 64 bits"),
        (tag(2, VARINT) + b"\x80", "ends in the middle of a field"),
        (tag(16, LENGTH) + encode_varint(2**31), "reaches beyond"),
        (tag(6, LENGTH) + encode_varint(2**31 - 1), "reaches beyond"),
        (tag(6, LENGTH) + encode_varint(2**64 - 1), "reaches beyond|longer than"),
        (tag(3, LENGTH) + b"\x05abcd", "reaches beyond"),
        (varint_field(2, 2**31), "outside 32 bits"),
        (varint_field(2, 2**32 - 1), "outside 32 bits"),
        (varint_field(4, -(2**31) - 1), "outside 32 bits"),
        (varint_field(5, 2**63 - 1), "outside 32 bits"),
        (bytes_field(1, b"\xff"), "not valid UTF-8"),
        (bytes_field(1, b"\xff") + bytes_field(1, b"good"), "not valid UTF-8"),
        (varint_field(1, 1), "wrong wire type"),
        (fixed32_field(2), "wrong wire type"),
        (varint_field(3, 1), "wrong wire type"),
        (fixed64_field(4), "wrong wire type"),
        (bytes_field(5, b"\x01"), "wrong wire type"),
        (varint_field(6, 1), "wrong wire type"),
    ],
)
def test_a_malformed_request(field: bytes, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why) as caught:
        ProduceRequest(10).read(batch_of(GOOD) + field)
    assert caught.value.reason == Reason.MALFORMED_REQUEST


@pytest.mark.parametrize("number", [1, 3, 6, 16])
@pytest.mark.parametrize("size", range(2, 11))
def test_a_padded_length_outside_of_records(number: int, size: int) -> None:
    # These bytes are not stored, so padding is harmless; protobuf reads up to five bytes of it and no more.
    data = tag(number, LENGTH) + padded_varint(0, size) + (batch_of(GOOD) if number in (1, 16) else b"")
    request = ProduceRequest(10)
    if size <= 5:
        request.read(data)
        pb.ProduceMessageRequest.FromString(data)
    else:
        with pytest.raises(InvalidArgument) as caught:
            request.read(data)
        assert caught.value.reason == Reason.MALFORMED_REQUEST


def test_padded_values_outside_of_records_are_read() -> None:
    request = ProduceRequest(10)
    for size in range(2, 11):
        request.read(one_record(GOOD) + tag(2, VARINT) + padded_varint(3, size))
        assert request.partition == 3


def test_nesting_as_deep_as_it_may_be() -> None:
    # Only Record and RecordHeader are looked into; a field nobody knows is bytes, however deep it nests.
    nested = b""
    for _ in range(10_000):
        nested = bytes_field(16, nested)
    accepted(nested)
    ProduceRequest(10).read(one_record(GOOD) + nested)
    headers = b""
    for _ in range(1_000):
        headers = bytes_field(3, headers)
    accepted(headers)
