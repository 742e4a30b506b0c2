"""Which partition a record goes to: by its key as Kafka's default partitioner has it; without one, by turns."""

import random

from takhin.codec.messages import murmur2


def key_partition(key: bytes, num_partitions: int) -> int:
    """The partition of a key, as the broker and Kafka's clients choose it."""
    return (murmur2(key) & 0x7FFFFFFF) % num_partitions


class Partitioner:
    """Of one topic. sticky: where records without a key go, until their batch is closed."""

    def __init__(self) -> None:
        self._num_partitions = 1
        self.sticky = 0

    def set_partitions(self, num_partitions: int) -> None:
        if self._num_partitions == 1:
            # Producers that start together don't all begin with the same one.
            self.sticky = random.randrange(num_partitions)
        self._num_partitions = num_partitions
        self.sticky %= num_partitions

    def choose(self, key: bytes | None) -> int:
        if key is None:
            return self.sticky
        return (murmur2(key if type(key) is bytes else bytes(key)) & 0x7FFFFFFF) % self._num_partitions

    def batch_closed(self, partition: int) -> None:
        """The batch of that partition takes no more records."""
        if partition == self.sticky:
            self.sticky = (self.sticky + 1) % self._num_partitions
