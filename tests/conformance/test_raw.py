"""The cases that need frames written by hand, against both fronts."""

from pathlib import Path

import pytest

from . import cases
from .raw import CASES
from .server import Addresses


@pytest.mark.parametrize("name", cases.RAW)
def test_case(addresses: Addresses, name: str) -> None:
    CASES[name](addresses)


def test_no_case_has_another_name() -> None:
    assert set(CASES) == set(cases.RAW)


def test_the_page_lists_every_case() -> None:
    lines = (Path(__file__).parent / "README.md").read_text().splitlines()
    rows = [f"| {name} | {what} | {'frames' if name in cases.RAW else ''} |" for name, what in cases.CASES.items()]
    assert [line for line in lines if line in rows] == rows
