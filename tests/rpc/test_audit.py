"""The audit log: what a line can hold, and that nobody can flood it."""

import asyncio
import logging
from types import SimpleNamespace
from typing import cast

import pytest

from takhin.errors import Reason, error
from takhin.rpc import audited
from takhin.rpc import denials as module
from takhin.rpc.audit import Audit
from takhin.rpc.call import Call
from takhin.rpc.denials import MAX_DENIALS, MAX_DENIALS_OF_SOURCE, MAX_NAMED, MAX_SOURCES, address_source
from takhin.v1 import access_pb2
from takhin.v1 import takhin_pb2 as pb

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


def test_a_line_is_bounded_whatever_is_asked(caplog: pytest.LogCaptureFixture) -> None:
    """Also as the fields that a line in JSON is made of."""
    many = [str(number) for number in range(100_000)]
    audit = Audit()
    for told in (
        audited.topic_created(pb.CreateTopicRequest(name="t", configs=dict.fromkeys(many, "x" * 10)), None),
        audited.topic_changed(pb.UpdateTopicRequest(name="t", reset_configs=many), None),
        audited.offsets_reset(pb.ResetOffsetsRequest(group_id="g", topics=many), None),
        audited.offsets_reset(pb.ResetOffsetsRequest(group_id="g", latest=True), pb.ResetOffsetsResponse(
            offsets=[pb.OffsetReset(topic="t", partition=number) for number in range(100_000)])),
        audited.acls_changed(access_pb2.CreateAclsRequest(acls=[access_pb2.Acl()] * 100_000), None),
    ):
        assert isinstance(told, str) and len(told) < 1000 and ("99980 more" in told or "100000 entries" in told)
        audit.administered("M", "key:a", CALL, told)
    audit.administered("M", "key:a", CALL, audited.topic_deleted(pb.DeleteTopicRequest(name="n" * 100_000), None))
    assert all(len(record.getMessage()) < 2000 for record in caplog.records)
    assert all(len(record.fields["what"]) <= 1003 for record in caplog.records)  # type: ignore[attr-defined]


@pytest.fixture
def now_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now_s = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s[0])
    return now_s


def from_host(host: str) -> Call:
    return cast(Call, SimpleNamespace(peer=f"{host}:5", request_id="r-1"))


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


def test_denials_in_a_loop_are_counted(caplog: pytest.LogCaptureFixture, now_s: list[float]) -> None:
    audit = Audit()
    for port in range(MAX_DENIALS_OF_SOURCE + 50):
        audit.denied("M", None, cast(Call, SimpleNamespace(peer=f"127.0.0.1:{port}", request_id="r-1")), REFUSAL)
    assert len(messages(caplog)) == MAX_DENIALS_OF_SOURCE
    audit.administered("M", "key:a", CALL, "always told")
    now_s[0] += 1
    audit.denied("M", None, CALL, REFUSAL)
    assert messages(caplog) == [
        "done method=M principal=key:a peer=127.0.0.1:5 request=r-1 what=\"always told\"",
        "left-out source=127.0.0.1 count=50",
        "denied method=M principal=- peer=127.0.0.1:5 request=r-1 reason=ACCESS_DENIED "
        "what=\"not allowed: produce on topic 'x'\""]


def test_who_is_denied_in_a_loop_hides_nobody(caplog: pytest.LogCaptureFixture, now_s: list[float]) -> None:
    """Neither of another address, nor another principal of the same."""
    audit = Audit()
    for _ in range(10_000):
        audit.denied("M", None, from_host("10.0.0.1"), REFUSAL)
        audit.denied("M", "key:loud", from_host("10.0.0.1"), REFUSAL)
    messages(caplog)
    audit.denied("M", None, from_host("10.0.0.2"), REFUSAL)
    audit.denied("M", "key:quiet", from_host("10.0.0.1"), REFUSAL)
    told = messages(caplog)
    assert "peer=10.0.0.2:5" in told[0] and "principal=key:quiet" in told[1]
    now_s[0] += 1
    audit.denied("M", None, CALL, REFUSAL)
    audit.denied("M", "key:quiet", CALL, REFUSAL)
    left_out = 10_000 - MAX_DENIALS_OF_SOURCE
    assert [line for line in messages(caplog) if line.startswith("left-out")] == [
        f"left-out source=10.0.0.1 count={left_out}", f"left-out source=key:loud count={left_out}"]


def test_strangers_hide_nobody_who_is_known(caplog: pytest.LogCaptureFixture, now_s: list[float]) -> None:
    """However many addresses they have; nor the other way round."""
    audit = Audit()
    for number in range(MAX_DENIALS + 100):
        audit.denied("M", None, from_host(f"10.0.{number // 250}.{number % 250}"), REFUSAL)
    assert len(messages(caplog)) == MAX_DENIALS
    audit.denied("M", "key:known", from_host("10.1.0.1"), REFUSAL)
    assert "principal=key:known" in messages(caplog)[0]
    now_s[0] += 1
    for number in range(MAX_DENIALS + 100):
        audit.denied("M", f"key:{number}", from_host("10.1.0.1"), REFUSAL)
    messages(caplog)
    audit.denied("M", None, from_host("10.0.0.1"), REFUSAL)
    assert "peer=10.0.0.1:5" in messages(caplog)[-1]


def test_addresses_of_one_network_are_one_source(caplog: pytest.LogCaptureFixture, now_s: list[float]) -> None:
    audit = Audit()
    for number in range(100):
        audit.denied("M", None, from_host(f"[2001:db8:0:7:{number:x}::1]"), REFUSAL)
    assert len(messages(caplog)) == MAX_DENIALS_OF_SOURCE
    audit.denied("M", None, from_host("[2001:db8:0:8::1]"), REFUSAL)
    assert "peer=[2001:db8:0:8::1]:5" in messages(caplog)[0]
    now_s[0] += 1
    audit.denied("M", None, CALL, REFUSAL)
    assert messages(caplog)[0] == f"left-out source=2001:db8:0:7::/64 count={100 - MAX_DENIALS_OF_SOURCE}"


@pytest.mark.parametrize(("host", "source"), [
    ("10.0.0.1", "10.0.0.1"), ("[::ffff:10.0.0.1]", "10.0.0.1"), ("[::1]", "::/64"), ("local", "local"),
    ("[fe80::1%eth0]", "fe80::/64"), ("[2001:db8::1]", "2001:db8::/64"),
])
def test_what_an_address_counts_as(host: str, source: str) -> None:
    assert address_source(host) == source


def test_many_sources_fill_neither_disk_nor_memory(caplog: pytest.LogCaptureFixture, now_s: list[float]) -> None:
    audit = Audit()
    count = 2 * MAX_SOURCES
    for number in range(count):
        for _ in range(2):
            audit.denied("M", None, from_host(f"10.0.{number // 250}.{number % 250}"), REFUSAL)
    assert len(messages(caplog)) == MAX_DENIALS
    assert len(audit._of_addresses._counts) <= MAX_SOURCES + 1
    now_s[0] += 1
    audit.denied("M", None, CALL, REFUSAL)
    *told, last = messages(caplog)
    assert len(told) == MAX_NAMED + 1 and last.startswith("denied")
    assert sum(int(line.rpartition("=")[2]) for line in told) == 2 * count - MAX_DENIALS


def test_what_was_left_out_is_told_without_another_denial(caplog: pytest.LogCaptureFixture) -> None:
    async def go() -> None:
        audit = Audit()
        for _ in range(3 * MAX_DENIALS_OF_SOURCE):
            audit.denied("M", None, CALL, REFUSAL)
        deadline_s = asyncio.get_running_loop().time() + 30
        while not any(line.startswith("left-out") for line in messages(caplog)):
            assert asyncio.get_running_loop().time() < deadline_s
            await asyncio.sleep(0.05)

    asyncio.run(go())


def test_it_is_there_at_every_log_level() -> None:
    root = logging.getLogger()
    level = root.level
    try:
        root.setLevel(logging.ERROR)
        Audit()
        assert logging.getLogger("takhin.audit").isEnabledFor(logging.INFO)
    finally:
        root.setLevel(level)
