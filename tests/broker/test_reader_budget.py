"""The readers' budget by itself: who goes on, who waits, who is cut off, and that the count is always right."""

import asyncio
import random
from collections.abc import Awaitable

import pytest

from takhin.broker import reader_budget
from takhin.broker.reader_budget import (
    SMALL_RESPONSE_BYTES,
    SMALLEST_RESPONSE_BYTES,
    TRANSPORT_BUFFER_BYTES,
    Lease,
    ReaderBudget,
)

MIB = 1 << 20


@pytest.fixture(autouse=True)
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_budget, "_CHECK_S", 0.01)


def run(scenario: Awaitable[None]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(scenario, 8)

    asyncio.run(limited())


def while_writing(size_bytes: int) -> int:
    """A response, the transport's copy of it, and the transport's own buffer."""
    return 2 * size_bytes + TRANSPORT_BUFFER_BYTES


class Readers:
    """Streams on one budget."""

    def __init__(self, limit_bytes: int, slow_reader_ms: int = 60_000):
        self.budget = ReaderBudget(limit_bytes, slow_reader_ms)
        self.leases: list[Lease] = []
        self.cut: list[Lease] = []

    def open(self) -> Lease:
        def cut() -> None:
            self.cut.append(lease)

        lease = self.budget.open(cut)
        self.leases.append(lease)
        return lease

    def close(self, lease: Lease) -> None:
        self.leases.remove(lease)
        self.budget.close(lease)

    async def write(self, lease: Lease, size_bytes: int) -> None:
        """A response that the transport takes at once."""
        await self.begin(lease, size_bytes)
        self.budget.end_write(lease)

    async def begin(self, lease: Lease, size_bytes: int) -> None:
        """A response that the transport is handed."""
        await self.budget.reserve(lease, size_bytes)
        assert self.budget.grow(lease, size_bytes)
        self.budget.begin_write(lease)

    def check(self) -> None:
        """What is counted is what the streams hold."""
        assert self.budget.used_bytes == sum(lease.written_bytes + lease.writing_bytes for lease in self.leases)


def test_a_stream_answers_for_its_last_two_responses() -> None:
    async def scenario() -> None:
        readers = Readers(10 * MIB)
        lease = readers.open()
        await readers.begin(lease, 100_000)
        assert readers.budget.used_bytes == while_writing(100_000)
        readers.budget.end_write(lease)
        assert readers.budget.used_bytes == 100_000
        await readers.begin(lease, 50_000)
        assert readers.budget.used_bytes == 100_000 + while_writing(50_000)
        readers.budget.end_write(lease)
        assert readers.budget.used_bytes == 50_000
        await readers.budget.reserve(lease, 70_000)
        readers.budget.give_back(lease)
        assert readers.budget.used_bytes == 50_000
        readers.close(lease)
        assert readers.budget.used_bytes == 0

    run(scenario())


def test_what_was_planned_is_corrected_by_what_it_became() -> None:
    async def scenario() -> None:
        readers = Readers(10 * MIB)
        lease = readers.open()
        await readers.budget.reserve(lease, 100_000)
        assert readers.budget.grow(lease, 1_000)
        assert readers.budget.used_bytes == while_writing(1_000)
        assert readers.budget.grow(lease, 200_000)
        assert readers.budget.used_bytes == while_writing(200_000)
        # Not beyond the budget; then what was reserved stays as it is.
        assert not readers.budget.grow(lease, 11 * MIB) or readers.budget.used_bytes == while_writing(11 * MIB)
        readers.check()
        readers.close(lease)
        assert readers.budget.used_bytes == 0

    run(scenario())


def test_responses_shrink_as_the_budget_is_used_up() -> None:
    async def scenario() -> None:
        readers = Readers(64 * MIB)
        sizes = []
        for _ in range(200):
            lease = readers.open()
            size = readers.budget.allowance(MIB)
            sizes.append(size)
            await readers.begin(lease, size)
            assert readers.budget.used_bytes <= 64 * MIB
        assert sizes[0] == MIB and sizes == sorted(sizes, reverse=True)
        assert sizes[-1] >= SMALLEST_RESPONSE_BYTES
        assert readers.budget.allowance(100) == 100
        readers.check()

    run(scenario())


def test_nobody_goes_beyond_the_budget_beside_others() -> None:
    async def scenario() -> None:
        readers = Readers(MIB)
        first, second, third = readers.open(), readers.open(), readers.open()
        await readers.begin(first, 200_000)
        waiting = asyncio.ensure_future(readers.begin(second, 200_000))
        await asyncio.sleep(0.05)
        assert not waiting.done() and readers.budget.used_bytes == while_writing(200_000)
        # A small one has room, and need not wait for the large one.
        await asyncio.wait_for(readers.write(third, 1000), 1)
        readers.budget.end_write(first)
        await asyncio.wait_for(waiting, 1)
        readers.check()
        assert readers.budget.used_bytes <= MIB
        assert readers.cut == []

    run(scenario())


def test_the_last_quarter_is_for_small_responses() -> None:
    async def scenario() -> None:
        readers = Readers(4 * MIB)
        for _ in range(10):
            lease = readers.open()
            try:
                await asyncio.wait_for(readers.begin(lease, 5 * SMALL_RESPONSE_BYTES), 0.02)
            except TimeoutError:
                readers.close(lease)
        assert readers.budget.used_bytes <= 3 * MIB
        used = readers.budget.used_bytes
        for _ in range(4):
            await asyncio.wait_for(readers.begin(readers.open(), SMALL_RESPONSE_BYTES), 1)
        assert used < readers.budget.used_bytes <= 4 * MIB
        readers.check()

    run(scenario())


def test_a_response_larger_than_the_budget_goes_alone() -> None:
    async def scenario() -> None:
        readers = Readers(MIB)
        large, other = readers.open(), readers.open()
        await asyncio.wait_for(readers.begin(large, 8 * MIB), 1)
        waiting = asyncio.ensure_future(readers.write(other, 10_000))
        await asyncio.sleep(0.03)
        assert not waiting.done()
        assert readers.budget.used_bytes == while_writing(8 * MIB)
        readers.budget.end_write(large)
        readers.close(large)
        await asyncio.wait_for(waiting, 1)
        readers.check()

    run(scenario())


def test_equal_ones_go_on_in_the_order_of_asking() -> None:
    async def scenario() -> None:
        readers = Readers(MIB)
        holder = readers.open()
        await readers.begin(holder, 300_000)
        order: list[int] = []

        async def follow(number: int) -> None:
            lease = readers.open()
            await readers.begin(lease, 250_000)
            order.append(number)
            await asyncio.sleep(0)
            readers.close(lease)

        tasks = []
        for number in range(10):
            tasks.append(asyncio.ensure_future(follow(number)))
            await asyncio.sleep(0)
        assert order == []
        readers.close(holder)
        await asyncio.gather(*tasks)
        assert order == list(range(10))
        assert readers.budget.used_bytes == 0

    run(scenario())


def test_who_gives_up_waiting_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        readers = Readers(MIB)
        holder = readers.open()
        await readers.begin(holder, 300_000)
        leases = [readers.open() for _ in range(5)]
        tasks = [asyncio.ensure_future(readers.begin(lease, 250_000)) for lease in leases]
        await asyncio.sleep(0)
        for number in (0, 2):
            tasks[number].cancel()
        await asyncio.sleep(0)
        readers.close(holder)
        # Cancelled between being let on and knowing it: what was taken for it goes back with its stream.
        tasks[1].cancel()
        for number in (0, 1, 2):
            with pytest.raises(asyncio.CancelledError):
                await tasks[number]
            readers.close(leases[number])
        await asyncio.wait_for(tasks[3], 1)
        readers.check()
        readers.close(leases[3])
        await asyncio.wait_for(tasks[4], 1)
        readers.close(leases[4])
        assert readers.budget.used_bytes == 0

    run(scenario())


def test_a_slow_reader_is_cut_off_only_while_somebody_waits() -> None:
    async def scenario() -> None:
        readers = Readers(MIB, slow_reader_ms=200)
        slow = readers.open()
        await readers.begin(slow, 300_000)
        await asyncio.sleep(0.4)
        assert readers.cut == []
        waiting = asyncio.ensure_future(readers.begin(readers.open(), 300_000))
        while not readers.cut:
            await asyncio.sleep(0.005)
        # Once, however long its end takes; again when it did not come to one.
        await asyncio.sleep(0.03)
        assert readers.cut == [slow] and not waiting.done()
        while len(readers.cut) < 2:
            await asyncio.sleep(0.005)
        assert set(map(id, readers.cut)) == {id(slow)} and not waiting.done()
        readers.close(slow)
        await asyncio.wait_for(waiting, 1)
        readers.check()

    run(scenario())


def test_a_reader_that_takes_what_it_is_sent_is_not_cut_off() -> None:
    async def scenario() -> None:
        readers = Readers(MIB, slow_reader_ms=400)
        stalled, busy = readers.open(), readers.open()
        loop = asyncio.get_running_loop()
        await readers.begin(stalled, 120_000)
        began_s = loop.time()
        ended = asyncio.Event()

        async def take() -> None:
            while not ended.is_set():
                await readers.begin(busy, 20_000)
                await asyncio.sleep(0.01)
                readers.budget.end_write(busy)

        taking = asyncio.ensure_future(take())
        waiting = asyncio.ensure_future(readers.begin(readers.open(), 250_000))
        while not readers.cut:
            await asyncio.sleep(0.005)
        assert loop.time() - began_s >= 0.39
        readers.close(stalled)
        await asyncio.wait_for(waiting, 1)
        assert busy not in readers.cut
        ended.set()
        await taking

    run(scenario())


def test_no_more_are_cut_off_than_are_in_the_way() -> None:
    async def scenario() -> None:
        readers = Readers(4 * MIB, slow_reader_ms=30)
        stalled = []
        for _ in range(12):
            lease = readers.open()
            await readers.begin(lease, 60_000)
            stalled.append(lease)
            await asyncio.sleep(0.002)
        await asyncio.sleep(0.05)
        waiting = asyncio.ensure_future(readers.begin(readers.open(), 600_000))
        while not readers.cut:
            await asyncio.sleep(0.005)
        # The slowest first.
        cut = readers.cut[:]
        assert cut == stalled[: len(cut)] and len(cut) < 12
        for lease in cut:
            readers.close(lease)
        while not waiting.done():
            await asyncio.sleep(0.005)
            for lease in set(readers.cut) & set(readers.leases):
                readers.close(lease)
        readers.check()

    run(scenario())


def test_readers_that_have_taken_everything_hold_nobody_up() -> None:
    """They follow the log's end, and nobody is writing: what they were sent last may be counted, but not wait for."""

    async def scenario() -> None:
        readers = Readers(MIB, slow_reader_ms=50)

        async def write_all(leases: list[Lease]) -> None:
            for lease in leases:
                await readers.write(lease, 100_000)

        idle = [readers.open() for _ in range(20)]
        await asyncio.wait_for(write_all(idle), 5)
        # And again, when there is something new for all of them.
        await asyncio.wait_for(asyncio.gather(*(readers.write(lease, 100_000) for lease in idle)), 5)
        readers.check()
        assert readers.cut == []

    run(scenario())


def test_a_large_response_is_not_starved_by_small_ones() -> None:
    async def scenario() -> None:
        readers = Readers(MIB, slow_reader_ms=50)
        ended = asyncio.Event()

        async def small() -> None:
            lease = readers.open()
            while not ended.is_set():
                await readers.begin(lease, 30_000)
                await asyncio.sleep(0.003)
                readers.budget.end_write(lease)

        tasks = [asyncio.ensure_future(small()) for _ in range(12)]
        await asyncio.sleep(0.01)
        await asyncio.wait_for(readers.write(readers.open(), 300_000), 5)
        ended.set()
        await asyncio.gather(*tasks)

    run(scenario())


def test_whatever_happens_the_count_is_right_and_bounded() -> None:
    async def scenario() -> None:
        rng = random.Random(11)
        limit = 2 * MIB
        readers = Readers(limit, slow_reader_ms=20)
        largest = 0

        async def stream() -> None:
            nonlocal largest
            lease = readers.open()
            try:
                for _ in range(rng.randrange(1, 8)):
                    size = rng.choice([500, 5_000, 50_000, 200_000, 500_000])
                    planned = min(size, readers.budget.allowance(MIB))
                    await readers.budget.reserve(lease, planned)
                    while not readers.budget.grow(lease, size):
                        await readers.budget.reserve(lease, size)
                    largest = max(largest, sum(each.writing_bytes for each in readers.leases))
                    readers.budget.begin_write(lease)
                    await asyncio.sleep(rng.choice([0, 0, 0.001, 0.03]))
                    if lease in readers.cut:
                        raise ConnectionError
                    readers.budget.end_write(lease)
            except ConnectionError:
                pass
            finally:
                readers.close(lease)

        tasks = [asyncio.ensure_future(stream()) for _ in range(150)]
        while pending := [task for task in tasks if not task.done()]:
            if rng.random() < 0.1:
                rng.choice(pending).cancel()
            readers.check()
            await asyncio.sleep(0.001)
        assert readers.budget.used_bytes == 0
        # What is under way; what readers were sent before is another matter.
        assert while_writing(200_000) < largest <= limit

    run(scenario())


def test_readers_that_hold_twice_the_budget_go_on() -> None:
    """What each holds of its last response is a good part of the budget; and one comes late, who holds nothing."""
    limit_bytes, large_bytes = 1_000_000, 300_000

    async def scenario() -> None:
        budget = ReaderBudget(limit_bytes, 20)

        async def reader(delay_s: float) -> None:
            await asyncio.sleep(delay_s)
            lease = budget.open(lambda: None)
            for size_bytes in [100] + [large_bytes] * 60:
                await budget.reserve(lease, size_bytes)
                budget.begin_write(lease)
                await asyncio.sleep(0.001)
                budget.end_write(lease)
            budget.close(lease)

        await asyncio.gather(*(reader(0) for _ in range(10)), reader(0.05))
        assert budget.used_bytes == 0

    run(scenario())
