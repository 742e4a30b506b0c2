"""The methods that the clients of the suite call: raw bytes, what to do is in the request.

    unary   Echo(message) -> message                      Sleep(ms [name]) -> "slept"
            Fail(reason LF text)                          Big(size) -> size bytes
            Metadata() -> lines "key=hex of value"        Remaining() -> ms until the deadline, or "none"
            RequestId() -> the call's                     Identity() -> the client's certificate, PEM, or "none"
            Peer() -> the client's address                Hang(name): until it is cancelled
            Journal(name) -> what happened to the call that bore this name: see Journal
            AwaitEnd(name) -> the same, once it is over   Fresh() -> the address of a new front, with StopSoon
            StopSoon() -> "stopping": the front stops, with 20 s of grace
    server  Count(count size pause_ms [reason]): `count` messages of "index" padded with dots to size, then the reason
    stream  HangStream(name): one message "begun", then until it is cancelled
            Flood(name): 64 KiB each, for ever
    bidi    Chat: gives back each message                 Collect: "messages bytes" at the end
            Hold: gives back all messages at the end      HangBidi: the first message is its name, answered "begun"
            FailAfterFirst: fails with PRODUCER_FENCED once the first message is here
"""

import asyncio
from collections.abc import Awaitable, Callable

from takhin.errors import Reason, error
from takhin.rpc.call import Call, Kind, Method, MethodTable, StreamCall, method_table

SERVICE = "conformance.v1.Conformance"
FLOOD_BYTES = 64 * 1024
# Far longer than any of it takes.
PATIENCE_S = 30


class Journal:
    """What calls have come to, by the names that clients gave them: "", "begun", "cancelled" or "ended"; and of those
    that flood, how many messages they have written."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.written: dict[str, int] = {}

    async def hang(self, name: str, begun: Callable[[], Awaitable[None]] | None = None) -> None:
        self.states[name] = "begun"
        try:
            if begun is not None:
                await begun()
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.states[name] = "cancelled"
            raise

    def told(self, name: str) -> bytes:
        written = self.written.get(name)
        return self.states.get(name, "").encode() + (b"" if written is None else b" %d" % written)

    async def sleep(self, request: bytes, call: Call) -> bytes:
        pause_ms, *name = request.decode().split()
        self.states.update((each, "begun") for each in name)
        await asyncio.sleep(int(pause_ms) / 1000)
        self.states.update((each, "ended") for each in name)
        return b"slept"

    async def read(self, request: bytes, call: Call) -> bytes:
        return self.told(request.decode())

    async def await_end(self, request: bytes, call: Call) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            while self.states.get(request.decode(), "") in ("", "begun"):
                await asyncio.sleep(0.01)
        return self.told(request.decode())


async def echo(request: bytes, call: Call) -> bytes:
    return request


async def fail(request: bytes, call: Call) -> bytes:
    reason, _, text = request.decode().partition("\n")
    raise error(Reason(reason), text, planted="yes")


async def big(request: bytes, call: Call) -> bytes:
    return b"b" * int(request)


async def metadata(request: bytes, call: Call) -> bytes:
    pairs = {key: value if isinstance(value, bytes) else value.encode() for key, value in call.metadata.items()}
    return "".join(f"{key}={value.hex()}\n" for key, value in sorted(pairs.items())).encode()


async def remaining(request: bytes, call: Call) -> bytes:
    left_s = call.time_remaining_s()
    return b"none" if left_s is None else b"%d" % int(left_s * 1000)


async def request_id(request: bytes, call: Call) -> bytes:
    return call.request_id.encode()


async def identity(request: bytes, call: Call) -> bytes:
    return call.identity or b"none"


async def peer(request: bytes, call: Call) -> bytes:
    return call.peer.encode()


async def count(request: bytes, call: StreamCall) -> None:
    number, size, pause_ms, *reason = request.decode().split()
    for index in range(int(number)):
        await call.write(str(index).encode().ljust(int(size), b"."))
        if int(pause_ms):
            await asyncio.sleep(int(pause_ms) / 1000)
    if reason:
        raise error(Reason(reason[0]), "after the messages")


async def chat(call: StreamCall) -> None:
    while (message := await call.read()) is not None:
        await call.write(message)


async def hold(call: StreamCall) -> None:
    held = []
    while (message := await call.read()) is not None:
        held.append(message)
    for message in held:
        await call.write(message)


async def collect(call: StreamCall) -> None:
    number = size = 0
    while (message := await call.read()) is not None:
        number, size = number + 1, size + len(message)
    await call.write(b"%d %d" % (number, size))


async def fail_after_first(call: StreamCall) -> None:
    await call.read()
    raise error(Reason.PRODUCER_FENCED, "after the first message")


def methods(
    journal: Journal, fresh: Callable[[], Awaitable[str]] | None = None, stop: Callable[[], None] | None = None
) -> MethodTable:
    """fresh: starts a front with a `stop`, gives its address."""

    async def hang(request: bytes, call: Call) -> bytes:
        await journal.hang(request.decode())
        return b""

    async def hang_stream(request: bytes, call: StreamCall) -> None:
        await journal.hang(request.decode(), lambda: call.write(b"begun"))

    async def hang_bidi(call: StreamCall) -> None:
        name = await call.read()
        await journal.hang((name or b"").decode(), lambda: call.write(b"begun"))

    async def flood(request: bytes, call: StreamCall) -> None:
        name = request.decode()
        journal.states[name], journal.written[name] = "begun", 0
        try:
            while True:
                await call.write(b"f" * FLOOD_BYTES)
                journal.written[name] += 1
                # Others are served though the transport takes all.
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            journal.states[name] = "cancelled"
            raise

    async def start_fresh(request: bytes, call: Call) -> bytes:
        assert fresh is not None
        return (await fresh()).encode()

    async def stop_soon(request: bytes, call: Call) -> bytes:
        assert stop is not None
        stop()
        return b"stopping"

    unary = {
        "Echo": echo, "Sleep": journal.sleep, "Fail": fail, "Big": big, "Metadata": metadata, "Remaining": remaining,
        "RequestId": request_id, "Identity": identity, "Peer": peer, "Hang": hang, "Journal": journal.read,
        "AwaitEnd": journal.await_end, "Fresh": start_fresh, "StopSoon": stop_soon,
    }
    stream = {"Count": count, "HangStream": hang_stream, "Flood": flood}
    bidi = {
        "Chat": chat, "Hold": hold, "Collect": collect, "HangBidi": hang_bidi, "FailAfterFirst": fail_after_first}
    kinds = ((Kind.UNARY, unary), (Kind.SERVER_STREAM, stream), (Kind.BIDI, bidi))
    return method_table(
        Method(f"/{SERVICE}/{name}", kind, handler) for kind, group in kinds for name, handler in group.items())
