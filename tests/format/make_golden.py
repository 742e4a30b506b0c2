"""Makes the golden files: segments with fixed numbers, as this version writes them.

    python -m tests.format.make_golden

writes those that are missing, and SHA256SUMS. A golden file never changes: whoever reads the format of today must be
able to read it for ever. So a file that is there with other bytes is an error; a new version of the format gets new
files beside the old ones.
"""

import hashlib
import sys
from pathlib import Path

from takhin.codec.batch import encode_batch, encode_segment_header
from takhin.v1 import takhin_pb2 as pb

GOLDEN = Path(__file__).parent / "golden"
SUMS = GOLDEN / "SHA256SUMS"

CREATED_MS = 1_700_000_000_000

ONE_BATCH = [
    pb.Record(key=b"user-1", value=b"hello"),
    pb.Record(value=b"", headers=[pb.RecordHeader(key="trace", value=b"\x01")], timestamp=1_700_000_000_123),
]

HEADERS = [
    pb.RecordHeader(key="content-type", value=b"application/json"),
    pb.RecordHeader(key="content-type", value=b""),
    pb.RecordHeader(key="", value=b"\x00\xff"),
    pb.RecordHeader(key="Größe 大小 \U0001f4cf", value=b"\xef\xbb\xbf"),
]
FIRST_BATCH = [
    pb.Record(key=b"tombstone"),
    pb.Record(key=b"empty", value=b""),
    pb.Record(),
    pb.Record(key=b"", value=b"\x00"),
    pb.Record(value=b"headers", headers=HEADERS),
    pb.Record(value=b"before 1970", timestamp=-86_400_000),
    pb.Record(value=b"its own offset and partition", timestamp=CREATED_MS - 1, offset=77, partition=9),
]
# Fields in another order than protobuf writes them, a scalar twice, a field of the future.
UNUSUAL = bytes.fromhex("2007 1203 6c6173 2008 0a03 6b6579 1204 6c617374 8001 2a")
SECOND_BATCH = [pb.Record(key=b"k%d" % n, value=bytes(range(n))) for n in range(60)]
# Lengths of one, two and three bytes.
THIRD_BATCH = [pb.Record(value=bytes(range(256)) * 64), pb.Record(value=b"a" * 127), pb.Record(value=b"b" * 200)]


def encoded(records: list[pb.Record]) -> list[bytes]:
    return [record.SerializeToString(deterministic=True) for record in records]


def golden_files() -> dict[str, bytes]:
    """Each golden file's name and bytes."""
    one_batch = encode_segment_header(1, 0, 0, CREATED_MS)
    one_batch += encode_batch(encoded(ONE_BATCH), 0, 0, CREATED_MS + 250, 1, 0)
    several = encode_segment_header(42, 5, 1000, CREATED_MS)
    several += encode_batch(encoded(FIRST_BATCH), 1000, 5, CREATED_MS + 1000, 1, 1000)
    several += encode_batch([UNUSUAL], 1007, 5, CREATED_MS + 2000, 1, 1007)
    several += encode_batch(encoded(SECOND_BATCH), 1008, 5, CREATED_MS + 3000, 2, 1007)
    several += encode_batch(encoded(THIRD_BATCH), 1068, 5, CREATED_MS + 2500, 2, 1068)
    return {"one_batch.log": one_batch, "several_batches.log": several}


def main() -> int:
    GOLDEN.mkdir(exist_ok=True)
    files = golden_files()
    for name, data in files.items():
        path = GOLDEN / name
        if not path.exists():
            path.write_bytes(data)
        elif path.read_bytes() != data:
            print(f"{path} is there and differs: a golden file never changes", file=sys.stderr)
            return 1
    # metadata_v1.db too, which the version that knew only this format has written.
    pinned = sorted(path for path in GOLDEN.iterdir() if path != SUMS)
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in pinned]
    SUMS.write_text("".join(sums))
    return 0


if __name__ == "__main__":
    sys.exit(main())
