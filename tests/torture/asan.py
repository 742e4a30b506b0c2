"""The suite's tests of codec, log, recovery and the fast front, and shares of torn, rot and fuzz, on a build with
sanitizers.

The tree is copied to build/asan and compiled there, with checks of addresses and of undefined behaviour; the
usual build stays as it is. Ends with one line of figures; the exit status is 0 only without a report and with all tests
green.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.torture.copied_tree import ROOT, compile_tree, copy_tree

PLACE = ROOT / "build" / "asan"
TESTS = (
    "tests/codec", "tests/log", "tests/format", "tests/recovery", "tests/broker/test_consume_paths.py",
    "tests/torture/test_torn.py", "tests/torture/test_rot.py", "tests/torture/test_fuzz.py",
    "tests/torture/test_fuzz_front.py", "tests/client/test_client_messages.py", "tests/rpc/test_front.py",
    "tests/rpc/test_front_life.py", "tests/rpc/test_compression.py", "tests/rpc/test_consume.py",
    "tests/rpc/test_produce_stream.py",
)
# What fits into CI: where bytes of others are read, and the log's own structures.
SHARE = (
    "tests/codec", "tests/log/test_partition.py", "tests/log/test_segment_index.py", "tests/log/test_transactions.py",
    "tests/log/test_producers.py", "tests/log/test_journal_replay.py", "tests/torture/test_fuzz.py",
    "tests/client/test_client_messages.py", "tests/rpc/test_front.py",
)


def runtime() -> str:
    """The sanitizer's library: Python was not linked with it, so it has to be loaded first."""
    path = subprocess.run(
        [os.environ.get("CC", "gcc"), "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if not os.path.isabs(path):
        raise SystemExit("asan: the compiler has no libasan")
    # What is found there may be a linker script's name for it.
    return os.path.realpath(path)


def environment(reports: Path) -> dict[str, str]:
    """Of Python's own allocator the sanitizer would see nothing; leaks at the end are the interpreter's."""
    return os.environ | {
        "LD_PRELOAD": runtime(),
        "PYTHONMALLOC": "malloc",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(PLACE),
        # Of the two it is the one that is ours.
        "TAKHIN_TEST_FRONT": "fast",
        "ASAN_OPTIONS": f"detect_leaks=0:abort_on_error=0:exitcode=99:log_path={reports}/asan",
        "UBSAN_OPTIONS": f"print_stacktrace=1:halt_on_error=1:log_path={reports}/ubsan",
    }


def main() -> int:
    """Copy, compile, run."""
    parser = argparse.ArgumentParser(prog="make asan", description=__doc__)
    parser.add_argument("tests", nargs="*", help="what pytest is to run")
    parser.add_argument("--share", action="store_true", help="only a share of it, as CI does")
    arguments = parser.parse_args()
    tests = arguments.tests or (SHARE if arguments.share else TESTS)
    copy_tree(PLACE)
    reports = PLACE / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    compile_tree(PLACE, TAKHIN_SANITIZE="1")
    run = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests], cwd=PLACE,
        env=environment(reports), stdout=subprocess.PIPE, text=True,
    )
    assert run.stdout is not None
    last = ""
    for line in run.stdout:
        print(line, end="", flush=True)
        last = line.strip() or last
    status = run.wait()
    found = sorted(reports.iterdir())
    for report in found:
        print(report.read_text(errors="replace")[:4000], file=sys.stderr)
    passed = re.search(r"(\d+) passed", last)
    print(
        f"asan: {passed[1] if passed else 0} tests passed, {len(found)} reports, pytest ended with {status} ({last})",
        flush=True,
    )
    return 1 if status or found else 0


if __name__ == "__main__":
    raise SystemExit(main())
