"""A front's life: how it starts and stops, whom it lets connect and for how long."""

import asyncio
import socket
import struct
import time
from contextlib import suppress

import grpc
import grpc.aio
import pytest

from takhin.config import GrpcSettings, Limits
from takhin.errors import Reason, StartError, error
from takhin.rpc.call import Call, Kind, StreamCall, method_table
from takhin.rpc.grpc_front import server_options
from tests.front import (
    MIB,
    Run,
    call_kind,
    channel_to,
    client,
    echo,
    error_info,
    path,
    server_stream,
    serving,
    unary,
)
from tests.fronts import new_front

# -- start and stop


def test_a_second_front_on_the_same_port_is_refused(run: Run) -> None:
    async def go() -> None:
        async with serving(unary(echo)) as address:
            with pytest.raises(StartError) as caught:
                await new_front({}, GrpcSettings()).start(address)
            assert str(caught.value) == f"{address} is in use by another process"
            with pytest.raises(StartError):
                await new_front({}, GrpcSettings()).start(address.replace("127.0.0.1", "localhost"))
            async with channel_to(address) as channel:
                assert await channel.unary_unary(path("Unary"))(b"still here") == b"still here"
        again = new_front({}, GrpcSettings())
        assert await again.start(address) == address
        await again.stop(0)

    run(go())


def test_a_port_of_another_program_is_refused(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(StartError, match="is in use by another process"):
            run(new_front({}, GrpcSettings()).start(address))


@pytest.mark.parametrize(
    "listen",
    ["", "9092", ":9092", "localhost", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "127.0.0.1:-1", "::1:9092",
     "[::1]", "unix:", "unix://x/y", "unix:a b", "127.0.0.1:٣", "[127.0.0.1]:1"],
)  # fmt: skip
def test_an_address_of_the_wrong_form_is_refused(run: Run, listen: str) -> None:
    with pytest.raises(StartError, match="give (HOST:PORT|unix:PATH)"):
        run(new_front({}, GrpcSettings()).start(listen))


@pytest.mark.parametrize("listen", ["192.0.2.1:0", "no-such-host.invalid:0"])
def test_an_address_that_is_not_ours_is_refused(run: Run, listen: str) -> None:
    with pytest.raises(StartError) as caught:
        run(new_front({}, GrpcSettings()).start(listen))
    assert listen in str(caught.value) and "\n" not in str(caught.value)


def test_host_names_and_ipv6_are_served(run: Run) -> None:
    async def go() -> None:
        for listen in ("localhost:0", "[::1]:0"):
            front = new_front(method_table([unary(echo)]), GrpcSettings())
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


@pytest.mark.parametrize(("listen", "hosts"), [("[::]:0", ["127.0.0.1", "::1"]), ("localhost:0", ["127.0.0.1", "::1"])])
def test_every_address_that_a_host_stands_for_is_served(run: Run, listen: str, hosts: list[str]) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")

    async def peer(request: bytes, call: Call) -> bytes:
        return call.peer.encode()

    async def go() -> None:
        front = new_front(method_table([unary(peer)]), GrpcSettings())
        port = (await front.start(listen)).rpartition(":")[2]
        for host in hosts:
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            async with channel_to(address) as channel:
                found = await channel.unary_unary(path("Unary"))(b"")
                assert found.decode().rpartition(":")[0] == address.rpartition(":")[0]
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

        front = new_front(method_table([unary(slow), server_stream(wait)]), GrpcSettings())
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

        front = new_front(method_table([server_stream(until_drained)]), GrpcSettings())
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
                with suppress(asyncio.CancelledError):
                    await release.wait()
            raise error(Reason.DRAINING, "too late")

        front = new_front(method_table([unary(deaf)]), GrpcSettings())
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
    run(new_front({}, GrpcSettings()).stop(0))


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
            with suppress(ConnectionError):
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
    options = dict(server_options(settings, Limits()))
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
    assert options["grpc.max_metadata_size"] == options["grpc.absolute_max_metadata_size"] == 16 << 10
    assert options["grpc.max_allowed_incoming_connections"] == 10_000
    assert options["grpc.max_concurrent_streams"] == 1_000
    assert options["grpc.server_handshake_timeout_ms"] == 10_000
    assert options["grpc.server.max_pending_requests"] == 31_000
    assert options["grpc.server.max_pending_requests_hard_limit"] == 31_000
