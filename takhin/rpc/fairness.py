"""Connections that keep the others from being served are cut off.

gRPC's core reads a connection for as long as there is something to read, in the one thread that looks after all of
them. Whoever sends frames without end that come to no call (calls beyond what a connection may have, SETTINGS,
CONTINUATION) has that thread to himself: what others sent is left lying. No option of core's bounds that.

So we are a stranger to ourselves: now and then we connect, and see whether that is noticed. If not, we look, many times
a second, which connections are being read, and how much of that were messages of calls. What is read all the while and
is not that is cut; an address of which several were cut is not let in for a while. Whoever sends calls, however many,
is not: they end core's round, and others have their turn.
"""

import fcntl
import ipaddress
import logging
import os
import select
import socket
import struct
import termios
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, Thread

from takhin.config import split_listen
from takhin.rpc.ban import MAX_BANNED, ban

logger = logging.getLogger(__name__)

# How often it is asked whether a connection is noticed, and after how long without that it is looked why.
PROBE_EVERY_S = 1.0
PROBE_TIMEOUT_S = 0.5
# The same for a while after something was cut: it may be back.
ALERT_S = 60.0
ALERT_PROBE_EVERY_S = 0.05
ALERT_PROBE_TIMEOUT_S = 0.1
# How far apart the looks are at what is being read; in how many of them, while nobody else is served, a connection has
# to have been, with how many bytes, to be cut; in how many, where its address is one that was cut off before; and for
# how long it is looked.
LOOK_EVERY_S = 0.02
LOOKS = 5
ALERT_LOOKS = 2
LEAST_BYTES = 64 * 1024
LOOK_FOR_S = 10.0
# So many cut off of one address, and it is not let in for a while.
BAN_AFTER = 3
BAN_S = 60.0
MAX_HOSTS = 1_000
# Of a call, besides its message; of a message, besides its bytes.
CALL_BYTES = 512
MESSAGE_BYTES = 64
# No preface of HTTP/2's and no TLS handshake: it is answered, or hung up on, at once.
_STRANGE = b"takhin?\r\n\r\n"
# tcpi_bytes_received of struct tcp_info.
_BYTES_RECEIVED = struct.Struct("@128xQ")


class Messages:
    """What calls were sent, by peer, while somebody wants to know. unix_path: where the front of them listens; None: on
    TCP."""

    __slots__ = ("_bytes", "are_counted", "unix_path")

    def __init__(self) -> None:
        self.unix_path: str | None = None
        self.are_counted = False
        self._bytes: Counter[str] = Counter()

    def begin(self) -> None:
        self._bytes.clear()
        self.are_counted = True

    def end(self) -> None:
        self.are_counted = False

    def of(self, peer: str) -> int:
        """Bytes, as far as it comes to messages."""
        return self._bytes[peer]

    def note_call(self, peer: str, size_bytes: int) -> None:
        self._bytes[peer] += CALL_BYTES + size_bytes

    def note_message(self, peer: str, size_bytes: int) -> None:
        self._bytes[peer] += MESSAGE_BYTES + size_bytes


@dataclass(slots=True)
class _Seen:
    """One connection, from look to look. looks: at how many of them something of it had been read since the one before,
    and more was there. Of who uploads something large, and is no faster than the broker, nothing more is there.
    """

    first_bytes: int
    last_bytes: int
    looks: int = 0


class Fairness:
    """For what listens on `bound` ("HOST:PORT"). In a thread of its own: the event loop, too, may find itself reading
    such a connection for core."""

    def __init__(self, bound: str, messages: Messages):
        host, self._port = split_listen(bound)
        self._host = _reachable(host)
        self._messages = messages
        self._alert_until_s = 0.0
        # How many were cut of each address, since it was last quiet; until when it is not let in.
        self._cuts: Counter[str] = Counter()
        self._banned_until_s: dict[str, float] = {}
        # Our own connections come from there.
        self._own_host = ""
        self.num_cut = 0
        self._stopped = Event()
        self._thread = Thread(target=self._run, name="takhin-fairness", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """It ends soon; nobody has to wait for it."""
        self._stopped.set()

    def _run(self) -> None:
        while True:
            is_alert = time.monotonic() < self._alert_until_s
            if not is_alert:
                self._cuts.clear()
            if self._stopped.wait(ALERT_PROBE_EVERY_S if is_alert else PROBE_EVERY_S):
                return
            try:
                self._let_in_again()
                with socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET) as probe:
                    probe.settimeout(PROBE_TIMEOUT_S)
                    probe.connect((self._host, self._port))
                    self._own_host = probe.getsockname()[0]
                    probe.sendall(_STRANGE)
                    if not _is_noticed(probe, ALERT_PROBE_TIMEOUT_S if is_alert else PROBE_TIMEOUT_S):
                        self._cut_off(probe)
            except OSError as problem:
                # Out of descriptors, say, or the address is gone: nothing to be done about it here.
                logger.debug("whether connections are noticed can't be told: %s", problem)

    def _cut_off(self, probe: socket.socket) -> None:
        """Look who is being read, and cut off, until the probe is noticed."""
        until_s = time.monotonic() + LOOK_FOR_S
        self._messages.begin()
        try:
            seen: dict[str, _Seen] = {}
            while time.monotonic() < until_s and not self._stopped.is_set():
                for peer, read_bytes, unread_bytes in self._look():
                    one = seen.setdefault(peer, _Seen(read_bytes, read_bytes))
                    one.looks += read_bytes > one.last_bytes and unread_bytes > 0
                    one.last_bytes = read_bytes
                for peer in [peer for peer, one in seen.items() if self._is_flood(peer, one)]:
                    self._cut(peer, seen.pop(peer))
                if _is_noticed(probe, LOOK_EVERY_S):
                    return
        finally:
            self._messages.end()

    def _is_flood(self, peer: str, one: _Seen) -> bool:
        size_bytes = one.last_bytes - one.first_bytes
        looks = ALERT_LOOKS if _host_of(peer) in self._cuts else LOOKS
        return one.looks >= looks and size_bytes >= LEAST_BYTES and 2 * self._messages.of(peer) < size_bytes

    def _cut(self, peer: str, one: _Seen) -> None:
        self.num_cut += 1
        self._alert_until_s = time.monotonic() + ALERT_S
        logger.warning(
            "connection of %s cut: others were not served while %d bytes of it were read, %d of them of calls", peer,
            one.last_bytes - one.first_bytes, self._messages.of(peer))
        shut_down_connection(peer)
        host = _host_of(peer)
        if host in self._cuts or len(self._cuts) < MAX_HOSTS:
            self._cuts[host] += 1
        is_new = host not in self._banned_until_s and len(self._banned_until_s) < MAX_BANNED
        if self._cuts[host] >= BAN_AFTER and is_new and host != self._own_host:
            logger.warning("no connections of %s are taken for %.0f s: %d were cut", host, BAN_S, self._cuts[host])
            self._banned_until_s[host] = time.monotonic() + BAN_S
            self._set_bans()

    def _let_in_again(self) -> None:
        over = [host for host, until_s in self._banned_until_s.items() if until_s < time.monotonic()]
        if over:
            for host in over:
                del self._banned_until_s[host]
            self._set_bans()

    def _set_bans(self) -> None:
        for listener in _sockets():
            with suppress(OSError):
                is_listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if is_listening and listener.getsockname()[1] == self._port:
                    ban(listener, self._banned_until_s)

    def _look(self) -> list[tuple[str, int, int]]:
        """Of each connection, how much of what came was read so far, and how much was not."""
        found = []
        for peer, connection in connections(self._port):
            (received,) = _BYTES_RECEIVED.unpack(
                connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size))
            unread = int.from_bytes(fcntl.ioctl(connection, termios.FIONREAD, bytes(4)), "little")
            found.append((peer, received - unread, unread))
        return found


def _is_noticed(probe: socket.socket, timeout_s: float) -> bool:
    """Whether it is answered, or hung up on, in time."""
    # Not select(), which knows no descriptors beyond 1023.
    poll = select.poll()
    poll.register(probe, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def shut_down_connection(peer: str) -> None:
    """Shut down the connection of this process whose other end is `peer` ("HOST:PORT")."""
    for found, connection in connections(None):
        if found == peer:
            _shut_down(connection)
            return


def shut_down_unix_connections(path: str) -> int:
    """Shut down all connections to the socket of this process at `path`; how many there were, but for those that are
    shut down already."""
    count = 0
    for connection in _sockets():
        with suppress(OSError):
            is_listening = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            is_ours = connection.family == socket.AF_UNIX and connection.getsockname() == path
            if is_ours and not is_listening and not _is_at_its_end(connection):
                _shut_down(connection)
                count += 1
    return count


def _is_at_its_end(connection: socket.socket) -> bool:
    """Whether nothing more can come."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


def _shut_down(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)
    # What came and was not read yet would be read all the same.
    with suppress(OSError):
        while connection.recv(1 << 20, socket.MSG_DONTWAIT):
            pass


def connections(port: int | None) -> Iterator[tuple[str, socket.socket]]:
    """TCP connections of this process, by their other end, as gRPC writes it; of those to a local port, or all. Each
    socket is closed, not the connection, when the next is asked for."""
    for connection in _sockets():
        try:
            local, other = connection.getsockname(), connection.getpeername()
        except OSError:
            continue  # not connected
        if isinstance(other, tuple) and port in (None, local[1]):
            yield _peer_text(other), connection


def _sockets() -> Iterator[socket.socket]:
    """Those of this process, each closed when the next is asked for."""
    for name in os.listdir("/proc/self/fd"):
        try:
            copy = os.dup(int(name))
        except OSError:
            continue  # closed meanwhile
        try:
            found = socket.socket(fileno=copy)
        except OSError:
            os.close(copy)  # not a socket
            continue
        with found:
            yield found


def _host_of(peer: str) -> str:
    return peer.rpartition(":")[0]


def _peer_text(address: tuple) -> str:
    """As grpc writes it: an IPv4 address as such, also on a socket of IPv6, which stands in brackets."""
    host, port = address[0].removeprefix("::ffff:"), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reachable(host: str) -> str:
    """Where what listens on `host` is reached from here."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if not address.is_unspecified:
        return host
    return "::1" if address.version == 6 else "127.0.0.1"
