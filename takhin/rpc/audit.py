"""The audit log: who was denied what, and who administered what. Logger takhin.audit, one line an event.

    denied method=ProduceMessage principal=key:billing peer=10.0.0.7:51234 request=17f2c86b09ad4e13
        reason=ACCESS_DENIED what="topic 'orders'"
    done method=DeleteTopic principal=key:ops peer=10.0.0.2:40000 request=9b41d7e05c2f6a88 what="topic orders"
    failed method=DeleteTopic principal=key:ops peer=10.0.0.2:40000 request=02ce5d9f7413ba60 reason=TOPIC_NOT_FOUND
        what="topic orders"
    left-out source=10.0.0.7 count=1480

Each is one line; the values are those of takhin.rpc.log_fields. Keys, tokens and payloads are never in it. "done" means
that the change is durable. The last tells of denials that came too many a second to be told one by one; see denials.py.
"""

import logging

from takhin.errors import TakhinError
from takhin.rpc.call import Call, host_of
from takhin.rpc.denials import Denials, address_source
from takhin.rpc.log_fields import NOBODY, extra, fields_text


class Audit:
    def __init__(self) -> None:
        self._log = logging.getLogger("takhin.audit")
        # Whatever the level of other lines is: that nothing happened can't be told from silence otherwise.
        self._log.setLevel(logging.INFO)
        self._of_principals = Denials(self._tell_left_out)
        self._of_addresses = Denials(self._tell_left_out)

    def denied(self, method: str, principal: str | None, call: Call, refusal: TakhinError) -> None:
        """A call, or a request in a stream, that was refused for want of credentials or of permission."""
        if principal:
            is_told = self._of_principals.is_told(principal)
        else:
            is_told = self._of_addresses.is_told(address_source(host_of(call)))
        if is_told:
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

    def _tell_left_out(self, source: str, count: int) -> None:
        fields: dict[str, str | int] = {"source": source, "count": count}
        self._log.warning("left-out %s", fields_text(fields), extra=extra("", {"event": "left-out"} | fields))

    def _tell(self, level: int, event: str, call: Call, fields: dict[str, str | int]) -> None:
        more = extra(call.request_id, {"event": event} | fields)
        self._log.log(level, "%s %s", event, fields_text(fields), extra=more)


def _caller(method: str, principal: str | None, call: Call) -> dict[str, str | int]:
    return {"method": method, "principal": principal or NOBODY, "peer": call.peer or NOBODY, "request": call.request_id}
