"""Data that a broker wrote, once for all tests; each takes a copy."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.tool import Data, write_data

DataOf = Callable[[str], Data]


@pytest.fixture(scope="session")
def _written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Data]:
    return {
        how: write_data(tmp_path_factory.mktemp(how), clean=how == "clean") for how in ("clean", "killed")
    }


@pytest.fixture
def data_of(_written: dict[str, Data], tmp_path: Path) -> DataOf:
    """data_of("clean" or "killed"): a copy of what a broker left."""
    return lambda how: _written[how].copied(tmp_path)


@pytest.fixture
def clean(data_of: DataOf) -> Data:
    return data_of("clean")


@pytest.fixture
def killed(data_of: DataOf) -> Data:
    return data_of("killed")
