"""Damage to a database's files that SQLite itself does not notice.

Pages in the main file have no checksum: a rotten bit in a row's value is served as it is. So a clean stop leaves the
checksum of the whole file beside it, and the start after it compares.

Frames in the WAL have one, but SQLite takes the first that does not match for the WAL's end, and whatever was committed
behind it is gone without a word. That is right for the last transaction, which a power cut may have torn. It is
corruption when another one follows: with synchronous=FULL each commit is synced before the next transaction begins.
"""

import os
import struct
from collections.abc import Iterator

from takhin.codec.crc32c import crc32c
from takhin.log.files import Files

_WAL_HEADER = struct.Struct(">8I")
_FRAME_HEADER = struct.Struct(">6I")
# Of the header's magic: whether checksums are taken over little-endian numbers (as here) or, one more, big-endian ones.
_LITTLE_ENDIAN_MAGIC = 0x377F0682
_PAGE_SIZE_AT = 16
_CHUNK_BYTES = 1 << 20
_DEFAULT_PAGE_BYTES = 4096


# The main file


def sum_path(path: str) -> str:
    """Where the checksum of the database at `path` is kept from a clean stop to the next start."""
    return f"{path}.sum"


def leave_sum(path: str) -> None:
    """Write the checksum of the closed database, durably. Raises OSError."""
    files = Files()
    fd = files.open(f"{sum_path(path)}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        files.write(fd, _sum_of(path), 0)
        files.sync_data(fd)
    finally:
        files.close(fd)
    files.rename(f"{sum_path(path)}.new", sum_path(path))
    _sync_directory(path)


def take_sum(path: str) -> bool:
    """Whether the database is what the last clean stop left, as far as anything tells. From here on nothing does:
    a checksum that matched is removed, durably, before the file may change. Raises OSError."""
    try:
        kept = b"".join(_chunks(sum_path(path)))
    except FileNotFoundError:
        return True
    if kept != _sum_of(path):
        return False
    Files().unlink(sum_path(path))
    _sync_directory(path)
    return True


def _sum_of(path: str) -> bytes:
    crc = 0
    for chunk in _chunks(path):
        crc = crc32c(chunk, crc)
    return b"%08x\n" % crc


def _chunks(path: str) -> Iterator[bytes]:
    """All of a file."""
    files = Files()
    fd = files.open(path, os.O_RDONLY)
    try:
        position = 0
        while chunk := files.read(fd, _CHUNK_BYTES, position):
            yield chunk
            position += len(chunk)
    finally:
        files.close(fd)


def _sync_directory(path: str) -> None:
    Files().sync_directory(os.path.dirname(os.path.abspath(path)))


# The WAL


def damaged_frame(path: str) -> int | None:
    """The first damaged frame (from 0) of the WAL of the database at `path`, when a commit was lost with it that was on
    the disk once; None when there is no such thing. Raises OSError."""
    try:
        wal = b"".join(_chunks(f"{path}-wal"))
        first = next(_chunks(path), b"")
    except FileNotFoundError:
        return None
    if len(wal) < _WAL_HEADER.size:
        return None
    return _Wal(wal, first).lost_from()


class _Wal:
    """A WAL's bytes, as frames."""

    def __init__(self, wal: bytes, database: bytes):
        magic, _, page_bytes, _, *self._salts, one, two = _WAL_HEADER.unpack_from(wal)
        self._wal = wal
        self._order = ">" if magic == _LITTLE_ENDIAN_MAGIC + 1 else "<"
        self._begin = self._checksum((0, 0), wal[:24])
        self._header_is_whole = self._begin == (one, two)
        if not self._header_is_whole:
            # What the header would tell, the database and the frames themselves have to.
            page_bytes = int.from_bytes(database[_PAGE_SIZE_AT : _PAGE_SIZE_AT + 2], "big")
            page_bytes = 65536 if page_bytes == 1 else page_bytes or _DEFAULT_PAGE_BYTES
        self._frame_bytes = _FRAME_HEADER.size + page_bytes
        self._count = (len(wal) - _WAL_HEADER.size) // self._frame_bytes

    def lost_from(self) -> int | None:
        whole = self._whole_frames() if self._header_is_whole else 0
        # Not the damaged frame itself: half of a header that was torn may be an older frame's, and tell of a commit.
        for number in range(whole + 1, self._count - 1):
            _, commit, *salts, one, two = self._header(number)
            if not commit or self._header_is_whole and salts != self._salts:
                continue
            # The one behind it goes on from its checksum: it was written after it, and so after it was synced.
            is_next = self._header(number + 1)[2:4] == tuple(salts) and self._follows((one, two), number + 1)
            if is_next and self._follows(self._header(number - 1)[4:6], number):
                return whole
        return None

    def _whole_frames(self) -> int:
        before = self._begin
        for number in range(self._count):
            header = self._header(number)
            if list(header[2:4]) != self._salts or not self._follows(before, number):
                return number
            before = header[4], header[5]
        return self._count

    def _header(self, number: int) -> tuple[int, ...]:
        return _FRAME_HEADER.unpack_from(self._wal, _WAL_HEADER.size + number * self._frame_bytes)

    def _follows(self, before: tuple[int, int], number: int) -> bool:
        """Whether the frame's checksum goes on from that of the one before."""
        at = _WAL_HEADER.size + number * self._frame_bytes
        page = self._wal[at + _FRAME_HEADER.size : at + self._frame_bytes]
        return self._checksum(before, self._wal[at : at + 8] + page) == self._header(number)[4:6]

    def _checksum(self, before: tuple[int, int], data: bytes) -> tuple[int, int]:
        """SQLite's: two sums modulo 2^32 that feed each other."""
        one, two = before
        words = struct.unpack(f"{self._order}{len(data) // 4}I", data)
        for first, second in zip(words[::2], words[1::2], strict=True):
            one = one + first + two & 0xFFFFFFFF
            two = two + second + one & 0xFFFFFFFF
        return one, two
