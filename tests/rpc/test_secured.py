"""A share of the RPC suite on brokers with TLS and authentication; `make secured` runs all of it so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.secured import IS_DEFAULT

HERE = Path(__file__).parent
# One broker for all of them.
SHARE = (
    "test_topics.py::test_create_tells_success", "test_topics.py::test_deleting_ends_the_topics_consumers",
    "test_produce.py::test_acks", "test_produce.py::test_a_batch_has_one_answer",
    "test_consume.py::test_it_follows_until_cancelled", "test_consume.py::test_max_records",
    "test_subscribe.py::test_a_commit_is_answered_and_the_next_member_begins_there",
    "test_subscribe.py::test_a_second_member_gets_half_where_the_first_one_committed",
    "test_subscribe.py::test_the_end_of_the_requests_is_leaving",
)


@pytest.mark.one_front("grpc", "the share itself runs against each")
@pytest.mark.skipif(IS_DEFAULT, reason="all of the suite runs so")
def test_a_share_of_the_suite() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(str(HERE / name) for name in SHARE)],
        cwd=HERE.parents[1], env=os.environ | {"TAKHIN_TEST_SECURED": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    assert " skipped" not in done.stdout
