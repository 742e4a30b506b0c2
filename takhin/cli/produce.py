"""takhin produce: lines of files or of standard input, as records."""

import os
from typing import TYPE_CHECKING

import click

from takhin.cli.command import EXIT_USAGE, CommandError
from takhin.cli.complete import topic_argument
from takhin.cli.connection import connection_options, with_client
from takhin.cli.output import say
from takhin.cli.program import Command, Option
from takhin.cli.values import NUMBER, Size

if TYPE_CHECKING:
    from takhin.client import Client
    from takhin.client.producer import Acks

_EPILOG = """\
\b
  echo hello | takhin produce greetings
  takhin produce access-log /var/log/nginx/access.log
  takhin produce users users.tsv -k '\\t' --acks durable
  takhin produce orders --json < orders.jsonl

With --json a line is an object: {"key": ..., "value": ..., "headers": {...}, "partition": 0, "timestamp":
1700000000000}. Text becomes UTF-8, null is none (a value of null is a tombstone), all else stays JSON; bytes that are
no text are "key_base64" and "value_base64". It is what takhin consume -O jsonl writes.

A topic with one partition keeps a file's order, and with keys each key's; otherwise lines go to all partitions by
turns, a batch each.
"""


@with_client
async def _produce(
    tk: "Client", topic: str, files: tuple[str, ...], key_separator: str, key: str | None, header: tuple[str, ...],
    as_json: bool, partition: int | None, delimiter: str, keep_ends: bool, null: bool, acks: "Acks", batch_bytes: int,
    quiet: bool
) -> None:
    """Make each line of FILEs, or of standard input (also "-"), a record of TOPIC: the line without its newline. A last
    line without a newline is a record too. Ends when all is acknowledged.
    """
    from takhin.cli.input import STANDARD_INPUT, size_of
    from takhin.cli.sending import BUFFER_BYTES, LINGER_S, Sending, shape_of

    shape = shape_of(key_separator, key, header, delimiter, keep_ends, null, partition, batch_bytes)
    if as_json and (key_separator or key is not None or header or keep_ends or null):
        raise CommandError("with --json each line says its key and headers; -k, --key, -H, -Z and --keep-ends don't go "
                           "with it", EXIT_USAGE)
    paths = [os.fsdecode(each) for each in files] or [STANDARD_INPUT]
    total_bytes = size_of(paths)
    partitions = len((await tk.describe_topic(topic)).partitions)
    if partition is not None and partition >= partitions:
        raise CommandError(f"topic {topic!r} has no partition {partition}: it has {partitions}, from 0 on", EXIT_USAGE)
    on_terminal = STANDARD_INPUT in paths and os.isatty(0)
    if on_terminal and not quiet:
        say("each line becomes a record; Ctrl-D ends")
    async with tk.producer(
        topic, acks=acks, buffer_bytes=BUFFER_BYTES, batch_bytes=batch_bytes, linger_ms=LINGER_S * 1000
    ) as producer:
        sending = Sending(producer, topic, total_bytes, shows=not on_terminal and not quiet)
        await sending.send(paths, shape, partitions, as_json=as_json)
    if not quiet:
        say(sending.summary())


COMMANDS = {
    "produce": Command("produce", callback=_produce, help=_produce.__doc__, epilog=_EPILOG, params=[
        topic_argument(),
        click.Argument(["files"], metavar="[FILE]...", nargs=-1, type=click.Path()),
        Option(["-k", "--key-separator"], metavar="TEXT", default="",
               help="A line is its key, TEXT, its value; without TEXT in it it has no key. \\t is a tab."),
        Option(["--key"], metavar="KEY", help="The key of all of them."),
        Option(["-H", "--header"], multiple=True, metavar="NAME=VALUE",
               help="A header of all of them; can be repeated."),
        Option(["--json", "as_json"], is_flag=True, help="Each line is a record as a JSON object, see below."),
        Option(["-p", "--partition"], type=NUMBER, metavar="N",
               help="Where all of them go.  [default: by the key; without one by turns]"),
        Option(["-D", "--delimiter"], metavar="BYTE", default="\\n", show_default=True, help="What ends a line."),
        Option(["--keep-ends"], is_flag=True,
               help="Keep the newline in the record: takhin consume -f %v gives back any file byte for byte then, also "
               "one that does not end with a newline."),
        Option(["-Z", "--null"], is_flag=True, help="An empty value is none: a tombstone."),
        Option(["--acks"], type=click.Choice(["assigned", "written", "durable"]), default="written", show_default=True,
               help="What to wait for: an offset; the broker's death is survived; so is the loss of power."),
        Option(["--batch-bytes"], type=Size(), metavar="BYTES", default="512k", show_default=True,
               help="Send at most so much at once."),
        Option(["-q", "--quiet"], is_flag=True, help="No progress, and no summary at the end."),
        *connection_options(),
    ]),
}
