from asyncio import Future
from collections.abc import Callable, Sequence

from takhin.codec.messages import ProduceRequest
from takhin.errors import Reason
from takhin.log.committer import Committer
from takhin.log.partition_config import PartitionConfig
from takhin.log.ring import Ring
from takhin.log.segment import FileCache, Segment

class Partition:
    topic: str
    topic_id: int
    partition: int
    directory: str
    log_start_offset: int
    durable_offset: int
    written_offset: int
    next_offset: int
    epoch: int
    epochs: list[tuple[int, int]]
    segments: tuple[Segment, ...]
    segment_bytes: int
    segment_ms: int
    flush_ms: int
    log_append_time: bool
    failure: tuple[Reason, str] | None
    failure_is_final: bool
    unwritten: bool
    syncing: bool
    def __init__(
        self,
        topic: str,
        topic_id: int,
        partition: int,
        directory: str,
        cache: FileCache,
        ring: Ring,
        committer: Committer,
        create_future: Callable[[], Future[object]],
        segments: Sequence[Segment],
        log_start_offset: int,
        epochs: Sequence[tuple[int, int]],
        epoch: int,
    ) -> None: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def dirty(self) -> bool: ...
    def configure(self, config: PartitionConfig) -> None: ...
    def append(self, request: ProduceRequest, now_ms: int, durability: int) -> bytes: ...
    def flush(self) -> None: ...
    def written(self) -> Future[tuple[Reason, str] | None]: ...
    def durable(self) -> Future[tuple[Reason, str] | None]: ...
    def data_after(self, offset: int) -> Future[None] | None: ...
    def wake_readers(self) -> None: ...
    async def make_durable(self, offset: int) -> None: ...
    @property
    def wants_sync(self) -> bool: ...
    def begin_sync(self) -> tuple[int, list[Segment], list[str]]: ...
    def end_sync(self, target: int, segments: list[Segment], directories: list[str], errno_: int) -> None: ...
    def resume(self, epoch: int) -> None: ...
    def fail(self, reason: Reason, message: str) -> None: ...
    def roll(self, now_ms: int) -> bool: ...
    def set_log_start(self, offset: int) -> list[Segment]: ...
    def divergence(self, last_epoch: int, offset: int) -> int | None: ...
    def close(self, reason: Reason, message: str) -> None: ...
