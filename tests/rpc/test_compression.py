"""Compression of messages by gRPC: taken from clients, offered to them, bounded; seen on the wire."""

import asyncio
import subprocess

import grpc
import pytest

import takhin
from takhin.v1 import takhin_pb2_grpc
from tests.broker_process import DEADLINE_S, BrokerProcess, new_topic, produce, read, values
from tests.cli.run import TAKHIN, environment
from tests.client.proxy import proxy_to
from tests.conftest import StartBroker
from tests.front import MIB
from tests.secured import IS_DEFAULT

# What a client accepts; as bits, by the number of an algorithm.
IDENTITY, DEFLATE, GZIP = 1, 2, 4
SETTING = "grpc.compression_enabled_algorithms_bitset"
# Long, and easily compressed; the words themselves are not in what comes of it.
VALUE = b"compress me, please. " * 5_000
# How what gzip makes begins.
GZIP_MAGIC = b"\x1f\x8b\x08"

pytestmark = pytest.mark.skipif(IS_DEFAULT, reason="what is on the wire is encrypted")


def fetch(address: str, topic: str, accepts: int | None) -> list[bytes]:
    """The topic's values, by a stock client that accepts these."""
    options = [("grpc.use_local_subchannel_pool", 1)] + ([] if accepts is None else [(SETTING, accepts)])
    with grpc.insecure_channel(address, options=options) as channel:
        return values(read(takhin_pb2_grpc.TakhinServiceStub(channel), topic))


@pytest.mark.parametrize(("setting", "accepts", "expected"), [
    ("none", None, "plain"),
    ("gzip", None, "gzip"), ("gzip", IDENTITY, "plain"), ("gzip", IDENTITY | DEFLATE, "deflate"),
    ("deflate", None, "deflate"), ("deflate", IDENTITY, "plain"), ("deflate", IDENTITY | GZIP, "gzip")])
def test_what_the_broker_sends(start_broker: StartBroker, setting: str, accepts: int | None, expected: str) -> None:
    broker = start_broker(*([] if setting == "none" else ["--grpc-compression", setting]))
    topic = new_topic(broker.stub())
    produce(broker.stub(), topic, VALUE)

    async def through_a_proxy() -> bytes:
        async with proxy_to(broker.address) as proxy:
            assert await asyncio.to_thread(fetch, proxy.address, topic, accepts) == [VALUE]
            return bytes(proxy.from_broker)

    sent = asyncio.run(through_a_proxy())
    if expected == "plain":
        assert len(sent) > len(VALUE) and VALUE[:1000] in sent
    else:
        assert len(sent) < len(VALUE) // 10 and b"please" not in sent
        # That the client could read it says that the headers name the algorithm.
        assert (GZIP_MAGIC in sent) == (expected == "gzip")


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_what_the_python_client_sends(broker: BrokerProcess, compression: str | None) -> None:
    topic = new_topic(broker.stub())

    async def send() -> bytes:
        async with proxy_to(broker.address) as proxy:
            async with takhin.connect(proxy.address, compression=compression) as tk, tk.producer(topic) as producer:
                await producer.send(VALUE)
            return bytes(proxy.to_broker)

    sent = asyncio.run(send())
    assert values(read(broker.stub(), topic)) == [VALUE]
    if compression is None:
        assert VALUE[:1000] in sent
    else:
        assert len(sent) < len(VALUE) // 10 and b"please" not in sent
        assert (GZIP_MAGIC in sent) == (compression == "gzip")


def test_what_the_command_line_sends(broker: BrokerProcess) -> None:
    topic = new_topic(broker.stub())

    async def send() -> bytes:
        async with proxy_to(broker.address) as proxy:
            done = await asyncio.to_thread(
                subprocess.run, [*TAKHIN, "produce", topic, "--compression", "gzip"], input=VALUE + b"\n",
                env=environment() | {"TAKHIN_BROKER": proxy.address}, capture_output=True, timeout=DEADLINE_S)
            assert done.returncode == 0, done.stderr
            return bytes(proxy.to_broker)

    sent = asyncio.run(send())
    assert values(read(broker.stub(), topic)) == [VALUE]
    assert len(sent) < len(VALUE) // 10 and GZIP_MAGIC in sent


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
@pytest.mark.parametrize("kind", ["unary", "stream"])
def test_a_bomb_is_refused_before_it_is_inflated(
    start_broker: StartBroker, algorithm: grpc.Compression, kind: str
) -> None:
    """128 MiB that are less than the limit on the wire: what they inflate to is above it."""
    broker = start_broker("--grpc-max-message-bytes", str(MIB), "--topics-max-record-bytes", "65536")
    topic = new_topic(broker.stub())
    produce(broker.stub(), topic, b"before")
    before_bytes = peak_rss_bytes(broker)
    # Not one of protobuf's: it would be held twice here.
    bomb = bytes(128 * MIB)
    with grpc.insecure_channel(broker.address, options=[("grpc.max_send_message_length", -1)]) as channel:
        if kind == "unary":
            call = channel.unary_unary("/takhin.v1.TakhinService/ProduceMessage")
            with pytest.raises(grpc.RpcError) as refused:
                call(bomb, compression=algorithm, timeout=DEADLINE_S)
        else:
            stream = channel.stream_stream("/takhin.v1.TakhinService/ProduceMessageStream")
            with pytest.raises(grpc.RpcError) as refused:
                list(stream(iter([bomb]), compression=algorithm, timeout=DEADLINE_S))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in refused.value.details()
    assert peak_rss_bytes(broker) - before_bytes < 32 * MIB
    produce(broker.stub(), topic, b"after")
    assert values(read(broker.stub(), topic)) == [b"before", b"after"]


def peak_rss_bytes(broker: BrokerProcess) -> int:
    """The most that it ever had."""
    return broker._status("VmHWM")
