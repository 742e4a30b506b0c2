"""A share of the RPC suite on brokers with TLS and authentication; `make secured` runs all of it so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.secured import IS_DEFAULT

HERE = Path(__file__).parent
SHARE = ("test_topics.py", "test_group_offsets.py", "test_idempotence.py")


@pytest.mark.skipif(IS_DEFAULT, reason="all of the suite runs so")
def test_a_share_of_the_suite() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(str(HERE / name) for name in SHARE)],
        cwd=HERE.parents[1], env=os.environ | {"TAKHIN_TEST_SECURED": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    assert " skipped" not in done.stdout
