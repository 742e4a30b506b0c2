"""What is measured: the cases of the load bench, and how a measurement becomes figures."""

from dataclasses import dataclass
from statistics import median

from bench.client import EndToEndLoad, Measurement, ProduceLoad

KIB = 1024
MIB = 1024 * KIB
SIZES = {"100B": 100, "1KiB": KIB, "10KiB": 10 * KIB}
ACKS = (0, 1, -1)
BATCH_RECORDS = 100

# Requests unanswered at a time: enough that neither side waits for the other, few enough that queueing stays short.
UNARY_IN_FLIGHT = 16
STREAM_IN_FLIGHT = 64
BATCHED_IN_FLIGHT = 8
LARGE_BATCHED_IN_FLIGHT = 4

END_TO_END_RATE_PER_S = 1000

PERCENTILES = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "p99_9_ms": 0.999, "max_ms": 1.0}


@dataclass(frozen=True)
class CatchUpLoad:
    """Read `fill_bytes` of records of `value_bytes`, produced before, from start to end at 1 MiB a response."""

    value_bytes: int = KIB
    fill_bytes: int = 256 * MIB


Load = ProduceLoad | EndToEndLoad | CatchUpLoad


@dataclass(frozen=True)
class Case:
    """One load under a name whose parts are separated by slashes: unary/1KiB/acks=1."""

    name: str
    load: Load


@dataclass(frozen=True)
class Group:
    """Cases that share one measurement of the bare server, which knows no acks."""

    name: str
    cases: tuple[Case, ...]
    bare: Case


def _produce_group(name: str, size: str, *, streaming: bool, batch: int, in_flight: int) -> Group:
    def case(name: str, required_acks: int) -> Case:
        return Case(name, ProduceLoad(streaming, batch, SIZES[size], required_acks, in_flight))

    group = f"{name}/{size}"
    return Group(group, tuple(case(f"{group}/acks={acks}", acks) for acks in ACKS), case(group, 1))


def all_groups() -> list[Group]:
    """Every group, in the order of the table."""
    groups = [_produce_group("unary-alone", "1KiB", streaming=False, batch=1, in_flight=1)]
    for size in SIZES:
        groups.append(_produce_group("unary", size, streaming=False, batch=1, in_flight=UNARY_IN_FLIGHT))
    for size in SIZES:
        groups.append(_produce_group("stream", size, streaming=True, batch=1, in_flight=STREAM_IN_FLIGHT))
    for size, value_bytes in SIZES.items():
        in_flight = LARGE_BATCHED_IN_FLIGHT if value_bytes > KIB else BATCHED_IN_FLIGHT
        groups.append(_produce_group("batched", size, streaming=True, batch=BATCH_RECORDS, in_flight=in_flight))
    groups.append(
        _produce_group("batched-unary", "1KiB", streaming=False, batch=BATCH_RECORDS, in_flight=BATCHED_IN_FLIGHT)
    )
    others: list[tuple[str, Load]] = [
        ("end-to-end/unary", EndToEndLoad(False, KIB, END_TO_END_RATE_PER_S)),
        ("end-to-end/stream", EndToEndLoad(True, KIB, END_TO_END_RATE_PER_S)),
        ("catch-up", CatchUpLoad()),
    ]
    for name, load in others:
        case = Case(name, load)
        groups.append(Group(name, (case,), case))
    return groups


def choose(groups: list[Group], names: list[str]) -> list[Group]:
    """The groups with only the cases that a name stands for: the case's own, or its first parts ("unary/1KiB").

    ValueError for a name that stands for none.
    """
    unused = set(names)
    chosen = []
    for group in groups:
        cases = []
        for case in group.cases:
            hits = {name for name in names if f"{case.name}/".startswith(f"{name}/")}
            unused -= hits
            if hits:
                cases.append(case)
        if cases:
            chosen.append(Group(group.name, tuple(cases), group.bare))
    if unused:
        known = ", ".join(case.name for group in groups for case in group.cases)
        raise ValueError(f"no case is named {', '.join(sorted(unused))}; there are: {known}")
    return chosen


def percentile(ordered: list[int], fraction: float) -> int:
    """The smallest value that at least `fraction` of the (sorted) values do not exceed."""
    return ordered[max(0, -int(-fraction * len(ordered) // 1) - 1)]


Figures = dict[str, float]


def figures(load: Load, measurement: Measurement) -> Figures:
    """One round's figures. MB are 10^6 bytes; CPU is in microseconds a request (catch-up: a response) and a MB."""
    requests, seconds = measurement.requests, measurement.elapsed_s
    size_mb = measurement.size_bytes / 1e6
    result: Figures = {
        "requests_per_s": requests / seconds,
        "mb_per_s": size_mb / seconds,
        "server_us": measurement.server_cpu_s * 1e6 / requests,
        "server_us_per_mb": measurement.server_cpu_s * 1e6 / size_mb,
    }
    if measurement.records:  # What the bare server sends in catch-up are no records.
        result["records_per_s"] = measurement.records / seconds
    if not isinstance(load, EndToEndLoad):  # There the client spins for its pace.
        result["client_us"] = measurement.client_cpu_s * 1e6 / requests
    if measurement.latencies_ns:
        ordered = sorted(measurement.latencies_ns)
        for name, fraction in PERCENTILES.items():
            result[name] = percentile(ordered, fraction) / 1e6
    return result


def medians(rounds: list[Figures]) -> Figures:
    """The median of each figure over the rounds."""
    return {name: median(figure[name] for figure in rounds) for name in rounds[0]}


def ratios(broker: list[Figures], bare: list[Figures]) -> Figures:
    """Broker over bare: the medians of each round's ratios.

    rate: MB/s (for produce the same as requests/s); cpu: server CPU a MB (for produce the same as a request); p50:
    latency.
    """
    compared = {"rate": "mb_per_s", "cpu": "server_us_per_mb", "p50": "p50_ms"}
    return {
        name: median(ours[figure] / theirs[figure] for ours, theirs in zip(broker, bare, strict=True))
        for name, figure in compared.items()
        if figure in broker[0]
    }
