from collections.abc import Sequence
from typing import NamedTuple, final

class LineBatch(NamedTuple):
    partition: int | None
    payload: bytes
    record_count: int
    first_line: int

class LineTooLong(ValueError):
    line: int

@final
class LineEncoder:
    lines: int
    def __init__(
        self,
        *,
        num_partitions: int,
        batch_bytes: int,
        batch_records: int,
        line_bytes: int,
        delimiter: bytes = b"\n",
        keep_ends: bool = False,
        key_separator: bytes = b"",
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        empty_is_none: bool = False,
    ) -> None: ...
    def feed(self, block: bytes) -> list[LineBatch]: ...
    def end(self) -> None: ...
    def take(self) -> list[LineBatch]: ...
