"""The audit log: what a line can hold, and that nobody can flood it."""

import logging
from types import SimpleNamespace
from typing import cast

import pytest

from takhin.errors import Reason, error
from takhin.rpc import audit as module
from takhin.rpc.audit import MAX_DENIALS_S, Audit
from takhin.rpc.call import Call

CALL = cast(Call, SimpleNamespace(peer="127.0.0.1:5", request_id="r-1"))
REFUSAL = error(Reason.ACCESS_DENIED, "not allowed: produce on topic 'x'")


def test_no_value_passes_for_another_field_or_line(caplog: pytest.LogCaptureFixture) -> None:
    audit = Audit()
    for what in "plain", "a b", 'quote " in', "new\nline done method=X", "equals=x", "", "\x1b[2J", "ü", "x" * 2000:
        audit.administered("M", "key:a b=c", CALL, what)
    lines = [record.getMessage() for record in caplog.records]
    start = 'done method=M principal="key:a b=c" peer=127.0.0.1:5 request=r-1 what='
    assert all(line.startswith(start) and line.isprintable() for line in lines)
    assert [line.removeprefix(start) for line in lines] == [
        "plain", '"a b"',
        '"quote \\" in"', '"new\\nline done method=X"', '"equals=x"', '""', '"\\u001b[2J"', '"\\u00fc"',
        "x" * 1000 + "..."]


def test_denials_in_a_loop_are_counted(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s[0])
    audit = Audit()
    for _ in range(MAX_DENIALS_S + 50):
        audit.denied("M", None, CALL, REFUSAL)
    assert len(caplog.records) == MAX_DENIALS_S
    audit.administered("M", "key:a", CALL, "always told")
    now_s[0] += 1
    audit.denied("M", None, CALL, REFUSAL)
    assert [record.getMessage() for record in caplog.records[MAX_DENIALS_S:]] == [
        "done method=M principal=key:a peer=127.0.0.1:5 request=r-1 what=\"always told\"",
        "denied count=50 more, not told one by one",
        "denied method=M principal=- peer=127.0.0.1:5 request=r-1 reason=ACCESS_DENIED "
        "what=\"not allowed: produce on topic 'x'\""]


def test_it_is_there_at_every_log_level() -> None:
    root = logging.getLogger()
    level = root.level
    try:
        root.setLevel(logging.ERROR)
        Audit()
        assert logging.getLogger("takhin.audit").isEnabledFor(logging.INFO)
    finally:
        root.setLevel(level)
