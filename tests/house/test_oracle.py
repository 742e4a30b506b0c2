"""The oracle judges the broker from outside: it knows no more than any client."""

import sys

import pytest

from .source import ROOT, name_of
from .test_imports import python_imports

ORACLE = ROOT / "tests" / "torture" / "oracle"
PACKAGE = "tests.torture.oracle"


def strange_imports(text: str) -> list[str]:
    """What a part of the oracle imports beside the generated stubs, grpc, the standard library and its other parts."""
    return [
        name for _, name in python_imports(text, PACKAGE)
        if not name.startswith(("takhin.v1.", "grpc.aio", f"{PACKAGE}.")) and name != "grpc"
        and name.split(".")[0] not in sys.stdlib_module_names
    ]


@pytest.mark.parametrize("path", sorted(ORACLE.glob("*.py")), ids=name_of)
def test_the_oracle_knows_what_a_client_knows(path) -> None:
    assert strange_imports(path.read_text()) == []


@pytest.mark.parametrize("text", [
    "from takhin.errors import Reason", "import takhin.codec.batch", "from tests.broker_process import read",
    "from google.rpc import error_details_pb2", "def f():\n    from grpc_status import rpc_status",
])
def test_what_a_client_does_not_know_is_found(text: str) -> None:
    assert len(strange_imports(text)) == 1


def test_there_is_something_to_check() -> None:
    assert {path.name for path in ORACLE.glob("*.py")} >= {"ledger.py", "load.py", "reading.py", "verdict.py"}
