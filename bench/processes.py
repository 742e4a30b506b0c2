"""The servers under load: processes of their own, pinned, with their CPU time and memory."""

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
LOG_TAIL_BYTES = 4000
FAST_FRONT = "takhin: fast front on "


class ServerFailed(Exception):
    """A server did not start, or ended while it was needed. The message holds the end of its log."""


@dataclass(frozen=True)
class Memory:
    """In KiB, from /proc/PID/status: resident now, its anonymous part, and the peak of the resident set so far."""

    rss_kib: int
    anon_kib: int
    peak_rss_kib: int


def pin(core: int | None) -> None:
    """Bind the calling thread, and what it starts from now on, to one core; None leaves it where it is."""
    if core is not None:
        os.sched_setaffinity(0, {core})


def cores() -> tuple[int | None, int | None]:
    """The core for the servers and the one for the client; None and None on a machine with fewer than two."""
    available = sorted(os.sched_getaffinity(0))
    return (available[0], available[1]) if len(available) > 1 else (None, None)


def exit_status_of(name: str, work: Callable[[Path], object], directory: Path | str | None,
                   *failures: type[Exception]) -> int:
    """Of a bench: give `work` a new folder in `directory` (None: TMPDIR), which is gone afterwards.

    0; 1 with a line for ServerFailed and for `failures`; 130 after Ctrl-C or SIGTERM, which is the same here also in a
    process that was started with SIGINT ignored, as in a shell's background.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="takhin-bench-", dir=directory) as made:
            work(Path(made))
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except (ServerFailed, *failures) as failure:
        print(f"{name}: {failure}", file=sys.stderr)
        return 1
    return 0


def broker_command() -> list[str]:
    """takhin-server of the environment this runs in.

    Raises ServerFailed when there is none: it comes into being with `make build`.
    """
    beside = Path(sys.executable).parent / "takhin-server"
    path = str(beside) if beside.exists() else shutil.which("takhin-server")
    if path is None:
        raise ServerFailed(f"no takhin-server beside {sys.executable} or on PATH: run 'make build'")
    return [path]


class ServerProcess:
    """One server: started, measured, stopped. It serves once its line "...: serving on HOST:PORT" has come.

    The process gets a session of its own, so that Ctrl-C reaches only us and we end it in order.
    """

    def __init__(self, command: list[str], log_path: Path, environment: Mapping[str, str] | None = None) -> None:
        """`environment` is added to ours. A broker has no fast front unless its command says so."""
        self._command = command
        self._environment = {**os.environ, "TAKHIN_FAST_LISTEN": "", **(environment or {})}
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""

    def __enter__(self) -> Self:
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        try:
            line = self.next_line()
            if ": serving on " not in line:
                raise ServerFailed(f"{self._command[0]} said {line!r} instead of where it serves\n{self.log_tail()}")
        except BaseException:
            self.stop()
            raise
        self.address = line.rpartition(" ")[2]
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def next_line(self) -> str:
        """What it writes to standard output next. Raises ServerFailed."""
        stdout = self._running().stdout
        assert stdout is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        received = b""
        while not received.endswith(b"\n"):
            if not select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise ServerFailed(f"{self._command[0]} serves not after {START_TIMEOUT_S:.0f} s\n{self.log_tail()}")
            chunk = os.read(stdout.fileno(), 1)
            if not chunk:
                raise ServerFailed(f"{self._command[0]} ended before it served\n{self.log_tail()}")
            received += chunk
        return received.decode().strip()

    def fast_address(self) -> str:
        """Where a broker's fast front serves: it is told on the line after the first. Raises ServerFailed."""
        line = self.next_line()
        if not line.startswith(FAST_FRONT):
            raise ServerFailed(f"no fast front, but {line!r}\n{self.log_tail()}")
        return line.removeprefix(FAST_FRONT)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerFailed(f"{self._command[0]} is not running")
        return self._process

    @property
    def pid(self) -> int:
        return self._running().pid

    def log_tail(self) -> str:
        """The last lines the server wrote to its standard error."""
        return self._log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")

    def require_alive(self) -> None:
        """Raises ServerFailed when the process has ended."""
        status = self._running().poll()
        if status is not None:
            raise ServerFailed(f"{self._command[0]} ended with status {status}\n{self.log_tail()}")

    def cpu_s(self) -> float:
        """CPU time, user and system, of all threads there are or were.

        From the process's own CPU clock: /proc/PID/stat has the same in ticks of 10 ms, too coarse for a round.
        """
        return time.clock_gettime((~self.pid << 3) | 2)  # The kernel's MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED).

    def memory(self) -> Memory:
        fields: dict[str, int] = {}
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("VmRSS", "RssAnon", "VmHWM"):
                fields[name] = int(value.split()[0])
        return Memory(rss_kib=fields["VmRSS"], anon_kib=fields["RssAnon"], peak_rss_kib=fields["VmHWM"])

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for what is still there after a while."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass
        finally:  # Also when another Ctrl-C interrupts the wait.
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
