"""Metrics as Prometheus scrapes them, of a broker that stock clients use."""

import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

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
    late = stub.ConsumeMessages(pb.ConsumeMessagesRequest(topic=topic, offset=-2), timeout=0.2)
    with pytest.raises(grpc.RpcError):
        next(iter(late))
    found: Samples = {}

    def all_ended() -> bool:
        nonlocal found
        found = scrape(metered)
        handled = sum(
            value for (name, labels), value in found.items()
            if name == "grpc_server_handled_total" and ("grpc_method", "ConsumeMessages") in labels
        )
        return handled == of(found, "grpc_server_started_total", **call("ConsumeMessages", "server_stream")) >= 3

    eventually(all_ended)
    unary = call("ProduceMessage", "unary")
    for name in ("started", "msg_received", "msg_sent"):
        assert of(found, f"grpc_server_{name}_total", **unary) == 5
    assert of(found, "grpc_server_handled_total", **unary, grpc_code="OK") == 5
    assert of(found, "grpc_server_handled_total", **call("GetTopic", "unary"), grpc_code="NotFound") == 2
    assert of(found, "grpc_server_msg_sent_total", **call("GetTopic", "unary")) == 0
    bidi = call("ProduceMessageStream", "bidi_stream")
    assert of(found, "grpc_server_msg_received_total", **bidi) == of(found, "grpc_server_msg_sent_total", **bidi) == 7
    readers = call("ConsumeMessages", "server_stream")
    assert of(found, "grpc_server_handled_total", **readers, grpc_code="Canceled") == 1
    assert of(found, "grpc_server_handled_total", **readers, grpc_code="DeadlineExceeded") == 1
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
    assert of(found, "takhin_partitions", state="open") == 3
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
    assert of(scrape(broker), "takhin_partitions", state="poisoned") == 1


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
