"""takhin acl: create, list, delete."""

from typing import TYPE_CHECKING, Any

import click

from takhin.cli.ask import confirm
from takhin.cli.command import EXIT_USAGE, CommandError
from takhin.cli.connection import connection_options, output_option, with_client
from takhin.cli.output import Column, say, show
from takhin.cli.program import Group, Option

if TYPE_CHECKING:
    from takhin.client import Client
    from takhin.client.access import Acl

acl = Group("acl", help="Who may do what: allow, deny, list.")
COMMANDS = {"acl": acl}

OPERATIONS = ("produce", "consume", "group", "admin")
_ACLS = (
    Column("PRINCIPAL", "principal"), Column("EFFECT", "effect"), Column("OPERATION", "operation"),
    Column("RESOURCE", "resource"), Column("NAME", "shown_name"),
)


def _entry_parameters() -> list[click.Parameter]:
    what = "can be repeated. With --prefix: all whose name begins so; '*' means all"
    return [
        click.Argument(["principal"]),
        Option(["--allow"], multiple=True, type=click.Choice(OPERATIONS), help="What is allowed; can be repeated."),
        Option(["--deny"], multiple=True, type=click.Choice(OPERATIONS),
               help="What is denied, whatever else allows it; can be repeated."),
        Option(["-t", "--topic"], multiple=True, metavar="TOPIC", help=f"produce, consume, admin: this topic; {what}."),
        Option(["-g", "--group"], multiple=True, metavar="GROUP", help=f"group, admin: this consumer group; {what}."),
        Option(["--producer"], multiple=True, metavar="NAME",
               help=f"produce: this name of an idempotent producer; {what}."),
        Option(["--cluster"], is_flag=True, help="admin: API keys and ACLs."),
        Option(["--prefix"], is_flag=True, help="The names given are beginnings of names."),
    ]


@acl.command("create", short_help="Allow or deny something.", params=[*_entry_parameters(), *connection_options()])
@with_client
async def _create(tk: "Client", **given: Any) -> None:
    """Allow, or deny, PRINCIPAL what the options say, with each of the things they name:

    \b
      takhin acl create key:billing --allow produce --allow consume --topic orders
      takhin acl create cert:spiffe://example/etl --allow consume --topic logs- --prefix
      takhin acl create key:billing --allow group --group billing
      takhin acl create key:ops --allow admin --cluster --topic '*' --group '*'

    A principal is key:NAME of an API key, jwt:SUBJECT of a token, cert:NAME of a client's certificate; '*' is
    everybody with credentials. What nothing allows is denied, and what is denied stays so whatever allows it.
    """
    entries = _entries(**given)
    created = await tk.access.create_acls(entries)
    say(f"created {_count(created)}" + (f"; {len(entries) - created} were there already" * (created < len(entries))))


@acl.command("list", short_help="List what is allowed and denied.", params=[
    click.Argument(["principal"], required=False), output_option(), *connection_options()])
@with_client
async def _list(tk: "Client", principal: str | None, output: str | None) -> None:
    """List all entries, or those of PRINCIPAL."""
    show([_row(each) for each in await tk.access.list_acls(principal or "")], _ACLS, output,
         empty="no entries: only the server's own administrators may do anything, where there is authentication")


@acl.command("delete", short_help="Take entries away.", params=[
    *_entry_parameters(),
    Option(["-y", "--yes"], is_flag=True, help="Do not ask. Without a terminal to ask on it is needed."),
    *connection_options(),
])
@with_client
async def _delete(tk: "Client", yes: bool, **given: Any) -> None:
    """Take away the entries that takhin acl create made with the same arguments, all or none."""
    entries = _entries(**given)
    if not yes:
        confirm(f"delete {_count(len(entries))} of {given['principal']}?")
    await tk.access.delete_acls(entries)
    say(f"deleted {_count(len(entries))}")


def _entries(
    principal: str, allow: tuple[str, ...], deny: tuple[str, ...], topic: tuple[str, ...], group: tuple[str, ...],
    producer: tuple[str, ...], cluster: bool, prefix: bool
) -> "list[Acl]":
    """Each operation with each resource that it is possible with."""
    from takhin.broker.acl import OPERATIONS as POSSIBLE
    from takhin.broker.acl import Resource
    from takhin.client.access import Acl

    if not allow and not deny:
        raise CommandError("say what is allowed or denied: --allow or --deny, with produce, consume, group or admin",
                           EXIT_USAGE)
    resources = [(kind, name) for kind, names in (
        ("topic", topic), ("group", group), ("producer", producer)) for name in names]
    resources += [("cluster", "")] * cluster
    if not resources:
        raise CommandError("say what with: --topic, --group, --producer or --cluster", EXIT_USAGE)
    entries = []
    for effect, operations in (("allow", allow), ("deny", deny)):
        for operation in operations:
            matching = [(kind, name) for kind, name in resources if operation in POSSIBLE[Resource(kind)]]
            if not matching:
                kinds = [str(kind) for kind, possible in POSSIBLE.items() if operation in possible]
                raise CommandError(
                    f"{operation} is done with a {' or a '.join(kinds)}, and none is named", EXIT_USAGE)
            for kind, name in matching:
                is_prefix = kind != "cluster" and (prefix or name == "*")
                named: Any = (operation, kind, "" if name == "*" else name, effect, is_prefix)
                entries.append(Acl(principal, *named))
    return entries


def _row(each: "Acl") -> dict[str, Any]:
    return {
        "principal": each.principal, "effect": each.effect, "operation": each.operation, "resource": each.resource,
        "name": each.name, "is_prefix": each.is_prefix,
        "shown_name": each.name + "*" * each.is_prefix if each.resource != "cluster" else None,
    }


def _count(number: int) -> str:
    return f"{number} {'entry' if number == 1 else 'entries'}"
