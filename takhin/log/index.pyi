class SegmentSummary:
    base_offset: int
    next_offset: int
    size_bytes: int
    last_append_ms: int
    max_timestamp_ms: int
    max_epoch: int
    def __init__(
        self,
        base_offset: int,
        next_offset: int,
        size_bytes: int,
        last_append_ms: int,
        max_timestamp_ms: int,
        max_epoch: int,
    ) -> None: ...

class OffsetIndex:
    def __len__(self) -> int: ...
    def encode(self, summary: SegmentSummary, count: int = -1) -> bytes: ...
    @staticmethod
    def decode(data: bytes) -> OffsetIndex | None: ...

INDEX_HEADER_SIZE: int

def read_summary(header: bytes) -> tuple[SegmentSummary, int] | None: ...
