"""A real input: the lines of a log of this machine go in as records and come back; protoc reads the segment files."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import DEADLINE_S, BrokerProcess, Stub, new_topic, offsets, produce, read, values

ROOT = Path(__file__).resolve().parents[2]
# In this order: the first that is there and has lines.
LOGS = ["/var/log/dpkg.log", "/var/log/alternatives.log", "/var/log/apt/term.log", "/var/log/installer/syslog"]
MAX_LINES = 20_000


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    for name in LOGS:
        try:
            found = Path(name).read_bytes().splitlines(keepends=True)[:MAX_LINES]
        except OSError:
            continue
        if len(found) > 10:
            return found
    pytest.skip(f"none of {', '.join(LOGS)} is here")


def send(stub: Stub, topic: str, lines: list[bytes]) -> None:
    """Half as batches of a hundred, half as single records on a stream."""
    half = len(lines) // 200 * 100
    for start in range(0, half, 100):
        assert produce(stub, topic, *lines[start : start + 100], acks=1).offset == start
    single = (
        pb.ProduceMessageRequest(topic=topic, required_acks=1, record=pb.Record(value=line)) for line in lines[half:]
    )
    answers = list(stub.ProduceMessageStream(single, timeout=DEADLINE_S))
    assert [answer.offset for answer in answers] == list(range(half, len(lines)))


def test_the_lines_of_a_log_come_back_in_order(broker: BrokerProcess, lines: list[bytes]) -> None:
    topic = new_topic(broker.stub(), segment_bytes=100_000)
    send(broker.stub(), topic, lines)
    for _ in range(2):
        found = read(broker.stub(), topic)
        assert b"".join(values(found)) == b"".join(lines)
        assert [record.offset for record in found] == list(range(len(lines)))
        assert offsets(broker.stub(), topic).end_offset == len(lines)
        broker.restart(kill=True)


def test_segment_files_of_a_live_broker_are_read_by_protoc(broker: BrokerProcess, lines: list[bytes]) -> None:
    """An idle live one and sealed ones, piped into stock protoc --decode."""
    topic = new_topic(broker.stub(), segment_bytes=20_000)
    lines = lines[:500]
    send(broker.stub(), topic, lines)
    segments = broker.segments()
    assert len(segments) >= 3 and broker.running
    shown = [decode(path) for path in segments]
    for path, text in zip(segments, shown, strict=True):
        expected = pb.ConsumeMessagesResponse.FromString(path.read_bytes())
        assert text.count("\nrecords {") == len(expected.records)
        assert text.count("\nbatches {") == len(expected.batches) > 0
        assert text.count("segment {") == 1
    assert sum(text.count("\nrecords {") for text in shown) == len(lines)
    text = "".join(shown)
    at = 0
    for line in lines:
        at = text.find(f'  value: "{escaped(line)}"\n', at)
        assert at >= 0, line


def escaped(line: bytes) -> str:
    """Bytes as protobuf's text format has them."""
    named = {0x0A: r"\n", 0x0D: r"\r", 0x09: r"\t", 0x22: r"\"", 0x27: r"\'", 0x5C: r"\\"}
    return "".join(named.get(byte) or (chr(byte) if 0x20 <= byte < 0x7F else f"\\{byte:03o}") for byte in line)


def decode(path: Path) -> str:
    """What protoc shows of a segment file: the machine's own, or that of grpcio-tools where there is none."""
    own = shutil.which("protoc")
    command = [own] if own else [sys.executable, "-m", "grpc_tools.protoc"]
    arguments = ["--decode=takhin.v1.ConsumeMessagesResponse", "--proto_path=proto", "proto/takhin/v1/takhin.proto"]
    with path.open("rb") as segment:
        done = subprocess.run([*command, *arguments], stdin=segment, capture_output=True, cwd=ROOT, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr.decode()
    return "\n" + done.stdout.decode()
