"""What is fuzzed: the codec, recovery, each RPC of the service, and the fast front. An input is bytes; check() says
what is wrong."""

import asyncio
import io
import random
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from google.protobuf.message import DecodeError

from takhin.broker.broker import Broker
from takhin.cli.fast_front import is_built
from takhin.codec.batch import BATCH_HEADER_SIZE, BatchError, encode_batch, read_batch
from takhin.codec.crc32c import crc32c, masked
from takhin.codec.messages import ConsumeRequest, ProduceRequest
from takhin.errors import InvalidArgument, Reason, TakhinError
from takhin.log.index import INDEX_HEADER_SIZE, OffsetIndex, read_summary
from takhin.log.producers import SNAPSHOT_HEADER_SIZE, SNAPSHOT_NAME, ProducerBudget, ProducerStates
from takhin.rpc.call import Kind, Method
from takhin.rpc.service import SERVICE, takhin_methods
from takhin.v1 import takhin_pb2 as pb
from tests.broker.test_produce_paths import settings
from tests.model import codec_model
from tests.torture.bed import Bed, Files, make_base, read_all
from tests.torture.judge import hold
from tests.torture.mutate import RECORDS, REQUESTS, lie, mutated

_MAX_RECORDS = 50


class Target(Protocol):
    """make() an input, check() it: raises whatever is a finding."""

    def make(self, chance: random.Random) -> bytes: ...

    def check(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class _Stateless:
    def close(self) -> None:
        """Nothing was opened."""


class ProduceRequests(_Stateless):
    """ProduceMessageRequest as the broker reads it: the model's verdict, and one kind of error."""

    def __init__(self, directory: Path):
        self._request = ProduceRequest(_MAX_RECORDS)

    def make(self, chance: random.Random) -> bytes:
        requests = REQUESTS["ProduceMessage"]
        return mutated(chance.choice(requests), requests, chance)

    def check(self, data: bytes) -> None:
        refused = expected = None
        try:
            self._request.read(data)
        except InvalidArgument as refusal:
            refused = refusal.reason
        try:
            model = codec_model.read_produce_request(data, _MAX_RECORDS)
        except codec_model.Refused as refusal:
            expected = refusal.reason
        hold(refused == expected, f"refused with {refused} and not with {expected}")
        if refused is None:
            records = [self._request.record(number) for number in range(self._request.record_count)]
            hold(records == model.encoded, "other records than the model's")
            request = self._request
            state = (request.producer_id, request.producer_epoch, request.producer_sequence)
            producer = codec_model.ProducerState(*state) if request.has_producer else None
            hold(producer == model.producer, "another producer than the model's")
            expected_offset = request.expected_offset if request.has_expected_offset else None
            hold(expected_offset == model.expected_offset, "another expected_offset than the model's")
            try:
                partition = self._request.key_partition(7)
            except InvalidArgument as refusal:
                hold(refusal.reason is Reason.KEYS_SPAN_PARTITIONS, f"refused with {refusal.reason}")
            else:
                # -1: no record has a key.
                hold(partition in range(-1, 7), f"partition {partition} of 7")


class ConsumeRequests(_Stateless):
    """ConsumeMessagesRequest likewise."""

    def __init__(self, directory: Path):
        pass

    def make(self, chance: random.Random) -> bytes:
        requests = REQUESTS["ConsumeMessages"]
        return mutated(chance.choice(requests), requests, chance)

    def check(self, data: bytes) -> None:
        try:
            request = ConsumeRequest(data)
        except InvalidArgument:
            request = None
        try:
            model = codec_model.read_consume_request(data)
        except codec_model.Refused:
            model = None
        hold((request is None) == (model is None), "the model's verdict is another")
        if model is not None:
            hold(all(getattr(request, name) == value for name, value in vars(model).items()), "other numbers")


class Batches(_Stateless):
    """Batches whose checksum matches, whatever their header and payload say."""

    def __init__(self, directory: Path):
        encoded = [record.SerializeToString() for record in RECORDS]
        self._batches = [encode_batch(encoded[:count], 100, 1, 1_700_000_000_000, 2, 50) for count in (1, 2, 4)]

    def make(self, chance: random.Random) -> bytes:
        return lying_batch(chance.choice(self._batches), chance)

    def check(self, data: bytes) -> None:
        try:
            batch = read_batch(data)
        except BatchError:
            return
        payload = data[BATCH_HEADER_SIZE : BATCH_HEADER_SIZE + batch.payload_bytes]
        hold(len(payload) == batch.payload_bytes, "a payload beyond the data")
        hold(batch.base_offset >= 0 and batch.record_count >= 1, "offsets or counts that can't be")
        hold(batch.next_offset >= batch.base_offset + batch.record_count, "offsets that fall")


def lying_batch(batch: bytes, chance: random.Random) -> bytes:
    """A batch with numbers or payload changed, and its checksum made to match."""
    for _ in range(chance.choice((1, 1, 2))):
        place, width = chance.choice(((13, 8), (22, 8), (31, 4), (36, 4), (41, 4), (64, 4), (69, 8), (101, 4)))
        if chance.random() < 0.7:
            batch = lie(batch, place, width, chance)
        else:
            body = bytearray(batch[BATCH_HEADER_SIZE:])
            if body:
                body[chance.randrange(len(body))] = chance.choice((0, 0x22, 0x7F, 0x80, 0xFF))
            batch = batch[:BATCH_HEADER_SIZE] + bytes(body)
            if chance.random() < 0.3:
                batch = batch[: chance.randrange(len(batch) + 1)]
    return with_crc(batch)


def with_crc(batch: bytes) -> bytes:
    """The batch with a checksum that matches as much of it as its header claims and there is."""
    if len(batch) < BATCH_HEADER_SIZE:
        return batch
    end = BATCH_HEADER_SIZE + int.from_bytes(batch[36:40], "little")
    return batch[:8] + struct.pack("<I", masked(crc32c(batch[12:end]))) + batch[12:]


class Indexes(_Stateless):
    """Index files whose checksums match, whatever they say."""

    def __init__(self, directory: Path):
        base = make_base("index", 1, segment_bytes=1 << 20, total_bytes=40_000, sync_until=1, was_clean=True)
        (self._index,) = [data for name, data in base.files.items() if name.endswith(".index")]

    def make(self, chance: random.Random) -> bytes:
        return lying_index(self._index, chance)

    def check(self, data: bytes) -> None:
        summary = read_summary(data[:INDEX_HEADER_SIZE])
        index = OffsetIndex.decode(data)
        if index is not None:
            hold(summary is not None, "entries are believed, sums are not")
            hold(len(data) == 64 + 16 * len(index), "entries that are not there")


def lying_index(index: bytes, chance: random.Random) -> bytes:
    """An index file with numbers changed, and its checksums made to match."""
    place, width = chance.choice(((12, 4), (16, 8), (24, 8), (32, 8), (40, 8), (48, 8), (56, 4), (64, 4), (68, 4)))
    if chance.random() < 0.3:
        place = min(64 + 16 * chance.randrange(20), len(index) - 16)
    index = lie(index, place, width, chance)
    if chance.random() < 0.1:
        index = index[: chance.randrange(12, len(index))]
    if len(index) >= 64:
        index = index[:60] + struct.pack("<I", masked(crc32c(index[12:60]))) + index[64:]
    return index[:8] + struct.pack("<I", masked(crc32c(index[12:]))) + index[12:]


class Snapshots(_Stateless):
    """Snapshots of producers whose checksums match, whatever they say."""

    def __init__(self, directory: Path):
        base = make_base("snapshot", 1, segment_bytes=1 << 20, total_bytes=20_000, sync_until=1, was_clean=True)
        self._snapshot = base.files[SNAPSHOT_NAME]

    def make(self, chance: random.Random) -> bytes:
        return lying_snapshot(self._snapshot, chance)

    def check(self, data: bytes) -> None:
        budget = ProducerBudget(100)
        states = ProducerStates.decode(data, 1, 0, budget)
        if states is None:
            hold(budget.used == 0, f"{budget.used} producers of what is refused")
            return
        hold(budget.used == len(states), f"{budget.used} producers are counted, {len(states)} are there")
        hold(all(1 <= len(state.batches_known) <= 5 for state in states), "a producer of so many batches")
        again = ProducerStates.decode(states.encode(states.snapshot_offset), 1, 0, budget)
        hold(again is not None, "what is believed is refused when it was written again")


def lying_snapshot(snapshot: bytes, chance: random.Random) -> bytes:
    """A snapshot with numbers changed or bytes gone, and its checksum made to match."""
    places = ((12, 4), (16, 8), (24, 8), (32, 4), (40, 8), (48, 4), (52, 4), (56, 8), (64, 8), (88, 4))
    place, width = chance.choice(places)
    snapshot = lie(snapshot, place, width, chance)
    if chance.random() < 0.3:
        snapshot = snapshot[: chance.randrange(SNAPSHOT_HEADER_SIZE, len(snapshot))]
    return snapshot[:8] + struct.pack("<I", masked(crc32c(snapshot[12:]))) + snapshot[12:]


# Recovery


class Directories:
    """Whole directories of a partition: recovery raises nothing, is idempotent, and readers get TakhinErrors at most.

    Unlike with rot, there is no right answer: checksums match lies.
    """

    def __init__(self, directory: Path):
        self._bed = Bed(directory)
        self._bases = [
            make_base("killed", 1, segment_bytes=3000, total_bytes=8000, sync_until=0.7, largest_value=200),
            make_base("stopped", 1, segment_bytes=3000, total_bytes=8000, sync_until=1, was_clean=True),
        ]

    def close(self) -> None:
        self._bed.close()

    def make(self, chance: random.Random) -> bytes:
        base = chance.choice(self._bases)
        files = dict(base.files)
        for _ in range(chance.choice((1, 1, 2, 4))):
            name = chance.choice(sorted(files))
            match chance.randrange(6):
                case 0:
                    files[name] = mutated(files[name], list(files.values()), chance)
                case 1 | 2 if name in base.places and base.places[name]:
                    place = chance.choice(base.places[name])
                    batch = lying_batch(files[name][place.start : place.end], chance)
                    files[name] = files[name][: place.start] + batch + files[name][place.end :]
                case 3 if name.endswith(".index"):
                    files[name] = lying_index(files[name], chance) if len(files[name]) > 80 else b""
                case 3 if name == SNAPSHOT_NAME:
                    files[name] = lying_snapshot(files[name], chance) if len(files[name]) > 100 else b""
                case 4:
                    files[f"{chance.choice((0, 1, 50, 2**63 - 1, 10**20 - 1)):020d}.log"] = files[name]
                case _:
                    files[name] = chance.choice(list(files.values()))[: chance.choice((10**6, 49, 0, 300))]
        return packed(files, chance.random() < 0.3)

    def check(self, data: bytes) -> None:
        files, was_clean = unpacked(data)
        self._bed.put(files)
        found, partition = self._bed.recover(was_clean)
        for offset in (0, partition.written_offset // 2):
            # Records that are no protobuf, under a checksum that matches, are served as they are.
            with suppress(DecodeError):
                read_all(partition, offset)
        self._bed.end(partition, False)
        after = self._bed.files()
        lost = sum(map(len, files.values())) - sum(map(len, after.values()))
        indexes = sum(len(each) for name, each in files.items() if name.endswith(".index"))
        hold(lost <= indexes, f"{lost} bytes are gone")
        again, partition = self._bed.recover(False if found.cut_bytes else was_clean)
        self._bed.end(partition, False)
        ends = [
            (each.segments[-1].next_offset if each.segments else 0, each.damage is None) for each in (found, again)
        ]
        hold(ends[0] == ends[1], f"a second recovery finds another end: {ends}")
        hold(again.cut_bytes == 0, "a second recovery cuts once more")
        hold(self._bed.files() == after, "a second recovery changes files")


def packed(files: Files, was_clean: bool) -> bytes:
    """Files as one: a zip, whose comment says how the last run ended."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name), data)
        archive.comment = b"clean" if was_clean else b"killed"
    return buffer.getvalue()


def unpacked(data: bytes) -> tuple[Files, bool]:
    """What packed() was given."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}, archive.comment == b"clean"


# The service


class _Stream:
    """A client's side of a stream: sends these, takes so many answers, and then is gone."""

    peer = "fuzz"
    identity = None
    metadata: dict[str, str | bytes] = {}

    def __init__(self, requests: list[bytes], answers: int):
        self._requests = requests
        self._left = answers
        self.answers: list[bytes] = []

    def time_remaining_s(self) -> float | None:
        return None

    def cancelled(self) -> bool:
        return self._left <= 0

    async def read(self) -> bytes | None:
        return self._requests.pop(0) if self._requests else None

    async def write(self, message: bytes) -> None:
        self.answers.append(message)
        self._left -= 1
        if self._left <= 0:
            raise asyncio.CancelledError

    def cut(self) -> None:
        self._left = 0


class Requests:
    """Each RPC through the method table: TakhinError at most, and a refused request changes nothing.

    An input is the method's name, a line's end, and the request. For the stream of produce it is sent between two
    that are right, for that of a member as its first request or after one that is right.
    """

    def __init__(self, directory: Path):
        self._runner = asyncio.Runner()
        self._directory = directory / "fuzzed"
        self._runner.run(self._start())

    def close(self) -> None:
        async def stop() -> None:
            self._broker.begin_drain()
            await self._broker.stop()

        self._runner.run(stop())
        self._runner.close()

    async def _start(self) -> None:
        plain = settings(self._directory)
        limits = replace(plain.limits, partitions_per_topic=16, topics=20, groups=20, producers=20)
        self._broker = Broker(replace(plain, limits=limits))
        await self._broker.start()
        self._methods = {method.path: method for method in takhin_methods(self._broker)}
        await self._broker.topics.create("t", 2, 1, {"segment.bytes": "100000", "retention.bytes": "1000000"})
        await self._broker.producers.init("", [])
        await self._broker.producers.init("n", [])
        await self._broker.producing.produce(REQUESTS["ProduceMessage"][0])

    def make(self, chance: random.Random) -> bytes:
        name = chance.choice(sorted(REQUESTS))
        every = [request for requests in REQUESTS.values() for request in requests]
        if chance.random() < 0.1:
            request = chance.randbytes(chance.randrange(40))
        else:
            # Of the method mostly, and sometimes of another one.
            request = mutated(chance.choice(REQUESTS[name] * 9 + every[:3]), every, chance)
        return name.encode() + b"\n" + request

    def check(self, data: bytes) -> None:
        name, _, request = data.partition(b"\n")
        method = self._methods[f"/{SERVICE}/{name.decode()}"]
        self._runner.run(asyncio.wait_for(self._check(method, request), 30))

    async def _check(self, method: Method, request: bytes) -> None:
        before = self._state()
        refused = False
        try:
            if method.kind is Kind.UNARY:
                answer = await method.handler(request, _Stream([], 1))
                hold(isinstance(answer, bytes), "an answer that is not bytes")
            elif method.path.endswith("/Subscribe"):
                await self._subscribe(method, request)
            elif method.kind is Kind.BIDI:
                await self._produce_stream(method, request)
            else:
                await self._consume(method, request)
        except TakhinError as refusal:
            hold("\n" not in refusal.message and len(refusal.message) < 2000, f"a message of {refusal.message!r}")
            # Whose time was over while it waited may well happen yet.
            refused = refusal.reason is not Reason.ACK_TIMEOUT
        after = self._state()
        if refused and method.kind is Kind.UNARY:
            hold(before == after, f"refused, and yet: {before} {after}")
        if "t" not in self._broker.topics.names():
            await self._broker.topics.create("t", 2, 1, {})
            await self._broker.producing.produce(REQUESTS["ProduceMessage"][0])

    async def _produce_stream(self, method: Method, request: bytes) -> None:
        right = REQUESTS["ProduceMessage"][1]
        stream = _Stream([right, request, right], 100)
        await method.handler(stream)
        hold(len(stream.answers) == 3, f"{len(stream.answers)} answers to three requests")
        for number in (0, 2):
            answer = pb.ProduceMessageResponse.FromString(stream.answers[number])
            hold(answer.code == 0, f"a right request was refused: {answer.error}")

    async def _subscribe(self, method: Method, request: bytes) -> None:
        start, leave = REQUESTS["Subscribe"][0], REQUESTS["Subscribe"][-1]
        for requests in [start, request, leave], [request, leave]:
            stream = _Stream(requests, 100)
            try:
                await method.handler(stream)
            finally:
                for answer in stream.answers:
                    pb.SubscribeResponse.FromString(answer)
                hold(self._broker.groups.with_members() == [], "a member that is gone is a member")

    async def _consume(self, method: Method, request: bytes) -> None:
        stream = _Stream([], 3)
        task = asyncio.ensure_future(method.handler(request, stream))
        # Whoever follows the log has to be cut off; a moment more or less decides nothing.
        await asyncio.wait([task], timeout=0.005)
        task.cancel()
        await asyncio.wait([task])
        for answer in stream.answers:
            pb.ConsumeMessagesResponse.FromString(answer)
        if not task.cancelled():
            task.result()

    def _state(self) -> list[tuple[str, dict[str, str], list[int]]]:
        return [
            (topic.name, topic.configs, [partition.next_offset for partition in topic.partitions])
            for topic in self._broker.topics
        ]


TARGETS: dict[str, Callable[[Path], Target]] = {
    "produce": ProduceRequests, "consume": ConsumeRequests, "batch": Batches, "index": Indexes,
    "snapshot": Snapshots, "directory": Directories, "request": Requests,
}
if is_built():
    from tests.torture.fuzz_front import FrontCases

    TARGETS["front"] = FrontCases
