from takhin.log.partition import Partition

class TimeSearch:
    partition: Partition
    timestamp_ms: int
    end_offset: int
    batches: int
    read_bytes: int
    def __init__(self, partition: Partition, timestamp_ms: int) -> None: ...
    def find(self) -> int | object | None: ...
    def find_blocking(self) -> int | None: ...
