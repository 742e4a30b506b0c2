"""The cases from Python's two gRPC clients, against both fronts."""

import asyncio

import pytest

from . import broker_cases, cases
from .calls import CONNECTIONS
from .server import Addresses
from .stock import CASES, World

assert broker_cases


@pytest.mark.parametrize("client", sorted(CONNECTIONS))
@pytest.mark.parametrize("name", cases.STOCK)
def test_case(addresses: Addresses, client: str, name: str) -> None:
    asyncio.run(CASES[name](World(client, addresses)))


def test_no_case_has_another_name() -> None:
    assert set(CASES) == set(cases.STOCK)
