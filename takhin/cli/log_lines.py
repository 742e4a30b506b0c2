"""Records of the log as lines, for people or for programs.

    2026-11-26T02:29:25.123Z INFO     takhin.server: stopped
    2026-11-26T02:29:25.123Z ERROR    takhin.broker.topics: a listener failed [request 17f2c86b09ad4e13]
    {"time": "2026-11-26T02:29:25.123Z", "level": "info", "logger": "takhin.server", "message": "stopped"}

A record is one line, but for people its traceback follows, each line of it indented. Control characters and all else
that is not printable are escaped: nothing that a client sent can pass for a line of the log.
"""

import json
import logging
import re
import sys
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from takhin.cli.terminal import printable
from takhin.rpc.current import NO_IDS, Ids, current_ids
from takhin.rpc.seldom import Seldom

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

HUMAN, JSON = "human", "json"
MAX_MESSAGE_CHARACTERS = 16 * 1024
# The frames stand at a traceback's head, what was raised at its end.
MAX_STACK_CHARACTERS = 64 * 1024

_log = logging.getLogger("takhin.server")


class HumanFormatter(logging.Formatter):
    """Time (UTC), level, logger, text, and the call's ids where the text does not tell them."""

    def format(self, record: logging.LogRecord) -> str:
        text = _message(record)
        ids = _ids(record)
        told = [f"{name} {value}" for name, value in zip(("request", "trace"), ids, strict=True)
                if value and not _tells(text, value)]
        line = f"{_time(record)} {record.levelname:<8} {record.name}: {printable(text)}"
        if told:
            line += f" [{', '.join(told)}]"
        stack = _stack(self, record)
        return "\n    ".join([line, *(printable(each) for each in stack.split("\n"))] if stack else [line])


class JsonFormatter(logging.Formatter):
    """An object a line: time, level, logger, message; request_id and trace_id where there are any; the fields of which
    the message is made, where it is made of fields; stack, of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, object] = {
            "time": _time(record), "level": record.levelname.lower(), "logger": record.name,
            "message": _message(record)}
        ids = _ids(record)
        if ids.request_id:
            told["request_id"] = ids.request_id
        if ids.trace_id:
            told["trace_id"] = ids.trace_id
        for name, value in getattr(record, "fields", {}).items():
            told.setdefault(name, value if isinstance(value, int) else str(value))
        stack = _stack(self, record)
        if stack:
            told["stack"] = stack
        # ASCII: control characters, lone surrogates and separators of lines are escaped.
        return json.dumps(told)


def set_up_logging(level: str, log_format: str) -> None:
    """All of the process' log goes to standard error, in `log_format`, from `level` on; so does what Python would write
    there by itself, of exceptions that nobody can catch."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == JSON else HumanFormatter())
    # A collector that is down would have it say so for as long as that lasts.
    handler.addFilter(Seldom("opentelemetry"))
    # A closed standard error is no reason to write a traceback to it.
    logging.raiseExceptions = False
    # grpc.aio quotes metadata that it can't decode: a key or a token, perhaps. What handlers raise never reaches it.
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
    logging.captureWarnings(True)
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    sys.unraisablehook = _tell_unraisable
    threading.excepthook = _tell_of_thread


def _tell_unraisable(what: "UnraisableHookArgs") -> None:
    error = what.exc_value or what.exc_type()
    _log.error(
        "%s: %r", what.err_msg or "Exception ignored in", what.object,
        exc_info=(what.exc_type, error, what.exc_traceback))


def _tell_of_thread(what: threading.ExceptHookArgs) -> None:
    if what.exc_type is SystemExit:
        return
    error = what.exc_value or what.exc_type()
    _log.error(
        "thread %s ended by an exception", what.thread.name if what.thread else "unknown",
        exc_info=(what.exc_type, error, what.exc_traceback))


def _tells(text: str, value: str) -> bool:
    """Whether the id stands in the text, not as a part of a longer word: "request=ID", "error ID: what"."""
    return value in text and re.search(rf"(?<![\w.~/+@-]){re.escape(value)}(?![\w~/+=@-]|\.\w)", text) is not None


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _message(record: logging.LogRecord) -> str:
    try:
        text = record.getMessage()
    except Exception as problem:
        # A mistake in the line, ours or a library's: it is told all the same.
        text = f"{record.msg} ({type(problem).__name__} in its arguments)"
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else text[:MAX_MESSAGE_CHARACTERS] + "..."


def _stack(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    text = record.exc_text or ""
    if not text and record.exc_info and record.exc_info[0] is not None:
        text = formatter.formatException(record.exc_info)
    if record.stack_info:
        text += ("\n" if text else "") + record.stack_info
    if len(text) > MAX_STACK_CHARACTERS:
        half = MAX_STACK_CHARACTERS // 2
        text = f"{text[:half]}\n...\n{text[-half:]}"
    return text


def _ids(record: logging.LogRecord) -> Ids:
    given = getattr(record, "request_id", None)
    if given is not None:
        # Who tells a record's id knows that it is not of the call that runs here, "" included.
        return Ids(given, getattr(record, "trace_id", ""))
    try:
        return current_ids()
    except Exception:
        return NO_IDS
