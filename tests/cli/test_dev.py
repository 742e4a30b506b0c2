"""takhin dev: a broker that is there at once, and gone without a trace."""

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.broker_process import DEADLINE_S, wait_until
from tests.cli.run import TAKHIN, environment, start, takhin

ANY = ("--listen", "127.0.0.1:0")


def welcome(process: "subprocess.Popen[bytes]") -> tuple[str, Path, list[str]]:
    """Its address, its directory, and the commands it tells of."""
    assert process.stdout is not None and process.stderr is not None
    lines: list[str] = []
    while len(lines) < 2 or not lines[-1].lstrip().startswith("takhin consume"):
        line = process.stdout.readline().decode()
        assert line, process.stderr.read()
        lines.append(line)
    address = re.fullmatch(r"A broker serves on (\S+) until Ctrl-C\.\n", lines[0])
    directory = re.fullmatch(r"Its data is in (\S+), and goes with it\.\n", lines[1])
    assert address and directory
    return address[1], Path(directory[1]), [line.strip() for line in lines if line.startswith("  ")]


def closed(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.stderr.close()


def test_the_next_commands_do_what_they_say_and_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    process = start(None, "dev", *ANY, TMPDIR=str(tmp_path))
    address, directory, commands = welcome(process)
    assert directory.parent == tmp_path and (directory / "data").is_dir()
    assert commands[0] == f"export TAKHIN_BROKER={address}" and len(commands) == 4
    names = tmp_path / "bin"
    names.mkdir()
    (names / "takhin").write_text(f'#!/bin/sh\nexec {" ".join(TAKHIN)} "$@"\n')
    (names / "takhin").chmod(0o755)
    script = "\n".join(["set -e", *commands[:-1], commands[-1] + " -e"])
    done = subprocess.run(
        ["bash", "-c", script], env=environment(PATH=f"{names}:{os.environ['PATH']}"), capture_output=True,
        timeout=DEADLINE_S)
    assert (done.returncode, done.stdout) == (0, b"hello\n"), done.stderr
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_S) == 130
    assert not directory.exists()
    takhin(None, "health", "-b", address, status=5)
    closed(process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_other_signals_leave_nothing_either(tmp_path: Path, number: signal.Signals) -> None:
    process = start(None, "dev", *ANY, "-s", "topics.partitions=3", TMPDIR=str(tmp_path))
    address, directory, _ = welcome(process)
    told = takhin(None, "topic", "create", "t", "-b", address)
    assert told.err == "created topic t with 3 partitions\n"
    process.send_signal(number)
    assert process.wait(DEADLINE_S) == 130 and not directory.exists()
    closed(process)


def test_the_broker_goes_when_dev_is_killed(tmp_path: Path) -> None:
    process = start(None, "dev", *ANY, TMPDIR=str(tmp_path))
    address, directory, _ = welcome(process)
    process.kill()
    process.wait(DEADLINE_S)
    log = directory / "log"
    wait_until(lambda: "stopped" in log.read_text(), what="the broker's end")
    takhin(None, "health", "-b", address, status=5)
    closed(process)


def test_what_keeps_it_from_starting_is_one_line(tmp_path: Path) -> None:
    assert "no such option '--no-such'" in takhin(
        None, "dev", *ANY, "-s", "no.such=1", status=1, TMPDIR=str(tmp_path)).complaint
    assert list(tmp_path.iterdir()) == []


def test_a_broker_that_is_killed_is_told_of(tmp_path: Path) -> None:
    process = start(None, "dev", *ANY, TMPDIR=str(tmp_path))
    _, directory, _ = welcome(process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    assert process.wait(DEADLINE_S) == 1 and not directory.exists()
    closed(process)


def test_it_does_not_run_what_lies_in_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "takhin").mkdir()
    (tmp_path / "takhin" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    code = textwrap.dedent(f"""
        import os
        from pathlib import Path
        from takhin.server_process import ServerProcess
        os.chdir({str(tmp_path)!r})
        server = ServerProcess(Path({str(tmp_path)!r}))
        server.start()
        print(server.address)
        server.stop()
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=DEADLINE_S)
    assert done.returncode == 0 and done.stdout.startswith(b"127.0.0.1:"), done.stderr
