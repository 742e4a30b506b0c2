"""How glibc gives memory to a process that moves large messages, and when it gives it back to the system."""

import asyncio
import ctypes
import mmap
from collections.abc import Callable, Mapping

PAGE_BYTES = mmap.PAGESIZE
# By the variable with which an operator sets the same: the parameter's number in <malloc.h>, the value.
MALLOC_OPTIONS = {
    "MALLOC_ARENA_MAX": (-8, 2),
    "MALLOC_MMAP_THRESHOLD_": (-3, 32 * 1024 * 1024),
    "MALLOC_TRIM_THRESHOLD_": (-1, 64 * 1024 * 1024),
}
# How often tend_memory looks; so many calls fewer than before, or so much more unused than at first, are worth giving
# back; and so many looks at most lie between two attempts that were in vain, or whose room was taken again at once.
MEMORY_CHECK_S = 5.0
MANY_CALLS = 500
MUCH_MEMORY_BYTES = 32 << 20
MOST_LOOKS = 64


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


async def tend_memory(num_open_calls: Callable[[], int]) -> None:
    """Give memory back, until cancelled: after many calls have ended, as what they took lies scattered among what
    others have; and while much more is unused than at first, as calls may be over before they are seen here.

    That there is more in memory is not enough: at the height of a peak all of it is in use, and to try then is to try
    in vain. Nor is one attempt enough: what lies between blocks in use can't be given back before they are free, too,
    and little more is unused then. So it tries again, after twice as many looks each time, as to try costs time and a
    busy broker takes the room again.
    """
    loop = asyncio.get_running_loop()
    most, least_bytes, least_unused_bytes = 0, memory_bytes(), unused_bytes()
    looks_between = looks_to_go = 1
    while True:
        await asyncio.sleep(MEMORY_CHECK_S)
        num_open = num_open_calls()
        most = max(most, num_open)
        if most - num_open >= MANY_CALLS:
            most = num_open
            await loop.run_in_executor(None, give_memory_back)
        in_memory_bytes = memory_bytes()
        least_bytes = min(least_bytes, in_memory_bytes)
        if in_memory_bytes - least_bytes < MUCH_MEMORY_BYTES:
            looks_between = looks_to_go = 1
            continue
        looks_to_go -= 1
        if looks_to_go:
            continue
        now_unused_bytes = await loop.run_in_executor(None, unused_bytes)
        least_unused_bytes = min(least_unused_bytes, now_unused_bytes)
        if now_unused_bytes - least_unused_bytes < MUCH_MEMORY_BYTES:
            looks_between = 1
        else:
            await loop.run_in_executor(None, give_memory_back)
            looks_between = min(2 * looks_between, MOST_LOOKS)
        looks_to_go = looks_between


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


class _Mallinfo2(ctypes.Structure):
    """struct mallinfo2 of <malloc.h>, glibc 2.33 and newer."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]


def unused_bytes() -> int:
    """What the process has in memory beyond what malloc has given out: what was freed and kept, and what is not
    malloc's. Takes about a millisecond for each 20 MB that lie free in small pieces.

    Without mallinfo2 (an older glibc, another library) all that is in memory counts.
    """
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):
        return memory_bytes()
    mallinfo2.restype = _Mallinfo2
    given_out = mallinfo2()
    return memory_bytes() - given_out.uordblks - given_out.hblkhd
