"""What the benches' smoke tests share: the C++ programs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def need(*programs: str) -> None:
    """Skipped for want of a tool, but in CI."""
    missing = [each for each in programs if shutil.which(each) is None]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{', '.join(missing)}: missing")
    if missing:
        pytest.skip(f"{', '.join(missing)}: missing")


@pytest.fixture(scope="module")
def programs() -> None:
    need("protoc", "grpc_cpp_plugin", "h2load", "g++", "pkg-config", "make")
    done = subprocess.run(
        ["make", "--no-print-directory", "bench-cpp"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
