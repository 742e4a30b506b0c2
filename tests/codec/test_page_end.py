"""What the codec tells does not depend on what lies behind the bytes it is given: also where nothing does.

The C functions are called as the log calls them, on bytes that end where a page ends behind which nothing may be read.
A bytes object has a zero behind it: with one, a read of a byte too many goes unnoticed.
"""

import ctypes
import mmap
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from takhin.codec import batch, wire
from takhin.codec.batch import BATCH_HEADER_SIZE, encode_batch, encode_segment_header
from tests.codec.strategies import bytes_field, header, varint_field

PAGE_BYTES = mmap.PAGESIZE
PROT_NONE = 0
# What may lie behind: as if it went on, with tags of records, lengths, ends of varints and of characters.
BEHIND = [bytes(256), b"\x22" * 256, b"\x80" * 256, b"\xff" * 256, b"\x01\x22" * 128, b"\x22\x00" * 128]

_Address = ctypes.c_void_p
_get_name = ctypes.pythonapi.PyCapsule_GetName
_get_name.restype, _get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def exported(module: Any, name: str, result: Any, *arguments: Any) -> Callable[..., int]:
    """A function that Cython modules share, for Python."""
    capsule = module.__pyx_capi__[name]
    return ctypes.CFUNCTYPE(result, *arguments)(_get_pointer(capsule, _get_name(capsule)))


class Cursor(ctypes.Structure):
    _fields_ = [("at", _Address), ("end", _Address)]


# What functions write their results to: larger than any of them.
_RESULTS = (ctypes.c_uint8 * 256)()
RESULTS = ctypes.addressof(_RESULTS)

read_varint = exported(wire, "read_varint", ctypes.c_int, ctypes.POINTER(Cursor), ctypes.c_int, _Address)
read_field = exported(wire, "read_field", ctypes.c_int, ctypes.POINTER(Cursor), ctypes.c_int, _Address)
check_utf8 = exported(wire, "check_utf8", ctypes.c_int, _Address, ctypes.c_size_t)
check_record = exported(wire, "check_record", ctypes.c_int, _Address, ctypes.c_size_t, _Address)
check_batch = exported(batch, "check_batch", ctypes.c_int, _Address, _Address, _Address)
read_batch_header = exported(batch, "read_batch_header", ctypes.c_int, _Address, _Address, _Address)
skip_record = exported(batch, "skip_record", _Address, _Address, _Address)
skip_records = exported(batch, "skip_records", _Address, _Address, _Address, ctypes.c_int64)
find_timestamp = exported(
    batch, "find_timestamp", ctypes.c_int64, _Address, _Address, ctypes.c_int64, ctypes.c_int64
)
is_segment_header = exported(
    batch, "is_segment_header", ctypes.c_int, _Address, ctypes.c_size_t, ctypes.c_int64, ctypes.c_uint32,
    ctypes.c_int64,
)

# Given where bytes begin and how many there are; what comes of it, places counted from the begin.
Call = Callable[[int, int], Any]


def with_cursor(function: Callable[..., int], minimal: int) -> Call:
    def call(start: int, size: int) -> tuple[int, int]:
        cursor = Cursor(start, start + size)
        fault = function(ctypes.byref(cursor), minimal, RESULTS)
        return fault, 0 if fault else cursor.at - start

    return call


def skipped(count: int) -> Call:
    def call(start: int, size: int) -> int | None:
        end: int | None
        if count == 1:
            end = skip_record(start, start + size)
        else:
            end = skip_records(start, start + size, count)
        return None if end is None else end - start

    return call


RECORD = (
    bytes_field(1, b"key") + bytes_field(2, b"v" * 200) + header("n\u00e4me \u20ac \U0001f600".encode(), b"value")
    + varint_field(4, 1_700_000_000_000)
)
BATCH = encode_batch([RECORD, b"", RECORD], 41, 5, 1_600_000_000_000, 3, 40)
STORED = BATCH[BATCH_HEADER_SIZE:]
SEGMENT_HEADER = encode_segment_header(1, 2, 3, 4)
# Tags of each type, of one byte and of more, and what may follow.
FIELDS = [
    b"\x09" + bytes(8), b"\x0d" + bytes(4), b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x0a\x03abc",
    b"\x82\x80\x01\x83\x00abc", b"\xfa\x01\x01a", b"\x0a\x80\x80\x80\x80\x08", b"\x0a\xff\xff\xff\xff\x07",
]
TEXTS = [each.encode() for each in ("\u00e4", "\u20ac", "\U0001f600", "a\u00e4", "ab\U0010ffff")]


def cut(*whole: bytes) -> list[bytes]:
    """All beginnings, the empty one too, and all of it."""
    return [each[:end] for each in whole for end in range(len(each) + 1)]


CASES: dict[str, tuple[Call, Iterable[bytes]]] = {
    "varint": (with_cursor(read_varint, 1), cut(b"\xff" * 9 + b"\x01", b"\x80" * 12)),
    "field": (with_cursor(read_field, 0), cut(*FIELDS)),
    "field of a record": (with_cursor(read_field, 1), cut(*FIELDS)),
    "utf8": (check_utf8, cut(*TEXTS)),
    "record": (lambda start, size: check_record(start, size, RESULTS), cut(RECORD)),
    "batch": (lambda start, size: check_batch(start, start + size, RESULTS), cut(BATCH)),
    "batch header": (
        lambda start, size: read_batch_header(start, start + size, RESULTS), cut(BATCH)
    ),
    "stored record": (skipped(1), [*cut(STORED[:300]), *cut(b"\x22\x80\x80\x80\x80\x80\x01")]),
    "stored records": (skipped(3), cut(STORED)),
    "more stored records than there are": (skipped(4), cut(STORED)),
    "time": (lambda start, size: find_timestamp(start, start + size, 0, 1 << 60), cut(STORED)),
    "segment header": (lambda start, size: int(is_segment_header(start, size, 1, 2, 3)), cut(SEGMENT_HEADER)),
}


def check(call: Call, inputs: Iterable[bytes]) -> None:
    """Compare what a function tells of bytes before the forbidden page with what it tells with others behind them."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [_Address, ctypes.c_size_t, ctypes.c_int]
    guarded = mmap.mmap(-1, 2 * PAGE_BYTES)
    top = ctypes.addressof(ctypes.c_char.from_buffer(guarded))
    assert libc.mprotect(top + PAGE_BYTES, PAGE_BYTES, PROT_NONE) == 0
    for data in inputs:
        start = top + PAGE_BYTES - len(data)
        ctypes.memmove(start, data, len(data))
        told = call(start, len(data))
        for behind in BEHIND:
            followed = ctypes.create_string_buffer(data + behind, len(data) + len(behind))
            assert call(ctypes.addressof(followed), len(data)) == told, (data, behind)


@pytest.mark.parametrize("case", CASES)
def test_nothing_behind_the_end_is_read(case: str) -> None:
    pid = os.fork()
    if pid == 0:
        # A read too many ends the process.
        status = 1
        try:
            check(*CASES[case])
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
