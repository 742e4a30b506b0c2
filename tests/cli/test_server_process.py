"""takhin-server as its operator meets it: a process with a port, a data directory, signals, lines, exit statuses."""

import os
import re
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from takhin import __version__
from takhin.config import options
from takhin.v1 import takhin_pb2 as pb
from takhin.v1 import takhin_pb2_grpc

SERVER = [sys.executable, "-m", "takhin.cli.server"]
SERVING = re.compile(r"takhin: serving on (\S+:([0-9]+))\n")
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) +[\w.]+: \S.*")
DEADLINE_S = 60
TOPIC = "events"


class Process:
    """A running takhin-server; its standard error goes to a file."""

    def __init__(self, command: list[str], cwd: Path, variables: dict[str, str | None]):
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("TAKHIN_", "GRPC_"))}
        # Many run at once: none has the fast front's default port, unless it is told to.
        wanted = environ | {"TAKHIN_FAST_LISTEN": ""} | variables
        self.errors_path = cwd / f"stderr-{time.monotonic_ns()}"
        with self.errors_path.open("wb") as errors:
            self.popen = subprocess.Popen(
                command, cwd=cwd, env={name: value for name, value in wanted.items() if value is not None},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, bufsize=0)

    @property
    def errors(self) -> str:
        return self.errors_path.read_text()

    def line(self) -> str:
        """The next line of standard output; "" at its end."""
        assert self.popen.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.popen.stdout, selectors.EVENT_READ)
            assert selector.select(DEADLINE_S), f"nothing on standard output; standard error:\n{self.errors}"
        return self.popen.stdout.readline().decode()

    def address(self) -> str:
        """Wait until it serves; gives HOST:PORT."""
        line = self.line()
        match = SERVING.fullmatch(line)
        assert match, f"{line!r}; standard error:\n{self.errors}"
        return match[1]

    def wait_for_error(self, text: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.errors:
            assert time.monotonic() < deadline, f"no {text!r} in standard error:\n{self.errors}"
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def exit_status(self) -> int:
        return self.popen.wait(DEADLINE_S)

    def stop(self) -> None:
        """End it in order, and check that it does so without a complaint."""
        self.send(signal.SIGTERM)
        assert self.exit_status() == 0, self.errors
        assert "Traceback" not in self.errors

    def rest_of_output(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.read().decode()


Launch = Callable[..., Process]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """launch(*flags, program=SERVER, **variables): starts it in tmp_path, without variables that are None; whatever
    still runs at the end is killed."""
    running: list[Process] = []

    def start(*flags: str, program: list[str] | None = None, **variables: str | None) -> Process:
        running.append(Process([*(program or SERVER), *flags], tmp_path, variables))
        return running[-1]

    yield start
    for process in running:
        process.popen.kill()
        process.popen.wait()
        assert process.popen.stdout is not None
        process.popen.stdout.close()


def changed(code: str) -> list[str]:
    """A program that is takhin-server after `code` has run; takhin.broker.broker is at hand as `module`."""
    lines = ["import asyncio, logging, os, sys", "from takhin.broker import broker as module",
             "from takhin.errors import StartError", textwrap.dedent(code), "from takhin.cli.server import main",
             "sys.exit(main())"]
    return [sys.executable, "-c", "\n".join(lines)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def health(address: str) -> int:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return stub.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S, wait_for_ready=True).status


def complaint(process: Process) -> str:
    """The one line for the operator, after the process has ended."""
    errors = process.errors
    lines = [line for line in errors.splitlines() if line.startswith("takhin-server: ")]
    assert len(lines) == 1 and errors.endswith(lines[0] + "\n") and "Traceback" not in errors, errors
    return lines[0]


# Serving and ending.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_serves_then_ends_in_order(launch: Launch, number: signal.Signals) -> None:
    process = launch("--listen", "127.0.0.1:0", "--data-dir", "here")
    address = process.address()
    assert int(address.rpartition(":")[2]) > 0
    assert health(address) == health_pb2.HealthCheckResponse.SERVING
    process.send(number)
    assert process.exit_status() == 0, process.errors
    assert process.rest_of_output() == ""
    assert "takhin-server: " not in process.errors and "Traceback" not in process.errors
    for line in process.errors.splitlines():
        assert LOG_LINE.fullmatch(line), line


def test_serves_on_the_port_asked_for(launch: Launch) -> None:
    port = free_port()
    process = launch("--listen", f"127.0.0.1:{port}")
    assert process.address() == f"127.0.0.1:{port}"
    process.stop()


def test_serves_on_ipv6(launch: Launch) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    process = launch("--listen", "[::1]:0")
    address = process.address()
    assert address.startswith("[::1]:")
    assert health(address) == health_pb2.HealthCheckResponse.SERVING
    process.stop()


def test_what_is_buffered_reaches_the_disk_and_streams_are_told_to_end(launch: Launch) -> None:
    count = 500
    process = launch("--listen", "127.0.0.1:0", "--data-dir", "kept")
    with grpc.insecure_channel(process.address()) as channel:
        stub = takhin_pb2_grpc.TakhinServiceStub(channel)
        stub.CreateTopic(pb.CreateTopicRequest(name=TOPIC, num_partitions=1), timeout=DEADLINE_S)
        follower = stub.ConsumeMessages(pb.ConsumeMessagesRequest(topic=TOPIC, offset=-1, max_wait_ms=100))
        next(follower)
        for number in range(count):
            record = pb.Record(value=b"%d" % number)
            stub.ProduceMessage(pb.ProduceMessageRequest(topic=TOPIC, record=record), timeout=DEADLINE_S)
        process.send(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as ended:
            for _ in follower:
                pass
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        assert error_reason(ended.value) == "DRAINING"
    assert process.exit_status() == 0, process.errors

    process = launch("--listen", "127.0.0.1:0", "--data-dir", "kept")
    with grpc.insecure_channel(process.address()) as channel:
        stub = takhin_pb2_grpc.TakhinServiceStub(channel)
        request = pb.ConsumeMessagesRequest(topic=TOPIC, offset=-1, until_end=True)
        responses = stub.ConsumeMessages(request, timeout=DEADLINE_S)
        values = [record.value for response in responses for record in response.records]
    assert values == [b"%d" % number for number in range(count)]
    process.stop()


def error_reason(error: grpc.RpcError) -> str:
    details = {key: value for key, value in error.trailing_metadata()}["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(details).details[0].Unpack(info)
    return info.reason


def test_health_watch_tells_of_the_end(launch: Launch) -> None:
    process = launch("--listen", "127.0.0.1:0")
    told: list[int] = []
    with grpc.insecure_channel(process.address()) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
        told.append(next(watch).status)
        process.send(signal.SIGTERM)
        with pytest.raises(grpc.RpcError):
            told.extend(response.status for response in watch)
    assert told == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]
    assert process.exit_status() == 0, process.errors


SLOW_STOP = """
    class Slow(module.Broker):
        async def stop(self):
            sys.stderr.write("stopping\\n")
            await asyncio.sleep(600)
    module.Broker = Slow
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_second_signal_ends_it_at_once(launch: Launch, number: signal.Signals) -> None:
    process = launch("--listen", "127.0.0.1:0", program=changed(SLOW_STOP))
    process.address()
    process.send(signal.SIGTERM)
    process.wait_for_error("stopping\n")
    process.send(number)
    assert process.exit_status() == 128 + number
    assert number.name in complaint(process)


SLOW_START = """
    class Slow(module.Broker):
        async def start(self):
            sys.stderr.write("starting\\n")
            await asyncio.sleep(float(os.environ["START_S"]))
            await super().start()
    module.Broker = Slow
"""


def test_a_signal_during_the_start_ends_it_in_order(launch: Launch) -> None:
    process = launch("--listen", "127.0.0.1:0", program=changed(SLOW_START), START_S="1")
    process.wait_for_error("starting\n")
    process.send(signal.SIGTERM)
    assert process.exit_status() == 0, process.errors
    assert process.rest_of_output() == "", "it said that it serves after it was told to end"
    assert "Traceback" not in process.errors


def test_a_second_signal_during_the_start_ends_it_at_once(launch: Launch) -> None:
    process = launch("--listen", "127.0.0.1:0", program=changed(SLOW_START), START_S="600")
    process.wait_for_error("starting\n")
    process.send(signal.SIGINT)
    process.wait_for_error("SIGINT: shutting down")
    process.send(signal.SIGINT)
    assert process.exit_status() == 128 + signal.SIGINT


def test_ends_when_the_broker_must_give_up(launch: Launch) -> None:
    process = launch("--listen", "127.0.0.1:0", program=changed("""
        class Failing(module.Broker):
            async def wait_failed(self):
                await asyncio.sleep(0.1)
                return "the metadata store failed:\\ndisk I/O error"
        module.Broker = Failing
    """))
    process.address()
    assert process.exit_status() == 1
    assert complaint(process) == "takhin-server: the metadata store failed:\\ndisk I/O error"


# Failing to start.


def test_a_second_broker_on_the_same_data_directory(launch: Launch) -> None:
    first = launch("--listen", "127.0.0.1:0", "--data-dir", "taken")
    address = first.address()
    second = launch("--listen", "127.0.0.1:0", "--data-dir", "taken")
    assert second.exit_status() == 1
    assert "taken" in complaint(second)
    assert second.rest_of_output() == ""
    assert health(address) == health_pb2.HealthCheckResponse.SERVING
    first.stop()
    third = launch("--listen", "127.0.0.1:0", "--data-dir", "taken")
    third.address()
    third.stop()


def test_a_second_broker_on_the_same_port(launch: Launch) -> None:
    first = launch("--listen", "127.0.0.1:0", "--data-dir", "one")
    address = first.address()
    second = launch("--listen", address, "--data-dir", "two")
    assert second.exit_status() == 1
    assert address in complaint(second)
    assert second.rest_of_output() == ""
    assert health(address) == health_pb2.HealthCheckResponse.SERVING
    first.stop()


def test_a_data_directory_that_is_a_file(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    process = launch("--listen", "127.0.0.1:0", "--data-dir", "file")
    assert process.exit_status() == 1
    assert "file" in complaint(process)


def test_a_defect_during_the_start_shows_its_traceback(launch: Launch) -> None:
    process = launch("--listen", "127.0.0.1:0", program=changed("""
        class Broken(module.Broker):
            async def start(self):
                raise ZeroDivisionError("a defect")
        module.Broker = Broken
    """))
    assert process.exit_status() == 1
    assert "Traceback" in process.errors and "ZeroDivisionError: a defect" in process.errors
    for line in process.errors.splitlines():
        assert line.startswith("    ") or LOG_LINE.fullmatch(line), line


def test_an_installation_that_does_not_fit_together(launch: Launch, tmp_path: Path) -> None:
    stand_in = tmp_path / "older"
    stand_in.mkdir()
    (stand_in / "uvloop.py").write_text("raise RuntimeError('the generated code depends on grpcio>=99')")
    path = os.pathsep.join([str(stand_in), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = launch("--listen", "127.0.0.1:0", PYTHONPATH=path)
    assert process.exit_status() == 1
    assert "the generated code depends on grpcio>=99" in complaint(process)


# Settings.


def test_flag_over_environment_over_file_over_default(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "takhin.toml").write_text('listen = "127.0.0.4:0"\ndata_dir = "from-file"\n')
    flag = ["--listen", "127.0.0.2:0"]
    variable = {"TAKHIN_LISTEN": "127.0.0.3:0"}
    file = {"TAKHIN_CONFIG": "takhin.toml"}
    for flags, variables, host, directory in [
        (flag, variable | file, "127.0.0.2", "from-file"),
        ([], variable | file, "127.0.0.3", "from-file"),
        ([], file, "127.0.0.4", "from-file"),
        (["--config", "takhin.toml"], {"TAKHIN_CONFIG": "missing.toml"}, "127.0.0.4", "from-file"),
        ([], variable, "127.0.0.3", "data"),
    ]:
        process = launch(*flags, **variables)
        assert process.address().rpartition(":")[0] == host
        assert (tmp_path / directory / "LOCK").exists()
        process.stop()


@pytest.mark.parametrize(("flags", "variables", "told"), [
    (["--config", "bad.toml"], {}, ["bad.toml", "max_mesage_bytes", "[grpc] max_message_bytes"]),
    (["--config", "missing.toml"], {}, ["missing.toml", "No such file"]),
    (["--listen", "9092"], {}, ["--listen", "'9092'", "HOST:PORT"]),
    (["--insecure", "--listen", "a..b:0"], {}, ["--listen", "'a..b:0'", "HOST:PORT"]),
    (["--listen", "127.0.0.1:0", "--metrics-listen", "a..b:0"], {}, ["--metrics-listen", "'a..b:0'", "HOST:PORT"]),
    (["--topics-partitions", "0"], {}, ["--topics-partitions: 0", "1 to"]),
    (["--lisen", "127.0.0.1:0"], {}, ["--lisen"]),
    (["--listen"], {}, ["--listen"]),
    ([], {"TAKHIN_GRPC__MAX_MESSAGE_BYTES": "ten"}, ["TAKHIN_GRPC__MAX_MESSAGE_BYTES", "'ten'", "131072"]),
    ([], {"TAKHIN_LISTNE": "x"}, ["TAKHIN_LISTNE", "TAKHIN_LISTEN"]),
    ([], {"TAKHIN_LOG_LEVEL": "lou\nd"}, ["TAKHIN_LOG_LEVEL", "debug, info, warning, error"]),
])
def test_a_mistake_in_the_settings(
    launch: Launch, tmp_path: Path, flags: list[str], variables: dict[str, str], told: list[str]
) -> None:
    (tmp_path / "bad.toml").write_text("[grpc]\nmax_mesage_bytes = 1\n")
    process = launch(*flags, **variables)
    assert process.exit_status() == 2
    assert process.rest_of_output() == ""
    line = complaint(process)
    assert process.errors == line + "\n"
    for text in told:
        assert text in line


def test_what_others_can_reach_is_refused_unless_it_is_asked_for(launch: Launch) -> None:
    process = launch("--listen", "0.0.0.0:0")
    assert process.exit_status() == 2
    assert "--insecure serves there all the same" in complaint(process)
    process = launch("--listen", "0.0.0.0:0", "--insecure")
    process.address()
    process.wait_for_error("without encryption and authentication")
    process.stop()


def test_help_and_version(launch: Launch) -> None:
    process = launch("--version")
    assert process.exit_status() == 0
    assert process.rest_of_output() == f"takhin-server {__version__}\n"
    process = launch("--help")
    assert process.exit_status() == 0
    text = process.rest_of_output()
    for option in options():
        assert option.flag in text
    assert "--config" in text and "TAKHIN_GRPC__MAX_MESSAGE_BYTES" in text
    assert process.errors == ""


def test_help_and_mistakes_do_not_wait_for_heavy_imports(launch: Launch) -> None:
    program = [sys.executable, "-c", textwrap.dedent("""
        import sys
        from takhin.cli.server import main
        for argv in ["--help"], ["--no-such-flag"]:
            try:
                main(argv)
            except SystemExit:
                pass
        main(["--listen", "nowhere"])
        print("imported:", sorted({"grpc", "uvloop", "google.protobuf", "sqlite3"} & set(sys.modules)))
    """)]
    process = launch(program=program)
    assert process.exit_status() == 0
    assert process.rest_of_output().endswith("imported: []\n")


# The process itself.


def test_a_closed_pipe_on_standard_output_does_not_matter(launch: Launch) -> None:
    port = free_port()
    process = launch("--listen", f"127.0.0.1:{port}", program=changed(SLOW_START), START_S="0.5")
    process.wait_for_error("starting\n")
    assert process.popen.stdout is not None
    process.popen.stdout.close()
    assert health(f"127.0.0.1:{port}") == health_pb2.HealthCheckResponse.SERVING
    process.stop()


def test_no_file_of_the_log_takes_the_place_of_closed_standard_streams(launch: Launch) -> None:
    port = free_port()
    closing = ["sh", "-c", f"exec {shlex.join(SERVER)} \"$@\" <&- >&- 2>&-", "sh"]
    process = launch("--listen", f"127.0.0.1:{port}", program=closing)
    assert health(f"127.0.0.1:{port}") == health_pb2.HealthCheckResponse.SERVING
    for descriptor in range(3):
        assert os.readlink(f"/proc/{process.popen.pid}/fd/{descriptor}") == os.devnull
    process.stop()


def test_a_low_limit_of_open_files_is_lived_with(launch: Launch) -> None:
    limited = ["sh", "-c", f"ulimit -S -n 256; ulimit -H -n 512; exec {shlex.join(SERVER)} \"$@\"", "sh"]
    process = launch("--listen", "127.0.0.1:0", program=limited)
    assert health(process.address()) == health_pb2.HealthCheckResponse.SERVING
    assert "Max open files            512                  512" in Path(f"/proc/{process.popen.pid}/limits").read_text()
    assert "limits.open_files is 256 instead of 4096" in process.errors
    process.stop()


SHOW_ENVIRONMENT = """
    assert "grpc" not in sys.modules, "grpc reads its environment when it is imported"
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "grpc":
                for each in "EXPERIMENTS", "ENABLE_FORK_SUPPORT", "VERBOSITY":
                    print(each, os.environ.get("GRPC_" + each), flush=True)
    sys.meta_path.insert(0, Finder())
"""


def test_grpc_is_imported_with_its_environment_set(launch: Launch) -> None:
    process = launch("--listen", "127.0.0.1:0", program=changed(SHOW_ENVIRONMENT), GRPC_VERBOSITY="INFO")
    assert process.line() == "EXPERIMENTS -event_engine_listener,-event_engine_client\n"
    assert process.line() == "ENABLE_FORK_SUPPORT 0\n"
    assert process.line() == "VERBOSITY INFO\n", "the operator's own value stands"
    process.address()
    process.stop()


def test_a_message_cannot_forge_a_line_of_the_log(launch: Launch) -> None:
    process = launch("--listen", "127.0.0.1:0", program=changed("""
        class Talking(module.Broker):
            async def start(self):
                await super().start()
                text = "one\\r\\x1b[2K\\n2030-01-01T00:00:00.000Z INFO forged: two"
                logging.getLogger("takhin.test").warning("%s", text)
        module.Broker = Talking
    """))
    process.address()
    process.stop()
    lines = process.errors_path.read_bytes().splitlines()
    (line,) = (line for line in lines if b"forged" in line)
    assert line.endswith(rb"takhin.test: one\r\x1b[2K\n2030-01-01T00:00:00.000Z INFO forged: two")


def test_lines_of_the_log_follow_the_level(launch: Launch) -> None:
    process = launch("--listen", "127.0.0.1:0", "--log-level", "error")
    process.address()
    process.stop()
    assert process.errors == ""


def test_many_starts_at_once_leave_one_broker(launch: Launch) -> None:
    """The lock is taken before anything else: of several that start together one serves, the others say why not."""
    processes = [launch("--listen", "127.0.0.1:0", "--data-dir", "contested") for _ in range(3)]
    lines: list[str] = []
    readers = [threading.Thread(target=lambda each=each: lines.append(each.line())) for each in processes]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(DEADLINE_S)
    assert sorted(bool(SERVING.fullmatch(line)) for line in lines) == [False, False, True]
    for process in processes:
        process.send(signal.SIGTERM)
    assert sorted(process.exit_status() for process in processes) == [0, 1, 1]
