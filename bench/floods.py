"""What hostile clients do to the others: a neighbour's produce calls without and with each flood, and the memory.

    python -m bench.floods [--seconds 8] [--connections 4] [--only NAME] [--directory DIR] [-- FLAGS OF takhin-server]

Each flood runs on a broker of its own, from one process, over so many connections, with frames made by hand
(bench/http2.py), as fast as the broker takes them. Connections that the broker closes are opened again. The neighbour
calls ProduceMessage with required_acks 1, one call after the other, from another process; a call that takes longer than
LONGEST_S has failed, and counts as that. The last line printed is JSON.
"""

import argparse
import contextlib
import json
import multiprocessing
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from bench import environment, http2

environment.prepare()  # Before grpc is imported.

import grpc  # noqa: E402

from bench import processes  # noqa: E402
from takhin.v1 import takhin_pb2 as pb  # noqa: E402
from takhin.v1 import takhin_pb2_grpc  # noqa: E402

TOPIC = "beside"
TIMEOUT_S = 60.0
# What one connection sends before the next has its turn.
AT_ONCE = 50
# Not where the neighbour comes from.
SOURCE = "127.0.0.2"
# How long after a flood its memory is looked at.
AFTER_S = 3.0
MEMORY_EVERY_S = 0.2

CONSUME_HEADERS = http2.call_headers(environment.CONSUME)
PRODUCE_HEADERS = http2.call_headers(environment.PRODUCE)
STREAM_HEADERS = http2.call_headers(environment.PRODUCE_STREAM)


@dataclass(frozen=True)
class Flood:
    """burst: what is sent next on a connection, AT_ONCE frames or calls of it. open: what is sent on it first."""

    name: str
    burst: Callable[[http2.Connection], bytes]
    open: Callable[[http2.Connection], bytes] = lambda connection: b""
    preface: bytes = http2.PREFACE + http2.frame(http2.SETTINGS)
    # As many times so many connections, each new one as soon as one is closed.
    connections: int = 1


def _resets(headers: bytes) -> Callable[[http2.Connection], bytes]:
    def burst(connection: http2.Connection) -> bytes:
        numbers = [connection.next_stream() for _ in range(AT_ONCE)]
        return b"".join(http2.open_call(number, headers) + http2.reset(number) for number in numbers)

    return burst


def _resets_of_produce(connection: http2.Connection) -> bytes:
    """With the whole request there, so that it is served."""
    request = pb.ProduceMessageRequest(topic=TOPIC, record=pb.Record(value=b"x"), required_acks=0).SerializeToString()
    numbers = [connection.next_stream() for _ in range(AT_ONCE)]
    return b"".join(
        http2.open_call(number, PRODUCE_HEADERS) + http2.message(number, request, ends=True) + http2.reset(number)
        for number in numbers)


def _open_produce(connection: http2.Connection) -> bytes:
    """A call with the beginning of a message of a megabyte."""
    number = connection.next_stream()
    return http2.open_call(number, PRODUCE_HEADERS) + http2.frame(http2.DATA, 0, number, b"\0\0\x10\0\0")


def _data(payload: bytes) -> Callable[[http2.Connection], bytes]:
    return lambda connection: http2.frame(http2.DATA, 0, connection.last_stream, payload) * AT_ONCE


def _open_stream(connection: http2.Connection) -> bytes:
    return http2.open_call(connection.next_stream(), STREAM_HEADERS)


def _messages(connection: http2.Connection) -> bytes:
    """Of nothing: each is a request of its own, and answered."""
    return http2.message(connection.last_stream, b"") * AT_ONCE


def _open_headers(connection: http2.Connection) -> bytes:
    return http2.frame(http2.HEADERS, 0, connection.next_stream(), PRODUCE_HEADERS)


def _continuations(payload: bytes) -> Callable[[http2.Connection], bytes]:
    return lambda connection: http2.frame(http2.CONTINUATION, 0, connection.last_stream, payload) * AT_ONCE


FLOODS = (
    Flood("nothing", lambda connection: b""),
    Flood("resets of readers", _resets(CONSUME_HEADERS)),
    Flood("resets of produce streams", _resets(STREAM_HEADERS)),
    Flood("resets of served calls", _resets_of_produce),
    Flood("calls never ended", lambda connection: b"".join(
        http2.open_call(connection.next_stream(), PRODUCE_HEADERS) for _ in range(AT_ONCE))),
    Flood("DATA of 1 byte", _data(b"\0"), _open_produce),
    Flood("empty DATA", _data(b""), _open_stream),
    Flood("empty messages", _messages, _open_stream),
    Flood("PING", lambda connection: http2.frame(http2.PING, 0, 0, bytes(8)) * AT_ONCE),
    Flood("SETTINGS", lambda connection: http2.frame(http2.SETTINGS) * AT_ONCE),
    Flood("WINDOW_UPDATE", lambda connection: http2.frame(
        http2.WINDOW_UPDATE, 0, connection.last_stream, b"\0\0\0\1") * AT_ONCE, _open_stream),
    Flood("CONTINUATION", _continuations(http2.header_block([("x", "y" * 100)])), _open_headers),
    Flood("empty CONTINUATION", _continuations(b""), _open_headers),
    Flood("connections without a preface", lambda connection: b"", preface=b"", connections=100),
    Flood("connections one after the other", lambda connection: _hang_up(connection)),
)


def _hang_up(connection: http2.Connection) -> bytes:
    connection.close()
    raise ConnectionResetError


# The flood's process


class Flooder:
    """Keeps so many connections open and sends on all of them what they take. Counts."""

    def __init__(self, flood: Flood, address: str, connections: int):
        self.flood = flood
        self.address = address
        self.wanted = connections * flood.connections
        self.opened = self.sent_bytes = self.bursts = 0
        self._selector = selectors.DefaultSelector()
        self._unsent: dict[http2.Connection, memoryview] = {}

    def run(self, stop: Any) -> None:
        while not stop.is_set():
            if len(self._unsent) < self.wanted:
                self._open()
            for key, events in self._selector.select(0.05):
                connection = key.data
                try:
                    if events & selectors.EVENT_READ:
                        connection.drop_received()
                        connection.socket.setblocking(False)
                    if events & selectors.EVENT_WRITE:
                        self._send(connection)
                except OSError:
                    self._close(connection)
        for connection in list(self._unsent):
            self._close(connection)

    def _open(self) -> None:
        with contextlib.suppress(OSError):
            connection = http2.Connection(self.address, 1.0, preface=self.flood.preface, source=SOURCE)
            self.opened += 1
            connection.socket.setblocking(False)
            self._unsent[connection] = memoryview(self.flood.open(connection))
            self._selector.register(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)

    def _send(self, connection: http2.Connection) -> None:
        rest = self._unsent[connection]
        if not rest:
            if connection.last_stream > 1 << 30:
                raise ConnectionResetError  # It has used up its streams.
            rest = memoryview(self.flood.burst(connection))
            self.bursts += bool(rest)
            if not rest:
                self._selector.modify(connection.socket, selectors.EVENT_READ, connection)
                return
        try:
            sent = connection.socket.send(rest)
        except BlockingIOError:
            sent = 0
        self.sent_bytes += sent
        self._unsent[connection] = rest[sent:]

    def _close(self, connection: http2.Connection) -> None:
        self._selector.unregister(connection.socket)
        connection.close()
        del self._unsent[connection]


def _flood(name: str, address: str, connections: int, stop: Any, counts: "Synchronized[Any]") -> None:
    (flood,) = [flood for flood in FLOODS if flood.name == name]
    flooder = Flooder(flood, address, connections)
    flooder.run(stop)
    counts[0], counts[1], counts[2] = flooder.opened, flooder.bursts, flooder.sent_bytes


# The bench's own process


def _neighbour(address: str, seconds: float) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "bench.latency", address, TOPIC, str(seconds)], stdout=subprocess.PIPE, text=True)


def _latencies(neighbour: "subprocess.Popen[str]") -> dict[str, float]:
    output, _ = neighbour.communicate(timeout=TIMEOUT_S + 60)
    if neighbour.returncode:
        raise RuntimeError("the neighbour's calls failed")
    return json.loads(output.splitlines()[-1])


def _measure(flood: Flood, arguments: argparse.Namespace, directory: Path) -> dict[str, object]:
    command = [*processes.broker_command(), "--listen", "127.0.0.1:0", "--data-dir", str(directory / "data"),
               "--log-level", "error", *arguments.flags]
    with processes.ServerProcess(command, directory / "log") as server:
        with grpc.insecure_channel(server.address) as channel:
            stub = takhin_pb2_grpc.TakhinServiceStub(channel)
            stub.CreateTopic(pb.CreateTopicRequest(name=TOPIC), timeout=TIMEOUT_S)
        _latencies(_neighbour(server.address, 1))  # What the first call of all needs.
        without = _latencies(_neighbour(server.address, arguments.seconds))
        before_kib = server.memory().anon_kib
        stop, counts = multiprocessing.Event(), multiprocessing.Array("q", 3)
        flooder = multiprocessing.Process(
            target=_flood, args=(flood.name, server.address, arguments.connections, stop, counts))
        flooder.start()
        begun_s, begun_cpu_s = time.perf_counter(), server.cpu_s()
        neighbour = _neighbour(server.address, arguments.seconds)
        seen_kib = []
        while neighbour.poll() is None:
            seen_kib.append(server.memory().anon_kib)
            time.sleep(MEMORY_EVERY_S)
        beside = _latencies(neighbour)
        took_s = time.perf_counter() - begun_s
        cpu = (server.cpu_s() - begun_cpu_s) / took_s
        stop.set()
        flooder.join()
        time.sleep(AFTER_S)
        server.require_alive()
        after = _latencies(_neighbour(server.address, 1))
        return {
            "without": without, "beside": beside, "after": after, "before_kib": before_kib, "most_kib": max(seen_kib),
            "after_kib": server.memory().anon_kib, "connections_opened": counts[0],
            "sent_a_second": round(counts[1] * AT_ONCE / took_s), "mb_a_second": round(counts[2] / took_s / 1e6, 1),
            "broker_cpu_percent": round(cpu * 100)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.floods")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--only", choices=[flood.name for flood in FLOODS], action="append")
    parser.add_argument("--directory", type=Path, help="where the brokers' data goes; a temporary one")
    parser.add_argument("flags", nargs="*", help="of takhin-server")
    arguments = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    found: dict[str, dict[str, Any]] = {}
    print(f"{'':32} {'p50 ms':>16} {'p99 ms':>16} {'failed':>6} {'anon MiB':>16} {'sent/s':>9} {'opened':>7} CPU")
    for flood in FLOODS:
        if arguments.only and flood.name not in arguments.only:
            continue
        with tempfile.TemporaryDirectory(prefix="takhin-flood-", dir=arguments.directory) as directory:
            figures: dict[str, Any] = _measure(flood, arguments, Path(directory))
        found[flood.name] = figures
        without, beside = figures["without"], figures["beside"]
        memory = "/".join(f"{figures[key] / 1024:.0f}" for key in ("before_kib", "most_kib", "after_kib"))
        print(f"{flood.name:32} {without['p50_ms']:>7.2f} {beside['p50_ms']:>8.2f} {without['p99_ms']:>7.2f} "
              f"{beside['p99_ms']:>8.2f} {beside['failed']:>6} {memory:>16} {figures['sent_a_second']:>9,} "
              f"{figures['connections_opened']:>7} {figures['broker_cpu_percent']:>4}%", flush=True)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
