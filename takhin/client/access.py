"""API keys and ACLs of a broker."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from google.protobuf.message import Message as ProtoMessage

from takhin.client.transport import Transport
from takhin.v1 import access_pb2 as pb

SERVICE = "/takhin.v1.AccessService/"

Effect = Literal["allow", "deny"]
Operation = Literal["produce", "consume", "group", "admin"]
Resource = Literal["topic", "group", "producer", "cluster"]

AnswerT = TypeVar("AnswerT", bound=ProtoMessage)

_EFFECTS: dict[str, pb.AclEffect] = {"allow": pb.ACL_EFFECT_ALLOW, "deny": pb.ACL_EFFECT_DENY}
_OPERATIONS: dict[str, pb.AclOperation] = {
    "produce": pb.ACL_OPERATION_PRODUCE, "consume": pb.ACL_OPERATION_CONSUME, "group": pb.ACL_OPERATION_GROUP,
    "admin": pb.ACL_OPERATION_ADMIN,
}
_RESOURCES: dict[str, pb.AclResource] = {
    "topic": pb.ACL_RESOURCE_TOPIC, "group": pb.ACL_RESOURCE_GROUP, "producer": pb.ACL_RESOURCE_PRODUCER,
    "cluster": pb.ACL_RESOURCE_CLUSTER,
}


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret. principal: who its bearer is to ACLs. expires_ms: None: never."""

    id: str
    name: str
    created_ms: int
    expires_ms: int | None

    @property
    def principal(self) -> str:
        return f"key:{self.name}"


@dataclass(frozen=True, slots=True)
class Acl:
    """One entry: what a principal ("*": everybody) may do, or may not, with a resource.

    name: with is_prefix all names that begin so, "" then for all there are; "" for the cluster.
    """

    principal: str
    operation: Operation
    resource: Resource
    name: str = ""
    effect: Effect = "allow"
    is_prefix: bool = False


class Access:
    """Calls that need to administer the cluster. Each raises ClientError: PermissionDenied, Unauthenticated."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def _call(
        self, name: str, request: ProtoMessage, answer: type[AnswerT], timeout_s: float | None
    ) -> AnswerT:
        return answer.FromString(await self._transport.unary(SERVICE + name, request.SerializeToString(), timeout_s))

    async def create_key(
        self, name: str, *, lifetime_s: float | None = None, timeout_s: float | None = None
    ) -> tuple[str, ApiKey]:
        """A new key for the principal key:NAME: what its user presents, which nobody is told again, and its data.

        lifetime_s None: until it is revoked. Raises InvalidArgument, ResourceExhausted.
        """
        lifetime_ms = 0 if lifetime_s is None else max(round(lifetime_s * 1000), 1)
        request = pb.CreateApiKeyRequest(name=name, lifetime_ms=lifetime_ms)
        answer = await self._call("CreateApiKey", request, pb.CreateApiKeyResponse, timeout_s)
        return answer.key, _key(answer.info)

    async def list_keys(self, *, timeout_s: float | None = None) -> list[ApiKey]:
        """From the oldest on, expired ones included."""
        answer = await self._call("ListApiKeys", pb.ListApiKeysRequest(), pb.ListApiKeysResponse, timeout_s)
        return [_key(each) for each in answer.keys]

    async def revoke_key(self, key_id: str, *, timeout_s: float | None = None) -> ApiKey:
        """End a key, and the streams that were opened with it. Raises NotFound."""
        request = pb.RevokeApiKeyRequest(id=key_id)
        return _key((await self._call("RevokeApiKey", request, pb.RevokeApiKeyResponse, timeout_s)).info)

    async def create_acls(self, acls: Iterable[Acl], *, timeout_s: float | None = None) -> int:
        """All of them or none; gives how many were not there yet. Raises InvalidArgument, ResourceExhausted."""
        request = pb.CreateAclsRequest(acls=[_sent(each) for each in acls])
        return (await self._call("CreateAcls", request, pb.CreateAclsResponse, timeout_s)).created

    async def list_acls(self, principal: str = "", *, timeout_s: float | None = None) -> list[Acl]:
        """Those of a principal; "": all."""
        request = pb.ListAclsRequest(principal=principal)
        return [_acl(each) for each in (await self._call("ListAcls", request, pb.ListAclsResponse, timeout_s)).acls]

    async def delete_acls(self, acls: Iterable[Acl], *, timeout_s: float | None = None) -> None:
        """All of them or none. Raises NotFound, InvalidArgument."""
        request = pb.DeleteAclsRequest(acls=[_sent(each) for each in acls])
        await self._call("DeleteAcls", request, pb.DeleteAclsResponse, timeout_s)


def _key(info: pb.ApiKey) -> ApiKey:
    return ApiKey(info.id, info.name, info.created_ms, info.expires_ms or None)


def _sent(acl: Acl) -> pb.Acl:
    return pb.Acl(
        principal=acl.principal, effect=_EFFECTS[acl.effect], operation=_OPERATIONS[acl.operation],
        resource=_RESOURCES[acl.resource], name=acl.name,
        pattern=pb.ACL_PATTERN_PREFIX if acl.is_prefix else pb.ACL_PATTERN_LITERAL)


def _acl(sent: pb.Acl) -> Acl:
    effect: Effect = "deny" if sent.effect == pb.ACL_EFFECT_DENY else "allow"
    operation: Operation
    for operation in ("produce", "consume", "group", "admin"):
        if _OPERATIONS[operation] == sent.operation:
            break
    resource: Resource
    for resource in ("topic", "group", "producer", "cluster"):
        if _RESOURCES[resource] == sent.resource:
            break
    return Acl(sent.principal, operation, resource, sent.name, effect, sent.pattern == pb.ACL_PATTERN_PREFIX)
