"""Escapes in what is typed: \\n, \\t, \\x1e."""

import re

from takhin.cli.command import EXIT_USAGE, CommandError

_ESCAPES = {"n": b"\n", "t": b"\t", "r": b"\r", "0": b"\0", "e": b"\x1b", "\\": b"\\"}


def escaped(text: str) -> bytes:
    """The bytes that it stands for. Raises CommandError for an escape that is none."""
    out = b""
    for part in re.split(r"(\\x[0-9A-Fa-f]{2}|\\.?)", text, flags=re.DOTALL):
        if not part.startswith("\\"):
            out += part.encode(errors="surrogateescape")
        elif len(part) == 4:
            out += bytes([int(part[2:], 16)])
        elif part[1:] in _ESCAPES:
            out += _ESCAPES[part[1:]]
        else:
            raise CommandError(f"{part!r} is no escape; there are \\n, \\t, \\r, \\0, \\e, \\\\ and \\xHH", EXIT_USAGE)
    return out
