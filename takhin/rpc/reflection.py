"""Server reflection, v1 and v1alpha: what lets grpcurl and its like call a server whose .proto they don't have.

The two versions differ in nothing but the name of their package. grpcio-reflection has v1alpha: its logic serves both,
and v1's descriptor is made from v1alpha's.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio as packaged

from takhin.errors import Reason, error
from takhin.rpc.call import Kind, Method, StreamCall, check_stream_request

_PACKAGE = "grpc.reflection.v1"
_PACKAGE_ALPHA = "grpc.reflection.v1alpha"
SERVICES = (f"{_PACKAGE}.ServerReflection", f"{_PACKAGE_ALPHA}.ServerReflection")


def reflection_methods(service_names: Iterable[str]) -> list[Method]:
    """The entries of the method table for both versions.

    They list `service_names` and themselves, and describe the files of those services whose generated code is imported,
    and of the details that errors carry.
    """
    names = sorted({*service_names, *SERVICES})
    servicer = packaged.ReflectionServicer(names, pool=_Pool(_descriptors(names)))

    async def server_reflection_info(call: StreamCall) -> None:
        async with aclosing(servicer.ServerReflectionInfo(_requests(call), None)) as responses:
            async for response in responses:
                await call.write(response.SerializeToString())

    return [Method(f"/{service}/ServerReflectionInfo", Kind.BIDI, server_reflection_info) for service in SERVICES]


class _Pool:
    """A DescriptorPool that finds the file of a method's name as well, as the protocol asks."""

    def __init__(self, pool: descriptor_pool.DescriptorPool):
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return self._pool.FindMethodByName(symbol).containing_service.file


async def _requests(call: StreamCall) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
    # A message, and what is read from it, is kept until the next one comes: hence no large ones.
    while (message := await call.read()) is not None:
        check_stream_request(message)
        try:
            yield reflection_pb2.ServerReflectionRequest.FromString(message)
        except DecodeError:
            raise error(Reason.MALFORMED_REQUEST, f"the request is not a {_PACKAGE}.ServerReflectionRequest") from None


def _descriptors(names: Iterable[str]) -> descriptor_pool.DescriptorPool:
    """The files of the services `names` and all they import. A pool of its own: it tells what is served, not what else
    happens to be imported, and v1's file can't clash with another copy of it.
    """
    imported = descriptor_pool.Default()
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(file: FileDescriptor) -> None:
        if file.name not in added:
            added.add(file.name)
            for dependency in file.dependencies:
                add(dependency)
            pool.AddSerializedFile(file.serialized_pb)

    for file in (reflection_pb2.DESCRIPTOR, status_pb2.DESCRIPTOR, error_details_pb2.DESCRIPTOR):
        add(file)
    pool.AddSerializedFile(_v1_file().SerializeToString())
    for name in names:
        try:
            add(imported.FindFileContainingSymbol(name))
        except KeyError:
            continue  # v1 itself, or a service that has no generated code: listed, but not described
    return pool


def _v1_file() -> FileDescriptorProto:
    """grpc/reflection/v1/reflection.proto, made from v1alpha's."""
    file = FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    file.name = "grpc/reflection/v1/reflection.proto"
    file.package = _PACKAGE
    file.ClearField("options")  # names for other languages' packages, v1alpha's
    for field in (field for message in file.message_type for field in message.field if field.HasField("type_name")):
        field.type_name = _in_v1(field.type_name)
    for method in (method for service in file.service for method in service.method):
        method.input_type = _in_v1(method.input_type)
        method.output_type = _in_v1(method.output_type)
    return file


def _in_v1(type_name: str) -> str:
    return type_name.replace(f".{_PACKAGE_ALPHA}.", f".{_PACKAGE}.")
