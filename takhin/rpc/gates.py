"""What bounds calls under way: which methods pass which gate, and what is told to those that do not get in."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from takhin.broker.statistics import Usage
from takhin.config import Limits
from takhin.errors import Reason, TakhinError, error
from takhin.gate import Gate
from takhin.rpc.call import Kind, Method
from takhin.rpc.health import SERVICE as HEALTH
from takhin.rpc.reflection import SERVICES as REFLECTION

_HEALTH_CHECK = "HealthCheck"


class Gates:
    """Of one broker, for all its fronts together.

    What strangers may call has gates of its own: neither do they keep others out, nor do those who work the broker hard
    keep it from saying that it is alive.
    """

    def __init__(self, limits: Limits):
        self._calls = Gate("calls", limits.calls, limits.call_bytes)
        self._checks = Gate("calls", limits.calls)
        self._streams = Gate("streams", limits.streams)
        self._watches = Gate("watch_streams", limits.watch_streams)
        self.clients = ClientStreams(limits.streams_per_client)

    def gated(self, methods: Iterable[Method]) -> list[Method]:
        """The same methods, each with its gate."""
        return [replace(method, gate=self._gate(method)) for method in methods]

    def _gate(self, method: Method) -> Gate:
        if method.kind is Kind.UNARY:
            is_check = method.service == HEALTH or method.path.endswith(f"/{_HEALTH_CHECK}")
            return self._checks if is_check else self._calls
        return self._watches if method.service == HEALTH or method.service in REFLECTION else self._streams

    @property
    def num_open(self) -> int:
        """Calls and streams under way."""
        return sum(gate.open for gate in (self._calls, self._checks, self._streams, self._watches))

    def usage(self) -> Iterator[Usage]:
        calls, streams, watches = self._calls, self._streams, self._watches
        yield Usage("calls", calls.open, calls.limit)
        yield Usage("call_bytes", calls.used_bytes, calls.limit_bytes)
        yield Usage("streams", streams.open, streams.limit)
        yield Usage("streams_per_client", self.clients.most, self.clients.limit)
        yield Usage("watch_streams", watches.open, watches.limit)

    def refused(self) -> dict[str, int]:
        """Calls refused so far, by limit."""
        return {
            "calls": self._calls.refused + self._checks.refused,
            "call_bytes": self._calls.refused_bytes,
            "streams": self._streams.refused,
            "streams_per_client": self.clients.refused,
            "watch_streams": self._watches.refused,
        }


class ClientStreams:
    """How many streams each client has open. limit: of one."""

    def __init__(self, limit: int):
        self.limit = limit
        self.refused = 0
        self._open: dict[str, int] = {}

    @property
    def most(self) -> int:
        """Of any one client."""
        return max(self._open.values(), default=0)

    @contextmanager
    def holding(self, client: str) -> Iterator[None]:
        """While one of its streams is open. Raises STREAM_LIMIT."""
        count = self._open.get(client, 0)
        if count >= self.limit:
            self.refused += 1
            raise error(
                Reason.STREAM_LIMIT,
                f"{client} has {count} streams open, as many as one client may have (limits.streams_per_client)",
                limit=self.limit)
        self._open[client] = count + 1
        try:
            yield
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]


def too_many_calls(gate: Gate) -> TakhinError:
    """CALL_LIMIT, STREAM_LIMIT."""
    reason, what = (Reason.CALL_LIMIT, "calls") if gate.name == "calls" else (Reason.STREAM_LIMIT, "streams")
    return error(
        reason, f"{gate.limit} {what} are open, as many as this broker takes (limits.{gate.name}); try again",
        limit=gate.limit)


def too_many_bytes(gate: Gate) -> TakhinError:
    """CALL_LIMIT."""
    return error(
        Reason.CALL_LIMIT,
        f"calls under way have as many bytes of requests as this broker takes, {gate.limit_bytes} (limits.call_bytes); "
        "try again",
        limit_bytes=gate.limit_bytes)


def too_much_held(limit_bytes: int) -> TakhinError:
    """CALL_LIMIT, of a front that puts requests together itself."""
    return error(
        Reason.CALL_LIMIT,
        "requests that have not come whole and answers that are not taken have as many bytes as this front takes, "
        f"{limit_bytes} (limits.call_bytes); try again",
        limit_bytes=limit_bytes)


def late_request(timeout_s: float) -> TakhinError:
    """REQUEST_TIMEOUT, of a front that puts requests together itself."""
    return error(
        Reason.REQUEST_TIMEOUT,
        f"the request has not come whole within {timeout_s:g} s (limits.request_arrival_ms), and memory is short")
