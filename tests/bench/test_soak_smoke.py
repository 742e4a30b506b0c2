"""bench.soak runs, small, against real brokers, and finds what is lost. Nothing here is timed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import soak
from bench.churn import Book, SoakFailed
from takhin.v1 import takhin_pb2 as pb
from tests.secured import IS_DEFAULT

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 300


def record(offset: int, number: int) -> pb.Record:
    return pb.Record(offset=offset, value=number.to_bytes(8) + b"rest")


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([record(0, 1)], "acknowledged at 1, is at None"),
        ([record(0, 1), record(1, 2), record(2, 2)], "is at 1 and at 2"),
        ([record(0, 2), record(1, 1)], "acknowledged at 0"),
        ([record(0, 1), record(2, 2)], "offset 2 where 1"),
        ([record(0, 1), record(1, 2), record(2, 9)], "never sent"),
    ],
    ids=["lost", "twice", "elsewhere", "gap", "strange"],
)
def test_the_soak_finds_what_is_wrong_in_a_log(records: list[pb.Record], told: str) -> None:
    with pytest.raises(SoakFailed, match=told):
        soak.check(Book("t", sent={1, 2}, acked={1: 0, 2: 1}), records, is_steady=True)


def test_records_without_an_answer_are_allowed_where_calls_are_torn() -> None:
    book = Book("t", sent={1, 2, 3}, acked={1: 0})
    soak.check(book, [record(0, 1), record(1, 3)], is_steady=False)
    with pytest.raises(SoakFailed, match="3 sent, 1 acknowledged, 2 found"):
        soak.check(book, [record(0, 1), record(1, 3)], is_steady=True)


def test_growth_is_a_failure() -> None:
    samples = [(float(second), 100_000) for second in range(1, 11)]
    soak.check_memory(soak.sampled(samples))
    with pytest.raises(SoakFailed, match="memory grew"):
        soak.check_memory(soak.sampled([*samples[:-1], (10.0, 120_000)]))
    with pytest.raises(SoakFailed, match="memory grew"):
        soak.check_memory(soak.sampled([(float(second), 80_000 + 6_000 * second) for second in range(1, 11)]))


@pytest.mark.skipif(IS_DEFAULT, reason="the broker of the soak is its own")
@pytest.mark.parametrize("front", ["fast", "grpc"])
def test_a_short_soak_loses_nothing(tmp_path: Path, front: str) -> None:
    """Of one round: whether memory grows can't be told of so little."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.soak", "--seconds", "4", "--round-seconds", "4", "--front", front, "--dir",
         str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"unary", "streams", "streams cancelled", "connections cut", "readers", "members"} <= set(found["counts"])


@pytest.mark.skipif(IS_DEFAULT, reason="the broker of the soak is its own")
def test_sigterm_ends_it_in_order_where_ctrl_c_is_ignored(tmp_path: Path) -> None:
    """As in a shell's background, whose children are born with SIGINT ignored."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench.soak", "--seconds", "600", "--dir", str(tmp_path)], cwd=ROOT,
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ) as bench:
        deadline_s = time.monotonic() + TIMEOUT_S
        while not list(tmp_path.glob("*/data/topics*")) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        bench.terminate()
        _, errors = bench.communicate(timeout=60)
    assert (bench.returncode, errors.strip().splitlines()[-1]) == (130, "bench.soak: interrupted")
    assert list(tmp_path.iterdir()) == [], "the data directory is gone"
