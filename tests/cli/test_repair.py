"""takhin segment repair: the partition takes appends again, nothing is destroyed, and it may be killed at any point."""

import json
import os
import pty
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import pytest

from takhin.cli.data_audit import Auditor
from takhin.cli.repair import repair as repair_here
from takhin.codec.batch import BATCH_HEADER_SIZE
from takhin.errors import Reason
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import consume, offsets, produce, read, refused
from tests.cli.test_verify import (
    cut_at_a_batch,
    drop_a_batch,
    empty_one,
    exchange_two,
    make_an_index_lie,
    make_sums_lie,
    remove_one,
    remove_the_first,
    remove_the_last,
    spoil_header,
    spoil_payload,
    take_another_partitions,
    verify,
    zero_a_block,
)
from tests.cli.tool import TAKHIN, TOPIC, Data, Done, broker_on, takhin, tree
from tests.log.test_partition import quick_path
from tests.log.test_recovery import edges

__all__ = ["quick_path"]

Spoil = Callable[[Data], str]
# What takes the log's end; what leaves it.
CUTTING: list[Spoil] = [
    spoil_payload, spoil_header, zero_a_block, remove_one, remove_the_last, empty_one, cut_at_a_batch, exchange_two,
    take_another_partitions, drop_a_batch,
]
SPARING: list[Spoil] = [remove_the_first, make_an_index_lie, make_sums_lie]


def repair(data: Data, *options: str) -> Done:
    return takhin("segment", "repair", *options, data.directory)


def logs(directory: Path) -> dict[str, bytes]:
    """Every segment and index below a topic's directory, by its path from there."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("0*") if path.is_file()}


def assert_nothing_is_lost(before: dict[str, bytes], data: Data) -> None:
    """Each file is as it was, or a part of it is left, and all of it set aside."""
    aside: dict[str, list[bytes]] = {}
    for directory in (data.directory / "set-aside").glob("*/topics"):
        for name, content in logs(directory).items():
            aside.setdefault(name, []).append(content)
    now = logs(data.directory / "topics")
    for name, content in before.items():
        kept = now.get(name)
        assert kept == content or content in aside.get(name, []), name
        if kept is not None and name.endswith(".log"):
            assert content.startswith(kept), name


def sent_from(data: Data, start: int, end: int) -> list[bytes | None]:
    return [each.value for each in data.sent[0][start:end]]


@pytest.mark.parametrize("spoil", CUTTING + SPARING, ids=lambda each: each.__name__)
def test_repaired_it_takes_appends_again(clean: Data, spoil: Spoil) -> None:
    spoil(clean)
    before = logs(clean.directory / "topics")
    planned = repair(clean, "--dry-run", "--json").of_type("repair")
    done = repair(clean, "--yes", "--json")
    assert (done.status, done.err) == (0, ""), done.out
    assert_nothing_is_lost(before, clean)
    assert done.of_type("repair") == planned
    (told,) = planned
    assert {path: before[path.removeprefix("topics/")] for path in told["set_aside"]} == {
        f"topics/{name}": content for name, content in logs(clean.directory / "set-aside" / "1" / "topics").items()
    }, "what was said to be taken out is there, and is what it was"
    (ended,) = done.of_type("done")
    assert ended["set_aside"] == str(clean.directory / "set-aside" / "1")
    report = (clean.directory / "set-aside" / "1" / "repair.json").read_text()
    assert json.loads(report) == {name: value for name, value in told.items() if name != "type"}
    assert verify(clean).status == 0
    after = tree(clean.directory)
    again = repair(clean, "--yes")
    assert again.status == 0 and tree(clean.directory) == after, "what is sound is left alone"
    assert_served(clean, told, ended["epoch"])


def assert_served(data: Data, told: dict, epoch: int) -> None:
    """A broker serves what was kept, and appends behind it."""
    end = len(data.sent[0]) if told["next_offset"] is None else told["next_offset"]
    start = told["log_start_offset"] or 0
    broker = broker_on(data)
    try:
        stub = broker.stub()
        about = offsets(stub, TOPIC)
        assert (about.beginning_offset, about.end_offset) == (start, end)
        assert [each.value for each in read(stub, TOPIC)] == sent_from(data, start, end)
        assert len(read(stub, TOPIC, partition=1)) == len(data.sent[1])
        answer = produce(stub, TOPIC, b"new", acks=-1)
        assert answer.offset == end
        assert [each.value for each in read(stub, TOPIC, offset=end)] == [b"new"]
        if told["next_offset"] is not None:
            assert answer.epoch == epoch > 1
            with refused(grpc.StatusCode.ABORTED, Reason.LOG_TRUNCATED):
                list(consume(stub, TOPIC, offset=end + 1, last_epoch=1, until_end=True))
        broker.terminate()
        broker.check()
    finally:
        broker.close()
    assert verify(data).status == 0


def test_what_it_says_that_is_lost(clean: Data) -> None:
    path = clean.segments[1]
    base, end = int(path.stem), len(clean.sent[0])
    at = edges(path)[1]
    clean.flip(path, at + BATCH_HEADER_SIZE)
    (told,) = repair(clean, "--dry-run", "--json").of_type("repair")
    assert told["lost"] == [{"from": base + 4, "to": end}]
    assert (told["readable_records"], told["readable_batches"]) == (end - base - 8, (end - base - 8) // 4)
    done = repair(clean, "--yes")
    assert f"lost: offsets {base + 4} to {end - 1}" in done.out
    # And they can: what is set aside shows them.
    shown = takhin("segment", "dump", "--json", "--records", clean.directory / "set-aside").of_type("record")
    offsets_shown = [each["offset"] for each in shown]
    assert offsets_shown == [*range(base, base + 4), *range(base + 8, end)]


def test_damage_in_several_partitions(clean: Data) -> None:
    first = clean.segments[0]
    clean.flip(first, edges(first)[2] + BATCH_HEADER_SIZE)
    other = clean.directory / "topics" / "2" / "0" / first.name
    clean.flip(other, edges(other)[0] + BATCH_HEADER_SIZE)
    before = logs(clean.directory / "topics")
    done = repair(clean, "--yes", "--json")
    assert done.status == 0
    assert [(each["topic"], each["next_offset"]) for each in done.of_type("repair")] == [(TOPIC, 8), ("other", 0)]
    assert_nothing_is_lost(before, clean)


def test_the_beginning_gone_and_the_end_damaged(clean: Data) -> None:
    remove_the_first(clean)
    path = clean.segments[1]
    clean.flip(path, edges(path)[1] + BATCH_HEADER_SIZE)
    start, end = int(clean.segments[0].stem), int(path.stem) + 4
    (told,) = repair(clean, "--dry-run", "--json").of_type("repair")
    assert (told["log_start_offset"], told["next_offset"]) == (start, end)
    assert told["lost"] == [{"from": 0, "to": start}, {"from": end, "to": len(clean.sent[0])}]
    done = repair(clean, "--yes", "--json")
    assert done.status == 0
    assert_served(clean, told, done.of_type("done")[0]["epoch"])


def test_a_killed_brokers_torn_tail_is_left_to_the_start(killed: Data) -> None:
    with killed.segments[-1].open("ab") as file:
        file.write(b"torn")
    before = tree(killed.directory)
    done = repair(killed, "--yes")
    assert done.status == 0 and "sound but for what the next start cuts" in done.out
    assert tree(killed.directory) == before


def test_after_a_kill_damage_below_the_durable_offset(killed: Data) -> None:
    path = killed.segments[0]
    killed.flip(path, edges(path)[1] + BATCH_HEADER_SIZE)
    done = repair(killed, "--yes", "--json")
    assert done.status == 0
    assert_served(killed, done.of_type("repair")[0], done.of_type("done")[0]["epoch"] + 1)


# What it does not do


def test_a_dry_run_changes_nothing(clean: Data) -> None:
    spoil_payload(clean)
    before = tree(clean.directory)
    done = repair(clean, "--dry-run")
    assert done.status == 1 and done.out.endswith("nothing was changed\n") and done.err == ""
    assert tree(clean.directory) == before


def test_without_a_terminal_it_does_not_ask(clean: Data) -> None:
    spoil_payload(clean)
    before = tree(clean.directory)
    done = repair(clean)
    assert done.status == 2 and "lost: offsets" in done.out and "add --yes" in done.err
    assert repair(clean, "--json").status == 2
    assert tree(clean.directory) == before


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("yes", 0), ("n", 1), ("", 1), ("yeah", 1)])
def test_on_a_terminal_it_asks(clean: Data, answer: str, status: int) -> None:
    spoil_payload(clean)
    before = tree(clean.directory)
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer.encode() + b"\n")
        done = subprocess.run(
            [*TAKHIN, "segment", "repair", clean.directory], stdin=theirs, capture_output=True, timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == status
    assert done.stderr == b"Do it? Nothing is destroyed. [y/N] "
    assert (tree(clean.directory) == before) == (status == 1)


@pytest.mark.parametrize("spoil", [
    lambda data: (data.directory / "meta.db").unlink(),
    lambda data: (data.directory / "meta.db").write_bytes(b"no database" * 1000),
], ids=["gone", "spoilt"])
def test_without_the_metadata_it_does_nothing(clean: Data, spoil: Callable[[Data], object]) -> None:
    spoil_payload(clean)
    spoil(clean)
    before = tree(clean.directory)
    done = repair(clean, "--yes")
    assert done.status == 2 and "restore it from a copy" in done.err
    assert tree(clean.directory) == before


def test_what_can_not_be_read_is_not_judged(clean: Data) -> None:
    path = clean.segments[0]
    path.unlink()
    path.mkdir()
    before = tree(clean.directory)
    done = repair(clean, "--yes")
    assert done.status == 1 and "can't be judged" in done.out
    assert tree(clean.directory) == before


def test_no_room_for_the_copies(clean: Data, strace: list[str]) -> None:
    spoil_payload(clean)
    before = logs(clean.directory)
    done = subprocess.run(
        [*strace, "-o", "/dev/null", "-e", "inject=fdatasync:error=ENOSPC:when=1", *TAKHIN, "segment", "repair",
         "--yes", clean.directory], capture_output=True, timeout=60)
    assert done.returncode == 2 and b"No space left on device" in done.stderr
    assert logs(clean.directory) == before, "not even a part of a copy is left"


def test_a_reader_that_goes_away_does_not_end_it_half_way(clean: Data) -> None:
    spoil_payload(clean)
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [*TAKHIN, "segment", "repair", "--yes", clean.directory], stdout=theirs, stderr=subprocess.PIPE, timeout=60)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, b"")
    assert verify(clean).status == 0


# Killed


EVERY_CALL = ("fdatasync", "fsync", "rename", "ftruncate", "mkdir", "pwrite64", "pwritev", "unlink")
OF_THE_LOG = ("rename", "ftruncate")


@pytest.mark.parametrize(("spoil", "calls"), [
    (spoil_payload, EVERY_CALL), (spoil_header, OF_THE_LOG), (cut_at_a_batch, OF_THE_LOG),
    (remove_the_last, OF_THE_LOG),
], ids=lambda each: getattr(each, "__name__", ""))
def test_killed_at_each_step(
    clean: Data, quick_path: Path, strace: list[str], capfd: pytest.CaptureFixture[str], spoil: Spoil,
    calls: Sequence[str],
) -> None:
    """At each call that changes something: done again, it ends as it would have, and nothing is lost."""
    spoil(clean)
    before = logs(clean.directory / "topics")
    (told,) = repair(clean, "--dry-run", "--json").of_type("repair")
    killed_at = 0
    for call in calls:
        for number in range(1, 1000):
            shutil.rmtree(quick_path / "data", ignore_errors=True)
            copy = clean.copied(quick_path)
            status = subprocess.run(
                [*strace, "-o", "/dev/null", "-e", f"inject={call}:signal=SIGKILL:when={number}", *TAKHIN, "segment",
                 "repair", "--yes", copy.directory], capture_output=True, timeout=60).returncode
            if status == 0:
                break
            assert status == -9
            killed_at += 1
            assert_nothing_is_lost(before, copy)
            assert repair_here(str(copy.directory), dry_run=False, yes=True, as_json=False) == 0, (call, number)
            assert_nothing_is_lost(before, copy)
            audit = Auditor(str(copy.directory), lambda finding: None).run()
            assert audit.status == "sound" and audit.metadata is not None and audit.metadata.epoch > 1, (call, number)
            assert audit.partitions[0].segments[-1].next_offset == told["next_offset"], (call, number)
    assert killed_at >= len(calls) // 2
    capfd.readouterr()


def test_after_a_repair_that_was_killed_the_broker_serves(clean: Data, strace: list[str]) -> None:
    """The log is cut, its index not made again: what a kill at the worst place leaves."""
    spoil_payload(clean)
    (told,) = repair(clean, "--dry-run", "--json").of_type("repair")
    status = subprocess.run(
        [*strace, "-o", "/dev/null", "-e", "inject=ftruncate:signal=SIGKILL:when=1", *TAKHIN, "segment", "repair",
         "--yes", clean.directory], capture_output=True, timeout=60).returncode
    assert status == -9
    done = repair(clean, "--yes", "--json")
    assert done.status == 0
    assert_served(clean, told, done.of_type("summary")[0]["epoch"])


def test_copies_and_the_epoch_are_on_the_disk_before_the_log_is_touched(clean: Data, strace: list[str]) -> None:
    """A kill keeps what was written in the cache; a power cut does not."""
    spoil_payload(clean)
    trace = clean.directory.parent / "trace"
    subprocess.run(
        [*strace, "-y", "-e", "trace=fdatasync,fsync,ftruncate,rename", "-o", trace, *TAKHIN, "segment", "repair",
         "--yes", clean.directory], capture_output=True, timeout=60, check=True)
    calls = [line for line in trace.read_text().splitlines() if str(clean.directory) in line and " = 0" in line]
    log = re.compile(rf"rename\(.*|ftruncate\(\d+<{clean.partition}/.*")
    touched = next(number for number, call in enumerate(calls) if re.search(log, call))
    synced = "\n".join(calls[:touched])
    aside = f"{clean.directory}/set-aside/1/topics/1/0"
    segment = clean.segments[1].name
    for path in (f"{aside}/{segment}", aside, f"{clean.directory}/set-aside/1/topics", f"{clean.directory}/set-aside/1",
                 f"{clean.directory}/set-aside", str(clean.directory)):
        assert re.search(rf"sync\(\d+<{re.escape(path)}>", synced), path
    assert re.search(r"sync\(\d+<\S*/meta.db-wal>", synced)
    moved = max(number for number, call in enumerate(calls) if "rename(" in call and aside in call)
    after = "\n".join(calls[moved:])
    for path in (aside, str(clean.partition), str(clean.segments[1])):
        assert re.search(rf"sync\(\d+<{re.escape(path)}>", after), path
