"""The ledger of one member of a group: one JSON object a line, on the disk before anything is built on it.

Each entry has t, the clock that all processes of a machine share (monotonic, ns), by which ledgers of several members
are put in order.

    opened    of a stream: member_id (to come back with, or ""), before start is sent
    joined    member_id, generation
    assigned  added ([topic, partition, offset] …), generation
    saw       topic, partition, offset of the first, digests: records that were processed
    revoking, lost, released    partitions ([topic, partition] …); of lost also reason
    commit    n, offsets ([topic, partition, offset] …), how: "stream", "unary", "auto" (the broker's, of credit given
              back) or "late" (of partitions that are the member's no longer, as far as it knows)
    answer    n, result: "ok", "failed" or "unknown", reason
    ended     of a stream: code, reason
    surprise  text: what the broker may not do
"""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.torture.oracle.ledger import OK, UNKNOWN

Place = tuple[str, int]


class MemberNotes:
    """Takes entries; sync() returns when all of them are on the disk. Two files are never one process's."""

    def __init__(self, path: Path):
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._buffer: list[bytes] = []
        self._number = 0

    def note(self, kind: str, **entry: Any) -> None:
        entry = {"t": time.monotonic_ns(), "kind": kind, **entry}
        self._buffer.append(json.dumps(entry, separators=(",", ":")).encode() + b"\n")

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def sync(self) -> None:
        data = memoryview(b"".join(self._buffer))
        self._buffer.clear()
        if data:
            while data:
                data = data[os.write(self._fd, data):]
            os.fdatasync(self._fd)


@dataclass(slots=True)
class MemberCommit:
    """since: the generation in which each partition was given to the member, as it was told; times in ns."""

    sent: int
    member_id: str
    offsets: dict[Place, int]
    how: str
    since: dict[Place, int]
    result: str = UNKNOWN
    reason: str = ""
    answered: int = 0


@dataclass(slots=True)
class Given:
    """A partition that a member was given. opened: when the stream was, on which it was told."""

    at: int
    opened: int
    member_id: str
    generation: int
    place: Place
    offset: int


@dataclass(slots=True)
class Seen:
    """Records that a member has processed, with consecutive offsets."""

    place: Place
    offset: int
    digests: list[str]


@dataclass
class MemberLog:
    """What one process's ledger says."""

    group: str
    name: str
    given: list[Given] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    commits: list[MemberCommit] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    member_id: str = ""
    # By member id: when the last was noted under it.
    until: dict[str, int] = field(default_factory=dict)

    def take(self, entries: list[dict[str, Any]]) -> "MemberLog":
        """Everything that a process has noted, in its order."""
        numbers: dict[int, MemberCommit] = {}
        since: dict[Place, int] = {}
        opened = 0
        for entry in entries:
            match entry["kind"]:
                case "opened":
                    opened, self.member_id = entry["t"], entry["member_id"]
                case "joined":
                    self.member_id = entry["member_id"]
                case "assigned":
                    for topic, partition, offset in entry["added"]:
                        since[topic, partition] = entry["generation"]
                        self.given.append(Given(
                            entry["t"], opened, self.member_id, entry["generation"], (topic, partition), offset))
                case "saw":
                    self.seen.append(Seen((entry["topic"], entry["partition"]), entry["offset"], entry["digests"]))
                case "commit":
                    offsets = {(topic, partition): offset for topic, partition, offset in entry["offsets"]}
                    numbers[entry["n"]] = commit = MemberCommit(
                        entry["t"], self.member_id, offsets, entry["how"],
                        {place: since[place] for place in offsets})
                    self.commits.append(commit)
                case "answer":
                    answered = numbers[entry["n"]]
                    answered.result, answered.reason = entry["result"], entry["reason"]
                    answered.answered = entry["t"]
                case "ended":
                    self.ends.append(entry["reason"] or entry["code"])
                case "surprise":
                    self.surprises.append(entry["text"])
            self.until[self.member_id] = entry["t"]
        return self

    @property
    def acked(self) -> int:
        return sum(commit.result == OK for commit in self.commits)


def read_member_log(path: Path) -> MemberLog:
    """path: GROUP.NAME.NUMBER. A last line that a death cut off says nothing: nothing was built on it."""
    group, name, _ = path.name.split(".", 2)
    lines = path.read_bytes().split(b"\n")
    return MemberLog(group, name).take([json.loads(line) for line in lines[:-1]])
