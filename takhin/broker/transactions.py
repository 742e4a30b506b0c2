"""ProduceTransaction: what it is checked for before it is carried out (takhin/log/transaction.py), and the answer."""

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass

from takhin.broker.appending import check_record_sizes, choose_partition, draining_error, named_partition
from takhin.broker.groups import GroupCoordinator
from takhin.broker.metadata import MetadataStore, OffsetCommit
from takhin.broker.permissions import WritableTopics
from takhin.broker.produce import ACKS_DURABLE, ACKS_NONE
from takhin.broker.producers import Producers
from takhin.broker.topics import Topics, TopicSource, partition_of
from takhin.codec.messages import ProduceRequest
from takhin.codec.transaction import TransactionRequest, encode_transaction
from takhin.config import Limits
from takhin.errors import Reason, TakhinError, error
from takhin.log import transaction
from takhin.log.partition import Partition
from takhin.log.transaction import Repeated, Transaction, TransactionAppend, Transactor
from takhin.log.transaction_offsets import TransactionOffsets, encode_offsets

logger = logging.getLogger(__name__)

# takhin.v1.Durability.
_DURABLE = 3
_BEHIND_A_FULL_DISK = (
    Reason.ACK_TIMEOUT,
    "no acknowledgement: the disk is full, and it waits behind a transaction; it is written when there is room",
)
# So often it is tried to store offsets on a full disk before those who wait are told.
_PATIENT_TRIES = 5
# What a transaction that waits for its turn costs at least, in limits.transaction_bytes_in_flight.
_LEAST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class _Append:
    """One append, checked as far as it can be before its turn."""

    request: bytes
    partition: Partition
    records: int
    records_bytes: int
    is_conditional: bool
    has_producer: bool


class Transactions:
    """Takes ProduceTransactionRequests as bytes. clock_ms: milliseconds since the epoch."""

    def __init__(
        self, topics: Topics, producers: Producers, groups: GroupCoordinator, metadata: MetadataStore,
        transactor: Transactor, limits: Limits, clock_ms: Callable[[], int],
    ):
        self._topics = topics
        self._producers = producers
        self._groups = groups
        self._metadata = metadata
        self._transactor = transactor
        self._limits = limits
        self._clock_ms = clock_ms
        self._scan = ProduceRequest(limits.records_per_request)
        self._in_flight: set[asyncio.Task[list[bytes]]] = set()
        self.bytes_in_flight = 0
        self._draining = False
        self._stopping = False

    # From start to stop

    async def restore(self, offsets: list[TransactionOffsets], lost: list[int]) -> None:
        """Store what the journal holds of transactions that have happened. lost: numbers of those that are damaged."""
        stored = await self._metadata.store_transactions(offsets)
        if stored:
            logger.info("the offsets of %d transactions were only in the journal", stored)
        last = await self._metadata.last_transaction()
        for number in lost:
            # What has a lower number than one that is stored was stored before it.
            if number > last:
                logger.error("the offsets that transaction %d committed are lost: the journal is damaged", number)

    async def load(self) -> None:
        """To be called when restore() has been, and before the first request."""
        self._transactor.last_number = await self._metadata.last_transaction()

    def begin_drain(self) -> None:
        """Refuse what comes from now on."""
        self._draining = True

    async def stop(self) -> None:
        """Return when none is under way. What is decided and can't be stored now is left to the next start."""
        self._draining = self._stopping = True
        self._transactor.stop()
        if self._in_flight:
            await asyncio.wait(self._in_flight)

    # Requests

    async def produce(self, request: bytes, topics: WritableTopics | None = None) -> bytes:
        """Carry out a ProduceTransactionRequest; returns the encoded answer. topics: None: all there are.

        Raises what the requests in it are refused for (Producing.produce), and its offsets (GroupCoordinator.commit);
        DUPLICATE_PARTITION, PARTLY_DUPLICATE, TRANSACTION_LIMIT, ACK_TIMEOUT, and what Transactor.run does.
        """
        if self._draining:
            raise draining_error()
        scan = TransactionRequest(request, self._limits.transaction_partitions)
        if scan.timeout_ms < 0:
            raise error(Reason.INVALID_LIMIT, f"timeout_ms {scan.timeout_ms} is negative; 0 waits without a limit")
        cost_bytes = max(len(request), _LEAST_BYTES)
        if self._in_flight and self.bytes_in_flight + cost_bytes > self._limits.transaction_bytes_in_flight:
            raise error(
                Reason.TRANSACTION_LIMIT,
                f"as many transactions wait for their turn as this broker takes (limits.transaction_bytes_in_flight, "
                f"{self._limits.transaction_bytes_in_flight}); try again",
            )
        stuck: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(self._run(scan, topics, stuck))
        self._in_flight.add(task)
        self.bytes_in_flight += cost_bytes

        def ended(task: "asyncio.Task[list[bytes]]") -> None:
            self._in_flight.discard(task)
            self.bytes_in_flight -= cost_bytes
            problem = None if task.cancelled() else task.exception()
            if problem is not None and not isinstance(problem, TakhinError):
                logger.error("a transaction failed", exc_info=problem)

        task.add_done_callback(ended)
        # The task goes on, also when the client goes: halfway through nobody may stop it.
        await asyncio.wait(
            [task, stuck], timeout=scan.timeout_ms / 1000 if scan.timeout_ms else None,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if stuck.done() and not task.done():
            raise error(
                Reason.ACK_TIMEOUT,
                "the transaction has happened, and nobody sees it yet: the disk is full; it is carried out when "
                "there is room",
            )
        if not task.done():
            raise error(
                Reason.ACK_TIMEOUT,
                f"no acknowledgement within timeout_ms ({scan.timeout_ms}): whether the transaction happens, as a "
                "whole, is unknown",
            )
        return encode_transaction(task.result())

    async def _run(
        self, scan: TransactionRequest, topics: WritableTopics | None, stuck: "asyncio.Future[None]"
    ) -> list[bytes]:
        """stuck: done when it is decided, and can't be carried out for now."""
        appends = self._appends(scan.appends, topics or self._topics)
        if topics is not None and (scan.offsets or scan.group_id):
            topics.check_commit(scan.group_id, {topic for topic, _, _ in scan.offsets})
        try:
            rows = await self._rows(scan)
        except TakhinError:
            # The group may have changed since the transaction happened: its retry is told so all the same.
            answers = await self._transactor.repeated(lambda: self._admit(appends))
            if answers is None:
                raise
            return answers
        now_ms = self._clock_ms()
        offsets = [(row.topic_id, row.partition, row.offset) for row in rows]

        def admit() -> Repeated | None:
            repeated = self._admit(appends)
            if repeated is None and rows:
                # Who lost a partition meanwhile may not move its offset.
                self._groups.check_committer(scan.group_id, rows, scan.member_id, _generation(scan))
            return repeated

        async def check() -> None:
            if rows:
                await self._metadata.check_offsets(scan.group_id, rows, self._limits.groups)

        async def store(number: int) -> None:
            await self._store(TransactionOffsets(number, scan.group_id, now_ms, tuple(offsets)), tell)
            self._groups.note_commit(scan.group_id, rows, scan.member_id)

        def tell() -> None:
            if not stuck.done():
                stuck.set_result(None)
            for append in appends:
                append.partition.give_up_waiting(_BEHIND_A_FULL_DISK)

        return await self._transactor.run(Transaction(
            [TransactionAppend(each.partition, each.records, each.records_bytes, self._appending(each))
             for each in appends],
            encode_offsets(scan.group_id, now_ms, offsets) if rows else b"",
            admit, check, store,
        ))

    async def _rows(self, scan: TransactionRequest) -> list[OffsetCommit]:
        """What the offsets come to."""
        if not scan.offsets:
            if scan.group_id:
                raise error(Reason.MALFORMED_REQUEST, "the transaction has a group_id and no offsets to commit for it")
            return []
        return await self._groups.prepare(scan.group_id, scan.offsets, scan.member_id, _generation(scan))

    def _appends(self, requests: list[bytes], topics: TopicSource) -> list[_Append]:
        if not requests:
            raise error(Reason.MALFORMED_REQUEST, "the transaction has no appends; at least one is needed")
        appends: list[_Append] = []
        seen: set[Partition] = set()
        for request in requests:
            append = self._append(request, topics)
            if append.partition in seen:
                raise error(
                    Reason.DUPLICATE_PARTITION,
                    f"two appends of the transaction go to {append.partition.topic}/{append.partition.partition}; one "
                    "is allowed: a batch may hold any number of records",
                    topic=append.partition.topic, partition=append.partition.partition,
                )
            seen.add(append.partition)
            appends.append(append)
        if len({append.has_producer for append in appends}) > 1:
            raise error(
                Reason.INVALID_PRODUCER,
                "some appends of the transaction have a producer, some have none: a retry could not be told as a whole",
            )
        return appends

    def _append(self, request: bytes, topics: TopicSource) -> _Append:
        scan = self._scan
        scan.read(request)
        topic = topics.get_encoded(scan.topic)
        if scan.required_acks not in (ACKS_NONE, ACKS_DURABLE):
            raise error(
                Reason.INVALID_ACKS,
                f"required_acks {scan.required_acks} is not possible in a transaction: it is durable as a whole; leave "
                "it at 0, or set -1",
            )
        if scan.timeout_ms:
            raise error(Reason.INVALID_LIMIT, "in a transaction only the whole has a timeout_ms, not an append")
        check_record_sizes(topic, scan)
        if scan.is_conditional:
            partition = named_partition(topic, scan)
        elif scan.partition == -1:
            partition = choose_partition(topic, scan)
        else:
            partition = partition_of(topic, scan.partition)
        return _Append(
            request, partition, scan.record_count, scan.records_bytes, scan.is_conditional, scan.has_producer
        )

    def _appending(self, append: _Append) -> Callable[[int], bytes]:
        def run(now_ms: int) -> bytes:
            self._scan.read(append.request)
            return append.partition.append(self._scan, now_ms, _DURABLE)

        return run

    def _admit(self, appends: list[_Append]) -> Repeated | None:
        """Whether producers and expected offsets allow it now; it has happened before when all appends are duplicates.

        Raises as Partition.check does, PARTLY_DUPLICATE.
        """
        repeated = Repeated([], [])
        for append in appends:
            if not append.is_conditional:
                continue
            self._scan.read(append.request)
            if append.has_producer:
                self._producers.check(self._scan.producer_id, self._scan.producer_epoch)
            known = append.partition.check(self._scan, _DURABLE)
            if known is not None:
                response, end_offset = known
                repeated.answers.append(response)
                durable = append.partition.durable_to(end_offset)
                if durable is not None:
                    repeated.durable.append(durable)
        if repeated.answers and len(repeated.answers) < len(appends):
            raise error(
                Reason.PARTLY_DUPLICATE,
                f"{len(repeated.answers)} of the transaction's {len(appends)} appends were appended before, and not in "
                "this transaction; nothing was appended",
            )
        return repeated if repeated.answers else None

    async def _store(self, offsets: TransactionOffsets, tell: Callable[[], None]) -> None:
        """Store them, however long it takes for room to be there. tell: called again and again when it takes long.

        Raises what the metadata store does; DISK_FULL only when the broker stops.
        """
        for tries in itertools.count(1):
            try:
                await self._metadata.store_transactions([offsets])
                return
            except TakhinError as problem:
                if problem.reason is not Reason.DISK_FULL or self._stopping:
                    raise
                logger.warning("the offsets of transaction %d can't be stored yet: the disk is full", offsets.number)
                if tries >= _PATIENT_TRIES:
                    tell()
            await asyncio.sleep(transaction.STORE_AGAIN_S)


def _generation(scan: TransactionRequest) -> int | None:
    """As CommitOffset has it: None for somebody who is no member."""
    return scan.generation if scan.member_id or scan.generation else None
