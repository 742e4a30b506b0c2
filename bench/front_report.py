"""bench.fronts' results: a table for people, tables for a page, goals, and medians for programs."""

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.front_rows import Row

Figures = dict[str, float]
# By row and target: a round's figures each.
Results = dict[str, dict[str, list[Figures]]]

GRPC, FAST, BARE = "grpc.aio", "fast", "bare C++"
TARGETS = (GRPC, FAST, BARE)

BEGIN = "<!-- figures: written by python -m bench.fronts --write -->"
END = "<!-- end of figures -->"

LEGEND = """\
Medians over the rounds. CPU: user and system time of the server's process, in us a call (or message), the warm-up's
included. busy: how much of its core the server and the client had, of the client's whole life: who has near to 100% is
what the row measures. x: the fast front against the others, medians of each round's ratios; CPU: theirs over its own.
MB: 10^6 bytes of record values; for catch-up, of responses. The bare C++ server appends nothing; it sends constants,
or a file's bytes where that is said."""


def medians(results: Results) -> dict[str, dict[str, Figures]]:
    return {
        row: {name: {key: float(f"{_median(rounds, key):.5g}") for key in rounds[0]} for name, rounds in found.items()}
        for row, found in results.items()}


def _median(rounds: list[Figures], key: str) -> float:
    return median(each[key] for each in rounds)


def ratio(results: Results, row: str, key: str, above: str, below: str) -> float:
    """The median of each round's ratio of `above` to `below`."""
    found = results[row]
    return median(ours[key] / theirs[key] for ours, theirs in zip(found[above], found[below], strict=True))


# Goals


@dataclass(frozen=True)
class Goal:
    """A bound on a figure of the fast front, or on a ratio. `value` is not asked when the row was not measured."""

    what: str
    row: str
    value: Callable[[Results, str], float]
    bound: float
    at_most: bool = False


def _own(key: str) -> Callable[[Results, str], float]:
    return lambda results, row: _median(results[row][FAST], key)


def _ratio(key: str, above: str, below: str) -> Callable[[Results, str], float]:
    return lambda results, row: ratio(results, row, key, above, below)


GOALS = (
    Goal("calls/s", "unary", _own("rate_per_s"), 100_000),
    Goal("p99, us", "alone", _own("p99_us"), 250, at_most=True),
    Goal("messages/s", "bidi", _own("rate_per_s"), 400_000),
    Goal("messages/s, fast : grpc.aio", "bidi-cpp", _ratio("rate_per_s", FAST, GRPC), 8),
    Goal("MB/s, fast : bare C++", "catch-up", _ratio("mb_per_s", FAST, BARE), 1),
    Goal("CPU a MB, fast : bare C++", "catch-up", _ratio("server_us_per_mb", FAST, BARE), 1, at_most=True),
    Goal("MB/s", "bidi-batches", _own("mb_per_s"), 700),
    Goal("CPU a call, bare C++ : fast", "unary", _ratio("server_us", BARE, FAST), 4),
    Goal("CPU a message, bare C++ : fast", "bidi", _ratio("server_us", BARE, FAST), 4),
)


def goals(results: Results) -> list[dict[str, Any]]:
    """Each goal whose row was measured: {row, goal, bound, value, reached}."""
    found = []
    for goal in GOALS:
        if goal.row in results:
            value = goal.value(results, goal.row)
            reached = value <= goal.bound if goal.at_most else value >= goal.bound
            bound = f"{'<=' if goal.at_most else '>='} {goal.bound:,}"
            found.append({"row": goal.row, "goal": goal.what, "bound": bound, "value": float(f"{value:.4g}"),
                          "reached": reached})
    return found


def _verdict(goal: dict[str, Any]) -> str:
    return "reached" if goal["reached"] else "not reached"


def goals_text(found: list[dict[str, Any]]) -> str:
    return "\n".join(f"{each['row']:14} {each['goal']:34} {each['bound']:>12} {each['value']:>12,} {_verdict(each)}"
                     for each in found)


# Tables


def _cell(row: Row, rounds: list[Figures]) -> tuple[str, str, str]:
    """Rate, CPU and latency of one target, as people read them."""
    if row.is_bulk:
        rate, cpu = f"{_median(rounds, 'mb_per_s'):,.0f} MB/s", f"{_median(rounds, 'server_us_per_mb'):,.0f} us/MB"
    else:
        rate, cpu = f"{_median(rounds, 'rate_per_s'):,.0f}", f"{_median(rounds, 'server_us'):,.1f}"
    if "p50_us" not in rounds[0]:
        return rate, cpu, ""
    return rate, cpu, f"{_median(rounds, 'p50_us'):,.0f}/{_median(rounds, 'p99_us'):,.0f}"


def _ratios(row: Row, results: Results, other: str) -> tuple[str, str]:
    rate, cpu = ("mb_per_s", "server_us_per_mb") if row.is_bulk else ("rate_per_s", "server_us")
    return (f"{ratio(results, row.name, rate, FAST, other):.2f}", f"{ratio(results, row.name, cpu, other, FAST):.2f}")


def _busy(rounds: list[Figures]) -> str:
    return f"{_median(rounds, 'server_share'):.0%}/{_median(rounds, 'client_share'):.0%}"


def text(rows: tuple[Row, ...], results: Results) -> str:
    """Each row's title, and a line for each server."""
    lines = [f"{'':12} {'a second':>12} {'CPU us':>12} {'p50/p99 us':>18} {'busy: server/client':>20} {'x rate':>7} "
             f"{'x CPU':>7}"]
    for row in rows:
        lines.append(f"{row.name}: {row.title}{'' if row.is_bulk else ', ' + row.unit}")
        for target in TARGETS:
            rate, cpu, latency = _cell(row, results[row.name][target])
            against = ("", "") if target == FAST else _ratios(row, results, target)
            lines.append(
                f"  {target:10} {rate:>12} {cpu:>12} {latency:>18} {_busy(results[row.name][target]):>20} "
                f"{against[0]:>7} {against[1]:>7}".rstrip())
    return "\n".join([*lines, "", LEGEND])


def markdown(rows: tuple[Row, ...], results: Results, found: dict[str, Any]) -> str:
    """The tables of the page, with where and when they come from."""
    lines = [_told(found), ""]
    lines += [f"| what | {GRPC} | fast | {BARE} | fast : {GRPC} | fast : {BARE} |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = [_cell(row, results[row.name][target])[0] for target in TARGETS]
        unit = "" if row.is_bulk else f", {row.unit}"
        lines.append(_line(row.title + unit, *cells, *(_ratios(row, results, other)[0] for other in (GRPC, BARE))))
    lines += [
        "", "CPU of the server's process, us a call or message, or a MB; and how many times as much the others take:",
        "", f"| what | {GRPC} | fast | {BARE} | {GRPC} : fast | {BARE} : fast |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = [_cell(row, results[row.name][target])[1] for target in TARGETS]
        lines.append(_line(row.title, *cells, *(_ratios(row, results, other)[1] for other in (GRPC, BARE))))
    timed = [row for row in rows if "p50_us" in results[row.name][FAST][0]]
    lines += ["", "p50/p99 of a call or message, us, the client's own share included:", "",
              f"| what | {GRPC} | fast | {BARE} |", "|---|---|---|---|"]
    lines += [_line(row.title, *(_cell(row, results[row.name][target])[2] for target in TARGETS)) for row in timed]
    lines += ["", "How much of its core the server, and the client, had (server/client):", "",
              f"| what | {GRPC} | fast | {BARE} |", "|---|---|---|---|"]
    lines += [_line(row.title, *(_busy(results[row.name][target]) for target in TARGETS)) for row in rows]
    lines += ["", "Goals:", "", "| row | what | bound | measured | |", "|---|---|---|---|---|"]
    lines += [_line(each["row"], each["goal"], each["bound"], f"{each['value']:,}", _verdict(each))
              for each in found["goals"]]
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _told(found: dict[str, Any]) -> str:
    about, settings = found["machine"], found["settings"]
    changed = " (with changes)" if found["dirty"] else ""
    return (
        f"{datetime.date.today().isoformat()}, commit {str(found['commit'])[:10]}{changed}; {about['cpu']}, "
        f"{about['cores']} cores, Linux {about['kernel']}, {about['filesystem']}, Python {about['python']}, "
        f"grpcio {about['grpcio']}; {settings['rounds']} rounds of {settings['seconds']:g} s, load average before "
        f"{settings['load_average_before']:.2f}; {found['appended']:,} records acknowledged and counted in the log.")


def has_marks(page: str) -> bool:
    return page.count(BEGIN) == page.count(END) == 1 and page.index(BEGIN) < page.index(END)


def written(page: str, tables: str) -> str:
    """The page with `tables` between its marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{rest.partition(END)[2]}"
