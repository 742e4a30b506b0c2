"""TLS and certificates of clients, both reloaded; and the Unix socket."""

import socket
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from takhin.cli.dev_certificates import Authority
from takhin.errors import StartError
from takhin.rpc.security import Security
from takhin.v1 import takhin_pb2 as pb
from takhin.v1 import takhin_pb2_grpc
from tests.broker_process import DEADLINE_S, BrokerProcess, error_info, new_topic, produce, read, values
from tests.conftest import StartBroker
from tests.secured import Secured, replace, unix_options

URI = "spiffe://example/client"


@pytest.fixture
def secured(tmp_path: Path) -> Secured:
    return Secured(tmp_path / "tls")


def outcome(address: str, credentials: grpc.ChannelCredentials | None, *metadata: tuple[str, str]) -> str:
    """How a ListTopics ends: "OK", the code's name, or the reason."""
    channel = grpc.insecure_channel(address) if credentials is None else grpc.secure_channel(
        address, credentials, options=[("grpc.use_local_subchannel_pool", 1), *unix_options(address)])
    with channel:
        stub = takhin_pb2_grpc.TakhinServiceStub(channel)
        try:
            stub.ListTopics(pb.ListTopicsRequest(), metadata=metadata, timeout=DEADLINE_S)
        except grpc.RpcError as failure:
            return failure.code().name if failure.trailing_metadata() == () else error_info(failure).reason
    return "OK"


def serial_number(address: str) -> str:
    """Of the certificate that the server shows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), DEADLINE_S) as plain, context.wrap_socket(plain) as wrapped:
        return ssl.DER_cert_to_PEM_cert(wrapped.getpeercert(binary_form=True) or b"")


def wait_until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


# Other keys than those of Authority.


PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def self_signed(key: PrivateKey, begins: timedelta = timedelta(days=-1)) -> tuple[bytes, bytes]:
    """Certificate and key, PEM; of localhost, for 30 days."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "odd")])
    since = datetime.now(UTC) + begins
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(since).not_valid_after(since + timedelta(days=30))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    signed = builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def pair(make: Callable[[], PrivateKey], **more: timedelta) -> Callable[[Secured], None]:
    """Gives the server such a key."""

    def spoil(secured: Secured) -> None:
        certificate, key = self_signed(make(), **more)
        replace(secured.directory / "server.key", key)
        replace(secured.directory / "server.pem", certificate)

    return spoil


short_rsa = pair(lambda: rsa.generate_private_key(65537, 1024))
ed25519_key = pair(ed25519.Ed25519PrivateKey.generate)
p521 = pair(lambda: ec.generate_private_key(ec.SECP521R1()))
not_yet_valid = pair(lambda: ec.generate_private_key(ec.SECP256R1()), begins=timedelta(days=10))


def test_only_encrypted_and_only_to_who_trusts_it(start_broker: StartBroker, secured: Secured) -> None:
    broker = start_broker(secured=secured)
    stub = broker.stub()
    topic = new_topic(stub)
    produce(stub, topic, b"value")
    assert values(read(stub, topic)) == [b"value"]
    bearer = ("authorization", f"Bearer {secured.token()}")
    assert outcome(broker.address, secured.tls(), bearer) == "OK"
    assert outcome(broker.address, None, bearer) == "UNAVAILABLE"
    assert outcome(broker.address, grpc.ssl_channel_credentials(Authority(1).pem), bearer) == "UNAVAILABLE"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tls_1_2_and_newer(start_broker: StartBroker, secured: Secured) -> None:
    broker = start_broker(secured=secured)
    for version in ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3:
        shake_hands(broker.address, secured, version)


def shake_hands(address: str, secured: Secured, version: ssl.TLSVersion) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(secured.directory / "ca.pem")
    context.set_alpn_protocols(["h2"])
    context.set_ciphers("ALL:@SECLEVEL=0")  # else this client would refuse the old version itself
    context.minimum_version = context.maximum_version = version
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), DEADLINE_S) as plain:
        if version is ssl.TLSVersion.TLSv1_1:
            with pytest.raises((ssl.SSLError, ConnectionResetError), match="EOF|PROTOCOL_VERSION|reset"):
                context.wrap_socket(plain, server_hostname=host)
            return
        with context.wrap_socket(plain, server_hostname=host) as wrapped:
            assert wrapped.version() == version.name.replace("_", ".") and wrapped.selected_alpn_protocol() == "h2"


def test_a_new_pair_is_used_and_a_bad_one_is_not(start_broker: StartBroker, secured: Secured) -> None:
    broker = start_broker(secured=secured)
    bearer = ("authorization", f"Bearer {secured.token()}")
    first = serial_number(broker.address)
    open_before = broker.stub()
    open_before.ListTopics(pb.ListTopicsRequest())

    replace(secured.directory / "server.pem", b"no certificate")
    broker.wait_for_log("server.pem: holds no certificate in PEM.*what was read before stays in use")
    assert serial_number(broker.address) == first
    assert outcome(broker.address, secured.tls(), bearer) == "OK"
    (secured.directory / "server.pem").unlink()
    broker.wait_for_log("server.pem: can't be read: No such file")
    assert serial_number(broker.address) == first

    other = Authority(1)
    secured.write_server(other)
    wait_until(lambda: serial_number(broker.address) != first)
    assert outcome(broker.address, secured.tls(), bearer) == "UNAVAILABLE", "it trusts the authority of before"
    assert outcome(broker.address, grpc.ssl_channel_credentials(other.pem), bearer) == "OK"
    open_before.ListTopics(pb.ListTopicsRequest())
    assert broker.stderr.count("stays in use") <= 4, "told once, not at each look"


# Certificates of clients.


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory, front: str) -> Iterator[BrokerProcess]:
    directory = tmp_path_factory.mktemp("mutual")
    secured = Secured(directory / "tls", "--auth-admins", f"cert:{URI} jwt:tests", client_ca=True)
    broker = BrokerProcess(directory / "broker", secured=secured).start()
    yield broker
    broker.terminate()
    broker.check()


def test_who_has_a_certificate_is_known_by_it(mutual: BrokerProcess) -> None:
    secured = mutual.secured
    assert secured is not None
    tls, authority = secured.tls, secured.authority
    assert outcome(mutual.address, tls(authority.client([URI], "any"))) == "OK"
    assert outcome(mutual.address, grpc.ssl_channel_credentials(authority.pem)) == "UNAVAILABLE", "none"
    assert outcome(mutual.address, tls(Authority(1).client([URI], "any"))) == "UNAVAILABLE", "of another authority"
    assert outcome(mutual.address, tls(authority.client([URI], "any", days=-1))) == "UNAVAILABLE", "expired"
    for uris in [], [URI, "spiffe://example/other"]:
        assert outcome(mutual.address, tls(authority.client(uris, "any"))) == "CREDENTIALS_INVALID"
    since = len(mutual.stderr)
    stranger = tls(authority.client([URI + "/more"], "any"))
    with grpc.secure_channel(mutual.address, stranger) as channel, pytest.raises(grpc.RpcError) as refused:
        takhin_pb2_grpc.TakhinServiceStub(channel).GetTopic(pb.GetTopicRequest(name="x"))
    assert error_info(refused.value).reason == "ACCESS_DENIED"
    assert f"principal=cert:{URI}/more" in mutual.wait_for_log("denied method=GetTopic", since)


def test_what_is_said_counts_before_the_certificate(mutual: BrokerProcess) -> None:
    secured = mutual.secured
    assert secured is not None
    tls = secured.tls(secured.authority.client([URI], "any"))
    assert outcome(mutual.address, tls, ("authorization", f"Bearer {secured.token()}")) == "OK"
    assert outcome(mutual.address, tls, ("authorization", "Bearer tk_wrong")) == "CREDENTIALS_INVALID"
    nameless = secured.tls(secured.authority.client([], "any"))
    assert outcome(mutual.address, nameless, ("authorization", f"Bearer {secured.token()}")) == "OK"


@pytest.mark.parametrize("make", [
    lambda: rsa.generate_private_key(65537, 2048), lambda: ec.generate_private_key(ec.SECP384R1()),
], ids=["RSA", "P-384"])
def test_other_keys(start_broker: StartBroker, secured: Secured, make: Callable[[], PrivateKey]) -> None:
    certificate, key = self_signed(make())
    replace(secured.directory / "server.key", key)
    replace(secured.directory / "server.pem", certificate)
    broker = start_broker(secured=secured)
    channel = grpc.secure_channel(broker.address, grpc.ssl_channel_credentials(certificate), options=[
        ("grpc.ssl_target_name_override", "localhost")])
    with channel:
        metadata = (("authorization", f"Bearer {secured.token()}"),)
        takhin_pb2_grpc.TakhinServiceStub(channel).ListTopics(
            pb.ListTopicsRequest(), metadata=metadata, timeout=DEADLINE_S)


@pytest.mark.parametrize(("spoil", "told"), [
    (short_rsa, "is RSA with 1024 bits"), (ed25519_key, "is neither RSA nor EC"),
    (not_yet_valid, "is not valid before"),
], ids=["short", "Ed25519", "not yet valid"])
def test_a_pair_that_not_everybody_can_use_is_not_used(
    start_broker: StartBroker, secured: Secured, spoil: Callable[[Secured], None], told: str
) -> None:
    broker = start_broker(secured=secured)
    first = serial_number(broker.address)
    spoil(secured)
    broker.wait_for_log(f"{told}.*what was read before stays in use")
    assert serial_number(broker.address) == first
    assert outcome(broker.address, secured.tls(), ("authorization", f"Bearer {secured.token()}")) == "OK"


@pytest.mark.parametrize(("rule", "principal"), [("subject", "cert:CN=ops"), ("common-name", "cert:ops")])
def test_another_rule_names_the_client(
    start_broker: StartBroker, tmp_path: Path, rule: str, principal: str
) -> None:
    secured = Secured(
        tmp_path / "tls", "--auth-certificate-name", rule, "--auth-admins", principal, client_ca=True)
    broker = start_broker(secured=secured)
    assert outcome(broker.address, secured.tls(secured.authority.client([URI], "ops"))) == "OK"
    channel = grpc.secure_channel(broker.address, secured.tls(secured.authority.client([URI], "ops2")))
    with channel, pytest.raises(grpc.RpcError) as refused:
        takhin_pb2_grpc.TakhinServiceStub(channel).GetTopic(pb.GetTopicRequest(name="x"))
    assert error_info(refused.value).reason == "ACCESS_DENIED"


def test_the_authority_of_clients_is_read_again(start_broker: StartBroker, tmp_path: Path) -> None:
    secured = Secured(tmp_path / "tls", "--auth-admins", f"cert:{URI}", client_ca=True)
    broker = start_broker(secured=secured)
    old, other = secured.authority.client([URI], "x"), Authority(1)
    new = other.client([URI], "x")
    assert outcome(broker.address, secured.tls(old)) == "OK"
    assert outcome(broker.address, secured.tls(new)) == "UNAVAILABLE"
    replace(secured.directory / "ca.pem", other.pem)
    wait_until(lambda: outcome(broker.address, secured.tls(new)) == "OK")
    assert outcome(broker.address, secured.tls(old)) == "UNAVAILABLE"


def test_an_authority_that_has_expired_is_left_out(start_broker: StartBroker, tmp_path: Path) -> None:
    """Old and new ones are in the file together while they are replaced; also with words between them."""
    secured = Secured(tmp_path / "tls", "--auth-admins", f"cert:{URI}", client_ca=True)
    expired, other = Authority(-1), Authority(1)
    replace(secured.directory / "ca.pem", expired.pem + "Autorität\n".encode() + secured.authority.pem)
    broker = start_broker(secured=secured)
    broker.wait_for_log("ca.pem: the certificate of 'CN=takhin dev CA' expired on .*; it is left out")
    assert outcome(broker.address, secured.tls(secured.authority.client([URI], "x"))) == "OK"
    assert outcome(broker.address, secured.tls(other.client([URI], "x"))) == "UNAVAILABLE"
    replace(secured.directory / "ca.pem", expired.pem + other.pem)
    wait_until(lambda: outcome(broker.address, secured.tls(other.client([URI], "x"))) == "OK")
    assert outcome(broker.address, secured.tls(expired.client([URI], "x", days=1))) == "UNAVAILABLE"


# Mistakes.


def _encrypted(secured: Secured) -> None:
    key = secured.directory / "server.key"
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")))


def _expired(secured: Secured) -> None:
    certificate, key = Authority(-1).server(["localhost"])
    (secured.directory / "server.pem").write_bytes(certificate)
    (secured.directory / "server.key").write_bytes(key)


def _weak_intermediate(secured: Secured) -> None:
    weak, _ = self_signed(rsa.generate_private_key(65537, 1024))
    with (secured.directory / "server.pem").open("ab") as file:
        file.write(weak)


@pytest.mark.parametrize(("spoil", "told"), [
    (lambda secured: (secured.directory / "server.pem").unlink(), "server.pem: can't be read: No such file"),
    (lambda secured: (secured.directory / "server.pem").write_text("x"), "server.pem: holds no certificate in PEM"),
    (lambda secured: (secured.directory / "server.key").write_text("x"), "server.key: is not a private key in PEM"),
    (lambda secured: (secured.directory / "server.key").write_bytes(Authority(1).server(["x"])[1]),
     "is not the key of the certificate in"),
    (lambda secured: (secured.directory / "ca.pem").write_text(""), "ca.pem: holds no certificate in PEM"),
    (lambda secured: (secured.directory / "jwks.json").write_text("{}"), "jwks.json: is not a JWKS file"),
    (lambda secured: (secured.directory / "server.pem").write_bytes(b"x" * (1 << 20 | 1)), "is larger than"),
    (_encrypted, "server.key: the private key has a password"),
    (_expired, "the certificate of 'CN=takhin dev server' expired on"),
    (short_rsa, "server.pem: the key of the certificate of 'CN=odd' is RSA with 1024 bits; it has to be RSA with 2048"),
    (ed25519_key, "server.pem: the key of the certificate of 'CN=odd' is neither RSA nor EC; it has to be"),
    (p521, "server.pem: the key of the certificate of 'CN=odd' is EC on secp521r1; it has to be"),
    (not_yet_valid, "server.pem: the certificate of 'CN=odd' is not valid before 2"),
    (_weak_intermediate, "can't be used for TLS: ca key too small"),
    (lambda secured: (secured.directory / "ca.pem").write_bytes(Authority(-1).pem),
     "ca.pem: the certificate of 'CN=takhin dev CA' expired on"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_files_that_cannot_be_used(
    tmp_path: Path, spoil: Callable[[Secured], object], told: str
) -> None:
    secured = Secured(tmp_path, client_ca=True)
    Security(secured.settings())
    spoil(secured)
    with pytest.raises(StartError, match=told) as refused:
        Security(secured.settings())
    assert str(refused.value).isprintable()


def test_a_broker_with_a_mistake_there_does_not_start(tmp_path: Path) -> None:
    secured = Secured(tmp_path / "tls")
    (secured.directory / "server.key").unlink()
    broker = BrokerProcess(tmp_path / "broker", secured=secured)
    assert broker.start_or_end() == 1
    told = [line for line in broker.stderr.splitlines() if "grpc.max_connections" not in line]
    assert len(told) == 1 and "server.key: can't be read" in told[0]
    assert not broker.data_dir.exists(), "told before anything is done"


# The Unix socket.


def test_a_unix_socket(start_broker: StartBroker, tmp_path: Path) -> None:
    path = tmp_path / "s"
    broker = start_broker(listen=f"unix:{path}")
    assert broker.address == f"unix:{path}"
    mode = path.stat().st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o660
    stub = broker.stub()
    topic = new_topic(stub)
    produce(stub, topic, b"value")
    assert values(read(stub, topic)) == [b"value"]

    second = BrokerProcess(tmp_path / "second", listen=f"unix:{path}")
    assert second.start_or_end() == 1
    assert f"unix:{path} is in use by another process" in second.stderr
    assert values(read(stub, topic)) == [b"value"], "the first one has kept its socket"

    broker.restart(kill=True)  # what it left behind is in nobody's way
    assert values(read(broker.stub(), topic)) == [b"value"]
    broker.terminate()
    assert not path.exists()

    path.write_text("precious")
    assert broker.start_or_end() == 1
    assert "there is a file that is no socket" in broker.stderr and path.read_text() == "precious"
    broker.listen = f"unix:{tmp_path}/none/s"
    assert broker.start_or_end() == 1
    assert f"there is no directory {tmp_path}/none" in broker.stderr


def test_a_unix_socket_with_credentials(start_broker: StartBroker, secured: Secured, tmp_path: Path) -> None:
    broker = start_broker(listen=f"unix:{tmp_path}/s", secured=secured)
    new_topic(broker.stub())
    since = len(broker.stderr)
    assert outcome(broker.address, secured.tls()) == "CREDENTIALS_MISSING"
    broker.wait_for_log("denied method=ListTopics principal=-", since)
