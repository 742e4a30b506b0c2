"""Memory that is free goes back to the operating system, also what was taken at the height of a peak."""

import platform
import subprocess
import sys

import pytest

PEAK = """
import asyncio, os
from takhin.cli import malloc

malloc.tune_malloc({})
malloc.MEMORY_CHECK_S = 0.05

async def main():
    tending = asyncio.create_task(malloc.tend_memory(lambda: 0))
    await asyncio.sleep(0.1)
    before, unused_before = malloc.memory_bytes(), malloc.unused_bytes()
    peak = [os.urandom(1024) for _ in range(128 * 1024)]
    await asyncio.sleep(0.5)  # Looked at while all is in use,
    print(malloc.memory_bytes() - before >> 20, malloc.unused_bytes() - unused_before >> 20)
    scattered = peak[::64]
    del peak
    for _ in range(200):  # and again once it is not.
        if malloc.memory_bytes() - before < 48 << 20:
            break
        await asyncio.sleep(0.05)
    print(malloc.memory_bytes() - before >> 20)
    tending.cancel()

asyncio.run(main())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_what_a_peak_took_is_given_back() -> None:
    run = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, timeout=60)
    peak_mib, unused_at_peak_mib, kept_mib = map(int, run.stdout.split())
    assert peak_mib >= 128
    assert unused_at_peak_mib < 32
    assert kept_mib < 48
