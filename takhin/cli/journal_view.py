"""What the journal holds, held against the segments: what the next start will write to them, and what they come to."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from takhin.codec.batch import SEGMENT_HEADER_SIZE, encode_segment_header
from takhin.log.files import Files
from takhin.log.replay import SavedPart, read_journal, restore_parts
from takhin.log.segment import segment_name

_COMPARE_BYTES = 1024 * 1024

# Topic id and partition.
Key = tuple[int, int]


class JournalView:
    """The journal of a data directory, as recovery reads it, open until close(). Raises OSError."""

    def __init__(self, data_dir: str):
        self._files = Files()
        self._saved = read_journal(self._files, os.path.join(data_dir, "journal"))
        self.damage = self._saved.damage
        self.kept_for = self._saved.kept_for
        self.entries = self._saved.entries
        self.paths = tuple(self._saved.paths)

    def close(self) -> None:
        self._saved.close()

    def __enter__(self) -> "JournalView":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def keys(self) -> list[Key]:
        """The partitions that it has something of that may still be needed."""
        return sorted(filter(self._saved.concerns, self._saved.parts))

    def is_damaged(self, key: Key) -> bool:
        """Whether it may have told more of the partition than can be read now."""
        return self.damage is not None and self._saved.concerns(key)

    def end(self, key: Key) -> int:
        """The offset up to which it tells of the partition; 0 when it does not."""
        return self._saved.ends.get(key, 0) if self._saved.concerns(key) else 0

    def differs(self, key: Key, directory: str, log_start: int) -> bool:
        """Whether the segments in the directory lack anything that it has whole. Raises OSError."""
        parts = self._saved.parts.get(key, []) if self._saved.concerns(key) else []
        # Segments that are out of the log are not made again.
        ends = {saved.part.segment_base_offset: saved.part.next_offset for saved in parts}
        return any(
            not self._is_in_place(saved, directory)
            for saved in parts if saved.whole and ends[saved.part.segment_base_offset] > log_start
        )

    def _is_in_place(self, saved: SavedPart, directory: str) -> bool:
        part = saved.part
        try:
            fd = self._files.open(os.path.join(directory, segment_name(part.segment_base_offset)), os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            if part.position == SEGMENT_HEADER_SIZE and self._files.read(fd, SEGMENT_HEADER_SIZE, 0) != (
                encode_segment_header(
                    part.topic_id, part.partition, part.segment_base_offset, part.segment_created_ms
                )
            ):
                return False
            for start in range(0, part.size_bytes, _COMPARE_BYTES):
                size_bytes = min(_COMPARE_BYTES, part.size_bytes - start)
                kept = self._files.read(saved.fd, size_bytes, part.place + start)
                if self._files.read(fd, size_bytes, part.position + start) != kept:
                    return False
            return True
        finally:
            self._files.close(fd)

    @contextmanager
    def restored(self, key: Key, directory: str, log_start: int) -> Iterator[str]:
        """A temporary directory with what the partition's will be once the next start has written the journal's parts
        to it: copies of the segments that it writes to, links to all other files. Raises OSError."""
        parts = self._saved.parts.get(key, [])
        written = {segment_name(saved.part.segment_base_offset) for saved in parts}
        with tempfile.TemporaryDirectory(prefix="takhin-") as top:
            # Recovery syncs the directories above it too.
            restored = os.path.join(top, "topics", *map(str, key))
            os.makedirs(restored)
            for name in os.listdir(directory) if os.path.isdir(directory) else ():
                path = os.path.abspath(os.path.join(directory, name))
                if name in written and os.path.isfile(path):
                    shutil.copyfile(path, os.path.join(restored, name))
                else:
                    os.symlink(path, os.path.join(restored, name))
            # What keeps it from following on what is there, the audit of the result will show.
            restore_parts(self._files, restored, parts, log_start)
            yield restored

    def write_again(self, key: Key, directory: str, log_start: int) -> None:
        """Write what it holds of the partition to its segments, which have the same bytes, once more, and sync them.

        After a sync that failed, the cache may have pages that count as written and never reached the disk.
        Raises OSError.
        """
        # Of a transaction's entry the other partitions have a part, too.
        self._saved.make_durable()
        restore_parts(self._files, directory, self._saved.parts.get(key, []), log_start)
