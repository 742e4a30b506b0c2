"""takhin topic: create, list, describe, update, delete."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from takhin.cli.ask import confirm
from takhin.cli.command import EXIT_USAGE, CommandError
from takhin.cli.complete import topic_argument
from takhin.cli.connection import connection_options, output_option, with_client
from takhin.cli.output import TABLE, Column, format_of, say, show
from takhin.cli.program import Group, Option
from takhin.cli.times import iso_time
from takhin.cli.values import NUMBER

if TYPE_CHECKING:
    from takhin.client import Client, Topic

topic = Group("topic", help="Create, list, describe, update and delete topics.")
COMMANDS = {"topic": topic}

_CONFIG = "Kafka's names: retention.ms, segment.bytes, max.message.bytes ..."
_TOPICS = (
    Column("TOPIC", "topic"), Column("PARTITIONS", "partitions", True), Column("RECORDS", "records", True),
    Column("BYTES", "size_bytes", True), Column("CREATED", "created", is_whole=True), Column("CONFIGS", "configs"),
)
_PARTITIONS = (
    Column("TOPIC", "topic"), Column("PARTITION", "partition", True), Column("START", "start_offset", True),
    Column("END", "end_offset", True), Column("DURABLE", "durable_offset", True), Column("BYTES", "size_bytes", True),
)


@topic.command("create", short_help="Create topics.", params=[
    click.Argument(["names"], metavar="TOPIC...", nargs=-1, required=True),
    Option(["-p", "--partitions"], type=NUMBER, metavar="N", default=0,
           help="How many partitions each has.  [default: the broker's, 1 unless it was told otherwise]"),
    Option(["-c", "--config"], multiple=True, metavar="NAME=VALUE", help=f"Set a config; can be repeated. {_CONFIG}"),
    Option(["--if-not-exists"], is_flag=True, help="One that is there already is fine as it is."),
    *connection_options(),
])
@with_client
async def _create(
    tk: "Client", names: tuple[str, ...], partitions: int, config: tuple[str, ...], if_not_exists: bool
) -> None:
    """Create each TOPIC. Names are 1 to 249 of a-z, A-Z, 0-9, ".", "_" and "-"."""
    from takhin.client import TopicExists

    configs = _configs(config)
    for name in names:
        try:
            await tk.create_topic(name, partitions=partitions, configs=configs)
        except TopicExists:
            if not if_not_exists:
                raise
            say(f"topic {name} is there already")
        else:
            created = await tk.describe_topic(name)
            say(f"created topic {name} with {_count(len(created.partitions), 'partition')}")


@topic.command("list", short_help="List all topics.", params=[output_option(), *connection_options()])
@with_client
async def _list(tk: "Client", output: str | None) -> None:
    """List all topics, with how much is in them."""
    show([_row(each) for each in await tk.describe_topics()], _TOPICS, output,
         empty="no topics yet; takhin topic create NAME makes one")


@topic.command("describe", short_help="Show topics with their partitions.", params=[
    topic_argument(nargs=-1, required=True), output_option(), *connection_options()])
@with_client
async def _describe(tk: "Client", topic: tuple[str, ...], output: str | None) -> None:
    """Show each TOPIC's partitions: where they begin and end, how far the disk has them. END is the offset that the
    next record gets; all below DURABLE survives the loss of power.
    """
    topics = await tk.describe_topics(topic)
    if format_of(output) != TABLE:
        show([_row(each) | {"partitions": _partitions(each)} for each in topics], (), output)
        return
    rows = [each for topic in topics for each in _partitions(topic)]
    show(rows, _PARTITIONS, output)
    for each in topics:
        if each.configs:
            say(f"configs of {each.name}: {' '.join(f'{name}={value}' for name, value in each.configs.items())}")


@topic.command("update", short_help="Change configs, add partitions.", params=[
    topic_argument(),
    Option(["-p", "--partitions"], type=NUMBER, metavar="N", default=0,
           help="So many partitions from now on; they can only become more. Keys are spread over all of them then: a "
           "key's next record may land on another one than before."),
    Option(["-c", "--config"], multiple=True, metavar="NAME=VALUE", help=f"Set a config; can be repeated. {_CONFIG}"),
    Option(["-r", "--reset"], multiple=True, metavar="NAME", help="The broker's default again; can be repeated."),
    *connection_options(),
])
@with_client
async def _update(
    tk: "Client", topic: str, partitions: int, config: tuple[str, ...], reset: tuple[str, ...]
) -> None:
    """Change TOPIC: all that is asked for, or nothing."""
    if not partitions and not config and not reset:
        raise CommandError("nothing to change: say -c NAME=VALUE, -r NAME or -p N", EXIT_USAGE)
    updated = await tk.update_topic(topic, partitions=partitions, configs=_configs(config), reset_configs=reset)
    configs = " ".join(f"{name}={value}" for name, value in updated.configs.items())
    say(f"topic {topic} has {_count(len(updated.partitions), 'partition')}, {configs or 'and no configs of its own'}")


@topic.command("delete", short_help="Delete topics with all their records.", params=[
    topic_argument(nargs=-1, required=True),
    Option(["-y", "--yes"], is_flag=True, help="Do not ask. Without a terminal to ask on it is needed."),
    *connection_options(),
])
@with_client
async def _delete(tk: "Client", topic: tuple[str, ...], yes: bool) -> None:
    """Delete each TOPIC: its records, and what groups have committed for it. There is no way back."""
    topics = await tk.describe_topics(topic)
    if not yes:
        records = sum(_row(each)["records"] for each in topics)
        confirm(f"delete {', '.join(topic)} with {_count(records, 'record')}?")
    for name in topic:
        await tk.delete_topic(name)
        say(f"deleted topic {name}")


def _configs(pairs: Iterable[str]) -> dict[str, str]:
    configs = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise CommandError(f"a config is NAME=VALUE, as retention.ms=86400000, not {pair!r}", EXIT_USAGE)
        configs[name] = value
    return configs


def _count(number: int, what: str) -> str:
    return f"{number:,} {what if number == 1 else what + 's'}"


def _row(topic: "Topic") -> dict[str, Any]:
    return {
        "topic": topic.name, "partitions": len(topic.partitions),
        "records": sum(each.end_offset - each.start_offset for each in topic.partitions),
        "size_bytes": topic.size_bytes, "created": iso_time(topic.created_ms), "created_ms": topic.created_ms,
        "configs": topic.configs,
    }


def _partitions(topic: "Topic") -> list[dict[str, Any]]:
    return [
        {"topic": topic.name, "partition": each.partition, "start_offset": each.start_offset,
         "end_offset": each.end_offset, "durable_offset": each.durable_offset, "size_bytes": each.size_bytes}
        for each in topic.partitions]
