from collections.abc import Awaitable, Callable
from typing import Any

from takhin.counters import CallCounters
from takhin.gate import Gate
from takhin.rpc.call import Method

class Served:
    def __init__(
        self, method: Method, run: Callable[..., Any], refuse_full: Callable[..., Any], open_sink: Callable[..., Any],
    ) -> None: ...
    @property
    def method(self) -> Method: ...
    @property
    def handler(self) -> Callable[..., Awaitable[Any]]: ...
    @property
    def counters(self) -> CallCounters: ...
    @property
    def gate(self) -> Gate: ...

class Sink: ...
