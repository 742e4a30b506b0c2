"""Spans of calls: what is in them, whose child they are, and that without tracing nothing of it is there."""

import asyncio
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import takhin
import takhin.tracing
from takhin.errors import Reason, error
from takhin.rpc.audit import Audit
from takhin.rpc.call import Call, Kind, StreamCall
from takhin.rpc.current import Scope, current_ids
from takhin.rpc.log_fields import extra
from takhin.rpc.observed import Observer
from takhin.rpc.trace_export import check_variables
from takhin.rpc.tracing import Tracing
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import DEADLINE_S, BrokerProcess, new_topic, produce, wait_until
from tests.conftest import StartBroker
from tests.front import Run, call_kind, client, each_kind
from tests.secured import IS_DEFAULT

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
_own = InMemorySpanExporter()


@pytest.fixture(scope="module", autouse=True)
def provider() -> TracerProvider:
    """The program's own provider; OpenTelemetry lets it be set once a process."""
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(_own))
    trace.set_tracer_provider(made)
    return made


@pytest.fixture
def exporter(provider: TracerProvider) -> Iterator[InMemorySpanExporter]:
    _own.clear()
    yield _own


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    """Each name once."""
    spans = exporter.get_finished_spans()
    found = {span.name: span for span in spans}
    assert len(found) == len(spans), [span.name for span in spans]
    return found


async def well(call: StreamCall) -> bytes:
    call.principal = "key:a"
    return b""


async def refuse(call: StreamCall) -> bytes:
    raise error(Reason.TOPIC_NOT_FOUND, "no topic 'planted-secret'")


async def bug(call: StreamCall) -> bytes:
    raise ValueError("planted-secret")


NAMES = {Kind.UNARY: "Unary", Kind.SERVER_STREAM: "ServerStream", Kind.BIDI: "Bidi"}


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(("act", "code", "kind_of_error", "failed"), [
    (well, 0, None, False), (refuse, 5, "TOPIC_NOT_FOUND", False), (bug, 13, "INTERNAL", True)])
def test_spans_of_a_call(
    run: Run, exporter: InMemorySpanExporter, kind: Kind, act: Any, code: int, kind_of_error: str | None, failed: bool
) -> None:
    async def go() -> None:
        methods = Observer().observed(Tracing().traced(each_kind(act)))
        async with client(*methods) as channel:
            metadata = (("traceparent", TRACEPARENT), ("x-request-id", "r-1"))
            try:
                await call_kind(channel, kind, timeout=10, metadata=metadata)
            except grpc.RpcError as problem:
                assert problem.code().value[0] == code

    run(go())
    spans = by_name(exporter)
    name = f"test.v1.Test/{NAMES[kind]}"
    assert set(spans) == ({name} if kind is Kind.UNARY else {f"{name} open", f"{name} close"})
    last = spans[name if kind is Kind.UNARY else f"{name} close"]
    first = spans[name if kind is Kind.UNARY else f"{name} open"]
    for span in (first, last):
        assert span.kind is SpanKind.SERVER
        assert trace.format_trace_id(span.context.trace_id) == TRACE_ID
        told = attributes(span)
        assert (told["rpc.system"], told["rpc.service"], told["rpc.method"]) == ("grpc", "test.v1.Test", NAMES[kind])
        assert told["takhin.request_id"] == "r-1" and told["network.peer.address"] == "127.0.0.1"
        assert "planted-secret" not in span.to_json()
    assert first.parent is not None and trace.format_span_id(first.parent.span_id) == SPAN_ID
    told = attributes(last)
    assert (told["rpc.grpc.status_code"], told.get("error.type")) == (code, kind_of_error)
    assert (last.status.status_code is StatusCode.ERROR) == failed
    assert told.get("enduser.id") == ("key:a" if act is well else None)
    if kind is not Kind.UNARY:
        assert last.parent is not None and last.parent.span_id == first.context.span_id
        assert told["takhin.stream.duration_ms"] >= 0 and "rpc.grpc.status_code" not in attributes(first)


@pytest.mark.parametrize("traceparent", [None, "", "garbage", "00-0-0-0", TRACEPARENT[:-3]])
def test_without_a_parent_a_trace_begins(
    run: Run, exporter: InMemorySpanExporter, provider: TracerProvider, traceparent: str | None
) -> None:
    async def go() -> None:
        # What is current where the server is started is nobody's parent.
        with provider.get_tracer("t").start_as_current_span("outer"):
            async with client(*Tracing().traced(each_kind(well))) as channel:
                metadata = () if traceparent is None else (("traceparent", traceparent),)
                await call_kind(channel, Kind.UNARY, timeout=10, metadata=metadata)

    run(go())
    assert by_name(exporter)["test.v1.Test/Unary"].parent is None


def test_who_does_not_sample_is_not_traced(run: Run, exporter: InMemorySpanExporter) -> None:
    async def go() -> None:
        async with client(*Tracing().traced(each_kind(well))) as channel:
            for kind in Kind:
                await call_kind(channel, kind, timeout=10, metadata=(("traceparent", TRACEPARENT[:-1] + "0"),))

    run(go())
    assert not exporter.get_finished_spans()


def test_lines_of_the_log_have_the_trace(run: Run, exporter: InMemorySpanExporter) -> None:
    seen: list[str] = []

    async def look(call: StreamCall) -> bytes:
        seen.append(current_ids().trace_id)
        return b""

    async def go() -> None:
        async with client(*Observer().observed(Tracing().traced(each_kind(look)))) as channel:
            for kind in Kind:
                await call_kind(channel, kind, timeout=10, metadata=(("traceparent", TRACEPARENT),))

    run(go())
    assert seen == [TRACE_ID] * 3


def test_audit_lines_and_internal_errors_have_the_trace(
    run: Run, exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    audit = Audit()

    async def go_wrong(call: StreamCall) -> bytes:
        audit.denied("test", None, call, error(Reason.ACCESS_DENIED, "no"))
        audit.administered("test", None, call, "topic t")
        raise ValueError("planted")

    async def go() -> None:
        async with client(*Observer().observed(Tracing().traced(each_kind(go_wrong)))) as channel:
            for kind in Kind:
                with pytest.raises(grpc.RpcError):
                    await call_kind(channel, kind, timeout=10, metadata=(("traceparent", TRACEPARENT),))

    run(go())
    told = [(each.name, vars(each)["trace_id"]) for each in caplog.records if "trace_id" in vars(each)]
    assert told == [("takhin.audit", TRACE_ID), ("takhin.audit", TRACE_ID), ("takhin.rpc.status", TRACE_ID)] * 3


def test_another_call_has_another_trace() -> None:
    scope = Scope(cast(Call, SimpleNamespace(request_id="r-1")), TRACE_ID)
    try:
        assert extra("r-1", {})["trace_id"] == TRACE_ID
        assert extra("r-2", {})["trace_id"] == extra("", {})["trace_id"] == extra("r-1", {}, "")["trace_id"] == ""
    finally:
        scope.leave()


def test_from_producer_to_consumer(
    run: Run, exporter: InMemorySpanExporter, provider: TracerProvider, tmp_path: Path
) -> None:
    """A broker in the program: its spans go to the program's provider."""
    tracer = provider.get_tracer("program")
    sent_in: list[int] = []

    async def go() -> None:
        async with takhin.Broker(tmp_path / "data", tracing__enabled=True) as broker:
            tk = broker.client(tracing=True)
            await tk.create_topic("orders")
            exporter.clear()
            async with tk.producer("orders") as producer:
                await producer.send(b"before", headers={"mine": b"1"})
                with tracer.start_as_current_span("order placed") as span:
                    sent_in.append(span.get_span_context().span_id)
                    await producer.send(b"one", headers={"mine": b"1"})
                    await producer.send(b"kept", headers=[("traceparent", TRACEPARENT.encode())])
            with tracer.start_as_current_span("in a transaction") as span:
                sent_in.append(span.get_span_context().span_id)
                async with tk.transaction() as transaction:
                    transaction.send("orders", b"two")
            messages = [message async for message in tk.read("orders", until_end=True)]
            async with tk.consumer("orders", group="g") as consumer:
                async for message in consumer:
                    await consumer.commit(message)
                    break
        before, one, kept, two = messages
        assert before.headers == (("mine", b"1"),) and takhin.tracing.trace_context(before) is None
        assert [name for name, _ in one.headers] == ["mine", "traceparent"]
        assert kept.headers == (("traceparent", TRACEPARENT.encode()),)
        for message, expected in ((one, sent_in[0]), (two, sent_in[1]), (kept, int(SPAN_ID, 16))):
            found = takhin.tracing.trace_context(message)
            assert found is not None and found.span_id == expected and found.is_remote
        with takhin.tracing.process_span(one, group="g") as span:
            assert trace.get_current_span() is span
        with pytest.raises(KeyError), takhin.tracing.process_span(messages, name="several"):
            raise KeyError("x")

    run(go())
    spans = {span.name: span for span in exporter.get_finished_spans()}
    single, several = spans["process orders"], spans["several"]
    assert [link.context.span_id for link in single.links] == [sent_in[0]] and single.kind is SpanKind.CONSUMER
    assert single.parent is None
    told = attributes(single)
    assert (told["messaging.system"], told["messaging.operation.type"]) == ("takhin", "process")
    assert (told["messaging.destination.name"], told["messaging.consumer.group.name"]) == ("orders", "g")
    assert (told["messaging.destination.partition.id"], told["takhin.offset"]) == ("0", 1)
    assert [link.context.span_id for link in several.links] == [sent_in[0], int(SPAN_ID, 16), sent_in[1]]
    assert attributes(several)["messaging.batch.message_count"] == 4
    assert several.status.status_code is StatusCode.ERROR
    # The broker's own.
    service = "takhin.v1.TakhinService/"
    transaction = spans[service + "ProduceTransaction"]
    assert transaction.parent is not None and transaction.parent.span_id == sent_in[1]
    told = attributes(transaction)
    assert (told["messaging.destination.name"], told["messaging.batch.message_count"]) == ("orders", 1)
    opened, closed = spans[service + "ProduceMessageStream open"], spans[service + "ProduceMessageStream close"]
    assert attributes(opened)["messaging.destination.name"] == "orders"
    told = attributes(closed)
    assert told["takhin.stream.messages_received"] == told["takhin.stream.messages_sent"] > 0
    opened = spans[service + "Subscribe open"]
    assert attributes(opened)["messaging.destination.name"] == "orders"
    assert attributes(opened)["messaging.consumer.group.name"] == "g"
    opened = spans[service + "ConsumeMessages open"]
    assert attributes(opened)["messaging.operation.type"] == "receive"
    assert attributes(opened)["messaging.destination.partition.id"] == "0"


def test_no_message_has_no_span() -> None:
    with pytest.raises(ValueError, match="no message"), takhin.tracing.process_span([]):
        pass


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP collector: keeps what it is sent."""

    def __init__(self) -> None:
        self.requests: deque[Any] = deque()
        self.is_asked = threading.Event()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        self.is_asked.set()
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self) -> dict[str, Any]:
        return {
            span.name: span for request in list(self.requests) for resource in request.resource_spans
            for scope in resource.scope_spans for span in scope.spans}


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    kept = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(kept, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield kept, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.mark.parametrize("by_variable", [False, True])
def test_a_server_sends_its_spans_to_a_collector(
    start_broker: StartBroker, collector: tuple[Collector, str], by_variable: bool
) -> None:
    kept, endpoint = collector
    flags = [] if by_variable else ["--tracing-endpoint", endpoint]
    variables = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test"}
    if by_variable:
        variables |= {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SERVICE_NAME": "log-7"}
    broker = start_broker("--tracing-enabled", *flags, variables=variables)
    topic = new_topic(broker.stub())
    broker.stub().ProduceMessage(
        pb.ProduceMessageRequest(topic=topic, record=pb.Record(value=b"payload-of-mine"), required_acks=1),
        timeout=DEADLINE_S, metadata=(("traceparent", TRACEPARENT),))
    # While it runs, and the rest at its end.
    name = "takhin.v1.TakhinService/ProduceMessage"
    wait_until(lambda: name in kept.spans(), what="a span at the collector")
    stream = broker.stub().ConsumeMessages(pb.ConsumeMessagesRequest(topic=topic, offset=-1), timeout=DEADLINE_S)
    next(stream)
    wait_until(lambda: "takhin.v1.TakhinService/ConsumeMessages open" in kept.spans(), what="the stream's opening")
    assert "takhin.v1.TakhinService/ConsumeMessages close" not in kept.spans()
    broker.terminate()
    spans = kept.spans()
    assert "takhin.v1.TakhinService/ConsumeMessages close" in spans
    span = spans[name]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, SPAN_ID)
    told = {each.key: MessageToDict(each.value) for each in span.attributes}
    assert told["messaging.destination.name"] == {"stringValue": topic}
    assert told["takhin.offset"] == {"intValue": "0"}
    resource = {
        each.key: each.value.string_value for each in kept.requests[0].resource_spans[0].resource.attributes}
    assert resource["service.name"] == ("log-7" if by_variable else "takhin")
    assert resource["deployment.environment.name"] == "test" and resource["service.version"] == takhin.__version__
    assert all(b"payload-of-mine" not in request.SerializeToString() for request in kept.requests)
    if IS_DEFAULT:
        assert told["enduser.id"] == {"stringValue": "jwt:tests"}


def test_a_share_is_traced(start_broker: StartBroker, collector: tuple[Collector, str]) -> None:
    kept, endpoint = collector
    broker = start_broker("--tracing-enabled", "--tracing-endpoint", endpoint, "--tracing-samples-per-million", "0")
    topic = new_topic(broker.stub())
    produce(broker.stub(), topic, b"not traced")
    broker.stub().ListTopics(
        pb.ListTopicsRequest(), timeout=DEADLINE_S, metadata=(("traceparent", TRACEPARENT),))
    broker.terminate()
    assert set(kept.spans()) == {"takhin.v1.TakhinService/ListTopics"}, "who traces is traced all the same"


def test_a_collector_that_is_not_there_is_no_harm(start_broker: StartBroker) -> None:
    broker = start_broker(
        "--tracing-enabled", "--tracing-endpoint", "http://127.0.0.1:1",
        variables={"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"})
    topic = new_topic(broker.stub())
    broker.wait_for_log("Failed to export traces")
    deadline_s = time.monotonic() + 4
    while time.monotonic() < deadline_s:
        produce(broker.stub(), topic, b"v")
        time.sleep(0.05)
    broker.terminate()
    # Each that it has to say, once.
    told = [line.split(": ", 1)[1] for line in broker.stderr.splitlines() if " opentelemetry." in line]
    assert len(told) == len({line[:20] for line in told}) <= 3, told


def test_an_endpoint_that_is_none(start_broker: StartBroker) -> None:
    broker = start_broker()
    broker.terminate()
    assert broker.start_or_end("--tracing-enabled", "--tracing-endpoint", "localhost:4317") == 2
    assert "--tracing-endpoint: 'localhost:4317' is not allowed; allowed: http://HOST:PORT" in broker.stderr


@pytest.mark.parametrize(("name", "value", "told"), [
    ("OTEL_EXPORTER_OTLP_HEADERS", "authorization: Bearer SECRET123", "HEADERS: header 1 can't be sent"),
    ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=b, c=SECRET123%0ab", "TRACES_HEADERS: header 2 can't be sent"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "a=SECRET123%C3%A4", "HEADERS: header 1 can't be sent"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "a|b=SECRET123", "HEADERS: header 1 can't be sent"),
    ("OTEL_EXPORTER_OTLP_COMPRESSION", "bogus", "traces can't be exported: Invalid value \"bogus\" for compression"),
    ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "bogus", "traces can't be exported: Invalid value \"bogus\""),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nope", "OTEL_EXPORTER_OTLP_CERTIFICATE: /nope: can't be read: No such file"),
    ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/nope", "_TRACES_CLIENT_KEY: /nope: can't be read: No such file"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "abc", "traces can't be exported: could not convert string to float: 'abc'"),
    ("OTEL_BSP_MAX_QUEUE_SIZE", "abc", "OTEL_BSP_MAX_QUEUE_SIZE is 'abc': it is a whole number, at least 1"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "0", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE is '0': it is a whole number, at least 1"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "999999", "traces can't be exported: max_export_batch_size must be"),
    ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "abc", "tracing.enabled: OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT must be"),
])
def test_variables_that_are_wrong(tmp_path: Path, name: str, value: str, told: str) -> None:
    broker = BrokerProcess(tmp_path / "b", variables={name: value})
    try:
        assert broker.start_or_end("--tracing-enabled", "--tracing-endpoint", "http://127.0.0.1:1") == 1
    finally:
        broker.close()
    broker.check()
    # A line, without what is secret.
    lines = [line for line in broker.stderr.splitlines() if "grpc.max_connections" not in line]
    assert told in broker.stderr and len(lines) == 1 and "SECRET123" not in broker.stderr


@pytest.mark.parametrize("value", [
    "", "a=b", " a=b , c=d=e,", "authorization=Bearer%20x", "authorization=Bearer x", "A=b"])
def test_headers_that_are_right(value: str) -> None:
    check_variables({"OTEL_EXPORTER_OTLP_HEADERS": value})


WITHOUT = """
import asyncio, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        assert not name.startswith("opentelemetry"), name
sys.meta_path.insert(0, Finder())
import takhin, takhin.cli.server
from takhin import sync
async def main():
    async with takhin.Broker(sys.argv[1], listen="127.0.0.1:0") as broker:
        async with takhin.connect(broker.address) as tk:
            await tk.create_topic("t")
            async with tk.producer("t") as producer:
                await producer.send(b"v")
            assert [m.value async for m in tk.read("t", until_end=True)] == [b"v"]
takhin.cli.server._load()
asyncio.run(main())
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
print("well")
"""


def test_without_tracing_nothing_of_it_is_imported(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path / "data")], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.stdout == "well\n", done.stderr


MISSING = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder())
from takhin.cli.server import main
sys.exit(main())
"""


def test_where_the_packages_are_missing_it_says_so(start_broker: StartBroker) -> None:
    broker = start_broker(program=[sys.executable, "-c", MISSING])
    broker.terminate()
    assert broker.start_or_end("--tracing-enabled") == 1
    assert "tracing.enabled: OpenTelemetry is needed: pip install 'takhin[tracing]'" in broker.stderr
    done = subprocess.run(
        [sys.executable, "-c", MISSING.split("from takhin.cli")[0] + "import takhin; takhin.connect(tracing=True)"],
        capture_output=True, text=True, timeout=DEADLINE_S)
    assert "ImportError: tracing needs opentelemetry-api: pip install 'takhin[tracing]'" in done.stderr
