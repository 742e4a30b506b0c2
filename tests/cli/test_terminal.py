"""What is different on a terminal: tables, colors, bars, questions."""

import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path

from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import DEADLINE_S, MIB, BrokerProcess, committed, new_topic, produce
from tests.cli.run import TAKHIN, environment

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def on_terminal(
    broker: BrokerProcess, *arguments: object, columns: int = 100, answer: bytes = b"", **variables: str
) -> tuple[int, str]:
    """Run it with all its standard streams on a terminal; its exit status, and what stood there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*TAKHIN, *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs,
        env=environment(broker, TERM="xterm-256color", COLUMNS=str(columns), **variables))
    os.close(theirs)
    os.write(ours, answer)
    told = b""
    until_s = time.monotonic() + DEADLINE_S
    while select.select([ours], [], [], max(until_s - time.monotonic(), 0))[0]:
        try:
            more = os.read(ours, 65536)
        except OSError:  # nobody has the other end any more
            break
        told += more
    os.close(ours)
    return process.wait(DEADLINE_S), told.decode().replace("\r\n", "\n")


def test_tables_colors_and_no_color(shared_broker: BrokerProcess) -> None:
    topic = new_topic(shared_broker.stub())
    status, told = on_terminal(shared_broker, "topic", "describe", topic)
    assert status == 0 and "\x1b[1m" in told
    lines = ESCAPE.sub("", told).splitlines()
    assert lines[0].split() == ["TOPIC", "PARTITION", "START", "END", "DURABLE", "BYTES"]
    assert lines[1].split() == [topic, "0", "0", "0", "0", "0"]
    status, told = on_terminal(shared_broker, "topic", "describe", topic, "-O", "jsonl")
    assert told.startswith('{"topic": ') and "\x1b" not in told
    produce(shared_broker.stub(), topic, pb.Record(key=b"k", value=b"bad \x1b[31m"))
    status, told = on_terminal(shared_broker, "consume", topic, "-e", "-O", "table")
    assert "\x1b[2m" in told
    status, told = on_terminal(shared_broker, "consume", topic, "-e", "-O", "table", NO_COLOR="1")
    assert "\x1b" not in told and "bad \\x1b[31m" in told
    # What a record says to the terminal is not said; -f gives it as it is.
    assert on_terminal(shared_broker, "consume", topic, "-e") == (0, "bad \\x1b[31m\n")
    assert on_terminal(shared_broker, "consume", topic, "-e", "-f", r"%v\n") == (0, "bad \x1b[31m\n")


def test_a_reset_asks(shared_broker: BrokerProcess) -> None:
    topic = new_topic(shared_broker.stub())
    group = f"group-of-{topic}"
    status, told = on_terminal(
        shared_broker, "group", "reset", group, "--to", "earliest", "-t", topic, answer=b"n\n")
    assert status == 1 and f"set group {group} to these offsets? [y/N]" in told and "nothing was changed" in told
    assert committed(shared_broker.stub(), group, topic) is None
    status, told = on_terminal(
        shared_broker, "group", "reset", group, "--to", "earliest", "-t", topic, answer=b"y\n")
    assert status == 0 and committed(shared_broker.stub(), group, topic) == 0


def test_what_takes_long_shows_how_far_it_is(shared_broker: BrokerProcess, tmp_path: Path) -> None:
    topic = new_topic(shared_broker.stub())
    path = tmp_path / "slow"
    os.mkfifo(path)
    # A pipe that gives a little now and then.
    feeder = subprocess.Popen(["bash", "-c", f"for i in 1 2 3 4 5 6 7 8; do echo line; sleep 0.3; done > {path}"])
    status, told = on_terminal(shared_broker, "produce", topic, path)
    feeder.wait(DEADLINE_S)
    assert status == 0 and f"to {topic}" in told and "records" in told
    assert ESCAPE.sub("", told).splitlines()[-1].startswith(f"8 records to {topic}: 40 bytes")
    (tmp_path / "quick").write_bytes(b"x\n" * (MIB // 2))
    status, told = on_terminal(shared_broker, "produce", topic, tmp_path / "quick", "-q")
    assert (status, told) == (0, "")
