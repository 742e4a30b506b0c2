"""bench.groups runs, small, and its last line is JSON."""

import json
import subprocess
import sys
from pathlib import Path


def test_bench_groups_runs(tmp_path: Path) -> None:
    flags = ["--members", "4", "--partitions", "6", "--rounds", "1", "--seconds", "0.2", "--directory", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.groups", *flags], capture_output=True, text=True, timeout=120,
        cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert {"4 join at once, ms", "one leaves, ms", "2000/s p50, ms", "10000/s p99, ms"} <= set(figures)
