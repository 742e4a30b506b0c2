"""docs/operating.md: its commands are run, in their order, in an empty directory; what they show has the shape it says.

A command stands behind "$ " in an indented block, what it shows below it. Numbers, times and process ids may differ
from those in the text, columns may be wider; a line "..." stands for any lines.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from takhin.config import options
from tests import fronts
from tests.broker_process import DEADLINE_S
from tests.house.source import ROOT

DOC = ROOT / "docs" / "operating.md"


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command and the lines it shows."""
    command, shown = "", []
    for line in [*text.splitlines(), ""]:
        is_inside = line.startswith("    ")
        if is_inside and command.endswith("\\"):
            command = command[:-1] + line.strip()
        elif line.startswith("    $ ") or not is_inside:
            if command:
                yield command, shown
            command, shown = line[6:] if is_inside else "", []
        elif command:
            shown.append(line[4:])


def shape(line: str) -> str:
    """What stays the same from run to run."""
    line = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME", line)
    line = re.sub(r"-?\d[\d,]*(\.\d+)?(e[-+]\d+)?", "N", line)
    # One of a thing, or several.
    line = re.sub(r"\b(batch|record|partition|segment|offset|commit|setting)(e?s)?\b", r"\1", line)
    return " ".join(line.split())


def agrees(expected: list[str], shown: list[str]) -> bool:
    """Whether the lines are those expected, "..." being any."""
    if not expected:
        return not shown
    if expected[0] == "...":
        return any(agrees(expected[1:], shown[skipped:]) for skipped in range(len(shown) + 1))
    return bool(shown) and shape(expected[0]) == shape(shown[0]) and agrees(expected[1:], shown[1:])


class Terminal:
    """Runs commands one after the other; those that end with & go on until they are told to end."""

    def __init__(self, directory: Path):
        self.directory = directory
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
        own = {name: value for name, value in os.environ.items() if not name.startswith(("TAKHIN_", "NO_COLOR"))}
        self.environ = own | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TAKHIN_BROKER": address,
            "TAKHIN_OUTPUT": "table"}
        self.address = address
        self.fast_listen = "" if fronts.is_missing(fronts.FAST) else "127.0.0.1:0"
        self.behind: list[subprocess.Popen[bytes]] = []

    def run(self, command: str) -> list[str]:
        """What it shows, on either stream."""
        if command.endswith("&"):
            return self._start(command[:-1].strip())
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.directory, env=self.environ, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=DEADLINE_S)
        if "kill -TERM" in command:
            for process in self.behind:
                assert process.wait(DEADLINE_S) == 0
            self.behind.clear()
        return done.stdout.decode().splitlines()

    def _start(self, command: str) -> list[str]:
        """Until it says that it serves."""
        out = self.directory / "behind"
        with out.open("wb") as file:
            self.behind.append(subprocess.Popen(
                ["bash", "-c", f"exec {command}"], cwd=self.directory, stdin=subprocess.DEVNULL, stdout=file,
                env=self.environ | {"TAKHIN_LISTEN": self.address, "TAKHIN_FAST_LISTEN": self.fast_listen}))
        deadline_s = time.monotonic() + DEADLINE_S
        while "serving on" not in out.read_text():
            assert self.behind[-1].poll() is None and time.monotonic() < deadline_s, command
            time.sleep(0.02)
        lines = out.read_text().splitlines()
        out.unlink()
        return lines

    def close(self) -> None:
        for process in self.behind:
            process.send_signal(signal.SIGKILL)
            process.wait()


def test_the_commands_show_what_it_says(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    run = list(commands(DOC.read_text()))
    assert len(run) > 25
    try:
        for command, expected in run:
            shown = terminal.run(command)
            if not terminal.fast_listen:
                expected = [line for line in expected if not line.startswith("takhin: fast front")]
            assert agrees(expected, shown), "\n".join([f"$ {command}", *shown, "--- in its place:", *expected])
    finally:
        terminal.close()


def test_every_alert_is_explained() -> None:
    rules = (ROOT / "deploy" / "prometheus" / "takhin.rules.yml").read_text()
    alerts = re.findall(r"- alert: (\w+)", rules)
    explained = re.findall(r"^\*\*(Takhin\w+)\*\*", DOC.read_text(), re.MULTILINE)
    assert alerts and sorted(alerts) == sorted(explained)


def test_the_settings_it_names_are_there() -> None:
    known = {option.key for option in options()}
    sections = "|".join(sorted({option.section for option in options()} - {""}))
    named = set(re.findall(rf"`((?:{sections})\.\w+)`", DOC.read_text()))
    assert named and named <= known, named - known


@pytest.mark.parametrize(("expected", "shown", "is_so"), [
    (["a 1"], ["a   22"], True), (["a 1"], ["b 1"], False), (["a"], ["a", "b"], False),
    (["a", "..."], ["a", "b"], True),
    (["...", "c"], ["a", "b", "c"], True), (["...", "c"], ["a", "b"], False), ([], ["a"], False), (["a"], [], False),
])
def test_shapes(expected: list[str], shown: list[str], is_so: bool) -> None:
    assert agrees(expected, shown) is is_so


def test_commands_are_found() -> None:
    text = "x\n\n    $ one \\\n        two\n    shown\n    $ three\n\n    no command\ny\n"
    assert list(commands(text)) == [("one two", ["shown"]), ("three", [])]
