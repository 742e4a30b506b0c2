"""The fast front, fuzzed: connections of a real broker's, on wires of ours. See front_wire.py and front_make.py."""

import asyncio
import gc
import logging
import os
import random
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop

from bench import http2
from bench.http2 import SETTINGS, WINDOW_UPDATE, frame
from takhin.broker.broker import Broker
from takhin.config import INT32_MAX, GrpcSettings
from takhin.rpc.fast.connection import Connection
from takhin.rpc.fast.front import FastFront
from takhin.rpc.health import ServingStatus
from takhin.rpc.served import served
from takhin.v1 import takhin_pb2 as pb
from tests.broker.test_produce_paths import settings
from tests.hostile import INITIAL_WINDOW_SIZE, MAX_WINDOW, PRODUCE, preface, setting
from tests.torture import front_wire
from tests.torture.front_make import FULL_TOPIC, make_case
from tests.torture.front_wire import SOCKET, STRICT, TLS, Socketed, Wire, play, unpacked, until
from tests.torture.http2_check import ServerSide, hold
from tests.torture.mutate import REQUESTS

# After so many cases the neighbour calls; the process's memory is looked at.
_NEIGHBOUR_EVERY, _MEMORY_EVERY = 10, 500
# What the first cases are given, for caches and pools; and what memory may grow by later.
_WARM_CASES, _GROWTH_BYTES = 2_000, 48 << 20
# A worker has to have room for it.
_MOST_CASE_BYTES = 1_000_000
# A topic with more in it is made again: some read all of it.
_TOPIC_BYTES = 200_000
_AGELESS = {"connection_age_ms": INT32_MAX, "connection_idle_ms": INT32_MAX, "keepalive_time_ms": INT32_MAX}


class Troubles(logging.Handler):
    """All that goes wrong without being raised to anybody: errors in the log, of the event loop, of `noexcept`."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(f"logged: {record.name}: {self.format(record)[:2000]}")

    def of_loop(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.found.append(f"the event loop: {context.get('message')}: {context.get('exception')!r}")

    def unraisable(self, what: Any) -> None:
        self.found.append(f"unraisable: {what.exc_value!r} in {what.object!r}: {what.err_msg}")

    @contextmanager
    def noted(self) -> Iterator[None]:
        root, hook, disabled = logging.getLogger(), sys.unraisablehook, logging.root.manager.disable
        root.addHandler(self)
        logging.disable(logging.WARNING)
        sys.unraisablehook = self.unraisable
        try:
            yield
        finally:
            sys.unraisablehook = hook
            logging.disable(disabled)
            root.removeHandler(self)


class Neighbour:
    """A client on a socket of its own, which does nothing wrong, and whose calls are to be answered right."""

    def __init__(self, topic: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._topic, self._reader, self._writer = topic, reader, writer
        self._server = ServerSide()
        self._stream = -1
        self._next_offset = 0
        self._send(preface(setting(INITIAL_WINDOW_SIZE, MAX_WINDOW)) + frame(
            WINDOW_UPDATE, 0, 0, (MAX_WINDOW - 65_535).to_bytes(4, "big")))

    def _send(self, data: bytes) -> None:
        self._server.sends(data)
        self._writer.write(data)

    async def call(self) -> None:
        """Raises Broken."""
        self._stream += 2
        request = pb.ProduceMessageRequest(topic=self._topic, record=pb.Record(value=b"v"), required_acks=1)
        self._send(http2.open_call(self._stream, http2.call_headers(PRODUCE)) + http2.message(
            self._stream, request.SerializeToString(), ends=True) + (frame(SETTINGS, 1) if self._stream == 1 else b""))
        async with asyncio.timeout(60):
            while self._stream not in self._server.streams or not self._server.streams[self._stream].is_over:
                data = await self._reader.read(1 << 16)
                hold(bool(data), "the neighbour's connection has ended")
                self._server.take(data)
        stream = self._server.streams.pop(self._stream)
        hold(stream.status == 0, f"the neighbour's call ended with {stream.status}")
        (message,) = stream.messages()
        answer = pb.ProduceMessageResponse.FromString(message)
        hold(answer.offset == self._next_offset, f"offset {answer.offset}, not {self._next_offset}")
        self._next_offset += 1

    def close(self) -> None:
        self._writer.close()


class FrontCases:
    """Connections to two fronts of one broker: one of them takes little of anything."""

    def __init__(self, directory: Path):
        # What ran in this process before may leave tasks, of which the log would tell later.
        gc.collect()
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._directory = directory / "front"
        self._directory.mkdir(parents=True)
        self._troubles = Troubles()
        self._num_checked = 0
        self._warm_bytes = 0
        self._runner.get_loop().set_exception_handler(self._troubles.of_loop)
        self._runner.run(self._start())

    def close(self) -> None:
        async def stop() -> None:
            for neighbour in self._neighbours:
                neighbour.close()
            for front in self._fronts:
                await front.stop(0)
            self._broker.begin_drain()
            await self._broker.stop()

        self._runner.run(stop())
        self._runner.close()

    async def _start(self) -> None:
        plain = settings(self._directory / "data")
        limits = replace(
            plain.limits, partitions_per_topic=16, topics=20, groups=20, producers=20, calls=8, streams=6,
            watch_streams=2, slow_reader_ms=10, reader_bytes=256 << 10, stream_requests_in_flight=4,
            stream_bytes_in_flight=20_000, ring_bytes=1 << 20, records_per_request=200, members=20,
            members_per_group=5)
        # A member that is lost is waited for: no longer than has to be.
        groups = replace(plain.groups, grace_ms=1)
        self._broker = Broker(replace(plain, limits=limits, groups=groups))
        await self._broker.start()
        table, health, _, _, self._gates = served(self._broker, reflection="open")
        health.set_all(ServingStatus.SERVING)
        strict = GrpcSettings(
            max_message_bytes=128 << 10, max_metadata_bytes=4 << 10, max_streams_per_connection=12,
            compression="gzip", **_AGELESS)
        self._fronts = [
            FastFront(table, each, None, limits) for each in (GrpcSettings(min_ping_interval_ms=0, **_AGELESS), strict)]
        await self._make_topic()
        await self._broker.topics.create(FULL_TOPIC, 1, 1, {})
        for _ in range(40):
            request = pb.ProduceMessageRequest(topic=FULL_TOPIC, record=pb.Record(value=bytes(9_000)), required_acks=1)
            await self._broker.producing.produce(request.SerializeToString())
        await self._broker.producers.init("", [])
        await self._broker.producers.init("n", [])
        self._neighbours: list[Neighbour] = []
        for number, front in enumerate(self._fronts):
            path = str(self._directory / f"{number}.sock")
            await front.start(f"unix:{path}")
            topic = f"beside-{number}"
            await self._broker.topics.create(topic, 1, 1, {})
            self._neighbours.append(Neighbour(topic, *await asyncio.open_unix_connection(path)))

    async def _make_topic(self) -> None:
        await self._broker.topics.create("t", 2, 1, {"segment.bytes": "100000", "retention.bytes": "1000000"})
        await self._broker.producing.produce(REQUESTS["ProduceMessage"][0])

    def make(self, chance: random.Random) -> bytes:
        while len(case := make_case(chance)) > _MOST_CASE_BYTES:
            pass
        return case

    def check(self, data: bytes) -> None:
        self._num_checked += 1
        with self._troubles.noted():
            self._runner.run(self._check(data))
        if self._num_checked % _MEMORY_EVERY == 0:
            self._runner.run(self._check_connections())
            self._check_memory()

    async def _check(self, case: bytes) -> None:
        how, steps = unpacked(case)
        front = self._fronts[bool(how & STRICT)]
        before = self._counts()
        assert front._hub is not None
        known = front._hub.connections
        wire = await self._connected(front, how)
        try:
            await play(wire, steps, known, lambda: bool(self._troubles.found))
        finally:
            # What comes next is not to suffer from it.
            wire.lose(None)
            await until(lambda: wire.is_lost, "the connection is not lost")
        del wire
        await until(lambda: self._counts() == before, f"what was held is held yet: {before}, {self._counts()}")
        if self._num_checked % _NEIGHBOUR_EVERY == 0:
            for neighbour in self._neighbours:
                await neighbour.call()
        await self._renew_topic()
        found, self._troubles.found = self._troubles.found, []
        hold(not found, "; ".join(found))

    async def _connected(self, front: FastFront, how: int) -> Wire | Socketed:
        assert front._hub is not None and front._socket_path is not None
        loop = asyncio.get_running_loop()
        if how & SOCKET:
            before = set(front._hub.connections)
            socketed = Socketed(front._socket_path, loop)
            await until(lambda: len(front._hub.connections) > len(before), "a connection is not taken")
            (socketed.connection,) = front._hub.connections - before
            return socketed
        connection = front._accept()
        assert isinstance(connection, Connection)
        return Wire(connection, loop, bool(how & TLS))

    def _counts(self) -> dict[str, object]:
        """What a connection may hold while it is there."""
        hubs = [front._hub for front in self._fronts]
        counts: dict[str, object] = {
            f"{name} of front {number}": getattr(hub, name)
            for number, hub in enumerate(hubs) for name in ("calls", "num_links", "num_resting")}
        counts["connections"] = [len(hub.connections) for hub in hubs if hub is not None]
        counts |= {usage.name: usage.used for usage in self._gates.usage()}
        broker = self._broker
        return counts | {
            "open": self._gates.num_open, "bytes of produce streams": broker.producing.streams_bytes,
            "bytes of readers": broker._budget.used_bytes, "members": broker.groups.with_members(),
            "bytes of transactions": broker.transactions.bytes_in_flight,
        }

    async def _renew_topic(self) -> None:
        topics = self._broker.topics
        if "t" in topics.names() and next(each for each in topics if each.name == "t").size_bytes > _TOPIC_BYTES:
            await topics.delete("t")
        if "t" not in topics.names():
            await self._make_topic()

    async def _check_connections(self) -> None:
        """None is in memory that is over, once the event loop, and timers of a moment, have let go of them."""
        until_s = time.monotonic() + front_wire.HANGS_S
        hubs = [front._hub for front in self._fronts if front._hub is not None]
        while True:
            # A call that is garbage, of which the collector knows nothing, holds its connection until it is gone, too.
            for _ in range(3):
                gc.collect()
            # Of these fronts: what ran in this process before may have left others, in an error's traceback say.
            there = sum(
                1 for each in gc.get_objects()
                if type(each) is Connection and any(of is hub for of in gc.get_referents(each) for hub in hubs))
            # A front's tending may hold the one that it looked at last.
            known = sum(len(hub.connections) + 1 for hub in hubs)
            if there <= known:
                return
            hold(time.monotonic() < until_s, f"{there} connections are in memory, and {known} may be")
            await asyncio.sleep(0.05)

    def _check_memory(self) -> None:
        # The sanitizer keeps for a while what is freed.
        if "ASAN_OPTIONS" in os.environ:
            return
        used_bytes = rss_anon_bytes()
        if self._num_checked <= _WARM_CASES:
            self._warm_bytes = used_bytes
        grown = used_bytes - self._warm_bytes
        hold(grown < _GROWTH_BYTES, f"memory has grown by {grown >> 20} MiB in {self._num_checked} cases")


def rss_anon_bytes() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
