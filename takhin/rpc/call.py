"""What a handler is given and what a front serves: one table of methods, bytes in and bytes out.

A handler knows its request's bytes and a `Call`; a front (grpc.aio today) knows the table. Neither names the other's
types, so that every front serves the same table and every test of an RPC can run against each front.

    UNARY          async def handler(request: bytes, call: Call) -> bytes
    SERVER_STREAM  async def handler(request: bytes, call: StreamCall) -> None
    BIDI           async def handler(call: StreamCall) -> None

Handlers raise takhin.errors.TakhinError; whatever else they raise is our bug and reaches the client as INTERNAL with
the call's request id. A stream ends with status OK when its handler returns.

A front tells the client the request id: beside every error, and beside a success when the client chose it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from takhin.counters import CallCounters, SlowCalls
from takhin.errors import Reason, error
from takhin.gate import Gate

if TYPE_CHECKING:
    from takhin.broker.appending import Appending
    from takhin.broker.topics import TopicSource


class Kind(Enum):
    """How many messages go each way."""

    UNARY = "unary"
    SERVER_STREAM = "server_stream"
    BIDI = "bidi"


class Call(Protocol):
    """One RPC, as its handler sees it. What is not asked for costs nothing: every property is made on access.

    principal: who calls, set by what finds it out; None: nobody had to say who he is, or has not yet.
    """

    principal: str | None

    @property
    def request_id(self) -> str:
        """Of x-request-id where the client chose one, else made; the same each time. See takhin.rpc.request_id."""

    @property
    def peer(self) -> str:
        """The client's address, "HOST:PORT" where there is one."""

    @property
    def identity(self) -> bytes | None:
        """The certificate with which the client proved who it is, PEM; None when the transport asked for none."""

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """The request's metadata by lower-case key, the last of a repeated one; keys that end in "-bin" hold bytes."""

    def time_remaining_s(self) -> float | None:
        """Seconds until the client's deadline, never below 0; None without one."""

    def cancelled(self) -> bool:
        """Whether the call is over before its handler is: the client cancelled or left, or the deadline passed."""


class StreamCall(Call, Protocol):
    """A call whose handler writes, and for BIDI reads, messages one at a time.

    One read and one write may be under way at once, from different tasks; never two of either. A handler neither ends
    while a write is under way nor cancels one: the transport would leave the client without the stream's end.
    """

    async def read(self) -> bytes | None:
        """The client's next message; None once it has sent its last. BIDI only.

        A read that is cancelled takes its message with it: there can be no other after it. A call that is torn down may
        give None as well, before the handler's CancelledError arrives.
        """

    async def write(self, message: bytes) -> None:
        """Send a message: exactly `bytes`. Returns when the transport took it, which is not when the client has it.

        Raises asyncio.CancelledError when the call is over.
        """

    def cut(self) -> None:
        """End the call at once, though the client takes nothing: what is on its way to it is given up.

        The client sees the call fail with UNAVAILABLE. A front that can't end one stream by force ends the connection,
        with all its calls; one that can't tell which that is, all connections of its socket. The handler's write raises
        asyncio.CancelledError.
        """


UnaryHandler = Callable[[bytes, Call], Awaitable[bytes]]
ServerStreamHandler = Callable[[bytes, StreamCall], Awaitable[None]]
BidiHandler = Callable[[StreamCall], Awaitable[None]]


# Of the request of a SERVER_STREAM, which is in memory for as long as the stream lasts, and of what else anybody may
# send on a stream. Those that make sense have some hundred bytes.
MAX_STREAM_REQUEST_BYTES = 64 * 1024
NO_MESSAGE = "the call has no message"
# Of methods that no limit was set for.
NO_LIMIT = 1 << 62


def _no_gate() -> Gate:
    return Gate("", NO_LIMIT)


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC: its path ("/takhin.v1.TakhinService/ProduceMessage"), its kind, and what serves it. counters: fronts add
    to them, all to the same. gate: what bounds it; every call passes it, on every front. enter: given a call, raises
    what it is refused for whatever its request says; None: nothing. The handler asks the same; a front may ask before
    it takes the request. slow: whom to tell of slow unary calls that were served by no handler.

    appending: what the handler hands its requests to, where it does little else: a front may do so itself, without a
    coroutine, which costs less. Whoever wraps a handler in what the front would leave out takes it away. Then topics,
    given a call, says which it may write to, or raises what it is refused for (None: to all), and holding is what the
    handler of a stream holds meanwhile (None: nothing).
    """

    path: str
    kind: Kind
    handler: Callable[..., Awaitable[Any]]
    counters: CallCounters = field(default_factory=CallCounters, compare=False)
    gate: Gate = field(default_factory=_no_gate, compare=False)
    enter: Callable[[Call], object] | None = field(default=None, compare=False)
    appending: "Appending | None" = field(default=None, compare=False)
    topics: "Callable[[Call], TopicSource] | None" = field(default=None, compare=False)
    holding: Callable[[Call], AbstractContextManager[object]] | None = field(default=None, compare=False)
    slow: SlowCalls | None = field(default=None, compare=False)

    @property
    def service(self) -> str:
        """The full name of the service: "takhin.v1.TakhinService"."""
        return self.path[1:].rpartition("/")[0]

    def check_size(self, request: bytes) -> None:
        """For fronts, before the handler has it. Raises MESSAGE_TOO_LARGE."""
        if self.kind is Kind.SERVER_STREAM:
            check_stream_request(request)


def check_stream_request(request: bytes) -> None:
    """Raises MESSAGE_TOO_LARGE."""
    if len(request) > MAX_STREAM_REQUEST_BYTES:
        raise error(
            Reason.MESSAGE_TOO_LARGE,
            f"the request has {len(request)} bytes; on this stream at most {MAX_STREAM_REQUEST_BYTES} are taken",
            limit_bytes=MAX_STREAM_REQUEST_BYTES)


async def read_within(call: StreamCall, timeout_s: float) -> bytes:
    """The only message that there is, for fronts. Raises REQUEST_TIMEOUT, after which there is no other read, and
    MALFORMED_REQUEST when there is none."""
    try:
        async with asyncio.timeout(timeout_s):
            message = await call.read()
    except TimeoutError:
        raise error(
            Reason.REQUEST_TIMEOUT,
            f"the request has not come within {timeout_s:g} s (limits.request_arrival_ms), and many calls are open",
        ) from None
    if message is None:
        raise error(Reason.MALFORMED_REQUEST, NO_MESSAGE)
    return message


def host_of(call: Call) -> str:
    """The address that a call comes from, without the port."""
    return call.peer.rpartition(":")[0] or "local"


MethodTable = dict[str, Method]


def method_table(*groups: Iterable[Method]) -> MethodTable:
    """The methods of all groups by path. ValueError for a path given twice or not of the form /service/method."""
    table: MethodTable = {}
    for group in groups:
        for method in group:
            if not method.path.startswith("/") or method.path.count("/") != 2 or not method.service:
                raise ValueError(f"a method's path is /service/method, not {method.path!r}")
            if method.path in table:
                raise ValueError(f"{method.path} is in the table twice")
            table[method.path] = method
    return table


def service_names(methods: Iterable[Method]) -> list[str]:
    """The services of `methods`, each once, sorted."""
    return sorted({method.service for method in methods})
