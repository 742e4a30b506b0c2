"""What the service manager (systemd) is told of: that the broker is ready, reloads, stops, and that its loop turns.

The protocol is that of sd_notify(3): datagrams of NAME=VALUE lines to the Unix socket that NOTIFY_SOCKET names. Where
it names none, nobody is told anything.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping

# How often, at least, it is told anything while the broker starts or stops; and for how long that asks to be let go on.
BEAT_S = 10.0
EXTENSION_S = 60

_log = logging.getLogger("takhin.server")


class ServiceManager:
    """Made before the event loop runs. Sending never blocks, and what can't be sent is no reason to stop."""

    def __init__(self, environ: Mapping[str, str]):
        self._socket: socket.socket | None = None
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._is_settling = True
        self._is_stopping = False
        self._watchdog_s = _watchdog_s(environ) if self._address else 0.0
        if self._address:
            if self._address[0] not in "/@":
                _log.warning(
                    "NOTIFY_SOCKET: %r is neither a path nor an abstract socket: nobody is told", self._address)
                return
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    @property
    def is_there(self) -> bool:
        return self._socket is not None

    def starting(self, status: str) -> None:
        self._send(STATUS=status)

    def ready(self, status: str) -> None:
        """The broker serves; also after reloading()."""
        self._is_settling = False
        self._send(READY=1, STATUS=status)

    def reloading(self) -> None:
        self._send(RELOADING=1, MONOTONIC_USEC=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)

    def stopping(self) -> None:
        """May be called again."""
        if self._is_stopping:
            return
        self._is_settling = self._is_stopping = True
        self._send(STOPPING=1, STATUS="shutting down")

    def status(self, status: str) -> None:
        self._send(STATUS=status)

    async def beat(self) -> None:
        """Until cancelled, on the event loop: a loop that is stuck sends nothing, and the service manager acts."""
        if self._socket is None:
            return
        every_s = min(self._watchdog_s / 2, BEAT_S) if self._watchdog_s else BEAT_S
        while True:
            if self._watchdog_s:
                self._send(WATCHDOG=1)
            if self._is_settling:
                # A large log may take longer to recover, or to sync, than the unit's timeout.
                self._send(EXTEND_TIMEOUT_USEC=EXTENSION_S * 1_000_000)
            await asyncio.sleep(every_s)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, **fields: str | int) -> None:
        if self._socket is None:
            return
        # A line break would begin another field.
        lines = "\n".join(f"{name}={' '.join(str(value).split())}" for name, value in fields.items())
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            self._socket.sendto(lines.encode(errors="replace"), address)
        except OSError as problem:
            _log.debug("the service manager can't be told %s: %s", ", ".join(fields), problem.strerror)


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """After how long without a sign it acts; 0: it does not watch this process."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environ.get("WATCHDOG_USEC", "0")
    return int(text) / 1e6 if text.isascii() and text.isdecimal() else 0.0
