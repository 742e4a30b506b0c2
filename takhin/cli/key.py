"""takhin key: create, list, revoke; and new, which needs no broker."""

import time
from typing import TYPE_CHECKING, Any

import click

from takhin.cli.ask import confirm
from takhin.cli.connection import connection_options, output_option, with_client
from takhin.cli.output import TABLE, Column, format_of, say, show, write_text
from takhin.cli.program import Group, Option
from takhin.cli.times import iso_time
from takhin.cli.values import Seconds

if TYPE_CHECKING:
    from takhin.client import Client
    from takhin.client.access import ApiKey

key = Group("key", help="API keys: make, list and revoke them.")
COMMANDS = {"key": key}

_KEYS = (
    Column("ID", "id"), Column("NAME", "name"), Column("PRINCIPAL", "principal"), Column("CREATED", "created"),
    Column("EXPIRES", "expires"), Column("EXPIRED", "is_expired"),
)


@key.command("create", short_help="Make a key.", params=[
    click.Argument(["name"]),
    Option(["--expires"], type=Seconds(), metavar="TIME",
           help="It can be used for so long: 90d, 12h.  [default: until it is revoked]"),
    output_option(), *connection_options(),
])
@with_client
async def _create(tk: "Client", name: str, expires: float | None, output: str | None) -> None:
    """Make a key whose bearer is the principal key:NAME. It is shown this once: the broker keeps its hash alone.

    Several keys may have one NAME: make the next one, have it used, revoke the last one.
    """
    made, data = await tk.access.create_key(name, lifetime_s=expires)
    if format_of(output) != TABLE:
        show([_row(data) | {"key": made}], (), output)
        return
    write_text(made + "\n")
    until = f"until {iso_time(data.expires_ms)}" if data.expires_ms is not None else "until it is revoked"
    say(f"made key {data.id} for {data.principal}, good {until}; it is not shown again")
    say(f"it may do nothing yet: takhin acl create {data.principal} --allow produce --topic TOPIC lets it")


@key.command("list", short_help="List all keys.", params=[output_option(), *connection_options()])
@with_client
async def _list(tk: "Client", output: str | None) -> None:
    """List all keys, from the oldest on, expired ones included."""
    show([_row(each) for each in await tk.access.list_keys()], _KEYS, output,
         empty="no keys yet; takhin key create NAME makes one")


@key.command("revoke", short_help="End keys.", params=[
    click.Argument(["ids"], metavar="ID...", nargs=-1, required=True),
    Option(["-y", "--yes"], is_flag=True, help="Do not ask. Without a terminal to ask on it is needed."),
    *connection_options(),
])
@with_client
async def _revoke(tk: "Client", ids: tuple[str, ...], yes: bool) -> None:
    """End the keys with these IDs, as takhin key list shows them, and every stream that was opened with one."""
    if not yes:
        confirm(f"revoke {', '.join(ids)}?")
    for each in ids:
        revoked = await tk.access.revoke_key(each)
        say(f"revoked key {revoked.id} of {revoked.principal}")


@key.command("new", short_help="Make a key for takhin-server --auth-admin-key, without a broker.")
def _new() -> None:
    """Write a new key to standard output. In a file that takhin-server --auth-admin-key names it may do everything:

    \b
      (umask 077; takhin key new > admin.key)
      takhin-server --auth-keys true --auth-admin-key admin.key
      TAKHIN_API_KEY=$(cat admin.key) takhin key create NAME
    """
    from takhin.broker.access_control import make_key

    write_text(make_key() + "\n")


def _row(each: "ApiKey") -> dict[str, Any]:
    expires_ms = each.expires_ms
    return {
        "id": each.id, "name": each.name, "principal": each.principal, "created": iso_time(each.created_ms),
        "created_ms": each.created_ms, "expires": None if expires_ms is None else iso_time(expires_ms),
        "expires_ms": expires_ms, "is_expired": expires_ms is not None and expires_ms <= time.time() * 1000,
    }
