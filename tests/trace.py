"""A broker's system calls in order, as strace saw them: syncs and writes of the log where they ended, others where they
began, so that one that stands before another was over before the other began."""

import re
from pathlib import Path

from tests.broker_process import BrokerProcess, wait_until

CALLS = "pwrite64,pwritev,write,writev,sendmsg,fdatasync,fsync,ftruncate,unlink"


class Trace:
    """What `prefix` (the fixture strace) writes to `path` when it runs a broker; flags() comes behind it."""

    def __init__(self, path: Path):
        self.path = path

    def flags(self) -> list[str]:
        # -y: the paths of descriptors; -s: so much of what is written.
        return ["-y", "-s", "4096", "-e", f"trace={CALLS}", "-o", str(self.path)]

    def mark(self) -> int:
        """How much there is by now: what happened before is not looked at."""
        return len(self.path.read_text())

    def finish(self, broker: BrokerProcess, mark: int) -> list[str]:
        """End the broker; gives the calls since `mark`, each on one line."""
        broker.kill()
        wait_until(lambda: "+++ killed by SIGKILL" in self.path.read_text()[mark:], what="the end of the trace")
        return joined(self.path.read_text()[mark:].splitlines())


def joined(lines: list[str]) -> list[str]:
    """Calls that strace shows in two parts, as another thread's came between, put together."""
    begun: dict[str, str] = {}
    calls = []
    for line in lines:
        thread, _, rest = line.partition(" ")
        if rest.rstrip().endswith("<unfinished ...>"):
            call = rest.partition("<unfinished")[0].strip()
            if re.match(r"f(data)?sync|pwritev", call):
                begun[thread] = call
            else:
                calls.append(f"{thread} {call}")
        elif "<... " in rest and thread not in begun:
            continue
        elif match := re.match(r"\s*<\.\.\. \w+ resumed>(.*)", rest):
            calls.append(f"{thread} {begun.pop(thread)}{match[1]}")
        else:
            calls.append(line)
    return calls


def position(calls: list[str], pattern: str) -> int:
    """Where the first call stands that matches."""
    for number, call in enumerate(calls):
        if re.search(pattern, call):
            return number
    raise AssertionError(f"no {pattern!r} in\n" + "\n".join(call[:300] for call in calls))


def synced(path: str) -> str:
    """A pattern: the sync of a file or directory whose path ends so has succeeded."""
    return rf"f(data)?sync\(\d+<[^>]*{path}>\)\s+= 0"


def written(path: str, text: str = "") -> str:
    """A pattern: `text` was written to a file whose path ends so."""
    return rf"pwrite\w*\(\d+<[^>]*{path}>.*{text}"


def sent(text: str) -> str:
    """A pattern: `text` is among what is given to a socket; by gRPC's core with one call, by uvloop with another."""
    return rf"(sendmsg|writev?)\(\d+<socket:[^>]*>.*{text}"
