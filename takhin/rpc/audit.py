"""The audit log: who was denied what, and who administered what. Logger takhin.audit, one line an event.

    denied method=ProduceMessage principal=key:billing peer=10.0.0.7:51234 request=17f2c86b09ad4e13
        reason=ACCESS_DENIED what="topic 'orders'"
    done method=DeleteTopic principal=key:ops peer=10.0.0.2:40000 request=9b41d7e05c2f6a88 what="topic orders"
    failed method=DeleteTopic principal=key:ops peer=10.0.0.2:40000 request=02ce5d9f7413ba60 reason=TOPIC_NOT_FOUND
        what="topic orders"

Each is one line; the values are those of takhin.rpc.log_fields. Keys, tokens and payloads are never in it. "done" means
that the change is durable.
"""

import logging
import time

from takhin.errors import TakhinError
from takhin.rpc.call import Call
from takhin.rpc.log_fields import NOBODY, extra, fields_text

# Of denials, a second: whoever is denied in a loop does not fill the disk.
MAX_DENIALS_S = 100

class Audit:
    def __init__(self) -> None:
        self._log = logging.getLogger("takhin.audit")
        # Whatever the level of other lines is: that nothing happened can't be told from silence otherwise.
        self._log.setLevel(logging.INFO)
        self._second = 0
        self._denials = 0

    def denied(self, method: str, principal: str | None, call: Call, refusal: TakhinError) -> None:
        """A call, or a request in a stream, that was refused for want of credentials or of permission."""
        second = int(time.monotonic())
        if second != self._second:
            if self._denials > MAX_DENIALS_S:
                untold = self._denials - MAX_DENIALS_S
                self._log.warning("denied count=%d more, not told one by one", untold, extra=extra(
                    "", {"event": "denied", "count": untold}))
            self._second, self._denials = second, 0
        self._denials += 1
        if self._denials <= MAX_DENIALS_S:
            self._tell(logging.WARNING, "denied", call, _caller(method, principal, call) | {
                "reason": refusal.reason, "what": refusal.message})

    def administered(
        self, method: str, principal: str | None, call: Call, what: str | list[str],
        failure: BaseException | None = None
    ) -> None:
        """A change by an administrator, a line for each part of it; failure: why it was not made, or, of a call cut
        short, is perhaps not."""
        caller = _caller(method, principal, call)
        for each in [what] if isinstance(what, str) else what:
            if failure is None:
                self._tell(logging.INFO, "done", call, caller | {"what": each})
            else:
                reason = failure.reason if isinstance(failure, TakhinError) else type(failure).__name__
                self._tell(logging.INFO, "failed", call, caller | {"reason": reason, "what": each})

    def _tell(self, level: int, event: str, call: Call, fields: dict[str, str | int]) -> None:
        more = extra(call.request_id, {"event": event} | fields)
        self._log.log(level, "%s %s", event, fields_text(fields), extra=more)


def _caller(method: str, principal: str | None, call: Call) -> dict[str, str | int]:
    return {"method": method, "principal": principal or NOBODY, "peer": call.peer or NOBODY, "request": call.request_id}
