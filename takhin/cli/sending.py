"""Lines on their way to the broker, and what became of them."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from takhin.cli.command import EXIT_USAGE, CommandError
from takhin.cli.escapes import escaped
from takhin.cli.failure import command_error
from takhin.cli.input import STANDARD_INPUT, Input
from takhin.cli.json_records import JsonLines
from takhin.cli.lines import LineBatch, LineEncoder, LineTooLong
from takhin.cli.progress import Progress
from takhin.client import BufferFull, ClientError, NotDelivered, Producer, RecordMetadata

# A line that waits for no more lines goes out after so long.
LINGER_S = 0.005
BUFFER_BYTES = 16 << 20
_MAX_LINE_BYTES = 10_000_000
_MAX_BATCH_BYTES = 8 << 20
_MAX_BATCH_RECORDS = 50_000


class Shape(NamedTuple):
    """What becomes of a line."""

    key_separator: bytes
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    delimiter: bytes
    keep_ends: bool
    empty_is_none: bool
    partition: int | None
    batch_bytes: int


def shape_of(
    key_separator: str, key: str | None, header: tuple[str, ...], delimiter: str, keep_ends: bool, null: bool,
    partition: int | None, batch_bytes: int
) -> Shape:
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
    return Shape(
        escaped(key_separator), None if key is None else key.encode(errors="surrogateescape"), tuple(headers),
        escaped(delimiter), keep_ends, null, partition, batch_bytes)


def encoder_of(shape: Shape, partitions: int) -> LineEncoder:
    return LineEncoder(
        # With a partition given, keys don't choose one.
        num_partitions=partitions if shape.partition is None else 1, batch_bytes=shape.batch_bytes,
        batch_records=_MAX_BATCH_RECORDS, line_bytes=_MAX_LINE_BYTES, delimiter=shape.delimiter,
        keep_ends=shape.keep_ends, key_separator=shape.key_separator, key=shape.key, headers=shape.headers,
        empty_is_none=shape.empty_is_none)


class Sending:
    """What was sent, and what became of it."""

    def __init__(self, producer: Producer, topic: str, total_bytes: int | None, *, shows: bool):
        self._producer = producer
        self._topic = topic
        self._began_s = time.monotonic()
        self._progress = Progress(f"to {topic}", total_bytes, is_wanted=shows)
        self._records = 0
        self._bytes = 0
        self._has_keys = False
        self._last: RecordMetadata | None = None
        # The first thing that went wrong: where, and what.
        self._failure: tuple[str, Exception] | None = None

    async def send(self, paths: Sequence[str], shape: Shape, partitions: int, *, as_json: bool) -> None:
        """Send what is in the files, each line as `shape` says, or as JSON. Raises CommandError, OSError,
        ClientError.
        """
        if as_json:
            await self._send_json(Input(paths), JsonLines(shape.partition), shape.delimiter)
        else:
            self._has_keys = bool(shape.key_separator)
            await self._send_lines(Input(paths), encoder_of(shape, partitions), shape.partition)
        await self._finish()

    async def _send_lines(self, source: Input, encoder: LineEncoder, partition: int | None) -> None:
        lines_before = 0
        with self._progress:
            async for path, data in source:
                if self._failure is not None:
                    break
                try:
                    batches = encoder.feed(data) if data else self._ended(encoder)
                except LineTooLong as problem:
                    for batch in encoder.take():
                        await self._send_batch(batch, partition, path, lines_before)
                    raise CommandError(
                        f"{_name(path)}: line {problem.line - lines_before} is longer than {_MAX_LINE_BYTES} bytes; "
                        "the lines before it are sent") from problem
                # What is not full waits for more only while more comes.
                if not await source.wait(LINGER_S):
                    batches += encoder.take()
                for batch in batches:
                    await self._send_batch(batch, partition, path, lines_before)
                self._bytes += len(data)
                self._progress.update(self._bytes, self._records)
                if not data:
                    lines_before = encoder.lines

    def _ended(self, encoder: LineEncoder) -> list[LineBatch]:
        encoder.end()
        return encoder.take()

    async def _send_batch(self, batch: LineBatch, partition: int | None, path: str, lines_before: int) -> None:
        first = batch.first_line - lines_before
        where = f"{_name(path)}: lines {first} to {first + batch.record_count - 1}"
        if self._has_keys:
            # Those between them may have gone to other partitions.
            where = f"{_name(path)}: {batch.record_count} of the lines from {first} on"
        delivery = await self._producer.send_encoded(
            batch.payload, batch.record_count, partition=batch.partition if partition is None else partition)
        delivery.add_done_callback(self._taker(batch.record_count, where))

    async def _send_json(self, source: Input, lines: JsonLines, delimiter: bytes) -> None:
        rest = b""
        number = 0
        with self._progress:
            async for path, data in source:
                if self._failure is not None:
                    break
                name = _name(path)
                whole = (rest + data).split(delimiter)
                # At a file's end what follows the last delimiter is a line too.
                rest = whole.pop() if data or not whole[-1] else b""
                if len(rest) > _MAX_LINE_BYTES:
                    raise CommandError(f"{name}: line {number + len(whole) + 1} is longer than {_MAX_LINE_BYTES} bytes")
                for line in whole:
                    number += 1
                    if line.strip():
                        where = f"{name}: line {number}"
                        await self._send_record(lines.read(line, where), where)
                self._bytes += len(data)
                self._progress.update(self._bytes, self._records)
                if not data:
                    rest, number = b"", 0

    async def _send_record(self, record: dict[str, Any], where: str) -> None:
        while True:
            try:
                delivery = self._producer.send_nowait(**record)
                break
            except BufferFull:
                await self._producer.room()
            except (ValueError, TypeError) as problem:
                raise CommandError(f"{where}: {problem}") from problem
        delivery.add_done_callback(self._taker(1, where))

    def _taker(self, count: int, where: str) -> Callable[[asyncio.Future[RecordMetadata]], None]:
        def take(delivery: asyncio.Future[RecordMetadata]) -> None:
            if delivery.cancelled():
                return
            problem = delivery.exception()
            if problem is None:
                self._records += count
                self._last = delivery.result()
            elif self._failure is None and isinstance(problem, Exception):
                self._failure = where, problem

        return take

    async def _finish(self) -> None:
        """Wait until all is acknowledged. Raises CommandError when something is not."""
        undelivered: NotDelivered | None = None
        try:
            await self._producer.flush()
        except NotDelivered as problem:
            undelivered = problem
        await asyncio.sleep(0)
        told_of = self._failure
        if undelivered is not None:
            # Or leaving it would wait for the same again.
            await self._producer.aclose()
        if told_of is not None:
            where, failure = told_of
            if not isinstance(failure, ClientError):
                raise failure
            told = command_error(failure, "the broker", {"topic": self._topic})
            raise CommandError(f"{where} {'were' if 'lines' in where else 'was'} not stored: {told}", told.status)
        if undelivered is not None:
            raise undelivered

    def summary(self) -> str:
        """What was done, for people."""
        took_s = time.monotonic() - self._began_s
        if self._records == 1 and self._last is not None:
            return f"1 record to {self._topic}, partition {self._last.partition}, offset {self._last.offset}"
        rate = f", {self._bytes / took_s / 1e6:,.0f} MB/s" if took_s > 1 and self._bytes > 1_000_000 else ""
        size = f"{self._bytes / 1e6:,.1f} MB" if self._bytes >= 100_000 else f"{self._bytes:,} bytes"
        return f"{self._records:,} records to {self._topic}: {size} in {took_s:.{1 if took_s >= 1 else 2}f} s{rate}"


def _name(path: str) -> str:
    """A file, for messages."""
    return "standard input" if path == STANDARD_INPUT else path
