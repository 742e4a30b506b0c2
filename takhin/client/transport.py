"""How calls reach the broker: bytes in and bytes out, over gRPC or straight into a broker in the same process.

Every method raises ClientError alone (and asyncio.CancelledError). Paths are gRPC's:
"/takhin.v1.TakhinService/GetTopic".
"""

from typing import Protocol

SERVICE = "/takhin.v1.TakhinService/"


class ResponseStream(Protocol):
    """What a server-streaming call answers."""

    async def read(self) -> bytes | None:
        """The next message; None once the stream has ended well. One read at a time."""

    def cancel(self) -> None:
        """End the call, whatever is on its way. May be called again, and after the end."""


class RequestStream(ResponseStream, Protocol):
    """A bidirectional call: one read and one write may be under way at once."""

    async def write(self, message: bytes) -> None:
        """Send a message; returns when the transport took it. One write at a time."""

    async def done_writing(self) -> None:
        """Send no more; answers may still come."""


class Transport(Protocol):
    """A way to one broker."""

    async def unary(self, path: str, request: bytes, timeout_s: float | None = None) -> bytes:
        """One call, one answer. timeout_s None: the transport's default."""

    def server_stream(self, path: str, request: bytes) -> ResponseStream:
        """One request, any number of answers, for as long as it takes."""

    def bidi(self, path: str) -> RequestStream:
        """Requests and answers, for as long as it takes."""

    async def close(self) -> None:
        """End all calls. May be called again."""
