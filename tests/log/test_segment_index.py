"""Segments and their index, and every way in which a reader takes slices out of them."""

import mmap
import os
import random
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from takhin.codec.batch import BATCH_HEADER_SIZE, SEGMENT_HEADER_SIZE, read_batch
from takhin.codec.crc32c import crc32c
from takhin.errors import Code, Reason, TakhinError
from takhin.log.files import Files
from takhin.log.index import INDEX_HEADER_SIZE, OffsetIndex, SegmentSummary, read_summary
from takhin.log.reader import WOULD_BLOCK, Reader
from takhin.log.segment import FileCache, Segment, segment_name
from takhin.v1 import takhin_pb2 as pb
from tests.log.test_partition import (
    NOW_MS,
    Config,
    LocalLog,
    LogIn,
    batches_in,
    descriptors_of,
    log,
    log_in,
    read_on,
    segments_of,
    values_of,
)
from tests.model.codec_model import masked

__all__ = ["log", "log_in"]


def cached() -> FileCache:
    return FileCache(Files(), 100)


# Segments


def test_names_sort_as_offsets_do() -> None:
    offsets = [0, 9, 10, 12345, 2**53 - 1]
    names = [segment_name(offset) for offset in offsets]
    assert names == sorted(names) and names[0] == "0" * 20 + ".log"


def test_create_refuses_what_is_there(tmp_path: Path) -> None:
    cache = cached()
    segment = Segment.create(cache, str(tmp_path), 1, 0, 7, NOW_MS)
    assert (segment.base_offset, segment.next_offset, segment.size_bytes) == (7, 7, SEGMENT_HEADER_SIZE)
    assert segment.index_path == str(tmp_path / f"{7:020d}.index")
    before = Path(segment.path).read_bytes()
    # One that holds nothing is what a creation that failed left behind.
    Segment.create(cache, str(tmp_path), 1, 0, 7, NOW_MS).close()
    with open(segment.path, "ab") as file:
        file.write(b"more")
    with pytest.raises(FileExistsError):
        Segment.create(cache, str(tmp_path), 1, 0, 7, NOW_MS + 1)
    assert Path(segment.path).read_bytes() == before + b"more"
    with pytest.raises(FileNotFoundError):
        Segment.create(cache, str(tmp_path / "nowhere"), 1, 0, 7, NOW_MS)
    segment.close()


def test_a_segment_of_another_partition_is_not_scanned(log: LocalLog) -> None:
    log.write(b"a")
    (path,) = segments_of(log.directory)
    cache = cached()
    for topic_id, partition, damaged in ((1, 0, False), (2, 0, True), (1, 1, True)):
        segment, damage = Segment.scanned(cache, str(path.parent), topic_id, partition, 0)
        assert (damage is not None) is damaged
        assert segment.size_bytes == (0 if damaged else path.stat().st_size)
        segment.close()


def test_unlink_leaves_nothing(log: LocalLog) -> None:
    log.write(b"a")
    log.sync()
    log.partition.roll(NOW_MS)
    log.write(b"b")
    log.sync()
    first = log.partition.segments[0]
    assert os.path.exists(first.index_path)
    (removed,) = log.partition.set_log_start(1)
    removed.unlink()
    assert not os.path.exists(removed.path) and not os.path.exists(removed.index_path)
    # A topic's deletion may be quicker.
    removed.unlink()


# The index


def summary() -> SegmentSummary:
    return SegmentSummary(100, 250, 123_456, NOW_MS, NOW_MS + 5, 9)


def test_an_empty_index_comes_back() -> None:
    data = OffsetIndex().encode(summary())
    assert len(data) == INDEX_HEADER_SIZE
    index = OffsetIndex.decode(data)
    assert index is not None and len(index) == 0
    found = read_summary(data)
    assert found is not None
    told, entries = found
    assert entries == 0
    assert [getattr(told, name) for name in SegmentSummary.__slots__] == [100, 250, 123_456, NOW_MS, NOW_MS + 5, 9]


def test_no_damaged_index_is_decoded(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data")
    for _ in range(300):
        log.write(b"v" * 50)
    log.close()
    data = segments_of(log.directory)[0].with_suffix(".index").read_bytes()
    index = OffsetIndex.decode(data)
    assert index is not None and len(index) == (len(data) - INDEX_HEADER_SIZE) // 16 > 10
    for length in range(len(data)):
        assert OffsetIndex.decode(data[:length]) is None
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        assert OffsetIndex.decode(bytes(flipped)) is None, at
    assert OffsetIndex.decode(data + b"\0" * 16) is None
    # More entries than there is memory for.
    huge = data[:12] + struct.pack("<I", 0xFFFFFFFF) + data[16:]
    assert OffsetIndex.decode(huge) is None


def test_entries_are_batches_and_sparse(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data")
    for number in range(400):
        log.append_request(pb.ProduceMessageRequest(
            topic="t", record=pb.Record(value=b"v" * 90, timestamp=NOW_MS + number * 37 % 101)
        ))
        log.tick()
    log.close()
    (path,) = segments_of(log.directory)
    places, highest = {}, 1 - 2**53
    at = SEGMENT_HEADER_SIZE
    for batch in batches_in(path):
        places[at] = (batch.base_offset, highest)
        highest = max(highest, batch.max_timestamp_ms)
        at += BATCH_HEADER_SIZE + batch.payload_bytes
    data = path.with_suffix(".index").read_bytes()
    entries = [struct.unpack_from("<IIq", data, place) for place in range(INDEX_HEADER_SIZE, len(data), 16)]
    assert len(entries) > 5
    for offset, position, timestamp_ms in entries:
        assert places[position] == (offset, timestamp_ms)
    positions = [0, *(position for _, position, _ in entries), path.stat().st_size]
    assert all(4096 <= after - before < 4096 + 300 for before, after in zip(positions, positions[1:-1]))
    assert positions[-1] - positions[-2] < 4096 + 300


def syscalls_read() -> int:
    """How many read system calls this process has made."""
    return int(Path("/proc/self/io").read_text().split("syscr: ")[1].split()[0])


@pytest.mark.parametrize("restarted", [False, True])
def test_a_cold_read_begins_near_its_offset(log_in: LogIn, tmp_path: Path, restarted: bool) -> None:
    count = 3000
    log = log_in(tmp_path / "data")
    for number in range(count):
        log.write(b"%d" % number)
    log.sync()
    if restarted:
        log.close()
        log = log_in(tmp_path / "data", was_clean=True)
    log.drop_rings()
    values_of(log.partition, count - 1, cold=True)
    for offset in (0, 1, 1234, count - 1):
        before = syscalls_read()
        assert values_of_some(log, offset) == b"%d" % offset
        # 4096 bytes are some 30 such batches.
        assert syscalls_read() - before < 50


def values_of_some(log: LocalLog, offset: int) -> bytes:
    response = read_on(Reader(log.partition, offset), 200, cold=True)
    assert response is not None and response.records[0].offset == offset
    return response.records[0].value


# Readers: every way


def mixed(log: LocalLog) -> list[bytes]:
    """Batches of one, of many, and of one large record, over several segments."""
    rng = random.Random(5)
    values: list[bytes] = []
    for number in range(60):
        group = [
            b"%04d" % (len(values) + each) + b"x" * rng.choice([0, 3, 90, 90, 700])
            for each in range(rng.choice([1, 1, 5, 40]))
        ]
        if number % 13 == 5:
            group = [b"%04d" % len(values) + b"L" * 20_000]
        log.append(*group, batch=True)
        log.partition.flush()
        values += group
    return values


SIZES = [1, 17, 120, 300, 5_000, 21_000, 1 << 20]


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("max_bytes", SIZES)
def test_any_size_from_any_offset(log_in: LogIn, tmp_path: Path, cold: bool, max_bytes: int) -> None:
    log = log_in(tmp_path / "data", Config(segment_bytes=60_000))
    values = mixed(log)
    assert len(log.partition.segments) > 3
    log.sync()
    if cold:
        log.drop_rings()
    for offset in [*range(0, 30), *range(30, len(values), 41), len(values) - 1]:
        reader = Reader(log.partition, offset, len(values))
        got: list[bytes] = []
        while not reader.done:
            raw = reader.read_blocking(max_bytes) if cold else reader.read(max_bytes)
            assert isinstance(raw, bytes)
            response = pb.ConsumeMessagesResponse.FromString(raw)
            assert [record.offset for record in response.records] == list(
                range(offset + len(got), offset + len(got) + len(response.records))
            )
            got += [record.value for record in response.records]
            # A response is as large as it may be, unless one record is larger; and says the truth about itself.
            assert len(raw) <= max_bytes or len(response.records) == 1
            assert (response.topic, response.partition) == ("t", 0)
            assert response.high_watermark == len(values)
            assert response.caught_up == (reader.next_offset == len(values))
            check_batches(raw, response)
        assert got == values[offset:]
        assert read_on(reader) is None and reader.available_bytes == 0


def check_batches(raw: bytes, response: pb.ConsumeMessagesResponse) -> None:
    """A header stands only before a whole batch, as it stands on the disk."""
    position = 0
    for header in response.batches:
        position = raw.index(b"2g\x0dTKB1", position)
        batch = read_batch(raw, position)
        assert (batch.base_offset, batch.record_count) == (header.base_offset, header.record_count)
        position += BATCH_HEADER_SIZE + batch.payload_bytes


@pytest.mark.parametrize("cold", [False, True])
def test_whole_batches_come_with_their_headers(log: LocalLog, cold: bool) -> None:
    for _ in range(20):
        log.append(b"a", b"b", b"c", batch=True)
    log.sync()
    if cold:
        log.drop_rings()
    response = read_on(Reader(log.partition, 0), cold=cold)
    assert response is not None
    assert (len(response.batches), len(response.records)) == (20, 60)
    # From the middle of a batch on: the rest of it has no header.
    reader = Reader(log.partition, 1)
    headers = records = 0
    while reader.next_offset < 60:
        response = read_on(reader, cold=cold)
        assert response is not None
        headers += len(response.batches)
        records += len(response.records)
    assert (headers, records) == (19, 59)


@pytest.mark.parametrize("cold", [False, True])
def test_as_many_whole_batches_as_fit(log: LocalLog, cold: bool) -> None:
    for _ in range(50):
        log.write(b"v" * 100)
    log.sync()
    if cold:
        log.drop_rings()
    (path,) = segments_of(log.directory)
    size = BATCH_HEADER_SIZE + batches_in(path)[20].payload_bytes
    reader = Reader(log.partition, 10)
    raw = reader.read_blocking(5000) if cold else reader.read(5000)
    assert isinstance(raw, bytes)
    response = pb.ConsumeMessagesResponse.FromString(raw)
    assert 5000 - size - 20 < len(raw) <= 5000
    assert len(response.batches) == len(response.records) == len(raw) // size


@pytest.mark.parametrize("cold", [False, True])
def test_the_end_a_reader_was_made_for(log: LocalLog, cold: bool) -> None:
    for _ in range(10):
        log.append(b"a", b"b", batch=True)
    log.sync()
    if cold:
        log.drop_rings()
    reader = Reader(log.partition, 4, 12)
    got = 0
    while not reader.done:
        response = read_on(reader, cold=cold)
        assert response is not None
        got += len(response.records)
        assert not response.caught_up
    assert (got, reader.next_offset) == (8, 12)
    assert read_on(reader, cold=cold) is None


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("most", [1, 2, 3, 4, 7, 100])
def test_max_records_cuts_batches(log: LocalLog, cold: bool, most: int) -> None:
    for number in range(0, 60, 3):
        log.append(*(b"%d" % (number + each) for each in range(3)), batch=True)
    log.sync()
    if cold:
        log.drop_rings()
    for offset in (0, 1, 2, 57, 59):
        for max_bytes in (1, 250, 1 << 20):
            reader = Reader(log.partition, offset, -1, most)
            got: list[bytes] = []
            while not reader.done:
                before = reader.records_left
                response = read_on(reader, max_bytes, cold)
                if response is None:
                    break
                got += [record.value for record in response.records]
                assert reader.records_left == before - len(response.records)
            assert got == [b"%d" % number for number in range(offset, min(offset + most, 60))]


@pytest.mark.parametrize("cold", [False, True])
def test_rewind(log: LocalLog, cold: bool) -> None:
    values = mixed(log)
    log.sync()
    if cold:
        log.drop_rings()
    for max_bytes in SIZES:
        reader = Reader(log.partition, 0, len(values), 10**6)
        got: list[bytes] = []
        while not reader.done:
            offset, left = reader.next_offset, reader.records_left
            first = read_on(reader, max_bytes, cold)
            reader.rewind(offset, left)
            again = read_on(reader, max_bytes, cold)
            assert first is not None and first == again
            got += [record.value for record in first.records]
        assert got == values
        assert reader.records_left == 10**6 - len(values)


def test_from_file_to_ring_and_back(log: LocalLog) -> None:
    values = mixed(log)
    log.sync()
    reader = Reader(log.partition, 0)
    got: list[bytes] = []
    for turn in range(10_000):
        if turn % 5 == 4:
            log.drop_rings()
            log.write(b"new %d" % turn)
            values.append(b"new %d" % turn)
        response = read_on(reader, 250)
        if response is None:
            break
        got += [record.value for record in response.records]
        if turn > 400:
            log.drop_rings()
            while (response := read_on(reader, 5_000)) is not None:
                got += [record.value for record in response.records]
            break
    assert got == values


def test_empty_responses_tell_where_the_log_ends(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", log_start=5)
    response = pb.ConsumeMessagesResponse.FromString(Reader(log.partition, 5).empty_response())
    assert (response.high_watermark, response.log_start_offset, response.caught_up) == (5, 5, True)
    log.write(b"a")
    response = pb.ConsumeMessagesResponse.FromString(Reader(log.partition, 5).empty_response())
    assert (response.high_watermark, response.caught_up, len(response.records)) == (6, False, 0)


def test_available_bytes_is_never_less_than_there_is(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", Config(segment_bytes=20_000))
    for number in range(0, 300, 3):
        log.append(*(b"%04d" % (number + each) + b"v" * 100 for each in range(3)), batch=True)
        log.partition.flush()
    log.sync()
    for cold in (False, True):
        if cold:
            log.drop_rings()
        for offset in (0, 1, 100, 296, 299):
            reader = Reader(log.partition, offset)
            available = reader.available_bytes
            raw = reader.read_blocking(1 << 20) if cold else reader.read(1 << 20)
            total = 0
            while raw is not None:
                assert isinstance(raw, bytes)
                total += sum(
                    len(record.SerializeToString()) for record in pb.ConsumeMessagesResponse.FromString(raw).records
                )
                raw = reader.read_blocking(1 << 20) if cold else reader.read(1 << 20)
            assert total <= available <= log.partition.size_bytes
        assert Reader(log.partition, 300).available_bytes == 0
    log.append(b"not yet written")
    assert Reader(log.partition, 300).available_bytes == 0


def test_nothing_unwritten_is_read(log: LocalLog) -> None:
    log.write(b"a")
    log.append(b"b")
    reader = Reader(log.partition, 0)
    assert [record.value for record in (read_on(reader) or pb.ConsumeMessagesResponse()).records] == [b"a"]
    assert read_on(reader) is None and read_on(reader, cold=True) is None
    # Also when the ring has only what is not written.
    log.drop_rings()
    assert values_of(log.partition) == [b"a"]
    assert read_on(Reader(log.partition, 1)) is None
    log.tick()
    assert values_of(log.partition) == [b"a", b"b"]


# Data that is not in memory


def drop_pages(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def need_dropped_pages(log: LocalLog, path: Path) -> None:
    """A busy machine does not always drop them when it is asked to."""
    for _ in range(100):
        drop_pages(path)
        if Reader(log.partition, 0).read(50_000) is WOULD_BLOCK:
            return
    pytest.skip("this filesystem keeps its pages, or can't tell")


def test_what_would_block_is_left_to_a_thread(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data")
    values = [b"%d" % number + b"v" * 3000 for number in range(300)]
    log.write(*values)
    log.sync()
    log.drop_rings()
    (path,) = segments_of(log.directory)
    need_dropped_pages(log, path)
    blocked = 0
    got: list[bytes] = []
    for max_bytes in (1, 5_000, 50_000):
        drop_pages(path)
        reader = Reader(log.partition, 0, 300)
        got.clear()
        while not reader.done:
            if len(got) % 40 < 10:
                drop_pages(path)
            raw = reader.read(max_bytes)
            if raw is WOULD_BLOCK:
                # It has not moved on, and does not when it is asked again.
                assert reader.next_offset == len(got)
                blocked += 1
                raw = reader.read_blocking(max_bytes)
            assert isinstance(raw, bytes)
            got += [record.value for record in pb.ConsumeMessagesResponse.FromString(raw).records]
        assert got == values
    # What is being read ahead can't be dropped, and may be there by the next look; but not each time.
    assert blocked > 0


def keep_pages(path: Path, size_bytes: int) -> None:
    """Of the file just the pages with its first bytes are in memory, where the filesystem lets that be chosen."""
    # What is being read ahead can't be dropped.
    time.sleep(0.02)
    drop_pages(path)
    with path.open("rb", buffering=0) as file:
        # Otherwise what follows would be read ahead.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for position in range(0, size_bytes, mmap.PAGESIZE):
            os.pread(file.fileno(), 1, position)


def places_of(path: Path) -> list[int]:
    """Where each batch of a segment file begins."""
    places = [SEGMENT_HEADER_SIZE]
    for batch in batches_in(path):
        places.append(places[-1] + BATCH_HEADER_SIZE + batch.payload_bytes)
    return places[:-1]


def test_what_would_block_halfway_is_left_to_a_thread(log_in: LogIn, tmp_path: Path) -> None:
    """Of a header, and of the only batch that is left, a part is in memory: that is no damage."""
    log = log_in(tmp_path / "data")
    for number in range(300):
        log.write(b"%03d" % number + b"v" * 3000)
    log.write(b"w" * 20_000)
    log.sync()
    log.drop_rings()
    (path,) = segments_of(log.directory)
    places = places_of(path)
    need_dropped_pages(log, path)
    straddling = [
        number for number, place in enumerate(places)
        if place // mmap.PAGESIZE < (place + BATCH_HEADER_SIZE - 1) // mmap.PAGESIZE
    ]
    assert len(straddling) > 2
    wanted = [(number, places[number]) for number in straddling] + [(300, places[-1] + BATCH_HEADER_SIZE)]
    blocked = 0
    for number, size_bytes in wanted:
        keep_pages(path, size_bytes)
        reader = Reader(log.partition, number, number + 1)
        raw = reader.read(50_000)
        if raw is WOULD_BLOCK:
            blocked += 1
            raw = reader.read_blocking(50_000)
        assert isinstance(raw, bytes)
        assert [record.offset for record in pb.ConsumeMessagesResponse.FromString(raw).records] == [number]
    # The disk may be quicker than the next look, but not each time.
    assert blocked > 0


# Damage


def test_a_file_that_ends_within_a_header(log: LocalLog) -> None:
    """Somebody has cut it, while it was open."""
    for number in range(40):
        log.write(b"%d" % number)
    log.sync()
    log.drop_rings()
    (path,) = segments_of(log.directory)
    places = places_of(path)
    os.truncate(path, places[30] + BATCH_HEADER_SIZE - 1)
    for cold in (False, True):
        with pytest.raises(TakhinError) as caught:
            read_on(Reader(log.partition, 30), cold=cold)
        assert caught.value.code is Code.DATA_LOSS


@pytest.mark.parametrize("max_bytes", [1, 50_000], ids=["a record of a batch", "whole batches"])
def test_what_is_read_in_part_without_waiting_is_no_damage_yet(log: LocalLog, max_bytes: int) -> None:
    """The rest may be on the disk: only who waits for it can tell that it isn't."""
    for _ in range(3):
        log.append(*[b"v" * 3000] * 3, batch=True)
        log.partition.flush()
    log.sync()
    log.drop_rings()
    (path,) = segments_of(log.directory)
    os.truncate(path, places_of(path)[2] + BATCH_HEADER_SIZE + 1000)
    reader = Reader(log.partition, 6)
    assert reader.read(max_bytes) is WOULD_BLOCK
    with pytest.raises(TakhinError) as caught:
        reader.read_blocking(max_bytes)
    assert caught.value.code is Code.DATA_LOSS


def damage_at(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x20
    with path.open("r+b") as file:
        file.seek(position)
        file.write(data[position : position + 1])


@pytest.mark.parametrize("max_bytes", [1, 250, 3_000, 1 << 20])
@pytest.mark.parametrize("where", ["header", "crc", "size", "records", "last byte"])
def test_a_damaged_batch_is_not_delivered(log: LocalLog, max_bytes: int, where: str) -> None:
    for number in range(0, 90, 3):
        log.append(*(b"%d" % (number + each) + b"v" * 60 for each in range(3)), batch=True)
        log.partition.flush()
    log.sync()
    log.drop_rings()
    (path,) = segments_of(log.directory)
    batches = batches_in(path)
    start = SEGMENT_HEADER_SIZE + sum(BATCH_HEADER_SIZE + batch.payload_bytes for batch in batches[:20])
    size = BATCH_HEADER_SIZE + batches[20].payload_bytes
    damage_at(path, start + {"header": 3, "crc": 9, "size": 38, "records": 150, "last byte": size - 1}[where])
    reader = Reader(log.partition, 0)
    got = 0
    with pytest.raises(TakhinError) as caught:
        while True:
            response = read_on(reader, max_bytes, cold=True)
            assert response is not None
            got += len(response.records)
    # All that is good comes first, then the damage has its place.
    assert (got, reader.next_offset) == (60, 60)
    assert caught.value.reason is Reason.CORRUPT_BATCH and caught.value.code is Code.DATA_LOSS
    assert caught.value.metadata == {"topic": "t", "partition": "0", "offset": "60"}
    assert f"{path.name} at byte {start}" in caught.value.message
    for offset in (60, 61, 62):
        for read in (Reader(log.partition, offset).read, Reader(log.partition, offset).read_blocking):
            with pytest.raises(TakhinError) as caught:
                read(max_bytes)
            assert caught.value.reason is Reason.CORRUPT_BATCH
    # What lies behind it can be read as far as the index leads there.
    assert values_of(log.partition, 89, cold=True) == [b"89" + b"v" * 60]


def test_a_file_that_lost_its_end(log: LocalLog) -> None:
    for number in range(30):
        log.write(b"%d" % number + b"v" * 50)
    log.sync()
    log.drop_rings()
    (path,) = segments_of(log.directory)
    batches = batches_in(path)
    start = SEGMENT_HEADER_SIZE + sum(BATCH_HEADER_SIZE + batch.payload_bytes for batch in batches[:20])
    for length in (start, start + 1, start + 104, start + 106):
        os.truncate(path, length)
        reader = Reader(log.partition, 0)
        with pytest.raises(TakhinError) as caught:
            while read_on(reader, 1000, cold=True) is not None:
                pass
        assert (caught.value.reason, reader.next_offset) == (Reason.CORRUPT_BATCH, 20)


@pytest.mark.parametrize("length", [b"\x80\x80\x80\x80\x80", b"\xff\x7f"], ids=["none", "beyond the batch"])
def test_a_batch_that_is_damaged_after_it_was_begun(log: LocalLog, length: bytes) -> None:
    """Its checksum matched when its first record was read; then the length of the next one rots."""
    log.append(*(b"%d" % number + b"v" * 3000 for number in range(3)), batch=True)
    for _ in range(20):
        log.append(b"w" * 1000, batch=True)
    log.sync()
    log.drop_rings()
    (path,) = segments_of(log.directory)
    reader = Reader(log.partition, 0)
    first = read_on(reader, 200, cold=True)
    assert first is not None and len(first.records) == 1
    # Before the value: two tags, two lengths of two bytes.
    at = path.read_bytes().index(b"1vvv") - 6
    with path.open("r+b") as file:
        file.seek(at + 1)
        file.write(length)
    for read in (reader.read, reader.read_blocking):
        with pytest.raises(TakhinError) as caught:
            read(200)
        assert (caught.value.reason, reader.next_offset) == (Reason.CORRUPT_BATCH, 1)


@pytest.mark.parametrize("max_bytes", [250, 1 << 20])
def test_a_batch_that_is_whole_and_another_one(log: LocalLog, max_bytes: int) -> None:
    """Its checksum matches; but it is not the one that follows what was read."""
    for number in range(30):
        log.append(*(b"%02d" % number + b"v" * 100 for _ in range(3)), batch=True)
        log.partition.flush()
    log.sync()
    log.drop_rings()
    (path,) = segments_of(log.directory)
    size = {BATCH_HEADER_SIZE + batch.payload_bytes for batch in batches_in(path)[10:13]}
    assert len(size) == 1
    reader = Reader(log.partition, 0)
    while reader.next_offset < 33:
        # One batch.
        assert read_on(reader, 600, cold=True) is not None
    data = path.read_bytes()
    # The one at which the reader stands, and the one behind it, change places.
    (step,) = size
    start = SEGMENT_HEADER_SIZE + sum(BATCH_HEADER_SIZE + batch.payload_bytes for batch in batches_in(path)[:11])
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data[start + step:start + 2 * step] + data[start:start + step])
    with pytest.raises(TakhinError) as caught:
        reader.read_blocking(max_bytes)
    assert (caught.value.reason, reader.next_offset) == (Reason.CORRUPT_BATCH, 33)


@pytest.mark.parametrize("entries", [1, 3, 1 << 20])
def test_an_index_that_counts_more_entries_than_it_has(entries: int) -> None:
    """Both of its checksums match: as if it had been written so."""
    whole = OffsetIndex().encode(SegmentSummary(0, 5, 500, 1, 1, 1))
    assert OffsetIndex.decode(whole) is not None
    sums = struct.pack("<I", entries) + whole[16:60]
    rest = sums + struct.pack("<I", masked(crc32c(sums)))
    assert OffsetIndex.decode(whole[:8] + struct.pack("<I", masked(crc32c(rest))) + rest) is None


# Readers and retention


def test_a_reader_that_retention_overtakes(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", Config(segment_bytes=5000))
    log.append(*(b"%03d" % number + b"v" * 100 for number in range(20)), batch=True)
    log.append(*(b"%03d" % number + b"v" * 100 for number in range(20, 40)), batch=True)
    log.append(b"end")
    log.sync()
    log.drop_rings()
    overtaken, beyond = Reader(log.partition, 3), Reader(log.partition, 25)
    for reader in (overtaken, beyond):
        response = read_on(reader, 500, cold=True)
        assert response is not None and 0 < len(response.records) < 5
    first = log.partition.segments[0].path
    removed = log.partition.set_log_start(20)
    log.run(log.store.remove_segments(removed))
    for read in (overtaken.read, overtaken.read_blocking):
        with pytest.raises(TakhinError) as caught:
            read(500)
        assert caught.value.reason is Reason.OFFSET_OUT_OF_RANGE
        assert caught.value.metadata == {"log_start_offset": "20", "end_offset": "41"}
    # Its memory of the file does not keep the file's space on the disk.
    del removed
    assert descriptors_of(f"{first} (deleted)") == []
    at = beyond.next_offset
    response = read_on(beyond, cold=True)
    assert response is not None and response.records[0].offset == at and response.log_start_offset == 20


# Readers in threads


def test_readers_in_threads_beside_appends_rolls_and_retention(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(
        tmp_path / "data", Config(segment_bytes=30_000), open_files=16, ring_bytes=1 << 16,
        ring_bytes_per_partition=1 << 14,
    )
    count = 3000
    stop, failed = threading.Event(), threading.Event()
    overtaken = [0] * 4

    def value(number: int) -> bytes:
        return b"%06d" % number + b"v" * (number * 7919 % 300)

    def follow(which: int) -> int:
        rng = random.Random(which)
        reader = Reader(log.partition, 0)
        seen = 0
        while not (stop.is_set() and (failed.is_set() or reader.next_offset >= count)):
            try:
                raw = reader.read_blocking(rng.choice([1, 300, 4_000, 60_000]))
            except TakhinError as problem:
                assert problem.reason is Reason.OFFSET_OUT_OF_RANGE
                overtaken[which] += 1
                reader = Reader(log.partition, log.partition.log_start_offset)
                continue
            except OSError:
                # The file was removed between the check of the log's start and its opening.
                assert reader.next_offset < log.partition.log_start_offset
                continue
            if raw is None:
                stop.wait(0.001)
                continue
            response = pb.ConsumeMessagesResponse.FromString(raw)
            for record in response.records:
                assert record.value == value(record.offset)
            assert response.records[-1].offset + 1 == reader.next_offset <= response.high_watermark
            seen += len(response.records)
        return seen

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(follow, which) for which in range(4)]
        try:
            for number in range(count):
                log.append(value(number))
                if number % 10 == 9:
                    log.partition.flush()
                if number % 400 == 399:
                    log.sync()
                if number % 1000 == 999:
                    removed = log.partition.set_log_start(number - 700)
                    log.run(log.store.remove_segments(removed))
            log.sync()
        except BaseException:
            failed.set()
            raise
        finally:
            stop.set()
        assert sum(reader.result(timeout=30) for reader in readers) > 0
    assert len(log.partition.segments) > 3
    assert log.close()
