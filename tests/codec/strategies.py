"""Bytes to try the codec with: fields built by hand, and strategies of valid, nearly valid and mutated ones."""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from takhin.v1 import takhin_pb2 as pb
from tests.model.codec_model import FIXED32, FIXED64, LENGTH, SAFE_INT64, VARINT, encode_varint

# How many times the usual number of examples to try, for long runs.
EFFORT = int(os.environ.get("TAKHIN_TEST_EFFORT", "1"))


def tries(examples: int) -> settings:
    """So many examples, however slow the machine is at the moment."""
    return settings(
        max_examples=examples * EFFORT, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )


# --- by hand ---


def padded_varint(value: int, size: int) -> bytes:
    """value in size bytes, more than it needs."""
    plain = bytearray(encode_varint(value))
    if len(plain) >= size:
        raise ValueError("nothing to pad")
    plain[-1] |= 0x80
    return bytes(plain) + b"\x80" * (size - len(plain) - 1) + b"\x00"


def tag(number: int, wire_type: int) -> bytes:
    return encode_varint(number << 3 | wire_type)


def varint_field(number: int, value: int) -> bytes:
    return tag(number, VARINT) + encode_varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    return tag(number, LENGTH) + encode_varint(len(value)) + value


def padded_varint_field(number: int, value: int, size: int) -> bytes:
    return tag(number, VARINT) + padded_varint(value, size)


def padded_bytes_field(number: int, value: bytes, size: int) -> bytes:
    """A length-delimited field whose length takes `size` bytes."""
    return tag(number, LENGTH) + padded_varint(len(value), size) + value


def fixed32_field(number: int, value: int = 0) -> bytes:
    return tag(number, FIXED32) + value.to_bytes(4, "little")


def fixed64_field(number: int, value: int = 0) -> bytes:
    return tag(number, FIXED64) + value.to_bytes(8, "little")


def any_field(number: int, wire_type: int) -> bytes:
    """A well-formed field of a wire type; for groups both ends, for 6 and 7 the tag alone."""
    if wire_type == VARINT:
        return varint_field(number, 1)
    if wire_type == FIXED64:
        return fixed64_field(number)
    if wire_type == LENGTH:
        return bytes_field(number, b"")
    if wire_type == 3:
        return tag(number, 3) + tag(number, 4)
    if wire_type == FIXED32:
        return fixed32_field(number)
    return tag(number, wire_type)


def header(key: bytes, value: bytes = b"") -> bytes:
    """A Record's field 3."""
    return bytes_field(3, bytes_field(1, key) + bytes_field(2, value))


def one_record(record: bytes) -> bytes:
    """A ProduceMessageRequest of one record."""
    return bytes_field(1, b"t") + bytes_field(3, record)


def batch_of(*records: bytes) -> bytes:
    """A ProduceMessageRequest of a batch."""
    return bytes_field(1, b"t") + b"".join(bytes_field(6, record) for record in records)


# --- valid messages ---

safe_int64s = st.integers(-SAFE_INT64, SAFE_INT64) | st.sampled_from([0, 1, -1, SAFE_INT64, -SAFE_INT64])
int32s = st.integers(-(2**31), 2**31 - 1) | st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31)])
int64s = st.integers(-(2**63), 2**63 - 1) | safe_int64s
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
header_keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8).filter(
    lambda key: not key.startswith("\ufeff")
)
small_bytes = st.binary(max_size=12)


@st.composite
def record_messages(draw: st.DrawFn) -> pb.Record:
    """A Record that keeps every rule of ingest."""
    record = pb.Record(
        headers=[
            pb.RecordHeader(key=draw(header_keys), value=draw(small_bytes)) for _ in range(draw(st.integers(0, 2)))
        ],
    )
    if draw(st.booleans()):
        record.key = draw(small_bytes)
    if draw(st.booleans()):
        record.value = draw(small_bytes | st.binary(min_size=100, max_size=300))
    if draw(st.booleans()):
        record.timestamp = draw(safe_int64s)
        record.offset = draw(safe_int64s)
        record.partition = draw(int32s)
    return record


def unknown_fields(first: int) -> st.SearchStrategy[bytes]:
    """Well-formed fields with numbers from first on, in shortest form."""
    numbers = st.integers(first, first + 20) | st.just(2**29 - 1)
    return st.one_of(
        st.builds(varint_field, numbers, st.integers(0, 2**64 - 1)),
        st.builds(bytes_field, numbers, small_bytes),
        st.builds(fixed32_field, numbers, st.integers(0, 2**32 - 1)),
        st.builds(fixed64_field, numbers, st.integers(0, 2**64 - 1)),
    )


def shuffled(fields: st.SearchStrategy[bytes], max_size: int = 8) -> st.SearchStrategy[bytes]:
    """Some of these fields, in any order, each as often as it falls."""
    return st.lists(fields, max_size=max_size).map(b"".join)


header_bytes = shuffled(
    st.one_of(
        st.builds(bytes_field, st.just(1), header_keys.map(str.encode)),
        st.builds(bytes_field, st.just(2), small_bytes),
        unknown_fields(3),
    ),
    max_size=4,
)
record_fields = st.one_of(
    st.builds(bytes_field, st.sampled_from([1, 2]), small_bytes),
    st.builds(bytes_field, st.just(3), header_bytes),
    st.builds(varint_field, st.sampled_from([4, 5]), safe_int64s),
    st.builds(varint_field, st.just(6), int32s),
    unknown_fields(16),
)
# Encoded Records that keep every rule: as protobuf writes them, or with fields in any order, repeated, unknown.
record_bytes = record_messages().map(pb.Record.SerializeToString) | shuffled(record_fields)


# Encoded ProducerStates; also what two of them merge to keeps the rules.
producer_bytes = shuffled(
    st.one_of(
        st.builds(varint_field, st.sampled_from([1, 3]), st.integers(0, SAFE_INT64 - 100)),
        st.builds(varint_field, st.just(2), st.integers(0, 2**31 - 1)),
        st.builds(padded_varint_field, st.sampled_from([1, 2, 3]), st.integers(0, 127), st.integers(2, 10)),
        unknown_fields(4),
    ),
    max_size=4,
)


@st.composite
def request_bytes(draw: st.DrawFn) -> bytes:
    """A ProduceMessageRequest to be accepted: fields in any order, scalars repeated, unknown ones, padded varints."""
    fields = draw(
        st.lists(
            st.one_of(
                st.builds(bytes_field, st.just(1), texts.map(str.encode)),
                st.builds(varint_field, st.sampled_from([2, 4, 5]), int32s),
                st.builds(bytes_field, st.just(7), producer_bytes),
                st.builds(varint_field, st.just(8), st.integers(0, SAFE_INT64)),
                unknown_fields(9),
                st.builds(padded_varint_field, st.sampled_from([2, 4, 5, 8]), st.integers(0, 127), st.integers(2, 10)),
                st.builds(padded_bytes_field, st.sampled_from([1, 9]), st.just(b"a"), st.integers(2, 5)),
            ),
            max_size=6,
        )
    )
    if draw(st.booleans()):
        fields.append(bytes_field(3, draw(record_bytes)))
    else:
        fields += [bytes_field(6, record) for record in draw(st.lists(record_bytes, min_size=1, max_size=4))]
    return b"".join(draw(st.permutations(fields)))


@st.composite
def consume_request_bytes(draw: st.DrawFn) -> bytes:
    """A ConsumeMessagesRequest to be accepted."""
    return draw(
        shuffled(
            st.one_of(
                st.builds(bytes_field, st.just(1), texts.map(str.encode)),
                st.builds(varint_field, st.sampled_from([2, 4, 5, 6, 11]), int32s),
                st.builds(varint_field, st.sampled_from([3, 8, 9]), int64s),
                st.builds(varint_field, st.just(7), st.integers(0, 2**64 - 1)),
                unknown_fields(12),
            )
        )
    )


# --- bytes that may break a rule ---

# What breaks parsers: continuation bytes, field 0, groups, bytes that end a varint late, a byte order mark.
_NASTY = [
    *(b"\x00", b"\x80", b"\xff", b"\x7f", b"\x80\x00", b"\x12\x06", b"\x03\x04", b"\x0b\x0c", b"\x0e", b"\x0f"),
    *(b"\xff\xff\xff\xff\x07", b"\xff\xff\xff\xff\x0f", b"\xff" * 9 + b"\x01", b"\xff" * 9 + b"\x02"),
    *(b"\xef\xbb\xbf", b"\xc0\x80", b"\xed\xa0\x80"),
]

wild_fields = st.one_of(
    st.builds(any_field, st.integers(0, 20), st.integers(0, 7)),
    st.builds(varint_field, st.integers(0, 20), int64s),
    st.builds(bytes_field, st.just(7), st.builds(varint_field, st.integers(1, 4), int64s)),
    st.builds(padded_varint_field, st.integers(1, 20), st.integers(0, 127), st.integers(2, 10)),
    st.builds(padded_bytes_field, st.integers(1, 20), st.just(b"a"), st.integers(2, 10)),
    st.builds(header, st.sampled_from(_NASTY), st.sampled_from(_NASTY)),
)
# Records of which most keep the rules and some do not.
doubtful_records = shuffled(record_fields | wild_fields, max_size=5)
doubtful_requests = st.one_of(
    st.builds(one_record, doubtful_records),
    st.lists(doubtful_records, max_size=3).map(lambda records: batch_of(*records)),
    st.builds(bytes.__add__, request_bytes(), wild_fields),
    st.builds(bytes.__add__, wild_fields, request_bytes()),
)


@st.composite
def mutated(draw: st.DrawFn, originals: st.SearchStrategy[bytes]) -> bytes:
    """One of the originals with one to three small damages."""
    data = bytearray(draw(originals))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "insert", "delete", "cut", "repeat"])):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "insert":
                data[at:at] = draw(st.sampled_from(_NASTY))
            case "delete":
                del data[at : at + draw(st.integers(1, 3))]
            case "cut":
                del data[at:]
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 20))]
    return bytes(data)
