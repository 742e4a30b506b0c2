"""bench.fronts runs, small, against real servers, and finds what is missing. Nothing here is timed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import front_report, front_rows, fronts
from bench.client import LoadFailed
from takhin.v1 import takhin_pb2 as pb
from tests.secured import IS_DEFAULT

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 300


@pytest.mark.skipif(IS_DEFAULT, reason="the brokers of the bench are its own")
def test_a_quick_run_counts_what_was_appended(programs: None, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.fronts", "--quick", "--dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["rows"]) == {row.name for row in front_rows.ROWS}
    assert found["appended"] > 0
    for name, targets in found["rows"].items():
        assert set(targets) == set(front_report.TARGETS), name
        for figures in targets.values():
            assert figures["rate_per_s"] > 0 and figures["server_us"] > 0 and figures["mb_per_s"] > 0
            assert ("p99_us" in figures) == (name in ("alone", "alone-raw", "streams"))
    assert {goal["row"] for goal in found["goals"]} == {goal.row for goal in front_report.GOALS}
    assert list(tmp_path.iterdir()) == [], "the data directory is gone"


@pytest.mark.skipif(IS_DEFAULT, reason="the brokers of the bench are its own")
@pytest.mark.parametrize("row", ["unary", "bidi", "streams"])
def test_an_acknowledged_record_that_is_not_there_is_an_error(programs: None, tmp_path: Path, row: str) -> None:
    """One row against a broker, then another count than the right one."""
    (chosen,) = front_rows.choose([row])
    cores = os.sched_getaffinity(0)
    try:
        appended_and_counted(chosen, tmp_path)
    finally:
        os.sched_setaffinity(0, cores)


def appended_and_counted(chosen: front_rows.Row, tmp_path: Path) -> None:
    with fronts.servers(tmp_path, front_rows.MIB) as targets:
        for target in targets[:2]:
            topic = target.create_topic()
            outcome = front_rows.run(
                chosen, target.process, target.address, [fronts.produce_request(chosen, topic)], tmp_path, 0.05, 2000)
            assert outcome.records > 0
            target.check_appended(topic, outcome.records)
            for wrong in (outcome.records - 1, outcome.records + 1):
                with pytest.raises(LoadFailed, match=f"{wrong} records were acknowledged"):
                    target.check_appended(topic, wrong)


GOOD = pb.ProduceMessageResponse(offset=7, record_count=1)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (pb.ProduceMessageResponse(code=8, reason="DISK_FULL", error="no room"), "DISK_FULL"),
        (pb.ProduceMessageResponse(offset=7), "an answer for no record"),
    ],
    ids=["refused", "no record"],
)
@pytest.mark.parametrize("client", ["raw_client:bidi", "raw_client:alone", "load_client:bidi", "load_client:unary"])
def test_clients_look_at_the_answers(
    programs: None, tmp_path: Path, client: str, answer: pb.ProduceMessageResponse, told: str
) -> None:
    done = run_against(tmp_path, client, answer)
    assert done.returncode == 1
    assert told in done.stderr


def test_the_raw_client_looks_at_offsets(programs: None, tmp_path: Path) -> None:
    """The bare server gives the same one to each."""
    assert json.loads(run_against(tmp_path, "raw_client:bidi", GOOD).stdout)["records"] > 0
    done = run_against(tmp_path, "raw_client:bidi", GOOD, "--in_order=1")
    assert done.returncode == 1
    assert "out of order" in done.stderr


def run_against(
    tmp_path: Path, client: str, answer: pb.ProduceMessageResponse, *flags: str
) -> subprocess.CompletedProcess[str]:
    """A client's run against the bare server with that answer."""
    (tmp_path / "answer").write_bytes(answer.SerializeToString())
    server = subprocess.Popen(
        [str(front_rows.PROGRAMS / "bare_server"), f"--response={tmp_path / 'answer'}", "--consume_bytes=1024"],
        stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip().rpartition(" ")[2]
        (tmp_path / "request").write_bytes(pb.ProduceMessageRequest(topic="t").SerializeToString())
        program, _, mode = client.partition(":")
        return subprocess.run(
            [str(front_rows.PROGRAMS / program), f"--mode={mode}", f"--address={address}",
             f"--request={tmp_path / 'request'}", "--seconds=0.2", "--warm=0.01", "--window=4", *flags],
            capture_output=True, text=True, timeout=60)
    finally:
        server.kill()
        server.wait()


H2LOAD = """
finished in 1.02s, 98039.2 req/s, 13.3MB/s
requests: {0} total, {0} started, {0} done, {1} succeeded, {2} failed, 0 errored, 0 timeout
"""


def test_h2load_is_believed_only_when_all_succeeded() -> None:
    assert front_rows.parse_h2load(H2LOAD.format(100_000, 100_000, 0), 100_000) == pytest.approx(1.02)
    for output in (H2LOAD.format(100_000, 99_999, 1), H2LOAD.format(99_999, 99_999, 0), "connection refused"):
        with pytest.raises(LoadFailed):
            front_rows.parse_h2load(output, 100_000)


def figures(rate: float, cpu: float) -> dict[str, float]:
    return {"rate_per_s": rate, "mb_per_s": rate / 1000, "server_us": cpu, "server_us_per_mb": cpu, "server_share": 1.0,
            "client_share": 0.5, "p50_us": 1.0, "p99_us": 251.0}


def results() -> front_report.Results:
    """Of two rounds, of which the second was on a machine half as fast."""
    return {row.name: {"grpc.aio": [figures(2_000, 300), figures(1_000, 600)],
                       "fast": [figures(200_000, 5), figures(100_000, 10)],
                       "bare C++": [figures(20_000, 40), figures(10_000, 80)]} for row in front_rows.ROWS}


def test_ratios_are_of_each_round() -> None:
    assert front_report.ratio(results(), "unary", "rate_per_s", "fast", "bare C++") == 10
    found = {(goal["row"], goal["goal"]): goal for goal in front_report.goals(results())}
    assert found["unary", "CPU a call, bare C++ : fast"]["value"] == 8
    assert found["unary", "calls/s"]["reached"] and not found["bidi", "messages/s"]["reached"]
    assert not found["alone", "p99, us"]["reached"]


def test_a_page_keeps_what_is_around_the_tables() -> None:
    page = f"before\n\n{front_report.BEGIN}\nold\n{front_report.END}\n\nafter\n"
    assert front_report.has_marks(page)
    found: dict[str, Any] = {
        "commit": "c" * 40, "dirty": False, "goals": front_report.goals(results()), "appended": 1,
        "machine": dict.fromkeys(("cpu", "cores", "kernel", "filesystem", "python", "grpcio"), "x"),
        "settings": {"rounds": 2, "seconds": 1.0, "load_average_before": 0.5}}
    tables = front_report.markdown(front_rows.ROWS, results(), found)
    written = front_report.written(page, tables)
    assert written == f"before\n\n{front_report.BEGIN}\n\n{tables}\n\n{front_report.END}\n\nafter\n"
    assert front_report.written(written, tables) == written
    assert all(f"| {row.title}" in tables for row in front_rows.ROWS)
    assert not front_report.has_marks("no marks")
    assert front_report.has_marks((ROOT / "docs/performance.md").read_text())
