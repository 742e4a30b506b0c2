"""Load on a broker, every attempt of it in the ledger: producers, committers, followers, topics that come and go."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from takhin.v1 import takhin_pb2 as pb
from tests.torture.oracle.client import DEADLINE_S, EARLIEST, OPTIONS, Refusal, Stub, refusal_of
from tests.torture.oracle.keyed import KeyedProducer
from tests.torture.oracle.ledger import FAILED, OK, UNKNOWN, Attempt, Ledger, attempt_entry, mark
from tests.torture.oracle.reading import stored_records

KIB = 1 << 10
# With these reasons nothing was appended, or changed. Any other error leaves that unknown.
NOTHING_CHANGED = {
    "MALFORMED_REQUEST", "MALFORMED_RECORD", "NO_RECORD", "RECORD_AND_RECORDS", "TOO_MANY_RECORDS",
    "KEYS_SPAN_PARTITIONS", "INVALID_TOPIC_NAME", "INVALID_PARTITION", "INVALID_ACKS", "INVALID_OFFSET",
    "INVALID_LIMIT", "INVALID_CONFIG", "TOPIC_NOT_FOUND", "PARTITION_NOT_FOUND", "TOPIC_EXISTS", "OFFSET_OUT_OF_RANGE",
    "OFFSET_BEHIND_COMMITTED", "RECORD_TOO_LARGE", "DISK_FULL", "WRITE_FAILED", "TOPIC_LIMIT", "PARTITION_LIMIT",
    "GROUP_LIMIT", "DRAINING", "PARTITION_DAMAGED", "PRODUCER_LIMIT",
}
# The topics that stay: name, partitions, configs. Those whose configs name retention may lose their start.
TOPICS: dict[str, tuple[int, dict[str, str]]] = {
    "plain": (2, {}),
    "rolling": (2, {"segment.bytes": "16384", "segment.ms": "100"}),
    "short": (2, {"segment.bytes": "4096", "retention.bytes": "16384"}),
    "stamped": (1, {"message.timestamp.type": "LogAppendTime", "flush.ms": "5"}),
}
_WINDOW = 16


class Gone(Exception):
    """The broker can't be reached any more, or it is ending."""


@dataclass
class Plan:
    """How much of what. sizes: of values, in bytes; large: how many of a thousand have 300 KiB."""

    seed: str = "1"
    unary: int = 3
    batches: int = 2
    streams: int = 2
    committers: int = 1
    followers: int = 2
    churners: int = 1
    idempotent: int = 2
    idempotent_topics: Sequence[str] = tuple(TOPICS)
    keyed: int = 0
    acks: Sequence[int] = (0, 1, 1, -1)
    sizes: Sequence[int] = (0, 10, 100, 1000, 4 * KIB, 64 * KIB)
    large: int = 2
    # Partitions and configs, by name; those that are not there yet are made.
    topics: Mapping[str, tuple[int, dict[str, str]]] = field(default_factory=lambda: TOPICS)
    # How long a producer waits after each attempt, and after one that was refused.
    pace_s: float = 0.0
    pause_s: float = 0.0


@dataclass
class Load:
    """One load on the broker at `address`, until stop() or until the broker is gone."""

    ledger: Ledger
    address: str
    plan: Plan
    figures: Counter[str] = field(default_factory=Counter)
    # Answers: refusals by their reason, and promises (acks 1 and -1) by topic/partition.
    reasons: Counter[str] = field(default_factory=Counter)
    promised: Counter[str] = field(default_factory=Counter)
    # Refusals that the load did not ask for, and could not make sense of.
    surprises: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stopping = False
        self._number = self.ledger.next_number()

    async def run(self, running: Callable[[], None] = lambda: None) -> None:
        """Make the topics, start everybody, call running(), and return when all have ended."""
        channel = grpc.aio.insecure_channel(self.address, options=OPTIONS)
        async with channel:
            self._stub = Stub(channel)
            try:
                await self._make_topics()
            except Gone:
                running()
                return
            workers = [asyncio.ensure_future(self._worker(work, name)) for work, name in self._workers()]
            running()
            await asyncio.gather(*workers)
        await self.ledger.synced()

    async def delete_topic(self, name: str) -> bool:
        """In place of run(): delete a topic. Whether that was answered."""
        async with grpc.aio.insecure_channel(self.address, options=OPTIONS) as channel:
            self._stub = Stub(channel)
            try:
                return await self._delete(name) == OK
            except Gone:
                return False
            finally:
                await self.ledger.synced()

    def stop(self) -> None:
        """Everybody ends with what is under way."""
        self._stopping = True

    def _workers(self) -> list[tuple[Callable[[str, random.Random], Awaitable[None]], str]]:
        plan = self.plan
        kinds = (
            ("u", plan.unary, self._produce_single), ("b", plan.batches, self._produce_batches),
            ("s", plan.streams, self._produce_stream), ("c", plan.committers, self._commit),
            ("f", plan.followers, self._follow), ("t", plan.churners, self._churn),
            ("i", min(plan.idempotent, len(self._idempotent_targets())), self._produce_idempotent),
            ("k", plan.keyed, self._produce_keyed),
        )
        return [
            (work, f"{self._number}{kind}{i}") for kind, count, work in kinds for i in range(count)
        ]

    async def _worker(self, work: Callable[[str, random.Random], Awaitable[None]], name: str) -> None:
        try:
            await work(name, random.Random(f"{self.plan.seed}/{name}"))
        except Gone:
            pass

    def _count(self, **more: int) -> None:
        self.figures.update(more)

    # Attempts

    async def _attempt(
        self, entry: dict[str, Any], call: Callable[[], Any], told: Callable[[Any], dict[str, Any]]
    ) -> str:
        """One unary attempt: noted, sent, its answer noted and synced. Gives its result. Raises Gone."""
        entry["n"] = number = self.ledger.next_number()
        await self.ledger.send(entry)
        try:
            answer = await call()
        except grpc.RpcError as problem:
            return self._refused(number, refusal_of(problem))
        self.ledger.answer(number, OK, **told(answer))
        return OK

    def _refused(self, number: int, refusal: Refusal) -> str:
        result = FAILED if refusal.reason in NOTHING_CHANGED else UNKNOWN
        more = {"committed": refusal.number("committed_offset")} if "committed_offset" in refusal.metadata else {}
        self.ledger.answer(number, result, reason=refusal.reason or refusal.code, **more)
        self._count(**{result: 1})
        self.reasons[refusal.reason or refusal.code] += 1
        self._check(refusal)
        return result

    def _check(self, refusal: Refusal) -> None:
        """Raises Gone when there is no use in going on."""
        if refusal.reason == "DRAINING" or (not refusal.reason and refusal.code == "UNAVAILABLE"):
            raise Gone
        if not refusal.reason or refusal.reason == "INTERNAL_ERROR":
            # On a stream, grpc.aio's client tells of a lost connection as INTERNAL or CANCELLED too.
            if refusal.code not in ("CANCELLED", "INTERNAL") or refusal.reason:
                self.surprises.append(str(refusal))
            raise Gone

    async def _patience(self, result: str) -> None:
        wait_s = self.plan.pause_s if result == FAILED else self.plan.pace_s
        if wait_s:
            await asyncio.sleep(wait_s)

    # Topics

    async def _make_topics(self) -> None:
        made = {change.topic for change in self.ledger.topics.values() if change.partitions and change.result == OK}
        for name, (partitions, configs) in self.plan.topics.items():
            while name not in made:
                if await self._create(name, partitions, configs) == OK or self._stopping:
                    break
                await asyncio.sleep(self.plan.pause_s)

    async def _create(self, name: str, partitions: int, configs: dict[str, str]) -> str:
        request = pb.CreateTopicRequest(name=name, num_partitions=partitions, configs=configs)
        entry = {"kind": "create", "topic": name, "partitions": partitions, "configs": configs}
        return await self._attempt(entry, lambda: self._stub.CreateTopic(request, timeout=DEADLINE_S), lambda _: {})

    async def _delete(self, name: str) -> str:
        request = pb.DeleteTopicRequest(name=name)
        entry = {"kind": "delete", "topic": name}
        return await self._attempt(entry, lambda: self._stub.DeleteTopic(request, timeout=DEADLINE_S), lambda _: {})

    async def _churn(self, name: str, rng: random.Random) -> None:
        """Topics come, get records, and go; a name is used again when its deletion was answered."""
        sequence = generation = 0
        while not self._stopping:
            topic = f"churn-{name}-{generation}"
            if await self._create(topic, rng.randrange(1, 4), {}) != OK:
                generation += 1
                continue
            for _ in range(rng.randrange(5)):
                count = rng.choice((1, 3))
                records = self._records(rng, name, sequence, count, 500)
                await self._send(name, sequence, topic, 0, rng.choice(self.plan.acks), records)
                sequence += count
            if rng.random() < 0.2 or await self._delete(topic) != OK:
                generation += 1
            self._count(topics=1)

    # Producers

    def _records(self, rng: random.Random, producer: str, first: int, count: int, limit: int = 0) -> list[pb.Record]:
        """Of every shape: with and without key, value, headers, timestamp; each says where it is from."""
        made = []
        for sequence in range(first, first + count):
            size = rng.randrange(300 * KIB) if rng.randrange(1000) < self.plan.large else rng.choice(self.plan.sizes)
            if limit:
                size = min(size, limit)
            size = rng.randrange(size + 1)
            own = mark(producer, sequence)
            filler = rng.randbytes(size)
            record = pb.Record(key=own, value=filler) if rng.random() < 0.5 else pb.Record(value=own + filler)
            if rng.random() < 0.05:
                record = pb.Record(key=own)
            if rng.random() < 0.2:
                record.headers.add(key="from", value=producer.encode())
            if rng.random() < 0.3:
                record.timestamp = rng.randrange(1, 2_000_000_000_000)
            made.append(record)
        return made

    def _target(self, rng: random.Random) -> tuple[str, int, int]:
        """Topic, partition (-1 now and then), acks."""
        topic = rng.choice(list(self.plan.topics))
        partition = -1 if rng.random() < 0.1 else rng.randrange(self.plan.topics[topic][0])
        return topic, partition, rng.choice(self.plan.acks)

    async def _send(
        self, producer: str, first: int, topic: str, partition: int, acks: int, records: list[pb.Record]
    ) -> str:
        entry = attempt_entry(0, producer, first, topic, partition, acks, records)
        request = _request(topic, partition, acks, records)
        result = await self._attempt(
            entry, lambda: self._stub.ProduceMessage(request, timeout=DEADLINE_S), _told_of_produce)
        if result == OK:
            self._count_produced(topic, self.ledger.attempts[entry["n"]].stored_in, acks, len(records))
        return result

    def _count_produced(self, topic: str, partition: int, acks: int, records: int) -> None:
        self._count(records=records)
        if acks:
            self.promised[f"{topic}/{partition}"] += 1

    async def _produce(self, name: str, rng: random.Random, most: int) -> None:
        sequence = 0
        while not self._stopping:
            topic, partition, acks = self._target(rng)
            count = rng.randrange(1, most + 1)
            records = self._records(rng, name, sequence, count)
            if rng.random() < 0.03:
                # To be refused, and then not to be there: acks that do not exist, a record that is too large.
                if rng.random() < 0.5:
                    acks = 7
                else:
                    records[-1].value = mark(name, sequence + count - 1) + bytes(1 << 20)
            result = await self._send(name, sequence, topic, partition, acks, records)
            await self._patience(result)
            sequence += count

    async def _produce_single(self, name: str, rng: random.Random) -> None:
        await self._produce(name, rng, 1)

    async def _produce_batches(self, name: str, rng: random.Random) -> None:
        await self._produce(name, rng, 20)

    async def _produce_stream(self, name: str, rng: random.Random) -> None:
        """Several requests under way at once; the answers come in their order."""
        call = self._stub.ProduceMessageStream()
        waiting: list[int] = []
        sequence = 0
        try:
            while not (self._stopping and not waiting):
                entries, requests = [], []
                while not self._stopping and len(waiting) < _WINDOW and (not waiting or rng.random() < 0.8):
                    topic, partition, acks = self._target(rng)
                    records = self._records(rng, name, sequence, rng.choice((1, 1, 1, 10)))
                    number = self.ledger.next_number()
                    entries.append(attempt_entry(number, name, sequence, topic, partition, acks, records))
                    requests.append(_request(topic, partition, acks, records))
                    waiting.append(number)
                    sequence += len(records)
                await self.ledger.send(*entries)
                for request in requests:
                    await call.write(request)
                for _ in range(rng.randrange(1, len(waiting) + 1)):
                    answer = await call.read()
                    if answer is grpc.aio.EOF:
                        raise Gone
                    await self._take_answer(waiting.pop(0), answer)
            await call.done_writing()
            await call.read()
        except (grpc.RpcError, asyncio.InvalidStateError) as problem:
            refusal = refusal_of(problem) if isinstance(problem, grpc.RpcError) else Refusal("CANCELLED")
            for number in waiting:
                self.ledger.answer(number, UNKNOWN, reason=refusal.reason or refusal.code)
            self._count(unknown=len(waiting))
            self._check(refusal)
        finally:
            call.cancel()

    async def _take_answer(self, number: int, answer: pb.ProduceMessageResponse) -> None:
        if not answer.code:
            self.ledger.answer(number, OK, **_told_of_produce(answer))
            acks = self.ledger.attempts[number].acks
            self._count_produced(answer.topic, answer.partition, acks, answer.record_count)
            await self._patience(OK)
        else:
            code = next(code.name for code in grpc.StatusCode if code.value[0] == answer.code)
            result = self._refused(number, Refusal(code, answer.reason, answer.error))
            await self._patience(result)

    # Idempotent producers

    def _idempotent_targets(self) -> list[tuple[str, int]]:
        topics = [topic for topic in sorted(self.plan.topics) if topic in self.plan.idempotent_topics]
        return [
            (topic, partition)
            for partition in range(max((self.plan.topics[topic][0] for topic in topics), default=0))
            for topic in topics if partition < self.plan.topics[topic][0]
        ]

    async def _produce_idempotent(self, name: str, rng: random.Random) -> None:
        """One producer of each partition, the same in every load: what got no answer is sent again, in this load or a
        later one, until it has one. Now and then also what has."""
        topic, partition = self._idempotent_targets()[int(name.rpartition("i")[2])]
        producer = f"idempotent-{topic}-{partition}"
        mine = [attempt for attempt in self.ledger.attempts.values() if attempt.producer == producer]
        if mine and mine[-1].result == UNKNOWN:
            await self._until_answered(mine[-1], rng, may_be_there=True)
        appended = [attempt for attempt in mine if attempt.result != FAILED and attempt.state is not None]
        if appended and appended[-1].state is not None:
            producer_id, epoch, sequence = appended[-1].state
            sequence += appended[-1].count
        else:
            producer_id, epoch, sequence = *await self._init_producer(), 0
        first = max((attempt.first + attempt.count for attempt in mine), default=0)
        while not self._stopping:
            count = rng.choice((1, 1, 2, 7))
            acks = rng.choice([acks for acks in self.plan.acks if acks] or [1])
            entry = attempt_entry(
                self.ledger.next_number(), producer, first, topic, partition, acks,
                _idempotent_records(producer, first, count),
            )
            entry["state"] = [producer_id, epoch, sequence]
            await self.ledger.send(entry)
            result = await self._until_answered(self.ledger.attempts[entry["n"]], rng, may_be_there=False)
            first += count
            # What failed has used no sequence.
            sequence += count if result == OK else 0
            await self._patience(result)

    async def _init_producer(self) -> tuple[int, int]:
        while True:
            try:
                given = await self._stub.InitProducer(pb.InitProducerRequest(), timeout=DEADLINE_S)
                return given.id, given.epoch
            except grpc.RpcError as problem:
                self._check(refusal_of(problem))
                if self._stopping:
                    raise Gone from None
                await asyncio.sleep(self.plan.pause_s or 0.01)

    async def _until_answered(self, attempt: Attempt, rng: random.Random, *, may_be_there: bool) -> str:
        """Send it until it is answered, and perhaps once more. may_be_there: it was sent before. Gives its result.
        Raises Gone."""
        assert attempt.state is not None
        producer_id, epoch, sequence = attempt.state
        records = _idempotent_records(attempt.producer, attempt.first, attempt.count)
        request = _request(attempt.topic, attempt.partition, attempt.acks, records)
        request.producer.CopyFrom(pb.ProducerState(id=producer_id, epoch=epoch, sequence=sequence))
        while True:
            try:
                answer = await self._stub.ProduceMessage(request, timeout=DEADLINE_S)
            except grpc.RpcError as problem:
                refusal = refusal_of(problem)
                if refusal.reason in NOTHING_CHANGED and not may_be_there:
                    return self._refused(attempt.number, refusal)
                # It may have been appended before, whatever this one was refused for.
                may_be_there = True
                if attempt.result != OK:
                    self.ledger.answer(attempt.number, UNKNOWN, reason=refusal.reason or refusal.code)
                    self._count(unknown=1)
                self.reasons[refusal.reason or refusal.code] += 1
                if refusal.code == "ABORTED":
                    self.surprises.append(f"{attempt}, sequence {sequence}: {refusal}")
                    raise Gone from None
                self._check(refusal)
                if self._stopping:
                    raise Gone from None
                await asyncio.sleep(self.plan.pause_s or 0.01)
                continue
            if attempt.result == OK and not answer.duplicate:
                self.surprises.append(f"{attempt} was answered, and is taken for new when it comes again")
            if answer.duplicate and not may_be_there:
                self.surprises.append(f"{attempt} is a duplicate when it comes for the first time")
            self._take_stored(attempt, answer)
            if answer.duplicate or rng.random() > 0.1:
                return OK
            may_be_there = True

    async def _produce_keyed(self, name: str, rng: random.Random) -> None:
        await KeyedProducer(self, int(name.rpartition("k")[2]), rng).run()

    def _take_stored(self, attempt: Attempt, answer: pb.ProduceMessageResponse) -> None:
        """An attempt was answered: it is in the log, once."""
        self.ledger.answer(attempt.number, OK, **_told_of_produce(answer))
        self._count(duplicates=int(answer.duplicate))
        self._count_produced(attempt.topic, attempt.stored_in, attempt.acks, attempt.count)

    # Groups

    async def _commit(self, name: str, rng: random.Random) -> None:
        """A group that moves on, sometimes tries to go back, or beyond the end, and is refused."""
        group = f"group-{name}"
        last: dict[tuple[str, int], int] = {}
        while not self._stopping:
            topics = rng.sample(list(self.plan.topics), rng.randrange(1, len(self.plan.topics) + 1))
            offsets = {}
            for topic in topics:
                partition = rng.randrange(self.plan.topics[topic][0])
                end = await self._end(topic, partition)
                offsets[topic, partition] = rng.randrange(min(last.get((topic, partition), 0), end), end + 1)
            key = next(iter(offsets))
            wrong = rng.random()
            if wrong < 0.1 and last.get(key, 0) > 0:
                offsets = {key: rng.randrange(last[key])}
            elif wrong < 0.15:
                offsets = {key: (1 << 40) + rng.randrange(1000)}
            entry = {"kind": "commit", "group": group, "offsets": [[*key, offset] for key, offset in offsets.items()]}
            result = await self._attempt(entry, self._commit_call(group, offsets), lambda _: {})
            if result == FAILED:
                await self._patience(result)
            if result == OK:
                last.update(offsets)
                self._count(commits=1)

    def _commit_call(self, group: str, offsets: dict[tuple[str, int], int]) -> Callable[[], Any]:
        made = [pb.TopicPartitionOffset(topic=t, partition=p, offset=o) for (t, p), o in offsets.items()]
        request = pb.CommitOffsetRequest(group_id=group, offsets=made)
        return lambda: self._stub.CommitOffset(request, timeout=DEADLINE_S)

    async def _end(self, topic: str, partition: int) -> int:
        request = pb.GetPartitionOffsetsRequest(topic=topic, partition=partition)
        try:
            return (await self._stub.GetPartitionOffsets(request, timeout=DEADLINE_S)).end_offset
        except grpc.RpcError as problem:
            self._check(refusal_of(problem))
            raise Gone from None

    # Followers

    async def _follow(self, name: str, rng: random.Random) -> None:
        """Reads as the log grows, from where the one before it left, and notes what it sees."""
        topic = rng.choice(list(self.plan.topics))
        partition = rng.randrange(self.plan.topics[topic][0])
        offset, epoch = self._left_at(topic, partition)
        while not self._stopping:
            returned = offset, epoch
            request = pb.ConsumeMessagesRequest(
                topic=topic, partition=partition, offset=offset, max_wait_ms=20,
                max_bytes=rng.choice((0, 0, 100_000)))
            if epoch is not None and offset > 0:
                request.last_epoch = epoch
            call = self._stub.ConsumeMessages(request)
            try:
                async for response in call:
                    if returned is not None:
                        if offset != EARLIEST:
                            self._note_resumed(topic, partition, *returned, OK)
                        returned = None
                    offset, epoch = self._note_seen(topic, partition, response, offset, epoch)
                    if self._stopping:
                        break
            except grpc.RpcError as problem:
                refusal = refusal_of(problem)
                if refusal.reason not in ("LOG_TRUNCATED", "OFFSET_OUT_OF_RANGE"):
                    self._check(refusal)
                    self.surprises.append(f"a follower of {topic}/{partition}: {refusal}")
                    return
                if returned is not None:
                    self._note_resumed(topic, partition, *returned, refusal.reason, refusal)
                offset = refusal.number("divergence_offset")
                if refusal.reason == "OFFSET_OUT_OF_RANGE":
                    offset = EARLIEST
                epoch = None
            finally:
                call.cancel()

    def _left_at(self, topic: str, partition: int) -> tuple[int, int | None]:
        """Where the last follower of this partition was, and the epoch of its last record."""
        for saw in reversed(self.ledger.saw):
            if (saw.topic, saw.partition) == (topic, partition):
                return saw.offset + len(saw.digests), saw.epoch
        return EARLIEST, None

    def _note_resumed(
        self, topic: str, partition: int, offset: int, epoch: int | None, answer: str, refusal: Refusal | None = None
    ) -> None:
        entry = {"kind": "resumed", "topic": topic, "partition": partition, "offset": offset, "last_epoch": epoch,
                 "answer": answer}
        if refusal is not None:
            entry["divergence"] = refusal.number("divergence_offset")
            entry["log_start"] = refusal.number("log_start_offset")
        self.ledger.note(entry)

    def _note_seen(
        self, topic: str, partition: int, response: pb.ConsumeMessagesResponse, offset: int, epoch: int | None
    ) -> tuple[int, int | None]:
        """Notes runs of records of one epoch each. Gives where to go on."""
        runs: list[dict[str, Any]] = []
        expected = offset
        for record in stored_records(response):
            run = runs[-1] if runs else None
            if run is None or run["epoch"] != record.epoch or record.offset != expected:
                if expected not in (record.offset, EARLIEST):
                    self.surprises.append(
                        f"a follower of {topic}/{partition} was given offset {record.offset} instead of {expected}")
                run = {"kind": "saw", "topic": topic, "partition": partition, "offset": record.offset,
                       "epoch": record.epoch, "digests": []}
                runs.append(run)
            run["digests"].append(record.digest)
            expected = record.offset + 1
            epoch = record.epoch
        self.ledger.note(*runs)
        self._count(seen=sum(len(run["digests"]) for run in runs))
        return expected, epoch


def _request(topic: str, partition: int, acks: int, records: list[pb.Record]) -> pb.ProduceMessageRequest:
    request = pb.ProduceMessageRequest(topic=topic, partition=partition, required_acks=acks)
    if len(records) == 1:
        request.record.CopyFrom(records[0])
    else:
        request.records.extend(records)
    return request


def _idempotent_records(producer: str, first: int, count: int) -> list[pb.Record]:
    """The same ones whenever they are asked for."""
    chance = random.Random(f"{producer}/{first}")
    return [
        pb.Record(value=mark(producer, first + i) + chance.randbytes(chance.randrange(1000))) for i in range(count)
    ]


def _told_of_produce(answer: pb.ProduceMessageResponse) -> dict[str, Any]:
    return {
        "stored_in": answer.partition, "offset": answer.offset, "epoch": answer.epoch, "durability": answer.durability,
        "timestamp": answer.timestamp, **({"duplicate": True} if answer.duplicate else {}),
    }
