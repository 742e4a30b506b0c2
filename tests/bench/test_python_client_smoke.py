"""bench.python_client runs, small, and its last line is JSON."""

import json
import subprocess
import sys
from pathlib import Path


def test_bench_python_client_runs(tmp_path: Path) -> None:
    flags = ["--records", "2000", "--rounds", "1", "--directory", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.python_client", *flags], capture_output=True, text=True, timeout=120,
        cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    cases = json.loads(done.stdout.splitlines()[-1])["cases"]
    assert set(cases) == {
        f"{size} B, {name}"
        for size in (100, 1024) for name in ("produce", "read", "messages", "consume", "end to end")}
    assert all(figures["records_per_s"] > 0 and figures["client_us"] > 0 for figures in cases.values())
