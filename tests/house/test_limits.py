"""docs/limits.md against the settings: each limit has its row, its default, its refusal, its metric, and a test that
meets it."""

import ast
import re
from dataclasses import dataclass

import pytest

from takhin.broker.statistics import OF_FRONTS
from takhin.broker.subscribe import MAX_REQUEST_BYTES, MAX_START_BYTES
from takhin.config import Option, options
from takhin.errors import Code, Reason, error
from takhin.rpc.call import MAX_STREAM_REQUEST_BYTES

from .source import ROOT

PAGE = (ROOT / "docs/limits.md").read_text()
# Limits of other sections than [limits], of which every setting is one.
ELSEWHERE = {"topics.max_record_bytes"}
# How long something may take, rather than how much there may be.
TIMES = {"grpc.handshake_timeout_ms", "limits.request_arrival_ms", "limits.slow_reader_ms", "grpc.connection_idle_ms"}

# Where each is met: FILE::FUNCTION.
MET = {
    "grpc.max_connections": "rpc/test_limits.py::test_connections",
    "grpc.max_streams_per_connection": "rpc/test_limits.py::test_streams_of_a_connection",
    "grpc.max_metadata_bytes": "rpc/test_limits.py::test_metadata",
    "grpc.max_message_bytes": "rpc/test_limits.py::test_a_message",
    "grpc.handshake_timeout_ms": "rpc/test_limits.py::test_who_does_not_begin_to_speak_is_cut_off",
    "grpc.connection_idle_ms": "rpc/test_front_life.py::test_an_idle_connection_is_closed",
    "limits.calls": "rpc/test_limits.py::test_calls",
    "limits.call_bytes": "rpc/test_limits.py::test_bytes_of_calls",
    "limits.streams": "rpc/test_limits.py::test_streams",
    "limits.streams_per_client": "rpc/test_limits.py::test_streams_of_an_address",
    "limits.watch_streams": "rpc/test_limits.py::test_health_watches",
    "limits.stream_requests_in_flight":
        "broker/test_produce_paths.py::test_a_stream_is_read_no_further_than_its_bounds",
    "limits.stream_bytes_in_flight": "broker/test_produce_paths.py::test_a_stream_is_read_no_further_than_its_bounds",
    "limits.all_streams_bytes_in_flight":
        "broker/test_produce_paths.py::test_streams_are_read_no_further_than_all_of_them_may_have_unanswered",
    "limits.records_per_request": "rpc/test_produce.py::test_more_records_than_a_request_may_have",
    "topics.max_record_bytes": "rpc/test_update_topic.py::test_max_message_bytes",
    "limits.transaction_partitions": "rpc/test_limits.py::test_parts_of_a_transaction",
    "limits.transaction_bytes_in_flight": "rpc/test_limits.py::test_transactions_that_wait",
    "limits.reader_bytes": "rpc/test_slow_readers.py::test_slow_readers_miss_nothing_while_memory_is_short",
    "limits.slow_reader_ms": "rpc/test_slow_readers.py::test_a_reader_that_takes_nothing_is_cut_off",
    "limits.topics": "rpc/test_topics.py::test_limits_of_topics_and_partitions",
    "limits.partitions_per_topic": "rpc/test_topics.py::test_limits_of_topics_and_partitions",
    "limits.partitions": "rpc/test_update_topic.py::test_as_many_partitions_as_the_broker_takes",
    "limits.groups": "rpc/test_reset_offsets.py::test_as_many_groups_as_the_broker_takes",
    "limits.members_per_group": "rpc/test_subscribe_bad_input.py::test_limits",
    "limits.members": "rpc/test_subscribe_bad_input.py::test_limits",
    "limits.producers": "rpc/test_idempotence.py::test_states_are_bounded",
    "limits.api_keys": "rpc/test_access_rpc.py::test_from_an_open_broker_to_a_closed_one",
    "limits.acls": "rpc/test_access_rpc.py::test_from_an_open_broker_to_a_closed_one",
    "limits.ring_bytes": "log/test_files_and_limits.py::test_rings_stay_within_their_budget",
    "limits.ring_bytes_per_partition": "log/test_files_and_limits.py::test_rings_stay_within_their_budget",
    "limits.open_files": "log/test_files_and_limits.py::test_open_files_stay_within_their_limit",
    "limits.journal_bytes": "log/test_journal.py::test_without_a_free_file_each_is_synced",
    "limits.min_free_bytes":
        "broker/test_produce_paths.py::test_a_full_disk_refuses_writes_and_heals_when_there_is_room",
    "limits.request_arrival_ms": "rpc/test_limits.py::test_calls_whose_request_does_not_come_make_room",
}


@dataclass(frozen=True)
class Row:
    key: str
    default: str
    beyond: str
    is_used: bool


def rows() -> list[Row]:
    """Of the first table."""
    found = re.findall(r"^\| `([a-z_.]+)` \| ([^|]+) \| [^|]+ \| ([^|]+) \| ((?:yes|no)[^|]*) \|$", PAGE, re.MULTILINE)
    return [Row(key, default, beyond, used.startswith("yes")) for key, default, beyond, used in found]


def times() -> dict[str, str]:
    """Of the second: the defaults."""
    return dict(re.findall(r"^\| `([a-z_.]+_ms)` \| ([0-9,]+ s) \| [^|]+ \|$", PAGE, re.MULTILINE))


BY_KEY = {option.key: option for option in options()}


def is_limit(option: Option) -> bool:
    in_section = option.section == "limits" or (option.section == "grpc" and option.name.startswith("max_"))
    return (in_section or option.key in ELSEWHERE) and option.key not in TIMES


def as_told(option: Option) -> str:
    assert isinstance(option.default, int)
    if option.metadata["unit"] == "ms":
        return f"{option.default // 1000:,} s"
    if option.metadata["unit"] == "bytes":
        mib, rest = divmod(option.default, 1 << 20)
        return f"{mib} MiB" if not rest else f"{option.default >> 10} KiB"
    return f"{option.default:,}"


def test_every_limit_has_a_row() -> None:
    assert [row.key for row in rows()] == list(dict.fromkeys(row.key for row in rows()))
    assert {row.key for row in rows()} == {option.key for option in options() if is_limit(option)}
    assert set(times()) == TIMES


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.key)
def test_a_row_is_true(row: Row) -> None:
    assert row.default == as_told(BY_KEY[row.key])
    for code, reason in re.findall(r"([A-Z_]+) `([A-Z_]+)`", row.beyond):
        assert error(Reason[reason], "").code is Code[code]
    named = re.findall(r"`([A-Z_]+)`", row.beyond)
    assert len(named) == len(re.findall(r"[A-Z_]+ `[A-Z_]+`", row.beyond))


def constants() -> list[tuple[str, str]]:
    """Of the table of what is no setting: how much, and what is told beyond it."""
    return re.findall(r"^\| [^`|]+ \| (\d+ [KM]iB) \| ([A-Z_]+ `[A-Z_]+`) \|$", PAGE, re.MULTILINE)


def test_what_is_no_setting() -> None:
    told = f"{error(Reason.MESSAGE_TOO_LARGE, '').code.name} `{Reason.MESSAGE_TOO_LARGE}`"
    assert constants() == [
        (f"{MAX_STREAM_REQUEST_BYTES >> 10} KiB", told), (f"{MAX_START_BYTES >> 10} KiB", told),
        (f"{MAX_REQUEST_BYTES >> 20} MiB", told)]


@pytest.mark.parametrize("key", sorted(TIMES))
def test_a_time_is_true(key: str) -> None:
    assert times()[key] == as_told(BY_KEY[key])


def test_every_reason_for_a_limit_is_told() -> None:
    limits = {reason for reason in Reason if reason.endswith("_LIMIT")}
    assert {reason for row in rows() for reason in re.findall(r"`([A-Z_]+_LIMIT)`", row.beyond)} == limits - {
        Reason.INVALID_LIMIT}


@pytest.mark.parametrize("key", sorted({row.key for row in rows()} | TIMES))
def test_a_test_meets_it(key: str) -> None:
    file, _, function = MET[key].partition("::")
    tree = ast.parse((ROOT / "tests" / file).read_text())
    assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_limits_of_fronts_are_settings() -> None:
    assert {f"limits.{name}" for name in OF_FRONTS} <= {row.key for row in rows() if row.is_used}
