"""The AccessService: API keys and ACLs, kept across restarts; credentials as calls bring them along."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from takhin.errors import Reason
from takhin.v1 import access_pb2 as pb
from takhin.v1 import access_pb2_grpc, takhin_pb2, takhin_pb2_grpc
from tests.broker_process import DEADLINE_S, BrokerProcess, error_info, new_topic, produce
from tests.conftest import StartBroker
from tests.secured import IS_DEFAULT, Secured

Access = access_pb2_grpc.AccessServiceStub
ENTRY = {
    "principal": "key:a", "effect": pb.ACL_EFFECT_ALLOW, "operation": pb.ACL_OPERATION_PRODUCE,
    "resource": pb.ACL_RESOURCE_TOPIC, "name": "orders"}


def acl(**fields: Any) -> pb.Acl:
    return pb.Acl(**ENTRY | fields)


@pytest.fixture
def admin(secured_broker: BrokerProcess) -> Access:
    return Access(secured_broker.channel())


def refusal(call: Any, request: Any, *metadata: tuple[str, str]) -> tuple[str, str]:
    """Code and reason."""
    with pytest.raises(grpc.RpcError) as refused:
        call(request, metadata=metadata, timeout=DEADLINE_S)
    return refused.value.code().name, error_info(refused.value).reason


def test_the_life_of_a_key(secured_broker: BrokerProcess, admin: Access) -> None:
    made = admin.CreateApiKey(pb.CreateApiKeyRequest(name="life", lifetime_ms=3_600_000))
    assert made.key.startswith(f"tk_{made.info.id}_") and len(made.key) > 60
    assert made.info.name == "life" and made.info.expires_ms == made.info.created_ms + 3_600_000
    second = admin.CreateApiKey(pb.CreateApiKeyRequest(name="life"))
    assert second.info.expires_ms == 0 and second.key != made.key and second.info.id != made.info.id
    listed = [each for each in admin.ListApiKeys(pb.ListApiKeysRequest()).keys if each.name == "life"]
    assert sorted(listed, key=lambda each: each.id) == sorted([made.info, second.info], key=lambda each: each.id)
    assert made.key not in str(listed)
    assert made.key.encode() not in (secured_broker.data_dir / "meta.db-wal").read_bytes()

    with grpc.secure_channel(secured_broker.address, secured_broker.secured.tls()) as channel:
        stub = takhin_pb2_grpc.TakhinServiceStub(channel)
        request = takhin_pb2.ListTopicsRequest()
        for metadata in ("x-api-key", made.key), ("authorization", f"Bearer {made.key}"), (
            "authorization", f"bearer  {made.key} "
        ):
            assert list(stub.ListTopics(request, metadata=[metadata]).topics) == []
        assert admin.RevokeApiKey(pb.RevokeApiKeyRequest(id=made.info.id)).info == made.info
        for metadata in ("x-api-key", made.key), ("authorization", f"Bearer {made.key}"):
            assert refusal(stub.ListTopics, request, metadata) == ("UNAUTHENTICATED", "CREDENTIALS_INVALID")
        stub.ListTopics(request, metadata=[("x-api-key", second.key)])
    assert refusal(admin.RevokeApiKey, pb.RevokeApiKeyRequest(id=made.info.id)) == ("NOT_FOUND", Reason.KEY_NOT_FOUND)


@pytest.mark.parametrize(("metadata", "reason"), [
    ([], "CREDENTIALS_MISSING"),
    ([("cookie", "x")], "CREDENTIALS_MISSING"),
    ([("authorization", "")], "CREDENTIALS_INVALID"),
    ([("authorization", "Bearer")], "CREDENTIALS_INVALID"),
    ([("authorization", "Bearer ")], "CREDENTIALS_INVALID"),
    ([("authorization", "Basic {token}")], "CREDENTIALS_INVALID"),
    ([("authorization", "{token}")], "CREDENTIALS_INVALID"),
    ([("authorization", "Bearer {token} x")], "CREDENTIALS_INVALID"),
    ([("x-api-key", "{token}")], "CREDENTIALS_INVALID"),
    ([("x-api-key", "{key}"), ("authorization", "Bearer {token}")], "CREDENTIALS_INVALID"),
    ([("x-api-key", "")], "CREDENTIALS_INVALID"),
    ([("x-api-key", "{key}x")], "CREDENTIALS_INVALID"),
    ([("x-api-key", "x{key}")], "CREDENTIALS_INVALID"),
    ([("x-api-key", "tk_")], "CREDENTIALS_INVALID"),
    ([("x-api-key", "tk_{id}")], "CREDENTIALS_INVALID"),
    ([("x-api-key", "tk_{id}_")], "CREDENTIALS_INVALID"),
    ([("x-api-key", "TK_{id}_x")], "CREDENTIALS_INVALID"),
    ([("x-api-key", "y" * 4000)], "CREDENTIALS_INVALID"),
    ([("x-api-key", "{key}")], ""),
    ([("authorization", "BEARER {token}")], ""),
], ids=str)
def test_credentials(
    secured_broker: BrokerProcess, admin: Access, metadata: list[tuple[str, str]], reason: str
) -> None:
    made = admin.CreateApiKey(pb.CreateApiKeyRequest(name="credentials"))
    secured = secured_broker.secured
    assert secured is not None
    values = {"key": made.key, "id": made.info.id, "token": secured.token("somebody")}
    sent = [(name, value.format(**values)) for name, value in metadata]
    with grpc.secure_channel(secured_broker.address, secured.tls()) as channel:
        call = takhin_pb2_grpc.TakhinServiceStub(channel).ListTopics
        if reason:
            assert refusal(call, takhin_pb2.ListTopicsRequest(), *sent) == ("UNAUTHENTICATED", reason)
        else:
            call(takhin_pb2.ListTopicsRequest(), metadata=sent)


def test_entries(admin: Access) -> None:
    entries = [acl(), acl(operation=pb.ACL_OPERATION_CONSUME, pattern=pb.ACL_PATTERN_PREFIX, name=""),
               acl(effect=pb.ACL_EFFECT_DENY, principal="*")]
    assert admin.CreateAcls(pb.CreateAclsRequest(acls=entries)).created == 3
    assert admin.CreateAcls(pb.CreateAclsRequest(acls=[*entries, acl(name="more")])).created == 1, "new ones"
    mine = admin.ListAcls(pb.ListAclsRequest(principal="key:a")).acls
    assert [(each.operation, each.pattern, each.name) for each in mine] == [
        (pb.ACL_OPERATION_CONSUME, pb.ACL_PATTERN_PREFIX, ""),
        (pb.ACL_OPERATION_PRODUCE, pb.ACL_PATTERN_LITERAL, "more"),
        (pb.ACL_OPERATION_PRODUCE, pb.ACL_PATTERN_LITERAL, "orders")]
    assert len(admin.ListAcls(pb.ListAclsRequest()).acls) == 4
    gone = pb.DeleteAclsRequest(acls=[acl(), acl(name="never there")])
    assert refusal(admin.DeleteAcls, gone) == ("NOT_FOUND", Reason.ACL_NOT_FOUND)
    assert len(admin.ListAcls(pb.ListAclsRequest()).acls) == 4, "all or none"
    admin.DeleteAcls(pb.DeleteAclsRequest(acls=[*entries, acl(name="more")]))
    assert list(admin.ListAcls(pb.ListAclsRequest()).acls) == []


@pytest.mark.parametrize(("fields", "reason"), [
    ({"principal": "a"}, Reason.INVALID_PRINCIPAL), ({"principal": ""}, Reason.INVALID_PRINCIPAL),
    ({"principal": "admin-key"}, Reason.INVALID_PRINCIPAL), ({"effect": 0}, Reason.INVALID_ACL),
    ({"effect": 9}, Reason.INVALID_ACL), ({"operation": 0}, Reason.INVALID_ACL),
    ({"operation": 77}, Reason.INVALID_ACL),
    ({"resource": 0}, Reason.INVALID_ACL), ({"pattern": 3}, Reason.INVALID_ACL), ({"name": ""}, Reason.INVALID_ACL),
    ({"name": "a\n"}, Reason.INVALID_ACL), ({"operation": pb.ACL_OPERATION_GROUP}, Reason.INVALID_ACL),
    ({"resource": pb.ACL_RESOURCE_CLUSTER, "operation": pb.ACL_OPERATION_ADMIN}, Reason.INVALID_ACL),
])
def test_entries_that_are_refused(admin: Access, fields: dict[str, Any], reason: Reason) -> None:
    request = pb.CreateAclsRequest(acls=[acl(name="beside"), acl(**fields)])
    assert refusal(admin.CreateAcls, request) == ("INVALID_ARGUMENT", reason)
    assert list(admin.ListAcls(pb.ListAclsRequest()).acls) == [], "all or none"


def test_other_mistakes(admin: Access) -> None:
    invalid = "INVALID_ARGUMENT"
    for name in "", "x" * 129, "a\n", "a\x00":
        assert refusal(admin.CreateApiKey, pb.CreateApiKeyRequest(name=name)) == (invalid, Reason.INVALID_PRINCIPAL)
    for lifetime_ms in -1, 1 << 60:
        request = pb.CreateApiKeyRequest(name="a", lifetime_ms=lifetime_ms)
        assert refusal(admin.CreateApiKey, request) == (invalid, Reason.INVALID_EXPIRY)
    assert refusal(admin.CreateAcls, pb.CreateAclsRequest()) == (invalid, Reason.INVALID_ACL)
    assert refusal(admin.DeleteAcls, pb.DeleteAclsRequest()) == (invalid, Reason.INVALID_ACL)
    many = pb.CreateAclsRequest(acls=[acl(name=str(number)) for number in range(1001)])
    assert refusal(admin.CreateAcls, many) == (invalid, Reason.INVALID_ACL)


@pytest.mark.skipif(IS_DEFAULT, reason="it starts without authentication")
def test_from_an_open_broker_to_a_closed_one(start_broker: StartBroker, tmp_path: Path) -> None:
    """Keys and ACLs are made while there is no authentication, kept across restarts, and count once there is."""
    broker = start_broker("--limits-api-keys", "2", "--limits-acls", "2")
    topic = new_topic(broker.stub())
    admin = Access(broker.channel())
    keys = [admin.CreateApiKey(pb.CreateApiKeyRequest(name=name)) for name in ("writer", "gone")]
    limit = ("RESOURCE_EXHAUSTED", Reason.KEY_LIMIT)
    assert refusal(admin.CreateApiKey, pb.CreateApiKeyRequest(name="third")) == limit
    admin.RevokeApiKey(pb.RevokeApiKeyRequest(id=keys[1].info.id))
    admin.CreateAcls(pb.CreateAclsRequest(acls=[acl(principal="key:writer", name=topic), acl()]))
    assert refusal(admin.CreateAcls, pb.CreateAclsRequest(acls=[acl(name="third")])) == (
        "RESOURCE_EXHAUSTED", Reason.ACL_LIMIT)
    admin.DeleteAcls(pb.DeleteAclsRequest(acls=[acl()]))
    produce(broker.stub(), topic, b"open")
    broker.wait_for_log('done method=CreateApiKey principal=- .*what="API key [0-9a-f]+ of name writer, expires .*"')

    broker.flags.append("--auth-keys")
    broker.restart(kill=True)
    stub = takhin_pb2_grpc.TakhinServiceStub(broker.channel())
    request = takhin_pb2.ProduceMessageRequest(topic=topic, record=takhin_pb2.Record(value=b"x"))
    assert stub.ProduceMessage(request, metadata=[("x-api-key", keys[0].key)]).offset == 1
    assert refusal(stub.ProduceMessage, request) == ("UNAUTHENTICATED", "CREDENTIALS_MISSING")
    assert refusal(stub.ProduceMessage, request, ("x-api-key", keys[1].key)) == (
        "UNAUTHENTICATED", "CREDENTIALS_INVALID")


@pytest.mark.skipif(IS_DEFAULT, reason="it has authentication of its own")
def test_the_administrators_key(start_broker: StartBroker, tmp_path: Path) -> None:
    path = tmp_path / "admin.key"
    broker = BrokerProcess(tmp_path / "none", "--auth-admin-key", str(path))
    assert broker.start_or_end() == 1 and "admin.key: can't be read" in broker.stderr
    path.write_text("secret")
    assert broker.start_or_end() == 1 and "takhin key new makes one" in broker.stderr

    def new_key() -> str:
        made = subprocess.run(
            [sys.executable, "-m", "takhin.cli.main", "key", "new"], capture_output=True, text=True, check=True).stdout
        path.write_text(made)
        return made.strip()

    first = new_key()
    broker = start_broker("--auth-admin-key", str(path), "--tls-check-ms", "100")
    admin = Access(broker.channel())
    request = pb.CreateApiKeyRequest(name="admin-key")
    made = admin.CreateApiKey(request, metadata=[("x-api-key", first)])
    unknown = ("UNAUTHENTICATED", "CREDENTIALS_INVALID")
    assert refusal(admin.CreateApiKey, request, ("x-api-key", made.key)) == unknown, "keys are not taken here"
    second = new_key()
    broker.wait_for_log("read again: .*admin.key")
    admin.CreateApiKey(request, metadata=[("authorization", f"Bearer {second}")])
    assert refusal(admin.CreateApiKey, request, ("x-api-key", first)) == unknown
    assert "principal=admin-key" in broker.wait_for_log("done method=CreateApiKey")


@pytest.mark.parametrize(("setting", "without", "with_token"), [
    ("authenticated", "UNAUTHENTICATED", "OK"), ("open", "OK", "OK"), ("off", "UNIMPLEMENTED", "UNIMPLEMENTED")])
def test_reflection(start_broker: StartBroker, tmp_path: Path, setting: str, without: str, with_token: str) -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    secured = Secured(tmp_path / "tls", "--auth-reflection", setting)
    broker = start_broker(secured=secured)

    def told(channel: grpc.Channel) -> str:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        try:
            (answer,) = stub.ServerReflectionInfo(asked, timeout=DEADLINE_S)
        except grpc.RpcError as failure:
            return str(failure.code().name)
        names = {each.name for each in answer.list_services_response.service}
        assert names >= {"takhin.v1.TakhinService", "takhin.v1.AccessService"}
        return "OK"

    with grpc.secure_channel(broker.address, secured.tls()) as channel:
        assert told(channel) == without
    assert told(broker.channel()) == with_token
