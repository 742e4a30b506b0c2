from dataclasses import dataclass

from takhin.log.files import Files
from takhin.log.hold import Hold
from takhin.log.partition import Partition

JOURNAL_VERSION: int
FILE_NAMES: tuple[str, str]
BLOCK_BYTES: int
KIND_BATCHES: int
KIND_OFFSETS: int
MAX_PAYLOAD_BYTES: int
HEADER_COPIES: tuple[int, int]

class JournalError(ValueError): ...
class JournalVersionError(JournalError): ...

@dataclass(frozen=True, slots=True)
class JournalHeader:
    salt: int
    first_sequence: int
    created_ms: int

@dataclass(frozen=True, slots=True)
class JournalPart:
    kind: int
    size_bytes: int
    topic_id: int
    partition: int
    position: int
    segment_base_offset: int
    segment_created_ms: int
    base_offset: int
    next_offset: int
    epoch: int
    place: int

@dataclass(frozen=True, slots=True)
class JournalEntry:
    sequence: int
    durable_sequence: int
    time_ms: int
    size_bytes: int
    parts: tuple[JournalPart, ...]
    whole: bool

class JournalFile:
    path: str
    covers: dict[Partition, int]
    undone: set[int]
    retired: bool
    end: int
    def __init__(self, path: str) -> None: ...

class JournalCommit:
    file: JournalFile
    fd: int
    header: bytes
    data: bytes
    position: int
    end: int
    directories: list[str]
    targets: list[tuple[Partition, int]]
    transaction: int

class Journal:
    directory: str
    enabled: bool
    turns: int
    blocked: str
    def __init__(self, files: Files, directory: str, limit_bytes: int) -> None: ...
    def disable(self) -> None: ...
    def begin(self, partitions: list[Partition], now_ms: int) -> JournalCommit | None: ...
    def begin_transaction(
        self, holds: list[Hold], offsets: bytes, number: int, now_ms: int
    ) -> JournalCommit | None: ...
    def room_bytes(self, parts: int) -> int: ...
    @property
    def usable(self) -> bool: ...
    def begun(self, commit: JournalCommit) -> None: ...
    def end(self, commit: JournalCommit, errno_: int) -> None: ...
    def void(self, commit: JournalCommit) -> None: ...
    def done(self, commit: JournalCommit) -> None: ...
    def release(self, partition: Partition, synced_offset: int) -> None: ...
    def forget(self, partition: Partition) -> None: ...
    def covered(self) -> list[Partition]: ...
    def behind(self) -> list[Partition]: ...
    def close(self) -> None: ...

def read_header(data: bytes) -> JournalHeader: ...
def claimed_table_bytes(files: Files, fd: int, place: int, sequence: int) -> int: ...
def read_table(files: Files, fd: int, place: int, salt: int) -> JournalEntry: ...
def read_entry(files: Files, fd: int, place: int, salt: int) -> JournalEntry: ...
