"""The oracle: what a client was promised, and whether the log keeps it.

A program of its own (`python -m tests.torture.oracle --help`) that knows the broker only as any client does: it imports
the generated stubs, grpc and the standard library, nothing else of the project.

    ledger.py   every attempt and what came of it, synced to the disk before it counts
    load.py     producers, committers, followers, topics that come and go: what fills the ledger
    reading.py  the whole log, the topics and the commits, read back through stock stubs
    verdict.py  every broken promise in words: a pure function of a ledger and what was read back

    keyed.py          an idempotent producer that outlives brokers, part of the load
    member.py         a member of a group, in a process of its own
    member_log.py     the ledger that a member keeps
    group_verdict.py  what members were promised, held against their ledgers and the log

judge(ledger, address, fault) reads and gives the verdict. A ledger is ledger.Ledger(path), which reads
what the file holds already.
"""

from collections.abc import Sequence

from tests.torture.oracle.group_verdict import GroupVerdict, group_verdict, note_commits
from tests.torture.oracle.ledger import Ledger
from tests.torture.oracle.member_log import MemberLog
from tests.torture.oracle.reading import Contents, read_all
from tests.torture.oracle.verdict import Verdict, breaches, verdict

__all__ = [
    "Contents", "GroupVerdict", "Ledger", "Verdict", "breaches", "group_verdict", "judge", "note_commits", "read_all",
    "verdict",
]


def judge(ledger: Ledger, address: str, fault: str = "kill", members: Sequence[MemberLog] = ()) -> Verdict:
    """Read everything back from the broker at `address`, which nobody uses meanwhile, and say what is broken.

    fault: what happened since the ledger's last entry; see verdict.breaches. What was seen is noted in the ledger, so
    that the next judgement can hold the broker to it. Raises grpc.RpcError when the broker can't be reached.

    members: the ledgers of all members of groups that ever were, when they have come to the log's end and are gone.
    Their commits become the ledger's: it is judged for the last time.
    """
    note_commits(ledger, members)
    contents = read_all(ledger, address)
    found = verdict(ledger, contents, fault)
    if members:
        found.groups = group_verdict(members, contents)
        found.breaches += found.groups.breaches
    ledger.fault(fault)
    ledger.note(contents.looked())
    ledger.sync()
    return found
