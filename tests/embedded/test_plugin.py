"""The pytest plugin, as its users meet it: tests of theirs, run by a pytest of their own."""

import re
import subprocess
import sys
from pathlib import Path

from tests.broker_process import DEADLINE_S
from tests.cli.run import environment
from tests.house.source import ROOT


def run(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments], cwd=directory,
        env=environment(), capture_output=True, timeout=4 * DEADLINE_S)
    return done.stdout.decode() + done.stderr.decode()


def documented() -> list[str]:
    """The Python in docs/testing.md."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "testing.md").read_text(), re.DOTALL)


def test_what_the_documentation_shows_works(tmp_path: Path) -> None:
    blocks = documented()
    assert len(blocks) >= 3
    for number, block in enumerate(blocks):
        (tmp_path / f"test_{number}.py").write_text(block)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    told = run(tmp_path)
    count = sum(len(re.findall(r"^(?:async )?def test_", block, re.MULTILINE)) for block in blocks)
    assert f"{count} passed" in told, told


TESTS = """
def test_one(takhin_broker, takhin_topic):
    with open({path!r}, "a") as file:
        print(takhin_broker.pid, takhin_broker.data_dir, file=file)

def test_two(takhin_broker, takhin_topic):
    test_one(takhin_broker, takhin_topic)
"""


def test_a_broker_lives_as_long_as_it_is_told_to_and_goes(tmp_path: Path) -> None:
    for scope, brokers in [("function", 2), ("session", 1)]:
        seen = tmp_path / scope
        (tmp_path / "test_scope.py").write_text(TESTS.format(path=str(seen)))
        told = run(tmp_path, "-o", f"takhin_broker_scope={scope}", "-o", "asyncio_default_fixture_loop_scope=function")
        assert "2 passed" in told, told
        lines = set(seen.read_text().splitlines())
        assert len(lines) == brokers
        for line in lines:
            pid, data_dir = line.split()
            assert not Path(f"/proc/{pid}").exists() and not Path(data_dir).exists()


def test_a_broker_that_dies_or_can_not_start_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import os, signal, time\n"
        "def test_dies(takhin_broker):\n"
        "    os.kill(takhin_broker.pid, signal.SIGKILL)\n"
        "    takhin_broker.wait(10)\n")
    options = ("-o", "asyncio_default_fixture_loop_scope=function")
    assert "the broker ended during the test" in run(tmp_path, *options)
    told = run(tmp_path, *options, "-o", "takhin_broker_flags=--no-such")
    assert "no such option '--no-such'" in told and "Traceback" not in told
    assert "takhin_broker_scope is function, class" in run(tmp_path, *options, "-o", "takhin_broker_scope=ever")


def test_the_plugin_costs_nothing_where_it_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_it():\n"
        "    assert not {'grpc', 'uvloop', 'takhin.client', 'takhin.broker', 'takhin.sync'} & set(sys.modules)\n")
    assert "1 passed" in run(tmp_path, "-o", "asyncio_default_fixture_loop_scope=function", "-p", "no:asyncio")
