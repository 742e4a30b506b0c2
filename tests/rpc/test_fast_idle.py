"""Connections to the fast front that are only there: what each costs, and that those that say nothing do not stay.

With -s the bytes of each are printed. TAKHIN_IDLE_CONNECTIONS: how many, in place of 1,000.
"""

import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

pytest.importorskip("takhin.rpc.fast.connection", reason="the fast front is not built")

from bench import http2
from bench.http2 import SETTINGS, frame
from tests.broker_process import DEADLINE_S, BrokerProcess, new_topic, produce, wait_until
from tests.conftest import StartBroker
from tests.hostile import preface
from tests.rpc.test_limits import in_the_clear

pytestmark = in_the_clear
CONNECTIONS = int(os.environ.get("TAKHIN_IDLE_CONNECTIONS", "1000"))
# Generous: of the process, with what the allocator keeps.
MOST_BYTES = 40_000


@contextmanager
def many_files() -> Iterator[None]:
    """As many descriptors as the connections need, in this process and in those it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + 1000
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"no more than {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), DEADLINE_S)


@pytest.mark.parametrize("what", ["silent", "greeted", "had a call"])
def test_what_an_idle_connection_costs(
    start_broker: StartBroker, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with many_files(), ExitStack() as opened:
        broker = start_broker()
        stub = broker.stub()
        topic = new_topic(stub)
        for _ in range(100):
            produce(stub, topic, b"before")
        before = broker.rss_anon_bytes()
        health = http2.open_call(1, http2.call_headers("/grpc.health.v1.Health/Check")) + http2.message(
            1, b"", ends=True)
        for _ in range(CONNECTIONS):
            one = opened.enter_context(connect(broker.address))
            if what != "silent":
                one.sendall(preface() + frame(SETTINGS, 1) + (health if what == "had a call" else b""))
                # Answered, so that it is there in full.
                assert one.recv(1 << 16)
        produce(stub, topic, b"beside")
        each = (broker.rss_anon_bytes() - before) / CONNECTIONS
        with capsys.disabled():
            print(f"\n{CONNECTIONS} connections, {what}: {each:,.0f} bytes each", end="")
        assert each < MOST_BYTES
        broker.check()


@pytest.mark.parametrize("says", [b"", http2.PREFACE[:12], http2.PREFACE, http2.PREFACE + frame(SETTINGS)[:5]],
                         ids=["nothing", "half a preface", "no SETTINGS", "half of SETTINGS"])
def test_who_does_not_greet_is_hung_up_on(start_broker: StartBroker, says: bytes) -> None:
    broker = start_broker("--grpc-handshake-timeout-ms", "300")
    with connect(broker.address) as one, connect(broker.address) as greeted:
        greeted.sendall(preface())
        one.sendall(says)
        one.settimeout(DEADLINE_S)
        while True:
            try:
                if not one.recv(1 << 16):
                    break
            except ConnectionError:
                break
        # Who has greeted stays, though he says no more.
        greeted.sendall(frame(6, 0, 0, bytes(8)))
        greeted.settimeout(DEADLINE_S)
        received = b""
        while bytes(8) not in received:
            more = greeted.recv(1 << 16)
            assert more
            received += more
        broker.check()


def test_headers_that_do_not_end_are_hung_up_on(start_broker: StartBroker) -> None:
    broker = start_broker("--grpc-handshake-timeout-ms", "300")
    with http2.Connection(broker.address) as connection:
        connection.read_until(SETTINGS)
        connection.send(frame(1, 0, 1, http2.call_headers("/grpc.health.v1.Health/Check")))
        while connection.read_frame() is not None:
            pass
        broker.check()


def test_a_client_that_vanishes_is_found_out(start_broker: StartBroker) -> None:
    """Half open: it answers no pings, and its calls go with it."""
    broker = start_broker(
        "--grpc-keepalive-time-ms", "1000", "--grpc-keepalive-timeout-ms", "300", "--metrics-listen",
        "127.0.0.1:0")
    with http2.Connection(broker.address) as connection:
        connection.read_until(SETTINGS)
        connection.send(http2.open_call(1, http2.call_headers("/takhin.v1.TakhinService/ProduceMessageStream")))
        begun_s = time.monotonic()
        while connection.read_frame() is not None:
            pass
        assert time.monotonic() - begun_s > 0.5, "it was given time"
    broker.check()


def test_answers_that_nobody_takes_give_their_places_back(start_broker: StartBroker) -> None:
    """As soon as others want them: a quarter of all calls are open."""
    broker = start_broker(
        "--limits-calls", "100", "--limits-request-arrival-ms", "300", "--metrics-listen", "127.0.0.1:0")
    with http2.Connection(broker.address, preface=preface(b"\0\4\0\0\0\0")) as connection:
        connection.read_until(SETTINGS)
        for _ in range(110):
            number = connection.next_stream()
            connection.send(
                http2.open_call(number, http2.call_headers("/takhin.v1.TakhinService/ListTopics"))
                + http2.message(number, b"", ends=True))
        # The first is reset in the end, as its client never takes it.
        got = connection.read_until(3, 1)
        assert got is not None
        stub = broker.stub()
        topic = wait_until(lambda: _made(stub), what="a neighbour's call")
        produce(stub, topic, b"x")
    broker.check()


def _made(stub: object) -> str | None:
    import grpc

    try:
        return new_topic(stub)  # type: ignore[arg-type]
    except grpc.RpcError as refused:
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        return None
