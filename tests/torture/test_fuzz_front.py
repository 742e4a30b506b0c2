"""What watches the fuzzed front: a bug that is planted is found, and so is every frame that breaks a rule."""

import asyncio
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

pytest.importorskip("takhin.rpc.fast.connection", reason="the fast front is not built")

from bench import http2
from bench.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)
from takhin.rpc.fast import call, serving
from takhin.rpc.fast.front import FastFront
from tests.hostile import INITIAL_WINDOW_SIZE, PRODUCE, preface, setting
from tests.torture import front_wire, fuzz_front
from tests.torture.bed import scratch
from tests.torture.common import Run
from tests.torture.front_wire import (
    END,
    GO_AWAY,
    LEAVE,
    SOCKET,
    STRICT,
    TLS,
    Step,
    Wire,
    awaited,
    packed,
    unpacked,
)
from tests.torture.fuzz_front import FrontCases, Neighbour
from tests.torture.http2_check import Broken, ServerSide
from tests.torture.mutate import REQUESTS

Patch = pytest.MonkeyPatch
_CASES = 400


def a_bug_in_a_handler(patch: Patch) -> None:
    """Told by the log alone: the client gets a status."""
    def broken(*_: object) -> bytes:
        raise RuntimeError("planted")

    patch.setattr(call, "decompressed", broken)


def answers_that_are_no_gzip(patch: Patch) -> None:
    patch.setattr(call, "compressor", lambda *_: lambda message: zlib.compress(message, 1))
    patch.setattr(call, "encoding_of", lambda _: b"gzip")


def a_call_without_its_end(patch: Patch) -> None:
    async def waits(*_: object) -> bytes:
        # Until it is undone.
        while front_wire.HANGS_S == 0.5:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        return b""

    patch.setattr(front_wire, "HANGS_S", 0.5)
    patch.setattr(serving, "read_within", waits)


def a_task_that_nobody_looks_after(patch: Patch) -> None:
    async def fails() -> None:
        raise RuntimeError("planted")

    accept = FastFront._accept

    def begin(front: FastFront) -> Any:
        asyncio.ensure_future(fails())
        return accept(front)

    patch.setattr(FastFront, "_accept", begin)


def connections_that_are_kept(patch: Patch) -> None:
    kept: list[Any] = []
    accept = FastFront._accept

    def keep(front: FastFront) -> Any:
        kept.append(accept(front))
        return kept[-1]

    patch.setattr(FastFront, "_accept", keep)
    patch.setattr(fuzz_front, "_MEMORY_EVERY", 20)
    patch.setattr(front_wire, "HANGS_S", 2)


def memory_that_grows(patch: Patch) -> None:
    kept: list[bytes] = []
    accept = FastFront._accept

    def keep(front: FastFront) -> Any:
        kept.append(b"x" * (1 << 20))
        return accept(front)

    patch.setattr(FastFront, "_accept", keep)
    patch.setattr(fuzz_front, "_MEMORY_EVERY", 20)
    patch.setattr(fuzz_front, "_WARM_CASES", 20)
    patch.delenv("ASAN_OPTIONS", raising=False)


def a_write_that_is_lost(patch: Patch) -> None:
    write, count = Wire.write, 0

    def lose(wire: Wire, data: bytes) -> None:
        nonlocal count
        count += 1
        write(wire, data if count % 20 else data[:-1])

    patch.setattr(Wire, "write", lose)


def a_neighbour_with_others_answers(patch: Patch) -> None:
    def send(neighbour: Neighbour, data: bytes) -> None:
        neighbour._server.sends(data)
        neighbour._writer.write(data.replace(b"beside-1", b"beside-0"))

    patch.setattr(Neighbour, "_send", send)


PLANTS: dict[Callable[[Patch], None], str] = {
    a_bug_in_a_handler: "(?s)logged: .*planted",
    answers_that_are_no_gzip: "can't be decompressed",
    a_call_without_its_end: "what was held is held yet",
    a_task_that_nobody_looks_after: "never retrieved.*planted",
    connections_that_are_kept: "connections are in memory",
    memory_that_grows: "memory has grown",
    a_write_that_is_lost: "frame",
    a_neighbour_with_others_answers: "offset",
}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(plant: Callable[[Patch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    with scratch() as directory:
        target = FrontCases(directory)
        plant(monkeypatch)
        try:
            with pytest.raises(Exception, match=PLANTS[plant]):
                for _, chance in Run("fuzz", _CASES, 1):
                    target.check(target.make(chance))
        finally:
            monkeypatch.undo()
            target.close()


# The reader of frames

OPEN = preface() + http2.open_call(1, http2.call_headers(PRODUCE))
HEAD = [(":status", "200"), ("content-type", "application/grpc")]
FIRST = frame(SETTINGS)


def headers(fields: list[tuple[str, str]], flags: int = END_HEADERS, stream: int = 1) -> bytes:
    return frame(HEADERS, flags, stream, http2.header_block(fields))


def trailers(status: str = "0", *more: tuple[str, str]) -> bytes:
    return headers([("grpc-status", status), *more], END_HEADERS | END_STREAM)


def told(client: bytes, server: bytes) -> ServerSide:
    side = ServerSide()
    side.sends(client)
    side.take(server)
    side.end()
    return side


def test_a_call_as_it_has_to_be() -> None:
    side = told(OPEN, FIRST + frame(SETTINGS, ACK) + headers(HEAD) + http2.message(1, b"x") + trailers())
    assert side.streams[1].status == 0 and side.streams[1].messages() == [b"x"]
    only = told(OPEN, FIRST + headers([*HEAD, ("grpc-status", "12")], END_HEADERS | END_STREAM))
    assert only.streams[1].status == 12
    assert told(b"GET / HTTP/1.1\r\n\r\n" + bytes(20), b"HTTP/1.1 400 Bad Request\r\n\r\n").streams == {}


ENDED = FIRST + headers(HEAD) + trailers()


@pytest.mark.parametrize(("server", "message"), [
    (frame(PING, 0, 0, bytes(8)), "not SETTINGS first"),
    (frame(SETTINGS, ACK), "not SETTINGS first"),
    (FIRST + frame(SETTINGS, ACK) + frame(SETTINGS, ACK), "an ACK of SETTINGS that were not sent"),
    (FIRST + frame(SETTINGS, 0, 0, bytes(5)), "half a setting"),
    (FIRST + frame(SETTINGS, 0, 1), "of a stream"),
    (FIRST + frame(PING, 0, 0, bytes(7)), "another size"),
    (FIRST + frame(PING, ACK, 0, bytes(8)), "an ACK of a PING that was not sent"),
    (FIRST + frame(GOAWAY, 0, 0, bytes(7)), "half a GOAWAY"),
    (FIRST + frame(GOAWAY, 0, 0, bytes(8)) + frame(GOAWAY, 0, 0, b"\0\0\0\1" + bytes(4)), "takes more calls again"),
    (FIRST + frame(GOAWAY, 0, 0, bytes(8)) + headers(HEAD), "beyond the last that is taken"),
    (FIRST + frame(WINDOW_UPDATE, 0, 0, bytes(4)), "enlarged by nothing"),
    (FIRST + frame(WINDOW_UPDATE, 0, 1, bytes(4)), "enlarged by nothing"),
    (FIRST + frame(5, END_HEADERS, 1, bytes(4)), "does not send"),
    (FIRST + frame(2, 0, 1, bytes(5)), "does not send"),
    (FIRST + frame(RST_STREAM, 0, 2, bytes(4)), "no stream of a client's"),
    (FIRST + frame(RST_STREAM, 0, 3, bytes(4)), "was not opened"),
    (FIRST + frame(RST_STREAM, 0, 1, bytes(4)) + headers(HEAD), "after a reset"),
    (FIRST + frame(RST_STREAM, 0, 1 << 31 | 1, bytes(4)), "the reserved bit"),
    (FIRST + frame(RST_STREAM, 1, 1, bytes(4)), "flags that there are not"),
    (FIRST + frame(DATA, 0, 1, b""), "before its headers"),
    (FIRST + headers(HEAD) + frame(DATA, END_STREAM, 1, b""), "an end without a status"),
    (FIRST + headers(HEAD) + frame(DATA, 0, 1, bytes(16_385)), "a frame of 16385 bytes"),
    (ENDED + frame(DATA, 0, 1, b""), "after the stream's end"),
    (ENDED + trailers(), "after the stream's end"),
    (FIRST + headers(HEAD, END_HEADERS | END_STREAM), "in the wrong place"),
    (FIRST + headers(HEAD) + headers(HEAD), "in the wrong place"),
    (FIRST + headers(HEAD) + headers([("a", "b")]), "do not end the stream"),
    (FIRST + headers(HEAD) + trailers("17"), "a status that there is not"),
    (FIRST + headers(HEAD) + trailers("x"), "a status that there is not"),
    (FIRST + headers(HEAD) + trailers("3", ("grpc-message", "a\nb")), "not encoded"),
    (FIRST + headers(HEAD) + trailers("3", ("a", "b"), ("a", "c")), "a header twice"),
    (FIRST + headers([(":status", "500")], END_HEADERS | END_STREAM), "500"),
    (FIRST + headers([(":status", "200"), ("content-type", "text/html")]), "text/html"),
    (FIRST + frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"), "can't be read"),
    (FIRST + frame(HEADERS, 0, 1, b""), "half a block"),
    (FIRST + frame(HEADERS, 0, 1, b"") + frame(PING, 0, 0, bytes(8)), "within a block"),
    (FIRST + frame(CONTINUATION, 0, 1, b""), "no block to go on with"),
    (FIRST + headers(HEAD) + frame(DATA, 0, 1, b"\0\0") + trailers(), "without its end"),
    (FIRST + headers(HEAD) + frame(DATA, 0, 1, struct.pack(">BI", 0, 2) + b"x") + trailers(), "bytes of a message"),
    (FIRST + headers(HEAD) + frame(DATA, 0, 1, struct.pack(">BI", 2, 0)) + trailers(), "with flag 2"),
    (FIRST + headers(HEAD) + frame(DATA, 0, 1, struct.pack(">BI", 1, 0)) + trailers(), "compressed"),
    (FIRST + b"\0\0", "half a frame"),
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", "."),
])
def test_what_breaks_a_rule_is_found(server: bytes, message: str) -> None:
    with pytest.raises(Broken, match=message):
        told(OPEN, server)


def test_windows_are_watched() -> None:
    grants = frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\5")
    client = preface(setting(INITIAL_WINDOW_SIZE, 10)) + http2.open_call(1, http2.call_headers(PRODUCE))
    head = FIRST + frame(SETTINGS, ACK) + headers(HEAD)
    told(client, head + frame(DATA, 0, 1, bytes(10)))
    told(client + grants, head + frame(DATA, 0, 1, bytes(15)))
    # Until it has acknowledged them, the server may go by what held before.
    told(client, FIRST + headers(HEAD) + frame(DATA, 0, 1, bytes(11)))
    for granted, size in ((b"", 11), (grants, 16)):
        with pytest.raises(Broken, match="for a window of"):
            told(client + granted, head + frame(DATA, 0, 1, bytes(size)))
    # Of all streams together.
    client = preface(setting(INITIAL_WINDOW_SIZE, 1 << 20)) + http2.open_call(1, http2.call_headers(PRODUCE))
    full = head + 4 * frame(DATA, 0, 1, bytes(16_383)) + frame(DATA, 0, 1, bytes(3))
    told(client, full)
    with pytest.raises(Broken, match="for a connection's window of 65535"):
        told(client, full + frame(DATA, 0, 1, b"x"))


@pytest.mark.parametrize("how", [0, STRICT, TLS, SOCKET], ids=["wire", "strict", "tls", "socket"])
def test_a_call_that_is_not_answered_is_found(how: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_wire, "HANGS_S", 0.2)
    call = http2.open_call(1, http2.call_headers(PRODUCE)) + http2.message(1, REQUESTS["ProduceMessage"][1])
    end = frame(DATA, END_STREAM, 1, b"")
    with scratch() as directory:
        target = FrontCases(directory)
        try:
            for data, count in ((call + end, 1), (end, 1), (call + end, 2)):
                steps = [(Step.SEND, preface() + data), (Step.AWAIT, awaited({1: count}))]
                if count == 1 and data != end:
                    target.check(packed(how, steps))
                else:
                    with pytest.raises(Broken, match="has no end|1 answers, not 2"):
                        target.check(packed(how, steps))
        finally:
            target.close()


def num_records(target: FrontCases) -> int:
    return sum(partition.next_offset for topic in target._broker.topics for partition in topic.partitions
               if topic.name == "t")


@pytest.mark.parametrize("then", [[], [(Step.ACT, bytes([END]))]], ids=["the connection stays", "it ends"])
def test_a_call_that_comes_too_late_is_not_begun(then: list[tuple[Step, bytes]]) -> None:
    """The client is told so, and makes it again elsewhere: begun nevertheless, it would happen twice."""
    request = REQUESTS["ProduceMessage"][0]
    calls = [http2.open_call(number, http2.call_headers(PRODUCE)) + http2.message(number, request, ends=True)
             for number in (1, 3)]
    with scratch() as directory:
        target = FrontCases(directory)
        try:
            before = num_records(target)
            target.check(packed(0, [
                (Step.SEND, preface() + calls[0]), (Step.TURNS, b"\x05"), (Step.ACT, bytes([GO_AWAY])),
                (Step.TURNS, b"\x05"), (Step.ACT, bytes([LEAVE])), (Step.SEND, calls[1]), *then, (Step.TURNS, b"\x14"),
            ]))
            assert num_records(target) - before == 1
        finally:
            target.close()


def test_a_case_is_read_as_it_was_written() -> None:
    given = [(Step.SEND, b"x" * 300), (Step.CLOSE, b"")]
    how, steps = unpacked(packed(3, given))
    assert (how, list(steps)) == (3, given)
