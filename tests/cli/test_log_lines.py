"""Lines of the server's log: one a record, whatever is in it, for people and for programs."""

import contextvars
import json
import logging
import re
import signal
import sys
import time
from types import SimpleNamespace
from typing import cast

import pytest

from takhin.cli.log_lines import MAX_MESSAGE_CHARACTERS, MAX_STACK_CHARACTERS, HumanFormatter, JsonFormatter
from takhin.rpc.call import Call
from takhin.rpc.current import Scope
from takhin.rpc.seldom import Seldom
from tests.cli.test_server_process import Launch, changed, launch  # noqa: F401 (a fixture)

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
NASTY = "a\r\n\x1b[2J\u2028\x00\ud800\x85 ERROR forged"


def record(message: str = "text", *args: object, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("takhin.test", logging.WARNING, "file", 1, message, args, None)
    vars(made).update(more)
    return made


def raised(text: str) -> logging.LogRecord:
    try:
        raise ValueError(text)
    except ValueError:
        return record("it failed", exc_info=sys.exc_info())


def test_a_line_for_people() -> None:
    line = HumanFormatter().format(record("%s of %d", "one", 2))
    assert TIME.match(line) and line[24:] == " WARNING  takhin.test: one of 2"


def test_a_line_for_programs() -> None:
    told = json.loads(JsonFormatter().format(record("%s of %d", "one", 2)))
    assert TIME.fullmatch(told.pop("time"))
    assert told == {"level": "warning", "logger": "takhin.test", "message": "one of 2"}


def test_the_time_is_of_the_record() -> None:
    made = record()
    made.created = 1_700_000_000.999_6
    assert HumanFormatter().format(made).startswith("2023-11-14T22:13:20.999Z ")
    assert time.gmtime(1_700_000_000)[:6] == (2023, 11, 14, 22, 13, 20)


@pytest.mark.parametrize("formatter", [HumanFormatter(), JsonFormatter()])
def test_nothing_in_a_record_makes_a_line_of_its_own(formatter: logging.Formatter) -> None:
    line = formatter.format(record("%s", NASTY, fields={"what": NASTY}, request_id=""))
    assert line.isprintable() and line.encode()
    if isinstance(formatter, JsonFormatter):
        assert json.loads(line)["message"] == json.loads(line)["what"] == NASTY


def test_a_traceback_for_people_is_indented() -> None:
    first, *rest = HumanFormatter().format(raised(NASTY)).split("\n")
    assert first.endswith("takhin.test: it failed") and len(rest) > 3
    assert all(line.startswith("    ") and line.isprintable() for line in rest)
    assert "\\x1b[2J" in rest[-1] or any("\\x1b[2J" in line for line in rest)


def test_a_traceback_for_programs_is_a_field() -> None:
    line = JsonFormatter().format(raised(NASTY))
    assert line.isprintable()
    told = json.loads(line)
    assert told["message"] == "it failed"
    assert told["stack"].startswith("Traceback") and told["stack"].endswith(f"ValueError: {NASTY}")


@pytest.mark.parametrize("formatter", [HumanFormatter(), JsonFormatter()])
def test_a_line_has_an_end(formatter: logging.Formatter) -> None:
    assert len(formatter.format(record("x" * 1_000_000))) < MAX_MESSAGE_CHARACTERS + 500
    assert len(formatter.format(raised("x" * 1_000_000))) < MAX_STACK_CHARACTERS + 500


@pytest.mark.parametrize("formatter", [HumanFormatter(), JsonFormatter()])
def test_a_mistake_in_a_line_is_told_too(formatter: logging.Formatter) -> None:
    assert "%d apples (TypeError in its arguments)" in formatter.format(record("%d apples", "many"))


def test_the_ids_of_the_call_under_way() -> None:
    scope = Scope(cast(Call, SimpleNamespace(request_id="r-1")), "4bf92f3577b34da6a3ce929d0e0e4736")
    try:
        line = HumanFormatter().format(record())
        assert line.endswith("takhin.test: text [request r-1, trace 4bf92f3577b34da6a3ce929d0e0e4736]")
        assert HumanFormatter().format(record("of r-1 itself")).endswith("[trace 4bf92f3577b34da6a3ce929d0e0e4736]")
        told = json.loads(JsonFormatter().format(record()))
        assert (told["request_id"], told["trace_id"]) == ("r-1", "4bf92f3577b34da6a3ce929d0e0e4736")
        # Who says whose line it is knows better, and may say that it is nobody's.
        assert json.loads(JsonFormatter().format(record(request_id="r-2")))["request_id"] == "r-2"
        assert "request_id" not in json.loads(JsonFormatter().format(record(request_id="")))
        # The call is over; a task that it has started goes on.
        left = contextvars.copy_context()
        scope.leave()
        for context in left, contextvars.copy_context():
            assert context.run(lambda: HumanFormatter().format(record())).endswith("takhin.test: text")
        assert HumanFormatter().format(record()).endswith("takhin.test: text")
        assert "request_id" not in json.loads(JsonFormatter().format(record()))
    finally:
        with pytest.raises(ValueError, match="left before"):
            scope.leave()


@pytest.mark.parametrize(("text", "is_told"), [
    ("of 12 itself", True), ("request=12", True), ("error 12: what", True), ("12", True), ("see 12.", True),
    ("took 1200 ms", False), ("a-12", False), ("12-a", False), ("v0.12", False), ("12.5 s", False),
    ("of nobody", False),
])
def test_a_part_of_a_word_is_no_id(text: str, is_told: bool) -> None:
    line = HumanFormatter().format(record(text, request_id="12"))
    assert line.endswith(text if is_told else f"{text} [request 12]")


def test_an_id_is_no_pattern() -> None:
    assert HumanFormatter().format(record("of a+b", request_id="a+b")).endswith("of a+b")
    assert HumanFormatter().format(record("of aab", request_id="a+b")).endswith("of aab [request a+b]")


def test_what_comes_again_and_again_is_told_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr("takhin.rpc.seldom.time.monotonic", lambda: now_s)
    seldom = Seldom("noisy", every_s=60)

    def told(name: str, line: int) -> str | None:
        made = logging.LogRecord(name, logging.WARNING, "file", line, "down: %d%%", (5,), None)
        return made.getMessage() if seldom.filter(made) else None

    assert [told("noisy.part", 1) for _ in range(4)] == ["down: 5%", None, None, None]
    # Another one, and whoever is not meant.
    assert told("noisy", 2) == "down: 5%" and [told("noisyish", 1) for _ in range(2)] == ["down: 5%"] * 2
    now_s += 60
    assert told("noisy.part", 1) == "down: 5% (3 more like this since the last one told)"
    assert told("noisy.part", 1) is None
    now_s += 60
    assert told("noisy", 2) == "down: 5%"


def test_fields_do_not_replace_what_every_line_has() -> None:
    told = json.loads(JsonFormatter().format(record(fields={"level": "x", "message": "x", "duration_ms": 5})))
    assert (told["level"], told["message"], told["duration_ms"]) == ("warning", "text", 5)


def test_every_line_of_a_server_is_an_object(launch: Launch) -> None:  # noqa: F811
    process = launch("--listen", "127.0.0.1:0", "--log-format", "json", "--log-level", "debug")
    process.address()
    process.stop()
    lines = [json.loads(line) for line in process.errors.splitlines()]
    assert [line["message"] for line in lines if line["logger"] == "takhin.server"][-1] == "stopped"
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)


def test_an_exception_that_nobody_can_catch_is_an_object_too(launch: Launch) -> None:  # noqa: F811
    process = launch("--listen", "127.0.0.1:0", "--log-format", "json", program=changed("""
        import threading
        class Failing:
            def __del__(self):
                raise ValueError("planted one")
        def fail():
            raise ValueError("planted two")
        class Talking(module.Broker):
            async def start(self):
                await super().start()
                Failing()
                thread = threading.Thread(target=fail, name="t-1")
                thread.start()
                thread.join()
        module.Broker = Talking
    """))
    process.address()
    process.send(signal.SIGTERM)
    assert process.exit_status() == 0
    lines = [json.loads(line) for line in process.errors.splitlines()]
    one, two = (line for line in lines if "planted" in line.get("stack", ""))
    assert one["level"] == two["level"] == "error"
    assert "Exception ignored" in one["message"] and one["stack"].endswith("ValueError: planted one")
    assert "thread t-1" in two["message"] and two["stack"].endswith("ValueError: planted two")


def test_why_it_does_not_start_is_an_object_too(launch: Launch) -> None:  # noqa: F811
    first = launch("--listen", "127.0.0.1:0")
    second = launch("--listen", first.address(), "--data-dir", "other", "--log-format", "json")
    assert second.exit_status() == 1
    told = json.loads(second.errors.splitlines()[-1])
    assert (told["level"], told["logger"]) == ("critical", "takhin.server")
    assert "in use by another process" in told["message"]
    first.stop()
