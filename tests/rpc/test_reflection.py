"""Server reflection, v1 and v1alpha, as a client that has no .proto uses it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from takhin.config import GrpcSettings
from takhin.errors import Reason
from takhin.rpc import health
from takhin.rpc.call import method_table
from takhin.rpc.reflection import SERVICES, reflection_methods
from takhin.v1 import takhin_pb2
from tests.front import Run
from tests.fronts import new_front

TAKHIN = "takhin.v1.TakhinService"
NAMES = [TAKHIN, health.SERVICE]
Request = reflection_pb2.ServerReflectionRequest
Response = reflection_pb2.ServerReflectionResponse


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    front = new_front(method_table(reflection_methods(NAMES)), GrpcSettings())
    yield await front.start("127.0.0.1:0")
    await front.stop(1000)


async def ask(service: str, *requests: Request) -> list[Response]:
    """One stream with `requests`; the two versions' messages are the same on the wire."""
    async with serving() as address, grpc.aio.insecure_channel(address) as channel:
        method = channel.stream_stream(
            f"/{service}/ServerReflectionInfo", Request.SerializeToString, Response.FromString
        )
        return [response async for response in method(iter(requests), timeout=10)]


def files(response: Response) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    assert response.WhichOneof("message_response") == "file_descriptor_response", response
    parsed = map(descriptor_pb2.FileDescriptorProto.FromString, response.file_descriptor_response.file_descriptor_proto)
    return {file.name: file for file in parsed}


@pytest.mark.parametrize("service", SERVICES)
def test_lists_what_is_served_and_nothing_else(run: Run, service: str) -> None:
    (response,) = run(ask(service, Request(host="h", list_services="")))
    listed = [entry.name for entry in response.list_services_response.service]
    assert listed == sorted([*NAMES, *SERVICES])
    assert response.original_request == Request(host="h", list_services="")


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        (TAKHIN, "takhin/v1/takhin.proto"),
        (f"{TAKHIN}.ProduceMessage", "takhin/v1/takhin.proto"),
        ("takhin.v1.Record", "takhin/v1/takhin.proto"),
        (health.SERVICE, "grpc/health/v1/health.proto"),
        ("grpc.reflection.v1.ServerReflection", "grpc/reflection/v1/reflection.proto"),
        ("grpc.reflection.v1.ServerReflection.ServerReflectionInfo", "grpc/reflection/v1/reflection.proto"),
        ("grpc.reflection.v1.ServerReflectionRequest", "grpc/reflection/v1/reflection.proto"),
        ("grpc.reflection.v1alpha.ServerReflection", "grpc_reflection/v1alpha/reflection.proto"),
        ("google.rpc.ErrorInfo", "google/rpc/error_details.proto"),
    ],
)
def test_finds_the_file_of_a_symbol(run: Run, service: str, symbol: str, file: str) -> None:
    (response,) = run(ask(service, Request(file_containing_symbol=symbol)))
    (proto,) = [proto for name, proto in files(response).items() if name.endswith(file.rpartition("/")[2])]
    if "reflection" in file or "takhin" in file:
        assert proto.name == file
    again = run(ask(service, Request(file_by_filename=proto.name)))
    assert files(again[0])[proto.name] == proto


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_listed_can_be_described(run: Run, service: str) -> None:
    """Nothing but what was served goes into this pool: each file comes with all it imports."""
    (listed,) = run(ask(service, Request(list_services="")))
    names = [entry.name for entry in listed.list_services_response.service]
    pool = descriptor_pool.DescriptorPool()
    for response in run(ask(service, *(Request(file_containing_symbol=name) for name in names))):
        pending = files(response)

        def add(name: str, pending: dict[str, descriptor_pb2.FileDescriptorProto] = pending) -> None:
            for dependency in pending[name].dependency:
                add(dependency)
            pool.Add(pending[name])

        for name in pending:
            add(name)
    for name in names:
        assert pool.FindServiceByName(name).methods


def test_the_contract_comes_whole(run: Run) -> None:
    (response,) = run(ask(SERVICES[0], Request(file_containing_symbol=TAKHIN)))
    served = files(response)["takhin/v1/takhin.proto"]
    assert served == descriptor_pb2.FileDescriptorProto.FromString(takhin_pb2.DESCRIPTOR.serialized_pb)


def test_v1_is_v1alpha_in_another_package(run: Run) -> None:
    (response,) = run(ask(SERVICES[0], Request(file_containing_symbol="grpc.reflection.v1.ServerReflection")))
    (file,) = files(response).values()
    assert "alpha" not in str(file)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    request = message_factory.GetMessageClass(pool.FindMessageTypeByName("grpc.reflection.v1.ServerReflectionRequest"))
    sent = request(host="h", file_containing_symbol=TAKHIN).SerializeToString()
    assert sent == Request(host="h", file_containing_symbol=TAKHIN).SerializeToString()


@pytest.mark.parametrize("service", SERVICES)
def test_what_is_not_there_is_an_error_in_the_stream(run: Run, service: str) -> None:
    """And the stream goes on."""
    extension = reflection_pb2.ExtensionRequest(containing_type="takhin.v1.Record", extension_number=5)
    requests = [
        Request(file_containing_symbol="takhin.v1.Nope"),
        Request(file_containing_symbol=f"{TAKHIN}.Nope"),
        Request(file_containing_symbol=""),
        Request(file_by_filename="nope.proto"),
        Request(file_containing_extension=extension),
        Request(all_extension_numbers_of_type="nope.Nope"),
        Request(),
        Request(list_services="*"),
    ]
    responses = run(ask(service, *requests))
    assert [response.original_request for response in responses] == requests
    codes = [response.error_response.error_code for response in responses]
    not_found, invalid = grpc.StatusCode.NOT_FOUND.value[0], grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert codes == [not_found] * 6 + [invalid, 0]


@pytest.mark.parametrize("service", SERVICES)
def test_a_malformed_request_ends_the_stream(run: Run, service: str) -> None:
    async def go() -> None:
        async with serving() as address, grpc.aio.insecure_channel(address) as channel:
            stream = channel.stream_stream(f"/{service}/ServerReflectionInfo")(timeout=10)
            await stream.write(Request(list_services="").SerializeToString())
            assert Response.FromString(await stream.read()).list_services_response.service
            await stream.write(b"\x0a\xff")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            info = error_details_pb2.ErrorInfo()
            rpc_status.from_call(caught.value).details[0].Unpack(info)
            assert info.reason == Reason.MALFORMED_REQUEST

    run(go())


def test_the_packaged_client(run: Run) -> None:
    def talk(address: str) -> None:
        with grpc.insecure_channel(address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            assert sorted(database.get_services()) == sorted([*NAMES, *SERVICES])
            service = descriptor_pool.DescriptorPool(database).FindServiceByName(TAKHIN)
            assert [method.name for method in service.methods] == [
                method.name for method in takhin_pb2.DESCRIPTOR.services_by_name["TakhinService"].methods
            ]
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            assert len(list(stub.ServerReflectionInfo(iter([Request(list_services="")] * 100)))) == 100

    async def go() -> None:
        async with serving() as address:
            await asyncio.to_thread(talk, address)

    run(go())


def test_a_service_without_generated_code_is_listed(run: Run) -> None:
    (method, _) = reflection_methods(["test.v1.NoCode"])

    async def go() -> None:
        front = new_front(method_table([method]), GrpcSettings())
        async with grpc.aio.insecure_channel(await front.start("127.0.0.1:0")) as channel:
            stream = channel.stream_stream(method.path, Request.SerializeToString, Response.FromString)()
            await stream.write(Request(list_services=""))
            listed = (await stream.read()).list_services_response.service
            assert "test.v1.NoCode" in [entry.name for entry in listed]
            await stream.done_writing()
        await front.stop(1000)

    run(go())
