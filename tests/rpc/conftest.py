import asyncio
from collections.abc import Iterator

import pytest
import uvloop

from tests.broker_process import BrokerProcess
from tests.front import Run
from tests.secured import Secured


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs a coroutine; all of the module in one loop, as grpc.aio wants it."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner.run


@pytest.fixture(scope="module")
def secured_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker with TLS and authentication, whose stub is an administrator's; one for all of the module."""
    directory = tmp_path_factory.mktemp("secured")
    broker = BrokerProcess(directory / "broker", secured=Secured(directory / "tls")).start()
    yield broker
    broker.terminate()
    broker.check()
