"""Steps of the engine that leave something on the disk, each alone in a process that has the twin.

    python -m tests.torture.sync_scenarios STEP DIRECTORY RECORDING [FAULT …]
"""

import sys
from collections.abc import Callable
from pathlib import Path

from takhin.broker.metadata import MetadataStore
from takhin.broker.sqlite_files import leave_sum, take_sum
from takhin.errors import StartError
from takhin.log.files import Files
from takhin.log.replay import read_journal
from takhin.log.store import LogStore
from tests.log.test_partition import TOPIC_ID, LocalLog
from tests.torture.twin import Twin

PARTITIONS = 3
# The exit status when the step ends with a StartError.
REFUSED = 3


def _log(data: Path) -> LocalLog:
    return LocalLog(data, partitions=PARTITIONS, epoch=2)


def start(data: Path) -> None:
    """Recovery of all partitions."""
    _log(data)


def stop(data: Path) -> None:
    """A start, a group commit through the journal, a clean stop."""
    log = _log(data)
    for number in range(PARTITIONS):
        log.append(b"x", to=number)
        log.partitions[number].durable()
    log.settle(lambda: log.store.committer.journal_commits == 1)
    assert log.close()


def commit(data: Path) -> None:
    """A group commit through the journal."""
    commits(data, 1)


def two_commits(data: Path) -> None:
    commits(data, 2)


def commits(data: Path, count: int) -> None:
    log = _log(data)
    for done in range(1, count + 1):
        for number in range(PARTITIONS):
            log.append(b"x", to=number)
            log.partitions[number].durable()
        log.settle(lambda done=done: log.store.committer.journal_commits == done)  # type: ignore[misc]


def open_metadata(data: Path) -> None:
    MetadataStore(str(data / "meta.db"), print).open()


def append_to_stop(data: Path) -> None:
    """What nobody has waited for is on the disk after a clean stop, too."""
    log = _log(data)
    log.append(b"x", to=1)
    assert log.close()


def remove_topic(data: Path) -> None:
    log = _log(data)
    assert log.run(log.store.remove_topic(TOPIC_ID))


def set_aside_orphans(data: Path) -> None:
    log = _log(data)
    assert len(log.store.set_aside_orphans({TOPIC_ID: 2})) == 2


def keep_journal(data: Path) -> None:
    read_journal(Files(), str(data / "journal")).keep({(TOPIC_ID, 0), (TOPIC_ID, 2)})


def set_journal_aside(data: Path) -> None:
    read_journal(Files(), str(data / "journal")).set_aside()


def remove_journal(data: Path) -> None:
    read_journal(Files(), str(data / "journal")).remove()


def _true(done: bool) -> None:
    assert done


STEPS: dict[str, Callable[[Path], None]] = {
    step.__name__: step
    for step in (
        start, stop, commit, two_commits, open_metadata, append_to_stop, remove_topic, set_aside_orphans,
        keep_journal, set_journal_aside, remove_journal,
    )
} | {
    "leave_sum": lambda data: leave_sum(str(data / "meta.db")),
    "take_sum": lambda data: _true(take_sum(str(data / "meta.db"))),
    "lock": lambda data: _true(LogStore.lock(str(data / "new" / "data")) >= 0),
}


def main() -> None:
    name, data, recording, *faults = sys.argv[1:]
    twin = Twin()
    twin.begin(data, recording)
    for text in faults:
        twin.fault(text)
    try:
        STEPS[name](Path(data))
    except StartError as refusal:
        print(refusal, file=sys.stderr, flush=True)
        twin.exit(REFUSED)
    # As it stands, with threads running: what is not synced by now, nothing syncs.
    twin.exit(0)


if __name__ == "__main__":
    main()
