"""Topics: made, described, deleted; and where a produce or consume request finds its partition."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from takhin.broker.metadata import MetadataStore, TopicRow
from takhin.broker.topic_config import TopicConfig, check_config_name, parse_stored_config, parse_topic_config
from takhin.broker.topic_name import check_topic_name
from takhin.config import Settings
from takhin.errors import Reason, TakhinError, error
from takhin.log.partition import Partition
from takhin.log.recovery import RecoveredPartition
from takhin.log.store import LogStore, PartitionSpec, StoreOffsets

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Topic:
    """A topic that is served. configs: those set on it; config: what they come to over the broker's defaults."""

    id: int
    name: str
    configs: dict[str, str]
    config: TopicConfig
    created_ms: int
    partitions: list[Partition]
    # The partition that takes records without a key.
    sticky: int = 0

    @property
    def size_bytes(self) -> int:
        return sum(partition.size_bytes for partition in self.partitions)


class TopicSource(Protocol):
    """Where a request finds its topic: Topics, or what of them somebody may write to."""

    def get_encoded(self, name: bytes) -> Topic: ...


@dataclass(frozen=True, slots=True)
class TopicChange:
    """A topic was made, has got more partitions, or was deleted (then num_partitions is 0)."""

    topic_id: int
    name: str
    num_partitions: int


class Topics:
    """All topics. `epoch` tells in which epoch a new partition begins; clock_ms: milliseconds since the epoch."""

    def __init__(
        self,
        settings: Settings,
        metadata: MetadataStore,
        store: LogStore,
        epoch: Callable[[], int],
        clock_ms: Callable[[], int],
    ):
        self._settings = settings
        self._metadata = metadata
        self._store = store
        self._epoch = epoch
        self._clock_ms = clock_ms
        self._by_name: dict[str, Topic] = {}
        # By their names' UTF-8; changed in place, for who looks into it itself.
        self.by_encoded_name: dict[bytes, Topic] = {}
        self._by_id: dict[int, Topic] = {}
        self._num_partitions = 0
        # Taken by who asks for a change, and given back by the change itself, which may outlast him.
        self._changing = asyncio.Lock()
        self._listeners: list[Callable[[TopicChange], None]] = []
        # Of records; so that whatever was accepted can be delivered.
        self.max_record_bytes = settings.grpc.max_message_bytes - 64 * 1024

    # Finding

    def __iter__(self):
        return iter(self._by_name.values())

    def partitions(self) -> list[Partition]:
        """Every partition of every topic."""
        return [partition for topic in self._by_name.values() for partition in topic.partitions]

    def names(self) -> list[str]:
        """All topics' names, sorted."""
        return sorted(self._by_name)

    def get(self, name: str) -> Topic:
        """Raises INVALID_TOPIC_NAME, TOPIC_NOT_FOUND."""
        topic = self._by_name.get(name)
        if topic is None:
            check_topic_name(name)
            raise _not_found(name)
        return topic

    def get_encoded(self, name: bytes) -> Topic:
        """As get(), by the name's UTF-8."""
        topic = self.by_encoded_name.get(name)
        return topic if topic is not None else self.get(name.decode())

    def with_id(self, topic_id: int) -> Topic | None:
        """The topic that has this id; None when it is gone."""
        return self._by_id.get(topic_id)

    def shape(self, name: str) -> tuple[int, int] | None:
        """The topic's id and number of partitions; None when there is no such topic."""
        topic = self._by_name.get(name)
        return (topic.id, len(topic.partitions)) if topic is not None else None

    def partition(self, topic_name: str, partition: int) -> Partition:
        """Raises INVALID_TOPIC_NAME, TOPIC_NOT_FOUND, INVALID_PARTITION, PARTITION_NOT_FOUND."""
        return partition_of(self.get(topic_name), partition)

    # Changing

    def on_change(self, listener: Callable[[TopicChange], None]) -> None:
        """listener(change) is called on the event loop, after each change and in their order."""
        self._listeners.append(listener)

    def _tell(self, topic: Topic, num_partitions: int) -> None:
        for listener in self._listeners:
            try:
                listener(TopicChange(topic.id, topic.name, num_partitions))
            except Exception:
                # Its bug: the change stands.
                logger.exception("a listener failed at a change of topic %r", topic.name)

    async def create(
        self, name: str, num_partitions: int, replication_factor: int, configs: dict[str, str]
    ) -> Topic:
        """Raises INVALID_TOPIC_NAME, INVALID_PARTITION_COUNT, INVALID_REPLICATION_FACTOR, INVALID_CONFIG, TOPIC_EXISTS,
        TOPIC_LIMIT, PARTITION_LIMIT."""
        check_topic_name(name)
        if replication_factor not in (0, 1):
            raise error(
                Reason.INVALID_REPLICATION_FACTOR,
                f"replication_factor {replication_factor} is not possible: this broker is one process with one copy of "
                "the data; leave it at 0 or 1",
            )
        self._check_partition_count(num_partitions, f"the default, {self._settings.topics.partitions}")
        num_partitions = num_partitions or self._settings.topics.partitions
        config = parse_topic_config(configs, self._settings.topics, self.max_record_bytes)
        await self._changing.acquire()
        return await self._metadata.through(self._create(name, num_partitions, configs, config))

    async def _create(self, name: str, num_partitions: int, configs: dict[str, str], config: TopicConfig) -> Topic:
        limits = self._settings.limits
        try:
            if name in self._by_name:
                raise error(Reason.TOPIC_EXISTS, f"topic {name!r} exists already", topic=name)
            if len(self._by_name) >= limits.topics:
                raise error(
                    Reason.TOPIC_LIMIT, f"there are {limits.topics} topics, as many as this broker takes",
                    max_topics=limits.topics,
                )
            self._check_room(num_partitions)
            row = await self._metadata.create_topic(name, num_partitions, configs, self._clock_ms())
            topic = self._add(row, config, [RecoveredPartition()] * num_partitions)
            self._tell(topic, num_partitions)
            return topic
        finally:
            self._changing.release()

    async def update(
        self, name: str, num_partitions: int, configs: dict[str, str], reset_configs: Sequence[str]
    ) -> Topic:
        """Set configs, set others back to the broker's defaults, add partitions (num_partitions 0: as it is).

        All of it or nothing; durable when it returns. Raises INVALID_TOPIC_NAME, TOPIC_NOT_FOUND, NOTHING_TO_UPDATE,
        INVALID_PARTITION_COUNT, PARTITION_LIMIT, INVALID_CONFIG.
        """
        self.get(name)
        self._check_partition_count(num_partitions, "as many as there are")
        # By themselves: what was set earlier counts as it does at a start.
        parse_topic_config(configs, self._settings.topics, self.max_record_bytes)
        for config in reset_configs:
            check_config_name(config)
            if config in configs:
                raise error(
                    Reason.INVALID_CONFIG, f"{config} is to be set and to be reset; one of them is possible",
                    config=config,
                )
        if not (num_partitions or configs or reset_configs):
            raise error(
                Reason.NOTHING_TO_UPDATE, "the request has no num_partitions, no configs and no reset_configs"
            )
        await self._changing.acquire()
        return await self._metadata.through(self._update(name, num_partitions, configs, reset_configs))

    async def _update(
        self, name: str, num_partitions: int, configs: dict[str, str], reset_configs: Sequence[str]
    ) -> Topic:
        try:
            topic = self.get(name)
            before = len(topic.partitions)
            num_partitions = num_partitions or before
            if num_partitions < before:
                raise error(
                    Reason.INVALID_PARTITION_COUNT,
                    f"num_partitions {num_partitions} is less than the {before} that {name!r} has: partitions can only "
                    "become more",
                    topic=name, num_partitions=before,
                )
            self._check_room(num_partitions - before)
            kept = {config: value for config, value in topic.configs.items() if config not in reset_configs}
            row = TopicRow(topic.id, name, num_partitions, topic.created_ms, kept | configs)
            config = self._stored_config(row)
            await self._metadata.update_topic(row.id, num_partitions, row.configs, self._clock_ms())
            topic.configs, topic.config = row.configs, config
            for partition in topic.partitions:
                partition.configure(config)
            epoch = self._epoch()
            topic.partitions += [
                self._store.open_partition(spec, RecoveredPartition(), epoch)
                for spec in self._specs(row, config)[before:]
            ]
            self._num_partitions += num_partitions - before
            if num_partitions > before:
                self._tell(topic, num_partitions)
            return topic
        finally:
            self._changing.release()

    async def reconfigure(self) -> None:
        """Have all topics go by the broker's defaults as they are now, where their own configs say nothing."""
        async with self._changing:
            for topic in self._by_name.values():
                topic.config = self._stored_config(topic)
                for partition in topic.partitions:
                    partition.configure(topic.config)

    async def delete(self, name: str) -> None:
        """Delete the topic, its records and the commits for it. Raises INVALID_TOPIC_NAME, TOPIC_NOT_FOUND."""
        await self._changing.acquire()
        await self._metadata.through(self._delete(name))

    async def _delete(self, name: str) -> None:
        try:
            topic = self.get(name)
            await self._metadata.delete_topic(topic.id)
            del self._by_name[topic.name]
            del self.by_encoded_name[topic.name.encode()]
            del self._by_id[topic.id]
            self._num_partitions -= len(topic.partitions)
            gone = _not_found(name)
            for partition in topic.partitions:
                self._store.close_partition(partition, gone.reason, gone.message)
            self._tell(topic, 0)
        finally:
            self._changing.release()
        await self.remove_files(topic.id)

    def _check_partition_count(self, num_partitions: int, zero: str) -> None:
        """zero: what 0 means. Raises INVALID_PARTITION_COUNT."""
        maximum = self._settings.limits.partitions_per_topic
        if not 0 <= num_partitions <= maximum:
            raise error(
                Reason.INVALID_PARTITION_COUNT,
                f"num_partitions {num_partitions} is not between 1 and {maximum} (0: {zero})",
                max_partitions=maximum,
            )

    def _check_room(self, more: int) -> None:
        """Raises PARTITION_LIMIT when there is no room for so many more partitions."""
        maximum = self._settings.limits.partitions
        if more and self._num_partitions + more > maximum:
            raise error(
                Reason.PARTITION_LIMIT,
                f"there are {self._num_partitions} partitions; with {more} more there would be more than the {maximum} "
                "that this broker takes",
                max_partitions=maximum,
            )

    async def remove_files(self, topic_id: int) -> None:
        """Remove what a deleted topic left; what can't be removed now is tried again at the next start."""
        if await self._store.remove_topic(topic_id):
            try:
                await self._metadata.forget_deleted(topic_id)
            except TakhinError as problem:
                # The topic is gone, whatever becomes of this.
                logger.warning("topic id %d stays in the list of deleted ones: %s", topic_id, problem.message)

    async def set_aside_orphans(self) -> None:
        """Move directories that belong to no topic out of the way: a topic made later could bear the same id."""
        num_partitions = {row.id: row.num_partitions for row in await self._metadata.load_topics()}
        # What a deleted topic left is removed, not kept.
        num_partitions |= dict.fromkeys(await self._metadata.deleted_topics(), self._settings.limits.partitions)
        for path in await asyncio.to_thread(self._store.set_aside_orphans, num_partitions):
            logger.warning("%s: the metadata knows no such partition; its files are set aside there", path)

    async def load(
        self, *, was_clean: bool, store_offsets: StoreOffsets
    ) -> list[tuple[TopicRow, list[RecoveredPartition]]]:
        """Every topic the metadata knows, with what the disk holds of its partitions.

        was_clean: the last run left everything on the disk. store_offsets: as LogStore.recover has it.
        """
        rows = await self._metadata.load_topics()
        specs = [spec for row in rows for spec in self._specs(row, self._stored_config(row))]
        found = iter(await self._store.recover(specs, was_clean=was_clean, store_offsets=store_offsets))
        return [(row, [next(found) for _ in range(row.num_partitions)]) for row in rows]

    def open(self, row: TopicRow, found: list[RecoveredPartition]) -> None:
        """Serve a topic that load() told of."""
        self._add(row, self._stored_config(row), found)

    def _add(self, row: TopicRow, config: TopicConfig, found: list[RecoveredPartition]) -> Topic:
        epoch = self._epoch()
        topic = Topic(
            row.id, row.name, row.configs, config, row.created_ms,
            [
                self._store.open_partition(spec, recovered, epoch)
                for spec, recovered in zip(self._specs(row, config), found, strict=True)
            ],
        )
        self._by_name[topic.name] = topic
        self.by_encoded_name[topic.name.encode()] = topic
        self._by_id[topic.id] = topic
        self._num_partitions += len(topic.partitions)
        return topic

    def _specs(self, row: TopicRow, config: TopicConfig) -> list[PartitionSpec]:
        return [
            PartitionSpec(
                row.name, row.id, number, row.log_starts.get(number, 0), tuple(row.epochs.get(number, ())), config
            )
            for number in range(row.num_partitions)
        ]

    def _stored_config(self, topic: TopicRow | Topic) -> TopicConfig:
        return parse_stored_config(topic.name, topic.configs, self._settings.topics, self.max_record_bytes)


def partition_of(topic: Topic, number: int) -> Partition:
    """Raises INVALID_PARTITION, PARTITION_NOT_FOUND."""
    if 0 <= number < len(topic.partitions):
        return topic.partitions[number]
    if number < 0:
        raise error(
            Reason.INVALID_PARTITION,
            f"partition {number} is not possible here: partitions of {topic.name!r} go from 0 to "
            f"{len(topic.partitions) - 1}",
            topic=topic.name, partition=number,
        )
    raise error(
        Reason.PARTITION_NOT_FOUND,
        f"topic {topic.name!r} has no partition {number}: they go from 0 to {len(topic.partitions) - 1}",
        topic=topic.name, partition=number,
    )


def _not_found(name: str) -> TakhinError:
    return error(Reason.TOPIC_NOT_FOUND, f"there is no topic {name!r}", topic=name)
