"""The log against a plain list: append, read at any offset, roll, restart, crash, in any order."""

import asyncio
import os
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


@dataclass(frozen=True)
class Config:
    segment_bytes: int
    segment_ms: int = 10**12
    flush_ms: int = -1
    log_append_time: bool = False


class Log(RuleBasedStateMachine):
    """`records` is what the log must hold from offset 0 on; `written` how many of them readers may see."""

    @initialize(segment_bytes=st.sampled_from([1024, 5_000, 100_000]), ring_bytes=st.sampled_from([64 * 1024, 2**20]))
    def begin(self, segment_bytes: int, ring_bytes: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.directory = tempfile.mkdtemp(prefix="takhin-log-")
        self.limits = Limits(ring_bytes=ring_bytes, ring_bytes_per_partition=ring_bytes // 2, open_files=16)
        self.config = Config(segment_bytes)
        self.scanner = ProduceRequest(1000)
        self.records: list[bytes] = []
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
        batch=st.booleans(),
        end_tick=st.booleans(),
    )
    def append(self, sizes: list[int], batch: bool, end_tick: bool) -> None:
        values = [os.urandom(8) + b"v" * size for size in sizes]
        groups = [values] if batch else [[value] for value in values]
        for group in groups:
            request = pb.ProduceMessageRequest(topic="t")
            if batch:
                request.records.extend([pb.Record(value=value) for value in group])
            else:
                request.record.value = group[0]
            self.scanner.read(request.SerializeToString())
            response = pb.ProduceMessageResponse.FromString(self.partition.append(self.scanner, self.now_ms, WRITTEN))
            assert response.offset == len(self.records)
            assert response.record_count == len(group)
            self.records += group
        if end_tick:
            self.end_tick()

    @rule()
    def end_tick(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0))
        self.written = len(self.records)

    @rule(data=st.data(), max_bytes=st.sampled_from([1, 300, 5_000, 10**6]), most=st.sampled_from([-1, 1, 7]))
    def read(self, data: st.DataObject, max_bytes: int, most: int) -> None:
        # What a roll within the tick has written is visible before the tick ends.
        self.written = self.partition.written_offset
        assert self.written <= len(self.records)
        offset = data.draw(st.integers(self.log_start, self.written))
        reader = Reader(self.partition, offset, self.written, most)
        expected = self.records[offset : self.written]
        if most >= 0:
            expected = expected[:most]
        got: list[bytes] = []
        while not reader.done:
            raw = reader.read(max_bytes)
            if raw is WOULD_BLOCK:
                raw = reader.read_blocking(max_bytes)
            got += self.check_response(raw, offset + len(got), max_bytes)
        assert got == expected

    def check_response(self, raw: bytes, offset: int, max_bytes: int) -> list[bytes]:
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
        return [record.value for record in response.records]

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
