BATCH_HEADER_SIZE: int
SEGMENT_HEADER_SIZE: int

class BatchError(ValueError): ...

class Batch:
    crc32c: int
    base_offset: int
    next_offset: int
    record_count: int
    payload_bytes: int
    uncompressed_bytes: int
    append_time_ms: int
    max_timestamp_ms: int
    epoch: int
    durable_offset: int
    producer_id: int
    producer_epoch: int
    producer_sequence: int
    flags: int

def read_batch(data: bytes, position: int = 0) -> Batch: ...
def offset_for_time(data: bytes, timestamp_ms: int, position: int = 0, from_offset: int = 0) -> int | None: ...
def encode_batch(
    records: list[bytes],
    base_offset: int,
    partition: int,
    append_time_ms: int,
    epoch: int,
    durable_offset: int,
) -> bytes: ...
def encode_segment_header(topic_id: int, partition: int, base_offset: int, created_ms: int) -> bytes: ...
