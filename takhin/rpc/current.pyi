from contextvars import ContextVar
from typing import NamedTuple

from takhin.rpc.call import Call

class Scope:
    call: Call | None
    trace_id: str
    def __init__(self, call: Call, trace_id: str = "") -> None: ...
    def leave(self) -> int: ...

class Ids(NamedTuple):
    request_id: str
    trace_id: str

NO_IDS: Ids
current: ContextVar[Scope | None]

def current_ids() -> Ids: ...
