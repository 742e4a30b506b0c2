"""Fields of a line of the log: name=value, with values that may hold anything a client sent."""

import json
import re

# The longest entry of an ACL, its principal and name included, fits.
MAX_VALUE_CHARACTERS = 1000
NOBODY = "-"

_PLAIN = re.compile(r"[A-Za-z0-9._:/@*+\[\]-]+", re.ASCII)


def fields_text(fields: dict[str, str | int]) -> str:
    """'a=1 b="x y"'. Values with anything but plain characters are in JSON's quotes, so that none can pass for another
    field or line."""
    return " ".join(f"{name}={_shown(str(value))}" for name, value in fields.items())


def extra(request_id: str, fields: dict[str, str | int], trace_id: str = "") -> dict[str, object]:
    """What takhin.cli.log_lines makes of it, as a logger takes it: each field by itself, the call's ids."""
    apart = {name: value for name, value in fields.items() if name != "request"}
    return {"fields": apart, "request_id": request_id, "trace_id": trace_id}


def _shown(value: str) -> str:
    if len(value) > MAX_VALUE_CHARACTERS:
        value = value[:MAX_VALUE_CHARACTERS] + "..."
    return value if _PLAIN.fullmatch(value) else json.dumps(value)
