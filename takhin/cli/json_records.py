"""Records as JSON objects, one a line: read by produce --json, written by consume -O jsonl."""

import binascii
import json
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

from takhin.cli.command import CommandError

if TYPE_CHECKING:
    from takhin.client import Message

# What a record's timestamp may be, and a partition's number.
_MAX_TIMESTAMP_MS = 2 ** 53 - 1
_MAX_PARTITION = 2 ** 31 - 1
_KNOWN = {"key", "key_base64", "value", "value_base64", "headers", "partition", "timestamp", "topic", "offset"}


class JsonLines:
    """partition: in place of what the lines say."""

    def __init__(self, partition: int | None):
        self._partition = partition

    def read(self, line: bytes, where: str) -> dict[str, Any]:
        """The arguments of Producer.send. topic and offset, which consume writes, are passed over.

        Raises CommandError, which says where.
        """
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise CommandError(f"{where} is not JSON: {problem}") from None
        if not isinstance(fields, dict):
            raise CommandError(f'{where} is not an object, as {{"key": "k", "value": "v"}}')
        if unknown := fields.keys() - _KNOWN:
            raise CommandError(
                f"{where}: {min(unknown)!r} is not known; a record has key, value, headers, partition and timestamp")
        partition = fields.get("partition") if self._partition is None else self._partition
        if partition is not None and (type(partition) is not int or not 0 <= partition <= _MAX_PARTITION):
            raise CommandError(f"{where}: partition {partition!r} is not a number from 0 on")
        timestamp_ms = fields.get("timestamp") or 0
        if type(timestamp_ms) is not int or abs(timestamp_ms) > _MAX_TIMESTAMP_MS:
            raise CommandError(f"{where}: timestamp {timestamp_ms!r} is not a number of milliseconds since 1970")
        return {
            "key": _content(fields, "key", where), "value": _content(fields, "value", where),
            "headers": _headers(fields.get("headers"), where), "partition": partition, "timestamp_ms": timestamp_ms,
        }


def _content(fields: dict[str, Any], name: str, where: str) -> bytes | None:
    encoded = fields.get(f"{name}_base64")
    if encoded is None:
        return _bytes(fields.get(name), f"{where}: {name}")
    try:
        return b64decode(encoded, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise CommandError(f"{where}: {name}_base64 is not base64") from None


def _bytes(content: Any, where: str) -> bytes | None:
    if content is None or isinstance(content, str):
        return content if content is None else content.encode(errors="surrogatepass")
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(
            errors="surrogatepass")
    except (ValueError, RecursionError):
        # Python reads 1e400 as infinity, and Infinity and NaN as well: no JSON has those.
        raise CommandError(f"{where} has what JSON can't say, as a number that is too large") from None


def _headers(headers: Any, where: str) -> list[tuple[str, bytes]]:
    """From {"name": "value"}, or [["name", "value"], ...] where a name comes twice; {"base64": ...} for other bytes."""
    pairs = list(headers.items()) if isinstance(headers, dict) else headers or []
    found = []
    for pair in pairs if isinstance(pairs, list) else [None]:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise CommandError(f'{where}: headers are {{"name": "value"}} or [["name", "value"]]')
        name, value = pair
        if isinstance(value, dict) and value.keys() == {"base64"}:
            found.append((name, _content({"header_base64": value["base64"]}, "header", where) or b""))
        else:
            found.append((name, _bytes(value, f"{where}: header {name!r}") or b""))
    return found


def json_line(message: "Message") -> str:
    """The record as an object, without the newline."""
    fields: dict[str, Any] = {
        "topic": message.topic, "partition": message.partition, "offset": message.offset,
        "timestamp": message.timestamp_ms,
    }
    _put(fields, "key", message.key)
    _put(fields, "value", message.value)
    if message.headers:
        pairs = [(name, _text(value)) for name, value in message.headers]
        by_name = dict(pairs)
        fields["headers"] = by_name if len(by_name) == len(pairs) else pairs
    return json.dumps(fields, ensure_ascii=False)


def _put(fields: dict[str, Any], name: str, content: bytes | None) -> None:
    """Text where it is text; bytes that are none in base64."""
    try:
        fields[name] = None if content is None else content.decode()
    except UnicodeDecodeError:
        assert content is not None
        fields[f"{name}_base64"] = b64encode(content).decode()


def _text(content: bytes) -> str | dict[str, str]:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return {"base64": b64encode(content).decode()}
