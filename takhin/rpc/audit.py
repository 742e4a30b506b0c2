"""The audit log: who was denied what, and who administered what. Logger takhin.audit, one line an event.

    denied method=ProduceMessage principal=key:billing peer=10.0.0.7:51234 reason=ACCESS_DENIED what="topic 'orders'"
    done method=DeleteTopic principal=cert:spiffe://example/ops peer=10.0.0.2:40000 what="topic orders"
    failed method=DeleteTopic principal=key:ops peer=10.0.0.2:40000 reason=TOPIC_NOT_FOUND what="topic orders"
    left-out source=10.0.0.7 count=1480

The last tells of denials that came too many a second to be told one by one; see denials.py. Values with anything but
plain characters are in JSON's quotes, so that none can pass for another field or line. Keys, tokens and payloads are
never in it. "done" means that the change is durable.
"""

import json
import logging
import re

from takhin.errors import TakhinError
from takhin.rpc.call import Call, host_of
from takhin.rpc.denials import Denials

# The longest entry of an ACL, its principal and name included, fits.
MAX_VALUE_CHARACTERS = 1000

NOBODY = "-"
_PLAIN = re.compile(r"[A-Za-z0-9._:/@*+\[\]-]+", re.ASCII)


class Audit:
    def __init__(self) -> None:
        self._log = logging.getLogger("takhin.audit")
        # Whatever the level of other lines is: that nothing happened can't be told from silence otherwise.
        self._log.setLevel(logging.INFO)
        self._denials = Denials(
            lambda source, count: self._log.warning("left-out %s", _fields(source=source, count=str(count))))

    def denied(self, method: str, principal: str | None, call: Call, refusal: TakhinError) -> None:
        """A call, or a request in a stream, that was refused for want of credentials or of permission."""
        if self._denials.is_told(principal or host_of(call)):
            self._log.warning("denied %s", _fields(
                method=method, principal=principal or NOBODY, peer=call.peer or NOBODY, reason=refusal.reason,
                what=refusal.message))

    def administered(
        self, method: str, principal: str | None, call: Call, what: str | list[str],
        failure: BaseException | None = None
    ) -> None:
        """A change by an administrator, a line for each part of it; failure: why it was not made, or, of a call cut
        short, is perhaps not."""
        fields = {"method": method, "principal": principal or NOBODY, "peer": call.peer or NOBODY}
        for each in [what] if isinstance(what, str) else what:
            if failure is None:
                self._log.info("done %s", _fields(**fields, what=each))
            else:
                reason = failure.reason if isinstance(failure, TakhinError) else type(failure).__name__
                self._log.info("failed %s", _fields(**fields, reason=reason, what=each))


def _fields(**values: str) -> str:
    return " ".join(f"{name}={_shown(value)}" for name, value in values.items())


def _shown(value: str) -> str:
    if len(value) > MAX_VALUE_CHARACTERS:
        value = value[:MAX_VALUE_CHARACTERS] + "..."
    return value if _PLAIN.fullmatch(value) else json.dumps(value)
