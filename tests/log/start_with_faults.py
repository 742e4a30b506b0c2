"""A start of the log in a process of its own, with the faults of tests.torture.twin; what came of it, as JSON.

    python -m tests.log.start_with_faults DIRECTORY PARTITIONS FAULT...
"""

import json
import os
import sys
from dataclasses import asdict, dataclass

from tests.log.test_journal import commit
from tests.log.test_partition import LocalLog, values_of
from tests.torture.twin import Twin


@dataclass(frozen=True)
class Outcome:
    """refused: why there was no start. fired: how often each fault came to pass while it started.

    damage, values, rewritten_bytes: of each partition. journal_commits: of a commit of those that take appends,
    afterwards.
    """

    refused: str | None
    fired: list[int]
    damage: list[str | None]
    values: list[list[str]]
    rewritten_bytes: list[int]
    journal_commits: int


def start(directory: str, partitions: int, faults: list[str]) -> Outcome:
    twin = Twin()
    twin.begin(directory)
    numbers = [twin.fault(each) for each in faults]
    try:
        log = LocalLog(directory, partitions=partitions, epoch=2)
    except OSError as problem:
        return Outcome(str(problem), [twin.fired(number) for number in numbers], [], [], [], 0)
    fired = [twin.fired(number) for number in numbers]
    twin.clear()
    values = [[value.decode() for value in values_of(partition, cold=True)] for partition in log.partitions]
    commit(log, [number for number, partition in enumerate(log.partitions) if partition.failure is None], b"new")
    return Outcome(
        None, fired, [found.damage for found in log.found], values, [found.rewritten_bytes for found in log.found],
        log.store.committer.journal_commits,
    )


if __name__ == "__main__":
    print(json.dumps(asdict(start(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))), flush=True)
    # As it stands: a clean stop is another matter.
    os._exit(0)
