"""What bounds connections, streams and calls: each limit met, its refusal, and that others are served meanwhile."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from bench import http2
from takhin.errors import Reason
from takhin.rpc.call import MAX_STREAM_REQUEST_BYTES
from takhin.rpc.reflection import SERVICES
from takhin.v1 import takhin_pb2 as pb
from takhin.v1 import takhin_pb2_grpc
from tests import fronts
from tests.broker_process import (
    DEADLINE_S,
    SERVICE,
    BrokerProcess,
    chunk,
    error_info,
    new_topic,
    offsets,
    produce,
    read,
    refused,
    values,
    wait_until,
)
from tests.conftest import StartBroker
from tests.member import Member, places
from tests.rpc.test_metrics import call, of, scrape
from tests.rpc.test_transactions_rpc import append, transact
from tests.secured import IS_DEFAULT, Secured

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
PRODUCE = f"/{SERVICE}/ProduceMessage"
CONSUME = f"/{SERVICE}/ConsumeMessages"
METRICS = ("--metrics-listen", "127.0.0.1:0")

in_the_clear = pytest.mark.skipif(IS_DEFAULT, reason="frames by hand are sent without TLS")


def used(broker: BrokerProcess, limit: str) -> float:
    return of(scrape(broker), "takhin_limit_used", limit=limit)


def refusals(broker: BrokerProcess, limit: str) -> float:
    return of(scrape(broker), "takhin_limit_refused_calls_total", limit=limit)


def tail(stub: takhin_pb2_grpc.TakhinServiceStub, topic: str) -> Any:
    """A reader that waits at the end of the log."""
    return stub.ConsumeMessages(pb.ConsumeMessagesRequest(topic=topic, offset=-2), timeout=DEADLINE_S)


def serving(broker: BrokerProcess) -> bool:
    stub = health_pb2_grpc.HealthStub(broker.channel())
    return stub.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S).status == 1


# Connections


def test_connections(start_broker: StartBroker, front: str) -> None:
    broker = start_broker("--grpc-max-connections", "3", *METRICS)
    topic = new_topic(broker.stub())
    others = [broker.channel() for _ in range(2)]
    for channel in others:
        grpc.channel_ready_future(channel).result(DEADLINE_S)
    # The broker's own look at whether connections are noticed may be there for a moment.
    wait_until(lambda: of(scrape(broker), "takhin_connections") == 3)
    found = scrape(broker)
    # Each front's own, though both are there where the fast one is tested.
    assert of(found, "takhin_limit", limit="connections") == 3
    assert of(found, "takhin_limit_used", limit="connections") == 3
    fourth = takhin_pb2_grpc.TakhinServiceStub(broker.channel())
    with pytest.raises(grpc.RpcError) as closed:
        fourth.ListTopics(pb.ListTopicsRequest(), timeout=2)
    assert closed.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    if front == fronts.FAST:
        assert of(scrape(broker), "takhin_connections_refused_total") >= 1
        # Once, however often it tries.
        with http2.Connection(broker.address) as fifth:
            assert not fifth.lasts(DEADLINE_S)
        assert broker.stderr.count("a connection was refused: there are as many as grpc.max_connections (3)") == 1
    assert produce(broker.stub(), topic, b"x").offset == 0
    others[0].close()
    wait_until(lambda: of(scrape(broker), "takhin_connections") == 2)
    assert fourth.ListTopics(pb.ListTopicsRequest(), timeout=DEADLINE_S, wait_for_ready=True).topics == [topic]


def test_connections_of_a_socket_in_the_file_system_are_counted(tmp_path: Path, start_broker: StartBroker) -> None:
    broker = start_broker(*METRICS, listen=f"unix:{tmp_path}/socket")
    assert of(scrape(broker), "takhin_connections") == 0
    new_topic(broker.stub())
    grpc.channel_ready_future(broker.channel()).result(DEADLINE_S)
    assert of(scrape(broker), "takhin_connections") == 2


def test_as_many_connections_as_the_system_has_files_for(start_broker: StartBroker, front: str) -> None:
    """Two fronts share them."""
    most = 72 if front == fronts.GRPC else 36
    prefix = ["prlimit", "--nofile=400:400"]
    broker = start_broker("--log-level", "warning", *METRICS, prefix=prefix)
    broker.wait_for_log(f"grpc.max_connections is {most} instead of 10000: the operating system allows 400 open files")
    assert of(scrape(broker), "takhin_limit", limit="connections") == most


@in_the_clear
@pytest.mark.parametrize("begins", [b"", http2.PREFACE[:10]], ids=["nothing", "half a preface"])
def test_who_does_not_begin_to_speak_is_cut_off(start_broker: StartBroker, begins: bytes) -> None:
    broker = start_broker("--grpc-handshake-timeout-ms", "300")
    with http2.Connection(broker.address, preface=b"") as slow, http2.Connection(broker.address) as well:
        slow.send(begins)
        begun_s = time.monotonic()
        assert not slow.lasts(DEADLINE_S)
        assert time.monotonic() - begun_s < DEADLINE_S / 2
        assert well.lasts(0.5)


# Streams of a connection


@in_the_clear
def test_streams_of_a_connection(start_broker: StartBroker, front: str) -> None:
    broker = start_broker("--grpc-max-streams-per-connection", "3", *METRICS)
    stub = broker.stub()
    topic = new_topic(stub)
    # A stock client is told, and holds the fourth back.
    tails = [tail(stub, topic) for _ in range(3)]
    wait_until(lambda: used(broker, "streams") == 3)
    with pytest.raises(grpc.RpcError) as late:
        stub.ListTopics(pb.ListTopicsRequest(), timeout=0.3)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    tails[0].cancel()
    assert stub.ListTopics(pb.ListTopicsRequest(), timeout=DEADLINE_S).topics == [topic]
    # Whoever does not heed it is refused: by gRPC's core stream by stream, to be tried again; by nghttp2, once he has
    # been told of the limit, with the end of the connection.
    with http2.Connection(broker.address) as connection:
        assert connection.read_until(http2.SETTINGS)
        wait_until(lambda: of(scrape(broker), "takhin_connections") == 2)
        headers = http2.call_headers(CONSUME)
        for _ in range(4):
            connection.send(http2.open_call(connection.next_stream(), headers))
        if front == fronts.GRPC:
            got = connection.read_until(http2.RST_STREAM)
            assert got is not None and (got.stream, got.payload[-1]) == (7, http2.REFUSED_STREAM)
        else:
            assert connection.read_until(http2.GOAWAY) is not None and not connection.lasts(DEADLINE_S)


def test_metadata(start_broker: StartBroker) -> None:
    broker = start_broker("--grpc-max-metadata-bytes", "8192")
    stub = broker.stub()
    stub.ListTopics(pb.ListTopicsRequest(), metadata=[("x-note", "x" * 5000)], timeout=DEADLINE_S)
    with pytest.raises(grpc.RpcError) as refusal:
        stub.ListTopics(pb.ListTopicsRequest(), metadata=[("x-note", "x" * 8192)], timeout=DEADLINE_S)
    # gRPC's own refusal.
    assert refusal.value.code() is EXHAUSTED and "metadata" in refusal.value.details()
    stub.ListTopics(pb.ListTopicsRequest(), timeout=DEADLINE_S)


@in_the_clear
@pytest.mark.parametrize("value", ["x" * 9_000, "x" * 60_000, "\u00fc" * 5_000], ids=["9 kB", "60 kB", "UTF-8"])
def test_metadata_of_who_does_not_know_the_limit(start_broker: StartBroker, value: str, front: str) -> None:
    """A client has to heed it once it has acknowledged the settings, which it never does."""
    broker = start_broker("--grpc-max-metadata-bytes", "8192")
    new_topic(broker.stub())
    for size, is_taken in (3_000, True), (0, False):
        with socket.create_connection(broker.address.split(":"), DEADLINE_S) as connection:
            client = h2.connection.H2Connection(h2.config.H2Configuration(validate_outbound_headers=False))
            client.initiate_connection()
            client.send_headers(1, [
                (":method", "POST"), (":scheme", "http"), (":path", f"/{SERVICE}/ListTopics"), (":authority", "x"),
                ("content-type", "application/grpc"), ("te", "trailers"), ("x-note", value[:size] if size else value)])
            client.send_data(1, bytes(5), end_stream=True)
            connection.sendall(client.data_to_send())
            told: dict[bytes, bytes] = {}
            was_reset = False
            while b"grpc-status" not in told and not was_reset:
                data = connection.recv(1 << 16)
                assert data
                for event in client.receive_data(data):
                    was_reset = was_reset or isinstance(event, h2.events.StreamReset)
                    if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                        told |= {_bytes(name): _bytes(text) for name, text in event.headers}
        if is_taken:
            assert told[b"grpc-status"] == b"0"
        elif front == fronts.FAST and len(value) > 4 * 8192:
            assert was_reset, "so much is not even looked at to the end"
        else:
            assert told[b"grpc-status"] == b"8" and b"metadata" in told[b"grpc-message"]


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def test_a_message(start_broker: StartBroker, front: str) -> None:
    broker = start_broker("--grpc-max-message-bytes", "200000", *METRICS)
    stub = broker.stub()
    topic = new_topic(stub)
    with pytest.raises(grpc.RpcError) as refusal:
        produce(stub, topic, *[b"x" * 100_000] * 2)
    # gRPC's own refusal.
    assert refusal.value.code() is EXHAUSTED and "larger than max" in refusal.value.details()
    assert produce(stub, topic, b"x" * 100_000).offset == 0
    if front == fronts.FAST:
        # gRPC's own front does not tell.
        labels = call("ProduceMessage", "unary", grpc_code="ResourceExhausted")
        wait_until(lambda: of(scrape(broker), "grpc_server_handled_total", **labels) == 1)


# Calls


@in_the_clear
def test_calls(start_broker: StartBroker) -> None:
    """Unary calls count from their headers on, whether or not a message ever comes."""
    broker = start_broker("--limits-calls", "8", "--limits-request-arrival-ms", "60000", *METRICS)
    stub = broker.stub()
    topic = new_topic(stub)
    with http2.Connection(broker.address) as connection:
        headers = http2.call_headers(PRODUCE)
        opened = [connection.next_stream() for _ in range(8)]
        connection.send(b"".join(http2.open_call(number, headers) for number in opened))
        wait_until(lambda: used(broker, "calls") == 8)
        with refused(EXHAUSTED, Reason.CALL_LIMIT) as refusal:
            produce(stub, topic, b"refused")
        assert "limits.calls" in refusal.message and refusal.metadata == {"limit": "8"}
        assert refusals(broker, "calls") == 1
        # Streams go on, and that the broker is alive can be asked.
        assert read(stub, topic) == []
        assert serving(broker)
        assert stub.HealthCheck(pb.HealthCheckRequest(), timeout=DEADLINE_S).status == "healthy"
        # A reset makes room at once, and so does the message.
        connection.send(http2.reset(opened[0]))
        wait_until(lambda: used(broker, "calls") == 7)
        assert produce(stub, topic, b"x").offset == 0
        request = pb.ProduceMessageRequest(topic=topic, record=pb.Record(value=b"y"), required_acks=1)
        # The first is waited for by gRPC itself, the last by what serves a busy broker's calls.
        for number in opened[1], opened[-1]:
            connection.send(http2.message(number, request.SerializeToString(), ends=True))
            assert connection.read_until(http2.DATA, number)
        wait_until(lambda: used(broker, "calls") == 5)
    wait_until(lambda: used(broker, "calls") == 0)
    assert values(read(stub, topic)) == [b"x", b"y", b"y"]


@in_the_clear
@pytest.mark.parametrize("path", [PRODUCE, CONSUME], ids=["a unary call", "a reader"])
def test_calls_whose_request_does_not_come_make_room(start_broker: StartBroker, path: str) -> None:
    """Those from a quarter of the limit on are refused in time: nobody can hold all of it by sending nothing."""
    broker = start_broker(
        "--limits-calls", "16", "--limits-streams", "16", "--limits-request-arrival-ms", "300", *METRICS)
    stub = broker.stub()
    topic = new_topic(stub)
    limit = "calls" if path == PRODUCE else "streams"
    with http2.Connection(broker.address) as connection:
        headers = http2.call_headers(path)
        opened = [connection.next_stream() for _ in range(16)]
        connection.send(b"".join(http2.open_call(number, headers) for number in opened))
        wait_until(lambda: used(broker, limit) <= 3)
        ended = connection.read_until(http2.HEADERS, opened[-1])
        assert ended is not None and ended.flags & http2.END_STREAM
        # The status is compressed, in one of many ways.
        labels = call(path.rpartition("/")[2], "unary" if path == PRODUCE else "server_stream")
        assert of(scrape(broker), "grpc_server_handled_total", **labels, grpc_code="DeadlineExceeded") >= 13
        assert produce(stub, topic, b"x").offset == 0
        assert values(read(stub, topic)) == [b"x"]


def test_a_busy_broker_answers_as_any(start_broker: StartBroker) -> None:
    """With so few streams and calls allowed that each is asked for credentials before its message is taken."""
    broker = start_broker("--limits-calls", "4", "--limits-streams", "4", *METRICS)
    stub = broker.stub()
    topic = new_topic(stub, 2)
    for number in range(50):
        assert produce(stub, topic, b"%d" % number, acks=(number % 3) - 1, partition=1).partition == 1
    with refused(grpc.StatusCode.NOT_FOUND, Reason.TOPIC_NOT_FOUND):
        produce(stub, "missing", b"x")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.MALFORMED_REQUEST):
        broker.channel().unary_unary(f"/{SERVICE}/GetTopic")(b"\xff", timeout=DEADLINE_S)
    assert len(read(stub, topic, partition=1)) == offsets(stub, topic, 1).end_offset == 50
    waiting = tail(stub, topic)
    with pytest.raises(grpc.RpcError) as late:
        next(iter(stub.ConsumeMessages(pb.ConsumeMessagesRequest(topic=topic, offset=-2), timeout=0.2)))
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    threading.Timer(0.2, lambda: produce(stub, topic, b"new")).start()
    assert values(next(iter(waiting)).records) == [b"new"]
    waiting.cancel()
    found = scrape(broker)
    labels = {"grpc_service": SERVICE, "grpc_method": "ProduceMessage", "grpc_type": "unary"}
    for name in "started", "msg_received":
        assert of(found, f"grpc_server_{name}_total", **labels) == 52
    assert of(found, "grpc_server_handled_total", **labels, grpc_code="OK") == 51
    wait_until(lambda: used(broker, "calls") == used(broker, "streams") == 0)


def test_a_busy_broker_asks_who_calls_before_it_takes_a_message(tmp_path: Path, start_broker: StartBroker) -> None:
    """Who has no credentials can't have a message of his kept, nor hold a call's place."""
    secured = Secured(tmp_path / "tls", encrypted=False)
    broker = start_broker("--limits-calls", "60", "--limits-request-arrival-ms", "60000", *METRICS, secured=secured)
    topic = new_topic(broker.stub())
    with http2.Connection(broker.address) as connection:
        headers = http2.call_headers(PRODUCE, ("x-api-key", "tk_wrong"))
        opened = [connection.next_stream() for _ in range(34)]
        for number in opened:
            connection.send(http2.open_call(number, headers))
        # The first are not a quarter of sixty yet; and the others, however long their refusal takes, not all of it.
        # In whatever order.
        waiting = set(opened[14:])
        while waiting:
            ended = connection.read_until(http2.HEADERS)
            assert ended is not None and ended.flags & http2.END_STREAM
            waiting.remove(ended.stream)
        wait_until(lambda: used(broker, "calls") == 14)
        assert produce(broker.stub(), topic, b"x").offset == 0
    assert broker.stderr.count("CREDENTIALS_INVALID") == 20


def test_bytes_of_calls(start_broker: StartBroker, strace: list[str]) -> None:
    """One is not answered for long: its sync is. Beside it only so much is taken."""
    broker = start_broker(
        "--limits-call-bytes", "1000000", *METRICS,
        prefix=[*strace, "-o", "/dev/null", "-P", "{data}/topics/1/0/00000000000000000000.log", "-e",
                "inject=fdatasync:delay_enter=3000000"])
    stub = broker.stub()
    topic = new_topic(stub)
    produce(stub, topic, b"first, whose file has to be made")
    one = threading.Thread(target=lambda: produce(stub, topic, b"x" * 700_000, acks=-1))
    one.start()
    wait_until(lambda: used(broker, "call_bytes") > 700_000)
    with refused(EXHAUSTED, Reason.CALL_LIMIT) as refusal:
        produce(stub, topic, b"x" * 400_000)
    assert "limits.call_bytes" in refusal.message and refusal.metadata == {"limit_bytes": "1000000"}
    assert (refusals(broker, "call_bytes"), refusals(broker, "calls")) == (1, 0)
    assert produce(stub, topic, b"x" * 100_000).offset == 2
    one.join()
    wait_until(lambda: used(broker, "call_bytes") == 0)
    # A larger one than all may pass alone.
    assert produce(stub, topic, *[b"x" * 900_000] * 2).offset == 3


# Streams


def test_streams(start_broker: StartBroker) -> None:
    broker = start_broker("--limits-streams", "3", *METRICS)
    stub = broker.stub()
    topic = new_topic(stub)
    tails = [tail(stub, topic) for _ in range(3)]
    wait_until(lambda: used(broker, "streams") == 3)
    with refused(EXHAUSTED, Reason.STREAM_LIMIT) as refusal:
        next(iter(tail(stub, topic)))
    assert "limits.streams" in refusal.message and refusal.metadata == {"limit": "3"}
    for opened in stub.ProduceMessageStream(iter([])), stub.Subscribe(iter([])):
        with refused(EXHAUSTED, Reason.STREAM_LIMIT):
            list(opened)
    assert refusals(broker, "streams") == 3
    produce(stub, topic, b"calls go on")
    assert serving(broker)
    assert [values(next(iter(each)).records) for each in tails] == [[b"calls go on"]] * 3
    tails[0].cancel()
    wait_until(lambda: used(broker, "streams") == 2)
    assert values(read(stub, topic)) == [b"calls go on"]


def test_streams_of_an_address(start_broker: StartBroker) -> None:
    if IS_DEFAULT:
        pytest.skip("with authentication it is the principal")
    broker = start_broker("--limits-streams-per-client", "2", *METRICS)
    stub = broker.stub()
    topic = new_topic(stub)
    tails = [tail(takhin_pb2_grpc.TakhinServiceStub(broker.channel()), topic) for _ in range(2)]
    wait_until(lambda: used(broker, "streams_per_client") == 2)
    with refused(EXHAUSTED, Reason.STREAM_LIMIT) as refusal:
        list(stub.ProduceMessageStream(iter([])))
    assert "127.0.0.1 has 2 streams" in refusal.message and refusal.metadata == {"limit": "2"}
    assert refusals(broker, "streams_per_client") == 1
    tails[0].cancel()
    wait_until(lambda: used(broker, "streams_per_client") == 1)
    assert list(stub.ProduceMessageStream(iter([]))) == []


def test_streams_of_a_principal(tmp_path: Path, start_broker: StartBroker) -> None:
    secured = Secured(tmp_path / "tls")
    secured.flags[secured.flags.index("--auth-admins") + 1] += " jwt:other"
    broker = start_broker("--limits-streams-per-client", "2", *METRICS, secured=secured)
    stub = broker.stub()
    topic = new_topic(stub)
    tails = [tail(stub, topic) for _ in range(2)]
    wait_until(lambda: used(broker, "streams_per_client") == 2)
    for opened in tail(stub, topic), stub.ProduceMessageStream(iter([])), stub.Subscribe(iter([])):
        with refused(EXHAUSTED, Reason.STREAM_LIMIT) as refusal:
            list(opened)
        assert "jwt:tests has 2 streams" in refusal.message
    with secured.channel(broker.address, token=secured.token("other")) as channel:
        assert list(takhin_pb2_grpc.TakhinServiceStub(channel).ProduceMessageStream(iter([]))) == []
    tails[0].cancel()
    wait_until(lambda: used(broker, "streams_per_client") == 1)
    assert read(stub, topic) == []


def test_health_watches(start_broker: StartBroker) -> None:
    broker = start_broker("--limits-watch-streams", "2", *METRICS)
    channel = broker.channel()
    stub = health_pb2_grpc.HealthStub(channel)
    watches = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S) for _ in range(2)]
    assert [next(watch).status for watch in watches] == [1, 1]
    with refused(EXHAUSTED, Reason.STREAM_LIMIT) as refusal:
        next(stub.Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S))
    assert "limits.watch_streams" in refusal.message
    with refused(EXHAUSTED, Reason.STREAM_LIMIT):
        list(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=DEADLINE_S))
    assert refusals(broker, "watch_streams") == 2
    # Nobody else is kept out.
    assert serving(broker)
    assert read(broker.stub(), new_topic(broker.stub())) == []
    watches[0].cancel()
    wait_until(lambda: used(broker, "watch_streams") == 1)
    assert next(stub.Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)).status == 1


# Requests of streams


@pytest.mark.parametrize("limit", ["1000", "3"], ids=["idle", "busy"])
def test_the_request_of_a_stream_is_small(start_broker: StartBroker, limit: str) -> None:
    """It stays in memory for as long as the stream lasts, which may be forever. Busy: who calls is asked first."""
    broker = start_broker("--limits-streams", limit, "--limits-watch-streams", limit)
    channel, topic = broker.channel(), new_topic(broker.stub())
    requests = {
        "/grpc.health.v1.Health/Watch": health_pb2.HealthCheckRequest(),
        CONSUME: pb.ConsumeMessagesRequest(topic=topic, until_end=True),
        f"/{SERVICES[1]}/ServerReflectionInfo": reflection_pb2.ServerReflectionRequest(list_services=""),
    }
    for path, request in requests.items():
        raw = request.SerializeToString()
        # In a field that nobody knows, which has a tag and a length before it.
        filled_bytes = MAX_STREAM_REQUEST_BYTES - len(raw) - 5

        def call(more_bytes: int, path: str = path, raw: bytes = raw) -> Any:
            message = raw + chunk(1000, b"x" * more_bytes)
            if "Reflection" in path:
                return channel.stream_stream(path)(iter([message]), timeout=DEADLINE_S)
            return channel.unary_stream(path)(message, timeout=DEADLINE_S)

        for more_bytes in filled_bytes + 1, 9 << 20:
            with refused(EXHAUSTED, Reason.MESSAGE_TOO_LARGE) as refusal:
                list(call(more_bytes))
            assert refusal.metadata == {"limit_bytes": str(MAX_STREAM_REQUEST_BYTES)}
        served = call(filled_bytes)
        assert next(served)
        served.cancel()


@pytest.mark.parametrize("case", ["produce", "pong", "start"])
def test_a_request_that_was_answered_is_not_kept(start_broker: StartBroker, case: str) -> None:
    """A stream that waits for its next request holds nothing of the one before it."""
    broker = start_broker()
    stub = broker.stub()
    topic = new_topic(stub)
    start = pb.SubscribeRequest(start=pb.SubscribeStart(group_id="g", topics=[topic])).SerializeToString()
    # What is not known stays with the message that it is in.
    method, requests, count = {
        "produce": ("ProduceMessageStream", [chunk(1, b"nowhere") + chunk(1000, b"x" * 9_000_000)], 12),
        "pong": ("Subscribe", [start, chunk(9, b"") + chunk(1000, b"x" * 4_000_000)], 25),
        "start": ("Subscribe", [start + chunk(1, chunk(1000, b"x" * 250_000))], 300),
    }[case]
    over = threading.Event()

    def sent() -> Iterator[bytes]:
        yield from requests
        over.wait()

    channel = broker.channel()

    def opened() -> Any:
        call = channel.stream_stream(f"/{SERVICE}/{method}")(sent(), timeout=DEADLINE_S)
        assert next(call)
        return call

    calls = [opened()]
    before = broker.rss_anon_bytes()
    calls += [opened() for _ in range(count)]
    sent_bytes = count * len(requests[-1])
    time.sleep(1)
    wait_until(lambda: broker.rss_anon_bytes() - before < sent_bytes / 2)
    assert not any(call.done() for call in calls)
    over.set()
    for call in calls:
        call.cancel()


def test_requests_of_a_member_have_a_bound(start_broker: StartBroker) -> None:
    """A commit of all partitions of a large topic with the longest name is within it, and so is any start."""
    stub = start_broker().stub()
    topic, longest = new_topic(stub), "x" * 249
    member = Member(stub, "g", topic)
    member.wait_for("assigned")
    answer = member.commit(*((longest, number, 1 << 60) for number in range(10_000)))
    assert answer.reason == Reason.FENCED_GENERATION and len(answer.offsets) == 10_000
    member.send(commit=pb.CommitOffsets(offsets=places((longest * 17_000, 0, 0))))
    assert member.refused() == (EXHAUSTED, Reason.MESSAGE_TOO_LARGE)
    assert Member(stub, "g", *[longest] * 1_100).refused() == (EXHAUSTED, Reason.MESSAGE_TOO_LARGE)
    topics = [f"{number:0249}" for number in range(1_000)]
    most = Member(stub, "\U0001d306" * 249, *topics, client_id="\U0001d306" * 249, instance_id="\U0001d306" * 249)
    assert most.refused() == (grpc.StatusCode.NOT_FOUND, Reason.TOPIC_NOT_FOUND)


# Transactions


def test_parts_of_a_transaction(start_broker: StartBroker) -> None:
    stub = start_broker("--limits-transaction-partitions", "2").stub()
    topic = new_topic(stub, 3)
    with refused(EXHAUSTED, Reason.TRANSACTION_TOO_LARGE):
        transact(stub, *(append((topic, number), b"x") for number in range(3)))
    assert len(transact(stub, *(append((topic, number), b"x") for number in range(2)))) == 2


def test_transactions_that_wait(start_broker: StartBroker, strace: list[str]) -> None:
    """Each counts as 64 KiB at least; while one is written, slowly, there is room for no other."""
    broker = start_broker(
        "--limits-transaction-bytes-in-flight", "65536", *METRICS,
        prefix=[*strace, "-o", "/dev/null", "-e", "inject=fdatasync:delay_enter=700000"])
    stub = broker.stub()
    topic = new_topic(stub)
    one = threading.Thread(target=lambda: transact(stub, append((topic, 0), b"one")))
    one.start()
    wait_until(lambda: used(broker, "transaction_bytes_in_flight") == 65536)
    with refused(EXHAUSTED, Reason.TRANSACTION_LIMIT):
        transact(stub, append((topic, 0), b"other"))
    one.join()
    wait_until(lambda: used(broker, "transaction_bytes_in_flight") == 0)
    assert values(read(stub, topic)) == [b"one"]


# After a flood


def reset_at_once(connection: http2.Connection, path: str, count: int) -> None:
    headers = http2.call_headers(path)
    for _ in range(count // 100):
        numbers = [connection.next_stream() for _ in range(100)]
        connection.send(b"".join(http2.open_call(number, headers) + http2.reset(number) for number in numbers))
        connection.drop_received()


def tiny_frames(connection: http2.Connection, path: str, count: int) -> None:
    number = connection.next_stream()
    connection.send(http2.open_call(number, http2.call_headers(path)))
    request = http2.message(number, b"x" * count)[9:]
    for at in range(0, count, 100):
        part = request[at:at + 100]
        connection.send(b"".join(http2.frame(http2.DATA, 0, number, part[i:i + 1]) for i in range(len(part))))


def empty_frames(connection: http2.Connection, path: str, count: int) -> None:
    number = connection.next_stream()
    connection.send(http2.open_call(number, http2.call_headers(path)))
    for _ in range(count // 100):
        connection.send(http2.frame(http2.DATA, 0, number) * 100 + http2.frame(http2.SETTINGS) * 10)
        connection.drop_received()


@in_the_clear
@pytest.mark.parametrize("flood", [reset_at_once, tiny_frames, empty_frames])
@pytest.mark.parametrize("path", [PRODUCE, CONSUME, f"/{SERVICE}/Subscribe"], ids=["unary", "server", "bidi"])
def test_after_a_flood(
    start_broker: StartBroker, flood: Callable[[http2.Connection, str, int], None], path: str
) -> None:
    """The others are served while it lasts; after it nothing of it is held."""
    broker = start_broker(*METRICS)
    stub = broker.stub()
    topic = new_topic(stub)
    produce(stub, topic, b"before", acks=-1)
    before = broker.rss_anon_bytes()
    stop = threading.Event()

    def flooding() -> None:
        while not stop.is_set():
            # The broker may close the connection for it.
            with http2.Connection(broker.address) as connection, contextlib.suppress(OSError):
                while not stop.is_set():
                    flood(connection, path, 2000)

    flooder = threading.Thread(target=flooding)
    flooder.start()
    try:
        for _ in range(20):
            produce(stub, topic, b"during", acks=-1)
            time.sleep(0.05)
    finally:
        stop.set()
        flooder.join()
    wait_until(lambda: used(broker, "calls") == used(broker, "streams") == 0)
    wait_until(lambda: of(scrape(broker), "takhin_connections") == 1)
    assert len(read(stub, topic)) == 21
    # What the allocator keeps until the server asks for it is not a leak; nor are those MiB: two orders of magnitude
    # above that many streams would be.
    wait_until(lambda: broker.rss_anon_bytes() - before < 48 << 20)
