"""The log of a busy secured broker, at its most talkative, holds no key, no token and no byte of a record."""

import asyncio
import json
import re
from pathlib import Path

import grpc
import pytest

import takhin
from takhin.v1 import access_pb2, access_pb2_grpc, takhin_pb2_grpc
from takhin.v1 import takhin_pb2 as pb
from tests.broker_process import DEADLINE_S, BrokerProcess
from tests.conftest import StartBroker
from tests.secured import Secured

# In every record: its key, its value, its header.
PAYLOADS = [b"key-of-a-record", b"value-of-a-record", b"name-of-a-header", b"value-of-a-header"]
KEY, VALUE, HEADER, HEADER_VALUE = PAYLOADS


def attempt(call: object, request: object, *metadata: tuple[str, str | bytes]) -> None:
    """Whatever comes of it; a stream is read to its end."""
    try:
        answer = call(request, metadata=metadata, timeout=DEADLINE_S)  # type: ignore[operator]
        if hasattr(answer, "cancel"):
            list(answer)
    except (grpc.RpcError, ValueError):
        pass


async def work(broker: BrokerProcess, secured: Secured, token: str, key: str) -> None:
    """Everything that has records in it, by way of the client."""
    tls = takhin.TLS(ca=secured.directory / "ca.pem")
    async with takhin.connect(broker.address, tls=tls, token=token) as tk, takhin.connect(
        broker.address, tls=tls, api_key=key) as other:
        await tk.create_topic("orders", partitions=2)
        headers = [(HEADER.decode(), HEADER_VALUE)]
        async with tk.producer("orders", acks="durable") as producer:
            for _ in range(200):
                await producer.send(VALUE, key=KEY, headers=headers)
        async with tk.transaction() as transaction:
            transaction.send("orders", VALUE, key=KEY, headers=headers)
        async with tk.consumer("orders", group="readers", auto_commit=True) as consumer:
            async for message in consumer:
                assert message.value == VALUE
                break
        with pytest.raises(takhin.ClientError):
            async with other.producer("orders") as producer:
                await producer.send(VALUE, key=KEY, headers=headers)


def misuse(broker: BrokerProcess, secured: Secured, token: str, key: str) -> None:
    """What is refused: wrong and spoilt credentials, requests that are none."""
    channel = grpc.secure_channel(broker.address, secured.tls())
    stub = takhin_pb2_grpc.TakhinServiceStub(channel)
    request = pb.ProduceMessageRequest(topic="orders", record=pb.Record(key=KEY, value=VALUE))
    for metadata in (
        ("x-api-key", key + "x"), ("x-api-key", key[:-1]), ("authorization", f"Bearer {token}x"),
        ("authorization", f"Basic {token}"), ("authorization", f"Bearer {secured.token(lifetime_s=-60)}"),
        ("authorization", token), ("x-request-id", token + " with a blank"), ("x-api-key-bin", key.encode()),
    ):
        attempt(stub.ProduceMessage, request, metadata)
        attempt(stub.ConsumeMessages, pb.ConsumeMessagesRequest(topic="orders", until_end=True), metadata)
    attempt(stub.ProduceMessage, request, ("x-api-key", key), ("authorization", f"Bearer {token}"))
    good = ("authorization", f"Bearer {token}")
    for broken in (
        request.SerializeToString() + b"\xff", request.SerializeToString()[:-1], VALUE,
        pb.ProduceMessageRequest(topic="nowhere", record=pb.Record(value=VALUE)).SerializeToString(),
        pb.ProduceMessageRequest(topic="orders", partition=9, record=pb.Record(value=VALUE)).SerializeToString(),
        pb.ProduceMessageRequest(topic="orders", record=pb.Record(value=VALUE * 100_000)).SerializeToString(),
    ):
        for name in "ProduceMessage", "CreateTopic", "CommitOffset":
            attempt(channel.unary_unary(f"/takhin.v1.TakhinService/{name}"), broken, good)
        attempt(channel.stream_stream("/takhin.v1.TakhinService/ProduceMessageStream"), iter([broken]), good)
        attempt(channel.stream_stream("/takhin.v1.TakhinService/Subscribe"), iter([broken]), good)
    channel.close()


@pytest.mark.parametrize("log_format", ["human", "json"])
def test_none_is_in_the_log(start_broker: StartBroker, tmp_path: Path, log_format: str) -> None:
    secured = Secured(tmp_path / "tls")
    broker = start_broker("--log-level", "debug", "--log-format", log_format, "--slow-request-ms", "1",
                          secured=secured)
    token = secured.token()
    access = access_pb2_grpc.AccessServiceStub(broker.channel())
    made = access.CreateApiKey(access_pb2.CreateApiKeyRequest(name="other"))
    asyncio.run(work(broker, secured, token, made.key))
    misuse(broker, secured, token, made.key)
    access.RevokeApiKey(access_pb2.RevokeApiKeyRequest(id=made.info.id))
    broker.terminate()

    told = broker.stderr
    # It was busy, and it was looked at where something would be.
    for what in "CREDENTIALS_INVALID", "CREDENTIALS_EXPIRED", "ACCESS_DENIED", "CreateApiKey", "RevokeApiKey", "slow":
        assert what in told, what
    # A key's id, its middle part, may be told: that is what it is revoked by. A token's parts are signed or a secret.
    secrets = [made.key.split("_", 2)[2], *token.split("."), *(each.decode() for each in PAYLOADS)]
    for secret in secrets:
        assert len(secret) > 8 and secret[:-1] not in told
    assert not re.search(r"(Bearer|Basic)\s+[\w.-]{8}", told) and "eyJ" not in told
    if log_format == "json":
        assert all(json.loads(line) for line in told.splitlines())
