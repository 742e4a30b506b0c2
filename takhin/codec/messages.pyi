class ProduceRequest:
    topic: bytes
    partition: int
    required_acks: int
    timeout_ms: int
    record_count: int
    records_bytes: int
    largest_record_bytes: int
    is_batch: bool
    is_conditional: bool
    has_producer: bool
    has_expected_offset: bool
    producer_id: int
    producer_epoch: int
    producer_sequence: int
    expected_offset: int
    def __init__(self, max_records: int) -> None: ...
    def read(self, request: bytes) -> None: ...
    def key_partition(self, num_partitions: int) -> int: ...
    def record(self, index: int) -> bytes: ...

class ConsumeRequest:
    topic: bytes
    partition: int
    offset: int
    max_bytes: int
    min_bytes: int
    max_wait_ms: int
    until_end: bool
    start_time_ms: int | None
    max_records: int
    last_epoch: int | None
    def __init__(self, request: bytes) -> None: ...

class ResponsePrefix:
    def __init__(self, topic: bytes, partition: int) -> None: ...

def encode_produce_failure(
    topic: bytes, partition: int, error: str, code: int, reason: str
) -> bytes: ...
def murmur2(data: bytes) -> int: ...
