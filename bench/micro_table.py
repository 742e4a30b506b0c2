"""The rows of the micro benchmarks' closing table: filled by micro.py, printed by conftest.py."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A benchmark's time a call, median and least of the rounds, in microseconds; MB/s are 10^6 bytes of values."""

    name: str
    call_us: float
    least_us: float
    goal_us: float | None
    mb_per_s: float | None


ROWS: list[Row] = []


def lines(rows: list[Row]) -> list[str]:
    """The table, one line a row."""
    table = [f"{'per call':34} {'median us':>10} {'least us':>10} {'goal us':>8} {'MB/s':>8}"]
    for row in rows:
        goal = f"{row.goal_us:8.0f}" if row.goal_us is not None else " " * 8
        rate = f"{row.mb_per_s:8.1f}" if row.mb_per_s is not None else " " * 8
        verdict = ""
        if row.goal_us is not None:
            verdict = "  reached" if row.call_us <= row.goal_us else "  NOT REACHED"
        table.append(f"{row.name:34} {row.call_us:10.2f} {row.least_us:10.2f} {goal} {rate}{verdict}".rstrip())
    return table
