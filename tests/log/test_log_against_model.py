"""The log against a plain list: append, read at any offset, roll, fail, restart, crash, in any order."""

import asyncio
import os
import resource
import shutil
import tempfile
from dataclasses import dataclass

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from takhin.codec.batch import read_batch
from takhin.codec.messages import ProduceRequest
from takhin.config import Limits
from takhin.errors import Reason
from takhin.log.partition import Partition
from takhin.log.reader import WOULD_BLOCK, Reader
from takhin.log.store import LogStore, PartitionSpec
from takhin.v1 import takhin_pb2 as pb

WRITTEN = 2

# A value, and its timestamp in ms.
Stored = tuple[bytes, int]


@dataclass(frozen=True)
class Config:
    segment_bytes: int
    segment_ms: int = 10**12
    flush_ms: int = -1
    log_append_time: bool = False


class Log(RuleBasedStateMachine):
    """`records` is what the log must hold from offset 0 on; `written` how many of them readers may see."""

    @initialize(
        segment_bytes=st.sampled_from([1024, 5_000, 100_000]),
        segment_ms=st.sampled_from([20_000, 10**12]),
        log_append_time=st.booleans(),
        ring_bytes=st.sampled_from([64 * 1024, 2**20]),
    )
    def begin(self, segment_bytes: int, segment_ms: int, log_append_time: bool, ring_bytes: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.directory = tempfile.mkdtemp(prefix="takhin-log-")
        self.limits = Limits(ring_bytes=ring_bytes, ring_bytes_per_partition=ring_bytes // 2, open_files=16)
        self.config = Config(segment_bytes, segment_ms, log_append_time=log_append_time)
        self.scanner = ProduceRequest(1000)
        self.records: list[Stored] = []
        self.written = 0
        self.log_start = 0
        self.now_ms = 1_000_000
        self.epoch = 1
        self.open()

    def open(self) -> None:
        async def opened() -> tuple[LogStore, Partition]:
            store = LogStore(self.directory, self.limits, self.loop, lambda: self.now_ms, lambda partition: None)
            spec = PartitionSpec("t", 1, 0, self.log_start, (), self.config)
            os.makedirs(os.path.join(self.directory, "topics"), exist_ok=True)
            (found,) = await store.recover([spec], was_clean=False)
            return store, store.open_partition(spec, found, self.epoch)

        self.store, self.partition = self.loop.run_until_complete(opened())

    @rule(
        sizes=st.lists(st.one_of(st.integers(0, 40), st.integers(0, 9000)), min_size=1, max_size=12),
        timestamps=st.lists(
            st.sampled_from([0, 1, -1, 999_999, 2_000_000, 2**53 - 1, 1 - 2**53]), min_size=12, max_size=12
        ),
        batch=st.booleans(),
        end_tick=st.booleans(),
    )
    def append(self, sizes: list[int], timestamps: list[int], batch: bool, end_tick: bool) -> None:
        sent = [
            pb.Record(value=os.urandom(8) + b"v" * size, timestamp=timestamp)
            for size, timestamp in zip(sizes, timestamps)
        ]
        for group in [sent] if batch else [[record] for record in sent]:
            request = pb.ProduceMessageRequest(topic="t")
            if batch:
                request.records.extend(group)
            else:
                request.record.CopyFrom(group[0])
            self.scanner.read(request.SerializeToString())
            response = pb.ProduceMessageResponse.FromString(self.partition.append(self.scanner, self.now_ms, WRITTEN))
            stored = [(record.value, self.stored_timestamp(record)) for record in group]
            assert (response.offset, response.record_count) == (len(self.records), len(group))
            assert (response.timestamp, response.epoch) == (stored[0][1], self.epoch)
            self.records += stored
        if end_tick:
            self.end_tick()

    def stored_timestamp(self, record: pb.Record) -> int:
        return self.now_ms if self.config.log_append_time or not record.timestamp else record.timestamp

    @rule()
    def end_tick(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0))
        self.written = len(self.records)

    @rule(room_bytes=st.integers(0, 2_000))
    def fail_write(self, room_bytes: int) -> None:
        """The tick's write finds less room than it needs: nothing of it stays, and a new epoch begins."""
        partition = self.partition
        written = partition.written_offset
        end = partition.segments[-1].size_bytes if partition.segments else 0
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (end + room_bytes, hard))
        try:
            partition.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        if partition.failure is None:
            self.written = len(self.records)
            return
        assert partition.failure[0] is Reason.WRITE_FAILED and not partition.failure_is_final
        assert partition.written_offset == written
        del self.records[written:]
        self.epoch += 1
        partition.resume(self.epoch)
        assert partition.epochs[-1] == (self.epoch, written)

    @rule(
        data=st.data(), max_bytes=st.sampled_from([1, 300, 5_000, 10**6]), most=st.sampled_from([-1, 1, 7]),
        cold=st.booleans(), again=st.booleans(),
    )
    def read(self, data: st.DataObject, max_bytes: int, most: int, cold: bool, again: bool) -> None:
        # What a roll within the tick has written is visible before the tick ends.
        self.written = self.partition.written_offset
        assert self.written <= len(self.records)
        offset = data.draw(st.integers(self.log_start, self.written))
        reader = Reader(self.partition, offset, self.written, most)
        expected = self.records[offset : self.written]
        if most >= 0:
            expected = expected[:most]
        got: list[Stored] = []
        while not reader.done:
            place = (reader.next_offset, reader.records_left)
            raw = self.read_once(reader, max_bytes, cold)
            if again:
                reader.rewind(*place)
                assert self.read_once(reader, max_bytes, cold) == raw
            got += self.check_response(raw, offset + len(got), max_bytes)
        assert got == expected

    def read_once(self, reader: Reader, max_bytes: int, cold: bool) -> bytes:
        raw = WOULD_BLOCK if cold else reader.read(max_bytes)
        if raw is WOULD_BLOCK:
            raw = reader.read_blocking(max_bytes)
        assert isinstance(raw, bytes)
        return raw

    def check_response(self, raw: bytes, offset: int, max_bytes: int) -> list[Stored]:
        response = pb.ConsumeMessagesResponse.FromString(raw)
        assert response.records, "an empty response although there was something to read"
        assert len(raw) <= max_bytes or len(response.records) == 1
        assert [record.offset for record in response.records] == list(range(offset, offset + len(response.records)))
        assert response.high_watermark == self.written
        assert response.caught_up == (offset + len(response.records) == self.written)
        position = 0
        for header in response.batches:
            # Whole batches stand in the response as they stand on the disk: their checksums match.
            position = raw.index(b"\x32\x67\x0dTKB1", position)
            batch = read_batch(raw, position)
            assert (batch.base_offset, batch.record_count) == (header.base_offset, header.record_count)
            position += 105 + batch.payload_bytes
        return [(record.value, record.timestamp) for record in response.records]

    @rule()
    def roll(self) -> None:
        self.partition.roll(self.now_ms)
        self.written = len(self.records)

    @rule(seconds=st.integers(0, 100))
    def drop_rings(self, seconds: int) -> None:
        self.now_ms += seconds * 1000
        self.store.rings.release_idle(self.now_ms)

    @rule(data=st.data())
    def move_log_start(self, data: st.DataObject) -> None:
        bases = [segment.base_offset for segment in self.partition.segments]
        if not bases:
            return
        start = data.draw(st.sampled_from(bases))
        removed = self.partition.set_log_start(start)
        self.loop.run_until_complete(self.store.remove_segments(removed))
        self.log_start = max(self.log_start, start)

    @rule()
    def sync(self) -> None:
        self.end_tick()
        self.loop.run_until_complete(self.partition.make_durable(self.written))
        assert self.partition.durable_offset == self.written

    @rule()
    def restart(self) -> None:
        self.close()
        self.open()
        assert self.partition.written_offset == len(self.records)

    @rule(garbage=st.binary(max_size=200))
    def crash(self, garbage: bytes) -> None:
        """kill -9: what was written is in the files, and perhaps the beginning of more."""
        written = self.partition.written_offset
        copy = tempfile.mkdtemp(prefix="takhin-log-")
        shutil.copytree(self.directory, copy, dirs_exist_ok=True)
        self.close()
        shutil.rmtree(self.directory)
        self.directory = copy
        self.written = written
        del self.records[written:]
        if garbage and self.partition.segments:
            with open(self.segment_path(self.partition.segments[-1].path), "ab") as file:
                file.write(garbage)
        self.epoch += 1
        self.open()
        assert self.partition.written_offset == written

    def segment_path(self, path: str) -> str:
        return os.path.join(self.directory, "topics", "1", "0", os.path.basename(path))

    def close(self) -> None:
        assert self.loop.run_until_complete(self.store.close([self.partition]))
        self.written = len(self.records)

    @invariant()
    def marks_in_order(self) -> None:
        if hasattr(self, "partition"):
            partition = self.partition
            assert partition.log_start_offset <= partition.written_offset
            assert partition.durable_offset <= partition.written_offset <= partition.next_offset
            assert partition.next_offset == len(self.records)

    def teardown(self) -> None:
        if hasattr(self, "partition"):
            reason = self.partition.failure
            assert reason is None, reason
            self.close()
            assert self.partition.failure is not None and self.partition.failure[0] is Reason.DRAINING
            self.loop.close()
            shutil.rmtree(self.directory)


TestLog = Log.TestCase
TestLog.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
