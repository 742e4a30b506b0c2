"""fast_listen: where the fast front serves, that nobody has to want it, and what is said where it can't be had."""

import re
import signal
import socket
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2

from takhin.cli import fast_front
from takhin.cli.config_check import problems_of
from takhin.cli.doctor_checks import OK, WARN, Finding, ports
from takhin.config import gather_settings
from takhin.server_process import ServerProcess
from tests import fronts
from tests.cli.test_server_process import Launch, changed, complaint, free_port, health
from tests.cli.test_server_process import launch as launch
from tests.house.source import missing

SERVING = health_pb2.HealthCheckResponse.SERVING
FAST_FRONT = re.compile(r"takhin: fast front on (\S+)\n")
NOT_BUILT = (
    "fast_listen: the fast front is not built: install libnghttp2-dev and pkg-config, then build again (make build)")
# As it is where nghttp2 was missing when the extensions were compiled.
UNBUILT = """
    from takhin.cli import fast_front
    fast_front.is_built = lambda: False
"""


@pytest.fixture(autouse=True)
def _is_built() -> None:
    if fronts.is_missing(fronts.FAST):
        missing("the fast front, as libnghttp2-dev or pkg-config was when this was built,")


def with_default(port: int, more: str = "") -> list[str]:
    """takhin-server whose default is this port: others here may have the real one."""
    return changed(f"""
    from takhin.config import Settings
    Settings.__dataclass_fields__["fast_listen"].default = "127.0.0.1:{port}"
    # As it is told where few files may be open.
    os.environ["TAKHIN_GRPC__MAX_CONNECTIONS"] = "100"
    """ + more)


def test_it_serves_unless_told_otherwise(launch: Launch) -> None:
    port = free_port()
    process = launch("--listen", "127.0.0.1:0", program=with_default(port), TAKHIN_FAST_LISTEN=None)
    address = process.address()
    assert process.line() == f"takhin: fast front on 127.0.0.1:{port}\n"
    assert health(address) == SERVING == health(f"127.0.0.1:{port}")
    assert f"serves on {address} and 127.0.0.1:{port}, data in" in process.errors
    process.stop()
    assert process.rest_of_output() == "" and "WARNING" not in process.errors


def test_empty_turns_it_off(launch: Launch) -> None:
    process = launch("--listen", "127.0.0.1:0", "--fast-listen", "", program=with_default(free_port()))
    process.address()
    process.stop()
    assert process.rest_of_output() == "" and "WARNING" not in process.errors


def test_a_port_that_it_picks_and_a_socket(launch: Launch, tmp_path: Path) -> None:
    for listen in "127.0.0.1:0", f"unix:{tmp_path}/socket":
        process = launch("--listen", "127.0.0.1:0", "--fast-listen", listen)
        process.address()
        match = FAST_FRONT.fullmatch(process.line())
        assert match and health(match[1]) == SERVING
        process.stop()
    assert not (tmp_path / "socket").exists()


def test_whoever_has_its_default_port_may_keep_it(launch: Launch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = launch("--listen", "127.0.0.1:0", program=with_default(port), TAKHIN_FAST_LISTEN=None)
        assert health(process.address()) == SERVING
        process.stop()
    assert process.rest_of_output() == ""
    (warning,) = [line for line in process.errors.splitlines() if "WARNING" in line]
    assert f"no fast front: 127.0.0.1:{port} is in use by another process; nobody has set fast_listen" in warning


def test_an_address_that_is_asked_for_must_be_free(launch: Launch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = launch("--listen", "127.0.0.1:0", "--fast-listen", f"127.0.0.1:{port}")
        assert process.exit_status() == 1
    assert complaint(process) == f"takhin-server: 127.0.0.1:{port} is in use by another process"
    assert process.rest_of_output() == ""


def test_where_it_is_not_built_nobody_is_told(launch: Launch) -> None:
    program = with_default(free_port(), UNBUILT)
    process = launch("--listen", "127.0.0.1:0", program=program, TAKHIN_FAST_LISTEN=None)
    assert health(process.address()) == SERVING
    process.stop()
    assert process.rest_of_output() == "" and "WARNING" not in process.errors


def test_where_it_is_not_built_who_asks_is_told_what_to_install(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = launch("--listen", "127.0.0.1:0", "--fast-listen", "127.0.0.1:0", program=changed(UNBUILT))
    assert process.exit_status() == 1
    assert complaint(process) == f"takhin-server: {NOT_BUILT}"
    assert "recover" not in process.errors, "that comes first"
    monkeypatch.setattr(fast_front, "is_built", lambda: False)
    assert problems_of({"TAKHIN_FAST_LISTEN": "127.0.0.1:0"}, None) == ([NOT_BUILT], 1)
    assert problems_of({}, None) == ([], 0) == problems_of({"TAKHIN_FAST_LISTEN": ""}, None)[:1] + (0,)


@pytest.mark.parametrize(("listen", "fast_listen", "told"), [
    ("127.0.0.1:0", "0.0.0.0:0", "--fast-listen: 0.0.0.0:0 can be reached from other machines"),
    ("127.0.0.1:7", "127.0.0.1:7", "--fast-listen: 127.0.0.1:7 is listen's already"),
    ("unix:/a", "unix:/a", "--fast-listen: unix:/a is listen's already"),
    ("127.0.0.1:0", "9093", "--fast-listen: '9093' is not allowed; allowed: HOST:PORT"),
])
def test_addresses_that_can_not_be(launch: Launch, listen: str, fast_listen: str, told: str) -> None:
    process = launch("--listen", listen, "--fast-listen", fast_listen)
    assert process.exit_status() == 2
    assert told in complaint(process)
    # The command that looks before agrees.
    _, _, problems = gather_settings({"listen": listen, "fast_listen": fast_listen}, {}, None)
    assert len(problems) == 1 and problems[0] in complaint(process)


def test_two_ports_that_are_picked_are_two() -> None:
    assert gather_settings({"listen": "127.0.0.1:0", "fast_listen": "127.0.0.1:0"}, {}, None)[2] == []
    # The default gives way.
    assert gather_settings({"listen": "127.0.0.1:9093"}, {}, None)[2] == []


def test_a_socket_needs_a_directory(tmp_path: Path) -> None:
    given = {"TAKHIN_FAST_LISTEN": f"unix:{tmp_path}/none/s", "TAKHIN_DATA_DIR": str(tmp_path / "data")}
    (problem,), _ = problems_of(given, None)
    assert problem == f"can't listen on unix:{tmp_path}/none/s: there is no directory {tmp_path}/none"


def test_the_doctor_looks_at_it_too() -> None:
    def found(port: int, *, is_asked: bool) -> Finding:
        settings, _, _ = gather_settings({"listen": "127.0.0.1:0", "fast_listen": f"127.0.0.1:{port}"}, {}, None)
        (finding,) = [
            each for each in ports(settings, is_fast_asked=is_asked, is_running=False) if each.check == "fast_listen"]
        return finding

    free = free_port()
    assert found(free, is_asked=False) == Finding("fast_listen", OK, f"127.0.0.1:{free} is free")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert found(port, is_asked=False).status == WARN
        assert found(port, is_asked=True).status == "bad"


def test_a_second_signal_and_calls_on_it_are_as_on_the_other(launch: Launch) -> None:
    """It is told to end with the other: a connection to it does not keep the process."""
    process = launch("--listen", "127.0.0.1:0", "--fast-listen", "127.0.0.1:0")
    process.address()
    match = FAST_FRONT.fullmatch(process.line())
    assert match
    host, _, port = match[1].rpartition(":")
    with socket.create_connection((host, int(port))) as silent:
        silent.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        assert silent.recv(9)
        process.send(signal.SIGTERM)
        assert process.exit_status() == 0, process.errors


def test_a_broker_for_tests_has_it_where_it_is_told(tmp_path: Path) -> None:
    for flags in ([], ["--fast-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]):
        server = ServerProcess(tmp_path / f"with-{len(flags)}", flags=flags)
        server.directory.mkdir()
        server.start()
        try:
            assert health(server.address) == SERVING
            log = server.log_path.read_text()
            assert bool(re.search(r"serves on \S+ and 127\.0\.0\.1:[0-9]+, data", log)) == bool(flags)
        finally:
            server.stop()
