"""Kinds of values that options take."""

import re
from typing import Any

import click


class Number(click.ParamType):
    """A whole number from 0 on."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if not value.isascii() or not value.isdigit() or len(value) > 18:
            self.fail(f"{value!r} is not a number from 0 on", param, ctx)
        return int(value)


NUMBER = Number()


class Seconds(click.ParamType):
    """A time span in seconds, also with a unit: 10, 0.5, 500ms, 2m."""

    name = "SECONDS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        seconds = span_s(value)
        if seconds is None or not 0 < seconds < 1e9:
            self.fail(f"{value!r} is not a time span, as 10, 0.5, 500ms or 2m", param, ctx)
        return seconds


def span_s(text: str) -> float | None:
    """Seconds of "90", "1.5h" or "7d"; None for what is no time span."""
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)(ms|s|m|h|d|w)?", text, re.ASCII)
    return float(match[1]) * _UNITS_S[match[2] or "s"] if match else None


_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_UNITS_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class Size(click.ParamType):
    """A number of bytes, also with a unit: 1024, 64k, 1MiB."""

    name = "BYTES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9]{1,12})(?:([kmg])(?:i?b)?)?", value.lower(), re.ASCII)
        if match is None:
            self.fail(f"{value!r} is not a number of bytes, as 1024, 64k or 1MiB", param, ctx)
        return int(match[1]) * _UNITS_BYTES[match[2] or ""]
