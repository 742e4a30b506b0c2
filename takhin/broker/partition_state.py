"""Partitions that can't be served as usual: closed, damaged, unreadable; and what their clients are told."""

import errno
import logging

from takhin.errors import Reason, TakhinError, error
from takhin.log.partition import Partition

logger = logging.getLogger(__name__)


def check_open(partition: Partition) -> None:
    """Raises TOPIC_NOT_FOUND, DRAINING: the topic was deleted, the broker stops."""
    if partition.failure is not None and partition.failure[0] in (Reason.TOPIC_NOT_FOUND, Reason.DRAINING):
        raise error(*partition.failure, topic=partition.topic, partition=partition.partition)


def is_damaged(partition: Partition) -> bool:
    """Whether damage, found at the start, ends the log: nothing is appended, and nothing may be removed."""
    return partition.failure is not None and partition.failure[0] is Reason.PARTITION_DAMAGED


def check_damage(partition: Partition) -> None:
    """To be called where the log seems to end. Raises CORRUPT_BATCH when damage is what ends it."""
    if is_damaged(partition):
        raise error(
            Reason.CORRUPT_BATCH,
            f"{partition.topic}/{partition.partition} can't be read from offset {partition.written_offset} on: it is "
            "damaged there",
            topic=partition.topic, partition=partition.partition, offset=partition.written_offset,
        )


def read_error(partition: Partition, problem: OSError) -> TakhinError:
    """CORRUPT_BATCH when the disk can't read it, READ_FAILED when it may yet be read."""
    logger.error("%s/%d can't be read: %s", partition.topic, partition.partition, problem.strerror)
    return error(
        Reason.CORRUPT_BATCH if problem.errno == errno.EIO else Reason.READ_FAILED,
        f"{partition.topic}/{partition.partition} can't be read: {problem.strerror}",
        topic=partition.topic, partition=partition.partition,
    )
