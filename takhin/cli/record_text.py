"""What is written of records: by a format, as values, as lines for people, as JSON."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Protocol

from takhin.cli.format import Format
from takhin.cli.json_records import json_line
from takhin.cli.terminal import printable
from takhin.client import Message, Records


class Shape(Protocol):
    """begin and end: what is written before and behind all records."""

    begin: bytes
    end: bytes

    def records(self, records: Records) -> bytes:
        """What is written of these."""

    def messages(self, messages: list[Message]) -> bytes:
        """What is written of these."""


class Formatted:
    """By a format. Raises ValueError for one that is none."""

    begin = end = b""

    def __init__(self, text: bytes):
        self._format = Format(text)

    def records(self, records: Records) -> bytes:
        return self._format.render(records)

    def messages(self, messages: list[Message]) -> bytes:
        return self._format.render_messages(messages)


class _Text:
    begin = end = b""

    def records(self, records: Records) -> bytes:
        return self.messages(list(records))

    def messages(self, messages: list[Message]) -> bytes:
        return "".join([self.line(each) + "\n" for each in messages]).encode(errors="backslashreplace")

    def line(self, message: Message) -> str:
        raise NotImplementedError


class Values(_Text):
    """The value alone, for a terminal: what would move its cursor is escaped."""

    def line(self, message: Message) -> str:
        return _shown(message.value)


class Lines(_Text):
    """Time, partition, offset, key and value, headers; what comes before the value is dimmed on a terminal."""

    def __init__(self) -> None:
        colors = os.isatty(1) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._dim, self._key, self._plain = ("\x1b[2m", "\x1b[36m", "\x1b[0m") if colors else ("", "", "")

    def line(self, message: Message) -> str:
        key = "" if message.key is None else f"{self._key}{_shown(message.key)}{self._plain}  "
        value = f"{self._dim}(tombstone){self._plain}" if message.value is None else _shown(message.value)
        headers = "".join(
            f"  {self._dim}{printable(name)}={_shown(each)}{self._plain}" for name, each in message.headers)
        about = f"{_local_time(message.timestamp_ms)}  {message.partition}:{message.offset}"
        return f"{self._dim}{about}{self._plain}  {key}{value}{headers}"


class Json(_Text):
    """An object for each; is_array: within one array."""

    def __init__(self, *, is_array: bool):
        self._is_array = is_array
        self._is_first = True
        if is_array:
            self.begin, self.end = b"[", b"\n]\n"

    def messages(self, messages: list[Message]) -> bytes:
        lines = [json_line(each) for each in messages]
        if not self._is_array:
            return _joined(lines)
        text = ",".join(f"\n  {line}" for line in lines)
        if lines and not self._is_first:
            text = f",{text}"
        self._is_first = self._is_first and not lines
        return text.encode(errors="surrogatepass")


def _joined(lines: Sequence[str]) -> bytes:
    return "".join([f"{line}\n" for line in lines]).encode(errors="surrogatepass")


def _shown(content: bytes | None) -> str:
    if content is None:
        return ""
    return printable(content.decode("utf-8", "backslashreplace"))


def _local_time(ms: int) -> str:
    """Local time to the millisecond; the number where no date can be made of it."""
    try:
        moment = datetime.fromtimestamp(ms // 1000, UTC).astimezone()
    except (ValueError, OverflowError, OSError):
        return f"{ms} ms"
    return f"{moment:%Y-%m-%d %H:%M:%S}.{ms % 1000:03}"
