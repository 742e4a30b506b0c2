"""takhin produce: lines of files or of standard input, as records."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from takhin.cli.command import EXIT_USAGE, CommandError
from takhin.cli.complete import topic_argument
from takhin.cli.connection import connection_options, with_client
from takhin.cli.escapes import escaped
from takhin.cli.output import say
from takhin.cli.program import Command, Option
from takhin.cli.values import NUMBER, Size

if TYPE_CHECKING:
    from takhin.cli.input import Input
    from takhin.cli.lines import LineBatch
    from takhin.client import Client, Producer, RecordMetadata

# A line that waits for no more lines goes out after so long.
_LINGER_S = 0.005
_BUFFER_BYTES = 16 << 20
_MAX_LINE_BYTES = 10_000_000
_MAX_BATCH_BYTES = 8 << 20
_MAX_BATCH_RECORDS = 50_000

_EPILOG = """\
\b
  echo hello | takhin produce greetings
  takhin produce access-log /var/log/nginx/access.log
  takhin produce users users.tsv -k '\\t' --acks durable
  takhin produce orders --json < orders.jsonl

With --json a line is an object: {"key": ..., "value": ..., "headers": {...}, "partition": 0, "timestamp": 1700000000000}.
Text becomes UTF-8, null is none (a value of null is a tombstone), all else stays JSON; bytes that are no text are
"key_base64" and "value_base64". It is what takhin consume -O jsonl writes.

A topic with one partition keeps a file's order, and with keys each key's; otherwise lines go to all partitions by turns, a
batch each.
"""


class _Shape(NamedTuple):
    """What becomes of a line."""

    key_separator: bytes
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    delimiter: bytes
    keep_ends: bool
    empty_is_none: bool
    partition: int | None
    batch_bytes: int


@with_client
async def _produce(
    tk: "Client", topic: str, files: tuple[str, ...], key_separator: str, key: str | None, header: tuple[str, ...],
    as_json: bool, partition: int | None, delimiter: str, keep_ends: bool, null: bool, acks: str, batch_bytes: int,
    quiet: bool
) -> None:
    """Make each line of FILEs, or of standard input (also "-"), a record of TOPIC: the line without its newline. A last
    line without a newline is a record too. Ends when all is acknowledged.
    """
    from takhin.cli.input import STANDARD_INPUT, Input, size_of

    shape = _shape(key_separator, key, header, delimiter, keep_ends, null, partition, batch_bytes)
    if as_json and (key_separator or key is not None or header or keep_ends or null):
        raise CommandError("with --json each line says its key and headers; -k, --key, -H, -Z and --keep-ends don't go "
                           "with it", EXIT_USAGE)
    paths = files or (STANDARD_INPUT,)
    total_bytes = size_of(paths)
    partitions = len((await tk.describe_topic(topic)).partitions)
    if partition is not None and partition >= partitions:
        raise CommandError(f"topic {topic!r} has no partition {partition}: it has {partitions}, from 0 on", EXIT_USAGE)
    on_terminal = STANDARD_INPUT in paths and os.isatty(0)
    if on_terminal and not quiet:
        say("each line becomes a record; Ctrl-D ends")
    async with tk.producer(
        topic, acks=acks, buffer_bytes=_BUFFER_BYTES, batch_bytes=batch_bytes, linger_ms=_LINGER_S * 1000
    ) as producer:
        sending = _Sending(producer, topic, total_bytes, shows=not on_terminal and not quiet)
        if as_json:
            from takhin.cli.json_records import JsonLines

            await sending.send_json(Input(paths), JsonLines(partition), shape.delimiter)
        else:
            await sending.send_lines(Input(paths), _encoder(shape, partitions), partition)
        await sending.finish()
    if not quiet:
        say(sending.summary())


def _shape(
    key_separator: str, key: str | None, header: tuple[str, ...], delimiter: str, keep_ends: bool, null: bool,
    partition: int | None, batch_bytes: int
) -> _Shape:
    if key_separator and key is not None:
        raise CommandError("-k takes each line's key from it, --key gives all of them one: say one of them", EXIT_USAGE)
    if len(escaped(delimiter)) != 1:
        raise CommandError(f"-D {delimiter!r} is not one byte; \\n, \\t, \\0 and \\x1e are", EXIT_USAGE)
    if not 1 <= batch_bytes <= _MAX_BATCH_BYTES:
        raise CommandError(f"--batch-bytes {batch_bytes} is not possible: 1 to {_MAX_BATCH_BYTES}", EXIT_USAGE)
    headers = []
    for each in header:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise CommandError(f"-H {each!r} is not NAME=VALUE", EXIT_USAGE)
        headers.append((name, value.encode(errors="surrogateescape")))
    return _Shape(
        escaped(key_separator), None if key is None else key.encode(errors="surrogateescape"), tuple(headers),
        escaped(delimiter), keep_ends, null, partition, batch_bytes)


def _encoder(shape: _Shape, partitions: int) -> Any:
    from takhin.cli.lines import LineEncoder

    return LineEncoder(
        # With a partition given, keys don't choose one.
        num_partitions=partitions if shape.partition is None else 1, batch_bytes=shape.batch_bytes,
        batch_records=_MAX_BATCH_RECORDS, line_bytes=_MAX_LINE_BYTES, delimiter=shape.delimiter,
        keep_ends=shape.keep_ends, key_separator=shape.key_separator, key=shape.key, headers=shape.headers,
        empty_is_none=shape.empty_is_none)


class _Sending:
    """What was sent, and what became of it."""

    def __init__(self, producer: "Producer", topic: str, total_bytes: int | None, *, shows: bool):
        from takhin.cli.progress import Progress

        self._producer = producer
        self._topic = topic
        self._began_s = time.monotonic()
        self._progress = Progress(f"to {topic}", total_bytes, is_wanted=shows)
        self._records = 0
        self._bytes = 0
        self._last: RecordMetadata | None = None
        # The first thing that went wrong: where, and what.
        self._failure: tuple[str, Exception] | None = None

    async def send_lines(self, source: "Input", encoder: Any, partition: int | None) -> None:
        """Raises CommandError, OSError."""
        from takhin.cli.lines import LineTooLong

        lines_before = 0
        is_waiting = False
        with self._progress:
            async for path, data in source:
                if self._failure is not None:
                    break
                try:
                    batches = encoder.feed(data) if data else self._ended(encoder)
                except LineTooLong as problem:
                    raise CommandError(f"{path}: {problem}; what comes before it is sent") from problem
                # What is not full waits for more only while more comes.
                is_waiting = await source.wait(_LINGER_S)
                if not is_waiting:
                    batches += encoder.take()
                for batch in batches:
                    await self._send_batch(batch, partition, path, lines_before)
                self._bytes += len(data)
                self._progress.update(self._bytes, self._records)
                if not data:
                    lines_before = encoder.lines

    def _ended(self, encoder: Any) -> "list[LineBatch]":
        encoder.end()
        return encoder.take()

    async def _send_batch(self, batch: "LineBatch", partition: int | None, path: str, lines_before: int) -> None:
        where = f"{path}: lines {batch.first_line - lines_before} to {batch.first_line - lines_before + batch.count - 1}"
        delivery = await self._producer.send_encoded(
            batch.payload, batch.count, partition=batch.partition if partition is None else partition)
        delivery.add_done_callback(self._taker(batch.count, where))

    async def send_json(self, source: "Input", lines: Any, delimiter: bytes) -> None:
        """Raises CommandError, OSError."""
        rest = b""
        number = 0
        with self._progress:
            async for path, data in source:
                if self._failure is not None:
                    break
                whole = (rest + data).split(delimiter)
                # At a file's end what follows the last delimiter is a line too.
                rest = whole.pop() if data or not whole[-1] else b""
                if len(rest) > _MAX_LINE_BYTES:
                    raise CommandError(f"{path}: line {number + len(whole) + 1} is longer than {_MAX_LINE_BYTES} bytes")
                for line in whole:
                    number += 1
                    if line.strip():
                        await self._send_record(lines.read(line, f"{path}: line {number}"), f"{path}: line {number}")
                self._bytes += len(data)
                self._progress.update(self._bytes, self._records)
                if not data:
                    rest, number = b"", 0

    async def _send_record(self, record: dict[str, Any], where: str) -> None:
        from takhin.client import BufferFull

        try:
            delivery = self._producer.send_nowait(**record)
        except BufferFull:
            await self._producer.room()
            delivery = self._producer.send_nowait(**record)
        except (ValueError, TypeError) as problem:
            raise CommandError(f"{where}: {problem}") from problem
        delivery.add_done_callback(self._taker(1, where))

    def _taker(self, count: int, where: str) -> Callable[["asyncio.Future[RecordMetadata]"], None]:
        def take(delivery: "asyncio.Future[RecordMetadata]") -> None:
            if delivery.cancelled():
                return
            problem = delivery.exception()
            if problem is None:
                self._records += count
                self._last = delivery.result()
            elif self._failure is None and isinstance(problem, Exception):
                self._failure = where, problem

        return take

    async def finish(self) -> None:
        """Wait until all is acknowledged. Raises CommandError when something is not."""
        from takhin.cli.failure import command_error
        from takhin.client import ClientError, NotDelivered

        undelivered: NotDelivered | None = None
        try:
            await self._producer.flush()
        except NotDelivered as problem:
            undelivered = problem
        await asyncio.sleep(0)
        if self._failure is not None:
            where, problem = self._failure
            assert isinstance(problem, ClientError)
            told = command_error(problem, "the broker")
            raise CommandError(f"{where} were not stored: {told}" if ": lines" in where else
                               f"{where} was not stored: {told}", told.status)
        if undelivered is not None:
            raise undelivered

    def summary(self) -> str:
        """What was done, for people."""
        took_s = time.monotonic() - self._began_s
        if self._records == 1 and self._last is not None:
            return f"1 record to {self._topic}, partition {self._last.partition}, offset {self._last.offset}"
        rate = f", {self._bytes / took_s / 1e6:,.0f} MB/s" if took_s > 1 else ""
        return f"{self._records:,} records to {self._topic}: {self._bytes / 1e6:,.1f} MB in {took_s:.1f} s{rate}"


COMMANDS = {
    "produce": Command("produce", callback=_produce, help=_produce.__doc__, epilog=_EPILOG, params=[
        topic_argument(),
        click.Argument(["files"], metavar="[FILE]...", nargs=-1, type=click.Path()),
        Option(["-k", "--key-separator"], metavar="TEXT", default="",
               help="A line is its key, TEXT, its value; without TEXT in it it has no key. \\t is a tab."),
        Option(["--key"], metavar="KEY", help="The key of all of them."),
        Option(["-H", "--header"], multiple=True, metavar="NAME=VALUE", help="A header of all of them; can be repeated."),
        Option(["--json", "as_json"], is_flag=True, help="Each line is a record as a JSON object, see below."),
        Option(["-p", "--partition"], type=NUMBER, metavar="N",
               help="Where all of them go.  [default: by the key; without one by turns]"),
        Option(["-D", "--delimiter"], metavar="BYTE", default="\\n", show_default=True, help="What ends a line."),
        Option(["--keep-ends"], is_flag=True,
               help="Keep the newline in the record: takhin consume -f %v gives back any file byte for byte then, also one "
               "that does not end with a newline."),
        Option(["-Z", "--null"], is_flag=True, help="An empty value is none: a tombstone."),
        Option(["--acks"], type=click.Choice(["assigned", "written", "durable"]), default="written", show_default=True,
               help="What to wait for: an offset; the broker's death is survived; so is the loss of power."),
        Option(["--batch-bytes"], type=Size(), metavar="BYTES", default="512k", show_default=True,
               help="Send at most so much at once."),
        Option(["-q", "--quiet"], is_flag=True, help="No progress, and no summary at the end."),
        *connection_options(),
    ]),
}
