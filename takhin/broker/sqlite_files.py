"""Damage to a database's files that SQLite itself does not notice.

Pages in the main file have no checksum: a rotten bit in a row's value is served as it is. So a clean stop leaves the
checksum of the whole file beside it, and the start after it compares.

Frames in the WAL have one, but SQLite takes the first that does not match for the WAL's end, and whatever was committed
behind it is gone without a word. That is right for the last transaction, which a power cut may have torn. It is
corruption when another one follows: with synchronous=FULL each commit is synced before the next transaction begins.
"""

import os
import struct

from takhin.codec.crc32c import crc32c
from takhin.codec.wal import wal_checksum
from takhin.log.files import Files

_WAL_HEADER = struct.Struct(">8I")
WAL_HEADER_BYTES = _WAL_HEADER.size
_FRAME_HEADER = struct.Struct(">6I")
# Of the header's magic: whether checksums are taken over little-endian numbers (as here) or, one more, big-endian ones.
_LITTLE_ENDIAN_MAGIC = 0x377F0682
_PAGE_SIZE_AT = 16
_DEFAULT_PAGE_BYTES = 4096
_SUM_BYTES = 9
_CHUNK_BYTES = 1 << 20
# A WAL that one batch has blown up beyond this is looked at only so far.
_LARGEST_WAL_BYTES = 1 << 30


# The main file


def make_private(path: str) -> None:
    """Have the database's file there, empty when it was missing, for owner and group alone: SQLite's own would be for
    everybody, and its other files take after it. Raises OSError, also when it may not be written, of which SQLite tells
    in riddles. To be called before SQLite has the file open: its locks would go with this descriptor."""
    files = Files()
    files.close(files.open(path, os.O_RDWR | os.O_CREAT))


def sum_path(path: str) -> str:
    """Where the checksum of the database at `path` is kept from a clean stop to the next start."""
    return f"{path}.sum"


def leave_sum(path: str) -> None:
    """Write the checksum of the closed database, durably. Raises OSError."""
    files = Files()
    files.replace_durably(sum_path(path), _sum_of(files, path))


def take_sum(path: str) -> bool:
    """Whether the database is what the last clean stop left, as far as anything tells. From here on nothing does:
    a checksum that matched is removed, durably, before the file may change. Raises OSError."""
    files = Files()
    if not files.exists(sum_path(path)):
        return True
    if _contents(files, sum_path(path), _SUM_BYTES + 1) != _sum_of(files, path):
        return False
    files.unlink(sum_path(path))
    sync_directory_of(path)
    return True


def sync_directory_of(path: str) -> None:
    """The names beside `path` are on the disk after this. Raises OSError."""
    Files().sync_directory(os.path.dirname(path) or ".")


def _sum_of(files: Files, path: str) -> bytes:
    crc = 0
    fd = files.open(path, os.O_RDONLY)
    try:
        for start in range(0, files.size(fd), _CHUNK_BYTES):
            crc = crc32c(files.read(fd, _CHUNK_BYTES, start), crc)
    finally:
        files.close(fd)
    return b"%08x\n" % crc


def _contents(files: Files, path: str, most_bytes: int) -> bytes:
    """As much of a file as there is, empty when there is none."""
    try:
        fd = files.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return b""
    try:
        return files.read(fd, min(files.size(fd), most_bytes), 0)
    finally:
        files.close(fd)


# The WAL


def damaged_frame(path: str) -> int | None:
    """The first damaged frame (from 0) of the WAL of the database at `path`, when a commit was lost with it that was on
    the disk once; None when there is no such thing. Raises OSError."""
    files = Files()
    wal = _contents(files, f"{path}-wal", _LARGEST_WAL_BYTES)
    if len(wal) < _WAL_HEADER.size:
        return None
    return _Wal(wal, _contents(files, path, _PAGE_SIZE_AT + 2)).lost_from()


def committed_bytes(path: str) -> int:
    """How much of the WAL of the database at `path` counts: up to the end of the last commit that is whole. Raises
    OSError; ValueError: it is too large to be looked at whole."""
    files = Files()
    if files.exists(f"{path}-wal") and files.size(f"{path}-wal") > _LARGEST_WAL_BYTES:
        raise ValueError(f"has more than {_LARGEST_WAL_BYTES} bytes")
    wal = _contents(files, f"{path}-wal", _LARGEST_WAL_BYTES)
    if len(wal) < _WAL_HEADER.size:
        return 0
    return _Wal(wal, b"").committed_bytes()


class _Wal:
    """A WAL's bytes, as frames."""

    def __init__(self, wal: bytes, database: bytes):
        magic, _, page_bytes, _, *self._salts, one, two = _WAL_HEADER.unpack_from(wal)
        self._wal = wal
        self._is_big_endian = magic == _LITTLE_ENDIAN_MAGIC + 1
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

    def committed_bytes(self) -> int:
        whole = self._whole_frames() if self._header_is_whole else 0
        while whole and not self._header(whole - 1)[1]:
            whole -= 1
        return _WAL_HEADER.size + whole * self._frame_bytes if whole else 0

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
        return wal_checksum(before, data, big_endian=self._is_big_endian)
