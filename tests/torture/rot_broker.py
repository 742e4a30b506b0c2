"""Rotten bits under a whole broker, and in its metadata."""

import asyncio
import random
from pathlib import Path

from takhin.broker.broker import Broker
from takhin.errors import StartError, TakhinError
from takhin.log.partition import Partition
from takhin.v1 import takhin_pb2 as pb
from tests.broker.test_produce_paths import produce, settings
from tests.torture.bed import Files, read_all, value_of
from tests.torture.common import Run
from tests.torture.metadata_bed import MetadataBase, MetadataBed, make_metadata
from tests.torture.torn_metadata import judge_metadata

_LAST_BYTES = 64 * 1024
_BROKERS = 20_000


class RotMetadataPlan:
    """Every bit of meta.db and of the last 64 KiB of its WAL; then of meta.db when neither a WAL nor a sum says what
    was in it: values may be others then, but nothing else."""

    def __init__(self, directory: Path, seed: int):
        self._bed = MetadataBed(directory)
        stopped = make_metadata(seed, stopped=True)
        bases = [
            make_metadata(seed), stopped,
            MetadataBase({"meta.db": stopped.files["meta.db"]}, stopped.history, values_may_differ=True),
        ]
        self._rounds: list[tuple[MetadataBase, str, range]] = [
            (base, name, range(max(0, len(data) - _LAST_BYTES) if name == "meta.db-wal" else 0, len(data)))
            for base in bases for name, data in sorted(base.files.items())
        ]
        self.total = 8 * sum(len(places) for *_, places in self._rounds)

    def close(self) -> None:
        self._bed.close()

    def judge(self, number: int, run: Run) -> None:
        """Round `number`: what is broken is told to the run."""
        at, bit = divmod(number, 8)
        for base, name, places in self._rounds:
            if at < len(places):
                break
            at -= len(places)
        data = bytearray(base.files[name])
        data[places[at]] ^= 1 << bit
        where = f"round {number}: {name} bit {bit} of byte {places[at]}"
        judge_metadata(self._bed, base, {**base.files, name: bytes(data)}, run, where)


class RotBrokerPlan:
    """Bits of any file of a data directory with three partitions: the broker starts, or says why not; the partitions
    that were not damaged serve what they have and take more."""

    total = _BROKERS

    def __init__(self, directory: Path, seed: int):
        self._seed = seed
        self._place = directory / "broker"
        self._runner = asyncio.Runner()
        self._files, self._records = self._runner.run(self._make(seed))
        self._sizes = {name: len(data) for name, data in self._files.items() if data}

    def close(self) -> None:
        self._runner.close()

    async def _make(self, seed: int) -> tuple[Files, list[list[pb.Record]]]:
        """Three partitions with three segments each; killed."""
        chance = random.Random(seed)
        broker = Broker(settings(self._place))
        await broker.start()
        topic = await broker.topics.create("t", 3, 1, {"segment.bytes": "4096"})
        producer, epoch = await broker.producers.init("n", broker.topics.partitions())
        for number in range(3):
            size = sequence = 0
            while size < 10_000:
                values = [value_of(chance, 300) for _ in range(3)]
                acks = chance.choice((1, 1, -1))
                state = pb.ProducerState(id=producer, epoch=epoch, sequence=sequence) if chance.random() < 0.5 else None
                sequence += len(values) if state is not None else 0
                await produce(broker, *values, partition=number, acks=acks, batch=True, producer=state)
                size = topic.partitions[number].size_bytes
        records = [read_all(partition)[0] for partition in topic.partitions]
        left = {str(path.relative_to(self._place)): path.read_bytes()
                for path in self._place.rglob("*") if path.is_file()}
        await _end(broker)
        return left, records

    def judge(self, number: int, run: Run) -> None:
        """Round `number`: what is broken is told to the run."""
        chance = random.Random(f"{self._seed}/{number}")
        files = dict(self._files)
        # Each file as often as the others, not as it is large.
        name = chance.choice(sorted(self._sizes))
        bits = chance.sample(range(8 * self._sizes[name]), chance.choice((1, 1, 1, 5)))
        data = bytearray(files[name])
        for bit in bits:
            data[bit // 8] ^= 1 << bit % 8
        files[name] = bytes(data)
        problem = self._runner.run(self._judge(files, name, run))
        if problem is not None:
            run.fail(f"round {number}: {name} bits {bits}: {problem}")

    async def _judge(self, files: Files, damaged: str, run: Run) -> str | None:
        put(self._place, files)
        broker = Broker(settings(self._place))
        try:
            await broker.start()
        except StartError as refusal:
            run.add(starts_refused=1)
            return None if damaged.startswith("meta.db") else f"a log keeps the broker from starting: {refusal}"
        except Exception as problem:
            # It is no more than half a broker; the next round is to have the directory.
            await _end(broker)
            return f"the start fails: {problem!r}"
        run.add(brokers_started=1)
        try:
            if damaged.startswith("meta.db") and "t" not in broker.topics.names():
                # The last commit of a WAL may always be torn, and be the one that made the topic: its files are set
                # aside, for whoever can tell.
                run.add(topics_set_aside=1)
                kept = {path.read_bytes() for path in (self._place / "orphans").rglob("*.log")}
                whole = {data for name, data in files.items() if name.endswith(".log")}
                return None if whole <= kept else "a forgotten topic's files are gone"
            for partition in broker.topics.partitions():
                is_damaged = damaged.startswith(f"topics/1/{partition.partition}/")
                problem = await self._judge_partition(broker, partition, is_damaged)
                if problem is not None:
                    return f"partition {partition.partition}: {problem}"
            return None
        finally:
            await _end(broker)

    async def _judge_partition(self, broker: Broker, partition: Partition, is_damaged: bool) -> str | None:
        whole = self._records[partition.partition]
        records, reason = read_all(partition)
        if records != whole[: len(records)]:
            return "a wrong record"
        if not is_damaged and (len(records) < len(whole) or reason is not None or partition.failure is not None):
            return f"harmed by another's damage: {len(records)} of {len(whole)} records, {reason}"
        try:
            answer = await produce(broker, b"new", partition=partition.partition, acks=-1)
        except TakhinError as refusal:
            return None if is_damaged else f"takes no appends: {refusal}"
        if answer.offset != partition.written_offset - 1 or answer.offset < len(records):
            return f"the next record got offset {answer.offset}"
        return None


def put(place: Path, files: Files) -> None:
    """A data directory that holds just these files."""
    for path in sorted(place.rglob("*"), reverse=True):
        if path.is_file() and str(path.relative_to(place)) not in files:
            path.unlink()
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)


async def _end(broker: Broker) -> None:
    broker.begin_drain()
    await broker.stop()
