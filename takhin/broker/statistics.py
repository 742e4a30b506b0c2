"""How a broker does: what is counted where it happens, gathered when somebody asks."""

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields

from takhin.broker.access_control import AccessControl
from takhin.broker.groups import GroupCoordinator
from takhin.broker.metadata import MetadataStore
from takhin.broker.produce import Producing
from takhin.broker.producers import Producers
from takhin.broker.reader_budget import ReaderBudget
from takhin.broker.topics import Topic, Topics
from takhin.broker.transactions import Transactions
from takhin.config import Limits
from takhin.counters import Histogram
from takhin.errors import Reason
from takhin.log.partition import Partition
from takhin.log.store import LogStore

# Commits that a look at groups' lags reads at most.
MAX_COMMITS = 100_000
# Of [limits], what bounds calls.
OF_FRONTS = ("calls", "call_bytes", "streams", "streams_per_client", "watch_streams")
# How often the event loop is asked how late it is.
_LAG_CHECK_S = 0.1
_LAG_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


@dataclass(frozen=True, slots=True)
class TopicStatistics:
    """written, read: since the start; bytes with batches' headers, read ones with the response's other fields."""

    name: str
    partitions: int
    segments: int
    size_bytes: int
    written_records: int
    written_bytes: int
    read_records: int
    read_bytes: int


@dataclass(frozen=True, slots=True)
class GroupLag:
    """lag: records from what the group has committed to the ends that readers see, in all partitions of the topic."""

    group_id: str
    topic: str
    lag: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one of the limits (takhin/config.py): how much of it is in use; None: it is of one request, or of one thing
    among many, or a time."""

    name: str
    used: int | None
    limit: int


@dataclass(frozen=True, slots=True)
class Recovery:
    """What the start came to."""

    was_clean: bool
    scanned_bytes: int
    cut_bytes: int
    took_s: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """All of it at one moment. partitions: by state (open, paused, poisoned, quarantined). is_ready: all partitions
    take appends, as readiness has it."""

    topics: list[TopicStatistics]
    partitions: dict[str, int]
    group_members: dict[str, int]
    group_lags: list[GroupLag]
    usage: list[Usage]
    free_bytes: int
    epoch: int
    uptime_s: float
    is_ready: bool
    recovery: Recovery
    writes: Histogram
    syncs: Histogram
    journal_entries: Histogram
    loop_lags: Histogram


class LoopLag:
    """How late the event loop runs what is due."""

    def __init__(self) -> None:
        self.lags = Histogram(_LAG_BOUNDS_S)

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            due_ns = time.monotonic_ns() + int(_LAG_CHECK_S * 1e9)
            await asyncio.sleep(_LAG_CHECK_S)
            self.lags.observe(max(time.monotonic_ns() - due_ns, 0))


class Gathering:
    """Makes Statistics of a broker's parts."""

    def __init__(
        self, topics: Topics, groups: GroupCoordinator, producers: Producers, metadata: MetadataStore, store: LogStore,
        budget: ReaderBudget, limits: Limits, producing: Producing, transactions: Transactions, access: AccessControl,
    ):
        self._producing = producing
        self._transactions = transactions
        self._access = access
        self._topics = topics
        self._groups = groups
        self._producers = producers
        self._metadata = metadata
        self._store = store
        self._budget = budget
        self._limits = limits
        self.loop_lag = LoopLag()

    async def gather(self, epoch: int, uptime_s: float, recovery: Recovery, *, is_ready: bool) -> Statistics:
        """Raises what the metadata store does."""
        names = await self._metadata.list_groups()
        members = {
            name: len(group.members) for name in names if (group := self._groups.live.get(name)) is not None
        }
        lags = self._lags(await self._metadata.all_commits(MAX_COMMITS))
        committer = self._store.committer
        return Statistics(
            [_topic(topic) for topic in self._topics],
            dict(Counter(_state(partition) for partition in self._topics.partitions())),
            {name: members.get(name, 0) for name in names},
            lags,
            list(self._usage(len(names), members.values())),
            self._store.free_bytes,
            epoch,
            uptime_s,
            is_ready,
            recovery,
            committer.write_durations, committer.sync_durations, committer.journal_durations, self.loop_lag.lags,
        )

    def _lags(self, commits: Iterable[tuple[str, int, int, int]]) -> list[GroupLag]:
        lags: Counter[tuple[str, str]] = Counter()
        for group_id, topic_id, number, offset in commits:
            topic = self._topics.with_id(topic_id)
            if topic is not None and number < len(topic.partitions):
                partition = topic.partitions[number]
                behind = partition.written_offset - max(offset, partition.log_start_offset)
                lags[group_id, topic.name] += max(behind, 0)
        return [GroupLag(group_id, topic, lag) for (group_id, topic), lag in lags.items()]

    def _usage(self, num_groups: int, members: Collection[int]) -> Iterable[Usage]:
        """All that fronts don't know themselves."""
        store = self._store
        used = {
            "topics": len(self._topics.names()),
            "partitions_per_topic": max((len(topic.partitions) for topic in self._topics), default=0),
            "partitions": len(self._topics.partitions()),
            "groups": num_groups,
            "producers": max(store.producers.used, self._producers.num_names),
            "members_per_group": max(members, default=0),
            "members": sum(members),
            "transaction_bytes_in_flight": self._transactions.bytes_in_flight,
            "ring_bytes": store.rings.used_bytes,
            "reader_bytes": self._budget.used_bytes,
            "all_streams_bytes_in_flight": self._producing.streams_bytes,
            "api_keys": len(self._access.keys()),
            "acls": self._access.num_acls,
            "open_files": store.open_files,
        }
        for each in fields(Limits):
            if each.name not in OF_FRONTS:
                yield Usage(each.name, used.get(each.name), getattr(self._limits, each.name))


def _topic(topic: Topic) -> TopicStatistics:
    partitions = topic.partitions
    return TopicStatistics(
        topic.name,
        len(partitions),
        sum(len(each.segments) for each in partitions),
        topic.size_bytes,
        sum(each.written_offset - each.first_written_offset for each in partitions),
        sum(each.written_bytes for each in partitions),
        sum(each.read_records for each in partitions),
        sum(each.read_bytes for each in partitions),
    )


def _state(partition: Partition) -> str:
    if partition.failure is None:
        return "paused" if partition.obstacle else "open"
    if partition.failure[0] is Reason.PARTITION_DAMAGED:
        return "quarantined"
    return "poisoned" if partition.failure_is_final else "paused"
