"""TLS and authentication for brokers under test: certificates, an issuer of tokens, and clients that have them.

With TAKHIN_TEST_SECURED=1 every broker that BrokerProcess starts has both, and its channels speak as an administrator:
so the tests of the RPCs run once more, on a broker as it is in production (make secured).
"""

import atexit
import functools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from takhin.cli.dev_certificates import Authority
from takhin.config import Settings, load_settings, options

ISSUER, AUDIENCE = "https://issuer.example", "takhin"
ADMIN = "tests"
IS_DEFAULT = os.environ.get("TAKHIN_TEST_SECURED") == "1"


class Secured:
    """flags: of a takhin-server that takes these certificates, tokens and API keys. more: further ones. client_ca: it
    asks for certificates. encrypted: False: tokens alone."""

    def __init__(self, directory: Path, *more: str, client_ca: bool = False, encrypted: bool = True):
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.authority = Authority(1)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.write_server(self.authority)
        (directory / "ca.pem").write_bytes(self.authority.pem)
        self.write_keys(one=self.key)
        self.client: tuple[bytes, bytes] | None = None
        pair = ["--tls-cert", str(directory / "server.pem"), "--tls-key", str(directory / "server.key")]
        self.is_encrypted = encrypted
        self.flags = [
            *(pair if encrypted else ()), "--tls-check-ms", "100", "--auth-keys",
            "--auth-jwks", str(directory / "jwks.json"),
            "--auth-jwt-issuer", ISSUER, "--auth-jwt-audience", AUDIENCE, "--auth-admins", f"jwt:{ADMIN}", *more]
        if client_ca:
            self.flags += ["--tls-client-ca", str(directory / "ca.pem")]
            self.client = self.authority.client(["spiffe://example/client"], "client")

    def write_server(self, authority: Authority, *names: str) -> None:
        """A new pair for the server, signed by `authority`. names: that it bears; none: those under which it is tested.
        """
        certificate, key = authority.server(names or ["localhost", "127.0.0.1"])
        replace(self.directory / "server.key", key)
        replace(self.directory / "server.pem", certificate)

    def write_keys(self, **keys: ec.EllipticCurvePrivateKey) -> None:
        """The JWKS file, with the public halves of these keys by name (kid)."""
        entries = [
            json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())) | {"kid": kid, "alg": "ES256", "use": "sig"}
            for kid, key in keys.items()]
        replace(self.directory / "jwks.json", json.dumps({"keys": entries}).encode())

    def token(self, subject: str = ADMIN, lifetime_s: float = 3600, kid: str = "one", **claims: Any) -> str:
        """A good token, but for what `claims` say; None leaves one out."""
        now_s = time.time()
        said = {"sub": subject, "iss": ISSUER, "aud": AUDIENCE, "iat": now_s - 1, "exp": now_s + lifetime_s} | claims
        said = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(said, self.key, "ES256", headers={"kid": kid})

    def tls(self, client: tuple[bytes, bytes] | None = None) -> grpc.ChannelCredentials:
        """Credentials of a connection; client: certificate and key."""
        certificate, key = client or self.client or (None, None)
        return grpc.ssl_channel_credentials(self.authority.pem, key, certificate)

    def channel(
        self, address: str, with_options: Sequence[tuple[str, int | str]] = (), token: str | None = None
    ) -> grpc.Channel:
        """Whose calls bear the token; None: the administrator's."""
        if not self.is_encrypted:
            # gRPC sends no credentials of its own kind in the clear.
            metadata = (("authorization", f"Bearer {token or self.token()}"),)
            return grpc.intercept_channel(grpc.insecure_channel(address, options=with_options), _WithMetadata(metadata))
        call = grpc.access_token_call_credentials(token or self.token())
        credentials = grpc.composite_channel_credentials(self.tls(), call)
        return grpc.secure_channel(address, credentials, options=[*with_options, *unix_options(address)])

    def settings(self) -> Settings:
        """What the flags come to."""
        flags = [flag for flag in self.flags if flag != "--auth-keys"]
        keys = {option.flag: option.key for option in options()}
        given = {keys[flag]: value for flag, value in zip(flags[::2], flags[1::2], strict=True)}
        return load_settings(given | {"auth.keys": "true"}, {}, None)


def unix_options(address: str) -> list[tuple[str, str]]:
    """A socket's path is no name that a certificate could bear."""
    return [("grpc.ssl_target_name_override", "localhost")] if address.startswith("unix:") else []


def replace(path: Path, content: bytes) -> None:
    """In one step, as whoever renews a certificate should."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    new.rename(path)


class _WithMetadata(
    grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamStreamClientInterceptor
):
    """Gives every call this metadata."""

    def __init__(self, metadata: tuple[tuple[str, str], ...]):
        self._metadata = metadata

    def _intercept(self, go_on: Any, details: Any, request: Any) -> Any:
        return go_on(details._replace(metadata=(*(details.metadata or ()), *self._metadata)), request)

    intercept_unary_unary = intercept_unary_stream = intercept_stream_stream = _intercept


@functools.cache
def secured_by_default(*, encrypted: bool = True) -> Secured | None:
    """What brokers of this run have; None: neither TLS nor authentication."""
    if not IS_DEFAULT:
        return None
    directory = tempfile.mkdtemp(prefix="takhin-secured-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Secured(Path(directory), encrypted=encrypted)
