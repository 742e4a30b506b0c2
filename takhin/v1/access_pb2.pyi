from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AclEffect(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACL_EFFECT_UNSPECIFIED: _ClassVar[AclEffect]
    ACL_EFFECT_ALLOW: _ClassVar[AclEffect]
    ACL_EFFECT_DENY: _ClassVar[AclEffect]

class AclOperation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACL_OPERATION_UNSPECIFIED: _ClassVar[AclOperation]
    ACL_OPERATION_PRODUCE: _ClassVar[AclOperation]
    ACL_OPERATION_CONSUME: _ClassVar[AclOperation]
    ACL_OPERATION_GROUP: _ClassVar[AclOperation]
    ACL_OPERATION_ADMIN: _ClassVar[AclOperation]

class AclResource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACL_RESOURCE_UNSPECIFIED: _ClassVar[AclResource]
    ACL_RESOURCE_TOPIC: _ClassVar[AclResource]
    ACL_RESOURCE_GROUP: _ClassVar[AclResource]
    ACL_RESOURCE_PRODUCER: _ClassVar[AclResource]
    ACL_RESOURCE_CLUSTER: _ClassVar[AclResource]

class AclPattern(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACL_PATTERN_UNSPECIFIED: _ClassVar[AclPattern]
    ACL_PATTERN_LITERAL: _ClassVar[AclPattern]
    ACL_PATTERN_PREFIX: _ClassVar[AclPattern]
ACL_EFFECT_UNSPECIFIED: AclEffect
ACL_EFFECT_ALLOW: AclEffect
ACL_EFFECT_DENY: AclEffect
ACL_OPERATION_UNSPECIFIED: AclOperation
ACL_OPERATION_PRODUCE: AclOperation
ACL_OPERATION_CONSUME: AclOperation
ACL_OPERATION_GROUP: AclOperation
ACL_OPERATION_ADMIN: AclOperation
ACL_RESOURCE_UNSPECIFIED: AclResource
ACL_RESOURCE_TOPIC: AclResource
ACL_RESOURCE_GROUP: AclResource
ACL_RESOURCE_PRODUCER: AclResource
ACL_RESOURCE_CLUSTER: AclResource
ACL_PATTERN_UNSPECIFIED: AclPattern
ACL_PATTERN_LITERAL: AclPattern
ACL_PATTERN_PREFIX: AclPattern

class ApiKey(_message.Message):
    __slots__ = ("id", "name", "created_ms", "expires_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CREATED_MS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_MS_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    created_ms: int
    expires_ms: int
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., created_ms: _Optional[int] = ..., expires_ms: _Optional[int] = ...) -> None: ...

class CreateApiKeyRequest(_message.Message):
    __slots__ = ("name", "lifetime_ms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_MS_FIELD_NUMBER: _ClassVar[int]
    name: str
    lifetime_ms: int
    def __init__(self, name: _Optional[str] = ..., lifetime_ms: _Optional[int] = ...) -> None: ...

class CreateApiKeyResponse(_message.Message):
    __slots__ = ("key", "info")
    KEY_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    key: str
    info: ApiKey
    def __init__(self, key: _Optional[str] = ..., info: _Optional[_Union[ApiKey, _Mapping]] = ...) -> None: ...

class ListApiKeysRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListApiKeysResponse(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[ApiKey]
    def __init__(self, keys: _Optional[_Iterable[_Union[ApiKey, _Mapping]]] = ...) -> None: ...

class RevokeApiKeyRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class RevokeApiKeyResponse(_message.Message):
    __slots__ = ("info",)
    INFO_FIELD_NUMBER: _ClassVar[int]
    info: ApiKey
    def __init__(self, info: _Optional[_Union[ApiKey, _Mapping]] = ...) -> None: ...

class Acl(_message.Message):
    __slots__ = ("principal", "effect", "operation", "resource", "pattern", "name")
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    PATTERN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    principal: str
    effect: AclEffect
    operation: AclOperation
    resource: AclResource
    pattern: AclPattern
    name: str
    def __init__(self, principal: _Optional[str] = ..., effect: _Optional[_Union[AclEffect, str]] = ..., operation: _Optional[_Union[AclOperation, str]] = ..., resource: _Optional[_Union[AclResource, str]] = ..., pattern: _Optional[_Union[AclPattern, str]] = ..., name: _Optional[str] = ...) -> None: ...

class CreateAclsRequest(_message.Message):
    __slots__ = ("acls",)
    ACLS_FIELD_NUMBER: _ClassVar[int]
    acls: _containers.RepeatedCompositeFieldContainer[Acl]
    def __init__(self, acls: _Optional[_Iterable[_Union[Acl, _Mapping]]] = ...) -> None: ...

class CreateAclsResponse(_message.Message):
    __slots__ = ("created",)
    CREATED_FIELD_NUMBER: _ClassVar[int]
    created: int
    def __init__(self, created: _Optional[int] = ...) -> None: ...

class ListAclsRequest(_message.Message):
    __slots__ = ("principal",)
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    principal: str
    def __init__(self, principal: _Optional[str] = ...) -> None: ...

class ListAclsResponse(_message.Message):
    __slots__ = ("acls",)
    ACLS_FIELD_NUMBER: _ClassVar[int]
    acls: _containers.RepeatedCompositeFieldContainer[Acl]
    def __init__(self, acls: _Optional[_Iterable[_Union[Acl, _Mapping]]] = ...) -> None: ...

class DeleteAclsRequest(_message.Message):
    __slots__ = ("acls",)
    ACLS_FIELD_NUMBER: _ClassVar[int]
    acls: _containers.RepeatedCompositeFieldContainer[Acl]
    def __init__(self, acls: _Optional[_Iterable[_Union[Acl, _Mapping]]] = ...) -> None: ...

class DeleteAclsResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
