"""Metrics for Prometheus: what is counted where it happens, read when somebody scrapes.

The calls have the names and labels of go-grpc-prometheus (now go-grpc-middleware's providers/prometheus), so that
dashboards made for it fit; takhin_* is what this broker alone knows of.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from threading import Lock
from typing import NamedTuple, Protocol

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from takhin import __version__
from takhin.broker.statistics import Recovery, Statistics, Usage
from takhin.config import split_listen
from takhin.counters import CallCounters, Histogram
from takhin.errors import StartError
from takhin.rpc.call import Kind, Method
from takhin.rpc.gates import Gates
from takhin.rpc.metrics_http import ScrapeServer

# A broker that is too busy to tell how it does for so long is told as an error, not waited for.
GATHER_TIMEOUT_S = 5.0
# The names of Go's codes.Code, by number.
_CODES = (
    "OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists",
    "PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal",
    "Unavailable", "DataLoss", "Unauthenticated",
)
_TYPES = {Kind.UNARY: "unary", Kind.SERVER_STREAM: "server_stream", Kind.BIDI: "bidi_stream"}
_CALL_LABELS = ("grpc_type", "grpc_service", "grpc_method")


class CallMetrics(Collector):
    """Of every method of a table."""

    def __init__(self, methods: Iterable[Method]):
        self._methods = [
            ((_TYPES[method.kind], method.service, method.path.rpartition("/")[2]), method.counters)
            for method in methods
        ]

    def collect(self) -> Iterator[Metric]:
        """The five families that go-grpc-prometheus has for a server."""
        return self._families(self._methods)

    def describe(self) -> Iterator[Metric]:
        """The same without samples."""
        return self._families([])

    @staticmethod
    def _families(methods: Iterable[tuple[tuple[str, str, str], CallCounters]]) -> Iterator[Metric]:
        started = CounterMetricFamily("grpc_server_started", "RPCs begun on the server.", labels=_CALL_LABELS)
        received = CounterMetricFamily(
            "grpc_server_msg_received", "Messages received from clients.", labels=_CALL_LABELS)
        sent = CounterMetricFamily("grpc_server_msg_sent", "Messages sent to clients.", labels=_CALL_LABELS)
        handled = CounterMetricFamily(
            "grpc_server_handled", "RPCs ended on the server, whatever their status.",
            labels=(*_CALL_LABELS, "grpc_code"))
        seconds = HistogramMetricFamily(
            "grpc_server_handling_seconds", "How long RPCs took until they ended on the server.", labels=_CALL_LABELS)
        for labels, counters in methods:
            started.add_metric(labels, counters.started)
            received.add_metric(labels, counters.received)
            sent.add_metric(labels, counters.sent)
            for code, count in counters.handled_by_code().items():
                handled.add_metric((*labels, _CODES[code]), count)
            _add_histogram(seconds, labels, counters.durations)
        yield from (started, received, sent, handled, seconds)


class Fronts(Protocol):
    """What is asked of all of them together."""

    @property
    def num_cut(self) -> int: ...

    @property
    def num_refused(self) -> int: ...

    def usage(self) -> list[Usage]: ...


class _Found(NamedTuple):
    """What there is to tell: by the broker, and by what stands before it. connections: of each front."""

    broker: Statistics
    of_gates: list[Usage]
    refused: dict[str, int]
    connections: list[Usage]
    num_cut: int
    num_refused: int


class BrokerMetrics(Collector):
    """What gather() gives, asked for on `loop` from whichever thread scrapes; who scrapes at the same time shares it.
    """

    def __init__(
        self, gather: Callable[[], Awaitable[Statistics]], loop: asyncio.AbstractEventLoop, gates: Gates,
        fronts: Fronts
    ):
        self._gather = gather
        self._loop = loop
        self._gates = gates
        self._fronts = fronts
        self._lock = Lock()
        self._under_way: Future[_Found] | None = None

    def collect(self) -> Iterator[Metric]:
        """The takhin_* families. Raises TimeoutError when the event loop is stuck, and what gather() does."""
        asked = self._ask()
        try:
            found = asked.result(GATHER_TIMEOUT_S)
        except TimeoutError:
            asked.cancel()
            raise
        except CancelledError:
            # Whoever asked first has waited for long enough.
            raise TimeoutError from None
        yield from _families(found)

    def describe(self) -> Iterator[Metric]:
        """The families without samples, without asking a broker that does not serve yet."""
        nothing = Statistics(
            [], {}, {}, [], [], 0, 0, 0.0, False, Recovery(False, 0, 0, 0.0), *(Histogram((1.0,)) for _ in range(4)))
        for family in _families(_Found(nothing, [], {}, [], 0, 0)):
            family.samples.clear()
            yield family

    def _ask(self) -> "Future[_Found]":
        with self._lock:
            if self._under_way is None or self._under_way.done():
                self._under_way = asyncio.run_coroutine_threadsafe(self._find(), self._loop)
            return self._under_way

    async def _find(self) -> _Found:
        found = await self._gather()
        return _Found(
            found, list(self._gates.usage()), self._gates.refused(), self._fronts.usage(), self._fronts.num_cut,
            self._fronts.num_refused)


def _families(found: _Found) -> Iterator[Metric]:
    yield from _of_broker(found.broker)
    # The limit is each front's, so what tells how near it is is the one that has most.
    fullest = sorted(found.connections, key=lambda each: each.used or 0)[-1:]
    yield from _of_limits([*found.broker.usage, *found.of_gates, *fullest], found.refused)
    yield _gauge(
        "takhin_connections", "Connections that clients have open, on all fronts.",
        sum(each.used or 0 for each in found.connections))
    cut = CounterMetricFamily(
        "takhin_connections_cut", "Connections cut off, as they kept the others from being served.")
    cut.add_metric((), found.num_cut)
    refused = CounterMetricFamily(
        "takhin_connections_refused", "Connections closed as they came, as the fast front had too many; that of gRPC "
        "does not tell of its own.")
    refused.add_metric((), found.num_refused)
    yield from (cut, refused)
    yield from _of_topics(found.broker)
    yield from _of_groups(found.broker)
    yield from _of_durations(found.broker)


def _of_broker(found: Statistics) -> Iterator[Metric]:
    yield _gauge("takhin_build_info", "Always 1; its label tells the version.", 1, version=__version__)
    yield _gauge("takhin_uptime_seconds", "Since the broker was started.", found.uptime_s)
    yield _gauge(
        "takhin_ready",
        "1 while all partitions take appends: not while the disk is full, a sync of one has failed, or it shuts down.",
        found.is_ready)
    yield _gauge("takhin_epoch", "The log epoch, which every unclean start and every failed write raises.", found.epoch)
    yield _gauge(
        "takhin_disk_free_bytes", "Free on the disk of the data directory; -1: can't be told.", found.free_bytes)
    recovery = found.recovery
    yield _gauge("takhin_recovery_seconds", "What the start took to recover the logs.", recovery.took_s)
    yield _gauge("takhin_recovery_clean", "1 when the run before was stopped in order.", recovery.was_clean)
    yield _gauge("takhin_recovery_scanned_bytes", "Of logs, read by the start.", recovery.scanned_bytes)
    yield _gauge("takhin_recovery_cut_bytes", "Torn ends of logs, cut by the start.", recovery.cut_bytes)
    partitions = GaugeMetricFamily(
        "takhin_partitions",
        "Partitions by state: open; paused after a failed write, or as no segment can be begun; poisoned by a failed "
        "sync, until the next start; quarantined, for damage.", labels=("state",))
    for state in ("open", "paused", "poisoned", "quarantined"):
        partitions.add_metric((state,), found.partitions.get(state, 0))
    yield partitions


def _of_limits(usage: Iterable[Usage], refused: dict[str, int]) -> Iterator[Metric]:
    used = GaugeMetricFamily("takhin_limit_used", "What is in use of a limit.", labels=("limit",))
    most = GaugeMetricFamily("takhin_limit", "The limits of [limits], and connections.", labels=("limit",))
    for each in usage:
        most.add_metric((each.name,), each.limit)
        if each.used is not None:
            used.add_metric((each.name,), each.used)
    calls = CounterMetricFamily(
        "takhin_limit_refused_calls", "Calls refused before they began, as too many were open.", labels=("limit",))
    for name, count in refused.items():
        calls.add_metric((name,), count)
    yield from (used, most, calls)


def _of_topics(found: Statistics) -> Iterator[Metric]:
    families: list[tuple[type[CounterMetricFamily] | type[GaugeMetricFamily], str, str, str]] = [
        (CounterMetricFamily, "takhin_topic_records_in", "Records written since the start.", "written_records"),
        (CounterMetricFamily, "takhin_topic_bytes_in", "Bytes of batches written since the start.", "written_bytes"),
        (CounterMetricFamily, "takhin_topic_records_out", "Records read since the start.", "read_records"),
        (CounterMetricFamily, "takhin_topic_bytes_out", "Bytes of responses read since the start.", "read_bytes"),
        (GaugeMetricFamily, "takhin_topic_size_bytes", "Segments on the disk.", "size_bytes"),
        (GaugeMetricFamily, "takhin_topic_partitions", "Partitions.", "partitions"),
        (GaugeMetricFamily, "takhin_topic_segments", "Segment files.", "segments"),
    ]
    for kind, name, text, field in families:
        family = kind(name, text, labels=("topic",))
        for topic in found.topics:
            family.add_metric((topic.name,), getattr(topic, field))
        yield family


def _of_groups(found: Statistics) -> Iterator[Metric]:
    members = GaugeMetricFamily("takhin_group_members", "Members of a consumer group.", labels=("group",))
    for group, count in found.group_members.items():
        members.add_metric((group,), count)
    lag = GaugeMetricFamily(
        "takhin_group_lag_records", "Records from what a group has committed to the end, all partitions of a topic "
        "together.", labels=("group", "topic"))
    for each in found.group_lags:
        lag.add_metric((each.group_id, each.topic), each.lag)
    yield from (members, lag)


def _of_durations(found: Statistics) -> Iterator[Metric]:
    for name, text, durations in (
        ("takhin_write_seconds", "Writes of all that came in a tick of the event loop.", found.writes),
        ("takhin_sync_seconds", "Syncs of a partition's files.", found.syncs),
        ("takhin_journal_sync_seconds", "Writes and syncs of journal entries.", found.journal_entries),
        ("takhin_loop_lag_seconds", "How late the event loop runs what is due, looked at ten times a second.",
         found.loop_lags),
    ):
        family = HistogramMetricFamily(name, text)
        _add_histogram(family, (), durations)
        yield family


def _gauge(name: str, text: str, value: float, **labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=tuple(labels))
    family.add_metric(tuple(labels.values()), value)
    return family


def _add_histogram(family: HistogramMetricFamily, labels: Iterable[str], durations: Histogram) -> None:
    rows, total_s = durations.read()
    family.add_metric(
        tuple(labels), [("+Inf" if bound == float("inf") else repr(bound), count) for bound, count in rows], total_s)


class MetricsServer:
    """Serves the metrics over HTTP, from threads of its own: a scrape holds up the event loop only while it counts.
    Scrapes are as few at once as metrics_http.py lets through."""

    def __init__(
        self, methods: Iterable[Method], gather: Callable[[], Awaitable[Statistics]], loop: asyncio.AbstractEventLoop,
        gates: Gates, fronts: Fronts
    ):
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._registry.register(CallMetrics(methods))
        self._registry.register(BrokerMetrics(gather, loop, gates, fronts))
        self._loop = loop
        self._server: ScrapeServer | None = None

    def start(self, listen: str) -> str:
        """Bind `listen` ("HOST:PORT") and serve; gives the bound "HOST:PORT". Raises StartError."""
        host, port = split_listen(listen)
        try:
            self._server = ScrapeServer(host, port, self._registry)
        except (OSError, UnicodeError) as problem:
            why = problem.strerror if isinstance(problem, OSError) else "that is no host's name"
            raise StartError(f"can't serve metrics on {listen} (--metrics-listen): {why}") from None
        self._server.start()
        return f"{listen.rpartition(':')[0]}:{self._server.port}"

    async def stop(self) -> None:
        """Take no more scrapes. Returns when the port is free."""
        if self._server is not None:
            await self._loop.run_in_executor(None, self._server.stop)
