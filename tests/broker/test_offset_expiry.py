"""Expiry of the offsets of groups that nobody uses."""

import asyncio
from pathlib import Path

import pytest

from takhin.broker import broker as broker_module
from takhin.broker.broker import Broker
from takhin.broker.offset_expiry import OffsetExpiry
from takhin.broker.offset_reset import ResetTo, Target
from takhin.config import GroupSettings
from takhin.errors import Reason, error
from tests.broker.test_produce_paths import run, running, topic_of
from tests.broker.test_retention import DAY_MS, YEAR_MS, Clock


def expiry_of(broker: Broker, clock: Clock, **settings: int) -> OffsetExpiry:
    return OffsetExpiry(broker._metadata, broker.groups, GroupSettings(**settings), clock)


async def names(broker: Broker) -> list[str]:
    return [group.group_id for group in await broker.groups.list_groups()]


def test_seven_days_after_the_last_commit_or_reset(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with running(tmp_path, clock_ms=clock) as broker:
            await topic_of(broker)
            expiry = expiry_of(broker, clock)
            for group in "commits", "resets", "stays away":
                await broker.groups.commit(group, [("t", 0, 0)])
            clock.now_ms += 7 * DAY_MS
            await expiry.check()
            assert await names(broker) == ["commits", "resets", "stays away"]
            await broker.groups.commit("commits", [("t", 0, 0)])
            await broker.offset_resets.reset("resets", [("t", 0)], [], ResetTo(Target.EARLIEST), dry_run=False)
            clock.now_ms += 1
            caplog.set_level("INFO")
            await expiry.check()
            assert await names(broker) == ["commits", "resets"]
            assert [each.message for each in caplog.records if "forgotten" in each.message] == [
                "group 'stays away' was not used for 604800000 ms: its offsets are forgotten"]
            await broker.groups.commit("stays away", [("t", 0, 0)])  # and comes back as a new one
            clock.now_ms += 7 * DAY_MS
            await expiry.check()
            assert await names(broker) == ["stays away"]

    run(scenario())


def test_counted_from_when_members_were_last_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They had nothing to commit for a year; the note of them outlives the broker."""

    async def scenario() -> None:
        clock = Clock()
        async with running(tmp_path, clock_ms=clock) as broker:
            await topic_of(broker)
            await broker.groups.commit("g", [("t", 0, 0)])
            monkeypatch.setattr(broker.groups, "with_members", lambda: ["g"])
            clock.now_ms += YEAR_MS
            await expiry_of(broker, clock).check()
            assert await names(broker) == ["g"]
        async with running(tmp_path, clock_ms=clock) as broker:
            clock.now_ms += 7 * DAY_MS
            await expiry_of(broker, clock).check()
            assert await names(broker) == ["g"]
            clock.now_ms += 1
            await expiry_of(broker, clock).check()
            assert await names(broker) == []

    run(scenario())


def test_never(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with running(tmp_path, clock_ms=clock) as broker:
            await topic_of(broker)
            await broker.groups.commit("g", [("t", 0, 0)])
            clock.now_ms += 1000 * YEAR_MS
            await expiry_of(broker, clock, offsets_retention_ms=-1).check()
            assert await names(broker) == ["g"]

    run(scenario())


def test_a_clock_that_goes_back_expires_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with running(tmp_path, clock_ms=clock) as broker:
            await topic_of(broker)
            await broker.groups.commit("g", [("t", 0, 0)])
            clock.now_ms -= YEAR_MS
            await expiry_of(broker, clock, offsets_retention_ms=1).check()
            assert await names(broker) == ["g"]

    run(scenario())


def test_a_look_that_fails_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with running(tmp_path, clock_ms=clock) as broker:
            await topic_of(broker)
            await broker.groups.commit("g", [("t", 0, 0)])
            clock.now_ms += YEAR_MS
            expire = broker._metadata.expire_groups
            failed = False

            async def fail_first(*args):
                nonlocal failed
                if not failed:
                    failed = True
                    raise error(Reason.DISK_FULL, "no room")
                return await expire(*args)

            monkeypatch.setattr(broker._metadata, "expire_groups", fail_first)
            task = asyncio.ensure_future(expiry_of(broker, clock, offsets_check_ms=10).run())
            while await names(broker):
                await asyncio.sleep(0.01)
            task.cancel()
            assert failed and "unused groups stay for now: no room" in caplog.text

    run(scenario())


def test_the_broker_looks_by_itself_with_its_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[OffsetExpiry] = []

    class Noted(OffsetExpiry):
        def __init__(self, *args) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(broker_module, "OffsetExpiry", Noted)

    async def scenario() -> None:
        async with running(tmp_path) as broker:
            (expiry,) = made
            assert (expiry._settings.offsets_retention_ms, expiry._settings.offsets_check_ms) == (7 * DAY_MS, 600_000)
            assert expiry._groups is broker.groups

    run(scenario())
