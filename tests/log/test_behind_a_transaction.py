"""What is appended behind a transaction that is not decided waits in memory: how much of it may."""

import os
from pathlib import Path

from takhin.errors import Reason
from tests.log.test_journal import hold_journal
from tests.log.test_partition import Config, LogIn, file_becomes, log_in, segments_of
from tests.log.test_transactions import Begun, transact

__all__ = ["log_in"]


def test_it_has_a_limit(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=2)
    transact(log, {1: [b"x"]})
    thread = hold_journal(log)
    begun = Begun(log, {0: [b"t"]})
    log.settle(lambda: len(thread.held) == 1)
    for _ in range(15):
        log.append(b"x" * (1 << 20))
    log.append(b"x" * (1 << 19))
    log.refused(Reason.TRANSACTION_PENDING, b"x" * (1 << 20))
    log.append(b"small")
    thread.let_go()
    begun.answers()
    log.append(b"x" * (1 << 20))
    log.tick()
    assert log.partition.written_offset == 19


def test_it_makes_no_segment_larger_than_a_message_may_be(log_in: LogIn, tmp_path: Path) -> None:
    most_bytes = (1 << 31) - 1  # protobuf's limit
    log = log_in(tmp_path / "data", Config(segment_bytes=most_bytes - (2 << 20)))
    partition = log.partition
    log.append(b"first")
    log.tick()
    (path,) = segments_of(log.directory, 0)
    with open(os.devnull, "wb") as null, file_becomes(path, null.fileno()):
        while partition.size_bytes < most_bytes - (5 << 20):
            log.append(*[b"x" * (1 << 20)] * 2, batch=True)
            log.tick()
    os.truncate(path, partition.size_bytes)  # as if it had been written, with a hole
    log.sync()
    thread = hold_journal(log)
    begun = Begun(log, {0: [b"t"]})
    log.settle(lambda: len(thread.held) == 1)
    behind = 0
    while partition.size_bytes + (behind + 1) * ((1 << 20) + 200) < most_bytes:
        log.append(b"y" * (1 << 20))
        behind += 1
    assert 2 < behind < 6
    log.refused(Reason.TRANSACTION_PENDING, b"y" * (1 << 20))
    thread.let_go()
    begun.answers()
    log.append(b"y" * (1 << 20))
    log.tick()
    assert len(segments_of(log.directory, 0)) == 2
    assert os.path.getsize(path) <= most_bytes
