"""The cases, for both of Python's gRPC clients: each a coroutine that raises when something is not as it has to be."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from takhin.errors import Code, Reason

from .calls import CONNECTIONS, Connection, Outcome, Stream, rest_of
from .server import CLIENT_URI, LIMIT_BYTES, MIB, Addresses
from .service import FLOOD_BYTES

Case = Callable[["World"], Awaitable[None]]
CASES: dict[str, Case] = {}
# Of the frames and windows of HTTP/2, and of 5 bytes before each message.
SIZES = [1, 2, *range(16_370, 16_392), *range(65_520, 65_545), 131_072, 262_139, 262_144, MIB - 5, MIB, MIB + 1]


class World:
    """What a case has: the addresses, and connections of its client."""

    def __init__(self, client: str, at: Addresses):
        self.at = at
        self._kind = CONNECTIONS[client]

    @asynccontextmanager
    async def connected(self, address: str = "", **how: Any) -> AsyncIterator[Connection]:
        """To the plain front, unless told."""
        connection = self._kind(address or self.at.plain, **how)
        try:
            yield connection
        finally:
            await connection.close()

    def credentials(self, *, with_client: bool) -> grpc.ChannelCredentials:
        ca, certificate, key = (
            Path(self.at.directory, name).read_bytes() for name in ("ca.pem", "client.pem", "client.key"))
        return grpc.ssl_channel_credentials(ca, key, certificate) if with_client else grpc.ssl_channel_credentials(ca)


def case(name: str) -> Callable[[Case], Case]:
    def add(function: Case) -> Case:
        CASES[name] = function
        return function

    return add


def expect(found: Any, wanted: Any, what: str = "") -> None:
    assert found == wanted, f"{what or 'it'} is {str(found)[:200]!r}, not {str(wanted)[:200]!r}"


def expect_ok(outcome: Outcome) -> Outcome:
    expect(outcome.code, StatusCode.OK, f"the code ({outcome.text})")
    return outcome


async def lives(connection: Connection) -> None:
    """The connection serves other calls."""
    expect((await connection.unary("Echo", b"still")).message, b"still")


# Messages


@case("unary-echo")
async def _(world: World) -> None:
    async with world.connected() as connection:
        expect((await connection.unary("Echo", b"hello")).message, b"hello")


@case("unary-empty")
async def _(world: World) -> None:
    async with world.connected() as connection:
        expect((await connection.unary("Echo", b"")).message, b"")


@case("unary-4mib")
async def _(world: World) -> None:
    async with world.connected() as connection:
        request = bytes(range(256)) * (4 * MIB // 256)
        expect((await connection.unary("Echo", request)).message == request, True, "the same message")


@case("unary-sizes")
async def _(world: World) -> None:
    async with world.connected() as connection:
        for size in SIZES:
            request = bytes(index % 251 for index in range(size))
            expect((await connection.unary("Echo", request)).message == request, True, f"the message of {size}")


@case("stream-count")
async def _(world: World) -> None:
    async with world.connected() as connection:
        stream = await connection.stream("Count", b"1000 100 0")
        expect(await rest_of(stream), [str(index).encode().ljust(100, b".") for index in range(1000)])
        expect_ok(await stream.outcome())


@case("stream-empty")
async def _(world: World) -> None:
    async with world.connected() as connection:
        stream = await connection.stream("Count", b"0 0 0")
        expect(await rest_of(stream), [])
        expect_ok(await stream.outcome())


@case("stream-large")
async def _(world: World) -> None:
    async with world.connected() as connection:
        stream = await connection.stream("Count", b"32 %d 0" % MIB)
        found = await rest_of(stream)
        expect([len(each) for each in found], [MIB] * 32)
        expect([int(each.rstrip(b".")) for each in found], list(range(32)))
        expect_ok(await stream.outcome())


@case("bidi-chat")
async def _(world: World) -> None:
    async with world.connected() as connection:
        stream = await connection.bidi("Chat")
        for index in range(200):
            await stream.write(b"%d" % index)
            expect(await stream.read(), b"%d" % index)
        await stream.half_close()
        expect(await stream.read(), None)
        expect_ok(await stream.outcome())


@case("bidi-half-close")
async def _(world: World) -> None:
    async with world.connected() as connection:
        stream = await connection.bidi("Hold")
        sent = [b"%d" % index * (index % 50) for index in range(200)]
        for message in sent:
            await stream.write(message)
        await stream.half_close()
        expect(await rest_of(stream), sent)
        expect_ok(await stream.outcome())


@case("bidi-collect")
async def _(world: World) -> None:
    async with world.connected() as connection:
        stream = await connection.bidi("Collect")
        for _ in range(2000):
            await stream.write(b"m" * 1000)
        await stream.half_close()
        expect(await rest_of(stream), [b"2000 2000000"])
        expect_ok(await stream.outcome())


@case("interleaved-streams")
async def _(world: World) -> None:
    async with world.connected() as connection:
        streams = [await connection.bidi("Chat") for _ in range(50)]
        for turn in range(20):
            for number, stream in enumerate(streams):
                await stream.write(b"%d of %d" % (turn, number) * (1 + number * 20))
            for number, stream in enumerate(streams):
                expect(await stream.read(), b"%d of %d" % (turn, number) * (1 + number * 20))
        for stream in streams:
            await stream.half_close()
            expect(await rest_of(stream), [])
            expect_ok(await stream.outcome())


@case("concurrent-1000")
async def _(world: World) -> None:
    async with world.connected() as connection:
        await lives(connection)
        sleeping = [connection.unary("Sleep", b"300") for _ in range(500)]
        echoing = [connection.unary("Echo", b"%d" % index) for index in range(500)]
        found = await asyncio.gather(*sleeping, *echoing)
        expect([each.message for each in found], [b"slept"] * 500 + [b"%d" % index for index in range(500)])


# Status


@case("error-unary")
async def _(world: World) -> None:
    async with world.connected() as connection:
        outcome = await connection.unary("Fail", b"TOPIC_NOT_FOUND\nno such thing")
        expect((outcome.code, outcome.text, outcome.messages), (StatusCode.NOT_FOUND, "no such thing", []))


@case("error-codes")
async def _(world: World) -> None:
    from takhin.errors import error

    codes = {error(reason, "").code: reason for reason in Reason}
    assert len(codes) >= 10
    async with world.connected() as connection:
        for code, reason in codes.items():
            outcome = await connection.unary("Fail", f"{reason}\ntext".encode())
            expect((outcome.code.value[0], outcome.text), (int(Code(code)), "text"), reason)


@case("error-after-messages")
async def _(world: World) -> None:
    async with world.connected() as connection:
        stream = await connection.stream("Count", b"10 10000 0 RECORD_TOO_LARGE")
        expect(len(await rest_of(stream)), 10, "the number of messages")
        outcome = await stream.outcome()
        expect((outcome.code, outcome.text), (StatusCode.RESOURCE_EXHAUSTED, "after the messages"))


@case("error-while-sending")
async def _(world: World) -> None:
    async with world.connected() as connection:
        stream = await connection.bidi("FailAfterFirst")
        await stream.write(b"first")
        expect(await stream.read(), None)
        outcome = await stream.outcome()
        expect((outcome.code, outcome.text), (StatusCode.ABORTED, "after the first message"))
        await lives(connection)


@case("message-percent")
async def _(world: World) -> None:
    # What is not printable comes escaped, on every front: see takhin/rpc/status.py.
    texts = {text: text for text in ("100% 日本語 – ß €", "%", "%41 %zz", " leading and trailing ", "😀" * 50)}
    texts["tab\tline\nfeed\rnull\x00del\x7f"] = r"tab\tline\nfeed\rnull\x00del\x7f"
    async with world.connected() as connection:
        for text, told in texts.items():
            outcome = await connection.unary("Fail", f"TOPIC_EXISTS\n{text}".encode())
            expect((outcome.code, outcome.text), (StatusCode.ALREADY_EXISTS, told))


@case("status-details")
async def _(world: World) -> None:
    async with world.connected() as connection:
        outcome = await connection.unary("Fail", "TOPIC_EXISTS\nschön".encode())
        raw = outcome.trailing["grpc-status-details-bin"]
        assert isinstance(raw, bytes)
        status, info = status_pb2.Status.FromString(raw), error_details_pb2.ErrorInfo()
        expect((status.code, status.message), (outcome.code.value[0], "schön"))
        assert status.details[0].Unpack(info)
        expect((info.reason, info.domain, dict(info.metadata)), ("TOPIC_EXISTS", "takhin", {"planted": "yes"}))


@case("unknown-method")
async def _(world: World) -> None:
    async with world.connected() as connection:
        expect((await connection.unary("Nothing")).code, StatusCode.UNIMPLEMENTED)
        stream = await connection.bidi("Nothing")
        expect(await stream.read(), None)
        expect((await stream.outcome()).code, StatusCode.UNIMPLEMENTED)
        await lives(connection)


@case("unknown-service")
async def _(world: World) -> None:
    async with world.connected() as connection:
        expect((await connection.unary("/none.v1.None/Echo", b"x")).code, StatusCode.UNIMPLEMENTED)
        await lives(connection)


# Metadata


async def _seen(connection: Connection, *sent: tuple[str, str | bytes]) -> dict[str, bytes]:
    told = (await connection.unary("Metadata", metadata=sent)).message.decode()
    return {key: bytes.fromhex(value) for key, _, value in (line.partition("=") for line in told.splitlines())}


@case("metadata-ascii")
async def _(world: World) -> None:
    async with world.connected() as connection:
        printable = "".join(map(chr, range(0x21, 0x7F)))
        sent = (("x-one", "1"), ("x-long", "v" * 3000), ("x-printable", printable), ("x-twice", "a"), ("x-twice", "b"))
        found = await _seen(connection, *sent)
        expect({key: found.get(key, b"").decode() for key, _ in sent}, dict(sent))


@case("metadata-binary")
async def _(world: World) -> None:
    async with world.connected() as connection:
        values = [bytes(range(256)), *(b"\xff" * size for size in range(1, 5)), b"\x00", b"\r\n", b","]
        sent = tuple((f"x-value-{index}-bin", value) for index, value in enumerate(values))
        found = await _seen(connection, *sent)
        expect({key: found.get(key) for key, _ in sent}, dict(sent))


@case("metadata-too-large")
async def _(world: World) -> None:
    async with world.connected() as connection:
        await lives(connection)
        outcome = await connection.unary("Echo", b"", metadata=(("x-large", "l" * 40_000),))
        expect(outcome.code, StatusCode.RESOURCE_EXHAUSTED)
        await lives(connection)


@case("request-id")
async def _(world: World) -> None:
    async with world.connected() as connection:
        given = (("x-request-id", "mine-1"),)
        outcome = await connection.unary("RequestId", metadata=given)
        expect((outcome.message, outcome.trailing.get("x-request-id")), (b"mine-1", "mine-1"))
        outcome = await connection.unary("Fail", b"TOPIC_EXISTS\n", metadata=given)
        expect(outcome.trailing.get("x-request-id"), "mine-1")
        outcome = await connection.unary("Fail", b"TOPIC_EXISTS\n")
        assert outcome.trailing.get("x-request-id"), "an error without a request id"
        stream = await connection.stream("Count", b"1 1 0", metadata=given)
        await rest_of(stream)
        expect((await stream.outcome()).trailing.get("x-request-id"), "mine-1")


# Time and cancellation


async def _state(connection: Connection, name: str) -> str:
    return (await connection.unary("Journal", name.encode())).message.decode()


async def _until(connection: Connection, name: str, *wanted: str) -> None:
    async with asyncio.timeout(30):
        while (await _state(connection, name)) not in wanted:
            await asyncio.sleep(0.01)


async def _was_cancelled(connection: Connection, name: str) -> None:
    expect((await connection.unary("AwaitEnd", name.encode())).message.partition(b" ")[0], b"cancelled", "the handler")


@case("deadline")
async def _(world: World) -> None:
    async with world.connected() as connection:
        await lives(connection)
        names = [uuid.uuid4().hex for _ in range(2)]
        outcome = await connection.unary("Hang", names[0].encode(), timeout=0.5)
        expect(outcome.code, StatusCode.DEADLINE_EXCEEDED)
        stream = await connection.stream("HangStream", names[1].encode(), timeout=0.5)
        expect(await rest_of(stream), [b"begun"])
        expect((await stream.outcome()).code, StatusCode.DEADLINE_EXCEEDED)
        for name in names:
            await _was_cancelled(connection, name)


@case("deadline-known")
async def _(world: World) -> None:
    async with world.connected() as connection:
        found = int((await connection.unary("Remaining", timeout=50)).message)
        # Clients round what they send up.
        assert 0 < found <= 50_200, found
        expect((await connection.unary("Remaining", timeout=None)).message, b"none")


@case("cancel-unary")
async def _(world: World) -> None:
    async with world.connected() as connection:
        name = uuid.uuid4().hex
        begun = _until(connection, name, "begun")
        expect((await connection.unary("Hang", name.encode(), cancel_after=begun)).code, StatusCode.CANCELLED)
        await _was_cancelled(connection, name)


async def _cancel(connection: Connection, stream: Stream, name: str) -> None:
    expect(await stream.read(), b"begun")
    await stream.cancel()
    expect(await stream.read(), None)
    expect((await stream.outcome()).code, StatusCode.CANCELLED)
    await _was_cancelled(connection, name)


@case("cancel-stream")
async def _(world: World) -> None:
    async with world.connected() as connection:
        name = uuid.uuid4().hex
        await _cancel(connection, await connection.stream("HangStream", name.encode()), name)


@case("cancel-bidi")
async def _(world: World) -> None:
    async with world.connected() as connection:
        name = uuid.uuid4().hex
        stream = await connection.bidi("HangBidi")
        await stream.write(name.encode())
        await _cancel(connection, stream, name)


# Compression


@case("gzip-request")
async def _(world: World) -> None:
    async with world.connected() as connection:
        for message in (b"", b"short", b"z" * MIB, bytes(range(256)) * 1000):
            for how in (grpc.Compression.Gzip, grpc.Compression.Deflate):
                expect((await connection.unary("Echo", message, compression=how)).message, message)
        stream = await connection.bidi("Chat", compression=grpc.Compression.Gzip)
        for index in range(20):
            await stream.write(b"%d" % index * 5000)
            expect(await stream.read(), b"%d" % index * 5000)
        await stream.half_close()
        expect_ok(await stream.outcome())


@case("gzip-response")
async def _(world: World) -> None:
    async with world.connected(world.at.gzip) as connection:
        for size in (0, 1, 100, 4 * MIB):
            expect((await connection.unary("Big", b"%d" % size)).message, b"b" * size)
        stream = await connection.stream("Count", b"100 5000 0")
        expect([len(each) for each in await rest_of(stream)], [5000] * 100)
        expect_ok(await stream.outcome())


# Limits and flow control


@case("limit-request")
async def _(world: World) -> None:
    async with world.connected() as connection:
        fits, too_large = bytes(LIMIT_BYTES), bytes(LIMIT_BYTES + 1)
        expect_ok(await connection.unary("Echo", fits))
        expect((await connection.unary("Echo", too_large)).code, StatusCode.RESOURCE_EXHAUSTED)
        await lives(connection)
        # What is small until it is read.
        outcome = await connection.unary("Echo", too_large, compression=grpc.Compression.Gzip)
        expect(outcome.code, StatusCode.RESOURCE_EXHAUSTED)
        await lives(connection)


@case("limit-response")
async def _(world: World) -> None:
    async with world.connected() as connection:
        expect(len((await connection.unary("Big", b"%d" % LIMIT_BYTES)).message), LIMIT_BYTES)
        outcome = await connection.unary("Big", b"%d" % (LIMIT_BYTES + 1))
        expect(outcome.code, StatusCode.RESOURCE_EXHAUSTED)
        await lives(connection)


async def _settled(connection: Connection, name: str) -> int:
    """How many messages the flood has written once it writes no more."""
    before, same = -1, 0
    async with asyncio.timeout(60):
        while same < 3:
            await asyncio.sleep(0.2)
            _, _, written = (await _state(connection, name)).partition(" ")
            same = same + 1 if written and int(written) == before else 0
            before = int(written or -1)
    return before


@case("slow-reader")
async def _(world: World) -> None:
    async with world.connected() as connection:
        name = uuid.uuid4().hex
        stream = await connection.stream("Flood", name.encode())
        expect(await stream.read(), b"f" * FLOOD_BYTES)
        written = await _settled(connection, name)
        # What the client's window takes, which grows with the server's speed; "slow-reader-window" is exact.
        assert written * FLOOD_BYTES < 256 * MIB, f"{written} messages for a reader that takes none"
        # Others on the same connection are served meanwhile.
        expect(len((await connection.unary("Big", b"%d" % MIB)).message), MIB)
        for _ in range(written + 200):
            expect(await stream.read(), b"f" * FLOOD_BYTES)
        await stream.cancel()
        await _was_cancelled(connection, name)


# The life of a connection


@case("age-drain")
async def _(world: World) -> None:
    peers, calls = set[bytes](), 0

    async def call_until_changed(connection: Connection) -> None:
        nonlocal calls
        async with asyncio.timeout(60):
            while len(peers) < 5:
                peers.add((await connection.unary("Peer")).message)
                expect((await connection.unary("Sleep", b"5")).message, b"slept")
                calls += 2

    async with world.connected(world.at.age) as connection:
        await asyncio.gather(*(call_until_changed(connection) for _ in range(8)))
    assert calls >= 5


@case("age-stream")
async def _(world: World) -> None:
    async with world.connected(world.at.age) as connection:
        first = (await connection.unary("Peer")).message
        count, chat = await connection.stream("Count", b"150 10 10"), await connection.bidi("Chat")
        await chat.write(b"before")
        expect(await chat.read(), b"before")
        async with asyncio.timeout(60):
            while (await connection.unary("Peer")).message == first:
                await asyncio.sleep(0.05)
        await chat.write(b"after")
        expect(await chat.read(), b"after")
        await chat.half_close()
        expect(await rest_of(chat), [])
        expect_ok(await chat.outcome())
        expect(len(await rest_of(count)), 150)
        expect_ok(await count.outcome())


@case("graceful-stop")
async def _(world: World) -> None:
    async with world.connected() as control:
        address = (await control.unary("Fresh")).message.decode()
    async with world.connected(address) as connection, world.connected() as control:
        stream = await connection.stream("Count", b"100 10 10")
        expect(len(await stream.read() or b""), 10)
        names = [uuid.uuid4().hex for _ in range(20)]
        sleeping = [asyncio.create_task(connection.unary("Sleep", f"1000 {name}".encode())) for name in names]
        for name in names:
            await _until(control, name, "begun", "ended")
        expect((await connection.unary("StopSoon")).message, b"stopping")
        for outcome in await asyncio.gather(*sleeping):
            expect(outcome.message, b"slept")
        expect(len(await rest_of(stream)), 99)
        expect_ok(await stream.outcome())
        expect((await connection.unary("Echo", b"x", timeout=20)).code, StatusCode.UNAVAILABLE)


@case("keepalive")
async def _(world: World) -> None:
    options = [
        ("grpc.keepalive_time_ms", 500), ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_pings_without_data", 0), ("grpc.keepalive_permit_without_calls", 1)]
    async with world.connected(world.at.pings, options=options) as connection:
        peer = (await connection.unary("Peer")).message
        expect((await connection.unary("Sleep", b"3000")).message, b"slept")
        await asyncio.sleep(1)
        expect((await connection.unary("Peer")).message, peer, "the connection")


@case("tls")
async def _(world: World) -> None:
    async with world.connected(world.at.tls, credentials=world.credentials(with_client=False)) as connection:
        request = bytes(range(256)) * (2 * MIB // 256)
        expect((await connection.unary("Echo", request)).message == request, True)
        expect((await connection.unary("Identity")).message, b"none")


@case("mtls")
async def _(world: World) -> None:
    from cryptography import x509

    async with world.connected(world.at.mtls, credentials=world.credentials(with_client=True)) as connection:
        certificate = x509.load_pem_x509_certificate((await connection.unary("Identity")).message)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        expect(names.get_values_for_type(x509.UniformResourceIdentifier), [CLIENT_URI])


@case("mtls-missing")
async def _(world: World) -> None:
    async with world.connected(world.at.mtls, credentials=world.credentials(with_client=False)) as connection:
        expect((await connection.unary("Echo", b"x", timeout=20)).code, StatusCode.UNAVAILABLE)
