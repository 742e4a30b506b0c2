"""A front serves a method table as call.py promises: tried on a real port with stock clients."""

import asyncio
import gzip
import logging
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
import uvloop
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from takhin.config import GrpcSettings
from takhin.errors import Code, Reason, StartError, TakhinError, error
from takhin.rpc.call import Call, Kind, Method, StreamCall, method_table, service_names
from takhin.rpc.grpc_front import GrpcFront, server_options
from takhin.rpc.status import MAX_MESSAGE_BYTES, status_of

SERVICE = "test.v1.Test"
PLANTED = "planted-secret"
MIB = 1 << 20
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs a coroutine; all of the module in one loop, as grpc.aio wants it."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner.run


def path(name: str) -> str:
    return f"/{SERVICE}/{name}"


def unary(handler: Callable[..., Any], name: str = "Unary") -> Method:
    return Method(path(name), Kind.UNARY, handler)


def server_stream(handler: Callable[..., Any], name: str = "ServerStream") -> Method:
    return Method(path(name), Kind.SERVER_STREAM, handler)


def bidi(handler: Callable[..., Any], name: str = "Bidi") -> Method:
    return Method(path(name), Kind.BIDI, handler)


@asynccontextmanager
async def serving(*methods: Method, grace_ms: int = 1000, **settings: Any) -> AsyncIterator[str]:
    front = GrpcFront(method_table(methods), GrpcSettings(**settings))
    address = await front.start("127.0.0.1:0")
    try:
        yield address
    finally:
        await front.stop(grace_ms)


@asynccontextmanager
async def client(*methods: Method, **settings: Any) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a front of its own that serves `methods`."""
    async with serving(*methods, **settings) as address:
        async with channel_to(address) as channel:
            yield channel


def channel_to(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=UNLIMITED)


def error_info(exc: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    """The one detail of an error; from_call also checks that code and message are the same there as in the status."""
    status = rpc_status.from_call(exc)
    assert status is not None and len(status.details) == 1
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


async def echo(request: bytes, call: Call) -> bytes:
    return request


async def call_kind(channel: grpc.aio.Channel, kind: Kind, request: bytes = b"", **options: Any) -> list[bytes]:
    """One call of the method named after `kind`, to its end. BIDI sends nothing, and leaves its side open.

    grpc.aio's client tells of a write that fails as the call ends as INTERNAL, in place of the server's status.
    """
    if kind is Kind.UNARY:
        return [await channel.unary_unary(path("Unary"))(request, **options)]
    if kind is Kind.SERVER_STREAM:
        return [message async for message in channel.unary_stream(path("ServerStream"))(request, **options)]
    return await read_all(channel.stream_stream(path("Bidi"))(**options))


async def read_all(stream: Any) -> list[bytes]:
    received = []
    while (message := await stream.read()) is not grpc.aio.EOF:
        received.append(message)
    return received


def each_kind(act: Callable[[StreamCall], Coroutine[Any, Any, Any]]) -> list[Method]:
    """One method of each kind, that does `act` and nothing else."""

    async def of_request(request: bytes, call: Any) -> bytes | None:
        return await act(call)

    return [unary(of_request), server_stream(of_request), bidi(act)]


# -- bytes in, bytes out


@pytest.mark.parametrize("size", [0, 1, 1000, 9 * MIB])
def test_unary_bytes(run: Run, size: int) -> None:
    async def go() -> None:
        async with client(unary(echo)) as channel:
            request = b"\x00\xff" * (size // 2) + b"x" * (size % 2)
            assert await channel.unary_unary(path("Unary"))(request) == request

    run(go())


def test_sync_client(run: Run) -> None:
    async def fail(request: bytes, call: Call) -> bytes:
        raise error(Reason.TOPIC_NOT_FOUND, "no topic 'a'", topic="a")

    def talk(address: str) -> None:
        with grpc.insecure_channel(address) as channel:
            assert channel.unary_unary(path("Echo"))(b"abc") == b"abc"
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(path("Fail"))(b"")
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            assert error_info(caught.value).metadata == {"topic": "a"}

    async def go() -> None:
        async with serving(unary(echo, "Echo"), unary(fail, "Fail")) as address:
            await asyncio.to_thread(talk, address)

    run(go())


def test_call_tells_of_peer_metadata_and_deadline(run: Run) -> None:
    seen: list[Any] = []

    async def look(request: bytes, call: Call) -> bytes:
        seen.append((call.peer, call.identity, dict(call.metadata), call.time_remaining_s(), call.cancelled()))
        return b""

    async def go() -> None:
        async with client(unary(look)) as channel:
            method = channel.unary_unary(path("Unary"))
            await method(b"")
            await method(b"", timeout=5, metadata=(("key", "a"), ("key", "b"), ("raw-bin", b"\x00\xff")))

    run(go())
    (peer, identity, metadata, remaining_s, cancelled), with_more = seen
    host, _, port = peer.rpartition(":")
    assert host == "127.0.0.1" and 0 < int(port) < 65536
    assert identity is None and remaining_s is None and cancelled is False
    assert "key" not in metadata and "user-agent" in metadata
    assert with_more[2]["key"] == "b" and with_more[2]["raw-bin"] == b"\x00\xff"
    assert 4 < with_more[3] < 5.5  # the wire rounds it up


def test_unknown_method_is_unimplemented(run: Run) -> None:
    async def go() -> None:
        async with client(unary(echo)) as channel:
            for unknown in (path("Nope"), "/test.v1.Nope/Unary", "/", "/x"):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(unknown)(b"")
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run(go())


def test_server_stream(run: Run) -> None:
    async def count(request: bytes, call: StreamCall) -> None:
        for number in range(int(request)):
            await call.write(b"%d" % number)

    async def go() -> None:
        async with client(server_stream(count)) as channel:
            assert await call_kind(channel, Kind.SERVER_STREAM, b"100") == [b"%d" % number for number in range(100)]
            assert await call_kind(channel, Kind.SERVER_STREAM, b"0") == []

    run(go())


def test_bidi_reads_and_writes_at_once(run: Run) -> None:
    """The handler reads on while a write is under way, as a produce stream that answers late does."""

    async def late_echo(call: StreamCall) -> None:
        pending: asyncio.Queue[bytes | None] = asyncio.Queue()

        async def write() -> None:
            while (message := await pending.get()) is not None:
                await call.write(message)

        writer = asyncio.create_task(write())
        while (message := await call.read()) is not None:
            pending.put_nowait(message)
        pending.put_nowait(None)
        await writer
        await call.write(b"end")

    async def go() -> None:
        async with client(bidi(late_echo)) as channel:
            sent = [b"%d" % number + b"x" * 20_000 for number in range(300)]
            stream = channel.stream_stream(path("Bidi"))()

            async def send() -> None:
                for message in sent:
                    await stream.write(message)
                await stream.done_writing()

            sender = asyncio.create_task(send())
            received = [message async for message in stream]
            await sender
            assert received == [*sent, b"end"]
            assert await stream.code() is grpc.StatusCode.OK

    run(go())


def test_bidi_ping_pong_and_half_close(run: Run) -> None:
    async def pong(call: StreamCall) -> None:
        while (message := await call.read()) is not None:
            await call.write(message.upper())
        assert await call.read() is None  # and stays so

    async def go() -> None:
        async with client(bidi(pong)) as channel:
            stream = channel.stream_stream(path("Bidi"))()
            for message in (b"a", b"", b"bc"):
                await stream.write(message)
                assert await stream.read() == message.upper()
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
            assert await stream.code() is grpc.StatusCode.OK

    run(go())


# -- errors


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("reason", Reason)
def test_errors_carry_code_reason_and_metadata(run: Run, kind: Kind, reason: Reason) -> None:
    raised = error(reason, f"what was wrong: {reason}", topic="a", end_offset=7)

    async def fail(call: StreamCall) -> None:
        raise raised

    async def go() -> grpc.aio.AioRpcError:
        async with client(*each_kind(fail)) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call_kind(channel, kind)
            return caught.value

    caught = run(go())
    assert caught.code().value[0] == raised.code
    assert caught.details() == f"what was wrong: {reason}"
    info = error_info(caught)
    assert (info.reason, info.domain) == (reason, "takhin")
    assert info.metadata == {"topic": "a", "end_offset": "7"}


@pytest.mark.parametrize("code", [code for code in Code if code])
def test_every_code_has_its_grpc_status(run: Run, code: Code) -> None:
    class Raised(TakhinError):
        pass

    Raised.code = code

    async def fail(request: bytes, call: Call) -> bytes:
        raise Raised(Reason.INTERNAL_ERROR, "text")

    async def go() -> None:
        async with client(unary(fail)) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call_kind(channel, Kind.UNARY)
            assert caught.value.code().name == code.name

    run(go())


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("", ""),
        ("naïve 100% – 話", "naïve 100% – 話"),
        ("two\nlines\r\x00\x1b[31m", "two\\nlines\\r\\x00\\x1b[31m"),
        ("half a pair \ud800", "half a pair \\ud800"),
        ("x" * 1_000_000, "x" * (MAX_MESSAGE_BYTES - 3) + "..."),
        ("話" * 1_000_000, "話" * ((MAX_MESSAGE_BYTES - 3) // 3) + "..."),
    ],
    ids=["empty", "unicode", "control", "surrogate", "long", "long unicode"],
)
def test_any_text_in_an_error_reaches_the_client(run: Run, message: str, told: str) -> None:
    async def fail(request: bytes, call: Call) -> bytes:
        raise error(Reason.INVALID_TOPIC_NAME, message, topic=message)

    async def go() -> None:
        async with client(unary(fail)) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call_kind(channel, Kind.UNARY)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert caught.value.details() == told
            assert len(error_info(caught.value).metadata["topic"].encode()) <= 512

    run(go())


def test_error_after_messages_comes_after_them(run: Run) -> None:
    async def three_then_fail(request: bytes, call: StreamCall) -> None:
        for number in range(3):
            await call.write(b"%d" % number)
        raise error(Reason.CORRUPT_BATCH, "a checksum failed")

    async def go() -> None:
        async with client(server_stream(three_then_fail)) as channel:
            received = []
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for message in channel.unary_stream(path("ServerStream"))(b""):
                    received.append(message)
            assert received == [b"0", b"1", b"2"]
            assert error_info(caught.value).reason == Reason.CORRUPT_BATCH

    run(go())


@pytest.mark.parametrize("cancelled", [False, True], ids=["going on", "cancelled"])
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_a_stream_does_not_end_before_a_write_that_is_under_way(run: Run, fails: bool, cancelled: bool) -> None:
    """A large message that the client has not taken yet: it gets the message, then the status."""

    async def leave_a_write(call: StreamCall) -> None:
        writer = asyncio.create_task(call.write(b"x" * (4 * MIB)))
        for number in range(1, 100):
            await asyncio.wait([writer], timeout=0.05)
            if not writer.done():
                break
            writer = asyncio.create_task(call.write(b"x" * (4 * MIB)))
        written.append(number)
        if cancelled:
            writer.cancel()
        if fails:
            raise error(Reason.DRAINING, "going away")

    async def go() -> None:
        async with client(bidi(leave_a_write)) as channel:
            stream = channel.stream_stream(path("Bidi"))(timeout=10)
            while not written:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            for _ in range(written.pop()):
                assert len(await stream.read()) == 4 * MIB
            if not fails:
                assert await stream.read() is grpc.aio.EOF
                return
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            assert error_info(caught.value).reason == Reason.DRAINING

    written: list[int] = []
    for _ in range(3):
        run(go())


def test_writes_wait_for_each_other(run: Run) -> None:
    async def ten_at_once(call: StreamCall) -> None:
        await asyncio.gather(*(call.write(b"%d" % number * 100_000) for number in range(10)))

    async def go() -> None:
        async with client(server_stream(lambda request, call: ten_at_once(call))) as channel:
            received = await call_kind(channel, Kind.SERVER_STREAM, timeout=10)
            assert sorted(received) == [b"%d" % number * 100_000 for number in range(10)]

    run(go())


# -- exceptions that are bugs


class BrokenText(Exception):
    def __str__(self) -> str:
        raise ValueError(PLANTED)


async def _awaits_what_was_cancelled() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


BUGS: dict[str, Callable[[], Exception]] = {
    "ValueError": lambda: ValueError(PLANTED),
    "KeyError": lambda: KeyError(PLANTED),
    "group": lambda: ExceptionGroup(PLANTED, [ValueError(PLANTED)]),
    "text fails": BrokenText,
    "grpc": lambda: grpc.RpcError(PLANTED),
    "aio abort": lambda: grpc.aio.AbortError(PLANTED),
    "control characters": lambda: ValueError(PLANTED + "\r\nERROR forged line\x1b[31m\u2028"),
    "surrogate": lambda: ValueError(PLANTED + "\ud800"),
    "huge": lambda: ValueError(PLANTED + "x" * 10_000_000),
    "timeout": lambda: TimeoutError(PLANTED),
}


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("bug", BUGS)
def test_bugs_reach_the_client_as_an_error_id(
    run: Run, kind: Kind, bug: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(call: StreamCall) -> None:
        raise BUGS[bug]()

    _expect_internal(run, caplog, kind, fail, "BrokenText" if bug == "text fails" else PLANTED)


@pytest.mark.parametrize("kind", Kind)
def test_a_cancelled_inner_task_is_a_bug_not_a_cancelled_call(
    run: Run, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """To grpc.aio it looks like a cancelled call, which it would leave without an answer for ever."""

    async def fail(call: StreamCall) -> None:
        await _awaits_what_was_cancelled()

    _expect_internal(run, caplog, kind, fail, "_awaits_what_was_cancelled")


@pytest.mark.parametrize("result", [None, "text", bytearray(b"x"), memoryview(b"x"), 7])
def test_a_unary_handler_must_give_bytes(run: Run, result: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def wrong(call: StreamCall) -> Any:
        return result

    _expect_internal(run, caplog, Kind.UNARY, wrong, "not bytes")


@pytest.mark.parametrize("kind", [Kind.SERVER_STREAM, Kind.BIDI])
@pytest.mark.parametrize("message", [None, "text", bytearray(b"x"), memoryview(b"x"), 7])
def test_a_stream_handler_must_write_bytes(
    run: Run, kind: Kind, message: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def wrong(call: StreamCall) -> None:
        await call.write(message)

    _expect_internal(run, caplog, kind, wrong, "TypeError")


def test_a_second_read_is_a_bug_not_the_end_of_the_stream(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def two_at_once(call: StreamCall) -> None:
        await asyncio.gather(call.read(), call.read())

    async def after_a_cancelled_one(call: StreamCall) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call.read(), 0.01)
        await call.read()

    for act in (two_at_once, after_a_cancelled_one):
        caplog.clear()
        _expect_internal(run, caplog, Kind.BIDI, act, "another read")


def _expect_internal(
    run: Run,
    caplog: pytest.LogCaptureFixture,
    kind: Kind,
    act: Callable[[StreamCall], Coroutine[Any, Any, Any]],
    logged: str,
) -> None:
    """The client learns an error id and nothing more; the log has `logged`, every line under that id."""

    async def go() -> grpc.aio.AioRpcError:
        async with client(*each_kind(act)) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call_kind(channel, kind, timeout=10)
            return caught.value

    caught = run(go())
    assert caught.code() is grpc.StatusCode.INTERNAL
    text, _, error_id = caught.details().rpartition(" ")
    assert text == "internal error" and len(error_id) == 8 and int(error_id, 16) >= 0
    info = error_info(caught)
    assert info.reason == Reason.INTERNAL_ERROR and not info.metadata
    assert PLANTED not in repr(caught) and PLANTED not in repr(caught.trailing_metadata())
    (record,) = caplog.records
    assert record.name == "takhin.rpc.status" and record.levelno == logging.ERROR
    first, *lines = record.getMessage().split("\n")
    assert error_id in first and first.isprintable()
    assert all(line.startswith(f"  {error_id} | ") and line.isprintable() for line in lines)
    assert logged in record.getMessage() and "Traceback" in record.getMessage()
    assert len(record.getMessage()) < 64_000


def test_status_of_does_not_swallow_a_cancellation() -> None:
    with pytest.raises(asyncio.CancelledError):
        status_of(asyncio.CancelledError())


# -- the call's end comes from the client


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("how", ["cancel", "deadline", "connection"])
def test_the_clients_leaving_reaches_the_handler(
    run: Run, kind: Kind, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []

    async def go() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def wait(call: StreamCall) -> None:
            seen.append(call.cancelled())
            begun.set()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                seen.append(call.cancelled())
                raise
            finally:
                ended.set()

        async with serving(*each_kind(wait)) as address:
            channel = channel_to(address)
            timeout_s = 0.3 if how == "deadline" else None
            task = asyncio.create_task(call_kind(channel, kind, timeout=timeout_s))
            await asyncio.wait_for(begun.wait(), 5)
            if how == "cancel":
                task.cancel()
            elif how == "connection":
                await channel.close()
            await asyncio.wait_for(ended.wait(), 5)
            (result,) = await asyncio.gather(task, return_exceptions=True)
            if how == "deadline":
                assert result.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            else:
                assert isinstance(result, (asyncio.CancelledError, grpc.aio.UsageError))
            await channel.close()

    run(go())
    assert seen == [False, True]
    assert not caplog.records


def test_a_write_to_a_client_that_left_is_a_cancellation(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Also from a task of the handler's own, which grpc.aio doesn't cancel."""

    async def go() -> None:
        left, ended = asyncio.Event(), asyncio.Event()
        outcome: list[tuple[bool, bool]] = []

        async def write_on(call: StreamCall) -> None:
            async def write() -> None:
                while True:
                    await call.write(b"x" * 1000)

            writer = asyncio.create_task(write())
            try:
                await asyncio.wait([writer])  # gives no exception of the writer's
                await asyncio.sleep(5)
            finally:
                await asyncio.wait([writer], timeout=5)
                outcome.append((writer.cancelled(), call.cancelled()))
                ended.set()

        async with client(bidi(write_on)) as channel:
            stream = channel.stream_stream(path("Bidi"))()
            await stream.read()
            stream.cancel()
            left.set()
            await asyncio.wait_for(ended.wait(), 5)
        assert outcome == [(True, True)]

    run(go())
    assert not caplog.records


def test_what_a_handler_raises_once_its_call_is_over(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """An error of ours is nobody's news then; a bug in the clean-up is logged, by us."""

    async def go(raised: Exception) -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def wait(request: bytes, call: Call) -> bytes:
            begun.set()
            try:
                await asyncio.sleep(30)
            finally:
                ended.set()
                raise raised

        async with client(unary(wait)) as channel:
            call = channel.unary_unary(path("Unary"))(b"")
            await begun.wait()
            call.cancel()
            await asyncio.wait_for(ended.wait(), 5)
            await asyncio.sleep(0.05)

    run(go(error(Reason.DRAINING, "going away")))
    assert not caplog.records
    run(go(ValueError(PLANTED)))
    assert [record.name for record in caplog.records] == ["takhin.rpc.status"]


# -- limits


def test_a_request_above_the_limit_is_refused(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """By grpc's core, so without a reason; the handler never sees it, and the connection goes on."""
    sizes: list[int] = []

    async def size(request: bytes, call: Call) -> bytes:
        sizes.append(len(request))
        return b""

    async def stream_sizes(call: StreamCall) -> None:
        while (message := await call.read()) is not None:
            sizes.append(len(message))

    def talk(address: str) -> None:
        with grpc.insecure_channel(address, options=UNLIMITED) as channel:
            unary_call, bidi_call = channel.unary_unary(path("Unary")), channel.stream_stream(path("Bidi"))
            unary_call(b"x" * MIB)
            assert list(bidi_call(iter([b"x" * MIB]))) == []
            for refused in (lambda message: unary_call(message), lambda message: list(bidi_call(iter([message])))):
                with pytest.raises(grpc.RpcError) as caught:
                    refused(b"x" * (MIB + 1))
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "larger than max" in caught.value.details()
            unary_call(b"x")

    async def go() -> None:
        async with serving(unary(size), bidi(stream_sizes), max_message_bytes=MIB) as address:
            await asyncio.to_thread(talk, address)

    run(go())
    assert sizes == [MIB, MIB, 1]
    assert not caplog.records


@pytest.mark.parametrize("kind", Kind)
def test_a_response_above_the_limit_is_refused(run: Run, kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    async def too_much(call: StreamCall) -> bytes:
        if kind is not Kind.UNARY:
            await call.write(b"x" * (MIB + 1))
        return b"x" * (MIB + 1)

    async def go() -> None:
        async with client(*each_kind(too_much), max_message_bytes=MIB) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call_kind(channel, kind, timeout=5)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "larger than max" in caught.value.details()

    run(go())


def test_the_limit_holds_for_what_a_compressed_request_holds(run: Run) -> None:
    bomb = b"\x00" * (64 * MIB)
    assert len(gzip.compress(bomb, 1)) < MIB

    async def size(request: bytes, call: Call) -> bytes:
        return b"%d" % len(request)

    async def go() -> None:
        async with client(unary(size), max_message_bytes=MIB) as channel:
            method = channel.unary_unary(path("Unary"))
            assert await method(b"\x00" * MIB, compression=grpc.Compression.Gzip) == b"%d" % MIB
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(bomb, compression=grpc.Compression.Gzip)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(go())


# -- start and stop


def test_a_second_front_on_the_same_port_is_refused(run: Run) -> None:
    async def go() -> None:
        async with serving(unary(echo)) as address:
            with pytest.raises(StartError) as caught:
                await GrpcFront({}, GrpcSettings()).start(address)
            assert str(caught.value) == f"{address} is in use by another process"
            with pytest.raises(StartError):
                await GrpcFront({}, GrpcSettings()).start(address.replace("127.0.0.1", "localhost"))
            async with channel_to(address) as channel:
                assert await channel.unary_unary(path("Unary"))(b"still here") == b"still here"
        again = GrpcFront({}, GrpcSettings())
        assert await again.start(address) == address
        await again.stop(0)

    run(go())


def test_a_port_of_another_program_is_refused(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(StartError, match="is in use by another process"):
            run(GrpcFront({}, GrpcSettings()).start(address))


@pytest.mark.parametrize(
    "listen",
    ["", "9092", ":9092", "localhost", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "127.0.0.1:-1", "::1:9092", "[::1]",
     "unix:/tmp/x", "127.0.0.1:٣", "[127.0.0.1]:1"],
)  # fmt: skip
def test_an_address_of_the_wrong_form_is_refused(run: Run, listen: str) -> None:
    with pytest.raises(StartError, match="give HOST:PORT"):
        run(GrpcFront({}, GrpcSettings()).start(listen))


@pytest.mark.parametrize("listen", ["192.0.2.1:0", "no-such-host.invalid:0"])
def test_an_address_that_is_not_ours_is_refused(run: Run, listen: str) -> None:
    with pytest.raises(StartError) as caught:
        run(GrpcFront({}, GrpcSettings()).start(listen))
    assert listen in str(caught.value) and "\n" not in str(caught.value)


def test_host_names_and_ipv6_are_served(run: Run) -> None:
    async def go() -> None:
        for listen in ("localhost:0", "[::1]:0"):
            front = GrpcFront(method_table([unary(echo)]), GrpcSettings())
            try:
                address = await front.start(listen)
            except StartError as exc:
                assert "no such address" in str(exc) and listen.startswith("[")  # a machine without IPv6
                continue
            assert address.rpartition(":")[0] == listen.rpartition(":")[0] and not address.endswith(":0")
            async with channel_to(address) as channel:
                assert await channel.unary_unary(path("Unary"))(b"x") == b"x"
            await front.stop(0)

    run(go())


def test_stop_lets_calls_end_within_the_grace(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def go() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def slow(request: bytes, call: Call) -> bytes:
            begun.set()
            await asyncio.sleep(0.2)
            return b"done"

        async def wait(request: bytes, call: StreamCall) -> None:
            await call.write(b"first")
            try:
                await asyncio.sleep(30)
            finally:
                await asyncio.sleep(0.1)  # a clean-up that takes its time
                ended.set()

        front = GrpcFront(method_table([unary(slow), server_stream(wait)]), GrpcSettings())
        address = await front.start("127.0.0.1:0")
        async with channel_to(address) as channel:
            answer = asyncio.ensure_future(channel.unary_unary(path("Unary"))(b""))
            stream = channel.unary_stream(path("ServerStream"))(b"")
            assert await stream.read() == b"first"
            await begun.wait()
            before_s = time.monotonic()
            await front.stop(600)
            assert 0.5 < time.monotonic() - before_s < 3
            assert ended.is_set()  # stop() waits for handlers, not for the transport alone
            assert await answer == b"done"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(path("Unary"))(b"", timeout=1)
            assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        await front.stop(0)  # once more does no harm

    run(go())


def test_stop_is_quick_when_the_streams_were_told_to_end(run: Run) -> None:
    async def go() -> None:
        draining = asyncio.Event()

        async def until_drained(request: bytes, call: StreamCall) -> None:
            await call.write(b"first")
            await draining.wait()
            raise error(Reason.DRAINING, "shutting down")

        front = GrpcFront(method_table([server_stream(until_drained)]), GrpcSettings())
        async with channel_to(await front.start("127.0.0.1:0")) as channel:
            streams = [channel.unary_stream(path("ServerStream"))(b"") for _ in range(20)]
            for stream in streams:
                assert await stream.read() == b"first"
            draining.set()
            before_s = time.monotonic()
            await front.stop(10_000)
            assert time.monotonic() - before_s < 5
            for stream in streams:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stream.read()
                assert error_info(caught.value).reason == Reason.DRAINING

    run(go())


def test_stop_does_not_wait_for_a_handler_that_hangs(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def go() -> None:
        release = asyncio.Event()

        async def deaf(request: bytes, call: Call) -> bytes:
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    pass
            raise error(Reason.DRAINING, "too late")

        front = GrpcFront(method_table([unary(deaf)]), GrpcSettings())
        async with channel_to(await front.start("127.0.0.1:0")) as channel:
            call = channel.unary_unary(path("Unary"))(b"")
            await asyncio.sleep(0.1)
            before_s = time.monotonic()
            await front.stop(100)
            assert time.monotonic() - before_s < 5
            release.set()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    run(go())


def test_stop_before_start(run: Run) -> None:
    run(GrpcFront({}, GrpcSettings()).stop(0))


# -- connections


def test_a_stream_cut_by_the_connections_age_ends_unavailable(run: Run) -> None:
    async def forever(request: bytes, call: StreamCall) -> None:
        while True:
            await call.write(b"x")
            await asyncio.sleep(0.02)

    async def go() -> None:
        methods = server_stream(forever), unary(echo)
        async with client(*methods, connection_age_ms=300, connection_age_grace_ms=300) as channel:
            for _ in range(2):  # a client that comes back is served again
                begun_s = time.monotonic()
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call_kind(channel, Kind.SERVER_STREAM)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                assert 0.2 < time.monotonic() - begun_s < 5
            assert await channel.unary_unary(path("Unary"))(b"x") == b"x"

    run(go())


def test_pings_are_allowed_at_the_interval_and_refused_below_it(run: Run) -> None:
    """Also without calls: there is none on this connection."""

    def pings(address: str, interval_s: float) -> bool:
        """Whether the server puts up with five pings."""
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            for number in range(5):
                connection.sendall(b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + struct.pack(">Q", number))
                time.sleep(interval_s)
            connection.settimeout(0.5)
            received = b""
            try:
                while chunk := connection.recv(65536):
                    received += chunk
            except (TimeoutError, ConnectionError):
                pass
            return b"too_many_pings" not in received

    async def go() -> None:
        async with serving(unary(echo), min_ping_interval_ms=100) as address:
            assert await asyncio.to_thread(pings, address, 0.1)
            assert not await asyncio.to_thread(pings, address, 0.005)
        async with serving(unary(echo), min_ping_interval_ms=0, ping_without_calls=False) as address:
            assert not await asyncio.to_thread(pings, address, 0.1)

    run(go())


def test_an_idle_connection_is_closed(run: Run) -> None:
    async def go() -> None:
        async with client(unary(echo), connection_idle_ms=200) as channel:
            await channel.unary_unary(path("Unary"))(b"x")
            assert channel.get_state() is grpc.ChannelConnectivity.READY
            await asyncio.wait_for(channel.wait_for_state_change(grpc.ChannelConnectivity.READY), 5)
            assert await channel.unary_unary(path("Unary"))(b"x") == b"x"

    run(go())


def test_every_setting_reaches_the_core() -> None:
    """A misspelt channel argument is ignored without a word, so their names are looked up in the core itself."""
    settings = GrpcSettings()
    options = dict(server_options(settings))
    from grpc._cython import cygrpc

    with open(cygrpc.__file__, "rb") as file:
        core = file.read()
    for name in options:
        assert name.encode() in core, name
    assert options["grpc.so_reuseport"] == 0
    assert options["grpc.max_receive_message_length"] == options["grpc.max_send_message_length"] == 10 * MIB
    assert options["grpc.max_connection_idle_ms"] == 900_000
    assert options["grpc.max_connection_age_ms"] == 1_800_000
    assert options["grpc.max_connection_age_grace_ms"] == 300_000
    assert options["grpc.keepalive_time_ms"] == 300_000
    assert options["grpc.keepalive_timeout_ms"] == 60_000
    assert options["grpc.http2.min_ping_interval_without_data_ms"] <= 10_000


# -- the table


def test_method_table() -> None:
    methods = [unary(echo, "A"), unary(echo, "B")]
    other = Method("/other.v1.Other/A", Kind.UNARY, echo)
    table = method_table(methods, [other])
    assert list(table) == ["/test.v1.Test/A", "/test.v1.Test/B", "/other.v1.Other/A"]
    assert service_names(table.values()) == ["other.v1.Other", "test.v1.Test"]
    with pytest.raises(ValueError, match="twice"):
        method_table(methods, methods)
    for bad in ("", "A", "/A", "test.v1.Test/A", "//A", "/a/b/c"):
        with pytest.raises(ValueError, match="/service/method"):
            method_table([Method(bad, Kind.UNARY, echo)])
