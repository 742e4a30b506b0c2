"""The client for code without asyncio: the same names as in takhin.client, each call returns when it is done.

    with takhin.sync.connect("localhost:9092") as tk:
        with tk.producer("orders") as producer:
            producer.send(b"v", key=b"k")
        for message in tk.read("orders", until_end=True): ...

All clients share one event loop, in a thread of its own, which begins with the first call. A client, and what it makes,
may be used from any thread; an iteration from one at a time.
"""

import asyncio
import concurrent.futures
import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import takhin.client as aio
from takhin.client import BufferFull, Closed, Message, RecordMetadata, Records, TopicPartition
from takhin.client.consumer import Place
from takhin.client.start import Start
from takhin.client.types import Headers, NextOffsets

P = ParamSpec("P")
T = TypeVar("T")
AsyncT = TypeVar("AsyncT")

# Messages that a consumer takes over from the loop's thread at once, at most. How many it really takes follows the
# program: twice as many when they were used up within the first time, half as many when it took the second.
_FETCH_MOST = 500
_FETCH_MORE_S = 0.05
_FETCH_LESS_S = 0.2
# What was taken over and not used up within this goes back: the program has become slow, and while the loop's thread
# does not see it ask for more, no credit is given and no partition released.
_KEEP_S = 1.0
# What a record that waits costs beside its own bytes: concurrent.futures' future with its lock takes most of it.
_OBJECTS_BYTES = 1_900


class _BackgroundLoop:
    """One event loop in a daemon thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def get(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="takhin", daemon=True)
                self._thread.start()
            return self._loop

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for a coroutine that runs on the loop. Interrupted, it is cancelled."""
        loop = self.get()
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("takhin.sync would wait for its own thread: what runs on its loop uses takhin.client")
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


_background = _BackgroundLoop()


def _after_fork() -> None:
    # The thread is not there in a child; what the parent opened is the parent's.
    global _background
    _background = _BackgroundLoop()


os.register_at_fork(after_in_child=_after_fork)


def _blocking(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    """The method of an asynchronous object, as one of the object here that has it as `_wrapped`."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return _background.run(method(self._wrapped, *args, **kwargs))

    return call


def _making(
    method: Callable[Concatenate[Any, P], AsyncT], wrap: Callable[[AsyncT], T]
) -> Callable[Concatenate[Any, P], T]:
    """The same for a method that gives an asynchronous object at once."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return wrap(method(self._wrapped, *args, **kwargs))

    return call


class Producer:
    """takhin.client.Producer without asyncio: send() waits for the acknowledgement, send_nowait() gives a future of
    concurrent.futures.
    """

    def __init__(self, wrapped: aio.Producer) -> None:
        self._wrapped = wrapped
        self._buffer_bytes = wrapped.buffer_bytes
        self._lock = threading.Lock()
        # What was given here and is not acknowledged; and of that, what the loop's thread has not taken over.
        self._buffered_bytes = 0
        self._given: deque[tuple[dict[str, Any], int, concurrent.futures.Future[RecordMetadata]]] = deque()
        self._is_draining = False
        self._drained: asyncio.Task[None] | None = None

    def __enter__(self) -> "Producer":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _background.run(self._exit(kind, problem, traceback))

    async def _exit(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Exception):
            await self._take_over()
        await self._wrapped.__aexit__(kind, problem, traceback)

    start = _blocking(aio.Producer.start)
    aclose = _blocking(aio.Producer.aclose)

    @property
    def topic(self) -> str:
        return self._wrapped.topic

    def send(
        self, value: bytes | None, *, key: bytes | None = None, headers: Headers | None = None,
        partition: int | None = None, timestamp_ms: int = 0
    ) -> RecordMetadata:
        """Store a record; returns when the broker acknowledged it."""
        return _background.run(self._send(
            value, key=key, headers=headers, partition=partition, timestamp_ms=timestamp_ms))

    async def _send(self, value: bytes | None, **options: Any) -> RecordMetadata:
        await self._take_over()
        return await self._wrapped.send(value, **options)

    def send_nowait(
        self, value: bytes | None, *, key: bytes | None = None, headers: Headers | None = None,
        partition: int | None = None, timestamp_ms: int = 0
    ) -> "concurrent.futures.Future[RecordMetadata]":
        """As send, but at once, with a future of the acknowledgement (or of TypeError, ValueError for what can't be
        sent). Raises BufferFull.
        """
        if headers is not None and not isinstance(headers, Mapping):
            # They are encoded later, and perhaps twice: an iterator gives them once.
            with suppress(TypeError):
                headers = tuple(headers)
        size_bytes = len(value or b"") + len(key or b"") + _size_of(headers) + _OBJECTS_BYTES
        future: concurrent.futures.Future[RecordMetadata] = concurrent.futures.Future()
        given = {"value": value, "key": key, "headers": headers, "partition": partition, "timestamp_ms": timestamp_ms}
        with self._lock:
            if self._buffered_bytes and self._buffered_bytes + size_bytes > self._buffer_bytes:
                raise BufferFull(
                    f"{self._buffered_bytes} bytes wait to be stored: no room for {size_bytes} more (buffer_bytes "
                    f"{self._buffer_bytes})")
            self._buffered_bytes += size_bytes
            self._given.append((given, size_bytes, future))
            wake = not self._is_draining
            self._is_draining = True
        if wake:
            _background.get().call_soon_threadsafe(self._drain)
        return future

    def flush(self, timeout_s: float | None = None) -> None:
        """As takhin.client.Producer.flush."""
        _background.run(self._flush(timeout_s))

    async def _flush(self, timeout_s: float | None) -> None:
        await self._take_over()
        await self._wrapped.flush(timeout_s)

    # On the loop's thread

    def _drain(self) -> None:
        self._drained = asyncio.ensure_future(self._drain_all())

    async def _take_over(self) -> None:
        """What was given so far is with the producer."""
        if self._drained is not None:
            await asyncio.wait([self._drained])
        await self._drain_all()

    async def _drain_all(self) -> None:
        while True:
            with self._lock:
                if not self._given:
                    self._is_draining = False
                    return
                given, size_bytes, future = self._given.popleft()
            while True:
                try:
                    self._follow(self._wrapped.send_nowait(**given), size_bytes, future)
                except BufferFull:
                    try:
                        await self._wrapped.room()
                        continue
                    except Closed as problem:
                        self._refuse(size_bytes, future, problem)
                except Exception as problem:
                    self._refuse(size_bytes, future, problem)
                break

    def _refuse(
        self, size_bytes: int, future: concurrent.futures.Future[RecordMetadata], problem: Exception
    ) -> None:
        self._done(size_bytes)
        # The program may have cancelled it meanwhile.
        if future.set_running_or_notify_cancel():
            future.set_exception(problem)

    def _follow(
        self, delivery: asyncio.Future[RecordMetadata], size_bytes: int,
        future: concurrent.futures.Future[RecordMetadata]
    ) -> None:
        def done(delivery: asyncio.Future[RecordMetadata]) -> None:
            self._done(size_bytes)
            if not future.set_running_or_notify_cancel() or delivery.cancelled():
                return
            # Not by exception(): a failure that nobody looks at is told by flush.
            problem = getattr(delivery, "_exception", None)
            if problem is None:
                future.set_result(delivery.result())
            else:
                future.set_exception(problem)

        delivery.add_done_callback(done)

    def _done(self, size_bytes: int) -> None:
        with self._lock:
            self._buffered_bytes -= size_bytes


def _size_of(headers: Any) -> int:
    """About, and without judging them: what is wrong with them is told by who encodes them."""
    size_bytes = 0
    with suppress(TypeError, ValueError):
        for name, value in headers.items() if isinstance(headers, Mapping) else headers or ():
            size_bytes += len(name) + len(value) + 8
    return size_bytes


class Consumer:
    """takhin.client.Consumer without asyncio: an iterator of messages. One counts as processed when one of those after
    it is asked for, a second later at most.
    """

    def __init__(self, wrapped: aio.Consumer) -> None:
        self._wrapped = wrapped
        # Taken over, and not handed out. Only the loop's thread adds to it.
        self._here: deque[Message] = deque()
        self._fetched_s = 0.0
        self._most = 1
        # As many were taken over as were asked for: a slow broker is not a quick program.
        self._was_full = False

    def __enter__(self) -> "Consumer":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _background.run(self._exit(kind, problem, traceback))

    async def _exit(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._put_back()
        await self._wrapped.__aexit__(kind, problem, traceback)

    start = _blocking(aio.Consumer.start)
    aclose = _blocking(aio.Consumer.aclose)

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        if not self._here or monotonic() - self._fetched_s > _KEEP_S:
            _background.run(self._fetch())
        return self._here.popleft()

    def next(self, timeout_s: float | None = None) -> Message | None:
        """The next message; None when none came within timeout_s."""
        if not self._here or monotonic() - self._fetched_s > _KEEP_S:
            _background.run(self._fetch_one(timeout_s))
        return self._here.popleft() if self._here else None

    async def _fetch(self) -> None:
        # Added here, not by the thread that waits: interrupted, it would lose what was taken over already.
        if self._is_due():
            used_s = monotonic() - self._fetched_s
            if used_s > _FETCH_LESS_S:
                self._most = max(self._most // 2, 1)
            elif used_s < _FETCH_MORE_S and self._was_full:
                self._most = min(self._most * 2, _FETCH_MOST)
            fetched = await self._wrapped.fetch(self._most)
            self._here.extend(fetched)
            self._was_full = len(fetched) == self._most
            self._fetched_s = monotonic()

    async def _fetch_one(self, timeout_s: float | None) -> None:
        if self._is_due() and (message := await self._wrapped.next(timeout_s)) is not None:
            self._here.append(message)
            self._was_full = False
            self._fetched_s = monotonic()

    def _is_due(self) -> bool:
        """Whether there is to be a fetch; what is too old is given back then."""
        if self._here and monotonic() - self._fetched_s > _KEEP_S:
            self._put_back()
            self._most = 1
        return not self._here

    def batches(self, *, max_records: int = 500, max_wait: float = 0.2) -> Iterator[list[Message]]:
        """As takhin.client.Consumer.batches."""
        batches = self._wrapped.batches(max_records=max_records, max_wait=max_wait)
        while True:
            if self._here:
                _background.run(self._with_put_back())
            yield _background.run(anext(batches))  # type: ignore[arg-type]

    def commit(self, what: Message | NextOffsets | None = None) -> None:
        """As takhin.client.Consumer.commit."""
        _background.run(self._commit(what))

    async def _commit(self, what: Message | NextOffsets | None) -> None:
        if what is None:
            what = self._wrapped.positions | {
                place: first.offset for place, (first, _) in self._not_handed_out().items()}
        await self._wrapped.commit(what)

    def lag(self) -> dict[TopicPartition, int]:
        """As takhin.client.Consumer.lag."""
        return _background.run(self._lag())

    async def _lag(self) -> dict[TopicPartition, int]:
        found = await self._wrapped.lag()
        for place, (first, last) in self._not_handed_out().items():
            if place in found:
                found[place] += last.offset + 1 - first.offset
        return found

    def _not_handed_out(self) -> dict[TopicPartition, tuple[Message, Message]]:
        """The first and the last message of each partition that is here, if the consumer still stands behind the last.
        Where it does not, it was given the partition anew meanwhile, or has it no more: what is here of it is nothing
        to go by, as it is delivered again.
        """
        found: dict[TopicPartition, tuple[Message, Message]] = {}
        for message in self._here:
            place = TopicPartition(message.topic, message.partition)
            first, _ = found.get(place, (message, message))
            found[place] = first, message
        positions = self._wrapped.positions
        return {place: ends for place, ends in found.items() if positions.get(place) == ends[1].offset + 1}

    @property
    def group(self) -> str:
        return self._wrapped.group

    @property
    def assignment(self) -> tuple[TopicPartition, ...]:
        return _background.run(self._assignment())

    async def _assignment(self) -> tuple[TopicPartition, ...]:
        return self._wrapped.assignment

    def position(self, partition: Place) -> int:
        """The next offset to be handed out."""
        return _background.run(self._position(partition))

    async def _position(self, partition: Place) -> int:
        position = self._wrapped.position(partition)
        ends = self._not_handed_out().get(TopicPartition(*partition))
        return position if ends is None else ends[0].offset

    def pause(self, *partitions: Place) -> None:
        """As takhin.client.Consumer.pause."""
        _background.run(self._with_put_back(functools.partial(self._wrapped.pause, *partitions)))

    def resume(self, *partitions: Place) -> None:
        """As takhin.client.Consumer.resume."""
        _background.run(self._with_put_back(functools.partial(self._wrapped.resume, *partitions)))

    def seek(self, partition: Place, to: Start) -> None:
        """As takhin.client.Consumer.seek."""
        _background.run(self._seek(partition, to))

    async def _seek(self, partition: Place, to: Start) -> None:
        self._put_back()
        await self._wrapped.seek(partition, to)

    async def _with_put_back(self, then: Callable[[], None] = lambda: None) -> None:
        self._put_back()
        then()

    def _put_back(self) -> None:
        self._wrapped.hand_back([message for ends in self._not_handed_out().values() for message in ends])
        self._here.clear()


class Reader:
    """takhin.client.Reader without asyncio: an iterator of messages; batches() gives Records."""

    def __init__(self, wrapped: aio.Reader) -> None:
        self._wrapped = wrapped
        self._current: Iterator[Message] = iter(())

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        while True:
            for message in self._current:
                return message
            records = _background.run(self._wrapped.next_batch())
            if records is None:
                raise StopIteration
            self._current = iter(records)

    def batches(self) -> Iterator[Records]:
        """As takhin.client.Reader.batches."""
        while (records := _background.run(self._wrapped.next_batch())) is not None:
            yield records

    def close(self) -> None:
        """End its calls; it gives no more."""
        self._current = iter(())
        _background.run(self._wrapped.aclose())


class Transaction:
    """takhin.client.Transaction without asyncio: `with` stores all of it at its end, or nothing."""

    def __init__(self, wrapped: aio.Transaction) -> None:
        self._wrapped = wrapped

    def __enter__(self) -> "Transaction":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _background.run(self._wrapped.__aexit__(kind, problem, traceback))

    store = _blocking(aio.Transaction.store)

    @property
    def results(self) -> list[RecordMetadata]:
        return self._wrapped.results

    def send(
        self, topic: str, value: bytes | None, *, key: bytes | None = None, headers: Headers | None = None,
        partition: int | None = None, timestamp_ms: int = 0
    ) -> None:
        """As takhin.client.Transaction.send."""
        self._wrapped.send(topic, value, key=key, headers=headers, partition=partition, timestamp_ms=timestamp_ms)

    def commit(self, what: Message | NextOffsets) -> None:
        """As takhin.client.Transaction.commit."""
        self._wrapped.commit(what)


class Access:
    """takhin.client.Access without asyncio: what Client.access is."""

    def __init__(self, wrapped: aio.Access) -> None:
        self._wrapped = wrapped

    create_key = _blocking(aio.Access.create_key)
    list_keys = _blocking(aio.Access.list_keys)
    revoke_key = _blocking(aio.Access.revoke_key)
    create_acls = _blocking(aio.Access.create_acls)
    list_acls = _blocking(aio.Access.list_acls)
    delete_acls = _blocking(aio.Access.delete_acls)


class Client:
    """takhin.client.Client without asyncio. Made by connect(). access: API keys and ACLs."""

    def __init__(self, wrapped: aio.Client) -> None:
        self._wrapped = wrapped
        self.access = Access(wrapped.access)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    close = _blocking(aio.Client.close)
    create_topic = _blocking(aio.Client.create_topic)
    update_topic = _blocking(aio.Client.update_topic)
    delete_topic = _blocking(aio.Client.delete_topic)
    list_topics = _blocking(aio.Client.list_topics)
    describe_topic = _blocking(aio.Client.describe_topic)
    describe_topics = _blocking(aio.Client.describe_topics)
    offsets = _blocking(aio.Client.offsets)
    truncate = _blocking(aio.Client.truncate)
    list_groups = _blocking(aio.Client.list_groups)
    describe_group = _blocking(aio.Client.describe_group)
    delete_group = _blocking(aio.Client.delete_group)
    group_offsets = _blocking(aio.Client.group_offsets)
    reset_offsets = _blocking(aio.Client.reset_offsets)
    commit_offsets = _blocking(aio.Client.commit_offsets)
    health = _blocking(aio.Client.health)
    is_ready = _blocking(aio.Client.is_ready)
    producer = _making(aio.Client.producer, Producer)
    consumer = _making(aio.Client.consumer, Consumer)
    read = _making(aio.Client.read, Reader)

    def transaction(self, *, consumer: Consumer | None = None, group: str = "", timeout_s: float = 60.0) -> Transaction:
        """As takhin.client.Client.transaction."""
        wrapped = consumer._wrapped if consumer is not None else None
        return Transaction(self._wrapped.transaction(consumer=wrapped, group=group, timeout_s=timeout_s))


def _wrapping(function: Callable[P, aio.Client]) -> Callable[P, Client]:
    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Client:
        return Client(function(*args, **kwargs))

    return call


connect = _wrapping(aio.connect)


def __getattr__(name: str) -> Any:
    # Errors, Message and the like are the same here.
    if name in aio.__all__:
        return getattr(aio, name)
    raise AttributeError(f"module 'takhin.sync' has no attribute {name!r}")
