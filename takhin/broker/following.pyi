"""The common way of a reader: at the log's end, with what it gets next in memory."""

from typing import final

from takhin.broker.consume import Consuming
from takhin.broker.reader_budget import Lease
from takhin.log.reader import Reader
from takhin.outcome import Waiter

class Target(Waiter): ...

@final
class Follower(Waiter):
    def __init__(self, consuming: Consuming, reader: Reader, lease: Lease, max_bytes: int) -> None: ...
    @property
    def reader(self) -> Reader: ...
    @property
    def is_ready(self) -> bool: ...
    def resume(self) -> None: ...
