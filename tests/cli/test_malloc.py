"""Memory that is free goes back to the operating system, whenever the server looked while it was taken and freed."""

import platform
import subprocess
import sys

import pytest

PEAK = """
import asyncio, os, sys
from takhin.cli import malloc

malloc.tune_malloc({})
malloc.MEMORY_CHECK_S = 0.05

async def main():
    tending = asyncio.create_task(malloc.tend_memory(lambda: 0))
    await asyncio.sleep(0.1)
    before, unused_before = malloc.memory_bytes(), malloc.unused_bytes()
    peak = [os.urandom(1024) for _ in range(128 * 1024)]
    await asyncio.sleep(0.5)  # Looked at while all is in use;
    print(malloc.memory_bytes() - before >> 20, malloc.unused_bytes() - unused_before >> 20)
    for stays in map(int, sys.argv[1:]):
        peak = [block for number, block in enumerate(peak) if number % stays == 0]
        await asyncio.sleep(0.5)  # while some are that lie between the others,
        print(malloc.memory_bytes() - before >> 20, malloc.unused_bytes() - unused_before >> 20)
    scattered = peak[::64]
    del peak
    for _ in range(200):  # and again once none is.
        if malloc.memory_bytes() - before < 48 << 20:
            break
        await asyncio.sleep(0.05)
    print(malloc.memory_bytes() - before >> 20)
    tending.cancel()

asyncio.run(main())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
@pytest.mark.parametrize("stays", [(), (5,)], ids=["at once", "after an attempt in vain"])
def test_what_a_peak_took_is_given_back(stays: tuple[int, ...]) -> None:
    """With `stays`: every fifth block of a KiB, which is about one for each page, is freed after the others were."""
    run = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, stays)], capture_output=True, text=True, check=True, timeout=60)
    *told, kept_mib = map(int, run.stdout.split())
    peak_mib, unused_at_peak_mib = told[:2]
    assert peak_mib >= 128
    assert unused_at_peak_mib < 32
    if stays:
        still_mib, unused_still_mib = told[2:]
        assert still_mib >= 96 and unused_still_mib >= 64, "what lay between could not be given back"
    assert kept_mib < 48
