"""takhin doctor: what it finds on a real machine and in real directories, and in what a machine may say of itself."""

import json
import os
import shutil
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from takhin.cli import doctor_checks
from takhin.cli.doctor_checks import Finding, clock, memory, memory_limit, newest_append_ms, ports
from takhin.cli.doctor_disk import filesystem, mount_of, sync_time
from takhin.config import Settings
from tests.broker_process import BrokerProcess, new_topic, produce
from tests.cli.run import TAKHIN, environment, takhin
from tests.house.source import missing


def doctor(*arguments: object, status: int = 0, **variables: str) -> dict[str, dict[str, Any]]:
    found = takhin(None, "doctor", *arguments, status=status, **variables).objects
    assert len({each["check"] for each in found}) == len(found) or status
    assert all(each["advice"] for each in found if each["status"] != "ok")
    return {each["check"]: each for each in found}


def test_a_machine_that_runs_these_tests_will_do(tmp_path: Path) -> None:
    at_will = {"TAKHIN_LISTEN": "127.0.0.1:0", "TAKHIN_LIMITS__MIN_FREE_BYTES": "0"}
    found = doctor("--data-dir", tmp_path / "new" / "data", **at_will)
    assert not (tmp_path / "new").exists() and not os.listdir(tmp_path)
    assert {"settings", "python", "grpcio", "sqlite", "kernel", "open files", "memory", "data directory", "filesystem",
            "space", "cached reads", "reserved room", "sync", "listen", "clock"} <= set(found)
    assert found["data directory"]["found"].startswith(f"{tmp_path}/new/data is not there yet")
    assert "fdatasync of 4 KiB, 50 times: p50 " in found["sync"]["found"]
    assert json.loads(takhin(None, "doctor", "-O", "json", "--data-dir", tmp_path, **at_will).out)[0]["status"] == "ok"
    assert b"WHAT TO DO" in takhin(None, "doctor", "-O", "table", "--data-dir", tmp_path, **at_will).out


def test_beside_a_broker(broker: BrokerProcess) -> None:
    produce(broker.stub(), new_topic(broker.stub()), b"value", acks=-1)
    found = doctor("--data-dir", broker.data_dir, TAKHIN_LISTEN=broker.address)
    assert found["lock"]["found"] == f"a broker uses the data directory (process {broker.pid})"
    assert found["listen"] == {
        "check": "listen", "status": "ok", "found": f"{broker.address} is in use, and a broker runs", "advice": ""}
    broker.terminate()
    found = doctor("--data-dir", broker.data_dir, TAKHIN_LISTEN=broker.address)
    assert "lock" not in found and found["listen"]["found"] == f"{broker.address} is free"
    assert found["newest record"]["status"] == "ok" and found["data directory"]["status"] == "ok"


def test_what_is_bad(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"127.0.0.1:{server.getsockname()[1]}"
        found = doctor("--data-dir", tmp_path, status=1, TAKHIN_LISTEN=taken)
        assert (found["listen"]["status"], found["listen"]["found"]) == ("bad", f"{taken} is in use by another process")
    found = doctor("--data-dir", tmp_path, status=1, TAKHIN_LIMITS__MIN_FREE_BYTES=str(1 << 40))
    assert found["space"]["status"] == "bad" and "nothing is appended" in found["space"]["found"]
    found = doctor("--data-dir", tmp_path, status=1, TAKHIN_LIMITS__RING_BYTES=str(1 << 40))
    assert found["memory"]["status"] == "bad"
    (tmp_path / "file").touch()
    found = doctor("--data-dir", tmp_path / "file", status=1)
    assert found["data directory"]["found"] == f"{tmp_path}/file is not a directory"
    (tmp_path / "takhin.toml").write_text('lisen = "x"\n[grpc]\nmax_message_bytes = 1\n')
    wrong = takhin(
        None, "doctor", "--config", tmp_path / "takhin.toml", "--data-dir", tmp_path, status=1).objects
    assert [each["status"] for each in wrong if each["check"] == "settings"] == ["bad", "bad"]
    # What takhin config check looks for, too.
    (tmp_path / "takhin.toml").write_text('[tls]\ncert = "/no/where.pem"\nkey = "/no/where.key"\n')
    found = doctor("--config", tmp_path / "takhin.toml", "--data-dir", tmp_path, status=1)
    assert found["settings"]["status"] == "bad" and "/no/where.pem: can't be read" in found["settings"]["found"]


def test_a_host_that_is_none(tmp_path: Path) -> None:
    for host in "a..b", ".", "a" * 70:
        found = doctor("--data-dir", tmp_path, status=1, TAKHIN_LISTEN=f"{host}:9")
        assert found["settings"]["status"] == "bad"
        assert "is not allowed; allowed: HOST:PORT" in found["settings"]["found"]
    # Not known as settings, yet told in a line.
    (found_there,) = ports(
        replace(Settings(), listen="a..b:9", fast_listen=""), is_fast_asked=False, is_running=False)
    assert found_there.found == "can't listen on a..b:9: the host is not known (that is no host's name)"


def test_a_low_limit_of_open_files(tmp_path: Path) -> None:
    command = f"ulimit -n 1000; exec {' '.join(TAKHIN)} doctor --data-dir {tmp_path}"
    done = subprocess.run(["bash", "-c", command], env=environment(), capture_output=True, check=False)
    (found,) = [each for each in map(json.loads, done.stdout.splitlines()) if each["check"] == "open files"]
    assert found["status"] == "warn" and "500 segment files" in found["found"] and "8,192" in found["advice"]


def test_a_directory_that_others_can_get_at(tmp_path: Path) -> None:
    for mode, told in (0o777, "can be written by others"), (0o755, "can be read by everybody"):
        (tmp_path / "data").mkdir(mode, exist_ok=True)
        (tmp_path / "data").chmod(mode)
        found = doctor("--data-dir", tmp_path / "data", TAKHIN_LISTEN="127.0.0.1:0")["data directory"]
        assert found["status"] == "warn" and told in found["found"]
    (tmp_path / "data").chmod(0o700)
    if os.geteuid() == 0:
        (tmp_path / "data" / "LOCK").touch()
        os.chown(tmp_path / "data" / "LOCK", 4711, 4711)
        found = doctor("--data-dir", tmp_path / "data", TAKHIN_LISTEN="127.0.0.1:0")["data directory"]
        assert found["status"] == "warn" and "but not LOCK" in found["found"]


def test_a_filesystem_in_memory() -> None:
    if not os.path.isdir("/dev/shm") or mount_of("/dev/shm", "/proc/self/mountinfo")[0] != "tmpfs":
        missing("a tmpfs in /dev/shm")
    directory = Path("/dev/shm/takhin-doctor")
    try:
        directory.mkdir(mode=0o700)
        found = doctor("--data-dir", directory, TAKHIN_LISTEN="127.0.0.1:0")
        assert found["filesystem"]["status"] == "warn" and found["filesystem"]["found"].startswith("tmpfs on ")
        assert not os.listdir(directory)
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize(("kind", "status"), [
    ("ext4", "ok"), ("xfs", "ok"), ("nfs4", "warn"), ("fuse.sshfs", "warn"), ("overlay", "warn"), ("tmpfs", "warn")])
def test_filesystems(tmp_path: Path, kind: str, status: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"20 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n21 20 0:99 / {tmp_path} rw - {kind} somewhere rw\n"
        f"22 20 0:98 / {tmp_path}-other rw - nfs elsewhere rw\n")
    found = filesystem(str(tmp_path), Finding, str(mounts))
    assert (found.status, found.found) == (status, f"{kind} on {tmp_path}")
    assert bool(found.advice) == (status != "ok")


def test_memory_of_control_groups(tmp_path: Path) -> None:
    machine, whose = memory_limit(str(tmp_path))
    assert whose == "the machine's" and machine > 0
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/system.slice/takhin.service\n")
    group = tmp_path / "sys/fs/cgroup/system.slice"
    (group / "takhin.service").mkdir(parents=True)
    (group / "takhin.service/memory.max").write_text("max\n")
    assert memory_limit(str(tmp_path)) == (machine, "the machine's")
    (group / "memory.max").write_text("400000000\n")
    assert memory_limit(str(tmp_path)) == (400_000_000, "the control group's")
    (group / "takhin.service/memory.max").write_text("300000000\n")
    assert memory_limit(str(tmp_path)) == (300_000_000, "the control group's")
    # The older kind.
    (tmp_path / "proc/self/cgroup").write_text("7:memory:/box\n6:cpu:/box\n")
    (tmp_path / "sys/fs/cgroup/memory/box").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory/box/memory.limit_in_bytes").write_text("200000000\n")
    assert memory_limit(str(tmp_path)) == (200_000_000, "the control group's")


@pytest.mark.parametrize(("allowed", "status"), [
    (2 << 30, "ok"), (1 << 30, "warn"), (350 << 20, "warn"), (300 << 20, "bad")])
def test_memory_against_the_budgets(monkeypatch: pytest.MonkeyPatch, allowed: int, status: str) -> None:
    monkeypatch.setattr(doctor_checks, "memory_limit", lambda: (allowed, "the control group's"))
    assert memory(Settings()).status == status


@pytest.mark.parametrize(("took_ms", "status"), [
    ([0.5] * 50, "ok"), ([0.5] * 49 + [80.0], "warn"), ([0.001] * 50, "warn"), ([30.0] * 50, "ok")])
def test_what_syncs_mean(took_ms: list[float], status: str) -> None:
    found = sync_time(took_ms, Finding)
    assert found.status == status and f"p50 {took_ms[25]:.3g} ms" in found.found


def test_syncs_are_real(tmp_path: Path, strace: list[str]) -> None:
    code = (f"from takhin.cli.doctor_disk import sync_times_ms; import os; fd = os.open({str(tmp_path / 'f')!r}, "
            "os.O_RDWR | os.O_CREAT); print(len(sync_times_ms(fd, 7)))")
    done = subprocess.run(
        [*strace, "-e", "trace=fdatasync", "-o", str(tmp_path / "trace"), TAKHIN[0], "-c", code], capture_output=True,
        check=True)
    assert done.stdout == b"7\n" and (tmp_path / "trace").read_text().count("fdatasync(") == 7


def test_a_clock_that_was_wrong(broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    produce(broker.stub(), new_topic(broker.stub()), b"value", acks=-1)
    broker.terminate()
    newest_ms = newest_append_ms(str(broker.data_dir))
    assert newest_ms is not None
    monkeypatch.setattr(doctor_checks.time, "time", lambda: newest_ms / 1000 - 3600)
    (found,) = [each for each in clock(str(broker.data_dir)) if each.check == "newest record"]
    assert found.status == "warn" and "3,600 s from now" in found.found
    assert newest_append_ms("/no/where") is None
