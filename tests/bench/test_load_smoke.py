"""The load bench works: against the real broker, and its checks find what is missing. Nothing here is timed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # bench/ is not installed.

from bench import cases, checks, client  # noqa: E402
from takhin.v1 import takhin_pb2 as pb  # noqa: E402


def test_quick_run_reports_what_was_appended(tmp_path: Path) -> None:
    results = tmp_path / "results" / "load.jsonl"
    command = [sys.executable, "-m", "bench.load", "--quick", "--only", "unary/100B/acks=1,end-to-end/stream"]
    command += ["--dir", str(tmp_path), "--json", str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert json.loads(results.read_text()) == line
    assert set(line["cases"]) == {"unary/100B/acks=1", "end-to-end/stream"}
    for case in line["cases"].values():
        assert case["produced"] == case["read_back"] > 0
        assert case["broker"]["requests_per_s"] > 0 and case["bare"]["requests_per_s"] > 0
        assert 0 < case["broker"]["p50_ms"] <= case["broker"]["p99_9_ms"] <= case["broker"]["max_ms"]
    assert line["memory_kib"]["peak_rss_kib"] > line["memory_kib"]["idle_anon_kib"] > 0
    assert {"cpu", "cores", "kernel", "python", "grpcio"} <= set(line["machine"])
    assert {"commit", "dirty", "date"} <= set(line)
    assert [path.name for path in tmp_path.iterdir()] == ["results"], "the data directory is gone"


def answer(offset: int, **changes: object) -> bytes:
    fields: dict[str, object] = {"offset": offset, "record_count": 2, "durability": pb.DURABILITY_WRITTEN, **changes}
    return pb.ProduceMessageResponse(**fields).SerializeToString()


def test_answers_may_come_in_any_order() -> None:
    assert checks.check_answers([answer(2), answer(0), answer(4)], batch=2, required_acks=1) == 6


@pytest.mark.parametrize(
    "answers",
    [
        [answer(0), answer(4)],
        [answer(0), answer(0)],
        [answer(2)],
        [answer(0, record_count=1)],
        [answer(0, durability=pb.DURABILITY_ACCEPTED)],
        [answer(0, code=8, reason="DISK_FULL", error="full")],
    ],
    ids=["gap", "twice", "not from 0", "too few", "less durable than asked", "refused"],
)
def test_a_wrong_answer_fails(answers: list[bytes]) -> None:
    with pytest.raises(client.LoadFailed):
        checks.check_answers(answers, batch=2, required_acks=1)


@pytest.mark.parametrize(
    "record",
    [pb.Record(offset=2, value=b"v"), pb.Record(offset=0, value=b"v"), pb.Record(offset=1, value=b"w")],
    ids=["gap", "twice", "other value"],
)
def test_a_wrong_record_fails(record: pb.Record) -> None:
    check = checks.LogCheck(b"v")
    check.take(pb.ConsumeMessagesResponse(records=[pb.Record(offset=0, value=b"v")]).SerializeToString())
    with pytest.raises(client.LoadFailed):
        check.take(pb.ConsumeMessagesResponse(records=[record]).SerializeToString())


def test_percentiles_are_of_the_sample() -> None:
    ordered = list(range(1, 1001))
    assert [cases.percentile(ordered, share) for share in (0.5, 0.9, 0.99, 0.999, 1.0)] == [500, 900, 990, 999, 1000]
    assert [cases.percentile([7], share) for share in (0.5, 0.999)] == [7, 7]


def test_ratios_are_medians_of_the_rounds_ratios() -> None:
    ours = [{"mb_per_s": rate, "server_us_per_mb": 1.0} for rate in (1.0, 8.0, 30.0)]
    theirs = [{"mb_per_s": rate, "server_us_per_mb": 2.0} for rate in (2.0, 10.0, 10.0)]
    assert cases.ratios(ours, theirs) == {"rate": 0.8, "cpu": 0.5}


def test_choosing_goes_by_whole_parts_of_names() -> None:
    chosen = cases.choose(cases.all_groups(), ["unary/1KiB", "catch-up"])
    names = [case.name for group in chosen for case in group.cases]
    assert names == ["unary/1KiB/acks=0", "unary/1KiB/acks=1", "unary/1KiB/acks=-1", "catch-up"]
    with pytest.raises(ValueError, match="unary/1KiB/acks=7"):
        cases.choose(cases.all_groups(), ["unary/1KiB/acks=7"])
