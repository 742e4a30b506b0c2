"""Prints the micro benchmarks' table against the goals at the end of `pytest bench/micro.py`."""

import pytest

from bench.micro_table import ROWS, lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ROWS:
        terminalreporter.write_sep("=", "microseconds a call, handlers in process, writes to the file included")
        for line in lines(ROWS):
            terminalreporter.write_line(line)
