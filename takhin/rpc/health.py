"""grpc.health.v1.Health: what load balancers and orchestrators ask. Check, Watch and List.

A status is kept for each service served and for "", the server as a whole.
"""

import asyncio
from collections.abc import Iterable
from enum import IntEnum
from typing import TypeVar

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from takhin.errors import Reason, error
from takhin.rpc.call import Call, Kind, Method, StreamCall

SERVICE = "grpc.health.v1.Health"
# Of a service that is watched.
MAX_NAME_CHARACTERS = 256

_Request = TypeVar("_Request", health_pb2.HealthCheckRequest, health_pb2.HealthListRequest)
_SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class ServingStatus(IntEnum):
    """Of grpc.health.v1.HealthCheckResponse. SERVICE_UNKNOWN, its fourth value, is for the names nobody has set."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2


class Health:
    """The statuses, and the methods that tell them. To be used from the event loop alone.

    Everything is NOT_SERVING until set: a server that is still recovering must not be sent work.
    """

    def __init__(self, services: Iterable[str]):
        """`services`: the names served beside "" and Health itself."""
        self._statuses = dict.fromkeys(sorted({"", SERVICE, *services}), ServingStatus.NOT_SERVING)
        # One event for each Watch under way, by the name it watches.
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._draining = False

    def set(self, service: str, status: ServingStatus) -> None:
        """Set one status, of a new name too, and tell its watchers. Does nothing after drain()."""
        if not self._draining:
            self._set(service, status)

    def set_all(self, status: ServingStatus) -> None:
        """Set every status there is. Does nothing after drain()."""
        for service in self._statuses:
            self.set(service, status)

    def drain(self) -> None:
        """Turn everything NOT_SERVING for good; each Watch tells so and ends: UNAVAILABLE, reason DRAINING."""
        self._draining = True
        for service in self._statuses:
            self._set(service, ServingStatus.NOT_SERVING)
        for watchers in self._watchers.values():
            for changed in watchers:
                changed.set()

    def methods(self) -> list[Method]:
        """The entries of the method table."""
        return [
            Method(f"/{SERVICE}/Check", Kind.UNARY, self._check),
            Method(f"/{SERVICE}/Watch", Kind.SERVER_STREAM, self._watch),
            Method(f"/{SERVICE}/List", Kind.UNARY, self._list),
        ]

    def _set(self, service: str, status: ServingStatus) -> None:
        self._statuses[service] = status
        for changed in self._watchers.get(service, ()):
            changed.set()

    async def _check(self, request: bytes, call: Call) -> bytes:
        service = _parse(health_pb2.HealthCheckRequest, request).service
        status = self._statuses.get(service)
        if status is None:
            raise error(Reason.SERVICE_NOT_FOUND, f"no service {service!r} is served here", service=service)
        return health_pb2.HealthCheckResponse(status=status.value).SerializeToString()

    async def _list(self, request: bytes, call: Call) -> bytes:
        _parse(health_pb2.HealthListRequest, request)
        response = health_pb2.HealthListResponse()
        for service, status in self._statuses.items():
            response.statuses[service].status = status.value
        return response.SerializeToString()

    async def _watch(self, request: bytes, call: StreamCall) -> None:
        """Tell the status at once and after each change. A slow watcher is told the newest only: none piles up."""
        service = _parse(health_pb2.HealthCheckRequest, request).service
        if len(service) > MAX_NAME_CHARACTERS:
            # It would be kept for as long as somebody watches; and anybody may.
            raise error(Reason.SERVICE_NOT_FOUND, f"no service has a name of {len(service)} characters")
        changed = asyncio.Event()
        self._watchers.setdefault(service, set()).add(changed)
        told: int | None = None
        try:
            while True:
                changed.clear()
                status = int(self._statuses.get(service, _SERVICE_UNKNOWN))
                if status != told:
                    await call.write(health_pb2.HealthCheckResponse(status=status).SerializeToString())
                    told = status
                elif self._draining:
                    raise error(Reason.DRAINING, "the server is shutting down")
                else:
                    await changed.wait()
        finally:
            self._watchers[service].discard(changed)
            if not self._watchers[service]:
                del self._watchers[service]


def _parse(kind: type[_Request], request: bytes) -> _Request:
    try:
        return kind.FromString(request)
    except DecodeError:
        raise error(Reason.MALFORMED_REQUEST, f"the request is not a {kind.DESCRIPTOR.full_name}") from None
