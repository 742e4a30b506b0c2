"""takhin config, and what is made of the settings: the file with all of them and the page."""

import re
from pathlib import Path

import pytest

from takhin.cli.config_text import example, reference
from takhin.config import Settings, load_settings, options
from tests.cli.run import takhin
from tests.house.source import ROOT
from tests.secured import Secured


def uncommented(text: str) -> str:
    return re.sub(r"^#(?=\w)", "", text, flags=re.MULTILINE)


def test_the_made_files_are_current() -> None:
    assert (ROOT / "deploy" / "takhin.toml").read_text() == example(), "make docs writes it again"
    assert (ROOT / "docs" / "configuration.md").read_text() == reference(), "make docs writes it again"


def test_the_example_loads_as_it_is_and_with_every_line(tmp_path: Path) -> None:
    path = tmp_path / "takhin.toml"
    path.write_text(example())
    assert load_settings({}, {}, str(path)) == Settings()
    path.write_text(uncommented(example()))
    assert load_settings({}, {}, str(path)) == Settings()
    # Every line did count.
    ran = takhin(None, "config", "check", path)
    assert ran.out.decode() == f"ok: {len(options())} settings given, all others at their defaults\n"
    assert takhin(None, "config", "example").out.decode() == example()


def test_the_page_has_every_setting() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) == len(options())
    for option in options():
        (row,) = [each for each in rows if f"`{option.flag}` `{option.variable}`" in each]
        assert row.endswith(f"| {'yes' if option.reloads else 'no'} |")


def test_check_says_everything_at_once(tmp_path: Path) -> None:
    path = tmp_path / "takhin.toml"
    path.write_text(
        'lisen = "x"\nlog_level = "loud"\n[grpc]\nmax_mesage_bytes = 1\nmax_message_bytes = 5\n[topics]\n'
        'partitions = "1"\n')
    ran = takhin(None, "config", "check", path, status=2, TAKHIN_LIMITS__TOPICZ="1", TAKHIN_LIMITS__GROUPS="-1")
    assert ran.out == b""
    lines = ran.err.splitlines()
    assert [line.partition(" is not ")[0].replace(f"{path}: ", "") for line in lines] == [
        "unknown variable 'TAKHIN_LIMITS__TOPICZ'; the nearest known one is TAKHIN_LIMITS__TOPICS",
        "unknown key 'lisen'; the nearest known one is listen",
        "unknown key [grpc] 'max_mesage_bytes'; the nearest known one is [grpc] max_message_bytes",
        "log_level: 'loud'", "[grpc] max_message_bytes: 5", "[topics] partitions: '1'", "TAKHIN_LIMITS__GROUPS: -1",
    ]


@pytest.mark.parametrize(("text", "told"), [
    ('listen = "0.0.0.0:9092"', "0.0.0.0:9092 can be reached from other machines, and TLS"),
    ('metrics_listen = "0.0.0.0:1"', "0.0.0.0:1 can be reached from other machines, and metrics"),
    ('[tls]\ncert = "server.pem"', "tls.cert needs tls.key too"),
    ('[tls]\ncert = "{dir}/no.pem"\nkey = "{dir}/no.key"', "{dir}/no.pem: can't be read: No such file or directory"),
    ('[tls]\ncert = "{dir}/server.pem"\nkey = "{dir}/other.key"', "{dir}/other.key: is not a private key in PEM"),
    ('[auth]\njwks = "{dir}/server.pem"\njwt_issuer = "i"\njwt_audience = "a"', "{dir}/server.pem: is not a JWKS file"),
    ('[auth]\nadmin_key = "{dir}/no.key"', "{dir}/no.key: can't be read"),
    ('[auth]\nkeys = true\nadmins = "somebody"', "auth.admins: "),
    ('[topics]\npartitions = 20_000', "20000 is not allowed; allowed: at most 10000"),
    ('listen = "unix:{dir}/no/where"', "there is no directory {dir}/no"),
    ('data_dir = "{dir}/server.pem"', "data_dir: {dir}/server.pem is not a directory"),
    ("listen = ", "is not TOML"),
    ('listen = "a..b:9092"', "listen: 'a..b:9092' is not allowed; allowed: HOST:PORT"),
    ('[tracing]\nenabled = true\nendpoint = "localhost:4317"', "'localhost:4317' is not allowed; allowed: http://HOST"),
])
def test_check_looks_where_a_start_would(tmp_path: Path, text: str, told: str) -> None:
    Secured(tmp_path)
    (tmp_path / "other.key").write_text("no key")
    path = tmp_path / "takhin.toml"
    path.write_text(text.replace("{dir}", str(tmp_path)))
    ran = takhin(None, "config", "check", path, status=2)
    (line,) = ran.err.splitlines()
    assert told.replace("{dir}", str(tmp_path)) in line, line


def test_check_looks_for_what_traces_need(tmp_path: Path) -> None:
    enabled = {"TAKHIN_TRACING__ENABLED": "true"}
    takhin(None, "config", "check", **enabled)
    bad = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization: Bearer SECRET123"}
    takhin(None, "config", "check", **bad)
    told = takhin(None, "config", "check", status=2, **enabled, **bad).err
    assert told.startswith("OTEL_EXPORTER_OTLP_HEADERS: header 1 can't be sent") and told.count("\n") == 1
    assert "SECRET123" not in told
    # Where they are not installed.
    (tmp_path / "opentelemetry.py").write_text("raise ModuleNotFoundError(\"No module named 'opentelemetry'\")")
    told = takhin(None, "config", "check", status=2, PYTHONPATH=str(tmp_path), **enabled).err
    assert told.startswith("tracing.enabled: OpenTelemetry is needed: pip install 'takhin[tracing]'")


def test_check_is_content_with_what_a_server_takes(tmp_path: Path) -> None:
    secured = Secured(tmp_path, client_ca=True)
    path = tmp_path / "takhin.toml"
    path.write_text(
        f'listen = "0.0.0.0:9092"\ndata_dir = "{tmp_path}/new/data"\n[tls]\ncert = "{tmp_path}/server.pem"\n'
        f'key = "{tmp_path}/server.key"\nclient_ca = "{tmp_path}/ca.pem"\n')
    assert secured.directory == tmp_path
    assert takhin(None, "config", "check", TAKHIN_CONFIG=str(path)).out.startswith(b"ok: 5 settings given")
    assert not (tmp_path / "new").exists()
    ran = takhin(None, "config", "check", TAKHIN_GRPC__MAX_MESSAGE_BYTES="200000")
    assert ran.out.startswith(b"ok: 1 setting given")
