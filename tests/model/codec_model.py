"""What takhin.codec must do, in plain Python: the oracle of its tests.

Written from docs/format.md and protobuf's encoding guide, not from the Cython. It imports nothing of takhin.codec,
takes the plainest way everywhere, and raises Refused where the codec raises an error.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

VARINT, FIXED64, LENGTH, GROUP_START, GROUP_END, FIXED32 = 0, 1, 2, 3, 4, 5

SAFE_INT64 = 2**53 - 1
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1

MALFORMED_REQUEST = "MALFORMED_REQUEST"
MALFORMED_RECORD = "MALFORMED_RECORD"
NO_RECORD = "NO_RECORD"
RECORD_AND_RECORDS = "RECORD_AND_RECORDS"
TOO_MANY_RECORDS = "TOO_MANY_RECORDS"
INVALID_PRODUCER = "INVALID_PRODUCER"
INVALID_OFFSET = "INVALID_OFFSET"


class Refused(ValueError):
    """Bytes that must not be taken. reason: that of the InvalidArgument the codec raises."""

    def __init__(self, message: str, reason: str = MALFORMED_REQUEST):
        super().__init__(message)
        self.reason = reason


# --- protobuf's wire format ---


@dataclass(frozen=True)
class Field:
    """One field of a message. value: the varint as an unsigned number, or the bytes of any other type."""

    number: int
    wire_type: int
    value: int | bytes


def encode_varint(value: int) -> bytes:
    """The shortest form; negative numbers as their 64 bits of two's complement."""
    value &= 2**64 - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_varint(data: bytes, at: int) -> tuple[int, int]:
    """The unsigned value and the place behind it. Raises Refused when it is cut or over 64 bits."""
    value = 0
    for place in range(at, at + 10):
        if place >= len(data):
            raise Refused("the varint is cut")
        value |= (data[place] & 0x7F) << 7 * (place - at)
        if data[place] < 0x80:
            if value >= 2**64:
                raise Refused("the varint has more than 64 bits")
            return value, place + 1
    raise Refused("the varint has more than ten bytes")


def minimal_varint(data: bytes, at: int) -> tuple[int, int]:
    """As decode_varint, and refused when a shorter form exists."""
    value, end = decode_varint(data, at)
    if data[at:end] != encode_varint(value):
        raise Refused("the varint is longer than it need be")
    return value, end


def fields(data: bytes, minimal: bool) -> Iterator[Field]:
    """The fields of a message, in order. Raises Refused, from the place of the fault on.

    minimal: also refuse values and lengths that are longer than they need be; tags always must be minimal.
    """
    varint = minimal_varint if minimal else decode_varint
    at = 0
    while at < len(data):
        tag, at = minimal_varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if tag >= 2**32 or number == 0:
            raise Refused("there is no such tag")
        if wire_type == VARINT:
            value, at = varint(data, at)
            yield Field(number, wire_type, value)
            continue
        if wire_type == LENGTH:
            start = at
            size, at = varint(data, at)
            if at - start > 5:
                raise Refused("a length has five bytes at most")
        elif wire_type in (FIXED32, FIXED64):
            size = 4 if wire_type == FIXED32 else 8
        else:
            raise Refused("a group, or a wire type that does not exist")
        if size >= 2**31 or at + size > len(data):
            raise Refused("the field reaches beyond the message around it")
        yield Field(number, wire_type, data[at : at + size])
        at += size


def as_bytes(one: Field) -> bytes:
    if not isinstance(one.value, bytes) or one.wire_type != LENGTH:
        raise Refused("the wrong wire type")
    return one.value


def as_text(one: Field) -> bytes:
    try:
        as_bytes(one).decode("utf-8", "strict")
    except UnicodeDecodeError:
        raise Refused("not UTF-8") from None
    return as_bytes(one)


def as_int64(one: Field) -> int:
    if not isinstance(one.value, int):
        raise Refused("the wrong wire type")
    return one.value - 2**64 if one.value >= 2**63 else one.value


def as_int32(one: Field) -> int:
    value = as_int64(one)
    if not INT32_MIN <= value <= INT32_MAX:
        raise Refused("beyond int32")
    return value


# --- records ---


@dataclass(frozen=True)
class Record:
    """What a Record says. key, value: None when absent. timestamp_ms: 0 when absent."""

    key: bytes | None = None
    value: bytes | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    timestamp_ms: int = 0
    offset: int = 0
    partition: int = 0


def read_header(data: bytes) -> tuple[bytes, bytes]:
    key = value = b""
    for one in fields(data, minimal=True):
        if one.number == 1:
            key = as_text(one)
            if b"\0" in key:
                raise Refused("a header's key with NUL")
            if key.startswith(b"\xef\xbb\xbf"):
                raise Refused("a header's key with a byte order mark")
        elif one.number == 2:
            value = as_bytes(one)
    return key, value


def as_safe_int64(one: Field) -> int:
    value = as_int64(one)
    if abs(value) > SAFE_INT64:
        raise Refused("beyond what JavaScript can read")
    return value


def read_record(data: bytes) -> Record:
    """An encoded Record, held against the rules of ingest. Raises Refused."""
    record = Record()
    for one in fields(data, minimal=True):
        match one.number:
            case 1:
                record = replace(record, key=as_bytes(one))
            case 2:
                record = replace(record, value=as_bytes(one))
            case 3:
                record = replace(record, headers=(*record.headers, read_header(as_bytes(one))))
            case 4:
                record = replace(record, timestamp_ms=as_safe_int64(one))
            case 5:
                record = replace(record, offset=as_safe_int64(one))
            case 6:
                record = replace(record, partition=as_int32(one))
            case number if number <= 15:
                raise Refused("fields 7 to 15 are the broker's")
    return record


# --- requests ---


@dataclass(frozen=True)
class ProducerState:
    id: int = 0
    epoch: int = 0
    sequence: int = 0


@dataclass
class ProduceRequest:
    topic: bytes = b""
    partition: int = 0
    required_acks: int = 0
    timeout_ms: int = 0
    is_batch: bool = False
    producer: ProducerState | None = None
    expected_offset: int | None = None
    # The bytes of each record as they came, and what they say.
    encoded: list[bytes] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)


def _add_record(request: ProduceRequest, encoded: bytes, max_records: int) -> None:
    try:
        record = read_record(encoded)
    except Refused as refusal:
        raise Refused(str(refusal), MALFORMED_RECORD) from None
    if len(request.records) == max_records:
        raise Refused("too many", TOO_MANY_RECORDS)
    request.encoded.append(encoded)
    request.records.append(record)


def _read_producer(data: bytes, producer: ProducerState) -> ProducerState:
    """A ProducerState merged into one that came before it."""
    for one in fields(data, minimal=False):
        match one.number:
            case 1:
                producer = replace(producer, id=as_int64(one))
            case 2:
                producer = replace(producer, epoch=as_int32(one))
            case 3:
                producer = replace(producer, sequence=as_int64(one))
    return producer


def read_produce_request(data: bytes, max_records: int) -> ProduceRequest:
    """A ProduceMessageRequest. Raises Refused: for the first fault in the order of the bytes."""
    request = ProduceRequest()
    has_record = False
    for one in fields(data, minimal=False):
        match one.number:
            case 1:
                request.topic = as_text(one)
            case 2:
                request.partition = as_int32(one)
            case 3:
                encoded = as_bytes(one)
                if has_record:
                    raise Refused("record twice")
                has_record = True
                _add_record(request, encoded, max_records)
            case 4:
                request.required_acks = as_int32(one)
            case 5:
                request.timeout_ms = as_int32(one)
            case 6:
                encoded = as_bytes(one)
                request.is_batch = True
                _add_record(request, encoded, max_records)
            case 7:
                request.producer = _read_producer(as_bytes(one), request.producer or ProducerState())
            case 8:
                request.expected_offset = as_int64(one)
    if has_record and request.is_batch:
        raise Refused("record and records", RECORD_AND_RECORDS)
    if not request.records:
        raise Refused("no record", NO_RECORD)
    producer = request.producer
    if producer is not None:
        numbers = (producer.id, producer.epoch, producer.sequence)
        if min(numbers) < 0 or max(producer.id, producer.sequence + len(request.records)) > SAFE_INT64:
            raise Refused("an impossible producer", INVALID_PRODUCER)
    if request.expected_offset is not None and not 0 <= request.expected_offset <= SAFE_INT64:
        raise Refused("an impossible offset", INVALID_OFFSET)
    return request


@dataclass
class ConsumeRequest:
    topic: bytes = b""
    partition: int = 0
    offset: int = 0
    max_bytes: int = 0
    min_bytes: int = 0
    max_wait_ms: int = 0
    until_end: bool = False
    start_time_ms: int | None = None
    max_records: int = 0
    last_epoch: int | None = None


def read_consume_request(data: bytes) -> ConsumeRequest:
    """A ConsumeMessagesRequest. Raises Refused."""
    request = ConsumeRequest()
    for one in fields(data, minimal=False):
        match one.number:
            case 1:
                request.topic = as_text(one)
            case 2:
                request.partition = as_int32(one)
            case 3:
                request.offset = as_int64(one)
            case 4:
                request.max_bytes = as_int32(one)
            case 5:
                request.min_bytes = as_int32(one)
            case 6:
                request.max_wait_ms = as_int32(one)
            case 7:
                request.until_end = as_int64(one) != 0
            case 8:
                request.start_time_ms = as_int64(one)
            case 9:
                request.max_records = as_int64(one)
            case 11:
                request.last_epoch = as_int32(one)
    return request


# --- checksums and hashes ---


def crc32c(data: bytes, crc: int = 0) -> int:
    """Bit by bit, by the reversed Castagnoli polynomial; continued from an earlier result."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """Rotated right by 15, plus a constant, in 32 bits."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """Kafka's: 32-bit MurmurHash2 with its seed, as an unsigned number."""
    m = 0x5BD1E995
    bits = 0xFFFFFFFF
    h = 0x9747B28C ^ len(data)
    whole = len(data) // 4 * 4
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & bits
        k = (k ^ k >> 24) * m & bits
        h = h * m & bits ^ k
    if whole < len(data):
        h = (h ^ int.from_bytes(data[whole:], "little")) * m & bits
    h = (h ^ h >> 13) * m & bits
    return h ^ h >> 15


# --- what is written to disk ---


@dataclass(frozen=True)
class BatchHeader:
    """takhin.v1.BatchHeader without magic and checksum, in the order of its fields."""

    base_offset: int
    next_offset: int
    record_count: int
    payload_bytes: int
    uncompressed_bytes: int
    append_time_ms: int
    max_timestamp_ms: int
    epoch: int
    durable_offset: int
    producer_id: int = -1
    producer_epoch: int = -1
    producer_sequence: int = -1
    flags: int = 0


# Bytes of each field of BatchHeader from the third on, by name.
BATCH_WIDTHS = {
    "base_offset": 8,
    "next_offset": 8,
    "record_count": 4,
    "payload_bytes": 4,
    "uncompressed_bytes": 4,
    "append_time_ms": 8,
    "max_timestamp_ms": 8,
    "epoch": 4,
    "durable_offset": 8,
    "producer_id": 8,
    "producer_epoch": 4,
    "producer_sequence": 8,
    "flags": 4,
}


def fixed(number: int, value: int, width: int) -> bytes:
    """A fixed32 or fixed64 field, signed or not."""
    tag = number << 3 | (FIXED32 if width == 4 else FIXED64)
    return bytes([tag]) + (value & (1 << 8 * width) - 1).to_bytes(width, "little")


def with_checksum(tag: int, magic: bytes, rest: bytes, payload: bytes = b"") -> bytes:
    """A header of ours: tag and length, magic as field 1, checksum of all that follows as field 2, the rest."""
    crc = masked(crc32c(rest + payload))
    body = b"\x0d" + magic + fixed(2, crc, 4) + rest
    return bytes([tag, len(body)]) + body + payload


def encode_batch_of(header: BatchHeader, payload: bytes) -> bytes:
    """The batch as it lies in a file, whatever its header says."""
    numbered = enumerate(BATCH_WIDTHS.items(), start=3)
    rest = b"".join(fixed(number, getattr(header, name), width) for number, (name, width) in numbered)
    return with_checksum(0x32, b"TKB1", rest, payload)


def stored_record(encoded: bytes, offset: int, partition: int, append_time_ms: int) -> bytes:
    """A record as it is stored: what the producer sent, then the broker's fields."""
    body = encoded
    if read_record(encoded).timestamp_ms == 0:
        body += b"\x20" + encode_varint(append_time_ms)
    body += b"\x28" + encode_varint(offset) + b"\x30" + encode_varint(partition)
    return b"\x22" + encode_varint(len(body)) + body


def encode_batch(
    records: list[bytes], base_offset: int, partition: int, append_time_ms: int, epoch: int, durable_offset: int
) -> bytes:
    """A batch as the log writes it, of encoded Records. Raises Refused for a record that breaks a rule."""
    payload = b"".join(
        stored_record(record, base_offset + i, partition, append_time_ms) for i, record in enumerate(records)
    )
    header = BatchHeader(
        base_offset=base_offset,
        next_offset=base_offset + len(records),
        record_count=len(records),
        payload_bytes=len(payload),
        uncompressed_bytes=len(payload),
        append_time_ms=append_time_ms,
        max_timestamp_ms=max(read_record(record).timestamp_ms or append_time_ms for record in records),
        epoch=epoch,
        durable_offset=durable_offset,
    )
    return encode_batch_of(header, payload)


def encode_segment_header(topic_id: int, partition: int, base_offset: int, created_ms: int) -> bytes:
    """The first field of a segment file."""
    rest = fixed(3, 1, 4) + fixed(4, topic_id, 8) + fixed(5, partition, 4)
    return with_checksum(0x7A, b"TKS1", rest + fixed(6, base_offset, 8) + fixed(7, created_ms, 8))


def read_batch(data: bytes, position: int = 0) -> tuple[BatchHeader, list[bytes]]:
    """The batch at position: its header and its records as stored, tags and lengths taken off. Raises Refused."""
    header_bytes = 105
    batch = data[position:]
    if len(batch) < header_bytes:
        raise Refused("cut")
    values: dict[str, int] = {}
    at = 12
    for name, width in BATCH_WIDTHS.items():
        signed = name not in ("record_count", "payload_bytes", "uncompressed_bytes", "flags")
        values[name] = int.from_bytes(batch[at + 1 : at + 1 + width], "little", signed=signed)
        at += 1 + width
    header = BatchHeader(**values)
    batch = batch[: header_bytes + header.payload_bytes]
    payload = batch[header_bytes:]
    if len(payload) < header.payload_bytes:
        raise Refused("cut")
    # Tags, magic and checksum all at once: there is one way to write these numbers.
    if batch != encode_batch_of(header, payload):
        raise Refused("not a batch, or damaged")
    if header.flags & 7:
        raise Refused("compressed")
    if header.base_offset < 0 or header.record_count == 0:
        raise Refused("an impossible header")
    if header.next_offset - header.base_offset < header.record_count:
        raise Refused("an impossible header")
    records = []
    at = 0
    for _ in range(header.record_count):
        if at >= len(payload) or payload[at] != 0x22:
            raise Refused("there is no record")
        size, start = decode_varint(payload, at + 1)
        if start - (at + 1) > 5 or start + size > len(payload):
            raise Refused("the record is cut")
        at = start + size
        records.append(payload[start:at])
    if at != len(payload):
        raise Refused("more than the records")
    return header, records
