"""Takhin: a durable event log with a plain gRPC face.

    async with takhin.connect("localhost:9092") as tk: ...

What takhin.client and its neighbours offer stands here too, and is imported when it is asked for: `import takhin` alone
loads nothing.
"""

import importlib
from typing import Any

# Modules of their own, and the names that are in others: as takhin/__init__.pyi tells type checkers.
_MODULES = frozenset({"client", "embedded", "errors", "sync"})
_HOMES = {"Broker": "takhin.embedded"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("takhin")
    elif name in _MODULES:
        value = importlib.import_module(f"takhin.{name}")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif not name.startswith("_") and hasattr(client := importlib.import_module("takhin.client"), name):
        value = getattr(client, name)
    else:
        raise AttributeError(f"module 'takhin' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    client = importlib.import_module("takhin.client")
    return sorted({"__version__", *_MODULES, *_HOMES, *client.__all__})
