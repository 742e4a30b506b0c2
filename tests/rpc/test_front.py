"""A front serves a method table as call.py promises: tried on a real port with stock clients."""

import asyncio
import gzip
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
import pytest

from takhin.errors import Code, Reason, TakhinError, error
from takhin.rpc.call import Call, Kind, Method, StreamCall, method_table, service_names
from takhin.rpc.status import MAX_MESSAGE_BYTES, status_of
from tests.front import (
    MIB,
    PLANTED,
    UNLIMITED,
    Run,
    bidi,
    call_kind,
    channel_to,
    client,
    each_kind,
    echo,
    details,
    error_info,
    path,
    server_stream,
    serving,
    unary,
)

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
def test_bugs_reach_the_client_as_a_request_id(
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
    """The client learns the request id and nothing more; the log has `logged`, every line under that id."""

    async def go() -> grpc.aio.AioRpcError:
        async with client(*each_kind(act)) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call_kind(channel, kind, timeout=10)
            return caught.value

    caught = run(go())
    assert caught.code() is grpc.StatusCode.INTERNAL
    info, request = details(caught)
    request_id = request.request_id
    assert len(request_id) == 16 and int(request_id, 16) >= 0
    assert caught.details() == f"internal error {request_id}"
    assert info.reason == Reason.INTERNAL_ERROR and not info.metadata
    assert PLANTED not in repr(caught) and PLANTED not in repr(caught.trailing_metadata())
    (record,) = caplog.records
    assert record.name == "takhin.rpc.status" and record.levelno == logging.ERROR
    text = record.getMessage()
    assert request_id in text and text.isprintable()
    stack = record.exc_text or ""
    assert all(line.startswith(f"  {request_id} | ") and line.isprintable() for line in stack.split("\n"))
    assert logged in stack and "Traceback" in stack
    assert len(stack) < 64_000


def test_status_of_does_not_swallow_a_cancellation() -> None:
    with pytest.raises(asyncio.CancelledError):
        status_of(asyncio.CancelledError(), "id")


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
