"""CRC32C: the published vectors, and the instruction against the tables."""

import random

import pytest

from takhin.codec.crc32c import crc32c, has_hardware, masked

# RFC 3720, appendix B.4: there the checksum's bytes stand in the order of the wire, least significant first.
READ_COMMAND = bytes.fromhex(
    "01c00000 00000000 00000000 00000000 14000000 00000400 00000014 00000018 28000000 00000000 02000000 00000000"
)
VECTORS = [
    (bytes(32), "aa36918a"),
    (b"\xff" * 32, "43aba862"),
    (bytes(range(32)), "4e79dd46"),
    (bytes(range(31, -1, -1)), "5cdb3f11"),
    (READ_COMMAND, "563a96d9"),
]


@pytest.mark.parametrize(("data", "crc"), VECTORS)
def test_rfc_3720(data: bytes, crc: str) -> None:
    expected = int.from_bytes(bytes.fromhex(crc), "little")
    assert crc32c(data) == expected
    assert crc32c(data, table=True) == expected


def test_the_check_value_of_the_catalogue() -> None:
    assert crc32c(b"123456789") == crc32c(b"123456789", table=True) == 0xE3069283


def test_of_nothing() -> None:
    assert crc32c(b"") == crc32c(b"", table=True) == 0
    assert crc32c(b"", 0x12345678) == crc32c(b"", 0x12345678, table=True) == 0x12345678


def test_has_hardware_is_a_bool() -> None:
    assert has_hardware() in (True, False)


def test_the_instruction_agrees_with_the_tables_at_every_length() -> None:
    data = random.Random(3720).randbytes(4096)
    view = memoryview(data)
    for size in range(len(data) + 1):
        assert crc32c(view[:size]) == crc32c(view[:size], table=True), size


def test_they_agree_at_every_alignment_and_where_the_lanes_meet() -> None:
    view = memoryview(random.Random(1).randbytes(40_000))
    for start in range(9):
        for size in (0, 1, 7, 8, 383, 384, 385, 768, 3071, 3072, 3073, 3456, 6144, 9999, 39_991):
            part = view[start : start + size]
            assert crc32c(part, 0xDEADBEEF) == crc32c(part, 0xDEADBEEF, table=True), (start, size)


def test_a_checksum_is_continued_from_an_earlier_one() -> None:
    data = random.Random(2).randbytes(8192)
    whole = crc32c(data)
    for cut in [*range(0, 600), 3071, 3072, 3073, 4096, 8191, 8192]:
        assert crc32c(data[cut:], crc32c(data[:cut])) == whole, cut
        assert crc32c(data[cut:], crc32c(data[:cut], table=True), table=True) == whole, cut


def test_any_contiguous_bytes_are_taken() -> None:
    assert crc32c(bytearray(b"123456789")) == crc32c(memoryview(b"x123456789")[1:]) == 0xE3069283
    with pytest.raises((ValueError, BufferError)):
        crc32c(memoryview(b"123456789")[::2])
    with pytest.raises(TypeError):
        crc32c(None)  # type: ignore[arg-type]


def test_masking() -> None:
    assert masked(0) == 0xA282EAD8
    # Rotated right by 15: the lowest bit goes to place 17.
    assert masked(1) == 0xA282EAD8 + 2**17
    assert masked(2**15) == 0xA282EAD9
    assert masked(0xFFFFFFFF) == 0xA282EAD7
    # It can be undone, so nothing is lost.
    for crc in (0, 1, 0xE3069283, 0x80000000, 0xFFFFFFFF):
        rotated = masked(crc) - 0xA282EAD8 & 0xFFFFFFFF
        assert (rotated >> 17 | rotated << 15) & 0xFFFFFFFF == crc
        assert masked(crc) != crc
