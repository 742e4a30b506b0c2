"""Which front tests run against. Those in tests/rpc run against each, one after the other; all others against that of
grpc.aio.

TAKHIN_TEST_FRONT=grpc or fast: all of them against that one.
"""

import os
from typing import Any

from takhin.cli.fast_front import is_built
from takhin.config import GrpcSettings
from takhin.rpc.call import MethodTable

GRPC, FAST = "grpc", "fast"
_given = os.environ.get("TAKHIN_TEST_FRONT")
# Of a test that says nothing of fronts.
DEFAULT = _given or GRPC
assert DEFAULT in (GRPC, FAST), f"TAKHIN_TEST_FRONT={DEFAULT}"
# Of one that is to pass on every front.
EACH = (_given,) if _given else (GRPC, FAST)
# Of the test that runs: set before its fixtures are made (tests/conftest.py).
current = DEFAULT


def is_missing(front: str) -> bool:
    """Whether it can't be tested here, as it is not built."""
    return front == FAST and not is_built()


def new_front(table: MethodTable, settings: GrpcSettings, *more: Any) -> Any:
    """One that is not started yet."""
    if current == FAST:
        from takhin.rpc.fast.front import FastFront

        return FastFront(table, settings, *more)
    from takhin.rpc.grpc_front import GrpcFront

    return GrpcFront(table, settings, *more)
