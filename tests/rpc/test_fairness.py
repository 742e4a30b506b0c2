"""Whoever sends frames without end that come to no call does not keep the others from being served."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from bench import http2
from bench.floods import FLOODS, Flooder
from takhin.rpc import ban as module
from takhin.rpc.ban import ban
from takhin.rpc.fairness import Fairness, Messages, connections, shut_down_connection
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import DEADLINE_S, BrokerProcess, new_topic, produce, wait_until
from tests.conftest import StartBroker
from tests.rpc.test_limits import in_the_clear
from tests.rpc.test_metrics import of, scrape

# The fast front sees every frame, and ends those connections by itself.
pytestmark = pytest.mark.one_front("grpc", "what it does is for gRPC's core alone")

NEIGHBOUR, STRANGER = "127.0.0.1", "127.0.0.2"


@contextmanager
def flooding(broker: BrokerProcess, name: str, connections: int = 4) -> Iterator[Flooder]:
    """From STRANGER, as bench.floods does it."""
    (flood,) = [flood for flood in FLOODS if flood.name == name]
    flooder, stop = Flooder(flood, broker.address, connections), threading.Event()
    thread = threading.Thread(target=flooder.run, args=(stop,))
    thread.start()
    try:
        yield flooder
    finally:
        stop.set()
        thread.join()


@in_the_clear
@pytest.mark.parametrize("name", ["calls never ended", "SETTINGS", "CONTINUATION"])
def test_a_flood_is_cut_off_and_its_address_not_let_in(start_broker: StartBroker, name: str) -> None:
    broker = start_broker("--grpc-cut-floods", "true", "--metrics-listen", "127.0.0.1:0")
    stub = broker.stub()
    topic = new_topic(stub)
    produce(stub, topic, b"before")
    with flooding(broker, name):
        # Where the flood keeps nobody from anything, as it may on a fast machine, nothing has to be done.
        deadline_s = time.monotonic() + 10
        while "no connections of" not in broker.stderr and time.monotonic() < deadline_s:
            produce(stub, topic, b"during")
        if "no connections of" in broker.stderr:
            broker.wait_for_log(f"no connections of {STRANGER} are taken for 60 s")
            assert of(scrape(broker), "takhin_connections_cut_total") >= 3
            with pytest.raises(TimeoutError):
                http2.Connection(broker.address, 0.5, source=STRANGER)
        for _ in range(10):
            produce(stub, topic, b"during")
    # The neighbour's own connection was never touched, and a new one of it is let in.
    assert f"connection of {NEIGHBOUR}:" not in broker.stderr
    grpc.channel_ready_future(broker.channel()).result(DEADLINE_S)


@in_the_clear
def test_it_is_not_done_unasked(start_broker: StartBroker) -> None:
    broker = start_broker()
    with flooding(broker, "SETTINGS"):
        time.sleep(2)
    assert "takhin.rpc.fairness" not in broker.stderr
    assert produce(broker.stub(), new_topic(broker.stub()), b"x").offset == 0


# The judgement: sockets of our own in place of a front that reads one of them alone.


class Half:
    """A listener that a Fairness looks after, and that is served by nobody unless a test does."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        host, port = self.listener.getsockname()
        self.messages = Messages()
        self.fairness = Fairness(f"{host}:{port}", self.messages)
        self.address = host, port

    def connect(self, source: str = STRANGER) -> tuple[socket.socket, socket.socket, str]:
        """Client's end, ours, and how the client is called."""
        client = socket.create_connection(self.address, DEADLINE_S, source_address=(source, 0))
        ours, peer = self.listener.accept()
        return client, ours, f"{peer[0]}:{peer[1]}"


@pytest.fixture
def half() -> Iterator[Half]:
    made = Half()
    yield made
    made.fairness.stop()
    made.listener.close()


def read_on(client: socket.socket, ours: socket.socket, stop: threading.Event, messages: Messages, peer: str,
            of_calls: bool) -> None:
    """What a front does that has only this connection to look after."""
    try:
        client.sendall(bytes(40_000))
        while not stop.is_set():
            client.sendall(bytes(20_000))
            got = len(ours.recv(20_000))
            if not got:
                return
            if of_calls and messages.are_counted:
                messages.note_message(peer, got)
            time.sleep(0.001)
    except OSError:
        return


@pytest.mark.parametrize("of_calls", [False, True], ids=["no calls", "calls"])
def test_only_what_comes_to_no_call_is_cut(half: Half, of_calls: bool, caplog: pytest.LogCaptureFixture) -> None:
    client, ours, peer = half.connect()
    idle = half.connect()
    waiting = half.connect()
    waiting[0].sendall(bytes(1000))
    stop = threading.Event()
    thread = threading.Thread(target=read_on, args=(client, ours, stop, half.messages, peer, of_calls))
    thread.start()
    half.fairness.start()
    try:
        if of_calls:
            time.sleep(3)
            assert half.fairness.num_cut == 0
        else:
            wait_until(lambda: half.fairness.num_cut == 1)
            assert f"connection of {peer} cut" in caplog.text
            thread.join(DEADLINE_S)
            assert ours.recv(1) == b""
        for _, end, _ in idle, waiting:
            end.sendall(b"still there")
    finally:
        stop.set()
        half.fairness.stop()
        thread.join(DEADLINE_S)
        for end in client, ours, *idle[:2], *waiting[:2]:
            end.close()


def test_who_is_served_is_not_looked_at(half: Half) -> None:
    """As long as connections are noticed nothing is counted, and nobody cut."""
    client, ours, peer = half.connect()
    stop = threading.Event()
    thread = threading.Thread(target=read_on, args=(client, ours, stop, half.messages, peer, False))
    thread.start()

    def notice() -> None:
        half.listener.settimeout(0.1)
        while not stop.is_set():
            try:
                half.listener.accept()[0].close()
            except TimeoutError:
                continue

    noticing = threading.Thread(target=notice)
    noticing.start()
    half.fairness.start()
    time.sleep(3)
    stop.set()
    thread.join()
    noticing.join()
    assert half.fairness.num_cut == 0 and not half.messages.are_counted
    client.close()
    ours.close()


def test_cutting_drops_what_was_not_read_and_leaks_nothing(half: Half) -> None:
    client, ours, peer = half.connect()
    client.sendall(bytes(100_000))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        assert peer in {found for found, _ in connections(half.address[1])}
        shut_down_connection(peer)
    assert len(os.listdir("/proc/self/fd")) <= before  # others may have closed theirs
    ours.settimeout(DEADLINE_S)
    assert ours.recv(1) == b""
    client.close()
    ours.close()


# The filter


def gets_in(listener: socket.socket, source: str) -> bool:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(0.3)
        client.bind((source, 0))
        try:
            client.connect(("::1" if family == socket.AF_INET6 else "127.0.0.1", listener.getsockname()[1]))
        except TimeoutError:
            return False
    return True


@pytest.mark.parametrize("dual", [False, True])
def test_who_is_banned_does_not_get_in(dual: bool) -> None:
    sources = ["127.0.0.1", "127.0.0.2", "127.0.0.3", *(["::1"] if dual else [])]
    if dual:
        listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        listener = socket.create_server(("0.0.0.0", 0))
    with listener:
        several = ["10.0.0.1", "127.0.0.3", "127.0.0.2", "fe80::1"]
        for banned in [], ["127.0.0.2"], several, ["::1"], ["[::1]", "::2"], []:
            ban(listener, banned)
            bare = {each.strip("[]") for each in banned}
            assert [source for source in sources if not gets_in(listener, source)] == [
                source for source in sources if source in bare]
        ban(listener, [f"10.1.{number}.1" for number in range(200)] + ["127.0.0.2"])
        assert not gets_in(listener, "127.0.0.2") and gets_in(listener, "127.0.0.1")
        ban(listener, [f"fd00::{number:x}" for number in range(200)] + ["127.0.0.2"])
        assert not gets_in(listener, "127.0.0.2") and gets_in(listener, "127.0.0.1")


def test_as_many_as_can_be_banned_fit_into_a_program() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6) as listener:
        ban(listener, [f"fd00::{number:x}" for number in range(2 * module.MAX_BANNED)])
        ban(listener, ["no address", "a local client"])
