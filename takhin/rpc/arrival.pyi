from collections.abc import Awaitable, Callable
from typing import Any

from takhin.gate import Gate

class Arrival:
    request_streaming: bool
    response_streaming: bool
    request_deserializer: None
    response_serializer: None
    unary_unary: Callable[..., Awaitable[Any]] | None
    unary_stream: None
    stream_unary: None
    stream_stream: Callable[..., Awaitable[Any]] | None

class Arriving:
    def __init__(
        self, gate: Gate, serve: Callable[..., Awaitable[Any]], refuse: Callable[..., Awaitable[Any]],
        serve_busy: Callable[..., Awaitable[Any]] | None, *, takes_stream: bool,
    ) -> None: ...
    def arrive(self) -> Arrival: ...
