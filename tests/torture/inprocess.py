"""The broker in this process, spoken to through its method table with the stock message classes."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message

from takhin.broker.broker import Broker
from takhin.broker.retention import Retention
from takhin.config import Limits, Settings, TopicDefaults
from takhin.errors import TakhinError
from takhin.rpc.call import method_table
from takhin.rpc.service import SERVICE, takhin_methods
from takhin.v1 import takhin_pb2 as pb

MessageT = TypeVar("MessageT", bound=Message)
EARLIEST = -1
NEVER_MS = 2**31 - 1
# Far more than a start or a request takes: what waits so long hangs.
PATIENCE_S = 30.0


class Hung(Exception):
    """The broker did not answer."""


class _Stream:
    """A call whose client takes everything."""

    peer = "in process"

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    async def write(self, message: bytes) -> None:
        self.messages.append(message)

    def cut(self) -> None:
        raise AssertionError("cut off")


@dataclass(slots=True)
class PartitionView:
    """What a client can read of a partition. records: (offset, epoch, value) from start to end; batches: (sequence,
    records, offset, epoch) by producer, as the headers tell; known: the same as the broker knows it."""

    start: int
    end: int
    durable: int
    failure: str | None
    records: list[tuple[int, int, bytes]] = field(default_factory=list)
    batches: dict[int, list[tuple[int, int, int, int]]] = field(default_factory=dict)
    known: dict[int, list[tuple[int, int, int, int]]] = field(default_factory=dict)


@dataclass(slots=True)
class View:
    """All that clients can see: partitions by (topic's name, number), topics' ids and sizes, committed offsets by group
    and (topic's id, partition); and what lies in the data directory for no topic."""

    epoch: int
    topics: dict[str, tuple[int, int]] = field(default_factory=dict)
    partitions: dict[tuple[str, int], PartitionView] = field(default_factory=dict)
    commits: dict[str, dict[tuple[int, int], int]] = field(default_factory=dict)
    strays: list[str] = field(default_factory=list)


class InProcess:
    """A broker on a data directory, with nothing happening in it but what is asked for."""

    def __init__(self, data_dir: Path | str, **topics: int):
        self.data_dir = Path(data_dir)
        quiet: dict[str, Any] = {"flush_ms": -1, "retention_check_ms": NEVER_MS}
        self.broker = Broker(
            Settings(data_dir=str(data_dir), topics=replace(TopicDefaults(), **quiet | topics), limits=Limits())
        )
        self._methods: dict[str, Any] = {}

    async def start(self) -> "InProcess":
        """Raises StartError, Hung."""
        await patient(self.broker.start(), "the start")
        table = method_table(takhin_methods(self.broker))
        self._methods = {name.rpartition("/")[2]: method.handler for name, method in table.items()}
        return self

    async def stop(self) -> None:
        self.broker.begin_drain()
        await patient(self.broker.stop(), "the stop")

    # Requests

    async def call(self, name: str, request: Message, answer: type[MessageT]) -> MessageT:
        """One unary call. Raises TakhinError, Hung."""
        return answer.FromString(await patient(self._methods[name](request.SerializeToString(), None), name))

    async def create_topic(self, name: str, partitions: int, **configs: str) -> int:
        """Gives the topic's id. configs: with _ for their dots."""
        named = {config.replace("_", "."): value for config, value in configs.items()}
        request = pb.CreateTopicRequest(name=name, num_partitions=partitions, configs=named)
        await self.call("CreateTopic", request, pb.CreateTopicResponse)
        return self.broker.topics.get(name).id

    async def delete_topic(self, name: str) -> None:
        await self.call("DeleteTopic", pb.DeleteTopicRequest(name=name), pb.DeleteTopicResponse)

    async def produce(
        self, topic: str, partition: int, values: list[bytes], acks: int, producer: pb.ProducerState | None = None
    ) -> pb.ProduceMessageResponse:
        """One record, or of several a batch."""
        message = pb.ProduceMessageRequest(topic=topic, partition=partition, required_acks=acks, producer=producer)
        if len(values) == 1:
            message.record.value = values[0]
        else:
            message.records.extend(pb.Record(value=value) for value in values)
        return await self.call("ProduceMessage", message, pb.ProduceMessageResponse)

    async def commit(self, group: str, offsets: Iterable[tuple[str, int, int]]) -> None:
        entries = [pb.TopicPartitionOffset(topic=name, partition=number, offset=at) for name, number, at in offsets]
        request = pb.CommitOffsetRequest(group_id=group, offsets=entries)
        await self.call("CommitOffset", request, pb.CommitOffsetResponse)

    async def transact(
        self, appends: Iterable[tuple[str, int, list[bytes]]], group: str = "",
        offsets: Iterable[tuple[str, int, int]] = (),
    ) -> list[pb.ProduceMessageResponse]:
        """appends: (topic, partition, values); offsets: (topic, partition, offset) for the group."""
        request = pb.ProduceTransactionRequest(
            group_id=group,
            offsets=[pb.TopicPartitionOffset(topic=name, partition=number, offset=at) for name, number, at in offsets],
        )
        for name, number, values in appends:
            request.appends.add(topic=name, partition=number, records=[pb.Record(value=value) for value in values])
        answer = await self.call("ProduceTransaction", request, pb.ProduceTransactionResponse)
        return list(answer.appends)

    async def retain(self) -> None:
        """One look of retention through all partitions."""
        broker = self.broker
        retention = Retention(broker.topics, broker._metadata, broker._store, NEVER_MS, broker._clock_ms)
        await patient(retention.check_all(), "retention")

    async def read(self, topic: str, partition: int, offset: int = EARLIEST) -> list[tuple[int, int, bytes]]:
        """(offset, epoch, value) of every record from offset on. Raises TakhinError, Hung."""
        return records_of(await self._responses(topic, partition, offset))

    async def _responses(self, topic: str, partition: int, offset: int) -> list[pb.ConsumeMessagesResponse]:
        request = pb.ConsumeMessagesRequest(topic=topic, partition=partition, offset=offset, until_end=True)
        stream = _Stream()
        await patient(self._methods["ConsumeMessages"](request.SerializeToString(), stream), "ConsumeMessages")
        return [pb.ConsumeMessagesResponse.FromString(message) for message in stream.messages]

    # All there is

    async def view(self) -> View:
        """Raises TakhinError, Hung."""
        view = View(self.broker._epoch)
        ids = set()
        for topic in list(self.broker.topics):
            ids.add(str(topic.id))
            view.topics[topic.name] = (topic.id, len(topic.partitions))
            for partition in topic.partitions:
                failure = ": ".join(partition.failure) if partition.failure else None
                found = PartitionView(
                    partition.log_start_offset, partition.written_offset, partition.durable_offset, failure
                )
                view.partitions[topic.name, partition.partition] = found
                for state in partition.producers:
                    found.known[state.id] = [(*each[:3], each[4]) for each in state.batches_known]
                if found.end > found.start:
                    try:
                        responses = await self._responses(topic.name, partition.partition, EARLIEST)
                        found.records = records_of(responses)
                        for batch in (batch for response in responses for batch in response.batches):
                            if batch.producer_id >= 0:
                                told = (batch.producer_sequence, batch.record_count, batch.base_offset, batch.epoch)
                                found.batches.setdefault(batch.producer_id, []).append(told)
                    except TakhinError as problem:
                        found.failure = found.failure or f"{problem.reason}: {problem.message}"
        for group in await patient(self.broker.groups.list_groups(), "the groups"):
            view.commits[group.group_id] = dict((await self.broker.groups.describe(group.group_id)).offsets)
        view.strays = sorted({path.name for path in (self.data_dir / "topics").iterdir()} - ids)
        return view


def records_of(responses: list[pb.ConsumeMessagesResponse]) -> list[tuple[int, int, bytes]]:
    """(offset, epoch, value) of every record; epoch -1: its batch's header did not come with it."""
    records: list[tuple[int, int, bytes]] = []
    for response in responses:
        epochs = {at: batch.epoch for batch in response.batches for at in range(batch.base_offset, batch.next_offset)}
        records += [(record.offset, epochs.get(record.offset, -1), record.value) for record in response.records]
    return records


async def patient(work: Any, what: str) -> Any:
    """What comes of it. Raises Hung, what it raises."""
    try:
        return await asyncio.wait_for(work, PATIENCE_S)
    except TimeoutError:
        raise Hung(f"{what} hangs") from None
