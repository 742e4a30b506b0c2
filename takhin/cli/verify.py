"""takhin segment verify: an audit of a data directory that changes nothing."""

from takhin.cli.command import EXIT_FAILED, EXIT_OK
from takhin.cli.data_audit import Auditor, DataAudit, Finding, locked, summary_of
from takhin.cli.show import print_json
from takhin.cli.terminal import Output


def verify(directory: str, *, as_json: bool) -> int:
    """Audit and print. Gives the exit status. Raises CommandError."""
    with Output() as out, locked(directory):
        audit = Auditor(directory, lambda finding: print_finding(out, finding, as_json)).run()
        print_summary(out, audit, as_json)
    return EXIT_FAILED if audit.status == "damaged" else EXIT_OK


def print_finding(out: Output, finding: Finding, as_json: bool) -> None:
    """A line of its own."""
    if as_json:
        print_json(
            out, type="finding", severity=finding.severity, path=finding.path, position=finding.position,
            topic=finding.topic, partition=finding.partition, what=finding.what,
        )
        return
    of = "" if finding.topic is None else f" ({finding.topic}/{finding.partition})"
    at = "" if finding.position is None else f" at byte {finding.position}"
    severity = {"damage": "DAMAGE", "torn": "torn"}.get(finding.severity, finding.severity)
    out.line(f"{severity:<6}  {finding.path}{of}{at}: {finding.what}")


def print_summary(out: Output, audit: DataAudit, as_json: bool) -> None:
    """The last line."""
    if not as_json:
        out.line(summary_of(audit))
        return
    print_json(
        out, type="summary", directory=audit.data_dir, status=audit.status,
        was_clean=None if audit.metadata is None else audit.metadata.was_clean,
        epoch=None if audit.metadata is None else audit.metadata.epoch, findings=audit.counts,
        partitions=len(audit.partitions), damaged_partitions=sum(each.is_damaged for each in audit.partitions),
        segments=sum(len(each.removable) + len(each.segments) for each in audit.partitions),
        batches=audit.total("batches"), records=audit.total("records"), bytes=audit.total("size_bytes"),
        journal_entries=audit.journal_entries,
    )
