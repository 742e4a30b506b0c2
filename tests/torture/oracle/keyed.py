"""An idempotent producer of records with keys: several requests under way at once, sent again until they are answered.

It is the same producer in every load of a ledger: what had no answer when the broker was gone is sent again first, in
the order in which it was sent before, and then it goes on. A key is of one partition, for good.
"""

import asyncio
import random
import zlib
from collections import deque
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from takhin.v1 import takhin_pb2 as pb
from tests.torture.oracle.client import Refusal, refusal_of
from tests.torture.oracle.ledger import OK, UNKNOWN, Attempt, attempt_entry, mark

if TYPE_CHECKING:
    from tests.torture.oracle.load import Load

# The broker knows the last five requests of a producer in a partition, so that any of these may be sent again.
_UNDER_WAY = 4
_KEYS = 12
_AGAIN = 0.05

Place = tuple[str, int]


class KeyedProducer:
    """Number `number` of those that a ledger has."""

    def __init__(self, load: "Load", number: int, rng: random.Random):
        self.load = load
        self.ledger = load.ledger
        self.name = f"keyed-{number}"
        self.rng = rng
        places = [
            (topic, partition) for topic, (count, _) in sorted(load.plan.topics.items()) for partition in range(count)
        ]
        self.keys: dict[Place, list[bytes]] = {}
        for i in range(_KEYS):
            key = f"{self.name}-{i}".encode()
            self.keys.setdefault(places[zlib.crc32(key) % len(places)], []).append(key)
        self.first = 0
        self.state: tuple[int, int] | None = None
        self.sequences: dict[Place, int] = {}
        # Without an answer; each is to be sent again by the next stream, if it was sent at all.
        self.left: list[Attempt] = []
        for attempt in self.ledger.attempts.values():
            if attempt.producer == self.name and attempt.state is not None:
                self.first = attempt.first + attempt.count
                self.state = attempt.state[:2]
                self.sequences[attempt.topic, attempt.partition] = attempt.state[2] + attempt.count
                if attempt.result == UNKNOWN:
                    self.left.append(attempt)
        # Sent on this stream and not answered, in order.
        self.waiting: deque[Attempt] = deque()

    async def run(self) -> None:
        """Until the load stops or the broker is gone. Raises Gone."""
        load = self.load
        if self.state is None:
            self.state = await load._init_producer()
        call = load._stub.ProduceMessageStream()
        try:
            for attempt in self.left:
                await self._send(call, attempt)
            while not (load._stopping and not self.waiting):
                made: list[Attempt] = []
                while not load._stopping and len(self.waiting) + len(made) < _UNDER_WAY:
                    made.append(self._make(*self.state))
                await self.ledger.synced()
                for attempt in made:
                    await self._send(call, attempt)
                answer = await call.read()
                if answer is grpc.aio.EOF:
                    break
                await self._take(call, self.waiting.popleft(), answer)
                await load._patience(OK)
            await call.done_writing()
            await call.read()
        except (grpc.RpcError, asyncio.InvalidStateError) as problem:
            load._check(refusal_of(problem) if isinstance(problem, grpc.RpcError) else Refusal("CANCELLED"))
        finally:
            call.cancel()

    def _make(self, producer_id: int, epoch: int) -> Attempt:
        """A new attempt, noted."""
        place = self.rng.choice(list(self.keys))
        count = self.rng.choice((1, 1, 2, 7, 30))
        number = self.ledger.next_number()
        acks = self.rng.choice((1, 1, 1, -1))
        records = self._records(place, self.first, count)
        entry = attempt_entry(number, self.name, self.first, *place, acks, records)
        entry["state"] = [producer_id, epoch, self.sequences.get(place, 0)]
        self.ledger.note(entry)
        self.first += count
        self.sequences[place] = self.sequences.get(place, 0) + count
        return self.ledger.attempts[number]

    def _records(self, place: Place, first: int, count: int) -> list[pb.Record]:
        """The same ones whenever they are asked for."""
        chance = random.Random(f"{self.name}/{first}")
        return [
            pb.Record(
                key=chance.choice(self.keys[place]), value=mark(self.name, first + i) + bytes(chance.randrange(300)))
            for i in range(count)
        ]

    async def _send(self, call: Any, attempt: Attempt) -> None:
        assert attempt.state is not None
        producer_id, epoch, sequence = attempt.state
        self.waiting.append(attempt)
        await call.write(pb.ProduceMessageRequest(
            topic=attempt.topic, partition=attempt.partition, required_acks=attempt.acks,
            records=self._records((attempt.topic, attempt.partition), attempt.first, attempt.count),
            producer=pb.ProducerState(id=producer_id, epoch=epoch, sequence=sequence)))

    async def _take(self, call: Any, attempt: Attempt, answer: pb.ProduceMessageResponse) -> None:
        if answer.code:
            code = next(code.name for code in grpc.StatusCode if code.value[0] == answer.code)
            # The ones behind it are not in sequence now; all of them come again in the next load.
            self._refused(attempt, Refusal(code, answer.reason, answer.error))
        is_again = attempt.result == OK
        where = attempt.stored_in, attempt.offset
        if is_again and not answer.duplicate:
            self.load.surprises.append(f"{attempt} was answered, and is taken for new when it comes again")
        elif is_again and (answer.partition, answer.offset) != where:
            self.load.surprises.append(f"{attempt} was answered with {where}, then with {answer.offset}")
        elif answer.duplicate and not is_again and attempt not in self.left:
            self.load.surprises.append(f"{attempt} is a duplicate when it comes for the first time")
        self.load._take_stored(attempt, answer)
        if not is_again and self.rng.random() < _AGAIN:
            await self._send(call, attempt)

    def _refused(self, attempt: Attempt, refusal: Refusal) -> None:
        if refusal.reason != "DRAINING":
            self.load.surprises.append(f"{attempt}, {attempt.state}: {refusal}")
        self.load._check(Refusal("UNAVAILABLE"))
