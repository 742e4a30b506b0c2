"""Times, sizes and bytes as people read them."""

import json
from base64 import b64encode
from datetime import UTC, datetime
from typing import Any

from takhin.cli.terminal import Output, printable

# What is shown of a key or a value; the rest is told as a number of bytes.
_SHOWN_BYTES = 64
_ESCAPED = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def time_of(ms: int) -> str:
    """ISO 8601 in UTC and milliseconds: "2023-11-14T22:13:20.000Z (1700000000000)"; no date where none can be made."""
    try:
        moment = datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"({ms})"
    return f"{moment}.{ms % 1000:03}Z ({ms})"


def bytes_of(data: bytes | None) -> str:
    """A key or a value: in quotes, with all escaped that is not printable, cut with … where it is long."""
    if data is None:
        return "none"
    # A character takes up to four bytes: one that the cut goes through is left out.
    text = data[:_SHOWN_BYTES].decode("utf-8", "surrogateescape")
    if len(data) > _SHOWN_BYTES:
        while text and "\udc80" <= text[-1] <= "\udcff" and len(text) > _SHOWN_BYTES - 3:
            text = text[:-1]
    shown = "".join(_character(each) for each in text)
    return f'"{shown}"' if len(data) <= _SHOWN_BYTES else f'"{shown}"… {len(data)} bytes'


def _character(each: str) -> str:
    if "\udc80" <= each <= "\udcff":
        return f"\\x{ord(each) - 0xDC00:02x}"
    return _ESCAPED.get(each) or printable(each)


def count_of(number: int, what: str) -> str:
    """"1 batch", "1,234 batches"."""
    plural = what[:-1] + "ies" if what.endswith("y") else what + ("es" if what.endswith(("ch", "x")) else "s")
    return f"{number:,} {what if number == 1 else plural}"


def base64_of(data: bytes | None) -> str | None:
    return None if data is None else b64encode(data).decode("ascii")


def print_json(out: Output, **fields: Any) -> None:
    """One JSON object on a line of its own."""
    out.line(json.dumps(fields, ensure_ascii=True, separators=(", ", ": ")))
