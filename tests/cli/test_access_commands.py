"""takhin key, acl and cert, as docs/security.md has it: from a first start to a client that may do a little."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.broker_process import BrokerProcess
from tests.secured import IS_DEFAULT

pytestmark = pytest.mark.skipif(IS_DEFAULT, reason="it has authentication of its own")

Takhin = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def takhin(tmp_path: Path) -> Takhin:
    """takhin(argument, ..., variable=value): a command, run in tmp_path."""

    def run(*arguments: str, status: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("TAKHIN_")}
        environ["PYTHONPATH"] = str(Path(__file__).parents[2])
        done = subprocess.run(
            [sys.executable, "-m", "takhin.cli.main", *arguments], cwd=tmp_path, env=environ | variables,
            stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        return done

    return run


def test_from_the_first_start_to_a_client_that_may_a_little(takhin: Takhin, tmp_path: Path) -> None:
    takhin("cert", "dev", "certs", "--client", "etl")
    (tmp_path / "admin.key").write_text(takhin("key", "new").stdout)
    broker = BrokerProcess(
        tmp_path / "broker", "--tls-cert", str(tmp_path / "certs/server.pem"), "--tls-key",
        str(tmp_path / "certs/server.key"), "--auth-keys", "--auth-admin-key", str(tmp_path / "admin.key")).start()
    try:
        tls = {"TAKHIN_BROKER": broker.address, "TAKHIN_TLS_CA": "certs/ca.pem"}
        admin = tls | {"TAKHIN_API_KEY": (tmp_path / "admin.key").read_text().strip()}
        refused = takhin("topic", "list", status=4, **tls).stderr
        assert "the call has no credentials" in refused and "TAKHIN_API_KEY" in refused
        takhin("topic", "create", "orders", "secret", **admin)

        made = takhin("key", "create", "billing", "--expires", "90d", "-O", "table", **admin)
        assert "for key:billing" in made.stderr and "it is not shown again" in made.stderr
        (listed,) = [json.loads(line) for line in takhin("key", "list", **admin).stdout.splitlines()]
        assert listed["principal"] == "key:billing" and not listed["is_expired"]
        assert listed["expires_ms"] - listed["created_ms"] == 90 * 86_400_000
        billing = tls | {"TAKHIN_API_KEY": made.stdout.strip()}
        assert takhin("topic", "list", **billing).stdout == ""

        created = takhin(
            "acl", "create", "key:billing", "--allow", "produce", "--allow", "group", "-t", "ord", "-g", "b",
            "--prefix", **admin)
        assert "created 2 entries" in created.stderr
        again = takhin(
            "acl", "create", "key:billing", "--allow", "produce", "--deny", "produce", "-t", "ord", "--prefix", **admin)
        assert "created 1 entry; 1 were there already" in again.stderr
        assert takhin("topic", "list", **billing).stdout == "", "denied is denied"
        takhin("acl", "delete", "key:billing", "--deny", "produce", "-t", "ord", "--prefix", "--yes", **admin)
        seen = takhin("topic", "list", **billing).stdout.splitlines()
        assert [json.loads(line)["topic"] for line in seen] == ["orders"]
        denied = takhin("topic", "describe", "secret", status=4, **billing).stderr
        assert denied == takhin("topic", "describe", "nought", status=4, **billing).stderr.replace("nought", "secret")
        rows = takhin("acl", "list", "-O", "table", **admin).stdout.splitlines()
        assert [row.split() for row in rows[1:]] == [
            ["key:billing", "allow", "group", "group", "b*"], ["key:billing", "allow", "produce", "topic", "ord*"]]

        asked = takhin("key", "revoke", listed["id"], status=2, **admin).stderr
        assert "nothing was changed" in asked
        takhin("key", "revoke", listed["id"], "--yes", **admin)
        assert "not known" in takhin("topic", "list", status=4, **billing).stderr
        assert "takhin key list" in takhin("key", "revoke", listed["id"], "-y", status=3, **admin).stderr
    finally:
        broker.terminate()
    broker.check()


@pytest.mark.parametrize(("arguments", "told"), [
    (["key:a", "--topic", "x"], "--allow or --deny"),
    (["key:a", "--allow", "produce"], "--topic, --group, --producer or --cluster"),
    (["key:a", "--allow", "produce", "--group", "g"], "produce is done with a topic or a producer, and none is named"),
    (["key:a", "--allow", "group", "--cluster"], "group is done with a group, and none is named"),
    (["key:a", "--allow", "write", "--topic", "x"], "'write' is not one of"),
])
def test_entries_that_mean_nothing(takhin: Takhin, arguments: list[str], told: str) -> None:
    assert told in takhin("acl", "create", *arguments, status=2).stderr


def test_certificates_to_try_with(takhin: Takhin, tmp_path: Path) -> None:
    done = takhin("cert", "dev", "certs", "--host", "broker.example", "--host", "10.0.0.1")
    names = ["ca.pem", "client.key", "client.pem", "server.key", "server.pem"]
    assert sorted(path.name for path in (tmp_path / "certs").iterdir()) == names
    assert sorted(done.stdout.split()) == [f"certs/{name}" for name in names]
    assert "--tls-client-ca certs/ca.pem --auth-admins cert:spiffe://takhin.dev/client" in done.stderr
    for name in "client.key", "server.key":
        assert stat.S_IMODE((tmp_path / "certs" / name).stat().st_mode) == 0o600
    before = {path: path.read_bytes() for path in (tmp_path / "certs").iterdir()}
    assert "certs/ca.pem is there already" in takhin("cert", "dev", "certs", status=1).stderr
    assert {path: path.read_bytes() for path in (tmp_path / "certs").iterdir()} == before
    assert "no certificate can be made" in takhin("cert", "dev", "more", "--client", "ü", status=1).stderr
