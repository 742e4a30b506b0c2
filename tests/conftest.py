"""Brokers for tests: real processes on real ports, checked for signs of bugs when a test is done with them."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# grpc reads it when it is imported; a test that starts a process is not to be told about forks.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# Whoever runs the tests in the background may have SIGINT ignored, and so would every process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import grpc
import pytest

from tests import fronts
from tests.broker_process import BrokerProcess, Stub, new_topic

StartBroker = Callable[..., BrokerProcess]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture of the test is made."""
    callspec = getattr(item, "callspec", None)
    fronts.current = callspec.params.get("front", fronts.DEFAULT) if callspec is not None else fronts.DEFAULT


@pytest.fixture(scope="session")
def front() -> str:
    """The front that the test is run against; tests/rpc has each. What outlives a test, and depends on it, asks for
    it."""
    return fronts.DEFAULT


@pytest.fixture
def start_broker(tmp_path: Path, front: str) -> Iterator[StartBroker]:
    """start_broker(*flags, prefix=...): a broker of the test's own; each further one has another directory."""
    started: list[BrokerProcess] = []

    def start(*flags: str, **how: Any) -> BrokerProcess:
        started.append(BrokerProcess(tmp_path / f"broker-{len(started)}", *flags, **how))
        return started[-1].start()

    yield start
    for process in started:
        process.close()
    for process in started:
        process.check()


@pytest.fixture
def broker(start_broker: StartBroker) -> BrokerProcess:
    """A broker of the test's own."""
    return start_broker()


@pytest.fixture(scope="session")
def _session_brokers() -> Iterator[dict[str, BrokerProcess]]:
    """By front."""
    started: dict[str, BrokerProcess] = {}
    yield started
    for process in started.values():
        process.terminate()
        process.check()


@pytest.fixture
def shared_broker(
    _session_brokers: dict[str, BrokerProcess], tmp_path_factory: pytest.TempPathFactory, front: str
) -> Iterator[BrokerProcess]:
    """One broker for all tests that leave it as it was but for topics and groups of their own; one a front."""
    if front not in _session_brokers:
        _session_brokers[front] = BrokerProcess(tmp_path_factory.mktemp(f"shared-{front}")).start()
    broker = _session_brokers[front]
    since = len(broker.stderr)
    yield broker
    broker.check(since)
    assert broker.running, "the test ended the shared broker"


@pytest.fixture
def stub(shared_broker: BrokerProcess) -> Stub:
    """A stock client of the shared broker."""
    return shared_broker.stub()


@pytest.fixture
def topic(stub: Stub) -> str:
    """A new topic with one partition on the shared broker."""
    return new_topic(stub)


@pytest.fixture
def channel(shared_broker: BrokerProcess) -> Iterator[grpc.Channel]:
    """A connection to the shared broker, for requests and responses as bytes."""
    with shared_broker.channel() as channel:
        yield channel


@pytest.fixture
def strace() -> list[str]:
    """What runs a broker under strace, following its threads, with the broker as our own child. Its trace, if any is
    asked for with -e trace, goes to the broker's log unless -o says otherwise."""
    path = shutil.which("strace")
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("strace is missing")
        pytest.skip("strace is missing")
    return [path, "-D", "-f", "-qq"]
