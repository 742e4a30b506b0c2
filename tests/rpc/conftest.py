"""Every test of RPCs runs against each front, unless it says why not: pytest.mark.one_front("grpc", "why")."""

import asyncio
import os
from collections.abc import Iterator

import pytest
import uvloop

from tests import fronts
from tests.broker_process import BrokerProcess
from tests.front import Run
from tests.secured import Secured


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("one_front")
    if marker is not None:
        name, reason = marker.args
        assert name in (fronts.GRPC, fronts.FAST) and reason
        names = [name] if name in fronts.EACH else []
    elif metafunc.module.__name__.rpartition(".")[2].startswith("test_fast_"):
        names = [fronts.FAST] if fronts.FAST in fronts.EACH else []
    else:
        names = list(fronts.EACH)
    # By module: what a module has for all its tests is made once a front.
    metafunc.parametrize("front", names, indirect=True, scope="module")


@pytest.fixture(scope="module", autouse=True)
def front(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if fronts.is_missing(name):
        if os.environ.get("CI") == "true":
            pytest.fail("the fast front is not built: libnghttp2-dev or pkg-config is missing")
        pytest.skip("the fast front is not built")
    return name


@pytest.fixture(scope="module")
def run(front: str) -> Iterator[Run]:
    """Runs a coroutine; all of the module in one loop, as grpc.aio wants it."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner.run


@pytest.fixture(scope="module")
def secured_broker(tmp_path_factory: pytest.TempPathFactory, front: str) -> Iterator[BrokerProcess]:
    """A broker with TLS and authentication, whose stub is an administrator's; one for all of the module."""
    directory = tmp_path_factory.mktemp("secured")
    broker = BrokerProcess(directory / "broker", secured=Secured(directory / "tls")).start()
    yield broker
    broker.terminate()
    broker.check()
