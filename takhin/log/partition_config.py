"""What a topic's configuration has to say to the log of its partitions."""

from typing import Protocol


class PartitionConfig(Protocol):
    """flush_ms -1: sync only when asked. log_append_time: the broker's clock replaces the producer's timestamp."""

    @property
    def segment_bytes(self) -> int: ...

    @property
    def segment_ms(self) -> int: ...

    @property
    def flush_ms(self) -> int: ...

    @property
    def log_append_time(self) -> bool: ...
