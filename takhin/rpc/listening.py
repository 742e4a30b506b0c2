"""What is looked at before a front listens: grpc's core tells why a bind failed only in its own log, and takes over the
path of another server's socket without a word.
"""

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from takhin.config import unix_path
from takhin.errors import StartError


def _split(listen: str) -> tuple[str, int]:
    """HOST:PORT as host and port; an IPv6 address stands in brackets. Raises StartError."""
    host, _, port = listen.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if not host or (":" in host) != bracketed or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise StartError(f"can't listen on {listen!r}: give HOST:PORT, with a port of 0 to 65535 and IPv6 in brackets")
    return host, int(port)


async def check_free(listen: str) -> None:
    """Raise StartError when not every address `listen` stands for can be bound.

    grpc's core says why a bind failed only in its own log, and is content when one of several addresses is free.
    """
    host, port = _split(listen)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as exc:
        raise StartError(f"can't listen on {listen}: the host is not known ({exc.strerror})") from None
    except UnicodeError:
        raise StartError(f"can't listen on {listen}: the host is not known (that is no host's name)") from None
    bound = 0
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                bound += 1
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                raise StartError(f"{listen} is in use by another process") from None
            if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise StartError(f"can't listen on {listen}: {os.strerror(exc.errno or 0)}") from None
    if not bound:
        raise StartError(f"can't listen on {listen}: this machine has no such address")


async def bound_sockets(listen: str) -> list[socket.socket]:
    """A socket for each address that HOST:PORT stands for, all on the same port, which do not listen yet. As with
    grpc's core, [::] takes IPv4 as well, and localhost is both 127.0.0.1 and ::1 where there is one. Raises StartError,
    OSError."""
    host, port = _split(listen)
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses: dict[tuple[int, str], tuple[Any, ...]] = {
        (family, str(address[0])): address[2:] for family, _, _, _, address in found}
    if host == "localhost":
        addresses.setdefault((socket.AF_INET6, "::1"), ())
    bound: list[socket.socket] = []
    try:
        for (family, address), scope in addresses.items():
            try:
                bound.append(_bound(family, (address, bound[0].getsockname()[1] if bound else port, *scope)))
            except OSError as exc:
                # The others do: check_free() has looked whether they are free.
                if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
        if not bound:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    except BaseException:
        for each in bound:
            each.close()
        raise
    return bound


def _bound(family: int, address: tuple[Any, ...]) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


async def checked_path(listen: str) -> str | None:
    """The path of "unix:PATH", None for HOST:PORT, once it was looked at. Raises StartError: it is not to be had."""
    try:
        path = unix_path(listen)
    except ValueError:
        raise StartError(f"can't listen on {listen!r}: give unix:PATH, of letters, digits and /._+@,=~-") from None
    if path is None:
        await check_free(listen)
    else:
        check_path_free(path)
    return path


def check_path_free(path: str) -> None:
    """Raise StartError when a server listens on this path, or something other than a socket is there.

    The socket that a server left behind which was killed is in nobody's way.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise StartError(f"can't listen on unix:{path}: there is a file that is no socket")
    except FileNotFoundError:
        pass
    except OSError as exc:
        raise StartError(f"can't listen on unix:{path}: {exc.strerror}") from None
    directory = os.path.dirname(path) or "."
    if not os.path.isdir(directory):
        raise StartError(f"can't listen on unix:{path}: there is no directory {directory}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # one whose queue is full would keep us
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except BlockingIOError:
            pass
        except OSError as exc:
            raise StartError(f"can't listen on unix:{path}: {exc.strerror}") from None
    raise StartError(f"unix:{path} is in use by another process")


@contextmanager
def only_for_group() -> Iterator[None]:
    """A socket that is bound meanwhile is for the owner and the group alone."""
    before = os.umask(0o117)
    try:
        yield
    finally:
        os.umask(before)
