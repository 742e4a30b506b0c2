"""What recovery, reading and appending make of a damaged copy of a base, and whether that is what was promised."""

from takhin.errors import Reason, TakhinError
from takhin.log.partition import Partition
from takhin.log.producers import SNAPSHOT_NAME
from takhin.log.recovery import RecoveredPartition
from takhin.v1 import takhin_pb2 as pb
from tests.torture.bed import Base, Bed, Files, Verdict, index_of, producers_of, read_all, verdict
from tests.torture.common import Run

_NEW = (b"appended after the damage", b"", b"x" * 300)


class Broken(AssertionError):
    """A promise was broken."""


def hold(condition: bool, message: str) -> None:
    """Raises Broken with the message, unless the condition holds."""
    if not condition:
        raise Broken(message)


def judge(
    bed: Bed, base: Base, files: Files, run: Run, *, stop: bool, max_bytes: int = 1 << 20, also_from: int = 0
) -> None:
    """Recover, read (from the beginning, and from the offset also_from), append, stop or be killed, recover again, and
    once more. Raises Broken."""
    expected = verdict(base, files)
    bed.put(files)
    found, partition = bed.recover(base.was_clean)
    if found.damage is not None:
        _judge_quarantined(bed, base, files, expected, found, partition, max_bytes)
        run.add(quarantined=1)
        return
    records, reason = read_all(partition, max_bytes=max_bytes)
    hold(records == base.records[: len(records)], f"a wrong record: one of the first {len(records)}")
    if also_from < partition.written_offset:
        more, _ = read_all(partition, also_from, max_bytes)
        hold(more == base.records[also_from:][: len(more)], f"a wrong record: one of {len(more)} from {also_from} on")
    if reason is not None:
        bed.end(partition, False)
        _judge_found_by_reader(base, files, expected, records, reason, bed.files())
        run.add(found_by_reader=1)
        return
    hold(not expected.proven, f"proven to {expected.at} and not quarantined: the log ends at {len(records)}")
    hold(len(records) == expected.whole_until, f"{len(records)} records of {expected.whole_until} that are whole")
    hold(partition.written_offset == len(records), f"the log ends at {partition.written_offset}")
    known = {state.id: state.batches_known for state in partition.producers}
    hold(known == producers_of(base, len(records)), f"of producers it knows {known}")
    _judge_cut(base, files, expected, found, bed.files())
    _judge_going_on(bed, base, partition, records, stop, max_bytes)
    run.add(**{"cut" if found.cut_bytes else "whole": 1})


def _judge_quarantined(
    bed: Bed, base: Base, files: Files, expected: Verdict, found: RecoveredPartition, partition: Partition,
    max_bytes: int,
) -> None:
    """Only what is proven damaged; readable up to there; nothing appended, nothing changed, also by the next start."""
    hold(expected.damaged, f"nothing is damaged, and it says: {found.damage}")
    hold(expected.proven, f"nothing proves {expected.at}, and it says: {found.damage}")
    records, reason = read_all(partition, max_bytes=max_bytes)
    whole = base.records[: expected.whole_until]
    hold(records == whole, f"{len(records)} records of {len(whole)} before the damage ({found.damage}; {reason})")
    hold(reason is None or reason is Reason.CORRUPT_BATCH, f"reading ended with {reason}")
    try:
        bed.append_durable(partition, b"refused")
        hold(False, "a damaged partition takes appends")
    except TakhinError as refusal:
        hold(refusal.reason is Reason.PARTITION_DAMAGED, f"refused with {refusal.reason}")
    bed.end(partition, False)
    hold(bed.files() == files, "a damaged partition's files were changed")
    again, partition = bed.recover(base.was_clean, 3)
    bed.end(partition, False)
    hold(again.damage == found.damage, f"the second start says {again.damage}, the first said {found.damage}")
    hold(bed.files() == files, "a damaged partition's files were changed by the second start")


def _judge_found_by_reader(
    base: Base, files: Files, expected: Verdict, records: list[pb.Record], reason: Reason, after: Files
) -> None:
    """Recovery may leave a place alone that an index vouches for: then reading ends there, and says why."""
    hold(expected.damaged, f"nothing is damaged, and reading ends with {reason} at {len(records)}")
    hold(expected.vouched, f"recovery did not see the damage at {expected.at}, reading did")
    hold(reason is Reason.CORRUPT_BATCH, f"reading ended with {reason}")
    # An index that is damaged beyond its sums leads nowhere: its segment is readable only from another place.
    hold(len(records) == expected.whole_until, f"{len(records)} records of {expected.whole_until} that are whole")
    for name in base.segments:
        # A second damage, in the unproven tail, may have been cut.
        kept = after.get(name, b"")
        aside = after.get(f"{name}.torn-at-{len(kept)}", b"")
        hold(kept + aside == files.get(name, b""), f"{name} was changed")


def _judge_cut(base: Base, files: Files, expected: Verdict, found: RecoveredPartition, after: Files) -> None:
    """What was cut is set aside, byte for byte; what is whole was not touched."""
    segment, position = expected.at
    cut_bytes = 0
    for name in base.segments:
        before = files.get(name)
        if before is None:
            continue
        cut = 0 if name > segment else position if name == segment else len(before)
        if expected.damaged and cut < len(before):
            aside = after.get(f"{name}.torn-at-{cut}")
            hold(aside == before[cut:], f"{name} from byte {cut} on is not what was set aside")
            cut_bytes += len(before) - cut
        kept = before[:cut] if expected.damaged else before
        hold(after.get(name) == (kept or None), f"{name} is not what it was up to byte {cut}")
    hold(found.cut_bytes == cut_bytes, f"{found.cut_bytes} bytes cut, it says, of {cut_bytes}")
    for name, data in files.items():
        if ".torn-at-" in name:
            hold(after.get(name) == data, f"{name}, set aside before, was changed")


def _judge_going_on(
    bed: Bed, base: Base, partition: Partition, records: list[pb.Record], stop: bool, max_bytes: int
) -> None:
    """Offsets go on without gap or reuse; the next start finds all of it, and the one after it changes nothing."""
    before = bed.files()
    offset = bed.append_durable(partition, *_NEW)
    hold(offset == len(records), f"the next record got offset {offset} after {len(records)} records")
    bed.end(partition, stop)
    second, partition = bed.recover(stop, 3)
    hold(second.damage is None, f"the second start says {second.damage}")
    hold(second.cut_bytes == 0, f"the second start cut {second.cut_bytes} bytes")
    again, reason = read_all(partition, max_bytes=max_bytes)
    hold(again[:offset] == records and reason is None, f"the second start reads {len(again)} records, {reason}")
    hold([record.value for record in again[offset:]] == list(_NEW), "what was appended durably is not what is there")
    bed.end(partition, False)
    after = bed.files()
    for name, data in before.items():
        # The log grows; indexes and the producers' snapshot are written anew.
        if name not in (*map(index_of, [*base.segments, name]), SNAPSHOT_NAME):
            hold(after.get(name, b"")[: len(data)] == data, f"{name} was changed by going on")
    _, partition = bed.recover(False, 4)
    bed.end(partition, False)
    hold(bed.files() == after, "the third start changed files")
