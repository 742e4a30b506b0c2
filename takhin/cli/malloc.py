"""How glibc gives memory to a process that moves large messages."""

import ctypes
import mmap
from collections.abc import Mapping

PAGE_BYTES = mmap.PAGESIZE
# By the variable with which an operator sets the same: the parameter's number in <malloc.h>, the value.
MALLOC_OPTIONS = {
    "MALLOC_ARENA_MAX": (-8, 2),
    "MALLOC_MMAP_THRESHOLD_": (-3, 32 * 1024 * 1024),
    "MALLOC_TRIM_THRESHOLD_": (-1, 64 * 1024 * 1024),
}


def tune_malloc(environ: Mapping[str, str]) -> None:
    """Keep glibc from giving each thread an arena of its own, and from giving memory back only to ask for it again.

    By default a buffer of a MiB is mapped, its pages are cleared one fault at a time, and it is unmapped when freed:
    for messages of that size this costs more than anything else. By mallopt, as glibc reads its environment before
    Python runs; what the operator set there stands.
    """
    if "GLIBC_TUNABLES" in environ:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc
    for variable, (parameter, value) in MALLOC_OPTIONS.items():
        if variable not in environ:
            mallopt(parameter, value)


def give_memory_back() -> None:
    """What is free, wherever in the heap it lies, goes back to the operating system; by itself only the heap's end
    does, and only when it is large. Takes milliseconds for each 100 MB."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass  # not glibc


def memory_bytes() -> int:
    """What the process has in memory of its own, without files; 0 where that can't be told."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            _, resident, shared, *_ = file.read().split()
    except OSError:
        return 0
    return (int(resident) - int(shared)) * PAGE_BYTES
