"""What systemd hears of a real server, over a real datagram socket; the unit and the container's file."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker_process import DEADLINE_S, SERVER, BrokerProcess, new_topic, produce, wait_until
from tests.cli.test_server_process import changed
from tests.house.source import ROOT, missing
from tests.secured import Secured

Fields = dict[str, str]
# Of the kernel's prctl, from 6.3 on.
PR_SET_MDWE = 65


class Manager:
    """The service manager's end of the socket. name: a path, or @ and an abstract name."""

    def __init__(self, name: str):
        self.name = name
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + name[1:] if name[0] == "@" else name)
        self.socket.settimeout(DEADLINE_S)
        self.told: list[Fields] = []

    def next(self, key: str) -> Fields:
        """The next message that has the key."""
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            lines = self.socket.recv(4096).decode().split("\n")
            fields = dict(line.split("=", 1) for line in lines)
            self.told.append(fields)
            if key in fields:
                return fields
        raise AssertionError(f"no {key} among {self.told}")

    def drain(self) -> None:
        self.socket.setblocking(False)
        try:
            while True:
                self.socket.recv(4096)
        except BlockingIOError:
            self.socket.settimeout(DEADLINE_S)


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    found = Manager(str(tmp_path / "notify") if request.param == "path" else f"@takhin-test-{os.getpid()}")
    yield found
    found.socket.close()


def test_from_start_to_stop(tmp_path: Path, manager: Manager) -> None:
    broker = BrokerProcess(
        tmp_path / "b", variables={"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "200000"})
    broker.start()
    try:
        ready = manager.next("READY")
        assert ready["READY"] == "1" and ready["STATUS"] == f"serving on {broker.address}"
        assert {"STATUS": "recovering the log"} in manager.told
        assert any("EXTEND_TIMEOUT_USEC" in each for each in manager.told)
        manager.drain()
        begun_s = time.monotonic()
        for _ in range(5):
            assert manager.next("WATCHDOG") == {"WATCHDOG": "1"}
        # At half of what it may take, so five of them take five halves; slowness is no failure here.
        assert time.monotonic() - begun_s >= 0.3
        before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        broker.send(signal.SIGHUP)
        reloading = manager.next("RELOADING")
        assert reloading["RELOADING"] == "1"
        assert before_us <= int(reloading["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert manager.next("READY")["STATUS"] == f"serving on {broker.address}"
        broker.terminate()
        assert manager.next("STOPPING") == {"STOPPING": "1", "STATUS": "shutting down"}
    finally:
        broker.close()
    broker.check()


def test_a_loop_that_is_stuck_is_heard_of_no_more(tmp_path: Path) -> None:
    manager = Manager(f"@takhin-stuck-{os.getpid()}")
    stuck = changed("""
        import signal, time
        signal.signal(signal.SIGUSR1, lambda *_: loops[0].call_soon_threadsafe(time.sleep, 3600))
        loops = []
        start = module.Broker.start
        async def noted(self):
            loops.append(asyncio.get_running_loop())
            await start(self)
        module.Broker.start = noted
    """)
    broker = BrokerProcess(
        tmp_path / "b", program=stuck, variables={"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "100000"})
    broker.start()
    try:
        manager.next("READY")
        manager.next("WATCHDOG")
        broker.send(signal.SIGUSR1)
        time.sleep(0.5)
        manager.drain()
        manager.socket.settimeout(1)
        with pytest.raises(TimeoutError):
            manager.socket.recv(4096)
    finally:
        broker.close()


@pytest.mark.parametrize("variables", [
    {}, {"WATCHDOG_USEC": "100000"}, {"NOTIFY_SOCKET": "/no/such/socket", "WATCHDOG_USEC": "100000"},
    {"NOTIFY_SOCKET": "vsock:2:1234"}, {"NOTIFY_SOCKET": "@" + "x" * 200},
])
def test_it_serves_where_nobody_listens(tmp_path: Path, variables: dict[str, str]) -> None:
    broker = BrokerProcess(tmp_path / "b", variables=variables).start()
    broker.send(signal.SIGHUP)
    broker.wait_for_log("reloaded: no setting has changed")
    broker.terminate()
    broker.check()
    assert ("nobody is told" in broker.stderr) is variables.get("NOTIFY_SOCKET", "").startswith("vsock")


def test_the_watchdog_of_another_process_is_left_alone(tmp_path: Path) -> None:
    manager = Manager(f"@takhin-other-{os.getpid()}")
    broker = BrokerProcess(tmp_path / "b", variables={
        "NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}).start()
    manager.next("READY")
    broker.terminate()
    manager.next("STOPPING")
    assert not any("WATCHDOG" in each for each in manager.told)


def test_what_keeps_it_from_being_ready_is_shown(tmp_path: Path) -> None:
    manager = Manager(f"@takhin-status-{os.getpid()}")
    # More than any disk has.
    broker = BrokerProcess(
        tmp_path / "b", "--limits-min-free-bytes", str(1 << 40), variables={"NOTIFY_SOCKET": manager.name}).start()
    try:
        wait_until(lambda: manager.next("STATUS")["STATUS"] == "not ready: the disk is full")
        broker.send(signal.SIGHUP)
        manager.next("RELOADING")
        assert manager.next("READY") == {"READY": "1", "STATUS": "not ready: the disk is full"}
    finally:
        broker.close()


# The unit


def unit() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (ROOT / "deploy" / "takhin.service").read_text().splitlines():
        if match := re.fullmatch(r"(\w+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def test_the_unit_asks_for_what_the_server_does() -> None:
    told = unit()
    assert told["Type"] == ["notify"] and int(told["WatchdogSec"][0]) > 0
    assert told["ExecReload"] == ["kill -HUP $MAINPID"]
    assert told["KillSignal"] == ["SIGTERM"]
    (command,) = told["ExecStart"]
    assert command.split()[1:] == ["--config", "/etc/takhin/takhin.toml", "--data-dir", "/var/lib/takhin"]


def test_systemd_has_nothing_against_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        missing("systemd-analyze")
    server = Path(sys.executable).parent / "takhin-server"
    path = tmp_path / "takhin.service"
    # The program is where this installation has it.
    text = (ROOT / "deploy" / "takhin.service").read_text()
    path.write_text(text.replace("/opt/takhin/bin/takhin-server", str(server)))
    done = subprocess.run([str(analyze), "verify", "--man=no", str(path)], capture_output=True, timeout=DEADLINE_S)
    told = [line for line in done.stderr.decode().splitlines() if "takhin" in line]
    assert done.returncode == 0 and told == [], done.stderr.decode()


def test_it_serves_without_memory_that_is_writable_and_executable(tmp_path: Path) -> None:
    """As MemoryDenyWriteExecute has it: by the kernel's own switch for it, which programs started from here inherit."""
    code = f"import ctypes, os, sys; ok = ctypes.CDLL(None).prctl({PR_SET_MDWE}, 1, 0, 0, 0) == 0"
    if subprocess.run([sys.executable, "-c", code + "; sys.exit(not ok)"]).returncode:
        missing("the kernel's PR_SET_MDWE")
    secured = Secured(tmp_path / "secured", client_ca=True)
    deny = [sys.executable, "-c", code + f"; os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])"]
    broker = BrokerProcess(
        tmp_path / "b", "--metrics-listen", "127.0.0.1:0", program=[*deny, *SERVER[1:]], secured=secured).start()
    try:
        produce(broker.stub(), new_topic(broker.stub()), b"value", acks=-1)
        broker.terminate()
        broker.check()
    finally:
        broker.close()


# The container


def dockerfile() -> list[tuple[str, str]]:
    """Its instructions, each with what follows it."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines if line.strip()]


def test_the_container_is_slim_and_not_root() -> None:
    told = dockerfile()
    last_stage = told[max(number for number, (word, _) in enumerate(told) if word == "FROM"):]
    assert "-slim" in last_stage[0][1]
    words = [word for word, _ in last_stage]
    assert words.count("USER") == 1 and dict(last_stage)["USER"] == "takhin"
    # What runs as root comes before.
    assert "RUN" not in words[words.index("USER"):]
    assert "gcc" not in " ".join(rest for _, rest in last_stage)


def test_what_the_container_s_file_names_is_there() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for word, rest in dockerfile():
        if word == "COPY" and not rest.startswith("--from"):
            for name in rest.split()[:-1]:
                assert (ROOT / name).exists() and f"!{name}" in ignored, name


def test_the_health_check_and_the_entry_point(tmp_path: Path) -> None:
    told = dict(dockerfile())
    (program,) = json.loads(told["ENTRYPOINT"])
    check = json.loads(told["HEALTHCHECK"].partition("CMD ")[2])
    bin_dir = Path(sys.executable).parent
    assert (bin_dir / program).exists()
    secured, elsewhere = Secured(tmp_path / "secured"), Secured(tmp_path / "elsewhere")
    # The certificates of most do not bear the name that the check connects to.
    elsewhere.write_server(elsewhere.authority, "broker.example")
    named = {"TAKHIN_TLS_SERVER_NAME": "broker.example"}
    for each, more, is_well in (
        (None, {}, True), (secured, {}, True), (secured, named, False), (elsewhere, named, True),
        (elsewhere, {}, False),
    ):
        directory = tmp_path / ("plain" if each is None else f"{each.directory.name}-{len(more)}")
        broker = BrokerProcess(directory, program=[str(bin_dir / program)], secured=each)
        broker.start()
        # As in the container, but for the port, which may be somebody's here.
        port = broker.address.rpartition(":")[2]
        command = [str(bin_dir / check[0]), *(word.replace(":9092", f":{port}") for word in check[1:])]
        variables = more if each is None else {"TAKHIN_TLS_CA": str(each.directory / "ca.pem")} | more
        environ = {name: value for name, value in os.environ.items() if not name.startswith("TAKHIN_")} | variables
        assert (subprocess.run(command, env=environ, timeout=DEADLINE_S).returncode == 0) is is_well
        broker.terminate()
        assert subprocess.run(command, env=environ, timeout=DEADLINE_S).returncode != 0
