"""The oracle: what a client was promised, and whether the log keeps it.

A program of its own (`python -m tests.torture.oracle --help`) that knows the broker only as any client does: it imports
the generated stubs, grpc and the standard library, nothing else of the project.

    ledger.py   every attempt and what came of it, synced to the disk before it counts
    load.py     producers, committers, followers, topics that come and go: what fills the ledger
    reading.py  the whole log, the topics and the commits, read back through stock stubs
    verdict.py  every broken promise in words: a pure function of a ledger and what was read back

judge(ledger, address, fault) does the last two. A ledger is ledger.Ledger(path), which reads
what the file holds already.
"""

from tests.torture.oracle.ledger import Ledger
from tests.torture.oracle.reading import Contents, read_all
from tests.torture.oracle.verdict import Verdict, breaches, verdict

__all__ = ["Contents", "Ledger", "Verdict", "breaches", "judge", "read_all", "verdict"]


def judge(ledger: Ledger, address: str, fault: str = "kill") -> Verdict:
    """Read everything back from the broker at `address`, which nobody uses meanwhile, and say what is broken.

    fault: what happened since the ledger's last entry; see verdict.breaches. What was seen is noted in the ledger, so
    that the next judgement can hold the broker to it. Raises grpc.RpcError when the broker can't be reached.
    """
    contents = read_all(ledger, address)
    found = verdict(ledger, contents, fault)
    ledger.fault(fault)
    ledger.note(contents.looked())
    ledger.sync()
    return found
