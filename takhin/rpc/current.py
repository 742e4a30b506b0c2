"""The call that the code which runs now belongs to: how a line of the log finds its request id."""

from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from takhin.rpc.call import Call


class Scope:
    """A call, for as long as it is under way. What outlives it, a task that it started say, keeps the scope alone.

    trace_id: of the span that the call is traced by, in hexadecimal; "" without one.
    """

    __slots__ = ("call", "trace_id")

    def __init__(self, call: "Call", trace_id: str = ""):
        self.call: Call | None = call
        self.trace_id = trace_id


class Ids(NamedTuple):
    request_id: str
    trace_id: str


NO_IDS = Ids("", "")

current: ContextVar[Scope | None] = ContextVar("takhin.current_call", default=None)


def current_ids() -> Ids:
    """Of the call under way here; NO_IDS outside of any."""
    scope = current.get()
    if scope is None or scope.call is None:
        return NO_IDS
    return Ids(scope.call.request_id, scope.trace_id)
