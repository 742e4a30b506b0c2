"""docs/format.md says what is so: its hexdump is the golden file, its tables are the headers."""

import re
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from takhin.codec.batch import BATCH_HEADER_SIZE, SEGMENT_HEADER_SIZE
from takhin.v1 import takhin_pb2 as pb
from tests.format.make_golden import GOLDEN

DOC = (Path(__file__).resolve().parents[2] / "docs" / "format.md").read_text()
DATA = (GOLDEN / "one_batch.log").read_bytes()

DUMP_LINE = re.compile(r"([0-9a-f]{4})  ((?:[0-9a-f]{2} )*[0-9a-f]{2}) +(\S.*)")
TABLE_ROW = re.compile(r"\| (\d+) \| (\d+) \| `([0-9a-f ]+)` \| (?:(\d+) (\w+))? ?\|")
WIDE = (FieldDescriptor.TYPE_FIXED64, FieldDescriptor.TYPE_SFIXED64)


def section(heading: str) -> str:
    """The text below a heading, up to the next one of any level."""
    return re.split(r"^#+ ", DOC.split(f"# {heading}\n", 1)[1], flags=re.MULTILINE)[0]


def test_the_hexdump_is_the_golden_file() -> None:
    lines = section("A whole file").split("```")[1].strip().splitlines()
    dumped = b""
    for line in lines:
        match = DUMP_LINE.fullmatch(line)
        assert match, line
        assert int(match[1], 16) == len(dumped), line
        dumped += bytes.fromhex(match[2])
    assert dumped == DATA


@pytest.mark.parametrize(
    ("heading", "message", "start", "size_bytes"),
    [
        ("Segment header", pb.SegmentHeader.DESCRIPTOR, 0, SEGMENT_HEADER_SIZE),
        ("Batch header", pb.BatchHeader.DESCRIPTOR, SEGMENT_HEADER_SIZE, BATCH_HEADER_SIZE),
    ],
)
def test_the_tables_are_the_headers(heading: str, message: Descriptor, start: int, size_bytes: int) -> None:
    rows = TABLE_ROW.findall(section(heading))
    assert [(int(number), name) for _, _, _, number, name in rows[1:]] == [
        (field.number, field.name) for field in message.fields
    ]
    place = 0
    for (row_place, row_bytes, tag, _, name), field in zip(rows, [None, *message.fields], strict=True):
        assert int(row_place) == place, name
        assert DATA[start + place :].startswith(bytes.fromhex(tag)), name
        assert int(row_bytes) == (2 if field is None else 9 if field.type in WIDE else 5), name
        place += int(row_bytes)
    assert place == size_bytes
