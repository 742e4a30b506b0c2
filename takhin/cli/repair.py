"""takhin segment repair: damaged partitions take appends again, and nothing is destroyed.

It goes in an order that makes it safe to be killed at any point: what is taken out is copied and synced, then the
metadata learns that a new epoch begins, and only then is the log cut. What is found half-done is done again, under a
new number.
"""

import asyncio
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from takhin.broker.metadata import MetadataStore
from takhin.cli.command import EXIT_FAILED, EXIT_OK, CommandError
from takhin.cli.data_audit import Auditor, DataAudit, Finding, locked
from takhin.cli.journal_view import JournalView
from takhin.cli.partition_audit import PartitionAudit, Verdict, judge
from takhin.cli.segment_audit import SegmentAudit
from takhin.cli.show import count_of, print_json
from takhin.cli.terminal import Output
from takhin.cli.verify import print_finding, print_summary
from takhin.errors import TakhinError
from takhin.log.files import Files
from takhin.log.producers import SNAPSHOT_NAME
from takhin.log.replay import keep_for
from takhin.log.segment import FileCache, Segment

SET_ASIDE = "set-aside"
REPORT = "repair.json"
_COPY_BYTES = 1024 * 1024
_NAMED_FILES = 6


@dataclass(slots=True)
class Plan:
    """What is done to one partition.

    log_start: where the log is to begin, None when that stays. cut: the segment that is cut to cut_bytes, after it was
    copied. moved: paths of files that go as they are. reindexed: segments whose index is made again. ends_at: where
    appends go on in a new epoch, None when the log's end is what it was.
    """

    audit: PartitionAudit
    what: str
    log_start: int | None = None
    cut: SegmentAudit | None = None
    cut_bytes: int = 0
    moved: list[str] = field(default_factory=list)
    reindexed: list[SegmentAudit] = field(default_factory=list)
    ends_at: int | None = None
    lost: list[tuple[int, int]] = field(default_factory=list)
    readable: tuple[int, int] = (0, 0)

    @property
    def copied(self) -> list[str]:
        """Files of which a copy is set aside before they are changed."""
        changed = [self.cut.path, self.cut.index_path] if self.cut is not None else []
        return [path for path in changed + [each.index_path for each in self.reindexed] if os.path.exists(path)]


def repair(directory: str, *, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Tell what there is to do, ask, do it, audit again. Gives the exit status. Raises CommandError, OSError."""
    if as_json and not (dry_run or yes):
        raise CommandError("--json can't ask: add --yes or --dry-run")
    # A reader that goes away must not end it half-way.
    with Output(goes_on=True) as out, locked(directory):
        findings: list[Finding] = []
        audit = Auditor(directory, findings.append).run()
        plans = plans_of(audit)
        needing = needing_the_journal(audit, plans)
        if not plans and (needing or audit.journal_damage is None):
            for finding in findings:
                if finding.severity == "damage":
                    print_finding(out, finding, as_json)
            if audit.status == "damaged" and not as_json:
                out.line("nothing of this can be repaired here")
            print_summary(out, audit, as_json)
            return EXIT_FAILED if audit.status == "damaged" else EXIT_OK
        _refuse_what_is_not_ready(audit)
        for plan in plans:
            _print_plan(out, directory, plan, as_json)
        _print_journal(out, audit, needing, as_json)
        if dry_run or not (yes or _agreed(out)):
            if not as_json:
                out.line("nothing was changed")
            return EXIT_FAILED
        aside, epoch = carry_out(audit, plans)
        if as_json:
            print_json(out, type="done", set_aside=aside, epoch=epoch)
        else:
            out.line(f"what was taken out is in {aside}; new records are written in epoch {epoch}")
        audit = Auditor(directory, lambda finding: print_finding(out, finding, as_json)).run()
        print_summary(out, audit, as_json)
        return EXIT_FAILED if audit.status == "damaged" else EXIT_OK


def _refuse_what_is_not_ready(audit: DataAudit) -> None:
    if audit.metadata is None:
        raise CommandError(f"{audit.data_dir}: meta.db can't be read: restore it from a copy before anything else")
    unwritten = [each.name for each in audit.partitions if each.restores]
    if unwritten:
        raise CommandError(
            f"{audit.data_dir}: the journal holds what the segments of {count_of(len(unwritten), 'partition')} "
            f"({unwritten[0]} …) lack: start a broker once, which writes it to them, stop it, then repair"
        )


def _agreed(out: Output) -> bool:
    out.flush()
    if not sys.stdin or not sys.stdin.isatty():
        raise CommandError("nothing was changed: standard input is no terminal to ask on; add --yes to do it")
    os.write(2, b"Do it? Nothing is destroyed. [y/N] ")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


# What to do


def plans_of(audit: DataAudit) -> list[Plan]:
    """One plan for each partition that can be repaired."""
    plans = [_plan(each) for each in audit.partitions]
    return [plan for plan in plans if plan is not None]


def _plan(audit: PartitionAudit) -> Plan | None:
    verdict = audit.verdict
    if verdict is not None and verdict.unreadable:
        return None
    plan = Plan(audit, verdict.what if verdict is not None else "")
    if verdict is not None and verdict.gone_before is not None:
        plan.log_start = verdict.gone_before
        plan.lost.append(audit.lost())
        verdict = judge(replace(audit, log_start=verdict.gone_before), audit.directory)
    kept = audit.segments
    if verdict is not None and not verdict.is_torn:
        _plan_end(plan, replace(audit, verdict=verdict), verdict)
        kept = audit.segments[: verdict.keep]
    # The index of what is cut is made again in any case.
    plan.reindexed = [segment for segment in kept if segment.index_wrong and segment is not plan.cut]
    if plan.reindexed and not plan.what:
        plan.what = f"{os.path.basename(plan.reindexed[0].index_path)} does not agree with its segment"
    return plan if plan.log_start is not None or plan.ends_at is not None or plan.reindexed else None


def _plan_end(plan: Plan, audit: PartitionAudit, verdict: Verdict) -> None:
    plan.ends_at = verdict.next_offset
    plan.lost.append(audit.lost())
    plan.readable = audit.readable_behind()
    last = audit.segments[verdict.keep - 1] if verdict.keep else None
    if last is not None and (last.size_bytes > verdict.keep_bytes or (last.index_vouches_bytes or 0) > last.size_bytes):
        plan.cut, plan.cut_bytes = last, verdict.keep_bytes
    # The last one first, and a segment before its index: what is left when this is cut short is still found.
    for segment in reversed(audit.segments[verdict.keep:]):
        plan.moved.append(segment.path)
        if os.path.exists(segment.index_path):
            plan.moved.append(segment.index_path)
    plan.moved += audit.stray_indexes
    # It would tell of records that are none any more, and vouch for them. Another one is made from the log.
    if audit.snapshot_offset > verdict.next_offset:
        plan.moved.append(os.path.join(audit.directory, SNAPSHOT_NAME))


def _print_plan(out: Output, data_dir: str, plan: Plan, as_json: bool) -> None:
    audit = plan.audit
    path = os.path.relpath(audit.directory, data_dir)
    files = [os.path.relpath(each, data_dir) for each in plan.copied + plan.moved]
    if as_json:
        print_json(out, type="repair", **_plan_fields(plan, path, files))
        return
    out.line(f"{audit.name} ({path}): {plan.what}")
    if plan.log_start is not None:
        out.line(f"  the log begins at offset {plan.log_start} from now on")
    if plan.ends_at is not None:
        out.line(f"  what lies before offset {plan.ends_at} stays; new records go on from there, in a new epoch")
    for first, behind in plan.lost:
        if behind > first:
            out.line(f"  lost: offsets {first} to {behind - 1}")
    if plan.ends_at is not None and plan.readable[0]:
        batches, records = plan.readable
        out.line(
            f"  of these, {count_of(records, 'record')} in {count_of(batches, 'batch')} can be read in what is set "
            "aside"
        )
    if plan.reindexed:
        out.line(f"  {count_of(len(plan.reindexed), 'index')} made again")
    if files:
        more = f" and {len(files) - _NAMED_FILES} more" if len(files) > _NAMED_FILES else ""
        out.line(f"  set aside: {', '.join(os.path.basename(each) for each in files[:_NAMED_FILES])}{more}")


def _print_journal(out: Output, audit: DataAudit, needing: set[tuple[int, int]], as_json: bool) -> None:
    """It goes too: it would be written to segments that are cut then, or it is damaged itself."""
    if not audit.journal_paths:
        return
    files = [] if needing else [os.path.relpath(each, audit.data_dir) for each in audit.journal_paths]
    if as_json:
        print_json(out, type="repair_journal", what=audit.journal_damage, set_aside=files)
        return
    what = audit.journal_damage or f"all that follows on its segments is in them ({audit.journal_entries} commits)"
    out.line(f"journal: {what}")
    if needing:
        out.line(f"  kept for {count_of(len(needing), 'partition')} that can't be repaired here")
    else:
        out.line(f"  set aside: {', '.join(files)}")


def _plan_fields(plan: Plan, path: str, files: list[str]) -> dict[str, Any]:
    batches, records = plan.readable
    return {
        "path": path, "topic": plan.audit.topic, "topic_id": plan.audit.topic_id, "partition": plan.audit.partition,
        "what": plan.what, "log_start_offset": plan.log_start, "next_offset": plan.ends_at,
        "lost": [{"from": first, "to": behind} for first, behind in plan.lost if behind > first],
        "readable_batches": batches, "readable_records": records,
        "reindexed": [os.path.basename(each.index_path) for each in plan.reindexed], "set_aside": files,
    }


# Doing it


def carry_out(audit: DataAudit, plans: list[Plan]) -> tuple[str, int]:
    """Do it. Gives the directory that has what was taken out, and the epoch. Raises OSError, CommandError."""
    moves_journal = bool(audit.journal_paths) and not needing_the_journal(audit, plans)
    aside = _make_room(audit.data_dir, plans, moves_journal)
    try:
        for plan in plans:
            _copy_aside(audit.data_dir, aside, plan)
        _write_report(audit.data_dir, aside, plans)
        _sync_what_the_journal_covers(audit)
        _sync_tree(aside)
        _sync(audit.data_dir, os.path.dirname(aside))
    except OSError:
        # Nothing was changed yet: no half of a copy shall pass for one.
        shutil.rmtree(aside, ignore_errors=True)
        raise
    try:
        epoch = asyncio.run(_begin_epoch(audit, plans))
    except TakhinError as problem:
        raise CommandError(f"nothing was changed: {problem.message}") from problem
    for plan in plans:
        _move_aside(audit.data_dir, aside, plan)
        _cut(plan)
    # Last: until then it may be all that proves what is damaged.
    needing = needing_the_journal(audit, plans)
    if needing:
        keep_for(Files(), os.path.dirname(audit.journal_paths[0]), needing)
    elif audit.journal_paths:
        for path in audit.journal_paths:
            os.rename(path, os.path.join(aside, "journal", os.path.basename(path)))
        _sync(os.path.join(aside, "journal"), os.path.dirname(audit.journal_paths[0]))
    return aside, epoch


def needing_the_journal(audit: DataAudit, plans: list[Plan]) -> set[tuple[int, int]]:
    """(topic id, partition) of those that stay damaged, of which the journal tells something."""
    tells = [each for each in audit.partitions if each.proven_offset or audit.journal_damage is not None]
    damaged = {(each.topic_id, each.partition) for each in tells if each.is_damaged}
    return damaged - {(plan.audit.topic_id, plan.audit.partition) for plan in plans}


def _sync_what_the_journal_covers(audit: DataAudit) -> None:
    """What a killed broker had in the journal on the disk may be in the segments only in the cache."""
    with JournalView(audit.data_dir) as journal:
        for partition in audit.partitions:
            key = (partition.topic_id, partition.partition)
            if not journal.end(key) and not journal.is_damaged(key):
                continue
            if not partition.is_damaged:
                journal.write_again(key, partition.directory, partition.log_start)
            if not partition.is_damaged and not journal.is_damaged(key):
                continue
            # Who may lack some of it. What is cut is written again with its index.
            for segment in partition.segments:
                if journal.is_damaged(key) and not segment.unreadable:
                    _write_again(segment)
                if not segment.unreadable:
                    _sync_file(segment.path)
            if partition.segments:
                _sync(partition.directory, os.path.dirname(partition.directory))


def _write_again(segment: SegmentAudit) -> None:
    """What its index does not vouch for: a part of it may have been on the disk only in what the journal has lost."""
    fd = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        position = segment.index_vouches_bytes or 0
        while data := os.pread(fd, _COPY_BYTES, position):
            position += os.pwrite(fd, data, position)
    finally:
        os.close(fd)


def _sync_file(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


def _make_room(data_dir: str, plans: list[Plan], moves_journal: bool) -> str:
    """A new directory under a new number. Raises CommandError: there is no room for the copies."""
    top = os.path.join(data_dir, SET_ASIDE)
    os.makedirs(top, mode=0o750, exist_ok=True)
    needed = sum(os.stat(path).st_size for plan in plans for path in plan.copied)
    room = os.statvfs(top)
    if needed > room.f_bavail * room.f_frsize:
        raise CommandError(f"nothing was changed: the copies take {count_of(needed, 'byte')}, and the disk is full")
    numbers = [int(name) for name in os.listdir(top) if name.isdigit()]
    aside = os.path.join(top, str(max(numbers, default=0) + 1))
    os.mkdir(aside, mode=0o750)
    if moves_journal:
        os.mkdir(os.path.join(aside, "journal"), mode=0o750)
    return aside


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o640)


def _copy_aside(data_dir: str, aside: str, plan: Plan) -> None:
    for path in plan.copied:
        target = os.path.join(aside, os.path.relpath(path, data_dir))
        os.makedirs(os.path.dirname(target), mode=0o750, exist_ok=True)
        with open(path, "rb") as source, open(target, "xb", opener=_opener) as copy:
            shutil.copyfileobj(source, copy, _COPY_BYTES)
            copy.flush()
            os.fdatasync(copy.fileno())
    if plan.moved:
        os.makedirs(os.path.join(aside, os.path.relpath(plan.audit.directory, data_dir)), mode=0o750, exist_ok=True)


def _write_report(data_dir: str, aside: str, plans: list[Plan]) -> None:
    """What this repair takes out, for whoever finds it later: one JSON object for each partition."""
    import json

    with open(os.path.join(aside, REPORT), "x", opener=_opener) as file:
        for plan in plans:
            path = os.path.relpath(plan.audit.directory, data_dir)
            files = [os.path.relpath(each, data_dir) for each in plan.copied + plan.moved]
            file.write(json.dumps(_plan_fields(plan, path, files)) + "\n")
        file.flush()
        os.fdatasync(file.fileno())


async def _begin_epoch(audit: DataAudit, plans: list[Plan]) -> int:
    """Make the metadata know it before the log is cut: no offset gets another value in an epoch that it had one in.

    Not by taking the mark of a clean stop off: if this is killed now, the next start must still know that everything
    was on the disk, or it would take the damage for a torn tail.
    """
    failures: list[str] = []
    store = MetadataStore(os.path.join(audit.data_dir, "meta.db"), failures.append)
    store.open()
    try:
        assert audit.metadata is not None
        epoch = audit.metadata.epoch
        ends = [plan for plan in plans if plan.ends_at is not None]
        if ends:
            epoch = await store.raise_epoch(max(each.max_epoch for each in audit.partitions))
            await store.add_epochs(
                [(plan.audit.topic_id, plan.audit.partition, epoch, plan.ends_at or 0) for plan in ends]
            )
        for plan in plans:
            if plan.log_start is not None:
                await store.set_log_start(plan.audit.topic_id, plan.audit.partition, plan.log_start)
        return epoch
    finally:
        await store.close()


def _move_aside(data_dir: str, aside: str, plan: Plan) -> None:
    for path in plan.moved:
        target = os.path.join(aside, os.path.relpath(path, data_dir))
        os.rename(path, target)
    if plan.moved:
        _sync(os.path.join(aside, os.path.relpath(plan.audit.directory, data_dir)), plan.audit.directory)


def _cut(plan: Plan) -> None:
    """Cut the segment, then make the indexes again: one that vouches for more than there is tells of what is undone."""
    audit = plan.audit
    cache = FileCache(Files(), 1)
    if plan.cut is not None and plan.cut.size_bytes > plan.cut_bytes:
        fd = os.open(plan.cut.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, plan.cut_bytes)
        finally:
            os.close(fd)
    for each in [plan.cut] if plan.cut is not None else []:
        _index_again(cache, audit, each)
    for each in plan.reindexed:
        _index_again(cache, audit, each)
    _sync(audit.directory)


def _index_again(cache: FileCache, audit: PartitionAudit, each: SegmentAudit) -> None:
    # A copy of it was set aside. What a scan finds must not depend on it.
    with suppress(FileNotFoundError):
        os.unlink(each.index_path)
    segment, damage = Segment.scanned(cache, audit.directory, audit.topic_id, audit.partition, each.base_offset)
    if damage is not None:
        raise CommandError(f"{each.path}: {damage}; the disk gives something else than before")
    # It vouches for what a killed broker may have left in the cache only.
    segment.rewrite(each.base_offset)
    segment.sync()
    segment.write_index()
    segment.close()


def _sync(*directories: str) -> None:
    """The names in them are on the disk after this."""
    files = Files()
    for directory in directories:
        files.sync_directory(directory)


def _sync_tree(directory: str) -> None:
    for path, _, _ in os.walk(directory, topdown=False):
        _sync(path)
