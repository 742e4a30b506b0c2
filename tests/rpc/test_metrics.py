"""Metrics as Prometheus scrapes them, of a broker that stock clients use."""

import asyncio
import contextlib
import errno
import itertools
import os
import re
import socket
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from takhin.broker.statistics import Recovery, Statistics
from takhin.counters import Histogram
from takhin.rpc import metrics, metrics_http
from takhin.rpc.metrics import BrokerMetrics
from takhin.rpc.metrics_http import MAX_CONNECTIONS, ScrapeServer
from takhin.rpc.seldom import Seldom
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import DEADLINE_S, BrokerProcess, commit, new_topic, produce, read
from tests.conftest import StartBroker

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def metered(start_broker: StartBroker) -> BrokerProcess:
    return start_broker("--metrics-listen", "127.0.0.1:0")


def scrape(broker: BrokerProcess) -> Samples:
    with urllib.request.urlopen(f"http://{broker.metrics_address}/metrics", timeout=DEADLINE_S) as response:
        text = response.read().decode()
    families = list(text_string_to_metric_families(text))
    # Each has a help text, none comes twice.
    assert all(family.documentation for family in families)
    assert len({family.name for family in families}) == len(families)
    samples = [sample for family in families for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def of(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0)


def call(method: str, kind: str, **labels: str) -> dict[str, str]:
    return {"grpc_service": "takhin.v1.TakhinService", "grpc_method": method, "grpc_type": kind, **labels}


def eventually(check: Callable[[], bool]) -> None:
    """A call is counted when its handler has ended, which may be after its client has the answer."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not check():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_calls_are_counted_as_stock_dashboards_want_it(metered: BrokerProcess) -> None:
    stub = metered.stub()
    topic = new_topic(stub, 2)
    for _ in range(5):
        produce(stub, topic, b"x")
    for _ in range(2):
        with pytest.raises(grpc.RpcError):
            stub.GetTopic(pb.GetTopicRequest(name="missing"), timeout=DEADLINE_S)

    def requests() -> Iterator[pb.ProduceMessageRequest]:
        for _ in range(7):
            yield pb.ProduceMessageRequest(topic=topic, partition=1, record=pb.Record(value=b"y"), required_acks=1)

    assert len(list(stub.ProduceMessageStream(requests(), timeout=DEADLINE_S))) == 7
    consumed = read(stub, topic, partition=1)
    assert len(consumed) == 7
    stream = stub.ConsumeMessages(pb.ConsumeMessagesRequest(topic=topic, offset=0), timeout=DEADLINE_S)
    next(iter(stream))
    stream.cancel()
    found: Samples = {}
    readers = call("ConsumeMessages", "server_stream")

    def ended(code: str) -> float:
        return of(found, "grpc_server_handled_total", **readers, grpc_code=code)

    def all_ended() -> bool:
        nonlocal found
        found = scrape(metered)
        handled = sum(
            value for (name, labels), value in found.items()
            if name == "grpc_server_handled_total" and ("grpc_method", "ConsumeMessages") in labels
        )
        return handled == of(found, "grpc_server_started_total", **readers) >= started

    started = 2
    eventually(all_ended)
    assert (ended("Canceled"), ended("DeadlineExceeded")) == (1, 0)
    # A client resets the stream at its deadline, too: now and then that is here before the server's own clock is there.
    while not ended("DeadlineExceeded"):
        assert started < 20
        started += 1
        late = stub.ConsumeMessages(pb.ConsumeMessagesRequest(topic=topic, offset=-2), timeout=0.2)
        with pytest.raises(grpc.RpcError):
            next(iter(late))
        eventually(all_ended)
    assert (ended("Canceled"), ended("DeadlineExceeded")) == (started - 2, 1)
    unary = call("ProduceMessage", "unary")
    for name in ("started", "msg_received", "msg_sent"):
        assert of(found, f"grpc_server_{name}_total", **unary) == 5
    assert of(found, "grpc_server_handled_total", **unary, grpc_code="OK") == 5
    assert of(found, "grpc_server_handled_total", **call("GetTopic", "unary"), grpc_code="NotFound") == 2
    assert of(found, "grpc_server_msg_sent_total", **call("GetTopic", "unary")) == 0
    bidi = call("ProduceMessageStream", "bidi_stream")
    assert of(found, "grpc_server_msg_received_total", **bidi) == of(found, "grpc_server_msg_sent_total", **bidi) == 7
    assert of(found, "grpc_server_handling_seconds_count", **unary) == 5
    assert of(found, "grpc_server_handling_seconds_bucket", **unary, le="+Inf") == 5
    assert 0 < of(found, "grpc_server_handling_seconds_bucket", **unary, le="10.0") <= 5
    assert 0 < of(found, "grpc_server_handling_seconds_sum", **unary) < 5 * DEADLINE_S


def test_what_the_broker_alone_knows(metered: BrokerProcess) -> None:
    stub = metered.stub()
    topic = new_topic(stub, 3)
    produce(stub, topic, *[b"x" * 100] * 40, partition=0, acks=-1)
    produce(stub, topic, *[b"x" * 100] * 10, partition=2, acks=-1)
    assert len(read(stub, topic, partition=0)) == 40
    commit(stub, "billing", (topic, 0, 15), (topic, 2, 10))
    found = scrape(metered)
    assert of(found, "takhin_topic_records_in_total", topic=topic) == 50
    assert of(found, "takhin_topic_records_out_total", topic=topic) == 40
    assert 5_000 < of(found, "takhin_topic_bytes_in_total", topic=topic) < 10_000
    assert 4_000 < of(found, "takhin_topic_bytes_out_total", topic=topic) < 10_000
    assert of(found, "takhin_topic_size_bytes", topic=topic) > 5_000
    assert of(found, "takhin_topic_partitions", topic=topic) == 3
    assert of(found, "takhin_topic_segments", topic=topic) == 2
    assert of(found, "takhin_group_lag_records", group="billing", topic=topic) == 25
    assert of(found, "takhin_group_members", group="billing") == 0
    assert of(found, "takhin_partitions", state="open") == 3 and of(found, "takhin_ready") == 1
    assert of(found, "takhin_limit_used", limit="partitions") == 3 < of(found, "takhin_limit", limit="partitions")
    assert of(found, "takhin_limit_used", limit="ring_bytes") > 0
    assert of(found, "takhin_sync_seconds_count") + of(found, "takhin_journal_sync_seconds_count") >= 2
    assert of(found, "takhin_write_seconds_count") >= 2
    assert of(found, "takhin_disk_free_bytes") > 0 and of(found, "process_resident_memory_bytes") > 0
    before = of(found, "takhin_epoch")
    metered.kill()
    metered.start()
    found = scrape(metered)
    # Counters begin anew, as Prometheus expects of them; what is on the disk stays.
    assert of(found, "takhin_topic_records_in_total", topic=topic) == 0
    assert of(found, "takhin_topic_size_bytes", topic=topic) > 5_000
    assert of(found, "takhin_group_lag_records", group="billing", topic=topic) == 25
    assert of(found, "takhin_epoch") == before + 1 and of(found, "takhin_recovery_clean") == 0


def test_a_poisoned_partition_shows(start_broker: StartBroker, strace: list[str]) -> None:
    broker = start_broker(
        "--metrics-listen", "127.0.0.1:0",
        prefix=[*strace, "-o", "/dev/null", "-P", "{data}/topics/1/0/00000000000000000000.log", "-e",
                "inject=fdatasync:error=EIO"])
    stub = broker.stub()
    topic = new_topic(stub)
    with pytest.raises(grpc.RpcError):
        produce(stub, topic, b"x", acks=-1)
    found = scrape(broker)
    assert of(found, "takhin_partitions", state="poisoned") == 1
    assert found[("takhin_ready", frozenset())] == 0


def test_a_full_disk_shows(start_broker: StartBroker) -> None:
    """Partitions stay open, so it is told otherwise: what the rules look at."""
    broker = start_broker("--metrics-listen", "127.0.0.1:0", "--limits-min-free-bytes", str(1 << 40))
    new_topic(broker.stub())
    eventually(lambda: of(scrape(broker), "takhin_disk_free_bytes") > 0)
    found = scrape(broker)
    assert found[("takhin_ready", frozenset())] == 0
    assert of(found, "takhin_partitions", state="open") == 1
    assert of(found, "takhin_disk_free_bytes") < of(found, "takhin_limit", limit="min_free_bytes") == 1 << 40


def test_where_metrics_can_not_be_served(start_broker: StartBroker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        broker = start_broker()
        broker.terminate()
        assert broker.start_or_end("--metrics-listen", address) == 1
    assert f"can't serve metrics on {address}" in broker.stderr


def test_nothing_but_reading(metered: BrokerProcess) -> None:
    request = urllib.request.Request(f"http://{metered.metrics_address}/metrics", data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=DEADLINE_S)
    assert refused.value.code == 405
    refused.value.close()


ROOT = Path(__file__).resolve().parents[2]
_OURS = re.compile(r"\b(?:takhin|grpc_server)_[a-z_]+\b")


@pytest.mark.parametrize("path", ["deploy/prometheus/takhin.rules.yml", "deploy/grafana/takhin.json"])
def test_rules_and_dashboards_name_what_is_there(metered: BrokerProcess, path: str) -> None:
    stub = metered.stub()
    topic = new_topic(stub)
    produce(stub, topic, b"x")
    commit(stub, "g", (topic, 0, 1))
    with pytest.raises(grpc.RpcError):
        stub.GetTopic(pb.GetTopicRequest(name="missing"), timeout=DEADLINE_S)
    names = {name for name, _ in scrape(metered)}
    named = set(_OURS.findall((ROOT / path).read_text()))
    assert len(named) > 8 and not named - names


def test_the_page_tells_of_every_metric(metered: BrokerProcess) -> None:
    with urllib.request.urlopen(f"http://{metered.metrics_address}/metrics", timeout=DEADLINE_S) as response:
        there = set(re.findall(r"^# TYPE ((?:takhin|grpc_server)_\w+) ", response.read().decode(), re.MULTILINE))
    told = set(re.findall(r"`((?:takhin|grpc_server)_[a-z_]+)`", (ROOT / "docs/monitoring.md").read_text()))
    assert there == told


def idle(broker: BrokerProcess) -> socket.socket:
    """A connection for metrics that asks for nothing."""
    host, _, port = broker.metrics_address.rpartition(":")
    return socket.create_connection((host, int(port)), DEADLINE_S)


def num_connections(broker: BrokerProcess) -> int:
    """For metrics, that the broker has not closed."""
    local = f":{int(broker.metrics_address.rpartition(':')[2]):04X}"
    found = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    # 0A: it listens.
    sockets = {f"socket:[{each[9]}]" for each in found if each[1].endswith(local) and each[3] != "0A"}
    open_files = set()
    for path in Path(f"/proc/{broker.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            open_files.add(os.readlink(path))
    return len(sockets & open_files)


def test_connections_for_metrics_are_few(metered: BrokerProcess) -> None:
    scrape(metered)
    eventually(lambda: num_connections(metered) == 0)
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(idle(metered)) for _ in range(MAX_CONNECTIONS)]
        beyond = [stack.enter_context(idle(metered)) for _ in range(50)]
        for each in beyond:
            assert ended(each)
        eventually(lambda: num_connections(metered) == MAX_CONNECTIONS)
        # Those that were there first are served.
        kept[0].sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert kept[0].recv(12) == b"HTTP/1.0 200"
    eventually(lambda: num_connections(metered) == 0)
    assert of(scrape(metered), "takhin_uptime_seconds") > 0
    metered.wait_for_log("more than 8 connections for metrics at once, the last from 127.0.0.1: closed")
    assert metered.stderr.count("closed") == 1


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_clients_that_leave_are_no_news(metered: BrokerProcess) -> None:
    scrape(metered)
    since = len(metered.stderr)
    for sent in b"", b"GET", b"GET /metrics HTTP/1.0\r\n\r\n", b"\x00" * 1000:
        with idle(metered) as connection:
            connection.sendall(sent)
            # Closed like that it is reset.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    scrape(metered)
    metered.terminate()
    assert "metrics" not in metered.stderr[since:] and "File \"" not in metered.stderr[since:]


def test_metrics_by_name(metered: BrokerProcess) -> None:
    url = f"http://{metered.metrics_address}/metrics?name[]=takhin_uptime_seconds&name[]=grpc_server_started_total"
    with urllib.request.urlopen(url, timeout=DEADLINE_S) as response:
        text = response.read().decode()
    names = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    assert names == {"takhin_uptime_seconds", "grpc_server_started_total"}


class Serving:
    """A ScrapeServer in this process."""

    def __init__(self, *collectors: Collector):
        registry = CollectorRegistry()
        for each in collectors:
            registry.register(each)
        self.server = ScrapeServer("127.0.0.1", 0, registry)
        self.server.start()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), DEADLINE_S)

    def get(self) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.server.port}/", timeout=DEADLINE_S) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, ""


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Serving]]:
    made: list[Serving] = []
    # One that has told nothing yet.
    monkeypatch.setattr(metrics_http._log, "filters", [Seldom(metrics_http.__name__)])

    def make(*collectors: Collector) -> Serving:
        made.append(Serving(*collectors))
        return made[-1]

    yield make
    for each in made:
        each.server.stop()


def test_who_trickles_is_cut_off(serving: Callable[..., Serving], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_http, "REQUEST_TIMEOUT_S", 1.0)
    with serving().connect() as connection:
        connection.settimeout(0.1)
        # A byte ten times a second: no single wait is long.
        deadline_s = time.monotonic() + DEADLINE_S
        is_over = False
        while not is_over:
            assert time.monotonic() < deadline_s
            try:
                connection.sendall(b"G")
                is_over = connection.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                is_over = True


def test_without_descriptors_it_waits(
    serving: Callable[..., Serving], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[float] = []
    own = serving()

    class Exhausted:
        """A listening socket in a process without descriptors."""

        def __init__(self, real: socket.socket):
            self.real = real

        def accept(self) -> None:
            tries.append(time.monotonic())
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

    real = own.server.socket
    monkeypatch.setattr(own.server, "socket", Exhausted(real))
    with own.connect() as connection:
        eventually(lambda: len(tries) >= 3)
        monkeypatch.setattr(own.server, "socket", real)
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.0 200"
    assert all(later - earlier >= metrics_http.ACCEPT_PAUSE_S for earlier, later in itertools.pairwise(tries))
    assert [each.message for each in caplog.records] == ["can't take a connection for metrics: Too many open files"]


class Failing(Collector):
    def __init__(self, problem: Exception):
        self.problem = problem

    def collect(self) -> Iterable[Metric]:
        raise self.problem

    def describe(self) -> Iterable[Metric]:
        return ()


def test_what_can_not_be_told(
    serving: Callable[..., Serving], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    busy, broken = serving(Failing(TimeoutError())), serving(Failing(ValueError("planted")))
    assert [busy.get()[0] for _ in range(3)] == [503] * 3
    assert [broken.get()[0] for _ in range(3)] == [500] * 3
    # Once for all three, and nothing past the log.
    assert [each.message for each in caplog.records] == [
        "metrics can't be told: the broker is too busy", "metrics can't be told"]
    assert "planted" in caplog.text
    assert "planted" not in capfd.readouterr().err


def test_scrapes_at_once_share_what_is_gathered() -> None:
    gathered = 0

    async def go() -> None:
        is_to_end = asyncio.Event()

        async def gather() -> Statistics:
            nonlocal gathered
            gathered += 1
            await is_to_end.wait()
            return Statistics(
                [], {}, {}, [], [], 0, 0, 0.0, True, Recovery(True, 0, 0, 0.0), *(Histogram((1.0,)) for _ in range(4)))

        gates = SimpleNamespace(usage=list, refused=dict)
        fronts = SimpleNamespace(usage=list, num_cut=0, num_refused=0)
        loop = asyncio.get_running_loop()
        collector = BrokerMetrics(gather, loop, gates, fronts)  # type: ignore[arg-type]
        scrapes = [loop.run_in_executor(None, lambda: list(collector.collect())) for _ in range(3)]
        while not gathered:
            await asyncio.sleep(0.01)
        # Time for the others to come in.
        await asyncio.sleep(0.3)
        is_to_end.set()
        families = await asyncio.gather(*scrapes)
        assert gathered == 1 and all(len(each) == len(families[0]) > 20 for each in families)
        assert {each.name for each in collector.describe()} == {each.name for each in families[0]}
        assert not any(each.samples for each in collector.describe())
        await loop.run_in_executor(None, lambda: list(collector.collect()))
        assert gathered == 2

    asyncio.run(go())


def test_scrapes_that_wait_together_give_up_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "GATHER_TIMEOUT_S", 0.5)

    async def go() -> None:
        loop = asyncio.get_running_loop()

        async def gather() -> Statistics:
            await asyncio.sleep(3600)
            raise AssertionError

        collector = BrokerMetrics(gather, loop, None, None)  # type: ignore[arg-type]
        ended = await asyncio.gather(
            *(loop.run_in_executor(None, lambda: list(collector.collect())) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(each, TimeoutError) for each in ended)

    asyncio.run(go())
