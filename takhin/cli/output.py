"""What commands tell: tables for people at a terminal, JSON for programs; data on standard output, all else on standard
error.

rich is imported only where a table is to be shown.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from takhin.cli.terminal import Output, printable, write, write_some

TABLE, JSON, JSONL = "table", "json", "jsonl"
FORMATS = (TABLE, JSON, JSONL)


class Column(NamedTuple):
    """title: of the table. key: of the JSON object. is_number: to the right. is_whole: never folded, as numbers are."""

    title: str
    key: str
    is_number: bool = False
    is_whole: bool = False


def format_of(wanted: str | None) -> str:
    """The format to use: tables are for terminals unless asked for."""
    if wanted is not None:
        return wanted
    return TABLE if os.isatty(1) else JSONL


def show(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], wanted: str | None, *, empty: str = ""
) -> None:
    """Rows of one kind. A table has the columns; JSON has all fields. empty: what is said instead of a table without
    rows.

    Raises BrokenPipeError.
    """
    form = format_of(wanted)
    if form == JSON:
        write_text(json.dumps(list(rows), indent=2, ensure_ascii=False) + "\n")
    elif form == JSONL:
        write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif rows:
        write_text(table(rows, columns))
    elif empty:
        say(empty)


def show_one(fields: Mapping[str, Any], titles: Mapping[str, str], wanted: str | None) -> None:
    """One thing: a line for each field that has a title; JSON has all fields."""
    form = format_of(wanted)
    if form == TABLE:
        width = max(map(len, titles.values()))
        write_text("".join(
            f"{title + ':':{width + 2}}{cell(fields[key])}\n" for key, title in titles.items()))
    else:
        write_text(json.dumps(fields, indent=2 if form == JSON else None, ensure_ascii=False) + "\n")


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """A table as wide as the terminal at most; in a pipe or a file as wide as it is."""
    from rich.console import Console
    from rich.table import Table

    on_terminal = os.isatty(1)
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        drawn.add_column(column.title, justify="right" if column.is_number else "left", overflow="fold",
                         no_wrap=column.is_number or column.is_whole)
    for row in rows:
        drawn.add_row(*[cell(row[column.key]) for column in columns])
    console = Console(
        file=sys.stdout, width=None if on_terminal else 10_000, markup=False, highlight=False, emoji=False,
        color_system="standard" if on_terminal else None)
    with console.capture() as captured:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={each}" for name, each in value.items()) or "-"
    return printable(str(value))


def write_text(text: str) -> None:
    """To standard output, past sys.stdout. Raises BrokenPipeError."""
    waiting = memoryview(text.encode(errors="backslashreplace"))
    while waiting:
        waiting = waiting[write_some(waiting):]


def say(text: str) -> None:
    """A line for people, on standard error; quiet when nobody reads there."""
    write(2, printable(text) + "\n")


__all__ = ["FORMATS", "Column", "Output", "format_of", "say", "show", "show_one", "table", "write_text"]
