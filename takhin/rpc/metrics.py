"""Metrics for Prometheus: what is counted where it happens, read when somebody scrapes.

The calls have the names and labels of go-grpc-prometheus (now go-grpc-middleware's providers/prometheus), so that
dashboards made for it fit; takhin_* is what this broker alone knows of.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from threading import Thread
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from takhin import __version__
from takhin.broker.statistics import Statistics, Usage
from takhin.config import split_listen
from takhin.counters import Histogram
from takhin.errors import StartError
from takhin.rpc.call import Kind, Method
from takhin.rpc.gates import Gates

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

_log = logging.getLogger(__name__)

# A broker that is too busy to tell how it does for so long is told as an error, not waited for.
GATHER_TIMEOUT_S = 5.0
IDLE_TIMEOUT_S = 10.0
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
        started = CounterMetricFamily("grpc_server_started", "RPCs begun on the server.", labels=_CALL_LABELS)
        received = CounterMetricFamily(
            "grpc_server_msg_received", "Messages received from clients.", labels=_CALL_LABELS)
        sent = CounterMetricFamily("grpc_server_msg_sent", "Messages sent to clients.", labels=_CALL_LABELS)
        handled = CounterMetricFamily(
            "grpc_server_handled", "RPCs ended on the server, whatever their status.",
            labels=(*_CALL_LABELS, "grpc_code"))
        seconds = HistogramMetricFamily(
            "grpc_server_handling_seconds", "How long RPCs took until they ended on the server.", labels=_CALL_LABELS)
        for labels, counters in self._methods:
            started.add_metric(labels, counters.started)
            received.add_metric(labels, counters.received)
            sent.add_metric(labels, counters.sent)
            for code, count in counters.handled_by_code().items():
                handled.add_metric((*labels, _CODES[code]), count)
            _add_histogram(seconds, labels, counters.durations)
        yield from (started, received, sent, handled, seconds)


class Front(Protocol):
    """What is asked of one, by threads."""

    @property
    def num_cut(self) -> int: ...

    def usage(self) -> Usage: ...


class BrokerMetrics(Collector):
    """What gather() gives, asked for on `loop` from whichever thread scrapes."""

    def __init__(
        self, gather: Callable[[], Awaitable[Statistics]], loop: asyncio.AbstractEventLoop, gates: Gates,
        front: Front
    ):
        self._gather = gather
        self._loop = loop
        self._gates = gates
        self._front = front

    def collect(self) -> Iterator[Metric]:
        """The takhin_* families. Raises TimeoutError when the event loop is stuck, and what gather() does."""
        async def gathered() -> tuple[Statistics, list[Usage], dict[str, int]]:
            return await self._gather(), list(self._gates.usage()), self._gates.refused()

        asked = asyncio.run_coroutine_threadsafe(gathered(), self._loop)
        try:
            found, of_gates, refused = asked.result(GATHER_TIMEOUT_S)
        except TimeoutError:
            asked.cancel()
            raise
        yield from _of_broker(found)
        connections = self._front.usage()
        yield from _of_limits([*found.usage, *of_gates, connections], refused)
        yield _gauge("takhin_connections", "Connections that clients have open.", connections.used or 0)
        cut = CounterMetricFamily(
            "takhin_connections_cut", "Connections cut off, as they kept the others from being served.")
        cut.add_metric((), self._front.num_cut)
        yield cut
        yield from _of_topics(found)
        yield from _of_groups(found)
        yield from _of_durations(found)

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering it does not ask a broker that does not serve yet."""
        return ()


def _of_broker(found: Statistics) -> Iterator[Metric]:
    yield _gauge("takhin_build_info", "Always 1; its label tells the version.", 1, version=__version__)
    yield _gauge("takhin_uptime_seconds", "Since the broker was started.", found.uptime_s)
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
    """Serves the metrics over HTTP, from threads of its own: a scrape holds up the event loop only while it counts."""

    def __init__(
        self, methods: Iterable[Method], gather: Callable[[], Awaitable[Statistics]], loop: asyncio.AbstractEventLoop,
        gates: Gates, front: Front
    ):
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._registry.register(CallMetrics(methods))
        self._registry.register(BrokerMetrics(gather, loop, gates, front))
        self._loop = loop
        self._server: WSGIServer | None = None
        self._thread: Thread | None = None

    def start(self, listen: str) -> str:
        """Bind `listen` ("HOST:PORT") and serve; gives the bound "HOST:PORT". Raises StartError."""
        host, port = split_listen(listen)
        try:
            self._server, self._thread = start_http_server(port, host, self._registry)
        except OSError as problem:
            raise StartError(f"can't serve metrics on {listen} (--metrics-listen): {problem.strerror}") from None
        # Whoever says nothing for so long does not hold a thread any more.
        handler = self._server.RequestHandlerClass
        self._server.RequestHandlerClass = type(handler.__name__, (handler,), {"timeout": IDLE_TIMEOUT_S})
        return f"{listen.rpartition(':')[0]}:{self._server.server_port}"

    async def stop(self) -> None:
        """Take no more scrapes. Returns when the port is free."""
        server, thread = self._server, self._thread
        if server is None or thread is None:
            return

        def end() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        await self._loop.run_in_executor(None, end)
