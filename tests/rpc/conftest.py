import asyncio
from collections.abc import Iterator

import pytest
import uvloop

from tests.front import Run


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs a coroutine; all of the module in one loop, as grpc.aio wants it."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner.run
