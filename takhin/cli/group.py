"""takhin group: list, describe, lag, reset, delete."""

from typing import TYPE_CHECKING, Any

from takhin.cli.ask import confirm
from takhin.cli.command import EXIT_USAGE, CommandError
from takhin.cli.complete import group_argument
from takhin.cli.connection import connection_options, output_option, with_client
from takhin.cli.output import TABLE, Column, format_of, say, show
from takhin.cli.program import Group, Option
from takhin.cli.times import iso_time, read_time

if TYPE_CHECKING:
    from takhin.client import Client, GroupOffset, OffsetReset
    from takhin.client.start import Start

group = Group("group", help="Consumer groups: who is in them, how far behind they are.")
COMMANDS = {"group": group}

_GROUPS = (Column("GROUP", "group"), Column("STATE", "state"), Column("MEMBERS", "members", True))
_ASSIGNMENTS = (
    Column("MEMBER", "member"), Column("CLIENT", "client"), Column("HOST", "host"), Column("TOPIC", "topic"),
    Column("PARTITION", "partition", True), Column("COMMITTED", "committed", True),
)
_LAGS = (
    Column("TOPIC", "topic"), Column("PARTITION", "partition", True), Column("START", "start_offset", True),
    Column("COMMITTED", "committed", True), Column("END", "end_offset", True), Column("LAG", "lag", True),
    Column("COMMITTED AT", "committed_at", is_whole=True),
)
_RESETS = (
    Column("TOPIC", "topic"), Column("PARTITION", "partition", True), Column("COMMITTED", "old_offset", True),
    Column("NEW", "new_offset", True), Column("BY", "by", True),
)


@group.command("list", short_help="List all groups.", params=[output_option(), *connection_options()])
@with_client
async def _list(tk: "Client", output: str | None) -> None:
    """List all consumer groups: those with members, and those that have committed something."""
    rows = [{"group": each.group, "state": each.state, "members": each.member_count} for each in await tk.list_groups()]
    show(rows, _GROUPS, output, empty="no groups yet; takhin consume TOPIC -g NAME makes one")


@group.command("describe", short_help="Show a group's members and what they have.", params=[
    group_argument(), output_option(), *connection_options()])
@with_client
async def _describe(tk: "Client", group: str, output: str | None) -> None:
    """Show GROUP's members, and which partitions each of them has."""
    described = await tk.describe_group(group)
    rows: list[dict[str, Any]] = []
    for member in described.members:
        about = {"member": member.member_id, "client": member.client_id, "host": member.host}
        rows += [
            about | {"topic": place.topic, "partition": place.partition, "committed": committed}
            for place, committed in member.assignment.items()
        ] or [about | {"topic": None, "partition": None, "committed": None}]
    if format_of(output) == TABLE:
        say(f"group {group}: {described.state}, members: {len(described.members)}")
        show(rows, _ASSIGNMENTS, output)
    else:
        show([{"group": group, "state": described.state, "assignments": rows}], (), output)


@group.command("lag", short_help="Show how far behind a group is.", params=[
    group_argument(),
    Option(["-t", "--topic"], multiple=True, metavar="TOPIC",
           help="All partitions of this topic, committed or not; can be repeated."),
    output_option(), *connection_options(),
])
@with_client
async def _lag(tk: "Client", group: str, topic: tuple[str, ...], output: str | None) -> None:
    """Show how many records GROUP has yet to read: in each partition that it has committed, or that a member has.
    COMMITTED is the next offset it reads.
    """
    offsets = await tk.group_offsets(group, topic)
    show([_lag_row(each) for each in offsets], _LAGS, output, empty=f"group {group} has committed nothing yet")
    if len(offsets) > 1 and format_of(output) == TABLE:
        say(f"lag in all: {sum(each.lag for each in offsets):,}")


def _lag_row(each: "GroupOffset") -> dict[str, Any]:
    return {
        "topic": each.topic, "partition": each.partition, "start_offset": each.start, "committed": each.committed,
        "end_offset": each.end, "lag": each.lag,
        "committed_at": iso_time(each.committed_ms) if each.committed_ms is not None else None,
        "committed_ms": each.committed_ms,
    }


@group.command("reset", short_help="Set a group to other offsets.", params=[
    group_argument(),
    Option(["--to"], metavar="WHERE",
           help="earliest, latest, an offset, or a time: @2026-11-01T00:00 (local time), @-1h."),
    Option(["--shift"], type=int, metavar="N", help="So many records on; negative: back."),
    Option(["-t", "--topic"], multiple=True, metavar="TOPIC",
           help="All partitions of this topic; can be repeated.  [default: all that the group has committed]"),
    Option(["-p", "--partition"], multiple=True, metavar="TOPIC/N", help="This partition; can be repeated."),
    Option(["--dry-run"], is_flag=True, help="Only tell what it would do."),
    Option(["-y", "--yes"], is_flag=True, help="Do not ask. Without a terminal to ask on it is needed."),
    output_option(), *connection_options(),
])
@with_client
async def _reset(
    tk: "Client", group: str, to: str | None, shift: int | None, topic: tuple[str, ...], partition: tuple[str, ...],
    dry_run: bool, yes: bool, output: str | None
) -> None:
    """Set GROUP, which must have no members, to other offsets: back, to read again, or forth, to skip. It shows first
    what would change, and asks. A group that does not exist is made, when -t or -p says for what.
    """
    if (to is None) == (shift is None):
        raise CommandError("say where to: either --to or --shift", EXIT_USAGE)
    target: dict[str, Any] = {
        "to": None if to is None else _target(to), "shift": shift, "topics": topic,
        "partitions": [_place(each) for each in partition]}
    planned = await tk.reset_offsets(group, **target, dry_run=True)
    show(_reset_rows(planned), _RESETS, output,
         empty=f"group {group} has committed nothing; -t TOPIC sets it for a topic")
    if not planned or dry_run:
        return
    if not yes:
        confirm(f"set group {group} to these offsets?")
    # All of it or nothing: so it is asked for again as a whole, though the end may be elsewhere by now.
    done = await tk.reset_offsets(group, **target)
    if [each.new for each in done] != [each.new for each in planned]:
        say("the log went on meanwhile; what was done is:")
        show(_reset_rows(done), _RESETS, output)
    say(f"group {group} is set")


def _reset_rows(resets: "list[OffsetReset]") -> list[dict[str, Any]]:
    return [
        {"topic": each.topic, "partition": each.partition, "old_offset": each.old, "new_offset": each.new,
         "by": None if each.old is None else each.new - each.old}
        for each in resets]


def _target(text: str) -> "Start":
    if text in ("earliest", "latest"):
        return text
    if text.isascii() and text.isdigit():
        return int(text)
    if text.startswith("@"):
        try:
            return read_time(text[1:])
        except (ValueError, OverflowError):
            pass
    raise CommandError(
        f"--to {text!r} is not known: earliest, latest, an offset, or a time as @2026-11-01T00:00 or @-1h", EXIT_USAGE)


def _place(text: str) -> tuple[str, int]:
    topic, _, number = text.rpartition("/")
    if not topic or not number.isascii() or not number.isdigit():
        raise CommandError(f"-p {text!r} is not TOPIC/N, as orders/0", EXIT_USAGE)
    return topic, int(number)


@group.command("delete", short_help="Forget what groups have committed.", params=[
    group_argument(nargs=-1, required=True),
    Option(["-y", "--yes"], is_flag=True, help="Do not ask. Without a terminal to ask on it is needed."),
    *connection_options(),
])
@with_client
async def _delete(tk: "Client", group: tuple[str, ...], yes: bool) -> None:
    """Forget what each GROUP has committed; it must have no members."""
    if not yes:
        confirm(f"delete {', '.join(group)} with all that was committed?")
    for name in group:
        await tk.delete_group(name)
        say(f"deleted group {name}")
