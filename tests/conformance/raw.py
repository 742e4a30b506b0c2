"""The cases that need a client which writes frames itself: HTTP/2 by the h2 package, gRPC by hand."""

import socket
import ssl
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError

from .server import MIB, Addresses
from .service import FLOOD_BYTES, SERVICE

CASES: dict[str, Callable[[Addresses], None]] = {}
_TIMEOUT_S = 30
_GZIP = ("grpc-accept-encoding", "identity, gzip")


@dataclass
class Response:
    """What came on a stream. frames: of headers, in order, with whether they ended the stream; the trailers last."""

    frames: list[tuple[dict[str, str], bool]] = field(default_factory=list)
    data: bytes = b""
    is_over: bool = False
    reset: int | None = None

    @property
    def status(self) -> int | None:
        told = self.frames[-1][0].get("grpc-status") if self.frames else None
        return None if told is None else int(told)

    @property
    def messages(self) -> list[tuple[int, bytes]]:
        """Each with its flag."""
        found, at = [], 0
        while at < len(self.data):
            flag, size = struct.unpack_from(">BI", self.data, at)
            found.append((flag, self.data[at + 5:at + 5 + size]))
            at += 5 + size
        return found


class RawClient:
    """A connection."""

    def __init__(self, sock: socket.socket):
        self._socket = sock
        self._http2 = h2.connection.H2Connection(h2.config.H2Configuration(
            client_side=True, header_encoding="utf-8", validate_outbound_headers=False))
        self._http2.initiate_connection()
        self._responses: dict[int, Response] = {}
        self.goaway: tuple[int, bytes] | None = None
        self.is_closed = False
        self.flush()

    def flush(self) -> None:
        self._socket.sendall(self._http2.data_to_send())

    def start(self, path: str, *more: tuple[str, str], body: bytes | None = b"") -> int:
        """A call; body: its only message; None: it sends none and keeps its side open."""
        stream = self._http2.get_next_available_stream_id()
        headers = [
            (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost"),
            ("te", "trailers"), ("content-type", "application/grpc"), *more]
        names = {name for name, _ in more}
        # What is given takes the place of what stands there by default.
        kept = [pair for index, pair in enumerate(headers) if index >= 6 or pair[0] not in names]
        self._http2.send_headers(stream, kept)
        if body is not None:
            self._http2.send_data(stream, struct.pack(">BI", 0, len(body)) + body, end_stream=True)
        self._responses[stream] = Response()
        self.flush()
        return stream

    def ping(self) -> None:
        self._http2.ping(b"pingping")
        self.flush()

    def receive(self) -> bool:
        """Take what has come, waiting for it; False at the connection's end."""
        try:
            data = self._socket.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            self.is_closed = True
            return False
        try:
            events = self._http2.receive_data(data)
        except ProtocolError as exc:
            raise AssertionError(f"the server breaks HTTP/2: {exc!r}") from exc
        for event in events:
            self._take(event)
        with suppress(BrokenPipeError, ConnectionResetError):  # what was said last is read nevertheless
            self.flush()
        return True

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            # The first one that tells of an error: a second may follow, with what was served by then.
            if self.goaway is None or not self.goaway[0]:
                self.goaway = int(event.error_code), event.additional_data or b""
        response = self._responses.get(getattr(event, "stream_id", None) or 0)
        if response is None:
            return
        if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            response.frames.append((dict(event.headers), event.stream_ended is not None))
        elif isinstance(event, h2.events.DataReceived):
            response.data += event.data
            self._http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            response.reset, response.is_over = int(event.error_code), True
        if isinstance(event, h2.events.StreamEnded):
            response.is_over = True

    def response(self, stream: int) -> Response:
        """Of a call, once it is over."""
        found = self._responses[stream]
        while not found.is_over:
            assert self.receive(), f"the connection has ended before the call; GOAWAY: {self.goaway}"
        return found

    def call(self, name: str, *more: tuple[str, str], body: bytes = b"") -> Response:
        return self.response(self.start(f"/{SERVICE}/{name}", *more, body=body))


@contextmanager
def connected(address: str) -> Iterator[RawClient]:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=_TIMEOUT_S) as sock:
        yield RawClient(sock)


def case(name: str) -> Callable[[Callable[[Addresses], None]], None]:
    def add(function: Callable[[Addresses], None]) -> None:
        CASES[name] = function

    return add


@case("deadline-enforced")
def _(at: Addresses) -> None:
    with connected(at.plain) as client:
        for value in ("300m", "300000u", "99999999n", "1S"):
            response = client.call("Sleep", ("grpc-timeout", value), body=b"60000")
            # Core resets the stream of a call that is late, which clients take for the same.
            assert response.status == 4 or (response.status is None and response.reset == ErrorCodes.CANCEL), response
        name = uuid.uuid4().hex.encode()
        client.call("Hang", ("grpc-timeout", "300m"), body=name)
        assert client.call("AwaitEnd", body=name).messages == [(0, b"cancelled")]
        # Each later call ends sooner than those under way; the first one is not waited for.
        _, *streams = [
            client.start(f"/{SERVICE}/Sleep", ("grpc-timeout", value), body=b"60000")
            for value in ("1H", "900m", "300m")]
        for stream in reversed(streams):
            response = client.response(stream)
            assert response.status == 4 or (response.status is None and response.reset == ErrorCodes.CANCEL), response
        response = client.call("Echo", ("grpc-timeout", "99999999H"), body=b"x")
        assert response.messages == [(0, b"x")], response


@case("identity-default")
def _(at: Addresses) -> None:
    with connected(at.plain) as client:
        response = client.call("Big", _GZIP, body=b"100000")
        assert response.frames[0][0].get("grpc-encoding", "identity") == "identity", response.frames
        assert response.messages == [(0, b"b" * 100_000)]
        accepted = response.frames[0][0]["grpc-accept-encoding"]
        assert {"identity", "gzip"} <= {each.strip() for each in accepted.split(",")}, accepted
    with connected(at.gzip) as client:
        response = client.call("Big", body=b"100000")
        assert response.messages == [(0, b"b" * 100_000)], "compressed for a client that did not say it takes that"
        response = client.call("Big", _GZIP, body=b"100000")
        assert response.frames[0][0]["grpc-encoding"] == "gzip", response.frames
        ((flag, message),) = response.messages
        assert flag == 1 and len(message) < 10_000, (flag, len(message))


@case("unknown-encoding")
def _(at: Addresses) -> None:
    with connected(at.plain) as client:
        response = client.call("Echo", ("grpc-encoding", "snappy"), body=b"x")
        if at.front == "grpc":
            # Core answers so to a name that it does not know at all, with no list: this is what is known of it.
            assert response.status == 13, response
            return
        assert response.status == 12, response
        accepted = {each.strip() for headers, _ in response.frames
                    for each in headers.get("grpc-accept-encoding", "").split(",")}
        assert {"identity", "gzip"} <= accepted, response.frames
        assert client.call("Echo", body=b"x").messages == [(0, b"x")]


@case("trailers-only")
def _(at: Addresses) -> None:
    with connected(at.plain) as client:
        for response in (client.call("Fail", body="TOPIC_EXISTS\n100% ü".encode()), client.call("Nothing")):
            ((headers, ended),) = response.frames
            assert ended and response.data == b"", response
            assert headers[":status"] == "200" and headers["content-type"].startswith("application/grpc"), headers
        response = client.call("Fail", body="TOPIC_EXISTS\n100% ü".encode())
        assert response.status == 6 and response.frames[0][0]["grpc-message"] == "100%25 %C3%BC", response
        # A message, and the status after it.
        response = client.call("Echo", body=b"x")
        assert [ended for _, ended in response.frames] == [False, True] and response.status == 0, response


@case("content-type")
def _(at: Addresses) -> None:
    path = f"/{SERVICE}/Echo"
    with connected(at.plain) as client:
        for change in (("content-type", "text/html"), (":method", "GET")):
            response = client.response(client.start(path, change, body=b"x"))
            status = response.frames[0][0][":status"] if response.frames else ""
            if at.front == "grpc":
                continue  # core serves it nevertheless
            assert status not in ("", "200") or response.status not in (None, 0) or response.reset, response
        for value in ("application/grpc+proto", "application/grpc;charset=utf-8"):
            response = client.response(client.start(path, ("content-type", value), body=b"x"))
            assert response.messages == [(0, b"x")] and response.status == 0, response
        assert client.call("Echo", body=b"x").messages == [(0, b"x")]


@case("slow-reader-window")
def _(at: Addresses) -> None:
    name = uuid.uuid4().hex.encode()

    def told(client: RawClient) -> bytes:
        return client.call("Journal", body=name).messages[0][1]

    with connected(at.plain) as reader, connected(at.plain) as other:
        # What comes is not read, and so opens no window.
        reader.start(f"/{SERVICE}/Flood", body=name)
        before, same = b"", 0
        while same < 3:
            time.sleep(0.2)
            now = told(other)
            same = same + 1 if now == before and now.startswith(b"begun") else 0
            before = now
        written = int(before.split()[1])
        # Core counts a message once all of it is sent, and it does not fit.
        assert written * FLOOD_BYTES <= MIB, f"{written} messages of {FLOOD_BYTES} bytes for a window of 65,535"
    with connected(at.plain) as other:
        assert other.call("AwaitEnd", body=name).messages[0][1].startswith(b"cancelled")


@case("ping-policing")
def _(at: Addresses) -> None:
    with connected(at.strict) as client:
        assert client.call("Echo", body=b"x").messages == [(0, b"x")]
        with suppress(BrokenPipeError, ConnectionResetError):  # it may not wait for the last of them
            for _ in range(20):
                client.ping()
        while client.goaway is None and client.receive():
            pass
        assert client.goaway == (ErrorCodes.ENHANCE_YOUR_CALM, b"too_many_pings"), client.goaway
        while not client.is_closed:
            client.receive()
    # As often, where it is allowed.
    with connected(at.pings) as client:
        for _ in range(6):
            client.ping()
            assert client.call("Sleep", body=b"150").messages == [(0, b"slept")]
        assert client.goaway is None


@case("tls-no-alpn")
def _(at: Addresses) -> None:
    host, _, port = at.tls.rpartition(":")
    for protocols in ([], ["http/1.1"]):
        context = ssl.create_default_context(cafile=f"{at.directory}/ca.pem")
        if protocols:
            context.set_alpn_protocols(protocols)
        with socket.create_connection((host, int(port)), timeout=_TIMEOUT_S) as plain:
            try:
                with context.wrap_socket(plain, server_hostname="localhost") as sock:
                    client = RawClient(sock)
                    stream = client.start(f"/{SERVICE}/Echo", body=b"x")
                    while client.receive():
                        pass
            except (ssl.SSLError, ConnectionError):
                continue
            assert not client._responses[stream].frames, "a call was served on a connection that is not of h2"
    context = ssl.create_default_context(cafile=f"{at.directory}/ca.pem")
    context.set_alpn_protocols(["http/1.1", "h2"])
    with socket.create_connection((host, int(port)), timeout=_TIMEOUT_S) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as sock:
            assert sock.selected_alpn_protocol() == "h2"
            assert RawClient(sock).call("Echo", body=b"x").messages == [(0, b"x")]
