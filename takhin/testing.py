"""A pytest plugin: a real broker under a test. docs/testing.md tells how to use it.

    def test_orders(takhin_client, takhin_topic): ...

It is loaded by every pytest that finds takhin installed: what costs is imported when a fixture is used.
"""

import inspect
import itertools
import shutil
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from takhin.server_process import ServerFailed, ServerProcess

if TYPE_CHECKING:
    from takhin import sync
    from takhin.client import Client

_SCOPE = "takhin_broker_scope"
_SCOPES = ("function", "class", "module", "package", "session")
_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(_SCOPE, "how long a broker of takhin_broker and takhin_embedded lives", default="function")
    parser.addini("takhin_broker_flags", "flags of takhin-server, for takhin_broker", type="args", default=[])


def _scope(fixture_name: str, config: pytest.Config) -> Any:
    scope = config.getini(_SCOPE)
    if scope not in _SCOPES:
        raise pytest.UsageError(f"{_SCOPE} is {', '.join(_SCOPES)}, not {scope!r}")
    return scope


class BrokerProcess(ServerProcess):
    """takhin-server as a process of its own, on a free port and an empty directory.

    address is what clients connect to; a restart keeps it. stop() ends it in order, kill() as kill -9 does, restart()
    stops and starts it, start() starts it again after kill() or stop(). log_path has what it says.
    """

    def client(self, **options: Any) -> "Client":
        """A new client for asyncio; options as in takhin.connect."""
        from takhin.client import connect

        return connect(self.address, **options)

    def sync_client(self, **options: Any) -> "sync.Client":
        """A new client for code without asyncio."""
        from takhin import sync

        return sync.connect(self.address, **options)


class EmbeddedBroker:
    """The broker inside the test's process, in a thread with an event loop of its own; its clients need no port."""

    def __init__(self) -> None:
        import asyncio

        from takhin.embedded import Broker

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="takhin-embedded", daemon=True)
        self._broker = Broker()

    def start(self) -> None:
        self._thread.start()
        self._run(self._broker.start())

    def stop(self) -> None:
        try:
            self._run(self._broker.stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self, work: Any) -> Any:
        import asyncio

        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def client(self) -> "Client":
        """A new client for asyncio, for whatever event loop."""
        from takhin.client import Client
        from takhin.local_transport import LocalTransport, ThreadedTransport

        async def transport() -> LocalTransport:
            return self._broker.transport()

        return Client(ThreadedTransport(self._run(transport()), self._loop))

    def sync_client(self) -> "sync.Client":
        """A new client for code without asyncio."""
        from takhin import sync

        return sync.Client(self.client())


@pytest.fixture(scope=_scope)
def takhin_broker(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[BrokerProcess]:
    """A broker in a process of its own: .address, .client(), .sync_client(), .restart(), .kill(), .start()."""
    broker = BrokerProcess(tmp_path_factory.mktemp("takhin"), flags=pytestconfig.getini("takhin_broker_flags"))
    try:
        broker.start()
    except ServerFailed as problem:
        pytest.fail(str(problem), pytrace=False)
    yield broker
    is_gone = broker.died
    broker.kill()
    shutil.rmtree(broker.data_dir, ignore_errors=True)
    if is_gone:
        pytest.fail(f"the broker ended during the test: {broker.log_end()}", pytrace=False)


@pytest.fixture(scope=_scope)
def takhin_embedded() -> Iterator[EmbeddedBroker]:
    """A broker in this process: .client(), .sync_client()."""
    broker = EmbeddedBroker()
    broker.start()
    yield broker
    broker.stop()


def _broker_of(request: pytest.FixtureRequest) -> BrokerProcess | EmbeddedBroker:
    """The one that the test asks for; a process where it asks for none."""
    name = "takhin_embedded" if "takhin_embedded" in request.fixturenames else "takhin_broker"
    broker: BrokerProcess | EmbeddedBroker = request.getfixturevalue(name)
    return broker


@pytest.fixture
def takhin_client(request: pytest.FixtureRequest) -> "Iterator[Client | sync.Client]":
    """A client of the test's broker: takhin.client's in an async test, takhin.sync's in another."""
    broker = _broker_of(request)
    if inspect.iscoroutinefunction(getattr(request.function, "__wrapped__", request.function)):
        # It is bound to the test's event loop, and goes with it.
        yield broker.client()
        return
    with broker.sync_client() as client:
        yield client


@pytest.fixture
def takhin_topic(request: pytest.FixtureRequest) -> str:
    """The name of a new topic, with one partition, on the test's broker."""
    name = f"test-{next(_numbers)}"
    with _broker_of(request).sync_client() as client:
        client.create_topic(name, partitions=1)
    return name
