"""A segment file is a ConsumeMessagesResponse: stock protoc shows what is in it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format

from takhin.v1 import takhin_pb2 as pb
from tests.format.make_golden import GOLDEN

ROOT = Path(__file__).resolve().parents[2]


def protocs() -> dict[str, list[str]]:
    """The commands to try: the one that comes with grpcio-tools, and the machine's own."""
    commands = {"grpc_tools": [sys.executable, "-m", "grpc_tools.protoc"]}
    path = shutil.which("protoc")
    if path is not None:
        version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
        # Older ones do not know `optional` in proto3.
        if [int(part) for part in re.findall(r"\d+", version)] >= [3, 15]:
            commands["protoc"] = [path]
    return commands


def decode(command: list[str], data: bytes) -> str:
    """What `protoc --decode` prints of data."""
    arguments = ["--decode=takhin.v1.ConsumeMessagesResponse", "--proto_path=proto", "proto/takhin/v1/takhin.proto"]
    done = subprocess.run([*command, *arguments], input=data, capture_output=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.mark.parametrize("command", protocs().values(), ids=protocs().keys())
@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("*.log")))
def test_protoc_shows_the_records(name: str, command: list[str]) -> None:
    data = (GOLDEN / name).read_bytes()
    text = decode(command, data)
    expected = pb.ConsumeMessagesResponse.FromString(data)
    for record in expected.records:
        # What protoc prints of a field that it does not know, protobuf's parser of text does not take.
        record.DiscardUnknownFields()
    known = re.sub(r"^  \d+: .*\n", "", text, flags=re.MULTILINE)
    assert text_format.Parse(known, pb.ConsumeMessagesResponse()) == expected


def test_it_reads_as_the_documentation_shows() -> None:
    text = decode(protocs()["grpc_tools"], (GOLDEN / "one_batch.log").read_bytes())
    assert text.count("records {") == 2
    assert text.count("batches {") == 1
    # The broker's offset 0 and partition 0 are in the file; text format leaves zeros out.
    assert 'records {\n  key: "user-1"\n  value: "hello"\n  timestamp: 1700000000250\n}\n' in text
    assert "  timestamp: 1700000000123\n  offset: 1\n}\n" in text
