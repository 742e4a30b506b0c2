"""Kinds of values that options take."""

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
