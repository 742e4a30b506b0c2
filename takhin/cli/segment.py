"""takhin segment: look into a data directory's files, audit them, and bring a damaged one back into use."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from takhin.cli.command import EXIT_USAGE, CommandError
from takhin.cli.program import Group, Option, told
from takhin.cli.values import NUMBER
from takhin.errors import StartError

_DIRECTORY = click.Argument(["directory"], metavar="DIR")
_JSON = "One JSON object a line"

segment = Group("segment", help="Look into a data directory's files, audit and repair them.")
COMMANDS = {"segment": segment}


@segment.command(
    "dump", short_help="Show what segment, index, journal and snapshot files hold.",
    params=[
        click.Argument(["path"], metavar="FILE|DIR"),
        Option(["--records"], is_flag=True, help="Show the records of each batch."),
        Option(["--json", "as_json"], is_flag=True, help=f"{_JSON}; keys and values in base64."),
        Option(["--from", "from_offset"], type=NUMBER, metavar="OFFSET", default=0, show_default=True,
               help="Leave out what lies before this offset."),
        Option(["--count"], type=NUMBER, metavar="N",
               help="End after so many batches, with --records after so many records."),
    ],
    epilog="Exit status: 0 when all was whole, 1 when there is damage or an end that is cut short, 2 when nothing "
    "could be shown.",
)
def _dump(path: str, records: bool, as_json: bool, from_offset: int, count: int | None) -> int:
    """Show what is in a segment (.log), index, journal or producers' snapshot file, or in each of those in a directory:
    headers, batches, with --records the records. Damage is shown where it is, and what can be read behind it too. Of a
    running broker's files it shows what is there at the moment.
    """
    with _can_be_done():
        from takhin.cli.dump import dump

        return dump(path, records=records, as_json=as_json, from_offset=from_offset, count=count)


@segment.command(
    "verify", short_help="Audit a data directory.",
    params=[_DIRECTORY, Option(["--json", "as_json"], is_flag=True, help=f"{_JSON}.")],
    epilog="Exit status: 0 when it is sound, 1 when it is damaged, 2 when it can't be examined. A torn tail is what a "
    "crash leaves of records that were never acknowledged as durable; the next start cuts it, and it is no damage.",
)
def _verify(directory: str, as_json: bool) -> int:
    """Audit all of DIR, a data directory that no broker uses: every checksum, the order and the place of all segments,
    indexes, the journal, the metadata. It changes nothing, and tells what the next start will do: cut a torn tail, or
    serve a damaged partition only up to the damage.
    """
    with _can_be_done():
        from takhin.cli.verify import verify

        return verify(directory, as_json=as_json)


@segment.command(
    "repair", short_help="Make damaged partitions take appends again.",
    params=[
        _DIRECTORY,
        Option(["--dry-run"], is_flag=True, help="Only tell what it would do."),
        Option(["--yes"], is_flag=True, help="Do not ask."),
        Option(["--json", "as_json"], is_flag=True, help=f"{_JSON}; takes --yes or --dry-run."),
    ],
    epilog="Exit status: 0 when the directory is sound, 1 when it is not or the answer was no, 2 when it can't be "
    "done.",
)
def _repair(directory: str, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Of DIR, a data directory, each damaged partition keeps its longest whole beginning; all that follows is put into
    DIR/set-aside/NUMBER, byte for byte. Nothing is ever destroyed. Tells first what it will do, and what is lost, and
    asks.
    """
    with _can_be_done():
        from takhin.cli.repair import repair

        return repair(directory, dry_run=dry_run, yes=yes, as_json=as_json)


@contextmanager
def _can_be_done() -> Iterator[None]:
    """Here 1 is for what is damaged; what can't be done is 2."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (CommandError, StartError, OSError, ImportError) as problem:
        raise CommandError(told(problem), EXIT_USAGE) from problem
