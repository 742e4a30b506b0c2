"""The addresses that a server can be told: HOST:PORT, and unix:PATH."""

import ipaddress
import re

# Of a part of a host's name.
MAX_LABEL_CHARACTERS = 63
# [IPv6] or a name or IPv4, then the port.
_LISTEN = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|([A-Za-z0-9._-]{1,253})):([0-9]{1,5})", re.ASCII)
# What neither a shell nor grpc's own reading of such an address takes for anything but itself.
_UNIX = re.compile(r"unix:((?!//)[A-Za-z0-9/._+@,=~-]{1,107})", re.ASCII)


def split_listen(listen: str) -> tuple[str, int]:
    """("127.0.0.1", 9092) of "127.0.0.1:9092"; an IPv6 address loses its brackets. Raises ValueError."""
    match = _LISTEN.fullmatch(listen)
    if match is None:
        raise ValueError("not HOST:PORT")
    bracketed, host, port = match.groups()
    if bracketed is not None:
        host = str(ipaddress.IPv6Address(bracketed))
    elif not all(0 < len(label) <= MAX_LABEL_CHARACTERS for label in host.removesuffix(".").split(".")):
        raise ValueError("a part of the host's name is empty or too long")
    if int(port) > 65535:
        raise ValueError("port above 65535")
    return host, int(port)


def unix_path(listen: str) -> str | None:
    """The path of "unix:PATH"; None for any other address. Raises ValueError for a path that can't be one."""
    if not listen.startswith("unix:"):
        return None
    match = _UNIX.fullmatch(listen)
    if match is None:
        raise ValueError("not unix:PATH")
    return match[1]


def is_loopback(listen: str) -> bool:
    """Whether only this machine can reach the address. Raises ValueError when it is none."""
    if unix_path(listen) is not None:
        return True
    host, _ = split_listen(listen)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
