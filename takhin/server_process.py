"""A broker in a process of its own, for as long as ours lives: takhin dev, and tests.

Its standard input is a pipe whose other end we hold: when we are gone, however that came, it ends.
"""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# -P: not what lies in the current directory under the same name.
_PROGRAM = (sys.executable, "-P", "-m", "takhin.cli.attached")
_SERVING = re.compile(r"takhin: serving on (\S+:[0-9]+)")
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
# So much of its log is told when it does not start.
_LOG_TOLD_BYTES = 2000


class ServerFailed(Exception):
    """The broker did not start, or did not end well. The message has the end of its log."""


class ServerProcess:
    """takhin-server on directory/data, its log in directory/log. listen: HOST:PORT, with port 0 a free one; a restart
    keeps what was chosen. flags: of takhin-server; without --fast-listen there it has no fast front, as several may run
    at once.

    Attributes: address (HOST:PORT, from when it serves on), directory, data_dir, log_path.
    """

    def __init__(self, directory: Path, *, listen: str = "127.0.0.1:0", flags: Sequence[str] = ()):
        self.directory = directory
        self.data_dir = directory / "data"
        self.log_path = directory / "log"
        self.address = ""
        self._listen = listen
        self._flags = list(flags)
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; returns when it serves. Raises ServerFailed, OSError."""
        if self._popen is not None:
            raise ServerFailed("the broker runs already")
        command = [
            *_PROGRAM, "--listen", self.address or self._listen, "--data-dir", str(self.data_dir), "--fast-listen", "",
            *self._flags]
        with self.log_path.open("ab") as log:
            # In a process group of its own: Ctrl-C at the terminal is for us, and we end it in order.
            self._popen = subprocess.Popen(
                command, env=_environment(os.environ), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                process_group=0)
        match = _SERVING.fullmatch(self._first_line())
        if match is None:
            status = self._end(signal.SIGKILL)
            raise ServerFailed(f"the broker did not start (exit status {status}): {self.log_end()}")
        self.address = match[1]

    def _first_line(self) -> str:
        assert self._popen is not None and self._popen.stdout is not None
        descriptor = self._popen.stdout.fileno()
        line = b""
        until_s = time.monotonic() + START_TIMEOUT_S
        while not line.endswith(b"\n"):
            if not select.select([descriptor], [], [], max(until_s - time.monotonic(), 0))[0]:
                break
            if not (more := os.read(descriptor, 4096)):
                self._popen.wait()
                break
            line += more
        # Those of the fast front and of metrics may be with it.
        return line.decode(errors="replace").partition("\n")[0]

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        return self._popen.pid if self._popen is not None and self._popen.poll() is None else None

    @property
    def died(self) -> bool:
        """Whether it was started, and ended by itself."""
        return self._popen is not None and self._popen.poll() is not None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Its exit status; None when it has not ended within the time."""
        assert self._popen is not None
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """End it in order, if it runs. Raises ServerFailed when it does not end well."""
        if self._popen is None:
            return
        status = self._end(signal.SIGTERM)
        if status != 0:
            raise ServerFailed(f"the broker ended with exit status {status}: {self.log_end()}")

    def kill(self) -> None:
        """End it as kill -9 does, if it runs: what it had acknowledged is there when it starts again."""
        if self._popen is not None:
            self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop it, if it runs, and start it again, on the same address. Raises ServerFailed."""
        self.stop()
        self.start()

    def _end(self, number: signal.Signals) -> int:
        popen, self._popen = self._popen, None
        assert popen is not None and popen.stdin is not None and popen.stdout is not None
        popen.send_signal(number)
        try:
            status = popen.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            popen.kill()
            status = popen.wait()
        popen.stdin.close()
        popen.stdout.close()
        return status

    def log_end(self) -> str:
        """The last of its log."""
        try:
            with self.log_path.open("rb") as file:
                file.seek(max(self.log_path.stat().st_size - _LOG_TOLD_BYTES, 0))
                return file.read().decode(errors="replace").strip()
        except OSError:
            return ""


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Ours without what sets the command line's options: the server would take some for its own, misspelt."""
    return {name: value for name, value in environ.items() if not name.startswith("TAKHIN_")}
