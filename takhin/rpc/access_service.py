"""The method table of takhin.v1.AccessService: API keys and ACLs."""

from google.protobuf.message import Message

from takhin.broker.access_control import MAX_TIME_MS, AccessControl
from takhin.broker.access_store import ApiKey
from takhin.broker.acl import Acl, Effect, Operation, Pattern, Resource
from takhin.errors import Reason, error
from takhin.rpc.call import Method
from takhin.rpc.service import unary_method
from takhin.v1 import access_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["AccessService"].full_name
# In one request.
MAX_ENTRIES = 1_000

_EFFECTS = {pb.ACL_EFFECT_ALLOW: Effect.ALLOW, pb.ACL_EFFECT_DENY: Effect.DENY}
_OPERATIONS = {
    pb.ACL_OPERATION_PRODUCE: Operation.PRODUCE, pb.ACL_OPERATION_CONSUME: Operation.CONSUME,
    pb.ACL_OPERATION_GROUP: Operation.GROUP, pb.ACL_OPERATION_ADMIN: Operation.ADMIN,
}
_RESOURCES = {
    pb.ACL_RESOURCE_TOPIC: Resource.TOPIC, pb.ACL_RESOURCE_GROUP: Resource.GROUP,
    pb.ACL_RESOURCE_PRODUCER: Resource.PRODUCER, pb.ACL_RESOURCE_CLUSTER: Resource.CLUSTER,
}
_PATTERNS = {
    pb.ACL_PATTERN_UNSPECIFIED: Pattern.LITERAL, pb.ACL_PATTERN_LITERAL: Pattern.LITERAL,
    pb.ACL_PATTERN_PREFIX: Pattern.PREFIX,
}


def access_methods(access: AccessControl) -> list[Method]:
    """Every method of the service."""
    handlers = _Handlers(access)
    return [
        unary_method(f"/{SERVICE}/CreateApiKey", pb.CreateApiKeyRequest, handlers.create_api_key),
        unary_method(f"/{SERVICE}/ListApiKeys", pb.ListApiKeysRequest, handlers.list_api_keys),
        unary_method(f"/{SERVICE}/RevokeApiKey", pb.RevokeApiKeyRequest, handlers.revoke_api_key),
        unary_method(f"/{SERVICE}/CreateAcls", pb.CreateAclsRequest, handlers.create_acls),
        unary_method(f"/{SERVICE}/ListAcls", pb.ListAclsRequest, handlers.list_acls),
        unary_method(f"/{SERVICE}/DeleteAcls", pb.DeleteAclsRequest, handlers.delete_acls),
    ]


class _Handlers:
    def __init__(self, access: AccessControl):
        self._access = access

    async def create_api_key(self, request: pb.CreateApiKeyRequest) -> Message:
        if not 0 <= request.lifetime_ms <= MAX_TIME_MS:
            raise error(
                Reason.INVALID_EXPIRY,
                f"lifetime_ms {request.lifetime_ms} is not between 0 (for ever) and {MAX_TIME_MS}")
        key, presented = await self._access.create_key(request.name, request.lifetime_ms or None)
        return pb.CreateApiKeyResponse(key=presented, info=_described(key))

    async def list_api_keys(self, request: pb.ListApiKeysRequest) -> Message:
        return pb.ListApiKeysResponse(keys=[_described(key) for key in self._access.keys()])

    async def revoke_api_key(self, request: pb.RevokeApiKeyRequest) -> Message:
        return pb.RevokeApiKeyResponse(info=_described(await self._access.revoke_key(request.id)))

    async def create_acls(self, request: pb.CreateAclsRequest) -> Message:
        return pb.CreateAclsResponse(created=await self._access.create_acls(_entries(request.acls)))

    async def list_acls(self, request: pb.ListAclsRequest) -> Message:
        return pb.ListAclsResponse(acls=[
            _sent(entry) for entry in self._access.entries() if request.principal in ("", entry.principal)])

    async def delete_acls(self, request: pb.DeleteAclsRequest) -> Message:
        await self._access.delete_acls(_entries(request.acls))
        return pb.DeleteAclsResponse()


def _described(key: ApiKey) -> pb.ApiKey:
    return pb.ApiKey(id=key.id, name=key.name, created_ms=key.created_ms, expires_ms=key.expires_ms or 0)


def _entries(sent: "list[pb.Acl]") -> list[Acl]:
    """Raises INVALID_ACL."""
    if len(sent) > MAX_ENTRIES:
        raise error(Reason.INVALID_ACL, f"{len(sent)} entries in one request are too many: {MAX_ENTRIES} at most")
    return [_entry(each) for each in sent]


def _entry(sent: pb.Acl) -> Acl:
    for field, known in (
        ("effect", _EFFECTS), ("operation", _OPERATIONS), ("resource", _RESOURCES), ("pattern", _PATTERNS),
    ):
        if getattr(sent, field) not in known:
            raise error(
                Reason.INVALID_ACL,
                f"{field} {getattr(sent, field)} of an entry is not known; there are "
                f"{', '.join(dict.fromkeys(known.values()))}",
            )
    return Acl(
        sent.principal, _EFFECTS[sent.effect], _OPERATIONS[sent.operation], _RESOURCES[sent.resource],
        _PATTERNS[sent.pattern], sent.name,
    )


def _sent(entry: Acl) -> pb.Acl:
    numbers = [{word: number for number, word in known.items()} for known in (
        _EFFECTS, _OPERATIONS, _RESOURCES, _PATTERNS)]
    return pb.Acl(
        principal=entry.principal, effect=numbers[0][entry.effect], operation=numbers[1][entry.operation],
        resource=numbers[2][entry.resource], pattern=numbers[3][entry.pattern], name=entry.name,
    )
