"""One server for each front, for all cases and clients of a run."""

from collections.abc import Iterator

import pytest

from .server import FRONTS, Addresses, running


@pytest.fixture(scope="package", params=FRONTS)
def addresses(request: pytest.FixtureRequest) -> Iterator[Addresses]:
    with running(request.param) as found:
        yield found
