"""The load bench's results as a table for people and one JSON line for programs."""

import datetime
import fnmatch
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.cases import Figures, Group, medians, ratios

ROOT = Path(__file__).resolve().parent.parent

RESIDENT_GOAL_MIB = 200


@dataclass
class Series:
    """One case's rounds, with the records answered and the records found in the log over all of them."""

    broker: list[Figures] = field(default_factory=list)
    bare: list[Figures] = field(default_factory=list)
    produced: int = 0
    read_back: int = 0


@dataclass
class MemoryPeak:
    """The broker's memory in KiB: before any load, and the most seen under it."""

    idle_rss_kib: int = 0
    idle_anon_kib: int = 0
    peak_rss_kib: int = 0
    peak_anon_kib: int = 0


@dataclass(frozen=True)
class Goal:
    """A bound on one ratio of the cases that match `cases`."""

    what: str
    cases: str
    ratio: str
    bound: float
    at_most: bool


GOALS = (
    Goal("unary: server CPU a call, broker/bare", "unary/*", "cpu", 1.15, at_most=True),
    Goal("batches of 100 x 1 KiB: MB/s, broker/bare", "batched*/1KiB/*", "rate", 0.75, at_most=False),
    Goal("catch-up: MB/s, broker/bare", "catch-up", "rate", 0.75, at_most=False),
)

_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("requests_per_s", "requests/s", ">11,.0f"),
    ("records_per_s", "records/s", ">11,.0f"),
    ("mb_per_s", "MB/s", ">8,.1f"),
    ("server_us", "server us", ">10,.1f"),
    ("client_us", "client us", ">10,.1f"),
    ("p50_ms", "p50 ms", ">8.2f"),
    ("p90_ms", "p90 ms", ">8.2f"),
    ("p99_ms", "p99 ms", ">8.2f"),
    ("p99_9_ms", "p99.9 ms", ">9.2f"),
)
_RATIO_COLUMNS = (("rate", "rate"), ("cpu", "CPU"), ("p50", "p50"))
_NAME_WIDTH = 24

LEGEND = """\
Medians over the rounds, percentiles those of each round (of fewer than 1,000 requests in a round p99.9 is the slowest).
us: CPU time, user and system, of the server's and of the client's process a request; for catch-up, a response.
MB: 10^6 bytes of record values; for catch-up, of responses. Latency in a stream is queueing too: its window is full.
end-to-end: from when a record was due to be sent to its arrival at the consumer. x bare: broker/bare, medians of each
round's ratios (rate: MB/s; CPU: server CPU a byte). Every record answered was read back and counted."""


def _width(spec: str) -> int:
    return int(spec.strip(">").partition(".")[0].strip(",f"))


def _row(name: str, figures: Figures, ratio: Figures) -> str:
    cells = [f"{name:{_NAME_WIDTH}}"]
    for key, _, spec in _COLUMNS:
        cells.append(format(figures[key], spec) if key in figures else " " * (_width(spec) - 1) + "-")
    for key, _ in _RATIO_COLUMNS:
        cells.append(f"{ratio[key]:>6.2f}" if key in ratio else " " * 6)
    return " ".join(cells).rstrip()


def table(groups: list[Group], results: dict[str, Series]) -> str:
    """One line a case, and one a group for the bare server."""
    header = [f"{'case':{_NAME_WIDTH}}"]
    header += [f"{title:>{_width(spec)}}" for _, title, spec in _COLUMNS]
    titles = " ".join(header)
    ratio_titles = " ".join(f"{title:>6}" for _, title in _RATIO_COLUMNS)
    lines = [f"{'':{len(titles)}} {'x bare':>20}", f"{titles} {ratio_titles}"]
    for group in groups:
        for case in group.cases:
            series = results[case.name]
            lines.append(_row(case.name, medians(series.broker), ratios(series.broker, series.bare)))
        lines.append(_row("  bare", medians(results[group.cases[0].name].bare), {}))
    return "\n".join(lines)


def goals(results: dict[str, Series], memory: MemoryPeak) -> list[dict[str, Any]]:
    """Each goal with each case measured that it speaks of: {goal, case, bound, value, reached}."""
    found: list[dict[str, Any]] = []
    for goal in GOALS:
        for name, series in results.items():
            if not fnmatch.fnmatchcase(name, goal.cases):
                continue
            value = ratios(series.broker, series.bare)[goal.ratio]
            reached = value <= goal.bound if goal.at_most else value >= goal.bound
            bound = f"{'<=' if goal.at_most else '>='} {goal.bound}"
            found.append(_verdict(goal.what, name, bound, round(value, 3), reached))
    peak_mib = memory.peak_rss_kib / 1024
    reached = peak_mib < RESIDENT_GOAL_MIB
    found.append(
        _verdict("resident memory under this load, MiB", "all", f"< {RESIDENT_GOAL_MIB}", round(peak_mib, 1), reached)
    )
    return found


def _verdict(goal: str, case: str, bound: str, value: float, reached: bool) -> dict[str, Any]:
    return {"goal": goal, "case": case, "bound": bound, "value": value, "reached": reached}


def goals_table(found: list[dict[str, Any]]) -> str:
    lines = [f"{'goal':44} {'case':26} {'bound':>8} {'measured':>9}"]
    for row in found:
        verdict = "reached" if row["reached"] else "NOT REACHED"
        lines.append(f"{row['goal']:44} {row['case']:26} {row['bound']:>8} {row['value']:>9} {verdict}")
    return "\n".join(lines)


def memory_lines(memory: MemoryPeak) -> str:
    def mib(kib: int) -> str:
        return f"{kib / 1024:.0f} MiB"

    return (
        f"broker's memory: resident {mib(memory.idle_rss_kib)} (anonymous {mib(memory.idle_anon_kib)}) before the "
        f"load, at most {mib(memory.peak_rss_kib)} (anonymous {mib(memory.peak_anon_kib)}) under it"
    )


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def commit() -> dict[str, Any]:
    """{"commit": hash or None outside a repository, "dirty": whether the tree differs from it}."""
    head = _git("rev-parse", "HEAD")
    return {"commit": head, "dirty": bool(_git("status", "--porcelain")) if head else None}


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def filesystem(path: Path) -> str:
    """The type of the filesystem that holds `path`: on a tmpfs acks=-1 costs nothing and proves nothing."""
    best = ("", "unknown")
    resolved = str(path.resolve())
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if f"{resolved}/".startswith(f"{mount.rstrip('/')}/") and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1]


def machine(data_dir: Path) -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "filesystem": filesystem(data_dir),
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "protobuf": version("protobuf"),
        "uvloop": version("uvloop"),
    }


def _rounded(figures: Figures) -> Figures:
    return {name: float(f"{value:.5g}") for name, value in figures.items()}


def _spread(figures: list[Figures], name: str) -> list[float]:
    values = sorted(figure[name] for figure in figures)
    return [float(f"{value:.5g}") for value in (values[0], values[-1])]


def case_result(series: Series) -> dict[str, Any]:
    """A case's entry in the JSON line: medians of both sides, ratios, the extremes of MB/s, and the counts."""
    return {
        "broker": _rounded(medians(series.broker)),
        "bare": _rounded(medians(series.bare)),
        "ratio": _rounded(ratios(series.broker, series.bare)),
        "mb_per_s_min_max": _spread(series.broker, "mb_per_s"),
        "bare_mb_per_s_min_max": _spread(series.bare, "mb_per_s"),
        "produced": series.produced,
        "read_back": series.read_back,
    }


def result(
    settings: dict[str, Any],
    data_dir: Path,
    results: dict[str, Series],
    memory: MemoryPeak,
    goals_found: list[dict[str, Any]],
    clock: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
) -> dict[str, Any]:
    """Everything the JSON line holds."""
    return {
        "bench": "load",
        "date": clock().isoformat(timespec="seconds"),
        **commit(),
        "machine": machine(data_dir),
        "settings": settings,
        "memory_kib": vars(memory),
        "goals": goals_found,
        "cases": {name: case_result(series) for name, series in results.items()},
    }
