"""What is told to many at once: an outcome is shared by who asks in the same tick, and by nobody else."""

from pathlib import Path

from takhin.errors import Reason
from takhin.outcome import Outcome
from tests.log.test_committer import unsyncable
from tests.log.test_partition import LocalLog, file_size_limit, log, log_in, quick_path

__all__ = ["log", "log_in", "quick_path"]


def outcomes(log: LocalLog) -> tuple[Outcome, Outcome]:
    """(of the write, of the sync) of what was appended so far."""
    found = log.partition.written(True), log.partition.durable(True)
    assert all(isinstance(each, Outcome) for each in found)
    return found  # type: ignore[return-value]


def test_who_asks_in_the_same_tick_shares_it(log: LocalLog) -> None:
    log.append(b"a")
    first = outcomes(log)
    log.append(b"b")
    assert all(one is other for one, other in zip(outcomes(log), first, strict=True))
    assert not any(each.is_done for each in first)
    log.partition.flush()
    written, durable = first
    assert (written.is_done, written.failure, durable.is_done) == (True, None, False)
    log.append(b"c")
    # What comes after a write waits for another, and for a sync that may come later.
    later = outcomes(log)
    assert later[0] is not written and later[1] is not durable
    log.sync()
    assert [(each.is_done, each.failure) for each in (*first, *later)] == [(True, None)] * 4


def test_a_write_that_fails_is_told_to_all(log: LocalLog) -> None:
    log.write(b"before")
    log.append(b"a")
    written, durable = outcomes(log)
    with file_size_limit(log.partition.segments[-1].size_bytes):
        log.partition.flush()
    for outcome in (written, durable):
        assert outcome.is_done and outcome.failure is not None and outcome.failure[0] is Reason.WRITE_FAILED
    # Once it goes on nobody is given what was told of the failure.
    log.partition.resume(9)
    log.append(b"b")
    assert not any(outcome.is_done for outcome in outcomes(log))
    again = outcomes(log)
    log.sync()
    assert [outcome.failure for outcome in again] == [None, None]


def test_a_sync_that_fails_is_told_to_who_waits_for_it_alone(log: LocalLog) -> None:
    log.append(b"a")
    log.sync()
    log.append(b"b")
    written, durable = outcomes(log)
    log.partition.flush()
    with unsyncable(Path(log.partition.segments[-1].path)):
        log.settle(lambda: durable.is_done)
    assert written.is_done and written.failure is None
    assert durable.failure is not None and durable.failure[0] is Reason.SYNC_FAILED


def test_what_is_durable_has_none(log: LocalLog) -> None:
    log.append(b"a")
    log.sync()
    assert log.partition.written_to(1, True) is None and log.partition.durable_to(1, True) is None
    log.append(b"b")
    assert log.partition.written_to(2, True) is log.partition.written(True)
    assert log.partition.durable_to(2, True) is log.partition.durable(True)
    log.partition.flush()
    # Written, and not durable: a sync's outcome of its own.
    own = log.partition.durable_to(2, True)
    assert own is not None and not own.done()
    log.settle(own.done)
