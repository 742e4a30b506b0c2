"""The command line as a whole: help, mistakes, variables, exit statuses."""

import re
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest

from takhin import __version__
from takhin.cli import main as module
from takhin.cli.main import program
from takhin.cli.program import HELP_COLUMNS, Option
from takhin.cli.reference import reference
from takhin.config import GrpcSettings, load_settings
from tests.broker_process import BrokerProcess, new_topic
from tests.cli.run import takhin
from tests.house.source import ROOT

NOBODY = "127.0.0.1:1"


def commands(
    command: click.Command = program, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that name it, loaded."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from commands(inner, (*path, name))


def test_help_imports_nothing_that_costs() -> None:
    code = textwrap.dedent("""
        import sys
        from takhin.cli.main import main
        assert main(["--help"]) == 0
        assert main(["produce", "--no-such-option"]) == 2
        heavy = {"asyncio", "grpc", "rich", "uvloop", "google.protobuf", "socket", "ssl", "subprocess", "sqlite3",
                 "importlib.metadata", "takhin.client", "takhin.broker", "takhin.log"}
        print("imported:", sorted(heavy & set(sys.modules)), len(sys.modules) < 250)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.decode().endswith("imported: [] True\n"), done.stdout.decode()


def test_help_names_every_command_as_the_command_does() -> None:
    context = click.Context(program)
    for name, lazy in program.lazy.items():
        command = program.get_command(context, name)
        assert command is not None and command.name == name
        assert command.get_short_help_str(HELP_COLUMNS) and lazy.about.endswith(".")
        if isinstance(command, click.Group):
            assert command.help == lazy.about


def test_every_command_has_help_and_every_option_says_what_it_is() -> None:
    found = list(commands())
    assert len(found) > 25
    for path, command in found:
        assert command.help, path
        for option in command.params:
            if isinstance(option, click.Option) and option.name != "help":
                assert option.help, (path, option.name)


def test_the_reference_is_what_help_says() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == reference(), "make docs writes it again"


def test_no_variable_of_the_command_line_is_refused_by_the_server() -> None:
    """Both read TAKHIN_*, and the server takes what is nearly one of its own for a mistake."""
    variables = {}
    for path, command in commands():
        for option in command.params:
            if isinstance(option, Option) and option.name is not None:
                prefix = "_".join(("takhin", *path)).upper().replace("-", "_")
                variables[option.envvar or f"{prefix}_{option.name.upper()}"] = "x"
    assert "TAKHIN_BROKER" in variables and "TAKHIN_TOPIC_CREATE_PARTITIONS" in variables
    # Both know this one, and mean the same.
    del variables["TAKHIN_CONFIG"]
    load_settings({}, {str(name): value for name, value in variables.items()}, None)


@pytest.mark.parametrize(("arguments", "told"), [
    (["topc", "list"], "no command 'topc'; the nearest is 'topic'; see takhin --help"),
    (["topic"], "COMMAND is missing: create, list, describe, update, delete; see takhin topic --help"),
    (["topic", "create"], "missing argument 'TOPIC...'; see takhin topic create --help"),
    (["consume", "t", "--fromat", "x"], "no such option '--fromat'; did you mean"),
    (["consume", "t", "-o", "somewhere"], "-o 'somewhere' is not known: earliest, latest, an offset, -10"),
    (["consume", "t", "-f", "%q"], "'%q' in a format is not known; there are %v"),
    (["consume", "t", "-f", "\\q"], "'\\\\q' is no escape"),
    (["consume", "t", "-f", "%v", "-O", "json"], "-f and -O"),
    (["consume", "t", "-n", "many"], "'many' is not a number from 0 on"),
    (["produce", "t", "-k", ":", "--key", "k"], "-k takes each line's key from it"),
    (["produce", "t", "-D", "ab"], "-D 'ab' is not one byte"),
    (["produce", "t", "-H", "name"], "-H 'name' is not NAME=VALUE"),
    (["produce", "t", "--json", "-k", ":"], "with --json each line says its key"),
    (["topic", "create", "t", "-c", "retention"], "a config is NAME=VALUE"),
    (["topic", "update", "t"], "nothing to change"),
    (["group", "reset", "g"], "say where to: either --to or --shift"),
    (["group", "reset", "g", "--to", "noon"], "--to 'noon' is not known"),
    (["group", "reset", "g", "--to", "1", "-p", "orders"], "-p 'orders' is not TOPIC/N"),
    (["health", "--timeout", "soon"], "'soon' is not a time span"),
    (["completion", "tcsh"], "'tcsh' is not one of"),
    (["dev", "-s", "topics"], "-s 'topics' is not NAME=VALUE"),
    (["bench", "e2e", "--rate", "0"], "--rate is 1 or more"),
])
def test_mistakes_are_one_line_before_any_broker_is_asked(arguments: list[str], told: str) -> None:
    done = takhin(None, *arguments, status=2, TAKHIN_BROKER=NOBODY)
    assert told in done.complaint.replace("\\\\\\\\", "\\\\")
    assert done.err.count("\n") == 1 and done.out == b""


def test_what_goes_wrong_says_what_to_do_next(shared_broker: BrokerProcess) -> None:
    topic = new_topic(shared_broker.stub())
    for arguments, status, told in [
        (["topic", "list", "-b", NOBODY], 5, "is it running? takhin dev starts one; -b HOST:PORT or TAKHIN_BROKER"),
        (["topic", "describe", "nope"], 3, "takhin topic create nope makes it"),
        (["produce", "nope"], 3, "takhin topic create nope makes it"),
        (["group", "lag", "nope"], 3, "takhin group list shows all"),
        (["consume", topic, "-p", "7"], 3, f"takhin topic describe {topic} shows its partitions"),
        (["consume", topic, "-o", "5"], 2, f"takhin topic describe {topic} shows where"),
        (["topic", "create", topic], 1, "--if-not-exists takes it as it is"),
        (["topic", "create", "a/b"], 2, "is not a topic name"),
        (["topic", "create", "x", "-c", "retention=1"], 2, "unknown topic config"),
        (["topic", "delete", topic], 2, "add --yes to do it"),
        (["produce", topic, "no-such-file"], 1, "no-such-file: No such file or directory"),
    ]:
        done = takhin(shared_broker, *arguments, status=status)
        assert told in done.complaint and done.out == b"", arguments


def test_no_answer_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        done = takhin(None, "health", "-b", address, "--timeout", "300ms", status=6)
    assert f"no answer from {address} in time; --timeout SECONDS waits longer" in done.complaint


def test_alive_and_ready(shared_broker: BrokerProcess, tmp_path: Path) -> None:
    (told,) = takhin(shared_broker, "health", "--ready").objects
    assert told["status"] == "ready" and set(told) == {"status", "version", "uptime_s"}
    # More than any disk has.
    full = BrokerProcess(tmp_path / "full", "--limits-min-free-bytes", str(1 << 40)).start()
    try:
        full.wait_for_log("not ready: the disk is full")
        assert takhin(full, "health").objects[0]["status"] == "healthy"
        assert takhin(full, "health", "--ready", status=1).objects[0]["status"] == "not ready"
    finally:
        full.close()
    takhin(None, "health", "--ready", "-b", NOBODY, status=5)


def test_flag_over_variable_over_default(shared_broker: BrokerProcess) -> None:
    address = shared_broker.address
    assert takhin(None, "health", TAKHIN_BROKER=address).objects[0]["status"] == "healthy"
    assert takhin(None, "health", "-b", address, TAKHIN_BROKER=NOBODY).objects[0]["status"] == "healthy"
    name = "by-variable"
    takhin(shared_broker, "topic", "create", name, TAKHIN_TOPIC_CREATE_PARTITIONS="4")
    (row,) = [each for each in takhin(shared_broker, "topic", "list").objects if each["topic"] == name]
    assert row["partitions"] == 4
    takhin(shared_broker, "topic", "delete", name, "-y")


def test_versions(shared_broker: BrokerProcess) -> None:
    assert takhin(None, "--version").out.decode() == f"takhin {__version__}\n"
    told = takhin(shared_broker, "version", "-O", "table").out.decode()
    assert re.search(rf"Broker: +{re.escape(__version__)}\n", told)
    assert takhin(None, "version", "-b", NOBODY).objects[0]["broker"] is None


def test_config_show_tells_where_values_come_from(tmp_path: Path) -> None:
    file = tmp_path / "takhin.toml"
    file.write_text("[topics]\npartitions = 3\n")
    shown = takhin(
        None, "config", "show", "--changed", TAKHIN_CONFIG=str(file), TAKHIN_LOG_LEVEL="debug", TAKHIN_TOKEN="secret",
        TAKHIN_TIMEOUT="500ms")
    assert {each["setting"]: (each["value"], each["origin"]) for each in shown.objects} == {
        "client.timeout": (0.5, "TAKHIN_TIMEOUT"), "client.token": ("(set, not shown)", "TAKHIN_TOKEN"),
        "log_level": ("debug", "TAKHIN_LOG_LEVEL"), "topics.partitions": (3, f"{file}: [topics] partitions"),
    }
    assert b"secret" not in shown.out
    default = takhin(None, "config", "show", "grpc").objects
    assert {each["origin"] for each in default} == {"default"} and len(default) == len(fields(GrpcSettings))
    told = takhin(None, "config", "show", status=2, TAKHIN_TOPICS__PARTITONS="1").complaint
    assert "TAKHIN_TOPICS__PARTITIONS" in told


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    script = takhin(None, "completion", shell).out.decode()
    assert f"{module.VARIABLE}={shell}_complete" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script.encode(), check=True)


def test_what_is_completed(shared_broker: BrokerProcess) -> None:
    def completed(words: str, count: int, **variables: str) -> list[str]:
        asked = {"_TAKHIN_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}
        done = takhin(shared_broker, **asked | variables)
        return [line.partition(",")[2] for line in done.out.decode().splitlines() if line.startswith("plain,")]

    topic = new_topic(shared_broker.stub())
    assert completed("takhin t", 1) == ["topic", "tail"]
    assert "--partitions" in completed("takhin topic create --p", 3)
    assert topic in completed("takhin consume topic-", 2)
    assert completed("takhin consume topic-", 2, TAKHIN_BROKER=NOBODY) == []
