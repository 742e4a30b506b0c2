"""TLS, tokens, compression: a server of grpc's own tells what the client sends. The broker has none of them yet."""

import asyncio
import shutil
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

import takhin
from takhin.v1 import takhin_pb2 as pb


class Told(grpc.aio.ServerInterceptor):
    """Answers HealthCheck, and keeps the metadata of each call."""

    def __init__(self) -> None:
        self.metadata: list[dict[str, object]] = []

    async def intercept_service(self, continuation, details):
        self.metadata.append(dict(details.invocation_metadata))

        async def health(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            if self.metadata[-1].get("authorization") == "Bearer wrong":
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
            return pb.HealthCheckResponse(status="healthy").SerializeToString()

        return grpc.unary_unary_rpc_method_handler(health)


@asynccontextmanager
async def server(credentials: grpc.ServerCredentials | None = None):
    told = Told()
    running = grpc.aio.server(interceptors=[told])
    if credentials is None:
        port = running.add_insecure_port("127.0.0.1:0")
    else:
        port = running.add_secure_port("127.0.0.1:0", credentials)
    await running.start()
    try:
        yield told, f"127.0.0.1:{port}"
    finally:
        await running.stop(None)


def test_tokens_and_compression() -> None:
    async def main() -> None:
        async with server() as (told, address):
            async with takhin.connect(address, token="secret", api_key="key", compression="gzip") as tk:
                assert (await tk.health()).status == "healthy"
            assert told.metadata[-1]["authorization"] == "Bearer secret" and told.metadata[-1]["x-api-key"] == "key"
            async with takhin.connect(address) as tk:
                await tk.health()
            assert not {"authorization", "x-api-key"} & set(told.metadata[-1])
            async with takhin.connect(address, token="wrong") as tk:
                with pytest.raises(takhin.Unauthenticated, match="who are you") as raised:
                    await tk.health()
                assert not raised.value.retryable

    asyncio.run(main())
    with pytest.raises(ValueError, match="compression 'zip' is not known"):
        takhin.connect(compression="zip")


def test_compressed_messages_reach_the_broker(shared_broker, topic: str) -> None:
    async def main() -> None:
        async with takhin.connect(shared_broker.address, compression="gzip") as tk:
            async with tk.producer(topic) as producer:
                await producer.send(bytes(100_000))
            assert [message.value async for message in tk.read(topic, until_end=True)] == [bytes(100_000)]

    asyncio.run(main())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A key and a certificate for "broker.example", signed by itself."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is missing")
    directory = tmp_path_factory.mktemp("tls")
    key, cert = directory / "key.pem", directory / "cert.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj",
         "/CN=broker.example", "-addext", "subjectAltName=DNS:broker.example"], check=True, capture_output=True)
    return key, cert


def test_tls(certificate: tuple[Path, Path]) -> None:
    key, cert = certificate
    pair = [(key.read_bytes(), cert.read_bytes())]

    async def main() -> None:
        async with server(grpc.ssl_server_credentials(pair)) as (told, address):
            async with takhin.connect(address, tls=takhin.TLS(ca=cert, server_name="broker.example"), token="t") as tk:
                assert (await tk.health()).status == "healthy" and told.metadata[-1]["authorization"] == "Bearer t"
            for wrong in (takhin.TLS(ca=cert), True, takhin.TLS(server_name="broker.example"), None):
                async with takhin.connect(address, tls=wrong, timeout_s=5) as tk:
                    with pytest.raises(takhin.Unavailable):
                        await tk.health()
        mutual = grpc.ssl_server_credentials(pair, cert.read_bytes(), require_client_auth=True)
        async with server(mutual) as (told, address):
            own = takhin.TLS(ca=str(cert), cert=cert.read_bytes(), key=key, server_name="broker.example")
            async with takhin.connect(address, tls=own) as tk:
                assert (await tk.health()).status == "healthy"
            without = takhin.TLS(ca=cert, server_name="broker.example")
            async with takhin.connect(address, tls=without, timeout_s=5) as tk:
                with pytest.raises(takhin.Unavailable):
                    await tk.health()
        with pytest.raises(FileNotFoundError):
            async with takhin.connect("127.0.0.1:1", tls=takhin.TLS(ca="/nonexistent/ca.pem")) as tk:
                await tk.health()

    asyncio.run(main())
