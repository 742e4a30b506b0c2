"""What a partition knows of its producers: over failed writes, over restarts of every kind, and in its snapshot."""

import os
import shutil
import struct
from pathlib import Path

import pytest

from takhin.codec.crc32c import crc32c
from takhin.codec.messages import ProduceRequest
from takhin.errors import Reason, TakhinError
from takhin.log.partition import Partition
from takhin.log.producers import SNAPSHOT_NAME, ProducerBudget, ProducerStates
from takhin.v1 import takhin_pb2 as pb
from tests.log.test_partition import (
    NOW_MS,
    TOPIC_ID,
    Config,
    LocalLog,
    LogIn,
    batches_in,
    file_becomes,
    file_size_limit,
    log as log,
    log_in as log_in,
    quick_path as quick_path,
    segments_of,
    values_of,
)
from tests.model.codec_model import masked

WRITTEN = 2
_scan = ProduceRequest(100_000)


def request(
    producer: int, sequence: int, *values: bytes, epoch: int = 0, timestamp_ms: int = 0
) -> pb.ProduceMessageRequest:
    return pb.ProduceMessageRequest(
        topic="t", producer=pb.ProducerState(id=producer, epoch=epoch, sequence=sequence),
        records=[pb.Record(value=value, timestamp=timestamp_ms) for value in values],
    )


def send(
    log: LocalLog, producer: int, sequence: int, *values: bytes, to: int = 0, **named: int
) -> pb.ProduceMessageResponse:
    """As the broker does it: checked, and appended when it is to be. Raises what these do."""
    _scan.read(request(producer, sequence, *values, **named).SerializeToString())
    partition = log.partitions[to]
    known = partition.check(_scan, WRITTEN)
    answer = partition.append(_scan, log.now_ms, WRITTEN) if known is None else known[0]
    response = pb.ProduceMessageResponse.FromString(answer)
    assert response.duplicate == (known is not None)
    if known is not None:
        assert known[1] == response.offset + response.record_count
    return response


def refused(log: LocalLog, reason: Reason, producer: int, sequence: int, *values: bytes, **named: int) -> TakhinError:
    before = log.partition.next_offset
    with pytest.raises(TakhinError) as caught:
        send(log, producer, sequence, *values or (b"refused",), **named)
    assert caught.value.reason is reason, caught.value
    assert log.partition.next_offset == before
    return caught.value


Known = dict[int, tuple[int, list[tuple[int, int, int, int, int]]]]


def known(partition: Partition) -> Known:
    """Epoch and batches of each producer: (sequence, records, base offset, first timestamp, log epoch)."""
    return {state.id: (state.epoch, state.batches_known) for state in partition.producers if state.batches_known}


def fill(log: LocalLog, producers: int = 3, rounds: int = 8) -> None:
    """Batches of several producers, of different sizes, with and without timestamps of their own, and plain ones."""
    for turn in range(rounds):
        for producer in range(1, producers + 1):
            count = (turn + producer) % 3 + 1
            sequence = sum((earlier + producer) % 3 + 1 for earlier in range(turn))
            values = [b"%d-%d-%d" % (producer, turn, i) for i in range(count)]
            send(log, producer, sequence, *values, timestamp_ms=1000 + turn if turn % 2 else 0)
        log.append(b"plain")
        log.now_ms += 10
        log.tick()


def snapshot_of(directory: str | Path, partition: int = 0) -> Path:
    return Path(directory) / "topics" / str(TOPIC_ID) / str(partition) / SNAPSHOT_NAME


def told_by(path: Path) -> ProducerStates:
    states = ProducerStates.decode(path.read_bytes(), TOPIC_ID, 0, ProducerBudget(100))
    assert states is not None
    return states


# A write that fails


def test_what_was_not_written_is_no_duplicate(log: LocalLog) -> None:
    log.append(b"first")
    send(log, 1, 0, b"a", b"b")
    send(log, 2, 0, b"x")
    log.tick()
    before = known(log.partition)
    (path,) = segments_of(log.directory)
    send(log, 1, 2, b"c")
    send(log, 1, 3, b"d", b"e")
    send(log, 2, 1, b"y")
    send(log, 3, 0, b"new")
    send(log, 2, 0, b"z", epoch=1)
    assert send(log, 1, 2, b"c").offset == 4
    with file_size_limit(path.stat().st_size):
        log.tick()
    assert log.halted == [log.partition]
    assert known(log.partition) == before
    assert log.store.producers.used == 2
    # What is written is known also while nothing can be appended; a gap is not told as one.
    assert send(log, 1, 0, b"a", b"b").offset == 1
    refused(log, Reason.WRITE_FAILED, 1, 2, b"c")
    refused(log, Reason.WRITE_FAILED, 1, 3, b"d", b"e")
    log.partition.resume(2)
    refused(log, Reason.SEQUENCE_GAP, 1, 3, b"d", b"e")
    again = send(log, 1, 2, b"c")
    assert (again.offset, again.epoch, again.duplicate) == (4, 2, False)
    assert send(log, 3, 0, b"new").offset == 5
    assert send(log, 2, 1, b"y").offset == 6
    log.tick()
    assert send(log, 1, 2, b"c").epoch == 2
    assert values_of(log.partition) == [b"first", b"a", b"b", b"x", b"c", b"new", b"y"]


@pytest.mark.parametrize("room_bytes", [0, 1, 100, 200, 400, 600])
def test_a_short_write_voids_the_whole_tick(log: LocalLog, room_bytes: int) -> None:
    fill(log)
    before, size_bytes = known(log.partition), segments_of(log.directory)[0].stat().st_size
    sequence = sum(count for _, count, *_ in [before[1][1][-1]]) + before[1][1][-1][0]
    for number in range(5):
        send(log, 1, sequence + number, b"v" * 50)
    with file_size_limit(size_bytes + room_bytes):
        log.tick()
    assert known(log.partition) == before
    log.partition.resume(2)
    for number in range(5):
        assert not send(log, 1, sequence + number, b"v" * 50).duplicate
    log.tick()
    log.partition.flush()
    assert known(log.partition)[1][1][-1][0] == sequence + 4


def test_a_failure_within_a_roll(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", Config(segment_bytes=1200))
    send(log, 1, 0, b"a" * 500)
    log.tick()
    send(log, 1, 1, b"b" * 300)
    before = segments_of(log.directory)[0].stat().st_size
    with file_size_limit(before):
        refusal = pytest.raises(TakhinError, send, log, 1, 2, b"c" * 700)
    assert refusal.value.reason is Reason.WRITE_FAILED
    assert [batch[0] for batch in known(log.partition)[1][1]] == [0]
    log.partition.resume(2)
    assert send(log, 1, 1, b"b" * 300).offset == 1


def test_a_failed_sync_keeps_what_is_written(log: LocalLog) -> None:
    send(log, 1, 0, b"a")
    log.tick()
    send(log, 1, 1, b"b")
    log.partition.fail(Reason.SYNC_FAILED, "as if")
    assert [batch[0] for batch in known(log.partition)[1][1]] == [0]
    assert send(log, 1, 0, b"a").duplicate
    refused(log, Reason.SYNC_FAILED, 1, 1, b"b")
    with pytest.raises(TakhinError):
        log.partition.durable_to(1)


# Restarts


def test_after_a_kill_everything_is_known_from_the_headers(log: LocalLog, log_in: LogIn, tmp_path: Path) -> None:
    fill(log)
    assert {len(batches) for _, batches in known(log.partition).values()} == {5}
    assert not snapshot_of(log.directory).exists()
    again = log_in(log.killed(tmp_path / "killed"), epoch=2)
    assert known(again.partition) == known(log.partition)
    assert again.store.producers.used == 3
    for producer, (_, batches) in known(log.partition).items():
        for sequence, count, offset, timestamp_ms, epoch in batches:
            answer = send(again, producer, sequence, *[b"v"] * count)
            assert (answer.offset, answer.timestamp, answer.epoch) == (offset, timestamp_ms, epoch)
            assert answer.duplicate and answer.record_count == count


@pytest.mark.parametrize("size_bytes", [300_000, 1_048_576 - 105, 1_500_000, 3_000_000])
def test_large_batches(log: LocalLog, log_in: LogIn, tmp_path: Path, size_bytes: int) -> None:
    send(log, 1, 0, b"small")
    send(log, 1, 1, b"v" * size_bytes, b"w", timestamp_ms=77)
    send(log, 2, 0, b"v" * size_bytes, timestamp_ms=78)
    send(log, 1, 3, b"x" * (size_bytes // 3), b"y" * (size_bytes // 2))
    send(log, 2, 1, b"small", timestamp_ms=79)
    log.tick()
    again = log_in(log.killed(tmp_path / "killed"), epoch=2)
    assert known(again.partition) == known(log.partition)


def test_after_a_clean_stop_no_batch_is_read(log: LocalLog, log_in: LogIn) -> None:
    fill(log)
    before, end = known(log.partition), log.partition.next_offset
    assert log.close()
    path = snapshot_of(log.directory)
    assert told_by(path).snapshot_offset == end
    # So that whoever reads it finds nothing.
    (segment,) = segments_of(log.directory)
    data = segment.read_bytes()
    segment.write_bytes(data[:49] + bytes(len(data) - 49))
    again = log_in(log.directory, epoch=2, was_clean=True)
    assert known(again.partition) == before
    assert again.partition.failure is None


def test_epochs_of_producers_after_restarts(log: LocalLog, log_in: LogIn, tmp_path: Path) -> None:
    send(log, 1, 0, b"a", b"b")
    send(log, 1, 2, b"c")
    send(log, 1, 0, b"d", epoch=3)
    log.tick()
    again = log_in(log.killed(tmp_path / "killed"), epoch=2)
    assert [batch[0] for batch in known(again.partition)[1][1]] == [0]
    refused(again, Reason.PRODUCER_FENCED, 1, 3, b"e")
    refused(again, Reason.SEQUENCE_GAP, 1, 1, b"e", epoch=4)
    assert send(again, 1, 0, b"d", epoch=3).duplicate
    assert send(again, 1, 1, b"e", epoch=3).offset == 4


def test_what_a_torn_tail_took_is_no_duplicate(log: LocalLog, log_in: LogIn, tmp_path: Path) -> None:
    fill(log)
    copy = log.killed(tmp_path / "torn")
    (path,) = segments_of(copy)
    lost = batches_in(path)[-2:]
    os.truncate(path, path.stat().st_size - 1 - 105 - lost[1].payload_bytes)
    again = log_in(copy, epoch=2)
    assert again.partition.next_offset == lost[0].base_offset
    assert known(again.partition)[3] != known(log.partition)[3]
    answer = send(again, 3, lost[0].producer_sequence, *[b"v"] * lost[0].record_count)
    assert (answer.duplicate, answer.offset) == (False, lost[0].base_offset)


# Snapshots


def test_snapshots_come_with_new_segments_and_tell_only_what_is_durable(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", Config(segment_bytes=6000))
    path = snapshot_of(log.directory)
    turn = 0
    while len(segments_of(log.directory)) < 3:
        send(log, 1, turn, b"v" * 500)
        log.tick()
        turn += 1
    assert not path.exists()
    log.sync()
    first = told_by(path).snapshot_offset
    assert 0 < first < log.partition.next_offset
    while len(segments_of(log.directory)) < 5:
        send(log, 1, turn, b"v" * 500)
        log.sync()
        turn += 1
    assert first < told_by(path).snapshot_offset <= segments_base(log)[-1]
    again = log_in(log.killed(tmp_path / "killed"), epoch=2)
    assert known(again.partition) == known(log.partition)


def segments_base(log: LocalLog) -> list[int]:
    return [segment.base_offset for segment in log.partition.segments]


def test_a_snapshot_in_the_middle_of_a_tick_tells_of_nothing_unwritten(log: LocalLog) -> None:
    fill(log)
    before, end = known(log.partition), log.partition.written_offset
    sequence = before[1][1][-1][0] + before[1][1][-1][1]
    send(log, 1, sequence, b"not yet written")
    send(log, 9, 0, b"neither")
    snapshot = log.partition.producers.encode(end)
    states = ProducerStates.decode(snapshot, TOPIC_ID, 0, ProducerBudget(100))
    assert states is not None
    assert {state.id: (state.epoch, state.batches_known) for state in states} == before
    assert known(log.partition)[1] != before[1] and 9 in known(log.partition)


def test_many_producers_are_not_written_again_and_again(log_in: LogIn, quick_path: Path) -> None:
    log = log_in(quick_path / "data", Config(segment_bytes=4096))
    for producer in range(1, 201):
        send(log, producer, 0, b"v")
    log.sync()
    written = set()
    for turn in range(200):
        send(log, 1, turn + 1, b"v" * 400)
        log.sync()
        if snapshot_of(log.directory).exists():
            written.add(told_by(snapshot_of(log.directory)).snapshot_offset)
    # 200 producers take some 10 kB there; the log grew by 100 kB, in 25 segments.
    assert len(log.partition.segments) > 20
    assert len(written) <= 1


@pytest.mark.parametrize("kind", ["short", "empty", "flipped", "foreign", "other partition", "other version", "gone"])
def test_a_snapshot_that_is_not_whole(log_in: LogIn, tmp_path: Path, kind: str) -> None:
    log = log_in(tmp_path / "data", partitions=2)
    fill(log)
    send(log, 7, 0, b"elsewhere", to=1)
    log.tick()
    before = known(log.partition)
    assert log.close()
    path = snapshot_of(log.directory)
    data = path.read_bytes()
    match kind:
        case "short":
            path.write_bytes(data[:-1])
        case "empty":
            path.write_bytes(b"")
        case "flipped":
            path.write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
        case "foreign":
            path.write_bytes(b"TKP1" + os.urandom(200))
        case "other partition":
            shutil.copyfile(snapshot_of(log.directory, 1), path)
        case "other version":
            path.write_bytes(data[:4] + b"\x02" + data[5:])
        case "gone":
            path.unlink()
    again = log_in(log.directory, partitions=2, epoch=2, was_clean=True)
    assert known(again.partition) == before
    assert known(again.partitions[1]).keys() == {7}
    assert again.store.producers.used == 4


@pytest.mark.parametrize("offset", [-1, 1 << 53, -1 << 63])
def test_a_snapshot_of_no_offset(log: LocalLog, offset: int) -> None:
    """Its checksum is right, and it was not written here."""
    fill(log)
    written = log.partition.producers.encode(10)
    sums = written[12:16] + struct.pack("<q", offset) + written[24:]
    forged = written[:8] + struct.pack("<I", masked(crc32c(sums))) + sums
    assert ProducerStates.decode(forged, TOPIC_ID, 0, ProducerBudget(100)) is None
    told = ProducerStates.decode(written, TOPIC_ID, 0, ProducerBudget(100))
    assert told is not None and told.snapshot_offset == 10


@pytest.mark.parametrize(("batches", "is_possible"), [(0, False), (1, True), (5, True), (6, False)])
def test_a_snapshot_of_as_many_batches_as_are_kept(batches: int, is_possible: bool) -> None:
    """The checksum is right in each."""
    known_ones = b"".join(struct.pack("<qqqIi", number, number, 1, 1, 1) for number in range(batches))
    sums = struct.pack("<IqqII", 1, 10, TOPIC_ID, 0, 0) + struct.pack("<qiIq", 1, 0, batches, 1) + known_ones
    snapshot = struct.pack("<4sII", b"TKP1", 1, masked(crc32c(sums))) + sums
    told = ProducerStates.decode(snapshot, TOPIC_ID, 0, ProducerBudget(100))
    assert (told is not None) is is_possible
    assert not is_possible or [len(state.batches_known) for state in told] == [batches]


def test_an_older_snapshot_is_as_good(log: LocalLog, log_in: LogIn) -> None:
    fill(log, rounds=3)
    log.sync()
    log.partition.save_producers()
    older = snapshot_of(log.directory).read_bytes()
    fill_more(log)
    before = known(log.partition)
    assert log.close()
    snapshot_of(log.directory).write_bytes(older)
    again = log_in(log.directory, epoch=2, was_clean=True)
    assert known(again.partition) == before


def fill_more(log: LocalLog) -> None:
    for producer, (_, batches) in known(log.partition).items():
        sequence = batches[-1][0] + batches[-1][1]
        for number in range(3):
            send(log, producer, sequence + number, b"more")
        log.tick()


def test_a_snapshot_vouches_for_the_log(log: LocalLog, log_in: LogIn, tmp_path: Path) -> None:
    fill(log)
    log.sync()
    log.partition.save_producers()
    copy = log.killed(tmp_path / "cut")
    (path,) = segments_of(copy)
    last = batches_in(path)[-1]
    os.truncate(path, path.stat().st_size - 1)
    again = log_in(copy, epoch=2)
    assert again.partition.failure is not None and again.partition.failure[0] is Reason.PARTITION_DAMAGED
    assert again.partition.next_offset == last.base_offset
    # What can be read is known.
    assert known(again.partition).keys() == {1, 2, 3}
    assert snapshot_of(copy).read_bytes() == snapshot_of(log.directory).read_bytes()


def test_rot_that_is_found_while_producers_are_looked_for(log: LocalLog, log_in: LogIn) -> None:
    fill(log)
    assert log.close()
    snapshot_of(log.directory).unlink()
    (path,) = segments_of(log.directory)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    again = log_in(log.directory, epoch=2, was_clean=True)
    assert again.partition.failure is not None and again.partition.failure[0] is Reason.PARTITION_DAMAGED
    assert path.read_bytes() == data


def test_rot_that_is_found_while_producers_are_looked_for_behind_a_torn_tail(log_in: LogIn, tmp_path: Path) -> None:
    """What an index vouches for is not scanned, so the torn tail is all that is amiss, until the headers are read."""
    log = log_in(tmp_path / "data", Config(segment_bytes=3000))
    for number in range(30):
        send(log, 1, number, b"v" * 300)
        log.tick()
    log.sync()
    copy = log.killed(tmp_path / "rotten")
    snapshot_of(copy).unlink()
    first, *_, last = segments_of(copy)
    assert first.with_suffix(".index").exists()
    rotten = bytearray(first.read_bytes())
    rotten[len(rotten) // 2] ^= 1
    first.write_bytes(rotten)
    with last.open("ab") as file:
        file.write(b"torn")
    before = {path: path.read_bytes() for path in first.parent.iterdir()}
    again = log_in(copy, epoch=2)
    assert again.partition.failure is not None and again.partition.failure[0] is Reason.PARTITION_DAMAGED
    assert {path: path.read_bytes() for path in first.parent.iterdir()} == before


def test_producers_outlive_their_segments(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", Config(segment_bytes=3000))
    send(log, 1, 0, b"old", b"older", timestamp_ms=5)
    for number in range(30):
        send(log, 2, number, b"v" * 300)
        log.tick()
    start = log.partition.segments[-1].base_offset
    before = known(log.partition)
    log.run(log.store.keep_producers(log.partition, start))
    removed = log.partition.set_log_start(start)
    assert removed[0].base_offset == 0
    log.run(log.store.remove_segments(removed))
    again = log_in(log.killed(tmp_path / "killed"), log_start=start, epoch=2)
    assert known(again.partition) == before
    assert send(again, 1, 0, b"old", b"older").offset == 0
    assert send(again, 1, 2, b"new").offset == 31 + 1
    # Nothing to save a second time.
    modified = snapshot_of(log.directory).stat().st_mtime_ns
    log.run(log.store.keep_producers(log.partition, start))
    assert snapshot_of(log.directory).stat().st_mtime_ns == modified


def test_saving_for_retention_and_by_the_way_at_once(log_in: LogIn, tmp_path: Path) -> None:
    """Segments are begun, and synced, while another thread writes the snapshot: the file is always whole."""
    log = log_in(tmp_path / "data", Config(segment_bytes=3000))
    for number in range(60):
        send(log, 1, number, b"v" * 300)
        log.tick()
        if number % 7 == 6:
            saving = log.loop.create_task(log.store.keep_producers(log.partition, log.partition.written_offset))
            send(log, 2, number // 7, b"v" * 2500)
            log.sync()
            log.run(saving)
            assert told_by(snapshot_of(log.directory)).snapshot_offset >= number
    log.sync()
    again = log_in(log.killed(tmp_path / "killed"), epoch=2)
    assert known(again.partition) == known(log.partition)


def test_where_no_producer_ever_was_nothing_is_read_or_written(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data")
    log.store.producers.in_use = False
    log.write(*[b"v"] * 100)
    assert log.close()
    assert not snapshot_of(log.directory).exists()


def test_a_snapshot_that_tells_of_none(log: LocalLog, log_in: LogIn, tmp_path: Path) -> None:
    log.write(*[b"v"] * 10)
    log.sync()
    log.append(b"not durable")
    log.tick()
    log.partition.save_no_producers()
    states = told_by(snapshot_of(log.directory))
    assert (len(states), states.snapshot_offset) == (0, 10)
    send(log, 1, 0, b"a")
    log.tick()
    again = log_in(log.killed(tmp_path / "killed"), epoch=2)
    assert known(again.partition) == known(log.partition)


# Expiry and limits


def test_the_idle_are_forgotten_by_a_clock_that_does_not_jump(log: LocalLog) -> None:
    producers = log.partition.producers
    send(log, 1, 0, b"a")
    log.tick()
    log.now_ms += 10**12
    assert producers.expire(1000, 500) == 0
    assert producers.expire(1499, 500) == 0
    send(log, 2, 0, b"b")
    log.tick()
    assert producers.expire(1500, 500) == 1
    refused(log, Reason.PRODUCER_UNKNOWN, 1, 1, b"c")
    assert send(log, 2, 0, b"b").duplicate
    assert producers.expire(1999, 500) == 0
    # A retry is no sign of life; an append is.
    assert send(log, 2, 0, b"b").duplicate
    send(log, 2, 1, b"d")
    assert producers.expire(2001, 500) == 0
    assert producers.expire(2501, 500) == 1
    assert (len(producers), log.store.producers.used) == (0, 0)


def test_idle_since_before_the_restart(log: LocalLog, log_in: LogIn, tmp_path: Path) -> None:
    send(log, 1, 0, b"a")
    log.now_ms += 1000
    send(log, 2, 0, b"b")
    log.tick()
    again = log_in(log.killed(tmp_path / "killed"), epoch=2)
    producers = again.partition.producers
    producers.restart(5000, NOW_MS + 2000)
    assert producers.expire(5000, 2000) == 1
    assert [state.id for state in producers] == [2]
    assert producers.expire(5999, 2000) == 0
    assert producers.expire(6000, 2000) == 1


def test_a_clock_before_the_last_append(log: LocalLog, log_in: LogIn, tmp_path: Path) -> None:
    send(log, 1, 0, b"a")
    log.tick()
    again = log_in(log.killed(tmp_path / "killed"), epoch=2)
    again.partition.producers.restart(5000, NOW_MS - 10**11)
    assert again.partition.producers.expire(5001, 2000) == 0
    assert again.partition.producers.expire(7000, 2000) == 1


def test_the_limit_is_the_brokers(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", partitions=2, producers=3)
    for producer, to in ((1, 0), (2, 0), (1, 1)):
        send(log, producer, 0, b"v", to=to)
    for to in (0, 1):
        with pytest.raises(TakhinError) as caught:
            send(log, 3, 0, b"v", to=to)
        assert caught.value.reason is Reason.PRODUCER_LIMIT
    send(log, 2, 1, b"v")
    log.tick()
    # What a start finds is known, whatever the limit has become.
    again = log_in(log.killed(tmp_path / "killed"), partitions=2, producers=1, epoch=2)
    assert again.store.producers.used == 3
    send(again, 1, 1, b"v", to=1)
    again.store.close_partition(again.partitions[0], Reason.TOPIC_NOT_FOUND, "gone")
    assert again.store.producers.used == 1


def test_a_tick_that_fails_gives_its_places_back(log_in: LogIn, tmp_path: Path) -> None:
    log = log_in(tmp_path / "data", producers=2)
    log.append(b"first")
    log.tick()
    (path,) = segments_of(log.directory)
    for _ in range(3):
        send(log, 1, 0, b"v"), send(log, 2, 0, b"v")
        assert log.store.producers.used == 2
        with file_size_limit(path.stat().st_size):
            log.tick()
        assert log.store.producers.used == 0
        log.partition.resume(log.partition.epoch + 1)
    assert known(log.partition) == {}


def test_a_write_that_cannot_be_taken_back(log: LocalLog, log_in: LogIn, tmp_path: Path) -> None:
    """Nobody knows what the file holds; the next start does."""
    send(log, 1, 0, b"a")
    log.tick()
    (path,) = segments_of(log.directory)
    send(log, 1, 1, b"b")
    null = os.open("/dev/full", os.O_RDWR)
    with file_becomes(path, null):
        log.tick()
    os.close(null)
    assert log.partition.failure_is_final
    assert [batch[0] for batch in known(log.partition)[1][1]] == [0]
    assert send(log, 1, 0, b"a").duplicate
    again = log_in(log.killed(tmp_path / "killed"), epoch=2)
    assert again.partition.next_offset == 1
    assert not send(again, 1, 1, b"b").duplicate
