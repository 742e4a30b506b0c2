"""takhin cert: certificates to try TLS with."""

import os

import click

from takhin.cli.command import CommandError
from takhin.cli.output import say, write_text
from takhin.cli.program import Group, Option
from takhin.cli.values import NUMBER

cert = Group("cert", help="Certificates to try TLS with.")
COMMANDS = {"cert": cert}

CLIENT_URI = "spiffe://takhin.dev/{name}"
HOSTS = ("localhost", "127.0.0.1", "::1")


@cert.command("dev", short_help="Make a throw-away authority, and a pair each for a server and a client.", params=[
    click.Argument(["directory"], metavar="DIR"),
    Option(["--host"], multiple=True, metavar="NAME",
           help="Name or address of the server, beside localhost, 127.0.0.1 and ::1; can be repeated."),
    Option(["--client"], default="client", metavar="NAME", show_default=True,
           help="The client: its certificate has the URI spiffe://takhin.dev/NAME."),
    Option(["--days"], type=NUMBER, default=30, metavar="N", show_default=True, help="They are good for so long."),
])
def _dev(directory: str, host: tuple[str, ...], client: str, days: int) -> None:
    """Make DIR with ca.pem, server.pem, server.key, client.pem and client.key. The authority's key is thrown away:
    nobody can sign another certificate with it. Not for production.
    """
    from takhin.cli.dev_certificates import Authority, write_new

    uri = CLIENT_URI.format(name=client)
    try:
        authority = Authority(days)
        server, made_for = authority.server([*HOSTS, *host]), authority.client([uri], client)
    except ValueError as problem:
        raise CommandError(f"no certificate can be made: {problem}") from None
    os.makedirs(directory, mode=0o700, exist_ok=True)
    path = {name: os.path.join(directory, name) for name in (
        "ca.pem", "server.pem", "server.key", "client.pem", "client.key")}
    there = [each for each in path.values() if os.path.exists(each)]
    if there:
        raise CommandError(f"{there[0]} is there already; name another directory")
    for name, content in (
        ("ca.pem", authority.pem), ("server.pem", server[0]), ("server.key", server[1]), ("client.pem", made_for[0]),
        ("client.key", made_for[1]),
    ):
        write_new(path[name], content, is_secret=name.endswith(".key"))
        write_text(path[name] + "\n")
    pair = f"--tls-cert {path['server.pem']} --tls-key {path['server.key']}"
    for line in (
        "TLS alone:",
        f"  takhin-server {pair}",
        f"  takhin topic list --tls-ca {path['ca.pem']}",
        f"with certificates of clients; this one's principal is cert:{uri}:",
        f"  takhin-server {pair} --tls-client-ca {path['ca.pem']} --auth-admins cert:{uri}",
        f"  takhin topic list --tls-ca {path['ca.pem']} --tls-cert {path['client.pem']} --tls-key {path['client.key']}",
    ):
        say(line)
