"""An exception that nobody expected never reaches a client as text: planted in every RPC of a real server."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from takhin.errors import Reason
from takhin.v1 import access_pb2, takhin_pb2
from tests.broker_process import DEADLINE_S, BrokerProcess
from tests.front import details
from tests.secured import Secured

PLANTED = "planted-secret"
FILES = (takhin_pb2, access_pb2, health_pb2, reflection_pb2)
METHODS = [
    method for file in FILES for service in file.DESCRIPTOR.services_by_name.values() for method in service.methods]

PLANT = """
import sys
from dataclasses import replace
import takhin.cli.server as server

def boom(*arguments):
    raise RuntimeError("planted-secret\\r\\n\\x1b[2J{\\"level\\": \\"forged\\"}")

async def async_boom(*arguments):
    await __import__("asyncio").sleep(0)
    boom()

def plant_handlers():
    from takhin.broker import consume, produce, subscribe, transactions
    from takhin.rpc import served
    def planted(methods):
        return [replace(method, handler=async_boom, appending=None) for method in methods]
    for name in "takhin_methods", "access_methods", "reflection_methods":
        def table(*arguments, original=getattr(served, name)):
            return planted(original(*arguments))
        setattr(served, name, table)
    methods = served.Health.methods
    served.Health.methods = lambda self: planted(methods(self))
    # What the guard calls by itself, once it knows who calls.
    produce.Producing.produce_to = produce.Producing.produce_stream = async_boom
    transactions.Transactions.produce = consume.Consuming.consume = subscribe.Subscribing.subscribe = async_boom

def plant_deep():
    from takhin.rpc import health, reflection
    class Statuses(dict):
        get = items = boom
    init = health.Health.__init__
    def with_statuses(self, *arguments):
        init(self, *arguments)
        self._statuses = Statuses(self._statuses)
    health.Health.__init__ = with_statuses
    reflection._Pool.FindFileContainingSymbol = boom

load = server._load
def load_and_plant():
    load()
    {"handlers": plant_handlers, "deep": plant_deep}[where]()
server._load = load_and_plant
sys.exit(server.main())
"""


def planted(directory: Path, where: str, secured: Secured | None) -> Iterator[BrokerProcess]:
    program = [sys.executable, "-c", f"where = {where!r}\n" + PLANT]
    broker = BrokerProcess(directory / "broker", "--log-format", "json", program=program, secured=secured).start()
    yield broker
    broker.terminate()


@pytest.fixture(scope="module", params=["open", "secured"])
def broker(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, front: str
) -> Iterator[BrokerProcess]:
    """Every handler raises."""
    directory = tmp_path_factory.mktemp("planted")
    yield from planted(directory, "handlers", Secured(directory / "tls") if request.param == "secured" else None)


@pytest.fixture(scope="module")
def deep_broker(tmp_path_factory: pytest.TempPathFactory, front: str) -> Iterator[BrokerProcess]:
    """What health's and reflection's handlers use raises."""
    yield from planted(tmp_path_factory.mktemp("deep"), "deep", None)


def refusal(broker: BrokerProcess, path: str, request: bytes, *, client_streams: bool, server_streams: bool) -> None:
    """The client learns INTERNAL and the request id; the log has the traceback under it, in one line."""
    channel = broker.channel()
    asked = f"planted{path.replace('/', '.')}"
    options = {"timeout": DEADLINE_S, "metadata": (("x-request-id", asked),)}
    since = len(broker.stderr)
    with pytest.raises(grpc.RpcError) as raised:
        if client_streams:
            list(channel.stream_stream(path)(iter([request]), **options))
        elif server_streams:
            list(channel.unary_stream(path)(request, **options))
        else:
            channel.unary_unary(path)(request, **options)
    told = raised.value
    assert told.code() is grpc.StatusCode.INTERNAL and told.details() == f"internal error {asked}"
    info, request_info = details(told)
    assert info.reason == Reason.INTERNAL_ERROR and request_info.request_id == asked and not info.metadata
    everything = repr(told) + repr(told.initial_metadata()) + repr(told.trailing_metadata())
    assert all(word not in everything for word in (PLANTED, "RuntimeError", "Traceback", "boom"))
    logged = json.loads(broker.wait_for_log(f"internal error {asked}", since))
    assert (logged["level"], logged["request_id"]) == ("error", asked)
    assert logged["message"] == f"internal error {asked}: RuntimeError"
    assert f"RuntimeError: {PLANTED}" in logged["stack"] and "in boom" in logged["stack"]
    assert "forged" not in {json.loads(line)["level"] for line in broker.stderr.splitlines()}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_in_a_handler(broker: BrokerProcess, method: MethodDescriptor) -> None:
    # With authentication it looks up what the group has committed, unless it is told.
    reset = takhin_pb2.ResetOffsetsRequest(topics=["t"]).SerializeToString()
    refusal(
        broker, f"/{method.containing_service.full_name}/{method.name}",
        reset if method.name == "ResetOffsets" else b"",
        client_streams=method.client_streaming, server_streams=method.server_streaming)


def test_in_reflection_v1(broker: BrokerProcess) -> None:
    """Which has no generated code."""
    refusal(broker, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", b"", client_streams=True,
            server_streams=True)


@pytest.mark.parametrize("name", ["Check", "Watch", "List"])
def test_deep_in_health(deep_broker: BrokerProcess, name: str) -> None:
    refusal(deep_broker, f"/grpc.health.v1.Health/{name}", b"", client_streams=False, server_streams=name == "Watch")


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_deep_in_reflection(deep_broker: BrokerProcess, version: str) -> None:
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="takhin.v1.TakhinService")
    refusal(deep_broker, f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request.SerializeToString(), client_streams=True, server_streams=True)


def test_every_service_is_among_them() -> None:
    """Of those that a server lists there is none that this leaves out, and the descriptors know each."""
    named = {method.containing_service.full_name for method in METHODS}
    assert named == {
        "takhin.v1.TakhinService", "takhin.v1.AccessService", "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection"}
    assert all(descriptor_pool.Default().FindServiceByName(name) for name in named)
