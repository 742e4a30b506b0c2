"""A way to the broker that a test can disturb: connections are reset, held up, or damaged on their way."""

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards TCP to `target` ("HOST:PORT"), which may change: a broker that is started again has another port.

    cut(): reset every connection. is_blocked: nothing goes through, and nobody is told. damage: (bytes, bytes of the
    same length): what the broker sends is replaced, once. to_broker, from_broker: all that went through.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.address = ""
        self.is_blocked = False
        self.is_refusing = False
        self.cuts = 0
        self.damage: tuple[bytes, bytes] | None = None
        self.to_broker = bytearray()
        self.from_broker = bytearray()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = "127.0.0.1:{}".format(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> int:
        """Reset all connections; gives how many there were."""
        count = len(self._writers)
        for writer in list(self._writers):
            with suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        self.cuts += count > 0
        return count

    async def cut_at_random(self, shortest_s: float, longest_s: float, seed: int = 1) -> None:
        """Until it is cancelled."""
        drawn = random.Random(seed)
        while True:
            await asyncio.sleep(drawn.uniform(shortest_s, longest_s))
            self.cut()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_refusing:
            writer.transport.abort()
            return
        host, _, port = self.target.rpartition(":")
        try:
            broker_reader, broker_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, broker_writer}
        ways = [
            asyncio.ensure_future(self._forward(reader, broker_writer, False)),
            asyncio.ensure_future(self._forward(broker_reader, writer, True))]
        self._tasks |= set(ways)
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            self._tasks -= set(ways)
            self._writers -= {writer, broker_writer}
            writer.transport.abort()
            broker_writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, from_broker: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                while self.is_blocked:
                    await asyncio.sleep(0.01)
                if from_broker and self.damage is not None and self.damage[0] in data:
                    data = data.replace(*self.damage, 1)
                    self.damage = None
                (self.from_broker if from_broker else self.to_broker).extend(data)
                writer.write(data)
                await writer.drain()


@asynccontextmanager
async def proxy_to(target: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(target)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()


@asynccontextmanager
async def background(work) -> AsyncIterator[None]:
    """`work`, a coroutine, runs beside what is within, and ends with it. What it raises is raised."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        if not task.done():
            task.cancel()
        with suppress(asyncio.CancelledError):
            await task
