"""takhin consume and takhin tail: records, as they are or as text for people."""

import os
from typing import TYPE_CHECKING

import click

from takhin.cli.command import EXIT_USAGE, CommandError
from takhin.cli.complete import topic_argument
from takhin.cli.connection import connection_options, with_client
from takhin.cli.escapes import escaped
from takhin.cli.output import FORMATS, JSON, JSONL, TABLE
from takhin.cli.program import Command, Option
from takhin.cli.values import NUMBER

if TYPE_CHECKING:
    from takhin.cli.record_text import Shape
    from takhin.cli.sink import Sink
    from takhin.client import Client
    from takhin.client.start import StartAt

# Of one response. Larger ones cost the broker and us less a byte, and hold more memory.
_MAX_BYTES = 1 << 20
# The largest number of records that a reader can be told.
_COUNTED_BY_READER = 2 ** 31 - 1
_DEFAULT_FORMAT = "%v\\n"
_STARTS = (
    "earliest, latest, an offset, -10 (before the end), +100 (behind the beginning), or a time: @2026-11-01T00:00 "
    "(local time), @-1h")

_CONSUME_EPILOG = """\
\b
  takhin consume orders -o -10 -e                       the last ten of each partition
  takhin consume orders -o @-1h -f '%T %k %v\\n'         the last hour, then what comes
  takhin consume orders -g billing                      as a member of a group: each record once
  takhin consume access-log -e > access.log             the file that was produced, byte for byte

\b
A format has:
  %v value       %k key                    %t topic  %p partition  %o offset
  %V its size    %K its size, -1: none     %T timestamp, ms since 1970
  %h headers     %% a percent sign         \\n \\t \\r \\0 \\e \\\\ \\xHH

Without -f a record's value and a newline are written; on a terminal what is not printable is escaped. A file whose
lines were produced to one partition comes back byte for byte with that, but for its end: a last line without a newline
gets one. takhin produce --keep-ends and consume -f %v give back that too.
"""
_TAIL_EPILOG = """\
\b
  takhin tail orders              the last ten, then what comes
  takhin tail orders -n 0         only what comes
  takhin tail orders -o @-5m      the last five minutes, then what comes
"""


@with_client
async def _consume(
    tk: "Client", topic: str, partition: int | None, start: str, count: int | None, end: bool, group: str | None,
    text_format: str | None, output: str | None, durable: bool
) -> None:
    """Write TOPIC's records to standard output: from the beginning, and for ever, unless told otherwise. Each partition
    comes in its order.
    """
    from takhin.cli.sink import Sink

    if text_format is not None and output is not None:
        raise CommandError("-f and -O both say how to show it: say one of them", EXIT_USAGE)
    if group is not None and (partition is not None or durable):
        raise CommandError(
            "a group shares out the partitions itself, and reads what is written: -p and --durable don't go with -g",
            EXIT_USAGE)
    shape = shape_of(text_format, output)
    start_at = read_start(start)
    async with Sink() as sink:
        await sink.write(shape.begin)
        if group is not None:
            from takhin.cli.consume_group import consume_group

            await consume_group(tk, topic, group, start_at, shape, sink, count=count, until_end=end)
        else:
            await _copy(
                tk, topic, start_at, shape, sink, partition=partition, count=count, until_end=end, durable=durable)
        await sink.write(shape.end)


async def _copy(
    tk: "Client", topic: str, start: "StartAt", shape: "Shape", sink: "Sink", *, partition: int | None = None,
    count: int | None = None, until_end: bool = False, durable: bool = False
) -> None:
    # Counted here too: the reader does not know numbers as large as -n may be.
    reader = tk.read(
        topic, partition=partition, start=start, until_end=until_end,
        max_records=count if count is None or count <= _COUNTED_BY_READER else None,
        visibility="durable" if durable else "written", max_bytes=_MAX_BYTES)
    left = count
    async with reader:
        async for records in reader.batches():
            if left is not None:
                records.keep_first(min(left, len(records)))
                left -= len(records)
            await sink.write(shape.records(records))
            if left == 0:
                return


@with_client
async def _tail(
    tk: "Client", topic: str, partition: int | None, count: int, start: str | None, output: str | None
) -> None:
    """Show the last records of TOPIC, and those that come: a line each, with time, partition, offset, key and value."""
    from takhin.cli.sink import Sink

    shape = shape_of(None, output or TABLE)
    start_at = read_start(start if start is not None else f"-{count}" if count else "latest")
    async with Sink() as sink:
        await _copy(tk, topic, start_at, shape, sink, partition=partition)


def shape_of(text_format: str | None, output: str | None) -> "Shape":
    """What makes text of records. Raises CommandError for a format that is none."""
    from takhin.cli import record_text

    if output == TABLE:
        return record_text.Lines()
    if output in (JSON, JSONL):
        return record_text.Json(is_array=output == JSON)
    if text_format is None and os.isatty(1):
        return record_text.Values()
    try:
        return record_text.Formatted(escaped(_DEFAULT_FORMAT if text_format is None else text_format))
    except ValueError as problem:
        raise CommandError(str(problem), EXIT_USAGE) from None


def read_start(text: str) -> "StartAt":
    """Where -o begins. Raises CommandError."""
    from takhin.cli.times import read_time
    from takhin.client.start import StartAt, start_at

    number = text[1:] if text[:1] in ("-", "+") else text
    if text in ("earliest", "beginning", "start"):
        return StartAt(is_earliest=True)
    if text in ("latest", "end"):
        return StartAt(is_latest=True)
    if number.isascii() and number.isdigit() and len(number) <= 18:
        if text[0] == "-":
            return StartAt(from_end=int(number))
        return StartAt(from_start=int(number)) if text[0] == "+" else StartAt(offset=int(number))
    try:
        if text.startswith("@"):
            return start_at(read_time(text[1:]))
    except (ValueError, OverflowError):
        pass
    raise CommandError(f"-o {text!r} is not known: {_STARTS}", EXIT_USAGE)


COMMANDS = {
    "consume": Command("consume", callback=_consume, help=_consume.__doc__, epilog=_CONSUME_EPILOG, params=[
        topic_argument(),
        Option(["-o", "--offset", "start"], metavar="WHERE", default="earliest", show_default=True,
               help=f"Where to begin: {_STARTS}. With -g: where the group has committed nothing yet."),
        Option(["-n", "--count"], type=NUMBER, metavar="N", help="End after so many records."),
        Option(["-e", "--exit-at-end", "end"], is_flag=True, help="End where the log ends now."),
        Option(["-p", "--partition"], type=NUMBER, metavar="N", help="Only this one.  [default: all]"),
        Option(["-g", "--group"], metavar="GROUP",
               help="As a member of this group: go on where it is, and commit what was written."),
        Option(["-f", "--format", "text_format"], metavar="FORMAT", help="What to write of a record, see below."),
        Option(["-O", "--output"], type=click.Choice(FORMATS), envvar="TAKHIN_CONSUME_OUTPUT",
               help="jsonl: an object a line; json: an array; table: as takhin tail."),
        Option(["--durable"], is_flag=True, help="Only what is on the broker's disk, safe from a loss of power."),
        *connection_options(),
    ]),
    "tail": Command("tail", callback=_tail, help=_tail.__doc__, epilog=_TAIL_EPILOG, params=[
        topic_argument(),
        Option(["-n", "--count"], type=NUMBER, metavar="N", default=10, show_default=True,
               help="So many of each partition, before what comes."),
        Option(["-o", "--offset", "start"], metavar="WHERE", help=f"Begin there instead: {_STARTS}."),
        Option(["-p", "--partition"], type=NUMBER, metavar="N", help="Only this one.  [default: all]"),
        Option(["-O", "--output"], type=click.Choice(FORMATS), envvar="TAKHIN_TAIL_OUTPUT",
               help="How to show it.  [default: table]"),
        *connection_options(),
    ]),
}
