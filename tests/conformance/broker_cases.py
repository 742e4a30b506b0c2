"""The cases that call the broker, for both of Python's gRPC clients."""

import uuid

from grpc import StatusCode
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from takhin.v1 import takhin_pb2 as pb

from .calls import Connection, rest_of
from .stock import World, case, expect, expect_ok

_TAKHIN = "/takhin.v1.TakhinService"
_HEALTH = "/grpc.health.v1.Health"


async def _health(connection: Connection, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    answer = (await connection.unary(f"{_HEALTH}/Check", request)).message
    return health_pb2.HealthCheckResponse.FromString(answer).status


@case("health-check")
async def _(world: World) -> None:
    async with world.connected(world.at.broker) as connection:
        for service in ("", "takhin.v1.TakhinService"):
            expect(await _health(connection, service), health_pb2.HealthCheckResponse.SERVING)
        request = health_pb2.HealthCheckRequest(service="none").SerializeToString()
        expect((await connection.unary(f"{_HEALTH}/Check", request)).code, StatusCode.NOT_FOUND)


@case("health-watch")
async def _(world: World) -> None:
    async with world.connected(world.at.broker) as connection:
        for service, status in (("", 1), ("none", 3)):
            request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
            stream = await connection.stream(f"{_HEALTH}/Watch", request)
            expect(health_pb2.HealthCheckResponse.FromString(await stream.read() or b"").status, status)
            await stream.cancel()


@case("reflection")
async def _(world: World) -> None:
    async with world.connected(world.at.broker) as connection:
        # v1's messages are v1alpha's by another name.
        stream = await connection.bidi("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        await stream.write(reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString())
        answer = reflection_pb2.ServerReflectionResponse.FromString(await stream.read() or b"")
        names = {each.name for each in answer.list_services_response.service}
        assert {"takhin.v1.TakhinService", "grpc.health.v1.Health"} <= names, names
        wanted = reflection_pb2.ServerReflectionRequest(file_containing_symbol="takhin.v1.TakhinService")
        await stream.write(wanted.SerializeToString())
        answer = reflection_pb2.ServerReflectionResponse.FromString(await stream.read() or b"")
        assert pb.DESCRIPTOR.serialized_pb in answer.file_descriptor_response.file_descriptor_proto
        await stream.half_close()
        expect_ok(await stream.outcome())


async def _new_topic(connection: Connection) -> str:
    name = uuid.uuid4().hex
    request = pb.CreateTopicRequest(name=name, num_partitions=1)
    answer = (await connection.unary(f"{_TAKHIN}/CreateTopic", request.SerializeToString())).message
    assert pb.CreateTopicResponse.FromString(answer).success
    return name


async def _read(connection: Connection, topic: str) -> list[bytes]:
    request = pb.ConsumeMessagesRequest(topic=topic, offset=-1, until_end=True)
    stream = await connection.stream(f"{_TAKHIN}/ConsumeMessages", request.SerializeToString())
    answers = [pb.ConsumeMessagesResponse.FromString(each) for each in await rest_of(stream)]
    expect_ok(await stream.outcome())
    records = [record for answer in answers for record in answer.records]
    expect([each.offset for each in records], list(range(len(records))), "the offsets")
    return [each.value for each in records]


def _produce(topic: str, value: bytes) -> bytes:
    return pb.ProduceMessageRequest(topic=topic, record=pb.Record(value=value), required_acks=1).SerializeToString()


@case("broker-produce-consume")
async def _(world: World) -> None:
    async with world.connected(world.at.broker) as connection:
        topic = await _new_topic(connection)
        for index in range(100):
            answer = (await connection.unary(f"{_TAKHIN}/ProduceMessage", _produce(topic, b"%d" % index))).message
            expect(pb.ProduceMessageResponse.FromString(answer).offset, index)
        expect(await _read(connection, topic), [b"%d" % index for index in range(100)])


@case("broker-produce-stream")
async def _(world: World) -> None:
    async with world.connected(world.at.broker) as connection:
        topic = await _new_topic(connection)
        stream = await connection.bidi(f"{_TAKHIN}/ProduceMessageStream")
        for index in range(1000):
            await stream.write(_produce(topic, b"%d" % index))
        await stream.half_close()
        answers = [pb.ProduceMessageResponse.FromString(each) for each in await rest_of(stream)]
        expect_ok(await stream.outcome())
        expect([each.offset for each in answers], list(range(1000)))
        expect(await _read(connection, topic), [b"%d" % index for index in range(1000)])
