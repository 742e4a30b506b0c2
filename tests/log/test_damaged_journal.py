"""What has to be written once more, because a damaged journal may have had it on the disk alone."""

from pathlib import Path

import pytest

from tests.log.test_journal import commit, flipped, journal_in
from tests.log.test_journal_replay import assert_holds
from tests.log.test_partition import LogIn, log_in, quick_path, segments_of

__all__ = ["log_in", "quick_path"]

PARTITIONS = 3
VALUES = [b"first", b"second", b"third"]


@pytest.mark.parametrize("of", ["payload", "table"])
def test_what_a_damaged_journal_held_is_written_once_more(log_in: LogIn, quick_path: Path, of: str) -> None:
    """After a failed sync the cache may show what never reached the disk, and nothing else puts it there."""
    log = log_in(quick_path / "data", partitions=PARTITIONS)
    for each in VALUES:
        commit(log, range(PARTITIONS), each)
    # The second partition's file is on the disk up to here, and its index tells so.
    log.store.committer._behind.queue[log.partitions[1]] = None
    log.store.committer._go_on()
    log.settle(lambda: not log.partitions[1].unsynced)
    log.partitions[1].segments[-1].write_index()
    indexed_bytes = segments_of(log.directory, 1)[0].stat().st_size
    commit(log, range(PARTITIONS), b"last")
    killed = log.killed(quick_path / "killed")
    (file,) = journal_in(killed)
    file.path.write_bytes(flipped(file.path, file.entries[0].parts[0].place - (of == "table")))
    sizes = [segments_of(killed, number)[0].stat().st_size for number in range(PARTITIONS)]
    again = log_in(killed, partitions=PARTITIONS, epoch=2)
    assert_holds(again, [[*VALUES, b"last"]] * PARTITIONS)
    assert [found.rewritten_bytes for found in again.found] == [sizes[0], sizes[1] - indexed_bytes, sizes[2]]
