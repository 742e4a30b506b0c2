"""Sight at the method table: a table of methods becomes one whose calls are known to the log, and told when slow.

So whatever front serves the table has it. It stands around the guard: who is refused is seen too.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from contextvars import Context
from dataclasses import replace
from typing import Any

from takhin.counters import SlowCalls
from takhin.errors import Code, TakhinError
from takhin.rpc.call import Call, Kind, Method, StreamCall
from takhin.rpc.current import Scope
from takhin.rpc.log_fields import NOBODY, extra, fields_text, note_trace

# Of slow calls told one by one: a broker whose disk is slow does not fill it with that.
MAX_SLOW_S = 10

_log = logging.getLogger("takhin.slow")


class Observer:
    """slow_request_ms: unary calls that take longer are logged; -1: none. May be changed while it serves."""

    def __init__(self, slow_request_ms: int = -1):
        self._told_without_handler: list[SlowCalls] = []
        self.slow_request_ms = slow_request_ms
        self._second = 0
        self._told = 0
        self._untold = 0

    @property
    def slow_request_ms(self) -> int:
        return self._slow_request_ms

    @slow_request_ms.setter
    def slow_request_ms(self, value: int) -> None:
        self._slow_request_ms = value
        self._slow_ns = value * 1_000_000 if value >= 0 else 1 << 62
        for each in self._told_without_handler:
            each.limit_ns = self._slow_ns

    def observed(self, methods: Iterable[Method]) -> list[Method]:
        """The same methods, each seen."""
        return [self._observed(method) for method in methods]

    def _observed(self, method: Method) -> Method:
        if method.kind is Kind.UNARY:
            return replace(method, handler=self._unary(method), slow=self._slow_calls(method))
        if method.kind is Kind.SERVER_STREAM:
            return replace(method, handler=self._server_stream(method))
        return replace(method, handler=self._bidi(method))

    def _unary(self, method: Method) -> Callable[[bytes, Call], Awaitable[bytes]]:
        handler = method.handler

        async def observed(request: bytes, call: Call) -> bytes:
            scope = Scope(call)
            try:
                response: bytes = await handler(request, call)
            except BaseException as failure:
                took_ns = scope.leave()
                note_trace(failure, scope.trace_id)
                if took_ns > self._slow_ns:
                    self._slow(method, call, scope.trace_id, took_ns, code_of(failure, call))
                raise
            took_ns = scope.leave()
            if took_ns > self._slow_ns:
                self._slow(method, call, scope.trace_id, took_ns, Code.OK)
            return response

        return observed

    def _server_stream(self, method: Method) -> Callable[[bytes, StreamCall], Awaitable[None]]:
        handler = method.handler

        async def observed(request: bytes, call: StreamCall) -> None:
            await _within(call, handler(request, call))

        return observed

    def _bidi(self, method: Method) -> Callable[[StreamCall], Awaitable[None]]:
        handler = method.handler

        async def observed(call: StreamCall) -> None:
            await _within(call, handler(call))

        return observed

    def _slow_calls(self, method: Method) -> SlowCalls:
        def tell(call: Call, took_ns: int, code: int) -> None:
            self._slow(method, call, "", took_ns, Code(code))

        told = SlowCalls(self._slow_ns, tell)
        self._told_without_handler.append(told)
        return told

    def _slow(self, method: Method, call: Call, trace_id: str, took_ns: int, code: Code) -> None:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._told = second, 0
        if self._told >= MAX_SLOW_S:
            self._untold += 1
            if self._untold == 1:
                asyncio.get_running_loop().call_later(1.0, self._tell_untold, context=Context())
            return
        self._told += 1
        fields: dict[str, str | int] = {
            "method": method.path[1:], "duration_ms": took_ns // 1_000_000, "code": code.name,
            "peer": call.peer or NOBODY, "principal": call.principal or NOBODY, "request": call.request_id}
        more = extra(call.request_id, {"event": "slow"} | fields, trace_id)
        _log.warning("slow %s", fields_text(fields), extra=more)

    def _tell_untold(self) -> None:
        count, self._untold = self._untold, 0
        more = extra("", {"event": "slow", "count": count})
        _log.warning("slow count=%d more, not told one by one", count, extra=more)


async def _within(call: StreamCall, work: Awaitable[None]) -> None:
    scope = Scope(call)
    try:
        await work
    except BaseException as failure:
        note_trace(failure, scope.trace_id)
        raise
    finally:
        scope.leave()


def code_of(failure: BaseException, call: Call) -> Code:
    """With which a call ends whose handler has raised this."""
    if isinstance(failure, TakhinError):
        return failure.code
    if isinstance(failure, asyncio.CancelledError):
        return Code.DEADLINE_EXCEEDED if call.time_remaining_s() == 0 else Code.CANCELLED
    return Code.INTERNAL
