"""Several partitions and their journal against plain lists: whatever was durable is there after any power cut.

A power cut takes from each segment what was not synced to it: its end, blocks of it, its name. What retention has
removed may be back.
"""

import asyncio
import os
import random
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from takhin.codec.batch import BATCH_HEADER_SIZE, SEGMENT_HEADER_SIZE
from takhin.codec.messages import ProduceRequest
from takhin.config import Limits
from takhin.errors import Reason
from takhin.log.journal import BLOCK_BYTES
from takhin.log.recovery import RecoveredPartition
from takhin.log.store import LogStore, PartitionSpec
from takhin.v1 import takhin_pb2 as pb
from tests.log.test_journal import journal_paths
from tests.log.test_journal_replay import ABOVE, lose
from tests.log.test_partition import Config, batches_in, descriptors_of, file_becomes, values_of

NOW_MS = 1_000_000
COUNT = 4


@dataclass
class Topic:
    """One partition, and what it must hold. removed: segments that retention took, and how much of each was synced."""

    id: int
    values: list[bytes] = field(default_factory=list)
    log_start: int = 0
    removed: list[tuple[str, bytes, int]] = field(default_factory=list)


class Journaled(RuleBasedStateMachine):
    @initialize(
        segment_bytes=st.sampled_from([1024, 3000, 1 << 20]),
        journal_blocks=st.sampled_from([4, 8, 1000]),
        open_files=st.sampled_from([4, 64]),
    )
    def begin(self, segment_bytes: int, journal_blocks: int, open_files: int) -> None:
        self.loop = asyncio.new_event_loop()
        where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.directory = tempfile.mkdtemp(prefix="takhin-journal-", dir=where)
        self.limits = Limits(journal_bytes=2 * journal_blocks * BLOCK_BYTES, open_files=open_files, min_free_bytes=0)
        self.config = Config(segment_bytes)
        self.scanner = ProduceRequest(1000)
        self.topics = [Topic(number + 1) for number in range(COUNT)]
        self.last_id = COUNT
        self.epoch = 1
        os.mkdir(os.path.join(self.directory, "topics"))
        self.open(was_clean=False)

    def open(self, was_clean: bool) -> None:
        async def opened() -> None:
            self.store = LogStore(self.directory, self.limits, self.loop, lambda: NOW_MS, lambda partition: None)
            specs = [self.spec(topic) for topic in self.topics]
            found = await self.store.recover(specs, was_clean=was_clean)
            assert [each.damage for each in found] == [None] * COUNT
            self.partitions = [
                self.store.open_partition(spec, each, self.epoch) for spec, each in zip(specs, found, strict=True)
            ]

        self.loop.run_until_complete(opened())

    def spec(self, topic: Topic) -> PartitionSpec:
        return PartitionSpec("t", topic.id, 0, topic.log_start, (), self.config)

    def run(self, work: object) -> None:
        self.loop.run_until_complete(asyncio.wait_for(work, 20))  # type: ignore[arg-type]

    # What goes on

    @rule(
        numbers=st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=6),
        size=st.sampled_from([0, 50, 300, 300, 2000, 270_000]),
        then=st.sampled_from(["nothing", "tick", "durable", "durable", "durable"]),
    )
    def append(self, numbers: list[int], size: int, then: str) -> None:
        for number in numbers:
            value = os.urandom(8) + b"v" * size
            self.scanner.read(pb.ProduceMessageRequest(topic="t", record=pb.Record(value=value)).SerializeToString())
            self.partitions[number].append(self.scanner, NOW_MS, 2)
            self.topics[number].values.append(value)
        if then != "nothing":
            self.tick()
        if then == "durable":
            self.wait_durable(set(numbers))

    @rule()
    def tick(self) -> None:
        self.run(asyncio.sleep(0))

    @rule(numbers=st.sets(st.integers(0, COUNT - 1), min_size=2))
    def wait_durable(self, numbers: set[int]) -> None:
        self.tick()
        partitions = [self.partitions[number] for number in numbers]

        async def durable() -> None:
            await asyncio.gather(*(partition.make_durable(partition.written_offset) for partition in partitions))

        self.run(durable())
        assert all(partition.durable_offset == partition.written_offset for partition in partitions)

    @rule(number=st.integers(0, COUNT - 1), wait=st.booleans())
    def sync_behind(self, number: int, wait: bool) -> None:
        self.store.committer._behind.queue[self.partitions[number]] = None
        self.store.committer._go_on()
        if wait:
            self.settle()

    def settle(self) -> None:
        async def idle() -> None:
            while self.store.committer._is_busy() or self.store.committer._behind.queue:
                await asyncio.sleep(0.001)

        self.run(idle())

    @rule(number=st.integers(0, COUNT - 1))
    def roll(self, number: int) -> None:
        self.partitions[number].roll(NOW_MS)

    @rule(number=st.integers(0, COUNT - 1), data=st.data())
    def retention(self, number: int, data: st.DataObject) -> None:
        partition, topic = self.partitions[number], self.topics[number]
        starts = [
            segment.next_offset for segment in partition.segments[:-1]
            if topic.log_start < segment.next_offset <= partition.durable_offset
        ]
        if not starts:
            return
        topic.log_start = data.draw(st.sampled_from(starts))
        removed = partition.set_log_start(topic.log_start)
        for segment in removed:
            path = Path(segment.path)
            topic.removed.append((path.name, path.read_bytes(), synced_bytes(path, partition.synced_offset)))
        self.run(self.store.remove_segments(removed))

    @rule(number=st.integers(0, COUNT - 1))
    def delete(self, number: int) -> None:
        """And another one in its place."""
        self.store.close_partition(self.partitions[number], Reason.TOPIC_NOT_FOUND, "gone")
        self.run(self.store.remove_topic(self.topics[number].id))
        self.last_id += 1
        topic = self.topics[number] = Topic(self.last_id)
        self.partitions[number] = self.store.open_partition(self.spec(topic), RecoveredPartition(), self.epoch)

    @rule(device=st.sampled_from(["/dev/full", "/dev/null"]), numbers=st.sets(st.integers(0, COUNT - 1), min_size=2))
    def journal_fails(self, device: str, numbers: set[int]) -> None:
        self.settle()
        fd = os.open(device, os.O_RDWR)
        with ExitStack() as stack:
            for path in journal_paths(self.directory):
                if descriptors_of(path):
                    stack.enter_context(file_becomes(path, fd))
            self.append(list(numbers), 10, "durable")
        os.close(fd)
        self.store.committer._journal_paused_until_s = 0.0

    # How it ends, and begins again

    @rule()
    def restart(self) -> None:
        self.close()
        self.epoch += 1
        self.open(was_clean=True)
        assert [partition.next_offset for partition in self.partitions] == [
            max(len(topic.values), topic.log_start) for topic in self.topics
        ]
        self.check()

    def close(self) -> None:
        assert self.loop.run_until_complete(self.store.close(self.partitions))
        assert journal_paths(self.directory) == []

    @rule(seed=st.integers(0, 2**32), kinds=st.sets(st.sampled_from(ABOVE), min_size=1), again=st.booleans())
    def power_cut(self, seed: int, kinds: set[str], again: bool) -> None:
        self.settle()
        some = random.Random(seed)
        copy = tempfile.mkdtemp(prefix="takhin-journal-", dir=os.path.dirname(self.directory))
        shutil.copytree(self.directory, copy, dirs_exist_ok=True)
        marks = [(partition.durable_offset, partition.written_offset) for partition in self.partitions]
        for topic, partition in zip(self.topics, self.partitions, strict=True):
            self.cut(Path(copy, "topics", str(topic.id), "0"), topic, partition.synced_offset, some, sorted(kinds))
        self.store.committer._journal_paused_until_s = 0.0
        self.loop.run_until_complete(self.store.close(self.partitions))
        shutil.rmtree(self.directory)
        self.directory = copy
        journal = None
        if again and os.path.exists(os.path.join(copy, "journal")):
            journal = tempfile.mkdtemp(prefix="takhin-journal-", dir=os.path.dirname(copy))
            shutil.copytree(os.path.join(copy, "journal"), journal, dirs_exist_ok=True)
        self.epoch += 1
        self.open(was_clean=False)
        for topic, partition, (durable, written) in zip(self.topics, self.partitions, marks, strict=True):
            assert durable <= partition.next_offset <= max(written, topic.log_start)
            del topic.values[partition.next_offset:]
            topic.removed.clear()
        self.check()
        if journal is not None:
            # Killed before the journal was gone for good.
            shutil.rmtree(os.path.join(copy, "journal"))
            shutil.move(journal, os.path.join(copy, "journal"))
            self.loop.run_until_complete(self.store.close(self.partitions))
            self.epoch += 1
            self.open(was_clean=False)
            self.check()

    def cut(self, directory: Path, topic: Topic, synced_offset: int, some: random.Random, kinds: list[str]) -> None:
        for path in sorted(directory.glob("*.log")):
            lose(path, synced_bytes(path, synced_offset), some.choice(kinds))
        if topic.removed and some.random() < 0.5:
            name, data, synced = some.choice(topic.removed)
            directory.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(data)
            lose(directory / name, synced, some.choice(kinds))
        if directory.exists() and not os.listdir(directory):
            directory.rmdir()

    def check(self) -> None:
        for topic, partition in zip(self.topics, self.partitions, strict=True):
            assert partition.log_start_offset == topic.log_start
            if partition.written_offset > topic.log_start:
                assert values_of(partition, topic.log_start, cold=True) == topic.values[topic.log_start:]

    def teardown(self) -> None:
        if hasattr(self, "partitions"):
            self.close()
            self.loop.close()
            shutil.rmtree(self.directory)


def synced_bytes(path: Path, synced_offset: int) -> int:
    """How much of the segment is on the disk when all below that offset is."""
    if int(path.stem) >= synced_offset:
        return 0
    size = SEGMENT_HEADER_SIZE
    for batch in batches_in(path):
        if batch.next_offset <= synced_offset:
            size += BATCH_HEADER_SIZE + batch.payload_bytes
    return size


TestJournaled = Journaled.TestCase
TestJournaled.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
