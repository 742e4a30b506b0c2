"""The write-ahead journal that all partitions share: one sync for a group commit that spans many of them.

A group commit that touches one partition syncs its segment file. One that touches several writes what each of them
has appended since it was last durable into one entry of the journal, and syncs that; their segment files, which hold
the same bytes already, are synced behind it. When the start finds entries, it writes their parts to the segments.

Two files take turns. Entries go to one of them until it is full; it is begun anew, under another salt, once every
segment that it covers has been synced: first the header is synced, then entries follow. Both are removed by a clean
stop.

docs/format.md has the format. In short: a block of 512 bytes with the header, then entries, each beginning at a
multiple of 512: a header, a table of parts, the bytes of the parts one behind the other, zeros.
Sequences rise by one from entry to entry, also across files; the first place where the next one does not stand ends a
file. The salt, with which all checksums begin, keeps what an earlier use of the file left behind from being taken for
an entry. Blocks of 512 bytes, so that no write touches a disk's sector that holds an entry already synced.
"""

import os
import struct
from dataclasses import dataclass, replace

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EDQUOT, ENOSPC
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from takhin.codec.crc32c cimport crc32c_of, mask
from takhin.log.files cimport Files
from takhin.log.hold cimport Hold
from takhin.log.partition cimport Partition

# Version 1 has parts of batches only.
JOURNAL_VERSION = 2
FILE_NAMES = ("0.journal", "1.journal")
BLOCK_BYTES = JOURNAL_BLOCK_BYTES
KIND_BATCHES = PART_BATCHES
KIND_OFFSETS = PART_OFFSETS
# The header stands twice in its block, so that no single rotten bit hides the file's entries.
HEADER_COPIES = (0, 256)

_HEADER = struct.Struct("<IIQq")
_ENTRY = struct.Struct("<4sIIIQQQq")
_PART = struct.Struct("<IIqIIqqqqiI")
MAX_PAYLOAD_BYTES = MAX_ENTRY_BYTES


class JournalError(ValueError):
    """These bytes are no header, or no entry, of a journal."""


class JournalVersionError(JournalError):
    """The header is whole, and of a version that this one does not know."""


@dataclass(frozen=True, slots=True)
class JournalHeader:
    """What stands at the beginning of a journal file."""

    salt: int
    first_sequence: int
    created_ms: int


@dataclass(frozen=True, slots=True)
class JournalPart:
    """Of the kind PART_BATCHES: batches of one partition, bytes from `position` on of the segment that begins at
    segment_base_offset. Of the kind PART_OFFSETS: what takhin/log/transaction.py has of a transaction's offsets, and
    in topic_id the transaction's number.

    place: where the bytes stand in the journal file.
    """

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
    """One group commit. size_bytes: up to where the next one begins; whole: the payload's checksum matches."""

    sequence: int
    durable_sequence: int
    time_ms: int
    size_bytes: int
    parts: tuple[JournalPart, ...]
    whole: bool


@cython.final
cdef class JournalFile:
    """One of the two files."""

    def __init__(self, str path not None):
        self.path = path
        self.covers = {}
        self.undone = set()
        self._fd = -1


@cython.final
cdef class JournalCommit:
    """An entry on its way: data is to be written to fd at position and synced.

    Where header is not empty, that is to be written to the file's beginning first, and synced, and the directories.
    """


@cython.final
cdef class Journal:
    """The writing side, used by the event loop alone.

    limit_bytes: of both files together, 0 for no journal. The directory must hold no journal files: recovery removes
    them, or else disable() is to be called.
    """

    def __init__(self, Files files not None, str directory not None, int64_t limit_bytes):
        self._files = files
        self.directory = directory
        self._file_limit = limit_bytes // 2 // JOURNAL_BLOCK_BYTES * JOURNAL_BLOCK_BYTES
        self._pair = tuple([JournalFile(os.path.join(directory, name)) for name in FILE_NAMES])
        self._current = self._pair[0]
        self.enabled = self._file_limit > JOURNAL_BLOCK_BYTES
        self._sequence = 1
        self.blocked = ""

    def disable(self):
        """Write no entries from now on."""
        self.enabled = False

    def begin(self, list partitions not None, int64_t now_ms):
        """An entry with all that these partitions (journal_bytes >= 0 of each) have written and is not yet durable.

        As many of them as fit into one entry; None when there is no room for it. Raises OSError, MemoryError.
        """
        cdef Partition partition
        cdef list chosen = []
        cdef int64_t payload = 0
        cdef int64_t size
        for partition in partitions:
            size = partition.journal_size()
            if payload + size <= MAX_ENTRY_BYTES:
                chosen.append(partition)
                payload += size
        targets = [(partition, partition.written_offset) for partition in chosen]
        return self._commit(chosen, targets, payload, b"", 0, now_ms) if chosen else None

    def begin_transaction(self, list holds not None, bytes offsets not None, int64_t number, int64_t now_ms):
        """An entry with all that is held, and what is not yet durable before it; and with the offsets of the
        transaction of that number, if there are any. Together no more than room_bytes().

        None when there is no room for it now. Raises OSError, MemoryError.
        """
        cdef Hold hold
        cdef JournalCommit commit
        cdef int64_t payload = len(offsets)
        for hold in holds:
            payload += hold.size()
        targets = [(hold.partition, hold.end_offset) for hold in holds]
        commit = self._commit(holds, targets, payload, offsets, number if offsets else 0, now_ms)
        if commit is not None:
            # It is decided when it is on the disk: that must not fail for want of room.
            self._files.reserve(commit.fd, commit.position, commit.end - commit.position)
        return commit

    def room_bytes(self, int64_t parts):
        """How many bytes of so many parts an entry can hold at most."""
        return min(
            MAX_ENTRY_BYTES,
            max(self._file_limit - 2 * JOURNAL_BLOCK_BYTES - ENTRY_HEADER_BYTES - ENTRY_PART_BYTES * parts, 0)
        )

    @property
    def usable(self):
        """Whether entries can be written at all, now or later."""
        cdef JournalFile file
        return self.enabled and any([not file.retired for file in self._pair])

    cdef JournalCommit _commit(
        self, list chosen, list targets, int64_t payload, bytes offsets, int64_t number, int64_t now_ms
    ):
        """chosen: partitions, or holds."""
        cdef JournalCommit commit
        cdef int64_t size
        if not self.enabled or (self._current.retired and not self._turn()):
            return None
        size = ENTRY_HEADER_BYTES + ENTRY_PART_BYTES * (len(chosen) + bool(offsets)) + payload
        size = (size + JOURNAL_BLOCK_BYTES - 1) // JOURNAL_BLOCK_BYTES * JOURNAL_BLOCK_BYTES
        if JOURNAL_BLOCK_BYTES + size > self._file_limit:
            return None
        if self._current.end + size > self._file_limit and not self._turn():
            return None
        commit = JournalCommit()
        commit.file = self._current
        commit.directories = self._open(self._current)
        commit.fd = self._current._fd
        commit.position = self._current.end
        commit.targets = targets
        commit.transaction = number
        commit.header = b""
        if commit.position == 0:
            commit.header = self._header(now_ms)
            commit.position = JOURNAL_BLOCK_BYTES
        commit.data = self._entry(chosen, targets, size, payload, offsets, number, now_ms)
        commit.end = commit.position + size
        return commit

    def begun(self, JournalCommit commit not None):
        """The commit's header was written and synced, and the directories: its entry may be written now.

        Not before: with the header of the file's earlier use, entries of that use would be found behind the new one,
        and prove that the first of them, which it overwrites, is damaged.
        """
        commit.header = b""
        commit.directories = []
        commit.file.end = commit.position
        commit.file._unnamed = False

    def end(self, JournalCommit commit not None, int errno_):
        """The commit was written and synced, or that failed."""
        cdef JournalFile file = commit.file
        cdef Partition partition
        cdef int64_t target
        if errno_ == 0:
            self._sequence += 1
            file.end = commit.end
            if commit.transaction:
                file.undone.add(commit.transaction)
            for partition, target in commit.targets:
                # Its segments may have been synced meanwhile: then nobody would come to release it.
                if target > partition.synced_offset:
                    file.covers[partition] = target
        elif errno_ != ENOSPC and errno_ != EDQUOT:
            # What it holds stays; nothing is written to it any more, as with any file whose sync failed. On a full
            # disk the next entry goes to the same place: nobody relies on what stands there.
            file.retired = True

    def void(self, JournalCommit commit not None):
        """Take back the entry, which may be there as a whole though writing it has failed. Raises OSError.

        Only once the file is synced it is certain that no start will find it.
        """
        self._files.truncate(commit.fd, commit.position)

    def done(self, JournalCommit commit not None):
        """The offsets of the entry's transaction are stored elsewhere, durably."""
        commit.file.undone.discard(commit.transaction)

    def release(self, partition not None, int64_t synced_offset):
        """The partition's segments are on the disk up to that offset."""
        cdef JournalFile file
        for file in self._pair:
            if file.covers.get(partition, synced_offset + 1) <= synced_offset:
                del file.covers[partition]

    def forget(self, partition not None):
        """The partition is gone: nothing of it will be asked for."""
        cdef JournalFile file
        for file in self._pair:
            file.covers.pop(partition, None)

    def covered(self):
        """The partitions whose segments are not yet synced as far as one of the files goes."""
        cdef JournalFile file
        return [partition for file in self._pair for partition in file.covers]

    def behind(self):
        """The partitions whose segments have to be synced before the file that is not in use can be used again."""
        cdef JournalFile file
        return [partition for file in self._pair if file is not self._current for partition in file.covers]

    def close(self):
        """Close the files and remove those that nothing depends on. Raises OSError."""
        cdef JournalFile file
        cdef bint removed = False
        self.enabled = False
        for file in self._pair:
            if file._fd < 0:
                continue
            self._files.close(file._fd)
            file._fd = -1
            if not (file.covers or file.undone):
                self._files.unlink(file.path)
                removed = True
        if removed:
            self._files.sync_directory(self.directory)

    def _turn(self):
        """Go on in the other file, if that is free. Returns whether."""
        cdef JournalFile file = self._pair[1] if self._current is self._pair[0] else self._pair[0]
        if file.retired or file.covers or file.undone:
            self.blocked = self.blocked or self._why_blocked(file)
            return False
        self.blocked = ""
        file.end = 0
        self._current = file
        self.turns += 1
        return True

    def _why_blocked(self, JournalFile file not None):
        """Why the file is not free again before the next start; empty when a few syncs will make it so."""
        cdef Partition partition
        if file.retired:
            return f"{file.path} could not be written"
        failed = [
            f"{partition.topic}/{partition.partition}" for partition in file.covers if partition.failure_is_final
        ]
        if not failed:
            return ""
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        return f"{file.path} may hold all that is on the disk of {failed[0]}{more}, which failed"

    def _open(self, JournalFile file not None):
        """The directories to sync, so that the file is found after a power cut. Raises OSError."""
        if file._fd < 0:
            self._files.make_directory(self.directory)
            file._unnamed = True
            file._fd = self._files.open(file.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        return [self.directory, os.path.dirname(self.directory)] if file._unnamed else []

    def _header(self, int64_t now_ms):
        self._current._salt = int.from_bytes(os.urandom(4), "little")
        fields = _HEADER.pack(JOURNAL_VERSION, self._current._salt, self._sequence, now_ms)
        crc = mask(crc32c_of(0, <const uint8_t*>PyBytes_AS_STRING(fields), <size_t>len(fields)))
        header = b"TKJ1" + (<object>crc).to_bytes(4, "little") + fields
        block = bytearray(JOURNAL_BLOCK_BYTES)
        for place in HEADER_COPIES:
            block[place:place + JOURNAL_HEADER_BYTES] = header
        return bytes(block)

    def _entry(
        self, list chosen not None, list targets not None, int64_t size, int64_t payload, bytes offsets not None,
        int64_t number, int64_t now_ms
    ):
        """The bytes of an entry."""
        cdef Partition partition
        cdef Hold hold
        cdef int64_t position
        cdef bytes data = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        cdef uint8_t* entry = <uint8_t*>PyBytes_AS_STRING(data)
        cdef int64_t table_bytes = ENTRY_HEADER_BYTES + ENTRY_PART_BYTES * <int64_t>(len(chosen) + bool(offsets))
        cdef uint8_t* at = entry + table_bytes
        cdef int64_t part_bytes
        cdef uint32_t crc
        cdef bytes table
        parts = []
        for each, (partition, next_offset) in zip(chosen, targets):
            if isinstance(each, Hold):
                hold = each
                part_bytes, position = hold.size(), hold.position()
                hold.copy(at)
            else:
                part_bytes = partition.journal_size()
                position = partition.active.size_bytes - part_bytes
                partition.journal_copy(at)
            parts.append(_PART.pack(
                PART_BATCHES, part_bytes, partition.topic_id, partition.partition, position,
                partition.active.base_offset, partition.active.created_ms, partition.durable_offset, next_offset,
                partition.epoch, 0,
            ))
            at += part_bytes
        if offsets:
            parts.append(_PART.pack(PART_OFFSETS, len(offsets), number, 0, 0, 0, 0, 0, 0, 0, 0))
            memcpy(at, PyBytes_AS_STRING(offsets), <size_t>len(offsets))
            at += len(offsets)
        memset(at, 0, <size_t>(entry + size - at))
        crc = mask(crc32c_of(self._current._salt, entry + table_bytes, <size_t>payload))
        table = struct.pack(
            "<IIQQQq", crc, len(parts), self._sequence, self._sequence - 1, payload, now_ms
        ) + b"".join(parts)
        crc = mask(crc32c_of(self._current._salt, <const uint8_t*>PyBytes_AS_STRING(table), <size_t>len(table)))
        table = b"TKJE" + (<object>crc).to_bytes(4, "little") + table
        memcpy(entry, PyBytes_AS_STRING(table), <size_t>table_bytes)
        return data


# Reading

def read_header(bytes data not None):
    """The JournalHeader in the first bytes of a file. Raises JournalError, JournalVersionError."""
    if len(data) < JOURNAL_HEADER_BYTES or data[:4] != b"TKJ1":
        raise JournalError("it has not a journal's header")
    fields = data[8:JOURNAL_HEADER_BYTES]
    if int.from_bytes(data[4:8], "little") != mask(
        crc32c_of(0, <const uint8_t*>PyBytes_AS_STRING(fields), <size_t>len(fields))
    ):
        raise JournalError("the header's checksum does not match")
    version, salt, first_sequence, created_ms = _HEADER.unpack(fields)
    if not 1 <= version <= JOURNAL_VERSION:
        raise JournalVersionError(f"its version is {version}, this one knows 1 to {JOURNAL_VERSION}")
    return JournalHeader(salt, first_sequence, created_ms)


def claimed_table_bytes(Files files not None, int fd, int64_t place, sequence):
    """How large the table is of what may be an entry at `place`, if that may tell that `sequence` was synced; else -1.

    No checksum was looked at. Raises OSError.
    """
    cdef bytes data = files.read(fd, ENTRY_HEADER_BYTES, place)
    if len(data) < ENTRY_HEADER_BYTES:
        return -1
    _, _, _, count, own_sequence, durable_sequence, payload_bytes, _ = _ENTRY.unpack(data)
    if durable_sequence < sequence or own_sequence != durable_sequence + 1 or payload_bytes > MAX_ENTRY_BYTES:
        return -1
    return min(count * ENTRY_PART_BYTES, files.size(fd) - place)


def read_entry(Files files not None, int fd, int64_t place, uint32_t salt):
    """The JournalEntry that begins at `place` of the file, its sequence whatever it may be.

    Its table's checksum has matched; `whole` tells whether the payload's has. Raises JournalError, OSError.
    """
    entry, payload_place, payload_bytes, payload_crc = _read_table(files, fd, place, salt)
    cdef bytes payload = files.read(fd, payload_bytes, payload_place)
    cdef bint whole = len(payload) == payload_bytes and (
        sum([part.size_bytes for part in entry.parts]) == payload_bytes
    ) and mask(crc32c_of(salt, <const uint8_t*>PyBytes_AS_STRING(payload), <size_t>len(payload))) == payload_crc
    return replace(entry, whole=True) if whole else entry


def read_table(Files files not None, int fd, int64_t place, uint32_t salt):
    """What read_entry() gives, without a look at the payload: not `whole` in any case. Raises JournalError, OSError."""
    return _read_table(files, fd, place, salt)[0]


def _read_table(Files files not None, int fd, int64_t place, uint32_t salt):
    """(what read_table() gives, the payload's place, size in bytes, checksum)."""
    cdef bytes data = files.read(fd, ENTRY_HEADER_BYTES, place)
    if len(data) < ENTRY_HEADER_BYTES or data[:4] != b"TKJE":
        raise JournalError("no entry begins there")
    _, crc, payload_crc, count, sequence, durable_sequence, payload_bytes, time_ms = _ENTRY.unpack(data)
    cdef int64_t rest = files.size(fd) - place - ENTRY_HEADER_BYTES
    if count * ENTRY_PART_BYTES + payload_bytes > rest:
        raise JournalError("the entry is cut short")
    data += files.read(fd, count * ENTRY_PART_BYTES, place + ENTRY_HEADER_BYTES)
    if mask(crc32c_of(salt, <const uint8_t*>PyBytes_AS_STRING(data) + 8, <size_t>(len(data) - 8))) != crc:
        raise JournalError("the entry's checksum does not match")
    cdef int64_t at = place + len(data)
    parts = []
    for fields in _PART.iter_unpack(data[ENTRY_HEADER_BYTES:]):
        parts.append(JournalPart(*fields[:-1], at))
        at += fields[1]
    size = len(data) + payload_bytes
    size = -(-size // JOURNAL_BLOCK_BYTES) * JOURNAL_BLOCK_BYTES
    entry = JournalEntry(sequence, durable_sequence, time_ms, size, tuple(parts), False)
    return entry, place + len(data), payload_bytes, payload_crc
