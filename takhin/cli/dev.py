"""takhin dev: a broker to play with."""

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from takhin.cli.command import EXIT_INTERRUPTED, EXIT_USAGE, CommandError
from takhin.cli.connection import DEFAULT_BROKER
from takhin.cli.output import say, write_text
from takhin.cli.program import Command, Option
from takhin.server_process import ServerFailed, ServerProcess

_FREE_ADDRESS = "127.0.0.1:0"
_LOOK_S = 0.2
_LOG_CHUNK_BYTES = 64 * 1024


def _dev(listen: str | None, setting: tuple[str, ...], log: bool) -> int:
    """Start a broker with an empty directory of its own, and say what to type next. Ctrl-C ends it, and removes the
    directory with all that is in it.
    """
    flags = [word for each in setting for word in _flag(each)]
    with _directory() as directory:
        server = ServerProcess(directory, listen=listen or _address(), flags=flags)
        try:
            server.start()
            write_text(_welcome(server))
            _watch(server, log)
        except ServerFailed as problem:
            # Its log's last line says why.
            raise CommandError(str(problem).splitlines()[-1].removeprefix("takhin-server: ")) from None
        except KeyboardInterrupt:
            say("")  # behind the terminal's ^C
            # It tells its clients; a second Ctrl-C ends it at once.
            with suppress(KeyboardInterrupt, ServerFailed):
                server.stop()
            return EXIT_INTERRUPTED
        finally:
            server.kill()
    return 0


def _flag(setting: str) -> tuple[str, str]:
    """takhin-server's flag for topics.partitions=3."""
    name, equals, value = setting.partition("=")
    if not equals or not name:
        raise CommandError(f"-s {setting!r} is not NAME=VALUE, as topics.partitions=3", EXIT_USAGE)
    return "--" + name.replace(".", "-").replace("_", "-"), value


def _address() -> str:
    """Where every command looks for a broker, when nobody is there."""
    port = int(DEFAULT_BROKER.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return _FREE_ADDRESS
    return f"127.0.0.1:{port}"


@contextmanager
def _directory() -> Iterator[Path]:
    """A directory that is removed, also when a signal or a closed terminal ends us."""
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    directory = Path(tempfile.mkdtemp(prefix="takhin-dev-"))
    try:
        yield directory
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        shutil.rmtree(directory, ignore_errors=True)


def _welcome(server: ServerProcess) -> str:
    address = server.address
    lines = [
        f"A broker serves on {address} until Ctrl-C.", f"Its data is in {server.directory}, and goes with it.", "",
        "In another terminal:", ""]
    if address.rpartition(":")[2] != DEFAULT_BROKER.rpartition(":")[2]:
        lines.append(f"  export TAKHIN_BROKER={address}")
    lines += [
        "  takhin topic create greetings", "  echo hello | takhin produce greetings", "  takhin consume greetings", ""]
    return "\n".join(lines) + "\n"


def _watch(server: ServerProcess, shows_log: bool) -> None:
    """Until it ends, which it should not. Raises ServerFailed then."""
    log = os.open(server.log_path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while (status := server.wait(_LOOK_S)) is None:
            while shows_log and (text := os.read(log, _LOG_CHUNK_BYTES)):
                os.write(2, text)
    finally:
        os.close(log)
    raise ServerFailed(f"the broker ended with exit status {status}: {server.log_end()}")


COMMANDS = {
    "dev": Command("dev", callback=_dev, help=_dev.__doc__, params=[
        Option(["-l", "--listen"], metavar="HOST:PORT",
               help="Where it serves.  [default: 127.0.0.1:9092, or a free port when that is taken]"),
        Option(["-s", "--setting"], multiple=True, metavar="NAME=VALUE",
               help="A setting of takhin-server, as topics.partitions=3; can be repeated."),
        Option(["--log"], is_flag=True, help="Show its log."),
    ]),
}
