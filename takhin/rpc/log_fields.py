"""Fields of a line of the log: name=value, with values that may hold anything a client sent."""

import json
import re

from takhin.errors import TakhinError
from takhin.rpc.current import current_ids

# The longest entry of an ACL, its principal and name included, fits.
MAX_VALUE_CHARACTERS = 1000
NOBODY = "-"
_TRACE = "_takhin_trace_id"

_PLAIN = re.compile(r"[A-Za-z0-9._:/@*+\[\]-]+", re.ASCII)


def fields_text(fields: dict[str, str | int]) -> str:
    """'a=1 b="x y"'. Values with anything but plain characters are in JSON's quotes, so that none can pass for another
    field or line."""
    return " ".join(f"{name}={_shown(str(value))}" for name, value in fields.items())


def extra(request_id: str, fields: dict[str, str | int], trace_id: str | None = None) -> dict[str, object]:
    """What takhin.cli.log_lines makes of it, as a logger takes it: each field by itself, the call's ids. trace_id:
    None: that of the call under way here, if it is this one."""
    if trace_id is None:
        here = current_ids()
        trace_id = here.trace_id if request_id and here.request_id == request_id else ""
    apart = {
        name: value if isinstance(value, int) else _cut(value) for name, value in fields.items() if name != "request"}
    return {"fields": apart, "request_id": request_id, "trace_id": trace_id}


def note_trace(failure: BaseException, trace_id: str) -> None:
    """Have a failure know the trace of the call that it ended: it is logged when that is not under way any more."""
    if not isinstance(failure, TakhinError):
        failure.__dict__[_TRACE] = trace_id


def trace_of(failure: BaseException) -> str | None:
    return failure.__dict__.get(_TRACE)


def _shown(value: str) -> str:
    value = _cut(value)
    return value if _PLAIN.fullmatch(value) else json.dumps(value)


def _cut(value: str) -> str:
    return value if len(value) <= MAX_VALUE_CHARACTERS else value[:MAX_VALUE_CHARACTERS] + "..."
